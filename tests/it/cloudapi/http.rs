//! Whole programs: a gateway before a gateway, and before the example server; either side killed in the middle.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::cloudapi::servers::Python;
use crate::cloudapi::servers::inner;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::program;

const DISK_BYTES: usize = 16 * 1024 * 1024;

/// A socket that leads to whatever address a server has now, and can lose an answer.
struct Relay {
    socket: PathBuf,
    target: Arc<Mutex<Option<SocketAddr>>>,
    /// The answer to the next restore is lost.
    loses: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Relay {
    fn start(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let target = Arc::<Mutex<Option<SocketAddr>>>::default();
        let loses = Arc::<AtomicBool>::default();
        let requests = Arc::<AtomicUsize>::default();
        let relay = Self {
            socket,
            target: Arc::clone(&target),
            loses: Arc::clone(&loses),
            requests: Arc::clone(&requests),
        };
        std::thread::Builder::new()
            .spawn(move || {
                for client in listener.incoming() {
                    let client = client.unwrap();
                    let address = *target.lock().unwrap();
                    // Dropped when no server listens.
                    if let Some(server) =
                        address.and_then(|address| TcpStream::connect(address).ok())
                    {
                        join(client, server, Arc::clone(&loses), Arc::clone(&requests));
                    }
                }
            })
            .unwrap();
        relay
    }

    fn leads_to(&self, address: SocketAddr) {
        *self.target.lock().unwrap() = Some(address);
    }
}

fn join(client: UnixStream, server: TcpStream, loses: Arc<AtomicBool>, requests: Arc<AtomicUsize>) {
    let lost = Arc::<AtomicBool>::default();
    let (mut from, mut to, flag) = (
        client.try_clone().unwrap(),
        server.try_clone().unwrap(),
        Arc::clone(&lost),
    );
    std::thread::Builder::new()
        .spawn(move || {
            let mut chunk = [0; 16 * 1024];
            while let Some(count) = from.read(&mut chunk).ok().filter(|count| *count > 0) {
                let text = String::from_utf8_lossy(&chunk[..count]);
                if text.contains(" HTTP/1.1\r\n") {
                    requests.fetch_add(1, Ordering::SeqCst);
                }
                if text.contains("/restore HTTP/1.1") && loses.swap(false, Ordering::SeqCst) {
                    flag.store(true, Ordering::SeqCst);
                }
                if to.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            drop(to.shutdown(Shutdown::Both));
            drop(from.shutdown(Shutdown::Both));
        })
        .unwrap();
    let (mut from, mut to) = (server, client);
    std::thread::Builder::new()
        .spawn(move || {
            let mut chunk = [0; 16 * 1024];
            while let Some(count) = from.read(&mut chunk).ok().filter(|count| *count > 0) {
                if lost.load(Ordering::SeqCst) || to.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            drop(to.shutdown(Shutdown::Both));
            drop(from.shutdown(Shutdown::Both));
        })
        .unwrap();
}

/// The configuration of a gateway whose only backend is a server on this socket.
fn outer_config(socket: &Path, password: &str) -> String {
    format!(
        r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "outer.db"
poll_min = "20ms"
[[backend]]
name = "beyond"
kind = "cloudapi"
vms = ["*"]
[backend.cloudapi]
url = "unix://{}"
username = "gate"
password = "file:{password}"
server_recovery = "replay-safe"
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = ["read", "create", "update", "protect", "delete", "restore", "observe"]
vms = ["*"]
"#,
        socket.display()
    )
}

/// Two gateways, one before the other, with a VM `db` behind them.
struct Chain {
    folder: TempDir,
    relay: Relay,
}

impl Chain {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for made in ["inner/vms/db", "inner/backups", "outer"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("outer/password"), "secret\n").unwrap();
        fs::write(at("outer/wrong"), "guess\n").unwrap();
        let relay = Relay::start(at("relay"));
        let config = outer_config(&relay.socket, "password");
        fs::write(at("outer/snapgate.toml"), config).unwrap();
        Self { folder, relay }
    }

    fn inner(&self) -> Process {
        let process = inner(&self.folder.path().join("inner"));
        self.relay.leads_to(process.api);
        process
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("outer/snapgate.toml")
    }

    fn outer(&self) -> (Process, Client) {
        let process = Process::start(&["serve", "--config", self.config().to_str().unwrap()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }

    fn fill(&self, byte: u8) {
        let disk = self.folder.path().join("inner/vms/db/disk.img");
        fs::write(disk, vec![byte; DISK_BYTES]).unwrap();
    }

    /// What the disk holds, if it is one thing.
    fn content(&self) -> Option<u8> {
        let bytes = fs::read(self.folder.path().join("inner/vms/db/disk.img")).unwrap();
        bytes.iter().all(|byte| *byte == bytes[0]).then(|| bytes[0])
    }
}

/// How many restores a gateway was asked for by its user.
fn restores(inner: &Process) -> usize {
    let client = Client::new(inner.api, "gate", "secret");
    let list = client.get("/statuses?op=restore-Backup&vm=db").json();
    list["statuses"].as_array().unwrap().len()
}

fn created(client: &Client, vm: &str, body: &Value) -> String {
    let reply = client.post(&format!("/vms/{vm}/backups"), &body.to_string());
    let status = client.finished(&reply.status_uri());
    assert_eq!(status["status"], 201, "{status}");
    status["target_uri"].as_str().unwrap().to_owned()
}

#[apply(test)]
fn every_request_works_through_two_gateways_and_shows_nothing_of_the_inner_one() {
    let chain = Chain::new();
    let behind = chain.inner();
    let (process, client) = chain.outer();
    chain.fill(b'o');
    let new = json!({"name": "n\u{e4}me / 100%", "description": "text", "tags": ["a b", "c"]});
    let target = created(&client, "db", &new);
    assert!(
        target.starts_with("/vms/db/backups/via-"),
        "an id of this gateway: {target}"
    );

    let shown = client.get(&target);
    assert_eq!(shown.status, 200, "{shown:?}");
    let text = String::from_utf8_lossy(&shown.body).into_owned();
    assert!(
        !text.contains("inner.example") && !text.contains("snapgate-id"),
        "{text}"
    );
    let shown = shown.json();
    assert_eq!(shown["name"], new["name"], "{shown}");
    assert_eq!(shown["description"], "text", "{shown}");
    assert_eq!(shown["tags"], new["tags"], "{shown}");
    assert_eq!(shown["state"], "AVAILABLE", "{shown}");
    assert_eq!(shown["size"], DISK_BYTES, "{shown}");
    assert_eq!(
        client.get("/vms/db/backups").json()["backups"],
        json!([shown]),
        "listed"
    );
    let vm = client.get("/vms/db").json();
    assert_eq!(vm["name"], "db", "{vm}");
    let beyond = Client::new(behind.api, "gate", "secret")
        .get("/vms/db/backups")
        .json();
    let mark = format!("snapgate-id={}", target.rsplit('/').next().unwrap());
    assert_eq!(
        beyond["backups"][0]["tags"],
        json!(["a b", "c", mark]),
        "{beyond}"
    );
    assert_eq!(
        beyond["backups"][0]["created"], shown["created"],
        "{beyond}"
    );

    let taken = client.post("/vms/db/backups", &new.to_string());
    assert_eq!(
        (taken.status, taken.code().as_str()),
        (409, "NameTaken"),
        "{taken:?}"
    );
    let changed = client.put(
        &target,
        r#"{"name": "after", "tags": ["d"], "protected": true}"#,
    );
    let changed = client.finished(&changed.status_uri());
    assert_eq!(changed["status"], 200, "{changed}");
    let after = client.get(&target).json();
    assert_eq!(
        (&after["name"], &after["tags"]),
        (&json!("after"), &json!(["d"])),
        "{after}"
    );
    assert_eq!(after["description"], "text", "left as it was: {after}");
    let refused = client.delete(&target);
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (409, "BackupProtected"),
        "{refused:?}"
    );
    let freed = client.put(&target, r#"{"protected": false}"#);
    assert_eq!(
        client.finished(&freed.status_uri())["status"],
        200,
        "free again"
    );

    chain.fill(b'n');
    let reply = client.post(&format!("{target}/restore"), r#"{"note": "back"}"#);
    let restored = client.finished(&reply.status_uri());
    assert_eq!(restored["status"], 200, "{restored}");
    assert_eq!(chain.content(), Some(b'o'), "restored");

    let reply = client.delete(&target);
    let deleted = client.finished(&reply.status_uri());
    assert_eq!(deleted["status"], 200, "{deleted}");
    let missing = client.get(&target);
    assert_eq!(
        (missing.status, missing.code().as_str()),
        (404, "NoSuchBackup"),
        "gone"
    );
    let missing = client.get("/vms/nowhere");
    assert_eq!(
        (missing.status, missing.code().as_str()),
        (404, "NoSuchVm"),
        "never there"
    );

    let probed = program()
        .args([
            "check",
            "--probe",
            "--config",
            chain.config().to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&probed.stdout).into_owned();
    assert!(probed.status.success(), "{said}");
    let version = format!(
        "Cloud API server {} (specification 0.1,",
        env!("CARGO_PKG_VERSION")
    );
    assert!(said.contains(&version), "{said}");
    assert!(
        said.contains("supported: create, update, delete, restore"),
        "{said}"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}

#[apply(test)]
fn kill_9_on_either_side_runs_nothing_twice_and_the_status_is_true() {
    let chain = Chain::new();
    let mut behind = chain.inner();
    let (mut process, mut client) = chain.outer();
    chain.fill(b'o');
    let target = created(&client, "db", &json!({"name": "old"}));
    // How long after the 202, or after the inner one was asked, and whose end it is.
    let lives = [
        (false, 0, true, false),
        (false, 15, true, false),
        (true, 0, true, false),
        (true, 0, true, true),
        (false, 0, false, true),
        (true, 0, false, true),
        (true, 40, true, true),
    ];
    let mut asked = 0;
    for (life, (begun, millis, of_inner, of_outer)) in lives.into_iter().enumerate() {
        let name = format!("life {life}: inner {of_inner}, outer {of_outer}");
        chain.fill(b'n');
        let uri = client.post(&format!("{target}/restore"), "").status_uri();
        if begun {
            eventually("the inner one is asked", || restores(&behind) > asked);
        }
        std::thread::sleep(Duration::from_millis(millis));
        if of_inner {
            behind.kill();
            behind = chain.inner();
        }
        if of_outer {
            process.kill();
            (process, client) = chain.outer();
        }
        let status = client.finished(&uri);
        if begun || !of_inner || status["state"] == "SUCCESS" {
            asked += 1;
            assert_eq!(status["state"], "SUCCESS", "{name}: {status}");
            assert_eq!(chain.content(), Some(b'o'), "{name}: {status}");
        } else {
            // The inner one was away before it was asked.
            assert_eq!(status["status"], 503, "{name}: {status}");
            assert_eq!(chain.content(), Some(b'n'), "{name}: {status}");
        }
        assert_eq!(restores(&behind), asked, "{name}: asked for once");
    }
    // An answer that is lost on its way: the same request again is the same restore.
    chain.fill(b'n');
    chain.relay.loses.store(true, Ordering::SeqCst);
    let uri = client.post(&format!("{target}/restore"), "").status_uri();
    let status = client.finished(&uri);
    assert_eq!(status["state"], "SUCCESS", "{status}");
    assert!(
        !chain.relay.loses.load(Ordering::SeqCst),
        "an answer was lost"
    );
    assert_eq!(chain.content(), Some(b'o'), "restored: {status}");
    assert_eq!(restores(&behind), asked + 1, "asked for once");
    // Nothing comes late.
    chain.fill(b'k');
    process.kill();
    behind.kill();
    let behind = chain.inner();
    let (_process, client) = chain.outer();
    let status = client.finished(&uri);
    assert_eq!(status["state"], "SUCCESS", "still: {status}");
    assert_eq!(restores(&behind), asked + 1, "nothing is asked for again");
    assert_eq!(chain.content(), Some(b'k'), "no restore comes late");
}

#[apply(test)]
fn a_gateway_that_is_not_let_in_says_so() {
    let chain = Chain::new();
    let _behind = chain.inner();
    let config = outer_config(&chain.relay.socket, "wrong");
    fs::write(chain.config(), config).unwrap();
    let (_process, client) = chain.outer();
    let reply = client.get("/vms/db");
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (502, "BackendDenied"),
        "{reply:?}"
    );
    let probed = program()
        .args([
            "check",
            "--probe",
            "--config",
            chain.config().to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(
        !probed.status.success(),
        "check --probe reports it: {probed:?}"
    );
}

/// A gateway that speaks TLS and takes tokens, with a VM `db`, and what lets another one in: its certificate and a token.
struct Encrypted {
    folder: TempDir,
    inner: Process,
}

impl Encrypted {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for made in ["inner/vms/db", "inner/backups", "outer"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("inner/vms/db/disk.img"), "first").unwrap();
        for name in ["inner/server", "outer/stranger"] {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            fs::write(at(&format!("{name}.pem")), made.cert.pem()).unwrap();
            let key = made.signing_key.serialize_pem();
            fs::write(at(&format!("{name}.key")), key).unwrap();
        }
        fs::copy(at("inner/server.pem"), at("outer/server.pem")).unwrap();
        let config = format!(
            r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
public_url = "https://inner.example"
[authentication]
tokens = "tokens.json"
[[certificate]]
chain = "server.pem"
key = "server.key"
names = ["127.0.0.1"]
[operations]
store = "operations.db"
[[backend]]
name = "images"
kind = "files"
vms = ["*"]
[backend.files]
root = "vms"
backups = "backups"
new_folders = true
[[user]]
name = "gate"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:gate"]
actions = ["read", "create", "update", "protect", "delete", "restore"]
vms = ["*"]
"#
        );
        fs::write(at("inner/snapgate.toml"), config).unwrap();
        let token = Self::token(
            folder.path(),
            &["create", "--owner", "gate", "--name", "west"],
        );
        fs::write(at("outer/token"), token).unwrap();
        let config = at("inner/snapgate.toml");
        let inner = Process::start(&["serve", "--config", config.to_str().unwrap()]);
        Self { folder, inner }
    }

    /// What `snapgate token` prints.
    fn token(folder: &Path, arguments: &[&str]) -> Vec<u8> {
        let config = folder.join("inner/snapgate.toml");
        let (command, rest) = arguments.split_first().unwrap();
        let output = program()
            .args(["token", command, "--config", config.to_str().unwrap()])
            .args(rest)
            .output()
            .unwrap();
        assert!(output.status.success(), "token {arguments:?}: {output:?}");
        output.stdout
    }

    /// A gateway before it that trusts this certificate alone.
    fn outer(&self, certificate: &str) -> (Process, Client) {
        let text = outer_config(Path::new("/unused"), "unused");
        let text = text
            .replace("unix:///unused", &format!("https://{}", self.inner.api))
            .replace(
                "username = \"gate\"\n",
                &format!("server_cert = \"{certificate}\"\n"),
            )
            .replace("password = \"file:unused\"", "token = \"file:token\"")
            .replace("outer.db", &format!("{certificate}.db"));
        let file = self.folder.path().join(format!("outer/{certificate}.toml"));
        fs::write(&file, text).unwrap();
        let process = Process::start(&["serve", "--config", file.to_str().unwrap()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("inner/vms/db/disk.img")
    }

    /// How often credentials were checked with this result.
    fn checks(&self, result: &str) -> f64 {
        let series = format!("snapgate_credential_checks_total{{result=\"{result}\"}}");
        metric(self.inner.admin, &series)
    }
}

#[apply(test)]
fn two_gateways_are_chained_over_tls_by_a_token_until_it_is_revoked() {
    let chain = Encrypted::start();
    let (_outer, client) = chain.outer("server.pem");
    let target = created(&client, "db", &json!({"name": "one", "tags": ["a"]}));
    let shown = client.get(&target);
    assert_eq!(shown.status, 200, "read: {shown:?}");
    assert_eq!(shown.json()["size"], 5, "its size: {shown:?}");
    let listed = client.get("/vms/db/backups").json();
    assert_eq!(listed["backups"], json!([shown.json()]), "the only one");
    let changed = client.put(&target, &json!({"description": "d"}).to_string());
    let changed = client.finished(&changed.status_uri());
    assert_eq!(changed["status"], 200, "changed: {changed}");
    assert_eq!(client.get(&target).json()["description"], "d", "changed");
    fs::write(chain.disk(), "second").unwrap();
    let restored = client.post(&format!("{target}/restore"), "");
    let restored = client.finished(&restored.status_uri());
    assert_eq!(restored["status"], 200, "restored: {restored}");
    assert_eq!(
        fs::read(chain.disk()).unwrap(),
        b"first",
        "the disk is back"
    );
    let deleted = client.delete(&target);
    let deleted = client.finished(&deleted.status_uri());
    assert_eq!(deleted["status"], 200, "deleted: {deleted}");
    assert_eq!(client.get(&target).status, 404, "gone");
    // The inner gateway has seen the token every time, and nothing else.
    assert!(chain.checks("token") > 5.0, "by the token");
    for other in ["verified", "remembered", "refused", "certificate"] {
        let count = chain.checks(other);
        assert!(count < 0.1, "{other}: {count}");
    }
    let last = created(&client, "db", &json!({"name": "two"}));
    Encrypted::token(chain.folder.path(), &["revoke", "west"]);
    eventually("the token counts no longer", || {
        client.get(&last).status == 502
    });
    let denied = client.get(&last);
    assert_eq!(denied.code(), "BackendDenied", "{denied:?}");
    let denied = client.delete(&last);
    assert_eq!(
        (denied.status, denied.code().as_str()),
        (502, "BackendDenied"),
        "{denied:?}"
    );
    let kept = fs::read_dir(chain.folder.path().join("inner/backups")).unwrap();
    assert!(kept.count() > 0, "nothing was deleted");
}

#[apply(test)]
fn a_gateway_with_another_certificate_gets_no_token() {
    let chain = Encrypted::start();
    let (_outer, client) = chain.outer("stranger.pem");
    let reply = client.get("/vms/db");
    assert!(
        (502..=503).contains(&reply.status),
        "not reached: {reply:?}"
    );
    let reply = client.post("/vms/db/backups", "{\"name\": \"x\"}");
    assert!(
        (502..=503).contains(&reply.status),
        "not reached: {reply:?}"
    );
    let requests = metric(chain.inner.admin, "snapgate_requests_total");
    assert!(requests < 0.1, "no request was sent: {requests}");
    eventually("the handshakes failed", || {
        let failed = "snapgate_connections_closed_total{reason=\"bad_handshake\"}";
        metric(chain.inner.admin, failed) > 0.0
    });
}

#[apply(test)]
fn gateways_in_a_circle_stop_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let relays = ["one", "two"].map(|name| Relay::start(folder.path().join(name)));
    let processes = [0, 1].map(|number| {
        let home = folder.path().join(format!("home{number}"));
        fs::create_dir(&home).unwrap();
        fs::write(home.join("password"), "secret\n").unwrap();
        let config = outer_config(&relays[number].socket, "password");
        let config = config
            .replace("\"alice\"", "\"gate\"")
            .replace("user:alice", "user:gate");
        fs::write(home.join("snapgate.toml"), config).unwrap();
        Process::start(&[
            "serve",
            "--config",
            home.join("snapgate.toml").to_str().unwrap(),
        ])
    });
    relays[0].leads_to(processes[1].api);
    relays[1].leads_to(processes[0].api);
    let client = Client::new(processes[0].api, "gate", "secret");
    let reply = client.get("/vms/db");
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (502, "BackendFailed"),
        "{reply:?}"
    );
    let asked: usize = relays
        .iter()
        .map(|relay| relay.requests.load(Ordering::SeqCst))
        .sum();
    assert_eq!(asked, 4, "so often a request is passed on");
    let reply = client.post("/vms/db/backups", r#"{"name": "a"}"#);
    assert_eq!(
        reply.status, 502,
        "nothing is accepted in a circle: {reply:?}"
    );
}

#[apply(test)]
fn the_example_server_survives_its_own_end_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("data/vms/db")).unwrap();
    fs::create_dir(at("outer")).unwrap();
    let disk = at("data/vms/db/disk.img");
    fs::write(&disk, vec![b'o'; DISK_BYTES]).unwrap();
    let mut server = Python::start(&at("data"));
    fs::write(at("outer/password"), "secret\n").unwrap();
    let config = outer_config(&at("data/s"), "password");
    fs::write(at("outer/snapgate.toml"), config).unwrap();
    let arguments = [
        "serve",
        "--config",
        at("outer/snapgate.toml").to_str().unwrap(),
    ]
    .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let process = Process::start(&arguments);
    let client = Client::new(process.api, "alice", "secret");
    let target = created(&client, "db", &json!({"name": "old", "tags": ["t"]}));
    let shown = client.get(&target).json();
    assert_eq!(shown["tags"], json!(["t"]), "{shown}");
    for life in [Some(0), Some(5), Some(20), Some(100), None] {
        fs::write(&disk, vec![b'n'; DISK_BYTES]).unwrap();
        let uri = client.post(&format!("{target}/restore"), "").status_uri();
        if let Some(millis) = life {
            std::thread::sleep(Duration::from_millis(millis));
            drop(server);
            server = Python::start(&at("data"));
        }
        let status = client.finished(&uri);
        let bytes = fs::read(&disk).unwrap();
        // It may have been away before it was asked.
        let away = life.is_some() && status["status"] == 503;
        let expected = if away { b'n' } else { b'o' };
        assert!(away || status["state"] == "SUCCESS", "{life:?}: {status}");
        assert!(
            bytes.iter().all(|byte| *byte == expected),
            "{life:?}: whole: {status}"
        );
    }
    let left: Vec<String> = fs::read_dir(at("data/vms/db"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, ["disk.img"], "nothing is left lying about");
    drop(server);
}
