use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use super::faults::test::Mode;
use super::*;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Description;
use crate::model::Fault;
use crate::model::Identity;
use crate::model::NewBackup;
use crate::model::OperationSeq;
use crate::model::Patch;
use crate::model::RestoreOptions;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::runtime::ManualClock;
use crate::runtime::SystemClock;

/// Two directories, an adapter over them and a plan of failures.
pub(super) struct Kit {
    pub(super) dir: tempfile::TempDir,
    pub(super) faults: Faults,
    pub(super) files: Files,
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_millis(1_795_482_123_456)))
}

pub(super) fn open(config: Config, faults: &Faults) -> Result<Files, FilesError> {
    Files::with_faults(config, clock(), Tasks::default(), faults.clone())
}

/// Opens them once no one else does: programs that other tests start hold our locks between fork and exec.
pub(super) async fn open_soon(config: Config, faults: &Faults) -> Files {
    open_soon_at(config, faults, clock()).await
}

/// The same under that clock.
pub(super) async fn open_soon_at(
    config: Config,
    faults: &Faults,
    clock: Arc<ManualClock>,
) -> Files {
    for _ in 0..100 {
        let clock = Arc::<ManualClock>::clone(&clock);
        match Files::with_faults(config.clone(), clock, Tasks::default(), faults.clone()) {
            Err(FilesError::InUse(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other.expect("the directories are good"),
        }
    }
    panic!("the directories stay in use")
}

pub(super) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(60))
}

pub(super) fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(super) fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

pub(super) fn create(vm: &str, number: u64, name: &str) -> Intent {
    Intent {
        target: target(vm, &number.to_string()),
        identity: None,
        change: Change::Create(NewBackup {
            name: BackupName::new(name).unwrap(),
            description: None,
            kind: None,
            tags: vec![Tag::new("nightly").unwrap()],
            protected: false,
        }),
    }
}

pub(super) fn about(backup: &Backup, change: Change) -> Intent {
    Intent {
        target: target("vm", backup.id.as_str()),
        identity: Some(backup.identity.clone()),
        change,
    }
}

pub(super) fn restore(backup: &Backup) -> Intent {
    about(backup, Change::Restore(RestoreOptions::default()))
}

