//! Clients that ask for changes while the gateway dies under them, and write down every answer.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use serde_json::Value;

use crate::client::basic;
use crate::harness::PATIENCE;
use crate::kill::history::Accepted;
use crate::prng::Prng;

/// VMs that changes are asked for.
const VMS: u64 = 6;
/// Between two tries to reach a gateway that is away.
const AWAY: Duration = Duration::from_millis(5);
/// Longest time for one exchange: a gateway that is alive answers sooner.
const EXCHANGE: Duration = Duration::from_secs(20);

/// What all clients know.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// Where the gateway is; `None` while it is away.
    pub(crate) gateway: Mutex<Option<SocketAddr>>,
    /// The gateway to be killed by the client that reads the next 202.
    pub(crate) victim: Mutex<Option<u32>>,
    /// Whether nothing new is asked for.
    pub(crate) over: AtomicBool,
}

/// The status and the JSON of an answer; `None` when none came whole.
fn exchange(world: &World, request: &str, headers: &str, body: &str) -> Option<(u16, Value)> {
    let address = (*world.gateway.lock().unwrap())?;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(EXCHANGE)).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {}\r\n\
         X-Cloud-Client-Specification-Version: 0.1\r\n{headers}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        basic("alice", "secret"),
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // A body that was cut off is no JSON.
    Some((status, serde_json::from_str(body).ok()?))
}

/// Asks for changes until it is over, each until it got its 202.
pub(crate) fn ask_for_changes(world: &World, number: u64) -> Vec<Accepted> {
    let mut prng = Prng::new(number);
    let mut accepted = Vec::<Accepted>::new();
    while !world.over.load(Ordering::Acquire) {
        let key = format!("\"client-{number}-{}\"", accepted.len());
        accepted.push(one_change(world, &key, &mut prng));
        let at = usize::try_from(prng.below(u64::try_from(accepted.len()).unwrap())).unwrap();
        look(world, &mut accepted[at]);
        std::thread::sleep(Duration::from_millis(prng.below(20)));
    }
    accepted
}

fn one_change(world: &World, key: &str, prng: &mut Prng) -> Accepted {
    let vm = 1 + prng.below(VMS);
    let (request, body) = if prng.below(4) == 0 {
        let body = format!("{{\"description\": \"words {}\"}}", prng.below(1000));
        (format!("PUT /vms/{vm}/backups/456"), body)
    } else {
        (
            format!("POST /vms/{vm}/backups/456/restore"),
            "{}".to_owned(),
        )
    };
    let prefer = ["", "Prefer: respond-async\r\n", "Prefer: wait=5\r\n"];
    let prefer = prefer[usize::try_from(prng.below(3)).unwrap()];
    let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n{prefer}");
    let until = Instant::now() + PATIENCE;
    loop {
        match exchange(world, &request, &headers, &body) {
            Some((202, status)) => {
                kill_the_victim(world);
                let mut accepted = Accepted::default();
                let uri = status["status_uri"].as_str().unwrap().to_owned();
                accepted.status_uris.insert(uri);
                note(&mut accepted, &status);
                return accepted;
            }
            // Its queue is full.
            Some((503, _)) | None => std::thread::sleep(AWAY),
            Some((status, answer)) => panic!("{request}: {status} {answer}"),
        }
        assert!(Instant::now() < until, "no 202 in time: {request}");
    }
}

fn kill_the_victim(world: &World) {
    let mut victim = world.victim.lock().unwrap();
    if let Some(pid) = victim.take() {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
}

/// Writes down what is final.
fn note(accepted: &mut Accepted, status: &Value) {
    if status["progress"] == 100 {
        let mut end = status.clone();
        // Kept for so long after its end; the rest must stay as it was.
        end.as_object_mut().unwrap().remove("expires");
        accepted.ends.push(end);
    }
}

/// Reads the Status once, if the gateway is there.
fn look(world: &World, accepted: &mut Accepted) {
    for uri in accepted.status_uris.clone() {
        match exchange(world, &format!("GET {uri}"), "Prefer: wait=1\r\n", "") {
            Some((200, status)) => note(accepted, &status),
            Some((404, _)) => accepted.missing += 1,
            Some((503, _)) | None => {}
            Some((status, answer)) => panic!("{uri}: {status} {answer}"),
        }
    }
}

/// Reads the Status until it has ended, for as long as anybody would wait.
pub(crate) fn look_until_the_end(world: &World, accepted: &mut Accepted) {
    let until = Instant::now() + PATIENCE;
    let before = accepted.ends.len();
    while accepted.ends.len() == before && accepted.missing == 0 && Instant::now() < until {
        look(world, accepted);
    }
}
