//! Putting the disks of a VM back, all or none.
//!
//! The copies are made in a directory of the VM, checked against their checksums and put on stable storage before
//! anything is touched. Then a journal is written: from here on the restore will happen, by this process or by the next
//! one. Then each copy takes the place of its disk by one rename. At last a mark says which restore was the last.

use std::fs::File;
use std::io;

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::files::copy::copy;
use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::error::While;
use crate::adapters::files::error::refuse;
use crate::adapters::files::job::Job;
use crate::adapters::files::lock;
use crate::adapters::files::manifest::Manifest;
use crate::adapters::files::site::Site;
use crate::adapters::files::tree::Dir;
use crate::adapters::files::tree::is_plain_name;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::VmId;

/// The directory in which copies wait for their turn.
const STAGING: &str = ".snapgate-restore";
/// The journal, in the staging directory.
const JOURNAL: &str = "journal.json";
/// The mark of the last restore, in the directory of the VM.
const MARK: &str = ".snapgate-restored.json";
const BYTES_MAX: u64 = 1024 * 1024;

/// What is written once all copies are ready.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    key: String,
    disks: Vec<String>,
}

/// What is written once all copies are in place.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    key: String,
}

/// What can be seen to be wrong with a restore before it is begun. `true` when this very request was carried out last.
pub(super) fn check(site: &Site, intent: &Intent, key: &str) -> Outcome<bool> {
    let vm_dir = site.vm_dir(&intent.target.vm)?;
    if was_last(&vm_dir, key)? {
        return Ok(true);
    }
    let (_, manifest) = site.shown(intent)?;
    for disk in site.disks(&vm_dir)? {
        if !manifest.disks.iter().any(|it| it.name == disk) {
            return refuse(
                FaultKind::Conflict,
                "the VM has a disk that is not in the backup; move it away before the VM is restored",
            );
        }
        drop(locked(&vm_dir, &disk)?);
    }
    Ok(false)
}

/// Opens a live disk so that nobody else can use it.
fn locked(vm_dir: &Dir, disk: &str) -> Outcome<File> {
    let image = vm_dir.file(disk, true).during("opening a disk")?;
    if lock::exclude_all(&image).during("locking a disk")? {
        return Ok(image);
    }
    refuse(
        FaultKind::Busy,
        "a disk of the VM is in use; stop the VM before it is restored",
    )
}

/// Puts the disks back.
pub(super) fn restore(site: &Site, intent: &Intent, key: &str, job: &Job) -> Outcome<()> {
    let turn = site.turn(&intent.target.vm);
    let _turn = turn.wait();
    recover(site, &intent.target.vm)?;
    if check(site, intent, key)? {
        return Ok(());
    }
    let vm_dir = site.vm_dir(&intent.target.vm)?;
    let prepared = prepare(site, intent, key, job, &vm_dir);
    match prepared {
        Ok(guards) => {
            let result = finish(&vm_dir, Some(job));
            drop(guards);
            result
        }
        #[cfg(test)]
        Err(Failure::Killed) => Err(Failure::Killed),
        Err(failure) => {
            if let Err(error) = vm_dir.remove_all(STAGING) {
                tracing::warn!(%error, "the copies of a failed restore could not be removed");
            }
            Err(failure)
        }
    }
}

/// Makes and checks the copies and writes the journal. Returns what keeps others from the disks, old and new.
fn prepare(site: &Site, intent: &Intent, key: &str, job: &Job, vm_dir: &Dir) -> Outcome<Vec<File>> {
    let (backup, manifest) = site.shown(intent)?;
    let mut guards = Vec::new();
    for disk in site.disks(vm_dir)? {
        guards.push(locked(vm_dir, &disk)?);
    }
    for disk in &manifest.disks {
        job.expect(disk.bytes);
    }
    job.step()?;
    vm_dir
        .remove_all(STAGING)
        .during("removing what was left over")?;
    let staging = vm_dir
        .dir_or_new(STAGING)
        .during("making a place for copies")?;
    for disk in &manifest.disks {
        job.step()?;
        let from = backup
            .file(&disk.name, false)
            .during("opening a copy of a backup")?;
        let to = staging.new_file(&disk.name).during("making a copy")?;
        let (bytes, checksum) = copy(&from, &to, job)?;
        if bytes != disk.bytes || checksum != disk.checksum {
            return refuse(
                FaultKind::Damaged,
                "the backup is damaged: a disk does not match its checksum; nothing was changed",
            );
        }
        like(vm_dir, &disk.name, &to)?;
        to.sync_all().during("writing a copy out")?;
        if !lock::exclude_all(&to).during("locking a copy")? {
            return refuse(FaultKind::Busy, "a copy is in use by another process");
        }
        guards.push(to);
    }
    job.step()?;
    staging.sync().during("writing copies out")?;
    vm_dir.sync().during("writing copies out")?;
    job.commit()?;
    job.step()?;
    write_journal(&staging, key, &manifest)?;
    Ok(guards)
}

