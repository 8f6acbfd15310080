//! The four changes: what is checked before each, and the call itself as a task.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::libvirt::Libvirt;
use crate::adapters::libvirt::Loaded;
use crate::adapters::libvirt::check;
use crate::adapters::libvirt::check::Plan;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::client::Domain;
use crate::adapters::libvirt::client::Snapshot;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::jobs::Making;
use crate::adapters::libvirt::jobs::Outcome;
use crate::adapters::libvirt::map::Doing;
use crate::adapters::libvirt::map::Notes;
use crate::adapters::libvirt::none_such;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::xml;
use crate::adapters::libvirt::xml::DomainXml;
use crate::adapters::libvirt::xml::XmlError;
use crate::adapters::port::AdapterError;
use crate::adapters::port::Begun;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::TaskRef;
use crate::runtime::Clock;

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
    Delete(Snapshot),
    /// Puts the VM back, which did this before.
    Restore(Snapshot, Plan, Doing),
}

/// What a task calls with.
struct Caller {
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    by: Deadline,
}

impl Libvirt {
    /// Checks, then begins.
    pub(super) async fn begin_now(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Begun, AdapterError> {
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
            return Ok(Begun::Done);
        }
        TaskRef::new(name).map(Begun::Task).ok_or_else(|| {
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
        let text = self.client.domain_xml(domain, by).await;
        let text = text.map_err(|it| error::from_read(&it))?;
        let now = DomainXml::read(&text).map_err(senseless)?;
        if now.has_flash || now.disks.iter().any(|it| it.is_external) {
            return Err(AdapterError::refused(
                FaultKind::Unsupported,
                "libvirt makes no internal snapshots of a VM with UEFI firmware or with disks set to external snapshots",
            ));
        }
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
        let notes = Notes::read(it.xml.description.as_deref()).patched(patch);
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
        self.run(name, None, Call::Delete(it.snapshot));
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
        let read = |it: RpcError| error::from_read(&it);
        let after = check::after(options, self.config.after_restore)?;
        let it = self.ours(domain, intent, by).await?;
        check::snapshot(&it.xml)?;
        if self.is_busy(domain, by).await.map_err(read)? {
            return Err(AdapterError::refused(
                FaultKind::Busy,
                "another job of libvirt's occupies the VM",
            ));
        }
        check::checkpoints(&self.client, domain, by).await?;
        let state = self.client.state(domain, by).await.map_err(read)?;
        let text = self.client.domain_xml(domain, by).await.map_err(read)?;
        let now = DomainXml::read(&text).map_err(senseless)?;
        check::firmware(&now)?;
        check::same_disks(&it.xml, &now)?;
        if self.asks_qemu() {
            check::qemu(&self.client, domain, &it.xml, state, by).await?;
        }
        let plan = check::plan(after, state.doing(), it.xml.memory);
        self.run(name, None, Call::Restore(it.snapshot, plan, state.doing()));
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
            .filter(|it| intent.identity.as_ref() == Some(&it.backup.identity))
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
        if others.into_iter().any(|it| it.name == *name) {
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
            client: Arc::clone(&self.client),
            clock: Arc::clone(&self.clock),
            by: self.clock.deadline(self.config.operation_timeout),
        };
        let operation = name.to_owned();
        self.jobs.start(name.to_owned(), making, async move {
            let Err(failure) = caller.make(call).await else {
                return Outcome::Done;
            };
            tracing::warn!(operation, error = %failure.error, "libvirt call failed");
            if failure.error.is_open() {
                Outcome::Open
            } else {
                Outcome::Failed(failure.fault)
            }
        });
    }
}

/// Why a call failed, and what a caller may see of it.
struct Failure {
    error: RpcError,
    fault: Fault,
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let fault = error::fault(&error);
        Self { error, fault }
    }
}

impl Caller {
    async fn make(&self, call: Call) -> Result<(), Failure> {
        let client = &self.client;
        match call {
            Call::Create(domain, xml) => Ok(client.create(&domain, &xml, self.by).await?),
            Call::Redefine(domain, xml, is_current) => {
                Ok(client.redefine(&domain, &xml, is_current, self.by).await?)
            }
            Call::Delete(snapshot) => Ok(client.delete(&snapshot, self.by).await?),
            Call::Restore(to, plan, before) => self.put_back(&to, plan, before).await,
        }
    }

    /// Puts the VM back, and switches it off if it is to be off.
    async fn put_back(&self, to: &Snapshot, plan: Plan, before: Doing) -> Result<(), Failure> {
        if let Err(error) = self.client.revert(to, plan.revert, self.by).await {
            let mut failure = Failure::from(error);
            if failure.error.code().is_some() && before != Doing::Off && self.is_off(to).await {
                failure.fault = Fault::new(
                    FaultKind::BackendFailed,
                    "the restore failed half-way, and the VM is off",
                );
            }
            return Err(failure);
        }
        if !plan.then_off {
            return Ok(());
        }
        self.client
            .destroy(&to.domain, self.by)
            .await
            .map_err(|error| {
                let fault = Fault::new(
                    FaultKind::BackendFailed,
                    "the VM was restored, but is left paused instead of off",
                );
                Failure { error, fault }
            })
    }

    /// Whether the VM is known to be off now.
    async fn is_off(&self, snapshot: &Snapshot) -> bool {
        let by = self.clock.deadline(LOOK_TIMEOUT);
        let state = self.client.state(&snapshot.domain, by).await;
        state.is_ok_and(|it| it.doing() == Doing::Off)
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
