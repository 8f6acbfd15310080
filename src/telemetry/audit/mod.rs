//! The audit trail: who changed, or tried to change, what, and how it ended. One JSON object a line, whatever the form of
//! the log.

mod file;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use ring::digest;
use serde::Serialize;
use serde::Serializer;

use crate::model::Timestamp;
use crate::telemetry::Metrics;
use crate::telemetry::escape;

pub use verify::Verified;
pub use verify::VerifyError;
pub use verify::verify;

/// Where a request came from, as the trail names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditClient {
    /// An address.
    Address(IpAddr),
    /// A process on the gateway's own machine.
    Local,
}

impl Serialize for AuditClient {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Address(address) => to.collect_str(address),
            Self::Local => to.serialize_str("local"),
        }
    }
}

/// One record. Every record has every member: `null` where it says nothing. Text of clients is escaped by the JSON it is
/// written as. Put no secret in.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AuditRecord<'a> {
    /// When it was decided; written as RFC 3339.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
    /// Who asked; `None` when that is not known.
    pub principal: Option<&'a str>,
    /// With which API token, if it was one.
    pub token: Option<&'a str>,
    /// The name that was tried by a caller who is not known.
    pub claimed: Option<&'a str>,
    /// From where.
    pub client: Option<AuditClient>,
    /// What was asked for, for instance `restore`.
    pub action: &'a str,
    /// The backend, once placed.
    pub backend: Option<&'a str>,
    /// The VM.
    pub vm: Option<&'a str>,
    /// The backup.
    pub backup: Option<&'a str>,
    /// What the caller wants to read here.
    pub note: Option<&'a str>,
    /// `asked`, `accepted`, `joined`, `refused`, or how the operation ended.
    pub outcome: &'a str,
    /// The stable code of the refusal.
    pub code: Option<&'a str>,
    /// Why credentials were refused, or the kind of fault with which the operation ended.
    pub reason: Option<&'a str>,
    /// The number of the operation; written as text, because JSON numbers lose digits beyond 2^53.
    #[serde(serialize_with = "as_optional_text")]
    pub operation: Option<u64>,
    /// The id of the request.
    pub request: Option<&'a str>,
}

impl AuditRecord<'_> {
    /// A record that says nothing yet but what happened, and when.
    #[must_use]
    pub const fn new<'a>(time: Timestamp, action: &'a str, outcome: &'a str) -> AuditRecord<'a> {
        AuditRecord {
            time,
            principal: None,
            token: None,
            claimed: None,
            client: None,
            action,
            backend: None,
            vm: None,
            backup: None,
            note: None,
            outcome,
            code: None,
            reason: None,
            operation: None,
            request: None,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands in a reference"
)]
fn as_text<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

#[expect(clippy::ref_option, reason = "serde hands in a reference")]
fn as_optional_text<S: Serializer>(number: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => to.collect_str(number),
        None => to.serialize_none(),
    }
}

/// The record as one line without its end. `previous` is the hash of the line before it.
fn line(record: &AuditRecord<'_>, previous: Option<&str>) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Chained<'a> {
        #[serde(flatten)]
        record: &'a AuditRecord<'a>,
        previous: Option<&'a str>,
    }
    serde_json::to_string(&Chained { record, previous }).map(escape::json)
}

/// The SHA-256 of a line without its end, in hexadecimal: what `sha256sum` prints of it.
fn hash(line: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, line);
    let digits = digest.as_ref().iter().flat_map(|byte| {
        let (high, low) = (u32::from(byte >> 4), u32::from(byte & 15));
        [char::from_digit(high, 16), char::from_digit(low, 16)]
    });
    digits.flatten().collect()
}

/// The record was not written, which is counted and logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail cannot be written")]
pub struct AuditWriteError;

/// The audit trail of a process.
pub struct AuditTrail {
    path: Option<PathBuf>,
    required: bool,
    metrics: Arc<Metrics>,
    sink: Mutex<TrailWriter>,
}

/// What is written to, and what is known of what was written.
struct TrailWriter {
    to: Box<dyn Write + Send>,
    /// What is left of a record that was written in part: it comes before anything else.
    rest: Vec<u8>,
    /// The hash of the newest record.
    previous: Option<String>,
    /// Records that were lost since the newest one.
    lost: u64,
}

