//! Follows one forwarded request: selection of the upstream, rewriting of heads, retries and refusals.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Version;
use http::header;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::OrErr as _;
use pingora::http::RequestHeader;
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::tls::SslDigest;
use pingora::upstreams::peer::HttpPeer;

use crate::gate::Code;
use crate::gate::HostRule;
use crate::gate::PassThrough;
use crate::gate::extended_via;
use crate::listener::UpstreamResult;
use crate::listener::connection_phase;
use crate::listener::forward::peer::build_peer;
use crate::listener::forward::peer::check_pin;
use crate::listener::forward::pool::UpstreamLease;
use crate::listener::forward::response_head;
use crate::listener::forward::upstreams::Upstreams;
use crate::listener::forward::usual_framing::unusual_framing;
use crate::listener::upstream_date::valid_date;
use crate::runtime::work_context;
use crate::runtime::work_context::WorkContext;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request that is forwarded to an upstream.
#[derive(Debug)]
pub(in crate::listener) struct ForwardedRequest {
    pub(in crate::listener) pass: Box<PassThrough>,
    lease: Option<UpstreamLease>,
    tries: u8,
    chosen_at: Option<Instant>,
    waited: Option<Duration>,
    body: BodyProgress,
    /// Why the gateway gave the request up.
    abort_code: Option<Code>,
    refusal: Option<&'static str>,
}

/// The part of the request body received so far.
#[derive(Clone, Copy, Debug, Default)]
struct BodyProgress {
    began: Option<Instant>,
    bytes: u64,
}

impl ForwardedRequest {
    pub(in crate::listener) fn new(pass: Box<PassThrough>) -> Self {
        Self {
            pass,
            lease: None,
            tries: 0,
            chosen_at: None,
            waited: None,
            body: BodyProgress::default(),
            abort_code: None,
            refusal: None,
        }
    }

    /// Time limit between two pieces from the client.
    pub(in crate::listener) fn read_timeout(&self, upstreams: &Upstreams) -> Duration {
        let pool = upstreams.pool(self.pass.route.pool);
        match pool.filter(|_| self.pass.upgrade) {
            Some(pool) => pool.config.timeouts.upgraded,
            None => self.pass.route.body.pause,
        }
    }

    /// Selects an upstream; on a retry another one, if there is one.
    pub(in crate::listener) fn choose_upstream(
        &mut self,
        upstreams: &Upstreams,
        now: Instant,
    ) -> pingora::Result<()> {
        // Dropped before another is chosen: the count of requests in flight must not include this one twice.
        let failed = self.lease.take().map(|lease| lease.index);
        self.tries = self.tries.saturating_add(1);
        // A retry sends the body from its beginning, so its time and size are counted anew.
        self.body = BodyProgress::default();
        let pool = upstreams.pool(self.pass.route.pool);
        let Some(lease) = pool.and_then(|pool| pool.select(failed)) else {
            self.abort_code = Some(Code::NoUpstream);
            return Error::e_explain(ErrorType::ConnectError, "no upstream available");
        };
        self.chosen_at = Some(now);
        self.lease = Some(lease);
        Ok(())
    }

    /// The selected upstream.
    pub(super) fn lease(&self) -> pingora::Result<&UpstreamLease> {
        let none = || Error::explain(ErrorType::ConnectError, "no upstream selected");
        self.lease.as_ref().ok_or_else(none)
    }

    /// The Pingora peer of the selected upstream.
    pub(in crate::listener) fn build_peer(&self) -> pingora::Result<HttpPeer> {
        let lease = self.lease()?;
        let Some(member) = lease.member() else {
            return Error::e_explain(ErrorType::ConnectError, "no such upstream");
        };
        build_peer(
            (lease.pool.id, &lease.pool.config),
            (lease.index, &member.upstream),
            &lease.address,
            self.pass.upgrade,
        )
    }

    /// An idle connection to the selected upstream. None for a retry: if one was closed at the wrong moment, the others may be
    /// too.
    pub(super) fn take_idle_connection(&self, now: Instant) -> Option<Stream> {
        let lease = self.lease.as_ref().filter(|_| self.tries < 2)?;
        lease.member()?.idle.take(&lease.address, now)
    }

