//! What a remembered backup must not hide: every change behind the back of the gateway.
//!
//! Other tests of this run mount file systems, after which everything is rightly forgotten: what shall be remembered is
//! waited for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::crash_tests::Mounted;
use super::crash_tests::mount_small;
use super::faults::test::Mode;
use super::places::backup_dir;
use super::recall::Recall;
use super::table::Held;
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

/// The kit with backup 1, opened with that configuration under a clock of ours.
async fn kit_with(change: impl FnOnce(&Kit) -> Config) -> (Kit, Arc<ManualClock>) {
    let kit = Kit::new();
    kit.backup(1).await;
    let config = change(&kit);
    let Kit { dir, faults, files } = kit;
    drop(files);
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let files = open_soon_at(config, &faults, Arc::clone(&clock)).await;
    (Kit { dir, faults, files }, clock)
}

async fn kit() -> (Kit, Arc<ManualClock>) {
    kit_with(|kit| config(&kit.dir)).await
}

fn recalled_as(kit: &Kit, id: &str) -> Option<Backup> {
    kit.files.disk.recalled(&target("vm", id))
}

fn recalled(kit: &Kit) -> Option<Backup> {
    recalled_as(kit, "1")
}

async fn read(kit: &Kit) -> Result<Backup, FaultKind> {
    let read = kit.files.read(&target("vm", "1"), by()).await;
    read.map_err(|error| error.fault.kind)
}

/// The backup once it was read and is remembered.
async fn remembered(kit: &Kit) -> Backup {
    for _ in 0..200 {
        let read = read(kit).await.expect("it is there");
        if let Some(recalled) = recalled(kit) {
            assert_eq!(recalled, read, "what is recalled is what was read");
            return recalled;
        }
    }
    panic!("it is never remembered")
}

fn edit(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains("backup 1"), "not edited before");
    fs::write(path, text.replace("backup 1", "backup X")).unwrap();
}

fn cut(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(5).unwrap();
}

