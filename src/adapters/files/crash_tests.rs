//! Work is stopped before each single change of the file system, or made to fail there, and then recovered.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use super::tests::Kit;
use super::tests::about;
use super::tests::by;
use super::tests::config;
use super::tests::create;
use super::tests::key;
use super::tests::open_soon;
use super::tests::restore;
use super::*;
use crate::adapters::files::faults::test::Mode;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;

/// Every request of this test is given this number.
const NUMBER: u64 = 7;

fn change(verb: &str, backup: &Backup) -> Intent {
    let patch = BackupPatch {
        name: Some(BackupName::new("renamed").unwrap()),
        ..BackupPatch::default()
    };
    match verb {
        "create" => create("vm", NUMBER, "second"),
        "restore" => restore(backup),
        "delete" => about(backup, Change::Delete),
        "update" => about(backup, Change::Update(patch)),
        other => panic!("no such verb: {other}"),
    }
}

/// Whether it was done, from what can be seen; `None` when what is seen is neither before nor after.
async fn was_done(kit: &Kit, verb: &str) -> Option<bool> {
    let list = kit.list().await;
    if list.iter().any(|it| it.state != BackupState::Available) {
        return None;
    }
    let names: Vec<_> = list.iter().map(|it| it.name.as_str()).collect();
    match (verb, names.as_slice(), kit.generations()?) {
        ("create", ["backup 1"], (2, 2)) => Some(false),
        ("create", ["backup 1", "second"], (2, 2)) => Some(true),
        ("restore", ["backup 1"], (2, 2)) => Some(false),
        ("restore", ["backup 1"], (1, 1)) => Some(true),
        ("delete" | "update", ["backup 1"], (2, 2)) => Some(false),
        ("delete", [], (2, 2)) => Some(true),
        ("update", ["renamed"], (2, 2)) => Some(true),
        _ => None,
    }
}

async fn prepared() -> (Kit, Backup) {
    let kit = Kit::new();
    let backup = kit.backup(1).await;
    kit.fill(2);
    (kit, backup)
}

/// How many changes of the file system a verb makes when nothing fails.
async fn steps(verb: &str) -> Vec<&'static str> {
    let (kit, backup) = prepared().await;
    kit.faults.set(Mode::Never);
    let failure = kit.failure(&change(verb, &backup), NUMBER).await;
    assert_eq!(failure, None, "{verb} works");
    let taken = kit.faults.taken();
    assert_eq!(was_done(&kit, verb).await, Some(true), "{verb} was done");
    taken
}

#[tokio::test]
async fn killed_before_every_step_it_is_all_or_nothing_and_known_which() {
    for verb in ["create", "restore", "delete", "update"] {
        let count = steps(verb).await.len();
        let mut outcomes = [0, 0, 0];
        for at in 0..count {
            let (kit, backup) = prepared().await;
            let intent = change(verb, &backup);
            kit.faults.set(Mode::DieAt(at));
            drop(kit.run(&intent, NUMBER).await);
            let kit = kit.reopen().await;
            let found = kit
                .files
                .find(&intent, key(NUMBER), None, by())
                .await
                .unwrap();
            let done = was_done(&kit, verb).await;
            match (found, done) {
                (FindOutcome::Done, Some(true)) => outcomes[1] += 1,
                (FindOutcome::NotBegun, Some(false)) => outcomes[0] += 1,
                (FindOutcome::HalfDone(fault), None) if verb == "restore" => {
                    let expected = "(restored: `a.raw`; not restored: `b.raw`)";
                    assert!(fault.text.contains(expected), "{at}: {}", fault.text);
                    assert_eq!(
                        kit.generations(),
                        Some((1, 2)),
                        "{at}: a look changes nothing"
                    );
                    outcomes[2] += 1;
                }
                (found, done) => panic!("{verb} at {at}: {found:?}, done {done:?}"),
            }
            if done.is_some() {
                assert_eq!(kit.leftovers(), Vec::<String>::new(), "{verb} at {at}");
            }
            let again = kit.failure(&intent, NUMBER).await;
            assert_eq!(again, None, "{verb} at {at}: sent again");
            assert_eq!(
                was_done(&kit, verb).await,
                Some(true),
                "{verb} at {at}: once"
            );
            assert_eq!(
                kit.leftovers(),
                Vec::<String>::new(),
                "{verb} at {at}: once"
            );
        }
        assert_eq!(outcomes[2] > 0, verb == "restore", "{verb}: half done");
        assert!(outcomes[0] > 0, "{verb}: some kills come before it is done");
        assert!(
            outcomes[1] > 0 || verb == "create" || verb == "update",
            "{verb}: some kills come after it is done"
        );
    }
}

