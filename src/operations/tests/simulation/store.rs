//! A store in memory that fails in every way that the trait allows. What it holds is the disk: it outlives the gateway.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::world::SimulatedWorld;
use super::world::WorldState;
use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListQuery;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::runtime::Stop;
use crate::runtime::Tasks;

/// The connection of one gateway to the disk.
#[derive(Debug)]
pub(super) struct SimStore {
    world: SimulatedWorld,
    failed: AtomicBool,
    /// Until when it refuses writes.
    refuses_until: std::sync::Mutex<Duration>,
    term: Option<Term>,
}

/// The term of a gateway that is one of several.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub number: u64,
    /// Given when the lease has ended.
    pub lost: Stop,
    /// Whether writes of earlier terms are refused. A control without that must be caught.
    pub is_fenced: bool,
}

/// Whether a write may arrive long after its gateway gave up. Updates compare the revision of the record, so that nothing is left
/// for the fence to refuse; creates have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lateness {
    Possible,
    Never,
}

/// How long a gateway waits for a store that it does not reach.
const PATIENCE: Duration = Duration::from_secs(1);

fn unavailable() -> StoreError {
    StoreError::Unavailable("simulated".to_owned())
}

impl SimStore {
    pub(super) fn new(world: SimulatedWorld) -> Self {
        Self {
            world,
            failed: AtomicBool::new(false),
            refuses_until: std::sync::Mutex::default(),
            term: None,
        }
    }

    /// The store as a gateway sees it that leads in this term.
    pub(super) fn led(world: SimulatedWorld, term: Term) -> Self {
        Self {
            term: Some(term),
            ..Self::new(world)
        }
    }

    /// Fails like a request that gets no answer while the gateway is cut off.
    async fn reach(&self) -> Result<(), StoreError> {
        if !self.world.is_cut_off() {
            return Ok(());
        }
        tokio::time::sleep(PATIENCE).await;
        self.world.step().await;
        Err(unavailable())
    }
}

impl Term {
    /// Refuses a write of a term that is over, or counts one that is not refused.
    fn check(term: Option<&Self>, state: &mut WorldState) -> Result<(), StoreError> {
        let Some(term) = term else {
            return Ok(());
        };
        let leads = state
            .leader
            .is_some_and(|leader| leader.term == term.number);
        if !leads && term.is_fenced {
            return Err(StoreError::Fenced("simulated".to_owned()));
        }
        state.stale_writes += usize::from(!leads);
        Ok(())
    }
}

impl SimStore {
    /// One write, which may fail before or after it is applied.
    async fn write<T>(
        &self,
        lateness: Lateness,
        apply: impl FnOnce(&mut WorldState) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let world = &self.world;
        world.step().await;
        self.reach().await?;
        // On its way meanwhile: it arrives even when the gateway is stopped or its lease ends.
        world.delay().await;
        let late = match lateness {
            Lateness::Possible => world.lateness(),
            Lateness::Never => Duration::ZERO,
        };
        if !late.is_zero() {
            // What is on its way arrives, whatever becomes of the gateway.
            let (world, term) = (world.clone(), self.term.clone());
            drop(Tasks::default().spawn(async move {
                tokio::time::sleep(late).await;
                let mut state = world.state();
                if Term::check(term.as_ref(), &mut state).is_ok() {
                    drop(apply(&mut state));
                }
            }));
            tokio::time::sleep(PATIENCE).await;
            return Err(StoreError::Indeterminate("simulated".to_owned()));
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Fatal("failed before".to_owned()));
        }
        if world.fault(4) {
            let until = world.time() + world.draw(|world| world.millis(60_000));
            *self.refuses_until.lock().unwrap() = until;
        }
        let calm = world.state().calm;
        if world.fault(20) || (!calm && world.time() < *self.refuses_until.lock().unwrap()) {
            return Err(unavailable());
        }
        let (fatal, lost) = (world.fault(5), world.fault(40));
        let applied = if (fatal || lost) && world.fault(500) {
            None
        } else {
            let mut state = world.state();
            let fence = Term::check(self.term.as_ref(), &mut state);
            Some(fence.and_then(|()| apply(&mut state)))
        };
        world.step().await;
        if fatal {
            self.failed.store(true, Ordering::Relaxed);
            return Err(StoreError::Fatal("simulated".to_owned()));
        }
        if lost {
            return Err(StoreError::Indeterminate("simulated".to_owned()));
        }
        world.delay().await;
        applied.unwrap_or_else(|| Err(unavailable()))
    }

    async fn simulate_read<T>(
        &self,
        look: impl FnOnce(&WorldState) -> T + Send,
    ) -> Result<T, StoreError> {
        self.world.step().await;
        self.reach().await?;
        self.world.delay().await;
        if self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Fatal("failed before".to_owned()));
        }
        if self.world.fault(20) {
            return Err(unavailable());
        }
        let found = look(&self.world.state());
        self.world.step().await;
        Ok(found)
    }
}

fn find_with_key<'a>(
    state: &'a WorldState,
    principal: &PrincipalName,
    scope: &KeyScope,
    key: &Idempotency,
) -> Option<&'a Arc<Operation>> {
    state.disk.values().find(|record| {
        record.principal == *principal
            && record.intent.key_scope() == *scope
            && record
                .idempotency
                .as_ref()
                .map(|idempotency| &idempotency.key)
                == Some(&key.key)
    })
}

#[async_trait]
impl Store for SimStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        self.write(Lateness::Possible, move |state| {
            if let Some(key) = &operation.idempotency
                && let scope = operation.intent.key_scope()
                && let Some(found) = find_with_key(state, &operation.principal, &scope, key)
            {
                return if found.idempotency.as_ref() == Some(key) {
                    Ok(Created::Replayed(Arc::clone(found)))
                } else {
                    Err(StoreError::KeyReused(found.seq))
                };
            }
            if state.disk.contains_key(&operation.seq) {
                return Err(StoreError::Conflict);
            }
            state.disk.insert(operation.seq, operation);
            Ok(Created::New)
        })
        .await
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        self.write(Lateness::Never, move |state| {
            let found = state.disk.get_mut(&operation.seq);
            match found.filter(|record| record.revision.next() == operation.revision) {
                Some(found) => *found = operation,
                None => return Err(StoreError::Conflict),
            }
            Ok(())
        })
        .await
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        self.simulate_read(|state| state.disk.get(&seq).cloned())
            .await
    }

    async fn find_by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        self.simulate_read(|state| find_with_key(state, principal, scope, key).cloned())
            .await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.simulate_read(|state| query.select(state.disk.values().cloned()))
            .await
    }

    async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        let is_unfinished = |record: &&Arc<Operation>| !record.phase.is_final();
        self.simulate_read(|state| state.disk.values().filter(is_unfinished).cloned().collect())
            .await
    }

    async fn remove_expired(&self, _: Timestamp, _: u16) -> Result<usize, StoreError> {
        self.write(Lateness::Never, |_| Ok(0)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.simulate_read(|_| Counts::default()).await
    }

    async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError> {
        self.simulate_read(|state| state.disk.keys().next_back().copied())
            .await
    }

    async fn record_heartbeat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(Lateness::Never, move |state| {
            state.beat = state.beat.max(Some(now));
            Ok(())
        })
        .await
    }

    async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError> {
        self.simulate_read(|state| state.beat).await
    }

    fn lost(&self) -> Option<Stop> {
        self.term.as_ref().map(|term| term.lost.clone())
    }

    async fn close(&self) {}
}
