//! Plans: that they change nothing, what they say of the queue and of the time, and that a stale one stops the operation.

use std::time::Duration;

use super::Fixture;
use crate::adapters::adapter::Recovery;
use crate::model::Backup;
use crate::model::Description;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::Phase;
use crate::model::Precondition;
use crate::model::Timestamp;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::DurationBasis;
use crate::operations::Forecast;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::WhenBusy;
use crate::operations::testing;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::backup;
use crate::operations::testing::delete;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;
use crate::operations::testing::test_deadline;
use crate::public_text;

async fn forecast(fixture: &Fixture, intent: &Intent) -> Forecast {
    let on = testing::backend("one");
    let made = fixture.operations.preview(&on, intent, test_deadline());
    made.await.expect("a forecast")
}

/// A request that names the plan made now.
async fn send_planned(fixture: &Fixture, intent: &Intent) -> Result<Accepted, AcceptError> {
    let on = testing::backend("one");
    let known = fixture.operations.known_changes(&on, &intent.target.vm);
    let plan = forecast(fixture, intent).await;
    let mut made = submission(fixture.operations.reserve(), intent.clone());
    made.preconditions = vec![Precondition::PlanUnchanged(
        plan.preview.fingerprint(&intent.change),
    )];
    made.known_changes = known;
    fixture.operations.accept(permit(intent, "one"), made).await
}

