//! Log lines and the access log, for people or as JSON, and the process-wide audit trail.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Event;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::layer::SubscriberExt;

use crate::telemetry::AuditRecord;
use crate::telemetry::AuditTrail;
use crate::telemetry::Metrics;
use crate::telemetry::audit::line;
use crate::telemetry::escape::Escaping;

/// The target of audit events: they go to the trail alone, whatever the level of the log.
const AUDIT: &str = "snapgate::audit";

static TRAIL: OnceLock<Arc<AuditTrail>> = OnceLock::new();

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is no filter.
    #[error("the log level is malformed")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// The file of the audit trail.
    #[error("the audit trail {} cannot be opened", .file.display())]
    Audit {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Logging had begun.
    #[error("logging has already begun")]
    Again,
}

/// One answered request. Text of clients is escaped in both forms.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// The id of the request.
    pub request: &'a str,
    /// The address the connection came from.
    pub peer: &'a str,
    /// The address of the client: the same, or what a trusted proxy said.
    pub client: &'a str,
    /// The method, a bounded word.
    pub method: &'a str,
    /// The route, a bounded word.
    pub route: &'a str,
    /// The status of the answer.
    pub status: u16,
    /// Bytes of the body of the answer.
    pub bytes: u64,
    /// From the head of the request to the end of the answer.
    pub took: Duration,
    /// Who called, once that was known.
    pub principal: Option<&'a str>,
    /// The request target, as sent.
    pub target: &'a str,
    /// What the client calls itself.
    pub user_agent: Option<&'a str>,
    /// The operation accepted or joined.
    pub operation: Option<u64>,
    /// The configured name of the pass-through route that took it.
    pub passthrough: Option<&'a str>,
    /// The upstream that was asked, a configured host and port.
    pub upstream: Option<&'a str>,
}

/// Sends logs to standard error and the audit trail to its file, once per process. Records of the `log` crate too.
///
/// `quiet` holds directives for noisy libraries, which `level` can override; it may be empty.
///
/// # Errors
/// [`LogError`]; nothing is set up then.
pub fn init(
    format: Format,
    level: &str,
    quiet: &str,
    access: bool,
    audit: Option<PathBuf>,
    metrics: Arc<Metrics>,
) -> Result<(), LogError> {
    let file = audit.clone().unwrap_or_default();
    let failed = |source| LogError::Audit { file, source };
    let trail = Arc::new(AuditTrail::open(audit, metrics).map_err(failed)?);
    let made = subscriber(format, level, quiet, access, io::stderr, Arc::clone(&trail))?;
    TRAIL.set(trail).map_err(|_trail| LogError::Again)?;
    tracing_subscriber::util::SubscriberInitExt::try_init(made).map_err(|_error| LogError::Again)
}

/// What is logged in which form, to the given place.
fn subscriber<W>(
    format: Format,
    level: &str,
    quiet: &str,
    access: bool,
    writer: W,
    trail: Arc<AuditTrail>,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let access = if access { "info" } else { "off" };
    let filter = format!("{quiet},{level},snapgate::access={access},{AUDIT}=off");
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Escaping {
            inner: writer,
            format,
        });
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // Without the hint every record of the `log` crate would be made, only to be thrown away.
    let audited = filter_fn(|event| event.target() == AUDIT).with_max_level_hint(LevelFilter::INFO);
    Ok(Box::new(
        tracing_subscriber::registry()
            .with(lines.with_filter(filter))
            .with(ToTrail(trail).with_filter(audited)),
    ))
}

/// Hands audit events on to the trail.
struct ToTrail(Arc<AuditTrail>);

impl<S: Subscriber> Layer<S> for ToTrail {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        event.record(&mut Record(&self.0));
    }
}

/// Takes the line out of an audit event.
struct Record<'a>(&'a AuditTrail);

