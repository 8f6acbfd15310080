//! The whole engine over a simulated store and VM manager, in virtual time, by seeds.
//!
//! `SNAPGATE_SIM_SEED=n cargo test --lib simulation` runs the one seed n and prints its verdict;
//! `SNAPGATE_SIM_SEEDS=n` runs so many instead of the usual number. The same seed is the same run.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "an overflow fails the test, as it should"
)]

mod backend;
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
use crate::runtime::Tasks;
use crate::telemetry::Metrics;
use backend::Nature;
use backend::SimBackend;
use history::Answer;
use history::Ask;
use history::Execution;
use history::History;
use history::Shown;
use history::Verdict;
use store::SimStore;
use world::World;

/// Seeds in the normal test run.
const SEEDS: u64 = 600;
/// Lives of the gateway in one seed; the last one is calm and may finish everything.
const LIVES: u64 = 5;
/// How long the last life may take to finish everything.
const LAST_LIFE: Duration = Duration::from_secs(4 * 3600);

/// What one seed came to.
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
fn drawn(seed: u64) -> Nature {
    let recovery = match seed % 3 {
        0 => Recovery::ReplaySafe,
        1 => Recovery::Listable,
        _ => Recovery::NoTrace,
    };
    Nature {
        recovery,
        declared: recovery,
        late: Duration::from_secs(18),
        settle: Duration::from_secs(20),
        waits: seed.is_multiple_of(2),
        blind: false,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

fn run(seed: u64, nature: Nature) -> Run {
    let mut time = Duration::ZERO;
    let first = runtime();
    let root = first.block_on(async { World::new(seed) });
    for life in 1..=LIVES {
        // Whatever of the gateway is at work when its runtime is dropped is gone, as by a SIGKILL.
        let runtime = runtime();
        time = runtime.block_on(live(&root, nature, time, life == LIVES));
    }
    let things = root.things();
    let records: Vec<_> = things.disk.values().map(|it| (**it).clone()).collect();
    let mut verdict = history::judge(
        &things.history,
        &records,
        &things.executions,
        nature.recovery,
    );
    if !things.clock_was_wrong {
        let absences = &things.absences;
        history::judge_resumption(&records, &things.executions, absences, &mut verdict);
    }
    Run {
        verdict,
        trace: trace(&things.history, &things.executions, &records),
        accepted: things.history.accepted().len(),
        kills: things.kills,
        records,
    }
}

/// One line for each thing that happened.
fn trace(history: &History, executions: &[Execution], records: &[Operation]) -> String {
    let lines = |it: Vec<String>| it.join("\n");
    let asks = history.asks.iter().map(|ask| format!("{ask:?}"));
    let shown = history.shown.iter().map(|it| format!("{it:?}"));
    let done = executions.iter().map(|execution| format!("{execution:?}"));
    let ends = records.iter().map(|record| {
        let (rev, calls, fault) = (record.revision.0, record.calls, &record.fault);
        format!(
            "{} {:?} rev {rev} calls {calls} {fault:?}",
            record.seq, record.phase
        )
    });
    lines(asks.chain(shown).chain(done).chain(ends).collect())
}

/// One life of the gateway. Returns the time at which the next one may begin.
async fn live(root: &World, nature: Nature, begins: Duration, last: bool) -> Duration {
    // The wall clock of a life may be wrong, by up to an hour.
    let wall_is_late = root.chance(|root| match root.below(4) {
        0 => root.millis(3_600_000),
        _ => Duration::ZERO,
    });
    root.things().clock_was_wrong |= wall_is_late > Duration::ZERO;
    let world = root.next_life(begins, wall_is_late);
    let life = root.chance(|root| Duration::from_millis(1) + root.millis(180_000));
    {
        let mut things = world.things();
        things.calm = last;
        let steps = things.chance.below(400);
        let by_step = things.chance.per_mille(700);
        things.steps_to_live = (by_step && !last).then_some(steps);
    }
    let work = async {
        let Some(room) = open(&world, nature).await else {
            return;
        };
        let tasks = Tasks::default();
        if last {
            settle_down(&room, &world).await;
        } else {
            clients(&room, &world, &tasks);
            room.failed().given().await;
        }
    };
    let limit = if last { LAST_LIFE } else { life };
    tokio::select! {
        biased;
        () = world.kill.notified() => {}
        () = work => {}
        () = tokio::time::sleep(limit) => {}
    }
    let away = root.chance(|root| match root.below(3) {
        0 => root.millis(900_000),
        _ => root.millis(2000),
    });
    let ended = world.time();
    root.things().absences.push((ended, ended + away));
    ended + away
}

async fn open(world: &World, nature: Nature) -> Option<Arc<Operations>> {
    let mut config = Config::with_store(PathBuf::from("simulated"));
    config.queue_per_vm = 4;
    let handle = BackendHandle {
        name: testing::backend("one"),
        adapter: Arc::new(SimBackend::new(world.clone(), nature)),
        concurrency: 2,
    };
    let shared = Shared {
        clock: Arc::new(world.clone()),
        metrics: Metrics::new().unwrap(),
        tasks: Tasks::default(),
    };
    let store = Arc::new(SimStore::new(world.clone()));
    let opened = Operations::over(config, vec![handle], store, shared).await;
    opened.ok()
}

/// Sets clients to ask and to look.
fn clients(room: &Arc<Operations>, world: &World, tasks: &Tasks) {
    let asks = world.chance(|world| 2 + world.below(6));
    for _ in 0..asks {
        let (room, world) = (Arc::clone(room), world.clone());
        tasks.spawn(async move {
            tokio::time::sleep(world.chance(|world| world.millis(60_000))).await;
            ask(&room, &world).await;
        });
    }
    // Several writers who hold one version, at the same moment.
    let (begin, intent) = world.chance(|world| (world.millis(60_000), world.below(3)));
    for _ in 0..3 {
        let (room, world) = (Arc::clone(room), world.clone());
        tasks.spawn(async move {
            tokio::time::sleep(begin).await;
            let vm = format!("vm-{intent}");
            let is_update = world.chance(|world| world.per_mille(700));
            let change = if is_update {
                testing::update
            } else {
                testing::delete
            };
            ask_on_condition(&room, &world, change(&vm, "b-0"), false).await;
        });
    }
    for _ in 0..2 {
        let (room, world) = (Arc::clone(room), world.clone());
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(world.chance(|world| world.millis(8000))).await;
                look(&room, &world).await;
            }
        });
    }
}

