//! Snapshots and archives of one guest as backups.

use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::notes::Notes;
use crate::adapters::proxmox::notes::Place;
use crate::adapters::proxmox::wire;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupState;
use crate::model::Identity;
use crate::model::Timestamp;
use crate::model::VmId;

/// A native backup of a guest.
#[derive(Clone, Debug)]
pub(super) enum NativeBackup {
    /// A snapshot in the storage of the guest.
    Snapshot(wire::Snapshot),
    /// An archive on a storage for backups.
    Archive {
        /// The storage.
        storage: String,
        /// The archive with all of its notes.
        volume: wire::Volume,
    },
}

impl NativeBackup {
    /// The kind of the backup.
    pub(super) const fn kind(&self) -> BackupKind {
        match self {
            Self::Snapshot(_) => BackupKind::Snapshot,
            Self::Archive { .. } => BackupKind::Full,
        }
    }

    /// What people and the gateway wrote about it.
    pub(super) fn notes(&self) -> Notes {
        match self {
            Self::Snapshot(snapshot) => Notes::read(snapshot.description.as_deref(), Place::Last),
            Self::Archive { volume, .. } => Notes::read(volume.notes.as_deref(), Place::First),
        }
    }

    /// What it is called natively: the name of a snapshot, the volume of an archive.
    pub(super) fn native(&self) -> &str {
        match self {
            Self::Snapshot(snapshot) => &snapshot.name,
            Self::Archive { volume, .. } => &volume.volid,
        }
    }

    /// Whether a task that makes or removes it has not ended well yet.
    pub(super) const fn is_unfinished(&self) -> bool {
        match self {
            Self::Snapshot(snapshot) => snapshot.snapstate.is_some(),
            Self::Archive { .. } => false,
        }
    }

    /// The id: the one that the gateway gave to an archive, else the native one.
    pub(super) fn id(&self) -> Option<BackupId> {
        let given = match self {
            Self::Snapshot(_) => None,
            Self::Archive { .. } => self.notes().id,
        };
        BackupId::new(given.as_deref().unwrap_or_else(|| self.native())).ok()
    }

    /// What sets it apart from another one that has the same id later.
    pub(super) fn identity(&self, guest: &Guest) -> Identity {
        let vmid = &guest.vmid;
        Identity::new(match self {
            Self::Snapshot(snapshot) => {
                let made = snapshot.snaptime.unwrap_or_default();
                format!("snapshot/{vmid}/{}/{made}", snapshot.name)
            }
            Self::Archive { volume, .. } => {
                format!(
                    "archive/{}/{}",
                    volume.volid,
                    volume.ctime.unwrap_or_default()
                )
            }
        })
    }

    /// The backup as callers see it; `None` where its native name cannot be an id.
    pub(super) fn backup(&self, guest: &Guest) -> Option<Backup> {
        let notes = self.notes();
        let id = self.id()?;
        let name = match &notes.name {
            Some(name) => name.clone(),
            None => BackupName::new(self.native()).ok()?,
        };
        let (seconds, size, protected) = match self {
            Self::Snapshot(snapshot) => (snapshot.snaptime, None, notes.protected),
            Self::Archive { volume, .. } => (volume.ctime, volume.size, volume.protected),
        };
        let state = if self.is_unfinished() {
            BackupState::Error
        } else {
            BackupState::Available
        };
        Some(Backup {
            id,
            identity: self.identity(guest),
            name,
            description: notes.description(),
            kind: Some(self.kind()),
            created: Timestamp::from_millis(seconds.unwrap_or_default().saturating_mul(1000)),
            tags: notes.tags,
            state,
            size,
            protected,
        })
    }
}

/// Whether a VM id can be the number of a guest: 100 to 999999999, as the vendor's schema says.
pub(super) fn is_vmid(vm: &VmId) -> bool {
    let text = vm.as_str();
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    is_decimal && (3..=9).contains(&text.len()) && !text.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_guests_are_looked_up() {
        for (text, expected) in [
            ("100", true),
            ("999999999", true),
            ("99", false),
            ("0100", false),
            ("1000000000", false),
            ("1e3", false),
            ("100/..", false),
        ] {
            assert_eq!(is_vmid(&VmId::new(text).unwrap()), expected, "{text}");
        }
    }
}
