//! What the simulated VM manager holds and how it behaves.

use std::time::Duration;

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vms: Vec::new(),
            backups: 1,
            duration: Duration::from_secs(1),
        }
    }
}
