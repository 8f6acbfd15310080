//! Several gateways in one simulated world: they are killed, stopped and cut off from the store, and take over from each other.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::backend::BackendBehavior;
use super::backend::SimBackend;
use super::behavior_of_seed;
use super::history;
use super::history::Verdict;
use super::number_from;
use super::print_line;
use super::record_status;
use super::runtime;
use super::send_conditional_request;
use super::send_request;
use super::store::SimStore;
use super::store::Term;
use super::trace;
use super::world::LeaderState;
use super::world::SimulatedWorld;
use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Recovery;
use crate::adapters::layers::Leased;
use crate::model::OperationSeq;
use crate::operations::BackendHandle;
use crate::operations::Config;
use crate::operations::Operations;
use crate::operations::OperationsApi;
use crate::operations::WaitFor;
use crate::operations::core::Shared;
use crate::operations::testing;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// Seeds in the normal test run.
const SEEDS: u64 = 500;
const GATEWAYS: usize = 3;
/// Times that a gateway is harmed in one seed.
const HARMS: usize = 12;
const LEASE: Duration = Duration::from_secs(10);
/// The part of the lease that its holder uses.
const USABLE: Duration = Duration::from_secs(8);
const RENEW_EVERY: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(250);
/// How long everything may take to end in calm times.
const CALM: Duration = Duration::from_secs(4 * 3600);

/// What the gateways of a run leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Nothing,
    /// The store takes writes of earlier terms. Revisions and the look for orphans repair nearly all of what that does, so they are
    /// counted where they arrive.
    Fence,
    /// The lease is not looked at before a call.
    LookBeforeCall,
}

/// One gateway as clients find it.
#[derive(Clone, Debug)]
struct Member {
    world: SimulatedWorld,
    /// What it runs, while it leads.
    term: Arc<Mutex<Option<Leading>>>,
}

/// What a gateway runs while it leads.
#[derive(Clone, Debug)]
struct Leading {
    operations: Arc<Operations>,
    lease: Lease,
}

/// The result of one seed.
#[derive(Debug)]
struct Run {
    verdict: Verdict,
    accepted: usize,
    terms: u64,
    stale_writes: usize,
    /// Everything that happened, as text.
    trace: String,
}

impl Member {
    fn new(root: &SimulatedWorld) -> Self {
        let wall_is_late = root.draw(|root| match root.below(4) {
            0 => root.millis(3_600_000),
            _ => Duration::ZERO,
        });
        Self {
            world: root.next_gateway(wall_is_late),
            term: Arc::default(),
        }
    }

    /// The operations, if it leads and its process goes on.
    fn leading(&self) -> Option<Leading> {
        let term = self.term.lock().unwrap().clone();
        term.filter(|term| self.world.is_running() && term.lease.is_held())
    }

