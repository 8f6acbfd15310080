//! The promises of the store, kept by the SQLite engine.

mod annotations;
mod changes;
mod failures;
mod files_and_formats;
mod lists;
mod log;
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

/// Turns a store of this version into one of format 2, that of the version before: without two columns, their indexes and a table,
/// with other indexes instead.
const FORMAT_2: &str = "
    DROP INDEX by_created; DROP INDEX by_verb; DROP INDEX by_vm; DROP INDEX by_backup;
    DROP INDEX by_principal; DROP INDEX by_live; DROP INDEX by_live_seq; DROP INDEX by_outcome;
    ALTER TABLE operations DROP COLUMN created;
    DROP INDEX by_changed;
    ALTER TABLE operations DROP COLUMN changed;
    DROP TABLE change_runs;
    CREATE INDEX by_principal ON operations(principal, seq);
    CREATE INDEX by_target ON operations(backup, vm, seq);
    CREATE INDEX by_vm ON operations(vm, seq);
    CREATE INDEX by_live ON operations(seq) WHERE live = 1;
    UPDATE meta SET value = 2 WHERE name = 'schema'";

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
