//! Implements the store on one SQLite file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::adapters::annotations::Annotations;
use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::api::ChangePage;
use crate::operations::api::ChangeQuery;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListQuery;
use crate::operations::store::contract::Counts;
use crate::operations::store::contract::Created;
use crate::operations::store::contract::Store;
use crate::operations::store::error::OpenError;
use crate::operations::store::error::StoreError;
use crate::operations::store::record;
use crate::operations::store::sqlite::annotations::AnnotationTable;
use crate::operations::store::sqlite::change_history;
use crate::operations::store::sqlite::checkpoints::Checkpoints;
use crate::operations::store::sqlite::open;
use crate::operations::store::sqlite::reader::Readers;
use crate::operations::store::sqlite::store_file::StoreFile;
use crate::operations::store::sqlite::writer;
use crate::operations::store::sqlite::writer::Write;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Writes that may wait for the writer thread: beyond it callers wait to hand theirs in.
const WRITES_WAITING_MAX: usize = 1024;

/// Operations in one SQLite file.
#[derive(Debug)]
pub(crate) struct SqliteStore(pub(super) Arc<StoreFile>);

impl SqliteStore {
    /// Opens the file, or creates it when there is none. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; a file that exists is never replaced.
    pub(crate) fn open(
        file: PathBuf,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let (mut connection, lock) = open::open(&file)?;
        let history = change_history::begin_run(&mut connection)
            .map_err(|error| open::sqlite_error(&file, &error))?;
        let checkpoints = Checkpoints::start(&mut connection, &file)?;
        let last_change = history.latest;
        let feed = Arc::new(ChangeFeed::new(history));
        let has_failed = Arc::new(AtomicBool::new(false));
        let readers = Arc::new(Readers::new(file.clone(), Arc::clone(&has_failed)));
        let (writes, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let writer = writer::Writer {
            connection,
            checkpoints,
            clock,
            metrics,
            has_failed: Arc::clone(&has_failed),
            feed: Arc::clone(&feed),
            last_change,
            lock,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| open::file_error(&file, &error))?;
        Ok(Self(Arc::new(StoreFile {
            file,
            writes: Mutex::new(Some(writes)),
            writer: Mutex::new(Some(thread)),
            readers,
            feed,
            has_failed,
        })))
    }

    #[cfg(test)]
    pub(super) const fn from_file(file: Arc<StoreFile>) -> Self {
        Self(file)
    }

    /// The metadata of backups whose VM manager keeps none, in the same file.
    pub(crate) fn annotations(&self) -> Arc<dyn Annotations> {
        Arc::new(AnnotationTable(Arc::clone(&self.0)))
    }
}

/// Encodes the record on the thread of the caller: the one writer thread is what all writes wait for.
fn encode(operation: &Operation) -> Result<String, StoreError> {
    record::encode(operation).map_err(|error| StoreError::Unavailable(error.to_string()))
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let record = encode(&operation)?;
        self.0
            .write(|answer| Write::Create(operation, record, answer))
            .await
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let record = encode(&operation)?;
        self.0
            .write(|answer| Write::Update(operation, record, answer))
            .await
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        Readers::run(&self.0.readers, move |readers, db| readers.read(db, seq)).await
    }

    async fn find_by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        let (principal, scope, key) = (principal.clone(), scope.clone(), key.clone());
        Readers::run(&self.0.readers, move |readers, db| {
            readers.find_by_key(db, &principal, &scope, &key)
        })
        .await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        let query = query.clone();
        Readers::run(&self.0.readers, move |readers, db| readers.list(db, &query)).await
    }

    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        Some(Arc::clone(&self.0.feed))
    }

    async fn changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreError> {
        let query = query.clone();
        Readers::run(&self.0.readers, move |readers, db| {
            readers.changes(db, &query)
        })
        .await
    }

    async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        Readers::run(&self.0.readers, Readers::unfinished).await
    }

    async fn remove_expired(&self, now: Timestamp, max: u16) -> Result<usize, StoreError> {
        self.0
            .write(|answer| Write::RemoveExpired(now, max, answer))
            .await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Readers::run(&self.0.readers, Readers::counts).await
    }

    async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError> {
        Readers::run(&self.0.readers, |_, db| Readers::highest_seq(db)).await
    }

    async fn record_heartbeat(&self, now: Timestamp) -> Result<(), StoreError> {
        self.0.write(|answer| Write::Heartbeat(now, answer)).await
    }

    async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError> {
        Readers::run(&self.0.readers, |_, db| Readers::last_heartbeat(db)).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
