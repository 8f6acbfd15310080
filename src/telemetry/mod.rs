//! What operators observe: metrics, logs, the access log and the audit trail.

mod audit;
mod escape;
mod json_lines;
mod line_format;
mod log;
mod metrics;

pub use audit::AuditClient;
pub use audit::AuditRecord;
pub use audit::AuditTrail;
pub use audit::AuditWriteError;
pub use audit::Verified;
pub use audit::VerifyError;
pub use audit::verify;
pub(crate) use escape::escape_text;
pub use line_format::LineFormat;
pub use log::AccessRecord;
pub use log::LogConfig;
pub use log::LogError;
pub use log::init_logging;
pub use log::is_access_logged;
pub use log::log_access;
pub use log::record_audit;
pub use log::record_audit_before_change;
pub use log::reopen_audit_trail;
pub use metrics::BackendMetrics;
pub use metrics::CallerMetrics;
pub use metrics::Metrics;
pub use metrics::MetricsError;
pub use metrics::OperationMetrics;
pub use metrics::PassThroughMetrics;
pub use metrics::ProcessMetrics;
pub use metrics::RequestMetrics;
pub use metrics::WaiterGuard;
