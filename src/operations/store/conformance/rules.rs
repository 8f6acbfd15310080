//! Rules about single records: create, update, keys, numbers of changes, expiry, annotations.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "what a test counts is small"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::model::BackupName;
use crate::model::Identity;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Progress;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::ChangeNumber;
use crate::operations::ChangePage;
use crate::operations::ChangePart;
use crate::operations::ChangePosition;
use crate::operations::ChangeQuery;
use crate::operations::DurableChange;
use crate::operations::ListQuery;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::conformance::Bed;
use crate::operations::testing::NOW;
use crate::operations::testing::backend;
use crate::operations::testing::idempotency;
use crate::operations::testing::operation;
use crate::operations::testing::target;

pub(in crate::operations::store) fn seq(number: u64) -> OperationSeq {
    OperationSeq::new(number).unwrap()
}

pub(in crate::operations::store) fn succeeded(
    mut operation: Operation,
    expires: Option<Timestamp>,
) -> Arc<Operation> {
    operation.revision = operation.revision.next();
    operation.phase = Phase::Succeeded;
    operation.progress = Progress::DONE;
    operation.expires = expires;
    Arc::new(operation)
}

pub(super) async fn written_records_are_there_after_reopening(bed: &Bed) {
    let store = bed.open().await;
    let first = operation(1, "vm", "b");
    let second = Arc::new(operation(2, "vm", "c"));
    let made = store.create(Arc::new(first.clone())).await;
    assert!(matches!(made, Ok(Created::New)), "created: {made:?}");
    store.create(Arc::clone(&second)).await.unwrap();
    let done = succeeded(first.clone(), None);
    store.update(Arc::clone(&done)).await.unwrap();
    store.record_heartbeat(NOW).await.unwrap();
    store.record_heartbeat(Timestamp::default()).await.unwrap();
    store.close().await;
    let refused = store.create(Arc::new(operation(3, "vm", "b"))).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "closed: {refused:?}"
    );
    let store = bed.open().await;
    assert_eq!(store.read(seq(1)).await.unwrap(), Some(done), "updated");
    let unfinished = store.unfinished().await.unwrap();
    assert_eq!(unfinished, [second], "the unfinished one");
    assert_eq!(store.highest_seq().await.unwrap(), Some(seq(2)), "highest");
    let heartbeat = store.last_heartbeat().await.unwrap();
    assert_eq!(heartbeat, Some(NOW), "the heartbeat does not go back");
    assert_eq!(store.read(seq(3)).await.unwrap(), None, "never made");
    let other = Arc::new(operation(1, "other", "b"));
    let again = store.create(other).await;
    assert_eq!(again.unwrap_err(), StoreError::Conflict, "number in use");
    let stale = store.update(Arc::new(first)).await;
    assert_eq!(stale, Err(StoreError::Conflict), "wrong revision");
    let mut absent = operation(9, "vm", "b");
    absent.revision = absent.revision.next();
    let absent = store.update(Arc::new(absent)).await;
    assert_eq!(absent, Err(StoreError::Conflict), "no such record");
    store.close().await;
}

