//! The durable changes of all operations, one after the other, for those who follow them.
//!
//! The writer of the store numbers each write in the order of the commits and hands it in here, which costs it the same however
//! many follow. A task makes it visible ([`ChangeFeed::publish`]) and wakes the followers. The latest changes stay in memory; those
//! who fall behind them read the store ([`crate::operations::OperationsApi::stored_changes`]), so nothing is buffered for anyone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::sync::watch;

use crate::model::Operation;
use crate::model::limits;

/// The number of a durable write of an operation: rising in the order of the commits, over restarts too, never used twice.
pub type ChangeNumber = u64;

/// One durable state of an operation.
#[derive(Debug)]
pub struct DurableChange {
    /// The number of the write.
    pub number: ChangeNumber,
    /// The state.
    pub operation: Arc<Operation>,
    text: OnceLock<String>,
}

impl DurableChange {
    /// A change that was read or written.
    #[must_use]
    pub const fn new(number: ChangeNumber, operation: Arc<Operation>) -> Self {
        Self {
            number,
            operation,
            text: OnceLock::new(),
        }
    }

    /// The representation of the state, made once for all who follow.
    pub fn text(&self, represent: impl FnOnce(&Operation) -> String) -> &str {
        self.text.get_or_init(|| represent(&self.operation))
    }
}

/// The writes between one opening of the store and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreRun {
    /// The highest number before.
    pub base: ChangeNumber,
    /// Drawn at random for each opening. A copy of the store that is put back lacks the runs since, and goes on with others.
    pub mark: u64,
}

/// What the store knows about its own past.
#[derive(Clone, Debug, Default)]
pub struct ChangeHistory {
    /// The openings of the store that it still knows, oldest first.
    pub runs: Vec<StoreRun>,
    /// The highest number so far.
    pub latest: ChangeNumber,
    /// The highest number of a record that has expired.
    pub forgotten: ChangeNumber,
}

/// Names a change in one history of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangePosition {
    /// The mark of the run.
    pub mark: u64,
    /// The number of the change.
    pub number: ChangeNumber,
}

/// The latest changes in memory. All with a number above `after` are here.
#[derive(Debug, Default)]
struct RecentChanges {
    after: ChangeNumber,
    changes: VecDeque<Arc<DurableChange>>,
}

/// The durable changes of all operations.
#[derive(Debug)]
pub struct ChangeFeed {
    runs: Vec<StoreRun>,
    forgotten: AtomicU64,
    /// Durable and not published yet.
    committed: Mutex<VecDeque<Arc<DurableChange>>>,
    arrived: Notify,
    recent: RwLock<RecentChanges>,
    latest: watch::Sender<ChangeNumber>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        let run = StoreRun { base: 0, mark: 1 };
        Self::new(ChangeHistory {
            runs: vec![run],
            ..ChangeHistory::default()
        })
    }
}

impl ChangeFeed {
    /// The feed of a store with this past; its last run is the one that begins now.
    #[must_use]
    pub fn new(history: ChangeHistory) -> Self {
        Self {
            runs: history.runs,
            forgotten: AtomicU64::new(history.forgotten),
            committed: Mutex::default(),
            arrived: Notify::new(),
            recent: RwLock::new(RecentChanges {
                after: history.latest,
                changes: VecDeque::new(),
            }),
            latest: watch::Sender::new(history.latest),
        }
    }

    /// Hands in changes that became durable, in the order of their numbers. Never waits, and wakes one task.
    pub fn hand_in(&self, changes: Vec<Arc<DurableChange>>) {
        if changes.is_empty() {
            return;
        }
        let mut committed = self.committed.lock();
        committed.extend(changes);
        // Where nothing publishes, as in the commands for operators, the oldest give way.
        while committed.len() > limits::CHANGES_KEPT_MAX {
            committed.pop_front();
        }
        drop(committed);
        self.arrived.notify_one();
    }

    /// Waits until changes are handed in, and takes them.
    pub(crate) async fn take_handed_in(&self) -> Vec<Arc<DurableChange>> {
        loop {
            let changes: Vec<_> = self.committed.lock().drain(..).collect();
            if !changes.is_empty() {
                return changes;
            }
            self.arrived.notified().await;
        }
    }

