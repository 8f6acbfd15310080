//! Cancellation: in the queue, while running, too late, and across a restart.

use super::Fixture;
use super::wait_until;
use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Revision;
use crate::operations::CancelError;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::restore;

async fn cancel_result(operations: &Operations, seq: OperationSeq) -> &'static str {
    match operations.cancel(seq, None).await {
        Ok(_) => "accepted",
        Err(CancelError::NoSuchOperation) => "none",
        Err(CancelError::NotCancellable) => "too late",
        Err(CancelError::Changed) => "changed",
        Err(CancelError::Store(_)) => "store",
    }
}

#[tokio::test]
async fn a_request_for_an_older_revision_cancels_nothing() {
    let fixture = Fixture::new().await;
    let seq = fixture.accept(restore("vm", "a")).await;
    let running = fixture.wait_for_phase(seq, Phase::Running).await;
    let stale = fixture.operations.cancel(seq, Some(Revision::FIRST)).await;
    assert!(matches!(stale, Err(CancelError::Changed)), "{stale:?}");
    assert_eq!(fixture.read(seq).await.cancel_asked, None, "not kept");
    let current = fixture.operations.cancel(seq, Some(running.revision)).await;
    assert!(current.is_ok(), "{current:?}");
}

#[tokio::test]
async fn a_queued_operation_ends_without_a_call_and_the_next_goes_on() {
    let fixture = Fixture::new().await;
    let first = fixture.accept(restore("vm", "a")).await;
    let queued = fixture.accept(restore("vm", "b")).await;
    let last = fixture.accept(restore("vm", "c")).await;
    fixture.wait_for_phase(first, Phase::Running).await;
    let ended = fixture
        .operations
        .cancel(queued, None)
        .await
        .expect("accepted");
    assert_eq!(ended.phase, Phase::Cancelled, "at once");
    assert_eq!(ended.started, None, "never begun");
    let kind = ended.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::Cancelled), "and says so");
    assert_eq!(
        cancel_result(&fixture.operations, queued).await,
        "too late",
        "it is final"
    );
    fixture.adapter.set_task_reply("vm", Reply::Done);
    assert_eq!(
        fixture.wait_for_end(last).await.phase,
        Phase::Succeeded,
        "the next"
    );
    assert_eq!(
        fixture.adapter.begun_operations(),
        [first, last],
        "never called"
    );
    let stored = fixture.read(queued).await;
    assert_eq!(stored, ended, "as it was answered");
}

#[tokio::test]
async fn a_running_operation_is_cancelled_by_its_vm_manager() {
    let fixture = Fixture::new().await;
    let seq = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_phase(seq, Phase::Running).await;
    let asked = fixture
        .operations
        .cancel(seq, None)
        .await
        .expect("accepted");
    assert!(asked.cancel_asked.is_some(), "the request is stored");
    assert_eq!(asked.phase, Phase::Running, "nothing is claimed yet");
    assert_eq!(
        fixture.wait_for_end(seq).await.phase,
        Phase::Cancelled,
        "stopped"
    );
    assert_eq!(fixture.adapter.cancelled_tasks(), ["vm"], "asked once");
}

#[tokio::test]
async fn the_result_of_a_vm_manager_that_goes_on_counts() {
    let fixture = Fixture::new().await;
    fixture.adapter.ignore_cancels(true);
    let seq = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_phase(seq, Phase::Running).await;
    let one = fixture
        .operations
        .cancel(seq, None)
        .await
        .expect("accepted");
    wait_until("asked", || async {
        !fixture.adapter.cancelled_tasks().is_empty()
    })
    .await;
    let two = fixture
        .operations
        .cancel(seq, None)
        .await
        .expect("accepted again");
    assert_eq!(one.revision, two.revision, "one request, however often");
    fixture.adapter.set_task_reply("vm", Reply::Done);
    assert_eq!(
        fixture.wait_for_end(seq).await.phase,
        Phase::Succeeded,
        "the truth"
    );
}

#[tokio::test]
async fn c9_the_request_survives_a_restart() {
    let mut fixture = Fixture::new().await;
    fixture.adapter.ignore_cancels(true);
    let seq = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_phase(seq, Phase::Running).await;
    fixture
        .operations
        .cancel(seq, None)
        .await
        .expect("accepted");
    wait_until("asked", || async {
        !fixture.adapter.cancelled_tasks().is_empty()
    })
    .await;
    fixture.adapter.ignore_cancels(false);
    fixture.restart().await;
    assert_eq!(
        fixture.wait_for_end(seq).await.phase,
        Phase::Cancelled,
        "asked again"
    );
    assert!(
        fixture.adapter.cancelled_tasks().len() >= 2,
        "by the new process"
    );
}

#[tokio::test]
async fn what_was_never_started_is_not_called_again() {
    let fixture = Fixture::with(Recovery::ReplaySafe, |_| {}).await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Lose);
    let seq = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_phase(seq, Phase::Uncertain).await;
    fixture
        .operations
        .cancel(seq, None)
        .await
        .expect("accepted");
    fixture.adapter.set_find_replies(&[Reply::NotBegun]);
    assert_eq!(
        fixture.wait_for_end(seq).await.phase,
        Phase::Cancelled,
        "given up"
    );
    assert_eq!(fixture.adapter.begun_operations(), [seq], "called once");
}

#[tokio::test]
async fn what_is_final_or_does_not_exist_cannot_be_cancelled() {
    let fixture = Fixture::new().await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    let done = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_end(done).await;
    assert_eq!(
        cancel_result(&fixture.operations, done).await,
        "too late",
        "done"
    );
    let none = fixture.operations.reserve();
    assert_eq!(
        cancel_result(&fixture.operations, none).await,
        "none",
        "never was"
    );
}
