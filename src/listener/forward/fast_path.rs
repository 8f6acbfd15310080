//! Forwards requests in the task that has read them: those without a body, and those whose small body is there already.
//!
//! Pingora proxies through two halves with two channels and watches every idle connection with a task of its own. That suits bodies
//! in both directions, and takes a third of the time of a plain read. Here one request is written and one response read, with
//! Pingora's connections and parsers and the decisions of the same [`ForwardedRequest`]. Everything else goes through Pingora, also a
//! small body that takes its time: what was read of it is in the buffer from which Pingora repeats requests.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::header;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::OrErr as _;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::TransportConnector;
use pingora::http::RequestHeader;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::client::HttpSession;
use tokio::io::AsyncWriteExt as _;

use crate::gate::HostRule;
use crate::listener::connection_phase;
use crate::listener::forward::forwarded_request::ForwardedRequest;
use crate::listener::forward::peer::NO_AUTHORITIES;
use crate::listener::forward::response_head;
use crate::listener::forward::response_head::FieldFilter;
use crate::listener::forward::upstreams::Upstreams;
use crate::listener::request_body::client_disconnected;
use crate::runtime::Clock;
use crate::runtime::Stop;

/// Fields of requests with a body of unknown length, an upgrade or hop-by-hop semantics, which are left to Pingora.
static INVOLVED: [HeaderName; 8] = [
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Largest request body that is read before it is forwarded: as much as Pingora keeps to repeat a request.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long such a body may take to arrive. Most come in the same packet as their head.
const BODY_PATIENCE: Duration = Duration::from_millis(5);

/// Connects to upstreams for the requests that are forwarded here.
pub(in crate::listener) struct FastPath(TransportConnector);

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FastPath")
    }
}

impl FastPath {
    /// Panics if [`NO_AUTHORITIES`] cannot be read; `Server::api` has checked that it can.
    pub(in crate::listener) fn new() -> Self {
        let mut options = ConnectorOptions::new(1);
        options.ca_file = Some(NO_AUTHORITIES.to_owned());
        Self(TransportConnector::new(Some(options)))
    }
}

/// The body of a request that is forwarded here: empty if the request has none. `None` for requests with a large body or one of
/// unknown length, an upgrade or hop-by-hop fields, and for those whose body has not arrived yet.
///
/// # Errors
/// The body cannot be read.
pub(in crate::listener) async fn read_fast_path_body(
    session: &mut ServerSession,
    upgrade: bool,
) -> pingora::Result<Option<Bytes>> {
    match fast_path_length(session, upgrade) {
        None => Ok(None),
        Some(0) => Ok(Some(Bytes::new())),
        Some(length) => read_prompt_body(session, length).await,
    }
}

/// The length of the body of a request that may be forwarded here.
fn fast_path_length(session: &mut ServerSession, upgrade: bool) -> Option<usize> {
    let is_empty = session.is_body_empty();
    let head = session.req_header();
    let mut connection = head.headers.get_all(header::CONNECTION).iter();
    let is_plain = !upgrade
        // Field names are forwarded in the case in which they were sent, which HTTP/2 does not have.
        && (session.is_http2() || head.has_case())
        && !head.headers.keys().any(|key| INVOLVED.contains(key))
        && connection.all(|value| {
            let value = value.as_bytes();
            value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
        });
    if !is_plain {
        return None;
    }
    // The response to a HEAD is framed by its request, which Pingora's parser would have to know.
    if head.method == Method::HEAD || head.method == Method::CONNECT {
        return None;
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return is_empty.then_some(0);
    };
    if lengths.next().is_some() {
        return None;
    }
    let number: usize = length.to_str().ok()?.parse().ok()?;
    // Forwarded as it was sent, so it must be what every reader takes for this number.
    let is_usual = number.to_string().as_bytes() == length.as_bytes();
    (is_usual && number <= BODY_BYTES_MAX && is_empty == (number == 0)).then_some(number)
}

/// Reads a body of known length; `None` if it does not arrive at once.
async fn read_prompt_body(
    session: &mut ServerSession,
    length: usize,
) -> pingora::Result<Option<Bytes>> {
    // Pingora begins with the pieces in this buffer, if the request is left to it.
    session.enable_retry_buffering();
    match tokio::time::timeout(BODY_PATIENCE, read_to_end(session)).await {
        Ok(read) => read?,
        Err(_) => return Ok(None),
    }
    Ok(session
        .get_retry_buffer()
        .filter(|body| body.len() == length))
}

