//! What the gateway tells about itself: metrics, logs, the access log and the audit trail.

mod audit;
mod escape;
mod json_lines;
mod log;
mod metrics;

pub use audit::AuditClient;
pub use audit::AuditRecord;
pub use audit::AuditTrail;
pub use audit::AuditWriteError;
pub use audit::Verified;
pub use audit::VerifyError;
pub use audit::verify;
pub use log::AccessRecord;
pub use log::Format;
pub use log::LogConfig;
pub use log::LogError;
pub use log::access;
pub use log::access_is_logged;
pub use log::audit;
pub use log::audit_before;
pub use log::init;
pub use log::reopen;
pub use metrics::BackendMetrics;
pub use metrics::CallerMetrics;
pub use metrics::Metrics;
pub use metrics::MetricsError;
pub use metrics::OperationMetrics;
pub use metrics::PassThroughMetrics;
pub use metrics::ProcessMetrics;
pub use metrics::RequestMetrics;
pub use metrics::WaiterGuard;
