//! Stored operations in the hands of an operator: offline, and of a gateway at work. Begins and recovers nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Showing;
use crate::model::Timestamp;
use crate::model::limits;
use crate::operations::Config;
use crate::operations::Operations;
use crate::operations::api::CancelError;
use crate::operations::api::ListQuery;
use crate::operations::cancel;
use crate::operations::core::Core;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::store::OpenError;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Repeats of an acknowledgement that lost against another write.
const TRIES: usize = 3;

/// Why an operator's wish was not fulfilled. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OfflineStoreError {
    /// Nothing was ever stored; none is made for looking at.
    #[error("there is no store of operations at {0}")]
    Absent(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be read or written.
    #[error("{0}")]
    Store(String),
    /// There is none of that number.
    #[error("there is no operation {0}, or it is no longer kept")]
    NoSuchOperation(OperationSeq),
    /// Its outcome is known, or not yet given up.
    #[error("operation {0} is {1}: only an unknown outcome can be acknowledged")]
    NotUnknown(OperationSeq, &'static str),
    /// It is finished, or the VM manager cannot stop it.
    #[error("operation {0} is {1} and cannot be cancelled; nothing was changed")]
    NotCancellable(OperationSeq, &'static str),
}

impl From<StoreError> for OfflineStoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// An operation on which an operator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorDecision {
    /// As it is now.
    pub operation: Arc<Operation>,
    /// Whether this decision changed the record: true for exactly one of several operators who decide the same.
    pub is_new: bool,
}

/// The open store.
#[derive(Debug)]
pub struct OfflineStore {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    retention: Duration,
}

impl OfflineStore {
    /// Opens the store, which keeps a gateway from starting until [`OfflineStore::close`].
    ///
    /// # Errors
    /// [`OfflineStoreError`]; the store was left as it is.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OfflineStoreError> {
        let (file, its_clock) = (config.store.clone(), Arc::clone(&clock));
        let opened = tokio::task::spawn_blocking(move || {
            if file.exists() {
                Ok(SqliteStore::open(file, its_clock, metrics)?)
            } else {
                Err(OfflineStoreError::Absent(file.display().to_string()))
            }
        });
        let store = opened
            .await
            .map_err(|error| OfflineStoreError::Store(error.to_string()))??;
        Ok(Self {
            store: Arc::new(store),
            clock,
            retention: config.retention,
        })
    }

    /// At most `most` operations older than `before`, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        showing: Showing,
        before: Option<OperationSeq>,
        most: usize,
    ) -> Result<Vec<Arc<Operation>>, OfflineStoreError> {
        Ok(list(&*self.store, showing, before, most).await?)
    }

    /// One operation.
    ///
    /// # Errors
    /// [`OfflineStoreError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, OfflineStoreError> {
        let found = self.store.read(seq).await?;
        found.ok_or(OfflineStoreError::NoSuchOperation(seq))
    }

    /// Keeps in mind that an operator has seen the unknown outcome: the record may expire from now on.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let operation = self.show(seq).await?;
        let Some(state) = acknowledged(&operation, self.clock.now(), self.retention)? else {
            return Ok(OperatorDecision {
                operation,
                is_new: false,
            });
        };
        self.store.update(Arc::clone(&state)).await?;
        Ok(OperatorDecision {
            operation: state,
            is_new: true,
        })
    }

    /// Records that an operation is to be stopped. A queued one ends as cancelled at once. One that had begun is settled by
    /// the next gateway: it asks the VM manager to stop the task, and begins nothing of it again.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotCancellable`] for a finished one, and the like; nothing was changed.
    pub async fn cancel(&self, seq: OperationSeq) -> Result<OperatorDecision, OfflineStoreError> {
        let operation = self.show(seq).await?;
        let rules = offline_rules(self.retention);
        let step = machine::step(&operation, Event::CancelAsked, self.clock.now(), &rules)
            .map_err(|_illegal| OfflineStoreError::NotCancellable(seq, operation.phase.as_str()))?;
        let Some(state) = step.state.map(Arc::new) else {
            return Ok(OperatorDecision {
                operation,
                is_new: false,
            });
        };
        self.store.update(Arc::clone(&state)).await?;
        Ok(OperatorDecision {
            operation: state,
            is_new: true,
        })
    }

    /// Frees the store.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

