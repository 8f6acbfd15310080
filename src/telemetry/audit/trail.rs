//! Appends records to the trail, and keeps its hash chain whole through failed writes and rotated files.

use std::fmt;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::Timestamp;
use crate::telemetry::Metrics;
use crate::telemetry::audit::AuditRecord;
use crate::telemetry::audit::file;
use crate::telemetry::audit::record::encode_line;
use crate::telemetry::audit::record::line_hash;

/// The record was not written. The failure has been counted and logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write audit trail")]
pub struct AuditWriteError;

/// The audit trail of a process.
pub struct AuditTrail {
    path: Option<PathBuf>,
    required: bool,
    metrics: Arc<Metrics>,
    writer: Mutex<TrailWriter>,
}

/// The destination of records, and the state of the hash chain.
struct TrailWriter {
    destination: Box<dyn Write + Send>,
    /// The rest of a partly written record. It is written before anything else.
    unwritten: Vec<u8>,
    /// The hash of the newest record.
    previous: Option<String>,
    /// Records lost since the newest one.
    lost: u64,
}

/// A failed write.
struct WriteFailure {
    error: io::Error,
    /// Whether nothing of the record was written. Otherwise its rest is kept and written later.
    is_lost: bool,
}

impl WriteFailure {
    const fn lost(error: io::Error) -> Self {
        Self {
            error,
            is_lost: true,
        }
    }
}

impl TrailWriter {
    fn new(destination: Box<dyn Write + Send>) -> Self {
        Self {
            destination,
            unwritten: Vec::new(),
            previous: None,
            lost: 0,
        }
    }

    /// Completes a partly written record.
    fn write_rest(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match self.destination.write(&self.unwritten) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.unwritten.drain(..count.min(self.unwritten.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.destination.flush()
    }

    /// Writes one record as a line of its own.
    fn write_record(&mut self, record: &AuditRecord<'_>) -> Result<(), WriteFailure> {
        self.write_rest().map_err(WriteFailure::lost)?;
        let line = encode_line(record, self.previous.as_deref())
            .map_err(|error| WriteFailure::lost(error.into()))?;
        self.unwritten = line.into_bytes();
        let hash = line_hash(&self.unwritten);
        self.unwritten.push(b'\n');
        let length = self.unwritten.len();
        match self.write_rest() {
            Ok(()) => {}
            // Nothing was written: the record can be dropped without leaving a broken line.
            Err(error) if self.unwritten.len() == length => {
                self.unwritten.clear();
                return Err(WriteFailure::lost(error));
            }
            Err(error) => {
                // The chain includes this record: its rest is kept and written first next time.
                self.previous = Some(hash);
                return Err(WriteFailure {
                    error,
                    is_lost: false,
                });
            }
        }
        self.previous = Some(hash);
        Ok(())
    }

    /// Records in the trail itself how many records are missing.
    fn write_gap(&mut self, time: Timestamp) -> Result<(), WriteFailure> {
        if self.lost == 0 {
            return Ok(());
        }
        let note = format!(
            "{} records were lost here while the audit trail could not be written",
            self.lost
        );
        let mut gap = AuditRecord::new(time, "audit", "records-lost");
        gap.note = Some(&note);
        self.write_record(&gap)?;
        tracing::warn!(lost = self.lost, "audit trail writable again");
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
    /// Appends to the file, which only its owner can read, or to standard error without one. An incomplete last line is
    /// terminated, and the hash chain continues from the last complete record. With `required`, changes are refused while the
    /// trail cannot be written.
    ///
    /// # Errors
    /// If the file cannot be opened or created.
    pub fn open(path: Option<PathBuf>, required: bool, metrics: Arc<Metrics>) -> io::Result<Self> {
        let writer = match &path {
            Some(path) => {
                let opened = file::open(path)?;
                TrailWriter {
                    destination: Box::new(opened.file),
                    unwritten: opened.unwritten,
                    previous: opened.previous,
                    lost: 0,
                }
            }
            None => TrailWriter::new(Box::new(io::stderr())),
        };
        Ok(Self {
            path,
            required,
            metrics,
            writer: Mutex::new(writer),
        })
    }

    /// Writes records to this destination instead of a file.
    #[must_use]
    pub fn with_destination(destination: Box<dyn Write + Send>, metrics: Arc<Metrics>) -> Self {
        Self {
            path: None,
            required: false,
            metrics,
            writer: Mutex::new(TrailWriter::new(destination)),
        }
    }

    /// Whether changes are refused while the trail cannot be written.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// Appends one record.
    ///
    /// # Errors
    /// [`AuditWriteError`]: the record is lost, or only a part of it was written; the rest is then written as soon as possible.
    pub fn append(&self, record: &AuditRecord<'_>) -> Result<(), AuditWriteError> {
        let mut writer = self.writer.lock();
        let written = writer
            .write_gap(record.time)
            .and_then(|()| writer.write_record(record));
        let Err(WriteFailure { error, is_lost }) = written else {
            return Ok(());
        };
        // Logged as an error once per outage, or a full disk would fill the log too.
        let is_first = writer.lost == 0;
        if is_lost {
            writer.lost = writer.lost.saturating_add(1);
            self.metrics.process.record_lost_audit_records(1);
        }
        drop(writer);
        self.metrics.process.record_audit_error("write");
        if is_first {
            tracing::error!(
                %error,
                action = record.action,
                outcome = record.outcome,
                remedy = "free disk space or make the audit trail file writable",
                "audit trail not writable"
            );
        } else {
            tracing::debug!(%error, "audit record lost");
        }
        Err(AuditWriteError)
    }

    /// Opens the file again by its path after log rotation moved it. Keeps the old file if that fails. The hash chain
    /// continues.
    pub fn reopen(&self) {
        let Some(path) = &self.path else { return };
        // Locked first: once the new file exists, no record goes to the old one.
        let mut writer = self.writer.lock();
        let opened = match file::open(path) {
            Ok(opened) => opened,
            Err(error) => {
                self.metrics.process.record_audit_error("open");
                tracing::error!(%error, "audit trail reopen failed, the old file stays open");
                return;
            }
        };
        if let Err(error) = writer.write_rest() {
            tracing::error!(%error, "audit record truncated in rotated file");
            writer.lost = writer.lost.saturating_add(1);
            self.metrics.process.record_lost_audit_records(1);
        }
        writer.destination = Box::new(opened.file);
        writer.unwritten = opened.unwritten;
    }
}
