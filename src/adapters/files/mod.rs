//! VMs as directories of disk images, and their backups as directories of whole copies.
//!
//! The mapping, the guarantees at a crash and the losses are described in `docs/adapters/files.md`. In
//! short: a VM is a directory below `root`, its disks are the regular files in it; a backup is a directory
//! below `backups/<vm>/` with `manifest.json` and a copy of every disk, and appears and disappears by one rename.
//! Lossy: only images that no program writes to are backed up (offline), never memory, and of a file its contents,
//! owner and mode are restored, not extended attributes.

mod backup_index;
mod config;
mod copy;
mod create;
mod dir_fd;
mod edit;
mod error;
mod executor;
mod failpoints;
mod file_stamp;
mod folder_marks;
mod image_lock;
mod jobs;
mod journal;
mod keys;
mod layout;
mod loop_devices;
mod manifest;
mod mounts;
mod operator_commands;
mod preflight;
mod preview;
mod read_cache;
mod request;
mod restore;
mod swap;
mod vm_indexes;
mod watch;
mod watch_table;
mod watched_vm;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::adapter::operation_number_as_id;
use crate::adapters::backup_listing::query_by_listing;
use crate::adapters::files::error::Problem;
use crate::adapters::files::executor::Executor;
use crate::adapters::files::failpoints::Failpoints;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::jobs::JobEnd;
use crate::adapters::files::jobs::Jobs;
use crate::adapters::files::jobs::VmReservation;
use crate::adapters::files::layout::OpenError;
use crate::adapters::files::request::Request;
use crate::adapters::files::request::StartOutcome;
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

pub use config::Config;
pub use error::FilesError;
pub use folder_marks::UnmarkedFolders;
pub use operator_commands::Adopted;
pub use operator_commands::FolderError;
pub use operator_commands::adopt_backups;
pub use operator_commands::prepare_folders;

/// Everything is keyed on the disk by the request, so every verb may be sent again.
const fn replay_safe_verb(cancel: bool) -> VerbCapability {
    VerbCapability {
        recovery: Recovery::ReplaySafe,
        settle: Duration::ZERO,
        cancel,
        progress: cancel,
    }
}

const CAPABILITY: Capability = Capability {
    kind: "files",
    create: Some(replay_safe_verb(true)),
    update: Some(replay_safe_verb(false)),
    delete: Some(replay_safe_verb(false)),
    restore: Some(replay_safe_verb(true)),
    kinds: &[BackupKind::Full],
    restore_options: &[],
    online: false,
    memory: false,
    consistent: true,
    lists_vms: true,
};

/// The adapter for one pair of directories.
#[derive(Debug)]
pub struct Files {
    executor: Arc<Executor>,
    jobs: Arc<Jobs>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    capability: Capability,
    vm_list: VmListCache<VmId>,
}

impl Files {
    /// Opens the directories, locks them and removes what an earlier process left of no use. Blocks.
    ///
    /// A directory that is missing or not mounted just now is no error: it is looked for again with every call, and until
    /// then every call answers [`FaultKind::Unavailable`].
    ///
    /// # Errors
    /// [`FilesError`] when it can never work: the directories are nested, locked by another gateway, or the
    /// kernel lacks `openat2`.
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Result<Self, FilesError> {
        Self::with_failpoints(config, clock, tasks, Failpoints::default())
    }

    /// The same, but it is never an error: whatever keeps the directories from being opened is looked at again with every
    /// call, and until it passes every call answers [`FaultKind::Unavailable`]. Blocks.
    #[must_use]
    pub fn when_available(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        let executor = Executor::new(config, Failpoints::default());
        // Tried at once, so that what an earlier process left is recovered before the first call.
        drop(executor.open());
        Self {
            executor: Arc::new(executor),
            jobs: Arc::new(Jobs::default()),
            clock,
            tasks,
            capability: CAPABILITY,
            vm_list: VmListCache::default(),
        }
    }

    fn with_failpoints(
        config: Config,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        failpoints: Failpoints,
    ) -> Result<Self, FilesError> {
        let executor = Executor::new(config, failpoints);
        match executor.open() {
            Ok(_) => {}
            Err(OpenError::Fatal(error)) => return Err(error),
            Err(OpenError::Unavailable(problem)) => {
                tracing::warn!(
                    problem = problem.log_text(),
                    "backend directories unavailable"
                );
            }
        }
        Ok(Self {
            executor: Arc::new(executor),
            jobs: Arc::new(Jobs::default()),
            clock,
            tasks,
            capability: CAPABILITY,
            vm_list: VmListCache::default(),
        })
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Executor) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, AdapterError> {
        let executor = Arc::clone(&self.executor);
        let context = work_context::current();
        let look = move || work_context::run_within(context, || look(&executor));
        match tokio::task::spawn_blocking(look).await {
            Ok(result) => result.map_err(Problem::into_adapter_error),
            Err(error) => Err(AdapterError::unavailable(public_text!(
                "The gateway is shutting down. Try again later."
            ))
            .because(error)),
        }
    }

