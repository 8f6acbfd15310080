//! Tasks of Proxmox VE: their unique ids, their ends, and how far they are.

use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::wire;
use crate::model::BackupKind;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::Verb;
use crate::public_text;

/// How a task ended, or that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TaskEnd {
    /// It runs.
    Running,
    /// It succeeded, with so many warnings.
    Succeeded(u32),
    /// It failed with this native text.
    Failed(String),
    /// It was stopped on request.
    Interrupted,
    /// Its process died, so its end says nothing.
    Died,
}

/// What the message of a success adds for a task that ended with warnings. Their text is in the log of the task alone.
pub(super) fn warning_notice(upid: &str, warnings: u32) -> Option<PublicText> {
    if warnings == 0 {
        return None;
    }
    tracing::warn!(upid, warnings, "task succeeded with warnings");
    Some(public_text!(
        "The VM manager reported warnings; see its task log."
    ))
}

/// The type of the task that removes an archive.
pub(super) const REMOVAL: &str = "imgdel";

/// The ends of tasks whose process was killed.
const DEATHS: [&str; 2] = ["unexpected status", "unable to read tail"];
/// The ends of tasks that were stopped through the API.
const INTERRUPTIONS: [&str; 2] = ["received interrupt", "interrupted by signal"];

impl TaskEnd {
    /// Of the answer about a single task.
    pub(super) fn of_status(task: &wire::Task) -> Self {
        match (task.status.as_deref(), task.exitstatus.as_deref()) {
            // The end is absent while it runs, and may be late.
            (Some("running"), _) | (_, None) => Self::Running,
            (_, Some(end)) => Self::of_text(end),
        }
    }

    /// Of an entry in a list of tasks.
    pub(super) fn of_entry(task: &wire::Task) -> Self {
        match task.status.as_deref() {
            None | Some("RUNNING" | "running" | "") => Self::Running,
            Some(end) => Self::of_text(end),
        }
    }

    fn of_text(end: &str) -> Self {
        if end == "OK" {
            return Self::Succeeded(0);
        }
        if let Some(count) = end.strip_prefix("WARNINGS: ") {
            return Self::Succeeded(count.trim().parse().unwrap_or(1));
        }
        if DEATHS.iter().any(|text| end.contains(text)) {
            return Self::Died;
        }
        if INTERRUPTIONS.iter().any(|text| end.contains(text)) {
            return Self::Interrupted;
        }
        Self::Failed(end.to_owned())
    }
}

/// The node that a unique id names: `UPID:NODE:PID:START:TIME:TYPE:ID:USER:`.
pub(super) fn node_of(upid: &str) -> Option<&str> {
    field(upid, 1)
}

/// The type that a unique id names.
pub(super) fn type_of(upid: &str) -> Option<&str> {
    field(upid, 5)
}

/// The guest that a unique id names; the id of a removal is `GUEST@STORAGE`.
pub(super) fn guest_of(upid: &str) -> Option<&str> {
    field(upid, 6)?.split('@').next()
}

fn field(upid: &str, index: usize) -> Option<&str> {
    let mut fields = upid.split(':');
    if fields.next() != Some("UPID") {
        return None;
    }
    fields
        .nth(index.checked_sub(1)?)
        .filter(|text| !text.is_empty())
}

/// The type of the task that a change becomes.
pub(super) const fn type_for(verb: Verb, kind: BackupKind, guest: GuestKind) -> &'static str {
    match (verb, kind, guest) {
        (Verb::Create, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Qemu) => {
            "qmsnapshot"
        }
        (Verb::Create, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Lxc) => {
            "vzsnapshot"
        }
        (Verb::Create, BackupKind::Full, _) => "vzdump",
        (Verb::Delete, BackupKind::Full, _) => REMOVAL,
        (Verb::Delete, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Qemu) => {
            "qmdelsnapshot"
        }
        (Verb::Delete, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Lxc) => {
            "vzdelsnapshot"
        }
        (Verb::Restore, BackupKind::Full, GuestKind::Qemu) => "qmrestore",
        (Verb::Restore, BackupKind::Full, GuestKind::Lxc) => "vzrestore",
        (Verb::Restore, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Qemu) => {
            "qmrollback"
        }
        (Verb::Restore, BackupKind::Snapshot | BackupKind::Incremental, GuestKind::Lxc) => {
            "vzrollback"
        }
        // An update is no task.
        (Verb::Update, _, _) => "",
    }
}