fn intent(world: &World) -> Intent {
    let (vm, backup, verb) =
        world.chance(|world| (world.below(3), world.below(2), world.below(100)));
    let (vm, backup) = (format!("vm-{vm}"), format!("b-{backup}"));
    match verb {
        0..15 => testing::delete(&vm, &backup),
        15..40 => testing::update(&vm, &backup),
        _ => testing::restore(&vm, &backup),
    }
}

/// One request; some carry a key, and some are the repetition of one whose answer was lost.
async fn ask(room: &Arc<Operations>, world: &World) {
    let key = world.chance(|world| world.per_mille(400).then(|| world.below(8)));
    let intent = match key {
        // The same key is the same request.
        Some(key) => testing::restore(&format!("vm-{}", key % 3), "b-0"),
        None => intent(world),
    };
    let (on_condition, holds) = world.chance(|world| (world.per_mille(300), world.per_mille(500)));
    if key.is_none() && on_condition {
        return ask_on_condition(room, world, intent, holds).await;
    }
    let seq = room.reserve();
    let mut submission = testing::submission(seq, intent.clone());
    submission.idempotency = key.map(|key| testing::idempotency(&format!("k-{key}"), 1));
    submit(room, world, submission, key).await;
}

/// One request that is meant for one version of its backup: the one that is there, or one that was read before.
async fn ask_on_condition(room: &Arc<Operations>, world: &World, intent: Intent, holds: bool) {
    let on = testing::backend("one");
    let seen = room.known_changes(&on, &intent.target.vm);
    let by = world.deadline(Duration::from_secs(60));
    let Ok(backup) = room.backup(&on, &intent.target, by).await else {
        return;
    };
    let found = Version::of_backup(&backup);
    let held = world.things().held.insert(intent.target.clone(), found);
    if holds && held.is_some_and(|held| held != found) {
        return;
    }
    let mut submission = testing::submission(room.reserve(), intent);
    submission.preconditions = vec![Precondition::BackupUnchanged(found)];
    submission.seen = seen;
    submit(room, world, submission, None).await;
}

async fn submit(room: &Arc<Operations>, world: &World, submission: Submission, key: Option<u64>) {
    let seq = submission.seq;
    let place = {
        let mut things = world.things();
        let asked = things.history.place();
        things.history.asks.push(Ask {
            seq,
            key,
            asked,
            answer: None,
        });
        things.history.asks.len() - 1
    };
    let permit = testing::permit(&submission.intent, "one");
    let answer = room.accept(permit, submission).await;
    let mut things = world.things();
    let here = things.history.place();
    things.history.asks[place].answer = Some(match answer {
        Ok(accepted) => Answer::Accepted(accepted.operation().seq, here),
        Err(AcceptError::Store(StoreFault::Failed)) => Answer::Failed,
        Err(_) => Answer::Refused,
    });
}

