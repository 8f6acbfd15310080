//! Virtual machines and containers of Proxmox VE, through its HTTP API with an API token.
//!
//! A VM is a guest by its number. Snapshots are backups of the type `snapshot`, `vzdump` archives on the configured
//! storages are backups of the type `full`. The node of a guest is looked up with each call, since guests migrate.
//! Changes are tasks of Proxmox VE: a 200 with a task id says nothing about success, the end of the task does.
//! `docs/adapters/proxmox.md` has what maps to what, the rights that are needed, and what is lossy.

mod after_task;
mod begin;
mod client;
mod cluster;
mod config;
mod error;
mod evidence;
mod keys;
mod native_backup;
mod notes;
mod preconditions;
mod preview;
mod restore_options;
mod rights;
mod setup;
mod tasks;
mod wire;

use async_trait::async_trait;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::TaskState;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::proxmox::cluster::no_such_backup;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::evidence::GuestBaseline;
use crate::adapters::proxmox::tasks::TaskEnd;
use crate::model::Backup;
use crate::model::BackupId;
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

pub use cluster::Proxmox;
pub use config::AfterRestore;
pub use config::BackupMode;
pub use config::Config;
pub use config::ConfigError;
pub use config::NodeTrust;

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
            TaskEnd::Succeeded(warnings) => TaskState::Done(tasks::warning_notice(upid, warnings)),
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
