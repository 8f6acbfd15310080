//! The four changes: what is checked before each, and the call itself as a task.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::libvirt::Libvirt;
use crate::adapters::libvirt::Loaded;
use crate::adapters::libvirt::check;
use crate::adapters::libvirt::client::Domain;
use crate::adapters::libvirt::client::Snapshot;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::inspect::Inspector;
use crate::adapters::libvirt::inspect::Wanted;
use crate::adapters::libvirt::jobs::Making;
use crate::adapters::libvirt::jobs::Outcome;
use crate::adapters::libvirt::map::Doing;
use crate::adapters::libvirt::map::Notes;
use crate::adapters::libvirt::none_such;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xml;
use crate::adapters::libvirt::xml::Place;
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
const PATIENCE: Duration = Duration::from_secs(1);
/// Time to look at the VM after a restore failed.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// One call that changes something.
enum Call {
    /// Makes a snapshot from this XML.
    Create(Domain, String),
    /// Writes this XML of a snapshot back, which is the current one or not.
    Redefine(Domain, String, bool),
    /// Removes the snapshot.
    Delete(Box<Loaded>),
    /// Restores the VM from the snapshot.
    Restore(Box<Loaded>, Wanted),
}

/// What a task calls with.
struct Caller {
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
        let patience = self.clock.deadline(PATIENCE).earlier(by);
        self.jobs.ended_by(&name, patience).await;
        if self.jobs.outcome(&name) == Some(Some(Outcome::Done)) {
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
        self.free_name(domain, &new.name, None, by).await?;
        self.inspector().creatable(domain, by).await?;
        let xml = xml::new_snapshot(id, &Notes::of_new(new).write()).map_err(unwritable)?;
        let making = (domain.uuid, id.to_owned());
        self.run(name, Some(making), Call::Create(domain.clone(), xml));
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
        let it = self.ours(domain, intent, by).await?;
        if let Some(new) = &patch.name {
            self.free_name(domain, new, Some(&it), by).await?;
        }
        let mut notes = Notes::read(it.xml.description.as_deref());
        // As it is shown: it may count as protected although the description does not say so.
        notes.protected = it.backup.protected;
        let notes = notes.patched(patch);
        let xml = xml::with_description(&it.text, &notes.write()).map_err(unwritable)?;
        let current = self.client.current(domain, by).await;
        let current = current.map_err(|it| error::from_read(&it))?;
        let is_current = current.as_deref() == Some(&it.snapshot.name);
        self.run(name, None, Call::Redefine(domain.clone(), xml, is_current));
        Ok(())
    }

    async fn delete(
        &self,
        domain: &Domain,
        intent: &Intent,
        name: &str,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let it = self.ours(domain, intent, by).await?;
        if it.backup.protected {
            return Err(AdapterError::refused(
                FaultKind::Protected,
                "the backup is protected",
            ));
        }
        self.inspector().deletable(&it, by).await?;
        self.run(name, None, Call::Delete(Box::new(it)));
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
        let wanted = Wanted {
            after: check::after(options, self.config.after_restore)?,
            managed_save: check::managed_save(options, self.config.managed_save)?,
        };
        let it = self.ours(domain, intent, by).await?;
        self.inspector().restorable(&it, wanted, by).await?;
        self.run(name, None, Call::Restore(Box::new(it), wanted));
        Ok(())
    }

    /// The very backup of the intent.
    async fn ours(
        &self,
        domain: &Domain,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Loaded, AdapterError> {
        let loaded = self.load(domain, &intent.target.backup, by).await;
        loaded
            .map_err(|it| error::from_read(&it))?
            .filter(|other| intent.identity.as_ref() == Some(&other.backup.identity))
            .ok_or_else(none_such)
    }

    /// Whether no backup of the VM but this one has that name.
    async fn free_name(
        &self,
        domain: &Domain,
        name: &BackupName,
        but: Option<&Loaded>,
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
    fn run(&self, name: &str, making: Option<Making>, call: Call) {
        let caller = Caller {
            inspector: self.inspector(),
            by: self.clock.deadline(self.config.operation_timeout),
        };
        let operation = name.to_owned();
        self.jobs.start(name.to_owned(), making, async move {
            let Err(failure) = caller.make(call).await else {
                return Outcome::Done;
            };
            tracing::warn!(operation, error = failure.private, "libvirt call failed");
            if failure.is_open {
                Outcome::Open
            } else {
                Outcome::Failed(failure.fault)
            }
        });
    }
}

/// Why a call failed, and what a caller may see of it.
struct Failure {
    fault: Fault,
    /// Whether it may have been carried out all the same.
    is_open: bool,
    private: String,
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        Self {
            fault: error::fault(&error),
            is_open: error.is_open(),
            private: error.to_string(),
        }
    }
}

impl From<AdapterError> for Failure {
    /// Of a last look before anything was done.
    fn from(error: AdapterError) -> Self {
        Self {
            private: error.private().to_owned(),
            fault: error.fault,
            is_open: false,
        }
    }
}

impl Failure {
    fn failed(text: impl Into<PublicText>, private: impl Into<String>) -> Self {
        Self {
            fault: Fault::new(FaultKind::BackendFailed, text),
            is_open: false,
            private: private.into(),
        }
    }
}

impl Caller {
    async fn make(&self, call: Call) -> Result<(), Failure> {
        let client = &self.inspector.client;
        match call {
            Call::Create(domain, xml) => self.create(&domain, &xml).await,
            Call::Redefine(domain, xml, is_current) => {
                Ok(client.redefine(&domain, &xml, is_current, self.by).await?)
            }
            Call::Delete(which) => self.delete(&which).await,
            Call::Restore(from, wanted) => self.restore(&from, wanted).await,
        }
    }

