//! Makes a backup: copied into a hidden directory, made to last, then shown by one rename.

use std::fs::File;
use std::sync::Arc;

use crate::adapters::files::copy;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::dir_fd::is_visible;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::file_stamp::FileStamp;
use crate::adapters::files::image_lock::ImageUse;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::layout;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::layout::UNFINISHED;
use crate::adapters::files::loop_devices;
use crate::adapters::files::manifest::BackupDisk;
use crate::adapters::files::manifest::DISKS;
use crate::adapters::files::manifest::DiskName;
use crate::adapters::files::manifest::MANIFEST;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::preflight;
use crate::adapters::files::request::Request;
use crate::adapters::files::request::StartOutcome;
use crate::model::BackupKind;
use crate::model::FaultKind;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::Timestamp;
use crate::public_text;

struct Source {
    name: DiskName,
    file: File,
    before: FileStamp,
}

impl Source {
    fn open(vm: &Dir, name: DiskName) -> Result<Self, Problem> {
        let doing = io_error("looking at a disk image");
        loop_devices::refuse_attached(vm, &name, ImageUse::Read)?;
        let file = layout::lock_disk(vm, &name, ImageUse::Read)?;
        // What a program wrote through a memory map before is written back here; what it writes later changes the times.
        rustix::fs::fdatasync(&file).map_err(io_error("writing back a disk image"))?;
        let before = FileStamp::of_file(&file).map_err(doing)?;
        Ok(Self { name, file, before })
    }

    /// Refuses what was written to, or replaced under its name, since it was opened.
    fn refuse_changed(&self, vm: &Dir) -> Result<(), Problem> {
        let doing = io_error("looking at a disk image");
        let opened = FileStamp::of_file(&self.file).map_err(&doing)?;
        let in_place = FileStamp::of_name(vm, &self.name).map_err(&doing)?;
        if opened == self.before && in_place == Some(self.before) {
            return Ok(());
        }
        let text = public_text!(
            "The disk `{}` was changed or replaced while it was copied, so no backup was made. Shut the VM down, then try again.",
            self.name.as_str()
        );
        Err(Problem::new(FaultKind::Busy, text))
    }
}

/// What the find of a create answers: whether this very request made it.
pub(super) fn is_done(layout: &Layout, request: &Request) -> Result<bool, Problem> {
    let target = &request.intent.target;
    let Some(vm_backups) = layout.vm_backups(&target.vm)? else {
        return Ok(false);
    };
    match layout::backup_dir(&vm_backups, &target.backup)? {
        Some(dir) if Manifest::read(&dir, target)?.made_by == request.durable_id => {
            // The process that renamed it may have been killed before this sync.
            vm_backups
                .sync()
                .map_err(io_error("syncing the backups of a VM"))?;
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}

/// Checks all that can be checked, and takes the locks of the disks.
pub(super) fn start(
    layout: &Arc<Layout>,
    vm: Dir,
    request: &Request,
    new: &NewBackup,
    now: Timestamp,
) -> Result<StartOutcome, Problem> {
    let target = &request.intent.target;
    if new.kind.is_some_and(|kind| kind != BackupKind::Full) {
        let text =
            public_text!("This backend makes full backups only. Omit the kind, or request `full`.");
        return Err(Problem::new(FaultKind::Unsupported, text));
    }
    if !is_visible(target.backup.as_str()) {
        let text = public_text!(
            "The id of the backup is not usable as a file name. Choose another name for the backup."
        );
        return Err(Problem::new(FaultKind::Invalid, text));
    }
    let vm_backups = ensure_vm_backups(layout, target)?;
    if layout::backup_dir(&vm_backups, &target.backup)?.is_some() {
        if is_done(layout, request)? {
            return Ok(StartOutcome::Done);
        }
        let text = public_text!(
            "The VM already has another backup with this id. Submit the request again to get a new id."
        );
        return Err(Problem::new(FaultKind::Conflict, text));
    }
    layout.refuse_duplicate_name(&vm_backups, target, &new.name)?;
    preflight::check_folder(&vm_backups, "The VM's backup directory")?;
    let sources = open_sources(&vm)?;
    let mut manifest = Manifest::new(target, new.name.clone(), now, random_token()?);
    manifest.made_by.clone_from(&request.durable_id);
    manifest.description.clone_from(&new.description);
    manifest.tags.clone_from(&new.tags);
    manifest.protected = new.protected;
    let (id, layout) = (target.backup.clone(), Arc::clone(layout));
    Ok(StartOutcome::Pending(Box::new(move |job| {
        let made = copy_disks(&vm_backups, &sources, manifest, job)
            .and_then(|()| refuse_changed(&vm, &sources))
            .and_then(|()| layout.refuse_replaced())
            .and_then(|()| publish(&vm_backups, id.as_str(), job));
        clean_up(&vm_backups, made).map(|()| Vec::new())
    })))
}

fn ensure_vm_backups(layout: &Layout, target: &Target) -> Result<Dir, Problem> {
    let vm_backups = match layout.vm_backups(&target.vm)? {
        Some(vm_backups) => vm_backups,
        None if layout.backups.stat(target.vm.as_str()).is_ok() => {
            let text = public_text!(
                "A file is in the place of the VM's backup directory. Ask the operator to move it away."
            );
            return Err(Problem::new(FaultKind::Conflict, text));
        }
        None => layout
            .backups
            .make_dir(target.vm.as_str())
            .map_err(io_error("making the directory of a VM's backups"))?,
    };
    // Also when it exists: the process that made it may have been killed before this sync.
    layout
        .backups
        .sync()
        .map_err(io_error("syncing the backups directory"))?;
    Ok(vm_backups)
}

fn open_sources(vm: &Dir) -> Result<Vec<Source>, Problem> {
    let mut sources = Vec::new();
    for name in layout::disk_names(vm)? {
        sources.push(Source::open(vm, name)?);
    }
    if sources.is_empty() {
        let text =
            public_text!("The VM has no disk images to back up. Add a disk image to the VM first.");
        return Err(Problem::new(FaultKind::Conflict, text));
    }
    Ok(sources)
}

fn random_token() -> Result<String, Problem> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        let text = public_text!(
            "The system's random number generator failed, so nothing was changed. Try again later."
        );
        Problem::new(FaultKind::BackendFailed, text).because(error)
    })?;
    Ok(u128::from_le_bytes(bytes).to_string())
}

