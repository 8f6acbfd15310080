//! What the state of a VM says about a restore of it.

use crate::adapters::incus::map;
use crate::adapters::incus::wire;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// The key of an instance's configuration that a restore removes, for versions without a generation.
pub(super) const RESTORE_MARKER: &str = "user.snapgate.restoring";
/// What a restore that failed did to the data of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestoredData {
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
        None => instance
            .config
            .get(RESTORE_MARKER)
            .is_none_or(|marker| marker != key),
    }
}

pub(super) fn is_running(instance: &wire::Instance) -> bool {
    matches!(instance.status.as_str(), "Running" | "Ready")
}

/// A sentence about whether the VM runs.
pub(super) fn run_state(instance: &wire::Instance) -> PublicText {
    match instance.status.as_str() {
        "Running" | "Ready" => public_text!("The VM is running now."),
        "Stopped" => public_text!("The VM is off now."),
        "Frozen" => public_text!("The VM is frozen now."),
        _ => public_text!("The run state of the VM could not be determined."),
    }
}

/// What became of the data, whether the VM runs, and what to do.
pub(super) fn describe_failed_restore(
    data: RestoredData,
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
        RestoredData::Restored if starts => Fault::new(
            FaultKind::BackendFailed,
            public_text!(
                "The data and the configuration of the VM were restored, but the VM could not be started again. {state} \
                 Repair or remove {device}, then start the VM."
            ),
        ),
        RestoredData::Restored => Fault::new(
            FaultKind::BackendFailed,
            public_text!(
                "The data and the configuration of the VM were restored, but the VM manager failed afterwards. {state} \
                 Check {device} before the VM is used."
            ),
        ),
        RestoredData::Untouched => {
            let then = if starts { "Start the VM, and r" } else { "R" };
            Fault::new(
                reason.kind,
                public_text!(
                    "{} The data of the VM was not changed. {state} {then}estore it again once the cause is removed.",
                    reason.text
                ),
            )
        }
        RestoredData::Mixed => Fault::new(
            // Not the kind of a refusal: something was done.
            if reason.kind == FaultKind::StorageFull {
                FaultKind::StorageFull
            } else {
                FaultKind::BackendFailed
            },
            public_text!(
                "The restore failed part-way: the data of the VM may be a mixture of the backup and the previous data. \
                 {state} Keep the VM off, remove the cause, and restore it again."
            ),
        ),
    }
}
