//! What the gateway stores of a request so that its outcome can be learned later, and what the disks say about it.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::qemu::check;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::tag_coverage;
use crate::adapters::qemu::restore_markers::OfflineBaseline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::PublicText;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::VmId;
use crate::public_text;

/// What finds a task again. Stored: a version reads its own form and the one before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskRecord {
    pub(super) job: String,
    pub(super) vm: VmId,
    pub(super) verb: Verb,
    /// The backup's tag; `None` in records of earlier versions.
    #[serde(default)]
    pub(super) tag: Option<String>,
    /// Whether the guest ran before; `None` when the VM was off.
    pub(super) ran: Option<bool>,
}

impl TaskRecord {
    /// What was stored; `None` when it is not ours.
    pub(super) fn parse(task: &TaskRef) -> Option<Self> {
        serde_json::from_str(task.as_str()).ok()
    }
}

/// A reference to the task of this intent.
///
/// # Errors
/// When it is too long to be stored, which leaves the outcome to be looked for.
pub(super) fn task_ref(
    job: &str,
    intent: &Intent,
    ran: Option<bool>,
) -> Result<TaskRef, AdapterError> {
    let record = TaskRecord {
        job: job.to_owned(),
        vm: intent.target.vm.clone(),
        verb: intent.verb(),
        tag: Some(intent.target.backup.as_str().to_owned()),
        ran,
    };
    let text = serde_json::to_string(&record).unwrap_or_default();
    TaskRef::new(text).ok_or_else(|| {
        AdapterError::uncertain(
            FaultKind::BackendFailed,
            public_text!(
                "The operation was started, but its task reference is too long to be stored. Its outcome is being determined."
            ),
        )
    })
}

/// The state of the VM before a request. Stored: a version reads its own form and the one before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// The marker of the QEMU process; `None` when the VM was off.
    #[serde(rename = "life")]
    pub(super) process: Option<String>,
    /// Whether the guest ran.
    pub(super) ran: bool,
    /// Only when the VM was off.
    #[serde(default, rename = "trail")]
    pub(super) offline: Option<OfflineBaseline>,
}

impl Baseline {
    /// What was stored; `None` when nothing was, or not by us.
    pub(super) fn parse(evidence: Option<&Evidence>) -> Option<Self> {
        serde_json::from_str(evidence?.as_str()).ok()
    }

    /// To be stored with the operation.
    pub(super) fn evidence(&self) -> Option<Evidence> {
        Evidence::new(serde_json::to_string(self).unwrap_or_default())
    }
}

/// Whether the disks show anything of a create or a delete.
pub(super) fn is_begun(intent: &Intent, disks: &[Disk]) -> bool {
    let coverage = tag_coverage(disks, intent.target.backup.as_str());
    match intent.verb() {
        Verb::Create => coverage.is_some(),
        Verb::Delete => coverage != Some(TagCoverage::Complete),
        Verb::Update | Verb::Restore => true,
    }
}

/// The outcome of a request that left no other trace than the backup itself. `same_process`: the QEMU that was asked
/// still runs, so that a request of which it knows nothing never reached it.
pub(super) fn conclude_from_disks(
    intent: &Intent,
    same_process: bool,
    disks: &[Disk],
) -> FindOutcome {
    let coverage = tag_coverage(disks, intent.target.backup.as_str());
    match intent.verb() {
        Verb::Create => match coverage {
            Some(TagCoverage::Complete) => FindOutcome::Done(None),
            Some(TagCoverage::Partial | TagCoverage::Duplicated) => {
                FindOutcome::Failed(interrupted(public_text!(
                    "The backup was made on some disks only. Delete it and create a new one."
                )))
            }
            None if same_process => FindOutcome::NotBegun,
            None => FindOutcome::Failed(interrupted(public_text!(
                "The VM stopped before the backup was made, and there is no backup. Create it again."
            ))),
        },
        Verb::Delete => match check::holds_meant_backup(disks, intent) {
            Ok(true) if same_process => FindOutcome::NotBegun,
            Ok(true) => FindOutcome::Failed(interrupted(public_text!(
                "The VM was stopped before the backup was deleted. The backup still exists; delete it again."
            ))),
            // Without some of its disks it shows as another one.
            Ok(false) | Err(_) if matches!(coverage, Some(TagCoverage::Partial)) => {
                FindOutcome::Failed(interrupted(public_text!(
                    "The backup was deleted on some disks only. Delete it again."
                )))
            }
            // Another one of that id is a newer one: the one that was meant is gone.
            Ok(false) | Err(_) => FindOutcome::Done(None),
        },
        Verb::Restore if same_process => FindOutcome::NotBegun,
        Verb::Restore => FindOutcome::Unknowable,
        Verb::Update => FindOutcome::NotBegun,
    }
}

/// The fault of a change that ended half-way.
pub(super) fn interrupted(text: PublicText) -> Fault {
    Fault::new(FaultKind::BackendFailed, text)
}
