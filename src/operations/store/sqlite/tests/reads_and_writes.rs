//! What is written is read back: revisions, idempotency keys, groups of writes, lists, expiry.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::model::BackupId;
use crate::model::PrincipalName;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::operations::Selector;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::testing::NOW;
use crate::operations::testing::delete;
use crate::operations::testing::idempotency;
use crate::operations::testing::operation;

#[tokio::test]
async fn written_records_are_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
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
    let refused = store.read(seq(1)).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "closed: {refused:?}"
    );
    let store = open(folder.path());
    assert_eq!(store.read(seq(1)).await.unwrap(), Some(done), "updated");
    assert_eq!(
        store.unfinished().await.unwrap(),
        [second],
        "the unfinished one"
    );
    assert_eq!(store.highest_seq().await.unwrap(), Some(seq(2)), "highest");
    let heartbeat = store.last_heartbeat().await.unwrap();
    assert_eq!(heartbeat, Some(NOW), "the heartbeat does not go back");
    assert_eq!(store.read(seq(3)).await.unwrap(), None, "never made");
    let again = store.create(Arc::new(first.clone())).await;
    assert_eq!(again.unwrap_err(), StoreError::Conflict, "number in use");
    let stale = store.update(Arc::new(first)).await;
    assert_eq!(stale, Err(StoreError::Conflict), "wrong revision");
}

#[tokio::test]
async fn a_key_is_used_once_per_principal_method_and_target() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let with_key = |number, fingerprint| {
        let mut operation = operation(number, "vm", "b");
        operation.idempotency = Some(idempotency("k", fingerprint));
        Arc::new(operation)
    };
    store.create(with_key(1, 7)).await.unwrap();
    match store.create(with_key(2, 7)).await {
        Ok(Created::Replayed(found)) => assert_eq!(found.seq, seq(1), "the first one"),
        other => panic!("replayed, not {other:?}"),
    }
    let other = store.create(with_key(3, 8)).await;
    assert_eq!(other.unwrap_err(), StoreError::KeyReused(seq(1)), "reused");
    let mut other_principal = (*with_key(4, 8)).clone();
    other_principal.principal = PrincipalName::new("bob").unwrap();
    let made = store.create(Arc::new(other_principal)).await;
    assert!(matches!(made, Ok(Created::New)), "another principal");
    let mut other_vm = (*with_key(5, 8)).clone();
    other_vm.intent.target = crate::operations::testing::target("wm", "b");
    let made = store.create(Arc::new(other_vm)).await;
    assert!(matches!(made, Ok(Created::New)), "another VM: {made:?}");
    let mut other_method = (*with_key(6, 8)).clone();
    other_method.intent.change = crate::model::Change::Delete;
    let made = store.create(Arc::new(other_method)).await;
    assert!(matches!(made, Ok(Created::New)), "another method: {made:?}");
    assert_eq!(store.unfinished().await.unwrap().len(), 4, "four were made");
    let ada = PrincipalName::new("ada").unwrap();
    let found = store
        .find_by_key(
            &ada,
            &with_key(1, 7).intent.key_scope(),
            &idempotency("k", 8),
        )
        .await
        .unwrap();
    assert_eq!(found.map(|operation| operation.seq), Some(seq(1)), "by key");
}

#[tokio::test]
async fn many_writers_are_committed_together_and_all_answered() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("s.db");
    let store = SqliteStore::open(file, SystemClock::shared(), metrics.clone());
    let store = Arc::new(store.unwrap());
    let made = futures_util::future::join_all((1..=300).map(|number| {
        let store = Arc::clone(&store);
        async move { store.create(Arc::new(operation(number, "vm", "b"))).await }
    }))
    .await;
    let new = made
        .iter()
        .filter(|created| matches!(created, Ok(Created::New)));
    assert_eq!(new.count(), 300, "all are new");
    assert_eq!(
        store.unfinished().await.unwrap().len(),
        300,
        "all are there"
    );
    let text = String::from_utf8(metrics.encode_text()).unwrap();
    let count = "snapgate_store_commit_duration_seconds_count{store=\"sqlite\"} ";
    let commits = text
        .lines()
        .find_map(|line| line.strip_prefix(count))
        .unwrap();
    let commits: usize = commits.parse().unwrap();
    assert!((1..300).contains(&commits), "commits are shared: {commits}");
}

/// The numbers of what is stored in these files, each with its revision.
async fn stored(database: &[u8], log: &[u8]) -> Vec<(u64, u64)> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("s.db"), database).unwrap();
    fs::write(folder.path().join("s.db-wal"), log).unwrap();
    let store = open(folder.path());
    let found = store.unfinished().await.unwrap();
    store.close().await;
    let both = found
        .iter()
        .map(|operation| (operation.seq.number(), operation.revision.0));
    both.collect()
}

