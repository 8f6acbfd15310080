//! Storms of wrong passwords: whom they delay, and what becomes of the rest.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::client::Client;
use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SIM;
use crate::harness::eventually;

/// Requests with wrong passwords at once.
const ATTACKERS: usize = 48;
/// Requests wait for a check for about half a second at most.
const LONGER_THAN_THE_QUEUE: Duration = Duration::from_secs(1);
const REFUSED: &str = "snapgate_credential_checks_total{result=\"refused\"}";
const FULL: &str = "snapgate_credential_checks_total{result=\"queue_full\"}";
/// Lock-outs far away, so that every attempt asks for a check.
const RULES: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ntrusted_proxies = [\"127.0.0.1\"]\n\
    [lockout]\nattempts = 1000\naddress_attempts = 10000\n";

/// A gateway whose passwords have bcrypt hashes of this cost: with 9 a check takes some 20 ms or more, with 11 four times as long.
fn start(cost: u32) -> Gateway {
    let hash = bcrypt::hash("secret", cost).unwrap();
    Gateway::start(&format!("{RULES}{}", SIM.replace("SECRET_HASH", &hash)))
}

/// One request with a wrong password from this address; the status, or nothing when the connection ended.
fn attack(api: SocketAddr, address: &str, user: &str) -> Option<String> {
    let mut socket = TcpStream::connect(api).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!(
        "GET /vms/1/backups/456 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\nConnection: close\r\n\
         Authorization: {}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n",
        basic(user, "guess")
    );
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1).map(str::to_owned)
}

/// Attackers that send one wrong password after the other, each from an address of its own, until it is dropped.
struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Storm {
    fn begin(api: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let attackers = (0..ATTACKERS).map(|number| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let address = format!("203.0.113.{number}");
                while !stop.load(Ordering::Relaxed) {
                    let status = attack(api, &address, &format!("user{number}"));
                    assert!(
                        matches!(status.as_deref(), Some("401" | "503")),
                        "refused: {status:?}"
                    );
                }
            })
        });
        Self {
            threads: attackers.collect(),
            stop,
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[apply(test)]
fn a_user_from_a_clean_address_logs_in_ahead_of_a_storm_of_wrong_passwords() {
    let gateway = start(9);
    let storm = Storm::begin(gateway.api);
    // Every address has failed once, and the queue is full all the time.
    let most = f64::from(u32::try_from(ATTACKERS).unwrap());
    eventually("the storm is on", || gateway.metric(REFUSED) > 2.0 * most);
    let client =
        Client::new(gateway.api, "alice", "secret").with("X-Forwarded-For", "198.51.100.7");
    let before = gateway.metric(REFUSED);
    let answer = client.get("/vms/1/backups/456");
    let checked = gateway.metric(REFUSED) - before;
    storm.end();
    assert_eq!(answer.status, 200, "{answer:?}");
    // One that runs, those that end while the request and both looks at the metrics are under way, and every fourth turn.
    assert!(checked <= 16.0, "{checked} others were checked first");
}

#[apply(test)]
fn requests_whose_clients_left_are_not_checked() {
    // A check takes so long that most of the queue is still there when it is noticed that the clients left.
    let gateway = start(11);
    let storm = Storm::begin(gateway.api);
    eventually("the storm is on", || gateway.metric(REFUSED) > 20.0);
    storm.end();
    let counts = || gateway.metric(REFUSED) + gateway.metric(FULL);
    let before = counts();
    let waiting: Vec<TcpStream> = (0..ATTACKERS)
        .map(|number| {
            let mut socket = TcpStream::connect(gateway.api).unwrap();
            let request = format!(
                "GET /vms/1/backups/456 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.{number}\r\n\
                 Authorization: {}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n",
                basic(&format!("left{number}"), "guess")
            );
            socket.write_all(request.as_bytes()).unwrap();
            socket
        })
        .collect();
    drop(waiting);
    let client = Client::new(gateway.api, "alice", "secret");
    // Answers to this client count, too.
    let mut own = 0.0;
    eventually("the queue is free again", || {
        let status = client.get("/vms/1/backups/456").status;
        own += f64::from(u8::from(status == 503));
        status == 200
    });
    // That client may go before others that wait, which are answered later, if they are.
    let mut last = counts();
    eventually("nothing waits any more", || {
        std::thread::sleep(LONGER_THAN_THE_QUEUE);
        let newest = counts();
        std::mem::replace(&mut last, newest)
            .total_cmp(&newest)
            .is_eq()
    });
    let after = last - before - own;
    let most = f64::from(u32::try_from(ATTACKERS).unwrap());
    assert!(
        after < most,
        "{after} of {most} were answered though all had left"
    );
}
