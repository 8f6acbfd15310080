//! What a remembered backup must not hide: every change behind the back of the gateway.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;

use super::tests::Kit;
use super::tests::about;
use super::tests::by;
use super::tests::config;
use super::tests::open_soon_at;
use super::tests::target;
use super::*;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Timestamp;
use crate::runtime::ManualClock;

/// The kit with backup 1, under a clock that is so long after the last change.
async fn kit(later: Duration) -> (Kit, Arc<ManualClock>) {
    let Kit { dir, faults, files } = Kit::new();
    drop(files);
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let files = open_soon_at(config(&dir), &faults, Arc::clone(&clock)).await;
    let kit = Kit { dir, faults, files };
    kit.backup(1).await;
    let changed = ["", "1", "1/manifest.json"].map(|it| fs::metadata(kit.shelf().join(it)));
    let last = changed.into_iter().map(|it| it.unwrap().ctime()).max();
    clock.advance(Duration::from_secs(u64::try_from(last.unwrap()).unwrap()));
    clock.advance(later);
    (kit, clock)
}

fn recalled(kit: &Kit) -> Option<Backup> {
    let now = kit.files.clock.instant();
    kit.files.disk.recalled(&target("vm", "1"), now)
}

async fn read(kit: &Kit) -> Result<Backup, FaultKind> {
    let read = kit.files.read(&target("vm", "1"), by()).await;
    read.map_err(|error| error.fault.kind)
}

#[tokio::test]
async fn what_is_recalled_is_what_is_read() {
    let (kit, clock) = kit(Duration::from_secs(60)).await;
    assert_eq!(recalled(&kit), None, "nobody has asked yet");
    let first = read(&kit).await.unwrap();
    assert_eq!(recalled(&kit).as_ref(), Some(&first), "remembered");
    assert_eq!(read(&kit).await.as_ref(), Ok(&first), "and answered");
    clock.advance(Duration::from_secs(11));
    assert_eq!(recalled(&kit), None, "the kernel may have forgotten");
    assert_eq!(read(&kit).await.as_ref(), Ok(&first), "read again");
    assert_eq!(recalled(&kit), Some(first), "and remembered again");
}

#[tokio::test]
async fn what_changed_a_moment_ago_is_not_remembered() {
    let (kit, _) = kit(Duration::from_secs(1)).await;
    assert!(read(&kit).await.is_ok(), "it is there");
    assert_eq!(recalled(&kit), None, "another change may look the same");
}

/// A change behind the gateway's back, and what a read then says.
type Row = (
    &'static str,
    fn(&Kit),
    Result<(&'static str, BackupState), FaultKind>,
);

#[tokio::test]
async fn no_change_on_the_disk_is_missed() {
    let available = Ok(("backup 1", BackupState::Available));
    let broken = Ok(("backup 1", BackupState::Error));
    let rows: [Row; 8] = [
        ("nothing", |_| {}, available),
        (
            "a manifest edited in place, as long as before",
            |kit| {
                let path = kit.shelf().join("1/manifest.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replace("backup 1", "backup X")).unwrap();
            },
            Ok(("backup X", BackupState::Available)),
        ),
        (
            "a disk cut short",
            |kit| {
                let path = kit.shelf().join("1/disks/a.raw");
                let disk = fs::OpenOptions::new().write(true).open(path).unwrap();
                disk.set_len(5).unwrap();
            },
            broken,
        ),
        (
            "a disk removed",
            |kit| fs::remove_file(kit.shelf().join("1/disks/b.raw")).unwrap(),
            broken,
        ),
        (
            "the disks moved, a link in their place",
            |kit| {
                let (disks, moved) = (kit.shelf().join("1/disks"), kit.dir.path().join("moved"));
                fs::rename(&disks, &moved).unwrap();
                symlink(moved, disks).unwrap();
            },
            broken,
        ),
        (
            "the backup moved, a link in its place",
            |kit| {
                let (backup, moved) = (kit.shelf().join("1"), kit.dir.path().join("moved"));
                fs::rename(&backup, &moved).unwrap();
                symlink(moved, backup).unwrap();
            },
            Err(FaultKind::NoSuchBackup),
        ),
        (
            "the VM's directory gone",
            |kit| fs::remove_dir_all(kit.dir.path().join("root/vm")).unwrap(),
            Err(FaultKind::NoSuchVm),
        ),
        (
            "all backups moved away",
            |kit| {
                let path = kit.dir.path();
                fs::rename(path.join("backups"), path.join("moved")).unwrap();
            },
            Err(FaultKind::Unavailable),
        ),
    ];
    for (name, change, expected) in rows {
        let (kit, _) = kit(Duration::from_secs(60)).await;
        read(&kit).await.unwrap();
        assert!(recalled(&kit).is_some(), "{name}: remembered");
        change(&kit);
        let kept = recalled(&kit).is_some();
        assert_eq!(kept, name == "nothing", "{name}: still relied upon");
        let found = read(&kit).await;
        let found = found.as_ref().map(|it| (it.name.as_str(), it.state));
        assert_eq!(found, expected.as_ref().copied(), "{name}: read");
    }
}

#[tokio::test]
async fn the_gateways_own_changes_show_at_once() {
    let (kit, clock) = kit(Duration::from_secs(60)).await;
    let backup = read(&kit).await.unwrap();
    let patch = BackupPatch {
        name: Some(BackupName::new("renamed").unwrap()),
        ..BackupPatch::default()
    };
    let update = about(&backup, Change::Update(patch));
    assert_eq!(kit.failure(&update, 2).await, None, "updated");
    let renamed = read(&kit).await.unwrap();
    assert_eq!(renamed.name.as_str(), "renamed", "the new manifest");
    clock.advance(Duration::from_secs(3600));
    read(&kit).await.unwrap();
    assert_eq!(recalled(&kit), Some(renamed.clone()), "once settled");
    let delete = about(&renamed, Change::Delete);
    assert_eq!(kit.failure(&delete, 3).await, None, "deleted");
    assert_eq!(recalled(&kit), None, "not any more");
    assert_eq!(read(&kit).await, Err(FaultKind::NoSuchBackup), "gone");
}
