//! A stand-in for [`Operations`](crate::operations::Operations) that keeps everything in memory. Not part of the public interface.
//!
//! The tests of the gate, the fuzz targets and the benchmarks drive a gate over it. Each sets up the [`MemoryState`] that
//! it needs and looks into it afterwards. Benchmarks use [`FixedAnswers`] instead, so that they measure the gate alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use parking_lot::MutexGuard;
use tokio::sync::Notify;

use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::BackupState;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::IdempotencyKey;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Phase;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::PreviewPart;
use crate::model::PrincipalName;
use crate::model::Progress;
use crate::model::Revision;
use crate::model::RunState;
use crate::model::SpaceNeeds;
use crate::model::Tag;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::model::limits;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::CancelError;
use crate::operations::Capability;
use crate::operations::ExpectedDuration;
use crate::operations::Forecast;
use crate::operations::ListPage;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::Recovery;
use crate::operations::Replay;
use crate::operations::StoreFault;
use crate::operations::Submission;
use crate::operations::VerbCapability;
use crate::operations::WaitFor;
use crate::public_text;

/// A path in the texts of this service's own faults. A gate must never show it to a caller.
pub const PRIVATE_PATH: &str = "/srv/private";

/// When operations are accepted, by the service's own clock, which stands still.
const ACCEPTED_AT: Timestamp = Timestamp::from_millis(2_000);
const FIRST_SEQ: OperationSeq = OperationSeq::new(1).unwrap();

/// What previews say beside what there is.
#[derive(Debug, Default)]
pub struct PlannedAnswers {
    /// What would refuse the change.
    pub faults: Vec<Fault>,
    /// Backups that go with it.
    pub loses: Vec<Backup>,
    /// How long it takes.
    pub duration: Option<ExpectedDuration>,
    /// Whether everything else that a preview can say is said.
    pub is_full: bool,
}

impl PlannedAnswers {
    fn edit(&self, preview: &mut Preview) {
        preview.refused.clone_from(&self.faults);
        preview.loses.clone_from(&self.loses);
        if self.is_full {
            let disk = |name: &str, size| PreviewDisk {
                disk: name.to_owned(),
                size: Some(size),
            };
            preview.overwrites = vec![disk("root", 9), disk("huge", u64::MAX)];
            preview.leaves = vec!["data".to_owned()];
            preview.needs = Some(SpaceNeeds {
                bytes: Some(7),
                free: Some(8),
            });
            preview.warnings = vec![public_text!("The VM is old.")];
            preview.unknown = vec![PreviewPart::Refused];
        }
    }
}

/// The VMs of one backend, and what was asked of it.
#[derive(Debug, Default)]
pub struct ListedVms {
    /// In order of their ids.
    pub vms: Vec<Vm>,
    /// How the backend answers.
    pub manner: ListManner,
    /// Calls for a list or a VM.
    pub calls: usize,
    /// VMs handed out by these calls.
    pub looked_at: usize,
}

impl ListedVms {
    fn read_vm(&mut self, id: &VmId) -> Result<Vm, Fault> {
        self.calls = self.calls.saturating_add(1);
        if self.manner == ListManner::Down {
            return Err(missing(FaultKind::Unavailable));
        }
        let found = self.vms.iter().find(|known| known.id == *id).cloned();
        let count = usize::from(found.is_some());
        self.looked_at = self.looked_at.saturating_add(count);
        found.ok_or_else(|| missing(FaultKind::NoSuchVm))
    }
}

/// How a backend answers when it is asked for its VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListManner {
    /// With a list.
    #[default]
    Lists,
    /// Its capability says that it does not list.
    Unlisted,
    /// It says so when it is asked.
    Unable,
    /// It is unavailable.
    Down,
    /// It never answers.
    Hangs,
    /// It is another gateway that lacks one of its own backends.
    Partial,
}

