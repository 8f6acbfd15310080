//! What the tests of this room share: records, a scripted adapter, and a room over it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Page;
use crate::model::Patch;
use crate::model::Permit;
use crate::model::Phase;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::Progress;
use crate::model::RequestId;
use crate::model::RequestKey;
use crate::model::RestoreOptions;
use crate::model::Revision;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::operations::BackendHandle;
use crate::operations::Config;
use crate::operations::Operations;
use crate::operations::Origin;
use crate::operations::api::KnownChanges;
use crate::operations::api::Submission;
use crate::runtime::Clock;
use crate::runtime::ManualClock;
use crate::runtime::SystemClock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// 2026-11-24.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_795_482_123_000);
/// How long a test waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

pub(super) fn restore(vm: &str, backup: &str) -> Intent {
    Intent {
        target: target(vm, backup),
        identity: Some(Identity::new("1".to_owned())),
        change: Change::Restore(RestoreOptions::default()),
    }
}

pub(super) fn delete(vm: &str, backup: &str) -> Intent {
    Intent {
        change: Change::Delete,
        ..restore(vm, backup)
    }
}

pub(super) fn backend(name: &str) -> BackendName {
    BackendName::new(name).unwrap()
}

pub(super) fn idempotency(key: &str, print: u8) -> Idempotency {
    Idempotency {
        key: IdempotencyKey::new(key).unwrap(),
        fingerprint: Fingerprint([print; 32]),
    }
}

pub(super) fn update(vm: &str, backup: &str) -> Intent {
    let patch = BackupPatch {
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    Intent {
        change: Change::Update(patch),
        ..restore(vm, backup)
    }
}

/// A fresh record of a restore.
pub(super) fn operation(seq: u64, vm: &str, backup: &str) -> Operation {
    Operation {
        seq: OperationSeq::new(seq).unwrap(),
        revision: Revision::FIRST,
        principal: PrincipalName::new("ada").unwrap(),
        request: RequestId::new("r-1").unwrap(),
        backend: backend("one"),
        intent: restore(vm, backup),
        preconditions: Vec::new(),
        note: None,
        idempotency: None,
        phase: Phase::Accepted,
        progress: Progress::NONE,
        fault: None,
        baseline: None,
        calls: 0,
        task: None,
        created: NOW,
        started: None,
        completed: None,
        uncertain_since: None,
        ignored: crate::model::IgnoredMembers::default(),
        resume_expired: false,
        cancel_asked: None,
        acknowledged: None,
        expires: None,
    }
}

pub(super) fn task(text: &str) -> TaskRef {
    TaskRef::new(text.to_owned()).unwrap()
}

pub(super) fn new_backup(name: &str) -> NewBackup {
    NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: Vec::new(),
        protected: false,
    }
}

pub(super) fn backup(id: &str) -> Backup {
    Backup {
        id: BackupId::new(id).unwrap(),
        identity: Identity::new("1".to_owned()),
        name: BackupName::new("n").unwrap(),
        description: None,
        kind: Some(BackupKind::Snapshot),
        created: NOW,
        tags: Vec::new(),
        state: BackupState::Available,
        size: None,
        protected: false,
    }
}

/// What the adapter does when it is asked to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// It makes a task that runs until it is ended.
    Task,
    /// It does it at once.
    Done,
    /// It refuses, without effect.
    Refuse,
    /// It loses the answer.
    Lose,
    /// It panics.
    Panic,
    /// It never answers.
    Hang,
}

/// What the adapter says of a task or of a lost request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Running(u8),
    Done,
    Fail,
    Cancelled,
    Gone,
    NotBegun,
    VmChanged,
    Task,
    NotYet,
    Unknowable,
    Error,
    Panic,
}

#[derive(Debug, Default)]
struct Script {
    /// Per VM; the default is a task.
    begin: BTreeMap<String, Begin>,
    /// Of tasks, per VM; the default is `Running(0)`.
    poll: BTreeMap<String, Say>,
    /// Of lost requests; the first is used once unless it is the last.
    find: VecDeque<Say>,
    begun: Vec<(OperationSeq, String)>,
    /// Tasks it was asked to stop, as often as it was asked.
    cancelled: Vec<String>,
    /// It does not stop what it is asked to.
    deaf: bool,
    found: usize,
    backups: Vec<Backup>,
    unreadable: bool,
}

/// An adapter that does as it is told. It outlives the rooms that are made over it, like a VM manager.
#[derive(Debug)]
pub(super) struct Scripted {
    capability: Capability,
    script: Mutex<Script>,
    changed: Notify,
}

