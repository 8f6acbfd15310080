//! The libvirt adapter on a real libvirtd and a real QEMU: what is rolled back, what is refused, what is found again.

mod disks;
pub(crate) mod kills;
pub(crate) mod partial_changes;
pub(crate) mod private_libvirtd;
mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use snapgate::adapters::adapter::*;
use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::model::*;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::client::Client;
use crate::conformance::begin_as_planned;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::conformance::run;
use crate::harness::Process;
use crate::harness::probe;
use crate::harness::settings_for_alice;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;

pub(crate) fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

pub(crate) async fn made(adapter: &dyn Adapter, on: &VmId, name: &str, number: u64) -> Backup {
    let intent = create(adapter, on, name, number);
    assert_eq!(
        run(adapter, &intent, number).await,
        Ok(()),
        "{name} is made"
    );
    adapter.read_backup(&intent.target, by()).await.unwrap()
}

pub(crate) fn restore(backup: &Backup, of: &VmId, after: &str) -> Intent {
    let mut options = BTreeMap::new();
    if !after.is_empty() {
        options.insert("after_restore".to_owned(), after.to_owned());
    }
    on(backup, of, Change::Restore(RestoreOptions(options)))
}

#[apply(test)]
async fn memory_and_disks_are_put_back_and_the_vm_ends_as_requested() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write(1);
    let before = libvirtd.counter("web01");
    let backup = made(adapter, &web01, "counted", 1).await;
    let at_most = libvirtd.counter("web01");
    libvirtd.write(2);
    crate::harness::eventually("it counts on", || {
        libvirtd.counter("web01") > at_most + 1000
    });
    let after = libvirtd.counter("web01");

    let intent = restore(&backup, &web01, "paused");
    assert_eq!(
        run(adapter, &intent, 2).await,
        Ok(()),
        "restored and paused"
    );
    assert_eq!(libvirtd.state("web01"), "paused", "as asked");
    let counted = libvirtd.counter("web01");
    assert!(
        (before..=at_most).contains(&counted),
        "{before} <= {counted} <= {at_most} < {after}"
    );
    assert_eq!(libvirtd.counter("web01"), counted, "it stands still");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "the disk too");

    let intent = restore(&backup, &web01, "");
    assert_eq!(run(adapter, &intent, 3).await, Ok(()), "as before");
    assert_eq!(libvirtd.state("web01"), "paused", "it was paused");
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "running"), 4).await,
        Ok(()),
        "running"
    );
    assert_eq!(libvirtd.state("web01"), "running", "as asked");
    crate::harness::eventually("it goes on", || libvirtd.counter("web01") > counted);

    libvirtd.virsh(&["destroy", "web01"]);
    libvirtd.write_off("web01.qcow2", 3);
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "as-before"), 5).await,
        Ok(()),
        "while off"
    );
    assert_eq!(libvirtd.state("web01"), "shut off", "it was off and is off");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "its disk is put back");
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "as-saved"), 6).await,
        Ok(()),
        "as saved"
    );
    assert_eq!(libvirtd.state("web01"), "running", "it ran then");

    two_disks(&libvirtd, adapter).await;
    names_and_descriptions(&libvirtd, adapter, &backup).await;
}

async fn two_disks(libvirtd: &PrivateLibvirtd, adapter: &dyn Adapter) {
    let web02 = vm("web02");
    let disks = ["web02a.qcow2", "web02b.qcow2"];
    let fill = |byte| disks.map(|disk| libvirtd.write_off(disk, byte));
    let read = || disks.map(|disk| libvirtd.read(disk));
    fill(4);
    let backup = made(adapter, &web02, "two", 11).await;
    fill(5);
    assert_eq!(
        run(adapter, &restore(&backup, &web02, ""), 12).await,
        Ok(()),
        "offline"
    );
    assert_eq!(read(), [4, 4], "both disks");
    assert_eq!(libvirtd.state("web02"), "shut off", "still off");
    fill(6);
    libvirtd.virsh(&["start", "web02"]);
    assert_eq!(
        run(adapter, &restore(&backup, &web02, ""), 13).await,
        Ok(()),
        "while on"
    );
    assert_eq!(read(), [4, 4], "both disks again");
    assert_eq!(libvirtd.state("web02"), "running", "it ran and runs");
    let uuid = libvirtd.virsh(&["domuuid", "web02"]);
    let named = adapter.read_vm(&vm(uuid.trim()), by()).await.unwrap();
    assert_eq!(
        (named.name.as_str(), named.run_state),
        ("web02", Some(RunState::Started)),
        "by UUID"
    );
}

