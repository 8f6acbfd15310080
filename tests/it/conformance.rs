//! One behaviour suite for every adapter, driven through the port.

use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::port::*;
use snapgate::adapters::sim;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock, Tasks};

/// What the suite needs of one adapter beside the port. The VM exists and has no backup.
pub(crate) trait Bed {
    fn name(&self) -> &'static str;
    fn adapter(&self) -> Arc<dyn Adapter>;
    fn vm(&self) -> VmId;
    /// Changes what the VM holds.
    fn write(&self, content: u64);
    /// What the VM holds.
    fn content(&self) -> u64;
}

struct SimBed(Arc<sim::Sim>);

impl Bed for SimBed {
    fn name(&self) -> &'static str {
        "sim"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::<sim::Sim>::clone(&self.0)
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        assert!(self.0.control().write(&self.vm(), content), "written");
    }
    fn content(&self) -> u64 {
        self.0.control().content(&self.vm()).unwrap()
    }
}

#[tokio::test]
async fn sim_behaves() {
    let config = sim::Config {
        vms: vec![VmId::new("33333").unwrap()],
        backups: 0,
        duration: Duration::from_millis(30),
    };
    let made = sim::Sim::new(&config, SystemClock::shared(), Tasks::default());
    suite(&SimBed(Arc::new(made))).await;
}

pub(crate) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(20))
}

pub(crate) fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(crate) fn create(adapter: &dyn Adapter, vm: &VmId, name: &str, number: u64) -> Intent {
    let new = NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: vec![Tag::new("old").unwrap()],
        protected: false,
    };
    let backup = adapter.mint(&new, key(number)).unwrap();
    let target = Target {
        vm: vm.clone(),
        backup,
    };
    Intent {
        target,
        identity: None,
        change: Change::Create(new),
    }
}

pub(crate) fn on(backup: &Backup, vm: &VmId, change: Change) -> Intent {
    let target = Target {
        vm: vm.clone(),
        backup: backup.id.clone(),
    };
    Intent {
        target,
        identity: Some(backup.identity.clone()),
        change,
    }
}

/// Begins and follows to the end; the progress must not go back.
pub(crate) async fn run(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> Result<(), FaultKind> {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = adapter
        .begin(intent, key(number), baseline.as_ref(), by())
        .await;
    let task = match begun.map_err(|it| {
        assert_eq!(
            it.effect,
            Effect::None,
            "{number}: a refusal has no effect: {it:?}"
        );
        it.fault.kind
    })? {
        Begun::Done => return Ok(()),
        Begun::Task(task) => task,
    };
    let (mut last, end) = (Progress::NONE, by());
    while SystemClock.instant() < end.instant() {
        match adapter.poll(&task, by()).await.unwrap() {
            TaskState::Running(progress) => {
                let now = progress.unwrap_or(last);
                assert!(now >= last, "{number}: progress went back");
                last = now;
            }
            TaskState::Done => return Ok(()),
            TaskState::Failed(fault) => return Err(fault.kind),
            TaskState::Cancelled => return Err(FaultKind::Cancelled),
            TaskState::Gone => panic!("{number}: the task vanished"),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    panic!("{number}: the task does not end")
}

pub(crate) async fn suite(bed: &dyn Bed) {
    let (adapter, vm, name) = (bed.adapter(), bed.vm(), bed.name());
    let adapter = adapter.as_ref();
    let nowhere = VmId::new("no-such-vm").unwrap();
    let error = adapter.vm(&nowhere, by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{name}: unknown VM");
    let first = create(adapter, &vm, "one", 1);
    let error = adapter.read(&first.target, by()).await.unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::NoSuchBackup,
        "{name}: unknown backup"
    );
    let found = adapter.find(&first, key(1), None, by()).await.unwrap();
    assert!(
        !matches!(found, Found::Done | Found::Task(_)),
        "{name}: never begun: {found:?}"
    );

    bed.write(1);
    assert_eq!(run(adapter, &first, 1).await, Ok(()), "{name}: create");
    let found = adapter.find(&first, key(1), None, by()).await.unwrap();
    assert!(
        matches!(found, Found::Done),
        "{name}: found after done: {found:?}"
    );
    let backup = adapter.read(&first.target, by()).await.unwrap();
    assert_eq!(backup.name.as_str(), "one", "{name}: as asked for");
    let taken = create(adapter, &vm, "one", 2);
    assert_eq!(
        run(adapter, &taken, 2).await,
        Err(FaultKind::NameTaken),
        "{name}: name"
    );
    assert_eq!(
        run(adapter, &create(adapter, &vm, "two", 3), 3).await,
        Ok(()),
        "{name}"
    );
    let page = Page {
        after: None,
        limit: 1,
    };
    let head = adapter.list(&vm, &page, by()).await.unwrap();
    assert!(
        head.more && head.backups.len() == 1,
        "{name}: first page: {head:?}"
    );
    let page = Page {
        after: Some(head.backups[0].id.clone()),
        limit: 5,
    };
    let tail = adapter.list(&vm, &page, by()).await.unwrap();
    assert!(
        !tail.more && tail.backups.len() == 1,
        "{name}: rest: {tail:?}"
    );
    assert!(tail.backups[0].id > head.backups[0].id, "{name}: in order");

    restore_and_change(bed, adapter, &backup).await;
}

async fn restore_and_change(bed: &dyn Bed, adapter: &dyn Adapter, backup: &Backup) {
    let (vm, name) = (bed.vm(), bed.name());
    bed.write(2);
    let restore = on(backup, &vm, Change::Restore(RestoreOptions::default()));
    let other = Intent {
        identity: Some(Identity::new("other".to_owned())),
        ..restore.clone()
    };
    assert_eq!(
        run(adapter, &other, 4).await,
        Err(FaultKind::NoSuchBackup),
        "{name}: identity"
    );
    assert_eq!(bed.content(), 2, "{name}: nothing restored");
    assert_eq!(run(adapter, &restore, 5).await, Ok(()), "{name}: restore");
    assert_eq!(bed.content(), 1, "{name}: content is back");
    let replay = adapter
        .capability()
        .verb(Verb::Restore)
        .map(|it| it.recovery);
    if replay == Some(Recovery::ReplaySafe) {
        bed.write(3);
        assert_eq!(
            run(adapter, &restore, 5).await,
            Ok(()),
            "{name}: the same again"
        );
        assert_eq!(bed.content(), 3, "{name}: acts once");
    }
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("new").unwrap()]),
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    let update = on(backup, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 6).await, Ok(()), "{name}: update");
    let after = adapter.read(&update.target, by()).await.unwrap();
    assert_eq!(
        after.tags,
        [Tag::new("new").unwrap()],
        "{name}: replaced, not merged"
    );
    let delete = on(&after, &vm, Change::Delete);
    assert_eq!(
        run(adapter, &delete, 7).await,
        Err(FaultKind::Protected),
        "{name}: protected"
    );
    let patch = BackupPatch {
        protected: Patch::Clear,
        ..BackupPatch::default()
    };
    let update = on(&after, &vm, Change::Update(patch));
    assert_eq!(run(adapter, &update, 8).await, Ok(()), "{name}: unprotect");
    assert_eq!(run(adapter, &delete, 9).await, Ok(()), "{name}: delete");
    let gone = adapter.read(&delete.target, by()).await.unwrap_err();
    assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "{name}: gone");
}
