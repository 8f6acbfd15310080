//! Waiting for an operation on behalf of a request.

use std::sync::Arc;
use std::time::Duration;

use crate::gate::refusal::Refusal;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::services::Services;
use crate::model::Operation;
use crate::operations::WaitFor;

/// Waits at most so long, if a slot among the waiting requests is free. Returns the operation as it is then, and the time that
/// was granted; `None` where there was no wait.
pub(super) async fn wait_for_operation(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    operation: Arc<Operation>,
    until: WaitFor,
    time: Duration,
) -> Result<(Arc<Operation>, Option<Duration>), Refusal> {
    let slot = if time.is_zero() {
        None
    } else {
        services.acquire_waiter(&request.caller.principal.name)
    };
    let Some(_slot) = slot else {
        return Ok((operation, None));
    };
    // A waiting request counts among the waiters only, or a caller who waits for many backups could not ask for another.
    let _paused = request.admitted.pause();
    let deadline = services.clock.deadline(time);
    let seq = operation.seq;
    let found = tokio::select! {
        // A result that is there is reported even when the gateway is stopping.
        biased;
        found = services.operations.wait(seq, until, deadline) => found?,
        () = services.shared.waiters_released.given() => services.operations.operation(seq).await?,
    };
    Ok((found.unwrap_or(operation), Some(time)))
}
