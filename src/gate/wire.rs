//! The JSON of replies: Backup, lists, VM, Status, versions and errors, members in the documented order.

use std::fmt::Display;

use bytes::Bytes;
use serde::Serialize;
use serde::Serializer;

use crate::gate::links;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::IgnoredMembers;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperationState;
use crate::model::Phase;
use crate::model::PublicText;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::operations::Capability;
use crate::operations::ListCount;
use crate::operations::Recovery;

/// A value written as its own text.
pub(super) struct AsText<T>(pub(super) T);

impl<T: Display> Serialize for AsText<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Most replies are shorter than that: they are written without growing.
const REPLY_BYTES: usize = 1024;

/// Writes one of the shapes below, none of which can fail to be written.
pub(super) fn bytes(shape: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(REPLY_BYTES);
    if serde_json::to_writer(&mut bytes, shape).is_err() {
        bytes.clear();
    }
    bytes.into()
}

/// Deviation D10: `state`, `size`, `vm` and `protected` are not in the source.
#[derive(Serialize)]
struct BackupShape<'a> {
    name: &'a str,
    uri: String,
    restore: String,
    vm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    created: AsText<Timestamp>,
    tags: Vec<&'a str>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    protected: bool,
}

fn backup_shape<'a>(base: &str, vm: &VmId, backup: &'a Backup) -> BackupShape<'a> {
    let uri = links::backup(base, vm, &backup.id);
    BackupShape {
        name: backup.name.as_str(),
        restore: [&uri, "/restore"].concat(),
        uri,
        vm: links::vm(base, vm),
        description: backup
            .description
            .as_ref()
            .map(|description| description.as_str()),
        kind: backup.kind.map(|kind| kind.as_str()),
        created: AsText(backup.created),
        tags: backup.tags.iter().map(Tag::as_str).collect(),
        state: backup.state.as_str(),
        size: backup.size,
        protected: backup.protected,
    }
}

/// One backup; `base` is the public URL.
pub(super) fn backup(base: &str, vm: &VmId, backup: &Backup) -> Bytes {
    bytes(&backup_shape(base, vm, backup))
}

/// Backups of one VM, and how many there are in all, if that was asked for.
pub(super) fn backups(base: &str, vm: &VmId, backups: &[Backup], count: Option<usize>) -> Bytes {
    #[derive(Serialize)]
    struct Shape<'a> {
        backups: Vec<BackupShape<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<usize>,
    }
    let shape = |backup| backup_shape(base, vm, backup);
    bytes(&Shape {
        backups: backups.iter().map(shape).collect(),
        count,
    })
}

/// One VM with some of its backups.
pub(super) fn vm(base: &str, vm: &Vm, backups: &[Backup]) -> Bytes {
    #[derive(Serialize)]
    struct Shape<'a> {
        name: &'a str,
        uri: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        run_status: Option<&'static str>,
        back_up: String,
        backups: Vec<BackupShape<'a>>,
    }
    let shape = |backup| backup_shape(base, &vm.id, backup);
    bytes(&Shape {
        name: &vm.name,
        uri: links::vm(base, &vm.id),
        description: vm.description.as_deref(),
        run_status: vm.run_state.map(|run_state| run_state.as_str()),
        back_up: format!("{base}/back_up?vm={}", links::encoded(vm.id.as_str())),
        backups: backups.iter().map(shape).collect(),
    })
}

/// One VM of a list, with what this caller sees beside it.
pub(super) struct ListedVm<'a> {
    pub(super) vm: &'a Vm,
    pub(super) backend: Option<&'a BackendName>,
    pub(super) last_backup: Option<&'a Backup>,
}

/// VMs of all backends; `gap` says why some may be missing. Deviation D24.
pub(super) fn vms<'a>(
    base: &str,
    listed: impl Iterator<Item = ListedVm<'a>>,
    gap: Option<&'a PublicText>,
) -> Bytes {
    #[derive(Serialize)]
    struct LastBackup {
        uri: String,
        created: AsText<Timestamp>,
    }
    #[derive(Serialize)]
    struct Entry<'a> {
        id: &'a str,
        name: &'a str,
        uri: String,
        backups: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        state: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        backend: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_backup: Option<LastBackup>,
    }
    #[derive(Serialize)]
    struct Shape<'a> {
        vms: Vec<Entry<'a>>,
        complete: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
    }
    let entry = |listed: ListedVm<'a>| {
        let vm = listed.vm;
        let uri = links::vm(base, &vm.id);
        Entry {
            id: vm.id.as_str(),
            name: &vm.name,
            backups: [&uri, "/backups"].concat(),
            uri,
            state: vm.run_state.map(|run_state| run_state.as_str()),
            backend: listed.backend.map(BackendName::as_str),
            last_backup: listed.last_backup.map(|backup| LastBackup {
                uri: links::backup(base, &vm.id, &backup.id),
                created: AsText(backup.created),
            }),
        }
    };
    bytes(&Shape {
        vms: listed.map(entry).collect(),
        complete: gap.is_none(),
        message: gap.map(PublicText::as_str),
    })
}

