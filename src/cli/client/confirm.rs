//! The question before a restore or a delete: what it does, to which VM, from which backup, and of when.

use std::fmt::Write as _;
use std::io;
use std::io::BufRead;

use rustix::termios::isatty;
use serde_json::Value;
use serde_json::json;

use crate::cli::client::ending::Ending;
use crate::cli::client::progress::Estimate;
use crate::cli::client::run::Context;
use crate::cli::client::text::age;
use crate::cli::client::text::printable;
use crate::cli::client::text::size;
use crate::client::Backup;
use crate::client::ChosenVm;
use crate::client::ClientError;
use crate::client::Plan;
use crate::client::PlannedBackup;
use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::runtime::SystemClock;

/// What would be done, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// The VM gets the state of the backup.
    Restore,
    /// The backup is removed.
    Delete,
}

impl Deed {
    /// The kind of operation.
    pub(super) const fn op(self) -> &'static str {
        match self {
            Self::Restore => "restore-Backup",
            Self::Delete => "delete-Backup",
        }
    }

    /// The right that it needs.
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Delete => "delete",
        }
    }
}

/// Whether a person said yes.
pub(super) enum Consent {
    /// Yes; to what this plan says, where there was one.
    Yes {
        /// The fingerprint of the plan.
        fingerprint: Option<String>,
    },
    /// Not to be done.
    No(Ending),
}

/// Whether a person can be asked: questions are on standard error, answers on standard input.
pub(super) fn can_ask() -> bool {
    isatty(io::stdin()) && isatty(io::stderr())
}

/// The error where there is no one to ask and `--yes` was not given.
pub(super) fn needs_yes(deed: Deed) -> ClientError {
    let what = deed.action();
    ClientError::Usage(format!(
        "there is no terminal to ask on whether to {what}; add --yes to {what} without being asked"
    ))
}

impl Context<'_, '_> {
    /// Shows what would be done and asks.
    pub(super) async fn confirm(
        &mut self,
        deed: Deed,
        vm: &ChosenVm,
        backup: &Backup,
        pairs: &[(String, Value)],
    ) -> Result<Consent, ClientError> {
        let target = (vm.id.as_str(), backup.id.as_str());
        let planned = self
            .gateway
            .read_plan(target, deed.op(), pairs, &mut self.report);
        let plan = planned.await?;
        let now = SystemClock.now();
        let mut text = headline(deed, vm, backup, now);
        if let Some(plan) = &plan {
            text.push_str(&plan_text(plan));
            self.report.estimate = Estimate::of_plan(plan);
            self.report
                .record(&json!({ "record": "plan", "plan": plan.json }));
            if let Some(refused) = plan.refused.first() {
                self.report.ask(&text);
                let why = format!(
                    "it would be refused, and nothing was changed: {}",
                    refused.text
                );
                return Ok(Consent::No(Ending::Declined(why)));
            }
        }
        let name = printable(vm.name());
        let question = match deed {
            Deed::Restore => format!("Restore {name}? [y/N] "),
            Deed::Delete => format!(
                "Delete backup {} of {name}? [y/N] ",
                printable(&backup.name)
            ),
        };
        self.report.ask(&format!("{text}{question}"));
        let line = tokio::task::spawn_blocking(read_line).await;
        let line = line.ok().and_then(Result::ok).unwrap_or_default();
        if ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()) {
            let fingerprint = plan.map(|plan| plan.fingerprint);
            return Ok(Consent::Yes { fingerprint });
        }
        let why = "not confirmed; nothing was changed".to_owned();
        Ok(Consent::No(Ending::Declined(why)))
    }
}

fn read_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

