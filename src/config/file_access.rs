//! Access to files: secrets that other users can read, and images that the gateway cannot change.

use std::ffi::CString;
use std::fs;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Gid;
use nix::unistd::Uid;
use nix::unistd::User;
use rustix::fs::Access;
use rustix::fs::AtFlags;
use rustix::fs::CWD;

use crate::adapters::kind::BackendFolder;
use crate::config::settings::Settings;
use crate::gate::Placement;
use crate::model::BackendName;
use crate::schema::SecretFile;

/// Most folders of VMs that are looked at.
const VMS_MAX: usize = 10_000;
/// Most files of one kind that are named; the rest is counted.
const NAMED_MAX: usize = 5;
const READ: u32 = 4;
const WRITE: u32 = 2;
const ENTER: u32 = 1;

/// A sentence for each file with a secret that every user of the machine can read or write.
pub(super) fn secrets(settings: &Settings) -> Vec<String> {
    let mut stores = vec![SecretFile {
        path: settings.operations.operator_file(),
        holds: "the token of the admin port",
    }];
    if let Some(store) = settings.operations.store.file() {
        stores.extend(["", "-wal"].map(|ending| {
            let mut name = store.as_os_str().to_owned();
            name.push(ending);
            let (path, holds) = (name.into(), "the operations of all users");
            SecretFile { path, holds }
        }));
    }
    let mut found = Vec::new();
    for SecretFile { path, holds } in settings.secrets.iter().chain(&stores) {
        let Ok(about) = fs::metadata(path) else {
            continue;
        };
        let can = match about.mode() & (READ | WRITE) {
            0 => continue,
            READ => "read",
            WRITE => "write",
            _ => "read and write",
        };
        let (path, mode) = (path.display(), about.mode() & 0o7777);
        found.push(format!(
            "{path}: every user of this machine can {can} {holds} (mode {mode:04o}); run: chmod o-rwx {path}"
        ));
    }
    found
}

/// A sentence for each folder of a backend that is missing or cannot be used, and for images that the gateway cannot change.
/// Reads metadata, and blocks.
pub(super) fn folders(settings: &Settings) -> Vec<String> {
    let operator_file = settings.operations.operator_file();
    let own = settings.operations.store.file();
    let user = GatewayUser::of(own.unwrap_or(&operator_file));
    let mut found = Vec::new();
    for (index, backend) in settings.backends.iter().enumerate() {
        let vms = BackendVms {
            backend: &backend.name,
            placements: &settings.gate.placements,
        };
        let folders = backend.config.folders();
        let key = |folder: &BackendFolder<'_>| {
            format!("backend[{index}].{}.{}", backend.config.kind(), folder.key)
        };
        for folder in &folders {
            let problem = folder_problem(folder.path, &user);
            found.extend(problem.map(|problem| format!("{}: {problem}", key(folder))));
        }
        for folder in folders.iter().filter(|folder| folder.has_vm_folders) {
            let problem = image_problem(folder.path, &vms, &user);
            found.extend(problem.map(|problem| format!("{}: {problem}", key(folder))));
        }
    }
    found
}

/// Why a folder cannot be used.
fn folder_problem(path: &Path, user: &GatewayUser) -> Option<String> {
    let shown = path.display();
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some(format!(
                "{shown} does not exist; the backend is unavailable until it does: create it, or mount the file system it is on"
            ));
        }
        Err(error) => {
            return Some(format!(
                "{shown} cannot be opened ({}); the backend is unavailable until it can",
                error.kind()
            ));
        }
    };
    (!user.may(path, &about, READ | WRITE | ENTER)).then(|| {
        format!("{user} cannot read and write the folder {shown}; correct its owner or mode")
    })
}

/// The VMs of one backend.
struct BackendVms<'a> {
    backend: &'a BackendName,
    placements: &'a [Placement],
}

impl BackendVms<'_> {
    fn include(&self, id: &str) -> bool {
        let mut all = self.placements.iter();
        all.any(|placement| placement.backend == *self.backend && placement.pattern.matches(id))
    }
}

