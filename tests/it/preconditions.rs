//! Several writers with one valid entity tag or plan: exactly one succeeds, whatever they ask for, and through kills.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use crate::client::Client;
use crate::client::basic;
use crate::client::read_some;
use crate::harness::FILES;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SIM;
use crate::harness::settings_for_alice;

const WRITERS: usize = 8;
const BACKUP: &str = "/vms/1/backups/456";
const LIST: &str = "/vms/1/backups";

/// What each writer does, by its number: method, path, body.
type Write = fn(usize) -> (&'static str, &'static str, Option<String>);

fn update(number: usize) -> (&'static str, &'static str, Option<String>) {
    let body = format!("{{\"description\": \"by writer {number}\"}}");
    ("PUT", BACKUP, Some(body))
}

fn delete(_: usize) -> (&'static str, &'static str, Option<String>) {
    ("DELETE", BACKUP, None)
}

fn restore(_: usize) -> (&'static str, &'static str, Option<String>) {
    let body = Some("{}".to_owned());
    ("POST", "/vms/1/backups/456/restore", body)
}

fn create(number: usize) -> (&'static str, &'static str, Option<String>) {
    let body = Some(format!("{{\"name\": \"by-{number}\"}}"));
    ("POST", LIST, body)
}

fn mixed(number: usize) -> (&'static str, &'static str, Option<String>) {
    [update, delete, restore][number % 3](number)
}

/// Sends what all writers write at one moment, with one tag. The final Statuses of what was accepted, by their URI, and how
/// many were refused at once.
fn race(gateway: &Gateway, write: Write, tag: &str) -> (BTreeSet<String>, usize) {
    let barrier = Arc::new(Barrier::new(WRITERS));
    let running: Vec<_> = (0..WRITERS)
        .map(|number| {
            let client = gateway
                .client("alice")
                .with("If-Match", tag)
                .with("Prefer", "respond-async")
                .with("Content-Type", "application/json");
            let barrier = Arc::clone(&barrier);
            let send = move || {
                let (method, path, body) = write(number);
                barrier.wait();
                client.send(method, path, body.as_deref().map(str::as_bytes))
            };
            std::thread::Builder::new().spawn(send).unwrap()
        })
        .collect();
    let mut accepted = BTreeSet::new();
    let mut refused = 0;
    for reply in running.into_iter().map(|writer| writer.join().unwrap()) {
        if reply.status == 412 {
            assert_eq!(reply.code(), "PreconditionFailed", "{reply:?}");
            refused += 1;
        } else {
            accepted.insert(reply.status_uri());
        }
    }
    (accepted, refused)
}

#[apply(test)]
fn of_several_writers_with_one_tag_one_succeeds() {
    let slow = SIM.replace("\"50ms\"", "\"2s\"");
    let rows: [(&str, &str, Write); 5] = [
        ("update", BACKUP, update),
        ("delete", BACKUP, delete),
        ("restore", BACKUP, restore),
        ("create", LIST, create),
        ("a mixture", BACKUP, mixed),
    ];
    for (name, tagged, write) in rows {
        for is_busy in [false, true] {
            let gateway =
                Gateway::start(&slow.replace("\"2s\"\n", "\"2s\"\nsimulated_backups = 2\n"));
            let alice = gateway.client("alice");
            if is_busy {
                // What is accepted now waits for its turn.
                let other = alice.post("/vms/1/backups/457/restore", "{}");
                assert_eq!(other.status, 202, "{name}: the VM is busy");
            }
            let tag = alice.get(tagged).header("etag").to_owned();
            let (accepted, refused) = race(&gateway, write, &tag);
            let ends: Vec<Value> = accepted.iter().map(|uri| alice.finished(uri)).collect();
            let won = ends.iter().filter(|end| end["state"] == "SUCCESS").count();
            assert_eq!(won, 1, "{name}, busy {is_busy}: one succeeds: {ends:?}");
            for end in ends.iter().filter(|end| end["state"] != "SUCCESS") {
                assert_eq!(end["status"], 412, "{name}, busy {is_busy}: {end}");
                let message = end["message"].as_str().unwrap();
                assert!(message.contains("nothing was changed"), "{name}: {message}");
            }
            let all = accepted.len() + refused;
            assert_eq!(all, WRITERS, "{name}, busy {is_busy}: each has its answer");
        }
    }
}

