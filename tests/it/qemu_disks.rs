//! The adapter for QEMU when the disks are not what they were: overlays, replaced images, other orders, numbers as names,
//! images that are held, missing, read-only, full or raw.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::annotations::{Annotated, Annotations};
use snapgate::adapters::qemu;
use snapgate::model::*;
use snapgate::runtime::{SystemClock, Tasks};

use crate::conformance::{Bed as _, by, create, key, on, run};
use crate::harness::eventually;
use crate::memory::Memory;
use crate::qemu::{
    Bed, DISKS, annotated, backup, begun, config, found, installed, plain, restore, vm,
};
use crate::skip::skipped;

fn named(folder: &Path) -> qemu::Config {
    qemu::Config {
        disks: vec!["disk0".to_owned(), "disk1".to_owned()],
        ..config(folder)
    }
}

fn with(config: qemu::Config) -> qemu::Qemu {
    qemu::Qemu::new(config, SystemClock::shared(), Tasks::default())
}

/// The refusal of a request that must have no effect.
async fn refusal(adapter: &dyn Adapter, intent: &Intent, number: u64) -> Fault {
    let before = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = adapter.begin(intent, key(number), before.as_ref(), by());
    let error = begun.await.expect_err("it is refused");
    assert_eq!(error.effect, Effect::None, "{number}: {error:?}");
    error.fault
}

async fn read(adapter: &dyn Adapter, id: &str) -> Result<Backup, FaultKind> {
    let backup = BackupId::new(id).unwrap();
    let read = adapter.read(&Target { vm: vm(), backup }, by()).await;
    read.map_err(|error| error.fault.kind)
}

fn delete(of: &Backup) -> Intent {
    on(of, &vm(), Change::Delete)
}

