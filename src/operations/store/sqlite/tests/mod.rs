//! The promises of the store, kept by the SQLite engine.

mod annotations;
mod failures;
mod files_and_formats;
mod lists;
mod reads_and_writes;

use std::path::Path;
use std::sync::Arc;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::Timestamp;
use crate::operations::store::OpenError;
use crate::operations::store::SqliteStore;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

fn try_open(folder: &Path) -> Result<SqliteStore, OpenError> {
    let metrics = Metrics::new().unwrap();
    SqliteStore::open(folder.join("s.db"), SystemClock::shared(), metrics)
}

fn open(folder: &Path) -> SqliteStore {
    try_open(folder).expect("opens")
}

fn seq(number: u64) -> OperationSeq {
    OperationSeq::new(number).unwrap()
}

/// Runs SQL on the file while no store has it open.
fn tamper(folder: &Path, sql: &str) {
    let db = rusqlite::Connection::open(folder.join("s.db")).unwrap();
    db.execute_batch(sql).unwrap();
}

fn succeeded(mut operation: Operation, expires: Option<Timestamp>) -> Arc<Operation> {
    operation.revision = operation.revision.next();
    operation.phase = Phase::Succeeded;
    operation.progress = Progress::DONE;
    operation.expires = expires;
    Arc::new(operation)
}
