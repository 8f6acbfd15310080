//! Statuses that the server asked not to look at again yet (`Retry-After`).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::model::Progress;

/// Longest time that is heeded: an operation that ended is seen at the latest then.
const LONGEST: Duration = Duration::from_secs(60);
/// Most Statuses that are remembered: those of running operations.
const MOST: usize = 10_000;

/// Until when each of them rests, and how far it was.
#[derive(Debug, Default)]
pub(super) struct Rests(Mutex<BTreeMap<String, (Instant, Progress)>>);

impl Rests {
    /// It was that far, and is worth another look in so many seconds.
    pub(super) fn rest(&self, uri: &str, seconds: u64, progress: Progress, now: Instant) {
        let until = now.checked_add(Duration::from_secs(seconds).min(LONGEST));
        let mut all = self.held();
        all.retain(|_, (until, _)| *until > now);
        if let Some(until) = until.filter(|_| all.len() < MOST) {
            all.insert(uri.to_owned(), (until, progress));
        }
    }

    /// How far it was, while it rests.
    pub(super) fn resting(&self, uri: &str, now: Instant) -> Option<Progress> {
        let all = self.held();
        let (until, progress) = all.get(uri)?;
        (*until > now).then_some(*progress)
    }

    /// It is worth a look now.
    pub(super) fn wake(&self, uri: &str) {
        self.held().remove(uri);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, Progress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock;
    use crate::runtime::SystemClock;

    #[test]
    fn a_status_rests_as_long_as_the_server_asked_within_reason() {
        let (rests, now) = (Rests::default(), SystemClock.instant());
        let at = |seconds| now + Duration::from_secs(seconds);
        let far = Progress::unfinished(40);
        rests.rest("a", 5, far, now);
        rests.rest("b", 100_000, far, now);
        assert_eq!(rests.resting("a", at(4)), Some(far), "not yet");
        assert_eq!(rests.resting("a", at(6)), None, "time is over");
        assert_eq!(rests.resting("b", at(61)), None, "never so long");
        assert_eq!(rests.resting("c", now), None, "never heard of");
        rests.wake("a");
        assert_eq!(rests.resting("a", at(1)), None, "woken");
    }
}