/// What the service has, and how it behaves.
#[derive(Debug)]
pub struct MemoryState {
    /// The only backend, when the gate may name no other. Asking for another one fails the test.
    pub backend: Option<BackendName>,
    /// What the backend supports.
    pub capability: Arc<Capability>,
    /// The VMs.
    pub vms: BTreeMap<VmId, Vm>,
    /// What these backends list, instead of [`Self::vms`].
    pub listed: BTreeMap<BackendName, ListedVms>,
    /// The backups.
    pub backups: BTreeMap<Target, Backup>,
    /// The operations, oldest first.
    pub operations: Vec<Arc<Operation>>,
    /// What was accepted, with its proof.
    pub accepted: Vec<(Permit, Submission)>,
    /// What was to be cancelled, and could be.
    pub cancelled: Vec<OperationSeq>,
    /// What plans say.
    pub planned: PlannedAnswers,
    /// Every read of a backend fails like this.
    pub read_fault: Option<Fault>,
    /// Every acceptance fails like this.
    pub accept_error: Option<AcceptError>,
    /// Every read of the operation store fails like this.
    pub store_fault: Option<StoreFault>,
    /// Whether new operations can be accepted, as the health check sees it.
    pub is_ready: bool,
    /// Whether waiting for an operation ends it.
    pub ends_when_awaited: bool,
    /// Whether waiting takes until the operation changes, instead of no time.
    pub waits_for_changes: bool,
    /// Whether a cancelled operation stays as it is for now.
    pub cancels_later: bool,
}

impl Default for MemoryState {
    fn default() -> Self {
        Self {
            backend: None,
            capability: Arc::new(full_capability()),
            vms: BTreeMap::new(),
            listed: BTreeMap::new(),
            backups: BTreeMap::new(),
            operations: Vec::new(),
            accepted: Vec::new(),
            cancelled: Vec::new(),
            planned: PlannedAnswers::default(),
            read_fault: None,
            accept_error: None,
            store_fault: None,
            is_ready: true,
            ends_when_awaited: false,
            waits_for_changes: false,
            cancels_later: false,
        }
    }
}

impl MemoryState {
    /// Adds a VM with backups.
    pub fn add_vm(&mut self, id: &VmId, backups: impl IntoIterator<Item = Backup>) {
        self.vms.insert(id.clone(), sample_vm(id));
        for backup in backups {
            let target = Target {
                vm: id.clone(),
                backup: backup.id.clone(),
            };
            self.backups.insert(target, backup);
        }
    }

    fn read_backend(&self, backend: &BackendName) -> Result<&Self, Fault> {
        self.check_backend(backend);
        self.read_fault.clone().map_or(Ok(self), Err)
    }

    fn check_backend(&self, backend: &BackendName) {
        let is_known = self.backend.as_ref().is_none_or(|only| only == backend);
        assert!(is_known, "the gate asked for the backend {backend}");
    }

    fn read_store(&mut self) -> Result<&mut Self, StoreFault> {
        match self.store_fault {
            Some(fault) => Err(fault),
            None => Ok(self),
        }
    }

    fn operation(&mut self, seq: OperationSeq) -> Option<&mut Arc<Operation>> {
        self.operations
            .iter_mut()
            .find(|operation| operation.seq == seq)
    }

    fn next_seq(&self) -> OperationSeq {
        let last = u64::try_from(self.operations.len()).unwrap_or(u64::MAX);
        OperationSeq::new(last.saturating_add(1)).unwrap_or(FIRST_SEQ)
    }
}

/// The same answers whatever was asked, given without a lock or a look-up; nothing is kept.
#[derive(Debug)]
pub struct FixedAnswers {
    /// Every backup: this one under the id that was asked for.
    pub backup: Backup,
    /// What every backend supports.
    pub capability: Arc<Capability>,
    /// When operations are accepted.
    pub accepted_at: Timestamp,
}

impl FixedAnswers {
    fn backup(&self, id: &BackupId) -> Backup {
        Backup {
            id: id.clone(),
            identity: identity_of(id),
            ..self.backup.clone()
        }
    }
}

