//! Operator commands on the directories while no gateway uses them: prepare new ones, and assign the backups of a renamed VM.

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
use crate::adapters::files::layout::LockedVm;
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
            Problem::Cancelled => "cancelled".to_owned(),
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

/// Assigns the backups of a renamed VM to its new name. A repeated call continues where an interrupted one stopped.
///
/// # Errors
/// [`FolderError`] when a gateway uses the directories, or when two VMs might be mixed up; nothing was changed then.
pub fn adopt_backups(config: &Config, from: &VmId, to: &VmId) -> Result<Adopted, FolderError> {
    adopt_with_failpoints(config, from, to, &Failpoints::default())
}

/// Each manifest is replaced atomically and names its VM, so whatever a killed process left, the next call finds every backup
/// under the old name or the new one.
pub(super) fn adopt_with_failpoints(
    config: &Config,
    from: &VmId,
    to: &VmId,
    failpoints: &Failpoints,
) -> Result<Adopted, FolderError> {
    let layout = Layout::open(config, UnmarkedFolders::Used, failpoints)?;
    refuse_existing_vm(&layout, from, to)?;
    // Held to the end: the gateway itself takes these locks for every change of the VM.
    let locked = lock_adopting_vm(&layout, to)?;
    let vm_backups = claim_backup_directory(&layout, from, to, locked.vm_backups.as_ref())?;
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

fn refuse_existing_vm(layout: &Layout, from: &VmId, to: &VmId) -> Result<(), FolderError> {
    match layout.vm_dir(from) {
        Err(Problem::Refused { fault, .. }) if fault.kind == FaultKind::NoSuchVm => Ok(()),
        Err(problem) => Err(problem.into()),
        Ok(_there) => Err(folder_error(format!(
            "the VM `{from}` still exists and keeps its backups; rename its directory in `root` to `{to}` first"
        ))),
    }
}

fn lock_adopting_vm(layout: &Layout, to: &VmId) -> Result<LockedVm, FolderError> {
    layout.lock_vm(to).map_err(|problem| match problem {
        Problem::Refused { fault, .. } if fault.kind == FaultKind::NoSuchVm => {
            folder_error(format!("no VM `{to}` in `root`"))
        }
        other @ (Problem::Refused { .. }
        | Problem::HalfDone { .. }
        | Problem::Cancelled
        | Problem::Uncertain(_)) => other.into(),
    })
}

/// The backup directory under the new name; renamed if it still has the old one.
fn claim_backup_directory(
    layout: &Layout,
    from: &VmId,
    to: &VmId,
    existing: Option<&Dir>,
) -> Result<Dir, FolderError> {
    match (layout.vm_backups(from)?, existing) {
        (None, None) => Err(folder_error(format!(
            "neither `{from}` nor `{to}` has backups"
        ))),
        // An earlier call was interrupted after the rename, or the operator renamed the directory.
        (None, Some(_)) => layout
            .vm_backups(to)?
            .ok_or_else(|| folder_error(format!("the backup directory of `{to}` disappeared"))),
        (Some(vm_backups), None) => {
            let doing = io_error("renaming a backup directory");
            // Before the rename, so that a refusal changes nothing.
            check_manifests(&vm_backups, from, to)?;
            let (name, old) = (to.as_str(), from.as_str());
            let renamed = layout.backups.rename_new_from(name, &layout.backups, old);
            renamed.map_err(&doing)?;
            layout.backups.sync().map_err(doing)?;
            Ok(vm_backups)
        }
        (Some(_), Some(_)) => Err(folder_error(format!(
            "both `{from}` and `{to}` have a backup directory; move the backups of `{from}` into the one of `{to}`, or remove the empty one, and run the command again"
        ))),
    }
}

/// Refuses backups of a third VM, and two of one name.
fn check_manifests(vm_backups: &Dir, from: &VmId, to: &VmId) -> Result<(), FolderError> {
    let mut names = Vec::new();
    for (_, manifest) in read_manifests(vm_backups)? {
        let vm = manifest.vm();
        if vm != from && vm != to {
            return Err(folder_error(format!(
                "the backup `{}` belongs to the VM `{vm}`, neither to `{from}` nor to `{to}`; nothing was changed",
                manifest.name
            )));
        }
        if names.contains(&manifest.name) {
            return Err(folder_error(format!(
                "duplicate backup name `{}`; nothing was changed. Rename one of the two before renaming the VM",
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
