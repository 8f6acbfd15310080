//! Lists: no query reads the whole table. What they answer is in the tests of all engines.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "what a test counts is small"
)]

use rusqlite::Connection;
use rusqlite::StatementStatus;
use rusqlite::params_from_iter;

use super::*;
use crate::model::OperationState;
use crate::model::PrincipalName;
use crate::model::Verb;
use crate::model::limits;
use crate::operations::ListCount;
use crate::operations::ListOrder;
use crate::operations::ListPosition;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::operations::OperationVisibility;
use crate::operations::Selector;
use crate::operations::store::Store;
use crate::operations::store::list_index::ListIndex;
use crate::operations::store::sqlite::list_sql::ListStatement;
use crate::operations::store::sqlite::list_sql::ListedRow;
use crate::operations::testing::NOW;
use crate::operations::testing::operation;
use crate::operations::testing::target;

fn time(number: u64) -> Timestamp {
    Timestamp::from_millis(NOW.as_millis() + number)
}

/// Every combination of filters in both orders, from the beginning and from a place on.
fn all_shapes() -> Vec<ListQuery> {
    let mut shapes = Vec::new();
    for bits in 0..512_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let position = ListPosition {
            created: NOW,
            seq: seq(5),
        };
        for state in [
            None,
            Some(OperationState::Queued),
            Some(OperationState::Failed),
        ] {
            shapes.push(ListQuery {
                principal: has(0).then(|| PrincipalName::new("ada").unwrap()),
                selector: Selector {
                    verb: has(1).then_some(Verb::Restore),
                    vm: has(2).then(|| target("vm", "b").vm),
                    backup: has(3).then(|| target("vm", "b").backup),
                },
                state,
                unfinished: has(4).then_some(has(0)),
                since: has(5).then_some(NOW),
                before: has(6).then_some(NOW),
                order: if has(7) {
                    ListOrder::OldestFirst
                } else {
                    ListOrder::NewestFirst
                },
                start: has(8).then_some(ListStart::After(position)),
                limit: 100,
                ..ListQuery::default()
            });
        }
    }
    shapes
}

fn position_of(query: &ListQuery) -> Option<ListPosition> {
    match query.start {
        Some(ListStart::After(position)) => Some(position),
        Some(ListStart::AfterOperation(_)) | None => None,
    }
}

#[tokio::test]
async fn no_combination_of_filters_scans_or_sorts() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).close().await;
    let db = Connection::open(folder.path().join("s.db")).unwrap();
    for query in all_shapes() {
        let walk = ListStatement::new(&query, position_of(&query));
        let explain = format!("EXPLAIN QUERY PLAN {}", walk.sql);
        let mut statement = db.prepare_cached(&explain).unwrap();
        let steps = statement.query_map(params_from_iter(walk.values), |row| row.get(3));
        let steps: Vec<String> = steps.unwrap().map(Result::unwrap).collect();
        let [step] = steps.as_slice() else {
            panic!("one walk without a sort, not {steps:?}: {query:?}");
        };
        let is_bounded = step.starts_with("SEARCH operations USING INDEX by_")
            && step.contains("created>?")
            && step.contains("created<?");
        assert!(is_bounded, "{step}: {query:?}");
    }
}

/// Fills a store with so many finished records, as a gateway writes them, of which every hundredth is of each kind that is
/// searched for.
fn fill(folder: &Path, records: u64) {
    let record = serde_json::json!({ "format": 2, "operation": operation(1, "vm", "b") });
    let db = Connection::open(folder.join("s.db")).unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
        INSERT INTO operations(seq, revision, verb, backend, vm, backup, principal, phase, live, expires, record, created)
        SELECT i, 2, CASE i % 2 WHEN 0 THEN 'restore' ELSE 'update' END, 'one', 'vm' || (i % 4), 'b' || (i % 4),
            CASE i % 2 WHEN 0 THEN 'ada' ELSE 'bob' END,
            CASE i % 4 WHEN 0 THEN 'failed' ELSE 'succeeded' END, 0, NULL, ?2, ?3 + i FROM n";
    let now = i64::try_from(NOW.as_millis()).unwrap();
    let records = i64::try_from(records).unwrap();
    db.execute(sql, rusqlite::params![records, record.to_string(), now])
        .unwrap();
}

