//! How operations end, whatever the adapter does.

use std::sync::Arc;
use std::time::Duration;

use super::House;
use super::eventually;
use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::Phase;
use crate::operations::OfflineStoreError;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::operations::maintenance;
use crate::operations::testing::Begin;
use crate::operations::testing::NOW;
use crate::operations::testing::Say;
use crate::operations::testing::restore;
use crate::operations::testing::soon;

/// A name, what the call does, what is found afterwards, and the end of it.
type Row = (
    &'static str,
    Begin,
    &'static [Say],
    Phase,
    Option<FaultKind>,
);

const CALLS: [Row; 9] = [
    ("done", Begin::Done, &[], Phase::Succeeded, None),
    (
        "refused",
        Begin::Refuse,
        &[],
        Phase::Failed,
        Some(FaultKind::Busy),
    ),
    (
        "lost, done",
        Begin::Lose,
        &[Say::Done],
        Phase::Succeeded,
        None,
    ),
    (
        "lost, failed",
        Begin::Lose,
        &[Say::Fail],
        Phase::Failed,
        Some(FaultKind::StorageFull),
    ),
    (
        "lost, not begun",
        Begin::Lose,
        &[Say::NotBegun],
        Phase::NotExecuted,
        Some(FaultKind::NotExecuted),
    ),
    (
        "lost, nothing will tell",
        Begin::Lose,
        &[Say::Unknowable],
        Phase::Unknown,
        Some(FaultKind::OutcomeUnknown),
    ),
    (
        "lost, found after errors and panics",
        Begin::Lose,
        &[Say::NotYet, Say::Error, Say::Panic, Say::Done],
        Phase::Succeeded,
        None,
    ),
    (
        "lost, task found",
        Begin::Lose,
        &[Say::Task],
        Phase::Succeeded,
        None,
    ),
    (
        "panic, found",
        Begin::Panic,
        &[Say::Done],
        Phase::Succeeded,
        None,
    ),
];

#[tokio::test]
async fn what_the_call_says_decides() {
    let house = House::new().await;
    house.adapter.say("vm", Say::Done);
    for (name, begin, find, phase, fault) in CALLS {
        house.adapter.begin_with("vm", begin);
        house.adapter.find_says(find);
        let seq = house.accept(restore("vm", "b")).await;
        let end = house.end(seq).await;
        assert_eq!(end.phase, phase, "{name}");
        assert_eq!(
            end.fault.as_ref().map(|fault| fault.kind),
            fault,
            "{name}: fault"
        );
        assert_eq!(end.progress.percent(), 100, "{name}: final");
        assert_eq!(house.operation(seq).await, end, "{name}: as stored");
    }
    let metrics = house.metrics();
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
    let house = House::new().await;
    let seq = house.accept(restore("vm", "b")).await;
    house.reaches(seq, Phase::Running).await;
    let mut last = 0;
    for say in [
        Say::Running(30),
        Say::Error,
        Say::Running(20),
        Say::Panic,
        Say::Running(60),
    ] {
        house.setup.clock.advance(Duration::from_secs(1));
        house.adapter.say("vm", say);
        if let Say::Running(percent) = say
            && percent > last
        {
            last = percent;
            eventually("the progress is seen", || async {
                house.operation(seq).await.progress.percent() == percent
            })
            .await;
        }
    }
    let running = house.operation(seq).await;
    assert_eq!(running.phase, Phase::Running, "still followed");
    house.adapter.say("vm", Say::Fail);
    let end = house.end(seq).await;
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(
        (end.phase, kind),
        (Phase::Failed, Some(FaultKind::StorageFull)),
        "its end"
    );
}

#[tokio::test]
async fn a_task_that_is_gone_is_looked_for() {
    let house = House::new().await;
    house
        .adapter
        .find_says(&[Say::NotYet, Say::NotBegun, Say::NotYet, Say::Done]);
    house.adapter.say("vm", Say::Gone);
    let seq = house.accept(restore("vm", "b")).await;
    let end = house.end(seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "found, and never not-begun");
    assert!(house.adapter.found() >= 4, "asked until it could be told");
}

