//! What is watched for the backups that are remembered, and what is forgotten when something happens to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use lru::LruCache;
use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::errno_of;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::watch::Event;
use crate::adapters::files::watch::Watch;
use crate::adapters::files::watch::WatchNews;
use crate::adapters::files::watch::Watcher;
use crate::model::Backup;
use crate::model::Target;
use crate::model::limits::BACKUP_WATCHES_MAX;
use crate::model::limits::BACKUPS_RECALLED_MAX;

/// Looks for events before a request reads the disk instead: one that finds some, and one that finds no more.
const LOOKS: u8 = 2;
/// Watches that are removed while others wait for the table.
const SWEPT_AT_ONCE: usize = 32;

/// One of the two directories, as it was opened.
#[derive(Debug)]
pub(super) struct WatchedRoot {
    path: PathBuf,
    /// Of the file system.
    pub(super) device: u64,
    inode: u64,
}

impl WatchedRoot {
    /// `None` when nothing in it can be watched.
    pub(super) fn new(path: &Path, dir: &Dir) -> Option<Self> {
        let stat = dir.stat_self().ok()?;
        dir.is_local().then(|| Self {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path)
            .is_ok_and(|stat| stat.st_dev == self.device && stat.st_ino == self.inode)
    }
}

/// What an event is about.
#[derive(Debug)]
enum WatchScope {
    /// A directory above, and the names in it that lead on.
    Parent(Vec<OsString>),
    /// One of the two: its names are VMs.
    Vms,
    Backup(Target),
}

#[derive(Debug)]
struct CachedBackup {
    /// Which read it is of.
    ticket: u64,
    watches: Vec<Watch>,
    /// `None` while it is read.
    backup: Option<Backup>,
}

/// What is watched, and the backups that were read from it.
#[derive(Debug)]
pub(super) struct Table {
    watcher: Watcher,
    /// The configured paths lead there by links, which are not watched.
    linked: bool,
    scopes: BTreeMap<Watch, WatchScope>,
    entries: LruCache<Target, CachedBackup>,
    /// Of backups that were forgotten, still to be removed.
    stale: Vec<Watch>,
    /// Nothing in it is known any more.
    dead: bool,
}

/// Whether two names may be one where case makes no difference.
fn may_be_equal(one: &[u8], two: &[u8]) -> bool {
    one.eq_ignore_ascii_case(two) || !one.is_ascii() || !two.is_ascii()
}

impl Table {
    /// Watches the way to both directories, each directory after the one that it is in.
    ///
    /// # Errors
    /// What [`Watcher`] says, or `STALE` when the configured paths lead elsewhere by now.
    pub(super) fn new(roots: &[WatchedRoot; 2], failpoints: &Failpoints) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(BACKUPS_RECALLED_MAX).ok_or(Errno::INVAL)?;
        let mut table = Self {
            watcher: Watcher::new(failpoints)?,
            linked: false,
            scopes: BTreeMap::new(),
            entries: LruCache::new(size),
            stale: Vec::new(),
            dead: false,
        };
        let mut parents = BTreeMap::<PathBuf, Vec<OsString>>::new();
        let mut ends = Vec::new();
        for root in roots {
            let real = root.path.canonicalize().map_err(|error| errno_of(&error))?;
            for step in real.ancestors() {
                if let (Some(above), Some(name)) = (step.parent(), step.file_name()) {
                    let names = parents.entry(above.to_owned()).or_default();
                    names.push(name.to_owned());
                }
            }
            ends.push(real);
        }
        for (path, names) in parents {
            let watch = table.watcher.directory(&path)?;
            table.scopes.insert(watch, WatchScope::Parent(names));
        }
        for (root, real) in roots.iter().zip(ends) {
            let watch = table.watcher.directory(&real)?;
            table.scopes.insert(watch, WatchScope::Vms);
            // From here on a change makes an event.
            if !root.is_at(&real) {
                return Err(Errno::STALE);
            }
            table.linked |= root.path != real;
        }
        Ok(table)
    }

    /// Applies the pending events; `false` when there may be more, or when the whole table is out of date.
    pub(super) fn is_current(&mut self, roots: &[WatchedRoot; 2]) -> bool {
        for _ in 0..LOOKS {
            if self.dead {
                break;
            }
            match self.watcher.pending_events() {
                WatchNews::Nothing => {
                    self.dead = self.linked && !roots.iter().all(|root| root.is_at(&root.path));
                    return !self.dead;
                }
                WatchNews::Events(events) => {
                    events.iter().for_each(|event| self.apply_event(event));
                }
                WatchNews::Anything => self.dead = true,
            }
        }
        false
    }

