//! What QEMU and qemu-img tell of disks and snapshots, as backups.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::adapters::qemu::identity;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Page;
use crate::model::RunState;
use crate::model::Timestamp;
use crate::model::Vm;

/// How the tags of our own snapshots begin, which are no backups: see `restore_markers.rs`.
pub(super) const OWN_SNAPSHOT_PREFIX: &str = "snapgate-before-";

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
    /// Tells it from a later one of the same tag.
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

/// One node of `query-named-block-nodes`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Node {
    node_name: Option<String>,
    drv: String,
    #[serde(default)]
    ro: bool,
    #[serde(default)]
    file: String,
    #[serde(default)]
    dirty_bitmaps: Vec<serde_json::Value>,
    image: NodeImage,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeImage {
    #[serde(default)]
    snapshots: Vec<Snapshot>,
}

/// One device of `query-block`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Device {
    inserted: Option<Inserted>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: Option<String>,
    ro: bool,
}

/// The answer of `query-status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    pub(super) running: bool,
    pub(super) status: String,
}

impl Status {
    pub(super) fn run_state(&self) -> RunState {
        if self.running {
            RunState::Started
        } else if self.status == "shutdown" {
            RunState::Stopped
        } else {
            RunState::Sleeping
        }
    }
}

/// One job of `query-jobs`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) error: Option<String>,
}

/// What `qemu-img info` tells.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageInfo {
    #[serde(default)]
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) format: String,
    format_specific: Option<FormatSpecific>,
}

#[derive(Clone, Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct FormatData {
    #[serde(default)]
    bitmaps: Vec<serde_json::Value>,
}

