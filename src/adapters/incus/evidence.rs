//! The outcome of a request: from its operation while the daemon knows it, afterwards from the traces it left.
//!
//! Operations are forgotten five seconds after they end, and when the daemon ends. What stays: a snapshot named after
//! the request that made it, the label of a snapshot, and what a restore does to the instance.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::TaskState;
use crate::adapters::incus::Incus;
use crate::adapters::incus::LabelledSnapshot;
use crate::adapters::incus::map;
use crate::adapters::incus::native_tasks;
use crate::adapters::incus::restore_state::RestoredData;
use crate::adapters::incus::restore_state::describe_failed_restore;
use crate::adapters::incus::restore_state::is_restored;
use crate::adapters::incus::restore_state::is_running;
use crate::adapters::incus::restore_state::run_state;
use crate::adapters::incus::task_record::NewSnapshot;
use crate::adapters::incus::task_record::TaskRecord;
use crate::adapters::incus::wire;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::PublicText;
use crate::model::Target;
use crate::model::TaskRef;
use crate::public_text;

/// The status of operations that ended well.
const SUCCESS: u16 = 200;
/// The status of operations that were cancelled.
const CANCELLED: u16 = 401;

/// What was there before a change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct InstanceBaseline {
    /// When the instance was made: another one may carry its name later.
    created: String,
    /// What changes with each restore; nothing on versions without it.
    pub(super) generation: Option<String>,
    /// A hash over the label.
    label: String,
    /// Whether the instance was running.
    pub(super) ran: bool,
}

impl InstanceBaseline {
    pub(super) fn parse(baseline: Option<&Evidence>) -> Self {
        baseline
            .and_then(|baseline| serde_json::from_str(baseline.as_str()).ok())
            .unwrap_or_default()
    }
}

impl Incus {
    /// What the instance and the label are like before the change.
    pub(super) async fn read_baseline(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        match &intent.change {
            Change::Create(_) | Change::Delete => return Ok(None),
            Change::Update(_) | Change::Restore(_) => {}
        }
        let Some(labelled) = self.find_snapshot(&intent.target, by).await? else {
            return Ok(None);
        };
        let before = InstanceBaseline {
            label: hash_label(&labelled),
            ran: is_running(&labelled.instance),
            generation: map::generation(&labelled.instance).map(str::to_owned),
            created: labelled.instance.created_at,
        };
        Ok(Evidence::new(serde_json::json!(before).to_string()))
    }

    pub(super) async fn poll_task(
        &self,
        task: &TaskRef,
        by: Deadline,
    ) -> Result<TaskState, AdapterError> {
        let Ok(job) = serde_json::from_str::<TaskRecord>(task.as_str()) else {
            return Ok(TaskState::Gone);
        };
        let task = self.api.operation(&job.operation, by).await;
        let task = task.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
        let Some(task) = task else {
            return Ok(TaskState::Gone);
        };
        match task.status_code {
            status if status < SUCCESS => Ok(TaskState::Running(None)),
            _ if job.doubtful => Ok(TaskState::Gone),
            SUCCESS => match &job.make {
                Some(make) => self.label_new_snapshot(make, by).await,
                None => Ok(TaskState::Done(None)),
            },
            CANCELLED => Ok(TaskState::Cancelled),
            _ => {
                tracing::warn!(operation = %task.id, error = task.err, "operation of the VM manager failed");
                let making = job.make.as_ref().map(|make| &make.target);
                let doing = job.doing.as_ref();
                let fault = self.failure(doing, making, &task.err, by).await?;
                Ok(TaskState::Failed(fault))
            }
        }
    }

    /// Labels a snapshot as whole once the operation that made it ended well. Doing it again changes nothing.
    async fn label_new_snapshot(
        &self,
        make: &NewSnapshot,
        by: Deadline,
    ) -> Result<TaskState, AdapterError> {
        let Some(labelled) = self.find_snapshot(&make.target, by).await? else {
            let text = public_text!(
                "The backup was created, and another client deleted it since. The data of the VM was not changed. Create \
                        the backup again."
            );
            return Ok(TaskState::Failed(Fault::new(FaultKind::NoSuchBackup, text)));
        };
        let (id, made) = (make.target.backup.as_str(), &labelled.snapshot.created_at);
        if make.new.protected {
            self.remove_expiry(&make.target, &labelled.snapshot, by)
                .await?;
        }
        self.write_label(&labelled.path, id, made, by, |label| {
            if label.made.is_some() {
                return false;
            }
            label.set_from_new(&make.new);
            label.made = Some(make.key.clone());
            true
        })
        .await?;
        Ok(TaskState::Done(None))
    }

    pub(super) async fn find_evidence(
        &self,
        intent: &Intent,
        key: &str,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let target = &intent.target;
        // Read first: an operation that has ended by now has left its evidence before the snapshot is read.
        let tasks = self.tasks(by).await?;
        let labelled = match self.find_snapshot(target, by).await {
            // Without the VM there is no evidence.
            Err(error) if error.fault.kind == FaultKind::NoSuchVm => {
                return Ok(FindOutcome::Unknowable);
            }
            other => other?,
        };
        if let Change::Create(new) = &intent.change {
            return find_create(labelled.as_ref(), &tasks, target, new, key);
        }
        let known = intent.identity.as_ref().map(|identity| identity.as_str());
        let labelled =
            labelled.filter(|labelled| known == Some(labelled.snapshot.created_at.as_str()));
        let runs_on_vm = |task: &&wire::Task| native_tasks::is_running_on(task, target.vm.as_str());
        if let Some(task) = tasks.iter().find(runs_on_vm) {
            return follow_possible_task(task);
        }
        Ok(match &intent.change {
            Change::Create(_) => FindOutcome::Unknowable,
            Change::Update(_) => {
                find_update(labelled.as_ref(), key, &InstanceBaseline::parse(baseline))
            }
            Change::Delete => find_delete(labelled.as_ref(), key),
            Change::Restore(_) => {
                find_restore(labelled.as_ref(), key, &InstanceBaseline::parse(baseline))
            }
        })
    }
}

