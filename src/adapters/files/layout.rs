//! The two directories, and what is in them: VMs with their disks, and the backups of each VM.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Deserialize;

use crate::adapters::files::Config;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::LOST_AND_FOUND;
use crate::adapters::files::dir_fd::is_missing;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::folder_marks;
use crate::adapters::files::folder_marks::LOCK;
use crate::adapters::files::folder_marks::Role;
use crate::adapters::files::folder_marks::UnmarkedFolders;
use crate::adapters::files::image_lock;
use crate::adapters::files::image_lock::ImageUse;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::manifest::VM_JSON;
use crate::adapters::files::mounts;
use crate::adapters::files::read_cache::ReadCache;
use crate::adapters::files::read_cache::Reading;
use crate::adapters::files::vm_indexes::VmIndexes;
use crate::adapters::files::watch_table::WatchedRoot;
use crate::adapters::files::watched_vm::WatchedVm;
use crate::adapters::files::watched_vm::list_tombstones;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Page;
use crate::model::PublicText;
use crate::model::RunState;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;

/// The name of a backup while it is made; hidden, and at most one per VM.
pub(super) const UNFINISHED: &str = ".snapgate-new";
/// Largest `vm.json` in bytes.
const VM_JSON_BYTES_MAX: u64 = 64 << 10;
/// The identity of a backup whose manifest cannot be read: nothing can be done to it.
const UNREADABLE: &str = "unreadable";

/// The two directories, watched_roots open and locked against other gateways.
#[derive(Debug)]
pub(super) struct Layout {
    /// Directories of VMs.
    pub(super) root: Dir,
    /// Directories of backups.
    pub(super) backups: Dir,
    config: Config,
    read_cache: ReadCache,
    indexes: VmIndexes,
    _lock: File,
}

#[derive(Deserialize)]
struct VmJson {
    name: Option<String>,
    description: Option<String>,
}

/// Why the directories cannot be opened.
pub(super) enum OpenError {
    /// They may be there later.
    Unavailable(Problem),
    /// They never will.
    Fatal(FilesError),
}

impl Layout {
    /// Opens both directories, locks them and checks their marks.
    pub(super) fn open(
        config: &Config,
        take: UnmarkedFolders,
        failpoints: &Failpoints,
    ) -> Result<Self, OpenError> {
        let open = |path: &Path, missing: PublicText| {
            Dir::open(path, failpoints.clone())
                .map_err(|errno| OpenError::Unavailable(open_failure(missing, path, errno)))
        };
        let root = open(
            &config.root,
            public_text!(
                "The directory in `root` does not exist. Mount its file system, or create it."
            ),
        )?;
        let backups = open(
            &config.backups,
            public_text!(
                "The directory in `backups` does not exist. Mount its file system, or create it."
            ),
        )?;
        if let (Ok(one), Ok(two)) = (config.root.canonicalize(), config.backups.canonicalize())
            && (one.starts_with(&two) || two.starts_with(&one))
        {
            return Err(OpenError::Fatal(FilesError::Nested));
        }
        lock_folder(&root, Role::Root)?;
        lock_folder(&backups, Role::Backups)?;
        folder_marks::check(&root, &backups, take).map_err(OpenError::Unavailable)?;
        let lock = lock_backups(&backups)?;
        let watched_roots =
            WatchedRoot::new(&config.root, &root).zip(WatchedRoot::new(&config.backups, &backups));
        Ok(Self {
            root,
            backups,
            config: config.clone(),
            read_cache: ReadCache::new(
                watched_roots.map(<[WatchedRoot; 2]>::from),
                failpoints.clone(),
            ),
            indexes: VmIndexes::new(failpoints.clone()),
            _lock: lock,
        })
    }

