//! The swap of a VM's disk images: every one is exchanged, or every one that was is exchanged back.
//!
//! The old images stay in the staging folder until all is done, so each step can be undone. Whatever is needed to record the
//! end, either way, was written before the first step: the end needs no room.

use crate::adapters::files::copy;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::file_stamp::FileStamp;
use crate::adapters::files::image_lock::ImageUse;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::journal;
use crate::adapters::files::journal::DiskSwap;
use crate::adapters::files::journal::JOURNAL;
use crate::adapters::files::journal::Journal;
use crate::adapters::files::journal::Phase;
use crate::adapters::files::journal::STAGING;
use crate::adapters::files::layout;
use crate::adapters::files::loop_devices;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::request::ReplacedImages;
use crate::model::FaultKind;
use crate::public_text;

/// The journal of the end, in the staging folder: it becomes the journal by a rename.
const DONE: &str = ".done";
/// The journal of the swap that was undone.
const UNDONE: &str = ".undone";

/// A swap with its folders.
pub(super) struct Swap<'a> {
    /// The VM's folder.
    pub(super) vm: &'a Dir,
    /// Where the images are that are not in place.
    pub(super) staging: &'a Dir,
    /// What is to be done.
    pub(super) journal: &'a Journal,
}

/// Writes what records either end of the swap, and makes it last.
pub(super) fn prepare_ends(staging: &Dir, journal: &Journal) -> Result<(), Problem> {
    journal::write_synced(staging, DONE, &journal.in_phase(Phase::Done))?;
    journal::write_synced(staging, UNDONE, &journal.undone())
}

impl Swap<'_> {
    /// Exchanges these disks, or undoes the whole swap.
    ///
    /// # Errors
    /// `Refused` when all disks are as they were; `Half` when they are not; `Unsure` when they are new but may not outlive a
    /// power cut.
    pub(super) fn run(&self, entries: &[&DiskSwap]) -> Result<(), Problem> {
        // One at a time: the undo walks back over the disks whose new image is in place.
        for entry in entries {
            if let Err(problem) = self.swap_in(entry) {
                return Err(self.undo(&entry.name, problem));
            }
        }
        self.finish()
    }

    /// Puts one new image in place.
    fn swap_in(&self, entry: &DiskSwap) -> Result<(), Problem> {
        let name = entry.name.as_str();
        // The VM had lost this disk. RENAME_NOREPLACE instead of an exchange: if another program put an image there
        // meanwhile, the call fails and that image is kept.
        let Some(old) = &entry.old else {
            return self
                .vm
                .rename_new_from(name, self.staging, name)
                .map_err(io_error("putting a disk image in place"));
        };
        self.vm
            .exchange(name, self.staging, name)
            .map_err(io_error("exchanging a disk image"))?;
        // Another program may have put a new image in place since it was looked at.
        let taken = FileStamp::of_name(self.staging, &entry.name)
            .map_err(io_error("looking at a disk image"))?;
        if taken.is_some_and(|taken| taken.is_same_content(old)) {
            return Ok(());
        }
        self.vm
            .exchange(name, self.staging, name)
            // Neither image is lost, but which one is in place is unknown now, and so is the outcome.
            .map_err(|errno| Problem::Uncertain(format!("exchanging {name} back: {errno}")))?;
        let text = public_text!(
            "Another program replaced the disk `{name}` during the restore. Shut the VM down, then try again."
        );
        Err(Problem::new(FaultKind::Busy, text))
    }

    /// Takes one new image out again.
    fn swap_out(&self, entry: &DiskSwap) -> Result<(), Problem> {
        let name = entry.name.as_str();
        let doing = io_error("putting an old disk image back");
        match &entry.old {
            Some(old) => {
                // An exchange that brings back anything but the image that was there would be worse than a disk that
                // stays new.
                let staged = FileStamp::of_name(self.staging, &entry.name).map_err(&doing)?;
                if !staged.is_some_and(|staged| staged.is_same_content(old)) {
                    let text = public_text!(
                        "The old disk image no longer exists. Restore a backup of the VM."
                    );
                    return Err(Problem::new(FaultKind::Conflict, text));
                }
                self.vm.exchange(name, self.staging, name)
            }
            // There was no image before, so none is put back: the new one only leaves the VM's folder.
            None => self.staging.rename_new_from(name, self.vm, name),
        }
        .map_err(doing)
    }

    /// Takes out every new image that is in place, and says what came of it.
    fn undo(&self, failed: &DiskName, why: Problem) -> Problem {
        // Asked of the disk, not remembered: the step that failed may have taken place before its error was reported.
        let (new, _) = self.journal.split_by_image(self.vm);
        let is_new = |entry: &&DiskSwap| new.contains(&&entry.name);
        for entry in self.journal.disks.iter().rev().filter(is_new) {
            if let Err(problem) = self.swap_out(entry) {
                // The others are still tried: each disk that is put back is one fewer that an operator has to look
                // at.
                tracing::error!(
                    disk = entry.name.as_str(),
                    ?problem,
                    "an old disk image cannot be put back"
                );
            }
        }
        // Looked at again: only what is in place now decides whether the restore is half done.
        let (new, old) = self.journal.split_by_image(self.vm);
        if new.is_empty() {
            self.record_undone();
            return undone(failed, why);
        }
        let fault = journal::half_done(&new, &old, &[]);
        Problem::HalfDone {
            fault,
            private: format!("{}: {why:?}", failed.as_str()),
        }
    }

    /// Should it not last, the next look still finds every old disk in place.
    fn record_undone(&self) {
        // Both folders before the journal: a journal that says `undone` must never reach the disk before the renames
        // it speaks of.
        let synced = self.vm.sync().and_then(|()| self.staging.sync());
        let recorded = synced
            .and_then(|()| self.vm.rename_from(JOURNAL, self.staging, UNDONE))
            .and_then(|()| self.vm.sync());
        match recorded {
            Ok(()) => match self.journal.before {
                // The half-done restore before this one stands again, with its images.
                Some(_) => remove_staging(self.vm, &self.journal.staging),
                None => remove_all_staging(self.vm),
            },
            Err(errno) => {
                tracing::warn!(%errno, "new disk images stay until the next change of the VM");
            }
        }
    }

    /// Records that every disk is new, and throws the old images away.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        let doing = |errno| io_error("ending the swap of disk images")(errno).uncertain();
        // A power cut must not find the journal of the end beside an image that is still in the other folder.
        self.vm.sync().map_err(doing)?;
        self.staging.sync().map_err(doing)?;
        self.vm
            .rename_from(JOURNAL, self.staging, DONE)
            .map_err(doing)?;
        // Lasts before the old images go: what is then found without them was recorded as done.
        self.vm.sync().map_err(doing)?;
        remove_all_staging(self.vm);
        Ok(())
    }
}