#[tokio::test]
async fn a_group_of_writes_is_there_as_a_whole_or_not_at_all() {
    const WRITES: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("s.db");
    let store = SqliteStore::open(file.clone(), SystemClock::shared(), metrics.clone()).unwrap();
    let mut first = operation(1, "vm", "b");
    store.create(Arc::new(first.clone())).await.unwrap();
    let commits = || {
        let text = String::from_utf8(metrics.encode_text()).unwrap();
        let name = "snapgate_store_commit_duration_seconds_count{";
        let line = text.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.rsplit(' ').next());
        number
            .and_then(|number| number.parse::<usize>().ok())
            .unwrap()
    };
    let before = commits();
    // Nothing can be committed until all have been handed to the writer.
    let blocker = rusqlite::Connection::open(&file).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    first.revision = first.revision.next();
    let update = store.update(Arc::new(first));
    let creates = (2..=WRITES).map(|number| store.create(Arc::new(operation(number, "vm", "b"))));
    let (updated, created, ()) =
        futures_util::future::join3(update, futures_util::future::join_all(creates), async {
            blocker.execute_batch("ROLLBACK").unwrap();
        })
        .await;
    assert_eq!(updated, Ok(()), "updated");
    assert!(created.iter().all(Result::is_ok), "created: {created:?}");
    let groups = commits() - before;
    assert!(groups < 20, "forty writes in {groups} commits");

    let (database, log) = (
        fs::read(&file).unwrap(),
        fs::read(folder.path().join("s.db-wal")).unwrap(),
    );
    // A process or a machine that dies within a commit leaves some of its pages: a head of 32 bytes, frames of 24 + 4096.
    let mut seen = std::collections::BTreeSet::new();
    for frames in 0..=log.len() / 4120 {
        for more in [0, 2000] {
            let length = log.len().min(32 + frames * 4120 + more);
            seen.insert(stored(&database, &log[..length]).await);
        }
    }
    let states: Vec<usize> = seen.iter().map(Vec::len).collect();
    let whole = usize::try_from(WRITES).unwrap();
    assert_eq!(
        states.iter().max(),
        Some(&whole),
        "the whole log: {states:?}"
    );
    let grown = seen.iter().filter(|state| state.len() > 1).count();
    assert!(
        grown <= groups,
        "more states than commits, so a group was applied in part: {states:?} of {groups} commits"
    );
    let without_update =
        |state: &Vec<(u64, u64)>| state.first() == Some(&(1, 1)) && state.len() == whole;
    assert!(
        !seen.iter().any(without_update),
        "the update came with its group"
    );
}

fn queries() -> Vec<(&'static str, ListQuery, Vec<u64>)> {
    let query = || ListQuery {
        limit: 10,
        ..ListQuery::default()
    };
    let select = |verb, vm: Option<&str>, backup: Option<&str>| ListQuery {
        selector: Selector {
            verb,
            vm: vm.map(|vm| VmId::new(vm).unwrap()),
            backup: backup.map(|backup| BackupId::new(backup).unwrap()),
        },
        ..query()
    };
    vec![
        ("all", query(), vec![5, 4, 3, 2, 1]),
        (
            "limit",
            ListQuery {
                limit: 2,
                ..query()
            },
            vec![5, 4],
        ),
        (
            "before",
            ListQuery {
                start: Some(ListStart::AfterOperation(seq(3))),
                ..query()
            },
            vec![2, 1],
        ),
        (
            "finished",
            ListQuery {
                unfinished: Some(false),
                ..query()
            },
            vec![3],
        ),
        (
            "unfinished",
            ListQuery {
                unfinished: Some(true),
                ..query()
            },
            vec![5, 4, 2, 1],
        ),
        (
            "principal",
            ListQuery {
                principal: PrincipalName::new("bob").ok(),
                ..query()
            },
            vec![5],
        ),
        ("verb", select(Some(Verb::Delete), None, None), vec![4, 2]),
        ("vm", select(None, Some("wm"), None), vec![5, 4]),
        (
            "backup and vm",
            select(None, Some("vm"), Some("c")),
            vec![2],
        ),
    ]
}

#[tokio::test]
async fn lists_are_newest_first_and_filtered() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 1..=5 {
        let vm = if number < 4 { "vm" } else { "wm" };
        let mut operation = operation(number, vm, "b");
        if number % 2 == 0 {
            operation.intent = delete(vm, "c");
        }
        if number == 5 {
            operation.principal = PrincipalName::new("bob").unwrap();
        }
        store.create(Arc::new(operation)).await.unwrap();
    }
    let done = succeeded(operation(3, "vm", "b"), None);
    store.update(done).await.unwrap();
    for (name, query, expected) in queries() {
        let found = store.list(&query).await.unwrap();
        let numbers: Vec<_> = found
            .operations
            .iter()
            .map(|operation| operation.seq.number())
            .collect();
        assert_eq!(numbers, expected, "{name}");
    }
}

#[tokio::test]
async fn only_expired_records_are_removed_and_the_highest_number_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let later = NOW.plus(std::time::Duration::from_secs(1));
    for (number, expires) in [(1, Some(NOW)), (2, Some(later)), (3, None), (4, Some(NOW))] {
        let operation = operation(number, "vm", "b");
        store.create(Arc::new(operation.clone())).await.unwrap();
        store.update(succeeded(operation, expires)).await.unwrap();
    }
    assert_eq!(store.remove_expired(NOW, 1).await.unwrap(), 1, "bounded");
    assert_eq!(
        store.remove_expired(NOW, 9).await.unwrap(),
        1,
        "the other one"
    );
    assert_eq!(store.remove_expired(NOW, 9).await.unwrap(), 0, "no more");
    assert_eq!(store.highest_seq().await.unwrap(), Some(seq(4)), "kept");
    assert_eq!(store.read(seq(4)).await.unwrap(), None, "removed");
    assert!(store.read(seq(3)).await.unwrap().is_some(), "never expires");
}
