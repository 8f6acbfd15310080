//! Copies from a file to etcd and back: complete, resumed, not opened before they are complete, and never over something else.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::model::Identity;
use crate::model::Phase;
use crate::operations::StoreCopyError;
use crate::operations::StoreLocation;
use crate::operations::StoreOpener;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::conformance::seq;
use crate::operations::store::conformance::succeeded;
use crate::operations::testing::NOW;
use crate::operations::testing::backend;
use crate::operations::testing::idempotency;
use crate::operations::testing::operation;
use crate::operations::testing::target;

fn opener() -> StoreOpener {
    StoreOpener {
        clock: SystemClock::shared(),
        metrics: Metrics::new().unwrap(),
    }
}

fn located(server: &EtcdServer) -> StoreLocation {
    StoreLocation::Etcd(Arc::new(server.config()))
}

/// A file with records in every state, two with keys, one of a newer format, and an annotation.
async fn fill(file: &Path) {
    let metrics = Metrics::new().unwrap();
    let store = SqliteStore::open(file.to_owned(), SystemClock::shared(), metrics).unwrap();
    for (number, phase) in (1..).zip(Phase::ALL.into_iter().cycle().take(40)) {
        let mut made = operation(number, &format!("vm/{}", number % 3), "b");
        if number % 4 == 0 {
            made.idempotency = Some(idempotency(&number.to_string(), 7));
        }
        store.create(Arc::new(made.clone())).await.unwrap();
        made.revision = made.revision.next();
        made.phase = phase;
        store.update(Arc::new(made)).await.unwrap();
    }
    let end = succeeded(operation(50, "vm", "b"), Some(NOW));
    store
        .create(Arc::new(operation(50, "vm", "b")))
        .await
        .unwrap();
    store.update(end).await.unwrap();
    store.remove_expired(NOW, 9).await.unwrap();
    store.record_heartbeat(NOW).await.unwrap();
    let annotated = AnnotationRecord {
        target: target("vm", "b/1"),
        identity: Some(Identity::new("7".to_owned())),
        annotation: Annotation::default(),
        written: NOW,
    };
    let annotations = store.annotations();
    annotations.put(&backend("one"), &annotated).await.unwrap();
    store.close().await;
    let db = rusqlite::Connection::open(file).unwrap();
    let newer = "UPDATE operations SET record = replace(record, '\"format\":2', '\"format\":99') WHERE seq = 3";
    assert_eq!(db.execute(newer, []), Ok(1), "one of a newer format");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_copy_and_its_copy_hold_the_same_and_the_source_is_kept() {
    let server = EtcdServer::start(&[]);
    server.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.db");
    fill(&source).await;
    let (opener, etcd) = (opener(), located(&server));
    let from = StoreLocation::File(source);
    let copied = opener.copy(&from, &etcd, &mut |_| ()).await.unwrap();
    assert_eq!((copied.records, copied.annotations), (40, 1), "all of it");
    let verdict = opener.verify(&etcd).await.unwrap();
    assert_eq!(
        verdict.findings,
        <[String; 0]>::default(),
        "every index fits"
    );
    assert_eq!(
        (verdict.unreadable, &verdict.summary),
        (1, &copied),
        "as copied"
    );
    let store = open(&server, "gateway-1").await;
    assert_eq!(
        store.highest_seq().await.unwrap(),
        Some(seq(50)),
        "no number twice"
    );
    let unfinished = store.unfinished().await.unwrap().len();
    store.close().await;
    let back = StoreLocation::File(folder.path().join("back.db"));
    let returned = opener.copy(&etcd, &back, &mut |_| ()).await.unwrap();
    assert_eq!(returned, copied, "the way back");
    let verdict = opener.verify(&back).await.unwrap();
    assert_eq!(
        verdict.findings,
        <[String; 0]>::default(),
        "the file is sound"
    );
    assert_eq!(opener.verify(&from).await.unwrap().summary, copied, "kept");
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("back.db");
    let store = SqliteStore::open(file, SystemClock::shared(), metrics).unwrap();
    assert_eq!(
        store.unfinished().await.unwrap().len(),
        unfinished,
        "resumed"
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn an_interrupted_copy_is_not_opened_and_goes_on() {
    let server = EtcdServer::start(&[]);
    let connection = server.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.db");
    fill(&source).await;
    let (opener, etcd) = (opener(), located(&server));
    let from = StoreLocation::File(source);
    let copied = opener.copy(&from, &etcd, &mut |_| ()).await.unwrap();
    // As after an interruption: a part is missing, and the mark is there.
    let missing = [
        TxnOp::delete("/snapgate/store/op/0000000000000007", None),
        TxnOp::put("/snapgate/store/copying", "", None),
    ];
    connection
        .write(Txn::new().and_then(missing))
        .await
        .unwrap();
    let refused = try_open(&server, "gateway-1").await;
    let error = refused.expect_err("it is not complete").to_string();
    assert!(error.contains("was not finished"), "says so: {error}");
    let again = opener.copy(&from, &etcd, &mut |_| ()).await.unwrap();
    assert_eq!(again, copied, "goes on");
    open(&server, "gateway-1").await.close().await;
    let over = opener.copy(&from, &etcd, &mut |_| ()).await;
    let refused = matches!(over, Err(StoreCopyError::NotEmpty(_)));
    assert!(refused, "never over a store that is complete: {over:?}");
    let absent = StoreLocation::File(folder.path().join("absent.db"));
    let over = opener.copy(&absent, &from, &mut |_| ()).await;
    let refused = matches!(over, Err(StoreCopyError::Absent(_)));
    assert!(refused, "nothing to copy: {over:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn a_damaged_store_is_found_out() {
    let server = EtcdServer::start(&[]);
    let store = open(&server, "gateway-1").await;
    for number in 1..=3 {
        store
            .create(Arc::new(operation(number, "vm", "b")))
            .await
            .unwrap();
    }
    store.close().await;
    let (opener, etcd) = (opener(), located(&server));
    assert_eq!(
        opener.verify(&etcd).await.unwrap().findings.len(),
        0,
        "sound"
    );
    let connection = server.ready().await;
    let lost = TxnOp::delete("/snapgate/store/unfinished/0000000000000002", None);
    let stray = TxnOp::put("/snapgate/store/unknown/0000000000000001", "", None);
    connection
        .write(Txn::new().and_then([lost, stray]))
        .await
        .unwrap();
    let verdict = opener.verify(&etcd).await.unwrap();
    let all = verdict.findings.join("\n");
    assert!(
        all.contains("unfinished/0000000000000002 is missing"),
        "{all}"
    );
    assert!(all.contains("1 keys unknown/"), "{all}");
}
