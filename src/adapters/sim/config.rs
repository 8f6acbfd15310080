//! What the simulated VM manager holds and how it behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::adapter::Recovery;
use crate::model::VmId;

/// What the simulated VM manager holds and how it behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its VMs, each with one backup `456` unless `backups` is zero.
    pub vms: Vec<VmId>,
    /// Backups per VM at the start: ids `456`, `457`, ...
    pub backups: u32,
    /// How long a create, delete or restore takes. Updates are done at once.
    pub duration: Duration,
    /// The socket of a simulator that is a process of its own; `None` when the VMs are in memory.
    pub simulator: Option<PathBuf>,
    /// How a lost answer is made good.
    pub recovery: Recovery,
    /// How long after a lost answer a change may still be about to begin.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vms: Vec::new(),
            backups: 1,
            duration: Duration::from_secs(1),
            simulator: None,
            recovery: Recovery::ReplaySafe,
            settle: Duration::ZERO,
        }
    }
}
