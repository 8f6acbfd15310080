//! The adapter for QEMU against a real QEMU: the behaviour suite, roll-back of disk and memory, every refused restore.

mod disks;
mod http;
mod offline;
pub(crate) mod private_qemu;
pub(crate) mod storage;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::conformance::kills::{kill_at_every_moment, kill_during};
use crate::conformance::{self, by, create, key, on, run};
use crate::harness::eventually;
use crate::qemu::private_qemu::DISKS;
use crate::qemu::private_qemu::PrivateQemu;
use crate::qemu::private_qemu::adapter;
use crate::qemu::private_qemu::backup;
use crate::qemu::private_qemu::begun;
use crate::qemu::private_qemu::found;
use crate::qemu::private_qemu::restore;
use crate::qemu::private_qemu::vm;

#[apply(test)]
async fn a_running_vm_behaves() {
    conformance::suite::run_suite(&PrivateQemu::started()).await;
}

#[apply(test)]
async fn a_stopped_vm_behaves() {
    conformance::suite::run_suite(&PrivateQemu::new()).await;
}

#[apply(test)]
fn a_running_vm_is_left_by_a_gateway_killed_between_any_two_steps() {
    let qemu = PrivateQemu::started();
    for verb in [Verb::Create, Verb::Delete, Verb::Restore] {
        kill_during(&qemu, verb);
    }
}

#[apply(test)]
fn a_stopped_vm_is_left_by_a_gateway_killed_between_any_two_steps() {
    let qemu = PrivateQemu::new();
    kill_at_every_moment(&qemu);
}

#[apply(test)]
async fn memory_is_rolled_back_and_the_guest_goes_on() {
    let qemu = PrivateQemu::started();
    let adapter = qemu.adapter.as_ref();
    let taken = backup(adapter, "memory", 1).await;
    let then = qemu.counter().unwrap();
    eventually("it counts", || qemu.counter().unwrap() > then);
    // A VM that is paused stays paused, and so shows exactly what was put back.
    qemu.ask("stop", json!({}));
    let far = qemu.counter().unwrap();
    assert_eq!(run(adapter, &restore(&taken), 2).await, Ok(()), "paused");
    assert_eq!(qemu.status(), "paused", "it stays paused");
    let back = qemu.counter().unwrap();
    assert!(back <= then, "{back} is not after {then}, but {far} was");
    qemu.ask("cont", json!({}));

    // Far enough that a guest which merely went on cannot look like one that was rolled back.
    let end = Instant::now() + Duration::from_secs(60);
    let counted = Instant::now();
    let far = far.saturating_add(2000);
    while qemu.counter().unwrap() < far || counted.elapsed() < Duration::from_secs(3) {
        assert!(Instant::now() < end, "it counts");
        std::thread::sleep(Duration::from_millis(20));
    }
    let far = qemu.counter().unwrap();
    assert_eq!(run(adapter, &restore(&taken), 3).await, Ok(()), "running");
    let back = qemu.counter().unwrap();
    assert!(back < far, "{back} is before {far}");
    assert_eq!(qemu.status(), "running", "it goes on");
    eventually("it counts again", || qemu.counter().unwrap() > back);
}

#[apply(test)]
async fn a_restore_that_would_fail_half_way_is_refused() {
    let qemu = PrivateQemu::started();
    let adapter = qemu.adapter.as_ref();
    let taken = backup(adapter, "good", 1).await;
    let refused = async |name: &str, of: &Backup, number: u64, expected: FaultKind| {
        let counted = qemu.counter();
        assert_eq!(
            run(adapter, &restore(of), number).await,
            Err(expected),
            "{name}"
        );
        assert_eq!(qemu.status(), "running", "{name}: the guest was left alone");
        assert!(qemu.counter() >= counted, "{name}: not rolled back");
    };
    let bitmap = json!({"node": "disk1", "name": "bm"});
    qemu.ask("block-dirty-bitmap-add", bitmap.clone());
    refused("bitmap", &taken, 2, FaultKind::Conflict).await;
    qemu.ask("block-dirty-bitmap-remove", bitmap);
    let slow = json!({"job-id": "slow", "device": "disk1", "sync": "full", "speed": 65536,
        "target": qemu.image("slow.qcow2"), "format": "qcow2"});
    qemu.fill(1, 5);
    qemu.ask("drive-backup", slow);
    refused("block job", &taken, 3, FaultKind::Conflict).await;
    qemu.ask("block-job-cancel", json!({"device": "slow", "force": true}));
    let end = Instant::now() + Duration::from_secs(60);
    while qemu.ask("query-block-jobs", json!({})) != json!([]) {
        assert!(Instant::now() < end, "cancelled");
    }
    let only = |device: &str, name: &str| {
        let snapshot = json!({"device": device, "name": name});
        qemu.ask("blockdev-snapshot-internal-sync", snapshot);
    };
    only("disk0", "disk-only");
    only("disk1", "disk-only");
    only("disk0", "on-one-disk");
    let read = async |id: &str| {
        let backup = BackupId::new(id).unwrap();
        adapter
            .read_backup(&Target { vm: vm(), backup }, by())
            .await
            .unwrap()
    };
    refused(
        "no memory",
        &read("disk-only").await,
        4,
        FaultKind::Conflict,
    )
    .await;
    let partial = read("on-one-disk").await;
    assert_eq!(partial.state, BackupState::Error, "it is not whole");
    refused("on one disk", &partial, 5, FaultKind::NotReady).await;
    assert_eq!(
        run(adapter, &restore(&taken), 6).await,
        Ok(()),
        "nothing is in the way any more"
    );
}

