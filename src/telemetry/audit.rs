//! The audit trail: who changed, or tried to change, what. One JSON object a line, whatever the form of the log.

use std::fmt;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Serialize;

use crate::model::Timestamp;
use crate::telemetry::Metrics;
use crate::telemetry::escape;

/// One decision. Text of clients is escaped by the JSON it is written as. Put no secret in.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AuditRecord<'a> {
    /// When it was decided; written as RFC 3339.
    #[serde(serialize_with = "shown")]
    pub time: Timestamp,
    /// Who asked; `None` when that is not known.
    pub principal: Option<&'a str>,
    /// With which API token, if it was one.
    pub token: Option<&'a str>,
    /// From which address.
    pub client: Option<IpAddr>,
    /// What was asked for, for instance `restore`.
    pub action: &'a str,
    /// The backend, once placed.
    pub backend: Option<&'a str>,
    /// The VM.
    pub vm: &'a str,
    /// The backup.
    pub backup: Option<&'a str>,
    /// What the caller wants to read here.
    pub note: Option<&'a str>,
    /// `accepted`, `joined`, `refused`, or how the operation ended.
    pub outcome: &'a str,
    /// The stable code of the refusal.
    pub code: Option<&'a str>,
    /// The number of the operation.
    pub operation: Option<u64>,
    /// The id of the request.
    pub request: &'a str,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn shown<S: serde::Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

/// The record as one line of JSON in which no character can be mistaken for an end of line or a command to a terminal.
pub(super) fn line(record: &AuditRecord<'_>) -> Result<String, serde_json::Error> {
    Ok(escape::json(serde_json::to_string(record)?))
}

/// Where the records go.
pub struct AuditTrail {
    path: Option<PathBuf>,
    metrics: Arc<Metrics>,
    to: Mutex<Box<dyn Write + Send>>,
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrail")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl AuditTrail {
    /// Appends to the file, which only its owner can read; to standard error when there is none.
    ///
    /// # Errors
    /// When the file cannot be opened or made.
    pub fn open(path: Option<PathBuf>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let to: Box<dyn Write + Send> = match &path {
            Some(path) => Box::new(append(path)?),
            None => Box::new(io::stderr()),
        };
        Ok(Self {
            path,
            metrics,
            to: Mutex::new(to),
        })
    }

    /// Writes to the given place.
    #[must_use]
    pub fn to(writer: Box<dyn Write + Send>, metrics: Arc<Metrics>) -> Self {
        Self {
            path: None,
            metrics,
            to: Mutex::new(writer),
        }
    }

    /// Appends one line in one write. A failure is counted and logged.
    pub(super) fn append(&self, line: &str) {
        let bytes = format!("{line}\n").into_bytes();
        let written = {
            let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
            to.write_all(&bytes).and_then(|()| to.flush())
        };
        if let Err(error) = written {
            self.metrics.audit_error("write");
            tracing::error!(%error, "audit record lost");
        }
    }

    /// Opens the file again by its path, after it was moved away. Keeps the old one when that fails.
    pub fn reopen(&self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => {
                *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(file);
            }
            Err(error) => {
                self.metrics.audit_error("open");
                tracing::error!(%error, "audit trail not opened again");
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_object_a_line_whatever_clients_send_and_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let metrics = Arc::new(Metrics::new().unwrap());
        let trail = AuditTrail::open(Some(path.clone()), metrics).unwrap();
        let hostile = "a\"}\n{\"principal\":\"root\"\r\u{1b}[31m\u{0}\u{85}\u{9b}31m\u{2028}\u{2029}\u{202e}\u{2066}\u{61c}";
        let record = AuditRecord {
            time: Timestamp::from_millis(0),
            principal: Some("alice"),
            token: None,
            client: None,
            action: "restore",
            backend: None,
            vm: hostile,
            backup: Some("456"),
            note: Some(hostile),
            outcome: "refused",
            code: Some("Forbidden"),
            operation: None,
            request: "r-1",
        };
        trail.append(&line(&record).unwrap());
        std::fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        trail.reopen();
        trail.append(&line(&record).unwrap());
        for name in ["audit.log.1", "audit.log"] {
            let file = dir.path().join(name);
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text.lines().count(), 1, "{name}: one line: {text}");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["note"], hostile, "{name}: nothing is lost");
            assert_eq!(value["principal"], "alice", "{name}: nothing is forged");
            assert_eq!(value["time"], "1970-01-01T00:00:00Z", "{name}: time");
            assert!(
                !text
                    .trim_end()
                    .chars()
                    .any(|it| it.is_control()
                        || "\u{2028}\u{2029}\u{202e}\u{2066}\u{61c}".contains(it)),
                "{name}: {text:?}"
            );
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}: readable by its owner only");
        }
    }

    #[test]
    fn a_lost_record_is_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let trail = AuditTrail::to(Box::new(full), Arc::clone(&metrics));
        trail.append("{}");
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(
            text.contains("snapgate_audit_errors_total{kind=\"write\"} 1"),
            "{text}"
        );
    }
}
