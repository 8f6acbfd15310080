//! A request that is passed through, with everything that the proxy needs to send it.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::header;

use crate::gate::cross_site::readable_by;
use crate::gate::handled_request::HandledRequest;
use crate::gate::header_names::REQUEST_ID;
use crate::gate::limiter::AdmittedRequest;
use crate::gate::negotiate;
use crate::gate::passthrough::header_edit::HeaderEdit;
use crate::gate::passthrough::paths;
use crate::gate::passthrough::route::PassThroughRoute;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request;
use crate::gate::request::RequestHead;
use crate::gate::request_target;
use crate::gate::request_target::TargetParts;
use crate::gate::response_draft::ResponseDraft;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::TraceContext;

/// The route of pass-through requests in metrics and logs.
pub(in crate::gate) const ROUTE_NAME: &str = "passthrough";

/// A request to pass through, with everything that the proxy needs.
#[derive(Clone, Debug)]
pub struct PassThrough {
    /// The route that took it.
    pub route: Arc<PassThroughRoute>,
    /// The id of the request.
    pub request: RequestId,
    /// The trace that the request is a part of.
    pub trace: TraceContext,
    /// From which address, as in [`HandledRequest::client`].
    pub client: Option<IpAddr>,
    /// The method as a bounded word.
    pub method: &'static str,
    /// The caller; `None` on routes without authentication.
    pub principal: Option<PrincipalName>,
    /// The request target for the upstream, in origin form.
    pub target: String,
    /// What is changed in the header fields.
    pub edit: HeaderEdit,
    /// Whether the client asks for a WebSocket, and may have one.
    pub upgrade: bool,
    /// What the client accepts, for an answer of the gateway's own.
    accept: Vec<HeaderValue>,
    /// The allowed origin whose pages may read an answer of the gateway's own.
    readable_by: Option<HeaderValue>,
    /// The slot among the concurrent requests, held as long as any copy of this lives.
    _admitted: Arc<AdmittedRequest>,
}

/// What the gate knows about a request beyond its head when it passes it through.
#[derive(Debug)]
pub(in crate::gate) struct PassThroughOrigin {
    pub(in crate::gate) request: RequestId,
    pub(in crate::gate) trace: TraceContext,
    /// The caller; `None` on routes without authentication.
    pub(in crate::gate) principal: Option<PrincipalName>,
    pub(in crate::gate) admitted: AdmittedRequest,
    /// `http` or `https`: how clients reach the gateway.
    pub(in crate::gate) scheme: &'static str,
    /// The allowed origin whose pages may read an answer of the gateway's own.
    pub(in crate::gate) readable_by: Option<HeaderValue>,
}

impl PassThrough {
    /// Prepares a request that may be passed through on the route. `head.peer` is the address that the upstream shall see.
    ///
    /// # Errors
    /// When the path without the prefix is one of this API's own paths.
    pub(in crate::gate) fn prepare(
        route: Arc<PassThroughRoute>,
        head: &RequestHead<'_>,
        parts: TargetParts<'_>,
        origin: PassThroughOrigin,
    ) -> Result<Self, Refusal> {
        let path = if route.strip {
            route.prefix.remainder(parts.path).unwrap_or(parts.path)
        } else {
            parts.path
        };
        // Only stripping can uncover a path of this API: the whole path was checked when the route was chosen.
        if route.strip && paths::is_reserved(path) {
            return Err(Refusal::from(Code::NoSuchRoute));
        }
        let target = if parts.query.is_empty() {
            path.to_owned()
        } else {
            format!(
                "{path}?{}",
                request_target::encode_browser_query(parts.query)
            )
        };
        let accept = head.headers.get_all(header::ACCEPT).iter();
        Ok(Self {
            edit: HeaderEdit::for_request(
                &route,
                head,
                &origin.request,
                origin.trace,
                origin.scheme,
            ),
            request: origin.request,
            trace: origin.trace,
            client: head.peer,
            method: request::method_word(head.method),
            principal: origin.principal,
            target,
            upgrade: route.upgrade && asks_for_websocket(head),
            accept: accept.cloned().collect(),
            readable_by: origin.readable_by,
            _admitted: Arc::new(origin.admitted),
            route,
        })
    }
}

/// Whether the client asks for a WebSocket (RFC 6455 section 4.1): with `Connection: upgrade`, and without a body.
pub(in crate::gate) fn asks_for_websocket(head: &RequestHead<'_>) -> bool {
    let field = |name| head.headers.get_all(name).iter();
    let mut upgrades = field(header::UPGRADE);
    let is_websocket = upgrades
        .next()
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && upgrades.next().is_none();
    let is_named = || {
        let mut names = field(header::CONNECTION)
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    let has_body = || {
        head.headers.contains_key(header::TRANSFER_ENCODING)
            || field(header::CONTENT_LENGTH).any(|length| length.as_bytes() != b"0")
    };
    head.version == http::Version::HTTP_11
        && *head.method == Method::GET
        && is_websocket
        && is_named()
        && !has_body()
}

/// The response when a request could not be passed through.
#[must_use]
pub fn pass_through_failure(pass: &PassThrough, code: Code) -> HandledRequest {
    let refusal = Refusal::from(code);
    let method = if pass.method == "HEAD" {
        Method::HEAD
    } else {
        Method::GET
    };
    let media = negotiate::choose_error_type(pass.accept.iter());
    let mut draft = ResponseDraft::refused(&refusal, media, pass.request.as_str(), &method);
    let length = HeaderValue::from(draft.body.len());
    draft.headers.insert(header::CONTENT_LENGTH, length);
    draft.set(REQUEST_ID, pass.request.as_str());
    if let Some(origin) = &pass.readable_by {
        readable_by(&mut draft.headers, origin);
        draft.fix(header::VARY, "Origin");
    }
    let is_head = method == Method::HEAD;
    let mut response = http::Response::new(if is_head { Bytes::new() } else { draft.body });
    *response.status_mut() = draft.status;
    *response.headers_mut() = draft.headers;
    HandledRequest {
        response,
        pieces: None,
        request: pass.request.clone(),
        trace: Some(pass.trace),
        client: pass.client,
        route: ROUTE_NAME,
        method: pass.method,
        principal: pass.principal.clone(),
        refusal: Some(code.as_str()),
        operation: None,
        close: true,
        audit: None,
    }
}
