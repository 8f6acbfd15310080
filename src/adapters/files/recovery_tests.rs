//! What is found, refused and done after a restore that was undone, left half done, or overtaken by another program.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use super::crash_tests::exchanges;
use super::crash_tests::half_done;
use super::failpoints::test::FailMode;
use super::test_fixture::Fixture;
use super::test_fixture::by;
use super::test_fixture::create;
use super::test_fixture::key;
use super::test_fixture::restore;
use super::*;
use crate::model::Fault;
use crate::model::Timestamp;

/// The fault of a request, wherever it showed.
async fn fault(fixture: &Fixture, intent: &Intent, number: u64) -> Fault {
    match fixture.run(intent, number).await {
        Err(fault) | Ok(TaskState::Failed(fault)) => fault,
        Ok(other) => panic!("it did not fail: {other:?}"),
    }
}

async fn find(fixture: &Fixture, intent: &Intent, number: u64) -> FindOutcome {
    fixture
        .files
        .find_outcome(intent, key(number), None, by())
        .await
        .unwrap()
}

/// Gives a file other contents of the same length and the times that it had.
fn write_unseen(path: &Path, byte: u8) {
    let before = fs::metadata(path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[byte; 512], 128 << 10).unwrap();
    let times = fs::FileTimes::new()
        .set_accessed(before.accessed().unwrap())
        .set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
}

#[tokio::test]
async fn a_swap_that_cannot_be_finished_is_undone() {
    let (first, second) = exchanges().await;
    for (at, disk) in [(first, "a.raw"), (second, "b.raw")] {
        let fixture = Fixture::new();
        let backup = fixture.backup(1).await;
        fixture.fill(2);
        fixture.failpoints.set(FailMode::FailAt(at, Errno::PERM));
        let fault = fault(&fixture, &restore(&backup), 7).await;
        fixture.failpoints.set(FailMode::Never);
        assert_eq!(fault.kind, FaultKind::BackendDenied, "{disk}");
        assert!(fault.text.contains(disk), "names it: {}", fault.text);
        assert!(fault.text.contains("as it was before"), "{}", fault.text);
        assert_eq!(fixture.generations(), Some((2, 2)), "{disk}: all old");
        assert_eq!(
            fixture.leftovers(),
            Vec::<String>::new(),
            "{disk}: nothing is left"
        );
        let fixture = fixture.reopen().await;
        let found = find(&fixture, &restore(&backup), 7).await;
        assert!(matches!(found, FindOutcome::Failed(_)), "{disk}: {found:?}");
        assert_eq!(
            fixture.failure(&create("vm", 8, "x"), 8).await,
            None,
            "{disk}: a backup"
        );
        assert_eq!(
            fixture.failure(&restore(&backup), 9).await,
            None,
            "{disk}: restored"
        );
        assert_eq!(fixture.generations(), Some((1, 1)), "{disk}: all new");
    }
}

#[tokio::test]
async fn a_swap_that_cannot_be_undone_names_new_and_old_disks_and_is_never_finished_by_itself() {
    let (_, second) = exchanges().await;
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    fixture.failpoints.set(FailMode::DieAt(second));
    let half = fault(&fixture, &restore(&backup), 7).await;
    fixture.failpoints.set(FailMode::Never);
    let expected = "(restored: `a.raw`; not restored: `b.raw`)";
    assert!(half.text.contains(expected), "{}", half.text);
    let refused = fault(&fixture, &create("vm", 8, "x"), 8).await;
    assert_eq!(refused.kind, FaultKind::Conflict, "a backup is refused");
    assert!(refused.text.contains(expected), "{}", refused.text);
    let fixture = fixture.reopen().await;
    assert_eq!(
        fixture.failure(&create("vm", 8, "x"), 8).await,
        Some(FaultKind::Conflict),
        "again"
    );
    assert_eq!(fixture.generations(), Some((1, 2)), "nothing is finished");
    assert_eq!(
        fixture.failure(&restore(&backup), 9).await,
        None,
        "another restore"
    );
    assert_eq!(fixture.generations(), Some((1, 1)), "replaces every disk");
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
    assert_eq!(
        fixture.failure(&create("vm", 8, "x"), 8).await,
        None,
        "a backup is made"
    );
}

