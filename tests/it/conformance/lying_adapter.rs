//! An adapter that claims success for every lost answer: the kills must expose it.

use std::sync::Arc;

use async_trait::async_trait;
use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::conformance::AdapterFixture;
use crate::conformance::fixtures::SimFixture;
use crate::conformance::kills::killed_at;

/// An adapter that says of everything whose answer was lost that it was done.
#[derive(Debug)]
struct LyingAdapter(Arc<dyn Adapter>);

#[async_trait]
impl Adapter for LyingAdapter {
    fn capability(&self) -> &Capability {
        self.0.capability()
    }
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.0.health(by).await
    }
    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.0.read_vm(vm, by).await
    }
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.0.list_vms(range, by).await
    }
    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.0.list_backups(vm, page, by).await
    }
    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        self.0.query_backups(vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.0.read_backup(target, by).await
    }
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        self.0.begin(intent, key, baseline, by).await
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.0.poll(task, by).await
    }
    async fn find_outcome(
        &self,
        _intent: &Intent,
        _key: RequestKey,
        _baseline: Option<&Evidence>,
        _by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        Ok(FindOutcome::Done(None))
    }
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.0.cancel(task, by).await
    }

    fn metadata_owner(&self) -> MetadataOwner {
        self.0.metadata_owner()
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.0.is_identity_of(stored, backup)
    }

    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.0.mint_backup_id(new, key)
    }

    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.0.preview(intent, by).await
    }
    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.0.needs_baseline(intent)
    }

    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.0.baseline(intent, key, by).await
    }

    async fn changed(&self, task: &TaskRef) {
        self.0.changed(task).await;
    }
}

struct LyingFixture(SimFixture);

impl AdapterFixture for LyingFixture {
    fn name(&self) -> &'static str {
        "a liar"
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.adapter_after_restart()
    }
    fn vm(&self) -> VmId {
        self.0.vm()
    }
    fn write(&self, content: u64) {
        self.0.write(content);
    }
    fn content(&self) -> u64 {
        self.0.content()
    }
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        Arc::new(LyingAdapter(self.0.adapter_after_restart()))
    }
}

#[apply(test)]
fn an_adapter_that_lies_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = LyingFixture(SimFixture::new(Recovery::Listable));
    for verb in Verb::ALL {
        // "before begin": nothing was done.
        let (moment, verdict) = killed_at(&fixture, folder.path(), verb, 2);
        assert_eq!(moment, Some("before begin"), "{verb:?}");
        let untrue = verdict.expect_err("the Status says that it was done");
        assert!(untrue.contains("done: false"), "{verb:?}: {untrue}");
    }
}
