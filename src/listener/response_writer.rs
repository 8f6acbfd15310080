//! Writes responses of the gateway's own: exact framing, a limit of time for each write, and bodies that come in pieces.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use http::StatusCode;
use http::header;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;

use crate::gate::BodyStream;
use crate::gate::HandledRequest;
use crate::listener::request_body::client_disconnected;
use crate::telemetry::Metrics;

/// Largest piece of a body that one write timeout applies to.
const WRITE_BYTES: usize = 64 * 1024;

/// The response could not be written to its end.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the client reads too slowly")]
    TooSlow,
    #[error("the client has disconnected")]
    Broken(#[from] Box<Error>),
    #[error("panic in the code that produces the response")]
    Panic,
}

/// Writes responses to clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseWriter<'a> {
    /// Limit for one write.
    pub(super) write_timeout: Duration,
    pub(super) metrics: &'a Metrics,
}

impl ResponseWriter<'_> {
    /// Writes the response of the exchange, or a 500 without one. Returns whether all of it was written. `close` ends the
    /// connection afterwards.
    pub(super) async fn write_exchange(
        &self,
        session: &mut ServerSession,
        exchange: Option<&mut HandledRequest>,
        pieces: Option<Box<dyn BodyStream>>,
        close: bool,
    ) -> bool {
        let (mut header, body) = match exchange {
            // The response is moved out; the rest of the exchange is needed for the access log.
            Some(exchange) => frame_response(
                std::mem::take(&mut exchange.response),
                session.req_header().method == Method::HEAD,
            ),
            None => plain_response(StatusCode::INTERNAL_SERVER_ERROR),
        };
        if pieces.is_some() {
            header = frame_unknown_length(header, session);
        }
        if close {
            session.set_keepalive(None);
        }
        let written = match pieces {
            Some(pieces) => self.write_pieces(session, header, pieces).await,
            None => self.write_whole(session, header, body).await,
        };
        match written {
            Ok(()) => true,
            Err(error) => {
                session.set_keepalive(None);
                tracing::debug!(%error, "response not delivered");
                false
            }
        }
    }

    async fn write_whole(
        &self,
        session: &mut ServerSession,
        header: ResponseHeader,
        mut body: Bytes,
    ) -> Result<(), WriteError> {
        self.in_time(session.write_response_header(Box::new(header)))
            .await?;
        loop {
            let part = body.split_to(body.len().min(WRITE_BYTES));
            let last = body.is_empty();
            self.in_time(session.write_response_body(part, last))
                .await?;
            if last {
                return Ok(());
            }
        }
    }

    /// Writes pieces as they are produced, until the last one or until the client disconnects.
    async fn write_pieces(
        &self,
        session: &mut ServerSession,
        header: ResponseHeader,
        mut pieces: Box<dyn BodyStream>,
    ) -> Result<(), WriteError> {
        self.in_time(session.write_response_header(Box::new(header)))
            .await?;
        loop {
            let next = std::panic::AssertUnwindSafe(pieces.next()).catch_unwind();
            // A client that disconnects frees its place at once, not with the next piece.
            let next = tokio::select! {
                biased;
                next = next => next,
                error = client_disconnected(session) => return Err(WriteError::Broken(error)),
            };
            let Ok(piece) = next else {
                self.metrics.process.record_panic("listener");
                tracing::error!("panic while producing a response body");
                return Err(WriteError::Panic);
            };
            let last = piece.is_none();
            let part = piece.unwrap_or_default();
            let written = self.in_time(session.write_response_body(part, last)).await;
            // Cut off, so that what a slow client does not take is kept nowhere: it resumes where it was.
            if let Err(WriteError::TooSlow) = &written {
                self.metrics.requests.record_slow_stream();
            }
            written?;
            if last {
                return Ok(());
            }
        }
    }

    /// One write, within the limit of time.
    async fn in_time(
        &self,
        write: impl Future<Output = pingora::Result<()>>,
    ) -> Result<(), WriteError> {
        match tokio::time::timeout(self.write_timeout, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(WriteError::TooSlow),
        }
    }
}

/// Frames the response exactly, whatever framing fields its maker set.
fn frame_response(response: http::Response<Bytes>, head_only: bool) -> (ResponseHeader, Bytes) {
    let (mut parts, body) = response.into_parts();
    let hops = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    // Checked first because the gate sets none of these: removing costs more than looking.
    if parts.headers.keys().any(|key| hops.contains(key)) {
        for hop in hops {
            parts.headers.remove(hop);
        }
    }
    match parts.status {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => {
            parts.headers.remove(header::CONTENT_LENGTH);
            return (parts.into(), Bytes::new());
        }
        // A body in pieces has no length that a response to HEAD could declare.
        _ if head_only
            && (parts.headers.contains_key(header::CONTENT_LENGTH) || body.is_empty()) => {}
        _ => {
            if exact_length(&parts.headers) != Some(body.len()) {
                parts
                    .headers
                    .insert(header::CONTENT_LENGTH, body.len().into());
            }
        }
    }
    let body = if head_only { Bytes::new() } else { body };
    (parts.into(), body)
}

