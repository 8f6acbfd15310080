//! Which images are based on which, for many files at once: the header of each is read, and nothing else of it.
//!
//! A restore asks this of all other VMs of a libvirtd, so it must cost little for each. All files of one question are read by one
//! blocking task.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use nix::libc;

use crate::adapters::libvirt::images::BACKING_BYTES_MAX;
use crate::adapters::libvirt::images::FileMark;
use crate::adapters::libvirt::images::MAGIC;
use crate::adapters::libvirt::images::backing_path;
use crate::adapters::libvirt::images::mark_from_metadata;

/// Longest chain of images that is followed: a snapshot each night for years, and an end where images refer to each other in a circle.
const DEPTH_MAX: usize = 1024;

/// A file that something refers to.
#[derive(Clone, Debug)]
pub(crate) struct ReferredFile {
    /// Where it is said to be.
    pub(crate) path: PathBuf,
    /// What is there; `None` when nothing can be seen.
    pub(crate) mark: Option<FileMark>,
}

/// The files that a VM refers to.
#[derive(Clone, Debug)]
pub(crate) struct ReferredFiles {
    /// Those that it uses itself.
    pub(crate) own: Vec<ReferredFile>,
    /// Those that these are based on.
    pub(crate) below: Vec<ReferredFile>,
}

impl ReferredFile {
    fn look_at(path: PathBuf) -> Self {
        let mark = std::fs::metadata(&path).ok();
        Self {
            mark: mark.map(|meta| mark_from_metadata(&meta)),
            path,
        }
    }

    /// One that cannot be looked at, because it is on another host.
    pub(crate) const fn remote(path: PathBuf) -> Self {
        Self { path, mark: None }
    }
}

/// The images below this one, nearest first, as far as they can be read.
///
/// # Errors
/// The blocking task ended without an answer, so nothing is known.
pub(crate) async fn chain(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = path.to_owned();
    answer_of(move || read_chain(&path)).await
}

/// These files themselves, and all images below the first ones.
///
/// # Errors
/// As for [`chain`].
pub(crate) async fn look_at(
    with_chains: Vec<PathBuf>,
    alone: Vec<PathBuf>,
) -> io::Result<ReferredFiles> {
    answer_of(move || {
        let below = with_chains.iter().flat_map(|path| read_chain(path));
        ReferredFiles {
            below: below.chain(alone).map(ReferredFile::look_at).collect(),
            own: with_chains.into_iter().map(ReferredFile::look_at).collect(),
        }
    })
    .await
}

/// Of the files of a folder, those that are based on another file, with that. A folder that may not be listed has none. `None` for a
/// folder that holds more than `entries_max`.
///
/// # Errors
/// As for [`chain`], or the folder cannot be read to its end.
pub(crate) async fn based_in_folder(
    folder: &Path,
    entries_max: usize,
) -> io::Result<Option<Vec<(OsString, ReferredFile)>>> {
    let folder = folder.to_owned();
    answer_of(move || {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Ok(Some(Vec::new()));
        };
        let mut found = Vec::new();
        for (number, entry) in entries.enumerate() {
            if number >= entries_max {
                return Ok(None);
            }
            let entry = entry?;
            if entry.file_type().is_ok_and(|kind| kind.is_file())
                && let Some(below) = read_backing(&entry.path())
            {
                found.push((entry.file_name(), ReferredFile::look_at(below)));
            }
        }
        Ok(Some(found))
    })
    .await?
}

/// Never a default in place of an answer: that no image is based on another allows a restore.
async fn answer_of<T: Send + 'static>(
    reading: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(reading)
        .await
        .map_err(io::Error::other)
}

fn read_chain(path: &Path) -> Vec<PathBuf> {
    let mut below: Vec<PathBuf> = Vec::new();
    while below.len() < DEPTH_MAX {
        let Some(next) = read_backing(below.last().map_or(path, PathBuf::as_path)) else {
            break;
        };
        below.push(next);
    }
    below
}