/// Properties live in libvirt, survive restores, and leave what others wrote alone.
async fn names_and_descriptions(libvirtd: &PrivateLibvirtd, adapter: &dyn Adapter, ours: &Backup) {
    let web01 = vm("web01");
    let patch = BackupPatch {
        name: Some(BackupName::new("n\u{e4}chtlich <1>").unwrap()),
        description: Patch::Set(Description::new("zwei\nZeilen & mehr\n").unwrap()),
        tags: Patch::Set(vec![Tag::new("a,b \u{fffe}").unwrap()]),
        protected: Patch::Set(true),
    };
    let update = on(ours, &web01, Change::Update(patch.clone()));
    assert_eq!(run(adapter, &update, 21).await, Ok(()), "all at once");
    assert_eq!(
        run(adapter, &restore(ours, &web01, ""), 22).await,
        Ok(()),
        "restored"
    );
    let read = adapter.read_backup(&update.target, by()).await.unwrap();
    assert_eq!(
        read,
        patch.applied_to(ours.clone()),
        "everything is still there"
    );
    let fresh = libvirtd.adapter();
    assert_eq!(
        fresh.read_backup(&update.target, by()).await.unwrap(),
        read,
        "for others, too"
    );

    libvirtd.virsh(&[
        "snapshot-create-as",
        "web01",
        "by-hand",
        "--description",
        "of\nsomebody else",
    ]);
    let target = Target {
        vm: web01.clone(),
        backup: BackupId::new("by-hand").unwrap(),
    };
    let theirs = adapter.read_backup(&target, by()).await.unwrap();
    assert_eq!(theirs.name.as_str(), "by-hand", "its own name");
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("kept").unwrap()]),
        ..BackupPatch::default()
    };
    let update = on(&theirs, &web01, Change::Update(patch.clone()));
    assert_eq!(run(adapter, &update, 23).await, Ok(()), "tagged");
    let read = adapter.read_backup(&target, by()).await.unwrap();
    assert_eq!(read, patch.applied_to(theirs.clone()), "only tagged");
    let xml = libvirtd.virsh(&["snapshot-dumpxml", "web01", "by-hand"]);
    assert!(xml.contains("of\nsomebody else"), "their words stay: {xml}");
    let current = libvirtd.virsh(&["snapshot-current", "web01", "--name"]);
    assert_eq!(current.trim(), "by-hand", "still the current one");
    assert_eq!(
        run(adapter, &restore(&read, &web01, ""), 24).await,
        Ok(()),
        "can be restored"
    );
    let same = BackupPatch {
        name: Some(BackupName::new("by-hand").unwrap()),
        ..BackupPatch::default()
    };
    let taken = on(ours, &web01, Change::Update(same));
    assert_eq!(
        run(adapter, &taken, 25).await,
        Err(FaultKind::NameTaken),
        "theirs"
    );
}

/// Each reason not to restore: what brings it about, and what takes it away again.
type Reason = (
    &'static str,
    fn(&PrivateLibvirtd),
    fn(&PrivateLibvirtd),
    FaultKind,
);

const REASONS: &[Reason] = &[
    (
        "checkpoint",
        |libvirtd| drop(libvirtd.virsh(&["checkpoint-create-as", "web01", "cp"])),
        |libvirtd| drop(libvirtd.virsh(&["checkpoint-delete", "web01", "cp"])),
        FaultKind::Conflict,
    ),
    (
        "dirty bitmap",
        |libvirtd| qmp(libvirtd, "block-dirty-bitmap-add"),
        |libvirtd| qmp(libvirtd, "block-dirty-bitmap-remove"),
        FaultKind::Conflict,
    ),
    (
        "job of libvirt's",
        |libvirtd| {
            let path = libvirtd.folder().join("pull.xml");
            let socket = libvirtd.folder().join("nbd");
            let xml = format!(
                "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
                socket.display()
            );
            fs::write(&path, xml).unwrap();
            libvirtd.virsh(&["backup-begin", "web01", path.to_str().unwrap()]);
        },
        |libvirtd| drop(libvirtd.virsh(&["domjobabort", "web01"])),
        FaultKind::Busy,
    ),
    (
        "removed behind libvirt's back",
        |libvirtd| drop(libvirtd.monitor("web01", "delvm snapgate-1")),
        |_| {},
        FaultKind::Damaged,
    ),
    (
        "another disk",
        |libvirtd| {
            let disk = libvirtd.folder().join("more.qcow2");
            libvirtd.write_new(&disk);
            let at = disk.to_str().unwrap();
            libvirtd.virsh(&["attach-disk", "web01", at, "vdz", "--subdriver", "qcow2"]);
        },
        |_| {},
        FaultKind::Conflict,
    ),
];

