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
use crate::adapters::files::copy;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::TEMPORARY;
use crate::adapters::files::edit;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::file_stamp::FileStamp;
use crate::adapters::files::image_lock;
use crate::adapters::files::image_lock::ImageUse;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::journal::DiskSwap;
use crate::adapters::files::journal::JOURNAL;
use crate::adapters::files::journal::Journal;
use crate::adapters::files::journal::Phase;
use crate::adapters::files::journal::SwapState;
use crate::adapters::files::layout;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::loop_devices;
use crate::adapters::files::manifest::BackupDisk;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::preflight;
use crate::adapters::files::request::Request;
use crate::adapters::files::request::StartOutcome;
use crate::adapters::files::swap;
use crate::adapters::files::swap::Swap;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::RestoreOptions;
use crate::public_text;

/// The state of a VM's disks in a few characters: it changes whenever a disk is added, removed, replaced or written to.
pub(super) fn fingerprint(vm: &Dir) -> Result<String, Problem> {
    let doing = io_error("looking at the disks of a VM");
    let home = vm.stat_self().map_err(&doing)?.st_dev;
    let mut hasher = blake3::Hasher::new();
    for name in vm.names().map_err(&doing)? {
        let Ok(name) = name.into_string() else {
            continue;
        };
        let Ok(disk) = DiskName::try_from(name) else {
            continue;
        };
        if let Some(stamp) = FileStamp::of_name(vm, &disk).map_err(&doing)? {
            hasher.update(blake3::hash(disk.as_str().as_bytes()).as_bytes());
            stamp.hash_into(home, &mut hasher);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether the disks are those that the request was asked for.
fn are_disks_expected(vm: &Dir, request: &Request) -> Result<bool, Problem> {
    match request.disks_before() {
        Some(before) => Ok(fingerprint(vm)? == before),
        None => Ok(true),
    }
}

fn changed_since() -> Problem {
    let text = public_text!(
        "The disks of the VM were changed after this restore was requested, so it was not started. Resubmit it if it is still needed."
    );
    Problem::new(FaultKind::Conflict, text)
}

/// What became of the request. Changes nothing.
pub(super) fn find(vm: &Dir, request: &Request) -> Result<FindOutcome, Problem> {
    let not_begun = |changed: bool| match changed {
        true => FindOutcome::VmChanged,
        false => FindOutcome::NotBegun,
    };
    let journal = Journal::read(vm)?.filter(|journal| journal.request == request.durable_id);
    let Some(journal) = journal else {
        return Ok(not_begun(!are_disks_expected(vm, request)?));
    };
    let synced = || vm.sync().map_err(io_error("syncing the folder of a VM"));
    match journal.phase {
        // It may have been killed before its last sync.
        Phase::Done => synced().map(|()| FindOutcome::Done(None)),
        Phase::Undone => {
            let text = public_text!(
                "A disk of the VM could not be replaced. Every disk is as it was before the restore; try again."
            );
            Ok(FindOutcome::Failed(Fault::new(
                FaultKind::BackendFailed,
                text,
            )))
        }
        Phase::Swap => Ok(match journal.swap_state(vm)? {
            SwapState::Complete | SwapState::Clear => {
                synced()?;
                FindOutcome::Done(None)
            }
            SwapState::Untouched { changed } => {
                not_begun(changed || !are_disks_expected(vm, request)?)
            }
            SwapState::Half(fault) => FindOutcome::HalfDone(fault),
            SwapState::Broken(fault) => FindOutcome::Failed(fault),
        }),
    }
}

/// Removes what a process that was killed left beside the disks, unless a half-done restore needs it. The VM must be locked.
pub(super) fn remove_leftovers(vm: &Dir) -> Result<(), Problem> {
    if let Some(journal) = Journal::read(vm)? {
        match journal.swap_state(vm)? {
            SwapState::Clear => swap::remove_stale_staging(vm, None),
            // Every disk is in place; only the record of that is missing.
            SwapState::Complete => swap::record_complete(vm, &journal)?,
            // No disk was touched, by us or by others: it is as if it had not begun.
            SwapState::Untouched { changed: false } => swap::abandon(vm, &journal)?,
            SwapState::Untouched { changed: true } | SwapState::Half(_) | SwapState::Broken(_) => {
                swap::remove_stale_staging(vm, Some(&journal));
            }
        }
    } else {
        swap::remove_stale_staging(vm, None);
    }
    let doing = io_error("removing what an interrupted restore left");
    preflight::remove_probe(vm).map_err(&doing)?;
    match vm.stat(TEMPORARY) {
        Ok(_) => vm.unlink(TEMPORARY).map_err(doing),
        Err(_nothing) => Ok(()),
    }
}

/// Ends a restore of any request that is not half done, and refuses while one is.
///
/// # Errors
/// `Conflict` that names the disks that are new and those that are old.
pub(super) fn refuse_half_done(vm: &Dir) -> Result<(), Problem> {
    match find_half_done(vm)? {
        Some((_, fault)) => Err(Problem::new(fault.kind, fault.text)),
        None => Ok(()),
    }
}

/// The same; what is half done is handed back.
fn find_half_done(vm: &Dir) -> Result<Option<(Journal, Fault)>, Problem> {
    let Some(journal) = Journal::read(vm)? else {
        return Ok(None);
    };
    match journal.swap_state(vm)? {
        SwapState::Clear => {}
        SwapState::Complete => swap::record_complete(vm, &journal)?,
        SwapState::Untouched { .. } => {
            swap::abandon(vm, &journal)?;
            // One that this one was to replace stands again.
            if journal.before.is_some() {
                return find_half_done(vm);
            }
        }
        SwapState::Half(fault) | SwapState::Broken(fault) => return Ok(Some((journal, fault))),
    }
    Ok(None)
}

/// Checks all that can be checked, and takes the locks of the disks.
pub(super) fn start(
    layout: &Arc<Layout>,
    vm: Dir,
    request: &Request,
    options: &RestoreOptions,
) -> Result<StartOutcome, Problem> {
    let target = &request.intent.target;
    let ours = Journal::read(&vm)?.filter(|journal| journal.request == request.durable_id);
    if let Some(journal) = ours {
        match journal.swap_state(&vm)? {
            SwapState::Half(_) => {
                let resumed = swap::lock_half_done(&vm, &journal)?;
                return Ok(StartOutcome::Pending(Box::new(move |job| {
                    swap::resume(&vm, &journal, resumed, job)
                })));
            }
            SwapState::Broken(fault) => return Err(Problem::new(fault.kind, fault.text)),
            SwapState::Complete => {
                swap::record_complete(&vm, &journal)?;
                return Ok(StartOutcome::Done);
            }
            SwapState::Clear if journal.phase == Phase::Done => {
                vm.sync().map_err(io_error("syncing the folder of a VM"))?;
                return Ok(StartOutcome::Done);
            }
            SwapState::Untouched { changed: true } => return Err(changed_since()),
            SwapState::Clear | SwapState::Untouched { changed: false } => {}
        }
    }
    if !options.0.is_empty() {
        let text =
            public_text!("This backend supports no restore options. Remove them from the request.");
        return Err(Problem::new(FaultKind::Invalid, text));
    }
    if !are_disks_expected(&vm, request)? {
        return Err(changed_since());
    }
    let before = find_half_done(&vm)?.map(|(journal, _)| journal);
    let vm_backups = layout
        .vm_backups(&target.vm)?
        .ok_or_else(layout::no_such_backup)?;
    let (backup, manifest) = edit::read_expected_backup(&vm_backups, request)?;
    if !manifest.is_whole(&backup) {
        let text = public_text!(
            "The backup is incomplete: a disk is missing or has another length. Nothing was changed; restore another backup."
        );
        return Err(Problem::new(FaultKind::Damaged, text));
    }
    let from = backup.dir(DISKS).map_err(io_error("opening a backup"))?;
    preflight::check_folder(&vm, "The VM's directory")?;
    let old = lock_old_disks(&vm, &manifest)?;
    let staging = swap::unused_staging_name(&vm);
    let journal = Journal::new(&vm, &request.durable_id, &target.backup, &staging, before);
    let restore = Restore {
        layout: Arc::clone(layout),
        journal: journal.map_err(io_error("looking at the folder of a VM"))?,
        vm,
        from,
        manifest,
        old,
    };
    Ok(StartOutcome::Pending(Box::new(move |job| restore.run(job))))
}

/// A disk that is to be replaced: locked, and as it was when that was checked.
struct OldDisk {
    name: DiskName,
    file: File,
    stat: Stat,
}

/// The disks there are, locked, each of which can be replaced.
fn lock_old_disks(vm: &Dir, manifest: &Manifest) -> Result<Vec<OldDisk>, Problem> {
    let mut old = Vec::new();
    for name in layout::disk_names(vm)? {
        if !manifest.disks.iter().any(|disk| disk.name == name) {
            let text = public_text!(
                "The VM has a disk `{}` that the backup does not contain, so nothing was changed. Move it out of the VM's directory first.",
                name.as_str()
            );
            return Err(Problem::new(FaultKind::Conflict, text));
        }
        preflight::check_replaceable(vm, &name)?;
        loop_devices::refuse_attached(vm, &name, ImageUse::Replace)?;
        let file = layout::lock_disk(vm, &name, ImageUse::Replace)?;
        let stat = rustix::fs::fstat(&file).map_err(io_error("looking at a disk image"))?;
        old.push(OldDisk { name, file, stat });
    }
    Ok(old)
}

/// A restore with all that it needs.
struct Restore {
    layout: Arc<Layout>,
    vm: Dir,
    from: Dir,
    manifest: Manifest,
    old: Vec<OldDisk>,
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
        let doing = io_error("making the new disk images");
        let staging = self.vm.make_dir(&self.journal.staging).map_err(&doing)?;
        preflight::probe_exchange(&self.vm, &staging)?;
        let images = self.stage_images(&staging, job)?;
        let prepared = self.prepare_journal(&staging, &images)?;
        job.commit()?;
        self.check_unchanged()?;
        let doing = io_error("beginning the swap of disk images");
        self.vm
            .commit_replacement(JOURNAL, &prepared)
            .map_err(&doing)?;
        // From here on a recovery may finish the swap.
        self.vm.sync().map_err(|errno| doing(errno).uncertain())?;
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
    fn stage_images(&self, staging: &Dir, job: &Job) -> Result<Vec<File>, Problem> {
        let images = self.create_empty_images(staging)?;
        for (disk, to) in self.manifest.disks.iter().zip(&images) {
            let source = layout::open_disk(&self.from, &disk.name)?;
            let digest = copy::copy_image(&source, to, disk.size, job, staging.failpoints())?;
            verify_checksum(disk, &digest)?;
        }
        Ok(images)
    }

    /// The new images, locked, with owner and mode: a lack of rights is known before anything is copied.
    fn create_empty_images(&self, staging: &Dir) -> Result<Vec<File>, Problem> {
        let doing = io_error("making the new disk images");
        let mut images = Vec::new();
        for disk in &self.manifest.disks {
            let to = staging.create(disk.name.as_str()).map_err(&doing)?;
            image_lock::acquire(&to, ImageUse::Replace)?;
            match self.old.iter().find(|old| old.name == disk.name) {
                Some(old) => copy_owner_and_mode(staging, disk, &to, &old.stat, true)?,
                None => {
                    let like = self.vm.stat_self().map_err(&doing)?;
                    copy_owner_and_mode(staging, disk, &to, &like, false)?;
                }
            }
            images.push(to);
        }
        Ok(images)
    }

    /// Makes the new images last, and writes everything that the swap is going to need.
    fn prepare_journal(&mut self, staging: &Dir, images: &[File]) -> Result<File, Problem> {
        let doing = io_error("making the new disk images");
        // All at once: what the first sync commits to the journal of the file system the others need not wait for.
        for image in images {
            staging.sync_file(image).map_err(&doing)?;
        }
        for (disk, image) in self.manifest.disks.iter().zip(images) {
            let old = self.old.iter().find(|old| old.name == disk.name);
            self.journal.disks.push(DiskSwap {
                name: disk.name.clone(),
                old: old.map(|old| FileStamp::new(&old.stat)),
                new: FileStamp::of_file(image).map_err(&doing)?,
                checksum: disk.checksum.clone(),
            });
        }
        swap::prepare_ends(staging, &self.journal)?;
        let text = self.journal.to_bytes()?;
        let prepared = self
            .vm
            .prepare_replacement(&text)
            .map_err(io_error("writing the journal of a restore"))?;
        staging.sync().map_err(&doing)?;
        self.vm.sync().map_err(&doing)?;
        Ok(prepared)
    }

    /// Right before the swap: what is in place is what was checked and locked, and nothing else has come.
    fn check_unchanged(&self) -> Result<(), Problem> {
        self.layout.refuse_replaced()?;
        let names = layout::disk_names(&self.vm)?;
        if !names.iter().eq(self.old.iter().map(|old| &old.name)) {
            let text = public_text!(
                "Disks of the VM were added or removed during the restore, so nothing was changed. Shut the VM down, then try again."
            );
            return Err(Problem::new(FaultKind::Busy, text));
        }
        for old in &self.old {
            let name = old.name.as_str();
            let doing = io_error("looking at a disk image");
            let seen = Some(FileStamp::new(&old.stat));
            let in_place = FileStamp::of_name(&self.vm, &old.name).map_err(&doing)?;
            if in_place != seen || Some(FileStamp::of_file(&old.file).map_err(&doing)?) != seen {
                let text = public_text!(
                    "The disk `{name}` was changed or replaced by another program during the restore, so nothing was changed. Shut the VM down, then try again."
                );
                return Err(Problem::new(FaultKind::Busy, text));
            }
            preflight::check_replaceable(&self.vm, &old.name)?;
            loop_devices::refuse_attached(&self.vm, &old.name, ImageUse::Replace)?;
            if image_lock::is_shared(&old.file).unwrap_or(true) {
                return Err(layout::disk_in_use(&old.name));
            }
        }
        Ok(())
    }

    fn clean_up(&self, restored: Result<(), Problem>) -> Result<(), Problem> {
        match &restored {
            Ok(()) | Err(Problem::Uncertain(_) | Problem::HalfDone { .. }) => {}
            Err(Problem::Refused { .. } | Problem::Cancelled) => {
                self.vm.discard_replacement();
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

fn verify_checksum(disk: &BackupDisk, digest: &copy::Digest) -> Result<(), Problem> {
    if digest.checksum == disk.checksum {
        Ok(())
    } else {
        let text = public_text!(
            "The disk `{}` of the backup does not match its checksum, so nothing was changed. Restore another backup.",
            disk.name.as_str()
        );
        Err(Problem::new(FaultKind::Damaged, text))
    }
}

fn owner_refused(disk: &BackupDisk, like: &Stat) -> Problem {
    let text = public_text!(
        "The new image of the disk `{}` must belong to user {} and group {}, and the gateway's user may not set that owner, so nothing was changed. \
         Run the gateway as that user, or change the owner of the image.",
        disk.name.as_str(),
        like.st_uid,
        like.st_gid
    );
    Problem::new(FaultKind::BackendDenied, text)
}

/// Gives a new image the owner, and the mode if wanted, of what is given.
fn copy_owner_and_mode(
    dir: &Dir,
    disk: &BackupDisk,
    file: &File,
    like: &Stat,
    mode: bool,
) -> Result<(), Problem> {
    let doing = io_error("giving a disk image its owner and mode");
    let now = rustix::fs::fstat(file).map_err(&doing)?;
    if now.st_uid != like.st_uid || now.st_gid != like.st_gid {
        dir.failpoints().hit("owner").map_err(&doing)?;
        let (owner, group) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        match rustix::fs::fchown(file, Some(owner), Some(group)) {
            Err(Errno::PERM) => return Err(owner_refused(disk, like)),
            other => other.map_err(&doing)?,
        }
    }
    if mode {
        dir.failpoints().hit("mode").map_err(&doing)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(like.st_mode)).map_err(&doing)?;
    }
    Ok(())
}
