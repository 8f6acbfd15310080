//! Whether the images of the configuration are those that the VM uses: looked at before every change.
//!
//! A change to another image would be lost, or would destroy what lies above it: an external snapshot, for instance,
//! makes the image of the configuration the base of an overlay, which breaks when its base changes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::fcntl;
use nix::libc;
use serde::Deserialize;
use serde::Serialize;
use tokio::fs;

use crate::adapters::adapter::AdapterError;
use crate::adapters::qemu::block_graph;
use crate::adapters::qemu::config::ImageLocation;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::DiskObstacle;
use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::disk::file_name;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::qcow2;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Most files of one folder that are looked at for overlays.
const FOLDER_ENTRIES_MAX: usize = 100_000;
/// Backing files that are followed from one overlay.
const CHAIN_MAX: usize = 1024;
/// The byte of an image on which QEMU keeps a lock while it may write: 100, and 1 for the permission to write.
const WRITE_LOCK: i64 = 101;

/// The bytes on which a lock of another program keeps QEMU from opening an image for writing: 100+n for a permission that is used, 200+n
/// for one that is not shared; 1 is to write, 3 to resize.
const WRITER_LOCKS: [i64; 4] = [101, 103, 201, 203];

/// What a file was at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    /// Stays the same for as long as it is the same file. Device numbers do not: they change when a host starts anew.
    pub(super) inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change, which no program can set back.
    changed: (i64, i64),
}

/// The present stamp of each image.
pub(super) async fn read_stamps(images: &[PathBuf]) -> Result<Vec<FileStamp>, QemuError> {
    let mut found = Vec::with_capacity(images.len());
    for image in images {
        let metadata = fs::metadata(image).await;
        let metadata = metadata.map_err(|error| qcow2::image_open_error(&error))?;
        found.push(FileStamp {
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        });
    }
    Ok(found)
}

/// What there is of a stopped VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImagePresence {
    /// All its images.
    Complete,
    /// Some of its images, or none though there is evidence that the VM exists or that the storage is not mounted.
    Missing,
    /// Nothing, in folders that hold images of others.
    NoVm,
}

/// Whether the images are there. `is_known` says that there is other evidence of the VM.
pub(super) async fn find_images(
    paths: &VmPaths,
    is_known: bool,
) -> Result<ImagePresence, QemuError> {
    let mut missing = 0_usize;
    for image in &paths.images {
        match fs::metadata(image).await {
            Ok(_there) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                missing = missing.saturating_add(1);
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(QemuError::AccessDenied(error.to_string()));
            }
            Err(error) => return Err(QemuError::ImageMissing(error.to_string())),
        }
    }
    if missing == 0 {
        return Ok(ImagePresence::Complete);
    }
    if is_known || missing < paths.images.len() {
        return Ok(ImagePresence::Missing);
    }
    for home in &paths.homes {
        let is_evidence = match home {
            ImageLocation::Fixed => true,
            ImageLocation::Shared(folder) => is_empty(folder).await,
            ImageLocation::Own(shared, own) => {
                fs::try_exists(own).await.unwrap_or(true) || is_empty(shared).await
            }
        };
        if is_evidence {
            return Ok(ImagePresence::Missing);
        }
    }
    Ok(ImagePresence::NoVm)
}

/// Whether the folder holds nothing, as the mount point of a file system that is not mounted, or is not there.
async fn is_empty(folder: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(folder).await else {
        return true;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name() != "lost+found" {
            return false;
        }
    }
    true
}

/// Device and inode.
async fn file_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).await.ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn conflict(text: PublicText) -> AdapterError {
    AdapterError::refused(FaultKind::Conflict, text)
}

/// Whether a running VM writes to these disks, and they are the images of the configuration.
///
/// # Errors
/// A refusal that names the first disk that is not.
pub(super) async fn check_running(seen: &VmView, paths: &VmPaths) -> Result<(), AdapterError> {
    for disk in &seen.disks {
        check_obstacle(disk)?;
    }
    if paths.images.is_empty() {
        for disk in &seen.disks {
            if let Some(file) = &disk.file {
                check_lock(disk, file).await?;
            }
        }
        return Ok(());
    }
    let (disks, images) = (seen.disks.len(), paths.images.len());
    if disks != images {
        return Err(conflict(public_text!(
            "The running VM has {disks} disks to back up, but `images` names {images}; nothing was changed. Attach or detach disks, or correct `disks` and `images`."
        )));
    }
    for (disk, image) in seen.disks.iter().zip(&paths.images) {
        check_image(disk, image).await?;
    }
    Ok(())
}