/// Where the image below is, as the header of this one says; `None` where it says nothing, or cannot be read.
fn read_backing(path: &Path) -> Option<PathBuf> {
    // Not to wait for the other end of a pipe.
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let mut head = [0; 20];
    file.read_exact_at(&mut head, 0).ok()?;
    let word = |at: usize| -> Option<u32> {
        let bytes = head.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let length = word(16)?;
    let offset = u64::from_be_bytes(*head.get(8..)?.first_chunk::<8>()?);
    if word(0)? != MAGIC || offset == 0 || length > BACKING_BYTES_MAX {
        return None;
    }
    let mut name = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut name, offset).ok()?;
    backing_path(path, &String::from_utf8_lossy(&name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A header of qcow2 that names the image below.
    fn image(path: &Path, below: &str) {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        bytes.extend(3_u32.to_be_bytes());
        let offset: u64 = if below.is_empty() { 0 } else { 112 };
        bytes.extend(offset.to_be_bytes());
        bytes.extend(u32::try_from(below.len()).unwrap().to_be_bytes());
        bytes.resize(112, 0);
        bytes.extend(below.as_bytes());
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn chains_end_where_an_image_names_none_or_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        image(&at("top"), "middle");
        image(&at("middle"), at("base").to_str().unwrap());
        image(&at("base"), "");
        image(&at("orphan"), "gone");
        image(&at("circle"), "circle");
        std::fs::write(at("raw"), [7; 4096]).unwrap();
        std::fs::write(at("short"), MAGIC.to_be_bytes()).unwrap();
        let rows: [(&str, &[&str]); 7] = [
            ("top", &["middle", "base"]),
            ("base", &[]),
            ("orphan", &["gone"]),
            ("raw", &[]),
            ("short", &[]),
            ("missing", &[]),
            (".", &[]),
        ];
        for (name, expected) in rows {
            let expected: Vec<PathBuf> = expected.iter().map(|name| at(name)).collect();
            assert_eq!(chain(&at(name)).await.unwrap(), expected, "{name}");
        }
        let circle = chain(&at("circle")).await.unwrap();
        assert_eq!(circle.len(), DEPTH_MAX, "an end");
    }

    #[tokio::test]
    async fn files_are_known_by_what_they_are_and_not_by_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        image(&at("base"), "");
        symlink(at("base"), at("link")).unwrap();
        image(&at("clone"), "link");
        let paths = vec![at("clone"), at("base"), at("missing")];
        let ReferredFiles { own, below } = look_at(paths, vec![at("alone")]).await.unwrap();
        let base = own[1].mark.unwrap();
        assert!(own[0].mark.is_some_and(|mark| !mark.is_same_file(&base)));
        assert!(own[2].mark.is_none(), "nothing is there");
        assert_eq!(below.len(), 2, "{below:?}");
        assert_eq!(below[1].path, at("alone"));
        assert!(below[0].mark.is_some_and(|mark| mark.is_same_file(&base)));
        assert_eq!(below[0].path, at("link"));

        let found = async |folder: &Path, most| based_in_folder(folder, most).await.unwrap();
        let based = found(folder.path(), 100).await.unwrap();
        let names: BTreeSet<_> = based.iter().map(|(name, _)| name.to_str()).collect();
        assert_eq!(names, [Some("clone")].into(), "links are no images");
        assert!(based[0].1.mark.is_some_and(|mark| mark.is_same_file(&base)));
        assert!(found(&at("missing"), 100).await.unwrap().is_empty());
        for (entries_max, is_known) in [(0, false), (2, false), (3, true)] {
            let found = found(folder.path(), entries_max).await;
            assert_eq!(found.is_some(), is_known, "{entries_max} of 3 entries");
        }
    }

    #[tokio::test]
    async fn a_task_without_an_answer_is_an_error_and_not_an_empty_list() {
        let failed = answer_of(|| -> Vec<PathBuf> { panic!("as on a defect") });
        failed.await.unwrap_err();
    }
}
