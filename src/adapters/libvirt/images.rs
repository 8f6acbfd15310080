//! What can be seen of a disk image in the file system: that it is there, what it holds, and who uses it.
//!
//! Nothing is ever written here. Where libvirtd runs on another host, or the gateway may not read the image, nothing is
//! known, and libvirt and QEMU have to say. Source of the format: QEMU's docs/interop/qcow2.txt.

use std::io;
use std::io::ErrorKind;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::fcntl;
use nix::libc;
use rustix::fs::StatVfsMountFlags;
use rustix::fs::StatxAttributes;
use rustix::fs::StatxFlags;
use tokio::fs::File;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncSeekExt;
use tokio::io::BufReader;

/// The first bytes of a qcow2 image.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// The longest table QEMU makes, in bytes.
const TABLE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The most snapshots QEMU keeps in an image.
const SNAPSHOTS_MAX: u32 = 65_536;
/// The longest name of a backing file that QEMU reads.
pub(super) const BACKING_BYTES_MAX: u32 = 1023;
/// Of an entry of a table, the bits that say where the data are.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The bit for longer entries among the features that a reader must know.
const EXTENDED: u64 = 1 << 4;
/// The bit by which QEMU marks an image that it found damaged, and does not open for writing any more.
const CORRUPT: u64 = 1 << 1;
/// Bytes that must be free for the tables that change when a snapshot is restored or deleted.
const ROOM_BYTES: u64 = 4 * 1024 * 1024;
/// QEMU's lock bytes: 100+n for a permission that is used, 200+n for one that is not shared. 1 is to write,
/// 3 to resize. A writer conflicts with any of these.
const WRITE_LOCKS: [i64; 4] = [101, 103, 201, 203];

/// A snapshot within an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InternalSnapshot {
    /// QEMU's number for it.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Whether the memory of the VM is in it.
    pub(crate) has_memory: bool,
    table: (u64, u32),
    size: u64,
}

/// What identifies the content of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct FileMark {
    device: u64,
    inode: u64,
    /// Length, and seconds and nanoseconds of the last change of content and of metadata.
    times: Option<[i64; 5]>,
}

impl FileMark {
    /// Whether both are the same file, whatever it holds.
    pub(crate) const fn is_same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }

    /// The same file, whatever it holds.
    pub(crate) const fn without_times(self) -> Self {
        Self {
            device: self.device,
            inode: self.inode,
            times: None,
        }
    }
}

/// An image that was read.
#[derive(Debug)]
pub(crate) struct DiskImage {
    /// Its snapshots; none where it is no qcow2 image.
    pub(crate) snapshots: Vec<InternalSnapshot>,
    /// The image below it, as its header names it.
    pub(crate) backing: Option<String>,
    /// Why no program could write to it; a fragment such as "is immutable".
    pub(crate) unwritable: Option<&'static str>,
    /// Whether the file system has room for what a change needs.
    pub(crate) has_room: bool,
    /// Whether another program holds it so that QEMU could not open it for writing; `None` where locks cannot be seen.
    pub(crate) is_locked: Option<bool>,
    table: (u64, u32),
    size: u64,
    bytes_per_entry: u64,
    file: File,
}

impl DiskImage {
    /// Bytes that the guest sees.
    pub(crate) const fn guest_bytes(&self) -> u64 {
        self.size
    }
}

/// What can be seen of an image.
#[derive(Debug)]
pub(crate) enum ImageInspection {
    /// Nothing is at this path.
    Missing,
    /// It is there, or may be, and cannot be looked at.
    Unknown(io::Error),
    /// It was read.
    Read(Box<DiskImage>),
}

/// Looks at the image.
pub(crate) async fn inspect_image(path: &Path) -> ImageInspection {
    match read(path).await {
        Ok(image) => ImageInspection::Read(Box::new(image)),
        Err(error) if error.kind() == ErrorKind::NotFound => ImageInspection::Missing,
        Err(error) => ImageInspection::Unknown(error),
    }
}

/// What marks the file at this path now; `None` when it cannot be seen.
pub(crate) async fn file_mark(path: &Path) -> Option<FileMark> {
    tokio::fs::metadata(path)
        .await
        .ok()
        .map(|meta| mark_from_metadata(&meta))
}