    fn apply_event(&mut self, event: &Event) {
        match (self.scopes.get(&event.at), &event.name) {
            // Of a backup that was forgotten before.
            (None, _) => {}
            (Some(WatchScope::Parent(_) | WatchScope::Vms), None) => self.dead = true,
            (Some(WatchScope::Parent(names)), Some(name)) => {
                self.dead |= names
                    .iter()
                    .any(|watched| may_be_equal(watched.as_bytes(), name));
            }
            (Some(WatchScope::Vms), Some(name)) => {
                let about = |value: &&Target| may_be_equal(value.vm.as_str().as_bytes(), name);
                let targets = self.entries.iter().map(|(target, _)| target).filter(about);
                for target in targets.cloned().collect::<Vec<_>>() {
                    self.forget(&target);
                }
            }
            (Some(WatchScope::Backup(target)), _) => {
                let target = target.clone();
                self.forget(&target);
            }
        }
    }

    /// Whether nothing in it is known any more.
    pub(super) const fn is_dead(&self) -> bool {
        self.dead
    }

    /// A backup, right once the table is current.
    pub(super) fn find(&mut self, target: &Target) -> Option<&Backup> {
        self.entries.get(target)?.backup.as_ref()
    }

    fn forget(&mut self, target: &Target) {
        if let Some(entry) = self.entries.pop(target) {
            self.unwatch(entry);
        }
    }

    fn unwatch(&mut self, entry: CachedBackup) {
        for watch in entry.watches {
            self.scopes.remove(&watch);
            self.stale.push(watch);
        }
    }

    /// Removes some watches that are of no use; `false` when there are more.
    pub(super) fn remove_stale_watches(&mut self) -> bool {
        let keep = self.stale.len().saturating_sub(SWEPT_AT_ONCE);
        for watch in self.stale.drain(keep..) {
            self.watcher.remove(watch);
        }
        self.stale.is_empty()
    }

    /// Makes room for a backup that is going to be read; `false` when another read has.
    pub(super) fn begin(&mut self, target: &Target, ticket: u64) -> bool {
        if self.entries.contains(target) {
            return false;
        }
        let entry = CachedBackup {
            ticket,
            watches: Vec::new(),
            backup: None,
        };
        if let Some((_, evicted)) = self.entries.push(target.clone(), entry) {
            self.unwatch(evicted);
        }
        true
    }

    /// Remembers a backup, unless something happened to it since that read of it began.
    pub(super) fn keep(&mut self, target: &Target, ticket: u64, backup: &Backup) {
        if let Ok(entry) = self.entry(target, ticket) {
            entry.backup = Some(backup.clone());
        }
    }

    /// That read of a backup is over; what it did not keep is forgotten.
    pub(super) fn end(&mut self, target: &Target, ticket: u64) {
        if self
            .entry(target, ticket)
            .is_ok_and(|entry| entry.backup.is_none())
        {
            self.forget(target);
        }
    }

    fn entry(&mut self, target: &Target, ticket: u64) -> Result<&mut CachedBackup, Errno> {
        let entry = self.entries.get_mut(target);
        entry
            .filter(|entry| entry.ticket == ticket)
            .ok_or(Errno::STALE)
    }

    /// Watches one thing more for a backup that is being read.
    ///
    /// # Errors
    /// What [`Watcher`] says, or `STALE` when something happened to the backup.
    pub(super) fn watch(
        &mut self,
        (target, ticket): (&Target, u64),
        add: impl FnOnce(&Watcher) -> Result<Watch, Errno>,
    ) -> Result<(), Errno> {
        self.entry(target, ticket)?;
        let watch = add(&self.watcher)?;
        self.entry(target, ticket)?.watches.push(watch);
        self.scopes
            .insert(watch, WatchScope::Backup(target.clone()));
        while self.scopes.len() > BACKUP_WATCHES_MAX
            && let Some((oldest, entry)) = self.entries.pop_lru()
        {
            self.unwatch(entry);
            if oldest == *target {
                return Err(Errno::NOSPC);
            }
        }
        Ok(())
    }
}
