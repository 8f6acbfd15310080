//! Changes and deletes backups: each is seen by readers at one instant.

use crate::adapters::files::checks;
use crate::adapters::files::create::UNFINISHED;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::places;
use crate::adapters::files::places::Places;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::work::Request;
use crate::adapters::files::work::Started;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::FaultKind;

/// What a deleted backup is renamed to, followed by the mark of the request. Emptied, it stays until the next
/// delete as the proof that this request was done; it takes no room, so a full disk keeps no delete from working.
const GONE: &str = ".snapgate-gone.";

/// The backup of the request with its directory, if it is the very one the caller saw.
pub(super) fn seen(shelf: &Dir, request: &Request) -> Result<(Dir, Manifest), Problem> {
    let target = &request.intent.target;
    let dir = places::backup_dir(shelf, &target.backup)?.ok_or_else(places::no_such_backup)?;
    let manifest = Manifest::read(&dir, target)?;
    if request.intent.identity.as_ref() == Some(&manifest.identity()) {
        Ok((dir, manifest))
    } else {
        Err(Problem::new(
            FaultKind::NoSuchBackup,
            "the backup was replaced by another one of the same id",
        ))
    }
}

/// Whether this request was the last to change the backup.
pub(super) fn is_updated(places: &Places, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(shelf) = places.shelf(&target.vm)? else {
        return Ok(false);
    };
    match places::backup_dir(&shelf, &target.backup)? {
        Some(dir) => {
            let manifest = Manifest::read(&dir, target)?;
            let done = manifest.changed_by.as_ref() == Some(&request.mark);
            if done {
                // Whoever renamed it may have been killed before this.
                dir.sync().map_err(io("syncing a backup"))?;
            }
            Ok(done)
        }
        None => Ok(false),
    }
}

/// Changes name, description, tags or protection at once.
pub(super) fn update(
    places: &Places,
    request: &Request,
    patch: &BackupPatch,
) -> Result<Started, Problem> {
    let target = &request.intent.target;
    places.vm(&target.vm)?;
    let shelf = places
        .shelf(&target.vm)?
        .ok_or_else(places::no_such_backup)?;
    let (dir, mut manifest) = seen(&shelf, request)?;
    if is_updated(places, request)? {
        return Ok(Started::Done);
    }
    if let Some(name) = &patch.name {
        places::refuse_taken(&shelf, target, name)?;
    }
    checks::folder(&dir, "the folder of the backup")?;
    let before = manifest.clone().backup(BackupState::Available);
    manifest.take(patch.applied_to(before));
    manifest.changed_by = Some(request.mark.clone());
    dir.replace(MANIFEST, &manifest.to_bytes()?)?;
    Ok(Started::Done)
}

/// Whether the backup the caller saw is gone.
pub(super) fn is_deleted(places: &Places, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(shelf) = places.shelf(&target.vm)? else {
        return Ok(true);
    };
    // Whoever renamed it away may have been killed before this.
    shelf.sync().map_err(io("syncing the backups of a VM"))?;
    match places::backup_dir(&shelf, &target.backup)? {
        Some(dir) => {
            let there = Manifest::read(&dir, target)?.identity();
            Ok(request.intent.identity.as_ref() != Some(&there))
        }
        None => Ok(true),
    }
}

/// Takes the backup out of sight at once, and leaves the removal of its data to be done.
pub(super) fn delete(places: &Places, request: &Request) -> Result<Started, Problem> {
    let target = &request.intent.target;
    places.vm(&target.vm)?;
    let shelf = places
        .shelf(&target.vm)?
        .ok_or_else(places::no_such_backup)?;
    let tombstone = format!("{GONE}{}", request.mark);
    if shelf.stat(&tombstone).is_ok() {
        shelf.sync().map_err(io("syncing the backups of a VM"))?;
        return Ok(Started::Done);
    }
    let (dir, manifest) = seen(&shelf, request)?;
    if manifest.protected {
        let text = "the backup is protected; remove its protection first";
        return Err(Problem::new(FaultKind::Protected, text));
    }
    checks::folder(&shelf, "the folder of the VM's backups")?;
    checks::removable(&dir)?;
    let doing = io("deleting a backup");
    for old in gone(&shelf)? {
        shelf.remove_tree(&old).map_err(&doing)?;
    }
    shelf
        .take(&tombstone, &shelf, target.backup.as_str())
        .map_err(&doing)?;
    shelf.sync().map_err(|errno| doing(errno).unsure())?;
    Ok(Started::Work(Box::new(move |_job| {
        let dir = shelf.dir(&tombstone).and_then(|dir| dir.clear());
        if let Err(errno) = dir {
            // It is deleted all the same; the room is freed by the next recovery.
            tracing::warn!(%errno, "data of a deleted backup stays until the next recovery");
        }
        Ok(Vec::new())
    })))
}

fn gone(shelf: &Dir) -> Result<Vec<String>, Problem> {
    let names = shelf.names().map_err(io("listing backups"))?;
    let ours = names.iter().filter_map(|name| name.to_str().ok());
    let gone = ours.filter(|name| name.starts_with(GONE));
    Ok(gone.map(str::to_owned).collect())
}

/// Removes what an interrupted create or delete left.
pub(super) fn sweep(shelf: &Dir) -> Result<(), Problem> {
    let doing = io("removing what was left unfinished");
    shelf.remove_tree(UNFINISHED).map_err(&doing)?;
    for name in gone(shelf)? {
        shelf
            .dir(&name)
            .and_then(|dir| dir.clear())
            .map_err(&doing)?;
    }
    Ok(())
}
