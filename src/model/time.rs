//! Points in time: wall-clock timestamps to store and show, and monotonic deadlines to wait for.

use std::fmt;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

/// A wall-clock instant in milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From milliseconds since 1970.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This instant moved forward; stops at the end of time instead of overflowing.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// This instant moved back; stops at 1970.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// From the time a file or a system call gave; times before 1970 become 1970.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        Self(
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, millis),
        )
    }
}

/// The time as RFC 3339 in UTC with whole seconds, for instance `2026-11-24T01:02:03Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter refuses years after 9999.
        const YEAR_9999_END_MS: u64 = 253_402_300_799_000;
        let shown = Duration::from_millis(self.0.min(YEAR_9999_END_MS));
        let time = SystemTime::UNIX_EPOCH
            .checked_add(shown)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_seconds(time).fmt(f)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic instant by which an answer is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// At this instant.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant itself, for `tokio::time::timeout_at`.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Whichever comes first.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_as_rfc_3339_and_never_overflow() {
        let rows = [
            (0, "1970-01-01T00:00:00Z"),
            (1_795_482_123_456, "2026-11-24T01:02:03Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ];
        for (millis, expected) in rows {
            assert_eq!(
                Timestamp::from_millis(millis).to_string(),
                expected,
                "{millis}"
            );
        }
        let last = Timestamp::from_millis(u64::MAX);
        assert_eq!(last.plus(Duration::from_secs(1)), last, "saturates");
        assert_eq!(
            Timestamp::default().since(last),
            Duration::ZERO,
            "never negative"
        );
    }
}
