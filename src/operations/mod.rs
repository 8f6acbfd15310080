//! The durable life of an accepted change: accept, queue, run, follow, recover, expire.
//!
//! [`OperationsApi`] is what the gate may ask for, and [`Operations`] implements it. Read on in this order: `machine` decides
//! what each event makes of an operation, `core` makes those decisions durable, `runner` carries them out, and `accept`,
//! `cancel`, `open` and `maintenance` are where operations come from. `store` keeps them; `live_operations` holds the
//! unfinished ones in memory, in one queue for each VM.

mod accept;
pub mod api;
mod api_impl;
mod audit;
#[doc(hidden)]
pub mod bench_support;
mod cancel;
mod change_feed;
mod config;
mod core;
mod follow_changes;
mod forecast;
mod hint_limiter;
mod list_query;
mod live_operations;
mod machine;
mod maintenance;
#[doc(hidden)]
pub mod memory_operations;
mod offline_store;
mod open;
mod operation_summary;
mod operator_access;
mod operator_actions;
mod pending_state;
mod preconditions;
mod runner;
mod sequence;
mod store;
mod store_copy;
mod store_guard;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use change_feed::ChangeFeed;
pub use change_feed::ChangeHistory;
pub use change_feed::ChangeNumber;
pub use change_feed::ChangePosition;
pub use change_feed::DurableChange;
pub use change_feed::StoreRun;

pub use config::Config;
pub use config::StoreLocation;
pub use config::WhenBusy;

pub use offline_store::OfflineStore;
pub use operator_actions::OfflineStoreError;
pub use operator_actions::OperatorDecision;
pub use operator_actions::StoreAttention;

pub use core::BackendHandle;
pub use open::OpenStore;
pub use open::Operations;

pub use api::AcceptError;
pub use api::Accepted;
pub use api::ActiveGuard;
pub use api::CancelError;
pub use api::ChangePage;
pub use api::ChangePart;
pub use api::ChangeQuery;
pub use api::DurationBasis;
pub use api::ExpectedDuration;
pub use api::Forecast;
pub use api::KnownChanges;
pub use api::OperationsApi;
pub use api::Origin;
pub use api::Replay;
pub use api::StoreFault;
pub use api::Submission;
pub use api::WaitFor;

pub use list_query::ListCount;
pub use list_query::ListOrder;
pub use list_query::ListPage;
pub use list_query::ListPosition;
pub use list_query::ListQuery;
pub use list_query::ListStart;
pub use list_query::OperationVisibility;
pub use list_query::Selector;

pub use store::OpenError;
pub use store_copy::StoreCopyError;
pub use store_copy::StoreOpener;
pub use store_copy::StoreSummary;
pub use store_copy::StoreVerdict;

pub use operation_summary::OperationDetails;
pub use operation_summary::OperationSummary;

pub use crate::adapters::adapter::Capability;
pub use crate::adapters::adapter::Recovery;
pub use crate::adapters::adapter::VerbCapability;
