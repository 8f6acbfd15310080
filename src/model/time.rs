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

    /// Parses an RFC 3339 time, with fractions of a second and an offset if it has them; `None` when it is none.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let zone = upper.get(19..)?.find(['Z', '+', '-'])?.checked_add(19)?;
        let (local, zone) = upper.split_at_checked(zone)?;
        let time = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
        let local = Self::from_system(time);
        if zone == "Z" {
            return Some(local);
        }
        let sign = zone.get(..1)?;
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        let number = |text: &str, most: u64| {
            let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u64>().ok().filter(|_| is_number)?;
            (number <= most).then_some(number)
        };
        let minutes = number(hours, 23)?
            .saturating_mul(60)
            .saturating_add(number(minutes, 59)?);
        let offset = Duration::from_secs(minutes.saturating_mul(60));
        // Local time that is ahead is that much later than UTC.
        Some(if sign == "+" {
            local.minus(offset)
        } else {
            local.plus(offset)
        })
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
    fn rfc_3339_is_parsed_with_fractions_and_offsets() {
        let rows = [
            ("2026-11-24T01:02:03Z", Some(1_795_482_123_000)),
            ("2026-11-24t01:02:03z", Some(1_795_482_123_000)),
            ("2026-11-24T01:02:03.456Z", Some(1_795_482_123_456)),
            ("2026-11-24T03:32:03+02:30", Some(1_795_482_123_000)),
            ("2026-11-23T23:02:03.456-02:00", Some(1_795_482_123_456)),
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-24T01:02:03", None),
            ("2026-11-24", None),
            ("2026-13-24T01:02:03Z", None),
            ("2026-11-24T01:02:03+2:30", None),
            ("2026-11-24T01:02:03+24:00", None),
            ("2026-11-24T01:02:03+01:60", None),
            ("2026-11-24T01:02:03Zx", None),
            ("1795482123000", None),
            ("yesterday, at the time of tea", None),
            ("", None),
        ];
        for (text, millis) in rows {
            let found = Timestamp::parse_rfc3339(text);
            assert_eq!(found, millis.map(Timestamp::from_millis), "{text:?}");
        }
    }

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
