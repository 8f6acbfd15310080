//! Reads VMs and their snapshots: the part that reads and changes have in common.

use std::sync::Arc;

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::config::Config;
use crate::adapters::libvirt::inspector::Inspector;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::long_calls::LongCalls;
use crate::adapters::libvirt::map;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::Snapshot;
use crate::adapters::libvirt::native::error_code;
use crate::adapters::libvirt::recover::VmEvidence;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::adapters::vm_list_cache::VmListCache;
use crate::adapters::vm_list_cache::VmListEntry;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::Clock;
use crate::runtime::Tasks;

/// One libvirtd, and the calls that this process has made to it.
#[derive(Debug)]
pub(super) struct VmReader {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) client: Arc<Client>,
    pub(super) calls: LongCalls,
    vm_list: VmListCache<ListedDomain>,
}

/// A VM of the list of all, under the id that callers know.
#[derive(Debug)]
struct ListedDomain {
    id: VmId,
    domain: Domain,
}

impl VmListEntry for ListedDomain {
    fn id(&self) -> &VmId {
        &self.id
    }
}

impl VmReader {
    /// Connects when first used, from within a runtime.
    pub(super) fn new(config: Config, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            client: Arc::new(Client::new(&config, &clock, &tasks)),
            config,
            clock,
            calls: LongCalls::new(tasks),
            vm_list: VmListCache::default(),
        }
    }

    /// One page of the VMs, by their names. libvirtd lists all at once, without states; the states are asked for those of the page.
    pub(super) async fn list_vms(
        &self,
        range: &VmRange,
        by: Deadline,
    ) -> Result<VmPage, AdapterError> {
        let all = self
            .vm_list
            .entries(self.clock.instant(), || self.read_vm_list(by))
            .await?;
        let mut vms = Vec::new();
        for listed in range.rest_of(&all, VmListEntry::id) {
            if vms.len() == range.needed() {
                break;
            }
            vms.extend(self.describe_listed(listed, by).await?);
        }
        Ok(range.page_of(vms))
    }

    async fn read_vm_list(&self, by: Deadline) -> Result<Vec<ListedDomain>, AdapterError> {
        let domains = self.client.domains(by).await?;
        let listed = domains.into_iter().filter_map(|domain| {
            // What cannot be the id of a VM here cannot be reached through the gateway.
            let id = VmId::new(&domain.name).ok()?;
            Some(ListedDomain { id, domain })
        });
        Ok(listed.collect())
    }

    /// `None` for a VM that was removed since the list was read.
    async fn describe_listed(
        &self,
        listed: &ListedDomain,
        by: Deadline,
    ) -> Result<Option<Vm>, RpcError> {
        let run_state = match self.client.state(&listed.domain, by).await {
            Ok(state) => state.run_state(),
            Err(error) if error.code() == Some(error_code::NO_DOMAIN) => return Ok(None),
            // libvirt refuses to report the state of this one; that it exists is known.
            Err(RpcError::Native { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(Vm {
            id: listed.id.clone(),
            name: listed.domain.name.clone(),
            description: None,
            run_state,
        }))
    }

    /// The VM of this name, or else of this UUID.
    pub(super) async fn domain(&self, vm: &VmId, by: Deadline) -> Result<Domain, AdapterError> {
        let found = match self.client.by_name(vm.as_str(), by).await {
            Err(error) if error.code() == Some(error_code::NO_DOMAIN) => {
                match map::uuid(vm.as_str()) {
                    Some(uuid) => self.client.by_uuid(uuid, by).await,
                    None => Err(error),
                }
            }
            other => other,
        };
        Ok(found?)
    }

    /// The names of snapshots that are being made: by us or, as far as that can be seen, by another client.
    pub(super) async fn unfinished(
        &self,
        domain: &Domain,
        by: Deadline,
    ) -> Result<Vec<String>, RpcError> {
        let mut names: Vec<_> = self
            .calls
            .snapshots_in_progress(domain.uuid)
            .into_iter()
            .collect();
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
    pub(super) fn inspector(&self) -> Inspector {
        Inspector {
            client: Arc::clone(&self.client),
            clock: Arc::clone(&self.clock),
            looks_at_disks: self.config.inspect_disks && self.config.uri.starts_with("qemu"),
        }
    }

    /// Whether a job of libvirt's occupies the VM, or a snapshot is being made or restored.
    pub(super) async fn is_busy(&self, domain: &Domain, by: Deadline) -> Result<bool, RpcError> {
        self.inspector().is_busy(domain, by).await
    }

    /// What libvirt keeps of the snapshot, as text and read; `None` when it is gone or makes no sense.
    pub(super) async fn snapshot_xml(
        &self,
        snapshot: &Snapshot,
        by: Deadline,
    ) -> Result<Option<(String, SnapshotXml)>, RpcError> {
        let text = match self.client.snapshot_xml(snapshot, by).await {
            Ok(text) => text,
            Err(error) if error.code() == Some(error_code::NO_SNAPSHOT) => return Ok(None),
            Err(error) => return Err(error),
        };
        match SnapshotXml::read(&text) {
            Ok(xml) => Ok(Some((text, xml))),
            Err(error) => {
                tracing::warn!(snapshot = snapshot.name, %error, "unreadable snapshot skipped");
                Ok(None)
            }
        }
    }

    /// The snapshot of this name, if it is there and whole.
    pub(super) async fn load(
        &self,
        domain: &Domain,
        id: &BackupId,
        by: Deadline,
    ) -> Result<Option<LoadedSnapshot>, RpcError> {
        let snapshot = match self.client.snapshot(domain, id.as_str(), by).await {
            Ok(snapshot) => snapshot,
            Err(error) if error.code() == Some(error_code::NO_SNAPSHOT) => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.unfinished(domain, by).await?.contains(&snapshot.name) {
            return Ok(None);
        }
        let Some((text, xml)) = self.snapshot_xml(&snapshot, by).await? else {
            return Ok(None);
        };
        Ok(map::backup(domain, &xml).map(|backup| LoadedSnapshot {
            snapshot,
            text,
            xml,
            backup,
        }))
    }

    /// All backups of the VM in order of their ids, from after this id, at most so many.
    pub(super) async fn backups(
        &self,
        domain: &Domain,
        after: Option<&BackupId>,
        limit: usize,
        by: Deadline,
    ) -> Result<Vec<Backup>, RpcError> {
        let mut all = self.client.snapshots(domain, by).await?;
        let unfinished = self.unfinished(domain, by).await?;
        all.retain(|snapshot| !unfinished.contains(&snapshot.name));
        all.retain(|snapshot| after.is_none_or(|after| snapshot.name.as_str() > after.as_str()));
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
    pub(super) async fn observe(
        &self,
        domain: &Domain,
        by: Deadline,
    ) -> Result<VmEvidence, RpcError> {
        Ok(VmEvidence {
            id: domain.id,
            state: self.client.state(domain, by).await?,
            current: self.client.current(domain, by).await?,
            then_off: false,
            is_taken: false,
            disks: None,
        })
    }

    /// Whether a snapshot of this name is listed, whole or not.
    pub(super) async fn is_listed(
        &self,
        domain: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<bool, AdapterError> {
        match self.client.snapshot(domain, name, by).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(error_code::NO_SNAPSHOT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The refusal of a request about a backup that is not there.
pub(super) fn no_such_backup() -> AdapterError {
    AdapterError::refused(
        FaultKind::NoSuchBackup,
        public_text!("The VM has no such backup. List its backups."),
    )
}
