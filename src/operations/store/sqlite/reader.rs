//! Reads: a few connections of their own, used on the blocking threads of the runtime.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::Row;
use rusqlite::ToSql;
use rusqlite::params;
use rusqlite::params_from_iter;
use tokio::sync::Semaphore;

use crate::model::BackupId;
use crate::model::Idempotency;
use crate::model::KeyScope;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::limits;
use crate::operations::api::ChangePage;
use crate::operations::api::ChangePart;
use crate::operations::api::ChangeQuery;
use crate::operations::change_feed::DurableChange;
use crate::operations::list_query::ListCount;
use crate::operations::list_query::ListPage;
use crate::operations::list_query::ListQuery;
use crate::operations::store::contract::Counts;
use crate::operations::store::error::StoreError;
use crate::operations::store::record;
use crate::operations::store::sqlite::change_history;
use crate::operations::store::sqlite::errors::already_failed;
use crate::operations::store::sqlite::errors::classify;
use crate::operations::store::sqlite::integers::to_integer;
use crate::operations::store::sqlite::list_sql;
use crate::operations::store::sqlite::list_sql::ListStatement;
use crate::operations::store::sqlite::list_sql::ListedRow;
use crate::operations::store::sqlite::open;

/// Reads at once; each has a connection and a page cache.
const READERS: u16 = 4;
/// Where the statement of a list has the record.
const RECORD_COLUMN: usize = 7;
/// Statements that a connection keeps prepared: those of lists, twice seven, and all others.
const STATEMENTS_KEPT: usize = 32;
/// Unreadable records that are counted; beyond it the number is a minimum.
const SET_ASIDE_MAX: usize = 10_000;

type Read<T> = Result<T, StoreError>;

/// The connections for reads.
#[derive(Debug)]
pub(super) struct Readers {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// One permit for each read that may run at once; closed with the store.
    permits: Arc<Semaphore>,
    has_failed: Arc<AtomicBool>,
    set_aside: Mutex<BTreeSet<i64>>,
}

