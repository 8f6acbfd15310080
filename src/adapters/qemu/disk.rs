//! The disks of a VM and the snapshots on them, as QEMU and `qemu-img` report them.

use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::adapters::qemu::own_names::OWN_SNAPSHOT_PREFIX;
use crate::model::Vm;

/// One snapshot of one disk, in the words of QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Snapshot {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) vm_state_size: u64,
    pub(super) date_sec: u64,
    #[serde(default)]
    pub(super) date_nsec: u64,
}

impl Snapshot {
    /// What distinguishes it from a later one of the same tag.
    pub(super) fn identity_part(&self) -> String {
        format!("{}@{}.{}", self.id, self.date_sec, self.date_nsec)
    }
}

/// Why a disk can be neither backed up nor restored just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskObstacle {
    /// QEMU has no block node of that name.
    NoSuchNode,
    /// No device of the VM writes to it: an overlay lies above it, or it was detached.
    NotWritten,
    /// It is attached read-only.
    ReadOnly,
    /// What the VM writes goes to a temporary overlay and is lost when QEMU ends.
    TemporaryOverlay,
}

/// One disk and what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its node name; the number of its image when the VM is stopped.
    pub(super) node: String,
    /// How messages call it: by its node name, or by the file name of its image when the VM is stopped.
    pub(super) label: String,
    /// Its image, where QEMU names it by an absolute path.
    pub(super) file: Option<PathBuf>,
    pub(super) obstacle: Option<DiskObstacle>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) has_bitmaps: bool,
    /// Whether it is of a format that holds snapshots.
    pub(super) can_snapshot: bool,
    /// Bytes that the guest sees, when that is known.
    pub(super) guest_bytes: Option<u64>,
}

impl Disk {
    pub(super) fn snapshots_tagged(&self, tag: &str) -> impl Iterator<Item = &Snapshot> {
        self.snapshots
            .iter()
            .filter(move |snapshot| snapshot.name == tag)
    }

    /// The snapshot whose number is this text, unless it is one of our own, which go before QEMU is asked.
    pub(super) fn snapshot_numbered(&self, number: &str) -> Option<&Snapshot> {
        let mut others = self
            .snapshots
            .iter()
            .filter(|snapshot| !snapshot.name.starts_with(OWN_SNAPSHOT_PREFIX));
        others.find(|other| other.id == number)
    }

    /// Whether it has a snapshot of that tag.
    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.snapshots_tagged(tag).next().is_some()
    }

    /// The tags of our own snapshots on it.
    pub(super) fn own_tags(&self) -> impl Iterator<Item = &str> {
        let tags = self.snapshots.iter().map(|snapshot| snapshot.name.as_str());
        tags.filter(|tag| tag.starts_with(OWN_SNAPSHOT_PREFIX))
    }

    /// Which snapshot of that tag it has.
    pub(super) fn identity_part(&self, tag: &str) -> Option<String> {
        self.snapshots_tagged(tag)
            .next()
            .map(Snapshot::identity_part)
    }

    /// The number of the snapshot of that tag.
    pub(super) fn snapshot_number(&self, tag: &str) -> Option<String> {
        self.snapshots_tagged(tag)
            .next()
            .map(|snapshot| snapshot.id.clone())
    }
}

/// A VM as it was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VmView {
    pub(super) vm: Vm,
    /// The disks that are backed up together.
    pub(super) disks: Vec<Disk>,
    /// QEMU's own word for the state of the VM; empty when it is stopped.
    pub(super) state: String,
    /// The images that devices of a running VM write to, overlays included.
    pub(super) written: Vec<PathBuf>,
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Where a tag is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TagCoverage {
    /// On every disk exactly once.
    Complete,
    /// Missing on some disk.
    Partial,
    /// More than once on some disk.
    Duplicated,
}

/// How the tag sits on the disks; `None` when it is on none.
pub(super) fn tag_coverage(disks: &[Disk], tag: &str) -> Option<TagCoverage> {
    let counts: Vec<usize> = disks
        .iter()
        .map(|disk| disk.snapshots_tagged(tag).count())
        .collect();
    if counts.iter().all(|count| *count == 0) {
        None
    } else if counts.iter().any(|count| *count > 1) {
        Some(TagCoverage::Duplicated)
    } else if counts.contains(&0) {
        Some(TagCoverage::Partial)
    } else {
        Some(TagCoverage::Complete)
    }
}

/// The nodes that have the tag.
pub(super) fn nodes_with(disks: &[Disk], tag: &str) -> Vec<String> {
    let with = disks
        .iter()
        .filter(|disk| disk.snapshots_tagged(tag).next().is_some());
    with.map(|with| with.node.clone()).collect()
}

/// The nodes whose snapshot of that tag holds memory of the VM: one, when it was taken of a running VM.
pub(super) fn disks_with_memory<'a>(
    disks: &'a [Disk],
    tag: &'a str,
) -> impl Iterator<Item = &'a Disk> + 'a {
    let holds = move |disk: &&Disk| {
        disk.snapshots_tagged(tag)
            .any(|snapshot| snapshot.vm_state_size > 0)
    };
    disks.iter().filter(holds)
}

/// A snapshot whose number reads like the tag, with its disk: QEMU may confuse the two.
pub(super) fn numbered_like<'a>(disks: &'a [Disk], tag: &str) -> Option<(&'a Disk, &'a Snapshot)> {
    let found = disks
        .iter()
        .find_map(|disk| Some((disk, disk.snapshot_numbered(tag)?)));
    // The one of another tag is the one to name.
    let others = disks.iter().filter_map(|disk| {
        let snapshot = disk
            .snapshot_numbered(tag)
            .filter(|snapshot| snapshot.name != tag)?;
        Some((disk, snapshot))
    });
    others.chain(found).next()
}