/// Reads a body, which the session keeps in its buffer.
async fn read_to_end(session: &mut ServerSession) -> pingora::Result<()> {
    // Ends: the length is known and small.
    while !session.is_body_done() {
        let read = session.read_request_body().await;
        if read.map_err(|error| error.into_down())?.is_none() {
            break;
        }
    }
    Ok(())
}

/// A request head that is being written.
struct HeadText(Vec<u8>);

impl HeadText {
    fn add(&mut self, parts: [&[u8]; 4]) {
        for part in parts {
            self.0.extend_from_slice(part);
        }
    }

    fn field(&mut self, name: &[u8], value: &HeaderValue) {
        self.add([name, b": ", value.as_bytes(), b"\r\n"]);
    }

    /// The fields of a request of HTTP/2, in which each cookie may be a field of its own (RFC 9113 section 8.2.3).
    fn http2_fields(&mut self, head: &RequestHeader, is_left_out: impl Fn(&HeaderName) -> bool) {
        for name in head.headers.keys().filter(|name| !is_left_out(name)) {
            let mut values = head.headers.get_all(name).iter();
            if *name != header::COOKIE {
                values.for_each(|value| self.field(name.as_str().as_bytes(), value));
                continue;
            }
            let first = values.next().map(HeaderValue::as_bytes).unwrap_or_default();
            self.add([b"cookie: ", first, b"", b""]);
            values.for_each(|value| self.add([b"; ", value.as_bytes(), b"", b""]));
            self.add([b"\r\n", b"", b"", b""]);
        }
    }
}

/// Room for the head of most requests, in bytes.
const HEAD_BYTES: usize = 1024;

/// What forwarding needs besides the request.
pub(in crate::listener) struct ForwardContext<'a> {
    pub(in crate::listener) session: &'a mut ServerSession,
    /// The whole request body.
    pub(in crate::listener) body: Bytes,
    pub(in crate::listener) upstreams: &'a Upstreams,
    pub(in crate::listener) fast_path: &'a FastPath,
    pub(in crate::listener) clock: &'a dyn Clock,
    pub(in crate::listener) leaving: &'a Stop,
}

impl ForwardedRequest {
    /// Sends the request to an upstream, on failure to another one, and returns the whole response to the client.
    pub(in crate::listener) async fn forward_directly(
        &mut self,
        mut context: ForwardContext<'_>,
    ) -> pingora::Result<()> {
        // Ends: `handle_failure` allows one retry, and only before anything was sent to the client.
        loop {
            self.choose_upstream(context.upstreams, context.clock.instant())?;
            let Err(error) = self.forward_once(&mut context).await else {
                return Ok(());
            };
            // Reports the failure; the error says whether the request is retried.
            let error = self.handle_failure(context.session, error);
            if !error.retry() {
                return Err(error);
            }
        }
    }

    async fn forward_once(&mut self, context: &mut ForwardContext<'_>) -> pingora::Result<()> {
        let body = &context.body;
        if !body.is_empty() {
            self.count_body(
                &mut Some(body.clone()),
                true,
                false,
                context.clock.instant(),
            )?;
        }
        // Encoded before a connection is taken, so that a head that cannot be forwarded costs none.
        let request = self.encode_request(context.session, body)?;
        let (mut upstream, unsent) = self.send_request(&request, context).await?;
        let is_sent = unsent.is_none();
        if let Err(error) = self.forward_response_heads(&mut upstream, context).await {
            let is_of_upstream = *error.esource() == ErrorSource::Upstream;
            return Err(unsent.filter(|_| is_of_upstream).unwrap_or(error));
        }
        // A response without a body still has to be ended, or the client would wait for it.
        let mut ended = upstream.is_body_done();
        if ended {
            write_piece(context.session, Bytes::new(), true).await?;
        }
        while !ended {
            let piece = tokio::select! {
                // The upstream first: what it has sent is delivered even if the client's side closed at the same
                // moment.
                biased;
                piece = upstream.read_body_bytes() => piece.map_err(|error| error.into_up())?,
                error = client_disconnected(context.session) => return Err(error),
            };
            ended = piece.is_none() || upstream.is_body_done();
            write_piece(context.session, piece.unwrap_or_default(), ended).await?;
        }
        // Reused only if the upstream allows it, and both bodies were transferred to their ends.
        upstream.respect_keepalive();
        if is_sent && let Some(stream) = upstream.reuse().await {
            self.keep_connection(stream, context.clock.instant());
        }
        Ok(())
    }