impl Kit {
    /// A VM `vm` with a disk of 2.5 MiB and one of 1 MiB with a hole.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/vm")).unwrap();
        fs::create_dir_all(dir.path().join("backups")).unwrap();
        let faults = Faults::default();
        let files = open(config(&dir), &faults).unwrap();
        let kit = Self { dir, faults, files };
        kit.fill(1);
        kit
    }

    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join("root/vm").join(name)
    }

    /// Gives both disks contents of that generation.
    pub(super) fn fill(&self, generation: u8) {
        fs::write(self.disk("a.raw"), vec![generation; 5 << 19]).unwrap();
        let sparse = fs::File::create(self.disk("b.raw")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(&[generation; 4096], 128 << 10).unwrap();
    }

    /// The generation of both disks; `None` when anything about them is wrong.
    pub(super) fn generations(&self) -> Option<(u8, u8)> {
        let a = fs::read(self.disk("a.raw")).ok()?;
        let b = fs::read(self.disk("b.raw")).ok()?;
        let (first, second) = (*a.first()?, *b.get(128 << 10)?);
        let mut expected = vec![0; 1 << 20];
        expected[128 << 10..(128 << 10) + 4096].fill(second);
        (a == vec![first; 5 << 19] && b == expected).then_some((first, second))
    }

    /// The same directories as a new process finds them, nothing failing any more.
    pub(super) async fn reopen(self) -> Self {
        self.reopen_with(Mode::Never).await
    }

    /// The same with failures that begin with its recovery.
    pub(super) async fn reopen_with(self, mode: Mode) -> Self {
        let Self { dir, faults, files } = self;
        files.tasks.ended().await;
        drop(files);
        faults.set(mode);
        let files = open_soon(config(&dir), &faults).await;
        Self { dir, faults, files }
    }

    /// Begins and follows to the end.
    pub(super) async fn run(&self, intent: &Intent, number: u64) -> Result<TaskState, Fault> {
        let begun = self.files.begin(intent, key(number), None, by()).await;
        match begun.map_err(|error| error.fault)? {
            BeginOutcome::Done => Ok(TaskState::Done),
            BeginOutcome::Task(task) => {
                let ended =
                    tokio::time::timeout(Duration::from_secs(60), self.files.changed(&task));
                ended.await.expect("the task ends");
                Ok(self.files.poll(&task, by()).await.unwrap())
            }
        }
    }

    /// The kind of failure of a request, wherever it showed.
    pub(super) async fn failure(&self, intent: &Intent, number: u64) -> Option<FaultKind> {
        match self.run(intent, number).await {
            Err(fault) | Ok(TaskState::Failed(fault)) => Some(fault.kind),
            Ok(TaskState::Done) => None,
            Ok(other) => panic!("neither done nor failed: {other:?}"),
        }
    }

    /// A backup that was made without trouble.
    pub(super) async fn backup(&self, number: u64) -> Backup {
        let name = format!("backup {number}");
        let end = self.run(&create("vm", number, &name), number).await;
        assert!(matches!(end, Ok(TaskState::Done)), "created: {end:?}");
        let target = target("vm", &number.to_string());
        self.files.read(&target, by()).await.unwrap()
    }

    pub(super) async fn list(&self) -> Vec<Backup> {
        let page = Page {
            after: None,
            limit: 100,
        };
        let vm = VmId::new("vm").unwrap();
        self.files.list(&vm, &page, by()).await.unwrap().backups
    }

    pub(super) fn shelf(&self) -> PathBuf {
        self.dir.path().join("backups/vm")
    }

    /// Names that a crash may leave, in both directories; emptied tombstones do not count.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let places = [self.shelf(), self.dir.path().join("root/vm")];
        let entries = places
            .iter()
            .filter_map(|place| fs::read_dir(place).ok())
            .flatten();
        let names = entries.map(|entry| entry.unwrap());
        names
            .filter(|it| {
                let name = it.file_name().to_str().unwrap().to_owned();
                let empty = fs::read_dir(it.path()).is_ok_and(|mut it| it.next().is_none());
                name.starts_with(".snapgate")
                    && name != ".snapgate-restore.json"
                    && !(name.starts_with(".snapgate-gone.") && empty)
            })
            .map(|name| name.path().display().to_string())
            .collect()
    }
}

pub(super) fn config(dir: &tempfile::TempDir) -> Config {
    Config {
        root: dir.path().join("root"),
        backups: dir.path().join("backups"),
        new_folders: true,
    }
}