impl TrailWriter {
    /// Completes what was written in part.
    fn complete(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            match self.to.write(&self.rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.rest.drain(..count.min(self.rest.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.to.flush()
    }

    /// Writes one record as a line of its own. Fails with nothing of it written, or with the rest of it kept for later;
    /// `true` in the first case.
    fn write(&mut self, record: &AuditRecord<'_>) -> Result<(), (io::Error, bool)> {
        self.complete().map_err(|error| (error, true))?;
        let line = line(record, self.previous.as_deref()).map_err(|error| (error.into(), true))?;
        self.rest = line.into_bytes();
        let hash = hash(&self.rest);
        self.rest.push(b'\n');
        let length = self.rest.len();
        match self.complete() {
            Ok(()) => {}
            Err(error) if self.rest.len() == length => {
                self.rest.clear();
                return Err((error, true));
            }
            Err(error) => {
                self.previous = Some(hash);
                return Err((error, false));
            }
        }
        self.previous = Some(hash);
        Ok(())
    }

    /// Says in the trail itself how much is missing from it.
    fn write_gap(&mut self, time: Timestamp) -> Result<(), (io::Error, bool)> {
        if self.lost == 0 {
            return Ok(());
        }
        let note = format!(
            "{} records were lost here while the audit trail could not be written",
            self.lost
        );
        let mut gap = AuditRecord::new(time, "audit", "records-lost");
        gap.note = Some(&note);
        self.write(&gap)?;
        tracing::warn!(lost = self.lost, "audit trail is written again");
        self.lost = 0;
        Ok(())
    }
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTrail")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl AuditTrail {
    /// Appends to the file, which only its owner can read; to standard error when there is none. A last line that is not
    /// complete is set apart, and the chain of hashes goes on from the last record. With `required` changes are refused while
    /// nothing can be written.
    ///
    /// # Errors
    /// When the file cannot be opened or made.
    pub fn open(path: Option<PathBuf>, required: bool, metrics: Arc<Metrics>) -> io::Result<Self> {
        let sink = match &path {
            Some(path) => {
                let opened = file::open(path)?;
                TrailWriter {
                    to: Box::new(opened.file),
                    rest: opened.rest,
                    previous: opened.previous,
                    lost: 0,
                }
            }
            None => TrailWriter::on(Box::new(io::stderr())),
        };
        Ok(Self {
            path,
            required,
            metrics,
            sink: Mutex::new(sink),
        })
    }

    /// Writes to the given place.
    #[must_use]
    pub fn to(writer: Box<dyn Write + Send>, metrics: Arc<Metrics>) -> Self {
        Self {
            path: None,
            required: false,
            metrics,
            sink: Mutex::new(TrailWriter::on(writer)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, TrailWriter> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether changes are refused while the trail cannot be written.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// Appends one record.
    ///
    /// # Errors
    /// [`AuditWriteError`]: it is lost, or only a part of it was written so far; the rest follows as soon as that is possible.
    pub fn append(&self, record: &AuditRecord<'_>) -> Result<(), AuditWriteError> {
        let mut sink = self.lock();
        let written = sink
            .write_gap(record.time)
            .and_then(|()| sink.write(record));
        let Err((error, is_lost)) = written else {
            return Ok(());
        };
        let is_first = sink.lost == 0;
        if is_lost {
            sink.lost = sink.lost.saturating_add(1);
            self.metrics.process.record_lost_audit_records(1);
        }
        drop(sink);
        self.metrics.process.record_audit_error("write");
        if is_first {
            tracing::error!(
                %error,
                action = record.action,
                outcome = record.outcome,
                "audit trail cannot be written; free space on its disk or make it writable"
            );
        } else {
            tracing::debug!(%error, "audit record lost");
        }
        Err(AuditWriteError)
    }

    /// Opens the file again by its path, after it was moved away. Keeps the old one when that fails. The chain of hashes goes
    /// on.
    pub fn reopen(&self) {
        let Some(path) = &self.path else { return };
        let opened = match file::open(path) {
            Ok(opened) => opened,
            Err(error) => {
                self.metrics.process.record_audit_error("open");
                tracing::error!(%error, "audit trail not opened again");
                return;
            }
        };
        let mut sink = self.lock();
        if let Err(error) = sink.complete() {
            tracing::error!(%error, "the last audit record of the old file is not complete");
            sink.lost = sink.lost.saturating_add(1);
            self.metrics.process.record_lost_audit_records(1);
        }
        sink.to = Box::new(opened.file);
        sink.rest = opened.rest;
    }
}

impl TrailWriter {
    fn on(to: Box<dyn Write + Send>) -> Self {
        Self {
            to,
            rest: Vec::new(),
            previous: None,
            lost: 0,
        }
    }
}
