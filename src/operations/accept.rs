//! From a permitted intent to a durable operation.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::Revision;
use crate::model::Verb;
use crate::operations::api::AcceptError;
use crate::operations::api::Accepted;
use crate::operations::api::KnownChanges;
use crate::operations::api::StoreFault;
use crate::operations::api::Submission;
use crate::operations::core;
use crate::operations::core::Backend;
use crate::operations::core::Core;
use crate::operations::live_operations::Place;
use crate::operations::live_operations::Shown;
use crate::operations::live_operations::Turn;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::store::Created;
use crate::operations::store::StoreError;
use crate::operations::trail;

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

/// Makes it durable; the turn, if it is its turn, is for the caller to take. Runs to its end whether or not anybody
/// waits for the answer.
pub(crate) async fn admit(
    core: &Arc<Core>,
    permit: &Permit,
    submission: Submission,
) -> Result<(Accepted, Option<Turn>), AcceptError> {
    if !permit.covers(&submission.intent) {
        return Err(AcceptError::NotPermitted);
    }
    let seen = submission.seen.clone();
    let origin = submission.origin.clone();
    let operation = Arc::new(record(core, permit, submission));
    if let Some(replayed) = replay(core, &operation).await? {
        return Ok((replayed, None));
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
    let first = match reserve(core, &operation, &seen).await? {
        Reservation::Taken { first } => first,
        Reservation::Needless(existing) => return Ok((Accepted::Existing(existing), None)),
    };
    let mut reserved = Reserved {
        core,
        seq: Some(operation.seq),
    };
    let (operation, slot) = match at_once(core, backend, &operation).filter(|_| first) {
        Some((begun, slot)) => (begun, Some(slot)),
        None => (operation, None),
    };
    trail::asked(&operation, &origin).map_err(|_not_written| AcceptError::NotRecorded)?;
    match create(core, &operation).await {
        Ok(Created::New) => {}
        Ok(Created::Replayed(existing)) => return Ok((Accepted::Existing(existing), None)),
        Err(StoreError::KeyReused(seq)) => return Err(AcceptError::KeyReused(seq)),
        Err(error) => {
            tracing::warn!(seq = %operation.seq, %error, "operation not accepted");
            return Err(AcceptError::Store(core::told(&error)));
        }
    }
    reserved.seq = None;
    trail::accepted(&operation, &origin);
    core.tell(&operation);
    let turn = core.ledger.open(&operation).map(|turn| Turn {
        begun: slot,
        ..turn
    });
    Ok((Accepted::New(operation), turn))
}

/// An update that may be called for as soon as it is durable, already in the state that says so, with its place at the
/// backend. `None` where it goes the usual way.
///
/// The caller of an update waits for its end, and the durable write of ACCEPTED would be one more on that way. Nothing
/// is given up by leaving it out: SUBMITTING is durable before the call, and with it the acceptance. A crash in between
/// leaves a record that may have been called for, which is why only a verb that may be called for twice is begun so.
fn at_once(
    core: &Core,
    backend: &Backend,
    operation: &Operation,
) -> Option<(Arc<Operation>, OwnedSemaphorePermit)> {
    let rules = core.rules(operation);
    let fits = operation.verb() == Verb::Update
        && rules.replay_safe
        && !backend.adapter.needs_baseline(&operation.intent);
    if !fits {
        return None;
    }
    let slot = Arc::clone(&backend.slots).try_acquire_owned().ok()?;
    let step = machine::step(operation, Event::Start(None), core.clock.now(), &rules).ok()?;
    Some((Arc::new(step.state?), slot))
}

fn record(core: &Core, permit: &Permit, submission: Submission) -> Operation {
    Operation {
        seq: submission.seq,
        revision: Revision::FIRST,
        principal: permit.principal().name.clone(),
        request: submission.request,
        backend: permit.backend().clone(),
        intent: submission.intent,
        preconditions: submission.preconditions,
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
        ignored: submission.ignored,
        resume_expired: false,
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
    let scope = new.intent.key_scope();
    let found = core.store.by_key(&new.principal, &scope, key).await;
    match found.map_err(|error| core.fault(&error))? {
        Some(found) if found.idempotency.as_ref() == Some(key) => {
            Ok(Some(Accepted::Existing(found)))
        }
        Some(found) => Err(AcceptError::KeyReused(found.seq)),
        None => Ok(None),
    }
}

/// What came of asking for a place in the queue of the VM.
enum Reservation {
    /// It has one, `first` in the queue or not.
    Taken { first: bool },
    /// This one makes it needless.
    Needless(Arc<Operation>),
}

/// Takes a place in the queue of the VM, or finds the operation that makes this one needless.
async fn reserve(
    core: &Core,
    operation: &Arc<Operation>,
    seen: &KnownChanges,
) -> Result<Reservation, AcceptError> {
    loop {
        match core.ledger.reserve(operation, seen) {
            Place::Taken { first } => return Ok(Reservation::Taken { first }),
            // Each of these tries again when the other one, which was about to be accepted, was not.
            Place::Same(mut other) => {
                if let Some(other) = settled(&mut other).await {
                    return Ok(Reservation::Needless(other));
                }
            }
            Place::OtherRequest(seq, mut other) => {
                if settled(&mut other).await.is_some() {
                    return Err(AcceptError::KeyReused(seq));
                }
            }
            Place::Changing(mut other) => {
                if settled(&mut other).await.is_some() {
                    return Err(AcceptError::PreconditionFailed);
                }
            }
            Place::Changed => return Err(AcceptError::PreconditionFailed),
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
