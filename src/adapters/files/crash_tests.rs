//! Work is stopped before each single change of the file system, or made to fail there, and then recovered.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::config;
use super::test_fixture::create;
use super::test_fixture::key;
use super::test_fixture::open_soon;
use super::test_fixture::restore;
use super::*;
use crate::adapters::files::failpoints::test::FailMode;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Patch;

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
async fn was_done(fixture: &Fixture, verb: &str) -> Option<bool> {
    let list = fixture.list().await;
    if list
        .iter()
        .any(|backup| backup.state != BackupState::Available)
    {
        return None;
    }
    let names: Vec<_> = list.iter().map(|backup| backup.name.as_str()).collect();
    match (verb, names.as_slice(), fixture.generations()?) {
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

async fn prepared() -> (Fixture, Backup) {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    (fixture, backup)
}

/// How many changes of the file system a verb makes when nothing fails.
async fn steps(verb: &str) -> Vec<&'static str> {
    let (fixture, backup) = prepared().await;
    fixture.failpoints.set(FailMode::Never);
    let failure = fixture.failure(&change(verb, &backup), NUMBER).await;
    assert_eq!(failure, None, "{verb} works");
    let taken = fixture.failpoints.steps_hit();
    assert_eq!(
        was_done(&fixture, verb).await,
        Some(true),
        "{verb} was done"
    );
    taken
}

#[tokio::test]
async fn killed_before_every_step_it_is_all_or_nothing_and_known_which() {
    for verb in ["create", "restore", "delete", "update"] {
        let count = steps(verb).await.len();
        let mut outcomes = [0, 0, 0];
        for at in 0..count {
            let (fixture, backup) = prepared().await;
            let intent = change(verb, &backup);
            fixture.failpoints.set(FailMode::DieAt(at));
            drop(fixture.run(&intent, NUMBER).await);
            let fixture = fixture.reopen().await;
            let found = fixture
                .files
                .find_outcome(&intent, key(NUMBER), None, by())
                .await
                .unwrap();
            let done = was_done(&fixture, verb).await;
            match (found, done) {
                (FindOutcome::Done(_), Some(true)) => outcomes[1] += 1,
                (FindOutcome::NotBegun, Some(false)) => outcomes[0] += 1,
                (FindOutcome::HalfDone(fault), None) if verb == "restore" => {
                    let expected = "(restored: `a.raw`; not restored: `b.raw`)";
                    assert!(fault.text.contains(expected), "{at}: {}", fault.text);
                    assert_eq!(
                        fixture.generations(),
                        Some((1, 2)),
                        "{at}: a look changes nothing"
                    );
                    outcomes[2] += 1;
                }
                (found, done) => panic!("{verb} at {at}: {found:?}, done {done:?}"),
            }
            if done.is_some() {
                assert_eq!(fixture.leftovers(), Vec::<String>::new(), "{verb} at {at}");
            }
            let again = fixture.failure(&intent, NUMBER).await;
            assert_eq!(again, None, "{verb} at {at}: sent again");
            assert_eq!(
                was_done(&fixture, verb).await,
                Some(true),
                "{verb} at {at}: once"
            );
            assert_eq!(
                fixture.leftovers(),
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
pub(super) async fn half_done() -> (Fixture, Backup, Intent) {
    let (fixture, backup) = prepared().await;
    let (_, second) = exchanges().await;
    let intent = restore(&backup);
    fixture.failpoints.set(FailMode::DieAt(second));
    drop(fixture.run(&intent, NUMBER).await);
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.generations(), Some((1, 2)), "half done");
    (fixture, backup, intent)
}

#[tokio::test]
async fn killed_while_a_half_done_restore_is_finished_it_still_ends_whole() {
    for at in 0..12 {
        let (fixture, _, intent) = half_done().await;
        fixture.failpoints.set(FailMode::DieAt(at));
        drop(fixture.run(&intent, NUMBER).await);
        let fixture = fixture.reopen().await;
        let found = fixture
            .files
            .find_outcome(&intent, key(NUMBER), None, by())
            .await
            .unwrap();
        match (&found, fixture.generations()) {
            (FindOutcome::HalfDone(_), Some((1, 2))) | (FindOutcome::Done(_), Some((1, 1))) => {}
            (found, generations) => panic!("{at}: {found:?} {generations:?}"),
        }
        assert_eq!(
            fixture.failure(&intent, NUMBER).await,
            None,
            "{at}: finished"
        );
        assert_eq!(fixture.generations(), Some((1, 1)), "{at}: all new");
        assert_eq!(
            fixture.leftovers(),
            Vec::<String>::new(),
            "{at}: nothing is left"
        );
    }
}

#[tokio::test]
async fn a_failure_at_every_step_is_reported_truthfully_and_cleaned_up() {
    for verb in ["create", "restore", "delete", "update"] {
        let count = steps(verb).await.len();
        for at in 0..count {
            let (fixture, backup) = prepared().await;
            let intent = change(verb, &backup);
            fixture.failpoints.set(FailMode::FailAt(at, Errno::NOSPC));
            let end = fixture.run(&intent, NUMBER).await;
            fixture.failpoints.set(FailMode::Never);
            let expected = match &end {
                Ok(TaskState::Done(_)) => Some(true),
                Err(fault) | Ok(TaskState::Failed(fault))
                    if fault.kind == FaultKind::StorageFull =>
                {
                    Some(false)
                }
                // It does not know, and must be asked.
                Err(_) | Ok(TaskState::Gone) => None,
                Ok(other) => panic!("{verb} at {at}: {other:?}"),
            };
            let found = fixture
                .files
                .find_outcome(&intent, key(NUMBER), None, by())
                .await
                .unwrap();
            let done = was_done(&fixture, verb).await;
            let done = done.unwrap_or_else(|| panic!("{verb} at {at}: neither old nor new"));
            assert_eq!(
                expected.unwrap_or(done),
                done,
                "{verb} at {at}: reported {end:?}"
            );
            assert_eq!(
                matches!(found, FindOutcome::Done(_)),
                done,
                "{verb} at {at}: found {found:?}"
            );
            let fixture = fixture.reopen().await;
            assert_eq!(fixture.leftovers(), Vec::<String>::new(), "{verb} at {at}");
        }
    }
}

#[tokio::test]
async fn everything_is_synced_before_the_rename_that_shows_it() {
    let made = steps("create").await;
    let show = made.iter().position(|step| *step == "rename").unwrap();
    let (before, after) = made.split_at(show);
    let files = before.iter().filter(|step| **step == "sync file").count();
    let dirs = before
        .iter()
        .filter(|step| **step == "sync directory")
        .count();
    assert_eq!(files, 3, "two disks and the manifest: {made:?}");
    assert_eq!(
        dirs, 3,
        "the VM's backups, the backup and its disks: {made:?}"
    );
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
    let (mut fixture, _, intent) = half_done().await;
    let image = fs::File::open(fixture.disk("b.raw")).unwrap();
    image_lock::acquire(&image, image_lock::ImageUse::Read).unwrap();
    assert_eq!(
        fixture.failure(&intent, NUMBER).await,
        Some(FaultKind::Busy),
        "in use"
    );
    assert_eq!(fixture.generations(), Some((1, 2)), "left alone");
    for name in ["the process that was refused", "the next one"] {
        let found = fixture
            .files
            .find_outcome(&intent, key(NUMBER), None, by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::HalfDone(_)),
            "{name}: {found:?}"
        );
        fixture = fixture.reopen().await;
    }
    drop(image);
    assert_eq!(fixture.failure(&intent, NUMBER).await, None, "free");
    assert_eq!(fixture.generations(), Some((1, 1)), "all new");
}

/// Unmounts it in the end.
pub(super) struct Mounted<'a>(pub(super) &'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "unmounted");
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
        let fixture = Fixture::new();
        let at = fixture.dir.path().join(full);
        let backup = if full == "backups" {
            None
        } else {
            Some(fixture.backup(1).await)
        };
        let Fixture {
            dir,
            failpoints,
            files,
        } = fixture;
        files.tasks.ended().await;
        drop(files);
        mount_small(&at);
        let mounted = Mounted(&at);
        let files = open_soon(config(&dir), &failpoints).await;
        let fixture = Fixture {
            dir,
            failpoints,
            files,
        };
        let intent = match &backup {
            None => {
                fs::write(fixture.disk("c.raw"), vec![1; 4 << 20]).unwrap();
                create("vm", 2, "x")
            }
            Some(backup) => {
                fs::write(fixture.disk("a.raw"), vec![2; 5 << 19]).unwrap();
                restore(backup)
            }
        };
        let failure = fixture.failure(&intent, 2).await;
        assert_eq!(failure, Some(FaultKind::StorageFull), "{full}");
        assert_eq!(
            fixture.leftovers(),
            Vec::<String>::new(),
            "{full}: cleaned up"
        );
        if backup.is_some() {
            let image = fs::read(fixture.disk("a.raw")).unwrap();
            assert!(image == vec![2; 5 << 19], "{full}: the old image");
        } else {
            assert_eq!(fixture.list().await, Vec::new(), "{full}: no backup");
        }
        fixture.files.tasks.ended().await;
        drop(fixture.files);
        drop(mounted);
    }
}

