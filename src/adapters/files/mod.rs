//! VMs as directories of disk images, and their backups as directories of whole copies.
//!
//! What maps to what, what is promised at a crash and what is lossy is told in `docs/adapters/files.md`. In
//! short: a VM is a directory below `root`, its disks are the regular files in it; a backup is a directory
//! below `backups/<vm>/` with `manifest.json` and a copy of every disk, and appears and disappears by one rename.
//! Lossy: only images that nobody writes to are backed up (offline), never memory, and of a file its contents,
//! owner and mode are restored, not extended attributes.

mod adopt;
mod change;
mod checks;
mod config;
mod copy;
mod create;
mod error;
mod faults;
mod jobs;
mod journal;
mod keys;
mod lock;
mod loops;
mod manifest;
mod marks;
mod mounts;
mod places;
mod recall;
mod restore;
mod stamp;
mod swap;
mod table;
mod tree;
mod watch;
mod work;

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
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::files::error::Problem;
use crate::adapters::files::faults::Faults;
use crate::adapters::files::jobs::End;
use crate::adapters::files::jobs::Hold;
use crate::adapters::files::jobs::Job;
use crate::adapters::files::jobs::Jobs;
use crate::adapters::files::places::Closed;
use crate::adapters::files::work::Disk;
use crate::adapters::files::work::Request;
use crate::adapters::files::work::Started;
use crate::model::Backup;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Page;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;

pub use adopt::Adopted;
pub use adopt::FolderError;
pub use adopt::adopt;
pub use adopt::prepare_folders;
pub use config::Config;
pub use error::FilesError;
pub use marks::Take;

/// Everything is keyed on the disk by the request, so every verb may be sent again.
const fn verb(cancel: bool) -> VerbCapability {
    VerbCapability {
        recovery: Recovery::ReplaySafe,
        settle: Duration::ZERO,
        cancel,
        progress: cancel,
    }
}

const CAPABILITY: Capability = Capability {
    kind: "files",
    create: Some(verb(true)),
    update: Some(verb(false)),
    delete: Some(verb(false)),
    restore: Some(verb(true)),
    kinds: &[BackupKind::Full],
    restore_options: &[],
    online: false,
    memory: false,
    consistent: true,
};

/// The adapter for one pair of directories.
#[derive(Debug)]
pub struct Files {
    disk: Arc<Disk>,
    jobs: Arc<Jobs>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    capability: Capability,
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
        Self::with_faults(config, clock, tasks, Faults::default())
    }

    /// The same, but it is never an error: whatever keeps the directories from being opened is looked at again with every
    /// call, and until it passes every call answers [`FaultKind::Unavailable`]. Blocks.
    #[must_use]
    pub fn when_available(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        let disk = Disk::new(config, Faults::default());
        // Tried at once, so that what an earlier process left is recovered before the first call.
        drop(disk.open());
        Self {
            disk: Arc::new(disk),
            jobs: Arc::new(Jobs::default()),
            clock,
            tasks,
            capability: CAPABILITY,
        }
    }

    fn with_faults(
        config: Config,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        faults: Faults,
    ) -> Result<Self, FilesError> {
        let disk = Disk::new(config, faults);
        match disk.open() {
            Ok(_) => {}
            Err(Closed::Error(error)) => return Err(error),
            Err(Closed::Problem(problem)) => {
                tracing::warn!(
                    problem = problem.in_full(),
                    "the folders of a backend cannot be opened yet"
                );
            }
        }
        Ok(Self {
            disk: Arc::new(disk),
            jobs: Arc::new(Jobs::default()),
            clock,
            tasks,
            capability: CAPABILITY,
        })
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Disk) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, AdapterError> {
        let disk = Arc::clone(&self.disk);
        match tokio::task::spawn_blocking(move || look(&disk)).await {
            Ok(result) => result.map_err(Problem::into_adapter_error),
            Err(error) => Err(AdapterError::unavailable("the gateway is stopping").because(error)),
        }
    }

    /// Runs a request to its end, whoever waits; the receiver learns how it started.
    fn run(
        &self,
        request: Request,
        hold: Hold,
    ) -> oneshot::Receiver<Result<BeginOutcome, AdapterError>> {
        let (told, start) = oneshot::channel();
        let verb = self.capability.verb(request.intent.verb());
        let cancellable = verb.is_some_and(|verb| verb.cancel);
        let job = self.jobs.start(&request.mark, cancellable);
        let disk = Arc::clone(&self.disk);
        let now = self.clock.now();
        self.tasks.spawn(async move {
            let worker = Arc::clone(&job);
            let work = tokio::task::spawn_blocking(move || {
                let started = disk.start(&request, now);
                drive(started, &worker, &request.mark, hold, told)
            });
            // A panic says nothing about the disk.
            job.finish(work.await.unwrap_or(End::Lost));
        });
        start
    }
}

