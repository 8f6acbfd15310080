//! LXD 5.0 or later and Incus 6 or later: a backup is a snapshot of an instance.
//!
//! Name, description, tags and protection are kept as JSON in the description of the snapshot's volume, which survives
//! restores and renames. Lossy: attached custom volumes are not part of a snapshot; only the gateway enforces
//! the protection; before Incus 7 a restore empties the description of the instance. Not offered: snapshots whose names
//! some version misreads. See docs/adapters/incus.md, also for the versions tested.

mod begin;
mod client;
mod config;
mod error;
mod evidence;
mod expiry;
mod failure;
mod guard;
mod keys;
mod label;
mod map;
mod names;
mod native_tasks;
mod preview;
mod restore_state;
mod task_record;
mod wire;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use config::ConfigError;
pub use config::parse_url;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

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
use crate::adapters::incus::task_record::TaskRecord;
use crate::adapters::transport::Address;
use crate::adapters::vm_list_cache::VmListCache;
use crate::adapters::vm_list_cache::VmListEntry;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::Clock;
use client::Api;
use label::SnapshotLabel;
use names::VolumePath;

/// How long one request waits for the end of an operation, in seconds.
const WAIT: &str = "60";
/// How long the answer to such a request may take.
const WAIT_DEADLINE: Duration = Duration::from_secs(75);
/// How long after a lost answer the request may still be taken up: it lies in the socket of a daemon that is slow.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a daemon that resumes needs to accept the requests that wait in its sockets.
const RESUME_DELAY: Duration = Duration::from_millis(300);

const fn verb(recovery: Recovery) -> Option<VerbCapability> {
    Some(VerbCapability {
        recovery,
        settle: SETTLE,
        cancel: false,
        progress: false,
    })
}

static CAPABILITY: Capability = Capability {
    kind: "incus",
    // The snapshot carries the number of the request in its name, changes and removals leave it in the label.
    create: verb(Recovery::Listable),
    update: verb(Recovery::Listable),
    delete: verb(Recovery::Listable),
    // What restored a VM is kept nowhere; that it was restored since shows in the VM.
    restore: verb(Recovery::NoTrace),
    kinds: &[BackupKind::Snapshot],
    restore_options: &[],
    online: true,
    memory: false,
    consistent: false,
    lists_vms: true,
};

/// The adapter for one LXD or Incus.
#[derive(Debug)]
pub struct Incus {
    api: Api,
    clock: Arc<dyn Clock>,
    /// Whether operations that name no project are shown: to clients of the socket they are.
    sees_all_operations: bool,
    /// Protected backups that expire, of which a warning was logged.
    warned: Mutex<BTreeSet<String>>,
    vm_list: VmListCache<ListedInstance>,
}

/// An instance as the list of all has it, under the id that callers know.
#[derive(Debug)]
struct ListedInstance {
    id: VmId,
    status: String,
}

impl VmListEntry for ListedInstance {
    fn id(&self) -> &VmId {
        &self.id
    }
}

/// A snapshot with its instance and label.
#[derive(Debug)]
struct LabelledSnapshot {
    instance: wire::Instance,
    path: VolumePath,
    snapshot: wire::Snapshot,
    label: SnapshotLabel,
    /// Whether a running operation may still be making it.
    is_incomplete: bool,
}