    /// Keeps a connection to the selected upstream for the next request.
    pub(super) fn keep_connection(&self, stream: Stream, now: Instant) {
        // The pool of a configuration that is gone would keep the connection until it times out, and never use it.
        let Some(lease) = self.lease.as_ref().filter(|lease| !lease.pool.is_retired()) else {
            return;
        };
        let until = now.checked_add(lease.pool.config.timeouts.idle);
        if let (Some(member), Some(until)) = (lease.member(), until) {
            member.idle.put(stream, lease.address.clone(), until);
        }
    }

    /// Checks the pinned certificate. Call before anything is sent.
    pub(in crate::listener) fn check_connection(
        &self,
        digest: Option<&SslDigest>,
    ) -> pingora::Result<()> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        let tls = lease.member().is_some_and(|member| member.upstream.tls);
        check_pin(&lease.pool.config, tls, digest)
    }

    /// Rewrites the request head for the upstream. Pingora has set framing and upgrade fields.
    pub(in crate::listener) fn rewrite_head(
        &self,
        session: &ServerSession,
        request: &mut RequestHeader,
    ) -> pingora::Result<()> {
        let pass = &self.pass;
        let target = pass.target.parse().map_err(|error| {
            Error::because(
                ErrorType::HTTPStatus(400),
                "invalid target for the upstream",
                error,
            )
        })?;
        request.set_uri(target);
        // Collected first: the map cannot be changed while it is read.
        let dropped: Vec<HeaderName> = request
            .headers
            .keys()
            .filter(|key| pass.edit.drops(key))
            .cloned()
            .collect();
        for name in dropped {
            request.remove_header(&name);
        }
        // After the removals, so that a field of the gateway's own is never one that a client sent.
        for (name, value) in &pass.edit.set {
            request.insert_header(name.clone(), value.clone())?;
        }
        join_cookies(request)?;
        for (name, value) in unusual_framing(&request.headers) {
            request.insert_header(name, value)?;
        }
        let is_old = session.req_header().version < Version::HTTP_11;
        if is_old {
            // HTTP/1.0 has no interim responses.
            request.remove_header(&header::EXPECT);
        }
        let own = pass.route.host == HostRule::Upstream;
        // HTTP/2 has `:authority` instead of Host, and HTTP/1.0 may have neither. HTTP/1.1 requires one (RFC 9112
        // section 3.2).
        if own || !request.headers.contains_key(header::HOST) {
            let label = self.upstream_label().unwrap_or_default();
            request.insert_header(header::HOST, label)?;
        }
        Ok(())
    }

    /// Counts a piece of the request body and enforces the limits of the route.
    pub(in crate::listener) fn count_body(
        &mut self,
        body: &mut Option<Bytes>,
        end: bool,
        upgraded: bool,
        now: Instant,
    ) -> pingora::Result<()> {
        drop_empty_end(body, end);
        // After an upgrade the bytes belong to another protocol, of which the limits for bodies say nothing.
        if upgraded {
            return Ok(());
        }
        let rule = &self.pass.route.body;
        let length = body.as_ref().map_or(0, Bytes::len);
        let count = &mut self.body;
        count.bytes = count
            .bytes
            .saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        // From the first piece: a client that waits for a 100 sends nothing for a while.
        let began = *count.began.get_or_insert(now);
        if count.bytes > rule.bytes_max {
            self.abort_code = Some(Code::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "body too large");
        }
        let took = now.saturating_duration_since(began);
        // Only after the longest allowed pause: a short one right at the start says nothing about the rate.
        if !end && took > rule.pause && count.bytes < rule.rate_min.saturating_mul(took.as_secs()) {
            self.abort_code = Some(Code::BodyTooSlow);
            return Error::e_explain(ErrorType::HTTPStatus(408), "body too slow");
        }
        Ok(())
    }

    /// Rewrites the response head for the client.
    pub(in crate::listener) fn rewrite_response(
        &mut self,
        session: &mut ServerSession,
        response: &mut ResponseHeader,
        now: Instant,
    ) -> pingora::Result<()> {
        response_head::check_response(response, self.pass.upgrade)?;
        // Before the head is cleaned: also a response that cannot be forwarded shows that the upstream is alive.
        self.note_response(response, now);
        response_head::clean_head(response)?;
        self.add_gateway_fields(session, response)
    }

    /// Notes that a response head was received.
    pub(super) fn note_response(&mut self, response: &ResponseHeader, now: Instant) {
        if is_final(response) {
            self.waited = self
                .chosen_at
                .map(|chosen| now.saturating_duration_since(chosen));
            if let Some(lease) = &self.lease {
                lease.report(true);
            }
        }
    }

    /// Adds `X-Request-Id` and `Via` to a cleaned response head, and adapts framing to HTTP/1.0.
    pub(super) fn add_gateway_fields(
        &self,
        session: &mut ServerSession,
        response: &mut ResponseHeader,
    ) -> pingora::Result<()> {
        if !is_final(response) {
            return Ok(());
        }
        // Pingora replaces the date when it writes the head.
        connection_phase::keep_upstream_date(valid_date(&response.headers));
        let id = self.pass.request.as_str();
        response.insert_header(REQUEST_ID, id)?;
        // Each proxy on the way adds itself.
        let via = extended_via(&response.headers, "1.1 snapgate");
        response.insert_header(header::VIA, via)?;
        if session.req_header().version < Version::HTTP_11
            && response.headers.contains_key(header::TRANSFER_ENCODING)
        {
            // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    /// Reports a failure, and decides whether the request is retried: only safe methods without a body, only before anything was
    /// sent to the client, and not after a read timeout.
    pub(in crate::listener) fn handle_failure(
        &mut self,
        session: &ServerSession,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let method = &session.req_header().method;
        let is_safe = *method == Method::GET || *method == Method::HEAD;
        // A request that the gateway aborted itself, because of its body for instance, says nothing about the
        // upstream.
        let is_upstream_failure =
            *error.esource() == ErrorSource::Upstream && self.abort_code.is_none();
        if is_upstream_failure && let Some(lease) = &self.lease {
            lease.report(false);
            let context = WorkContext {
                request: Some(self.pass.request.clone()),
                trace: Some(self.pass.trace),
                operation: None,
            };
            work_context::run_within(context, || {
                lease.log_failure(error.etype().as_str(), &error.to_string());
            });
        }
        // An upstream may have carried out what it did not answer. Only requests that may be sent twice are sent
        // again.
        let retry = is_upstream_failure
            && is_safe
            && self.tries < 2
            && self.body.bytes == 0
            && !self.pass.upgrade
            && *error.etype() != ErrorType::ReadTimedout
            && session.response_written().is_none();
        error.set_retry(retry);
        error
    }

    /// The refusal for a request that was given up; `None` if the client has disconnected.
    pub(in crate::listener) fn refusal_code(&mut self, error: &Error) -> Option<Code> {
        // Pingora reports a malformed body and a client that went away by the same error.
        let is_malformed =
            *error.esource() == ErrorSource::Downstream && connection_phase::is_body_malformed();
        // The gateway's own reason first; the error that follows from it is only its consequence.
        let code = self.abort_code.or_else(|| match is_malformed {
            true => Some(Code::UnreadableBody),
            false => code_of_error(error),
        });
        self.refusal = code.map(Code::as_str);
        code
    }

    pub(in crate::listener) fn upstream_result(&self) -> UpstreamResult<'_> {
        UpstreamResult {
            upstream: self.upstream_label(),
            waited: self.waited,
            retried: self.tries > 1,
            refusal: self.refusal,
        }
    }

    pub(super) fn upstream_label(&self) -> Option<&str> {
        let member = self.lease.as_ref()?.member()?;
        Some(&member.upstream.label)
    }
}

