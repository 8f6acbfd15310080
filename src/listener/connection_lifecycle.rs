//! What every connection is held to: time for a request head, time between requests, and the two signals of a drain.
//!
//! Pingora limits single reads only, so a client that sends one byte a minute would stay for ever. Here the time allowed
//! belongs to the phase a connection is in, and every change of phase starts it anew. Phases change twice with each request and
//! are hardly ever too long, so nobody is woken by a change: the time is looked at when it could be over.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use pingora::apps::ServerApp;
use pingora::protocols::ALPN;
use pingora::protocols::GetSocketDigest as _;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::tls::SslDigest;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::listener::Limits;
use crate::listener::connection::Connection;
use crate::listener::per_ip_limit::ConnectionSlot;
use crate::listener::per_ip_limit::PerIpLimit;
use crate::listener::per_ip_limit::TooManyConnections;
use crate::listener::request_tracker::Framing;
use crate::listener::request_tracker::RequestTracker;
use crate::listener::tls::Handshakes;
use crate::listener::tls::TlsPeer;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::telemetry::Metrics;

/// Requests of one connection before it is closed: frees what its buffers grew to.
pub(super) const REQUESTS_PER_CONNECTION: u32 = 10_000;
/// How long an idle connection stays when the gateway stops. A request that is on its way by then is answered, and the client
/// is told to come back on another connection; HTTP/2 says good-bye.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionPhase {
    /// Its first request head is awaited.
    First,
    /// A request is handled; how long that may take is not decided here.
    Busy,
    /// Its next request head is awaited.
    Next,
}

/// What one connection is doing, told by whoever handles its requests.
#[derive(Clone, Debug)]
pub(super) struct PhaseTracker(Arc<TrackedConnection>);

#[derive(Debug)]
struct TrackedConnection {
    now: Mutex<PhaseSnapshot>,
    /// Told of every change of phase; only who has been told to stop listens.
    changed: Notify,
    /// Requests of HTTP/2 so far.
    requests: AtomicU32,
    /// No more of them.
    enough: watch::Sender<bool>,
    /// What came of its request of HTTP/1.
    tracker: RequestTracker,
}

#[derive(Clone, Copy, Debug)]
struct PhaseSnapshot {
    phase: ConnectionPhase,
    /// When the phase began, by the clock of timers; that of [`ConnectionPhase::Busy`] is of no interest, and not noted.
    since: Instant,
    /// Requests of HTTP/2 being handled.
    open: usize,
}

tokio::task_local! {
    static PHASES: PhaseTracker;
}

