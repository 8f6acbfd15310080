//! What becomes of gateways when etcd members die or hang, when there is no majority, and when etcd is full.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::client::Client;
use crate::cluster::DELAY;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::lives;
use crate::cluster::print_verdict;
use crate::cluster::require_etcd;
use crate::harness::eventually;
use crate::kill::clients;
use crate::kill::clients::World;
use crate::kill::history;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::prng::Prng;
use crate::requirements::require_programs;
use crate::requirements::require_root;

/// Seconds. Longer than the election of an etcd leader.
const LEASE: u64 = 5;

struct Bed {
    gateways: Gateways,
    etcd: EtcdBed,
    vmm: FakeVmm,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn start(gateways: usize, variables: &[(&str, &str)]) -> Self {
        require_etcd();
        let etcd = EtcdBed::start_with(3, variables);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vmm");
        let vmm = FakeVmm::start(&Behaviour {
            socket: socket.clone(),
            once: false,
            tasks: true,
            delay: DELAY,
        });
        let setup = Setup {
            recovery: "listable",
            settle: "400ms",
            lease: LEASE,
            simulator: &socket,
            peers: true,
            clocks: false,
        };
        Self {
            gateways: Gateways::start(gateways, &etcd, setup),
            etcd,
            vmm,
            _folder: folder,
        }
    }

    fn client(&self, number: usize) -> Client {
        Client::new(self.gateways.get(number).api, "alice", "secret")
    }

    fn is_ready(&self, number: usize) -> bool {
        Client::bare(self.gateways.get(number).admin)
            .get("/readyz")
            .status
            == 200
    }
}

/// What happens to a member of etcd for a while.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Killed,
    Stopped,
    CutOff,
}

impl Harm {
    fn begin(self, etcd: &EtcdBed, member: usize) {
        match self {
            Self::Killed => etcd.signal(member, "KILL"),
            Self::Stopped => etcd.signal(member, "STOP"),
            Self::CutOff => etcd.cut(member, true),
        }
    }

    fn end(self, etcd: &EtcdBed, member: usize) {
        match self {
            Self::Killed => etcd.restart(member),
            Self::Stopped => etcd.signal(member, "CONT"),
            Self::CutOff => etcd.cut(member, false),
        }
    }
}

#[apply(test)]
fn nothing_is_lost_when_etcd_members_die_or_hang() {
    harm_members(&[], &[Harm::Killed, Harm::Stopped]);
}

#[apply(test)]
fn nothing_is_lost_when_an_etcd_member_is_cut_off() {
    require_programs(&["ip"]);
    require_root("it makes network namespaces");
    harm_members(&[("NETWORKS", "1")], &[Harm::CutOff]);
}

/// Harms one member after the other, every other time the leader, under load.
fn harm_members(variables: &[(&str, &str)], harms: &[Harm]) {
    let bed = Bed::start(2, variables);
    let world = Arc::new(World {
        patience: Duration::from_secs(15),
        is_conditional: true,
        ..World::default()
    });
    *world.gateways.lock().unwrap() = bed.gateways.addresses();
    let clients = clients::start(&world, 4);
    let mut prng = Prng::new(21);
    let mut leaders = 0;
    for life in 0..lives() {
        let leader = bed.etcd.leader();
        // Every other time the leader.
        let member = if life % 2 == 0 {
            leader
        } else {
            usize::try_from(prng.below(3)).unwrap()
        };
        leaders += u64::from(member == leader);
        let which = prng.below(u64::try_from(harms.len()).unwrap());
        let harm = harms[usize::try_from(which).unwrap()];
        harm.begin(&bed.etcd, member);
        std::thread::sleep(Duration::from_millis(500 + prng.below(2500)));
        harm.end(&bed.etcd, member);
        eventually("the member is back", || {
            let health = bed.etcd.try_ctl(&["endpoint", "health"]);
            health.is_some()
        });
        std::thread::sleep(Duration::from_millis(prng.below(1000)));
    }
    let accepted = clients::finish(&world, clients);
    let verdict = history::judge(&accepted, &bed.vmm.executions(), false);
    let members = format!("{} members, {leaders} of them leaders", lives());
    print_verdict(&format!("etcd, {harms:?}"), &members, &verdict);
    assert_eq!(verdict.wrong(), 0, "{verdict:#?}\n{}", bed.gateways.logs());
    assert!(
        verdict.accepted >= lives(),
        "something was done: {verdict:?}"
    );
    assert!(leaders > 0, "leaders of etcd were harmed: {leaders}");
}

#[apply(test)]
fn without_a_majority_of_etcd_nothing_is_answered_from_memory() {
    let bed = Bed::start(2, &[]);
    let active = bed.gateways.active();
    let client = bed.client(active);
    let uri = client.post("/vms/1/backups/456/restore", "{}").status_uri();
    client.finished(&uri);
    for member in [0, 1] {
        bed.etcd.signal(member, "KILL");
    }
    let begun = Instant::now();
    eventually("no gateway is ready", || {
        !bed.is_ready(0) && !bed.is_ready(1)
    });
    let most = Duration::from_secs(LEASE + 6);
    assert!(begun.elapsed() < most, "soon: {:?}", begun.elapsed());
    for number in [0, 1] {
        let client = bed.client(number);
        let read = client.get(&uri);
        assert_eq!(
            read.status, 503,
            "a Status is not shown from memory: {read:?}"
        );
        let changed = client.post("/vms/1/backups/456/restore", "{}");
        assert_eq!(changed.status, 503, "nothing is accepted: {changed:?}");
        assert_ne!(changed.header("retry-after"), "", "and when to try again");
        let metrics = Client::bare(bed.gateways.get(number).admin).get("/metrics");
        assert_eq!(metrics.status, 200, "metrics go on");
        assert_eq!(client.get("/").status, 200, "and what needs no store");
    }
    for member in [0, 1] {
        bed.etcd.restart(member);
    }
    let active = bed.gateways.active();
    let read = bed.client(active).get(&uri);
    assert_eq!(read.status, 200, "it is still there: {read:?}");
}

