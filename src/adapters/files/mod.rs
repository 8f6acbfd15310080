//! VMs as directories of disk images.
//!
//! A VM is a directory below `root`, named by its id; every regular file in it is one of its disks. A backup is a
//! directory `backups/<vm>/<id>` with a copy of each disk and a manifest. See `docs/adapters/files.md`.
//!
//! What is lossy: nothing of a disk; the memory of a VM is not kept, so the VM must be stopped.

mod change;
mod config;
mod copy;
mod error;
mod job;
mod lock;
mod manifest;
mod restore;
mod site;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;

use crate::adapters::files::error::Failure;
use crate::adapters::files::error::Outcome;
use crate::adapters::files::job::EndsSomehow;
use crate::adapters::files::job::Job;
use crate::adapters::files::site::Site;
use crate::adapters::port::Adapter;
use crate::adapters::port::AdapterError;
use crate::adapters::port::Begun;
use crate::adapters::port::Capability;
use crate::adapters::port::Found;
use crate::adapters::port::Health;
use crate::adapters::port::Recovery;
use crate::adapters::port::TaskState;
use crate::adapters::port::VerbCapability;
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

pub use config::Config;

/// Ended jobs that are remembered, so that their end can be asked for more than once.
const ENDED_JOBS_MAX: usize = 1024;

/// Why the directories cannot be used. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory cannot be opened.
    #[error("the folder {path} cannot be opened: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process works on it.
    #[error("the folder {path} is in use by another snapgate process; stop that one first")]
    InUse {
        /// Which.
        path: PathBuf,
    },
}

/// VMs as directories of disk images.
#[derive(Debug)]
pub struct Files {
    site: Arc<Site>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    jobs: Arc<Jobs>,
    capability: Capability,
}

/// The work that this process has begun.
#[derive(Debug, Default)]
struct Jobs {
    by_key: Mutex<BTreeMap<String, Arc<Job>>>,
    /// Requests whose begin has not returned yet, also when nobody waits for it any more.
    beginning: Mutex<BTreeSet<String>>,
}

/// Marks a request as beginning while it lives.
struct Beginning(Arc<Jobs>, String);

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.beginning().remove(&self.1);
    }
}

impl Jobs {
    fn by_key(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Job>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beginning(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &str) -> Option<Arc<Job>> {
        self.by_key().get(key).map(Arc::clone)
    }

    /// A job for this request; `None` when it has one that is at work or was done.
    fn add(&self, key: &str) -> Option<Arc<Job>> {
        let mut jobs = self.by_key();
        if let Some(job) = jobs.get(key) {
            match job.state() {
                TaskState::Running(_) | TaskState::Done => return None,
                TaskState::Failed(_) | TaskState::Cancelled | TaskState::Gone => {}
            }
        }
        if jobs.len() >= ENDED_JOBS_MAX {
            // Keys begin with rising numbers of equal length: the first that ended is the oldest.
            let old = jobs.iter().find(|(_, job)| job.has_ended());
            if let Some(old) = old.map(|(key, _)| key.clone()) {
                jobs.remove(&old);
            }
        }
        let job = Arc::new(Job::new());
        jobs.insert(key.to_owned(), Arc::clone(&job));
        Some(job)
    }
}

fn capability() -> Capability {
    let verb = |cancel, progress| {
        Some(VerbCapability {
            recovery: Recovery::ReplaySafe,
            settle: Duration::ZERO,
            cancel,
            progress,
        })
    };
    Capability {
        kind: "files",
        create: verb(true, true),
        update: verb(false, false),
        delete: verb(false, false),
        restore: verb(true, true),
        kinds: &[BackupKind::Full],
        restore_options: &[],
        online: false,
        memory: false,
        consistent: true,
    }
}

impl Files {
    /// Opens the directories, and finishes or undoes what an earlier process left half done.
    ///
    /// Does blocking reads and writes.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Result<Self, OpenError> {
        let site = Site::open(config)?;
        for vm in site.vms().unwrap_or_default() {
            let turn = site.turn(&vm);
            let _turn = turn.wait();
            let recovered = restore::recover(&site, &vm).and_then(|()| site.tidy(&vm));
            if let Err(failure) = recovered {
                // Tried again before anything else is done to this VM.
                tracing::warn!(%vm, text = failure.fault().text, private = failure.private(), "VM not recovered yet");
            }
        }
        Ok(Self {
            site: Arc::new(site),
            clock,
            tasks,
            jobs: Arc::default(),
            capability: capability(),
        })
    }

