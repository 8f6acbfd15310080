//! A stopped VM of QEMU whose disks a killed gateway left half done: finished by the next one, or reported as it is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::qemu;
use snapgate::model::*;
use snapgate::runtime::{SystemClock, Tasks};

use crate::conformance;
use crate::conformance::kills::kill_when_due;
use crate::conformance::{AdapterFixture as _, by, create, key, on, run};
use crate::qemu::private_qemu::{DISKS, PrivateQemu, backup, config, plain, restore, vm};

/// The VM with programs that stop before they change the second disk, once, until their gateway is killed.
struct Halfway(PrivateQemu);

const SCRIPT: &str = r#"#!/bin/sh
case "$*" in
*" snapshot "*-b.qcow2|snapshot*-b.qcow2)
  if [ -e "$0.armed" ]; then
    rm "$0.armed"
    : >"$0.due"
    exec sleep 600
  fi ;;
esac
exec qemu-img "$@"
"#;

impl Halfway {
    fn new() -> Self {
        let qemu = PrivateQemu::new();
        let script = qemu.image("qemu-img");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(qemu)
    }
}

impl conformance::AdapterFixture for Halfway {
    fn name(&self) -> &'static str {
        "qemu, stopped"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.adapter_after_restart()
    }
    fn vm(&self) -> VmId {
        vm()
    }
    fn write(&self, content: u64) {
        self.0.write(content);
        // What is to be changed next is what the gateway is killed over.
        if content == 2 {
            std::fs::write(self.0.image("qemu-img.armed"), "").unwrap();
        }
    }
    fn content(&self) -> u64 {
        self.0.content()
    }
    fn found(&self) -> Option<u64> {
        self.0.found()
    }
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        let folder = self.0.folder.path();
        let config = qemu::Config {
            qemu_img: folder.join("qemu-img"),
            ..config(folder)
        };
        let made = qemu::Qemu::new(config, SystemClock::shared(), Tasks::default());
        Arc::new(made)
    }
    fn is_kill_due(&self) -> bool {
        self.0.image("qemu-img.due").exists()
    }
    fn killed(&self) {
        std::fs::remove_file(self.0.image("qemu-img.due")).unwrap();
        self.0.let_go();
    }
}

#[apply(test)]
fn a_gateway_killed_between_the_disks_of_a_stopped_vm_has_its_work_finished() {
    let qemu = Halfway::new();
    for verb in [Verb::Create, Verb::Delete, Verb::Restore] {
        kill_when_due(&qemu, verb);
    }
}

/// Asks what became of the request, as a gateway that has just started.
async fn find(
    folder: &Path,
    intent: &Intent,
    number: u64,
    before: Option<&Evidence>,
) -> FindOutcome {
    let adapter = plain(folder);
    let found = adapter.find_outcome(intent, key(number), before, by());
    found.await.unwrap()
}

/// Asks again, as such a gateway, and follows it to its end.
async fn again(
    folder: &Path,
    intent: &Intent,
    number: u64,
    before: Option<&Evidence>,
) -> Result<(), FaultKind> {
    let adapter = plain(folder);
    conformance::run_from(&adapter, intent, number, before).await
}

/// How many snapshots of its own the gateway has left on the disks.
fn own(qemu: &PrivateQemu) -> usize {
    let count = |disk: &&str| {
        let mut list = Command::new("qemu-img");
        let said = list.args(["snapshot", "-l"]).arg(qemu.image(disk)).output();
        let said = said.unwrap();
        assert!(said.status.success(), "{disk}: {said:?}");
        String::from_utf8(said.stdout)
            .unwrap()
            .matches("snapgate-before-")
            .count()
    };
    DISKS.iter().map(count).sum()
}

/// A VM with a backup of when its disks held 1, whose disks hold 2 now, and a restore that is about to begin.
async fn before_a_restore(qemu: &PrivateQemu, number: u64) -> (Intent, Option<Evidence>, String) {
    qemu.write(1);
    let adapter = plain(qemu.folder.path());
    let taken = backup(&adapter, &format!("of-{number}"), number).await;
    qemu.write(2);
    let intent = restore(&taken);
    let before = adapter.baseline(&intent, key(number + 1), by()).await;
    (intent, before.unwrap(), taken.id.as_str().to_owned())
}