/// Bytes, with room for what the operations of all lives leave behind.
fn quota() -> String {
    ((20 + lives() / 4) << 20).to_string()
}

/// Writes below a prefix until the quota of etcd is reached.
fn fill(etcd: &EtcdBed, prefix: &str) {
    let value = etcd.file("filler");
    std::fs::write(&value, vec![b'x'; 1_000_000]).unwrap();
    let mut filled = 0;
    while etcd.try_put(&format!("{prefix}{filled}"), &value).is_some() {
        filled += 1;
        assert!(filled < 100, "the quota is reached");
    }
    assert!(
        etcd.ctl(&["alarm", "list"]).contains("NOSPACE"),
        "it is full"
    );
}

/// What an operator does about it: removes what is below the prefix, and the history.
fn make_room(etcd: &EtcdBed, prefix: &str) {
    etcd.ctl(&["del", "--prefix", prefix]);
    let status = etcd.ctl(&["endpoint", "status", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let members = status.as_array().unwrap().iter();
    // Some may be behind.
    let revisions = members.map(|one| one["Status"]["header"]["revision"].as_u64().unwrap());
    let revision = revisions.max().unwrap();
    // It fails where etcd, which compacts every few minutes by itself, was first.
    // Physical, or `defrag` could come before the history is removed, and the next writes would fill the quota again.
    drop(etcd.try_ctl(&["compact", "--physical", &revision.to_string()]));
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
}

#[apply(test)]
fn a_full_etcd_refuses_changes_until_there_is_room() {
    let bed = Bed::start(1, &[("QUOTA", &quota())]);
    let client = bed.client(0);
    let uri = client.post("/vms/1/backups/456/restore", "{}").status_uri();
    client.finished(&uri);
    fill(&bed.etcd, "/filler/");
    let refused = client.post("/vms/1/backups/456/restore", "{}");
    assert_eq!(refused.status, 503, "refused: {refused:?}");
    assert_eq!(refused.code(), "StoreUnavailable", "{refused:?}");
    eventually("not ready", || !bed.is_ready(0));
    assert_eq!(client.get(&uri).status, 200, "Statuses can be read");
    make_room(&bed.etcd, "/filler/");
    eventually("ready by itself", || bed.is_ready(0));
    let accepted = client.post("/vms/1/backups/456/restore", "{}");
    assert_eq!(accepted.status, 202, "accepted again: {accepted:?}");
}

#[apply(test)]
fn nothing_is_lost_when_etcd_is_full() {
    let bed = Bed::start(2, &[("QUOTA", &quota())]);
    let world = Arc::new(World {
        patience: Duration::from_secs(15),
        is_conditional: true,
        ..World::default()
    });
    *world.gateways.lock().unwrap() = bed.gateways.addresses();
    let clients = clients::start(&world, 4);
    let mut prng = Prng::new(22);
    for _ in 0..lives() {
        fill(&bed.etcd, "/filler/");
        std::thread::sleep(Duration::from_millis(prng.below(1500)));
        make_room(&bed.etcd, "/filler/");
        eventually("a gateway is ready", || bed.is_ready(0) || bed.is_ready(1));
        std::thread::sleep(Duration::from_millis(500 + prng.below(1500)));
    }
    let (is_over, again) = (AtomicBool::new(false), AtomicUsize::new(0));
    let finished = std::thread::scope(|scope| {
        // As an operator would: a member that was behind when there was room again raises the alarm once more.
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                if bed.etcd.ctl(&["alarm", "list"]).contains("NOSPACE") {
                    again.fetch_add(1, Ordering::AcqRel);
                    bed.etcd.ctl(&["alarm", "disarm"]);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let finish = AssertUnwindSafe(|| clients::finish(&world, clients));
        let finished = std::panic::catch_unwind(finish);
        is_over.store(true, Ordering::Release);
        finished
    });
    let accepted = finished.unwrap_or_else(|_panicked| {
        let status = bed.etcd.ctl(&["endpoint", "status", "-w", "json"]);
        let alarms = bed.etcd.ctl(&["alarm", "list"]);
        let logs = bed.gateways.logs();
        panic!("a client failed, see above; etcd: {status}\n{alarms}\n{logs}");
    });
    let verdict = history::judge(&accepted, &bed.vmm.executions(), false);
    let again = again.into_inner();
    let times = format!("{} times, alarm raised again {again} times", lives());
    print_verdict("etcd, full", &times, &verdict);
    assert_eq!(verdict.wrong(), 0, "{verdict:#?}\n{}", bed.gateways.logs());
    assert!(
        verdict.accepted >= lives(),
        "something was done: {verdict:?}"
    );
}
