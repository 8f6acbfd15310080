//! The disks of a VM beside a snapshot: whether each holds it, is the one in use, and can be written to.
//!
//! Pure: what QEMU and the file system show is gathered by the inspector and judged here.

use std::path::Path;
use std::path::PathBuf;

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::block_nodes::BlockNode;
use crate::adapters::libvirt::definition_checks::list_disks;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::definition_checks::refuse_numeric_name;
use crate::adapters::libvirt::images::DiskImage;
use crate::adapters::libvirt::images::ImageInspection;
use crate::adapters::libvirt::snapshot_xml::SnapshotLocation;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::FaultKind;
use crate::public_text;

/// What is seen of one disk.
#[derive(Debug)]
pub(crate) struct DiskView {
    /// The disk, as the VM sees it.
    pub(crate) target: String,
    /// Where its image is; `None` when it is not in the file system.
    pub(crate) path: Option<PathBuf>,
    /// The image, as far as the gateway can see it itself; `None` when it may not look.
    pub(crate) look: Option<ImageInspection>,
}

impl DiskView {
    fn image(&self) -> Option<&DiskImage> {
        match &self.look {
            Some(ImageInspection::Read(image)) => Some(image),
            Some(ImageInspection::Missing | ImageInspection::Unknown(_)) | None => None,
        }
    }
}

/// A snapshot on a disk, from whichever side it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ImageSnapshot {
    id: String,
    name: String,
    has_memory: bool,
}

/// The snapshots of each disk, by its target; `None` where they cannot be seen.
fn snapshots_by_disk(
    disks: &[DiskView],
    nodes: Option<&[BlockNode]>,
) -> Vec<(String, Option<Vec<ImageSnapshot>>)> {
    let mut all = Vec::new();
    for disk in disks {
        // What QEMU has open comes first: while the VM runs, the table in the file may be older than the one in its
        // memory.
        let node = nodes.and_then(|nodes| node_of(disk.path.as_deref(), nodes));
        let tags = match (node, disk.image()) {
            (Some(node), _) => Some(
                node.snapshots()
                    .iter()
                    .map(|tag| ImageSnapshot {
                        id: tag.id.clone(),
                        name: tag.name.clone(),
                        has_memory: tag.has_memory(),
                    })
                    .collect(),
            ),
            (None, Some(image)) => Some(
                image
                    .snapshots
                    .iter()
                    .map(|saved| ImageSnapshot {
                        id: saved.id.clone(),
                        name: saved.name.clone(),
                        has_memory: saved.has_memory,
                    })
                    .collect(),
            ),
            // Not the same as none: nothing may be concluded from a disk that could not be seen.
            (None, None) => None,
        };
        all.push((disk.target.clone(), tags));
    }
    all
}

fn node_of<'a>(path: Option<&Path>, nodes: &'a [BlockNode]) -> Option<&'a BlockNode> {
    let path = path?;
    nodes.iter().find(|node| node.is_image(path))
}

/// Whether the images are there, can be written to, and are those in use. `is_on`: the VM is not off.
///
/// # Errors
/// The reason not to restore or delete, naming the disk.
pub(crate) fn check_reachable(disks: &[DiskView], is_on: bool) -> Result<(), AdapterError> {
    for disk in disks {
        let target = &disk.target;
        let image = match &disk.look {
            // On another host, or of a kind that cannot be read. libvirt itself will refuse what does not work.
            None | Some(ImageInspection::Unknown(_)) => continue,
            Some(ImageInspection::Missing) => {
                return Err(refuse(
                    FaultKind::Unavailable,
                    public_text!(
                        "The image of disk {target} is missing; nothing was changed. Mount its storage, or put the image back in its place."
                    ),
                ));
            }
            Some(ImageInspection::Read(image)) => image,
        };
        if let Some(why) = image.unwritable {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "The image of disk {target} {why}; nothing was changed. Make it writable first."
                ),
            ));
        }
        // Checked before, because a change of snapshots that runs out of room stops half way.
        if !image.has_room {
            return Err(refuse(
                FaultKind::StorageFull,
                public_text!(
                    "The storage of disk {target} is full; nothing was changed. Free some megabytes, which a change of its snapshots needs."
                ),
            ));
        }
        match (is_on, image.is_locked) {
            // A running QEMU locks its images. One without a lock is not the file that it has open.
            (true, Some(false)) => {
                return Err(refuse(
                    FaultKind::Conflict,
                    public_text!(
                        "The image at the place of disk {target} is not the one that the running VM uses: it was replaced or renamed. Nothing was changed. Put the image in use back in its place."
                    ),
                ));
            }
            (false, Some(true)) => {
                return Err(refuse(
                    FaultKind::Busy,
                    public_text!(
                        "The image of disk {target} is in use by another program; nothing was changed. Stop that program first."
                    ),
                ));
            }
            (true | false, Some(_) | None) => {}
        }
    }
    Ok(())
}

