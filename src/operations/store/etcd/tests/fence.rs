//! One gateway at a time may write; the lock alone does not keep the other out, the fence does.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::etcd::LeaderLock;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::conformance::seq;
use crate::operations::store::conformance::succeeded;
use crate::operations::testing::operation;

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_second_gateway_is_refused_while_the_first_one_runs() {
    let server = EtcdServer::start(&[]);
    let first = open(&server, "gateway-1").await;
    let refused = try_open(&server, "gateway-2").await;
    let error = refused.expect_err("the first one has the lock");
    assert!(matches!(error, OpenError::InUse(_)), "in use: {error:?}");
    let text = error.to_string();
    assert!(text.contains("gateway-1"), "says by which: {text}");
    first
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    first.close().await;
    let second = open(&server, "gateway-2").await;
    assert!(
        second.read(seq(1)).await.unwrap().is_some(),
        "the same store"
    );
    second.close().await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn a_gateway_whose_lock_is_gone_writes_nothing_more() {
    let server = EtcdServer::start(&[]);
    let old = open(&server, "gateway-1").await;
    let made = operation(1, "vm", "b");
    old.create(Arc::new(made.clone())).await.unwrap();
    // As if its lease had expired while it slept.
    let connection = server.ready().await;
    let gone = TxnOp::delete("/snapgate/leader", None);
    connection.write(Txn::new().and_then([gone])).await.unwrap();
    let new = open(&server, "gateway-2").await;
    let end = succeeded(made.clone(), None);
    for (name, refused) in [
        ("update", old.update(Arc::clone(&end)).await),
        ("heartbeat", old.record_heartbeat(end.created).await),
        (
            "create",
            old.create(Arc::new(operation(2, "vm", "b")))
                .await
                .map(|_| ()),
        ),
    ] {
        assert!(
            matches!(refused, Err(StoreError::Fenced(_))),
            "{name}: {refused:?}"
        );
    }
    assert!(
        old.lost().unwrap().is_given(),
        "and everything learns of it"
    );
    let found = new.read(seq(1)).await.unwrap();
    assert_eq!(found.as_deref(), Some(&made), "nothing was written");
    assert_eq!(new.read(seq(2)).await.unwrap(), None, "nothing was made");
    new.update(end).await.unwrap();
    new.close().await;
    old.close().await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn the_lock_of_a_gateway_that_died_is_free_after_its_lease() {
    let server = EtcdServer::start(&[]);
    let connection = server.ready().await;
    let lifetime = Duration::from_secs(2);
    let dead = LeaderLock::attempt(&connection, "/snapgate/leader", "dead 1", lifetime).await;
    drop(dead.unwrap());
    let store = open(&server, "gateway-2").await;
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.close().await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn an_idle_gateway_keeps_its_lock() {
    let server = EtcdServer::start(&[]);
    let store = open(&server, "gateway-1").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!store.lost().unwrap().is_given(), "renewed");
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.close().await;
}
