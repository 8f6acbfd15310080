//! Making, changing and removing backups.

use crate::adapters::files::copy::copy;
use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::error::While;
use crate::adapters::files::error::refuse;
use crate::adapters::files::job::Job;
use crate::adapters::files::lock;
use crate::adapters::files::manifest::Disk;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::restore;
use crate::adapters::files::site::Site;
use crate::adapters::files::site::gone_name;
use crate::adapters::files::site::identity_of;
use crate::adapters::files::site::new_name;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_plain_name;
use crate::model::BackupKind;
use crate::model::BackupPatch;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::Timestamp;

/// What can be seen to be wrong with a create before it is begun. `true` when this very request made the backup before.
pub(super) fn check_create(
    site: &Site,
    target: &Target,
    new: &NewBackup,
    key: &str,
) -> Outcome<bool> {
    let vm_dir = site.vm_dir(&target.vm)?;
    if !is_plain_name(target.backup.as_str()) {
        return refuse(
            FaultKind::Invalid,
            "the id of the backup cannot be used here",
        );
    }
    match new.kind {
        None | Some(BackupKind::Full) => {}
        Some(BackupKind::Snapshot | BackupKind::Incremental) => {
            return refuse(
                FaultKind::Unsupported,
                "only backups of type full can be made here",
            );
        }
    }
    if made_by(site, target)?.is_some_and(|it| it == key) {
        return Ok(true);
    }
    let taken = match site.backups_of(&target.vm)? {
        Some(backups) => backups
            .has(target.backup.as_str())
            .during("looking for a backup")?,
        None => false,
    };
    if taken {
        return refuse(FaultKind::Conflict, "there is a backup of that id already");
    }
    site.check_name(target, new.name.as_str())?;
    if site.disks(&vm_dir)?.is_empty() {
        return refuse(FaultKind::Conflict, "the VM has no disk image to back up");
    }
    Ok(false)
}

/// The request that made the backup, if there is a whole one.
pub(super) fn made_by(site: &Site, target: &Target) -> Outcome<Option<String>> {
    let Some(backups) = site.backups_of(&target.vm)? else {
        return Ok(None);
    };
    if !is_plain_name(target.backup.as_str()) {
        return Ok(None);
    }
    let Ok(dir) = backups.dir(target.backup.as_str()) else {
        return Ok(None);
    };
    Ok(Manifest::read(&dir)?.map(|it| it.made_by))
}

/// Copies every disk and shows the backup once it is whole and on stable storage.
pub(super) fn create(
    site: &Site,
    target: &Target,
    new: &NewBackup,
    key: &str,
    now: Timestamp,
    job: &Job,
) -> Outcome<()> {
    let turn = site.turn(&target.vm);
    let _turn = turn.wait();
    restore::recover(site, &target.vm)?;
    if check_create(site, target, new, key)? {
        return Ok(());
    }
    let backups = site.backups_of_or_new(&target.vm)?;
    let temporary = new_name(key);
    backups
        .remove_all(&temporary)
        .during("removing what was left over")?;
    let made = create_in(site, target, new, key, now, job, &backups, &temporary);
    match made {
        #[cfg(test)]
        Err(Failure::Killed) => {}
        Err(_) => {
            if let Err(error) = backups.remove_all(&temporary) {
                tracing::warn!(%error, "a half-made backup could not be removed; it is not shown");
            }
        }
        Ok(()) => {}
    }
    made
}

