//! Updates that are accepted and begun in one durable write, and those that are not.

use std::sync::Arc;

use super::House;
use crate::adapters::adapter::Recovery;
use crate::model::Intent;
use crate::model::Phase;
use crate::operations::Operations;
use crate::operations::testing::Begin;
use crate::operations::testing::Scripted;
use crate::operations::testing::Setup;
use crate::operations::testing::restore;
use crate::operations::testing::update;
use crate::runtime::ManualClock;
use crate::runtime::Tasks;

/// A room over an adapter that updates, with room for one operation at once.
async fn house(recovery: Recovery) -> House {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Scripted::updating(recovery);
    let mut setup = Setup::new(folder.path(), &adapter);
    setup.backends[0].concurrency = 1;
    let room = Operations::open(
        setup.config.clone(),
        setup.backends.clone(),
        Arc::<ManualClock>::clone(&setup.clock),
        setup.metrics.clone(),
        Tasks::default(),
    );
    House {
        room: room.await.expect("opens"),
        folder,
        adapter,
        setup,
    }
}

/// The phase in which it was first durable.
async fn first_phase(house: &House, intent: Intent) -> Phase {
    let accepted = house.try_on("one", intent).await.expect("accepted");
    accepted.operation().phase
}

#[tokio::test]
async fn an_update_that_may_be_called_for_twice_is_accepted_and_begun_in_one_write() {
    let house = house(Recovery::ReplaySafe).await;
    house.adapter.begin_with("vm", Begin::Done);
    let accepted = house.try_on("one", update("vm", "b")).await.unwrap();
    let first = accepted.operation();
    assert_eq!(
        first.phase,
        Phase::Submitting,
        "the first thing on the disk"
    );
    assert_eq!(first.calls, 1, "the call is counted before it is made");
    assert!(first.started.is_some(), "it has started");
    let end = house.end(first.seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
    assert_eq!(end.revision, first.revision.next(), "one more write");
    assert_eq!(house.adapter.begun(), [first.seq], "called once");
    let depth = r#"snapgate_queue_depth{backend="one",state="running"} 0"#;
    assert!(house.metrics().contains(depth), "{}", house.metrics());
}

#[tokio::test]
async fn everything_else_is_accepted_before_it_is_begun() {
    let listable = house(Recovery::Listable).await;
    let phase = first_phase(&listable, update("vm", "b")).await;
    assert_eq!(phase, Phase::Accepted, "what may not be called for twice");

    let house = house(Recovery::ReplaySafe).await;
    house.adapter.begin_with("wm", Begin::Hang);
    let phase = first_phase(&house, restore("vm", "b")).await;
    assert_eq!(phase, Phase::Accepted, "a restore");
    let phase = first_phase(&house, update("vm", "b")).await;
    assert_eq!(phase, Phase::Accepted, "one behind another of its VM");
    let phase = first_phase(&house, update("wm", "b")).await;
    assert_eq!(
        phase,
        Phase::Accepted,
        "one for which the backend has no place"
    );
}

#[tokio::test]
async fn one_that_was_written_and_not_called_for_is_called_for_after_the_restart() {
    let mut house = house(Recovery::ReplaySafe).await;
    house.adapter.begin_with("vm", Begin::Hang);
    let seq = house.accept(update("vm", "b")).await;
    assert_eq!(house.operation(seq).await.phase, Phase::Submitting, "hangs");
    house.restart().await;
    house.adapter.begin_with("vm", Begin::Done);
    house.restart().await;
    let end = house.end(seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
}