    /// Refuses when a configured path leads to another folder than the one that was opened: what would be read there is not what
    /// was there, and what would be written might vanish under the next mount.
    pub(super) fn refuse_replaced(&self) -> Result<(), Problem> {
        let folders = [
            (&self.config.root, &self.root, Role::Root),
            (&self.config.backups, &self.backups, Role::Backups),
        ];
        for (path, dir, role) in folders {
            let found = rustix::fs::stat(path);
            let is_same = match (&found, dir.stat_self()) {
                (Ok(now), Ok(then)) => now.st_dev == then.st_dev && now.st_ino == then.st_ino,
                _ => false,
            };
            if !is_same {
                let text = public_text!(
                    "The directory in `{}` is not the one that the gateway opened at its start: it was unmounted, moved or replaced. Put it back, or restart the gateway to use the new one.",
                    role.key()
                );
                let problem = Problem::new(FaultKind::Unavailable, text);
                let path = path.display();
                return Err(match found {
                    Ok(_) => problem.because(format!("{path} is another folder now")),
                    Err(errno) => problem.because(format!("opening {path}: {errno}")),
                });
            }
        }
        Ok(())
    }

    /// The directory of a VM.
    pub(super) fn vm_dir(&self, vm: &VmId) -> Result<Dir, Problem> {
        let found = open_visible(&self.root, vm.as_str(), "opening the directory of a VM")?;
        // An empty mount point looks like a VM without disks. Restoring into it would fill the file system below.
        mounts::refuse_unmounted(&self.backups, Role::Root, vm.as_str(), found.as_ref())?;
        found.ok_or_else(|| {
            let text = public_text!("The VM does not exist. Check its id.");
            Problem::new(FaultKind::NoSuchVm, text)
        })
    }