/// At which steps of a restore the images are exchanged; the first exchange is that of the probes.
pub(super) async fn exchanges() -> (usize, usize) {
    let steps = steps("restore").await;
    let mut found = (0..).zip(&steps).filter(|(_, step)| **step == "exchange");
    let at: Vec<usize> = found.by_ref().map(|(at, _)| at).collect();
    assert_eq!(at.len(), 3, "the probes and two disks: {steps:?}");
    (at[1], at[2])
}

/// A VM of which `a.raw` is restored and `b.raw` is not, as a process leaves it that is killed.
pub(super) async fn half_done() -> (Kit, Backup, Intent) {
    let (kit, backup) = prepared().await;
    let (_, second) = exchanges().await;
    let intent = restore(&backup);
    kit.faults.set(Mode::DieAt(second));
    drop(kit.run(&intent, NUMBER).await);
    let kit = kit.reopen().await;
    assert_eq!(kit.generations(), Some((1, 2)), "half done");
    (kit, backup, intent)
}

#[tokio::test]
async fn killed_while_a_half_done_restore_is_finished_it_still_ends_whole() {
    for at in 0..12 {
        let (kit, _, intent) = half_done().await;
        kit.faults.set(Mode::DieAt(at));
        drop(kit.run(&intent, NUMBER).await);
        let kit = kit.reopen().await;
        let found = kit
            .files
            .find(&intent, key(NUMBER), None, by())
            .await
            .unwrap();
        match (&found, kit.generations()) {
            (FindOutcome::HalfDone(_), Some((1, 2))) | (FindOutcome::Done, Some((1, 1))) => {}
            (found, generations) => panic!("{at}: {found:?} {generations:?}"),
        }
        assert_eq!(kit.failure(&intent, NUMBER).await, None, "{at}: finished");
        assert_eq!(kit.generations(), Some((1, 1)), "{at}: all new");
        assert_eq!(
            kit.leftovers(),
            Vec::<String>::new(),
            "{at}: nothing is left"
        );
    }
}

#[tokio::test]
async fn failing_at_every_step_it_tells_the_truth_and_cleans_up() {
    for verb in ["create", "restore", "delete", "update"] {
        let count = steps(verb).await.len();
        for at in 0..count {
            let (kit, backup) = prepared().await;
            let intent = change(verb, &backup);
            kit.faults.set(Mode::FailAt(at, Errno::NOSPC));
            let end = kit.run(&intent, NUMBER).await;
            kit.faults.set(Mode::Never);
            let told = match &end {
                Ok(TaskState::Done) => Some(true),
                Err(fault) | Ok(TaskState::Failed(fault))
                    if fault.kind == FaultKind::StorageFull =>
                {
                    Some(false)
                }
                // It does not know, and must be asked.
                Err(_) | Ok(TaskState::Gone) => None,
                Ok(other) => panic!("{verb} at {at}: {other:?}"),
            };
            let found = kit
                .files
                .find(&intent, key(NUMBER), None, by())
                .await
                .unwrap();
            let done = was_done(&kit, verb).await;
            let done = done.unwrap_or_else(|| panic!("{verb} at {at}: neither old nor new"));
            assert_eq!(told.unwrap_or(done), done, "{verb} at {at}: told {end:?}");
            assert_eq!(
                matches!(found, FindOutcome::Done),
                done,
                "{verb} at {at}: found {found:?}"
            );
            let kit = kit.reopen().await;
            assert_eq!(kit.leftovers(), Vec::<String>::new(), "{verb} at {at}");
        }
    }
}

