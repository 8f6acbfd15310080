//! What an answer from memory must not hide: every change behind the back of the gateway.
//!
//! Each answer is compared with what the folder holds at that moment, which `list_backups` reads anew.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

use super::failpoints::test::FailMode;
use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::create;
use super::test_fixture::target;
use super::*;
use crate::model::BackupFilter;
use crate::model::BackupName;
use crate::model::BackupOrder;
use crate::model::BackupPatch;
use crate::model::BackupSortKey;
use crate::model::BackupState;
use crate::model::NameFilter;
use crate::model::Tag;
use crate::model::limits;

/// More than are read each time.
const BACKUPS: u64 = 20;

fn vm() -> VmId {
    VmId::new("vm").unwrap()
}

/// Copies the backup as another program would: with an id and a name of its own.
fn copy_backup(from: &Path, number: u64) -> PathBuf {
    let to = from.with_file_name(number.to_string());
    let id = from.file_name().unwrap().to_str().unwrap();
    let manifest = fs::read_to_string(from.join("manifest.json")).unwrap();
    let manifest = manifest
        .replace(
            &format!("\"id\": \"{id}\""),
            &format!("\"id\": \"{number}\""),
        )
        .replace(&format!("\"backup {id}\""), &format!("\"backup {number}\""));
    fs::create_dir_all(to.join("disks")).unwrap();
    for disk in fs::read_dir(from.join("disks")).unwrap() {
        let disk = disk.unwrap();
        fs::copy(disk.path(), to.join("disks").join(disk.file_name())).unwrap();
    }
    fs::write(to.join("manifest.json"), manifest).unwrap();
    to
}

/// A VM with that many backups.
async fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.disk("a.raw"), [1; 4096]).unwrap();
    fs::write(fixture.disk("b.raw"), [1; 4096]).unwrap();
    fixture.backup(100).await;
    let first = fixture.vm_backups().join("100");
    for number in 101..100 + BACKUPS {
        copy_backup(&first, number);
    }
    fixture
}

fn queries() -> Vec<BackupQuery> {
    let query = || BackupQuery {
        count: true,
        ..BackupQuery::default()
    };
    let filter = |filter| BackupQuery { filter, ..query() };
    let order = |key, descending| BackupQuery {
        order: BackupOrder { key, descending },
        limit: 3,
        ..query()
    };
    vec![
        query(),
        order(BackupSortKey::Name, true),
        order(BackupSortKey::Created, false),
        order(BackupSortKey::Size, true),
        filter(BackupFilter {
            name: Some(NameFilter::Exact("other".to_owned())),
            ..BackupFilter::default()
        }),
        filter(BackupFilter {
            tags: vec![Tag::new("nightly").unwrap()],
            protected: Some(false),
            ..BackupFilter::default()
        }),
        filter(BackupFilter {
            state: Some(BackupState::Error),
            ..BackupFilter::default()
        }),
    ]
}

/// Compares every answer with the folder.
async fn compare(fixture: &Fixture, what: &str) {
    let page = Page {
        after: None,
        limit: limits::PAGE_MAX,
    };
    let all = fixture
        .files
        .list_backups(&vm(), &page, by())
        .await
        .unwrap();
    for query in queries() {
        let found = fixture.files.query_backups(&vm(), &query, by()).await;
        let expected = query.select(all.backups.iter().cloned());
        assert_eq!(found.unwrap(), expected, "{what}: {query:?}");
    }
}

/// Whether the backups are kept in memory.
fn is_indexed(fixture: &Fixture) -> bool {
    let layout = fixture.files.executor.layout().ok().unwrap();
    let query = BackupQuery::default();
    layout.query_backups(&vm(), &query).ok().unwrap().is_some()
}