/// All three changes are refused for the same reason, and nothing is changed.
async fn all_refused(adapter: &dyn Adapter, of: &Backup, number: u64, kind: FaultKind, part: &str) {
    let intents = [
        restore(of),
        delete(of),
        create(adapter, &vm(), "refused", number + 2),
    ];
    for (intent, number) in intents.iter().zip(number..) {
        let fault = refusal(adapter, intent, number).await;
        assert_eq!(fault.kind, kind, "{:?}: {fault:?}", intent.verb());
        assert!(fault.text.contains(part), "{:?}: {fault:?}", intent.verb());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_id_is_a_number_of_another_is_refused_running_and_stopped() {
    if !installed() {
        return;
    }
    let mut bed = Bed::new();
    let adapter = plain(bed.folder.path());
    for (content, tag) in [(1, "2"), (2, "noon")] {
        bed.write(content);
        for disk in DISKS {
            bed.img(&["snapshot", "-c", tag], disk);
        }
    }
    bed.write(3);
    let two = read(&adapter, "2").await.unwrap();
    for (intent, number) in [(restore(&two), 1), (delete(&two), 2)] {
        let fault = refusal(&adapter, &intent, number).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "{fault:?}");
        assert!(fault.text.contains("noon"), "names the other: {fault:?}");
        assert!(fault.text.contains("first"), "says what to do: {fault:?}");
    }
    assert_eq!(bed.content(), 3, "nothing restored");
    let noon = read(&adapter, "noon").await.unwrap();
    assert_eq!(run(&adapter, &delete(&noon), 3).await, Ok(()), "the remedy");
    assert_eq!(run(&adapter, &restore(&two), 4).await, Ok(()), "restored");
    assert_eq!(bed.content(), 1, "the one that was meant");

    // A tag that is on one disk twice is not restored, and a delete leaves none.
    for (running, number) in [(false, 10), (true, 20)] {
        for disk in [DISKS[0], DISKS[0], DISKS[1]] {
            bed.img(&["snapshot", "-c", "twice"], disk);
        }
        if running {
            bed.start();
        }
        let twice = read(&adapter, "twice").await.unwrap();
        let fault = refusal(&adapter, &restore(&twice), number).await;
        assert_eq!(fault.kind, FaultKind::NotReady, "{running}: {fault:?}");
        let deleted = run(&adapter, &delete(&twice), number + 1).await;
        assert_eq!(deleted, Ok(()), "{running}: deleted");
        let gone = read(&adapter, "twice").await;
        assert_eq!(gone, Err(FaultKind::NoSuchBackup), "{running}: gone");
    }
    for tag in ["3", "later"] {
        bed.ask(
            "human-monitor-command",
            json!({"command-line": format!("savevm {tag}")}),
        );
    }
    let three = read(&adapter, "3").await.unwrap();
    for (intent, number) in [(restore(&three), 5), (delete(&three), 6)] {
        let fault = refusal(&adapter, &intent, number).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "running: {fault:?}");
        assert!(fault.text.contains("later"), "running: {fault:?}");
    }
    assert_eq!(bed.status(), "running", "left alone");
    bed.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_whose_image_is_below_an_overlay_is_left_alone() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let adapter = plain(bed.folder.path());
    bed.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    bed.write(2);
    let base = bed.image(DISKS[1]);
    for backing in [DISKS[1], base.to_str().unwrap()] {
        bed.img(
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing],
            "over.qcow2",
        );
        all_refused(&adapter, &taken, 10, FaultKind::Conflict, "over.qcow2").await;
        assert_eq!(bed.content(), 2, "the base is as it was");
        std::fs::remove_file(bed.image("over.qcow2")).unwrap();
    }
    assert_eq!(
        run(&adapter, &restore(&taken), 20).await,
        Ok(()),
        "restored"
    );
    assert_eq!(bed.content(), 1, "once the overlay is gone");

    // A linked clone: the overlay is the VM's image, and its backing file is only read.
    let base = bed.image("base.qcow2");
    std::fs::rename(bed.image(DISKS[1]), &base).unwrap();
    for clone in [DISKS[1], "other-clone.qcow2"] {
        bed.img(
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                "base.qcow2",
            ],
            clone,
        );
    }
    let cloned = backup(&adapter, "cloned", 50).await;
    bed.write(3);
    assert_eq!(run(&adapter, &restore(&cloned), 51).await, Ok(()), "clone");
    assert_eq!(bed.content(), 1, "what the clone read of its backing file");
    assert_eq!(run(&adapter, &delete(&cloned), 52).await, Ok(()), "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_writes_to_an_overlay_is_left_alone_while_it_runs_and_after() {
    if !installed() {
        return;
    }
    let mut bed = Bed::started();
    let adapter = with(named(bed.folder.path()));
    let taken = backup(&adapter, "taken", 1).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let over = elsewhere.path().join("over.qcow2");
    bed.ask(
        "blockdev-snapshot-sync",
        json!({"node-name": "disk0", "snapshot-file": over, "snapshot-node-name": "over", "format": "qcow2"}),
    );
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "disk0").await;
    assert_eq!(bed.status(), "running", "and never left in restore-vm");
    let shown = adapter.vm(&vm(), by()).await.unwrap();
    assert_eq!(shown.run_state, Some(RunState::Started), "shown");
    let every = plain(bed.folder.path());
    // Without named disks the overlay itself would be backed up, which the configuration does not know.
    drop(adapter);
    eventually("the monitor is let go of", || {
        let stream = std::os::unix::net::UnixStream::connect(bed.image("web01.qmp")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_millis(200)))
            .unwrap();
        let mut first = [0];
        std::io::Read::read(&mut &stream, &mut first).is_ok_and(|bytes| bytes == 1)
    });
    let intent = create(&every, &vm(), "over", 20);
    let fault = refusal(&every, &intent, 20).await;
    assert_eq!(fault.kind, FaultKind::Conflict, "every disk: {fault:?}");
    bed.stop();
    // Stopped, the overlay lies in another folder: the gateway that saw the VM run remembers.
    all_refused(&every, &taken, 30, FaultKind::Conflict, "last ran").await;
    std::fs::remove_file(&over).unwrap();
    assert_eq!(
        run(&every, &restore(&taken), 40).await,
        Ok(()),
        "once it is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_symbolic_links_are_no_obstacle_and_a_replaced_image_is() {
    if !installed() {
        return;
    }
    let mut bed = Bed::new();
    bed.start_with(
        &[
            "-object",
            "throttle-group,id=group",
            "-blockdev",
            "driver=throttle,node-name=slow,file=disk1,throttle-group=group",
        ],
        "slow",
    );
    let folder = bed.folder.path().to_owned();
    let links: Vec<String> = DISKS
        .iter()
        .map(|disk| {
            let link = folder.join(format!("link-{disk}"));
            symlink(folder.join(disk), &link).unwrap();
            link.to_str().unwrap().to_owned()
        })
        .collect();
    let adapter = with(qemu::Config {
        images: links,
        ..config(&folder)
    });
    let taken = backup(&adapter, "taken", 1).await;
    assert_eq!(taken.state, BackupState::Available, "on both disks");
    assert_eq!(run(&adapter, &restore(&taken), 2).await, Ok(()), "restored");

    let (image, aside) = (bed.image(DISKS[1]), bed.image("aside"));
    std::fs::rename(&image, &aside).unwrap();
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "missing").await;
    std::fs::copy(&aside, &image).unwrap();
    all_refused(&adapter, &taken, 20, FaultKind::Conflict, "replaced").await;
    assert_eq!(bed.status(), "running", "left alone");
    std::fs::rename(&aside, &image).unwrap();
    assert_eq!(
        run(&adapter, &restore(&taken), 30).await,
        Ok(()),
        "put back"
    );
    bed.stop();
    assert_eq!(run(&adapter, &restore(&taken), 31).await, Ok(()), "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_in_another_order_keep_name_protection_and_memory() {
    if !installed() {
        return;
    }
    let mut bed = Bed::started();
    let folder = bed.folder.path().to_owned();
    let memory = Arc::<Memory>::default();
    let first = annotated(named(&folder), &memory);
    let first = first.as_ref();
    let minted = backup(first, "minted", 1).await;
    bed.ask(
        "human-monitor-command",
        json!({"command-line": "savevm daily"}),
    );
    let foreign = read(first, "daily").await.unwrap();
    for (of, number) in [(&minted, 2), (&foreign, 3)] {
        let patch = BackupPatch {
            protected: Patch::Set(true),
            tags: Patch::Set(vec![Tag::new("kept").unwrap()]),
            ..BackupPatch::default()
        };
        let update = on(of, &vm(), Change::Update(patch));
        assert_eq!(run(first, &update, number).await, Ok(()), "protected");
    }
    // The identity of earlier versions: the snapshot on the first disk.
    let backend = BackendName::new("qemu").unwrap();
    let part = foreign
        .identity
        .as_str()
        .split('+')
        .next()
        .unwrap()
        .to_owned();
    for id in ["daily", minted.id.as_str()] {
        let backup = BackupId::new(id).unwrap();
        let target = Target { vm: vm(), backup };
        let kept = memory.get(&backend, &target).await.unwrap().unwrap();
        let older = Annotated {
            identity: Some(Identity::new(part.clone())),
            ..kept
        };
        memory.put(&backend, &older).await.unwrap();
    }
    let mut turned = named(&folder);
    turned.disks.reverse();
    turned.images.reverse();
    bed.stop();
    for running in [false, true] {
        if running {
            bed.start();
        }
        let adapter = annotated(turned.clone(), &memory);
        let adapter = adapter.as_ref();
        for id in ["daily", minted.id.as_str()] {
            let shown = read(adapter, id).await.unwrap();
            assert!(shown.protected, "{id}, {running}: protected: {shown:?}");
            assert_eq!(shown.tags.len(), 1, "{id}, {running}: tags");
            let refused = run(adapter, &delete(&shown), 10).await;
            assert_eq!(refused, Err(FaultKind::Protected), "{id}, {running}");
            assert_eq!(
                run(adapter, &restore(&shown), if running { 21 } else { 20 }).await,
                Ok(()),
                "{id}, {running}"
            );
        }
    }
    bed.stop();
    // Deleted on one disk by other means, it keeps its name and protection, and a delete finishes the rest.
    bed.img(&["snapshot", "-d", minted.id.as_str()], DISKS[0]);
    let adapter = annotated(named(&folder), &memory);
    let adapter = adapter.as_ref();
    let half = read(adapter, minted.id.as_str()).await.unwrap();
    assert_eq!(half.name.as_str(), "minted", "its name");
    assert_eq!(
        (half.state, half.protected),
        (BackupState::Error, true),
        "half gone"
    );
    let patch = BackupPatch {
        protected: Patch::Set(false),
        ..BackupPatch::default()
    };
    let update = on(&half, &vm(), Change::Update(patch));
    assert_eq!(run(adapter, &update, 30).await, Ok(()), "released");
    assert_eq!(run(adapter, &delete(&half), 31).await, Ok(()), "finished");
    assert_eq!(
        read(adapter, minted.id.as_str()).await,
        Err(FaultKind::NoSuchBackup),
        "gone"
    );
}

