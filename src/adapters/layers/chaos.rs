//! Fault injection: calls that are slow, fail, lose their answer, hang or panic, as a script says.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::Retry;
use crate::adapters::adapter::TaskState;
use crate::adapters::layers::Call;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Evidence;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Page;
use crate::model::Preview;
use crate::model::RequestKey;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Vm;
use crate::model::VmId;
use crate::model::VmPage;
use crate::model::VmRange;
use crate::public_text;

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFault {
    /// It is made after so long.
    Delay(Duration),
    /// It is not made and fails with this.
    Fail(FaultKind, Effect, Retry),
    /// It is made, and its answer is lost: it fails with [`FaultKind::TimedOut`], and [`Effect::Possible`] unless it is a read.
    LoseAnswer,
    /// It is not made and never ends.
    Hang,
    /// It is made and never ends.
    HangAfter,
    /// It is not made and panics.
    Panic,
}

/// Troubles to come, each for one call, in order; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<PendingFaults>);

#[derive(Debug, Default)]
struct PendingFaults {
    /// Whether there may be a line: keeps calls cheap while there is none.
    any: AtomicBool,
    next: Mutex<VecDeque<(Call, InjectedFault)>>,
}

impl Script {
    /// Adds a trouble for the next call of this kind that has none yet.
    pub fn add(&self, call: Call, fault: InjectedFault) {
        let mut next = self.0.next.lock();
        next.push_back((call, fault));
        self.0.any.store(true, Ordering::Release);
    }

    /// The same for so many calls.
    pub fn repeat(&self, call: Call, fault: InjectedFault, times: usize) {
        for _ in 0..times {
            self.add(call, fault);
        }
    }

    /// Takes all troubles back.
    pub fn clear(&self) {
        let mut next = self.0.next.lock();
        next.clear();
        self.0.any.store(false, Ordering::Release);
    }

    /// Whether no trouble is to come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.0.any.load(Ordering::Acquire)
    }

    fn take(&self, call: Call) -> Option<InjectedFault> {
        if self.is_empty() {
            return None;
        }
        let mut next = self.0.next.lock();
        let at = next.iter().position(|(of, _)| *of == call)?;
        let (_, fault) = next.remove(at)?;
        self.0.any.store(!next.is_empty(), Ordering::Release);
        Some(fault)
    }

    /// Makes the call as the script says.
    ///
    /// # Errors
    /// What the script or the call says.
    pub async fn play<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, AdapterError>> + Send,
    ) -> Result<T, AdapterError> {
        match self.take(call) {
            None => work.await,
            Some(InjectedFault::Delay(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(InjectedFault::Fail(kind, effect, retry)) => Err(failed(kind, effect, retry)),
            Some(InjectedFault::LoseAnswer) => {
                // The answer is lost, whatever it is.
                drop(work.await);
                let effect = if call.is_read() {
                    Effect::None
                } else {
                    Effect::Possible
                };
                Err(failed(FaultKind::TimedOut, effect, Retry::Temporary))
            }
            Some(InjectedFault::Hang) => std::future::pending().await,
            Some(InjectedFault::HangAfter) => {
                drop(work.await);
                std::future::pending().await
            }
            Some(InjectedFault::Panic) => injected_panic(),
        }
    }
}

fn failed(kind: FaultKind, effect: Effect, retry: Retry) -> AdapterError {
    let mut error = AdapterError::refused(kind, public_text!("Injected failure."));
    error.effect = effect;
    error.retry = retry;
    error.because("a fault of the test script")
}

#[expect(clippy::panic, reason = "only a test script asks for it")]
fn injected_panic<T>() -> T {
    panic!("injected panic")
}

/// An adapter whose calls go wrong as a script says.
#[derive(Debug)]
pub struct Chaos {
    inner: Arc<dyn Adapter>,
    script: Script,
}

impl Chaos {
    /// The adapter, with troubles.
    #[must_use]
    pub const fn new(inner: Arc<dyn Adapter>, script: Script) -> Self {
        Self { inner, script }
    }
}

#[async_trait]
impl Adapter for Chaos {
    fn capability(&self) -> &Capability {
        self.inner.capability()
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.inner.is_identity_of(stored, backup)
    }

    fn metadata_owner(&self) -> MetadataOwner {
        self.inner.metadata_owner()
    }

    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }

    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.inner.needs_baseline(intent)
    }

    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.script.play(Call::Health, self.inner.health(by)).await
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.script.play(Call::Vm, self.inner.read_vm(vm, by)).await
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.script
            .play(Call::Vms, self.inner.list_vms(range, by))
            .await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.script
            .play(Call::List, self.inner.list_backups(vm, page, by))
            .await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        let work = self.inner.query_backups(vm, query, by);
        self.script.play(Call::List, work).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.script
            .play(Call::Read, self.inner.read_backup(target, by))
            .await
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.script
            .play(Call::Preview, self.inner.preview(intent, by))
            .await
    }

    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.script
            .play(Call::Baseline, self.inner.baseline(intent, key, by))
            .await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.script
            .play(Call::Begin, self.inner.begin(intent, key, baseline, by))
            .await
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.script
            .play(Call::Poll, self.inner.poll(task, by))
            .await
    }

    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }

    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.script
            .play(
                Call::Find,
                self.inner.find_outcome(intent, key, baseline, by),
            )
            .await
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.script
            .play(Call::Cancel, self.inner.cancel(task, by))
            .await
    }
}
