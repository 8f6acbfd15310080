//! What the operations room is configured with.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::limits;

/// What happens to an operation on a VM that another operation is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    /// It waits its turn.
    Queue,
    /// It is refused.
    Refuse,
}

/// What the operations room is configured with. Changes need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The SQLite file; made when absent. Its folder must exist.
    pub store: PathBuf,
    /// How long a finished operation is kept.
    pub retention: Duration,
    /// What happens when the VM is busy.
    pub when_busy: WhenBusy,
    /// Operations that may wait for one VM.
    pub queue_per_vm: usize,
    /// Unfinished operations in all.
    pub queue_total: usize,
    /// How long an accepted operation may go unstarted beyond its queue before it is given up.
    pub accept_ttl: Duration,
    /// How long no gateway may have been running for a change to be begun again that had not touched its VM.
    pub resume_ttl: Duration,
    /// How long evidence is looked for before an outcome is called unknown.
    pub probe_window: Duration,
    /// Shortest time between two looks at a task; it grows to `poll_max`.
    pub poll_min: Duration,
    /// Longest time between two looks at a task.
    pub poll_max: Duration,
}

impl Config {
    /// The file beside the store from which operators on this machine learn how to speak to the gateway at work on it.
    #[must_use]
    pub fn operator_file(&self) -> PathBuf {
        let mut name = self.store.clone().into_os_string();
        name.push(".operator");
        PathBuf::from(name)
    }

    /// Everything at its default, with the store in that file.
    #[must_use]
    pub fn with_store(store: PathBuf) -> Self {
        let size = |it: u64| usize::try_from(it).unwrap_or(usize::MAX);
        Self {
            store,
            retention: limits::RETENTION,
            when_busy: WhenBusy::Queue,
            queue_per_vm: size(limits::QUEUE_PER_VM),
            queue_total: size(limits::QUEUE_TOTAL),
            accept_ttl: limits::ACCEPT_TTL,
            resume_ttl: limits::ACCEPT_TTL,
            probe_window: limits::PROBE_WINDOW,
            poll_min: Duration::from_millis(100),
            poll_max: Duration::from_secs(5),
        }
    }
}
