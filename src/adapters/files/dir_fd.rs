//! Directories by descriptor: every name is one component, and nothing is ever followed out of them.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;
use rustix::fs::Advice;
use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::FlockOperation;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::fs::StatxAttributes;
use rustix::fs::StatxFlags;
use rustix::io::Errno;

use crate::adapters::files::error::Problem;
use crate::adapters::files::error::errno_of;
use crate::adapters::files::error::io_error;
use crate::adapters::files::failpoints::Failpoints;

/// What a small file is written to before it replaces the one before it.
pub(super) const TEMPORARY: &str = ".snapgate-temporary";
/// Longest name of a file in bytes on common file systems.
const NAME_BYTES_MAX: usize = 255;
/// How often a lookup is repeated that a concurrent rename disturbed.
const LOOKUPS_MAX: u8 = 32;
/// Deepest tree of ours that is removed: a backup has two levels.
const DEPTH_MAX: u8 = 4;

/// File systems whose changes all go through this kernel, which reports them; and whose names, once looked up, are in
/// memory: no look waits for a network. ext4, XFS, Btrfs, tmpfs, F2FS (`statfs(2)`).
const LOCAL: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010];

/// How often, and how far apart, a folder that is locked is tried again: a program that this process is starting holds
/// copies of all its descriptors for some milliseconds.
const LOCK_ATTEMPTS: u8 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What `fsck` makes in the top folder of a file system. Never the name of a VM or of a backup.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// Whether a text can only be a name within a directory, never a path or a special name.
pub(super) fn is_component(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
}

/// Whether an id from outside may name a directory: one component, and none of the hidden ones.
pub(super) fn is_visible(name: &str) -> bool {
    is_component(name) && !name.starts_with('.') && name != LOST_AND_FOUND
}

/// Whether this error says that there is nothing of that kind under that name.
pub(super) fn is_missing(errno: Errno) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV].contains(&errno)
}

