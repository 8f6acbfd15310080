//! The swap of a VM's disk images: every one is exchanged, or every one that was is exchanged back.
//!
//! The old images stay in the staging folder until all is done, so each step can be undone. Whatever is needed to record the
//! end, either way, was written before the first step: the end needs no room.

use crate::adapters::files::copy;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::journal;
use crate::adapters::files::journal::Entry;
use crate::adapters::files::journal::JOURNAL;
use crate::adapters::files::journal::Journal;
use crate::adapters::files::journal::Phase;
use crate::adapters::files::journal::STAGING;
use crate::adapters::files::lock::Use;
use crate::adapters::files::loops;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::places;
use crate::adapters::files::stamp::Stamp;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::work::Replaced;
use crate::model::FaultKind;

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
    journal::prepared(staging, DONE, &journal.in_phase(Phase::Done))?;
    journal::prepared(staging, UNDONE, &journal.undone())
}

impl Swap<'_> {
    /// Exchanges these disks, or undoes the whole swap.
    ///
    /// # Errors
    /// `Refused` when all disks are as they were; `Half` when they are not; `Unsure` when they are new but may not outlive a
    /// power cut.
    pub(super) fn run(&self, entries: &[&Entry]) -> Result<(), Problem> {
        for entry in entries {
            if let Err(problem) = self.place(entry) {
                return Err(self.undo(&entry.name, problem));
            }
        }
        self.finish()
    }

    /// Puts one new image in place.
    fn place(&self, entry: &Entry) -> Result<(), Problem> {
        let name = entry.name.as_str();
        let Some(old) = &entry.old else {
            return self
                .vm
                .take_free(name, self.staging, name)
                .map_err(io("putting a disk image in place"));
        };
        self.vm
            .exchange(name, self.staging, name)
            .map_err(io("exchanging a disk image"))?;
        // Another program may have put a new image in place since it was looked at.
        let taken = Stamp::at(self.staging, &entry.name).map_err(io("looking at a disk image"))?;
        if taken.is_some_and(|taken| taken.is_renamed(old)) {
            return Ok(());
        }
        self.vm
            .exchange(name, self.staging, name)
            .map_err(|errno| Problem::Unsure(format!("exchanging {name} back: {errno}")))?;
        let text = format!("the disk `{name}` was replaced by another program during the restore");
        Err(Problem::new(FaultKind::Busy, text))
    }

    /// Takes one new image out again.
    fn take_back(&self, entry: &Entry) -> Result<(), Problem> {
        let name = entry.name.as_str();
        let doing = io("putting an old disk image back");
        match &entry.old {
            Some(old) => {
                let staged = Stamp::at(self.staging, &entry.name).map_err(&doing)?;
                if !staged.is_some_and(|staged| staged.is_renamed(old)) {
                    let text = "the old disk image is no longer there";
                    return Err(Problem::new(FaultKind::Conflict, text));
                }
                self.vm.exchange(name, self.staging, name)
            }
            None => self.staging.take_free(name, self.vm, name),
        }
        .map_err(doing)
    }

    /// Takes out every new image that is in place, and says what came of it.
    fn undo(&self, failed: &DiskName, why: Problem) -> Problem {
        let (new, _) = self.journal.split(self.vm);
        let is_new = |entry: &&Entry| new.contains(&&entry.name);
        for entry in self.journal.disks.iter().rev().filter(is_new) {
            if let Err(problem) = self.take_back(entry) {
                tracing::error!(
                    disk = entry.name.as_str(),
                    ?problem,
                    "an old disk image cannot be put back"
                );
            }
        }
        let (new, old) = self.journal.split(self.vm);
        if new.is_empty() {
            self.record_undone();
            return undone(failed, why);
        }
        let fault = journal::half(&new, &old, &[]);
        Problem::Half {
            fault,
            private: format!("{}: {why:?}", failed.as_str()),
        }
    }

    /// Should it not last, the next look still finds every old disk in place.
    fn record_undone(&self) {
        let synced = self.vm.sync().and_then(|()| self.staging.sync());
        let recorded = synced
            .and_then(|()| self.vm.take(JOURNAL, self.staging, UNDONE))
            .and_then(|()| self.vm.sync());
        match recorded {
            Ok(()) => match self.journal.before {
                // The half-done restore before this one stands again, with its images.
                Some(_) => remove(self.vm, &self.journal.staging),
                None => sweep_own(self.vm),
            },
            Err(errno) => {
                tracing::warn!(%errno, "new disk images stay until the next change of the VM");
            }
        }
    }

    /// Records that every disk is new, and throws the old images away.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        let doing = |errno| io("ending the swap of disk images")(errno).unsure();
        self.vm.sync().map_err(doing)?;
        self.staging.sync().map_err(doing)?;
        self.vm.take(JOURNAL, self.staging, DONE).map_err(doing)?;
        // Lasts before the old images go: what is then found without them was recorded as done.
        self.vm.sync().map_err(doing)?;
        sweep_own(self.vm);
        Ok(())
    }
}

fn undone(failed: &DiskName, why: Problem) -> Problem {
    let name = failed.as_str();
    match why {
        Problem::Refused { fault, private, .. } => {
            let text = format!(
                "The disk `{name}` could not be replaced ({}). Every disk of the VM is as it was before the restore.",
                fault.text
            );
            Problem::new(fault.kind, text).because(private)
        }
        Problem::Half { .. } | Problem::Cancelled | Problem::Unsure(_) => {
            let text = format!(
                "The disk `{name}` could not be replaced. Every disk of the VM is as it was before the restore."
            );
            Problem::new(FaultKind::BackendFailed, text).because(format_args!("{why:?}"))
        }
    }
}

