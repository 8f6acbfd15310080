//! The durable life of an accepted change: accept, queue, run, follow, recover, expire.

mod config;
pub mod service;

pub use config::Config;
pub use config::WhenBusy;

pub use service::AcceptError;
pub use service::Accepted;
pub use service::ListQuery;
pub use service::Replay;
pub use service::Selector;
pub use service::Service;
pub use service::StoreFault;
pub use service::Submission;
pub use service::WaitFor;

pub use crate::adapters::port::Capability;
pub use crate::adapters::port::Recovery;
pub use crate::adapters::port::VerbCapability;
