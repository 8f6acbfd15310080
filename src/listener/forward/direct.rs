//! Requests without a body, passed on by the task that has read them.
//!
//! Pingora hands what it proxies between two halves through two channels, and watches every connection that waits with a
//! task of its own: right for bodies in both directions, and a third of the time of a plain read. Here one request is
//! written, one answer read, with Pingora's own connections and parsers; what is decided about it is decided by the same
//! [`Carry`]. Everything else goes Pingora's way.

use std::fmt;

use bytes::Bytes;
use http::HeaderName;
use http::Method;
use http::StatusCode;
use http::Version;
use http::header;
use pingora::Error;
use pingora::ErrorType;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::TransportConnector;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::client::HttpSession;

use crate::gate::Pass;
use crate::listener::forward::carry::Carry;
use crate::listener::forward::pool::Upstreams;
use crate::listener::port::NO_AUTHORITIES;
use crate::runtime::Clock;
use crate::runtime::Stop;

/// What says that there is a body, an upgrade, or something between two neighbours: Pingora's business.
static INVOLVED: [HeaderName; 9] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Connects to upstreams for requests without a body.
pub(in crate::listener) struct Direct(TransportConnector);

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Direct")
    }
}

impl Direct {
    /// Reads the file of no authorities, and panics if it cannot: who makes this has looked.
    pub(in crate::listener) fn new() -> Self {
        let mut options = ConnectorOptions::new(1);
        options.ca_file = Some(NO_AUTHORITIES.to_owned());
        Self(TransportConnector::new(Some(options)))
    }
}

/// Whether a request has nothing in it but a question.
pub(in crate::listener) fn is_plain(session: &ServerSession, pass: &Pass) -> bool {
    let head = session.req_header();
    let connection = || head.headers.get_all(header::CONNECTION).iter();
    !session.is_http2()
        && !pass.upgrade
        && (head.method == Method::GET || head.method == Method::HEAD)
        && !head.headers.keys().any(|it| INVOLVED.contains(it))
        && connection().all(|it| {
            let it = it.as_bytes();
            it.eq_ignore_ascii_case(b"keep-alive") || it.eq_ignore_ascii_case(b"close")
        })
}

/// Where the answer goes, and what else is needed on the way.
pub(in crate::listener) struct Around<'a> {
    pub(in crate::listener) session: &'a mut ServerSession,
    pub(in crate::listener) upstreams: &'a Upstreams,
    pub(in crate::listener) direct: &'a Direct,
    pub(in crate::listener) clock: &'a dyn Clock,
    pub(in crate::listener) stop: &'a Stop,
}

impl Carry {
    /// Asks an upstream, another one if need be, and passes the answer on to its end.
    pub(in crate::listener) async fn ask(&mut self, mut around: Around<'_>) -> pingora::Result<()> {
        loop {
            self.choose(around.upstreams, around.clock.instant())?;
            let Err(error) = self.ask_once(&mut around).await else {
                return Ok(());
            };
            let error = self.failed(around.session, error);
            if !error.retry() {
                return Err(error);
            }
        }
    }

    async fn ask_once(&mut self, around: &mut Around<'_>) -> pingora::Result<()> {
        let mut upstream = self.connect(around).await?;
        let mut request = around.session.req_header().clone();
        request.set_version(Version::HTTP_11);
        self.rewrite(around.session, &mut request)?;
        request.remove_header(&header::CONNECTION);
        let written = upstream.write_request_header(Box::new(request)).await;
        written.map_err(|it| it.into_up())?;
        while self.pass_head(&mut upstream, around).await? {}
        let mut ended = upstream.is_body_done();
        if ended {
            pass_piece(around.session, Bytes::new(), true).await?;
        }
        while !ended {
            let piece = upstream.read_body_bytes().await.map_err(|it| it.into_up())?;
            ended = upstream.is_body_done();
            pass_piece(around.session, piece.unwrap_or_default(), ended).await?;
        }
        upstream.respect_keepalive();
        if let Some(stream) = upstream.reuse().await {
            self.keep(stream, around.clock.instant());
        }
        Ok(())
    }

    async fn connect(&self, around: &Around<'_>) -> pingora::Result<HttpSession> {
        let stream = match self.waiting(around.clock.instant()) {
            Some(stream) => stream,
            None => {
                let made = around.direct.0.new_stream(&self.peer()?).await;
                made.map_err(|it| it.into_up())?
            }
        };
        let mut upstream = HttpSession::new(stream);
        (upstream.read_timeout, upstream.write_timeout) = self.timeouts();
        self.connected(Some(upstream.digest()))?;
        Ok(upstream)
    }

    /// Passes the head of an answer on. True when another one follows.
    async fn pass_head(
        &mut self,
        upstream: &mut HttpSession,
        around: &mut Around<'_>,
    ) -> pingora::Result<bool> {
        let head = upstream.read_resp_header_parts().await;
        let mut head = head.map_err(|it| it.into_up())?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "nobody asked for an upgrade");
            return Err(error.into_up());
        }
        let interim = head.status.is_informational();
        if !interim && !upstream.is_body_done() {
            frame(&mut head)?;
        }
        let session = &mut *around.session;
        if around.stop.is_given() {
            session.set_keepalive(None);
        }
        self.answered(session, &mut head, around.clock.instant())?;
        let written = session.write_response_header(head).await;
        written.map_err(|it| it.into_down())?;
        Ok(interim)
    }
}

/// An answer of unknown length is in chunks, so that the connection need not end with it.
fn frame(head: &mut ResponseHeader) -> pingora::Result<()> {
    let is_framed = head.headers.contains_key(header::CONTENT_LENGTH)
        || head.headers.contains_key(header::TRANSFER_ENCODING);
    if !is_framed {
        head.set_version(Version::HTTP_11);
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

async fn pass_piece(session: &mut ServerSession, piece: Bytes, end: bool) -> pingora::Result<()> {
    let written = session.write_response_body(piece, end).await;
    written.map_err(|it| it.into_down())
}
