//! The two trees of a backend, and what is in them: VMs with their disks, backups with their copies.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use rustix::fs::FileType;
use serde::Deserialize;

use crate::adapters::files::Config;
use crate::adapters::files::OpenError;
use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::error::While;
use crate::adapters::files::error::refuse;
use crate::adapters::files::manifest;
use crate::adapters::files::manifest::DISKS_MAX;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::OWN_PREFIX;
use crate::adapters::files::tree::is_plain_name;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::Page;
use crate::model::Target;
use crate::model::Vm;
use crate::model::VmId;

/// Describes a VM; not one of its disks.
const VM_FILE: &str = "vm.json";
/// Largest description of a VM in bytes.
const VM_FILE_BYTES_MAX: u64 = 64 * 1024;
const LOCK_FILE: &str = ".snapgate-lock";
const NEW: &str = ".snapgate-new-";
const GONE: &str = ".snapgate-gone-";

/// The directory of a backup that is being made by this request.
pub(super) fn new_name(key: &str) -> String {
    format!("{NEW}{key}")
}

/// The directory of a backup that this request deleted, until its files are gone too.
pub(super) fn gone_name(key: &str) -> String {
    format!("{GONE}{key}")
}

/// The two trees of a backend.
#[derive(Debug)]
pub(super) struct Site {
    config: Config,
    backups: Dir,
    /// Held as long as the site is used: one process works on a tree of backups.
    _lock: File,
    turns: Mutex<BTreeMap<VmId, Arc<Mutex<()>>>>,
}

#[derive(Debug, Default, Deserialize)]
struct VmFile {
    name: Option<String>,
    description: Option<String>,
}

