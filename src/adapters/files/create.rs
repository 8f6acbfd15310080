//! Makes a backup: copied into a hidden directory, made to last, then shown by one rename.

use std::fs::File;
use std::sync::Arc;

use crate::adapters::files::checks;
use crate::adapters::files::copy;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::lock::Use;
use crate::adapters::files::loops;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::Disk;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::places;
use crate::adapters::files::places::Places;
use crate::adapters::files::stamp::Stamp;
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

impl Source {
    fn open(vm: &Dir, name: DiskName) -> Result<Self, Problem> {
        let doing = io("looking at a disk image");
        loops::refuse(vm, &name, Use::Read)?;
        let file = places::lock_disk(vm, &name, Use::Read)?;
        // What a program wrote through a memory map before is written back here; what it writes later changes the times.
        rustix::fs::fdatasync(&file).map_err(io("writing back a disk image"))?;
        let before = Stamp::of(&file).map_err(doing)?;
        Ok(Self { name, file, before })
    }

    /// Refuses what was written to, or replaced under its name, since it was opened.
    fn refuse_changed(&self, vm: &Dir) -> Result<(), Problem> {
        let doing = io("looking at a disk image");
        let opened = Stamp::of(&self.file).map_err(&doing)?;
        let in_place = Stamp::at(vm, &self.name).map_err(&doing)?;
        if opened == self.before && in_place == Some(self.before) {
            return Ok(());
        }
        let text = format!(
            "the disk `{}` was changed or replaced while it was copied; shut the VM down first",
            self.name.as_str()
        );
        Err(Problem::new(FaultKind::Busy, text))
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
    vm: Dir,
    request: &Request,
    new: &NewBackup,
    now: Timestamp,
) -> Result<Started, Problem> {
    let target = &request.intent.target;
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
    checks::folder(&shelf, "the folder of the VM's backups")?;
    let sources = sources(&vm)?;
    let mut manifest = Manifest::new(target, new.name.clone(), now, token()?);
    manifest.made_by.clone_from(&request.mark);
    manifest.description.clone_from(&new.description);
    manifest.tags.clone_from(&new.tags);
    manifest.protected = new.protected;
    let (id, places) = (target.backup.clone(), Arc::clone(places));
    Ok(Started::Work(Box::new(move |job| {
        let made = make(&shelf, &sources, manifest, job)
            .and_then(|()| refuse_changed(&vm, &sources))
            .and_then(|()| places.refuse_replaced())
            .and_then(|()| show(&shelf, id.as_str(), job));
        clean_up(&shelf, made).map(|()| Vec::new())
    })))
}

fn shelf(places: &Places, target: &Target) -> Result<Dir, Problem> {
    let shelf = match places.shelf(&target.vm)? {
        Some(shelf) => shelf,
        None if places.backups.stat(target.vm.as_str()).is_ok() => {
            let text =
                "what has the name of the VM's folder of backups is not a folder; move it away";
            return Err(Problem::new(FaultKind::Conflict, text));
        }
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
        sources.push(Source::open(vm, name)?);
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
    let sizes = sources.iter().map(|source| source.before.size());
    job.expect(sizes.fold(0, u64::saturating_add));
    let doing = io("making a backup");
    let dir = shelf.make_dir(UNFINISHED).map_err(&doing)?;
    let disks = dir.make_dir(DISKS).map_err(&doing)?;
    let mut files = Vec::new();
    for source in sources {
        let size = source.before.size();
        let to = disks.create(source.name.as_str()).map_err(&doing)?;
        let digest = copy::copy(&source.file, &to, size, job, disks.faults())?;
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

/// All disks again: one may have been written to while another one was copied.
fn refuse_changed(vm: &Dir, sources: &[Source]) -> Result<(), Problem> {
    let names = places::disks(vm)?;
    if !names.iter().eq(sources.iter().map(|source| &source.name)) {
        let text =
            "disks of the VM were added or removed while it was copied; shut the VM down first";
        return Err(Problem::new(FaultKind::Busy, text));
    }
    for source in sources {
        source.refuse_changed(vm)?;
        loops::refuse(vm, &source.name, Use::Read)?;
    }
    Ok(())
}

fn show(shelf: &Dir, id: &str, job: &Job) -> Result<(), Problem> {
    job.commit()?;
    let doing = io("showing a backup");
    shelf.take(id, shelf, UNFINISHED).map_err(&doing)?;
    shelf.sync().map_err(|errno| doing(errno).unsure())
}

fn clean_up(shelf: &Dir, made: Result<(), Problem>) -> Result<(), Problem> {
    match &made {
        Ok(()) | Err(Problem::Unsure(_) | Problem::Half { .. }) => {}
        Err(Problem::Refused { .. } | Problem::Cancelled) => {
            if let Err(errno) = shelf.remove_tree(UNFINISHED) {
                tracing::warn!(%errno, "an unfinished backup stays until the next recovery");
            }
        }
    }
    made
}
