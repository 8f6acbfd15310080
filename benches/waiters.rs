//! Thousands of clients that wait for one Status: their cost in memory, and how soon the write wakes each.
//!
//! Half wait in long polls and half in streams of events, over sockets, in a gateway that is a process of its own. The
//! measure is a bare server in another process: a task for each connection that waits on one tokio `watch` channel and
//! answers with as many bytes. Same machine, same client, same run. Command: `cargo bench --bench waiters`; another
//! number with `SNAPGATE_BENCH_WAITERS`.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a program that measures by the clock on the wall, and has nothing to save when something is wrong"
)]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::sync::watch;

const WAITERS: usize = 5000;
/// Connections that are made at once: below what a listening socket keeps waiting.
const CONNECTING: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);
/// `alice` and `secret`.
const BASIC: &str = "Basic YWxpY2U6c2VjcmV0";
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "operations.db"
[log]
audit = "audit.jsonl"
access = false
level = "warn"
[limits]
connections = 100000
waiters = 100000
wait = "5m"
[[backend]]
name = "lab"
kind = "sim"
vms = ["1"]
[backend.sim]
simulated_vms = ["1"]
duration = "30m"
[[user]]
name = "alice"
password_hash = "$2b$04$ABCDEFGHIJKLMNOPQRSTUux/yVoHLb2P5.QxxfIdIyVUJvRQqUe5S"
[[grant]]
to = ["user:alice"]
actions = ["read", "restore"]
vms = ["*"]
backups = ["*"]
"#;

fn main() {
    if std::env::args().any(|arg| arg == "--peer") {
        runtime().block_on(peer());
        return;
    }
    // Each waiter is a socket here and another one in the server, which inherits the limit.
    let most = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: most.maximum,
        maximum: most.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let count = std::env::var("SNAPGATE_BENCH_WAITERS")
        .map_or(WAITERS, |count| count.parse().expect("a number"));
    let gateway = gateway(count);
    let bare = bare(count);
    let ratio = |of: fn(&Figures) -> f64| of(&gateway) / of(&bare);
    let mut out = std::io::stdout();
    for (name, costs) in [("gateway", &gateway), ("bare tokio", &bare)] {
        writeln!(
            out,
            "{name:<10} {count} wait, {} missed; {:.1} KiB each; woken: first {:.1} ms, median {:.1} ms, 99% {:.1} ms, last {:.1} ms",
            costs.missed, costs.kib_each, costs.at(0.0), costs.at(0.5), costs.at(0.99), costs.at(1.0)
        )
        .unwrap();
    }
    writeln!(
        out,
        "ratio      memory {:.1}; median {:.1}, 99% {:.1}, last {:.1}",
        ratio(|figures| figures.kib_each),
        ratio(|figures| figures.at(0.5)),
        ratio(|figures| figures.at(0.99)),
        ratio(|figures| figures.at(1.0))
    )
    .unwrap();
    assert_eq!(gateway.missed, 0, "no waiter is missed");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// What one server costs and how fast it is.
struct Figures {
    missed: usize,
    kib_each: f64,
    /// Milliseconds from the wake-up being sent to each answer being read, sorted.
    woken: Vec<f64>,
}

impl Figures {
    /// The latency that this share of the waiters does not exceed.
    fn at(&self, share: f64) -> f64 {
        let last = self.woken.len().saturating_sub(1);
        let steps = (0..last)
            .filter(|step| ratio(*step + 1, last) <= share)
            .count();
        self.woken.get(steps).copied().unwrap_or(f64::NAN)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap());
    number(part) / number(whole.max(1))
}

/// A server that ends with this program.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Server {
    /// Starts it and reads one address for each of the words that it prints before one.
    fn start(command: &mut Command, words: &[&str]) -> (Self, Vec<SocketAddr>) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut found = Vec::new();
        for word in words {
            let line = lines.next().expect("it starts").unwrap();
            found.push(line.strip_prefix(word).expect(word).parse().unwrap());
        }
        (Self(child), found)
    }

    /// Resident memory in KiB.
    fn memory(&self) -> usize {
        let file = format!("/proc/{}/status", self.0.id());
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse().unwrap()
    }
}

/// Sends one request on a connection of its own and reads everything that comes back.
async fn whole(address: SocketAddr, request: String) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits until the text has arrived, and returns when; `None` when the connection ends before.
async fn waits(
    address: SocketAddr,
    request: String,
    text: &'static [u8],
    connecting: Arc<Semaphore>,
) -> Option<Instant> {
    let mut stream = {
        let _turn = connecting.acquire().await.unwrap();
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        stream
    };
    let mut seen = Vec::new();
    let mut buffer = [0; 2048];
    while !seen.windows(text.len()).any(|window| window == text) {
        let count = stream.read(&mut buffer).await.ok()?;
        if count == 0 {
            return None;
        }
        seen.extend_from_slice(&buffer[..count]);
    }
    Some(Instant::now())
}

