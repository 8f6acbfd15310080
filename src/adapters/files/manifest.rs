//! What is written beside the disks of a backup: `manifest.json`, versioned, never trusted on reading.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::copy;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Tag;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::public_text;

/// The manifest's name in the directory of a backup.
pub(super) const MANIFEST: &str = "manifest.json";
/// The directory of the disks in that of a backup.
pub(super) const DISKS: &str = "disks";
/// What describes a VM in its directory; not a disk.
pub(super) const VM_JSON: &str = "vm.json";
/// The version written; older ones are read.
const FORMAT: u32 = 1;
/// Largest manifest in bytes: some ten thousand disks.
const BYTES_MAX: u64 = 4 << 20;

/// The name of a disk image: one visible component in UTF-8, and not `vm.json`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct DiskName(String);

impl DiskName {
    /// The name as it is.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, &'static str> {
        if is_visible(&name) && name != VM_JSON {
            Ok(Self(name))
        } else {
            Err("not the name of a disk image")
        }
    }
}

impl From<DiskName> for String {
    fn from(name: DiskName) -> Self {
        name.0
    }
}

/// One disk of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupDisk {
    /// Its name, in the VM and in the backup.
    pub(super) name: DiskName,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Bytes in it that are not zero.
    pub(super) data: u64,
    /// 64 hexadecimal digits, made by the manifest's algorithm.
    pub(super) checksum: String,
}

/// All that is known of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    vm: VmId,
    id: BackupId,
    /// Random: sets it apart from an earlier backup of the same id.
    pub(super) token: String,
    /// The request that made it.
    pub(super) made_by: String,
    /// The request that changed it last.
    pub(super) changed_by: Option<String>,
    pub(super) name: BackupName,
    pub(super) description: Option<Description>,
    pub(super) tags: Vec<Tag>,
    pub(super) protected: bool,
    kind: BackupKind,
    created: Timestamp,
    algorithm: String,
    pub(super) disks: Vec<BackupDisk>,
}

impl Manifest {
    /// The manifest of a new backup without a name yet.
    pub(super) fn new(
        target: &Target,
        name: BackupName,
        created: Timestamp,
        token: String,
    ) -> Self {
        Self {
            format: FORMAT,
            vm: target.vm.clone(),
            id: target.backup.clone(),
            token,
            made_by: String::new(),
            changed_by: None,
            name,
            description: None,
            tags: Vec::new(),
            protected: false,
            kind: BackupKind::Full,
            created,
            algorithm: copy::ALGORITHM.to_owned(),
            disks: Vec::new(),
        }
    }

    /// The manifest in the directory of this backup.
    ///
    /// # Errors
    /// `Damaged` when it is missing, unreadable or that of another backup.
    pub(super) fn read(dir: &Dir, target: &Target) -> Result<Self, Problem> {
        let damaged = || {
            let text = public_text!(
                "The backup's manifest is missing or damaged, so the backup is unusable. Use another backup."
            );
            Problem::new(FaultKind::Damaged, text)
        };
        let foreign = |vm: &VmId| {
            let text = public_text!(
                "The backup belongs to the VM `{vm}`. If that VM was renamed, run the gateway's `adopt-backups` command."
            );
            Problem::new(FaultKind::Damaged, text)
        };
        let bytes = dir.read_small(MANIFEST, BYTES_MAX).map_err(|errno| {
            if [rustix::io::Errno::INVAL, rustix::io::Errno::FBIG].contains(&errno) {
                damaged().because(errno)
            } else {
                io_error("reading a manifest")(errno)
            }
        })?;
        let bytes = bytes.ok_or_else(damaged)?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged().because(error))?;
        match manifest.find_damage(target) {
            None if manifest.vm != target.vm => Err(foreign(&manifest.vm)),
            None => Ok(manifest),
            Some(damage) => Err(damaged().because(damage)),
        }
    }

    /// The manifest in a directory, whatever backup it says that it is of; `None` when it cannot be read.
    pub(super) fn salvage(dir: &Dir) -> Option<Self> {
        let bytes = dir.read_small(MANIFEST, BYTES_MAX).ok().flatten()?;
        let manifest: Self = serde_json::from_slice(&bytes).ok()?;
        (manifest.format == FORMAT).then_some(manifest)
    }

    /// The VM that it says that it is of.
    pub(super) const fn vm(&self) -> &VmId {
        &self.vm
    }

    /// The same as of another VM.
    pub(super) fn adopted_by(self, vm: &VmId) -> Self {
        Self {
            vm: vm.clone(),
            ..self
        }
    }

    fn find_damage(&self, target: &Target) -> Option<&'static str> {
        let in_order = |pair: &[BackupDisk]| match pair {
            [one, two] => one.name < two.name,
            _ => false,
        };
        if self.format != FORMAT {
            Some("written by another version")
        } else if self.id != target.backup {
            Some("of another backup")
        } else if self.algorithm != copy::ALGORITHM {
            Some("with an unknown checksum")
        } else if self.disks.is_empty() {
            Some("without disks")
        } else if !self.disks.windows(2).all(in_order) {
            Some("with disks out of order")
        } else {
            None
        }
    }

    /// The text that is stored.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Problem> {
        serde_json::to_vec_pretty(self).map_err(|error| {
            let text = public_text!(
                "The backup's manifest could not be written, so nothing was changed. Try again."
            );
            Problem::new(FaultKind::BackendFailed, text).because(error)
        })
    }

    /// What sets this backup apart.
    pub(super) fn identity(&self) -> Identity {
        Identity::new(self.token.clone())
    }

    /// Bytes of all disks, as long as the guest sees them.
    pub(super) fn length(&self) -> u64 {
        let lengths = self.disks.iter().map(|disk| disk.size);
        lengths.fold(0, u64::saturating_add)
    }

    /// Whether every disk is there in its length. Says nothing about contents.
    pub(super) fn is_whole(&self, dir: &Dir) -> bool {
        let Ok(disks) = dir.dir(DISKS) else {
            return false;
        };
        self.disks.iter().all(|disk| {
            disks.stat(disk.name.as_str()).is_ok_and(|stat| {
                rustix::fs::FileType::from_raw_mode(stat.st_mode)
                    == rustix::fs::FileType::RegularFile
                    && u64::try_from(stat.st_size) == Ok(disk.size)
            })
        })
    }

    /// The backup as callers see it.
    pub(super) fn backup(self, state: BackupState) -> Backup {
        let data = self.disks.iter().map(|disk| disk.data);
        Backup {
            identity: self.identity(),
            size: Some(data.fold(0, u64::saturating_add)),
            id: self.id,
            name: self.name,
            description: self.description,
            kind: Some(self.kind),
            created: self.created,
            tags: self.tags,
            state,
            protected: self.protected,
        }
    }

    /// Takes over what an update changed.
    pub(super) fn apply_update(&mut self, backup: Backup) {
        self.name = backup.name;
        self.description = backup.description;
        self.tags = backup.tags;
        self.protected = backup.protected;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_disk_names_do_not_enter() {
        let rows = [
            ("disk.raw", true),
            ("../other/disk.raw", false),
            ("/etc/passwd", false),
            ("..", false),
            (".snapgate-restore.json", false),
            ("vm.json", false),
            ("", false),
        ];
        for (name, expected) in rows {
            let json = serde_json::to_string(name).unwrap();
            let read = serde_json::from_str::<DiskName>(&json);
            assert_eq!(read.is_ok(), expected, "{name:?}");
        }
    }
}
