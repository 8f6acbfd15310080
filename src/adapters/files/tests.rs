use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::config;
use super::test_fixture::create;
use super::test_fixture::key;
use super::test_fixture::open;
use super::test_fixture::open_soon;
use super::test_fixture::restore;
use super::test_fixture::target;
use super::*;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Description;
use crate::model::Identity;
use crate::model::Patch;
use crate::model::RestoreOptions;
use crate::model::Timestamp;

#[tokio::test]
async fn a_restore_brings_both_disks_back_with_mode_and_holes() {
    let fixture = Fixture::new();
    let room = fs::metadata(fixture.disk("b.raw")).unwrap().blocks();
    let backup = fixture.backup(7).await;
    assert_eq!(backup.id.as_str(), "7", "the id that was minted");
    assert_eq!(backup.state, BackupState::Available, "whole");
    assert_eq!(backup.size, Some((5 << 19) + (64 << 10)), "bytes of data");
    let copy = fs::metadata(fixture.vm_backups().join("7/disks/b.raw")).unwrap();
    assert!(copy.blocks() * 512 <= 128 << 10, "the copy stays sparse");
    fixture.fill(2);
    fs::set_permissions(fixture.disk("a.raw"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(fixture.disk("vm.json"), r#"{"name": "Web"}"#).unwrap();
    let end = fixture.run(&restore(&backup), 8).await;
    assert!(matches!(end, Ok(TaskState::Done(_))), "restored: {end:?}");
    assert_eq!(fixture.generations(), Some((1, 1)), "both are as they were");
    let mode = fs::metadata(fixture.disk("a.raw")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o640, "mode of the replaced image");
    let restored = fs::metadata(fixture.disk("b.raw")).unwrap().blocks();
    assert!(restored * 512 <= 128 << 10, "sparse: {room} -> {restored}");
    let vm = fixture
        .files
        .read_vm(&VmId::new("vm").unwrap(), by())
        .await
        .unwrap();
    assert_eq!(vm.name, "Web", "vm.json is no disk and stays");
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn one_disk_and_an_emptied_vm_are_restored() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.disk("b.raw")).unwrap();
    let backup = fixture.backup(1).await;
    fs::remove_file(fixture.disk("a.raw")).unwrap();
    assert_eq!(
        fixture.failure(&restore(&backup), 2).await,
        None,
        "restored"
    );
    let bytes = fs::read(fixture.disk("a.raw")).unwrap();
    assert!(bytes == vec![1; 5 << 19], "the disk is back");
    fs::write(fixture.disk("later.raw"), "x").unwrap();
    let mut refused = Some(FaultKind::Busy);
    for number in 3..200 {
        refused = fixture.failure(&restore(&backup), number).await;
        if refused != Some(FaultKind::Busy) {
            break;
        }
        // A child of another test has every lock of this process until it is the program that it is to become.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        refused,
        Some(FaultKind::Conflict),
        "a disk that came later is not left beside older ones"
    );
}

#[tokio::test]
async fn a_flipped_byte_is_found_before_anything_is_touched() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    let image = fixture.vm_backups().join("1/disks/b.raw");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[9], 130 << 10).unwrap();
    assert_eq!(
        fixture.failure(&restore(&backup), 2).await,
        Some(FaultKind::Damaged),
        "checksum"
    );
    assert_eq!(fixture.generations(), Some((2, 2)), "nothing was touched");
    file.set_len(5).unwrap();
    assert_eq!(
        fixture.list().await[0].state,
        BackupState::Error,
        "a disk of another length shows"
    );
    assert_eq!(
        fixture.failure(&restore(&backup), 3).await,
        Some(FaultKind::Damaged),
        "length"
    );
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn damaged_manifests_break_neither_list_nor_rules() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.backup(1).await, fixture.backup(2).await);
    let forged = fs::read_to_string(fixture.vm_backups().join("2/manifest.json")).unwrap();
    let rows = [
        ("no JSON", "{".to_owned()),
        (
            "traversal",
            forged.replace("a.raw", "../../../root/vm/a.raw"),
        ),
        (
            "another VM's",
            forged.replace(r#""vm": "vm""#, r#""vm": "other""#),
        ),
        (
            "a later format",
            forged.replace(r#""format": 1"#, r#""format": 9"#),
        ),
    ];
    for (name, text) in rows {
        assert_ne!(text, forged, "{name}: is a change");
        fs::write(fixture.vm_backups().join("2/manifest.json"), text).unwrap();
        let states: Vec<_> = fixture
            .list()
            .await
            .iter()
            .map(|backup| backup.state)
            .collect();
        let expected = [BackupState::Available, BackupState::Error];
        assert_eq!(states, expected, "{name}: listed");
        for change in [Change::Delete, Change::Restore(RestoreOptions::default())] {
            let intent = about(&two, change);
            assert_eq!(
                fixture.failure(&intent, 9).await,
                Some(FaultKind::Damaged),
                "{name}: refused"
            );
        }
    }
    assert_eq!(
        fixture.failure(&restore(&one), 3).await,
        None,
        "the other works"
    );
}

#[tokio::test]
async fn planted_links_and_strange_ids_lead_nowhere() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(outside.path().join("vm")).unwrap();
    fs::write(outside.path().join("vm/secret.raw"), "secret").unwrap();
    let root = fixture.dir.path().join("root");
    symlink(outside.path().join("vm"), root.join("linked")).unwrap();
    symlink(root.join("vm"), root.join("inner")).unwrap();
    for id in [
        "linked", "inner", "a/b", "../vm", "/etc", ".hidden", "no-such", "vm/", "vm/.",
    ] {
        let vm = VmId::new(id).unwrap();
        let error = fixture.files.read_vm(&vm, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "VM {id}");
        assert_eq!(
            fixture.failure(&create(id, 5, "x"), 5).await,
            Some(FaultKind::NoSuchVm),
            "create in {id}"
        );
    }
    symlink(
        fixture.vm_backups().join("1"),
        fixture.vm_backups().join("2"),
    )
    .unwrap();
    for id in ["2", "../vm/1", ".snapgate-new", "1/", "no-such"] {
        let error = fixture
            .files
            .read_backup(&target("vm", id), by())
            .await
            .unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchBackup, "backup {id}");
    }
    assert_eq!(fixture.list().await.len(), 1, "links are not listed");
    symlink(outside.path().join("vm/secret.raw"), fixture.disk("c.raw")).unwrap();
    for (intent, number) in [(create("vm", 6, "x"), 6), (restore(&backup), 7)] {
        assert_eq!(
            fixture.failure(&intent, number).await,
            Some(FaultKind::Conflict),
            "a link among the disks: {number}"
        );
    }
    fs::remove_file(fixture.disk("c.raw")).unwrap();
    let made = Command::new("mkfifo").arg(fixture.disk("c.raw")).status();
    assert!(made.unwrap().success(), "a pipe");
    assert_eq!(
        fixture.failure(&create("vm", 6, "x"), 6).await,
        Some(FaultKind::Conflict),
        "a pipe among the disks"
    );
    fs::remove_file(fixture.disk("c.raw")).unwrap();
    fs::remove_file(fixture.vm_backups().join("1/disks/a.raw")).unwrap();
    symlink(
        fixture.disk("a.raw"),
        fixture.vm_backups().join("1/disks/a.raw"),
    )
    .unwrap();
    assert_eq!(
        fixture.failure(&restore(&backup), 8).await,
        Some(FaultKind::Damaged),
        "a link among the disks of the backup"
    );
    let secret = fs::read_to_string(outside.path().join("vm/secret.raw")).unwrap();
    assert_eq!(secret, "secret", "untouched");
}

