//! Requests of the API that another gateway of the cluster answers: the active one.
//!
//! A gateway on standby checks framing, target, route and origin of a request, and hands it on as it came, with what the active gateway
//! cannot see itself: the address of the connection, the names in the client's certificate, the request id and the trace. The active
//! gateway makes every other check, so that limits, credentials and permissions are judged in one place.

use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::Version;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::ReceivedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::model::CertificateName;
use crate::model::RequestId;
use crate::model::TraceContext;
use crate::operations::ActiveGuard;

/// A request to hand on.
#[derive(Clone, Debug)]
pub struct RelayRequest<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request target as it was sent.
    pub target: &'a [u8],
    /// The version of HTTP.
    pub version: Version,
    /// The header fields as they were sent.
    pub headers: &'a HeaderMap,
    /// The address that the connection comes from.
    pub peer: Option<IpAddr>,
    /// The names in the client's certificate.
    pub certificate: &'a [CertificateName],
    /// The id of the request.
    pub request: &'a RequestId,
    /// The trace that the request is a part of.
    pub trace: TraceContext,
    /// The whole body; `None` when it has none.
    pub body: Option<Bytes>,
}

/// The answer of the active gateway.
#[derive(Debug)]
pub struct RelayAnswer {
    /// The status.
    pub status: StatusCode,
    /// The header fields, without those of the connection.
    pub headers: HeaderMap,
    /// The body, unless it comes in pieces.
    pub body: Bytes,
    /// The body of a stream.
    pub pieces: Option<Box<dyn BodyStream>>,
}

/// Why there is no answer of the active gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayFailure {
    /// This gateway has become the active one.
    Here,
    /// No gateway has the request: none is active, or the active one cannot be reached.
    NotSent,
    /// The active gateway may have accepted the request.
    Unknown,
}

/// Hands requests to the active gateway.
#[async_trait]
pub trait Relay: fmt::Debug + Send + Sync {
    /// Hands on one request, and waits a moment for an active gateway where there is none.
    ///
    /// # Errors
    /// [`RelayFailure`].
    async fn relay(&self, request: &RelayRequest<'_>) -> Result<RelayAnswer, RelayFailure>;
}

/// What a gateway on standby says about a request that it hands on. Only another gateway of the cluster may say it.
#[derive(Clone, Debug)]
pub struct RelayedRequest {
    /// The id of the request.
    pub request: RequestId,
    /// The trace that the request is a part of, as a `traceparent`.
    pub trace: String,
}

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
