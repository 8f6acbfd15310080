//! Which VMs there are: the ids that lead to a monitor socket or an image, by the templates of the configuration.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use crate::adapters::adapter::AdapterError;
use crate::adapters::qemu::config::Config;
use crate::adapters::qemu::config::PLACEHOLDER;
use crate::model::RunState;
use crate::model::Vm;
use crate::model::VmId;
use crate::public_text;

/// A template whose first segment with `{vm}` holds it once: names in a folder then give the ids.
#[derive(Debug, PartialEq, Eq)]
struct ListableTemplate {
    folder: PathBuf,
    before: String,
    after: String,
}

impl ListableTemplate {
    fn new(template: &str) -> Option<Self> {
        let mut folder = PathBuf::new();
        for part in Path::new(template).components() {
            let text = part.as_os_str().to_str()?;
            match text.split_once(PLACEHOLDER) {
                // Twice in one segment: a name does not say which part of it is the id.
                Some((_, after)) if after.contains(PLACEHOLDER) => return None,
                Some((before, after)) if matches!(part, Component::Normal(_)) => {
                    return Some(Self {
                        folder,
                        before: before.to_owned(),
                        after: after.to_owned(),
                    });
                }
                Some(_) | None => folder.push(part),
            }
        }
        None
    }

    /// The id that this name in the folder gives.
    fn id_of(&self, name: &str) -> Option<VmId> {
        let rest = name.strip_prefix(self.before.as_str())?;
        VmId::new(rest.strip_suffix(self.after.as_str())?).ok()
    }

    /// Adds the ids of the folder, and says whether the folder holds anything.
    fn add_ids(&self, ids: &mut BTreeSet<VmId>) -> io::Result<bool> {
        let mut has_entries = false;
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            has_entries |= name != "lost+found";
            ids.extend(name.to_str().and_then(|name| self.id_of(name)));
        }
        Ok(has_entries)
    }
}

/// Whether ids can be found by the templates at all.
pub(super) fn can_list(config: &Config) -> bool {
    let mut templates = config.images.iter().chain([&config.qmp]);
    templates.any(|template| ListableTemplate::new(template).is_some())
}

/// The ids of all VMs, running or not. Blocks.
///
/// # Errors
/// When a folder of images, or the folder of the sockets where there are no images, cannot be read; and when no VM is found and a
/// folder of images is empty, as the mount point of storage that is not mounted.
pub(super) fn find_ids(config: &Config) -> Result<Vec<VmId>, AdapterError> {
    let mut ids = BTreeSet::new();
    let mut is_folder_empty = false;
    for template in config
        .images
        .iter()
        .filter_map(|image| ListableTemplate::new(image))
    {
        let found = template.add_ids(&mut ids);
        is_folder_empty |= !found.map_err(|error| unreadable(&template.folder, &error))?;
    }
    if let Some(template) = ListableTemplate::new(&config.qmp) {
        match template.add_ids(&mut ids) {
            Ok(_) => {}
            // The folder of the sockets is made by what starts VMs: without it none runs, and the others have images.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !config.images.is_empty() => {}
            Err(error) => return Err(unreadable(&template.folder, &error)),
        }
    }
    if ids.is_empty() && is_folder_empty {
        let error = io::Error::other("empty");
        return Err(unreadable(Path::new("the folder of the images"), &error));
    }
    Ok(ids.into_iter().filter(|id| exists(config, id)).collect())
}

/// Whether a monitor socket or every image of that id is there: `a-b.qcow2` may be the second image of `a` and the first of no VM.
fn exists(config: &Config, id: &VmId) -> bool {
    let is_there = |template: &String| {
        let path = template.replace(PLACEHOLDER, id.as_str());
        Path::new(&path).exists()
    };
    let has_socket = config.qmp.contains(PLACEHOLDER) && is_there(&config.qmp);
    has_socket || (!config.images.is_empty() && config.images.iter().all(is_there))
}

