//! A store written by the version before is opened, read and continued.

use std::fs;

use super::Fixture;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::testing::Reply;
use crate::operations::testing::restore;

/// What the file of the older version holds, by number: the phase in it, and the phase it ends in.
const ROWS: [(u64, Phase, Phase); 7] = [
    (1, Phase::Accepted, Phase::Succeeded),
    (2, Phase::Submitting, Phase::NotExecuted),
    (3, Phase::Running, Phase::Succeeded),
    (4, Phase::Uncertain, Phase::NotExecuted),
    (5, Phase::Succeeded, Phase::Succeeded),
    (6, Phase::Unknown, Phase::Unknown),
    (7, Phase::NotExecuted, Phase::NotExecuted),
];

#[tokio::test]
async fn a_store_of_format_1_is_read_and_continued() {
    read_and_continue("tests/golden/store-1.sql").await;
}

#[tokio::test]
async fn a_store_of_format_2_is_read_and_continued() {
    read_and_continue("tests/golden/store-2.sql").await;
}

async fn read_and_continue(golden: &str) {
    let mut fixture = Fixture::new().await;
    fixture.operations.stop().await;
    fs::remove_file(fixture.setup.config.store.file().unwrap()).unwrap();
    let text = fs::read_to_string(golden).unwrap();
    let db = rusqlite::Connection::open(fixture.setup.config.store.file().unwrap()).unwrap();
    db.execute_batch(&text).expect("the golden file is SQL");
    db.close().unwrap();
    for vm in ["vm-1", "vm-3", "vm-5"] {
        fixture.adapter.set_task_reply(vm, Reply::Done);
    }
    fixture.adapter.set_find_replies(&[Reply::NotBegun]);
    fixture.operations = fixture.setup.open().await;
    let query = ListQuery {
        limit: 100,
        ..ListQuery::default()
    };
    let found = fixture.operations.list(&query).await.expect("readable");
    assert_eq!(found.operations.len(), ROWS.len(), "every record is there");
    for (number, left, expected) in ROWS {
        let seq = OperationSeq::new(number).unwrap();
        let end = fixture.wait_for_end(seq).await;
        assert_eq!(end.phase, expected, "number {number}, left in {left:?}");
    }
    let calls: Vec<_> = fixture
        .adapter
        .begun_operations()
        .iter()
        .map(|seq| seq.number())
        .collect();
    assert_eq!(calls, [1], "only what was never begun is begun");
    fixture.adapter.set_task_reply("vm-9", Reply::Done);
    let new = fixture.accept(restore("vm-9", "b")).await;
    assert_eq!(
        fixture.wait_for_end(new).await.phase,
        Phase::Succeeded,
        "goes on"
    );
    fixture.restart().await;
    for (number, ..) in ROWS {
        let seq = OperationSeq::new(number).unwrap();
        assert_eq!(fixture.read(seq).await.seq, seq, "mixed formats: {number}");
    }
}
