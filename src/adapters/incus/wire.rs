//! The JSON of LXD and Incus, as far as it is read. Members that are not named here are ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Every answer. What it says counts, not the HTTP status: some versions send failures with status 200.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    /// Which kind of answer.
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    /// The path of the operation that was begun.
    #[serde(default)]
    pub(super) operation: String,
    /// The status of a failure, like one of HTTP.
    #[serde(default)]
    pub(super) error_code: u16,
    /// The text of a failure.
    #[serde(default)]
    pub(super) error: String,
    /// What was asked for.
    #[serde(default)]
    pub(super) metadata: Value,
}

/// The kinds of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// It is done.
    Sync,
    /// An operation was begun.
    Async,
    /// It was refused, or failed.
    Error,
}

/// `GET /1.0`
#[derive(Debug, Deserialize)]
pub(super) struct Server {
    /// `trusted` or `untrusted`.
    pub(super) auth: String,
    /// Nothing when the gateway is not trusted.
    #[serde(default)]
    pub(super) environment: Option<Environment>,
}

/// Which product it is.
#[derive(Debug, Deserialize)]
pub(super) struct Environment {
    /// `lxd` or `incus`.
    pub(super) server: String,
    /// For instance `5.0.2`.
    pub(super) server_version: String,
}

/// `GET /1.0/instances/{name}`
#[derive(Debug, Deserialize)]
pub(super) struct Instance {
    /// Its name.
    pub(super) name: String,
    /// `container` or `virtual-machine`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// For instance `Running`.
    #[serde(default)]
    pub(super) status: String,
    /// What a person wrote about it.
    #[serde(default)]
    pub(super) description: String,
    /// When it was made.
    pub(super) created_at: String,
    /// Its own configuration.
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
    /// Its configuration, that of profiles included.
    #[serde(default)]
    pub(super) expanded_config: BTreeMap<String, String>,
    /// Whether it is removed, with its snapshots, when it stops.
    #[serde(default)]
    pub(super) ephemeral: bool,
    /// Whether its memory was saved when it was stopped, to be resumed at the next start.
    #[serde(default)]
    pub(super) stateful: bool,
    /// Its devices, those of profiles included.
    #[serde(default)]
    pub(super) expanded_devices: BTreeMap<String, BTreeMap<String, String>>,
}

/// `GET /1.0/instances?recursion=1`, one entry.
#[derive(Debug, Deserialize)]
pub(super) struct ListedInstance {
    /// Its name.
    pub(super) name: String,
    /// For instance `Running`.
    #[serde(default)]
    pub(super) status: String,
}

/// `GET /1.0/instances/{name}/snapshots/{snapshot}`
#[derive(Debug, Deserialize)]
pub(super) struct Snapshot {
    /// Its name; some versions put the instance's name and a `/` before it.
    pub(super) name: String,
    /// When it was made; stays when it is renamed.
    pub(super) created_at: String,
    /// Whether it holds the memory.
    #[serde(default)]
    pub(super) stateful: bool,
    /// Whether the instance was ephemeral when it was made.
    #[serde(default)]
    pub(super) ephemeral: bool,
    /// When the VM manager removes it by itself; the year 1 means never.
    #[serde(default)]
    pub(super) expires_at: String,
    /// Bytes, or -1.
    #[serde(default = "unknown")]
    pub(super) size: i64,
}

const fn unknown() -> i64 {
    -1
}

/// `GET /1.0/storage-pools/{pool}/volumes/{kind}/{name}/snapshots/{snapshot}`
#[derive(Debug, Deserialize)]
pub(super) struct Volume {
    /// The name of the snapshot; some versions put the volume's name and a `/` before it.
    pub(super) name: String,
    /// Free text: the label.
    #[serde(default)]
    pub(super) description: String,
}

/// `GET /1.0/storage-pools/{pool}`
#[derive(Debug, Default, Deserialize)]
pub(super) struct Pool {
    /// The storage driver, for instance `dir` or `zfs`.
    #[serde(default)]
    pub(super) driver: String,
    /// For instance `Created` or `Unavailable`.
    #[serde(default)]
    pub(super) status: String,
}

/// `GET /1.0/operations/{id}`
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Task {
    /// Its number.
    pub(super) id: String,
    /// `task`, `websocket` or `token`.
    #[serde(default)]
    pub(super) class: String,
    /// For instance `Restoring snapshot`.
    #[serde(default)]
    pub(super) description: String,
    /// When it was begun.
    #[serde(default)]
    pub(super) created_at: String,
    /// Final from 200.
    pub(super) status_code: u16,
    /// Why it failed.
    #[serde(default)]
    pub(super) err: String,
    /// The paths of what it works on.
    #[serde(default)]
    pub(super) resources: Option<BTreeMap<String, Vec<String>>>,
}