fn both() -> [(&'static str, Intent); 2] {
    [
        ("restore", restore("vm", "b")),
        ("delete", delete("vm", "b")),
    ]
}

/// What is there when the operation leaves its queue, and whether that makes its plan stale.
fn later_states() -> Vec<(&'static str, Vec<Backup>, bool)> {
    let newer = Backup {
        created: Timestamp::from_millis(u64::MAX / 2),
        ..backup("newer")
    };
    let described = Backup {
        description: Description::new("by another writer").ok(),
        ..backup("b")
    };
    let other = Backup {
        identity: Identity::new("2".to_owned()),
        ..backup("b")
    };
    vec![
        ("the same", vec![backup("b")], false),
        ("another description", vec![described], false),
        ("a newer backup", vec![backup("b"), newer], true),
        ("another backup of the same id", vec![other], true),
        ("deleted meanwhile", Vec::new(), true),
    ]
}

#[tokio::test]
async fn a_plan_is_looked_at_again_when_the_operation_leaves_its_queue() {
    for (verb, intent) in both() {
        for (what, after, is_stale) in later_states() {
            let name = format!("{verb}, {what}");
            let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
            let before = fixture.accept(restore("vm", "other")).await;
            fixture.wait_for_phase(before, Phase::Running).await;
            let waiting = send_planned(&fixture, &intent).await.expect("accepted");
            fixture.adapter.set_backups(after);
            fixture.adapter.set_task_reply("vm", Reply::Done);
            let end = fixture.wait_for_end(waiting.operation().seq).await;
            let kind = end.fault.as_ref().map(|fault| fault.kind);
            let expected = is_stale.then_some(FaultKind::PreconditionFailed);
            assert_eq!(kind, expected, "{name}: {end:?}");
            let begun = fixture.adapter.begun_operations().len();
            assert_eq!(begun, if is_stale { 1 } else { 2 }, "{name}: calls");
            if let Some(fault) = &end.fault {
                assert!(fault.text.contains("plan is stale"), "{name}: {fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_plan_survives_a_restart() {
    for (verb, intent) in both() {
        for (what, after, is_stale) in later_states() {
            let name = format!("{verb}, {what}");
            let mut fixture = Fixture::with_updates(Recovery::Listable, 4).await;
            let before = fixture.accept(restore("vm", "other")).await;
            fixture.wait_for_phase(before, Phase::Running).await;
            let waiting = send_planned(&fixture, &intent).await.expect("accepted");
            fixture.operations.stop().await;
            fixture.adapter.set_backups(after);
            fixture.adapter.set_task_reply("vm", Reply::Done);
            fixture.operations = fixture.setup.open().await;
            let end = fixture.wait_for_end(waiting.operation().seq).await;
            let kind = end.fault.as_ref().map(|fault| fault.kind);
            let expected = is_stale.then_some(FaultKind::PreconditionFailed);
            assert_eq!(kind, expected, "{name}: {end:?}");
        }
    }
}

/// A change of any backup of the VM that is accepted after the plan was made, and before the request that names it.
#[tokio::test]
async fn a_change_between_the_plan_and_the_acceptance_is_seen() {
    let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
    let intent = restore("vm", "b");
    let on = testing::backend("one");
    let known = fixture.operations.known_changes(&on, &intent.target.vm);
    let plan = forecast(&fixture, &intent).await;
    let other = fixture.accept(delete("vm", "other")).await;
    fixture.wait_for_phase(other, Phase::Running).await;
    let mut made = submission(fixture.operations.reserve(), intent.clone());
    made.preconditions = vec![Precondition::PlanUnchanged(
        plan.preview.fingerprint(&intent.change),
    )];
    made.known_changes = known;
    let refused = fixture
        .operations
        .accept(permit(&intent, "one"), made)
        .await;
    let refused = refused.expect_err("refused");
    assert!(
        matches!(refused, AcceptError::PreconditionFailed),
        "another change came: {refused:?}"
    );
}

#[tokio::test]
async fn a_forecast_stores_nothing_and_lists_what_would_refuse_the_change() {
    let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
    let busy = Fault::new(FaultKind::Busy, public_text!("The VM is busy."));
    fixture.adapter.set_refusals(vec![busy.clone()]);
    for (verb, intent) in both() {
        let made = forecast(&fixture, &intent).await;
        assert_eq!(made.preview.refused, std::slice::from_ref(&busy), "{verb}");
        assert!(made.refused.is_none() && made.pending.is_empty(), "{verb}");
        assert_eq!(made.duration, None, "{verb}: no history");
        let again = forecast(&fixture, &intent).await;
        let change = &intent.change;
        let prints = [made, again].map(|made| made.preview.fingerprint(change));
        assert_eq!(prints[0], prints[1], "{verb}: the same plan");
    }
    let query = ListQuery {
        limit: 10,
        ..ListQuery::default()
    };
    let stored = fixture.operations.list(&query).await.unwrap();
    assert!(stored.operations.is_empty(), "nothing stored: {stored:?}");
    assert!(
        fixture.adapter.begun_operations().is_empty(),
        "never called"
    );
}

#[tokio::test]
async fn a_forecast_names_the_queue() {
    // When busy, how many may wait, the verb, and what would refuse it.
    let rows: [(WhenBusy, usize, Intent, &str); 5] = [
        (WhenBusy::Queue, 4, restore("vm", "b"), "nothing"),
        (WhenBusy::Queue, 0, restore("vm", "b"), "queue of the VM"),
        (WhenBusy::Refuse, 4, restore("vm", "b"), "busy"),
        (WhenBusy::Refuse, 4, delete("vm", "b"), "busy"),
        (WhenBusy::Refuse, 4, delete("vm", "other"), "nothing"),
    ];
    for (when_busy, queue_per_vm, intent, expected) in rows {
        let fixture = Fixture::with(Recovery::Listable, |setup| {
            setup.config.when_busy = when_busy;
            setup.config.queue_per_vm = queue_per_vm;
        })
        .await;
        fixture.adapter.set_backup_ids(&["b", "other"]);
        let running = fixture.accept(delete("vm", "other")).await;
        fixture.wait_for_phase(running, Phase::Running).await;
        let made = forecast(&fixture, &intent).await;
        let pending: Vec<_> = made.pending.iter().map(|other| other.seq).collect();
        assert_eq!(pending, [running], "{expected}: what it waits for");
        let found = match made.refused {
            None => "nothing",
            Some(AcceptError::Busy(_)) => "busy",
            Some(AcceptError::VmQueueFull) => "queue of the VM",
            Some(other) => panic!("{expected}: {other:?}"),
        };
        assert_eq!(found, expected, "{when_busy:?} {queue_per_vm} {intent:?}");
        // The same as what becomes of the request itself.
        let is_accepted = fixture.accept_on("one", intent).await.is_ok();
        assert_eq!(is_accepted, expected == "nothing", "{expected}: in fact");
    }
}

#[tokio::test]
async fn the_expected_time_comes_from_earlier_restores_of_the_vm() {
    let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
    let intent = restore("vm", "b");
    for seconds in [40, 20, 30] {
        let seq = fixture.accept(intent.clone()).await;
        fixture.wait_for_phase(seq, Phase::Running).await;
        fixture.setup.clock.advance(Duration::from_secs(seconds));
        fixture.adapter.set_task_reply("vm", Reply::Done);
        fixture.wait_for_end(seq).await;
        fixture.adapter.set_task_reply("vm", Reply::Running(0));
    }
    let made = forecast(&fixture, &intent).await;
    let expected = made.duration.expect("known");
    assert_eq!(expected.basis, DurationBasis::History, "by the history");
    assert_eq!(
        expected.time,
        Duration::from_secs(30),
        "the one in the middle"
    );
    let other = forecast(&fixture, &restore("another", "b")).await;
    assert_eq!(other.duration, None, "of another VM, whose size is unknown");
    let sized = |id: &str, size| Backup {
        size: Some(size),
        ..backup(id)
    };
    let all = vec![sized("b", 1 << 30), sized("twice", 1 << 31)];
    fixture.adapter.set_backups(all);
    let other = forecast(&fixture, &restore("another", "twice")).await;
    let expected = other.duration.expect("by the size");
    assert_eq!(expected.basis, DurationBasis::Size, "of other VMs");
    assert_eq!(expected.time, Duration::from_secs(60), "twice as much");
    let deleted = forecast(&fixture, &delete("vm", "b")).await;
    assert_eq!(deleted.duration, None, "of restores alone");
}

/// The gateway dies between the call and its answer: what the restore itself changed does not make its plan stale.
#[tokio::test]
async fn a_restore_done_before_a_crash_is_settled_by_evidence() {
    let mut fixture = Fixture::with_updates(Recovery::ReplaySafe, 4).await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Hang);
    let made = send_planned(&fixture, &restore("vm", "b")).await;
    let seq = made.expect("accepted").operation().seq;
    super::wait_until("it is called", || async {
        !fixture.adapter.begun_operations().is_empty()
    })
    .await;
    fixture.operations.stop().await;
    fixture.adapter.set_find_replies(&[Reply::Done]);
    fixture.adapter.set_backups(Vec::new());
    fixture.operations = fixture.setup.open().await;
    let end = fixture.wait_for_end(seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
}
