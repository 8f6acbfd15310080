//! What the gateway tells about itself: metrics, logs, the access log and the audit trail.

mod metrics;

pub use metrics::Metrics;
pub use metrics::MetricsError;
