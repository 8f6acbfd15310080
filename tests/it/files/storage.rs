//! The files adapter on real file systems: what cannot be replaced, what is full, what is read-only, and what is not mounted.

use std::any::Any;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::BeginOutcome;
use snapgate::adapters::adapter::TaskState;
use snapgate::adapters::files::Config;
use snapgate::adapters::files::Files;
use snapgate::adapters::files::FilesError;
use snapgate::model::Backup;
use snapgate::model::Change;
use snapgate::model::Fault;
use snapgate::model::FaultKind;
use snapgate::model::Intent;
use snapgate::model::Page;
use snapgate::model::RestoreOptions;
use snapgate::model::VmId;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;
use tempfile::TempDir;

use crate::conformance::begin_as_planned;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::file_systems::Attribute;
use crate::file_systems::Bind;
use crate::file_systems::Loop;
use crate::file_systems::Volume;
use crate::file_systems::ran;
use crate::runner::skip;

const MIB: usize = 1 << 20;

/// A VM `1` with two disks of one MiB.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        fs::create_dir(site.root()).unwrap();
        fs::create_dir(site.backups()).unwrap();
        site
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("vms")
    }

    fn backups(&self) -> PathBuf {
        self.0.path().join("backups")
    }

    fn vm(&self) -> PathBuf {
        self.root().join("1")
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.vm().join(name)
    }

    fn config(&self) -> Config {
        Config {
            root: self.root(),
            backups: self.backups(),
            new_folders: true,
        }
    }

    /// A gateway's adapter, once the one before has let go.
    fn files(&self) -> Arc<dyn Adapter> {
        let mut tries = 0;
        loop {
            match Files::new(self.config(), SystemClock::shared(), Tasks::default()) {
                Ok(files) => return Arc::new(files),
                Err(error) => assert!(tries < 50, "{error}"),
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn fill(&self, byte: u8) {
        fs::create_dir_all(self.vm()).unwrap();
        for name in ["a.raw", "b.raw"] {
            fs::write(self.disk(name), vec![byte; MIB]).unwrap();
        }
    }

    /// The byte that each disk is full of.
    fn contents(&self) -> [u8; 2] {
        ["a.raw", "b.raw"].map(|name| {
            let bytes = fs::read(self.disk(name)).unwrap();
            assert!(
                bytes.iter().all(|byte| *byte == bytes[0]),
                "{name}: of two times"
            );
            bytes[0]
        })
    }

    /// What is in the VM's folder but for its disks and the proof of the last restore.
    fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.vm()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let known = ["a.raw", "b.raw", ".snapgate-restore.json", "lost+found"];
        names
            .filter(|name| !known.contains(&name.as_str()))
            .collect()
    }
}

fn vm() -> VmId {
    VmId::new("1").unwrap()
}

async fn outcome(files: &dyn Adapter, intent: &Intent, number: u64) -> Result<(), Fault> {
    let begun = begin_as_planned(files, intent, key(number), None, by()).await;
    let task = match begun.map_err(|error| error.fault)? {
        BeginOutcome::Done => return Ok(()),
        BeginOutcome::Task(task) => task,
    };
    files.changed(&task).await;
    match files.poll(&task, by()).await.unwrap() {
        TaskState::Done(_) => Ok(()),
        TaskState::Failed(fault) => Err(fault),
        other @ (TaskState::Running(_) | TaskState::Cancelled | TaskState::Gone) => {
            panic!("{other:?}")
        }
    }
}

async fn back_up(files: &dyn Adapter, name: &str, number: u64) -> Backup {
    let intent = create(files, &vm(), name, number);
    assert_eq!(
        outcome(files, &intent, number).await,
        Ok(()),
        "{name} is made"
    );
    files.read_backup(&intent.target, by()).await.unwrap()
}

fn to_restore(backup: &Backup) -> Intent {
    on(backup, &vm(), Change::Restore(RestoreOptions::default()))
}

async fn list(files: &dyn Adapter) -> Result<usize, FaultKind> {
    let page = Page {
        after: None,
        limit: 10,
    };
    let list = files.list_backups(&vm(), &page, by()).await;
    list.map(|page| page.backups.len())
        .map_err(|error| error.fault.kind)
}

type Obstacle = fn(&Site) -> Box<dyn Any>;

fn boxed<T: Any>(guard: T) -> Box<dyn Any> {
    Box::new(guard)
}

#[apply(test)]
async fn what_keeps_a_disk_from_being_replaced_is_found_before_anything_is_touched() {
    let rows: [(&str, Obstacle, &str); 6] = [
        (
            "immutable",
            |site| boxed(Attribute::set(&site.disk("b.raw"), "i")),
            "`b.raw`",
        ),
        (
            "append-only",
            |site| boxed(Attribute::set(&site.disk("b.raw"), "a")),
            "`b.raw`",
        ),
        (
            "a mount of itself",
            |site| boxed(Bind::new(&site.disk("b.raw"), &site.disk("b.raw"))),
            "`b.raw`",
        ),
        (
            "a mount of another file",
            |site| {
                let other = site.0.path().join("other.raw");
                fs::write(&other, vec![2; MIB]).unwrap();
                boxed(Bind::new(&other, &site.disk("b.raw")))
            },
            "`b.raw`",
        ),
        (
            "an immutable folder",
            |site| boxed(Attribute::set(&site.vm(), "i")),
            "The VM's directory",
        ),
        (
            "an append-only folder",
            |site| boxed(Attribute::set(&site.vm(), "a")),
            "The VM's directory",
        ),
    ];
    for (kind, mebibytes) in [("ext4", 64), ("xfs", 320), ("btrfs", 160)] {
        let site = Site::new();
        let _volume = Volume::new(kind, &site.root(), mebibytes);
        site.fill(1);
        let files = site.files();
        let files = files.as_ref();
        let backup = back_up(files, "one", 1).await;
        site.fill(2);
        for (number, (name, obstacle, named)) in (10..).zip(&rows) {
            let guard = obstacle(&site);
            let refused = outcome(files, &to_restore(&backup), number).await;
            let fault = refused.expect_err(name);
            assert_eq!(
                fault.kind,
                FaultKind::Conflict,
                "{kind}, {name}: {}",
                fault.text
            );
            assert!(fault.text.contains(named), "{kind}, {name}: {}", fault.text);
            assert!(
                fault.text.to_lowercase().contains("nothing was changed"),
                "{kind}, {name}: {}",
                fault.text
            );
            drop(guard);
            assert_eq!(
                site.contents(),
                [2, 2],
                "{kind}, {name}: nothing is touched"
            );
            assert_eq!(
                site.leftovers(),
                Vec::<String>::new(),
                "{kind}, {name}: nothing is left"
            );
        }
        assert_eq!(
            outcome(files, &to_restore(&backup), 50).await,
            Ok(()),
            "{kind}: without them"
        );
        assert_eq!(site.contents(), [1, 1], "{kind}: restored");
        assert_eq!(
            site.leftovers(),
            Vec::<String>::new(),
            "{kind}: nothing is left"
        );
    }
}

#[apply(test)]
async fn a_backup_of_which_a_part_cannot_be_removed_is_not_deleted() {
    let rows: [(&str, fn(&Path) -> PathBuf, &'static str); 4] = [
        ("a disk", |backup| backup.join("disks/b.raw"), "i"),
        ("the manifest", |backup| backup.join("manifest.json"), "i"),
        ("the folder", |backup| backup.to_owned(), "i"),
        (
            "the folder of all",
            |backup| backup.parent().unwrap().to_owned(),
            "a",
        ),
    ];
    let site = Site::new();
    let _volume = Volume::new("ext4", &site.backups(), 64);
    site.fill(1);
    let files = site.files();
    let files = files.as_ref();
    let backup = back_up(files, "one", 1).await;
    for (number, (name, part, flag)) in (10..).zip(rows) {
        let guard = Attribute::set(&part(&site.backups().join("1/1")), flag);
        let refused = outcome(files, &on(&backup, &vm(), Change::Delete), number).await;
        assert_eq!(refused.expect_err(name).kind, FaultKind::Conflict, "{name}");
        drop(guard);
        assert_eq!(
            outcome(files, &to_restore(&backup), number + 100).await,
            Ok(()),
            "{name}: whole"
        );
    }
    let deleted = outcome(files, &on(&backup, &vm(), Change::Delete), 50).await;
    assert_eq!(deleted, Ok(()), "without them");
}

#[apply(test)]
async fn a_read_only_root_can_be_backed_up_and_not_restored() {
    let site = Site::new();
    let volume = Volume::new("ext4", &site.root(), 64);
    site.fill(1);
    volume.remount("ro");
    let files = site.files();
    let backup = back_up(files.as_ref(), "one", 1).await;
    let refused = outcome(files.as_ref(), &to_restore(&backup), 2)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, FaultKind::BackendDenied, "{}", refused.text);
    assert!(refused.text.contains("read-only"), "{}", refused.text);
    let second = Config {
        backups: site.0.path().join("more"),
        ..site.config()
    };
    fs::create_dir(&second.backups).unwrap();
    let second = Files::new(second, SystemClock::shared(), Tasks::default());
    assert!(
        matches!(second, Err(FilesError::InUse("root"))),
        "locked all the same: {second:?}"
    );
    volume.remount("rw");
    assert_eq!(
        outcome(files.as_ref(), &to_restore(&backup), 3).await,
        Ok(()),
        "writable"
    );
}

#[apply(test)]
async fn however_full_the_storage_is_a_restore_is_all_or_nothing() {
    let site = Site::new();
    let _volume = Volume::new("ext4", &site.root(), 24);
    site.fill(1);
    let files = site.files();
    let backup = back_up(files.as_ref(), "one", 1).await;
    let ballast = site.root().join(".ballast");
    let (mut refused, mut restored) = (0, 0);
    for (number, free) in (10..).zip((0..2400).step_by(150)) {
        site.fill(2);
        drop(fs::remove_file(&ballast));
        let room = rustix::fs::statvfs(site.root()).unwrap();
        let bytes = (room.f_bavail * room.f_bsize).saturating_sub(free << 10);
        let filled = fs::File::create(&ballast).unwrap();
        rustix::fs::fallocate(&filled, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        let expected = match outcome(files.as_ref(), &to_restore(&backup), number).await {
            Ok(()) => {
                restored += 1;
                [1, 1]
            }
            Err(fault) => {
                assert_eq!(fault.kind, FaultKind::StorageFull, "{free}: {}", fault.text);
                refused += 1;
                [2, 2]
            }
        };
        assert_eq!(site.contents(), expected, "{free} KiB free");
        assert_eq!(
            site.leftovers(),
            Vec::<String>::new(),
            "{free} KiB free: nothing is left"
        );
    }
    assert!(
        refused > 2 && restored > 2,
        "both happen: {refused} and {restored}"
    );
}

#[apply(test)]
async fn a_loop_device_on_an_image_is_seen() {
    let site = Site::new();
    site.fill(1);
    let files = site.files();
    let files = files.as_ref();
    let backup = back_up(files, "one", 1).await;
    for reads_only in [false, true] {
        let device = Loop::new(&site.disk("b.raw"), reads_only);
        let number = if reads_only { 10 } else { 20 };
        let created = outcome(
            files,
            &create(files, &vm(), &number.to_string(), number),
            number,
        )
        .await;
        assert_eq!(
            created.is_ok(),
            reads_only,
            "a copy beside a reader: {created:?}"
        );
        let refused = outcome(files, &to_restore(&backup), number + 1)
            .await
            .unwrap_err();
        assert_eq!(refused.kind, FaultKind::Busy, "{}", refused.text);
        assert!(
            refused.text.contains("`b.raw`") && refused.text.contains("loop"),
            "{}",
            refused.text
        );
        drop(device);
    }
    assert_eq!(
        outcome(files, &to_restore(&backup), 30).await,
        Ok(()),
        "detached"
    );
}

#[apply(test)]
async fn storage_that_is_not_mounted_is_unavailable_and_never_empty() {
    for folder in ["vms", "backups"] {
        let site = Site::new();
        let path = site.0.path().join(folder);
        let mut volume = Volume::new("ext4", &path, 64);
        site.fill(1);
        let files = site.files();
        let backup = back_up(files.as_ref(), "one", 1).await;
        assert_eq!(list(files.as_ref()).await, Ok(1), "{folder}: mounted");
        volume.unmount();
        assert_eq!(
            list(files.as_ref()).await,
            Err(FaultKind::Unavailable),
            "{folder}: gone"
        );
        let target = create(files.as_ref(), &vm(), "two", 2).target;
        let read = files.read_backup(&target, by()).await.unwrap_err();
        assert_eq!(
            read.fault.kind,
            FaultKind::Unavailable,
            "{folder}: no backup is missing"
        );
        let read = files.read_vm(&vm(), by()).await.unwrap_err();
        assert_eq!(
            read.fault.kind,
            FaultKind::Unavailable,
            "{folder}: no VM is missing"
        );
        let made = outcome(files.as_ref(), &create(files.as_ref(), &vm(), "two", 2), 2).await;
        assert_eq!(
            made.unwrap_err().kind,
            FaultKind::Unavailable,
            "{folder}: create"
        );
        drop(files);
        // As a gateway finds it that starts before the file system is mounted.
        let config = Config {
            new_folders: false,
            ..site.config()
        };
        let files = Files::new(config, SystemClock::shared(), Tasks::default()).unwrap();
        let files: Arc<dyn Adapter> = Arc::new(files);
        assert_eq!(
            list(files.as_ref()).await,
            Err(FaultKind::Unavailable),
            "{folder}: at the start"
        );
        let made = outcome(files.as_ref(), &create(files.as_ref(), &vm(), "two", 2), 2).await;
        assert_eq!(
            made.unwrap_err().kind,
            FaultKind::Unavailable,
            "{folder}: create"
        );
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            0,
            "{folder}: nothing is written below the mount"
        );
        volume.mount();
        assert_eq!(
            list(files.as_ref()).await,
            Ok(1),
            "{folder}: mounted again, without a new start"
        );
        assert_eq!(
            outcome(files.as_ref(), &to_restore(&backup), 3).await,
            Ok(()),
            "{folder}: all well"
        );
        drop(files);
    }
}

#[apply(test)]
async fn a_file_system_of_one_vm_that_is_not_mounted_is_missed() {
    for folder in ["vms", "backups"] {
        let site = Site::new();
        let path = site.0.path().join(folder).join("1");
        fs::create_dir_all(&path).unwrap();
        let mut volume = Volume::new("ext4", &path, 64);
        site.fill(1);
        let files = site.files();
        let backup = back_up(files.as_ref(), "one", 1).await;
        assert_eq!(
            list(files.as_ref()).await,
            Ok(1),
            "{folder}: lost+found is no backup and no disk"
        );
        volume.unmount();
        for number in [2, 3] {
            assert_eq!(
                list(files.as_ref()).await,
                Err(FaultKind::Unavailable),
                "{folder}: gone"
            );
            let made = outcome(
                files.as_ref(),
                &create(files.as_ref(), &vm(), "two", number),
                number,
            )
            .await;
            let fault = made.unwrap_err();
            assert_eq!(fault.kind, FaultKind::Unavailable, "{folder}: create");
            assert!(
                fault.text.contains("not mounted"),
                "{folder}: {}",
                fault.text
            );
            let restored = outcome(files.as_ref(), &to_restore(&backup), 10 + number).await;
            assert_eq!(
                restored.unwrap_err().kind,
                FaultKind::Unavailable,
                "{folder}: restore"
            );
        }
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            0,
            "{folder}: nothing is written below the mount"
        );
        volume.mount();
        assert_eq!(
            outcome(files.as_ref(), &to_restore(&backup), 20).await,
            Ok(()),
            "{folder}: there again"
        );
        drop(files);
    }
}