#[tokio::test]
async fn everything_is_synced_before_the_rename_that_shows_it() {
    let made = steps("create").await;
    let show = made.iter().position(|it| *it == "rename").unwrap();
    let (before, after) = made.split_at(show);
    let files = before.iter().filter(|it| **it == "sync file").count();
    let dirs = before.iter().filter(|it| **it == "sync directory").count();
    assert_eq!(files, 3, "two disks and the manifest: {made:?}");
    assert_eq!(dirs, 3, "the shelf, the disks and the backup: {made:?}");
    assert_eq!(
        after,
        ["rename", "sync directory"],
        "shown and made to last"
    );
    let restored = steps("restore").await;
    let at = |wanted: &str| -> Vec<usize> {
        let steps = restored.iter().enumerate();
        steps
            .filter_map(|(at, step)| (*step == wanted).then_some(at))
            .collect()
    };
    let (renames, exchanges) = (at("rename"), at("exchange"));
    assert_eq!(renames.len(), 2, "journal and proof: {restored:?}");
    assert_eq!(exchanges.len(), 3, "probes and two disks: {restored:?}");
    assert_eq!(
        restored[renames[0] + 1..exchanges[1]],
        ["sync directory"],
        "the journal lasts before a swap: {restored:?}"
    );
    assert_eq!(
        restored[exchanges[2] + 1..renames[1]],
        ["sync directory", "sync directory"],
        "the swap lasts before the proof: {restored:?}"
    );
    assert_eq!(
        restored.get(renames[1] + 1),
        Some(&"sync directory"),
        "the proof lasts before the old images go: {restored:?}"
    );
}

#[tokio::test]
async fn a_disk_in_use_keeps_a_half_done_restore_from_being_finished() {
    let (mut kit, _, intent) = half_done().await;
    let image = fs::File::open(kit.disk("b.raw")).unwrap();
    lock::take(&image, lock::Use::Read).unwrap();
    assert_eq!(
        kit.failure(&intent, NUMBER).await,
        Some(FaultKind::Busy),
        "in use"
    );
    assert_eq!(kit.generations(), Some((1, 2)), "left alone");
    for name in ["the process that was refused", "the next one"] {
        let found = kit
            .files
            .find(&intent, key(NUMBER), None, by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::HalfDone(_)),
            "{name}: {found:?}"
        );
        kit = kit.reopen().await;
    }
    drop(image);
    assert_eq!(kit.failure(&intent, NUMBER).await, None, "free");
    assert_eq!(kit.generations(), Some((1, 1)), "all new");
}

/// Unmounts it in the end.
pub(super) struct Mounted<'a>(pub(super) &'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(done.is_ok_and(|it| it.success()), "unmounted");
    }
}

/// Mounts a small file system there.
pub(super) fn mount_small(at: &Path) {
    let mut command = Command::new("mount");
    let command = command
        .args(["-t", "tmpfs", "-o", "size=3m", "none"])
        .arg(at);
    let mounted = command.output().unwrap();
    assert!(mounted.status.success(), "this user may mount");
}

#[tokio::test]
#[ignore = "needs the right to mount a file system"]
async fn a_full_file_system_breaks_nothing() {
    for full in ["backups", "root/vm"] {
        let kit = Kit::new();
        let at = kit.dir.path().join(full);
        let backup = if full == "backups" {
            None
        } else {
            Some(kit.backup(1).await)
        };
        let Kit { dir, faults, files } = kit;
        files.tasks.ended().await;
        drop(files);
        mount_small(&at);
        let mounted = Mounted(&at);
        let files = open_soon(config(&dir), &faults).await;
        let kit = Kit { dir, faults, files };
        let intent = match &backup {
            None => {
                fs::write(kit.disk("c.raw"), vec![1; 4 << 20]).unwrap();
                create("vm", 2, "x")
            }
            Some(backup) => {
                fs::write(kit.disk("a.raw"), vec![2; 5 << 19]).unwrap();
                restore(backup)
            }
        };
        let failure = kit.failure(&intent, 2).await;
        assert_eq!(failure, Some(FaultKind::StorageFull), "{full}");
        assert_eq!(kit.leftovers(), Vec::<String>::new(), "{full}: cleaned up");
        if backup.is_some() {
            let image = fs::read(kit.disk("a.raw")).unwrap();
            assert!(image == vec![2; 5 << 19], "{full}: the old image");
        } else {
            assert_eq!(kit.list().await, Vec::new(), "{full}: no backup");
        }
        kit.files.tasks.ended().await;
        drop(kit.files);
        drop(mounted);
    }
}
