use std::time::Duration;

use super::*;
use crate::adapters::adapter::Effect;
use crate::adapters::layers::InjectedFault;
use crate::model::Change;
use crate::model::OperationSeq;
use crate::model::RestoreOptions;
use crate::model::Timestamp;
use crate::runtime::ManualClock;

fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

async fn bed() -> (Sim, Arc<ManualClock>, VmId, Intent, Deadline) {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1000)));
    let vm = VmId::new("33333").unwrap();
    let config = Config {
        vms: vec![vm.clone()],
        backups: 3,
        ..Config::default()
    };
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let by = shared.deadline(Duration::from_secs(60));
    let sim = Sim::new(&config, shared, Tasks::default());
    let target = Target {
        vm: vm.clone(),
        backup: BackupId::new("456").unwrap(),
    };
    let identity = Some(sim.read_backup(&target, by).await.unwrap().identity);
    let change = Change::Restore(RestoreOptions::default());
    (
        sim,
        clock,
        vm,
        Intent {
            target,
            identity,
            change,
        },
        by,
    )
}

fn task(begun: BeginOutcome) -> TaskRef {
    match begun {
        BeginOutcome::Task(task) => task,
        BeginOutcome::Done => panic!("a restore is a task"),
    }
}

#[tokio::test]
async fn a_restore_proceeds_with_the_clock_and_happens_once() {
    let (sim, clock, vm, intent, by) = bed().await;
    let control = sim.control();
    assert!(control.write(&vm, 77), "the VM is there");
    let running = task(sim.begin(&intent, key(1), None, by).await.unwrap());
    let again = task(sim.begin(&intent, key(1), None, by).await.unwrap());
    assert_eq!(running, again, "the same key is the same task");
    clock.advance(Duration::from_millis(500));
    let state = sim.poll(&running, by).await.unwrap();
    assert!(
        matches!(state, TaskState::Running(Some(progress)) if progress.percent() == 50),
        "{state:?}"
    );
    assert_eq!(control.content(&vm), Some(77), "not before the end");
    clock.advance(Duration::from_millis(500));
    let after_restart = control.adapter(Tasks::default());
    let state = after_restart.poll(&running, by).await.unwrap();
    assert!(matches!(state, TaskState::Done(_)), "{state:?}");
    assert_eq!(control.content(&vm), Some(0), "the content of backup 456");
    assert_eq!(
        (control.restores(&vm), control.executions(key(1))),
        (1, 1),
        "once"
    );
}

#[tokio::test]
async fn a_lost_answer_is_found_and_a_failure_before_it_is_not_begun() {
    let (sim, _clock, _vm, intent, by) = bed().await;
    let control = sim.control();
    control.script().add(
        Call::Begin,
        InjectedFault::Fail(
            FaultKind::Unavailable,
            Effect::None,
            crate::adapters::adapter::Retry::Temporary,
        ),
    );
    control.script().add(Call::Begin, InjectedFault::LoseAnswer);
    control.script().add(Call::Begin, InjectedFault::Panic);
    let never = sim.begin(&intent, key(1), None, by).await.unwrap_err();
    assert_eq!(never.effect, Effect::None, "not made");
    let found = sim.find_outcome(&intent, key(1), None, by).await.unwrap();
    assert!(matches!(found, FindOutcome::NotBegun), "{found:?}");
    let lost = sim.begin(&intent, key(2), None, by).await.unwrap_err();
    assert_eq!(lost.effect, Effect::Possible, "made");
    let found = sim.find_outcome(&intent, key(2), None, by).await.unwrap();
    assert!(matches!(found, FindOutcome::Task(_)), "{found:?}");
    let panicked = sim.begin(&intent, key(3), None, by).await.unwrap_err();
    assert_eq!(panicked.effect, Effect::Possible, "the outcome is unknown");
}

#[tokio::test]
async fn forgotten_cancelled_and_failed_tasks_say_so() {
    let (sim, clock, vm, intent, by) = bed().await;
    let control = sim.control();
    let first = task(sim.begin(&intent, key(1), None, by).await.unwrap());
    sim.cancel(&first, by).await.unwrap();
    let state = sim.poll(&first, by).await.unwrap();
    assert!(matches!(state, TaskState::Cancelled), "{state:?}");
    control.fail_next_task(FaultKind::StorageFull);
    let second = task(sim.begin(&intent, key(2), None, by).await.unwrap());
    clock.advance(Duration::from_secs(1));
    let state = sim.poll(&second, by).await.unwrap();
    assert!(
        matches!(state, TaskState::Failed(ref fault) if fault.kind == FaultKind::StorageFull),
        "{state:?}"
    );
    assert_eq!(control.restores(&vm), 0, "neither had an effect");
    let third = task(sim.begin(&intent, key(3), None, by).await.unwrap());
    control.forget(key(3));
    let state = sim.poll(&third, by).await.unwrap();
    assert!(matches!(state, TaskState::Gone), "{state:?}");
    clock.advance(Duration::from_secs(1));
    let found = sim.find_outcome(&intent, key(3), None, by).await.unwrap();
    assert!(matches!(found, FindOutcome::Done(_)), "{found:?}");
}

