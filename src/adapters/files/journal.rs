//! The journal of a restore's swap: what was in place, what is to be, and how far that came.

use std::fs::File;

use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::file_stamp::FileStamp;
use crate::adapters::files::manifest::DiskName;
use crate::model::BackupId;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::public_text;

/// The journal, and afterwards the proof of which request restored the VM last.
pub(super) const JOURNAL: &str = ".snapgate-restore.json";
/// The new images before the swap, the old ones after it. A second restore beside a half-done one takes a numbered name.
pub(super) const STAGING: &str = ".snapgate-staging";
/// The version written. Version 1 recorded names only: a swap that it left half done can be seen, and not be finished.
const FORMAT: u32 = 2;
const BYTES_MAX: u64 = 4 << 20;

/// How far a restore came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// The images are being swapped.
    Swap,
    /// All were swapped.
    Done,
    /// All were swapped back.
    Undone,
}

/// One disk of the swap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DiskSwap {
    /// Its name.
    pub(super) name: DiskName,
    /// What was in place; `None` when the VM had lost it.
    pub(super) old: Option<FileStamp>,
    /// What is to be in place, as it was before its rename.
    pub(super) new: FileStamp,
    /// Of the new image.
    pub(super) checksum: String,
}

/// The journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    format: u32,
    /// How far it came.
    pub(super) phase: Phase,
    /// The request that it belongs to.
    pub(super) request: String,
    backup: BackupId,
    /// The file system of the VM's folder when this was written.
    #[serde(default)]
    device: u64,
    /// The folder with the images that are not in place.
    #[serde(default)]
    pub(super) staging: String,
    /// Every disk.
    #[serde(default)]
    pub(super) disks: Vec<DiskSwap>,
    /// A half-done restore that this one replaces, and which stands again if this one is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Box<Self>>,
}

/// What version 1 wrote.
#[derive(Deserialize)]
struct Version1 {
    phase: Phase,
    request: String,
    backup: BackupId,
    disks: Vec<DiskName>,
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// How one disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskState {
    /// The very image that was in place still is, and the new one is ready.
    Waiting,
    /// The new image is ready, but what is in place was changed or replaced.
    WaitingChanged,
    /// The new image is in place.
    Swapped,
    /// The new image is in place and was written to.
    SwappedChanged,
    /// Neither the new image nor a place for it is there.
    Lost,
}

/// How the VM's disks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SwapState {
    /// No swap has begun and not ended.
    Clear,
    /// No disk is swapped.
    Untouched {
        /// Whether a disk in place was changed or replaced since.
        changed: bool,
    },
    /// Every disk is swapped.
    Complete,
    /// Some are swapped, and the others can be.
    Half(Fault),
    /// Some are swapped, and it can no longer be finished or undone safely.
    Broken(Fault),
}

fn damaged() -> Problem {
    let text = public_text!(
        "The journal of the VM's last restore is unreadable, so the disks may be of two different backups; nothing was changed. \
         Check the disks, then remove the journal from the VM's directory."
    );
    Problem::new(FaultKind::Damaged, text)
}

impl Journal {
    /// A swap that is about to begin.
    pub(super) fn new(
        vm: &Dir,
        request: &str,
        backup: &BackupId,
        staging: &str,
        before: Option<Self>,
    ) -> Result<Self, Errno> {
        Ok(Self {
            format: FORMAT,
            phase: Phase::Swap,
            request: request.to_owned(),
            backup: backup.clone(),
            device: vm.stat_self()?.st_dev,
            staging: staging.to_owned(),
            disks: Vec::new(),
            // One level only: a chain of half-done restores would grow the journal without bound, and only the newest
            // can stand again.
            before: before.map(|journal| {
                Box::new(Self {
                    before: None,
                    ..journal
                })
            }),
        })
    }

    /// The journal of a VM.
    ///
    /// # Errors
    /// `Damaged` when it cannot be read.
    pub(super) fn read(vm: &Dir) -> Result<Option<Self>, Problem> {
        let read = vm.read_small(JOURNAL, BYTES_MAX);
        // No journal and an unreadable one differ: the first means that nothing was begun, the second that nothing
        // may be touched.
        let Some(bytes) = read.map_err(|errno| damaged().because(errno))? else {
            return Ok(None);
        };
        let unreadable = |error: serde_json::Error| damaged().because(error);
        // The number first, alone: the members of another format may have another meaning.
        let version: Version = serde_json::from_slice(&bytes).map_err(unreadable)?;
        match version.format {
            1 => {
                let old: Version1 = serde_json::from_slice(&bytes).map_err(unreadable)?;
                Self::of_version_1(vm, old).map(Some)
            }
            FORMAT => {
                let journal: Self = serde_json::from_slice(&bytes).map_err(unreadable)?;
                let now = vm
                    .stat_self()
                    .map_err(io_error("looking at the folder of a VM"))?;
                // Device numbers may change with every boot, and the stamps in the journal contain them.
                Ok(Some(journal.with_device(now.st_dev)))
            }
            // A newer gateway was here before. Guessing at its journal could give up a swap that is half done.
            _ => Err(damaged().because("written by another version")),
        }
    }

