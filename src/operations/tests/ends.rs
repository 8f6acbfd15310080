//! How operations end, whatever the adapter does.

use std::sync::Arc;
use std::time::Duration;

use super::Fixture;
use super::wait_until;
use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::Phase;
use crate::operations::OfflineStoreError;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::operations::maintenance;
use crate::operations::testing::BeginReply;
use crate::operations::testing::NOW;
use crate::operations::testing::Reply;
use crate::operations::testing::restore;
use crate::operations::testing::test_deadline;

/// A name, the reply to the call, the replies to searches, and the end of the operation.
type Row = (
    &'static str,
    BeginReply,
    &'static [Reply],
    Phase,
    Option<FaultKind>,
);

const CALLS: [Row; 9] = [
    ("done", BeginReply::Done, &[], Phase::Succeeded, None),
    (
        "refused",
        BeginReply::Refuse,
        &[],
        Phase::Failed,
        Some(FaultKind::Busy),
    ),
    (
        "lost, done",
        BeginReply::Lose,
        &[Reply::Done],
        Phase::Succeeded,
        None,
    ),
    (
        "lost, failed",
        BeginReply::Lose,
        &[Reply::Fail],
        Phase::Failed,
        Some(FaultKind::StorageFull),
    ),
    (
        "lost, not begun",
        BeginReply::Lose,
        &[Reply::NotBegun],
        Phase::NotExecuted,
        Some(FaultKind::NotExecuted),
    ),
    (
        "lost, no evidence ever",
        BeginReply::Lose,
        &[Reply::Unknowable],
        Phase::Unknown,
        Some(FaultKind::OutcomeUnknown),
    ),
    (
        "lost, found after errors and panics",
        BeginReply::Lose,
        &[Reply::NotYet, Reply::Error, Reply::Panic, Reply::Done],
        Phase::Succeeded,
        None,
    ),
    (
        "lost, task found",
        BeginReply::Lose,
        &[Reply::Task],
        Phase::Succeeded,
        None,
    ),
    (
        "panic, found",
        BeginReply::Panic,
        &[Reply::Done],
        Phase::Succeeded,
        None,
    ),
];

#[tokio::test]
async fn the_result_of_the_call_decides() {
    let fixture = Fixture::new().await;
    fixture.adapter.set_task_reply("vm", Reply::Done);
    for (name, begin, find, phase, fault) in CALLS {
        fixture.adapter.set_begin_reply("vm", begin);
        fixture.adapter.set_find_replies(find);
        let seq = fixture.accept(restore("vm", "b")).await;
        let end = fixture.wait_for_end(seq).await;
        assert_eq!(end.phase, phase, "{name}");
        assert_eq!(
            end.fault.as_ref().map(|fault| fault.kind),
            fault,
            "{name}: fault"
        );
        assert_eq!(end.progress.percent(), 100, "{name}: final");
        assert_eq!(fixture.read(seq).await, end, "{name}: as stored");
    }
    let metrics = fixture.metrics_text();
    for expected in [
        r#"snapgate_operations_total{backend="one",outcome="succeeded",verb="restore"} 5"#,
        "snapgate_operations_unknown 1",
        r#"snapgate_panics_total{room="operations"} 2"#,
        r#"snapgate_queue_depth{backend="one",state="running"} 0"#,
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
}

#[tokio::test]
async fn a_task_is_followed_through_errors_and_panics_and_its_progress_rises() {
    let fixture = Fixture::new().await;
    let seq = fixture.accept(restore("vm", "b")).await;
    fixture.wait_for_phase(seq, Phase::Running).await;
    let mut last = 0;
    for reply in [
        Reply::Running(30),
        Reply::Error,
        Reply::Running(20),
        Reply::Panic,
        Reply::Running(60),
    ] {
        fixture.setup.clock.advance(Duration::from_secs(1));
        fixture.adapter.set_task_reply("vm", reply);
        if let Reply::Running(percent) = reply
            && percent > last
        {
            last = percent;
            wait_until("the progress is seen", || async {
                fixture.read(seq).await.progress.percent() == percent
            })
            .await;
        }
    }
    let running = fixture.read(seq).await;
    assert_eq!(running.phase, Phase::Running, "still followed");
    fixture.adapter.set_task_reply("vm", Reply::Fail);
    let end = fixture.wait_for_end(seq).await;
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(
        (end.phase, kind),
        (Phase::Failed, Some(FaultKind::StorageFull)),
        "its end"
    );
}

#[tokio::test]
async fn a_forgotten_task_is_searched_for() {
    let fixture = Fixture::new().await;
    fixture
        .adapter
        .set_find_replies(&[Reply::NotYet, Reply::NotBegun, Reply::NotYet, Reply::Done]);
    fixture.adapter.set_task_reply("vm", Reply::Gone);
    let seq = fixture.accept(restore("vm", "b")).await;
    let end = fixture.wait_for_end(seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "found, and never not-begun");
    assert!(
        fixture.adapter.find_count() >= 4,
        "searched until there was evidence"
    );
}

#[tokio::test]
async fn without_evidence_it_is_unknown_only_after_the_window() {
    let fixture = Fixture::new().await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Lose);
    let seq = fixture.accept(restore("vm", "b")).await;
    wait_until("evidence is looked for", || async {
        fixture.adapter.find_count() > 3
    })
    .await;
    assert_eq!(
        fixture.read(seq).await.phase,
        Phase::Uncertain,
        "time decides nothing"
    );
    fixture
        .setup
        .clock
        .advance(fixture.setup.config.probe_window);
    fixture.setup.clock.advance(Duration::from_secs(1));
    let end = fixture.wait_for_end(seq).await;
    assert_eq!(end.phase, Phase::Unknown, "the window is over");
    assert_eq!(end.expires, None, "kept");
    let next = fixture.accept(restore("vm", "c")).await;
    fixture.wait_for_phase(next, Phase::Uncertain).await;
    fixture
        .setup
        .clock
        .advance(fixture.setup.config.retention * 2);
    maintenance::run_round(&fixture.operations.core).await;
    assert_eq!(fixture.read(seq).await.phase, Phase::Unknown, "still kept");
    let (one, two) = tokio::join!(
        fixture.operations.acknowledge(seq),
        fixture.operations.acknowledge(seq)
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.is_new, two.is_new, "one of two was the first");
    let seen = one.operation;
    assert_eq!(two.operation, seen, "both see it");
    assert!(
        seen.acknowledged.is_some() && seen.expires.is_some(),
        "acknowledged"
    );
    let again = fixture.operations.acknowledge(seq).await.unwrap();
    assert_eq!((again.operation, again.is_new), (seen, false), "once");
    fixture.setup.clock.advance(fixture.setup.config.retention);
    maintenance::run_round(&fixture.operations.core).await;
    assert_eq!(
        fixture.operations.operation(seq).await.unwrap(),
        None,
        "dropped"
    );
}

