//! Copies the write-ahead log into the database in a thread of its own, so that commits do not wait for it.
//!
//! SQLite starts the log over once all of it is copied. While the thread copies, the writer appends. Therefore the thread copies
//! again until little is left, and the writer copies that little between two commits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TryRecvError;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::operations::store::error::OpenError;
use crate::operations::store::sqlite::open;

/// Pages in the log at which copying begins: 60 MiB. Most pages are written many times and copied once, and commits wait for the
/// end of each copy.
pub(super) const START_PAGES: u32 = 15_000;
/// Pages that the writer copies itself at most.
const REST_PAGES_MAX: u32 = 256;
/// Passes of one copy at most. Each copies what was appended during the one before.
const PASSES_MAX: usize = 8;
/// Pages in the log at which the writer waits for the copy, so that the log of a slow disk is bounded: 240 MiB.
const LOG_PAGES_MAX: u32 = 60_000;
/// Pages after which copying is tried again when it failed, or when a reader kept the log from being started over.
const RETRY_PAGES: u32 = 1_000;

/// The thread that copies, as the writer sees it.
pub(super) struct Checkpoints {
    /// Pages in the log after the last commit.
    log_pages: Arc<AtomicU32>,
    /// Pages in the log at which the next copy begins.
    due_pages: u32,
    is_copying: bool,
    requests: SyncSender<()>,
    /// The pages that each copy left, one result for each request.
    results: Receiver<rusqlite::Result<u32>>,
    thread: JoinHandle<()>,
}

impl Checkpoints {
    /// Starts the thread for the file, and counts what this connection appends to the log.
    pub(super) fn start(writer: &mut Connection, file: &Path) -> Result<Self, OpenError> {
        let sqlite_error = |error| open::sqlite_error(file, &error);
        let connection = open::connect(file).map_err(sqlite_error)?;
        open::configure(&connection).map_err(sqlite_error)?;
        let log_pages = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&log_pages);
        let count = move |_: &mut rusqlite::hooks::Wal, pages| {
            counted.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        };
        writer.wal_hook(Some(count)).map_err(sqlite_error)?;
        let (requests, requested) = sync_channel(1);
        let (finished, results) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-copier".to_owned())
            .spawn(move || {
                while requested.recv().is_ok() {
                    if finished.send(copy_most(&connection)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| open::file_error(file, &error))?;
        Ok(Self {
            log_pages,
            due_pages: START_PAGES,
            is_copying: false,
            requests,
            results,
            thread,
        })
    }

    /// Begins a copy when one is due, and completes one when its thread has finished. To be called between two commits.
    ///
    /// # Errors
    /// Those of the copy. All of the log is kept, and copying is tried again later.
    pub(super) fn after_commit(&mut self, writer: &Connection) -> rusqlite::Result<()> {
        let pages = self.log_pages.load(Ordering::Relaxed);
        if !self.is_copying {
            if pages < START_PAGES {
                // The log was started over.
                self.due_pages = START_PAGES;
            }
            if pages < self.due_pages {
                return Ok(());
            }
            self.is_copying = self.requests.send(()).is_ok();
            if self.is_copying {
                return Ok(());
            }
            // The thread ended, and the writer copies alone.
            self.due_pages = pages.saturating_add(RETRY_PAGES);
            return copy(writer).map(drop);
        }
        let result = if pages < LOG_PAGES_MAX {
            self.results.try_recv()
        } else {
            self.results.recv().map_err(TryRecvError::from)
        };
        let rest = match result {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Ok(0),
            Ok(rest) => rest,
        };
        self.is_copying = false;
        self.due_pages = pages.saturating_add(RETRY_PAGES);
        if rest? <= REST_PAGES_MAX {
            copy(writer)?;
        }
        Ok(())
    }

    /// After a copy that ended like this.
    #[cfg(test)]
    pub(super) fn after_copy(result: rusqlite::Result<u32>, log_pages: u32) -> Self {
        let (finished, results) = sync_channel(1);
        finished.send(result).unwrap();
        let (requests, requested) = sync_channel(1);
        let thread = std::thread::Builder::new().spawn(move || while requested.recv().is_ok() {});
        Self {
            log_pages: Arc::new(AtomicU32::new(log_pages)),
            due_pages: START_PAGES,
            is_copying: true,
            requests,
            results,
            thread: thread.unwrap(),
        }
    }

    /// Ends the thread, after the copy that is under way.
    pub(super) fn stop(self) {
        let Self {
            requests, thread, ..
        } = self;
        drop(requests);
        if thread.join().is_err() {
            tracing::error!("the thread that copies the write-ahead log panicked");
        }
    }
}

/// Copies until little is left, or a reader keeps the rest. Returns how many pages are left.
fn copy_most(connection: &Connection) -> rusqlite::Result<u32> {
    let mut rest = copy(connection)?;
    for _ in 1..PASSES_MAX {
        let before = rest;
        if before <= REST_PAGES_MAX {
            break;
        }
        rest = copy(connection)?;
        if rest >= before {
            break;
        }
    }
    Ok(rest)
}

/// Copies what no reader needs any more from the log, and syncs the database. Returns how many pages are left.
fn copy(connection: &Connection) -> rusqlite::Result<u32> {
    // The first column says whether another connection is copying.
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (in_log, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(u32::try_from(in_log.saturating_sub(copied)).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_memory() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    #[test]
    fn a_copy_that_failed_is_tried_again_after_more_pages() {
        let writer = in_memory();
        let failed = Err(rusqlite::Error::InvalidQuery);
        let mut checkpoints = Checkpoints::after_copy(failed, START_PAGES);
        assert!(checkpoints.after_commit(&writer).is_err(), "reported");
        let rows = [
            (START_PAGES, false),
            (START_PAGES + RETRY_PAGES - 1, false),
            (START_PAGES + RETRY_PAGES, true),
        ];
        for (pages, copies) in rows {
            checkpoints.log_pages.store(pages, Ordering::Relaxed);
            checkpoints.after_commit(&writer).unwrap();
            assert_eq!(checkpoints.is_copying, copies, "at {pages}");
        }
        checkpoints.stop();
    }

    #[test]
    fn without_the_thread_the_writer_copies_alone() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Connection::open(folder.path().join("s.db")).unwrap();
        let sql = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x)";
        writer.execute_batch(sql).unwrap();
        let bytes = || std::fs::metadata(folder.path().join("s.db")).unwrap().len();
        let before = bytes();
        let mut checkpoints = Checkpoints::after_copy(Ok(REST_PAGES_MAX + 1), START_PAGES);
        checkpoints.after_commit(&writer).unwrap();
        checkpoints.requests = sync_channel(1).0;
        checkpoints
            .log_pages
            .store(START_PAGES + RETRY_PAGES, Ordering::Relaxed);
        assert_eq!(
            bytes(),
            before,
            "the thread left much, and tries again later"
        );
        checkpoints.after_commit(&writer).unwrap();
        assert!(bytes() > before, "copied");
    }

    #[test]
    fn copying_begins_early_again_once_the_log_was_started_over() {
        let writer = in_memory();
        let mut checkpoints = Checkpoints::after_copy(Ok(0), LOG_PAGES_MAX);
        for (pages, copies) in [
            (LOG_PAGES_MAX, false),
            (START_PAGES, false),
            (3, false),
            (START_PAGES, true),
        ] {
            checkpoints.log_pages.store(pages, Ordering::Relaxed);
            checkpoints.after_commit(&writer).unwrap();
            assert_eq!(checkpoints.is_copying, copies, "at {pages}");
        }
        checkpoints.stop();
    }
}