    fn of_version_1(vm: &Dir, old: Version1) -> Result<Self, Problem> {
        let doing = io_error("looking at the folder of a VM");
        let nothing = FileStamp::new(&vm.stat_self().map_err(&doing)?);
        let mut journal = Self::new(vm, &old.request, &old.backup, STAGING, None).map_err(doing)?;
        journal.phase = old.phase;
        journal.disks = old
            .disks
            .into_iter()
            .map(|name| DiskSwap {
                name,
                old: None,
                // No image is the folder itself, so none is found to be this one.
                new: nothing,
                checksum: String::new(),
            })
            .collect();
        journal.format = 1;
        Ok(journal)
    }

    fn with_device(mut self, to: u64) -> Self {
        let from = self.device;
        for entry in &mut self.disks {
            entry.new = entry.new.with_device(from, to);
            entry.old = entry.old.map(|old| old.with_device(from, to));
        }
        self.device = to;
        self.before = self.before.map(|before| Box::new(before.with_device(to)));
        self
    }

    /// The text that is stored.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Problem> {
        serde_json::to_vec_pretty(self).map_err(|error| {
            let text = public_text!("The journal of the restore could not be written, so nothing was changed. Try again.");
            Problem::new(FaultKind::BackendFailed, text).because(error)
        })
    }

    /// The same in another phase.
    pub(super) fn in_phase(&self, phase: Phase) -> Self {
        Self {
            phase,
            disks: Vec::new(),
            before: None,
            ..self.clone()
        }
    }

    /// What is to stand there when this one was undone.
    pub(super) fn undone(&self) -> Self {
        match &self.before {
            Some(before) => Self::clone(before),
            None => self.in_phase(Phase::Undone),
        }
    }

    /// The folder of the images that are not in place; `None` when it is gone.
    pub(super) fn open_staging(&self, vm: &Dir) -> Result<Option<Dir>, Problem> {
        // A staging folder that is gone is an answer; one that cannot be opened is not, and must not pass for the
        // first.
        match vm.dir(&self.staging) {
            Ok(staging) => Ok(Some(staging)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(io_error("opening the folder of new disk images")(errno)),
        }
    }

    /// How the disks are. Changes nothing.
    pub(super) fn swap_state(&self, vm: &Dir) -> Result<SwapState, Problem> {
        // Done or undone: whatever happened to the disks afterwards is no business of this journal.
        if self.phase != Phase::Swap {
            return Ok(SwapState::Clear);
        }
        let staging = self.open_staging(vm)?;
        let mut states = Vec::new();
        for entry in &self.disks {
            let state = self.state(vm, staging.as_ref(), entry);
            states.push((
                &entry.name,
                state.map_err(io_error("looking at disk images"))?,
            ));
        }
        Ok(swap_state_of(&states))
    }

    fn state(&self, vm: &Dir, staging: Option<&Dir>, entry: &DiskSwap) -> Result<DiskState, Errno> {
        let in_place = FileStamp::of_name(vm, &entry.name)?;
        let staged = match staging {
            Some(staging) => FileStamp::of_name(staging, &entry.name)?,
            None => None,
        };
        if self.format == 1 {
            // A new image was renamed over its predecessor: what is no longer staged is in place.
            return Ok(match staged {
                Some(_) => DiskState::WaitingChanged,
                None => DiskState::SwappedChanged,
            });
        }
        // The three looks differ on purpose: a rename changes the time of change, so only a staged image can match
        // the stamp wholly.
        let is_ready = staged.is_some_and(|stamp| stamp == entry.new);
        let is_in_place = in_place.is_some_and(|stamp| stamp.is_same_file(&entry.new));
        let is_as_left = in_place.is_some_and(|stamp| stamp.is_same_content(&entry.new));
        Ok(match (is_ready, is_in_place) {
            // Whole stamps on both sides: only a pair that nothing has touched may still be exchanged.
            (true, _) if in_place == entry.old => DiskState::Waiting,
            (_, true) if is_as_left => DiskState::Swapped,
            (_, true) => DiskState::SwappedChanged,
            _ if staged.is_some_and(|stamp| stamp.is_same_file(&entry.new)) => {
                DiskState::WaitingChanged
            }
            _ => DiskState::Lost,
        })
    }

    /// The disks that are not swapped yet.
    pub(super) fn unswapped_disks(&self, vm: &Dir) -> Result<Vec<&DiskSwap>, Problem> {
        let staging = self.open_staging(vm)?;
        let mut unswapped_disks = Vec::new();
        for entry in &self.disks {
            match self.state(vm, staging.as_ref(), entry) {
                Ok(DiskState::Swapped) => {}
                Ok(
                    DiskState::Waiting
                    | DiskState::WaitingChanged
                    | DiskState::SwappedChanged
                    | DiskState::Lost,
                ) => unswapped_disks.push(entry),
                Err(errno) => return Err(io_error("looking at disk images")(errno)),
            }
        }
        Ok(unswapped_disks)
    }

    /// The names of the disks whose new image is in place, and of the others. Changes nothing.
    pub(super) fn split_by_image(&self, vm: &Dir) -> (Vec<&DiskName>, Vec<&DiskName>) {
        let names = self.disks.iter().map(|entry| (&entry.name, entry));
        let is_new = |entry: &DiskSwap| {
            let in_place = FileStamp::of_name(vm, &entry.name).ok().flatten();
            in_place.is_some_and(|stamp| stamp.is_same_file(&entry.new))
        };
        let (new, old): (Vec<_>, Vec<_>) = names.partition(|(_, entry)| is_new(entry));
        let names = |pairs: Vec<(_, _)>| pairs.into_iter().map(|(name, _)| name).collect();
        (names(new), names(old))
    }
}