impl ImageInfo {
    pub(super) fn disk(self, number: usize, image: &Path) -> Disk {
        let has_bitmaps = self
            .format_specific
            .map(|format_specific| format_specific.data.bitmaps);
        Disk {
            node: number.to_string(),
            label: file_name(image),
            file: Some(image.to_owned()),
            obstacle: None,
            snapshots: self.snapshots,
            has_bitmaps: has_bitmaps.is_some_and(|bitmap| !bitmap.is_empty()),
            can_snapshot: self.format == "qcow2",
        }
    }
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A disk in an image that holds no snapshots, whatever its format.
pub(super) fn raw_disk(number: usize, image: &Path) -> Disk {
    Disk {
        node: number.to_string(),
        label: file_name(image),
        file: Some(image.to_owned()),
        obstacle: None,
        snapshots: Vec::new(),
        has_bitmaps: false,
        can_snapshot: false,
    }
}

/// A node that a device of the VM has, below its filters.
struct Attached {
    node: String,
    read_only: bool,
}

/// The disks of a running VM: those of the configuration, or every writable one that a device of the VM has.
/// And the images that devices write to.
pub(super) fn disks(
    wanted: &[String],
    devices: Vec<Device>,
    nodes: &[Node],
) -> (Vec<Disk>, Vec<PathBuf>) {
    let inserted = devices.into_iter().filter_map(|device| device.inserted);
    let attached: Vec<Attached> = inserted
        .filter_map(|inserted| {
            Some(Attached {
                node: below_filter(inserted.node_name?, nodes),
                read_only: inserted.ro,
            })
        })
        .collect();
    let mut names: Vec<String> = Vec::new();
    let writable = attached.iter().filter(|it| !it.read_only);
    let writable: Vec<String> = writable.map(|writable| writable.node.clone()).collect();
    let chosen = if wanted.is_empty() { &writable } else { wanted };
    for name in chosen {
        let name = below_filter(name.clone(), nodes);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let written = nodes.iter().filter(|node| {
        let name = node.node_name.as_ref();
        name.is_some_and(|name| writable.contains(name))
    });
    let written = written.filter_map(|node| absolute(&node.file)).collect();
    let disks = names.into_iter().map(|name| disk(name, &attached, nodes));
    (disks.collect(), written)
}

fn disk(name: String, attached: &[Attached], nodes: &[Node]) -> Disk {
    let found = nodes
        .iter()
        .find(|node| node.node_name.as_ref() == Some(&name));
    let Some(node) = found else {
        return Disk {
            label: name.clone(),
            node: name,
            file: None,
            obstacle: Some(DiskObstacle::NoSuchNode),
            snapshots: Vec::new(),
            has_bitmaps: false,
            can_snapshot: true,
        };
    };
    let device = attached.iter().find(|it| it.node == name);
    let obstacle = match device {
        None => Some(DiskObstacle::NotWritten),
        Some(device) if device.read_only || node.ro => Some(DiskObstacle::ReadOnly),
        Some(_) if is_temporary(&node.file) => Some(DiskObstacle::TemporaryOverlay),
        Some(_) => None,
    };
    let file = absolute(&node.file);
    // QEMU's generated names, `#block123`, mean nothing to a person.
    let label = match &file {
        Some(file) if name.starts_with('#') => file_name(file),
        Some(_) | None => name.clone(),
    };
    Disk {
        can_snapshot: node.drv == "qcow2",
        node: name,
        label,
        file,
        obstacle,
        has_bitmaps: !node.dirty_bitmaps.is_empty(),
        snapshots: node.image.snapshots.clone(),
    }
}

/// The node that holds the snapshots: throttling, copy-on-read and block jobs put filters of another format above it,
/// for the same file.
fn below_filter(name: String, nodes: &[Node]) -> String {
    let top = nodes
        .iter()
        .find(|node| node.node_name.as_ref() == Some(&name));
    let Some(file) = top
        .filter(|top| top.drv != "qcow2")
        .and_then(|top| leaf(&top.file))
    else {
        return name;
    };
    let below = nodes
        .iter()
        .find(|node| node.drv == "qcow2" && !node.ro && leaf(&node.file).as_ref() == Some(&file));
    below
        .and_then(|node| node.node_name.clone())
        .unwrap_or(name)
}

/// The file at the bottom of what QEMU calls the file of a node: a path, or `json:` with the options of nested nodes.
pub(super) fn leaf(file: &str) -> Option<String> {
    let Some(options) = file.strip_prefix("json:") else {
        return (!file.is_empty()).then(|| file.to_owned());
    };
    let options: serde_json::Value = serde_json::from_str(options).ok()?;
    let mut level = &options;
    // A filter names its child by either key; a backing file is never followed.
    while let Some(below) = level.get("file").filter(|below| below.is_object()) {
        level = below;
    }
    let flat = level.get("file.filename");
    let name = level.get("filename").or(flat)?.as_str()?;
    Some(name.to_owned())
}

fn absolute(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(leaf(file)?);
    path.is_absolute().then_some(path)
}

/// Whether the file is one of the overlays that QEMU makes for `-snapshot`: `vl.` and six characters.
fn is_temporary(file: &str) -> bool {
    let name = leaf(file).map(|leaf| file_name(Path::new(&leaf)));
    name.is_some_and(|name| name.len() == 9 && name.starts_with("vl."))
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
pub(super) fn memory<'a>(disks: &'a [Disk], tag: &'a str) -> impl Iterator<Item = &'a Disk> + 'a {
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

/// The backup of that tag; `None` when it is on no disk, the tag cannot be an id, or it is one of our own.
pub(super) fn backup(disks: &[Disk], tag: &str) -> Option<Backup> {
    if tag.starts_with(OWN_SNAPSHOT_PREFIX) {
        return None;
    }
    let state = match tag_coverage(disks, tag)? {
        TagCoverage::Complete => BackupState::Available,
        TagCoverage::Partial | TagCoverage::Duplicated => BackupState::Error,
    };
    let dates = disks
        .iter()
        .flat_map(|disk| disk.snapshots_tagged(tag))
        .map(|part| {
            Duration::from_secs(part.date_sec).saturating_add(Duration::from_nanos(part.date_nsec))
        });
    let created = dates.min()?;
    let size = disks
        .iter()
        .flat_map(|disk| disk.snapshots_tagged(tag))
        .fold(0_u64, |sum, it| sum.saturating_add(it.vm_state_size));
    Some(Backup {
        id: BackupId::new(tag).ok()?,
        identity: identity::identity_of(disks, tag),
        name: BackupName::new(tag).ok()?,
        description: None,
        kind: Some(BackupKind::Snapshot),
        created: Timestamp::default().plus(created),
        tags: Vec::new(),
        state,
        size: (size > 0).then_some(size),
        protected: false,
    })
}

/// The backups of a VM without those that are `hidden`.
pub(super) fn page(disks: &[Disk], wanted: &Page, hidden: &[BackupId]) -> BackupPage {
    let mut found = BTreeMap::new();
    for snapshot in disks.iter().flat_map(|disk| &disk.snapshots) {
        if let Some(backup) = backup(disks, &snapshot.name)
            && !hidden.contains(&backup.id)
        {
            found.insert(backup.id.clone(), backup);
        }
    }
    wanted.of(found.into_values())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number, tag and bytes of memory.
    type Snapshots<'a> = &'a [(&'a str, &'a str, u64)];
    /// Node name, whether it holds snapshots, whether it has bitmaps.
    type Nodes<'a> = &'a [(&'a str, bool, bool)];

    fn disk(node: &str, snapshots: Snapshots<'_>) -> Disk {
        let snapshots = snapshots.iter().map(|(id, name, size)| Snapshot {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            vm_state_size: *size,
            date_sec: 1_795_438_321,
            date_nsec: 453_200_000,
        });
        Disk {
            node: node.to_owned(),
            label: node.to_owned(),
            file: None,
            obstacle: None,
            snapshots: snapshots.collect(),
            has_bitmaps: false,
            can_snapshot: true,
        }
    }

    #[test]
    fn a_tag_makes_a_whole_backup_only_when_on_every_disk_once() {
        let rows: [(&str, Snapshots<'_>, Snapshots<'_>, Option<TagCoverage>); 4] = [
            (
                "both",
                &[("1", "b", 9)],
                &[("4", "b", 0)],
                Some(TagCoverage::Complete),
            ),
            ("one", &[("1", "b", 9)], &[], Some(TagCoverage::Partial)),
            (
                "twice",
                &[("1", "b", 9), ("2", "b", 9)],
                &[("1", "b", 0)],
                Some(TagCoverage::Duplicated),
            ),
            ("none", &[("1", "c", 9)], &[], None),
        ];
        for (name, one, two, expected) in rows {
            let disks = [disk("d0", one), disk("d1", two)];
            assert_eq!(tag_coverage(&disks, "b"), expected, "{name}");
            let state = backup(&disks, "b").map(|backup| backup.state);
            let expected = expected.map(|expected| match expected {
                TagCoverage::Complete => BackupState::Available,
                TagCoverage::Partial | TagCoverage::Duplicated => BackupState::Error,
            });
            assert_eq!(state, expected, "{name}: state");
        }
    }

    #[test]
    fn backups_are_listed_in_order_and_in_pages() {
        let disks = [disk(
            "d0",
            &[
                ("3", "c", 5),
                ("1", "a", 7),
                ("2", "b", 0),
                ("4", "d", 1),
                ("5", "snapgate-before-00", 0),
            ],
        )];
        let hidden = [BackupId::new("d").unwrap()];
        let rows: [(Option<&str>, u16, &[&str], bool); 4] = [
            (None, 2, &["a", "b"], true),
            (None, 3, &["a", "b", "c"], false),
            (Some("b"), 5, &["c"], false),
            (Some("c"), 1, &[], false),
        ];
        for (after, limit, expected, more) in rows {
            let after = after.map(|it| BackupId::new(it).unwrap());
            let page = page(
                &disks,
                &Page {
                    after: after.clone(),
                    limit,
                },
                &hidden,
            );
            let ids: Vec<&str> = page
                .backups
                .iter()
                .map(|backup| backup.id.as_str())
                .collect();
            assert_eq!(
                (ids.as_slice(), page.more),
                (expected, more),
                "{after:?} {limit}"
            );
        }
        let first = backup(&disks, "a").unwrap();
        assert_eq!(
            first.identity.as_str(),
            "1@1795438321.453200000",
            "identity"
        );
        assert_eq!(first.created.as_millis(), 1_795_438_321_453, "created");
        assert_eq!(
            (first.size, memory(&disks, "b").count()),
            (Some(7), 0),
            "sizes"
        );
    }

    /// Two plain disks, one of them raw; one below a block job's filter; one below a throttle; a CD; and the base of an
    /// overlay, of which the overlay is what a device writes to.
    const NODES: &str = r##"[
        {"node-name":"d0","drv":"qcow2","file":"/v/d0.qcow2","image":{"filename":"x","snapshots":[
            {"vm-clock-nsec":1,"name":"b1","date-sec":5,"date-nsec":6,"vm-clock-sec":30,"id":"1","vm-state-size":778686}]}},
        {"node-name":"d0-file","drv":"file","file":"/v/d0.qcow2","image":{}},
        {"node-name":"cd","drv":"raw","ro":true,"file":"/v/cd","image":{}},
        {"node-name":"d1","drv":"raw","file":"/v/d1","dirty-bitmaps":[{"name":"bm"}],"image":{}},
        {"node-name":"d2","drv":"qcow2","file":"d2","image":{}},
        {"node-name":"top","drv":"copy-before-write","file":"d2","image":{}},
        {"node-name":"#block7","drv":"qcow2","file":"/v/d3.qcow2","image":{}},
        {"node-name":"thr","drv":"throttle","image":{},
         "file":"json:{\"driver\":\"throttle\",\"file\":{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/v/d3.qcow2\"}}}"},
        {"node-name":"base","drv":"qcow2","ro":true,"file":"/v/d4.qcow2","image":{}},
        {"node-name":"over","drv":"qcow2","file":"/v/over.qcow2","image":{}},
        {"node-name":"temp","drv":"qcow2","image":{},
         "file":"json:{\"backing\":{\"file\":{\"filename\":\"/v/d5.qcow2\"}},\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/var/tmp/vl.PQCCZ3\"}}"}]"##;
    const DEVICES: &str = r#"[{"device":"","inserted":{"node-name":"d0","ro":false}},{"device":"cd","inserted":{"node-name":"cd","ro":true}},
        {"device":"empty"},{"device":"","inserted":{"node-name":"d1","ro":false}},
        {"device":"","inserted":{"node-name":"top","ro":false}},{"device":"","inserted":{"node-name":"thr","ro":false}},
        {"device":"","inserted":{"node-name":"over","ro":false}},{"device":"","inserted":{"node-name":"temp","ro":false}}]"#;

    fn found(wanted: &[&str]) -> (Vec<Disk>, Vec<PathBuf>) {
        let wanted: Vec<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
        let nodes: Vec<Node> = serde_json::from_str(NODES).unwrap();
        disks(&wanted, serde_json::from_str(DEVICES).unwrap(), &nodes)
    }

    #[test]
    fn disks_are_those_named_or_every_writable_one_below_its_filters() {
        let every: Nodes<'_> = &[
            ("d0", true, false),
            ("d1", false, true),
            ("d2", true, false),
            ("#block7", true, false),
            ("over", true, false),
            ("temp", true, false),
        ];
        let rows: [(&[&str], Nodes<'_>); 3] = [
            (&[], every),
            (&["d0"], &[("d0", true, false)]),
            (&["thr"], &[("#block7", true, false)]),
        ];
        for (wanted, expected) in rows {
            let (disks, _) = found(wanted);
            let shown = disks
                .iter()
                .map(|disk| (disk.node.as_str(), disk.can_snapshot, disk.has_bitmaps));
            assert_eq!(shown.collect::<Vec<_>>(), expected, "{wanted:?}");
        }
        let (_, written) = found(&["d0"]);
        let expected = [
            "/v/d0.qcow2",
            "/v/d1",
            "/v/d3.qcow2",
            "/v/over.qcow2",
            "/var/tmp/vl.PQCCZ3",
        ];
        assert_eq!(
            written,
            expected.map(PathBuf::from),
            "what devices write to"
        );
    }

    #[test]
    fn a_disk_that_no_device_writes_to_is_distinguished_from_one_in_use() {
        let rows = [
            ("d0", None, "d0"),
            ("#block7", None, "d3.qcow2"),
            ("base", Some(DiskObstacle::NotWritten), "base"),
            ("cd", Some(DiskObstacle::ReadOnly), "cd"),
            ("temp", Some(DiskObstacle::TemporaryOverlay), "temp"),
            ("none", Some(DiskObstacle::NoSuchNode), "none"),
        ];
        for (name, obstacle, label) in rows {
            let (disks, _) = found(&[name]);
            assert_eq!(disks[0].obstacle, obstacle, "{name}");
            assert_eq!(disks[0].label, label, "{name}: label");
        }
    }

    #[test]
    fn a_number_that_reads_like_the_tag_is_found_on_any_disk() {
        let disks = [
            disk("d0", &[("1", "2", 9), ("3", "x", 0)]),
            disk("d1", &[("1", "x", 0), ("2", "noon", 0), ("7", "7", 0)]),
        ];
        let rows = [
            ("2", Some("noon")),
            ("7", Some("7")),
            ("noon", None),
            ("9", None),
        ];
        for (tag, expected) in rows {
            let other = numbered_like(&disks, tag).map(|(_, it)| it.name.as_str());
            assert_eq!(other, expected, "{tag}");
        }
    }
}
