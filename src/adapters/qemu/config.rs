//! Where the monitors and images of VMs are found.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::VmId;

/// What stands for the id of the VM in a path.
pub(super) const PLACEHOLDER: &str = "{vm}";

/// Where the monitors and images of VMs are found. VMs that differ in more than their id go on backends of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The monitor socket of a running VM; `{vm}` stands for its id.
    pub qmp: String,
    /// Node names of the disks, the one that holds the VM's memory first. Empty: every writable qcow2 disk.
    pub disks: Vec<String>,
    /// The images of the same disks in the same order, for when the VM is stopped; `{vm}` stands for its id.
    /// Empty: the VM must run.
    pub images: Vec<String>,
    /// The program that works on the images of stopped VMs.
    pub qemu_img: PathBuf,
    /// The program that marks those images.
    pub qemu_io: PathBuf,
    /// A monitor that has not greeted by then is held by another client.
    pub greeting_timeout: Duration,
    /// Time for all the work of one operation on the images of a stopped VM.
    pub image_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qmp: String::new(),
            disks: Vec::new(),
            images: Vec::new(),
            qemu_img: PathBuf::from("qemu-img"),
            qemu_io: PathBuf::from("qemu-io"),
            greeting_timeout: Duration::from_secs(2),
            image_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// Where one VM is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VmPaths {
    /// Its monitor socket.
    pub(super) qmp: PathBuf,
    /// Node names of its disks; empty: find out.
    pub(super) disks: Vec<String>,
    /// Its images; empty: it must run.
    pub(super) images: Vec<PathBuf>,
    /// Where each of these images lies.
    pub(super) homes: Vec<ImageLocation>,
}

/// Where an image lies according to its template: evidence of whether its storage is there and whether the VM exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageLocation {
    /// The path is the same for every VM, so the VM exists by configuration.
    Fixed,
    /// This folder holds the images of all VMs.
    Shared(PathBuf),
    /// Below the first folder, which is the same for all VMs, lies the second, which is this VM's own.
    Own(PathBuf, PathBuf),
}

impl ImageLocation {
    fn of(template: &str, id: &str) -> Self {
        let mut shared = PathBuf::new();
        let mut parts = Path::new(template).components();
        for part in parts.by_ref() {
            let text = part.as_os_str().to_string_lossy();
            if !text.contains(PLACEHOLDER) {
                shared.push(part);
                continue;
            }
            let own = shared.join(text.replace(PLACEHOLDER, id));
            return match parts.next() {
                Some(_below) => Self::Own(shared, own),
                None => Self::Shared(shared),
            };
        }
        Self::Fixed
    }
}

impl Config {
    /// Where the VM is found; `None` when its id would lead out of the folder.
    pub(super) fn place(&self, vm: &VmId) -> Option<VmPaths> {
        let id = vm.as_str();
        if id.contains('/') {
            return None;
        }
        let path = |template: &String| PathBuf::from(template.replace(PLACEHOLDER, id));
        Some(VmPaths {
            qmp: path(&self.qmp),
            disks: self.disks.clone(),
            images: self.images.iter().map(path).collect(),
            homes: self
                .images
                .iter()
                .map(|image| ImageLocation::of(image, id))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_found_by_its_id_and_never_outside() {
        let config = Config {
            qmp: "/run/{vm}/qmp".to_owned(),
            images: vec!["/img/{vm}.qcow2".to_owned()],
            ..Config::default()
        };
        let rows = [
            ("plain", "web01", Some("/run/web01/qmp")),
            ("dots inside", "web..01", Some("/run/web..01/qmp")),
            ("slash", "web/../../etc", None),
        ];
        for (name, id, expected) in rows {
            let place = config.place(&VmId::new(id).unwrap());
            let found = place.map(|place| place.qmp);
            assert_eq!(found, expected.map(PathBuf::from), "{name}");
        }
        let images = config.place(&VmId::new("web7").unwrap()).unwrap().images;
        assert_eq!(images, [PathBuf::from("/img/web7.qcow2")], "images");
    }

    #[test]
    fn the_folders_of_an_image_follow_from_its_template() {
        let shared = |path: &str| ImageLocation::Shared(PathBuf::from(path));
        let own =
            |path: &str, below: &str| ImageLocation::Own(PathBuf::from(path), PathBuf::from(below));
        let rows = [
            ("/srv/vms/{vm}.qcow2", shared("/srv/vms")),
            ("/srv/{vm}/root.qcow2", own("/srv", "/srv/web")),
            ("/srv/vm-{vm}/a/b.qcow2", own("/srv", "/srv/vm-web")),
            ("/srv/db/root.qcow2", ImageLocation::Fixed),
        ];
        for (template, expected) in rows {
            assert_eq!(ImageLocation::of(template, "web"), expected, "{template}");
        }
    }
}
