//! Repeating of reads: how often, and how long to wait in between.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder;
use backon::ExponentialBackoff;
use backon::ExponentialBuilder;

/// Half of the pause before the first repetition: jitter adds up to the same again, so that callers that failed together do not
/// come back together.
const FIRST: Duration = Duration::from_millis(25);
/// Half of the longest pause: a caller waits for the answer.
const LONGEST: Duration = Duration::from_millis(500);

/// How often a read is repeated, with pauses that differ from caller to caller.
#[derive(Debug)]
pub(super) struct RetryPolicy {
    most: u32,
    seed: AtomicU64,
}

impl RetryPolicy {
    /// At most so many repetitions; the seed decides the pauses.
    pub(super) const fn new(most: u32, seed: u64) -> Self {
        Self {
            most,
            seed: AtomicU64::new(seed),
        }
    }

    /// The pauses before the repetitions of one call; they end when there are no more repetitions.
    pub(super) fn pauses(&self) -> ExponentialBackoff {
        // Calls that fail together must not draw the same pauses.
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        ExponentialBuilder::new()
            .with_min_delay(FIRST)
            .with_max_delay(LONGEST)
            .with_factor(2.0)
            .with_max_times(usize::try_from(self.most).unwrap_or(usize::MAX))
            .with_jitter()
            .with_jitter_seed(seed)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_bounded_and_differ() {
        let retries = RetryPolicy::new(8, 7);
        let pauses: Vec<Duration> = retries.pauses().collect();
        let ranges = [
            (25, 50),
            (50, 100),
            (100, 200),
            (200, 400),
            (400, 800),
            (500, 1000),
            (500, 1000),
            (500, 1000),
        ];
        assert_eq!(pauses.len(), ranges.len(), "as many as configured");
        for (pause, (least, most)) in pauses.iter().zip(ranges) {
            assert!(
                *pause >= Duration::from_millis(least) && *pause <= Duration::from_millis(most),
                "{pause:?} is outside {least}..={most} ms"
            );
        }
        let others: Vec<Duration> = retries.pauses().collect();
        assert_ne!(pauses, others, "another call has other pauses");
        assert_eq!(
            RetryPolicy::new(0, 7).pauses().count(),
            0,
            "none where no repetition is configured"
        );
    }
}
