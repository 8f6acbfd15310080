//! The members of the etcd cluster that holds the operations.

use std::time::Duration;

use prometheus::HistogramVec;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::REQUEST_BUCKETS;
use crate::telemetry::metrics::register::as_gauge_value;
use crate::telemetry::metrics::register::histogram;
use crate::telemetry::metrics::register::labelled_gauge;

/// The members of the etcd cluster that holds the operations. A gateway with its operations in a file exports none of these.
#[derive(Clone, Debug)]
pub struct EtcdMetrics {
    member_up: IntGaugeVec,
    database_bytes: IntGaugeVec,
    read_seconds: HistogramVec,
}

impl EtcdMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            member_up: labelled_gauge(
                registry,
                "snapgate_etcd_member_up",
                "Whether a member of etcd answered the last request and had a leader (1) or not (0).",
                &["endpoint"],
            )?,
            database_bytes: labelled_gauge(
                registry,
                "snapgate_etcd_database_bytes",
                "Size of the database of a member of etcd, which its quota limits.",
                &["endpoint"],
            )?,
            read_seconds: histogram(
                registry,
                (
                    "snapgate_etcd_read_duration_seconds",
                    "Duration of one linearizable read from etcd.",
                ),
                &[],
                REQUEST_BUCKETS,
            )?,
        })
    }

    /// Sets whether a member answers and has a leader, and the size of its database if it said so.
    pub fn set_member(&self, endpoint: &str, is_up: bool, database_bytes: Option<u64>) {
        let labels = &[endpoint];
        self.member_up
            .with_label_values(labels)
            .set(i64::from(is_up));
        if let Some(bytes) = database_bytes {
            self.database_bytes
                .with_label_values(labels)
                .set(as_gauge_value(bytes));
        }
    }

    /// Records the duration of one read that a majority confirmed.
    pub fn record_read(&self, took: Duration) {
        self.read_seconds
            .with_label_values::<&str>(&[])
            .observe(took.as_secs_f64());
    }
}
