//! The libvirt adapter on a real libvirtd and a real QEMU: what is rolled back, what is refused, what is found again.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::client::Client;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::conformance::run;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::probe;
use crate::libvirt_lab::Lab;

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
    adapter.read(&intent.target, by()).await.unwrap()
}

pub(crate) fn restore(backup: &Backup, of: &VmId, after: &str) -> Intent {
    let mut options = BTreeMap::new();
    if !after.is_empty() {
        options.insert("after_restore".to_owned(), after.to_owned());
    }
    on(backup, of, Change::Restore(RestoreOptions(options)))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_disks_are_put_back_and_the_vm_does_what_it_is_told() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    lab.write(1);
    let before = lab.counter("web01");
    let backup = made(adapter, &web01, "counted", 1).await;
    let at_most = lab.counter("web01");
    lab.write(2);
    crate::harness::eventually("it counts on", || lab.counter("web01") > at_most + 1000);
    let after = lab.counter("web01");

    let intent = restore(&backup, &web01, "paused");
    assert_eq!(
        run(adapter, &intent, 2).await,
        Ok(()),
        "restored and paused"
    );
    assert_eq!(lab.state("web01"), "paused", "as asked");
    let counted = lab.counter("web01");
    assert!(
        (before..=at_most).contains(&counted),
        "{before} <= {counted} <= {at_most} < {after}"
    );
    assert_eq!(lab.counter("web01"), counted, "it stands still");
    assert_eq!(lab.read("web01.qcow2"), 1, "the disk too");

    let intent = restore(&backup, &web01, "");
    assert_eq!(run(adapter, &intent, 3).await, Ok(()), "as before");
    assert_eq!(lab.state("web01"), "paused", "it was paused");
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "running"), 4).await,
        Ok(()),
        "running"
    );
    assert_eq!(lab.state("web01"), "running", "as asked");
    crate::harness::eventually("it goes on", || lab.counter("web01") > counted);

    lab.virsh(&["destroy", "web01"]);
    lab.write_off("web01.qcow2", 3);
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "as-before"), 5).await,
        Ok(()),
        "while off"
    );
    assert_eq!(lab.state("web01"), "shut off", "it was off and is off");
    assert_eq!(lab.read("web01.qcow2"), 1, "its disk is put back");
    assert_eq!(
        run(adapter, &restore(&backup, &web01, "as-saved"), 6).await,
        Ok(()),
        "as saved"
    );
    assert_eq!(lab.state("web01"), "running", "it ran then");

    two_disks(&lab, adapter).await;
    names_and_descriptions(&lab, adapter, &backup).await;
}

async fn two_disks(lab: &Lab, adapter: &dyn Adapter) {
    let web02 = vm("web02");
    let disks = ["web02a.qcow2", "web02b.qcow2"];
    let fill = |byte| disks.map(|disk| lab.write_off(disk, byte));
    let read = || disks.map(|disk| lab.read(disk));
    fill(4);
    let backup = made(adapter, &web02, "two", 11).await;
    fill(5);
    assert_eq!(
        run(adapter, &restore(&backup, &web02, ""), 12).await,
        Ok(()),
        "offline"
    );
    assert_eq!(read(), [4, 4], "both disks");
    assert_eq!(lab.state("web02"), "shut off", "still off");
    fill(6);
    lab.virsh(&["start", "web02"]);
    assert_eq!(
        run(adapter, &restore(&backup, &web02, ""), 13).await,
        Ok(()),
        "while on"
    );
    assert_eq!(read(), [4, 4], "both disks again");
    assert_eq!(lab.state("web02"), "running", "it ran and runs");
    let uuid = lab.virsh(&["domuuid", "web02"]);
    let named = adapter.vm(&vm(uuid.trim()), by()).await.unwrap();
    assert_eq!(
        (named.name.as_str(), named.run_state),
        ("web02", Some(RunState::Started)),
        "by UUID"
    );
}