impl Scripted {
    pub(super) fn new(recovery: Recovery) -> Arc<Self> {
        Arc::new(Self::able(recovery))
    }

    /// One that updates as well, and looks at nothing before that.
    pub(super) fn updating(recovery: Recovery) -> Arc<Self> {
        let mut it = Self::able(recovery);
        it.capability.update = it.capability.restore;
        Arc::new(it)
    }

    fn able(recovery: Recovery) -> Self {
        let verb = Some(VerbCapability {
            recovery,
            settle: Duration::from_millis(5),
            cancel: true,
            progress: true,
        });
        Self {
            capability: Capability {
                kind: "scripted",
                create: verb,
                update: None,
                delete: verb,
                restore: verb,
                kinds: &[BackupKind::Snapshot],
                restore_options: &[],
                online: true,
                memory: false,
                consistent: true,
            },
            script: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The class of its verbs.
    pub(super) fn recovery(&self) -> Recovery {
        let verb = self.capability.restore.expect("it restores");
        verb.recovery
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(super) fn begin_with(&self, vm: &str, begin: Begin) {
        self.script().begin.insert(vm.to_owned(), begin);
    }

    /// What is said of tasks of that VM from now on; looked at once.
    pub(super) fn say(&self, vm: &str, say: Say) {
        self.script().poll.insert(vm.to_owned(), say);
        self.changed.notify_waiters();
    }

    pub(super) fn find_says(&self, says: &[Say]) {
        self.script().find = says.iter().copied().collect();
    }

    pub(super) fn has(&self, ids: &[&str]) {
        self.script().backups = ids.iter().map(|id| backup(id)).collect();
    }

    /// What the VM manager has from now on.
    pub(super) fn shows(&self, backups: Vec<Backup>) {
        self.script().backups = backups;
    }

    /// From now on no backup can be read.
    pub(super) fn is_unreadable(&self) {
        self.script().unreadable = true;
    }

    /// The numbers of what was begun, in order.
    pub(super) fn begun(&self) -> Vec<OperationSeq> {
        self.script().begun.iter().map(|(seq, _)| *seq).collect()
    }

    /// The tasks it was asked to stop.
    pub(super) fn cancelled(&self) -> Vec<String> {
        self.script().cancelled.clone()
    }

    /// From now on it takes the wish to stop, and goes on.
    pub(super) fn is_deaf(&self, deaf: bool) {
        self.script().deaf = deaf;
    }

    pub(super) fn found(&self) -> usize {
        self.script().found
    }
}

#[async_trait]
impl Adapter for Scripted {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _: Deadline) -> Result<Health, AdapterError> {
        Ok(Health {
            product: "scripted".to_owned(),
        })
    }

    async fn read_vm(&self, _: &VmId, _: Deadline) -> Result<Vm, AdapterError> {
        Err(AdapterError::refused(FaultKind::NoSuchVm, "no such VM").because("native words"))
    }

    async fn list_backups(
        &self,
        _: &VmId,
        _: &Page,
        _: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        Ok(BackupPage {
            backups: self.script().backups.clone(),
            more: false,
        })
    }

    async fn read_backup(&self, target: &Target, _: Deadline) -> Result<Backup, AdapterError> {
        let script = self.script();
        if script.unreadable {
            let error = AdapterError::uncertain(FaultKind::Unavailable, "no answer");
            return Err(error);
        }
        let found = script
            .backups
            .iter()
            .find(|backup| backup.id == target.backup);
        found
            .cloned()
            .ok_or_else(|| AdapterError::refused(FaultKind::NoSuchBackup, "no such backup"))
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        intent.verb() != Verb::Update
    }

    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        _: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        let looks = self.needs_baseline(intent);
        Ok(Evidence::new(key.to_string()).filter(|_| looks))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let vm = intent.target.vm.as_str().to_owned();
        let seen = baseline.map(Evidence::as_str).map(str::to_owned);
        let expected = self.needs_baseline(intent).then(|| key.to_string());
        assert_eq!(seen, expected, "the baseline comes along");
        let begin = {
            let mut script = self.script();
            script.begun.push((key.0, vm.clone()));
            script.begin.get(&vm).copied().unwrap_or(Begin::Task)
        };
        match begin {
            Begin::Task => Ok(BeginOutcome::Task(task(&vm))),
            Begin::Done => Ok(BeginOutcome::Done),
            Begin::Refuse => Err(AdapterError::refused(FaultKind::Busy, "the VM is busy")),
            Begin::Lose => Err(AdapterError::uncertain(FaultKind::TimedOut, "no answer")),
            Begin::Panic => panic!("meant to"),
            Begin::Hang => std::future::pending().await,
        }
    }

    async fn poll(&self, task: &TaskRef, _: Deadline) -> Result<TaskState, AdapterError> {
        let say = self.script().poll.get(task.as_str()).copied();
        Ok(match say.unwrap_or(Say::Running(0)) {
            Say::Running(percent) => TaskState::Running(Some(Progress::unfinished(percent))),
            Say::Done => TaskState::Done,
            Say::Gone => TaskState::Gone,
            Say::Cancelled => TaskState::Cancelled,
            Say::Error => return Err(AdapterError::unavailable("not now")),
            Say::Panic => panic!("meant to"),
            Say::Fail
            | Say::NotBegun
            | Say::VmChanged
            | Say::Task
            | Say::NotYet
            | Say::Unknowable => {
                TaskState::Failed(AdapterError::refused(FaultKind::StorageFull, "full").fault)
            }
        })
    }

    async fn changed(&self, _: &TaskRef) {
        self.changed.notified().await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        _: RequestKey,
        _: Option<&Evidence>,
        _: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let say = {
            let mut script = self.script();
            script.found = script.found.saturating_add(1);
            if script.find.len() > 1 {
                script.find.pop_front()
            } else {
                script.find.front().copied()
            }
        };
        Ok(match say.unwrap_or(Say::NotYet) {
            Say::NotBegun => FindOutcome::NotBegun,
            Say::VmChanged => FindOutcome::VmChanged,
            Say::Task | Say::Running(_) => FindOutcome::Task(task(intent.target.vm.as_str())),
            Say::Done => FindOutcome::Done,
            Say::Fail => {
                FindOutcome::Failed(AdapterError::refused(FaultKind::StorageFull, "full").fault)
            }
            Say::NotYet | Say::Gone | Say::Cancelled => FindOutcome::NotYet,
            Say::Unknowable => FindOutcome::Unknowable,
            Say::Error => return Err(AdapterError::unavailable("not now")),
            Say::Panic => panic!("meant to"),
        })
    }

    async fn cancel(&self, task: &TaskRef, _: Deadline) -> Result<(), AdapterError> {
        let mut script = self.script();
        let task = task.as_str().to_owned();
        script.cancelled.push(task.clone());
        if !script.deaf {
            script.poll.insert(task, Say::Cancelled);
        }
        Ok(())
    }
}

pub(super) fn permit(intent: &Intent, on: &str) -> Permit {
    let actions = [
        Action::Create,
        Action::Update,
        Action::Protect,
        Action::Delete,
        Action::Restore,
    ];
    let principal = Principal {
        name: PrincipalName::new("ada").unwrap(),
        groups: Vec::new(),
    };
    // Only the gate may issue permits, and a test holds that by the text; here the room plays the gate.
    type Pass = Permit;
    Pass::issue(
        principal,
        ActionSet::from_iter(actions),
        backend(on),
        intent.target.clone(),
    )
}

pub(super) fn submission(seq: OperationSeq, intent: Intent) -> Submission {
    Submission {
        seq,
        intent,
        preconditions: Vec::new(),
        seen: KnownChanges::default(),
        request: RequestId::new("r-1").unwrap(),
        note: None,
        idempotency: None,
        ignored: crate::model::IgnoredMembers::default(),
        origin: Origin::default(),
    }
}

pub(super) fn soon() -> Deadline {
    SystemClock.deadline(PATIENCE)
}

/// What a test changes about a room.
pub(super) struct Setup {
    pub config: Config,
    pub clock: Arc<ManualClock>,
    pub metrics: Metrics,
    pub backends: Vec<BackendHandle>,
}

impl Setup {
    /// Two backends, `one` and `two`, over the same adapter, with a store in that folder.
    pub(super) fn new(folder: &Path, adapter: &Arc<Scripted>) -> Self {
        let mut config = Config::with_store(folder.join("operations.db"));
        config.poll_min = Duration::from_millis(2);
        config.poll_max = Duration::from_millis(10);
        let handle = |name: &str| BackendHandle {
            name: backend(name),
            adapter: Arc::<Scripted>::clone(adapter),
            concurrency: 4,
        };
        Self {
            config,
            clock: Arc::new(ManualClock::new(NOW)),
            metrics: Metrics::new().unwrap(),
            backends: vec![handle("one"), handle("two")],
        }
    }

    pub(super) async fn open(&self) -> Arc<Operations> {
        Operations::open(
            self.config.clone(),
            self.backends.clone(),
            Arc::<ManualClock>::clone(&self.clock),
            self.metrics.clone(),
            Tasks::default(),
        )
        .await
        .expect("the store opens")
    }
}
