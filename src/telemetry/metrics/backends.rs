//! Calls to backends, their health and their circuit breakers.

use std::time::Duration;

use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::REQUEST_BUCKETS;
use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// Calls to backends, their health and their circuit breakers.
#[derive(Clone, Debug)]
pub struct BackendMetrics {
    backend_calls: IntCounterVec,
    backend_call_seconds: HistogramVec,
    backend_breaker: IntGaugeVec,
    backend_up: IntGaugeVec,
}

impl BackendMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            backend_calls: counter(
                registry,
                "snapgate_backend_calls_total",
                "Calls to backends, by result: ok or the kind of fault.",
                &["backend", "call", "result"],
            )?,
            backend_call_seconds: histogram(
                registry,
                (
                    "snapgate_backend_call_duration_seconds",
                    "Duration of one call to a backend; each retry counts separately.",
                ),
                &["backend", "call"],
                REQUEST_BUCKETS,
            )?,
            backend_breaker: labelled_gauge(
                registry,
                "snapgate_backend_breaker_state",
                "Circuit breaker state of a backend: 0 closed, 1 half-open, 2 open.",
                &["backend"],
            )?,
            backend_up: labelled_gauge(
                registry,
                "snapgate_backend_up",
                "Whether the last health check of a backend succeeded (1) or failed (0).",
                &["backend"],
            )?,
        })
    }

    /// Counts a call to a backend. `result` is `ok` or the kind of the fault.
    pub fn record_backend_call(&self, backend: &str, call: &str, result: &str, took: Duration) {
        self.backend_calls
            .with_label_values(&[backend, call, result])
            .inc();
        self.backend_call_seconds
            .with_label_values(&[backend, call])
            .observe(took.as_secs_f64());
    }

    /// Sets the circuit breaker state of a backend: 0 closed, 1 half-open, 2 open.
    pub fn set_breaker_state(&self, backend: &str, state: u8) {
        self.backend_breaker
            .with_label_values(&[backend])
            .set(i64::from(state));
    }

    /// Sets the result of the last health check of a backend.
    pub fn set_backend_up(&self, backend: &str, is_up: bool) {
        self.backend_up
            .with_label_values(&[backend])
            .set(i64::from(is_up));
    }
}