pub(super) async fn a_key_is_used_once_per_principal_method_and_target(bed: &Bed) {
    let store = bed.open().await;
    let with_key = |number, fingerprint| {
        let mut operation = operation(number, "vm", "b");
        operation.idempotency = Some(idempotency("k/1", fingerprint));
        operation
    };
    store.create(Arc::new(with_key(1, 7))).await.unwrap();
    match store.create(Arc::new(with_key(2, 7))).await {
        Ok(Created::Replayed(found)) => assert_eq!(found.seq, seq(1), "the first one"),
        other => panic!("replayed, not {other:?}"),
    }
    let other = store.create(Arc::new(with_key(3, 8))).await;
    assert_eq!(other.unwrap_err(), StoreError::KeyReused(seq(1)), "reused");
    type Edit = fn(&mut Operation);
    let changes: [(&str, Edit); 3] = [
        ("principal", |operation| {
            operation.principal = PrincipalName::new("bob").unwrap();
        }),
        ("VM", |operation| {
            operation.intent.target = target("wm", "b");
        }),
        ("method", |operation| {
            operation.intent.change = crate::model::Change::Delete;
        }),
    ];
    for (number, (name, change)) in (4..).zip(changes) {
        let mut other = with_key(number, 8);
        change(&mut other);
        let made = store.create(Arc::new(other)).await;
        assert!(matches!(made, Ok(Created::New)), "another {name}: {made:?}");
    }
    assert_eq!(store.unfinished().await.unwrap().len(), 4, "four were made");
    let ada = PrincipalName::new("ada").unwrap();
    let scope = with_key(1, 7).intent.key_scope();
    let found = store
        .find_by_key(&ada, &scope, &idempotency("k/1", 8))
        .await;
    let found = found.unwrap().map(|operation| operation.seq);
    assert_eq!(found, Some(seq(1)), "by key");
    // A record that has expired gives its key free.
    let end = succeeded(with_key(1, 7), Some(NOW));
    store.update(end).await.unwrap();
    assert_eq!(store.remove_expired(NOW, 9).await, Ok(1), "expired");
    let again = store.create(Arc::new(with_key(8, 9))).await;
    assert!(matches!(again, Ok(Created::New)), "free again: {again:?}");
    store.close().await;
}

pub(super) async fn many_writers_are_all_answered_and_one_of_each_key_wins(bed: &Bed) {
    let store = bed.open().await;
    // Three requests with each key, and as many without.
    let requests = (1..=300_u64).map(|number| {
        let mut request = operation(number, &format!("vm{}", number % 7), "b");
        if number % 2 == 0 {
            let key = (number / 6).to_string();
            request.intent.target = target("vm", "b");
            request.idempotency = Some(idempotency(&key, 1));
        }
        Arc::new(request)
    });
    let requests: Vec<_> = requests.collect();
    let keys: BTreeSet<_> = requests
        .iter()
        .filter_map(|request| Some(request.idempotency.as_ref()?.key.as_str().to_owned()))
        .collect();
    let made = join_all(
        requests
            .iter()
            .map(|request| store.create(Arc::clone(request))),
    )
    .await;
    let mut new = 0;
    for (request, created) in requests.iter().zip(made) {
        match created {
            Ok(Created::New) => new += 1,
            Ok(Created::Replayed(found)) => {
                assert_eq!(found.idempotency, request.idempotency, "the same key");
            }
            Err(error) => panic!("{}: {error}", request.seq),
        }
    }
    assert_eq!(new, 150 + keys.len(), "one of each key, and those without");
    let stored = store.unfinished().await.unwrap();
    assert_eq!(stored.len(), new, "what was answered is there, and no more");
    store.close().await;
}

pub(super) async fn of_updates_from_one_revision_one_is_applied(bed: &Bed) {
    let store = bed.open().await;
    let first = operation(1, "vm", "b");
    store.create(Arc::new(first.clone())).await.unwrap();
    let updates = (0..20).map(|number| {
        let mut next = first.clone();
        next.revision = next.revision.next();
        next.calls = number;
        store.update(Arc::new(next))
    });
    let results = join_all(updates).await;
    let applied = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(applied, 1, "one: {results:?}");
    let refused = results
        .iter()
        .filter(|result| **result == Err(StoreError::Conflict));
    assert_eq!(refused.count(), 19, "the others are refused: {results:?}");
    store.close().await;
}

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
    let row = |change: &DurableChange| (change.operation.seq.number(), change.number);
    page.changes.iter().map(row).collect()
}

async fn create(store: &dyn Store, number: u64) -> Arc<Operation> {
    let made = Arc::new(operation(number, "vm", "b"));
    store.create(Arc::clone(&made)).await.unwrap();
    made
}

async fn finish(store: &dyn Store, operation: &Operation, expires: u64) {
    let end = succeeded(operation.clone(), Some(Timestamp::from_millis(expires)));
    store.update(end).await.unwrap();
}

