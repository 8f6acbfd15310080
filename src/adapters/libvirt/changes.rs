//! The four changes: what is checked before each, and the call itself as a task.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::checks::Checks;
use crate::adapters::libvirt::change_call::CallRunner;
use crate::adapters::libvirt::change_call::ChangeCall;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::inspector::RestoreSettings;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::long_calls::CallOutcome;
use crate::adapters::libvirt::long_calls::SnapshotInProgress;
use crate::adapters::libvirt::map::Notes;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::snapshot_xml;
use crate::adapters::libvirt::vm_reader::VmReader;
use crate::adapters::libvirt::vm_reader::no_such_backup;
use crate::adapters::libvirt::xml::XmlError;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::TaskRef;
use crate::public_text;

/// How long `begin` waits for a call that may well be short.
const SHORT_CALL_WAIT: Duration = Duration::from_secs(1);

/// The four changes of one libvirtd.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    pub(super) reader: &'a VmReader,
}

impl Changes<'_> {
    /// Checks, then begins.
    pub(super) async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let name = key.to_string();
        if self.reader.calls.outcome(&name).is_none() {
            let domain = self.reader.domain(&intent.target.vm, by).await?;
            match &intent.change {
                Change::Create(new) => self.create(&domain, intent, new, &name, by).await?,
                Change::Update(patch) => self.update(&domain, intent, patch, &name, by).await?,
                Change::Delete => self.delete(&domain, intent, &name, by).await?,
                Change::Restore(options) => {
                    self.restore(&domain, intent, options, &name, by).await?;
                }
            }
        }
        let patience = self.reader.clock.deadline(SHORT_CALL_WAIT).earlier(by);
        self.reader.calls.ended_by(&name, patience).await;
        if self.reader.calls.outcome(&name) == Some(Some(CallOutcome::Done)) {
            return Ok(BeginOutcome::Done);
        }
        TaskRef::new(name).map(BeginOutcome::Task).ok_or_else(|| {
            AdapterError::uncertain(
                FaultKind::BackendFailed,
                public_text!(
                    "The operation was started, but its task reference is too long to be stored. Its outcome is being determined."
                ),
            )
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
                public_text!(
                    "This VM supports backups of type snapshot only; nothing was changed. Request a backup of that type."
                ),
            ));
        }
        let id = intent.target.backup.as_str();
        if self.reader.is_listed(domain, id, by).await? {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                public_text!(
                    "The VM already has a snapshot with the id {id}; nothing was changed. Create the backup again."
                ),
            ));
        }
        self.check_name_is_free(domain, &new.name, None, by).await?;
        self.reader.inspector().check_create(domain, by).await?;
        let xml = snapshot_xml::new_snapshot(id, &Notes::of_new(new).write())
            .map_err(unwritable_description)?;
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
        let loaded = self.load_meant(domain, intent, by).await?;
        if let Some(new) = &patch.name {
            self.check_name_is_free(domain, new, Some(&loaded), by)
                .await?;
        }
        let mut notes = Notes::read(loaded.xml.description.as_deref());
        // As it is shown: it may count as protected although the description does not say so.
        notes.protected = loaded.backup.protected;
        let notes = notes.patched(patch);
        let xml = snapshot_xml::with_description(&loaded.text, &notes.write())
            .map_err(unwritable_description)?;
        let current = self.reader.client.current(domain, by).await?;
        let is_current = current.as_deref() == Some(&loaded.snapshot.name);
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
        let loaded = self.load_meant(domain, intent, by).await?;
        self.check_delete(&loaded, &mut Checks::until_first(), by)
            .await?;
        self.start_call(name, None, ChangeCall::Delete(Box::new(loaded)));
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
        let mut checks = Checks::until_first();
        let settings = self.restore_settings(options, &mut checks)?;
        let loaded = self.load_meant(domain, intent, by).await?;
        self.reader
            .inspector()
            .check_restore(&loaded, settings, &mut checks, by)
            .await?;
        self.start_call(name, None, ChangeCall::Restore(Box::new(loaded), settings));
        Ok(())
    }

    /// What the options of a restore say; where one of them is refused, what is configured.
    pub(super) fn restore_settings(
        &self,
        options: &RestoreOptions,
        checks: &mut Checks,
    ) -> Result<RestoreSettings, AdapterError> {
        let config = &self.reader.config;
        let after = definition_checks::read_after_restore(options, config.after_restore);
        let after = checks.record(after)?;
        let managed_save = definition_checks::read_managed_save(options, config.managed_save);
        let managed_save = checks.record(managed_save)?;
        Ok(RestoreSettings {
            after: after.unwrap_or(config.after_restore),
            managed_save: managed_save.unwrap_or(config.managed_save),
        })
    }

    /// Everything that would refuse to delete the backup.
    pub(super) async fn check_delete(
        &self,
        loaded: &LoadedSnapshot,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(match loaded.backup.protected {
            false => Ok(()),
            true => Err(AdapterError::refused(
                FaultKind::Protected,
                public_text!(
                    "The backup is protected; nothing was changed. Remove its protection first."
                ),
            )),
        })?;
        let inspector = self.reader.inspector();
        inspector.check_delete(loaded, checks, by).await
    }

    /// The very backup of the intent.
    pub(super) async fn load_meant(
        &self,
        domain: &Domain,
        intent: &Intent,
        by: Deadline,
    ) -> Result<LoadedSnapshot, AdapterError> {
        let loaded = self.reader.load(domain, &intent.target.backup, by).await;
        loaded?
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
        let all = self.reader.backups(domain, None, usize::MAX, by).await?;
        let others = all
            .iter()
            .filter(|other| but.is_none_or(|but| other.id != but.backup.id));
        if others.into_iter().any(|other| other.name == *name) {
            return Err(AdapterError::refused(
                FaultKind::NameTaken,
                public_text!(
                    "Another backup of the VM has this name; nothing was changed. Choose another name."
                ),
            ));
        }
        Ok(())
    }

    /// Runs the call as a task of its own, and makes an outcome of its end.
    fn start_call(&self, name: &str, making: Option<SnapshotInProgress>, call: ChangeCall) {
        let caller = CallRunner {
            inspector: self.reader.inspector(),
            by: self
                .reader
                .clock
                .deadline(self.reader.config.operation_timeout),
        };
        let operation = name.to_owned();
        self.reader
            .calls
            .start(name.to_owned(), making, async move {
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

/// Why the XML of a snapshot could not be written.
fn unwritable_description(error: XmlError) -> AdapterError {
    match error {
        XmlError::Character => AdapterError::refused(
            FaultKind::Invalid,
            public_text!(
                "The description contains a character that the VM manager cannot store; nothing was changed. Remove control characters."
            ),
        ),
        XmlError::Syntax(_) | XmlError::Missing(_) => {
            AdapterError::refused(FaultKind::BackendFailed, error::unreadable_answer())
                .because(error)
        }
    }
}
