//! Verifies a trail offline: each record carries the hash of the one before it.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::telemetry::audit::record::line_hash;

/// Longest line that can be a record.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Problems that are reported. A trail that was changed everywhere need not be listed line by line.
const PROBLEMS_MAX: usize = 100;

/// Why a trail could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The result of a verification.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records that were read.
    pub records: u64,
    /// Evidence that records were changed, removed or reordered: one sentence each, the first 100.
    pub problems: Vec<String>,
    /// Findings that do not indicate a change but are worth knowing.
    pub remarks: Vec<String>,
    /// The hash of the last record. A copy of it kept elsewhere shows later whether records were removed from the end.
    pub last: Option<String>,
}

/// The members of a record that are verified.
#[derive(Deserialize)]
struct ChainLink {
    #[serde(default)]
    previous: Option<String>,
    #[expect(dead_code, reason = "a line without this member is not a record")]
    action: String,
}

fn parse_link(line: &[u8]) -> Option<ChainLink> {
    serde_json::from_slice(line).ok()
}

pub(super) fn is_record(line: &[u8]) -> bool {
    parse_link(line).is_some()
}

impl Verified {
    fn add_problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn add_remark(&mut self, remark: String) {
        if self.remarks.len() < PROBLEMS_MAX {
            self.remarks.push(remark);
        }
    }

    /// Verifies one line. `position` is its file and line number.
    fn verify_line(&mut self, line: &[u8], position: &str) {
        let Some(link) = parse_link(line) else {
            self.add_remark(format!(
                "{position}: not a record; the write of this line was interrupted"
            ));
            return;
        };
        match (link.previous, self.last.as_deref()) {
            (Some(named), Some(last)) if named == last => {}
            (Some(_), Some(_)) => self.add_problem(format!(
                "{position}: does not follow the record before it; a record was changed, removed or moved"
            )),
            (Some(_), None) => self.add_remark(format!(
                "{position}: follows a record in an older file that was not given"
            )),
            (None, None) => {}
            (None, Some(_)) => self.add_problem(format!(
                "{position}: begins a new chain; records before it may have been removed"
            )),
        }
        self.records = self.records.saturating_add(1);
        self.last = Some(line_hash(line));
    }
}

/// Verifies files in the order in which they were written, the oldest first.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(files: &[PathBuf]) -> Result<Verified, VerifyError> {
    let mut found = Verified::default();
    for file in files {
        verify_file(file, &mut found).map_err(|source| VerifyError::Read {
            file: file.clone(),
            source,
        })?;
    }
    Ok(found)
}

fn verify_file(path: &Path, found: &mut Verified) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut number = 0_u64;
    loop {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut reader, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number = number.saturating_add(1);
        let position = format!("{}:{number}", path.display());
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        if !is_whole && is_record(&line) {
            found.add_remark(format!("{position}: the last line is not terminated"));
        }
        found.verify_line(&line, &position);
    }
}
