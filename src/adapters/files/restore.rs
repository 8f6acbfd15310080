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
use crate::adapters::checks::Checks;
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
use crate::model::Intent;
use crate::model::RestoreOptions;
use crate::public_text;

/// The state of a VM's disks in a few characters: it changes whenever a disk is added, removed, replaced or written to.
pub(super) fn fingerprint(vm: &Dir) -> Result<String, Problem> {
    let doing = io_error("looking at the disks of a VM");
    let home = vm.stat_self().map_err(&doing)?.st_dev;
    let mut hasher = blake3::Hasher::new();
    // Names come sorted from the folder. The order is part of the hash, so that a swap of two names changes it.
    for name in vm.names().map_err(&doing)? {
        let Ok(name) = name.into_string() else {
            continue;
        };
        let Ok(disk) = DiskName::try_from(name) else {
            continue;
        };
        if let Some(stamp) = FileStamp::of_name(vm, &disk).map_err(&doing)? {
            // A hash of fixed length for each name: two names can then never be read as another pair with the same
            // concatenation.
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
    // The journal of another request says nothing about this one, even if it restored the same backup.
    let journal = Journal::read(vm)?.filter(|journal| journal.request == request.durable_id);
    let Some(journal) = journal else {
        return Ok(not_begun(!are_disks_expected(vm, request)?));
    };
    // `Done` is final for the caller, so it is said only of what a power cut no longer takes back.
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
            // Kept with its images. Only the same request, or another restore that replaces it, may take it up.
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
        // A gateway that died after the last exchange left a restore that is done in all but name.
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
    // A repetition after a crash continues what the first call left, instead of beginning again.
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
            // Another program wrote to a disk after the request came. Restoring now would discard what the caller
            // never saw.
            SwapState::Untouched { changed: true } => return Err(changed_since()),
            SwapState::Clear | SwapState::Untouched { changed: false } => {}
        }
    }
    check_options(options)?;
    if !are_disks_expected(&vm, request)? {
        return Err(changed_since());
    }
    // A restore is the way out of a half-done restore, so it is not refused here as other changes are.
    let before = find_half_done(&vm)?.map(|(journal, _)| journal);
    let vm_backups = layout
        .vm_backups(&target.vm)?
        .ok_or_else(layout::no_such_backup)?;
    let mut checks = Checks::until_first();
    let found = check_backup(&vm_backups, &request.intent, &mut checks)?;
    let (from, manifest) = found.ok_or_else(layout::no_such_backup)?;
    let old = check_disks(&vm, Some(&manifest), DiskLocking::Hold, &mut checks)?;
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

/// Refuses options: there are none.
pub(super) fn check_options(options: &RestoreOptions) -> Result<(), Problem> {
    if options.0.is_empty() {
        return Ok(());
    }
    let text =
        public_text!("This backend supports no restore options. Remove them from the request.");
    Err(Problem::new(FaultKind::Invalid, text))
}

/// Everything about the backup that would refuse a restore. Returns its images and its manifest.
pub(super) fn check_backup(
    vm_backups: &Dir,
    intent: &Intent,
    checks: &mut Checks,
) -> Result<Option<(Dir, Manifest)>, Problem> {
    let found = checks.record(edit::read_expected_backup(vm_backups, intent))?;
    let Some((backup, manifest)) = found else {
        return Ok(None);
    };
    checks.record(check_whole(&manifest, &backup))?;
    let from = backup.dir(DISKS).map_err(io_error("opening a backup"));
    Ok(checks.record(from)?.map(|from| (from, manifest)))
}

fn check_whole(manifest: &Manifest, backup: &Dir) -> Result<(), Problem> {
    if manifest.is_whole(backup) {
        return Ok(());
    }
    let text = public_text!(
        "The backup is incomplete: a disk is missing or has another length. Nothing was changed; restore another backup."
    );
    Err(Problem::new(FaultKind::Damaged, text))
}

/// Whether the locks of disks are taken, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskLocking {
    /// They are held for as long as the disks are.
    Hold,
    /// They are free again when the check returns.
    Probe,
}