fn check_obstacle(disk: &Disk) -> Result<(), AdapterError> {
    let label = &disk.label;
    let Some(obstacle) = disk.obstacle else {
        return Ok(());
    };
    Err(conflict(match obstacle {
        DiskObstacle::NoSuchNode => public_text!(
            "The running VM has no disk {label}; nothing was changed. Attach it again, or correct `disks`."
        ),
        DiskObstacle::NotWritten => public_text!(
            "The running VM does not write to disk {label}: it has an overlay, or it was detached. Nothing was changed. Merge the overlay or attach the disk again, or correct `disks` and `images`."
        ),
        DiskObstacle::ReadOnly => public_text!(
            "Disk {label} is attached read-only; nothing was changed. Attach it writable, or leave it out of `disks`."
        ),
        DiskObstacle::TemporaryOverlay => public_text!(
            "The VM writes disk {label} to a temporary overlay, which is lost when the VM stops; nothing was changed. Start the VM without `-snapshot`."
        ),
    }))
}

async fn check_image(disk: &Disk, image: &Path) -> Result<(), AdapterError> {
    let (label, name) = (&disk.label, file_name(image));
    if let Err(error) = fs::metadata(image).await
        && error.kind() == ErrorKind::NotFound
    {
        return Err(conflict(public_text!(
            "The image {name} of disk {label} is missing: it was renamed or removed, or its storage is not mounted. Nothing was changed. Put it back, or correct `images`."
        )));
    }
    let used = match &disk.file {
        Some(file) => file_id(file).await,
        None => None,
    };
    // What cannot be looked at from here is known by its lock alone.
    if let Some(used) = used
        && let Some(configured) = file_id(image).await
        && used != configured
    {
        return Err(conflict(public_text!(
            "Disk {label} of the running VM does not use the image {name}; nothing was changed. Merge the overlay if there is one, or correct `disks` and `images`."
        )));
    }
    check_lock(disk, image).await
}

/// A QEMU that writes to an image holds a lock on it: none means that the file at this path is another one by now.
async fn check_lock(disk: &Disk, image: &Path) -> Result<(), AdapterError> {
    if is_written(image).await != Some(false) {
        return Ok(());
    }
    let (name, label) = (file_name(image), &disk.label);
    Err(conflict(public_text!(
        "No program has the image {name} of disk {label} open: it was replaced while the VM runs, or image locking is off. Nothing was changed. Put the image back, or restart the VM with image locking on."
    )))
}

/// Whether every image could be opened for writing. Nothing is written, and no lock is taken.
///
/// # Errors
/// What QEMU would say of the first that cannot.
pub(super) async fn check_writable(images: &[PathBuf]) -> Result<(), QemuError> {
    for image in images {
        let opened = fs::OpenOptions::new().write(true).open(image).await;
        let file = opened.map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                QemuError::ImageMissing(error.to_string())
            } else {
                QemuError::Refused(error.to_string())
            }
        })?;
        let file = file.into_std().await;
        let mut locks = WRITER_LOCKS.into_iter();
        if locks.any(|byte| is_locked(&file, byte) == Some(true)) {
            return Err(QemuError::Refused(
                "Failed to get \"write\" lock".to_owned(),
            ));
        }
    }
    Ok(())
}

/// Whether some program holds QEMU's lock for writing on the image; `None` when that cannot be found out.
async fn is_written(image: &Path) -> Option<bool> {
    let file = fs::File::open(image).await.ok()?.into_std().await;
    is_locked(&file, WRITE_LOCK)
}

