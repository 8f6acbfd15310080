//! The phase that each connection is in, set by the code that handles its requests and read by the limits of time.
//!
//! Requests of HTTP/1 run in the task of their connection and find its tracker in a task-local variable. Requests of HTTP/2 run
//! in tasks of their own and hold a [`StreamInFlight`].

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::task::Waker;

use futures_util::task::AtomicWaker;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::sync::watch;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::Instant;

use crate::listener::request_tracker::BodyFraming;
use crate::listener::request_tracker::RequestTracker;

/// Requests per connection before it is closed, which frees its grown buffers.
pub(super) const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionPhase {
    /// Waits for its first request head.
    First,
    /// Handles a request. Other limits bound how long that takes.
    Busy,
    /// Waits for its next request head.
    Next,
}

/// The phase of one connection, shared with the code that handles its requests.
#[derive(Clone, Debug)]
pub(super) struct PhaseTracker(Arc<TrackedConnection>);

#[derive(Debug)]
struct TrackedConnection {
    snapshot: Mutex<PhaseSnapshot>,
    /// Notified of every change of phase. Only connections that are being stopped listen.
    changed: Notify,
    /// Requests of HTTP/2 so far.
    requests: AtomicU32,
    /// Notified when an upload begins on a connection of HTTP/2.
    upload: Notify,
    /// Set when the client of HTTP/2 has to be asked to leave.
    is_asked_to_leave: AtomicBool,
    /// The task that asks it.
    reader: AtomicWaker,
    /// Set when the connection takes no more requests of HTTP/2.
    last_request: watch::Sender<bool>,
    /// The bytes received for the current request of HTTP/1.
    requests_h1: RequestTracker,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseSnapshot {
    pub(super) phase: ConnectionPhase,
    /// When the phase began, by the clock of timers. Not updated for [`ConnectionPhase::Busy`], where it is not needed.
    pub(super) since: Instant,
    /// Requests of HTTP/2 that are being handled.
    open_streams: usize,
}

tokio::task_local! {
    static TRACKER: PhaseTracker;
}

impl PhaseTracker {
    pub(super) fn new() -> Self {
        let snapshot = PhaseSnapshot {
            phase: ConnectionPhase::First,
            since: Instant::now(),
            open_streams: 0,
        };
        Self(Arc::new(TrackedConnection {
            snapshot: Mutex::new(snapshot),
            changed: Notify::new(),
            requests: AtomicU32::new(0),
            upload: Notify::new(),
            is_asked_to_leave: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            last_request: watch::Sender::new(false),
            requests_h1: RequestTracker::default(),
        }))
    }

    /// Runs the work of the connection so that the functions of this file find the tracker.
    pub(super) fn scope<F: Future>(&self, work: F) -> TaskLocalFuture<Self, F> {
        TRACKER.scope(self.clone(), work)
    }

    pub(super) fn snapshot(&self) -> PhaseSnapshot {
        *self.0.snapshot.lock()
    }

    /// Whether a request is handled, or a part of the next request head has arrived.
    pub(super) fn is_busy(&self) -> bool {
        self.snapshot().phase == ConnectionPhase::Busy || self.has_head_begun()
    }

    /// Whether a part of the next request head of HTTP/1 has arrived.
    pub(super) fn has_head_begun(&self) -> bool {
        self.0.requests_h1.has_begun()
    }

    /// Whether several requests of HTTP/2 are being handled.
    pub(super) fn has_many_streams(&self) -> bool {
        self.snapshot().open_streams > 1
    }

    /// Says that the body of a request of HTTP/2 is going to be passed on.
    pub(super) fn note_upload(&self) {
        self.0.upload.notify_one();
    }

    /// Resolves when such an upload has begun since the last call.
    pub(super) async fn upload_begun(&self) {
        self.0.upload.notified().await;
    }

