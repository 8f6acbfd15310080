//! The two directories, and what is in them: VMs with their disks, and the backups of each VM.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Deserialize;

use crate::adapters::files::Config;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io;
use crate::adapters::files::faults::Faults;
use crate::adapters::files::lock;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::manifest::VM_JSON;
use crate::adapters::files::recall::Reading;
use crate::adapters::files::recall::Recall;
use crate::adapters::files::table::Held;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_missing;
use crate::adapters::files::tree::is_visible;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Page;
use crate::model::RunState;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Vm;
use crate::model::VmId;

const LOCK: &str = ".snapgate-lock";
/// Largest `vm.json` in bytes.
const VM_JSON_BYTES_MAX: u64 = 64 << 10;
/// The identity of a backup whose manifest cannot be read: nothing can be done to it.
const UNREADABLE: &str = "unreadable";

/// The two directories, held open; the backups are locked against other gateways.
#[derive(Debug)]
pub(super) struct Places {
    /// Directories of VMs.
    pub(super) root: Dir,
    /// Directories of backups.
    pub(super) backups: Dir,
    recall: Recall,
    _lock: File,
}

#[derive(Deserialize)]
struct VmJson {
    name: Option<String>,
    description: Option<String>,
}

/// Why the directories cannot be opened.
pub(super) enum Closed {
    /// They may be there later.
    Problem(Problem),
    /// They never will.
    Error(FilesError),
}

impl Places {
    /// Opens both directories and locks the backups.
    pub(super) fn open(config: &Config, faults: &Faults) -> Result<Self, Closed> {
        let open = |path: &Path, what: &'static str| {
            Dir::open(path, faults.clone())
                .map_err(|errno| Closed::Problem(unreached(what, path, errno)))
        };
        let root = open(&config.root, "the directory of the VMs is missing")?;
        let backups = open(&config.backups, "the directory of the backups is missing")?;
        if let (Ok(one), Ok(two)) = (config.root.canonicalize(), config.backups.canonicalize())
            && (one.starts_with(&two) || two.starts_with(&one))
        {
            return Err(Closed::Error(FilesError::Nested));
        }
        let lock = backups.lock_file(LOCK).map_err(|errno| match errno {
            Errno::NOSYS => Closed::Error(FilesError::NoOpenat2),
            other => Closed::Problem(io("opening the lock of the backups")(other)),
        })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Closed::Error(FilesError::InUse)),
            Err(errno) => return Err(Closed::Problem(io("locking the backups")(errno))),
        }
        let held = Held::new(&config.root, &root).zip(Held::new(&config.backups, &backups));
        Ok(Self {
            root,
            backups,
            recall: Recall::new(held.map(<[Held; 2]>::from), faults.clone()),
            _lock: lock,
        })
    }

    /// Whether the configured paths still lead to these very directories.
    pub(super) fn are_current(&self, config: &Config) -> bool {
        let same = |path: &Path, dir: &Dir| match (rustix::fs::stat(path), dir.stat_self()) {
            (Ok(now), Ok(then)) => now.st_dev == then.st_dev && now.st_ino == then.st_ino,
            _ => false,
        };
        same(&config.root, &self.root) && same(&config.backups, &self.backups)
    }

    /// The directory of a VM.
    pub(super) fn vm(&self, vm: &VmId) -> Result<Dir, Problem> {
        visible(&self.root, vm.as_str(), "opening the directory of a VM")?
            .ok_or_else(|| Problem::new(FaultKind::NoSuchVm, "there is no such VM"))
    }

    /// The directory of a VM's backups, once it has any.
    pub(super) fn shelf(&self, vm: &VmId) -> Result<Option<Dir>, Problem> {
        visible(&self.backups, vm.as_str(), "opening the backups of a VM")
    }

    /// What is known of a VM.
    pub(super) fn describe(&self, id: &VmId) -> Result<Vm, Problem> {
        let dir = self.vm(id)?;
        let told = dir
            .read_small(VM_JSON, VM_JSON_BYTES_MAX)
            .map_err(|errno| errno.to_string())
            .and_then(|bytes| match bytes {
                Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
                None => Ok(VmJson {
                    name: None,
                    description: None,
                }),
            })
            .unwrap_or_else(|error| {
                tracing::warn!(vm = %id, %error, "vm.json cannot be read");
                VmJson {
                    name: None,
                    description: None,
                }
            });
        let run_state = match disks(&dir) {
            Ok(names) => names.iter().any(|name| is_written(&dir, name)),
            Err(_told_when_it_matters) => false,
        };
        Ok(Vm {
            id: id.clone(),
            name: told.name.unwrap_or_else(|| id.as_str().to_owned()),
            description: told.description,
            run_state: run_state.then_some(RunState::Started),
        })
    }

    /// One page of backups.
    pub(super) fn list(&self, vm: &VmId, page: &Page) -> Result<BackupPage, Problem> {
        self.vm(vm)?;
        let Some(shelf) = self.shelf(vm)? else {
            return Ok(BackupPage::default());
        };
        let mut backups = Vec::new();
        for id in ids(&shelf)? {
            if page.after.as_ref().is_some_and(|after| id <= *after) {
                continue;
            }
            let target = Target {
                vm: vm.clone(),
                backup: id,
            };
            if let Some(backup) = shown(&shelf, &target, |_| None)? {
                backups.push(backup);
            }
            if backups.len() == page.needed() {
                break;
            }
        }
        Ok(page.of(backups))
    }

    /// One backup.
    pub(super) fn read(&self, target: &Target, now: Instant) -> Result<Backup, Problem> {
        let home = self.vm(&target.vm)?;
        let shelf = self.shelf(&target.vm)?.ok_or_else(no_such_backup)?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let begin = |dir: &Dir| {
            let reading = self.recall.begin(target, dir, now)?;
            // They were opened before anything was watched, but are looked at after that.
            let same = home.is_local()
                && is_named(&self.root, vm, &home)
                && is_named(&self.backups, vm, &shelf)
                && is_named(&shelf, id, dir);
            same.then_some(reading)
        };
        shown(&shelf, target, begin)?.ok_or_else(no_such_backup)
    }

    /// One backup, if it was read lately and nothing of it has changed since. Does not wait for a disk.
    pub(super) fn recalled(&self, target: &Target) -> Option<Backup> {
        self.recall.find(target)
    }
}

