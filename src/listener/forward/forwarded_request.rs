//! One request on its way to an upstream and back.

use std::borrow::Cow;
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
use crate::listener::UpstreamResult;
use crate::listener::connection_lifecycle;
use crate::listener::forward::peer::check_pin;
use crate::listener::forward::peer::peer;
use crate::listener::forward::pool::UpstreamLease;
use crate::listener::forward::pool::Upstreams;
use crate::listener::forward::response_head;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request on its way to an upstream and back.
#[derive(Debug)]
pub(in crate::listener) struct ForwardedRequest {
    pub(in crate::listener) pass: Box<PassThrough>,
    lease: Option<UpstreamLease>,
    tries: u8,
    chosen: Option<Instant>,
    waited: Option<Duration>,
    body: BodyProgress,
    /// Why the gateway gave it up.
    why: Option<Code>,
    refusal: Option<&'static str>,
}

/// What came of the body of the request so far.
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
            chosen: None,
            waited: None,
            body: BodyProgress::default(),
            why: None,
            refusal: None,
        }
    }

    /// Time between two pieces of what the client sends.
    pub(in crate::listener) fn patience(&self, upstreams: &Upstreams) -> Duration {
        let pool = upstreams.pool(self.pass.route.pool);
        match pool.filter(|_| self.pass.upgrade) {
            Some(pool) => pool.config.timeouts.upgraded,
            None => self.pass.route.body.pause,
        }
    }

    /// Chooses the upstream to ask.
    pub(in crate::listener) fn choose(
        &mut self,
        upstreams: &Upstreams,
        now: Instant,
    ) -> pingora::Result<()> {
        let failed = self.lease.take().map(|it| it.index);
        self.tries = self.tries.saturating_add(1);
        self.body = BodyProgress::default();
        let pool = upstreams.pool(self.pass.route.pool);
        let Some(lease) = pool.and_then(|pool| pool.pick(failed)) else {
            self.why = Some(Code::NoUpstream);
            return Error::e_explain(ErrorType::ConnectError, "no upstream is able to answer");
        };
        self.chosen = Some(now);
        self.lease = Some(lease);
        Ok(())
    }

    /// The upstream that was chosen.
    pub(super) fn lease(&self) -> pingora::Result<&UpstreamLease> {
        let none = || Error::explain(ErrorType::ConnectError, "no upstream was chosen");
        self.lease.as_ref().ok_or_else(none)
    }

    /// How the chosen upstream is connected to.
    pub(in crate::listener) fn peer(&self) -> pingora::Result<HttpPeer> {
        let lease = self.lease()?;
        let Some(member) = lease.member() else {
            return Error::e_explain(ErrorType::ConnectError, "no such upstream");
        };
        peer(
            (lease.pool.id, &lease.pool.config),
            (lease.index, &member.upstream),
            &lease.address,
            self.pass.upgrade,
        )
    }

    /// A connection to the chosen upstream that waits for a request. None for a second attempt: when one was closed at the
    /// wrong moment, the others may be as well.
    pub(super) fn waiting(&self, now: Instant) -> Option<Stream> {
        let lease = self.lease.as_ref().filter(|_| self.tries < 2)?;
        lease.member()?.idle.take(&lease.address, now)
    }

    /// Keeps a connection to the chosen upstream for the next request.
    pub(super) fn keep(&self, stream: Stream, now: Instant) {
        let Some(lease) = self.lease.as_ref().filter(|lease| !lease.pool.is_retired()) else {
            return;
        };
        let until = now.checked_add(lease.pool.config.timeouts.idle);
        if let (Some(member), Some(until)) = (lease.member(), until) {
            member.idle.put(stream, lease.address.clone(), until);
        }
    }

    /// Is called before anything is sent.
    pub(in crate::listener) fn connected(&self, digest: Option<&SslDigest>) -> pingora::Result<()> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        let tls = lease.member().is_some_and(|member| member.upstream.tls);
        check_pin(&lease.pool.config, tls, digest)
    }

    /// The head of the request as the upstream reads it. Framing and upgrades were seen to by Pingora.
    pub(in crate::listener) fn rewrite(
        &self,
        session: &ServerSession,
        request: &mut RequestHeader,
    ) -> pingora::Result<()> {
        let pass = &self.pass;
        let target = pass.target.parse().map_err(|error| {
            Error::because(ErrorType::HTTPStatus(400), "target of the upstream", error)
        })?;
        request.set_uri(target);
        let dropped: Vec<HeaderName> = request
            .headers
            .keys()
            .filter(|key| pass.edit.drops(key))
            .cloned()
            .collect();
        for name in dropped {
            request.remove_header(&name);
        }
        for (name, value) in &pass.edit.set {
            request.insert_header(name.clone(), value.clone())?;
        }
        join_cookies(request)?;
        let is_old = session.req_header().version < Version::HTTP_11;
        if is_old {
            // A client of HTTP/1.0 understands no interim answer.
            request.remove_header(&header::EXPECT);
        }
        let own = pass.route.host == HostRule::Upstream;
        if own || !request.headers.contains_key(header::HOST) {
            let label = self.label().unwrap_or_default();
            request.insert_header(header::HOST, label)?;
        }
        Ok(())
    }

    /// A piece of the body of the request.
    pub(in crate::listener) fn count(
        &mut self,
        body: &mut Option<Bytes>,
        end: bool,
        upgraded: bool,
        now: Instant,
    ) -> pingora::Result<()> {
        without_empty_end(body, end);
        if upgraded {
            return Ok(());
        }
        let rule = &self.pass.route.body;
        let length = body.as_ref().map_or(0, Bytes::len);
        let count = &mut self.body;
        count.bytes = count
            .bytes
            .saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let began = *count.began.get_or_insert(now);
        if count.bytes > rule.bytes_max {
            self.why = Some(Code::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "body too large");
        }
        let took = now.saturating_duration_since(began);
        if !end && took > rule.pause && count.bytes < rule.rate_min.saturating_mul(took.as_secs()) {
            self.why = Some(Code::BodyTooSlow);
            return Error::e_explain(ErrorType::HTTPStatus(408), "body too slow");
        }
        Ok(())
    }

    /// The head of the answer as the client reads it.
    pub(in crate::listener) fn answered(
        &mut self,
        session: &mut ServerSession,
        response: &mut ResponseHeader,
        now: Instant,
    ) -> pingora::Result<()> {
        response_head::check(response, self.pass.upgrade)?;
        self.arrived(response, now);
        response_head::clean(response)?;
        self.sign(session, response)
    }

    /// Takes note of an answer.
    pub(super) fn arrived(&mut self, response: &ResponseHeader, now: Instant) {
        if is_final(response) {
            self.waited = self
                .chosen
                .map(|chosen| now.saturating_duration_since(chosen));
            if let Some(lease) = &self.lease {
                lease.report(true);
            }
        }
    }

    /// Adds what the gateway says of itself to an answer, once it is clean.
    pub(super) fn sign(
        &self,
        session: &mut ServerSession,
        response: &mut ResponseHeader,
    ) -> pingora::Result<()> {
        if !is_final(response) {
            return Ok(());
        }
        let id = self.pass.request.as_str();
        response.insert_header(REQUEST_ID, id)?;
        let via = response.headers.get(header::VIA);
        let via = match via.and_then(|via| via.to_str().ok()) {
            Some(before) => Cow::from(format!("{before}, 1.1 snapgate")),
            None => Cow::from("1.1 snapgate"),
        };
        response.insert_header(header::VIA, via.as_ref())?;
        if session.req_header().version < Version::HTTP_11
            && response.headers.contains_key(header::TRANSFER_ENCODING)
        {
            // Chunks mean nothing to HTTP/1.0: the end of the connection is the end of the body.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    /// Whether what failed is to be tried once more: only what has no effect and no body, only while the client has seen
    /// nothing, and not when it took its time already.
    pub(in crate::listener) fn failed(
        &mut self,
        session: &ServerSession,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let method = &session.req_header().method;
        let is_safe = *method == Method::GET || *method == Method::HEAD;
        let is_theirs = *error.esource() == ErrorSource::Upstream && self.why.is_none();
        if is_theirs && let Some(lease) = &self.lease {
            lease.report(false);
            lease.log_failure(error.etype().as_str(), &error.to_string());
        }
        let retry = is_theirs
            && is_safe
            && self.tries < 2
            && self.body.bytes == 0
            && !self.pass.upgrade
            && *error.etype() != ErrorType::ReadTimedout
            && session.response_written().is_none();
        error.set_retry(retry);
        error
    }

    /// What to answer when the request was given up; `None` when there is nobody to answer.
    pub(in crate::listener) fn code(&mut self, error: &Error) -> Option<Code> {
        let is_malformed =
            *error.esource() == ErrorSource::Downstream && connection_lifecycle::is_malformed();
        let code = self.why.or_else(|| match is_malformed {
            true => Some(Code::UnreadableBody),
            false => code_of(error),
        });
        self.refusal = code.map(Code::as_str);
        code
    }

    pub(in crate::listener) fn way(&self) -> UpstreamResult<'_> {
        UpstreamResult {
            upstream: self.label(),
            waited: self.waited,
            retried: self.tries > 1,
            refusal: self.refusal,
        }
    }

    pub(super) fn label(&self) -> Option<&str> {
        let member = self.lease.as_ref()?.member()?;
        Some(&member.upstream.label)
    }
}

