//! The whole configuration, checked: what `snapgate serve` runs with.

use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::cloudapi;
use crate::adapters::files;
use crate::adapters::incus;
use crate::adapters::layers;
use crate::adapters::libvirt;
use crate::adapters::proxmox;
use crate::adapters::qemu;
use crate::adapters::sim;
use crate::config::issuers::KeyEndpoint;
use crate::gate;
use crate::listener;
use crate::model::BackendName;
use crate::model::IssuerName;
use crate::operations;

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The API and admin ports.
    pub listener: listener::Config,
    /// How requests are decided.
    pub gate: gate::Config,
    /// Where the keys of those issuers of the gate are fetched from that name a URL. Whoever serves puts them into the issuers.
    pub key_sources: Vec<KeySource>,
    /// The upstreams of what is passed through: one for each route of the gate, in the same order.
    pub upstreams: Vec<listener::PoolConfig>,
    /// How operations are kept and run.
    pub operations: operations::Config,
    /// The VM managers.
    pub backends: Vec<Backend>,
    /// What is logged, and where to.
    pub logging: Logging,
    /// The file of API tokens, which may not exist yet.
    pub tokens: Option<PathBuf>,
    /// Threads that serve requests, 1..=256; the number of cores unless configured.
    pub threads: usize,
    /// What the operator should know about keys that have no effect, one sentence each.
    pub notes: Vec<String>,
    /// Files that were read and hold secrets.
    pub secrets: Vec<SecretFile>,
    /// The files read: the configuration file and everything it names. A change of any is a reason to reload.
    pub files: Vec<PathBuf>,
    /// A hash over the contents of these files: 64 hexadecimal digits.
    pub hash: String,
}

/// A file that only the gateway's user and its group should be able to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// Where it is.
    pub path: PathBuf,
    /// The secret in it, in words: `a private key`.
    pub holds: &'static str,
}

/// Where the keys of one issuer are fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// Whose they are.
    pub issuer: IssuerName,
    /// Which server has them.
    pub endpoint: KeyEndpoint,
    /// Path and query there.
    pub target: String,
    /// The longest time between two fetches.
    pub refresh: Duration,
    /// How old the last good set may become while fetches fail.
    pub oldest: Duration,
}

impl KeySource {
    /// Its URL without the query, which may hold a secret.
    #[must_use]
    pub fn place(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        match &self.endpoint {
            KeyEndpoint::Loopback(address) => format!("http://{address}{path}"),
            KeyEndpoint::Https { authority, .. } => format!("https://{authority}{path}"),
        }
    }
}

/// One configured VM manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: BackendName,
    /// How calls to it are treated.
    pub layers: layers::Config,
    /// Which kind it is, and what that kind needs.
    pub kind: BackendKind,
}

/// Which kind of VM manager a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// A server that itself speaks this API.
    CloudApi(cloudapi::Config),
    /// Directories of disk images.
    Files(files::Config),
    /// A libvirtd.
    Libvirt(libvirt::Config),
    /// Instances of LXD or Incus.
    Incus(incus::Config),
    /// Guests of Proxmox VE.
    Proxmox(proxmox::Config),
    /// In memory.
    Sim(sim::Config),
    /// QEMU, running or not.
    Qemu(qemu::Config),
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and where to.
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