/// What can be done with the backups of a VM. Deviation D25.
pub(super) fn capabilities(capability: &Capability) -> Bytes {
    #[derive(Serialize)]
    struct VerbShape {
        supported: bool,
        cancel: bool,
        progress: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovery: Option<&'static str>,
        options: Vec<&'static str>,
    }
    #[derive(Serialize)]
    struct Verbs {
        create: VerbShape,
        update: VerbShape,
        delete: VerbShape,
        restore: VerbShape,
    }
    #[derive(Serialize)]
    struct Shape {
        verbs: Verbs,
        kinds: Vec<&'static str>,
        lists_vms: bool,
    }
    let shape = |verb: Verb| {
        let can = capability.verb(verb);
        let options = match verb {
            Verb::Restore => capability.restore_options,
            Verb::Create | Verb::Update | Verb::Delete => &[],
        };
        VerbShape {
            supported: can.is_some(),
            cancel: can.is_some_and(|can| can.cancel),
            progress: can.is_some_and(|can| can.progress),
            recovery: can.map(|can| recovery_word(can.recovery)),
            options: options.iter().map(|(name, _)| *name).collect(),
        }
    };
    bytes(&Shape {
        verbs: Verbs {
            create: shape(Verb::Create),
            update: shape(Verb::Update),
            delete: shape(Verb::Delete),
            restore: shape(Verb::Restore),
        },
        kinds: capability.kinds.iter().map(|kind| kind.as_str()).collect(),
        lists_vms: capability.lists_vms,
    })
}

/// How a lost answer is made good, as callers read it: one word each.
const fn recovery_word(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::ReplaySafe => "replay-safe",
        Recovery::Listable => "listable",
        Recovery::NoTrace => "no-trace",
    }
}

/// Whether an action is allowed, and what its refusal would be.
pub(super) struct Decision {
    pub(super) action: Action,
    pub(super) refused: Option<(Code, PublicText)>,
}

/// What the caller may do. Deviation D26.
pub(super) fn permissions(decisions: &[Decision]) -> Bytes {
    #[derive(Serialize)]
    struct Entry<'a> {
        action: &'static str,
        allowed: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Shape<'a> {
        actions: Vec<Entry<'a>>,
    }
    let entries = decisions.iter().map(|decision| {
        let refused = decision.refused.as_ref();
        Entry {
            action: decision.action.as_str(),
            allowed: refused.is_none(),
            code: refused.map(|(code, _)| code.as_str()),
            reason: refused.map(|(_, reason)| reason.as_str()),
        }
    });
    bytes(&Shape {
        actions: entries.collect(),
    })
}

/// Deviation D8: `status` and `message` are there at 100 only. Deviation D11: `seq`, `state`, `ignored` and the times are not in
/// the source.
#[derive(Serialize)]
struct StatusShape {
    op: &'static str,
    progress: u8,
    target_uri: String,
    status_uri: String,
    /// The number as text, since numbers of JSON above 2^53 are not exact everywhere. Clients that are generated from the
    /// OpenAPI document read the Status by it.
    seq: AsText<OperationSeq>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "IgnoredMembers::is_empty")]
    ignored: IgnoredMembers,
    created: AsText<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<AsText<Timestamp>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<AsText<Timestamp>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<AsText<Timestamp>>,
}

/// The outcome of a final operation as an HTTP status and a sentence.
fn outcome(operation: &Operation) -> (u16, String) {
    let code = match (operation.phase, &operation.fault) {
        (Phase::Succeeded, _) => {
            let (status, text) = match operation.verb() {
                Verb::Create => (201, "The backup was made."),
                Verb::Update => (200, "The backup was changed."),
                Verb::Delete => (200, "The backup was deleted."),
                Verb::Restore => (200, "The VM was restored."),
            };
            // A success with warnings is a success: what they mean follows the same sentence.
            let text = match &operation.notice {
                Some(notice) => format!("{text} {notice}"),
                None => text.to_owned(),
            };
            return (status, text);
        }
        // These phases have a code of their own, whatever fault led to them.
        (Phase::Unknown, _) => Code::OutcomeUnknown,
        (Phase::NotExecuted, _) => Code::NotExecuted,
        (Phase::Cancelled, _) => Code::Cancelled,
        (_, Some(fault)) => Code::of_fault(fault.kind),
        (_, None) => Code::InternalError,
    };
    let text = operation.fault.as_ref().map(|fault| fault.text.as_str());
    let text = text
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| code.sentence());
    (code.status().as_u16(), text.to_owned())
}