#[tokio::test]
async fn requests_are_refused_with_their_reason() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.dir.path().join("root/bare")).unwrap();
    let backup = fixture.backup(1).await;
    let other = fixture.backup(2).await;
    let patch = |patch| about(&backup, Change::Update(patch));
    let name = BackupName::new(other.name.as_str()).unwrap();
    let stranger = Backup {
        identity: Identity::new("another".to_owned()),
        ..backup.clone()
    };
    let options = RestoreOptions([("fast".to_owned(), "yes".to_owned())].into());
    let rows = [
        ("no disks", create("bare", 10, "x"), FaultKind::Conflict),
        (
            "name of a create",
            create("vm", 11, "backup 1"),
            FaultKind::NameTaken,
        ),
        ("id of a create", create("vm", 1, "y"), FaultKind::Conflict),
        (
            "name of an update",
            patch(BackupPatch {
                name: Some(name),
                ..BackupPatch::default()
            }),
            FaultKind::NameTaken,
        ),
        (
            "another backup",
            restore(&stranger),
            FaultKind::NoSuchBackup,
        ),
        (
            "deleting another backup",
            about(&stranger, Change::Delete),
            FaultKind::NoSuchBackup,
        ),
        (
            "options",
            about(&backup, Change::Restore(options)),
            FaultKind::Invalid,
        ),
    ];
    for (number, (name, intent, expected)) in (50..).zip(rows) {
        assert_eq!(
            fixture.failure(&intent, number).await,
            Some(expected),
            "{name}"
        );
    }
    assert_eq!(fixture.list().await.len(), 2, "nothing was changed");
}

