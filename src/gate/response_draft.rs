//! A response before the headers that all responses have in common are added.

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;

use crate::gate::header_names::RETRY_SOON;
use crate::gate::negotiate::ACCEPT_POST;
use crate::gate::refusal::Refusal;
use crate::gate::request::BodyStream;
use crate::gate::wire;
use crate::model::Operation;

/// Status, headers and body.
#[derive(Debug)]
pub(super) struct ResponseDraft {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The body of a stream; `body` is empty then.
    pub(super) pieces: Option<Box<dyn BodyStream>>,
    /// Whether it has the headers that all responses have in common: the active gateway made it.
    pub(super) is_complete: bool,
}

impl ResponseDraft {
    pub(super) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::with_capacity(12),
            body: Bytes::new(),
            pieces: None,
            is_complete: false,
        }
    }

    /// The response to a read.
    pub(super) fn read(media: &'static str, body: Bytes) -> Self {
        let mut draft = Self::empty(StatusCode::OK);
        draft.body = body;
        draft.fix(header::CONTENT_TYPE, media);
        draft.fix(header::CACHE_CONTROL, "private, no-cache");
        draft
    }

    /// The response to an accepted change. Deviation D13: with headers that lead to the Status.
    pub(super) fn accepted(media: &'static str, operation: &Operation, status_uri: &str) -> Self {
        let mut draft = Self::empty(StatusCode::ACCEPTED);
        draft.body = wire::status(operation);
        draft.fix(header::CONTENT_TYPE, media);
        draft.fix(header::CACHE_CONTROL, "no-store");
        draft.set(header::LOCATION, status_uri);
        draft.set(header::CONTENT_LOCATION, status_uri);
        if !operation.phase.is_final() {
            draft.headers.insert(header::RETRY_AFTER, RETRY_SOON);
        }
        draft
    }

    /// The one place where a refusal becomes a response.
    pub(super) fn refused(
        refusal: &Refusal,
        media: &'static str,
        request: &str,
        method: &http::Method,
    ) -> Self {
        let code = refusal.code();
        let mut draft = Self::empty(code.status());
        draft.body = wire::refusal(refusal, request);
        draft.fix(header::CONTENT_TYPE, media);
        draft.fix(header::CACHE_CONTROL, "no-store");
        if let Some(seconds) = code.retry_after() {
            draft.headers.insert(header::RETRY_AFTER, seconds.into());
        }
        for (name, value) in &refusal.headers {
            let is_post = *name == header::ACCEPT && *method == http::Method::POST;
            let name = if is_post { ACCEPT_POST } else { name.clone() };
            draft.headers.append(name, value.clone());
        }
        draft
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