#[apply(test)]
async fn a_load_that_fails_leaves_the_vm_stopped_and_says_so() {
    let qemu = PrivateQemu::started();
    let adapter = qemu.adapter.as_ref();
    let taken = backup(adapter, "good", 1).await;
    // Our job id with a load that must fail, as if a bitmap had come between the check and the load.
    qemu.ask(
        "block-dirty-bitmap-add",
        json!({"node": "disk1", "name": "bm"}),
    );
    let load = json!({"job-id": "snapgate-2", "tag": taken.id.as_str(), "vmstate": "disk0", "devices": ["disk0", "disk1"]});
    qemu.ask("snapshot-load", load);
    let found = found(adapter, &restore(&taken), 2, None).await;
    let FindOutcome::Failed(fault) = found else {
        panic!("failed: {found:?}");
    };
    assert_eq!(fault.kind, FaultKind::Conflict, "{fault:?}");
    assert!(
        fault.text.contains("paused") || fault.text.contains("still stopped"),
        "{fault:?}"
    );
    for part in ["(restored: disk disk0;", "not restored: disk disk1"] {
        assert!(fault.text.contains(part), "the disks are named: {fault:?}");
    }
    assert_eq!(qemu.status(), "restore-vm", "it was not resumed");
    qemu.ask(
        "block-dirty-bitmap-remove",
        json!({"node": "disk1", "name": "bm"}),
    );
    assert_eq!(
        run(adapter, &restore(&taken), 3).await,
        Ok(()),
        "restored again"
    );
}