#[tokio::test]
async fn pages_follow_the_order_of_ids() {
    let (sim, _clock, vm, mut intent, by) = bed().await;
    let page = sim
        .list_backups(
            &vm,
            &Page {
                after: None,
                limit: 2,
            },
            by,
        )
        .await
        .unwrap();
    assert!(page.more && page.backups.len() == 2, "{page:?}");
    let after = page.backups.last().map(|backup| backup.id.clone());
    let rest = sim
        .list_backups(&vm, &Page { after, limit: 2 }, by)
        .await
        .unwrap();
    assert!(!rest.more && rest.backups.len() == 1, "{rest:?}");
    intent.identity = Some(Identity::new("another".to_owned()));
    let error = sim.begin(&intent, key(9), None, by).await.unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::NoSuchBackup,
        "not the one that was seen"
    );
}

#[tokio::test]
async fn the_oldest_of_many_ended_requests_is_forgotten() {
    let (sim, _clock, _vm, mut intent, by) = bed().await;
    let control = sim.control();
    intent.change = Change::Update(crate::model::BackupPatch::default());
    for number in 1..=10_001 {
        let begun = sim.begin(&intent, key(number), None, by).await.unwrap();
        assert_eq!(begun, BeginOutcome::Done, "update {number}");
    }
    assert_eq!(control.executions(key(1)), 0, "forgotten");
    assert_eq!(control.executions(key(2)), 1, "remembered");
    assert_eq!(control.executions(key(10_001)), 1, "the newest");
}

#[tokio::test]
async fn what_leaves_no_trace_is_not_found() {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_millis(1000)));
    let by = clock.deadline(Duration::from_secs(60));
    let rows = [
        (Recovery::ReplaySafe, "NotBegun"),
        (Recovery::Listable, "NotBegun"),
        (Recovery::NoTrace, "Unknowable"),
    ];
    let (.., intent, _) = bed().await;
    for (recovery, expected) in rows {
        let config = Config {
            recovery,
            settle: Duration::from_secs(3),
            ..Config::default()
        };
        let sim = Sim::new(&config, Arc::clone(&clock), Tasks::default());
        let found = sim.find_outcome(&intent, key(1), None, by).await.unwrap();
        assert_eq!(format!("{found:?}"), expected, "{recovery:?}");
        let declared = sim.capability().restore.unwrap();
        assert_eq!(
            (declared.recovery, declared.settle),
            (recovery, config.settle),
            "as configured"
        );
    }
}

/// What refuses the change first, by its plan.
async fn planned(sim: &Sim, intent: &Intent, by: Deadline) -> Option<FaultKind> {
    match sim.preview(intent, by).await {
        Ok(preview) => preview.refused.first().map(|fault| fault.kind),
        Err(error) => Some(error.fault.kind),
    }
}

/// Over whatever a random history leaves: running tasks, protected backups, incomplete ones, and some that are gone.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one history, step by step")]
async fn plans_over_a_random_history_never_lie() {
    let (sim, clock, vm, _, by) = bed().await;
    let control = sim.control();
    let mut seed = 0x005e_ed01_u64;
    let mut next = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut refused, mut done) = (0, 0);
    let mut ids: Vec<String> = ["456", "457", "458", "none"].map(str::to_owned).to_vec();
    for number in 1..600 {
        clock.advance(Duration::from_millis(next(1500)));
        if next(5) == 0 {
            control.fail_next_task(FaultKind::BackendFailed);
        }
        let at = usize::try_from(next(u64::try_from(ids.len()).unwrap())).unwrap();
        let target = Target {
            vm: vm.clone(),
            backup: BackupId::new(&ids[at]).unwrap(),
        };
        let found = sim.read_backup(&target, by).await.ok();
        let identity = match (found, next(8)) {
            (Some(backup), 1..) => backup.identity,
            (Some(_) | None, _) => Identity::new("other".to_owned()),
        };
        let change = match next(8) {
            0 | 1 => Change::Delete,
            2 => Change::Update(crate::model::BackupPatch {
                protected: crate::model::Patch::Set(next(2) == 0),
                ..crate::model::BackupPatch::default()
            }),
            3 | 4 => {
                let new = NewBackup {
                    name: crate::model::BackupName::new(&format!("n{number}")).unwrap(),
                    description: None,
                    kind: None,
                    tags: Vec::new(),
                    protected: next(2) == 0,
                };
                let backup = sim.mint_backup_id(&new, key(number)).unwrap();
                ids.push(backup.as_str().to_owned());
                let target = Target {
                    vm: vm.clone(),
                    backup,
                };
                let create = Intent {
                    target,
                    identity: None,
                    change: Change::Create(new),
                };
                drop(sim.begin(&create, key(number), None, by).await);
                continue;
            }
            _ => Change::Restore(RestoreOptions::default()),
        };
        let intent = Intent {
            target,
            identity: Some(identity),
            change,
        };
        let is_planned = !matches!(intent.change, Change::Update(_));
        let planned = planned(&sim, &intent, by).await.filter(|_| is_planned);
        let begun = sim.begin(&intent, key(number), None, by).await;
        let found = begun.err().map(|error| error.fault.kind);
        if is_planned {
            assert_eq!(planned, found, "{number}: the plan lies: {intent:?}");
            *if found.is_some() {
                &mut refused
            } else {
                &mut done
            } += 1;
        }
    }
    assert!(
        refused > 50 && done > 20,
        "both happen: {refused} and {done}"
    );
}
