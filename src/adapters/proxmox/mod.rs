//! Virtual machines and containers of Proxmox VE, through its HTTP API with an API token.
//!
//! A VM is a guest by its number. Snapshots are backups of the type `snapshot`, `vzdump` archives on the configured
//! storages are backups of the type `full`. The node of a guest is looked up with each call, since guests migrate.
//! Changes are tasks of Proxmox VE: a 200 with a task id says nothing about success, the end of the task does.
//! `docs/adapters/proxmox.md` has what maps to what, the rights that are needed, and what is lossy.

mod begin;
mod client;
mod config;
mod error;
mod evidence;
mod keys;
mod native_backup;
mod notes;
mod preview;
mod tasks;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::proxmox::client::Api;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::evidence::GuestBaseline;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::tasks::TaskEnd;
use crate::adapters::transport::Credential;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;

pub use config::AfterRestore;
pub use config::BackupMode;
pub use config::Config;
pub use config::ConfigError;
pub use config::NodeTrust;

/// A request whose connection was dropped at once is carried out within a tenth of a second; this is fifty times that.
const SETTLE: Duration = Duration::from_secs(5);

/// The adapter for one cluster.
#[derive(Debug)]
pub struct Proxmox {
    api: Api,
    config: Arc<Config>,
    /// User and token id, by which tasks of this gateway are recognised.
    author: (String, String),
    capability: Capability,
}

