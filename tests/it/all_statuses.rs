//! The stream of all Statuses over sockets: resumed over kills, cut off for slow readers, ended with rights and connections.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use crate::client::Client;
use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::http2;
use crate::http2::Secure;
use crate::requirements::require_programs;

const BACKUP: &str = "/vms/1/backups/456";
const PORTS: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
pub(crate) const FINAL: [&str; 4] = ["SUCCESS", "FAILED", "CANCELLED", "UNKNOWN"];
const KILLS: u32 = 10;

/// One block of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) status: Option<Value>,
}

impl Block {
    pub(crate) fn state(&self) -> &str {
        let status = self.status.as_ref();
        status.map_or("", |status| status["state"].as_str().unwrap())
    }

    pub(crate) fn uri(&self) -> &str {
        let status = self.status.as_ref();
        status.map_or("", |status| status["status_uri"].as_str().unwrap())
    }
}

/// A stream in HTTP/1.0, whose body is what comes until the end of the connection.
pub(crate) struct Stream(BufReader<TcpStream>);

impl Stream {
    pub(crate) fn open(
        address: SocketAddr,
        user: &str,
        query: &str,
        last: Option<&str>,
    ) -> std::io::Result<Self> {
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!(
            "GET /statuses{query} HTTP/1.0\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
             Authorization: {}\r\n{last}\r\n",
            basic(user, "secret")
        );
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut from = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        assert!(head.contains(" 200 "), "begun: {head}");
        Ok(Self(from))
    }

    /// The next block that was received as a whole; `None` at the end.
    pub(crate) fn block(&mut self) -> Option<Block> {
        let mut block = Block::default();
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(count) if count > 0 && line.ends_with('\n') => {}
                Ok(_) | Err(_) => return None,
            }
            match line.trim_end().split_once(':') {
                None => return Some(block),
                Some(("id", id)) => block.id = Some(id.trim().to_owned()),
                Some(("event", event)) => block.event = Some(event.trim().to_owned()),
                Some(("data", " {}")) => {}
                Some(("data", data)) => block.status = Some(serde_json::from_str(data).unwrap()),
                Some(_) => {}
            }
        }
    }

    /// The next block with a Status.
    fn status(&mut self) -> Block {
        loop {
            let block = self.block().expect("the stream goes on");
            if block.status.is_some() {
                return block;
            }
        }
    }

    /// The next id.
    fn id(&mut self) -> String {
        loop {
            if let Some(id) = self.block().expect("the stream goes on").id {
                return id;
            }
        }
    }
}

fn write_config(folder: &Path, more: &str) -> String {
    let config = folder.join("snapgate.toml");
    let sim = SIM
        .replace("SECRET_HASH", SECRET_HASH)
        .replace("duration = \"50ms\"", "duration = \"20ms\"")
        // What gateways that were killed left takes its time, and more comes meanwhile.
        .replace("[operations]", "[operations]\nqueue_per_vm = 100");
    fs::write(&config, format!("{PORTS}{more}{sim}")).unwrap();
    config.to_str().unwrap().to_owned()
}

/// What a reader has received over all its connections.
#[derive(Debug, Default)]
struct Received {
    blocks: Vec<Block>,
    connections: usize,
    resets: usize,
}

/// Reads until it is stopped, and goes on after the last id whenever the stream ends.
fn read_on(address: &Mutex<SocketAddr>, received: &Mutex<Received>, stopped: &AtomicBool) {
    let mut last: Option<String> = None;
    while !stopped.load(Ordering::SeqCst) {
        let to = *address.lock().unwrap();
        let Ok(mut stream) = Stream::open(to, "alice", "", last.as_deref()) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        received.lock().unwrap().connections += 1;
        let short = Some(Duration::from_millis(200));
        stream.0.get_ref().set_read_timeout(short).unwrap();
        while let Some(block) = stream.block() {
            last = block.id.clone().or(last);
            let mut received = received.lock().unwrap();
            received.resets += usize::from(block.event.as_deref() == Some("reset"));
            received.blocks.push(block);
        }
    }
}

