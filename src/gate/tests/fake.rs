//! An in-memory operations service that behaves as each test sets it up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::model::*;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::CancelError;
use crate::operations::Capability;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::Replay;
use crate::operations::StoreFault;
use crate::operations::Submission;
use crate::operations::VerbCapability;
use crate::operations::WaitFor;
use crate::public_text;

/// What the service does and has.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) backups: BTreeMap<Target, Backup>,
    pub(super) operations: Vec<Arc<Operation>>,
    /// Every read of a backend fails so.
    pub(super) fault: Option<Fault>,
    /// The next acceptance fails so.
    pub(super) refuse: Option<AcceptError>,
    pub(super) store: Option<StoreFault>,
    /// Updates end at once.
    pub(super) quick: bool,
    pub(super) unable: bool,
    pub(super) not_ready: bool,
    /// Waiting takes until something changes, instead of no time.
    pub(super) patient: bool,
    /// A cancellation is accepted, and nothing has come of it yet.
    pub(super) slow_to_cancel: bool,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
pub(super) struct Fake(pub(super) Mutex<State>);

pub(super) fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

pub(super) fn backup(id: &str, name: &str) -> Backup {
    Backup {
        id: BackupId::new(id).unwrap(),
        identity: Identity::new(format!("{id}@1")),
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: Some(BackupKind::Full),
        created: Timestamp::from_millis(1_000),
        tags: vec![Tag::new("t").unwrap()],
        state: BackupState::Available,
        size: Some(7),
        protected: false,
    }
}

impl Fake {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    fn read<T>(&self, work: impl FnOnce(&mut State) -> Result<T, Fault>) -> Result<T, Fault> {
        self.with(|state| match state.fault.clone() {
            Some(fault) => Err(fault),
            None => work(state),
        })
    }

    /// Changes an operation and wakes those who wait for state.
    pub(super) fn change(&self, seq: u64, phase: Phase, percent: u8) {
        self.with(|state| {
            let found = state
                .operations
                .iter_mut()
                .find(|operation| operation.seq.number() == seq);
            let found = found.unwrap();
            *found = Arc::new(Operation {
                phase,
                progress: Progress::unfinished(percent),
                revision: found.revision.next(),
                ..Operation::clone(found)
            });
            state.changed.notify_waiters();
        });
    }

    fn stored<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, StoreFault> {
        self.with(|state| match state.store {
            Some(fault) => Err(fault),
            None => Ok(work(state)),
        })
    }
}

fn finished(operation: &Operation) -> Operation {
    Operation {
        phase: Phase::Succeeded,
        revision: operation.revision.next(),
        ..operation.clone()
    }
}

#[async_trait]
impl OperationsApi for Fake {
    fn capability(&self, _backend: &BackendName) -> Option<Arc<Capability>> {
        let able = VerbCapability {
            recovery: crate::operations::Recovery::ReplaySafe,
            settle: std::time::Duration::ZERO,
            cancel: false,
            progress: true,
        };
        let able = self.with(|state| (!state.unable).then_some(able));
        Some(Arc::new(Capability {
            kind: "fake",
            create: able,
            update: able,
            delete: able,
            restore: able,
            kinds: &[BackupKind::Full],
            restore_options: &[("mode", "how")],
            online: true,
            memory: false,
            consistent: true,
        }))
    }

    async fn vm(&self, _backend: &BackendName, vm: &VmId, _by: Deadline) -> Result<Vm, Fault> {
        self.read(|_| {
            Ok(Vm {
                id: vm.clone(),
                name: "web".to_owned(),
                description: None,
                run_state: Some(RunState::Started),
            })
        })
    }

    async fn backups(
        &self,
        _backend: &BackendName,
        vm: &VmId,
        page: &Page,
        _by: Deadline,
    ) -> Result<BackupPage, Fault> {
        self.read(|state| {
            let is_after = |id: &BackupId| page.after.as_ref().is_none_or(|after| id > after);
            let all = state
                .backups
                .iter()
                .filter(|(at, _)| at.vm == *vm && is_after(&at.backup));
            let mut backups: Vec<_> = all.map(|(_, state)| state.clone()).collect();
            let more = backups.len() > usize::from(page.limit);
            backups.truncate(usize::from(page.limit));
            Ok(BackupPage { backups, more })
        })
    }

    async fn backup(
        &self,
        _backend: &BackendName,
        target: &Target,
        _by: Deadline,
    ) -> Result<Backup, Fault> {
        let missing = || {
            Fault::new(
                FaultKind::NoSuchBackup,
                public_text!("The file /srv/private is missing."),
            )
        };
        self.read(|state| state.backups.get(target).cloned().ok_or_else(missing))
    }

