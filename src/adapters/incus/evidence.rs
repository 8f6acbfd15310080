//! What became of a request: from its operation while that is known, else from what it left behind.
//!
//! Operations are forgotten five seconds after they end, and when the daemon ends. What stays: a snapshot named after
//! the request that made it, the label of a snapshot, and what a restore does to the instance.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::TaskState;
use crate::adapters::incus::Incus;
use crate::adapters::incus::Job;
use crate::adapters::incus::Make;
use crate::adapters::incus::Seen;
use crate::adapters::incus::aftermath::Data;
use crate::adapters::incus::aftermath::is_restored;
use crate::adapters::incus::aftermath::is_running;
use crate::adapters::incus::aftermath::of_restore;
use crate::adapters::incus::aftermath::run_state;
use crate::adapters::incus::map;
use crate::adapters::incus::wire;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::TaskRef;

/// The status of operations that ended well.
const SUCCESS: u16 = 200;
/// The status of operations that were cancelled.
const CANCELLED: u16 = 401;

/// What was there before a change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Before {
    /// When the instance was made: another one may carry its name later.
    created: String,
    /// What changes with each restore; nothing on versions without it.
    pub(super) generation: Option<String>,
    /// A hash over the label.
    label: String,
    /// Whether the instance was running.
    pub(super) ran: bool,
}

impl Before {
    pub(super) fn of(baseline: Option<&Evidence>) -> Self {
        baseline
            .and_then(|baseline| serde_json::from_str(baseline.as_str()).ok())
            .unwrap_or_default()
    }
}

impl Incus {
    /// What the instance and the label are like before the change.
    pub(super) async fn before(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        match &intent.change {
            Change::Create(_) | Change::Delete => return Ok(None),
            Change::Update(_) | Change::Restore(_) => {}
        }
        let Some(seen) = self.seen(&intent.target, by).await? else {
            return Ok(None);
        };
        let before = Before {
            label: hash(&seen),
            ran: is_running(&seen.instance),
            generation: map::generation(&seen.instance).map(str::to_owned),
            created: seen.instance.created_at,
        };
        Ok(Evidence::new(serde_json::json!(before).to_string()))
    }

    pub(super) async fn follow(
        &self,
        task: &TaskRef,
        by: Deadline,
    ) -> Result<TaskState, AdapterError> {
        let Ok(job) = serde_json::from_str::<Job>(task.as_str()) else {
            return Ok(TaskState::Gone);
        };
        let task = self.api.operation(&job.operation, by).await;
        let task = task.map_err(|error| error.of_read(FaultKind::BackendFailed))?;
        let Some(task) = task else {
            return Ok(TaskState::Gone);
        };
        match task.status_code {
            status if status < SUCCESS => Ok(TaskState::Running(None)),
            _ if job.doubtful => Ok(TaskState::Gone),
            SUCCESS => match &job.make {
                Some(make) => self.label_made(make, by).await,
                None => Ok(TaskState::Done),
            },
            CANCELLED => Ok(TaskState::Cancelled),
            _ => {
                tracing::warn!(operation = %task.id, error = task.err, "operation of the VM manager failed");
                let making = job.make.as_ref().map(|make| &make.target);
                let doing = job.doing.as_ref();
                let fault = self.aftermath(doing, making, &task.err, by).await?;
                Ok(TaskState::Failed(fault))
            }
        }
    }

    /// Labels a snapshot as whole once the operation that made it ended well. Doing it again changes nothing.
    async fn label_made(&self, make: &Make, by: Deadline) -> Result<TaskState, AdapterError> {
        let Some(seen) = self.seen(&make.target, by).await? else {
            let text = "The backup was made, and then removed by another client. The data of the VM was not changed. Create \
                        the backup again.";
            return Ok(TaskState::Failed(Fault::new(FaultKind::NoSuchBackup, text)));
        };
        let (id, made) = (make.target.backup.as_str(), &seen.snapshot.created_at);
        if make.new.protected {
            self.keep(&make.target, &seen.snapshot, by).await?;
        }
        self.write_label(&seen.path, id, made, by, |label| {
            if label.made.is_some() {
                return false;
            }
            label.fill(&make.new);
            label.made = Some(make.key.clone());
            true
        })
        .await?;
        Ok(TaskState::Done)
    }

    pub(super) async fn look_for(
        &self,
        intent: &Intent,
        key: &str,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let target = &intent.target;
        // Asked first: what is no longer at work by now has left its evidence when the snapshot is looked at.
        let tasks = self.tasks(by).await?;
        let seen = match self.seen(target, by).await {
            // Without the VM nothing about it can be told.
            Err(error) if error.fault.kind == FaultKind::NoSuchVm => {
                return Ok(FindOutcome::Unknowable);
            }
            seen => seen?,
        };
        if let Change::Create(new) = &intent.change {
            return created(seen.as_ref(), &tasks, target, new, key);
        }
        let known = intent.identity.as_ref().map(|identity| identity.as_str());
        let seen = seen.filter(|it| known == Some(it.snapshot.created_at.as_str()));
        let at_work = |it: &&wire::Task| map::is_at_work(it, target.vm.as_str());
        if let Some(task) = tasks.iter().find(at_work) {
            return doubtful(task);
        }
        Ok(match &intent.change {
            Change::Create(_) => FindOutcome::Unknowable,
            Change::Update(_) => updated(seen.as_ref(), key, &Before::of(baseline)),
            Change::Delete => deleted(seen.as_ref(), key),
            Change::Restore(_) => restored(seen.as_ref(), key, &Before::of(baseline)),
        })
    }
}

