//! The locks by which QEMU guards its images: byte ranges of the image file, owned by an open file.
//!
//! QEMU takes read locks on byte `100 + n` for each permission it uses and on `200 + n` for each it does not share,
//! and looks for conflicts before. A write lock on the whole range therefore excludes every QEMU, and cannot be had
//! while one has the image open.

use std::fs::File;
use std::io;

use nix::fcntl::FcntlArg;
use nix::fcntl::fcntl;
use nix::libc;

/// First byte of the range.
const FIRST: i64 = 100;
/// Bytes of the range: up to and with the last permission that is not shared.
const COUNT: i64 = 200;
/// The byte by which a holder says that it shares no writing: 200 and the number of the permission to write.
const NO_WRITERS: i64 = 201;

fn range(kind: libc::c_int, first: i64, count: i64) -> io::Result<libc::flock> {
    let small = |it: libc::c_int| {
        libc::c_short::try_from(it).map_err(|error| io::Error::other(error.to_string()))
    };
    Ok(libc::flock {
        l_type: small(kind)?,
        l_whence: small(libc::SEEK_SET)?,
        l_start: first,
        l_len: count,
        l_pid: 0,
    })
}

fn take(file: &File, lock: &libc::flock) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(lock)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Keeps everybody else from opening the image, as long as the file is open, which must be for writing.
/// `false` when somebody has it open.
pub(super) fn exclude_all(image: &File) -> io::Result<bool> {
    take(image, &range(libc::F_WRLCK, FIRST, COUNT)?)
}

/// Keeps everybody else from writing to the image, which may be open for reading only.
/// `false` when somebody has it open.
pub(super) fn exclude_writers(image: &File) -> io::Result<bool> {
    let mut wanted = range(libc::F_WRLCK, FIRST, COUNT)?;
    fcntl(image, FcntlArg::F_OFD_GETLK(&mut wanted))?;
    if libc::c_int::from(wanted.l_type) != libc::F_UNLCK {
        return Ok(false);
    }
    take(image, &range(libc::F_RDLCK, NO_WRITERS, 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path, write: bool) -> File {
        File::options().read(true).write(write).open(path).unwrap()
    }

    #[test]
    fn a_holder_excludes_and_is_excluded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // What QEMU holds on an image that a running VM writes to.
        let qemu = open(file.path(), true);
        for byte in [100, 101, 201, 203] {
            assert!(
                take(&qemu, &range(libc::F_RDLCK, byte, 1).unwrap()).unwrap(),
                "{byte}"
            );
        }
        assert!(!exclude_all(&open(file.path(), true)).unwrap(), "in use");
        assert!(
            !exclude_writers(&open(file.path(), false)).unwrap(),
            "in use"
        );
        drop(qemu);
        let ours = open(file.path(), true);
        assert!(exclude_all(&ours).unwrap(), "free");
        let late = open(file.path(), true);
        let asked = range(libc::F_RDLCK, 100, 1).unwrap();
        assert!(
            !take(&late, &asked).unwrap(),
            "a QEMU that starts now is refused"
        );
        drop(ours);
        let reader = open(file.path(), false);
        assert!(exclude_writers(&reader).unwrap(), "free");
        let mut found = range(libc::F_WRLCK, NO_WRITERS, 1).unwrap();
        fcntl(&late, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
        assert_eq!(
            libc::c_int::from(found.l_type),
            libc::F_RDLCK,
            "a writer sees the refusal"
        );
    }
}