impl Readers {
    pub(super) fn new(file: PathBuf, has_failed: Arc<AtomicBool>) -> Self {
        Self {
            file,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(READERS.into())),
            has_failed,
            set_aside: Mutex::default(),
        }
    }

    /// Waits for the reads in flight, then refuses more and closes the connections.
    pub(super) async fn close(&self) {
        let all = self.permits.acquire_many(READERS.into()).await;
        self.permits.close();
        drop(all);
        self.idle.lock().clear();
    }

    /// Runs one read on a blocking thread.
    pub(super) async fn run<T, F>(this: &Arc<Self>, read: F) -> Read<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self, &Connection) -> Read<T> + Send + 'static,
    {
        let closed = || StoreError::Unavailable("closed".to_owned());
        let permit = Arc::clone(&this.permits)
            .acquire_owned()
            .await
            .map_err(|_closed| closed())?;
        let this = Arc::clone(this);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            this.with_connection(read)
        })
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))?
    }

    fn with_connection<T>(&self, read: impl FnOnce(&Self, &Connection) -> Read<T>) -> Read<T> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(already_failed());
        }
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect().map_err(|error| classify(&error))?,
        };
        let result = read(self, &connection);
        match &result {
            Err(StoreError::Fatal(_)) => self.has_failed.store(true, Ordering::Release),
            Ok(_) | Err(_) if !self.permits.is_closed() => self.idle.lock().push(connection),
            Ok(_) | Err(_) => {}
        }
        result
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = open::connect(&self.file)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        Ok(connection)
    }

    /// Decodes a row `(seq, record)`. A record that cannot be decoded is counted and alarmed, and left as it is.
    fn decode(&self, (seq, text): &(i64, String)) -> Read<Arc<Operation>> {
        record::decode(text).map(Arc::new).map_err(|error| {
            let mut set_aside = self.set_aside.lock();
            if set_aside.len() < SET_ASIDE_MAX && set_aside.insert(*seq) {
                tracing::error!(operation = seq, %error, "operation record not readable");
            }
            StoreError::Unavailable(format!("record {seq}: {error}"))
        })
    }

    pub(super) fn read(&self, db: &Connection, seq: OperationSeq) -> Read<Option<Arc<Operation>>> {
        let sql = "SELECT seq, record FROM operations WHERE seq = ?1";
        query_row(db, sql, params![to_integer(seq.number())])?
            .map(|row| self.decode(&row))
            .transpose()
    }

    pub(super) fn find_by_key(
        &self,
        db: &Connection,
        principal: &PrincipalName,
        scope: &KeyScope,
        key: &Idempotency,
    ) -> Read<Option<Arc<Operation>>> {
        let sql = "SELECT seq, record FROM operations WHERE principal = ?1 AND idem_key = ?2
             AND verb = ?3 AND vm = ?4 AND (?5 IS NULL OR backup = ?5)";
        let values = params![
            principal.as_str(),
            key.key.as_str(),
            scope.verb.as_str(),
            scope.vm.as_str(),
            scope.backup.as_ref().map(BackupId::as_str),
        ];
        query_row(db, sql, values)?
            .map(|row| self.decode(&row))
            .transpose()
    }

    pub(super) fn list(&self, db: &Connection, query: &ListQuery) -> Read<ListPage> {
        let found = self.walk_page(db, query).and_then(|mut page| {
            if query.count {
                page.count = Some(count_matches(db, query)?);
            }
            Ok(page)
        });
        found.map_err(|error| classify(&error))
    }

    /// One page, or what could be found of it within the limit of work.
    fn walk_page(&self, db: &Connection, query: &ListQuery) -> rusqlite::Result<ListPage> {
        let start = list_sql::find_start(db, query.start)?;
        let walk = ListStatement::new(query, start);
        let mut statement = db.prepare_cached(&walk.sql)?;
        let mut rows = statement.query(params_from_iter(walk.values))?;
        let limit = usize::from(query.limit.clamp(1, limits::PAGE_MAX));
        let mut page = ListPage::default();
        let (mut passed_over, mut last, mut last_listed) = (0_usize, None, None);
        while let Some(row) = rows.next()? {
            if passed_over == limits::LIST_WORK_MAX {
                page.next = last;
                break;
            }
            let listed = ListedRow::read(row)?;
            last = listed.as_ref().map(|listed| listed.position).or(last);
            let record = match listed.filter(|listed| listed.is_listed(query)) {
                // One more than the page has: there is a next page.
                Some(_) if page.operations.len() == limit => {
                    page.next = last_listed;
                    break;
                }
                Some(_) => self.decode(&(row.get(0)?, row.get(RECORD_COLUMN)?)).ok(),
                None => None,
            };
            match record {
                Some(operation) => {
                    last_listed = last;
                    page.operations.push(operation);
                }
                None => passed_over = passed_over.saturating_add(1),
            }
        }
        Ok(page)
    }

    pub(super) fn changes(&self, db: &Connection, query: &ChangeQuery) -> Read<ChangePage> {
        // The indexes are named: others would fit the principal or the VM, and would have to sort all its records.
        let (mut sql, order, page_after) = match query.part {
            ChangePart::Unfinished { after } => (
                "SELECT seq, record, changed FROM operations INDEXED BY by_live_seq WHERE live = 1 AND seq > ?".to_owned(),
                " ORDER BY seq LIMIT ?",
                after.map_or(0, |seq| to_integer(seq.number())),
            ),
            ChangePart::Finished => (
                "SELECT seq, record, changed FROM operations INDEXED BY by_changed WHERE live = 0 AND ? = 0".to_owned(),
                " ORDER BY changed LIMIT ?",
                0,
            ),
        };
        sql.push_str(" AND changed > ? AND changed <= ?");
        let (after, up_to) = (
            change_history::lower_bound(query.after),
            to_integer(query.up_to),
        );
        let mut values: Vec<&dyn ToSql> = vec![&page_after, &after, &up_to];
        let principal = query.principal.as_ref().map(PrincipalName::as_str);
        let verb = query.verb.map(crate::model::Verb::as_str);
        let vm = query.vm.as_ref().map(crate::model::VmId::as_str);
        let columns = [
            (" AND principal = ?", &principal),
            (" AND verb = ?", &verb),
            (" AND vm = ?", &vm),
        ];
        for (condition, value) in columns {
            if value.is_some() {
                sql.push_str(condition);
                values.push(value);
            }
        }
        sql.push_str(order);
        let limit = query.limit.clamp(1, limits::PAGE_MAX);
        values.push(&limit);
        let rows = query_changes(db, &sql, values.as_slice())?;
        let last = rows.last().filter(|_| rows.len() >= usize::from(limit));
        let full_at = last.and_then(|(seq, _, number)| {
            let seq = OperationSeq::new(seq.cast_unsigned())?;
            Some((number.cast_unsigned(), seq))
        });
        let changes = rows.into_iter().filter_map(|(seq, record, number)| {
            let operation = self.decode(&(seq, record)).ok()?;
            Some(DurableChange::new(number.cast_unsigned(), operation))
        });
        Ok(ChangePage {
            changes: changes.collect(),
            full_at,
        })
    }

    pub(super) fn unfinished(&self, db: &Connection) -> Read<Vec<Arc<Operation>>> {
        let sql = "SELECT seq, record FROM operations WHERE live = 1 ORDER BY seq";
        let rows = query_rows(db, sql, params![])?;
        Ok(rows
            .iter()
            .filter_map(|row| self.decode(row).ok())
            .collect())
    }

    pub(super) fn counts(&self, db: &Connection) -> Read<Counts> {
        let sql = "SELECT count(*) FROM operations WHERE phase = 'unknown' AND expires IS NULL";
        let unknown = query_number(db, sql)?.unwrap_or(0);
        let set_aside = self.set_aside.lock().len();
        Ok(Counts {
            unknown: usize::try_from(unknown).unwrap_or(0),
            set_aside,
        })
    }

    pub(super) fn highest_seq(db: &Connection) -> Read<Option<OperationSeq>> {
        let sql = "SELECT max(it) FROM (SELECT max(seq) AS it FROM operations
             UNION ALL SELECT value FROM meta WHERE name = 'highest')";
        Ok(query_number(db, sql)?
            .and_then(|number| u64::try_from(number).ok())
            .and_then(OperationSeq::new))
    }

    pub(super) fn last_heartbeat(db: &Connection) -> Read<Option<Timestamp>> {
        let sql = "SELECT max(value) FROM meta WHERE name = 'beat'";
        Ok(query_number(db, sql)?
            .and_then(|number| u64::try_from(number).ok())
            .map(Timestamp::from_millis))
    }
}

