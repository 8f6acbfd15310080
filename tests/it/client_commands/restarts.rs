//! A client that waits is not disturbed by gateways that are killed, restarted, or answer 503.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::client_commands::ScriptedServer;
use crate::client_commands::backup;
use crate::client_commands::refusal;
use crate::client_commands::status;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::eventually;

const KILLS: usize = 10;

/// A VM manager that outlives gateways, in the protocol of `docs/adapters/sim.md`: its one task ends when the test says so.
#[derive(Debug, Default)]
struct SlowVmm {
    /// The keys of the operations that it was asked to begin.
    keys: Mutex<BTreeSet<u64>>,
    begins: AtomicUsize,
    polls: AtomicUsize,
    may_end: AtomicBool,
}

impl SlowVmm {
    fn start(socket: &Path) -> Arc<Self> {
        let listener = UnixListener::bind(socket).unwrap();
        let vmm = Arc::new(Self::default());
        let serving = Arc::clone(&vmm);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    serving.answer(stream.unwrap());
                }
            })
            .unwrap();
        vmm
    }

    fn answer(&self, mut stream: UnixStream) {
        let mut line = String::new();
        let read = BufReader::new(&stream).read_line(&mut line);
        // A gateway that died between connecting and asking asked nothing.
        let Ok(asked) = read.map_or(Ok(Value::Null), |_| serde_json::from_str::<Value>(&line))
        else {
            return;
        };
        let backup = json!({"id": "456", "identity": "first", "name": "first", "created": 1000});
        let reply = match asked["call"].as_str().unwrap_or_default() {
            "health" => json!({"product": "slow VM manager"}),
            "vm" => json!("here"),
            "list" => json!({"backups": {"backups": [backup], "more": false}}),
            "read" => json!({ "backup": backup }),
            "position" => json!({"position": 0}),
            "begin" => {
                self.begins.fetch_add(1, Ordering::SeqCst);
                let key = asked["key"].as_u64().unwrap();
                self.keys.lock().unwrap().insert(key);
                json!({ "task": key.to_string() })
            }
            "poll" if self.may_end.load(Ordering::SeqCst) => json!("done"),
            "poll" => {
                let polls = self.polls.fetch_add(1, Ordering::SeqCst);
                json!({"running": 1 + polls.min(90)})
            }
            "find" => json!({ "task": asked["key"].to_string() }),
            other => panic!("no such call: {other:?}"),
        };
        // A gateway that is gone does not want to know.
        drop(stream.write_all(format!("{reply}\n").as_bytes()));
    }
}

fn config(port: u16, socket: &Path) -> String {
    format!(
        r#"[server]
listen = "127.0.0.1:{port}"
admin = "127.0.0.1:0"
[operations]
store = "operations.db"
poll_min = "50ms"
poll_max = "200ms"
[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
[backend.sim]
simulator = "unix:{}"
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "restore", "observe"]
vms = ["*"]
backups = ["*"]
[log]
access = false
"#,
        socket.display()
    )
}