/// Properties live in libvirt, survive restores, and leave what others wrote alone.
async fn names_and_descriptions(lab: &Lab, adapter: &dyn Adapter, ours: &Backup) {
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
    let read = adapter.read(&update.target, by()).await.unwrap();
    assert_eq!(
        read,
        patch.applied_to(ours.clone()),
        "everything is still there"
    );
    let fresh = lab.adapter();
    assert_eq!(
        fresh.read(&update.target, by()).await.unwrap(),
        read,
        "for others, too"
    );

    lab.virsh(&[
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
    let theirs = adapter.read(&target, by()).await.unwrap();
    assert_eq!(theirs.name.as_str(), "by-hand", "its own name");
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("kept").unwrap()]),
        ..BackupPatch::default()
    };
    let update = on(&theirs, &web01, Change::Update(patch.clone()));
    assert_eq!(run(adapter, &update, 23).await, Ok(()), "tagged");
    let read = adapter.read(&target, by()).await.unwrap();
    assert_eq!(read, patch.applied_to(theirs.clone()), "only tagged");
    let xml = lab.virsh(&["snapshot-dumpxml", "web01", "by-hand"]);
    assert!(xml.contains("of\nsomebody else"), "their words stay: {xml}");
    let current = lab.virsh(&["snapshot-current", "web01", "--name"]);
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
type Reason = (&'static str, fn(&Lab), fn(&Lab), FaultKind);

const REASONS: &[Reason] = &[
    (
        "checkpoint",
        |lab| drop(lab.virsh(&["checkpoint-create-as", "web01", "cp"])),
        |lab| drop(lab.virsh(&["checkpoint-delete", "web01", "cp"])),
        FaultKind::Conflict,
    ),
    (
        "dirty bitmap",
        |lab| qmp(lab, "block-dirty-bitmap-add"),
        |lab| qmp(lab, "block-dirty-bitmap-remove"),
        FaultKind::Conflict,
    ),
    (
        "job of libvirt's",
        |lab| {
            let path = lab.folder().join("pull.xml");
            let socket = lab.folder().join("nbd");
            let xml = format!(
                "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
                socket.display()
            );
            fs::write(&path, xml).unwrap();
            lab.virsh(&["backup-begin", "web01", path.to_str().unwrap()]);
        },
        |lab| drop(lab.virsh(&["domjobabort", "web01"])),
        FaultKind::Busy,
    ),
    (
        "removed behind libvirt's back",
        |lab| drop(lab.monitor("web01", "delvm snapgate-1")),
        |_| {},
        FaultKind::Damaged,
    ),
    (
        "another disk",
        |lab| {
            let disk = lab.folder().join("more.qcow2");
            lab.write_new(&disk);
            let at = disk.to_str().unwrap();
            lab.virsh(&["attach-disk", "web01", at, "vdz", "--subdriver", "qcow2"]);
        },
        |_| {},
        FaultKind::Conflict,
    ),
];

fn qmp(lab: &Lab, command: &str) {
    let nodes = lab.monitor("web01", "info block -v");
    let (_, rest) = nodes.split_once("libvirt-").unwrap();
    let (number, _) = rest.split_once("-format").unwrap();
    let node = format!("libvirt-{number}-format");
    let text =
        format!(r#"{{"execute":"{command}","arguments":{{"node":"{node}","name":"foreign"}}}}"#);
    let said = lab.virsh(&["qemu-monitor-command", "web01", &text]);
    assert!(!said.contains("error"), "{command}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_would_fail_half_way_is_refused_and_the_vm_runs_on() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web01, "wanted", 1).await;
    let number = lab.number("web01");
    let intent = restore(&backup, &web01, "");
    for (at, (name, cause, cure, expected)) in (2..).zip(REASONS) {
        cause(&lab);
        assert_eq!(run(adapter, &intent, at).await, Err(*expected), "{name}");
        assert_eq!(lab.state("web01"), "running", "{name}: it runs");
        assert_eq!(lab.number("web01"), number, "{name}: it was not restarted");
        cure(&lab);
    }
    let wrong = restore(&backup, &web01, "later");
    let error = adapter
        .begin(&wrong, key(20), None, by())
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Invalid, "an unknown word");
    for (at, name) in (30..).zip(["external", "17"]) {
        let disks = if name == "external" {
            &["--disk-only"][..]
        } else {
            &[]
        };
        lab.virsh(&[&["snapshot-create-as", "web01", name][..], disks].concat());
        let target = Target {
            vm: web01.clone(),
            backup: BackupId::new(name).unwrap(),
        };
        let foreign = adapter.read(&target, by()).await.unwrap();
        let refused = run(adapter, &restore(&foreign, &web01, ""), at).await;
        assert_eq!(refused, Err(FaultKind::Unsupported), "{name}");
        assert_eq!(lab.number("web01"), number, "{name}: it was not restarted");
    }
    renamed(&lab, adapter).await;
}

/// What libvirt's own rename does to a snapshot: only libvirt's record is renamed.
async fn renamed(lab: &Lab, adapter: &dyn Adapter) {
    let web02 = vm("web02");
    lab.virsh(&["start", "web02"]);
    let backup = made(adapter, &web02, "renamed", 40).await;
    let xml = lab.virsh(&["snapshot-dumpxml", "web02", backup.id.as_str()]);
    let path = lab.folder().join("renamed.xml");
    fs::write(
        &path,
        xml.replace("<name>snapgate-40</name>", "<name>new</name>"),
    )
    .unwrap();
    lab.virsh(&[
        "snapshot-create",
        "web02",
        path.to_str().unwrap(),
        "--redefine",
    ]);
    let target = Target {
        vm: web02.clone(),
        backup: BackupId::new("new").unwrap(),
    };
    let foreign = adapter.read(&target, by()).await.unwrap();
    let refused = run(adapter, &restore(&foreign, &web02, ""), 41).await;
    assert_eq!(
        refused,
        Err(FaultKind::Damaged),
        "the disks do not know that name"
    );
    assert_eq!(lab.state("web02"), "running", "it runs");
}

/// Begins on a runtime of its own and throws all of that away after a while, as when the gateway is killed.
fn begin_and_die(config: Config, intent: Intent, number: u64, after: Duration) -> Option<Evidence> {
    let life = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let adapter = Libvirt::new(config, SystemClock::shared(), Tasks::default());
        let baseline = runtime.block_on(async {
            let baseline = adapter.baseline(&intent, key(number), by()).await.unwrap();
            let begin = adapter.begin(&intent, key(number), baseline.as_ref(), by());
            // However far it came.
            drop(tokio::time::timeout(after, begin).await);
            baseline
        });
        runtime.shutdown_background();
        baseline
    };
    std::thread::Builder::new()
        .spawn(life)
        .unwrap()
        .join()
        .unwrap()
}

/// Waits until libvirtd has taken up what those sent who died since.
async fn taken_up(lab: &Lab, clients: usize) {
    crate::harness::eventually("they are gone", || lab.clients() <= clients);
    // What was read from them is given to a thread, which begins at once.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Asks until there is an answer.
async fn found(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    before: Option<&Evidence>,
) -> FindOutcome {
    let end = SystemClock.deadline(PATIENCE);
    loop {
        match adapter.find(intent, key(number), before, by()).await {
            Ok(FindOutcome::NotYet) | Err(_) => {}
            // It does not know yet that the daemon died: followed, as the gateway does.
            Ok(FindOutcome::Task(task)) => match adapter.poll(&task, by()).await {
                Ok(TaskState::Done) => return FindOutcome::Done,
                Ok(TaskState::Failed(fault)) => return FindOutcome::Failed(fault),
                Ok(TaskState::Running(_) | TaskState::Gone | TaskState::Cancelled) | Err(_) => {}
            },
            Ok(found) => return found,
        }
        assert!(
            SystemClock.instant() < end.instant(),
            "{number}: found out in time"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_gateway_began_is_found_as_it_is() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    lab.write(1);
    let backup = made(adapter, &web01, "base", 1).await;
    let mut restored = 0;
    // With every connection that the adapter has.
    found(adapter, &restore(&backup, &web01, ""), 2, None).await;
    let clients = lab.clients();
    // Longer and longer, until one came far enough.
    for (life, wait) in (0..).zip([0_u64, 20, 100, 300, 900, 3000, 9000, 27000]) {
        if restored > 0 && life > 3 {
            break;
        }
        lab.write(2);
        let number = 100 + life;
        let intent = restore(&backup, &web01, "");
        let wait = Duration::from_millis(wait);
        let before = begin_and_die(lab.config(), intent.clone(), number, wait);
        taken_up(&lab, clients).await;
        let found = found(adapter, &intent, number, before.as_ref()).await;
        let content = lab.read("web01.qcow2");
        match found {
            FindOutcome::Done => {
                assert_eq!(content, 1, "life {life}: done means put back");
                restored += 1;
            }
            FindOutcome::NotBegun => assert_eq!(content, 2, "life {life}: nothing was done"),
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Failed(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => {
                panic!("life {life}: {found:?}")
            }
        }
        assert_eq!(lab.state("web01"), "running", "life {life}: it runs");

        let number = 200 + life;
        let intent = create(adapter, &web01, &format!("life {life}"), number);
        let before = begin_and_die(lab.config(), intent.clone(), number, wait);
        taken_up(&lab, clients).await;
        let found = self::found(adapter, &intent, number, before.as_ref()).await;
        let read = adapter.read(&intent.target, by()).await;
        match found {
            FindOutcome::Done => assert!(read.is_ok(), "life {life}: done means there: {read:?}"),
            FindOutcome::NotBegun => assert!(read.is_err(), "life {life}: not there: {read:?}"),
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::Failed(_)
            | FindOutcome::NotYet
            | FindOutcome::Unknowable => {
                panic!("life {life}: {found:?}")
            }
        }
    }
    assert!(
        restored > 0,
        "at least one restore was begun before the end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_libvirtd_makes_no_untrue_answers() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    lab.write(1);
    let backup = made(adapter, &web01, "base", 1).await;
    lab.kill_daemon();
    let error = adapter
        .read(&create(adapter, &web01, "x", 1).target, by())
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "{error:?}");
    assert_eq!(error.effect, Effect::None, "nothing was sent");
    lab.start_daemon();
    let end = by();
    while adapter.health(by()).await.is_err() && SystemClock.instant() < end.instant() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let target = create(adapter, &web01, "x", 1).target;
    assert_eq!(
        adapter.read(&target, by()).await.unwrap(),
        backup,
        "connected again"
    );

    for (life, wait) in (0..).zip([5_u64, 100, 400, 800]) {
        if lab.state("web01") != "running" {
            lab.virsh(&["destroy", "web01"]);
            lab.virsh(&["start", "web01"]);
        }
        lab.write(2);
        let number = 100 + life;
        let intent = if life % 2 == 0 {
            create(adapter, &web01, &format!("life {life}"), number)
        } else {
            restore(&backup, &web01, "")
        };
        let before = adapter.baseline(&intent, key(number), by()).await.unwrap();
        let kill = async {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            lab.kill_daemon();
            lab.start_daemon();
        };
        let begin = adapter.begin(&intent, key(number), before.as_ref(), by());
        let (begun, ()) = tokio::join!(begin, kill);
        let found = match begun {
            Err(error) => {
                assert_eq!(error.effect, Effect::None, "life {life}: {error:?}");
                FindOutcome::NotBegun
            }
            Ok(_) => found(adapter, &intent, number, before.as_ref()).await,
        };
        tell(&lab, adapter, &intent, &found, life).await;
        if lab.state("web01") == "shut off" {
            lab.virsh(&["start", "web01"]);
        }
    }
}

/// Holds what was found against what is there.
async fn tell(lab: &Lab, adapter: &dyn Adapter, intent: &Intent, found: &FindOutcome, life: u64) {
    let is_create = matches!(intent.change, Change::Create(_));
    match (found, is_create) {
        (FindOutcome::Done, true) => {
            let read = adapter.read(&intent.target, by()).await;
            assert!(read.is_ok(), "life {life}: {read:?}");
        }
        (FindOutcome::NotBegun, true) => {
            let read = adapter.read(&intent.target, by()).await;
            assert!(read.is_err(), "life {life}: {read:?}");
            assert_ne!(
                lab.state("web01"),
                "shut off",
                "life {life}: nothing was done"
            );
        }
        (FindOutcome::Done, false) => {
            assert_eq!(lab.read("web01.qcow2"), 1, "life {life}: put back");
        }
        (FindOutcome::NotBegun, false) => {
            assert_eq!(lab.read("web01.qcow2"), 2, "life {life}: nothing was done");
            assert_eq!(
                lab.state("web01"),
                "running",
                "life {life}: nothing was done"
            );
        }
        // Both admit that something went wrong, which an operator can see.
        (FindOutcome::Failed(_), _) => {
            let id = intent.target.backup.as_str();
            let is_stopped = lab.state("web01") != "running";
            let told =
                is_stopped || (is_create && lab.monitor("web01", "info snapshots").contains(id));
            assert!(told, "life {life}");
        }
        (FindOutcome::Unknowable, _) => assert!(!is_create, "life {life}: a create can be known"),
        (
            FindOutcome::VmChanged
            | FindOutcome::HalfDone(_)
            | FindOutcome::Task(_)
            | FindOutcome::NotYet,
            _,
        ) => {
            panic!("life {life}: {found:?}")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_fails_its_operation_and_the_next_ones_work() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    for (life, moment) in (1..).zip(["in the middle", "at once", "a little later"]) {
        let intent = create(adapter, &web01, &format!("life {life}"), life);
        let id = intent.target.backup.as_str();
        let is_middle = moment == "in the middle";
        if is_middle {
            // Nothing is made before it is killed.
            lab.signal("web01", "STOP");
        }
        let kill = async {
            match moment {
                "in the middle" => {
                    while !lab.lists("web01", id) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                "at once" => {}
                _later => tokio::time::sleep(Duration::from_millis(30)).await,
            }
            lab.signal("web01", "KILL");
        };
        let (outcome, ()) = tokio::join!(run(adapter, &intent, life), kill);
        let read = adapter.read(&intent.target, by()).await;
        assert_eq!(
            outcome.is_ok(),
            read.is_ok(),
            "{moment}: {outcome:?} {read:?}"
        );
        assert!(!is_middle || outcome.is_err(), "{moment}: {outcome:?}");
        crate::harness::eventually("libvirt notices", || lab.state("web01") == "shut off");
        let stopped = adapter.vm(&web01, by()).await.unwrap();
        assert_eq!(stopped.run_state, Some(RunState::Stopped), "{moment}");
        lab.virsh(&["start", "web01"]);
        crate::harness::eventually("it boots", || lab.counter("web01") > 0);
    }
    let backup = made(adapter, &web01, "afterwards", 10).await;
    assert_eq!(
        run(adapter, &restore(&backup, &web01, ""), 11).await,
        Ok(()),
        "and restored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_somebody_is_making_is_no_backup_yet() {
    let Some(lab) = Lab::start() else { return };
    let (adapter, web01) = (lab.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let whole = made(adapter, &web01, "whole", 1).await;
    let page = Page {
        after: None,
        limit: 9,
    };
    let mut seen_half = false;
    for attempt in 0..20 {
        let name = format!("half-{attempt}");
        let mut maker = lab.spawn_virsh(&["snapshot-create-as", "web01", &name]);
        // libvirt pauses the VM to make it.
        while lab.state("web01") != "paused" && maker.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        lab.signal("web01", "STOP");
        let is_half = lab.state("web01") == "paused" && lab.lists("web01", &name);
        let listed = adapter.list(&web01, &page, by()).await;
        let to = restore(&whole, &web01, "");
        let looked = adapter.baseline(&to, key(2), by()).await.is_ok();
        lab.signal("web01", "CONT");
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
        lab.virsh(&["snapshot-delete", "web01", &name]);
    }
    assert!(seen_half, "libvirt was seen in the middle of a snapshot");
    let listed = adapter.list(&web01, &page, by()).await.unwrap();
    assert_eq!(listed.backups.len(), 2, "whole now: {listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_test_driver_is_served_by_the_same_calls() {
    let Some(lab) = Lab::start() else { return };
    let config = Config {
        uri: "test:///default".to_owned(),
        ..lab.config()
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
    let all = adapter.list(&test, &page, by()).await.unwrap();
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
    let read = adapter.read(&update.target, by()).await.unwrap();
    assert_eq!(read.description.unwrap().as_str(), "first", "kept");
    assert_eq!(
        run(adapter, &on(&one, &test, Change::Delete), 5).await,
        Ok(()),
        "delete"
    );
    let gone = run(adapter, &on(&one, &test, Change::Delete), 6).await;
    assert_eq!(gone, Err(FaultKind::NoSuchBackup), "deleted");
}

/// A gateway on the lab, as a process.
fn serve(lab: &Lab) -> (Process, Client) {
    let path = lab.folder().join("snapgate.toml");
    let config = format!(
        r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "operations.db"
[[backend]]
name = "host"
kind = "libvirt"
vms = ["web01", "web02"]
[backend.libvirt]
libvirt_socket = "run/libvirt-sock"
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
backups = ["*"]
"#
    );
    fs::write(&path, config).unwrap();
    let process = Process::start(&["serve", "--config", path.to_str().unwrap()]);
    let client = Client::new(process.api, "alice", "secret");
    (process, client)
}

#[test]
fn the_four_requests_work_and_a_killed_gateway_tells_the_truth_afterwards() {
    let Some(lab) = Lab::start() else { return };
    let (process, client) = serve(&lab);
    let config = lab.folder().join("snapgate.toml");
    let (code, told) = probe(config.to_str().unwrap());
    assert_eq!(code, Some(0), "{told}");
    for line in [
        "backend host: QEMU",
        "  can create, update, delete, restore; cannot nothing",
        "  VM web01: web01 STARTED",
        "  VM web02: web02 STOPPED",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    lab.write(1);
    let new = r#"{"name": "nightly", "description": "before", "tags": ["a"]}"#;
    let created = client.finished(&client.post("/back_up?vm=web01", new).status_uri());
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    let counted = lab.counter("web01");
    let changed = client
        .put(&target, r#"{"name": "weekly", "tags": ["b", "c"]}"#)
        .json();
    assert_eq!(changed["progress"], 100, "answered at once: {changed}");
    assert_eq!(changed["status"], 200, "answered at once: {changed}");
    lab.write(2);
    crate::harness::eventually("it counts on", || lab.counter("web01") > counted + 1000);
    let paused = r#"{"after_restore": "paused", "note": "drill"}"#;
    let reply = client.post(&format!("{target}/restore"), paused);
    let status = client.finished(&reply.status_uri());
    assert_eq!(status["status"], 200, "{status}");
    assert_eq!(lab.state("web01"), "paused", "as the request said");
    assert_eq!(lab.read("web01.qcow2"), 1, "the disk is put back");
    assert!(lab.counter("web01") <= counted, "the memory is put back");
    lab.virsh(&["resume", "web01"]);
    let backup = client.get(&target).json();
    assert_eq!(backup["name"], "weekly", "{backup}");
    assert_eq!(backup["description"], "before", "{backup}");
    assert_eq!(backup["tags"], serde_json::json!(["b", "c"]), "{backup}");

    lab.write(3);
    let uri = client.post(&format!("{target}/restore"), "").status_uri();
    crate::harness::eventually("libvirt is at it", || lab.read("web01.qcow2") == 1);
    process.kill();
    let (process, client) = serve(&lab);
    let status = client.finished(&uri);
    assert_eq!(
        status["status"], 200,
        "it was carried out, and is known to be: {status}"
    );
    let status = client.finished(&client.delete(&target).status_uri());
    assert_eq!(status["status"], 200, "{status}");
    assert_eq!(client.get(&target).status, 404, "gone");
    assert!(
        lab.virsh(&["snapshot-list", "web01", "--name"])
            .trim()
            .is_empty(),
        "in libvirt, too"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}
