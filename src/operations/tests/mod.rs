//! The operations as a whole, over a real store and a scripted adapter.

mod at_once;
mod cancel;
mod disk;
mod ends;
mod faults;
mod offline_store;
mod older;
mod plans;
mod power;
mod preconditions;
mod queue;
mod restart;
mod simulation;
mod two_gateways;
mod views;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::adapters::adapter::Recovery;
use crate::model::Intent;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::operations::testing::ScriptedAdapter;
use crate::operations::testing::TEST_TIMEOUT;
use crate::operations::testing::TestSetup;
use crate::operations::testing::permit;
use crate::operations::testing::submission;
use crate::operations::testing::test_deadline;

/// A folder on a file system in memory if there is one, for tests that write much and are not about the disk.
fn temporary_folder_in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Open operations, the adapter below them, and what they were opened with.
struct Fixture {
    folder: TempDir,
    adapter: Arc<ScriptedAdapter>,
    setup: TestSetup,
    operations: Arc<Operations>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(Recovery::Listable, |_| {}).await
    }

    async fn with(recovery: Recovery, change: impl FnOnce(&mut TestSetup)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let adapter = ScriptedAdapter::new(recovery);
        let mut setup = TestSetup::new(folder.path(), &adapter);
        change(&mut setup);
        let operations = setup.open().await;
        Self {
            folder,
            adapter,
            setup,
            operations,
        }
    }

    /// The same over an adapter that supports updates and has the backup `b`; so many operations run at once.
    async fn with_updates(recovery: Recovery, concurrency: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let adapter = ScriptedAdapter::with_updates(recovery);
        adapter.set_backup_ids(&["b"]);
        let mut setup = TestSetup::new(folder.path(), &adapter);
        setup.backends[0].concurrency = concurrency;
        let operations = setup.open().await;
        Self {
            folder,
            adapter,
            setup,
            operations,
        }
    }

    /// Stops the operations and opens them again over the same store and VM manager.
    async fn restart(&mut self) {
        self.operations.stop().await;
        self.operations = self.setup.open().await;
    }

    async fn accept_on(&self, backend: &str, intent: Intent) -> Result<Accepted, AcceptError> {
        let submission = submission(self.operations.reserve(), intent.clone());
        self.operations
            .accept(permit(&intent, backend), submission)
            .await
    }

    async fn accept(&self, intent: Intent) -> OperationSeq {
        let accepted = self.accept_on("one", intent).await.expect("accepted");
        accepted.operation().seq
    }

    async fn read(&self, seq: OperationSeq) -> Arc<Operation> {
        let found = self
            .operations
            .operation(seq)
            .await
            .expect("the store answers");
        found.expect("it exists")
    }

    async fn wait_for_end(&self, seq: OperationSeq) -> Arc<Operation> {
        let found = self
            .operations
            .wait(seq, WaitFor::End, test_deadline())
            .await;
        found.expect("the store answers").expect("it exists")
    }

    /// Waits until the operation is in that phase.
    async fn wait_for_phase(&self, seq: OperationSeq, phase: Phase) -> Arc<Operation> {
        let by = test_deadline();
        let mut current = self.read(seq).await;
        while current.phase != phase {
            let until = WaitFor::ChangeAfter(current.revision);
            let next = self.operations.wait(seq, until, by).await.unwrap().unwrap();
            assert!(
                next.revision > current.revision,
                "{seq} is {:?}, never {phase:?}",
                next.phase
            );
            current = next;
        }
        current
    }

    /// The text of all metrics.
    fn metrics_text(&self) -> String {
        String::from_utf8(self.setup.metrics.encode_text()).unwrap()
    }
}

/// Waits until the condition holds, and fails after [`TEST_TIMEOUT`].
async fn wait_until<F: Future<Output = bool>>(condition: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(TEST_TIMEOUT, wait).await;
    assert!(in_time.is_ok(), "{condition}");
}
