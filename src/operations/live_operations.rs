//! The unfinished operations, in memory: the queue of each VM, who watches what, and how many there are.
//!
//! An operation is admitted to its queue before its record is durable, so that the queue limits hold among requests that
//! arrive together. It becomes visible to readers only afterwards, by [`LiveOperations::publish_new`].

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch;

use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Precondition;
use crate::model::TraceContext;
use crate::model::Verb;
use crate::model::VmId;
use crate::model::limits;
use crate::operations::api::KnownChanges;
use crate::operations::config::WhenBusy;
use crate::runtime::work_context;
use crate::telemetry::Metrics;

/// Follows the durable states of one operation; `None` until the first one is durable.
pub(crate) type OperationWatch = watch::Receiver<Option<Arc<Operation>>>;

/// Held while a change of one operation is decided and written.
pub(crate) type WriteLock = Arc<tokio::sync::Mutex<()>>;

type VmKey = (BackendName, VmId);

/// The unfinished operations of one VM in the order of their acceptance. Only the first one may run.
type VmQueue = VecDeque<OperationSeq>;

/// How many operations may be unfinished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub when_busy: WhenBusy,
    /// Operations that may wait for one VM, besides the one that runs.
    pub per_vm: usize,
    /// Unfinished operations in all.
    pub total: usize,
}

/// Why there is no place in the queue of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueObstacle {
    /// Another operation of the VM is unfinished, and operations are not queued.
    Busy,
    /// Too many operations wait for the VM.
    VmQueueFull,
    /// Too many operations are unfinished.
    Full,
}

impl QueueLimits {
    /// What keeps an operation out, behind so many of its VM and beside so many in all.
    fn find_obstacle(self, earlier: usize, all: usize) -> Option<QueueObstacle> {
        if self.when_busy == WhenBusy::Refuse && earlier > 0 {
            Some(QueueObstacle::Busy)
        } else if earlier > self.per_vm {
            Some(QueueObstacle::VmQueueFull)
        } else if all >= self.total {
            Some(QueueObstacle::Full)
        } else {
            None
        }
    }
}

/// The answer to a request for a place in the queue of a VM.
///
/// An operation that is named here may not be durable yet: wait for it before relying on it.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has a place, which must be published or withdrawn.
    Admitted {
        /// No other operation of its VM is unfinished, so it can be claimed as soon as it is published.
        is_first: bool,
    },
    /// This unfinished one is the same request, or the same delete.
    SameRequest(OperationWatch),
    /// This unfinished one is another request with the same idempotency key.
    KeyReused(OperationSeq, OperationWatch),
    /// This unfinished one may change what the preconditions were checked against.
    PreconditionPending(OperationWatch),
    /// An operation that has ended since changed what the preconditions were checked against.
    PreconditionFailed,
    /// This one is unfinished, and operations are not queued.
    Busy(OperationWatch),
    /// Another operation has this sequence number: a defect of the caller.
    SequenceInUse,
    /// Too many operations wait for the VM.
    VmQueueFull,
    /// Too many operations are unfinished.
    Full,
}

/// The exclusive right to work on an operation that is the first of its queue.
#[derive(Debug)]
pub(crate) struct Claim {
    pub operation: Arc<Operation>,
    /// Its slot at the backend, when its acceptance already wrote it as SUBMITTING and the VM manager was not called yet.
    pub slot: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Entry {
    /// As it was submitted, and then as it is in the store.
    operation: Arc<Operation>,
    published: watch::Sender<Option<Arc<Operation>>>,
    write_lock: WriteLock,
    is_claimed: bool,
    /// The trace of the request; `None` when another process accepted it.
    trace: Option<TraceContext>,
}

/// Everything behind the lock. No method of it waits.
#[derive(Debug, Default)]
struct OperationTable {
    entries: BTreeMap<OperationSeq, Entry>,
    queues: BTreeMap<VmKey, VmQueue>,
    counts: BTreeMap<BackendName, BackendCounts>,
    /// How many operations ended with a possible effect since the start.
    ended_count: u64,
    /// The latest of them, oldest first.
    recently_ended: VecDeque<EndedOperation>,
}

/// An operation that ended with a possible effect.
#[derive(Debug)]
struct EndedOperation {
    vm: VmKey,
    backup: BackupId,
    seq: OperationSeq,
}

/// How many operations of one backend wait, and how many have left their queue.
#[derive(Clone, Copy, Debug, Default)]
struct BackendCounts {
    queued: usize,
    running: usize,
}

impl BackendCounts {
    const fn of_phase(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Accepted => &mut self.queued,
            Phase::Submitting
            | Phase::Running
            | Phase::Uncertain
            | Phase::Succeeded
            | Phase::Failed
            | Phase::Cancelled
            | Phase::NotExecuted
            | Phase::Unknown => &mut self.running,
        }
    }
}