/// Whether QEMU keeps no record of changes, with which no restore succeeds.
///
/// # Errors
/// The reason not to restore.
pub(crate) fn check_no_bitmaps(nodes: &[BlockNode]) -> Result<(), AdapterError> {
    if nodes.iter().any(BlockNode::has_bitmaps) {
        return Err(refuse(
            FaultKind::Conflict,
            public_text!(
                "A disk of the VM has dirty bitmaps, with which a restore would fail and stop the VM; nothing was changed. Remove the bitmaps first."
            ),
        ));
    }
    Ok(())
}

/// Whether the running VM has each disk's image open for writing.
///
/// # Errors
/// The reason not to restore or delete, naming the disk.
pub(crate) fn check_in_use(disks: &[DiskView], nodes: &[BlockNode]) -> Result<(), AdapterError> {
    for disk in disks.iter().filter(|disk| disk.path.is_some()) {
        let target = &disk.target;
        // libvirt acts on the path of its definition, QEMU on the file it has open. A change goes wrong where they
        // differ.
        let text = match node_of(disk.path.as_deref(), nodes) {
            Some(node) if node.ro => public_text!(
                "The running VM only reads the image of disk {target}, which has an overlay; nothing was changed. Merge the overlay first."
            ),
            Some(_) => continue,
            None => public_text!(
                "The running VM has another image open for disk {target} than its definition names; nothing was changed. Merge overlays, or stop the VM and check its disks."
            ),
        };
        return Err(refuse(FaultKind::Conflict, text)
            .because("virsh blockcommit --active --pivot merges an overlay"));
    }
    Ok(())
}

/// Whether the snapshot is on every disk that it should be on, once, with the memory on one, and no disk has another
/// snapshot that QEMU could restore in its stead.
///
/// # Errors
/// The reason not to restore, naming the disk.
pub(crate) fn check_snapshot_held(
    saved: &SnapshotXml,
    disks: &[DiskView],
    nodes: Option<&[BlockNode]>,
) -> Result<(), AdapterError> {
    let name = &saved.name;
    let all = snapshots_by_disk(disks, nodes);
    let known = || {
        all.iter()
            .filter_map(|(target, tags)| Some((target, tags.as_ref()?)))
    };
    for (target, tags) in known() {
        // QEMU looks for an id first and for a name afterwards, and would load that other snapshot.
        if tags.iter().any(|tag| tag.id == *name && tag.name != *name) {
            return Err(refuse_numeric_name(name).because(format!("an id on disk {target}")));
        }
        // QEMU loads the first of them, of which no one can say whether it is the right one.
        if tags.iter().filter(|tag| tag.name == *name).count() > 1 {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "There are two snapshots named {name} on disk {target}, and either could be restored; nothing was changed. Ask the operator to remove the wrong one while the VM is off."
                ),
            ));
        }
    }
    // Only disks that were part of the snapshot: one that was attached later cannot hold it.
    let internal = |target: &str| {
        let mut parts = saved.disks.iter();
        parts.any(|part| part.target == target && part.place == SnapshotLocation::Internal)
    };
    let without: Vec<&str> = known()
        .filter(|(target, tags)| internal(target) && !tags.iter().any(|tag| tag.name == *name))
        .map(|(target, _)| target.as_str())
        .collect();
    if !without.is_empty() {
        let disks = list_disks(without);
        return Err(refuse(
            FaultKind::Damaged,
            public_text!(
                "The backup is incomplete: it is missing on {disks}. Nothing was changed. Delete the backup, or put the former image of that disk back."
            ),
        ));
    }
    // The memory may be on the very disk that could not be seen.
    let is_complete = all.iter().all(|(_, tags)| tags.is_some());
    let has_memory = known().any(|(_, tags)| {
        let mut tags = tags.iter();
        tags.any(|tag| tag.name == *name && tag.has_memory)
    });
    if saved.memory == SnapshotLocation::Internal && is_complete && !has_memory {
        return Err(refuse(
            FaultKind::Damaged,
            public_text!(
                "The backup is incomplete: no disk of the VM holds its memory. Nothing was changed. Delete the backup."
            ),
        ));
    }
    Ok(())
}

