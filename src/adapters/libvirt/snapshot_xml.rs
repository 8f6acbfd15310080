//! Snapshots as libvirt's XML describes them, and the little of it that is written.

use roxmltree::Node;

use crate::adapters::libvirt::definition_xml::Definition;
use crate::adapters::libvirt::definition_xml::definition;
use crate::adapters::libvirt::xml::XmlError;
use crate::adapters::libvirt::xml::child;
use crate::adapters::libvirt::xml::escaped;
use crate::adapters::libvirt::xml::parse;
use crate::adapters::libvirt::xml::root_named;
use crate::adapters::libvirt::xml::text;

/// Where a part of a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotLocation {
    /// Nowhere: it is not part of the snapshot.
    NotIncluded,
    /// Within the disk image.
    Internal,
    /// In a file of its own, which libvirt cannot put back.
    External,
}

impl SnapshotLocation {
    fn of(node: Option<Node<'_, '_>>) -> Self {
        match node.and_then(|node| node.attribute("snapshot")) {
            Some("internal") => Self::Internal,
            Some("no") | None => Self::NotIncluded,
            Some(_) => Self::External,
        }
    }
}

/// What a snapshot holds of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskPart {
    /// The disk, as the VM sees it.
    pub(crate) target: String,
    /// Where it is kept.
    pub(crate) place: SnapshotLocation,
}

/// What is read of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotXml {
    /// Its name.
    pub(crate) name: String,
    /// Its description, our trailer included.
    pub(crate) description: Option<String>,
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
    /// Where the memory is kept.
    pub(crate) memory: SnapshotLocation,
    /// Where each disk is kept.
    pub(crate) disks: Vec<DiskPart>,
    /// The VM as it was, if libvirt remembers.
    pub(crate) definition: Option<Definition>,
    /// The VM as it would have been after its next start, where that was something else.
    pub(crate) persistent: Option<Definition>,
}

impl SnapshotXml {
    /// Reads a `domainsnapshot`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub(crate) fn read(xml: &str) -> Result<Self, XmlError> {
        let document = parse(xml)?;
        let root = root_named(&document, "domainsnapshot")?;
        let created = text(root, "creationTime")
            .and_then(|text| text.trim().parse().ok())
            .ok_or(XmlError::Missing("creationTime"))?;
        Ok(Self {
            name: text(root, "name").ok_or(XmlError::Missing("name"))?,
            description: text(root, "description"),
            created,
            memory: SnapshotLocation::of(child(root, "memory")),
            disks: child(root, "disks").map_or_else(Vec::new, |disks| {
                let all = disks.children().filter(|child| child.has_tag_name("disk"));
                let part = |disk: Node<'_, '_>| DiskPart {
                    target: disk.attribute("name").unwrap_or_default().to_owned(),
                    place: SnapshotLocation::of(Some(disk)),
                };
                all.map(part).collect()
            }),
            definition: child(root, "domain").map(definition),
            persistent: child(root, "inactiveDomain").map(definition),
        })
    }
}

/// The `domainsnapshot` that asks for a new snapshot.
///
/// # Errors
/// [`XmlError::Character`].
pub(crate) fn new_snapshot(name: &str, description: &str) -> Result<String, XmlError> {
    let (name, description) = (escaped(name)?, escaped(description)?);
    Ok(format!(
        "<domainsnapshot><name>{name}</name><description>{description}</description></domainsnapshot>"
    ))
}

