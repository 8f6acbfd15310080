//! The adapter for QEMU when the disks are not what they were: overlays, replaced images, other orders, numbers as names,
//! images that are held, missing, read-only, full or raw.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::annotations::{AnnotationRecord, Annotations};
use snapgate::adapters::qemu;
use snapgate::model::*;
use snapgate::runtime::{SystemClock, Tasks};

use crate::conformance::begin_as_planned;
use crate::conformance::{AdapterFixture as _, by, create, key, on, run};
use crate::harness::eventually;
use crate::memory_annotations::MemoryAnnotations;
use crate::qemu::private_qemu::{
    DISKS, PrivateQemu, annotated, backup, begun, config, plain, restore, vm,
};

fn named(folder: &Path) -> qemu::Config {
    qemu::Config {
        disks: vec!["disk0".to_owned(), "disk1".to_owned()],
        ..config(folder)
    }
}

pub(crate) fn with(config: qemu::Config) -> qemu::Qemu {
    qemu::Qemu::new(config, SystemClock::shared(), Tasks::default())
}

/// The refusal of a request that must have no effect.
pub(crate) async fn refusal(adapter: &dyn Adapter, intent: &Intent, number: u64) -> Fault {
    let before = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = begin_as_planned(adapter, intent, key(number), before.as_ref(), by());
    let error = begun.await.expect_err("it is refused");
    assert_eq!(error.effect, Effect::None, "{number}: {error:?}");
    error.fault
}

pub(crate) async fn read(adapter: &dyn Adapter, id: &str) -> Result<Backup, FaultKind> {
    let backup = BackupId::new(id).unwrap();
    let read = adapter
        .read_backup(&Target { vm: vm(), backup }, by())
        .await;
    read.map_err(|error| error.fault.kind)
}

pub(crate) fn delete(of: &Backup) -> Intent {
    on(of, &vm(), Change::Delete)
}

