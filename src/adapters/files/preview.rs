//! What a restore or a delete would do, found by the checks of the change itself. Changes nothing and keeps no lock.

use std::time::Instant;

use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::files::dir_fd::Dir;
use crate::adapters::files::edit;
use crate::adapters::files::error::Problem;
use crate::adapters::files::error::io_error;
use crate::adapters::files::journal;
use crate::adapters::files::layout;
use crate::adapters::files::layout::Layout;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::restore;
use crate::adapters::files::restore::DiskLocking;
use crate::model::Backup;
use crate::model::Change;
use crate::model::Intent;
use crate::model::Page;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::RestoreOptions;
use crate::model::RunState;
use crate::model::SpaceNeeds;
use crate::model::Verb;
use crate::model::VmId;
use crate::model::limits;
use crate::public_text;

/// The preview of a change. `is_reserved`: whether another change of the VM is running in this process.
pub(super) fn preview(
    layout: &Layout,
    intent: &Intent,
    is_reserved: bool,
    now: Instant,
) -> Result<Preview, Problem> {
    match intent.verb() {
        Verb::Restore | Verb::Delete => {}
        Verb::Create | Verb::Update => {
            let fault = no_preview().fault;
            return Err(Problem::new(fault.kind, fault.text));
        }
    }
    let target = &intent.target;
    let vm = layout.vm_dir(&target.vm)?;
    let vm_backups = layout.vm_backups(&target.vm)?;
    let mut checks = Checks::all();
    if is_reserved {
        // That change holds the locks, too.
        checks.record(Err::<(), _>(layout::vm_busy()))?;
    } else {
        for parent in [&layout.root, &layout.backups] {
            checks.record(layout::probe_lock(parent, &target.vm))?;
        }
    }
    let restore = match &intent.change {
        Change::Restore(options) => {
            check_restore(&vm, vm_backups.as_ref(), intent, options, &mut checks).map(Some)?
        }
        Change::Create(_) | Change::Update(_) | Change::Delete => {
            match &vm_backups {
                Some(vm_backups) => edit::check_delete(vm_backups, intent, &mut checks)?,
                None => drop(checks.record(Err::<(), _>(layout::no_such_backup()))?),
            }
            None
        }
    };
    let found = layout.read_backup(target, now);
    let is_meant = |backup: &Backup| intent.identity.as_ref() == Some(&backup.identity);
    let Some(backup) = found.ok().filter(is_meant) else {
        // The checks have found the same, or what a change would have stopped at before.
        return Err(match checks.first_refusal() {
            Some(first) => Problem::new(first.kind, first.text.clone()),
            None => layout::no_such_backup(),
        });
    };
    let all = all_backups(layout, &target.vm)?;
    let mut preview = Preview::new(layout.describe_vm(&target.vm)?, backup).with_newer(&all);
    if let Some(restore) = restore {
        describe_restore(&vm, restore, &mut preview)?;
    }
    preview.refused = checks.into_refused();
    Ok(preview)
}

/// What the checks of a restore have found.
struct RestoreFindings {
    is_half_done: bool,
    manifest: Option<Manifest>,
    vm_mark: Option<String>,
}

/// The checks of a restore in its order.
fn check_restore(
    vm: &Dir,
    vm_backups: Option<&Dir>,
    intent: &Intent,
    options: &RestoreOptions,
    checks: &mut Checks,
) -> Result<RestoreFindings, Problem> {
    let is_half_done = checks.record(journal::is_half_done(vm))? == Some(true);
    checks.record(restore::check_options(options))?;
    let vm_mark = checks.record(restore::fingerprint(vm))?;
    let found = match vm_backups {
        Some(vm_backups) => restore::check_backup(vm_backups, intent, checks)?,
        None => checks.record(Err(layout::no_such_backup()))?,
    };
    let manifest = found.map(|(_, manifest)| manifest);
    restore::check_disks(vm, manifest.as_ref(), DiskLocking::Probe, checks)?;
    Ok(RestoreFindings {
        is_half_done,
        manifest,
        vm_mark,
    })
}

/// What a restore would do, whether or not something refuses it.
fn describe_restore(
    vm: &Dir,
    restore: RestoreFindings,
    preview: &mut Preview,
) -> Result<(), Problem> {
    let manifest = restore.manifest.as_ref();
    if restore.is_half_done {
        preview.warnings.push(public_text!(
            "An earlier restore of the VM ended half-way, so its disks are of two times. This restore replaces all of them."
        ));
    }
    preview.overwrites = list_overwritten(vm, manifest)?;
    preview.vm_mark = restore.vm_mark;
    // A disk in use refuses the restore, and nothing starts the VM afterwards.
    preview.after = Some(RunState::Stopped);
    if let Some(manifest) = manifest {
        preview.needs = Some(space_needs(vm, manifest)?);
        warn_of_space(preview);
        warn_of_missing_disks(manifest, preview);
    }
    Ok(())
}

/// The disks that the backup replaces, with the lengths that they have now, in use or not.
fn list_overwritten(vm: &Dir, manifest: Option<&Manifest>) -> Result<Vec<PreviewDisk>, Problem> {
    let mut found = Vec::new();
    for disk in manifest.iter().flat_map(|manifest| &manifest.disks) {
        match vm.stat(disk.name.as_str()) {
            Ok(stat) => found.push(PreviewDisk {
                disk: disk.name.as_str().to_owned(),
                size: u64::try_from(stat.st_size).ok(),
            }),
            Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(io_error("looking at a disk image")(errno)),
        }
    }
    Ok(found)
}

/// Old and new images are there side by side until the swap. Holes are not written.
fn space_needs(vm: &Dir, manifest: &Manifest) -> Result<SpaceNeeds, Problem> {
    let data = manifest.disks.iter().map(|disk| disk.data);
    let free = vm.free_bytes();
    Ok(SpaceNeeds {
        bytes: Some(data.fold(0, u64::saturating_add)),
        free: Some(free.map_err(io_error("looking at the free space"))?),
    })
}

/// Not a refusal: a file system that compresses may have the room all the same.
fn warn_of_space(preview: &mut Preview) {
    let needs = preview.needs.unwrap_or_default();
    if let (Some(bytes), Some(free)) = (needs.bytes, needs.free)
        && bytes > free
    {
        preview.warnings.push(public_text!(
            "The restore writes {bytes} bytes beside the present disks, and the storage has {free} bytes free. Free some space first."
        ));
    }
}

fn warn_of_missing_disks(manifest: &Manifest, preview: &mut Preview) {
    let is_there = |name: &str| preview.overwrites.iter().any(|disk| disk.disk == name);
    let missing = manifest.disks.iter().map(|disk| disk.name.as_str());
    let missing: Vec<&str> = missing.filter(|name| !is_there(name)).collect();
    for name in missing {
        let text = public_text!("The VM has no disk `{name}` now, and the restore creates it.");
        preview.warnings.push(text);
    }
}

fn all_backups(layout: &Layout, vm: &VmId) -> Result<Vec<Backup>, Problem> {
    let mut page = Page {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let mut all = Vec::new();
    loop {
        let found = layout.list_backups(vm, &page)?;
        page.after = found.backups.last().map(|backup| backup.id.clone());
        all.extend(found.backups);
        if !found.more || page.after.is_none() {
            return Ok(all);
        }
    }
}