    /// Resolves at the next change of phase after this call, whenever the future is first polled.
    pub(super) fn wait_for_change(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    /// Resolves to true when the connection has to take no more requests of HTTP/2.
    pub(super) fn subscribe_last_request(&self) -> watch::Receiver<bool> {
        self.0.last_request.subscribe()
    }

    /// Asks the client of HTTP/2 to send no more requests, a moment before the connection takes no more.
    pub(super) fn ask_to_leave(&self) {
        self.0.is_asked_to_leave.store(true, Ordering::Release);
        self.0.reader.wake();
    }

    pub(super) fn is_asked_to_leave(&self) -> bool {
        self.0.is_asked_to_leave.load(Ordering::Acquire)
    }

    /// Wakes the task at the next [`PhaseTracker::ask_to_leave`].
    pub(super) fn wake_when_asked_to_leave(&self, waker: &Waker) {
        self.0.reader.register(waker);
    }

    /// Takes no more requests of HTTP/2: Pingora sends GOAWAY and ends the connection after the last response.
    pub(super) fn refuse_more_requests(&self) {
        self.0.last_request.send_replace(true);
    }

    fn enter_phase(&self, phase: ConnectionPhase) {
        if phase == ConnectionPhase::Next {
            self.0.requests_h1.begin_request();
        }
        self.update(|snapshot| snapshot.phase = phase);
    }

    fn update(&self, change: impl FnOnce(&mut PhaseSnapshot)) {
        let mut snapshot = self.0.snapshot.lock();
        let before = snapshot.phase;
        change(&mut snapshot);
        if snapshot.phase == before {
            return;
        }
        if snapshot.phase != ConnectionPhase::Busy {
            snapshot.since = Instant::now();
        }
        drop(snapshot);
        self.0.changed.notify_waiters();
    }

    /// Counts a request of HTTP/2 until the returned value is dropped.
    pub(super) fn begin_stream(&self) -> StreamInFlight {
        let before = self.0.requests.fetch_add(1, Ordering::Relaxed);
        if before.saturating_add(1) >= REQUESTS_PER_CONNECTION {
            self.ask_to_leave();
        }
        self.update(|snapshot| {
            snapshot.open_streams = snapshot.open_streams.saturating_add(1);
            snapshot.phase = ConnectionPhase::Busy;
        });
        StreamInFlight(self.clone())
    }
}

impl AsRef<RequestTracker> for PhaseTracker {
    fn as_ref(&self) -> &RequestTracker {
        &self.0.requests_h1
    }
}

/// A request of HTTP/2 that is being handled.
#[derive(Debug)]
pub(super) struct StreamInFlight(PhaseTracker);

impl Drop for StreamInFlight {
    fn drop(&mut self) {
        self.0.update(|snapshot| {
            snapshot.open_streams = snapshot.open_streams.saturating_sub(1);
            if snapshot.open_streams == 0 {
                snapshot.phase = ConnectionPhase::Next;
            }
        });
    }
}

/// Marks the request head as complete: limits for idle connections no longer apply. Call in the task of the connection, like
/// all functions below.
pub(super) fn mark_request_begun() {
    enter_phase(ConnectionPhase::Busy);
}

/// Marks the response as sent to its last byte.
pub(super) fn mark_request_ended() {
    enter_phase(ConnectionPhase::Next);
}

/// Records the head of a request of HTTP/1 as Pingora read it, and how its body is framed.
pub(super) fn record_request_head(head: &[u8], framing: BodyFraming) {
    with_tracker(|tracker| tracker.record_head(head, framing));
}

/// Stops checking received bytes, for example after an upgrade from HTTP/1.
pub(super) fn stop_checking() {
    with_tracker(RequestTracker::stop_checking);
}

/// Keeps the `Date` of the upstream for the response head that is written next over HTTP/1; `None` forgets it.
pub(super) fn keep_upstream_date(date: Option<HeaderValue>) {
    with_tracker(|tracker| tracker.keep_upstream_date(date));
}

/// The target of the request of HTTP/1 as it was sent; `None` outside a guarded connection.
pub(super) fn received_target() -> Option<Vec<u8>> {
    with_tracker(RequestTracker::target)
}

/// What was received with the end of the head of the request of HTTP/1; `None` if that is not known, or outside a guarded connection.
pub(super) fn received_beyond_head() -> Option<Vec<u8>> {
    with_tracker(RequestTracker::beyond_head).flatten()
}

/// Whether the body of the request of HTTP/1 contradicts its framing.
pub(super) fn is_body_malformed() -> bool {
    with_tracker(RequestTracker::is_malformed).unwrap_or_default()
}

/// Whether the connection of HTTP/1 must end with this request, because bytes after it were lost.
pub(super) fn is_overread() -> bool {
    with_tracker(RequestTracker::is_overread).unwrap_or_default()
}

fn with_tracker<R>(read: impl FnOnce(&RequestTracker) -> R) -> Option<R> {
    TRACKER.try_with(|tracker| read(tracker.as_ref())).ok()
}

fn enter_phase(phase: ConnectionPhase) {
    // Requests of HTTP/2 run in tasks of their own, outside the scope; they hold a `StreamInFlight`.
    if let Err(error) = TRACKER.try_with(|tracker| tracker.enter_phase(phase)) {
        tracing::trace!(%error, "request outside a guarded connection");
    }
}
