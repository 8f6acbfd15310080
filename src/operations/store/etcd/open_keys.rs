//! What an open store consists of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::etcd::LeaderTerm;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::batch::Answer;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::reader::Reader;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;

/// The open store, shared by the operations and the annotations in it.
pub(super) struct OpenKeys {
    pub(super) reader: Arc<Reader>,
    /// The fence of every write.
    pub(super) term: LeaderTerm,
    /// `None` once it is closed.
    pub(super) writes: Mutex<Option<mpsc::Sender<Write>>>,
    pub(super) feed: Arc<ChangeFeed>,
    /// The name under which this gateway records that it is running.
    pub(super) gateway: String,
    /// The latest time that was recorded as such.
    pub(super) last_beat: AtomicU64,
    /// Whether the lock was renewed at the last attempt.
    pub(super) is_reachable: AtomicBool,
    /// Given when another gateway may write.
    pub(super) lost: Stop,
    /// Ends the task that keeps the lock of the leader, which then frees it.
    pub(super) keeper: Mutex<Option<Stopper>>,
    pub(super) writer_task: Tasks,
    pub(super) keeper_task: Tasks,
}

impl fmt::Debug for OpenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("connection", &self.reader.connection)
            .field("keys", &self.reader.keys.all())
            .finish_non_exhaustive()
    }
}

impl OpenKeys {
    /// Hands a write to the writer task and waits for its commit.
    pub(super) async fn write<T>(
        &self,
        make_write: impl FnOnce(Answer<T>) -> Write,
    ) -> Result<T, StoreError> {
        let writes = self.writes.lock().clone();
        let Some(writes) = writes else {
            return Err(StoreError::Unavailable("closed".to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        if writes.send(make_write(answer)).await.is_err() {
            return Err(StoreError::Unavailable("the writer has ended".to_owned()));
        }
        // The writer ends when the last sender is gone: do not keep one while waiting.
        drop(writes);
        answered
            .await
            .unwrap_or_else(|_gone| Err(StoreError::Indeterminate("the writer ended".to_owned())))
    }

    /// Commits what waits, and frees the lock of the leader.
    pub(super) async fn close(&self) {
        let writes = self.writes.lock().take();
        drop(writes);
        self.writer_task.ended().await;
        // Last: until then no other gateway may write.
        let keeper = self.keeper.lock().take();
        drop(keeper);
        self.keeper_task.ended().await;
    }
}