/// A protected backup and one more, of a VM that the operator then renamed.
async fn renamed_vm() -> (tempfile::TempDir, Config, Failpoints) {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    let patch = BackupPatch {
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    let protect = about(&backup, Change::Update(patch));
    assert_eq!(fixture.failure(&protect, 2).await, None, "protected");
    fixture.backup(3).await;
    let Fixture {
        dir,
        failpoints,
        files,
    } = fixture;
    files.tasks.ended().await;
    drop(files);
    let root = dir.path().join("root");
    fs::rename(root.join("vm"), root.join("web")).unwrap();
    let config = config(&dir);
    (dir, config, failpoints)
}

/// Repeats while programs that other tests start hold copies of the locks, between fork and exec.
async fn adopt(
    config: &Config,
    failpoints: &Failpoints,
    mode: FailMode,
) -> Result<Adopted, FolderError> {
    let [from, to] = ["vm", "web"].map(|id| VmId::new(id).unwrap());
    for _ in 0..100 {
        failpoints.set(mode);
        match operator_commands::adopt_with_failpoints(config, &from, &to, failpoints) {
            Err(FolderError::Files(FilesError::InUse(_))) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
    panic!("the directories stay in use")
}

#[tokio::test]
async fn an_interrupted_adoption_loses_no_backup_and_is_finished_by_the_next_one() {
    let (_dir, config, failpoints) = renamed_vm().await;
    let adopted = adopt(&config, &failpoints, FailMode::Never).await.unwrap();
    assert_eq!(adopted.changed, 2, "nothing fails");
    let count = failpoints.steps_hit().len();
    assert!(count >= 8, "a rename, and two manifests replaced: {count}");
    for at in 0..count {
        for mode in [FailMode::DieAt(at), FailMode::FailAt(at, Errno::NOSPC)] {
            let (dir, config, failpoints) = renamed_vm().await;
            let interrupted = adopt(&config, &failpoints, mode).await;
            assert!(interrupted.is_err(), "{mode:?}: {interrupted:?}");
            let again = adopt(&config, &failpoints, FailMode::Never).await.unwrap();
            assert_eq!(again.changed + again.kept, 2, "{mode:?}: every backup");
            failpoints.set(FailMode::Never);
            let files = open_soon(config, &failpoints).await;
            let page = Page {
                after: None,
                limit: 10,
            };
            let web = VmId::new("web").unwrap();
            let list = files.list_backups(&web, &page, by()).await.unwrap();
            let shown: Vec<_> = list
                .backups
                .iter()
                .map(|backup| (backup.name.as_str(), backup.state, backup.protected))
                .collect();
            let expected = [
                ("backup 1", BackupState::Available, true),
                ("backup 3", BackupState::Available, false),
            ];
            assert_eq!(shown, expected, "{mode:?}: available and protected");
            drop(dir);
        }
    }
}