impl Visit for Record<'_> {
    fn record_str(&mut self, _field: &Field, line: &str) {
        self.0.append(line);
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

/// Whether there is an access log, for whoever can save the work that a line takes.
#[must_use]
pub fn access_is_logged() -> bool {
    tracing::enabled!(target: "snapgate::access", tracing::Level::INFO)
}

/// Writes one line of the access log.
pub fn access(record: &AccessRecord<'_>) {
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
        operation = record.operation,
        passthrough = record.passthrough,
        upstream = record.upstream,
        "request"
    );
}

/// Writes one record of the audit trail; nothing before [`init`].
pub fn audit(record: &AuditRecord<'_>) {
    match line(record) {
        Ok(rendered) => tracing::info!(target: AUDIT, rendered),
        Err(error) => tracing::error!(%error, "audit record lost"),
    }
}

/// Opens the file of the audit trail again, after it was moved away.
pub fn reopen() {
    if let Some(trail) = TRAIL.get() {
        trail.reopen();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn trail(kept: &Kept) -> Arc<AuditTrail> {
        let metrics = Arc::new(Metrics::new().unwrap());
        Arc::new(AuditTrail::to(Box::new(kept.clone()), metrics))
    }

    #[test]
    fn audit_events_go_to_the_trail_alone_at_any_level() {
        for level in ["off", "info", "trace"] {
            let (log, audited) = (Kept::default(), Kept::default());
            let writer = log.clone();
            let made = subscriber(
                Format::Text,
                level,
                "",
                true,
                move || writer.clone(),
                trail(&audited),
            );
            tracing::subscriber::with_default(made.unwrap(), || {
                audit(&AuditRecord {
                    time: crate::model::Timestamp::default(),
                    principal: Some("alice"),
                    token: None,
                    client: None,
                    action: "delete",
                    backend: None,
                    vm: "1",
                    backup: None,
                    note: None,
                    outcome: "refused",
                    code: None,
                    operation: None,
                    request: "r",
                });
            });
            let text = String::from_utf8(audited.0.lock().unwrap().clone()).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["principal"], "alice", "{level}: in the trail");
            assert!(
                log.0.lock().unwrap().is_empty(),
                "{level}: and nowhere else"
            );
        }
    }

    fn logged(format: Format, access_log: bool, hostile: &str) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let made = subscriber(
            format,
            "info",
            "",
            access_log,
            move || writer.clone(),
            trail(&Kept::default()),
        );
        let made = made.unwrap();
        tracing::subscriber::with_default(made, || {
            assert_eq!(
                access_is_logged(),
                access_log,
                "{format:?}: told beforehand"
            );
            access(&AccessRecord {
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
                operation: None,
                passthrough: None,
                upstream: None,
            });
        });
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn hostile_text_stays_in_its_field_in_both_forms() {
        let hostile = "/x\" principal=\"root\"\r\n{\"a\":1}\u{1b}[31m\u{0}\u{7f}\u{85}\u{9b}31m\u{202e}\u{2066}\u{2028}\u{2029}";
        for format in [Format::Text, Format::Json] {
            let text = logged(format, true, hostile);
            assert_eq!(text.lines().count(), 1, "{format:?}: one line: {text:?}");
            let raw = |it: char| it.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}".contains(it);
            assert!(
                !text.trim_end().contains(raw),
                "{format:?}: escaped: {text:?}"
            );
            assert!(
                !text.contains(" principal=\"root\""),
                "{format:?}: {text:?}"
            );
        }
        let text = logged(Format::Json, true, hostile);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["path"], hostile, "nothing is lost");
        assert_eq!(value["principal"], "alice", "nothing is forged");
        assert_eq!(logged(Format::Text, false, "/"), "", "off when not wanted");
    }

    #[test]
    fn a_malformed_level_is_an_error() {
        let made = subscriber(
            Format::Text,
            "snapgate=loud",
            "noisy=off",
            true,
            io::stderr,
            trail(&Kept::default()),
        );
        assert!(
            matches!(made, Err(LogError::Level(_))),
            "not taken for another one"
        );
    }
}