    /// Does blocking work away from the threads that serve requests. It goes on when the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Site) -> Outcome<T> + Send + 'static,
    ) -> Result<T, AdapterError> {
        let site = Arc::clone(&self.site);
        match tokio::task::spawn_blocking(move || work(&site)).await {
            Ok(done) => Ok(done?),
            Err(error) => Err(AdapterError::uncertain(
                FaultKind::BackendFailed,
                "the work on the files ended unexpectedly",
            )
            .because(error)),
        }
    }

    /// Starts long work for a request, unless it has been started already.
    fn start(
        &self,
        key: &str,
        work: impl FnOnce(&Site, &Job) -> Outcome<()> + Send + 'static,
    ) -> Result<Begun, AdapterError> {
        let task = TaskRef::new(key.to_owned())
            .ok_or_else(|| AdapterError::refused(FaultKind::Invalid, "the request has no name"))?;
        if let Some(job) = self.jobs.add(key) {
            let site = Arc::clone(&self.site);
            let name = key.to_owned();
            drop(self.tasks.spawn(async move {
                let worker = tokio::task::spawn_blocking(move || {
                    let end = EndsSomehow(Arc::clone(&job));
                    let outcome = work(&site, &job);
                    if let Err(failure) = &outcome {
                        tracing::warn!(
                            key = name,
                            text = failure.fault().text,
                            private = failure.private(),
                            "work on files failed"
                        );
                    }
                    job.finish(&outcome);
                    drop(end);
                });
                // Its end is told by the job itself, a panic included.
                drop(worker.await);
            }));
        }
        Ok(Begun::Task(task))
    }

    async fn begin_update(&self, intent: &Intent, key: String) -> Result<Begun, AdapterError> {
        let beginning = self.beginning(&key);
        let intent = intent.clone();
        self.blocking(move |site| {
            let _beginning = beginning;
            match &intent.change {
                Change::Update(patch) => change::update(site, &intent, patch, &key),
                Change::Delete => change::delete(site, &intent, &key),
                Change::Create(_) | Change::Restore(_) => Ok(()),
            }
        })
        .await?;
        Ok(Begun::Done)
    }

    fn beginning(&self, key: &str) -> Beginning {
        self.jobs.beginning().insert(key.to_owned());
        Beginning(Arc::clone(&self.jobs), key.to_owned())
    }

    /// Removes the files of a deleted backup without letting anybody wait.
    fn sweep(&self, target: Target, key: String) {
        let site = Arc::clone(&self.site);
        drop(self.tasks.spawn(async move {
            let swept = tokio::task::spawn_blocking(move || change::sweep(&site, &target, &key));
            if let Ok(Err(failure)) = swept.await {
                tracing::warn!(
                    private = failure.private(),
                    "files of a deleted backup are left"
                );
            }
        }));
    }
}

