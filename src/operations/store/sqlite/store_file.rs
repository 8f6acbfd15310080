//! The open SQLite file: writes go to one thread, reads to a few connections of their own.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::operations::change_feed::ChangeFeed;
use crate::operations::store::error::StoreError;
use crate::operations::store::sqlite::errors::already_failed;
use crate::operations::store::sqlite::reader::Readers;
use crate::operations::store::sqlite::writer::Write;

/// The open file: the queue of the writer thread, and the readers. Shared by the operations and the annotations in it.
pub(super) struct StoreFile {
    pub(super) file: PathBuf,
    /// `None` once it is closed.
    pub(super) writes: Mutex<Option<mpsc::Sender<Write>>>,
    pub(super) writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    pub(super) readers: Arc<Readers>,
    /// Where the writer hands in what became durable.
    pub(super) feed: Arc<ChangeFeed>,
    /// Whether a fatal error occurred: from then on everything is refused.
    pub(super) has_failed: Arc<AtomicBool>,
}

impl fmt::Debug for StoreFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl StoreFile {
    /// Hands a write to the writer thread and waits for its commit.
    pub(super) async fn write<T>(
        &self,
        make_write: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Write,
    ) -> Result<T, StoreError> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(already_failed());
        }
        let writes = self.writes.lock().clone();
        let Some(writes) = writes else {
            return Err(StoreError::Unavailable("closed".to_owned()));
        };
        let (answer, answered) = oneshot::channel();
        if writes.send(make_write(answer)).await.is_err() {
            return Err(StoreError::Unavailable(
                "the writer thread has ended".to_owned(),
            ));
        }
        // The writer thread ends when the last sender is gone: do not keep one while waiting.
        drop(writes);
        answered.await.unwrap_or_else(|_gone| {
            Err(StoreError::Indeterminate(
                "the writer thread ended".to_owned(),
            ))
        })
    }

    /// Waits for the reads and writes that were handed in, then refuses everything.
    pub(super) async fn close(&self) {
        let writes = self.writes.lock().take();
        // First the readers: the last connection that closes removes the write-ahead log, and of two that close at once each
        // would leave it to the other.
        self.readers.close().await;
        drop(writes);
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            let joined = tokio::task::spawn_blocking(move || writer.join().is_ok()).await;
            if !matches!(joined, Ok(true)) {
                tracing::error!(file = %self.file.display(), "store writer thread panicked");
            }
        }
    }
}
