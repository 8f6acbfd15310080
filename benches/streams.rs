//! What streams of all Statuses cost those who write: durable updates a second without streams, with streams whose readers
//! may see nothing, and with streams whose readers see everything.
//!
//! The gateway is a process of its own; writers and readers share one other process and the machine with it. The three are
//! measured in turn, several times, and compared by their medians. Command: `cargo bench --bench streams`; another number of
//! streams with `SNAPGATE_BENCH_STREAMS`.
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
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const STREAMS: usize = 500;
/// Clients that write at once, each on a VM of its own.
const WRITERS: usize = 16;
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// `alice` and `bob`, both with `secret`.
const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";
const BOB: &str = "Basic Ym9iOnNlY3JldA==";
const HASH: &str = "$2b$04$ABCDEFGHIJKLMNOPQRSTUux/yVoHLb2P5.QxxfIdIyVUJvRQqUe5S";

fn config() -> String {
    let vms: Vec<String> = (0..WRITERS).map(|vm| format!("\"{vm}\"")).collect();
    let vms = vms.join(", ");
    format!(
        r#"
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
[[backend]]
name = "lab"
kind = "sim"
vms = [{vms}]
[backend.sim]
simulated_vms = [{vms}]
duration = "1ms"
[[user]]
name = "alice"
password_hash = "{HASH}"
[[user]]
name = "bob"
password_hash = "{HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "update", "observe"]
vms = ["*"]
backups = ["*"]
"#
    )
}

fn main() {
    let most = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: most.maximum,
        maximum: most.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let count = std::env::var("SNAPGATE_BENCH_STREAMS")
        .map_or(STREAMS, |count| count.parse().expect("a number"));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("snapgate.toml");
    std::fs::write(&file, config()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapgate"));
    command.args(["serve", "--config"]).arg(&file);
    let server = Server::start(&mut command);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let kinds: [(&str, usize, &'static str); 3] = [
        ("no streams", 0, ALICE),
        ("readers who may see nothing", count, BOB),
        ("readers who see everything", count, ALICE),
    ];
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (rates, (_, streams, reader)) in rates.iter_mut().zip(kinds) {
            rates.push(measure(&runtime, &server, streams, reader));
        }
    }
    let medians = rates.map(median);
    let mut out = std::io::stdout();
    for ((name, streams, _), rate) in kinds.iter().zip(medians) {
        let ratio = rate / medians[0];
        writeln!(
            out,
            "{name:<28} {streams:>5} streams {rate:>8.0} updates/s  ratio {ratio:.2}"
        )
        .unwrap();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A gateway that ends with this program.
struct Server {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |prefix: &str| {
            let line = lines.next().expect("it starts").unwrap();
            line.strip_prefix(prefix).expect(prefix).parse().unwrap()
        };
        let (api, admin) = (address("listening on http://"), address("admin on http://"));
        Self { child, api, admin }
    }
}

/// Durable updates a second while so many streams are open.
fn measure(runtime: &Runtime, server: &Server, streams: usize, reader: &'static str) -> f64 {
    runtime.block_on(async {
        let readers: Vec<_> = (0..streams)
            .map(|_| tokio::spawn(read_stream(server.api, reader)))
            .collect();
        wait_for_streams(server.admin, streams).await;
        let (stopped, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let begun = Instant::now();
        let writers: Vec<_> = (0..WRITERS)
            .map(|vm| {
                let (stopped, done) = (Arc::clone(&stopped), Arc::clone(&done));
                tokio::spawn(write_updates(server.api, vm, stopped, done))
            })
            .collect();
        tokio::time::sleep(TIME).await;
        stopped.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let took = begun.elapsed().as_secs_f64();
        let done = u32::try_from(done.load(Ordering::Relaxed)).unwrap();
        for reader in readers {
            assert!(!reader.is_finished(), "no reader was cut off");
            reader.abort();
        }
        wait_for_streams(server.admin, 0).await;
        f64::from(done) / took
    })
}

/// Reads a stream and forgets what it read.
async fn read_stream(api: SocketAddr, reader: &str) {
    let mut stream = TcpStream::connect(api).await.unwrap();
    let request = format!(
        "GET /statuses HTTP/1.1\r\nHost: x\r\nAuthorization: {reader}\r\nAccept: text/event-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Waits until exactly so many streams wait for changes.
async fn wait_for_streams(admin: SocketAddr, count: usize) {
    let wanted = format!("snapgate_waiters {count}");
    let until = Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        if text.lines().any(|line| line == wanted) {
            return;
        }
        assert!(Instant::now() < until, "{count} streams in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Changes a backup again and again on one connection: each answer comes after a durable write.
async fn write_updates(api: SocketAddr, vm: usize, stopped: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut stream = TcpStream::connect(api).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let body = "{\"description\":\"changed\"}";
    let request = format!(
        "PUT /vms/{vm}/backups/456 HTTP/1.1\r\nHost: x\r\nAuthorization: {ALICE}\r\n\
         X-Cloud-Client-Specification-Version: 0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut received = Vec::new();
    while !stopped.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes()).await.unwrap();
        received.clear();
        while !is_whole(&received) {
            let count = stream.read_buf(&mut received).await.unwrap();
            assert!(count > 0, "an answer");
        }
        assert!(received.starts_with(b"HTTP/1.1 202"), "accepted");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a response has arrived to its end.
fn is_whole(received: &[u8]) -> bool {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).expect("a length");
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    received.len() >= end + 4 + length
}
