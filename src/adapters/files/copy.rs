//! Copies a disk image: holes stay holes, and a checksum is made on the way.
//!
//! The checksum `blake3-blocks-64k` is BLAKE3 over, for each 64 KiB block of the image that is not all zeros, its number
//! (64 bits, little endian) and its bytes, and at the end the length of the image (64 bits, little endian). It does not
//! depend on where the file system happens to keep holes, and holes cost nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;

use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::error::While;
use crate::adapters::files::job::Job;

const BLOCK: u64 = 64 * 1024;
/// Read and written at once: large enough that system calls do not matter, small enough for the caches.
const BUFFER: usize = 1024 * 1024;

/// Where the copied bytes go.
enum Sink<'a> {
    /// Written here.
    File(&'a File),
    /// They are there already, as shared extents: only the checksum is wanted.
    Shared,
}

/// Copies `from` into the empty file `to` and puts it on stable storage. Returns length and checksum.
pub(super) fn copy(from: &File, to: &File, job: &Job) -> Outcome<(u64, String)> {
    let length = from.metadata().during("looking at an image")?.len();
    job.step()?;
    let sink = match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Sink::Shared,
        Err(_not_shared) => {
            to.set_len(length).during("sizing a copy")?;
            Sink::File(to)
        }
    };
    let checksum = walk(from, length, &sink, job)?;
    job.step()?;
    to.sync_all().during("writing a copy out")?;
    let after = from.metadata().during("looking at an image")?.len();
    if after != length {
        return Err(Failure::Io(
            "copying an image",
            io::Error::other("the image changed its length meanwhile"),
        ));
    }
    Ok((length, checksum))
}

fn walk(from: &File, length: u64, sink: &Sink<'_>, job: &Job) -> Outcome<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut position = 0;
    while let Some((start, end)) = next_data(from, position, length)? {
        job.advance(start.saturating_sub(position))?;
        position = start;
        while position < end {
            let wanted = usize::try_from(end.saturating_sub(position)).unwrap_or(BUFFER);
            let Some(part) = buffer.get_mut(..wanted.min(BUFFER)) else {
                break;
            };
            from.read_exact_at(part, position)
                .during("reading an image")?;
            take(part, position, sink, &mut hasher)?;
            let count = u64::try_from(part.len()).unwrap_or(0);
            position = position.saturating_add(count);
            job.advance(count)?;
        }
    }
    job.advance(length.saturating_sub(position))?;
    hasher.update(&length.to_le_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes and writes the blocks of `part`, which begins at a block, that are not all zeros.
fn take(part: &[u8], position: u64, sink: &Sink<'_>, hasher: &mut blake3::Hasher) -> Outcome<()> {
    let block_bytes = usize::try_from(BLOCK).unwrap_or(BUFFER);
    let mut at = position;
    // Neighbouring blocks are written together.
    let mut pending: Option<(u64, usize)> = None;
    for block in part.chunks(block_bytes) {
        let count = u64::try_from(block.len()).unwrap_or(0);
        if is_zero(block) {
            flush(part, &mut pending, position, sink)?;
        } else {
            hasher.update(&(at / BLOCK).to_le_bytes());
            hasher.update(block);
            let (_, bytes) = pending.get_or_insert((at, 0));
            *bytes = bytes.saturating_add(block.len());
        }
        at = at.saturating_add(count);
    }
    flush(part, &mut pending, position, sink)
}

fn flush(
    part: &[u8],
    pending: &mut Option<(u64, usize)>,
    position: u64,
    sink: &Sink<'_>,
) -> Outcome<()> {
    let (Some((start, bytes)), Sink::File(to)) = (pending.take(), sink) else {
        return Ok(());
    };
    let first = usize::try_from(start.saturating_sub(position)).unwrap_or(usize::MAX);
    let run = part
        .get(first..first.saturating_add(bytes))
        .unwrap_or_default();
    to.write_all_at(run, start).during("writing a copy")
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<32>();
    words.iter().all(|it| *it == [0; 32]) && rest.iter().all(|it| *it == 0)
}

/// The next range from `position` on that may hold data, widened to whole blocks; `None` when only holes are left.
fn next_data(file: &File, position: u64, length: u64) -> Outcome<Option<(u64, u64)>> {
    if position >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // The file system does not tell: all of it may be data.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
            return Ok(Some((position, length)));
        }
        Err(error) => return Err(Failure::Io("looking for data", error.into())),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))
        .map_err(|error| Failure::Io("looking for holes", error.into()))?;
    let start = start
        .checked_div(BLOCK)
        .unwrap_or(0)
        .saturating_mul(BLOCK)
        .max(position);
    let end = end.div_ceil(BLOCK).saturating_mul(BLOCK).min(length);
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Name, parts with their positions, length.
    type Row<'a> = (&'a str, Vec<(u64, &'a [u8])>, u64);

    fn image(parts: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn copies_are_equal_and_checksums_follow_the_content_alone() {
        let odd = vec![7_u8; 100_001];
        let rows: [Row<'_>; 6] = [
            ("empty", vec![], 0),
            ("only a hole", vec![], 5_000_000),
            ("odd length", vec![(0, &odd)], 100_001),
            ("data in the middle", vec![(1_234_567, &odd)], 5_000_000),
            ("data at the end", vec![(4_899_999, &odd)], 5_000_000),
            (
                "several",
                vec![(0, b"a"), (65_535, b"bc"), (3_000_000, &odd)],
                5_000_001,
            ),
        ];
        let mut sums = std::collections::BTreeSet::new();
        for (name, parts, length) in &rows {
            let from = image(parts, *length);
            let to = tempfile::tempfile().unwrap();
            let (copied, sum) = copy(&from, &to, &Job::new()).unwrap();
            assert_eq!(copied, *length, "{name}: length");
            assert_eq!(bytes(&to), bytes(&from), "{name}: content");
            // The same content written out in full, without holes.
            let dense = tempfile::tempfile().unwrap();
            dense.write_all_at(&bytes(&from), 0).unwrap();
            let again = copy(&dense, &tempfile::tempfile().unwrap(), &Job::new())
                .unwrap()
                .1;
            assert_eq!(sum, again, "{name}: holes do not matter");
            assert!(sums.insert(sum), "{name}: different from the others");
        }
    }

    #[test]
    fn holes_stay_holes_and_zeros_become_holes() {
        let from = image(&[(0, &[0; 1_000_000]), (40_000_000, b"x")], 64_000_000);
        let to = tempfile::tempfile().unwrap();
        copy(&from, &to, &Job::new()).unwrap();
        let used = to.metadata().unwrap().blocks() * 512;
        assert!(
            used <= 1_100_000,
            "{used} bytes are used for one byte of data"
        );
    }

    #[test]
    fn a_flipped_bit_shows() {
        let content = vec![1_u8; 300_000];
        let sum = |at: usize| {
            let mut flipped = content.clone();
            flipped[at] ^= 0x80;
            let from = image(&[(0, &flipped)], 300_000);
            copy(&from, &tempfile::tempfile().unwrap(), &Job::new())
                .unwrap()
                .1
        };
        let sums: std::collections::BTreeSet<String> = [0, 65_535, 65_536, 299_999].map(sum).into();
        assert_eq!(sums.len(), 4, "each another checksum");
    }

    #[test]
    fn a_job_that_shall_stop_stops() {
        let job = Job::new();
        assert!(job.cancel(), "in time");
        let from = image(&[(0, &[1; 100_000])], 100_000);
        let ended = copy(&from, &tempfile::tempfile().unwrap(), &job);
        assert!(matches!(ended, Err(Failure::Cancelled)), "{ended:?}");
    }
}
