//! The whole program in front of a real LXD: every request through the API, and kill -9 in the middle of restores.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use snapgate::adapters::transport::Address;
use snapgate::model::VmId;
use tempfile::TempDir;

use crate::client::Client;
use crate::client::read_some;
use crate::harness::Process;
use crate::harness::eventually;
use crate::harness::probe;
use crate::harness::settings_for_alice;
use crate::incus::Lxd;
use crate::incus::Transport;

/// So much that a restore of it takes some hundred milliseconds.
const BALLAST_MIB: u32 = 200;
/// How LXD calls making a snapshot.
const MAKING: &str = "Snapshotting instance";
/// How LXD calls a restore.
const RESTORING: &str = "Restoring snapshot";
/// Longer than a request whose gateway died may still lie in the daemon's socket.
const LATE: Duration = Duration::from_secs(6);

/// A configuration of its own, in front of the VM in the daemon.
struct Site {
    folder: TempDir,
    lxd: Lxd,
    socket: PathBuf,
    vm: VmId,
    data: PathBuf,
}

impl Site {
    /// Skips the test where no LXD was started.
    fn new(name: &str, mib: u32) -> Self {
        let lxd = Lxd::shared();
        let vm = lxd.vm(name, mib);
        let Address::Unix(socket) = lxd.config(Transport::Socket).address else {
            panic!("a socket")
        };
        let folder = tempfile::tempdir().unwrap();
        let config = settings_for_alice(&format!(
            r#"[[backend]]
name = "containers"
kind = "incus"
vms = ["{name}"]
[backend.incus]
url = "unix://{}"
project = "tenant"
"#,
            socket.display()
        ));
        fs::write(folder.path().join("snapgate.toml"), config).unwrap();
        Self {
            folder,
            socket,
            data: lxd.file(&vm),
            lxd,
            vm,
        }
    }

    fn start(&self) -> (Process, Client) {
        let config = self.folder.path().join("snapgate.toml");
        let process = Process::start(&["serve", "--config", config.to_str().unwrap()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }

    fn write(&self, text: &str) {
        fs::write(&self.data, text).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.data).unwrap()
    }

    fn ballast(&self) -> PathBuf {
        self.data.with_file_name("ballast")
    }

    /// What must be copied back by the next restore.
    fn drop_ballast(&self) {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.unwrap(),
        }
    }

    fn ballast_bytes(&self) -> u64 {
        fs::metadata(self.ballast()).map_or(0, |metadata| metadata.len())
    }
}

/// Hears from LXD itself which operations it runs on a VM.
struct Watch {
    stream: UnixStream,
    heard: Arc<Mutex<Heard>>,
    vm: VmId,
}

#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    over: bool,
}

/// One operation of LXD.
#[derive(Debug)]
struct Seen {
    what: String,
    /// Final from 200.
    code: u64,
}