#[apply(test)]
async fn one_root_is_locked_by_whatever_path() {
    let site = Site::new();
    site.fill(1);
    let files = site.files();
    for folder in ["bound", "kept"] {
        fs::create_dir(site.0.path().join(folder)).unwrap();
    }
    let _bind = Bind::new(&site.root(), &site.0.path().join("bound"));
    let second = Config {
        root: site.0.path().join("bound"),
        backups: site.0.path().join("kept"),
        new_folders: true,
    };
    let second = Files::new(second, SystemClock::shared(), Tasks::default());
    assert!(
        matches!(second, Err(FilesError::InUse("root"))),
        "{second:?}"
    );
    drop(files);
}

#[apply(test)]
async fn one_vm_that_two_roots_share_is_changed_by_one_gateway_at_a_time() {
    let site = Site::new();
    site.fill(1);
    let files = site.files();
    let other = Site::new();
    fs::create_dir(other.vm()).unwrap();
    let _bind = Bind::new(&site.vm(), &other.vm());
    let others = other.files();
    let backup = back_up(files.as_ref(), "one", 1).await;
    let theirs = back_up(others.as_ref(), "one", 1).await;
    for name in ["a.raw", "b.raw"] {
        fs::write(site.disk(name), vec![2; 64 * MIB]).unwrap();
    }
    let begun = files
        .begin(&create(files.as_ref(), &vm(), "two", 2), key(2), None, by())
        .await;
    let Ok(BeginOutcome::Task(task)) = begun else {
        panic!("{begun:?}");
    };
    let refused = outcome(others.as_ref(), &to_restore(&theirs), 3).await;
    let is_running = matches!(
        files.poll(&task, by()).await.unwrap(),
        TaskState::Running(_)
    );
    assert!(
        !is_running
            || refused
                .as_ref()
                .is_err_and(|fault| fault.kind == FaultKind::Busy),
        "beside a create: {refused:?}"
    );
    files.changed(&task).await;
    drop(backup);
}

