//! Whole processes, killed: gateways die by SIGKILL at random and at named moments, the VM manager lives on, and a
//! judge who knows only HTTP answers and the VM manager's log says whether every promise was kept.

pub(crate) mod clients;
pub(crate) mod history;
pub(crate) mod simulated_vmm;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::require_etcd;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::kill::clients::World;
use crate::kill::history::Verdict;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::kill::simulated_vmm::Fate;
use crate::kill::simulated_vmm::Point;
use crate::prng::Prng;

/// Gateways of each class that are started and killed, unless `SNAPGATE_KILL_LIVES` says otherwise.
const LIVES: u64 = 120;
/// One of so many of them is started on etcd: each of those waits for the end of the lease of the one before.
const LIVES_ON_ETCD: u64 = 5;
/// The same for the controls, which need few to be caught.
const LIVES_OF_CONTROLS: u64 = 24;
const CLIENTS: u64 = 8;
/// How long a named moment is waited for.
const MOMENT: Duration = Duration::from_millis(700);
/// A call is carried out so late at most, whatever became of the gateway that made it.
const DELAY: Duration = Duration::from_millis(30);
/// Far beyond `DELAY`, so that a busy machine does not make the fake VM manager break its word.
const SETTLE: &str = "400ms";

/// A class of VM manager, and how the gateway is configured for it.
#[derive(Clone, Copy, Debug)]
struct Class {
    name: &'static str,
    recovery: &'static str,
    settle: &'static str,
    once: bool,
    tasks: bool,
    delay: Duration,
    may_be_unknown: bool,
    /// Whether the operations are in etcd, and not in a file.
    on_etcd: bool,
    lives: u64,
}

const WITH_TASKS: &[Point] = &[
    Point::Accepted,
    Point::Answered,
    Point::Submitting,
    Point::Called,
    Point::CarriedOut,
    Point::Replied,
    Point::Polling,
    Point::Done,
];
/// Without tasks there is nothing to look at.
const WITHOUT_TASKS: &[Point] = &[
    Point::Accepted,
    Point::Answered,
    Point::Submitting,
    Point::Called,
    Point::CarriedOut,
    Point::Replied,
];

/// How it went.
#[derive(Debug)]
struct Outcome {
    class: Class,
    /// How often the gateway died at each named moment.
    points: BTreeMap<Point, u64>,
    verdict: Verdict,
    took: Duration,
}

impl Class {
    const fn points(&self) -> &'static [Point] {
        if self.tasks {
            WITH_TASKS
        } else {
            WITHOUT_TASKS
        }
    }

    fn config(&self, socket: &Path, etcd: Option<&EtcdBed>) -> String {
        let (store, etcd) = match etcd {
            None => ("operations.db", String::new()),
            Some(etcd) => (
                "etcd",
                format!("[etcd]\nendpoints = {}\nlease = \"4s\"", etcd.toml()),
            ),
        };
        format!(
            r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "{store}"
operator_file = "snapgate.operator"
poll_min = "10ms"
poll_max = "50ms"
{etcd}
[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
concurrency = 8
[backend.sim]
simulator = "unix:{}"
recovery = "{}"
settle = "{}"
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "update", "restore"]
vms = ["*"]
[log]
level = "off"
access = false
audit = "audit.log"
"#,
            socket.display(),
            self.recovery,
            self.settle
        )
    }

    /// Kills gateways, then lets one live to finish everything, and judges.
    fn run(self) -> Outcome {
        let begun = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vmm");
        let config = folder.path().join("snapgate.toml");
        let etcd = self.on_etcd.then(|| EtcdBed::start(1));
        fs::write(&config, self.config(&socket, etcd.as_ref())).unwrap();
        let vmm = FakeVmm::start(&Behaviour {
            socket,
            once: self.once,
            tasks: self.tasks,
            delay: self.delay,
        });
        let world = Arc::new(World::default());
        let clients = clients::start(&world, CLIENTS);
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        let mut prng = Prng::new(self.lives);
        let mut points = BTreeMap::new();
        for life in 0..self.lives {
            // Every other one at random, the rest at each moment in turn.
            let at = usize::try_from(life / 2).unwrap() % self.points().len();
            let point = Some(self.points()[at]).filter(|_| life % 2 == 0);
            if let Some(point) = one_life(&arguments, &vmm, &world, point, &mut prng) {
                *points.entry(point).or_default() += 1;
            }
        }
        let last = Process::start(&arguments);
        *world.gateways.lock().unwrap() = vec![last.api];
        let accepted = clients::finish(&world, clients);
        Outcome {
            class: self,
            points,
            verdict: history::judge(&accepted, &vmm.executions(), self.may_be_unknown),
            took: begun.elapsed(),
        }
    }
}

