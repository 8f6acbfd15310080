//! The four changes. Each leaves a record before it begins, by which its outcome is determined later.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Effect;
use crate::adapters::checks::Checks;
use crate::adapters::incus::Incus;
use crate::adapters::incus::LabelledSnapshot;
use crate::adapters::incus::client::AcceptedChange;
use crate::adapters::incus::error;
use crate::adapters::incus::error::NativeError;
use crate::adapters::incus::evidence::InstanceBaseline;
use crate::adapters::incus::guard::check_settled;
use crate::adapters::incus::label::SnapshotLabel;
use crate::adapters::incus::map;
use crate::adapters::incus::missing_error;
use crate::adapters::incus::names;
use crate::adapters::incus::names::VolumePath;
use crate::adapters::incus::native_tasks;
use crate::adapters::incus::restore_state::RESTORE_MARKER;
use crate::adapters::incus::restore_state::is_restored;
use crate::adapters::incus::restore_state::is_running;
use crate::adapters::incus::task_record::ChangeKind;
use crate::adapters::incus::task_record::NewSnapshot;
use crate::adapters::incus::task_record::RunningChange;
use crate::adapters::incus::task_record::TaskRecord;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::VmId;
use crate::public_text;

/// How often a label is read again after another client changed it in between.
const TRIES: usize = 3;
/// How long one request waits for the end of a short operation, in seconds.
const SHORT_WAIT: &str = "10";

impl Incus {
    pub(super) async fn begin_change(
        &self,
        intent: &Intent,
        key: &str,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let target = &intent.target;
        if let Change::Create(new) = &intent.change {
            return self.create(target, new, key, by).await;
        }
        let labelled = self.find_meant(intent, by).await?;
        check_made(&labelled)?;
        match &intent.change {
            Change::Create(new) => self.create(target, new, key, by).await,
            Change::Update(patch) => self.update(target, &labelled, patch, key, by).await,
            Change::Delete => self.delete(target, &labelled, key, by).await,
            Change::Restore(_) => self.restore(target, &labelled, key, baseline, by).await,
        }
    }