/// The answer to one request; `None` when the gateway died over it.
fn exchange(address: SocketAddr, request: &str, headers: &str, body: &str) -> Option<(u16, Value)> {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {}\r\n\
         X-Cloud-Client-Specification-Version: 0.1\r\n{headers}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        basic("alice", "secret"),
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match read_some(&mut stream, &mut part).ok()? {
            0 => break,
            count => bytes.extend_from_slice(&part[..count]),
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}

/// What several writers have in common.
#[derive(Clone)]
enum Condition {
    /// The entity tag of the backup that they change.
    Tag(String),
    /// The fingerprint of one plan to restore from it.
    Plan(String),
}

impl Condition {
    /// The request of one writer: its first line, its fields and its body.
    fn request(&self, path: &str, life: u32, number: usize) -> (String, String, String) {
        let text = format!("by {number} in {life}");
        match self {
            Self::Tag(tag) if number.is_multiple_of(4) => (
                format!("DELETE {path}"),
                format!("If-Match: {tag}\r\n"),
                String::new(),
            ),
            Self::Tag(tag) => (
                format!("PUT {path}"),
                format!("If-Match: {tag}\r\n"),
                format!("{{\"description\": \"{text}\"}}"),
            ),
            Self::Plan(print) => (
                format!("POST {path}/restore"),
                format!("If-Plan: \"{print}\"\r\n"),
                format!("{{\"note\": \"{text}\"}}"),
            ),
        }
    }
}

/// How a writer fared: the Status of its change, or `None` when it was refused at once.
fn write_until_answered(
    gateway: &Mutex<Option<SocketAddr>>,
    condition: &Condition,
    path: &str,
    life: u32,
    number: usize,
) -> Option<String> {
    let until = Instant::now() + PATIENCE;
    let (request, condition, body) = condition.request(path, life, number);
    let headers = format!(
        "{condition}Idempotency-Key: \"{life}-{number}\"\r\n\
         Content-Type: application/json\r\nPrefer: respond-async\r\n"
    );
    loop {
        let address = *gateway.lock().unwrap();
        let answer = address.and_then(|address| exchange(address, &request, &headers, &body));
        match answer {
            Some((202, status)) => return Some(status["status_uri"].as_str().unwrap().to_owned()),
            Some((412, _)) => return None,
            Some((503, _)) | None => std::thread::sleep(Duration::from_millis(3)),
            Some((status, answer)) => panic!("{request}: {status} {answer}"),
        }
        assert!(Instant::now() < until, "no answer in time: {request}");
    }
}

#[apply(test)]
fn of_several_writers_with_one_tag_one_succeeds_however_often_the_gateway_is_killed() {
    kill_under_writers(|client, path| Condition::Tag(client.get(path).header("etag").to_owned()));
}

#[apply(test)]
fn of_several_restores_with_one_plan_one_succeeds_however_often_the_gateway_is_killed() {
    kill_under_writers(|client, path| {
        let plan = client.post(&format!("{path}/plan"), r#"{"op": "restore-Backup"}"#);
        assert_eq!(plan.status, 200, "{plan:?}");
        Condition::Plan(plan.json()["fingerprint"].as_str().unwrap().to_owned())
    });
}

/// Gateways over real files, killed while several writers hold one condition.
fn kill_under_writers(condition: fn(&Client, &str) -> Condition) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("vms/db")).unwrap();
    fs::create_dir_all(folder.path().join("backups")).unwrap();
    fs::write(folder.path().join("vms/db/data.img"), vec![7; 64 * 1024]).unwrap();
    let config = settings_for_alice(FILES);
    // The same for every life: the tag covers the links.
    let config = config.replace(
        "[server]\n",
        "[server]\npublic_url = \"http://backups.example\"\n",
    );
    let file = folder.path().join("snapgate.toml");
    fs::write(&file, config).unwrap();
    let arguments = ["serve", "--config", file.to_str().unwrap()];
    let (mut by_status, mut at_once) = (0, 0);
    for life in 0..12_u32 {
        let process = Process::start(&arguments);
        let client = Client::new(process.api, "alice", "secret");
        let made = client.post("/back_up?vm=db", &format!("{{\"name\": \"life-{life}\"}}"));
        let made = client.finished(&made.status_uri());
        let path = made["target_uri"].as_str().unwrap().to_owned();
        let tag = client.get(&path).header("etag").to_owned();
        let shared = condition(&client, &path);
        let gateway = Arc::new(Mutex::new(Some(process.api)));
        let barrier = Arc::new(Barrier::new(WRITERS + 1));
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (gateway, barrier) = (Arc::clone(&gateway), Arc::clone(&barrier));
                let (shared, path) = (shared.clone(), path.clone());
                let write = move || {
                    barrier.wait();
                    write_until_answered(&gateway, &shared, &path, life, number)
                };
                std::thread::Builder::new().spawn(write).unwrap()
            })
            .collect();
        barrier.wait();
        // Another moment each time.
        std::thread::sleep(Duration::from_millis(u64::from(life) * 2));
        process.kill();
        *gateway.lock().unwrap() = None;
        let next = Process::start(&arguments);
        *gateway.lock().unwrap() = Some(next.api);
        let answers: Vec<Option<String>> = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect();
        let client = Client::new(next.api, "alice", "secret");
        at_once += answers.iter().filter(|answer| answer.is_none()).count();
        let accepted: BTreeSet<&String> = answers.iter().flatten().collect();
        let ends: Vec<Value> = accepted.iter().map(|uri| client.finished(uri)).collect();
        let (won, lost): (Vec<_>, Vec<_>) = ends.iter().partition(|end| end["state"] == "SUCCESS");
        assert_eq!(won.len(), 1, "life {life}: {ends:?}");
        for end in &lost {
            assert_eq!(end["status"], 412, "life {life}: {end}");
        }
        by_status += lost.len();
        let found = client.get(&path);
        if won[0]["op"] == "delete-Backup" {
            assert_eq!(found.status, 404, "life {life}: the delete won: {found:?}");
        } else if won[0]["op"] == "restore-Backup" {
            assert_eq!(
                found.header("etag"),
                tag,
                "life {life}: restored, not changed"
            );
        } else {
            let description = found.json()["description"].as_str().unwrap().to_owned();
            assert!(
                description.ends_with(&format!("in {life}")),
                "{description}"
            );
            assert_ne!(found.header("etag"), tag, "life {life}: another tag");
        }
        next.kill();
    }
    assert!(
        at_once + by_status >= 12,
        "{at_once} at once, {by_status} later"
    );
}
