//! What would keep a swap, a rename or a removal from being carried out, found before the first step.

use rustix::fs::IFlags;
use rustix::fs::StatxAttributes;
use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::layout;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::MANIFEST;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Exchanged with each other in the VM's folder and the staging folder.
const PROBE: &str = ".snapgate-probe";
/// `CAP_FOWNER` as the number of its bit in `/proc/self/status`.
const CAP_FOWNER: u32 = 3;

fn conflict(text: PublicText) -> Problem {
    Problem::new(FaultKind::Conflict, text)
}

/// What an attribute forbids, as a verb phrase, and its remedy.
fn obstacle(attributes: StatxAttributes) -> Option<(&'static str, &'static str)> {
    if attributes.contains(StatxAttributes::MOUNT_ROOT) {
        Some(("is a mount point", "Unmount it"))
    } else if attributes.contains(StatxAttributes::IMMUTABLE) {
        Some(("is immutable", "Remove that attribute with `chattr -i`"))
    } else if attributes.contains(StatxAttributes::APPEND) {
        Some(("is append-only", "Remove that attribute with `chattr -a`"))
    } else {
        None
    }
}

/// Refuses a folder in which nothing can be renamed. That it is a mount point does not matter.
pub(super) fn check_folder(dir: &Dir, what: &str) -> Result<(), Problem> {
    let doing = io_error("looking at the attributes of a folder");
    let attributes = dir.own_attributes().map_err(doing)?;
    let attributes = attributes.difference(StatxAttributes::MOUNT_ROOT);
    match obstacle(attributes) {
        Some((obstacle, remedy)) => Err(conflict(public_text!(
            "{what} {obstacle}, so nothing was changed. {remedy}."
        ))),
        None if dir.is_writable() => Ok(()),
        None => {
            let text = public_text!(
                "{what} is not writable for the gateway's user, so nothing was changed. Give that user permission to write and search it."
            );
            Err(Problem::new(FaultKind::BackendDenied, text))
        }
    }
}

/// Refuses a disk image that cannot be replaced.
pub(super) fn check_replaceable(vm: &Dir, disk: &DiskName) -> Result<(), Problem> {
    let doing = io_error("looking at the attributes of a disk image");
    let name = disk.as_str();
    let refused = |(why, remedy): (&str, &str)| {
        conflict(public_text!(
            "The disk `{name}` {why}, so nothing was changed. {remedy}."
        ))
    };
    let attributes = vm.attributes(name).map_err(&doing)?;
    if let Some(obstacle) = obstacle(attributes) {
        return Err(refused(obstacle));
    }
    let (image, home) = (
        vm.stat(name).map_err(&doing)?,
        vm.stat_self().map_err(&doing)?,
    );
    if image.st_dev != home.st_dev {
        return Err(refused((
            "is on another file system than the VM's directory",
            "Move it there",
        )));
    }
    // Some file systems show their attributes by this call only.
    let file = layout::open_disk(vm, disk)?;
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file)
        && flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)
    {
        return Err(refused((
            "is immutable or append-only",
            "Remove that attribute with `chattr -ia`",
        )));
    }
    let sticky = home.st_mode & 0o1000 != 0;
    let ours = rustix::process::geteuid().as_raw();
    if sticky && ours != image.st_uid && ours != home.st_uid && !has_capability(CAP_FOWNER) {
        return Err(Problem::new(
            FaultKind::BackendDenied,
            public_text!(
                "The disk `{name}` belongs to another user and the VM's directory has the sticky bit, so the gateway may not replace it; nothing was changed. Change the owner of the disk, or remove the bit."
            ),
        ));
    }
    Ok(())
}

fn has_capability(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

/// Exchanges two empty files between the VM's folder and the staging folder, as the images will be: whatever forbids that, rights,
/// attributes, a file system that cannot, is known then.
pub(super) fn probe_exchange(vm: &Dir, staging: &Dir) -> Result<(), Problem> {
    vm.unlink(PROBE).map_err(io_error("removing a probe"))?;
    let probed = vm
        .create(PROBE)
        .and_then(|_file| staging.create(PROBE))
        .and_then(|_file| vm.exchange(PROBE, staging, PROBE));
    let removed = vm.unlink(PROBE).and_then(|()| staging.unlink(PROBE));
    match probed {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let text = public_text!(
                "The file system of the VM's directory cannot exchange two files atomically, which a restore needs; nothing was changed. \
                 Keep the VM on ext4, XFS, Btrfs or tmpfs."
            );
            Err(Problem::new(FaultKind::Unsupported, text))
        }
        Err(errno) => Err(io_error("exchanging two probes in the VM's folder")(errno)),
        Ok(()) => removed.map_err(io_error("removing a probe")),
    }
}

/// Removes what a probe that was killed left.
pub(super) fn remove_probe(vm: &Dir) -> Result<(), Errno> {
    match vm.stat(PROBE) {
        Ok(_) => vm.unlink(PROBE),
        Err(_nothing) => Ok(()),
    }
}

/// Refuses a backup of which a part cannot be removed: deleted it would keep its room, and every later delete from working.
pub(super) fn check_removable(backup: &Dir) -> Result<(), Problem> {
    let doing = io_error("looking at the attributes of a backup");
    check_folder(backup, "The directory of the backup")?;
    check_entry(backup, MANIFEST)?;
    let disks = match backup.dir(DISKS) {
        Ok(disks) => disks,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(doing(errno)),
    };
    check_entry(backup, DISKS)?;
    for name in disks.names().map_err(&doing)? {
        if let Ok(name) = name.to_str() {
            check_entry(&disks, name)?;
        }
    }
    Ok(())
}

fn check_entry(dir: &Dir, name: &str) -> Result<(), Problem> {
    let attributes = dir.attributes(name);
    match obstacle(attributes.map_err(io_error("looking at the attributes of a backup"))?) {
        Some((obstacle, remedy)) => Err(conflict(public_text!(
            "The entry `{name}` of the backup {obstacle}, so nothing was changed. {remedy}."
        ))),
        None => Ok(()),
    }
}
