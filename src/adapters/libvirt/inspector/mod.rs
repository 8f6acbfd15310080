//! Gathers what a change depends on, and refuses it while nothing was done.
//!
//! Asked when a change begins, and again right before libvirt is called: what was true minutes ago may not be now.

mod preview;
mod restore;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::libvirt::block_nodes;
use crate::adapters::libvirt::block_nodes::BlockNode;
use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::config::AfterRestore;
use crate::adapters::libvirt::config::ManagedSave;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::definition_checks::RevertPlan;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::definition_xml::Definition;
use crate::adapters::libvirt::definition_xml::DomainXml;
use crate::adapters::libvirt::disk_checks;
use crate::adapters::libvirt::disk_checks::DiskView;
use crate::adapters::libvirt::images;
use crate::adapters::libvirt::images::ImageInspection;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::rpc::RpcError;
use crate::adapters::libvirt::snapshot_xml::SnapshotLocation;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;
use crate::runtime::Clock;

/// A VM for which libvirt does not answer about jobs within this time is busy with a snapshot.
const JOB_QUERY_TIMEOUT: Duration = Duration::from_millis(300);

/// What a restore is to do beside restoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestoreSettings {
    /// What the VM does afterwards.
    pub(crate) after: AfterRestore,
    /// What becomes of memory that libvirt keeps for the VM's next start.
    pub(crate) managed_save: ManagedSave,
}

/// A VM that can be restored, as it is right now.
#[derive(Clone, Debug)]
pub(crate) struct RestorableVm {
    /// How.
    pub(crate) plan: RevertPlan,
    /// The VM, with its present number.
    pub(crate) domain: Domain,
    /// Whether libvirt keeps memory of it, which is to be removed first.
    pub(crate) has_managed_save: bool,
}

/// Looks at VMs through libvirt, QEMU and the file system. Changes nothing.
#[derive(Clone, Debug)]
pub(crate) struct Inspector {
    pub(crate) client: Arc<Client>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Whether QEMU and the images are looked at, too.
    pub(crate) looks_at_disks: bool,
}

/// The VM and its definitions now.
struct CurrentVm {
    domain: Domain,
    activity: VmActivity,
    /// libvirt has paused it for a snapshot or a save, so that `activity` says nothing about before and afterwards.
    is_saving: bool,
    /// As it runs, or would run.
    live: Definition,
    /// As it would run after its next start.
    persistent: Definition,
}

impl Inspector {
    /// Whether a job of libvirt's occupies the VM, or a snapshot is being made or restored.
    pub(crate) async fn is_busy(&self, domain: &Domain, by: Deadline) -> Result<bool, RpcError> {
        let soon = self.clock.deadline(JOB_QUERY_TIMEOUT).earlier(by);
        match self.client.has_job(domain, soon).await {
            // libvirt answers this at once unless a job holds the lock of the VM, so that silence is an answer too.
            Err(RpcError::TimedOut | RpcError::NotSent) => Ok(true),
            answer => answer,
        }
    }

    /// Whether the gateway may look at the images itself: they are on this host, and it is wanted.
    async fn is_local(&self, by: Deadline) -> Result<bool, AdapterError> {
        if !self.looks_at_disks {
            return Ok(false);
        }
        Ok(self.client.is_local(by).await?)
    }

    async fn read_vm(&self, of: &Domain, by: Deadline) -> Result<CurrentVm, AdapterError> {
        // Its number may have changed.
        let domain = self.client.by_uuid(of.uuid, by).await?;
        let state = self.client.state(&domain, by).await?;
        definition_checks::check_condition(state.condition(domain.id))?;
        let live = self.client.domain_xml(&domain, by).await;
        let live = definition(&live?)?;
        // Off: there is one definition. Asking twice could give two, if it is changed in between.
        let persistent = if domain.id < 0 {
            live.clone()
        } else {
            let text = self.client.persistent_xml(&domain, by).await;
            definition(&text?)?
        };
        Ok(CurrentVm {
            domain,
            activity: state.activity(),
            is_saving: state.is_saving(),
            live,
            persistent,
        })
    }

