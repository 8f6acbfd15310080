//! What the running process may do: restrictions of the service manager that break a backend, and rights beyond need.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Access;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketType;

use crate::app::doctor::finding::Finding;
use crate::app::doctor::machine::WrittenFolder;
use crate::config::Settings;

pub(super) const SANDBOX: &str = "sandbox";
pub(super) const RIGHTS: &str = "rights";

/// Most folders of VMs that are looked at.
const VMS_MAX: usize = 1000;
/// `CAP_CHOWN` in the masks of `/proc/self/status`.
const CAP_CHOWN: u64 = 1;

/// Folders that this process sees as read-only, and kinds of sockets that it may not open.
pub(super) fn check_own_sandbox(folders: &[WrittenFolder]) -> Vec<Finding> {
    let mut found = Vec::new();
    for folder in folders {
        let access = Access::READ_OK | Access::WRITE_OK;
        let checked = rustix::fs::accessat(CWD, &folder.path, access, AtFlags::EACCESS);
        if checked == Err(Errno::ROFS) {
            let (key, path) = (&folder.key, folder.path.display());
            found.push(Finding::new(
                SANDBOX,
                format!("{key}: the running gateway sees {path} as read-only"),
                "Backups, restores and records there fail.",
                format!(
                    "Add ReadWritePaths={path} to the unit (systemctl edit snapgate), or mount the file system writable."
                ),
            ));
        }
    }
    for (family, name, user) in [
        (AddressFamily::UNIX, "AF_UNIX", "local VM managers"),
        (AddressFamily::INET, "AF_INET", "VM managers over IPv4"),
    ] {
        let opened = rustix::net::socket(family, SocketType::STREAM, None);
        if let Err(Errno::AFNOSUPPORT | Errno::ACCESS | Errno::PERM) = opened {
            found.push(Finding::new(
                SANDBOX,
                format!("the running gateway may not open sockets of {name}"),
                format!("It cannot reach {user}."),
                format!(
                    "Add {name} to RestrictAddressFamilies of the unit (systemctl edit snapgate)."
                ),
            ));
        }
    }
    found
}

/// Rights of the process that no backend needs.
pub(super) fn check_own_rights(settings: &Settings) -> Option<Finding> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let remedy = if settings
        .backends
        .iter()
        .any(|backend| is_local(backend.config.kind()))
    {
        "Run it as a user of its own, with the rights of the drop-ins for its kinds of backends (docs/install.md)."
    } else {
        "Run it as a user of its own: none of its backends needs a right on this machine."
    };
    Some(Finding::new(
        RIGHTS,
        "the gateway runs as root",
        "A flaw in the gateway would give every right on this machine.",
        remedy,
    ))
}

/// Whether backends of the kind work on files or sockets of this machine.
fn is_local(kind: &str) -> bool {
    ["files", "qemu", "libvirt", "incus"].contains(&kind)
}

/// Images that belong to other users than the gateway's, while it may not give files away: restored images would have the
/// wrong owner, so restores are refused.
pub(super) fn check_foreign_images(settings: &Settings) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if capabilities.is_none_or(|mask| mask & CAP_CHOWN != 0) {
        return Vec::new();
    }
    let own = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for backend in &settings.backends {
        for folder in backend.config.folders() {
            if folder.has_vm_folders
                && let Some(image) = foreign_image(folder.path, own)
            {
                found.push(Finding::new(
                    SANDBOX,
                    format!("backend {}: {image} belongs to another user, and the gateway may not give files away", backend.name),
                    "A restore of this VM is refused: the restored image would have the wrong owner.",
                    "Give the gateway CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE, as the drop-in for files does, or change the owner.",
                ));
            }
        }
    }
    found
}

/// The first image below the folders of VMs that another user owns.
fn foreign_image(root: &Path, own: u32) -> Option<String> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries(root).take(VMS_MAX);
    let mut images = folders.flat_map(|vm| entries(&vm.path()));
    images.find_map(|image| {
        let about = image.metadata().ok()?;
        let is_foreign = about.is_file() && about.uid() != own;
        is_foreign.then(|| image.path().display().to_string())
    })
}
