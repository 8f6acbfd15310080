//! The metric catalogue. docs/metrics.md describes every name, label and unit; a test compares the two.

mod backends;
mod callers;
mod cluster;
mod etcd;
mod operations;
mod own_process;
mod passthrough;
mod process;
mod register;
mod requests;

pub use backends::BackendMetrics;
pub use callers::CallerMetrics;
pub use cluster::ClusterMetrics;
pub use etcd::EtcdMetrics;
pub use operations::OperationMetrics;
pub use passthrough::PassThroughMetrics;
pub use process::ProcessMetrics;
pub use requests::RequestMetrics;
pub use requests::WaiterGuard;

use prometheus::Encoder;
use prometheus::Registry;
use prometheus::TextEncoder;

use crate::telemetry::metrics::own_process::OwnProcess;

/// Every metric of one gateway, in a registry of its own.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests, refusals, connections and waiters of the API port.
    pub requests: RequestMetrics,
    /// Credentials, limits, lockouts and the signing keys of issuers.
    pub callers: CallerMetrics,
    /// Durable operations and the store that holds them.
    pub operations: OperationMetrics,
    /// Calls to backends, their health and their circuit breakers.
    pub backends: BackendMetrics,
    /// Requests that are passed through, and the upstreams that they go to.
    pub passthrough: PassThroughMetrics,
    /// The part of this gateway in its cluster.
    pub cluster: ClusterMetrics,
    /// The members of the etcd cluster that holds the operations.
    pub etcd: EtcdMetrics,
    /// The process itself: configuration, version, panics and the audit trail.
    pub process: ProcessMetrics,
}

/// The catalogue could not be created.
#[derive(Debug, thiserror::Error)]
#[error("metric catalogue is inconsistent")]
pub struct MetricsError(#[from] prometheus::Error);

impl Metrics {
    /// The media type of [`Metrics::encode_text`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;

    /// Creates the catalogue with every number at zero.
    ///
    /// # Errors
    /// [`MetricsError`] if the catalogue is inconsistent, which the tests find.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let metrics = Self {
            requests: RequestMetrics::new(&registry)?,
            callers: CallerMetrics::new(&registry)?,
            operations: OperationMetrics::new(&registry)?,
            backends: BackendMetrics::new(&registry)?,
            passthrough: PassThroughMetrics::new(&registry)?,
            cluster: ClusterMetrics::new(&registry)?,
            etcd: EtcdMetrics::new(&registry)?,
            process: ProcessMetrics::new(&registry)?,
            registry,
        };
        metrics.process.export_zeros();
        metrics.registry.register(Box::new(OwnProcess::new()?))?;
        Ok(metrics)
    }

    /// The catalogue in the Prometheus text format 0.0.4.
    #[must_use]
    pub fn encode_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics encoding failed");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::process::Command;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    /// A catalogue in which every metric has a value.
    fn touched() -> Metrics {
        let metrics = Metrics::new().unwrap();
        let took = Duration::from_millis(1);
        metrics.requests.record_request("backup", "GET", 200, took);
        metrics.requests.record_refusal("Forbidden");
        metrics.requests.record_connection_opened();
        metrics.requests.record_closed_connection("idle");
        metrics.requests.record_slow_stream();
        metrics.requests.set_certificate_expiry(&[0]);
        metrics
            .operations
            .record_operation("b", "restore", "succeeded", took);
        metrics.operations.set_queue_depth("b", "queued", 1);
        metrics.operations.set_unknown_operations(0);
        metrics.operations.set_unreadable_operations(0);
        metrics
            .backends
            .record_backend_call("b", "read", "ok", took);
        metrics.backends.set_breaker_state("b", 0);
        metrics.backends.set_backend_up("b", true);
        metrics.operations.record_store_commit("sqlite", took);
        metrics.operations.record_store_error("full");
        metrics.callers.record_credential_check("verified");
        metrics.callers.record_issuer_refresh("i", "ok");
        metrics.callers.set_issuer_keys_fetched("i", 1);
        metrics.callers.record_lockout("user");
        metrics.callers.record_limited_request("principal_rate");
        drop(metrics.requests.count_waiter());
        metrics
            .passthrough
            .record_passed_request("r", "u", 200, Some(took));
        metrics.passthrough.record_pass_retry("r");
        metrics.passthrough.set_upstream_healthy("r", "u", true);
        metrics.process.set_active_config("00", false);
        metrics.process.record_config_reload("ok");
        metrics.process.record_panic("listener");
        metrics.process.record_audit_error("write");
        metrics.process.record_lost_audit_records(1);
        metrics.process.record_spans("exported", 1);
        metrics.callers.record_refused_credentials("expired");
        metrics.cluster.join("a");
        metrics.cluster.set_clock_offset("a", took, false);
        metrics.cluster.record_takeover(took);
        metrics.etcd.set_member("https://etcd1:2379", true, Some(1));
        metrics.etcd.record_read(took);
        metrics
    }

    #[test]
    fn the_documentation_lists_exactly_what_is_exported() {
        let mut exported = BTreeSet::new();
        for family in touched().registry.gather() {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            for metric in family.get_metric() {
                let mut labels: Vec<_> = metric
                    .get_label()
                    .iter()
                    .map(|label| format!("`{}`", label.name()))
                    .collect();
                labels.sort();
                let labels = if labels.is_empty() {
                    "-".to_owned()
                } else {
                    labels.join(", ")
                };
                exported.insert(format!("| `{}` | {kind} | {labels} |", family.name()));
            }
        }
        let text = std::fs::read_to_string("docs/metrics.md").unwrap();
        let listed: BTreeSet<String> = text
            .lines()
            .filter(|line| line.starts_with("| `snapgate_") || line.starts_with("| `process_"))
            .filter(|line| line.matches(" | ").count() == 3)
            .map(|line| line.rsplit_once(" | ").unwrap().0.to_owned() + " |")
            .collect();
        assert_eq!(
            listed, exported,
            "left: docs/metrics.md, right: the program"
        );
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a test that is skipped says so, or fails where nothing may be skipped"
    )]
    fn promtool_accepts_the_catalogue() {
        let started = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    std::io::ErrorKind::NotFound,
                    "promtool is installed but does not start"
                );
                let may_skip = std::env::var("SNAPGATE_NO_SKIP").is_err();
                assert!(
                    may_skip,
                    "promtool is not installed, and nothing may be skipped"
                );
                writeln!(std::io::stderr(), "skipped: promtool not installed").unwrap();
                return;
            }
        };
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&touched().encode_text())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
