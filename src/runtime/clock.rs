//! The clock: the only place that reads the time of the system.
//!
//! There are two times. The wall clock ([`Clock::now`]) is stored and shown, and may jump when it is set. The monotonic clock
//! ([`Clock::instant`]) measures durations and deadlines and never jumps.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::model::Deadline;
use crate::model::Timestamp;

/// Reads the time. Code that needs the time takes a clock as a parameter, so that tests control it:
///
/// ```
/// use std::time::Duration;
///
/// use snapgate::model::Timestamp;
/// use snapgate::runtime::{Clock, ManualClock};
///
/// fn is_expired(clock: &dyn Clock, expires: Timestamp) -> bool {
///     clock.now() >= expires
/// }
///
/// let clock = ManualClock::new(Timestamp::from_millis(1_000));
/// let expires = clock.now().plus(Duration::from_secs(60));
/// assert!(!is_expired(&clock, expires));
/// clock.advance(Duration::from_secs(60));
/// assert!(is_expired(&clock, expires));
/// ```
pub trait Clock: Debug + Send + Sync {
    /// The wall-clock time, to store and to show. May jump.
    fn now(&self) -> Timestamp;

    /// The monotonic time, to measure durations and to wait.
    fn instant(&self) -> Instant;

    /// The time since the machine was started, also while it was suspended, during which [`Clock::instant`] stands still.
    ///
    /// For what others count too, such as a lease.
    fn since_boot(&self) -> Duration;

    /// The deadline this long from now.
    fn deadline(&self, after: Duration) -> Deadline {
        let now = self.instant();
        Deadline::at(now.checked_add(after).unwrap_or(now))
    }
}

/// The clocks of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The clocks of the system as a trait object.
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

    fn since_boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
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
    /// A clock that stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self {
            base: SystemClock.instant(),
            start,
            moved: Mutex::new(Duration::ZERO),
        }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let mut moved = self.moved.lock();
        *moved = moved.saturating_add(by);
    }

    fn moved(&self) -> Duration {
        *self.moved.lock()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.start.plus(self.moved())
    }

    fn instant(&self) -> Instant {
        self.base.checked_add(self.moved()).unwrap_or(self.base)
    }

    fn since_boot(&self) -> Duration {
        self.moved()
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
        assert_eq!(clock.since_boot(), Duration::from_millis(250), "since boot");
    }
}
