//! Restarts under load, by a service manager that keeps the sockets and by SIGUSR2: no request fails.
//!
//! Clients follow the rules of HTTP and no more: what was sent on a connection that had been idle for the time that the gateway promises, or on a
//! stream above the last one of a GOAWAY, is sent again. `SNAPGATE_RESTARTS` is the number of restarts, five unless it is set.

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
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use h2::client::ResponseFuture;
use http::request::Builder;
use serde_json::Value;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::all_statuses::Block;
use crate::all_statuses::FINAL;
use crate::all_statuses::Stream;
use crate::client::Client;
use crate::client::basic;
use crate::client::read_reply;
use crate::harness::FILES;
use crate::harness::PATIENCE;
use crate::harness::eventually;
use crate::harness::program;
use crate::harness::settings_for_alice;
use crate::http2;
use crate::http2::Answer;
use crate::http2::Connection;
use crate::ports::free_port;

/// The ports in [`settings_for_alice`].
const PORTS: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
const NEW_BACKUP: &str = r#"{"name": "first"}"#;
/// Concurrent requests on a connection of HTTP/2.
const STREAMS: usize = 4;
/// A connection that is idle for longer may be closed by a gateway that stops, which a request can cross.
const IDLE_PROMISE: Duration = Duration::from_millis(900);

fn restarts() -> usize {
    let given = std::env::var("SNAPGATE_RESTARTS");
    given.map_or(5, |number| number.parse().unwrap())
}

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

/// A port without TLS, and the backup behind it.
struct Plain {
    api: SocketAddr,
    backup: String,
}

impl Plain {
    fn with_backup(api: SocketAddr) -> Self {
        let alice = Client::new(api, "alice", "secret");
        let made = alice.post("/back_up?vm=1", NEW_BACKUP).status_uri();
        let made = alice.finished(&made);
        Self {
            api,
            backup: made["target_uri"].as_str().unwrap().to_owned(),
        }
    }
}

/// A port with TLS, its certificate, and the backup behind it.
struct Secured {
    api: SocketAddr,
    certificate: CertificateDer<'static>,
    backup: String,
}

impl Secured {
    fn with_backup(api: SocketAddr, certificate: CertificateDer<'static>) -> Self {
        let mut secured = Self {
            api,
            certificate,
            backup: String::new(),
        };
        let connection = secured.connect();
        let head =
            http2::request("POST", "/back_up?vm=1").header("content-type", "application/json");
        let made = connection.status_uri(head, Some(NEW_BACKUP.as_bytes()));
        eventually("the backup is made", || {
            let status = connection.send(http2::request("GET", &made), None).json();
            secured.backup = status["target_uri"].as_str().unwrap_or_default().to_owned();
            status["progress"] == 100
        });
        secured
    }

    fn connect(&self) -> Connection {
        Connection::to(self.api, self.certificate.clone())
    }
}

fn listen() -> TcpListener {
    TcpListener::bind(("127.0.0.1", free_port())).unwrap()
}

