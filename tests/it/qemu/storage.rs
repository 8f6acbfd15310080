//! Storage under VMs of QEMU: file systems that are not mounted, raw disks, read-only images, migrated VMs.

use std::io::Write;
use std::process::Command;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::qemu;
use snapgate::model::*;

use crate::conformance::{AdapterFixture as _, by, create, key, run};
use crate::harness::eventually;
use crate::qemu::disks::all_refused;
use crate::qemu::disks::delete;
use crate::qemu::disks::read;
use crate::qemu::disks::refusal;
use crate::qemu::disks::with;
use crate::qemu::private_qemu::{DISKS, PrivateQemu, backup, config, found, plain, restore, vm};
use crate::runner::{skip, skip_part};

#[apply(test)]
async fn images_on_storage_that_is_not_mounted_are_unavailable_and_not_absent() {
    let qemu = PrivateQemu::new();
    let folder = qemu.folder.path();
    let at = |images: &[&str]| {
        let path = |image: &&str| folder.join(image).to_str().unwrap().to_owned();
        with(qemu::Config {
            images: images.iter().map(path).collect(),
            ..config(folder)
        })
    };
    let page = Page {
        after: None,
        limit: 10,
    };
    for made in ["empty", "own/web01", "other"] {
        std::fs::create_dir_all(folder.join(made)).unwrap();
    }
    std::fs::write(folder.join("other/x"), "").unwrap();
    let rows: [(&str, &[&str], Option<FaultKind>); 7] = [
        ("there", &["{vm}.qcow2", "{vm}-b.qcow2"], None),
        (
            "one of two",
            &["{vm}.qcow2", "{vm}-c.qcow2"],
            Some(FaultKind::Unavailable),
        ),
        (
            "an empty mount point",
            &["empty/{vm}.qcow2"],
            Some(FaultKind::Unavailable),
        ),
        (
            "no mount point",
            &["none/{vm}.qcow2"],
            Some(FaultKind::Unavailable),
        ),
        (
            "the VM's own folder is empty",
            &["own/{vm}/a.qcow2"],
            Some(FaultKind::Unavailable),
        ),
        (
            "a fixed path",
            &["other/web01.qcow2"],
            Some(FaultKind::Unavailable),
        ),
        (
            "a folder with images of others",
            &["other/{vm}.qcow2"],
            Some(FaultKind::NoSuchVm),
        ),
    ];
    for (name, images, expected) in rows {
        let adapter = at(images);
        let shown = adapter.read_vm(&vm(), by()).await;
        assert_eq!(
            shown.err().map(|error| error.fault.kind),
            expected,
            "{name}"
        );
        let listed = adapter.list_backups(&vm(), &page, by()).await;
        assert_eq!(
            listed.err().map(|error| error.fault.kind),
            expected,
            "{name}: list"
        );
    }
    // What was seen before does not cease to exist with its only image.
    let adapter = at(&["{vm}.qcow2"]);
    assert!(adapter.read_vm(&vm(), by()).await.is_ok(), "seen");
    std::fs::rename(qemu.image(DISKS[0]), qemu.image("aside")).unwrap();
    let gone = adapter.read_vm(&vm(), by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::Unavailable, "{gone:?}");
}

#[apply(test)]
async fn a_raw_disk_is_shown_and_refused_and_images_that_cannot_be_written_say_why() {
    let qemu = PrivateQemu::new();
    let adapter = plain(qemu.folder.path());
    qemu.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    qemu.write(2);
    let (image, aside) = (qemu.image(DISKS[1]), qemu.image("aside"));
    std::fs::rename(&image, &aside).unwrap();
    drop(std::fs::File::create(&image).unwrap());
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert!(adapter.read_vm(&vm(), by()).await.is_ok(), "raw: shown");
    let shown = read(&adapter, taken.id.as_str()).await.unwrap();
    assert_eq!(shown.state, BackupState::Error, "raw: not on that disk");
    for intent in [create(&adapter, &vm(), "raw", 2), restore(&taken)] {
        let fault = refusal(&adapter, &intent, 2).await;
        assert_eq!(fault.kind, FaultKind::Unsupported, "raw: {fault:?}");
        assert!(
            fault.text.contains("web01-b.qcow2"),
            "raw: named: {fault:?}"
        );
    }
    std::fs::rename(&aside, &image).unwrap();

    let immutable = |flag: &str| {
        let done = Command::new("chattr").arg(flag).arg(&image).status();
        done.is_ok_and(|status| status.success())
    };
    if immutable("+i") {
        all_refused(
            &adapter,
            &taken,
            10,
            FaultKind::BackendDenied,
            "not writable",
        )
        .await;
        assert!(immutable("-i"), "mutable again");
        assert_eq!(qemu.content(), 2, "immutable: nothing was changed");
    } else {
        skip_part("no right to make files immutable");
    }
    // A file system without room.
    let mount = qemu.image("full");
    std::fs::create_dir(&mount).unwrap();
    let options = ["-t", "tmpfs", "-o", "size=2M", "none"];
    let mounted = Command::new("mount").args(options).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        skip("no right to mount a file system");
    }
    for disk in DISKS {
        std::fs::copy(qemu.image(disk), mount.join(disk)).unwrap();
    }
    let full = plain(&mount);
    let mut filler = std::fs::File::create(mount.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    let fault = refusal(&full, &restore(&taken), 20).await;
    let unmounted = Command::new("umount")
        .arg("-l")
        .arg(&mount)
        .status()
        .unwrap();
    assert!(unmounted.success(), "unmounted");
    assert_eq!(fault.kind, FaultKind::StorageFull, "full: {fault:?}");
}

