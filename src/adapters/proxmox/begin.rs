//! How changes begin: every precondition that can be seen is tested first, right before the call.

use std::collections::BTreeMap;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::proxmox::after_task::locked;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::cluster::no_such_backup;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::notes;
use crate::adapters::proxmox::notes::Notes;
use crate::adapters::proxmox::notes::Place;
use crate::adapters::proxmox::restore_options::ParsedRestoreOptions;
use crate::adapters::proxmox::tasks;
use crate::adapters::proxmox::wire;
use crate::adapters::transport::unexpected_answer;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::TaskRef;
use crate::public_text;

/// Longest template for the notes of a new archive: the schema of `vzdump`. Notes that are set later have no such limit.
const NOTES_TEMPLATE_CHARS_MAX: usize = 1024;

impl Proxmox {
    /// The state of a guest that a task may be begun on.
    async fn check_ready(&self, guest: &Guest, by: Deadline) -> Result<wire::Status, AdapterError> {
        let status = self.api.status(guest, by).await;
        let status = status.map_err(NativeError::into_read_error)?;
        if let Some(lock) = &status.lock {
            let fault = locked(guest, lock);
            return Err(AdapterError::refused(
                fault.kind,
                fault
                    .text
                    .followed_by(&public_text!("Nothing was changed.")),
            ));
        }
        if guest.is_template {
            let text = public_text!(
                "The VM is a template, which has neither snapshots nor a state to restore. Use a VM that was cloned from the template."
            );
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        }
        Ok(status)
    }

    /// The very backup that the caller saw.
    async fn find_exact(
        &self,
        guest: &Guest,
        intent: &Intent,
        by: Deadline,
    ) -> Result<NativeBackup, AdapterError> {
        let item = self.find_backup(guest, &intent.target.backup, by).await?;
        let item = item.ok_or_else(no_such_backup)?;
        match &intent.identity {
            Some(identity) if *identity != item.identity(guest) => Err(AdapterError::refused(
                FaultKind::NoSuchBackup,
                public_text!(
                    "The backup was replaced by another one with the same id; nothing was changed. List the backups again."
                ),
            )),
            Some(_) | None => Ok(item),
        }
    }

