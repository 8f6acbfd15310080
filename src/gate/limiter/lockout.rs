//! Lock-out after wrong passwords: of one user from one address, and of one address, for longer and longer.
//!
//! Never of a user as such: guessing from elsewhere must not keep the real user out. Names that do not exist are counted
//! like names that do.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::gate::config::LockoutRule;
use crate::gate::limiter::bucket_table::BucketTable;
use crate::gate::limiter::bucket_table::Expiring;
use crate::gate::limiter::client_network::ClientNetwork;
use crate::model::limits;

/// The failed logins of a user from a network, or of a network.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// Attempts made while locked out.
    attempts_while_locked: u32,
    locked_until: Instant,
    until: Instant,
}

impl Expiring for Failures {
    fn fresh(now: Instant) -> Self {
        Self {
            count: 0,
            attempts_while_locked: 0,
            locked_until: now,
            until: now,
        }
    }

    fn until(&self) -> Instant {
        self.until
    }
}

impl Failures {
    fn add(&mut self, now: Instant, allowed: u32, rule: &LockoutRule) -> bool {
        self.count = self.count.saturating_add(1);
        self.attempts_while_locked = 0;
        let beyond = self.count.saturating_sub(allowed);
        let pause = match beyond {
            0 => Duration::ZERO,
            // One second, then twice as long each time.
            count => Duration::from_secs(1)
                .saturating_mul(
                    1_u32
                        .checked_shl(count.saturating_sub(1))
                        .unwrap_or(u32::MAX),
                )
                .min(rule.longest),
        };
        self.locked_until = now.checked_add(pause).unwrap_or(now);
        let until = self.locked_until.checked_add(rule.longest);
        self.until = until.unwrap_or(self.locked_until);
        !pause.is_zero()
    }
}

/// Whether a login attempt may be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum LockoutStatus {
    /// A password may be checked.
    Free,
    /// No password is checked for so long, but one that is remembered counts.
    Locked(Duration),
    /// The same, and not even one that is remembered counts: too many were tried while locked out.
    Barred(Duration),
}

/// The lockouts that a failure started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) struct StartedLockouts {
    pub(in crate::gate) user: bool,
    pub(in crate::gate) address: bool,
}

/// All failed logins that are remembered. Outlives reloads.
#[derive(Debug)]
pub(in crate::gate) struct Lockouts {
    users: BucketTable<Failures>,
    addresses: BucketTable<Failures>,
    /// When a password was wrong for the first time.
    began: OnceLock<Instant>,
    /// Until when any client may be locked out, in milliseconds from `began`: there is no lookup after that.
    busy_until: AtomicU64,
}

impl Lockouts {
    pub(in crate::gate) fn new(key: [u8; 32]) -> Self {
        Self {
            users: BucketTable::new(blake3::derive_key("snapgate lock-out of users", &key)),
            addresses: BucketTable::new(blake3::derive_key("snapgate lock-out of addresses", &key)),
            began: OnceLock::new(),
            busy_until: AtomicU64::new(0),
        }
    }

