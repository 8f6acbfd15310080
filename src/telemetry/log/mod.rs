//! Log lines and access log lines as text or JSON, and the process-wide audit trail.

mod access_line;
pub(in crate::telemetry) mod line_time;
pub(in crate::telemetry) mod queue;
#[cfg(test)]
mod queue_tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Format;
use tracing_subscriber::layer::SubscriberExt;

use crate::telemetry::AuditRecord;
use crate::telemetry::AuditTrail;
use crate::telemetry::AuditWriteError;
use crate::telemetry::LineFormat;
use crate::telemetry::LogLevel;
use crate::telemetry::LogLevelError;
use crate::telemetry::Metrics;
use crate::telemetry::context_fields::TextLines;
use crate::telemetry::escape::Escaping;
use crate::telemetry::journal::JournalLayer;
use crate::telemetry::json_lines::JsonLines;
use crate::telemetry::log::access_line::emit_access;
use crate::telemetry::log::line_time::LineTime;
use crate::telemetry::log::queue::LineWriters;
use crate::telemetry::log::queue::LogQueue;
use crate::telemetry::log::queue::QUEUE;
use crate::telemetry::log_level::FilterParts;
use crate::telemetry::log_level::LevelSwitch;

static TRAIL: OnceLock<Arc<AuditTrail>> = OnceLock::new();
static LEVEL: OnceLock<LevelSwitch> = OnceLock::new();
/// Whether requests are logged, as the log of the process was configured.
static ACCESS: AtomicBool = AtomicBool::new(false);

/// How long the end of the process waits for lines that a blocked destination does not take.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// The same for a thread that panicked, which may be one that serves requests.
const PANIC_TIME_MAX: Duration = Duration::from_millis(200);

pub use access_line::AccessRecord;

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not a filter.
    #[error(transparent)]
    Level(#[from] LogLevelError),
    /// The audit trail file cannot be opened.
    #[error("cannot open audit trail {}", .file.display())]
    Audit {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Logging was started before.
    #[error("logging is already initialized")]
    Again,
    /// The thread that writes the lines cannot be started.
    #[error("cannot start the thread of the log")]
    Thread(#[source] io::Error),
}

/// What is logged, and where the audit trail is written.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The format of log lines.
    pub format: LineFormat,
    /// Whether standard error goes to the journal of systemd, so that lines are sent there as entries with fields.
    pub journal: bool,
    /// A `tracing-subscriber` filter.
    pub level: String,
    /// Filter directives for noisy libraries, which `level` can override; may be empty.
    pub quiet: &'static str,
    /// Whether every request is logged.
    pub access: bool,
    /// Whether a thread of its own writes the lines, so that no other thread waits for standard error. [`close_log`] ends it.
    pub queued: bool,
    /// The file of the audit trail; standard error when absent.
    pub audit: Option<PathBuf>,
    /// Whether changes are refused while the audit trail cannot be written.
    pub audit_required: bool,
}

/// Sends logs, those of the `log` crate included, to standard error and the audit trail to its file. Once per process.
///
/// # Errors
/// [`LogError`]; logging is then not set up.
pub fn init_logging(config: LogConfig, metrics: Arc<Metrics>) -> Result<(), LogError> {
    let queue = config.queued.then(|| LogQueue::new(Arc::clone(&metrics)));
    let (made, switch) = subscriber(&config, LineWriters(queue.clone()))?;
    // Before the trail is opened: opening it can log that its last line is incomplete.
    tracing_subscriber::util::SubscriberInitExt::try_init(made)
        .map_err(|_error| LogError::Again)?;
    LEVEL.set(switch).map_err(|_switch| LogError::Again)?;
    ACCESS.store(config.access, Ordering::Relaxed);
    if let Some(queue) = queue {
        // After the subscriber, which formats the access lines.
        queue
            .start(Box::new(io::stderr()))
            .map_err(LogError::Thread)?;
        QUEUE.set(queue).map_err(|_queue| LogError::Again)?;
        flush_at_panics();
    }
    let file = config.audit.clone().unwrap_or_default();
    let trail = AuditTrail::open(config.audit, config.audit_required, metrics);
    let trail = trail.map_err(|source| LogError::Audit { file, source })?;
    TRAIL.set(Arc::new(trail)).map_err(|_trail| LogError::Again)
}

/// Lines that were logged before a panic are written even if the process ends with it.
fn flush_at_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if let Some(queue) = QUEUE.get() {
            queue.flush(PANIC_TIME_MAX);
        }
    }));
}