#[apply(test)]
fn every_end_is_seen_once_however_often_the_gateway_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "");
    let arguments = ["serve", "--config", config.as_str()];
    let mut gateway = Process::start(&arguments);
    let address = Arc::new(Mutex::new(gateway.api));
    let received = Arc::new(Mutex::new(Received::default()));
    let stopped = Arc::new(AtomicBool::new(false));
    let reader = {
        let (address, received) = (Arc::clone(&address), Arc::clone(&received));
        let stopped = Arc::clone(&stopped);
        std::thread::Builder::new()
            .spawn(move || read_on(&address, &received, &stopped))
            .unwrap()
    };
    eventually("the reader knows where it is", || {
        let received = received.lock().unwrap();
        received.blocks.iter().any(|block| block.id.is_some())
    });
    let mut accepted = BTreeSet::new();
    for round in 0..KILLS {
        let client = Client::new(gateway.api, "alice", "secret");
        for number in 0..6 {
            let vm = 1 + number % 2;
            let reply = client.post(&format!("/vms/{vm}/backups/456/restore"), "");
            accepted.insert(reply.status_uri());
        }
        // Some have ended by then, some are under way, some wait.
        std::thread::sleep(Duration::from_millis(u64::from(7 * round)));
        gateway.kill();
        gateway = Process::start(&arguments);
        *address.lock().unwrap() = gateway.api;
    }
    let client = Client::new(gateway.api, "alice", "secret");
    let ends: BTreeMap<String, Value> = accepted
        .iter()
        .map(|uri| (uri.clone(), client.finished(uri)))
        .collect();
    eventually("every end is seen", || {
        let received = received.lock().unwrap();
        let ended = received
            .blocks
            .iter()
            .filter(|block| FINAL.contains(&block.state()));
        let ended: BTreeSet<&str> = ended.map(Block::uri).collect();
        accepted.iter().all(|uri| ended.contains(uri.as_str()))
    });
    stopped.store(true, Ordering::SeqCst);
    drop(gateway);
    reader.join().unwrap();
    let received = received.lock().unwrap();
    assert_eq!(received.resets, 0, "the history is one");
    let kills = usize::try_from(KILLS).unwrap();
    assert!(received.connections > kills, "resumed: {received:?}");
    for (uri, end) in &ends {
        let of_it = received.blocks.iter().filter(|block| block.uri() == uri);
        let of_it: Vec<&Block> = of_it.collect();
        let finals = of_it.iter().filter(|block| FINAL.contains(&block.state()));
        assert_eq!(finals.count(), 1, "{uri}: one end: {of_it:?}");
        let last = of_it.last().unwrap().status.as_ref();
        assert_eq!(last, Some(end), "{uri}: the end is the last, and true");
    }
}

#[apply(test)]
fn a_store_that_is_put_back_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "");
    let arguments = ["serve", "--config", config.as_str()];
    let run = |restores: u32| {
        let gateway = Process::start(&arguments);
        let client = Client::new(gateway.api, "alice", "secret");
        let mut stream = Stream::open(gateway.api, "alice", "", None).unwrap();
        let mut id = stream.id();
        for _ in 0..restores {
            let uri = client.post(&format!("{BACKUP}/restore"), "").status_uri();
            client.finished(&uri);
            loop {
                let block = stream.status();
                id = block.id.clone().unwrap_or(id);
                if block.uri() == uri && block.state() == "SUCCESS" {
                    break;
                }
            }
        }
        gateway.signal("TERM");
        assert_eq!(gateway.wait(), Some(0), "stopped");
        id
    };
    run(1);
    let store = folder.path().join("operations.db");
    let copy = fs::read(&store).unwrap();
    let lost = run(1);
    fs::write(&store, copy).unwrap();
    // The numbers of the lost history are used again for something else.
    run(3);
    let gateway = Process::start(&arguments);
    let mut stream = Stream::open(gateway.api, "alice", "", Some(&lost)).unwrap();
    let first = loop {
        let block = stream.block().unwrap();
        if block.event.is_some() || block.status.is_some() {
            break block;
        }
    };
    assert_eq!(first.event.as_deref(), Some("reset"), "{first:?}");
    let mut shown = BTreeSet::new();
    while shown.len() < 4 {
        shown.insert(stream.status().uri().to_owned());
    }
}

#[apply(test)]
fn a_reader_that_takes_nothing_is_cut_off_counted_and_resumes() {
    let limits = "[limits]\nwrite_timeout = \"1s\"\n";
    let gateway = Gateway::start(&format!("{limits}{SIM}"));
    let mut first = Stream::open(gateway.api, "alice", "", None).unwrap();
    let begin = first.id();
    drop(first);
    // Statuses that are as long as can be, and together more than any buffer on the way takes.
    let member = |number: u32| format!("\"{}{number:02}\":1", "\u{1f4be}".repeat(62));
    let members: Vec<String> = (0..16).map(member).collect();
    let body = format!("{{\"description\":\"x\",{}}}", members.join(","));
    let client = gateway.client("alice");
    let mut bytes = 0;
    let mut last = String::new();
    while bytes < 8_000_000 {
        let reply = client.put(BACKUP, &body);
        last = reply.status_uri();
        bytes += reply.body.len();
    }
    gateway.client("alice").finished(&last);
    let slow = Stream::open(gateway.api, "alice", "", Some(&begin)).unwrap();
    let cut = "snapgate_event_streams_cut_total{reason=\"slow\"}";
    eventually("cut off and counted", || gateway.metric(cut) > 0.5);
    eventually("its place is free", || {
        gateway.metric("snapgate_waiters") < 0.5
    });
    let mut slow = slow;
    let mut seen = BTreeSet::new();
    let mut id = begin;
    while let Some(block) = slow.block() {
        id = block.id.clone().unwrap_or(id);
        seen.insert(block.uri().to_owned());
    }
    assert!(
        !seen.contains(&last),
        "what it did not take is not kept for it"
    );
    let mut again = Stream::open(gateway.api, "alice", "", Some(&id)).unwrap();
    loop {
        let block = again.status();
        assert!(
            seen.insert(block.uri().to_owned()),
            "nothing twice: {block:?}"
        );
        if block.uri() == last {
            break;
        }
    }
    assert!((gateway.metric(cut) - 1.0).abs() < 0.1, "one was cut off");
}

