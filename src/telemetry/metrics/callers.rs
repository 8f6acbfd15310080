//! Credentials, limits, lockouts and the signing keys of issuers.

use prometheus::IntCounterVec;
use prometheus::IntGaugeVec;
use prometheus::Registry;

use crate::telemetry::metrics::register::as_gauge_value;
use crate::telemetry::metrics::register::counter;
use crate::telemetry::metrics::register::labelled_gauge;

/// Credentials, limits, lockouts and the signing keys of issuers.
#[derive(Clone, Debug)]
pub struct CallerMetrics {
    credential_checks: IntCounterVec,
    credentials_refused: IntCounterVec,
    lock_outs: IntCounterVec,
    limited: IntCounterVec,
    issuer_refreshes: IntCounterVec,
    issuer_last_refresh_successful: IntGaugeVec,
    issuer_keys_fetched: IntGaugeVec,
}

impl CallerMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            credential_checks: counter(
                registry,
                "snapgate_credential_checks_total",
                "Credential checks, by result.",
                &["result"],
            )?,
            credentials_refused: counter(
                registry,
                "snapgate_credentials_refused_total",
                "Requests refused because of their credentials, by reason.",
                &["reason"],
            )?,
            lock_outs: counter(
                registry,
                "snapgate_lockouts_total",
                "Lockouts after failed logins, by what was locked out: a user from one address, or an address.",
                &["by"],
            )?,
            limited: counter(
                registry,
                "snapgate_limited_total",
                "Requests refused by a rate or concurrency limit, by limit.",
                &["limit"],
            )?,
            issuer_refreshes: counter(
                registry,
                "snapgate_issuer_refreshes_total",
                "Fetches of an issuer's key set, by result.",
                &["issuer", "result"],
            )?,
            issuer_last_refresh_successful: labelled_gauge(
                registry,
                "snapgate_issuer_last_refresh_successful",
                "Whether the last fetch of an issuer's key set succeeded (1) or failed (0).",
                &["issuer"],
            )?,
            issuer_keys_fetched: labelled_gauge(
                registry,
                "snapgate_issuer_keys_fetched_seconds",
                "Unix time of the last successful fetch of an issuer's active key set; 0 before the first.",
                &["issuer"],
            )?,
        })
    }

    /// Counts a credential check. `result` is `remembered`, `verified`, `token`, `certificate`, `refused`, `locked_out`,
    /// `queue_full` or `no_keys`.
    pub fn record_credential_check(&self, result: &str) {
        self.credential_checks.with_label_values(&[result]).inc();
    }

    /// Counts a request refused because of its credentials. `reason` comes from a fixed set.
    pub fn record_refused_credentials(&self, reason: &str) {
        self.credentials_refused.with_label_values(&[reason]).inc();
    }

    /// Counts a lockout of a `user` from one address or of an `address`.
    pub fn record_lockout(&self, by: &str) {
        self.lock_outs.with_label_values(&[by]).inc();
    }

    /// Counts a request refused by a limit. `limit` comes from a fixed set.
    pub fn record_limited_request(&self, limit: &str) {
        self.limited.with_label_values(&[limit]).inc();
    }

    /// Exports an issuer whose keys have not been fetched yet.
    pub fn add_issuer(&self, issuer: &str) {
        self.issuer_keys_fetched.with_label_values(&[issuer]).set(0);
    }

    /// Counts a fetch of an issuer's keys. `result` is `ok`, `no_answer`, `status` or `unusable`.
    pub fn record_issuer_refresh(&self, issuer: &str, result: &str) {
        self.issuer_refreshes
            .with_label_values(&[issuer, result])
            .inc();
        self.issuer_last_refresh_successful
            .with_label_values(&[issuer])
            .set(i64::from(result == "ok"));
    }

    /// Sets when the active keys of an issuer were fetched, as a Unix time in seconds.
    pub fn set_issuer_keys_fetched(&self, issuer: &str, fetched: u64) {
        self.issuer_keys_fetched
            .with_label_values(&[issuer])
            .set(as_gauge_value(fetched));
    }

    /// Removes an issuer that is no longer configured.
    pub fn remove_issuer(&self, issuer: &str) {
        for gauge in [
            &self.issuer_last_refresh_successful,
            &self.issuer_keys_fetched,
        ] {
            if let Err(error) = gauge.remove_label_values(&[issuer]) {
                tracing::debug!(%error, "issuer metric not found");
            }
        }
    }
}
