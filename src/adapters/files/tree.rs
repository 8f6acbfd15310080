//! Directories that cannot be left: every access is relative to an open directory and follows no symbolic link.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RawMode;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;

/// What belongs to the gateway begins like this, in VM directories and in backup directories alike.
pub(super) const OWN_PREFIX: &str = ".snapgate";

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

/// Whether a text can be the name of one entry that is not ours: no path, not hidden.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0'])
}

impl Dir {
    /// Opens a directory that the operator named; symbolic links on the way are the operator's own.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn open_below(&self, name: &str, flags: OFlags, mode: RawMode) -> io::Result<OwnedFd> {
        let never_outside =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::openat2(
            &self.0,
            name,
            flags,
            mode,
            never_outside,
        )?)
    }

    /// A directory in this one; `NotFound` when there is none, another error when it is something else.
    pub(super) fn dir(&self, name: &str) -> io::Result<Self> {
        let fd = self.open_below(name, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        Ok(Self(fd))
    }

    /// The same, made when there is none.
    pub(super) fn dir_or_new(&self, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.sync()?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.dir(name)
    }

    /// An existing regular file; `InvalidInput` when it is something else.
    pub(super) fn file(&self, name: &str, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = File::from(self.open_below(name, access, 0)?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ))
        }
    }

    /// A new file, readable by the owner alone; `AlreadyExists` when there is something of that name.
    pub(super) fn new_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.open_below(name, flags, 0o600)?))
    }

    /// What is known about an entry itself, not about what it points to.
    pub(super) fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(
            &self.0,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Whether there is an entry of that name, of whatever kind.
    pub(super) fn has(&self, name: &str) -> io::Result<bool> {
        match self.stat(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names and kinds of all entries, in byte-wise order. Names that are not UTF-8 are left out.
    pub(super) fn entries(&self) -> io::Result<Vec<(String, FileType)>> {
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            let Ok(name) = name.into_string() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                kind = FileType::from_raw_mode(self.stat(&name)?.st_mode);
            }
            found.push((name, kind));
        }
        found.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        Ok(found)
    }

    /// Moves an entry, replacing what is there. One step: never half done.
    pub(super) fn rename(&self, from: &str, into: &Self, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &into.0, to)?)
    }

    /// The same, but `AlreadyExists` when something is there.
    pub(super) fn rename_new(&self, from: &str, into: &Self, to: &str) -> io::Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        Ok(rustix::fs::renameat_with(
            &self.0, from, &into.0, to, flags,
        )?)
    }

    /// Removes a file or symbolic link; nothing to do when there is none.
    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        none_is_fine(rustix::fs::unlinkat(&self.0, name, AtFlags::empty()))
    }

    /// Removes an entry and all that is in it, following nothing; nothing to do when there is none.
    pub(super) fn remove_all(&self, name: &str) -> io::Result<()> {
        let kind = match self.stat(name) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if kind != FileType::Directory {
            return self.remove_file(name);
        }
        let inner = self.dir(name)?;
        for (entry, _) in inner.entries()? {
            inner.remove_all(&entry)?;
        }
        none_is_fine(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR))
    }

    /// Puts the entries themselves on stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.0.as_fd())?)
    }

    /// Writes a small file as a whole: afterwards there is the old one or the new one, durable.
    pub(super) fn write_whole(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{OWN_PREFIX}-writing-{name}");
        self.remove_file(&temporary)?;
        let mut file = self.new_file(&temporary)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        self.rename(&temporary, self, name)?;
        self.sync()
    }

    /// Reads a small file of at most `max` bytes.
    pub(super) fn read_whole(&self, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let file = self.file(name, false)?;
        let mut bytes = Vec::new();
        let over = max.saturating_add(1);
        let count = io::Read::read_to_end(&mut io::Read::take(file, over), &mut bytes)?;
        if u64::try_from(count).unwrap_or(u64::MAX) > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
        }
        Ok(bytes)
    }

    /// The lock that only one process can have, kept as long as the file.
    pub(super) fn lock(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = File::from(self.open_below(name, flags, 0o600)?);
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn none_is_fine(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_outside() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), folder.path().join("dir")).unwrap();
        symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        for name in ["dir", "../x", "..", "/etc", "dir/secret"] {
            assert!(dir.dir(name).is_err(), "{name} as a directory");
        }
        for name in ["file", "dir/secret", "../secret", "/etc/passwd"] {
            assert!(dir.file(name, false).is_err(), "{name} as a file");
        }
        dir.remove_all("dir").unwrap();
        assert!(
            outside.path().join("secret").exists(),
            "removing a link leaves what it points to"
        );
    }

    #[test]
    fn plain_names() {
        let rows = [
            ("disk.img", true),
            ("a b", true),
            ("", false),
            (".hidden", false),
            ("..", false),
            ("a/b", false),
            ("a\0b", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_plain_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn whole_files_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        for content in ["first", "second"] {
            dir.write_whole("m", content.as_bytes()).unwrap();
            assert_eq!(
                dir.read_whole("m", 10).unwrap(),
                content.as_bytes(),
                "as written"
            );
        }
        assert!(dir.read_whole("m", 3).is_err(), "not more than asked for");
        assert_eq!(dir.entries().unwrap().len(), 1, "nothing is left over");
    }

    #[test]
    fn only_one_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        let first = dir.lock("lock").unwrap();
        assert!(first.is_some(), "free");
        assert!(dir.lock("lock").unwrap().is_none(), "taken");
        drop(first);
        assert!(dir.lock("lock").unwrap().is_some(), "free again");
    }
}
