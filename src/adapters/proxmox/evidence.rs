//! How the outcome of a change is learned when its answer was lost: by the task list of the guest and by its state.
//!
//! A task id names the verb, the guest and the token, but not the snapshot. So the token must belong to this gateway
//! alone, and the tasks that were there before the call are remembered: what is new and of the right type is ours.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::proxmox::after_task;
use crate::adapters::proxmox::begin;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::cluster::kind_of;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::tasks;
use crate::adapters::proxmox::tasks::TaskEnd;
use crate::adapters::proxmox::wire;
use crate::model::BackupKind;
use crate::model::BackupPatch;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::TaskRef;
use crate::public_text;

/// How many tasks of one type and guest are looked at: new ones come first.
const TASKS: &str = "50";

/// What was seen before the call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GuestBaseline {
    /// The node that had the guest.
    node: String,
    /// The type of the task that the call becomes.
    task_type: String,
    /// The newest tasks of that type.
    #[serde(rename = "seen")]
    known_tasks: Vec<String>,
    /// Which kind of backup it is about.
    full: bool,
    /// Changes with each rollback and restore.
    vmgenid: Option<String>,
    /// The snapshot that the guest descended from.
    parent: Option<String>,
}

impl GuestBaseline {
    /// For the record of the operation.
    pub(super) fn to_evidence(&self) -> Option<Evidence> {
        serde_json::to_string(self).ok().and_then(Evidence::new)
    }

    /// From the record of the operation.
    pub(super) fn from_evidence(evidence: &Evidence) -> Option<Self> {
        serde_json::from_str(evidence.as_str()).ok()
    }
}

/// What the task list says about a call.
#[derive(Debug, PartialEq, Eq)]
enum TaskTrace {
    /// No task of it is there.
    None,
    /// One task, with its end.
    One(String, TaskEnd),
    /// More than one, so none of them can be called ours.
    Many,
}

impl TaskTrace {
    /// The success of the change, with the warnings of its task.
    fn success(&self) -> FindOutcome {
        FindOutcome::Done(match self {
            Self::One(upid, TaskEnd::Succeeded(warnings)) => tasks::warning_notice(upid, *warnings),
            Self::One(
                _,
                TaskEnd::Running | TaskEnd::Failed(_) | TaskEnd::Interrupted | TaskEnd::Died,
            )
            | Self::None
            | Self::Many => None,
        })
    }
}

