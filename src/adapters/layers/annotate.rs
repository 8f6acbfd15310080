//! Names, descriptions, tags and protection around an adapter whose VM manager does not keep them.
//!
//! What is said about a new backup is written before the VM manager is asked, under the id that the backup will have
//! and that no other create will give: a backup that was made never lacks its name, whatever ends in between. It is
//! bound to the backup's identity when the backup is first seen, so that a later one of the same id inherits nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;

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
use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::adapters::annotations::Annotations;
use crate::adapters::annotations::AnnotationsError;
use crate::adapters::backup_listing::query_by_listing;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupPatch;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
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
use crate::model::limits;
use crate::public_text;
use crate::runtime::Clock;

/// A backup that is missing for so long counts as deleted by another program.
///
/// Counted from the first look that misses it, so that a disk that was unplugged for an hour costs no backup its name.
const MISSING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Deletes that are followed at once: beyond it the annotation goes with those that are missing.
const DELETES_MAX: usize = 1024;
/// Missing backups that are remembered at once.
const MISSING_KEPT: usize = 10_000;

/// An adapter with the metadata that the gateway keeps.
#[derive(Debug)]
pub struct Annotate {
    backend: BackendName,
    inner: Arc<dyn Adapter>,
    annotations: Arc<dyn Annotations>,
    clock: Arc<dyn Clock>,
    capability: Capability,
    /// Tasks that delete a backup or make one, and which.
    tasks: Mutex<BTreeMap<String, (TaskKind, Target)>>,
    missing: Mutex<BTreeMap<Target, Instant>>,
}

/// What a task does, as far as it matters to annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskKind {
    Create,
    Delete,
}

impl Annotate {
    /// The adapter of that backend with what `annotations` keeps.
    #[must_use]
    pub fn new(
        backend: BackendName,
        inner: Arc<dyn Adapter>,
        annotations: Arc<dyn Annotations>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let update = Some(VerbCapability {
            recovery: Recovery::ReplaySafe,
            settle: Duration::ZERO,
            cancel: false,
            progress: false,
        });
        let capability = Capability {
            update,
            ..inner.capability().clone()
        };
        Self {
            backend,
            inner,
            annotations,
            clock,
            capability,
            tasks: Mutex::default(),
            missing: Mutex::default(),
        }
    }

    /// The backup as people know it; binds what was written before it was made.
    async fn with_annotation(&self, backup: Backup, found: Option<AnnotationRecord>) -> Backup {
        let Some(mut found) = found else {
            return backup;
        };
        match &found.identity {
            Some(stored) if !self.inner.is_identity_of(stored, &backup) => return backup,
            // A stored identity that lacks parts or has an older form is renewed from a backup that is complete.
            Some(stored)
                if *stored == backup.identity || backup.state != BackupState::Available => {}
            Some(_) | None => {
                found.identity = Some(backup.identity.clone());
                // It is shown in any case, and bound at the next look if not at this one.
                if let Err(error) = self.annotations.put(&self.backend, &found).await {
                    tracing::warn!(backend = self.backend.as_str(), %error, "annotation not bound to its backup");
                }
            }
        }
        found.annotation.applied_to(backup)
    }

    async fn read_annotated(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let backup = self.inner.read_backup(target, by).await?;
        let found = self.annotations.get(&self.backend, target).await;
        Ok(self
            .with_annotation(backup, found.map_err(|error| store_unavailable(&error))?)
            .await)
    }