#[tokio::test]
async fn finished_operations_are_kept_for_the_retention() {
    let fixture = Fixture::new().await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    let seq = fixture.accept(restore("vm", "b")).await;
    let end = fixture.wait_for_end(seq).await;
    let expires = NOW.plus(fixture.setup.config.retention);
    assert_eq!(end.expires, Some(expires), "from its end on");
    maintenance::run_round(&fixture.operations.core).await;
    assert_eq!(fixture.read(seq).await, end, "kept");
    fixture.setup.clock.advance(fixture.setup.config.retention);
    maintenance::run_round(&fixture.operations.core).await;
    assert_eq!(
        fixture.operations.operation(seq).await.unwrap(),
        None,
        "dropped"
    );
    let gone = fixture.operations.acknowledge(seq).await;
    assert!(
        matches!(gone, Err(OfflineStoreError::NoSuchOperation(_))),
        "nothing to acknowledge: {gone:?}"
    );
}

#[tokio::test]
async fn many_clients_wait_for_one_operation_and_all_are_woken() {
    let fixture = Fixture::new().await;
    let seq = fixture.accept(restore("vm", "b")).await;
    let running = fixture.wait_for_phase(seq, Phase::Running).await;
    let waiting: Vec<_> = (0..2000)
        .map(|number| {
            let operations = Arc::clone(&fixture.operations);
            let until = if number % 2 == 0 {
                WaitFor::End
            } else {
                WaitFor::ChangeAfter(running.revision)
            };
            fixture
                .operations
                .core
                .spawn(async move { operations.wait(seq, until, test_deadline()).await })
        })
        .collect();
    fixture.adapter.set_task_reply("vm", Reply::Done);
    for waiter in waiting {
        let woken = waiter.await.unwrap().unwrap().unwrap();
        assert!(woken.revision > running.revision, "woken by a change");
    }
    let now = test_deadline();
    let gone = crate::model::OperationSeq::new(7).unwrap();
    let none = fixture
        .operations
        .wait(gone, WaitFor::End, now)
        .await
        .unwrap();
    assert_eq!(none, None, "nothing to wait for");
}

#[tokio::test]
async fn at_the_deadline_the_current_state_is_returned() {
    let fixture = Fixture::new().await;
    let seq = fixture.accept(restore("vm", "b")).await;
    let running = fixture.wait_for_phase(seq, Phase::Running).await;
    use crate::runtime::Clock;
    let by = crate::runtime::SystemClock.deadline(Duration::from_millis(5));
    let state = fixture
        .operations
        .wait(seq, WaitFor::End, by)
        .await
        .unwrap();
    assert_eq!(state, Some(running), "unchanged");
}

#[tokio::test]
async fn a_store_that_failed_gives_the_signal_and_accepts_nothing() {
    let fixture = Fixture::with(Recovery::Listable, |_| {}).await;
    let seq = fixture.accept(restore("vm", "b")).await;
    fixture.wait_for_phase(seq, Phase::Running).await;
    assert!(!fixture.operations.failed().is_given(), "not yet");
    let error = crate::operations::store::StoreError::Fatal("fsync".to_owned());
    fixture.operations.core.store.note_result(Some(&error));
    fixture.operations.failed().given().await;
    assert!(!fixture.operations.is_ready(), "accepts nothing");
    let metrics = fixture.metrics_text();
    let counted = r#"snapgate_store_errors_total{kind="fatal"} 1"#;
    assert!(metrics.contains(counted), "counted: {metrics}");
}