pub(super) fn mark_from_metadata(meta: &std::fs::Metadata) -> FileMark {
    FileMark {
        device: meta.dev(),
        inode: meta.ino(),
        times: Some([
            i64::try_from(meta.size()).unwrap_or(i64::MAX),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ]),
    }
}

/// Where the backing file is that the header of this image names; `None` when it is not a file.
pub(super) fn backing_path(image: &Path, name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    if name.starts_with("json:") {
        let json: serde_json::Value = serde_json::from_str(name.strip_prefix("json:")?).ok()?;
        let file = json.get("file").unwrap_or(&json);
        let named = json.get("file.filename").or_else(|| file.get("filename"))?;
        return Some(PathBuf::from(named.as_str()?));
    }
    if name.contains("://") {
        return None;
    }
    // A relative name is relative to the image that names it.
    Some(image.parent()?.join(name))
}

async fn read(path: &Path) -> io::Result<DiskImage> {
    // Not to wait for the other end of a pipe.
    let mut options = tokio::fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .await?;
    let meta = file.metadata().await?;
    if meta.is_dir() {
        return Err(io::Error::from(ErrorKind::IsADirectory));
    }
    let (unwritable, has_room) = storage(&file, &meta);
    let mut image = DiskImage {
        snapshots: Vec::new(),
        backing: None,
        unwritable,
        has_room,
        is_locked: is_locked(&file).ok(),
        table: (0, 0),
        size: 0,
        bytes_per_entry: 1,
        file,
    };
    image.read_header().await?;
    Ok(image)
}

/// Why the file cannot be written to, and whether there is room for more.
fn storage(file: &File, meta: &std::fs::Metadata) -> (Option<&'static str>, bool) {
    let attributes = rustix::fs::statx(
        file,
        "",
        rustix::fs::AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    );
    let has = |flag: StatxAttributes| {
        attributes
            .as_ref()
            .is_ok_and(|all| all.stx_attributes.contains(flag))
    };
    let volume = rustix::fs::fstatvfs(file);
    let is_read_only = volume
        .as_ref()
        .is_ok_and(|volume| volume.f_flag.contains(StatVfsMountFlags::RDONLY));
    let unwritable = if has(StatxAttributes::IMMUTABLE) {
        Some("is immutable")
    } else if has(StatxAttributes::APPEND) {
        Some("is append-only")
    } else if is_read_only && meta.is_file() {
        Some("is on a read-only file system")
    } else {
        None
    };
    let has_room = !meta.is_file()
        || volume.map_or(true, |volume| {
            volume.f_bfree.saturating_mul(volume.f_frsize) >= ROOM_BYTES
        });
    (unwritable, has_room)
}

fn is_locked(file: &File) -> Result<bool, Errno> {
    for start in WRITE_LOCKS {
        if holds(file, libc::F_WRLCK, start, 1)? {
            return Ok(true);
        }
    }
    // An exclusive lock on all of it: not QEMU's, but no place to write beside.
    holds(file, libc::F_RDLCK, 0, 0)
}