    /// The directory of a VM's backups, once it has any.
    pub(super) fn vm_backups(&self, vm: &VmId) -> Result<Option<Dir>, Problem> {
        let found = open_visible(&self.backups, vm.as_str(), "opening the backups of a VM")?;
        let is_link = |stat: rustix::fs::Stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink
        };
        // Without this message the VM would seem to have no backups, and operators do replace such folders by links.
        if found.is_none() && self.backups.stat(vm.as_str()).is_ok_and(is_link) {
            let text = public_text!(
                "The backup directory of the VM `{vm}` is a symbolic link, which the gateway does not follow. Put the directory itself there, or mount it there (`mount --bind`)."
            );
            return Err(Problem::new(FaultKind::Conflict, text));
        }
        mounts::refuse_unmounted(&self.backups, Role::Backups, vm.as_str(), found.as_ref())?;
        Ok(found)
    }

    /// Locks what a change of the VM is going to touch, until it is dropped, and remembers which of it is mounted.
    pub(super) fn lock_vm(&self, vm: &VmId) -> Result<LockedVm, Problem> {
        let dir = self.vm_dir(vm)?;
        let vm_backups = self.vm_backups(vm)?;
        // Recorded before anything is changed: later calls compare with it, and refuse when the file system is
        // missing.
        mounts::record_mount(&self.backups, Role::Root, vm.as_str(), &dir)?;
        // The VM's folder before that of its backups, everywhere in this order: two gateways could refuse each other
        // otherwise.
        lock_exclusively(&dir)?;
        if let Some(vm_backups) = &vm_backups {
            mounts::record_mount(&self.backups, Role::Backups, vm.as_str(), vm_backups)?;
            lock_exclusively(vm_backups)?;
        }
        Ok(LockedVm {
            vm: dir,
            vm_backups,
        })
    }

    /// What is known of a VM.
    pub(super) fn describe_vm(&self, id: &VmId) -> Result<Vm, Problem> {
        let dir = self.vm_dir(id)?;
        // Only names the VM to people. A file that cannot be read must not make the VM unreachable.
        let vm_json = dir
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
                tracing::warn!(vm = %id, %error, "vm.json unreadable");
                VmJson {
                    name: None,
                    description: None,
                }
            });
        // The only sign of a running VM that can be seen from here: QEMU locks the images that it writes to.
        let run_state = match disk_names(&dir) {
            Ok(names) => names.iter().any(|name| is_written(&dir, name)),
            Err(_reported_when_it_matters) => false,
        };
        Ok(Vm {
            id: id.clone(),
            name: vm_json.name.unwrap_or_else(|| id.as_str().to_owned()),
            description: vm_json.description,
            run_state: run_state.then_some(RunState::Started),
        })
    }

    /// The names in `root` that may be directories of VMs, in order.
    pub(super) fn vm_names(&self) -> Result<Vec<VmId>, Problem> {
        let names = self.root.names().map_err(io_error("listing the VMs"))?;
        let id = |name: &CString| {
            let text = name.to_str().ok().filter(|text| is_visible(text))?;
            VmId::new(text).ok()
        };
        Ok(names.iter().filter_map(id).collect())
    }

    /// One page of those of these names that are directories of VMs.
    pub(super) fn list_vms(&self, names: &[VmId], range: &VmRange) -> VmPage {
        let rest = range.rest_of(names, |name| name);
        range.page_of(rest.iter().filter_map(|id| self.describe_listed(id)))
    }

    /// `None` when there is no directory of that name. A VM whose directory cannot be looked into just now is listed all the same.
    fn describe_listed(&self, id: &VmId) -> Option<Vm> {
        match self.describe_vm(id) {
            Ok(vm) => Some(Vm {
                description: None,
                ..vm
            }),
            Err(problem) if problem.is_refusal(FaultKind::NoSuchVm) => None,
            Err(problem) => {
                tracing::debug!(vm = %id, problem = problem.log_text(), "VM listed without details");
                Some(Vm {
                    id: id.clone(),
                    name: id.as_str().to_owned(),
                    description: None,
                    run_state: None,
                })
            }
        }
    }

    /// One page of backups.
    pub(super) fn list_backups(&self, vm: &VmId, page: &Page) -> Result<BackupPage, Problem> {
        // Its folder decides whether the VM exists: backups of a VM that was removed are not listed under its id.
        self.vm_dir(vm)?;
        let Some(vm_backups) = self.vm_backups(vm)? else {
            return Ok(BackupPage::default());
        };
        let mut backups = Vec::new();
        for id in backup_ids(&vm_backups)? {
            if page.after.as_ref().is_some_and(|after| id <= *after) {
                continue;
            }
            let target = Target {
                vm: vm.clone(),
                backup: id,
            };
            // Not cached: a list would push out the backups that are read one by one.
            if let Some(backup) = read_backup_in(&vm_backups, &target, |_| None)? {
                backups.push(backup);
            }
            // One more than asked for, which shows that there is a next page.
            if backups.len() == page.needed() {
                break;
            }
        }
        Ok(page.of(backups))
    }

    /// The backups that a query selects, from memory; `None` where they must be read.
    pub(super) fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
    ) -> Result<Option<BackupSelection>, Problem> {
        self.vm_dir(vm)?;
        let Some(vm_backups) = self.vm_backups(vm)? else {
            return Ok(Some(query.select([])));
        };
        Ok(self.with_watched(vm, &vm_backups, |watched| watched.index().select(query)))
    }

    /// What `answer` finds in the backups of a VM; `None` where these are not kept in memory.
    fn with_watched<T>(
        &self,
        vm: &VmId,
        vm_backups: &Dir,
        answer: impl FnOnce(&WatchedVm) -> T,
    ) -> Option<T> {
        let read = |id: &BackupId| {
            let target = Target {
                vm: vm.clone(),
                backup: id.clone(),
            };
            read_backup_in(vm_backups, &target, |_| None)
        };
        self.indexes.with_vm(vm, vm_backups, read, answer)
    }

    /// The names of what is left of deleted backups.
    pub(super) fn tombstones(&self, vm: &VmId, vm_backups: &Dir) -> Result<Vec<String>, Problem> {
        match self.with_watched(vm, vm_backups, WatchedVm::tombstones) {
            Some(tombstones) => Ok(tombstones),
            None => list_tombstones(vm_backups),
        }
    }

    /// Refuses a name that another backup of the VM has.
    pub(super) fn refuse_duplicate_name(
        &self,
        vm_backups: &Dir,
        target: &Target,
        name: &BackupName,
    ) -> Result<(), Problem> {
        let is_taken = self.with_watched(&target.vm, vm_backups, |watched| {
            watched.index().has_name(name.as_str(), &target.backup)
        });
        let is_taken = match is_taken {
            Some(is_taken) => is_taken,
            None => is_name_taken(vm_backups, target, name)?,
        };
        if is_taken {
            return Err(Problem::new(
                FaultKind::NameTaken,
                public_text!("Another backup of the VM has this name. Choose another name."),
            ));
        }
        Ok(())
    }

    /// One backup.
    pub(super) fn read_backup(&self, target: &Target, now: Instant) -> Result<Backup, Problem> {
        // All on the way is opened first and watched afterwards, so that the watch is of the very folders that are
        // read.
        let home = self.vm_dir(&target.vm)?;
        let vm_backups = self.vm_backups(&target.vm)?.ok_or_else(no_such_backup)?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let begin = |dir: &Dir| {
            let reading = self.read_cache.begin(target, dir, now)?;
            // They were opened before anything was watched, but are looked at after that.
            let same = home.is_local()
                && still_has_name(&self.root, vm, &home)
                && still_has_name(&self.backups, vm, &vm_backups)
                && still_has_name(&vm_backups, id, dir);
            same.then_some(reading)
        };
        read_backup_in(&vm_backups, target, begin)?.ok_or_else(no_such_backup)
    }

    /// One backup, if it was read lately and nothing of it has changed since. Does not wait for a disk.
    pub(super) fn cached_backup(&self, target: &Target) -> Option<Backup> {
        self.read_cache.find(target)
    }
}