/// The same document with another description. Every other byte stays as it is.
///
/// # Errors
/// [`XmlError`].
pub(crate) fn with_description(xml: &str, description: &str) -> Result<String, XmlError> {
    let element = format!("<description>{}</description>", escaped(description)?);
    let document = parse(xml)?;
    let root = root_named(&document, "domainsnapshot")?;
    let (from, to) = if let Some(old) = child(root, "description") {
        (old.range().start, old.range().end)
    } else {
        let name = child(root, "name").ok_or(XmlError::Missing("name"))?;
        (name.range().end, name.range().end)
    };
    let (Some(head), Some(tail)) = (xml.get(..from), xml.get(to..)) else {
        return Err(XmlError::Missing("description"));
    };
    Ok(format!("{head}{element}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::libvirt::definition_xml::Disk;
    use crate::adapters::libvirt::definition_xml::SnapshotPolicy;
    use crate::adapters::libvirt::definition_xml::StartNeeds;

    const SNAPSHOT: &str = "<domainsnapshot>\n  <name>a&amp;b</name>\n  <state>running</state>\n  \
        <creationTime>1795484345</creationTime>\n  <memory snapshot='internal'/>\n  <disks>\n    \
        <disk name='vda' snapshot='internal'/>\n    <disk name='vdb' snapshot='no'/>\n    \
        <disk name='vdc' snapshot='external'/>\n  </disks>\n  <domain type='qemu'>\n    \
        <description>inner</description>\n    <devices><disk type='file' device='disk'>\
        <source file='/x.qcow2' index='1'/><target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='cdrom'><source file='/c.iso'/><target dev='sda'/></disk>\
        <disk type='file'><source file='/r'/><target dev='vdr'/><readonly/></disk></devices>\n  \
        </domain>\n</domainsnapshot>";

    #[test]
    fn a_snapshot_is_read() {
        let read = SnapshotXml::read(SNAPSHOT).unwrap();
        let file = |path: &str| vec![("file".to_owned(), path.to_owned())];
        let image = |target: &str, path: &str| (target.to_owned(), file(path));
        let disk = Disk {
            target: "vda".to_owned(),
            source: file("/x.qcow2"),
            policy: SnapshotPolicy::Internal,
            format: None,
            is_transient: false,
            backing: None,
        };
        let part = |target: &str, place| DiskPart {
            target: target.to_owned(),
            place,
        };
        let expected = SnapshotXml {
            name: "a&b".to_owned(),
            description: None,
            created: 1_795_484_345,
            memory: SnapshotLocation::Internal,
            disks: vec![
                part("vda", SnapshotLocation::Internal),
                part("vdb", SnapshotLocation::NotIncluded),
                part("vdc", SnapshotLocation::External),
            ],
            definition: Some(Definition {
                disks: vec![disk],
                images: vec![
                    image("vda", "/x.qcow2"),
                    image("sda", "/c.iso"),
                    image("vdr", "/r"),
                ],
                flash: None,
                needs: StartNeeds {
                    files: vec![
                        ("sda".to_owned(), "/c.iso".into()),
                        ("vdr".to_owned(), "/r".into()),
                    ],
                    ..StartNeeds::default()
                },
            }),
            persistent: None,
        };
        assert_eq!(read, expected, "all of it");
    }

    #[test]
    fn a_description_is_put_in_and_replaced_and_nothing_else_changes() {
        let text = "<new> & 'quoted'\n\tline ]]>";
        let once = with_description(SNAPSHOT, text).unwrap();
        let read = SnapshotXml::read(&once).unwrap();
        assert_eq!(read.description.as_deref(), Some(text), "put in");
        assert!(
            once.contains("<description>inner</description>"),
            "the VM's own stays"
        );
        let twice = with_description(&once, "second").unwrap();
        let again = SnapshotXml::read(&twice).unwrap();
        assert_eq!(again.description.as_deref(), Some("second"), "replaced");
        let plain = SnapshotXml {
            description: None,
            ..again
        };
        assert_eq!(
            plain,
            SnapshotXml::read(SNAPSHOT).unwrap(),
            "the rest stays"
        );
        let element = "<description>second</description>";
        assert_eq!(twice.replacen(element, "", 1), SNAPSHOT, "byte by byte");
    }

    #[test]
    fn what_is_written_can_be_read_and_what_xml_cannot_hold_is_refused() {
        let xml = new_snapshot("n<1>", "d&").unwrap();
        assert_eq!(
            xml,
            "<domainsnapshot><name>n&lt;1&gt;</name><description>d&amp;</description></domainsnapshot>",
            "escaped"
        );
        for bad in ["\u{fffe}", "\u{ffff}", "\u{1}", "\0"] {
            let refused = new_snapshot("n", bad);
            assert!(matches!(refused, Err(XmlError::Character)), "{bad:?}");
        }
    }

    #[test]
    fn other_documents_are_refused() {
        let rows = [
            "",
            "<domain/>",
            "<domainsnapshot/>",
            "<domainsnapshot><name>a</name><creationTime>x</creationTime></domainsnapshot>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><domainsnapshot><name>&b;</name></domainsnapshot>",
        ];
        for xml in rows {
            assert!(SnapshotXml::read(xml).is_err(), "{xml}");
        }
    }
}
