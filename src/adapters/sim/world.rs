//! The simulated VM manager itself: VMs, backups and tasks that proceed with the clock.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::RwLock;
use parking_lot::RwLockReadGuard;
use parking_lot::RwLockWriteGuard;
use tokio::sync::Notify;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::Retry;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::layers::Script;
use crate::adapters::sim::Config;
use crate::adapters::sim::simulation;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPage;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::SpaceNeeds;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;
use crate::runtime::Clock;

/// Id of the first backup of each VM at the start.
const FIRST_ID: u32 = 456;
/// Bytes each simulated backup says it occupies.
const SIZE: u64 = 1 << 30;
/// Ended requests that are remembered: far more than a gateway has unfinished, and so little memory that it may run
/// for years.
const ENDED_KEPT: usize = 10_000;

/// The simulated VM manager.
#[derive(Debug)]
pub(super) struct World {
    pub(super) script: Script,
    pub(super) capability: Capability,
    pub(super) recovery: Recovery,
    clock: Arc<dyn Clock>,
    duration: Duration,
    changed: Notify,
    state: RwLock<SimState>,
}

#[derive(Debug, Default)]
struct SimState {
    vms: BTreeMap<VmId, SimVm>,
    /// The requests carried out, by the number of the operation: all that run, and the last [`ENDED_KEPT`] that ended.
    jobs: BTreeMap<u64, SimJob>,
    /// The ended ones in the order of their ends.
    ended: VecDeque<u64>,
    /// The running ones with the instant at which they end.
    running: BTreeMap<u64, Instant>,
    made: u64,
    fail_next: Option<FaultKind>,
}

#[derive(Debug, Default)]
struct SimVm {
    content: u64,
    restores: u64,
    busy: bool,
    backups: BTreeMap<BackupId, SimBackup>,
}

#[derive(Clone, Debug)]
struct SimBackup {
    backup: Backup,
    content: u64,
    whole: bool,
}

impl SimVm {
    fn check_idle(&self) -> Result<(), AdapterError> {
        if !self.busy {
            return Ok(());
        }
        let mut busy = refused(
            FaultKind::Busy,
            public_text!("The VM is being backed up or restored. Try again later."),
        );
        busy.retry = Retry::Temporary;
        Err(busy)
    }

    fn check_new(&self, id: &BackupId, new: &NewBackup) -> Result<(), AdapterError> {
        if self.backups.contains_key(id) {
            return Err(refused(
                FaultKind::Conflict,
                public_text!(
                    "The VM already has another backup with this id. Submit the request again to get a new id."
                ),
            ));
        }
        if new.kind == Some(BackupKind::Incremental) {
            return Err(refused(
                FaultKind::Unsupported,
                public_text!(
                    "The simulator makes no incremental backups. Request a full backup or a snapshot."
                ),
            ));
        }
        Ok(())
    }

    /// Refuses a name that another backup than `own` has.
    fn check_name(&self, own: &BackupId, name: &BackupName) -> Result<(), AdapterError> {
        let other =
            |(id, stored): (&BackupId, &SimBackup)| id != own && stored.backup.name == *name;
        if self.backups.iter().any(other) {
            return Err(refused(
                FaultKind::NameTaken,
                public_text!("Another backup of the VM has this name. Choose another name."),
            ));
        }
        Ok(())
    }
}

impl SimBackup {
    fn check_whole(&self) -> Result<(), AdapterError> {
        if self.whole {
            return Ok(());
        }
        let text =
            public_text!("The backup is incomplete. Wait until it is complete, or delete it.");
        Err(refused(FaultKind::NotReady, text))
    }

    fn check_unprotected(&self) -> Result<(), AdapterError> {
        if !self.backup.protected {
            return Ok(());
        }
        let text = public_text!(
            "The backup is protected, so it was not deleted. Remove its protection first."
        );
        Err(refused(FaultKind::Protected, text))
    }
}

#[derive(Debug)]
struct SimJob {
    target: Target,
    change: Change,
    begun: Instant,
    executions: u64,
    fails: Option<FaultKind>,
    end: Option<TaskEnd>,
    forgotten: bool,
}