fn undone(failed: &DiskName, why: Problem) -> Problem {
    let name = failed.as_str();
    match why {
        Problem::Refused { fault, private, .. } => {
            let text = public_text!(
                "The disk `{name}` could not be replaced, and every disk of the VM is as it was before the restore. {}",
                fault.text
            );
            Problem::new(fault.kind, text).because(private)
        }
        Problem::HalfDone { .. } | Problem::Cancelled | Problem::Uncertain(_) => {
            let text = public_text!(
                "The disk `{name}` could not be replaced. Every disk of the VM is as it was before the restore; try again."
            );
            Problem::new(FaultKind::BackendFailed, text).because(format_args!("{why:?}"))
        }
    }
}

/// A half-done swap that is going to be finished: its images, in place or not, are locked.
pub(super) struct ResumedSwap {
    staging: Dir,
    locked: ReplacedImages,
}

/// Takes the locks of every image of a half-done swap.
///
/// # Errors
/// `Busy` while another program uses one of them.
pub(super) fn lock_half_done(vm: &Dir, journal: &Journal) -> Result<ResumedSwap, Problem> {
    let staging = journal.open_staging(vm)?.ok_or_else(|| {
        let text = public_text!(
            "The new disk images no longer exist. Do not start the VM; restore a backup of it."
        );
        Problem::new(FaultKind::Conflict, text)
    })?;
    let mut locked = Vec::new();
    for entry in &journal.disks {
        // Both sides, because which of the two images ends up in place is decided only after the locks are held.
        for dir in [vm, &staging] {
            if dir.stat(entry.name.as_str()).is_ok() {
                locked.push(layout::lock_disk(dir, &entry.name, ImageUse::Replace)?);
            }
        }
        // A loop device holds no lock that others can see, so it is looked for by other means.
        loop_devices::refuse_attached(vm, &entry.name, ImageUse::Replace)?;
    }
    Ok(ResumedSwap { staging, locked })
}

/// Finishes a half-done swap whose disks are exactly as they were left, once every new image, in place or not, was read and is what
/// the backup holds.
///
/// # Errors
/// `Half` while disks of two times are left.
pub(super) fn resume(
    vm: &Dir,
    journal: &Journal,
    resumed: ResumedSwap,
    job: &Job,
) -> Result<ReplacedImages, Problem> {
    // The locks are handed back and not dropped here: they last until the end of the operation is recorded.
    let ResumedSwap { staging, locked } = resumed;
    match finish_half(vm, journal, &staging, job) {
        Ok(()) => Ok(locked),
        Err(problem) => Err(match journal::half_done_fault(vm, &journal.request) {
            Ok(Some(fault)) => Problem::HalfDone {
                fault,
                private: format!("{problem:?}"),
            },
            Ok(None) | Err(_) => problem,
        }),
    }
}

