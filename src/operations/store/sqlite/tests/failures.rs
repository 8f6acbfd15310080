//! Unreadable records, a full disk, and errors after which nothing is trusted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::mpsc;

use super::*;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::sqlite::checkpoints::Checkpoints;
use crate::operations::store::sqlite::checkpoints::START_PAGES;
use crate::operations::store::sqlite::errors::classify;
use crate::operations::store::sqlite::open;
use crate::operations::store::sqlite::open::Lock;
use crate::operations::store::sqlite::reader::Readers;
use crate::operations::store::sqlite::store_file::StoreFile;
use crate::operations::store::sqlite::writer;
use crate::operations::testing::operation;

#[tokio::test]
async fn an_unreadable_record_is_counted_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 1..=3 {
        let operation = Arc::new(operation(number, "vm", "b"));
        store.create(operation).await.unwrap();
    }
    store.close().await;
    tamper(
        folder.path(),
        "UPDATE operations SET record = '{\"format\":9}' WHERE seq = 2",
    );
    let store = open(folder.path());
    let live = store.unfinished().await.unwrap();
    let numbers: Vec<_> = live
        .iter()
        .map(|operation| operation.seq.number())
        .collect();
    assert_eq!(numbers, [1, 3], "the others");
    assert_eq!(store.counts().await.unwrap().set_aside, 1, "counted once");
    let found = store.read(seq(2)).await;
    assert!(
        matches!(found, Err(StoreError::Unavailable(_))),
        "neither found nor missing: {found:?}"
    );
    assert_eq!(store.counts().await.unwrap().set_aside, 1, "still once");
}

/// A store whose writer has this connection and this copier of the log.
fn open_with(
    file: &Path,
    connection: Connection,
    checkpoints: Checkpoints,
    lock: Lock,
) -> SqliteStore {
    let feed = Arc::<crate::operations::ChangeFeed>::default();
    let has_failed = Arc::new(AtomicBool::new(false));
    let (writes, waiting) = mpsc::channel(8);
    let writer = writer::Writer {
        connection,
        checkpoints,
        clock: SystemClock::shared(),
        metrics: Metrics::new().unwrap(),
        has_failed: Arc::clone(&has_failed),
        feed: Arc::clone(&feed),
        last_change: 1,
        lock,
    };
    let thread = std::thread::Builder::new()
        .spawn(move || writer.run(waiting))
        .unwrap();
    SqliteStore::from_file(Arc::new(StoreFile {
        readers: Arc::new(Readers::new(file.to_owned(), Arc::clone(&has_failed))),
        file: file.to_owned(),
        writes: Mutex::new(Some(writes)),
        writer: Mutex::new(Some(thread)),
        feed,
        has_failed,
    }))
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_answers_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.close().await;
    let file = folder.path().join("s.db");
    let (mut connection, lock) = open::open(&file).unwrap();
    connection
        .pragma_update_and_check(None, "max_page_count", 1, |_| Ok(()))
        .unwrap();
    let checkpoints = Checkpoints::start(&mut connection, &file).unwrap();
    let store = open_with(&file, connection, checkpoints, lock);
    let mut refused = None;
    for number in 2..50 {
        let mut operation = operation(number, "vm", "b");
        operation.baseline = crate::model::Evidence::new("x".repeat(4000));
        if let Err(error) = store.create(Arc::new(operation)).await {
            refused = Some((number, error));
            break;
        }
    }
    let (number, error) = refused.expect("the disk is full at some point");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(store.read(seq(number)).await.unwrap(), None, "not applied");
    assert!(store.read(seq(1)).await.unwrap().is_some(), "reads go on");
    store.close().await;
}

#[tokio::test]
async fn a_log_that_the_disk_cannot_copy_ends_the_store_and_one_without_room_does_not() {
    use rusqlite::ffi;
    for (code, is_fatal) in [(ffi::SQLITE_IOERR_FSYNC, true), (ffi::SQLITE_FULL, false)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.db");
        let (connection, lock) = open::open(&file).unwrap();
        let failed = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let checkpoints = Checkpoints::after_copy(Err(failed), START_PAGES);
        let store = open_with(&file, connection, checkpoints, lock);
        let create = |number| store.create(Arc::new(operation(number, "vm", "b")));
        create(1).await.expect("it was durable before the copy");
        // Answered before the writer looks at the copy.
        let second = create(2).await;
        let third = create(3).await;
        let refused = matches!(third, Err(StoreError::Fatal(_)));
        assert_eq!(refused, is_fatal, "{code}: {second:?}, {third:?}");
        store.close().await;
    }
}

#[tokio::test]
async fn after_a_fatal_error_everything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.0.has_failed.store(true, Ordering::Release);
    let write = store.create(Arc::new(operation(2, "vm", "b"))).await;
    assert!(matches!(write, Err(StoreError::Fatal(_))), "{write:?}");
    let read = store.read(seq(1)).await;
    assert!(matches!(read, Err(StoreError::Fatal(_))), "{read:?}");
}

#[test]
fn errors_of_the_disk_are_fatal_and_others_are_not() {
    use rusqlite::ffi;
    let rows = [
        ("fsync", ffi::SQLITE_IOERR_FSYNC, "fatal"),
        ("write", ffi::SQLITE_IOERR_WRITE, "fatal"),
        ("corrupt", ffi::SQLITE_CORRUPT, "fatal"),
        ("not a database", ffi::SQLITE_NOTADB, "fatal"),
        ("full", ffi::SQLITE_FULL, "unavailable"),
        ("busy", ffi::SQLITE_BUSY, "unavailable"),
        ("read-only", ffi::SQLITE_READONLY, "unavailable"),
    ];
    for (name, code, expected) in rows {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(classify(&error).as_str(), expected, "{name}");
    }
}