/// Asks the kernel to start writing so many bytes of a file back, so that a later sync has less to wait for.
pub(super) fn write_back(file: &File, from: u64, length: u64) {
    if let Some(length) = NonZeroU64::new(length)
        // It is a hint: without it the file is right, only later on disk.
        && let Err(errno) = rustix::fs::fadvise(file, from, Some(length), Advice::DontNeed)
    {
        tracing::trace!(%errno, "no early write-back");
    }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    failpoints: Failpoints,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens a directory that the operator configured; links in that path are the operator's own.
    pub(super) fn open(path: &Path, failpoints: Failpoints) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { fd, failpoints })
    }

    /// The hook that every change passes.
    pub(super) const fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// Names the file that the gateway lacks the rights to: faults that callers see name none.
    fn log_denied(&self, name: &str, errno: Errno) {
        if errno != Errno::ACCESS && errno != Errno::PERM && errno != Errno::ROFS {
            return;
        }
        // The path as it is now, for the log alone; nothing is ever opened by it.
        let own = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let file = std::fs::read_link(own).unwrap_or_default().join(name);
        tracing::warn!(file = %file.display(), %errno, "the gateway lacks the rights to a file");
    }

    fn resolve(&self, name: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        if !is_component(name) {
            return Err(Errno::NOENT);
        }
        // The kernel enforces it for the whole look-up, so there is no moment between a check and its use.
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for _ in 0..LOOKUPS_MAX {
            match rustix::fs::openat2(&self.fd, name, flags, mode, how) {
                // AGAIN: something was renamed or mounted during the look-up, and the kernel could not prove that it
                // stayed beneath.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other.inspect_err(|errno| self.log_denied(name, *errno)),
            }
        }
        Err(Errno::AGAIN)
    }

    /// A directory in this one.
    pub(super) fn dir(&self, name: &str) -> Result<Self, Errno> {
        let fd = self.resolve(name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self {
            fd,
            failpoints: self.failpoints.clone(),
        })
    }

    /// A regular file in this one for reading; `None` when something else has that name.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>, Errno> {
        // Looking first keeps devices and pipes from being opened at all.
        let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file(&self.stat(name)?) {
            return Ok(None);
        }
        // NONBLOCK, for the name may be a pipe by now, whose opening would wait for a writer.
        let fd = self.resolve(name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        if is_file(&rustix::fs::fstat(&fd)?) {
            Ok(Some(File::from(fd)))
        } else {
            Ok(None)
        }
    }

    /// A new file in this one.
    pub(super) fn create(&self, name: &str) -> Result<File, Errno> {
        self.failpoints.hit("create")?;
        // EXCL: a file that is there already belongs to someone else, or to an earlier attempt that has to be looked
        // at.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.resolve(
            name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?))
    }

    /// A file in this one that need not be new, for locks.
    pub(super) fn lock_file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        Ok(File::from(self.resolve(
            name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?))
    }

    /// A new directory in this one, for its owner alone.
    pub(super) fn make_dir(&self, name: &str) -> Result<Self, Errno> {
        if !is_component(name) {
            return Err(Errno::INVAL);
        }
        self.failpoints.hit("mkdir")?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)
            .inspect_err(|errno| self.log_denied(name, *errno))?;
        self.dir(name)
    }

    /// What is known of a name, links not followed.
    pub(super) fn stat(&self, name: &str) -> Result<Stat, Errno> {
        if !is_component(name) {
            return Err(Errno::NOENT);
        }
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What is known of this directory.
    pub(super) fn stat_self(&self) -> Result<Stat, Errno> {
        rustix::fs::fstat(&self.fd)
    }

    /// Whether it is on a file system whose every change this kernel knows of.
    pub(super) fn is_local(&self) -> bool {
        let kind = rustix::fs::fstatfs(&self.fd).map(|stat| u32::try_from(stat.f_type));
        matches!(kind, Ok(Ok(kind)) if LOCAL.contains(&kind))
    }

    /// Bytes that are free for this process on the file system of this directory.
    pub(super) fn free_bytes(&self) -> Result<u64, Errno> {
        let found = rustix::fs::fstatvfs(&self.fd)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Every name in this directory, in byte order.
    pub(super) fn names(&self) -> Result<Vec<CString>, Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() != b"." && name.to_bytes() != b".." {
                names.push(name.to_owned());
            }
        }
        // Readers rely on it: pages of lists, fingerprints and journals are made from names in this order.
        names.sort();
        Ok(names)
    }

    /// Gives a name in this directory to what has a name in another one.
    pub(super) fn rename_from(&self, name: &str, from: &Self, old: &str) -> Result<(), Errno> {
        if !is_component(name) || !is_component(old) {
            return Err(Errno::INVAL);
        }
        self.failpoints.hit("rename")?;
        rustix::fs::renameat(&from.fd, old, &self.fd, name)
            .inspect_err(|errno| self.log_denied(name, *errno))
    }

    /// Gives a name that nothing has to what has a name in another directory.
    ///
    /// # Errors
    /// `EXIST` when something has it.
    pub(super) fn rename_new_from(&self, name: &str, from: &Self, old: &str) -> Result<(), Errno> {
        if !is_component(name) || !is_component(old) {
            return Err(Errno::INVAL);
        }
        self.failpoints.hit("rename")?;
        rustix::fs::renameat_with(&from.fd, old, &self.fd, name, RenameFlags::NOREPLACE)
    }

    /// Exchanges what two names stand for, at one instant.
    pub(super) fn exchange(&self, name: &str, other: &Self, its: &str) -> Result<(), Errno> {
        if !is_component(name) || !is_component(its) {
            return Err(Errno::INVAL);
        }
        self.failpoints.hit("exchange")?;
        rustix::fs::renameat_with(&other.fd, its, &self.fd, name, RenameFlags::EXCHANGE)
    }

    /// Locks this directory until it is closed, against every other process and every other opening of it, by whatever
    /// path, link or bind mount. Needs no right to write and leaves nothing behind.
    ///
    /// # Errors
    /// `WOULDBLOCK` when it is locked already.
    #[expect(
        clippy::disallowed_methods,
        reason = "it is called on threads that may block, and waits for a moment"
    )]
    pub(super) fn lock(&self) -> Result<(), Errno> {
        for _ in 0..LOCK_ATTEMPTS {
            match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
                // The process that held it may be closing it right now. Who holds it longer is another gateway.
                Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::WOULDBLOCK)
    }

    /// Attributes of what has a name in this directory, links not followed; those that the file system does not know are unset.
    pub(super) fn attributes(&self, name: &str) -> Result<StatxAttributes, Errno> {
        if !is_component(name) {
            return Err(Errno::NOENT);
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found = rustix::fs::statx(&self.fd, name, flags, StatxFlags::BASIC_STATS)?;
        Ok(found.stx_attributes & found.stx_attributes_mask)
    }

    /// Attributes of this directory.
    pub(super) fn own_attributes(&self) -> Result<StatxAttributes, Errno> {
        let flags = AtFlags::EMPTY_PATH;
        let found = rustix::fs::statx(&self.fd, "", flags, StatxFlags::BASIC_STATS)?;
        Ok(found.stx_attributes & found.stx_attributes_mask)
    }

    /// Whether this process may make, rename and remove names in this directory. `false` for a lack of rights alone.
    pub(super) fn is_writable(&self) -> bool {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        let allowed = rustix::fs::accessat(&self.fd, ".", wanted, AtFlags::EACCESS);
        !matches!(allowed, Err(Errno::ACCESS | Errno::PERM))
    }

    /// Makes the names in this directory last.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        self.failpoints.hit("sync directory")?;
        rustix::fs::fsync(&self.fd)
    }

    /// Makes a file last.
    pub(super) fn sync_file(&self, file: impl AsFd) -> Result<(), Errno> {
        self.failpoints.hit("sync file")?;
        rustix::fs::fsync(file)
    }

    /// Removes a name that is not a directory; missing is fine.
    pub(super) fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes an empty directory; missing is fine.
    pub(super) fn remove_dir(&self, name: &str) -> Result<(), Errno> {
        self.remove(name, AtFlags::REMOVEDIR)
    }

    fn remove<P: rustix::path::Arg>(&self, name: P, flags: AtFlags) -> Result<(), Errno> {
        self.failpoints.hit("remove")?;
        match rustix::fs::unlinkat(&self.fd, name, flags) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Removes everything in this directory.
    pub(super) fn clear(&self) -> Result<(), Errno> {
        self.clear_to(DEPTH_MAX)
    }

    fn clear_to(&self, depth: u8) -> Result<(), Errno> {
        // Bounded, because each level holds a descriptor, and the gateway makes no deep trees itself.
        let depth = depth.checked_sub(1).ok_or(Errno::NOTEMPTY)?;
        for name in self.names()? {
            let stat = rustix::fs::statat(&self.fd, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let text = name.to_str().map_err(|_not_ours| Errno::NOTEMPTY)?;
                self.dir(text)?.clear_to(depth)?;
                self.remove(&name, AtFlags::REMOVEDIR)?;
            } else {
                self.remove(&name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Removes a directory with all that is in it; missing is fine.
    pub(super) fn remove_tree(&self, name: &str) -> Result<(), Errno> {
        match self.dir(name) {
            Ok(dir) => dir.clear()?,
            Err(Errno::NOENT) => return Ok(()),
            // Something of another kind has the name, a link for instance: the name goes, and nothing behind it.
            Err(errno) if is_missing(errno) => return self.unlink(name),
            Err(errno) => return Err(errno),
        }
        self.remove_dir(name)
    }

    /// The contents of a small regular file; `None` when there is none.
    pub(super) fn read_small(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, Errno> {
        let file = match self.file(name) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(Errno::INVAL),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut bytes = Vec::new();
        // One byte more than allowed shows that it is too long, whatever its length was said to be before.
        let taken = file.take(max.saturating_add(1)).read_to_end(&mut bytes);
        let length = taken.map_err(|error| errno_of(&error))?;
        if u64::try_from(length).is_ok_and(|bytes| bytes <= max) {
            Ok(Some(bytes))
        } else {
            Err(Errno::FBIG)
        }
    }

    /// Writes a small new file, which the caller syncs: its contents are on their way.
    pub(super) fn write_new(&self, name: &str, bytes: &[u8]) -> Result<File, Errno> {
        let mut file = self.create(name)?;
        self.failpoints.hit("write")?;
        file.write_all(bytes).map_err(|error| errno_of(&error))?;
        write_back(&file, 0, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(file)
    }

    /// Writes what is to replace a small file, which [`Dir::commit_replacement`] does.
    ///
    /// Until then it has a name that every recovery removes.
    pub(super) fn prepare_replacement(&self, bytes: &[u8]) -> Result<File, Errno> {
        // One may be left by a process that was killed. It was never committed, so nothing refers to it.
        self.unlink(TEMPORARY)?;
        self.write_new(TEMPORARY, bytes)
    }

    /// Replaces a small file as a whole by what was prepared. The caller syncs the directory.
    pub(super) fn commit_replacement(&self, name: &str, prepared: &File) -> Result<(), Errno> {
        // The contents before the name: after a power cut the name must never lead to an empty file.
        self.sync_file(prepared)?;
        self.rename_from(name, self, TEMPORARY)
    }

    /// Removes what was prepared and shall not replace anything.
    pub(super) fn discard_replacement(&self) {
        if let Err(errno) = self.unlink(TEMPORARY) {
            tracing::warn!(%errno, "a temporary file stays until the next recovery");
        }
    }

    /// Replaces a small file as a whole, and makes it last.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Problem> {
        let doing = io_error("replacing a small file");
        let prepared = self.prepare_replacement(bytes);
        if let Err(errno) = prepared.and_then(|file| self.commit_replacement(name, &file)) {
            self.discard_replacement();
            return Err(doing(errno));
        }
        // From here on it is visible, but may not outlive a power cut.
        self.sync().map_err(|errno| doing(errno).uncertain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_visible_names_pass() {
        let long = "x".repeat(256);
        let rows: [(&str, bool, bool); 10] = [
            ("vm-1", true, true),
            ("a b", true, true),
            ("..a", true, false),
            (".hidden", true, false),
            ("", false, false),
            (".", false, false),
            ("..", false, false),
            ("a/b", false, false),
            ("a\0b", false, false),
            (&long, false, false),
        ];
        for (name, component, visible) in rows {
            assert_eq!(is_component(name), component, "component {name:?}");
            assert_eq!(is_visible(name), visible, "visible {name:?}");
        }
    }

    #[test]
    fn links_and_special_files_are_not_opened() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let link = std::os::unix::fs::symlink::<std::path::PathBuf, std::path::PathBuf>;
        link(outside.path().join("secret"), temp.path().join("file")).unwrap();
        link(outside.path().into(), temp.path().join("dir")).unwrap();
        let dir = Dir::open(temp.path(), Failpoints::default()).unwrap();
        rustix::fs::mknodat(&dir.fd, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(
            matches!(dir.file("file"), Ok(None)),
            "a link is not a disk image"
        );
        assert!(
            matches!(dir.file("fifo"), Ok(None)),
            "a pipe is not a disk image, and is not waited for"
        );
        let refused = dir.dir("dir").map(|_| ()).unwrap_err();
        assert!(is_missing(refused), "a link is not a directory: {refused}");
        dir.remove_tree("dir").unwrap();
        assert!(
            outside.path().join("secret").exists(),
            "removing a link leaves what it points to"
        );
    }
}