#[derive(Clone, Debug)]
enum TaskEnd {
    Done,
    Failed(Fault),
    Cancelled,
}

/// What a task that failed left. Every simulated VM runs, and no failure changes one.
pub(super) fn failure_text(change: &Change) -> PublicText {
    match change {
        Change::Create(_) => {
            public_text!(
                "The backup failed part-way and left an incomplete backup: delete it. The data of the VM was not changed, and the VM is \
                 running."
            )
        }
        Change::Update(_) | Change::Delete => {
            public_text!(
                "The change failed, and the backup is as it was before: try again. The data of the VM was not changed, and the VM is running."
            )
        }
        Change::Restore(_) => {
            public_text!(
                "The restore failed before it changed anything: restore the VM again. The data of the VM was not changed, and the VM is \
                 running."
            )
        }
    }
}

fn refused(kind: FaultKind, text: PublicText) -> AdapterError {
    AdapterError::refused(kind, text)
}

fn no_such_vm() -> AdapterError {
    refused(
        FaultKind::NoSuchVm,
        public_text!("The VM does not exist. Check its id."),
    )
}

fn no_such_backup() -> AdapterError {
    refused(
        FaultKind::NoSuchBackup,
        public_text!("The backup does not exist. List the VM's backups."),
    )
}

fn task_outcome(key: u64) -> Result<BeginOutcome, AdapterError> {
    TaskRef::new(key.to_string())
        .map(BeginOutcome::Task)
        .ok_or_else(|| {
            let text = public_text!("The change has no valid task id. Wait for the final Status.");
            refused(FaultKind::BackendFailed, text)
        })
}

