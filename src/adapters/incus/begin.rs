//! The four changes. Before each, something is written that tells later whether it was begun.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Effect;
use crate::adapters::incus::Incus;
use crate::adapters::incus::Job;
use crate::adapters::incus::Make;
use crate::adapters::incus::Seen;
use crate::adapters::incus::aftermath::Doing;
use crate::adapters::incus::aftermath::What;
use crate::adapters::incus::aftermath::is_restored;
use crate::adapters::incus::aftermath::is_running;
use crate::adapters::incus::client::Sent;
use crate::adapters::incus::client::VolumePath;
use crate::adapters::incus::error;
use crate::adapters::incus::error::NativeError;
use crate::adapters::incus::evidence::Before;
use crate::adapters::incus::guard::is_settled;
use crate::adapters::incus::map;
use crate::adapters::incus::map::Label;
use crate::adapters::incus::no_such;
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

/// The key of an instance's configuration that a restore removes, for versions without a generation.
pub(super) const MARKER: &str = "user.snapgate.restoring";
/// How often a label is read again because somebody else wrote it in between.
const TRIES: usize = 3;
/// How long one request for the end of a short operation is held, in seconds.
const SHORT_WAIT: &str = "10";

impl Incus {
    pub(super) async fn begin_it(
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
        let seen = self.seen(target, by).await?;
        let known = intent.identity.as_ref().map(|identity| identity.as_str());
        let seen = seen
            .filter(|it| known == Some(it.snapshot.created_at.as_str()))
            .ok_or_else(|| no_such(FaultKind::NoSuchBackup))?;
        if seen.half_made {
            return Err(not_ready());
        }
        match &intent.change {
            Change::Create(new) => self.create(target, new, key, by).await,
            Change::Update(patch) => self.update(target, &seen, patch, key, by).await,
            Change::Delete => self.delete(target, &seen, key, by).await,
            Change::Restore(_) => self.restore(target, &seen, key, baseline, by).await,
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
            let text =
                "This VM manager makes snapshots only: leave the type out or ask for a snapshot.";
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        }
        if !map::is_strict(target.backup.as_str()) {
            let text = "The VM manager cannot use that id: use letters, digits, dots, dashes and underscores.";
            return Err(AdapterError::refused(FaultKind::Invalid, text));
        }
        if let Some(seen) = self.seen(target, by).await? {
            if seen.label.made.as_deref() == Some(key) {
                return Ok(BeginOutcome::Done);
            }
            let text = "The VM manager has another snapshot under the id of the new backup: rename that snapshot there, or try again.";
            return Err(AdapterError::refused(FaultKind::Conflict, text));
        }
        self.is_free(&target.vm, &new.name, None, by).await?;
        is_settled(&self.instance(&target.vm, by).await?.0)?;
        self.storage_is_mounted(&target.vm, by).await?;
        self.is_idle(&target.vm, by).await?;
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.create(vm, id, by).await;
        let make = Make {
            target: target.clone(),
            new: new.clone(),
            key: key.to_owned(),
        };
        begun(sent, Some(make), None)
    }

