//! The numbers of writes in stores of earlier versions, and that reads by them use indexes. The rest is in the tests of all engines.

use std::sync::Arc;

use super::*;
use crate::operations::ChangeNumber;
use crate::operations::ChangePage;
use crate::operations::ChangePart;
use crate::operations::ChangeQuery;
use crate::operations::store::Store;
use crate::operations::testing::operation;

const ALL: ChangePart = ChangePart::Unfinished { after: None };

fn query(part: ChangePart, after: Option<ChangeNumber>, up_to: ChangeNumber) -> ChangeQuery {
    ChangeQuery {
        part,
        after,
        up_to,
        principal: None,
        verb: None,
        vm: None,
        limit: 2,
    }
}

/// The numbers of operations and of their last changes.
fn rows(page: &ChangePage) -> Vec<(u64, ChangeNumber)> {
    let row =
        |change: &crate::operations::DurableChange| (change.operation.seq.number(), change.number);
    page.changes.iter().map(row).collect()
}

async fn create(store: &SqliteStore, number: u64) -> Arc<Operation> {
    let made = Arc::new(operation(number, "vm", "b"));
    store.create(Arc::clone(&made)).await.unwrap();
    made
}

#[tokio::test]
async fn a_write_that_is_refused_has_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let made = create(&store, 1).await;
    assert!(store.create(made).await.is_err(), "twice");
    create(&store, 2).await;
    let found = store.changes(&query(ALL, None, 9)).await.unwrap();
    assert_eq!(rows(&found), [(1, 1), (2, 2)], "one after the other");
}

#[tokio::test]
async fn unfinished_operations_of_an_older_store_are_among_the_present_ones() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    create(&store, 1).await;
    store.close().await;
    tamper(folder.path(), FORMAT_2);
    let store = open(folder.path());
    let found = store.changes(&query(ALL, None, 0)).await.unwrap();
    assert_eq!(rows(&found), [(1, 0)], "without a number");
    let since = store.changes(&query(ALL, Some(0), 9)).await.unwrap();
    assert_eq!(rows(&since), [], "and it did not change since");
}

/// No filter makes a read look at more than its window of changes, or at more than the unfinished ones.
#[tokio::test]
async fn reads_for_streams_are_served_by_their_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    create(&store, 1).await;
    store.close().await;
    let db = rusqlite::Connection::open(folder.path().join("s.db")).unwrap();
    for (sql, index) in [
        (
            "SELECT seq FROM operations INDEXED BY by_live_seq WHERE live = 1 AND seq > 0 AND changed > 0 AND changed <= 9
             AND principal = 'p' AND verb = 'v' AND vm = 'm' ORDER BY seq LIMIT 2",
            "by_live_seq (seq>?)",
        ),
        (
            "SELECT seq FROM operations INDEXED BY by_changed WHERE live = 0 AND 0 = 0 AND changed > 0 AND changed <= 9
             AND principal = 'p' AND verb = 'v' AND vm = 'm' ORDER BY changed LIMIT 2",
            "by_changed (changed>? AND changed<?)",
        ),
    ] {
        let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        assert_eq!(steps.len(), 1, "no sorting: {steps:?}");
        assert!(steps[0].contains(index), "{steps:?}");
    }
}