    /// A request to etcd; whether it was answered.
    async fn ask(&self) -> bool {
        self.world.step().await;
        if self.world.is_cut_off() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.world.step().await;
            return false;
        }
        let delay = self.world.draw(|world| match world.below(20) {
            0 => world.millis(900),
            _ => world.millis(30),
        });
        tokio::time::sleep(delay).await;
        true
    }

    /// Leads whenever no other one does.
    async fn live(self, behavior: BackendBehavior, control: Control) {
        loop {
            let sent = self.world.time();
            if self.ask().await
                && let Some(number) = self.win()
            {
                // The answer takes its way back.
                self.world.step().await;
                let clock: Arc<dyn Clock> = Arc::new(self.world.clone());
                let lease = Lease::until(sent + USABLE, clock);
                self.lead(number, &lease, behavior, control).await;
                lease.end();
            }
            let pause = PAUSE + self.world.draw(|world| world.millis(500));
            tokio::time::sleep(pause).await;
        }
    }

    /// Makes the key of the leader, unless there is one. Returns the number of the term.
    fn win(&self) -> Option<u64> {
        let now = self.world.time();
        let mut state = self.world.state();
        if state.leader.is_some_and(|leader| now < leader.expires) {
            return None;
        }
        state.terms += 1;
        state.leader = Some(LeaderState {
            term: state.terms,
            expires: now + LEASE,
        });
        Some(state.terms)
    }

    /// Renews the lease until it is lost.
    async fn hold(&self, number: u64, lease: &Lease) {
        loop {
            let wait = lease.remaining().unwrap_or_default().min(RENEW_EVERY);
            tokio::time::sleep(wait).await;
            if !lease.is_held() {
                return;
            }
            let sent = self.world.time();
            if !self.ask().await {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let now = self.world.time();
            {
                let mut state = self.world.state();
                match &mut state.leader {
                    Some(leader) if leader.term == number && now < leader.expires => {
                        leader.expires = now + LEASE;
                    }
                    Some(_) | None => return,
                }
            }
            // The answer takes its way back.
            self.world.step().await;
            if lease.extend(sent + USABLE).is_err() {
                return;
            }
        }
    }

    async fn lead(&self, number: u64, lease: &Lease, behavior: BackendBehavior, control: Control) {
        let (stopper, lost) = stop_pair();
        let term = Term {
            number,
            lost,
            is_fenced: control != Control::Fence,
        };
        let tasks = Tasks::default();
        let work = async {
            let opened = self.open(term, lease, behavior, control, &tasks).await?;
            *self.term.lock().unwrap() = Some(Leading {
                operations: Arc::clone(&opened),
                lease: lease.clone(),
            });
            opened.failed().given().await;
            Some(())
        };
        tokio::select! {
            () = self.hold(number, lease) => {}
            _ended = work => {}
        }
        lease.end();
        stopper.stop();
        let term = self.term.lock().unwrap().take();
        if let Some(term) = term {
            // A store that it does not reach must not keep it from the next term.
            drop(tokio::time::timeout(LEASE, term.operations.stop()).await);
        }
    }

    async fn open(
        &self,
        term: Term,
        lease: &Lease,
        behavior: BackendBehavior,
        control: Control,
        tasks: &Tasks,
    ) -> Option<Arc<Operations>> {
        let mut config = Config::with_store(std::path::PathBuf::from("simulated"));
        config.queue_per_vm = 4;
        let looks = control != Control::LookBeforeCall;
        let adapter = SimBackend::new(
            self.world.clone(),
            BackendBehavior {
                looks_before_sending: looks,
                ..behavior
            },
        );
        let adapter: Arc<dyn Adapter> = Arc::new(adapter);
        let own = if looks {
            lease.clone()
        } else {
            Lease::unlimited()
        };
        let handle = BackendHandle {
            name: testing::backend("one"),
            adapter: Arc::new(Leased::new(adapter, own.clone())),
            concurrency: 2,
        };
        let shared = Shared {
            clock: Arc::new(self.world.clone()),
            metrics: Metrics::new().unwrap(),
            tasks: tasks.clone(),
            lease: own,
        };
        let store = Arc::new(SimStore::led(self.world.clone(), term));
        let opened = Operations::start_on(store, config, vec![handle], shared).await;
        opened.ok()
    }
}

/// The gateways of a run; a killed one is replaced by a new one in its place.
#[derive(Clone, Debug)]
struct Cluster(Arc<Mutex<Vec<Member>>>);

impl Cluster {
    fn members(&self) -> Vec<Member> {
        self.0.lock().unwrap().clone()
    }

    /// What one runs that leads, as far as it knows.
    fn leading(&self) -> Option<Leading> {
        self.members().iter().find_map(Member::leading)
    }

    /// Any one, and what it runs if it leads.
    fn drawn(&self, root: &SimulatedWorld) -> Option<(Member, Leading)> {
        let at = root.draw(|root| root.index(GATEWAYS));
        let member = self.members().swap_remove(at);
        let leading = member.leading()?;
        Some((member, leading))
    }
}

