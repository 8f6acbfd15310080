//! Checks of libvirt's own records before a change: the VM's state, its definition, its snapshots. Pure.
//!
//! libvirt stops a running VM before it restores it, and a failure after that leaves it off; of a VM that is off, some
//! disks may be restored and others not. So whatever would make a restore fail is looked for first.

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::config::AfterRestore;
use crate::adapters::libvirt::config::ManagedSave;
use crate::adapters::libvirt::definition_xml::Definition;
use crate::adapters::libvirt::definition_xml::Disk;
use crate::adapters::libvirt::definition_xml::PflashFirmware;
use crate::adapters::libvirt::definition_xml::SnapshotPolicy;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::map::VmCondition;
use crate::adapters::libvirt::native::RevertTo;
use crate::adapters::libvirt::snapshot_xml::SnapshotLocation;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::RestoreOptions;
use crate::public_text;

/// The option of a restore request that says what the VM does afterwards.
pub(crate) const AFTER_RESTORE: &str = "after_restore";

/// The option of a restore request that says what becomes of memory that libvirt keeps for the VM's next start.
pub(crate) const MANAGED_SAVE: &str = "managed_save";

/// Most bytes of a number that qcow2 may take for the id of a snapshot instead of its name.
const SHORT_NUMBER_BYTES: usize = 9;

/// The first libvirt that makes internal snapshots of VMs with UEFI firmware: 10.10.0.
const PFLASH_SINCE: u64 = 10_010_000;

/// How a restore is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevertPlan {
    /// What libvirt is asked for.
    pub(crate) revert: RevertTo,
    /// Whether the VM is switched off after that: it was off, and the backup holds memory.
    pub(crate) then_off: bool,
}

impl RevertPlan {
    /// Whether libvirt starts the VM for it.
    pub(crate) fn starts(self, memory: SnapshotLocation) -> bool {
        self.revert != RevertTo::AsSaved || memory != SnapshotLocation::NotIncluded
    }
}

/// A refusal, before anything was done.
pub(crate) fn refuse(kind: FaultKind, text: PublicText) -> AdapterError {
    AdapterError::refused(kind, text).of_one_vm()
}

/// Names of disks as part of a sentence: `disk vda`, `disks vda and vdb`.
pub(crate) fn list_disks<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<&str> = names.into_iter().collect();
    match all.split_last() {
        None => "no disk".to_owned(),
        Some((one, [])) => format!("disk {one}"),
        Some((last, others)) => format!("disks {} and {last}", others.join(", ")),
    }
}

/// What the VM is to do after the restore.
///
/// # Errors
/// [`FaultKind::Invalid`] for a word that is none of [`AfterRestore`].
pub(crate) fn read_after_restore(
    options: &RestoreOptions,
    configured: AfterRestore,
) -> Result<AfterRestore, AdapterError> {
    let Some(word) = options.0.get(AFTER_RESTORE) else {
        return Ok(configured);
    };
    AfterRestore::from_word(word).ok_or_else(|| {
        AdapterError::refused(
            FaultKind::Invalid,
            public_text!(
                "Unknown value of after_restore (expected as-before, running, paused or as-saved); nothing was changed."
            ),
        )
    })
}

/// How to restore a VM that does this now from a snapshot with or without memory.
pub(crate) const fn plan_revert(
    after: AfterRestore,
    now: VmActivity,
    memory: SnapshotLocation,
) -> RevertPlan {
    let revert = match (after, now) {
        (AfterRestore::Running, _) | (AfterRestore::AsBefore, VmActivity::Running) => {
            RevertTo::Running
        }
        (AfterRestore::Paused, _) | (AfterRestore::AsBefore, VmActivity::Paused) => {
            RevertTo::Paused
        }
        (AfterRestore::AsBefore, VmActivity::Off) => {
            return match memory {
                // There is no way to put memory back and not start.
                SnapshotLocation::Internal | SnapshotLocation::External => RevertPlan {
                    revert: RevertTo::Paused,
                    then_off: true,
                },
                SnapshotLocation::NotIncluded => RevertPlan {
                    revert: RevertTo::AsSaved,
                    then_off: false,
                },
            };
        }
        (AfterRestore::AsSaved, _) | (AfterRestore::AsBefore, VmActivity::Other) => {
            RevertTo::AsSaved
        }
    };
    RevertPlan {
        revert,
        then_off: false,
    }
}