pub(super) async fn writes_are_numbered_in_order_and_found_by_their_numbers(bed: &Bed) {
    let store = bed.open().await;
    let mut made = Vec::new();
    for number in 1..=5 {
        made.push(create(&*store, number).await);
    }
    finish(&*store, &made[3], 10).await;
    finish(&*store, &made[0], 10).await;
    finish(&*store, &made[2], 10).await;
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
    let mut narrowed = query(ChangePart::Finished, None, 99);
    narrowed.principal = Some(made[0].principal.clone());
    let found = store.changes(&narrowed).await.unwrap();
    assert_eq!(found.changes.len(), 2, "of their principal");
    narrowed.vm = Some(VmId::new("other").unwrap());
    let found = store.changes(&narrowed).await.unwrap();
    assert_eq!(found.changes.len(), 0, "of another VM");
    let handed_in = store.change_feed().unwrap().take_handed_in().await;
    let numbers: Vec<_> = handed_in.iter().map(|change| change.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8], "each once, in order");
    store.close().await;
}

pub(super) async fn numbers_go_on_after_a_restart_and_after_their_records_expired(bed: &Bed) {
    let store = bed.open().await;
    let one = create(&*store, 1).await;
    let feed = store.change_feed().unwrap();
    feed.publish(feed.take_handed_in().await);
    let begin = feed.position(feed.latest());
    assert_eq!(feed.resume(begin), Some(1), "good");
    store.close().await;
    let store = bed.open().await;
    let feed = store.change_feed().unwrap();
    assert_eq!(feed.latest(), 1, "where it was");
    assert_eq!(feed.resume(begin), Some(1), "good over a restart");
    finish(&*store, &one, 10).await;
    feed.publish(feed.take_handed_in().await);
    let end = feed.position(feed.latest());
    assert_eq!(end.number, 2, "goes on");
    assert_ne!(end.mark, begin.mark, "another run");
    let now = Timestamp::from_millis(11);
    assert_eq!(store.remove_expired(now, 9).await, Ok(1), "expired");
    assert_eq!(feed.resume(begin), None, "the end of 1 is lost");
    assert_eq!(feed.resume(end), Some(2), "who saw it loses nothing");
    store.close().await;
    let store = bed.open().await;
    let feed = store.change_feed().unwrap();
    assert_eq!(feed.resume(begin), None, "still lost");
    assert_eq!(feed.resume(end), Some(2), "still good");
    let stranger = ChangePosition { mark: 5, ..end };
    assert_eq!(feed.resume(stranger), None, "of another store");
    create(&*store, 2).await;
    feed.publish(feed.take_handed_in().await);
    assert_eq!(feed.latest(), 3, "no number is used twice");
    store.close().await;
}

pub(super) async fn only_expired_records_are_removed_and_the_highest_number_is_kept(bed: &Bed) {
    let store = bed.open().await;
    let later = NOW.plus(Duration::from_secs(1));
    for (number, expires) in [(1, Some(NOW)), (2, Some(later)), (3, None), (4, Some(NOW))] {
        let operation = operation(number, "vm", "b");
        store.create(Arc::new(operation.clone())).await.unwrap();
        store.update(succeeded(operation, expires)).await.unwrap();
    }
    assert_eq!(store.remove_expired(NOW, 1).await, Ok(1), "bounded");
    assert_eq!(store.remove_expired(NOW, 9).await, Ok(1), "the other one");
    assert_eq!(store.remove_expired(NOW, 9).await, Ok(0), "no more");
    assert_eq!(store.highest_seq().await.unwrap(), Some(seq(4)), "kept");
    assert_eq!(store.read(seq(4)).await.unwrap(), None, "removed");
    assert!(store.read(seq(3)).await.unwrap().is_some(), "never expires");
    let listed = store
        .list(&ListQuery {
            limit: 9,
            count: true,
            ..ListQuery::default()
        })
        .await;
    let left: Vec<_> = listed
        .unwrap()
        .operations
        .iter()
        .map(|found| found.seq)
        .collect();
    assert_eq!(left, [seq(3), seq(2)], "lists have no trace of them");
    store.close().await;
}

