//! Restores a VM: new images are made and proved beside the old ones, then swapped by a journal.
//!
//! Up to the journal's rename nothing of the VM was touched, and a recovery throws the copies away. From that
//! instant on a recovery finishes the swap, so after it every disk is either old or every disk is new.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::Stat;
use rustix::fs::Uid;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::change;
use crate::adapters::files::copy;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::lock;
use crate::adapters::files::lock::Use;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::Disk;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::places;
use crate::adapters::files::places::Places;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::TEMPORARY;
use crate::adapters::files::work::Request;
use crate::adapters::files::work::Started;
use crate::model::BackupId;
use crate::model::FaultKind;
use crate::model::RestoreOptions;

/// The journal, and afterwards the proof of which request restored the VM last.
const JOURNAL: &str = ".snapgate-restore.json";
/// The new images before they are swapped in.
const STAGING: &str = ".snapgate-staging";
const FORMAT: u32 = 1;
const JOURNAL_BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    /// Must be finished.
    Swap,
    /// Is finished.
    Done,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    format: u32,
    phase: Phase,
    request: String,
    backup: BackupId,
    disks: Vec<DiskName>,
}

impl Journal {
    fn read(vm: &Dir) -> Result<Option<Self>, Problem> {
        let damaged = || {
            let text = "the journal of the VM's last restore is damaged; an operator must look";
            Problem::new(FaultKind::Damaged, text)
        };
        let read = vm.read_small(JOURNAL, JOURNAL_BYTES_MAX);
        let Some(bytes) = read.map_err(|errno| damaged().because(errno))? else {
            return Ok(None);
        };
        let journal: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged().because(error))?;
        if journal.format == FORMAT {
            Ok(Some(journal))
        } else {
            Err(damaged().because("written by another version"))
        }
    }

    fn prepare(&self, vm: &Dir) -> Result<File, Problem> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Problem::new(FaultKind::BackendFailed, "the journal cannot be written").because(error)
        })?;
        vm.prepare(&text).map_err(io("writing a journal"))
    }
}

/// Whether this request was the last to restore the VM. Only after [`recover`].
pub(super) fn is_done(vm: &Dir, mark: &str) -> Result<bool, Problem> {
    let done = Journal::read(vm)?.is_some_and(|it| it.phase == Phase::Done && it.request == mark);
    if done {
        // Whoever renamed it may have been killed before this.
        vm.sync().map_err(io("syncing the directory of a VM"))?;
    }
    Ok(done)
}

/// Finishes or throws away what an interrupted restore left.
///
/// # Errors
/// `Busy` while someone uses a disk that is still to be swapped, or whatever keeps it from being finished.
pub(super) fn recover(vm: &Dir) -> Result<(), Problem> {
    let doing = io("recovering a restore");
    match Journal::read(vm)? {
        Some(journal) if journal.phase == Phase::Swap => {
            let locks = lock_rest(vm, &journal)?;
            tracing::warn!(request = %journal.request, "finishing an interrupted restore");
            swap(vm, journal)?;
            drop(locks);
        }
        Some(_) | None => {
            if vm.stat(STAGING).is_ok() {
                vm.remove_tree(STAGING).map_err(&doing)?;
            }
        }
    }
    if vm.stat(TEMPORARY).is_ok() {
        vm.unlink(TEMPORARY).map_err(&doing)?;
    }
    Ok(())
}

/// Locks the disks that are still to be swapped, old and new.
fn lock_rest(vm: &Dir, journal: &Journal) -> Result<Vec<File>, Problem> {
    let mut locks = Vec::new();
    let staging = match vm.dir(STAGING) {
        Ok(staging) => staging,
        Err(Errno::NOENT) => return Ok(locks),
        Err(errno) => return Err(io("recovering a restore")(errno)),
    };
    for name in &journal.disks {
        if staging.stat(name.as_str()).is_err() {
            continue;
        }
        for dir in [&staging, vm] {
            if dir.stat(name.as_str()).is_ok() {
                let file = places::open_disk(dir, name)?;
                lock::take(&file, Use::Replace)?;
                locks.push(file);
            }
        }
    }
    Ok(locks)
}

/// From the journal on: every rename, then the proof. Doing it again does what is left.
///
/// The proof's own name need not outlive a power cut: a recovery that still finds the journal has nothing left to
/// rename, and writes the proof again.
fn swap(vm: &Dir, mut journal: Journal) -> Result<(), Problem> {
    let doing = |errno| io("swapping disk images")(errno).unsure();
    let staging = match vm.dir(STAGING) {
        Ok(staging) => Some(staging),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(doing(errno)),
    };
    if let Some(staging) = &staging {
        for name in &journal.disks {
            match vm.take(name.as_str(), staging, name.as_str()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(doing(errno)),
            }
        }
    }
    journal.phase = Phase::Done;
    let proof = journal.prepare(vm).map_err(Problem::unsure)?;
    vm.sync().map_err(doing)?;
    if let Some(staging) = &staging {
        staging.sync().map_err(doing)?;
    }
    vm.adopt(JOURNAL, &proof).map_err(doing)?;
    if let Err(errno) = vm.remove_tree(STAGING) {
        tracing::warn!(%errno, "an empty staging directory stays until the next recovery");
    }
    Ok(())
}