impl World {
    pub(super) fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let mut state = SimState::default();
        let now = clock.now();
        for vm in &config.vms {
            let mut made = SimVm::default();
            for nth in 0..config.backups {
                let id = FIRST_ID.saturating_add(nth).to_string();
                let (Ok(id), Ok(name)) =
                    (BackupId::new(&id), BackupName::new(&format!("backup {id}")))
                else {
                    continue;
                };
                let backup = Backup {
                    identity: state.identity(now),
                    id: id.clone(),
                    name,
                    description: None,
                    kind: Some(BackupKind::Snapshot),
                    created: now,
                    tags: Vec::new(),
                    state: BackupState::Available,
                    size: Some(SIZE),
                    protected: false,
                };
                let stored = SimBackup {
                    backup,
                    content: u64::from(nth),
                    whole: true,
                };
                made.backups.insert(id, stored);
            }
            made.content = u64::from(config.backups);
            state.vms.insert(vm.clone(), made);
        }
        Self {
            script: Script::default(),
            capability: simulation::capability(config),
            recovery: config.recovery,
            clock,
            duration: config.duration,
            changed: Notify::new(),
            state: RwLock::new(state),
        }
    }

    /// The state as of now, to change.
    fn write_state(&self) -> RwLockWriteGuard<'_, SimState> {
        let mut state = self.state.write();
        state.end_due_tasks(self.clock.instant());
        state
    }

    /// The state as of now, to look at. Cheap while no task is due.
    fn read_state(&self) -> RwLockReadGuard<'_, SimState> {
        let state = self.state.read();
        if state.running.is_empty() {
            return state;
        }
        drop(state);
        drop(self.write_state());
        self.state.read()
    }

    pub(super) fn content(&self, vm: &VmId) -> Option<u64> {
        self.read_state().vms.get(vm).map(|vm| vm.content)
    }

    pub(super) fn write(&self, vm: &VmId, content: u64) -> bool {
        let mut state = self.write_state();
        let found = state.vms.get_mut(vm);
        found.map(|vm| vm.content = content).is_some()
    }

    pub(super) fn restores(&self, vm: &VmId) -> u64 {
        self.read_state().vms.get(vm).map_or(0, |vm| vm.restores)
    }

    pub(super) fn executions(&self, key: RequestKey) -> u64 {
        let state = self.read_state();
        state
            .jobs
            .get(&key.0.number())
            .map_or(0, |request| request.executions)
    }

    pub(super) fn forget(&self, key: RequestKey) {
        if let Some(job) = self.write_state().jobs.get_mut(&key.0.number()) {
            job.forgotten = true;
        }
        self.changed.notify_waiters();
    }

    pub(super) fn fail_next_task(&self, kind: FaultKind) {
        self.write_state().fail_next = Some(kind);
    }

    /// Adds a VM without backups, or removes one with its backups.
    pub(super) fn set_vm(&self, vm: &VmId, exists: bool) {
        let mut state = self.write_state();
        if exists {
            state.vms.entry(vm.clone()).or_default();
        } else {
            state.vms.remove(vm);
        }
    }

    pub(super) fn vm(&self, id: &VmId) -> Result<Vm, AdapterError> {
        let state = self.read_state();
        state.vms.get(id).ok_or_else(no_such_vm)?;
        Ok(simulation::vm(id))
    }

    /// One page of the VMs. A search in the map: the cost does not grow with the number of VMs.
    pub(super) fn vms(&self, range: &VmRange) -> VmPage {
        let state = self.read_state();
        let from = range
            .after
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let rest = state.vms.range::<VmId, _>((from, Bound::Unbounded));
        range.page_of(rest.map(|(id, _)| simulation::vm(id)))
    }

    pub(super) fn list(&self, vm: &VmId, page: &Page) -> Result<BackupPage, AdapterError> {
        let state = self.read_state();
        let vm = state.vms.get(vm).ok_or_else(no_such_vm)?;
        let from = page
            .after
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let rest = vm
            .backups
            .range::<BackupId, _>((from, Bound::Unbounded))
            .filter(|(_, value)| value.whole);
        Ok(page.of(rest.map(|(_, value)| value.backup.clone())))
    }

    pub(super) fn read(&self, target: &Target) -> Result<Backup, AdapterError> {
        let state = self.read_state();
        let vm = state.vms.get(&target.vm).ok_or_else(no_such_vm)?;
        let found = vm.backups.get(&target.backup).filter(|backup| backup.whole);
        found
            .map(|stored| stored.backup.clone())
            .ok_or_else(no_such_backup)
    }

    /// What a restore or a delete would do.
    pub(super) fn preview(&self, intent: &Intent) -> Result<Preview, AdapterError> {
        match intent.verb() {
            Verb::Restore | Verb::Delete => {}
            Verb::Create | Verb::Update => return Err(no_preview()),
        }
        let mut checks = Checks::all();
        let state = self.read_state();
        let checked = state.check_intent(intent, &mut checks);
        checked.map_err(|error| checks.end_with(error))?;
        let vm = state.vms.get(&intent.target.vm).ok_or_else(no_such_vm)?;
        let found = vm.backups.get(&intent.target.backup);
        let found = found.ok_or_else(no_such_backup)?;
        let all = vm.backups.values().filter(|stored| stored.whole);
        let mut preview = Preview::new(simulation::vm(&intent.target.vm), found.backup.clone())
            .with_newer(all.map(|stored| &stored.backup));
        preview.refused = checks.into_refused();
        if intent.verb() == Verb::Restore {
            preview.overwrites = vec![PreviewDisk {
                disk: "disk0".to_owned(),
                size: Some(SIZE),
            }];
            preview.needs = Some(SpaceNeeds {
                bytes: Some(SIZE),
                free: None,
            });
        }
        Ok(preview)
    }

    pub(super) fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
    ) -> Result<BeginOutcome, AdapterError> {
        let (number, now) = (key.0.number(), self.clock.instant());
        let mut state = self.write_state();
        if let Some(job) = state.jobs.get(&number) {
            return match &job.end {
                Some(TaskEnd::Done) => Ok(BeginOutcome::Done),
                Some(TaskEnd::Failed(_) | TaskEnd::Cancelled) | None => task_outcome(number),
            };
        }
        state.check_intent(intent, &mut Checks::until_first())?;
        let mut job = SimJob {
            target: intent.target.clone(),
            change: intent.change.clone(),
            begun: now,
            executions: 1,
            fails: None,
            end: None,
            forgotten: false,
        };
        match &intent.change {
            Change::Update(_) => {
                state.apply_change(&job.target, &job.change);
                job.end = Some(TaskEnd::Done);
                state.jobs.insert(number, job);
                state.remember_end(number);
                Ok(BeginOutcome::Done)
            }
            Change::Create(_) | Change::Delete | Change::Restore(_) => {
                job.fails = state.fail_next.take();
                state.show_begun(intent, self.clock.now());
                state.jobs.insert(number, job);
                let end = now.checked_add(self.duration).unwrap_or(now);
                state.running.insert(number, end);
                task_outcome(number)
            }
        }
    }

    pub(super) fn poll(&self, task: &TaskRef) -> TaskState {
        let state = self.read_state();
        let Some(job) = number(task).and_then(|number| state.jobs.get(&number)) else {
            return TaskState::Gone;
        };
        match &job.end {
            _ if job.forgotten => TaskState::Gone,
            Some(TaskEnd::Done) => TaskState::Done(None),
            Some(TaskEnd::Failed(fault)) => TaskState::Failed(fault.clone()),
            Some(TaskEnd::Cancelled) => TaskState::Cancelled,
            None => {
                let millis = |value: Duration| u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
                let passed = self.clock.instant().saturating_duration_since(job.begun);
                TaskState::Running(Some(Progress::of(millis(passed), millis(self.duration))))
            }
        }
    }

    /// Returns at the end of the task, or when a hand behind the scenes changed something.
    pub(super) async fn changed(&self, task: &TaskRef) {
        let changed = self.changed.notified();
        let end = number(task).and_then(|number| self.read_state().running.get(&number).copied());
        let left = end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(self.clock.instant())
        });
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(left) => {}
        }
    }

    pub(super) fn find(&self, key: RequestKey) -> FindOutcome {
        let state = self.read_state();
        let Some(job) = state.jobs.get(&key.0.number()) else {
            return FindOutcome::NotBegun;
        };
        match &job.end {
            Some(TaskEnd::Done) => FindOutcome::Done(None),
            Some(TaskEnd::Failed(fault)) => FindOutcome::Failed(fault.clone()),
            Some(TaskEnd::Cancelled) => FindOutcome::Failed(Fault::new(
                FaultKind::Cancelled,
                public_text!("The operation was cancelled. The data of the VM was not changed."),
            )),
            None if job.forgotten => FindOutcome::NotYet,
            None => TaskRef::new(key.0.number().to_string())
                .map_or(FindOutcome::NotYet, FindOutcome::Task),
        }
    }

    pub(super) fn cancel(&self, task: &TaskRef) -> Result<(), AdapterError> {
        let mut state = self.write_state();
        let gone = || {
            refused(
                FaultKind::Conflict,
                public_text!("The operation has already ended. Read its Status."),
            )
        };
        let number = number(task).ok_or_else(gone)?;
        state.running.remove(&number).ok_or_else(gone)?;
        state.end_task(number, &TaskEnd::Cancelled);
        self.changed.notify_waiters();
        Ok(())
    }
}