#[apply(test)]
fn ten_kills_of_the_gateway_under_a_restore_leave_one_restore_and_exit_status_0() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vmm");
    let vmm = SlowVmm::start(&socket);
    // The same port for every gateway; another program may take it in between, which is no failure of the client.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let file = folder.path().join("snapgate.toml");
    std::fs::write(&file, config(address.port(), &socket)).unwrap();
    let arguments = ["serve", "--config", file.to_str().unwrap()];
    let mut gateway = Process::start(&arguments);
    let home = Home::new(address);
    let mut running = home.start("alice", "backup restore 1 456 --yes --wait --output json");
    for kill in 0..KILLS {
        match kill {
            // While the restore is being sent, or has just been accepted.
            0 => std::thread::sleep(Duration::from_millis(60)),
            // The client is back: it waits less than a second after a short outage.
            _ => std::thread::sleep(Duration::from_millis(900)),
        }
        gateway.kill();
        std::thread::sleep(Duration::from_millis(100));
        let ended = running.try_wait().unwrap();
        assert!(ended.is_none(), "it waits on after kill {kill}: {ended:?}");
        gateway = Process::start(&arguments);
    }
    eventually("the restore has begun", || {
        vmm.begins.load(Ordering::SeqCst) > 0
    });
    vmm.may_end.store(true, Ordering::SeqCst);
    let ended = Ended::from_output(running.wait_with_output().unwrap());
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(ended.result()["outcome"], "succeeded", "{ended:?}");
    let records = ended.records();
    let of_kind = |kind: &str| {
        records
            .iter()
            .filter(|record| record["record"] == kind)
            .count()
    };
    assert!(of_kind("retry") >= KILLS / 2, "it noticed: {ended:?}");
    assert_eq!(of_kind("accepted"), 1, "accepted once: {ended:?}");
    assert_eq!(vmm.keys.lock().unwrap().len(), 1, "one restore: {vmm:?}");
    let listed = home.run("alice", "status list --output json");
    assert_eq!(
        listed.records().len(),
        2,
        "one operation and the result: {listed:?}"
    );
}

#[apply(test)]
fn answers_of_503_and_broken_connections_are_waited_through_with_one_key() {
    let server = ScriptedServer::start(|asked, before| {
        let path = asked.target.split('?').next().unwrap();
        match (asked.method.as_str(), path, before % 3) {
            // Every second of three answers is a 503, and every third connection is closed.
            (_, _, 1) => refusal(503, "Stopping"),
            (_, _, 2) => None,
            ("GET", "/vms/1", _) => Some((200, json!({"name": "web"}).to_string())),
            ("GET", "/vms/1/backups/456", _) => Some((
                200,
                backup("456", "first", "2026-01-01T00:00:00Z").to_string(),
            )),
            ("POST", ..) => Some((202, status(0, &json!({})).to_string())),
            ("GET", "/statuses", _) => {
                let success = json!({"state": "SUCCESS", "status": 200, "message": "Restored."});
                Some((200, status(100, &success).to_string()))
            }
            _ => refusal(404, "NoSuchRoute"),
        }
    });
    let home = Home::new(server.address);
    let ended = home.run("alice", "backup restore 1 456 --yes --wait --output json");
    assert_eq!(ended.status, 0, "{ended:?}");
    let asked = server.asked();
    let keys: BTreeSet<&String> = asked
        .iter()
        .filter(|asked| asked.method == "POST")
        .map(|asked| &asked.headers["idempotency-key"])
        .collect();
    assert_eq!(keys.len(), 1, "one key for every try: {asked:?}");
}

#[apply(test)]
fn a_stream_is_resumed_where_it_broke_off() {
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&streams);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(asked) = super::read_request(&mut stream) else {
                    continue;
                };
                let is_stream = asked.headers["accept"] == "text/event-stream";
                let begun = status(0, &json!({}));
                let text = if is_stream {
                    let number = counted.fetch_add(1, Ordering::SeqCst);
                    sender.send(asked.headers.get("last-event-id").cloned()).unwrap();
                    let (progress, more) = match number {
                        0 => (10, json!({})),
                        _ => (100, json!({"state": "SUCCESS", "status": 200})),
                    };
                    let event = status(progress, &more);
                    // No length: the end of the connection is the end of the stream, in the middle of an event.
                    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{}", {
                        let body = format!("retry: 50\n\nid: 7-{number}\ndata: {event}\n\nid: 7-9\ndata: {{");
                        format!("{:x}\r\n{body}\r\n", body.len())
                    })
                } else {
                    let body = begun.to_string();
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                };
                drop(stream.write_all(text.as_bytes()));
            }
        })
        .unwrap();
    let home = Home::new(address);
    let ended = home.run("alice", "status wait 7 --output json");
    assert_eq!(ended.status, 0, "{ended:?}");
    let ids: Vec<Option<String>> = received.try_iter().collect();
    assert_eq!(ids, [None, Some("7-0".to_owned())], "resumed: {ended:?}");
}
