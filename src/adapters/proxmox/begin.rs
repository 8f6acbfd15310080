//! How changes begin: every precondition that can be seen is tested first, right before the call.

use std::collections::BTreeMap;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::checks::Checks;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::notes;
use crate::adapters::proxmox::notes::Notes;
use crate::adapters::proxmox::notes::Place;
use crate::adapters::proxmox::preconditions;
use crate::adapters::proxmox::restore_options::ParsedRestoreOptions;
use crate::adapters::proxmox::tasks;
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
        preconditions::check_unprotected(guest, &item)?;
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
        preconditions::check_finished(&item)?;
        let status = self.check_ready(guest, by).await?;
        let starts = options.starts(status.status == "running");
        match item {
            NativeBackup::Snapshot(snapshot) => {
                options.refuse_storage()?;
                begun_task(self.api.roll_back(guest, &snapshot.name, starts, by).await)
            }
            NativeBackup::Archive { volume, .. } => {
                let mut checks = Checks::until_first();
                let storage = self
                    .check_replaceable(guest, &status, &options, &mut checks, by)
                    .await?;
                let body = restore_body(guest, &volume.volid, storage.as_deref(), starts);
                begun_task(self.api.restore_archive(guest, &body, by).await)
            }
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
