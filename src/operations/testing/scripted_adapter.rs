//! An adapter whose answers a test sets, and which records the calls.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::sync::Notify;

use super::backup;
use super::task_ref;
use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Recovery;
use crate::adapters::adapter::TaskState;
use crate::adapters::adapter::VerbCapability;
use crate::adapters::adapter::lists_no_vms;
use crate::adapters::adapter::operation_number_as_id;
use crate::adapters::backup_listing::query_by_listing;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::OperationSeq;
use crate::model::Page;
use crate::model::Preview;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::RequestKey;
use crate::model::RunState;
use crate::model::SpaceNeeds;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;

/// How the adapter answers a call to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operations) enum BeginReply {
    /// It starts a task that runs until the test ends it.
    Task,
    /// It does the work at once.
    Done,
    /// It refuses, without effect.
    Refuse,
    /// Its answer is lost.
    Lose,
    /// It panics.
    Panic,
    /// It never answers.
    Hang,
}

/// How the adapter answers a poll of a task, or a search for a lost call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operations) enum Reply {
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

/// The answers to come, and the calls so far.
#[derive(Debug, Default)]
struct Script {
    /// By VM; the default is a task.
    begin: BTreeMap<String, BeginReply>,
    /// Of polls, by VM; the default is `Running(0)`.
    poll: BTreeMap<String, Reply>,
    /// Of searches; each is used once, but for the last.
    find: VecDeque<Reply>,
    begun: Vec<(OperationSeq, String)>,
    /// Tasks that it was asked to cancel, as often as it was asked.
    cancelled: Vec<String>,
    /// It accepts requests to cancel, and goes on.
    ignores_cancels: bool,
    find_count: usize,
    backups: Vec<Backup>,
    fails_reads: bool,
    /// What previews say that would refuse the change.
    refusals: Vec<Fault>,
}

/// An adapter that answers as the test says. Like a VM manager, it outlives the gateways over it.
#[derive(Debug)]
pub(in crate::operations) struct ScriptedAdapter {
    capability: Capability,
    script: Mutex<Script>,
    changed: Notify,
}

impl ScriptedAdapter {
    pub(in crate::operations) fn new(recovery: Recovery) -> Arc<Self> {
        Arc::new(Self::build(recovery))
    }

    /// One that supports updates as well, without a baseline for them.
    pub(in crate::operations) fn with_updates(recovery: Recovery) -> Arc<Self> {
        let mut adapter = Self::build(recovery);
        adapter.capability.update = adapter.capability.restore;
        Arc::new(adapter)
    }

    fn build(recovery: Recovery) -> Self {
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
                lists_vms: false,
            },
            script: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The recovery class of its verbs.
    pub(in crate::operations) fn recovery(&self) -> Recovery {
        let verb = self.capability.restore.expect("it restores");
        verb.recovery
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock()
    }

    pub(in crate::operations) fn set_begin_reply(&self, vm: &str, begin: BeginReply) {
        self.script().begin.insert(vm.to_owned(), begin);
    }

    /// The reply to polls of tasks of that VM from now on. Hints at a change, so that the gateway polls at once.
    pub(in crate::operations) fn set_task_reply(&self, vm: &str, reply: Reply) {
        self.script().poll.insert(vm.to_owned(), reply);
        self.changed.notify_waiters();
    }

    /// The replies to searches from now on. The last one is repeated.
    pub(in crate::operations) fn set_find_replies(&self, replies: &[Reply]) {
        self.script().find = replies.iter().copied().collect();
    }

    /// The VM manager has these backups from now on, each as [`backup`] makes it.
    pub(in crate::operations) fn set_backup_ids(&self, ids: &[&str]) {
        self.script().backups = ids.iter().map(|id| backup(id)).collect();
    }

    /// The VM manager has these backups from now on.
    pub(in crate::operations) fn set_backups(&self, backups: Vec<Backup>) {
        self.script().backups = backups;
    }

    /// Reads of backups fail from now on.
    pub(in crate::operations) fn fail_reads(&self) {
        self.script().fails_reads = true;
    }

    /// The operations that it was asked to begin, in order.
    pub(in crate::operations) fn begun_operations(&self) -> Vec<OperationSeq> {
        self.script().begun.iter().map(|(seq, _)| *seq).collect()
    }

    /// The tasks that it was asked to cancel.
    pub(in crate::operations) fn cancelled_tasks(&self) -> Vec<String> {
        self.script().cancelled.clone()
    }

    /// Whether it accepts requests to cancel and goes on, from now on.
    pub(in crate::operations) fn ignore_cancels(&self, ignore: bool) {
        self.script().ignores_cancels = ignore;
    }

    /// What would refuse the next changes, as previews say.
    pub(in crate::operations) fn set_refusals(&self, refusals: Vec<Fault>) {
        self.script().refusals = refusals;
    }

    /// How often it was asked to search for a lost call.
    pub(in crate::operations) fn find_count(&self) -> usize {
        self.script().find_count
    }
}

fn no_answer() -> PublicText {
    public_text!("The VM manager does not answer.")
}

fn storage_full() -> Fault {
    Fault::new(FaultKind::StorageFull, public_text!("The storage is full."))
}