/// Whether any restore of the VM is half done. Changes nothing.
pub(super) fn is_half_done(vm: &Dir) -> Result<bool, Problem> {
    let Some(journal) = Journal::read(vm)? else {
        return Ok(false);
    };
    Ok(match journal.swap_state(vm)? {
        SwapState::Half(_) | SwapState::Broken(_) => true,
        SwapState::Clear | SwapState::Untouched { .. } | SwapState::Complete => false,
    })
}

/// What the request has left half done, if it has.
pub(super) fn half_done_fault(vm: &Dir, request: &str) -> Result<Option<Fault>, Problem> {
    let Some(journal) = Journal::read(vm)?.filter(|journal| journal.request == request) else {
        return Ok(None);
    };
    Ok(match journal.swap_state(vm)? {
        SwapState::Half(fault) | SwapState::Broken(fault) => Some(fault),
        SwapState::Clear | SwapState::Untouched { .. } | SwapState::Complete => None,
    })
}

/// Makes a small file last, from which the journal is made later by a rename alone.
pub(super) fn write_synced(dir: &Dir, name: &str, journal: &Journal) -> Result<(), Problem> {
    let doing = io_error("writing the journal of a restore");
    let text = journal.to_bytes()?;
    // Only the contents are synced here. The caller syncs the folder once for all that it wrote.
    let file: File = dir.write_new(name, &text).map_err(&doing)?;
    dir.sync_file(&file).map_err(&doing)
}

fn swap_state_of(states: &[(&DiskName, DiskState)]) -> SwapState {
    let with = |wanted: &[DiskState]| {
        let chosen = states.iter().filter(|(_, state)| wanted.contains(state));
        chosen.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let new = with(&[DiskState::Swapped, DiskState::SwappedChanged]);
    let old = with(&[DiskState::Waiting]);
    let unswapped_disks = with(&[DiskState::Waiting, DiskState::WaitingChanged]);
    let changed = with(&[DiskState::WaitingChanged, DiskState::SwappedChanged]);
    let lost = with(&[DiskState::Lost]);
    if unswapped_disks.len() == states.len() {
        SwapState::Untouched {
            changed: !changed.is_empty(),
        }
    } else if new.len() == states.len() {
        SwapState::Complete
    } else if changed.is_empty() && lost.is_empty() {
        SwapState::Half(half_done(&new, &old, &[]))
    } else {
        // A disk that another program changed is named as such alone, although its new image may be in place: nothing
        // is claimed about it.
        let unsure: Vec<_> = changed.into_iter().chain(lost).collect();
        let is_sure = |name: &&DiskName| !unsure.contains(name);
        let new: Vec<_> = new.into_iter().filter(is_sure).collect();
        SwapState::Broken(half_done(&new, &old, &unsure))
    }
}

fn quoted_list(names: &[&DiskName]) -> String {
    let names = names.iter().map(|name| format!("`{}`", name.as_str()));
    names.collect::<Vec<_>>().join(", ")
}

/// What a caller is shown of disks of two times.
pub(super) fn half_done(new: &[&DiskName], old: &[&DiskName], unsure: &[&DiskName]) -> Fault {
    let mut parts = Vec::new();
    let groups = [
        (new, "restored"),
        (old, "not restored"),
        (unsure, "changed or moved since by another program"),
    ];
    for (names, what) in groups {
        if !names.is_empty() {
            parts.push(format!("{what}: {}", quoted_list(names)));
        }
    }
    let text = public_text!(
        "A restore of the VM is half done ({}). Do not start the VM; restore a backup of it again.",
        parts.join("; ")
    );
    Fault::new(FaultKind::Conflict, text)
}
