//! What operators may see and decide of stored operations, on any store: shared by the offline store and a running gateway.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperationState;
use crate::model::Showing;
use crate::model::Timestamp;
use crate::model::limits;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::ListStart;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::store::OpenError;
use crate::operations::store::Store;
use crate::operations::store::StoreError;

/// Why the request of an operator failed. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OfflineStoreError {
    /// Nothing was ever stored; reading does not create a store.
    #[error("no operation store at {0}")]
    Absent(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be read or written.
    #[error("{0}")]
    Store(String),
    /// There is none of that number.
    #[error("no such operation: {0} (it may have expired)")]
    NoSuchOperation(OperationSeq),
    /// Its outcome is known, or still searched for.
    #[error("operation {0} is {1}: only an unknown outcome can be acknowledged")]
    NotUnknown(OperationSeq, &'static str),
    /// It is finished, or the VM manager cannot cancel it.
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
    /// Its state now.
    pub operation: Arc<Operation>,
    /// Whether this decision changed the record: true for exactly one of several operators who decide the same.
    pub is_new: bool,
}

impl OperatorDecision {
    pub(super) const fn changed(operation: Arc<Operation>) -> Self {
        Self {
            operation,
            is_new: true,
        }
    }

    pub(super) const fn unchanged(operation: Arc<Operation>) -> Self {
        Self {
            operation,
            is_new: false,
        }
    }
}

/// At most `limit` operations older than `before`, newest first.
pub(super) async fn list_operations(
    store: &dyn Store,
    showing: Showing,
    before: Option<OperationSeq>,
    limit: usize,
) -> Result<Vec<Arc<Operation>>, StoreError> {
    let mut query = ListQuery {
        limit: limits::PAGE_MAX,
        start: before.map(ListStart::AfterOperation),
        state: (showing == Showing::Unknown).then_some(OperationState::Unknown),
        unfinished: (showing == Showing::Unfinished).then_some(true),
        ..ListQuery::default()
    };
    let is_shown = |operation: &Arc<Operation>| {
        showing != Showing::Unknown || operation.acknowledged.is_none()
    };
    let mut shown = Vec::new();
    loop {
        let page = store.list(&query).await?;
        query.start = page.next.map(ListStart::After);
        shown.extend(page.operations.into_iter().filter(is_shown));
        if page.next.is_none() || shown.len() >= limit {
            shown.truncate(limit);
            return Ok(shown);
        }
    }
}

/// The record with the acknowledgement; `None` when it is acknowledged already.
pub(super) fn acknowledge(
    operation: &Operation,
    now: Timestamp,
    retention: Duration,
) -> Result<Option<Arc<Operation>>, OfflineStoreError> {
    let step = machine::step(operation, Event::Acknowledge, now, &rules(retention));
    let step = step.map_err(|_illegal| {
        OfflineStoreError::NotUnknown(operation.seq, operation.phase.as_str())
    })?;
    Ok(step.state.map(Arc::new))
}

/// The record with the request to cancel it; `None` when it has one already.
pub(super) fn cancel_offline(
    operation: &Operation,
    now: Timestamp,
    retention: Duration,
) -> Result<Option<Arc<Operation>>, OfflineStoreError> {
    let step = machine::step(operation, Event::CancelAsked, now, &rules(retention));
    let step = step.map_err(|_illegal| {
        OfflineStoreError::NotCancellable(operation.seq, operation.phase.as_str())
    })?;
    Ok(step.state.map(Arc::new))
}

/// The rules for decisions of an operator, none of which depends on a VM manager.
const fn rules(retention: Duration) -> Rules {
    Rules {
        replay_safe: false,
        settle: Duration::ZERO,
        probe_window: Duration::ZERO,
        accept_ttl: Duration::ZERO,
        resume_ttl: Duration::ZERO,
        retention,
    }
}
