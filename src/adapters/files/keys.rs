//! `[backend.files]`.

use std::fs;
use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::adapters::files::Config;
use crate::adapters::files::Files;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BackendFolder;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::schema::Flag;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::declare_table;
use crate::schema::overlap;
use crate::schema::required_text;

declare_table! { "files", false, "VMs that are folders of disk images.",
    ROOT: Text = "root", required_text("path"), Restart,
        "The folder with one folder of disk images per VM.", Commented = "\"/srv/vms\"";
    BACKUPS: Text = "backups", required_text("path"), Restart,
        "Where backups are kept; neither below `root` nor above it.", Commented = "\"/srv/backups\"";
    NEW_FOLDERS: Flag = "new_folders", Flag(false), Restart,
        "Whether an empty folder that no gateway has used before is used at the start. Otherwise it counts as not mounted, and `snapgate init` prepares it once.";
}

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, _context: &ReadContext<'_>) -> Option<Self> {
        let new_folders = section.read_flag(&NEW_FOLDERS);
        let (root_at, backups_at) = (section.read_text(&ROOT), section.read_text(&BACKUPS));
        let (root_at, backups_at) = (root_at?, backups_at?);
        let (root, backups) = (
            section.resolve_path(&root_at),
            section.resolve_path(&backups_at),
        );
        // A missing folder may appear later, with the file system it is on. A file in its place never becomes one.
        for (found, path) in [(&root_at, &root), (&backups_at, &backups)] {
            if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
                let what = format!("{} is not a folder", path.display());
                section.report_text(found, what, "correct the path");
            }
        }
        if let Some(overlap) = overlap(&backups, &root) {
            let what = format!("{} root", overlap.describe());
            section.report_text(&backups_at, what, "keep VMs and backups side by side");
        }
        Some(Self {
            root,
            backups,
            new_folders,
        })
    }

    fn is_local(&self) -> bool {
        true
    }

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        // What keeps the folders from being opened may pass, and other backends do not depend on it.
        Ok(Arc::new(Files::when_available(
            self.clone(),
            Arc::clone(&context.clock),
            context.tasks.clone(),
        )))
    }

    fn folders(&self) -> Vec<BackendFolder<'_>> {
        vec![
            BackendFolder {
                key: ROOT.name,
                path: &self.root,
                has_vm_folders: true,
            },
            BackendFolder {
                key: BACKUPS.name,
                path: &self.backups,
                has_vm_folders: false,
            },
        ]
    }
}
