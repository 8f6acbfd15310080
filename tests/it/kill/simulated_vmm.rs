//! A fake VM manager: a process of its own that outlives the gateway, counts what it carries out, and kills the
//! gateway at a named moment. It speaks the protocol of `docs/adapters/sim.md`.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::harness::eventually;
use crate::prng::Prng;

/// Set in the process that is to be a fake VM manager: the [`Behaviour`] as JSON.
const TO_BE_ONE: &str = "SNAPGATE_TEST_FAKE_VMM";

/// What sort of VM manager it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Behaviour {
    pub(crate) socket: PathBuf,
    /// Whether a request key acts once.
    pub(crate) once: bool,
    /// Whether changes are tasks; else they are done before the answer.
    pub(crate) tasks: bool,
    /// Changes are carried out so long after they arrived at most, whether or not anybody still waits.
    pub(crate) delay: Duration,
}

/// The moment at which it kills the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Point {
    /// The operation is durable and has not left its queue; the caller waits for its 202 or has it.
    Accepted,
    /// A caller has just read its 202. The caller kills, not the VM manager.
    Answered,
    /// SUBMITTING is durable and the call was never made: what arrives is thrown away.
    Submitting,
    /// The call was made and is carried out later.
    Called,
    /// The call was carried out and not answered.
    CarriedOut,
    /// The call was answered; the answer is on its way to the store.
    Replied,
    /// A poll of a task that is running.
    Polling,
    /// A look at a task that has ended: the outcome is not recorded.
    Done,
    /// A read of the backup, answered nevertheless: for some changes the last one before the call, with SUBMITTING durable.
    Read,
}

/// What happens to the gateway at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// SIGKILL.
    Killed,
    /// SIGSTOP: it may go on later.
    Stopped,
}

/// How a carried-out request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Done,
    Failed,
    /// Refused without effect.
    Refused,
}

/// One line of its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Execution {
    /// The number of the operation.
    pub(crate) key: u64,
    pub(crate) vm: String,
    pub(crate) backup: String,
    pub(crate) verb: String,
    pub(crate) end: End,
}

struct Request {
    due: Instant,
    key: u64,
    intent: Value,
    caller: UnixStream,
}

struct State {
    behaviour: Behaviour,
    prng: Prng,
    pending: Vec<Request>,
    log: Vec<Execution>,
    /// When each line of the log is over.
    ends: Vec<Instant>,
    armed: Option<(i32, Point, Fate)>,
    fired: bool,
}

/// Serves until standard input ends, if this process is to be a fake VM manager. Says whether it was.
pub(crate) fn run_if_requested() -> bool {
    let Ok(behaviour) = std::env::var(TO_BE_ONE) else {
        return false;
    };
    let behaviour: Behaviour = serde_json::from_str(&behaviour).unwrap();
    serve(behaviour);
    // The process that started it holds the other end.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    true
}

/// Begins to serve, on threads of this process.
fn serve(behaviour: Behaviour) {
    let listener = UnixListener::bind(&behaviour.socket).unwrap();
    let state = Arc::new(Mutex::new(State {
        behaviour,
        prng: Prng::new(7),
        pending: Vec::new(),
        log: Vec::new(),
        ends: Vec::new(),
        armed: None,
        fired: false,
    }));
    let worker = Arc::clone(&state);
    std::thread::Builder::new()
        .spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(1));
                held(&worker).carry_out_what_is_due();
            }
        })
        .unwrap();
    std::thread::Builder::new()
        .spawn(move || {
            for stream in listener.incoming() {
                // One after the other: what arrived first is known before what arrives later is answered.
                take(&state, stream.unwrap());
            }
        })
        .unwrap();
}