#[apply(test)]
async fn a_vm_that_was_migrated_away_is_refused_for_that_reason_and_a_load_that_did_nothing_lets_it_run()
 {
    let mut qemu = PrivateQemu::started();
    let adapter = plain(qemu.folder.path());
    let taken = backup(&adapter, "taken", 1).await;
    let intent = restore(&taken);
    let before = adapter.baseline(&intent, key(2), by()).await.unwrap();
    let load = json!({"job-id": "snapgate-2", "tag": "none", "vmstate": "disk0", "devices": ["disk0", "disk1"]});
    qemu.ask("snapshot-load", load);
    let lost = found(&adapter, &intent, 2, before.as_ref()).await;
    let FindOutcome::Failed(fault) = lost else {
        panic!("failed: {lost:?}");
    };
    assert!(
        fault
            .text
            .contains("No disk was changed, and the VM is running"),
        "{fault:?}"
    );
    assert_eq!(qemu.status(), "running", "it runs on");

    let mirror = json!({"job-id": "move", "device": "disk1", "sync": "full", "format": "qcow2",
        "target": qemu.image("moved.qcow2")});
    qemu.ask("drive-mirror", mirror);
    for intent in [create(&adapter, &vm(), "moving", 3), restore(&taken)] {
        let fault = refusal(&adapter, &intent, 3).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "mirror: {fault:?}");
        assert!(fault.text.contains("block job"), "mirror: {fault:?}");
    }
    qemu.ask("block-job-cancel", json!({"device": "move", "force": true}));
    eventually("cancelled", || {
        qemu.ask("query-block-jobs", json!({})) == json!([])
    });

    qemu.ask("migrate", json!({"uri": "exec:cat >/dev/null"}));
    eventually("migrated", || qemu.status() == "postmigrate");
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "migrated").await;
    qemu.ask("cont", json!({}));
    assert_eq!(run(&adapter, &intent, 20).await, Ok(()), "resumed here");
    qemu.stop();
}

#[apply(test)]
async fn what_was_not_begun_is_not_begun_over_disks_that_changed() {
    let qemu = PrivateQemu::new();
    let folder = qemu.folder.path();
    let adapter = plain(folder);
    qemu.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    qemu.write(2);
    let find = async |intent: &Intent, number: u64, before: &Option<Evidence>| {
        let adapter = plain(folder);
        let found = adapter.find_outcome(intent, key(number), before.as_ref(), by());
        found.await.unwrap()
    };

    let intent = create(&adapter, &vm(), "late", 10);
    let before = adapter.baseline(&intent, key(10), by()).await.unwrap();
    let untouched = find(&intent, 10, &before).await;
    assert!(
        matches!(untouched, FindOutcome::NotBegun),
        "create: {untouched:?}"
    );
    qemu.fill(1, 3);
    let used = find(&intent, 10, &before).await;
    assert!(matches!(used, FindOutcome::VmChanged), "create: {used:?}");
    let refused = adapter.begin(&intent, key(10), before.as_ref(), by()).await;
    let error = refused.expect_err("create is refused");
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::Conflict, Effect::None),
        "{error:?}"
    );

    let intent = create(&adapter, &vm(), "half", 11);
    let before = adapter.baseline(&intent, key(11), by()).await.unwrap();
    qemu.img(&["snapshot", "-c", intent.target.backup.as_str()], DISKS[0]);
    let half = find(&intent, 11, &before).await;
    assert!(
        matches!(half, FindOutcome::HalfDone(_)),
        "half made: {half:?}"
    );
    qemu.fill(1, 4);
    let used = find(&intent, 11, &before).await;
    let FindOutcome::Failed(fault) = used else {
        panic!("half made and used: {used:?}");
    };
    assert!(fault.text.contains("disk web01.qcow2 only"), "{fault:?}");

    // A copy of the image, down to the marks, is not the disk that was left.
    let intent = restore(&taken);
    let before = adapter.baseline(&intent, key(12), by()).await.unwrap();
    let (image, copy) = (qemu.image(DISKS[0]), qemu.image("copy"));
    std::fs::copy(&image, &copy).unwrap();
    std::fs::rename(&copy, &image).unwrap();
    let replaced = find(&intent, 12, &before).await;
    assert!(
        matches!(replaced, FindOutcome::VmChanged),
        "restore: {replaced:?}"
    );
    let refused = adapter.begin(&intent, key(12), before.as_ref(), by()).await;
    assert!(
        refused.is_err_and(|error| error.effect == Effect::None),
        "restore"
    );
    assert_eq!((qemu.filled(0), qemu.filled(1)), (2, 4), "left alone");
    // Half restored, then an image replaced: nothing is finished, and the disks are named.
    let before = adapter.baseline(&intent, key(13), by()).await.unwrap();
    qemu.img(&["snapshot", "-a", taken.id.as_str()], DISKS[0]);
    std::fs::copy(&image, &copy).unwrap();
    std::fs::rename(&copy, &image).unwrap();
    let replaced = find(&intent, 13, &before).await;
    let FindOutcome::Failed(fault) = replaced else {
        panic!("half restored and replaced: {replaced:?}");
    };
    for part in ["disk web01.qcow2", "not restored: disk web01-b.qcow2"] {
        assert!(fault.text.contains(part), "{fault:?}");
    }
    assert_eq!(qemu.filled(1), 4, "left alone");

    let intent = delete(&taken);
    let before = adapter.baseline(&intent, key(14), by()).await.unwrap();
    qemu.fill(0, 5);
    let used = find(&intent, 14, &before).await;
    assert!(
        matches!(used, FindOutcome::NotBegun),
        "a delete throws nothing away: {used:?}"
    );
}