/// The `Content-Length` of the response, if it is given once and in digits.
fn exact_length(headers: &http::HeaderMap) -> Option<usize> {
    let mut all = headers.get_all(header::CONTENT_LENGTH).iter();
    let text = all.next()?.to_str().ok()?;
    let is_exact = all.next().is_none() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_exact)
}

/// Frames a body of unknown length: chunked in HTTP/1.1, up to the end of the connection in HTTP/1.0; HTTP/2 has its own framing.
fn frame_unknown_length(mut header: ResponseHeader, session: &ServerSession) -> ResponseHeader {
    drop(header.remove_header(&header::CONTENT_LENGTH));
    if !session.is_http2() && session.req_header().version == http::Version::HTTP_11 {
        let inserted = header.insert_header(header::TRANSFER_ENCODING, "chunked");
        if let Err(error) = inserted {
            tracing::error!(%error, "setting transfer encoding failed");
        }
    }
    header
}

/// A response of the listener's own, for requests that the gate did not answer.
pub(super) fn plain_response(status: StatusCode) -> (ResponseHeader, Bytes) {
    let text = format!("{}\n", status.canonical_reason().unwrap_or("error"));
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    parts.headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    parts
        .headers
        .insert(header::CONTENT_LENGTH, text.len().into());
    (parts.into(), Bytes::from(text))
}

/// The status for a request that Pingora gave up; `None` if the client has disconnected.
pub(super) fn status_of_error(error: &Error) -> Option<StatusCode> {
    if let ErrorType::HTTPStatus(code) = error.etype() {
        return StatusCode::from_u16(*code).ok();
    }
    let timed_out = matches!(
        error.etype(),
        ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout
    );
    match error.esource() {
        ErrorSource::Upstream if timed_out => Some(StatusCode::GATEWAY_TIMEOUT),
        ErrorSource::Upstream => Some(StatusCode::BAD_GATEWAY),
        ErrorSource::Downstream => None,
        ErrorSource::Internal | ErrorSource::Unset => Some(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_exact_whatever_the_handler_says() {
        // name, status, for HEAD, Content-Length given, body, Content-Length sent, body sent
        let rows = [
            ("added", 200, false, None, "abc", Some("3"), "abc"),
            ("corrected", 200, false, Some("9"), "abc", Some("3"), "abc"),
            ("kept", 200, false, Some("3"), "abc", Some("3"), "abc"),
            ("signed", 200, false, Some("+3"), "abc", Some("3"), "abc"),
            ("empty", 202, false, None, "", Some("0"), ""),
            ("HEAD", 200, true, Some("9"), "", Some("9"), ""),
            ("HEAD with a body", 200, true, None, "abc", Some("3"), ""),
            ("HEAD of no known length", 200, true, None, "", None, ""),
            ("no content", 204, false, Some("3"), "abc", None, ""),
            ("not modified", 304, false, Some("3"), "abc", None, ""),
        ];
        for (name, status, head_only, given, body, length, sent) in rows {
            let mut answer = http::Response::builder()
                .status(status)
                .header("connection", "keep-alive, x-foo")
                .header("transfer-encoding", "chunked");
            if let Some(given) = given {
                answer = answer.header("content-length", given);
            }
            let answer = answer.body(Bytes::from(body)).unwrap();
            let (header, body) = frame_response(answer, head_only);
            let field = |name| {
                header
                    .headers
                    .get(name)
                    .map(|header| header.to_str().unwrap())
            };
            assert_eq!(header.status, status, "{name}: status");
            assert_eq!(field("content-length"), length, "{name}: length");
            assert_eq!(body, sent, "{name}: body");
            assert_eq!(field("connection"), None, "{name}: the listener decides");
            assert_eq!(field("transfer-encoding"), None, "{name}: neither");
        }
    }

    #[test]
    fn what_pingora_gives_up_has_a_status_unless_the_client_disconnected() {
        let error = |kind, source: ErrorSource| {
            let mut error = Error::new(kind);
            error.esource = source;
            error
        };
        let rows = [
            (
                "chosen",
                error(ErrorType::HTTPStatus(404), ErrorSource::Internal),
                Some(404),
            ),
            (
                "upstream slow",
                error(ErrorType::ReadTimedout, ErrorSource::Upstream),
                Some(504),
            ),
            (
                "upstream gone",
                error(ErrorType::ConnectRefused, ErrorSource::Upstream),
                Some(502),
            ),
            (
                "client gone",
                error(ErrorType::WriteError, ErrorSource::Downstream),
                None,
            ),
            (
                "defect",
                error(ErrorType::InternalError, ErrorSource::Internal),
                Some(500),
            ),
        ];
        for (name, error, expected) in rows {
            assert_eq!(
                status_of_error(&error).map(|status| status.as_u16()),
                expected,
                "{name}"
            );
        }
    }
}