/// The unfinished operations of all backends.
#[derive(Debug)]
pub(crate) struct LiveOperations {
    table: Mutex<OperationTable>,
    limits: QueueLimits,
    metrics: Metrics,
}

fn vm_key(operation: &Operation) -> VmKey {
    (operation.backend.clone(), operation.target().vm.clone())
}

impl LiveOperations {
    pub(crate) fn new(limits: QueueLimits, metrics: Metrics) -> Self {
        Self {
            table: Mutex::default(),
            limits,
            metrics,
        }
    }

    /// Asks for a place in the queue of its VM, behind those that asked before. `known` is what the preconditions were
    /// checked against.
    pub(crate) fn admit(&self, operation: &Arc<Operation>, known: &KnownChanges) -> Admission {
        let mut table = self.table.lock();
        if table.entries.contains_key(&operation.seq) {
            return Admission::SequenceInUse;
        }
        let earlier: Vec<&Entry> = table
            .queues
            .get(&vm_key(operation))
            .into_iter()
            .flatten()
            .filter_map(|seq| table.entries.get(seq))
            .collect();
        // The same request comes first: it is answered with its Status even where a new one would be refused.
        for entry in &earlier {
            if let Some(existing) = compare_requests(entry, operation) {
                return existing;
            }
        }
        if let Some(changed) = table.find_unseen_change(known, operation, &earlier) {
            return changed;
        }
        match self
            .limits
            .find_obstacle(earlier.len(), table.entries.len())
        {
            Some(QueueObstacle::Busy) => {
                if let Some(first) = earlier.first() {
                    return Admission::Busy(first.published.subscribe());
                }
            }
            Some(QueueObstacle::VmQueueFull) => return Admission::VmQueueFull,
            Some(QueueObstacle::Full) => return Admission::Full,
            None => {}
        }
        let is_first = earlier.is_empty();
        // Not visible yet: until its record is durable, no read and no precondition may count on it.
        table.insert(operation, None);
        Admission::Admitted { is_first }
    }

    /// What would keep an operation of the VM out of its queue now.
    pub(crate) fn find_obstacle(&self, backend: &BackendName, vm: &VmId) -> Option<QueueObstacle> {
        let table = self.table.lock();
        let queue = table.queues.get(&(backend.clone(), vm.clone()));
        let earlier = queue.map_or(0, VecDeque::len);
        self.limits.find_obstacle(earlier, table.entries.len())
    }