fn holds(file: &File, kind: i32, start: i64, length: i64) -> Result<bool, Errno> {
    let short = |number: i32| i16::try_from(number).map_err(|_too_large| Errno::EINVAL);
    let mut lock = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn invalid_image(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

async fn text(input: &mut (impl AsyncRead + Unpin), bytes: u64) -> io::Result<String> {
    let mut all = Vec::new();
    let read = input.take(bytes).read_to_end(&mut all).await?;
    if u64::try_from(read).unwrap_or_default() != bytes {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

impl DiskImage {
    /// Whether the disk is, byte for byte, as its snapshot of this name; `None` when that cannot be seen.
    ///
    /// A snapshot shares all its data with the disk right after it was made or restored, and each later write goes
    /// elsewhere and changes the disk's table. So equal tables are equal disks.
    pub(crate) async fn is_identical_to(&mut self, name: &str) -> Option<bool> {
        let mut tagged = self.snapshots.iter().filter(|saved| saved.name == name);
        let (Some(saved), None) = (tagged.next(), tagged.next()) else {
            return None;
        };
        let (then, size) = (saved.table, saved.size);
        let now = self.entries(self.table, self.size).await.ok()?;
        let then = self.entries(then, size).await.ok()?;
        Some(now == then)
    }

    async fn read_header(&mut self) -> io::Result<()> {
        let mut head = [0; 112];
        let (mut filled, mut file) = (0_usize, BufReader::new(&mut self.file));
        while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).await? {
                0 => break,
                more => filled = filled.saturating_add(more),
            }
        }
        let mut fields: &[u8] = &head;
        if fields.read_u32().await? != MAGIC {
            // Another format has no snapshots that QEMU could restore.
            return Ok(());
        }
        let version = fields.read_u32().await?;
        let backing = (fields.read_u64().await?, fields.read_u32().await?);
        let cluster_bits = fields.read_u32().await?;
        self.size = fields.read_u64().await?;
        let _encryption = fields.read_u32().await?;
        let entries = fields.read_u32().await?;
        self.table = (fields.read_u64().await?, entries);
        let _refcounts = (fields.read_u64().await?, fields.read_u32().await?);
        let count = fields.read_u32().await?;
        let snapshots = fields.read_u64().await?;
        let features = if version >= 3 {
            fields.read_u64().await?
        } else {
            0
        };
        if !(9..=21).contains(&cluster_bits) || count > SNAPSHOTS_MAX {
            return Err(invalid_image("a qcow2 header is out of bounds"));
        }
        if features & CORRUPT != 0 {
            self.unwritable = Some("is marked as corrupt (qemu-img check -r all)");
        }
        // One table of the second level has a cluster of entries, each of which stands for one cluster.
        let entry_bits = if features & EXTENDED == 0 { 3 } else { 4 };
        let bits = cluster_bits.saturating_mul(2).saturating_sub(entry_bits);
        self.bytes_per_entry = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        if backing.0 != 0 && backing.1 <= BACKING_BYTES_MAX {
            self.file.seek(SeekFrom::Start(backing.0)).await?;
            self.backing = Some(text(&mut self.file, u64::from(backing.1)).await?);
        }
        self.file.seek(SeekFrom::Start(snapshots)).await?;
        let mut file = BufReader::new(&mut self.file);
        let mut padding = 0;
        for _ in 0..count {
            // What fills up the last entry may be missing at the end of the file.
            text(&mut file, padding).await?;
            let (found, length) = read_snapshot_entry(&mut file, self.size).await?;
            padding = length.next_multiple_of(8).saturating_sub(length);
            self.snapshots.push(found);
        }
        Ok(())
    }

    /// Where the data of a disk of this size are, without the zeros at the end.
    async fn entries(&mut self, (at, count): (u64, u32), size: u64) -> io::Result<Vec<u64>> {
        let used = u64::from(count).min(size.div_ceil(self.bytes_per_entry));
        let length = used.saturating_mul(8);
        if length > TABLE_BYTES_MAX {
            return Err(invalid_image("a table of a qcow2 image is too long"));
        }
        self.file.seek(SeekFrom::Start(at)).await?;
        let mut bytes = Vec::new();
        (&mut self.file)
            .take(length)
            .read_to_end(&mut bytes)
            .await?;
        let entries = bytes.as_chunks::<8>().0.iter();
        let mut all: Vec<u64> = entries
            .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
            .collect();
        let end = all.iter().rposition(|entry| *entry != 0);
        all.truncate(end.map_or(0, |last| last.saturating_add(1)));
        Ok(all)
    }
}

/// The next entry of the table of snapshots, and its length.
async fn read_snapshot_entry(
    file: &mut (impl AsyncRead + Unpin),
    disk_size: u64,
) -> io::Result<(InternalSnapshot, u64)> {
    let at = file.read_u64().await?;
    let entries = file.read_u32().await?;
    let (id, name) = (file.read_u16().await?, file.read_u16().await?);
    let _date = (file.read_u32().await?, file.read_u32().await?);
    let _clock = file.read_u64().await?;
    let memory = file.read_u32().await?;
    let extra = u64::from(file.read_u32().await?);
    let (mut memory, mut size, mut rest) = (u64::from(memory), disk_size, extra);
    if extra >= 8 {
        memory = memory.max(file.read_u64().await?);
        rest = rest.saturating_sub(8);
    }
    if extra >= 16 {
        size = file.read_u64().await?;
        rest = rest.saturating_sub(8);
    }
    if rest > 1024 {
        return Err(invalid_image("an entry of a qcow2 image is too long"));
    }
    text(file, rest).await?;
    let found = InternalSnapshot {
        id: text(file, u64::from(id)).await?,
        name: text(file, u64::from(name)).await?,
        has_memory: memory > 0,
        table: (at, entries),
        size,
    };
    let length = 40_u64
        .saturating_add(extra)
        .saturating_add(u64::from(id))
        .saturating_add(u64::from(name));
    Ok((found, length))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::adapters::libvirt::backing_files;

    #[test]
    fn backing_files_are_found_as_qemu_finds_them() {
        let rows = [
            ("base.qcow2", Some("/vm/base.qcow2")),
            ("/other/base.qcow2", Some("/other/base.qcow2")),
            ("file:/other/base.qcow2", Some("/other/base.qcow2")),
            (
                r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}"#,
                Some("/a"),
            ),
            (
                r#"json:{"driver":"qcow2","file.filename":"/b"}"#,
                Some("/b"),
            ),
            ("nbd://host/export", None),
        ];
        for (name, expected) in rows {
            let found = backing_path(Path::new("/vm/top.qcow2"), name);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{name}");
        }
    }

    #[tokio::test]
    async fn an_image_that_is_missing_or_of_another_format_is_seen_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let missing = inspect_image(&folder.path().join("none")).await;
        assert!(matches!(missing, ImageInspection::Missing), "{missing:?}");
        let raw = folder.path().join("raw");
        std::fs::write(&raw, "short").unwrap();
        let ImageInspection::Read(image) = inspect_image(&raw).await else {
            panic!("a raw image can be read");
        };
        assert!(image.snapshots.is_empty(), "no snapshots");
        let cut = folder.path().join("cut");
        std::fs::write(&cut, [MAGIC.to_be_bytes(), [0; 4]].concat()).unwrap();
        assert!(
            matches!(inspect_image(&cut).await, ImageInspection::Unknown(_)),
            "cut short"
        );
    }

    #[tokio::test]
    #[ignore = "needs qemu-img and qemu-io"]
    async fn snapshots_of_a_real_image_are_read_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let done = command.args(arguments).current_dir(folder.path()).output();
            done.ok().filter(|output| output.status.success()).is_some()
        };
        let base = ["create", "-q", "-f", "qcow2", "base", "64M"];
        assert!(run("qemu-img", &base), "an image below");
        let top = [
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top",
        ];
        assert!(run("qemu-img", &top), "a top image");
        assert!(run("qemu-img", &["snapshot", "-c", "one", "top"]), "one");
        assert!(run("qemu-img", &["snapshot", "-c", "2", "top"]), "two");
        let ImageInspection::Read(mut image) = inspect_image(&at("top")).await else {
            panic!("it can be read");
        };
        let seen: Vec<_> = image
            .snapshots
            .iter()
            .map(|saved| (saved.id.as_str(), saved.name.as_str(), saved.has_memory))
            .collect();
        assert_eq!(seen, [("1", "one", false), ("2", "2", false)], "both");
        assert_eq!(
            backing_files::chain(&at("top")).await.unwrap(),
            [at("base")],
            "the image below"
        );
        assert_eq!(
            image.is_identical_to("one").await,
            Some(true),
            "not written since"
        );
        assert_eq!(
            image.is_identical_to("none").await,
            None,
            "no such snapshot"
        );
        assert_eq!(image.is_locked, Some(false), "not in use");
        assert!(
            run("qemu-io", &["-f", "qcow2", "-c", "write 0 64k", "top"]),
            "write"
        );
        let ImageInspection::Read(mut image) = inspect_image(&at("top")).await else {
            panic!("it can be read");
        };
        assert_eq!(
            image.is_identical_to("one").await,
            Some(false),
            "written since"
        );
        assert!(
            run("qemu-img", &["snapshot", "-a", "one", "top"]),
            "restore"
        );
        let ImageInspection::Read(mut image) = inspect_image(&at("top")).await else {
            panic!("it can be read");
        };
        assert_eq!(image.is_identical_to("one").await, Some(true), "restored");
    }
}
