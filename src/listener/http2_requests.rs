//! Serves an HTTP/2 connection: accepts its requests, each handled in a task of its own, and widens its window for uploads.
//!
//! The window of a connection bounds what a client may send before it is read, in all its streams. It is small, so that many
//! connections take little memory. A connection that uploads through a pass-through route gets a large one, because with a small one an
//! upload sends one window per round trip; how many have a large one is bounded, too.

use std::sync::Arc;
use std::task::Poll;

use pingora::apps::HttpServerApp;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Accept;
use pingora::protocols::http::v2::server::HttpSession;
use pingora::protocols::http::v2::server::handshake;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use crate::listener::connection_phase::PhaseTracker;
use crate::listener::connection_phase::StreamInFlight;
use crate::listener::corked_stream::CorkedStream;
use crate::listener::http2_connection::Http2Connection;
use crate::model::limits;
use crate::runtime::Tasks;

/// Malformed requests for which a stream is reset, before the connection ends. As in Pingora's own loop.
const MALFORMED_MAX: usize = 32;

/// The connections that may have a large window.
pub(super) fn wide_connections() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits::HTTP2_WIDE_CONNECTIONS_MAX))
}

/// Serves requests until the connection ends.
pub(super) async fn serve_http2<A>(
    app: &Arc<A>,
    stream: CorkedStream,
    phases: &PhaseTracker,
    wide_connections: &Arc<Semaphore>,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    let mut shutdown = phases.subscribe_last_request();
    let shutdown_of_requests = shutdown.clone();
    let digest = Arc::new(Digest {
        ssl_digest: stream.with(|stream| stream.get_ssl_digest()),
        timing_digest: stream.with(|stream| stream.get_timing_digest()),
        proxy_digest: stream.with(|stream| stream.get_proxy_digest()),
        socket_digest: stream.with(|stream| stream.get_socket_digest()),
    });
    let served = Box::new(Http2Connection::new(stream.clone(), phases.clone()));
    let Ok(mut connection) = handshake(served, app.h2_options()).await else {
        return;
    };
    let requests = Tasks::default();
    let (mut malformed, mut is_leaving, mut have_others_run) = (0_usize, false, false);
    // Kept to the end of the connection: a window cannot be taken back before the client has used it.
    let mut wide = None;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.changed(), if !is_leaving => {
                connection.graceful_shutdown();
                is_leaving = true;
                continue;
            }
            () = phases.upload_begun(), if wide.is_none() => {
                wide = Arc::clone(wide_connections).try_acquire_owned().ok();
                if wide.is_some() {
                    connection.set_target_window_size(limits::HTTP2_WIDE_WINDOW_BYTES);
                }
                continue;
            }
            accepted = in_one_write(
                HttpSession::from_h2_conn(&mut connection, Arc::clone(&digest)),
                (&stream, phases),
                &mut have_others_run,
            ) => accepted,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let request = handle_request(
                    Arc::clone(app),
                    session,
                    shutdown_of_requests.clone(),
                    phases.begin_stream(),
                );
                drop(requests.spawn(request));
            }
            Ok(Some(H2Accept::Rejected)) => {
                malformed = malformed.saturating_add(1);
                if malformed >= MALFORMED_MAX {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "HTTP/2 connection ended");
                return;
            }
        }
    }
}

/// The same future, which lets all responses that are ready leave in one write. It is polled after the tasks of other requests of the
/// connection that are ready to run: a task that is woken runs before those that were ready for longer, and every response wakes that of
/// the connection.
async fn in_one_write<F: Future>(
    work: F,
    (stream, phases): (&CorkedStream, &PhaseTracker),
    have_others_run: &mut bool,
) -> F::Output {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if !*have_others_run && phases.has_many_streams() {
            *have_others_run = true;
            // Runs again after all tasks that are ready.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        stream.cork();
        let polled = work.as_mut().poll(context);
        *have_others_run &= polled.is_ready();
        // A request that was read may be followed by others.
        if polled.is_pending() {
            stream.uncork(context);
        }
        polled
    })
    .await
}

/// Handles one request. `in_flight` keeps the connection busy.
async fn handle_request<A>(
    app: Arc<A>,
    session: HttpSession,
    shutdown: watch::Receiver<bool>,
    in_flight: StreamInFlight,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    let session = ServerSession::new_http2(session);
    drop(app.process_new_http(session, &shutdown).await);
    drop(in_flight);
}