#[tokio::test]
async fn another_restore_that_fails_leaves_what_was_half_done() {
    let (fixture, backup, intent) = half_done().await;
    let (first, _) = exchanges().await;
    let mut failures = 0;
    // One step more or less does not matter: every one is tried.
    for at in first.saturating_sub(6)..first + 3 {
        fixture.failpoints.set(FailMode::FailAt(at, Errno::PERM));
        let end = fixture.run(&restore(&backup), 9).await;
        fixture.failpoints.set(FailMode::Never);
        if fixture.generations() == Some((1, 1)) {
            break;
        }
        if !matches!(end, Ok(TaskState::Done(_))) {
            failures += 1;
            assert_eq!(fixture.generations(), Some((1, 2)), "{at}: as it was");
            let refused = fixture.failure(&create("vm", 8, "x"), 8).await;
            assert_eq!(refused, Some(FaultKind::Conflict), "{at}: still half done");
            let staged = fs::metadata(fixture.disk(".snapgate-staging/a.raw"));
            assert!(staged.is_ok(), "{at}: the image from before is kept");
        }
    }
    drop(intent);
    assert!(failures > 3, "it failed {failures} times");
    assert_eq!(
        fixture.failure(&restore(&backup), 10).await,
        None,
        "at last"
    );
    assert_eq!(fixture.generations(), Some((1, 1)), "all new");
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn nothing_is_finished_over_disks_that_are_not_those_that_were_left() {
    type Change = fn(&Fixture);
    let rows: [(&str, Change); 6] = [
        ("the old disk was written to", |fixture| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(fixture.disk("b.raw"));
            file.unwrap().write_all_at(&[9], 1).unwrap();
        }),
        ("it was written to, and its times set back", |fixture| {
            write_unseen(&fixture.disk("b.raw"), 9);
        }),
        ("it was replaced", |fixture| {
            fs::copy(fixture.disk("b.raw"), fixture.disk(".new")).unwrap();
            fs::rename(fixture.disk(".new"), fixture.disk("b.raw")).unwrap();
        }),
        ("it was removed", |fixture| {
            fs::remove_file(fixture.disk("b.raw")).unwrap();
        }),
        ("the new disk was written to", |fixture| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(fixture.disk("a.raw"));
            file.unwrap().write_all_at(&[9], 1).unwrap();
        }),
        ("the new image is gone", |fixture| {
            fs::remove_file(fixture.disk(".snapgate-staging/b.raw")).unwrap();
        }),
    ];
    for (name, change) in rows {
        let (fixture, backup, intent) = half_done().await;
        change(&fixture);
        let seen = || ["a.raw", "b.raw"].map(|disk| fs::read(fixture.disk(disk)).ok());
        let before = seen();
        let found = find(&fixture, &intent, 7).await;
        let FindOutcome::Failed(fault) = found else {
            panic!("{name}: {found:?}");
        };
        for disk in ["`a.raw`", "`b.raw`"] {
            assert!(fault.text.contains(disk), "{name}: {}", fault.text);
        }
        let again = fixture.failure(&intent, 7).await;
        assert_eq!(again, Some(FaultKind::Conflict), "{name}: called again");
        assert!(seen() == before, "{name}: nothing is touched");
        assert_eq!(
            fixture.failure(&restore(&backup), 9).await,
            None,
            "{name}: restored again"
        );
        assert_eq!(fixture.generations(), Some((1, 1)), "{name}: all new");
    }
}