/// Looks at the Status of one operation that got its 202, now or after its next change.
async fn look(room: &Arc<Operations>, world: &World) {
    let known: Vec<OperationSeq> = world.things().history.accepted().into_keys().collect();
    if known.is_empty() {
        return;
    }
    let (which, waits) = world.chance(|world| (world.index(known.len()), world.per_mille(200)));
    let seq = known[which];
    let seen = if waits {
        let by = world.deadline(Duration::from_secs(5));
        room.wait(seq, WaitFor::End, by).await
    } else {
        room.operation(seq).await
    };
    if let Ok(seen) = seen {
        note(world, seq, seen.as_deref());
    }
}

fn note(world: &World, seq: OperationSeq, seen: Option<&Operation>) {
    let at = world.time();
    let revision = seen.map(|it| (it.revision.0, it.progress.percent(), it.phase));
    let broken = seen.and_then(|it| machine::check_invariants(it).err());
    assert_eq!(broken, None, "{seq} is a record that the machine can make");
    let mut things = world.things();
    things.history.shown.push(Shown { seq, at, revision });
}

/// Waits in calm times until all is final, then looks at everything once more.
async fn settle_down(room: &Arc<Operations>, world: &World) {
    let unfinished = || {
        let things = world.things();
        things.disk.values().any(|it| !it.phase.is_final())
    };
    while unfinished() {
        look(room, world).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let known: Vec<OperationSeq> = world.things().history.accepted().into_keys().collect();
    for seq in known {
        if let Ok(seen) = room.operation(seq).await {
            note(world, seq, seen.as_deref());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how a developer replays a seed")]
fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Straight to the terminal: the test runner swallows what passing tests print.
pub(super) fn say(line: &str) {
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}

/// Runs a seed; a panic within it is told with its number too.
fn judged(seed: u64, nature: Nature) -> Run {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, nature)));
    let replay = format!("replay: SNAPGATE_SIM_SEED={seed} cargo test --lib simulation");
    let run = result.unwrap_or_else(|_| panic!("seed {seed} panicked; {replay}"));
    assert!(
        run.verdict.is_clean(),
        "seed {seed}, {nature:?}: {:#?}\n{replay}",
        run.verdict
    );
    run
}

#[test]
fn every_seed_keeps_the_promise() {
    if let Some(seed) = number_from("SNAPGATE_SIM_SEED") {
        let replayed = run(seed, drawn(seed));
        say(&format!("{}\n{:#?}\n", replayed.trace, replayed.verdict));
        assert!(replayed.verdict.is_clean(), "seed {seed}");
        return;
    }
    let seeds = number_from("SNAPGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let (mut accepted, mut kills, mut refused) = (0, 0, 0);
    let mut ends = std::collections::BTreeMap::<_, usize>::new();
    for seed in 0..seeds {
        let run = judged(seed, drawn(seed));
        accepted += run.accepted;
        kills += run.kills;
        for it in &run.records {
            let kind = it.fault.as_ref().map(|fault| fault.kind);
            refused += usize::from(kind == Some(FaultKind::PreconditionFailed));
            *ends.entry(it.phase.as_str()).or_default() += 1;
        }
    }
    say(&format!(
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
        let (one, other) = (run(seed, drawn(seed)), run(seed, drawn(seed)));
        assert_eq!(one.trace, other.trace, "seed {seed}");
    }
}

/// Counts what the checker finds in some seeds of a nature that is a lie.
fn caught(lie: impl Fn(&mut Nature)) -> (usize, usize) {
    let (mut run_twice, mut untrue) = (0, 0);
    for seed in 0..90 {
        let mut nature = drawn(seed);
        lie(&mut nature);
        let verdict = run(seed, nature).verdict;
        run_twice += verdict.run_twice.len();
        untrue += verdict.untrue.len();
    }
    (run_twice, untrue)
}

#[test]
fn the_naive_control_is_caught() {
    // What a simple durable retry does: on restart it calls again, and the VM manager knows nothing of the first call.
    let (run_twice, _) = caught(|it| {
        it.recovery = Recovery::NoTrace;
        it.declared = Recovery::ReplaySafe;
    });
    say(&format!(
        "simulation: naive control ran {run_twice} operations twice\n"
    ));
    assert!(run_twice >= 10, "retry on restart runs twice: {run_twice}");
}

#[test]
fn preconditions_that_are_not_looked_at_are_caught() {
    let mut against = 0;
    for seed in 0..60 {
        let mut nature = drawn(seed);
        nature.blind = true;
        against += run(seed, nature).verdict.against_condition.len();
    }
    say(&format!(
        "simulation: control with blind preconditions changed {against} backups against them\n"
    ));
    assert!(against >= 10, "changed against the condition: {against}");
}

#[test]
fn a_settle_time_that_is_too_short_is_caught() {
    let (_, untrue) = caught(|it| {
        it.recovery = Recovery::Listable;
        it.declared = Recovery::Listable;
        it.settle = Duration::ZERO;
    });
    say(&format!(
        "simulation: control without settle time told {untrue} lies\n"
    ));
    assert!(untrue >= 5, "executed after it was called off: {untrue}");
}
