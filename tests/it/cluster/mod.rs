//! Several gateways on one etcd, as whole processes: one dies, hangs or is asked to step down, another one takes over, and the judge of
//! `kill/` says whether every promise was kept.

mod clocks;
mod etcd_access;
pub(crate) mod etcd_bed;
mod etcd_faults;
mod gateways;
mod handing_on;
mod line;
mod rolling;
mod store_copy;
mod tokens;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::gateways::is_active;
use crate::cluster::line::Line;
use crate::harness::eventually;
use crate::kill::clients;
use crate::kill::clients::World;
use crate::kill::history;
use crate::kill::history::Verdict;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::kill::simulated_vmm::Fate;
use crate::kill::simulated_vmm::Point;
use crate::prng::Prng;
use crate::requirements::require_programs;

/// Active gateways of each class that die or hang, unless `SNAPGATE_CLUSTER_LIVES` says otherwise.
const LIVES: u64 = 8;
const CLIENTS: u64 = 6;
/// Seconds. Shorter than the default, so that many lives fit in a test.
const LEASE: u64 = 3;
/// What is promised: another gateway is active within the lease and this.
const BEYOND_LEASE: Duration = Duration::from_secs(2);
/// How long a named moment is waited for.
const MOMENT: Duration = Duration::from_millis(700);
/// A call is carried out so late at most.
const DELAY: Duration = Duration::from_millis(30);

/// What becomes of active gateways, in front of which kind of VM manager.
#[derive(Clone, Copy, Debug)]
struct Class {
    name: &'static str,
    fate: Fate,
    recovery: &'static str,
    settle: &'static str,
    once: bool,
    points: &'static [Point],
    /// Whether gateways on standby hand requests on.
    peers: bool,
    victim: Victim,
}

/// What is killed or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The active gateway.
    Gateway,
    /// The line between it and etcd.
    Line,
}

const KILLED: Class = Class {
    name: "SIGKILL, listable",
    fate: Fate::Killed,
    recovery: "listable",
    settle: "400ms",
    once: false,
    points: &[
        Point::Accepted,
        Point::Submitting,
        Point::Called,
        Point::CarriedOut,
        Point::Replied,
        Point::Polling,
        Point::Done,
    ],
    peers: false,
    victim: Victim::Gateway,
};
const KILLED_REPLAY_SAFE: Class = Class {
    name: "SIGKILL, replay-safe",
    recovery: "replay-safe",
    settle: "0s",
    once: true,
    peers: true,
    ..KILLED
};
/// The moments at which a gateway that goes on later would do harm: before the call, and with an answer that it has not recorded.
const STOPPED: Class = Class {
    name: "SIGSTOP beyond the lease, then SIGCONT, listable",
    fate: Fate::Stopped,
    points: &[
        Point::Read,
        Point::Called,
        Point::CarriedOut,
        Point::Replied,
    ],
    ..KILLED
};
/// The gateway goes on without etcd, and may call the VM manager until its lease is over.
const CUT_OFF: Class = Class {
    name: "cut off from etcd beyond the lease, listable",
    victim: Victim::Line,
    peers: true,
    ..STOPPED
};

/// How it went.
#[derive(Debug)]
struct Outcome {
    verdict: Verdict,
    moments: BTreeMap<Point, u64>,
    adoptions: Vec<Duration>,
}

pub(crate) fn require_etcd() {
    require_programs(&["etcd", "etcdctl", "openssl", "python3"]);
}

fn lives() -> u64 {
    let lives = std::env::var("SNAPGATE_CLUSTER_LIVES");
    lives.map_or(LIVES, |lives| lives.parse().unwrap())
}

impl Class {
    fn run(self, lives: u64) -> Outcome {
        let etcd = EtcdBed::start(3);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vmm");
        let vmm = FakeVmm::start(&Behaviour {
            socket: socket.clone(),
            once: self.once,
            tasks: true,
            delay: DELAY,
        });
        let setup = Setup {
            recovery: self.recovery,
            settle: self.settle,
            lease: LEASE,
            simulator: &socket,
            peers: self.peers,
            clocks: false,
        };
        let lines: Vec<Line> = (0..3).map(|_| Line::start(&etcd.endpoints)).collect();
        let endpoints = |number: usize| lines[number].toml();
        let mut gateways = Gateways::start_with(3, &endpoints, setup, &|_| String::new());
        let world = Arc::new(World {
            patience: Duration::from_secs(7),
            is_conditional: true,
            ..World::default()
        });
        *world.gateways.lock().unwrap() = gateways.addresses();
        let clients = clients::start(&world, CLIENTS);
        let mut prng = Prng::new(lives);
        let mut moments = BTreeMap::new();
        let mut adoptions = Vec::new();
        for life in 0..lives {
            let at = usize::try_from(life / 2).unwrap() % self.points.len();
            let point = Some(self.points[at]).filter(|_| life % 2 == 0);
            let (point, adopted) = self.one_life(&mut gateways, &lines, &vmm, point, &mut prng);
            if let Some(point) = point {
                *moments.entry(point).or_default() += 1;
            }
            adoptions.push(adopted);
            *world.gateways.lock().unwrap() = gateways.addresses();
        }
        let accepted = clients::finish(&world, clients);
        let verdict = history::judge(&accepted, &vmm.executions(), false);
        assert_eq!(
            verdict.wrong(),
            0,
            "{self:?}: {verdict:#?}\n{}",
            gateways.logs()
        );
        Outcome {
            verdict,
            moments,
            adoptions,
        }
    }