/// Steps of SQLite's virtual machine for one page: the same on every machine.
fn steps_of_page(db: &Connection, query: &ListQuery) -> i32 {
    let walk = ListStatement::new(query, position_of(query));
    let mut statement = db.prepare(&walk.sql).unwrap();
    let mut rows = statement.query(params_from_iter(walk.values)).unwrap();
    let (mut on_page, mut passed_over) = (0, 0);
    while let Some(row) = rows.next().unwrap() {
        if on_page == usize::from(query.limit) || passed_over == limits::LIST_WORK_MAX {
            break;
        }
        let listed = ListedRow::read(row).unwrap().expect("a known record");
        if listed.is_listed(query) {
            let _record: String = row.get(7).unwrap();
            on_page += 1;
        } else {
            passed_over += 1;
        }
    }
    drop(rows);
    statement.get_status(StatementStatus::VmStep)
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
async fn the_cost_of_a_page_does_not_grow_with_the_store() {
    let query = || ListQuery {
        limit: 20,
        ..ListQuery::default()
    };
    let select = |verb, vm: Option<&str>, backup: Option<&str>| ListQuery {
        selector: Selector {
            verb,
            vm: vm.map(|vm| target(vm, "b").vm),
            backup: backup.map(|backup| target("vm", backup).backup),
        },
        ..query()
    };
    let rows = [
        ("all", query()),
        ("op", select(Some(Verb::Restore), None, None)),
        ("vm", select(None, Some("vm1"), None)),
        ("b", select(None, None, Some("b1"))),
        (
            "principal",
            ListQuery {
                principal: PrincipalName::new("ada").ok(),
                ..query()
            },
        ),
        (
            "state",
            ListQuery {
                state: Some(OperationState::Failed),
                ..query()
            },
        ),
        (
            "queued",
            ListQuery {
                state: Some(OperationState::Queued),
                ..query()
            },
        ),
        (
            "since",
            ListQuery {
                since: Some(time(50)),
                ..query()
            },
        ),
        (
            "before",
            ListQuery {
                before: Some(time(50)),
                ..query()
            },
        ),
        (
            "oldest",
            ListQuery {
                order: ListOrder::OldestFirst,
                ..query()
            },
        ),
        ("op and vm", select(Some(Verb::Restore), Some("vm2"), None)),
    ];
    let sizes = [100, 20_000].map(|records| {
        let folder = tempfile::tempdir().unwrap();
        (records, folder)
    });
    let mut steps: Vec<Vec<i32>> = Vec::new();
    for (records, folder) in &sizes {
        open(folder.path()).close().await;
        fill(folder.path(), *records);
        let db = Connection::open(folder.path().join("s.db")).unwrap();
        steps.push(
            rows.iter()
                .map(|(_, query)| steps_of_page(&db, query))
                .collect(),
        );
    }
    for ((name, _), (few, many)) in rows.iter().zip(steps[0].iter().zip(&steps[1])) {
        assert!(many * 10 <= few * 12, "{name}: {few} steps, then {many}");
    }
}

#[tokio::test]
async fn the_work_for_a_page_and_for_a_count_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).close().await;
    fill(folder.path(), 20_000);
    let store = open(folder.path());
    // Nothing matches, and no index says so.
    let mut query = ListQuery {
        visible: Some(OperationVisibility::new(|_, target| {
            target.vm.as_str() == "none"
        })),
        limit: 10,
        count: true,
        ..ListQuery::default()
    };
    assert_eq!(
        ListIndex::of_query(&query),
        ListIndex::Created,
        "no filter of its own"
    );
    let mut pages = 0;
    loop {
        let page = store.list(&query).await.unwrap();
        assert!(page.operations.is_empty(), "nothing is shown");
        assert_eq!(
            page.count,
            Some(ListCount::AtLeast(0)),
            "all were not looked at"
        );
        pages += 1;
        let Some(next) = page.next else {
            break;
        };
        query.start = Some(ListStart::After(next));
    }
    assert_eq!(
        pages,
        20_000 / limits::LIST_WORK_MAX,
        "each is short, and the last says so"
    );
    query = ListQuery {
        limit: 10,
        count: true,
        ..ListQuery::default()
    };
    let page = store.list(&query).await.unwrap();
    assert_eq!(
        page.count,
        Some(ListCount::AtLeast(limits::LIST_COUNT_MAX)),
        "a minimum"
    );
    query.since = Some(time(19_001));
    let page = store.list(&query).await.unwrap();
    assert_eq!(
        page.count,
        Some(ListCount::Exact(1000)),
        "exact where it can be"
    );
}
