//! The clock: the only place that asks the system what time it is.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use crate::model::Deadline;
use crate::model::Timestamp;

/// Tells the time.
pub trait Clock: Debug + Send + Sync {
    /// The wall-clock time, for what is stored and shown. May jump.
    fn now(&self) -> Timestamp;

    /// The monotonic time, for what is measured and waited for.
    fn instant(&self) -> Instant;

    /// So long from now.
    fn deadline(&self, after: Duration) -> Deadline {
        let now = self.instant();
        Deadline::at(now.checked_add(after).unwrap_or(now))
    }
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The system's clocks behind the trait.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until it is moved, for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    base: Instant,
    start: Timestamp,
    moved: Mutex<Duration>,
}

impl ManualClock {
    /// Stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self {
            base: SystemClock.instant(),
            start,
            moved: Mutex::new(Duration::ZERO),
        }
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        *moved = moved.saturating_add(by);
    }

    fn moved(&self) -> Duration {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.start.plus(self.moved())
    }

    fn instant(&self) -> Instant {
        self.base.checked_add(self.moved()).unwrap_or(self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_both_times_together() {
        let clock = ManualClock::new(Timestamp::from_millis(1000));
        let (wall, monotonic) = (clock.now(), clock.instant());
        clock.advance(Duration::from_millis(250));
        assert_eq!(
            clock.now().since(wall),
            Duration::from_millis(250),
            "wall clock"
        );
        assert_eq!(
            clock.instant() - monotonic,
            Duration::from_millis(250),
            "monotonic"
        );
    }
}