fn hash(seen: &Seen) -> String {
    blake3::hash(seen.label.text().as_bytes()).to_string()
}

/// An operation that may be ours: it is followed, and when it ends evidence is looked for again.
fn doubtful(task: &wire::Task) -> Result<FindOutcome, AdapterError> {
    let job = Job {
        operation: task.id.clone(),
        doubtful: true,
        make: None,
        doing: None,
    };
    job.task().map(FindOutcome::Task)
}

/// The snapshot carries the key in its name, so that it is ours or not there.
fn created(
    seen: Option<&Seen>,
    tasks: &[wire::Task],
    target: &Target,
    new: &NewBackup,
    key: &str,
) -> Result<FindOutcome, AdapterError> {
    let vm = target.vm.as_str();
    let Some(seen) = seen else {
        if tasks.iter().any(|task| map::is_making(task, vm)) {
            return Ok(FindOutcome::NotYet);
        }
        let text = "The backup was not made, and nothing is left of it. The data of the VM was not changed. Create the \
                    backup again.";
        return Ok(FindOutcome::Failed(Fault::new(
            FaultKind::NotExecuted,
            text,
        )));
    };
    if seen.label.made.as_deref() == Some(key) {
        return Ok(FindOutcome::Done);
    }
    // One at a time makes snapshots of a VM, so that the last one begun before the snapshot is the one that made it.
    let made = map::timestamp(&seen.snapshot.created_at);
    let maker = tasks
        .iter()
        .filter(|task| task.description == map::MAKING && map::concerns(task, vm))
        .filter(|task| map::timestamp(&task.created_at) <= made)
        .max_by_key(|task| map::timestamp(&task.created_at));
    let Some(maker) = maker else {
        // It may be whole: its operation may have ended and been forgotten while no gateway was there to label it.
        let text = format!(
            "Whether the backup is complete can no longer be determined, so it cannot be restored. The data of the VM was \
             not changed. {} Delete the backup, and create it again.",
            run_state(&seen.instance)
        );
        return Ok(FindOutcome::Failed(Fault::new(
            FaultKind::BackendFailed,
            text,
        )));
    };
    let job = Job {
        operation: maker.id.clone(),
        doubtful: false,
        make: Some(Make {
            target: target.clone(),
            new: new.clone(),
            key: key.to_owned(),
        }),
        doing: None,
    };
    job.task().map(FindOutcome::Task)
}

fn updated(seen: Option<&Seen>, key: &str, before: &Before) -> FindOutcome {
    match seen {
        Some(seen) if seen.label.changed.as_deref() == Some(key) => FindOutcome::Done,
        Some(seen) if hash(seen) == before.label => FindOutcome::NotBegun,
        // Somebody changed it since: before or after us cannot be told.
        Some(_) | None => FindOutcome::Unknowable,
    }
}

/// The label names the request before the snapshot is removed.
fn deleted(seen: Option<&Seen>, key: &str) -> FindOutcome {
    match seen {
        None => FindOutcome::Done,
        Some(seen) if seen.label.removing.as_deref() == Some(key) => {
            let text = format!(
                "Removing the backup was interrupted: it can no longer be restored. The data of the VM was not changed. {} \
                 Delete the backup again.",
                run_state(&seen.instance)
            );
            FindOutcome::Failed(Fault::new(FaultKind::BackendFailed, text))
        }
        Some(_) => FindOutcome::NotBegun,
    }
}

/// The label names the request before the VM is restored; the VM itself shows that it was.
fn restored(seen: Option<&Seen>, key: &str, before: &Before) -> FindOutcome {
    let Some(seen) = seen else {
        return FindOutcome::Unknowable;
    };
    let same_vm = before.created.is_empty() || before.created == seen.instance.created_at;
    if !same_vm {
        return FindOutcome::Unknowable;
    }
    if seen.label.restoring.as_deref() != Some(key) {
        return FindOutcome::NotBegun;
    }
    let instance = &seen.instance;
    let data = if is_restored(instance, before.generation.as_deref(), key) {
        Data::Restored
    } else {
        Data::Mixed
    };
    if data == Data::Restored && (!before.ran || is_running(instance)) {
        return FindOutcome::Done;
    }
    let unseen = Fault::new(FaultKind::BackendFailed, "");
    FindOutcome::Failed(of_restore(data, before.ran, instance, &unseen, None))
}
