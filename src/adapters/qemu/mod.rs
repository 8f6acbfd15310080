//! QEMU: a running VM through its monitor socket, a stopped one through `qemu-img`. A backup is an internal snapshot.
//!
//! See docs/adapters/qemu.md. Jobs carry our own ids and stay in QEMU until the next one begins, so what became of a
//! request is known for as long as that QEMU lives.

mod backups;
mod block_graph;
mod check;
mod config;
mod disk;
mod error;
mod identity;
mod image;
mod in_use;
mod keys;
mod offline;
mod offline_plan;
mod offline_worker;
mod online;
mod online_failures;
mod own_names;
mod preview;
mod qcow2;
mod qmp;
mod records;
mod restore_markers;
mod vm_access;
mod vm_list;

pub use config::Config;

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
use crate::adapters::adapter::lists_no_vms;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::vm_list_cache::VmListCache;
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
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use config::VmPaths;
use error::QemuError;
use offline::OfflineChanges;
use offline_worker::OfflineWorker;
use online::JobQuery;
use qmp::Monitor;
use records::Baseline;
use records::TaskRecord;
use records::conclude_from_disks;
use records::is_begun;
use records::task_ref;
use vm_access::VmAccess;
use vm_access::VmMode;

const fn verb(recovery: Recovery) -> Option<VerbCapability> {
    Some(VerbCapability {
        recovery,
        // A command is taken off the socket in order: who is answered later knows of those before.
        settle: Duration::from_secs(1),
        cancel: false,
        progress: false,
    })
}

const CAPABILITY: Capability = Capability {
    kind: "qemu",
    // The id of a new backup is never used twice, and a backup is deleted by its identity: asking again is harmless.
    create: verb(Recovery::ReplaySafe),
    update: None,
    delete: verb(Recovery::ReplaySafe),
    // A second restore would discard what was written since. Whether there was a first one is known from the list of jobs, or from the
    // marks on the disks of a stopped VM, whether there was a first one and how far it came.
    restore: verb(Recovery::ReplaySafe),
    kinds: &[BackupKind::Snapshot],
    restore_options: &[],
    online: true,
    memory: true,
    consistent: true,
    // Unless no path of the configuration depends on the id.
    lists_vms: true,
};

/// VMs of QEMU behind the [`Adapter`] trait.
#[derive(Debug)]
pub struct Qemu {
    access: VmAccess,
    worker: Arc<OfflineWorker>,
    capability: Capability,
    vm_list: VmListCache<VmId>,
}

