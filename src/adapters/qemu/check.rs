//! What must be so before a change, whether the VM runs or not.

use crate::adapters::adapter::AdapterError;
use crate::adapters::qemu::identity;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::map::TagCoverage;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;

/// What must be so of the disks before a restore.
pub(super) fn may_restore(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    let tag = intent.target.backup.as_str();
    are_capable(disks)?;
    is_distinct(disks, intent)?;
    if !holds_meant_backup(disks, intent)? {
        return Err(no_such_backup());
    }
    let missing = disks.iter().find(|disk| !disk.has_tag(tag));
    match (map::tag_coverage(disks, tag), missing) {
        (Some(TagCoverage::Complete), _) => {}
        (Some(TagCoverage::Partial), Some(disk)) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                format!(
                    "The backup is missing on disk {} of the VM; nothing was changed. Delete the backup.",
                    disk.label
                ),
            ));
        }
        (Some(TagCoverage::Partial | TagCoverage::Duplicated), _) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                "A disk of the VM has two snapshots of that id; nothing was changed. Delete one of them with the tools of QEMU.",
            ));
        }
        (None, _) => return Err(no_such_backup()),
    }
    if let Some(disk) = disks.iter().find(|disk| disk.has_bitmaps) {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            format!(
                "Disk {} of the VM has dirty bitmaps, with which QEMU does not restore; nothing was changed. Remove them first.",
                disk.label
            ),
        ));
    }
    Ok(())
}

/// Whether every disk can be backed up and restored.
pub(super) fn are_capable(disks: &[Disk]) -> Result<(), AdapterError> {
    let refused = |text: String| Err(AdapterError::refused(FaultKind::Unsupported, text));
    if disks.is_empty() {
        return refused("The VM has no disk that can be backed up.".to_owned());
    }
    if let Some(disk) = disks.iter().find(|disk| !disk.can_snapshot) {
        return refused(format!(
            "Disk {} of the VM is not in qcow2 format and cannot hold snapshots; nothing was changed. \
             Convert it, or leave it out of `disks` and `images`.",
            disk.label
        ));
    }
    Ok(())
}

/// Whether QEMU cannot take the tag for the number of a snapshot: it looks for either in one command or another.
pub(super) fn is_distinct(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    let tag = intent.target.backup.as_str();
    let Some((disk, snapshot)) = map::numbered_like(disks, tag) else {
        return Ok(());
    };
    let (label, other) = (&disk.label, &snapshot.name);
    let text = if other != tag {
        format!(
            "The backup's id {tag} is also the number of snapshot {other} on disk {label}, and QEMU may confuse the two; nothing was changed. \
             Delete {other} first."
        )
    } else if intent.verb() == Verb::Delete {
        // Deletes go by the name, and nothing else has this number.
        return Ok(());
    } else {
        format!(
            "The backup's id {tag} is also the number of a snapshot on disk {label}, and QEMU may confuse the two; nothing was changed. \
             Use a backup whose id is not a number."
        )
    };
    Err(AdapterError::refused(FaultKind::Conflict, text))
}

/// Whether the very backup that is meant is there, or before a delete what is left of it.
///
/// # Errors
/// When another one of the same id is.
pub(super) fn holds_meant_backup(disks: &[Disk], intent: &Intent) -> Result<bool, AdapterError> {
    let tag = intent.target.backup.as_str();
    let Some(found) = map::backup(disks, tag) else {
        return Ok(false);
    };
    let is_meant = match (&intent.identity, intent.verb()) {
        (None, _) => true,
        (Some(meant), Verb::Restore) => identity::is_complete(tag, meant, &found.identity),
        (Some(meant), Verb::Create | Verb::Update | Verb::Delete) => {
            identity::is_remainder_of(tag, meant, &found.identity)
        }
    };
    if is_meant {
        return Ok(true);
    }
    Err(other_backup_under_id())
}

pub(super) fn other_backup_under_id() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchBackup,
        "The VM has another backup under this id.",
    )
}

pub(super) fn no_such_backup() -> AdapterError {
    AdapterError::refused(FaultKind::NoSuchBackup, "The VM has no such backup.")
}

pub(super) fn partial_backup_exists() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        "Some disks of the VM have a snapshot of that id.",
    )
}

pub(super) fn metadata_unsupported() -> AdapterError {
    AdapterError::refused(
        FaultKind::Unsupported,
        "QEMU keeps no names, descriptions or tags.",
    )
}

/// Disks in a sentence: `disk a` or `disks a, b`.
pub(super) fn list_disks(labels: &[String]) -> String {
    let word = if labels.len() == 1 { "disk" } else { "disks" };
    format!("{word} {}", labels.join(", "))
}