/// One gateway from its start to its SIGKILL. Says at which named moment it died, if at one.
fn one_life(
    arguments: &[&str],
    vmm: &FakeVmm,
    world: &World,
    point: Option<Point>,
    prng: &mut Prng,
) -> Option<Point> {
    let born = |pid| match point {
        Some(Point::Answered) => *world.victim.lock().unwrap() = Some(pid),
        Some(point) => vmm.arm(pid, point, Fate::Killed),
        None => {}
    };
    let mut process = Process::launch(arguments, born);
    let random = Duration::from_millis(20 + prng.below(500));
    let died = match &mut process {
        Ok(process) => {
            *world.gateways.lock().unwrap() = vec![process.api];
            process.ends_within(point.map_or(random, |_| MOMENT))
        }
        Err(_) => true,
    };
    // The number of a process that is gone must not be killed.
    let spared = world.victim.lock().unwrap().take().is_some();
    let by_vmm = vmm.disarm();
    world.gateways.lock().unwrap().clear();
    drop(process);
    let at_moment = match point {
        Some(Point::Answered) => !spared,
        Some(_) => by_vmm,
        None => false,
    };
    assert!(
        !died || at_moment,
        "it dies of nothing but SIGKILL: {point:?}"
    );
    point.filter(|_| at_moment)
}

impl Outcome {
    /// Straight to the terminal: the test runner swallows what passing tests print.
    fn print(&self) {
        let verdict = &self.verdict;
        let named: u64 = self.points.values().sum();
        let least = self.points.values().min().copied().unwrap_or_default();
        let line = format!(
            "kill test, {}: {} lives ({named} ended at a named moment, each of {} at least {least} times), {} 202s, lost {}, never finished {}, \
             run twice {}, untrue {}, unannounced {}; ends: {} succeeded, {} failed, {} not executed, {} UNKNOWN; {:.0?}\n",
            self.class.name,
            self.class.lives,
            self.points.len(),
            verdict.accepted,
            verdict.lost,
            verdict.unfinished,
            verdict.run_twice,
            verdict.untrue,
            verdict.unannounced,
            verdict.succeeded,
            verdict.failed,
            verdict.not_executed,
            verdict.unknown,
            self.took
        );
        std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
    }
}

fn lives() -> u64 {
    let lives = std::env::var("SNAPGATE_KILL_LIVES");
    lives.map_or(LIVES, |lives| lives.parse().unwrap())
}

#[apply(test)]
fn nothing_accepted_is_lost_run_twice_or_lied_about() {
    let class = Class {
        name: "replay-safe",
        recovery: "replay-safe",
        settle: "0s",
        once: true,
        tasks: true,
        delay: DELAY,
        may_be_unknown: false,
        on_etcd: false,
        lives: lives(),
    };
    let listable = Class {
        name: "listable",
        recovery: "listable",
        settle: SETTLE,
        once: false,
        ..class
    };
    let no_trace = Class {
        name: "no trace",
        recovery: "no-trace",
        once: false,
        tasks: false,
        may_be_unknown: true,
        ..class
    };
    // What a simple durable retry does: it calls again after a restart, and the VM manager carries it out.
    let retry = Class {
        name: "control, retry on restart",
        once: false,
        lives: LIVES_OF_CONTROLS,
        ..class
    };
    // Looks into the log before what was sent last can be there.
    let hasty = Class {
        name: "control, settle time too short",
        settle: "0s",
        delay: Duration::from_millis(800),
        lives: LIVES_OF_CONTROLS,
        ..listable
    };
    let running = [class, listable, no_trace, retry, hasty].map(|class| {
        std::thread::Builder::new()
            .name(class.name.to_owned())
            .spawn(move || class.run())
            .unwrap()
    });
    let outcomes = running.map(|running| running.join().unwrap());
    outcomes.iter().for_each(Outcome::print);
    let [classes @ .., retry, hasty] = &outcomes;
    for outcome in classes {
        let (name, verdict) = (outcome.class.name, &outcome.verdict);
        assert_eq!(verdict.wrong(), 0, "{name}: {verdict:#?}");
        assert!(
            verdict.accepted >= outcome.class.lives,
            "{name}: the clients got something done: {verdict:?}"
        );
        for point in outcome.class.points() {
            assert!(
                outcome.points.contains_key(point) || outcome.class.lives < LIVES,
                "{name}: no gateway died at {point:?}: {:?}",
                outcome.points
            );
        }
    }
    assert!(
        classes[2].verdict.unknown > 0,
        "without a trace some outcomes must be unknown: {:?}",
        classes[2].verdict
    );
    assert!(
        retry.verdict.run_twice > 0,
        "a gateway that repeats calls blindly is caught: {:?}",
        retry.verdict
    );
    assert!(
        hasty.verdict.untrue > 0,
        "a gateway that looks too early is caught: {:?}",
        hasty.verdict
    );
}

#[apply(test)]
fn nothing_accepted_is_lost_run_twice_or_lied_about_on_etcd() {
    require_etcd();
    let class = Class {
        name: "listable, on etcd",
        recovery: "listable",
        settle: SETTLE,
        once: false,
        tasks: true,
        delay: DELAY,
        may_be_unknown: false,
        on_etcd: true,
        lives: lives() / LIVES_ON_ETCD,
    };
    let outcome = class.run();
    outcome.print();
    let verdict = &outcome.verdict;
    assert_eq!(verdict.wrong(), 0, "{verdict:#?}");
    assert!(
        verdict.accepted >= class.lives,
        "the clients got something done: {verdict:?}"
    );
    assert!(
        outcome.points.len() > class.points().len() / 2 || lives() < LIVES,
        "gateways died at named moments: {:?}",
        outcome.points
    );
}

/// The process in which the VM manager lives is this program, run with this test alone.
#[apply(test)]
fn a_fake_vm_manager() {
    if !simulated_vmm::run_if_requested() {
        simulated_vmm::check_behaviour();
    }
}
