//! Clients that ask for changes while the gateway dies under them, and write down every answer.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
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
/// What all clients know.
#[derive(Debug)]
pub(crate) struct World {
    /// Where gateways are; none while the only one is away. Which one is asked changes with each failure.
    pub(crate) gateways: Mutex<Vec<SocketAddr>>,
    /// Longest time for one exchange: a gateway that is alive answers sooner.
    pub(crate) patience: Duration,
    /// Whether some changes have a condition.
    pub(crate) is_conditional: bool,
    /// How often a gateway failed or sent a client elsewhere.
    pub(crate) failures: AtomicUsize,
    /// The gateway to be killed by the client that reads the next 202.
    pub(crate) victim: Mutex<Option<u32>>,
    /// Whether nothing new is asked for.
    pub(crate) over: AtomicBool,
}

impl Default for World {
    fn default() -> Self {
        Self {
            gateways: Mutex::default(),
            patience: Duration::from_secs(20),
            is_conditional: false,
            failures: AtomicUsize::new(0),
            victim: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }
}

impl World {
    fn gateway(&self) -> Option<SocketAddr> {
        let gateways = self.gateways.lock().unwrap();
        let turn = self.failures.load(Ordering::Relaxed);
        let at = turn.checked_rem(gateways.len())?;
        Some(gateways[at])
    }
}

/// The status and the JSON of an answer; `None` when none came whole. After a failure, or an answer that sends it elsewhere, the
/// next one is asked.
fn exchange(world: &World, request: &str, headers: &str, body: &str) -> Option<(u16, Value)> {
    let turn = world.failures.load(Ordering::Relaxed);
    let answer = exchange_once(world, request, headers, body);
    if answer.as_ref().is_none_or(|(status, _)| *status == 503) {
        // Unless another client did so meanwhile.
        let next = |now: usize| (now == turn).then(|| now.wrapping_add(1));
        let order = Ordering::Relaxed;
        world
            .failures
            .fetch_update(order, order, next)
            .unwrap_or_default();
    }
    answer
}

fn exchange_once(world: &World, request: &str, headers: &str, body: &str) -> Option<(u16, Value)> {
    let address = world.gateway()?;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(world.patience)).unwrap();
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

/// Starts so many clients.
pub(crate) fn start(world: &Arc<World>, count: u64) -> Vec<JoinHandle<Vec<Accepted>>> {
    let clients = (0..count).map(|number| {
        let world = Arc::clone(world);
        let work = move || ask_for_changes(&world, number);
        std::thread::Builder::new().spawn(work).unwrap()
    });
    clients.collect()
}

/// Lets the clients end, and looks at everything they asked for until it has ended.
pub(crate) fn finish(world: &World, clients: Vec<JoinHandle<Vec<Accepted>>>) -> Vec<Accepted> {
    world.over.store(true, Ordering::Release);
    let clients = clients.into_iter();
    let mut accepted: Vec<Accepted> = clients.flat_map(|client| client.join().unwrap()).collect();
    for one in &mut accepted {
        look_until_the_end(world, one);
    }
    accepted
}

/// Asks for changes until it is over, each until it got its 202.
fn ask_for_changes(world: &World, number: u64) -> Vec<Accepted> {
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
    // Makes the gateway read the backup once more right before the call.
    let condition = if world.is_conditional && prng.below(2) == 0 {
        "If-Match: *\r\n"
    } else {
        ""
    };
    let headers =
        format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n{prefer}{condition}");
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = exchange(world, &request, &headers, &body);
        match &answer {
            Some((202, status)) => {
                kill_the_victim(world);
                let mut accepted = Accepted::default();
                let uri = status["status_uri"].as_str().unwrap().to_owned();
                accepted.status_uris.insert(uri);
                note(&mut accepted, status);
                return accepted;
            }
            // Its queue is full, or in a cluster: the active gateway was lost, and the key finds what it had accepted.
            Some((503 | 504, _)) | None => std::thread::sleep(AWAY),
            // Another change of the VM came first.
            Some((412, _)) if world.is_conditional => std::thread::sleep(AWAY),
            Some((status, answer)) => panic!("{request}: {status} {answer}"),
        }
        assert!(
            Instant::now() < until,
            "no 202 in time: {request}; last answer {answer:?}"
        );
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
            Some((503 | 504, _)) | None => {}
            Some((status, answer)) => panic!("{uri}: {status} {answer}"),
        }
    }
}

/// Reads the Status until it has ended, for as long as anybody would wait.
fn look_until_the_end(world: &World, accepted: &mut Accepted) {
    let until = Instant::now() + PATIENCE;
    let before = accepted.ends.len();
    while accepted.ends.len() == before && accepted.missing == 0 && Instant::now() < until {
        look(world, accepted);
    }
}
