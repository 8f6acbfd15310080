//! How changes begin: every precondition that can be seen is tested first, right before the call.

use std::collections::BTreeMap;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::checks::Checks;
use crate::adapters::proxmox::Proxmox;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::config::AfterRestore;
use crate::adapters::proxmox::error;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::no_such_backup;
use crate::adapters::proxmox::notes;
use crate::adapters::proxmox::notes::Notes;
use crate::adapters::proxmox::notes::Place;
use crate::adapters::proxmox::tasks;
use crate::adapters::proxmox::wire;
use crate::adapters::transport::unexpected_answer;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::TaskRef;
use crate::public_text;

/// Restore option: what the guest does afterwards.
pub(super) const AFTER_RESTORE: &str = "after_restore";
/// Restore option of full backups: where the disks go.
pub(super) const STORAGE: &str = "storage";
/// Restore option of full backups: whether snapshots may go.
pub(super) const DISCARD_SNAPSHOTS: &str = "discard_snapshots";

/// The options of a restore, read.
#[derive(Debug)]
pub(super) struct ParsedRestoreOptions {
    after: AfterRestore,
    storage: Option<String>,
    discard_snapshots: bool,
}

impl ParsedRestoreOptions {
    pub(super) fn read(
        options: &RestoreOptions,
        default: AfterRestore,
    ) -> Result<Self, AdapterError> {
        let invalid = |text: PublicText| AdapterError::refused(FaultKind::Invalid, text);
        let mut read = Self {
            after: default,
            storage: None,
            discard_snapshots: false,
        };
        for (name, value) in &options.0 {
            match name.as_str() {
                AFTER_RESTORE => {
                    read.after = AfterRestore::parse(value).ok_or_else(|| {
                        invalid(public_text!(
                            "The restore option `after_restore` must be `as-before`, `running` or `stopped`; nothing was changed."
                        ))
                    })?;
                }
                STORAGE => read.storage = Some(value.clone()),
                DISCARD_SNAPSHOTS => {
                    read.discard_snapshots = match value.as_str() {
                        "true" => true,
                        "false" => false,
                        _ => {
                            return Err(invalid(public_text!(
                                "The restore option `discard_snapshots` must be `true` or `false`; nothing was changed."
                            )));
                        }
                    };
                }
                _ => {
                    return Err(invalid(public_text!(
                        "This backend has no restore option \"{name}\"; nothing was changed."
                    )));
                }
            }
        }
        Ok(read)
    }

    /// Refuses a storage, which is chosen for the disks of a full backup alone.
    pub(super) fn refuse_storage(&self) -> Result<(), AdapterError> {
        if self.storage.is_none() {
            return Ok(());
        }
        let text = public_text!(
            "The restore option `storage` applies to full backups only; nothing was changed. Omit the option."
        );
        Err(AdapterError::refused(FaultKind::Invalid, text))
    }

    /// Refuses to discard that many snapshots unless it was asked for.
    fn check_discarded(&self, count: usize) -> Result<(), AdapterError> {
        if count == 0 || self.discard_snapshots {
            return Ok(());
        }
        let text = public_text!(
            "A restore from a full backup deletes the snapshots of the VM ({count}); nothing was changed. Set the restore \
             option `discard_snapshots` to `true` to allow this."
        );
        Err(AdapterError::refused(FaultKind::Conflict, text))
    }

    /// Whether the guest is to be started.
    pub(super) fn starts(&self, was_running: bool) -> bool {
        match self.after {
            AfterRestore::AsBefore => was_running,
            AfterRestore::Running => true,
            AfterRestore::Stopped => false,
        }
    }
}

