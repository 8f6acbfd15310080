//! What the tests of this adapter share: two directories with a VM, an adapter over them, and failpoints.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::failpoints::test::FailMode;
use super::*;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::Change;
use crate::model::Fault;
use crate::model::NewBackup;
use crate::model::OperationSeq;
use crate::model::RestoreOptions;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::runtime::ManualClock;
use crate::runtime::SystemClock;

/// Two directories, an adapter over them and a plan of failures.
pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) failpoints: Failpoints,
    pub(super) files: Files,
}

pub(super) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_millis(1_795_482_123_456)))
}

pub(super) fn open(config: Config, failpoints: &Failpoints) -> Result<Files, FilesError> {
    Files::with_failpoints(config, clock(), Tasks::default(), failpoints.clone())
}

/// Opens them once no one else does: programs that other tests start hold our locks between fork and exec.
pub(super) async fn open_soon(config: Config, failpoints: &Failpoints) -> Files {
    open_soon_at(config, failpoints, clock()).await
}

/// The same under that clock.
pub(super) async fn open_soon_at(
    config: Config,
    failpoints: &Failpoints,
    clock: Arc<ManualClock>,
) -> Files {
    for _ in 0..100 {
        let clock = Arc::<ManualClock>::clone(&clock);
        match Files::with_failpoints(config.clone(), clock, Tasks::default(), failpoints.clone()) {
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

impl Fixture {
    /// A VM `vm` with a disk of 2.5 MiB and one of 1 MiB with a hole.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/vm")).unwrap();
        fs::create_dir_all(dir.path().join("backups")).unwrap();
        let failpoints = Failpoints::default();
        let files = open(config(&dir), &failpoints).unwrap();
        let fixture = Self {
            dir,
            failpoints,
            files,
        };
        fixture.fill(1);
        fixture
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
        self.reopen_with(FailMode::Never).await
    }

    /// The same with failures that begin with its recovery.
    pub(super) async fn reopen_with(self, mode: FailMode) -> Self {
        let Self {
            dir,
            failpoints,
            files,
        } = self;
        files.tasks.ended().await;
        drop(files);
        failpoints.set(mode);
        let files = open_soon(config(&dir), &failpoints).await;
        Self {
            dir,
            failpoints,
            files,
        }
    }

    /// Begins and follows to the end.
    pub(super) async fn run(&self, intent: &Intent, number: u64) -> Result<TaskState, Fault> {
        let begun = self.files.begin(intent, key(number), None, by()).await;
        match begun.map_err(|error| error.fault)? {
            BeginOutcome::Done => Ok(TaskState::Done(None)),
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
            Ok(TaskState::Done(_)) => None,
            Ok(other) => panic!("neither done nor failed: {other:?}"),
        }
    }

    /// A backup that was made without trouble.
    pub(super) async fn backup(&self, number: u64) -> Backup {
        let name = format!("backup {number}");
        let end = self.run(&create("vm", number, &name), number).await;
        assert!(matches!(end, Ok(TaskState::Done(_))), "created: {end:?}");
        let target = target("vm", &number.to_string());
        self.files.read_backup(&target, by()).await.unwrap()
    }

    pub(super) async fn list(&self) -> Vec<Backup> {
        let page = Page {
            after: None,
            limit: 100,
        };
        let vm = VmId::new("vm").unwrap();
        self.files
            .list_backups(&vm, &page, by())
            .await
            .unwrap()
            .backups
    }

    pub(super) fn vm_backups(&self) -> PathBuf {
        self.dir.path().join("backups/vm")
    }

    /// Names that a crash may leave, in both directories; emptied tombstones do not count.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let layout = [self.vm_backups(), self.dir.path().join("root/vm")];
        let entries = layout
            .iter()
            .filter_map(|place| fs::read_dir(place).ok())
            .flatten();
        let names = entries.map(|entry| entry.unwrap());
        names
            .filter(|entry| {
                let name = entry.file_name().to_str().unwrap().to_owned();
                let empty =
                    fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
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
