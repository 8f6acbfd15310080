//! One request to a gateway and the whole answer to it.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use serde_json::Value;

use crate::client::ClientError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// One request. It can be sent again and again.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Vec<u8>>,
    /// How long the gateway may hold the answer back, because it was asked to.
    pub(super) hold: Duration,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, target: String) -> Self {
        Self {
            method,
            target,
            headers: HeaderMap::new(),
            body: None,
            hold: Duration::ZERO,
        }
    }

    /// With this header field.
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With this header field, from text that a person chose.
    pub(super) fn text_header(self, name: HeaderName, value: &str) -> Result<Self, ClientError> {
        let value = HeaderValue::from_str(value).map_err(|_invalid| {
            ClientError::Usage(format!(
                "{name}: {value:?} has characters that cannot be sent"
            ))
        })?;
        Ok(self.header(name, value))
    }

    /// With the key by which a repetition is recognised.
    pub(super) fn idempotency_key(self, key: &str) -> Result<Self, ClientError> {
        self.text_header(IDEMPOTENCY_KEY, key)
    }

    /// With this body.
    pub(super) fn json(mut self, body: &Value) -> Self {
        self.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        self.body = Some(body.to_string().into_bytes());
        self
    }
}

/// The whole answer to one request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// How long the gateway wants not to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
        value.trim().parse().ok().map(Duration::from_secs)
    }

    /// The cursor in the link to a next page (RFC 8288). Nothing else of the link is used, so that it leads nowhere else.
    pub(super) fn next_cursor(&self) -> Option<String> {
        let links = self.headers.get_all(header::LINK).iter();
        let mut links = links.filter_map(|value| value.to_str().ok());
        links.find_map(cursor_in)
    }
}

fn cursor_in(link: &str) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|part| {
        let named = part.trim().strip_prefix("rel=");
        named.is_some_and(|named| named.trim_matches('"') == "next")
    });
    let (_, query) = target.split_once('?')?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, cursor) = pairs.find(|(name, _)| *name == "cursor")?;
    let decoded = percent_encoding::percent_decode_str(cursor).decode_utf8();
    decoded.ok().filter(|_| is_next).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_taken_from_the_link_to_the_next_page() {
        let rows = [
            ("</vms?limit=1&cursor=a%2Fb>; rel=\"next\"", Some("a/b")),
            ("</vms?cursor=c>; title=x; rel=next", Some("c")),
            ("</vms?cursor=c>; rel=\"prev\"", None),
            ("</vms?limit=1>; rel=\"next\"", None),
            ("nothing", None),
        ];
        for (link, expected) in rows {
            assert_eq!(cursor_in(link).as_deref(), expected, "{link}");
        }
    }
}
