//! What is so after a change that failed: the VM and the backup are looked at, and the fault says what was found.

use crate::adapters::adapter::AdapterError;
use crate::adapters::incus::Incus;
use crate::adapters::incus::error;
use crate::adapters::incus::missing_error;
use crate::adapters::incus::restore_state::RestoredData;
use crate::adapters::incus::restore_state::describe_failed_restore;
use crate::adapters::incus::restore_state::is_restored;
use crate::adapters::incus::restore_state::run_state;
use crate::adapters::incus::task_record::ChangeKind;
use crate::adapters::incus::task_record::RunningChange;
use crate::adapters::incus::wire;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Target;
use crate::model::VmId;
use crate::public_text;

impl Incus {
    /// The fault of an operation that failed, with what it left.
    pub(super) async fn failure(
        &self,
        doing: Option<&RunningChange>,
        making: Option<&Target>,
        native: &str,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let reason = error::fault_of_text(native);
        if let Some(target) = making {
            return self.describe_failed_create(target, &reason, by).await;
        }
        let Some(doing) = doing else {
            return Ok(reason);
        };
        match &doing.what {
            ChangeKind::Delete { before } => {
                self.describe_failed_delete(doing, before.as_deref(), &reason, by)
                    .await
            }
            ChangeKind::Restore { generation, ran } => {
                let Some(instance) = self.existing_instance(&doing.target.vm, by).await? else {
                    return Ok(missing_error(FaultKind::NoSuchVm).fault);
                };
                let data = if is_restored(&instance, generation.as_deref(), &doing.key) {
                    RestoredData::Restored
                } else if error::is_before_data(native) {
                    RestoredData::Untouched
                } else {
                    RestoredData::Mixed
                };
                let device = error::device(native);
                Ok(describe_failed_restore(
                    data, *ran, &instance, &reason, device,
                ))
            }
        }
    }

    async fn describe_failed_create(
        &self,
        target: &Target,
        reason: &Fault,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let Some(instance) = self.existing_instance(&target.vm, by).await? else {
            return Ok(missing_error(FaultKind::NoSuchVm).fault);
        };
        let snapshot = self.snapshot(target, by).await?;
        let left = match snapshot {
            None => public_text!("No backup was created, and nothing is left of it."),
            Some(_) => {
                public_text!("An incomplete backup is left. It cannot be restored: delete it.")
            }
        };
        let then = match instance.status.as_str() {
            "Frozen" => public_text!("If the VM was not frozen before, thaw it."),
            _ => public_text!("Remove the cause, then create the backup again."),
        };
        let state = run_state(&instance);
        let text = public_text!(
            "{} {left} The data of the VM was not changed. {state} {then}",
            reason.text
        );
        Ok(Fault::new(reason.kind, text))
    }

    async fn describe_failed_delete(
        &self,
        doing: &RunningChange,
        before: Option<&str>,
        reason: &Fault,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let Some(instance) = self.existing_instance(&doing.target.vm, by).await? else {
            return Ok(missing_error(FaultKind::NoSuchVm).fault);
        };
        let state = run_state(&instance);
        let vm = public_text!("The data of the VM was not changed. {state}");
        let Some(labelled) = self.find_snapshot(&doing.target, by).await? else {
            let text = public_text!(
                "The backup does not exist any more, but the VM manager failed while deleting it: part of its data may be left \
                 in the storage. {vm} Ask an operator to check the storage."
            );
            return Ok(Fault::new(FaultKind::BackendFailed, text));
        };
        if !error::is_refusal(reason.kind) {
            let text = public_text!(
                "The deletion failed part-way: the backup can no longer be restored. {vm} Remove the cause, then delete the \
                 backup again."
            );
            return Ok(Fault::new(FaultKind::BackendFailed, text));
        }
        // Refused before anything was removed, so the backup becomes restorable again.
        self.relabel(&labelled, &doing.target, by, |label| {
            let is_ours = label.removing.as_deref() == Some(&doing.key);
            if is_ours {
                label.removing = before.map(str::to_owned);
            }
            is_ours
        })
        .await?;
        let text = public_text!("{} The backup was not deleted. {vm}", reason.text);
        Ok(Fault::new(reason.kind, text))
    }

    /// The instance; `None` when it is gone.
    async fn existing_instance(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<Option<wire::Instance>, AdapterError> {
        match self.api.instance(vm.as_str(), by).await {
            Ok(instance) => Ok(Some(instance)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into_read_error(FaultKind::NoSuchVm)),
        }
    }

    async fn snapshot(
        &self,
        target: &Target,
        by: Deadline,
    ) -> Result<Option<wire::Snapshot>, AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let snapshot = self.api.snapshot(vm, id, by).await;
        snapshot.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))
    }
}