#[apply(test)]
async fn what_a_killed_gateway_did_to_the_disks_is_found_and_nothing_newer_is_thrown_away() {
    let mut qemu = PrivateQemu::new();
    let folder = qemu.folder.path().to_owned();
    let folder = folder.as_path();
    // Number, how many disks the killed gateway restored, what its VM wrote to which disk afterwards, the VM's disks at
    // the end, and the text of the failure: `None` for a success.
    type Row = (
        u64,
        usize,
        &'static [(usize, u64)],
        (u64, u64),
        Option<&'static str>,
    );
    let rows: [Row; 8] = [
        (10, 0, &[], (1, 1), None),
        (20, 1, &[], (1, 1), None),
        (30, 2, &[], (1, 1), None),
        (40, 2, &[(0, 3)], (3, 1), None),
        (50, 2, &[(0, 3), (1, 3)], (3, 3), None),
        (60, 0, &[(1, 3)], (2, 3), Some("")),
        (70, 1, &[(0, 3)], (3, 2), Some("different points in time")),
        (80, 1, &[(1, 3)], (1, 3), Some("different points in time")),
    ];
    for (number, restored, written, expected, failure) in rows {
        let (intent, before, tag) = before_a_restore(&qemu, number).await;
        for disk in &DISKS[..restored] {
            qemu.img(&["snapshot", "-a", &tag], disk);
        }
        for (disk, content) in written {
            qemu.fill(*disk, *content);
        }
        let found = find(folder, &intent, number + 1, before.as_ref()).await;
        let half = restored == 1 && failure.is_none();
        match (&found, failure) {
            // Never begun, and the VM was used since: not begun again.
            (FindOutcome::VmChanged, Some("")) => {}
            (FindOutcome::Failed(fault), Some(failure)) => {
                assert_eq!(fault.kind, FaultKind::Conflict, "{number}: {fault:?}");
                assert!(fault.text.contains(failure), "{number}: {fault:?}");
            }
            (FindOutcome::NotBegun, None) if restored == 0 => {}
            (FindOutcome::HalfDone(fault), None) if half => {
                assert!(fault.text.contains("incomplete"), "{fault:?}");
            }
            (FindOutcome::Done(_), None) if restored == 2 => {}
            other => panic!("{number}: {other:?}"),
        }
        let outcome = again(folder, &intent, number + 1, before.as_ref()).await;
        assert_eq!(
            outcome.err(),
            failure.map(|_| FaultKind::Conflict),
            "{number}: again"
        );
        let now = (qemu.filled(0), qemu.filled(1));
        assert_eq!(
            now, expected,
            "{number}: {restored} restored, then {written:?}"
        );
        if failure.is_none() {
            let found = find(folder, &intent, number + 1, before.as_ref()).await;
            assert!(
                matches!(found, FindOutcome::Done(_)),
                "{number}: at last: {found:?}"
            );
            assert_eq!(own(&qemu), 0, "{number}: what was left for this is gone");
        }
    }

    // A backup that is no longer whole is not put on the other disk.
    let (intent, before, tag) = before_a_restore(&qemu, 90).await;
    qemu.img(&["snapshot", "-a", &tag], DISKS[0]);
    qemu.img(&["snapshot", "-d", &tag], DISKS[1]);
    let found = find(folder, &intent, 91, before.as_ref()).await;
    assert!(
        matches!(found, FindOutcome::Failed(_)),
        "not whole: {found:?}"
    );
    assert_eq!((qemu.filled(0), qemu.filled(1)), (1, 2), "left alone");

    // Another snapshot put on by hand does not count as this one.
    let (intent, before, _) = before_a_restore(&qemu, 100).await;
    let adapter = plain(folder);
    let other = backup(&adapter, "other", 102).await;
    for disk in DISKS {
        qemu.img(&["snapshot", "-a", other.id.as_str()], disk);
    }
    let found = find(folder, &intent, 101, before.as_ref()).await;
    assert!(!matches!(found, FindOutcome::Done(_)), "by hand: {found:?}");

    started_meanwhile(&mut qemu).await;
}