    /// Which changes of the VM are known now.
    pub(crate) fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        let table = self.table.lock();
        let queue = table.queues.get(&(backend.clone(), vm.clone()));
        // One that is not durable yet may still be refused. A caller must not be held to a change that never was.
        let is_visible = |seq: &OperationSeq| {
            let entry = table.entries.get(seq);
            entry.is_some_and(|entry| entry.published.borrow().is_some())
        };
        KnownChanges {
            unfinished: queue
                .into_iter()
                .flatten()
                .filter(|seq| is_visible(seq))
                .copied()
                .collect(),
            ended: table.ended_count,
        }
    }

    /// Removes an admitted operation whose record did not become durable. Returns the claim on the next one of its VM.
    pub(crate) fn withdraw(&self, seq: OperationSeq) -> Option<Claim> {
        self.remove(seq)
    }

    /// Makes an admitted operation visible: its record is durable. Returns the claim on it when it is the first of its VM.
    pub(crate) fn publish_new(&self, operation: &Arc<Operation>) -> Option<Claim> {
        let claim = {
            // Both under one lock: between them, another task could claim the operation or end it.
            let mut table = self.table.lock();
            table.publish(operation);
            table.claim_first(&vm_key(operation))
        };
        self.report_counts(&operation.backend);
        claim
    }

    /// Adds an operation that was found in the store, unless it is there already. The queue limits do not apply to it.
    pub(crate) fn insert_stored(&self, operation: &Arc<Operation>) {
        let mut table = self.table.lock();
        // At the start requests may come in while the store is still being read.
        if !table.entries.contains_key(&operation.seq) {
            table.insert(operation, Some(Arc::clone(operation)));
        }
        drop(table);
        self.report_counts(&operation.backend);
    }

    /// Claims the first operation of every queue that is not claimed.
    pub(crate) fn claim_all_ready(&self) -> Vec<Claim> {
        let mut table = self.table.lock();
        let vms: Vec<VmKey> = table.queues.keys().cloned().collect();
        vms.iter().filter_map(|vm| table.claim_first(vm)).collect()
    }

    /// Makes a new durable state visible. A final one leaves; the claim on the next operation of the VM is returned then.
    pub(crate) fn publish(&self, operation: &Arc<Operation>) -> Option<Claim> {
        let left_queue = self.table.lock().publish(operation);
        if operation.phase.is_final() {
            return self.remove(operation.seq);
        }
        if left_queue {
            self.report_counts(&operation.backend);
        }
        None
    }

    /// The trace of the request that asked for the operation, as long as it is unfinished and known to this process.
    pub(crate) fn trace_of(&self, seq: OperationSeq) -> Option<TraceContext> {
        self.table.lock().entries.get(&seq)?.trace
    }

    /// Gives up a claim: no task works on the operation any more.
    pub(crate) fn release_claim(&self, seq: OperationSeq) {
        if let Some(entry) = self.table.lock().entries.get_mut(&seq) {
            entry.is_claimed = false;
        }
    }

    fn remove(&self, seq: OperationSeq) -> Option<Claim> {
        let mut table = self.table.lock();
        let entry = table.entries.remove(&seq)?;
        let phase = entry.operation.phase;
        table.change_counts(&entry.operation.backend, |counts| {
            let count = counts.of_phase(phase);
            *count = count.saturating_sub(1);
        });
        let vm = vm_key(&entry.operation);
        // In the same critical section: a request that checked its precondition before must find either the operation
        // or its end.
        table.remember_end(&vm, &entry.operation);
        let mut next = None;
        if let Some(queue) = table.queues.get_mut(&vm) {
            // It is the first in most cases, but a queued operation can be cancelled from the middle.
            queue.retain(|queued| *queued != seq);
            if queue.is_empty() {
                table.queues.remove(&vm);
            } else {
                next = table.claim_first(&vm);
            }
        }
        drop(table);
        self.report_counts(&entry.operation.backend);
        next
    }

    /// The durable state of an unfinished operation; `None` when it is not unfinished or not durable.
    pub(crate) fn current_state(&self, seq: OperationSeq) -> Option<Arc<Operation>> {
        let table = self.table.lock();
        table.entries.get(&seq)?.published.borrow().clone()
    }

    /// The lock to hold while an unfinished operation is changed; `None` when it is not unfinished.
    pub(crate) fn write_lock(&self, seq: OperationSeq) -> Option<WriteLock> {
        Some(Arc::clone(&self.table.lock().entries.get(&seq)?.write_lock))
    }

    /// How many operations are here, durable or not.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// Whether the operation is here, durable or not.
    pub(crate) fn contains(&self, seq: OperationSeq) -> bool {
        self.table.lock().entries.contains_key(&seq)
    }

    /// Follows every durable state of an unfinished operation.
    pub(crate) fn watch(&self, seq: OperationSeq) -> Option<OperationWatch> {
        Some(self.table.lock().entries.get(&seq)?.published.subscribe())
    }

    /// The durable unfinished operations of one VM, in the order of its queue.
    pub(crate) fn unfinished_on_vm(&self, backend: &BackendName, vm: &VmId) -> Vec<Arc<Operation>> {
        let table = self.table.lock();
        let queue = table.queues.get(&(backend.clone(), vm.clone()));
        queue
            .into_iter()
            .flatten()
            .filter_map(|seq| table.entries.get(seq)?.published.borrow().clone())
            // A final state is published a moment before the entry is removed: a client that has read that state must not
            // find the operation unfinished.
            .filter(|operation| !operation.phase.is_final())
            .collect()
    }

    /// Updates the metrics with the number of operations of the backend that wait and run.
    fn report_counts(&self, backend: &BackendName) {
        // Reported under the lock, so that an older number never overwrites a newer one.
        let table = self.table.lock();
        let BackendCounts { queued, running } =
            table.counts.get(backend).copied().unwrap_or_default();
        self.metrics
            .operations
            .set_queue_depth(backend.as_str(), "queued", queued);
        self.metrics
            .operations
            .set_queue_depth(backend.as_str(), "running", running);
    }
}

impl OperationTable {
    fn change_counts(&mut self, backend: &BackendName, change: impl FnOnce(&mut BackendCounts)) {
        change(self.counts.entry(backend.clone()).or_default());
    }

    /// Remembers an operation that may have changed something.
    fn remember_end(&mut self, vm: &VmKey, operation: &Operation) {
        if !matches!(operation.phase, Phase::Succeeded | Phase::Unknown) {
            return;
        }
        self.ended_count = self.ended_count.saturating_add(1);
        if self.recently_ended.len() >= limits::ENDED_KEPT_MAX {
            self.recently_ended.pop_front();
        }
        self.recently_ended.push_back(EndedOperation {
            vm: vm.clone(),
            backup: operation.target().backup.clone(),
            seq: operation.seq,
        });
    }

