//! Stopping on request: in the queue, at work, too late, and across a restart.

use super::House;
use super::eventually;
use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Revision;
use crate::operations::CancelError;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::restore;

async fn refused(room: &Operations, seq: OperationSeq) -> &'static str {
    match room.cancel(seq, None).await {
        Ok(_) => "taken",
        Err(CancelError::NoSuchOperation) => "none",
        Err(CancelError::NotCancellable) => "too late",
        Err(CancelError::Changed) => "changed",
        Err(CancelError::Store(_)) => "store",
    }
}

#[tokio::test]
async fn a_wish_about_an_older_revision_stops_nothing() {
    let house = House::new().await;
    let seq = house.accept(restore("vm", "a")).await;
    let running = house.reaches(seq, Phase::Running).await;
    let stale = house.room.cancel(seq, Some(Revision::FIRST)).await;
    assert!(matches!(stale, Err(CancelError::Changed)), "{stale:?}");
    assert_eq!(house.operation(seq).await.cancel_asked, None, "not kept");
    let current = house.room.cancel(seq, Some(running.revision)).await;
    assert!(current.is_ok(), "{current:?}");
}

#[tokio::test]
async fn what_is_queued_ends_with_nothing_called_and_the_next_goes_on() {
    let house = House::new().await;
    let first = house.accept(restore("vm", "a")).await;
    let queued = house.accept(restore("vm", "b")).await;
    let last = house.accept(restore("vm", "c")).await;
    house.reaches(first, Phase::Running).await;
    let ended = house.room.cancel(queued, None).await.expect("taken");
    assert_eq!(ended.phase, Phase::Cancelled, "at once");
    assert_eq!(ended.started, None, "never begun");
    let kind = ended.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::Cancelled), "and says so");
    assert_eq!(refused(&house.room, queued).await, "too late", "it is over");
    house.adapter.say("vm", Say::Done);
    assert_eq!(house.end(last).await.phase, Phase::Succeeded, "the next");
    assert_eq!(house.adapter.begun(), [first, last], "never called");
    let stored = house.operation(queued).await;
    assert_eq!(stored, ended, "as it was answered");
}

#[tokio::test]
async fn what_runs_is_stopped_by_its_vm_manager() {
    let house = House::new().await;
    let seq = house.accept(restore("vm", "a")).await;
    house.reaches(seq, Phase::Running).await;
    let asked = house.room.cancel(seq, None).await.expect("taken");
    assert!(asked.cancel_asked.is_some(), "the wish is kept");
    assert_eq!(asked.phase, Phase::Running, "nothing is claimed yet");
    assert_eq!(house.end(seq).await.phase, Phase::Cancelled, "stopped");
    assert_eq!(house.adapter.cancelled(), ["vm"], "asked once");
}

#[tokio::test]
async fn a_vm_manager_that_goes_on_is_believed() {
    let house = House::new().await;
    house.adapter.is_deaf(true);
    let seq = house.accept(restore("vm", "a")).await;
    house.reaches(seq, Phase::Running).await;
    let one = house.room.cancel(seq, None).await.expect("taken");
    eventually("asked", || async { !house.adapter.cancelled().is_empty() }).await;
    let two = house.room.cancel(seq, None).await.expect("taken again");
    assert_eq!(one.revision, two.revision, "one wish, however often");
    house.adapter.say("vm", Say::Done);
    assert_eq!(house.end(seq).await.phase, Phase::Succeeded, "the truth");
}

#[tokio::test]
async fn c9_the_wish_survives_a_restart() {
    let mut house = House::new().await;
    house.adapter.is_deaf(true);
    let seq = house.accept(restore("vm", "a")).await;
    house.reaches(seq, Phase::Running).await;
    house.room.cancel(seq, None).await.expect("taken");
    eventually("asked", || async { !house.adapter.cancelled().is_empty() }).await;
    house.adapter.is_deaf(false);
    house.restart().await;
    assert_eq!(house.end(seq).await.phase, Phase::Cancelled, "asked again");
    assert!(house.adapter.cancelled().len() >= 2, "by the new life");
}

#[tokio::test]
async fn what_was_never_begun_is_not_begun_again() {
    let house = House::with(Recovery::ReplaySafe, |_| {}).await;
    house.adapter.begin_with("vm", Begin::Lose);
    let seq = house.accept(restore("vm", "a")).await;
    house.reaches(seq, Phase::Uncertain).await;
    house.room.cancel(seq, None).await.expect("taken");
    house.adapter.find_says(&[Say::NotBegun]);
    assert_eq!(house.end(seq).await.phase, Phase::Cancelled, "given up");
    assert_eq!(house.adapter.begun(), [seq], "called once");
}

#[tokio::test]
async fn what_is_over_or_unknown_cannot_be_stopped() {
    let house = House::new().await;
    house.adapter.begin_with("vm", Begin::Done);
    let done = house.accept(restore("vm", "a")).await;
    house.end(done).await;
    assert_eq!(refused(&house.room, done).await, "too late", "done");
    let none = house.room.reserve();
    assert_eq!(refused(&house.room, none).await, "none", "never was");
}
