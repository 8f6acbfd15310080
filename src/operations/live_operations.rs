//! What is unfinished, in memory: the queue of each VM, who waits for what, and how many there are.
//!
//! An entry is made before its record is durable, so that bounds hold among requests that come together;
//! it is shown only afterwards.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch;

use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Precondition;
use crate::model::Verb;
use crate::model::VmId;
use crate::model::limits;
use crate::operations::api::KnownChanges;
use crate::operations::config::WhenBusy;
use crate::telemetry::Metrics;

/// What watchers of an operation see; `None` until it is durable.
pub(crate) type Shown = watch::Receiver<Option<Arc<Operation>>>;

type LaneKey = (BackendName, VmId);

/// How many may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub when_busy: WhenBusy,
    pub per_vm: usize,
    pub total: usize,
}

/// What came of asking for a place.
#[derive(Debug)]
pub(crate) enum Place {
    /// It has one; it must be opened or given back.
    Taken {
        /// Nothing of its VM is before it: once opened it is its turn.
        first: bool,
    },
    /// This unfinished one is the same request, or the same delete. It may not be durable yet.
    Same(Shown),
    /// The key belongs to this unfinished one, which is another request. It may not be durable yet.
    OtherRequest(OperationSeq, Shown),
    /// The preconditions were judged without this unfinished one. It may not be durable yet.
    Changing(Shown),
    /// The preconditions were judged without one that has ended since.
    Changed,
    /// This one is unfinished, and nothing is queued. It may not be durable yet.
    Busy(Shown),
    /// Another one has this number: a defect of the caller.
    NumberInUse,
    /// Too many wait for the VM.
    VmFull,
    /// Too many are unfinished.
    Full,
}

/// An operation whose turn it is.
#[derive(Debug)]
pub(crate) struct Turn {
    pub operation: Arc<Operation>,
    /// Its place at the backend, when it was written as SUBMITTING by its acceptance and not called for since.
    pub begun: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Entry {
    /// As it was submitted, and then as it is in the store.
    operation: Arc<Operation>,
    shown: watch::Sender<Option<Arc<Operation>>>,
    /// Held while a change of it is decided and written.
    pen: Arc<tokio::sync::Mutex<()>>,
    driven: bool,
}

#[derive(Debug, Default)]
struct Books {
    entries: BTreeMap<OperationSeq, Entry>,
    lanes: BTreeMap<LaneKey, VecDeque<OperationSeq>>,
    tallies: BTreeMap<BackendName, Tally>,
    /// How many operations ended with an effect, or perhaps with one.
    ended: u64,
    /// The last of them, oldest first.
    ended_last: VecDeque<(LaneKey, BackupId, OperationSeq)>,
}

/// How many entries of one backend wait, and how many have left the queue.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    queued: usize,
    running: usize,
}

/// What is unfinished.
#[derive(Debug)]
pub(crate) struct LiveOperations {
    books: Mutex<Books>,
    bounds: Bounds,
    metrics: Metrics,
}

fn lane_of(operation: &Operation) -> LaneKey {
    (operation.backend.clone(), operation.target().vm.clone())
}

