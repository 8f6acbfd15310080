//! Opening the file of the trail: what its last line is, and which record comes last.

use std::ffi::OsString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::telemetry::audit::hash;

/// The last record is looked for in so many bytes at the end: several times the longest record there can be.
const TAIL_BYTES: u64 = 256 * 1024;

/// The file, ready to be appended to.
pub(super) struct OpenedTrail {
    pub(super) file: File,
    /// What has to be written first.
    pub(super) rest: Vec<u8>,
    /// The hash of the last record.
    pub(super) previous: Option<String>,
}

/// Opens the file or makes it, readable by its owner alone.
pub(super) fn open(path: &Path) -> io::Result<OpenedTrail> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)?;
    // A pipe or a terminal has no end to look at.
    if !file.metadata()?.is_file() {
        return Ok(OpenedTrail {
            file,
            rest: Vec::new(),
            previous: None,
        });
    }
    let tail = tail(&mut file)?;
    let is_torn = tail.last().is_some_and(|last| *last != b'\n');
    if is_torn {
        tracing::warn!(
            file = %path.display(),
            "the last line of the audit trail is not complete; it is set apart"
        );
    }
    let previous = if tail.is_empty() {
        last_of_rotated(path)
    } else {
        last_record(&tail)
    };
    Ok(OpenedTrail {
        file,
        rest: if is_torn { b"\n".to_vec() } else { Vec::new() },
        previous,
    })
}

fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

/// A new file goes on from the one that was moved away, where that has its usual name.
fn last_of_rotated(path: &Path) -> Option<String> {
    let mut rotated = OsString::from(path);
    rotated.push(".1");
    let mut file = File::open(rotated).ok()?;
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    last_record(&tail(&mut file).ok()?)
}

/// The hash of the last line that is a record. What is torn is none.
fn last_record(tail: &[u8]) -> Option<String> {
    let mut lines = tail.rsplit(|byte| *byte == b'\n');
    let found = lines.find(|line| super::verify::is_record(line))?;
    Some(hash(found))
}
