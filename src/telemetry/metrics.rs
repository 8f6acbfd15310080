//! The metric catalogue. Every name, label and unit is told in docs/metrics.md; a test compares the two.

use std::time::Duration;

use http::StatusCode;
use prometheus::Encoder;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::TextEncoder;
use prometheus::core::Collector;

/// Bounds of everything a client waits for, in seconds: 100 us to 60 s.
const REQUEST_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    10.0, 60.0,
];
/// Bounds of operations, in seconds: 10 ms to 4 h.
const OPERATION_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];
/// Bounds of commits, in seconds: 50 us to 5 s.
const COMMIT_BUCKETS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// Every metric of one gateway, in a registry of its own.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    refusals: IntCounterVec,
    connections: IntGauge,
    connections_closed: IntCounterVec,
    certificate_expires: IntGaugeVec,
    operations: IntCounterVec,
    operation_seconds: HistogramVec,
    queue_depth: IntGaugeVec,
    operations_unknown: IntGauge,
    operations_set_aside: IntGauge,
    backend_calls: IntCounterVec,
    backend_call_seconds: HistogramVec,
    backend_breaker: IntGaugeVec,
    backend_up: IntGaugeVec,
    store_commit_seconds: HistogramVec,
    store_errors: IntCounterVec,
    credential_checks: IntCounterVec,
    issuer_refreshes: IntCounterVec,
    issuer_last_refresh_successful: IntGaugeVec,
    issuer_keys_fetched: IntGaugeVec,
    lock_outs: IntCounterVec,
    limited: IntCounterVec,
    waiters: IntGauge,
    passed: IntCounterVec,
    passed_seconds: HistogramVec,
    pass_retries: IntCounterVec,
    upstream_healthy: IntGaugeVec,
    config_reloads: IntCounterVec,
    config_last_reload_successful: IntGauge,
    config_restart_required: IntGauge,
    config_info: IntGaugeVec,
    build_info: IntGaugeVec,
    panics: IntCounterVec,
    audit_errors: IntCounterVec,
    audit_records_lost: IntCounterVec,
    credentials_refused: IntCounterVec,
}

/// Registers what was just made. A catalogue with two equal names is a mistake in this file that the tests find;
/// the metric then works and is not exported.
fn kept<C: Collector + Clone + 'static>(registry: &Registry, made: C) -> C {
    if let Err(error) = registry.register(Box::new(made.clone())) {
        tracing::error!(%error, "metric not registered");
    }
    made
}

/// Makes a counter, gauge or histogram of the catalogue.
macro_rules! metric {
    ($registry:ident, counter, $name:literal, $help:literal, [$($label:literal),*]) => {
        kept(&$registry, IntCounterVec::new(Opts::new($name, $help), &[$($label),*])?)
    };
    ($registry:ident, gauge, $name:literal, $help:literal) => {
        kept(&$registry, IntGauge::with_opts(Opts::new($name, $help))?)
    };
    ($registry:ident, gauges, $name:literal, $help:literal, [$($label:literal),*]) => {
        kept(&$registry, IntGaugeVec::new(Opts::new($name, $help), &[$($label),*])?)
    };
    ($registry:ident, histogram, $name:literal, $help:literal, [$($label:literal),*], $buckets:expr) => {
        kept(
            &$registry,
            HistogramVec::new(
                HistogramOpts::new($name, $help).buckets($buckets.to_vec()),
                &[$($label),*],
            )?,
        )
    };
}