#[tokio::test]
async fn updates_protect_and_deletes_are_final_and_remembered() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    let update = |protected| {
        about(
            &backup,
            Change::Update(BackupPatch {
                name: Some(BackupName::new("renamed").unwrap()),
                description: Patch::Set(Description::new("why").unwrap()),
                tags: Patch::Clear,
                protected: Patch::Set(protected),
            }),
        )
    };
    assert_eq!(fixture.failure(&update(true), 2).await, None, "updated");
    let after = fixture.list().await.remove(0);
    assert_eq!(after.name.as_str(), "renamed", "name");
    assert_eq!(
        after.description.map(|description| description.to_string()),
        Some("why".to_owned()),
        "text"
    );
    assert!(
        after.tags.is_empty() && after.protected,
        "tags and protection"
    );
    assert_eq!(after.identity, backup.identity, "still the same backup");
    let delete = about(&backup, Change::Delete);
    assert_eq!(
        fixture.failure(&delete, 3).await,
        Some(FaultKind::Protected),
        "protected"
    );
    assert_eq!(fixture.failure(&update(false), 4).await, None, "freed");
    assert_eq!(fixture.failure(&delete, 5).await, None, "deleted");
    assert_eq!(fixture.list().await, Vec::new(), "gone");
    let fixture = fixture.reopen().await;
    let again = fixture
        .files
        .begin(&delete, key(5), None, by())
        .await
        .unwrap();
    assert_eq!(
        again,
        BeginOutcome::Done,
        "the same delete again, by a new process"
    );
    assert_eq!(
        fixture.failure(&delete, 6).await,
        Some(FaultKind::NoSuchBackup),
        "another delete"
    );
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "no data is left");
}

#[tokio::test]
async fn lists_are_paged_in_order_of_ids() {
    let fixture = Fixture::new();
    for number in [10, 9, 100] {
        fixture.backup(number).await;
    }
    let vm = VmId::new("vm").unwrap();
    let rows: [(Option<&str>, u16, &[&str], bool); 4] = [
        (None, 2, &["10", "100"], true),
        (Some("100"), 2, &["9"], false),
        (Some("10"), 1, &["100"], true),
        (Some("9"), 5, &[], false),
    ];
    for (after, limit, expected, more) in rows {
        let page = Page {
            after: after.map(|id| BackupId::new(id).unwrap()),
            limit,
        };
        let page = fixture.files.list_backups(&vm, &page, by()).await.unwrap();
        let ids: Vec<_> = page
            .backups
            .iter()
            .map(|backup| backup.id.as_str())
            .collect();
        assert_eq!(
            (ids.as_slice(), page.more),
            (expected, more),
            "after {after:?}"
        );
    }
}

#[tokio::test]
async fn a_second_gateway_and_nested_directories_are_refused() {
    let fixture = Fixture::new();
    let second = open(config(&fixture.dir), &Failpoints::default()).unwrap_err();
    assert!(matches!(second, FilesError::InUse(_)), "locked: {second}");
    let Fixture { dir, files, .. } = fixture;
    drop(files);
    let nested = Config {
        root: dir.path().join("root"),
        backups: dir.path().join("root/vm"),
        new_folders: true,
    };
    let nested = open(nested, &Failpoints::default()).unwrap_err();
    assert_eq!(nested.to_string(), FilesError::Nested.to_string(), "nested");
    drop(open_soon(config(&dir), &Failpoints::default()).await);
}

#[tokio::test]
async fn a_missing_root_is_unavailable_until_it_comes_back() {
    let fixture = Fixture::new();
    let (root, aside) = (
        fixture.dir.path().join("root"),
        fixture.dir.path().join("aside"),
    );
    fs::rename(&root, &aside).unwrap();
    let error = fixture.files.health(by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "missing");
    fs::rename(&aside, &root).unwrap();
    assert!(fixture.files.health(by()).await.is_ok(), "back again");
}

