//! Accepts an operation: from a permitted intent to a durable record in the queue of its VM.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Verb;
use crate::operations::api::AcceptError;
use crate::operations::api::Accepted;
use crate::operations::api::KnownChanges;
use crate::operations::api::StoreFault;
use crate::operations::api::Submission;
use crate::operations::audit;
use crate::operations::core::Backend;
use crate::operations::core::Core;
use crate::operations::live_operations::Admission;
use crate::operations::live_operations::Claim;
use crate::operations::live_operations::OperationWatch;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::store::Created;
use crate::operations::store::StoreError;
use crate::public_text;

/// A place in the queue of a VM that is given back unless the operation became durable.
struct QueuePlace<'a> {
    core: &'a Arc<Core>,
    seq: Option<OperationSeq>,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        // In `drop`, because an acceptance can end by an error, a panic or at shutdown, and the next operation of the
        // VM waits for the place.
        if let Some(claim) = self.seq.and_then(|seq| self.core.live.withdraw(seq)) {
            self.core.start(claim);
        }
    }
}

/// The fault for a request that the backend does not support at all.
pub(crate) fn unsupported() -> Fault {
    Fault::new(
        FaultKind::Unsupported,
        public_text!("The VM manager of this VM does not support this operation."),
    )
}

/// Makes the operation durable. Returns the claim on it when it is the first of its VM; the caller must run it.
///
/// Runs to its end whether or not the client waits for the answer.
pub(crate) async fn accept(
    core: &Arc<Core>,
    permit: &Permit,
    submission: Submission,
) -> Result<(Accepted, Option<Claim>), AcceptError> {
    if !permit.covers(&submission.intent) {
        return Err(AcceptError::NotPermitted);
    }
    let known_changes = submission.known_changes.clone();
    let origin = submission.origin.clone();
    let operation = Arc::new(new_operation(core, permit, submission));
    // Before every other reason to refuse: a client that repeats a request needs its Status most while the gateway is
    // stopping or full.
    if let Some(replayed) = find_replayed(core, &operation).await? {
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
    // The place comes before the record. The order of the queue is that of these calls, whichever commit ends first.
    let is_first = match join_queue(core, &operation, &known_changes).await? {
        Joined::Queue { is_first } => is_first,
        Joined::Existing(existing) => return Ok((Accepted::Existing(existing), None)),
    };
    let mut place = QueuePlace {
        core,
        seq: Some(operation.seq),
    };
    let (operation, slot) = match submit_at_once(core, backend, &operation).filter(|_| is_first) {
        Some((submitted, slot)) => (submitted, Some(slot)),
        None => (operation, None),
    };
    // Before the store: with a required trail nothing is accepted that the trail does not show as asked for.
    audit::record_request(&operation, &origin).map_err(|_not_written| AcceptError::NotRecorded)?;
    match core.store.create(&operation).await {
        Ok(Created::New) => {}
        // Two requests with one key were under way at once; the transaction of the store decided between them.
        Ok(Created::Replayed(existing)) => return Ok((Accepted::Existing(existing), None)),
        Err(StoreError::KeyReused(seq)) => return Err(AcceptError::KeyReused(seq)),
        Err(error) => {
            tracing::warn!(operation = %operation.seq, %error, "operation not accepted");
            return Err(AcceptError::Store(error.public_fault()));
        }
    }
    // Durable: from here on the place belongs to the operation, and only its end gives it up.
    place.seq = None;
    // Before the operation is published: a task may end it right afterwards, and its end is recorded later than this.
    audit::record_acceptance(&operation, &origin);
    core.report_phase(&operation);
    let claim = core.live.publish_new(&operation);
    let claim = claim.map(|claim| Claim { slot, ..claim });
    Ok((Accepted::New(operation), claim))
}

/// An update in the state SUBMITTING, which may be called as soon as that is durable, with its slot at the backend. `None`
/// for an operation that must be ACCEPTED first.
///
/// The caller of an update waits for its end, and a durable write of ACCEPTED would take its time. Nothing is lost without
/// it: SUBMITTING is durable before the call, and with it the acceptance. A crash in between leaves a record that may have
/// been called, so only a verb that may be called twice goes this way.
fn submit_at_once(
    core: &Core,
    backend: &Backend,
    operation: &Operation,
) -> Option<(Arc<Operation>, OwnedSemaphorePermit)> {
    let rules = core.rules(operation);
    let is_replayable_update = operation.verb() == Verb::Update
        && rules.replay_safe
        && !backend.adapter.needs_baseline(&operation.intent);
    if !is_replayable_update {
        return None;
    }
    // Without a free slot the call would have to wait, and a record that waits must be ACCEPTED, which proves that
    // nothing was sent.
    let slot = Arc::clone(&backend.slots).try_acquire_owned().ok()?;
    let step = machine::step(operation, Event::Start(None), core.clock.now(), &rules).ok()?;
    Some((Arc::new(step.state?), slot))
}

fn new_operation(core: &Core, permit: &Permit, submission: Submission) -> Operation {
    Operation {
        preconditions: submission.preconditions,
        note: submission.note,
        idempotency: submission.idempotency,
        ignored: submission.ignored,
        ..Operation::accepted(
            submission.seq,
            permit.principal().name.clone(),
            submission.request,
            permit.backend().clone(),
            submission.intent,
            core.clock.now(),
        )
    }
}

/// The operation that was accepted with the same key, so that a repeated request is answered however full the queues are.
async fn find_replayed(core: &Core, new: &Operation) -> Result<Option<Accepted>, AcceptError> {
    let Some(key) = &new.idempotency else {
        return Ok(None);
    };
    let scope = new.intent.key_scope();
    let found = core
        .store
        .raw()
        .find_by_key(&new.principal, &scope, key)
        .await;
    match found.map_err(|error| core.store.read_fault(&error))? {
        Some(found) if found.idempotency.as_ref() == Some(key) => {
            Ok(Some(Accepted::Existing(found)))
        }
        Some(found) => Err(AcceptError::KeyReused(found.seq)),
        None => Ok(None),
    }
}

/// The result of [`join_queue`].
enum Joined {
    /// The operation has a place in the queue of its VM.
    Queue {
        /// Whether no other operation of the VM is unfinished.
        is_first: bool,
    },
    /// This operation is the same request.
    Existing(Arc<Operation>),
}

/// Takes a place in the queue of the VM, or finds the operation that is the same request.
async fn join_queue(
    core: &Core,
    operation: &Arc<Operation>,
    known_changes: &KnownChanges,
) -> Result<Joined, AcceptError> {
    loop {
        // Decided anew after each wait: the operation in the way may have ended, or others may have come.
        match core.live.admit(operation, known_changes) {
            Admission::Admitted { is_first } => return Ok(Joined::Queue { is_first }),
            // Each of these tries again when the other operation did not become durable.
            Admission::SameRequest(mut other) => {
                if let Some(other) = wait_until_durable(&mut other).await {
                    return Ok(Joined::Existing(other));
                }
            }
            Admission::KeyReused(seq, mut other) => {
                if wait_until_durable(&mut other).await.is_some() {
                    return Err(AcceptError::KeyReused(seq));
                }
            }
            Admission::PreconditionPending(mut other) => {
                if wait_until_durable(&mut other).await.is_some() {
                    return Err(AcceptError::PreconditionFailed);
                }
            }
            Admission::PreconditionFailed => return Err(AcceptError::PreconditionFailed),
            Admission::Busy(mut other) => {
                if let Some(other) = wait_until_durable(&mut other).await
                    // One that ended meanwhile is in no one's way.
                    && !other.phase.is_final()
                {
                    return Err(AcceptError::Busy(other));
                }
            }
            Admission::SequenceInUse => {
                tracing::error!(operation = %operation.seq, "operation sequence number used twice");
                return Err(AcceptError::Store(StoreFault::Unavailable));
            }
            Admission::VmQueueFull => return Err(AcceptError::VmQueueFull),
            Admission::Full => return Err(AcceptError::QueueFull),
        }
    }
}

/// Waits until the other operation is durable; `None` when it was not accepted.
async fn wait_until_durable(other: &mut OperationWatch) -> Option<Arc<Operation>> {
    let durable = other.wait_for(Option::is_some).await.ok()?;
    durable.clone()
}
