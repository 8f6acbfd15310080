//! The gateway stops at every point of the life of an operation and starts again.

use std::sync::Arc;
use std::time::Duration;

use super::Fixture;
use super::wait_until;
use crate::adapters::adapter::Recovery;
use crate::model::Operation;
use crate::model::Phase;
use crate::operations::OperationsApi;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::maintenance;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::TestSetup;
use crate::operations::testing::operation;
use crate::operations::testing::restore;
use crate::operations::testing::task_ref;

/// The record that a killed gateway left in its store.
fn record_left_in(phase: Phase, seq: u64, backup: &str) -> Operation {
    let accepted = operation(seq, "vm", backup);
    let baseline = crate::model::Evidence::new(accepted.key().to_string());
    let events = match phase {
        Phase::Accepted => vec![],
        Phase::Submitting => vec![Event::Start(baseline)],
        Phase::Running => vec![Event::Start(baseline), Event::Task(task_ref("vm"))],
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

/// Writes records into the store of a fixture while it is closed.
fn write_records(setup: &TestSetup, records: Vec<Operation>) -> impl Future<Output = ()> {
    let file = setup.config.store.file().unwrap().to_owned();
    let (clock, metrics) = (Arc::clone(&setup.clock), setup.metrics.clone());
    async move {
        let store = SqliteStore::open(file, clock, metrics).unwrap();
        for record in records {
            store.create(Arc::new(record)).await.unwrap();
        }
        store.close().await;
    }
}

async fn fixture_with_records(recovery: Recovery, records: Vec<Operation>) -> Fixture {
    let mut fixture = Fixture::with(recovery, |_| {}).await;
    fixture.operations.stop().await;
    write_records(&fixture.setup, records).await;
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture
        .adapter
        .set_find_replies(&[Reply::NotYet, Reply::Done]);
    fixture.operations = fixture.setup.open().await;
    fixture
}

#[tokio::test]
async fn each_phase_is_continued() {
    let safe = Recovery::ReplaySafe;
    let list = Recovery::Listable;
    // Phase left, recovery class, calls to the VM manager, whether evidence is searched for.
    let rows = [
        (Phase::Accepted, list, 1, false),
        (Phase::Submitting, list, 0, true),
        (Phase::Submitting, safe, 1, false),
        (Phase::Running, list, 0, false),
        (Phase::Uncertain, list, 0, true),
        (Phase::Uncertain, safe, 0, true),
    ];
    for (phase, recovery, calls, searches) in rows {
        let name = format!("{phase:?}, {}", recovery.as_str());
        let fixture = fixture_with_records(recovery, vec![record_left_in(phase, 9, "b")]).await;
        let seq = record_left_in(phase, 9, "b").seq;
        let end = fixture.wait_for_end(seq).await;
        assert_eq!(end.phase, Phase::Succeeded, "{name}");
        assert_eq!(
            fixture.adapter.begun_operations().len(),
            calls,
            "{name}: calls"
        );
        assert_eq!(
            fixture.adapter.find_count() > 0,
            searches,
            "{name}: searches"
        );
        let higher = fixture.operations.reserve();
        assert!(higher > seq, "{name}: numbers go on above");
    }
}

#[tokio::test]
async fn a_replay_that_is_refused_proves_nothing() {
    let mut fixture = Fixture::with(Recovery::ReplaySafe, |_| {}).await;
    fixture.operations.stop().await;
    write_records(
        &fixture.setup,
        vec![record_left_in(Phase::Submitting, 9, "b")],
    )
    .await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Refuse);
    fixture.adapter.set_find_replies(&[Reply::Done]);
    fixture.operations = fixture.setup.open().await;
    let end = fixture
        .wait_for_end(record_left_in(Phase::Submitting, 9, "b").seq)
        .await;
    assert_eq!(end.phase, Phase::Succeeded, "the first call had done it");
}

#[tokio::test]
async fn the_queue_keeps_its_order_behind_what_runs() {
    let records = vec![
        record_left_in(Phase::Accepted, 5, "a"),
        record_left_in(Phase::Accepted, 7, "c"),
        record_left_in(Phase::Running, 6, "b"),
    ];
    let fixture = fixture_with_records(Recovery::Listable, records).await;
    let last = record_left_in(Phase::Accepted, 7, "c").seq;
    fixture.wait_for_end(last).await;
    let begun: Vec<_> = fixture
        .adapter
        .begun_operations()
        .iter()
        .map(|seq| seq.number())
        .collect();
    assert_eq!(begun, [5, 7], "by number, after the one that ran");
}

#[tokio::test]
async fn an_operation_accepted_long_ago_is_not_executed() {
    let mut fixture = Fixture::new().await;
    fixture.operations.stop().await;
    write_records(
        &fixture.setup,
        vec![record_left_in(Phase::Accepted, 9, "b")],
    )
    .await;
    fixture.setup.clock.advance(Duration::from_secs(601));
    fixture.operations = fixture.setup.open().await;
    let end = fixture
        .wait_for_end(record_left_in(Phase::Accepted, 9, "b").seq)
        .await;
    assert_eq!(end.phase, Phase::NotExecuted, "offline too long");
    assert!(fixture.adapter.begun_operations().is_empty(), "never sent");
}

#[tokio::test]
async fn an_operation_started_before_a_long_absence_is_not_called_again() {
    // Phase left, the evidence, seconds without a gateway, the end, and calls to the VM manager.
    let rows = [
        (
            Phase::Submitting,
            Reply::NotBegun,
            601,
            Phase::NotExecuted,
            0,
        ),
        (Phase::Running, Reply::NotBegun, 601, Phase::NotExecuted, 0),
        (Phase::Running, Reply::NotBegun, 599, Phase::Succeeded, 1),
        (Phase::Running, Reply::VmChanged, 1, Phase::NotExecuted, 0),
        (Phase::Running, Reply::Done, 601, Phase::Succeeded, 0),
    ];
    for (phase, evidence, away, expected, calls) in rows {
        let name = format!("{phase:?}, {evidence:?}, {away} s");
        let mut fixture = Fixture::with(Recovery::ReplaySafe, |_| {}).await;
        fixture.operations.stop().await;
        let left = record_left_in(phase, 9, "b");
        write_records(&fixture.setup, vec![left.clone()]).await;
        fixture.setup.clock.advance(Duration::from_secs(away));
        fixture.adapter.set_task_reply("vm", Reply::Gone);
        fixture.adapter.set_begin_reply("vm", BeginReply::Done);
        fixture.adapter.set_find_replies(&[evidence]);
        fixture.operations = fixture.setup.open().await;
        let end = fixture.wait_for_end(left.seq).await;
        assert_eq!(end.phase, expected, "{name}");
        assert_eq!(
            fixture.adapter.begun_operations().len(),
            calls,
            "{name}: calls"
        );
    }
}

#[tokio::test]
async fn the_absence_is_measured_from_the_last_heartbeat() {
    let mut fixture = Fixture::with(Recovery::ReplaySafe, |_| {}).await;
    let running = fixture.accept(restore("vm", "a")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    fixture.setup.clock.advance(Duration::from_secs(3600));
    maintenance::run_round(&fixture.operations.core).await;
    assert!(
        !fixture.read(running).await.resume_expired,
        "a gateway was running all the time"
    );
    fixture.restart().await;
    assert!(
        !fixture.read(running).await.resume_expired,
        "it was offline for no time"
    );
    fixture.adapter.set_task_reply("vm", Reply::Done);
    assert_eq!(
        fixture.wait_for_end(running).await.phase,
        Phase::Succeeded,
        "followed"
    );
}

#[tokio::test]
async fn waiting_long_in_a_running_gateway_is_no_absence() {
    let mut fixture = Fixture::new().await;
    let running = fixture.accept(restore("vm", "a")).await;
    let waiting = fixture.accept(restore("vm", "b")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    fixture.setup.clock.advance(Duration::from_secs(3600));
    fixture.restart().await;
    fixture.adapter.set_task_reply("vm", Reply::Done);
    assert_eq!(
        fixture.wait_for_end(running).await.phase,
        Phase::Succeeded,
        "followed"
    );
    assert_eq!(
        fixture.wait_for_end(waiting).await.phase,
        Phase::Succeeded,
        "and the next"
    );
    assert_eq!(
        fixture.adapter.begun_operations(),
        [running, waiting],
        "each once"
    );
}

#[tokio::test]
async fn stopping_ends_soon_and_leaves_the_state_as_it_is() {
    let mut fixture = Fixture::new().await;
    fixture.adapter.set_begin_reply("lost", BeginReply::Lose);
    let running = fixture.accept(restore("vm", "a")).await;
    let queued = fixture.accept(restore("vm", "b")).await;
    let lost = fixture.accept(restore("lost", "a")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    fixture.wait_for_phase(lost, Phase::Uncertain).await;
    let stopped = tokio::time::timeout(Duration::from_secs(2), fixture.operations.stop()).await;
    assert!(stopped.is_ok(), "soon");
    fixture.operations = fixture.setup.open().await;
    for (name, seq, phase) in [
        ("running", running, Phase::Running),
        ("queued", queued, Phase::Accepted),
        ("lost", lost, Phase::Uncertain),
    ] {
        assert_eq!(fixture.read(seq).await.phase, phase, "{name}");
    }
}

#[tokio::test]
async fn a_round_recovers_operations_without_a_task() {
    let fixture = Fixture::new().await;
    let left = record_left_in(Phase::Running, 9, "b");
    fixture.adapter.set_task_reply("vm", Reply::Done);
    let store = fixture.operations.core.store.raw();
    store.create(Arc::new(left.clone())).await.unwrap();
    maintenance::run_round(&fixture.operations.core).await;
    let end = fixture.wait_for_end(left.seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "recovered without a restart");
}

#[tokio::test]
async fn operations_of_a_backend_that_is_not_configured_wait_for_it() {
    let mut fixture = Fixture::new().await;
    fixture.operations.stop().await;
    let mut left = record_left_in(Phase::Running, 9, "b");
    left.backend = crate::operations::testing::backend("gone");
    write_records(&fixture.setup, vec![left.clone()]).await;
    fixture.operations = fixture.setup.open().await;
    maintenance::run_round(&fixture.operations.core).await;
    let kept = fixture.read(left.seq).await;
    assert_eq!(*kept, left, "as it was");
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    let other = fixture.accept(restore("vm", "b")).await;
    assert_eq!(
        fixture.wait_for_end(other).await.phase,
        Phase::Succeeded,
        "others run"
    );
}

#[tokio::test]
async fn one_unreadable_record_stops_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.operations.stop().await;
    let records = vec![
        record_left_in(Phase::Running, 8, "a"),
        record_left_in(Phase::Accepted, 9, "b"),
    ];
    write_records(&fixture.setup, records).await;
    let db = rusqlite::Connection::open(fixture.setup.config.store.file().unwrap()).unwrap();
    db.execute_batch("UPDATE operations SET record = '{}' WHERE seq = 8")
        .unwrap();
    drop(db);
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture.operations = fixture.setup.open().await;
    let end = fixture
        .wait_for_end(record_left_in(Phase::Accepted, 9, "b").seq)
        .await;
    assert_eq!(end.phase, Phase::Succeeded, "the other one");
    wait_until("the alarm is set", || async {
        fixture
            .metrics_text()
            .contains("snapgate_operations_set_aside 1")
    })
    .await;
}
