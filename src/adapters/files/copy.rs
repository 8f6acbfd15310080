//! Copies one disk image: sparse stays sparse, reflinks where the file system can, checksum in the same pass.
//!
//! The checksum `blake3-1mib-v1` depends on the contents alone, not on where the holes are: the image is cut
//! into blocks of 1 MiB (the last may be shorter), each is hashed with BLAKE3, and the checksum is BLAKE3 in
//! key-derivation mode over the length (8 bytes, little endian) and the hashes in order. The hash of a whole
//! block of zeros is a constant, so a hole costs 32 bytes of hashing per MiB.

use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::channel;
use std::sync::mpsc::sync_channel;

use rustix::fs::Advice;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::adapters::files::error::Problem;
use crate::adapters::files::error::errno;
use crate::adapters::files::error::io;
use crate::adapters::files::faults::Faults;
use crate::adapters::files::jobs::Job;
use crate::model::FaultKind;

/// The name of the checksum in manifests.
pub(super) const ALGORITHM: &str = "blake3-1mib-v1";
const CONTEXT: &str = "snapgate files adapter, checksum of a disk image, blake3-1mib-v1";
const BLOCK: usize = 1 << 20;
const BLOCK_BYTES: u64 = 1 << 20;
/// Zeros are left out in pieces of this size.
const PIECE: usize = 64 << 10;
const ZEROS: &[u8; PIECE] = &[0; PIECE];
/// Blocks on their way to the hash: bounds the memory of one copy to some 10 MiB.
const BLOCKS_AHEAD: usize = 8;
/// The kernel is asked to start writing back after so many bytes, so that the final sync has little left.
const WRITE_BACK: u64 = 8 << 20;

/// What a copy was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    /// 64 hexadecimal digits.
    pub(super) checksum: String,
    /// Bytes that are not zero, in pieces of 64 KiB.
    pub(super) data: u64,
}

enum Part {
    Data(Vec<u8>),
    ZeroBlocks(u64),
}

/// Copies `size` bytes from one file into an empty one. The caller syncs.
pub(super) fn copy(
    from: &File,
    to: &File,
    size: u64,
    job: &Job,
    faults: &Faults,
) -> Result<Digest, Problem> {
    faults.step("clone").map_err(io("cloning a disk image"))?;
    let cloned = size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok();
    if !cloned {
        rustix::fs::ftruncate(to, size).map_err(io("sizing a disk image"))?;
    }
    // A clone is what will be used later, so it is what gets hashed.
    let source = if cloned { to } else { from };
    let target = (!cloned).then_some(to);
    let (parts, hashed) = sync_channel(BLOCKS_AHEAD);
    let (emptied, empty) = channel();
    std::thread::scope(|scope| {
        let hasher = std::thread::Builder::new()
            .name("image-hash".to_owned())
            .spawn_scoped(scope, move || hash(size, &hashed, &emptied))
            .map_err(|error| io("starting a thread")(errno(&error)))?;
        let pump = Pump {
            source,
            target,
            size,
            job,
            faults,
        };
        let data = pump.run(&parts, &empty);
        drop(parts);
        let checksum = hasher.join().map_err(|_panic| {
            Problem::new(FaultKind::BackendFailed, "the checksum could not be made")
        })?;
        Ok(Digest {
            checksum,
            data: data?,
        })
    })
}

fn hash(size: u64, parts: &Receiver<Part>, emptied: &Sender<Vec<u8>>) -> String {
    let zero = blake3::hash(&vec![0; BLOCK]);
    let mut all = blake3::Hasher::new_derive_key(CONTEXT);
    all.update(&size.to_le_bytes());
    for part in parts {
        match part {
            Part::Data(block) => {
                all.update(blake3::hash(&block).as_bytes());
                // Nobody takes it back any more once the reader is done.
                drop(emptied.send(block));
            }
            Part::ZeroBlocks(count) => {
                for _ in 0..count {
                    all.update(zero.as_bytes());
                }
            }
        }
    }
    all.finalize().to_hex().to_string()
}

struct Pump<'a> {
    source: &'a File,
    target: Option<&'a File>,
    size: u64,
    job: &'a Job,
    faults: &'a Faults,
}