    /// Whether a backup of the VM can be made, and would last.
    pub(crate) async fn check_create(&self, of: &Domain, by: Deadline) -> Result<(), AdapterError> {
        let now = self.read_vm(of, by).await?;
        let version = self.client.libvirt_version(by).await?;
        // What libvirt can take a snapshot of depends on its version.
        definition_checks::check_create(&now.live, now.activity, version)?;
        self.check_persistent(&now.domain, by).await?;
        // A snapshot of the disks alone would lack what the saved memory has not written yet.
        let kept = self.client.has_managed_save(&now.domain, by).await;
        if now.activity == VmActivity::Off && kept? {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "A saved memory state of the VM exists for its next start, without which its disks are inconsistent; no backup was made. Start the VM, or discard that state."
                ),
            )
            .because("virsh managedsave-remove discards the managed save"));
        }
        Ok(())
    }

    /// libvirt forgets a VM that it does not keep, and its snapshots with it, as soon as it stops.
    async fn check_persistent(&self, domain: &Domain, by: Deadline) -> Result<(), AdapterError> {
        let is_kept = self.client.is_persistent(domain, by).await;
        if is_kept? {
            return Ok(());
        }
        Err(refuse(
            FaultKind::Conflict,
            public_text!(
                "The VM is transient: it is forgotten together with its backups when it stops, which a failed restore does, too. Nothing was changed. Define the VM persistently first."
            ),
        )
        .because("virsh define makes a VM persistent"))
    }

    /// What can be seen of the disks that the snapshot holds.
    pub(crate) async fn view_saved_disks(
        &self,
        saved: &SnapshotXml,
        definition: &Definition,
        by: Deadline,
    ) -> Result<Vec<DiskView>, AdapterError> {
        let is_local = self.is_local(by).await?;
        let mut all = Vec::new();
        for part in saved
            .disks
            .iter()
            .filter(|part| part.place == SnapshotLocation::Internal)
        {
            let mut disks = definition.disks.iter();
            let disk = disks.find(|disk| disk.target == part.target);
            let path: Option<PathBuf> = disk.and_then(|disk| disk.path()).map(Path::to_owned);
            let look = match &path {
                Some(path) if is_local => Some(images::inspect_image(path).await),
                Some(_) | None => None,
            };
            if let Some(ImageInspection::Unknown(error)) = &look {
                tracing::warn!(disk = part.target, %error, "disk image not inspected");
            }
            all.push(DiskView {
                target: part.target.clone(),
                path,
                look,
            });
        }
        Ok(all)
    }

    async fn block_nodes(
        &self,
        now: &CurrentVm,
        by: Deadline,
    ) -> Result<Option<Vec<BlockNode>>, AdapterError> {
        // Without a process there is no monitor to ask.
        if !self.looks_at_disks || now.activity == VmActivity::Off {
            return Ok(None);
        }
        block_nodes::query_block_nodes(&self.client, &now.domain, by)
            .await
            .map(Some)
    }

    /// Whether the snapshot can be removed from every disk that holds it.
    pub(crate) async fn check_delete(
        &self,
        which: &LoadedSnapshot,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let now = self
            .read_vm_in_any_state(&which.snapshot.domain, by)
            .await?;
        let is_on = now.activity != VmActivity::Off;
        // Of a VM that is off libvirt takes the disks of the snapshot's own definition.
        let then = which.xml.definition.as_ref();
        let used = then.filter(|_| !is_on).unwrap_or(&now.live);
        let disks = self.view_saved_disks(&which.xml, used, by).await?;
        // Of a running VM QEMU deletes the snapshot only from the disks that it has, and reports success.
        if let (true, Some(then)) = (is_on, then) {
            checks.record(self.check_attached(which, then, &now, by).await)?;
        }
        checks.record(disk_checks::check_reachable(&disks, is_on))?;
        let nodes = checks.record(self.block_nodes(&now, by).await)?;
        if let Some(nodes) = nodes.flatten() {
            checks.record(disk_checks::check_in_use(&disks, &nodes))?;
        }
        Ok(())
    }

    /// Whether the running VM has the disks that hold the snapshot, which QEMU would otherwise leave as they are.
    async fn check_attached(
        &self,
        which: &LoadedSnapshot,
        then: &Definition,
        now: &CurrentVm,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let is_local = self.is_local(by).await?;
        let internal = which.xml.disks.iter();
        for part in internal.filter(|part| part.place == SnapshotLocation::Internal) {
            let find = |all: &Definition| {
                let mut disks = all.disks.iter();
                disks.find(|disk| disk.target == part.target).cloned()
            };
            let Some(before) = find(then) else { continue };
            if find(&now.live).is_some_and(|disk| disk.source == before.source) {
                continue;
            }
            if let (true, Some(path)) = (is_local, before.path())
                && matches!(images::inspect_image(path).await, ImageInspection::Missing)
            {
                // What it held is gone with it.
                continue;
            }
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "The VM's disk {} is not the image it was when the backup was made, and that part of the backup would remain; nothing was changed. Merge overlays or attach the image again, or delete the backup while the VM is off.",
                    part.target
                ),
            )
            .because("virsh blockcommit --active --pivot merges an overlay"));
        }
        Ok(())
    }

    /// The VM now, in whatever condition.
    async fn read_vm_in_any_state(
        &self,
        of: &Domain,
        by: Deadline,
    ) -> Result<CurrentVm, AdapterError> {
        let domain = self.client.by_uuid(of.uuid, by).await?;
        let state = self.client.state(&domain, by).await?;
        let live = self.client.domain_xml(&domain, by).await;
        let live = definition(&live?)?;
        Ok(CurrentVm {
            domain,
            activity: state.activity(),
            is_saving: state.is_saving(),
            persistent: live.clone(),
            live,
        })
    }

    /// The disks that hold a snapshot of this name now, as far as that can be seen.
    pub(crate) async fn disks_holding(
        &self,
        which: &LoadedSnapshot,
        by: Deadline,
    ) -> Result<Vec<String>, AdapterError> {
        let now = self
            .read_vm_in_any_state(&which.snapshot.domain, by)
            .await?;
        let then = which.xml.definition.as_ref();
        let then = then.filter(|_| now.activity == VmActivity::Off);
        let disks = self
            .view_saved_disks(&which.xml, then.unwrap_or(&now.live), by)
            .await?;
        let nodes = self.block_nodes(&now, by).await?;
        Ok(disk_checks::disks_holding(
            &which.xml.name,
            &disks,
            nodes.as_deref(),
        ))
    }

    /// The disks of the VM that hold a snapshot of this name, listed by libvirt or not.
    pub(crate) async fn disks_tagged(
        &self,
        domain: &Domain,
        name: &str,
        by: Deadline,
    ) -> Result<Vec<String>, AdapterError> {
        let now = self.read_vm_in_any_state(domain, by).await?;
        let disks = self.view_all_disks(&now.live, by).await?;
        let nodes = self.block_nodes(&now, by).await?;
        Ok(disk_checks::disks_holding(name, &disks, nodes.as_deref()))
    }

    async fn view_all_disks(
        &self,
        definition: &Definition,
        by: Deadline,
    ) -> Result<Vec<DiskView>, AdapterError> {
        let is_local = self.is_local(by).await?;
        let mut all = Vec::new();
        for disk in &definition.disks {
            let path = disk.path().map(Path::to_owned);
            let look = match &path {
                Some(path) if is_local => Some(images::inspect_image(path).await),
                Some(_) | None => None,
            };
            all.push(DiskView {
                target: disk.target.clone(),
                path,
                look,
            });
        }
        Ok(all)
    }

    /// A short text that is another one when the VM has other disks, or, while it is off, when those were written to.
    ///
    /// `None` when the images cannot be seen.
    pub(crate) async fn fingerprint(&self, domain: &Domain, by: Deadline) -> Option<String> {
        let now = self.read_vm_in_any_state(domain, by).await.ok()?;
        if !self.is_local(by).await.ok()? {
            return None;
        }
        let mut marks = Vec::new();
        for disk in &now.live.disks {
            let mark = images::file_mark(disk.path()?).await?;
            let mark = if now.activity == VmActivity::Off {
                mark
            } else {
                mark.without_times()
            };
            marks.push((&disk.target, &disk.source, mark));
        }
        let text = serde_json::to_vec(&marks).ok()?;
        Some(blake3::hash(&text).to_hex().to_string())
    }

    /// Whether all disks of a VM that is off hold the snapshot's data, or none does; `None` where that cannot be seen.
    pub(crate) async fn match_snapshot(
        &self,
        saved: &SnapshotXml,
        domain: &Domain,
        by: Deadline,
    ) -> Option<bool> {
        let now = self.read_vm_in_any_state(domain, by).await.ok()?;
        if now.activity != VmActivity::Off {
            return None;
        }
        let mut disks = self.view_saved_disks(saved, &now.live, by).await.ok()?;
        disk_checks::match_snapshot(&saved.name, &mut disks).await
    }

    /// The VM after a restore of it failed: its state, and what its disks hold.
    ///
    /// `before`: its number before, by which a VM that was not restarted is known.
    pub(crate) async fn describe_after_failure(
        &self,
        saved: &SnapshotXml,
        of: &Domain,
        before: i32,
        by: Deadline,
    ) -> AfterFailure {
        let unknown = |text| AfterFailure {
            is_off: false,
            text,
        };
        let now = match self.read_vm_in_any_state(of, by).await {
            Ok(now) => now,
            Err(failure) if failure.fault.kind == FaultKind::NoSuchVm => {
                return unknown(public_text!(
                    "The VM manager does not know the VM any more. Define it again."
                ));
            }
            Err(_) => {
                return unknown(public_text!(
                    "The state of the VM could not be determined. Check the VM."
                ));
            }
        };
        let state = match now.activity {
            VmActivity::Running => "running",
            VmActivity::Paused => "paused",
            VmActivity::Off => "off",
            VmActivity::Other => "in an unknown state",
        };
        if before >= 0 && now.domain.id == before {
            return unknown(public_text!(
                "Now the VM is {state} and its data was not changed. Remove the cause, and try again."
            ));
        }
        let is_off = now.activity == VmActivity::Off;
        let disks = match self.view_saved_disks(saved, &now.live, by).await {
            Ok(mut disks) if is_off => {
                disk_checks::describe_contents(&saved.name, &mut disks).await
            }
            Ok(_) | Err(_) => disk_checks::MIXED_DATA.to_owned(),
        };
        let remedy = if before >= 0 && is_off {
            "Remove the cause, then start the VM or restore it again."
        } else {
            "Remove the cause, and restore it again before it is started."
        };
        AfterFailure {
            is_off,
            text: public_text!("Now the VM is {state}, and {disks}. {remedy}"),
        }
    }
}

/// The VM after a restore of it failed.
#[derive(Clone, Debug)]
pub(crate) struct AfterFailure {
    /// Whether it is off.
    pub(crate) is_off: bool,
    /// Its state and what to do, for callers.
    pub(crate) text: PublicText,
}

fn definition(text: &str) -> Result<Definition, AdapterError> {
    let read = DomainXml::read(text).map_err(|error| {
        refuse(
            FaultKind::BackendFailed,
            public_text!(
                "The definition of the VM could not be read; nothing was changed. Ask the operator to check the gateway's log."
            ),
        )
        .because(error)
    })?;
    Ok(read.definition)
}
