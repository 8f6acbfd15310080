//! Reads from a qcow2 image what `qemu-img` does not report: whether the disk is just as one of its snapshots.
//!
//! An image and each of its snapshots have a table of their own that says where their data are. A snapshot shares all
//! its data with the disk when it is made or applied, and each later write goes elsewhere and changes the disk's
//! table. So equal tables are equal disks. The table goes on behind the end of the disk, where memory is kept; a guest
//! cannot write there. Source: QEMU's docs/interop/qcow2.txt. Nothing is ever written here.

use std::io::ErrorKind;
use std::io::SeekFrom;
use std::path::Path;

use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncSeekExt;

use crate::adapters::qemu::error::QemuError;

const MAGIC: u32 = 0x5146_49fb;
/// The longest table QEMU makes, in bytes.
const TABLE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The most snapshots QEMU keeps in an image.
const SNAPSHOTS_MAX: u32 = 65_536;
/// The most bytes QEMU allows beside the fixed part of one snapshot.
const EXTRA_BYTES_MAX: u64 = 2 * 1024 + 2 * 65_536;
/// The longest name of a backing file.
const BACKING_BYTES_MAX: usize = 1023;
/// Of an entry of the table, the bits that say where the data are.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The bit for longer entries among the features that a reader must know.
const EXTENDED_L2: u64 = 1 << 4;

/// How the disk is, seen from one of its snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotRelation {
    /// Just as the snapshot.
    Identical,
    /// The snapshot was applied, or just made, and the disk was written to since.
    WrittenSince,
    /// There is no telling whether it comes from this snapshot.
    Unclear,
}

/// Where the data of a disk or snapshot are, without the zeros at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct L1Table {
    disk: Vec<u64>,
    /// What lies behind the disk's end.
    memory: Vec<u64>,
}

#[derive(Debug)]
struct Qcow2Header {
    size: u64,
    /// Bytes that one entry of the table stands for.
    bytes_per_entry: u64,
    table: (u64, u32),
    snapshots: (u64, u32),
}

#[derive(Debug)]
struct SavedSnapshot {
    tag: Vec<u8>,
    table: L1Table,
}

/// How the disk in the image is, seen from the snapshot of that tag.
pub(super) async fn relation_to_snapshot(
    image: &Path,
    tag: &str,
) -> Result<SnapshotRelation, QemuError> {
    let found = async {
        let mut file = File::open(image).await?;
        let header = header(&mut file).await?;
        let now = table(&mut file, header.table, header.size, &header).await?;
        Ok((now, saved(&mut file, &header).await?))
    };
    let (now, saved) = found
        .await
        .map_err(|error: std::io::Error| image_open_error(&error))?;
    let mut tagged = saved
        .iter()
        .filter(|snapshot| snapshot.tag == tag.as_bytes());
    let (Some(snapshot), None) = (tagged.next(), tagged.next()) else {
        return Ok(SnapshotRelation::Unclear);
    };
    let akin = saved
        .iter()
        .filter(|snapshot| snapshot.table.memory == now.memory);
    Ok(if snapshot.table == now {
        SnapshotRelation::Identical
    } else if snapshot.table.memory == now.memory && akin.count() == 1 {
        SnapshotRelation::WrittenSince
    } else {
        SnapshotRelation::Unclear
    })
}

fn invalid_image(what: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, what)
}

/// Whether the file begins as a qcow2 image does. No other format is ever guessed at.
pub(super) async fn is_qcow2(image: &Path) -> Result<bool, QemuError> {
    let read = async {
        let mut file = File::open(image).await?;
        file.read_u32().await
    };
    match read.await {
        Ok(magic) => Ok(magic == MAGIC),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(image_open_error(&error)),
    }
}

/// The name of the image's backing file as the image gives it; `None` when it has none or is not a qcow2 image.
pub(super) async fn backing(image: &Path) -> std::io::Result<Option<String>> {
    let mut file = File::open(image).await?;
    let Ok(magic) = file.read_u32().await else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Ok(None);
    }
    let _version = file.read_u32().await?;
    let at = file.read_u64().await?;
    let length = usize::try_from(file.read_u32().await?).unwrap_or(usize::MAX);
    if at == 0 || length == 0 || length > BACKING_BYTES_MAX {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at)).await?;
    let mut name = vec![0; length];
    file.read_exact(&mut name).await?;
    Ok(String::from_utf8(name).ok())
}

/// Why an image cannot be read.
pub(super) fn image_open_error(error: &std::io::Error) -> QemuError {
    let is = |kind| error.kind() == kind;
    if is(ErrorKind::NotFound) || is(ErrorKind::NotADirectory) {
        QemuError::ImageMissing(error.to_string())
    } else if is(ErrorKind::PermissionDenied) {
        QemuError::AccessDenied(error.to_string())
    } else {
        QemuError::UnexpectedAnswer(format!("qcow2: {error}"))
    }
}

