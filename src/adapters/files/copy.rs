//! Copies one disk image: sparse stays sparse, reflinks where the file system can, checksum in the same pass.
//!
//! The checksum `blake3-1mib-v1` depends on the contents alone, not on where the holes are: the image is cut
//! into blocks of 1 MiB (the last may be shorter), each is hashed with BLAKE3, and the checksum is BLAKE3 in
//! key-derivation mode over the length (8 bytes, little endian) and the hashes in order. The hash of a whole
//! block of zeros is a constant, so a hole costs 32 bytes of hashing per MiB.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::channel;
use std::sync::mpsc::sync_channel;

use rustix::fs::Advice;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::adapters::files::dir_fd;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::errno_of;
use crate::adapters::files::error::io_error;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::jobs::Job;
use crate::model::FaultKind;
use crate::public_text;

/// The name of the checksum in manifests.
pub(super) const ALGORITHM: &str = "blake3-1mib-v1";
const CONTEXT: &str = "snapgate files adapter, checksum of a disk image, blake3-1mib-v1";
const BLOCK: usize = 1 << 20;
const BLOCK_BYTES: u64 = 1 << 20;
/// Bytes of one read and one write. They stay in a core's own cache from the read to the write, and the kernel finds
/// room for them without breaking up large stretches of memory: with 1 MiB a copy took 1.7 times the processor.
const PIECE_BYTES: u64 = 256 << 10;
/// Zeros are left out in stretches of this size.
const STRETCH: usize = 64 << 10;
const ZEROS: &[u8; STRETCH] = &[0; STRETCH];
/// Pieces on their way to the hash: bounds the memory of one copy to some 5 MiB.
const PIECES_AHEAD: usize = 16;
/// The kernel is asked to start writing back after so many bytes, so that the final sync has little left.
const WRITE_BACK: u64 = 16 << 20;

/// What a copy was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    /// 64 hexadecimal digits.
    pub(super) checksum: String,
    /// Bytes that are not zero, in stretches of 64 KiB.
    pub(super) data: u64,
}

enum Part {
    Piece {
        bytes: Vec<u8>,
        at: u64,
        ends_block: bool,
    },
    ZeroBlocks(u64),
}

/// Copies `size` bytes from one file into an empty one. The caller syncs.
///
/// One thread reads and writes, another hashes the very bytes that were written and starts their way to the disk.
pub(super) fn copy_image(
    from: &File,
    to: &File,
    size: u64,
    job: &Job,
    failpoints: &Failpoints,
) -> Result<Digest, Problem> {
    failpoints
        .hit("clone")
        .map_err(io_error("cloning a disk image"))?;
    // A reflink shares the blocks until one side is written to. Where it is impossible, for whatever reason, the
    // bytes are copied.
    let cloned = size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok();
    if !cloned {
        // The whole length at once: what is not written afterwards stays a hole.
        rustix::fs::ftruncate(to, size).map_err(io_error("sizing a disk image"))?;
    }
    // A clone is what will be used later, so it is what gets hashed.
    let source = if cloned { to } else { from };
    let target = (!cloned).then_some(to);
    copy_and_hash(source, target, size, job, failpoints)
}

/// Reads so many bytes of a file for their checksum.
pub(super) fn hash_image(
    file: &File,
    size: u64,
    job: &Job,
    failpoints: &Failpoints,
) -> Result<Digest, Problem> {
    copy_and_hash(file, None, size, job, failpoints)
}

