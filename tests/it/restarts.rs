//! Twenty restarts under load, by a service manager that keeps the sockets and by SIGUSR2: no request fails.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::all_statuses::Block;
use crate::all_statuses::FINAL;
use crate::all_statuses::Stream;
use crate::client::Client;
use crate::client::basic;
use crate::client::read_reply;
use crate::harness::PATIENCE;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::program;
use crate::http2;
use crate::http2::Connection;

const BACKUP: &str = "/vms/1/backups/456";
const RESTARTS: usize = 20;

/// How the next gateway follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The process ends, and the service manager that kept the sockets starts the next one.
    ServiceManager,
    /// SIGUSR2: the process becomes the next gateway. Nothing but the process itself has the sockets.
    InPlace,
}

/// A gateway that is restarted, and the file with its log.
struct Service {
    folder: TempDir,
    way: Way,
    kept: Option<[TcpListener; 2]>,
    api: SocketAddr,
    child: Child,
}

/// Ports that neither other tests nor outgoing connections get from the system, others at each call.
fn free_ports() -> [TcpListener; 2] {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let first = base + 8 * CALLS.fetch_add(1, Ordering::Relaxed);
    let mut free = (first..32_000).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    [free.next().unwrap(), free.next().unwrap()]
}

impl Service {
    fn start(way: Way, folder: TempDir, settings: &str) -> Self {
        let ports = free_ports();
        let [api, admin] = [&ports[0], &ports[1]].map(|port| port.local_addr().unwrap());
        let sim = SIM
            .replace("SECRET_HASH", SECRET_HASH)
            .replace("[operations]", "[operations]\nqueue_per_vm = 100");
        let server = format!("[server]\nlisten = \"{api}\"\nadmin = \"{admin}\"\n");
        let config = folder.path().join("snapgate.toml");
        fs::write(config, format!("{server}{settings}{sim}")).unwrap();
        File::create(folder.path().join("log")).unwrap();
        let kept = match way {
            Way::ServiceManager => Some(ports),
            Way::InPlace => {
                drop(ports);
                None
            }
        };
        let child = launch(folder.path(), kept.as_ref());
        let service = Self {
            folder,
            way,
            kept,
            api,
            child,
        };
        service.await_start(1);
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn await_start(&self, count: usize) {
        eventually("the next gateway serves", || {
            self.log().matches("gateway started").count() >= count
        });
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success(), "{name} sent");
    }

    /// Ends this gateway without waiting for its end.
    fn begin_restart(&self) {
        self.signal(match self.way {
            Way::ServiceManager => "TERM",
            Way::InPlace => "USR2",
        });
    }

    fn finish_restart(&mut self, number: usize) {
        if self.way == Way::ServiceManager {
            let ended = self.child.wait().unwrap();
            assert_eq!(ended.code(), Some(0), "restart {number}: {}", self.log());
            self.child = launch(self.folder.path(), self.kept.as_ref());
        }
        self.await_start(number + 1);
        let ended = self.child.try_wait().unwrap();
        assert_eq!(ended, None, "the process goes on: {}", self.log());
    }

    fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a gateway, on sockets as systemd hands them over, if there are any.
fn launch(folder: &Path, kept: Option<&[TcpListener; 2]>) -> Child {
    let log = File::options().append(true).open(folder.join("log"));
    let config = folder.join("snapgate.toml");
    let binary = program().get_program().to_owned();
    let mut command = match kept {
        None => Command::new(binary),
        Some([api, admin]) => {
            // The shell makes the two sockets descriptors 3 and 4 and becomes the gateway, whose process id it knows.
            let script = "exec 3<&0 4<&1 1>/dev/null 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=snapgate-api:snapgate-admin exec \"$0\" \"$@\"";
            let owned = |port: &TcpListener| OwnedFd::from(port.try_clone().unwrap());
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).arg(binary);
            shell.stdin(owned(api)).stdout(owned(admin));
            shell
        }
    };
    if kept.is_none() {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    command
        .args(["serve", "--config"])
        .arg(config)
        .env_remove("NOTIFY_SOCKET")
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

/// Asks again and again on a connection that is kept as long as the gateway keeps it; gives how often it was answered.
fn ask_on_kept_connections(api: SocketAddr, over: &AtomicBool) -> usize {
    let request = format!(
        "GET {BACKUP} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n",
        basic("alice", "secret")
    );
    let (mut answered, mut kept) = (0, None);
    while !over.load(Ordering::Acquire) {
        let mut stream = kept.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(api).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        });
        let sent = stream.write_all(request.as_bytes());
        sent.unwrap_or_else(|error| panic!("after {answered} answers: {error}"));
        // Panics when the connection ends without an answer.
        let reply = read_reply(&mut stream, false);
        assert_eq!(reply.status, 200, "after {answered} answers: {reply:?}");
        answered += 1;
        if reply.header("connection") != "close" {
            kept = Some(stream);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

/// Restores again and again, waits for each end, and gives the Statuses.
fn restore_and_wait(api: SocketAddr, over: &AtomicBool) -> BTreeMap<String, Value> {
    let alice = Client::new(api, "alice", "secret").with("Prefer", "wait=5");
    let mut ends = BTreeMap::new();
    while !over.load(Ordering::Acquire) {
        let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
        let end = alice.finished(&uri);
        assert_eq!(end["state"], "SUCCESS", "restored once: {end}");
        ends.insert(uri, end);
    }
    ends
}

/// Reads the stream of all Statuses, and takes it up after each end.
fn follow(api: SocketAddr, closing: &AtomicBool, blocks: &Mutex<Vec<Block>>) {
    let mut last: Option<String> = None;
    while !closing.load(Ordering::Acquire) {
        let opened = Stream::open(api, "alice", "", last.as_deref());
        let mut stream = opened.unwrap_or_else(|error| panic!("stream after {last:?}: {error}"));
        while let Some(block) = stream.block() {
            last = block.id.clone().or(last);
            blocks.lock().unwrap().push(block);
        }
    }
}

/// Asks over HTTP/2, on a connection until the gateway says GOAWAY.
fn ask_over_http2(secure: &(SocketAddr, CertificateDer<'static>), over: &AtomicBool) -> usize {
    let connect = || Connection::to(secure.0, secure.1.clone());
    let (mut answered, mut connection) = (0, connect());
    while !over.load(Ordering::Acquire) {
        let head = http2::request("GET", BACKUP);
        let Ok(response) = connection.try_begin(head) else {
            connection = connect();
            continue;
        };
        let answer = connection.finish(response);
        let answer = answer.unwrap_or_else(|error| panic!("after {answered} answers: {error}"));
        assert_eq!(answer.status, 200, "after {answered} answers: {answer:?}");
        answered += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

/// Opens streams of events over HTTP/2, each of which must end properly; gives how many did.
fn stream_over_http2(
    secure: &(SocketAddr, CertificateDer<'static>),
    closing: &AtomicBool,
) -> usize {
    let mut ended = 0;
    while !closing.load(Ordering::Acquire) {
        let connection = Connection::to(secure.0, secure.1.clone());
        let head = http2::request("GET", "/statuses").header("accept", "text/event-stream");
        let Ok(response) = connection.try_begin(head) else {
            continue;
        };
        let answer = connection.finish(response);
        let answer = answer.unwrap_or_else(|error| panic!("after {ended} streams: {error}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        ended += 1;
    }
    ended
}

/// Each end that a client was given is seen once by the reader of the stream, as its last event.
fn compare(blocks: &[Block], ends: &BTreeMap<String, Value>) {
    let resets = blocks.iter().filter(|block| block.event.is_some());
    assert_eq!(resets.count(), 0, "the history is one");
    for (uri, end) in ends {
        let of_it: Vec<&Block> = blocks.iter().filter(|block| block.uri() == uri).collect();
        let finals = of_it.iter().filter(|block| FINAL.contains(&block.state()));
        assert_eq!(finals.count(), 1, "{uri}: one end: {of_it:?}");
        let last = of_it.last().unwrap().status.as_ref();
        assert_eq!(last, Some(end), "{uri}: the end is the last, and true");
    }
    let seen: BTreeSet<&str> = blocks.iter().map(Block::uri).collect();
    assert!(seen.len() > ends.len() / 2, "the stream carried them");
}

fn survive_restarts(way: Way) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("chain.pem"), certified.cert.pem()).unwrap();
    let key = certified.signing_key.serialize_pem();
    fs::write(folder.path().join("key.pem"), key).unwrap();
    let tls = "[[certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";
    let mut plain = Service::start(way, TempDir::new().unwrap(), "");
    let mut encrypted = Service::start(way, folder, tls);
    let (api, secure) = (plain.api, (encrypted.api, certified.cert.der().clone()));
    let (over, closing) = (AtomicBool::new(false), AtomicBool::new(false));
    let blocks = Mutex::new(Vec::<Block>::new());
    let is_seen = |uri: &String| {
        let blocks = blocks.lock().unwrap();
        let mut ends = blocks.iter().filter(|block| block.uri() == uri);
        ends.any(|block| FINAL.contains(&block.state()))
    };
    let (answered, streams, ends) = std::thread::scope(|scope| {
        let ask_plain = |_| scope.spawn(|| ask_on_kept_connections(api, &over));
        let ask_secure = |_| scope.spawn(|| ask_over_http2(&secure, &over));
        let mut askers: Vec<_> = (0..6).map(ask_plain).collect();
        askers.extend((0..2).map(ask_secure));
        let streams = scope.spawn(|| stream_over_http2(&secure, &closing));
        let restorer = scope.spawn(|| restore_and_wait(api, &over));
        let follower = scope.spawn(|| follow(api, &closing, &blocks));
        for number in 1..=RESTARTS {
            plain.begin_restart();
            encrypted.begin_restart();
            plain.finish_restart(number);
            encrypted.finish_restart(number);
        }
        over.store(true, Ordering::Release);
        let ends = restorer.join().unwrap();
        let answered: Vec<usize> = askers.into_iter().map(|one| one.join().unwrap()).collect();
        eventually("the reader has seen every end", || ends.keys().all(is_seen));
        // Streams end with their gateway.
        closing.store(true, Ordering::Release);
        plain.stop();
        encrypted.stop();
        follower.join().unwrap();
        (answered, streams.join().unwrap(), ends)
    });
    assert!(
        answered.iter().all(|count| *count > RESTARTS),
        "each in every life: {answered:?}"
    );
    assert!(streams > RESTARTS / 2, "streams over HTTP/2: {streams}");
    assert!(!ends.is_empty(), "restores");
    compare(&blocks.lock().unwrap(), &ends);
}

#[apply(test)]
fn no_request_fails_in_twenty_restarts_by_a_service_manager() {
    survive_restarts(Way::ServiceManager);
}

#[apply(test)]
fn no_request_fails_when_the_process_is_replaced_twenty_times() {
    survive_restarts(Way::InPlace);
}

#[apply(test)]
fn a_program_that_refuses_the_configuration_replaces_nothing() {
    let service = Service::start(Way::InPlace, TempDir::new().unwrap(), "");
    let config = service.folder.path().join("snapgate.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("colour = 1\n{good}")).unwrap();
    service.begin_restart();
    eventually("it says so", || {
        service.log().contains("process not replaced")
    });
    assert!(service.log().contains("colour"), "why: {}", service.log());
    let alice = Client::new(service.api, "alice", "secret");
    assert_eq!(alice.get(BACKUP).status, 200, "it serves on");
    assert_eq!(
        service.log().matches("gateway started").count(),
        1,
        "as it was"
    );
}

#[apply(test)]
fn a_stop_takes_back_a_replacement() {
    let folder = TempDir::new().unwrap();
    let mut service = Service::start(Way::InPlace, folder, "drain_notice = \"3s\"\n");
    service.begin_restart();
    eventually("it drains", || service.log().contains("stopping"));
    service.stop();
    assert_eq!(
        service.log().matches("gateway started").count(),
        1,
        "no successor"
    );
    assert!(
        TcpStream::connect(service.api).is_err(),
        "the port is closed"
    );
}