async fn header(file: &mut File) -> std::io::Result<Qcow2Header> {
    if file.read_u32().await? != MAGIC {
        return Err(invalid_image("no qcow2 image"));
    }
    let version = file.read_u32().await?;
    file.seek(SeekFrom::Start(20)).await?;
    let cluster_bits = file.read_u32().await?;
    let size = file.read_u64().await?;
    let _encryption = file.read_u32().await?;
    let entries = file.read_u32().await?;
    let at = file.read_u64().await?;
    file.seek(SeekFrom::Start(60)).await?;
    let count = file.read_u32().await?;
    let snapshots_at = file.read_u64().await?;
    let features = match version {
        2 => 0,
        3 => file.read_u64().await?,
        _ => return Err(invalid_image("unknown version")),
    };
    if !(9..=21).contains(&cluster_bits) || count > SNAPSHOTS_MAX {
        return Err(invalid_image("out of bounds"));
    }
    // A cluster of entries of 8 or 16 bytes, each of which stands for one cluster.
    let entry_bits = if features & EXTENDED_L2 == 0 { 3 } else { 4 };
    let bits = cluster_bits.saturating_mul(2).saturating_sub(entry_bits);
    Ok(Qcow2Header {
        size,
        bytes_per_entry: 1_u64
            .checked_shl(bits)
            .ok_or_else(|| invalid_image("out of bounds"))?,
        table: (at, entries),
        snapshots: (snapshots_at, count),
    })
}

async fn table(
    file: &mut File,
    (at, entries): (u64, u32),
    size: u64,
    header: &Qcow2Header,
) -> std::io::Result<L1Table> {
    let length = u64::from(entries).saturating_mul(8);
    if length > TABLE_BYTES_MAX {
        return Err(invalid_image("a table is too long"));
    }
    file.seek(SeekFrom::Start(at)).await?;
    let mut bytes = Vec::new();
    let read = (&mut *file).take(length).read_to_end(&mut bytes).await?;
    if u64::try_from(read).unwrap_or_default() != length {
        return Err(invalid_image("a table is cut short"));
    }
    let entries = bytes.as_chunks::<8>().0.iter();
    let mut disk: Vec<u64> = entries
        .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
        .collect();
    let end = usize::try_from(size.div_ceil(header.bytes_per_entry)).unwrap_or(usize::MAX);
    let mut memory = disk.split_off(end.min(disk.len()));
    for part in [&mut disk, &mut memory] {
        let used = part.iter().rposition(|entry| *entry != 0);
        part.truncate(used.map_or(0, |last| last.saturating_add(1)));
    }
    Ok(L1Table { disk, memory })
}