/// The service.
#[derive(Debug, Default)]
pub struct MemoryOperations {
    fixed: Option<FixedAnswers>,
    state: Mutex<MemoryState>,
    changed: Notify,
}

impl MemoryOperations {
    /// With this at the beginning.
    #[must_use]
    pub fn new(state: MemoryState) -> Self {
        Self {
            state: Mutex::new(state),
            ..Self::default()
        }
    }

    /// With the same answers for ever.
    #[must_use]
    pub fn with_fixed_answers(answers: FixedAnswers) -> Self {
        Self {
            fixed: Some(answers),
            ..Self::default()
        }
    }

    /// What the service has, to look at and to change. Do not hold it across an `await`.
    pub fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock()
    }

    /// Changes an operation and wakes those who wait for it; `false` when there is none of that number.
    #[must_use]
    pub fn change_operation(&self, seq: OperationSeq, phase: Phase, percent: u8) -> bool {
        let mut state = self.state();
        let Some(operation) = state.operation(seq) else {
            return false;
        };
        replace(operation, |next| {
            next.phase = phase;
            next.progress = Progress::unfinished(percent);
        });
        drop(state);
        self.changed.notify_waiters();
        true
    }
}

/// Gives the operation its next revision.
fn replace(operation: &mut Arc<Operation>, change: impl FnOnce(&mut Operation)) {
    let mut next = Operation::clone(operation);
    next.revision = next.revision.next();
    change(&mut next);
    *operation = Arc::new(next);
}

/// A backup that is complete and not protected.
#[must_use]
pub fn sample_backup(id: BackupId, name: BackupName) -> Backup {
    Backup {
        identity: identity_of(&id),
        id,
        name,
        description: None,
        kind: Some(BackupKind::Full),
        created: Timestamp::from_millis(1_000),
        tags: Tag::new("t").into_iter().collect(),
        state: BackupState::Available,
        size: Some(7),
        protected: false,
    }
}

fn identity_of(id: &BackupId) -> Identity {
    Identity::new(format!("{id}@1"))
}

fn sample_vm(id: &VmId) -> Vm {
    Vm {
        id: id.clone(),
        name: "web".to_owned(),
        description: None,
        run_state: Some(RunState::Started),
    }
}

/// A backend that can do everything by itself, but cannot cancel.
#[must_use]
pub fn full_capability() -> Capability {
    let able = VerbCapability {
        recovery: Recovery::ReplaySafe,
        settle: Duration::ZERO,
        cancel: false,
        progress: true,
    };
    Capability {
        kind: "memory",
        create: Some(able),
        update: Some(able),
        delete: Some(able),
        restore: Some(able),
        kinds: &[BackupKind::Full],
        restore_options: &[("mode", "how")],
        online: true,
        memory: false,
        consistent: true,
        lists_vms: true,
    }
}

/// A fault whose text the gate must not show.
fn missing(kind: FaultKind) -> Fault {
    Fault::new(kind, public_text!("The file {PRIVATE_PATH} is missing."))
}

/// The record of what was submitted.
fn accepted(permit: &Permit, submission: Submission, at: Timestamp) -> Arc<Operation> {
    Arc::new(Operation {
        preconditions: submission.preconditions,
        note: submission.note,
        ignored: submission.ignored,
        idempotency: submission.idempotency,
        ..Operation::accepted(
            submission.seq,
            permit.principal().name.clone(),
            submission.request,
            permit.backend().clone(),
            submission.intent,
            at,
        )
    })
}

#[async_trait]
impl OperationsApi for MemoryOperations {
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>> {
        if let Some(fixed) = &self.fixed {
            return Some(Arc::clone(&fixed.capability));
        }
        let state = self.state();
        state.check_backend(backend);
        let listed = state.listed.get(backend);
        if listed.is_some_and(|listed| listed.manner == ListManner::Unlisted) {
            return Some(Arc::new(Capability {
                lists_vms: false,
                ..Capability::clone(&state.capability)
            }));
        }
        Some(Arc::clone(&state.capability))
    }