/// HTTP/2 sends each cookie in a field of its own, HTTP/1.1 all of them in one (RFC 9113 section 8.2.3).
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

/// Pingora writes the end of a chunked body twice when the last piece is there and empty, as the end of an HTTP/2 stream
/// often is, and the connection to the upstream then carries an answer that nobody asked for (Pingora issue 935).
fn without_empty_end(body: &mut Option<Bytes>, end: bool) {
    if end && body.as_ref().is_some_and(Bytes::is_empty) {
        *body = None;
    }
}

fn is_final(response: &ResponseHeader) -> bool {
    !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS
}

fn code_of(error: &Error) -> Option<Code> {
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
    fn an_empty_last_piece_is_no_piece() {
        let rows = [
            ("nothing, on", None, false, None),
            ("nothing, end", None, true, None),
            ("empty, on", Some(""), false, Some("")),
            ("empty, end", Some(""), true, None),
            ("piece, end", Some("x"), true, Some("x")),
        ];
        for (name, given, end, expected) in rows {
            let mut body = given.map(|it: &str| Bytes::from(it.to_owned()));
            without_empty_end(&mut body, end);
            assert_eq!(body.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn cookies_of_http_2_become_one_field() {
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
    fn every_end_has_its_code() {
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
            assert_eq!(code_of(&error), expected, "{name}");
        }
    }
}
