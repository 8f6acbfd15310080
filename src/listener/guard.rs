//! What every connection is held to: time for a request head, time between requests, and the two signals of a drain.
//!
//! Pingora limits single reads only, so a client that sends one byte a minute would stay for ever. Here the time allowed
//! belongs to the phase a connection is in, and every change of phase starts it anew.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt as _;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use tokio::sync::watch;

use crate::listener::Limits;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::telemetry::Metrics;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its first request head is awaited.
    First,
    /// A request is handled; how long that may take is not decided here.
    Busy,
    /// Its next request head is awaited.
    Next,
}

tokio::task_local! {
    static PHASE: watch::Sender<Phase>;
}

/// The request head is complete: from now on the connection is not closed from outside. For the task of the connection.
pub(super) fn request_began() {
    enter(Phase::Busy);
}

/// The answer is out, to the last byte.
pub(super) fn request_ended() {
    enter(Phase::Next);
}

fn enter(phase: Phase) {
    // Streams of HTTP/2 run in tasks of their own, outside any guard; their connection has its own idle limit.
    if let Err(error) = PHASE.try_with(|it| it.send_replace(phase)) {
        tracing::trace!(%error, "request without a guarded connection");
    }
}

/// Why a connection ended. The words are values of a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client, or a request that asked for it.
    Usual,
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

impl End {
    const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Usual => None,
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
pub(super) struct Guard {
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether connections are counted in the metrics: those of the API port are.
    pub(super) counted: bool,
    /// No more requests.
    pub(super) stop: Stop,
    /// Not even those being handled.
    pub(super) cut: Stop,
    pub(super) open: AtomicUsize,
}

/// One open connection, until dropped.
struct Open<'a>(&'a Guard);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.tell_open();
    }
}

impl Guard {
    /// Serves the connection until it ends.
    pub(super) async fn serve<A>(&self, app: &Arc<A>, stream: Stream)
    where
        A: ServerApp + Send + Sync + 'static,
    {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.tell_open();
        let open = Open(self);
        let end = self.conversation(app, stream).await;
        drop(open);
        if end == End::Panic {
            self.metrics.panic("listener");
        }
        if let (true, Some(reason)) = (self.counted, end.reason()) {
            self.metrics.connection_closed(reason);
        }
    }

    async fn conversation<A>(&self, app: &Arc<A>, stream: Stream) -> End
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let (phase, mut seen) = watch::channel(Phase::First);
        let shutdown = self.stop.receiver();
        let work = PHASE.scope(phase, async {
            let mut next = app.process_new(stream, &shutdown).await;
            while let Some(stream) = next {
                next = app.process_new(stream, &shutdown).await;
            }
        });
        let work = std::panic::AssertUnwindSafe(work).catch_unwind();
        let mut since = self.clock.instant();
        tokio::pin!(work);
        loop {
            let phase = *seen.borrow_and_update();
            // The work comes first: what it has already read is handled, whatever else happened meanwhile.
            tokio::select! {
                biased;
                ended = &mut work => return match ended {
                    Ok(()) => self.ended(*seen.borrow(), since),
                    Err(_) => End::Panic,
                },
                changed = seen.changed() => {
                    // The sender lives in the work: when it is gone the work has ended.
                    if changed.is_ok() {
                        since = self.clock.instant();
                    }
                }
                end = self.interrupted(phase) => return end,
            }
        }
    }

    /// Returns when a connection in this phase must be closed.
    async fn interrupted(&self, phase: Phase) -> End {
        let (patience, end) = match phase {
            Phase::Busy => {
                self.cut.given().await;
                return End::Cut;
            }
            Phase::First => (self.limits.header_timeout, End::SlowHeader),
            // A connection that is merely idle is closed by Pingora's own keep-alive timer (see `proxy.rs`) before this.
            Phase::Next => (self.next_timeout(), End::SlowHeader),
        };
        tokio::select! {
            () = self.stop.given() => End::Stopping,
            () = tokio::time::sleep(patience) => end,
        }
    }

    fn next_timeout(&self) -> Duration {
        self.limits
            .idle_timeout
            .saturating_add(self.limits.header_timeout)
    }

    /// Why work ended by itself in this phase, which it had entered at that time.
    fn ended(&self, phase: Phase, since: Instant) -> End {
        if self.stop.is_given() && phase != Phase::Busy {
            return End::Stopping;
        }
        match phase {
            Phase::First => End::NoRequest,
            Phase::Busy => End::Usual,
            Phase::Next => {
                let idle = self.clock.instant().saturating_duration_since(since);
                if idle >= self.limits.idle_timeout {
                    End::Idle
                } else {
                    End::Usual
                }
            }
        }
    }

    fn tell_open(&self) {
        if self.counted {
            self.metrics.connections(self.open.load(Ordering::Acquire));
        }
    }
}
