//! Refuses requests whose head Pingora cannot parse.
//!
//! Pingora answers them by itself, before any code of the gateway sees the request. Its answer is replaced by a refusal of the
//! gateway that looks, counts and logs like every other one.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::Version;
use pingora::protocols::http::date::get_cached_date;

use crate::listener::handler::Handler;
use crate::listener::handler::LOGGED_BYTES_MAX;
use crate::listener::handler::SentResponse;

/// Makes and reports refusals of unreadable requests.
#[derive(Clone)]
pub(super) struct UnreadableRequests(Arc<dyn Handler>);

impl fmt::Debug for UnreadableRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnreadableRequests")
    }
}

impl UnreadableRequests {
    pub(super) fn new(handler: Arc<dyn Handler>) -> Self {
        Self(handler)
    }

    /// Whether Pingora is writing its own answer to a request that it could not parse.
    pub(super) fn is_parser_answer(first_bytes: &[u8]) -> bool {
        first_bytes.starts_with(b"HTTP/1.1 400")
    }

    /// The response as it is sent, which has been reported to the handler. `target` is what was received of the target.
    pub(super) fn refuse(&self, target: &[u8], peer: Option<IpAddr>) -> Vec<u8> {
        let exchange = self.0.refuse_unreadable(peer);
        let (status, body) = (exchange.response.status(), exchange.response.body());
        let reason = status.canonical_reason().unwrap_or_default();
        let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        let date = get_cached_date();
        let fixed = [
            (http::header::DATE, date),
            (http::header::CONTENT_LENGTH, body.len().into()),
            (
                http::header::CONNECTION,
                http::HeaderValue::from_static("close"),
            ),
        ];
        let own = exchange.response.headers().iter();
        let own = own.filter(|(name, _)| fixed.iter().all(|(other, _)| other != *name));
        for (name, value) in own.chain(fixed.iter().map(|(name, value)| (name, value))) {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        let sent = SentResponse {
            // The method, like the rest of the head, could not be parsed.
            method: &Method::default(),
            target: target.get(..LOGGED_BYTES_MAX).unwrap_or(target),
            version: Version::HTTP_11,
            user_agent: None,
            peer,
            status: Some(status.as_u16()),
            bytes: body.len(),
            took: Duration::ZERO,
            delivered: true,
        };
        self.0.done(Some(&exchange), &sent);
        bytes
    }
}