fn drive(
    started: Result<Started, Problem>,
    job: &Job,
    mark: &str,
    hold: Hold,
    told: oneshot::Sender<Result<BeginOutcome, AdapterError>>,
) -> End {
    // Nobody listens when the caller gave up: the job then is found by its mark.
    match started {
        Ok(Started::Work(work)) => {
            drop(told.send(task(mark).map(BeginOutcome::Task)));
            let worked = work(job);
            drop(hold);
            match worked {
                Ok(replaced) => {
                    job.finish(End::Done);
                    drop(replaced);
                    End::Done
                }
                Err(problem) => End::from(problem),
            }
        }
        Ok(Started::Done) => {
            drop(hold);
            job.finish(End::Done);
            drop(told.send(Ok(BeginOutcome::Done)));
            End::Done
        }
        Err(problem) => {
            drop(hold);
            let error = problem.into_adapter_error();
            let end = match error.effect {
                Effect::None => End::Failed(error.fault.clone()),
                Effect::Possible => End::Lost,
            };
            job.finish(end.clone());
            drop(told.send(Err(error)));
            end
        }
    }
}

fn task(mark: &str) -> Result<TaskRef, AdapterError> {
    TaskRef::new(mark.to_owned()).ok_or_else(|| {
        AdapterError::uncertain(FaultKind::BackendFailed, "the work cannot be referred to")
    })
}

fn held() -> AdapterError {
    let text = "another change of the VM or its backups is still being made";
    AdapterError::refused(FaultKind::Busy, text)
}

#[async_trait]
impl Adapter for Files {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
        self.look(|disk| disk.places()).await?;
        Ok(Health {
            product: "directories of disk images".to_owned(),
        })
    }

    async fn vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
        let vm = vm.clone();
        self.look(move |disk| disk.places()?.describe(&vm)).await
    }

    async fn list(
        &self,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let (vm, page) = (vm.clone(), page.clone());
        self.look(move |disk| disk.places()?.list(&vm, &page)).await
    }

    async fn read(&self, target: &Target, _by: Deadline) -> Result<Backup, AdapterError> {
        if let Some(backup) = self.disk.recalled(target) {
            return Ok(backup);
        }
        let (target, now) = (target.clone(), self.clock.instant());
        self.look(move |disk| disk.places()?.read(&target, now))
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
            AdapterError::unavailable("the system gives no random numbers").because(error)
        })?;
        let random = u128::from_le_bytes(bytes).to_string();
        let Change::Restore(_) = &intent.change else {
            return Ok(Evidence::new(random));
        };
        let vm = intent.target.vm.clone();
        let fingerprint = self.look(move |disk| disk.fingerprint(&vm)).await?;
        Ok(Evidence::new(work::evidence(&random, &fingerprint)))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let request = Request::new(intent, key, baseline);
        if let Some(job) = self.jobs.job(&request.mark) {
            match job.end() {
                None => return task(&request.mark).map(BeginOutcome::Task),
                Some(End::Done) => return Ok(BeginOutcome::Done),
                Some(End::Failed(_) | End::Cancelled | End::Lost) => {}
            }
        }
        // Held before anything is handed to a thread, so that `find` never overtakes it.
        let hold = self.jobs.hold(&intent.target.vm).ok_or_else(held)?;
        match self.run(request, hold).await {
            Ok(begun) => begun,
            Err(error) => {
                let text = "the work ended before it told how it began";
                Err(AdapterError::uncertain(FaultKind::BackendFailed, text).because(error))
            }
        }
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        let job = self.jobs.job(task.as_str());
        Ok(job.map_or(TaskState::Gone, |job| job.state()))
    }

    async fn changed(&self, task: &TaskRef) {
        match self.jobs.job(task.as_str()) {
            Some(job) => job.ended().await,
            None => std::future::pending().await,
        }
    }

    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let request = Request::new(intent, key, baseline);
        let end = match self.jobs.job(&request.mark) {
            Some(job) => match job.end() {
                None => return task(&request.mark).map(FindOutcome::Task),
                Some(End::Done) => return Ok(FindOutcome::Done),
                Some(end) => Some(end),
            },
            None => None,
        };
        let Some(hold) = self.jobs.hold(&intent.target.vm) else {
            return Ok(FindOutcome::NotYet);
        };
        self.look(move |disk| {
            let found = disk.find(&request);
            drop(hold);
            match (end, found) {
                // How the last call ended does not say what those before it have left.
                (Some(End::Failed(_)), Ok(FindOutcome::HalfDone(fault))) => {
                    Ok(FindOutcome::HalfDone(fault))
                }
                (Some(End::Failed(_)), Ok(FindOutcome::Done)) => Ok(FindOutcome::Done),
                (Some(End::Failed(fault)), _) => Ok(FindOutcome::Failed(fault)),
                (Some(End::Done | End::Cancelled | End::Lost) | None, found) => found,
            }
        })
        .await
    }

    async fn cancel(&self, task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        // What is not remembered has ended, and `poll` says so.
        match self.jobs.job(task.as_str()) {
            Some(job) if !job.cancel() => {
                let text = "this kind of change cannot be cancelled";
                Err(AdapterError::refused(FaultKind::Unsupported, text))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod folder_tests;
#[cfg(test)]
mod integrity_tests;
#[cfg(test)]
mod recall_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod tests;
