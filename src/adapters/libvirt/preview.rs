//! What a restore or a delete would do, found by the checks of the change itself.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::libvirt::changes::Changes;
use crate::adapters::libvirt::definition_checks;
use crate::adapters::libvirt::definition_checks::RevertPlan;
use crate::adapters::libvirt::inspector::RestoreSettings;
use crate::adapters::libvirt::loaded_snapshot::LoadedSnapshot;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::RevertTo;
use crate::adapters::libvirt::snapshot_xml::SnapshotLocation;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::PreviewPart;
use crate::model::RunState;
use crate::model::Vm;
use crate::public_text;

impl Changes<'_> {
    /// What the change of this VM would do. Changes nothing.
    pub(super) async fn preview(
        &self,
        domain: &Domain,
        vm: Vm,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        let options = match &intent.change {
            Change::Restore(options) => Some(options),
            Change::Delete => None,
            Change::Create(_) | Change::Update(_) => return Err(no_preview()),
        };
        let mut checks = Checks::all();
        let settings = match options {
            Some(options) => Some(self.restore_settings(options, &mut checks)?),
            None => None,
        };
        let loaded = self.load_meant(domain, intent, by).await;
        let loaded = loaded.map_err(|error| checks.end_with(error))?;
        let all = self.reader.backups(domain, None, usize::MAX, by).await?;
        let mut preview = Preview::new(vm, loaded.backup.clone()).with_newer(&all);
        let disks = self
            .reader
            .inspector()
            .list_restored_disks(&loaded, by)
            .await?;
        preview.vm_mark = Some(disks.vm_mark);
        if let Some(settings) = settings {
            preview.overwrites = disks.overwritten;
            preview.leaves = disks.left;
            preview.unknown.push(PreviewPart::Needs);
            self.preview_restore(&loaded, settings, &mut checks, &mut preview, by)
                .await?;
        } else {
            self.check_delete(&loaded, &mut checks, by).await?;
        }
        preview.refused = checks.into_refused();
        Ok(preview)
    }

    async fn preview_restore(
        &self,
        loaded: &LoadedSnapshot,
        settings: RestoreSettings,
        checks: &mut Checks,
        preview: &mut Preview,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let inspector = self.reader.inspector();
        let ready = inspector
            .check_restore(loaded, settings, checks, by)
            .await?;
        let domain = &loaded.snapshot.domain;
        let state = self.reader.client.state(domain, by).await?;
        let memory = loaded.xml.memory;
        let plan = definition_checks::plan_revert(settings.after, state.activity(), memory);
        preview.after = run_state_after(plan, memory);
        if preview.after.is_none() {
            preview.unknown.push(PreviewPart::After);
        }
        if ready.is_some_and(|ready| ready.has_managed_save) {
            preview.warnings.push(public_text!(
                "The saved memory state of the VM for its next start is discarded."
            ));
        }
        if memory == SnapshotLocation::Internal && plan.then_off {
            preview.warnings.push(public_text!(
                "The backup holds the memory of the running VM. The VM is off, so that memory is not used."
            ));
        }
        Ok(())
    }
}

/// What the VM does after the restore; `None` where the backup alone says so.
fn run_state_after(plan: RevertPlan, memory: SnapshotLocation) -> Option<RunState> {
    match plan.revert {
        _ if plan.then_off => Some(RunState::Stopped),
        RevertTo::Running => Some(RunState::Started),
        RevertTo::Paused => Some(RunState::Sleeping),
        // A backup without memory was made while the VM was off.
        RevertTo::AsSaved if memory == SnapshotLocation::NotIncluded => Some(RunState::Stopped),
        RevertTo::AsSaved => None,
    }
}
