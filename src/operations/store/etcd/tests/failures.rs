//! An etcd that is suspended, killed or full: nothing is lost, nothing is there that was refused, and nothing is fatal.
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;
use tokio::time::timeout;

use super::*;
use crate::model::Operation;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::conformance::seq;
use crate::operations::store::conformance::succeeded;
use crate::operations::testing::operation;

/// How long a store may take until it works again.
const RECOVERY: Duration = Duration::from_secs(20);

/// A store whose lease is longer than etcd is suspended: the clock of etcd goes on meanwhile.
async fn open_for_long(server: &EtcdServer) -> Arc<EtcdStore> {
    let lease = Duration::from_secs(60);
    let opened = try_open_with(server, "gateway-1", lease).await;
    opened.expect("opens")
}

/// Tries until it is written.
async fn update_at_last(store: &EtcdStore, state: &Arc<Operation>) {
    let trying = async {
        while let Err(error) = store.update(Arc::clone(state)).await {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(RECOVERY, trying).await.expect("it works again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_write_whose_answer_is_late_is_answered_once_it_is_known() {
    let server = EtcdServer::start(&[]);
    let store = open_for_long(&server).await;
    let made = operation(1, "vm", "b");
    store.create(Arc::new(made.clone())).await.unwrap();
    for number in 2..=4 {
        server.signal(Signal::STOP);
        let writing = {
            let store = Arc::clone(&store);
            tokio::task::spawn_blocking(move || {
                let create = store.create(Arc::new(operation(number, "vm", "b")));
                tokio::runtime::Handle::current().block_on(create)
            })
        };
        // Longer than a request may take.
        sleep(Duration::from_millis(1500)).await;
        server.signal(Signal::CONT);
        let created = writing.await.unwrap();
        assert!(matches!(created, Ok(Created::New)), "{number}: {created:?}");
    }
    let stored = store.unfinished().await.unwrap();
    assert_eq!(stored.len(), 4, "each is there once");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn what_was_refused_because_its_outcome_was_unknown_is_not_there_later() {
    let server = EtcdServer::start(&[]);
    let store = open_for_long(&server).await;
    let made = operation(1, "vm", "b");
    store.create(Arc::new(made.clone())).await.unwrap();
    server.signal(Signal::STOP);
    let refused = store.create(Arc::new(operation(2, "vm", "b"))).await;
    let unavailable = matches!(refused, Err(StoreError::Unavailable(_)));
    assert!(unavailable, "it cannot be known in time: {refused:?}");
    let read = store.read(seq(1)).await;
    let unavailable = matches!(read, Err(StoreError::Unavailable(_)));
    assert!(unavailable, "nothing old is answered: {read:?}");
    server.signal(Signal::CONT);
    let end = succeeded(made, None);
    update_at_last(&store, &end).await;
    assert_eq!(store.read(seq(2)).await.unwrap(), None, "taken back");
    assert_eq!(store.unfinished().await.unwrap(), [], "and not run");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_killed_etcd_loses_nothing_that_was_answered() {
    let mut server = EtcdServer::start(&[]);
    let store = open_for_long(&server).await;
    let (mut answered, mut number) = (Vec::new(), 0);
    for round in 0..5_u32 {
        let writers = (0..8).map(|_| {
            number += 1;
            let (store, made) = (Arc::clone(&store), Arc::new(operation(number, "vm", "b")));
            async move { (made.seq, store.create(made).await) }
        });
        let writing = futures_util::future::join_all(writers.collect::<Vec<_>>());
        let killing = async {
            sleep(Duration::from_millis(u64::from(round))).await;
            server.kill();
            sleep(Duration::from_millis(200)).await;
            server.run();
        };
        let (results, ()) = futures_util::future::join(writing, killing).await;
        for (seq, result) in results {
            match result {
                Ok(Created::New) => answered.push(seq),
                Err(StoreError::Unavailable(_)) => {}
                other => panic!("{seq}: {other:?}"),
            }
        }
        server.ready().await;
    }
    let last = operation(1000, "vm", "b");
    let creating = async {
        while store.create(Arc::new(last.clone())).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(RECOVERY, creating).await.expect("it works again");
    answered.push(last.seq);
    let stored = store.unfinished().await.unwrap();
    let stored: Vec<_> = stored.iter().map(|found| found.seq).collect();
    assert_eq!(stored, answered, "what was answered, and nothing else");
    let feed = store.change_feed().unwrap().take_handed_in().await;
    let followed: Vec<_> = feed.iter().map(|change| change.operation.seq).collect();
    let mut sorted = followed.clone();
    sorted.sort();
    assert_eq!(sorted, answered, "followers see each of them once");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_full_etcd_refuses_writes_and_answers_reads() {
    // 16 MiB is the least that etcd can work with.
    let server = EtcdServer::start(&["--quota-backend-bytes", "16777216"]);
    let store = open_for_long(&server).await;
    let first = Arc::new(operation(1, "vm", "b"));
    store.create(Arc::clone(&first)).await.unwrap();
    let connection = server.ready().await;
    let filler = "x".repeat(1_000_000);
    for number in 0..40 {
        let put = crate::etcd::TxnOp::put(format!("/filler/{number}"), &*filler, None);
        let filled = connection
            .write(crate::etcd::Txn::new().and_then([put]))
            .await;
        if filled.is_err() {
            break;
        }
    }
    let refused = store.create(Arc::new(operation(2, "vm", "b"))).await;
    let Err(StoreError::Unavailable(why)) = refused else {
        panic!("refused, not {refused:?}");
    };
    assert!(why.contains("no space"), "says why: {why}");
    let found = store.read(seq(1)).await.unwrap();
    assert_eq!(found, Some(first), "reads go on");
    assert!(!store.lost().unwrap().is_given(), "it keeps the lock");
    store.close().await;
}