    /// Shows changes to the followers, in the order of their numbers.
    pub fn publish(&self, changes: Vec<Arc<DurableChange>>) {
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
            return;
        };
        let (begin, latest) = (first.number.saturating_sub(1), last.number);
        let mut recent = self.recent.write();
        let known = recent.changes.back();
        if known.map_or(recent.after, |change| change.number) != begin {
            // Numbers have no gaps, so some gave way: what is in memory does not join on. Followers read the store.
            recent.changes.clear();
            recent.after = begin;
        }
        recent.changes.extend(changes);
        while recent.changes.len() > limits::CHANGES_KEPT_MAX {
            let oldest = recent.changes.pop_front();
            recent.after = oldest.map_or(recent.after, |change| change.number);
        }
        drop(recent);
        self.latest.send_replace(latest);
    }

    /// Records that records with numbers up to this one have expired.
    pub fn forget(&self, number: ChangeNumber) {
        self.forgotten.fetch_max(number, Ordering::AcqRel);
    }

    /// At most `max` changes after this number, oldest first; `None` when the memory does not reach back so far.
    #[must_use]
    pub fn changes_after(
        &self,
        number: ChangeNumber,
        max: usize,
    ) -> Option<Vec<Arc<DurableChange>>> {
        let recent = self.recent.read();
        if number < recent.after {
            return None;
        }
        let start = recent
            .changes
            .partition_point(|change| change.number <= number);
        let changes = recent.changes.iter().skip(start).take(max);
        Some(changes.cloned().collect())
    }

    /// The number of the latest change that is shown.
    #[must_use]
    pub fn latest(&self) -> ChangeNumber {
        *self.latest.borrow()
    }

    /// Waits until there is a change after this number. Cancel-safe.
    pub async fn wait_for_change_after(&self, number: ChangeNumber) {
        let mut latest = self.latest.subscribe();
        // The sender lives as long as this does, so there is no error.
        drop(latest.wait_for(|latest| *latest > number).await);
    }

    /// The name of a change, by which a follower goes on later.
    #[must_use]
    pub fn position(&self, number: ChangeNumber) -> ChangePosition {
        let begun = self.runs.partition_point(|run| run.base <= number);
        let run = begun.checked_sub(1).and_then(|index| self.runs.get(index));
        ChangePosition {
            mark: run.map_or(0, |run| run.mark),
            number,
        }
    }

    /// The number of a position from which a follower can go on without a gap. `None` when it is of another history, or so old
    /// that records which changed since have expired, or that too much happened since.
    #[must_use]
    pub fn resume(&self, position: ChangePosition) -> Option<ChangeNumber> {
        let latest = self.latest();
        let index = self.runs.iter().position(|run| run.mark == position.mark)?;
        let begin = self.runs.get(index)?.base;
        let next = index.checked_add(1).and_then(|next| self.runs.get(next));
        let end = next.map_or(latest, |run| run.base);
        let is_known = (begin..=end).contains(&position.number);
        let is_kept = position.number >= self.forgotten.load(Ordering::Acquire);
        let distance = latest.saturating_sub(position.number);
        (is_known && is_kept && distance <= limits::STREAM_CATCH_UP_MAX).then_some(position.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::testing::operation;

    fn changes(numbers: std::ops::RangeInclusive<u64>) -> Vec<Arc<DurableChange>> {
        let change = |number| {
            Arc::new(DurableChange::new(
                number,
                Arc::new(operation(number, "vm", "b")),
            ))
        };
        numbers.map(change).collect()
    }

    fn numbers(found: Option<Vec<Arc<DurableChange>>>) -> Option<Vec<u64>> {
        found.map(|changes| changes.iter().map(|change| change.number).collect())
    }

    #[test]
    fn followers_read_the_latest_changes_and_learn_when_they_fell_behind() {
        let feed = ChangeFeed::default();
        assert_eq!(numbers(feed.changes_after(0, 9)), Some(vec![]), "none yet");
        feed.publish(changes(1..=3));
        assert_eq!(
            numbers(feed.changes_after(0, 9)),
            Some(vec![1, 2, 3]),
            "all"
        );
        assert_eq!(numbers(feed.changes_after(1, 1)), Some(vec![2]), "a part");
        assert_eq!(
            numbers(feed.changes_after(3, 9)),
            Some(vec![]),
            "nothing new"
        );
        let most = u64::try_from(limits::CHANGES_KEPT_MAX).unwrap();
        feed.publish(changes(4..=most + 3));
        assert_eq!(feed.latest(), most + 3, "the latest");
        assert_eq!(numbers(feed.changes_after(2, 9)), None, "forgotten here");
        assert_eq!(
            numbers(feed.changes_after(3, 1)),
            Some(vec![4]),
            "the oldest"
        );
        let kept = feed.changes_after(3, usize::MAX).unwrap().len();
        assert_eq!(kept, limits::CHANGES_KEPT_MAX, "bounded");
    }

    #[tokio::test]
    async fn changes_that_are_not_published_are_bounded_and_leave_a_gap_that_is_noticed() {
        let feed = ChangeFeed::default();
        feed.publish(changes(1..=1));
        let most = u64::try_from(limits::CHANGES_KEPT_MAX).unwrap();
        for number in 2..=most + 2 {
            feed.hand_in(changes(number..=number));
        }
        let taken = feed.take_handed_in().await;
        assert_eq!(taken.len(), limits::CHANGES_KEPT_MAX, "bounded");
        feed.publish(taken);
        assert_eq!(
            numbers(feed.changes_after(1, 9)),
            None,
            "number 2 was dropped: the store has it"
        );
        assert_eq!(numbers(feed.changes_after(2, 1)), Some(vec![3]), "the rest");
    }

    #[tokio::test]
    async fn a_follower_is_woken_by_the_next_change() {
        let feed = Arc::new(ChangeFeed::default());
        let waiting = feed.wait_for_change_after(0);
        tokio::pin!(waiting);
        assert!(
            futures_util::poll!(waiting.as_mut()).is_pending(),
            "nothing yet"
        );
        feed.publish(changes(1..=1));
        waiting.await;
        feed.wait_for_change_after(0).await;
    }

    #[test]
    fn a_position_is_good_in_its_own_history_alone() {
        let run = |base, mark| StoreRun { base, mark };
        let feed = ChangeFeed::new(ChangeHistory {
            runs: vec![run(0, 11), run(10, 22), run(10, 33), run(40, 44)],
            latest: 50,
            forgotten: 5,
        });
        // mark, number, whether it can be resumed
        let rows = [
            (11, 5, true),
            (11, 4, false),
            (11, 10, true),
            (11, 11, false),
            (22, 10, true),
            (22, 11, false),
            (33, 10, true),
            (33, 40, true),
            (33, 41, false),
            (33, 9, false),
            (44, 40, true),
            (44, 50, true),
            (44, 51, false),
            (55, 20, false),
            (0, 0, false),
        ];
        for (mark, number, good) in rows {
            let found = feed.resume(ChangePosition { mark, number });
            assert_eq!(found, good.then_some(number), "{mark}-{number}");
        }
        for (number, mark) in [(0, 11), (9, 11), (10, 33), (39, 33), (40, 44), (50, 44)] {
            let expected = ChangePosition { mark, number };
            assert_eq!(feed.position(number), expected, "the name of {number}");
        }
        feed.forget(45);
        let old = ChangePosition {
            mark: 44,
            number: 44,
        };
        assert_eq!(feed.resume(old), None, "records since have expired");
        let far = ChangeFeed::new(ChangeHistory {
            runs: vec![run(0, 1)],
            latest: limits::STREAM_CATCH_UP_MAX + 1,
            forgotten: 0,
        });
        let number = |number| far.resume(ChangePosition { mark: 1, number });
        assert_eq!(number(0), None, "too much happened since");
        assert_eq!(number(1), Some(1), "just not too much");
    }
}
