//! The last look before a VM manager is called: a gateway whose lease has ended changes nothing any more.
//!
//! It stands directly around the adapter. The call runs within the lease ([`Lease::within`]), so that what sends bytes can look once
//! more right before it does, and no later than the lease lasts, as it stands at the beginning of the call.

use std::sync::Arc;

use async_trait::async_trait;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Health;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::adapter::TaskState;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupPage;
use crate::model::BackupQuery;
use crate::model::BackupSelection;
use crate::model::Deadline;
use crate::model::Evidence;
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
use crate::runtime::Lease;
use crate::runtime::LeaseEnded;

/// An adapter that is called with an effect only while the lease is held.
#[derive(Debug)]
pub struct Leased {
    inner: Arc<dyn Adapter>,
    lease: Lease,
}

impl Leased {
    /// The adapter under the lease.
    #[must_use]
    pub const fn new(inner: Arc<dyn Adapter>, lease: Lease) -> Self {
        Self { inner, lease }
    }

    fn check(&self) -> Result<(), AdapterError> {
        self.lease.check().map_err(ended)
    }
}

/// What a call fails with that was not made because the lease had ended.
///
/// Not a failure of the backend: its circuit breaker must not count it.
pub fn ended(error: LeaseEnded) -> AdapterError {
    AdapterError::unavailable(public_text!(
        "This gateway is no longer the active one of its cluster, and did not call the VM manager. Try again."
    ))
    .of_one_vm()
    .because(error)
}

#[async_trait]
impl Adapter for Leased {
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
        self.inner.health(by).await
    }

    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.inner.read_vm(vm, by).await
    }

    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.inner.list_vms(range, by).await
    }

    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.inner.list_backups(vm, page, by).await
    }

    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        self.inner.query_backups(vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.inner.read_backup(target, by).await
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.inner.preview(intent, by).await
    }

    // A baseline may leave a mark in the VM manager.
    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.check()?;
        let call = self.inner.baseline(intent, key, self.lease.limit(by));
        self.lease.within(call).await
    }

    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.check()?;
        let by = self.lease.limit(by);
        let call = self.inner.begin(intent, key, baseline, by);
        self.lease.within(call).await
    }

    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.inner.poll(task, by).await
    }

    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }

    // Where a change was broken off half-way, the search may clean up.
    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        self.check()?;
        let by = self.lease.limit(by);
        let call = self.inner.find_outcome(intent, key, baseline, by);
        self.lease.within(call).await
    }

    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.check()?;
        let call = self.inner.cancel(task, self.lease.limit(by));
        self.lease.within(call).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::adapters::adapter::Effect;
    use crate::adapters::layers::Call;
    use crate::adapters::layers::Chaos;
    use crate::adapters::layers::InjectedFault;
    use crate::adapters::layers::Script;
    use crate::adapters::sim;
    use crate::adapters::sim::Sim;
    use crate::model::Timestamp;
    use crate::runtime::Clock;
    use crate::runtime::ManualClock;
    use crate::runtime::SystemClock;
    use crate::runtime::Tasks;

    #[tokio::test]
    async fn nothing_with_an_effect_is_called_after_the_lease_and_reads_go_on() {
        let manual = Arc::new(ManualClock::new(Timestamp::default()));
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&manual);
        let lease = Lease::until(Duration::from_secs(8), clock);
        let config = sim::Config::default();
        let sim = Sim::new(&config, SystemClock::shared(), Tasks::default());
        let script = Script::default();
        let adapter = Leased::new(Arc::new(Chaos::new(Arc::new(sim), script.clone())), lease);
        let by = SystemClock.deadline(Duration::from_secs(10));
        let task = TaskRef::new("1".to_owned()).unwrap();
        manual.advance(Duration::from_secs(8));
        // A call that reached the adapter would take the fault.
        script.add(Call::Cancel, InjectedFault::Panic);
        let refused = adapter.cancel(&task, by).await.unwrap_err();
        assert_eq!(refused.effect, Effect::None, "nothing was sent");
        assert!(!script.is_empty(), "the adapter was not called");
        assert!(adapter.health(by).await.is_ok(), "reads have no effect");
    }
}