impl Watch {
    fn start(socket: &Path, vm: &VmId) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        let request = "GET /1.0/events?type=operation&project=tenant HTTP/1.1\r\nHost: lxd\r\n\
            Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (mut source, into) = (stream.try_clone().unwrap(), Arc::clone(&heard));
        std::thread::Builder::new()
            .spawn(move || {
                // An empty, masked Pong after each read: the daemon hangs up on those who do not answer its Pings.
                let pong = [0x8a, 0x80, 0, 0, 0, 0];
                let mut chunk = [0; 4096];
                loop {
                    let count = read_some(&mut source, &mut chunk).unwrap_or(0);
                    let mut heard = into.lock().unwrap();
                    heard.bytes.extend_from_slice(&chunk[..count]);
                    heard.over = count == 0 || source.write_all(&pong).is_err();
                    if heard.over {
                        return;
                    }
                }
            })
            .unwrap();
        let watch = Self {
            stream,
            heard,
            vm: vm.clone(),
        };
        eventually("LXD lets the test watch", || {
            let heard = watch.heard.lock().unwrap();
            heard.bytes.starts_with(b"HTTP/1.1 101 ")
        });
        watch
    }

    /// Every operation on the VM since the watch began.
    fn operations(&self) -> BTreeMap<String, Seen> {
        let heard = self.heard.lock().unwrap();
        assert!(!heard.over, "LXD does not end the watch");
        let mut operations = BTreeMap::<String, Seen>::new();
        // Each frame holds one line of JSON; what is not heard to its end yet cannot be read.
        for line in String::from_utf8_lossy(&heard.bytes).split('\n') {
            let at = line.find("{\"type\":");
            let Some(text) = at.and_then(|start| line.get(start..)) else {
                continue;
            };
            let Ok(event) = serde_json::from_str::<Value>(text) else {
                continue;
            };
            let operation = &event["metadata"];
            let vm = format!("/1.0/instances/{}", self.vm);
            let on = operation["resources"]["instances"].as_array();
            if on.is_none_or(|names| names.iter().all(|names| *names != vm.as_str())) {
                continue;
            }
            let code = operation["status_code"].as_u64().unwrap();
            // The events of one operation may be out of order.
            operations
                .entry(operation["id"].as_str().unwrap().to_owned())
                .and_modify(|operation| operation.code = operation.code.max(code))
                .or_insert_with(|| Seen {
                    what: operation["description"].as_str().unwrap().to_owned(),
                    code,
                });
        }
        operations
    }

    /// How many operations of that kind were begun.
    fn begun(&self, what: &str) -> usize {
        let all = self.operations();
        all.values()
            .filter(|operation| operation.what == what)
            .count()
    }

    /// Whether a restore is running.
    fn is_restoring(&self) -> bool {
        let all = self.operations();
        all.values()
            .any(|operation| operation.what == RESTORING && operation.code < 200)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// When the gateway is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So many milliseconds after the 202.
    After(u64),
    /// So many milliseconds after LXD has begun the restore.
    Begun(u64),
    /// While LXD copies; it goes on when the gateway is dead.
    Copying,
}

impl Moment {
    /// `before` is how many restores LXD had begun before this one.
    fn wait(self, watch: &Watch, before: usize) {
        let wait = |millis| std::thread::sleep(Duration::from_millis(millis));
        match self {
            Self::After(time) => wait(time),
            Self::Begun(time) => {
                eventually("LXD begins", || watch.begun(RESTORING) > before);
                wait(time);
            }
            Self::Copying => eventually("LXD is at it", || watch.is_restoring()),
        }
    }
}

