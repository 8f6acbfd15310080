//! The preconditions of changes: `begin` and `preview` test them by the same functions.

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::proxmox::after_task::locked;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::cluster::no_such_backup;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::restore_options::ParsedRestoreOptions;
use crate::adapters::proxmox::wire;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::public_text;

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

    /// A restore from an archive replaces the guest: it must be off, and its snapshots go. Returns the storage to name in the call.
    pub(super) async fn check_replaceable(
        &self,
        guest: &Guest,
        status: &wire::Status,
        options: &ParsedRestoreOptions,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<Option<String>, AdapterError> {
        checks.record(check_stopped(status))?;
        let snapshots = self.api.snapshots(guest, by).await;
        let count = snapshots.map_err(NativeError::into_read_error)?.len();
        checks.record(options.check_discarded(count))?;
        let storage = self.restore_storage(guest, options, by).await;
        Ok(checks.record(storage)?.flatten())
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