/// Whether every disk holds the backup's data (`Some(true)`) or none does (`Some(false)`), byte for byte.
///
/// `None` where some do, or where it cannot be seen. Only for a VM that is off: a running one writes.
pub(crate) async fn match_snapshot(name: &str, disks: &mut [DiskView]) -> Option<bool> {
    // Contents decide. What libvirt calls the current snapshot is no proof that it was loaded.
    let (restored, others, unknown) = group_by_content(name, disks).await;
    match (restored.is_empty(), others.is_empty(), unknown.is_empty()) {
        (false, true, true) => Some(true),
        (true, false, true) => Some(false),
        _ => None,
    }
}

/// The disks that hold the backup's data, those that do not, and those of which that cannot be seen.
async fn group_by_content(
    name: &str,
    disks: &mut [DiskView],
) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut restored, mut others, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for disk in disks {
        let is_identical_to = match &mut disk.look {
            Some(ImageInspection::Read(image)) => image.is_identical_to(name).await,
            Some(ImageInspection::Missing | ImageInspection::Unknown(_)) | None => None,
        };
        let group = match is_identical_to {
            Some(true) => &mut restored,
            Some(false) => &mut others,
            None => &mut unknown,
        };
        group.push(disk.target.clone());
    }
    (restored, others, unknown)
}

/// The clause for disks whose contents cannot be seen.
pub(crate) const MIXED_DATA: &str =
    "its disks may hold the data of the backup or from before the restore";

/// A clause about what the disks hold after a restore that failed.
pub(crate) async fn describe_contents(name: &str, disks: &mut [DiskView]) -> String {
    let (restored, others, unknown) = group_by_content(name, disks).await;
    let named = |all: &[String]| list_disks(all.iter().map(String::as_str));
    match (restored.is_empty(), others.is_empty(), unknown.is_empty()) {
        (false, true, true) => "its disks hold the data of the backup".to_owned(),
        (true, false, true) => "its disks hold the data from before the restore".to_owned(),
        (false, false, true) => format!(
            "the data of the backup is on {}, and {} was not restored",
            named(&restored),
            named(&others)
        ),
        _ => MIXED_DATA.to_owned(),
    }
}

