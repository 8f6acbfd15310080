//! Copies records into and out of a SQLite file that no gateway uses, by a connection of its own.

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use rusqlite::Connection;
use rusqlite::params;

use crate::operations::change_feed::StoreRun;
use crate::operations::store::error::StoreError;
use crate::operations::store::row::Row;
use crate::operations::store::row::RowHeader;
use crate::operations::store::row::RowKey;
use crate::operations::store::row::bytes_of;
use crate::operations::store::sqlite::errors::classify;
use crate::operations::store::sqlite::integers::to_integer;
use crate::operations::store::sqlite::open;
use crate::operations::store::sqlite::sqlite_store::SqliteStore;
use crate::operations::store::transfer::AnnotationRow;
use crate::operations::store::transfer::StoreNumbers;
use crate::operations::store::transfer::StoreTransfer;

/// Findings of one kind that are listed.
const FINDINGS_MAX: usize = 20;

const SELECT_ROWS: &str =
    "SELECT seq, revision, verb, backend, vm, backup, principal, phase, live, idem_key,
     idem_fingerprint, expires, created, changed, record FROM operations";

impl SqliteStore {
    /// Runs work on a connection of its own, on a blocking thread.
    async fn on_connection<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = self.0.file.clone();
        let working = tokio::task::spawn_blocking(move || {
            let mut connection = open::connect(&file)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            work(&mut connection)
        });
        let done = working
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        done.map_err(|error| classify(&error))
    }
}