/// A disk that is to be replaced: open, and as it was when it was checked.
pub(super) struct OldDisk {
    pub(super) name: DiskName,
    file: File,
    pub(super) stat: Stat,
}

/// Everything about the VM that would refuse a restore. Returns the disks there are, each of which can be replaced.
///
/// Without a manifest, which is unreadable then, every disk is checked as if the backup had it.
pub(super) fn check_disks(
    vm: &Dir,
    manifest: Option<&Manifest>,
    locking: DiskLocking,
    checks: &mut Checks,
) -> Result<Vec<OldDisk>, Problem> {
    checks.record(preflight::check_folder(vm, "The VM's directory"))?;
    let mut old = Vec::new();
    for name in checks.record(layout::disk_names(vm))?.unwrap_or_default() {
        checks.record(check_contained(manifest, &name))?;
        checks.record(preflight::check_replaceable(vm, &name))?;
        checks.record(loop_devices::refuse_attached(vm, &name, ImageUse::Replace))?;
        let file = match locking {
            DiskLocking::Hold => layout::lock_disk(vm, &name, ImageUse::Replace),
            DiskLocking::Probe => layout::probe_disk(vm, &name),
        };
        let Some(file) = checks.record(file)? else {
            continue;
        };
        let stat = rustix::fs::fstat(&file).map_err(io_error("looking at a disk image"));
        if let Some(stat) = checks.record(stat)? {
            old.push(OldDisk { name, file, stat });
        }
    }
    Ok(old)
}

/// Refuses a disk that the backup has not: it would be of another time than the others.
fn check_contained(manifest: Option<&Manifest>, name: &DiskName) -> Result<(), Problem> {
    let has_disk = |manifest: &Manifest| manifest.disks.iter().any(|disk| disk.name == *name);
    if manifest.is_none_or(has_disk) {
        return Ok(());
    }
    let text = public_text!(
        "The VM has a disk `{}` that the backup does not contain, so nothing was changed. Move it out of the VM's directory first.",
        name.as_str()
    );
    Err(Problem::new(FaultKind::Conflict, text))
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
        // Cleaned up in either case, and before the locks of the old images are handed back to the caller.
        let restored = self.restore(job);
        self.clean_up(restored)?;
        Ok(self.old.into_iter().map(|old| old.file).collect())
    }

    fn restore(&mut self, job: &Job) -> Result<(), Problem> {
        job.expect(self.manifest.length());
        let doing = io_error("making the new disk images");
        let staging = self.vm.make_dir(&self.journal.staging).map_err(&doing)?;
        // Tried on two empty files first: some file systems have no RENAME_EXCHANGE, and the swap must not find that
        // out half way.
        preflight::probe_exchange(&self.vm, &staging)?;
        let images = self.stage_images(&staging, job)?;
        // All that needs room on the disk is written by now. The swap itself consists of renames.
        let prepared = self.prepare_journal(&staging, &images)?;
        // The last moment at which a cancellation is honoured.
        job.commit()?;
        // Copying took its time: what was checked before it is checked once more.
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
            // Opened one by one, so that a VM of many disks does not hold two descriptors for each.
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
            // Locked from birth: a VM that starts right after the first exchange must find its images in use until
            // the last.
            image_lock::acquire(&to, ImageUse::Replace)?;
            match self.old.iter().find(|old| old.name == disk.name) {
                Some(old) => copy_owner_and_mode(staging, disk, &to, &old.stat, true)?,
                None => {
                    // A disk that the VM had lost has no owner to copy. Its folder's owner can at least open it.
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
                // As it was when it was locked, so that a write in between is noticed by the comparison right before
                // the swap.
                old: old.map(|old| FileStamp::new(&old.stat)),
                new: FileStamp::of_file(image).map_err(&doing)?,
                checksum: disk.checksum.clone(),
            });
        }
        // Before the journal of the swap itself, which may not exist without both of its ends.
        swap::prepare_ends(staging, &self.journal)?;
        let text = self.journal.to_bytes()?;
        let prepared = self
            .vm
            .prepare_replacement(&text)
            .map_err(io_error("writing the journal of a restore"))?;
        // The folders after the files: a name that lasts without its contents would look like a finished image.
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
