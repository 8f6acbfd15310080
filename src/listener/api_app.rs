//! Serves each request of the API port: reads its head, has it handled, and leaves to Pingora's proxy what it has to forward.
//!
//! The future of Pingora's proxy has room for everything that a forwarded request may need, 15 KB. It is made for those requests only that
//! the gateway does not answer or forward itself, after the gateway has decided about them.

use std::cell::Cell;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::apps::HttpPersistentSettings;
use pingora::apps::HttpServerApp;
use pingora::apps::HttpServerOptions;
use pingora::apps::ReusedHttpStream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession as Http1Session;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::HttpProxy;
use tokio::sync::watch;

use crate::listener::connection_phase;
use crate::listener::proxy::ApiProxy;
use crate::listener::proxy::HANDED_OVER;
use crate::listener::request_head::body_framing;
use crate::listener::request_head::trim_field_values;
use crate::listener::request_service::Progress;
use crate::listener::request_service::RequestContext;
use crate::listener::request_service::RequestService;

/// The application of the API port.
pub(super) struct ApiApp {
    pub(super) service: Arc<RequestService>,
    pub(super) proxy: Arc<HttpProxy<ApiProxy>>,
    pub(super) options: HttpServerOptions,
    pub(super) http2_options: H2Options,
}

impl ApiApp {
    /// Handles a request whose head was read.
    async fn handle(
        &self,
        session: &mut ServerSession,
        context: &mut RequestContext,
    ) -> pingora::Result<Progress> {
        match session.as_http1() {
            Some(session) => {
                let framing = body_framing(&session.req_header().headers);
                connection_phase::record_request_head(&session.get_headers_raw_bytes(), framing);
            }
            None => trim_field_values(session.req_header_mut())?,
        }
        self.service.limit_session(session);
        self.service.handle(session, context).await
    }

    /// Answers a request that could not be handled.
    async fn fail(
        &self,
        session: &mut ServerSession,
        context: &mut RequestContext,
        error: Box<Error>,
    ) {
        let status = self.service.fail(session, context, &error).await;
        // Errors of clients are not those of the gateway.
        if *error.esource() != ErrorSource::Downstream {
            tracing::debug!(%error, status, "request could not be handled");
        }
        self.service.report(session, context, false);
        connection_phase::mark_request_ended();
    }

    /// Leaves a request to Pingora's proxy.
    async fn leave_to_pingora(
        &self,
        mut session: ServerSession,
        mut context: RequestContext,
        shutdown: &watch::Receiver<bool>,
    ) -> Option<ReusedHttpStream> {
        let received = session.as_http1().map(received_bytes);
        let session = match received {
            // The head of a session of HTTP/2 counts as read.
            None => session,
            Some(Some(received)) => rewind(session, received),
            // What the upstream would get is not what was judged.
            Some(None) => {
                let error = Error::explain(ErrorType::InvalidHTTPHeader, "a head of unknown end");
                self.fail(&mut session, &mut context, error.into_down())
                    .await;
                return None;
            }
        };
        let forwarding = self.proxy.process_new_http(session, shutdown);
        HANDED_OVER
            .scope(Cell::new(Some(context)), forwarding)
            .await
    }
}

/// All bytes of the request that were received so far. `None` if that is not known.
fn received_bytes(session: &Http1Session) -> Option<BytesMut> {
    let mut received = BytesMut::from(&*session.get_headers_raw_bytes());
    // What was read of a body that took its time begins with what came with the head.
    match session.get_retry_buffer().filter(|read| !read.is_empty()) {
        Some(read) => received.extend_from_slice(&read),
        None => received.extend_from_slice(&connection_phase::received_beyond_head()?),
    }
    Some(received)
}

/// A session on the same connection that reads the request from its beginning.
fn rewind(session: ServerSession, received: BytesMut) -> ServerSession {
    let reuses_left = session.get_keepalive_reuses_remaining();
    let ServerSession::H1(session) = session else {
        return session;
    };
    let mut session = ServerSession::new_http1(session.into_inner());
    session.set_keepalive_reuses_remaining(reuses_left);
    session.set_pipelined_prefix(received);
    session
}

