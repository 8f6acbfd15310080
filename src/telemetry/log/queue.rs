//! The queue of log lines and the thread that writes them.
//!
//! A thread that logs copies its line into the queue and goes on: it never waits for the destination, which may be a full pipe or a
//! slow disk. What does not fit is dropped, counted and reported. Access lines are formatted by the thread of the queue, and many lines
//! go into one write: all but warnings and errors wait for others, because waking the thread for each one costs more than the line.
//! Audit records never come here: they are on disk before the response leaves.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Condvar;
use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::Level;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::model::limits;
use crate::telemetry::Metrics;
use crate::telemetry::log::access_line::AccessCopy;
use crate::telemetry::log::access_line::AccessRecord;
use crate::telemetry::log::access_line::emit_access;

/// How long lines below warnings may wait for others that go into the same write.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Largest write in bytes, except for a single longer line.
const WRITE_BYTES: usize = 64 * 1024;
/// Lines and bytes of text whose memory is kept for the next ones when the queue has become empty.
const KEPT_LINES: usize = 256;
const KEPT_TEXT: usize = 64 * 1024;

/// The queue of the process; absent in commands that write their few lines themselves.
pub(super) static QUEUE: OnceLock<Arc<LogQueue>> = OnceLock::new();

thread_local! {
    /// What the thread of a queue writes next; `None` on all other threads.
    static BATCH: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// A line that waits to be written.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all lines are access lines, which cost no allocation this way"
)]
pub(super) enum Line {
    /// A record of the access log, formatted when its turn comes. Its texts are in [`QueuedLines::texts`].
    Access(AccessCopy),
    /// A formatted line with its line end.
    Text(Urgency, Vec<u8>),
    /// A line that goes elsewhere than to the destination of the queue, with its length.
    Elsewhere(Urgency, usize, Box<dyn FnOnce() + Send>),
}

/// Whether a line wakes the thread of the queue or may wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Urgency {
    /// Warnings and errors: written at once.
    Immediate,
    /// Written with others, at most 5 ms later.
    Batched,
}

impl Urgency {
    pub(in crate::telemetry) fn of(level: Level) -> Self {
        if level <= Level::WARN {
            Self::Immediate
        } else {
            Self::Batched
        }
    }
}

impl Line {
    const fn is_access(&self) -> bool {
        matches!(self, Self::Access(_))
    }

    /// Memory that the line takes, in bytes, without [`QueuedLines::texts`].
    const fn size(&self) -> usize {
        let held = match self {
            Self::Access(_) => 0,
            Self::Text(_, bytes) => bytes.len(),
            Self::Elsewhere(_, length, _) => *length,
        };
        held.saturating_add(size_of::<Self>())
    }

    const fn urgency(&self) -> Urgency {
        match self {
            Self::Access(_) => Urgency::Batched,
            Self::Text(urgency, _) | Self::Elsewhere(urgency, ..) => *urgency,
        }
    }
}

/// Numbers of lines, of the access log and others.
#[derive(Clone, Copy, Debug, Default)]
struct LineCounts {
    access: u64,
    other: u64,
}

impl LineCounts {
    const fn add(&mut self, is_access: bool) {
        if is_access {
            self.access = self.access.saturating_add(1);
        } else {
            self.other = self.other.saturating_add(1);
        }
    }

    const fn is_zero(self) -> bool {
        self.access == 0 && self.other == 0
    }
}

/// Lines in their order.
#[derive(Default)]
struct QueuedLines {
    lines: Vec<Line>,
    /// The texts of the access lines, one after another.
    texts: String,
}

impl QueuedLines {
    fn clear(&mut self) {
        self.lines.clear();
        self.lines.shrink_to(KEPT_LINES);
        self.texts.clear();
        self.texts.shrink_to(KEPT_TEXT);
    }
}

/// The lines that wait.
#[derive(Default)]
struct Waiting {
    queued: QueuedLines,
    bytes: usize,
    /// Whether the lines are written without waiting for more.
    is_urgent: bool,
    /// Lines that were taken into the queue so far.
    accepted: u64,
    /// Lines of these that were written or lost.
    completed: u64,
    /// Lines that were dropped since the last report.
    dropped: LineCounts,
    is_closed: bool,
}

/// A queue of log lines.
pub(super) struct LogQueue {
    waiting: Mutex<Waiting>,
    /// Notified when the thread has something to do.
    changed: Condvar,
    /// Notified after each write.
    written: Condvar,
    pub(super) metrics: Arc<Metrics>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for LogQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogQueue").finish_non_exhaustive()
    }
}

