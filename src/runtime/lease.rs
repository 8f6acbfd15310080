//! The right of this process to change VMs, for as long as no other gateway may have taken it over.
//!
//! A single gateway has it without an end. In a cluster the active gateway has it until a deadline, which each renewal moves on.
//! The deadline is on the clock that goes on while the machine is suspended, and an ended lease never begins again: a process that was
//! stopped and wakes up late finds that it has no right left, whatever it was about to do.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::model::Deadline;
use crate::runtime::Clock;

tokio::task_local! {
    static LEASE: Lease;
}

/// The lease is over: another gateway may act already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this gateway has ended")]
pub struct LeaseEnded;

/// The right of this process to change VMs. Clones share it.
#[derive(Clone, Debug)]
pub struct Lease(Option<Arc<LeaseEnd>>);

#[derive(Debug)]
struct LeaseEnd {
    clock: Arc<dyn Clock>,
    /// Milliseconds since the start of the machine; [`ENDED`] once it is over.
    millis: AtomicU64,
}

/// Before every deadline, so that it never lies ahead again.
const ENDED: u64 = 0;

impl Lease {
    /// A lease without an end: that of a single gateway.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self(None)
    }

    /// A lease until this time since the start of the machine.
    #[must_use]
    pub fn until(deadline: Duration, clock: Arc<dyn Clock>) -> Self {
        Self(Some(Arc::new(LeaseEnd {
            clock,
            millis: AtomicU64::new(millis(deadline)),
        })))
    }

    /// Moves the deadline on. Without effect on a lease that has ended, or that lasts longer.
    ///
    /// # Errors
    /// [`LeaseEnded`] when it ended before: the renewal came too late.
    pub fn extend(&self, deadline: Duration) -> Result<(), LeaseEnded> {
        self.check()?;
        let Some(state) = &self.0 else { return Ok(()) };
        let later = |old: u64| (old != ENDED).then(|| old.max(millis(deadline)));
        state
            .millis
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, later)
            .map(drop)
            .map_err(|_ended| LeaseEnded)
    }

    /// Ends it, for good.
    pub fn end(&self) {
        if let Some(state) = &self.0 {
            state.millis.store(ENDED, Ordering::Release);
        }
    }

    /// Whether it has not ended. One that is past its deadline ends here.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.check().is_ok()
    }

    /// The same as a result.
    ///
    /// # Errors
    /// [`LeaseEnded`].
    pub fn check(&self) -> Result<(), LeaseEnded> {
        let Some(state) = &self.0 else { return Ok(()) };
        let deadline = state.millis.load(Ordering::Acquire);
        if millis(state.clock.since_boot()) < deadline {
            return Ok(());
        }
        // For good: a renewal whose answer was on its way must not revive what was found ended.
        self.end();
        Err(LeaseEnded)
    }

    /// How long it lasts from now on unless it is extended; `None` without an end.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let state = self.0.as_ref()?;
        let deadline = Duration::from_millis(state.millis.load(Ordering::Acquire));
        Some(deadline.saturating_sub(state.clock.since_boot()))
    }

    /// The deadline, or the end of the lease as it stands now where that comes first.
    #[must_use]
    pub fn limit(&self, by: Deadline) -> Deadline {
        match (&self.0, self.remaining()) {
            (Some(state), Some(remaining)) => by.earlier(state.clock.deadline(remaining)),
            (_, _) => by,
        }
    }

    /// Runs the work so that [`check_current`] in it looks at this lease.
    pub async fn within<F: Future>(&self, work: F) -> F::Output {
        LEASE.scope(self.clone(), work).await
    }
}

/// To be called right before bytes with an effect leave, with no await in between. Passes outside of [`Lease::within`].
///
/// # Errors
/// [`LeaseEnded`]: nothing may be sent.
pub fn check_current() -> Result<(), LeaseEnded> {
    LEASE.try_with(Lease::check).unwrap_or(Ok(()))
}

/// The lease that the running work looks at; `None` outside of [`Lease::within`].
#[must_use]
pub fn current() -> Option<Lease> {
    LEASE.try_with(Lease::clone).ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::ManualClock;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn lease_of_ten_seconds() -> (Lease, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(Timestamp::default()));
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        (Lease::until(seconds(10), shared), clock)
    }

    #[test]
    fn a_lease_lasts_until_its_deadline_and_is_extended_before_it() {
        let (lease, clock) = lease_of_ten_seconds();
        assert!(lease.is_held(), "at first");
        assert_eq!(lease.remaining(), Some(seconds(10)), "ten seconds");
        let (near, far) = (clock.deadline(seconds(1)), clock.deadline(seconds(60)));
        let end = clock.deadline(seconds(10));
        assert_eq!(lease.limit(near), near, "the deadline of the call");
        assert_eq!(lease.limit(far), end, "the end of the lease");
        clock.advance(seconds(9));
        assert_eq!(lease.extend(seconds(19)), Ok(()), "in time");
        assert_eq!(lease.extend(seconds(12)), Ok(()), "an older answer");
        clock.advance(seconds(9));
        assert!(lease.is_held(), "the later deadline counts");
        clock.advance(seconds(1));
        assert!(!lease.is_held(), "at the deadline");
        assert_eq!(lease.remaining(), Some(Duration::ZERO), "nothing is left");
    }

    #[test]
    fn an_ended_lease_is_never_revived() {
        let (lease, clock) = lease_of_ten_seconds();
        clock.advance(seconds(11));
        assert_eq!(lease.extend(seconds(99)), Err(LeaseEnded), "too late");
        assert!(!lease.is_held(), "and without effect");
        let (lease, _clock) = lease_of_ten_seconds();
        let other = lease.clone();
        other.end();
        assert!(!lease.is_held(), "clones share it");
        assert_eq!(lease.extend(seconds(99)), Err(LeaseEnded), "ended for good");
    }

    #[test]
    fn a_single_gateway_has_it_without_an_end() {
        let lease = Lease::unlimited();
        lease.end();
        assert!(lease.is_held(), "for ever");
        assert_eq!(lease.extend(seconds(1)), Ok(()), "nothing to extend");
        assert_eq!(lease.remaining(), None, "no deadline");
    }

    #[tokio::test]
    async fn work_looks_at_the_lease_that_it_runs_under() {
        let (lease, clock) = lease_of_ten_seconds();
        assert_eq!(check_current(), Ok(()), "outside of any lease");
        let held = lease.within(async { check_current() }).await;
        assert_eq!(held, Ok(()), "held");
        clock.advance(seconds(10));
        let ended = lease.within(async { check_current() }).await;
        assert_eq!(ended, Err(LeaseEnded), "ended");
    }
}