    async fn list_annotated(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        // What is being made while we look may be listed and not yet said: annotations are written first, read last.
        let listed = self.inner.list_backups(vm, page, by).await?;
        let said = self.annotations.list(&self.backend, vm).await;
        let mut said: BTreeMap<BackupId, AnnotationRecord> = said
            .map_err(|error| store_unavailable(&error))?
            .into_iter()
            .map(|record| (record.target.backup.clone(), record))
            .collect();
        let last = listed.backups.last().map(|backup| backup.id.clone());
        let mut backups = Vec::with_capacity(listed.backups.len());
        for backup in listed.backups {
            let found = said.remove(&backup.id);
            self.missing.lock().remove(&Target {
                vm: vm.clone(),
                backup: backup.id.clone(),
            });
            backups.push(self.with_annotation(backup, found).await);
        }
        let within = |id: &BackupId| {
            page.after.as_ref().is_none_or(|after| id > after)
                && (!listed.more || last.as_ref().is_some_and(|last| id < last))
        };
        // Storage that is away for a day may read as empty: what is protected is never forgotten.
        let may_go =
            |kept: &AnnotationRecord| within(&kept.target.backup) && !kept.annotation.protected;
        for orphan in said.into_values().filter(may_go) {
            self.note_missing(&orphan.target).await;
        }
        Ok(BackupPage {
            backups,
            more: listed.more,
        })
    }

    /// Notes that the backup is not there, and forgets what was said about it when that has lasted.
    async fn note_missing(&self, target: &Target) {
        if self.is_long_missing(target) {
            self.remove_annotation(target).await;
        }
    }

    fn is_long_missing(&self, target: &Target) -> bool {
        let now = self.clock.instant();
        let mut missing = self.missing.lock();
        if missing.len() >= MISSING_KEPT && !missing.contains_key(target) {
            return false;
        }
        let since = *missing.entry(target.clone()).or_insert(now);
        let over = now.saturating_duration_since(since) >= MISSING_MAX;
        if over {
            missing.remove(target);
        }
        over
    }

    /// What is left over does no harm: it is bound to a backup that is gone.
    async fn remove_annotation(&self, target: &Target) {
        if let Err(error) = self.annotations.remove(&self.backend, target).await {
            tracing::warn!(backend = self.backend.as_str(), %error, "annotation not removed");
        }
    }

    /// Whether no other backup of the VM has the name.
    async fn refuse_duplicate_name(
        &self,
        target: &Target,
        name: &BackupName,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let mut page = Page {
            after: None,
            limit: limits::PAGE_MAX,
        };
        loop {
            let found = self.list_annotated(&target.vm, &page, by).await?;
            let mut others = found
                .backups
                .iter()
                .filter(|backup| backup.id != target.backup);
            if others.any(|other| other.name == *name) {
                return Err(AdapterError::refused(
                    FaultKind::NameTaken,
                    public_text!("Another backup of the VM has this name. Choose another name."),
                ));
            }
            match found.backups.last() {
                Some(last) if found.more => page.after = Some(last.id.clone()),
                Some(_) | None => return Ok(()),
            }
        }
    }

    async fn begin_create(
        &self,
        intent: &Intent,
        new: &NewBackup,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let target = &intent.target;
        self.refuse_duplicate_name(target, &new.name, by).await?;
        let before = self.annotations.get(&self.backend, target).await;
        let is_first = before.map_err(|error| store_unavailable(&error))?.is_none();
        // A second call for the same create must not unbind what the first one made.
        if is_first {
            let annotation = Annotation {
                name: Some(new.name.clone()),
                description: new.description.clone(),
                tags: new.tags.clone(),
                protected: new.protected,
            };
            self.write_annotation(target, None, annotation).await?;
        }
        let begun = self.inner.begin(intent, key, baseline, by).await;
        if is_first && matches!(&begun, Err(error) if error.effect == Effect::None) {
            self.remove_annotation(target).await;
        }
        begun
    }

    async fn write_update(
        &self,
        intent: &Intent,
        patch: &BackupPatch,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let backup = self.read_expected_backup(intent, by).await?;
        if let Some(name) = patch.name.as_ref().filter(|name| **name != backup.name) {
            self.refuse_duplicate_name(&intent.target, name, by).await?;
        }
        let after = patch.applied_to(backup);
        let annotation = Annotation {
            name: Some(after.name),
            description: after.description,
            tags: after.tags,
            protected: after.protected,
        };
        self.write_annotation(&intent.target, Some(after.identity), annotation)
            .await?;
        Ok(BeginOutcome::Done)
    }

