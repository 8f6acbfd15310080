//! What the listener hands in: the head of a request and its unread body.

use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::CertificateName;

/// The head of a request, as received.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method, any token.
    pub method: &'a http::Method,
    /// The request target exactly as it was sent (origin form, absolute form or `*`), not normalised.
    pub target: &'a [u8],
    /// The version of HTTP.
    pub version: http::Version,
    /// The header fields; values may hold any byte but CR, LF and NUL.
    pub headers: &'a http::HeaderMap,
    /// The address the connection comes from.
    pub peer: Option<IpAddr>,
    /// What the client's certificate says, which the handshake found to be good; empty when it showed none.
    pub certificate: &'a [CertificateName],
}

/// Why a body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It took longer than allowed.
    #[error("the body took longer than allowed")]
    TooSlow,
    /// The connection ended, or the framing was wrong.
    #[error("the body could not be read")]
    Broken,
}

/// The body of a request, read at most once and only when it is needed.
#[async_trait]
pub trait Body: Send {
    /// Reads the whole body of at most `limit` bytes. Answers `Expect: 100-continue` first.
    ///
    /// # Errors
    /// [`BodyError`]; the connection must then be closed after the reply.
    async fn read(&mut self, limit: usize) -> Result<Bytes, BodyError>;

    /// Whether the request has a body at all, by its framing.
    fn is_present(&self) -> bool;
}

/// A body that is produced while it is sent.
#[async_trait]
pub trait BodyStream: fmt::Debug + Send + Sync {
    /// The next piece, never empty; `None` at the end and ever after. Each is to be sent at once.
    async fn next(&mut self) -> Option<Bytes>;
}

/// The method as a word of a bounded set, for metrics and logs; `OTHER` for methods that are not registered.
pub(super) fn method_word(method: &http::Method) -> &'static str {
    const KNOWN: &[&str] = &[
        "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    let mut known = KNOWN.iter();
    known
        .find(|word| **word == method.as_str())
        .copied()
        .unwrap_or("OTHER")
}
