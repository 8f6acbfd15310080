//! The identity of one disk image in one state: which file it is, how long, and when it was changed.

use std::fs::File;

use rustix::fs::Stat;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::manifest::DiskName;

/// One file in one state.
///
/// The time of change (`ctime`) cannot be set by a program, unlike that of modification. Linux gives no counter of changes
/// to programs (`STATX_CHANGE_COOKIE` stays in the kernel); since 6.13 the times of the usual file systems differ between any
/// two changes if they were read in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    /// The file system. Another number after a restart of the machine: see [`FileStamp::moved`].
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl FileStamp {
    /// Of what was found.
    pub(super) fn new(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Of an open file.
    pub(super) fn of_file(file: &File) -> Result<Self, Errno> {
        rustix::fs::fstat(file).map(|stat| Self::new(&stat))
    }

    /// Of what has that name; `None` when nothing has.
    pub(super) fn of_name(dir: &Dir, name: &DiskName) -> Result<Option<Self>, Errno> {
        match dir.stat(name.as_str()) {
            Ok(stat) => Ok(Some(Self::new(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Bytes of the file.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is the same file, in whatever state.
    pub(super) const fn is_same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }

    /// Whether it is the same file of the same length and time of modification. A rename sets the time of change alone.
    pub(super) fn is_same_content(&self, other: &Self) -> bool {
        self.is_same_file(other) && self.size == other.size && self.modified == other.modified
    }

    /// The same after the file system that had one number was given another.
    pub(super) const fn with_device(self, from: u64, to: u64) -> Self {
        if self.device == from {
            Self { device: to, ..self }
        } else {
            self
        }
    }

    /// Adds it to a fingerprint, which must outlive a restart of the machine.
    pub(super) fn hash_into(&self, home: u64, hasher: &mut blake3::Hasher) {
        hasher.update(&[u8::from(self.device == home)]);
        for number in [self.inode, self.size, self.modified.1, self.changed.1] {
            hasher.update(&number.to_le_bytes());
        }
        for seconds in [self.modified.0, self.changed.0] {
            hasher.update(&seconds.to_le_bytes());
        }
    }
}