/// The images and folders of VMs that the gateway cannot change.
fn image_problem(root: &Path, vms: &BackendVms<'_>, user: &GatewayUser) -> Option<String> {
    let mut unwritable = Vec::new();
    for vm in entries(root).take(VMS_MAX) {
        let name = vm.file_name();
        let is_its_own = name.to_str().is_some_and(|id| vms.include(id));
        let path = vm.path();
        let Some(about) = vm.metadata().ok().filter(Metadata::is_dir) else {
            continue;
        };
        if !is_its_own {
            continue;
        }
        if !user.may(&path, &about, READ | WRITE | ENTER) {
            unwritable.push(path.display().to_string());
            continue;
        }
        for image in entries(&path) {
            let about = image.metadata().ok().filter(Metadata::is_file);
            if about.is_some_and(|about| !user.may(&image.path(), &about, READ | WRITE)) {
                unwritable.push(image.path().display().to_string());
            }
        }
    }
    if unwritable.is_empty() {
        return None;
    }
    unwritable.sort();
    let more = unwritable.len().saturating_sub(NAMED_MAX);
    unwritable.truncate(NAMED_MAX);
    let mut list = unwritable.join(", ");
    if more > 0 {
        list = format!("{list}, and {more} more");
    }
    Some(format!(
        "{user} cannot read and write {list}; backups or restores of these VMs will fail; correct their owner or mode"
    ))
}

/// What is in a folder and not hidden; nothing where it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
}

/// The user that the gateway runs as.
enum GatewayUser {
    /// The one of this process.
    Current,
    /// Another one, as root sees it: the owner of the store.
    Other {
        name: String,
        user: u32,
        groups: Vec<u32>,
    },
}

impl std::fmt::Display for GatewayUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Current => f.write_str("the user of this process"),
            Self::Other { name, .. } => write!(f, "the gateway's user {name} (owner of the store)"),
        }
    }
}

impl GatewayUser {
    /// Root may check the configuration of a gateway that runs as another user: the one who owns the store, or its folder
    /// while there is no store.
    fn of(store: &Path) -> Self {
        let owner = fs::metadata(store)
            .ok()
            .or_else(|| fs::metadata(store.parent()?).ok())
            .map(|about| (about.uid(), about.gid()));
        match owner {
            Some((owner, group)) if Uid::effective().is_root() && owner != 0 => {
                Self::other(owner, group)
            }
            Some(_) | None => Self::Current,
        }
    }

    fn other(owner: u32, group: u32) -> Self {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(owner)) else {
            return Self::Other {
                name: owner.to_string(),
                user: owner,
                groups: vec![group],
            };
        };
        let groups = CString::new(user.name.as_str())
            .ok()
            .and_then(|name| nix::unistd::getgrouplist(&name, user.gid).ok())
            .unwrap_or_else(|| vec![user.gid]);
        Self::Other {
            name: user.name,
            user: owner,
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        }
    }

    /// Whether it may do all of this, in bits of one class of a mode.
    fn may(&self, path: &Path, about: &Metadata, wanted: u32) -> bool {
        match self {
            Self::Current => {
                let wanted = Access::from_bits_truncate(wanted);
                rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS).is_ok()
            }
            Self::Other { user, groups, .. } => {
                let granted = if about.uid() == *user {
                    about.mode() >> 6
                } else if groups.contains(&about.gid()) {
                    about.mode() >> 3
                } else {
                    about.mode()
                };
                granted & wanted == wanted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn another_user_has_the_rights_of_the_first_class_it_is_in() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk.img");
        fs::write(&file, "").unwrap();
        let own = fs::metadata(&file).unwrap();
        let user = |user, group| GatewayUser::Other {
            name: String::new(),
            user,
            groups: vec![group],
        };
        let (owner, group) = (own.uid(), own.gid());
        let rows = [
            (0o600, user(owner, 1), true),
            (0o066, user(owner, group), false),
            (0o660, user(owner.wrapping_add(1), group), true),
            (0o606, user(owner.wrapping_add(1), group), false),
            (
                0o666,
                user(owner.wrapping_add(1), group.wrapping_add(1)),
                true,
            ),
            (
                0o664,
                user(owner.wrapping_add(1), group.wrapping_add(1)),
                false,
            ),
        ];
        for (mode, user, expected) in rows {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let about = fs::metadata(&file).unwrap();
            assert_eq!(user.may(&file, &about, READ | WRITE), expected, "{mode:o}");
        }
    }
}