impl LiveOperations {
    pub(crate) fn new(bounds: Bounds, metrics: Metrics) -> Self {
        Self {
            books: Mutex::default(),
            bounds,
            metrics,
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a place in the queue of its VM, behind those that asked before.
    pub(crate) fn reserve(&self, operation: &Arc<Operation>, seen: &KnownChanges) -> Place {
        let mut books = self.books();
        if books.entries.contains_key(&operation.seq) {
            return Place::NumberInUse;
        }
        let lane = lane_of(operation);
        let before: Vec<&Entry> = books
            .lanes
            .get(&lane)
            .into_iter()
            .flatten()
            .filter_map(|seq| books.entries.get(seq))
            .collect();
        for entry in &before {
            if let Some(same) = compare(entry, operation) {
                return same;
            }
        }
        if let Some(changed) = books.changed_since(seen, operation, &before) {
            return changed;
        }
        if let (WhenBusy::Refuse, Some(first)) = (self.bounds.when_busy, before.first()) {
            return Place::Busy(first.shown.subscribe());
        }
        if before.len() > self.bounds.per_vm {
            return Place::VmFull;
        }
        if books.entries.len() >= self.bounds.total {
            return Place::Full;
        }
        let first = before.is_empty();
        books.insert(operation, None);
        Place::Taken { first }
    }

    /// Which changes of the VM are known now.
    pub(crate) fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        let books = self.books();
        let lane = books.lanes.get(&(backend.clone(), vm.clone()));
        let shown = |seq: &OperationSeq| Some(books.entries.get(seq)?.shown.borrow().is_some());
        let unfinished = lane.into_iter().flatten();
        KnownChanges {
            unfinished: unfinished
                .filter(|seq| shown(seq) == Some(true))
                .copied()
                .collect(),
            ended: books.ended,
        }
    }

    /// Gives a place back that came to nothing.
    pub(crate) fn release(&self, seq: OperationSeq) -> Option<Turn> {
        self.remove(seq)
    }

    /// Its record is durable: from here on it is seen. Returns it when it is its turn.
    pub(crate) fn open(&self, operation: &Arc<Operation>) -> Option<Turn> {
        let turn = {
            let mut books = self.books();
            books.show(operation);
            books.turn(&lane_of(operation))
        };
        self.count(&operation.backend);
        turn
    }

    /// Puts in what was found in the store; nothing when it is there. Bounds do not hold for it.
    pub(crate) fn adopt(&self, operation: &Arc<Operation>) {
        let mut books = self.books();
        if !books.entries.contains_key(&operation.seq) {
            books.insert(operation, Some(Arc::clone(operation)));
        }
        drop(books);
        self.count(&operation.backend);
    }

    /// The operations whose turn it is and that nobody is at work on; they are marked as driven.
    pub(crate) fn turns(&self) -> Vec<Turn> {
        let mut books = self.books();
        let lanes: Vec<LaneKey> = books.lanes.keys().cloned().collect();
        lanes.iter().filter_map(|lane| books.turn(lane)).collect()
    }

    /// Shows a new state, which must be durable. A final one leaves the ledger; whose turn it is then is returned.
    pub(crate) fn show(&self, operation: &Arc<Operation>) -> Option<Turn> {
        let left_queue = self.books().show(operation);
        if operation.phase.is_final() {
            return self.remove(operation.seq);
        }
        if left_queue {
            self.count(&operation.backend);
        }
        None
    }

    /// Whoever was at work on it is not any more.
    pub(crate) fn let_go(&self, seq: OperationSeq) {
        if let Some(entry) = self.books().entries.get_mut(&seq) {
            entry.driven = false;
        }
    }

    fn remove(&self, seq: OperationSeq) -> Option<Turn> {
        let mut books = self.books();
        let entry = books.entries.remove(&seq)?;
        let queued = entry.operation.phase == Phase::Accepted;
        books.tally(&entry.operation.backend, |it| {
            let count = if queued {
                &mut it.queued
            } else {
                &mut it.running
            };
            *count = count.saturating_sub(1);
        });
        let lane = lane_of(&entry.operation);
        books.note_end(&lane, &entry.operation);
        let mut turn = None;
        if let Some(waiting) = books.lanes.get_mut(&lane) {
            waiting.retain(|it| *it != seq);
            if waiting.is_empty() {
                books.lanes.remove(&lane);
            } else {
                turn = books.turn(&lane);
            }
        }
        drop(books);
        self.count(&entry.operation.backend);
        turn
    }

    /// The state of an unfinished operation; `None` when there is none, or none that is durable.
    pub(crate) fn current(&self, seq: OperationSeq) -> Option<Arc<Operation>> {
        let books = self.books();
        books.entries.get(&seq)?.shown.borrow().clone()
    }

    /// What must be held to change an unfinished operation; `None` when there is none.
    pub(crate) fn pen(&self, seq: OperationSeq) -> Option<Arc<tokio::sync::Mutex<()>>> {
        Some(Arc::clone(&self.books().entries.get(&seq)?.pen))
    }

    /// Whether there is an entry, durable or not.
    pub(crate) fn holds(&self, seq: OperationSeq) -> bool {
        self.books().entries.contains_key(&seq)
    }

    /// To be told of every change of an unfinished operation.
    pub(crate) fn watch(&self, seq: OperationSeq) -> Option<Shown> {
        Some(self.books().entries.get(&seq)?.shown.subscribe())
    }

    /// The durable unfinished operations of one VM, in the order of its queue.
    pub(crate) fn of_vm(&self, backend: &BackendName, vm: &VmId) -> Vec<Arc<Operation>> {
        let books = self.books();
        let lane = books.lanes.get(&(backend.clone(), vm.clone()));
        lane.into_iter()
            .flatten()
            .filter_map(|seq| books.entries.get(seq)?.shown.borrow().clone())
            // Its end is shown a moment before it is removed: who was told of the end must not find it unfinished.
            .filter(|it| !it.phase.is_final())
            .collect()
    }

    /// Tells the metrics how many operations of the backend wait and run.
    fn count(&self, backend: &BackendName) {
        // Told under the lock, so that an older number never overwrites a newer one.
        let books = self.books();
        let Tally { queued, running } = books.tallies.get(backend).copied().unwrap_or_default();
        self.metrics
            .operations
            .set_queue_depth(backend.as_str(), "queued", queued);
        self.metrics
            .operations
            .set_queue_depth(backend.as_str(), "running", running);
    }
}

impl Books {
    fn tally(&mut self, backend: &BackendName, change: impl FnOnce(&mut Tally)) {
        change(self.tallies.entry(backend.clone()).or_default());
    }