/// VM, backup and time in one line.
fn headline(deed: Deed, vm: &ChosenVm, backup: &Backup, now: Timestamp) -> String {
    let vm = format!("VM {} (id {})", printable(vm.name()), printable(&vm.id));
    let made = backup.created.as_deref().map(|created| {
        let age = age(created, now);
        format!(", made {} ({age})", printable(created))
    });
    let backup = format!(
        "backup {} (id {}){}",
        printable(&backup.name),
        printable(&backup.id),
        made.unwrap_or_default()
    );
    match deed {
        Deed::Restore => format!("Restore {vm} from {backup}\n"),
        Deed::Delete => format!("Delete {backup} of {vm}\n"),
    }
}

/// What a plan says, a line for each part that says something.
pub(super) fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |head: &str, rest: &str| {
        if !rest.is_empty() {
            let _infallible = writeln!(text, "  {head:<12} {}", printable(rest));
        }
    };
    let disks: Vec<String> = plan
        .overwrites
        .iter()
        .map(|disk| match disk.size {
            Some(bytes) => format!("{} ({})", disk.disk, size(bytes)),
            None => disk.disk.clone(),
        })
        .collect();
    line("overwrites", &disks.join(", "));
    if let Some(since) = &plan.loses.since {
        line("loses", &format!("what was written since {since}"));
    }
    let lost: Vec<String> = plan.loses.backups.iter().map(backup_text).collect();
    line("deletes", &lost.join(", "));
    line("leaves", &plan.leaves.join(", "));
    line("afterwards", plan.after.as_deref().unwrap_or_default());
    if let Some(needs) = &plan.needs {
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), size);
        let text = format!("{}, free {}", known(needs.bytes), known(needs.free));
        line("needs", &text);
    }
    if let Some(duration) = &plan.duration {
        let text = format!("about {} s ({})", duration.seconds, duration.basis);
        line("takes", &text);
    }
    for warning in &plan.warnings {
        line("warning", warning);
    }
    line("not known", &plan.unknown.join(", "));
    for refusal in &plan.refused {
        line("refused", &format!("{} [{}]", refusal.text, refusal.code));
    }
    text
}

fn backup_text(backup: &PlannedBackup) -> String {
    format!("backup {} (id {})", backup.name, backup.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_names_vm_backup_and_time() {
        let vm = ChosenVm {
            id: "33333".to_owned(),
            vm: Some(crate::client::Vm {
                name: "web01".to_owned(),
                ..crate::client::Vm::default()
            }),
        };
        let backup = Backup {
            id: "456".to_owned(),
            name: "nightly\u{1b}[1A".to_owned(),
            created: Some("2026-01-01T00:00:00Z".to_owned()),
            ..Backup::default()
        };
        let now = Timestamp::parse_rfc3339("2026-01-01T02:00:00Z").unwrap();
        let expected = "VM web01 (id 33333) from backup nightly\\u{1b}[1A (id 456), made 2026-01-01T00:00:00Z (2 hours ago)\n";
        let line = headline(Deed::Restore, &vm, &backup, now);
        assert_eq!(line, format!("Restore {expected}"), "in one line");
    }

    #[test]
    fn a_plan_has_a_line_for_each_part_that_says_something() {
        let json = serde_json::json!({
            "vm": {"id": "1", "name": "a"}, "backup": {"id": "2", "name": "b", "created": ""},
            "overwrites": [{"disk": "disk.img", "size": 16_777_216}, {"disk": "b"}],
            "loses": {"since": "2026-01-01T00:00:00Z", "backups": [{"id": "3", "name": "later"}]},
            "leaves": [], "after": "STOPPED", "needs": {"bytes": 1024},
            "duration": {"seconds": 3, "basis": "history"},
            "refused": [{"code": "Busy", "text": "In use."}], "unknown": ["leaves"], "fingerprint": "f",
        });
        let text = plan_text(&Plan::from_json(json).unwrap());
        let expected = "  overwrites   disk.img (16.0 MiB), b
  loses        what was written since 2026-01-01T00:00:00Z
  deletes      backup later (id 3)
  afterwards   STOPPED
  needs        1.0 KiB, free unknown
  takes        about 3 s (history)
  not known    leaves
  refused      In use. [Busy]
";
        assert_eq!(text, expected, "{text}");
    }
}