impl Incus {
    /// An adapter; connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] when a file or name in the configuration cannot be used.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        Ok(Self {
            api: Api::new(config.client()?, config.project.clone()),
            clock,
            sees_all_operations: match config.address {
                Address::Unix(_) => true,
                Address::Https { .. } | Address::Loopback(_) => false,
            },
            warned: Mutex::default(),
            vm_list: VmListCache::default(),
        })
    }

    /// Every instance of the project whose name is safe to use: others are not reachable through the gateway either.
    async fn read_vm_list(&self, by: Deadline) -> Result<Vec<ListedInstance>, AdapterError> {
        let listed = self.api.instances(by).await;
        let listed = listed.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
        let usable = listed
            .into_iter()
            .filter(|one| names::is_safe_name(&one.name));
        let entry = |one: wire::ListedInstance| {
            let id = VmId::new(&one.name).ok()?;
            Some(ListedInstance {
                id,
                status: one.status,
            })
        };
        Ok(usable.filter_map(entry).collect())
    }

    async fn instance(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<(wire::Instance, VolumePath), AdapterError> {
        if !names::is_safe_name(vm.as_str()) {
            return Err(missing_error(FaultKind::NoSuchVm));
        }
        let instance = self
            .api
            .instance(vm.as_str(), by)
            .await
            .map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        let path = map::volume_path(&instance).ok_or_else(|| {
            let text = public_text!(
                "The VM has no root disk, so it has no backups. Add a root disk to the VM."
            );
            AdapterError::refused(FaultKind::Unsupported, text)
        })?;
        Ok((instance, path))
    }

    /// The snapshot of that id; `None` when there is none.
    async fn find_snapshot(
        &self,
        target: &Target,
        by: Deadline,
    ) -> Result<Option<LabelledSnapshot>, AdapterError> {
        let (instance, path) = self.instance(&target.vm, by).await?;
        if !names::is_safe_name(target.backup.as_str()) {
            return Ok(None);
        }
        self.check_pool(&path, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let snapshot = self.api.snapshot(vm, id, by).await;
        let Some(snapshot) =
            snapshot.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?
        else {
            return Ok(None);
        };
        let mut label = self.label(&path, &snapshot, by).await?;
        let mut is_incomplete = false;
        if label.made.is_none() {
            // Read after the snapshot: one that is no longer being made by then is complete.
            is_incomplete = native_tasks::may_be_incomplete(&snapshot, &self.tasks(by).await?, vm)
                || self.may_be_scheduled_snapshot(&instance, &snapshot);
            if !is_incomplete && names::is_minted(id) {
                // The daemon has forgotten its operation, so the gateway that began it had time to write the label.
                label = self.label(&path, &snapshot, by).await?;
            }
        }
        Ok(Some(LabelledSnapshot {
            instance,
            path,
            snapshot,
            label,
            is_incomplete,
        }))
    }

    async fn label(
        &self,
        path: &VolumePath,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<SnapshotLabel, AdapterError> {
        let id = names::last_segment(&snapshot.name);
        let volume = self.api.volume(path, id, by).await;
        let volume = volume.map_err(|error| error.into_read_error(FaultKind::NoSuchBackup))?;
        let text = volume.map(|(volume, _)| volume.description);
        Ok(SnapshotLabel::parse(
            &snapshot.created_at,
            &text.unwrap_or_default(),
        ))
    }

    async fn tasks(&self, by: Deadline) -> Result<Vec<wire::Task>, AdapterError> {
        let tasks = self.api.operations(by).await;
        tasks.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))
    }

    /// Every backup of the VM in order of their ids.
    async fn all(&self, vm: &VmId, by: Deadline) -> Result<Vec<Backup>, AdapterError> {
        let (instance, path) = self.instance(vm, by).await?;
        self.check_pool(&path, by).await?;
        let id = vm.as_str();
        let missing = FaultKind::NoSuchVm;
        let snapshots = self.api.snapshots(id, by).await;
        let snapshots = snapshots.map_err(|error| error.into_read_error(missing))?;
        if snapshots.is_empty() {
            return Ok(Vec::new());
        }
        // Read after the snapshots: one that is no longer being made by then is complete. Read before the labels: a snapshot
        // whose operation is forgotten by then has its label.
        let tasks = self.tasks(by).await?;
        let volumes = self.api.volumes(&path, by).await;
        let volumes = volumes.map_err(|error| error.into_read_error(missing))?;
        let descriptions: BTreeMap<&str, &str> = volumes
            .iter()
            .map(|volume| {
                (
                    names::last_segment(&volume.name),
                    volume.description.as_str(),
                )
            })
            .collect();
        let mut backups: Vec<Backup> = snapshots
            .iter()
            .filter_map(|snapshot| {
                let name = names::last_segment(&snapshot.name);
                let text = descriptions.get(name).copied().unwrap_or_default();
                let label = SnapshotLabel::parse(&snapshot.created_at, text);
                let is_incomplete = label.made.is_none()
                    && (native_tasks::may_be_incomplete(snapshot, &tasks, id)
                        || self.may_be_scheduled_snapshot(&instance, snapshot));
                self.warn_of_expiry(vm, snapshot, &label);
                map::backup(snapshot, &label).filter(|_| !is_incomplete)
            })
            .collect();
        backups.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(backups)
    }
}

