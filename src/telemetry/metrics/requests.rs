//! Requests, refusals, connections and waiters of the API port.

use std::time::Duration;

use http::StatusCode;
use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::REQUEST_BUCKETS;
use crate::telemetry::metrics::register::as_gauge_value;
use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::gauge;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// Requests, refusals, connections and waiters of the API port.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    refusals: IntCounterVec,
    connections: IntGauge,
    connections_closed: IntCounterVec,
    certificate_expires: IntGaugeVec,
    waiters: IntGauge,
    streams_cut: IntCounterVec,
}

/// A request that waits for a Status; counted until dropped.
#[derive(Debug)]
pub struct WaiterGuard(IntGauge);

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RequestMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: counter(
                registry,
                "snapgate_requests_total",
                "Requests completed on the API port.",
                &["route", "method", "code"],
            )?,
            request_seconds: histogram(
                registry,
                (
                    "snapgate_request_duration_seconds",
                    "Time from receiving the request head to sending the last byte of the response, including waits.",
                ),
                &["route", "method"],
                REQUEST_BUCKETS,
            )?,
            refusals: counter(
                registry,
                "snapgate_refusals_total",
                "Refused requests, by the error code in the response body.",
                &["code"],
            )?,
            connections: gauge(
                registry,
                "snapgate_connections",
                "Open connections on the API port.",
            )?,
            connections_closed: counter(
                registry,
                "snapgate_connections_closed_total",
                "Connections closed by the gateway rather than by the client, by reason.",
                &["reason"],
            )?,
            certificate_expires: labelled_gauge(
                registry,
                "snapgate_certificate_expires_seconds",
                "Expiry of an API port certificate as a Unix time, by its position in the configuration.",
                &["certificate"],
            )?,
            waiters: gauge(
                registry,
                "snapgate_waiters",
                "Requests that are waiting for a Status to change.",
            )?,
            streams_cut: counter(
                registry,
                "snapgate_event_streams_cut_total",
                "Event streams that the gateway cut off, by reason.",
                &["reason"],
            )?,
        })
    }

    /// Counts a completed request. `route` and `method` come from a fixed set, never from a client.
    pub fn record_request(&self, route: &str, method: &str, code: u16, took: Duration) {
        // `StatusCode` holds a static text, which saves an allocation per request.
        let code = StatusCode::from_u16(code);
        let code = code.as_ref().map_or("000", StatusCode::as_str);
        self.requests
            .with_label_values(&[route, method, code])
            .inc();
        self.request_seconds
            .with_label_values(&[route, method])
            .observe(took.as_secs_f64());
    }

    /// Counts a refused request by its stable code.
    pub fn record_refusal(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    /// Counts a connection that was opened.
    pub fn record_connection_opened(&self) {
        self.connections.inc();
    }

    /// Counts a connection that ended, after [`RequestMetrics::record_connection_opened`].
    pub fn record_connection_ended(&self) {
        self.connections.dec();
    }

    /// The number of open connections.
    #[cfg(test)]
    pub(crate) fn open_connections(&self) -> i64 {
        self.connections.get()
    }

    /// Counts a connection that the gateway closed. `reason` comes from a fixed set.
    pub fn record_closed_connection(&self, reason: &str) {
        self.connections_closed.with_label_values(&[reason]).inc();
    }

    /// Sets when the active certificates expire: Unix times in seconds, in the order of the configuration.
    pub fn set_certificate_expiry(&self, ends: &[u64]) {
        self.certificate_expires.reset();
        for (place, seconds) in ends.iter().enumerate() {
            self.certificate_expires
                .with_label_values(&[place.to_string().as_str()])
                .set(as_gauge_value(*seconds));
        }
    }

    /// Counts an event stream that was cut off because its client took nothing for too long.
    pub fn record_slow_stream(&self) {
        self.streams_cut.with_label_values(&["slow"]).inc();
    }

    /// Counts a request that waits for a Status, until the guard is dropped.
    #[must_use]
    pub fn count_waiter(&self) -> WaiterGuard {
        self.waiters.inc();
        WaiterGuard(self.waiters.clone())
    }
}