/// The refusal of something done to a backup that is not there.
pub(super) fn no_such_backup() -> Problem {
    let text = public_text!("The backup does not exist. List the VM's backups.");
    Problem::new(FaultKind::NoSuchBackup, text)
}

/// The refusal of a second change of one VM.
pub(super) fn vm_busy() -> Problem {
    let text =
        public_text!("Another change of the VM or its backups is in progress. Try again later.");
    Problem::new(FaultKind::Busy, text)
}

/// Refuses a directory of a VM that another process has locked. It is not locked when this returns.
///
/// The lock is held for a moment. A change that comes in that moment waits longer than that for it.
pub(super) fn probe_lock(parent: &Dir, vm: &VmId) -> Result<(), Problem> {
    // An opening of its own: the lock is gone when it is closed.
    match open_visible(parent, vm.as_str(), "opening the directory of a VM")? {
        Some(dir) => lock_exclusively(&dir),
        None => Ok(()),
    }
}

/// The folders of one VM, locked until they are closed.
#[derive(Debug)]
pub(super) struct LockedVm {
    /// Its disks.
    pub(super) vm: Dir,
    /// Its backups, once there were any.
    pub(super) vm_backups: Option<Dir>,
}

/// Another gateway may have the same folder elsewhere, by a bind mount.
fn lock_exclusively(dir: &Dir) -> Result<(), Problem> {
    match dir.lock() {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let text = public_text!(
                "The directory of the VM or of its backups is in use by another process. Try again later."
            );
            Err(Problem::new(FaultKind::Busy, text))
        }
        // Some network file systems have no such locks. Refusing every change there would make them unusable.
        Err(errno) => {
            tracing::debug!(%errno, "the file system locks no folders");
            Ok(())
        }
    }
}

/// Locks one of the two folders itself: that leaves no file behind, works where nothing can be written, and holds by whatever path
/// another gateway comes.
fn lock_folder(dir: &Dir, role: Role) -> Result<(), OpenError> {
    match dir.lock() {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(OpenError::Fatal(FilesError::InUse(role.key()))),
        Err(errno) => {
            tracing::warn!(%errno, folder = role.key(), "the file system locks no folders: make sure that no other gateway uses it");
            Ok(())
        }
    }
}

/// The lock by which versions before this one know that the backups are in use.
fn lock_backups(backups: &Dir) -> Result<File, OpenError> {
    let lock = backups.lock_file(LOCK).map_err(|errno| match errno {
        Errno::NOSYS => OpenError::Fatal(FilesError::NoOpenat2),
        other => OpenError::Unavailable(io_error("opening the lock of the backups")(other)),
    })?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(OpenError::Fatal(FilesError::InUse(Role::Backups.key()))),
        Err(errno) => Err(OpenError::Unavailable(io_error("locking the backups")(
            errno,
        ))),
    }
}

fn open_failure(missing: PublicText, path: &Path, errno: Errno) -> Problem {
    let why = format!("opening {}: {errno}", path.display());
    if is_missing(errno) {
        Problem::new(FaultKind::Unavailable, missing).because(why)
    } else {
        io_error("opening a configured directory")(errno).because(why)
    }
}