fn copy_and_hash(
    source: &File,
    target: Option<&File>,
    size: u64,
    job: &Job,
    failpoints: &Failpoints,
) -> Result<Digest, Problem> {
    if let Err(errno) = rustix::fs::fadvise(source, 0, None, Advice::Sequential) {
        tracing::trace!(%errno, "no more read ahead than usual");
    }
    // Bounded, so that a reader that is faster than the hash does not fill the memory.
    let (parts, hashed) = sync_channel(PIECES_AHEAD);
    // Buffers travel back to the reader, which fills them again.
    let (emptied, empty) = channel();
    std::thread::scope(|scope| {
        let hasher = std::thread::Builder::new()
            .name("image-hash".to_owned())
            .spawn_scoped(scope, move || hash_parts(size, target, &hashed, &emptied))
            .map_err(|error| io_error("starting a thread")(errno_of(&error)))?;
        let reader = ImageReader {
            source,
            target,
            size,
            job,
            failpoints,
        };
        let data = reader.copy_all(&parts, &empty);
        // The hasher ends when the channel is closed, also after an error of the reader.
        drop(parts);
        // Before the error of the reader, which is only a consequence where the hasher panicked.
        let checksum = hasher.join().map_err(|_panic| hash_failed())?;
        Ok(Digest {
            checksum,
            data: data?,
        })
    })
}

fn hash_failed() -> Problem {
    Problem::new(
        FaultKind::BackendFailed,
        public_text!(
            "The checksum of a disk image could not be computed. Try again; if it fails again, ask the operator."
        ),
    )
}

/// Hashes what was written, and has it written back.
fn hash_parts(
    size: u64,
    target: Option<&File>,
    parts: &Receiver<Part>,
    emptied: &Sender<Vec<u8>>,
) -> String {
    let zero = blake3::hash(&vec![0; BLOCK]);
    let mut all = blake3::Hasher::new_derive_key(CONTEXT);
    // The length is part of the checksum: images that differ only in trailing zeros must differ in it.
    all.update(&size.to_le_bytes());
    let mut block = blake3::Hasher::new();
    let (mut start, mut end, mut unwritten) = (0_u64, 0_u64, 0_u64);
    for part in parts {
        match part {
            Part::Piece {
                bytes,
                at,
                ends_block,
            } => {
                block.update(&bytes);
                if ends_block {
                    all.update(block.finalize().as_bytes());
                    block.reset();
                }
                let length = u64::try_from(bytes.len()).unwrap_or(PIECE_BYTES);
                // The receiver is gone once the reader has finished, and the buffer is freed.
                drop(emptied.send(bytes));
                if unwritten == 0 {
                    start = at;
                }
                end = at.saturating_add(length);
                unwritten = unwritten.saturating_add(length);
            }
            Part::ZeroBlocks(count) => {
                // A hole hashes as the zeros that it reads as, so a sparse and a dense copy have one checksum.
                for _ in 0..count {
                    all.update(zero.as_bytes());
                }
            }
        }
        if unwritten >= WRITE_BACK {
            write_back(target, start, end);
            unwritten = 0;
        }
    }
    if unwritten > 0 {
        write_back(target, start, end);
    }
    all.finalize().to_hex().to_string()
}

fn write_back(target: Option<&File>, start: u64, end: u64) {
    if let Some(target) = target {
        dir_fd::write_back(target, start, end.saturating_sub(start));
    }
}

struct ImageReader<'a> {
    source: &'a File,
    target: Option<&'a File>,
    size: u64,
    job: &'a Job,
    failpoints: &'a Failpoints,
}