impl PhaseTracker {
    pub(super) fn new() -> Self {
        let now = PhaseSnapshot {
            phase: ConnectionPhase::First,
            since: Instant::now(),
            open: 0,
        };
        Self(Arc::new(TrackedConnection {
            now: Mutex::new(now),
            changed: Notify::new(),
            requests: AtomicU32::new(0),
            enough: watch::Sender::new(false),
            tracker: RequestTracker::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, PhaseSnapshot> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> PhaseSnapshot {
        *self.lock()
    }

    fn enter(&self, phase: ConnectionPhase) {
        if phase == ConnectionPhase::Next {
            self.0.tracker.begin();
        }
        self.change(|now| now.phase = phase);
    }

    fn change(&self, change: impl FnOnce(&mut PhaseSnapshot)) {
        let mut now = self.lock();
        let before = now.phase;
        change(&mut now);
        if now.phase == before {
            return;
        }
        if now.phase != ConnectionPhase::Busy {
            now.since = Instant::now();
        }
        drop(now);
        self.0.changed.notify_waiters();
    }

    /// One more request of HTTP/2, until the returned value is dropped: they run beside one another, in tasks of their own.
    pub(super) fn request(&self) -> StreamInFlight {
        let before = self.0.requests.fetch_add(1, Ordering::Relaxed);
        if before.saturating_add(1) >= REQUESTS_PER_CONNECTION {
            self.0.enough.send_replace(true);
        }
        self.change(|now| {
            now.open = now.open.saturating_add(1);
            now.phase = ConnectionPhase::Busy;
        });
        StreamInFlight(self.clone())
    }
}

impl AsRef<RequestTracker> for PhaseTracker {
    fn as_ref(&self) -> &RequestTracker {
        &self.0.tracker
    }
}

/// A request of HTTP/2 that is being handled.
#[derive(Debug)]
pub(super) struct StreamInFlight(PhaseTracker);

impl Drop for StreamInFlight {
    fn drop(&mut self) {
        self.0.change(|now| {
            now.open = now.open.saturating_sub(1);
            if now.open == 0 {
                now.phase = ConnectionPhase::Next;
            }
        });
    }
}

/// The request head is complete: from now on the connection is not closed from outside. For the task of the connection.
pub(super) fn mark_request_begun() {
    enter(ConnectionPhase::Busy);
}

/// The answer is out, to the last byte.
pub(super) fn mark_request_ended() {
    enter(ConnectionPhase::Next);
}

/// Pingora read this head of a request of HTTP/1, and what follows is framed like this. For the task of the connection, as are
/// the functions below.
pub(super) fn head_ended(head: &[u8], framing: Framing) {
    of_intake(|tracker| tracker.head_ended(head, framing));
}

/// What follows is not HTTP/1 any more, or may not be.
pub(super) fn open() {
    of_intake(RequestTracker::open);
}

/// The target of the request of HTTP/1 as it was sent; `None` outside a guarded connection.
pub(super) fn target() -> Option<Vec<u8>> {
    of_intake(RequestTracker::target)
}

/// Whether the body of the request of HTTP/1 is known not to be what its framing says.
pub(super) fn is_malformed() -> bool {
    of_intake(RequestTracker::is_malformed).unwrap_or_default()
}

/// Whether the connection of HTTP/1 has to end with this request, because bytes behind it were lost.
pub(super) fn is_overread() -> bool {
    of_intake(RequestTracker::is_overread).unwrap_or_default()
}

fn of_intake<R>(ask: impl FnOnce(&RequestTracker) -> R) -> Option<R> {
    PHASES.try_with(|phases| ask(phases.as_ref())).ok()
}

fn enter(phase: ConnectionPhase) {
    // Requests of HTTP/2 run in tasks of their own, outside any guard; they hold a `StreamInFlight`.
    if let Err(error) = PHASES.try_with(|it| it.enter(phase)) {
        tracing::trace!(%error, "request without a guarded connection");
    }
}

/// Why a connection ended. The words are values of a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseReason {
    /// The client, or a request that asked for it.
    Usual,
    /// Its address had as many connections as it may have.
    AddressLimit,
    /// It did not finish its handshake in time.
    SlowHandshake,
    /// Its handshake failed.
    BadHandshake,
    /// It never sent a request that could be understood.
    NoRequest,
    /// Its request head took too long.
    SlowHeader,
    /// It was idle for too long.
    Idle,
    /// The gateway stops, and it was between requests.
    Stopping,
    /// The gateway stopped while its request was being handled.
    Cut,
    /// The code that handled it panicked.
    Panic,
}

impl CloseReason {
    const fn reason(self) -> Option<&'static str> {
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
    /// Whether connections are counted in the metrics: those of the API port are.
    pub(super) counted: bool,
    /// Present where the connections of one address are limited.
    pub(super) per_ip_limit: Option<Arc<PerIpLimit>>,
    /// Present where connections are encrypted.
    pub(super) tls: Option<Handshakes>,
    /// Each connection of HTTP/1 ends with its next answer; those of HTTP/2 are asked to end.
    pub(super) leaving: Stop,
    /// No more connections; what is idle ends soon.
    pub(super) stop: Stop,
    /// Not even those being handled.
    pub(super) cut: Stop,
    pub(super) open: AtomicUsize,
}

/// One open connection, until dropped.
struct OpenConnection<'a>(&'a ConnectionGuard);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.tell_open();
    }
}

impl ConnectionGuard {
    /// Serves the connection until it ends.
    pub(super) async fn serve<A>(&self, app: &Arc<A>, socket: Socket)
    where
        A: ServerApp + Send + Sync + 'static,
    {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.tell_open();
        let open = OpenConnection(self);
        let end = match self.greeted(socket).await {
            Ok(stream) => self.conversation(app, stream).await,
            Err(end) => end,
        };
        drop(open);
        if end == CloseReason::Panic {
            self.metrics.process.record_panic("listener");
        }
        self.count(end);
    }

    /// A place for the connection among those of its address; `None` where places are not limited.
    ///
    /// # Errors
    /// [`TooManyConnections`], counted: the connection is to be closed.
    pub(super) fn place(
        &self,
        socket: &Socket,
    ) -> Result<Option<ConnectionSlot>, TooManyConnections> {
        let Some(per_ip_limit) = &self.per_ip_limit else {
            return Ok(None);
        };
        let digest = socket.get_socket_digest();
        let peer = digest
            .as_ref()
            .and_then(|digest| digest.peer_addr()?.as_inet());
        let Some(peer) = peer else {
            return Ok(None);
        };
        per_ip_limit
            .enter(peer.ip())
            .map(Some)
            .inspect_err(|_crowded| {
                tracing::debug!(%peer, "too many connections of this address");
                self.count(CloseReason::AddressLimit);
            })
    }

    fn count(&self, end: CloseReason) {
        if let (true, Some(reason)) = (self.counted, end.reason()) {
            self.metrics.requests.record_closed_connection(reason);
        }
    }