#[tokio::test]
async fn every_change_beside_the_gateway_is_seen() {
    type Act = fn(&Path);
    let edit = |manifest: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(manifest).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(manifest, text.replace(from, to)).unwrap();
    };
    let fixture = fixture().await;
    compare(&fixture, "at first").await;
    let acts: [(&str, Act); 11] = [
        ("added", |all| drop(copy_backup(&all.join("100"), 200))),
        ("removed", |all| {
            fs::remove_dir_all(all.join("101")).unwrap();
        }),
        ("moved out", |all| {
            fs::rename(all.join("102"), all.join(".away")).unwrap();
        }),
        ("moved in", |all| {
            fs::rename(all.join(".away"), all.join("102")).unwrap();
        }),
        ("two exchanged", |all| {
            fs::rename(all.join("103"), all.join(".away")).unwrap();
            fs::rename(all.join("104"), all.join("103")).unwrap();
            fs::rename(all.join(".away"), all.join("104")).unwrap();
        }),
        ("image cut", |all| {
            fs::write(all.join("105/disks/a.raw"), [1; 7]).unwrap();
        }),
        ("image removed", |all| {
            fs::remove_file(all.join("106/disks/b.raw")).unwrap();
        }),
        ("folder of images removed", |all| {
            fs::remove_dir_all(all.join("107/disks")).unwrap();
        }),
        ("manifest removed", |all| {
            fs::remove_file(all.join("108/manifest.json")).unwrap();
        }),
        ("manifest without sense", |all| {
            fs::write(all.join("109/manifest.json"), "{").unwrap();
        }),
        ("a file in the place of a backup", |all| {
            fs::write(all.join("300"), "not a folder").unwrap();
        }),
    ];
    let all = fixture.vm_backups();
    for (what, act) in acts {
        act(&all);
        compare(&fixture, what).await;
    }
    edit(
        &all.join("110/manifest.json"),
        "\"backup 110\"",
        "\"other\"",
    );
    compare(&fixture, "renamed in place").await;
    let replaced = all.join("111/new");
    fs::copy(all.join("111/manifest.json"), &replaced).unwrap();
    edit(&replaced, "\"backup 111\"", "\"other\"");
    fs::rename(&replaced, all.join("111/manifest.json")).unwrap();
    compare(&fixture, "manifest replaced").await;
    fs::rename(&all, all.with_file_name("away")).unwrap();
    fs::create_dir(&all).unwrap();
    compare(&fixture, "another folder").await;
    fs::remove_dir(&all).unwrap();
    fs::rename(all.with_file_name("away"), &all).unwrap();
    compare(&fixture, "the folder is back").await;
}

#[tokio::test]
async fn every_change_by_the_gateway_is_seen() {
    let fixture = fixture().await;
    compare(&fixture, "at first").await;
    assert!(is_indexed(&fixture), "from memory");
    let made = fixture.backup(400).await;
    compare(&fixture, "created").await;
    let taken = create("vm", 401, "backup 105");
    assert_eq!(
        fixture.failure(&taken, 401).await,
        Some(FaultKind::NameTaken),
        "by a copy that another program made"
    );
    let patch = BackupPatch {
        name: BackupName::new("other").ok(),
        ..BackupPatch::default()
    };
    let update = about(&made, Change::Update(patch));
    assert_eq!(fixture.failure(&update, 402).await, None, "updated");
    compare(&fixture, "updated").await;
    let free = create("vm", 403, "backup 400");
    assert_eq!(
        fixture.failure(&free, 403).await,
        None,
        "the old name is free"
    );
    for (number, id) in [(404, "400"), (405, "403")] {
        let backup = target("vm", id);
        let backup = fixture.files.read_backup(&backup, by()).await.unwrap();
        let delete = about(&backup, Change::Delete);
        assert_eq!(fixture.failure(&delete, number).await, None, "deleted");
        compare(&fixture, "deleted").await;
    }
    let layout = fixture.files.executor.layout().ok().unwrap();
    let vm_backups = layout.vm_backups(&vm()).ok().unwrap().unwrap();
    let left = layout.tombstones(&vm(), &vm_backups).ok().unwrap();
    let listed = watched_vm::list_tombstones(&vm_backups).ok().unwrap();
    assert_eq!((left.len(), &left), (1, &listed), "the last delete alone");
}

#[tokio::test]
async fn what_cannot_be_watched_is_read() {
    let fixture = fixture().await;
    // The third watch cannot be set.
    fixture.failpoints.set(FailMode::FailAt(3, Errno::NOSPC));
    compare(&fixture, "no watches left").await;
    fixture.failpoints.set(FailMode::Never);
    assert!(!is_indexed(&fixture), "not tried again at once");
    compare(&fixture, "read").await;
    let taken = create("vm", 401, "backup 105");
    let failure = fixture.failure(&taken, 401).await;
    assert_eq!(failure, Some(FaultKind::NameTaken), "names are read");
    // A manifest with a second name may change without an event.
    let fixture = self::fixture().await;
    let manifest = fixture.vm_backups().join("107/manifest.json");
    fs::hard_link(&manifest, fixture.dir.path().join("linked")).unwrap();
    compare(&fixture, "a second name").await;
    assert!(!is_indexed(&fixture), "of a manifest with a second name");
}