/// Reads a request head. False if the connection has ended, or was refused because it sent something else.
async fn read_head(session: &mut ServerSession) -> bool {
    let error = match session.read_request().await {
        Ok(is_read) => return is_read,
        Err(error) => error,
    };
    tracing::debug!(%error, "no request head");
    if *error.etype() == ErrorType::InvalidHTTPHeader {
        // The connection replaces this answer with a refusal (see `unreadable_request.rs`).
        if let Err(error) = session.respond_error(400).await {
            tracing::debug!(%error, "refusal not delivered");
        }
    }
    session.shutdown().await;
    false
}

#[async_trait]
impl HttpServerApp for ApiApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &watch::Receiver<bool>,
    ) -> Option<ReusedHttpStream> {
        if !read_head(&mut session).await {
            return None;
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        connection_phase::mark_request_begun();
        let mut context = self.service.begin_request();
        match self.handle(&mut session, &mut context).await {
            Ok(Progress::Answered) => {}
            Ok(Progress::LeftToPingora) => {
                // Boxed, like all that most requests do not come to: this future is made for each of them.
                return Box::pin(self.leave_to_pingora(session, context, shutdown)).await;
            }
            Err(error) => {
                Box::pin(self.fail(&mut session, &mut context, error)).await;
                return None;
            }
        }
        self.service.report(&session, &mut context, true);
        connection_phase::mark_request_ended();
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.http2_options.clone())
    }
}

#[cfg(test)]
mod tests {
    use pingora::protocols::Stream;
    use pingora::protocols::l4::stream::Stream as Socket;
    use pingora::proxy::http_proxy;
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;
    use crate::listener::Limits;
    use crate::listener::Upstreams;
    use crate::listener::forward::FastPath;
    use crate::listener::tests::Script;
    use crate::runtime::SystemClock;
    use crate::runtime::Tasks;
    use crate::runtime::stop_pair;
    use crate::telemetry::Metrics;

    /// Bytes of the future of a request, which is made and moved for each of them.
    const FUTURE_BYTES_MAX: usize = 6 * 1024;

    /// An application, and a connection to it with its client.
    async fn app_and_connection() -> (Arc<ApiApp>, Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let stream: Stream = Box::new(Socket::from(served.unwrap().0));
        let (clock, metrics) = (SystemClock::shared(), Arc::new(Metrics::new().unwrap()));
        let (_stopper, leaving) = stop_pair();
        let upstreams = Upstreams::new(Arc::clone(&clock), Arc::clone(&metrics), Tasks::default());
        let service = Arc::new(RequestService {
            handler: Arc::new(Script::default()),
            upstreams,
            fast_path: FastPath::new(),
            limits: Limits::default(),
            clock,
            metrics,
            leaving,
        });
        let app = Arc::new(ApiApp {
            service: Arc::clone(&service),
            proxy: Arc::new(http_proxy(&Arc::default(), ApiProxy(service))),
            options: HttpServerOptions::default(),
            http2_options: H2Options::default(),
        });
        (app, stream, client.unwrap())
    }

    #[tokio::test]
    async fn requests_that_the_gateway_answers_have_no_room_for_pingoras_proxy() {
        let (app, stream, _client) = app_and_connection().await;
        let (_stop, stopped) = watch::channel(false);
        let handled = app.process_new_http(ServerSession::new_http1(stream), &stopped);
        let size = size_of_val(&*handled);
        assert!(size <= FUTURE_BYTES_MAX, "{size} bytes");
    }

    #[tokio::test]
    async fn the_proxy_forwards_nothing_that_was_not_decided_about() {
        let (app, stream, mut client) = app_and_connection().await;
        let (_stop, stopped) = watch::channel(false);
        client
            .write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let session = ServerSession::new_http1(stream);
        assert!(
            app.proxy
                .process_new_http(session, &stopped)
                .await
                .is_none()
        );
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer:?}");
    }

    #[tokio::test]
    async fn a_request_of_which_not_all_bytes_are_known_is_not_handed_over() {
        let (app, stream, mut client) = app_and_connection().await;
        let (_stop, stopped) = watch::channel(false);
        client
            .write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut session = ServerSession::new_http1(stream);
        assert!(read_head(&mut session).await, "a head");
        // Outside a guarded connection no received bytes are known.
        let context = app.service.begin_request();
        let left = app.leave_to_pingora(session, context, &stopped).await;
        assert!(left.is_none(), "the connection ends");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        // Without a route there is no answer for it either; from the proxy a 500 would come.
        assert_eq!(answer, "", "not handed over");
    }
}
