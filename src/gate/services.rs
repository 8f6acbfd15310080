//! What the handlers work with: made anew for every configuration, apart from what outlives a reload.

use std::sync::Arc;

use crate::gate::config::Config;
use crate::gate::placement::Placements;
use crate::gate::process_state::ProcessState;
use crate::gate::process_state::WaiterSlot;
use crate::gate::response_cache::ResponseCache;
use crate::model::Deadline;
use crate::model::PrincipalName;
use crate::model::limits;
use crate::operations::OperationsApi;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// The services of one gate.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) config: Config,
    pub(super) operations: Arc<dyn OperationsApi>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) shared: Arc<ProcessState>,
    pub(super) placements: Placements,
    pub(super) response_cache: ResponseCache,
    /// Which configuration of this process it is: streams end when there is another one.
    pub(super) generation: u64,
}

impl Services {
    /// The public URL, with which absolute links begin.
    pub(super) fn public_url(&self) -> &str {
        self.config.public_url.as_str()
    }

    /// The deadline of a read that begins now.
    pub(super) fn read_deadline(&self) -> Deadline {
        self.clock.deadline(limits::READ_DEADLINE)
    }

    /// A slot among the waiting requests, if one is free for this caller and in all.
    pub(super) fn acquire_waiter(&self, caller: &PrincipalName) -> Option<WaiterSlot> {
        let client = [caller.as_str().as_bytes()];
        let most = self.config.rates.principal_waiters;
        let own = self.shared.limiter.waiters.acquire(&client, most);
        let slot = self
            .shared
            .acquire_waiter(self.config.limits.waiters, &self.metrics)?;
        Some(slot.with_caller_slot(own.ok()?))
    }
}