impl Qemu {
    /// Ready at once; nothing is connected before it is needed.
    #[must_use]
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        let lists_vms = vm_list::can_list(&config);
        Self {
            access: VmAccess::new(config, clock, tasks),
            worker: Arc::default(),
            capability: Capability {
                lists_vms,
                ..CAPABILITY
            },
            vm_list: VmListCache::default(),
        }
    }

    /// Changes to VMs that are off.
    const fn offline(&self) -> OfflineChanges<'_> {
        OfflineChanges {
            access: &self.access,
            worker: &self.worker,
        }
    }

    /// Whether a restore that is about to begin was requested before the VM was started, or of an earlier run of it.
    /// `Some`: it is done already; an error: it is not begun.
    async fn check_restart_before_restore(
        &self,
        monitor: &Monitor,
        intent: &Intent,
        paths: &VmPaths,
        before: &Baseline,
        by: Deadline,
    ) -> Result<Option<BeginOutcome>, AdapterError> {
        let process = online::find_process_marker(monitor, by).await?;
        if before.process.is_some() && before.process == process {
            return Ok(None);
        }
        let found = match &before.offline {
            Some(offline) => self.offline().find_started(intent, paths, offline).await?,
            None => FindOutcome::Unknowable,
        };
        match found {
            FindOutcome::Done(_) => Ok(Some(BeginOutcome::Done)),
            FindOutcome::Failed(fault) => Err(AdapterError::refused(fault.kind, fault.text)),
            FindOutcome::NotBegun | FindOutcome::VmChanged => Err(offline_plan::vm_changed()),
            FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => Err(AdapterError::uncertain(
                FaultKind::BackendFailed,
                public_text!(
                    "The VM was stopped and started before the restore began. The outcome of the restore is being determined."
                ),
            )),
        }
    }

    async fn find_online(
        &self,
        monitor: &Monitor,
        intent: &Intent,
        job: &str,
        before: Option<&Baseline>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let verb = intent.verb();
        let vm = &intent.target.vm;
        let paths = self.access.paths_of(vm)?;
        let offline = before.and_then(|before| before.offline.as_ref());
        if let Some(offline) = offline
            && verb == Verb::Restore
        {
            return self.offline().find_started(intent, &paths, offline).await;
        }
        let ran = before.is_some_and(|before| before.ran);
        let query = JobQuery {
            job,
            vm,
            verb,
            tag: Some(intent.target.backup.as_str()),
            ran,
        };
        match online::poll(monitor, query, &paths.disks, by).await? {
            TaskState::Running(_) => {
                return task_ref(job, intent, Some(ran)).map(FindOutcome::Task);
            }
            TaskState::Done(notice) => return Ok(FindOutcome::Done(notice)),
            TaskState::Failed(fault) => return Ok(FindOutcome::Failed(fault)),
            TaskState::Cancelled | TaskState::Gone => {}
        }
        let process = online::find_process_marker(monitor, by).await?;
        // Without a baseline the operation was never begun.
        let same_process =
            before.is_none_or(|before| before.process.is_some() && before.process == process);
        let view = self.access.read_online_vm(monitor, vm, &paths, by).await?;
        if offline.is_some() && !is_begun(intent, &view.disks) {
            return Ok(FindOutcome::VmChanged);
        }
        Ok(conclude_from_disks(intent, same_process, &view.disks))
    }

    /// Begins a change of a running VM. Whether it is done already, and whether the guest ran.
    #[expect(
        clippy::too_many_arguments,
        reason = "a part of begin, with its arguments"
    )]
    async fn begin_online(
        &self,
        monitor: &Monitor,
        intent: &Intent,
        paths: &VmPaths,
        job: &str,
        before: Option<&Baseline>,
        by: Deadline,
    ) -> Result<(Option<BeginOutcome>, bool), AdapterError> {
        if intent.verb() == Verb::Restore
            && let Some(before) = before
            && let Some(done) = self
                .check_restart_before_restore(monitor, intent, paths, before, by)
                .await?
        {
            return Ok((Some(done), before.ran));
        }
        let vm = &intent.target.vm;
        let view = self.access.read_online_vm(monitor, vm, paths, by).await?;
        let ran = view.vm.run_state == Some(RunState::Started);
        let begun = online::begin(monitor, &view, paths, intent, job, by).await?;
        Ok((begun, ran))
    }
}

/// Looks at folders on a thread that may wait for a disk.
async fn run_blocking<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|error| {
            let text = public_text!("The gateway is shutting down. Try again later.");
            Err(AdapterError::unavailable(text).because(error))
        })
}

