//! What servers send. Members that are not needed are not read; absent ones are taken as the specification's examples do.

use serde::Deserialize;

/// Spec: "Resource Models", Backup.
#[derive(Debug, Deserialize)]
pub(super) struct Backup {
    pub(super) name: String,
    #[serde(default)]
    pub(super) uri: String,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) created: Option<String>,
    #[serde(default)]
    pub(super) tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) state: Option<String>,
    #[serde(default)]
    pub(super) size: Option<u64>,
    #[serde(default)]
    pub(super) protected: Option<bool>,
}

/// Backups of one VM.
#[derive(Debug, Deserialize)]
pub(super) struct Backups {
    pub(super) backups: Vec<Backup>,
}

/// One entry of a list of VMs.
#[derive(Debug, Deserialize)]
pub(super) struct VmSummary {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) state: Option<String>,
}

/// One page of VMs.
#[derive(Debug, Deserialize)]
pub(super) struct Vms {
    pub(super) vms: Vec<VmSummary>,
    #[serde(default)]
    pub(super) complete: bool,
}

/// Spec: "Resource Models", VM.
#[derive(Debug, Deserialize)]
pub(super) struct Vm {
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) run_status: Option<String>,
}

/// Spec: "Resource Models", Status.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) op: String,
    pub(super) progress: u64,
    #[serde(default)]
    pub(super) target_uri: String,
    pub(super) status_uri: String,
    #[serde(default)]
    pub(super) status: Option<u16>,
    #[serde(default)]
    pub(super) state: Option<String>,
    #[serde(default)]
    pub(super) message: Option<String>,
}

/// Statuses of one caller, the newest first.
#[derive(Debug, Deserialize)]
pub(super) struct Statuses {
    pub(super) statuses: Vec<Status>,
}

/// Spec: "Resource Models", Version.
#[derive(Debug, Deserialize)]
pub(super) struct Version {
    #[serde(default)]
    pub(super) specification_version: String,
    #[serde(default)]
    pub(super) implementation_version: String,
}

/// Spec: "Resource Models", Messages.
#[derive(Debug, Deserialize)]
pub(super) struct Messages {
    pub(super) message: Vec<Message>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    #[serde(default)]
    pub(super) code: Option<String>,
    #[serde(default)]
    pub(super) text: Option<String>,
}

/// What a restore or a delete would do. Everything but the fingerprint may be absent.
#[derive(Debug, Deserialize)]
pub(super) struct Plan {
    pub(super) fingerprint: String,
    #[serde(default)]
    pub(super) overwrites: Vec<PlannedDisk>,
    #[serde(default)]
    pub(super) loses: PlannedLoss,
    #[serde(default)]
    pub(super) leaves: Vec<String>,
    #[serde(default)]
    pub(super) after: Option<String>,
    #[serde(default)]
    pub(super) needs: Option<PlannedSpace>,
    #[serde(default)]
    pub(super) refused: Vec<PlannedRefusal>,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
    #[serde(default)]
    pub(super) unknown: Vec<String>,
}

/// A disk that is overwritten.
#[derive(Debug, Deserialize)]
pub(super) struct PlannedDisk {
    pub(super) disk: String,
    #[serde(default)]
    pub(super) size: Option<u64>,
}

/// The backups that go with it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PlannedLoss {
    #[serde(default)]
    pub(super) backups: Vec<PlannedBackup>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(super) struct PlannedBackup {
    pub(super) id: String,
}

/// The storage that it needs.
#[derive(Debug, Deserialize)]
pub(super) struct PlannedSpace {
    #[serde(default)]
    pub(super) bytes: Option<u64>,
    #[serde(default)]
    pub(super) free: Option<u64>,
}

/// What would refuse it.
#[derive(Debug, Deserialize)]
pub(super) struct PlannedRefusal {
    pub(super) code: String,
    #[serde(default)]
    pub(super) text: String,
}