/// Writes all log lines that wait, as far as standard error takes them within two seconds. Later lines are written at once by
/// those who log them.
pub fn close_log() {
    if let Some(queue) = QUEUE.get() {
        queue.close(CLOSE_TIME_MAX);
    }
}

/// A subscriber that writes log lines, and what changes its level.
type SwitchedSubscriber = (Box<dyn Subscriber + Send + Sync>, LevelSwitch);

/// Builds the subscriber that writes log lines to `writer`.
fn subscriber<W>(config: &LogConfig, writer: W) -> Result<SwitchedSubscriber, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let parts = FilterParts {
        quiet: config.quiet,
        access: config.access,
    };
    let (filter, switch) = LevelSwitch::new(parts, &config.level)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Escaping {
            inner: writer,
            format: config.format,
        });
    let journal = if config.journal {
        // Without the journal's socket the lines still arrive there, as text.
        JournalLayer::connect().ok()
    } else {
        None
    };
    let lines = match config.format {
        LineFormat::Text | LineFormat::Json if journal.is_some() => journal.boxed(),
        LineFormat::Text => {
            let format = Format::default().with_timer(LineTime).with_ansi(false);
            lines.event_format(TextLines(format)).boxed()
        }
        LineFormat::Json => lines.event_format(JsonLines).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    Ok((Box::new(subscriber), switch))
}

/// The level of log lines; `None` before [`init_logging`].
#[must_use]
pub fn log_level() -> Option<LogLevel> {
    LEVEL.get().map(LevelSwitch::level)
}

/// Applies another level from now on, or the configured one without one. The access log and the audit trail stay as they are.
///
/// # Errors
/// [`LogLevelError`]; nothing was changed.
pub fn set_log_level(level: Option<&str>) -> Result<LogLevel, LogLevelError> {
    let switch = LEVEL.get().ok_or(LogLevelError::NotStarted)?;
    switch.change(level, None)
}

/// Returns to the configured level, unless the level was changed again since that change.
pub fn undo_log_level(change: &LogLevel) {
    if let Some(switch) = LEVEL.get()
        && let Err(error) = switch.change(None, Some(change.changes))
    {
        tracing::warn!(%error, "log level not restored");
    }
}

/// Whether access log lines are written. Callers skip building a record when they are not.
#[must_use]
pub fn is_access_logged() -> bool {
    // Not asked of tracing: a subscriber with a filter of its own says yes while any other one has an interest.
    ACCESS.load(Ordering::Relaxed)
}

/// Writes one access log line. With a queue it is only copied here, and formatted by the thread of the queue.
pub fn log_access(record: &AccessRecord<'_>) {
    let is_queued = QUEUE.get().is_some_and(|queue| queue.push_access(record));
    if !is_queued {
        emit_access(record);
    }
}

/// Appends one audit record; does nothing before [`init_logging`]. A failed write is counted and logged.
pub fn record_audit(record: &AuditRecord<'_>) {
    if let Some(trail) = TRAIL.get()
        && let Err(error) = trail.append(record)
    {
        // `append` has logged and counted the failure.
        tracing::trace!(%error, "audit record not written");
    }
}

/// Appends an audit record before the change that it describes, if changes require the audit trail (`log.audit_required`).
///
/// # Errors
/// [`AuditWriteError`]: the change must not be made.
pub fn record_audit_before_change(record: &AuditRecord<'_>) -> Result<(), AuditWriteError> {
    match TRAIL.get() {
        Some(trail) if trail.is_required() => trail.append(record),
        Some(_) | None => Ok(()),
    }
}

/// Reopens the audit trail file after log rotation moved it.
pub fn reopen_audit_trail() {
    if let Some(trail) = TRAIL.get() {
        trail.reopen();
    }
}

#[cfg(test)]
mod tests;
