//! The life of every connection: handshake, limits of time between and within request heads, and the two signals of a drain.
//!
//! Pingora limits single reads only, so a client that sends one byte a minute would stay connected forever. Here the limit applies
//! to the phase of a connection, and every change of phase restarts it. A phase changes twice per request and hardly ever exceeds
//! its limit, so a change wakes no task: the limit is checked when it could have passed.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use pingora::apps::HttpServerApp;
use pingora::protocols::ALPN;
use pingora::protocols::GetSocketDigest as _;
use pingora::protocols::SocketDigest;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Socket;
use tokio::sync::Semaphore;

use crate::listener::Limits;
use crate::listener::connection::Http1Connection;
use crate::listener::connection_phase::ConnectionPhase;
use crate::listener::connection_phase::PhaseSnapshot;
use crate::listener::connection_phase::PhaseTracker;
use crate::listener::corked_stream::CorkedStream;
use crate::listener::http1_requests::serve_http1;
use crate::listener::http2_requests::serve_http2;
use crate::listener::per_ip_limit::ConnectionSlot;
use crate::listener::per_ip_limit::PerIpLimit;
use crate::listener::per_ip_limit::TooManyConnections;
use crate::listener::tls::Handshakes;
use crate::listener::tls::tls_peer;
use crate::listener::unreadable_request::UnreadableRequests;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::telemetry::Metrics;

/// How long an idle connection stays open when the gateway stops. A request that arrives in this time is answered with
/// `Connection: close`; HTTP/2 sends GOAWAY.
const IDLE_DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a client of HTTP/2 may take to acknowledge that the connection ends. Until then requests of it may arrive, which
/// are answered.
const GOAWAY_DRAIN_TIME: Duration = Duration::from_secs(5);

/// Shortest time between two checks whether a connection is overdue, while it is not idle.
const OVERDUE_CHECK_PAUSE: Duration = Duration::from_millis(10);

/// Why a connection ended. The words are values of a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseReason {
    /// By the client, or after a request that asked for it.
    Usual,
    /// Its address has too many connections.
    AddressLimit,
    /// The handshake timed out.
    SlowHandshake,
    /// The handshake failed.
    BadHandshake,
    /// No request that could be parsed was received.
    NoRequest,
    /// A request head timed out.
    SlowHeader,
    /// It was idle for too long.
    Idle,
    /// The gateway stopped while it was between requests.
    Stopping,
    /// The gateway stopped while its request was handled.
    Cut,
    /// The code that handled it panicked.
    Panic,
}

impl CloseReason {
    /// The value of the metric label; `None` for ends that are not counted.
    const fn label(self) -> Option<&'static str> {
        match self {
            Self::Usual => None,
            Self::AddressLimit => Some("address_limit"),
            Self::SlowHandshake => Some("slow_handshake"),
            Self::BadHandshake => Some("bad_handshake"),
            Self::NoRequest => Some("no_request"),
            Self::SlowHeader => Some("slow_header"),
            Self::Idle => Some("idle"),
            Self::Stopping => Some("stopping"),
            Self::Cut => Some("cut"),
            Self::Panic => Some("panic"),
        }
    }
}

/// The connections of one port.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether connections are counted in the metrics. Only those of the API port are.
    pub(super) counted: bool,
    /// Present if the connections per address are limited.
    pub(super) per_ip_limit: Option<Arc<PerIpLimit>>,
    /// Present if answers of Pingora's parser are replaced. The admin port records no heads, so it cannot recognise them.
    pub(super) unreadable: Option<UnreadableRequests>,
    /// Present if connections are encrypted.
    pub(super) tls: Option<Handshakes>,
    /// Connections of HTTP/1 end with their next response; clients of HTTP/2 are asked to leave.
    pub(super) leaving: Stop,
    /// No new connections; idle ones end soon.
    pub(super) stop: Stop,
    /// Connections end at once, even while a request is handled.
    pub(super) cut: Stop,
    /// HTTP/2 connections that may have a large window.
    pub(super) wide_connections: Arc<Semaphore>,
    pub(super) open: AtomicUsize,
}

/// Counts an open connection until dropped.
struct OpenConnection<'a>(&'a ConnectionGuard);

impl<'a> OpenConnection<'a> {
    fn count(guard: &'a ConnectionGuard) -> Self {
        guard.open.fetch_add(1, Ordering::AcqRel);
        if guard.counted {
            guard.metrics.requests.record_connection_opened();
        }
        Self(guard)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        if self.0.counted {
            self.0.metrics.requests.record_connection_ended();
        }
    }
}

impl ConnectionGuard {
    /// Serves the connection until it ends.
    pub(super) async fn serve_connection<A>(&self, app: &Arc<A>, socket: Socket)
    where
        A: HttpServerApp + Send + Sync + 'static,
    {
        let open = OpenConnection::count(self);
        let reason = match self.complete_handshake(socket).await {
            Ok(stream) => self.serve_requests(app, stream).await,
            Err(reason) => reason,
        };
        drop(open);
        if reason == CloseReason::Panic {
            self.metrics.process.record_panic("listener");
        }
        self.count_end(reason);
    }

