//! Preconditions at the moment of the change: behind a queue, after restarts, for every verb.

use futures_util::future::join_all;

use super::Fixture;
use crate::adapters::adapter::Recovery;
use crate::model::Backup;
use crate::model::BackupName;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Description;
use crate::model::FaultKind;
use crate::model::Identity;
use crate::model::Intent;
use crate::model::Phase;
use crate::model::Precondition;
use crate::model::Version;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::Submission;
use crate::operations::testing;
use crate::operations::testing::BeginReply;
use crate::operations::testing::Reply;
use crate::operations::testing::backup;
use crate::operations::testing::delete;
use crate::operations::testing::new_backup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;
use crate::operations::testing::update;

fn create(vm: &str, id: &str) -> Intent {
    Intent {
        identity: None,
        change: Change::Create(new_backup("n")),
        ..restore(vm, id)
    }
}

/// The four changes of the backup or VM.
fn all_changes() -> [(&'static str, Intent); 4] {
    [
        ("update", update("vm", "b")),
        ("delete", delete("vm", "b")),
        ("restore", restore("vm", "b")),
        ("create", create("vm", "new")),
    ]
}

fn unchanged_precondition(intent: &Intent, found: &Backup) -> Precondition {
    match intent.change {
        Change::Create(_) => Precondition::ListUnchanged(Version::of_backups([found])),
        Change::Update(_) | Change::Delete | Change::Restore(_) => {
            Precondition::BackupUnchanged(Version::of_backup(found))
        }
    }
}

/// A request whose precondition is checked now.
fn checked_submission(operations: &Operations, intent: &Intent, found: &Backup) -> Submission {
    let mut made = submission(operations.reserve(), intent.clone());
    made.preconditions = vec![unchanged_precondition(intent, found)];
    made.known_changes = operations.known_changes(&testing::backend("one"), &intent.target.vm);
    made
}

async fn send(operations: &Operations, made: Submission) -> Result<Accepted, AcceptError> {
    operations
        .accept(permit(&made.intent.clone(), "one"), made)
        .await
}

fn described(text: &str) -> Backup {
    Backup {
        description: Some(Description::new(text).unwrap()),
        ..backup("b")
    }
}

#[tokio::test]
async fn a_precondition_is_checked_again_when_the_operation_leaves_its_queue() {
    let changes = [
        ("another description", Some(described("by another writer"))),
        (
            "another backup of the same id",
            Some(Backup {
                identity: Identity::new("2".to_owned()),
                ..backup("b")
            }),
        ),
        (
            "damaged meanwhile",
            Some(Backup {
                state: BackupState::Error,
                ..backup("b")
            }),
        ),
        ("deleted meanwhile", None),
    ];
    for (verb, intent) in all_changes() {
        for (what, after) in changes.clone() {
            let name = format!("{verb}, {what}");
            let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
            let before = fixture.accept(restore("vm", "other")).await;
            fixture.wait_for_phase(before, Phase::Running).await;
            let waiting = checked_submission(&fixture.operations, &intent, &backup("b"));
            let waiting = send(&fixture.operations, waiting).await.expect("accepted");
            fixture.adapter.set_backups(after.into_iter().collect());
            fixture.adapter.set_task_reply("vm", Reply::Done);
            let end = fixture.wait_for_end(waiting.operation().seq).await;
            let kind = end.fault.as_ref().map(|fault| fault.kind);
            assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{name}: {end:?}");
            assert_eq!(end.phase, Phase::Failed, "{name}");
            assert_eq!(
                fixture.adapter.begun_operations(),
                [before],
                "{name}: never called"
            );
        }
    }
}

#[tokio::test]
async fn an_operation_does_not_break_its_own_precondition_by_the_state_it_shows() {
    for (verb, intent) in all_changes() {
        let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
        fixture.adapter.set_begin_reply("vm", BeginReply::Done);
        let made = checked_submission(&fixture.operations, &intent, &backup("b"));
        let made = send(&fixture.operations, made).await.expect("accepted");
        let end = fixture.wait_for_end(made.operation().seq).await;
        assert_eq!(end.phase, Phase::Succeeded, "{verb}: {end:?}");
    }
}

#[tokio::test]
async fn of_several_writers_with_one_version_one_is_accepted() {
    for (verb, intent) in all_changes() {
        for recovery in [Recovery::Listable, Recovery::ReplaySafe] {
            let fixture = Fixture::with_updates(recovery, 4).await;
            let all: Vec<Submission> = (0..8)
                .map(|_| checked_submission(&fixture.operations, &intent, &backup("b")))
                .collect();
            let answers =
                join_all(all.into_iter().map(|made| send(&fixture.operations, made))).await;
            let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1, "{verb}, {recovery:?}: {won:?}");
            for answer in lost {
                let refused = matches!(answer, Err(AcceptError::PreconditionFailed));
                assert!(refused, "{verb}, {recovery:?}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_that_came_and_ended_after_the_check_counts() {
    for (verb, intent) in all_changes() {
        let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
        fixture.adapter.set_begin_reply("vm", BeginReply::Done);
        let late = checked_submission(&fixture.operations, &intent, &backup("b"));
        // A restore changes nothing of the backup: only the order shows it.
        let first = fixture.accept(restore("vm", "b")).await;
        assert_eq!(
            fixture.wait_for_end(first).await.phase,
            Phase::Succeeded,
            "{verb}"
        );
        let answer = send(&fixture.operations, late).await;
        let refused = matches!(answer, Err(AcceptError::PreconditionFailed));
        assert!(refused, "{verb}: {answer:?}");
        let next = checked_submission(&fixture.operations, &intent, &backup("b"));
        let next = send(&fixture.operations, next)
            .await
            .expect("checked afterwards");
        assert_eq!(
            fixture.wait_for_end(next.operation().seq).await.phase,
            Phase::Succeeded,
            "{verb}"
        );
    }
}

#[tokio::test]
async fn a_change_of_another_backup_is_no_change_of_this_one() {
    let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
    let made = checked_submission(&fixture.operations, &update("vm", "b"), &backup("b"));
    fixture.accept(restore("vm", "other")).await;
    let accepted = send(&fixture.operations, made)
        .await
        .expect("another backup");
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    let end = fixture.wait_for_end(accepted.operation().seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
}

#[tokio::test]
async fn presence_is_a_precondition_of_its_own() {
    let rows = [
        (
            "changed",
            Some(described("by another writer")),
            Phase::Succeeded,
        ),
        ("deleted", None, Phase::Failed),
    ];
    for (name, after, phase) in rows {
        let fixture = Fixture::with_updates(Recovery::Listable, 4).await;
        fixture.adapter.set_begin_reply("vm", BeginReply::Done);
        let mut made = checked_submission(&fixture.operations, &update("vm", "b"), &backup("b"));
        made.preconditions = vec![Precondition::BackupPresent];
        fixture.adapter.set_backups(after.into_iter().collect());
        let made = send(&fixture.operations, made).await.expect("accepted");
        let end = fixture.wait_for_end(made.operation().seq).await;
        assert_eq!(end.phase, phase, "{name}: {end:?}");
    }
}

#[tokio::test]
async fn a_precondition_survives_a_restart() {
    for (verb, intent) in all_changes() {
        let mut fixture = Fixture::with_updates(Recovery::Listable, 4).await;
        let before = fixture.accept(restore("vm", "other")).await;
        fixture.wait_for_phase(before, Phase::Running).await;
        let made = checked_submission(&fixture.operations, &intent, &backup("b"));
        let waiting = send(&fixture.operations, made).await.expect("accepted");
        fixture.operations.stop().await;
        fixture
            .adapter
            .set_backups(vec![described("while no gateway ran")]);
        fixture.adapter.set_task_reply("vm", Reply::Done);
        fixture.operations = fixture.setup.open().await;
        let end = fixture.wait_for_end(waiting.operation().seq).await;
        let kind = end.fault.as_ref().map(|fault| fault.kind);
        assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{verb}: {end:?}");
        assert_eq!(
            fixture.adapter.begun_operations(),
            [before],
            "{verb}: never called"
        );
    }
}

/// The gateway dies between the call and its answer, and the change was carried out: it broke its own condition.
#[tokio::test]
async fn a_change_done_before_a_crash_is_settled_by_evidence_and_not_checked_again() {
    let renamed = Backup {
        name: BackupName::new("m").unwrap(),
        ..backup("b")
    };
    // The evidence, the backup, the number of calls in all, the end.
    let rows = [
        (Reply::Done, renamed.clone(), 1, Phase::Succeeded),
        (Reply::NotBegun, backup("b"), 2, Phase::Succeeded),
        (Reply::NotBegun, renamed, 1, Phase::Failed),
    ];
    let every = all_changes().into_iter().flat_map(|(verb, intent)| {
        let rows = rows.clone().into_iter();
        rows.map(move |row| crash_after_the_call(verb, intent.clone(), row))
    });
    join_all(every).await;
}

async fn crash_after_the_call(
    verb: &str,
    intent: Intent,
    (evidence, after, calls, phase): (Reply, Backup, usize, Phase),
) {
    let name = format!("{verb}, {evidence:?}, {phase:?}");
    let mut fixture = Fixture::with_updates(Recovery::ReplaySafe, 4).await;
    fixture.adapter.set_begin_reply("vm", BeginReply::Hang);
    let made = checked_submission(&fixture.operations, &intent, &backup("b"));
    let made = send(&fixture.operations, made).await.expect("accepted");
    let seq = made.operation().seq;
    super::wait_until("it is called", || async {
        !fixture.adapter.begun_operations().is_empty()
    })
    .await;
    fixture.operations.stop().await;
    fixture.adapter.set_find_replies(&[evidence]);
    fixture.adapter.set_backups(vec![after]);
    fixture.adapter.set_begin_reply("vm", BeginReply::Done);
    fixture.operations = fixture.setup.open().await;
    let end = fixture.wait_for_end(seq).await;
    assert_eq!(end.phase, phase, "{name}: {end:?}");
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    let expected = (phase == Phase::Failed).then_some(FaultKind::PreconditionFailed);
    assert_eq!(kind, expected, "{name}");
    assert_eq!(
        fixture.adapter.begun_operations().len(),
        calls,
        "{name}: calls"
    );
}

#[tokio::test]
async fn an_unreadable_backup_starts_nothing() {
    let fixture = Fixture::with_updates(Recovery::NoTrace, 4).await;
    let made = checked_submission(&fixture.operations, &update("vm", "b"), &backup("b"));
    fixture.adapter.fail_reads();
    let made = send(&fixture.operations, made).await.expect("accepted");
    let end = fixture.wait_for_end(made.operation().seq).await;
    assert_eq!(end.phase, Phase::Failed, "provably not started: {end:?}");
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::Unavailable), "{end:?}");
    assert!(
        fixture.adapter.begun_operations().is_empty(),
        "never called"
    );
}

/// The precondition of an update that is accepted and submitted in one write is checked as well.
#[tokio::test]
async fn an_update_submitted_by_its_acceptance_keeps_its_precondition() {
    let fixture = Fixture::with_updates(Recovery::ReplaySafe, 4).await;
    let made = checked_submission(&fixture.operations, &update("vm", "b"), &backup("b"));
    fixture
        .adapter
        .set_backups(vec![described("by another writer")]);
    let accepted = send(&fixture.operations, made).await.expect("accepted");
    assert_eq!(accepted.operation().phase, Phase::Submitting, "at once");
    let end = fixture.wait_for_end(accepted.operation().seq).await;
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{end:?}");
    assert!(
        fixture.adapter.begun_operations().is_empty(),
        "never called"
    );
}