/// What becomes of memory that libvirt keeps for the VM's next start.
///
/// # Errors
/// [`FaultKind::Invalid`] for a word that is none of [`ManagedSave`].
pub(crate) fn read_managed_save(
    options: &RestoreOptions,
    configured: ManagedSave,
) -> Result<ManagedSave, AdapterError> {
    let Some(word) = options.0.get(MANAGED_SAVE) else {
        return Ok(configured);
    };
    ManagedSave::from_word(word).ok_or_else(|| {
        refuse(
            FaultKind::Invalid,
            public_text!(
                "Unknown value of managed_save (expected refuse or discard); nothing was changed."
            ),
        )
    })
}

/// Whether the VM is in a state in which a backup can be made or restored.
///
/// # Errors
/// The reason why not.
pub(crate) fn check_condition(now: VmCondition) -> Result<(), AdapterError> {
    let (kind, text) = match now {
        VmCondition::Settled => return Ok(()),
        VmCondition::ShuttingDown => (
            FaultKind::Busy,
            public_text!("The VM is shutting down; nothing was changed. Try again when it is off."),
        ),
        VmCondition::Migrating => (
            FaultKind::Busy,
            public_text!(
                "The VM is being migrated; nothing was changed. Try again when the migration has ended."
            ),
        ),
        VmCondition::Crashed => (
            FaultKind::Conflict,
            public_text!("The VM has crashed; nothing was changed. Stop it and try again."),
        ),
        VmCondition::Suspended => (
            FaultKind::Conflict,
            public_text!(
                "The guest of the VM is suspended; nothing was changed. Wake it or stop the VM, and try again."
            ),
        ),
    };
    Err(refuse(kind, text))
}

/// Everything that the snapshot itself says.
///
/// # Errors
/// The reason not to restore.
pub(crate) fn check_snapshot(saved: &SnapshotXml) -> Result<(), AdapterError> {
    let external: Vec<_> = saved
        .disks
        .iter()
        .filter(|part| part.place == SnapshotLocation::External)
        .map(|part| part.target.as_str())
        .collect();
    if saved.memory == SnapshotLocation::External || !external.is_empty() {
        let part = if external.is_empty() {
            "the VM's memory".to_owned()
        } else {
            list_disks(external)
        };
        return Err(refuse(
            FaultKind::Unsupported,
            public_text!(
                "The backup is an external snapshot of {part}, which the gateway does not restore; nothing was changed. Ask the operator to restore it."
            ),
        ));
    }
    let name = &saved.name;
    if name.len() <= SHORT_NUMBER_BYTES && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse_numeric_name(name));
    }
    Ok(())
}

/// The refusal of a snapshot whose name QEMU could read as the id of another one.
pub(crate) fn refuse_numeric_name(name: &str) -> AdapterError {
    refuse(
        FaultKind::Unsupported,
        public_text!(
            "The snapshot's name {name} could be read as the id of another snapshot, which would be restored instead; nothing was changed. Create a new backup of what is needed, and ask the operator to copy out the old data."
        ),
    )
}

