//! What can be judged from libvirt's own records before a change: the VM's state, its definition, its snapshots.
//!
//! libvirt stops a running VM before it restores it, and a failure after that leaves it off; of a VM that is off, some
//! disks may be restored and others not. So whatever would make a restore fail is looked for first.

use crate::adapters::adapter::AdapterError;
use crate::adapters::libvirt::config::AfterRestore;
use crate::adapters::libvirt::config::ManagedSave;
use crate::adapters::libvirt::map::VmActivity;
use crate::adapters::libvirt::map::VmCondition;
use crate::adapters::libvirt::native::RevertTo;
use crate::adapters::libvirt::xml::Definition;
use crate::adapters::libvirt::xml::Disk;
use crate::adapters::libvirt::xml::PflashFirmware;
use crate::adapters::libvirt::xml::SnapshotLocation;
use crate::adapters::libvirt::xml::SnapshotPolicy;
use crate::adapters::libvirt::xml::SnapshotXml;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::RestoreOptions;

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
pub(crate) fn refuse(kind: FaultKind, text: impl Into<PublicText>) -> AdapterError {
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
            "after_restore is one of as-before, running, paused and as-saved",
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
            "managed_save is one of refuse and discard",
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
            "the VM is shutting down; nothing was changed, try again when it is off",
        ),
        VmCondition::Migrating => (
            FaultKind::Busy,
            "the VM is being migrated; nothing was changed, try again when the migration has ended",
        ),
        VmCondition::Crashed => (
            FaultKind::Conflict,
            "the VM has crashed and is kept in memory; nothing was changed, switch it off (virsh destroy) first",
        ),
        VmCondition::Suspended => (
            FaultKind::Conflict,
            "the VM's guest is suspended; nothing was changed, wake it (virsh dompmwakeup) or switch it off first",
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
        let what = if external.is_empty() {
            "the VM's memory".to_owned()
        } else {
            list_disks(external)
        };
        return Err(refuse(
            FaultKind::Unsupported,
            format!(
                "the backup is an external snapshot of {what}, which the gateway does not restore; use virsh for it"
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
        format!(
            "QEMU may read the snapshot's name {name} as the id of another snapshot and restore that one; nothing was \
             changed. Keep what is needed with a new backup, and copy the old data out with qemu-img"
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
    let of = |wanted: &dyn Fn(&Disk) -> bool| -> Option<String> {
        // An empty source is a drive without a medium.
        let found = now.disks.iter().filter(|disk| !disk.source.is_empty());
        let mut found = found.filter(|disk| wanted(disk)).peekable();
        found.peek()?;
        Some(list_disks(found.map(|disk| disk.target.as_str())))
    };
    if let Some(disks) = of(&|disk| disk.policy == SnapshotPolicy::Excluded) {
        return unsupported(format!(
            "libvirt makes internal snapshots of all writable disks or of none, and snapshot='no' is set for {disks} of \
             the VM; remove that setting, or make read-only what is to be left out"
        ));
    }
    if let Some(disks) = of(&|disk| disk.policy == SnapshotPolicy::External) {
        return unsupported(format!(
            "external snapshots are set for {disks} of the VM, which the gateway does not make; remove that setting"
        ));
    }
    if let Some(disks) = of(&|disk| {
        disk.format
            .as_deref()
            .is_some_and(|format| format != "qcow2")
    }) {
        return unsupported(format!(
            "internal snapshots need the format qcow2, which is not that of {disks} of the VM; convert it with qemu-img, \
             or make it read-only"
        ));
    }
    if activity != VmActivity::Off
        && let Some(disks) = of(&|disk| disk.is_transient)
    {
        return unsupported(format!(
            "what the running VM writes to {disks} is thrown away when it stops (<transient/>), and a backup with it; \
             make the backup while the VM is off"
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
    let unsupported = |text: &str| Err(refuse(FaultKind::Unsupported, text));
    if then.is_some_and(|then| then.is_some() != now.is_some()) {
        return unsupported(
            "the VM's firmware is of another kind (UEFI or BIOS) than when the backup was made; nothing was changed",
        );
    }
    for flash in then.flatten().into_iter().chain(now) {
        if version < PFLASH_SINCE {
            return unsupported(
                "this libvirt makes and restores no internal snapshots of VMs with UEFI firmware; libvirt 10.10 or \
                 newer does, for VMs whose NVRAM is in the format qcow2",
            );
        }
        if flash.variables_format.as_deref() != Some("qcow2") {
            return unsupported(
                "the NVRAM of the VM's UEFI firmware is not in the format qcow2, without which internal snapshots do \
                 not hold it; convert it with qemu-img, and set format='qcow2' on <nvram>",
            );
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
        let why = match (find(then), find(now)) {
            (Some(then), Some(now)) if then.source != now.source => {
                let is_below = now
                    .backing
                    .iter()
                    .flatten()
                    .any(|image| *image == then.source);
                if is_below {
                    "is an overlay of the image it had when the backup was made (an external snapshot); merge it \
                     first (virsh blockcommit --active --pivot)"
                } else {
                    "is another image than when the backup was made; attach that one again first"
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
            ) if then != now => {
                "has other images below it than when the backup was made; the backup's data may lie in those"
            }
            (Some(_), Some(_)) => continue,
            (Some(_), None) => {
                "was there when the backup was made and is not now; attach it again first"
            }
            (None, _) => "was not there when the backup was made; detach it first",
        };
        return Err(refuse(
            FaultKind::Conflict,
            format!("disk {target} of the VM{when} {why}; nothing was changed"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::libvirt::xml::DiskPart;
    use crate::adapters::libvirt::xml::DomainXml;

    fn of(name: &str, memory: SnapshotLocation, disks: &[SnapshotLocation]) -> SnapshotXml {
        let part = |(target, place): (&&str, &SnapshotLocation)| DiskPart {
            target: (*target).to_owned(),
            place: *place,
        };
        SnapshotXml {
            name: name.to_owned(),
            description: None,
            created: 1,
            memory,
            disks: ["vda", "vdb"].iter().zip(disks).map(part).collect(),
            definition: None,
            persistent: None,
        }
    }

    fn defined(inner: &str) -> Definition {
        DomainXml::read(&format!("<domain>{inner}</domain>"))
            .unwrap()
            .definition
    }

    /// A disk `vda` with these further attributes, format and elements.
    fn disk(attributes: &str, format: &str, more: &str) -> String {
        format!(
            "<disk type='file' {attributes}><driver type='{format}'/><source file='/vm/a'/>\
             <target dev='vda'/>{more}</disk>"
        )
    }

    #[test]
    fn what_the_vm_does_afterwards_is_always_decided() {
        use AfterRestore::{AsBefore, AsSaved, Paused, Running};
        let rows = [
            (
                AsBefore,
                VmActivity::Running,
                SnapshotLocation::Internal,
                RevertTo::Running,
                false,
            ),
            (
                AsBefore,
                VmActivity::Running,
                SnapshotLocation::NotIncluded,
                RevertTo::Running,
                false,
            ),
            (
                AsBefore,
                VmActivity::Paused,
                SnapshotLocation::Internal,
                RevertTo::Paused,
                false,
            ),
            (
                AsBefore,
                VmActivity::Off,
                SnapshotLocation::Internal,
                RevertTo::Paused,
                true,
            ),
            (
                AsBefore,
                VmActivity::Off,
                SnapshotLocation::NotIncluded,
                RevertTo::AsSaved,
                false,
            ),
            (
                Running,
                VmActivity::Off,
                SnapshotLocation::NotIncluded,
                RevertTo::Running,
                false,
            ),
            (
                Paused,
                VmActivity::Running,
                SnapshotLocation::Internal,
                RevertTo::Paused,
                false,
            ),
            (
                AsSaved,
                VmActivity::Running,
                SnapshotLocation::NotIncluded,
                RevertTo::AsSaved,
                false,
            ),
        ];
        for (after, now, memory, revert, then_off) in rows {
            let expected = RevertPlan { revert, then_off };
            assert_eq!(
                plan_revert(after, now, memory),
                expected,
                "{after:?} {now:?} {memory:?}"
            );
        }
    }

    #[test]
    fn snapshots_that_cannot_be_put_back_are_known() {
        let internal = [SnapshotLocation::Internal];
        let rows = [
            (
                of("snapgate-1", SnapshotLocation::Internal, &internal),
                true,
            ),
            (
                of("1795484345", SnapshotLocation::Internal, &internal),
                true,
            ),
            (of("17", SnapshotLocation::Internal, &internal), false),
            (of("a", SnapshotLocation::External, &internal), false),
            (
                of(
                    "a",
                    SnapshotLocation::NotIncluded,
                    &[SnapshotLocation::External],
                ),
                false,
            ),
        ];
        for (it, expected) in rows {
            assert_eq!(check_snapshot(&it).is_ok(), expected, "{it:?}");
        }
    }

    #[test]
    fn a_backup_of_a_vm_that_libvirt_cannot_snapshot_is_refused_naming_the_disk() {
        let rows = [
            ("plain", disk("", "qcow2", ""), true, None),
            (
                "left out",
                disk("snapshot='no'", "qcow2", ""),
                false,
                Some("vda"),
            ),
            (
                "external",
                disk("snapshot='external'", "qcow2", ""),
                false,
                Some("vda"),
            ),
            ("raw", disk("", "raw", ""), false, Some("vda")),
            ("raw, read-only", disk("", "raw", "<readonly/>"), true, None),
            (
                "left out, read-only",
                disk("snapshot='no'", "raw", "<readonly/>"),
                true,
                None,
            ),
            (
                "transient",
                disk("", "qcow2", "<transient/>"),
                true,
                Some("vda"),
            ),
        ];
        for (name, disk, off, named) in rows {
            let now = defined(&format!("<devices>{disk}</devices>"));
            let seen = check_create(&now, VmActivity::Off, 9_000_000);
            assert_eq!(seen.is_ok(), off, "{name}, off: {seen:?}");
            let seen = check_create(&now, VmActivity::Running, 9_000_000).err();
            let text = seen.map(|refused| refused.fault.text).unwrap_or_default();
            assert_eq!(!text.is_empty(), named.is_some(), "{name}, on: {text}");
            assert!(text.contains(named.unwrap_or_default()), "{name}: {text}");
        }
    }

    #[test]
    fn uefi_firmware_is_decided_by_the_version_and_the_format_of_its_variables() {
        let uefi = |format: &str| {
            let os = format!("<os><loader type='pflash'/><nvram format='{format}'>/n</nvram></os>");
            defined(&os).flash
        };
        let (raw, qcow2) = (uefi("raw"), uefi("qcow2"));
        let rows = [
            ("bios", None, None, 9_000_000, true),
            (
                "old libvirt",
                qcow2.as_ref(),
                qcow2.as_ref(),
                9_000_000,
                false,
            ),
            (
                "just before",
                qcow2.as_ref(),
                qcow2.as_ref(),
                10_009_000,
                false,
            ),
            (
                "new libvirt",
                qcow2.as_ref(),
                qcow2.as_ref(),
                10_010_000,
                true,
            ),
            (
                "raw variables",
                raw.as_ref(),
                raw.as_ref(),
                11_003_000,
                false,
            ),
            ("gained since", None, qcow2.as_ref(), 11_003_000, false),
            ("lost since", qcow2.as_ref(), None, 11_003_000, false),
        ];
        for (name, then, now, version, expected) in rows {
            let seen = check_firmware(Some(then), now, version);
            assert_eq!(seen.is_ok(), expected, "{name}: {seen:?}");
        }
    }

    #[test]
    fn other_disks_than_those_of_the_backup_are_named_with_a_remedy() {
        let with = |backing: &str, source: &str| {
            let disk = disk("", "qcow2", backing).replacen("/vm/a", source, 1);
            defined(&format!("<devices>{disk}</devices>"))
        };
        let over = |path: &str| {
            format!(
                "<backingStore type='file'><source file='{path}'/><backingStore/></backingStore>"
            )
        };
        let plain = with("<backingStore/>", "/vm/a");
        let rows = [
            ("the same", with("<backingStore/>", "/vm/a"), None),
            ("not known what is below", with("", "/vm/a"), None),
            (
                "overlay",
                with(&over("/vm/a"), "/vm/a.snap"),
                Some("blockcommit"),
            ),
            (
                "another",
                with("<backingStore/>", "/vm/b"),
                Some("another image"),
            ),
            (
                "base since",
                with(&over("/vm/base"), "/vm/a"),
                Some("below it"),
            ),
            ("gone", defined("<devices/>"), Some("attach it again")),
        ];
        for (name, now, expected) in rows {
            let text = check_same_disks(&plain, &now, "")
                .err()
                .map(|refused| refused.fault.text);
            assert_eq!(text.is_some(), expected.is_some(), "{name}: {text:?}");
            let text = text.unwrap_or_default();
            assert!(
                text.contains(expected.unwrap_or_default()),
                "{name}: {text}"
            );
            assert!(
                expected.is_none() || text.contains("disk vda"),
                "{name}: {text}"
            );
        }
        let more = check_same_disks(&defined("<devices/>"), &plain, "").unwrap_err();
        assert!(more.fault.text.contains("detach"), "{more:?}");
    }

    #[test]
    fn disks_are_named_in_a_sentence() {
        assert_eq!(list_disks(["vda"]), "disk vda", "one");
        assert_eq!(
            list_disks(["vda", "vdb", "vdc"]),
            "disks vda, vdb and vdc",
            "three"
        );
    }
}