/// Whether a task restores a guest from an archive.
pub(super) fn replaces_guest(upid: &str) -> bool {
    matches!(type_of(upid), Some("qmrestore" | "vzrestore"))
}

/// Whether the log of a task of this type says how far it is.
pub(super) fn logs_progress(upid: &str) -> bool {
    matches!(type_of(upid), Some("vzdump" | "qmrestore"))
}

/// How far a task is, by the last line of its log that says so: `INFO:  42% (...)` of a backup, `progress 42% (...)` of a
/// restore.
pub(super) fn progress_in(log: &[wire::LogLine]) -> Option<Progress> {
    log.iter().rev().find_map(|line| percent_in(&line.t))
}

fn percent_in(line: &str) -> Option<Progress> {
    let rest = line
        .strip_prefix("INFO:")
        .or_else(|| line.strip_prefix("progress"))?
        .trim_start();
    let (number, after) = rest.split_once('%')?;
    let whole = number.split('.').next()?;
    let is_progress = after.starts_with(" (") || after.is_empty();
    let percent: u8 = whole.parse().ok().filter(|percent| *percent <= 100)?;
    is_progress.then(|| Progress::unfinished(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPID: &str = "UPID:pve1:000A1B2C:0F00BA12:6560C0DE:qmsnapshot:100:gate@pve!t1:";

    #[test]
    fn a_unique_id_names_node_and_type() {
        assert_eq!(node_of(UPID), Some("pve1"));
        assert_eq!(type_of(UPID), Some("qmsnapshot"));
        assert_eq!(guest_of(UPID), Some("100"));
        let removal = "UPID:pve1:000A1B2C:0F00BA12:6560C0DE:imgdel:100@local:gate@pve!t1:";
        assert_eq!(guest_of(removal), Some("100"));
        for bad in ["", "UPID", "UPID::", "TASK:pve1:1:1:1:x:1:u:"] {
            assert_eq!(node_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn ends_are_distinguished() {
        let rows = [
            ("OK", TaskEnd::Succeeded(0)),
            ("WARNINGS: 3", TaskEnd::Succeeded(3)),
            ("unexpected status", TaskEnd::Died),
            ("unable to read tail (got 0 bytes)", TaskEnd::Died),
            ("received interrupt", TaskEnd::Interrupted),
            ("interrupted by signal", TaskEnd::Interrupted),
            (
                "VM is locked (backup)",
                TaskEnd::Failed("VM is locked (backup)".to_owned()),
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(TaskEnd::of_text(text), expected, "{text}");
        }
        let mut task: wire::Task = serde_json::from_value(serde_json::json!({
            "upid": UPID, "status": "stopped", "user": "gate@pve"
        }))
        .unwrap();
        assert_eq!(
            TaskEnd::of_status(&task),
            TaskEnd::Running,
            "the end is late"
        );
        task.exitstatus = Some("OK".to_owned());
        assert_eq!(TaskEnd::of_status(&task), TaskEnd::Succeeded(0));
    }

    #[test]
    fn the_last_percentage_of_a_log_counts() {
        let log = |lines: &[&str]| {
            let line = |text: &&str| wire::LogLine {
                t: (*text).to_owned(),
            };
            progress_in(&lines.iter().map(line).collect::<Vec<_>>())
        };
        let rows: [(&[&str], Option<u8>); 6] = [
            (&[], None),
            (
                &[
                    "INFO: starting new backup job",
                    "INFO:  12% (1.2 GiB of 10.0 GiB) in 3s",
                    "INFO:  57% (5.7 GiB of 10.0 GiB) in 9s",
                ],
                Some(57),
            ),
            (
                &[
                    "progress 3% (read 3 bytes, duration 0 sec)",
                    "rescan volumes...",
                ],
                Some(3),
            ),
            (&["INFO: 100% (32.0 MiB of 32.0 MiB) in 0s"], Some(99)),
            (&["INFO: backup is sparse: 40% zero data"], None),
            (&["INFO: 140% (x)"], None),
        ];
        for (lines, expected) in rows {
            assert_eq!(log(lines).map(Progress::percent), expected, "{lines:?}");
        }
    }
}