fn write_journal(staging: &Dir, key: &str, manifest: &Manifest) -> Outcome<()> {
    let journal = Journal {
        key: key.to_owned(),
        disks: manifest.disks.iter().map(|it| it.name.clone()).collect(),
    };
    staging
        .write_whole(JOURNAL, &json(&journal)?)
        .during("writing the journal")
}

/// Gives a copy the owner and the permissions of the disk whose place it takes, if there is one.
fn like(vm_dir: &Dir, disk: &str, copy: &File) -> Outcome<()> {
    let Ok(stat) = vm_dir.stat(disk) else {
        return Ok(());
    };
    let owner = (
        rustix::fs::Uid::from_raw(stat.st_uid),
        rustix::fs::Gid::from_raw(stat.st_gid),
    );
    let mode = rustix::fs::Mode::from_raw_mode(stat.st_mode);
    rustix::fs::fchown(copy, Some(owner.0), Some(owner.1))
        .and_then(|()| rustix::fs::fchmod(copy, mode))
        .map_err(|error| Failure::Io("giving a copy its owner", error.into()))
}

/// Does what the journal says: may be called as often as there is one.
fn finish(vm_dir: &Dir, job: Option<&Job>) -> Outcome<()> {
    let step = || job.map_or(Ok(()), Job::step);
    let staging = vm_dir.dir(STAGING).during("opening the copies")?;
    let bytes = staging
        .read_whole(JOURNAL, BYTES_MAX)
        .during("reading the journal")?;
    let journal: Journal = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Io("reading the journal", io::Error::other(error)))?;
    for disk in journal.disks.iter().filter(|it| is_plain_name(it)) {
        step()?;
        match staging.rename(disk, vm_dir, disk) {
            Ok(()) => {}
            // It is in place already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::Io("putting a disk in place", error)),
        }
    }
    step()?;
    vm_dir.sync().during("putting disks in place")?;
    step()?;
    let mark = Mark { key: journal.key };
    vm_dir
        .write_whole(MARK, &json(&mark)?)
        .during("marking a restore")?;
    step()?;
    vm_dir.remove_all(STAGING).during("removing the journal")
}

/// Finishes what an earlier process was sure to do on this VM, and undoes what it was not. The turn must be held.
pub(super) fn recover(site: &Site, vm: &VmId) -> Outcome<()> {
    let vm_dir = match site.vm_dir(vm) {
        Ok(dir) => dir,
        Err(Failure::Fault(fault)) if fault.kind == FaultKind::NoSuchVm => return Ok(()),
        Err(failure) => return Err(failure),
    };
    if !vm_dir.has(STAGING).during("looking for a journal")? {
        return Ok(());
    }
    let staging = vm_dir.dir(STAGING).during("opening the copies")?;
    if !staging.has(JOURNAL).during("looking for a journal")? {
        return vm_dir
            .remove_all(STAGING)
            .during("removing what was left over");
    }
    // Somebody may have started the VM since: its disks must not be replaced under it.
    let mut guards = Vec::new();
    for disk in site.disks(&vm_dir)? {
        guards.push(locked(&vm_dir, &disk)?);
    }
    tracing::info!(%vm, "a restore that was begun by an earlier process is finished");
    finish(&vm_dir, None)
}

/// Whether this request was the last restore of the VM that was carried out.
pub(super) fn was_last(vm_dir: &Dir, key: &str) -> Outcome<bool> {
    match vm_dir.read_whole(MARK, BYTES_MAX) {
        Ok(bytes) => Ok(serde_json::from_slice::<Mark>(&bytes).is_ok_and(|it| it.key == key)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::Io("reading the mark of a restore", error)),
    }
}

fn json(value: &impl Serialize) -> Outcome<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Failure::Io("writing a journal", io::Error::other(error)))
}
