//! The settings of a gateway as a member of a cluster.

use std::time::Duration;

use crate::model::GatewayName;

/// The part of a lease that its holder does not use: what it sent at the last moment has arrived before another gateway looks.
const MARGIN_PARTS: u32 = 5;
/// Renewals within one lease.
const RENEWALS_PER_LEASE: u32 = 3;

/// The settings of a gateway as a member of a cluster. A change needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this gateway. No other gateway of the cluster has it.
    pub name: GatewayName,
    /// Host and port at which other gateways reach this one; `None` where requests are not handed on.
    pub advertise: Option<String>,
    /// How long after the last sign of life of the active gateway another one takes over, 3 s..=60 s.
    pub lease: Duration,
}

impl Config {
    /// How long the active gateway may act after it sent a renewal.
    pub(super) fn usable(&self) -> Duration {
        let margin = self.lease.checked_div(MARGIN_PARTS).unwrap_or_default();
        self.lease.saturating_sub(margin)
    }

    /// Time between two renewals.
    pub(super) fn renew_every(&self) -> Duration {
        self.lease
            .checked_div(RENEWALS_PER_LEASE)
            .unwrap_or(self.lease)
    }
}