    /// The active gateway dies or hangs, and another one takes over. Returns the moment, if it was a named one, and the time until then.
    fn one_life(
        self,
        gateways: &mut Gateways,
        lines: &[Line],
        vmm: &FakeVmm,
        point: Option<Point>,
        prng: &mut Prng,
    ) -> (Option<Point>, Duration) {
        let active = gateways.active();
        std::thread::sleep(Duration::from_millis(prng.below(1500)));
        let line = &lines[active];
        let pid = match self.victim {
            Victim::Gateway => gateways.get(active).pid(),
            Victim::Line => line.pid(),
        };
        if let Some(point) = point {
            vmm.arm(pid, point, self.fate);
            std::thread::sleep(MOMENT);
        }
        let at_moment = vmm.disarm();
        match (self.fate, self.victim) {
            (Fate::Killed, _) => gateways.running[active] = None,
            (Fate::Stopped, Victim::Gateway) => gateways.get(active).signal("STOP"),
            (Fate::Stopped, Victim::Line) => line.cut(),
        }
        let (_, adopted) = gateways.active_besides(Some(active));
        if self.fate == Fate::Stopped {
            std::thread::sleep(Duration::from_millis(prng.below(500)));
        }
        match (self.fate, self.victim) {
            (Fate::Killed, _) => gateways.restart(active),
            (Fate::Stopped, Victim::Gateway) => gateways.get(active).signal("CONT"),
            (Fate::Stopped, Victim::Line) => line.mend(),
        }
        if self.fate == Fate::Stopped {
            gateways.wait_until_on_standby(active);
        }
        (point.filter(|_| at_moment), adopted)
    }
}

impl Outcome {
    fn print(&self, name: &str) {
        let named: u64 = self.moments.values().sum();
        let mut times = self.adoptions.clone();
        times.sort();
        let lives = format!(
            "{} lives ({named} ended at a named moment), lease {LEASE} s, adopted after {:.1?} (median), {:.1?} (longest)",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1],
        );
        print_verdict(name, &lives, &self.verdict);
    }
}

/// Straight to the terminal: the test runner swallows what passing tests print.
fn print_verdict(name: &str, lives: &str, verdict: &Verdict) {
    let line = format!(
        "cluster test, {name}: {lives}; {} 202s, lost {}, never finished {}, run twice {}, untrue {}, unannounced {}; \
         ends: {} succeeded, {} failed, {} not executed, {} UNKNOWN\n",
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
    );
    std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
}

fn check(class: Class) {
    require_etcd();
    let outcome = class.run(lives());
    outcome.print(class.name);
    let most = Duration::from_secs(LEASE) + BEYOND_LEASE;
    for adopted in &outcome.adoptions {
        assert!(
            *adopted <= most,
            "adopted within the lease and 2 s: {outcome:?}"
        );
    }
    assert!(
        outcome.verdict.accepted >= lives(),
        "something was done: {outcome:?}"
    );
}

#[apply(test)]
fn nothing_is_lost_run_twice_or_lied_about_when_the_active_gateway_is_killed() {
    check(KILLED);
}

#[apply(test)]
fn replay_safe_changes_are_finished_by_the_next_active_gateway() {
    check(KILLED_REPLAY_SAFE);
}

#[apply(test)]
fn a_gateway_that_wakes_up_after_its_lease_sends_nothing_more() {
    check(STOPPED);
}

#[apply(test)]
fn a_gateway_that_is_cut_off_from_etcd_is_replaced_and_sends_nothing_more() {
    check(CUT_OFF);
}

#[apply(test)]
fn one_gateway_is_active_and_the_others_say_so() {
    require_etcd();
    let etcd = EtcdBed::start(1);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vmm");
    let _vmm = FakeVmm::start(&Behaviour {
        socket: socket.clone(),
        once: true,
        tasks: true,
        delay: DELAY,
    });
    let setup = Setup {
        recovery: "replay-safe",
        settle: "0s",
        lease: 10,
        simulator: &socket,
        peers: false,
        clocks: false,
    };
    let mut gateways = Gateways::start(2, &etcd, setup);
    let active = gateways.active();
    let standby = 1 - active;
    let other = gateways.get(standby);
    let name = ["a", "b"][active];
    eventually("it says who is active", || {
        let ready = Client::bare(other.admin).get("/readyz");
        let text = String::from_utf8_lossy(&ready.body).into_owned();
        ready.status == 503 && text.contains(&format!("{name} is active"))
    });
    let refused = Client::new(other.api, "alice", "secret").get("/vms/1/backups/456");
    assert_eq!(refused.status, 503, "refused: {refused:?}");
    assert_eq!(refused.header("retry-after"), "1", "soon: {refused:?}");
    assert_eq!(refused.code(), "Standby", "its code: {refused:?}");
    let answered =
        Client::new(gateways.get(active).api, "alice", "secret").get("/vms/1/backups/456");
    assert_eq!(answered.status, 200, "the active one answers: {answered:?}");
    // A stop gives the leadership up: no wait for the end of the lease.
    let begun = Instant::now();
    let stopped = gateways.running[active].take().unwrap();
    stopped.signal("TERM");
    let (next, _) = gateways.active_besides(Some(active));
    assert_eq!(next, standby, "the other one");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "at once: {:?}",
        begun.elapsed()
    );
    assert_eq!(stopped.wait(), Some(0), "a clean end");
    assert!(is_active(gateways.get(standby)), "and stays it");
}
