//! What is wrapped around every adapter: deadline, retry of reads, concurrency limit, breaker, metrics.
//!
//! A wrapper forwards every method of [`Adapter`], also those with a default: a default in between would hide what the adapter
//! inside says. The lint below makes a method that a wrapper does not state an error; `every_wrapper_states_every_method` in the
//! tests shows the same without the lint.
//!
//! Outermost first: the limit on callers' reads, retry of reads, the breaker, metrics, the time limit. Calls with an
//! effect pass breaker, metrics and time limit only: they are never made twice. In a cluster the look at the lease comes last.

#![cfg_attr(not(test), deny(clippy::missing_trait_methods))]

mod annotate;
mod breaker;
mod call;
mod chaos;
mod config;
mod deadline;
mod layered;
mod leased;
mod read_limit;
mod retry;
#[cfg(test)]
mod tests;

pub use annotate::Annotate;
pub use call::Call;
pub use chaos::Chaos;
pub use chaos::InjectedFault;
pub use chaos::Script;
pub use config::Config;
pub use layered::Layered;
pub use leased::Leased;
pub use leased::ended as lease_ended;

use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::model::BackendName;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// The adapter with everything around it.
#[must_use]
pub fn wrap(
    name: BackendName,
    adapter: Arc<dyn Adapter>,
    config: &Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> Arc<dyn Adapter> {
    Arc::new(Layered::new(name, adapter, config, clock, metrics))
}
