//! How one backend is treated, whatever its kind.

use std::time::Duration;

use crate::model::limits;

/// How one backend is treated, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Time for one call; longer calls count as failed.
    pub timeout: Duration,
    /// Operations that run at once.
    pub concurrency: usize,
    /// Reads that run at once; more wait until their deadline.
    pub reads: usize,
    /// How often a read that failed for a passing reason is repeated.
    pub retries: u32,
    /// Failures in a row that open the circuit breaker.
    pub breaker_failures: u32,
    /// How long the circuit breaker stays open before one call is tried.
    pub breaker_pause: Duration,
    /// Time between two health checks.
    pub health_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            timeout: limits::CALL_TIMEOUT,
            concurrency: size(limits::CONCURRENCY),
            reads: size(limits::READS),
            retries: 2,
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(5),
            health_interval: limits::HEALTH_INTERVAL,
        }
    }
}
