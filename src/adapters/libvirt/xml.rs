//! libvirt's XML: what is read of snapshots and VMs, and the little that is written.

use roxmltree::Document;
use roxmltree::Node;
use roxmltree::ParsingOptions;

/// Most nodes of one document: a VM with hundreds of devices has some thousand.
const NODES_MAX: u32 = 200_000;

/// A document is not what libvirt writes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XmlError {
    /// It is not XML.
    #[error("it is not XML")]
    Syntax(#[from] roxmltree::Error),
    /// Something that is always there is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A text cannot be written in XML at all.
    #[error("it holds a character that XML cannot hold")]
    Character,
}

/// Where a part of a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it is not part of the snapshot.
    Nowhere,
    /// Within the disk image.
    Internal,
    /// In a file of its own, which libvirt cannot put back.
    External,
}

impl Place {
    fn of(node: Option<Node<'_, '_>>) -> Self {
        match node.and_then(|it| it.attribute("snapshot")) {
            Some("internal") => Self::Internal,
            Some("no") | None => Self::Nowhere,
            Some(_) => Self::External,
        }
    }
}

/// A disk that a VM may write to, and where its content is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Disk {
    /// What the VM sees, for instance `vda`.
    pub(crate) target: String,
    /// Every attribute of its source that says where it is, in order.
    pub(crate) source: Vec<(String, String)>,
    /// Whether its snapshots would be kept in files of their own.
    pub(crate) is_external: bool,
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
    pub(crate) memory: Place,
    /// Where each disk is kept.
    pub(crate) disks: Vec<Place>,
    /// The disks of the VM as they were, if libvirt remembers.
    pub(crate) definition: Option<Vec<Disk>>,
}

impl SnapshotXml {
    /// Reads a `domainsnapshot`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub(crate) fn read(xml: &str) -> Result<Self, XmlError> {
        let document = parse(xml)?;
        let root = rooted(&document, "domainsnapshot")?;
        let created = text(root, "creationTime")
            .and_then(|it| it.trim().parse().ok())
            .ok_or(XmlError::Missing("creationTime"))?;
        Ok(Self {
            name: text(root, "name").ok_or(XmlError::Missing("name"))?,
            description: text(root, "description"),
            created,
            memory: Place::of(child(root, "memory")),
            disks: child(root, "disks").map_or_else(Vec::new, |disks| {
                let all = disks.children().filter(|it| it.has_tag_name("disk"));
                all.map(|it| Place::of(Some(it))).collect()
            }),
            definition: child(root, "domain").map(disks),
        })
    }
}

/// What is read of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainXml {
    /// Its description.
    pub(crate) description: Option<String>,
    /// Whether its firmware has a flash of its own, of which libvirt makes no internal snapshots.
    pub(crate) has_flash: bool,
    /// The disks it may write to.
    pub(crate) disks: Vec<Disk>,
}

impl DomainXml {
    /// Reads a `domain`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub(crate) fn read(xml: &str) -> Result<Self, XmlError> {
        let document = parse(xml)?;
        let root = rooted(&document, "domain")?;
        let os = child(root, "os");
        let is_efi = os.is_some_and(|it| it.attribute("firmware") == Some("efi"));
        let loader = os.and_then(|it| child(it, "loader"));
        Ok(Self {
            description: text(root, "description"),
            has_flash: is_efi || loader.is_some_and(|it| it.attribute("type") == Some("pflash")),
            disks: disks(root),
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
    let root = rooted(&document, "domainsnapshot")?;
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

fn parse(xml: &str) -> Result<Document<'_>, XmlError> {
    let options = ParsingOptions {
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    Ok(Document::parse_with_options(xml, options)?)
}

fn rooted<'a, 'i>(
    document: &'a Document<'i>,
    name: &'static str,
) -> Result<Node<'a, 'i>, XmlError> {
    let root = document.root_element();
    if root.has_tag_name(name) {
        Ok(root)
    } else {
        Err(XmlError::Missing(name))
    }
}

fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    of.children().find(|it| it.has_tag_name(name))
}

/// The text of a child, `None` when there is no such child or it is empty.
fn text(of: Node<'_, '_>, name: &str) -> Option<String> {
    let all: String = child(of, name)?
        .children()
        .filter_map(|it| it.text().filter(|_| it.is_text()))
        .collect();
    (!all.is_empty()).then_some(all)
}

fn disks(domain: Node<'_, '_>) -> Vec<Disk> {
    let Some(devices) = child(domain, "devices") else {
        return Vec::new();
    };
    let mut found: Vec<Disk> = devices
        .children()
        .filter(|it| it.has_tag_name("disk") && child(*it, "readonly").is_none())
        .filter(|it| matches!(it.attribute("device"), None | Some("disk" | "lun")))
        .map(|it| Disk {
            target: child(it, "target")
                .and_then(|target| target.attribute("dev"))
                .unwrap_or_default()
                .to_owned(),
            source: child(it, "source").map_or_else(Vec::new, source),
            is_external: it.attribute("snapshot") == Some("external"),
        })
        .collect();
    found.sort();
    found
}

/// Where a disk is. `index` is a number of the running QEMU, `startupPolicy` and `slices` are no place.
fn source(node: Node<'_, '_>) -> Vec<(String, String)> {
    let mut place: Vec<_> = node
        .attributes()
        .filter(|it| !matches!(it.name(), "index" | "startupPolicy"))
        .map(|it| (it.name().to_owned(), it.value().to_owned()))
        .collect();
    place.sort();
    place
}

fn escaped(text: &str) -> Result<String, XmlError> {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\r' => out.push_str("&#13;"),
            '\n' | '\t' => out.push(character),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return Err(XmlError::Character),
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let disk = Disk {
            target: "vda".to_owned(),
            source: vec![("file".to_owned(), "/x.qcow2".to_owned())],
            is_external: false,
        };
        let expected = SnapshotXml {
            name: "a&b".to_owned(),
            description: None,
            created: 1_795_484_345,
            memory: Place::Internal,
            disks: vec![Place::Internal, Place::Nowhere, Place::External],
            definition: Some(vec![disk]),
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

    #[test]
    fn firmware_with_a_flash_of_its_own_is_seen() {
        let rows = [
            ("<os><loader type='pflash'>/f</loader></os>", true),
            ("<os firmware='efi'><type>hvm</type></os>", true),
            ("<os firmware='bios'><type>hvm</type></os>", false),
            ("<os><loader type='rom'>/f</loader></os>", false),
            ("<os/>", false),
        ];
        for (os, expected) in rows {
            let read = DomainXml::read(&format!("<domain>{os}</domain>")).unwrap();
            assert_eq!(read.has_flash, expected, "{os}");
        }
    }
}
