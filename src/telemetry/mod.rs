//! What the gateway tells about itself: metrics, logs, the access log and the audit trail.

mod audit;
mod escape;
mod log;
mod metrics;

pub use audit::AuditRecord;
pub use audit::AuditTrail;
pub use log::AccessRecord;
pub use log::Format;
pub use log::LogError;
pub use log::access;
pub use log::access_is_logged;
pub use log::audit;
pub use log::init;
pub use log::reopen;
pub use metrics::Metrics;
pub use metrics::MetricsError;
pub use metrics::Waiting;
