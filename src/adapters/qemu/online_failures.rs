//! The state that a failed job of QEMU leaves behind, and the sentences about it.

use crate::adapters::qemu::check;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::error;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::model::PublicText;
use crate::model::RunState;
use crate::public_text;

/// What a failed load did to the disks, by their labels.
#[derive(Debug, Default)]
pub(super) struct RollbackReport {
    restored: Vec<String>,
    kept: Vec<String>,
    unknown: Vec<String>,
}

impl RollbackReport {
    /// Whether it is certain that no disk was restored.
    pub(super) fn is_untouched(&self) -> bool {
        self.restored.is_empty() && self.unknown.is_empty()
    }
}

/// Reads from the images how far a failed load came.
///
/// QEMU rolls back one disk after the other, then reads the memory, and names the disk that it failed on.
pub(super) async fn read_rollback(disks: &[Disk], tag: Option<&str>, text: &str) -> RollbackReport {
    let mut found = RollbackReport::default();
    let is_named = |disk: &Disk| text.contains(&format!("on '{}'", disk.node));
    let failed_at = disks.iter().position(is_named);
    for (number, disk) in disks.iter().enumerate() {
        let label = disk.label.clone();
        let never = error::touched_nothing(text) || failed_at.is_some_and(|at| number >= at);
        if never {
            found.kept.push(label);
            continue;
        }
        let (Some(tag), Some(file)) = (tag, &disk.file) else {
            found.unknown.push(label);
            continue;
        };
        match qcow2::relation_to_snapshot(file, tag).await {
            Ok(SnapshotRelation::Identical) => found.restored.push(label),
            Ok(SnapshotRelation::WrittenSince | SnapshotRelation::Unclear) => {
                found.kept.push(label);
            }
            Err(error) => {
                tracing::warn!(%error, disk = label, "disk not readable after a failed restore");
                found.unknown.push(label);
            }
        }
    }
    found
}

/// The disks and the VM after a load that failed.
pub(super) fn after_failed_load(rollback: &RollbackReport, running: bool, ran: bool) -> PublicText {
    let state = match (running, ran) {
        (true, _) => "the VM is running",
        (false, true) => "the VM is paused",
        (false, false) => "the VM is still stopped, as it was before",
    };
    if rollback.is_untouched() {
        return if running {
            public_text!("No disk was changed, and the VM is running.")
        } else {
            public_text!(
                "No disk was changed, but {state}. Ask the operator to resume it, or restore it again."
            )
        };
    }
    let disks = check::list_outcomes(&rollback.restored, &rollback.kept, &rollback.unknown);
    public_text!(
        "The restore is incomplete ({disks}), its memory was not restored, and {state}. Remove the cause, and restore the VM again before it is resumed."
    )
}

/// The labels of the disks that have the tag.
fn labels_with_tag(view: &VmView, tag: Option<&str>) -> Vec<String> {
    let disks = view
        .disks
        .iter()
        .filter(|disk| tag.is_some_and(|tag| disk.has_tag(tag)));
    disks.map(|disk| disk.label.clone()).collect()
}

/// The disks and the VM after a backup that could not be made.
pub(super) fn after_failed_save(view: &VmView, tag: Option<&str>) -> PublicText {
    let with = labels_with_tag(view, tag);
    let state = if view.vm.run_state == Some(RunState::Started) {
        "the VM is still running"
    } else {
        "the VM is not running"
    };
    if with.is_empty() {
        return public_text!("There is no backup, and {state}.");
    }
    let disks = check::list_disks(&with);
    public_text!("A part of the backup remains on {disks}, and {state}. Delete the backup.")
}

/// The disks after a backup that could not be deleted.
pub(super) fn after_failed_delete(view: &VmView, tag: Option<&str>) -> PublicText {
    let with = labels_with_tag(view, tag);
    if with.len() == view.disks.len() {
        return public_text!("The backup still exists. Delete it again.");
    }
    let disks = check::list_disks(&with);
    public_text!("The backup still exists on {disks}. Delete it again.")
}