/// The VM was started by an operator before the next gateway came: it runs, and its disks are left alone.
async fn started_meanwhile(qemu: &mut PrivateQemu) {
    let folder = qemu.folder.path().to_owned();
    let folder = folder.as_path();
    let rows = [
        (200, 0, Some("")),
        (210, 1, Some("different points in time")),
        (220, 2, None),
    ];
    for (number, restored, failure) in rows {
        let (intent, before, tag) = before_a_restore(qemu, number).await;
        for disk in &DISKS[..restored] {
            qemu.img(&["snapshot", "-a", &tag], disk);
        }
        qemu.start();
        let held = (qemu.filled(0), qemu.filled(1));
        let found = find(folder, &intent, number + 1, before.as_ref()).await;
        match (&found, failure) {
            (FindOutcome::VmChanged, Some("")) => {}
            (FindOutcome::Failed(fault), Some(failure)) => {
                assert!(fault.text.contains(failure), "{number}: {fault:?}");
            }
            (FindOutcome::Done(_), None) => {}
            other => panic!("{number}: {other:?}"),
        }
        let outcome = again(folder, &intent, number + 1, before.as_ref()).await;
        assert_eq!(
            outcome.err(),
            failure.map(|_| FaultKind::Conflict),
            "{number}: again"
        );
        assert_eq!(qemu.status(), "running", "{number}: left alone");
        assert_eq!(
            (qemu.filled(0), qemu.filled(1)),
            held,
            "{number}: left alone"
        );
        // Hidden from the gateway, QEMU itself guards the images.
        let socket = qemu.image("web01.qmp");
        std::fs::rename(&socket, qemu.image("hidden")).unwrap();
        let adapter = plain(folder);
        let hidden = adapter.find_outcome(&intent, key(number + 1), before.as_ref(), by());
        assert!(
            hidden.await.is_err(),
            "{number}: not known while they are in use"
        );
        std::fs::rename(qemu.image("hidden"), &socket).unwrap();
        assert_eq!(
            (qemu.filled(0), qemu.filled(1)),
            held,
            "{number}: left alone"
        );
        // What was left is no backup, and goes with the next change.
        let page = Page {
            after: None,
            limit: 100,
        };
        let listed = adapter.list_backups(&vm(), &page, by()).await.unwrap();
        let is_own = |backup: &Backup| backup.id.as_str().starts_with("snapgate-before");
        assert!(!listed.backups.iter().any(is_own), "{number}: {listed:?}");
        backup(&adapter, &format!("live-{number}"), number + 5).await;
        qemu.stop();
        assert_eq!(own(qemu), 0, "{number}: nothing of it is left");
        for disk in DISKS {
            qemu.img(&["check", "-q"], disk);
        }
        let fresh = plain(folder);
        let third = run(&fresh, &intent, number + 2).await;
        assert_eq!(third, Ok(()), "{number}: asked for again");
        assert_eq!(qemu.content(), 1, "{number}: restored");
    }
    qemu.start();
    assert_eq!(
        qemu.ask("query-jobs", json!({})),
        json!([]),
        "no job was begun"
    );
    qemu.stop();
}

#[apply(test)]
async fn a_backup_half_made_or_half_deleted_is_finished_by_the_next_gateway() {
    let qemu = PrivateQemu::new();
    let folder = qemu.folder.path();
    qemu.write(1);
    let adapter = plain(folder);
    let intent = create(&adapter, &vm(), "half", 1);
    let before = adapter.baseline(&intent, key(1), by()).await.unwrap();
    let tag = intent.target.backup.as_str();
    qemu.img(&["snapshot", "-c", tag], DISKS[0]);
    let shown = adapter.read_backup(&intent.target, by()).await.unwrap();
    assert_eq!(shown.state, BackupState::Error, "shown as no good");
    let found = find(folder, &intent, 1, before.as_ref()).await;
    assert!(
        matches!(found, FindOutcome::HalfDone(_)),
        "half made: {found:?}"
    );
    qemu.write(2);
    assert_eq!(
        again(folder, &intent, 1, before.as_ref()).await,
        Ok(()),
        "made anew"
    );
    let made = adapter.read_backup(&intent.target, by()).await.unwrap();
    assert_eq!(made.state, BackupState::Available, "whole");
    qemu.write(3);
    assert_eq!(run(&adapter, &restore(&made), 2).await, Ok(()), "restored");
    assert_eq!(qemu.content(), 2, "both disks are of when it was made anew");

    let delete = on(&made, &vm(), Change::Delete);
    let before = adapter.baseline(&delete, key(3), by()).await.unwrap();
    let found = find(folder, &delete, 3, before.as_ref()).await;
    assert!(
        matches!(found, FindOutcome::NotBegun),
        "not begun: {found:?}"
    );
    qemu.img(&["snapshot", "-d", tag], DISKS[0]);
    let found = find(folder, &delete, 3, before.as_ref()).await;
    assert!(
        matches!(found, FindOutcome::HalfDone(_)),
        "half gone: {found:?}"
    );
    assert_eq!(
        again(folder, &delete, 3, before.as_ref()).await,
        Ok(()),
        "finished"
    );
    let gone = adapter.read_backup(&delete.target, by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "gone");
    let found = find(folder, &delete, 3, before.as_ref()).await;
    assert!(
        matches!(found, FindOutcome::Done(_)),
        "found gone: {found:?}"
    );

    // An unfinished snapshot of another client with that name is not touched.
    qemu.img(&["snapshot", "-c", "snapgate-9"], DISKS[1]);
    let other = create(&adapter, &vm(), "nine", 9);
    assert_eq!(
        run(&adapter, &other, 9).await,
        Err(FaultKind::Conflict),
        "not ours"
    );
    let kept = adapter.read_backup(&other.target, by()).await.unwrap();
    assert_eq!(kept.state, BackupState::Error, "it is still there");
}
