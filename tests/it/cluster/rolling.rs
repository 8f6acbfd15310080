//! A rolling upgrade of three gateways behind HAProxy, under load: no request fails, and no wait is lost.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::require_etcd;
use crate::harness::eventually;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::ports::free_port;
use crate::requirements::require_programs;

/// A load balancer, ended when dropped.
struct Balancer {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn balance(gateways: &Gateways) -> Balancer {
    let folder = tempfile::tempdir().unwrap();
    let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let servers: String = (0..gateways.running.len())
        .map(|number| {
            let gateway = gateways.get(number);
            let port = gateway.admin.port();
            format!(
                "  server gw{number} {} check port {port} inter 300ms fall 1 rise 1\n",
                gateway.api
            )
        })
        .collect();
    let config = format!(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n\
         frontend api\n  bind {address}\n  default_backend gateways\n\
         backend gateways\n  balance roundrobin\n  option httpchk GET /readyz\n{servers}"
    );
    fs::write(folder.path().join("haproxy.conf"), config).unwrap();
    let child = Command::new("haproxy")
        .args(["-db", "-f", "haproxy.conf"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("HAProxy listens", || TcpStream::connect(address).is_ok());
    Balancer {
        child,
        address,
        _folder: folder,
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    answered: AtomicU64,
    failed: Mutex<Vec<String>>,
}

/// Reads, changes and waits, in turn, until it is over.
fn load(address: SocketAddr, seen: &Seen, vm: usize) {
    let client = Client::new(address, "alice", "secret");
    while !seen.over.load(Ordering::Acquire) {
        let read = client.get(&format!("/vms/{vm}/backups/456"));
        let changed = client.post(&format!("/vms/{vm}/backups/456/restore"), "{}");
        for reply in [&read, &changed] {
            if !matches!(reply.status, 200 | 202) {
                seen.failed.lock().unwrap().push(format!("{reply:?}"));
            }
        }
        if changed.status == 202 {
            let begun = Instant::now();
            let mut waited = client.with("Prefer", "wait=10").get(&changed.status_uri());
            // A gateway that stops answers a wait early, with the state at that moment.
            while waited.status == 200
                && waited.json()["progress"] != 100
                && begun.elapsed() < Duration::from_secs(30)
            {
                waited = client.with("Prefer", "wait=10").get(&changed.status_uri());
            }
            if waited.status != 200 || waited.json()["progress"] != 100 {
                seen.failed.lock().unwrap().push(format!("{waited:?}"));
            }
        }
        seen.answered.fetch_add(3, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[apply(test)]
fn a_rolling_upgrade_fails_no_request_and_loses_no_wait() {
    require_etcd();
    require_programs(&["haproxy"]);
    let etcd = EtcdBed::start(3);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vmm");
    let _vmm = FakeVmm::start(&Behaviour {
        socket: socket.clone(),
        once: true,
        tasks: true,
        delay: Duration::from_millis(30),
    });
    let setup = Setup {
        recovery: "replay-safe",
        settle: "0s",
        lease: 10,
        simulator: &socket,
        peers: true,
        clocks: false,
    };
    let mut gateways = Gateways::start(3, &etcd, setup);
    let balancer = balance(&gateways);
    let ready = Client::new(balancer.address, "alice", "secret");
    eventually("requests come through", || {
        ready.get("/vms/1/backups/456").status == 200
    });
    let seen = Arc::new(Seen::default());
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (seen, address) = (Arc::clone(&seen), balancer.address);
            std::thread::Builder::new()
                .spawn(move || load(address, &seen, number + 1))
                .unwrap()
        })
        .collect();
    let mut handovers = 0;
    for _ in 0..3 {
        // The active one too: each is stopped and started again.
        let active = gateways.active();
        for number in 0..3 {
            handovers += u64::from(number == active);
            let stopped = gateways.running[number].take().unwrap();
            stopped.signal("TERM");
            assert_eq!(stopped.wait(), Some(0), "a clean end:\n{}", gateways.logs());
            gateways.restart(number);
            let gateway = gateways.get(number).admin;
            eventually("it is ready again", || {
                Client::bare(gateway).get("/readyz").status == 200
            });
            std::thread::sleep(Duration::from_millis(400));
        }
    }
    seen.over.store(true, Ordering::Release);
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let failed = seen.failed.lock().unwrap();
    let answered = seen.answered.load(Ordering::Relaxed);
    assert!(
        failed.is_empty(),
        "{} of {answered} requests failed: {failed:#?}\n{}",
        failed.len(),
        gateways.logs()
    );
    assert!(answered > 100, "under load: {answered}");
    assert!(handovers >= 3, "the active one was stopped: {handovers}");
}