    fn reserve(&self) -> OperationSeq {
        let count = self.with(|state| state.operations.len());
        OperationSeq::new(u64::try_from(count).unwrap().saturating_add(1)).unwrap()
    }

    fn mint_backup_id(
        &self,
        _backend: &BackendName,
        _new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        Ok(BackupId::new(&format!("new-{seq}")).unwrap())
    }

    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        self.stored(|state| {
            for operation in &state.operations {
                let in_scope = operation.intent.key_scope() == *scope;
                if operation.principal != *principal || !in_scope {
                    continue;
                }
                let Some(known) = operation
                    .idempotency
                    .as_ref()
                    .filter(|idempotency| idempotency.key == *key)
                else {
                    continue;
                };
                return if known.fingerprint == fingerprint {
                    Replay::Same(Arc::clone(operation))
                } else {
                    Replay::Other(operation.seq)
                };
            }
            Replay::Unused
        })
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        self.with(|state| {
            if let Some(error) = state.refuse.clone() {
                return Err(error);
            }
            if !permit.covers(&submission.intent) {
                return Err(AcceptError::NotPermitted);
            }
            let operation = Arc::new(Operation {
                seq: submission.seq,
                revision: Revision::FIRST,
                principal: permit.principal().name.clone(),
                request: submission.request,
                backend: permit.backend().clone(),
                intent: submission.intent,
                preconditions: submission.preconditions,
                note: submission.note,
                idempotency: submission.idempotency,
                phase: Phase::Accepted,
                progress: Progress::NONE,
                fault: None,
                notice: None,
                baseline: None,
                calls: 0,
                task: None,
                created: Timestamp::from_millis(2_000),
                started: None,
                completed: None,
                uncertain_since: None,
                ignored: submission.ignored,
                resume_expired: false,
                cancel_asked: None,
                acknowledged: None,
                expires: None,
            });
            state.operations.push(Arc::clone(&operation));
            Ok(Accepted::New(operation))
        })
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        self.stored(|state| {
            state
                .operations
                .iter()
                .find(|operation| operation.seq == seq)
                .cloned()
        })
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreFault> {
        self.stored(|state| {
            let wanted = &query.selector;
            let fits = |state: &&Arc<Operation>| {
                query
                    .principal
                    .as_ref()
                    .is_none_or(|name| *name == state.principal)
                    && wanted.verb.is_none_or(|verb| verb == state.verb())
                    && wanted.vm.as_ref().is_none_or(|vm| *vm == state.target().vm)
                    && wanted
                        .backup
                        .as_ref()
                        .is_none_or(|id| *id == state.target().backup)
                    && query.before.is_none_or(|before| state.seq < before)
                    && query
                        .unfinished
                        .is_none_or(|open| open != state.phase.is_final())
            };
            let newest = state.operations.iter().rev().filter(fits);
            newest.take(usize::from(query.limit)).cloned().collect()
        })
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        let (patient, changed) = self.with(|state| (state.patient, Arc::clone(&state.changed)));
        let fits = |state: &Operation| match until {
            WaitFor::End => state.phase.is_final(),
            WaitFor::ChangeAfter(seen) => state.revision > seen,
        };
        loop {
            if !patient {
                break;
            }
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = self.operation(seq).await?;
            let is_over = found.as_ref().is_none_or(|operation| fits(operation));
            if is_over
                || tokio::time::timeout_at(by.instant().into(), changed)
                    .await
                    .is_err()
            {
                return Ok(found);
            }
        }
        self.stored(|state| {
            let quick = state.quick;
            let found = state
                .operations
                .iter_mut()
                .find(|operation| operation.seq == seq)?;
            if quick {
                *found = Arc::new(finished(found));
            }
            Some(Arc::clone(found))
        })
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        self.stored(|state| {
            let found = state
                .operations
                .iter_mut()
                .find(|operation| operation.seq == seq);
            let found = found.ok_or(CancelError::NoSuchOperation)?;
            if only_at.is_some_and(|revision| revision != found.revision) {
                return Err(CancelError::Changed);
            }
            if found.phase.is_final() {
                return Err(CancelError::NotCancellable);
            }
            if state.slow_to_cancel {
                return Ok(Arc::clone(found));
            }
            *found = Arc::new(Operation {
                phase: Phase::Cancelled,
                progress: Progress::DONE,
                fault: Some(Fault::new(
                    FaultKind::Cancelled,
                    public_text!("The operation was stopped."),
                )),
                revision: found.revision.next(),
                ..Operation::clone(found)
            });
            Ok(Arc::clone(found))
        })?
    }

    fn is_ready(&self) -> bool {
        self.with(|state| !state.not_ready)
    }
}