/// Another program that has an image open, until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(bed: &Bed, disk: &str) -> Self {
        let mut holder = Command::new("qemu-io");
        holder.args(["-r", "-f", "qcow2"]).arg(bed.image(disk));
        let mut child = holder
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It answers once it has the image open.
        let commands = child.stdin.as_mut().unwrap();
        commands.write_all(b"length\n").unwrap();
        commands.flush().unwrap();
        let mut answer = String::new();
        let answers = child.stdout.as_mut().unwrap();
        BufReader::new(answers).read_line(&mut answer).unwrap();
        assert!(answer.contains("MiB"), "the image is held: {answer}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_over_an_image_that_is_held_changes_nothing_on_any_disk() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let adapter = plain(bed.folder.path());
    bed.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    bed.write(2);
    for (disk, number) in DISKS.iter().zip([10, 20]) {
        let holder = Holder::of(&bed, disk);
        all_refused(&adapter, &taken, number, FaultKind::Busy, "in use").await;
        drop(holder);
        assert_eq!(bed.content(), 2, "{disk}: nothing restored");
        let shown = read(&adapter, taken.id.as_str()).await.unwrap();
        assert_eq!(
            shown.state,
            BackupState::Available,
            "{disk}: nothing deleted"
        );
        for disk in DISKS {
            let listed = Command::new("qemu-img")
                .args(["snapshot", "-l"])
                .arg(bed.image(disk))
                .output();
            let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
            assert_eq!(
                listed.matches("snapgate-").count(),
                1,
                "{disk}: nothing made: {listed}"
            );
        }
    }
    assert_eq!(
        run(&adapter, &restore(&taken), 30).await,
        Ok(()),
        "restored"
    );
    assert_eq!(bed.content(), 1, "once they are free");
}

