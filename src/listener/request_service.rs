//! Handles requests of the API port: calls the handler, and writes its response or forwards the request to an upstream.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures_util::FutureExt as _;
use http::Method;
use http::StatusCode;
use http::header;
use pingora::Error;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use tokio::sync::Mutex;

use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::RequestHead;
use crate::listener::Limits;
use crate::listener::connection_phase;
use crate::listener::forward::FastPath;
use crate::listener::forward::ForwardContext;
use crate::listener::forward::ForwardedRequest;
use crate::listener::forward::Upstreams;
use crate::listener::forward::read_fast_path_body;
use crate::listener::handler::Handler;
use crate::listener::handler::LOGGED_BYTES_MAX;
use crate::listener::handler::SentResponse;
use crate::listener::request_body;
use crate::listener::request_body::BodyPace;
use crate::listener::request_body::SessionBody;
use crate::listener::request_head::SentHead;
use crate::listener::request_head::read_request_head;
use crate::listener::response_writer::ResponseWriter;
use crate::listener::response_writer::plain_response;
use crate::listener::response_writer::status_of_error;
use crate::listener::tls::NoLongerValid;
use crate::listener::tls::TlsPeer;
use crate::listener::tls::tls_peer;
use crate::model::CertificateName;
use crate::model::Timestamp;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::telemetry::Metrics;

/// What all requests of the API port share.
#[derive(Debug)]
pub(super) struct RequestService {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) fast_path: FastPath,
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// Connections end with their next response.
    pub(super) leaving: Stop,
}

/// The state of one request.
#[derive(Debug)]
pub(super) struct RequestContext {
    began: Instant,
    exchange: Option<HandledRequest>,
    pub(super) forwarded: Option<ForwardedRequest>,
    /// Whether the outcome has been reported to the handler.
    is_reported: bool,
    /// The request target as sent.
    target: Vec<u8>,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The response has been written.
    Answered,
    /// It is to be forwarded by Pingora, because `forward/fast_path.rs` does not take it: an upgrade, a body that is large, slow or of
    /// unknown length, hop-by-hop fields, a HEAD.
    LeftToPingora,
}

/// Why the handler made no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undecided {
    Panicked,
    /// The client has disconnected.
    Disconnected,
}

impl RequestService {
    /// The state of a request that begins now.
    pub(super) fn begin_request(&self) -> RequestContext {
        RequestContext {
            began: self.clock.instant(),
            exchange: None,
            forwarded: None,
            is_reported: false,
            target: Vec::new(),
        }
    }

