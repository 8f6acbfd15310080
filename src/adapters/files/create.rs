//! Makes a backup: copied into a hidden directory, made to last, then shown by one rename.

use std::fs::File;
use std::sync::Arc;

use crate::adapters::files::copy;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::lock;
use crate::adapters::files::lock::Use;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::Disk;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::places;
use crate::adapters::files::places::Places;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_visible;
use crate::adapters::files::work::Request;
use crate::adapters::files::work::Started;
use crate::model::BackupKind;
use crate::model::FaultKind;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::Timestamp;

/// A backup in the making; there is at most one per VM.
pub(super) const UNFINISHED: &str = ".snapgate-new";

struct Source {
    name: DiskName,
    file: File,
    before: Stamp,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, u64),
}

impl Stamp {
    fn of(file: &File) -> Result<Self, Problem> {
        let stat = rustix::fs::fstat(file).map_err(io("looking at a disk image"))?;
        Ok(Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        })
    }
}

/// What the find of a create answers: whether this very request made it.
pub(super) fn is_done(places: &Places, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(shelf) = places.shelf(&target.vm)? else {
        return Ok(false);
    };
    match places::backup_dir(&shelf, &target.backup)? {
        Some(dir) if Manifest::read(&dir, target)?.made_by == request.mark => {
            // Whoever renamed it may have been killed before this.
            shelf.sync().map_err(io("syncing the backups of a VM"))?;
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}

/// Checks all that can be checked, and takes the locks of the disks.
pub(super) fn start(
    places: &Arc<Places>,
    request: &Request,
    new: &NewBackup,
    now: Timestamp,
) -> Result<Started, Problem> {
    let target = &request.intent.target;
    let vm = places.vm(&target.vm)?;
    if new.kind.is_some_and(|kind| kind != BackupKind::Full) {
        let text = "this backend makes backups of the kind `full` only";
        return Err(Problem::new(FaultKind::Unsupported, text));
    }
    if !is_visible(target.backup.as_str()) {
        let text = "the id of the backup cannot be used";
        return Err(Problem::new(FaultKind::Invalid, text));
    }
    let shelf = shelf(places, target)?;
    if places::backup_dir(&shelf, &target.backup)?.is_some() {
        if is_done(places, request)? {
            return Ok(Started::Done);
        }
        let text = "there is another backup of this id";
        return Err(Problem::new(FaultKind::Conflict, text));
    }
    places::refuse_taken(&shelf, target, &new.name)?;
    let sources = sources(&vm)?;
    let mut manifest = Manifest::new(target, new.name.clone(), now, token()?);
    manifest.made_by.clone_from(&request.mark);
    manifest.description.clone_from(&new.description);
    manifest.tags.clone_from(&new.tags);
    manifest.protected = new.protected;
    let id = target.backup.clone();
    Ok(Started::Work(Box::new(move |job| {
        let made = make(&shelf, &sources, manifest, job);
        let made = made.and_then(|()| show(&shelf, id.as_str(), job));
        clean_up(&shelf, made).map(|()| Vec::new())
    })))
}

fn shelf(places: &Places, target: &Target) -> Result<Dir, Problem> {
    let shelf = match places.shelf(&target.vm)? {
        Some(shelf) => shelf,
        None => places
            .backups
            .make_dir(target.vm.as_str())
            .map_err(io("making the directory of a VM's backups"))?,
    };
    // Also when it was there: whoever made it may have been killed before this.
    places
        .backups
        .sync()
        .map_err(io("syncing the backups directory"))?;
    Ok(shelf)
}

fn sources(vm: &Dir) -> Result<Vec<Source>, Problem> {
    let mut sources = Vec::new();
    for name in places::disks(vm)? {
        let file = places::open_disk(vm, &name)?;
        lock::take(&file, Use::Read)?;
        let before = Stamp::of(&file)?;
        sources.push(Source { name, file, before });
    }
    if sources.is_empty() {
        let text = "the VM has no disk images, so there is nothing to back up";
        return Err(Problem::new(FaultKind::Conflict, text));
    }
    Ok(sources)
}

fn token() -> Result<String, Problem> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Problem::new(
            FaultKind::BackendFailed,
            "the system gives no random numbers",
        )
        .because(error)
    })?;
    Ok(u128::from_le_bytes(bytes).to_string())
}

fn make(shelf: &Dir, sources: &[Source], mut manifest: Manifest, job: &Job) -> Result<(), Problem> {
    let sizes = sources.iter().map(|source| source.before.size);
    job.expect(sizes.fold(0, u64::saturating_add));
    let doing = io("making a backup");
    let dir = shelf.make_dir(UNFINISHED).map_err(&doing)?;
    let disks = dir.make_dir(DISKS).map_err(&doing)?;
    let mut files = Vec::new();
    for source in sources {
        let size = source.before.size;
        let to = disks.create(source.name.as_str()).map_err(&doing)?;
        let digest = copy::copy(&source.file, &to, size, job, disks.faults())?;
        if Stamp::of(&source.file)? != source.before {
            let text = "a disk image changed while it was copied; shut the VM down first";
            return Err(Problem::new(FaultKind::Busy, text));
        }
        manifest.disks.push(Disk {
            name: source.name.clone(),
            size,
            data: digest.data,
            checksum: digest.checksum,
        });
        files.push(to);
    }
    let text = manifest.to_bytes()?;
    files.push(dir.write_new(MANIFEST, &text).map_err(&doing)?);
    // All at once: what the first sync commits to the journal of the file system the others need not wait for.
    for file in &files {
        dir.sync_file(file).map_err(&doing)?;
    }
    disks.sync().map_err(&doing)?;
    dir.sync().map_err(&doing)
}

fn show(shelf: &Dir, id: &str, job: &Job) -> Result<(), Problem> {
    job.commit()?;
    let doing = io("showing a backup");
    shelf.take(id, shelf, UNFINISHED).map_err(&doing)?;
    shelf.sync().map_err(|errno| doing(errno).unsure())
}

fn clean_up(shelf: &Dir, made: Result<(), Problem>) -> Result<(), Problem> {
    match &made {
        Ok(()) | Err(Problem::Unsure(_)) => {}
        Err(Problem::Refused { .. } | Problem::Cancelled) => {
            if let Err(errno) = shelf.remove_tree(UNFINISHED) {
                tracing::warn!(%errno, "an unfinished backup stays until the next recovery");
            }
        }
    }
    made
}
