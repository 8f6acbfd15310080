//! Which steps a change of a VM that is off takes, decided from what its images hold. Pure.

use std::path::PathBuf;

use crate::adapters::adapter::AdapterError;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::tag_coverage;
use crate::adapters::qemu::image::HeldImages;
use crate::adapters::qemu::image::SnapshotAction;
use crate::adapters::qemu::in_use::FileStamp;
use crate::adapters::qemu::offline_worker::ImageStep;
use crate::adapters::qemu::restore_markers;
use crate::adapters::qemu::restore_markers::OfflineBaseline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;
use crate::public_text;

/// The images of a VM as they are while no other program can write to them.
pub(super) struct LockedImages {
    pub(super) held: HeldImages,
    pub(super) disks: Vec<Disk>,
    pub(super) stamps: Vec<FileStamp>,
}

/// The refusal of a change of a VM whose disks are no longer what they were when the change was requested.
pub(super) fn vm_changed() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        public_text!(
            "The VM was used or its images were replaced before the operation began; nothing was changed. Request it again if it is still needed."
        ),
    )
}

/// Whether the backup is still the one that was there before, and every disk may be restored.
pub(super) fn may_continue_restore(
    disks: &[Disk],
    intent: &Intent,
    before: &OfflineBaseline,
) -> Result<(), AdapterError> {
    check::may_restore(disks, intent)?;
    if restore_markers::parts(disks, intent.target.backup.as_str()) == before.parts {
        return Ok(());
    }
    Err(check::other_backup_under_id())
}

/// What is to be done to the images for a restore: these are restored, and our own snapshots go from all.
pub(super) fn plan_restore_steps(
    intent: &Intent,
    paths: &VmPaths,
    locked: &LockedImages,
    before: &OfflineBaseline,
    images: &[PathBuf],
) -> Result<Option<Vec<ImageStep>>, AdapterError> {
    let aligned = before.aligned(&locked.stamps).ok_or_else(vm_changed)?;
    may_continue_restore(&locked.disks, intent, &aligned)?;
    let tag = intent.target.backup.as_str();
    let mut planned = steps(SnapshotAction::Apply, tag, images, paths, locked);
    let own = before.own.as_deref().unwrap_or_default();
    let tidying = steps(SnapshotAction::Delete, own, &paths.images, paths, locked);
    planned.extend(
        tidying
            .into_iter()
            .map(|step| ImageStep { own: true, ..step }),
    );
    Ok(Some(planned))
}

/// What is to be done to the images for a create or a delete, be it the first call or a later one.
pub(super) fn plan_create_or_delete(
    intent: &Intent,
    paths: &VmPaths,
    locked: &LockedImages,
    before: Option<&OfflineBaseline>,
) -> Result<Option<Vec<ImageStep>>, AdapterError> {
    let tag = intent.target.backup.as_str();
    let disks = locked.disks.as_slice();
    let aligned = match before {
        Some(before) => Some(before.aligned(&locked.stamps).ok_or_else(vm_changed)?),
        None => None,
    };
    let before = aligned.as_ref();
    let image = |number: usize| paths.images.get(number).cloned();
    let steps = |action, images: &[PathBuf]| steps(action, tag, images, paths, locked);
    let planned = match intent.verb() {
        Verb::Create => {
            check::are_capable(disks)?;
            let mut planned = Vec::new();
            match tag_coverage(disks, tag) {
                None => {
                    let numbers = 0..locked.stamps.len();
                    let mut each = numbers.map(|number| {
                        before.is_some_and(|before| before.has_changed(number, &locked.stamps))
                    });
                    if each.any(|has_changed| has_changed) {
                        return Err(vm_changed());
                    }
                    if let Some(fault) = before.and_then(|before| before.unmarked.clone()) {
                        return Err(AdapterError::refused(fault.kind, fault.text));
                    }
                }
                Some(TagCoverage::Complete) => return Ok(None),
                // Its disks would be of two times: all of it is made anew.
                Some(TagCoverage::Partial) if before.is_some_and(had_no_tag) => {
                    let half: Vec<PathBuf> = disks_with_tag(disks, tag).filter_map(image).collect();
                    planned = steps(SnapshotAction::Delete, &half);
                }
                Some(TagCoverage::Partial | TagCoverage::Duplicated) => {
                    return Err(check::partial_backup_exists());
                }
            }
            planned.extend(steps(SnapshotAction::Create, &paths.images));
            planned
        }
        Verb::Delete => {
            let broken = before.filter(|before| {
                before.parts.iter().any(Option::is_some)
                    && before.parts != restore_markers::parts(disks, tag)
            });
            let numbers: Vec<usize> = match broken {
                // An earlier call checked which backup is meant, and came half-way.
                Some(before) => disks_still_holding(disks, before, tag).collect(),
                None if check::holds_meant_backup(disks, intent)? => {
                    disks_with_tag(disks, tag).collect()
                }
                None => return Err(check::no_such_backup()),
            };
            if numbers.is_empty() {
                return Ok(None);
            }
            let images: Vec<PathBuf> = numbers.into_iter().filter_map(image).collect();
            steps(SnapshotAction::Delete, &images)
        }
        Verb::Restore | Verb::Update => return Err(check::metadata_unsupported()),
    };
    Ok(Some(planned))
}

/// The same act for these images of the VM. Snapshots are applied by their number, which is exact.
fn steps(
    action: SnapshotAction,
    tag: &str,
    images: &[PathBuf],
    paths: &VmPaths,
    locked: &LockedImages,
) -> Vec<ImageStep> {
    let all = paths.images.iter().zip(&locked.disks).zip(&locked.stamps);
    let wanted = all.filter(|((image, _), _)| images.contains(image));
    let each = wanted.flat_map(|((image, disk), stamp)| {
        let step = ImageStep {
            action,
            name: match action {
                SnapshotAction::Apply => {
                    disk.snapshot_number(tag).unwrap_or_else(|| tag.to_owned())
                }
                SnapshotAction::Create | SnapshotAction::Delete => tag.to_owned(),
            },
            own: false,
            image: image.clone(),
            inode: stamp.inode,
        };
        // A tag that is on a disk twice is deleted as often.
        let times = match action {
            SnapshotAction::Delete => disk.snapshots_tagged(tag).count().max(1),
            SnapshotAction::Apply | SnapshotAction::Create => 1,
        };
        std::iter::repeat_n(step, times)
    });
    each.collect()
}

/// Whether no disk had the tag before: then a disk that has it now has it from this operation.
pub(super) fn had_no_tag(before: &OfflineBaseline) -> bool {
    before.parts.iter().all(Option::is_none)
}

/// The numbers of the disks that have the tag.
fn disks_with_tag<'a>(disks: &'a [Disk], tag: &'a str) -> impl Iterator<Item = usize> + 'a {
    let numbered = disks.iter().enumerate();
    numbered
        .filter(move |(_, disk)| disk.has_tag(tag))
        .map(|(number, _)| number)
}

/// The numbers of the disks that still have what was there before.
pub(super) fn disks_still_holding<'a>(
    disks: &'a [Disk],
    before: &'a OfflineBaseline,
    tag: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let both = disks.iter().zip(&before.parts).enumerate();
    both.filter(move |(_, (disk, before))| before.is_some() && disk.identity_part(tag) == **before)
        .map(|(number, _)| number)
}
