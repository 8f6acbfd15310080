//! LXD 5.0 or later and Incus 6 or later: a backup is a snapshot of an instance.
//!
//! Name, description, tags and protection are kept as JSON in the description of the snapshot's volume, which survives
//! restores and renames. Lossy: attached custom volumes are not part of a snapshot; only the gateway heeds the
//! protection; before Incus 7 a restore empties the description of the instance. Not offered: snapshots whose names
//! some version misreads. See docs/adapters/incus.md, also for the versions tested.

mod aftermath;
mod begin;
mod client;
mod config;
mod error;
mod evidence;
mod expiry;
mod guard;
mod keys;
mod map;
mod wire;

#[cfg(test)]
mod tests;

pub use config::Address;
pub use config::Config;
pub use config::ConfigError;
pub use config::Server;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::runtime::Clock;
use aftermath::Doing;
use client::Api;
use client::VolumePath;
use map::Label;

/// How long one request for the end of an operation is held, in seconds.
const WAIT: &str = "60";
/// How long the answer to such a request may take.
const WAIT_DEADLINE: Duration = Duration::from_secs(75);
/// How long after a lost answer the request may still be taken up: it lies in the socket of a daemon that is slow.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a daemon has to take up what lies in its sockets once it answers.
const AWAKE: Duration = Duration::from_millis(300);

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
};

/// One LXD or Incus seen through the port.
#[derive(Debug)]
pub struct Incus {
    api: Api,
    clock: Arc<dyn Clock>,
    /// Whether operations that name no project are shown: to clients of the socket they are.
    sees_all_operations: bool,
    /// Protected backups that expire, of which a warning was logged.
    warned: Mutex<BTreeSet<String>>,
}

/// How an operation is found again.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// The number of the native operation.
    operation: String,
    /// Set when it may be somebody else's: then its end proves nothing, and evidence decides.
    #[serde(default)]
    doubtful: bool,
    /// What is left to do when a snapshot was made.
    #[serde(default)]
    make: Option<Make>,
    /// What it does otherwise.
    #[serde(default)]
    doing: Option<Doing>,
}

/// A snapshot that is being made, and what it is to be labelled with.
#[derive(Debug, Serialize, Deserialize)]
struct Make {
    target: Target,
    new: NewBackup,
    key: String,
}

impl Job {
    fn task(&self) -> Result<TaskRef, AdapterError> {
        TaskRef::new(serde_json::json!(self).to_string()).ok_or_else(|| {
            // Cannot happen within the limits of names, tags and descriptions.
            AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The backup's properties are too long.",
            )
        })
    }
}

