//! Whether a VM can be restored: everything that is known to make libvirt fail half-way is looked for first.

use std::path::Path;

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::libvirt::backing_files;
use crate::adapters::libvirt::block_nodes;
use crate::adapters::libvirt::config::ManagedSave;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::definition_checks::refuse;
use crate::adapters::libvirt::definition_xml::StartNeeds;
use crate::adapters::libvirt::definition_xml::path_of;
use crate::adapters::libvirt::disk_checks;
use crate::adapters::libvirt::disk_checks::DiskView;
use crate::adapters::libvirt::image_users;
use crate::adapters::libvirt::images;
use crate::adapters::libvirt::images::ImageInspection;
use crate::adapters::libvirt::inspector::CurrentVm;
use crate::adapters::libvirt::inspector::Inspector;
use crate::adapters::libvirt::inspector::RestorableVm;
use crate::adapters::libvirt::inspector::RestoreSettings;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::error_code;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::public_text;

impl Inspector {
    /// Whether the VM can be restored from the snapshot, and how. `None`: not, and the checks have why.
    pub(crate) async fn check_restore(
        &self,
        from: &LoadedSnapshot,
        settings: RestoreSettings,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<Option<RestorableVm>, AdapterError> {
        let saved = &from.xml;
        checks.record(definition_checks::check_snapshot(saved))?;
        let now = checks.record(self.read_vm(&from.snapshot.domain, by).await)?;
        let Some(now) = now else { return Ok(None) };
        self.check_undisturbed(&now, checks, by).await?;
        let plan = definition_checks::plan_revert(settings.after, now.activity, saved.memory);
        self.check_same_definition(saved, &now, checks, by).await?;
        if plan.starts(saved.memory)
            && let Some(then) = &saved.definition
        {
            checks.record(self.check_startable(&then.needs, &now, by).await)?;
        }
        self.check_disks(saved, &now, checks, by).await?;
        checks.record(self.check_backing_chains(saved, &now, by).await)?;
        let kept = self.check_managed_save(&now.domain, settings, by).await;
        let kept = checks.record(kept)?;
        Ok(kept.map(|has_managed_save| RestorableVm {
            plan,
            domain: now.domain,
            has_managed_save,
        }))
    }

    /// Whether nothing else is being done to the VM, and it would survive a restore that fails.
    async fn check_undisturbed(
        &self,
        now: &CurrentVm,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(self.check_no_job(&now.domain, by).await)?;
        checks.record(self.check_no_checkpoints(&now.domain, by).await)?;
        checks.record(check_not_saving(now))?;
        checks.record(self.check_persistent(&now.domain, by).await)?;
        Ok(())
    }

    /// Whether every disk can be restored, and holds the snapshot.
    async fn check_disks(
        &self,
        saved: &SnapshotXml,
        now: &CurrentVm,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let disks = self.view_saved_disks(saved, &now.live, by).await?;
        let nodes = checks.record(self.block_nodes(now, by).await)?.flatten();
        if nodes.is_some() {
            let jobs = block_nodes::check_no_block_job(&self.client, &now.domain, by).await;
            checks.record(jobs)?;
        }
        checks.record(self.check_unshared(now, &disks, by).await)?;
        let is_on = now.activity != VmActivity::Off;
        checks.record(disk_checks::check_reachable(&disks, is_on))?;
        if !is_on {
            checks.record(self.check_openable(now, by).await)?;
        }
        if let Some(nodes) = &nodes {
            checks.record(disk_checks::check_in_use(&disks, nodes))?;
            checks.record(disk_checks::check_no_bitmaps(nodes))?;
        }
        let held = disk_checks::check_snapshot_held(saved, &disks, nodes.as_deref());
        checks.record(held)?;
        Ok(())
    }

    async fn check_no_job(&self, domain: &Domain, by: Deadline) -> Result<(), AdapterError> {
        let busy = self.is_busy(domain, by).await;
        if busy? {
            return Err(refuse(
                FaultKind::Busy,
                public_text!(
                    "Another job is running on the VM; nothing was changed. Try again when it has ended."
                ),
            ));
        }
        Ok(())
    }

    async fn check_no_checkpoints(
        &self,
        domain: &Domain,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let checkpoints = self.client.checkpoints(domain, by).await;
        if let Some(one) = checkpoints?.first() {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "The VM has checkpoints, such as {one}, with which a restore would fail and stop it; nothing was changed. Delete the checkpoints first, while the VM runs."
                ),
            ));
        }
        Ok(())
    }

    async fn check_managed_save(
        &self,
        domain: &Domain,
        settings: RestoreSettings,
        by: Deadline,
    ) -> Result<bool, AdapterError> {
        let kept = self.client.has_managed_save(domain, by).await;
        let is_kept = kept?;
        if is_kept && settings.managed_save == ManagedSave::Refuse {
            return Err(refuse(
                FaultKind::Conflict,
                public_text!(
                    "A saved memory state of the VM exists for its next start, which would destroy restored disks; nothing was changed. Discard that state, or request the restore with managed_save = discard."
                ),
            )
            .because("virsh managedsave-remove discards the managed save"));
        }
        Ok(is_kept)
    }

    /// Whether the definitions are those of the backup, as far as disks and firmware go.
    async fn check_same_definition(
        &self,
        saved: &SnapshotXml,
        now: &CurrentVm,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let version = self.client.libvirt_version(by).await?;
        let then = saved.definition.as_ref();
        let flash = then.map(|then| then.flash.as_ref());
        let firmware = definition_checks::check_firmware(flash, now.live.flash.as_ref(), version);
        checks.record(firmware)?;
        let Some(then) = then else {
            return Ok(());
        };
        checks.record(definition_checks::check_same_disks(then, &now.live, ""))?;
        // A restore replaces the persistent definition, too.
        let persistent = saved.persistent.as_ref().unwrap_or(then);
        let when = " (after its next start)";
        checks.record(definition_checks::check_same_disks(
            persistent,
            &now.persistent,
            when,
        ))?;
        Ok(())
    }

    /// Whether everything but the disks is there that the VM of the backup needs in order to start.
    async fn check_startable(
        &self,
        needs: &StartNeeds,
        now: &CurrentVm,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let missing = |text| refuse(FaultKind::Unavailable, text);
        for network in &needs.networks {
            let active = self.client.is_network_active(network, by).await;
            if active? == Some(false) {
                return Err(missing(public_text!(
                    "The network {network} is not active, without which the restored VM would not start; nothing was changed. Start the network first."
                )));
            }
        }
        let has = &now.live.needs.devices;
        if now.activity != VmActivity::Off
            && needs.devices.iter().any(|device| !has.contains(device))
        {
            return Err(missing(public_text!(
                "The backup needs a host device that the VM does not have now, without which the restored VM would not start; nothing was changed. Attach the device first."
            )));
        }
        if !self.is_local(by).await? {
            return Ok(());
        }
        for (name, path) in &needs.files {
            if matches!(images::inspect_image(path).await, ImageInspection::Missing) {
                return Err(missing(public_text!(
                    "The medium or file of {name} is missing, without which the restored VM would not start; nothing was changed. Put it back, or mount its storage."
                )));
            }
        }
        for link in &needs.links {
            let known = Path::new("/sys/class/net").join(link);
            if known.parent().is_some_and(Path::exists) && !known.exists() {
                return Err(missing(public_text!(
                    "The host has no network device {link}, without which the restored VM would not start; nothing was changed. Create the device first."
                )));
            }
        }
        Ok(())
    }

    /// Whether libvirt itself can open every image of a VM that is off.
    async fn check_openable(&self, now: &CurrentVm, by: Deadline) -> Result<(), AdapterError> {
        for disk in &now.live.disks {
            match self.client.open_disk(&now.domain, &disk.target, by).await {
                Ok(()) => {}
                // The driver does not know such a call.
                Err(failure) if failure.code() == Some(error_code::NO_SUPPORT) => {}
                Err(failure) if failure.code().is_some() => {
                    return Err(refuse(
                        FaultKind::Unavailable,
                        public_text!(
                            "The VM manager cannot open the image of disk {}; nothing was changed. Mount its storage, or put the image back in its place.",
                            disk.target
                        ),
                    )
                    .because(failure));
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(())
    }

    /// Whether the images below each disk are still those of the backup, where the definition does not say.
    async fn check_backing_chains(
        &self,
        saved: &SnapshotXml,
        now: &CurrentVm,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let Some(then) = saved.definition.as_ref() else {
            return Ok(());
        };
        if !self.is_local(by).await? {
            return Ok(());
        }
        for disk in &then.disks {
            let (Some(backing), Some(path)) = (&disk.backing, disk.path()) else {
                continue;
            };
            let is_known = now
                .live
                .disks
                .iter()
                .any(|other| other.target == disk.target && other.backing.is_some());
            let expected: Option<Vec<&Path>> = backing.iter().map(path_of).collect();
            let readable = matches!(images::inspect_image(path).await, ImageInspection::Read(_));
            if let (false, true, Some(expected)) = (is_known, readable, expected)
                && backing_files::chain(path)
                    .await
                    .map_or(true, |found| found != expected)
            {
                return Err(refuse(
                    FaultKind::Conflict,
                    public_text!(
                        "The VM's disk {} has other backing images than when the backup was made, which may hold its data; nothing was changed. Restore the former backing chain first.",
                        disk.target
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn check_unshared(
        &self,
        now: &CurrentVm,
        disks: &[DiskView],
        by: Deadline,
    ) -> Result<(), AdapterError> {
        if !self.looks_at_disks {
            return Ok(());
        }
        let is_local = self.is_local(by).await?;
        let mut targets = Vec::new();
        for disk in disks {
            if let Some(path) = &disk.path {
                targets.push(image_users::RestoredImage::new(&disk.target, path, is_local).await);
            }
        }
        image_users::check_unshared(&self.client, &now.domain, &targets, is_local, by).await
    }
}

fn check_not_saving(now: &CurrentVm) -> Result<(), AdapterError> {
    if !now.is_saving {
        return Ok(());
    }
    // It may have ended since: a restore would then leave a VM paused that ran before.
    Err(refuse(
        FaultKind::Busy,
        public_text!(
            "The VM is paused while a snapshot of it or its memory is being saved; nothing was changed. Try again later, or resume the VM if nothing is in progress."
        ),
    ))
}
