//! The cluster as the adapter sees it: its guests, their backups, and which tasks are its own.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::proxmox::client::Api;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::config::Config;
use crate::adapters::proxmox::config::ConfigError;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::restore_options;
use crate::adapters::proxmox::wire;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::VmId;
use crate::public_text;

/// A request whose connection was dropped at once is carried out within a tenth of a second; this is fifty times that.
const SETTLE: Duration = Duration::from_secs(5);

/// The adapter for one cluster.
#[derive(Debug)]
pub struct Proxmox {
    pub(super) api: Api,
    pub(super) config: Arc<Config>,
    /// User and token id, by which tasks of this gateway are recognised.
    author: (String, String),
    pub(super) capability: Capability,
}

impl Proxmox {
    /// Reads the certificates; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when something in the configuration cannot be used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let author = config.user_and_token().ok_or(ConfigError::Token)?;
        let credential = config
            .credential()
            .map_err(|_unsendable| ConfigError::Token)?;
        let api = Api::new(config.clients()?, credential);
        Ok(Self {
            api,
            author,
            capability: capability(&config),
            config: Arc::new(config),
        })
    }

    /// The guest and the node that has it now.
    pub(super) async fn locate_guest(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<Guest, AdapterError> {
        if !native_backup::is_vmid(vm) {
            return Err(no_such_vm());
        }
        let guests = self
            .api
            .guests(by)
            .await
            .map_err(NativeError::into_read_error)?;
        let found = guests
            .into_iter()
            .find(|guest| guest.vmid.to_string() == vm.as_str())
            .ok_or_else(no_such_vm)?;
        let kind = match found.kind.as_str() {
            "qemu" => GuestKind::Qemu,
            "lxc" => GuestKind::Lxc,
            _ => return Err(no_such_vm()),
        };
        Ok(Guest {
            node: found.node,
            kind,
            vmid: vm.as_str().to_owned(),
            is_template: found.template,
        })
    }

    /// Every backup of a guest, in order of the ids, unfinished snapshots included. Notes of archives may be cut.
    pub(super) async fn list_native(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> Result<Vec<(BackupId, NativeBackup)>, AdapterError> {
        let snapshots = self.api.snapshots(guest, by).await;
        let snapshots = snapshots.map_err(NativeError::into_read_error)?;
        let mut items: Vec<NativeBackup> =
            snapshots.into_iter().map(NativeBackup::Snapshot).collect();
        for storage in &self.config.storages {
            let volumes = self.api.archives(guest, storage, by).await;
            let volumes = volumes.map_err(NativeError::into_read_error)?;
            // A backup server lists an archive from its beginning; while it is made, it has no size, or one of 1.
            let is_complete = |volume: &wire::Volume| volume.size.is_some_and(|size| size > 1);
            let complete = volumes.into_iter().filter(is_complete);
            items.extend(complete.map(|volume| NativeBackup::Archive {
                storage: storage.clone(),
                volume,
            }));
        }
        let mut named: Vec<(BackupId, NativeBackup)> = items
            .into_iter()
            .filter_map(|item| item.id().map(|id| (id, item)))
            .collect();
        named.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(named)
    }

    /// The same as callers may see it: without what a task is making or removing at this moment.
    pub(super) async fn list_visible(
        &self,
        guest: &Guest,
        by: Deadline,
    ) -> Result<Vec<(BackupId, NativeBackup)>, AdapterError> {
        let mut items = self.list_native(guest, by).await?;
        if items.iter().any(|(_, item)| item.is_unfinished()) {
            let query = [("vmid", guest.vmid.as_str()), ("source", "active")];
            let active = self.api.tasks(&guest.node, &query, by).await;
            if !active.map_err(NativeError::into_read_error)?.is_empty() {
                items.retain(|(_, item)| !item.is_unfinished());
            }
        }
        Ok(items)
    }

    /// The item with all of its notes.
    pub(super) async fn with_full_notes(
        &self,
        guest: &Guest,
        item: NativeBackup,
        by: Deadline,
    ) -> Result<NativeBackup, AdapterError> {
        let NativeBackup::Archive { storage, volume } = item else {
            return Ok(item);
        };
        // Only the notes: the answer about one volume lacks what the list has.
        let notes = if volume.notes.is_some() {
            let one = self.api.archive(guest, &storage, &volume.volid, by).await;
            one.map_err(NativeError::into_read_error)?.notes
        } else {
            None
        };
        Ok(NativeBackup::Archive {
            storage,
            volume: wire::Volume { notes, ..volume },
        })
    }

    /// The one backup of that id. Of two with one id, neither is provably the right one, so neither is touched.
    pub(super) async fn find_backup(
        &self,
        guest: &Guest,
        id: &BackupId,
        by: Deadline,
    ) -> Result<Option<NativeBackup>, AdapterError> {
        let mut found = self.list_visible(guest, by).await?;
        found.retain(|(other, _)| other == id);
        if found.len() > 1 {
            let text = public_text!(
                "The VM has two backups with this id, a snapshot and an archive; nothing was changed. Ask an operator to remove the id \
                        from the notes of the archive."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        match found.pop() {
            Some((_, item)) => self.with_full_notes(guest, item, by).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether a task was begun with the token of this gateway.
    pub(super) fn is_own(&self, task: &wire::Task) -> bool {
        let (user, token) = &self.author;
        // Older servers put the token into the user.
        let whole = format!("{user}!{token}");
        (task.user == *user && task.tokenid.as_deref() == Some(token)) || task.user == whole
    }
}

fn capability(config: &Config) -> Capability {
    let verb = |recovery, settle, cancel, progress| VerbCapability {
        recovery,
        settle,
        cancel,
        progress,
    };
    let kinds: &'static [BackupKind] = if config.storages.is_empty() {
        &[BackupKind::Snapshot]
    } else {
        &[BackupKind::Snapshot, BackupKind::Full]
    };
    Capability {
        kind: "proxmox",
        create: Some(verb(Recovery::Listable, SETTLE, true, true)),
        update: Some(verb(Recovery::ReplaySafe, Duration::ZERO, false, false)),
        delete: Some(verb(Recovery::Listable, SETTLE, false, false)),
        restore: Some(verb(Recovery::Listable, SETTLE, false, true)),
        kinds,
        restore_options: &[
            (
                restore_options::AFTER_RESTORE,
                "`as-before`, `running` or `stopped`: whether the VM runs afterwards",
            ),
            (
                restore_options::STORAGE,
                "of a full backup: the storage for the restored disks; by default where they were",
            ),
            (
                restore_options::DISCARD_SNAPSHOTS,
                "of a full backup: `true` allows that the restore deletes the snapshots of the VM",
            ),
        ],
        online: true,
        memory: config.snapshot_memory,
        consistent: true,
        lists_vms: true,
    }
}

pub(super) fn no_such_vm() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchVm,
        public_text!(
            "The VM manager has no such VM, or does not show it to the gateway's token. Check its id."
        ),
    )
}

/// The refusal of a backup that is not there.
pub(super) fn no_such_backup() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchBackup,
        public_text!("The VM has no such backup. List its backups."),
    )
}

/// The kind of backup that an intent makes or uses.
pub(super) fn kind_of(intent: &Intent, item: Option<&NativeBackup>) -> BackupKind {
    match &intent.change {
        Change::Create(new) => new.kind.unwrap_or(BackupKind::Snapshot),
        Change::Update(_) | Change::Delete | Change::Restore(_) => {
            item.map_or(BackupKind::Snapshot, NativeBackup::kind)
        }
    }
}