fn status_shape(operation: &Operation) -> StatusShape {
    let is_final = operation.phase.is_final();
    let target = operation.target();
    let (status, message) = is_final.then(|| outcome(operation)).unzip();
    StatusShape {
        op: links::op(operation.verb()),
        progress: if is_final {
            100
        } else {
            operation.progress.percent().min(99)
        },
        target_uri: links::backup("", &target.vm, &target.backup),
        status_uri: links::status(operation),
        seq: AsText(operation.seq),
        status,
        message,
        state: OperationState::from(operation.phase).as_str(),
        ignored: operation.ignored.clone(),
        created: AsText(operation.created),
        started: operation.started.map(AsText),
        completed: operation.completed.map(AsText),
        expires: operation.expires.map(AsText),
    }
}

/// One operation.
pub(super) fn status(operation: &Operation) -> Bytes {
    bytes(&status_shape(operation))
}

/// Operations, and how many there are in all, if that was asked for. Of very many only a minimum is known.
pub(super) fn statuses<'a>(
    operations: impl Iterator<Item = &'a Operation>,
    count: Option<ListCount>,
) -> Bytes {
    #[derive(Serialize)]
    struct Shape {
        statuses: Vec<StatusShape>,
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        count_at_least: Option<usize>,
    }
    let (count, count_at_least) = match count {
        Some(ListCount::Exact(count)) => (Some(count), None),
        Some(ListCount::AtLeast(count)) => (None, Some(count)),
        None => (None, None),
    };
    bytes(&Shape {
        statuses: operations.map(status_shape).collect(),
        count,
        count_at_least,
    })
}

/// The versions.
pub(super) fn versions(supported: &[String]) -> Bytes {
    #[derive(Serialize)]
    struct Shape {
        specification_version: String,
        implementation_version: &'static str,
    }
    bytes(&Shape {
        specification_version: supported.join(","),
        implementation_version: env!("CARGO_PKG_VERSION"),
    })
}

/// One refusal. Deviation D14: valid as Messages and as problem details (RFC 9457).
pub(super) fn refusal(refusal: &Refusal, request: &str) -> Bytes {
    #[derive(Serialize)]
    struct Message<'a> {
        code: &'static str,
        severity: &'static str,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Shape<'a> {
        r#type: AsText<std::fmt::Arguments<'a>>,
        title: &'static str,
        status: u16,
        detail: &'a str,
        instance: &'a str,
        message: [Message<'a>; 1],
    }
    let code = refusal.code();
    bytes(&Shape {
        r#type: AsText(format_args!("/problems/{}", code.as_str())),
        title: code.title(),
        status: code.status().as_u16(),
        detail: &refusal.text,
        instance: request,
        message: [Message {
            code: code.as_str(),
            severity: "SEVERE",
            text: &refusal.text,
            hint: refusal.hint.as_deref(),
            field: refusal.field.as_deref(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackendName;
    use crate::model::BackupId;
    use crate::model::Change;
    use crate::model::Intent;
    use crate::model::OperationSeq;
    use crate::model::PrincipalName;
    use crate::model::Progress;
    use crate::model::RequestId;
    use crate::model::RestoreOptions;
    use crate::model::Target;
    use crate::public_text;

    fn succeeded(change: Change) -> Operation {
        let intent = Intent {
            target: Target {
                vm: VmId::new("vm").unwrap(),
                backup: BackupId::new("b").unwrap(),
            },
            identity: None,
            change,
        };
        let accepted = Operation::accepted(
            OperationSeq::new(1).unwrap(),
            PrincipalName::new("ann").unwrap(),
            RequestId::new("r").unwrap(),
            BackendName::new("one").unwrap(),
            intent,
            Timestamp::from_millis(0),
        );
        Operation {
            phase: Phase::Succeeded,
            progress: Progress::DONE,
            ..accepted
        }
    }

    #[test]
    fn a_notice_follows_the_sentence_of_a_success() {
        let notice = "The VM manager reported warnings; see its task log.";
        for (change, sentence) in [
            (Change::Delete, "The backup was deleted."),
            (
                Change::Restore(RestoreOptions::default()),
                "The VM was restored.",
            ),
        ] {
            let mut operation = succeeded(change);
            let message = |operation: &Operation| {
                let shown: serde_json::Value = serde_json::from_slice(&status(operation)).unwrap();
                assert_eq!(shown["state"], "SUCCESS", "{shown}");
                assert_eq!(shown["status"], 200, "{shown}");
                shown["message"].as_str().unwrap().to_owned()
            };
            assert_eq!(message(&operation), sentence, "without a notice");
            operation.notice = Some(public_text!(
                "The VM manager reported warnings; see its task log."
            ));
            assert_eq!(message(&operation), format!("{sentence} {notice}"));
        }
    }
}
