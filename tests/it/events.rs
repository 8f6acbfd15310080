//! Statuses as streams of server-sent events, over sockets; and many who wait at once.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use crate::client::Client;
use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::stop_in_background;

const BACKUP: &str = "/vms/1/backups/456";

/// One event: its id and its Status.
#[derive(Debug)]
struct Event {
    id: String,
    status: Value,
}

/// A stream of events, read as it comes.
struct Stream {
    from: BufReader<TcpStream>,
}

impl Stream {
    /// Asks for it, and reads the head of the answer.
    fn open(address: SocketAddr, uri: &str, last: Option<&str>) -> Self {
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!(
            "GET {uri} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
             Authorization: {}\r\nConnection: close\r\n{last}\r\n",
            basic("alice", "secret")
        );
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut from = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let count = from.read_line(&mut head).unwrap();
            assert!(count > 0, "a whole head: {head}");
        }
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "begun: {head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        Self { from }
    }

    /// The next chunk; `None` at a proper end.
    fn chunk(&mut self) -> Option<String> {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16)
            .unwrap_or_else(|error| panic!("{error}: the stream broke off at {line:?}"));
        let mut chunk = vec![0; length + 2];
        self.from.read_exact(&mut chunk).unwrap();
        chunk.truncate(length);
        (length > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    /// The next event; `None` at a proper end.
    fn event(&mut self) -> Option<Event> {
        loop {
            let chunk = self.chunk()?;
            let mut found = None;
            for block in chunk.split("\n\n") {
                if let Some((id, data)) = block.split_once("\ndata: ") {
                    assert!(found.is_none(), "one event in a chunk: {chunk:?}");
                    found = Some(Event {
                        id: id.strip_prefix("id: ").unwrap().to_owned(),
                        status: serde_json::from_str(data).unwrap(),
                    });
                }
            }
            if found.is_some() {
                return found;
            }
        }
    }

    fn rest(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }
}

#[apply(test)]
fn a_status_is_followed_to_its_end_and_taken_up_again() {
    let gateway = Gateway::start(&SIM.replace("duration = \"50ms\"", "duration = \"700ms\""));
    let alice = gateway.client("alice");
    let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    let events = Stream::open(gateway.api, &uri, None).rest();
    let revisions: Vec<u64> = events
        .iter()
        .map(|event| event.id.split_once('-').unwrap().1.parse().unwrap())
        .collect();
    assert!(
        revisions.is_sorted_by(|one, two| one < two),
        "each once, in order: {revisions:?}"
    );
    let progress: Vec<_> = events
        .iter()
        .map(|event| event.status["progress"].as_u64())
        .collect();
    assert!(progress.is_sorted(), "never back: {progress:?}");
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last.status["state"], "SUCCESS", "to the end: {last:?}");
    assert!(
        before
            .iter()
            .any(|event| event.status["state"] == "RUNNING"),
        "and not only the end: {events:?}"
    );
    let tag = format!("\"{}\"", last.id);
    assert_eq!(
        alice.get(&uri).header("etag"),
        tag,
        "the id is the tag of the Status"
    );

    let first = &events[0].id;
    let again = Stream::open(gateway.api, &uri, Some(first)).rest();
    assert_eq!(
        again.len(),
        1,
        "overtaken events are not repeated: {again:?}"
    );
    assert_eq!(again[0].status, last.status, "the end is");
    let asking = alice.with("Accept", "text/event-stream");
    let done = asking.with("Last-Event-ID", &last.id).get(&uri);
    assert_eq!(
        done.status, 204,
        "and a client that has it need not ask again"
    );
    let bad = asking.with("Last-Event-ID", "1-1").get(&uri);
    assert_eq!(
        (bad.status, bad.code().as_str()),
        (400, "MalformedLastEventId"),
        "named"
    );
    assert_eq!(
        bad.json()["message"][0]["field"],
        "Last-Event-ID",
        "the field"
    );
    let head = asking.send("HEAD", &uri, None);
    assert_eq!(head.status, 200, "HEAD");
    assert_eq!(head.header("content-type"), "text/event-stream", "HEAD");
    let strange = gateway.client("carol").with("Accept", "text/event-stream");
    assert_eq!(strange.get(&uri).status, 404, "not for others");
    assert!(
        gateway.metric("snapgate_waiters") < 0.5,
        "no request waits any more"
    );
    let counted =
        gateway.metric("snapgate_requests_total{code=\"200\",method=\"GET\",route=\"events\"}");
    assert!((counted - 2.0).abs() < 0.1, "counted apart: {counted}");
}