/// The refusal of something done to a backup that is not there.
pub(super) fn no_such_backup() -> Problem {
    Problem::new(FaultKind::NoSuchBackup, "the VM has no such backup")
}

fn unreached(what: &'static str, path: &Path, errno: Errno) -> Problem {
    let why = format!("opening {}: {errno}", path.display());
    if is_missing(errno) {
        Problem::new(FaultKind::Unavailable, what).because(why)
    } else {
        io("opening a configured directory")(errno).because(why)
    }
}

fn visible(parent: &Dir, name: &str, doing: &'static str) -> Result<Option<Dir>, Problem> {
    if !is_visible(name) {
        return Ok(None);
    }
    match parent.dir(name) {
        Ok(dir) => Ok(Some(dir)),
        Err(errno) if is_missing(errno) => Ok(None),
        Err(errno) => Err(io(doing)(errno)),
    }
}

/// The directory of one backup.
pub(super) fn backup_dir(shelf: &Dir, id: &BackupId) -> Result<Option<Dir>, Problem> {
    visible(shelf, id.as_str(), "opening a backup")
}

/// The ids of all backups, in order.
pub(super) fn ids(shelf: &Dir) -> Result<Vec<BackupId>, Problem> {
    let names = shelf.names().map_err(io("listing backups"))?;
    let id = |name: &CString| {
        let text = name.to_str().ok().filter(|it| is_visible(it))?;
        BackupId::new(text).ok()
    };
    Ok(names.iter().filter_map(id).collect())
}