#[expect(clippy::too_many_arguments, reason = "the second half of one function")]
fn create_in(
    site: &Site,
    target: &Target,
    new: &NewBackup,
    key: &str,
    now: Timestamp,
    job: &Job,
    backups: &Dir,
    temporary: &str,
) -> Outcome<()> {
    let vm_dir = site.vm_dir(&target.vm)?;
    let mut images = Vec::new();
    for name in site.disks(&vm_dir)? {
        let image = vm_dir.file(&name, false).during("opening an image")?;
        if !lock::exclude_writers(&image).during("locking an image")? {
            return refuse(
                FaultKind::Busy,
                "a disk of the VM is in use; stop the VM before it is backed up",
            );
        }
        job.expect(image.metadata().during("looking at an image")?.len());
        images.push((name, image));
    }
    job.step()?;
    let dir = backups
        .dir_or_new(temporary)
        .during("making a place for a backup")?;
    let mut manifest = Manifest::new(key.to_owned(), new, now);
    for (name, image) in &images {
        job.step()?;
        let file = dir.new_file(name).during("making a copy")?;
        let (bytes, checksum) = copy(image, &file, job)?;
        manifest.disks.push(Disk {
            name: name.clone(),
            bytes,
            checksum,
        });
    }
    job.step()?;
    manifest.write(&dir)?;
    dir.sync().during("writing a backup out")?;
    job.commit()?;
    job.step()?;
    let shown = backups.rename_new(temporary, backups, target.backup.as_str());
    shown.during("showing a backup")?;
    job.step()?;
    backups.sync().during("writing a backup out")
}

/// Changes the properties of a backup, in one step.
pub(super) fn update(site: &Site, intent: &Intent, patch: &BackupPatch, key: &str) -> Outcome<()> {
    let turn = site.turn(&intent.target.vm);
    let _turn = turn.wait();
    let (dir, mut manifest) = site.shown(intent)?;
    if manifest.changed_by.as_deref() == Some(key) {
        return Ok(());
    }
    if let Some(name) = &patch.name {
        site.check_name(&intent.target, name.as_str())?;
    }
    let after = patch.applied_to(manifest.backup(intent.target.backup.clone()));
    manifest.name = after.name;
    manifest.description = after.description;
    manifest.tags = after.tags;
    manifest.protected = after.protected;
    manifest.changed_by = Some(key.to_owned());
    manifest.write(&dir)
}

/// Hides a backup for good, in one step; its files are removed by [`sweep`].
pub(super) fn delete(site: &Site, intent: &Intent, key: &str) -> Outcome<()> {
    let turn = site.turn(&intent.target.vm);
    let _turn = turn.wait();
    let dir = site.backup_dir(&intent.target)?;
    if intent.identity.as_ref() != Some(&identity_of(&dir)) {
        return refuse(
            FaultKind::NoSuchBackup,
            "the backup was replaced by another one of the same id",
        );
    }
    if let Ok(Some(manifest)) = Manifest::read(&dir)
        && manifest.protected
    {
        return refuse(
            FaultKind::Protected,
            "the backup is protected; remove the protection first",
        );
    }
    let Some(backups) = site.backups_of(&intent.target.vm)? else {
        return refuse(FaultKind::NoSuchBackup, "the VM has no such backup");
    };
    let gone = gone_name(key);
    backups
        .remove_all(&gone)
        .during("removing what was left over")?;
    let hidden = backups.rename(intent.target.backup.as_str(), &backups, &gone);
    hidden.during("hiding a backup")?;
    backups.sync().during("hiding a backup")
}

/// Removes the files of a backup that was hidden. What is left by a crash is removed at the next start.
pub(super) fn sweep(site: &Site, target: &Target, key: &str) -> Outcome<()> {
    let Some(backups) = site.backups_of(&target.vm)? else {
        return Ok(());
    };
    backups
        .remove_all(&gone_name(key))
        .during("removing the files of a backup")
}

/// Whether the backup that the caller was shown is gone.
pub(super) fn is_gone(site: &Site, intent: &Intent) -> Outcome<bool> {
    match site.backup_dir(&intent.target) {
        Ok(dir) => Ok(intent.identity.as_ref() != Some(&identity_of(&dir))),
        Err(Failure::Fault(fault)) if fault.kind == FaultKind::NoSuchBackup => Ok(true),
        Err(failure) => Err(failure),
    }
}