pub(super) async fn unknown_outcomes_are_counted_until_they_are_acknowledged(bed: &Bed) {
    let store = bed.open().await;
    let mut unknown = operation(1, "vm", "b");
    store.create(Arc::new(unknown.clone())).await.unwrap();
    let counts = |unknown| Counts {
        unknown,
        set_aside: 0,
    };
    assert_eq!(store.counts().await.unwrap(), counts(0), "unfinished");
    unknown.revision = unknown.revision.next();
    unknown.phase = Phase::Unknown;
    store.update(Arc::new(unknown.clone())).await.unwrap();
    assert_eq!(store.counts().await.unwrap(), counts(1), "unknown");
    assert_eq!(store.remove_expired(NOW, 9).await, Ok(0), "kept");
    unknown.revision = unknown.revision.next();
    unknown.acknowledged = Some(NOW);
    unknown.expires = Some(NOW);
    store.update(Arc::new(unknown)).await.unwrap();
    assert_eq!(store.counts().await.unwrap(), counts(0), "acknowledged");
    assert_eq!(store.remove_expired(NOW, 9).await, Ok(1), "expired");
    store.close().await;
}

pub(super) async fn records_of_newer_formats_are_set_aside(bed: &Bed) {
    let store = bed.open().await;
    for number in 1..=3 {
        create(&*store, number).await;
    }
    store.close().await;
    bed.make_newer(2).await;
    let store = bed.open().await;
    let read = store.read(seq(2)).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let unfinished = store.unfinished().await.unwrap();
    let numbers: Vec<_> = unfinished.iter().map(|found| found.seq).collect();
    assert_eq!(numbers, [seq(1), seq(3)], "the others are resumed");
    let page = store
        .list(&ListQuery {
            limit: 9,
            ..ListQuery::default()
        })
        .await
        .unwrap();
    assert_eq!(page.operations.len(), 2, "the others are listed");
    assert_eq!(store.counts().await.unwrap().set_aside, 1, "alarmed once");
    let highest = store.highest_seq().await.unwrap();
    assert_eq!(highest, Some(seq(3)), "no number is given again");
    let again = store.create(Arc::new(operation(2, "other", "b"))).await;
    assert_eq!(
        again.unwrap_err(),
        StoreError::Conflict,
        "it is there still"
    );
    store.close().await;
}

fn annotated(backup: &str, identity: Option<&str>, name: &str) -> AnnotationRecord {
    AnnotationRecord {
        target: target("vm", backup),
        identity: identity.map(|identity| Identity::new(identity.to_owned())),
        annotation: Annotation {
            name: Some(BackupName::new(name).unwrap()),
            tags: vec![Tag::new("t").unwrap()],
            protected: true,
            ..Annotation::default()
        },
        written: NOW,
    }
}

pub(super) async fn annotations_are_replaced_removed_and_there_after_reopening(bed: &Bed) {
    let (store, kept) = bed.open_both().await;
    let (one, two) = (backend("one"), backend("two"));
    let vm = VmId::new("vm").unwrap();
    let (b, c) = (
        annotated("b/1", None, "first"),
        annotated("c", Some("7"), "c"),
    );
    for (backend, annotation) in [(&one, &b), (&one, &c), (&two, &b)] {
        kept.put(backend, annotation).await.unwrap();
    }
    let again = annotated("b/1", Some("3"), "second");
    kept.put(&one, &again).await.unwrap();
    store.close().await;
    let closed = kept.put(&one, &b).await;
    assert!(closed.is_err(), "closed: {closed:?}");
    let (store, kept) = bed.open_both().await;
    let all = kept.list(&one, &vm).await.unwrap();
    assert_eq!(all, [again.clone(), c.clone()], "in order, replaced");
    let other = kept.get(&two, &b.target).await.unwrap();
    assert_eq!(other, Some(b.clone()), "the other backend");
    kept.remove(&one, &again.target).await.unwrap();
    kept.remove(&one, &again.target).await.unwrap();
    let gone = kept.get(&one, &again.target).await.unwrap();
    assert_eq!(gone, None, "removed");
    assert_eq!(kept.list(&one, &vm).await.unwrap(), [c], "the rest");
    assert_eq!(kept.list(&two, &vm).await.unwrap(), [b], "not the other's");
    store.close().await;
}