impl Proxmox {
    /// Looks at the guest before a call.
    pub(super) async fn read_baseline(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<GuestBaseline, AdapterError> {
        let guest = self.locate_guest(&intent.target.vm, by).await?;
        let item = match intent.change {
            Change::Create(_) => None,
            Change::Update(_) | Change::Delete | Change::Restore(_) => {
                self.find_backup(&guest, &intent.target.backup, by).await?
            }
        };
        let kind = kind_of(intent, item.as_ref());
        let task_type = tasks::type_for(intent.verb(), kind, guest.kind);
        let known_tasks = self
            .own_tasks(&guest.node, &guest.vmid, task_type, by)
            .await?;
        let config = self.api.config(&guest, by).await;
        let config = config.map_err(NativeError::into_read_error)?;
        Ok(GuestBaseline {
            node: guest.node,
            task_type: task_type.to_owned(),
            known_tasks: known_tasks.into_iter().map(|task| task.upid).collect(),
            full: kind == BackupKind::Full,
            vmgenid: config.vmgenid,
            parent: config.parent,
        })
    }

    /// The newest tasks of one type that this gateway began for one guest.
    async fn own_tasks(
        &self,
        node: &str,
        vmid: &str,
        task_type: &str,
        by: Deadline,
    ) -> Result<Vec<wire::Task>, AdapterError> {
        // Removals of archives are not tasks of the guest: their id also names the storage.
        let is_of_guest = task_type != tasks::REMOVAL;
        let mut query = vec![
            ("source", "all"),
            ("typefilter", task_type),
            ("limit", TASKS),
        ];
        if is_of_guest {
            query.push(("vmid", vmid));
        }
        let tasks = self.api.tasks(node, &query, by).await;
        let mut tasks = tasks.map_err(NativeError::into_read_error)?;
        tasks.retain(|task| self.is_own(task) && tasks::guest_of(&task.upid) == Some(vmid));
        Ok(tasks)
    }

    /// What became of the call, by the tasks that are new since it.
    async fn trace_tasks(
        &self,
        guest: &Guest,
        before: &GuestBaseline,
        by: Deadline,
    ) -> Result<TaskTrace, AdapterError> {
        let mut new = Vec::new();
        // The guest may have migrated since; its tasks stay with the node that ran them.
        let mut nodes = vec![before.node.as_str()];
        if guest.node != before.node {
            nodes.push(&guest.node);
        }
        for node in nodes {
            let found = self
                .own_tasks(node, &guest.vmid, &before.task_type, by)
                .await?;
            new.extend(
                found
                    .into_iter()
                    .filter(|task| !before.known_tasks.contains(&task.upid)),
            );
        }
        Ok(match new.as_slice() {
            [] => TaskTrace::None,
            [task] => TaskTrace::One(task.upid.clone(), TaskEnd::of_entry(task)),
            [_, _, ..] => TaskTrace::Many,
        })
    }

    /// What became of a create, delete or restore.
    pub(super) async fn find_task(
        &self,
        guest: &Guest,
        intent: &Intent,
        before: &GuestBaseline,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let trace = self.trace_tasks(guest, before, by).await?;
        if let TaskTrace::One(upid, TaskEnd::Running) = &trace {
            return Ok(TaskRef::new(upid.clone()).map_or(FindOutcome::NotYet, FindOutcome::Task));
        }
        let items = self.list_native(guest, by).await?;
        let mut same_id = items
            .into_iter()
            .filter(|(id, _)| *id == intent.target.backup);
        let item = same_id.next().map(|(_, item)| item);
        match &intent.change {
            Change::Create(_) => self.find_create(guest, item.as_ref(), trace, by).await,
            Change::Delete => {
                self.find_delete(guest, intent, item.as_ref(), trace, by)
                    .await
            }
            Change::Restore(_) => self.find_restore(guest, intent, before, trace, by).await,
            Change::Update(_) => Ok(FindOutcome::Unknowable),
        }
    }

    async fn find_create(
        &self,
        guest: &Guest,
        item: Option<&NativeBackup>,
        trace: TaskTrace,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        Ok(match (item, trace) {
            (Some(item), _) if item.is_unfinished() => {
                FindOutcome::Failed(self.left_over_fault(guest, by).await?)
            }
            (Some(_), trace) => trace.success(),
            (None, TaskTrace::None) => FindOutcome::NotBegun,
            (None, TaskTrace::One(upid, TaskEnd::Failed(text))) => {
                FindOutcome::Failed(self.failure(&upid, &text, by).await)
            }
            (None, TaskTrace::One(_, TaskEnd::Interrupted)) => FindOutcome::NotBegun,
            (None, TaskTrace::One(upid, TaskEnd::Died)) => {
                FindOutcome::Failed(self.failure(&upid, "the task died", by).await)
            }
            // It ended well and was removed by others since, or there is no telling which one is ours.
            (None, trace @ TaskTrace::One(_, TaskEnd::Succeeded(_))) => trace.success(),
            (None, TaskTrace::One(_, TaskEnd::Running)) => FindOutcome::NotYet,
            (None, TaskTrace::Many) => FindOutcome::Unknowable,
        })
    }

    async fn find_delete(
        &self,
        guest: &Guest,
        intent: &Intent,
        item: Option<&NativeBackup>,
        trace: TaskTrace,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let same = item.filter(|item| {
            let identity = intent.identity.as_ref();
            identity.is_none_or(|identity| *identity == item.identity(guest))
        });
        Ok(match (same, trace) {
            (None, trace) => trace.success(),
            (Some(item), _) if item.is_unfinished() => {
                FindOutcome::Failed(self.left_over_fault(guest, by).await?)
            }
            (Some(_), TaskTrace::None) => FindOutcome::NotBegun,
            (Some(_), TaskTrace::One(upid, TaskEnd::Failed(text))) => {
                FindOutcome::Failed(self.failure(&upid, &text, by).await)
            }
            // Nothing of it was removed, else it would be marked as unfinished.
            (
                Some(NativeBackup::Snapshot(_)),
                TaskTrace::One(_, TaskEnd::Died | TaskEnd::Interrupted),
            ) => FindOutcome::NotBegun,
            (
                Some(NativeBackup::Archive { .. }),
                TaskTrace::One(upid, TaskEnd::Died | TaskEnd::Interrupted),
            ) => FindOutcome::Failed(self.failure(&upid, "the task died", by).await),
            (Some(_), TaskTrace::One(_, TaskEnd::Running)) => FindOutcome::NotYet,
            (Some(_), TaskTrace::One(_, TaskEnd::Succeeded(_)) | TaskTrace::Many) => {
                FindOutcome::Unknowable
            }
        })
    }

    async fn find_restore(
        &self,
        guest: &Guest,
        intent: &Intent,
        before: &GuestBaseline,
        trace: TaskTrace,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let config = self.api.config(guest, by).await;
        let config = config.map_err(NativeError::into_read_error)?;
        // The generation changes at the very end of a rollback and of a restore from an archive.
        let is_new = config.vmgenid.is_some() && config.vmgenid != before.vmgenid;
        let descends = config.parent.as_deref() == Some(intent.target.backup.as_str());
        let shows_end = config.lock.is_none() && is_new && (before.full || descends);
        Ok(match &trace {
            TaskTrace::One(_, TaskEnd::Succeeded(_)) => trace.success(),
            TaskTrace::One(upid, TaskEnd::Failed(text)) => {
                FindOutcome::Failed(self.failure(upid, text, by).await)
            }
            TaskTrace::One(_, TaskEnd::Running) => FindOutcome::NotYet,
            TaskTrace::One(upid, TaskEnd::Died | TaskEnd::Interrupted) => {
                if shows_end {
                    FindOutcome::Done(None)
                } else if config.lock.is_some() {
                    FindOutcome::Failed(self.failure(upid, "the task died", by).await)
                } else if !before.full && !is_new && config.vmgenid.is_some() {
                    // A rollback locks the guest before it touches a disk.
                    FindOutcome::NotBegun
                } else {
                    FindOutcome::Unknowable
                }
            }
            TaskTrace::None if config.lock.as_deref() == Some("rollback") => {
                FindOutcome::Failed(self.left_over_fault(guest, by).await?)
            }
            // A restore from an archive locks the guest before its task exists, so the lock may be all that came of it.
            TaskTrace::None if before.full && config.lock.as_deref() == Some("create") => {
                FindOutcome::NotYet
            }
            TaskTrace::None => FindOutcome::NotBegun,
            TaskTrace::Many => FindOutcome::Unknowable,
        })
    }

    /// The failure of a change whose task died and left the guest locked.
    async fn left_over_fault(&self, guest: &Guest, by: Deadline) -> Result<Fault, AdapterError> {
        let status = self.api.status(guest, by).await;
        let status = status.map_err(NativeError::into_read_error)?;
        let text = match &status.lock {
            Some(lock) => public_text!(
                "The task of the VM manager was interrupted and left the change incomplete. {}",
                after_task::locked(guest, lock).text
            ),
            None => public_text!(
                "The task of the VM manager was interrupted and left the backup incomplete. Delete it."
            ),
        };
        Ok(Fault::new(FaultKind::BackendFailed, text))
    }

    /// What became of an update: it is there or not.
    pub(super) async fn find_update(
        &self,
        guest: &Guest,
        intent: &Intent,
        patch: &BackupPatch,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let Some(item) = self.find_backup(guest, &intent.target.backup, by).await? else {
            let fault = Fault::new(
                FaultKind::NoSuchBackup,
                public_text!(
                    "The backup does not exist any more, so it was not changed. List the backups."
                ),
            );
            return Ok(FindOutcome::Failed(fault));
        };
        let now = item.notes();
        let wanted = begin::requested_protection(patch);
        let is_done = match &item {
            NativeBackup::Snapshot(_) => now.clone().patched(patch) == now,
            NativeBackup::Archive { volume, .. } => {
                let mut patched = now.clone().patched(patch);
                patched.protected = now.protected;
                patched == now && wanted.is_none_or(|protected| protected == volume.protected)
            }
        };
        Ok(if is_done {
            FindOutcome::Done(None)
        } else {
            FindOutcome::NotBegun
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_before_is_read_again() {
        let before = GuestBaseline {
            node: "pve1".to_owned(),
            task_type: "qmrollback".to_owned(),
            known_tasks: vec!["UPID:pve1:1:1:1:qmrollback:100:gate@pve!t1:".to_owned()],
            full: false,
            vmgenid: Some("g".to_owned()),
            parent: None,
        };
        let evidence = before.to_evidence().unwrap();
        let read = GuestBaseline::from_evidence(&evidence).unwrap();
        assert_eq!(format!("{read:?}"), format!("{before:?}"));
        assert!(GuestBaseline::from_evidence(&Evidence::new("{}".to_owned()).unwrap()).is_none());
    }
}