    /// Whether another change of what the preconditions are about came after they were checked.
    fn find_unseen_change(
        &self,
        known: &KnownChanges,
        operation: &Operation,
        earlier: &[&Entry],
    ) -> Option<Admission> {
        if operation.preconditions.is_empty() {
            return None;
        }
        // The preconditions of a create are about the list of all backups of the VM, and a plan covers the VM as well.
        let is_plan = |precondition: &Precondition| match precondition {
            Precondition::PlanUnchanged(_) => true,
            Precondition::BackupUnchanged(_)
            | Precondition::BackupPresent
            | Precondition::ListUnchanged(_) => false,
        };
        let is_whole_vm =
            operation.verb() == Verb::Create || operation.preconditions.iter().any(is_plan);
        let concerns = |backup: &BackupId| is_whole_vm || *backup == operation.target().backup;
        let unseen = earlier.iter().find(|entry| {
            let other = &entry.operation;
            concerns(&other.target().backup) && !known.unfinished.contains(&other.seq)
        });
        if let Some(entry) = unseen {
            return Some(Admission::PreconditionPending(entry.published.subscribe()));
        }
        let ended_since = self.ended_count.saturating_sub(known.ended);
        let ended_since = usize::try_from(ended_since).unwrap_or(usize::MAX);
        // What those beyond the memory changed is not known, so they count as a change.
        let is_forgotten = ended_since > self.recently_ended.len();
        let vm = vm_key(operation);
        let mut ended = self.recently_ended.iter().rev().take(ended_since);
        let is_changed = ended.any(|other| {
            other.vm == vm && concerns(&other.backup) && !known.unfinished.contains(&other.seq)
        });
        (is_forgotten || is_changed).then_some(Admission::PreconditionFailed)
    }

    /// Stores the durable state and wakes its watchers. Returns whether the operation left its queue by it.
    fn publish(&mut self, operation: &Arc<Operation>) -> bool {
        let before = self.entries.get(&operation.seq);
        let left_queue = before.is_some_and(|entry| entry.operation.phase == Phase::Accepted)
            && operation.phase != Phase::Accepted;
        if left_queue {
            self.change_counts(&operation.backend, |counts| {
                counts.queued = counts.queued.saturating_sub(1);
                counts.running = counts.running.saturating_add(1);
            });
        }
        if let Some(entry) = self.entries.get_mut(&operation.seq) {
            entry.operation = Arc::clone(operation);
            entry.published.send_replace(Some(Arc::clone(operation)));
        }
        left_queue
    }

    fn insert(&mut self, operation: &Arc<Operation>, published: Option<Arc<Operation>>) {
        self.queues
            .entry(vm_key(operation))
            .or_default()
            .push_back(operation.seq);
        self.change_counts(&operation.backend, |counts| {
            let count = counts.of_phase(operation.phase);
            *count = count.saturating_add(1);
        });
        let entry = Entry {
            operation: Arc::clone(operation),
            published: watch::Sender::new(published),
            write_lock: Arc::default(),
            is_claimed: false,
            trace: work_context::current_trace(),
        };
        self.entries.insert(operation.seq, entry);
    }

    /// Claims the first operation of the queue, if it is durable and not claimed.
    fn claim_first(&mut self, vm: &VmKey) -> Option<Claim> {
        let first = self.queues.get(vm)?.front()?;
        let entry = self.entries.get_mut(first)?;
        if entry.is_claimed || entry.published.borrow().is_none() {
            return None;
        }
        entry.is_claimed = true;
        Some(Claim {
            operation: Arc::clone(&entry.operation),
            slot: None,
        })
    }
}

/// Whether an unfinished operation makes a new one unnecessary or impossible.
fn compare_requests(entry: &Entry, new: &Operation) -> Option<Admission> {
    let old = &entry.operation;
    if let (Some(old_key), Some(new_key)) = (&old.idempotency, &new.idempotency)
        && old.principal == new.principal
        && old_key.key == new_key.key
        && old.intent.key_scope() == new.intent.key_scope()
    {
        let watch = entry.published.subscribe();
        return Some(if old_key.fingerprint == new_key.fingerprint {
            Admission::SameRequest(watch)
        } else {
            Admission::KeyReused(old.seq, watch)
        });
    }
    let is_same_delete = new.verb() == Verb::Delete
        && old.verb() == Verb::Delete
        && old.target() == new.target()
        && old.intent.identity == new.intent.identity;
    if !is_same_delete {
        return None;
    }
    let watch = entry.published.subscribe();
    // The first of several deletes with one entity tag changes the backup, so the tag no longer matches for the others.
    let mut preconditions = new.preconditions.iter();
    Some(
        if preconditions.all(|precondition| *precondition == Precondition::BackupPresent) {
            Admission::SameRequest(watch)
        } else {
            Admission::PreconditionPending(watch)
        },
    )
}
