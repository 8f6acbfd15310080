//! What became of a change whose answer or Status was lost.
//!
//! The server's own list of Statuses tells first: what was not there before and fits is ours, because the gateway has a
//! user of its own there and asks for one change of a VM at a time. Then the state of the backup does.

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::cloudapi::before::Before;
use crate::adapters::cloudapi::link;
use crate::adapters::cloudapi::map;
use crate::adapters::cloudapi::map::Outcome;
use crate::adapters::cloudapi::wire;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;

/// What the state of a backup says about a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is as the change leaves it.
    AsWanted,
    /// Something is at work on it.
    AtWork,
    /// It is not as the change leaves it.
    Otherwise,
    /// The change leaves no trace in it.
    Silent,
}

impl CloudApi {
    pub(super) async fn look_for(
        &self,
        intent: &Intent,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let mut is_absent = false;
        if let Some((before, known)) = before.and_then(|it| Some((it, it.known.as_ref()?))) {
            let (op, vm) = (map::op(intent.verb()), &intent.target.vm);
            let listed = self.api.statuses(op, vm, by).await;
            let listed = listed.map_err(|error| error.of_read(FaultKind::BackendFailed))?;
            let is_new = |it: &&wire::Status| !known.contains(&it.status_uri) && fits(it, intent);
            let mut new = listed.iter().filter(is_new);
            match (new.next(), new.next()) {
                (Some(status), None) => return self.told(status, by).await,
                // Somebody else uses the gateway's user.
                (Some(_), Some(_)) => {}
                (None, _) => is_absent = self.is_remembered(before),
            }
        }
        Ok(match self.state_after(intent, by).await? {
            State::AsWanted => FindOutcome::Done,
            State::AtWork => FindOutcome::NotYet,
            State::Otherwise | State::Silent if is_absent => {
                if self.has_changed(intent, before, by).await? {
                    FindOutcome::VmChanged
                } else {
                    FindOutcome::NotBegun
                }
            }
            State::Otherwise => FindOutcome::NotYet,
            State::Silent => FindOutcome::Unknowable,
        })
    }

    async fn told(&self, status: &wire::Status, by: Deadline) -> Result<FindOutcome, AdapterError> {
        Ok(match map::outcome(status) {
            Outcome::Running(_) | Outcome::Cancelled => {
                let task = self.task(&status.status_uri);
                task.map_or(FindOutcome::NotYet, FindOutcome::Task)
            }
            Outcome::Done => FindOutcome::Done,
            Outcome::Failed(fault) => {
                FindOutcome::Failed(self.with_run_state(fault, status, by).await)
            }
            // The server itself does not know: nobody does.
            Outcome::Unknown => FindOutcome::Unknowable,
        })
    }

    /// Whether the VM was started or stopped since the baseline of a restore: what it wrote since would be lost.
    async fn has_changed(
        &self,
        intent: &Intent,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<bool, AdapterError> {
        let Some(was) = before.and_then(|before| before.run_state.as_deref()) else {
            return Ok(false);
        };
        let now = self.read_vm(&intent.target.vm, by).await?.run_state;
        Ok(now.is_some_and(|now| now.as_str() != was))
    }

    async fn state_after(&self, intent: &Intent, by: Deadline) -> Result<State, AdapterError> {
        if let Change::Restore(_) = intent.change {
            return Ok(State::Silent);
        }
        let seen = self.look(&intent.target, by).await?;
        let seen = seen.map(|(it, _)| it);
        let same = seen.filter(|it| {
            let identity = intent.identity.as_ref();
            identity.is_none_or(|wanted| *wanted == it.backup.identity)
        });
        Ok(match (&intent.change, same) {
            (Change::Restore(_), _) => State::Silent,
            (Change::Create(_), None) | (Change::Update(_), None) => State::Otherwise,
            (Change::Create(_), Some(it)) => match it.backup.state {
                BackupState::Creating => State::AtWork,
                BackupState::Error => State::Otherwise,
                BackupState::Available
                | BackupState::Updating
                | BackupState::Restoring
                | BackupState::Deleting => State::AsWanted,
            },
            (Change::Update(patch), Some(it)) => {
                if patch.applied_to(it.backup.clone()) == it.backup {
                    State::AsWanted
                } else if it.backup.state == BackupState::Updating {
                    State::AtWork
                } else {
                    State::Otherwise
                }
            }
            (Change::Delete, None) => State::AsWanted,
            (Change::Delete, Some(it)) if it.backup.state == BackupState::Deleting => State::AtWork,
            (Change::Delete, Some(_)) => State::Otherwise,
        })
    }
}

/// Whether the Status is of that change.
fn fits(status: &wire::Status, intent: &Intent) -> bool {
    let of_verb = status.op.eq_ignore_ascii_case(map::op(intent.verb()));
    let Some((vm, backup)) = link::backup_of(&status.target_uri).filter(|_| of_verb) else {
        return false;
    };
    let inner = intent.identity.as_ref().and_then(map::inner_of);
    // The server's id of a backup that is being made is not known here.
    vm == intent.target.vm && inner.is_none_or(|it| it == backup)
}
