//! The gateway ends at every point of an operation's life and starts again.

use std::sync::Arc;
use std::time::Duration;

use super::House;
use super::eventually;
use crate::adapters::adapter::Recovery;
use crate::model::Operation;
use crate::model::Phase;
use crate::operations::OperationsApi;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::maintenance;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::Setup;
use crate::operations::testing::operation;
use crate::operations::testing::restore;
use crate::operations::testing::task;

/// What a gateway that was killed left in its store.
fn left_in(phase: Phase, seq: u64, backup: &str) -> Operation {
    let accepted = operation(seq, "vm", backup);
    let baseline = crate::model::Evidence::new(accepted.key().to_string());
    let events = match phase {
        Phase::Accepted => vec![],
        Phase::Submitting => vec![Event::Start(baseline)],
        Phase::Running => vec![Event::Start(baseline), Event::Task(task("vm"))],
        Phase::Uncertain => vec![Event::Start(baseline), Event::Lost],
        Phase::Succeeded
        | Phase::Failed
        | Phase::Cancelled
        | Phase::NotExecuted
        | Phase::Unknown => panic!("{phase:?} is final"),
    };
    let rules = machine::Rules {
        replay_safe: false,
        settle: Duration::ZERO,
        probe_window: Duration::ZERO,
        accept_ttl: Duration::ZERO,
        resume_ttl: Duration::ZERO,
        retention: Duration::ZERO,
    };
    events.into_iter().fold(accepted, |state, event| {
        let step = machine::step(&state, event, state.created, &rules);
        step.unwrap().state.unwrap()
    })
}

/// Puts records into the store of a house before it is opened.
fn leave(setup: &Setup, records: Vec<Operation>) -> impl Future<Output = ()> {
    let file = setup.config.store.clone();
    let (clock, metrics) = (Arc::clone(&setup.clock), setup.metrics.clone());
    async move {
        let store = SqliteStore::open(file, clock, metrics).unwrap();
        for it in records {
            store.create(Arc::new(it)).await.unwrap();
        }
        store.close().await;
    }
}

async fn house_with(recovery: Recovery, records: Vec<Operation>) -> House {
    let mut house = House::with(recovery, |_| {}).await;
    house.room.stop().await;
    leave(&house.setup, records).await;
    house.adapter.say("vm", Say::Done);
    house.adapter.find_says(&[Say::NotYet, Say::Done]);
    house.room = house.setup.open().await;
    house
}

#[tokio::test]
async fn each_phase_is_continued() {
    let safe = Recovery::ReplaySafe;
    let list = Recovery::Listable;
    // Phase left, class, calls that the VM manager gets, whether evidence is looked for.
    let rows = [
        (Phase::Accepted, list, 1, false),
        (Phase::Submitting, list, 0, true),
        (Phase::Submitting, safe, 1, false),
        (Phase::Running, list, 0, false),
        (Phase::Uncertain, list, 0, true),
        (Phase::Uncertain, safe, 0, true),
    ];
    for (phase, recovery, calls, looks) in rows {
        let name = format!("{phase:?}, {}", recovery.as_str());
        let house = house_with(recovery, vec![left_in(phase, 9, "b")]).await;
        let seq = left_in(phase, 9, "b").seq;
        let end = house.end(seq).await;
        assert_eq!(end.phase, Phase::Succeeded, "{name}");
        assert_eq!(house.adapter.begun().len(), calls, "{name}: calls");
        assert_eq!(house.adapter.found() > 0, looks, "{name}: looks");
        let higher = house.room.reserve();
        assert!(higher > seq, "{name}: numbers go on above");
    }
}

#[tokio::test]
async fn a_replay_that_is_refused_proves_nothing() {
    let mut house = House::with(Recovery::ReplaySafe, |_| {}).await;
    house.room.stop().await;
    leave(&house.setup, vec![left_in(Phase::Submitting, 9, "b")]).await;
    house.adapter.begin_with("vm", Begin::Refuse);
    house.adapter.find_says(&[Say::Done]);
    house.room = house.setup.open().await;
    let end = house.end(left_in(Phase::Submitting, 9, "b").seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "the first call had done it");
}

#[tokio::test]
async fn the_queue_keeps_its_order_behind_what_runs() {
    let records = vec![
        left_in(Phase::Accepted, 5, "a"),
        left_in(Phase::Accepted, 7, "c"),
        left_in(Phase::Running, 6, "b"),
    ];
    let house = house_with(Recovery::Listable, records).await;
    let last = left_in(Phase::Accepted, 7, "c").seq;
    house.end(last).await;
    let begun: Vec<_> = house.adapter.begun().iter().map(|it| it.number()).collect();
    assert_eq!(begun, [5, 7], "by number, after the one that ran");
}

#[tokio::test]
async fn what_was_accepted_long_ago_is_not_executed() {
    let folder_age = Duration::from_secs(601);
    let mut house = House::new().await;
    house.room.stop().await;
    leave(&house.setup, vec![left_in(Phase::Accepted, 9, "b")]).await;
    house.setup.clock.advance(folder_age);
    house.room = house.setup.open().await;
    let end = house.end(left_in(Phase::Accepted, 9, "b").seq).await;
    assert_eq!(end.phase, Phase::NotExecuted, "stale");
    assert!(house.adapter.begun().is_empty(), "never sent");
}