fn open_visible(parent: &Dir, name: &str, doing: &'static str) -> Result<Option<Dir>, Problem> {
    // Hidden names are the gateway's own: staging, journals, folders that are being removed.
    if !is_visible(name) {
        return Ok(None);
    }
    match parent.dir(name) {
        Ok(dir) => Ok(Some(dir)),
        Err(errno) if is_missing(errno) => Ok(None),
        Err(Errno::ACCESS) => {
            let text = public_text!(
                "The gateway's user may not read the directory `{name}` in `root` or `backups`, so nothing was changed. Give that user permission to read, write and search it."
            );
            Err(Problem::new(FaultKind::BackendDenied, text).because(doing))
        }
        Err(errno) => Err(io_error(doing)(errno)),
    }
}

/// The directory of one backup.
pub(super) fn backup_dir(vm_backups: &Dir, id: &BackupId) -> Result<Option<Dir>, Problem> {
    open_visible(vm_backups, id.as_str(), "opening a backup")
}

/// The ids of all backups, in order.
pub(super) fn backup_ids(vm_backups: &Dir) -> Result<Vec<BackupId>, Problem> {
    let names = vm_backups.names().map_err(io_error("listing backups"))?;
    let id = |name: &CString| {
        let text = name.to_str().ok().filter(|text| is_visible(text))?;
        BackupId::new(text).ok()
    };
    Ok(names.iter().filter_map(id).collect())
}

/// The backup as callers see it, to be remembered if that was begun; `None` when there is none (any more).
fn read_backup_in<'a>(
    vm_backups: &Dir,
    target: &Target,
    begin: impl FnOnce(&Dir) -> Option<Reading<'a>>,
) -> Result<Option<Backup>, Problem> {
    let Some(dir) = backup_dir(vm_backups, &target.backup)? else {
        return Ok(None);
    };
    // Watched before it is read: a change that comes in between is then an event, and not a former state in the
    // cache.
    let reading = begin(&dir);
    let read = Manifest::read(&dir, target);
    let reading = match &read {
        Ok(manifest) => reading.and_then(|reading| reading.disks(&dir, manifest)),
        Err(_reported_below) => None,
    };
    // Lengths only, since each read of a backup comes here. Contents are proved by a restore.
    let whole = read.as_ref().is_ok_and(|manifest| manifest.is_whole(&dir));
    if !whole && !still_has_name(vm_backups, target.backup.as_str(), &dir) {
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
            tracing::warn!(vm = %target.vm, backup = %target.backup, problem = problem.log_text(), "damaged backup");
            Ok(Some(damaged_backup(target, &dir)?))
        }
    }
}

/// Whether a directory still has its name in the one above.
fn still_has_name(above: &Dir, name: &str, dir: &Dir) -> bool {
    match (above.stat(name), dir.stat_self()) {
        (Ok(now), Ok(then)) => now.st_ino == then.st_ino && now.st_dev == then.st_dev,
        _ => false,
    }
}

