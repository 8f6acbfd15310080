//! QEMU's image locks: held by us while an image is copied or replaced, respected when others hold them.
//!
//! QEMU takes a shared byte-range lock at 100+n for each permission n it uses, and at 200+n for each that it
//! does not share, on the open file description; a user conflicts when someone else's lock is on the byte
//! that mirrors its own. The permissions are 0 consistent read, 1 write, 2 write unchanged, 3 resize,
//! 4 (before QEMU 6.2) change the graph.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::fcntl;
use nix::libc;
use parking_lot::RwLock;
use rustix::fs::FlockOperation;

use crate::adapters::files::error::Problem;
use crate::model::FaultKind;
use crate::public_text;

const USED: i64 = 100;
const UNSHARED: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const PERMISSIONS: i64 = 5;

/// How an image is going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageUse {
    /// Read as it stands: other readers are welcome, writers are not.
    Read,
    /// Replaced: no other process may use it.
    Replace,
}

fn range(kind: i32, start: i64, length: i64) -> Result<libc::flock, Errno> {
    let short = |value: i32| i16::try_from(value).map_err(|_too_large| Errno::EINVAL);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: start,
        l_len: length,
        l_pid: 0,
    })
}

fn set_lock(file: &File, start: i64, length: i64) -> Result<(), Errno> {
    let lock = range(libc::F_RDLCK, start, length)?;
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

/// Whether someone else's lock would conflict with one of ours of this kind; a length of 0 is to the end.
fn is_locked_by_others(file: &File, kind: i32, start: i64, length: i64) -> Result<bool, Errno> {
    let mut lock = range(kind, start, length)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Takes the locks of this use on the image, until the file is closed.
///
/// # Errors
/// `Busy` when the image is used by someone else in a way that excludes this.
pub(super) fn acquire(file: &File, image_use: ImageUse) -> Result<(), Problem> {
    acquire_flock(file, image_use)?;
    refuse_excluded(try_acquire(file, image_use))
}

/// The answer to whether an image may be used.
fn refuse_excluded(is_free: Result<bool, Errno>) -> Result<(), Problem> {
    match is_free {
        Ok(true) => Ok(()),
        Ok(false) | Err(Errno::EAGAIN | Errno::EACCES) => Err(in_use()),
        Err(errno) => Err(Problem::new(
            FaultKind::BackendFailed,
            public_text!("The storage supports no file locks, which protect disk images in use. Nothing was changed; keep the VM on storage with locks."),
        )
        .because(errno)),
    }
}

fn in_use() -> Problem {
    let text = public_text!("A disk image of the VM is in use. Shut the VM down first.");
    Problem::new(FaultKind::Busy, text)
}

/// Looks whether [`acquire`] would get the locks to replace the image, and keeps none.
///
/// QEMU's locks are only asked about. Of a whole-file lock the kernel does not say whether it is held, so it is held for a moment in which no
/// other thread of the gateway tries to take it.
///
/// # Errors
/// Those of [`acquire`].
pub(super) fn probe(file: &File) -> Result<(), Problem> {
    {
        let _no_others = FLOCK_PROBE.write();
        take_flock(file, ImageUse::Replace)?;
        // Where the file system has no such locks there is nothing to give back.
        let _unlocked = rustix::fs::flock(file, FlockOperation::Unlock);
    }
    refuse_excluded(is_excluded(file, ImageUse::Replace).map(|excluded| !excluded))
}

/// Held by a probe for the moment in which it has the lock of an image: a change must not find that lock.
static FLOCK_PROBE: RwLock<()> = RwLock::new(());

fn acquire_flock(file: &File, image_use: ImageUse) -> Result<(), Problem> {
    let _no_probe = FLOCK_PROBE.read();
    take_flock(file, image_use)
}

/// Takes the whole-file lock that other programs use (crosvm, `flock(1)`). Where the file system has none, no other program holds any.
fn take_flock(file: &File, image_use: ImageUse) -> Result<(), Problem> {
    let operation = match image_use {
        ImageUse::Read => FlockOperation::NonBlockingLockShared,
        ImageUse::Replace => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(file, operation) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether another process has a lock on an image that we hold to replace it.
pub(super) fn is_shared(file: &File) -> Result<bool, Errno> {
    is_locked_by_others(file, libc::F_WRLCK, 0, 0)
}

fn try_acquire(file: &File, image_use: ImageUse) -> Result<bool, Errno> {
    // First taken, then looked around, as QEMU does: of two that come together at most one goes on.
    match image_use {
        ImageUse::Read => {
            set_lock(file, USED.saturating_add(CONSISTENT_READ), 1)?;
            set_lock(file, UNSHARED.saturating_add(WRITE), 1)?;
            set_lock(file, UNSHARED.saturating_add(RESIZE), 1)?;
        }
        ImageUse::Replace => {
            set_lock(file, USED, PERMISSIONS)?;
            set_lock(file, UNSHARED, PERMISSIONS)?;
        }
    }
    Ok(!is_excluded(file, image_use)?)
}

/// Whether a lock of someone else excludes this use. Our own locks do not matter.
fn is_excluded(file: &File, image_use: ImageUse) -> Result<bool, Errno> {
    match image_use {
        ImageUse::Read => {
            Ok(is_locked_by_others(file, libc::F_WRLCK, UNSHARED, 1)? || is_written(file)?)
        }
        ImageUse::Replace => is_locked_by_others(file, libc::F_WRLCK, 0, 0),
    }
}

/// Whether someone may be writing to the image: a QEMU by its protocol, or any program by an exclusive lock.
pub(super) fn is_written(file: &File) -> Result<bool, Errno> {
    Ok(
        is_locked_by_others(file, libc::F_WRLCK, USED.saturating_add(WRITE), 1)?
            || is_locked_by_others(file, libc::F_WRLCK, USED.saturating_add(RESIZE), 1)?
            || is_locked_by_others(file, libc::F_RDLCK, 0, 0)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn uses_exclude_each_other_as_in_qemu() {
        let rows = [
            ("two readers", ImageUse::Read, ImageUse::Read, true),
            (
                "replace under a reader",
                ImageUse::Read,
                ImageUse::Replace,
                false,
            ),
            (
                "read while replaced",
                ImageUse::Replace,
                ImageUse::Read,
                false,
            ),
            ("replace twice", ImageUse::Replace, ImageUse::Replace, false),
        ];
        for (name, first, second, expected) in rows {
            let image = image();
            let (one, two) = (image.reopen().unwrap(), image.reopen().unwrap());
            acquire(&one, first).expect(name);
            assert_eq!(acquire(&two, second).is_ok(), expected, "{name}");
            drop((one, two));
            let three = image.reopen().unwrap();
            assert!(
                acquire(&three, ImageUse::Replace).is_ok(),
                "{name}: closing lets go"
            );
        }
    }

    #[test]
    fn locks_of_a_writer_are_seen() {
        let rows: [(&str, i32, i64, i64); 4] = [
            ("QEMU writes", libc::F_RDLCK, USED + WRITE, 1),
            ("QEMU resizes", libc::F_RDLCK, USED + RESIZE, 1),
            ("QEMU shares no reading", libc::F_RDLCK, UNSHARED, 1),
            ("any program, exclusively", libc::F_WRLCK, 0, 1),
        ];
        for (name, kind, start, length) in rows {
            let image = image();
            let (other, ours) = (image.reopen().unwrap(), image.reopen().unwrap());
            let lock = range(kind, start, length).unwrap();
            fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).expect(name);
            for image_use in [ImageUse::Read, ImageUse::Replace] {
                let problem = acquire(&ours, image_use).unwrap_err();
                let text = problem.to_string();
                assert!(
                    text.contains("Shut the VM down"),
                    "{name} {image_use:?}: {text}"
                );
            }
        }
    }
}
