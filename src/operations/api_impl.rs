//! [`Operations`] implements [`OperationsApi`].

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::PrincipalName;
use crate::model::RequestKey;
use crate::model::Revision;
use crate::model::Target;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::operations::accept;
use crate::operations::api::AcceptError;
use crate::operations::api::Accepted;
use crate::operations::api::CancelError;
use crate::operations::api::ChangePage;
use crate::operations::api::ChangeQuery;
use crate::operations::api::Forecast;
use crate::operations::api::KnownChanges;
use crate::operations::api::OperationsApi;
use crate::operations::api::Replay;
use crate::operations::api::StoreFault;
use crate::operations::api::Submission;
use crate::operations::api::WaitFor;
use crate::operations::cancel;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::core::Backend;
use crate::operations::forecast;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListQuery;
use crate::operations::open::Operations;
use crate::operations::pending_state;
use crate::operations::runner;
use crate::public_text;
use crate::runtime::work_context;

impl Operations {
    /// How many operations are unfinished.
    #[must_use]
    pub fn unfinished_count(&self) -> usize {
        self.core.live.count()
    }

    fn find_backend(&self, name: &BackendName) -> Result<&Backend, Fault> {
        self.core.backends.get(name).ok_or_else(|| {
            Fault::new(
                FaultKind::Unavailable,
                public_text!("The VM manager of this VM is not configured."),
            )
        })
    }
}

/// Returns the fault for the caller, and logs what the VM manager said.
fn log_and_publish(backend: &BackendName, call: &str, error: AdapterError) -> Fault {
    let (backend, kind, private) = (backend.as_str(), error.fault.kind.as_str(), error.private());
    // A request for what does not exist is in the access log already.
    if error.is_answer() {
        tracing::debug!(backend, call, kind, private, "backend refused a call");
    } else {
        tracing::warn!(backend, call, kind, private, "backend call failed");
    }
    error.fault
}

fn is_reached(operation: &Operation, until: WaitFor) -> bool {
    match until {
        WaitFor::End => operation.phase.is_final(),
        WaitFor::ChangeAfter(revision) => {
            operation.revision > revision || operation.phase.is_final()
        }
    }
}

#[async_trait]
impl OperationsApi for Operations {
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>> {
        let found = self.core.backends.get(backend)?;
        Some(Arc::clone(&found.capability))
    }

    async fn vm(&self, backend: &BackendName, vm: &VmId, by: Deadline) -> Result<Vm, Fault> {
        let adapter = &self.find_backend(backend)?.adapter;
        let read = adapter.read_vm(vm, by).await;
        read.map_err(|error| log_and_publish(backend, "vm", error))
    }