async fn saved(file: &mut File, header: &Qcow2Header) -> std::io::Result<Vec<SavedSnapshot>> {
    let (mut at, count) = header.snapshots;
    let mut found = Vec::new();
    for _ in 0..count {
        file.seek(SeekFrom::Start(at)).await?;
        let table_at = file.read_u64().await?;
        let entries = file.read_u32().await?;
        let id = u64::from(file.read_u16().await?);
        let name = file.read_u16().await?;
        file.seek(SeekFrom::Current(20)).await?;
        let extra = u64::from(file.read_u32().await?);
        let rest = id.saturating_add(extra).saturating_add(u64::from(name));
        if rest > EXTRA_BYTES_MAX {
            return Err(invalid_image("a snapshot is too long"));
        }
        // The size of the disk then; images of version 2 have but one.
        let mut size = header.size;
        let mut skip = extra;
        if extra >= 16 {
            file.seek(SeekFrom::Current(8)).await?;
            size = file.read_u64().await?;
            skip = extra.saturating_sub(16);
        }
        let skip = skip.saturating_add(id);
        file.seek(SeekFrom::Current(i64::try_from(skip).unwrap_or_default()))
            .await?;
        let mut tag = vec![0; usize::from(name)];
        file.read_exact(&mut tag).await?;
        let table = table(file, (table_at, entries), size, header).await?;
        found.push(SavedSnapshot { tag, table });
        at = at.saturating_add(40_u64.saturating_add(rest).next_multiple_of(8));
    }
    Ok(found)
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "what a test counts is small"
)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * 1024 * 1024;

    /// An image with clusters of 64 KiB: the disk's table, and the tag and table of each snapshot. Its second entry
    /// lies behind the disk's end.
    fn image(now: &[u64], snapshots: &[(&str, &[u64])]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 0x10000];
        let mut put = |at: usize, value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        let table = |entries: &[u64]| -> Vec<u8> {
            entries
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect()
        };
        put(0, &MAGIC.to_be_bytes());
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &SIZE.to_be_bytes());
        put(36, &u32::try_from(now.len()).unwrap().to_be_bytes());
        put(40, &0x1000_u64.to_be_bytes());
        put(60, &u32::try_from(snapshots.len()).unwrap().to_be_bytes());
        put(64, &0x2000_u64.to_be_bytes());
        put(0x1000, &table(now));
        let mut at = 0x2000;
        for (number, (tag, entries)) in snapshots.iter().enumerate() {
            let table_at = 0x4000 + number * 0x100;
            put(table_at, &table(entries));
            put(at, &u64::try_from(table_at).unwrap().to_be_bytes());
            put(at + 8, &u32::try_from(entries.len()).unwrap().to_be_bytes());
            put(at + 12, &1_u16.to_be_bytes());
            put(at + 14, &u16::try_from(tag.len()).unwrap().to_be_bytes());
            put(at + 36, &16_u32.to_be_bytes());
            put(at + 48, &SIZE.to_be_bytes());
            put(at + 56, b"1");
            put(at + 57, tag.as_bytes());
            at += (57 + tag.len()).next_multiple_of(8);
        }
        bytes
    }

    async fn relation_of(bytes: &[u8], tag: &str) -> Result<SnapshotRelation, QemuError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        relation_to_snapshot(&path, tag).await
    }

    #[tokio::test]
    async fn a_disk_is_known_by_its_tables() {
        const COPIED: u64 = 1 << 63;
        type Snapshots<'a> = &'a [(&'a str, &'a [u64])];
        let rows: [(&str, &[u64], Snapshots<'_>, SnapshotRelation); 8] = [
            (
                "same",
                &[0x5_0000, 0x6_0000],
                &[("t", &[0x5_0000, 0x6_0000])],
                SnapshotRelation::Identical,
            ),
            (
                "flags are no matter, nor zeros at the end",
                &[0x5_0000 | COPIED, 0x6_0000, 0],
                &[("other", &[0]), ("t", &[0x5_0000, 0x6_0000 | COPIED])],
                SnapshotRelation::Identical,
            ),
            (
                "written to since",
                &[0x7_0000, 0x6_0000],
                &[
                    ("other", &[0x5_0000, 0x9_0000]),
                    ("t", &[0x5_0000, 0x6_0000]),
                ],
                SnapshotRelation::WrittenSince,
            ),
            (
                "written to since, of one of two alike",
                &[0x7_0000, 0x6_0000],
                &[
                    ("other", &[0x8_0000, 0x6_0000]),
                    ("t", &[0x5_0000, 0x6_0000]),
                ],
                SnapshotRelation::Unclear,
            ),
            (
                "another mark",
                &[0x5_0000, 0x7_0000],
                &[("t", &[0x5_0000, 0x6_0000])],
                SnapshotRelation::Unclear,
            ),
            (
                "no mark at all",
                &[0x7_0000],
                &[("t", &[0x5_0000])],
                SnapshotRelation::WrittenSince,
            ),
            (
                "not there",
                &[0x5_0000],
                &[("other", &[0x5_0000])],
                SnapshotRelation::Unclear,
            ),
            (
                "twice",
                &[0x5_0000],
                &[("t", &[0x5_0000]), ("t", &[0x5_0000])],
                SnapshotRelation::Unclear,
            ),
        ];
        for (name, now, snapshots, expected) in rows {
            let found = relation_of(&image(now, snapshots), "t").await;
            assert_eq!(found, Ok(expected), "{name}");
        }
    }

    #[tokio::test]
    async fn damaged_images_are_errors() {
        let good = image(&[0x5_0000], &[("t", &[0x5_0000])]);
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        let most = u32::MAX.to_be_bytes();
        let rows = [
            ("empty", Vec::new()),
            ("cut short", good[..0x1000].to_vec()),
            ("another format", with(0, b"RAW!")),
            ("another version", with(4, &9_u32.to_be_bytes())),
            ("clusters too large", with(20, &60_u32.to_be_bytes())),
            ("a table too long", with(36, &most)),
            ("too many snapshots", with(60, &most)),
            ("a snapshot too long", with(0x2000 + 36, &most)),
            ("a snapshot's table too long", with(0x2000 + 8, &most)),
        ];
        for (name, bytes) in rows {
            let found = relation_of(&bytes, "t").await;
            assert!(
                matches!(found, Err(QemuError::UnexpectedAnswer(_))),
                "{name}: {found:?}"
            );
        }
    }
}
