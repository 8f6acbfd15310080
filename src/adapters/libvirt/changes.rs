//! The four changes: what is checked before each, and the call itself as a task.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::libvirt::Libvirt;
use crate::adapters::libvirt::LoadedSnapshot;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::inspector::Inspector;
use crate::adapters::libvirt::inspector::RestoreSettings;
use crate::adapters::libvirt::long_calls::CallOutcome;
use crate::adapters::libvirt::long_calls::SnapshotInProgress;
use crate::adapters::libvirt::map::Notes;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::Snapshot;
use crate::adapters::libvirt::no_such_backup;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xml;
use crate::adapters::libvirt::xml::SnapshotLocation;
use crate::adapters::libvirt::xml::XmlError;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::TaskRef;

/// How long `begin` waits for a call that may well be short.
const SHORT_CALL_WAIT: Duration = Duration::from_secs(1);
/// Time to look at the VM after a restore failed.
const AFTER_FAILURE_TIMEOUT: Duration = Duration::from_secs(10);

/// One call that changes something.
enum ChangeCall {
    /// Makes a snapshot from this XML.
    Create(Domain, String),
    /// Writes this XML of a snapshot back, which is the current one or not.
    Redefine(Domain, String, bool),
    /// Removes the snapshot.
    Delete(Box<LoadedSnapshot>),
    /// Restores the VM from the snapshot.
    Restore(Box<LoadedSnapshot>, RestoreSettings),
}

/// What a task calls with.
struct CallRunner {
    inspector: Inspector,
    by: Deadline,
}

impl Libvirt {
    /// Checks, then begins.
    pub(super) async fn begin_now(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let name = key.to_string();
        if self.jobs.outcome(&name).is_none() {
            let domain = self.domain(&intent.target.vm, by).await?;
            match &intent.change {
                Change::Create(new) => self.create(&domain, intent, new, &name, by).await?,
                Change::Update(patch) => self.update(&domain, intent, patch, &name, by).await?,
                Change::Delete => self.delete(&domain, intent, &name, by).await?,
                Change::Restore(options) => {
                    self.restore(&domain, intent, options, &name, by).await?;
                }
            }
        }
        let patience = self.clock.deadline(SHORT_CALL_WAIT).earlier(by);
        self.jobs.ended_by(&name, patience).await;
        if self.jobs.outcome(&name) == Some(Some(CallOutcome::Done)) {
            return Ok(BeginOutcome::Done);
        }
        TaskRef::new(name).map(BeginOutcome::Task).ok_or_else(|| {
            AdapterError::uncertain(FaultKind::BackendFailed, "the task cannot be named")
        })
    }

