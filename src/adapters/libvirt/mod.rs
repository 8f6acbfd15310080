//! VMs of a libvirtd, through its unix socket: backups are internal snapshots.
//!
//! Lossy: sizes are not known; a snapshot's own name never changes, a new name lives in its description. What a
//! backup maps to, what is refused and which versions were tested: docs/adapters/libvirt.md.

mod backing_files;
mod block_nodes;
mod change_call;
mod changes;
mod client;
mod config;
mod definition_checks;
mod definition_xml;
mod disk_checks;
mod error;
mod image_users;
mod images;
mod inspector;
mod keys;
mod link;
mod loaded_snapshot;
mod long_calls;
mod map;
mod native;
mod outcome_search;
mod preview;
mod recover;
mod rpc;
mod snapshot_xml;
#[cfg(test)]
mod tests;
mod vm_reader;
mod xdr;
mod xml;

pub use config::AfterRestore;
pub use config::Config;
pub use config::ManagedSave;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::backup_listing::query_by_listing;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
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
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use changes::Changes;
use definition_xml::DomainXml;
use long_calls::CallOutcome;
use native::Domain;
use outcome_search::OutcomeSearch;
use recover::VmEvidence;
use vm_reader::VmReader;
use vm_reader::no_such_backup;

/// A call waits so long for the lock of a VM inside libvirt before it gives up, and a little more.
const SETTLE: Duration = Duration::from_secs(31);

const VERB: VerbCapability = VerbCapability {
    recovery: Recovery::NoTrace,
    settle: SETTLE,
    cancel: false,
    progress: false,
};

static CAPABILITY: Capability = Capability {
    kind: "libvirt",
    create: Some(VERB),
    update: Some(VERB),
    delete: Some(VERB),
    restore: Some(VERB),
    kinds: &[BackupKind::Snapshot],
    restore_options: &[
        (
            definition_checks::AFTER_RESTORE,
            "what the VM does afterwards: as-before, running, paused or as-saved",
        ),
        (
            definition_checks::MANAGED_SAVE,
            "what becomes of memory that libvirt keeps for the VM's next start: refuse or discard",
        ),
    ],
    online: true,
    memory: true,
    consistent: true,
    lists_vms: true,
};

/// The VMs of one libvirtd.
#[derive(Debug)]
pub struct Libvirt {
    reader: VmReader,
}

impl Libvirt {
    /// The VMs of that libvirtd. Connects when first used, from within a runtime.
    #[must_use]
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            reader: VmReader::new(config, clock, tasks),
        }
    }

    async fn describe(&self, vm: &VmId, domain: &Domain, by: Deadline) -> Result<Vm, AdapterError> {
        let state = self.reader.client.state(domain, by).await?;
        let text = self.reader.client.domain_xml(domain, by).await?;
        // A definition we cannot read costs the description alone.
        let description = DomainXml::read(&text).ok().and_then(|xml| xml.description);
        Ok(Vm {
            id: vm.clone(),
            name: domain.name.clone(),
            description,
            run_state: state.run_state(),
        })
    }

    const fn changes(&self) -> Changes<'_> {
        Changes {
            reader: &self.reader,
        }
    }
}

#[async_trait]
impl Adapter for Libvirt {
    fn capability(&self) -> &Capability {
        &CAPABILITY
    }

    /// Never a number alone, which QEMU may read as the id of another snapshot.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            let text = public_text!("No id could be made for the backup; nothing was changed.");
            AdapterError::refused(FaultKind::Invalid, text).because(error)
        })
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let product = self.reader.client.product(by).await?;
        Ok(Health { product })
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let domain = self.reader.domain(vm, by).await?;
        self.describe(vm, &domain, by).await
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.reader.list_vms(range, by).await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        let domain = self.reader.domain(vm, by).await?;
        let read = self
            .reader
            .backups(&domain, page.after.as_ref(), page.needed(), by);
        let backups = read.await?;
        Ok(page.of(backups))
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let domain = self.reader.domain(&target.vm, by).await?;
        let loaded = self.reader.load(&domain, &target.backup, by).await?;
        loaded
            .map(|loaded| loaded.backup)
            .ok_or_else(no_such_backup)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        let domain = self.reader.domain(&intent.target.vm, by).await?;
        let vm = self.describe(&intent.target.vm, &domain, by).await?;
        self.changes().preview(&domain, vm, intent, by).await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let domain = self.reader.domain(&intent.target.vm, by).await?;
        let mut seen = self.reader.observe(&domain, by).await?;
        match &intent.change {
            Change::Create(_) => {
                let name = intent.target.backup.as_str();
                seen.is_taken = self.reader.is_listed(&domain, name, by).await?;
            }
            Change::Restore(options) => {
                let after = definition_checks::read_after_restore(
                    options,
                    self.reader.config.after_restore,
                )?;
                seen.disks = self.reader.inspector().fingerprint(&domain, by).await;
                let loaded = self.reader.load(&domain, &intent.target.backup, by).await?;
                if let Some(loaded) = loaded {
                    let plan = definition_checks::plan_revert(
                        after,
                        seen.state.activity(),
                        loaded.xml.memory,
                    );
                    seen.then_off = plan.then_off;
                }
            }
            Change::Update(_) | Change::Delete => {}
        }
        Ok(seen.evidence())
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        _baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.changes().begin(intent, key, by).await
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        Ok(match self.reader.calls.outcome(task.as_str()) {
            Some(None) => TaskState::Running(None),
            Some(Some(CallOutcome::Done)) => TaskState::Done(None),
            Some(Some(CallOutcome::Failed(fault))) => TaskState::Failed(fault),
            Some(Some(CallOutcome::Unanswered)) | None => TaskState::Gone,
        })
    }

    async fn changed(&self, task: &TaskRef) {
        match self.reader.calls.outcome(task.as_str()) {
            Some(None) => self.reader.calls.ended(task.as_str()).await,
            Some(Some(_)) | None => std::future::pending().await,
        }
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let name = key.to_string();
        match self.reader.calls.outcome(&name) {
            Some(None) => {
                return Ok(TaskRef::new(name).map_or(FindOutcome::NotYet, FindOutcome::Task));
            }
            Some(Some(CallOutcome::Done)) => return Ok(FindOutcome::Done(None)),
            Some(Some(CallOutcome::Failed(fault))) => return Ok(FindOutcome::Failed(fault)),
            Some(Some(CallOutcome::Unanswered)) | None => {}
        }
        OutcomeSearch {
            reader: &self.reader,
        }
        .find_outcome(intent, VmEvidence::parse(baseline).as_ref(), by)
        .await
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(
            FaultKind::Unsupported,
            public_text!("This operation cannot be cancelled and continues. Wait until it ends."),
        ))
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    fn needs_baseline(&self, _intent: &Intent) -> bool {
        true
    }
}