    async fn vms(
        &self,
        backend: &BackendName,
        range: &VmRange,
        by: Deadline,
    ) -> Result<VmPage, Fault> {
        let adapter = &self.find_backend(backend)?.adapter;
        let listed = adapter.list_vms(range, by).await;
        listed.map_err(|error| log_and_publish(backend, "vms", error))
    }

    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, Fault> {
        let adapter = &self.find_backend(backend)?.adapter;
        // Before the VM manager is asked: see `pending_state::overlay`.
        let unfinished = self.core.live.unfinished_on_vm(backend, vm);
        let changing = pending_state::separate_ids(query, &unfinished);
        let mut native = query.clone();
        native.filter.hidden.extend(changing.iter().cloned());
        let found = adapter.query_backups(vm, &native, by).await;
        let found = found.map_err(|error| log_and_publish(backend, "list", error))?;
        let mut separate = Vec::with_capacity(changing.len());
        for backup in changing {
            let vm = vm.clone();
            match self.backup(backend, &Target { vm, backup }, by).await {
                Ok(backup) => separate.push(backup),
                Err(fault) if fault.kind == FaultKind::NoSuchBackup => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(pending_state::merge_selection(
            query,
            found,
            separate,
            &unfinished,
        ))
    }

    async fn backup(
        &self,
        backend: &BackendName,
        target: &Target,
        by: Deadline,
    ) -> Result<Backup, Fault> {
        let adapter = &self.find_backend(backend)?.adapter;
        let unfinished = self.core.live.unfinished_on_vm(backend, &target.vm);
        match adapter.read_backup(target, by).await {
            Ok(found) => Ok(pending_state::overlay(found, &unfinished)),
            Err(error) if error.fault.kind == FaultKind::NoSuchBackup => {
                pending_state::find_planned(&target.backup, &unfinished).ok_or(error.fault)
            }
            Err(error) => Err(log_and_publish(backend, "read", error)),
        }
    }

    async fn preview(
        &self,
        backend: &BackendName,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Forecast, Fault> {
        let found = self.find_backend(backend)?;
        let forecast = forecast::make_forecast(&self.core, backend, found, intent, by).await;
        forecast.map_err(|error| log_and_publish(backend, "preview", error))
    }

    fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        self.core.live.known_changes(backend, vm)
    }

    fn reserve(&self) -> OperationSeq {
        self.core.sequence.next(self.core.clock.now())
    }

    fn mint_backup_id(
        &self,
        backend: &BackendName,
        new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        let found = self.find_backend(backend)?;
        if found.capability.create.is_none() {
            return Err(accept::unsupported());
        }
        let minted = found.adapter.mint_backup_id(new, RequestKey(seq));
        minted.map_err(|error| log_and_publish(backend, "mint", error))
    }

    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        let idempotency = Idempotency {
            key: key.clone(),
            fingerprint,
        };
        let found = self
            .core
            .store
            .raw()
            .find_by_key(principal, scope, &idempotency)
            .await;
        let found = found.map_err(|error| self.core.store.read_fault(&error))?;
        Ok(found.map_or(Replay::Unused, |operation| {
            if operation.idempotency.as_ref() == Some(&idempotency) {
                Replay::Same(operation)
            } else {
                Replay::Other(operation.seq)
            }
        }))
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        // A task of its own: the client that waits for the answer may go away at any point. The same task runs the operation
        // when it is the first of its VM, which saves a switch of tasks.
        let core = Arc::clone(&self.core);
        let (answer, answered) = oneshot::channel();
        self.core.spawn(work_context::inherit(async move {
            let (accepted, claim) = match accept::accept(&core, &permit, submission).await {
                Ok((accepted, claim)) => (Ok(accepted), claim),
                Err(error) => (Err(error), None),
            };
            // An error means that the client is gone, which does not matter here.
            drop(answer.send(accepted));
            if let Some(claim) = claim {
                runner::run(core, claim).await;
            }
        }));
        answered.await.unwrap_or_else(|_gone| {
            tracing::error!("panic while accepting an operation");
            self.core.metrics.process.record_panic("operations");
            Err(AcceptError::Store(StoreFault::Unavailable))
        })
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        if let Some(current) = self.core.live.current_state(seq) {
            return Ok(Some(current));
        }
        let found = self.core.store.raw().read(seq).await;
        found.map_err(|error| self.core.store.read_fault(&error))
    }

    async fn list(&self, query: &ListQuery) -> Result<ListPage, StoreFault> {
        let found = self.core.store.raw().list(query).await;
        found.map_err(|error| self.core.store.read_fault(&error))
    }

    fn find_running_delete(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Option<Arc<Operation>> {
        let unfinished = self.core.live.unfinished_on_vm(backend, &target.vm);
        let is_delete = |operation: &Arc<Operation>| {
            operation.verb() == Verb::Delete && operation.target().backup == target.backup
        };
        unfinished.into_iter().find(is_delete)
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        let Some(mut watch) = self.core.live.watch(seq) else {
            // Not unfinished: it is final, or there is none.
            return self.operation(seq).await;
        };
        let change = async {
            loop {
                if let Some(current) = watch.borrow_and_update().as_ref()
                    && is_reached(current, until)
                {
                    return Some(Arc::clone(current));
                }
                if watch.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout_at(by.instant().into(), change).await {
            Ok(Some(current)) => Ok(Some(current)),
            Ok(None) | Err(_) => self.operation(seq).await,
        }
    }

    fn change_feed(&self) -> Option<Arc<ChangeFeed>> {
        self.core.store.raw().change_feed()
    }

    async fn stored_changes(&self, query: &ChangeQuery) -> Result<ChangePage, StoreFault> {
        let found = self.core.store.raw().changes(query).await;
        found.map_err(|error| self.core.store.read_fault(&error))
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        // A task of its own: a write that was started is finished and published, whether or not the client waits.
        let core = Arc::clone(&self.core);
        let cancelled = self
            .core
            .spawn(work_context::inherit(async move {
                cancel::cancel(&core, seq, only_at).await
            }))
            .await;
        cancelled.unwrap_or_else(|error| {
            tracing::error!(%error, "panic while cancelling an operation");
            self.core.metrics.process.record_panic("operations");
            Err(CancelError::Store(StoreFault::Unavailable))
        })
    }

    fn is_ready(&self) -> bool {
        self.core.store.is_writable()
            && !self.core.store.failed().is_given()
            && !self.core.stop.is_given()
    }
}