    /// Forwards interim response heads and the final one.
    async fn forward_response_heads(
        &mut self,
        upstream: &mut HttpSession,
        context: &mut ForwardContext<'_>,
    ) -> pingora::Result<()> {
        while self.forward_response_head(upstream, context).await? {}
        Ok(())
    }

    /// The request as sent to the upstream.
    fn encode_request(&self, session: &ServerSession, body: &Bytes) -> pingora::Result<Vec<u8>> {
        let head = session.req_header();
        let pass = &self.pass;
        let target = pass.target.as_bytes();
        // Written as it is into the request line: a space or a line end in it would begin another request.
        if !target.iter().all(u8::is_ascii_graphic) {
            return Error::e_explain(
                ErrorType::HTTPStatus(400),
                "invalid target for the upstream",
            );
        }
        let mut text = HeadText(Vec::with_capacity(HEAD_BYTES.saturating_add(body.len())));
        let method = head.method.as_str().as_bytes();
        text.add([method, b" ", target, b" HTTP/1.1\r\n"]);
        let own = pass.route.host == HostRule::Upstream;
        if own || !head.headers.contains_key(header::HOST) {
            // In HTTP/2 the authority takes the place of `Host`.
            let sent = head.uri.authority().filter(|_| !own);
            let host = sent.map(http::uri::Authority::as_str);
            let host = host.or_else(|| self.upstream_label()).unwrap_or_default();
            text.add([b"Host: ", host.as_bytes(), b"\r\n", b""]);
        }
        // `Connection` speaks of the client's connection, not of this one (RFC 9110 section 7.6.1).
        let is_left_out = |name: &HeaderName| {
            *name == header::CONNECTION
                || (own && *name == header::HOST)
                || pass.edit.set.iter().any(|(set, _)| set == name)
                || pass.edit.drops(name)
        };
        if session.is_http2() {
            text.http2_fields(head, is_left_out);
        } else {
            let as_sent = head.case_header_iter().map(|header| header.0);
            for ((name, value), as_sent) in head.headers.iter().zip(as_sent) {
                if !is_left_out(name) {
                    text.field(as_sent.as_slice(), value);
                }
            }
        }
        for (name, value) in &pass.edit.set {
            text.field(name.as_str().as_bytes(), value);
        }
        text.add([b"\r\n", body, b"", b""]);
        Ok(text.0)
    }

    /// Sends the request. Returns the session from which the response is read, and why the body was not sent to its end.
    async fn send_request(
        &self,
        request: &[u8],
        context: &ForwardContext<'_>,
    ) -> pingora::Result<(HttpSession, Option<Box<Error>>)> {
        let mut stream = match self.take_idle_connection(context.clock.instant()) {
            Some(stream) => stream,
            None => {
                let peer = self.build_peer()?;
                // Boxed, because most requests find a connection: the future of a request is made for each of them.
                let made = Box::pin(context.fast_path.0.new_stream(&peer)).await;
                made.map_err(|error| error.into_up())?
            }
        };
        // Kept connections as well: so no path can forget the check, and it costs one comparison.
        self.check_connection(stream.get_ssl_digest().as_deref())?;
        let timeouts = &self.lease()?.pool.config.timeouts;
        // One write for the whole request, so that a small one leaves in one packet.
        let writing = async {
            stream.write_all(request).await?;
            stream.flush().await
        };
        let written = match tokio::time::timeout(timeouts.write, writing).await {
            Ok(written) => written.or_err(ErrorType::WriteError, "sending the request"),
            Err(_) => Error::e_explain(ErrorType::WriteTimedout, "sending the request"),
        };
        let unsent = match written.map_err(|error| error.into_up()) {
            Ok(()) => None,
            // An upstream that does not want the body may have answered before it closed the connection.
            Err(error) if *error.etype() == ErrorType::WriteError && !context.body.is_empty() => {
                Some(error)
            }
            Err(error) => return Err(error),
        };
        let mut upstream = HttpSession::new(stream);
        upstream.read_timeout = Some(timeouts.read);
        Ok((upstream, unsent))
    }

