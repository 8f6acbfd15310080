//! The numbers of writes: where they go on when the file is opened, and what of the past a follower may go on from.

use rusqlite::Connection;
use rusqlite::Row;
use rusqlite::params;

use crate::operations::change_feed::ChangeHistory;
use crate::operations::change_feed::StoreRun;
use crate::operations::store::sqlite::integers::to_integer;

/// Openings of the file that are remembered: a position of an older one cannot be resumed.
const RUNS_KEPT: i64 = 1000;

/// Begins a run: from now on the writes have numbers above all before.
pub(super) fn begin_run(connection: &mut Connection) -> rusqlite::Result<ChangeHistory> {
    let number = |sql: &str| -> rusqlite::Result<i64> {
        let found: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(found.unwrap_or(0))
    };
    let forgotten = number("SELECT max(value) FROM meta WHERE name = 'forgotten'")?;
    // One query for each index: a maximum over all records would read all of them.
    let finished =
        number("SELECT max(changed) FROM operations INDEXED BY by_changed WHERE live = 0")?;
    let unfinished =
        number("SELECT max(changed) FROM operations INDEXED BY by_live WHERE live = 1")?;
    let latest = forgotten.max(finished).max(unfinished);
    // 63 random bits: the same run of two histories would have the same mark only by chance.
    let mark = number("SELECT random() & 0x7fffffffffffffff")?;
    let mut runs = read_runs(connection)?;
    runs.push(StoreRun {
        base: latest.cast_unsigned(),
        mark: mark.cast_unsigned(),
    });
    // A disk that is full must not keep the gateway from starting: followers of this run begin anew after the next start.
    if let Err(error) = record_run(connection, latest, mark) {
        tracing::warn!(%error, "start of the store not recorded");
    }
    Ok(ChangeHistory {
        runs,
        latest: latest.cast_unsigned(),
        forgotten: forgotten.cast_unsigned(),
    })
}

fn read_runs(connection: &Connection) -> rusqlite::Result<Vec<StoreRun>> {
    let mut statement = connection.prepare("SELECT base, mark FROM change_runs ORDER BY run")?;
    let run = |row: &Row<'_>| {
        Ok(StoreRun {
            base: row.get::<_, i64>(0)?.cast_unsigned(),
            mark: row.get::<_, i64>(1)?.cast_unsigned(),
        })
    };
    statement.query_map([], run)?.collect()
}

fn record_run(connection: &mut Connection, base: i64, mark: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO change_runs(base, mark) VALUES(?1, ?2)",
        params![base, mark],
    )?;
    transaction.execute(
        "DELETE FROM change_runs WHERE run <= (SELECT max(run) FROM change_runs) - ?1",
        params![RUNS_KEPT],
    )?;
    transaction.commit()
}

/// The largest number that is too low for a query; records of older formats have number 0.
pub(super) fn lower_bound(number: Option<u64>) -> i64 {
    number.map_or(-1, to_integer)
}
