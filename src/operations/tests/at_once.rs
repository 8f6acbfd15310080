//! Updates that are accepted and submitted in one durable write, and those that are not.

use super::Fixture;
use crate::adapters::adapter::Recovery;
use crate::model::Intent;
use crate::model::Phase;
use crate::operations::testing::BeginReply;
use crate::operations::testing::restore;
use crate::operations::testing::update;

/// The phase in which it was first durable.
async fn first_phase(fixture: &Fixture, intent: Intent) -> Phase {
    let accepted = fixture.accept_on("one", intent).await.expect("accepted");
    accepted.operation().phase
}

#[tokio::test]
async fn an_update_that_may_be_called_twice_is_accepted_and_submitted_in_one_write() {
    let fixture = Fixture::with_updates(Recovery::ReplaySafe, 1).await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    let accepted = fixture.accept_on("one", update("vm", "b")).await.unwrap();
    let first = accepted.operation();
    assert_eq!(
        first.phase,
        Phase::Submitting,
        "the first thing on the disk"
    );
    assert_eq!(first.calls, 1, "the call is counted before it is made");
    assert!(first.started.is_some(), "it has started");
    let end = fixture.wait_for_end(first.seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
    assert_eq!(end.revision, first.revision.next(), "one more write");
    assert_eq!(
        fixture.adapter.begun_operations(),
        [first.seq],
        "called once"
    );
    let depth = r#"snapgate_queue_depth{backend="one",state="running"} 0"#;
    assert!(
        fixture.metrics_text().contains(depth),
        "{}",
        fixture.metrics_text()
    );
}

#[tokio::test]
async fn everything_else_is_accepted_before_it_is_submitted() {
    let listable = Fixture::with_updates(Recovery::Listable, 1).await;
    let phase = first_phase(&listable, update("vm", "b")).await;
    assert_eq!(
        phase,
        Phase::Accepted,
        "a verb that may not be called twice"
    );

    let fixture = Fixture::with_updates(Recovery::ReplaySafe, 1).await;
    fixture.adapter.set_begin_reply("wm", BeginReply::Hang);
    let phase = first_phase(&fixture, restore("vm", "b")).await;
    assert_eq!(phase, Phase::Accepted, "a restore");
    let phase = first_phase(&fixture, update("vm", "b")).await;
    assert_eq!(phase, Phase::Accepted, "one behind another of its VM");
    let phase = first_phase(&fixture, update("wm", "b")).await;
    assert_eq!(
        phase,
        Phase::Accepted,
        "one for which the backend has no slot"
    );
}

#[tokio::test]
async fn a_submitted_update_that_was_not_called_is_called_after_the_restart() {
    let mut fixture = Fixture::with_updates(Recovery::ReplaySafe, 1).await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Hang);
    let seq = fixture.accept(update("vm", "b")).await;
    assert_eq!(fixture.read(seq).await.phase, Phase::Submitting, "hangs");
    fixture.restart().await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    fixture.restart().await;
    let end = fixture.wait_for_end(seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
}
