//! What operators may see and decide of stored operations, on any store: shared by the offline store and a running gateway.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::BackendName;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::model::Showing;
use crate::model::Timestamp;
use crate::model::limits;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::ListStart;
use crate::operations::list_query::Selector;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::store::Counts;
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

/// How many records need an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreAttention {
    /// Unknown outcomes that are not acknowledged.
    pub unknown: usize,
    /// Records that this version cannot read.
    pub set_aside: usize,
}

impl From<Counts> for StoreAttention {
    fn from(counts: Counts) -> Self {
        Self {
            unknown: counts.unknown,
            set_aside: counts.set_aside,
        }
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

/// The operations that an operator wants to see, newest first. `backends` are those of the configuration.
pub(super) async fn list_operations(
    store: &dyn Store,
    wanted: &OperatorQuery,
    backends: &BTreeSet<BackendName>,
) -> Result<Vec<Arc<Operation>>, StoreError> {
    let showing = wanted.showing;
    let is_unfinished = matches!(showing, Showing::Unfinished | Showing::Held);
    let mut query = ListQuery {
        limit: limits::PAGE_MAX,
        start: wanted.older_than.map(ListStart::AfterOperation),
        state: showing.state(),
        unfinished: is_unfinished.then_some(true),
        principal: wanted.principal.clone(),
        selector: Selector {
            verb: wanted.verb,
            vm: wanted.vm.clone(),
            backup: wanted.backup.clone(),
        },
        since: wanted.since,
        before: wanted.until,
        ..ListQuery::default()
    };
    let is_shown = |operation: &Arc<Operation>| {
        let backend = &operation.backend;
        wanted.backend.as_ref().is_none_or(|name| name == backend)
            && (showing != Showing::Unknown || operation.acknowledged.is_none())
            && (showing != Showing::Held || !backends.contains(backend))
    };
    let mut shown = Vec::new();
    loop {
        let page = store.list(&query).await?;
        query.start = page.next.map(ListStart::After);
        shown.extend(page.operations.into_iter().filter(is_shown));
        if page.next.is_none() || shown.len() >= wanted.limit {
            shown.truncate(wanted.limit);
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