fn number(task: &TaskRef) -> Option<u64> {
    task.as_str().parse().ok()
}

impl SimState {
    fn identity(&mut self, created: Timestamp) -> Identity {
        self.made = self.made.saturating_add(1);
        Identity::new(format!("{}-{}", created.as_millis(), self.made))
    }

    /// Ends the tasks whose time has come, in order of their ends.
    fn end_due_tasks(&mut self, now: Instant) {
        let mut due: Vec<(Instant, u64)> = self
            .running
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(number, end)| (*end, *number))
            .collect();
        due.sort_unstable();
        for (_, number) in due {
            self.running.remove(&number);
            let failed = self.jobs.get(&number).and_then(|job| {
                let text = failure_text(&job.change);
                job.fails.map(|kind| Fault::new(kind, text))
            });
            let end = failed.map_or(TaskEnd::Done, TaskEnd::Failed);
            self.end_task(number, &end);
        }
    }

    fn end_task(&mut self, number: u64, end: &TaskEnd) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.end = Some(end.clone());
        let (target, change) = (job.target.clone(), job.change.clone());
        self.remember_end(number);
        if let Some(vm) = self.vms.get_mut(&target.vm) {
            vm.busy = false;
            if let Some(stored) = vm.backups.get_mut(&target.backup) {
                stored.backup.state = BackupState::Available;
            }
        }
        match end {
            TaskEnd::Done => self.apply_change(&target, &change),
            // A cancelled create cleans up; a failed one leaves its half-made backup behind.
            TaskEnd::Cancelled => self.remove_incomplete(&target),
            TaskEnd::Failed(_) => {}
        }
    }

    /// Forgets the one that ended first when there are too many.
    fn remember_end(&mut self, number: u64) {
        self.ended.push_back(number);
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }

    fn remove_incomplete(&mut self, target: &Target) {
        if let Some(vm) = self.vms.get_mut(&target.vm) {
            vm.backups
                .retain(|id, stored| *id != target.backup || stored.whole);
        }
    }

    /// Everything that would refuse the intent now.
    fn check_intent(&self, intent: &Intent, checks: &mut Checks) -> Result<(), AdapterError> {
        let vm = self.vms.get(&intent.target.vm).ok_or_else(no_such_vm)?;
        checks.record(vm.check_idle())?;
        if let Change::Create(new) = &intent.change {
            checks.record(vm.check_new(&intent.target.backup, new))?;
            checks.record(vm.check_name(&intent.target.backup, &new.name))?;
            return Ok(());
        }
        let found = vm
            .backups
            .get(&intent.target.backup)
            .ok_or_else(no_such_backup)?;
        if intent.identity.as_ref() != Some(&found.backup.identity) {
            return Err(no_such_backup());
        }
        checks.record(found.check_whole())?;
        match &intent.change {
            Change::Delete => {
                checks.record(found.check_unprotected())?;
            }
            Change::Update(patch) => {
                if let Some(name) = &patch.name {
                    checks.record(vm.check_name(&intent.target.backup, name))?;
                }
            }
            Change::Create(_) | Change::Restore(_) => {}
        }
        Ok(())
    }

    /// Shows that a task has begun.
    fn show_begun(&mut self, intent: &Intent, now: Timestamp) {
        let identity = self.identity(now);
        let Some(vm) = self.vms.get_mut(&intent.target.vm) else {
            return;
        };
        vm.busy = true;
        let id = intent.target.backup.clone();
        let state = match &intent.change {
            Change::Create(new) => {
                let backup = Backup {
                    id: id.clone(),
                    identity,
                    name: new.name.clone(),
                    description: new.description.clone(),
                    kind: Some(new.kind.unwrap_or(BackupKind::Snapshot)),
                    created: now,
                    tags: new.tags.clone(),
                    state: BackupState::Creating,
                    size: Some(SIZE),
                    protected: new.protected,
                };
                let stored = SimBackup {
                    backup,
                    content: vm.content,
                    whole: false,
                };
                vm.backups.insert(id, stored);
                return;
            }
            Change::Update(_) => BackupState::Updating,
            Change::Delete => BackupState::Deleting,
            Change::Restore(_) => BackupState::Restoring,
        };
        if let Some(stored) = vm.backups.get_mut(&id) {
            stored.backup.state = state;
        }
    }

    /// The effect itself.
    fn apply_change(&mut self, target: &Target, change: &Change) {
        let Some(vm) = self.vms.get_mut(&target.vm) else {
            return;
        };
        if matches!(change, Change::Delete) {
            vm.backups.remove(&target.backup);
            return;
        }
        let Some(stored) = vm.backups.get_mut(&target.backup) else {
            return;
        };
        match change {
            Change::Create(_) => stored.whole = true,
            Change::Update(patch) => stored.backup = patch.applied_to(stored.backup.clone()),
            Change::Restore(_) => {
                vm.content = stored.content;
                vm.restores = vm.restores.saturating_add(1);
            }
            Change::Delete => {}
        }
    }
}
