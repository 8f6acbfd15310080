//! Rate limits by the generic cell rate algorithm (GCRA), which keeps one instant per client.

use std::time::Duration;
use std::time::Instant;

use crate::gate::config::Rate;
use crate::gate::limiter::bucket_table::BucketTable;
use crate::gate::limiter::bucket_table::Expiring;

/// When the next request would arrive at an even pace ("theoretical arrival time").
#[derive(Clone, Copy, Debug)]
struct TheoreticalArrival(Instant);

impl Expiring for TheoreticalArrival {
    fn fresh(now: Instant) -> Self {
        Self(now)
    }

    fn until(&self) -> Instant {
        self.0
    }
}

/// What is left of a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct Quota {
    /// Which limit: `principal` or `address`.
    pub(in crate::gate) name: &'static str,
    /// Requests that may come at once when none came for a while.
    pub(in crate::gate) burst: u32,
    /// Time in which that many are let in at an even pace.
    pub(in crate::gate) window: Duration,
    /// Requests that would be let in now.
    pub(in crate::gate) remaining: u32,
    /// When all of them would be again, unless more come.
    pub(in crate::gate) full_after: Duration,
    /// When the next one would be; zero when now.
    pub(in crate::gate) retry_after: Duration,
}

impl Quota {
    /// The value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10, section 3).
    pub(in crate::gate) fn policy_field(&self) -> String {
        let window = seconds(self.window);
        format!("\"{}\";q={};w={window}", self.name, self.burst)
    }

    /// The value of `RateLimit` (section 4 of the same).
    pub(in crate::gate) fn remaining_field(&self) -> String {
        let after = if self.remaining == 0 {
            self.retry_after
        } else {
            self.full_after
        };
        let after = seconds(after);
        format!("\"{}\";r={};t={after}", self.name, self.remaining)
    }
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    let more = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(more)
}

/// The theoretical arrival times of all clients.
#[derive(Debug)]
pub(super) struct RateTable(BucketTable<TheoreticalArrival>);