/// A snapshot with everything that is known of it.
#[derive(Debug)]
struct Seen {
    instance: wire::Instance,
    path: VolumePath,
    snapshot: wire::Snapshot,
    label: Label,
    /// Whether it may be half made by an operation at work.
    half_made: bool,
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
                Address::Https { .. } => false,
            },
            warned: Mutex::default(),
        })
    }

    async fn instance(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<(wire::Instance, VolumePath), AdapterError> {
        if !map::is_strict(vm.as_str()) {
            return Err(no_such(FaultKind::NoSuchVm));
        }
        let instance = self
            .api
            .instance(vm.as_str(), by)
            .await
            .map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
        let path = map::volume_path(&instance).ok_or_else(|| {
            let text = "The VM has no root disk, so it has no backups: give it a root disk.";
            AdapterError::refused(FaultKind::Unsupported, text)
        })?;
        Ok((instance, path))
    }

    /// The snapshot of that id; `None` when there is none.
    async fn seen(&self, target: &Target, by: Deadline) -> Result<Option<Seen>, AdapterError> {
        let (instance, path) = self.instance(&target.vm, by).await?;
        if !map::is_strict(target.backup.as_str()) {
            return Ok(None);
        }
        self.storage(&path, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let snapshot = self.api.snapshot(vm, id, by).await;
        let Some(snapshot) = snapshot.map_err(|error| error.of_read(FaultKind::NoSuchVm))? else {
            return Ok(None);
        };
        let mut label = self.label(&path, &snapshot, by).await?;
        let mut half_made = false;
        if label.made.is_none() {
            // Asked after the snapshot was seen: one that is no longer being made by then is whole.
            half_made = map::is_half_made(&snapshot, &self.tasks(by).await?, vm)
                || self.may_be_scheduled(&instance, &snapshot);
            if !half_made && map::is_minted(id) {
                // Its operation is forgotten, so that whoever asked for it had the time to label it.
                label = self.label(&path, &snapshot, by).await?;
            }
        }
        Ok(Some(Seen {
            instance,
            path,
            snapshot,
            label,
            half_made,
        }))
    }

    async fn label(
        &self,
        path: &VolumePath,
        snapshot: &wire::Snapshot,
        by: Deadline,
    ) -> Result<Label, AdapterError> {
        let id = wire::last_segment(&snapshot.name);
        let volume = self.api.volume(path, id, by).await;
        let volume = volume.map_err(|error| error.of_read(FaultKind::NoSuchBackup))?;
        let text = volume.map(|(volume, _)| volume.description);
        Ok(Label::of(&snapshot.created_at, &text.unwrap_or_default()))
    }

    async fn tasks(&self, by: Deadline) -> Result<Vec<wire::Task>, AdapterError> {
        let tasks = self.api.operations(by).await;
        tasks.map_err(|error| error.of_read(FaultKind::NoSuchVm))
    }

    /// Every backup of the VM in order of their ids.
    async fn all(&self, vm: &VmId, by: Deadline) -> Result<Vec<Backup>, AdapterError> {
        let (instance, path) = self.instance(vm, by).await?;
        self.storage(&path, by).await?;
        let id = vm.as_str();
        let missing = FaultKind::NoSuchVm;
        let snapshots = self.api.snapshots(id, by).await;
        let snapshots = snapshots.map_err(|error| error.of_read(missing))?;
        if snapshots.is_empty() {
            return Ok(Vec::new());
        }
        // Asked after the snapshots were seen: one that is no longer being made by then is whole. And before their labels:
        // whose operation is forgotten by then has its label.
        let tasks = self.tasks(by).await?;
        let volumes = self.api.volumes(&path, by).await;
        let volumes = volumes.map_err(|error| error.of_read(missing))?;
        let descriptions: BTreeMap<&str, &str> = volumes
            .iter()
            .map(|volume| {
                (
                    wire::last_segment(&volume.name),
                    volume.description.as_str(),
                )
            })
            .collect();
        let mut backups: Vec<Backup> = snapshots
            .iter()
            .filter_map(|snapshot| {
                let name = wire::last_segment(&snapshot.name);
                let text = descriptions.get(name).copied().unwrap_or_default();
                let label = Label::of(&snapshot.created_at, text);
                let half_made = label.made.is_none()
                    && (map::is_half_made(snapshot, &tasks, id)
                        || self.may_be_scheduled(&instance, snapshot));
                self.warn_of_expiry(vm, snapshot, &label);
                map::backup(snapshot, &label).filter(|_| !half_made)
            })
            .collect();
        backups.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(backups)
    }
}

fn no_such(what: FaultKind) -> AdapterError {
    AdapterError::refused(what, error::absent(what))
}

#[async_trait]
impl Adapter for Incus {
    fn capability(&self) -> &Capability {
        &CAPABILITY
    }

    /// `snapgate-<number of the operation>`, so that what became of a request is found by its name.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            AdapterError::refused(FaultKind::Invalid, "The name cannot be used.").because(error)
        })
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let server = self.api.server(by).await;
        let server = server.map_err(|error| error.of_read(FaultKind::BackendFailed))?;
        let environment = server.environment.filter(|_| server.auth == "trusted");
        let Some(environment) = environment else {
            return Err(AdapterError::refused(
                FaultKind::BackendDenied,
                "The VM manager does not trust the gateway's certificate: add it to the trusted certificates there.",
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

    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let (instance, _) = self.instance(vm, by).await?;
        Ok(map::vm(vm, instance))
    }

    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        Ok(page.of(self.all(vm, by).await?))
    }

    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let seen = self.seen(target, by).await?;
        if let Some(seen) = &seen {
            self.warn_of_expiry(&target.vm, &seen.snapshot, &seen.label);
        }
        seen.filter(|it| !it.half_made)
            .and_then(|it| map::backup(&it.snapshot, &it.label))
            .ok_or_else(|| no_such(FaultKind::NoSuchBackup))
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.before(intent, by).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.begin_it(intent, &key.to_string(), baseline, by).await
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.follow(task, by).await
    }

    async fn changed(&self, task: &TaskRef) {
        if let Ok(job) = serde_json::from_str::<Job>(task.as_str()) {
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

    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let key = key.to_string();
        match self.look_for(intent, &key, baseline, by).await? {
            FindOutcome::NotBegun | FindOutcome::Failed(_) => {}
            found @ (FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Done
            | FindOutcome::NotYet
            | FindOutcome::Unknowable) => {
                return Ok(found);
            }
        }
        // A daemon that was stopped and goes on answers this before it takes up what lies in its sockets.
        tokio::time::sleep(AWAKE).await;
        self.look_for(intent, &key, baseline, by).await
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        let text = "This VM manager cannot stop an operation that has begun: wait for its end.";
        Err(AdapterError::refused(FaultKind::Unsupported, text))
    }
}