    async fn update(
        &self,
        target: &Target,
        seen: &Seen,
        patch: &BackupPatch,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if let Some(name) = &patch.name {
            self.is_free(&target.vm, name, Some(target), by).await?;
        }
        let mut after = seen.label.clone();
        after.patch(patch);
        // Before the label says so: a backup that is shown as protected is not removed by the daemon.
        let expired = if after.protected {
            self.keep(target, &seen.snapshot, by).await?
        } else {
            None
        };
        let labelled = self
            .relabel(seen, target, by, |label| {
                if label.changed.as_deref() == Some(key) {
                    return false;
                }
                label.patch(patch);
                label.changed = Some(key.to_owned());
                true
            })
            .await;
        match (labelled, expired) {
            (Ok(()), _) => Ok(BeginOutcome::Done),
            // Refused: it expires as it did before.
            (Err(error), Some(at)) if error.effect == Effect::None => {
                self.expire(target, &at, by).await?;
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn delete(
        &self,
        target: &Target,
        seen: &Seen,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        if seen.label.protected {
            return Err(protected());
        }
        self.storage_is_mounted(&target.vm, by).await?;
        self.is_idle(&target.vm, by).await?;
        self.is_same(target, seen, by).await?;
        let is_protected = AtomicBool::new(false);
        self.relabel(seen, target, by, |label| {
            // Looked at again with the write: another gateway may have protected it since.
            is_protected.store(label.protected, Ordering::Relaxed);
            let stale = label.removing.as_deref() != Some(key);
            label.removing = Some(key.to_owned());
            stale && !label.protected
        })
        .await?;
        if is_protected.load(Ordering::Relaxed) {
            return Err(protected());
        }
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let sent = self.api.delete(vm, id, by).await;
        if sent.as_ref().is_err_and(NativeError::is_missing) {
            return Ok(BeginOutcome::Done);
        }
        let before = seen.label.removing.clone();
        let result = begun(
            sent,
            None,
            Some(doing(target, key, What::Delete { before })),
        );
        if result
            .as_ref()
            .is_err_and(|error| error.effect == Effect::None)
        {
            // Nothing was removed: it is as whole as it was before.
            self.relabel(seen, target, by, |label| {
                let ours = label.removing.as_deref() == Some(key);
                label.removing.clone_from(&seen.label.removing);
                ours
            })
            .await?;
        }
        result
    }

    async fn restore(
        &self,
        target: &Target,
        seen: &Seen,
        key: &str,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        if !seen.label.is_whole(id) {
            return Err(not_ready());
        }
        self.may_restore(target, seen, by).await?;
        self.storage_is_mounted(&target.vm, by).await?;
        self.is_idle(&target.vm, by).await?;
        let before = Before::of(baseline);
        match &before.generation {
            Some(generation) if map::generation(&seen.instance) == Some(generation) => {}
            Some(_changed) => return Err(error::busy()),
            None => {
                let sent = self.api.configure(vm, MARKER, key, by).await;
                let sent = sent.map_err(|error| error.of_write(FaultKind::NoSuchVm))?;
                self.settled(&sent, by).await?;
            }
        }
        self.keep_for_restore(target, &seen.snapshot, by).await?;
        // After the marker: a label that names this request proves that the marker was set.
        self.relabel(seen, target, by, |label| {
            let stale = label.restoring.as_deref() != Some(key);
            label.restoring = Some(key.to_owned());
            stale
        })
        .await?;
        self.restore_as_seen(target, seen, &before, key, by).await
    }

    /// Looks once more at everything that was checked, and restores the VM only if none of it changed until then.
    async fn restore_as_seen(
        &self,
        target: &Target,
        seen: &Seen,
        before: &Before,
        key: &str,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let stateful = seen.snapshot.stateful;
        let mut tries = 1..=TRIES;
        loop {
            let is_last = tries.next().is_none_or(|nth| nth == TRIES);
            self.is_same(target, seen, by).await?;
            self.may_restore(target, seen, by).await?;
            let found = self.api.tagged_instance(vm, by).await;
            let (instance, etag) = found.map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
            is_settled(&instance)?;
            if instance.created_at != seen.instance.created_at
                || is_restored(&instance, before.generation.as_deref(), key)
            {
                return Err(error::busy());
            }
            let what = What::Restore {
                generation: before.generation.clone(),
                ran: is_running(&instance),
            };
            self.is_idle(&target.vm, by).await?;
            let sent = self.api.restore(vm, id, stateful, etag, by).await;
            if is_last || !sent.as_ref().is_err_and(NativeError::is_stale) {
                return begun(sent, None, Some(doing(target, key, what)));
            }
        }
    }

    /// Whether the snapshot is still the one that was looked at.
    async fn is_same(
        &self,
        target: &Target,
        seen: &Seen,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let now = self.api.snapshot(vm, id, by).await;
        let now = now.map_err(|error| error.of_read(FaultKind::NoSuchVm))?;
        now.filter(|now| now.created_at == seen.snapshot.created_at)
            .map(|_same| ())
            .ok_or_else(|| no_such(FaultKind::NoSuchBackup))
    }

    /// Whether no other backup of the VM has that name.
    async fn is_free(
        &self,
        vm: &VmId,
        name: &BackupName,
        but: Option<&Target>,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let all = self.all(vm, by).await?;
        let other = |id| but.is_none_or(|but| but.backup != id);
        if all.into_iter().any(|it| it.name == *name && other(it.id)) {
            let text = "Another backup of the VM has that name: choose another name.";
            return Err(AdapterError::refused(FaultKind::NameTaken, text));
        }
        Ok(())
    }

    /// Whether nothing is at work on the VM: LXD and Incus themselves let a restore run into a snapshot and tear it.
    async fn is_idle(&self, vm: &VmId, by: Deadline) -> Result<(), AdapterError> {
        let tasks = self.tasks(by).await?;
        if tasks.iter().any(|task| map::is_at_work(task, vm.as_str())) {
            return Err(error::busy());
        }
        Ok(())
    }

    pub(super) async fn relabel(
        &self,
        seen: &Seen,
        target: &Target,
        by: Deadline,
        edit: impl Fn(&mut Label) -> bool + Send + Sync,
    ) -> Result<(), AdapterError> {
        let (id, made) = (target.backup.as_str(), &seen.snapshot.created_at);
        self.write_label(&seen.path, id, made, by, edit).await
    }

    /// Edits the label of a snapshot; `edit` tells whether there is something to write.
    pub(super) async fn write_label(
        &self,
        path: &VolumePath,
        id: &str,
        made: &str,
        by: Deadline,
        edit: impl Fn(&mut Label) -> bool + Send + Sync,
    ) -> Result<(), AdapterError> {
        let missing = FaultKind::NoSuchBackup;
        for _ in 0..TRIES {
            let found = self.api.volume(path, id, by).await;
            let found = found.map_err(|error| error.of_read(missing))?;
            let (volume, etag) = found.ok_or_else(|| no_such(missing))?;
            let mut label = Label::of(made, &volume.description);
            if !edit(&mut label) {
                return Ok(());
            }
            let sent = self.api.describe(path, id, &label.text(), etag, by).await;
            match sent {
                Ok(Sent::Done) => return Ok(()),
                // Read once more: what was written is the proof.
                Ok(sent @ Sent::Operation(_)) => self.settled(&sent, by).await?,
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error.of_write(missing)),
            }
        }
        let text =
            "Another client keeps changing the backup, so it was not changed. Try again later.";
        Err(AdapterError::refused(FaultKind::Conflict, text))
    }

    /// Waits for the end of a short operation, whatever it is.
    pub(super) async fn settled(&self, sent: &Sent, by: Deadline) -> Result<(), AdapterError> {
        let Sent::Operation(id) = sent else {
            return Ok(());
        };
        let lost = |error: NativeError| error.of_write(FaultKind::BackendFailed);
        loop {
            self.api.wait(id, SHORT_WAIT, by).await.map_err(lost)?;
            match self.api.operation(id, by).await.map_err(lost)? {
                Some(task) if task.status_code < 200 => {}
                Some(_) | None => return Ok(()),
            }
        }
    }
}

fn begun(
    sent: Result<Sent, NativeError>,
    make: Option<Make>,
    doing: Option<Doing>,
) -> Result<BeginOutcome, AdapterError> {
    match sent.map_err(|error| error.of_write(FaultKind::NoSuchBackup))? {
        Sent::Done => Ok(BeginOutcome::Done),
        Sent::Operation(operation) => {
            let job = Job {
                operation,
                doubtful: false,
                make,
                doing,
            };
            job.task().map(BeginOutcome::Task)
        }
    }
}

fn doing(target: &Target, key: &str, what: What) -> Doing {
    Doing {
        target: target.clone(),
        key: key.to_owned(),
        what,
    }
}

fn protected() -> AdapterError {
    let text = "The backup is protected, so it was not deleted. Remove its protection first.";
    AdapterError::refused(FaultKind::Protected, text)
}

fn not_ready() -> AdapterError {
    AdapterError::refused(
        FaultKind::NotReady,
        "The backup is incomplete: it is still being made, or making or removing it was interrupted. Wait until it is made, or \
         delete it.",
    )
}