/// The same for the operations of a gateway at work.
impl Operations {
    /// As [`OfflineStore::list`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn look(
        &self,
        showing: Showing,
        before: Option<OperationSeq>,
        most: usize,
    ) -> Result<Vec<Arc<Operation>>, OfflineStoreError> {
        let found = list(&*self.core.store, showing, before, most).await;
        found.map_err(|error| unread(&self.core, &error))
    }

    /// As [`OfflineStore::show`].
    ///
    /// # Errors
    /// [`OfflineStoreError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, OfflineStoreError> {
        let found = self.core.store.read(seq).await;
        let found = found.map_err(|error| unread(&self.core, &error))?;
        found.ok_or(OfflineStoreError::NoSuchOperation(seq))
    }

    /// As [`OfflineStore::acknowledge`].
    ///
    /// # Errors
    /// [`OfflineStoreError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let core = &self.core;
        for _ in 0..TRIES {
            let operation = self.show(seq).await?;
            let now = core.clock.now();
            let Some(state) = acknowledged(&operation, now, core.config.retention)? else {
                return Ok(OperatorDecision {
                    operation,
                    is_new: false,
                });
            };
            match core.update(&state).await {
                Ok(()) => {
                    core.count_unknown().await;
                    return Ok(OperatorDecision {
                        operation: state,
                        is_new: true,
                    });
                }
                // Somebody else was quicker: the record says what is left to do.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(OfflineStoreError::Store(StoreError::Conflict.to_string()))
    }

    /// As [`OfflineStore::cancel`]; an operation that runs is stopped only where its VM manager can do so.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotCancellable`] and the like; nothing was changed.
    pub async fn cancel_by_operator(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let before = self.show(seq).await?;
        match cancel::ask(&self.core, seq, None).await {
            Ok(operation) => Ok(OperatorDecision {
                is_new: before.cancel_asked.is_none() && !before.phase.is_final(),
                operation,
            }),
            Err(CancelError::NoSuchOperation) => Err(OfflineStoreError::NoSuchOperation(seq)),
            Err(CancelError::NotCancellable | CancelError::Changed) => Err(
                OfflineStoreError::NotCancellable(seq, before.phase.as_str()),
            ),
            Err(CancelError::Store(fault)) => Err(OfflineStoreError::Store(fault.to_string())),
        }
    }
}

fn unread(core: &Core, error: &StoreError) -> OfflineStoreError {
    OfflineStoreError::Store(core.fault(error).to_string())
}

async fn list(
    store: &dyn Store,
    showing: Showing,
    before: Option<OperationSeq>,
    most: usize,
) -> Result<Vec<Arc<Operation>>, StoreError> {
    let mut query = ListQuery {
        limit: limits::PAGE_MAX,
        before,
        unfinished: match showing {
            Showing::Unknown => Some(false),
            Showing::Unfinished => Some(true),
            Showing::All => None,
        },
        ..ListQuery::default()
    };
    let fits = |it: &Arc<Operation>| {
        showing != Showing::Unknown || (it.phase == Phase::Unknown && it.acknowledged.is_none())
    };
    let mut shown = Vec::new();
    loop {
        let page = store.list(&query).await?;
        query.before = page.last().map(|it| it.seq);
        let is_last = page.is_empty();
        shown.extend(page.into_iter().filter(fits));
        if is_last || shown.len() >= most {
            shown.truncate(most);
            return Ok(shown);
        }
    }
}

/// The record with the acknowledgement; `None` when it is there already.
fn acknowledged(
    found: &Operation,
    now: Timestamp,
    retention: Duration,
) -> Result<Option<Arc<Operation>>, OfflineStoreError> {
    let rules = offline_rules(retention);
    let step = machine::step(found, Event::Acknowledge, now, &rules)
        .map_err(|_illegal| OfflineStoreError::NotUnknown(found.seq, found.phase.as_str()))?;
    Ok(step.state.map(Arc::new))
}

/// What decides about the acts of an operator, none of which depends on a VM manager.
const fn offline_rules(retention: Duration) -> Rules {
    Rules {
        replay_safe: false,
        settle: Duration::ZERO,
        probe_window: Duration::ZERO,
        accept_ttl: Duration::ZERO,
        resume_ttl: Duration::ZERO,
        retention,
    }
}