    /// Runs a request to its end, even when its caller goes away; the receiver gets how it started.
    fn run(
        &self,
        request: Request,
        reservation: VmReservation,
    ) -> oneshot::Receiver<Result<BeginOutcome, AdapterError>> {
        let (start_sender, start) = oneshot::channel();
        let verb = self.capability.verb(request.intent.verb());
        let cancellable = verb.is_some_and(|verb| verb.cancel);
        let job = self.jobs.start(&request.durable_id, cancellable);
        let executor = Arc::clone(&self.executor);
        let now = self.clock.now();
        let context = work_context::current();
        self.tasks.spawn(async move {
            let worker = Arc::clone(&job);
            let work = tokio::task::spawn_blocking(move || {
                work_context::run_within(context, || {
                    let started = executor.start(&request, now);
                    run_to_end(
                        started,
                        &worker,
                        &request.durable_id,
                        reservation,
                        start_sender,
                    )
                })
            });
            // A panic says nothing about the disk.
            job.finish(work.await.unwrap_or(JobEnd::Lost));
        });
        start
    }
}

fn run_to_end(
    started: Result<StartOutcome, Problem>,
    job: &Job,
    durable_id: &str,
    reservation: VmReservation,
    start_sender: oneshot::Sender<Result<BeginOutcome, AdapterError>>,
) -> JobEnd {
    // The receiver is gone when the caller gave up: the job is then found by its durable id.
    match started {
        Ok(StartOutcome::Pending(work)) => {
            drop(start_sender.send(task_outcome(durable_id).map(BeginOutcome::Task)));
            let worked = work(job);
            drop(reservation);
            match worked {
                Ok(replaced) => {
                    job.finish(JobEnd::Done);
                    drop(replaced);
                    JobEnd::Done
                }
                Err(problem) => JobEnd::from(problem),
            }
        }
        Ok(StartOutcome::Done) => {
            drop(reservation);
            job.finish(JobEnd::Done);
            drop(start_sender.send(Ok(BeginOutcome::Done)));
            JobEnd::Done
        }
        Err(problem) => {
            drop(reservation);
            let error = problem.into_adapter_error();
            let end = match error.effect {
                Effect::None => JobEnd::Failed(error.fault.clone()),
                Effect::Possible => JobEnd::Lost,
            };
            job.finish(end.clone());
            drop(start_sender.send(Err(error)));
            end
        }
    }
}

fn task_outcome(durable_id: &str) -> Result<TaskRef, AdapterError> {
    TaskRef::new(durable_id.to_owned()).ok_or_else(|| {
        AdapterError::uncertain(
            FaultKind::BackendFailed,
            public_text!("The change has no valid task id, and its outcome is being determined. Wait for the final Status."),
        )
    })
}

