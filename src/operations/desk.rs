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
use crate::operations::engine::Core;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::service::ListQuery;
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
pub enum DeskError {
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
}

impl From<StoreError> for DeskError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// An operation whose unknown outcome is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// As it is now.
    pub operation: Arc<Operation>,
    /// Whether it was not before: exactly one of all who acknowledge it is told so.
    pub is_new: bool,
}

/// The open store.
#[derive(Debug)]
pub struct Desk {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    retention: Duration,
}

impl Desk {
    /// Opens the store, which keeps a gateway from starting until [`Desk::close`].
    ///
    /// # Errors
    /// [`DeskError`]; the store was left as it is.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, DeskError> {
        let (file, its_clock) = (config.store.clone(), Arc::clone(&clock));
        let opened = tokio::task::spawn_blocking(move || {
            if file.exists() {
                Ok(SqliteStore::open(file, its_clock, metrics)?)
            } else {
                Err(DeskError::Absent(file.display().to_string()))
            }
        });
        let store = opened
            .await
            .map_err(|error| DeskError::Store(error.to_string()))??;
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
    ) -> Result<Vec<Arc<Operation>>, DeskError> {
        Ok(list(&*self.store, showing, before, most).await?)
    }

    /// One operation.
    ///
    /// # Errors
    /// [`DeskError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, DeskError> {
        let found = self.store.read(seq).await?;
        found.ok_or(DeskError::NoSuchOperation(seq))
    }

    /// Keeps in mind that an operator has seen the unknown outcome: the record may expire from now on.
    ///
    /// # Errors
    /// [`DeskError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(&self, seq: OperationSeq) -> Result<Acknowledged, DeskError> {
        let operation = self.show(seq).await?;
        let Some(state) = acknowledged(&operation, self.clock.now(), self.retention)? else {
            return Ok(Acknowledged {
                operation,
                is_new: false,
            });
        };
        self.store.update(Arc::clone(&state)).await?;
        Ok(Acknowledged {
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
    /// As [`Desk::list`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn look(
        &self,
        showing: Showing,
        before: Option<OperationSeq>,
        most: usize,
    ) -> Result<Vec<Arc<Operation>>, DeskError> {
        let found = list(&*self.core.store, showing, before, most).await;
        found.map_err(|error| unread(&self.core, &error))
    }

    /// As [`Desk::show`].
    ///
    /// # Errors
    /// [`DeskError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, DeskError> {
        let found = self.core.store.read(seq).await;
        let found = found.map_err(|error| unread(&self.core, &error))?;
        found.ok_or(DeskError::NoSuchOperation(seq))
    }

    /// As [`Desk::acknowledge`].
    ///
    /// # Errors
    /// [`DeskError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(&self, seq: OperationSeq) -> Result<Acknowledged, DeskError> {
        let core = &self.core;
        for _ in 0..TRIES {
            let operation = self.show(seq).await?;
            let now = core.clock.now();
            let Some(state) = acknowledged(&operation, now, core.config.retention)? else {
                return Ok(Acknowledged {
                    operation,
                    is_new: false,
                });
            };
            match core.update(&state).await {
                Ok(()) => {
                    core.count_unknown().await;
                    return Ok(Acknowledged {
                        operation: state,
                        is_new: true,
                    });
                }
                // Somebody else was quicker: the record says what is left to do.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DeskError::Store(StoreError::Conflict.to_string()))
    }
}

fn unread(core: &Core, error: &StoreError) -> DeskError {
    DeskError::Store(core.fault(error).to_string())
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
) -> Result<Option<Arc<Operation>>, DeskError> {
    let rules = Rules {
        replay_safe: false,
        settle: Duration::ZERO,
        probe_window: Duration::ZERO,
        accept_ttl: Duration::ZERO,
        resume_ttl: Duration::ZERO,
        retention,
    };
    let step = machine::step(found, Event::Acknowledge, now, &rules)
        .map_err(|_illegal| DeskError::NotUnknown(found.seq, found.phase.as_str()))?;
    Ok(step.state.map(Arc::new))
}
