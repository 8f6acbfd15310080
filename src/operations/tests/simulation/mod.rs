//! The operations as a whole over a simulated store and VM manager, in virtual time, by seeds.
//!
//! `SNAPGATE_SIM_SEED=n cargo test --lib simulation` runs the one seed n and prints its verdict;
//! `SNAPGATE_SIM_SEEDS=n` runs so many instead of the usual number. The same seed is the same run.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "an overflow fails the test, as it should"
)]

mod backend;
mod cluster;
pub(super) mod history;
mod store;
pub(super) mod world;

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Recovery;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Precondition;
use crate::model::Verb;
use crate::model::Version;
use crate::operations::AcceptError;
use crate::operations::BackendHandle;
use crate::operations::Config;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::StoreFault;
use crate::operations::Submission;
use crate::operations::WaitFor;
use crate::operations::core::Shared;
use crate::operations::machine;
use crate::operations::testing;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;
use backend::BackendBehavior;
use backend::SimBackend;
use history::Answer;
use history::ClientRequest;
use history::Execution;
use history::History;
use history::ObservedStatus;
use history::Verdict;
use store::SimStore;
use world::SimulatedWorld;

/// Seeds in the normal test run.
const SEEDS: u64 = 600;
/// Lives of the gateway in one seed; the last one is calm and may finish everything.
const LIVES: u64 = 5;
/// How long the last life may take to finish everything.
const LAST_LIFE: Duration = Duration::from_secs(4 * 3600);

/// The result of one seed.
#[derive(Debug)]
struct Run {
    verdict: Verdict,
    records: Vec<Operation>,
    /// Everything that happened, as text: the same for the same seed.
    trace: String,
    accepted: usize,
    kills: usize,
}

