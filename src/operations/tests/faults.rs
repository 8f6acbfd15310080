//! A store that fails at a chosen write, and what the operations make of it.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::simulation::history::Answer;
use super::simulation::history::ClientRequest;
use super::simulation::history::Execution;
use super::simulation::history::History;
use super::simulation::history::judge;
use super::temporary_folder_in_memory;
use super::wait_until;
use crate::adapters::adapter::Recovery;
use crate::model::Idempotency;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::ListPage;
use crate::operations::ListQuery;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::StoreFault;
use crate::operations::WaitFor;
use crate::operations::core::Shared;
use crate::operations::maintenance;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store_guard::StoreGuard;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::ScriptedAdapter;
use crate::operations::testing::TestSetup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;
use crate::operations::testing::test_deadline;
use crate::operations::testing::update;
use crate::runtime::Lease;
use crate::runtime::Tasks;

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteFault {
    /// Not applied, may work later.
    Unavailable,
    /// Applied, but the answer is lost.
    LostAfter,
    /// Not applied, and the answer is lost.
    LostBefore,
    /// The disk failed.
    Fatal,
    /// Another write was faster.
    Conflict,
    /// Applied, and then the disk failed.
    FatalAfter,
}

/// A store with a fault in every write of one phase, a number of times.
#[derive(Debug)]
struct FaultyStore {
    inner: SqliteStore,
    fault: Mutex<Option<(Phase, WriteFault, usize)>>,
    /// After this many writes it dies, in that way.
    writes_to_live: Mutex<Option<(usize, WriteFault)>>,
    /// What the next counts are, and when each is returned; without one, those of the inner store.
    slow_counts: Mutex<VecDeque<(Counts, oneshot::Receiver<()>)>>,
}

impl FaultyStore {
    fn next_fault(&self, phase: Phase) -> Option<WriteFault> {
        if let Some((left, fail)) = self.writes_to_live.lock().unwrap().as_mut() {
            let Some(fewer) = left.checked_sub(1) else {
                // A dead store stays dead.
                return Some(std::mem::replace(fail, WriteFault::Fatal));
            };
            *left = fewer;
        }
        let mut fault = self.fault.lock().unwrap();
        let (at, fail, times) = (*fault)?;
        if at != phase {
            return None;
        }
        *fault = (times > 1).then(|| (at, fail, times.saturating_sub(1)));
        Some(fail)
    }
}

fn store_error(fault: WriteFault) -> StoreError {
    let text = "made by the test".to_owned();
    match fault {
        WriteFault::Unavailable => StoreError::Unavailable(text),
        WriteFault::LostAfter | WriteFault::LostBefore => StoreError::Indeterminate(text),
        WriteFault::Fatal | WriteFault::FatalAfter => StoreError::Fatal(text),
        WriteFault::Conflict => StoreError::Conflict,
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let fail = self.next_fault(operation.phase);
        if matches!(
            fail,
            None | Some(WriteFault::LostAfter | WriteFault::FatalAfter)
        ) {
            let made = self.inner.create(operation).await;
            return fail.map_or(made, |fault| Err(store_error(fault)));
        }
        Err(store_error(fail.unwrap()))
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let fail = self.next_fault(operation.phase);
        if matches!(
            fail,
            None | Some(WriteFault::LostAfter | WriteFault::FatalAfter)
        ) {
            let made = self.inner.update(operation).await;
            return fail.map_or(made, |fault| Err(store_error(fault)));
        }
        Err(store_error(fail.unwrap()))
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        self.inner.read(seq).await
    }

    async fn find_by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        self.inner.find_by_key(principal, scope, key).await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.inner.list(query).await
    }

    async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        self.inner.unfinished().await
    }

    async fn remove_expired(&self, now: Timestamp, max: u16) -> Result<usize, StoreError> {
        self.inner.remove_expired(now, max).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let slow = self.slow_counts.lock().unwrap().pop_front();
        if let Some((counts, released)) = slow {
            released.await.unwrap();
            return Ok(counts);
        }
        self.inner.counts().await
    }

    async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError> {
        self.inner.highest_seq().await
    }

    async fn record_heartbeat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.inner.record_heartbeat(now).await
    }

    async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError> {
        self.inner.last_heartbeat().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// The result of one change over a store with a fault.
struct Outcome {
    operations: Arc<Operations>,
    adapter: Arc<ScriptedAdapter>,
    accepted: Result<Accepted, AcceptError>,
    seq: OperationSeq,
    _folder: tempfile::TempDir,
}

async fn restore_with(phase: Phase, fail: WriteFault, times: usize) -> Outcome {
    let adapter = ScriptedAdapter::new(Recovery::Listable);
    adapter.set_task_reply("vm", Reply::Done);
    change_with(adapter, restore("vm", "b"), (phase, fail, times)).await
}

/// The same for an update that is accepted and submitted in one write, and done by the call.
async fn update_with(phase: Phase, fail: WriteFault, times: usize) -> Outcome {
    let adapter = ScriptedAdapter::with_updates(Recovery::ReplaySafe);
    adapter.set_begin_reply("vm", BeginReply::Done);
    change_with(adapter, update("vm", "b"), (phase, fail, times)).await
}

async fn change_with(
    adapter: Arc<ScriptedAdapter>,
    intent: Intent,
    fault: (Phase, WriteFault, usize),
) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = TestSetup::new(folder.path(), &adapter);
    setup.backends[0].concurrency = 1;
    let shared = Shared {
        clock: Arc::<crate::runtime::ManualClock>::clone(&setup.clock),
        metrics: setup.metrics.clone(),
        tasks: Tasks::default(),
        lease: Lease::unlimited(),
    };
    let file = setup.config.store.file().unwrap().to_owned();
    let inner = SqliteStore::open(file, Arc::clone(&shared.clock), shared.metrics.clone());
    let store = FaultyStore {
        inner: inner.unwrap(),
        fault: Mutex::new(Some(fault)),
        writes_to_live: Mutex::default(),
        slow_counts: Mutex::default(),
    };
    let operations = Operations::start_on(Arc::new(store), setup.config, setup.backends, shared);
    let operations = operations.await.unwrap();
    let seq = operations.reserve();
    let submitted = submission(seq, intent.clone());
    let accepted = operations.accept(permit(&intent, "one"), submitted).await;
    Outcome {
        operations,
        adapter,
        accepted,
        seq,
        _folder: folder,
    }
}

