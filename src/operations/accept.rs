//! From a permitted intent to a durable operation.

use std::sync::Arc;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::Revision;
use crate::operations::engine;
use crate::operations::engine::Core;
use crate::operations::ledger::Place;
use crate::operations::ledger::Shown;
use crate::operations::service::AcceptError;
use crate::operations::service::Accepted;
use crate::operations::service::StoreFault;
use crate::operations::service::Submission;
use crate::operations::store::Created;
use crate::operations::store::StoreError;

/// A place in the ledger that is given back unless it was opened.
struct Reserved<'a> {
    core: &'a Arc<Core>,
    seq: Option<OperationSeq>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.seq.and_then(|seq| self.core.ledger.release(seq)) {
            self.core.start(turn);
        }
    }
}

/// What a caller is told of something that the backend cannot do at all.
pub(crate) fn unsupported() -> Fault {
    Fault::new(
        FaultKind::Unsupported,
        "The VM manager of this VM cannot do that.",
    )
}

/// Makes it durable and hands it on. Runs to its end whether or not anybody waits for the answer.
pub(crate) async fn admit(
    core: &Arc<Core>,
    permit: &Permit,
    submission: Submission,
) -> Result<Accepted, AcceptError> {
    if !permit.covers(&submission.intent) {
        return Err(AcceptError::NotPermitted);
    }
    let operation = Arc::new(record(core, permit, submission));
    if let Some(replayed) = replay(core, &operation).await? {
        return Ok(replayed);
    }
    if core.stop.is_given() {
        return Err(AcceptError::Stopping);
    }
    let Some(backend) = core.backends.get(&operation.backend) else {
        return Err(AcceptError::NoSuchBackend);
    };
    if backend.capability.verb(operation.verb()).is_none() {
        return Err(AcceptError::Backend(unsupported()));
    }
    if let Some(existing) = reserve(core, &operation).await? {
        return Ok(Accepted::Existing(existing));
    }
    let mut reserved = Reserved {
        core,
        seq: Some(operation.seq),
    };
    match create(core, &operation).await {
        Ok(Created::New) => {}
        Ok(Created::Replayed(existing)) => return Ok(Accepted::Existing(existing)),
        Err(StoreError::KeyReused(seq)) => return Err(AcceptError::KeyReused(seq)),
        Err(error) => {
            tracing::warn!(seq = %operation.seq, %error, "operation not accepted");
            return Err(AcceptError::Store(engine::told(&error)));
        }
    }
    reserved.seq = None;
    core.tell(&operation);
    if let Some(turn) = core.ledger.open(&operation) {
        core.start(turn);
    }
    Ok(Accepted::New(operation))
}

fn record(core: &Core, permit: &Permit, submission: Submission) -> Operation {
    Operation {
        seq: submission.seq,
        revision: Revision::FIRST,
        principal: permit.principal().name.clone(),
        request: submission.request,
        backend: permit.backend().clone(),
        intent: submission.intent,
        note: submission.note,
        idempotency: submission.idempotency,
        phase: Phase::Accepted,
        progress: Progress::NONE,
        fault: None,
        baseline: None,
        calls: 0,
        task: None,
        created: core.clock.now(),
        started: None,
        completed: None,
        uncertain_since: None,
        cancel_asked: None,
        acknowledged: None,
        expires: None,
    }
}

/// The operation that was made with the same key, so that a repeated request is answered however full the queues are.
async fn replay(core: &Core, new: &Operation) -> Result<Option<Accepted>, AcceptError> {
    let Some(key) = &new.idempotency else {
        return Ok(None);
    };
    let found = core.store.by_key(&new.principal, key).await;
    match found.map_err(|error| core.fault(&error))? {
        Some(found) if found.idempotency.as_ref() == Some(key) => {
            Ok(Some(Accepted::Existing(found)))
        }
        Some(found) => Err(AcceptError::KeyReused(found.seq)),
        None => Ok(None),
    }
}

/// Takes a place in the queue of the VM, or finds the operation that makes this one needless.
async fn reserve(
    core: &Core,
    operation: &Arc<Operation>,
) -> Result<Option<Arc<Operation>>, AcceptError> {
    loop {
        match core.ledger.reserve(operation) {
            Place::Taken => return Ok(None),
            // Each of these tries again when the other one, which was about to be accepted, was not.
            Place::Same(mut other) => {
                if let Some(other) = settled(&mut other).await {
                    return Ok(Some(other));
                }
            }
            Place::OtherRequest(seq, mut other) => {
                if settled(&mut other).await.is_some() {
                    return Err(AcceptError::KeyReused(seq));
                }
            }
            Place::Busy(mut other) => {
                if let Some(other) = settled(&mut other).await
                    && !other.phase.is_final()
                {
                    return Err(AcceptError::Busy(other));
                }
            }
            Place::NumberInUse => {
                tracing::error!(seq = %operation.seq, "number of an operation used twice");
                return Err(AcceptError::Store(StoreFault::Unavailable));
            }
            Place::VmFull => return Err(AcceptError::VmQueueFull),
            Place::Full => return Err(AcceptError::QueueFull),
        }
    }
}

/// Waits until the other one is durable; `None` when it came to nothing.
async fn settled(other: &mut Shown) -> Option<Arc<Operation>> {
    let durable = other.wait_for(Option::is_some).await.ok()?;
    durable.clone()
}

async fn create(core: &Core, operation: &Arc<Operation>) -> Result<Created, StoreError> {
    let result = match core.store.create(Arc::clone(operation)).await {
        Err(StoreError::Indeterminate(why)) => {
            core.read_back(operation, why).await.map(|()| Created::New)
        }
        result => result,
    };
    core.note(result.as_ref().err());
    result
}
