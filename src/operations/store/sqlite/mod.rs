//! Operations in one SQLite file: write-ahead log, every commit synced, one writer thread, readers beside it.
//!
//! Why SQLite and why in this way is told in docs/decisions/0001-sqlite-store.md.

mod annotations;
mod open;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use rusqlite::ErrorCode;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::adapters::annotations::Annotations;
use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::api::ListQuery;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::OpenError;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::record;
use crate::runtime::Clock;
use crate::telemetry::Metrics;
use reader::Readers;
use writer::Job;
use writer::Work;

/// Writes that may wait for the writer thread: beyond it callers wait to hand theirs in.
const WRITES_WAITING_MAX: usize = 1024;

/// Operations in one SQLite file.
#[derive(Debug)]
pub(crate) struct SqliteStore(Arc<Inner>);

/// What the store and its table of annotations share.
struct Inner {
    file: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Arc<Readers>,
    failed: Arc<AtomicBool>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, or makes it when there is none. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; a file that exists is never replaced.
    pub(crate) fn open(
        file: PathBuf,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let (connection, lock) = open::open(&file)?;
        let failed = Arc::new(AtomicBool::new(false));
        let readers = Arc::new(Readers::new(file.clone(), Arc::clone(&failed)));
        let (jobs, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let writer = writer::Writer {
            connection,
            clock,
            metrics,
            failed: Arc::clone(&failed),
            lock,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| open::file_error(&file, &error))?;
        Ok(Self(Arc::new(Inner {
            file,
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            readers,
            failed,
        })))
    }

    /// What the gateway keeps about backups whose VM manager does not, in the same file.
    pub(crate) fn annotations(&self) -> Arc<dyn Annotations> {
        Arc::new(annotations::Table(Arc::clone(&self.0)))
    }
}

impl Inner {
    /// Hands the work to the writer and waits for its commit.
    async fn write<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Work,
    ) -> Result<T, StoreError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(already_failed());
        }
        let jobs = self
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(jobs) = jobs else {
            return Err(StoreError::Unavailable("closed".to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        if jobs.send(Job(work(answer))).await.is_err() {
            return Err(StoreError::Unavailable("the writer has ended".to_owned()));
        }
        drop(jobs);
        answered
            .await
            .unwrap_or_else(|_gone| Err(StoreError::Indeterminate("the writer ended".to_owned())))
    }
}

/// The text to store, made before the writer has it: everybody waits for the writer.
fn encoded(operation: &Operation) -> Result<String, StoreError> {
    record::encode(operation).map_err(|error| StoreError::Unavailable(error.to_string()))
}

fn already_failed() -> StoreError {
    StoreError::Fatal("it failed before".to_owned())
}

/// What an error of the engine means to a writer or reader. Nothing of the transaction was applied, unless it is fatal.
fn classify(error: &rusqlite::Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::InternalMalfunction,
        ) => StoreError::Fatal(text),
        Some(_) | None => StoreError::Unavailable(text),
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let record = encoded(&operation)?;
        self.0
            .write(|answer| Work::Create(operation, record, answer))
            .await
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let record = encoded(&operation)?;
        self.0
            .write(|answer| Work::Update(operation, record, answer))
            .await
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        Readers::run(&self.0.readers, move |it, db| it.read(db, seq)).await
    }

    async fn by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        let (principal, scope, key) = (principal.clone(), scope.clone(), key.clone());
        Readers::run(&self.0.readers, move |it, db| {
            it.by_key(db, &principal, &scope, &key)
        })
        .await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreError> {
        let query = query.clone();
        Readers::run(&self.0.readers, move |it, db| it.list(db, &query)).await
    }

    async fn live(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        Readers::run(&self.0.readers, Readers::live).await
    }

    async fn expire(&self, now: Timestamp, max: u16) -> Result<usize, StoreError> {
        self.0.write(|answer| Work::Expire(now, max, answer)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Readers::run(&self.0.readers, Readers::counts).await
    }

    async fn highest(&self) -> Result<Option<OperationSeq>, StoreError> {
        Readers::run(&self.0.readers, |_, db| Readers::highest(db)).await
    }

    async fn beat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.0.write(|answer| Work::Beat(now, answer)).await
    }

    async fn last_beat(&self) -> Result<Option<Timestamp>, StoreError> {
        Readers::run(&self.0.readers, |_, db| Readers::last_beat(db)).await
    }

    async fn close(&self) {
        let jobs = self
            .0
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // First the readers: the last connection to close tidies the log away, and two that close at once both think
        // that the other one will.
        self.0.readers.close().await;
        drop(jobs);
        let thread = self
            .0
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join().is_ok()).await;
            if !matches!(joined, Ok(true)) {
                tracing::error!(file = %self.0.file.display(), "store writer did not end well");
            }
        }
    }
}