#[tokio::test]
async fn the_answer_to_an_accept_is_what_the_store_holds() {
    for at_once in [false, true] {
        accepts_are_what_the_store_holds(at_once).await;
    }
}

async fn accepts_are_what_the_store_holds(at_once: bool) {
    let rows = [
        (
            "unavailable",
            WriteFault::Unavailable,
            Err(StoreFault::Unavailable),
            0,
        ),
        (
            "lost and not applied",
            WriteFault::LostBefore,
            Err(StoreFault::Unavailable),
            0,
        ),
        ("lost and applied", WriteFault::LostAfter, Ok(()), 1),
        ("fatal", WriteFault::Fatal, Err(StoreFault::Failed), 0),
    ];
    for (name, fail, expected, begun) in rows {
        let name = format!("{name}, at once: {at_once}");
        let outcome = if at_once {
            update_with(Phase::Submitting, fail, 1).await
        } else {
            restore_with(Phase::Accepted, fail, 1).await
        };
        let got = match &outcome.accepted {
            Ok(_) => Ok(()),
            Err(AcceptError::Store(fault)) => Err(*fault),
            Err(other) => panic!("{name}: {other:?}"),
        };
        assert_eq!(got, expected, "{name}");
        let end = outcome
            .operations
            .wait(outcome.seq, WaitFor::End, test_deadline())
            .await
            .unwrap();
        assert_eq!(end.is_some(), expected.is_ok(), "{name}: stored");
        assert_eq!(
            outcome.adapter.begun_operations().len(),
            begun,
            "{name}: calls"
        );
        assert_eq!(
            outcome.operations.failed().is_given(),
            fail == WriteFault::Fatal,
            "{name}: signal"
        );
        assert_eq!(
            outcome.operations.is_ready(),
            expected.is_ok(),
            "{name}: ready"
        );
        if expected == Err(StoreFault::Unavailable) {
            maintenance::run_round(&outcome.operations.core).await;
            assert!(
                outcome.operations.is_ready(),
                "{name}: ready when the store takes writes again"
            );
        }
    }
}

#[tokio::test]
async fn later_writes_are_repeated_and_nothing_is_called_twice() {
    for phase in [Phase::Submitting, Phase::Running, Phase::Succeeded] {
        for fail in [
            WriteFault::Unavailable,
            WriteFault::LostBefore,
            WriteFault::LostAfter,
        ] {
            let outcome = restore_with(phase, fail, 1).await;
            let end = outcome
                .operations
                .wait(outcome.seq, WaitFor::End, test_deadline())
                .await;
            let end = end.unwrap().unwrap();
            assert_eq!(end.phase, Phase::Succeeded, "{phase:?}, {fail:?}");
            assert_eq!(
                outcome.adapter.begun_operations().len(),
                1,
                "{phase:?}, {fail:?}: once"
            );
        }
    }
}

