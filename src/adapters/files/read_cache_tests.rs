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
use super::failpoints::test::FailMode;
use super::layout::backup_dir;
use super::read_cache::ReadCache;
use super::test_fixture::Fixture;
use super::test_fixture::about;
use super::test_fixture::by;
use super::test_fixture::config;
use super::test_fixture::open_soon_at;
use super::test_fixture::target;
use super::watch_table::WatchedRoot;
use super::*;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Timestamp;
use crate::runtime::ManualClock;

/// The fixture with backup 1, opened with that configuration under a clock of ours.
async fn fixture_with(change: impl FnOnce(&Fixture) -> Config) -> (Fixture, Arc<ManualClock>) {
    let fixture = Fixture::new();
    fixture.backup(1).await;
    let config = change(&fixture);
    let Fixture {
        dir,
        failpoints,
        files,
    } = fixture;
    drop(files);
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let files = open_soon_at(config, &failpoints, Arc::clone(&clock)).await;
    (
        Fixture {
            dir,
            failpoints,
            files,
        },
        clock,
    )
}

async fn fixture() -> (Fixture, Arc<ManualClock>) {
    fixture_with(|fixture| config(&fixture.dir)).await
}

fn cached_as(fixture: &Fixture, id: &str) -> Option<Backup> {
    fixture.files.executor.cached_backup(&target("vm", id))
}

fn cached_backup(fixture: &Fixture) -> Option<Backup> {
    cached_as(fixture, "1")
}

async fn read_backup(fixture: &Fixture) -> Result<Backup, FaultKind> {
    let read = fixture.files.read_backup(&target("vm", "1"), by()).await;
    read.map_err(|error| error.fault.kind)
}

