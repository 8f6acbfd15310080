//! QEMU's block graph: which nodes are disks of the VM, what lies below their filters, and which files are written.

use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::DiskObstacle;
use crate::adapters::qemu::disk::Snapshot;
use crate::adapters::qemu::disk::file_name;
use crate::model::RunState;

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
    /// Bytes that the guest sees.
    #[serde(default, rename = "virtual-size")]
    virtual_size: Option<u64>,
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

/// A node that a device of the VM has, below its filters.
struct Attached {
    node: String,
    read_only: bool,
}

/// The disks of a running VM: those of the configuration, or every writable one that a device of the VM has.
/// And the images that devices write to.
pub(super) fn vm_disks(
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
    let writable = attached.iter().filter(|node| !node.read_only);
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
            guest_bytes: None,
        };
    };
    let device = attached.iter().find(|attached| attached.node == name);
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
        guest_bytes: node.image.virtual_size,
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
        .and_then(|top| bottom_file(&top.file))
    else {
        return name;
    };
    let below = nodes.iter().find(|node| {
        node.drv == "qcow2" && !node.ro && bottom_file(&node.file).as_ref() == Some(&file)
    });
    below
        .and_then(|node| node.node_name.clone())
        .unwrap_or(name)
}

/// The file at the bottom of what QEMU calls the file of a node: a path, or `json:` with the options of nested nodes.
pub(super) fn bottom_file(file: &str) -> Option<String> {
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
    let path = PathBuf::from(bottom_file(file)?);
    path.is_absolute().then_some(path)
}

/// Whether the file is one of the overlays that QEMU makes for `-snapshot`: `vl.` and six characters.
fn is_temporary(file: &str) -> bool {
    let name = bottom_file(file).map(|leaf| file_name(Path::new(&leaf)));
    name.is_some_and(|name| name.len() == 9 && name.starts_with("vl."))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node name, whether it holds snapshots, whether it has bitmaps.
    type Nodes<'a> = &'a [(&'a str, bool, bool)];

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
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let nodes: Vec<Node> = serde_json::from_str(NODES).unwrap();
        vm_disks(&wanted, serde_json::from_str(DEVICES).unwrap(), &nodes)
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
}