impl ImageReader<'_> {
    fn copy_all(
        &self,
        parts: &SyncSender<Part>,
        empty: &Receiver<Vec<u8>>,
    ) -> Result<u64, Problem> {
        let (mut at, mut data, mut extent_end) = (0_u64, 0_u64, 0_u64);
        while at < self.size {
            // Once for each block, so that a cancellation does not wait for the rest of a large image.
            self.job.check_cancelled()?;
            if at >= extent_end {
                let (start, end) = self.next_extent(at)?;
                // Whole blocks only. What is left of the hole is read with the data behind it, and is left out again
                // when it is written.
                let holes = start.saturating_sub(at) / BLOCK_BYTES;
                if holes > 0 {
                    let skipped = holes.saturating_mul(BLOCK_BYTES);
                    let part = Part::ZeroBlocks(holes);
                    parts.send(part).map_err(|_gone| hash_failed())?;
                    self.job.advance(skipped);
                    at = at.saturating_add(skipped);
                    continue;
                }
                extent_end = end;
            }
            let end = at.saturating_add(BLOCK_BYTES).min(self.size);
            data = data.saturating_add(self.copy_block(at, end, parts, empty)?);
            self.job.advance(end.saturating_sub(at));
            at = end;
        }
        Ok(data)
    }

    /// Copies one block. Returns the bytes of it that are not zero.
    fn copy_block(
        &self,
        start: u64,
        end: u64,
        parts: &SyncSender<Part>,
        empty: &Receiver<Vec<u8>>,
    ) -> Result<u64, Problem> {
        let doing = io_error("writing a disk image");
        self.failpoints.hit("write image").map_err(doing)?;
        let (mut at, mut data) = (start, 0_u64);
        while at < end {
            let length = PIECE_BYTES.min(end.saturating_sub(at));
            // Never waits: without a returned buffer a new one is made, about as many as the channel holds.
            let mut bytes = empty.try_recv().unwrap_or_default();
            bytes.resize(usize::try_from(length).unwrap_or(BLOCK), 0);
            self.source
                // Exactly: an image that became shorter meanwhile is in use by something, and a short copy would pass
                // for whole.
                .read_exact_at(&mut bytes, at)
                .map_err(|error| image_read_failure(&error))?;
            data = data.saturating_add(self.write_data(&bytes, at)?);
            let next = at.saturating_add(length);
            let part = Part::Piece {
                bytes,
                at,
                ends_block: next >= end,
            };
            parts.send(part).map_err(|_gone| hash_failed())?;
            at = next;
        }
        Ok(data)
    }

    /// The next stretch of data from here on; both ends are the end of the image when there is none.
    fn next_extent(&self, at: u64) -> Result<(u64, u64), Problem> {
        let start = match rustix::fs::seek(self.source, SeekFrom::Data(at)) {
            Ok(start) => start.min(self.size),
            Err(Errno::NXIO) => return Ok((self.size, self.size)),
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, self.size)),
            Err(errno) => return Err(io_error("looking for data in a disk image")(errno)),
        };
        match rustix::fs::seek(self.source, SeekFrom::Hole(start)) {
            Ok(end) => Ok((start, end.min(self.size))),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok((start, self.size)),
            Err(errno) => Err(io_error("looking for holes in a disk image")(errno)),
        }
    }

    /// Writes the stretches that are not zero in as few calls as possible. Returns their bytes.
    fn write_data(&self, piece: &[u8], at: u64) -> Result<u64, Problem> {
        let doing = io_error("writing a disk image");
        let (mut done, mut position) = (0_u64, at);
        let mut stretches = piece.chunks(STRETCH).peekable();
        let is_zero = |value: &[u8]| ZEROS.get(..value.len()) == Some(value);
        let mut rest = piece;
        while let Some(first) = stretches.next() {
            let zero = is_zero(first);
            let mut length = first.len();
            while let Some(more) = stretches.next_if(|stretch| is_zero(stretch) == zero) {
                length = length.saturating_add(more.len());
            }
            let (run, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = after;
            let bytes = u64::try_from(run.len()).unwrap_or(u64::MAX);
            if !zero {
                done = done.saturating_add(bytes);
                if let Some(target) = self.target {
                    let written = target.write_all_at(run, position);
                    written.map_err(|error| doing(errno_of(&error)))?;
                }
            }
            position = position.saturating_add(bytes);
        }
        Ok(done)
    }
}

