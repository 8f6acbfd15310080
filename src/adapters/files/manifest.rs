//! What is written beside the copies of a backup: everything that makes it a backup.

use std::io;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::error::While;
use crate::adapters::files::error::refuse;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_plain_name;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Tag;
use crate::model::Timestamp;

/// The name of the manifest in the directory of a backup.
pub(super) const MANIFEST: &str = "manifest.json";
/// The newest format this version writes; it reads all before.
const FORMAT: u32 = 1;
/// Largest manifest in bytes: thousands of disks.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most disks of one VM.
pub(super) const DISKS_MAX: usize = 256;
/// The one way checksums are made so far, see `copy.rs`.
pub(super) const CHECKSUM: &str = "blake3-blocks-64k";

/// One disk image of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// Its file name, in the VM and in the backup.
    pub name: String,
    /// Its length in bytes, holes included.
    pub bytes: u64,
    /// Its checksum in hexadecimal digits.
    pub checksum: String,
}

/// Everything that makes a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format: u32,
    /// The request that made it: the same request again makes nothing.
    pub made_by: String,
    /// The request that changed it last.
    pub changed_by: Option<String>,
    pub name: BackupName,
    pub description: Option<Description>,
    pub tags: Vec<Tag>,
    pub protected: bool,
    pub created: Timestamp,
    pub checksum: String,
    pub disks: Vec<Disk>,
}

impl Manifest {
    pub(super) fn new(made_by: String, new: &crate::model::NewBackup, created: Timestamp) -> Self {
        Self {
            format: FORMAT,
            made_by,
            changed_by: None,
            name: new.name.clone(),
            description: new.description.clone(),
            tags: new.tags.clone(),
            protected: new.protected,
            created,
            checksum: CHECKSUM.to_owned(),
            disks: Vec::new(),
        }
    }

    /// Reads the manifest of a backup and checks all that is in it. `None` when there is none.
    pub(super) fn read(backup: &Dir) -> Outcome<Option<Self>> {
        let bytes = match backup.read_whole(MANIFEST, BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::Io("reading a manifest", error)),
        };
        let Ok(manifest) = serde_json::from_slice::<Self>(&bytes) else {
            return refuse(
                FaultKind::Damaged,
                "the description of the backup is damaged",
            );
        };
        let usable = manifest.format <= FORMAT
            && manifest.checksum == CHECKSUM
            && manifest.disks.len() <= DISKS_MAX
            && manifest.disks.iter().all(|disk| is_plain_name(&disk.name));
        if !usable {
            return refuse(
                FaultKind::Damaged,
                "the description of the backup is damaged, or of a newer version of the gateway",
            );
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest as a whole, durable.
    pub(super) fn write(&self, backup: &Dir) -> Outcome<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::Io("writing a manifest", io::Error::other(error)))?;
        backup
            .write_whole(MANIFEST, &bytes)
            .during("writing a manifest")
    }

    /// What sets it apart from another backup of the same id.
    pub(super) fn identity(&self) -> Identity {
        Identity::new(format!("{}@{}", self.made_by, self.created.as_millis()))
    }

    /// The backup as callers see it.
    pub(super) fn backup(&self, id: BackupId) -> Backup {
        Backup {
            id,
            identity: self.identity(),
            name: self.name.clone(),
            description: self.description.clone(),
            kind: Some(BackupKind::Full),
            created: self.created,
            tags: self.tags.clone(),
            state: BackupState::Available,
            size: Some(self.disks.iter().map(|disk| disk.bytes).sum()),
            protected: self.protected,
        }
    }
}

/// What callers see of a backup whose manifest cannot be used: that it is there, and broken.
pub(super) fn broken(id: BackupId) -> Option<Backup> {
    let name = BackupName::new(id.as_str()).ok()?;
    Some(Backup {
        identity: Identity::new("broken".to_owned()),
        name,
        id,
        description: None,
        kind: None,
        created: Timestamp::default(),
        tags: Vec::new(),
        state: BackupState::Error,
        size: None,
        protected: false,
    })
}
