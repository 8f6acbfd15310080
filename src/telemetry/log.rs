//! Log lines and access log lines as text or JSON, and the process-wide audit trail.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::telemetry::AuditRecord;
use crate::telemetry::AuditTrail;
use crate::telemetry::AuditWriteError;
use crate::telemetry::LineFormat;
use crate::telemetry::Metrics;
use crate::telemetry::escape::Escaping;
use crate::telemetry::json_lines::JsonLines;

static TRAIL: OnceLock<Arc<AuditTrail>> = OnceLock::new();

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not a filter.
    #[error("invalid log level")]
    Level(#[from] tracing_subscriber::filter::ParseError),
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
}

/// One completed request. Text from clients is escaped in both formats.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// The id of the request.
    pub request: &'a str,
    /// The address the connection came from.
    pub peer: &'a str,
    /// The address of the client: the peer, or the one that a trusted proxy forwarded.
    pub client: &'a str,
    /// The method, a bounded word.
    pub method: &'a str,
    /// The route, a bounded word.
    pub route: &'a str,
    /// The status code of the response.
    pub status: u16,
    /// Bytes of the response body.
    pub bytes: u64,
    /// From receiving the request head to sending the last byte of the response.
    pub took: Duration,
    /// The authenticated caller, if there is one.
    pub principal: Option<&'a str>,
    /// The request target, as sent.
    pub target: &'a str,
    /// The `User-Agent` of the client.
    pub user_agent: Option<&'a str>,
    /// The operation that was accepted or joined.
    pub operation: Option<u64>,
    /// The configured name of the pass-through route.
    pub passthrough: Option<&'a str>,
    /// The upstream that received the request, as the configured host and port.
    pub upstream: Option<&'a str>,
}

/// What is logged, and where the audit trail is written.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The format of log lines.
    pub format: LineFormat,
    /// A `tracing-subscriber` filter.
    pub level: String,
    /// Filter directives for noisy libraries, which `level` can override; may be empty.
    pub quiet: &'static str,
    /// Whether every request is logged.
    pub access: bool,
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
    let made = subscriber(&config, io::stderr)?;
    // Before the trail is opened: opening it can log that its last line is incomplete.
    tracing_subscriber::util::SubscriberInitExt::try_init(made)
        .map_err(|_error| LogError::Again)?;
    let file = config.audit.clone().unwrap_or_default();
    let trail = AuditTrail::open(config.audit, config.audit_required, metrics);
    let trail = trail.map_err(|source| LogError::Audit { file, source })?;
    TRAIL.set(Arc::new(trail)).map_err(|_trail| LogError::Again)
}

/// Builds the subscriber that writes log lines to `writer`.
fn subscriber<W>(
    config: &LogConfig,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let access = if config.access { "info" } else { "off" };
    let LogConfig { quiet, level, .. } = config;
    let filter = format!("{quiet},{level},snapgate::access={access}");
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Escaping {
            inner: writer,
            format: config.format,
        });
    let lines = match config.format {
        LineFormat::Text => lines.boxed(),
        LineFormat::Json => lines.event_format(JsonLines).boxed(),
    };
    Ok(Box::new(
        tracing_subscriber::registry().with(lines.with_filter(filter)),
    ))
}

/// Whether access log lines are written. Callers skip building a record when they are not.
#[must_use]
pub fn is_access_logged() -> bool {
    tracing::enabled!(target: "snapgate::access", tracing::Level::INFO)
}

