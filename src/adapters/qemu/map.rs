//! What QEMU and qemu-img tell of disks and snapshots, as backups.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::adapters::qemu::error::QemuError;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Identity;
use crate::model::Page;
use crate::model::RunState;
use crate::model::Timestamp;
use crate::model::Vm;

/// How the tags of our own snapshots begin, which are no backups: see `trail.rs`.
pub(super) const OWN: &str = "snapgate-before-";

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
    fn identity(&self) -> String {
        format!("{}@{}.{}", self.id, self.date_sec, self.date_nsec)
    }
}

/// One disk and what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its node name; the number of its image when the VM is stopped.
    pub(super) node: String,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) bitmaps: bool,
    /// Whether it is of a format that holds snapshots.
    pub(super) capable: bool,
}

impl Disk {
    fn tagged(&self, tag: &str) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(move |it| it.name == tag)
    }

    /// Whether it has a snapshot of that tag.
    pub(super) fn has(&self, tag: &str) -> bool {
        self.tagged(tag).next().is_some()
    }

    /// The tags of our own snapshots on it.
    pub(super) fn own(&self) -> impl Iterator<Item = &str> {
        let tags = self.snapshots.iter().map(|it| it.name.as_str());
        tags.filter(|it| it.starts_with(OWN))
    }

    /// Which snapshot of that tag it has.
    pub(super) fn part(&self, tag: &str) -> Option<String> {
        self.tagged(tag).next().map(Snapshot::identity)
    }
}

/// A VM as it was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) vm: Vm,
    /// The disks that are backed up together; the first holds the memory.
    pub(super) disks: Vec<Disk>,
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
    pub(super) fn disk(self, number: usize) -> Disk {
        let bitmaps = self.format_specific.map(|it| it.data.bitmaps);
        Disk {
            node: number.to_string(),
            snapshots: self.snapshots,
            bitmaps: bitmaps.is_some_and(|it| !it.is_empty()),
            capable: self.format == "qcow2",
        }
    }
}