/// How many operations match, as far as the limit of work allows to know.
fn count_matches(db: &Connection, query: &ListQuery) -> rusqlite::Result<ListCount> {
    let walk = ListStatement::new(query, None);
    let mut statement = db.prepare_cached(&walk.sql)?;
    let mut rows = statement.query(params_from_iter(walk.values))?;
    let (mut seen, mut count) = (0_usize, 0_usize);
    while let Some(row) = rows.next()? {
        if seen == limits::LIST_COUNT_MAX {
            return Ok(ListCount::AtLeast(count));
        }
        seen = seen.saturating_add(1);
        let listed = ListedRow::read(row)?;
        if listed.is_some_and(|listed| listed.is_listed(query)) {
            count = count.saturating_add(1);
        }
    }
    Ok(ListCount::Exact(count))
}

fn seq_and_record(row: &Row<'_>) -> rusqlite::Result<(i64, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn query_row(db: &Connection, sql: &str, values: &[&dyn ToSql]) -> Read<Option<(i64, String)>> {
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row(values, seq_and_record).optional())
        .map_err(|error| classify(&error))
}

fn query_rows(db: &Connection, sql: &str, values: &[&dyn ToSql]) -> Read<Vec<(i64, String)>> {
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(values, seq_and_record)?.collect())
        .map_err(|error| classify(&error))
}

fn query_changes(
    db: &Connection,
    sql: &str,
    values: &[&dyn ToSql],
) -> Read<Vec<(i64, String, i64)>> {
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_map(values, row)?.collect())
        .map_err(|error| classify(&error))
}

fn query_number(db: &Connection, sql: &str) -> Read<Option<i64>> {
    db.query_row(sql, [], |row| row.get(0))
        .map_err(|error| classify(&error))
}