#[apply(test)]
fn a_place_is_free_within_a_second_after_its_client_left() {
    let gateway = Gateway::start(SIM);
    let mut streams: Vec<Stream> = (0..20)
        .map(|_| Stream::open(gateway.api, "alice", "", None).unwrap())
        .collect();
    for stream in &mut streams {
        stream.id();
    }
    let waiting = gateway.metric("snapgate_waiters");
    assert!((waiting - 20.0).abs() < 0.1, "all wait: {waiting}");
    drop(streams);
    let begun = Instant::now();
    eventually("none waits", || gateway.metric("snapgate_waiters") < 0.5);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[apply(test)]
fn a_reload_that_takes_the_right_away_ends_the_stream_within_a_second() {
    let observe = "[[grant]]\nto = [\"user:carol\"]\nactions = [\"observe\"]\nvms = [\"1\"]\n";
    let gateway = Gateway::start(&format!("{PORTS}{SIM}{observe}"));
    let alice = gateway.client("alice");
    let mut stream = Stream::open(gateway.api, "carol", "", None).unwrap();
    let id = stream.id();
    alice.finished(&alice.post(&format!("{BACKUP}/restore"), "").status_uri());
    assert!(!stream.status().uri().is_empty(), "carol may see it");
    assert!(gateway.reload(&format!("{PORTS}{SIM}")), "reloaded");
    let begun = Instant::now();
    while stream.block().is_some() {}
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    alice.finished(&uri);
    let mut again = Stream::open(gateway.api, "carol", "", Some(&id)).unwrap();
    let moved = again.id();
    assert_ne!(moved, id, "what it may not see is passed over");
}

#[apply(test)]
fn streams_of_all_come_over_http_2_too() {
    let secure = Secure::start(&format!("[limits]\nstream = \"2s\"\n{SIM}"));
    let connection = secure.connect();
    let head = http2::request("GET", "/statuses?vm=1").header("accept", "text/event-stream");
    let stream = connection.begin(head, None);
    let restore = http2::request("POST", "/vms/1/backups/456/restore");
    let uri = connection.status_uri(restore, Some(b""));
    let other = http2::request("POST", "/vms/2/backups/456/restore");
    let hidden = connection.status_uri(other, Some(b""));
    let answer = connection.finish(stream).unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(answer.status, 200, "{text}");
    let of_it = |line: &&str| line.starts_with("data: ") && line.contains(&uri);
    let last = text.lines().rfind(of_it).expect("its events");
    assert!(last.contains("\"state\":\"SUCCESS\""), "{last}");
    assert!(
        !text.contains(&hidden),
        "only of the VM that was asked for: {text}"
    );
}

/// The program of the manual, which follows all Statuses.
struct Follower {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Follower {
    fn start(address: SocketAddr, folder: &Path) -> Self {
        let mut child = Command::new("python3")
            .arg("docs/examples/follow_statuses.py")
            .arg(format!("http://{address}?vm=1"))
            .args(["--state", folder.join("last-id").to_str().unwrap()])
            .env("SNAPGATE_AUTHORIZATION", basic("alice", "secret"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn status(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Reads until the operation has ended, and returns the URIs that were printed.
    fn read_to_end_of(&mut self, uri: &str) -> BTreeSet<String> {
        let mut printed = BTreeSet::new();
        loop {
            let status = self.status();
            printed.insert(status["status_uri"].as_str().unwrap().to_owned());
            if status["status_uri"] == uri && status["state"] == "SUCCESS" {
                return printed;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[apply(test)]
fn the_example_follows_all_statuses_and_resumes() {
    require_programs(&["python3"]);
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let restore = || {
        let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
        alice.finished(&uri);
        uri
    };
    let mut follower = Follower::start(gateway.api, folder.path());
    let first = restore();
    follower.read_to_end_of(&first);
    let state = folder.path().join("last-id");
    eventually("the id is kept", || state.exists());
    let before = fs::read_to_string(&state).unwrap();
    let second = restore();
    follower.read_to_end_of(&second);
    eventually("the newer id is kept", || {
        fs::read_to_string(&state).unwrap() != before
    });
    drop(follower);
    let third = restore();
    let mut follower = Follower::start(gateway.api, folder.path());
    let printed = follower.read_to_end_of(&third);
    assert!(
        !printed.contains(&first),
        "what it had is not repeated: {printed:?}"
    );
    let mut refused = Command::new("python3")
        .args(["docs/examples/follow_statuses.py"])
        .arg(format!("http://{}", gateway.api))
        .env("SNAPGATE_AUTHORIZATION", basic("alice", "wrong"))
        .current_dir(".")
        .stderr(Stdio::piped())
        .args(["--state", folder.path().join("none").to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut text = String::new();
    refused
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(!refused.wait().unwrap().success(), "it ends");
    assert!(text.contains("refused: 401"), "{text}");
}