fn copy_disks(
    vm_backups: &Dir,
    sources: &[Source],
    mut manifest: Manifest,
    job: &Job,
) -> Result<(), Problem> {
    let sizes = sources.iter().map(|source| source.before.size());
    job.expect(sizes.fold(0, u64::saturating_add));
    let doing = io_error("making a backup");
    let dir = vm_backups.make_dir(UNFINISHED).map_err(&doing)?;
    let disks = dir.make_dir(DISKS).map_err(&doing)?;
    let mut files = Vec::new();
    for source in sources {
        let size = source.before.size();
        let to = disks.create(source.name.as_str()).map_err(&doing)?;
        let digest = copy::copy_image(&source.file, &to, size, job, disks.failpoints())?;
        manifest.disks.push(BackupDisk {
            name: source.name.clone(),
            size,
            data: digest.data,
            checksum: digest.checksum,
        });
        files.push(to);
    }
    let text = manifest.to_bytes()?;
    files.push(dir.write_new(MANIFEST, &text).map_err(&doing)?);
    // All at once: what the first sync commits to the journal of the file system the others need not wait for.
    for file in &files {
        dir.sync_file(file).map_err(&doing)?;
    }
    disks.sync().map_err(&doing)?;
    dir.sync().map_err(&doing)
}

/// All disks again: one may have been written to while another one was copied.
fn refuse_changed(vm: &Dir, sources: &[Source]) -> Result<(), Problem> {
    let names = layout::disk_names(vm)?;
    if !names.iter().eq(sources.iter().map(|source| &source.name)) {
        let text = public_text!(
            "Disks of the VM were added or removed during the copy, so no backup was made. Shut the VM down, then try again."
        );
        return Err(Problem::new(FaultKind::Busy, text));
    }
    for source in sources {
        source.refuse_changed(vm)?;
        loop_devices::refuse_attached(vm, &source.name, ImageUse::Read)?;
    }
    Ok(())
}

fn publish(vm_backups: &Dir, id: &str, job: &Job) -> Result<(), Problem> {
    job.commit()?;
    let doing = io_error("showing a backup");
    vm_backups
        .rename_from(id, vm_backups, UNFINISHED)
        .map_err(&doing)?;
    vm_backups.sync().map_err(|errno| doing(errno).uncertain())
}

fn clean_up(vm_backups: &Dir, made: Result<(), Problem>) -> Result<(), Problem> {
    match &made {
        Ok(()) | Err(Problem::Uncertain(_) | Problem::HalfDone { .. }) => {}
        Err(Problem::Refused { .. } | Problem::Cancelled) => {
            if let Err(errno) = vm_backups.remove_tree(UNFINISHED) {
                tracing::warn!(%errno, "an unfinished backup stays until the next recovery");
            }
        }
    }
    made
}