/// Gives a file of the backups another name elsewhere.
fn link(kit: &Kit, of: &str) {
    fs::hard_link(kit.shelf().join(of), kit.dir.path().join("link")).unwrap();
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Moves a file or directory out of the way.
fn away(kit: &Kit, what: &Path) -> std::path::PathBuf {
    let moved = kit.dir.path().join("moved");
    fs::rename(what, &moved).unwrap();
    moved
}

#[tokio::test]
async fn what_was_read_is_remembered_at_once() {
    let (kit, _) = kit().await;
    assert_eq!(recalled(&kit), None, "nobody has asked yet");
    let first = remembered(&kit).await;
    assert_eq!(read(&kit).await.as_ref(), Ok(&first), "and answered");
    assert_eq!(recalled_as(&kit, "2"), None, "not what was never read");
}

/// Something that concerns no backup.
type Harmless = (&'static str, fn(&Kit));

#[tokio::test]
async fn what_happens_elsewhere_makes_nobody_forget() {
    let rows: [Harmless; 4] = [
        ("nothing", |_| {}),
        ("another VM comes and goes", |kit| {
            let other = kit.dir.path().join("root/vm2");
            fs::create_dir(&other).unwrap();
            fs::remove_dir(other).unwrap();
        }),
        ("a copy is being made", |kit| {
            let new = kit.shelf().join(".snapgate-new");
            fs::create_dir(&new).unwrap();
            fs::write(new.join("a.raw"), "data").unwrap();
            fs::remove_dir_all(new).unwrap();
        }),
        ("the VM writes to its disks", |kit| kit.fill(2)),
    ];
    let (kit, _) = kit().await;
    for (name, change) in rows {
        let mut kept = false;
        for _ in 0..20 {
            remembered(&kit).await;
            change(&kit);
            kept |= recalled(&kit).is_some();
        }
        assert!(kept, "{name}: forgotten");
    }
}

/// What there was before, a change behind the gateway's back, and what a read then says.
type Row = (
    &'static str,
    fn(&Kit),
    fn(&Kit),
    Result<(&'static str, BackupState), FaultKind>,
);

const AVAILABLE: Result<(&str, BackupState), FaultKind> = Ok(("backup 1", BackupState::Available));
const EDITED: Result<(&str, BackupState), FaultKind> = Ok(("backup X", BackupState::Available));
const BROKEN: Result<(&str, BackupState), FaultKind> = Ok(("backup 1", BackupState::Error));

async fn check(rows: &[Row]) {
    for (name, before, change, expected) in rows {
        let (kit, _) = kit().await;
        before(&kit);
        remembered(&kit).await;
        change(&kit);
        assert_eq!(recalled(&kit), None, "{name}: still relied upon");
        let found = read(&kit).await;
        let found = found.as_ref().map(|it| (it.name.as_str(), it.state));
        assert_eq!(found, expected.as_ref().copied(), "{name}: read");
    }
}

#[tokio::test]
async fn no_change_of_a_file_is_missed() {
    let rows: [Row; 9] = [
        (
            "the rights of a manifest changed",
            |_| {},
            |kit| allow(&kit.shelf().join("1/manifest.json"), 0o400),
            AVAILABLE,
        ),
        (
            "a manifest edited in place, as long as before",
            |_| {},
            |kit| edit(&kit.shelf().join("1/manifest.json")),
            EDITED,
        ),
        (
            "a manifest edited by another name",
            |kit| link(kit, "1/manifest.json"),
            |kit| edit(&kit.dir.path().join("link")),
            EDITED,
        ),
        (
            "a manifest replaced",
            |kit| {
                let (path, new) = (kit.shelf().join("1/manifest.json"), kit.dir.path());
                fs::copy(path, new.join("new")).unwrap();
                edit(&new.join("new"));
            },
            |kit| {
                let new = kit.dir.path().join("new");
                fs::rename(new, kit.shelf().join("1/manifest.json")).unwrap();
            },
            EDITED,
        ),
        (
            "a manifest opened for writing and closed: it may have been changed through a memory map",
            |_| {},
            |kit| {
                let path = kit.shelf().join("1/manifest.json");
                drop(fs::OpenOptions::new().append(true).open(path).unwrap());
            },
            AVAILABLE,
        ),
        (
            "a disk cut short",
            |_| {},
            |kit| cut(&kit.shelf().join("1/disks/a.raw")),
            BROKEN,
        ),
        (
            "a disk cut short by another name",
            |kit| link(kit, "1/disks/a.raw"),
            |kit| cut(&kit.dir.path().join("link")),
            BROKEN,
        ),
        (
            "a disk removed",
            |_| {},
            |kit| fs::remove_file(kit.shelf().join("1/disks/b.raw")).unwrap(),
            BROKEN,
        ),
        (
            "a disk replaced by a shorter one",
            |kit| fs::write(kit.dir.path().join("new"), "short").unwrap(),
            |kit| {
                let new = kit.dir.path().join("new");
                fs::rename(new, kit.shelf().join("1/disks/b.raw")).unwrap();
            },
            BROKEN,
        ),
    ];
    check(&rows).await;
}

/// Puts another backup in the place of backup 1.
fn replace(kit: &Kit) {
    let backup = kit.shelf().join("1");
    let moved = away(kit, &backup);
    fs::create_dir(&backup).unwrap();
    let manifest = backup.join("manifest.json");
    fs::copy(moved.join("manifest.json"), &manifest).unwrap();
    fs::rename(moved.join("disks"), backup.join("disks")).unwrap();
    edit(&manifest);
}

#[tokio::test]
async fn no_change_of_a_directory_is_missed() {
    let gone = Err(FaultKind::NoSuchBackup);
    let rows: [Row; 9] = [
        (
            "the rights of the VM's directory changed",
            |_| {},
            |kit| allow(&kit.dir.path().join("root/vm"), 0o500),
            AVAILABLE,
        ),
        (
            "the disks moved, a link in their place",
            |_| {},
            |kit| {
                let disks = kit.shelf().join("1/disks");
                symlink(away(kit, &disks), disks).unwrap();
            },
            BROKEN,
        ),
        (
            "the backup moved, a link in its place",
            |_| {},
            |kit| symlink(away(kit, &kit.shelf().join("1")), kit.shelf().join("1")).unwrap(),
            gone,
        ),
        (
            "the backup moved, a copy in its place",
            |_| {},
            replace,
            EDITED,
        ),
        (
            "all backups of the VM moved, a link in their place",
            |_| {},
            |kit| symlink(away(kit, &kit.shelf()), kit.shelf()).unwrap(),
            Err(FaultKind::Conflict),
        ),
        (
            "the VM's directory gone",
            |_| {},
            |kit| fs::remove_dir_all(kit.dir.path().join("root/vm")).unwrap(),
            Err(FaultKind::NoSuchVm),
        ),
        (
            "another directory in its place",
            |_| {},
            |kit| {
                let home = kit.dir.path().join("root/vm");
                away(kit, &home);
                fs::create_dir(home).unwrap();
            },
            AVAILABLE,
        ),
        (
            "all VMs moved away",
            |_| {},
            |kit| drop(away(kit, &kit.dir.path().join("root"))),
            Err(FaultKind::Unavailable),
        ),
        (
            "all backups moved away",
            |_| {},
            |kit| drop(away(kit, &kit.dir.path().join("backups"))),
            Err(FaultKind::Unavailable),
        ),
    ];
    check(&rows).await;
}

#[tokio::test]
async fn no_change_of_the_way_is_missed() {
    // Where the backups are, from where on there is another directory, and whether that comes by a link.
    let rows = [
        ("far/above/backups", "far", false),
        ("far/above/backups", "far/above", false),
        ("link", "link", true),
        ("link/backups", "link", true),
    ];
    for (path, changed, is_link) in rows {
        let (kit, _) = kit_with(|kit| {
            let dir = kit.dir.path();
            for it in ["far/above", "other/above/backups", "other/backups"] {
                fs::create_dir_all(dir.join(it)).unwrap();
            }
            fs::rename(dir.join("backups"), dir.join("far/above/backups")).unwrap();
            if is_link {
                let to = if path == "link" {
                    "far/above/backups"
                } else {
                    "far/above"
                };
                symlink(dir.join(to), dir.join("link")).unwrap();
            }
            Config {
                root: dir.join("root"),
                backups: dir.join(path),
                new_folders: true,
            }
        })
        .await;
        remembered(&kit).await;
        let (dir, changed) = (kit.dir.path(), kit.dir.path().join(changed));
        if is_link {
            symlink(dir.join("other"), dir.join("new")).unwrap();
            fs::rename(dir.join("new"), changed).unwrap();
        } else {
            away(&kit, &changed);
            fs::rename(dir.join("other"), changed).unwrap();
        }
        assert_eq!(recalled(&kit), None, "{path}: still relied upon");
        let read = read(&kit).await;
        assert_eq!(read, Err(FaultKind::Unavailable), "{path}: another one");
    }
}

#[tokio::test]
#[ignore = "needs the right to mount a file system"]
async fn what_is_mounted_over_it_shows() {
    let (kit, _) = kit().await;
    let first = remembered(&kit).await;
    let shelf = kit.shelf();
    mount_small(&shelf);
    let mounted = Mounted(&shelf);
    assert_eq!(recalled(&kit), None, "still relied upon");
    assert_eq!(read(&kit).await, Err(FaultKind::NoSuchBackup), "hidden");
    drop(mounted);
    assert_eq!(read(&kit).await, Ok(first), "there again");
}

#[tokio::test]
async fn one_file_of_two_backups_is_watched_once() {
    let (kit, _) = kit().await;
    kit.backup(2).await;
    let [one, two] = ["1", "2"].map(|id| kit.shelf().join(id).join("disks/a.raw"));
    fs::remove_file(&two).unwrap();
    fs::hard_link(&one, &two).unwrap();
    remembered(&kit).await;
    let second = kit.files.read(&target("vm", "2"), by()).await.unwrap();
    assert_eq!(second.state, BackupState::Available, "whole");
    assert_eq!(recalled_as(&kit, "2"), None, "its events are of the first");
    remembered(&kit).await;
    cut(&two);
    assert_eq!(recalled(&kit), None, "the first is told");
    for id in ["1", "2"] {
        let read = kit.files.read(&target("vm", id), by()).await.unwrap();
        assert_eq!(read.state, BackupState::Error, "{id} is broken");
    }
}

#[tokio::test]
async fn when_the_kernel_loses_count_everything_is_forgotten() {
    let (kit, _) = kit().await;
    let first = remembered(&kit).await;
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: u32 = most.trim().parse().unwrap();
    // Of another VM, so that none of these events concerns the backup.
    let [one, two] = ["other", "another"].map(|it| kit.dir.path().join("root").join(it));
    fs::create_dir(&one).unwrap();
    for _ in 0..most / 4 + 1 {
        fs::rename(&one, &two).unwrap();
        fs::rename(&two, &one).unwrap();
    }
    edit(&kit.shelf().join("1/manifest.json"));
    // Each heeds some of them.
    for look in 0..most {
        assert_eq!(recalled(&kit), None, "look {look}");
    }
    let second = remembered(&kit).await;
    assert_ne!(first, second, "what was edited meanwhile");
}

#[tokio::test]
async fn what_cannot_be_watched_is_read() {
    let (mut kit, mut steps) = (kit().await, 0);
    loop {
        let (now, clock) = &kit;
        now.faults.set(Mode::FailAt(steps, Errno::NOSPC));
        let read = read(now).await;
        assert!(read.is_ok(), "without watch {steps}");
        if now.faults.taken().len() <= steps {
            break;
        }
        assert_eq!(recalled(now), None, "without watch {steps}");
        // Later there may be room.
        clock.advance(Duration::from_secs(11));
        remembered(now).await;
        steps += 1;
        kit = reopened(kit).await;
    }
    assert!(
        steps >= 10,
        "both directories, a way and five of the backup: {steps}"
    );
}

async fn reopened((kit, clock): (Kit, Arc<ManualClock>)) -> (Kit, Arc<ManualClock>) {
    let Kit { dir, faults, files } = kit;
    drop(files);
    faults.set(Mode::Never);
    let files = open_soon_at(config(&dir), &faults, Arc::clone(&clock)).await;
    (Kit { dir, faults, files }, clock)
}

/// Reads a backup twice, the second time after a change, of which nothing may be told when the first ends. `false` when
/// something else happened meanwhile.
fn overtaken(kit: &Kit, backup: &Backup) -> bool {
    let places = kit.files.disk.places().unwrap();
    let (config, asked, now) = (
        config(&kit.dir),
        target("vm", "1"),
        kit.files.clock.instant(),
    );
    let held =
        Held::new(&config.root, &places.root).zip(Held::new(&config.backups, &places.backups));
    let recall = Recall::new(held.map(<[Held; 2]>::from), kit.faults.clone());
    let shelf = places.shelf(&asked.vm).unwrap().unwrap();
    let dir = backup_dir(&shelf, &asked.backup).unwrap().unwrap();
    let Some(first) = recall.begin(&asked, &dir, now) else {
        return false;
    };
    let other = recall.begin(&asked, &dir, now);
    assert!(other.is_none(), "one reads it, others only read");
    allow(&kit.shelf().join("1/manifest.json"), 0o600);
    assert_eq!(recall.find(&asked), None, "which heeds the change");
    let Some(second) = recall.begin(&asked, &dir, now) else {
        return false;
    };
    first.keep(backup);
    assert_eq!(recall.find(&asked), None, "of before the change");
    second.keep(backup);
    recall.find(&asked).as_ref() == Some(backup)
}

#[tokio::test]
async fn what_was_read_before_a_change_is_not_kept_after_it() {
    let (kit, _) = kit().await;
    let backup = read(&kit).await.unwrap();
    let kept = (0..20).any(|_| overtaken(&kit, &backup));
    assert!(kept, "the second read is kept");
}

/// A read that begins after a change shows that change, whoever heeds its events.
#[tokio::test]
async fn nobody_reads_what_was_before() {
    let (kit, _) = kit().await;
    remembered(&kit).await;
    let (path, new) = (
        kit.shelf().join("1/manifest.json"),
        kit.dir.path().join("new"),
    );
    let text = fs::read_to_string(&path).unwrap();
    let (written, ended) = (AtomicU64::new(1), AtomicBool::new(false));
    let (disk, now, asked) = (
        &kit.files.disk,
        kit.files.clock.instant(),
        target("vm", "1"),
    );
    let recalls = AtomicU64::new(0);
    let reader = || {
        while !ended.load(Ordering::SeqCst) {
            let before = written.load(Ordering::SeqCst);
            let backup = if let Some(recalled) = disk.recalled(&asked) {
                recalls.fetch_add(1, Ordering::SeqCst);
                recalled
            } else {
                let places = disk.places().unwrap();
                places.read(&asked, now).unwrap()
            };
            let number = backup.name.as_str().strip_prefix("backup ").unwrap();
            let number: u64 = number.parse().unwrap();
            assert!(number >= before, "{number} after {before} was written");
        }
    };
    let changes = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(reader);
        }
        let end = Duration::from_secs(1);
        let started = crate::runtime::SystemClock.instant();
        let mut number = 1;
        while crate::runtime::SystemClock
            .instant()
            .duration_since(started)
            < end
        {
            number += 1;
            fs::write(&new, text.replace("backup 1", &format!("backup {number}"))).unwrap();
            fs::rename(&new, &path).unwrap();
            written.store(number, Ordering::SeqCst);
            // As long as a few recalls take.
            let seen = recalls.load(Ordering::SeqCst);
            for _ in 0..1000 {
                if recalls.load(Ordering::SeqCst) > seen + 3 {
                    break;
                }
                std::thread::yield_now();
            }
        }
        ended.store(true, Ordering::SeqCst);
        number
    });
    let recalls = recalls.load(Ordering::SeqCst);
    assert!(
        changes > 10 && recalls > 10,
        "{changes} changes, {recalls} recalls"
    );
}

#[tokio::test]
async fn the_gateways_own_changes_show_at_once() {
    let (kit, _) = kit().await;
    let backup = remembered(&kit).await;
    let patch = BackupPatch {
        name: Some(BackupName::new("renamed").unwrap()),
        ..BackupPatch::default()
    };
    let update = about(&backup, Change::Update(patch));
    assert_eq!(kit.failure(&update, 2).await, None, "updated");
    assert_eq!(recalled(&kit), None, "not the one before");
    let renamed = remembered(&kit).await;
    assert_eq!(renamed.name.as_str(), "renamed", "the new manifest");
    let delete = about(&renamed, Change::Delete);
    assert_eq!(kit.failure(&delete, 3).await, None, "deleted");
    assert_eq!(recalled(&kit), None, "not any more");
    assert_eq!(read(&kit).await, Err(FaultKind::NoSuchBackup), "gone");
}