impl LogQueue {
    /// A queue that keeps its lines until [`LogQueue::start`].
    pub(super) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            written: Condvar::new(),
            metrics,
            thread: Mutex::default(),
        })
    }

    /// Starts the thread, which formats with the subscriber of the calling thread.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn start(self: &Arc<Self>, destination: Box<dyn Write + Send>) -> io::Result<()> {
        let queue = Arc::clone(self);
        let dispatch = tracing::dispatcher::get_default(Dispatch::clone);
        let builder = std::thread::Builder::new().name("snapgate-log".to_owned());
        let thread = builder.spawn(move || {
            BATCH.set(Some(Vec::new()));
            tracing::dispatcher::with_default(&dispatch, || queue.run(destination));
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Takes a line into the queue, or drops and counts it. A closed queue gives it back: its caller then writes it itself.
    pub(super) fn push(&self, line: Line) -> Option<Line> {
        let (is_access, size, urgency) = (line.is_access(), line.size(), line.urgency());
        let mut line = Some(line);
        let add = |waiting: &mut Waiting| waiting.queued.lines.extend(line.take());
        let is_open = self.admit(is_access, size, urgency, add);
        line.filter(|_| !is_open)
    }

    /// Takes a copy of the record into the queue, or drops and counts it. False if the queue is closed.
    pub(super) fn push_access(&self, record: &AccessRecord<'_>) -> bool {
        let size = record.text_length().saturating_add(size_of::<Line>());
        self.admit(true, size, Urgency::Batched, |waiting| {
            let copy = AccessCopy::of(record, &mut waiting.queued.texts);
            waiting.queued.lines.push(Line::Access(copy));
        })
    }

    /// Adds a line of this size if there is room for it, and otherwise counts it. False if the queue is closed.
    fn admit(
        &self,
        is_access: bool,
        size: usize,
        urgency: Urgency,
        add: impl FnOnce(&mut Waiting),
    ) -> bool {
        // A flood of requests must not displace warnings.
        let limit = if is_access {
            limits::LOG_QUEUE_ACCESS_BYTES_MAX
        } else {
            limits::LOG_QUEUE_BYTES_MAX
        };
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            return false;
        }
        let before = waiting.bytes;
        let after = before.saturating_add(size);
        if after > limit {
            waiting.dropped.add(is_access);
            drop(waiting);
            self.metrics.process.record_dropped_log_lines(is_access, 1);
            return true;
        }
        waiting.bytes = after;
        waiting.accepted = waiting.accepted.saturating_add(1);
        add(&mut waiting);
        // None waits for more when there is no room left for many.
        let half = limits::LOG_QUEUE_ACCESS_BYTES_MAX / 2;
        let is_urgent = urgency == Urgency::Immediate || (before < half && after >= half);
        let wakes = before == 0 || (is_urgent && !waiting.is_urgent);
        waiting.is_urgent |= is_urgent;
        drop(waiting);
        if wakes {
            self.changed.notify_one();
        }
        true
    }

    /// Waits until all lines of before are written, at most for `limit`. Returns whether they are.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        // The thread cannot wait for itself.
        if is_log_thread() {
            return false;
        }
        let mut waiting = self.waiting.lock();
        let last = waiting.accepted;
        waiting.is_urgent = true;
        self.changed.notify_one();
        let is_left = |waiting: &mut Waiting| waiting.completed < last;
        let waited = self.written.wait_while_for(&mut waiting, is_left, limit);
        !waited.timed_out()
    }

    /// Writes what is left, at most for `limit`, and takes no more lines.
    pub(super) fn close(&self, limit: Duration) {
        self.flush(limit);
        self.waiting.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for lines and takes all of them; `None` when the queue is closed and empty.
    fn take(&self, mut empty: QueuedLines) -> Option<QueuedLines> {
        empty.clear();
        let mut waiting = self.waiting.lock();
        while waiting.queued.lines.is_empty() {
            if waiting.is_closed {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
        let is_calm = |waiting: &mut Waiting| !waiting.is_urgent && !waiting.is_closed;
        self.changed
            .wait_while_for(&mut waiting, is_calm, GATHER_TIME);
        waiting.is_urgent = false;
        waiting.bytes = 0;
        Some(std::mem::replace(&mut waiting.queued, empty))
    }

    fn run(&self, mut destination: Box<dyn Write + Send>) {
        let mut taken = QueuedLines::default();
        while let Some(next) = self.take(taken) {
            taken = next;
            let mut counts = LineCounts::default();
            let mut texts = taken.texts.as_str();
            for line in taken.lines.drain(..) {
                counts.add(line.is_access());
                // A line whose formatting panics is lost, and no other.
                if catch_unwind(AssertUnwindSafe(|| render(line, &mut texts))).is_err() {
                    self.metrics.process.record_panic("telemetry");
                }
                if batch_length() >= WRITE_BYTES {
                    self.write(&mut *destination, std::mem::take(&mut counts));
                }
            }
            // Before the write after which a stop no longer waits.
            self.report_dropped();
            self.write(&mut *destination, counts);
        }
    }

    /// Writes the formatted lines.
    fn write(&self, destination: &mut dyn Write, counts: LineCounts) {
        let batch = BATCH.take().unwrap_or_default();
        let written = destination.write_all(&batch);
        if written.and_then(|()| destination.flush()).is_err() {
            let process = &self.metrics.process;
            process.record_dropped_log_lines(true, counts.access);
            process.record_dropped_log_lines(false, counts.other);
        }
        let mut empty = batch;
        empty.clear();
        empty.shrink_to(WRITE_BYTES);
        BATCH.set(Some(empty));
        let mut waiting = self.waiting.lock();
        let count = counts.access.saturating_add(counts.other);
        waiting.completed = waiting.completed.saturating_add(count);
        drop(waiting);
        self.written.notify_all();
    }

    /// Reports dropped lines once no others wait.
    fn report_dropped(&self) {
        let mut waiting = self.waiting.lock();
        if !waiting.queued.lines.is_empty() || waiting.dropped.is_zero() {
            return;
        }
        let dropped = std::mem::take(&mut waiting.dropped);
        drop(waiting);
        let LineCounts { access, other } = dropped;
        tracing::warn!(
            access,
            other,
            "log lines dropped, standard error was blocked or too slow"
        );
    }
}

/// Appends the line to the batch of this thread, or sends it elsewhere. `texts` are those of this access line and the next ones.
fn render(line: Line, texts: &mut &str) {
    match line {
        Line::Access(copy) => emit_access(&copy.record(texts)),
        Line::Text(_, bytes) => drop(append_to_batch(&bytes)),
        Line::Elsewhere(_, _, send) => send(),
    }
}

/// Whether this is the thread of a queue.
fn is_log_thread() -> bool {
    BATCH
        .try_with(|batch| batch.borrow().is_some())
        .unwrap_or_default()
}

fn batch_length() -> usize {
    BATCH.with_borrow(|batch| batch.as_ref().map_or(0, Vec::len))
}

/// Appends to the batch of this thread; `false` if it has none.
fn append_to_batch(bytes: &[u8]) -> bool {
    let append = |batch: &RefCell<Option<Vec<u8>>>| {
        let mut batch = batch.borrow_mut();
        let batch = batch.as_mut();
        batch.map(|batch| batch.extend_from_slice(bytes)).is_some()
    };
    BATCH.try_with(append).unwrap_or_default()
}

/// Makes the writers of formatted lines, which go to standard error if there is no queue.
#[derive(Debug)]
pub(super) struct LineWriters(pub(super) Option<Arc<LogQueue>>);

impl<'w> MakeWriter<'w> for LineWriters {
    type Writer = LineWriter<'w>;

    fn make_writer(&'w self) -> LineWriter<'w> {
        let queue = self.0.as_deref();
        LineWriter {
            queue,
            urgency: Urgency::Immediate,
        }
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> LineWriter<'w> {
        let urgency = Urgency::of(*metadata.level());
        LineWriter {
            urgency,
            ..self.make_writer()
        }
    }
}

/// Writes formatted lines: into the batch on the thread of the queue, into the queue on others, and without a queue to standard error.
#[derive(Debug)]
pub(super) struct LineWriter<'w> {
    queue: Option<&'w LogQueue>,
    urgency: Urgency,
}

impl Write for LineWriter<'_> {
    /// Takes one whole line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if append_to_batch(bytes) {
            return Ok(bytes.len());
        }
        let line = || Line::Text(self.urgency, bytes.to_vec());
        let is_queued = self.queue.is_some_and(|queue| queue.push(line()).is_none());
        if !is_queued {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs what sends a line of this length elsewhere than to standard error: on the thread of the queue if there is one.
pub(in crate::telemetry) fn send_line(
    urgency: Urgency,
    length: usize,
    send: Box<dyn FnOnce() + Send>,
) {
    let line = Line::Elsewhere(urgency, length, send);
    let returned = match QUEUE.get().filter(|_| !is_log_thread()) {
        Some(queue) => queue.push(line),
        None => Some(line),
    };
    if let Some(line) = returned {
        render(line, &mut "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_wake_the_thread_and_lines_below_wait_for_others() {
        let rows = [
            (Level::ERROR, true),
            (Level::WARN, true),
            (Level::INFO, false),
            (Level::DEBUG, false),
        ];
        for (level, expected) in rows {
            let queue = LogQueue::new(Arc::new(Metrics::new().unwrap()));
            let writers = LineWriters(Some(Arc::clone(&queue)));
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(Level::TRACE)
                .with_writer(writers)
                .finish();
            tracing::subscriber::with_default(subscriber, || match level {
                Level::ERROR => tracing::error!("x"),
                Level::WARN => tracing::warn!("x"),
                Level::INFO => tracing::info!("x"),
                _ => tracing::debug!("x"),
            });
            let waiting = queue.waiting.lock();
            assert_eq!(waiting.accepted, 1, "{level}");
            assert_eq!(waiting.is_urgent, expected, "{level}");
        }
    }
}
