//! Long calls, run as tasks of the adapter: the caller may go away, and ask for the outcome later.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::future::Future;

use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::sync::watch;

use crate::model::Deadline;
use crate::model::Fault;
use crate::runtime::Tasks;
use crate::runtime::work_context;

/// Outcomes that are remembered: operations ask within seconds, and find out otherwise after that.
const KEPT_MAX: usize = 1024;

/// How a long call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    /// It was done.
    Done,
    /// It failed, and libvirt said so.
    Failed(Fault),
    /// No answer came: it may have been done.
    Unanswered,
}

/// The snapshot that a long call makes, by the UUID of its VM and its name.
pub(crate) type SnapshotInProgress = ([u8; 16], String);

#[derive(Debug)]
struct LongCall {
    making: Option<SnapshotInProgress>,
    outcome: watch::Receiver<Option<CallOutcome>>,
}

/// The long calls of one adapter.
#[derive(Debug)]
pub(crate) struct LongCalls {
    tasks: Tasks,
    all: Mutex<BTreeMap<String, LongCall>>,
}

impl LongCalls {
    /// None yet.
    pub(crate) const fn new(tasks: Tasks) -> Self {
        Self {
            tasks,
            all: Mutex::new(BTreeMap::new()),
        }
    }

    /// Runs it under this name, unless it ran or runs already.
    pub(crate) fn start<F>(&self, name: String, making: Option<SnapshotInProgress>, work: F)
    where
        F: Future<Output = CallOutcome> + Send + 'static,
    {
        let mut all = self.lock();
        if all.contains_key(&name) {
            return;
        }
        if all.len() >= KEPT_MAX {
            all.retain(|_, job| job.outcome.borrow().is_none());
        }
        let (sender, outcome) = watch::channel(None);
        all.insert(name, LongCall { making, outcome });
        drop(self.tasks.spawn(work_context::inherit(async move {
            let outcome = work.await;
            sender.send_replace(Some(outcome));
        })));
    }

    /// How the call of this name is: `None` when there is none, then `None` while it runs.
    ///
    /// A call whose task died without an outcome is [`CallOutcome::Unanswered`].
    #[expect(clippy::option_option, reason = "unknown, unfinished, finished")]
    pub(crate) fn outcome(&self, name: &str) -> Option<Option<CallOutcome>> {
        let all = self.lock();
        let receiver = &all.get(name)?.outcome;
        let outcome = receiver.borrow().clone();
        let is_dead = outcome.is_none() && receiver.has_changed().is_err();
        Some(if is_dead {
            Some(CallOutcome::Unanswered)
        } else {
            outcome
        })
    }

    /// Returns when the call of this name has ended, at once when there is none.
    pub(crate) async fn ended(&self, name: &str) {
        let Some(mut receiver) = self.lock().get(name).map(|call| call.outcome.clone()) else {
            return;
        };
        // An error means that its task is gone, which is an end as well.
        drop(receiver.wait_for(Option::is_some).await);
    }

    /// As [`Self::ended`], but not longer than this.
    pub(crate) async fn ended_by(&self, name: &str, by: Deadline) {
        let at = tokio::time::Instant::from_std(by.instant());
        // What it is then is asked for separately.
        drop(tokio::time::timeout_at(at, self.ended(name)).await);
    }

    /// The names of the snapshots of this VM that are being made.
    pub(crate) fn snapshots_in_progress(&self, vm: [u8; 16]) -> BTreeSet<String> {
        self.lock()
            .values()
            .filter(|job| job.outcome.borrow().is_none())
            .filter_map(|job| job.making.as_ref())
            .filter(|(uuid, _)| *uuid == vm)
            .map(|(_, name)| name.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LongCall>> {
        self.all.lock()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_call_runs_once_and_is_remembered() {
        let jobs = LongCalls::new(Tasks::default());
        let (go, wait) = oneshot::channel::<()>();
        let making = ([7; 16], "one".to_owned());
        jobs.start("a".to_owned(), Some(making), async {
            drop(wait.await);
            CallOutcome::Done
        });
        jobs.start("a".to_owned(), None, async { CallOutcome::Unanswered });
        assert_eq!(jobs.outcome("a"), Some(None), "unfinished");
        assert_eq!(jobs.snapshots_in_progress([7; 16]).len(), 1, "being made");
        assert!(
            jobs.snapshots_in_progress([8; 16]).is_empty(),
            "not on another VM"
        );
        go.send(()).unwrap();
        jobs.ended("a").await;
        assert_eq!(
            jobs.outcome("a"),
            Some(Some(CallOutcome::Done)),
            "the first one"
        );
        assert!(jobs.snapshots_in_progress([7; 16]).is_empty(), "made");
        assert_eq!(jobs.outcome("b"), None, "no such call");
    }

    #[tokio::test]
    async fn a_call_that_dies_is_open() {
        let jobs = LongCalls::new(Tasks::default());
        jobs.start("a".to_owned(), None, async { panic!("meant to") });
        jobs.ended("a").await;
        assert_eq!(
            jobs.outcome("a"),
            Some(Some(CallOutcome::Unanswered)),
            "its outcome is unknown"
        );
    }

    #[tokio::test]
    async fn finished_calls_make_room() {
        let jobs = LongCalls::new(Tasks::default());
        for number in 0..KEPT_MAX {
            jobs.start(number.to_string(), None, async { CallOutcome::Done });
            jobs.ended(&number.to_string()).await;
        }
        jobs.start("new".to_owned(), None, async { CallOutcome::Done });
        assert_eq!(jobs.outcome("0"), None, "forgotten");
        assert!(jobs.outcome("new").is_some(), "remembered");
    }
}