fn held(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

fn take(state: &Mutex<State>, stream: UnixStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut line = String::new();
    let read = BufReader::new(&stream).read_line(&mut line);
    // A gateway that died or was stopped between connecting and asking asked nothing.
    if read.is_err() {
        return;
    }
    let Ok(asked) = serde_json::from_str::<Value>(&line) else {
        return;
    };
    let mut state = held(state);
    state.carry_out_what_is_due();
    state.handle(&asked, stream);
}

fn answer(mut caller: &UnixStream, answer: &Value) {
    // A caller that is gone does not want to know.
    drop(caller.write_all(format!("{answer}\n").as_bytes()));
}

impl State {
    /// Kills or stops the gateway if this is the moment.
    fn reached(&mut self, point: Point) -> bool {
        let Some((pid, _, fate)) = self.armed.filter(|armed| armed.1 == point) else {
            return false;
        };
        self.armed = None;
        self.fired = true;
        let signal = match fate {
            Fate::Killed => Signal::KILL,
            Fate::Stopped => Signal::STOP,
        };
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        true
    }

    fn handle(&mut self, asked: &Value, caller: UnixStream) {
        let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        let backup = json!({"id": "456", "identity": "first", "name": "first", "created": 1000});
        let reply = match text("call").as_str() {
            "health" => json!({"product": "fake VM manager"}),
            "vm" => json!("here"),
            "list" => json!({"backups": {"backups": [backup], "more": false}}),
            "read" if text("backup") == "456" => {
                self.reached(Point::Read);
                json!({"backup": backup})
            }
            "read" => json!({"refused": "no-such-backup"}),
            "position" => {
                if self.reached(Point::Accepted) {
                    return;
                }
                json!({"position": self.log.len()})
            }
            "begin" => return self.begin(asked, caller),
            "poll" => match self.poll(&text("task")) {
                Some(reply) => reply,
                None => return,
            },
            "find" => self.find(asked["key"].as_u64().unwrap()),
            "log" => self.list(asked["since"].as_u64().unwrap()),
            "arm" => {
                let pid = i32::try_from(asked["pid"].as_i64().unwrap()).unwrap();
                let point = serde_json::from_value(asked["point"].clone()).unwrap();
                let fate = serde_json::from_value(asked["fate"].clone()).unwrap();
                (self.armed, self.fired) = (Some((pid, point, fate)), false);
                json!("armed")
            }
            "disarm" => {
                self.armed = None;
                json!(std::mem::take(&mut self.fired))
            }
            "executions" => json!({"log": self.log, "pending": self.pending.len()}),
            other => panic!("no such call: {other:?}"),
        };
        answer(&caller, &reply);
    }

    fn begin(&mut self, asked: &Value, caller: UnixStream) {
        if self.reached(Point::Submitting) {
            return;
        }
        let longest = u64::try_from(self.behaviour.delay.as_millis()).unwrap();
        let delay = Duration::from_millis(self.prng.below(longest + 1));
        self.pending.push(Request {
            due: Instant::now() + delay,
            key: asked["key"].as_u64().unwrap(),
            intent: asked["intent"].clone(),
            caller,
        });
        self.reached(Point::Called);
    }

    fn carry_out_what_is_due(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|call| call.due <= now);
        self.pending = later;
        let mut due: Vec<Request> = due;
        due.sort_by_key(|call| call.due);
        for request in due {
            let reply = self.carry_out(&request);
            if self.reached(Point::CarriedOut) {
                continue;
            }
            answer(&request.caller, &reply);
            self.reached(Point::Replied);
        }
    }

    fn carry_out(&mut self, request: &Request) -> Value {
        let known = self
            .log
            .iter()
            .position(|execution| execution.key == request.key);
        if let Some(at) = known.filter(|_| self.behaviour.once) {
            return json!({"task": at.to_string()});
        }
        let change = &request.intent["change"];
        let verb = change
            .as_object()
            .map(|change| change.keys().next().unwrap());
        let fails = self.prng.below(10) == 0;
        let end = match (fails, self.behaviour.tasks) {
            (false, _) => End::Done,
            (true, true) => End::Failed,
            (true, false) => End::Refused,
        };
        self.log.push(Execution {
            key: request.key,
            vm: request.intent["target"]["vm"].as_str().unwrap().to_owned(),
            backup: request.intent["target"]["backup"]
                .as_str()
                .unwrap()
                .to_owned(),
            verb: verb.map_or_else(|| change.as_str().unwrap().to_owned(), Clone::clone),
            end,
        });
        let takes = Duration::from_millis(20 + self.prng.below(80));
        self.ends.push(Instant::now() + takes);
        match (self.behaviour.tasks, end) {
            (true, _) => json!({"task": (self.log.len() - 1).to_string()}),
            (false, End::Done | End::Failed) => json!("done"),
            (false, End::Refused) => json!({"refused": "busy"}),
        }
    }

    /// `None` when the gateway was killed instead.
    fn poll(&mut self, task: &str) -> Option<Value> {
        let Some(at) = task
            .parse::<usize>()
            .ok()
            .filter(|number| *number < self.log.len())
        else {
            return Some(json!("gone"));
        };
        if self.ends[at] > Instant::now() {
            return (!self.reached(Point::Polling)).then(|| json!({"running": 50}));
        }
        if self.reached(Point::Done) {
            return None;
        }
        Some(match self.log[at].end {
            End::Done => json!("done"),
            End::Failed | End::Refused => json!({"failed": "storage-full"}),
        })
    }

    fn find(&self, key: u64) -> Value {
        let at = self.log.iter().position(|execution| execution.key == key);
        at.map_or_else(
            || json!("gone"),
            |number| json!({"task": number.to_string()}),
        )
    }

    fn list(&self, since: u64) -> Value {
        let since = usize::try_from(since).unwrap();
        let lines = self.log.iter().enumerate().skip(since).map(|(at, execution)| {
            json!({"task": at.to_string(), "vm": execution.vm, "backup": execution.backup, "verb": execution.verb})
        });
        json!({"log": lines.collect::<Vec<Value>>()})
    }
}