#[async_trait]
impl Adapter for ScriptedAdapter {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    async fn health(&self, _: Deadline) -> Result<Health, AdapterError> {
        Ok(Health {
            product: "scripted".to_owned(),
        })
    }

    async fn read_vm(&self, _: &VmId, _: Deadline) -> Result<Vm, AdapterError> {
        Err(
            AdapterError::refused(FaultKind::NoSuchVm, public_text!("There is no such VM."))
                .because("native words"),
        )
    }

    async fn list_vms(&self, _: &VmRange, _: Deadline) -> Result<VmPage, AdapterError> {
        Err(lists_no_vms())
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

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        query_by_listing(self, vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, _: Deadline) -> Result<Backup, AdapterError> {
        let script = self.script();
        if script.fails_reads {
            let error = AdapterError::uncertain(FaultKind::Unavailable, no_answer());
            return Err(error);
        }
        let found = script
            .backups
            .iter()
            .find(|backup| backup.id == target.backup);
        found.cloned().ok_or_else(|| {
            AdapterError::refused(
                FaultKind::NoSuchBackup,
                public_text!("There is no such backup."),
            )
        })
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        let backup = self.read_backup(&intent.target, by).await?;
        let vm = Vm {
            id: intent.target.vm.clone(),
            name: intent.target.vm.as_str().to_owned(),
            description: None,
            run_state: Some(RunState::Stopped),
        };
        let script = self.script();
        let mut preview = Preview::new(vm, backup).with_newer(&script.backups);
        preview.refused.clone_from(&script.refusals);
        preview.needs = preview.backup.size.map(|bytes| SpaceNeeds {
            bytes: Some(bytes),
            free: None,
        });
        Ok(preview)
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
        let is_needed = self.needs_baseline(intent);
        Ok(Evidence::new(key.to_string()).filter(|_| is_needed))
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        _: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let vm = intent.target.vm.as_str().to_owned();
        let given = baseline.map(Evidence::as_str).map(str::to_owned);
        let expected = self.needs_baseline(intent).then(|| key.to_string());
        assert_eq!(given, expected, "the baseline is handed to the call");
        let begin = {
            let mut script = self.script();
            script.begun.push((key.0, vm.clone()));
            script.begin.get(&vm).copied().unwrap_or(BeginReply::Task)
        };
        match begin {
            BeginReply::Task => Ok(BeginOutcome::Task(task_ref(&vm))),
            BeginReply::Done => Ok(BeginOutcome::Done),
            BeginReply::Refuse => Err(AdapterError::refused(
                FaultKind::Busy,
                public_text!("The VM is busy."),
            )),
            BeginReply::Lose => Err(AdapterError::uncertain(FaultKind::TimedOut, no_answer())),
            BeginReply::Panic => panic!("meant to"),
            BeginReply::Hang => std::future::pending().await,
        }
    }

    async fn poll(&self, task: &TaskRef, _: Deadline) -> Result<TaskState, AdapterError> {
        let reply = self.script().poll.get(task.as_str()).copied();
        Ok(match reply.unwrap_or(Reply::Running(0)) {
            Reply::Running(percent) => TaskState::Running(Some(Progress::unfinished(percent))),
            Reply::Done => TaskState::Done(None),
            Reply::Gone => TaskState::Gone,
            Reply::Cancelled => TaskState::Cancelled,
            Reply::Error => return Err(AdapterError::unavailable(no_answer())),
            Reply::Panic => panic!("meant to"),
            Reply::Fail
            | Reply::NotBegun
            | Reply::VmChanged
            | Reply::Task
            | Reply::NotYet
            | Reply::Unknowable => TaskState::Failed(storage_full()),
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
        let reply = {
            let mut script = self.script();
            script.find_count = script.find_count.saturating_add(1);
            if script.find.len() > 1 {
                script.find.pop_front()
            } else {
                script.find.front().copied()
            }
        };
        Ok(match reply.unwrap_or(Reply::NotYet) {
            Reply::NotBegun => FindOutcome::NotBegun,
            Reply::VmChanged => FindOutcome::VmChanged,
            Reply::Task | Reply::Running(_) => {
                FindOutcome::Task(task_ref(intent.target.vm.as_str()))
            }
            Reply::Done => FindOutcome::Done(None),
            Reply::Fail => FindOutcome::Failed(storage_full()),
            Reply::NotYet | Reply::Gone | Reply::Cancelled => FindOutcome::NotYet,
            Reply::Unknowable => FindOutcome::Unknowable,
            Reply::Error => return Err(AdapterError::unavailable(no_answer())),
            Reply::Panic => panic!("meant to"),
        })
    }

    async fn cancel(&self, task: &TaskRef, _: Deadline) -> Result<(), AdapterError> {
        let mut script = self.script();
        let task = task.as_str().to_owned();
        script.cancelled.push(task.clone());
        if !script.ignores_cancels {
            script.poll.insert(task, Reply::Cancelled);
        }
        Ok(())
    }

    fn metadata_owner(&self) -> MetadataOwner {
        MetadataOwner::Native
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        *stored == backup.identity
    }

    fn mint_backup_id(&self, _new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        operation_number_as_id(key)
    }
}