/// The disks that hold a snapshot of this name, as far as that can be seen.
pub(crate) fn disks_holding(
    name: &str,
    disks: &[DiskView],
    nodes: Option<&[BlockNode]>,
) -> Vec<String> {
    let holds = |tags: &Vec<ImageSnapshot>| tags.iter().any(|tag| tag.name == name);
    snapshots_by_disk(disks, nodes)
        .into_iter()
        .filter(|(_, tags)| tags.as_ref().is_some_and(holds))
        .map(|(target, _)| target)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::libvirt::block_nodes::parse_for_tests;
    use crate::adapters::libvirt::snapshot_xml::DiskPart;

    fn disks() -> Vec<DiskView> {
        let disk = |target: &str| DiskView {
            target: target.to_owned(),
            path: Some(format!("/{target}").into()),
            look: None,
        };
        vec![disk("vda"), disk("vdb")]
    }

    fn node(path: &str, more: &str, tags: &str) -> String {
        format!(
            r#"{{"ro":false{more},"image":{{"filename":"{path}","format":"qcow2","snapshots":[{tags}]}}}}"#
        )
    }

    fn nodes(all: &[String]) -> Vec<BlockNode> {
        let reply = format!(r#"{{"return":[{}],"id":"libvirt-1"}}"#, all.join(","));
        parse_for_tests(&reply).unwrap()
    }

    fn snapshot(name: &str) -> SnapshotXml {
        let part = |target: &str| DiskPart {
            target: target.to_owned(),
            place: SnapshotLocation::Internal,
        };
        SnapshotXml {
            name: name.to_owned(),
            description: None,
            created: 1,
            memory: SnapshotLocation::Internal,
            disks: vec![part("vda"), part("vdb")],
            definition: None,
            persistent: None,
        }
    }

    #[test]
    fn disks_must_hold_the_snapshot_once_each_with_memory_on_one() {
        let tag = r#"{"name":"a","vm-state-size":9,"id":"1"}"#;
        let dry = r#"{"name":"a","vm-state-size":0,"id":"1"}"#;
        let other = r#"{"name":"other","vm-state-size":9,"id":"a"}"#;
        let base = node("/base", "", tag).replace("false", "true");
        let rows = [
            (
                "whole",
                vec![node("/vda", "", tag), node("/vdb", "", dry)],
                None,
            ),
            (
                "with a base",
                vec![base, node("/vda", "", tag), node("/vdb", "", dry)],
                None,
            ),
            (
                "missing on one",
                vec![node("/vda", "", tag), node("/vdb", "", "")],
                Some((FaultKind::Damaged, "disk vdb")),
            ),
            (
                "without memory",
                vec![node("/vda", "", dry), node("/vdb", "", dry)],
                Some((FaultKind::Damaged, "memory")),
            ),
            (
                "twice",
                vec![
                    node("/vda", "", &format!("{tag},{dry}")),
                    node("/vdb", "", dry),
                ],
                Some((FaultKind::Conflict, "disk vda")),
            ),
            (
                "an id on the second disk",
                vec![
                    node("/vda", "", tag),
                    node("/vdb", "", &format!("{dry},{other}")),
                ],
                Some((FaultKind::Unsupported, "name a could be read as the id")),
            ),
        ];
        for (name, all, expected) in rows {
            let seen = check_snapshot_held(&snapshot("a"), &disks(), Some(&nodes(&all))).err();
            let kind = seen.as_ref().map(|refused| refused.fault.kind);
            assert_eq!(kind, expected.map(|(kind, _)| kind), "{name}: {seen:?}");
            let text = seen.map(|refused| refused.fault.text).unwrap_or_default();
            let named = expected.map_or("", |(_, named)| named);
            assert!(text.contains(named), "{name}: {text}");
        }
        assert!(parse_for_tests(r#"{"error":{}}"#).is_err(), "not an answer");
    }

    #[test]
    fn disks_in_use_must_be_those_of_the_definition() {
        let file = r#"{"image":{"filename":"/vda","format":"file"}}"#.to_owned();
        let both = [node("/vda", "", ""), node("/vdb", "", "")];
        let rows = [
            ("the same", both.to_vec(), None),
            (
                "read only, below another one",
                vec![
                    node("/vda", "", "").replace("false", "true"),
                    node("/vdb", "", ""),
                ],
                Some("disk vda"),
            ),
            (
                "another one",
                vec![file, node("/vdb", "", "")],
                Some("disk vda"),
            ),
            (
                "bitmaps",
                vec![
                    node("/vda", r#","dirty-bitmaps":[{"name":"b"}]"#, ""),
                    node("/vdb", "", ""),
                ],
                Some("dirty bitmaps"),
            ),
        ];
        for (name, all, expected) in rows {
            let all = nodes(&all);
            let seen = check_no_bitmaps(&all).and_then(|()| check_in_use(&disks(), &all));
            let text = seen.err().map(|refused| refused.fault.text);
            assert_eq!(text.is_some(), expected.is_some(), "{name}: {text:?}");
            let text = text.unwrap_or_default();
            assert!(
                text.contains(expected.unwrap_or_default()),
                "{name}: {text}"
            );
        }
    }
}
