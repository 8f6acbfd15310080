//! Implements the store on an etcd cluster.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::adapters::annotations::Annotations;
use crate::etcd::LeaderTerm;
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
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::annotations::AnnotationKeys;
use crate::operations::store::etcd::batch::Answer;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::reader::Reader;
use crate::operations::store::row::Row;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;

/// Operations in an etcd cluster.
#[derive(Debug)]
pub(crate) struct EtcdStore(pub(super) Arc<OpenKeys>);

/// The open store, shared by the operations and the annotations in it.
pub(super) struct OpenKeys {
    pub(super) reader: Arc<Reader>,
    /// The fence of every write.
    pub(super) term: LeaderTerm,
    /// `None` once it is closed.
    pub(super) writes: Mutex<Option<mpsc::Sender<Write>>>,
    pub(super) feed: Arc<ChangeFeed>,
    /// The name under which this gateway records that it is running.
    pub(super) gateway: String,
    /// The latest time that was recorded as such.
    pub(super) last_beat: AtomicU64,
    /// Whether the lock was renewed at the last attempt.
    pub(super) is_reachable: AtomicBool,
    /// Given when another gateway may write.
    pub(super) lost: Stop,
    /// Ends the task that keeps the lock of the leader, which then frees it.
    pub(super) keeper: Mutex<Option<Stopper>>,
    pub(super) writer_task: Tasks,
    pub(super) keeper_task: Tasks,
}

impl fmt::Debug for OpenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("connection", &self.reader.connection)
            .field("keys", &self.reader.keys.all())
            .finish_non_exhaustive()
    }
}

impl OpenKeys {
    /// Hands a write to the writer task and waits for its commit.
    pub(super) async fn write<T>(
        &self,
        make_write: impl FnOnce(Answer<T>) -> Write,
    ) -> Result<T, StoreError> {
        let writes = self.writes.lock().clone();
        let Some(writes) = writes else {
            return Err(StoreError::Unavailable("closed".to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        if writes.send(make_write(answer)).await.is_err() {
            return Err(StoreError::Unavailable("the writer has ended".to_owned()));
        }
        // The writer ends when the last sender is gone: do not keep one while waiting.
        drop(writes);
        answered
            .await
            .unwrap_or_else(|_gone| Err(StoreError::Indeterminate("the writer ended".to_owned())))
    }

    async fn close(&self) {
        let writes = self.writes.lock().take();
        drop(writes);
        self.writer_task.ended().await;
        // Last: until then no other gateway may write.
        let keeper = self.keeper.lock().take();
        drop(keeper);
        self.keeper_task.ended().await;
    }
}

impl EtcdStore {
    /// The metadata of backups whose VM manager keeps none, in the same cluster.
    pub(crate) fn annotations(&self) -> Arc<dyn Annotations> {
        Arc::new(AnnotationKeys(Arc::clone(&self.0)))
    }
}

fn row_of(operation: &Operation) -> Result<Row, StoreError> {
    Row::of(operation).map_err(|error| StoreError::Unavailable(error.to_string()))
}

#[async_trait]
impl Store for EtcdStore {
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError> {
        let row = row_of(&operation)?;
        self.0
            .write(|answer| Write::Create(operation, row, answer))
            .await
    }

    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError> {
        let row = row_of(&operation)?;
        self.0
            .write(|answer| Write::Update(operation, row, answer))
            .await
    }

    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError> {
        self.0.reader.read(seq).await
    }

    async fn find_by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        let keys = &self.0.reader.keys;
        let key = keys.idempotency(principal.as_str(), scope, key.key.as_str());
        self.0.reader.find_by_key(key).await
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.0.reader.list(query).await
    }

    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        Some(Arc::clone(&self.0.feed))
    }

    async fn changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreError> {
        self.0.reader.changes(query).await
    }

    async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        self.0.reader.unfinished().await
    }

    async fn remove_expired(&self, now: Timestamp, max: u16) -> Result<usize, StoreError> {
        self.0.remove_expired(now, max).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.0.reader.counts().await
    }

    async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError> {
        self.0.reader.highest_seq().await
    }

    async fn record_heartbeat(&self, now: Timestamp) -> Result<(), StoreError> {
        let key = self.0.reader.keys.beat(&self.0.gateway);
        // A clock that was set back does not make an absence longer.
        let before = self
            .0
            .last_beat
            .fetch_max(now.as_millis(), Ordering::AcqRel);
        let value = before.max(now.as_millis()).to_string();
        self.0
            .write(|answer| Write::Put(key, Some(value), answer))
            .await
    }

    async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError> {
        self.0.reader.last_heartbeat().await
    }

    fn lost(&self) -> Option<Stop> {
        Some(self.0.lost.clone())
    }

    fn is_reachable(&self) -> bool {
        self.0.is_reachable.load(Ordering::Acquire)
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
