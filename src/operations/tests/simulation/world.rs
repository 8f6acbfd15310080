//! What outlives every gateway of a simulation: time, chance, the disk of the store, the VM manager's work, the history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Notify;

use super::history::Execution;
use super::history::History;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Version;
use crate::operations::testing::NOW;
use crate::runtime::Clock;

/// Pseudo-random numbers, the same for the same seed: splitmix64.
#[derive(Clone, Debug)]
pub(in crate::operations::tests) struct Prng(u64);

impl Prng {
    pub(in crate::operations::tests) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(in crate::operations::tests) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below the bound.
    pub(in crate::operations::tests) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Below the bound, for places in a list.
    pub(in crate::operations::tests) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(u64::try_from(bound).unwrap())).unwrap()
    }

    /// True so many times in a thousand.
    pub(in crate::operations::tests) const fn per_mille(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    pub(in crate::operations::tests) const fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

/// What is behind the handle.
#[derive(Debug)]
pub(super) struct WorldState {
    pub prng: Prng,
    pub disk: BTreeMap<OperationSeq, Arc<Operation>>,
    pub beat: Option<Timestamp>,
    pub executions: Vec<Execution>,
    pub history: History,
    /// From when until when no gateway was running.
    pub absences: Vec<(Duration, Duration)>,
    /// Whether the wall clock of some life was wrong, so that gateways cannot measure absences.
    pub clock_was_wrong: bool,
    /// The version of each backup that a client has read, current or not.
    pub held: BTreeMap<Target, Version>,
    /// No faults from now on.
    pub calm: bool,
    /// How many places at which the gateway may be killed are left until it is.
    pub steps_to_live: Option<u64>,
    /// Kills so far at such a place.
    pub kills: usize,
    /// The gateway that leads, with several.
    pub leader: Option<LeaderState>,
    /// Terms so far.
    pub terms: u64,
    /// Writes of a term that was over, and that the store took.
    pub stale_writes: usize,
}

/// What etcd knows of the gateway that leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaderState {
    pub term: u64,
    /// When its lease ends unless it is renewed.
    pub expires: Duration,
}

/// What hinders one gateway.
#[derive(Debug, Default)]
pub(super) struct Hindrance {
    /// It was killed.
    pub is_dead: bool,
    /// It is stopped until then, as by SIGSTOP.
    pub paused_until: Duration,
    /// It does not reach the store until then.
    pub cut_until: Duration,
    /// It is stopped for so long right before its next call.
    pub pause_before_call: Option<Duration>,
    /// It is cut off for so long with its next write, which arrives at the end of that.
    pub late_write: Option<Duration>,
}

/// A handle to the world, for one life of the gateway. Time is that of the paused runtime, continued over the lives.
#[derive(Clone, Debug)]
pub(super) struct SimulatedWorld {
    state: Arc<Mutex<WorldState>>,
    before: Duration,
    origin: tokio::time::Instant,
    wall_is_late: Duration,
    pub kill: Arc<Notify>,
    hindrance: Arc<Mutex<Hindrance>>,
}

impl SimulatedWorld {
    pub(super) fn new(seed: u64) -> Self {
        let state = WorldState {
            prng: Prng::new(seed),
            disk: BTreeMap::new(),
            beat: None,
            executions: Vec::new(),
            history: History::default(),
            absences: Vec::new(),
            clock_was_wrong: false,
            held: BTreeMap::new(),
            calm: false,
            steps_to_live: None,
            kills: 0,
            leader: None,
            terms: 0,
            stale_writes: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            before: Duration::ZERO,
            origin: tokio::time::Instant::now(),
            wall_is_late: Duration::ZERO,
            kill: Arc::new(Notify::new()),
            hindrance: Arc::default(),
        }
    }

    /// The same world as one of several gateways sees it, at the same time.
    pub(super) fn next_gateway(&self, wall_is_late: Duration) -> Self {
        Self {
            wall_is_late,
            kill: Arc::new(Notify::new()),
            hindrance: Arc::default(),
            ..self.clone()
        }
    }

    pub(super) fn hindrance(&self) -> MutexGuard<'_, Hindrance> {
        self.hindrance.lock().unwrap()
    }

    /// Whether the process of the gateway goes on now.
    pub(super) fn is_running(&self) -> bool {
        let hindrance = self.hindrance();
        !hindrance.is_dead && self.time() >= hindrance.paused_until
    }

    /// Whether the store cannot be reached now.
    pub(super) fn is_cut_off(&self) -> bool {
        self.time() < self.hindrance().cut_until
    }

    /// Right before a call: the worst moment to be stopped.
    pub(super) async fn before_call(&self) {
        let now = self.time();
        {
            let mut hindrance = self.hindrance();
            if let Some(long) = hindrance.pause_before_call.take() {
                hindrance.paused_until = now + long;
            }
        }
        self.step().await;
    }

    /// With a write on its way: the worst moment to be cut off. Returns how late it arrives.
    pub(super) fn lateness(&self) -> Duration {
        let now = self.time();
        let mut hindrance = self.hindrance();
        let late = hindrance.late_write.take().unwrap_or_default();
        if !late.is_zero() {
            hindrance.cut_until = now + late;
        }
        late
    }

    /// Goes on only while the process does.
    async fn run(&self) {
        loop {
            let (is_dead, paused_until) = {
                let hindrance = self.hindrance();
                (hindrance.is_dead, hindrance.paused_until)
            };
            if is_dead {
                std::future::pending::<()>().await;
            }
            let left = paused_until.saturating_sub(self.time());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// The same world for the next life, which begins after that time. To be called on its runtime.
    pub(super) fn next_life(&self, before: Duration, wall_is_late: Duration) -> Self {
        Self {
            state: Arc::clone(&self.state),
            before,
            origin: tokio::time::Instant::now(),
            wall_is_late,
            kill: Arc::new(Notify::new()),
            hindrance: Arc::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap()
    }

    /// The time that never jumps.
    pub(super) fn time(&self) -> Duration {
        self.before + self.origin.elapsed()
    }

    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut Prng) -> T) -> T {
        draw(&mut self.state().prng)
    }

    /// Whether a fault occurs here, this many times in a thousand; never in calm times.
    pub(super) fn fault(&self, per_mille: u64) -> bool {
        let mut state = self.state();
        !state.calm && state.prng.per_mille(per_mille)
    }

    /// A place at which the gateway may be killed: then this never returns, and nothing of it goes on.
    pub(super) async fn step(&self) {
        let killed = {
            let mut state = self.state();
            let left = state.steps_to_live;
            state.steps_to_live = left.and_then(|steps| steps.checked_sub(1));
            if left == Some(0) {
                state.kills += 1;
            }
            left == Some(0)
        };
        if killed {
            self.kill.notify_one();
            std::future::pending::<()>().await;
        }
        self.run().await;
    }

    /// A short pause, now and then a long one, so that concurrent work overtakes.
    pub(super) async fn delay(&self) {
        let wait = self.draw(|prng| match prng.below(40) {
            0 => prng.millis(20_000),
            1..5 => prng.millis(1000),
            5..20 => prng.millis(20),
            _ => Duration::ZERO,
        });
        tokio::time::sleep(wait).await;
    }
}

impl Clock for SimulatedWorld {
    fn now(&self) -> Timestamp {
        NOW.plus(self.time()).minus(self.wall_is_late)
    }

    fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn since_boot(&self) -> Duration {
        self.time()
    }
}
