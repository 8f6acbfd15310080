//! The settings of the operations.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::etcd;
use crate::model::limits;

/// What happens to an operation on a VM that has another unfinished operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    /// It waits in the queue of the VM.
    Queue,
    /// It is refused.
    Refuse,
}

/// Where the operations are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// In this SQLite file; made when absent. Its folder must exist.
    File(PathBuf),
    /// In an etcd cluster.
    Etcd(Arc<etcd::Config>),
}

impl StoreLocation {
    /// The SQLite file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Etcd(_) => None,
        }
    }
}

/// The path of the file, or `etcd` with the prefix and the endpoints.
impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Etcd(config) => {
                let endpoints = config.endpoints.join(", ");
                write!(f, "etcd {} at {endpoints}", config.prefix)
            }
        }
    }
}

/// The settings of the operations. A change needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where they are kept.
    pub store: StoreLocation,
    /// The file of [`Config::operator_file`] where it is not beside the store; always given with etcd.
    pub operator_file: Option<PathBuf>,
    /// How long a finished operation is kept.
    pub retention: Duration,
    /// What happens when the VM is busy.
    pub when_busy: WhenBusy,
    /// Operations that may wait for one VM.
    pub queue_per_vm: usize,
    /// Unfinished operations in all.
    pub queue_total: usize,
    /// The cell of this gateway, a part of every number; at most [`limits::CELL_MAX`].
    pub cell: u16,
    /// How long no gateway may have been running for an accepted operation to be run at all.
    pub accept_ttl: Duration,
    /// How long no gateway may have been running for a started operation that has not touched its VM to be called again.
    pub resume_ttl: Duration,
    /// How long evidence is searched for before an outcome is reported as unknown.
    pub probe_window: Duration,
    /// Shortest time between two polls of a task; it grows to `poll_max`.
    pub poll_min: Duration,
    /// Longest time between two polls of a task.
    pub poll_max: Duration,
}

impl Config {
    /// The file in which operators on this machine find the address of the running gateway: beside the store, unless it has a
    /// place of its own.
    #[must_use]
    pub fn operator_file(&self) -> PathBuf {
        if let Some(file) = &self.operator_file {
            return file.clone();
        }
        let store = self.store.file().unwrap_or_else(|| Path::new("snapgate"));
        let mut name = store.as_os_str().to_owned();
        name.push(".operator");
        PathBuf::from(name)
    }

    /// Everything at its default, with the store in that file.
    #[must_use]
    pub fn with_store(store: PathBuf) -> Self {
        let size = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            store: StoreLocation::File(store),
            operator_file: None,
            retention: limits::RETENTION,
            when_busy: WhenBusy::Queue,
            queue_per_vm: size(limits::QUEUE_PER_VM),
            queue_total: size(limits::QUEUE_TOTAL),
            cell: 0,
            accept_ttl: limits::ACCEPT_TTL,
            resume_ttl: limits::ACCEPT_TTL,
            probe_window: limits::PROBE_WINDOW,
            poll_min: Duration::from_millis(100),
            poll_max: Duration::from_secs(5),
        }
    }
}