impl RateTable {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self(BucketTable::new(key))
    }

    /// Takes one request of the client's quota; `Err` when there is none.
    pub(super) fn take_request(
        &self,
        name: &'static str,
        client: &[u8],
        rate: &Rate,
        now: Instant,
    ) -> Result<Quota, Quota> {
        let interval = Duration::from_secs(1)
            .checked_div(rate.per_second.get())
            .unwrap_or(Duration::from_secs(1));
        let window = interval.saturating_mul(rate.burst.get());
        let (taken, ahead) = self.0.with(self.0.hash(&[client]), now, |pace| {
            // A rate that was made stricter by a reload must not remember a longer debt than it can have itself.
            let latest = now.checked_add(window).unwrap_or(now);
            let from = pace.0.max(now).min(latest);
            let next = from.checked_add(interval).unwrap_or(from);
            let fits = next.saturating_duration_since(now) <= window;
            if fits {
                pace.0 = next;
            }
            let stands = if fits { next } else { from };
            (fits, stands.saturating_duration_since(now))
        });
        let room = window.saturating_sub(ahead);
        let remaining = room
            .as_nanos()
            .checked_div(interval.as_nanos())
            .unwrap_or(0);
        let quota = Quota {
            name,
            burst: rate.burst.get(),
            window,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            full_after: ahead,
            retry_after: interval.saturating_sub(room),
        };
        if taken { Ok(quota) } else { Err(quota) }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::model::Timestamp;
    use crate::model::limits;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: NonZeroU32::new(per_second).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    /// What a client reads of a field: the name of the limit, and its parameters.
    fn read(field: &str) -> (String, Vec<(String, i64)>) {
        let list = sfv::Parser::parse_list(field.as_bytes()).unwrap();
        let [sfv::ListEntry::Item(item)] = list.as_slice() else {
            panic!("one item: {field}");
        };
        let name = item.bare_item.as_str();
        let parameters = item.params.iter().map(|(name, value)| {
            let value = value.as_int();
            (
                name.clone(),
                value.unwrap_or_else(|| panic!("an integer: {field}")),
            )
        });
        let name = name.unwrap_or_else(|| panic!("a string: {field}"));
        (name.to_owned(), parameters.collect())
    }

    #[test]
    fn both_fields_are_what_the_draft_says() {
        let clock = ManualClock::new(Timestamp::default());
        let rates = RateTable::new([1; 32]);
        let most = u32::try_from(limits::RATE_MAX).unwrap();
        let all = [
            (1, 1),
            (1, 10),
            (2, 3),
            (1000, 1),
            (1000, 10_000),
            (most, 1),
            (1, most),
            (most, most),
        ];
        for (per_second, burst) in all {
            let client = format!("{per_second} {burst}");
            let take = || {
                let rate = rate(per_second, burst);
                rates.take_request("address", client.as_bytes(), &rate, clock.instant())
            };
            for quota in [take(), take(), take()] {
                let (Ok(quota) | Err(quota)) = quota;
                let (policy, left) = (read(&quota.policy_field()), read(&quota.remaining_field()));
                assert_eq!(policy.0, "address", "{client}: the limit");
                assert_eq!(left.0, policy.0, "{client}: of the same limit");
                let [(q, quota), (w, window)] = policy.1.as_slice() else {
                    panic!("{client}: {policy:?}");
                };
                assert_eq!((q.as_str(), w.as_str()), ("q", "w"), "{client}: policy");
                assert_eq!(*quota, i64::from(burst), "{client}: the quota");
                assert!(*window > 0, "{client}: a window is never empty: {window}");
                let [(r, remaining), (t, after)] = left.1.as_slice() else {
                    panic!("{client}: {left:?}");
                };
                assert_eq!((r.as_str(), t.as_str()), ("r", "t"), "{client}: left");
                assert!(
                    (0..=*quota).contains(remaining),
                    "{client}: {remaining} left"
                );
                assert!((0..=*window).contains(after), "{client}: after {after}");
            }
        }
    }

    #[test]
    fn a_burst_then_an_even_pace() {
        let clock = ManualClock::new(Timestamp::default());
        let (rates, rate) = (RateTable::new([1; 32]), rate(2, 3));
        let take = || rates.take_request("principal", b"ann", &rate, clock.instant());
        let left: Vec<u32> = (0..3).map(|_| take().unwrap().remaining).collect();
        assert_eq!(left, [2, 1, 0], "three at once");
        let spent = take().unwrap_err();
        assert_eq!(
            spent.retry_after,
            Duration::from_millis(500),
            "one each half second"
        );
        assert_eq!(spent.policy_field(), "\"principal\";q=3;w=2", "policy");
        assert_eq!(spent.remaining_field(), "\"principal\";r=0;t=1", "left");
        assert!(
            rates
                .take_request("principal", b"bob", &rate, clock.instant())
                .is_ok(),
            "another"
        );
        clock.advance(Duration::from_millis(499));
        assert!(take().is_err(), "too early");
        clock.advance(Duration::from_millis(1));
        assert!(take().is_ok(), "in time");
        assert!(take().is_err(), "one alone");
        clock.advance(Duration::from_secs(3600));
        let left = take().unwrap();
        assert_eq!(
            (left.remaining, left.remaining_field().as_str()),
            (2, "\"principal\";r=2;t=1"),
            "full again"
        );
    }

    /// However requests come, no stretch of time sees more than its share and one burst.
    #[test]
    fn no_pattern_gets_more() {
        let mut state = 0x1234_5678_9abc_def1_u64;
        for round in 0..100_u32 {
            let (per_second, burst) = (1 + round % 50, 1 + round % 7);
            let clock = ManualClock::new(Timestamp::default());
            let (rates, rate) = (RateTable::new([1; 32]), rate(per_second, burst));
            let (mut taken, mut spent) = (0_u128, Duration::ZERO);
            for _ in 0..2000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let pause = Duration::from_micros((state >> 33) % 100_000);
                clock.advance(pause);
                spent += pause;
                let quota = rates.take_request("address", b"x", &rate, clock.instant());
                taken += u128::from(quota.is_ok());
                let (Ok(quota) | Err(quota)) = quota;
                assert!(quota.remaining <= burst, "round {round}: {quota:?}");
            }
            let share = spent.as_nanos() * u128::from(per_second) / 1_000_000_000;
            // The interval is whole nanoseconds, so that a long run may see one more.
            let most = share + u128::from(burst) + 1;
            assert!(taken <= most, "round {round}: {taken} of {most}");
            assert!(
                taken >= share.min(1000) / 2,
                "round {round}: {taken} of {share}"
            );
        }
    }

    #[test]
    fn a_stricter_rate_counts_at_once_and_forgives_the_rest() {
        let clock = ManualClock::new(Timestamp::default());
        let rates = RateTable::new([1; 32]);
        let slow = rate(1, 1000);
        for _ in 0..1000 {
            rates
                .take_request("principal", b"ann", &slow, clock.instant())
                .unwrap();
        }
        let strict = rate(1, 2);
        let spent = rates.take_request("principal", b"ann", &strict, clock.instant());
        assert!(
            spent.unwrap_err().retry_after <= Duration::from_secs(1),
            "no debt of 1000 s"
        );
    }
}
