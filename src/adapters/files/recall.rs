//! Backups that were read lately, and whether the disk still holds what was read.
//!
//! A read of a backup opens, reads and parses its manifest on a thread that may block. Most reads find what the last
//! one found, and that can be told from a handful of `lstat`s: a manifest is replaced by a rename, and every change of
//! a file or of a directory's names changes its change time. Anything else, or anything unclear, is read again.

use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use lru::LruCache;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Stat;

use crate::adapters::files::Config;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::tree::is_visible;
use crate::model::Backup;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::limits::BACKUP_RECALLED_BYTES_MAX;
use crate::model::limits::BACKUP_RECALLED_DISKS_MAX;
use crate::model::limits::BACKUPS_RECALLED_MAX;

/// What changed within this time before it was read is not relied upon: time stamps may be as coarse as that, and two
/// changes then look like one.
const SETTLED: Duration = Duration::from_secs(2);
/// A backup that was not asked for so long is read on a thread that may block: the kernel may have to ask the disk for
/// its names again.
const WARM: Duration = Duration::from_secs(10);
/// File systems whose names, once looked up, are in memory: no look waits for a network. ext4, XFS, Btrfs, tmpfs, ZFS,
/// F2FS, bcachefs (`statfs(2)`).
const LOCAL: [u32; 7] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0xca45_1a4e,
];

/// Which file or directory something is, and when it last changed in any way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, u64),
}

impl Stamp {
    const fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Everything that a backup was read from, its disks excepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    vm: (u64, u64),
    shelf: Stamp,
    backup: Stamp,
    manifest: Stamp,
}

impl Sight {
    fn is_settled(&self, now: Timestamp) -> bool {
        let before = now.minus(SETTLED).as_millis();
        [self.shelf, self.backup, self.manifest].iter().all(|it| {
            let seconds = u64::try_from(it.changed.0).unwrap_or(u64::MAX);
            seconds.saturating_add(1).saturating_mul(1000) <= before
        })
    }
}

#[derive(Debug)]
struct Known {
    backup: Backup,
    sight: Sight,
    /// Path and length of each.
    disks: Vec<(PathBuf, u64)>,
}

#[derive(Debug)]
struct Entry {
    known: Arc<Known>,
    asked: Instant,
}

/// The backups that were read last.
#[derive(Debug)]
pub(super) struct Recall {
    root: PathBuf,
    backups: PathBuf,
    entries: Option<Mutex<LruCache<Target, Entry>>>,
}

fn is_local(path: &Path) -> bool {
    let kind = rustix::fs::statfs(path).map(|it| u32::try_from(it.f_type));
    matches!(kind, Ok(Ok(kind)) if LOCAL.contains(&kind))
}

fn look(path: &Path) -> Option<Stat> {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()
}

impl Recall {
    /// Nothing is remembered yet, and never will be unless both directories are on local file systems.
    pub(super) fn new(config: &Config) -> Self {
        let local = is_local(&config.root) && is_local(&config.backups);
        let most = NonZeroUsize::new(BACKUPS_RECALLED_MAX).filter(|_| local);
        Self {
            root: config.root.clone(),
            backups: config.backups.clone(),
            entries: most.map(|most| Mutex::new(LruCache::new(most))),
        }
    }

    /// What a backup is going to be read from; looked at before it is read.
    pub(super) fn sight(&self, target: &Target) -> Option<Sight> {
        self.entries.as_ref()?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        if !is_visible(vm) || !is_visible(id) {
            return None;
        }
        let home = look(&self.root.join(vm))?;
        let mut path = self.backups.join(vm);
        let shelf = look(&path)?;
        path.push(id);
        let backup = look(&path)?;
        path.push(MANIFEST);
        let manifest = look(&path)?;
        Some(Sight {
            vm: (home.st_dev, home.st_ino),
            shelf: Stamp::of(&shelf),
            backup: Stamp::of(&backup),
            manifest: Stamp::of(&manifest),
        })
    }

    /// Remembers a backup that was found whole after that sight of it.
    pub(super) fn keep(
        &self,
        target: &Target,
        sight: Sight,
        manifest: &Manifest,
        backup: &Backup,
        now: (Timestamp, Instant),
    ) {
        let Some(entries) = &self.entries else {
            return;
        };
        let small = u64::try_from(sight.manifest.size)
            .is_ok_and(|size| size <= BACKUP_RECALLED_BYTES_MAX)
            && manifest.disks.len() <= BACKUP_RECALLED_DISKS_MAX;
        if !small || !sight.is_settled(now.0) {
            return;
        }
        let folder = self
            .backups
            .join(target.vm.as_str())
            .join(target.backup.as_str())
            .join(DISKS);
        let disks = manifest.disks.iter();
        let known = Known {
            backup: backup.clone(),
            sight,
            disks: disks
                .map(|disk| (folder.join(disk.name.as_str()), disk.size))
                .collect(),
        };
        let entry = Entry {
            known: Arc::new(known),
            asked: now.1,
        };
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.put(target.clone(), entry);
    }

    /// The backup, if it was read lately and is what it was then. Does not wait for a disk.
    pub(super) fn find(&self, target: &Target, now: Instant) -> Option<Backup> {
        let known = {
            let entries = self.entries.as_ref()?;
            let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = entries.get_mut(target)?;
            if now.saturating_duration_since(entry.asked) > WARM {
                return None;
            }
            entry.asked = now;
            Arc::clone(&entry.known)
        };
        let whole = |(path, size): &(PathBuf, u64)| {
            look(path).is_some_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    && u64::try_from(stat.st_size) == Ok(*size)
            })
        };
        let same = self.sight(target) == Some(known.sight) && known.disks.iter().all(whole);
        same.then(|| known.backup.clone())
    }
}
