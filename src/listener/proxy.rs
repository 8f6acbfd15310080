//! Each request of the API port: handed to the handler, and its answer written, within limits.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use http::StatusCode;
use http::header;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::http::ResponseHeader;
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::proxy::FailToProxy;
use pingora::proxy::ProxyHttp;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::Mutex;

use crate::gate::BodyStream;
use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::RequestHead;
use crate::listener::Limits;
use crate::listener::body;
use crate::listener::body::Pace;
use crate::listener::body::SessionBody;
use crate::listener::connection_lifecycle;
use crate::listener::connection_lifecycle::OneOfMany;
use crate::listener::forward::Around;
use crate::listener::forward::Carry;
use crate::listener::forward::Direct;
use crate::listener::forward::Upstreams;
use crate::listener::forward::is_plain;
use crate::listener::handler::Handler;
use crate::listener::handler::LOGGED_BYTES_MAX;
use crate::listener::handler::SentResponse;
use crate::listener::request_head::Head;
use crate::listener::request_head::framing_of;
use crate::listener::request_head::head_of;
use crate::listener::tls::NoLongerValid;
use crate::listener::tls::Peer;
use crate::model::CertificateName;
use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::telemetry::Metrics;

/// Largest piece of an answer that one write timeout is for.
const WRITE_BYTES: usize = 64 * 1024;

/// Answers every request by the handler.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) direct: Direct,
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// Connections end with their answer.
    pub(super) leaving: Stop,
}

/// One request on its way.
#[derive(Debug)]
pub(super) struct Context {
    began: Instant,
    exchange: Option<HandledRequest>,
    carry: Option<Carry>,
    told: bool,
    /// The request target as it was sent.
    target: Vec<u8>,
    /// Present for HTTP/2: the connection is busy as long as it is there.
    one_of_many: Option<OneOfMany>,
}

/// The answer could not be written to its end.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the client takes the answer too slowly")]
    TooSlow,
    #[error("the client is gone")]
    Broken(#[from] Box<Error>),
    #[error("the code that makes the answer panicked")]
    Panic,
}

/// Why the handler decided nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undecided {
    Panicked,
    /// The client waits for no answer any more.
    ClientGone,
}

impl Proxy {
    /// Calls the handler. Reads end when the client has gone away; changes run to their end.
    async fn answer(
        &self,
        head: &Head,
        peer: Option<IpAddr>,
        certificate: &[CertificateName],
        session: &mut ServerSession,
    ) -> Result<GateDecision, Undecided> {
        let parts = RequestHead {
            method: &head.method,
            target: &head.target,
            version: head.version,
            headers: &head.headers,
            peer,
            certificate,
        };
        let received = AtomicBool::new(session.is_body_empty());
        let session = Mutex::new(session);
        let pace = Pace::of(&self.limits);
        let mut body = SessionBody::new(&session, pace, &*self.clock, &received);
        let handled = self.handler.handle(parts, &mut body);
        // Nothing of the request is used after a panic but its head, which the handler cannot change.
        let handled = std::panic::AssertUnwindSafe(handled).catch_unwind();
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        let handled = tokio::select! {
            biased;
            handled = handled => handled,
            () = body::gone(&session, &received), if is_read => return Err(Undecided::ClientGone),
        };
        if let Ok(decision) = handled {
            return Ok(decision);
        }
        self.metrics.panic("listener");
        tracing::error!("panic while a request was handled");
        Err(Undecided::Panicked)
    }

    /// Sends the answer and, when the connection ends with it, sees to it that the client can read it.
    async fn reply(
        &self,
        session: &mut ServerSession,
        exchange: Option<&mut HandledRequest>,
        pieces: Option<Box<dyn BodyStream>>,
    ) -> bool {
        let close = exchange.as_ref().is_none_or(|exchange| exchange.close) || self.is_last();
        let (mut header, body) = match exchange {
            // What is told of it afterwards is beside the answer itself.
            Some(exchange) => response(
                std::mem::take(&mut exchange.response),
                session.req_header().method == Method::HEAD,
            ),
            None => plain(StatusCode::INTERNAL_SERVER_ERROR),
        };
        if pieces.is_some() {
            header = unended(header, session);
        }
        if close {
            session.set_keepalive(None);
        }
        let written = match pieces {
            Some(pieces) => self.stream(session, header, pieces).await,
            None => self.write(session, header, body).await,
        };
        match written {
            Ok(()) => true,
            Err(error) => {
                session.set_keepalive(None);
                tracing::debug!(%error, "answer not delivered");
                false
            }
        }
    }

