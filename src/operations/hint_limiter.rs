//! Limits how often the hints of an adapter that a task has changed lead to a poll.
//!
//! The end of a task that is announced right after a step is polled at once; a flood of steps is not.

use std::time::Duration;
use std::time::Instant;

/// Shortest time on average between two polls while the adapter gives hints all the time.
const POLL_EVERY_MIN: Duration = Duration::from_millis(20);
/// How far polls may be ahead of that average.
const BURST: Duration = Duration::from_millis(80);

/// A token bucket: each poll that a hint caused takes [`POLL_EVERY_MIN`] from it.
#[derive(Debug, Default)]
pub(super) struct HintLimiter {
    /// When the next poll would be due if polls came evenly.
    next_due: Option<Instant>,
}

impl HintLimiter {
    /// How long hints are ignored.
    pub(super) fn ignored_for(&self, now: Instant) -> Duration {
        let from = self.next_due.and_then(|due| due.checked_sub(BURST));
        from.map_or(Duration::ZERO, |from| from.saturating_duration_since(now))
    }

    /// Counts a poll that a hint caused.
    pub(super) fn count_poll(&mut self, now: Instant) {
        let due = self.next_due.unwrap_or(now).max(now);
        self.next_due = due.checked_add(POLL_EVERY_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock as _;
    use crate::runtime::SystemClock;

    #[test]
    fn a_few_hints_lead_to_a_poll_at_once_and_a_flood_does_not() {
        let begin = SystemClock.instant();
        let mut limiter = HintLimiter::default();
        let mut now = begin;
        let mut polls = 0_u32;
        while now < begin + Duration::from_secs(1) {
            let wait = limiter.ignored_for(now);
            assert!(wait <= POLL_EVERY_MIN, "poll {polls} waits {wait:?}");
            if polls < 4 {
                assert_eq!(wait, Duration::ZERO, "poll {polls} is at once");
            }
            now += wait;
            limiter.count_poll(now);
            polls += 1;
        }
        assert!((50..=56).contains(&polls), "fifty a second: {polls}");
        now += Duration::from_millis(100);
        assert_eq!(
            limiter.ignored_for(now),
            Duration::ZERO,
            "at once after a pause"
        );
    }
}