fn qmp(libvirtd: &PrivateLibvirtd, command: &str) {
    let nodes = libvirtd.monitor("web01", "info block -v");
    let (_, rest) = nodes.split_once("libvirt-").unwrap();
    let (number, _) = rest.split_once("-format").unwrap();
    let node = format!("libvirt-{number}-format");
    let text =
        format!(r#"{{"execute":"{command}","arguments":{{"node":"{node}","name":"foreign"}}}}"#);
    let said = libvirtd.virsh(&["qemu-monitor-command", "web01", &text]);
    assert!(!said.contains("error"), "{command}: {said}");
}

#[apply(test)]
async fn a_restore_that_would_fail_half_way_is_refused_and_the_vm_runs_on() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web01, "wanted", 1).await;
    let number = libvirtd.number("web01");
    let intent = restore(&backup, &web01, "");
    for (at, (name, cause, cure, expected)) in (2..).zip(REASONS) {
        cause(&libvirtd);
        assert_eq!(run(adapter, &intent, at).await, Err(*expected), "{name}");
        assert_eq!(libvirtd.state("web01"), "running", "{name}: it runs");
        assert_eq!(
            libvirtd.number("web01"),
            number,
            "{name}: it was not restarted"
        );
        cure(&libvirtd);
    }
    let wrong = restore(&backup, &web01, "later");
    let error = begin_as_planned(adapter, &wrong, key(20), None, by())
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Invalid, "an unknown word");
    for (at, name) in (30..).zip(["external", "17"]) {
        let disks = if name == "external" {
            &["--disk-only"][..]
        } else {
            &[]
        };
        libvirtd.virsh(&[&["snapshot-create-as", "web01", name][..], disks].concat());
        let target = Target {
            vm: web01.clone(),
            backup: BackupId::new(name).unwrap(),
        };
        let foreign = adapter.read_backup(&target, by()).await.unwrap();
        let refused = run(adapter, &restore(&foreign, &web01, ""), at).await;
        assert_eq!(refused, Err(FaultKind::Unsupported), "{name}");
        assert_eq!(
            libvirtd.number("web01"),
            number,
            "{name}: it was not restarted"
        );
    }
    renamed(&libvirtd, adapter).await;
}

/// What libvirt's own rename does to a snapshot: only libvirt's record is renamed.
async fn renamed(libvirtd: &PrivateLibvirtd, adapter: &dyn Adapter) {
    let web02 = vm("web02");
    libvirtd.virsh(&["start", "web02"]);
    let backup = made(adapter, &web02, "renamed", 40).await;
    let xml = libvirtd.virsh(&["snapshot-dumpxml", "web02", backup.id.as_str()]);
    let path = libvirtd.folder().join("renamed.xml");
    fs::write(
        &path,
        xml.replace("<name>snapgate-40</name>", "<name>new</name>"),
    )
    .unwrap();
    libvirtd.virsh(&[
        "snapshot-create",
        "web02",
        path.to_str().unwrap(),
        "--redefine",
    ]);
    let target = Target {
        vm: web02.clone(),
        backup: BackupId::new("new").unwrap(),
    };
    let foreign = adapter.read_backup(&target, by()).await.unwrap();
    let refused = run(adapter, &restore(&foreign, &web02, ""), 41).await;
    assert_eq!(
        refused,
        Err(FaultKind::Damaged),
        "the disks do not know that name"
    );
    assert_eq!(libvirtd.state("web02"), "running", "it runs");
}

#[apply(test)]
async fn an_unfinished_snapshot_of_another_client_is_no_backup_yet() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let whole = made(adapter, &web01, "whole", 1).await;
    let page = Page {
        after: None,
        limit: 9,
    };
    let mut seen_half = false;
    for attempt in 0..20 {
        let name = format!("half-{attempt}");
        let mut maker = libvirtd.spawn_virsh(&["snapshot-create-as", "web01", &name]);
        // libvirt pauses the VM to make it.
        while libvirtd.state("web01") != "paused" && maker.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        libvirtd.signal("web01", "STOP");
        let is_half = libvirtd.state("web01") == "paused" && libvirtd.lists("web01", &name);
        let listed = adapter.list_backups(&web01, &page, by()).await;
        let to = restore(&whole, &web01, "");
        let looked = adapter.baseline(&to, key(2), by()).await.is_ok();
        libvirtd.signal("web01", "CONT");
        assert!(maker.wait().unwrap().success(), "{name} is made");
        assert!(looked, "{name}: looking has no need to wait");
        if is_half {
            seen_half = true;
            assert_eq!(
                listed.unwrap().backups,
                [whole],
                "{name} is not whole, but others are"
            );
            break;
        }
        libvirtd.virsh(&["snapshot-delete", "web01", &name]);
    }
    assert!(seen_half, "libvirt was seen in the middle of a snapshot");
    let listed = adapter.list_backups(&web01, &page, by()).await.unwrap();
    assert_eq!(listed.backups.len(), 2, "whole now: {listed:?}");
}