/// Limits all users, root too, to this much in the whole file system.
fn limit(site: &Path, size: &str) {
    let at = site.to_str().unwrap();
    let (enabled, said) = ran("btrfs", &["quota", "enable", at]);
    let (limited, more) = ran("btrfs", &["qgroup", "limit", size, "0/5", at]);
    if !(enabled && limited) {
        skip(&format!(
            "no quotas of Btrfs: {}{}",
            said.trim(),
            more.trim()
        ));
    }
}

#[apply(test)]
async fn beyond_a_quota_nothing_is_changed_and_nothing_is_left() {
    for folder in ["vms", "backups"] {
        let site = Site::new();
        let path = site.0.path().join(folder);
        let _volume = Volume::new("btrfs", &path, 160);
        site.fill(1);
        let files = site.files();
        let files = files.as_ref();
        let backup = back_up(files, "one", 1).await;
        site.fill(2);
        limit(&path, "3M");
        let intent = match folder {
            "vms" => to_restore(&backup),
            _backups => create(files, &vm(), "two", 2),
        };
        let fault = outcome(files, &intent, 2).await.unwrap_err();
        assert_eq!(
            fault.kind,
            FaultKind::StorageFull,
            "{folder}: {}",
            fault.text
        );
        assert!(
            fault.text.to_lowercase().contains("nothing was changed"),
            "{}",
            fault.text
        );
        assert_eq!(site.contents(), [2, 2], "{folder}");
        assert_eq!(site.leftovers(), Vec::<String>::new(), "{folder}");
        assert_eq!(list(files).await, Ok(1), "{folder}");
        let left = site.backups().join("1/.snapgate-new");
        assert!(!left.exists(), "{folder}: no unfinished backup is left");
        limit(&path, "none");
        assert_eq!(outcome(files, &intent, 3).await, Ok(()), "{folder}: lifted");
    }
}