#[async_trait]
impl StoreTransfer for SqliteStore {
    async fn export_rows(&self, after: u64, max: u16) -> Result<Vec<Row>, StoreError> {
        self.on_connection(move |db| {
            let sql = format!("{SELECT_ROWS} WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            let mut statement = db.prepare(&sql)?;
            let rows = statement.query_map(params![to_integer(after), max], read_row)?;
            rows.collect()
        })
        .await
    }

    async fn export_annotations(&self) -> Result<Vec<AnnotationRow>, StoreError> {
        self.on_connection(|db| {
            let sql = "SELECT backend, vm, backup, identity, written, record FROM annotations
                 ORDER BY backend, vm, backup";
            let mut statement = db.prepare(sql)?;
            let rows = statement.query_map([], |row| {
                Ok(AnnotationRow {
                    backend: row.get(0)?,
                    vm: row.get(1)?,
                    backup: row.get(2)?,
                    identity: row.get(3)?,
                    written: row.get::<_, i64>(4)?.cast_unsigned(),
                    annotation: row.get(5)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    async fn export_numbers(&self) -> Result<StoreNumbers, StoreError> {
        self.on_connection(|db| {
            let number = |sql: &str| -> rusqlite::Result<Option<u64>> {
                let found: Option<i64> = db.query_row(sql, [], |row| row.get(0))?;
                Ok(found.map(i64::cast_unsigned))
            };
            let meta = |name: &str| {
                number(&format!(
                    "SELECT max(value) FROM meta WHERE name = '{name}'"
                ))
            };
            let forgotten = meta("forgotten")?.unwrap_or(0);
            let changed = number("SELECT max(changed) FROM operations")?.unwrap_or(0);
            let highest = number("SELECT max(seq) FROM operations")?.unwrap_or(0);
            let mut statement = db.prepare("SELECT base, mark FROM change_runs ORDER BY run")?;
            let runs = statement.query_map([], |row| {
                Ok(StoreRun {
                    base: row.get::<_, i64>(0)?.cast_unsigned(),
                    mark: row.get::<_, i64>(1)?.cast_unsigned(),
                })
            })?;
            Ok(StoreNumbers {
                latest: changed.max(forgotten),
                forgotten,
                highest: highest.max(meta("highest")?.unwrap_or(0)),
                beat: meta("beat")?,
                runs: runs.collect::<rusqlite::Result<_>>()?,
            })
        })
        .await
    }

    /// Copies go into a file of another name, which no gateway opens: there is nothing to prepare.
    async fn begin_import(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn end_import(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn find_rows(&self, seqs: &[u64]) -> Result<Vec<Row>, StoreError> {
        let (Some(first), Some(last)) = (seqs.iter().min(), seqs.iter().max()) else {
            return Ok(Vec::new());
        };
        let (first, last) = (to_integer(*first), to_integer(*last));
        self.on_connection(move |db| {
            let sql = format!("{SELECT_ROWS} WHERE seq >= ?1 AND seq <= ?2 ORDER BY seq");
            let mut statement = db.prepare(&sql)?;
            let rows = statement.query_map(params![first, last], read_row)?;
            rows.collect()
        })
        .await
    }

    async fn import_rows(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        self.on_connection(move |db| {
            let transaction = db.transaction()?;
            for row in &rows {
                write_row(&transaction, row)?;
            }
            transaction.commit()
        })
        .await
    }

    async fn import_annotations(&self, annotations: Vec<AnnotationRow>) -> Result<(), StoreError> {
        self.on_connection(move |db| {
            let transaction = db.transaction()?;
            let sql =
                "INSERT OR REPLACE INTO annotations(backend, vm, backup, identity, written, record)
                 VALUES(?1,?2,?3,?4,?5,?6)";
            for row in &annotations {
                transaction.prepare_cached(sql)?.execute(params![
                    row.backend,
                    row.vm,
                    row.backup,
                    row.identity,
                    to_integer(row.written),
                    row.annotation,
                ])?;
            }
            transaction.commit()
        })
        .await
    }

    async fn import_numbers(&self, numbers: &StoreNumbers) -> Result<(), StoreError> {
        let numbers = numbers.clone();
        self.on_connection(move |db| {
            let transaction = db.transaction()?;
            let sql = "INSERT OR REPLACE INTO meta(name, value) VALUES(?1, ?2)";
            let mut values = vec![("highest", numbers.highest)];
            // The highest number of a change is that of a record, or of one that has expired.
            let changed: Option<i64> =
                transaction
                    .query_row("SELECT max(changed) FROM operations", [], |row| row.get(0))?;
            let changed = changed.unwrap_or(0).cast_unsigned();
            let is_covered = numbers.latest <= changed.max(numbers.forgotten);
            let forgotten = if is_covered {
                numbers.forgotten
            } else {
                numbers.latest
            };
            values.push(("forgotten", forgotten));
            values.extend(numbers.beat.map(|beat| ("beat", beat)));
            for (name, value) in values {
                transaction.execute(sql, params![name, to_integer(value)])?;
            }
            transaction.execute("DELETE FROM change_runs", [])?;
            for run in &numbers.runs {
                transaction.execute(
                    "INSERT INTO change_runs(base, mark) VALUES(?1, ?2)",
                    params![to_integer(run.base), to_integer(run.mark)],
                )?;
            }
            transaction.commit()
        })
        .await
    }

    async fn check_structure(&self) -> Result<Vec<String>, StoreError> {
        self.on_connection(|db| {
            let sql = format!("PRAGMA integrity_check({FINDINGS_MAX})");
            let mut statement = db.prepare(&sql)?;
            let found = statement.query_map([], |row| row.get::<_, String>(0))?;
            let found: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
            Ok(found.into_iter().filter(|line| line != "ok").collect())
        })
        .await
    }
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let number =
        |column: usize| -> rusqlite::Result<u64> { Ok(row.get::<_, i64>(column)?.cast_unsigned()) };
    let key: Option<String> = row.get(9)?;
    let fingerprint: Option<Vec<u8>> = row.get(10)?;
    Ok(Row {
        seq: number(0)?,
        header: RowHeader {
            revision: number(1)?,
            verb: row.get(2)?,
            backend: row.get(3)?,
            vm: row.get(4)?,
            backup: row.get(5)?,
            principal: row.get(6)?,
            phase: row.get(7)?,
            live: row.get(8)?,
            key: key.map(|key| RowKey {
                key,
                fingerprint: HEXLOWER.encode(&fingerprint.unwrap_or_default()),
            }),
            expires: row.get::<_, Option<i64>>(11)?.map(i64::cast_unsigned),
            created: number(12)?,
            changed: number(13)?,
        },
        record: row.get(14)?,
    })
}

fn write_row(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO operations(seq, revision, verb, backend, vm, backup, principal, phase, live,
         idem_key, idem_fingerprint, expires, record, created, changed)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)";
    let header = &row.header;
    let key = header.key.as_ref();
    db.prepare_cached(sql)?.execute(params![
        to_integer(row.seq),
        to_integer(header.revision),
        header.verb,
        header.backend,
        header.vm,
        header.backup,
        header.principal,
        header.phase,
        header.live,
        key.map(|key| &key.key),
        key.map(|key| bytes_of(&key.fingerprint)),
        header.expires.map(to_integer),
        row.record,
        to_integer(header.created),
        to_integer(header.changed),
    ])?;
    Ok(())
}
