//! Loop devices on a disk image, which take no lock.
//!
//! A lease would show any opener, but the kernel gives one to the owner of the file or `CAP_LEASE` only, breaks it for openers
//! that come later, and none of the crates that are used offers it. The kernel's list of loop devices names the file of
//! each, and is readable by everybody.

use std::fs;
use std::path::Path;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::image_lock::ImageUse;
use crate::adapters::files::manifest::DiskName;
use crate::model::FaultKind;
use crate::public_text;

const BLOCK_DEVICES: &str = "/sys/block";

/// Refuses an image that a loop device is attached to, unless both only read it.
pub(super) fn refuse_attached(
    dir: &Dir,
    disk: &DiskName,
    image_use: ImageUse,
) -> Result<(), Problem> {
    let Ok(image) = dir.stat(disk.as_str()) else {
        return Ok(());
    };
    let is_image = |path: &str| {
        rustix::fs::stat(path)
            .is_ok_and(|it| it.st_dev == image.st_dev && it.st_ino == image.st_ino)
    };
    let devices = fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten();
    for device in devices {
        let read = |name: &str| fs::read_to_string(device.path().join(Path::new(name)));
        let Ok(backing) = read("loop/backing_file") else {
            continue;
        };
        let reads_only = read("ro").is_ok_and(|text| text.trim() == "1");
        if (image_use == ImageUse::Read && reads_only) || !is_image(backing.trim_end_matches('\n'))
        {
            continue;
        }
        let text = public_text!(
            "The disk `{}` is attached to the loop device `{}`, so nothing was changed. Detach it first (`losetup -d`).",
            disk.as_str(),
            device.file_name().to_string_lossy()
        );
        return Err(Problem::new(FaultKind::Busy, text));
    }
    Ok(())
}
