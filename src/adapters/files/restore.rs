//! Restores a VM: new images are made and proved beside the old ones, then exchanged with them under a journal.
//!
//! Up to the journal nothing of the VM is touched. From then on either every disk becomes new, or every disk is put back;
//! what a process that was killed left is taken up by the same request alone, over exactly the disks that it left.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::Stat;
use rustix::fs::Uid;
use rustix::io::Errno;

use crate::adapters::adapter::FindOutcome;
use crate::adapters::files::change;
use crate::adapters::files::checks;
use crate::adapters::files::copy;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::journal::Entry;
use crate::adapters::files::journal::JOURNAL;
use crate::adapters::files::journal::Journal;
use crate::adapters::files::journal::Phase;
use crate::adapters::files::journal::Standing;
use crate::adapters::files::lock;
use crate::adapters::files::lock::Use;
use crate::adapters::files::loops;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::Disk;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::places;
use crate::adapters::files::places::Places;
use crate::adapters::files::stamp::Stamp;
use crate::adapters::files::swap;
use crate::adapters::files::swap::Swap;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::TEMPORARY;
use crate::adapters::files::work::Request;
use crate::adapters::files::work::Started;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::RestoreOptions;

/// The state of a VM's disks in a few characters: it changes whenever a disk is added, removed, replaced or written to.
pub(super) fn fingerprint(vm: &Dir) -> Result<String, Problem> {
    let doing = io("looking at the disks of a VM");
    let home = vm.stat_self().map_err(&doing)?.st_dev;
    let mut hasher = blake3::Hasher::new();
    for name in vm.names().map_err(&doing)? {
        let Ok(name) = name.into_string() else {
            continue;
        };
        let Ok(disk) = DiskName::try_from(name) else {
            continue;
        };
        if let Some(stamp) = Stamp::at(vm, &disk).map_err(&doing)? {
            hasher.update(blake3::hash(disk.as_str().as_bytes()).as_bytes());
            stamp.hash(home, &mut hasher);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether the disks are those that the request was asked for.
fn is_expected(vm: &Dir, request: &Request) -> Result<bool, Problem> {
    match request.disks_before() {
        Some(before) => Ok(fingerprint(vm)? == before),
        None => Ok(true),
    }
}

fn changed_since() -> Problem {
    let text = "the disks of the VM were changed after this restore was asked for, so it was not begun; ask again if it is still wanted";
    Problem::new(FaultKind::Conflict, text)
}

/// What became of the request. Changes nothing.
pub(super) fn find(vm: &Dir, request: &Request) -> Result<FindOutcome, Problem> {
    let not_begun = |changed: bool| match changed {
        true => FindOutcome::VmChanged,
        false => FindOutcome::NotBegun,
    };
    let journal = Journal::read(vm)?.filter(|journal| journal.request == request.mark);
    let Some(journal) = journal else {
        return Ok(not_begun(!is_expected(vm, request)?));
    };
    let synced = || vm.sync().map_err(io("syncing the folder of a VM"));
    match journal.phase {
        // It may have been killed before its last sync.
        Phase::Done => synced().map(|()| FindOutcome::Done),
        Phase::Undone => {
            let text = "A disk of the VM could not be replaced. Every disk is as it was before the restore.";
            Ok(FindOutcome::Failed(Fault::new(
                FaultKind::BackendFailed,
                text,
            )))
        }
        Phase::Swap => Ok(match journal.standing(vm)? {
            Standing::Complete | Standing::Clear => {
                synced()?;
                FindOutcome::Done
            }
            Standing::Untouched { changed } => not_begun(changed || !is_expected(vm, request)?),
            Standing::Half(fault) => FindOutcome::HalfDone(fault),
            Standing::Broken(fault) => FindOutcome::Failed(fault),
        }),
    }
}

/// Removes what a process that was killed left beside the disks, unless a half-done restore needs it. The VM must be locked.
pub(super) fn sweep(vm: &Dir) -> Result<(), Problem> {
    if let Some(journal) = Journal::read(vm)? {
        match journal.standing(vm)? {
            Standing::Clear => swap::sweep_left(vm, None),
            // Every disk is in place; only the record of that is missing.
            Standing::Complete => swap::complete(vm, &journal)?,
            // No disk was touched, by us or by others: it is as if it had not begun.
            Standing::Untouched { changed: false } => swap::discard(vm, &journal)?,
            Standing::Untouched { changed: true } | Standing::Half(_) | Standing::Broken(_) => {
                swap::sweep_left(vm, Some(&journal));
            }
        }
    } else {
        swap::sweep_left(vm, None);
    }
    let doing = io("removing what an interrupted restore left");
    checks::sweep(vm).map_err(&doing)?;
    match vm.stat(TEMPORARY) {
        Ok(_) => vm.unlink(TEMPORARY).map_err(doing),
        Err(_nothing) => Ok(()),
    }
}

/// Ends a restore of any request that is not half done, and refuses while one is.
///
/// # Errors
/// `Conflict` that names the disks that are new and those that are old.
pub(super) fn settle(vm: &Dir) -> Result<(), Problem> {
    match unsettled(vm)? {
        Some((_, fault)) => Err(Problem::new(fault.kind, fault.text)),
        None => Ok(()),
    }
}

/// The same; what is half done is handed back.
fn unsettled(vm: &Dir) -> Result<Option<(Journal, Fault)>, Problem> {
    let Some(journal) = Journal::read(vm)? else {
        return Ok(None);
    };
    match journal.standing(vm)? {
        Standing::Clear => {}
        Standing::Complete => swap::complete(vm, &journal)?,
        Standing::Untouched { .. } => {
            swap::discard(vm, &journal)?;
            // One that this one was to replace stands again.
            if journal.before.is_some() {
                return unsettled(vm);
            }
        }
        Standing::Half(fault) | Standing::Broken(fault) => return Ok(Some((journal, fault))),
    }
    Ok(None)
}

/// Checks all that can be checked, and takes the locks of the disks.
pub(super) fn start(
    places: &Arc<Places>,
    vm: Dir,
    request: &Request,
    options: &RestoreOptions,
) -> Result<Started, Problem> {
    let target = &request.intent.target;
    let ours = Journal::read(&vm)?.filter(|journal| journal.request == request.mark);
    if let Some(journal) = ours {
        match journal.standing(&vm)? {
            Standing::Half(_) => {
                let resumed = swap::take_up(&vm, &journal)?;
                return Ok(Started::Work(Box::new(move |job| {
                    swap::resume(&vm, &journal, resumed, job)
                })));
            }
            Standing::Broken(fault) => return Err(Problem::new(fault.kind, fault.text)),
            Standing::Complete => {
                swap::complete(&vm, &journal)?;
                return Ok(Started::Done);
            }
            Standing::Clear if journal.phase == Phase::Done => {
                vm.sync().map_err(io("syncing the folder of a VM"))?;
                return Ok(Started::Done);
            }
            Standing::Untouched { changed: true } => return Err(changed_since()),
            Standing::Clear | Standing::Untouched { changed: false } => {}
        }
    }
    if !options.0.is_empty() {
        let text = "this backend knows no restore options";
        return Err(Problem::new(FaultKind::Invalid, text));
    }
    if !is_expected(&vm, request)? {
        return Err(changed_since());
    }
    let before = unsettled(&vm)?.map(|(journal, _)| journal);
    let shelf = places
        .shelf(&target.vm)?
        .ok_or_else(places::no_such_backup)?;
    let (backup, manifest) = change::seen(&shelf, request)?;
    if !manifest.is_whole(&backup) {
        let text = "the backup is not whole: a disk is missing or has another length";
        return Err(Problem::new(FaultKind::Damaged, text));
    }
    let from = backup.dir(DISKS).map_err(io("opening a backup"))?;
    checks::folder(&vm, "the folder of the VM")?;
    let old = old(&vm, &manifest)?;
    let staging = swap::free_staging(&vm);
    let journal = Journal::new(&vm, &request.mark, &target.backup, &staging, before);
    let restore = Restore {
        places: Arc::clone(places),
        journal: journal.map_err(io("looking at the folder of a VM"))?,
        vm,
        from,
        manifest,
        old,
    };
    Ok(Started::Work(Box::new(move |job| restore.run(job))))
}

/// A disk that is to be replaced: locked, and as it was when that was checked.
struct Old {
    name: DiskName,
    file: File,
    stat: Stat,
}

/// The disks there are, locked, each of which can be replaced.
fn old(vm: &Dir, manifest: &Manifest) -> Result<Vec<Old>, Problem> {
    let mut old = Vec::new();
    for name in places::disks(vm)? {
        if !manifest.disks.iter().any(|disk| disk.name == name) {
            let text = format!(
                "the VM has a disk `{}` that the backup does not hold; move it out of the VM's folder first",
                name.as_str()
            );
            return Err(Problem::new(FaultKind::Conflict, text));
        }
        checks::replaceable(vm, &name)?;
        loops::refuse(vm, &name, Use::Replace)?;
        let file = places::lock_disk(vm, &name, Use::Replace)?;
        let stat = rustix::fs::fstat(&file).map_err(io("looking at a disk image"))?;
        old.push(Old { name, file, stat });
    }
    Ok(old)
}

/// A restore with all that it needs.
struct Restore {
    places: Arc<Places>,
    vm: Dir,
    from: Dir,
    manifest: Manifest,
    old: Vec<Old>,
    journal: Journal,
}

impl Restore {
    fn run(mut self, job: &Job) -> Result<Vec<File>, Problem> {
        let restored = self.restore(job);
        self.clean_up(restored)?;
        Ok(self.old.into_iter().map(|old| old.file).collect())
    }

    fn restore(&mut self, job: &Job) -> Result<(), Problem> {
        job.expect(self.manifest.length());
        let doing = io("making the new disk images");
        let staging = self.vm.make_dir(&self.journal.staging).map_err(&doing)?;
        checks::exchange(&self.vm, &staging)?;
        let images = self.stage(&staging, job)?;
        let prepared = self.prepare(&staging, &images)?;
        job.commit()?;
        self.check()?;
        let doing = io("beginning the swap of disk images");
        self.vm.adopt(JOURNAL, &prepared).map_err(&doing)?;
        // From here on a recovery may finish the swap.
        self.vm.sync().map_err(|errno| doing(errno).unsure())?;
        let swap = Swap {
            vm: &self.vm,
            staging: &staging,
            journal: &self.journal,
        };
        let entries: Vec<_> = self.journal.disks.iter().collect();
        let swapped = swap.run(&entries);
        // Old and new images stay locked until here.
        drop(images);
        swapped
    }

    /// Makes the new images and proves them.
    fn stage(&self, staging: &Dir, job: &Job) -> Result<Vec<File>, Problem> {
        let images = self.empty_images(staging)?;
        for (disk, to) in self.manifest.disks.iter().zip(&images) {
            let source = places::open_disk(&self.from, &disk.name)?;
            let digest = copy::copy(&source, to, disk.size, job, staging.faults())?;
            prove(disk, &digest)?;
        }
        Ok(images)
    }

    /// The new images, locked, with owner and mode: a lack of rights is known before anything is copied.
    fn empty_images(&self, staging: &Dir) -> Result<Vec<File>, Problem> {
        let doing = io("making the new disk images");
        let mut images = Vec::new();
        for disk in &self.manifest.disks {
            let to = staging.create(disk.name.as_str()).map_err(&doing)?;
            lock::take(&to, Use::Replace)?;
            match self.old.iter().find(|old| old.name == disk.name) {
                Some(old) => dress(staging, disk, &to, &old.stat, true)?,
                None => {
                    let like = self.vm.stat_self().map_err(&doing)?;
                    dress(staging, disk, &to, &like, false)?;
                }
            }
            images.push(to);
        }
        Ok(images)
    }

    /// Makes the new images last, and writes everything that the swap is going to need.
    fn prepare(&mut self, staging: &Dir, images: &[File]) -> Result<File, Problem> {
        let doing = io("making the new disk images");
        // All at once: what the first sync commits to the journal of the file system the others need not wait for.
        for image in images {
            staging.sync_file(image).map_err(&doing)?;
        }
        for (disk, image) in self.manifest.disks.iter().zip(images) {
            let old = self.old.iter().find(|old| old.name == disk.name);
            self.journal.disks.push(Entry {
                name: disk.name.clone(),
                old: old.map(|old| Stamp::new(&old.stat)),
                new: Stamp::of(image).map_err(&doing)?,
                checksum: disk.checksum.clone(),
            });
        }
        swap::prepare_ends(staging, &self.journal)?;
        let text = self.journal.to_bytes()?;
        let prepared = self
            .vm
            .prepare(&text)
            .map_err(io("writing the journal of a restore"))?;
        staging.sync().map_err(&doing)?;
        self.vm.sync().map_err(&doing)?;
        Ok(prepared)
    }

    /// Right before the swap: what is in place is what was checked and locked, and nothing else has come.
    fn check(&self) -> Result<(), Problem> {
        self.places.refuse_replaced()?;
        let names = places::disks(&self.vm)?;
        if !names.iter().eq(self.old.iter().map(|old| &old.name)) {
            let text = "disks of the VM were added or removed while the restore copied; nothing was changed. Shut the VM down first";
            return Err(Problem::new(FaultKind::Busy, text));
        }
        for old in &self.old {
            let name = old.name.as_str();
            let doing = io("looking at a disk image");
            let seen = Some(Stamp::new(&old.stat));
            let in_place = Stamp::at(&self.vm, &old.name).map_err(&doing)?;
            if in_place != seen || Some(Stamp::of(&old.file).map_err(&doing)?) != seen {
                let text = format!(
                    "the disk `{name}` was changed or replaced by another program while the restore copied; nothing was changed. Shut the VM down first"
                );
                return Err(Problem::new(FaultKind::Busy, text));
            }
            checks::replaceable(&self.vm, &old.name)?;
            loops::refuse(&self.vm, &old.name, Use::Replace)?;
            if lock::is_shared(&old.file).unwrap_or(true) {
                return Err(places::in_use(&old.name));
            }
        }
        Ok(())
    }

    fn clean_up(&self, restored: Result<(), Problem>) -> Result<(), Problem> {
        match &restored {
            Ok(()) | Err(Problem::Unsure(_) | Problem::Half { .. }) => {}
            Err(Problem::Refused { .. } | Problem::Cancelled) => {
                self.vm.discard();
                let journal = Journal::read(&self.vm).ok().flatten();
                let is_needed = |journal: &Journal| {
                    journal.phase == Phase::Swap && journal.staging == self.journal.staging
                };
                // Every disk is as it was, but that could not be recorded: the next change of the VM finds out by these.
                if journal.is_some_and(|journal| is_needed(&journal)) {
                    return restored;
                }
                if let Err(errno) = self.vm.remove_tree(&self.journal.staging) {
                    tracing::warn!(%errno, "new disk images stay until the next change of the VM");
                }
            }
        }
        restored
    }
}

fn prove(disk: &Disk, digest: &copy::Digest) -> Result<(), Problem> {
    if digest.checksum == disk.checksum {
        Ok(())
    } else {
        let text = format!(
            "the disk `{}` of the backup does not match its checksum; nothing was changed",
            disk.name.as_str()
        );
        Err(Problem::new(FaultKind::Damaged, text))
    }
}

fn not_ours(disk: &Disk, like: &Stat) -> Problem {
    let text = format!(
        "the new image of the disk `{}` must belong to user {} and group {}, which the gateway's user must not give it; \
         run the gateway as that user, or change the owner of the image. Nothing was changed",
        disk.name.as_str(),
        like.st_uid,
        like.st_gid
    );
    Problem::new(FaultKind::BackendDenied, text)
}

/// Gives a new image the owner, and the mode if wanted, of what is given.
fn dress(dir: &Dir, disk: &Disk, file: &File, like: &Stat, mode: bool) -> Result<(), Problem> {
    let doing = io("giving a disk image its owner and mode");
    let now = rustix::fs::fstat(file).map_err(&doing)?;
    if now.st_uid != like.st_uid || now.st_gid != like.st_gid {
        dir.faults().step("owner").map_err(&doing)?;
        let (owner, group) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        match rustix::fs::fchown(file, Some(owner), Some(group)) {
            Err(Errno::PERM) => return Err(not_ours(disk, like)),
            other => other.map_err(&doing)?,
        }
    }
    if mode {
        dir.faults().step("mode").map_err(&doing)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(like.st_mode)).map_err(&doing)?;
    }
    Ok(())
}
