//! The options of a restore.

use crate::adapters::adapter::AdapterError;
use crate::adapters::proxmox::config::AfterRestore;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::RestoreOptions;
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
    /// Where the disks of a full backup go.
    pub(super) storage: Option<String>,
    /// Whether a restore from a full backup may delete snapshots.
    discard_snapshots: bool,
}

impl ParsedRestoreOptions {
    /// Reads them; what is not given is as configured.
    ///
    /// # Errors
    /// For a name or value that the backend does not have.
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
    pub(super) fn check_discarded(&self, count: usize) -> Result<(), AdapterError> {
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