#[tokio::test]
async fn what_was_begun_before_a_long_absence_is_not_begun_again() {
    // Phase left, what the evidence says, seconds without a gateway, how it ends, and calls that the VM manager gets.
    let rows = [
        (Phase::Submitting, Say::NotBegun, 601, Phase::NotExecuted, 0),
        (Phase::Running, Say::NotBegun, 601, Phase::NotExecuted, 0),
        (Phase::Running, Say::NotBegun, 599, Phase::Succeeded, 1),
        (Phase::Running, Say::VmChanged, 1, Phase::NotExecuted, 0),
        (Phase::Running, Say::Done, 601, Phase::Succeeded, 0),
    ];
    for (phase, evidence, away, expected, calls) in rows {
        let name = format!("{phase:?}, {evidence:?}, {away} s");
        let mut house = House::with(Recovery::ReplaySafe, |_| {}).await;
        house.room.stop().await;
        let left = left_in(phase, 9, "b");
        leave(&house.setup, vec![left.clone()]).await;
        house.setup.clock.advance(Duration::from_secs(away));
        house.adapter.say("vm", Say::Gone);
        house.adapter.begin_with("vm", Begin::Done);
        house.adapter.find_says(&[evidence]);
        house.room = house.setup.open().await;
        let end = house.end(left.seq).await;
        assert_eq!(end.phase, expected, "{name}");
        assert_eq!(house.adapter.begun().len(), calls, "{name}: calls");
    }
}

#[tokio::test]
async fn the_absence_is_measured_from_the_last_sign_of_life() {
    let mut house = House::with(Recovery::ReplaySafe, |_| {}).await;
    let running = house.accept(restore("vm", "a")).await;
    house.reaches(running, Phase::Running).await;
    house.setup.clock.advance(Duration::from_secs(3600));
    maintenance::round(&house.room.core).await;
    assert!(
        !house.operation(running).await.resume_expired,
        "a gateway was running all the time"
    );
    house.restart().await;
    assert!(
        !house.operation(running).await.resume_expired,
        "it was away for no time"
    );
    house.adapter.say("vm", Say::Done);
    assert_eq!(house.end(running).await.phase, Phase::Succeeded, "followed");
}

#[tokio::test]
async fn waiting_long_in_a_gateway_that_is_at_work_is_not_stale() {
    let mut house = House::new().await;
    let running = house.accept(restore("vm", "a")).await;
    let waiting = house.accept(restore("vm", "b")).await;
    house.reaches(running, Phase::Running).await;
    house.setup.clock.advance(Duration::from_secs(3600));
    house.restart().await;
    house.adapter.say("vm", Say::Done);
    assert_eq!(house.end(running).await.phase, Phase::Succeeded, "followed");
    assert_eq!(
        house.end(waiting).await.phase,
        Phase::Succeeded,
        "and the next"
    );
    assert_eq!(house.adapter.begun(), [running, waiting], "each once");
}

#[tokio::test]
async fn stopping_ends_soon_and_leaves_the_state_as_it_is() {
    let mut house = House::new().await;
    house.adapter.begin_with("lost", Begin::Lose);
    let running = house.accept(restore("vm", "a")).await;
    let queued = house.accept(restore("vm", "b")).await;
    let lost = house.accept(restore("lost", "a")).await;
    house.reaches(running, Phase::Running).await;
    house.reaches(lost, Phase::Uncertain).await;
    let stopped = tokio::time::timeout(Duration::from_secs(2), house.room.stop()).await;
    assert!(stopped.is_ok(), "soon");
    house.room = house.setup.open().await;
    for (name, seq, phase) in [
        ("running", running, Phase::Running),
        ("queued", queued, Phase::Accepted),
        ("lost", lost, Phase::Uncertain),
    ] {
        assert_eq!(house.operation(seq).await.phase, phase, "{name}");
    }
}

#[tokio::test]
async fn a_round_takes_up_what_nobody_is_at_work_on() {
    let house = House::new().await;
    let left = left_in(Phase::Running, 9, "b");
    house.adapter.say("vm", Say::Done);
    let store = Arc::clone(&house.room.core.store);
    store.create(Arc::new(left.clone())).await.unwrap();
    maintenance::round(&house.room.core).await;
    let end = house.end(left.seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "taken up without a restart");
}

#[tokio::test]
async fn operations_of_a_backend_that_is_not_configured_wait_for_it() {
    let mut house = House::new().await;
    house.room.stop().await;
    let mut left = left_in(Phase::Running, 9, "b");
    left.backend = crate::operations::testing::backend("gone");
    leave(&house.setup, vec![left.clone()]).await;
    house.room = house.setup.open().await;
    maintenance::round(&house.room.core).await;
    let kept = house.operation(left.seq).await;
    assert_eq!(*kept, left, "as it was");
    house.adapter.begin_with("vm", Begin::Done);
    let other = house.accept(restore("vm", "b")).await;
    assert_eq!(house.end(other).await.phase, Phase::Succeeded, "others run");
}

#[tokio::test]
async fn one_unreadable_record_stops_nothing() {
    let mut house = House::new().await;
    house.room.stop().await;
    let records = vec![
        left_in(Phase::Running, 8, "a"),
        left_in(Phase::Accepted, 9, "b"),
    ];
    leave(&house.setup, records).await;
    let db = rusqlite::Connection::open(&house.setup.config.store).unwrap();
    db.execute_batch("UPDATE operations SET record = '{}' WHERE seq = 8")
        .unwrap();
    drop(db);
    house.adapter.say("vm", Say::Done);
    house.room = house.setup.open().await;
    let end = house.end(left_in(Phase::Accepted, 9, "b").seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "the other one");
    eventually("the alarm is set", || async {
        house.metrics().contains("snapgate_operations_set_aside 1")
    })
    .await;
}
