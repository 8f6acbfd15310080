//! Statuses that the server asked not to poll again yet (`Retry-After`).

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;

use crate::model::Progress;

/// Longest time without a poll: the end of an operation is noticed after this time at the latest.
const HOLD_OFF_MAX: Duration = Duration::from_secs(60);
/// Most Statuses that are remembered: those of running operations.
const ENTRIES_MAX: usize = 10_000;

/// Until when each Status is not polled, and its progress at the last poll.
#[derive(Debug, Default)]
pub(super) struct PollBackoff(Mutex<BTreeMap<String, (Instant, Progress)>>);

impl PollBackoff {
    /// Remembers that a Status with this progress is worth another poll in so many seconds.
    pub(super) fn hold_off(&self, uri: &str, seconds: u64, progress: Progress, now: Instant) {
        let until = now.checked_add(Duration::from_secs(seconds).min(HOLD_OFF_MAX));
        let mut entries = self.0.lock();
        entries.retain(|_, (until, _)| *until > now);
        if let Some(until) = until.filter(|_| entries.len() < ENTRIES_MAX) {
            entries.insert(uri.to_owned(), (until, progress));
        }
    }

    /// The progress at the last poll, while the Status is not to be polled.
    pub(super) fn progress_while_held_off(&self, uri: &str, now: Instant) -> Option<Progress> {
        let entries = self.0.lock();
        let (until, progress) = entries.get(uri)?;
        (*until > now).then_some(*progress)
    }

    /// Allows the next poll at once.
    pub(super) fn release(&self, uri: &str) {
        self.0.lock().remove(uri);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;
    use crate::runtime::SystemClock;

    #[test]
    fn a_status_is_not_polled_for_as_long_as_the_server_asked_up_to_a_minute() {
        let (backoff, now) = (PollBackoff::default(), SystemClock.instant());
        let at = |seconds| now + Duration::from_secs(seconds);
        let progress = Progress::unfinished(40);
        backoff.hold_off("a", 5, progress, now);
        backoff.hold_off("b", 100_000, progress, now);
        let found = |uri, at| backoff.progress_while_held_off(uri, at);
        assert_eq!(found("a", at(4)), Some(progress), "within the time");
        assert_eq!(found("a", at(6)), None, "after the time");
        assert_eq!(found("b", at(61)), None, "after a minute");
        assert_eq!(found("c", now), None, "unknown");
        backoff.release("a");
        assert_eq!(found("a", at(1)), None, "released");
    }
}
