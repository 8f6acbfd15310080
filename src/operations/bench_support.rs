//! Access for the micro-benchmarks. Not part of the public interface.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::operations::ListPage;
use crate::operations::ListQuery;
use crate::operations::OpenError;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store as _;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

const RULES: Rules = Rules {
    replay_safe: true,
    settle: Duration::from_secs(5),
    probe_window: Duration::from_secs(600),
    accept_ttl: Duration::from_secs(600),
    resume_ttl: Duration::from_secs(600),
    retention: Duration::from_secs(604_800),
};

/// The events of an operation that succeeds.
#[derive(Clone, Debug)]
pub enum LifeCycle {
    /// It leaves its queue.
    Start,
    /// The call started this task.
    Task(TaskRef),
    /// It was done.
    Done,
}

/// The state after one transition of the machine; `None` where the event is not possible.
#[must_use]
pub fn transition(state: &Operation, event: LifeCycle, now: Timestamp) -> Option<Operation> {
    let event = match event {
        LifeCycle::Start => Event::Start(None),
        LifeCycle::Task(task) => Event::Task(task),
        LifeCycle::Done => Event::Done(None),
    };
    machine::step(state, event, now, &RULES).ok()?.state
}

/// An operation store without tasks on it.
#[derive(Debug)]
pub struct BenchStore(SqliteStore);

impl BenchStore {
    /// Opens the file, or creates it. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; the file was left as it is.
    pub fn open(file: PathBuf, metrics: Metrics) -> Result<Self, OpenError> {
        SqliteStore::open(file, SystemClock::shared(), metrics).map(Self)
    }

    /// Whether a new record became durable.
    pub async fn create(&self, operation: &Arc<Operation>) -> bool {
        self.0.create(Arc::clone(operation)).await.is_ok()
    }

    /// Whether the next revision of a record became durable.
    pub async fn update(&self, operation: &Arc<Operation>) -> bool {
        self.0.update(Arc::clone(operation)).await.is_ok()
    }

    /// One page of records; `None` when the store does not answer.
    pub async fn list(&self, query: &ListQuery) -> Option<ListPage> {
        self.0.list(query).await.ok()
    }
}
