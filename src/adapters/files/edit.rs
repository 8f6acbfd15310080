//! Changes and deletes backups: each is seen by readers at one instant.

use crate::adapters::checks::Checks;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::layout;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::layout::UNFINISHED;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::preflight;
use crate::adapters::files::request::Request;
use crate::adapters::files::request::StartOutcome;
use crate::adapters::files::watched_vm::TOMBSTONE_PREFIX;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::public_text;

/// The backup of the request with its directory, if it is the very one the caller saw.
pub(super) fn read_expected_backup(
    vm_backups: &Dir,
    intent: &Intent,
) -> Result<(Dir, Manifest), Problem> {
    let target = &intent.target;
    let dir = layout::backup_dir(vm_backups, &target.backup)?.ok_or_else(layout::no_such_backup)?;
    let manifest = Manifest::read(&dir, target)?;
    if intent.identity.as_ref() == Some(&manifest.identity()) {
        Ok((dir, manifest))
    } else {
        Err(Problem::new(
            FaultKind::NoSuchBackup,
            public_text!(
                "The backup was replaced by another one with the same id. List the VM's backups."
            ),
        ))
    }
}

/// Whether this request was the last to change the backup.
pub(super) fn is_updated(layout: &Layout, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(vm_backups) = layout.vm_backups(&target.vm)? else {
        return Ok(false);
    };
    match layout::backup_dir(&vm_backups, &target.backup)? {
        Some(dir) => {
            let manifest = Manifest::read(&dir, target)?;
            let done = manifest.changed_by.as_ref() == Some(&request.durable_id);
            if done {
                // The process that renamed it may have been killed before this sync.
                dir.sync().map_err(io_error("syncing a backup"))?;
            }
            Ok(done)
        }
        None => Ok(false),
    }
}

/// Changes name, description, tags or protection at once.
pub(super) fn update(
    layout: &Layout,
    request: &Request,
    patch: &BackupPatch,
) -> Result<StartOutcome, Problem> {
    let target = &request.intent.target;
    layout.vm_dir(&target.vm)?;
    let vm_backups = layout
        .vm_backups(&target.vm)?
        .ok_or_else(layout::no_such_backup)?;
    let (dir, mut manifest) = read_expected_backup(&vm_backups, &request.intent)?;
    if is_updated(layout, request)? {
        return Ok(StartOutcome::Done);
    }
    if let Some(name) = &patch.name {
        layout.refuse_duplicate_name(&vm_backups, target, name)?;
    }
    preflight::check_folder(&dir, "The directory of the backup")?;
    let before = manifest.clone().backup(BackupState::Available);
    manifest.apply_update(patch.applied_to(before));
    manifest.changed_by = Some(request.durable_id.clone());
    dir.replace(MANIFEST, &manifest.to_bytes()?)?;
    Ok(StartOutcome::Done)
}

/// Whether the backup the caller saw is gone.
pub(super) fn is_deleted(layout: &Layout, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(vm_backups) = layout.vm_backups(&target.vm)? else {
        return Ok(true);
    };
    // The process that renamed it may have been killed before this sync.
    vm_backups
        .sync()
        .map_err(io_error("syncing the backups of a VM"))?;
    match layout::backup_dir(&vm_backups, &target.backup)? {
        Some(dir) => {
            let there = Manifest::read(&dir, target)?.identity();
            Ok(request.intent.identity.as_ref() != Some(&there))
        }
        None => Ok(true),
    }
}

/// Everything that would refuse to delete the backup.
pub(super) fn check_delete(
    vm_backups: &Dir,
    intent: &Intent,
    checks: &mut Checks,
) -> Result<(), Problem> {
    let found = checks.record(read_expected_backup(vm_backups, intent))?;
    let protection = found.as_ref().map(|(_, manifest)| manifest.protected);
    checks.record(match protection {
        Some(true) => Err(protected()),
        Some(false) | None => Ok(()),
    })?;
    checks.record(preflight::check_folder(
        vm_backups,
        "The VM's backup directory",
    ))?;
    if let Some((dir, _)) = &found {
        checks.record(preflight::check_removable(dir))?;
    }
    Ok(())
}

fn protected() -> Problem {
    let text = public_text!(
        "The backup is protected, so it was not deleted. Remove its protection first."
    );
    Problem::new(FaultKind::Protected, text)
}

/// Takes the backup out of sight at once, and leaves the removal of its data to be done.
pub(super) fn delete(layout: &Layout, request: &Request) -> Result<StartOutcome, Problem> {
    let target = &request.intent.target;
    layout.vm_dir(&target.vm)?;
    let vm_backups = layout
        .vm_backups(&target.vm)?
        .ok_or_else(layout::no_such_backup)?;
    let tombstone = format!("{TOMBSTONE_PREFIX}{}", request.durable_id);
    if vm_backups.stat(&tombstone).is_ok() {
        vm_backups
            .sync()
            .map_err(io_error("syncing the backups of a VM"))?;
        return Ok(StartOutcome::Done);
    }
    check_delete(&vm_backups, &request.intent, &mut Checks::until_first())?;
    let doing = io_error("deleting a backup");
    for old in layout.tombstones(&target.vm, &vm_backups)? {
        vm_backups.remove_tree(&old).map_err(&doing)?;
    }
    vm_backups
        .rename_from(&tombstone, &vm_backups, target.backup.as_str())
        .map_err(&doing)?;
    vm_backups
        .sync()
        .map_err(|errno| doing(errno).uncertain())?;
    Ok(StartOutcome::Pending(Box::new(move |_job| {
        let dir = vm_backups.dir(&tombstone).and_then(|dir| dir.clear());
        if let Err(errno) = dir {
            // It is deleted all the same; the room is freed by the next recovery.
            tracing::warn!(%errno, "data of a deleted backup stays until the next recovery");
        }
        Ok(Vec::new())
    })))
}

/// Removes what an interrupted create or delete left; the tombstones are emptied.
pub(super) fn remove_leftovers(vm_backups: &Dir, tombstones: &[String]) -> Result<(), Problem> {
    let doing = io_error("removing what was left unfinished");
    vm_backups.remove_tree(UNFINISHED).map_err(&doing)?;
    for name in tombstones {
        vm_backups
            .dir(name)
            .and_then(|dir| dir.clear())
            .map_err(&doing)?;
    }
    Ok(())
}
