//! What the operation store promises, whichever engine is below.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

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
use crate::operations::store::error::StoreError;
use crate::runtime::Stop;

/// The result of a create.
#[derive(Clone, Debug)]
pub(crate) enum Created {
    /// The operation is durable.
    New,
    /// The idempotency key was used for the same request before: this is its operation. Nothing was written.
    Replayed(Arc<Operation>),
}

/// How many records need an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Unknown outcomes that are not acknowledged.
    pub unknown: usize,
    /// Records read so far that this version cannot decode.
    pub set_aside: usize,
}

/// Keeps operations on stable storage. The trait has nothing that only one engine could do.
///
/// `Ok` from a write means that the write is on stable storage. After [`StoreError::Indeterminate`] the caller must read the
/// record back: the write may have been applied.
#[async_trait]
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Writes a new record. The look-up of its idempotency key and the write are one transaction.
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError>;

    /// Replaces the record, if it is at the revision before the one of `operation`.
    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError>;

    /// One record.
    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError>;

    /// The record made with this key by this principal for this target; `Conflict` is never returned.
    async fn find_by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError>;

    /// One page of the records that match. The work for it is limited: see [`ListPage::next`].
    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError>;

    /// Where every write is handed in once it is durable; `None` for a store without that.
    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        None
    }

    /// Records whose last write is in a range.
    async fn changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreError> {
        let _ = query;
        Ok(ChangePage::default())
    }

    /// Every unfinished record, oldest first.
    async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError>;

    /// Removes at most `max` records that have expired. Returns how many.
    async fn remove_expired(&self, now: Timestamp, max: u16) -> Result<usize, StoreError>;

    /// How many records need an operator.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// The highest sequence number that was ever stored, removed records included.
    async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError>;

    /// Records that a gateway is running on this store.
    async fn record_heartbeat(&self, now: Timestamp) -> Result<(), StoreError>;

    /// When a gateway last recorded that it is running on this store.
    async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Given when another gateway may write, so that this one must not; `None` for a store that no other can take over.
    fn lost(&self) -> Option<Stop> {
        None
    }

    /// Whether it answered lately, as far as that is known without a write.
    fn is_reachable(&self) -> bool {
        true
    }

    /// Writes what was handed in, then refuses everything and frees the file.
    async fn close(&self);
}