    async fn create(
        &self,
        target: &Target,
        new: &NewBackup,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if let Some(BackupKind::Full | BackupKind::Incremental) = new.kind {
            let text = public_text!(
                "This backend creates backups of the type `snapshot` only. Omit the type or set it to `snapshot`."
            );
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        }
        if !names::is_safe_name(target.backup.as_str()) {
            let text = public_text!(
                "The VM manager does not allow this id. Use letters, digits, dots, dashes and underscores."
            );
            return Err(AdapterError::refused(FaultKind::Invalid, text));
        }
        if let Some(labelled) = self.find_snapshot(target, by).await? {
            if labelled.label.made.as_deref() == Some(key) {
                return Ok(BeginOutcome::Done);
            }
            let text = public_text!(
                "The VM has another snapshot with the id of the new backup; nothing was changed. Rename that snapshot, or try again."
            );
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        self.check_name_free(&target.vm, &new.name, None, by)
            .await?;
        check_settled(&self.instance(&target.vm, by).await?.0)?;
        self.check_storage_mounted(&target.vm, by).await?;
        self.check_idle(&target.vm, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.create(vm, id, by).await;
        let make = NewSnapshot {
            target: target.clone(),
            new: new.clone(),
            key: key.to_owned(),
        };
        begin_outcome(sent, Some(make), None)
    }

    async fn update(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        patch: &BackupPatch,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if let Some(name) = &patch.name {
            self.check_name_free(&target.vm, name, Some(target), by)
                .await?;
        }
        let mut after = labelled.label.clone();
        after.apply_patch(patch);
        // Before the label is written: a backup that is shown as protected must never expire.
        let expired = if after.protected {
            self.remove_expiry(target, &labelled.snapshot, by).await?
        } else {
            None
        };
        let labelled = self
            .relabel(labelled, target, by, |label| {
                if label.changed.as_deref() == Some(key) {
                    return false;
                }
                label.apply_patch(patch);
                label.changed = Some(key.to_owned());
                true
            })
            .await;
        match (labelled, expired) {
            (Ok(()), _) => Ok(BeginOutcome::Done),
            // Refused: it expires as it did before.
            (Err(error), Some(at)) if error.effect == Effect::None => {
                self.write_expiry(target, &at, by).await?;
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn delete(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.check_delete(target, labelled, &mut Checks::until_first(), by)
            .await?;
        self.check_same_snapshot(target, labelled, by).await?;
        let is_protected = AtomicBool::new(false);
        self.relabel(labelled, target, by, |label| {
            // Checked again with the write: another gateway may have protected it since.
            is_protected.store(label.protected, Ordering::Relaxed);
            let stale = label.removing.as_deref() != Some(key);
            label.removing = Some(key.to_owned());
            stale && !label.protected
        })
        .await?;
        if is_protected.load(Ordering::Relaxed) {
            return Err(protected_error());
        }
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.delete(vm, id, by).await;
        if sent.as_ref().is_err_and(NativeError::is_missing) {
            return Ok(BeginOutcome::Done);
        }
        let before = labelled.label.removing.clone();
        let result = begin_outcome(
            sent,
            None,
            Some(running_change(target, key, ChangeKind::Delete { before })),
        );
        if result
            .as_ref()
            .is_err_and(|error| error.effect == Effect::None)
        {
            // Nothing was removed, so the backup becomes restorable again.
            self.relabel(labelled, target, by, |label| {
                let ours = label.removing.as_deref() == Some(key);
                label.removing.clone_from(&labelled.label.removing);
                ours
            })
            .await?;
        }
        result
    }

    async fn restore(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        key: &str,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let vm = target.vm.as_str();
        self.check_restore(target, labelled, &mut Checks::until_first(), by)
            .await?;
        let before = InstanceBaseline::parse(baseline);
        match &before.generation {
            Some(generation) if map::generation(&labelled.instance) == Some(generation) => {}
            Some(_changed) => return Err(error::busy()),
            None => {
                let sent = self.api.configure(vm, RESTORE_MARKER, key, by).await;
                let sent = sent.map_err(|error| error.into_write_error(FaultKind::NoSuchVm))?;
                self.wait_for_end(&sent, by).await?;
            }
        }
        self.extend_expiry_for_restore(target, &labelled.snapshot, by)
            .await?;
        // After the marker: a label that names this request proves that the marker was set.
        self.relabel(labelled, target, by, |label| {
            let stale = label.restoring.as_deref() != Some(key);
            label.restoring = Some(key.to_owned());
            stale
        })
        .await?;
        self.restore_unchanged(target, labelled, &before, key, by)
            .await
    }

    /// Repeats every check right before the call, and restores the VM only if nothing changed since.
    async fn restore_unchanged(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        before: &InstanceBaseline,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let stateful = labelled.snapshot.stateful;
        let mut tries = 1..=TRIES;
        loop {
            let is_last = tries.next().is_none_or(|nth| nth == TRIES);
            self.check_same_snapshot(target, labelled, by).await?;
            self.check_restore_allowed(target, labelled, &mut Checks::until_first(), by)
                .await?;
            let found = self.api.tagged_instance(vm, by).await;
            let (instance, etag) =
                found.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
            check_settled(&instance)?;
            if instance.created_at != labelled.instance.created_at
                || is_restored(&instance, before.generation.as_deref(), key)
            {
                return Err(error::busy());
            }
            let what = ChangeKind::Restore {
                generation: before.generation.clone(),
                ran: is_running(&instance),
            };
            self.check_idle(&target.vm, by).await?;
            let sent = self.api.restore(vm, id, stateful, etag, by).await;
            if is_last || !sent.as_ref().is_err_and(NativeError::is_stale) {
                return begin_outcome(sent, None, Some(running_change(target, key, what)));
            }
        }
    }

    /// The very backup of the intent, with its instance and label.
    pub(super) async fn find_meant(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<LabelledSnapshot, AdapterError> {
        let labelled = self.find_snapshot(&intent.target, by).await?;
        let known = intent.identity.as_ref().map(|identity| identity.as_str());
        labelled
            .filter(|labelled| known == Some(labelled.snapshot.created_at.as_str()))
            .ok_or_else(|| missing_error(FaultKind::NoSuchBackup))
    }

    /// Everything that would refuse to delete the backup.
    pub(super) async fn check_delete(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(check_unprotected(labelled))?;
        checks.record(self.check_storage_mounted(&target.vm, by).await)?;
        checks.record(self.check_idle(&target.vm, by).await)?;
        Ok(())
    }

    /// Everything that would refuse to restore the VM from the backup.
    pub(super) async fn check_restore(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(check_complete(target, labelled))?;
        self.check_restore_allowed(target, labelled, checks, by)
            .await?;
        checks.record(self.check_storage_mounted(&target.vm, by).await)?;
        checks.record(self.check_idle(&target.vm, by).await)?;
        Ok(())
    }

    /// Refuses when the snapshot is no longer the one that was read.
    async fn check_same_snapshot(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let now = self.api.snapshot(vm, id, by).await;
        let now = now.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        now.filter(|now| now.created_at == labelled.snapshot.created_at)
            .map(|_same| ())
            .ok_or_else(|| missing_error(FaultKind::NoSuchBackup))
    }

    /// Refuses a name that another backup of the VM has.
    async fn check_name_free(
        &self,
        vm: &VmId,
        name: &BackupName,
        but: Option<&Target>,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let all = self.all(vm, by).await?;
        let other = |id| but.is_none_or(|but| but.backup != id);
        if all
            .into_iter()
            .any(|backup| backup.name == *name && other(backup.id))
        {
            let text = public_text!(
                "Another backup of the VM has this name; nothing was changed. Choose another name."
            );
            return Err(AdapterError::refused(FaultKind::NameTaken, text));
        }
        Ok(())
    }

    /// Refuses while an operation is running on the VM: LXD and Incus would run a restore during a snapshot, and the snapshot
    /// would mix both states.
    async fn check_idle(&self, vm: &VmId, by: Deadline) -> Result<(), AdapterError> {
        let tasks = self.tasks(by).await?;
        if tasks
            .iter()
            .any(|task| native_tasks::is_running_on(task, vm.as_str()))
        {
            return Err(error::busy());
        }
        Ok(())
    }

    pub(super) async fn relabel(
        &self,
        labelled: &LabelledSnapshot,
        target: &Target,
        by: Deadline,
        edit: impl Fn(&mut SnapshotLabel) -> bool + Send + Sync,
    ) -> Result<(), AdapterError> {
        let (id, made) = (target.backup.as_str(), &labelled.snapshot.created_at);
        self.write_label(&labelled.path, id, made, by, edit).await
    }

    /// Edits the label of a snapshot; `edit` returns whether it changed anything.
    pub(super) async fn write_label(
        &self,
        path: &VolumePath,
        id: &str,
        made: &str,
        by: Deadline,
        edit: impl Fn(&mut SnapshotLabel) -> bool + Send + Sync,
    ) -> Result<(), AdapterError> {
        let missing = FaultKind::NoSuchBackup;
        for _ in 0..TRIES {
            let found = self.api.volume(path, id, by).await;
            let found = found.map_err(|error| error.into_read_error(missing))?;
            let (volume, etag) = found.ok_or_else(|| missing_error(missing))?;
            let mut label = SnapshotLabel::parse(made, &volume.description);
            if !edit(&mut label) {
                return Ok(());
            }
            let sent = self
                .api
                .describe(path, id, &label.to_text(), etag, by)
                .await;
            match sent {
                Ok(AcceptedChange::Done) => return Ok(()),
                // The answer of the operation proves nothing: the label is read once more.
                Ok(sent @ AcceptedChange::Operation(_)) => self.wait_for_end(&sent, by).await?,
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error.into_write_error(missing)),
            }
        }
        let text = public_text!(
            "Another client keeps changing the backup, so the gateway did not change it. Try again later."
        );
        Err(AdapterError::refused(FaultKind::Conflict, text))
    }

    /// Waits for the end of a short operation, whatever it is.
    pub(super) async fn wait_for_end(
        &self,
        sent: &AcceptedChange,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let AcceptedChange::Operation(id) = sent else {
            return Ok(());
        };
        let lost = |error: NativeError| error.into_write_error(FaultKind::BackendFailed);
        loop {
            self.api.wait(id, SHORT_WAIT, by).await.map_err(lost)?;
            match self.api.operation(id, by).await.map_err(lost)? {
                Some(task) if task.status_code < 200 => {}
                Some(_) | None => return Ok(()),
            }
        }
    }
}

fn begin_outcome(
    sent: Result<AcceptedChange, NativeError>,
    make: Option<NewSnapshot>,
    doing: Option<RunningChange>,
) -> Result<BeginOutcome, AdapterError> {
    match sent.map_err(|error| error.into_write_error(FaultKind::NoSuchBackup))? {
        AcceptedChange::Done => Ok(BeginOutcome::Done),
        AcceptedChange::Operation(operation) => {
            let job = TaskRecord {
                operation,
                doubtful: false,
                make,
                doing,
            };
            job.to_task_ref().map(BeginOutcome::Task)
        }
    }
}

fn running_change(target: &Target, key: &str, what: ChangeKind) -> RunningChange {
    RunningChange {
        target: target.clone(),
        key: key.to_owned(),
        what,
    }
}

fn protected_error() -> AdapterError {
    let text = public_text!(
        "The backup is protected, so it was not deleted. Remove its protection first."
    );
    AdapterError::refused(FaultKind::Protected, text)
}

/// Refuses a snapshot that may still be in the making.
pub(super) fn check_made(labelled: &LabelledSnapshot) -> Result<(), AdapterError> {
    match labelled.is_incomplete {
        true => Err(not_ready_error()),
        false => Ok(()),
    }
}

/// Refuses a snapshot that was made or removed half.
fn check_complete(target: &Target, labelled: &LabelledSnapshot) -> Result<(), AdapterError> {
    match labelled.label.is_complete(target.backup.as_str()) {
        true => Ok(()),
        false => Err(not_ready_error()),
    }
}

fn check_unprotected(labelled: &LabelledSnapshot) -> Result<(), AdapterError> {
    match labelled.label.protected {
        true => Err(protected_error()),
        false => Ok(()),
    }
}

fn not_ready_error() -> AdapterError {
    AdapterError::refused(
        FaultKind::NotReady,
        public_text!(
            "The backup is incomplete: its creation is not finished, or its creation or deletion was interrupted. Wait until \
             its creation ends, or delete it."
        ),
    )
}