#[tokio::test]
async fn a_state_that_is_not_durable_is_neither_acted_on_nor_shown() {
    // The phase whose write fails for good, what stays visible, and the calls that the VM manager got by then.
    let rows = [
        (Phase::Submitting, Phase::Accepted, 0),
        (Phase::Running, Phase::Submitting, 1),
        (Phase::Succeeded, Phase::Running, 1),
    ];
    for (phase, shown, begun) in rows {
        let outcome = restore_with(phase, WriteFault::Fatal, usize::MAX).await;
        outcome.operations.failed().given().await;
        let seen = outcome
            .operations
            .operation(outcome.seq)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(seen.phase, shown, "{phase:?}: shown");
        assert_eq!(
            outcome.adapter.begun_operations().len(),
            begun,
            "{phase:?}: calls"
        );
        assert!(!outcome.operations.is_ready(), "{phase:?}: accepts nothing");
    }
}

#[tokio::test]
async fn a_conflict_leaves_the_operation_to_the_next_round() {
    let outcome = restore_with(Phase::Running, WriteFault::Conflict, 1).await;
    outcome.adapter.set_find_replies(&[Reply::Task]);
    wait_until("it was called", || async {
        outcome.adapter.begun_operations().len() == 1
    })
    .await;
    wait_until("and recovered", || async {
        maintenance::run_round(&outcome.operations.core).await;
        let seen = outcome
            .operations
            .operation(outcome.seq)
            .await
            .unwrap()
            .unwrap();
        seen.phase == Phase::Succeeded
    })
    .await;
    assert_eq!(
        outcome.adapter.begun_operations().len(),
        1,
        "not called again"
    );
}

#[tokio::test]
async fn the_next_operation_may_start_while_an_end_cannot_be_written() {
    let outcome = update_with(Phase::Succeeded, WriteFault::Unavailable, usize::MAX).await;
    let first = outcome.accepted.expect("accepted").operation().seq;
    outcome.adapter.set_begin_reply("wm", BeginReply::Done);
    let (seq, intent) = (outcome.operations.reserve(), update("wm", "b"));
    let submitted = submission(seq, intent.clone());
    let accepted = outcome
        .operations
        .accept(permit(&intent, "one"), submitted)
        .await;
    accepted.expect("accepted");
    wait_until("both were called over one slot", || async {
        outcome.adapter.begun_operations() == [first, seq]
    })
    .await;
    for seq in [first, seq] {
        let seen = outcome.operations.operation(seq).await.unwrap().unwrap();
        assert!(
            !seen.phase.is_final(),
            "{seq}: no end is shown that is not stored"
        );
    }
}

/// A change over a store that dies after this many writes, then another gateway over what is left.
/// Returns whether the store survived the change.
async fn run_until_store_dies(
    after: usize,
    fail: WriteFault,
    adapter: Arc<ScriptedAdapter>,
    intent: Intent,
) -> bool {
    let recovery = adapter.recovery();
    let name = format!("{after} writes, then {fail:?}, {}", recovery.as_str());
    let folder = temporary_folder_in_memory();
    let setup = TestSetup::new(folder.path(), &adapter);
    let shared = Shared {
        clock: Arc::<crate::runtime::ManualClock>::clone(&setup.clock),
        metrics: setup.metrics.clone(),
        tasks: Tasks::default(),
        lease: Lease::unlimited(),
    };
    let file = setup.config.store.file().unwrap().to_owned();
    let inner = SqliteStore::open(file, Arc::clone(&shared.clock), shared.metrics.clone());
    let store = FaultyStore {
        inner: inner.unwrap(),
        fault: Mutex::default(),
        writes_to_live: Mutex::new(Some((after, fail))),
        slow_counts: Mutex::default(),
    };
    let (config, backends) = (setup.config.clone(), setup.backends.clone());
    let operations = Operations::start_on(Arc::new(store), config, backends, shared);
    let operations = operations.await.unwrap();
    let seq = operations.reserve();
    let submitted = submission(seq, intent.clone());
    let accepted = operations.accept(permit(&intent, "one"), submitted).await;
    let is_half_done = |operation: &Operation| operation.progress.percent() == 50;
    let failed = operations.failed();
    while !failed.is_given() {
        let seen = operations.operation(seq).await.unwrap().unwrap();
        if is_half_done(&seen) {
            adapter.set_task_reply("vm", Reply::Done);
        }
        if seen.phase.is_final() {
            break;
        }
        let until = WaitFor::ChangeAfter(seen.revision);
        tokio::select! {
            () = failed.given() => {}
            _ = operations.wait(seq, until, test_deadline()) => {}
        }
    }
    let died = failed.is_given();
    operations.stop().await;

    // The VM manager went on, finished the work, and reports it as far as its recovery class allows.
    adapter.set_task_reply("vm", Reply::Done);
    let ran = !adapter.begun_operations().is_empty();
    adapter.set_find_replies(&[match (recovery, ran) {
        (Recovery::NoTrace, _) => Reply::Unknowable,
        (Recovery::ReplaySafe | Recovery::Listable, true) => Reply::Done,
        (Recovery::ReplaySafe | Recovery::Listable, false) => Reply::NotBegun,
    }]);
    let operations = setup.open().await;
    let end = operations
        .wait(seq, WaitFor::End, test_deadline())
        .await
        .unwrap();
    operations.stop().await;
    judge_death(&name, &accepted, end.as_deref(), &adapter, recovery);
    !died
}