#[apply(test)]
async fn a_gateway_that_comes_back_finds_what_it_began() {
    let qemu = PrivateQemu::started();
    let memory = Arc::default();
    let first = adapter(qemu.folder.path(), &memory);
    let intent = create(first.as_ref(), &vm(), "named", 1);
    let (before, task) = begun(first.as_ref(), &intent, 1).await;
    // The gateway ends: its adapter, its connection and its tasks are gone.
    drop(first);
    let second = adapter(qemu.folder.path(), &memory);
    let second = second.as_ref();
    let end = Instant::now() + Duration::from_secs(60);
    // The connection of the first one is given up after a while; until then the monitor is held.
    while !matches!(second.poll(&task, by()).await, Ok(TaskState::Done(_))) {
        assert!(Instant::now() < end, "followed to its end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = second
        .find_outcome(&intent, key(1), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::Done(_)), "found: {found:?}");
    let named = second.read_backup(&intent.target, by()).await.unwrap();
    assert_eq!(named.name.as_str(), "named", "it never lacks its name");
    // The same call again makes nothing twice.
    let again = second.begin(&intent, key(1), before.as_ref(), by()).await;
    assert!(
        again.is_ok() || again.is_err_and(|error| error.effect == Effect::None),
        "again"
    );
    let page = Page {
        after: None,
        limit: 10,
    };
    let listed = second.list_backups(&vm(), &page, by()).await.unwrap();
    assert_eq!(listed.backups.len(), 1, "one backup: {listed:?}");
}

#[apply(test)]
async fn when_qemu_is_killed_nothing_is_guessed() {
    let mut qemu = PrivateQemu::started();
    let adapter = Arc::clone(&qemu.adapter);
    let adapter = adapter.as_ref();
    let kept = backup(adapter, "kept", 1).await;

    let intent = create(adapter, &vm(), "lost", 2);
    let (before, task) = begun(adapter, &intent, 2).await;
    qemu.kill();
    let made = match found(adapter, &intent, 2, before.as_ref()).await {
        FindOutcome::Done(_) => true,
        FindOutcome::Failed(_) => false,
        other @ (FindOutcome::NotBegun
        | FindOutcome::VmChanged
        | FindOutcome::HalfDone(_)
        | FindOutcome::Task(_)
        | FindOutcome::NotYet
        | FindOutcome::Unknowable) => {
            panic!("the evidence is in the image: {other:?}")
        }
    };
    assert!(
        matches!(adapter.poll(&task, by()).await, Ok(TaskState::Gone)),
        "the job is gone"
    );
    let read = adapter.read_backup(&intent.target, by()).await;
    assert_eq!(read.is_ok(), made, "as was found");

    qemu.start();
    let (before, _) = begun(adapter, &restore(&kept), 3).await;
    qemu.kill();
    let at_rest = found(adapter, &restore(&kept), 3, before.as_ref()).await;
    assert!(
        matches!(at_rest, FindOutcome::Unknowable),
        "off: {at_rest:?}"
    );
    qemu.start();
    let restarted = found(adapter, &restore(&kept), 3, before.as_ref()).await;
    assert!(
        matches!(restarted, FindOutcome::Unknowable),
        "restarted: {restarted:?}"
    );

    let other = restore(&kept);
    let before = adapter.baseline(&other, key(4), by()).await.unwrap();
    let never = adapter
        .find_outcome(&other, key(4), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(never, FindOutcome::NotBegun),
        "the same QEMU knows of none: {never:?}"
    );
    let delete = on(&kept, &vm(), Change::Delete);
    assert_eq!(run(adapter, &delete, 5).await, Ok(()), "and all goes on");
}

#[apply(test)]
async fn a_monitor_serves_one_client_and_is_given_back() {
    let qemu = PrivateQemu::started();
    let adapter = qemu.adapter.as_ref();
    let held = UnixStream::connect(qemu.image("web01.qmp")).unwrap();
    let mut greeting = String::new();
    BufReader::new(held.try_clone().unwrap())
        .read_line(&mut greeting)
        .unwrap();
    let error = adapter.read_vm(&vm(), by()).await.unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::Busy,
        "held by another: {error:?}"
    );
    drop(held);
    let end = Instant::now() + Duration::from_secs(60);
    while adapter.read_vm(&vm(), by()).await.is_err() {
        assert!(Instant::now() < end, "free again");
    }
    // Unused for a while, the gateway lets go of it.
    let held = UnixStream::connect(qemu.image("web01.qmp")).unwrap();
    held.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut greeting = String::new();
    BufReader::new(held).read_line(&mut greeting).unwrap();
    assert!(greeting.contains("QMP"), "greeted: {greeting}");
}

#[apply(test)]
async fn a_vm_may_be_stopped_and_started_between_requests() {
    let mut qemu = PrivateQemu::started();
    let adapter = Arc::clone(&qemu.adapter);
    let adapter = adapter.as_ref();
    let state = async || adapter.read_vm(&vm(), by()).await.unwrap().run_state;
    qemu.fill(0, 1);
    qemu.fill(1, 1);
    let live = backup(adapter, "live", 1).await;
    assert_eq!(state().await, Some(RunState::Started), "running");
    qemu.stop();
    assert_eq!(state().await, Some(RunState::Stopped), "stopped");
    let target = Target {
        vm: vm(),
        backup: live.id.clone(),
    };
    assert_eq!(
        adapter.read_backup(&target, by()).await.unwrap(),
        live,
        "the same backup"
    );
    qemu.fill(0, 2);
    qemu.fill(1, 2);
    let off = backup(adapter, "off", 2).await;
    assert_eq!(
        run(adapter, &restore(&live), 3).await,
        Ok(()),
        "restored at rest"
    );
    assert_eq!(
        (qemu.filled(0), qemu.filled(1)),
        (1, 1),
        "both disks are back"
    );
    qemu.start();
    assert_eq!(state().await, Some(RunState::Started), "running again");
    let error = run(adapter, &restore(&off), 4).await;
    assert_eq!(error, Err(FaultKind::Conflict), "it holds no memory");
    assert_eq!(
        run(adapter, &restore(&live), 5).await,
        Ok(()),
        "restored live"
    );
    assert_eq!((qemu.filled(0), qemu.filled(1)), (1, 1), "as it was taken");

    // An image that is in use by a QEMU which the gateway does not see is left alone.
    std::fs::rename(qemu.image("web01.qmp"), qemu.image("hidden")).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let error = loop {
        // The open connection is used for a while.
        match state().await {
            Some(RunState::Stopped) => break run(adapter, &restore(&off), 6).await,
            _ => tokio::time::sleep(Duration::from_secs(11)).await,
        }
        assert!(Instant::now() < end, "unseen");
    };
    assert_eq!(error, Err(FaultKind::Busy), "QEMU guards its images");
    qemu.img(&["snapshot", "-l", "-U"], DISKS[0]);
}