    async fn write_annotation(
        &self,
        target: &Target,
        identity: Option<Identity>,
        annotation: Annotation,
    ) -> Result<(), AdapterError> {
        let record = AnnotationRecord {
            target: target.clone(),
            identity,
            annotation,
            written: self.clock.now(),
        };
        let put = self.annotations.put(&self.backend, &record).await;
        put.map_err(|error| store_write_failed(&error))
    }

    /// The very backup that is meant.
    async fn read_expected_backup(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Backup, AdapterError> {
        let backup = self.read_annotated(&intent.target, by).await?;
        match &intent.identity {
            Some(stored) if !self.inner.is_identity_of(stored, &backup) => {
                Err(AdapterError::refused(
                    FaultKind::NoSuchBackup,
                    public_text!(
                        "The backup was replaced by another one with the same id. List the VM's backups."
                    ),
                ))
            }
            Some(_) | None => Ok(backup),
        }
    }

    /// The preview of the VM manager with the names and the protection that the gateway keeps.
    async fn preview_annotated(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        let mut preview = self.inner.preview(intent, by).await?;
        let said = self
            .annotations
            .list(&self.backend, &intent.target.vm)
            .await;
        let mut said: BTreeMap<BackupId, AnnotationRecord> = said
            .map_err(|error| store_unavailable(&error))?
            .into_iter()
            .map(|record| (record.target.backup.clone(), record))
            .collect();
        let mut annotate = |backup: &mut Backup| {
            let found = said.remove(&backup.id);
            // As `with_annotation` decides, and nothing is bound: a preview writes nothing.
            let fits = |found: &AnnotationRecord| {
                let stored = found.identity.as_ref();
                stored.is_none_or(|stored| self.inner.is_identity_of(stored, backup))
            };
            if let Some(found) = found.filter(fits) {
                *backup = found.annotation.applied_to(backup.clone());
            }
        };
        annotate(&mut preview.backup);
        preview.loses.iter_mut().for_each(annotate);
        if intent.change == Change::Delete {
            // First, as in `begin`: this layer looks before it asks the VM manager.
            if let Err(error) = refuse_protected(&preview.backup) {
                preview.refused.insert(0, error.fault);
            }
        }
        Ok(preview)
    }

    /// Remembers what a task does, so that its end is noticed.
    fn track_task(&self, intent: &Intent, task: &TaskRef) {
        let kind = match intent.change {
            Change::Create(_) => TaskKind::Create,
            Change::Delete => TaskKind::Delete,
            Change::Update(_) | Change::Restore(_) => return,
        };
        let mut tasks = self.tasks.lock();
        if tasks.len() < DELETES_MAX {
            tasks.insert(task.as_str().to_owned(), (kind, intent.target.clone()));
        }
    }

    /// A backup that is gone, or was not made, needs no annotation.
    async fn forget_after_task(&self, kind: TaskKind, target: &Target, state: &TaskState) {
        match (kind, state) {
            (TaskKind::Delete, TaskState::Done(_))
            | (TaskKind::Create, TaskState::Failed(_) | TaskState::Cancelled) => {
                self.remove_annotation(target).await;
            }
            (TaskKind::Delete | TaskKind::Create, _) => {}
        }
    }
}

/// Refuses to delete a backup that is protected.
fn refuse_protected(backup: &Backup) -> Result<(), AdapterError> {
    if !backup.protected {
        return Ok(());
    }
    let text = public_text!(
        "The backup is protected, so it was not deleted. Remove its protection first."
    );
    Err(AdapterError::refused(FaultKind::Protected, text))
}

fn store_unavailable(error: &AnnotationsError) -> AdapterError {
    AdapterError::unavailable(public_text!(
        "The gateway's store is unavailable. Try again later."
    ))
    .because(error)
}

fn store_write_failed(error: &AnnotationsError) -> AdapterError {
    match error {
        AnnotationsError::Unavailable(_) => store_unavailable(error),
        AnnotationsError::Indeterminate(_) => AdapterError::uncertain(
            FaultKind::Unavailable,
            public_text!("The gateway's store is unavailable, and the outcome is being determined. Wait for the final Status."),
        )
        .because(error),
    }
}

#[async_trait]
impl Adapter for Annotate {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    /// This layer is what keeps it: from outside it is as if the VM manager did.
    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.inner.is_identity_of(stored, backup)
    }

    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.preview_annotated(intent, by).await
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        match intent.change {
            Change::Update(_) => false,
            Change::Create(_) | Change::Delete | Change::Restore(_) => {
                self.inner.needs_baseline(intent)
            }
        }
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.inner.health(by).await
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.inner.read_vm(vm, by).await
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.inner.list_vms(range, by).await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.list_annotated(vm, page, by).await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        // What the VM manager says of names, tags and protection is not what callers see, so nothing is left to it.
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.read_annotated(target, by).await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        match intent.change {
            Change::Update(_) => Ok(None),
            Change::Create(_) | Change::Delete | Change::Restore(_) => {
                self.inner.baseline(intent, key, by).await
            }
        }
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let begun = match &intent.change {
            Change::Create(new) => self.begin_create(intent, new, key, baseline, by).await?,
            Change::Update(patch) => return self.write_update(intent, patch, by).await,
            Change::Delete => {
                match self.read_expected_backup(intent, by).await {
                    Ok(backup) => refuse_protected(&backup)?,
                    // What is left of one that is half deleted may look like another one: the VM manager's adapter knows.
                    Err(error) if error.fault.kind != FaultKind::NoSuchBackup => return Err(error),
                    Err(_) => {}
                }
                self.inner.begin(intent, key, baseline, by).await?
            }
            Change::Restore(_) => self.inner.begin(intent, key, baseline, by).await?,
        };
        match &begun {
            BeginOutcome::Task(task) => self.track_task(intent, task),
            BeginOutcome::Done if intent.change == Change::Delete => {
                self.remove_annotation(&intent.target).await;
            }
            BeginOutcome::Done => {}
        }
        Ok(begun)
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        let state = self.inner.poll(task, by).await?;
        if !matches!(state, TaskState::Running(_)) {
            let followed = self.tasks.lock().remove(task.as_str());
            if let Some((kind, target)) = followed {
                self.forget_after_task(kind, &target, &state).await;
            }
        }
        Ok(state)
    }

    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        if let Change::Update(patch) = &intent.change {
            let now = self.read_expected_backup(intent, by).await?;
            return Ok(if patch.applied_to(now.clone()) == now {
                FindOutcome::Done(None)
            } else {
                FindOutcome::NotBegun
            });
        }
        let found = self.inner.find_outcome(intent, key, baseline, by).await?;
        match (&found, &intent.change) {
            (FindOutcome::Task(task), _) => self.track_task(intent, task),
            (FindOutcome::Done(_), Change::Delete) => self.remove_annotation(&intent.target).await,
            (
                FindOutcome::Failed(_) | FindOutcome::NotBegun | FindOutcome::VmChanged,
                Change::Create(_),
            ) => {
                self.remove_annotation(&intent.target).await;
            }
            (
                FindOutcome::NotBegun
                | FindOutcome::VmChanged
                | FindOutcome::HalfDone(_)
                | FindOutcome::Done(_)
                | FindOutcome::Failed(_)
                | FindOutcome::NotYet
                | FindOutcome::Unknowable,
                _,
            ) => {}
        }
        Ok(found)
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.inner.cancel(task, by).await
    }
}