    fn millis(began: Instant, at: Instant) -> u64 {
        let since = at.saturating_duration_since(began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// Whether no client is locked out: the usual case, which costs one atomic read.
    pub(in crate::gate) fn is_idle(&self, now: Instant) -> bool {
        let busy_until = self.busy_until.load(Ordering::Acquire);
        self.began
            .get()
            .is_none_or(|began| Self::millis(*began, now) >= busy_until)
    }

    /// Whether a wrong password came from that network, and is remembered.
    pub(in crate::gate) fn has_failed(&self, network: ClientNetwork, now: Instant) -> bool {
        if self.began.get().is_none() {
            return false;
        }
        self.addresses
            .with(self.of_address(network), now, |failures| failures.count > 0)
    }

    /// Whether a password of that user may be checked for a client in that network. An attempt while locked out is counted.
    pub(in crate::gate) fn check_attempt(
        &self,
        user: &str,
        network: ClientNetwork,
        now: Instant,
    ) -> LockoutStatus {
        if self.is_idle(now) {
            return LockoutStatus::Free;
        }
        let look = |table: &BucketTable<Failures>, hash| {
            table.with(hash, now, |failures| {
                let left = failures.locked_until.saturating_duration_since(now);
                if left.is_zero() {
                    return LockoutStatus::Free;
                }
                failures.attempts_while_locked = failures.attempts_while_locked.saturating_add(1);
                if failures.attempts_while_locked > limits::LOCKED_OUT_KNOCKS_MAX {
                    LockoutStatus::Barred(left)
                } else {
                    LockoutStatus::Locked(left)
                }
            })
        };
        let of_user = look(&self.users, self.of_user(user, network));
        let of_address = look(&self.addresses, self.of_address(network));
        match (of_user, of_address) {
            (LockoutStatus::Free, status) | (status, LockoutStatus::Free) => status,
            (LockoutStatus::Locked(one), LockoutStatus::Locked(two)) => {
                LockoutStatus::Locked(one.max(two))
            }
            (
                LockoutStatus::Locked(one) | LockoutStatus::Barred(one),
                LockoutStatus::Locked(two) | LockoutStatus::Barred(two),
            ) => LockoutStatus::Barred(one.max(two)),
        }
    }

    /// A password was wrong.
    pub(in crate::gate) fn record_failure(
        &self,
        user: &str,
        network: ClientNetwork,
        now: Instant,
        rule: &LockoutRule,
    ) -> StartedLockouts {
        let began = *self.began.get_or_init(|| now);
        let add = |table: &BucketTable<Failures>, hash, allowed: u32| {
            if allowed == 0 {
                return false;
            }
            let (locked, until) = table.with(hash, now, |failures| {
                let locked = failures.add(now, allowed, rule);
                (locked, failures.locked_until)
            });
            self.busy_until
                .fetch_max(Self::millis(began, until), Ordering::AcqRel);
            locked
        };
        StartedLockouts {
            user: add(&self.users, self.of_user(user, network), rule.attempts),
            address: add(
                &self.addresses,
                self.of_address(network),
                rule.address_attempts,
            ),
        }
    }

    /// A password was right: what went wrong before with that user from there is forgotten. What the address did to others
    /// is not, or one account would be enough to guess at all the rest.
    pub(in crate::gate) fn record_success(&self, user: &str, network: ClientNetwork, now: Instant) {
        let forget = |failures: &mut Failures| *failures = Failures::fresh(now);
        self.users.with(self.of_user(user, network), now, forget);
    }

    fn of_user(&self, user: &str, network: ClientNetwork) -> u64 {
        self.users.hash(&[user.as_bytes(), network.bytes()])
    }

    fn of_address(&self, network: ClientNetwork) -> u64 {
        self.addresses.hash(&[network.bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;

    fn network(text: &str) -> ClientNetwork {
        ClientNetwork::from_address(text.parse().unwrap()).unwrap()
    }

    struct Bench {
        clock: ManualClock,
        all: Lockouts,
        rule: LockoutRule,
    }

    impl Bench {
        fn new() -> Self {
            let clock = ManualClock::new(Timestamp::default());
            let all = Lockouts::new([9; 32]);
            let rule = LockoutRule {
                attempts: 3,
                address_attempts: 10,
                longest: Duration::from_secs(60),
            };
            Self { clock, all, rule }
        }

        fn check_attempt(&self, user: &str, from: &str) -> LockoutStatus {
            self.all
                .check_attempt(user, network(from), self.clock.instant())
        }

        fn fail(&self, user: &str, from: &str) -> StartedLockouts {
            let now = self.clock.instant();
            self.all
                .record_failure(user, network(from), now, &self.rule)
        }
    }

    #[test]
    fn the_pause_grows_to_its_longest_and_ends() {
        let bench = Bench::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            // Each address of its own user: the address is not the one that is locked here.
            bench.fail("ann", "192.0.2.1");
            let pause = match bench.check_attempt("ann", "192.0.2.1") {
                LockoutStatus::Free => 0,
                LockoutStatus::Locked(value) | LockoutStatus::Barred(value) => value.as_secs(),
            };
            pauses.push(pause);
            bench.clock.advance(Duration::from_secs(pause));
            assert_eq!(
                bench.check_attempt("ann", "192.0.2.1"),
                LockoutStatus::Free,
                "over"
            );
        }
        assert_eq!(pauses, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60], "seconds");
        bench.clock.advance(Duration::from_secs(60));
        bench.fail("ann", "192.0.2.1");
        assert_eq!(
            bench.check_attempt("ann", "192.0.2.1"),
            LockoutStatus::Free,
            "forgotten"
        );
    }

    #[test]
    fn a_user_is_not_locked_out_from_elsewhere() {
        let bench = Bench::new();
        for _ in 0..200 {
            bench.fail("ann", "192.0.2.1");
        }
        assert_ne!(
            bench.check_attempt("ann", "192.0.2.1"),
            LockoutStatus::Free,
            "there"
        );
        assert_ne!(
            bench.check_attempt("bob", "192.0.2.1"),
            LockoutStatus::Free,
            "the address"
        );
        assert_eq!(
            bench.check_attempt("ann", "192.0.2.2"),
            LockoutStatus::Free,
            "elsewhere"
        );
        for _ in 0..200 {
            bench.fail("ann", "2001:db8:1::1");
        }
        let same = bench.check_attempt("ann", "2001:db8:1::ffff:2");
        assert_ne!(same, LockoutStatus::Free, "the same /64");
        assert_eq!(
            bench.check_attempt("ann", "2001:db8:2::1"),
            LockoutStatus::Free,
            "another"
        );
    }

    #[test]
    fn success_forgets_the_user_and_not_the_address() {
        let bench = Bench::new();
        let now = bench.clock.instant();
        for number in 0..9 {
            bench.fail(&format!("u{number}"), "192.0.2.1");
        }
        bench.fail("ann", "192.0.2.1");
        bench.all.record_success("ann", network("192.0.2.1"), now);
        let begun = bench.fail("ann", "192.0.2.1");
        let expected = StartedLockouts {
            user: false,
            address: true,
        };
        assert_eq!(begun, expected, "the eleventh from there");
    }

    #[test]
    fn knocking_bars_and_does_not_prolong() {
        let bench = Bench::new();
        for _ in 0..8 {
            bench.fail("ann", "192.0.2.1");
        }
        let LockoutStatus::Locked(first) = bench.check_attempt("ann", "192.0.2.1") else {
            panic!("locked");
        };
        let mut last = LockoutStatus::Free;
        for _ in 0..limits::LOCKED_OUT_KNOCKS_MAX {
            last = bench.check_attempt("ann", "192.0.2.1");
        }
        assert_eq!(last, LockoutStatus::Barred(first), "barred, for as long");
        bench.clock.advance(first);
        assert_eq!(
            bench.check_attempt("ann", "192.0.2.1"),
            LockoutStatus::Free,
            "over"
        );
    }

    /// Whatever is tried in whatever order: within an hour no client gets more checks from one address than the pauses allow,
    /// and another address is never affected.
    #[test]
    fn no_order_of_attempts_gets_more_checks() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..200 {
            let bench = Bench::new();
            let (mut checks, mut spent) = (0_u32, Duration::ZERO);
            while spent < Duration::from_secs(3600) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let pause = Duration::from_millis((state >> 40) % 30_000);
                bench.clock.advance(pause);
                spent += pause;
                if bench.check_attempt("ann", "192.0.2.1") == LockoutStatus::Free {
                    bench.fail("ann", "192.0.2.1");
                    checks += 1;
                }
                assert_eq!(
                    bench.check_attempt("ann", "192.0.2.9"),
                    LockoutStatus::Free,
                    "round {round}"
                );
            }
            // Three free ones, seven short pauses, then one a minute.
            assert!(checks <= 3 + 7 + 60, "round {round}: {checks}");
        }
    }
}