    async fn create(
        &self,
        domain: &Domain,
        intent: &Intent,
        new: &NewBackup,
        name: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        if !matches!(new.kind, None | Some(BackupKind::Snapshot)) {
            return Err(AdapterError::refused(
                FaultKind::Unsupported,
                "libvirt makes backups of type snapshot alone",
            ));
        }
        let id = intent.target.backup.as_str();
        if self.is_listed(domain, id, by).await? {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                "the VM has a snapshot of the new backup's id",
            ));
        }
        self.check_name_is_free(domain, &new.name, None, by).await?;
        self.inspector().check_create(domain, by).await?;
        let xml =
            xml::new_snapshot(id, &Notes::of_new(new).write()).map_err(unwritable_description)?;
        let making = (domain.uuid, id.to_owned());
        self.start_call(name, Some(making), ChangeCall::Create(domain.clone(), xml));
        Ok(())
    }

    async fn update(
        &self,
        domain: &Domain,
        intent: &Intent,
        patch: &BackupPatch,
        name: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let it = self.load_meant(domain, intent, by).await?;
        if let Some(new) = &patch.name {
            self.check_name_is_free(domain, new, Some(&it), by).await?;
        }
        let mut notes = Notes::read(it.xml.description.as_deref());
        // As it is shown: it may count as protected although the description does not say so.
        notes.protected = it.backup.protected;
        let notes = notes.patched(patch);
        let xml =
            xml::with_description(&it.text, &notes.write()).map_err(unwritable_description)?;
        let current = self.client.current(domain, by).await;
        let current = current.map_err(|it| error::from_read(&it))?;
        let is_current = current.as_deref() == Some(&it.snapshot.name);
        self.start_call(
            name,
            None,
            ChangeCall::Redefine(domain.clone(), xml, is_current),
        );
        Ok(())
    }

    async fn delete(
        &self,
        domain: &Domain,
        intent: &Intent,
        name: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let it = self.load_meant(domain, intent, by).await?;
        if it.backup.protected {
            return Err(AdapterError::refused(
                FaultKind::Protected,
                "the backup is protected",
            ));
        }
        self.inspector().check_delete(&it, by).await?;
        self.start_call(name, None, ChangeCall::Delete(Box::new(it)));
        Ok(())
    }

    async fn restore(
        &self,
        domain: &Domain,
        intent: &Intent,
        options: &RestoreOptions,
        name: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let settings = RestoreSettings {
            after: definition_checks::read_after_restore(options, self.config.after_restore)?,
            managed_save: definition_checks::read_managed_save(options, self.config.managed_save)?,
        };
        let it = self.load_meant(domain, intent, by).await?;
        self.inspector().check_restore(&it, settings, by).await?;
        self.start_call(name, None, ChangeCall::Restore(Box::new(it), settings));
        Ok(())
    }

    /// The very backup of the intent.
    async fn load_meant(
        &self,
        domain: &Domain,
        intent: &Intent,
        by: Deadline,
    ) -> Result<LoadedSnapshot, AdapterError> {
        let loaded = self.load(domain, &intent.target.backup, by).await;
        loaded
            .map_err(|it| error::from_read(&it))?
            .filter(|other| intent.identity.as_ref() == Some(&other.backup.identity))
            .ok_or_else(no_such_backup)
    }

    /// Whether no backup of the VM but this one has that name.
    async fn check_name_is_free(
        &self,
        domain: &Domain,
        name: &BackupName,
        but: Option<&LoadedSnapshot>,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let all = self.backups(domain, None, usize::MAX, by).await;
        let all = all.map_err(|it| error::from_read(&it))?;
        let others = all
            .iter()
            .filter(|it| but.is_none_or(|but| it.id != but.backup.id));
        if others.into_iter().any(|other| other.name == *name) {
            return Err(AdapterError::refused(
                FaultKind::NameTaken,
                "another backup of the VM has this name",
            ));
        }
        Ok(())
    }

    /// Runs the call as a task of its own, and makes an outcome of its end.
    fn start_call(&self, name: &str, making: Option<SnapshotInProgress>, call: ChangeCall) {
        let caller = CallRunner {
            inspector: self.inspector(),
            by: self.clock.deadline(self.config.operation_timeout),
        };
        let operation = name.to_owned();
        self.jobs.start(name.to_owned(), making, async move {
            let Err(failure) = caller.perform(call).await else {
                return CallOutcome::Done;
            };
            tracing::warn!(operation, error = failure.private, "libvirt call failed");
            if failure.may_have_happened {
                CallOutcome::Unanswered
            } else {
                CallOutcome::Failed(failure.fault)
            }
        });
    }
}

/// Why a call failed, and what a caller may see of it.
struct CallFailure {
    fault: Fault,
    /// Whether it may have been carried out all the same.
    may_have_happened: bool,
    private: String,
}

impl From<RpcError> for CallFailure {
    fn from(error: RpcError) -> Self {
        Self {
            fault: error::fault(&error),
            may_have_happened: error.may_have_happened(),
            private: error.to_string(),
        }
    }
}

impl From<AdapterError> for CallFailure {
    /// Of a last look before anything was done.
    fn from(error: AdapterError) -> Self {
        Self {
            private: error.private().to_owned(),
            fault: error.fault,
            may_have_happened: false,
        }
    }
}

impl CallFailure {
    fn failed(text: impl Into<PublicText>, private: impl Into<String>) -> Self {
        Self {
            fault: Fault::new(FaultKind::BackendFailed, text),
            may_have_happened: false,
            private: private.into(),
        }
    }
}

impl CallRunner {
    async fn perform(&self, call: ChangeCall) -> Result<(), CallFailure> {
        let client = &self.inspector.client;
        match call {
            ChangeCall::Create(domain, xml) => self.create(&domain, &xml).await,
            ChangeCall::Redefine(domain, xml, is_current) => {
                Ok(client.redefine(&domain, &xml, is_current, self.by).await?)
            }
            ChangeCall::Delete(which) => self.delete(&which).await,
            ChangeCall::Restore(from, settings) => self.restore(&from, settings).await,
        }
    }

    /// Time to look at the VM after a change failed.
    fn look_deadline(&self) -> Deadline {
        self.inspector.clock.deadline(AFTER_FAILURE_TIMEOUT)
    }

    async fn create(&self, domain: &Domain, xml: &str) -> Result<(), CallFailure> {
        let client = &self.inspector.client;
        let Err(error) = client.create(domain, xml, self.by).await else {
            return Ok(());
        };
        let was_on = domain.id >= 0;
        let mut failure = CallFailure::from(error);
        let state = client.state(domain, self.look_deadline()).await;
        if !failure.may_have_happened
            && was_on
            && state.is_ok_and(|state| state.activity() == VmActivity::Off)
        {
            failure.fault.text = format!("{}; the VM is off now", failure.fault.text).into();
        }
        Err(failure)
    }

