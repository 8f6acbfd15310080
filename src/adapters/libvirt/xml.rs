//! libvirt's XML: what is read of snapshots and VMs, and the little that is written.

use std::path::Path;
use std::path::PathBuf;

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

/// Every attribute of a source that says where something is, in order.
pub(crate) type DiskSource = Vec<(String, String)>;

/// What a VM's definition says about snapshots of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SnapshotPolicy {
    /// Nothing, or that they are kept within the image.
    Internal,
    /// That there are none.
    Excluded,
    /// That they are kept in files of their own.
    External,
}

/// A disk that a VM may write to, and where its content is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Disk {
    /// What the VM sees, for instance `vda`.
    pub(crate) target: String,
    /// Where it is.
    pub(crate) source: DiskSource,
    /// What the definition says about its snapshots.
    pub(crate) policy: SnapshotPolicy,
    /// The format of its image, if the definition says it.
    pub(crate) format: Option<String>,
    /// Whether what the VM writes is thrown away when it stops.
    pub(crate) is_transient: bool,
    /// The images below it, nearest first; `None` where the definition does not say.
    pub(crate) backing: Option<Vec<DiskSource>>,
}

impl Disk {
    /// The path of its image; `None` when it is not in the file system.
    pub(crate) fn path(&self) -> Option<&Path> {
        path_of(&self.source)
    }
}

/// The path that a source names; `None` when it names none.
pub(crate) fn path_of(source: &DiskSource) -> Option<&Path> {
    let named = source
        .iter()
        .find(|(name, value)| matches!(name.as_str(), "file" | "dev") && value.starts_with('/'));
    named.map(|(_, value)| Path::new(value))
}

/// Firmware with a flash memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PflashFirmware {
    /// The format of the image that holds its variables, if the definition says it.
    pub(crate) variables_format: Option<String>,
}

/// What a VM needs in order to start, beside its disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartNeeds {
    /// Files that must be there, each with a word for callers: media of CD-ROM drives, kernels, firmware.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// libvirt's networks.
    pub(crate) networks: Vec<String>,
    /// Bridges and network devices of the host.
    pub(crate) links: Vec<String>,
    /// Devices of the host that are passed through, each as its source is written.
    pub(crate) devices: Vec<String>,
    /// Memory, in KiB.
    pub(crate) memory_kib: u64,
}

/// A definition of a VM, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    /// The disks it may write to, in order of their targets.
    pub(crate) disks: Vec<Disk>,
    /// Every image it uses, for reading too, each with its target.
    pub(crate) images: Vec<(String, DiskSource)>,
    /// Its firmware, if that has a flash memory.
    pub(crate) flash: Option<PflashFirmware>,
    /// What else it needs.
    pub(crate) needs: StartNeeds,
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

/// What is read of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainXml {
    /// Its description.
    pub(crate) description: Option<String>,
    /// The rest.
    pub(crate) definition: Definition,
}

impl DomainXml {
    /// Reads a `domain`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub(crate) fn read(xml: &str) -> Result<Self, XmlError> {
        let document = parse(xml)?;
        let root = root_named(&document, "domain")?;
        Ok(Self {
            description: text(root, "description"),
            definition: definition(root),
        })
    }
}

/// What is read of a volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeXml {
    /// Its name within the pool.
    pub(crate) name: String,
    /// Its own path.
    pub(crate) path: PathBuf,
    /// The path of the image below it.
    pub(crate) backing: Option<PathBuf>,
}

