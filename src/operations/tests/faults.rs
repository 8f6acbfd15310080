//! A store that fails at a chosen write, and what the room makes of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;

use super::eventually;
use super::folder_in_memory;
use super::simulation::history::Answer;
use super::simulation::history::Ask;
use super::simulation::history::Execution;
use super::simulation::history::History;
use super::simulation::history::judge;
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
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::Scripted;
use crate::operations::testing::Setup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::soon;
use crate::operations::testing::submission;
use crate::operations::testing::update;
use crate::runtime::Tasks;

/// How a write goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fail {
    /// Not applied, may work later.
    Unavailable,
    /// Applied, but the answer is lost.
    LostAfter,
    /// Not applied, and the answer is lost.
    LostBefore,
    /// The disk failed.
    Fatal,
    /// Somebody else was faster.
    Conflict,
    /// Applied, and then the disk failed.
    FatalAfter,
}

/// The store with a fault that hits every write of one phase, so many times.
#[derive(Debug)]
struct Faulty {
    inner: SqliteStore,
    fault: Mutex<Option<(Phase, Fail, usize)>>,
    /// After so many writes it dies, in that way.
    life: Mutex<Option<(usize, Fail)>>,
}

impl Faulty {
    fn hit(&self, phase: Phase) -> Option<Fail> {
        if let Some((left, fail)) = self.life.lock().unwrap().as_mut() {
            let Some(fewer) = left.checked_sub(1) else {
                // Whoever died stays dead.
                return Some(std::mem::replace(fail, Fail::Fatal));
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

fn error(fail: Fail) -> StoreError {
    let text = "made by the test".to_owned();
    match fail {
        Fail::Unavailable => StoreError::Unavailable(text),
        Fail::LostAfter | Fail::LostBefore => StoreError::Indeterminate(text),
        Fail::Fatal | Fail::FatalAfter => StoreError::Fatal(text),
        Fail::Conflict => StoreError::Conflict,
    }
}

#[async_trait]
impl Store for Faulty {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let fail = self.hit(operation.phase);
        if matches!(fail, None | Some(Fail::LostAfter | Fail::FatalAfter)) {
            let made = self.inner.create(operation).await;
            return fail.map_or(made, |it| Err(error(it)));
        }
        Err(error(fail.unwrap()))
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let fail = self.hit(operation.phase);
        if matches!(fail, None | Some(Fail::LostAfter | Fail::FatalAfter)) {
            let made = self.inner.update(operation).await;
            return fail.map_or(made, |it| Err(error(it)));
        }
        Err(error(fail.unwrap()))
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        self.inner.read(seq).await
    }

    async fn by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        self.inner.by_key(principal, scope, key).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreError> {
        self.inner.list(query).await
    }

    async fn live(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        self.inner.live().await
    }

    async fn expire(&self, now: Timestamp, max: u16) -> Result<usize, StoreError> {
        self.inner.expire(now, max).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.inner.counts().await
    }

    async fn highest(&self) -> Result<Option<OperationSeq>, StoreError> {
        self.inner.highest().await
    }

    async fn beat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.inner.beat(now).await
    }

    async fn last_beat(&self) -> Result<Option<Timestamp>, StoreError> {
        self.inner.last_beat().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// What came of one restore over a store with this fault, and whether the VM manager was called.
struct Outcome {
    room: Arc<Operations>,
    adapter: Arc<Scripted>,
    accepted: Result<Accepted, AcceptError>,
    seq: OperationSeq,
    _folder: tempfile::TempDir,
}

async fn restore_with(phase: Phase, fail: Fail, times: usize) -> Outcome {
    let adapter = Scripted::new(Recovery::Listable);
    adapter.say("vm", Say::Done);
    change_with(adapter, restore("vm", "b"), (phase, fail, times)).await
}

/// The same for an update that is accepted and begun in one write, and done by the call.
async fn update_with(phase: Phase, fail: Fail, times: usize) -> Outcome {
    let adapter = Scripted::updating(Recovery::ReplaySafe);
    adapter.begin_with("vm", Begin::Done);
    change_with(adapter, update("vm", "b"), (phase, fail, times)).await
}

async fn change_with(
    adapter: Arc<Scripted>,
    intent: Intent,
    fault: (Phase, Fail, usize),
) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(folder.path(), &adapter);
    setup.backends[0].concurrency = 1;
    let shared = Shared {
        clock: Arc::<crate::runtime::ManualClock>::clone(&setup.clock),
        metrics: setup.metrics.clone(),
        tasks: Tasks::default(),
    };
    let file = setup.config.store.clone();
    let inner = SqliteStore::open(file, Arc::clone(&shared.clock), shared.metrics.clone());
    let store = Faulty {
        inner: inner.unwrap(),
        fault: Mutex::new(Some(fault)),
        life: Mutex::default(),
    };
    let room = Operations::over(setup.config, setup.backends, Arc::new(store), shared);
    let room = room.await.unwrap();
    let seq = room.reserve();
    let submitted = submission(seq, intent.clone());
    let accepted = room.accept(permit(&intent, "one"), submitted).await;
    Outcome {
        room,
        adapter,
        accepted,
        seq,
        _folder: folder,
    }
}

#[tokio::test]
async fn an_accept_is_what_the_store_holds() {
    for at_once in [false, true] {
        accepts_are_what_the_store_holds(at_once).await;
    }
}

async fn accepts_are_what_the_store_holds(at_once: bool) {
    let rows = [
        (
            "unavailable",
            Fail::Unavailable,
            Err(StoreFault::Unavailable),
            0,
        ),
        (
            "lost and not applied",
            Fail::LostBefore,
            Err(StoreFault::Unavailable),
            0,
        ),
        ("lost and applied", Fail::LostAfter, Ok(()), 1),
        ("fatal", Fail::Fatal, Err(StoreFault::Failed), 0),
    ];
    for (name, fail, expected, begun) in rows {
        let name = format!("{name}, at once: {at_once}");
        let it = if at_once {
            update_with(Phase::Submitting, fail, 1).await
        } else {
            restore_with(Phase::Accepted, fail, 1).await
        };
        let got = match &it.accepted {
            Ok(_) => Ok(()),
            Err(AcceptError::Store(fault)) => Err(*fault),
            Err(other) => panic!("{name}: {other:?}"),
        };
        assert_eq!(got, expected, "{name}");
        let end = it.room.wait(it.seq, WaitFor::End, soon()).await.unwrap();
        assert_eq!(end.is_some(), expected.is_ok(), "{name}: kept");
        assert_eq!(it.adapter.begun().len(), begun, "{name}: calls");
        assert_eq!(
            it.room.failed().is_given(),
            fail == Fail::Fatal,
            "{name}: signal"
        );
        assert_eq!(it.room.is_ready(), expected.is_ok(), "{name}: ready");
        if expected == Err(StoreFault::Unavailable) {
            maintenance::round(&it.room.core).await;
            assert!(
                it.room.is_ready(),
                "{name}: ready when the store takes writes again"
            );
        }
    }
}

#[tokio::test]
async fn later_writes_are_made_good_and_nothing_is_called_twice() {
    for phase in [Phase::Submitting, Phase::Running, Phase::Succeeded] {
        for fail in [Fail::Unavailable, Fail::LostBefore, Fail::LostAfter] {
            let it = restore_with(phase, fail, 1).await;
            let end = it.room.wait(it.seq, WaitFor::End, soon()).await;
            let end = end.unwrap().unwrap();
            assert_eq!(end.phase, Phase::Succeeded, "{phase:?}, {fail:?}");
            assert_eq!(it.adapter.begun().len(), 1, "{phase:?}, {fail:?}: once");
        }
    }
}

#[tokio::test]
async fn what_is_not_durable_is_not_acted_on_and_not_shown() {
    // The phase whose write fails for good, what stays visible, and the calls that the VM manager got by then.
    let rows = [
        (Phase::Submitting, Phase::Accepted, 0),
        (Phase::Running, Phase::Submitting, 1),
        (Phase::Succeeded, Phase::Running, 1),
    ];
    for (phase, shown, begun) in rows {
        let it = restore_with(phase, Fail::Fatal, usize::MAX).await;
        it.room.failed().given().await;
        let seen = it.room.operation(it.seq).await.unwrap().unwrap();
        assert_eq!(seen.phase, shown, "{phase:?}: shown");
        assert_eq!(it.adapter.begun().len(), begun, "{phase:?}: calls");
        assert!(!it.room.is_ready(), "{phase:?}: takes nothing");
    }
}

#[tokio::test]
async fn a_conflict_leaves_the_operation_to_the_next_round() {
    let it = restore_with(Phase::Running, Fail::Conflict, 1).await;
    it.adapter.find_says(&[Say::Task]);
    eventually("it was called", || async { it.adapter.begun().len() == 1 }).await;
    eventually("and taken up again", || async {
        maintenance::round(&it.room.core).await;
        let seen = it.room.operation(it.seq).await.unwrap().unwrap();
        seen.phase == Phase::Succeeded
    })
    .await;
    assert_eq!(it.adapter.begun().len(), 1, "not called again");
}

#[tokio::test]
async fn the_next_may_begin_over_there_while_an_end_cannot_be_written() {
    let it = update_with(Phase::Succeeded, Fail::Unavailable, usize::MAX).await;
    let first = it.accepted.expect("accepted").operation().seq;
    it.adapter.begin_with("wm", Begin::Done);
    let (seq, intent) = (it.room.reserve(), update("wm", "b"));
    let submitted = submission(seq, intent.clone());
    let accepted = it.room.accept(permit(&intent, "one"), submitted).await;
    accepted.expect("accepted");
    eventually("both were called, one place or not", || async {
        it.adapter.begun() == [first, seq]
    })
    .await;
    for seq in [first, seq] {
        let seen = it.room.operation(seq).await.unwrap().unwrap();
        assert!(
            !seen.phase.is_final(),
            "{seq}: no end is shown that is not kept"
        );
    }
}

/// A change over a store that dies at its write number `after`, then another life over what is left.
/// Returns whether the first life came to its end.
async fn dying_at(after: usize, fail: Fail, adapter: Arc<Scripted>, intent: Intent) -> bool {
    let recovery = adapter.recovery();
    let name = format!("{after} writes, then {fail:?}, {}", recovery.as_str());
    let folder = folder_in_memory();
    let setup = Setup::new(folder.path(), &adapter);
    let shared = Shared {
        clock: Arc::<crate::runtime::ManualClock>::clone(&setup.clock),
        metrics: setup.metrics.clone(),
        tasks: Tasks::default(),
    };
    let file = setup.config.store.clone();
    let inner = SqliteStore::open(file, Arc::clone(&shared.clock), shared.metrics.clone());
    let store = Faulty {
        inner: inner.unwrap(),
        fault: Mutex::default(),
        life: Mutex::new(Some((after, fail))),
    };
    let (config, backends) = (setup.config.clone(), setup.backends.clone());
    let room = Operations::over(config, backends, Arc::new(store), shared);
    let room = room.await.unwrap();
    let seq = room.reserve();
    let submitted = submission(seq, intent.clone());
    let accepted = room.accept(permit(&intent, "one"), submitted).await;
    let half = |it: &Operation| it.progress.percent() == 50;
    let failed = room.failed();
    while !failed.is_given() {
        let seen = room.operation(seq).await.unwrap().unwrap();
        if half(&seen) {
            adapter.say("vm", Say::Done);
        }
        if seen.phase.is_final() {
            break;
        }
        let until = WaitFor::ChangeAfter(seen.revision);
        tokio::select! {
            () = failed.given() => {}
            _ = room.wait(seq, until, soon()) => {}
        }
    }
    let died = failed.is_given();
    room.stop().await;

    // The VM manager lived on, ended the work, and tells the truth about it as far as its class allows.
    adapter.say("vm", Say::Done);
    let ran = !adapter.begun().is_empty();
    adapter.find_says(&[match (recovery, ran) {
        (Recovery::NoTrace, _) => Say::Unknowable,
        (Recovery::ReplaySafe | Recovery::Listable, true) => Say::Done,
        (Recovery::ReplaySafe | Recovery::Listable, false) => Say::NotBegun,
    }]);
    let room = setup.open().await;
    let end = room.wait(seq, WaitFor::End, soon()).await.unwrap();
    room.stop().await;
    judge_dying(&name, &accepted, end.as_deref(), &adapter, recovery);
    !died
}

fn judge_dying(
    name: &str,
    accepted: &Result<Accepted, AcceptError>,
    end: Option<&Operation>,
    adapter: &Scripted,
    recovery: Recovery,
) {
    let mut begun = adapter.begun();
    if recovery == Recovery::ReplaySafe {
        // It does once what it is asked for twice.
        begun.dedup();
    }
    let answer = match accepted {
        Ok(it) => Answer::Accepted(it.operation().seq, 2),
        Err(AcceptError::Store(StoreFault::Failed)) => Answer::Failed,
        Err(other) => panic!("{name}: {other:?}"),
    };
    let Some(end) = end else {
        assert_eq!(answer, Answer::Failed, "{name}: lost");
        assert_eq!(begun, [], "{name}: what is not kept did not run");
        return;
    };
    let mut history = History::default();
    history.asks.push(Ask {
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
        for fail in [Fail::Fatal, Fail::FatalAfter] {
            let restored = |writes| {
                let adapter = Scripted::new(recovery);
                adapter.say("vm", Say::Running(50));
                dying_at(writes, fail, adapter, restore("vm", "b"))
            };
            // Accepted, submitting, running, half done, succeeded.
            assert_eq!(lives(restored).await, 5, "{fail:?}: each was the last once");
        }
    }
}

#[tokio::test]
async fn a_store_that_dies_at_any_write_of_an_update_leaves_what_can_be_recovered() {
    for fail in [Fail::Fatal, Fail::FatalAfter] {
        let updated = |writes| {
            let adapter = Scripted::updating(Recovery::ReplaySafe);
            adapter.begin_with("vm", Begin::Done);
            dying_at(writes, fail, adapter, update("vm", "b"))
        };
        // Submitting, succeeded.
        assert_eq!(lives(updated).await, 2, "{fail:?}: each was the last once");
    }
}

/// After how many writes nothing dies any more.
async fn lives<F: Future<Output = bool>>(mut lived: impl FnMut(usize) -> F) -> usize {
    for writes in 0..50 {
        if lived(writes).await {
            return writes;
        }
    }
    panic!("it ends at some point");
}