    /// Whether the connection takes no other request after this one.
    fn is_last(&self) -> bool {
        self.leaving.is_given()
            || connection_lifecycle::is_overread()
            || connection_lifecycle::is_malformed()
    }

    async fn write(
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

    /// Sends pieces as they come to be, until there are no more or the client is gone.
    async fn stream(
        &self,
        session: &mut ServerSession,
        header: ResponseHeader,
        mut pieces: Box<dyn BodyStream>,
    ) -> Result<(), WriteError> {
        self.in_time(session.write_response_header(Box::new(header)))
            .await?;
        loop {
            let next = std::panic::AssertUnwindSafe(pieces.next()).catch_unwind();
            let Ok(piece) = next.await else {
                self.metrics.panic("listener");
                tracing::error!("panic while an answer was made");
                return Err(WriteError::Panic);
            };
            let last = piece.is_none();
            let part = piece.unwrap_or_default();
            self.in_time(session.write_response_body(part, last))
                .await?;
            if last {
                return Ok(());
            }
        }
    }

    /// One write, as long as that may take.
    async fn in_time(
        &self,
        write: impl Future<Output = pingora::Result<()>>,
    ) -> Result<(), WriteError> {
        match tokio::time::timeout(self.limits.write_timeout, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(WriteError::TooSlow),
        }
    }

    /// Tells the handler what became of the request, once.
    fn tell(&self, session: &ServerSession, context: &mut Context, delivered: bool) {
        if std::mem::replace(&mut context.told, true) {
            return;
        }
        let head = session.req_header();
        let access = SentResponse {
            method: &head.method,
            target: bounded(&context.target),
            version: head.version,
            user_agent: head
                .headers
                .get(header::USER_AGENT)
                .map(|user_agent| bounded(user_agent.as_bytes())),
            peer: peer(session),
            status: session
                .response_written()
                .map(|response_written| response_written.status.as_u16())
                .filter(|it| *it >= 200 || *it == 101),
            bytes: session.body_bytes_sent(),
            took: self
                .clock
                .instant()
                .saturating_duration_since(context.began),
            delivered,
        };
        match &context.carry {
            Some(carry) => self.handler.passed(&carry.pass, &carry.way(), &access),
            None => self.handler.done(context.exchange.as_ref(), &access),
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    /// None: there is nothing to compress, and what is there by default costs something even when it does nothing.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    /// Pingora calls this once the head of the request is complete.
    fn new_ctx(&self) -> Context {
        connection_lifecycle::request_began();
        Context {
            began: self.clock.instant(),
            exchange: None,
            carry: None,
            told: false,
            target: Vec::new(),
            one_of_many: None,
        }
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if let Some(session) = session.as_downstream().as_http1() {
            let framing = framing_of(&session.req_header().headers);
            connection_lifecycle::head_ended(&session.get_headers_raw_bytes(), framing);
        }
        if session.req_header().version < http::Version::HTTP_11 {
            // HTTP/1.0 knows no interim answers.
            session.set_ignore_info_resp(true);
        }
        if session.is_http2() {
            context.one_of_many = encrypted(session).map(|it| it.phases.request());
        }
        // Pingora has turned keep-alive off where the framing is doubtful or the client cannot do it: never turn it on again.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(keepalive_seconds(&self.limits)));
        }
        session.set_close_on_response_before_downstream_finish(true);
        session.set_read_timeout(Some(self.limits.body_timeout));
        session.set_write_timeout(Some(self.limits.write_timeout));
        session.set_total_drain_timeout(Some(self.limits.body_timeout));
        // A client that closed its side a while ago wants no answer (see `connection.rs`).
        session.set_abort_on_close(true);
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> pingora::Result<bool> {
        let session = session.as_downstream_mut();
        let head = head_of(session)?;
        let peer = peer(session);
        let certificate = certificate(session, self.clock.now()).map_err(|error| {
            let unauthorized = ErrorType::HTTPStatus(StatusCode::UNAUTHORIZED.as_u16());
            Error::explain(unauthorized, error.to_string()).into_down()
        })?;
        let answered = self.answer(&head, peer, &certificate, session).await;
        context.target = head.target;
        match answered {
            Ok(GateDecision::Answer(exchange)) => context.exchange = Some(exchange),
            Ok(GateDecision::PassThrough(pass)) => {
                let is_plain = is_plain(session, pass.upgrade);
                let carry = context.carry.insert(Carry::new(pass));
                if is_plain {
                    let around = Around {
                        session,
                        upstreams: &self.upstreams,
                        direct: &self.direct,
                        clock: &*self.clock,
                        leaving: &self.leaving,
                    };
                    // Boxed: answers of our own need not carry its room.
                    Box::pin(carry.ask(around)).await?;
                    return Ok(true);
                }
                if carry.pass.upgrade {
                    connection_lifecycle::open();
                }
                session.set_read_timeout(Some(carry.patience(&self.upstreams)));
                return Ok(false);
            }
            Err(Undecided::ClientGone) => {
                self.tell(session, context, false);
                let error = Error::explain(ErrorType::ConnectionClosed, "the client is gone");
                return Err(error.into_down());
            }
            Err(Undecided::Panicked) => {}
        }
        let pieces = context
            .exchange
            .as_mut()
            .and_then(|exchange| exchange.pieces.take());
        let unended = pieces.is_some();
        let delivered = self.reply(session, context.exchange.as_mut(), pieces).await;
        self.tell(session, context, delivered);
        if unended && !delivered {
            // Pingora would put a proper end to what broke off.
            return Err(Error::explain(ErrorType::WriteError, "the answer broke off").into_down());
        }
        // HTTP/2 tells the client to send no more, without ending the connection.
        if delivered && session.get_keepalive().is_none() && !session.is_http2() {
            body::discard(session).await;
        }
        Ok(true)
    }

    /// Only requests that are passed on come this far, here and in all that follows.
    async fn upstream_peer(
        &self,
        _: &mut Session,
        context: &mut Context,
    ) -> pingora::Result<Box<HttpPeer>> {
        let now = self.clock.instant();
        match &mut context.carry {
            Some(carry) => {
                carry.choose(&self.upstreams, now)?;
                Ok(Box::new(carry.peer()?))
            }
            None => Error::e_explain(ErrorType::HTTPStatus(404), "not to be passed on"),
        }
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: RawFd,
        digest: Option<&Digest>,
        context: &mut Context,
    ) -> pingora::Result<()> {
        context.carry.as_ref().map_or(Ok(()), |it| {
            it.connected(digest.and_then(|digest| digest.ssl_digest.as_deref()))
        })
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        context
            .carry
            .as_ref()
            .map_or(Ok(()), |it| it.rewrite(session.as_downstream(), request))
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Context,
    ) -> pingora::Result<()> {
        let now = self.clock.instant();
        let upgraded = session.was_upgraded();
        context
            .carry
            .as_mut()
            .map_or(Ok(()), |it| it.count(body, end, upgraded, now))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if self.is_last() {
            session.set_keepalive(None);
        }
        let now = self.clock.instant();
        context.carry.as_mut().map_or(Ok(()), |it| {
            it.answered(session.as_downstream_mut(), response, now)
        })
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        context: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        match &mut context.carry {
            Some(carry) => carry.failed(session.as_downstream(), error),
            None => error,
        }
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Context,
        _: bool,
    ) -> Box<Error> {
        match &mut context.carry {
            Some(carry) => carry.failed(session.as_downstream(), error),
            None => error,
        }
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut Context,
    ) -> FailToProxy {
        if let Some(carry) = &mut context.carry {
            let written = session.response_written();
            let sent = written
                .map(|written| written.status.as_u16())
                .filter(|it| *it >= 200);
            let code = carry.code(error).filter(|_| sent.is_none());
            let mut error_code = sent.unwrap_or(0);
            if let Some(code) = code {
                let mut exchange = self.handler.failed(&carry.pass, code);
                error_code = exchange.response.status().as_u16();
                let session = session.as_downstream_mut();
                if self.reply(session, Some(&mut exchange), None).await {
                    body::discard(session).await;
                }
            }
            return FailToProxy {
                error_code,
                can_reuse_downstream: false,
            };
        }
        let status = status_of(error);
        if let (Some(status), None) = (status, session.response_written()) {
            let (header, body) = plain(status);
            let sent = session
                .as_downstream_mut()
                .write_error_response(header, body)
                .await;
            if let Err(error) = sent {
                tracing::debug!(%error, "error answer not delivered");
            }
        }
        FailToProxy {
            error_code: status.map_or(0, |it| it.as_u16()),
            can_reuse_downstream: false,
        }
    }

    /// What clients do wrong is no error of ours.
    fn suppress_error_log(&self, _: &Session, _: &Context, error: &Error) -> bool {
        *error.esource() == ErrorSource::Downstream
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        self.tell(session.as_downstream(), context, error.is_none());
        connection_lifecycle::request_ended();
    }
}

/// Whole seconds for Pingora's timer between requests, at least one: zero means for ever there.
fn keepalive_seconds(limits: &Limits) -> u64 {
    let whole = limits.idle_timeout.as_secs();
    let part = u64::from(limits.idle_timeout.subsec_nanos() > 0);
    whole.saturating_add(part).max(1)
}

/// What is kept with the connection if it is encrypted.
fn encrypted(session: &ServerSession) -> Option<&Peer> {
    let digest = session.digest()?.ssl_digest.as_ref()?;
    connection_lifecycle::peer_of(digest)
}

/// What the certificate of the client says, as far as it counts now.
fn certificate(
    session: &ServerSession,
    now: Timestamp,
) -> Result<Arc<[CertificateName]>, NoLongerValid> {
    match encrypted(session) {
        Some(peer) => peer.client.names_at(now),
        None => Ok(Arc::default()),
    }
}

/// The address the connection comes from.
fn peer(session: &ServerSession) -> Option<IpAddr> {
    session
        .client_addr()?
        .as_inet()
        .map(std::net::SocketAddr::ip)
}

fn bounded(bytes: &[u8]) -> &[u8] {
    bytes.get(..LOGGED_BYTES_MAX).unwrap_or(bytes)
}

/// The answer with exact framing, whatever its maker put in.
fn response(answer: http::Response<Bytes>, head_only: bool) -> (ResponseHeader, Bytes) {
    let (mut parts, body) = answer.into_parts();
    let hops = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    // Hardly ever: nobody who makes answers says such a thing.
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
        // What comes in pieces has no length that HEAD could tell.
        _ if head_only
            && (parts.headers.contains_key(header::CONTENT_LENGTH) || body.is_empty()) => {}
        _ => {
            if told_length(&parts.headers) != Some(body.len()) {
                parts
                    .headers
                    .insert(header::CONTENT_LENGTH, body.len().into());
            }
        }
    }
    let body = if head_only { Bytes::new() } else { body };
    (parts.into(), body)
}

/// The length that the maker of an answer told, once and in digits.
fn told_length(headers: &http::HeaderMap) -> Option<usize> {
    let mut all = headers.get_all(header::CONTENT_LENGTH).iter();
    let text = all.next()?.to_str().ok()?;
    let is_exact = all.next().is_none() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_exact)
}

/// The head of an answer whose length nobody knows: chunked where HTTP/1.1 wants it said, up to the end of the
/// connection in HTTP/1.0; HTTP/2 says it by itself.
fn unended(mut header: ResponseHeader, session: &ServerSession) -> ResponseHeader {
    drop(header.remove_header(&header::CONTENT_LENGTH));
    if !session.is_http2() && session.req_header().version == http::Version::HTTP_11 {
        let inserted = header.insert_header(header::TRANSFER_ENCODING, "chunked");
        if let Err(error) = inserted {
            tracing::error!(%error, "framing not told");
        }
    }
    header
}

/// An answer of the listener's own, for what never reached the gate or came back without an answer.
fn plain(status: StatusCode) -> (ResponseHeader, Bytes) {
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

/// What to answer when Pingora gives a request up; `None` when there is nobody to answer.
fn status_of(error: &Error) -> Option<StatusCode> {
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
            ("told", 200, false, Some("3"), "abc", Some("3"), "abc"),
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
            let (header, body) = response(answer, head_only);
            let field = |it| {
                header
                    .headers
                    .get(it)
                    .map(|header| header.to_str().unwrap())
            };
            assert_eq!(header.status, status, "{name}: status");
            assert_eq!(field("content-length"), length, "{name}: length");
            assert_eq!(body, sent, "{name}: body");
            assert_eq!(
                field("connection"),
                None,
                "{name}: not for the handler to say"
            );
            assert_eq!(field("transfer-encoding"), None, "{name}: neither");
        }
    }

    #[test]
    fn what_pingora_gives_up_has_a_status_when_there_is_somebody_to_tell() {
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
            assert_eq!(status_of(&error).map(|it| it.as_u16()), expected, "{name}");
        }
    }

    #[test]
    fn idle_time_is_never_for_ever() {
        let rows = [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60)];
        for (millis, expected) in rows {
            let limits = Limits {
                idle_timeout: std::time::Duration::from_millis(millis),
                ..Limits::default()
            };
            assert_eq!(keepalive_seconds(&limits), expected, "{millis} ms");
        }
    }
}