/// One thing at a time for each VM.
#[derive(Debug)]
pub(super) struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Waits for the turn; to be kept while something is changed.
    pub(super) fn wait(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    pub(super) fn open(config: Config) -> Result<Self, OpenError> {
        let path = config.backups.clone();
        let file = |source| OpenError::Folder {
            path: path.clone(),
            source,
        };
        let backups = Dir::open(&config.backups).map_err(file)?;
        let Some(lock) = backups.lock(LOCK_FILE).map_err(file)? else {
            return Err(OpenError::InUse { path });
        };
        Dir::open(&config.root).map_err(|source| OpenError::Folder {
            path: config.root.clone(),
            source,
        })?;
        Ok(Self {
            config,
            backups,
            _lock: lock,
            turns: Mutex::default(),
        })
    }

    /// The turn of a VM.
    pub(super) fn turn(&self, vm: &VmId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are forgotten, so that the map does not grow with the VMs ever named.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Turn(Arc::clone(turns.entry(vm.clone()).or_default()))
    }

    fn root(&self) -> Outcome<Dir> {
        Dir::open(&self.config.root).during("opening the root of the VMs")
    }

    /// The directory of a VM.
    pub(super) fn vm_dir(&self, vm: &VmId) -> Outcome<Dir> {
        let none = || refuse(FaultKind::NoSuchVm, "there is no such VM");
        let root = self.root()?;
        if !is_plain_name(vm.as_str()) {
            return none();
        }
        match root.dir(vm.as_str()) {
            Ok(dir) => Ok(dir),
            Err(error) if is_not_there(&error) => none(),
            Err(error) => Err(Failure::Io("opening a VM", error)),
        }
    }

    /// The VMs there are, for recovery.
    pub(super) fn vms(&self) -> Outcome<Vec<VmId>> {
        let entries = self.root()?.entries().during("listing the VMs")?;
        Ok(entries
            .into_iter()
            .filter(|(name, kind)| *kind == FileType::Directory && is_plain_name(name))
            .filter_map(|(name, _)| VmId::new(&name).ok())
            .collect())
    }

    pub(super) fn vm(&self, vm: &VmId) -> Outcome<Vm> {
        let dir = self.vm_dir(vm)?;
        let file = match dir.read_whole(VM_FILE, VM_FILE_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice::<VmFile>(&bytes).unwrap_or_default(),
            Err(error) if is_not_there(&error) => VmFile::default(),
            Err(error) => return Err(Failure::Io("reading vm.json", error)),
        };
        Ok(Vm {
            name: file.name.unwrap_or_else(|| vm.to_string()),
            description: file.description,
            id: vm.clone(),
            run_state: None,
        })
    }

    /// The disk images of a VM, by name. Refuses what only looks like one.
    pub(super) fn disks(&self, vm_dir: &Dir) -> Outcome<Vec<String>> {
        let mut disks = Vec::new();
        for (name, kind) in vm_dir.entries().during("listing the disks of a VM")? {
            if kind == FileType::Directory || name == VM_FILE || !is_plain_name(&name) {
                continue;
            }
            if kind != FileType::RegularFile {
                return refuse(
                    FaultKind::Conflict,
                    "the VM has a disk that is not a regular file; only image files can be backed up",
                );
            }
            disks.push(name);
        }
        if disks.len() > DISKS_MAX {
            return refuse(
                FaultKind::Unsupported,
                "the VM has more disks than can be backed up",
            );
        }
        Ok(disks)
    }

    /// Where the backups of a VM are, if it has any.
    pub(super) fn backups_of(&self, vm: &VmId) -> Outcome<Option<Dir>> {
        match self.backups.dir(vm.as_str()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if is_not_there(&error) => Ok(None),
            Err(error) => Err(Failure::Io("opening the backups of a VM", error)),
        }
    }

    /// The same, made if there is none.
    pub(super) fn backups_of_or_new(&self, vm: &VmId) -> Outcome<Dir> {
        self.backups
            .dir_or_new(vm.as_str())
            .during("making a place for backups")
    }

    /// The directory of a backup, whole or broken.
    pub(super) fn backup_dir(&self, target: &Target) -> Outcome<Dir> {
        let none = || refuse(FaultKind::NoSuchBackup, "the VM has no such backup");
        self.vm_dir(&target.vm)?;
        if !is_plain_name(target.backup.as_str()) {
            return none();
        }
        let Some(backups) = self.backups_of(&target.vm)? else {
            return none();
        };
        match backups.dir(target.backup.as_str()) {
            Ok(dir) => Ok(dir),
            Err(error) if is_not_there(&error) => none(),
            Err(error) => Err(Failure::Io("opening a backup", error)),
        }
    }

    /// The manifest of the very backup that the caller was shown.
    pub(super) fn shown(&self, intent: &Intent) -> Outcome<(Dir, Manifest)> {
        let dir = self.backup_dir(&intent.target)?;
        let Some(manifest) = Manifest::read(&dir)? else {
            return refuse(
                FaultKind::Damaged,
                "the description of the backup is missing",
            );
        };
        if intent.identity.as_ref() != Some(&manifest.identity()) {
            return refuse(
                FaultKind::NoSuchBackup,
                "the backup was replaced by another one of the same id",
            );
        }
        Ok((dir, manifest))
    }

    pub(super) fn read(&self, target: &Target) -> Outcome<Backup> {
        let dir = self.backup_dir(target)?;
        match seen(&dir, &target.backup) {
            Some(backup) => Ok(backup),
            None => refuse(FaultKind::NoSuchBackup, "the VM has no such backup"),
        }
    }

    pub(super) fn list(&self, vm: &VmId, page: &Page) -> Outcome<BackupPage> {
        self.vm_dir(vm)?;
        let Some(backups) = self.backups_of(vm)? else {
            return Ok(BackupPage::default());
        };
        let mut ids = ids(&backups)?;
        if let Some(after) = &page.after {
            ids.retain(|id| id.as_str().as_bytes() > after.as_str().as_bytes());
        }
        let limit = usize::from(page.limit);
        let more = ids.len() > limit;
        ids.truncate(limit);
        let read = |id: &BackupId| backups.dir(id.as_str()).ok().and_then(|dir| seen(&dir, id));
        Ok(BackupPage {
            backups: ids.iter().filter_map(read).collect(),
            more,
        })
    }

    /// Refuses a name that another backup of the VM has.
    pub(super) fn check_name(&self, target: &Target, name: &str) -> Outcome<()> {
        let Some(backups) = self.backups_of(&target.vm)? else {
            return Ok(());
        };
        for id in ids(&backups)? {
            if id == target.backup {
                continue;
            }
            let other = backups.dir(id.as_str()).ok();
            let manifest = other.and_then(|dir| Manifest::read(&dir).ok().flatten());
            if manifest.is_some_and(|it| it.name.as_str() == name) {
                return refuse(
                    FaultKind::NameTaken,
                    "another backup of the VM has that name",
                );
            }
        }
        Ok(())
    }

    /// Removes what an earlier process left half done among the backups of a VM.
    pub(super) fn tidy(&self, vm: &VmId) -> Outcome<()> {
        let Some(backups) = self.backups_of(vm)? else {
            return Ok(());
        };
        for (name, _) in backups.entries().during("listing backups")? {
            if name.starts_with(NEW) || name.starts_with(GONE) {
                backups
                    .remove_all(&name)
                    .during("removing what was left over")?;
            }
        }
        Ok(())
    }
}

/// What callers see of a backup: whole, or broken, or nothing while it is not there.
fn seen(dir: &Dir, id: &BackupId) -> Option<Backup> {
    match Manifest::read(dir) {
        Ok(Some(manifest)) => Some(manifest.backup(id.clone())),
        Ok(None) => manifest::broken(id.clone()),
        Err(failure) => {
            tracing::warn!(backup = %id, private = failure.private(), "backup cannot be read");
            manifest::broken(id.clone())
        }
    }
}

/// The identity by which a backup in this directory goes.
pub(super) fn identity_of(dir: &Dir) -> Identity {
    match Manifest::read(dir) {
        Ok(Some(manifest)) => manifest.identity(),
        Ok(None) | Err(_) => Identity::new("broken".to_owned()),
    }
}

fn ids(backups: &Dir) -> Outcome<Vec<BackupId>> {
    let entries = backups.entries().during("listing backups")?;
    Ok(entries
        .into_iter()
        .filter(|(name, kind)| *kind == FileType::Directory && !name.starts_with(OWN_PREFIX))
        .filter(|(name, _)| is_plain_name(name))
        .filter_map(|(name, _)| BackupId::new(&name).ok())
        .collect())
}

/// Whether the error says that there is no such thing, or a thing that is not to be followed.
fn is_not_there(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let not_followed = [Errno::LOOP, Errno::NOTDIR, Errno::XDEV];
    error.kind() == io::ErrorKind::NotFound
        || error
            .raw_os_error()
            .is_some_and(|code| not_followed.iter().any(|it| it.raw_os_error() == code))
}
