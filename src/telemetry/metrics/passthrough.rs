//! Requests that are passed through, and the upstreams that they go to.

use std::time::Duration;

use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::REQUEST_BUCKETS;
use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// Requests that are passed through, and the upstreams that they go to.
#[derive(Clone, Debug)]
pub struct PassThroughMetrics {
    passed: IntCounterVec,
    passed_seconds: HistogramVec,
    pass_retries: IntCounterVec,
    upstream_healthy: IntGaugeVec,
}

impl PassThroughMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            passed: counter(
                registry,
                "snapgate_passthrough_requests_total",
                "Requests passed through, by route, upstream and status code; upstream is none if no upstream was available.",
                &["passthrough", "upstream", "code"],
            )?,
            passed_seconds: histogram(
                registry,
                (
                    "snapgate_passthrough_upstream_duration_seconds",
                    "Time from selecting an upstream to receiving its response head.",
                ),
                &["passthrough", "upstream"],
                REQUEST_BUCKETS,
            )?,
            pass_retries: counter(
                registry,
                "snapgate_passthrough_retries_total",
                "Requests that were retried on an upstream.",
                &["passthrough"],
            )?,
            upstream_healthy: labelled_gauge(
                registry,
                "snapgate_passthrough_upstream_healthy",
                "Whether an upstream receives requests (1) or not (0).",
                &["passthrough", "upstream"],
            )?,
        })
    }

    /// Counts a request that was passed to an upstream, or to `none`. `waited` is the time to the response head.
    pub fn record_passed_request(
        &self,
        route: &str,
        upstream: &str,
        code: u16,
        waited: Option<Duration>,
    ) {
        self.passed
            .with_label_values(&[route, upstream, &code.to_string()])
            .inc();
        if let Some(waited) = waited {
            self.passed_seconds
                .with_label_values(&[route, upstream])
                .observe(waited.as_secs_f64());
        }
    }

    /// Counts a retry.
    pub fn record_pass_retry(&self, route: &str) {
        self.pass_retries.with_label_values(&[route]).inc();
    }

    /// Sets whether an upstream receives requests.
    pub fn set_upstream_healthy(&self, route: &str, upstream: &str, healthy: bool) {
        self.upstream_healthy
            .with_label_values(&[route, upstream])
            .set(i64::from(healthy));
    }

    /// Removes an upstream that is no longer configured.
    pub fn remove_upstream(&self, route: &str, upstream: &str) {
        let gone = self
            .upstream_healthy
            .remove_label_values(&[route, upstream]);
        if let Err(error) = gone {
            tracing::debug!(%error, "upstream metric not found");
        }
    }
}