#[tokio::test]
async fn without_evidence_it_is_unknown_only_after_the_window() {
    let house = House::new().await;
    house.adapter.begin_with("vm", Begin::Lose);
    let seq = house.accept(restore("vm", "b")).await;
    eventually("evidence is looked for", || async {
        house.adapter.found() > 3
    })
    .await;
    assert_eq!(
        house.operation(seq).await.phase,
        Phase::Uncertain,
        "time decides nothing"
    );
    house.setup.clock.advance(house.setup.config.probe_window);
    house.setup.clock.advance(Duration::from_secs(1));
    let end = house.end(seq).await;
    assert_eq!(end.phase, Phase::Unknown, "the window is over");
    assert_eq!(end.expires, None, "kept");
    let next = house.accept(restore("vm", "c")).await;
    house.reaches(next, Phase::Uncertain).await;
    house.setup.clock.advance(house.setup.config.retention * 2);
    maintenance::round(&house.room.core).await;
    assert_eq!(
        house.operation(seq).await.phase,
        Phase::Unknown,
        "still kept"
    );
    let (one, two) = tokio::join!(house.room.acknowledge(seq), house.room.acknowledge(seq));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(
        one.is_new, two.is_new,
        "one of two is told that it was the first"
    );
    let seen = one.operation;
    assert_eq!(two.operation, seen, "both see it");
    assert!(
        seen.acknowledged.is_some() && seen.expires.is_some(),
        "acknowledged"
    );
    let again = house.room.acknowledge(seq).await.unwrap();
    assert_eq!((again.operation, again.is_new), (seen, false), "once");
    house.setup.clock.advance(house.setup.config.retention);
    maintenance::round(&house.room.core).await;
    assert_eq!(house.room.operation(seq).await.unwrap(), None, "dropped");
}

#[tokio::test]
async fn finished_operations_are_kept_for_the_retention() {
    let house = House::new().await;
    house.adapter.begin_with("vm", Begin::Done);
    let seq = house.accept(restore("vm", "b")).await;
    let end = house.end(seq).await;
    let expires = NOW.plus(house.setup.config.retention);
    assert_eq!(end.expires, Some(expires), "from its end on");
    maintenance::round(&house.room.core).await;
    assert_eq!(house.operation(seq).await, end, "kept");
    house.setup.clock.advance(house.setup.config.retention);
    maintenance::round(&house.room.core).await;
    assert_eq!(house.room.operation(seq).await.unwrap(), None, "dropped");
    let gone = house.room.acknowledge(seq).await;
    assert!(
        matches!(gone, Err(OfflineStoreError::NoSuchOperation(_))),
        "nothing to acknowledge: {gone:?}"
    );
}

#[tokio::test]
async fn many_wait_for_one_and_all_wake() {
    let house = House::new().await;
    let seq = house.accept(restore("vm", "b")).await;
    let running = house.reaches(seq, Phase::Running).await;
    let waiting: Vec<_> = (0..2000)
        .map(|number| {
            let room = Arc::clone(&house.room);
            let until = if number % 2 == 0 {
                WaitFor::End
            } else {
                WaitFor::ChangeAfter(running.revision)
            };
            house
                .room
                .core
                .spawn(async move { room.wait(seq, until, soon()).await })
        })
        .collect();
    house.adapter.say("vm", Say::Done);
    for it in waiting {
        let woken = it.await.unwrap().unwrap().unwrap();
        assert!(woken.revision > running.revision, "woken by a change");
    }
    let now = soon();
    let gone = crate::model::OperationSeq::new(7).unwrap();
    let none = house.room.wait(gone, WaitFor::End, now).await.unwrap();
    assert_eq!(none, None, "nothing to wait for");
}

#[tokio::test]
async fn at_the_deadline_the_present_state_is_told() {
    let house = House::new().await;
    let seq = house.accept(restore("vm", "b")).await;
    let running = house.reaches(seq, Phase::Running).await;
    use crate::runtime::Clock;
    let by = crate::runtime::SystemClock.deadline(Duration::from_millis(5));
    let told = house.room.wait(seq, WaitFor::End, by).await.unwrap();
    assert_eq!(told, Some(running), "as it is");
}

#[tokio::test]
async fn a_store_that_failed_is_told_and_takes_nothing() {
    let house = House::with(Recovery::Listable, |_| {}).await;
    let seq = house.accept(restore("vm", "b")).await;
    house.reaches(seq, Phase::Running).await;
    assert!(!house.room.failed().is_given(), "not yet");
    let error = crate::operations::store::StoreError::Fatal("fsync".to_owned());
    house.room.core.note(Some(&error));
    house.room.failed().given().await;
    assert!(!house.room.is_ready(), "takes nothing");
    let metrics = house.metrics();
    let counted = r#"snapgate_store_errors_total{kind="fatal"} 1"#;
    assert!(metrics.contains(counted), "counted: {metrics}");
}