/// All three changes are refused for the same reason, and nothing is changed.
pub(crate) async fn all_refused(
    adapter: &dyn Adapter,
    of: &Backup,
    number: u64,
    kind: FaultKind,
    part: &str,
) {
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

#[apply(test)]
async fn a_backup_whose_id_is_a_number_of_another_is_refused_running_and_stopped() {
    let mut qemu = PrivateQemu::new();
    let adapter = plain(qemu.folder.path());
    for (content, tag) in [(1, "2"), (2, "noon")] {
        qemu.write(content);
        for disk in DISKS {
            qemu.img(&["snapshot", "-c", tag], disk);
        }
    }
    qemu.write(3);
    let two = read(&adapter, "2").await.unwrap();
    for (intent, number) in [(restore(&two), 1), (delete(&two), 2)] {
        let fault = refusal(&adapter, &intent, number).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "{fault:?}");
        assert!(fault.text.contains("noon"), "names the other: {fault:?}");
        assert!(fault.text.contains("first"), "says what to do: {fault:?}");
    }
    assert_eq!(qemu.content(), 3, "nothing restored");
    let noon = read(&adapter, "noon").await.unwrap();
    assert_eq!(run(&adapter, &delete(&noon), 3).await, Ok(()), "the remedy");
    assert_eq!(run(&adapter, &restore(&two), 4).await, Ok(()), "restored");
    assert_eq!(qemu.content(), 1, "the one that was meant");

    // A tag that is on one disk twice is not restored, and a delete leaves none.
    for (running, number) in [(false, 10), (true, 20)] {
        for disk in [DISKS[0], DISKS[0], DISKS[1]] {
            qemu.img(&["snapshot", "-c", "twice"], disk);
        }
        if running {
            qemu.start();
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
        qemu.ask(
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
    assert_eq!(qemu.status(), "running", "left alone");
    qemu.stop();
}

#[apply(test)]
async fn a_stopped_vm_whose_image_is_below_an_overlay_is_left_alone() {
    let qemu = PrivateQemu::new();
    let adapter = plain(qemu.folder.path());
    qemu.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    qemu.write(2);
    let base = qemu.image(DISKS[1]);
    for backing in [DISKS[1], base.to_str().unwrap()] {
        qemu.img(
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing],
            "over.qcow2",
        );
        all_refused(&adapter, &taken, 10, FaultKind::Conflict, "over.qcow2").await;
        assert_eq!(qemu.content(), 2, "the base is as it was");
        std::fs::remove_file(qemu.image("over.qcow2")).unwrap();
    }
    assert_eq!(
        run(&adapter, &restore(&taken), 20).await,
        Ok(()),
        "restored"
    );
    assert_eq!(qemu.content(), 1, "once the overlay is gone");

    // A linked clone: the overlay is the VM's image, and its backing file is only read.
    let base = qemu.image("base.qcow2");
    std::fs::rename(qemu.image(DISKS[1]), &base).unwrap();
    for clone in [DISKS[1], "other-clone.qcow2"] {
        qemu.img(
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
    qemu.write(3);
    assert_eq!(run(&adapter, &restore(&cloned), 51).await, Ok(()), "clone");
    assert_eq!(qemu.content(), 1, "what the clone read of its backing file");
    assert_eq!(run(&adapter, &delete(&cloned), 52).await, Ok(()), "deleted");
}

#[apply(test)]
async fn a_vm_that_writes_to_an_overlay_is_left_alone_while_it_runs_and_after() {
    let mut qemu = PrivateQemu::started();
    let adapter = with(named(qemu.folder.path()));
    let taken = backup(&adapter, "taken", 1).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let over = elsewhere.path().join("over.qcow2");
    qemu.ask(
        "blockdev-snapshot-sync",
        json!({"node-name": "disk0", "snapshot-file": over, "snapshot-node-name": "over", "format": "qcow2"}),
    );
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "disk0").await;
    assert_eq!(qemu.status(), "running", "and never left in restore-vm");
    let shown = adapter.read_vm(&vm(), by()).await.unwrap();
    assert_eq!(shown.run_state, Some(RunState::Started), "shown");
    let every = plain(qemu.folder.path());
    // Without named disks the overlay itself would be backed up, which the configuration does not know.
    drop(adapter);
    eventually("the monitor is let go of", || {
        let stream = std::os::unix::net::UnixStream::connect(qemu.image("web01.qmp")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_millis(200)))
            .unwrap();
        let mut first = [0];
        std::io::Read::read(&mut &stream, &mut first).is_ok_and(|bytes| bytes == 1)
    });
    let intent = create(&every, &vm(), "over", 20);
    let fault = refusal(&every, &intent, 20).await;
    assert_eq!(fault.kind, FaultKind::Conflict, "every disk: {fault:?}");
    qemu.stop();
    // Stopped, the overlay lies in another folder: the gateway that saw the VM run remembers.
    all_refused(&every, &taken, 30, FaultKind::Conflict, "last ran").await;
    std::fs::remove_file(&over).unwrap();
    assert_eq!(
        run(&every, &restore(&taken), 40).await,
        Ok(()),
        "once it is gone"
    );
}

#[apply(test)]
async fn filters_and_symbolic_links_are_no_obstacle_and_a_replaced_image_is() {
    let mut qemu = PrivateQemu::new();
    qemu.start_with(
        &[
            "-object",
            "throttle-group,id=group",
            "-blockdev",
            "driver=throttle,node-name=slow,file=disk1,throttle-group=group",
        ],
        "slow",
    );
    let folder = qemu.folder.path().to_owned();
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

    let (image, aside) = (qemu.image(DISKS[1]), qemu.image("aside"));
    std::fs::rename(&image, &aside).unwrap();
    all_refused(&adapter, &taken, 10, FaultKind::Conflict, "missing").await;
    std::fs::copy(&aside, &image).unwrap();
    all_refused(&adapter, &taken, 20, FaultKind::Conflict, "replaced").await;
    assert_eq!(qemu.status(), "running", "left alone");
    std::fs::rename(&aside, &image).unwrap();
    assert_eq!(
        run(&adapter, &restore(&taken), 30).await,
        Ok(()),
        "put back"
    );
    qemu.stop();
    assert_eq!(run(&adapter, &restore(&taken), 31).await, Ok(()), "stopped");
}

#[apply(test)]
async fn disks_in_another_order_keep_name_protection_and_memory() {
    let mut qemu = PrivateQemu::started();
    let folder = qemu.folder.path().to_owned();
    let memory = Arc::<MemoryAnnotations>::default();
    let first = annotated(named(&folder), &memory);
    let first = first.as_ref();
    let minted = backup(first, "minted", 1).await;
    qemu.ask(
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
        let older = AnnotationRecord {
            identity: Some(Identity::new(part.clone())),
            ..kept
        };
        memory.put(&backend, &older).await.unwrap();
    }
    let mut turned = named(&folder);
    turned.disks.reverse();
    turned.images.reverse();
    qemu.stop();
    for running in [false, true] {
        if running {
            qemu.start();
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
    qemu.stop();
    // Deleted on one disk by other means, it keeps its name and protection, and a delete finishes the rest.
    qemu.img(&["snapshot", "-d", minted.id.as_str()], DISKS[0]);
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
    fn of(qemu: &PrivateQemu, disk: &str) -> Self {
        let mut holder = Command::new("qemu-io");
        holder.args(["-r", "-f", "qcow2"]).arg(qemu.image(disk));
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

#[apply(test)]
async fn a_change_over_an_image_that_is_held_changes_nothing_on_any_disk() {
    let qemu = PrivateQemu::new();
    let adapter = plain(qemu.folder.path());
    qemu.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    qemu.write(2);
    for (disk, number) in DISKS.iter().zip([10, 20]) {
        let holder = Holder::of(&qemu, disk);
        all_refused(&adapter, &taken, number, FaultKind::Busy, "in use").await;
        drop(holder);
        assert_eq!(qemu.content(), 2, "{disk}: nothing restored");
        let shown = read(&adapter, taken.id.as_str()).await.unwrap();
        assert_eq!(
            shown.state,
            BackupState::Available,
            "{disk}: nothing deleted"
        );
        for disk in DISKS {
            let listed = Command::new("qemu-img")
                .args(["snapshot", "-l"])
                .arg(qemu.image(disk))
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
    assert_eq!(qemu.content(), 1, "once they are free");
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

#[apply(test)]
async fn a_change_that_fails_on_the_second_disk_says_what_each_disk_holds() {
    let qemu = PrivateQemu::new();
    let script = qemu.image("fails");
    std::fs::write(&script, FAILS).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let adapter = with(qemu::Config {
        qemu_img: script,
        ..config(qemu.folder.path())
    });
    let failed = async |intent: &Intent, number: u64, act: &str| {
        let (before, task) = begun(&adapter, intent, number).await;
        loop {
            match adapter.poll(&task, by()).await.unwrap() {
                TaskState::Running(_) => adapter.changed(&task).await,
                TaskState::Failed(fault) => {
                    assert_eq!(fault.kind, FaultKind::StorageFull, "{act}: {fault:?}");
                    let found = adapter
                        .find_outcome(intent, key(number), before.as_ref(), by())
                        .await;
                    assert!(
                        matches!(found.unwrap(), FindOutcome::Failed(_)),
                        "{act}: found"
                    );
                    return fault.text;
                }
                other @ (TaskState::Done(_) | TaskState::Cancelled | TaskState::Gone) => {
                    panic!("{act}: {other:?}")
                }
            }
        }
    };
    let arm = |act: &str| std::fs::write(qemu.image("fails.armed"), act).unwrap();
    qemu.write(1);
    let taken = backup(&adapter, "taken", 1).await;
    qemu.write(2);
    arm(r"\-a");
    let text = failed(&restore(&taken), 2, "restore").await;
    assert!(text.contains("what it held before"), "restore: {text}");
    assert_eq!(qemu.content(), 2, "the first disk was put back");
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