    /// Forwards a response head. Returns true if it is an interim one, so that another follows.
    async fn forward_response_head(
        &mut self,
        upstream: &mut HttpSession,
        context: &mut ForwardContext<'_>,
    ) -> pingora::Result<bool> {
        tokio::select! {
            biased;
            read = upstream.read_response() => read.map_err(|error| error.into_up())?,
            error = client_disconnected(context.session) => return Err(error),
        };
        let is_over = upstream.is_body_done();
        let Some(received) = upstream.resp_header() else {
            let error = Error::explain(ErrorType::InternalError, "no response head was read");
            return Err(error.into_in());
        };
        response_head::check_response(received, false)?;
        let mut head = copy_head(received)?;
        let interim = head.status.is_informational();
        if !interim && !is_over {
            frame_unknown_length(&mut head)?;
        }
        let session = &mut *context.session;
        if context.leaving.is_given() || connection_phase::is_overread() {
            session.set_keepalive(None);
        }
        self.note_response(&head, context.clock.instant());
        self.add_gateway_fields(session, &mut head)?;
        let written = session.write_response_header(Box::new(head)).await;
        written.map_err(|error| error.into_down())?;
        Ok(interim)
    }
}

/// The response head without fields that are not for the client.
fn copy_head(received: &ResponseHeader) -> pingora::Result<ResponseHeader> {
    // `Via`, `X-Request-Id` and framing are added later.
    let added = 3;
    let capacity = received.headers.len().saturating_add(added);
    let mut head = ResponseHeader::build_no_case(received.status, Some(capacity))?;
    if let Some(reason) = received.get_reason_phrase() {
        head.set_reason_phrase(Some(reason))?;
    }
    let filter = FieldFilter::for_response(received);
    for (name, value) in &received.headers {
        if !filter.removes(name) {
            head.append_header(name, value.clone())?;
        }
    }
    response_head::normalize(&mut head)?;
    Ok(head)
}

