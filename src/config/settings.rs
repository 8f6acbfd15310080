//! The whole configuration, checked: what `snapgate serve` runs with.

use std::path::PathBuf;

use crate::adapters::layers;
use crate::adapters::registry::BackendConfig;
use crate::cluster;
use crate::config::cluster::PeerChannel;
use crate::config::issuers::KeySource;
use crate::config::trace_export::TraceExport;
use crate::gate;
use crate::listener;
use crate::model::BackendName;
use crate::model::GatewayName;
use crate::operations;
use crate::schema::SecretFile;

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The API and admin ports.
    pub listener: listener::Config,
    /// How requests are decided.
    pub gate: gate::Config,
    /// Where keys of issuers are fetched from; `app` puts the keys into the issuers of the gate.
    pub key_sources: Vec<KeySource>,
    /// The upstreams of pass-through routes: one pool for each route of the gate, in the same order.
    pub upstreams: Vec<listener::PoolConfig>,
    /// This gateway as a member of a cluster; a single gateway when absent.
    pub cluster: Option<cluster::Config>,
    /// Where gateways of the cluster hand each other requests; they do not when absent.
    pub peers: Option<PeerChannel>,
    /// How operations are kept and run.
    pub operations: operations::Config,
    /// The VM managers.
    pub backends: Vec<Backend>,
    /// Logs and the audit trail.
    pub logging: Logging,
    /// Where traces are sent; nowhere when absent.
    pub trace_export: Option<TraceExport>,
    /// The file of API tokens, which may not exist yet.
    pub tokens: Option<PathBuf>,
    /// Threads that serve requests, 1..=256; the number of cores unless configured.
    pub threads: usize,
    /// What the operator should change, found while reading: deprecated keys, and keys without effect.
    pub notes: Vec<String>,
    /// Files that were read and hold secrets.
    pub secrets: Vec<SecretFile>,
    /// The files read: the configuration file and everything it names. A change of any is a reason to reload.
    pub files: Vec<PathBuf>,
    /// A hash over the contents of these files: 64 hexadecimal digits.
    pub hash: String,
}

/// One configured VM manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: BackendName,
    /// How calls to it are limited, retried and watched.
    pub layers: layers::Config,
    /// The one gateway of the cluster that uses it; every one when absent.
    pub only_on: Option<GatewayName>,
    /// Which kind it is, and the configuration of that kind.
    pub config: BackendConfig,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; as entries with fields where standard error goes to the journal.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs and the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// The form of log lines.
    pub format: LogFormat,
    /// A filter of `tracing-subscriber`, for instance `info` or `snapgate=debug,warn`.
    pub level: String,
    /// Whether every request is logged.
    pub access: bool,
    /// Where the audit trail is appended; standard error when absent.
    pub audit: Option<PathBuf>,
    /// Whether changes are refused while the audit trail cannot be written.
    pub audit_required: bool,
}
