//! The numbers of writes: their order, what is found by them, and that they outlive restarts and expired records.

use std::sync::Arc;

use super::*;
use crate::operations::ChangeNumber;
use crate::operations::ChangePage;
use crate::operations::ChangePart;
use crate::operations::ChangePosition;
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

async fn finish(store: &SqliteStore, operation: &Operation, expires: u64) {
    let end = succeeded(operation.clone(), Some(Timestamp::from_millis(expires)));
    store.update(end).await.unwrap();
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
async fn writes_are_numbered_in_order_and_found_by_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut made = Vec::new();
    for number in 1..=5 {
        made.push(create(&store, number).await);
    }
    finish(&store, &made[3], 10).await;
    finish(&store, &made[0], 10).await;
    // A write that is refused has no number.
    assert!(store.create(Arc::clone(&made[1])).await.is_err(), "twice");
    finish(&store, &made[2], 10).await;
    let unfinished = |after| ChangePart::Unfinished { after };
    // name, query, what is found, where a full page ends
    let table = [
        (
            "unfinished",
            query(ALL, None, 99),
            vec![(2, 2), (5, 5)],
            Some((5, 5)),
        ),
        (
            "above a number",
            query(unfinished(Some(seq(2))), None, 99),
            vec![(5, 5)],
            None,
        ),
        ("up to a change", query(ALL, None, 4), vec![(2, 2)], None),
        (
            "after a change",
            query(ALL, Some(2), 99),
            vec![(5, 5)],
            None,
        ),
        (
            "finished",
            query(ChangePart::Finished, None, 99),
            vec![(4, 6), (1, 7)],
            Some((7, 1)),
        ),
        (
            "the next page",
            query(ChangePart::Finished, Some(7), 99),
            vec![(3, 8)],
            None,
        ),
        (
            "a window",
            query(ChangePart::Finished, Some(6), 7),
            vec![(1, 7)],
            None,
        ),
    ];
    for (name, query, expected, end) in table {
        let page = store.changes(&query).await.unwrap();
        assert_eq!(rows(&page), expected, "{name}");
        let full_at = page.full_at.map(|(number, seq)| (number, seq.number()));
        assert_eq!(full_at, end, "{name}: where it ends");
    }
    let narrowed = |change: fn(&mut ChangeQuery)| {
        let mut narrowed = query(ChangePart::Finished, None, 99);
        change(&mut narrowed);
        narrowed
    };
    let made_by = made[0].principal.clone();
    let mut by_principal = query(ChangePart::Finished, None, 99);
    by_principal.principal = Some(made_by);
    let found = store.changes(&by_principal).await.unwrap();
    assert_eq!(found.changes.len(), 2, "of their principal");
    let other = narrowed(|query| query.vm = Some(crate::model::VmId::new("other").unwrap()));
    let found = store.changes(&other).await.unwrap();
    assert_eq!(found.changes.len(), 0, "of another VM");
    let handed_in = store.change_feed().unwrap().take_handed_in().await;
    let numbers: Vec<_> = handed_in.iter().map(|change| change.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8], "each once, in order");
}

#[tokio::test]
async fn numbers_go_on_after_a_restart_and_after_their_records_expired() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let one = create(&store, 1).await;
    let feed = store.change_feed().unwrap();
    feed.publish(feed.take_handed_in().await);
    let begin = feed.position(feed.latest());
    assert_eq!(feed.resume(begin), Some(1), "good");
    store.close().await;
    let store = open(folder.path());
    let feed = store.change_feed().unwrap();
    assert_eq!(feed.latest(), 1, "where it was");
    assert_eq!(feed.resume(begin), Some(1), "good over a restart");
    finish(&store, &one, 10).await;
    feed.publish(feed.take_handed_in().await);
    let end = feed.position(feed.latest());
    assert_eq!(end.number, 2, "goes on");
    assert_ne!(end.mark, begin.mark, "another run");
    let now = Timestamp::from_millis(11);
    assert_eq!(store.remove_expired(now, 9).await, Ok(1), "expired");
    assert_eq!(feed.resume(begin), None, "the end of 1 is lost");
    assert_eq!(feed.resume(end), Some(2), "who saw it loses nothing");
    store.close().await;
    let store = open(folder.path());
    let feed = store.change_feed().unwrap();
    assert_eq!(feed.resume(begin), None, "still lost");
    assert_eq!(feed.resume(end), Some(2), "still good");
    let stranger = ChangePosition { mark: 5, ..end };
    assert_eq!(feed.resume(stranger), None, "of another store");
    create(&store, 2).await;
    feed.publish(feed.take_handed_in().await);
    assert_eq!(feed.latest(), 3, "no number is used twice");
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