/// Fails once at what it is armed for.
const FAILS: &str = r#"#!/bin/sh
if [ -e "$0.armed" ] && echo "$*" | grep -q "snapshot -q $(cat "$0.armed").*-b.qcow2"; then
  rm "$0.armed"
  echo "qemu-img: No space left on device" >&2
  exit 1
fi
exec qemu-img "$@"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_on_the_second_disk_says_what_each_disk_holds() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let script = bed.image("fails");
    std::fs::write(&script, FAILS).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let adapter = with(qemu::Config {
        qemu_img: script,
        ..config(bed.folder.path())
    });
    let failed = async |intent: &Intent, number: u64, act: &str| {
        let (before, task) = begun(&adapter, intent, number).await;
        loop {
            match adapter.poll(&task, by()).await.unwrap() {
                TaskState::Running(_) => adapter.changed(&task).await,
                TaskState::Failed(fault) => {
                    assert_eq!(fault.kind, FaultKind::StorageFull, "{act}: {fault:?}");
                    let found = adapter
                        .find(intent, key(number), before.as_ref(), by())
                        .await;
                    assert!(
                        matches!(found.unwrap(), FindOutcome::Failed(_)),
                        "{act}: found"
                    );
                    return fault.text;
                }
                other @ (TaskState::Done | TaskState::Cancelled | TaskState::Gone) => {
                    panic!("{act}: {other:?}")
                }
            }
        }
    };
    let arm = |act: &str| std::fs::write(bed.image("fails.armed"), act).unwrap();
    bed.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    bed.write(2);
    arm(r"\-a");
    let text = failed(&restore(&taken), 2, "restore").await;
    assert!(text.contains("what it held before"), "restore: {text}");
    assert_eq!(bed.content(), 2, "the first disk was put back");
    arm(r"\-c");
    let intent = create(&adapter, &vm(), "half", 3);
    let text = failed(&intent, 3, "create").await;
    assert!(text.contains("There is no backup"), "create: {text}");
    assert_eq!(
        read(&adapter, intent.target.backup.as_str()).await,
        Err(FaultKind::NoSuchBackup),
        "none"
    );
    arm(r"\-d");
    let text = failed(&delete(&taken), 4, "delete").await;
    for part in [
        "deleted on disk web01.qcow2",
        "still exists on disk web01-b.qcow2",
    ] {
        assert!(text.contains(part), "delete: {text}");
    }
    let half = read(&adapter, taken.id.as_str()).await.unwrap();
    assert_eq!(half.state, BackupState::Error, "half gone");
    assert_eq!(
        run(&adapter, &delete(&half), 5).await,
        Ok(()),
        "deleted again"
    );
    assert_eq!(
        read(&adapter, taken.id.as_str()).await,
        Err(FaultKind::NoSuchBackup),
        "gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn images_on_storage_that_is_not_mounted_are_unavailable_and_not_absent() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let folder = bed.folder.path();
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
        let shown = adapter.vm(&vm(), by()).await;
        assert_eq!(
            shown.err().map(|error| error.fault.kind),
            expected,
            "{name}"
        );
        let listed = adapter.list(&vm(), &page, by()).await;
        assert_eq!(
            listed.err().map(|error| error.fault.kind),
            expected,
            "{name}: list"
        );
    }
    // What was seen before does not cease to exist with its only image.
    let adapter = at(&["{vm}.qcow2"]);
    assert!(adapter.vm(&vm(), by()).await.is_ok(), "seen");
    std::fs::rename(bed.image(DISKS[0]), bed.image("aside")).unwrap();
    let gone = adapter.vm(&vm(), by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::Unavailable, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_disk_is_shown_and_refused_and_images_that_cannot_be_written_say_why() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let adapter = plain(bed.folder.path());
    bed.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    bed.write(2);
    let (image, aside) = (bed.image(DISKS[1]), bed.image("aside"));
    std::fs::rename(&image, &aside).unwrap();
    drop(std::fs::File::create(&image).unwrap());
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert!(adapter.vm(&vm(), by()).await.is_ok(), "raw: shown");
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
        assert_eq!(bed.content(), 2, "immutable: nothing was changed");
    } else {
        skipped("the right to make files immutable");
    }
    // A file system without room.
    let mount = bed.image("full");
    std::fs::create_dir(&mount).unwrap();
    let options = ["-t", "tmpfs", "-o", "size=2M", "none"];
    let mounted = Command::new("mount").args(options).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        skipped("the right to mount a file system");
        return;
    }
    for disk in DISKS {
        std::fs::copy(bed.image(disk), mount.join(disk)).unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_migrated_away_is_refused_for_that_reason_and_a_load_that_did_nothing_lets_it_run()
 {
    if !installed() {
        return;
    }
    let mut bed = Bed::started();
    let adapter = plain(bed.folder.path());
    let taken = backup(&adapter, "taken", 1).await;
    let intent = restore(&taken);
    let before = adapter.baseline(&intent, key(2), by()).await.unwrap();
    let load = json!({"job-id": "snapgate-2", "tag": "none", "vmstate": "disk0", "devices": ["disk0", "disk1"]});
    bed.ask("snapshot-load", load);
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
    assert_eq!(bed.status(), "running", "it runs on");

    let mirror = json!({"job-id": "move", "device": "disk1", "sync": "full", "format": "qcow2",
        "target": bed.image("moved.qcow2")});
    bed.ask("drive-mirror", mirror);
    for intent in [create(&adapter, &vm(), "moving", 3), restore(&taken)] {
        let fault = refusal(&adapter, &intent, 3).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "mirror: {fault:?}");
        assert!(fault.text.contains("block job"), "mirror: {fault:?}");
    }
    bed.ask("block-job-cancel", json!({"device": "move", "force": true}));
    eventually("cancelled", || {
        bed.ask("query-block-jobs", json!({})) == json!([])
    });

    bed.ask("migrate", json!({"uri": "exec:cat >/dev/null"}));
    eventually("migrated", || bed.status() == "postmigrate");
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "migrated").await;
    bed.ask("cont", json!({}));
    assert_eq!(run(&adapter, &intent, 20).await, Ok(()), "resumed here");
    bed.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_begun_is_not_begun_over_disks_that_changed() {
    if !installed() {
        return;
    }
    let bed = Bed::new();
    let folder = bed.folder.path();
    let adapter = plain(folder);
    bed.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    bed.write(2);
    let find = async |intent: &Intent, number: u64, before: &Option<Evidence>| {
        let adapter = plain(folder);
        let found = adapter.find(intent, key(number), before.as_ref(), by());
        found.await.unwrap()
    };

    let intent = create(&adapter, &vm(), "late", 10);
    let before = adapter.baseline(&intent, key(10), by()).await.unwrap();
    let untouched = find(&intent, 10, &before).await;
    assert!(
        matches!(untouched, FindOutcome::NotBegun),
        "create: {untouched:?}"
    );
    bed.fill(1, 3);
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
    bed.img(&["snapshot", "-c", intent.target.backup.as_str()], DISKS[0]);
    let half = find(&intent, 11, &before).await;
    assert!(
        matches!(half, FindOutcome::HalfDone(_)),
        "half made: {half:?}"
    );
    bed.fill(1, 4);
    let used = find(&intent, 11, &before).await;
    let FindOutcome::Failed(fault) = used else {
        panic!("half made and used: {used:?}");
    };
    assert!(fault.text.contains("disk web01.qcow2 only"), "{fault:?}");

    // A copy of the image, down to the marks, is not the disk that was left.
    let intent = restore(&taken);
    let before = adapter.baseline(&intent, key(12), by()).await.unwrap();
    let (image, copy) = (bed.image(DISKS[0]), bed.image("copy"));
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
    assert_eq!((bed.filled(0), bed.filled(1)), (2, 4), "left alone");
    // Half restored, then an image replaced: nothing is finished, and the disks are named.
    let before = adapter.baseline(&intent, key(13), by()).await.unwrap();
    bed.img(&["snapshot", "-a", taken.id.as_str()], DISKS[0]);
    std::fs::copy(&image, &copy).unwrap();
    std::fs::rename(&copy, &image).unwrap();
    let replaced = find(&intent, 13, &before).await;
    let FindOutcome::Failed(fault) = replaced else {
        panic!("half restored and replaced: {replaced:?}");
    };
    for part in ["disk web01.qcow2", "not restored: disk web01-b.qcow2"] {
        assert!(fault.text.contains(part), "{fault:?}");
    }
    assert_eq!(bed.filled(1), 4, "left alone");

    let intent = delete(&taken);
    let before = adapter.baseline(&intent, key(14), by()).await.unwrap();
    bed.fill(0, 5);
    let used = find(&intent, 14, &before).await;
    assert!(
        matches!(used, FindOutcome::NotBegun),
        "a delete throws nothing away: {used:?}"
    );
}
