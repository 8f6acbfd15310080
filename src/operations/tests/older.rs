//! A store written by the version before is opened, read and carried on.

use std::fs;

use super::House;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::testing::Say;
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
async fn a_store_of_the_version_before_is_read_and_carried_on() {
    let mut house = House::new().await;
    house.room.stop().await;
    fs::remove_file(&house.setup.config.store).unwrap();
    let text = fs::read_to_string("tests/golden/store-1.sql").unwrap();
    let db = rusqlite::Connection::open(&house.setup.config.store).unwrap();
    db.execute_batch(&text).expect("the golden file is SQL");
    db.close().unwrap();
    for vm in ["vm-1", "vm-3", "vm-5"] {
        house.adapter.say(vm, Say::Done);
    }
    house.adapter.find_says(&[Say::NotBegun]);
    house.room = house.setup.open().await;
    let query = ListQuery {
        limit: 100,
        ..ListQuery::default()
    };
    let found = house.room.list(&query).await.expect("readable");
    assert_eq!(found.len(), ROWS.len(), "every record is there");
    for (number, left, expected) in ROWS {
        let seq = OperationSeq::new(number).unwrap();
        let end = house.end(seq).await;
        assert_eq!(end.phase, expected, "number {number}, left in {left:?}");
    }
    let calls: Vec<_> = house.adapter.begun().iter().map(|it| it.number()).collect();
    assert_eq!(calls, [1], "only what was never begun is begun");
    house.adapter.say("vm-9", Say::Done);
    let new = house.accept(restore("vm-9", "b")).await;
    assert_eq!(house.end(new).await.phase, Phase::Succeeded, "goes on");
    house.restart().await;
    for (number, ..) in ROWS {
        let seq = OperationSeq::new(number).unwrap();
        assert_eq!(
            house.operation(seq).await.seq,
            seq,
            "mixed formats: {number}"
        );
    }
}
