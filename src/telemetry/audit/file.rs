//! Opens the trail file and finds its last complete record.

use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::telemetry::audit::record::line_hash;

/// Bytes at the end of the file that are searched for the last record: several times the longest possible record.
const TAIL_BYTES: u64 = 256 * 1024;

/// The file, opened for appending.
pub(super) struct OpenedTrail {
    pub(super) file: File,
    /// What has to be written before the first record.
    pub(super) unwritten: Vec<u8>,
    /// The hash of the last record.
    pub(super) previous: Option<String>,
}

/// Opens or creates the file, readable by its owner alone.
pub(super) fn open(path: &Path) -> io::Result<OpenedTrail> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        // The trail has names of users, VMs and backups.
        .mode(0o600)
        .open(path)?;
    // A pipe or a terminal has no content to read back.
    if !file.metadata()?.is_file() {
        return Ok(OpenedTrail {
            file,
            unwritten: Vec::new(),
            previous: None,
        });
    }
    let tail = read_tail(&mut file)?;
    let is_torn = tail.last().is_some_and(|last| *last != b'\n');
    if is_torn {
        tracing::warn!(
            file = %path.display(),
            "audit trail ends in an incomplete line, which is kept as a line of its own"
        );
    }
    let previous = if tail.is_empty() {
        rotated_file_hash(path)
    } else {
        last_record_hash(&tail)
    };
    Ok(OpenedTrail {
        file,
        unwritten: if is_torn { b"\n".to_vec() } else { Vec::new() },
        previous,
    })
}

fn read_tail(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The hash that a new file continues from: that of the rotated file, if it has its usual name.
fn rotated_file_hash(path: &Path) -> Option<String> {
    let mut rotated = OsString::from(path);
    rotated.push(".1");
    let mut file = File::open(rotated).ok()?;
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    last_record_hash(&read_tail(&mut file).ok()?)
}

/// The hash of the last line that is a complete record.
fn last_record_hash(tail: &[u8]) -> Option<String> {
    let mut lines = tail.rsplit(|byte| *byte == b'\n');
    let found = lines.find(|line| super::verify::is_record(line))?;
    Some(line_hash(found))
}
