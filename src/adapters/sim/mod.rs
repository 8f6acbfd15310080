//! A VM manager in memory with scripted delays, progress and faults, for demos, tests and benchmarks.
//!
//! Recognises a request key it has seen, so every verb is replay-safe unless the configuration says otherwise. The
//! world outlives the adapters on it, so that tests can stop one gateway and start another; [`Remote`] is a world
//! that outlives the gateway's process.

mod config;
mod keys;
mod remote;
mod simulation;
mod world;

pub use config::Config;
pub use remote::Remote;

use std::sync::Arc;

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
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::layers::Call;
use crate::adapters::layers::Script;
use crate::model::Backup;
use crate::model::BackupId;
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
use crate::runtime::Tasks;
use crate::runtime::work_context;
use world::World;

/// The simulated VM manager seen through the port.
#[derive(Debug)]
pub struct Sim {
    world: Arc<World>,
    tasks: Tasks,
}

/// What tests do to the simulated VM manager behind the gateway's back, and see of it. Clones share it.
#[derive(Clone, Debug)]
pub struct SimControl(Arc<World>);

impl Sim {
    /// A new VM manager with the VMs and backups of the configuration.
    #[must_use]
    pub fn new(config: &Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            world: Arc::new(World::new(config, clock)),
            tasks,
        }
    }

    /// The hand behind the scenes.
    #[must_use]
    pub fn control(&self) -> SimControl {
        SimControl(Arc::clone(&self.world))
    }
}

impl SimControl {
    /// Another adapter on the same VM manager, as after a restart of the gateway.
    #[must_use]
    pub fn adapter(&self, tasks: Tasks) -> Sim {
        Sim {
            world: Arc::clone(&self.0),
            tasks,
        }
    }

    /// What goes wrong with the next calls.
    #[must_use]
    pub fn script(&self) -> &Script {
        &self.0.script
    }

    /// What the VM holds in memory and on disk; `None` when there is no such VM.
    #[must_use]
    pub fn content(&self, vm: &VmId) -> Option<u64> {
        self.0.content(vm)
    }

    /// Changes what the VM holds. Says whether there is such a VM.
    pub fn write(&self, vm: &VmId, content: u64) -> bool {
        self.0.write(vm, content)
    }

    /// Adds a VM without backups, unless there is one of that id.
    pub fn add_vm(&self, vm: &VmId) {
        self.0.set_vm(vm, true);
    }

    /// Removes a VM with its backups.
    pub fn remove_vm(&self, vm: &VmId) {
        self.0.set_vm(vm, false);
    }

    /// How often the VM was restored.
    #[must_use]
    pub fn restores(&self, vm: &VmId) -> u64 {
        self.0.restores(vm)
    }

    /// How often the request was carried out: must never exceed one.
    #[must_use]
    pub fn executions(&self, key: RequestKey) -> u64 {
        self.0.executions(key)
    }

    /// The VM manager forgets the task of this request: polls answer [`TaskState::Gone`].
    pub fn forget(&self, key: RequestKey) {
        self.0.forget(key);
    }

    /// The next task that begins fails half way, and leaves a half-made backup if it was a create.
    pub fn fail_next_task(&self, kind: FaultKind) {
        self.0.fail_next_task(kind);
    }
}

#[async_trait]
impl Adapter for Sim {
    fn capability(&self) -> &Capability {
        &self.world.capability
    }

    /// `b<number of the operation>`, which no backup of the start is called.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        simulation::mint_backup_id(key)
    }

    /// It knows every request by its key.
    fn needs_baseline(&self, _intent: &Intent) -> bool {
        false
    }

    async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
        let product = concat!("snapgate sim ", env!("CARGO_PKG_VERSION")).to_owned();
        let work = async { Ok(Health { product }) };
        self.world.script.play(Call::Health, work).await
    }

    async fn read_vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
        let work = async { self.world.vm(vm) };
        self.world.script.play(Call::Vm, work).await
    }

    async fn list_vms(&self, range: &VmRange, _by: Deadline) -> Result<VmPage, AdapterError> {
        let work = async { Ok(self.world.vms(range)) };
        self.world.script.play(Call::Vms, work).await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let work = async { self.world.list(vm, page) };
        self.world.script.play(Call::List, work).await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, _by: Deadline) -> Result<Backup, AdapterError> {
        let work = async { self.world.read(target) };
        self.world.script.play(Call::Read, work).await
    }

    async fn preview(&self, intent: &Intent, _by: Deadline) -> Result<Preview, AdapterError> {
        let work = async { self.world.preview(intent) };
        self.world.script.play(Call::Preview, work).await
    }

    /// Goes on when the caller goes away, as a request does that has reached a VM manager.
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if self.world.script.is_empty() {
            // Done at once, so there is nothing that could outlive the caller.
            return self.world.begin(intent, key);
        }
        let world = Arc::clone(&self.world);
        let intent = intent.clone();
        let sent = self.tasks.spawn(work_context::inherit(async move {
            let work = async { world.begin(&intent, key) };
            world.script.play(Call::Begin, work).await
        }));
        sent.await.unwrap_or_else(|ended| {
            let text = public_text!("The simulated VM manager failed, and the outcome is being determined. Wait for the final Status.");
            Err(AdapterError::uncertain(FaultKind::BackendFailed, text).because(ended))
        })
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        let work = async { Ok(self.world.poll(task)) };
        self.world.script.play(Call::Poll, work).await
    }

    async fn changed(&self, task: &TaskRef) {
        self.world.changed(task).await;
    }

    async fn find_outcome(
        &self,
        _intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let work = async {
            Ok(match self.world.recovery {
                Recovery::ReplaySafe | Recovery::Listable => self.world.find(key),
                Recovery::NoTrace => FindOutcome::Unknowable,
            })
        };
        self.world.script.play(Call::Find, work).await
    }

    async fn cancel(&self, task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        let work = async { self.world.cancel(task) };
        self.world.script.play(Call::Cancel, work).await
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    async fn baseline(
        &self,
        _intent: &Intent,
        _key: RequestKey,
        _by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