impl Pump<'_> {
    fn run(&self, parts: &SyncSender<Part>, empty: &Receiver<Vec<u8>>) -> Result<u64, Problem> {
        let (mut at, mut data, mut extent_end, mut unwritten) = (0_u64, 0_u64, 0_u64, 0_u64);
        let gone = |_| Problem::new(FaultKind::BackendFailed, "the checksum could not be made");
        while at < self.size {
            self.job.go_on()?;
            if at >= extent_end {
                let (start, end) = self.extent(at)?;
                let holes = start.saturating_sub(at) / BLOCK_BYTES;
                if holes > 0 {
                    let skipped = holes.saturating_mul(BLOCK_BYTES);
                    parts.send(Part::ZeroBlocks(holes)).map_err(gone)?;
                    self.job.advance(skipped);
                    at = at.saturating_add(skipped);
                    continue;
                }
                extent_end = end;
            }
            let length = BLOCK_BYTES.min(self.size.saturating_sub(at));
            let mut block = empty.try_recv().unwrap_or_default();
            block.resize(usize::try_from(length).unwrap_or(BLOCK), 0);
            self.source
                .read_exact_at(&mut block, at)
                .map_err(|error| unreadable(&error))?;
            data = data.saturating_add(self.write(&block, at)?);
            parts.send(Part::Data(block)).map_err(gone)?;
            at = at.saturating_add(length);
            unwritten = unwritten.saturating_add(length);
            if unwritten >= WRITE_BACK || at >= self.size {
                self.write_back(at.saturating_sub(unwritten), unwritten);
                unwritten = 0;
            }
            self.job.advance(length);
        }
        Ok(data)
    }

    /// The next stretch of data from here on; both ends are the end of the image when there is none.
    fn extent(&self, at: u64) -> Result<(u64, u64), Problem> {
        let start = match rustix::fs::seek(self.source, SeekFrom::Data(at)) {
            Ok(start) => start.min(self.size),
            Err(Errno::NXIO) => return Ok((self.size, self.size)),
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, self.size)),
            Err(errno) => return Err(io("looking for data in a disk image")(errno)),
        };
        match rustix::fs::seek(self.source, SeekFrom::Hole(start)) {
            Ok(end) => Ok((start, end.min(self.size))),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok((start, self.size)),
            Err(errno) => Err(io("looking for holes in a disk image")(errno)),
        }
    }

    /// Writes what is not zero in as few calls as possible, and tells how much that was.
    fn write(&self, block: &[u8], at: u64) -> Result<u64, Problem> {
        let doing = io("writing a disk image");
        self.faults.step("write image").map_err(&doing)?;
        let (mut done, mut position) = (0_u64, at);
        let mut pieces = block.chunks(PIECE).peekable();
        let is_zero = |piece: &[u8]| ZEROS.get(..piece.len()) == Some(piece);
        let mut rest = block;
        while let Some(first) = pieces.next() {
            let zero = is_zero(first);
            let mut length = first.len();
            while let Some(more) = pieces.next_if(|piece| is_zero(piece) == zero) {
                length = length.saturating_add(more.len());
            }
            let (run, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = after;
            let bytes = u64::try_from(run.len()).unwrap_or(u64::MAX);
            if !zero {
                done = done.saturating_add(bytes);
                if let Some(target) = self.target {
                    let written = target.write_all_at(run, position);
                    written.map_err(|error| doing(errno(&error)))?;
                }
            }
            position = position.saturating_add(bytes);
        }
        Ok(done)
    }

    fn write_back(&self, from: u64, length: u64) {
        if let Some(target) = self.target
            && let Some(length) = NonZeroU64::new(length)
            // It is a hint: without it the copy is right, only later on disk.
            && let Err(errno) = rustix::fs::fadvise(target, from, Some(length), Advice::DontNeed)
        {
            tracing::trace!(%errno, "no early write-back");
        }
    }
}

fn unreadable(error: &std::io::Error) -> Problem {
    if error.kind() == ErrorKind::UnexpectedEof {
        Problem::new(
            FaultKind::Conflict,
            "a disk image became shorter while it was read",
        )
    } else if Errno::from_io_error(error) == Some(Errno::IO) {
        Problem::new(FaultKind::Damaged, "a disk image cannot be read").because(error)
    } else {
        io("reading a disk image")(errno(error))
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
        let rows: [(&str, usize, Islands<'_>); 7] = [
            ("empty", 0, &[]),
            ("one byte", 1, &[(0, 1)]),
            ("all hole", 5 * mib + 17, &[]),
            ("data in the middle", 9 * mib, &[(4 * mib + 5, 70_000)]),
            ("data at the end", 3 * mib + 100, &[(3 * mib + 99, 1)]),
            ("dense", 2 * mib + 1, &[(0, 2 * mib + 1)]),
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
            let digest = copy(&from, &to, wide(size), &job, &Faults::default()).unwrap();
            let mut copied = vec![1; size];
            to.read_exact_at(&mut copied, 0).unwrap();
            assert!(copied == bytes, "{name}: same contents");
            assert_eq!(to.metadata().unwrap().len(), wide(size), "{name}: length");
            assert_eq!(digest.checksum, plain(&bytes), "{name}: checksum");
            let room = to.metadata().unwrap().blocks() * 512;
            assert!(
                room <= digest.data + (128 << 10),
                "{name}: {room} bytes taken for {} of data",
                digest.data
            );
        }
    }

    #[test]
    fn zeros_written_out_hash_like_holes() {
        let (dense, hole) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        dense.write_all_at(&vec![0; 3 << 20], 0).unwrap();
        hole.set_len(3 << 20).unwrap();
        let digests = [dense, hole].map(|from| {
            let to = tempfile::tempfile().unwrap();
            copy(
                &from,
                &to,
                3 << 20,
                &Job::new(String::new(), true),
                &Faults::default(),
            )
            .unwrap()
        });
        assert_eq!(digests[0], digests[1], "the contents are the same");
        assert_eq!(digests[0].data, 0, "and hold nothing but zeros");
    }
}