/// Whether another program holds a lock on this byte of an image; `None` when that cannot be found out.
fn is_locked(file: &std::fs::File, byte: i64) -> Option<bool> {
    let short = |value: i32| i16::try_from(value).map_err(|_too_large| Errno::EINVAL);
    let mut lock = libc::flock {
        l_type: short(libc::F_WRLCK).ok()?,
        l_whence: short(libc::SEEK_SET).ok()?,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    Some(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Whether the images of a stopped VM are those that it will run on, as far as that can be known: it ran on them
/// last, and no overlay in their folders lies above one.
///
/// # Errors
/// A refusal that names the first image of which that is not so.
pub(super) async fn check_stopped(
    paths: &VmPaths,
    last_written: &[PathBuf],
) -> Result<(), AdapterError> {
    for image in &paths.images {
        let Some(configured) = file_id(image).await else {
            return Err(QemuError::ImageMissing(file_name(image)).into());
        };
        let name = file_name(image);
        if wrote_elsewhere(paths, last_written, configured).await {
            return Err(conflict(public_text!(
                "When the VM last ran, it did not write to the image {name}; nothing was changed. Merge the overlay if there is one, or correct `images`."
            )));
        }
        match find_overlay(image, configured, FOLDER_ENTRIES_MAX).await {
            Overlay::None => {}
            Overlay::Found(overlay) => {
                let overlay = file_name(&overlay);
                return Err(conflict(public_text!(
                    "The image {name} is the backing file of {overlay}, which a change would damage; nothing was changed. Merge {overlay}, or remove it if it is no longer used."
                )));
            }
            Overlay::Unknown => {
                return Err(conflict(public_text!(
                    "The folder of the image {name} has more than {FOLDER_ENTRIES_MAX} files or cannot be read to its end, so an overlay of the image may be among them; nothing was changed. Move the image to a folder with fewer files, or check the disk."
                )));
            }
        }
    }
    Ok(())
}

/// Whether the VM last wrote to another file instead of this image: to an overlay of it, or, where every disk of the VM
/// is configured, to a file that is none of the images.
async fn wrote_elsewhere(paths: &VmPaths, last_written: &[PathBuf], image: (u64, u64)) -> bool {
    let mut configured = Vec::new();
    for image in &paths.images {
        configured.extend(file_id(image).await);
    }
    let mut others = Vec::new();
    for file in last_written {
        match file_id(file).await {
            Some(id) if id == image => return false,
            Some(id) if !configured.contains(&id) => others.push(file),
            Some(_) | None => {}
        }
    }
    if paths.disks.is_empty() && !others.is_empty() {
        return true;
    }
    for file in others {
        if has_below(file, image).await {
            return true;
        }
    }
    false
}

/// Whether the image is among the backing files of this file.
async fn has_below(file: &Path, image: (u64, u64)) -> bool {
    let mut above = file.to_owned();
    for _ in 0..CHAIN_MAX {
        let Some(backing) = backing_of(&above).await else {
            return false;
        };
        if file_id(&backing).await == Some(image) {
            return true;
        }
        above = backing;
    }
    false
}

/// What the folders of an image say about overlays of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Overlay {
    None,
    /// This file has the image as its backing file.
    Found(PathBuf),
    /// Not all files could be looked at.
    Unknown,
}

/// Looks for a file beside the image that has it as its backing file. A folder that may not be listed has none.
async fn find_overlay(image: &Path, id: (u64, u64), entries_max: usize) -> Overlay {
    let mut folders = BTreeSet::new();
    folders.extend(image.parent().map(Path::to_owned));
    let target = fs::canonicalize(image).await.ok();
    folders.extend(target.as_deref().and_then(Path::parent).map(Path::to_owned));
    let mut is_complete = true;
    for folder in folders {
        let Ok(mut entries) = fs::read_dir(&folder).await else {
            continue;
        };
        let mut looked_at = 0_usize;
        loop {
            let Ok(next) = entries.next_entry().await else {
                is_complete = false;
                break;
            };
            let Some(entry) = next else { break };
            looked_at = looked_at.saturating_add(1);
            if looked_at > entries_max {
                is_complete = false;
                break;
            }
            let path = entry.path();
            let is_file = fs::metadata(&path)
                .await
                .is_ok_and(|metadata| metadata.is_file());
            if is_file
                && let Some(backing) = backing_of(&path).await
                && file_id(&backing).await == Some(id)
            {
                return Overlay::Found(path);
            }
        }
    }
    if is_complete {
        Overlay::None
    } else {
        Overlay::Unknown
    }
}

/// The backing file of an image.
async fn backing_of(path: &Path) -> Option<PathBuf> {
    let name = qcow2::backing(path).await.ok()??;
    let name = block_graph::bottom_file(&name)?;
    // A name without a leading slash counts from the overlay's own folder.
    let folder = path.parent()?;
    Some(folder.join(name.strip_prefix("file:").unwrap_or(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a qcow2 image that names its backing file.
    fn write_overlay(path: &Path, backing: &str) {
        let mut bytes = b"QFI\xfb".to_vec();
        bytes.extend(3_u32.to_be_bytes());
        bytes.extend(112_u64.to_be_bytes());
        bytes.extend(u32::try_from(backing.len()).unwrap().to_be_bytes());
        bytes.resize(112, 0);
        bytes.extend(backing.as_bytes());
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_not_looked_at_to_its_end_may_hold_an_overlay() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["image", "other", "another"] {
            std::fs::write(at(name), b"raw").unwrap();
        }
        let id = file_id(&at("image")).await.unwrap();
        let find = async |image: &Path, entries_max| find_overlay(image, id, entries_max).await;
        let image = at("image");
        assert_eq!(find(&image, 3).await, Overlay::None, "all of them");
        assert_eq!(find(&image, 2).await, Overlay::Unknown, "not all of them");
        let nowhere = at("missing/image");
        assert_eq!(find(&nowhere, 0).await, Overlay::None, "no folder");
        write_overlay(&at("overlay"), "image");
        let expected = Overlay::Found(at("overlay"));
        assert_eq!(find(&image, 4).await, expected, "found");
    }
}