impl Proxmox {
    /// The state of a guest that a task may be begun on.
    pub(super) async fn check_ready(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> Result<wire::Status, AdapterError> {
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
    pub(super) async fn find_exact(
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
        begun_task(self.api.back_up(guest, &body, by).await)
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
        check_unprotected(guest, &item)?;
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
        check_finished(&item)?;
        let status = self.check_ready(guest, by).await?;
        let starts = options.starts(status.status == "running");
        match item {
            NativeBackup::Snapshot(snapshot) => {
                options.refuse_storage()?;
                begun_task(self.api.roll_back(guest, &snapshot.name, starts, by).await)
            }
            NativeBackup::Archive { volume, .. } => {
                let mut checks = Checks::until_first();
                self.check_replaceable(guest, &status, &options, &mut checks, by)
                    .await?;
                let body = restore_body(guest, &volume.volid, &options, starts);
                begun_task(self.api.restore_archive(guest, &body, by).await)
            }
        }
    }

    /// A restore from an archive replaces the guest: it must be off, and its snapshots go.
    pub(super) async fn check_replaceable(
        &self,
        guest: &Guest,
        status: &wire::Status,
        options: &ParsedRestoreOptions,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(check_stopped(status))?;
        let snapshots = self.api.snapshots(guest, by).await;
        let count = snapshots.map_err(NativeError::into_read_error)?.len();
        checks.record(options.check_discarded(count))?;
        Ok(())
    }

    /// How far a task is, where its log says so.
    pub(super) async fn progress(&self, node: &str, upid: &str, by: Deadline) -> Option<Progress> {
        if !tasks::logs_progress(upid) {
            return None;
        }
        let log = self.api.log(node, upid, by).await.ok()?;
        tasks::progress_in(&log)
    }

    /// Why a task failed, and what the guest is now.
    pub(super) async fn failure(&self, upid: &str, text: &str, by: Deadline) -> Fault {
        let text = match tasks::node_of(upid) {
            // The end of a backup job names no reason; its log does.
            Some(node) if text.contains("job errors") => {
                let log = self.api.log(node, upid, by).await.unwrap_or_default();
                let reasons = log.into_iter().map(|line| line.t);
                let mut errors = reasons.filter(|line| line.contains("ERROR"));
                errors.next_back().unwrap_or_else(|| text.to_owned())
            }
            Some(_) | None => text.to_owned(),
        };
        tracing::warn!(upid, cause = %text, "task failed");
        let fault = error::fault_of_text(&text);
        let now = self.state_after(upid, by).await;
        Fault::new(fault.kind, fault.text.followed_by(&now))
    }

    /// One sentence on the state of the guest after a task that did not succeed.
    async fn state_after(&self, upid: &str, by: Deadline) -> PublicText {
        let unknown = || {
            public_text!(
                "The state of the VM could not be read afterwards. Check the VM before it is used."
            )
        };
        let vm = tasks::guest_of(upid).and_then(|vmid| crate::model::VmId::new(vmid).ok());
        let Some(vm) = vm else {
            return unknown();
        };
        let Ok(guest) = self.locate_guest(&vm, by).await else {
            return unknown();
        };
        let Ok(status) = self.api.status(&guest, by).await else {
            return unknown();
        };
        let runs = if status.status == "running" {
            "The VM is running"
        } else {
            "The VM is off"
        };
        match status.lock.as_deref() {
            None => public_text!("{runs} and is not locked."),
            Some("rollback") => public_text!(
                "{runs}, its disks may be partly restored, and it is locked. Unlock it with `{}`, then restore it again before it is used.",
                unlock(&guest)
            ),
            Some("create" | "restore") => public_text!(
                "{runs}, it was partly replaced, and it is locked. Unlock it with `{}`, then restore it again before it is used.",
                unlock(&guest)
            ),
            Some(_) => public_text!(
                "{runs} and is locked. Unlock it with `{}` when no task is running on it.",
                unlock(&guest)
            ),
        }
    }
}

fn check_stopped(status: &wire::Status) -> Result<(), AdapterError> {
    if status.status == "stopped" {
        return Ok(());
    }
    let text = public_text!(
        "The VM is running; nothing was changed. Shut it down before it is restored from a full backup."
    );
    Err(AdapterError::refused(FaultKind::Conflict, text))
}

/// Refuses to delete a backup that is protected.
pub(super) fn check_unprotected(guest: &Guest, item: &NativeBackup) -> Result<(), AdapterError> {
    if !item.backup(guest).is_some_and(|backup| backup.protected) {
        return Ok(());
    }
    let text = public_text!(
        "The backup is protected, so it was not deleted. Remove its protection first."
    );
    Err(AdapterError::refused(FaultKind::Protected, text))
}

/// Refuses to restore a snapshot that is not complete.
pub(super) fn check_finished(item: &NativeBackup) -> Result<(), AdapterError> {
    if !item.is_unfinished() {
        return Ok(());
    }
    let text = public_text!(
        "The snapshot is incomplete and cannot be restored; nothing was changed. Delete it, or restore another backup."
    );
    Err(AdapterError::refused(FaultKind::NotReady, text))
}

/// The operator's remedy for a lock that a dead task left.
fn unlock(guest: &Guest) -> String {
    match guest.kind {
        GuestKind::Qemu => format!("qm unlock {}", guest.vmid),
        GuestKind::Lxc => format!("pct unlock {}", guest.vmid),
    }
}

/// The refusal of a guest that is locked.
pub(super) fn locked(guest: &Guest, lock: &str) -> Fault {
    Fault::new(
        FaultKind::Conflict,
        public_text!(
            "The VM is locked ({lock}) by a task that is running or was interrupted. If no task is running, an operator \
             unlocks it with `{}`.",
            unlock(guest)
        ),
    )
}

fn restore_body<'a>(
    guest: &'a Guest,
    volume: &'a str,
    options: &'a ParsedRestoreOptions,
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
    if let Some(storage) = &options.storage {
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
