//! VMs of a libvirtd, through its unix socket: backups are internal snapshots.
//!
//! Lossy: sizes are not known; a snapshot's own name never changes, a new name lives in its description. What a
//! backup maps to, what is refused and which versions were tested: docs/adapters/libvirt.md.

mod begin;
mod check;
mod client;
mod config;
mod disks;
mod error;
mod images;
mod inspect;
mod jobs;
mod keys;
mod link;
mod map;
mod nodes;
mod recover;
mod rpc;
#[cfg(test)]
mod tests;
mod users;
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
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use client::Client;
use client::Domain;
use client::Snapshot;
use client::code;
use inspect::Inspector;
use jobs::Jobs;
use jobs::Outcome;
use recover::Seen;
use rpc::RpcError;
use xml::DomainXml;
use xml::SnapshotXml;

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
            check::AFTER_RESTORE,
            "what the VM does afterwards: as-before, running, paused or as-saved",
        ),
        (
            check::MANAGED_SAVE,
            "what becomes of memory that libvirt keeps for the VM's next start: refuse or discard",
        ),
    ],
    online: true,
    memory: true,
    consistent: true,
};

/// The VMs of one libvirtd.
#[derive(Debug)]
pub struct Libvirt {
    config: Config,
    clock: Arc<dyn Clock>,
    client: Arc<Client>,
    jobs: Jobs,
}

/// A snapshot with all that was read of it.
#[derive(Debug)]
struct Loaded {
    snapshot: Snapshot,
    text: String,
    xml: SnapshotXml,
    backup: Backup,
}

impl Libvirt {
    /// The VMs of that libvirtd. Connects when first used, from within a runtime.
    #[must_use]
    pub fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            client: Arc::new(Client::new(&config, &clock, &tasks)),
            config,
            clock,
            jobs: Jobs::new(tasks),
        }
    }

    /// The VM of this name, or else of this UUID.
    async fn domain(&self, vm: &VmId, by: Deadline) -> Result<Domain, AdapterError> {
        let found = match self.client.by_name(vm.as_str(), by).await {
            Err(error) if error.code() == Some(code::NO_DOMAIN) => match map::uuid(vm.as_str()) {
                Some(uuid) => self.client.by_uuid(uuid, by).await,
                None => Err(error),
            },
            other => other,
        };
        found.map_err(|it| error::from_read(&it))
    }

    /// The names of snapshots that are being made: by us, or, as far as it can be seen, by somebody else.
    async fn unfinished(&self, domain: &Domain, by: Deadline) -> Result<Vec<String>, RpcError> {
        let mut names: Vec<_> = self.jobs.making(domain.uuid).into_iter().collect();
        // A VM stays in this state when libvirtd ended in the middle; then nothing is being made.
        if !self.client.state(domain, by).await?.is_saving() || !self.is_busy(domain, by).await? {
            return Ok(names);
        }
        // The one being made is the newest that is not the current one. Rare, so all may be read.
        let current = self.client.current(domain, by).await?;
        let mut newest: Vec<(u64, String)> = Vec::new();
        for snapshot in self.client.snapshots(domain, by).await? {
            if current.as_deref() != Some(&snapshot.name)
                && let Some((_, xml)) = self.snapshot_xml(&snapshot, by).await?
            {
                newest.push((xml.created, snapshot.name));
            }
        }
        let latest = newest.iter().map(|(created, _)| *created).max();
        newest.retain(|(created, _)| Some(*created) == latest);
        names.extend(newest.into_iter().map(|(_, name)| name));
        Ok(names)
    }

    /// What looks at VMs before and after changes.
    fn inspector(&self) -> Inspector {
        Inspector {
            client: Arc::clone(&self.client),
            clock: Arc::clone(&self.clock),
            looks_at_disks: self.config.inspect_disks && self.config.uri.starts_with("qemu"),
        }
    }

    /// Whether a job of libvirt's occupies the VM, or a snapshot is being made or restored.
    async fn is_busy(&self, domain: &Domain, by: Deadline) -> Result<bool, RpcError> {
        self.inspector().is_busy(domain, by).await
    }

    /// What libvirt keeps of the snapshot, as text and read; `None` when it is gone or makes no sense.
    async fn snapshot_xml(
        &self,
        snapshot: &Snapshot,
        by: Deadline,
    ) -> Result<Option<(String, SnapshotXml)>, RpcError> {
        let text = match self.client.snapshot_xml(snapshot, by).await {
            Ok(text) => text,
            Err(error) if error.code() == Some(code::NO_SNAPSHOT) => return Ok(None),
            Err(error) => return Err(error),
        };
        match SnapshotXml::read(&text) {
            Ok(xml) => Ok(Some((text, xml))),
            Err(error) => {
                tracing::warn!(snapshot = snapshot.name, %error, "snapshot left out");
                Ok(None)
            }
        }
    }

    /// The snapshot of this name, if it is there and whole.
    async fn load(
        &self,
        domain: &Domain,
        id: &BackupId,
        by: Deadline,
    ) -> Result<Option<Loaded>, RpcError> {
        let snapshot = match self.client.snapshot(domain, id.as_str(), by).await {
            Ok(snapshot) => snapshot,
            Err(error) if error.code() == Some(code::NO_SNAPSHOT) => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.unfinished(domain, by).await?.contains(&snapshot.name) {
            return Ok(None);
        }
        let Some((text, xml)) = self.snapshot_xml(&snapshot, by).await? else {
            return Ok(None);
        };
        Ok(map::backup(domain, &xml).map(|backup| Loaded {
            snapshot,
            text,
            xml,
            backup,
        }))
    }

    /// All backups of the VM in order of their ids, from after this id, at most so many.
    async fn backups(
        &self,
        domain: &Domain,
        after: Option<&BackupId>,
        limit: usize,
        by: Deadline,
    ) -> Result<Vec<Backup>, RpcError> {
        let mut all = self.client.snapshots(domain, by).await?;
        let unfinished = self.unfinished(domain, by).await?;
        all.retain(|it| !unfinished.contains(&it.name));
        all.retain(|it| after.is_none_or(|after| it.name.as_str() > after.as_str()));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let mut backups = Vec::new();
        for snapshot in all {
            if backups.len() == limit {
                break;
            }
            if let Some((_, xml)) = self.snapshot_xml(&snapshot, by).await? {
                backups.extend(map::backup(domain, &xml));
            }
        }
        Ok(backups)
    }

    /// What can be seen of the VM now.
    async fn seen(&self, domain: &Domain, by: Deadline) -> Result<Seen, RpcError> {
        Ok(Seen {
            id: domain.id,
            state: self.client.state(domain, by).await?,
            current: self.client.current(domain, by).await?,
            then_off: false,
            is_taken: false,
            disks: None,
        })
    }
}