/// The nature that a seed draws.
fn behavior_of_seed(seed: u64) -> BackendBehavior {
    let recovery = match seed % 3 {
        0 => Recovery::ReplaySafe,
        1 => Recovery::Listable,
        _ => Recovery::NoTrace,
    };
    BackendBehavior {
        recovery,
        declared_recovery: recovery,
        start_delay_max: Duration::from_secs(18),
        settle: Duration::from_secs(20),
        is_synchronous: seed.is_multiple_of(2),
        hides_changes: false,
        looks_before_sending: true,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

fn run(seed: u64, behavior: BackendBehavior) -> Run {
    let mut time = Duration::ZERO;
    let first = runtime();
    let root = first.block_on(async { SimulatedWorld::new(seed) });
    for life in 1..=LIVES {
        // Dropping its runtime ends every task of the gateway, as a SIGKILL does.
        let runtime = runtime();
        time = runtime.block_on(run_life(&root, behavior, time, life == LIVES));
    }
    let state = root.state();
    let records: Vec<_> = state
        .disk
        .values()
        .map(|record| (**record).clone())
        .collect();
    let mut verdict = history::judge(
        &state.history,
        &records,
        &state.executions,
        behavior.recovery,
    );
    if !state.clock_was_wrong {
        let absences = &state.absences;
        history::judge_resumption(&records, &state.executions, absences, &mut verdict);
    }
    Run {
        verdict,
        trace: trace(&state.history, &state.executions, &records),
        accepted: state.history.accepted().len(),
        kills: state.kills,
        records,
    }
}

/// One line for each thing that happened.
fn trace(history: &History, executions: &[Execution], records: &[Operation]) -> String {
    let requests = history
        .requests
        .iter()
        .map(|request| format!("{request:?}"));
    let shown = history.shown.iter().map(|status| format!("{status:?}"));
    let done = executions.iter().map(|execution| format!("{execution:?}"));
    let ends = records.iter().map(|record| {
        let (rev, calls, fault) = (record.revision.0, record.calls, &record.fault);
        format!(
            "{} {:?} rev {rev} calls {calls} {fault:?}",
            record.seq, record.phase
        )
    });
    let lines: Vec<String> = requests.chain(shown).chain(done).chain(ends).collect();
    lines.join("\n")
}

/// One life of the gateway. Returns the time at which the next one may begin.
async fn run_life(
    root: &SimulatedWorld,
    behavior: BackendBehavior,
    begins: Duration,
    last: bool,
) -> Duration {
    // The wall clock of a life may be wrong, by up to an hour.
    let wall_is_late = root.draw(|root| match root.below(4) {
        0 => root.millis(3_600_000),
        _ => Duration::ZERO,
    });
    root.state().clock_was_wrong |= wall_is_late > Duration::ZERO;
    let world = root.next_life(begins, wall_is_late);
    let life = root.draw(|root| Duration::from_millis(1) + root.millis(180_000));
    {
        let mut state = world.state();
        state.calm = last;
        let steps = state.prng.below(400);
        let by_step = state.prng.per_mille(700);
        state.steps_to_live = (by_step && !last).then_some(steps);
    }
    let work = async {
        let Some(operations) = open(&world, behavior).await else {
            return;
        };
        let tasks = Tasks::default();
        if last {
            wait_until_all_final(&operations, &world).await;
        } else {
            spawn_clients(&operations, &world, &tasks);
            operations.failed().given().await;
        }
    };
    let limit = if last { LAST_LIFE } else { life };
    tokio::select! {
        biased;
        () = world.kill.notified() => {}
        () = work => {}
        () = tokio::time::sleep(limit) => {}
    }
    let absence = root.draw(|root| match root.below(3) {
        0 => root.millis(900_000),
        _ => root.millis(2000),
    });
    let ended = world.time();
    root.state().absences.push((ended, ended + absence));
    ended + absence
}

async fn open(world: &SimulatedWorld, behavior: BackendBehavior) -> Option<Arc<Operations>> {
    let mut config = Config::with_store(PathBuf::from("simulated"));
    config.queue_per_vm = 4;
    let handle = BackendHandle {
        name: testing::backend("one"),
        adapter: Arc::new(SimBackend::new(world.clone(), behavior)),
        concurrency: 2,
    };
    let shared = Shared {
        clock: Arc::new(world.clone()),
        metrics: Metrics::new().unwrap(),
        tasks: Tasks::default(),
        lease: Lease::unlimited(),
    };
    let store = Arc::new(SimStore::new(world.clone()));
    let opened = Operations::start_on(store, config, vec![handle], shared).await;
    opened.ok()
}

/// Spawns clients that send requests and read Statuses.
fn spawn_clients(operations: &Arc<Operations>, world: &SimulatedWorld, tasks: &Tasks) {
    let requests = world.draw(|world| 2 + world.below(6));
    for _ in 0..requests {
        let (operations, world) = (Arc::clone(operations), world.clone());
        tasks.spawn(async move {
            tokio::time::sleep(world.draw(|world| world.millis(60_000))).await;
            send_request(&operations, &world).await;
        });
    }
    // Several writers who hold one version, at the same moment.
    let (begin, intent) = world.draw(|world| (world.millis(60_000), world.below(3)));
    for _ in 0..3 {
        let (operations, world) = (Arc::clone(operations), world.clone());
        tasks.spawn(async move {
            tokio::time::sleep(begin).await;
            let vm = format!("vm-{intent}");
            let is_update = world.draw(|world| world.per_mille(700));
            let change = if is_update {
                testing::update
            } else {
                testing::delete
            };
            send_conditional_request(&operations, &world, change(&vm, "b-0"), false).await;
        });
    }
    for _ in 0..2 {
        let (operations, world) = (Arc::clone(operations), world.clone());
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(world.draw(|world| world.millis(8000))).await;
                read_status(&operations, &world).await;
            }
        });
    }
}

fn draw_intent(world: &SimulatedWorld) -> Intent {
    let (vm, backup, verb) = world.draw(|world| (world.below(3), world.below(2), world.below(100)));
    let (vm, backup) = (format!("vm-{vm}"), format!("b-{backup}"));
    match verb {
        0..15 => testing::delete(&vm, &backup),
        15..40 => testing::update(&vm, &backup),
        _ => testing::restore(&vm, &backup),
    }
}

/// One request; some carry a key, and some are the repetition of one whose answer was lost.
async fn send_request(operations: &Arc<Operations>, world: &SimulatedWorld) {
    let key = world.draw(|world| world.per_mille(400).then(|| world.below(8)));
    let intent = match key {
        // The same key is the same request.
        Some(key) => testing::restore(&format!("vm-{}", key % 3), "b-0"),
        None => draw_intent(world),
    };
    let (on_condition, holds) = world.draw(|world| (world.per_mille(300), world.per_mille(500)));
    if key.is_none() && on_condition {
        return send_conditional_request(operations, world, intent, holds).await;
    }
    let seq = operations.reserve();
    let mut submission = testing::submission(seq, intent.clone());
    submission.idempotency = key.map(|key| testing::idempotency(&format!("k-{key}"), 1));
    submit(operations, world, submission, key).await;
}