    async fn vms(
        &self,
        backend: &BackendName,
        range: &VmRange,
        _by: Deadline,
    ) -> Result<VmPage, Fault> {
        let manner = {
            let mut state = self.state();
            state.read_backend(backend)?;
            let listed = state.listed.get_mut(backend);
            listed.map(|listed| {
                listed.calls = listed.calls.saturating_add(1);
                listed.manner
            })
        };
        match manner {
            Some(ListManner::Down) => return Err(missing(FaultKind::Unavailable)),
            Some(ListManner::Hangs) => std::future::pending().await,
            Some(ListManner::Unable) => return Err(missing(FaultKind::Unsupported)),
            Some(ListManner::Lists | ListManner::Unlisted | ListManner::Partial) | None => {}
        }
        let mut state = self.state();
        let Some(listed) = state.listed.get_mut(backend) else {
            let all: Vec<Vm> = state.vms.values().cloned().collect();
            return Ok(range.page_of(range.rest_of(&all, |vm| &vm.id).iter().cloned()));
        };
        let rest = range.rest_of(&listed.vms, |vm| &vm.id);
        let page = range.page_of(rest.iter().cloned());
        listed.looked_at = listed.looked_at.saturating_add(page.vms.len());
        let complete = manner != Some(ListManner::Partial);
        Ok(VmPage { complete, ..page })
    }

