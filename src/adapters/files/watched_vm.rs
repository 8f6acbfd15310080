//! The backups of one VM, read once and kept up to date by the kernel's events.
//!
//! Watched are the folder of the VM's backups, which reports backups that come and go, and of each backup its folder and the one
//! of its disks, which report changes of its manifest and of the lengths of its images. What something happened to is read again before
//! the next answer. An event is queued before the call that makes the change returns, so an answer is never older than the
//! request (docs/decisions/0012-watched-backups.md, docs/decisions/0024-lists-from-indexes.md).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use rustix::io::Errno;

use crate::adapters::files::backup_index::BackupIndex;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::watch::Event;
use crate::adapters::files::watch::Watch;
use crate::adapters::files::watch::WatchNews;
use crate::adapters::files::watch::Watcher;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::limits::INDEX_WATCHES_MAX;

/// What a deleted backup is renamed to, followed by the mark of the request. Emptied, it stays until the next
/// delete as the proof that this request was done; it takes no room, so a full disk keeps no delete from working.
pub(super) const TOMBSTONE_PREFIX: &str = ".snapgate-gone.";
/// How often changes are read again that come while others are read, before the request reads the folder itself.
const ROUNDS_MAX: u32 = 16;
/// Looks at the queue of events in one round: a full queue has fewer.
const LOOKS_MAX: u32 = 20_000;

/// Why the backups of a VM are not kept in memory, and are read by each request instead.
#[derive(Debug)]
pub(super) enum NotWatched {
    /// They cannot be watched.
    Watch(Errno),
    /// One of them cannot be read now. Who lists them will find out.
    Read(Problem),
}

impl From<Errno> for NotWatched {
    fn from(errno: Errno) -> Self {
        Self::Watch(errno)
    }
}

/// The backups of one VM.
#[derive(Debug)]
pub(super) struct WatchedVm {
    watcher: Watcher,
    device: u64,
    inode: u64,
    /// What is watched: `None` is the folder of all backups.
    scopes: BTreeMap<Watch, Option<BackupId>>,
    watches: BTreeMap<BackupId, Vec<Watch>>,
    index: BackupIndex,
    tombstones: BTreeSet<String>,
    /// To be read again.
    changed: BTreeSet<BackupId>,
}

impl WatchedVm {
    /// Watches the folder, in which nothing was read yet but these names.
    pub(super) fn new(vm_backups: &Dir, failpoints: &Failpoints) -> Result<Self, NotWatched> {
        if !vm_backups.is_local() {
            return Err(NotWatched::Watch(Errno::XDEV));
        }
        let stat = vm_backups.stat_self()?;
        let watcher = Watcher::new(failpoints)?;
        let watch = watcher.folder_contents(vm_backups)?;
        let mut made = Self {
            watcher,
            device: stat.st_dev,
            inode: stat.st_ino,
            scopes: BTreeMap::from([(watch, None)]),
            watches: BTreeMap::new(),
            index: BackupIndex::default(),
            tombstones: BTreeSet::new(),
            changed: BTreeSet::new(),
        };
        for name in vm_backups.names()? {
            made.note_name(vm_backups, name.to_bytes());
        }
        Ok(made)
    }

    /// Whether this is the folder that is watched.
    pub(super) fn is_of(&self, vm_backups: &Dir) -> bool {
        let stat = vm_backups.stat_self();
        stat.is_ok_and(|stat| stat.st_dev == self.device && stat.st_ino == self.inode)
    }

    pub(super) const fn index(&self) -> &BackupIndex {
        &self.index
    }

    /// The names of what is left of deleted backups.
    pub(super) fn tombstones(&self) -> Vec<String> {
        self.tombstones.iter().cloned().collect()
    }