/// One request with a precondition on the version of its backup: the current one, or one that was read earlier. Half of those
/// that plans are made of name a plan instead.
async fn send_conditional_request(
    operations: &Arc<Operations>,
    world: &SimulatedWorld,
    intent: Intent,
    holds: bool,
) {
    let on = testing::backend("one");
    let known_changes = operations.known_changes(&on, &intent.target.vm);
    let by = world.deadline(Duration::from_secs(60));
    let Ok(backup) = operations.backup(&on, &intent.target, by).await else {
        return;
    };
    let found = Version::of_backup(&backup);
    let held = world.state().held.insert(intent.target.clone(), found);
    if holds && held.is_some_and(|held| held != found) {
        return;
    }
    let is_planned = matches!(intent.verb(), Verb::Restore | Verb::Delete)
        && world.draw(|world| world.per_mille(500));
    let condition = if is_planned {
        // The plan of the simulated VM manager covers the version of the backup and nothing else.
        let Ok(forecast) = operations.preview(&on, &intent, by).await else {
            return;
        };
        Precondition::PlanUnchanged(forecast.preview.fingerprint(&intent.change))
    } else {
        Precondition::BackupUnchanged(found)
    };
    let mut submission = testing::submission(operations.reserve(), intent);
    submission.preconditions = vec![condition];
    submission.known_changes = known_changes;
    submit(operations, world, submission, None).await;
}

async fn submit(
    operations: &Arc<Operations>,
    world: &SimulatedWorld,
    submission: Submission,
    key: Option<u64>,
) {
    let seq = submission.seq;
    let place = {
        let mut state = world.state();
        let asked = state.history.place();
        state.history.requests.push(ClientRequest {
            seq,
            key,
            asked,
            answer: None,
        });
        state.history.requests.len() - 1
    };
    let permit = testing::permit(&submission.intent, "one");
    let answer = operations.accept(permit, submission).await;
    let mut state = world.state();
    let here = state.history.place();
    state.history.requests[place].answer = Some(match answer {
        Ok(accepted) => Answer::Accepted(accepted.operation().seq, here),
        Err(AcceptError::Store(StoreFault::Failed)) => Answer::Failed,
        Err(_) => Answer::Refused,
    });
}

/// Reads the Status of one accepted operation, now or after its next change.
async fn read_status(operations: &Arc<Operations>, world: &SimulatedWorld) {
    let known: Vec<OperationSeq> = world.state().history.accepted().into_keys().collect();
    if known.is_empty() {
        return;
    }
    let (which, waits) = world.draw(|world| (world.index(known.len()), world.per_mille(200)));
    let seq = known[which];
    let seen = if waits {
        let by = world.deadline(Duration::from_secs(5));
        operations.wait(seq, WaitFor::End, by).await
    } else {
        operations.operation(seq).await
    };
    if let Ok(seen) = seen {
        record_status(world, seq, seen.as_deref());
    }
}

fn record_status(world: &SimulatedWorld, seq: OperationSeq, seen: Option<&Operation>) {
    let at = world.time();
    let revision = seen.map(|operation| {
        (
            operation.revision.0,
            operation.progress.percent(),
            operation.phase,
        )
    });
    let broken = seen.and_then(|operation| machine::check_invariants(operation).err());
    assert_eq!(broken, None, "{seq} is a record that the machine can make");
    let mut state = world.state();
    state
        .history
        .shown
        .push(ObservedStatus { seq, at, revision });
}

