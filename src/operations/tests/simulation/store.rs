//! A store in memory that fails in every way that the trait allows. What it holds is the disk: it outlives the gateway.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::world::Things;
use super::world::World;
use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::api::ListQuery;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;

/// The connection of one life to the disk.
#[derive(Debug)]
pub(super) struct SimStore {
    world: World,
    failed: AtomicBool,
    /// Until when it takes no writes.
    out: std::sync::Mutex<Duration>,
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("simulated".to_owned())
}

impl SimStore {
    pub(super) fn new(world: World) -> Self {
        Self {
            world,
            failed: AtomicBool::new(false),
            out: std::sync::Mutex::default(),
        }
    }

    /// One write, which may fail before or after it is applied.
    async fn write<T>(
        &self,
        apply: impl FnOnce(&mut Things) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let world = &self.world;
        world.step().await;
        world.delay().await;
        if self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Fatal("failed before".to_owned()));
        }
        if world.fault(4) {
            let until = world.time() + world.chance(|world| world.millis(60_000));
            *self.out.lock().unwrap() = until;
        }
        let calm = world.things().calm;
        if world.fault(20) || (!calm && world.time() < *self.out.lock().unwrap()) {
            return Err(unavailable());
        }
        let (fatal, lost) = (world.fault(5), world.fault(40));
        let applied = if (fatal || lost) && world.fault(500) {
            None
        } else {
            Some(apply(&mut world.things()))
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

    async fn look<T>(&self, look: impl FnOnce(&Things) -> T + Send) -> Result<T, StoreError> {
        self.world.step().await;
        self.world.delay().await;
        if self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Fatal("failed before".to_owned()));
        }
        if self.world.fault(20) {
            return Err(unavailable());
        }
        let found = look(&self.world.things());
        self.world.step().await;
        Ok(found)
    }
}

fn with_key<'a>(
    things: &'a Things,
    principal: &PrincipalName,
    scope: &KeyScope,
    key: &Idempotency,
) -> Option<&'a Arc<Operation>> {
    things.disk.values().find(|it| {
        it.principal == *principal
            && it.intent.key_scope() == *scope
            && it.idempotency.as_ref().map(|idempotency| &idempotency.key) == Some(&key.key)
    })
}

#[async_trait]
impl Store for SimStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        self.write(move |things| {
            if let Some(key) = &operation.idempotency
                && let scope = operation.intent.key_scope()
                && let Some(found) = with_key(things, &operation.principal, &scope, key)
            {
                return if found.idempotency.as_ref() == Some(key) {
                    Ok(Created::Replayed(Arc::clone(found)))
                } else {
                    Err(StoreError::KeyReused(found.seq))
                };
            }
            if things.disk.contains_key(&operation.seq) {
                return Err(StoreError::Conflict);
            }
            things.disk.insert(operation.seq, operation);
            Ok(Created::New)
        })
        .await
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        self.write(move |things| {
            let found = things.disk.get_mut(&operation.seq);
            match found.filter(|it| it.revision.next() == operation.revision) {
                Some(found) => *found = operation,
                None => return Err(StoreError::Conflict),
            }
            Ok(())
        })
        .await
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        self.look(|things| things.disk.get(&seq).cloned()).await
    }

    async fn by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        self.look(|things| with_key(things, principal, scope, key).cloned())
            .await
    }

    async fn list(&self, _: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreError> {
        self.look(|things| things.disk.values().rev().cloned().collect())
            .await
    }

    async fn live(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        let live = |it: &&Arc<Operation>| !it.phase.is_final();
        self.look(|things| things.disk.values().filter(live).cloned().collect())
            .await
    }

    async fn expire(&self, _: Timestamp, _: u16) -> Result<usize, StoreError> {
        self.write(|_| Ok(0)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.look(|_| Counts::default()).await
    }

    async fn highest(&self) -> Result<Option<OperationSeq>, StoreError> {
        self.look(|things| things.disk.keys().next_back().copied())
            .await
    }

    async fn beat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |things| {
            things.beat = things.beat.max(Some(now));
            Ok(())
        })
        .await
    }

    async fn last_beat(&self) -> Result<Option<Timestamp>, StoreError> {
        self.look(|things| things.beat).await
    }

    async fn close(&self) {}
}