    /// Takes a slot of the connections of this address; `None` if they are not limited.
    ///
    /// # Errors
    /// [`TooManyConnections`], counted: close the connection.
    pub(super) fn take_address_slot(
        &self,
        socket: &Socket,
    ) -> Result<Option<ConnectionSlot>, TooManyConnections> {
        let Some(limit) = &self.per_ip_limit else {
            return Ok(None);
        };
        let digest = socket.get_socket_digest();
        let peer = digest
            .as_ref()
            .and_then(|digest| digest.peer_addr()?.as_inet());
        let Some(peer) = peer else {
            return Ok(None);
        };
        limit.take_slot(peer.ip()).map(Some).inspect_err(|_full| {
            tracing::debug!(%peer, "connection refused, too many from this address");
            self.count_end(CloseReason::AddressLimit);
        })
    }

    fn count_end(&self, reason: CloseReason) {
        if let (true, Some(label)) = (self.counted, reason.label()) {
            self.metrics.requests.record_closed_connection(label);
        }
    }

    /// The stream of the connection, after the TLS handshake if the port is encrypted.
    async fn complete_handshake(&self, socket: Socket) -> Result<Stream, CloseReason> {
        let Some(tls) = &self.tls else {
            return Ok(Box::new(socket));
        };
        let digest = socket.get_socket_digest();
        tokio::select! {
            biased;
            // Boxed, so that the task of the connection does not hold room for a handshake for its whole life.
            accepted = Box::pin(tls.accept(socket)) => match accepted {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    Err(CloseReason::BadHandshake)
                }
            },
            () = self.wait_until_handshake_stopped(digest) => Err(CloseReason::Stopping),
            () = tokio::time::sleep(self.limits.handshake_timeout) => Err(CloseReason::SlowHandshake),
        }
    }

    /// Resolves when the gateway stops and the client has begun no handshake, or may not finish it. A client that is cut off in the
    /// middle of a handshake sees an error instead of a connection that ends.
    async fn wait_until_handshake_stopped(&self, digest: Option<Arc<SocketDigest>>) {
        self.stop.given().await;
        tokio::select! {
            () = self.cut.given() => return,
            () = tokio::time::sleep(IDLE_DRAIN_TIME) => {}
        }
        let received = digest.and_then(|digest| Some(digest.tcp_info()?.tcpi_bytes_received));
        if received.is_some_and(|bytes| bytes > 0) {
            self.cut.given().await;
        }
    }

    async fn serve_requests<A>(&self, app: &Arc<A>, stream: Stream) -> CloseReason
    where
        A: HttpServerApp + Send + Sync + 'static,
    {
        let phases = tracker_of(&stream).unwrap_or_else(PhaseTracker::new);
        let is_http2 = stream.selected_alpn_proto() == Some(ALPN::H2);
        let work = phases.scope(async {
            if is_http2 {
                // Boxed, so that the many connections of HTTP/1 have no room for it.
                let wide = &self.wide_connections;
                let stream = CorkedStream::new(stream);
                return Box::pin(serve_http2(app, stream, &phases, wide)).await;
            }
            let (tracker, unreadable) = (phases.clone(), self.unreadable.clone());
            let stream = Box::new(Http1Connection::new(stream, tracker, unreadable));
            serve_http1(app, stream, &self.leaving.receiver()).await;
        });
        // The work is polled first: a request that was already read is handled, whatever else happened meanwhile.
        tokio::select! {
            biased;
            ended = std::panic::AssertUnwindSafe(work).catch_unwind() => match ended {
                Ok(()) => self.reason_of_end(phases.snapshot()),
                Err(_) => CloseReason::Panic,
            },
            reason = self.wait_until_stopped(&phases, is_http2) => reason,
            reason = self.wait_until_overdue(&phases) => reason,
        }
    }

    /// Resolves when the connection has been in a phase for longer than that may take.
    async fn wait_until_overdue(&self, phases: &PhaseTracker) -> CloseReason {
        loop {
            let now = phases.snapshot();
            let spent = now.since.elapsed();
            // Every later phase may take at least this long, so its end is not missed.
            let soon = self.limits.header_timeout.min(self.limits.idle_timeout);
            let left = match now.phase {
                ConnectionPhase::Busy => soon.max(OVERDUE_CHECK_PAUSE),
                ConnectionPhase::First => {
                    let left = self.limits.header_timeout.saturating_sub(spent);
                    left.min(soon.max(OVERDUE_CHECK_PAUSE))
                }
                ConnectionPhase::Next if phases.has_head_begun() => {
                    self.next_head_timeout().saturating_sub(spent)
                }
                ConnectionPhase::Next => {
                    let left = self.limits.idle_timeout.saturating_sub(spent);
                    if left.is_zero() {
                        return CloseReason::Idle;
                    }
                    left
                }
            };
            if left.is_zero() {
                return CloseReason::SlowHeader;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Resolves when the gateway stops and the connection has no request to finish, or may not finish it.
    async fn wait_until_stopped(&self, phases: &PhaseTracker, is_http2: bool) -> CloseReason {
        if !is_http2 {
            return self.wait_until_idle(phases, IDLE_DRAIN_TIME).await;
        }
        tokio::select! {
            reason = self.wait_until_idle(phases, GOAWAY_DRAIN_TIME) => reason,
            never = self.ask_to_leave(phases) => never,
        }
    }

    /// Asks the client of HTTP/2 to leave when that is due. Never resolves: Pingora ends the connection when it is ready to.
    async fn ask_to_leave(&self, phases: &PhaseTracker) -> CloseReason {
        // A client that connects while others are asked to leave may stay until the gateway stops.
        if self.leaving.is_given() {
            self.stop.given().await;
        }
        self.leaving.given().await;
        // A client that has just connected has a request: it would have to connect again for it.
        let changed = phases.wait_for_change();
        if phases.snapshot().phase == ConnectionPhase::First {
            drop(tokio::time::timeout(IDLE_DRAIN_TIME, changed).await);
        }
        phases.ask_to_leave();
        std::future::pending().await
    }

    /// Resolves when the gateway stops and the connection was idle for `idle_max`, or may not finish its request.
    async fn wait_until_idle(&self, phases: &PhaseTracker, idle_max: Duration) -> CloseReason {
        self.stop.given().await;
        loop {
            let changed = phases.wait_for_change();
            // A partly received head is waited for, within the limit for heads.
            let was_busy = phases.is_busy();
            tokio::select! {
                () = changed => {}
                () = self.cut.given() => {
                    return if was_busy { CloseReason::Cut } else { CloseReason::Stopping };
                }
                () = tokio::time::sleep(idle_max), if !was_busy => {
                    if !phases.is_busy() {
                        return CloseReason::Stopping;
                    }
                }
            }
        }
    }

    fn next_head_timeout(&self) -> Duration {
        self.limits
            .idle_timeout
            .saturating_add(self.limits.header_timeout)
    }

    /// Why Pingora ended the connection.
    fn reason_of_end(&self, now: PhaseSnapshot) -> CloseReason {
        if self.stop.is_given() && now.phase != ConnectionPhase::Busy {
            return CloseReason::Stopping;
        }
        match now.phase {
            ConnectionPhase::First => CloseReason::NoRequest,
            ConnectionPhase::Busy => CloseReason::Usual,
            ConnectionPhase::Next if now.since.elapsed() >= self.limits.idle_timeout => {
                CloseReason::Idle
            }
            ConnectionPhase::Next => CloseReason::Usual,
        }
    }
}

/// The tracker that was created in the handshake, which requests of HTTP/2 share.
fn tracker_of(stream: &Stream) -> Option<PhaseTracker> {
    let digest = stream.get_ssl_digest()?;
    Some(tls_peer(&digest)?.phases.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::SystemClock;
    use crate::runtime::stop_pair;

    /// Rounds in which two threads end the last two connections at the same time.
    const ROUNDS: usize = 10_000;

    #[test]
    fn the_number_of_open_connections_is_right_after_any_two_end_at_once() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (_stopper, stop) = stop_pair();
        let guard = ConnectionGuard {
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
            metrics: Arc::clone(&metrics),
            counted: true,
            per_ip_limit: None,
            unreadable: None,
            tls: None,
            leaving: stop.clone(),
            stop: stop.clone(),
            cut: stop,
            wide_connections: Arc::new(Semaphore::new(0)),
            open: AtomicUsize::new(0),
        };
        // Threads that look again and again go on together; those at a barrier are woken one after the other.
        let arrived = AtomicUsize::new(0);
        let meet = |meetings: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            let mut looks = 0_u32;
            while arrived.load(Ordering::SeqCst) < 2 * meetings {
                looks += 1;
                // On one core the other thread could not come otherwise.
                if looks.is_multiple_of(1_000) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        };
        let close_together = || {
            let mut wrong = 0_usize;
            for round in 0..ROUNDS {
                let open = OpenConnection::count(&guard);
                meet(3 * round + 1);
                drop(open);
                meet(3 * round + 2);
                wrong += usize::from(metrics.requests.open_connections() != 0);
                meet(3 * round + 3);
            }
            wrong
        };
        let wrong = std::thread::scope(|scope| {
            let other = scope.spawn(close_together);
            close_together() + other.join().unwrap()
        });
        assert_eq!(wrong, 0, "of {ROUNDS} rounds");
    }
}