fn image_read_failure(error: &std::io::Error) -> Problem {
    if error.kind() == ErrorKind::UnexpectedEof {
        Problem::new(
            FaultKind::Conflict,
            public_text!(
                "A disk image became shorter while it was read. Shut the VM down, then try again."
            ),
        )
    } else if Errno::from_io_error(error) == Some(Errno::IO) {
        Problem::new(
            FaultKind::Damaged,
            public_text!("The storage cannot read a disk image. Ask the operator to check the disk that holds it."),
        )
        .because(error)
    } else {
        io_error("reading a disk image")(errno_of(error))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Where data is: start and length.
    type Islands<'a> = &'a [(usize, usize)];

    fn wide(size: usize) -> u64 {
        u64::try_from(size).unwrap()
    }

    /// The definition of the checksum, said again in the plainest way.
    fn plain(bytes: &[u8]) -> String {
        let mut all = blake3::Hasher::new_derive_key(CONTEXT);
        all.update(&wide(bytes.len()).to_le_bytes());
        for block in bytes.chunks(1 << 20) {
            all.update(blake3::hash(block).as_bytes());
        }
        all.finalize().to_hex().to_string()
    }

    #[test]
    fn copies_are_equal_sparse_and_hashed_by_content() {
        let mib = 1 << 20;
        let rows: [(&str, usize, Islands<'_>); 9] = [
            ("empty", 0, &[]),
            ("one byte", 1, &[(0, 1)]),
            ("all hole", 5 * mib + 17, &[]),
            ("data in the middle", 9 * mib, &[(4 * mib + 5, 70_000)]),
            ("data at the end", 3 * mib + 100, &[(3 * mib + 99, 1)]),
            ("dense", 2 * mib + 1, &[(0, 2 * mib + 1)]),
            (
                "a piece and a byte",
                (256 << 10) + 1,
                &[(0, (256 << 10) + 1)],
            ),
            ("over several write-backs", 40 * mib, &[(mib + 3, 36 * mib)]),
            ("two islands", 8 * mib, &[(0, 10), (7 * mib, mib)]),
        ];
        for (name, size, islands) in rows {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let mut bytes = vec![0; size];
            from.set_len(wide(size)).unwrap();
            for (start, length) in islands {
                bytes[*start..start + length].fill(7);
                from.write_all_at(&bytes[*start..start + length], wide(*start))
                    .unwrap();
            }
            let job = Job::new(String::new(), true);
            let digest = copy_image(&from, &to, wide(size), &job, &Failpoints::default()).unwrap();
            let mut copied = vec![1; size];
            to.read_exact_at(&mut copied, 0).unwrap();
            assert!(copied == bytes, "{name}: same contents");
            assert_eq!(to.metadata().unwrap().len(), wide(size), "{name}: length");
            assert_eq!(digest.checksum, plain(&bytes), "{name}: checksum");
            let room = to.metadata().unwrap().blocks() * 512;
            assert!(
                room <= digest.data + (128 << 10),
                "{name}: {room} bytes allocated for {} of data",
                digest.data
            );
        }
    }

    #[test]
    fn checksums_are_those_that_earlier_versions_wrote() {
        let bytes: Vec<u8> = (0..2_500_000_u32)
            .map(|index| u8::try_from(index % 251).unwrap())
            .collect();
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&bytes, 1 << 20).unwrap();
        let job = Job::new(String::new(), true);
        let size = (1 << 20) + 2_500_000;
        let digest = copy_image(&from, &to, size, &job, &Failpoints::default()).unwrap();
        let written = "89ab0cc7900fe28753b586d94dab160f30e1b5078df872f4999b03c9c9b949ee";
        assert_eq!(digest.checksum, written, "a MiB of hole, then a pattern");
    }

    #[test]
    fn zeros_written_out_hash_like_holes() {
        let (dense, hole) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        dense.write_all_at(&vec![0; 3 << 20], 0).unwrap();
        hole.set_len(3 << 20).unwrap();
        let digests = [dense, hole].map(|from| {
            let to = tempfile::tempfile().unwrap();
            copy_image(
                &from,
                &to,
                3 << 20,
                &Job::new(String::new(), true),
                &Failpoints::default(),
            )
            .unwrap()
        });
        assert_eq!(digests[0], digests[1], "the contents are the same");
        assert_eq!(digests[0].data, 0, "and hold nothing but zeros");
    }
}