/// Writes one access log line.
pub fn log_access(record: &AccessRecord<'_>) {
    tracing::info!(
        target: "snapgate::access",
        request = record.request,
        peer = record.peer,
        client = record.client,
        method = record.method,
        route = record.route,
        status = record.status,
        bytes = record.bytes,
        took_us = u64::try_from(record.took.as_micros()).unwrap_or(u64::MAX),
        principal = record.principal,
        path = record.target,
        user_agent = record.user_agent,
        operation = record.operation.map(tracing::field::display),
        passthrough = record.passthrough,
        upstream = record.upstream,
        "request"
    );
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
mod tests {
    use parking_lot::Mutex;
    use std::io::Write;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn config(format: LineFormat, level: &str, access: bool) -> LogConfig {
        LogConfig {
            format,
            level: level.to_owned(),
            quiet: "noisy=off",
            access,
            audit: None,
            audit_required: false,
        }
    }

    /// What a log in JSON says of events.
    fn json(events: impl FnOnce()) -> serde_json::Value {
        let kept = Kept::default();
        let writer = kept.clone();
        let made = subscriber(&config(LineFormat::Json, "info", true), move || {
            writer.clone()
        });
        tracing::subscriber::with_default(made.unwrap(), events);
        let bytes = kept.0.lock().clone();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn values_are_written_as_what_they_are() {
        let name = "web\"01";
        let value = json(|| {
            tracing::warn!(
                target: "snapgate::x",
                text = name,
                displayed = %name,
                debugged = ?name,
                debugged_field = tracing::field::debug(name),
                small = 7_u64,
                exact = 9_007_199_254_740_991_u64,
                large = 118_529_990_416_400_384_u64,
                negative = -9_007_199_254_740_992_i64,
                took_ms = Duration::from_millis(12).as_millis(),
                wide = u128::MAX,
                yes = true,
                half = 0.5,
                absent = None::<&str>,
                list = ?[1, 2],
                "message"
            );
        });
        for member in ["text", "displayed", "debugged", "debugged_field"] {
            assert_eq!(value[member], name, "{member}: without quotes of its own");
        }
        let expected = serde_json::json!({
            "level": "WARN", "target": "snapgate::x", "message": "message", "small": 7, "took_ms": 12, "yes": true,
            "half": 0.5, "list": "[1, 2]", "exact": 9_007_199_254_740_991_u64, "large": "118529990416400384",
            "negative": "-9007199254740992", "wide": u128::MAX.to_string(),
        });
        for (member, expected) in expected.as_object().unwrap() {
            assert_eq!(&value[member], expected, "{member}");
        }
        assert_eq!(value.get("absent"), None, "what is absent is left out");
        let time = value["timestamp"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    }

    fn logged(format: LineFormat, access_log: bool, hostile: &str) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let made = subscriber(&config(format, "info", access_log), move || writer.clone());
        let made = made.unwrap();
        tracing::subscriber::with_default(made, || {
            assert_eq!(
                is_access_logged(),
                access_log,
                "{format:?}: known beforehand"
            );
            log_access(&AccessRecord {
                request: "r-1",
                peer: "127.0.0.1",
                client: "198.51.100.1",
                method: "GET",
                route: "backup",
                status: 200,
                bytes: 12,
                took: Duration::from_micros(34),
                principal: Some("alice"),
                target: hostile,
                user_agent: Some(hostile),
                operation: Some(118_529_990_416_400_384),
                passthrough: None,
                upstream: None,
            });
        });
        let bytes = kept.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn hostile_text_stays_in_its_field_in_both_forms() {
        let hostile = "/x\" principal=\"root\"\r\n{\"a\":1}\u{1b}[31m\u{0}\u{7f}\u{85}\u{9b}31m\u{202e}\u{2066}\u{2028}\u{2029}";
        for format in [LineFormat::Text, LineFormat::Json] {
            let text = logged(format, true, hostile);
            assert_eq!(text.lines().count(), 1, "{format:?}: one line: {text:?}");
            let raw = |character: char| {
                character.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}".contains(character)
            };
            assert!(
                !text.trim_end().contains(raw),
                "{format:?}: escaped: {text:?}"
            );
            assert!(
                !text.contains(" principal=\"root\""),
                "{format:?}: {text:?}"
            );
        }
        let text = logged(LineFormat::Json, true, hostile);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["path"], hostile, "nothing is lost");
        assert_eq!(value["principal"], "alice", "nothing is forged");
        assert_eq!(
            value["operation"], "118529990416400384",
            "to the last digit"
        );
        assert_eq!(
            logged(LineFormat::Text, false, "/"),
            "",
            "no access log when it is off"
        );
    }

    #[test]
    fn a_malformed_level_is_an_error() {
        let made = subscriber(&config(LineFormat::Text, "snapgate=loud", true), io::stderr);
        assert!(
            matches!(made, Err(LogError::Level(_))),
            "an invalid filter is an error"
        );
    }
}