/// A fake VM manager in another process, ended when dropped.
pub(crate) struct FakeVmm {
    child: Child,
    socket: PathBuf,
}

impl FakeVmm {
    /// Starts this very program once more, as a fake VM manager.
    pub(crate) fn start(behaviour: &Behaviour) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::a_fake_vm_manager", "--nocapture"])
            .env(TO_BE_ONE, serde_json::to_string(behaviour).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let socket = behaviour.socket.clone();
        eventually("the fake VM manager is there", || {
            UnixStream::connect(&socket).is_ok()
        });
        Self { child, socket }
    }

    /// Kills or stops that process when the moment comes.
    pub(crate) fn arm(&self, pid: u32, point: Point, fate: Fate) {
        let armed = ask(
            &self.socket,
            &json!({"call": "arm", "pid": pid, "point": point, "fate": fate}),
        );
        assert_eq!(armed, "armed", "the fake VM manager listens");
    }

    /// Leaves gateways alone from now on. Returns whether the moment came.
    pub(crate) fn disarm(&self) -> bool {
        ask(&self.socket, &json!({"call": "disarm"})) == true
    }

    /// Its log, once nothing that arrived is left to be done.
    pub(crate) fn executions(&self) -> Vec<Execution> {
        let mut log = Value::Null;
        eventually("everything that arrived is carried out", || {
            let mut said = ask(&self.socket, &json!({"call": "executions"}));
            log = said["log"].take();
            said["pending"] == 0
        });
        serde_json::from_value(log).unwrap()
    }
}

impl Drop for FakeVmm {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn ask(socket: &Path, request: &Value) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error}: {line:?}"))
}

/// What the fake VM manager does with a key that it sees twice, and that it goes on when the caller is gone.
pub(crate) fn check_behaviour() {
    for (once, executions) in [(true, 1), (false, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        serve(Behaviour {
            socket: socket.clone(),
            once,
            tasks: true,
            delay: Duration::from_millis(30),
        });
        let intent = json!({"target": {"vm": "1", "backup": "456"}, "change": {"restore": {}}});
        let begin = json!({"call": "begin", "key": 9, "intent": intent});
        let mut gone = UnixStream::connect(&socket).unwrap();
        gone.write_all(format!("{begin}\n").as_bytes()).unwrap();
        drop(gone);
        let log = || ask(&socket, &json!({"call": "executions"}))["log"].take();
        eventually("it goes on without its caller", || {
            log().as_array().unwrap().len() == 1
        });
        let again = ask(&socket, &begin);
        assert!(again["task"].is_string(), "answered: {again}");
        let log = log();
        assert_eq!(log.as_array().unwrap().len(), executions, "{once}: {log}");
        assert_eq!(log[0]["verb"], "restore", "what was asked for: {log}");
    }
}
