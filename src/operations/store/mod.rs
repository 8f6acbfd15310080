//! The store of operations: what it promises, whichever engine is below.
//!
//! `Ok` from a write means that the write is on stable storage.

mod record;
mod sqlite;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::api::ListQuery;

pub(crate) use sqlite::SqliteStore;

/// What went wrong with an access to the store. The text inside is for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Not applied: the record is not at the revision the change was made from.
    #[error("the record was changed by somebody else")]
    Conflict,
    /// Not applied: this principal used the idempotency key for another request with the same method and target.
    #[error("the idempotency key was used for another request")]
    KeyReused(OperationSeq),
    /// Not applied, and it may work later: busy, disk full, a record that this version cannot read.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It may or may not have been applied: read back before anything else.
    #[error("the outcome of the write is unknown: {0}")]
    Indeterminate(String),
    /// The disk or the file failed. Nothing is taken any more; the process must end.
    #[error("the store failed: {0}")]
    Fatal(String),
}

impl StoreError {
    /// The word used in metrics.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::KeyReused(_) => "key-reused",
            Self::Unavailable(_) => "unavailable",
            Self::Indeterminate(_) => "indeterminate",
            Self::Fatal(_) => "fatal",
        }
    }
}

/// Why the store of operations cannot be opened. The sentence is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{0} is in use by another snapgate process; stop that one first")]
    InUse(String),
    /// It was written by a version with a newer format.
    #[error("{file} has format {found}, this version reads up to {known}; start the newer version")]
    Newer {
        /// The file.
        file: String,
        /// The format it has.
        found: i64,
        /// The newest format this version reads.
        known: i64,
    },
    /// It is something else, or not whole. It is left as it is.
    #[error("{file} cannot be used as the store of operations and was left as it is: {why}")]
    Damaged {
        /// The file.
        file: String,
        /// What was found.
        why: String,
    },
    /// The file system refused.
    #[error("{file} cannot be opened: {why}")]
    File {
        /// The file.
        file: String,
        /// What the system said.
        why: String,
    },
}

/// What became of a create.
#[derive(Clone, Debug)]
pub(crate) enum Created {
    /// The operation is durable.
    New,
    /// The key was used for the same request before: this is its operation. Nothing was written.
    Replayed(Arc<Operation>),
}

/// How many records need an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Unknown outcomes that nobody acknowledged.
    pub unknown: usize,
    /// Records met so far that this version cannot read.
    pub set_aside: usize,
}

/// Keeps operations. Holds nothing that only one engine could do.
#[async_trait]
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// Writes a new record; the look-up of its idempotency key and the write are one step.
    async fn create(&self, operation: Arc<Operation>) -> Result<Created, StoreError>;

    /// Replaces the record, if it is at the revision before the one of `operation`.
    async fn update(&self, operation: Arc<Operation>) -> Result<(), StoreError>;

    /// One record.
    async fn read(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreError>;

    /// The record made with this key by this principal for this target; `Conflict` is never returned.
    async fn by_key(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Result<Option<Arc<Operation>>, StoreError>;

    /// Records that fit, newest first.
    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreError>;

    /// Every unfinished record, oldest first.
    async fn live(&self) -> Result<Vec<Arc<Operation>>, StoreError>;

    /// Drops at most `max` records whose time is over; tells how many.
    async fn expire(&self, now: Timestamp, max: u16) -> Result<usize, StoreError>;

    /// How many records need an operator.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// The highest number that was ever stored, dropped records included.
    async fn highest(&self) -> Result<Option<OperationSeq>, StoreError>;

    /// Notes that a gateway is at work on this store.
    async fn beat(&self, now: Timestamp) -> Result<(), StoreError>;

    /// When a gateway was last known to be at work on this store.
    async fn last_beat(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Ends it: what was taken is written, then everything is refused and the file is free.
    async fn close(&self);
}