/// A request that waits for a Status; counted until dropped.
#[derive(Debug)]
pub struct WaiterGuard(IntGauge);

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The catalogue could not be made.
#[derive(Debug, thiserror::Error)]
#[error("metric catalogue is inconsistent")]
pub struct MetricsError(#[from] prometheus::Error);

impl Metrics {
    /// A fresh catalogue with every number at zero.
    ///
    /// # Errors
    /// Only when this file is wrong; the tests find that.
    #[expect(clippy::too_many_lines, reason = "it is a table")]
    pub fn new() -> Result<Self, MetricsError> {
        let r = Registry::new();
        let made = Self {
            requests: metric!(
                r,
                counter,
                "snapgate_requests_total",
                "Requests answered on the API port.",
                ["route", "method", "code"]
            ),
            request_seconds: metric!(
                r,
                histogram,
                "snapgate_request_duration_seconds",
                "Time from the head of a request to the end of its answer, waiting included.",
                ["route", "method"],
                REQUEST_BUCKETS
            ),
            refusals: metric!(
                r,
                counter,
                "snapgate_refusals_total",
                "Requests refused, by the code in the error body.",
                ["code"]
            ),
            connections: metric!(
                r,
                gauge,
                "snapgate_connections",
                "Open connections on the API port."
            ),
            connections_closed: metric!(
                r,
                counter,
                "snapgate_connections_closed_total",
                "Connections closed by the gateway for a reason other than the end of the conversation.",
                ["reason"]
            ),
            certificate_expires: metric!(
                r,
                gauges,
                "snapgate_certificate_expires_seconds",
                "Unix time at which a certificate of the API port ends, by its place in the configuration.",
                ["certificate"]
            ),
            operations: metric!(
                r,
                counter,
                "snapgate_operations_total",
                "Operations that ended, by outcome.",
                ["backend", "verb", "outcome"]
            ),
            operation_seconds: metric!(
                r,
                histogram,
                "snapgate_operation_duration_seconds",
                "Time from acceptance to the end of an operation.",
                ["backend", "verb"],
                OPERATION_BUCKETS
            ),
            queue_depth: metric!(
                r,
                gauges,
                "snapgate_queue_depth",
                "Unfinished operations.",
                ["backend", "state"]
            ),
            operations_unknown: metric!(
                r,
                gauge,
                "snapgate_operations_unknown",
                "Operations with unknown outcome that no operator has acknowledged."
            ),
            operations_set_aside: metric!(
                r,
                gauge,
                "snapgate_operations_set_aside",
                "Stored operations that this version cannot read and leaves alone."
            ),
            backend_calls: metric!(
                r,
                counter,
                "snapgate_backend_calls_total",
                "Calls to backends, by result: ok or the kind of fault.",
                ["backend", "call", "result"]
            ),
            backend_call_seconds: metric!(
                r,
                histogram,
                "snapgate_backend_call_duration_seconds",
                "Time of one call to a backend, retries not included.",
                ["backend", "call"],
                REQUEST_BUCKETS
            ),
            backend_breaker: metric!(
                r,
                gauges,
                "snapgate_backend_breaker_state",
                "Circuit breaker of a backend: 0 closed, 1 half open, 2 open.",
                ["backend"]
            ),
            backend_up: metric!(
                r,
                gauges,
                "snapgate_backend_up",
                "Whether the last health check of a backend succeeded: 1, or 0.",
                ["backend"]
            ),
            store_commit_seconds: metric!(
                r,
                histogram,
                "snapgate_store_commit_duration_seconds",
                "Time of one durable commit to the store.",
                ["store"],
                COMMIT_BUCKETS
            ),
            store_errors: metric!(
                r,
                counter,
                "snapgate_store_errors_total",
                "Failed accesses to the store.",
                ["kind"]
            ),
            credential_checks: metric!(
                r,
                counter,
                "snapgate_credential_checks_total",
                "Credentials checked: remembered, verified, a token, refused, or not looked at during a lock-out or without keys.",
                ["result"]
            ),
            issuer_refreshes: metric!(
                r,
                counter,
                "snapgate_issuer_refreshes_total",
                "Fetches of the key set of an issuer, by result.",
                ["issuer", "result"]
            ),
            issuer_last_refresh_successful: metric!(
                r,
                gauges,
                "snapgate_issuer_last_refresh_successful",
                "Whether the newest fetch of the key set of an issuer brought one: 1 or 0.",
                ["issuer"]
            ),
            issuer_keys_fetched: metric!(
                r,
                gauges,
                "snapgate_issuer_keys_fetched_seconds",
                "Unix time at which the key set of an issuer that is in force was fetched last; 0 before the first.",
                ["issuer"]
            ),
            lock_outs: metric!(
                r,
                counter,
                "snapgate_lockouts_total",
                "Lock-outs begun after wrong passwords: of a user from one address, or of an address.",
                ["by"]
            ),
            limited: metric!(
                r,
                counter,
                "snapgate_limited_total",
                "Requests refused because a rate or a number of requests at once was reached, by the limit.",
                ["limit"]
            ),
            waiters: metric!(
                r,
                gauge,
                "snapgate_waiters",
                "Requests that wait for a Status to change."
            ),
            passed: metric!(
                r,
                counter,
                "snapgate_passthrough_requests_total",
                "Requests passed through, by route, upstream and status; upstream none when there was none to ask.",
                ["passthrough", "upstream", "code"]
            ),
            passed_seconds: metric!(
                r,
                histogram,
                "snapgate_passthrough_upstream_duration_seconds",
                "Time from the choice of an upstream to the head of its answer.",
                ["passthrough", "upstream"],
                REQUEST_BUCKETS
            ),
            pass_retries: metric!(
                r,
                counter,
                "snapgate_passthrough_retries_total",
                "Requests that were tried a second time.",
                ["passthrough"]
            ),
            upstream_healthy: metric!(
                r,
                gauges,
                "snapgate_passthrough_upstream_healthy",
                "Whether requests are passed to an upstream: 1 or 0.",
                ["passthrough", "upstream"]
            ),
            config_reloads: metric!(
                r,
                counter,
                "snapgate_config_reloads_total",
                "Attempts to reload the configuration, by result.",
                ["result"]
            ),
            config_last_reload_successful: metric!(
                r,
                gauge,
                "snapgate_config_last_reload_successful",
                "Whether the newest configuration is in force: 1 or 0."
            ),
            config_restart_required: metric!(
                r,
                gauge,
                "snapgate_config_restart_required",
                "Whether the configuration file holds changes that need a restart: 1 or 0."
            ),
            config_info: metric!(
                r,
                gauges,
                "snapgate_config_info",
                "Always 1; the label tells the hash of the configuration in force.",
                ["hash"]
            ),
            build_info: metric!(
                r,
                gauges,
                "snapgate_build_info",
                "Always 1; the label tells the version.",
                ["version"]
            ),
            panics: metric!(
                r,
                counter,
                "snapgate_panics_total",
                "Panics caught, each a defect to report.",
                ["room"]
            ),
            audit_errors: metric!(
                r,
                counter,
                "snapgate_audit_errors_total",
                "Failures of the audit trail: a record not written or the file not opened.",
                ["kind"]
            ),
            audit_records_lost: metric!(
                r,
                counter,
                "snapgate_audit_records_lost_total",
                "Records that are missing from the audit trail.",
                []
            ),
            credentials_refused: metric!(
                r,
                counter,
                "snapgate_credentials_refused_total",
                "Requests refused for their credentials, by reason.",
                ["reason"]
            ),
            registry: r,
        };
        made.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        made.config_last_reload_successful.set(1);
        for room in ["listener", "operations"] {
            made.panics.with_label_values(&[room]).inc_by(0);
        }
        for kind in ["open", "write"] {
            made.audit_errors.with_label_values(&[kind]).inc_by(0);
        }
        made.audit_record_lost(0);
        Ok(made)
    }

    /// The catalogue in the Prometheus text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
    }

    /// The media type of [`Metrics::text`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;

    /// One request was answered. `route` and `method` are words of ours, never a client's.
    pub fn request(&self, route: &str, method: &str, code: u16, took: Duration) {
        // A word that is there already: this is done for every request.
        let code = StatusCode::from_u16(code);
        let code = code.as_ref().map_or("000", StatusCode::as_str);
        self.requests
            .with_label_values(&[route, method, code])
            .inc();
        self.request_seconds
            .with_label_values(&[route, method])
            .observe(took.as_secs_f64());
    }

    /// One request was refused with this stable code.
    pub fn refusal(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    /// Connections open now.
    pub fn connections(&self, open: usize) {
        self.connections
            .set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// A connection was closed for this reason, a word of ours.
    pub fn connection_closed(&self, reason: &str) {
        self.connections_closed.with_label_values(&[reason]).inc();
    }

    /// When the certificates in force end, in the order of the configuration, in seconds since 1970.
    pub fn certificates(&self, ends: &[u64]) {
        self.certificate_expires.reset();
        for (place, seconds) in ends.iter().enumerate() {
            self.certificate_expires
                .with_label_values(&[place.to_string().as_str()])
                .set(i64::try_from(*seconds).unwrap_or(i64::MAX));
        }
    }

    /// An operation became final after so long.
    pub fn operation(&self, backend: &str, verb: &str, outcome: &str, took: Duration) {
        self.operations
            .with_label_values(&[backend, verb, outcome])
            .inc();
        self.operation_seconds
            .with_label_values(&[backend, verb])
            .observe(took.as_secs_f64());
    }

    /// So many operations of the backend are unfinished in this state (`queued` or `running`).
    pub fn queue_depth(&self, backend: &str, state: &str, count: usize) {
        self.queue_depth
            .with_label_values(&[backend, state])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many operations have an unknown outcome that nobody acknowledged.
    pub fn operations_unknown(&self, count: usize) {
        self.operations_unknown
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many stored operations cannot be read by this version.
    pub fn operations_set_aside(&self, count: usize) {
        self.operations_set_aside
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// One call to a backend ended. `result` is `ok` or the kind of the fault.
    pub fn backend_call(&self, backend: &str, call: &str, result: &str, took: Duration) {
        self.backend_calls
            .with_label_values(&[backend, call, result])
            .inc();
        self.backend_call_seconds
            .with_label_values(&[backend, call])
            .observe(took.as_secs_f64());
    }

    /// The breaker of a backend: 0 closed, 1 half open, 2 open.
    pub fn breaker(&self, backend: &str, state: u8) {
        self.backend_breaker
            .with_label_values(&[backend])
            .set(i64::from(state));
    }

    /// A health check of a backend ended.
    pub fn backend_up(&self, backend: &str, is_up: bool) {
        self.backend_up
            .with_label_values(&[backend])
            .set(i64::from(is_up));
    }

    /// One durable commit took so long.
    pub fn store_commit(&self, store: &str, took: Duration) {
        self.store_commit_seconds
            .with_label_values(&[store])
            .observe(took.as_secs_f64());
    }

    /// One access to the store failed.
    pub fn store_error(&self, kind: &str) {
        self.store_errors.with_label_values(&[kind]).inc();
    }

    /// Keys of this issuer will be fetched: none are there yet.
    pub fn issuer_begun(&self, issuer: &str) {
        self.issuer_keys_fetched.with_label_values(&[issuer]).set(0);
    }

    /// A fetch of the keys of an issuer ended: `ok`, `no_answer`, `status` or `unusable`.
    pub fn issuer_refresh(&self, issuer: &str, result: &str) {
        self.issuer_refreshes
            .with_label_values(&[issuer, result])
            .inc();
        self.issuer_last_refresh_successful
            .with_label_values(&[issuer])
            .set(i64::from(result == "ok"));
    }

    /// When the keys in force were fetched, in seconds since 1970.
    pub fn issuer_keys(&self, issuer: &str, fetched: u64) {
        self.issuer_keys_fetched
            .with_label_values(&[issuer])
            .set(i64::try_from(fetched).unwrap_or(i64::MAX));
    }

    /// The keys of an issuer are no longer fetched.
    pub fn issuer_gone(&self, issuer: &str) {
        for gauge in [
            &self.issuer_last_refresh_successful,
            &self.issuer_keys_fetched,
        ] {
            if let Err(error) = gauge.remove_label_values(&[issuer]) {
                tracing::debug!(%error, "metric of an issuer was not there");
            }
        }
    }

    /// A lock-out began, of a `user` from one address or of an `address`.
    pub fn locked_out(&self, by: &str) {
        self.lock_outs.with_label_values(&[by]).inc();
    }

    /// A request was refused by this limit, a word of ours.
    pub fn limited(&self, limit: &str) {
        self.limited.with_label_values(&[limit]).inc();
    }

    /// Credentials were `remembered`, `verified`, a `token`, `refused`, `locked_out` or met `no_keys`.
    pub fn credential_check(&self, result: &str) {
        self.credential_checks.with_label_values(&[result]).inc();
    }

    /// A request waits for a Status until the result is dropped.
    #[must_use]
    pub fn waiting(&self) -> WaiterGuard {
        self.waiters.inc();
        WaiterGuard(self.waiters.clone())
    }

    /// One request was passed on to an upstream, whose answer began after so long; or to `none`.
    pub fn passed(&self, route: &str, upstream: &str, code: u16, waited: Option<Duration>) {
        self.passed
            .with_label_values(&[route, upstream, &code.to_string()])
            .inc();
        if let Some(waited) = waited {
            self.passed_seconds
                .with_label_values(&[route, upstream])
                .observe(waited.as_secs_f64());
        }
    }

    /// A request was tried a second time.
    pub fn pass_retried(&self, route: &str) {
        self.pass_retries.with_label_values(&[route]).inc();
    }

    /// Whether requests are passed to an upstream.
    pub fn upstream_healthy(&self, route: &str, upstream: &str, healthy: bool) {
        self.upstream_healthy
            .with_label_values(&[route, upstream])
            .set(i64::from(healthy));
    }

    /// An upstream is no longer configured.
    pub fn upstream_gone(&self, route: &str, upstream: &str) {
        let gone = self
            .upstream_healthy
            .remove_label_values(&[route, upstream]);
        if let Err(error) = gone {
            tracing::debug!(%error, "metric of an upstream was not there");
        }
    }

    /// The configuration with this hash is in force.
    pub fn config_in_force(&self, hash: &str, restart_required: bool) {
        self.config_info.reset();
        self.config_info.with_label_values(&[hash]).set(1);
        self.config_last_reload_successful.set(1);
        self.config_restart_required
            .set(i64::from(restart_required));
    }

    /// A reload was tried: `ok`, `unchanged` or `refused`.
    pub fn config_reload(&self, result: &str) {
        self.config_reloads.with_label_values(&[result]).inc();
        self.config_last_reload_successful
            .set(i64::from(result != "refused"));
    }

    /// The audit trail failed: `open` or `write`.
    pub fn audit_error(&self, kind: &str) {
        self.audit_errors.with_label_values(&[kind]).inc();
    }

    /// So many more records are missing from the audit trail.
    pub fn audit_record_lost(&self, count: u64) {
        self.audit_records_lost
            .with_label_values::<&str>(&[])
            .inc_by(count);
    }

    /// A request was refused for its credentials; `reason` is a word of ours.
    pub fn credentials_refused(&self, reason: &str) {
        self.credentials_refused.with_label_values(&[reason]).inc();
    }

    /// A panic was caught in this room.
    pub fn panic(&self, room: &str) {
        self.panics.with_label_values(&[room]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::process::Command;
    use std::process::Stdio;

    use super::*;

    /// A catalogue in which every metric has a value.
    fn touched() -> Metrics {
        let metrics = Metrics::new().unwrap();
        let took = Duration::from_millis(1);
        metrics.request("backup", "GET", 200, took);
        metrics.refusal("Forbidden");
        metrics.connections(1);
        metrics.connection_closed("idle");
        metrics.certificates(&[0]);
        metrics.operation("b", "restore", "succeeded", took);
        metrics.queue_depth("b", "queued", 1);
        metrics.operations_unknown(0);
        metrics.operations_set_aside(0);
        metrics.backend_call("b", "read", "ok", took);
        metrics.breaker("b", 0);
        metrics.backend_up("b", true);
        metrics.store_commit("sqlite", took);
        metrics.store_error("full");
        metrics.credential_check("verified");
        metrics.issuer_refresh("i", "ok");
        metrics.issuer_keys("i", 1);
        metrics.locked_out("user");
        metrics.limited("principal_rate");
        drop(metrics.waiting());
        metrics.passed("r", "u", 200, Some(took));
        metrics.pass_retried("r");
        metrics.upstream_healthy("r", "u", true);
        metrics.config_in_force("00", false);
        metrics.config_reload("ok");
        metrics.panic("listener");
        metrics.audit_error("write");
        metrics.audit_record_lost(1);
        metrics.credentials_refused("expired");
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
                    .map(|it| format!("`{}`", it.name()))
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
            .filter(|line| line.starts_with("| `snapgate_") && line.matches(" | ").count() == 3)
            .map(|line| line.rsplit_once(" | ").unwrap().0.to_owned() + " |")
            .collect();
        assert_eq!(
            listed, exported,
            "left: docs/metrics.md, right: the program"
        );
    }

    #[test]
    #[ignore = "needs promtool"]
    fn promtool_finds_nothing_wrong() {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("promtool is installed");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&touched().text())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