/// A half-done swap that is going to be finished: its images, in place or not, are locked.
pub(super) struct Resumed {
    staging: Dir,
    locked: Replaced,
}

/// Takes the locks of every image of a half-done swap.
///
/// # Errors
/// `Busy` while another program uses one of them.
pub(super) fn take_up(vm: &Dir, journal: &Journal) -> Result<Resumed, Problem> {
    let staging = journal.staging_of(vm)?.ok_or_else(|| {
        let text = "the new disk images are no longer there";
        Problem::new(FaultKind::Conflict, text)
    })?;
    let mut locked = Vec::new();
    for entry in &journal.disks {
        for dir in [vm, &staging] {
            if dir.stat(entry.name.as_str()).is_ok() {
                locked.push(places::lock_disk(dir, &entry.name, Use::Replace)?);
            }
        }
        loops::refuse(vm, &entry.name, Use::Replace)?;
    }
    Ok(Resumed { staging, locked })
}

/// Finishes a half-done swap whose disks are exactly as they were left, once every new image, in place or not, was read and is what
/// the backup holds.
///
/// # Errors
/// `Half` while disks of two times are left.
pub(super) fn resume(
    vm: &Dir,
    journal: &Journal,
    resumed: Resumed,
    job: &Job,
) -> Result<Replaced, Problem> {
    let Resumed { staging, locked } = resumed;
    match finish_half(vm, journal, &staging, job) {
        Ok(()) => Ok(locked),
        Err(problem) => Err(match journal::left_half(vm, &journal.request) {
            Ok(Some(fault)) => Problem::Half {
                fault,
                private: format!("{problem:?}"),
            },
            Ok(None) | Err(_) => problem,
        }),
    }
}

fn finish_half(vm: &Dir, journal: &Journal, staging: &Dir, job: &Job) -> Result<(), Problem> {
    let sizes = journal.disks.iter().map(|entry| entry.new.size());
    job.expect(sizes.fold(0, u64::saturating_add));
    let waiting = journal.waiting(vm)?;
    for entry in &journal.disks {
        let is_waiting = waiting.iter().any(|other| other.name == entry.name);
        let dir = if is_waiting { staging } else { vm };
        let image = places::open_disk(dir, &entry.name)?;
        let digest = copy::digest(&image, entry.new.size(), job, vm.faults())?;
        if digest.checksum != entry.checksum {
            let text = format!(
                "the new image of the disk `{}` does not match the backup; the half-done restore was not continued",
                entry.name.as_str()
            );
            return Err(Problem::new(FaultKind::Damaged, text));
        }
    }
    job.commit()?;
    // Again, now that they are locked and reading them took its time.
    if !matches!(journal.standing(vm)?, journal::Standing::Half(_)) {
        let text = "a disk of the VM was changed by another program; the half-done restore was not continued";
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
pub(super) fn complete(vm: &Dir, journal: &Journal) -> Result<(), Problem> {
    let done = journal.in_phase(Phase::Done);
    vm.sync().map_err(io("syncing the folder of a VM"))?;
    vm.replace(JOURNAL, &done.to_bytes()?)?;
    sweep_left(vm, None);
    Ok(())
}

/// Gives up a swap of which no disk is new.
pub(super) fn discard(vm: &Dir, journal: &Journal) -> Result<(), Problem> {
    let doing = io("giving up a restore that has not begun");
    match journal.before.as_deref() {
        Some(before) => vm.replace(JOURNAL, &before.to_bytes()?)?,
        None => vm.unlink(JOURNAL).and_then(|()| vm.sync()).map_err(doing)?,
    }
    sweep_left(vm, journal.before.as_deref());
    Ok(())
}

/// Whether that is the name of a staging folder.
fn is_staging(name: &str) -> bool {
    name.strip_prefix(STAGING)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn stagings(vm: &Dir) -> Vec<String> {
    let names = vm.names().unwrap_or_default();
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    names.filter(|name| is_staging(name)).collect()
}

/// Removes the staging folders, but for that of a journal that stands, and but for any of which another process holds an image.
pub(super) fn sweep_left(vm: &Dir, standing: Option<&Journal>) {
    for name in stagings(vm) {
        let is_kept = |journal: &Journal| {
            let before = journal.before.as_deref();
            journal.staging == name || before.is_some_and(|before| before.staging == name)
        };
        if standing.is_some_and(is_kept) {
            continue;
        }
        if is_held(vm, &name) {
            tracing::warn!("new disk images of a VM are in use by another process and stay");
            continue;
        }
        remove(vm, &name);
    }
}

/// Removes the staging folders after a swap; we hold the locks of the images in them.
fn sweep_own(vm: &Dir) {
    for name in stagings(vm) {
        remove(vm, &name);
    }
}

fn remove(vm: &Dir, staging: &str) {
    if let Err(errno) = vm.remove_tree(staging) {
        tracing::warn!(%errno, "disk images of no use stay until the next change of the VM");
    }
}

/// Whether another process holds a lock on any image in the folder.
fn is_held(vm: &Dir, staging: &str) -> bool {
    let Ok(staging) = vm.dir(staging) else {
        return false;
    };
    let names = staging.names().unwrap_or_default();
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    let mut images = names.filter_map(|name| DiskName::try_from(name).ok());
    images.any(|name| places::lock_disk(&staging, &name, Use::Replace).is_err())
}

/// A name for a staging folder that no other has.
pub(super) fn free_staging(vm: &Dir) -> String {
    let taken = stagings(vm);
    let mut number = 1_u32;
    let mut name = STAGING.to_owned();
    while taken.contains(&name) {
        number = number.saturating_add(1);
        name = format!("{STAGING}-{number}");
    }
    name
}