#[async_trait]
impl Adapter for Qemu {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Gateway
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        identity::is_bound_to(backup.id.as_str(), stored, &backup.identity)
    }

    /// `snapgate-<number of the operation>`: never a mere number, which `qemu-img` may read as the id of a snapshot.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            let text = public_text!("No id could be made for the backup; nothing was changed.");
            AdapterError::refused(FaultKind::Invalid, text).because(error)
        })
    }

    /// VMs are reached one by one when they are needed; of the backend as a whole there are only the image programs.
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        if let Some(product) = self.access.connected_product() {
            return Ok(Health { product });
        }
        if self.access.config.images.is_empty() {
            let product = "QEMU".to_owned();
            return Ok(Health { product });
        }
        let version = self.access.program.version(self.access.time_left(by)).await;
        version.map(|product| Health { product }).map_err(|error| {
            AdapterError::unavailable(public_text!(
                "An image program of the gateway could not be run. Check the programs that the backend is configured with."
            ))
            .because(error)
        })
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        Ok(self.access.read_vm(vm, by).await?.vm.clone())
    }

    async fn list_vms(&self, range: &VmRange, _by: Deadline) -> Result<VmPage, AdapterError> {
        if !self.capability.lists_vms {
            return Err(lists_no_vms());
        }
        let read = || {
            let config = self.access.config.clone();
            run_blocking(move || vm_list::find_ids(&config))
        };
        let now = self.access.clock.instant();
        let ids = self.vm_list.entries(now, read).await?;
        let (config, range) = (self.access.config.clone(), range.clone());
        run_blocking(move || {
            let rest = range.rest_of(&ids, |id| id);
            Ok(range.page_of(rest.iter().map(|id| vm_list::describe(&config, id))))
        })
        .await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let view = self.access.read_vm(vm, by).await?;
        let hidden = self.worker.unfinished_backups(vm);
        Ok(backups::backup_page(&view.disks, page, &hidden))
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
        let view = self.access.read_vm(&target.vm, by).await?;
        let hidden = self.worker.unfinished_backups(&target.vm);
        if hidden.contains(&target.backup) {
            return Err(check::no_such_backup());
        }
        backups::find_backup(&view.disks, target.backup.as_str()).ok_or_else(check::no_such_backup)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.preview_change(intent, by).await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let vm = &intent.target.vm;
        let paths = self.access.paths_of(vm)?;
        let before = match self.access.locate(vm, &paths, by).await? {
            VmMode::Online(monitor) => {
                let view = self.access.read_online_vm(&monitor, vm, &paths, by).await?;
                Baseline {
                    process: Some(online::mark_process(&monitor, by).await?),
                    ran: view.vm.run_state == Some(RunState::Started),
                    offline: None,
                }
            }
            VmMode::Offline => Baseline {
                process: None,
                ran: false,
                offline: Some(self.offline().prepare(intent, &paths, by).await?),
            },
        };
        Ok(before.evidence())
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if let Change::Create(new) = &intent.change
            && new.kind.is_some_and(|kind| kind != BackupKind::Snapshot)
        {
            return Err(AdapterError::refused(
                FaultKind::Unsupported,
                public_text!(
                    "This VM supports backups of type snapshot only; nothing was changed. Request a backup of that type."
                ),
            ));
        }
        let vm = &intent.target.vm;
        let paths = self.access.paths_of(vm)?;
        let job = key.to_string();
        if self.worker.state(&job).is_some() {
            return task_ref(&job, intent, None).map(BeginOutcome::Task);
        }
        if self.worker.is_busy(vm) {
            return Err(QemuError::MainLoopBlocked.into());
        }
        let before = Baseline::parse(baseline);
        let before = before.as_ref();
        let (begun, ran) = match self.access.locate(vm, &paths, by).await? {
            VmMode::Online(monitor) => {
                let begun = self.begin_online(&monitor, intent, &paths, &job, before, by);
                let (begun, ran) = begun.await?;
                (begun, Some(ran))
            }
            VmMode::Offline => {
                let offline = self.offline();
                let begun = offline.begin(intent, &paths, &job, before, by).await?;
                (begun, None)
            }
        };
        match begun {
            Some(done) => Ok(done),
            None => task_ref(&job, intent, ran).map(BeginOutcome::Task),
        }
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let Some(record) = TaskRecord::parse(task) else {
            return Ok(TaskState::Gone);
        };
        let Some(ran) = record.ran else {
            return Ok(self.worker.state(&record.job).unwrap_or(TaskState::Gone));
        };
        let paths = self.access.paths_of(&record.vm)?;
        match self.access.monitor(&record.vm, &paths, by).await {
            Ok(monitor) => {
                let query = JobQuery {
                    job: &record.job,
                    vm: &record.vm,
                    verb: record.verb,
                    tag: record.tag.as_deref(),
                    ran,
                };
                online::poll(&monitor, query, &paths.disks, by).await
            }
            // Jobs end with the QEMU process that ran them.
            Err(QemuError::NotRunning(_)) => Ok(TaskState::Gone),
            Err(error) => Err(error.into()),
        }
    }

    async fn changed(&self, task: &TaskRef) {
        let Some(record) = TaskRecord::parse(task) else {
            return std::future::pending().await;
        };
        if record.ran.is_none() {
            return self.worker.changed().await;
        }
        match self.access.open_monitor(&record.vm).await {
            // An event that came before we listen must not be waited for.
            Some(monitor) if monitor.job(&record.job).as_deref() == Some("concluded") => {}
            Some(monitor) => monitor.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let job = key.to_string();
        match self.worker.state(&job) {
            Some(TaskState::Running(_)) => {
                return task_ref(&job, intent, None).map(FindOutcome::Task);
            }
            Some(TaskState::Done(notice)) => return Ok(FindOutcome::Done(notice)),
            Some(TaskState::Failed(fault)) => return Ok(FindOutcome::Failed(fault)),
            Some(TaskState::Cancelled | TaskState::Gone) | None => {}
        }
        let vm = &intent.target.vm;
        let before = Baseline::parse(baseline);
        let before = before.as_ref();
        let paths = self.access.paths_of(vm)?;
        match self.access.locate(vm, &paths, by).await? {
            VmMode::Online(monitor) => {
                let found = self.find_online(&monitor, intent, &job, before, by);
                found.await
            }
            VmMode::Offline => self.offline().find(intent, &paths, before, by).await,
        }
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(
            FaultKind::Unsupported,
            public_text!("This operation cannot be cancelled and continues. Wait until it ends."),
        ))
    }

    fn needs_baseline(&self, _intent: &Intent) -> bool {
        true
    }
}
