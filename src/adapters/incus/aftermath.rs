//! What is so after a change that failed: the VM and the backup are looked at, and the fault says what was found.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::adapters::incus::Incus;
use crate::adapters::incus::begin::MARKER;
use crate::adapters::incus::error;
use crate::adapters::incus::map;
use crate::adapters::incus::no_such;
use crate::adapters::incus::wire;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Target;
use crate::model::VmId;

/// What an operation does, as far as it matters when it fails.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Doing {
    pub(super) target: Target,
    /// The request.
    pub(super) key: String,
    pub(super) what: What,
}

/// The changes that are tasks, but for making snapshots.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum What {
    /// Removes the snapshot.
    Delete {
        /// The request that had begun to remove it before.
        before: Option<String>,
    },
    /// Restores the VM.
    Restore {
        /// What the generation was before; nothing on versions without it.
        generation: Option<String>,
        /// Whether the VM was running.
        ran: bool,
    },
}

/// What a restore that failed did to the data of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Data and configuration are those of the backup.
    Restored,
    /// The VM manager refused before it touched the data.
    Untouched,
    /// It may be a mixture.
    Mixed,
}

/// Whether the restore reached the point at which the configuration of the VM is replaced, which is after its data.
pub(super) fn is_restored(instance: &wire::Instance, generation: Option<&str>, key: &str) -> bool {
    match generation {
        Some(before) => map::generation(instance).is_some_and(|generation| generation != before),
        None => instance.config.get(MARKER).is_none_or(|it| it != key),
    }
}

pub(super) fn is_running(instance: &wire::Instance) -> bool {
    matches!(instance.status.as_str(), "Running" | "Ready")
}

/// A sentence about whether the VM runs.
pub(super) fn run_state(instance: &wire::Instance) -> &'static str {
    match instance.status.as_str() {
        "Running" | "Ready" => "The VM is running now.",
        "Stopped" => "The VM is off now.",
        "Frozen" => "The VM is frozen now.",
        _ => "Whether the VM runs could not be determined.",
    }
}

/// What became of the data, whether the VM runs, and what to do.
pub(super) fn of_restore(
    data: Data,
    ran: bool,
    instance: &wire::Instance,
    reason: &Fault,
    device: Option<&str>,
) -> Fault {
    let state = run_state(instance);
    let starts = ran && !is_running(instance);
    let device = device.map_or_else(
        || "its devices".to_owned(),
        |name| format!("its device {name:?}"),
    );
    match data {
        Data::Restored if starts => Fault::new(
            FaultKind::BackendFailed,
            format!(
                "The data and the configuration of the VM were restored, but the VM could not be started again. {state} \
                 Repair or remove {device}, then start the VM."
            ),
        ),
        Data::Restored => Fault::new(
            FaultKind::BackendFailed,
            format!(
                "The data and the configuration of the VM were restored, but the VM manager failed afterwards. {state} \
                 Check {device} before the VM is used."
            ),
        ),
        Data::Untouched => {
            let then = if starts { "Start the VM, and r" } else { "R" };
            Fault::new(
                reason.kind,
                format!(
                    "{} The data of the VM was not changed. {state} {then}estore it again when the cause is removed.",
                    reason.text
                ),
            )
        }
        Data::Mixed => Fault::new(
            // Not the kind of a refusal: something was done.
            if reason.kind == FaultKind::StorageFull {
                FaultKind::StorageFull
            } else {
                FaultKind::BackendFailed
            },
            format!(
                "The restore failed part-way: the data of the VM may be a mixture of the backup and what was there before. \
                 {state} Keep the VM off, remove the cause, and restore it again."
            ),
        ),
    }
}

impl Incus {
    /// The fault of an operation that failed, with what it left.
    pub(super) async fn aftermath(
        &self,
        doing: Option<&Doing>,
        making: Option<&Target>,
        native: &str,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let reason = error::of_failure(native);
        if let Some(target) = making {
            return self.after_create(target, &reason, by).await;
        }
        let Some(doing) = doing else {
            return Ok(reason);
        };
        match &doing.what {
            What::Delete { before } => {
                self.after_delete(doing, before.as_deref(), &reason, by)
                    .await
            }
            What::Restore { generation, ran } => {
                let Some(instance) = self.look_at(&doing.target.vm, by).await? else {
                    return Ok(no_such(FaultKind::NoSuchVm).fault);
                };
                let data = if is_restored(&instance, generation.as_deref(), &doing.key) {
                    Data::Restored
                } else if error::is_before_data(native) {
                    Data::Untouched
                } else {
                    Data::Mixed
                };
                let device = error::device(native);
                Ok(of_restore(data, *ran, &instance, &reason, device))
            }
        }
    }

    async fn after_create(
        &self,
        target: &Target,
        reason: &Fault,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let Some(instance) = self.look_at(&target.vm, by).await? else {
            return Ok(no_such(FaultKind::NoSuchVm).fault);
        };
        let snapshot = self.snapshot(target, by).await?;
        let left = match snapshot {
            None => "No backup was made, and nothing is left of it.",
            Some(_) => "An incomplete backup is left, which cannot be restored: delete it.",
        };
        let then = match instance.status.as_str() {
            "Frozen" => "If the VM was not frozen before, thaw it.",
            _ => "Remove the cause, and create the backup again.",
        };
        let state = run_state(&instance);
        let text = format!(
            "{} {left} The data of the VM was not changed. {state} {then}",
            reason.text
        );
        Ok(Fault::new(reason.kind, text))
    }

    async fn after_delete(
        &self,
        doing: &Doing,
        before: Option<&str>,
        reason: &Fault,
        by: Deadline,
    ) -> Result<Fault, AdapterError> {
        let Some(instance) = self.look_at(&doing.target.vm, by).await? else {
            return Ok(no_such(FaultKind::NoSuchVm).fault);
        };
        let state = run_state(&instance);
        let vm = format!("The data of the VM was not changed. {state}");
        let Some(seen) = self.seen(&doing.target, by).await? else {
            let text = format!(
                "The backup is no longer there, but the VM manager failed while removing it: part of its data may be left in \
                 the storage. {vm} Have the storage checked for what is left."
            );
            return Ok(Fault::new(FaultKind::BackendFailed, text));
        };
        if !error::is_refusal(reason.kind) {
            let text = format!(
                "Removing the backup failed part-way: it can no longer be restored. {vm} Remove the cause, and delete the \
                 backup again."
            );
            return Ok(Fault::new(FaultKind::BackendFailed, text));
        }
        // Refused before anything was removed: the backup is as whole as it was.
        self.relabel(&seen, &doing.target, by, |label| {
            let is_ours = label.removing.as_deref() == Some(&doing.key);
            if is_ours {
                label.removing = before.map(str::to_owned);
            }
            is_ours
        })
        .await?;
        let text = format!("{} The backup was not removed. {vm}", reason.text);
        Ok(Fault::new(reason.kind, text))
    }

    /// The instance; `None` when it is gone.
    async fn look_at(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<Option<wire::Instance>, AdapterError> {
        match self.api.instance(vm.as_str(), by).await {
            Ok(instance) => Ok(Some(instance)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.of_read(FaultKind::NoSuchVm)),
        }
    }

    async fn snapshot(
        &self,
        target: &Target,
        by: Deadline,
    ) -> Result<Option<wire::Snapshot>, AdapterError> {
        let (vm, id) = (target.vm.as_str(), target.backup.as_str());
        let snapshot = self.api.snapshot(vm, id, by).await;
        snapshot.map_err(|error| error.of_read(FaultKind::NoSuchVm))
    }
}