#[tokio::test]
async fn a_restore_brings_both_disks_back_with_mode_and_holes() {
    let kit = Kit::new();
    let room = fs::metadata(kit.disk("b.raw")).unwrap().blocks();
    let backup = kit.backup(7).await;
    assert_eq!(backup.id.as_str(), "7", "the id that was minted");
    assert_eq!(backup.state, BackupState::Available, "whole");
    assert_eq!(backup.size, Some((5 << 19) + (64 << 10)), "bytes of data");
    let copy = fs::metadata(kit.shelf().join("7/disks/b.raw")).unwrap();
    assert!(copy.blocks() * 512 <= 128 << 10, "the copy stays sparse");
    kit.fill(2);
    fs::set_permissions(kit.disk("a.raw"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(kit.disk("vm.json"), r#"{"name": "Web"}"#).unwrap();
    let end = kit.run(&restore(&backup), 8).await;
    assert!(matches!(end, Ok(TaskState::Done)), "restored: {end:?}");
    assert_eq!(kit.generations(), Some((1, 1)), "both are as they were");
    let mode = fs::metadata(kit.disk("a.raw")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o640, "mode of the replaced image");
    let restored = fs::metadata(kit.disk("b.raw")).unwrap().blocks();
    assert!(restored * 512 <= 128 << 10, "sparse: {room} -> {restored}");
    let vm = kit.files.vm(&VmId::new("vm").unwrap(), by()).await.unwrap();
    assert_eq!(vm.name, "Web", "vm.json is no disk and stays");
    assert_eq!(kit.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn one_disk_and_an_emptied_vm_are_restored() {
    let kit = Kit::new();
    fs::remove_file(kit.disk("b.raw")).unwrap();
    let backup = kit.backup(1).await;
    fs::remove_file(kit.disk("a.raw")).unwrap();
    assert_eq!(kit.failure(&restore(&backup), 2).await, None, "restored");
    let bytes = fs::read(kit.disk("a.raw")).unwrap();
    assert!(bytes == vec![1; 5 << 19], "the disk is back");
    fs::write(kit.disk("later.raw"), "x").unwrap();
    let mut refused = Some(FaultKind::Busy);
    for number in 3..200 {
        refused = kit.failure(&restore(&backup), number).await;
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
    let kit = Kit::new();
    let backup = kit.backup(1).await;
    kit.fill(2);
    let image = kit.shelf().join("1/disks/b.raw");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[9], 130 << 10).unwrap();
    assert_eq!(
        kit.failure(&restore(&backup), 2).await,
        Some(FaultKind::Damaged),
        "checksum"
    );
    assert_eq!(kit.generations(), Some((2, 2)), "nothing was touched");
    file.set_len(5).unwrap();
    assert_eq!(
        kit.list().await[0].state,
        BackupState::Error,
        "a disk of another length shows"
    );
    assert_eq!(
        kit.failure(&restore(&backup), 3).await,
        Some(FaultKind::Damaged),
        "length"
    );
    assert_eq!(kit.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn damaged_manifests_break_neither_list_nor_rules() {
    let kit = Kit::new();
    let (one, two) = (kit.backup(1).await, kit.backup(2).await);
    let forged = fs::read_to_string(kit.shelf().join("2/manifest.json")).unwrap();
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
        fs::write(kit.shelf().join("2/manifest.json"), text).unwrap();
        let states: Vec<_> = kit.list().await.iter().map(|it| it.state).collect();
        let expected = [BackupState::Available, BackupState::Error];
        assert_eq!(states, expected, "{name}: listed");
        for change in [Change::Delete, Change::Restore(RestoreOptions::default())] {
            let intent = about(&two, change);
            assert_eq!(
                kit.failure(&intent, 9).await,
                Some(FaultKind::Damaged),
                "{name}: refused"
            );
        }
    }
    assert_eq!(
        kit.failure(&restore(&one), 3).await,
        None,
        "the other works"
    );
}

#[tokio::test]
async fn planted_links_and_strange_ids_lead_nowhere() {
    let kit = Kit::new();
    let backup = kit.backup(1).await;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(outside.path().join("vm")).unwrap();
    fs::write(outside.path().join("vm/secret.raw"), "secret").unwrap();
    let root = kit.dir.path().join("root");
    symlink(outside.path().join("vm"), root.join("linked")).unwrap();
    symlink(root.join("vm"), root.join("inner")).unwrap();
    for id in [
        "linked", "inner", "a/b", "../vm", "/etc", ".hidden", "no-such", "vm/", "vm/.",
    ] {
        let vm = VmId::new(id).unwrap();
        let error = kit.files.vm(&vm, by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "VM {id}");
        assert_eq!(
            kit.failure(&create(id, 5, "x"), 5).await,
            Some(FaultKind::NoSuchVm),
            "create in {id}"
        );
    }
    symlink(kit.shelf().join("1"), kit.shelf().join("2")).unwrap();
    for id in ["2", "../vm/1", ".snapgate-new", "1/", "no-such"] {
        let error = kit.files.read(&target("vm", id), by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchBackup, "backup {id}");
    }
    assert_eq!(kit.list().await.len(), 1, "links are not listed");
    symlink(outside.path().join("vm/secret.raw"), kit.disk("c.raw")).unwrap();
    for (intent, number) in [(create("vm", 6, "x"), 6), (restore(&backup), 7)] {
        assert_eq!(
            kit.failure(&intent, number).await,
            Some(FaultKind::Conflict),
            "a link among the disks: {number}"
        );
    }
    fs::remove_file(kit.disk("c.raw")).unwrap();
    let made = Command::new("mkfifo").arg(kit.disk("c.raw")).status();
    assert!(made.unwrap().success(), "a pipe");
    assert_eq!(
        kit.failure(&create("vm", 6, "x"), 6).await,
        Some(FaultKind::Conflict),
        "a pipe among the disks"
    );
    fs::remove_file(kit.disk("c.raw")).unwrap();
    fs::remove_file(kit.shelf().join("1/disks/a.raw")).unwrap();
    symlink(kit.disk("a.raw"), kit.shelf().join("1/disks/a.raw")).unwrap();
    assert_eq!(
        kit.failure(&restore(&backup), 8).await,
        Some(FaultKind::Damaged),
        "a link among the disks of the backup"
    );
    let secret = fs::read_to_string(outside.path().join("vm/secret.raw")).unwrap();
    assert_eq!(secret, "secret", "untouched");
}

#[tokio::test]
async fn requests_are_refused_with_their_reason() {
    let kit = Kit::new();
    fs::create_dir_all(kit.dir.path().join("root/bare")).unwrap();
    let backup = kit.backup(1).await;
    let other = kit.backup(2).await;
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
        assert_eq!(kit.failure(&intent, number).await, Some(expected), "{name}");
    }
    assert_eq!(kit.list().await.len(), 2, "nothing was changed");
}

#[tokio::test]
async fn updates_protect_and_deletes_are_final_and_remembered() {
    let kit = Kit::new();
    let backup = kit.backup(1).await;
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
    assert_eq!(kit.failure(&update(true), 2).await, None, "updated");
    let after = kit.list().await.remove(0);
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
        kit.failure(&delete, 3).await,
        Some(FaultKind::Protected),
        "protected"
    );
    assert_eq!(kit.failure(&update(false), 4).await, None, "freed");
    assert_eq!(kit.failure(&delete, 5).await, None, "deleted");
    assert_eq!(kit.list().await, Vec::new(), "gone");
    let kit = kit.reopen().await;
    let again = kit.files.begin(&delete, key(5), None, by()).await.unwrap();
    assert_eq!(
        again,
        BeginOutcome::Done,
        "the same delete again, by a new process"
    );
    assert_eq!(
        kit.failure(&delete, 6).await,
        Some(FaultKind::NoSuchBackup),
        "another delete"
    );
    assert_eq!(kit.leftovers(), Vec::<String>::new(), "no data is left");
}

#[tokio::test]
async fn lists_are_paged_in_order_of_ids() {
    let kit = Kit::new();
    for number in [10, 9, 100] {
        kit.backup(number).await;
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
            after: after.map(|it| BackupId::new(it).unwrap()),
            limit,
        };
        let page = kit.files.list(&vm, &page, by()).await.unwrap();
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
    let kit = Kit::new();
    let second = open(config(&kit.dir), &Faults::default()).unwrap_err();
    assert!(matches!(second, FilesError::InUse(_)), "locked: {second}");
    let Kit { dir, files, .. } = kit;
    drop(files);
    let nested = Config {
        root: dir.path().join("root"),
        backups: dir.path().join("root/vm"),
        new_folders: true,
    };
    let nested = open(nested, &Faults::default()).unwrap_err();
    assert_eq!(nested.to_string(), FilesError::Nested.to_string(), "nested");
    drop(open_soon(config(&dir), &Faults::default()).await);
}

#[tokio::test]
async fn a_missing_root_is_unavailable_until_it_comes_back() {
    let kit = Kit::new();
    let (root, aside) = (kit.dir.path().join("root"), kit.dir.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    let error = kit.files.health(by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "missing");
    fs::rename(&aside, &root).unwrap();
    assert!(kit.files.health(by()).await.is_ok(), "back again");
}

#[tokio::test]
async fn a_cancelled_create_and_restore_leave_nothing() {
    let kit = Kit::new();
    let backup = kit.backup(1).await;
    kit.fill(2);
    fs::write(kit.disk("a.raw"), vec![2; 64 << 20]).unwrap();
    let image = fs::read(kit.disk("a.raw")).unwrap();
    for (intent, number) in [(create("vm", 2, "x"), 2), (restore(&backup), 3)] {
        let request = Request::new(&intent, key(number), None);
        let disk = Arc::clone(&kit.files.disk);
        let started = disk.start(&request, Timestamp::default()).unwrap();
        let Started::Work(work) = started else {
            panic!("{number}: there is work to do")
        };
        let job = Job::new(request.mark.clone(), true);
        assert!(job.cancel(), "{number}: can be cancelled");
        let problem = work(&job).unwrap_err();
        assert!(
            matches!(problem, Problem::Cancelled),
            "{number}: {problem:?}"
        );
        assert_eq!(
            kit.leftovers(),
            Vec::<String>::new(),
            "{number}: nothing left"
        );
        let found = kit.files.find(&intent, key(number), None, by()).await;
        assert!(
            matches!(found, Ok(FindOutcome::NotBegun)),
            "{number}: {found:?}"
        );
    }
    assert!(fs::read(kit.disk("a.raw")).unwrap() == image, "old image");
    let BeginOutcome::Task(task) = kit
        .files
        .begin(&create("vm", 5, "y"), key(5), None, by())
        .await
        .unwrap()
    else {
        panic!("a task")
    };
    kit.files.cancel(&task, by()).await.unwrap();
    kit.files.changed(&task).await;
    let state = kit.files.poll(&task, by()).await.unwrap();
    let shown = kit.list().await.len();
    let agree = matches!(
        (&state, shown),
        (TaskState::Cancelled, 1) | (TaskState::Done, 2)
    );
    assert!(agree, "{state:?} with {shown} backups");
    let gone = TaskRef::new("snapgate-999".to_owned()).unwrap();
    let state = kit.files.poll(&gone, by()).await.unwrap();
    assert!(
        matches!(state, TaskState::Gone),
        "unknown tasks are gone: {state:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_whole_backups_only_while_others_are_made_and_deleted() {
    let kit = Arc::new(Kit::new());
    let writer = Arc::clone(&kit);
    let writes = async move {
        for number in 1..12 {
            let backup = writer.backup(number).await;
            if number % 2 == 0 {
                let delete = about(&backup, Change::Delete);
                assert_eq!(writer.failure(&delete, 100 + number).await, None, "deleted");
            }
        }
    };
    let reader = Arc::clone(&kit);
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
    let kit = Kit::new();
    let backup = kit.backup(1).await;
    let intent = create("vm", 1, "other");
    let fresh = kit.files.baseline(&intent, key(1), by()).await.unwrap();
    let found = kit.files.find(&intent, key(1), fresh.as_ref(), by()).await;
    assert!(
        matches!(found, Ok(FindOutcome::NotBegun)),
        "not this request's: {found:?}"
    );
    let first = restore(&backup);
    assert_eq!(kit.failure(&first, 2).await, None, "restored");
    kit.fill(2);
    let again = kit.files.begin(&first, key(2), None, by()).await.unwrap();
    assert_eq!(again, BeginOutcome::Done, "the same request");
    assert_eq!(kit.generations(), Some((2, 2)), "is not done twice");
    let kit = kit.reopen().await;
    let again = kit.files.begin(&first, key(2), None, by()).await.unwrap();
    assert_eq!(again, BeginOutcome::Done, "nor by a new process");
    assert_eq!(kit.generations(), Some((2, 2)), "is not done twice");
    let begun = kit
        .files
        .begin(&first, key(2), fresh.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(begun, BeginOutcome::Task(_)),
        "another store's request is another one"
    );
}