impl Service {
    fn start(way: Way, folder: TempDir, settings: &str) -> Self {
        let ports = [listen(), listen()];
        let [api, admin] = [&ports[0], &ports[1]].map(|port| port.local_addr().unwrap());
        let server = format!("[server]\nlisten = \"{api}\"\nadmin = \"{admin}\"\n{settings}");
        let text = settings_for_alice(FILES).replace(PORTS, &server);
        assert!(text.starts_with(&server), "its own ports: {text}");
        fs::write(folder.path().join("snapgate.toml"), text).unwrap();
        fs::create_dir_all(folder.path().join("vms/1")).unwrap();
        fs::create_dir(folder.path().join("backups")).unwrap();
        fs::write(folder.path().join("vms/1/disk.img"), [7; 65_536]).unwrap();
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

/// Sends requests on a connection that is kept as long as the gateway keeps it; gives how many were answered.
fn ask_on_kept_connections(plain: &Plain, over: &AtomicBool) -> usize {
    let (api, backup) = (plain.api, &plain.backup);
    let request = format!(
        "GET {backup} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nX-Cloud-Client-Specification-Version: 0.1\r\n\r\n",
        basic("alice", "secret")
    );
    let (mut answered, mut kept) = (0, None);
    while !over.load(Ordering::Acquire) {
        let (mut stream, since) = kept.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(api).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            (stream, Instant::now())
        });
        let sent = stream.write_all(request.as_bytes());
        let idle = since.elapsed();
        if sent.is_err() || !matches!(stream.peek(&mut [0]), Ok(1..)) {
            assert!(
                idle > IDLE_PROMISE,
                "after {answered} answers and {idle:?}: {sent:?}"
            );
            continue;
        }
        let reply = read_reply(&mut stream, false);
        assert_eq!(reply.status, 200, "after {answered} answers: {reply:?}");
        answered += 1;
        if reply.header("connection") != "close" {
            kept = Some((stream, Instant::now()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

/// Sends each request on a connection of its own; gives how many were answered.
fn ask_on_new_connections(plain: &Plain, over: &AtomicBool) -> usize {
    let alice = Client::new(plain.api, "alice", "secret");
    let mut answered = 0;
    while !over.load(Ordering::Acquire) {
        let reply = alice.get(&plain.backup);
        assert_eq!(reply.status, 200, "after {answered} answers: {reply:?}");
        answered += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

/// Restores again and again, waits for each end, and gives the Statuses.
fn restore_and_wait(plain: &Plain, over: &AtomicBool) -> BTreeMap<String, Value> {
    let alice = Client::new(plain.api, "alice", "secret").with("Prefer", "wait=5");
    let restore = format!("{}/restore", plain.backup);
    let mut ends = BTreeMap::new();
    while !over.load(Ordering::Acquire) {
        let uri = alice.post(&restore, "").status_uri();
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

/// The answer, or nothing for a stream above the last one of the gateway's GOAWAY: the gateway promises that it did nothing for it
/// (RFC 9113 section 6.8).
fn answer_of(connection: &Connection, response: ResponseFuture) -> Option<Answer> {
    match connection.finish(response) {
        Ok(answer) => Some(answer),
        Err(error) => {
            let is_unprocessed = error.is_go_away() && error.is_remote();
            let is_orderly = error.reason() == Some(h2::Reason::NO_ERROR);
            assert!(is_unprocessed && is_orderly, "a request failed: {error}");
            None
        }
    }
}

/// Sends several requests at once over HTTP/2, on one connection until the gateway says GOAWAY; gives how many were answered.
fn ask_over_http2(secure: &Secured, over: &AtomicBool) -> usize {
    let (mut answered, mut connection) = (0, secure.connect());
    while !over.load(Ordering::Acquire) {
        let begun =
            (0..STREAMS).map(|_| connection.try_begin(http2::request("GET", &secure.backup)));
        let (begun, refused): (Vec<_>, Vec<_>) = begun.partition(Result::is_ok);
        for answer in begun.into_iter().flatten() {
            if let Some(answer) = answer_of(&connection, answer) {
                assert_eq!(answer.status, 200, "after {answered} answers: {answer:?}");
                answered += 1;
            }
        }
        if !refused.is_empty() {
            connection = secure.connect();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    answered
}

/// Restores again and again over HTTP/2 and waits for each end on the same connection; gives how many ended.
fn wait_over_http2(secure: &Secured, over: &AtomicBool) -> usize {
    let mut connection = secure.connect();
    let mut send = |head: &dyn Fn() -> Builder| loop {
        let begun = connection.try_begin(head());
        let answer = begun.ok().and_then(|begun| answer_of(&connection, begun));
        match answer {
            Some(answer) => return answer,
            None => connection = secure.connect(),
        }
    };
    let restore = format!("{}/restore", secure.backup);
    let mut ended = 0;
    while !over.load(Ordering::Acquire) {
        let accepted = send(&|| http2::request("POST", &restore));
        assert_eq!(accepted.status, 202, "after {ended} restores: {accepted:?}");
        let uri = accepted.json()["status_uri"].as_str().unwrap().to_owned();
        loop {
            let status = send(&|| http2::request("GET", &uri).header("prefer", "wait=5"));
            assert_eq!(status.status, 200, "after {ended} restores: {status:?}");
            let status = status.json();
            if status["progress"] == 100 {
                assert_eq!(status["state"], "SUCCESS", "restored once: {status}");
                break;
            }
        }
        ended += 1;
    }
    ended
}

/// Opens streams of events over HTTP/2, each of which must end properly; gives how many did.
fn stream_over_http2(secure: &Secured, closing: &AtomicBool) -> usize {
    let mut ended = 0;
    while !closing.load(Ordering::Acquire) {
        let connection = secure.connect();
        let head = http2::request("GET", "/statuses").header("accept", "text/event-stream");
        let begun = connection.try_begin(head).ok();
        if let Some(answer) = begun.and_then(|begun| answer_of(&connection, begun)) {
            assert_eq!(answer.status, 200, "after {ended} streams: {answer:?}");
            ended += 1;
        }
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

/// Ends the loops of all clients, also when something else has failed.
struct EndsLoads<'a>(&'a AtomicBool, &'a AtomicBool);

impl Drop for EndsLoads<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.store(true, Ordering::Release);
    }
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
    let open = Plain::with_backup(plain.api);
    let secure = Secured::with_backup(encrypted.api, certified.cert.der().clone());
    let restarts = restarts();
    let (over, closing) = (AtomicBool::new(false), AtomicBool::new(false));
    let blocks = Mutex::new(Vec::<Block>::new());
    let is_seen = |uri: &String| {
        let blocks = blocks.lock().unwrap();
        let mut ends = blocks.iter().filter(|block| block.uri() == uri);
        ends.any(|block| FINAL.contains(&block.state()))
    };
    let (answered, streams, ends) = std::thread::scope(|scope| {
        let _loads = EndsLoads(&over, &closing);
        let ask_kept = |_| scope.spawn(|| ask_on_kept_connections(&open, &over));
        let ask_new = |_| scope.spawn(|| ask_on_new_connections(&open, &over));
        let ask_secure = |_| scope.spawn(|| ask_over_http2(&secure, &over));
        let mut askers: Vec<_> = (0..4).map(ask_kept).collect();
        askers.extend((0..2).map(ask_new));
        askers.extend((0..2).map(ask_secure));
        let waiter = scope.spawn(|| wait_over_http2(&secure, &over));
        let streams = scope.spawn(|| stream_over_http2(&secure, &closing));
        let restorer = scope.spawn(|| restore_and_wait(&open, &over));
        let follower = scope.spawn(|| follow(open.api, &closing, &blocks));
        for number in 1..=restarts {
            plain.begin_restart();
            encrypted.begin_restart();
            plain.finish_restart(number);
            encrypted.finish_restart(number);
        }
        over.store(true, Ordering::Release);
        let ends = restorer.join().unwrap();
        assert!(waiter.join().unwrap() > 0, "restores over HTTP/2");
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
        answered.iter().all(|count| *count > restarts),
        "each in every life: {answered:?}"
    );
    assert!(streams > restarts / 2, "streams over HTTP/2: {streams}");
    assert!(!ends.is_empty(), "restores");
    compare(&blocks.lock().unwrap(), &ends);
}

#[apply(test)]
fn no_request_fails_in_restarts_by_a_service_manager() {
    survive_restarts(Way::ServiceManager);
}

#[apply(test)]
fn no_request_fails_when_the_process_is_replaced() {
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
    assert_eq!(alice.get("/vms/1/backups").status, 200, "it serves on");
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