fn none_such() -> AdapterError {
    AdapterError::refused(FaultKind::NoSuchBackup, "the VM has no such backup")
}

#[async_trait]
impl Adapter for Libvirt {
    fn capability(&self) -> &Capability {
        &CAPABILITY
    }

    /// Never a number alone: QEMU takes those for ids of its own.
    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        BackupId::new(&key.to_string()).map_err(|error| {
            AdapterError::refused(FaultKind::Invalid, "the name cannot be used").because(error)
        })
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        let product = self.client.product(by).await;
        let product = product.map_err(|it| error::from_read(&it))?;
        Ok(Health { product })
    }

    async fn vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        let domain = self.domain(vm, by).await?;
        let read = |it: &RpcError| error::from_read(it);
        let state = self
            .client
            .state(&domain, by)
            .await
            .map_err(|error| read(&error))?;
        let text = self
            .client
            .domain_xml(&domain, by)
            .await
            .map_err(|error| read(&error))?;
        // A definition we cannot read costs the description alone.
        let description = DomainXml::read(&text).ok().and_then(|it| it.description);
        Ok(Vm {
            id: vm.clone(),
            name: domain.name,
            description,
            run_state: state.run_state(),
        })
    }

    async fn list(&self, vm: &VmId, page: &Page, by: Deadline) -> Result<BackupPage, AdapterError> {
        let domain = self.domain(vm, by).await?;
        let read = self.backups(&domain, page.after.as_ref(), page.needed(), by);
        let backups = read.await.map_err(|it| error::from_read(&it))?;
        Ok(page.of(backups))
    }

    async fn read(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        let domain = self.domain(&target.vm, by).await?;
        let loaded = self.load(&domain, &target.backup, by).await;
        let loaded = loaded.map_err(|it| error::from_read(&it))?;
        loaded.map(|loaded| loaded.backup).ok_or_else(none_such)
    }

    async fn baseline(
        &self,
        intent: &Intent,
        _key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let domain = self.domain(&intent.target.vm, by).await?;
        let seen = self.seen(&domain, by).await;
        let mut seen = seen.map_err(|it| error::from_read(&it))?;
        match &intent.change {
            Change::Create(_) => {
                let name = intent.target.backup.as_str();
                seen.is_taken = self.is_listed(&domain, name, by).await?;
            }
            Change::Restore(options) => {
                let after = check::after(options, self.config.after_restore)?;
                seen.disks = self.inspector().fingerprint(&domain, by).await;
                let loaded = self.load(&domain, &intent.target.backup, by).await;
                let loaded = loaded.map_err(|it| error::from_read(&it))?;
                if let Some(it) = loaded {
                    let plan = check::plan(after, seen.state.doing(), it.xml.memory);
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
        self.begin_now(intent, key, by).await
    }

    async fn poll(&self, task: &TaskRef, _by: Deadline) -> Result<TaskState, AdapterError> {
        Ok(match self.jobs.outcome(task.as_str()) {
            Some(None) => TaskState::Running(None),
            Some(Some(Outcome::Done)) => TaskState::Done,
            Some(Some(Outcome::Failed(fault))) => TaskState::Failed(fault),
            Some(Some(Outcome::Open)) | None => TaskState::Gone,
        })
    }

    async fn changed(&self, task: &TaskRef) {
        match self.jobs.outcome(task.as_str()) {
            Some(None) => self.jobs.ended(task.as_str()).await,
            Some(Some(_)) | None => std::future::pending().await,
        }
    }

    async fn find(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let name = key.to_string();
        match self.jobs.outcome(&name) {
            Some(None) => {
                return Ok(TaskRef::new(name).map_or(FindOutcome::NotYet, FindOutcome::Task));
            }
            Some(Some(Outcome::Done)) => return Ok(FindOutcome::Done),
            Some(Some(Outcome::Failed(fault))) => return Ok(FindOutcome::Failed(fault)),
            Some(Some(Outcome::Open)) | None => {}
        }
        self.look_for(intent, Seen::of(baseline).as_ref(), by).await
    }

    async fn cancel(&self, _task: &TaskRef, _by: Deadline) -> Result<(), AdapterError> {
        Err(AdapterError::refused(
            FaultKind::Unsupported,
            "libvirt cannot stop what it has begun with a snapshot",
        ))
    }
}

impl Libvirt {
    /// Whether a snapshot of this name is listed, whole or not.
    async fn is_listed(
        &self,
        domain: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<bool, AdapterError> {
        match self.client.snapshot(domain, name, by).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(code::NO_SNAPSHOT) => Ok(false),
            Err(error) => Err(error::from_read(&error)),
        }
    }

    /// What became of a call that this process knows nothing of.
    async fn look_for(
        &self,
        intent: &Intent,
        before: Option<&Seen>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let read = |it: RpcError| error::from_read(&it);
        let domain = self.domain(&intent.target.vm, by).await?;
        if self.is_busy(&domain, by).await.map_err(read)? {
            return Ok(FindOutcome::NotYet);
        }
        // Its number may have changed while that waited.
        let domain = self.domain(&intent.target.vm, by).await?;
        let now = self.seen(&domain, by).await.map_err(read)?;
        if self.is_busy(&domain, by).await.map_err(read)? {
            return Ok(FindOutcome::NotYet);
        }
        let name = intent.target.backup.as_str();
        if let Change::Create(_) = &intent.change {
            let is_there = self.is_listed(&domain, name, by).await?;
            let found = recover::create(before, &now, is_there);
            if matches!(found, FindOutcome::NotBegun) && !is_there {
                let left = self.inspector().tagged(&domain, name, by).await?;
                if !left.is_empty() {
                    return Ok(recover::left_over(&left));
                }
            }
            return Ok(found);
        }
        let loaded = self
            .load(&domain, &intent.target.backup, by)
            .await
            .map_err(read)?;
        let ours =
            loaded.filter(|loaded| intent.identity.as_ref() == Some(&loaded.backup.identity));
        Ok(match (&intent.change, ours) {
            (Change::Delete, None) => self.deleted(&domain, name, by).await?,
            (Change::Delete, Some(_)) => FindOutcome::NotBegun,
            (Change::Update(patch), Some(it)) => {
                if patch.applied_to(it.backup.clone()) == it.backup {
                    FindOutcome::Done
                } else {
                    FindOutcome::NotBegun
                }
            }
            (Change::Restore(_), Some(it)) => {
                self.restored(&domain, before, now, &it.xml, by).await
            }
            (Change::Update(_) | Change::Restore(_) | Change::Create(_), None)
            | (Change::Create(_), Some(_)) => FindOutcome::Unknowable,
        })
    }

    /// What became of a delete whose snapshot is not listed any more.
    async fn deleted(
        &self,
        domain: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        // Another snapshot of this name holds a part of its own.
        if self.is_listed(domain, name, by).await? {
            return Ok(FindOutcome::Done);
        }
        let left = self.inspector().tagged(domain, name, by).await?;
        Ok(recover::deleted(&left))
    }

    /// What became of a restore.
    async fn restored(
        &self,
        domain: &Domain,
        before: Option<&Seen>,
        mut now: Seen,
        saved: &SnapshotXml,
        by: Deadline,
    ) -> FindOutcome {
        let inspector = self.inspector();
        now.disks = inspector.fingerprint(domain, by).await;
        let are_as = inspector.are_as(saved, domain, by).await;
        // A restore that works on the disks meanwhile would be seen in its middle.
        if !matches!(inspector.is_busy(domain, by).await, Ok(false)) {
            return FindOutcome::NotYet;
        }
        let found = recover::restore(before, &now, &saved.name, saved.disks.len(), are_as);
        let (FindOutcome::Failed(fault), Some(before)) = (&found, before) else {
            return found;
        };
        let now = inspector.aftermath(saved, domain, before.id, by).await;
        FindOutcome::Failed(Fault::new(fault.kind, format!("{}; {now}", fault.text)))
    }
}
