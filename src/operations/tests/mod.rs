//! The room as a whole, over a real store and a scripted adapter.

mod at_once;
mod cancel;
mod disk;
mod ends;
mod faults;
mod offline_store;
mod older;
mod power;
mod preconditions;
mod queue;
mod restart;
mod simulation;
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
use crate::operations::testing::PATIENCE;
use crate::operations::testing::Scripted;
use crate::operations::testing::Setup;
use crate::operations::testing::permit;
use crate::operations::testing::soon;
use crate::operations::testing::submission;

/// A folder on a file system in memory where there is one: for tests that write much and whose subject is not the disk.
fn folder_in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A room, what it stands on, and what is told to it.
struct House {
    folder: TempDir,
    adapter: Arc<Scripted>,
    setup: Setup,
    room: Arc<Operations>,
}

impl House {
    async fn new() -> Self {
        Self::with(Recovery::Listable, |_| {}).await
    }

    async fn with(recovery: Recovery, change: impl FnOnce(&mut Setup)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let adapter = Scripted::new(recovery);
        let mut setup = Setup::new(folder.path(), &adapter);
        change(&mut setup);
        let room = setup.open().await;
        Self {
            folder,
            adapter,
            setup,
            room,
        }
    }

    /// Ends the room and opens another over the same store and VM manager.
    async fn restart(&mut self) {
        self.room.stop().await;
        self.room = self.setup.open().await;
    }

    async fn try_on(&self, backend: &str, intent: Intent) -> Result<Accepted, AcceptError> {
        let submission = submission(self.room.reserve(), intent.clone());
        self.room.accept(permit(&intent, backend), submission).await
    }

    async fn accept(&self, intent: Intent) -> OperationSeq {
        let accepted = self.try_on("one", intent).await.expect("accepted");
        accepted.operation().seq
    }

    async fn operation(&self, seq: OperationSeq) -> Arc<Operation> {
        let found = self.room.operation(seq).await.expect("the store answers");
        found.expect("it is there")
    }

    async fn end(&self, seq: OperationSeq) -> Arc<Operation> {
        let found = self.room.wait(seq, WaitFor::End, soon()).await;
        found.expect("the store answers").expect("it is there")
    }

    /// Waits until it is in that phase.
    async fn reaches(&self, seq: OperationSeq, phase: Phase) -> Arc<Operation> {
        let by = soon();
        let mut seen = self.operation(seq).await;
        while seen.phase != phase {
            let until = WaitFor::ChangeAfter(seen.revision);
            let next = self.room.wait(seq, until, by).await.unwrap().unwrap();
            assert!(
                next.revision > seen.revision,
                "{seq} is {:?}, never {phase:?}",
                next.phase
            );
            seen = next;
        }
        seen
    }

    /// The text of all metrics.
    fn metrics(&self) -> String {
        String::from_utf8(self.setup.metrics.encode_text()).unwrap()
    }
}

/// Waits for what must become true.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let all = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await;
    assert!(in_time.is_ok(), "{what}");
}
