//! What the gateway keeps about backups whose VM manager does not: one table beside the operations.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::Row;
use rusqlite::Transaction;
use rusqlite::params;

use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::adapters::annotations::Annotations;
use crate::adapters::annotations::AnnotationsError;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Identity;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::store::StoreError;
use crate::operations::store::sqlite::Inner;
use crate::operations::store::sqlite::classify;
use crate::operations::store::sqlite::reader::Readers;
use crate::operations::store::sqlite::writer::Work;
use crate::operations::store::sqlite::writer::number;

/// One write to the table.
#[derive(Debug)]
pub(super) enum Change {
    Put {
        backend: BackendName,
        it: AnnotationRecord,
        record: String,
    },
    Remove {
        backend: BackendName,
        target: Target,
    },
}

impl Change {
    pub(super) fn apply(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        match self {
            Self::Put {
                backend,
                it,
                record,
            } => {
                let sql = "INSERT OR REPLACE INTO annotations(backend, vm, backup, identity, written, record)
                     VALUES(?1,?2,?3,?4,?5,?6)";
                transaction.prepare_cached(sql)?.execute(params![
                    backend.as_str(),
                    it.target.vm.as_str(),
                    it.target.backup.as_str(),
                    it.identity.as_ref().map(Identity::as_str),
                    number(it.written.as_millis()),
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

/// The table of annotations of a store.
#[derive(Debug)]
pub(super) struct Table(pub(super) Arc<Inner>);

#[async_trait]
impl Annotations for Table {
    async fn list(
        &self,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Vec<AnnotationRecord>, AnnotationsError> {
        let (backend, vm) = (backend.clone(), vm.clone());
        Readers::run(&self.0.readers, move |_, db| list(db, &backend, &vm))
            .await
            .map_err(told)
    }

    async fn get(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Option<AnnotationRecord>, AnnotationsError> {
        let (backend, target) = (backend.clone(), target.clone());
        Readers::run(&self.0.readers, move |_, db| get(db, &backend, &target))
            .await
            .map_err(told)
    }

    async fn put(
        &self,
        backend: &BackendName,
        it: &AnnotationRecord,
    ) -> Result<(), AnnotationsError> {
        let record = serde_json::to_string(&it.annotation)
            .map_err(|error| AnnotationsError::Unavailable(error.to_string()))?;
        let change = Change::Put {
            backend: backend.clone(),
            it: it.clone(),
            record,
        };
        let written = self.0.write(|answer| Work::Annotate(change, answer)).await;
        written.map_err(told)
    }

    async fn remove(&self, backend: &BackendName, target: &Target) -> Result<(), AnnotationsError> {
        let change = Change::Remove {
            backend: backend.clone(),
            target: target.clone(),
        };
        let written = self.0.write(|answer| Work::Annotate(change, answer)).await;
        written.map_err(told)
    }
}

fn told(error: StoreError) -> AnnotationsError {
    match error {
        StoreError::Indeterminate(why) | StoreError::Fatal(why) => {
            AnnotationsError::Indeterminate(why)
        }
        StoreError::Unavailable(why) => AnnotationsError::Unavailable(why),
        StoreError::Conflict | StoreError::KeyReused(_) => {
            AnnotationsError::Unavailable(error.to_string())
        }
    }
}

const COLUMNS: &str = "SELECT vm, backup, identity, written, record FROM annotations";

fn list(
    db: &Connection,
    backend: &BackendName,
    vm: &VmId,
) -> Result<Vec<AnnotationRecord>, StoreError> {
    let sql = format!("{COLUMNS} WHERE backend = ?1 AND vm = ?2 ORDER BY backup");
    let read = || -> rusqlite::Result<Vec<Raw>> {
        let mut statement = db.prepare_cached(&sql)?;
        let rows = statement.query_map(params![backend.as_str(), vm.as_str()], raw)?;
        rows.collect()
    };
    let rows = read().map_err(|error| classify(&error))?;
    rows.into_iter().map(parsed).collect()
}

fn get(
    db: &Connection,
    backend: &BackendName,
    target: &Target,
) -> Result<Option<AnnotationRecord>, StoreError> {
    let sql = format!("{COLUMNS} WHERE backend = ?1 AND vm = ?2 AND backup = ?3");
    let read = || {
        let names = [backend.as_str(), target.vm.as_str(), target.backup.as_str()];
        db.prepare_cached(&sql)?.query_row(names, raw).optional()
    };
    let found = read().map_err(|error| classify(&error))?;
    found.map(parsed).transpose()
}

/// A row as it is stored.
type Raw = (String, String, Option<String>, i64, String);

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
    ))
}

fn parsed((vm, backup, identity, written, record): Raw) -> Result<AnnotationRecord, StoreError> {
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
