//! What the room offers to the gate, done.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Capability;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Page;
use crate::model::Permit;
use crate::model::PrincipalName;
use crate::model::RequestKey;
use crate::model::Revision;
use crate::model::Target;
use crate::model::Vm;
use crate::model::VmId;
use crate::operations::accept;
use crate::operations::api::AcceptError;
use crate::operations::api::Accepted;
use crate::operations::api::CancelError;
use crate::operations::api::KnownChanges;
use crate::operations::api::ListQuery;
use crate::operations::api::OperationsApi;
use crate::operations::api::Replay;
use crate::operations::api::StoreFault;
use crate::operations::api::Submission;
use crate::operations::api::WaitFor;
use crate::operations::cancel;
use crate::operations::core::Backend;
use crate::operations::core::Operations;
use crate::operations::pending_state;
use crate::operations::runner;

impl Operations {
    fn backend(&self, name: &BackendName) -> Result<&Backend, Fault> {
        self.core.backends.get(name).ok_or_else(|| {
            Fault::new(
                FaultKind::Unavailable,
                "The VM manager of this VM is not configured.",
            )
        })
    }
}

/// The fault for the caller; what the VM manager said goes to the log.
fn public(backend: &BackendName, call: &str, error: AdapterError) -> Fault {
    let (backend, kind, private) = (backend.as_str(), error.fault.kind.as_str(), error.private());
    // That a client asked for what does not exist is in the access log.
    if error.is_answer() {
        tracing::debug!(backend, call, kind, private, "backend refused a call");
    } else {
        tracing::warn!(backend, call, kind, private, "call to a backend failed");
    }
    error.fault
}

fn fits(operation: &Operation, until: WaitFor) -> bool {
    match until {
        WaitFor::End => operation.phase.is_final(),
        WaitFor::ChangeAfter(seen) => operation.revision > seen || operation.phase.is_final(),
    }
}

#[async_trait]
impl OperationsApi for Operations {
    fn capability(&self, backend: &BackendName) -> Option<Arc<Capability>> {
        let found = self.core.backends.get(backend)?;
        Some(Arc::clone(&found.capability))
    }

    async fn vm(&self, backend: &BackendName, vm: &VmId, by: Deadline) -> Result<Vm, Fault> {
        let adapter = &self.backend(backend)?.adapter;
        let read = adapter.read_vm(vm, by).await;
        read.map_err(|error| public(backend, "vm", error))
    }

    async fn backups(
        &self,
        backend: &BackendName,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, Fault> {
        let adapter = &self.backend(backend)?.adapter;
        let unfinished = self.core.ledger.of_vm(backend, vm);
        let found = adapter.list_backups(vm, page, by).await;
        let found = found.map_err(|error| public(backend, "list", error))?;
        Ok(pending_state::merged(page, found, &unfinished))
    }

    async fn backup(
        &self,
        backend: &BackendName,
        target: &Target,
        by: Deadline,
    ) -> Result<Backup, Fault> {
        let adapter = &self.backend(backend)?.adapter;
        let unfinished = self.core.ledger.of_vm(backend, &target.vm);
        match adapter.read_backup(target, by).await {
            Ok(found) => Ok(pending_state::overlaid(found, &unfinished)),
            Err(error) if error.fault.kind == FaultKind::NoSuchBackup => {
                pending_state::in_the_making(&target.backup, &unfinished).ok_or(error.fault)
            }
            Err(error) => Err(public(backend, "read", error)),
        }
    }

    fn known_changes(&self, backend: &BackendName, vm: &VmId) -> KnownChanges {
        self.core.ledger.known_changes(backend, vm)
    }

    fn reserve(&self) -> OperationSeq {
        self.core.numbers.next(self.core.clock.now())
    }

    fn mint_backup_id(
        &self,
        backend: &BackendName,
        new: &NewBackup,
        seq: OperationSeq,
    ) -> Result<BackupId, Fault> {
        let found = self.backend(backend)?;
        if found.capability.create.is_none() {
            return Err(accept::unsupported());
        }
        let minted = found.adapter.mint_backup_id(new, RequestKey(seq));
        minted.map_err(|error| public(backend, "mint", error))
    }

    async fn replay(
        &self,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &IdempotencyKey,
        fingerprint: Fingerprint,
    ) -> Result<Replay, StoreFault> {
        let used = Idempotency {
            key: key.clone(),
            fingerprint,
        };
        let found = self.core.store.by_key(principal, scope, &used).await;
        let found = found.map_err(|error| self.core.fault(&error))?;
        Ok(found.map_or(Replay::Unused, |it| {
            if it.idempotency.as_ref() == Some(&used) {
                Replay::Same(it)
            } else {
                Replay::Other(it.seq)
            }
        }))
    }

    async fn accept(
        &self,
        permit: Permit,
        submission: Submission,
    ) -> Result<Accepted, AcceptError> {
        // A task of its own: the client that waits for the answer may go away at any point. The same task goes on with
        // the work when it is the operation's turn.
        let core = Arc::clone(&self.core);
        let (answer, answered) = oneshot::channel();
        self.core.spawn(async move {
            let (admitted, turn) = match accept::admit(&core, &permit, submission).await {
                Ok((accepted, turn)) => (Ok(accepted), turn),
                Err(error) => (Err(error), None),
            };
            drop(answer.send(admitted));
            if let Some(turn) = turn {
                runner::drive(core, turn).await;
            }
        });
        answered.await.unwrap_or_else(|_gone| {
            tracing::error!("accepting an operation panicked");
            self.core.metrics.panic("operations");
            Err(AcceptError::Store(StoreFault::Unavailable))
        })
    }

    async fn operation(&self, seq: OperationSeq) -> Result<Option<Arc<Operation>>, StoreFault> {
        if let Some(current) = self.core.ledger.current(seq) {
            return Ok(Some(current));
        }
        let found = self.core.store.read(seq).await;
        found.map_err(|error| self.core.fault(&error))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Operation>>, StoreFault> {
        let found = self.core.store.list(query).await;
        found.map_err(|error| self.core.fault(&error))
    }

    async fn wait(
        &self,
        seq: OperationSeq,
        until: WaitFor,
        by: Deadline,
    ) -> Result<Option<Arc<Operation>>, StoreFault> {
        let Some(mut shown) = self.core.ledger.watch(seq) else {
            // Not unfinished, so it cannot change any more.
            return self.operation(seq).await;
        };
        let change = async {
            loop {
                if let Some(current) = shown.borrow_and_update().as_ref()
                    && fits(current, until)
                {
                    return Some(Arc::clone(current));
                }
                if shown.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout_at(by.instant().into(), change).await {
            Ok(Some(current)) => Ok(Some(current)),
            Ok(None) | Err(_) => self.operation(seq).await,
        }
    }

    async fn cancel(
        &self,
        seq: OperationSeq,
        only_at: Option<Revision>,
    ) -> Result<Arc<Operation>, CancelError> {
        // A task of its own: what was begun is written and shown, whether or not anybody waits for the answer.
        let core = Arc::clone(&self.core);
        let asked = self
            .core
            .spawn(async move { cancel::ask(&core, seq, only_at).await })
            .await;
        asked.unwrap_or_else(|error| {
            tracing::error!(%error, "stopping an operation panicked");
            self.core.metrics.panic("operations");
            Err(CancelError::Store(StoreFault::Unavailable))
        })
    }

    fn is_ready(&self) -> bool {
        self.core.is_writable() && !self.core.has_failed() && !self.core.stop.is_given()
    }
}