fn hash_label(labelled: &LabelledSnapshot) -> String {
    blake3::hash(labelled.label.to_text().as_bytes()).to_string()
}

/// An operation that may be ours: it is followed, and when it ends evidence is looked for again.
fn follow_possible_task(task: &wire::Task) -> Result<FindOutcome, AdapterError> {
    let job = TaskRecord {
        operation: task.id.clone(),
        doubtful: true,
        make: None,
        doing: None,
    };
    job.to_task_ref().map(FindOutcome::Task)
}

/// The snapshot carries the key in its name, so that it is ours or not there.
fn find_create(
    labelled: Option<&LabelledSnapshot>,
    tasks: &[wire::Task],
    target: &Target,
    new: &NewBackup,
    key: &str,
) -> Result<FindOutcome, AdapterError> {
    let vm = target.vm.as_str();
    let Some(labelled) = labelled else {
        if tasks
            .iter()
            .any(|task| native_tasks::is_snapshotting(task, vm))
        {
            return Ok(FindOutcome::NotYet);
        }
        let text = public_text!(
            "The backup was not created, and nothing is left of it. The data of the VM was not changed. Create the \
                    backup again."
        );
        return Ok(FindOutcome::Failed(Fault::new(
            FaultKind::NotExecuted,
            text,
        )));
    };
    if labelled.label.made.as_deref() == Some(key) {
        return Ok(FindOutcome::Done(None));
    }
    // The daemon makes one snapshot of a VM at a time, so the last operation begun before the snapshot made it.
    let made = map::timestamp(&labelled.snapshot.created_at);
    let maker = tasks
        .iter()
        .filter(|task| {
            task.description == native_tasks::SNAPSHOTTING && native_tasks::names_vm(task, vm)
        })
        .filter(|task| map::timestamp(&task.created_at) <= made)
        .max_by_key(|task| map::timestamp(&task.created_at));
    let Some(maker) = maker else {
        // It may be complete: its operation may have ended and been forgotten while no gateway was running.
        let text = public_text!(
            "It could not be determined whether the backup is complete, so it cannot be restored. The data of the VM was \
             not changed. {} Delete the backup, and create it again.",
            run_state(&labelled.instance)
        );
        return Ok(FindOutcome::Failed(Fault::new(
            FaultKind::BackendFailed,
            text,
        )));
    };
    let job = TaskRecord {
        operation: maker.id.clone(),
        doubtful: false,
        make: Some(NewSnapshot {
            target: target.clone(),
            new: new.clone(),
            key: key.to_owned(),
        }),
        doing: None,
    };
    job.to_task_ref().map(FindOutcome::Task)
}

fn find_update(
    labelled: Option<&LabelledSnapshot>,
    key: &str,
    before: &InstanceBaseline,
) -> FindOutcome {
    match labelled {
        Some(labelled) if labelled.label.changed.as_deref() == Some(key) => FindOutcome::Done(None),
        Some(labelled) if hash_label(labelled) == before.label => FindOutcome::NotBegun,
        // Another client changed the label since; whether before or after this request is not recorded.
        Some(_) | None => FindOutcome::Unknowable,
    }
}

/// The label names the request before the snapshot is removed.
fn find_delete(labelled: Option<&LabelledSnapshot>, key: &str) -> FindOutcome {
    match labelled {
        None => FindOutcome::Done(None),
        Some(labelled) if labelled.label.removing.as_deref() == Some(key) => {
            let text = public_text!(
                "The deletion of the backup was interrupted: the backup can no longer be restored. The data of the VM was not changed. {} \
                 Delete the backup again.",
                run_state(&labelled.instance)
            );
            FindOutcome::Failed(Fault::new(FaultKind::BackendFailed, text))
        }
        Some(_) => FindOutcome::NotBegun,
    }
}

/// The label names the request before the VM is restored; the VM itself shows that it was.
fn find_restore(
    labelled: Option<&LabelledSnapshot>,
    key: &str,
    before: &InstanceBaseline,
) -> FindOutcome {
    let Some(labelled) = labelled else {
        return FindOutcome::Unknowable;
    };
    let same_vm = before.created.is_empty() || before.created == labelled.instance.created_at;
    if !same_vm {
        return FindOutcome::Unknowable;
    }
    if labelled.label.restoring.as_deref() != Some(key) {
        return FindOutcome::NotBegun;
    }
    let instance = &labelled.instance;
    let data = if is_restored(instance, before.generation.as_deref(), key) {
        RestoredData::Restored
    } else {
        RestoredData::Mixed
    };
    if data == RestoredData::Restored && (!before.ran || is_running(instance)) {
        return FindOutcome::Done(None);
    }
    let unseen = Fault::new(FaultKind::BackendFailed, PublicText::default());
    FindOutcome::Failed(describe_failed_restore(
        data, before.ran, instance, &unseen, None,
    ))
}