/// Waits without further faults until every operation is final, then reads every Status once more.
async fn wait_until_all_final(operations: &Arc<Operations>, world: &SimulatedWorld) {
    let unfinished = || {
        let state = world.state();
        state.disk.values().any(|record| !record.phase.is_final())
    };
    while unfinished() {
        read_status(operations, world).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let known: Vec<OperationSeq> = world.state().history.accepted().into_keys().collect();
    for seq in known {
        if let Ok(seen) = operations.operation(seq).await {
            record_status(world, seq, seen.as_deref());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how a developer replays a seed")]
fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Prints to the terminal: the test runner captures what passing tests print otherwise.
pub(super) fn print_line(line: &str) {
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}

/// Runs a seed and checks its verdict. A panic within it is reported with the number of the seed.
fn run_and_check(seed: u64, behavior: BackendBehavior) -> Run {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, behavior)));
    let replay = format!("replay: SNAPGATE_SIM_SEED={seed} cargo test --lib simulation");
    let run = result.unwrap_or_else(|_| panic!("seed {seed} panicked; {replay}"));
    assert!(
        run.verdict.is_clean(),
        "seed {seed}, {behavior:?}: {:#?}\n{replay}",
        run.verdict
    );
    run
}

#[test]
fn every_seed_keeps_the_promises() {
    if let Some(seed) = number_from("SNAPGATE_SIM_SEED") {
        let replayed = run(seed, behavior_of_seed(seed));
        print_line(&format!("{}\n{:#?}\n", replayed.trace, replayed.verdict));
        assert!(replayed.verdict.is_clean(), "seed {seed}");
        return;
    }
    let seeds = number_from("SNAPGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let (mut accepted, mut kills, mut refused) = (0, 0, 0);
    let mut ends = std::collections::BTreeMap::<_, usize>::new();
    for seed in 0..seeds {
        let run = run_and_check(seed, behavior_of_seed(seed));
        accepted += run.accepted;
        kills += run.kills;
        for record in &run.records {
            let kind = record.fault.as_ref().map(|fault| fault.kind);
            refused += usize::from(kind == Some(FaultKind::PreconditionFailed));
            *ends.entry(record.phase.as_str()).or_default() += 1;
        }
    }
    print_line(&format!(
        "simulation: {seeds} seeds, {} lives, {} kills, {kills} of them between two steps of a call; {accepted} accepted, \
         0 lost, 0 run twice, 0 untrue; {refused} refused by their preconditions, 0 against them; ends {ends:?}\n",
        seeds * LIVES,
        seeds * (LIVES - 1)
    ));
    if seeds >= SEEDS {
        assert!(refused > 0, "some come too late for their precondition");
        let every = [
            Phase::Succeeded,
            Phase::Failed,
            Phase::NotExecuted,
            Phase::Unknown,
        ];
        for phase in every {
            assert!(ends.contains_key(phase.as_str()), "some end {phase:?}");
        }
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..12 {
        let (one, other) = (
            run(seed, behavior_of_seed(seed)),
            run(seed, behavior_of_seed(seed)),
        );
        assert_eq!(one.trace, other.trace, "seed {seed}");
    }
}

/// Counts what the checker finds in some seeds of a nature that is a lie.
fn count_violations(distort: impl Fn(&mut BackendBehavior)) -> (usize, usize) {
    let (mut run_twice, mut untrue) = (0, 0);
    for seed in 0..90 {
        let mut behavior = behavior_of_seed(seed);
        distort(&mut behavior);
        let verdict = run(seed, behavior).verdict;
        run_twice += verdict.run_twice.len();
        untrue += verdict.untrue.len();
    }
    (run_twice, untrue)
}

#[test]
fn the_naive_control_is_caught() {
    // What a simple durable retry does: on restart it calls again, and the VM manager knows nothing of the first call.
    let (run_twice, _) = count_violations(|behavior| {
        behavior.recovery = Recovery::NoTrace;
        behavior.declared_recovery = Recovery::ReplaySafe;
    });
    print_line(&format!(
        "simulation: naive control ran {run_twice} operations twice\n"
    ));
    assert!(run_twice >= 10, "retry on restart runs twice: {run_twice}");
}

#[test]
fn preconditions_that_are_not_checked_are_caught() {
    let mut against = 0;
    for seed in 0..60 {
        let mut behavior = behavior_of_seed(seed);
        behavior.hides_changes = true;
        against += run(seed, behavior).verdict.against_condition.len();
    }
    print_line(&format!(
        "simulation: control with blind preconditions changed {against} backups against them\n"
    ));
    assert!(against >= 10, "changed against the condition: {against}");
}

#[test]
fn a_settle_time_that_is_too_short_is_caught() {
    let (_, untrue) = count_violations(|behavior| {
        behavior.recovery = Recovery::Listable;
        behavior.declared_recovery = Recovery::Listable;
        behavior.settle = Duration::ZERO;
    });
    print_line(&format!(
        "simulation: control without settle time reported {untrue} untrue outcomes\n"
    ));
    assert!(untrue >= 5, "executed after it was called off: {untrue}");
}