fn run(seed: u64, behavior: BackendBehavior, control: Control) -> Run {
    let runtime = runtime();
    let root = runtime.block_on(async {
        let root = SimulatedWorld::new(seed);
        run_cluster(&root, behavior, control).await;
        root
    });
    drop(runtime);
    let state = root.state();
    let records: Vec<_> = state
        .disk
        .values()
        .map(|record| (**record).clone())
        .collect();
    Run {
        verdict: history::judge(
            &state.history,
            &records,
            &state.executions,
            behavior.recovery,
        ),
        accepted: state.history.accepted().len(),
        terms: state.terms,
        stale_writes: state.stale_writes,
        trace: trace(&state.history, &state.executions, &records),
    }
}

async fn run_cluster(root: &SimulatedWorld, behavior: BackendBehavior, control: Control) {
    let tasks = Tasks::default();
    let members: Vec<Member> = (0..GATEWAYS).map(|_| Member::new(root)).collect();
    for member in &members {
        drop(tasks.spawn(member.clone().live(behavior, control)));
    }
    let cluster = Cluster(Arc::new(Mutex::new(members)));
    for number in 0..4 {
        drop(tasks.spawn(ask_and_read(root.clone(), cluster.clone(), number)));
    }
    for _ in 0..HARMS {
        let wait = root.draw(|root| Duration::from_secs(1) + root.millis(40_000));
        tokio::time::sleep(wait).await;
        harm(root, &cluster, &tasks, (behavior, control));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    // No more faults and requests, and everything that was begun ends.
    root.state().calm = true;
    for member in cluster.members() {
        let mut hindrance = member.world.hindrance();
        (hindrance.pause_before_call, hindrance.late_write) = (None, None);
    }
    let begun = root.time();
    while root.time() - begun < CALM {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let is_over = root
            .state()
            .disk
            .values()
            .all(|record| record.phase.is_final());
        let leading = cluster.leading();
        if let Some(Leading { operations, lease }) = leading.filter(|_| is_over) {
            let known: Vec<OperationSeq> = root.state().history.accepted().into_keys().collect();
            for seq in known {
                let seen = operations.operation(seq).await;
                if let Some(seen) = seen.ok().filter(|_| lease.is_held()) {
                    record_status(root, seq, seen.as_deref());
                }
            }
            return;
        }
    }
}

/// Kills, stops or cuts off a gateway, most of the time the one that leads.
fn harm(
    root: &SimulatedWorld,
    cluster: &Cluster,
    tasks: &Tasks,
    (behavior, control): (BackendBehavior, Control),
) {
    let (kind, at, any) =
        root.draw(|root| (root.below(5), root.index(GATEWAYS), root.per_mille(200)));
    let now = root.time();
    let long = root.draw(|root| root.millis(40_000));
    let very_long = root.draw(|root| 2 * LEASE + root.millis(120_000));
    let mut members = cluster.0.lock().unwrap();
    let leads = members.iter().position(|member| member.leading().is_some());
    let at = leads.filter(|_| !any).unwrap_or(at);
    let member = &mut members[at];
    match kind {
        0 => {
            member.world.hindrance().is_dead = true;
            *member = Member::new(root);
            let restarted = member.clone();
            let away = root.draw(|root| root.millis(20_000));
            drop(tasks.spawn(async move {
                tokio::time::sleep(away).await;
                restarted.live(behavior, control).await;
            }));
        }
        1 => member.world.hindrance().paused_until = now + long,
        2 => member.world.hindrance().cut_until = now + long,
        3 => member.world.hindrance().pause_before_call = Some(very_long),
        _ => member.world.hindrance().late_write = Some(very_long),
    }
}

/// A client that asks for changes and reads Statuses at any gateway, until times are calm.
async fn ask_and_read(root: SimulatedWorld, cluster: Cluster, number: u64) {
    while !root.state().calm {
        let wait = root.draw(|root| root.millis(6000));
        tokio::time::sleep(wait).await;
        let Some((member, Leading { operations, lease })) = cluster.drawn(&root) else {
            continue;
        };
        // A gateway that dies or hangs never answers: the client gives up and asks again later.
        let exchange = async {
            match root.draw(|root| root.below(4)) {
                0 => send_request(&operations, &member.world).await,
                1 if number == 0 => {
                    let intent = testing::update("vm-0", "b-0");
                    send_conditional_request(&operations, &member.world, intent, true).await;
                }
                _ => read(&member.world, &operations, &lease).await,
            }
        };
        drop(tokio::time::timeout(Duration::from_secs(30), exchange).await);
    }
}

/// Reads one Status; what a gateway says whose lease has ended meanwhile is not handed on.
async fn read(world: &SimulatedWorld, operations: &Arc<Operations>, lease: &Lease) {
    let known: Vec<OperationSeq> = world.state().history.accepted().into_keys().collect();
    if known.is_empty() {
        return;
    }
    let (at, waits) = world.draw(|world| (world.index(known.len()), world.per_mille(200)));
    let seq = known[at];
    let seen = if waits {
        let by = world.deadline(Duration::from_secs(5));
        operations.wait(seq, WaitFor::End, by).await
    } else {
        operations.operation(seq).await
    };
    if let Some(seen) = seen.ok().filter(|_| world.is_running() && lease.is_held()) {
        record_status(world, seq, seen.as_deref());
    }
}

#[test]
fn several_gateways_keep_the_promises_in_every_seed() {
    if let Some(seed) = number_from("SNAPGATE_SIM_SEED") {
        let replayed = run(seed, behavior_of_seed(seed), Control::Nothing);
        print_line(&format!("{}\n{:#?}\n", replayed.trace, replayed.verdict));
        assert!(replayed.verdict.is_clean(), "seed {seed}");
        return;
    }
    let seeds = number_from("SNAPGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let (mut accepted, mut terms) = (0, 0);
    for seed in 0..seeds {
        let run = run(seed, behavior_of_seed(seed), Control::Nothing);
        assert!(
            run.verdict.is_clean() && run.stale_writes == 0,
            "seed {seed}: {:#?}\nreplay: SNAPGATE_SIM_SEED={seed} cargo test --lib simulation::cluster",
            run.verdict
        );
        accepted += run.accepted;
        terms += run.terms;
    }
    print_line(&format!(
        "simulation of {GATEWAYS} gateways: {seeds} seeds, {terms} terms, {accepted} accepted, 0 lost, 0 run twice, 0 untrue\n"
    ));
    if seeds >= SEEDS {
        assert!(terms > 3 * seeds, "they take over from each other: {terms}");
    }
}

/// Counts the seeds in which the checker finds something when the gateways leave this out.
fn caught(control: Control) -> usize {
    let is_caught = |seed: &u64| {
        let behavior = BackendBehavior {
            recovery: Recovery::Listable,
            declared_recovery: Recovery::Listable,
            ..behavior_of_seed(*seed)
        };
        let run = run(*seed, behavior, control);
        !run.verdict.is_clean() || run.stale_writes > 0
    };
    (0..90).filter(is_caught).count()
}

#[test]
fn gateways_that_do_not_look_at_the_lease_are_caught() {
    let caught = caught(Control::LookBeforeCall);
    print_line(&format!(
        "simulation: control without a look at the lease was caught in {caught} of 90 seeds\n"
    ));
    assert!(caught >= 5, "caught: {caught}");
}

#[test]
fn a_store_without_a_fence_is_caught() {
    let caught = caught(Control::Fence);
    print_line(&format!(
        "simulation: control without a fence was caught in {caught} of 90 seeds\n"
    ));
    assert!(caught >= 5, "caught: {caught}");
}