    /// Reads what has changed. `read` reads one backup; `None` when there is none.
    ///
    /// # Errors
    /// When that is not possible now; the value is of no use then.
    pub(super) fn refresh(
        &mut self,
        vm_backups: &Dir,
        read: impl Fn(&BackupId) -> Result<Option<Backup>, Problem>,
    ) -> Result<(), NotWatched> {
        for _ in 0..ROUNDS_MAX {
            self.apply_events(vm_backups)?;
            if self.changed.is_empty() {
                return Ok(());
            }
            let changed = std::mem::take(&mut self.changed);
            // All first: two folders may have exchanged their names, and what is watched is not watched a second time.
            changed.iter().for_each(|id| self.forget(id));
            for id in changed {
                if self.watch_backup(vm_backups, &id)? {
                    // From here on a change makes an event.
                    match read(&id).map_err(NotWatched::Read)? {
                        Some(backup) => self.index.insert(backup),
                        None => self.forget(&id),
                    }
                }
            }
        }
        Err(NotWatched::Watch(Errno::AGAIN))
    }

    fn apply_events(&mut self, vm_backups: &Dir) -> Result<(), Errno> {
        for _ in 0..LOOKS_MAX {
            match self.watcher.pending_events() {
                WatchNews::Nothing => return Ok(()),
                WatchNews::Events(events) => {
                    for event in &events {
                        self.apply_event(vm_backups, event)?;
                    }
                }
                WatchNews::Anything => return Err(Errno::STALE),
            }
        }
        Err(Errno::AGAIN)
    }

    fn apply_event(&mut self, vm_backups: &Dir, event: &Event) -> Result<(), Errno> {
        match (self.scopes.get(&event.at), &event.name) {
            // Of a backup that was read again since.
            (None, _) => Ok(()),
            (Some(Some(id)), _) => {
                self.changed.insert(id.clone());
                Ok(())
            }
            (Some(None), Some(name)) => {
                self.note_name(vm_backups, name);
                Ok(())
            }
            // The folder itself was moved, removed, or has other rights.
            (Some(None), None) => Err(Errno::STALE),
        }
    }

    /// Something happened to that name in the folder.
    fn note_name(&mut self, vm_backups: &Dir, name: &[u8]) {
        let Ok(text) = str::from_utf8(name) else {
            return;
        };
        if text.starts_with(TOMBSTONE_PREFIX) {
            if vm_backups.stat(text).is_ok() {
                self.tombstones.insert(text.to_owned());
            } else {
                self.tombstones.remove(text);
            }
        } else if is_visible(text)
            && let Ok(id) = BackupId::new(text)
        {
            self.changed.insert(id);
        }
    }

    fn forget(&mut self, id: &BackupId) {
        self.index.remove(id);
        for watch in self.watches.remove(id).unwrap_or_default() {
            self.scopes.remove(&watch);
            self.watcher.remove(watch);
        }
    }

    /// Watches a backup that is going to be read; `false` when there is none.
    fn watch_backup(&mut self, vm_backups: &Dir, id: &BackupId) -> Result<bool, Errno> {
        let dir = match vm_backups.dir(id.as_str()) {
            Ok(dir) => dir,
            // Whatever comes there makes an event of the folder.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        self.watch_folder(&dir, id)?;
        match dir.dir(DISKS) {
            Ok(disks) => self.watch_folder(&disks, id)?,
            // Whatever comes there makes an event of the backup's folder.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        // Under another name it can be written to without an event here.
        match dir.stat(MANIFEST) {
            Ok(stat) if stat.st_nlink > 1 => Err(Errno::MLINK),
            Ok(_) | Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    fn watch_folder(&mut self, dir: &Dir, id: &BackupId) -> Result<(), Errno> {
        // What is mounted there may be of any kind.
        if dir.stat_self()?.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        if self.scopes.len() >= INDEX_WATCHES_MAX {
            return Err(Errno::NOSPC);
        }
        let watch = self.watcher.folder_contents(dir)?;
        self.scopes.insert(watch, Some(id.clone()));
        self.watches.entry(id.clone()).or_default().push(watch);
        Ok(())
    }
}

/// The names of what is left of deleted backups, read from the folder.
pub(super) fn list_tombstones(vm_backups: &Dir) -> Result<Vec<String>, Problem> {
    let names = vm_backups.names().map_err(io_error("listing backups"))?;
    let ours = names.iter().filter_map(|name| name.to_str().ok());
    let tombstones = ours.filter(|name| name.starts_with(TOMBSTONE_PREFIX));
    Ok(tombstones.map(str::to_owned).collect())
}