#[async_trait]
impl Adapter for Files {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _by: Deadline) -> Result<Health, AdapterError> {
        self.blocking(|site| site.vms().map(drop)).await?;
        Ok(Health {
            product: "directories of disk images".to_owned(),
        })
    }

    async fn vm(&self, vm: &VmId, _by: Deadline) -> Result<Vm, AdapterError> {
        let vm = vm.clone();
        self.blocking(move |site| site.vm(&vm)).await
    }

    async fn list(
        &self,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let (vm, page) = (vm.clone(), page.clone());
        self.blocking(move |site| site.list(&vm, &page)).await
    }

    async fn read(&self, target: &Target, _by: Deadline) -> Result<Backup, AdapterError> {
        let target = target.clone();
        self.blocking(move |site| site.read(&target)).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<Begun, AdapterError> {
        let key = key.to_string();
        let (wish, name) = (intent.clone(), key.clone());
        match &intent.change {
            Change::Create(new) => {
                let new = new.clone();
                let (asked, target) = (new.clone(), intent.target.clone());
                let done = self
                    .blocking(move |site| change::check_create(site, &wish.target, &asked, &name))
                    .await?;
                if done {
                    return Ok(Begun::Done);
                }
                let (now, name) = (self.clock.now(), key.clone());
                self.start(&key, move |site, job| {
                    change::create(site, &target, &new, &name, now, job)
                })
            }
            Change::Restore(_) => {
                let again = wish.clone();
                let done = self
                    .blocking({
                        let name = name.clone();
                        move |site| restore::check(site, &again, &name)
                    })
                    .await?;
                if done {
                    return Ok(Begun::Done);
                }
                self.start(&key, move |site, job| {
                    restore::restore(site, &wish, &name, job)
                })
            }
            Change::Update(_) => self.begin_update(intent, key).await,
            Change::Delete => {
                let begun = self.begin_update(intent, key.clone()).await?;
                self.sweep(intent.target.clone(), key);
                Ok(begun)
            }
        }
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        let job = self.jobs.find(task.as_str());
        Ok(job.map_or(TaskState::Gone, |job| job.state()))
    }

    async fn stirred(&self, task: &TaskRef) {
        match self.jobs.find(task.as_str()) {
            Some(job) if !job.has_ended() => job.ended().await,
            Some(_) | None => std::future::pending().await,
        }
    }

    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<Found, AdapterError> {
        let key = key.to_string();
        if self.jobs.beginning().contains(&key) {
            return Ok(Found::NotYet);
        }
        if let Some(job) = self.jobs.find(&key) {
            match job.state() {
                TaskState::Running(_) => {
                    return Ok(TaskRef::new(key).map_or(Found::Unknowable, Found::Task));
                }
                TaskState::Done => return Ok(Found::Done),
                TaskState::Failed(fault) => return Ok(Found::Failed(fault)),
                TaskState::Cancelled => return Ok(Found::Failed(Failure::Cancelled.fault())),
                TaskState::Gone => {}
            }
        }
        let intent = intent.clone();
        self.blocking(move |site| evidence(site, &intent, &key))
            .await
    }

    async fn cancel(&self, task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        match self.jobs.find(task.as_str()) {
            Some(job) if job.cancel() => Ok(()),
            Some(_) => Err(AdapterError::refused(
                FaultKind::Conflict,
                "it is too late to cancel",
            )),
            None => Err(AdapterError::refused(
                FaultKind::Conflict,
                "there is nothing to cancel",
            )),
        }
    }
}

/// What the disk tells about a request that this process does not know.
fn evidence(site: &Site, intent: &Intent, key: &str) -> Outcome<Found> {
    let vm = &intent.target.vm;
    let turn = site.turn(vm);
    let _turn = turn.wait();
    let done = match &intent.change {
        Change::Create(_) => change::made_by(site, &intent.target)?.is_some_and(|it| it == key),
        Change::Update(_) => match site.shown(intent) {
            Ok((_, manifest)) => manifest.changed_by.as_deref() == Some(key),
            Err(failure) => return Ok(Found::Failed(failure.fault())),
        },
        Change::Delete => change::is_gone(site, intent)?,
        Change::Restore(_) => {
            match restore::recover(site, vm) {
                Ok(()) => {}
                // The VM was started in the meantime: the restore goes on once it is stopped.
                Err(Failure::Fault(fault)) if fault.kind == FaultKind::Busy => {
                    return Ok(Found::NotYet);
                }
                Err(failure) => return Err(failure),
            }
            restore::was_last(&site.vm_dir(vm)?, key)?
        }
    };
    Ok(if done { Found::Done } else { Found::NotBegun })
}
