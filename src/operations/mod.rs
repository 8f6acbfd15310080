//! The durable life of an accepted change: accept, queue, run, follow, recover, expire.

mod accept;
pub mod api;
mod api_impl;
#[doc(hidden)]
pub mod bench_support;
mod cancel;
mod config;
mod core;
mod live_operations;
mod machine;
mod maintenance;
mod offline_store;
mod operation_summary;
mod pending_state;
mod preconditions;
mod runner;
mod sequence;
mod store;
mod trail;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use config::WhenBusy;

pub use offline_store::OfflineStore;
pub use offline_store::OfflineStoreError;
pub use offline_store::OperatorDecision;

pub use core::BackendHandle;
pub use core::OpenStore;
pub use core::Operations;

pub use api::AcceptError;
pub use api::Accepted;
pub use api::CancelError;
pub use api::KnownChanges;
pub use api::ListQuery;
pub use api::OperationsApi;
pub use api::Origin;
pub use api::Replay;
pub use api::Selector;
pub use api::StoreFault;
pub use api::Submission;
pub use api::WaitFor;

pub use store::OpenError;

pub use operation_summary::OperationSummary;

pub use crate::adapters::adapter::Capability;
pub use crate::adapters::adapter::Recovery;
pub use crate::adapters::adapter::VerbCapability;