fn finish_half(vm: &Dir, journal: &Journal, staging: &Dir, job: &Job) -> Result<(), Problem> {
    // Every image is read again, in place or not: between the crash and now any program may have written to it.
    let sizes = journal.disks.iter().map(|entry| entry.new.size());
    job.expect(sizes.fold(0, u64::saturating_add));
    let waiting = journal.unswapped_disks(vm)?;
    for entry in &journal.disks {
        let is_waiting = waiting.iter().any(|other| other.name == entry.name);
        let dir = if is_waiting { staging } else { vm };
        let image = layout::open_disk(dir, &entry.name)?;
        let digest = copy::hash_image(&image, entry.new.size(), job, vm.failpoints())?;
        if digest.checksum != entry.checksum {
            let text = public_text!(
                "The new image of the disk `{}` does not match the backup, so the half-done restore was not continued. Do not start the VM; restore a backup of it.",
                entry.name.as_str()
            );
            return Err(Problem::new(FaultKind::Damaged, text));
        }
    }
    // From here on a cancellation comes too late: the images are about to be exchanged.
    job.commit()?;
    // Again, now that they are locked and reading them took its time.
    if !matches!(journal.swap_state(vm)?, journal::SwapState::Half(_)) {
        let text = public_text!(
            "Another program changed a disk of the VM, so the half-done restore was not continued. Do not start the VM; restore a backup of it."
        );
        return Err(Problem::new(FaultKind::Conflict, text));
    }
    tracing::warn!(request = %journal.request, "finishing an interrupted restore");
    let swap = Swap {
        vm,
        staging,
        journal,
    };
    swap.run(&waiting)
}

/// Ends a swap of which every disk is new.
pub(super) fn record_complete(vm: &Dir, journal: &Journal) -> Result<(), Problem> {
    // All images are in place already, so this rewrites the journal instead of renaming a prepared one, and needs
    // room.
    let done = journal.in_phase(Phase::Done);
    vm.sync().map_err(io_error("syncing the folder of a VM"))?;
    vm.replace(JOURNAL, &done.to_bytes()?)?;
    remove_stale_staging(vm, None);
    Ok(())
}

/// Gives up a swap of which no disk is new.
pub(super) fn abandon(vm: &Dir, journal: &Journal) -> Result<(), Problem> {
    let doing = io_error("giving up a restore that has not begun");
    match journal.before.as_deref() {
        // The half-done restore that this one was to replace is what the disks still are, so its journal must stand
        // again.
        Some(before) => vm.replace(JOURNAL, &before.to_bytes()?)?,
        None => vm.unlink(JOURNAL).and_then(|()| vm.sync()).map_err(doing)?,
    }
    remove_stale_staging(vm, journal.before.as_deref());
    Ok(())
}

/// Whether that is the name of a staging folder.
fn is_staging(name: &str) -> bool {
    name.strip_prefix(STAGING)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn staging_names(vm: &Dir) -> Vec<String> {
    let names = vm.names().unwrap_or_default();
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    names.filter(|name| is_staging(name)).collect()
}

/// Removes the staging folders, but for that of a journal that stands, and but for any of which another process holds an image.
pub(super) fn remove_stale_staging(vm: &Dir, standing: Option<&Journal>) {
    for name in staging_names(vm) {
        let is_kept = |journal: &Journal| {
            let before = journal.before.as_deref();
            journal.staging == name || before.is_some_and(|before| before.staging == name)
        };
        if standing.is_some_and(is_kept) {
            continue;
        }
        if is_locked_elsewhere(vm, &name) {
            tracing::warn!("new disk images of a VM are in use by another process and stay");
            continue;
        }
        remove_staging(vm, &name);
    }
}

/// Removes the staging folders after a swap; we hold the locks of the images in them.
fn remove_all_staging(vm: &Dir) {
    for name in staging_names(vm) {
        remove_staging(vm, &name);
    }
}

fn remove_staging(vm: &Dir, staging: &str) {
    if let Err(errno) = vm.remove_tree(staging) {
        tracing::warn!(%errno, "disk images of no use stay until the next change of the VM");
    }
}

/// Whether another process holds a lock on any image in the folder.
fn is_locked_elsewhere(vm: &Dir, staging: &str) -> bool {
    // A folder that cannot be opened cannot be removed either; the removal then logs why.
    let Ok(staging) = vm.dir(staging) else {
        return false;
    };
    let names = staging.names().unwrap_or_default();
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    let mut images = names.filter_map(|name| DiskName::try_from(name).ok());
    images.any(|name| layout::lock_disk(&staging, &name, ImageUse::Replace).is_err())
}

/// A name for a staging folder that no other has.
pub(super) fn unused_staging_name(vm: &Dir) -> String {
    // A second restore beside a half-done one must not touch the images of the first: they may be the only copies.
    let taken = staging_names(vm);
    let mut number = 1_u32;
    let mut name = STAGING.to_owned();
    while taken.contains(&name) {
        number = number.saturating_add(1);
        name = format!("{STAGING}-{number}");
    }
    name
}
