//! Lists of operations: which index serves which filter, and the walk along it.
//!
//! Every list walks one index in its order. What the index does not decide is compared row by row, without decoding the record,
//! and the rows that one page may look at are limited: no filter reads the whole table, whatever it is combined with.

use rusqlite::Connection;
use rusqlite::Row;
use rusqlite::types::Value;

use crate::model::BackupId;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::list_query::ListOrder;
use crate::operations::list_query::ListPosition;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::ListStart;
use crate::operations::list_query::ListedOperation;
use crate::operations::store::list_index::ListIndex;
use crate::operations::store::sqlite::integers::to_integer;

/// The name of an index, the condition on it, and the value in that condition.
fn condition(index: &ListIndex) -> (&'static str, &'static str, Value) {
    let text = |text: &str| Value::Text(text.to_owned());
    match index {
        ListIndex::Backup(id) => ("by_backup", "backup = ?1", text(id)),
        ListIndex::Unfinished => ("by_live", "live = 1 AND ?1 IS NULL", Value::Null),
        ListIndex::Vm(id) => ("by_vm", "vm = ?1", text(id)),
        ListIndex::Principal(name) => ("by_principal", "principal = ?1", text(name)),
        ListIndex::Outcome(outcome) => (
            "by_outcome",
            "live = 0 AND (CASE phase WHEN 'not-executed' THEN 'failed' ELSE phase END) = ?1",
            text(outcome),
        ),
        ListIndex::Verb(verb) => ("by_verb", "verb = ?1", text(verb)),
        ListIndex::Created => ("by_created", "?1 IS NULL", Value::Null),
    }
}

/// A statement that walks an index, and its values.
pub(super) struct ListStatement {
    pub(super) sql: String,
    pub(super) values: [Value; 4],
}

impl ListStatement {
    /// The walk for a query from this place on.
    pub(super) fn new(query: &ListQuery, start: Option<ListPosition>) -> Self {
        let (index, condition, value) = condition(&ListIndex::of_query(query));
        let millis = |time: Timestamp| to_integer(time.as_millis());
        let since = query.since.map_or(0, millis);
        let before = query.before.map_or(i64::MAX, millis);
        let place = start.map(|start| (millis(start.created), to_integer(start.seq.number())));
        // No number is below 1, so (time, 0) is right before the first operation of that time.
        let (range, order, (created, seq), other_end) = match query.order {
            ListOrder::NewestFirst => (
                "(created, seq) < (?2, ?3) AND created >= ?4",
                "created DESC, seq DESC",
                place.unwrap_or((i64::MAX, 0)).min((before, 0)),
                since,
            ),
            ListOrder::OldestFirst => (
                "(created, seq) > (?2, ?3) AND created < ?4",
                "created, seq",
                place.unwrap_or((0, 0)).max((since, 0)),
                before,
            ),
        };
        Self {
            // The planner has no choice: a query for which the index cannot be used is an error.
            sql: format!(
                "SELECT seq, created, principal, verb, vm, backup, phase, record
                 FROM operations INDEXED BY {index}
                 WHERE {condition} AND {range} ORDER BY {order}"
            ),
            values: [
                value,
                Value::Integer(created),
                Value::Integer(seq),
                Value::Integer(other_end),
            ],
        }
    }
}

/// A row of the walk.
pub(super) struct ListedRow {
    pub(super) position: ListPosition,
    principal: PrincipalName,
    verb: Verb,
    target: Target,
    phase: Phase,
}

impl ListedRow {
    /// `None` when a column holds what no version writes: the record is set aside.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Option<Self>> {
        let number = |column: usize| -> rusqlite::Result<Option<u64>> {
            Ok(u64::try_from(row.get::<_, i64>(column)?).ok())
        };
        let (seq, created) = (number(0)?.and_then(OperationSeq::new), number(1)?);
        let text = |column: usize| -> rusqlite::Result<&str> {
            row.get_ref(column)?.as_str().map_err(Into::into)
        };
        let (principal, verb) = (text(2)?, text(3)?);
        let (vm, backup, phase) = (text(4)?, text(5)?, text(6)?);
        let verb = Verb::ALL.into_iter().find(|known| known.as_str() == verb);
        let phase = Phase::ALL.into_iter().find(|known| known.as_str() == phase);
        let parts = || {
            Some(Self {
                position: ListPosition {
                    created: Timestamp::from_millis(created?),
                    seq: seq?,
                },
                principal: PrincipalName::new(principal).ok()?,
                verb: verb?,
                target: Target {
                    vm: VmId::new(vm).ok()?,
                    backup: BackupId::new(backup).ok()?,
                },
                phase: phase?,
            })
        };
        Ok(parts())
    }

    /// Whether the query lists it.
    pub(super) fn is_listed(&self, query: &ListQuery) -> bool {
        query.matches_listed(&ListedOperation {
            principal: &self.principal,
            verb: self.verb,
            target: &self.target,
            phase: self.phase,
            created: self.position.created,
        })
    }
}

/// The place where a list starts.
pub(super) fn find_start(
    db: &Connection,
    start: Option<ListStart>,
) -> rusqlite::Result<Option<ListPosition>> {
    let seq = match start {
        None => return Ok(None),
        Some(ListStart::After(position)) => return Ok(Some(position)),
        Some(ListStart::AfterOperation(seq)) => seq,
    };
    // The operation may have expired; the one before it was accepted no later, but for clocks that were set back.
    let sql = "SELECT created FROM operations WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([to_integer(seq.number())])?;
    let created = match rows.next()? {
        Some(row) => u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        None => 0,
    };
    Ok(Some(ListPosition {
        created: Timestamp::from_millis(created),
        seq,
    }))
}