    async fn vm(&self, backend: &BackendName, vm: &VmId, _by: Deadline) -> Result<Vm, Fault> {
        if self.fixed.is_some() {
            return Ok(sample_vm(vm));
        }
        let mut state = self.state();
        state.read_backend(backend)?;
        if let Some(listed) = state.listed.get_mut(backend) {
            return listed.read_vm(vm);
        }
        let found = state.vms.get(vm).cloned();
        found.ok_or_else(|| missing(FaultKind::NoSuchVm))
    }

    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        query: &BackupQuery,
        _by: Deadline,
    ) -> Result<BackupSelection, Fault> {
        if let Some(fixed) = &self.fixed {
            return Ok(query.select([fixed.backup.clone()]));
        }
        let state = self.state();
        let all = state.read_backend(backend)?.backups.iter();
        let of_vm = all.filter(|(target, _)| target.vm == *vm);
        Ok(query.select(of_vm.map(|(_, backup)| backup.clone())))
    }

    async fn backup(
        &self,
        backend: &BackendName,
        target: &Target,
        _by: Deadline,
    ) -> Result<Backup, Fault> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.backup(&target.backup));
        }
        let state = self.state();
        let found = state.read_backend(backend)?.backups.get(target);
        found
            .cloned()
            .ok_or_else(|| missing(FaultKind::NoSuchBackup))
    }

    async fn preview(
        &self,
        backend: &BackendName,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Forecast, Fault> {
        let vm = self.vm(backend, &intent.target.vm, by).await?;
        let backup = self.backup(backend, &intent.target, by).await?;
        let state = self.state();
        let all = state.backups.iter();
        let of_vm = all.filter(|(target, _)| target.vm == intent.target.vm);
        let mut preview = Preview::new(vm, backup).with_newer(of_vm.map(|(_, backup)| backup));
        state.planned.edit(&mut preview);
        let unfinished = state.operations.iter();
        let pending = unfinished.filter(|operation| !operation.phase.is_final());
        Ok(Forecast {
            preview,
            pending: pending.cloned().collect(),
            refused: state.accept_error.clone(),
            duration: state.planned.duration,
        })
    }

    fn reserve(&self) -> OperationSeq {
        if self.fixed.is_some() {
            return FIRST_SEQ;
        }
        self.state().next_seq()
    }

    fn mint_backup_id(
        &self,
        _backend: &BackendName,
        _new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        let id = BackupId::new(&format!("new-{seq}")).ok();
        id.ok_or_else(|| missing(FaultKind::Invalid))
    }

    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        if self.fixed.is_some() {
            return Ok(Replay::Unused);
        }
        let mut state = self.state();
        for operation in &state.read_store()?.operations {
            if operation.principal != *principal || operation.intent.key_scope() != *scope {
                continue;
            }
            match &operation.idempotency {
                Some(known) if known.key == *key => {
                    return Ok(if known.fingerprint == fingerprint {
                        Replay::Same(Arc::clone(operation))
                    } else {
                        Replay::Other(operation.seq)
                    });
                }
                Some(_) | None => {}
            }
        }
        Ok(Replay::Unused)
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        if let Some(fixed) = &self.fixed {
            let operation = accepted(&permit, submission, fixed.accepted_at);
            return Ok(Accepted::New(operation));
        }
        let mut state = self.state();
        if let Some(error) = state.accept_error.clone() {
            return Err(error);
        }
        if !permit.covers(&submission.intent) {
            return Err(AcceptError::NotPermitted);
        }
        let operation = accepted(&permit, submission.clone(), ACCEPTED_AT);
        state.accepted.push((permit, submission));
        state.operations.push(Arc::clone(&operation));
        Ok(Accepted::New(operation))
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        let mut state = self.state();
        Ok(state.read_store()?.operation(seq).cloned())
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreFault> {
        assert!(
            (1..=limits::PAGE_MAX).contains(&query.limit),
            "the gate asked for a page of {} operations",
            query.limit
        );
        let mut state = self.state();
        Ok(query.select(state.read_store()?.operations.iter().cloned()))
    }

    fn find_running_delete(
        &self,
        _backend: &BackendName,
        target: &Target,
    ) -> Option<Arc<Operation>> {
        let state = self.state();
        let mut operations = state.operations.iter();
        let found = operations.find(|operation| {
            operation.verb() == Verb::Delete
                && operation.target() == target
                && !operation.phase.is_final()
        });
        found.cloned()
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        if self.fixed.is_some() {
            return Ok(None);
        }
        let is_over = |operation: &Operation| match until {
            WaitFor::End => operation.phase.is_final(),
            WaitFor::ChangeAfter(seen) => operation.revision > seen,
        };
        while self.state().waits_for_changes {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look at the operation: a change in between would wake no one otherwise.
            changed.as_mut().enable();
            let found = self.operation(seq).await?;
            if found.as_deref().is_none_or(is_over) {
                return Ok(found);
            }
            if tokio::time::timeout_at(by.instant().into(), changed)
                .await
                .is_err()
            {
                return Ok(found);
            }
        }
        let mut state = self.state();
        let ends = state.ends_when_awaited;
        let Some(operation) = state.read_store()?.operation(seq) else {
            return Ok(None);
        };
        if ends {
            replace(operation, |next| next.phase = Phase::Succeeded);
        }
        Ok(Some(Arc::clone(operation)))
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        let mut state = self.state();
        let later = state.cancels_later;
        let found = state.read_store()?.operation(seq);
        let operation = found.ok_or(CancelError::NoSuchOperation)?;
        if only_at.is_some_and(|revision| revision != operation.revision) {
            return Err(CancelError::Changed);
        }
        if operation.phase.is_final() {
            return Err(CancelError::NotCancellable);
        }
        if !later {
            let fault = Fault::new(
                FaultKind::Cancelled,
                public_text!("The operation was stopped."),
            );
            replace(operation, |next| {
                next.phase = Phase::Cancelled;
                next.progress = Progress::DONE;
                next.fault = Some(fault);
            });
        }
        let operation = Arc::clone(operation);
        state.cancelled.push(seq);
        Ok(operation)
    }

    fn is_ready(&self) -> bool {
        self.fixed.is_some() || self.state().is_ready
    }
}
