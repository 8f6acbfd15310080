//! Checks a trail offline: each record carries the hash of the one before it.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::telemetry::audit::hash;

/// A line longer than that is no record.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Problems that are kept: a trail that was changed everywhere need not be listed line by line.
const PROBLEMS_MAX: usize = 100;

/// Why a trail could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was found in a trail.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records that were read.
    pub records: u64,
    /// What shows that records were changed, removed or reordered: a sentence each, the first 100.
    pub problems: Vec<String>,
    /// What is no sign of a change but worth knowing.
    pub remarks: Vec<String>,
    /// The hash of the last record. Kept elsewhere, it shows later whether records were removed from the end.
    pub last: Option<String>,
}

/// The member of a record that is looked at.
#[derive(Deserialize)]
struct ChainLink {
    #[serde(default)]
    previous: Option<String>,
    #[expect(dead_code, reason = "a line without it is no record")]
    action: String,
}

fn link(line: &[u8]) -> Option<ChainLink> {
    serde_json::from_slice(line).ok()
}

pub(super) fn is_record(line: &[u8]) -> bool {
    link(line).is_some()
}

impl Verified {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn remark(&mut self, remark: String) {
        if self.remarks.len() < PROBLEMS_MAX {
            self.remarks.push(remark);
        }
    }

    /// One line, which is at this place.
    fn line(&mut self, line: &[u8], place: &str) {
        let Some(link) = link(line) else {
            self.remark(format!(
                "{place}: not a record; the write of this line broke off"
            ));
            return;
        };
        match (link.previous, self.last.as_deref()) {
            (Some(named), Some(last)) if named == last => {}
            (Some(_), Some(_)) => self.problem(format!(
                "{place}: does not follow the record before it: a record was changed, removed or moved"
            )),
            (Some(_), None) => self.remark(format!(
                "{place}: follows a record in an older file, which was not given"
            )),
            (None, None) => {}
            (None, Some(_)) => self.problem(format!(
                "{place}: begins a new chain: records before it may have been removed"
            )),
        }
        self.records = self.records.saturating_add(1);
        self.last = Some(hash(line));
    }
}

/// Checks files in the order in which they were written, the oldest first.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(files: &[PathBuf]) -> Result<Verified, VerifyError> {
    let mut found = Verified::default();
    for file in files {
        verify_one(file, &mut found).map_err(|source| VerifyError::Read {
            file: file.clone(),
            source,
        })?;
    }
    Ok(found)
}

fn verify_one(path: &Path, found: &mut Verified) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut number = 0_u64;
    loop {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut reader, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number = number.saturating_add(1);
        let place = format!("{}:{number}", path.display());
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        if !is_whole && is_record(&line) {
            found.remark(format!("{place}: the last line has no end"));
        }
        found.line(&line, &place);
    }
}