    pub(super) async fn create(
        &self,
        guest: &Guest,
        intent: &Intent,
        new: &NewBackup,
        key: RequestKey,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let status = self.check_ready(guest, by).await?;
        let id = intent.target.backup.as_str();
        if self
            .find_backup(guest, &intent.target.backup, by)
            .await?
            .is_some()
        {
            let text = public_text!(
                "The VM has another backup with this id; nothing was changed. Create the backup again."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        self.refuse_taken(guest, &new.name, None, by).await?;
        match new.kind.unwrap_or(BackupKind::Snapshot) {
            BackupKind::Snapshot => {
                let text = Notes::of_new(new, None).write(Place::Last);
                let is_running_vm = guest.kind == GuestKind::Qemu && status.status == "running";
                let with_memory = self.config.snapshot_memory && is_running_vm;
                let begun = self
                    .api
                    .create_snapshot(guest, id, &text, with_memory, by)
                    .await;
                begun_task(begun)
            }
            BackupKind::Full => self.back_up(guest, new, &key.to_string(), by).await,
            BackupKind::Incremental => Err(AdapterError::refused(
                FaultKind::Unsupported,
                public_text!(
                    "This backend creates backups of the types `snapshot` and `full` only; nothing was changed. Choose one of \
                     these types."
                ),
            )),
        }
    }

    /// Names are unique within a guest.
    async fn refuse_taken(
        &self,
        guest: &Guest,
        name: &BackupName,
        own: Option<&BackupId>,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let items = self.list_native(guest, by).await?;
        let is_taken = items.iter().any(|(id, item)| {
            let other = item.backup(guest);
            Some(id) != own && other.is_some_and(|backup| backup.name == *name)
        });
        if is_taken {
            let text = public_text!(
                "Another backup of the VM has this name; nothing was changed. Choose another name."
            );
            return Err(AdapterError::refused(FaultKind::NameTaken, text));
        }
        Ok(())
    }

    async fn back_up(
        &self,
        guest: &Guest,
        new: &NewBackup,
        id: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let Some(storage) = self.config.storages.first() else {
            let text = public_text!(
                "No storage for full backups is configured for this backend (key `storages`); nothing was changed. Create a backup of \
                 the type `snapshot`, or ask an operator to configure a storage."
            );
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        };
        let notes = notes::as_template(&Notes::of_new(new, Some(id)).write(Place::First));
        let count = notes.chars().count();
        if count > NOTES_TEMPLATE_CHARS_MAX {
            let text = public_text!(
                "The name, tags and description of a full backup are too long together ({count} of {NOTES_TEMPLATE_CHARS_MAX} \
                 characters); nothing was changed. Shorten the description, or set it by an update afterwards."
            );
            return Err(AdapterError::refused(FaultKind::Invalid, text));
        }
        let mut body = BTreeMap::from([
            ("vmid", guest.vmid.as_str()),
            ("storage", storage.as_str()),
            ("mode", self.config.backup_mode.as_str()),
            ("compress", "zstd"),
            ("notes-template", notes.as_str()),
            // Without this the job removes older backups by the retention of the storage.
            ("remove", "0"),
        ]);
        if new.protected {
            body.insert("protected", "1");
        }
        let begun = self.api.back_up(guest, &body, by).await;
        match begun.map_err(NativeError::into_write_error)? {
            Some(upid) => task(&upid).map(BeginOutcome::Task),
            None => {
                let text = public_text!(
                    "The VM is moving to another node; nothing was changed. Create the backup again."
                );
                Err(AdapterError::refused(FaultKind::Busy, text))
            }
        }
    }

    pub(super) async fn update(
        &self,
        guest: &Guest,
        intent: &Intent,
        patch: &BackupPatch,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let item = self.find_exact(guest, intent, by).await?;
        if let Some(name) = &patch.name {
            self.refuse_taken(guest, name, item.id().as_ref(), by)
                .await?;
        }
        let notes = item.notes().patched(patch);
        let changed = match &item {
            NativeBackup::Snapshot(snapshot) => {
                let text = notes.write(Place::Last);
                self.api
                    .describe_snapshot(guest, &snapshot.name, &text, by)
                    .await
            }
            NativeBackup::Archive { storage, volume } => {
                let notes = Notes {
                    protected: false,
                    ..notes
                };
                let text = notes.write(Place::First);
                let mut body = BTreeMap::from([("notes", text.as_str())]);
                if let Some(protected) = requested_protection(patch) {
                    body.insert("protected", if protected { "1" } else { "0" });
                }
                self.api
                    .change_archive(guest, storage, &volume.volid, &body, by)
                    .await
            }
        };
        changed
            .map(|()| BeginOutcome::Done)
            .map_err(NativeError::into_write_error)
    }

    pub(super) async fn delete(
        &self,
        guest: &Guest,
        intent: &Intent,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let item = self.find_exact(guest, intent, by).await?;
        if item.backup(guest).is_some_and(|backup| backup.protected) {
            let text = public_text!(
                "The backup is protected, so it was not deleted. Remove its protection first."
            );
            return Err(AdapterError::refused(FaultKind::Protected, text));
        }
        match item {
            NativeBackup::Snapshot(snapshot) => {
                self.check_ready(guest, by).await?;
                begun_task(self.api.delete_snapshot(guest, &snapshot.name, by).await)
            }
            NativeBackup::Archive { storage, volume } => {
                let deleted = self
                    .api
                    .delete_archive(guest, &storage, &volume.volid, by)
                    .await;
                match deleted.map_err(NativeError::into_write_error)? {
                    Some(upid) => task(&upid).map(BeginOutcome::Task),
                    None => Ok(BeginOutcome::Done),
                }
            }
        }
    }

    pub(super) async fn restore(
        &self,
        guest: &Guest,
        intent: &Intent,
        options: &RestoreOptions,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let options = ParsedRestoreOptions::read(options, self.config.after_restore)?;
        let item = self.find_exact(guest, intent, by).await?;
        if item.is_unfinished() {
            let text = public_text!(
                "The snapshot is incomplete and cannot be restored; nothing was changed. Delete it, or restore another backup."
            );
            return Err(AdapterError::refused(FaultKind::NotReady, text));
        }
        let status = self.check_ready(guest, by).await?;
        let starts = options.starts(status.status == "running");
        match item {
            NativeBackup::Snapshot(snapshot) => {
                if options.storage.is_some() {
                    let text = public_text!(
                        "The restore option `storage` applies to full backups only; nothing was changed. Omit the option."
                    );
                    return Err(AdapterError::refused(FaultKind::Invalid, text));
                }
                begun_task(self.api.roll_back(guest, &snapshot.name, starts, by).await)
            }
            NativeBackup::Archive { volume, .. } => {
                self.refuse_replacing(guest, &status, &options, by).await?;
                let storage = self.restore_storage(guest, &options, by).await?;
                let body = restore_body(guest, &volume.volid, storage.as_deref(), starts);
                begun_task(self.api.restore_archive(guest, &body, by).await)
            }
        }
    }

    /// A restore from an archive replaces the guest: it must be off, and its snapshots go.
    async fn refuse_replacing(
        &self,
        guest: &Guest,
        status: &wire::Status,
        options: &ParsedRestoreOptions,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        if status.status != "stopped" {
            let text = public_text!(
                "The VM is running; nothing was changed. Shut it down before it is restored from a full backup."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        let snapshots = self.api.snapshots(guest, by).await;
        let count = snapshots.map_err(NativeError::into_read_error)?.len();
        if count > 0 && !options.discard_snapshots {
            let text = public_text!(
                "A restore from a full backup deletes the snapshots of the VM ({count}); nothing was changed. Set the restore \
                 option `discard_snapshots` to `true` to allow this."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        Ok(())
    }

    /// Where the disks of a restore from an archive go. For VMs that is where they were unless a storage is named. The disks of
    /// a container all go to one storage, which is `local` unless one is named, so the one that has them is named here.
    async fn restore_storage(
        &self,
        guest: &Guest,
        options: &ParsedRestoreOptions,
        by: Deadline,
    ) -> Result<Option<String>, AdapterError> {
        if options.storage.is_some() || guest.kind == GuestKind::Qemu {
            return Ok(options.storage.clone());
        }
        let config = self.api.config(guest, by).await;
        let config = config.map_err(NativeError::into_read_error)?;
        let mut storages = config.disk_storages().into_iter();
        match (storages.next(), storages.next()) {
            (Some(only), None) => Ok(Some(only.to_owned())),
            (Some(_), Some(_)) => {
                let text = public_text!(
                    "The disks of the container are on several storages, and a restore from a full backup puts all of them on one; \
                     nothing was changed. Name it in the restore option `storage`."
                );
                Err(AdapterError::refused(FaultKind::Conflict, text))
            }
            (None, _) => Ok(None),
        }
    }
}

fn restore_body<'a>(
    guest: &'a Guest,
    volume: &'a str,
    storage: Option<&'a str>,
    starts: bool,
) -> BTreeMap<&'a str, &'a str> {
    let mut body = BTreeMap::from([("vmid", guest.vmid.as_str()), ("force", "1")]);
    match guest.kind {
        GuestKind::Qemu => {
            body.insert("archive", volume);
        }
        GuestKind::Lxc => {
            body.insert("ostemplate", volume);
            body.insert("restore", "1");
        }
    }
    if let Some(storage) = storage {
        body.insert("storage", storage);
    }
    if starts {
        body.insert("start", "1");
    }
    body
}

/// The protection that an update asks for; `None` where it stays.
pub(super) fn requested_protection(patch: &BackupPatch) -> Option<bool> {
    if patch.protected.is_keep() {
        None
    } else {
        Some(patch.protected.apply(None).unwrap_or(false))
    }
}

fn begun_task(begun: Result<String, NativeError>) -> Result<BeginOutcome, AdapterError> {
    let upid = begun.map_err(NativeError::into_write_error)?;
    task(&upid).map(BeginOutcome::Task)
}

fn task(upid: &str) -> Result<TaskRef, AdapterError> {
    let known = tasks::node_of(upid).and_then(|_| TaskRef::new(upid.to_owned()));
    known.ok_or_else(|| {
        // Something was begun: only what it is called is unknown.
        unexpected_answer().because(upid)
    })
}