    /// The connection, encrypted where it should be.
    async fn greeted(&self, socket: Socket) -> Result<Stream, CloseReason> {
        let Some(tls) = &self.tls else {
            return Ok(Box::new(socket));
        };
        tokio::select! {
            biased;
            // Boxed: the connection does not hold room for a handshake as long as it lives.
            made = Box::pin(tls.make(socket)) => match made {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, "handshake failed");
                    Err(CloseReason::BadHandshake)
                }
            },
            () = self.stop.given() => Err(CloseReason::Stopping),
            () = tokio::time::sleep(self.limits.handshake_timeout) => Err(CloseReason::SlowHandshake),
        }
    }

    async fn conversation<A>(&self, app: &Arc<A>, stream: Stream) -> CloseReason
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let phases = phases_of(&stream).unwrap_or_else(PhaseTracker::new);
        let many = stream.selected_alpn_proto() == Some(ALPN::H2);
        let shutdown = if many {
            phases.0.enough.subscribe()
        } else {
            self.leaving.receiver()
        };
        let stream: Stream = if many {
            stream
        } else {
            Box::new(Connection::new(stream, phases.clone()))
        };
        let work = PHASES.scope(phases.clone(), async {
            let mut next = app.process_new(stream, &shutdown).await;
            while let Some(stream) = next {
                next = app.process_new(stream, &shutdown).await;
            }
        });
        // The work comes first: what it has already read is handled, whatever else happened meanwhile.
        tokio::select! {
            biased;
            ended = std::panic::AssertUnwindSafe(work).catch_unwind() => match ended {
                Ok(()) => self.ended(phases.now()),
                Err(_) => CloseReason::Panic,
            },
            end = self.told_to_stop(&phases, many) => end,
            end = self.overdue(&phases) => end,
        }
    }

    /// Returns when the connection is in a phase for longer than that may take.
    async fn overdue(&self, phases: &PhaseTracker) -> CloseReason {
        loop {
            let now = phases.now();
            let spent = now.since.elapsed();
            let left = match now.phase {
                // Whatever comes next may take longer than this, so it is not missed.
                ConnectionPhase::Busy => self.limits.header_timeout,
                ConnectionPhase::First => self.limits.header_timeout.saturating_sub(spent),
                // A connection that is merely idle is closed by Pingora's own keep-alive timer (see `proxy.rs`) before this.
                ConnectionPhase::Next => self.next_timeout().saturating_sub(spent),
            };
            if left.is_zero() {
                return CloseReason::SlowHeader;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Returns when the gateway stops and the connection has nothing to finish, or is not to finish it.
    async fn told_to_stop(&self, phases: &PhaseTracker, many: bool) -> CloseReason {
        // A connection of HTTP/2 that is made while others leave is as good as theirs was until the gateway stops.
        if !self.leaving.is_given() {
            self.leaving.given().await;
            if many {
                phases.0.enough.send_replace(true);
            }
        }
        self.stop.given().await;
        if many {
            phases.0.enough.send_replace(true);
        }
        loop {
            let changed = phases.0.changed.notified();
            // A head of which a part has come is waited for, as long as heads may take.
            let is_busy =
                || phases.now().phase == ConnectionPhase::Busy || phases.0.tracker.has_begun();
            let was_busy = is_busy();
            tokio::select! {
                () = changed => {}
                () = self.cut.given() => return if was_busy { CloseReason::Cut } else { CloseReason::Stopping },
                () = tokio::time::sleep(GOODBYE_TIME_MAX), if !was_busy => {
                    if !is_busy() {
                        return CloseReason::Stopping;
                    }
                }
            }
        }
    }

    fn next_timeout(&self) -> Duration {
        self.limits
            .idle_timeout
            .saturating_add(self.limits.header_timeout)
    }

    /// Why work ended by itself.
    fn ended(&self, now: PhaseSnapshot) -> CloseReason {
        if self.stop.is_given() && now.phase != ConnectionPhase::Busy {
            return CloseReason::Stopping;
        }
        match now.phase {
            ConnectionPhase::First => CloseReason::NoRequest,
            ConnectionPhase::Busy => CloseReason::Usual,
            ConnectionPhase::Next => {
                if now.since.elapsed() >= self.limits.idle_timeout {
                    CloseReason::Idle
                } else {
                    CloseReason::Usual
                }
            }
        }
    }

    fn tell_open(&self) {
        if self.counted {
            self.metrics
                .requests
                .set_open_connections(self.open.load(Ordering::Acquire));
        }
    }
}

/// What an encrypted connection knows of its client.
pub(super) fn peer_of(digest: &SslDigest) -> Option<&TlsPeer> {
    digest.extension.get::<TlsPeer>()
}

fn phases_of(stream: &Stream) -> Option<PhaseTracker> {
    let digest = stream.get_ssl_digest()?;
    Some(peer_of(&digest)?.phases.clone())
}