/// The backup once it was read and is remembered.
async fn read_until_cached(fixture: &Fixture) -> Backup {
    for _ in 0..200 {
        let read = read_backup(fixture).await.expect("it is there");
        if let Some(cached_backup) = cached_backup(fixture) {
            assert_eq!(
                cached_backup, read,
                "what is cached_backup is what was read"
            );
            return cached_backup;
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
fn link(fixture: &Fixture, of: &str) {
    fs::hard_link(
        fixture.vm_backups().join(of),
        fixture.dir.path().join("link"),
    )
    .unwrap();
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Moves a file or directory out of the way.
fn away(fixture: &Fixture, what: &Path) -> std::path::PathBuf {
    let moved = fixture.dir.path().join("moved");
    fs::rename(what, &moved).unwrap();
    moved
}

#[tokio::test]
async fn a_backup_is_cached_after_it_was_read() {
    let (fixture, _) = fixture().await;
    assert_eq!(
        cached_backup(&fixture),
        None,
        "nothing is cached before the first read"
    );
    let first = read_until_cached(&fixture).await;
    assert_eq!(
        read_backup(&fixture).await.as_ref(),
        Ok(&first),
        "and answered"
    );
    assert_eq!(cached_as(&fixture, "2"), None, "not what was never read");
}

/// Something that concerns no backup.
type Harmless = (&'static str, fn(&Fixture));

#[tokio::test]
async fn unrelated_changes_keep_the_backup_cached() {
    let rows: [Harmless; 4] = [
        ("nothing", |_| {}),
        ("another VM comes and goes", |fixture| {
            let other = fixture.dir.path().join("root/vm2");
            fs::create_dir(&other).unwrap();
            fs::remove_dir(other).unwrap();
        }),
        ("a copy is being made", |fixture| {
            let new = fixture.vm_backups().join(".snapgate-new");
            fs::create_dir(&new).unwrap();
            fs::write(new.join("a.raw"), "data").unwrap();
            fs::remove_dir_all(new).unwrap();
        }),
        ("the VM writes to its disks", |fixture| fixture.fill(2)),
    ];
    let (fixture, _) = fixture().await;
    for (name, change) in rows {
        let mut kept = false;
        for _ in 0..20 {
            read_until_cached(&fixture).await;
            change(&fixture);
            kept |= cached_backup(&fixture).is_some();
        }
        assert!(kept, "{name}: forgotten");
    }
}

/// What there was before, a change behind the gateway's back, and what a read then says.
type Row = (
    &'static str,
    fn(&Fixture),
    fn(&Fixture),
    Result<(&'static str, BackupState), FaultKind>,
);

const AVAILABLE: Result<(&str, BackupState), FaultKind> = Ok(("backup 1", BackupState::Available));
const EDITED: Result<(&str, BackupState), FaultKind> = Ok(("backup X", BackupState::Available));
const BROKEN: Result<(&str, BackupState), FaultKind> = Ok(("backup 1", BackupState::Error));

async fn check(rows: &[Row]) {
    for (name, before, change, expected) in rows {
        let (fixture, _) = fixture().await;
        before(&fixture);
        read_until_cached(&fixture).await;
        change(&fixture);
        assert_eq!(cached_backup(&fixture), None, "{name}: still relied upon");
        let found = read_backup(&fixture).await;
        let found = found
            .as_ref()
            .map(|backup| (backup.name.as_str(), backup.state));
        assert_eq!(found, expected.as_ref().copied(), "{name}: read");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn every_change_of_a_file_is_seen() {
    let rows: [Row; 9] = [
        (
            "the rights of a manifest changed",
            |_| {},
            |fixture| allow(&fixture.vm_backups().join("1/manifest.json"), 0o400),
            AVAILABLE,
        ),
        (
            "a manifest edited in place, as long as before",
            |_| {},
            |fixture| edit(&fixture.vm_backups().join("1/manifest.json")),
            EDITED,
        ),
        (
            "a manifest edited by another name",
            |fixture| link(fixture, "1/manifest.json"),
            |fixture| edit(&fixture.dir.path().join("link")),
            EDITED,
        ),
        (
            "a manifest replaced",
            |fixture| {
                let (path, new) = (
                    fixture.vm_backups().join("1/manifest.json"),
                    fixture.dir.path(),
                );
                fs::copy(path, new.join("new")).unwrap();
                edit(&new.join("new"));
            },
            |fixture| {
                let new = fixture.dir.path().join("new");
                fs::rename(new, fixture.vm_backups().join("1/manifest.json")).unwrap();
            },
            EDITED,
        ),
        (
            "a manifest opened for writing and closed: it may have been changed through a memory map",
            |_| {},
            |fixture| {
                let path = fixture.vm_backups().join("1/manifest.json");
                drop(fs::OpenOptions::new().append(true).open(path).unwrap());
            },
            AVAILABLE,
        ),
        (
            "a disk cut short",
            |_| {},
            |fixture| cut(&fixture.vm_backups().join("1/disks/a.raw")),
            BROKEN,
        ),
        (
            "a disk cut short by another name",
            |fixture| link(fixture, "1/disks/a.raw"),
            |fixture| cut(&fixture.dir.path().join("link")),
            BROKEN,
        ),
        (
            "a disk removed",
            |_| {},
            |fixture| fs::remove_file(fixture.vm_backups().join("1/disks/b.raw")).unwrap(),
            BROKEN,
        ),
        (
            "a disk replaced by a shorter one",
            |fixture| fs::write(fixture.dir.path().join("new"), "short").unwrap(),
            |fixture| {
                let new = fixture.dir.path().join("new");
                fs::rename(new, fixture.vm_backups().join("1/disks/b.raw")).unwrap();
            },
            BROKEN,
        ),
    ];
    check(&rows).await;
}

/// Puts another backup in the place of backup 1.
fn replace(fixture: &Fixture) {
    let backup = fixture.vm_backups().join("1");
    let moved = away(fixture, &backup);
    fs::create_dir(&backup).unwrap();
    let manifest = backup.join("manifest.json");
    fs::copy(moved.join("manifest.json"), &manifest).unwrap();
    fs::rename(moved.join("disks"), backup.join("disks")).unwrap();
    edit(&manifest);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn every_change_of_a_directory_is_seen() {
    let gone = Err(FaultKind::NoSuchBackup);
    let rows: [Row; 9] = [
        (
            "the rights of the VM's directory changed",
            |_| {},
            |fixture| allow(&fixture.dir.path().join("root/vm"), 0o500),
            AVAILABLE,
        ),
        (
            "the disks moved, a link in their place",
            |_| {},
            |fixture| {
                let disks = fixture.vm_backups().join("1/disks");
                symlink(away(fixture, &disks), disks).unwrap();
            },
            BROKEN,
        ),
        (
            "the backup moved, a link in its place",
            |_| {},
            |fixture| {
                symlink(
                    away(fixture, &fixture.vm_backups().join("1")),
                    fixture.vm_backups().join("1"),
                )
                .unwrap();
            },
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
            |fixture| symlink(away(fixture, &fixture.vm_backups()), fixture.vm_backups()).unwrap(),
            Err(FaultKind::Conflict),
        ),
        (
            "the VM's directory gone",
            |_| {},
            |fixture| fs::remove_dir_all(fixture.dir.path().join("root/vm")).unwrap(),
            Err(FaultKind::NoSuchVm),
        ),
        (
            "another directory in its place",
            |_| {},
            |fixture| {
                let home = fixture.dir.path().join("root/vm");
                away(fixture, &home);
                fs::create_dir(home).unwrap();
            },
            AVAILABLE,
        ),
        (
            "all VMs moved away",
            |_| {},
            |fixture| drop(away(fixture, &fixture.dir.path().join("root"))),
            Err(FaultKind::Unavailable),
        ),
        (
            "all backups moved away",
            |_| {},
            |fixture| drop(away(fixture, &fixture.dir.path().join("backups"))),
            Err(FaultKind::Unavailable),
        ),
    ];
    check(&rows).await;
}

#[tokio::test]
async fn every_change_of_a_parent_directory_is_seen() {
    // Where the backups are, from where on there is another directory, and whether that comes by a link.
    let rows = [
        ("far/above/backups", "far", false),
        ("far/above/backups", "far/above", false),
        ("link", "link", true),
        ("link/backups", "link", true),
    ];
    for (path, changed, is_link) in rows {
        let (fixture, _) = fixture_with(|fixture| {
            let dir = fixture.dir.path();
            for folder in ["far/above", "other/above/backups", "other/backups"] {
                fs::create_dir_all(dir.join(folder)).unwrap();
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
        read_until_cached(&fixture).await;
        let (dir, changed) = (fixture.dir.path(), fixture.dir.path().join(changed));
        if is_link {
            symlink(dir.join("other"), dir.join("new")).unwrap();
            fs::rename(dir.join("new"), changed).unwrap();
        } else {
            away(&fixture, &changed);
            fs::rename(dir.join("other"), changed).unwrap();
        }
        assert_eq!(cached_backup(&fixture), None, "{path}: still relied upon");
        let read = read_backup(&fixture).await;
        assert_eq!(read, Err(FaultKind::Unavailable), "{path}: another one");
    }
}

#[tokio::test]
#[ignore = "needs the right to mount a file system"]
async fn what_is_mounted_over_it_shows() {
    let (fixture, _) = fixture().await;
    let first = read_until_cached(&fixture).await;
    let vm_backups = fixture.vm_backups();
    mount_small(&vm_backups);
    let mounted = Mounted(&vm_backups);
    assert_eq!(cached_backup(&fixture), None, "still relied upon");
    assert_eq!(
        read_backup(&fixture).await,
        Err(FaultKind::NoSuchBackup),
        "hidden"
    );
    drop(mounted);
    assert_eq!(read_backup(&fixture).await, Ok(first), "there again");
}

#[tokio::test]
async fn one_file_of_two_backups_is_watched_once() {
    let (fixture, _) = fixture().await;
    fixture.backup(2).await;
    let [one, two] = ["1", "2"].map(|id| fixture.vm_backups().join(id).join("disks/a.raw"));
    fs::remove_file(&two).unwrap();
    fs::hard_link(&one, &two).unwrap();
    read_until_cached(&fixture).await;
    let second = fixture
        .files
        .read_backup(&target("vm", "2"), by())
        .await
        .unwrap();
    assert_eq!(second.state, BackupState::Available, "whole");
    assert_eq!(
        cached_as(&fixture, "2"),
        None,
        "its events are of the first"
    );
    read_until_cached(&fixture).await;
    cut(&two);
    assert_eq!(cached_backup(&fixture), None, "the first is forgotten");
    for id in ["1", "2"] {
        let read = fixture
            .files
            .read_backup(&target("vm", id), by())
            .await
            .unwrap();
        assert_eq!(read.state, BackupState::Error, "{id} is broken");
    }
}

#[tokio::test]
async fn when_the_kernel_loses_count_everything_is_forgotten() {
    let (fixture, _) = fixture().await;
    let first = read_until_cached(&fixture).await;
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: u32 = most.trim().parse().unwrap();
    // Of another VM, so that none of these events concerns the backup.
    let [one, two] = ["other", "another"].map(|vm| fixture.dir.path().join("root").join(vm));
    fs::create_dir(&one).unwrap();
    for _ in 0..most / 4 + 1 {
        fs::rename(&one, &two).unwrap();
        fs::rename(&two, &one).unwrap();
    }
    edit(&fixture.vm_backups().join("1/manifest.json"));
    // Each look applies some of them.
    for look in 0..most {
        assert_eq!(cached_backup(&fixture), None, "look {look}");
    }
    let second = read_until_cached(&fixture).await;
    assert_ne!(first, second, "what was edited meanwhile");
}

#[tokio::test]
async fn what_cannot_be_watched_is_read() {
    let (mut fixture, mut steps) = (fixture().await, 0);
    loop {
        let (now, clock) = &fixture;
        now.failpoints.set(FailMode::FailAt(steps, Errno::NOSPC));
        let read = read_backup(now).await;
        assert!(read.is_ok(), "without watch {steps}");
        if now.failpoints.steps_hit().len() <= steps {
            break;
        }
        assert_eq!(cached_backup(now), None, "without watch {steps}");
        // Later there may be room.
        clock.advance(Duration::from_secs(11));
        read_until_cached(now).await;
        steps += 1;
        fixture = reopened(fixture).await;
    }
    assert!(
        steps >= 10,
        "both directories, a way and five of the backup: {steps}"
    );
}

async fn reopened((fixture, clock): (Fixture, Arc<ManualClock>)) -> (Fixture, Arc<ManualClock>) {
    let Fixture {
        dir,
        failpoints,
        files,
    } = fixture;
    drop(files);
    failpoints.set(FailMode::Never);
    let files = open_soon_at(config(&dir), &failpoints, Arc::clone(&clock)).await;
    (
        Fixture {
            dir,
            failpoints,
            files,
        },
        clock,
    )
}

/// Reads a backup twice, the second time after a change, which must hide the result of the first. `false` when
/// something else happened meanwhile.
fn overtaken(fixture: &Fixture, backup: &Backup) -> bool {
    let layout = fixture.files.executor.layout().unwrap();
    let (config, asked, now) = (
        config(&fixture.dir),
        target("vm", "1"),
        fixture.files.clock.instant(),
    );
    let held = WatchedRoot::new(&config.root, &layout.root)
        .zip(WatchedRoot::new(&config.backups, &layout.backups));
    let cache = ReadCache::new(
        held.map(<[WatchedRoot; 2]>::from),
        fixture.failpoints.clone(),
    );
    let vm_backups = layout.vm_backups(&asked.vm).unwrap().unwrap();
    let dir = backup_dir(&vm_backups, &asked.backup).unwrap().unwrap();
    let Some(first) = cache.begin(&asked, &dir, now) else {
        return false;
    };
    let other = cache.begin(&asked, &dir, now);
    assert!(other.is_none(), "one reads it, others only read");
    allow(&fixture.vm_backups().join("1/manifest.json"), 0o600);
    assert_eq!(cache.find(&asked), None, "the change is applied");
    let Some(second) = cache.begin(&asked, &dir, now) else {
        return false;
    };
    first.keep(backup);
    assert_eq!(cache.find(&asked), None, "of before the change");
    second.keep(backup);
    cache.find(&asked).as_ref() == Some(backup)
}

#[tokio::test]
async fn what_was_read_before_a_change_is_not_kept_after_it() {
    let (fixture, _) = fixture().await;
    let backup = read_backup(&fixture).await.unwrap();
    let kept = (0..20).any(|_| overtaken(&fixture, &backup));
    assert!(kept, "the second read is kept");
}

/// A read that begins after a change shows that change, whichever thread applies the events.
#[tokio::test]
async fn a_read_that_begins_after_a_change_shows_it() {
    let (fixture, _) = fixture().await;
    read_until_cached(&fixture).await;
    let (path, new) = (
        fixture.vm_backups().join("1/manifest.json"),
        fixture.dir.path().join("new"),
    );
    let text = fs::read_to_string(&path).unwrap();
    let (written, ended) = (AtomicU64::new(1), AtomicBool::new(false));
    let (disk, now, asked) = (
        &fixture.files.executor,
        fixture.files.clock.instant(),
        target("vm", "1"),
    );
    let recalls = AtomicU64::new(0);
    let reader = || {
        while !ended.load(Ordering::SeqCst) {
            let before = written.load(Ordering::SeqCst);
            let backup = if let Some(cached_backup) = disk.cached_backup(&asked) {
                recalls.fetch_add(1, Ordering::SeqCst);
                cached_backup
            } else {
                let layout = disk.layout().unwrap();
                layout.read_backup(&asked, now).unwrap()
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
    let (fixture, _) = fixture().await;
    let backup = read_until_cached(&fixture).await;
    let patch = BackupPatch {
        name: Some(BackupName::new("renamed").unwrap()),
        ..BackupPatch::default()
    };
    let update = about(&backup, Change::Update(patch));
    assert_eq!(fixture.failure(&update, 2).await, None, "updated");
    assert_eq!(cached_backup(&fixture), None, "not the one before");
    let renamed = read_until_cached(&fixture).await;
    assert_eq!(renamed.name.as_str(), "renamed", "the new manifest");
    let delete = about(&renamed, Change::Delete);
    assert_eq!(fixture.failure(&delete, 3).await, None, "deleted");
    assert_eq!(cached_backup(&fixture), None, "not any more");
    assert_eq!(
        read_backup(&fixture).await,
        Err(FaultKind::NoSuchBackup),
        "gone"
    );
}
