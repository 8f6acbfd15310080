//! A store that fails at a chosen write, and what the room makes of it.

use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;

use super::eventually;
use crate::adapters::port::Recovery;
use crate::model::Idempotency;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::ListQuery;
use crate::operations::Operations;
use crate::operations::Service;
use crate::operations::StoreFault;
use crate::operations::WaitFor;
use crate::operations::engine::Shared;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::testing::Say;
use crate::operations::testing::Scripted;
use crate::operations::testing::Setup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::soon;
use crate::operations::testing::submission;
use crate::operations::upkeep;
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
}

/// The store with a fault that hits every write of one phase, so many times.
#[derive(Debug)]
struct Faulty {
    inner: SqliteStore,
    fault: Mutex<Option<(Phase, Fail, usize)>>,
}

impl Faulty {
    fn hit(&self, phase: Phase) -> Option<Fail> {
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
        Fail::Fatal => StoreError::Fatal(text),
        Fail::Conflict => StoreError::Conflict,
    }
}

#[async_trait]
impl Store for Faulty {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let fail = self.hit(operation.phase);
        if fail.is_none() || fail == Some(Fail::LostAfter) {
            let made = self.inner.create(operation).await;
            return fail.map_or(made, |it| Err(error(it)));
        }
        Err(error(fail.unwrap()))
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let fail = self.hit(operation.phase);
        if fail.is_none() || fail == Some(Fail::LostAfter) {
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
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        self.inner.by_key(principal, key).await
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
    let folder = tempfile::tempdir().unwrap();
    let adapter = Scripted::new(Recovery::Listable);
    adapter.say("vm", Say::Done);
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
        fault: Mutex::new(Some((phase, fail, times))),
    };
    let room = Operations::over(setup.config, setup.backends, Arc::new(store), shared);
    let room = room.await.unwrap();
    let (seq, intent) = (room.reserve(), restore("vm", "b"));
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
        let it = restore_with(Phase::Accepted, fail, 1).await;
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
            upkeep::round(&it.room.core).await;
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
        upkeep::round(&it.room.core).await;
        let seen = it.room.operation(it.seq).await.unwrap().unwrap();
        seen.phase == Phase::Succeeded
    })
    .await;
    assert_eq!(it.adapter.begun().len(), 1, "not called again");
}