fn damaged_backup(target: &Target, dir: &Dir) -> Result<Backup, Problem> {
    // It may be that of a VM with another name before: what it says is shown, and nothing can be done to it.
    if let Some(manifest) = Manifest::salvage(dir) {
        return Ok(Backup {
            id: target.backup.clone(),
            identity: Identity::new(UNREADABLE.to_owned()),
            ..manifest.backup(BackupState::Error)
        });
    }
    let stat = dir.stat_self().map_err(io_error("looking at a backup"))?;
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let name = BackupName::new(target.backup.as_str()).map_err(|error| {
        let text = public_text!(
            "The backup's manifest is unreadable. Delete the backup from the storage by hand."
        );
        Problem::new(FaultKind::Damaged, text).because(error)
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
pub(super) fn disk_names(vm: &Dir) -> Result<Vec<DiskName>, Problem> {
    let mut disks = Vec::new();
    for name in vm.names().map_err(io_error("listing the disks of a VM"))? {
        // Operators' and other programs' hidden files are none of our business, and stay where they are.
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        let strange = |what: &str| {
            let text = public_text!(
                "The entry `{}` in the VM's directory {what}. Move it out of the directory, or give it a name that begins with a dot.",
                name.to_string_lossy()
            );
            Problem::new(FaultKind::Conflict, text)
        };
        let Ok(text) = name.to_str() else {
            return Err(strange("has a name that is not UTF-8"));
        };
        if text == VM_JSON {
            continue;
        }
        let stat = vm
            .stat(text)
            .map_err(io_error("looking at a disk of a VM"))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        // A VM with a file system of its own has this folder at its root. Empty, it says nothing.
        if text == LOST_AND_FOUND && kind == rustix::fs::FileType::Directory {
            match has_fsck_files(vm) {
                Ok(true) => return Err(strange("holds files that a file system check recovered")),
                Ok(false) | Err(Errno::ACCESS) => continue,
                Err(errno) => {
                    return Err(io_error("looking at what a file system check found")(errno));
                }
            }
        }
        if kind != rustix::fs::FileType::RegularFile {
            return Err(strange(&format!(
                "is {}, not a disk image",
                kind_name(kind)
            )));
        }
        let disk = DiskName::try_from(text.to_owned());
        disks.push(disk.map_err(|error| {
            strange("has a name that a disk image must not have").because(error)
        })?);
    }
    Ok(disks)
}

/// Whether a file system check has put anything into its folder.
fn has_fsck_files(vm: &Dir) -> Result<bool, Errno> {
    Ok(!vm.dir(LOST_AND_FOUND)?.names()?.is_empty())
}

const fn kind_name(kind: rustix::fs::FileType) -> &'static str {
    use rustix::fs::FileType;
    match kind {
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::RegularFile | FileType::Unknown => "something else",
    }
}

/// One disk of a VM, open and locked.
pub(super) fn lock_disk(dir: &Dir, name: &DiskName, image_use: ImageUse) -> Result<File, Problem> {
    let file = open_disk(dir, name)?;
    name_disk_in_use(image_lock::acquire(&file, image_use), name).map(|()| file)
}

/// One disk of a VM, open and free to be replaced. It is not locked when this returns.
pub(super) fn probe_disk(dir: &Dir, name: &DiskName) -> Result<File, Problem> {
    let file = open_disk(dir, name)?;
    name_disk_in_use(image_lock::probe(&file), name).map(|()| file)
}

fn name_disk_in_use(locked: Result<(), Problem>, name: &DiskName) -> Result<(), Problem> {
    match locked {
        Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::Busy => {
            Err(disk_in_use(name))
        }
        other => other,
    }
}

/// The refusal of a disk that another program uses.
pub(super) fn disk_in_use(name: &DiskName) -> Problem {
    let text = public_text!(
        "The disk `{}` of the VM is in use. Shut the VM down first.",
        name.as_str()
    );
    Problem::new(FaultKind::Busy, text)
}

/// One disk of a VM, open for reading.
pub(super) fn open_disk(dir: &Dir, name: &DiskName) -> Result<File, Problem> {
    match dir.file(name.as_str()) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(Problem::new(
            FaultKind::Conflict,
            public_text!(
                "The disk `{}` is not a regular file. Replace it with a disk image.",
                name.as_str()
            ),
        )),
        Err(Errno::ACCESS | Errno::PERM) => Err(Problem::new(
            FaultKind::BackendDenied,
            public_text!(
                "The gateway's user may not read the disk `{}`, so nothing was changed. Give that user permission to read it.",
                name.as_str()
            ),
        )),
        Err(errno) => Err(io_error("opening a disk image")(errno)),
    }
}

fn is_written(dir: &Dir, name: &DiskName) -> bool {
    open_disk(dir, name).is_ok_and(|file| image_lock::is_written(&file).unwrap_or(false))
}

/// Whether another backup of the VM has the name, by reading all of them.
fn is_name_taken(vm_backups: &Dir, target: &Target, name: &BackupName) -> Result<bool, Problem> {
    for id in backup_ids(vm_backups)? {
        if id == target.backup {
            continue;
        }
        let other = Target {
            vm: target.vm.clone(),
            backup: id,
        };
        let taken = backup_dir(vm_backups, &other.backup)?
            .and_then(|dir| Manifest::read(&dir, &other).ok())
            .is_some_and(|manifest| manifest.name == *name);
        if taken {
            return Ok(true);
        }
    }
    Ok(false)
}
