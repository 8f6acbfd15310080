//! The operations as the gate and the operator's commands find them: those of the present term, if there is one.
//!
//! What a term answers is handed on only if its lease is still held afterwards. A gateway that was stopped and wakes up late would
//! otherwise answer from its memory what is no longer true.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::ArcSwapOption;
use async_trait::async_trait;

use crate::app::term::Term;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::IdempotencyKey;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::PrincipalName;
use crate::model::Revision;
use crate::model::Target;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::ActiveGuard;
use crate::operations::CancelError;
use crate::operations::Capability;
use crate::operations::ChangeFeed;
use crate::operations::ChangePage;
use crate::operations::ChangeQuery;
use crate::operations::Forecast;
use crate::operations::KnownChanges;
use crate::operations::ListPage;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::Replay;
use crate::operations::StoreFault;
use crate::operations::Submission;
use crate::operations::WaitFor;
use crate::public_text;

/// The operations of the present term.
#[derive(Debug, Default)]
pub(crate) struct ActiveOperations {
    term: ArcSwapOption<Term>,
    /// What the backends of the last term are able to do: they are the same in the next.
    capabilities: ArcSwap<BTreeMap<BackendName, Arc<Capability>>>,
}

impl ActiveOperations {
    /// The present term, if its lease is held.
    pub(crate) fn term(&self) -> Option<Arc<Term>> {
        self.term.load_full().filter(|term| term.lease.is_held())
    }

    /// Whether requests are answered here.
    pub(crate) fn has_begun(&self) -> bool {
        self.term().is_some_and(|term| !term.ending().is_given())
    }

    /// From now on these operations are meant.
    pub(crate) fn begin(&self, term: &Arc<Term>) {
        let backends = term.backends.iter();
        let capabilities = backends.map(|backend| {
            let capability = backend.adapter.capability().clone();
            (backend.name.clone(), Arc::new(capability))
        });
        self.capabilities.store(Arc::new(capabilities.collect()));
        self.term.store(Some(Arc::clone(term)));
    }

    /// From now on there are none.
    pub(crate) fn end(&self) {
        self.term.store(None);
    }
}

impl Term {
    /// What the term answered, if its lease is still held.
    fn confirm<T, E>(&self, answer: Result<T, E>, away: impl FnOnce() -> E) -> Result<T, E> {
        if self.lease.is_held() {
            answer
        } else {
            Err(away())
        }
    }
}

fn away() -> Fault {
    Fault::new(
        FaultKind::Unavailable,
        public_text!("This gateway is not the active one of its cluster. Try again."),
    )
}

const fn store_away() -> StoreFault {
    StoreFault::Unavailable
}

#[async_trait]
impl OperationsApi for ActiveOperations {
    fn enter(&self) -> Option<ActiveGuard> {
        let term = self.term()?;
        let guard = term.enter();
        // Looked at afterwards: the end of the term waits for those who entered before it was announced.
        (!term.ending().is_given()).then_some(guard)
    }

    fn reaches(&self, backend: &BackendName) -> bool {
        let term = self.term();
        term.is_none_or(|term| !term.elsewhere.contains(backend))
    }

    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>> {
        self.capabilities.load().get(backend).cloned()
    }

    async fn vm(&self, backend: &BackendName, vm: &VmId, by: Deadline) -> Result<Vm, Fault> {
        let term = self.term().ok_or_else(away)?;
        let found = term.operations.vm(backend, vm, by).await;
        term.confirm(found, away)
    }

    async fn vms(
        &self,
        backend: &BackendName,
        range: &VmRange,
        by: Deadline,
    ) -> Result<VmPage, Fault> {
        let term = self.term().ok_or_else(away)?;
        let found = term.operations.vms(backend, range, by).await;
        term.confirm(found, away)
    }

    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, Fault> {
        let term = self.term().ok_or_else(away)?;
        let found = term.operations.backups(backend, vm, query, by).await;
        term.confirm(found, away)
    }

    async fn backup(
        &self,
        backend: &BackendName,
        target: &Target,
        by: Deadline,
    ) -> Result<Backup, Fault> {
        let term = self.term().ok_or_else(away)?;
        let found = term.operations.backup(backend, target, by).await;
        term.confirm(found, away)
    }

    async fn preview(
        &self,
        backend: &BackendName,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Forecast, Fault> {
        let term = self.term().ok_or_else(away)?;
        let found = term.operations.preview(backend, intent, by).await;
        term.confirm(found, away)
    }

    fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        let term = self.term();
        term.map(|term| term.operations.known_changes(backend, vm))
            .unwrap_or_default()
    }

    fn reserve(&self) -> OperationSeq {
        let term = self.term();
        term.map_or(OperationSeq::HIGHEST, |term| term.operations.reserve())
    }

    fn mint_backup_id(
        &self,
        backend: &BackendName,
        new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        let term = self.term().ok_or_else(away)?;
        term.operations.mint_backup_id(backend, new, seq)
    }

    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        let term = self.term().ok_or_else(store_away)?;
        let found = term
            .operations
            .replay(principal, scope, key, fingerprint)
            .await;
        term.confirm(found, store_away)
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        // Not confirmed: what is durable was accepted, whoever runs it.
        match self.term() {
            Some(term) if submission.seq != OperationSeq::HIGHEST => {
                term.operations.accept(permit, submission).await
            }
            // A number that was reserved without a term is none.
            Some(_) | None => Err(AcceptError::Store(store_away())),
        }
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        let term = self.term().ok_or_else(store_away)?;
        let found = term.operations.operation(seq).await;
        term.confirm(found, store_away)
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreFault> {
        let term = self.term().ok_or_else(store_away)?;
        let found = term.operations.list(query).await;
        term.confirm(found, store_away)
    }

    fn find_running_delete(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Option<Arc<Operation>> {
        self.term()?.operations.find_running_delete(backend, target)
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        let term = self.term().ok_or_else(store_away)?;
        let found = tokio::select! {
            // A result that is there is reported even when the term ends.
            biased;
            found = term.operations.wait(seq, until, by) => found,
            () = term.ending().given() => term.operations.operation(seq).await,
        };
        term.confirm(found, store_away)
    }

    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        self.term()?.operations.change_feed()
    }

    async fn stored_changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreFault> {
        let term = self.term().ok_or_else(store_away)?;
        let found = term.operations.stored_changes(query).await;
        term.confirm(found, store_away)
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        // Not confirmed either: the request to cancel is durable.
        match self.term() {
            Some(term) => term.operations.cancel(seq, only_at).await,
            None => Err(CancelError::Store(store_away())),
        }
    }

    fn is_ready(&self) -> bool {
        self.term().is_some_and(|term| term.operations.is_ready())
    }
}
