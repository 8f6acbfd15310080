//! The definition of a VM, and of a volume of a storage pool, as libvirt writes them.

use std::path::Path;
use std::path::PathBuf;

use roxmltree::Node;

use crate::adapters::libvirt::xml::XmlError;
use crate::adapters::libvirt::xml::child;
use crate::adapters::libvirt::xml::parse;
use crate::adapters::libvirt::xml::root_named;
use crate::adapters::libvirt::xml::text;

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

/// The definition within a `domain` element.
pub(super) fn definition(domain: Node<'_, '_>) -> Definition {
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

#[cfg(test)]
mod tests {
    use super::*;

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
