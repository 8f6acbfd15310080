//! Preconditions at the moment of the change: over the queue, over restarts, over every verb.

use std::sync::Arc;

use futures_util::future::join_all;

use super::House;
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
use crate::operations::testing::Begin;
use crate::operations::testing::Say;
use crate::operations::testing::Scripted;
use crate::operations::testing::Setup;
use crate::operations::testing::backup;
use crate::operations::testing::delete;
use crate::operations::testing::new_backup;
use crate::operations::testing::permit;
use crate::operations::testing::restore;
use crate::operations::testing::submission;
use crate::operations::testing::update;
use crate::runtime::ManualClock;
use crate::runtime::Tasks;

/// A room over an adapter that does all four, and has the backup `b`.
async fn house(recovery: Recovery) -> House {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Scripted::updating(recovery);
    adapter.has(&["b"]);
    let setup = Setup::new(folder.path(), &adapter);
    let room = setup.open().await;
    House {
        folder,
        adapter,
        setup,
        room,
    }
}

fn create(vm: &str, id: &str) -> Intent {
    Intent {
        identity: None,
        change: Change::Create(new_backup("n")),
        ..restore(vm, id)
    }
}

/// The four changes of the backup or VM.
fn all() -> [(&'static str, Intent); 4] {
    [
        ("update", update("vm", "b")),
        ("delete", delete("vm", "b")),
        ("restore", restore("vm", "b")),
        ("create", create("vm", "new")),
    ]
}

fn unchanged(intent: &Intent, found: &Backup) -> Precondition {
    match intent.change {
        Change::Create(_) => Precondition::ListUnchanged(Version::of_backups([found])),
        Change::Update(_) | Change::Delete | Change::Restore(_) => {
            Precondition::BackupUnchanged(Version::of_backup(found))
        }
    }
}

/// A request whose condition is judged now.
fn judged(room: &Operations, intent: &Intent, found: &Backup) -> Submission {
    let mut made = submission(room.reserve(), intent.clone());
    made.preconditions = vec![unchanged(intent, found)];
    made.seen = room.known_changes(&testing::backend("one"), &intent.target.vm);
    made
}

async fn send(room: &Operations, made: Submission) -> Result<Accepted, AcceptError> {
    room.accept(permit(&made.intent.clone(), "one"), made).await
}

fn described(text: &str) -> Backup {
    Backup {
        description: Some(Description::new(text).unwrap()),
        ..backup("b")
    }
}

#[tokio::test]
async fn a_condition_is_looked_at_again_when_the_operation_leaves_its_queue() {
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
    for (verb, intent) in all() {
        for (what, after) in changes.clone() {
            let name = format!("{verb}, {what}");
            let house = house(Recovery::Listable).await;
            let before = house.accept(restore("vm", "other")).await;
            house.reaches(before, Phase::Running).await;
            let waiting = judged(&house.room, &intent, &backup("b"));
            let waiting = send(&house.room, waiting).await.expect("accepted");
            house.adapter.shows(after.into_iter().collect());
            house.adapter.say("vm", Say::Done);
            let end = house.end(waiting.operation().seq).await;
            let kind = end.fault.as_ref().map(|fault| fault.kind);
            assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{name}: {end:?}");
            assert_eq!(end.phase, Phase::Failed, "{name}");
            assert_eq!(house.adapter.begun(), [before], "{name}: never called");
        }
    }
}

#[tokio::test]
async fn an_operation_does_not_fail_over_the_state_that_it_shows_itself() {
    for (verb, intent) in all() {
        let house = house(Recovery::Listable).await;
        house.adapter.begin_with("vm", Begin::Done);
        let made = judged(&house.room, &intent, &backup("b"));
        let made = send(&house.room, made).await.expect("accepted");
        let end = house.end(made.operation().seq).await;
        assert_eq!(end.phase, Phase::Succeeded, "{verb}: {end:?}");
    }
}

#[tokio::test]
async fn of_several_writers_who_judged_at_once_one_is_accepted() {
    for (verb, intent) in all() {
        for recovery in [Recovery::Listable, Recovery::ReplaySafe] {
            let house = house(recovery).await;
            let all: Vec<Submission> = (0..8)
                .map(|_| judged(&house.room, &intent, &backup("b")))
                .collect();
            let answers = join_all(all.into_iter().map(|made| send(&house.room, made))).await;
            let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1, "{verb}, {recovery:?}: {won:?}");
            for it in lost {
                let refused = matches!(it, Err(AcceptError::PreconditionFailed));
                assert!(refused, "{verb}, {recovery:?}: {it:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_that_came_and_ended_after_the_condition_was_judged_counts() {
    for (verb, intent) in all() {
        let house = house(Recovery::Listable).await;
        house.adapter.begin_with("vm", Begin::Done);
        let late = judged(&house.room, &intent, &backup("b"));
        // A restore changes nothing of the backup: only the order tells.
        let first = house.accept(restore("vm", "b")).await;
        assert_eq!(house.end(first).await.phase, Phase::Succeeded, "{verb}");
        let answer = send(&house.room, late).await;
        let refused = matches!(answer, Err(AcceptError::PreconditionFailed));
        assert!(refused, "{verb}: {answer:?}");
        let next = judged(&house.room, &intent, &backup("b"));
        let next = send(&house.room, next).await.expect("judged afterwards");
        assert_eq!(
            house.end(next.operation().seq).await.phase,
            Phase::Succeeded,
            "{verb}"
        );
    }
}

#[tokio::test]
async fn a_change_of_another_backup_is_no_change_of_this_one() {
    let house = house(Recovery::Listable).await;
    let made = judged(&house.room, &update("vm", "b"), &backup("b"));
    house.accept(restore("vm", "other")).await;
    let accepted = send(&house.room, made).await.expect("another backup");
    house.adapter.say("vm", Say::Done);
    house.adapter.begin_with("vm", Begin::Done);
    let end = house.end(accepted.operation().seq).await;
    assert_eq!(end.phase, Phase::Succeeded, "{end:?}");
}

#[tokio::test]
async fn presence_is_a_condition_of_its_own() {
    let rows = [
        (
            "changed",
            Some(described("by another writer")),
            Phase::Succeeded,
        ),
        ("deleted", None, Phase::Failed),
    ];
    for (name, after, phase) in rows {
        let house = house(Recovery::Listable).await;
        house.adapter.begin_with("vm", Begin::Done);
        let mut made = judged(&house.room, &update("vm", "b"), &backup("b"));
        made.preconditions = vec![Precondition::BackupPresent];
        house.adapter.shows(after.into_iter().collect());
        let made = send(&house.room, made).await.expect("accepted");
        let end = house.end(made.operation().seq).await;
        assert_eq!(end.phase, phase, "{name}: {end:?}");
    }
}

#[tokio::test]
async fn a_condition_outlives_the_gateway() {
    for (verb, intent) in all() {
        let mut house = house(Recovery::Listable).await;
        let before = house.accept(restore("vm", "other")).await;
        house.reaches(before, Phase::Running).await;
        let made = judged(&house.room, &intent, &backup("b"));
        let waiting = send(&house.room, made).await.expect("accepted");
        house.room.stop().await;
        house.adapter.shows(vec![described("while no gateway ran")]);
        house.adapter.say("vm", Say::Done);
        house.room = house.setup.open().await;
        let end = house.end(waiting.operation().seq).await;
        let kind = end.fault.as_ref().map(|fault| fault.kind);
        assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{verb}: {end:?}");
        assert_eq!(house.adapter.begun(), [before], "{verb}: never called");
    }
}

/// The gateway dies between the call and its answer, and the change was carried out: it broke its own condition.
#[tokio::test]
async fn what_was_done_before_a_crash_is_settled_by_evidence_and_not_judged_again() {
    let renamed = Backup {
        name: BackupName::new("m").unwrap(),
        ..backup("b")
    };
    // What evidence says, what is there, how often it is called for in all, the end.
    let rows = [
        (Say::Done, renamed.clone(), 1, Phase::Succeeded),
        (Say::NotBegun, backup("b"), 2, Phase::Succeeded),
        (Say::NotBegun, renamed, 1, Phase::Failed),
    ];
    let every = all().into_iter().flat_map(|(verb, intent)| {
        let rows = rows.clone().into_iter();
        rows.map(move |row| crash_after_the_call(verb, intent.clone(), row))
    });
    join_all(every).await;
}

async fn crash_after_the_call(
    verb: &str,
    intent: Intent,
    (evidence, after, calls, phase): (Say, Backup, usize, Phase),
) {
    let name = format!("{verb}, {evidence:?}, {phase:?}");
    let mut house = house(Recovery::ReplaySafe).await;
    house.adapter.begin_with("vm", Begin::Hang);
    let made = judged(&house.room, &intent, &backup("b"));
    let made = send(&house.room, made).await.expect("accepted");
    let seq = made.operation().seq;
    super::eventually("it is called", || async {
        !house.adapter.begun().is_empty()
    })
    .await;
    house.room.stop().await;
    house.adapter.find_says(&[evidence]);
    house.adapter.shows(vec![after]);
    house.adapter.begin_with("vm", Begin::Done);
    house.room = house.setup.open().await;
    let end = house.end(seq).await;
    assert_eq!(end.phase, phase, "{name}: {end:?}");
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    let expected = (phase == Phase::Failed).then_some(FaultKind::PreconditionFailed);
    assert_eq!(kind, expected, "{name}");
    assert_eq!(house.adapter.begun().len(), calls, "{name}: calls");
}

#[tokio::test]
async fn an_unreadable_backup_begins_nothing() {
    let house = house(Recovery::NoTrace).await;
    let made = judged(&house.room, &update("vm", "b"), &backup("b"));
    house.adapter.is_unreadable();
    let made = send(&house.room, made).await.expect("accepted");
    let end = house.end(made.operation().seq).await;
    assert_eq!(end.phase, Phase::Failed, "provably not begun: {end:?}");
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::Unavailable), "{end:?}");
    assert!(house.adapter.begun().is_empty(), "never called");
}

/// An update that is accepted and begun in one write is judged as well.
#[tokio::test]
async fn an_update_begun_by_its_acceptance_keeps_its_condition() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = Scripted::updating(Recovery::ReplaySafe);
    adapter.has(&["b"]);
    let setup = Setup::new(folder.path(), &adapter);
    let room = Operations::open(
        setup.config.clone(),
        setup.backends.clone(),
        Arc::<ManualClock>::clone(&setup.clock),
        setup.metrics.clone(),
        Tasks::default(),
    );
    let room = room.await.expect("opens");
    let house = House {
        folder,
        adapter,
        setup,
        room,
    };
    let made = judged(&house.room, &update("vm", "b"), &backup("b"));
    house.adapter.shows(vec![described("by another writer")]);
    let accepted = send(&house.room, made).await.expect("accepted");
    assert_eq!(accepted.operation().phase, Phase::Submitting, "at once");
    let end = house.end(accepted.operation().seq).await;
    let kind = end.fault.as_ref().map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::PreconditionFailed), "{end:?}");
    assert!(house.adapter.begun().is_empty(), "never called");
}