    /// Keeps in mind that the operation may have changed something.
    fn note_end(&mut self, lane: &LaneKey, operation: &Operation) {
        if !matches!(operation.phase, Phase::Succeeded | Phase::Unknown) {
            return;
        }
        self.ended = self.ended.saturating_add(1);
        if self.ended_last.len() >= limits::ENDED_KEPT_MAX {
            self.ended_last.pop_front();
        }
        let backup = operation.target().backup.clone();
        let ended = (lane.clone(), backup, operation.seq);
        self.ended_last.push_back(ended);
    }

    /// Whether another change of what the preconditions are about came after they were judged.
    fn changed_since(
        &self,
        seen: &KnownChanges,
        operation: &Operation,
        before: &[&Entry],
    ) -> Option<Place> {
        if operation.preconditions.is_empty() {
            return None;
        }
        let whole_vm = operation.verb() == Verb::Create;
        let concerns = |backup: &BackupId| whole_vm || *backup == operation.target().backup;
        let unseen = before.iter().find(|entry| {
            let other = &entry.operation;
            concerns(&other.target().backup) && !seen.unfinished.contains(&other.seq)
        });
        if let Some(entry) = unseen {
            return Some(Place::Changing(entry.shown.subscribe()));
        }
        let since = self.ended.saturating_sub(seen.ended);
        let since = usize::try_from(since).unwrap_or(usize::MAX);
        // Of more than are kept it is not known what they changed.
        let is_forgotten = since > self.ended_last.len();
        let lane = lane_of(operation);
        let mut ended = self.ended_last.iter().rev().take(since);
        let changed = ended.any(|(other, backup, seq)| {
            *other == lane && concerns(backup) && !seen.unfinished.contains(seq)
        });
        (is_forgotten || changed).then_some(Place::Changed)
    }

    /// Puts the durable state in and wakes who waits for it. Says whether it has left its queue by that.
    fn show(&mut self, operation: &Arc<Operation>) -> bool {
        let before = self.entries.get(&operation.seq);
        let left_queue = before.is_some_and(|it| it.operation.phase == Phase::Accepted)
            && operation.phase != Phase::Accepted;
        if left_queue {
            self.tally(&operation.backend, |it| {
                it.queued = it.queued.saturating_sub(1);
                it.running = it.running.saturating_add(1);
            });
        }
        if let Some(entry) = self.entries.get_mut(&operation.seq) {
            entry.operation = Arc::clone(operation);
            entry.shown.send_replace(Some(Arc::clone(operation)));
        }
        left_queue
    }

    fn insert(&mut self, operation: &Arc<Operation>, shown: Option<Arc<Operation>>) {
        self.lanes
            .entry(lane_of(operation))
            .or_default()
            .push_back(operation.seq);
        let queued = operation.phase == Phase::Accepted;
        self.tally(&operation.backend, |it| {
            let count = if queued {
                &mut it.queued
            } else {
                &mut it.running
            };
            *count = count.saturating_add(1);
        });
        let entry = Entry {
            operation: Arc::clone(operation),
            shown: watch::Sender::new(shown),
            pen: Arc::default(),
            driven: false,
        };
        self.entries.insert(operation.seq, entry);
    }

    /// The first of the lane, if it is durable and nobody is at work on it; it is marked as driven.
    fn turn(&mut self, lane: &LaneKey) -> Option<Turn> {
        let first = self.lanes.get(lane)?.front()?;
        let entry = self.entries.get_mut(first)?;
        if entry.driven || entry.shown.borrow().is_none() {
            return None;
        }
        entry.driven = true;
        Some(Turn {
            operation: Arc::clone(&entry.operation),
            begun: None,
        })
    }
}

/// Whether an unfinished operation makes a new one needless or impossible.
fn compare(entry: &Entry, new: &Operation) -> Option<Place> {
    let old = &entry.operation;
    if let (Some(one), Some(other)) = (&old.idempotency, &new.idempotency)
        && old.principal == new.principal
        && one.key == other.key
        && old.intent.key_scope() == new.intent.key_scope()
    {
        let shown = entry.shown.subscribe();
        return Some(if one.fingerprint == other.fingerprint {
            Place::Same(shown)
        } else {
            Place::OtherRequest(old.seq, shown)
        });
    }
    let same_delete = new.verb() == Verb::Delete
        && old.verb() == Verb::Delete
        && old.target() == new.target()
        && old.intent.identity == new.intent.identity;
    if !same_delete {
        return None;
    }
    let shown = entry.shown.subscribe();
    // The first of several with one entity tag changes what is shown, so the tag of the others no longer fits.
    let mut conditions = new.preconditions.iter();
    Some(
        if conditions.all(|condition| *condition == Precondition::BackupPresent) {
            Place::Same(shown)
        } else {
            Place::Changing(shown)
        },
    )
}