#[async_trait]
impl Adapter for Files {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
        self.run_blocking(|executor| executor.layout()).await?;
        Ok(Health {
            product: "directories of disk images".to_owned(),
        })
    }

    async fn read_vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
        let vm = vm.clone();
        self.run_blocking(move |executor| executor.layout()?.describe_vm(&vm))
            .await
    }

    async fn list_vms(&self, range: &VmRange, _by: Deadline) -> Result<VmPage, AdapterError> {
        let now = self.clock.instant();
        let read = || self.run_blocking(|executor| executor.layout()?.vm_names());
        let names = self.vm_list.entries(now, read).await?;
        let range = range.clone();
        self.run_blocking(move |executor| Ok(executor.layout()?.list_vms(&names, &range)))
            .await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let (vm, page) = (vm.clone(), page.clone());
        self.run_blocking(move |executor| executor.layout()?.list_backups(&vm, &page))
            .await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        let (of, wanted) = (vm.clone(), query.clone());
        let found = self
            .run_blocking(move |executor| executor.layout()?.query_backups(&of, &wanted))
            .await?;
        match found {
            Some(selection) => Ok(selection),
            // Few, or not to be watched: they are read.
            None => query_by_listing(self, vm, query, by).await,
        }
    }

    async fn read_backup(&self, target: &Target, _by: Deadline) -> Result<Backup, AdapterError> {
        if let Some(backup) = self.executor.cached_backup(target) {
            return Ok(backup);
        }
        let (target, now) = (target.clone(), self.clock.instant());
        self.run_blocking(move |executor| executor.layout()?.read_backup(&target, now))
            .await
    }

    async fn preview(&self, intent: &Intent, _by: Deadline) -> Result<Preview, AdapterError> {
        let is_reserved = self.jobs.is_reserved(&intent.target.vm);
        let (intent, now) = (intent.clone(), self.clock.instant());
        self.run_blocking(move |executor| executor.preview(&intent, is_reserved, now))
            .await
    }

    /// Random, so that a request of the same number in a store that was made anew is another request. Before a restore the state of
    /// the VM's disks as well, so that it is not begun again over what was done to them since.
    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        _by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            let text = public_text!("The system's random number generator failed, so nothing was changed. Try again later.");
            AdapterError::unavailable(text).because(error)
        })?;
        let random = u128::from_le_bytes(bytes).to_string();
        let Change::Restore(_) = &intent.change else {
            return Ok(Evidence::new(random));
        };
        let vm = intent.target.vm.clone();
        let fingerprint = self
            .run_blocking(move |executor| executor.fingerprint(&vm))
            .await?;
        Ok(Evidence::new(request::restore_evidence(
            &random,
            &fingerprint,
        )))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let request = Request::new(intent, key, baseline);
        if let Some(job) = self.jobs.find_job(&request.durable_id) {
            match job.end() {
                None => return task_outcome(&request.durable_id).map(BeginOutcome::Task),
                Some(JobEnd::Done) => return Ok(BeginOutcome::Done),
                Some(JobEnd::Failed(_) | JobEnd::Cancelled | JobEnd::Lost) => {}
            }
        }
        // Held before anything is handed to a thread, so that `find` never overtakes it.
        let reservation = self
            .jobs
            .reserve_vm(&intent.target.vm)
            .ok_or_else(|| layout::vm_busy().into_adapter_error())?;
        match self.run(request, reservation).await {
            Ok(begun) => begun,
            Err(error) => {
                let text = public_text!(
                    "The change ended unexpectedly, and its outcome is being determined. Wait for the final Status."
                );
                Err(AdapterError::uncertain(FaultKind::BackendFailed, text).because(error))
            }
        }
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        let job = self.jobs.find_job(task.as_str());
        Ok(job.map_or(TaskState::Gone, |job| job.state()))
    }

    async fn changed(&self, task: &TaskRef) {
        match self.jobs.find_job(task.as_str()) {
            Some(job) => job.ended().await,
            None => std::future::pending().await,
        }
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let request = Request::new(intent, key, baseline);
        let end = match self.jobs.find_job(&request.durable_id) {
            Some(job) => match job.end() {
                None => return task_outcome(&request.durable_id).map(FindOutcome::Task),
                Some(JobEnd::Done) => return Ok(FindOutcome::Done(None)),
                Some(end) => Some(end),
            },
            None => None,
        };
        let Some(reservation) = self.jobs.reserve_vm(&intent.target.vm) else {
            return Ok(FindOutcome::NotYet);
        };
        self.run_blocking(move |executor| {
            let found = executor.find(&request);
            drop(reservation);
            match (end, found) {
                // How the last call ended does not say what those before it have left.
                (Some(JobEnd::Failed(_)), Ok(FindOutcome::HalfDone(fault))) => {
                    Ok(FindOutcome::HalfDone(fault))
                }
                (Some(JobEnd::Failed(_)), Ok(FindOutcome::Done(notice))) => {
                    Ok(FindOutcome::Done(notice))
                }
                (Some(JobEnd::Failed(fault)), _) => Ok(FindOutcome::Failed(fault)),
                (Some(JobEnd::Done | JobEnd::Cancelled | JobEnd::Lost) | None, found) => found,
            }
        })
        .await
    }

    async fn cancel(&self, task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        // What is not remembered has ended, and `poll` says so.
        match self.jobs.find_job(task.as_str()) {
            Some(job) if !job.cancel() => {
                let text =
                    public_text!("Updates and deletes cannot be cancelled. Wait for the end.");
                Err(AdapterError::refused(FaultKind::Unsupported, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        operation_number_as_id(key)
    }

    fn needs_baseline(&self, _intent: &Intent) -> bool {
        true
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod folder_tests;
#[cfg(test)]
mod image_use_tests;
#[cfg(test)]
mod integrity_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod preview_tests;
#[cfg(test)]
mod read_cache_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod test_fixture;
#[cfg(test)]
mod tests;