/// Checks all that can be checked, and takes the locks of the disks.
pub(super) fn start(
    places: &Arc<Places>,
    request: &Request,
    options: &RestoreOptions,
) -> Result<Started, Problem> {
    let target = &request.intent.target;
    let vm = places.vm(&target.vm)?;
    if is_done(&vm, &request.mark)? {
        return Ok(Started::Done);
    }
    if !options.0.is_empty() {
        let text = "this backend knows no restore options";
        return Err(Problem::new(FaultKind::Invalid, text));
    }
    let shelf = places
        .shelf(&target.vm)?
        .ok_or_else(places::no_such_backup)?;
    let (backup, manifest) = change::seen(&shelf, request)?;
    if !manifest.is_whole(&backup) {
        let text = "the backup is not whole: a disk is missing or has another length";
        return Err(Problem::new(FaultKind::Damaged, text));
    }
    let from = backup.dir(DISKS).map_err(io("opening a backup"))?;
    let old = old(&vm, &manifest)?;
    let journal = Journal {
        format: FORMAT,
        phase: Phase::Swap,
        request: request.mark.clone(),
        backup: target.backup.clone(),
        disks: manifest.disks.iter().map(|it| it.name.clone()).collect(),
    };
    Ok(Started::Work(Box::new(move |job| {
        let staged = stage(&vm, &from, &manifest, &old, &journal, job);
        let restored = staged.and_then(|new| {
            job.commit()?;
            let doing = io("beginning the swap of disk images");
            vm.adopt(JOURNAL, &new.journal).map_err(&doing)?;
            // From here on a recovery may finish the swap.
            vm.sync().map_err(|errno| doing(errno).unsure())?;
            let swapped = swap(&vm, journal);
            // Old and new images stay locked until here.
            drop(new.images);
            swapped
        });
        clean_up(&vm, restored).map(|()| old.into_iter().map(|(_, file, _)| file).collect())
    })))
}

/// The disks there are, locked, with what a new image takes over from each.
fn old(vm: &Dir, manifest: &Manifest) -> Result<Vec<(DiskName, File, Stat)>, Problem> {
    let mut old = Vec::new();
    for name in places::disks(vm)? {
        if !manifest.disks.iter().any(|disk| disk.name == name) {
            let text = "the VM has a disk that the backup does not hold; move it away first";
            return Err(Problem::new(FaultKind::Conflict, text).because(name.as_str()));
        }
        let file = places::open_disk(vm, &name)?;
        lock::take(&file, Use::Replace)?;
        let stat = rustix::fs::fstat(&file).map_err(io("looking at a disk image"))?;
        old.push((name, file, stat));
    }
    Ok(old)
}

/// What a swap begins with: the new images, held by their locks, and the journal under its first name.
struct Staged {
    images: Vec<File>,
    journal: File,
}

/// Makes the new images, proves them and makes them last.
fn stage(
    vm: &Dir,
    from: &Dir,
    manifest: &Manifest,
    old: &[(DiskName, File, Stat)],
    journal: &Journal,
    job: &Job,
) -> Result<Staged, Problem> {
    job.expect(manifest.length());
    let doing = io("making the new disk images");
    let staging = vm.make_dir(STAGING).map_err(&doing)?;
    let mut images = Vec::new();
    for disk in &manifest.disks {
        let to = staging.create(disk.name.as_str()).map_err(&doing)?;
        lock::take(&to, Use::Replace)?;
        let source = places::open_disk(from, &disk.name)?;
        let digest = copy::copy(&source, &to, disk.size, job, staging.faults())?;
        prove(disk, &digest)?;
        let like = old.iter().find(|(name, ..)| *name == disk.name);
        match like {
            Some((_, _, stat)) => dress(&staging, &to, stat, true)?,
            None => dress(&staging, &to, &vm.stat_self().map_err(&doing)?, false)?,
        }
        images.push(to);
    }
    let journal = journal.prepare(vm)?;
    // All at once: what the first sync commits to the journal of the file system the others need not wait for.
    for image in &images {
        staging.sync_file(image).map_err(&doing)?;
    }
    staging.sync().map_err(&doing)?;
    vm.sync().map_err(&doing)?;
    Ok(Staged { images, journal })
}

fn prove(disk: &Disk, digest: &copy::Digest) -> Result<(), Problem> {
    if digest.checksum == disk.checksum {
        Ok(())
    } else {
        let text = "a disk of the backup does not match its checksum; nothing was changed";
        Err(Problem::new(FaultKind::Damaged, text).because(disk.name.as_str()))
    }
}

/// Gives a new image the owner, and the mode if wanted, of what is given.
fn dress(dir: &Dir, file: &File, like: &Stat, mode: bool) -> Result<(), Problem> {
    let doing = io("giving a disk image its owner and mode");
    let now = rustix::fs::fstat(file).map_err(&doing)?;
    if now.st_uid != like.st_uid || now.st_gid != like.st_gid {
        dir.faults().step("owner").map_err(&doing)?;
        let (owner, group) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        rustix::fs::fchown(file, Some(owner), Some(group)).map_err(&doing)?;
    }
    if mode {
        dir.faults().step("mode").map_err(&doing)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(like.st_mode)).map_err(&doing)?;
    }
    Ok(())
}

fn clean_up(vm: &Dir, restored: Result<(), Problem>) -> Result<(), Problem> {
    match &restored {
        Ok(()) | Err(Problem::Unsure(_)) => {}
        Err(Problem::Refused { .. } | Problem::Cancelled) => {
            vm.discard();
            if let Err(errno) = vm.remove_tree(STAGING) {
                tracing::warn!(%errno, "new disk images stay until the next recovery");
            }
        }
    }
    restored
}