#[tokio::test]
async fn a_restore_that_was_killed_before_its_first_exchange_spares_disks_that_changed_since() {
    let (first, _) = exchanges().await;
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    let intent = restore(&backup);
    fixture.failpoints.set(FailMode::DieAt(first));
    drop(fixture.run(&intent, 7).await);
    // Before the next process looks at it.
    write_unseen(&fixture.disk("b.raw"), 9);
    let repaired = fs::read(fixture.disk("b.raw")).unwrap();
    let fixture = fixture.reopen().await;
    let found = find(&fixture, &intent, 7).await;
    assert!(matches!(found, FindOutcome::VmChanged), "{found:?}");
    let refused = fixture.failure(&intent, 7).await;
    assert_eq!(refused, Some(FaultKind::Conflict), "called again");
    assert!(
        fs::read(fixture.disk("b.raw")).unwrap() == repaired,
        "spared"
    );
    assert_eq!(
        fixture.failure(&create("vm", 8, "x"), 8).await,
        None,
        "a backup"
    );
    assert_eq!(
        fixture.failure(&restore(&backup), 9).await,
        None,
        "restored"
    );
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn a_finish_that_fails_says_what_is_left() {
    let (fixture, _, intent) = half_done().await;
    // Every step fails, those that would undo the swap too.
    fixture.failpoints.set(FailMode::DieAt(0));
    let fault = fault(&fixture, &intent, 7).await;
    fixture.failpoints.set(FailMode::Never);
    let expected = "(restored: `a.raw`; not restored: `b.raw`)";
    assert!(fault.text.contains(expected), "{}", fault.text);
    let found = find(&fixture, &intent, 7).await;
    assert!(matches!(found, FindOutcome::HalfDone(_)), "{found:?}");
}

#[tokio::test]
async fn a_new_disk_whose_contents_changed_unseen_is_not_finished_either() {
    let (fixture, _, intent) = half_done().await;
    write_unseen(&fixture.disk("a.raw"), 9);
    let fault = fault(&fixture, &intent, 7).await;
    assert!(fault.text.contains("`b.raw`"), "half done: {}", fault.text);
    let b = fs::read(fixture.disk("b.raw")).unwrap();
    assert_eq!(b[128 << 10], 2, "the other disk is left alone");
}

#[tokio::test]
async fn a_half_done_restore_of_an_earlier_version_is_reported_and_not_finished() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    fs::create_dir(fixture.disk(".snapgate-staging")).unwrap();
    fs::copy(
        fixture.vm_backups().join("1/disks/b.raw"),
        fixture.disk(".snapgate-staging/b.raw"),
    )
    .unwrap();
    fs::copy(
        fixture.vm_backups().join("1/disks/a.raw"),
        fixture.disk("a.raw"),
    )
    .unwrap();
    let journal = r#"{"format":1,"phase":"swap","request":"snapgate-7","backup":"1","disks":["a.raw","b.raw"]}"#;
    fs::write(fixture.disk(".snapgate-restore.json"), journal).unwrap();
    let fixture = fixture.reopen().await;
    let intent = restore(&backup);
    assert_eq!(
        key(7).to_string(),
        "snapgate-7",
        "the request of that journal"
    );
    let found = find(&fixture, &intent, 7).await;
    assert!(matches!(found, FindOutcome::Failed(_)), "{found:?}");
    assert_eq!(fixture.generations(), Some((1, 2)), "left alone");
    assert_eq!(fixture.failure(&intent, 9).await, None, "restored again");
    assert_eq!(fixture.generations(), Some((1, 1)), "all new");
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn a_restore_is_not_begun_again_over_disks_that_changed() {
    type Change = fn(&Fixture);
    let rows: [(&str, Option<Change>); 4] = [
        ("nothing", None),
        (
            "written to, and its times set back",
            Some(|fixture| write_unseen(&fixture.disk("b.raw"), 9)),
        ),
        (
            "another disk",
            Some(|fixture| fs::write(fixture.disk("c.raw"), "x").unwrap()),
        ),
        (
            "a disk less",
            Some(|fixture| fs::remove_file(fixture.disk("b.raw")).unwrap()),
        ),
    ];
    for (name, change) in rows {
        let fixture = Fixture::new();
        let backup = fixture.backup(1).await;
        fixture.fill(2);
        let intent = restore(&backup);
        let baseline = fixture.files.baseline(&intent, key(7), by()).await.unwrap();
        let fixture = fixture.reopen().await;
        if let Some(change) = change {
            change(&fixture);
        }
        let found = fixture
            .files
            .find_outcome(&intent, key(7), baseline.as_ref(), by())
            .await
            .unwrap();
        let begun = fixture
            .files
            .begin(&intent, key(7), baseline.as_ref(), by())
            .await;
        if change.is_none() {
            assert!(matches!(found, FindOutcome::NotBegun), "{name}: {found:?}");
            assert!(begun.is_ok(), "{name}: {begun:?}");
            continue;
        }
        assert!(matches!(found, FindOutcome::VmChanged), "{name}: {found:?}");
        let error = begun.unwrap_err();
        assert_eq!(
            (error.fault.kind, error.effect),
            (FaultKind::Conflict, Effect::None),
            "{name}"
        );
    }
}

/// A change of the VM by another program, after a request was checked and before it ends.
type Meanwhile = (&'static str, fn(&Fixture) -> Box<dyn std::any::Any>);

fn changes() -> [Meanwhile; 6] {
    [
        ("a new image was renamed into place", |fixture| {
            fs::copy(fixture.disk("b.raw"), fixture.disk(".new")).unwrap();
            fs::rename(fixture.disk(".new"), fixture.disk("b.raw")).unwrap();
            Box::new(fs::File::open(fixture.disk("b.raw")).unwrap())
        }),
        ("written to", |fixture| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(fixture.disk("b.raw"))
                .unwrap();
            file.write_all_at(&[9], 1).unwrap();
            Box::new(file)
        }),
        ("written to, and its times set back", |fixture| {
            write_unseen(&fixture.disk("b.raw"), 9);
            Box::new(())
        }),
        ("moved away and back", |fixture| {
            fs::rename(fixture.disk("b.raw"), fixture.disk(".aside")).unwrap();
            fs::rename(fixture.disk(".aside"), fixture.disk("b.raw")).unwrap();
            Box::new(())
        }),
        ("a disk was added", |fixture| {
            fs::write(fixture.disk("c.raw"), "x").unwrap();
            Box::new(())
        }),
        ("a disk was removed", |fixture| {
            fs::remove_file(fixture.disk("b.raw")).unwrap();
            Box::new(())
        }),
    ]
}

#[tokio::test]
async fn what_another_program_does_to_the_disks_meanwhile_ends_a_create_and_a_restore() {
    for (name, change) in changes() {
        for verb in ["create", "restore"] {
            let fixture = Fixture::new();
            let backup = fixture.backup(1).await;
            fixture.fill(2);
            let intent = match verb {
                "create" => create("vm", 2, "x"),
                _ => restore(&backup),
            };
            let request = Request::new(&intent, key(2), None);
            let started = fixture
                .files
                .executor
                .start(&request, Timestamp::default())
                .unwrap();
            let StartOutcome::Pending(work) = started else {
                panic!("{verb}: there is work to do")
            };
            let kept = change(&fixture);
            let seen = || ["a.raw", "b.raw"].map(|disk| fs::read(fixture.disk(disk)).ok());
            let before = seen();
            let problem = work(&Job::new(request.durable_id.clone(), true)).unwrap_err();
            let error = problem.into_adapter_error();
            assert_eq!(
                error.fault.kind,
                FaultKind::Busy,
                "{verb}, {name}: {error:?}"
            );
            assert!(seen() == before, "{verb}, {name}: nothing is touched");
            assert_eq!(
                fixture.leftovers(),
                Vec::<String>::new(),
                "{verb}, {name}: nothing is left"
            );
            assert_eq!(fixture.list().await.len(), 1, "{verb}, {name}: no backup");
            drop(kept);
        }
    }
}

#[tokio::test]
async fn locks_that_come_during_a_restore_are_seen() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    let intent = restore(&backup);
    let request = Request::new(&intent, key(2), None);
    let StartOutcome::Pending(work) = fixture
        .files
        .executor
        .start(&request, Timestamp::default())
        .unwrap()
    else {
        panic!("there is work to do")
    };
    let image = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(fixture.disk("b.raw"))
        .unwrap();
    // A byte that the protocol of QEMU does not use.
    let lock = nix::libc::flock {
        l_type: i16::try_from(nix::libc::F_WRLCK).unwrap(),
        l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap(),
        l_start: 5000,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&image, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let problem = work(&Job::new(request.durable_id, true)).unwrap_err();
    assert!(
        problem.to_string().contains("`b.raw`"),
        "names it: {problem}"
    );
    assert_eq!(fixture.generations(), Some((2, 2)), "nothing is touched");
}

#[tokio::test]
async fn staging_that_another_process_holds_is_left_alone() {
    let fixture = Fixture::new();
    let staging = fixture.disk(".snapgate-staging");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("a.raw"), "x").unwrap();
    let image = fs::File::open(staging.join("a.raw")).unwrap();
    image_lock::acquire(&image, image_lock::ImageUse::Replace).unwrap();
    let fixture = fixture.reopen().await;
    assert!(staging.join("a.raw").exists(), "in use");
    drop(image);
    let fixture = fixture.reopen().await;
    assert!(!staging.exists(), "no longer of use");
    drop(fixture);
}
