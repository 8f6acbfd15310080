//! Checks of passwords that several requests wait for.
//!
//! A client that opens many requests at once sends the same password with each. One check answers them all, so that they take one
//! place in the queue, and a wrong one is counted once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::gate::authn::denial::CredentialsDenied;

/// Names the user, the password and the network of a check: a keyed hash.
type CheckKey = [u8; 32];

/// What a check came to.
type Verdict = Result<(), CredentialsDenied>;

type RunningChecks = Mutex<BTreeMap<CheckKey, RunningCheck>>;

/// One check, and how many requests wait for it.
#[derive(Debug, Default)]
struct RunningCheck {
    cell: Arc<OnceCell<Verdict>>,
    waiting: usize,
}

/// The checks that are waited for.
#[derive(Debug, Default)]
pub(in crate::gate) struct SharedChecks {
    running: Arc<RunningChecks>,
}

impl SharedChecks {
    /// The verdict of the check that runs under this key, or of `check` where none does. When the request whose check runs is dropped,
    /// the next one that waits begins its own.
    pub(super) async fn join<F: Future<Output = Verdict>>(
        &self,
        key: CheckKey,
        check: impl FnOnce() -> F,
    ) -> Verdict {
        let joined = self.enter(key);
        joined.cell.get_or_init(check).await.clone()
    }

    /// One more request that waits for the check under this key.
    fn enter(&self, key: CheckKey) -> JoinedCheck {
        let mut running = self.running.lock();
        let check = running.entry(key).or_default();
        check.waiting = check.waiting.saturating_add(1);
        JoinedCheck {
            running: Arc::clone(&self.running),
            key,
            cell: Arc::clone(&check.cell),
        }
    }

    /// How many checks are waited for.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.running.lock().len()
    }
}

/// One request that waits for a check. The last one removes the check.
struct JoinedCheck {
    running: Arc<RunningChecks>,
    key: CheckKey,
    cell: Arc<OnceCell<Verdict>>,
}

impl Drop for JoinedCheck {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        let found = running.get_mut(&self.key);
        // Another check may run under the key by now.
        let Some(check) = found.filter(|check| Arc::ptr_eq(&check.cell, &self.cell)) else {
            return;
        };
        // Counted under the lock: references of requests that leave at the same moment end at any time after it.
        check.waiting = check.waiting.saturating_sub(1);
        // A verdict is for those who waited: the next request of this key is checked anew, or remembered.
        if check.waiting == 0 || self.cell.initialized() {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::poll;

    use super::*;
    use crate::gate::authn::DenialReason;

    fn wrong() -> Verdict {
        Err(CredentialsDenied::invalid(DenialReason::WrongPassword))
    }

    #[tokio::test]
    async fn one_check_answers_all_who_wait_and_none_who_come_later() {
        let checks = SharedChecks::default();
        let (begun, gate) = (Cell::new(0), tokio::sync::Semaphore::new(0));
        let check = async || {
            begun.set(begun.get() + 1);
            let _passed = gate.acquire().await.unwrap();
            wrong()
        };
        let mut first = Box::pin(checks.join([1; 32], check));
        let mut second = Box::pin(checks.join([1; 32], check));
        let mut other = Box::pin(checks.join([2; 32], check));
        for waiting in [&mut first, &mut second, &mut other] {
            assert!(poll!(waiting.as_mut()).is_pending(), "it waits");
        }
        assert_eq!((begun.get(), checks.count()), (2, 2), "one for each key");
        gate.add_permits(9);
        assert_eq!(
            (first.await, second.await),
            (wrong(), wrong()),
            "one verdict"
        );
        assert_eq!(other.await, wrong(), "of another key");
        assert_eq!(checks.count(), 0, "nothing is kept");
        assert_eq!(checks.join([1; 32], check).await, wrong(), "later");
        assert_eq!(begun.get(), 3, "checked anew");
    }

    #[test]
    fn a_reference_that_ends_later_keeps_no_check() {
        let checks = SharedChecks::default();
        let (first, second) = (checks.enter([1; 32]), checks.enter([1; 32]));
        // As that of a request which leaves at the same moment and is past the lock.
        let late = Arc::clone(&first.cell);
        drop(first);
        assert_eq!(checks.count(), 1, "one waits");
        drop(second);
        assert_eq!(checks.count(), 0, "nothing is kept");
        drop(late);
    }

    #[tokio::test]
    async fn when_the_request_that_checks_leaves_the_next_one_goes_on() {
        let checks = SharedChecks::default();
        let (begun, gate) = (Cell::new(0), tokio::sync::Semaphore::new(0));
        let check = async || {
            begun.set(begun.get() + 1);
            let _passed = gate.acquire().await.unwrap();
            Ok(())
        };
        let mut first = Box::pin(checks.join([1; 32], check));
        let mut second = Box::pin(checks.join([1; 32], check));
        assert!(poll!(first.as_mut()).is_pending(), "it checks");
        assert!(poll!(second.as_mut()).is_pending(), "it waits");
        drop(first);
        assert!(poll!(second.as_mut()).is_pending(), "it checks now");
        assert_eq!((begun.get(), checks.count()), (2, 1), "a check of its own");
        drop(second);
        assert_eq!(checks.count(), 0, "both left");
    }
}