impl Proxmox {
    /// Reads the certificates; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when something in the configuration cannot be used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let author = config.user_and_token().ok_or(ConfigError::Token)?;
        let credential =
            Credential::proxmox_token(&config.token).map_err(|_unsendable| ConfigError::Token)?;
        let api = Api::new(config.clients()?, credential);
        Ok(Self {
            api,
            author,
            capability: capability(&config),
            config: Arc::new(config),
        })
    }

    /// The guest and the node that has it now.
    async fn locate_guest(&self, vm: &VmId, by: Deadline) -> Result<Guest, AdapterError> {
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
    async fn list_native(
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
            items.extend(volumes.into_iter().map(|volume| NativeBackup::Archive {
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
    async fn list_visible(
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
    async fn with_full_notes(
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
    async fn find_backup(
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
    fn is_own(&self, task: &wire::Task) -> bool {
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
                begin::AFTER_RESTORE,
                "`as-before`, `running` or `stopped`: whether the VM runs afterwards",
            ),
            (
                begin::STORAGE,
                "of a full backup: the storage for the restored disks; by default where they were",
            ),
            (
                begin::DISCARD_SNAPSHOTS,
                "of a full backup: `true` allows that the restore deletes the snapshots of the VM",
            ),
        ],
        online: true,
        memory: config.snapshot_memory,
        consistent: true,
        lists_vms: true,
    }
}

fn no_such_vm() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchVm,
        public_text!(
            "The VM manager has no such VM, or does not show it to the gateway's token. Check its id."
        ),
    )
}

fn no_such_backup() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchBackup,
        public_text!("The VM has no such backup. List its backups."),
    )
}

/// A guest as the list of guests shows it; `None` for what is no guest.
fn listed_vm(guest: wire::Resource) -> Option<Vm> {
    if !matches!(guest.kind.as_str(), "qemu" | "lxc") {
        return None;
    }
    let id = guest.vmid.to_string();
    Some(Vm {
        id: VmId::new(&id).ok()?,
        name: guest.name.unwrap_or(id),
        description: None,
        run_state: match guest.status.as_deref() {
            Some("running") => Some(RunState::Started),
            Some("stopped") => Some(RunState::Stopped),
            Some(_) | None => None,
        },
    })
}

#[async_trait]
impl Adapter for Proxmox {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    /// `snapgate-<operation>`: a name that snapshots may have.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            let text = public_text!("The gateway could not assign an id to the backup.");
            AdapterError::refused(FaultKind::Invalid, text).because(error)
        })
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let version = self
            .api
            .version(by)
            .await
            .map_err(NativeError::into_read_error)?;
        Ok(Health {
            product: format!("Proxmox VE {}", version.version),
        })
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let guest = self.locate_guest(vm, by).await?;
        // The list of guests shows `unknown` while the statistics of a node hang.
        let status = self.api.status(&guest, by).await;
        let status = status.map_err(NativeError::into_read_error)?;
        let config = self.api.config(&guest, by).await;
        let config = config.map_err(NativeError::into_read_error)?;
        Ok(Vm {
            id: vm.clone(),
            name: status
                .name
                .clone()
                .unwrap_or_else(|| vm.as_str().to_owned()),
            description: config.description,
            run_state: Some(run_state(&status)),
        })
    }

    /// The guests as the cluster lists them, in one call for each page: the list has names and states.
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        let guests = self.api.guests(by).await;
        let guests = guests.map_err(NativeError::into_read_error)?;
        let mut vms: Vec<Vm> = guests.into_iter().filter_map(listed_vm).collect();
        // By the text of their numbers, as all lists of VMs are.
        vms.sort_by(|one, other| one.id.cmp(&other.id));
        vms.dedup_by(|one, other| one.id == other.id);
        let rest = range.rest_of(&vms, |vm| &vm.id);
        Ok(range.page_of(rest.iter().cloned()))
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let guest = self.locate_guest(vm, by).await?;
        let mut backups = Vec::new();
        for (id, item) in self.list_visible(&guest, by).await? {
            if page.after.as_ref().is_some_and(|after| id <= *after) {
                continue;
            }
            if backups.len() == page.needed() {
                break;
            }
            let item = self.with_full_notes(&guest, item, by).await?;
            backups.extend(item.backup(&guest));
        }
        Ok(page.of(backups))
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let guest = self.locate_guest(&target.vm, by).await?;
        let item = self.find_backup(&guest, &target.backup, by).await?;
        item.and_then(|item| item.backup(&guest))
            .ok_or_else(no_such_backup)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.preview_change(intent, by).await
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        match intent.change {
            Change::Update(_) => false,
            Change::Create(_) | Change::Delete | Change::Restore(_) => true,
        }
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        if matches!(intent.change, Change::Update(_)) {
            return Ok(None);
        }
        let before = self.read_baseline(intent, by).await?;
        Ok(before.to_evidence())
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let guest = self.locate_guest(&intent.target.vm, by).await?;
        match &intent.change {
            Change::Create(new) => self.create(&guest, intent, new, key, by).await,
            Change::Update(patch) => self.update(&guest, intent, patch, by).await,
            Change::Delete => self.delete(&guest, intent, by).await,
            Change::Restore(options) => self.restore(&guest, intent, options, by).await,
        }
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let upid = task.as_str();
        let Some(node) = tasks::node_of(upid) else {
            return Ok(TaskState::Gone);
        };
        let found = match self.api.task(node, upid, by).await {
            Err(error) if error.is_missing() => return Ok(TaskState::Gone),
            other => other.map_err(NativeError::into_read_error)?,
        };
        Ok(match TaskEnd::of_status(&found) {
            TaskEnd::Running => TaskState::Running(self.progress(node, upid, by).await),
            TaskEnd::Succeeded(warnings) => {
                if warnings > 0 {
                    tracing::warn!(upid, warnings, "task succeeded with warnings");
                }
                TaskState::Done
            }
            TaskEnd::Failed(text) => TaskState::Failed(self.failure(upid, &text, by).await),
            TaskEnd::Interrupted if is_create(upid) => TaskState::Cancelled,
            TaskEnd::Interrupted | TaskEnd::Died => TaskState::Gone,
        })
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        _key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let guest = self.locate_guest(&intent.target.vm, by).await?;
        if let Change::Update(patch) = &intent.change {
            return self.find_update(&guest, intent, patch, by).await;
        }
        match baseline.and_then(GuestBaseline::from_evidence) {
            Some(before) => self.find_task(&guest, intent, &before, by).await,
            None => Ok(FindOutcome::Unknowable),
        }
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        let upid = task.as_str();
        let node = tasks::node_of(upid).filter(|_| is_create(upid));
        let Some(node) = node else {
            let text = public_text!(
                "This operation cannot be cancelled once it has begun. Wait for its end."
            );
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        };
        match self.api.stop_task(node, upid, by).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other.map_err(NativeError::into_write_error),
        }
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    async fn changed(&self, _task: &TaskRef) {
        std::future::pending::<()>().await;
    }
}

/// Whether a task makes a backup: the only tasks that undo what they began when they are stopped.
fn is_create(upid: &str) -> bool {
    matches!(
        tasks::type_of(upid),
        Some("qmsnapshot" | "vzsnapshot" | "vzdump")
    )
}

/// Whether a guest runs.
fn run_state(status: &wire::Status) -> RunState {
    let is_paused = matches!(
        status.qmpstatus.as_deref(),
        Some("paused" | "suspended" | "prelaunch")
    );
    match status.status.as_str() {
        "running" if is_paused => RunState::Sleeping,
        "running" => RunState::Started,
        _ => RunState::Stopped,
    }
}

/// The kind of backup that an intent makes or uses.
fn kind_of(intent: &Intent, item: Option<&NativeBackup>) -> BackupKind {
    match &intent.change {
        Change::Create(new) => new.kind.unwrap_or(BackupKind::Snapshot),
        Change::Update(_) | Change::Delete | Change::Restore(_) => {
            item.map_or(BackupKind::Snapshot, NativeBackup::kind)
        }
    }
}