/// Whether a backup of the VM can be made at all.
///
/// # Errors
/// The reason why not.
pub(crate) fn check_create(
    now: &Definition,
    activity: VmActivity,
    version: u64,
) -> Result<(), AdapterError> {
    check_firmware(None, now.flash.as_ref(), version)?;
    let unsupported = |text| Err(refuse(FaultKind::Unsupported, text));
    let disks_where = |is_unfit: &dyn Fn(&Disk) -> bool| -> Option<String> {
        // An empty source is a drive without a medium.
        let found = now.disks.iter().filter(|disk| !disk.source.is_empty());
        let mut found = found.filter(|disk| is_unfit(disk)).peekable();
        found.peek()?;
        Some(list_disks(found.map(|disk| disk.target.as_str())))
    };
    if let Some(disks) = disks_where(&|disk| disk.policy == SnapshotPolicy::Excluded) {
        return unsupported(public_text!(
            "All writable disks of a VM are backed up together, but snapshot='no' is set for {disks}; nothing was changed. Remove that setting, or make read-only what is to be left out."
        ));
    }
    if let Some(disks) = disks_where(&|disk| disk.policy == SnapshotPolicy::External) {
        return unsupported(public_text!(
            "The gateway makes no external snapshots, which are set for {disks} of the VM; nothing was changed. Remove that setting."
        ));
    }
    if let Some(disks) = disks_where(&|disk| {
        disk.format
            .as_deref()
            .is_some_and(|format| format != "qcow2")
    }) {
        return unsupported(public_text!(
            "Only disks in qcow2 format can be backed up, which {disks} of the VM is not; nothing was changed. Convert it, or make it read-only."
        ));
    }
    if activity != VmActivity::Off
        && let Some(disks) = disks_where(&|disk| disk.is_transient)
    {
        return unsupported(public_text!(
            "Writes of the running VM to {disks} are discarded when it stops, and a backup with them; nothing was changed. Create the backup while the VM is off."
        ));
    }
    Ok(())
}

/// Whether libvirt handles the firmware of the VM: the flash memory of `now`, and that of the backup.
///
/// A backup from before the VM had such firmware would take it away again, so both must have it or neither.
///
/// # Errors
/// The reason why not.
pub(crate) fn check_firmware(
    then: Option<Option<&PflashFirmware>>,
    now: Option<&PflashFirmware>,
    version: u64,
) -> Result<(), AdapterError> {
    let unsupported = |text| Err(refuse(FaultKind::Unsupported, text));
    if then.is_some_and(|then| then.is_some() != now.is_some()) {
        return unsupported(public_text!(
            "The VM's firmware is of another kind (UEFI or BIOS) than when the backup was made; nothing was changed. Switch the firmware back and try again."
        ));
    }
    for flash in then.flatten().into_iter().chain(now) {
        if version < PFLASH_SINCE {
            return unsupported(public_text!(
                "This version of the VM manager does not support backups of VMs with UEFI firmware; nothing was changed. Ask the operator to upgrade it."
            ));
        }
        if flash.variables_format.as_deref() != Some("qcow2") {
            return unsupported(public_text!(
                "The NVRAM of the VM's UEFI firmware is not in qcow2 format and cannot be backed up; nothing was changed. Convert it to qcow2 and try again."
            ));
        }
    }
    Ok(())
}

/// Whether the disks are where they were, and what lies below each.
///
/// # Errors
/// The reason not to restore, naming the disk.
pub(crate) fn check_same_disks(
    then: &Definition,
    now: &Definition,
    when: &str,
) -> Result<(), AdapterError> {
    let target = |disk: &Disk| disk.target.clone();
    let mut targets: Vec<String> = then.disks.iter().chain(&now.disks).map(target).collect();
    targets.sort();
    targets.dedup();
    for target in targets {
        let find = |all: &Definition| all.disks.iter().find(|disk| disk.target == target).cloned();
        let (why, remedy) = match (find(then), find(now)) {
            (Some(then), Some(now)) if then.source != now.source => {
                let is_backing = now
                    .backing
                    .iter()
                    .flatten()
                    .any(|image| *image == then.source);
                if is_backing {
                    (
                        "is an overlay of the image it had when the backup was made",
                        "Merge the overlay first.",
                    )
                } else {
                    (
                        "is another image than when the backup was made",
                        "Attach the former image again first.",
                    )
                }
            }
            (
                Some(Disk {
                    backing: Some(then),
                    ..
                }),
                Some(Disk {
                    backing: Some(now), ..
                }),
            ) if then != now => (
                "has other backing images than when the backup was made, which may hold its data",
                "Restore the former backing chain first.",
            ),
            (Some(_), Some(_)) => continue,
            (Some(_), None) => (
                "was there when the backup was made and is not now",
                "First attach it again.",
            ),
            (None, _) => ("was not there when the backup was made", "First detach it."),
        };
        return Err(refuse(
            FaultKind::Conflict,
            public_text!("The VM's disk {target}{when} {why}; nothing was changed. {remedy}"),
        )
        .because("virsh blockcommit --active --pivot merges an overlay"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
