use super::*;
use crate::adapters::libvirt::definition_xml::DomainXml;
use crate::adapters::libvirt::snapshot_xml::DiskPart;

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
    for (snapshot, expected) in rows {
        assert_eq!(check_snapshot(&snapshot).is_ok(), expected, "{snapshot:?}");
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
        format!("<backingStore type='file'><source file='{path}'/><backingStore/></backingStore>")
    };
    let plain = with("<backingStore/>", "/vm/a");
    let rows = [
        ("the same", with("<backingStore/>", "/vm/a"), None),
        ("not known what is below", with("", "/vm/a"), None),
        ("overlay", with(&over("/vm/a"), "/vm/a.snap"), Some("Merge")),
        (
            "another",
            with("<backingStore/>", "/vm/b"),
            Some("another image"),
        ),
        (
            "base since",
            with(&over("/vm/base"), "/vm/a"),
            Some("backing images"),
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
