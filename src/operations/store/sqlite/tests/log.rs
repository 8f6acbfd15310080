//! The write-ahead log is copied beside the writes, and started over.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "an overflow fails the test, as it should"
)]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::operations::store::Store;
use crate::operations::store::sqlite::checkpoints::START_PAGES;
use crate::operations::testing::operation;

/// Operations created at once.
const AT_ONCE: u64 = 16;
/// Bytes of a page in the log, with its header.
const PAGE_BYTES: u64 = 4096 + 24;

/// How many times the engine has started the log over, which its header says.
fn times_started_over(folder: &Path) -> u32 {
    let mut header = [0; 16];
    let mut log = fs::File::open(folder.join("s.db-wal")).unwrap();
    log.read_exact(&mut header).unwrap();
    u32::from_be_bytes(header[12..].try_into().unwrap())
}

/// Creates operations from this number on until the log was started over so many times, or `pages_max` would be in it otherwise.
/// Returns the number after the last one.
async fn write_until(
    store: &SqliteStore,
    folder: &Path,
    first: u64,
    times: u32,
    pages_max: u32,
) -> u64 {
    let mut number = first;
    // Each operation changes two pages at least.
    while times_started_over(folder) < times && (number - first) * 2 < u64::from(pages_max) {
        let creates = (number..number + AT_ONCE).map(|number| {
            let mut operation = operation(number, "vm", "b");
            operation.baseline = crate::model::Evidence::new("x".repeat(4000));
            store.create(Arc::new(operation))
        });
        for created in futures_util::future::join_all(creates).await {
            created.unwrap();
        }
        number += AT_ONCE;
    }
    number
}

#[tokio::test]
async fn the_log_is_started_over_while_writes_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let end = write_until(&store, folder.path(), 1, 3, 8 * START_PAGES).await;
    assert!(times_started_over(folder.path()) >= 3, "after {end}");
    let bytes = fs::metadata(folder.path().join("s.db-wal")).unwrap().len();
    let bound = 3 * u64::from(START_PAGES) * PAGE_BYTES;
    assert!(bytes < bound, "{bytes} bytes of log");
    store.close().await;
    let store = open(folder.path());
    for number in [1, end / 2, end - 1] {
        assert!(store.read(seq(number)).await.unwrap().is_some(), "{number}");
    }
    assert_eq!(store.read(seq(end)).await.unwrap(), None);
}

#[tokio::test]
async fn a_reader_keeps_the_log_for_as_long_as_it_reads_and_holds_up_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    let reader = rusqlite::Connection::open(folder.path().join("s.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM meta").unwrap();
    let end = write_until(&store, folder.path(), 2, 1, 2 * START_PAGES).await;
    assert_eq!(times_started_over(folder.path()), 0, "it reads the log");
    reader.execute_batch("COMMIT").unwrap();
    let end = write_until(&store, folder.path(), end, 1, 3 * START_PAGES).await;
    assert_eq!(times_started_over(folder.path()), 1, "after {end}");
    store.close().await;
}
