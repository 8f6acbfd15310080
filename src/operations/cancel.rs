//! From the wish that an operation be stopped to its durable record.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Revision;
use crate::operations::api::CancelError;
use crate::operations::api::StoreFault;
use crate::operations::core;
use crate::operations::core::Core;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::store::StoreError;

/// How long a wish waits for a write of the same operation that is under way.
const PEN_PATIENCE: Duration = Duration::from_secs(5);
/// Repeats of a write that lost against another one.
const TRIES: usize = 3;

/// Makes the wish durable. A queued operation ends with it.
pub(crate) async fn ask(
    core: &Arc<Core>,
    seq: OperationSeq,
    only_at: Option<Revision>,
) -> Result<Arc<Operation>, CancelError> {
    for _ in 0..TRIES {
        let Some(pen) = core.ledger.pen(seq) else {
            // Not unfinished: there is nothing left to stop, if there ever was anything.
            let found = core.store.read(seq).await;
            let found = found.map_err(|error| core.fault(&error))?;
            return Err(found.map_or(CancelError::NoSuchOperation, |_| {
                CancelError::NotCancellable
            }));
        };
        let Ok(_pen) = tokio::time::timeout(PEN_PATIENCE, pen.lock()).await else {
            return Err(CancelError::Store(StoreFault::Unavailable));
        };
        // It became final, or came to nothing, while the pen was waited for.
        let Some(operation) = core.ledger.current(seq) else {
            continue;
        };
        if only_at.is_some_and(|revision| revision != operation.revision) {
            return Err(CancelError::Changed);
        }
        if operation.phase != Phase::Accepted && !can_be_stopped(core, &operation) {
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
            tracing::error!(%seq, rule, "operation not stopped");
            return Err(CancelError::Store(StoreFault::Unavailable));
        }
        let state = Arc::new(state);
        match core.update(&state).await {
            Ok(()) => {
                core.written(&operation, &state);
                return Ok(state);
            }
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(CancelError::Store(core::told(&error))),
        }
    }
    Err(CancelError::Store(StoreFault::Unavailable))
}

/// Whether the adapter can stop it once it was called.
fn can_be_stopped(core: &Core, operation: &Operation) -> bool {
    core.backends
        .get(&operation.backend)
        .and_then(|backend| backend.capability.verb(operation.verb()))
        .is_some_and(|it| it.cancel)
}