    /// Time to look at the VM after a change failed.
    fn soon(&self) -> Deadline {
        self.inspector.clock.deadline(LOOK_TIMEOUT)
    }

    async fn create(&self, domain: &Domain, xml: &str) -> Result<(), Failure> {
        let client = &self.inspector.client;
        let Err(error) = client.create(domain, xml, self.by).await else {
            return Ok(());
        };
        let was_on = domain.id >= 0;
        let mut failure = Failure::from(error);
        let state = client.state(domain, self.soon()).await;
        if !failure.is_open && was_on && state.is_ok_and(|state| state.doing() == Doing::Off) {
            failure.fault.text = format!("{}; the VM is off now", failure.fault.text).into();
        }
        Err(failure)
    }

    /// Removes the snapshot from every disk. libvirt passes over disks of a VM that is off which it cannot open, and
    /// forgets the snapshot all the same.
    async fn delete(&self, which: &Loaded) -> Result<(), Failure> {
        let inspector = &self.inspector;
        inspector.deletable(which, self.by).await?;
        let domain = &which.snapshot.domain;
        let current = inspector.client.current(domain, self.by).await?;
        let is_current = current.as_ref() == Some(&which.snapshot.name);
        let deleted = inspector.client.delete(&which.snapshot, self.by).await;
        if let Err(error) = &deleted
            && error.code().is_none()
        {
            return Err(Failure::from(error.clone()));
        }
        let left = inspector.holders(which, self.soon()).await;
        let left = left.unwrap_or_default();
        let named = check::disks_named(left.iter().map(String::as_str));
        match deleted {
            Ok(()) if left.is_empty() => Ok(()),
            Ok(()) => {
                // Listed again, so that it is seen and can be deleted.
                let listed = inspector
                    .client
                    .redefine(domain, &which.text, is_current, self.by)
                    .await;
                Err(Failure::failed(
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
                let mut failure = Failure::from(error);
                let parts = which.xml.disks.iter();
                let parts = parts.filter(|part| part.place == Place::Internal);
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
    async fn restore(&self, from: &Loaded, wanted: Wanted) -> Result<(), Failure> {
        let (inspector, client) = (&self.inspector, &self.inspector.client);
        // What was found when this began may have changed since.
        let ready = inspector.restorable(from, wanted, self.by).await?;
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
            return Err(Failure::failed(
                "the VM was restored, but is left paused instead of off; switch it off (virsh destroy)",
                error.to_string(),
            ));
        }
        if client
            .has_managed_save(domain, self.by)
            .await
            .unwrap_or(false)
        {
            return Err(Failure::failed(
                "the VM was restored, but memory that belongs to its disks before that was saved meanwhile; remove it \
                 (virsh managedsave-remove) before the VM is started",
                "",
            ));
        }
        Ok(())
    }

    async fn restore_failed(&self, from: &Loaded, before: &Domain, error: RpcError) -> Failure {
        let has_answer = error.code().is_some();
        let mut failure = Failure::from(error);
        if !has_answer {
            return failure;
        }
        let inspector = &self.inspector;
        let now = inspector
            .aftermath(&from.xml, before, before.id, self.soon())
            .await;
        let is_off = now.starts_with("the VM is off");
        if before.id >= 0 && is_off {
            failure.fault = Fault::new(FaultKind::BackendFailed, "the restore failed half-way");
        }
        failure.fault.text = format!("{}; {now}", failure.fault.text).into();
        failure
    }
}

fn senseless(error: XmlError) -> AdapterError {
    AdapterError::refused(
        FaultKind::BackendFailed,
        "libvirt answered something that makes no sense",
    )
    .because(error)
}

fn unwritable(error: XmlError) -> AdapterError {
    match error {
        XmlError::Character => AdapterError::refused(
            FaultKind::Invalid,
            "the description holds a character that libvirt cannot keep",
        ),
        XmlError::Syntax(_) | XmlError::Missing(_) => senseless(error),
    }
}
