//! What an operator does to the folders while no gateway uses them: prepares new ones, and gives a renamed VM its backups back.

use rustix::io::Errno;

use crate::adapters::files::Config;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::error::FilesError;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::folder_marks::UnmarkedFolders;
use crate::adapters::files::layout;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::layout::OpenError;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::model::FaultKind;
use crate::model::VmId;

/// Why an operator's command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folders can never be used so.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Something about the folders as they are; what the system said follows.
    #[error("{0}")]
    Refused(String),
}

impl From<Problem> for FolderError {
    fn from(problem: Problem) -> Self {
        Self::Refused(match problem {
            Problem::Refused { fault, private, .. } | Problem::HalfDone { fault, private } => {
                if private.is_empty() {
                    fault.text.to_string()
                } else {
                    format!("{} ({private})", fault.text)
                }
            }
            Problem::Cancelled => "it was cancelled".to_owned(),
            Problem::Uncertain(private) => format!("the storage failed: {private}"),
        })
    }
}

impl From<OpenError> for FolderError {
    fn from(closed: OpenError) -> Self {
        match closed {
            OpenError::Unavailable(problem) => problem.into(),
            OpenError::Fatal(error) => error.into(),
        }
    }
}

/// What was adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Backups that were of the other name and are of the new one now.
    pub changed: usize,
    /// Backups that were of the new name already.
    pub kept: usize,
}

/// Makes the folder of the backups if it is missing, and marks both folders as those of a gateway.
///
/// # Errors
/// [`FolderError`] when a gateway uses them, or when they hold other things than `take` allows.
pub fn prepare_folders(config: &Config, take: UnmarkedFolders) -> Result<(), FolderError> {
    match rustix::fs::mkdir(&config.backups, rustix::fs::Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(io_error("making the folder of the backups")(errno).into()),
    }
    Layout::open(config, take, &Failpoints::default())?;
    Ok(())
}

fn folder_error(text: String) -> FolderError {
    FolderError::Refused(text)
}

/// Gives the backups of a VM that was renamed to its new name. Doing it again does what is left.
///
/// # Errors
/// [`FolderError`] when a gateway uses the folders, or when two VMs might be mixed up; nothing was changed then.
pub fn adopt(config: &Config, from: &VmId, to: &VmId) -> Result<Adopted, FolderError> {
    let layout = Layout::open(config, UnmarkedFolders::Used, &Failpoints::default())?;
    match layout.vm_dir(from) {
        Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::NoSuchVm => {}
        Err(problem) => return Err(problem.into()),
        Ok(_there) => {
            return Err(folder_error(format!(
                "there is still a VM `{from}`: its backups stay with it. Rename its folder in `root` to `{to}` first."
            )));
        }
    }
    let locked = layout.lock_vm(to).map_err(|problem| match problem {
        Problem::Refused { fault, .. } if fault.kind == FaultKind::NoSuchVm => {
            folder_error(format!("there is no VM `{to}` in `root`"))
        }
        other @ (Problem::Refused { .. }
        | Problem::HalfDone { .. }
        | Problem::Cancelled
        | Problem::Uncertain(_)) => other.into(),
    })?;
    let vm_backups = match (layout.vm_backups(from)?, locked.vm_backups) {
        (None, None) => {
            return Err(folder_error(format!(
                "neither `{from}` nor `{to}` has backups"
            )));
        }
        (None, Some(vm_backups)) => vm_backups,
        (Some(vm_backups), None) => {
            let doing = io_error("renaming the folder of a VM's backups");
            check_manifests(&vm_backups, from, to)?;
            let (name, old) = (to.as_str(), from.as_str());
            let renamed = layout.backups.rename_new_from(name, &layout.backups, old);
            renamed.map_err(&doing).map_err(FolderError::from)?;
            layout.backups.sync().map_err(doing)?;
            vm_backups
        }
        (Some(_), Some(_)) => {
            return Err(folder_error(format!(
                "both `{from}` and `{to}` have a folder in `backups`: move the backups of `{from}` into that of `{to}`, or the empty one away, and ask again"
            )));
        }
    };
    check_manifests(&vm_backups, from, to)?;
    let mut adopted = Adopted::default();
    for (dir, manifest) in read_manifests(&vm_backups)? {
        if manifest.vm() == to {
            adopted.kept = adopted.kept.saturating_add(1);
            continue;
        }
        let bytes = manifest.adopted_by(to).to_bytes()?;
        dir.replace(MANIFEST, &bytes)?;
        adopted.changed = adopted.changed.saturating_add(1);
    }
    Ok(adopted)
}

/// Refuses backups of a third VM, and two of one name.
fn check_manifests(vm_backups: &Dir, from: &VmId, to: &VmId) -> Result<(), FolderError> {
    let mut names = Vec::new();
    for (_, manifest) in read_manifests(vm_backups)? {
        let vm = manifest.vm();
        if vm != from && vm != to {
            return Err(folder_error(format!(
                "the backup `{}` is of the VM `{vm}`, neither of `{from}` nor of `{to}`; nothing was changed",
                manifest.name
            )));
        }
        if names.contains(&manifest.name) {
            return Err(folder_error(format!(
                "two backups have the name `{}`; nothing was changed. Rename one before its VM is renamed",
                manifest.name
            )));
        }
        names.push(manifest.name);
    }
    Ok(())
}

/// Those that can be read; the others stay as they are.
fn read_manifests(vm_backups: &Dir) -> Result<Vec<(Dir, Manifest)>, Problem> {
    let mut found = Vec::new();
    for id in layout::backup_ids(vm_backups)? {
        if let Some(dir) = layout::backup_dir(vm_backups, &id)?
            && let Some(manifest) = Manifest::salvage(&dir)
        {
            found.push((dir, manifest));
        }
    }
    Ok(found)
}
