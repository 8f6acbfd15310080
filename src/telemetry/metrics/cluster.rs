//! The part of a gateway in its cluster.

use std::time::Duration;

use prometheus::GaugeVec;
use prometheus::HistogramVec;
use prometheus::IntCounterVec;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::fraction_gauge;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// Buckets of takeovers, in seconds: 50 ms to 60 s.
const TAKEOVER_BUCKETS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The part of a gateway in its cluster. A single gateway exports none of these.
#[derive(Clone, Debug)]
pub struct ClusterMetrics {
    active: IntGaugeVec,
    leader_known: IntGaugeVec,
    terms: IntCounterVec,
    adopted: IntCounterVec,
    takeover_seconds: HistogramVec,
    relayed: IntCounterVec,
    clock_offset_seconds: GaugeVec,
}

impl ClusterMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            active: labelled_gauge(
                registry,
                "snapgate_cluster_active",
                "Whether this gateway is the active one of its cluster (1) or not (0).",
                &["gateway"],
            )?,
            leader_known: labelled_gauge(
                registry,
                "snapgate_cluster_leader_known",
                "Whether this gateway knows which gateway is active (1) or not (0).",
                &["gateway"],
            )?,
            terms: counter(
                registry,
                "snapgate_cluster_terms_ended_total",
                "Terms as the active gateway that ended, by reason.",
                &["reason"],
            )?,
            adopted: counter(
                registry,
                "snapgate_cluster_adopted_operations_total",
                "Unfinished operations found when this gateway became active.",
                &[],
            )?,
            takeover_seconds: histogram(
                registry,
                (
                    "snapgate_cluster_takeover_duration_seconds",
                    "Time from winning the election to serving requests.",
                ),
                &[],
                TAKEOVER_BUCKETS,
            )?,
            relayed: counter(
                registry,
                "snapgate_cluster_relayed_requests_total",
                "Requests handed to the active gateway, by result.",
                &["result"],
            )?,
            clock_offset_seconds: fraction_gauge(
                registry,
                "snapgate_cluster_clock_offset_seconds",
                "Seconds by which the clock of this gateway is ahead of that of the active one; negative when it is behind.",
                &["gateway"],
            )?,
        })
    }

    /// Exports everything at zero: this gateway is a member of a cluster.
    pub fn join(&self, gateway: &str) {
        self.set_role(gateway, false, false);
        for reason in ["stepped-down", "lease-lost", "store-failed", "not-started"] {
            self.terms.with_label_values(&[reason]).inc_by(0);
        }
        self.record_adopted(0);
        for result in ["answered", "here", "not-sent", "unknown"] {
            self.relayed.with_label_values(&[result]).inc_by(0);
        }
    }

    /// Counts a request that was handed on. `result` is `answered`, `here`, `not-sent` or `unknown`.
    pub fn record_relayed(&self, result: &str) {
        self.relayed.with_label_values(&[result]).inc();
    }

    /// Sets whether this gateway is active, and whether it knows which one is.
    pub fn set_role(&self, gateway: &str, is_active: bool, is_leader_known: bool) {
        self.active
            .with_label_values(&[gateway])
            .set(i64::from(is_active));
        self.leader_known
            .with_label_values(&[gateway])
            .set(i64::from(is_leader_known));
    }

    /// Sets how far the clock of this gateway is ahead of that of the active one, or behind it.
    pub fn set_clock_offset(&self, gateway: &str, offset: Duration, is_behind: bool) {
        let seconds = offset.as_secs_f64();
        self.clock_offset_seconds
            .with_label_values(&[gateway])
            .set(if is_behind { -seconds } else { seconds });
    }

    /// Counts a term that ended. `reason` is `stepped-down`, `lease-lost`, `store-failed` or `not-started`.
    pub fn record_term_end(&self, reason: &str) {
        self.terms.with_label_values(&[reason]).inc();
    }

    /// Counts unfinished operations that were taken over.
    pub fn record_adopted(&self, count: u64) {
        self.adopted.with_label_values::<&str>(&[]).inc_by(count);
    }

    /// Records the time from winning the election to serving requests.
    pub fn record_takeover(&self, took: Duration) {
        self.takeover_seconds
            .with_label_values::<&str>(&[])
            .observe(took.as_secs_f64());
    }
}