/// Joins cookies: HTTP/2 sends each in a field of its own, HTTP/1.1 all in one (RFC 9113 section 8.2.3).
fn join_cookies(request: &mut RequestHeader) -> pingora::Result<()> {
    let cookies = request.headers.get_all(header::COOKIE).iter();
    let cookies: Vec<&[u8]> = cookies.map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        let joined = joined.or_err(ErrorType::InvalidHTTPHeader, "cookies")?;
        request.insert_header(header::COOKIE, joined)?;
    }
    Ok(())
}

/// Drops an empty last piece, as the end of an HTTP/2 stream often is. Pingora would write the end of a chunked body twice, and the
/// upstream connection would then carry an unsolicited response (Pingora issue 935).
fn drop_empty_end(body: &mut Option<Bytes>, end: bool) {
    if end && body.as_ref().is_some_and(Bytes::is_empty) {
        *body = None;
    }
}

fn is_final(response: &ResponseHeader) -> bool {
    !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS
}

fn code_of_error(error: &Error) -> Option<Code> {
    let timed_out = matches!(
        error.etype(),
        ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout
    );
    let is_gone = matches!(
        error.etype(),
        ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed
    );
    let kind = error.etype();
    match error.esource() {
        ErrorSource::Upstream if timed_out => Some(Code::GatewayTimeout),
        ErrorSource::Upstream => Some(Code::BadGateway),
        ErrorSource::Downstream if *kind == ErrorType::ReadTimedout => Some(Code::BodyTooSlow),
        ErrorSource::Downstream if *kind == ErrorType::InvalidHTTPHeader => {
            Some(Code::MalformedRequest)
        }
        // No one is left to answer.
        ErrorSource::Downstream if is_gone => None,
        ErrorSource::Downstream => Some(Code::UnreadableBody),
        ErrorSource::Internal | ErrorSource::Unset if *kind == ErrorType::HTTPStatus(400) => {
            Some(Code::MalformedTarget)
        }
        ErrorSource::Internal | ErrorSource::Unset => Some(Code::InternalError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_last_piece_is_dropped() {
        let rows = [
            ("nothing, on", None, false, None),
            ("nothing, end", None, true, None),
            ("empty, on", Some(""), false, Some("")),
            ("empty, end", Some(""), true, None),
            ("piece, end", Some("x"), true, Some("x")),
        ];
        for (name, given, end, expected) in rows {
            let mut body = given.map(|text: &str| Bytes::from(text.to_owned()));
            drop_empty_end(&mut body, end);
            assert_eq!(body.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn http_2_cookies_are_joined_into_one_field() {
        // what was sent, what is passed on
        let rows: [(&[&str], &[&str]); 3] = [
            (&[], &[]),
            (&["a=1"], &["a=1"]),
            (&["a=1", "b=2; c=3", "d=4"], &["a=1; b=2; c=3; d=4"]),
        ];
        for (sent, expected) in rows {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            for cookie in sent {
                request.append_header(header::COOKIE, *cookie).unwrap();
            }
            join_cookies(&mut request).unwrap();
            let all = request.headers.get_all(header::COOKIE).iter();
            let all: Vec<&str> = all.map(|value| value.to_str().unwrap()).collect();
            assert_eq!(all, expected, "{sent:?}");
        }
    }

    #[test]
    fn every_failure_has_its_code() {
        use ErrorType as E;
        let rows = [
            (
                ErrorSource::Upstream,
                E::ConnectTimedout,
                Some(Code::GatewayTimeout),
            ),
            (
                ErrorSource::Upstream,
                E::ReadTimedout,
                Some(Code::GatewayTimeout),
            ),
            (
                ErrorSource::Upstream,
                E::ConnectRefused,
                Some(Code::BadGateway),
            ),
            (
                ErrorSource::Upstream,
                E::InvalidCert,
                Some(Code::BadGateway),
            ),
            (
                ErrorSource::Upstream,
                E::InvalidHTTPHeader,
                Some(Code::BadGateway),
            ),
            (
                ErrorSource::Downstream,
                E::ReadTimedout,
                Some(Code::BodyTooSlow),
            ),
            (
                ErrorSource::Downstream,
                E::InvalidHTTPHeader,
                Some(Code::MalformedRequest),
            ),
            (
                ErrorSource::Downstream,
                E::Custom("InvalidChunk"),
                Some(Code::UnreadableBody),
            ),
            (ErrorSource::Downstream, E::ConnectionClosed, None),
            (ErrorSource::Downstream, E::WriteError, None),
            (
                ErrorSource::Internal,
                E::InternalError,
                Some(Code::InternalError),
            ),
        ];
        for (source, kind, expected) in rows {
            let name = format!("{source:?} {kind:?}");
            let mut error = Error::new(kind);
            error.esource = source;
            assert_eq!(code_of_error(&error), expected, "{name}");
        }
    }
}