/// Lets so many wait, wakes them, and measures both.
async fn measure(
    server: &Server,
    address: SocketAddr,
    requests: Vec<String>,
    end: &'static [u8],
    waiting: impl AsyncFn() -> usize,
    wake: impl AsyncFn(),
) -> Figures {
    let count = requests.len();
    let before = server.memory();
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let ask = |request| tokio::spawn(waits(address, request, end, Arc::clone(&connecting)));
    let all: Vec<_> = requests.into_iter().map(ask).collect();
    let until = Instant::now() + PATIENCE;
    while waiting().await < count {
        assert!(Instant::now() < until, "they all wait in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cost = server.memory().saturating_sub(before);
    let begun = Instant::now();
    wake().await;
    let mut woken = Vec::new();
    for one in all {
        let at = tokio::time::timeout(PATIENCE, one).await;
        if let Ok(Ok(Some(at))) = at {
            woken.push(at.saturating_duration_since(begun).as_secs_f64() * 1e3);
        }
    }
    woken.sort_by(f64::total_cmp);
    Figures {
        missed: count - woken.len(),
        kib_each: ratio(cost, count),
        woken,
    }
}

fn request(method: &str, path: &str, more: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {BASIC}\r\n\
         X-Cloud-Client-Specification-Version: 0.1\r\nConnection: close\r\n{more}\r\n"
    )
}

fn gateway(count: usize) -> Figures {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapgate"));
    command.args(["serve", "--config"]).arg(&config);
    let words = ["listening on http://", "admin on http://"];
    let (server, addresses) = Server::start(&mut command, &words);
    let (api, admin) = (addresses[0], addresses[1]);
    runtime().block_on(async {
        let restore = || {
            request(
                "POST",
                "/vms/1/backups/456/restore",
                "Content-Length: 0\r\n",
            )
        };
        let first = whole(api, restore()).await;
        assert!(first.starts_with("HTTP/1.1 202"), "{first}");
        // Queued behind the first, so that nothing changes before it is stopped.
        let second = whole(api, restore()).await;
        let uri = second.split("status_uri\":\"").nth(1).expect(&second);
        let uri = uri.split('"').next().unwrap().to_owned();
        let requests = (0..count).map(|number| {
            let how = ["Prefer: wait=300\r\n", "Accept: text/event-stream\r\n"];
            request("GET", &uri, how[number % 2])
        });
        let waiting = async || {
            let text = whole(admin, request("GET", "/metrics", "")).await;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("snapgate_waiters "));
            line.unwrap().parse().unwrap()
        };
        let wake = async || drop(whole(api, request("DELETE", &uri, "")).await);
        let end = b"\"state\":\"CANCELLED\"";
        measure(&server, api, requests.collect(), end, waiting, wake).await
    })
}

fn bare(count: usize) -> Figures {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--peer");
    let (server, addresses) = Server::start(&mut command, &["on "]);
    let address = addresses[0];
    runtime().block_on(async {
        let requests = (0..count).map(|_| request("GET", "/wait", ""));
        let waiting = async || {
            let text = whole(address, request("GET", "/count", "")).await;
            text.parse().unwrap()
        };
        let wake = async || drop(whole(address, request("GET", "/wake", "")).await);
        measure(&server, address, requests.collect(), b"END", waiting, wake).await
    })
}

/// The measure: no HTTP but the end of a head, no store, nothing but tasks and one channel.
async fn peer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "on {address}").unwrap();
    let sender = Arc::new(watch::Sender::new(false));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(served(stream, Arc::clone(&sender)));
    }
}

async fn served(mut stream: TcpStream, sender: Arc<watch::Sender<bool>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    if head.starts_with(b"GET /wake") {
        sender.send_replace(true);
        return Ok(());
    }
    if head.starts_with(b"GET /count") {
        let count = sender.receiver_count().to_string();
        return stream.write_all(count.as_bytes()).await;
    }
    let mut receiver = sender.subscribe();
    let woken = receiver.wait_for(|is_given| *is_given).await.is_ok();
    assert!(woken, "the sender lives as long as the program");
    // As long as the head and the Status that the gateway sends.
    let mut answer = vec![b'x'; 800];
    answer.extend_from_slice(b"END");
    stream.write_all(&answer).await
}
