//! Durable operations and the store that holds them.

use std::time::Duration;

use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::as_gauge_value;
use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::gauge;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// Buckets of operations, in seconds: 10 ms to 4 h.
const OPERATION_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];
/// Buckets of commits, in seconds: 50 us to 5 s.
const COMMIT_BUCKETS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// Durable operations and the store that holds them.
#[derive(Clone, Debug)]
pub struct OperationMetrics {
    operations: IntCounterVec,
    operation_seconds: HistogramVec,
    queue_depth: IntGaugeVec,
    operations_unknown: IntGauge,
    operations_set_aside: IntGauge,
    store_commit_seconds: HistogramVec,
    store_errors: IntCounterVec,
}

impl OperationMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            operations: counter(
                registry,
                "snapgate_operations_total",
                "Completed operations, by outcome.",
                &["backend", "verb", "outcome"],
            )?,
            operation_seconds: histogram(
                registry,
                (
                    "snapgate_operation_duration_seconds",
                    "Time from the acceptance of an operation to its completion.",
                ),
                &["backend", "verb"],
                OPERATION_BUCKETS,
            )?,
            queue_depth: labelled_gauge(
                registry,
                "snapgate_queue_depth",
                "Unfinished operations, queued or running.",
                &["backend", "state"],
            )?,
            operations_unknown: gauge(
                registry,
                "snapgate_operations_unknown",
                "Operations with an unknown outcome that no operator has acknowledged.",
            )?,
            operations_set_aside: gauge(
                registry,
                "snapgate_operations_set_aside",
                "Stored operations that this version cannot read; they are left unchanged.",
            )?,
            store_commit_seconds: histogram(
                registry,
                (
                    "snapgate_store_commit_duration_seconds",
                    "Duration of one durable commit to the store.",
                ),
                &["store"],
                COMMIT_BUCKETS,
            )?,
            store_errors: counter(
                registry,
                "snapgate_store_errors_total",
                "Failed store accesses, by kind.",
                &["kind"],
            )?,
        })
    }

    /// Counts an operation that completed after `took`.
    pub fn record_operation(&self, backend: &str, verb: &str, outcome: &str, took: Duration) {
        self.operations
            .with_label_values(&[backend, verb, outcome])
            .inc();
        self.operation_seconds
            .with_label_values(&[backend, verb])
            .observe(took.as_secs_f64());
    }

    /// Sets how many operations of the backend are in this state (`queued` or `running`).
    pub fn set_queue_depth(&self, backend: &str, state: &str, count: usize) {
        self.queue_depth
            .with_label_values(&[backend, state])
            .set(as_gauge_value(count));
    }

    /// Sets how many operations have an unknown outcome that no operator has acknowledged.
    pub fn set_unknown_operations(&self, count: usize) {
        self.operations_unknown.set(as_gauge_value(count));
    }

    /// Sets how many stored operations this version cannot read.
    pub fn set_unreadable_operations(&self, count: usize) {
        self.operations_set_aside.set(as_gauge_value(count));
    }

    /// Records the duration of one durable commit.
    pub fn record_store_commit(&self, store: &str, took: Duration) {
        self.store_commit_seconds
            .with_label_values(&[store])
            .observe(took.as_secs_f64());
    }

    /// Counts a failed store access.
    pub fn record_store_error(&self, kind: &str) {
        self.store_errors.with_label_values(&[kind]).inc();
    }
}