/// Chunks a body of unknown length, so that the client connection stays open.
fn frame_unknown_length(head: &mut ResponseHeader) -> pingora::Result<()> {
    let is_framed = head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING);
    if !is_framed {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

async fn write_piece(session: &mut ServerSession, piece: Bytes, end: bool) -> pingora::Result<()> {
    let written = session.write_response_body(piece, end).await;
    written.map_err(|error| error.into_down())
}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as Socket;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use http::Version;

    use super::*;

    /// A session that has read this request.
    async fn session(text: &str) -> (ServerSession, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let mut client = client.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        let stream = Box::new(Socket::from(served.unwrap().0));
        let mut session = ServerSession::new_http1(stream);
        assert!(session.read_request().await.unwrap(), "{text:?} is read");
        (session, client)
    }

    #[tokio::test]
    async fn requests_with_no_body_or_a_small_one_of_known_length_take_the_fast_path() {
        let length = |length: &str| format!("Content-Length: {length}\r\n");
        let lengths = [
            length("0"),
            length("5"),
            length("65536"),
            length("65537"),
            length("05"),
        ];
        let [none, five, most, more, padded] = lengths.each_ref().map(String::as_str);
        // request line, fields, upgrade allowed, takes the fast path
        let rows = [
            ("GET / HTTP/1.1", "", false, true),
            ("GET / HTTP/1.0", "", false, true),
            ("GET / HTTP/1.1", "", true, false),
            ("GET / HTTP/1.1", "Connection: Keep-Alive\r\n", false, true),
            ("GET / HTTP/1.1", "Connection: close\r\n", false, true),
            ("GET / HTTP/1.1", none, false, true),
            ("GET / HTTP/1.1", five, false, true),
            ("POST / HTTP/1.1", none, false, true),
            ("POST / HTTP/1.1", five, false, true),
            ("POST / HTTP/1.0", five, false, true),
            ("PUT / HTTP/1.1", most, false, true),
            ("PUT / HTTP/1.1", more, false, false),
            ("PUT / HTTP/1.1", padded, false, false),
            ("HEAD / HTTP/1.1", five, false, false),
            ("POST / HTTP/1.1", five, true, false),
            ("POST / HTTP/1.1", "", false, true),
            (
                "GET / HTTP/1.1",
                "Connection: close, X-A\r\nX-A: 1\r\n",
                false,
                false,
            ),
            (
                "GET / HTTP/1.1",
                "Connection: close\r\nConnection: X-A\r\n",
                false,
                false,
            ),
            (
                "GET / HTTP/1.1",
                "Transfer-Encoding: chunked\r\n",
                false,
                false,
            ),
            ("GET / HTTP/1.1", "Expect: 100-continue\r\n", false, false),
            ("GET / HTTP/1.1", "Upgrade: h2c\r\n", false, false),
            ("GET / HTTP/1.1", "TE: trailers\r\n", false, false),
            ("GET / HTTP/1.1", "Trailer: X\r\n", false, false),
            ("GET / HTTP/1.1", "Keep-Alive: timeout=5\r\n", false, false),
            ("GET / HTTP/1.1", "Proxy-Connection: x\r\n", false, false),
            ("GET / HTTP/1.1", "HTTP2-Settings: x\r\n", false, false),
            ("HEAD / HTTP/1.1", "", false, false),
            ("CONNECT x:1 HTTP/1.1", "", false, false),
            ("DELETE / HTTP/1.1", "", false, true),
            ("PURGE / HTTP/1.1", "", false, true),
            ("DELETE / HTTP/1.0", "", false, true),
            ("DELETE / HTTP/1.1", "", true, false),
            (
                "DELETE / HTTP/1.1",
                "Transfer-Encoding: chunked\r\n",
                false,
                false,
            ),
        ];
        for (line, fields, upgrade, expected) in rows {
            let text = format!("{line}\r\nHost: x\r\n{fields}\r\n");
            let (mut session, _client) = session(&text).await;
            let length = fast_path_length(&mut session, upgrade);
            assert_eq!(length.is_some(), expected, "{line} {fields:?} {upgrade}");
        }
    }

    #[tokio::test]
    async fn a_body_that_takes_its_time_is_left_to_pingora_with_what_was_read() {
        let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
        let (mut prompt, _client) = session(&format!("{head}0123456789")).await;
        let body = read_fast_path_body(&mut prompt, false).await.unwrap();
        assert_eq!(body.as_deref(), Some(&b"0123456789"[..]), "prompt");
        let (mut slow, mut client) = session(&format!("{head}01234")).await;
        let body = read_fast_path_body(&mut slow, false).await.unwrap();
        assert_eq!(body, None, "not yet");
        let kept = slow.get_retry_buffer();
        assert_eq!(kept.as_deref(), Some(&b"01234"[..]), "for Pingora");
        client.write_all(b"56789").await.unwrap();
        let rest = slow.read_request_body().await.unwrap();
        assert_eq!(rest.as_deref(), Some(&b"56789"[..]), "the rest");
        let (mut cut, client) = session(&format!("{head}01234")).await;
        drop(client);
        let error = read_fast_path_body(&mut cut, false).await.unwrap_err();
        assert_eq!(*error.esource(), ErrorSource::Downstream, "disconnected");
    }

    #[test]
    fn responses_are_copied_without_hop_by_hop_fields_and_framed() {
        let mut received = ResponseHeader::build(299, None).unwrap();
        received.set_reason_phrase(Some("As It Was")).unwrap();
        received.set_version(Version::HTTP_10);
        for (name, value) in [
            ("Server", "Secret/1.0"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("ETag", "\"1\""),
        ] {
            received.append_header(name, value).unwrap();
        }
        let mut head = copy_head(&received).unwrap();
        frame_unknown_length(&mut head).unwrap();
        assert_eq!(
            (head.status.as_u16(), head.get_reason_phrase()),
            (299, Some("As It Was")),
            "line"
        );
        assert_eq!(head.version, Version::HTTP_11, "HTTP/1.0 has no chunks");
        let found: Vec<_> = head
            .headers
            .iter()
            .map(|header| (header.0.as_str(), header.1.to_str().unwrap()))
            .collect();
        let expected = [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("etag", "\"1\""),
            ("transfer-encoding", "chunked"),
        ];
        assert_eq!(found, expected, "fields");
        let mut known = ResponseHeader::build(200, None).unwrap();
        known.insert_header("Content-Length", "3").unwrap();
        frame_unknown_length(&mut known).unwrap();
        assert!(
            !known.headers.contains_key(header::TRANSFER_ENCODING),
            "of known length"
        );
    }
}