/// The backup as callers see it, to be remembered if that was begun; `None` when there is none (any more).
fn shown<'a>(
    shelf: &Dir,
    target: &Target,
    begin: impl FnOnce(&Dir) -> Option<Reading<'a>>,
) -> Result<Option<Backup>, Problem> {
    let Some(dir) = backup_dir(shelf, &target.backup)? else {
        return Ok(None);
    };
    let reading = begin(&dir);
    let read = Manifest::read(&dir, target);
    let reading = match &read {
        Ok(manifest) => reading.and_then(|it| it.disks(&dir, manifest)),
        Err(_told_below) => None,
    };
    let whole = read.as_ref().is_ok_and(|it| it.is_whole(&dir));
    if !whole && !is_named(shelf, target.backup.as_str(), &dir) {
        // It was deleted while we looked.
        return Ok(None);
    }
    match read {
        Ok(manifest) if whole => {
            let backup = manifest.backup(BackupState::Available);
            if let Some(reading) = reading {
                reading.keep(&backup);
            }
            Ok(Some(backup))
        }
        Ok(manifest) => Ok(Some(manifest.backup(BackupState::Error))),
        Err(problem) => {
            tracing::warn!(vm = %target.vm, backup = %target.backup, problem = problem.in_full(), "damaged backup");
            Ok(Some(unreadable(target, &dir)?))
        }
    }
}

/// Whether a directory still has its name in the one above.
fn is_named(above: &Dir, name: &str, dir: &Dir) -> bool {
    match (above.stat(name), dir.stat_self()) {
        (Ok(now), Ok(then)) => now.st_ino == then.st_ino && now.st_dev == then.st_dev,
        _ => false,
    }
}

fn unreadable(target: &Target, dir: &Dir) -> Result<Backup, Problem> {
    let stat = dir.stat_self().map_err(io("looking at a backup"))?;
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let name = BackupName::new(target.backup.as_str()).map_err(|error| {
        Problem::new(FaultKind::Damaged, "the backup cannot be read").because(error)
    })?;
    Ok(Backup {
        id: target.backup.clone(),
        identity: Identity::new(UNREADABLE.to_owned()),
        name,
        description: None,
        kind: None,
        created: Timestamp::from_millis(seconds.saturating_mul(1000)),
        tags: Vec::new(),
        state: BackupState::Error,
        size: None,
        protected: false,
    })
}

/// The names of a VM's disks in order.
///
/// # Errors
/// `Conflict` when there is anything that is neither a disk nor `vm.json` nor hidden.
pub(super) fn disks(vm: &Dir) -> Result<Vec<DiskName>, Problem> {
    let strange = || {
        Problem::new(
            FaultKind::Conflict,
            "the directory of the VM holds something other than regular files",
        )
    };
    let mut disks = Vec::new();
    for name in vm.names().map_err(io("listing the disks of a VM"))? {
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        let text = name.to_str().map_err(|error| strange().because(error))?;
        if text == VM_JSON {
            continue;
        }
        let stat = vm.stat(text).map_err(io("looking at a disk of a VM"))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(strange().because(text));
        }
        let disk = DiskName::try_from(text.to_owned());
        disks.push(disk.map_err(|error| strange().because(error))?);
    }
    Ok(disks)
}

/// One disk of a VM, open for reading.
pub(super) fn open_disk(dir: &Dir, name: &DiskName) -> Result<File, Problem> {
    match dir.file(name.as_str()) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(Problem::new(
            FaultKind::Conflict,
            "a disk image is not a regular file",
        )),
        Err(errno) => Err(io("opening a disk image")(errno)),
    }
}

fn is_written(dir: &Dir, name: &DiskName) -> bool {
    open_disk(dir, name).is_ok_and(|file| lock::is_written(&file).unwrap_or(false))
}

/// Refuses a name that another backup of the VM has.
pub(super) fn refuse_taken(shelf: &Dir, target: &Target, name: &BackupName) -> Result<(), Problem> {
    for id in ids(shelf)? {
        if id == target.backup {
            continue;
        }
        let other = Target {
            vm: target.vm.clone(),
            backup: id,
        };
        let taken = backup_dir(shelf, &other.backup)?
            .and_then(|dir| Manifest::read(&dir, &other).ok())
            .is_some_and(|manifest| manifest.name == *name);
        if taken {
            return Err(Problem::new(
                FaultKind::NameTaken,
                "another backup of the VM has this name",
            ));
        }
    }
    Ok(())
}
