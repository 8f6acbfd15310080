//! Raw bytes through the real listener to the decision: what the gateway acts on must be a request by the reference reader too.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;

use snapgate::app;
use snapgate::config;

use super::reference_http1;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(9);

/// A gateway whose caller `ann`, password `secret`, may do everything to simulated VMs.
const LISTENING: &str = r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"

[operations]
store = "operations.db"

[[backend]]
name = "simulated"
kind = "sim"
vms = ["*"]
simulated_vms = ["33333"]
duration = "1ms"

[[user]]
name = "ann"
password_hash = "$argon2id$v=19$m=8,t=1,p=1$WOV57XxSOm3WI7S3TunXvQ$eOteaxagQi0qZvkzf60p8D2116HVd8xUgwo/i/1GOc4"

[[grant]]
to = ["user:ann"]
actions = ["read", "update"]
vms = ["*"]
backups = ["*"]
"#;

/// A gateway that runs as long as this process.
struct Listening {
    api: SocketAddr,
    _runtime: tokio::runtime::Runtime,
    _running: app::Running,
    _folder: tempfile::TempDir,
}

fn listening() -> SocketAddr {
    static GATEWAY: OnceLock<Listening> = OnceLock::new();
    GATEWAY.get_or_init(start).api
}

fn start() -> Listening {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapgate.toml");
    std::fs::write(&file, LISTENING).unwrap();
    let loaded = config::load(&file, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let running = runtime.block_on(app::start(loaded)).unwrap();
    Listening {
        api: running.api(),
        _runtime: runtime,
        _running: running,
        _folder: folder,
    }
}

/// The bytes as all that a client of HTTP/1.1 sends on one connection.
pub(crate) fn listener(data: &[u8]) {
    let expected = reference_http1::read(data);
    let answer = converse(listening(), data);
    let statuses = read_statuses(&answer, &expected.methods);
    let well_formed = expected.methods.len();
    let acted_on = statuses.iter().filter(|status| **status < 400).count();
    assert!(
        acted_on <= well_formed,
        "acted on {acted_on} requests where there are {well_formed}: {statuses:?}, {expected:?}"
    );
    assert!(
        statuses.len() <= well_formed + 1,
        "one refusal ends the connection: {statuses:?}, {expected:?}"
    );
}

/// Sends the bytes and returns everything that comes back until the connection ends.
fn converse(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // A gateway that has read enough may close before everything was sent.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let mut part = [0; 16_384];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) => {
                let is_late = error.kind() == std::io::ErrorKind::WouldBlock;
                assert!(!is_late, "the connection ends in time");
                return answer;
            }
        }
    }
}

/// The final statuses of the answers, whose framing must leave nothing over.
fn read_statuses(mut answer: &[u8], methods: &[String]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answer.is_empty() {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            // A reset may cut the last answer off.
            return statuses;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status = head
            .strip_prefix("http/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line: {head}"));
        answer = &answer[end + 4..];
        if status < 200 {
            continue;
        }
        let is_bodiless = [204, 304].contains(&status) || answer.starts_with(b"HTTP/1.1 ");
        let is_head = methods
            .get(statuses.len())
            .is_some_and(|method| method == "HEAD");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if !is_bodiless && !is_head {
            answer = answer.get(length.unwrap_or_default()..).unwrap_or_default();
        }
        statuses.push(status);
    }
    statuses
}
