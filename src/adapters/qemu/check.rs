//! Conditions for a change that hold whether the VM runs or not.

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::qemu::backups;
use crate::adapters::qemu::disk;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::tag_coverage;
use crate::adapters::qemu::identity;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;
use crate::public_text;

/// Whether the disks can be restored from the backup.
///
/// # Errors
/// A refusal that names the disk in question.
pub(super) fn may_restore(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    check_restore(disks, intent, &mut Checks::until_first())
}

/// The same for a plan, too: everything on the disks that would refuse the restore.
pub(super) fn check_restore(
    disks: &[Disk],
    intent: &Intent,
    checks: &mut Checks,
) -> Result<(), AdapterError> {
    checks.record(are_capable(disks))?;
    checks.record(is_distinct(disks, intent))?;
    checks.record(check_meant(disks, intent))?;
    checks.record(check_coverage(disks, intent.target.backup.as_str()))?;
    checks.record(have_no_bitmaps(disks))?;
    Ok(())
}

/// Whether the tag is on every disk once.
fn check_coverage(disks: &[Disk], tag: &str) -> Result<(), AdapterError> {
    let missing = disks.iter().find(|disk| !disk.has_tag(tag));
    match (tag_coverage(disks, tag), missing) {
        (Some(TagCoverage::Complete), _) => Ok(()),
        (Some(TagCoverage::Partial), Some(disk)) => {
            let label = &disk.label;
            Err(AdapterError::refused(
                FaultKind::NotReady,
                public_text!(
                    "The backup is incomplete: it is missing on disk {label} of the VM. Nothing was changed. Delete the backup."
                ),
            ))
        }
        (Some(TagCoverage::Partial | TagCoverage::Duplicated), _) => Err(AdapterError::refused(
            FaultKind::NotReady,
            public_text!(
                "A disk of the VM has two snapshots with the id {tag}; nothing was changed. Delete one of them on the host."
            ),
        )),
        (None, _) => Err(no_such_backup()),
    }
}

fn have_no_bitmaps(disks: &[Disk]) -> Result<(), AdapterError> {
    let Some(disk) = disks.iter().find(|disk| disk.has_bitmaps) else {
        return Ok(());
    };
    let label = &disk.label;
    Err(AdapterError::refused(
        FaultKind::Conflict,
        public_text!(
            "Disk {label} of the VM has dirty bitmaps, which prevent a restore; nothing was changed. Remove the bitmaps and try again."
        ),
    ))
}

/// Refuses when the backup that is meant, or before a delete what remains of it, is not there.
pub(super) fn check_meant(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    if holds_meant_backup(disks, intent)? {
        Ok(())
    } else {
        Err(no_such_backup())
    }
}

/// Whether every disk can be backed up and restored.
///
/// # Errors
/// A refusal that names the first disk that cannot.
pub(super) fn are_capable(disks: &[Disk]) -> Result<(), AdapterError> {
    if disks.is_empty() {
        return Err(AdapterError::refused(
            FaultKind::Unsupported,
            public_text!(
                "The VM has no disk that can be backed up; nothing was changed. Attach a writable qcow2 disk and try again."
            ),
        ));
    }
    if let Some(disk) = disks.iter().find(|disk| !disk.can_snapshot) {
        let label = &disk.label;
        return Err(AdapterError::refused(
            FaultKind::Unsupported,
            public_text!(
                "Disk {label} of the VM is not in qcow2 format and cannot hold snapshots; nothing was changed. Convert it, or leave it out of `disks` and `images`."
            ),
        ));
    }
    Ok(())
}

/// Whether QEMU cannot confuse the tag with the number of a snapshot: some of its commands look for either.
///
/// # Errors
/// A refusal that names the other snapshot.
pub(super) fn is_distinct(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    let tag = intent.target.backup.as_str();
    let Some((disk, snapshot)) = disk::numbered_like(disks, tag) else {
        return Ok(());
    };
    let (label, other) = (&disk.label, &snapshot.name);
    let text = if other != tag {
        public_text!(
            "The id {tag} of the backup is also the number of snapshot {other} on disk {label}, and the two could be confused; nothing was changed. Delete {other} first."
        )
    } else if intent.verb() == Verb::Delete {
        // Deletes go by the name, and nothing else has this number.
        return Ok(());
    } else {
        public_text!(
            "The id {tag} of the backup is also the number of a snapshot on disk {label}, and the two could be confused; nothing was changed. Use a backup whose id is not a number."
        )
    };
    Err(AdapterError::refused(FaultKind::Conflict, text))
}

/// Whether the very backup that is meant is there, or before a delete what remains of it.
///
/// # Errors
/// When another one of the same id is.
pub(super) fn holds_meant_backup(disks: &[Disk], intent: &Intent) -> Result<bool, AdapterError> {
    let tag = intent.target.backup.as_str();
    let Some(found) = backups::find_backup(disks, tag) else {
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
        public_text!(
            "The VM has a different backup under this id now; nothing was changed. List its backups."
        ),
    )
}

pub(super) fn no_such_backup() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchBackup,
        public_text!("The VM has no such backup. List its backups."),
    )
}

pub(super) fn partial_backup_exists() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        public_text!(
            "Some disks of the VM already have a snapshot with this id; nothing was changed. Delete that snapshot and try again."
        ),
    )
}

pub(super) fn metadata_unsupported() -> AdapterError {
    AdapterError::refused(
        FaultKind::Unsupported,
        public_text!("The VM manager stores no names, descriptions or tags; nothing was changed."),
    )
}

/// Disks in a sentence: `disk a` or `disks a, b`.
pub(super) fn list_disks(labels: &[String]) -> String {
    let word = if labels.len() == 1 { "disk" } else { "disks" };
    format!("{word} {}", labels.join(", "))
}

/// The outcome of a restore by disk, for use within a sentence: `restored: disk a; not restored: disk b`.
pub(super) fn list_outcomes(
    restored: &[String],
    not_restored: &[String],
    unknown: &[String],
) -> String {
    let groups = [
        ("restored", restored),
        ("not restored", not_restored),
        ("unknown", unknown),
    ];
    let named = groups.iter().filter(|(_, labels)| !labels.is_empty());
    let clauses: Vec<String> = named
        .map(|(word, labels)| format!("{word}: {}", list_disks(labels)))
        .collect();
    clauses.join("; ")
}
