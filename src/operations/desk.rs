//! The store of operations in the hands of an operator, while no gateway works on it. Begins and recovers nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::limits;
use crate::operations::Config;
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

/// Which operations to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Showing {
    /// Unknown outcomes that nobody acknowledged.
    Unknown,
    /// What is not final.
    Unfinished,
    /// Everything.
    All,
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

    /// At most `most` operations, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        showing: Showing,
        most: usize,
    ) -> Result<Vec<Arc<Operation>>, DeskError> {
        let mut query = ListQuery {
            limit: limits::PAGE_MAX,
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
            let page = self.store.list(&query).await?;
            query.before = page.last().map(|it| it.seq);
            let is_last = page.is_empty();
            shown.extend(page.into_iter().filter(fits));
            if is_last || shown.len() >= most {
                shown.truncate(most);
                return Ok(shown);
            }
        }
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
    pub async fn acknowledge(&self, seq: OperationSeq) -> Result<Arc<Operation>, DeskError> {
        let found = self.show(seq).await?;
        let rules = Rules {
            replay_safe: false,
            settle: Duration::ZERO,
            probe_window: Duration::ZERO,
            accept_ttl: Duration::ZERO,
            retention: self.retention,
        };
        let step = machine::step(&found, Event::Acknowledge, self.clock.now(), &rules)
            .map_err(|_illegal| DeskError::NotUnknown(seq, found.phase.as_str()))?;
        let Some(state) = step.state.map(Arc::new) else {
            return Ok(found);
        };
        self.store.update(Arc::clone(&state)).await?;
        Ok(state)
    }

    /// Frees the store.
    pub async fn close(&self) {
        self.store.close().await;
    }
}
