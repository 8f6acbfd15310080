//! Implements the store on an etcd cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;

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
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::annotations::AnnotationKeys;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::open_keys::OpenKeys;
use crate::operations::store::row::Row;
use crate::runtime::Stop;

/// Operations in an etcd cluster.
#[derive(Debug)]
pub(crate) struct EtcdStore(pub(super) Arc<OpenKeys>);

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
