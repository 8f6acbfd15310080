//! The process itself: configuration, version, panics and the audit trail.

use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::gauge;
use crate::telemetry::metrics::register::labelled_gauge;

/// The process itself: configuration, version, panics and the audit trail.
#[derive(Clone, Debug)]
pub struct ProcessMetrics {
    config_reloads: IntCounterVec,
    config_last_reload_successful: IntGauge,
    config_restart_required: IntGauge,
    config_info: IntGaugeVec,
    build_info: IntGaugeVec,
    panics: IntCounterVec,
    audit_errors: IntCounterVec,
    audit_records_lost: IntCounterVec,
    trace_spans: IntCounterVec,
    log_lines_dropped: IntCounterVec,
}

impl ProcessMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            config_reloads: counter(
                registry,
                "snapgate_config_reloads_total",
                "Configuration reloads, by result.",
                &["result"],
            )?,
            config_last_reload_successful: gauge(
                registry,
                "snapgate_config_last_reload_successful",
                "Whether the last configuration reload succeeded (1) or failed (0).",
            )?,
            config_restart_required: gauge(
                registry,
                "snapgate_config_restart_required",
                "Whether the configuration has changes that take effect only after a restart (1) or not (0).",
            )?,
            config_info: labelled_gauge(
                registry,
                "snapgate_config_info",
                "Always 1; the label is the hash of the active configuration.",
                &["hash"],
            )?,
            build_info: labelled_gauge(
                registry,
                "snapgate_build_info",
                "Always 1; the label is the version.",
                &["version"],
            )?,
            panics: counter(
                registry,
                "snapgate_panics_total",
                "Caught panics, by room. Each is a defect to report.",
                &["room"],
            )?,
            audit_errors: counter(
                registry,
                "snapgate_audit_errors_total",
                "Audit trail failures: a record was not written, or the file was not opened.",
                &["kind"],
            )?,
            audit_records_lost: counter(
                registry,
                "snapgate_audit_records_lost_total",
                "Records missing from the audit trail.",
                &[],
            )?,
            trace_spans: counter(
                registry,
                "snapgate_trace_spans_total",
                "Spans of traces for the collector of [tracing], by result.",
                &["result"],
            )?,
            log_lines_dropped: counter(
                registry,
                "snapgate_log_lines_dropped_total",
                "Log lines that were dropped because standard error or the journal was blocked or too slow.",
                &["kind"],
            )?,
        })
    }

    /// Sets what is known from the start, and exports counters at zero whose first increase must be visible to `rate()`.
    pub(super) fn export_zeros(&self) {
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        self.config_last_reload_successful.set(1);
        for is_access in [true, false] {
            self.record_dropped_log_lines(is_access, 0);
        }
        for room in ["listener", "operations"] {
            self.panics.with_label_values(&[room]).inc_by(0);
        }
        for kind in ["open", "write"] {
            self.audit_errors.with_label_values(&[kind]).inc_by(0);
        }
        self.record_lost_audit_records(0);
    }

    /// Sets the hash of the active configuration.
    pub fn set_active_config(&self, hash: &str, restart_required: bool) {
        self.config_info.reset();
        self.config_info.with_label_values(&[hash]).set(1);
        self.config_last_reload_successful.set(1);
        self.config_restart_required
            .set(i64::from(restart_required));
    }

    /// Counts a configuration reload. `result` is `ok`, `unchanged` or `refused`.
    pub fn record_config_reload(&self, result: &str) {
        self.config_reloads.with_label_values(&[result]).inc();
        self.config_last_reload_successful
            .set(i64::from(result != "refused"));
    }

    /// Counts an audit trail failure. `kind` is `open` or `write`.
    pub fn record_audit_error(&self, kind: &str) {
        self.audit_errors.with_label_values(&[kind]).inc();
    }

    /// Counts records that are missing from the audit trail.
    pub fn record_lost_audit_records(&self, count: u64) {
        self.audit_records_lost
            .with_label_values::<&str>(&[])
            .inc_by(count);
    }

    /// Counts log lines that were dropped: of the access log, or others.
    pub fn record_dropped_log_lines(&self, is_access: bool, count: u64) {
        let kind = if is_access { "access" } else { "other" };
        self.log_lines_dropped
            .with_label_values(&[kind])
            .inc_by(count);
    }

    /// Counts spans of traces. `result` is `exported`, `failed` or `dropped`.
    pub fn record_spans(&self, result: &str, count: u64) {
        self.trace_spans.with_label_values(&[result]).inc_by(count);
    }

    /// Counts a caught panic by room.
    pub fn record_panic(&self, room: &str) {
        self.panics.with_label_values(&[room]).inc();
    }
}