#[tokio::test]
async fn a_cancelled_create_and_restore_leave_nothing() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    fixture.fill(2);
    fs::write(fixture.disk("a.raw"), vec![2; 64 << 20]).unwrap();
    let image = fs::read(fixture.disk("a.raw")).unwrap();
    for (intent, number) in [(create("vm", 2, "x"), 2), (restore(&backup), 3)] {
        let request = Request::new(&intent, key(number), None);
        let disk = Arc::clone(&fixture.files.executor);
        let started = disk.start(&request, Timestamp::default()).unwrap();
        let StartOutcome::Pending(work) = started else {
            panic!("{number}: there is work to do")
        };
        let job = Job::new(request.durable_id.clone(), true);
        assert!(job.cancel(), "{number}: can be cancelled");
        let problem = work(&job).unwrap_err();
        assert!(
            matches!(problem, Problem::Cancelled),
            "{number}: {problem:?}"
        );
        assert_eq!(
            fixture.leftovers(),
            Vec::<String>::new(),
            "{number}: nothing left"
        );
        let found = fixture
            .files
            .find_outcome(&intent, key(number), None, by())
            .await;
        assert!(
            matches!(found, Ok(FindOutcome::NotBegun)),
            "{number}: {found:?}"
        );
    }
    assert!(
        fs::read(fixture.disk("a.raw")).unwrap() == image,
        "old image"
    );
    let BeginOutcome::Task(task) = fixture
        .files
        .begin(&create("vm", 5, "y"), key(5), None, by())
        .await
        .unwrap()
    else {
        panic!("a task")
    };
    fixture.files.cancel(&task, by()).await.unwrap();
    fixture.files.changed(&task).await;
    let state = fixture.files.poll(&task, by()).await.unwrap();
    let shown = fixture.list().await.len();
    let agree = matches!(
        (&state, shown),
        (TaskState::Cancelled, 1) | (TaskState::Done(None), 2)
    );
    assert!(agree, "{state:?} with {shown} backups");
    let gone = TaskRef::new("snapgate-999".to_owned()).unwrap();
    let state = fixture.files.poll(&gone, by()).await.unwrap();
    assert!(
        matches!(state, TaskState::Gone),
        "unknown tasks are gone: {state:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_whole_backups_only_while_others_are_made_and_deleted() {
    let fixture = Arc::new(Fixture::new());
    let writer = Arc::clone(&fixture);
    let writes = async move {
        for number in 1..12 {
            let backup = writer.backup(number).await;
            if number % 2 == 0 {
                let delete = about(&backup, Change::Delete);
                assert_eq!(writer.failure(&delete, 100 + number).await, None, "deleted");
            }
        }
    };
    let reader = Arc::clone(&fixture);
    let reads = async move {
        let mut seen = 0;
        while seen < 6 {
            let list = reader.list().await;
            for backup in &list {
                assert_eq!(backup.state, BackupState::Available, "whole: {backup:?}");
                assert_eq!(backup.size, Some((5 << 19) + (64 << 10)), "all disks");
            }
            seen = list.len();
        }
    };
    let both = futures_util::future::join(writes, reads);
    tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("both end");
}

#[tokio::test]
async fn a_store_that_counts_anew_makes_other_requests() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    let intent = create("vm", 1, "other");
    let fresh = fixture.files.baseline(&intent, key(1), by()).await.unwrap();
    let found = fixture
        .files
        .find_outcome(&intent, key(1), fresh.as_ref(), by())
        .await;
    assert!(
        matches!(found, Ok(FindOutcome::NotBegun)),
        "not this request's: {found:?}"
    );
    let first = restore(&backup);
    assert_eq!(fixture.failure(&first, 2).await, None, "restored");
    fixture.fill(2);
    let again = fixture
        .files
        .begin(&first, key(2), None, by())
        .await
        .unwrap();
    assert_eq!(again, BeginOutcome::Done, "the same request");
    assert_eq!(fixture.generations(), Some((2, 2)), "is not done twice");
    let fixture = fixture.reopen().await;
    let again = fixture
        .files
        .begin(&first, key(2), None, by())
        .await
        .unwrap();
    assert_eq!(again, BeginOutcome::Done, "nor by a new process");
    assert_eq!(fixture.generations(), Some((2, 2)), "is not done twice");
    let begun = fixture
        .files
        .begin(&first, key(2), fresh.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(begun, BeginOutcome::Task(_)),
        "another store's request is another one"
    );
}
