//! The rows of the annotations table.

use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::Transaction;
use rusqlite::params;

use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Identity;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::store::error::StoreError;
use crate::operations::store::sqlite::errors::classify;
use crate::operations::store::sqlite::integers::to_integer;

/// One change of the table.
#[derive(Debug)]
pub(super) enum AnnotationChange {
    Put {
        backend: BackendName,
        annotated: AnnotationRecord,
        record: String,
    },
    Remove {
        backend: BackendName,
        target: Target,
    },
}

impl AnnotationChange {
    /// Applies the change within a transaction.
    pub(super) fn apply(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        match self {
            Self::Put {
                backend,
                annotated,
                record,
            } => {
                let sql = "INSERT OR REPLACE INTO annotations(backend, vm, backup, identity, written, record)
                     VALUES(?1,?2,?3,?4,?5,?6)";
                transaction.prepare_cached(sql)?.execute(params![
                    backend.as_str(),
                    annotated.target.vm.as_str(),
                    annotated.target.backup.as_str(),
                    annotated.identity.as_ref().map(Identity::as_str),
                    to_integer(annotated.written.as_millis()),
                    record,
                ])?;
            }
            Self::Remove { backend, target } => {
                let sql = "DELETE FROM annotations WHERE backend = ?1 AND vm = ?2 AND backup = ?3";
                transaction.prepare_cached(sql)?.execute(params![
                    backend.as_str(),
                    target.vm.as_str(),
                    target.backup.as_str(),
                ])?;
            }
        }
        Ok(())
    }
}

const COLUMNS: &str = "SELECT vm, backup, identity, written, record FROM annotations";

/// The annotations of one VM, in the order of the backup ids.
pub(super) fn list(
    db: &Connection,
    backend: &BackendName,
    vm: &VmId,
) -> Result<Vec<AnnotationRecord>, StoreError> {
    let sql = format!("{COLUMNS} WHERE backend = ?1 AND vm = ?2 ORDER BY backup");
    let read = || -> rusqlite::Result<Vec<Row>> {
        let mut statement = db.prepare_cached(&sql)?;
        let rows = statement.query_map(params![backend.as_str(), vm.as_str()], read_row)?;
        rows.collect()
    };
    let rows = read().map_err(|error| classify(&error))?;
    rows.into_iter().map(parse_row).collect()
}

/// The annotation of one backup.
pub(super) fn get(
    db: &Connection,
    backend: &BackendName,
    target: &Target,
) -> Result<Option<AnnotationRecord>, StoreError> {
    let sql = format!("{COLUMNS} WHERE backend = ?1 AND vm = ?2 AND backup = ?3");
    let read = || {
        let names = [backend.as_str(), target.vm.as_str(), target.backup.as_str()];
        db.prepare_cached(&sql)?
            .query_row(names, read_row)
            .optional()
    };
    let found = read().map_err(|error| classify(&error))?;
    found.map(parse_row).transpose()
}

/// A row as it is stored: VM, backup, identity, time of the write, annotation.
type Row = (String, String, Option<String>, i64, String);

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
    ))
}

fn parse_row((vm, backup, identity, written, record): Row) -> Result<AnnotationRecord, StoreError> {
    let unreadable = |why: String| StoreError::Unavailable(format!("an annotation: {why}"));
    let annotation: Annotation =
        serde_json::from_str(&record).map_err(|error| unreadable(error.to_string()))?;
    Ok(AnnotationRecord {
        target: Target {
            vm: VmId::new(&vm).map_err(|error| unreadable(error.to_string()))?,
            backup: BackupId::new(&backup).map_err(|error| unreadable(error.to_string()))?,
        },
        identity: identity.map(Identity::new),
        annotation,
        written: Timestamp::from_millis(u64::try_from(written).unwrap_or_default()),
    })
}
