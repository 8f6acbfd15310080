//! A reply before it becomes a response, and what all responses have in common.

use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;

use crate::gate::negotiate;
use crate::gate::negotiate::ACCEPT_POST;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::request::HandledRequest;
use crate::gate::wire;
use crate::model::Operation;
use crate::model::RequestId;

/// `Vary` of everything that can be read.
pub(super) const VARY: HeaderValue = HeaderValue::from_static(
    "Accept, Authorization, Prefer, X-Cloud-Client-Specification-Version, \
     X-Compute-Client-Specification-Version, X-Cloud-Specification-Version",
);
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What is allowed, and what of it is left: draft-ietf-httpapi-ratelimit-headers-10.
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Seconds after which an unfinished operation is worth another look.
pub(super) const LOOK_AGAIN: HeaderValue = HeaderValue::from_static("2");

/// Status, headers and body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The body, where it comes in pieces.
    pub(super) pieces: Option<Box<dyn BodyStream>>,
}

impl Reply {
    pub(super) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::with_capacity(12),
            body: Bytes::new(),
            pieces: None,
        }
    }

    /// What a GET answers.
    pub(super) fn read(media: &'static str, body: Bytes) -> Self {
        let mut reply = Self::empty(StatusCode::OK);
        reply.body = body;
        reply.fix(header::CONTENT_TYPE, media);
        reply.fix(header::CACHE_CONTROL, "private, no-cache");
        reply
    }

    /// What an accepted change answers. Deviation D13: with headers that lead to the Status.
    pub(super) fn accepted(media: &'static str, operation: &Operation, status_uri: &str) -> Self {
        let mut reply = Self::empty(StatusCode::ACCEPTED);
        reply.body = wire::status(operation);
        reply.fix(header::CONTENT_TYPE, media);
        reply.fix(header::CACHE_CONTROL, "no-store");
        reply.set(header::LOCATION, status_uri);
        reply.set(header::CONTENT_LOCATION, status_uri);
        if !operation.phase.is_final() {
            reply.headers.insert(header::RETRY_AFTER, LOOK_AGAIN);
        }
        reply
    }

    /// The one place where a refusal becomes a response.
    pub(super) fn refused(
        refusal: &Refusal,
        media: &'static str,
        request: &str,
        method: &http::Method,
    ) -> Self {
        let code = refusal.code();
        let mut reply = Self::empty(code.status());
        reply.body = wire::refusal(refusal, request);
        reply.fix(header::CONTENT_TYPE, media);
        reply.fix(header::CACHE_CONTROL, "no-store");
        if let Some(seconds) = code.retry_after() {
            reply.headers.insert(header::RETRY_AFTER, seconds.into());
        }
        for (name, value) in &refusal.headers {
            let is_post = *name == header::ACCEPT && *method == http::Method::POST;
            let name = if is_post { ACCEPT_POST } else { name.clone() };
            reply.headers.append(name, value.clone());
        }
        reply
    }

    pub(super) fn fix(&mut self, name: HeaderName, value: &'static str) {
        self.headers.insert(name, HeaderValue::from_static(value));
    }

    /// Sets a header whose value is visible ASCII by the way it was made.
    pub(super) fn set(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }

    /// The same with its tag; without its body when the caller has it already.
    pub(super) fn tagged(mut self, tag: &str, is_known: bool) -> Self {
        self.set(header::ETAG, tag);
        if is_known {
            self.status = StatusCode::NOT_MODIFIED;
            self.body = Bytes::new();
            self.headers.remove(header::CONTENT_TYPE);
        }
        self
    }
}

/// The refusal of a request whose head could not be parsed.
#[must_use]
pub fn refuse_unreadable(request: RequestId, client: Option<IpAddr>) -> HandledRequest {
    let refusal = Refusal::from(Code::MalformedRequest);
    let media = negotiate::error_type(std::iter::empty());
    let mut reply = Reply::refused(&refusal, media, request.as_str(), &http::Method::GET);
    reply.set(REQUEST_ID, request.as_str());
    let mut response = http::Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    HandledRequest {
        response,
        pieces: None,
        request,
        client,
        route: "none",
        method: "OTHER",
        principal: None,
        refusal: Some(refusal.code().as_str()),
        operation: None,
        close: true,
        audit: None,
    }
}