/// The VM as far as its files show it: the state of one whose monitor socket is there is known to its QEMU alone, which may be busy.
pub(super) fn describe(config: &Config, id: &VmId) -> Vm {
    let socket = config.qmp.replace(PLACEHOLDER, id.as_str());
    let is_off = !config.images.is_empty() && !Path::new(&socket).exists();
    Vm {
        id: id.clone(),
        name: id.as_str().to_owned(),
        description: None,
        run_state: is_off.then_some(RunState::Stopped),
    }
}

fn unreadable(folder: &Path, error: &io::Error) -> AdapterError {
    AdapterError::unavailable(public_text!(
        "A directory of the VMs is missing, empty or cannot be read. Mount its storage, or give the gateway's user the permission to \
         read it."
    ))
    .because(format_args!("{}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::too_many_lines, reason = "it is a table")]
    #[test]
    fn ids_are_found_by_what_the_templates_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for dir in ["img", "run", "img/web"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        for file in [
            "img/vm-a.qcow2",
            "img/vm-.qcow2",
            "img/vm-c.qcow2",
            "img/vm-c-b.qcow2",
            "img/other.txt",
            "img/web/root.qcow2",
            "run/b.qmp",
            "run/a.qmp",
        ] {
            fs::write(root.join(file), "").unwrap();
        }
        let at = |text: &str| format!("{}/{text}", root.display());
        /// Name of the row, qmp, images, and the ids; `None` for an error.
        type Row<'a> = (&'a str, &'a str, &'a [&'a str], Option<&'a [&'a str]>);
        let rows: [Row<'_>; 9] = [
            ("sockets alone", "run/{vm}.qmp", &[], Some(&["a", "b"])),
            (
                "images",
                "run/{vm}.qmp",
                &["img/vm-{vm}.qcow2"],
                Some(&["a", "b", "c", "c-b"]),
            ),
            (
                "two images",
                "none/{vm}",
                &["img/vm-{vm}.qcow2", "img/vm-{vm}-b.qcow2"],
                Some(&["c"]),
            ),
            (
                "own folders",
                "none/{vm}",
                &["img/{vm}/root.qcow2"],
                Some(&["web"]),
            ),
            (
                "one image for all",
                "run/{vm}.qmp",
                &["img/other.txt"],
                Some(&["a", "b"]),
            ),
            ("no folder of sockets", "none/{vm}", &[], None),
            ("no folder of images", "run/{vm}.qmp", &["none/{vm}"], None),
            ("nothing there", "none/{vm}", &["img/web/{vm}/x"], Some(&[])),
            (
                "twice in a name",
                "run/{vm}-{vm}.qmp",
                &["img/vm-{vm}.qcow2"],
                Some(&["a", "c", "c-b"]),
            ),
        ];
        for (name, qmp, images, expected) in rows {
            let config = Config {
                qmp: at(qmp),
                images: images.iter().map(|image| at(image)).collect(),
                ..Config::default()
            };
            let found = find_ids(&config).ok();
            let found = found
                .as_ref()
                .map(|ids| ids.iter().map(VmId::as_str).collect::<Vec<_>>());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
        fs::create_dir(root.join("empty")).unwrap();
        let unmounted = Config {
            qmp: at("run2/{vm}"),
            images: vec![at("empty/{vm}.qcow2")],
            ..Config::default()
        };
        assert!(
            find_ids(&unmounted).is_err(),
            "not mounted is no empty list"
        );
    }

    #[test]
    fn templates_without_an_id_list_nothing() {
        for (qmp, expected) in [
            ("/run/{vm}.qmp", true),
            ("/run/qmp", false),
            ("/run/{vm}{vm}", false),
        ] {
            let config = Config {
                qmp: qmp.to_owned(),
                ..Config::default()
            };
            assert_eq!(can_list(&config), expected, "{qmp}");
        }
    }
}