#[apply(test)]
fn every_request_of_the_api_does_what_it_says() {
    let site = Site::new("http-all", 1);
    let config = site.folder.path().join("snapgate.toml");
    let (code, printed) = probe(config.to_str().unwrap());
    assert_eq!(code, Some(0), "{printed}");
    for line in [
        "backend containers: LXD 5.",
        "  supported: create, update, delete, restore; unsupported: none",
        "  VM http-all: http-all STOPPED",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let (process, client) = site.start();
    site.write("old");
    let new = r#"{"name": "before", "description": "text", "tags": ["a"]}"#;
    let reply = client.post("/back_up?vm=http-all", new);
    let created = client.finished(&reply.status_uri());
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();

    let shown = client.get(&target);
    assert_eq!(shown.status, 200, "{shown:?}");
    let shown = shown.json();
    assert_eq!(shown["name"], "before", "{shown}");
    assert_eq!(shown["description"], "text", "{shown}");
    assert_eq!(shown["tags"], serde_json::json!(["a"]), "{shown}");
    let list = client.get("/vms/http-all/backups").json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["backups"][0], shown, "the list shows the same");

    let patch = r#"{"name": "after", "tags": ["b", "c"]}"#;
    let changed = client.put(&target, patch).json();
    assert_eq!(changed["progress"], 100, "answered at once: {changed}");
    assert_eq!(changed["status"], 200, "answered at once: {changed}");
    let shown = client.get(&target).json();
    assert_eq!(shown["name"], "after", "{shown}");
    assert_eq!(shown["tags"], serde_json::json!(["b", "c"]), "{shown}");
    assert_eq!(shown["description"], "text", "left as it was: {shown}");

    site.write("new");
    fs::write(site.data.with_file_name("stray"), "new").unwrap();
    let reply = client.post(&format!("{target}/restore"), "");
    let restored = client.finished(&reply.status_uri());
    assert_eq!(restored["status"], 200, "{restored}");
    assert_eq!(site.text(), "old", "the file is as it was");
    assert!(
        !site.data.with_file_name("stray").exists(),
        "what came later is gone"
    );
    assert_eq!(client.get(&target).json()["name"], "after", "label is kept");

    let refused = client.put(&target, r#"{"protected": true}"#).json();
    assert_eq!(refused["status"], 200, "{refused}");
    let reply = client.delete(&target);
    if reply.status == 202 {
        let status = client.finished(&reply.status_uri());
        assert_eq!(status["state"], "FAILED", "protected: {status}");
    } else {
        assert!((400..500).contains(&reply.status), "protected: {reply:?}");
    }
    assert_eq!(client.get(&target).status, 200, "still there");
    let freed = client.put(&target, r#"{"protected": false}"#).json();
    assert_eq!(freed["status"], 200, "{freed}");
    let reply = client.delete(&target);
    let deleted = client.finished(&reply.status_uri());
    assert_eq!(deleted["status"], 200, "{deleted}");
    assert_eq!(client.get(&target).status, 404, "gone");
    let list = client.get("/vms/http-all/backups").json();
    assert_eq!(list["backups"], serde_json::json!([]), "{list}");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}

#[apply(test)]
fn kill_9_in_the_middle_of_a_restore_runs_nothing_twice_and_the_status_is_true() {
    let site = Site::new("http-kill", BALLAST_MIB);
    let moments = [
        Moment::After(0),
        Moment::After(8),
        Moment::After(16),
        Moment::After(30),
        Moment::After(44),
        Moment::Begun(0),
        Moment::Copying,
        Moment::Begun(100),
        Moment::After(300),
        Moment::After(2000),
    ];
    let watch = Watch::start(&site.socket, &site.vm);
    let (mut process, mut client) = site.start();
    site.write("old");
    let reply = client.post("/back_up?vm=http-kill", r#"{"name": "old"}"#);
    let created = client.finished(&reply.status_uri());
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    assert_eq!(
        watch.begun(MAKING),
        1,
        "the watch hears what the gateway makes LXD do"
    );
    let (mut restores, mut cut) = (0, 0);
    for (life, moment) in moments.into_iter().enumerate() {
        let new = format!("new {life}");
        site.write(&new);
        site.drop_ballast();
        let hold = matches!(moment, Moment::Copying).then(|| site.lxd.hold(&site.vm));
        let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
        if let Some(hold) = &hold {
            hold.reached();
        }
        moment.wait(&watch, restores);
        process.kill();
        if watch.is_restoring() {
            cut += 1;
        }
        drop(hold);
        // The next process finds what this one began, and nothing else.
        (process, client) = site.start();
        let status = client.finished(&status_uri);
        let (text, bytes) = (site.text(), site.ballast_bytes());
        let begun = watch.begun(RESTORING) - restores;
        restores += begun;
        let printed = format!("life {life}, {moment:?}: {status}");
        assert!(begun <= 1, "never twice, but {begun} times: {printed}");
        let whole = u64::from(BALLAST_MIB) * 1024 * 1024;
        if status["status"] == 200 {
            assert_eq!(
                (text.as_str(), bytes),
                ("old", whole),
                "restored: {printed}"
            );
            assert_eq!(begun, 1, "restored by LXD: {printed}");
            assert_eq!(status["state"], "SUCCESS", "{printed}");
        } else {
            assert_eq!((text, bytes), (new, 0), "untouched: {printed}");
            assert_eq!(begun, 0, "LXD never began: {printed}");
            let state = status["state"].as_str().unwrap();
            assert!(["FAILED", "UNKNOWN"].contains(&state), "{printed}");
            assert_ne!(status["message"], "", "it says so: {printed}");
        }
        // LXD notifies the gateway and the test of an end, one of the two first.
        eventually("LXD is done", || !watch.is_restoring());
    }
    assert!(cut > 0, "some gateway died while LXD was busy");
    // Nothing comes late, neither from the daemon's socket nor from a gateway that starts once more.
    process.kill();
    (process, client) = site.start();
    site.write("kept");
    std::thread::sleep(LATE);
    assert_eq!(watch.begun(RESTORING), restores, "no restore comes late");
    assert_eq!(site.text(), "kept", "no restore comes late");
    // And the VM can be restored as ever.
    let reply = client.post(&format!("{target}/restore"), "");
    let restored = client.finished(&reply.status_uri());
    assert_eq!(restored["status"], 200, "{restored}");
    assert_eq!(site.text(), "old", "restored once more");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}
