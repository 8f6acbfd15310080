//! The durable life of an accepted change: accept, queue, run, follow, recover, expire.

mod accept;
mod cancel;
mod config;
mod desk;
mod engine;
mod ledger;
mod machine;
#[doc(hidden)]
pub mod measured;
mod numbers;
mod overlay;
mod preconditions;
mod runner;
mod serve;
pub mod service;
mod store;
mod trail;
mod upkeep;
mod view;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use config::WhenBusy;

pub use desk::Decided;
pub use desk::Desk;
pub use desk::DeskError;

pub use engine::BackendHandle;
pub use engine::OpenStore;
pub use engine::Operations;

pub use service::AcceptError;
pub use service::Accepted;
pub use service::CancelError;
pub use service::Glance;
pub use service::ListQuery;
pub use service::Origin;
pub use service::Replay;
pub use service::Selector;
pub use service::Service;
pub use service::StoreFault;
pub use service::Submission;
pub use service::WaitFor;

pub use store::OpenError;

pub use view::View;

pub use crate::adapters::port::Capability;
pub use crate::adapters::port::Recovery;
pub use crate::adapters::port::VerbCapability;