/// The disks of a running VM: those of the configuration, or every writable one that a device of the VM has.
pub(super) fn disks(
    wanted: &[String],
    devices: Vec<Device>,
    nodes: Vec<Node>,
) -> Result<Vec<Disk>, QemuError> {
    let mut names = wanted.to_vec();
    if names.is_empty() {
        let inserted = devices.into_iter().filter_map(|it| it.inserted);
        let writable = inserted.filter(|it| !it.ro).filter_map(|it| it.node_name);
        for name in writable {
            let name = below_filter(name, &nodes);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let mut nodes: BTreeMap<String, Node> = nodes
        .into_iter()
        .filter_map(|it| Some((it.node_name.clone()?, it)))
        .collect();
    let found = names.into_iter().map(|name| {
        let node = nodes.remove(&name);
        let node = node.ok_or_else(|| QemuError::Nonsense(format!("no block node {name}")))?;
        Ok(Disk {
            capable: node.drv == "qcow2",
            node: name,
            bitmaps: !node.dirty_bitmaps.is_empty(),
            snapshots: node.image.snapshots,
        })
    });
    found.collect()
}

/// The node that holds the snapshots: a block job puts a filter of another format above it, for the same file.
fn below_filter(name: String, nodes: &[Node]) -> String {
    let top = nodes.iter().find(|it| it.node_name.as_ref() == Some(&name));
    let Some(top) = top.filter(|it| it.drv != "qcow2" && !it.file.is_empty()) else {
        return name;
    };
    let below = nodes
        .iter()
        .find(|it| it.drv == "qcow2" && !it.ro && it.file == top.file);
    below.and_then(|it| it.node_name.clone()).unwrap_or(name)
}

/// Where a tag is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// On every disk exactly once.
    Yes,
    /// Missing on some disk.
    Partial,
    /// More than once on some disk.
    Twice,
}

/// How the tag sits on the disks; `None` when it is on none.
pub(super) fn whole(disks: &[Disk], tag: &str) -> Option<Whole> {
    let counts: Vec<usize> = disks.iter().map(|it| it.tagged(tag).count()).collect();
    if counts.iter().all(|it| *it == 0) {
        None
    } else if counts.iter().any(|it| *it > 1) {
        Some(Whole::Twice)
    } else if counts.contains(&0) {
        Some(Whole::Partial)
    } else {
        Some(Whole::Yes)
    }
}

/// The nodes that have the tag.
pub(super) fn nodes_with(disks: &[Disk], tag: &str) -> Vec<String> {
    let with = disks.iter().filter(|it| it.tagged(tag).next().is_some());
    with.map(|it| it.node.clone()).collect()
}

/// Whether the backup of that tag holds the memory of the VM.
pub(super) fn has_memory(disks: &[Disk], tag: &str) -> bool {
    let first = disks.first().and_then(|it| it.tagged(tag).next());
    first.is_some_and(|it| it.vm_state_size > 0)
}

/// The backup of that tag; `None` when it is on no disk, the tag cannot be an id, or it is one of our own.
pub(super) fn backup(disks: &[Disk], tag: &str) -> Option<Backup> {
    if tag.starts_with(OWN) {
        return None;
    }
    let state = match whole(disks, tag)? {
        Whole::Yes => BackupState::Available,
        Whole::Partial | Whole::Twice => BackupState::Error,
    };
    let first = disks.iter().find_map(|it| it.tagged(tag).next())?;
    let created =
        Duration::from_secs(first.date_sec).saturating_add(Duration::from_nanos(first.date_nsec));
    let size = disks
        .iter()
        .flat_map(|it| it.tagged(tag))
        .fold(0_u64, |sum, it| sum.saturating_add(it.vm_state_size));
    Some(Backup {
        id: BackupId::new(tag).ok()?,
        identity: Identity::new(first.identity()),
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
    for snapshot in disks.iter().flat_map(|it| &it.snapshots) {
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
            snapshots: snapshots.collect(),
            bitmaps: false,
            capable: true,
        }
    }

    #[test]
    fn a_tag_makes_a_whole_backup_only_when_on_every_disk_once() {
        let rows: [(&str, Snapshots<'_>, Snapshots<'_>, Option<Whole>); 4] = [
            ("both", &[("1", "b", 9)], &[("4", "b", 0)], Some(Whole::Yes)),
            ("one", &[("1", "b", 9)], &[], Some(Whole::Partial)),
            (
                "twice",
                &[("1", "b", 9), ("2", "b", 9)],
                &[("1", "b", 0)],
                Some(Whole::Twice),
            ),
            ("none", &[("1", "c", 9)], &[], None),
        ];
        for (name, one, two, expected) in rows {
            let disks = [disk("d0", one), disk("d1", two)];
            assert_eq!(whole(&disks, "b"), expected, "{name}");
            let state = backup(&disks, "b").map(|it| it.state);
            let expected = expected.map(|it| match it {
                Whole::Yes => BackupState::Available,
                Whole::Partial | Whole::Twice => BackupState::Error,
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
            let ids: Vec<&str> = page.backups.iter().map(|it| it.id.as_str()).collect();
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
            (first.size, has_memory(&disks, "b")),
            (Some(7), false),
            "sizes"
        );
    }

    #[test]
    fn disks_are_those_named_or_every_writable_one() {
        let nodes = r#"[{"node-name":"d0","drv":"qcow2","ro":false,"image":{"filename":"x",
            "snapshots":[{"vm-clock-nsec":1,"name":"b1","date-sec":5,"date-nsec":6,"vm-clock-sec":30,"id":"1","vm-state-size":778686}]}},
            {"node-name":"d0-file","drv":"file","image":{}},
            {"node-name":"cd","drv":"raw","image":{}},
            {"node-name":"d1","drv":"raw","file":"d1","dirty-bitmaps":[{"name":"bm"}],"image":{}},
            {"node-name":"d2","drv":"qcow2","file":"d2","image":{}},
            {"node-name":"top","drv":"copy-before-write","file":"d2","image":{}}]"#;
        let devices = r#"[{"device":"","inserted":{"node-name":"d0","ro":false}},{"device":"cd","inserted":{"node-name":"cd","ro":true}},
            {"device":"empty"},{"device":"","inserted":{"node-name":"d1","ro":false}},
            {"device":"","inserted":{"node-name":"top","ro":false}}]"#;
        let rows: [(&[&str], Option<Nodes<'_>>); 3] = [
            (
                &[],
                Some(&[
                    ("d0", true, false),
                    ("d1", false, true),
                    ("d2", true, false),
                ]),
            ),
            (&["d0"], Some(&[("d0", true, false)])),
            (&["none"], None),
        ];
        for (wanted, expected) in rows {
            let wanted: Vec<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
            let found = disks(
                &wanted,
                serde_json::from_str(devices).unwrap(),
                serde_json::from_str(nodes).unwrap(),
            );
            let found = found.ok();
            let found: Option<Vec<_>> = found.as_ref().map(|it| {
                let each = it.iter();
                each.map(|it| (it.node.as_str(), it.capable, it.bitmaps))
                    .collect()
            });
            assert_eq!(found.as_deref(), expected, "{wanted:?}");
        }
    }
}
