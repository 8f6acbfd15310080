//! Folders of single VMs that are file systems of their own: recorded once, and missed when they are not mounted.
//!
//! The record of `root/<vm>` or `backups/<vm>` is an empty file in `root/` or `backups/` of `backups/.snapgate-mounts/`.

use rustix::fs::StatxAttributes;
use rustix::io::Errno;

use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::folder_marks::Role;
use crate::model::FaultKind;
use crate::public_text;

const MOUNTS: &str = ".snapgate-mounts";

fn records(backups: &Dir, role: Role) -> Result<Option<Dir>, Errno> {
    match backups.dir(MOUNTS).and_then(|dir| dir.dir(role.key())) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn is_recorded(backups: &Dir, role: Role, vm: &str) -> Result<bool, Problem> {
    let records = records(backups, role).map_err(io_error("looking for records of mounts"))?;
    Ok(records.is_some_and(|records| records.stat(vm).is_ok()))
}

fn is_mount(dir: &Dir) -> bool {
    let attributes = dir.own_attributes();
    attributes.is_ok_and(|attributes| attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Refuses the folder of a VM, there or not, in place of the file system that was mounted there.
pub(super) fn refuse_unmounted(
    backups: &Dir,
    role: Role,
    vm: &str,
    found: Option<&Dir>,
) -> Result<(), Problem> {
    if found.is_some_and(is_mount) || !is_recorded(backups, role, vm)? {
        return Ok(());
    }
    let text = public_text!(
        "The file system of the VM's directory in `{key}` is not mounted. Mount it; if the directory is no longer a file system of its own, \
         remove its record from the directory `{MOUNTS}/{key}` in `backups`.",
        key = role.key()
    );
    Err(Problem::new(FaultKind::Unavailable, text).of_one_vm())
}

/// Remembers that the folder of a VM is a file system of its own, if it is.
pub(super) fn record_mount(
    backups: &Dir,
    role: Role,
    vm: &str,
    found: &Dir,
) -> Result<(), Problem> {
    if !is_mount(found) || is_recorded(backups, role, vm)? {
        return Ok(());
    }
    let doing = io_error("recording a mount");
    let inner = |dir: &Dir, name: &str| match dir.dir(name) {
        Err(Errno::NOENT) => dir.make_dir(name),
        other => other,
    };
    let all = inner(backups, MOUNTS).map_err(&doing)?;
    let records = inner(&all, role.key()).map_err(&doing)?;
    records.create(vm).map_err(&doing)?;
    for dir in [&records, &all, backups] {
        dir.sync().map_err(&doing)?;
    }
    Ok(())
}