    /// Removes the snapshot from every disk. libvirt passes over disks of a VM that is off which it cannot open, and
    /// forgets the snapshot all the same.
    async fn delete(&self, which: &LoadedSnapshot) -> Result<(), CallFailure> {
        let inspector = &self.inspector;
        inspector.check_delete(which, self.by).await?;
        let domain = &which.snapshot.domain;
        let current = inspector.client.current(domain, self.by).await?;
        let is_current = current.as_ref() == Some(&which.snapshot.name);
        let deleted = inspector.client.delete(&which.snapshot, self.by).await;
        if let Err(error) = &deleted
            && error.code().is_none()
        {
            return Err(CallFailure::from(error.clone()));
        }
        let left = inspector.disks_holding(which, self.look_deadline()).await;
        let left = left.unwrap_or_default();
        let named = definition_checks::list_disks(left.iter().map(String::as_str));
        match deleted {
            Ok(()) if left.is_empty() => Ok(()),
            Ok(()) => {
                // Listed again, so that it is seen and can be deleted.
                let listed = inspector
                    .client
                    .redefine(domain, &which.text, is_current, self.by)
                    .await;
                Err(CallFailure::failed(
                    format!(
                        "the backup was removed from some disks only and cannot be restored any more: {named} still has \
                         its part. Delete the backup again"
                    ),
                    listed
                        .err()
                        .map(|error| error.to_string())
                        .unwrap_or_default(),
                ))
            }
            Err(error) => {
                let mut failure = CallFailure::from(error);
                let parts = which.xml.disks.iter();
                let parts = parts.filter(|part| part.place == SnapshotLocation::Internal);
                if left.len() < parts.count() && !left.is_empty() {
                    let text = &failure.fault.text;
                    failure.fault.text = format!(
                        "{text}; only {named} still has its part of the backup, which cannot be restored any more. \
                         Delete the backup again"
                    )
                    .into();
                }
                Err(failure)
            }
        }
    }

    /// Restores the VM, and switches it off if it is to be off.
    async fn restore(
        &self,
        from: &LoadedSnapshot,
        settings: RestoreSettings,
    ) -> Result<(), CallFailure> {
        let (inspector, client) = (&self.inspector, &self.inspector.client);
        // What was found when this began may have changed since.
        let ready = inspector.check_restore(from, settings, self.by).await?;
        let domain = &ready.domain;
        if ready.has_managed_save {
            client.remove_managed_save(domain, self.by).await?;
        }
        let to = Snapshot {
            name: from.snapshot.name.clone(),
            domain: domain.clone(),
        };
        if let Err(error) = client.revert(&to, ready.plan.revert, self.by).await {
            return Err(self.restore_failed(from, domain, error).await);
        }
        if ready.plan.then_off
            && let Err(error) = client.destroy(domain, self.by).await
        {
            return Err(CallFailure::failed(
                "the VM was restored, but is left paused instead of off; switch it off (virsh destroy)",
                error.to_string(),
            ));
        }
        if client
            .has_managed_save(domain, self.by)
            .await
            .unwrap_or(false)
        {
            return Err(CallFailure::failed(
                "the VM was restored, but memory that belongs to its disks before that was saved meanwhile; remove it \
                 (virsh managedsave-remove) before the VM is started",
                "",
            ));
        }
        Ok(())
    }

    async fn restore_failed(
        &self,
        from: &LoadedSnapshot,
        before: &Domain,
        error: RpcError,
    ) -> CallFailure {
        let has_answer = error.code().is_some();
        let mut failure = CallFailure::from(error);
        if !has_answer {
            return failure;
        }
        let inspector = &self.inspector;
        let now = inspector
            .describe_after_failure(&from.xml, before, before.id, self.look_deadline())
            .await;
        let is_off = now.starts_with("the VM is off");
        if before.id >= 0 && is_off {
            failure.fault = Fault::new(FaultKind::BackendFailed, "the restore failed half-way");
        }
        failure.fault.text = format!("{}; {now}", failure.fault.text).into();
        failure
    }
}

fn unreadable_answer(error: XmlError) -> AdapterError {
    AdapterError::refused(
        FaultKind::BackendFailed,
        "libvirt answered something that makes no sense",
    )
    .because(error)
}

fn unwritable_description(error: XmlError) -> AdapterError {
    match error {
        XmlError::Character => AdapterError::refused(
            FaultKind::Invalid,
            "the description holds a character that libvirt cannot keep",
        ),
        XmlError::Syntax(_) | XmlError::Missing(_) => unreadable_answer(error),
    }
}
