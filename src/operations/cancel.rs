//! Cancels an operation: from the request to its durable record.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Revision;
use crate::operations::api::CancelError;
use crate::operations::api::StoreFault;
use crate::operations::core::Core;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::store::StoreError;

/// How long a request waits while another change of the same operation is written.
const WRITE_LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Tries when another change of the operation comes in between.
const TRIES: usize = 3;

/// Makes the request durable. A queued operation ends with it; one that runs is cancelled by the task that works on it.
pub(crate) async fn cancel(
    core: &Arc<Core>,
    seq: OperationSeq,
    only_at: Option<Revision>,
) -> Result<Arc<Operation>, CancelError> {
    for _ in 0..TRIES {
        let Some(write_lock) = core.live.write_lock(seq) else {
            // Not unfinished: it is final, or there is none.
            let found = core.store.raw().read(seq).await;
            let found = found.map_err(|error| core.store.read_fault(&error))?;
            return Err(found.map_or(CancelError::NoSuchOperation, |_| {
                CancelError::NotCancellable
            }));
        };
        let locked = tokio::time::timeout(WRITE_LOCK_PATIENCE, write_lock.lock()).await;
        let Ok(_guard) = locked else {
            return Err(CancelError::Store(StoreFault::Unavailable));
        };
        // It became final, or was not accepted, while this waited for the lock.
        let Some(operation) = core.live.current_state(seq) else {
            continue;
        };
        if only_at.is_some_and(|revision| revision != operation.revision) {
            return Err(CancelError::Changed);
        }
        if operation.phase != Phase::Accepted && !can_be_cancelled(core, &operation) {
            return Err(CancelError::NotCancellable);
        }
        let rules = core.rules(&operation);
        let step = machine::step(&operation, Event::CancelAsked, core.clock.now(), &rules);
        let Ok(step) = step else {
            return Err(CancelError::NotCancellable);
        };
        let Some(state) = step.state else {
            return Ok(operation);
        };
        if let Err(rule) = machine::check_invariants(&state) {
            tracing::error!(operation = %seq, rule, "operation not cancelled");
            return Err(CancelError::Store(StoreFault::Unavailable));
        }
        let state = Arc::new(state);
        match core.store.update(&state).await {
            Ok(()) => {
                core.publish_change(&operation, &state);
                return Ok(state);
            }
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(CancelError::Store(error.public_fault())),
        }
    }
    Err(CancelError::Store(StoreFault::Unavailable))
}

/// Whether the adapter can cancel the operation once it was called.
fn can_be_cancelled(core: &Core, operation: &Operation) -> bool {
    core.backends
        .get(&operation.backend)
        .and_then(|backend| backend.capability.verb(operation.verb()))
        .is_some_and(|capability| capability.cancel)
}