impl VolumeXml {
    /// Reads a `volume`.
    ///
    /// # Errors
    /// [`XmlError`].
    pub(crate) fn read(xml: &str) -> Result<Self, XmlError> {
        let document = parse(xml)?;
        let root = root_named(&document, "volume")?;
        let path = |of: &str| child(root, of).and_then(|node| text(node, "path"));
        Ok(Self {
            name: text(root, "name").ok_or(XmlError::Missing("name"))?,
            path: path("target").ok_or(XmlError::Missing("path"))?.into(),
            backing: path("backingStore").map(PathBuf::from),
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

fn parse(xml: &str) -> Result<Document<'_>, XmlError> {
    let options = ParsingOptions {
        nodes_limit: NODES_MAX,
        ..ParsingOptions::default()
    };
    Ok(Document::parse_with_options(xml, options)?)
}

fn root_named<'a, 'i>(
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
    of.children().find(|child| child.has_tag_name(name))
}

/// The text of a child, `None` when there is no such child or it is empty.
fn text(of: Node<'_, '_>, name: &str) -> Option<String> {
    let all: String = child(of, name)?
        .children()
        .filter_map(|child| child.text().filter(|_| child.is_text()))
        .collect();
    (!all.is_empty()).then_some(all)
}

fn definition(domain: Node<'_, '_>) -> Definition {
    let mut found = Definition {
        disks: Vec::new(),
        images: Vec::new(),
        flash: flash(domain),
        needs: needs(domain),
    };
    for node in devices_named(domain, "disk") {
        let target = child(node, "target")
            .and_then(|target| target.attribute("dev"))
            .unwrap_or_default()
            .to_owned();
        let place = child(node, "source").map_or_else(Vec::new, source);
        let images = std::iter::once(place.clone()).chain(backing_chain(node).unwrap_or_default());
        found
            .images
            .extend(images.map(|image| (target.clone(), image)));
        let is_disk = matches!(node.attribute("device"), None | Some("disk" | "lun"));
        if is_disk && child(node, "readonly").is_none() {
            found.disks.push(disk(node, target, place));
        } else if let (Some(path), true) = (path_of(&place), is_needed(node)) {
            found.needs.files.push((target, path.to_owned()));
        }
    }
    found.disks.sort();
    found
}

fn disk(node: Node<'_, '_>, target: String, source: DiskSource) -> Disk {
    let driver = child(node, "driver");
    Disk {
        target,
        source,
        policy: match node.attribute("snapshot") {
            Some("no") => SnapshotPolicy::Excluded,
            Some("external" | "manual") => SnapshotPolicy::External,
            Some(_) | None => SnapshotPolicy::Internal,
        },
        format: driver
            .and_then(|driver| driver.attribute("type"))
            .map(str::to_owned),
        is_transient: child(node, "transient").is_some(),
        backing: backing_chain(node),
    }
}

/// The images below one, nearest first; `None` where the definition does not say how it goes on.
fn backing_chain(image: Node<'_, '_>) -> Option<Vec<DiskSource>> {
    let mut found = Vec::new();
    let mut at = child(image, "backingStore")?;
    while let Some(next) = child(at, "source") {
        found.push(source(next));
        at = child(at, "backingStore")?;
    }
    Some(found)
}

/// Whether the VM does not start without this medium.
fn is_needed(medium: Node<'_, '_>) -> bool {
    let policy = child(medium, "source").and_then(|source| source.attribute("startupPolicy"));
    !matches!(policy, Some("optional" | "requisite"))
}

fn flash(domain: Node<'_, '_>) -> Option<PflashFirmware> {
    let os = child(domain, "os")?;
    let loader = child(os, "loader").and_then(|loader| loader.attribute("type"));
    let has_flash = os.attribute("firmware") == Some("efi") || loader == Some("pflash");
    let variables = child(os, "nvram").and_then(|nvram| nvram.attribute("format"));
    has_flash.then(|| PflashFirmware {
        variables_format: variables.map(str::to_owned),
    })
}

fn needs(domain: Node<'_, '_>) -> StartNeeds {
    let mut needs = StartNeeds {
        memory_kib: memory_kib(domain),
        ..StartNeeds::default()
    };
    for name in ["kernel", "initrd", "dtb", "loader"] {
        let path = child(domain, "os").and_then(|os| text(os, name));
        if let Some(path) = path.filter(|path| path.starts_with('/')) {
            needs.files.push((name.to_owned(), path.into()));
        }
    }
    for node in devices_named(domain, "interface") {
        let named = |attribute: &str| {
            let source = child(node, "source")?;
            source.attribute(attribute).map(str::to_owned)
        };
        match node.attribute("type") {
            Some("network") => needs.networks.extend(named("network")),
            Some("bridge") => needs.links.extend(named("bridge")),
            Some("direct") => needs.links.extend(named("dev")),
            Some(_) | None => {}
        }
    }
    for node in devices_named(domain, "hostdev") {
        let source = child(node, "source").map(|source| canonical_text(source));
        needs.devices.extend(source);
    }
    needs.devices.sort();
    needs
}

/// The memory that a definition asks for.
fn memory_kib(domain: Node<'_, '_>) -> u64 {
    let Some(memory) = child(domain, "memory") else {
        return 0;
    };
    let number: u64 = memory
        .text()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    // libvirt itself always writes KiB.
    match memory.attribute("unit") {
        Some("b" | "bytes") => number / 1024,
        Some("MiB" | "M") => number.saturating_mul(1024),
        Some("GiB" | "G") => number.saturating_mul(1024 * 1024),
        Some(_) | None => number,
    }
}

/// Every element below a node, with its attributes, as a text that is equal for equal elements.
fn canonical_text(node: Node<'_, '_>) -> String {
    let mut out = String::new();
    for element in node.descendants().filter(Node::is_element) {
        out.push_str(element.tag_name().name());
        let mut attributes: Vec<_> = element
            .attributes()
            .map(|attribute| format!(" {}={}", attribute.name(), attribute.value()))
            .collect();
        attributes.sort();
        out.extend(attributes);
        out.push(';');
    }
    out
}

/// The devices of one kind.
fn devices_named<'a, 'i>(
    domain: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    let devices = child(domain, "devices");
    devices
        .into_iter()
        .flat_map(|devices| devices.children())
        .filter(move |node| node.has_tag_name(name))
}

/// Where a disk is. `index` is a number of the running QEMU, `startupPolicy` and `slices` are no place.
fn source(node: Node<'_, '_>) -> DiskSource {
    let mut place: Vec<_> = node
        .attributes()
        .filter(|attribute| !matches!(attribute.name(), "index" | "startupPolicy"))
        .map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned()))
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
            assert_eq!(read.definition.flash.is_some(), expected, "{os}");
        }
        let variables = "<domain><os firmware='efi'><nvram format='qcow2'>/n</nvram></os></domain>";
        let flash = DomainXml::read(variables).unwrap().definition.flash;
        let format = flash.and_then(|flash| flash.variables_format);
        assert_eq!(format.as_deref(), Some("qcow2"), "the variables' format");
    }

    #[test]
    fn what_a_start_needs_is_read_and_what_it_can_do_without_is_not() {
        let xml = "<domain><memory unit='MiB'>64</memory><os><kernel>/k</kernel></os><devices>\
            <disk type='file' device='cdrom'><source file='/must'/><target dev='sda'/></disk>\
            <disk type='file' device='cdrom'><source file='/may' startupPolicy='optional'/>\
            <target dev='sdb'/></disk><disk device='cdrom'><target dev='sdc'/></disk>\
            <interface type='network'><source network='n'/></interface>\
            <interface type='bridge'><source bridge='br0'/></interface>\
            <interface type='direct'><source dev='eth0' mode='vepa'/></interface>\
            <interface type='user'/><hostdev><source><address bus='1' slot='2'/></source></hostdev>\
            <disk snapshot='no'><driver type='raw'/><source file='/o'/><backingStore type='file'>\
            <source file='/b'/><backingStore/></backingStore><target dev='vda'/><transient/></disk>\
            </devices></domain>";
        let read = DomainXml::read(xml).unwrap().definition;
        let files: Vec<_> = read
            .needs
            .files
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(files, ["kernel", "sda"], "files");
        assert_eq!(read.needs.networks, ["n"], "networks");
        assert_eq!(read.needs.links, ["br0", "eth0"], "devices of the host");
        assert_eq!(read.needs.devices.len(), 1, "{:?}", read.needs.devices);
        assert_eq!(read.needs.memory_kib, 65_536, "memory");
        let disk = read.disks.first().unwrap();
        assert_eq!(disk.policy, SnapshotPolicy::Excluded, "no snapshots");
        assert_eq!(disk.format.as_deref(), Some("raw"), "its format");
        assert!(disk.is_transient, "thrown away");
        let backing = disk.backing.as_ref().unwrap();
        assert_eq!(
            backing.first().and_then(path_of),
            Some(Path::new("/b")),
            "its base"
        );
    }

    #[test]
    fn a_volume_and_the_image_below_it_are_read() {
        let xml = "<volume><name>c</name><target><path>/p/c</path></target>\
            <backingStore><path>/p/b</path></backingStore></volume>";
        let read = VolumeXml::read(xml).unwrap();
        assert_eq!(read.path, Path::new("/p/c"), "itself");
        assert_eq!(read.backing.as_deref(), Some(Path::new("/p/b")), "below it");
    }
}