fn missing_error(what: FaultKind) -> AdapterError {
    AdapterError::refused(what, error::missing_sentence(what))
}

#[async_trait]
impl Adapter for Incus {
    fn capability(&self) -> &Capability {
        &CAPABILITY
    }

    /// `snapgate-<number of the operation>`, so that what became of a request is found by its name.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            let text = public_text!("The gateway could not assign an id to the backup.");
            AdapterError::refused(FaultKind::Invalid, text).because(error)
        })
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let server = self.api.server(by).await;
        let server = server.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
        let environment = server.environment.filter(|_| server.auth == "trusted");
        let Some(environment) = environment else {
            return Err(AdapterError::refused(
                FaultKind::BackendDenied,
                public_text!(
                    "The VM manager does not trust the gateway's certificate. Ask an operator to add it to the trusted \
                     certificates."
                ),
            ));
        };
        let product = match environment.server.as_str() {
            "lxd" => "LXD",
            "incus" => "Incus",
            other => other,
        };
        Ok(Health {
            product: format!("{product} {}", environment.server_version),
        })
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let (instance, _) = self.instance(vm, by).await?;
        Ok(map::vm(vm, instance))
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        let now = self.clock.instant();
        let all = self.vm_list.entries(now, || self.read_vm_list(by)).await?;
        let rest = range.rest_of(&all, VmListEntry::id);
        let vm = |one: &ListedInstance| Vm {
            id: one.id.clone(),
            name: one.id.as_str().to_owned(),
            description: None,
            run_state: map::run_state(&one.status),
        };
        Ok(range.page_of(rest.iter().map(vm)))
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        Ok(page.of(self.all(vm, by).await?))
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
        let labelled = self.find_snapshot(target, by).await?;
        if let Some(labelled) = &labelled {
            self.warn_of_expiry(&target.vm, &labelled.snapshot, &labelled.label);
        }
        labelled
            .filter(|labelled| !labelled.is_incomplete)
            .and_then(|labelled| map::backup(&labelled.snapshot, &labelled.label))
            .ok_or_else(|| missing_error(FaultKind::NoSuchBackup))
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.read_baseline(intent, by).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.begin_change(intent, &key.to_string(), baseline, by)
            .await
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.poll_task(task, by).await
    }

    async fn changed(&self, task: &TaskRef) {
        if let Ok(job) = serde_json::from_str::<TaskRecord>(task.as_str()) {
            loop {
                let by = self.clock.deadline(WAIT_DEADLINE);
                if self.api.wait(&job.operation, WAIT, by).await.is_err() {
                    break;
                }
                match self.api.operation(&job.operation, by).await {
                    Ok(Some(task)) if task.status_code < 200 => {}
                    Ok(_) => return,
                    Err(_) => break,
                }
            }
        }
        std::future::pending::<()>().await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let key = key.to_string();
        match self.find_evidence(intent, &key, baseline, by).await? {
            FindOutcome::NotBegun | FindOutcome::Failed(_) => {}
            found @ (FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Done(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable) => {
                return Ok(found);
            }
        }
        // A daemon that resumes answers new requests before it accepts those that wait in its sockets.
        tokio::time::sleep(RESUME_DELAY).await;
        self.find_evidence(intent, &key, baseline, by).await
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        let text = public_text!(
            "This backend cannot cancel an operation that has begun. Wait for its end."
        );
        Err(AdapterError::refused(FaultKind::Unsupported, text))
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.preview_change(intent, by).await
    }

    fn needs_baseline(&self, _intent: &Intent) -> bool {
        true
    }
}