#[apply(test)]
fn a_stream_ends_in_a_drain() {
    let gateway = Gateway::start(&SIM.replace("duration = \"50ms\"", "duration = \"10m\""));
    let (api, admin) = (gateway.api, gateway.admin);
    let alice = gateway.client("alice");
    let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    let mut stream = Stream::open(api, &uri, None);
    assert!(stream.event().is_some(), "the present");
    eventually("it waits", || metric(admin, "snapgate_waiters") > 0.5);
    let stopped = stop_in_background(gateway);
    while stream.event().is_some() {}
    let took = stopped.join().unwrap();
    assert!(
        took < Duration::from_secs(20),
        "it held nothing up: {took:?}"
    );
}

#[apply(test)]
fn a_stream_is_taken_up_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let sim = SIM
        .replace("SECRET_HASH", SECRET_HASH)
        .replace("duration = \"50ms\"", "duration = \"3s\"");
    fs::write(&config, format!("{ports}{sim}")).unwrap();
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let first = Process::start(&arguments);
    let alice = Client::new(first.api, "alice", "secret");
    let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    let mut stream = Stream::open(first.api, &uri, None);
    let mut seen = stream.event().unwrap();
    while seen.status["state"] != "RUNNING" {
        seen = stream.event().unwrap();
    }
    first.kill();
    let second = Process::start(&arguments);
    let rest = Stream::open(second.api, &uri, Some(&seen.id)).rest();
    let (last, _) = rest.split_last().expect("it goes on");
    let finished = Client::new(second.api, "alice", "secret").finished(&uri);
    assert_eq!(last.status, finished, "to the end: {rest:?}");
    let number = |event: &Event| event.id.split_once('-').unwrap().1.parse::<u64>().unwrap();
    assert!(
        rest.iter().all(|event| number(event) > number(&seen)),
        "nothing twice: {seen:?}, then {rest:?}"
    );
}

/// How many wait, half of them in long polls and half in streams; and how many more come while the change happens.
const WAITERS: u32 = 1000;
const LATE: u32 = 200;
/// A wake-up that was missed shows only at the next sign of life of a stream, after 15 seconds, or at the end of a long
/// poll, after 50: a request that is answered sooner was woken.
const WOKEN: Duration = Duration::from_secs(14);

/// Sends one request and reads everything until the gateway closes the connection.
async fn whole(address: SocketAddr, request: String) -> String {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(PATIENCE, asked).await;
    text.expect("an answer in time").expect("a whole answer")
}

fn waiting(address: SocketAddr, uri: &str, number: u32) -> String {
    let how = if number.is_multiple_of(2) {
        "Prefer: wait=50"
    } else {
        "Accept: text/event-stream"
    };
    format!(
        "GET {uri} HTTP/1.1\r\nHost: {address}\r\n{how}\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        basic("alice", "secret")
    )
}

#[apply(test)]
fn a_thousand_wait_and_none_is_missed() {
    // Each waiter is a socket here and another one in the gateway, a process of its own that inherits the limit.
    let most = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: most.maximum,
        maximum: most.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let sim = SIM
        .replace("SECRET_HASH", SECRET_HASH)
        .replace("duration = \"50ms\"", "duration = \"10m\"");
    fs::write(&config, format!("{ports}[log]\naccess = false\n{sim}")).unwrap();
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let (api, admin) = (gateway.api, gateway.admin);
    let alice = Client::new(api, "alice", "secret");
    alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    // Queued behind the first, so that nothing changes before it is stopped.
    let uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let ask = |number| runtime.spawn(whole(api, waiting(api, &uri, number)));
    let mut all: Vec<_> = (0..WAITERS).map(ask).collect();
    eventually("all wait", || {
        metric(admin, "snapgate_waiters") > f64::from(WAITERS) - 0.5
    });
    let late = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| alice.delete(&uri).status);
        let late: Vec<_> = (0..LATE).map(ask).collect();
        assert_eq!(stopping.join().unwrap(), 202, "stopped");
        late
    });
    let begun = Instant::now();
    all.extend(late);
    for (number, asked) in all.into_iter().enumerate() {
        let answer = runtime.block_on(asked).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
        assert!(
            answer.contains("\"state\":\"CANCELLED\""),
            "{number} was missed: {answer}"
        );
        if number % 2 == 1 {
            assert!(
                answer.ends_with("0\r\n\r\n"),
                "{number}: ended properly: {answer}"
            );
        }
    }
    let took = begun.elapsed();
    assert!(took < WOKEN, "woken, not timed out: {took:?}");
    eventually("no place is left taken", || {
        metric(admin, "snapgate_waiters") < 0.5
    });
}