    /// Sets the limits of a session that has read a request head.
    pub(super) fn limit_session(&self, session: &mut ServerSession) {
        if session.req_header().version < http::Version::HTTP_11 {
            // HTTP/1.0 has no interim responses.
            session.set_ignore_info_resp(true);
        }
        // Pingora turns keep-alive off if the framing is doubtful or the client does not support it: never turn it on again.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(keepalive_seconds(&self.limits)));
        }
        session.set_close_on_response_before_downstream_finish(true);
        session.set_read_timeout(Some(self.limits.body_timeout));
        session.set_write_timeout(Some(self.limits.write_timeout));
        session.set_total_drain_timeout(Some(self.limits.body_timeout));
        // A client that closed its write side a while ago waits for no response (see `connection.rs`).
        session.set_abort_on_close(true);
    }

    /// Decides about a request whose head was read, and answers or forwards it.
    ///
    /// # Errors
    /// The response was not written to its end, or none was: see [`RequestService::fail`].
    pub(super) async fn handle(
        &self,
        session: &mut ServerSession,
        context: &mut RequestContext,
    ) -> pingora::Result<Progress> {
        let head = read_request_head(session)?;
        let peer = peer_address(session);
        let certificate = client_certificate(session, self.clock.now()).map_err(|error| {
            let unauthorized = ErrorType::HTTPStatus(StatusCode::UNAUTHORIZED.as_u16());
            Error::explain(unauthorized, error.to_string()).into_down()
        })?;
        let answered = self.call_handler(&head, peer, &certificate, session).await;
        context.target = head.target;
        match answered {
            Ok(GateDecision::Answer(exchange)) => context.exchange = Some(exchange),
            Ok(GateDecision::PassThrough(pass)) => {
                let forwarded = context.forwarded.insert(ForwardedRequest::new(pass));
                let body = read_fast_path_body(session, forwarded.pass.upgrade).await?;
                let Some(body) = body else {
                    return Ok(Progress::LeftToPingora);
                };
                let forward = ForwardContext {
                    session,
                    body,
                    upstreams: &self.upstreams,
                    fast_path: &self.fast_path,
                    clock: &*self.clock,
                    leaving: &self.leaving,
                };
                // Boxed, so that responses of the gateway's own do not reserve room for it.
                Box::pin(forwarded.forward_directly(forward)).await?;
                return Ok(Progress::Answered);
            }
            Err(Undecided::Disconnected) => {
                self.report(session, context, false);
                let error =
                    Error::explain(ErrorType::ConnectionClosed, "the client has disconnected");
                return Err(error.into_down());
            }
            Err(Undecided::Panicked) => {}
        }
        self.respond(session, context).await?;
        Ok(Progress::Answered)
    }

    /// Answers a request that could not be handled, unless its response has begun. Returns the status that was sent; 0 for none.
    pub(super) async fn fail(
        &self,
        session: &mut ServerSession,
        context: &mut RequestContext,
        error: &Error,
    ) -> u16 {
        if let Some(forwarded) = &mut context.forwarded {
            // A refusal has the date at which it was made.
            connection_phase::keep_upstream_date(None);
            let written = session.response_written();
            let sent = written
                .map(|written| written.status.as_u16())
                .filter(|status| *status >= 200);
            let code = forwarded.refusal_code(error).filter(|_| sent.is_none());
            let Some(code) = code else {
                return sent.unwrap_or(0);
            };
            let mut exchange = self.handler.failed(&forwarded.pass, code);
            let status = exchange.response.status().as_u16();
            let close = exchange.close || self.is_last();
            let writer = self.writer();
            if writer
                .write_exchange(session, Some(&mut exchange), None, close)
                .await
            {
                request_body::discard_body(session).await;
            }
            return status;
        }
        let status = status_of_error(error);
        if let (Some(status), None) = (status, session.response_written()) {
            let (header, body) = plain_response(status);
            if let Err(error) = session.write_error_response(header, body).await {
                tracing::debug!(%error, "error response not delivered");
            }
        }
        status.map_or(0, |status| status.as_u16())
    }

    /// Calls the handler. A read ends when the client disconnects; a change always runs to its end.
    async fn call_handler(
        &self,
        head: &SentHead,
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
        let pace = BodyPace::from_limits(&self.limits);
        let mut body = SessionBody::new(&session, pace, &*self.clock, &received);
        let handled = self.handler.handle(parts, &mut body);
        // Unwind safe: after a panic only the request head is used, which the handler cannot change.
        let handled = std::panic::AssertUnwindSafe(handled).catch_unwind();
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        // Biased: a response that is ready is sent, even if the client has just closed its write side.
        let handled = tokio::select! {
            biased;
            handled = handled => handled,
            () = request_body::wait_for_disconnect(&session, &received), if is_read => return Err(Undecided::Disconnected),
        };
        if let Ok(decision) = handled {
            return Ok(decision);
        }
        self.metrics.process.record_panic("listener");
        tracing::error!("panic while handling a request");
        Err(Undecided::Panicked)
    }

    /// Whether the connection ends after this request.
    pub(super) fn is_last(&self) -> bool {
        self.leaving.is_given()
            || connection_phase::is_overread()
            || connection_phase::is_body_malformed()
    }

    fn writer(&self) -> ResponseWriter<'_> {
        ResponseWriter {
            write_timeout: self.limits.write_timeout,
            metrics: &self.metrics,
        }
    }

    /// Writes the response of the gateway, reports it, and lets the client read it before the connection closes.
    async fn respond(
        &self,
        session: &mut ServerSession,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        let pieces = context
            .exchange
            .as_mut()
            .and_then(|exchange| exchange.pieces.take());
        let is_streamed = pieces.is_some();
        let close = self.is_last()
            || context
                .exchange
                .as_ref()
                .is_none_or(|exchange| exchange.close);
        let delivered = self
            .writer()
            .write_exchange(session, context.exchange.as_mut(), pieces, close)
            .await;
        self.report(session, context, delivered);
        if is_streamed && !delivered {
            // Without an error Pingora would properly end the truncated body.
            return Err(
                Error::explain(ErrorType::WriteError, "the response was truncated").into_down(),
            );
        }
        // HTTP/2 resets the stream instead, without ending the connection.
        if delivered && session.get_keepalive().is_none() && !session.is_http2() {
            request_body::discard_body(session).await;
        }
        Ok(())
    }

    /// Reports the outcome of the request to the handler, once.
    pub(super) fn report(
        &self,
        session: &ServerSession,
        context: &mut RequestContext,
        delivered: bool,
    ) {
        if std::mem::replace(&mut context.is_reported, true) {
            return;
        }
        let head = session.req_header();
        let access = SentResponse {
            method: &head.method,
            target: truncate_for_log(&context.target),
            version: head.version,
            user_agent: head
                .headers
                .get(header::USER_AGENT)
                .map(|user_agent| truncate_for_log(user_agent.as_bytes())),
            peer: peer_address(session),
            status: session
                .response_written()
                .map(|response_written| response_written.status.as_u16())
                .filter(|status| *status >= 200 || *status == 101),
            bytes: session.body_bytes_sent(),
            took: self
                .clock
                .instant()
                .saturating_duration_since(context.began),
            delivered,
        };
        match &context.forwarded {
            Some(forwarded) => {
                let result = forwarded.upstream_result();
                self.handler.passed(&forwarded.pass, &result, &access);
            }
            None => self.handler.done(context.exchange.as_ref(), &access),
        }
    }
}

/// Whole seconds for Pingora's keep-alive timer, at least 1: for Pingora 0 means forever.
fn keepalive_seconds(limits: &Limits) -> u64 {
    let whole = limits.idle_timeout.as_secs();
    let part = u64::from(limits.idle_timeout.subsec_nanos() > 0);
    whole.saturating_add(part).max(1)
}

/// The data kept with an encrypted connection.
pub(super) fn tls_peer_of(session: &ServerSession) -> Option<&TlsPeer> {
    let digest = session.digest()?.ssl_digest.as_ref()?;
    tls_peer(digest)
}

/// The names in the client certificate, if it is valid now.
fn client_certificate(
    session: &ServerSession,
    now: Timestamp,
) -> Result<Arc<[CertificateName]>, NoLongerValid> {
    match tls_peer_of(session) {
        Some(peer) => peer.certificate.names_at(now),
        None => Ok(Arc::default()),
    }
}

/// The remote address of the connection.
fn peer_address(session: &ServerSession) -> Option<IpAddr> {
    session
        .client_addr()?
        .as_inet()
        .map(std::net::SocketAddr::ip)
}

fn truncate_for_log(bytes: &[u8]) -> &[u8] {
    bytes.get(..LOGGED_BYTES_MAX).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_timeout_is_never_infinite() {
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