fn judge_death(
    name: &str,
    accepted: &Result<Accepted, AcceptError>,
    end: Option<&Operation>,
    adapter: &ScriptedAdapter,
    recovery: Recovery,
) {
    let mut begun = adapter.begun_operations();
    if recovery == Recovery::ReplaySafe {
        // It does once what it is called for twice.
        begun.dedup();
    }
    let answer = match accepted {
        Ok(accepted) => Answer::Accepted(accepted.operation().seq, 2),
        Err(AcceptError::Store(StoreFault::Failed)) => Answer::Failed,
        Err(other) => panic!("{name}: {other:?}"),
    };
    let Some(end) = end else {
        assert_eq!(answer, Answer::Failed, "{name}: lost");
        assert_eq!(begun, [], "{name}: what is not stored did not run");
        return;
    };
    let mut history = History::default();
    history.requests.push(ClientRequest {
        seq: end.seq,
        key: None,
        asked: 1,
        answer: Some(answer),
    });
    let done = begun.into_iter().map(|seq| Execution {
        seq,
        vm: "vm".to_owned(),
        changes: None,
        begins: std::time::Duration::ZERO,
        ends: std::time::Duration::ZERO,
        succeeds: true,
        dropped: None,
        forgotten: None,
        visible: true,
    });
    let done: Vec<_> = done.collect();
    let verdict = judge(&history, std::slice::from_ref(end), &done, recovery);
    assert!(verdict.is_clean(), "{name}: {verdict:?}");
}

#[tokio::test]
async fn a_store_that_dies_at_any_write_of_a_restore_leaves_what_can_be_recovered() {
    for recovery in [Recovery::Listable, Recovery::NoTrace] {
        for fail in [WriteFault::Fatal, WriteFault::FatalAfter] {
            let restored = |writes| {
                let adapter = ScriptedAdapter::new(recovery);
                adapter.set_task_reply("vm", Reply::Running(50));
                run_until_store_dies(writes, fail, adapter, restore("vm", "b"))
            };
            // Accepted, submitting, running, half done, succeeded.
            assert_eq!(
                writes_survived(restored).await,
                5,
                "{fail:?}: the store died at each write once"
            );
        }
    }
}

#[tokio::test]
async fn a_store_that_dies_at_any_write_of_an_update_leaves_what_can_be_recovered() {
    for fail in [WriteFault::Fatal, WriteFault::FatalAfter] {
        let updated = |writes| {
            let adapter = ScriptedAdapter::with_updates(Recovery::ReplaySafe);
            adapter.set_begin_reply("vm", BeginReply::Done);
            run_until_store_dies(writes, fail, adapter, update("vm", "b"))
        };
        // Submitting, succeeded.
        assert_eq!(
            writes_survived(updated).await,
            2,
            "{fail:?}: the store died at each write once"
        );
    }
}

/// The smallest number of writes that the store survives.
async fn writes_survived<F: Future<Output = bool>>(mut survives: impl FnMut(usize) -> F) -> usize {
    for writes in 0..50 {
        if survives(writes).await {
            return writes;
        }
    }
    panic!("the store survives at some point");
}

#[tokio::test]
async fn counts_that_are_read_late_never_overwrite_newer_ones_in_the_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let setup = TestSetup::new(folder.path(), &ScriptedAdapter::new(Recovery::Listable));
    let counts = |unknown| Counts {
        unknown,
        set_aside: 0,
    };
    let (release_older, older) = oneshot::channel();
    let (release_newer, newer) = oneshot::channel();
    let file = setup.config.store.file().unwrap().to_owned();
    let clock = Arc::<crate::runtime::ManualClock>::clone(&setup.clock);
    let store = FaultyStore {
        inner: SqliteStore::open(file, clock, setup.metrics.clone()).unwrap(),
        fault: Mutex::default(),
        writes_to_live: Mutex::default(),
        slow_counts: Mutex::new(VecDeque::from([(counts(1), older), (counts(0), newer)])),
    };
    let guard = StoreGuard::new(Arc::new(store), setup.metrics.clone());
    let release = async {
        release_newer.send(()).unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        release_older.send(()).unwrap();
    };
    tokio::join!(guard.report_counts(), guard.report_counts(), release);
    let text = String::from_utf8(setup.metrics.encode_text()).unwrap();
    assert!(text.contains("\nsnapgate_operations_unknown 0\n"), "{text}");
}
