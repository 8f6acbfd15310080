//! What became of a change whose answer or Status was lost.
//!
//! The server's own list of Statuses is read first: a new one that fits is ours, because the gateway has a
//! user of its own there and asks for one change of a VM at a time. Then the state of the backup does.

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::link;
use crate::adapters::cloudapi::map;
use crate::adapters::cloudapi::map::StatusOutcome;
use crate::adapters::cloudapi::request_baseline::RequestBaseline;
use crate::adapters::cloudapi::wire;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;

/// What the state of a backup says about a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangeTrace {
    /// The backup is as the change leaves it.
    Applied,
    /// The change, or another one, is running on it.
    InProgress,
    /// The backup is not as the change leaves it.
    NotApplied,
    /// The change leaves no trace in it.
    NoTrace,
}

impl CloudApi {
    pub(super) async fn find_outcome(
        &self,
        intent: &Intent,
        before: Option<&RequestBaseline>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let mut is_absent = false;
        if let Some((before, known)) =
            before.and_then(|before| Some((before, before.known.as_ref()?)))
        {
            let (op, vm) = (map::status_op(intent.verb()), &intent.target.vm);
            let listed = self.api.statuses(op, vm, by).await;
            let listed = listed.map_err(|error| error.into_read_error(FaultKind::BackendFailed))?;
            let is_new = |status: &&wire::Status| {
                !known.contains(&status.status_uri) && is_status_of(status, intent)
            };
            let mut new = listed.iter().filter(is_new);
            match (new.next(), new.next()) {
                (Some(status), None) => return self.outcome_from_status(status, by).await,
                // Another program uses the gateway's user, so neither is provably ours.
                (Some(_), Some(_)) => {}
                (None, _) => is_absent = before.is_remembered(self.clock.now()),
            }
        }
        Ok(match self.trace_in_backup(intent, by).await? {
            ChangeTrace::Applied => FindOutcome::Done(None),
            ChangeTrace::InProgress => FindOutcome::NotYet,
            ChangeTrace::NotApplied | ChangeTrace::NoTrace if is_absent => {
                if self.has_vm_changed(intent, before, by).await? {
                    FindOutcome::VmChanged
                } else {
                    FindOutcome::NotBegun
                }
            }
            ChangeTrace::NotApplied => FindOutcome::NotYet,
            ChangeTrace::NoTrace => FindOutcome::Unknowable,
        })
    }

    async fn outcome_from_status(
        &self,
        status: &wire::Status,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        Ok(match map::read_outcome(status) {
            StatusOutcome::Running(_) | StatusOutcome::Cancelled => {
                let task = self.task_of_link(&status.status_uri);
                task.map_or(FindOutcome::NotYet, FindOutcome::Task)
            }
            StatusOutcome::Done => FindOutcome::Done(None),
            StatusOutcome::Failed(fault) => {
                FindOutcome::Failed(self.with_run_state(fault, status, by).await)
            }
            // The server itself could not determine the outcome.
            StatusOutcome::Unknown => FindOutcome::Unknowable,
        })
    }

    /// Whether the VM was started or stopped since the baseline of a restore: what it wrote since would be lost.
    async fn has_vm_changed(
        &self,
        intent: &Intent,
        before: Option<&RequestBaseline>,
        by: Deadline,
    ) -> Result<bool, AdapterError> {
        let Some(was) = before.and_then(|before| before.run_state.as_deref()) else {
            return Ok(false);
        };
        let now = self.read_vm(&intent.target.vm, by).await?.run_state;
        Ok(now.is_some_and(|now| now.as_str() != was))
    }

    async fn trace_in_backup(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<ChangeTrace, AdapterError> {
        if let Change::Restore(_) = intent.change {
            return Ok(ChangeTrace::NoTrace);
        }
        let remote = self.find_remote(&intent.target, by).await?;
        let remote = remote.map(|(remote, _)| remote);
        let same = remote.filter(|remote| {
            let identity = intent.identity.as_ref();
            identity.is_none_or(|wanted| *wanted == remote.backup.identity)
        });
        Ok(match (&intent.change, same) {
            (Change::Restore(_), _) => ChangeTrace::NoTrace,
            (Change::Create(_), None) | (Change::Update(_), None) => ChangeTrace::NotApplied,
            (Change::Create(_), Some(remote)) => match remote.backup.state {
                BackupState::Creating => ChangeTrace::InProgress,
                BackupState::Error => ChangeTrace::NotApplied,
                BackupState::Available
                | BackupState::Updating
                | BackupState::Restoring
                | BackupState::Deleting => ChangeTrace::Applied,
            },
            (Change::Update(patch), Some(remote)) => {
                if patch.applied_to(remote.backup.clone()) == remote.backup {
                    ChangeTrace::Applied
                } else if remote.backup.state == BackupState::Updating {
                    ChangeTrace::InProgress
                } else {
                    ChangeTrace::NotApplied
                }
            }
            (Change::Delete, None) => ChangeTrace::Applied,
            (Change::Delete, Some(remote)) if remote.backup.state == BackupState::Deleting => {
                ChangeTrace::InProgress
            }
            (Change::Delete, Some(_)) => ChangeTrace::NotApplied,
        })
    }
}

/// Whether the Status belongs to that change.
fn is_status_of(status: &wire::Status, intent: &Intent) -> bool {
    let of_verb = status
        .op
        .eq_ignore_ascii_case(map::status_op(intent.verb()));
    let Some((vm, backup)) = link::backup_in_link(&status.target_uri).filter(|_| of_verb) else {
        return false;
    };
    let server_id = intent.identity.as_ref().and_then(map::server_id_of);
    // The server's id of a backup that is being made is not known here.
    vm == intent.target.vm && server_id.is_none_or(|id| id == backup)
}