#[apply(test)]
async fn the_test_driver_is_served_by_the_same_calls() {
    let libvirtd = PrivateLibvirtd::start();
    let config = Config {
        uri: "test:///default".to_owned(),
        ..libvirtd.config()
    };
    let adapter = Libvirt::new(config, SystemClock::shared(), Tasks::default());
    let adapter = Arc::new(adapter);
    let (adapter, test): (&dyn Adapter, _) = (adapter.as_ref(), vm("test"));
    let one = made(adapter, &test, "one", 1).await;
    made(adapter, &test, "two", 2).await;
    let page = Page {
        after: None,
        limit: 9,
    };
    let all = adapter.list_backups(&test, &page, by()).await.unwrap();
    assert_eq!(all.backups.len(), 2, "{all:?}");
    let patch = BackupPatch {
        description: Patch::Set(Description::new("first").unwrap()),
        ..BackupPatch::default()
    };
    let update = on(&one, &test, Change::Update(patch));
    assert_eq!(run(adapter, &update, 3).await, Ok(()), "update");
    assert_eq!(
        run(adapter, &restore(&one, &test, ""), 4).await,
        Ok(()),
        "restore"
    );
    let read = adapter.read_backup(&update.target, by()).await.unwrap();
    assert_eq!(read.description.unwrap().as_str(), "first", "kept");
    assert_eq!(
        run(adapter, &on(&one, &test, Change::Delete), 5).await,
        Ok(()),
        "delete"
    );
    let gone = run(adapter, &on(&one, &test, Change::Delete), 6).await;
    assert_eq!(gone, Err(FaultKind::NoSuchBackup), "deleted");
}

/// A gateway in front of it, as a process.
fn serve(libvirtd: &PrivateLibvirtd) -> (Process, Client) {
    let path = libvirtd.folder().join("snapgate.toml");
    let config = settings_for_alice(
        r#"[[backend]]
name = "host"
kind = "libvirt"
libvirt_socket = "run/libvirt-sock"
vms = ["web01", "web02"]
"#,
    );
    fs::write(&path, config).unwrap();
    let process = Process::start(&["serve", "--config", path.to_str().unwrap()]);
    let client = Client::new(process.api, "alice", "secret");
    (process, client)
}

#[apply(test)]
fn the_four_requests_work_and_a_killed_gateway_reports_the_truth_afterwards() {
    let libvirtd = PrivateLibvirtd::start();
    let (process, client) = serve(&libvirtd);
    let config = libvirtd.folder().join("snapgate.toml");
    let (code, printed) = probe(config.to_str().unwrap());
    assert_eq!(code, Some(0), "{printed}");
    for line in [
        "backend host: QEMU",
        "  supported: create, update, delete, restore; unsupported: none",
        "  VM web01: web01 STARTED",
        "  VM web02: web02 STOPPED",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    libvirtd.write(1);
    let new = r#"{"name": "nightly", "description": "before", "tags": ["a"]}"#;
    let created = client.finished(&client.post("/back_up?vm=web01", new).status_uri());
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    let counted = libvirtd.counter("web01");
    let changed = client
        .put(&target, r#"{"name": "weekly", "tags": ["b", "c"]}"#)
        .json();
    assert_eq!(changed["progress"], 100, "answered at once: {changed}");
    assert_eq!(changed["status"], 200, "answered at once: {changed}");
    libvirtd.write(2);
    crate::harness::eventually("it counts on", || {
        libvirtd.counter("web01") > counted + 1000
    });
    let paused = r#"{"after_restore": "paused", "note": "drill"}"#;
    let reply = client.post(&format!("{target}/restore"), paused);
    let status = client.finished(&reply.status_uri());
    assert_eq!(status["status"], 200, "{status}");
    assert_eq!(libvirtd.state("web01"), "paused", "as the request said");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "the disk is put back");
    assert!(
        libvirtd.counter("web01") <= counted,
        "the memory is put back"
    );
    libvirtd.virsh(&["resume", "web01"]);
    let backup = client.get(&target).json();
    assert_eq!(backup["name"], "weekly", "{backup}");
    assert_eq!(backup["description"], "before", "{backup}");
    assert_eq!(backup["tags"], serde_json::json!(["b", "c"]), "{backup}");

    libvirtd.write(3);
    let uri = client.post(&format!("{target}/restore"), "").status_uri();
    crate::harness::eventually("libvirt is at it", || libvirtd.read("web01.qcow2") == 1);
    process.kill();
    let (process, client) = serve(&libvirtd);
    let status = client.finished(&uri);
    assert_eq!(
        status["status"], 200,
        "it was carried out, and is known to be: {status}"
    );
    let status = client.finished(&client.delete(&target).status_uri());
    assert_eq!(status["status"], 200, "{status}");
    assert_eq!(client.get(&target).status, 404, "gone");
    assert!(
        libvirtd
            .virsh(&["snapshot-list", "web01", "--name"])
            .trim()
            .is_empty(),
        "in libvirt, too"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}
