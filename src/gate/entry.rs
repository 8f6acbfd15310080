//! Where a request of the API is answered: here on the active gateway, else there.

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::relay::RelayFailure;
use crate::gate::relay::RelayRequest;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::operations::ActiveGuard;

/// Where a request is answered.
pub(super) enum Entered {
    /// Here, while this is held.
    Here(ActiveGuard),
    /// It was answered by the active gateway.
    Elsewhere(ResponseDraft),
}

/// Begins a request of the API: here on the active gateway, else there.
pub(super) async fn enter(
    services: &Services,
    received: &ReceivedRequest<'_>,
    body: &mut IncomingBody<'_>,
) -> Result<Entered, Refusal> {
    loop {
        if let Some(guard) = services.operations.enter() {
            return Ok(Entered::Here(guard));
        }
        if let Some(draft) = hand_on(services, received, body).await? {
            return Ok(Entered::Elsewhere(draft));
        }
    }
}

/// Hands the request on. `None` when this gateway is the active one by now.
async fn hand_on(
    services: &Services,
    received: &ReceivedRequest<'_>,
    body: &mut IncomingBody<'_>,
) -> Result<Option<ResponseDraft>, Refusal> {
    // A request that was handed on already must not go round in a circle.
    let relay = services.shared.relay().filter(|_| !received.is_relayed);
    let Some(relay) = relay else {
        return Err(Refusal::from(Code::Standby));
    };
    let head = &received.head;
    let request = RelayRequest {
        method: head.method,
        target: head.target,
        version: head.version,
        headers: head.headers,
        peer: head.peer,
        certificate: head.certificate,
        request: &received.id,
        trace: received.trace,
        body: match body.is_present() {
            true => Some(body.read_and_keep().await?),
            false => None,
        },
    };
    match relay.relay(&request).await {
        Ok(answer) => Ok(Some(ResponseDraft {
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            pieces: answer.pieces,
            is_complete: true,
        })),
        Err(RelayFailure::Here) => Ok(None),
        Err(RelayFailure::NotSent) => Err(Refusal::from(Code::Standby)),
        Err(RelayFailure::Unknown) => Err(Refusal::from(Code::ActiveGatewayLost)),
    }
}
