//! Backups that were read lately, for as long as nothing that they were read from has changed.
//!
//! A read of a backup opens, reads and parses its manifest on a thread that may block. Whatever it depends on is watched
//! before it is looked at: each directory on the way, the manifest, the disks. Every later read first applies the
//! events since then, under the lock of the table, so that no reader has seen a change whose backup is still cached.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::watch_table::Table;
use crate::adapters::files::watch_table::WatchedRoot;
use crate::model::Backup;
use crate::model::Target;
use crate::model::limits::BACKUP_RECALLED_BYTES_MAX;
use crate::model::limits::BACKUP_RECALLED_DISKS_MAX;

/// How long nothing is remembered after nothing could be watched.
const RETRY: Duration = Duration::from_secs(10);
/// How often a read goes on where the table was left, before it remembers nothing: a full queue takes some 300 rounds, and who
/// makes events faster than they are applied must not hold it up.
const ROUNDS_MAX: u32 = 1000;

#[derive(Debug, Default)]
struct CacheState {
    table: Option<Table>,
    retry: Option<Instant>,
    warned: bool,
    tickets: u64,
}

/// The backups that were read last.
#[derive(Debug)]
pub(super) struct ReadCache {
    roots: Option<[WatchedRoot; 2]>,
    failpoints: Failpoints,
    state: Mutex<CacheState>,
}

/// A backup that is watched and being read, to be remembered if nothing happens to it.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    cache: &'a ReadCache,
    target: &'a Target,
    device: u64,
    ticket: u64,
}

impl CacheState {
    /// Says once what the operator may do about it.
    fn warn_once(&mut self, errno: Errno) {
        let remedy = match errno {
            Errno::NOSPC => "raise fs.inotify.max_user_watches",
            Errno::MFILE => "raise fs.inotify.max_user_instances or the limit of open files",
            Errno::NOSYS => "mount /proc",
            Errno::ACCESS => "let the gateway list every directory above both",
            // Something changed just now, or another backup has the same file.
            Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::STALE => return,
            _ => "see the error",
        };
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(%errno, remedy, "backups cannot be watched, every read opens the manifest");
        }
    }
}

impl ReadCache {
    /// Nothing is remembered yet, and never will be without both directories.
    pub(super) fn new(roots: Option<[WatchedRoot; 2]>, failpoints: Failpoints) -> Self {
        Self {
            roots,
            failpoints,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backup, if it was read lately and nothing of it has changed. Does not wait for a disk.
    pub(super) fn find(&self, target: &Target) -> Option<Backup> {
        let roots = self.roots.as_ref()?;
        let mut state = self.lock();
        let table = state.table.as_mut()?;
        if !table.is_current(roots) {
            return None;
        }
        table.find(target).cloned()
    }

    /// The table, up to date and made anew if need be. Lets requests in between, for it may have much to do.
    fn table(&self, roots: &[WatchedRoot; 2], now: Instant) -> Option<MutexGuard<'_, CacheState>> {
        let mut state = self.lock();
        if let Some(dead) = state.table.take_if(|table| table.is_dead()) {
            drop(state);
            drop(dead);
            state = self.lock();
        }
        if state.table.is_none() {
            if state.retry.is_some_and(|at| now < at) {
                return None;
            }
            state.retry = now.checked_add(RETRY);
            drop(state);
            let made = Table::new(roots, &self.failpoints);
            state = self.lock();
            match made {
                Ok(table) => {
                    state.table = Some(table);
                    state.retry = None;
                }
                Err(errno) => state.warn_once(errno),
            }
        }
        for _ in 0..ROUNDS_MAX {
            let table = state.table.as_mut()?;
            let (current, swept) = (table.is_current(roots), table.remove_stale_watches());
            if table.is_dead() {
                return None;
            }
            if current && swept {
                return Some(state);
            }
            drop(state);
            state = self.lock();
        }
        None
    }

    /// Watches a backup whose manifest is going to be read in that directory. Whether the directories on the way still
    /// have their names is for the caller to see, after that.
    pub(super) fn begin<'a>(
        &'a self,
        target: &'a Target,
        dir: &Dir,
        now: Instant,
    ) -> Option<Reading<'a>> {
        let roots = self.roots.as_ref()?;
        let [_, backups] = roots;
        let bytes = u64::try_from(dir.stat(MANIFEST).ok()?.st_size).ok()?;
        if bytes > BACKUP_RECALLED_BYTES_MAX {
            return None;
        }
        let mut state = self.table(roots, now)?;
        state.tickets = state.tickets.wrapping_add(1);
        let ticket = state.tickets;
        let table = state.table.as_mut()?;
        if !table.begin(target, ticket) {
            return None;
        }
        let of = (target, ticket);
        let watched = table.watch(of, |it| it.open_directory(dir));
        let watched = watched.and_then(|()| table.watch(of, |it| it.file(dir, MANIFEST)));
        if let Err(errno) = watched {
            table.end(target, ticket);
            state.warn_once(errno);
            return None;
        }
        Some(Reading {
            cache: self,
            target,
            device: backups.device,
            ticket,
        })
    }
}

impl Reading<'_> {
    /// Watches the disks as well, whose lengths are going to be looked at. All must be on the file system of the backups:
    /// what is mounted below may be of any kind.
    pub(super) fn disks(self, dir: &Dir, manifest: &Manifest) -> Option<Self> {
        let watched = self.watch(dir, manifest);
        if let Err(errno) = watched {
            self.cache.lock().warn_once(errno);
        }
        watched.is_ok().then_some(self)
    }

    fn watch(&self, dir: &Dir, manifest: &Manifest) -> Result<(), Errno> {
        let disks = dir.dir(DISKS)?;
        let parts = [dir.stat_self()?, dir.stat(MANIFEST)?, disks.stat_self()?];
        let mut devices = parts.map(|part| part.st_dev).to_vec();
        if manifest.disks.len() > BACKUP_RECALLED_DISKS_MAX {
            return Err(Errno::STALE);
        }
        for disk in &manifest.disks {
            devices.push(disks.stat(disk.name.as_str())?.st_dev);
        }
        if devices.iter().any(|device| *device != self.device) {
            return Err(Errno::STALE);
        }
        let mut state = self.cache.lock();
        let table = state.table.as_mut().ok_or(Errno::STALE)?;
        let of = (self.target, self.ticket);
        table.watch(of, |it| it.open_directory(&disks))?;
        let mut names = manifest.disks.iter().map(|disk| disk.name.as_str());
        names.try_for_each(|name| table.watch(of, |it| it.file(&disks, name)))
    }

    /// Remembers the backup that was read, unless something happened to it.
    pub(super) fn keep(self, backup: &Backup) {
        if let Some(table) = self.cache.lock().table.as_mut() {
            table.keep(self.target, self.ticket, backup);
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(table) = self.cache.lock().table.as_mut() {
            table.end(self.target, self.ticket);
        }
    }
}
