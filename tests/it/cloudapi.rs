//! The adapter for servers that speak this API: against servers that follow a script, and beds for the suite.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::cloudapi::Address;
use snapgate::adapters::cloudapi::CloudApi;
use snapgate::adapters::cloudapi::Config;
use snapgate::adapters::cloudapi::Credential;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::ManualClock;
use snapgate::runtime::SystemClock;
use tempfile::TempDir;

use crate::conformance::Bed;
use crate::conformance::key;
use crate::conformance::suite;
use crate::conformance_kills::kills;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::eventually;
use crate::harness::metric;
use crate::skip::skipped;

pub(crate) fn config(address: Address, recovery: Recovery) -> Config {
    let secret = Secret::new("secret".to_owned());
    Config {
        address,
        base: Vec::new(),
        credential: Some(Credential::basic("gate", &secret).unwrap()),
        version: "0.1".to_owned(),
        recovery,
        connect_timeout: Duration::from_secs(5),
    }
}

/// The example server, ended with SIGKILL when dropped.
pub(crate) struct Python {
    child: Child,
}

impl Python {
    /// On the socket `s` of the folder; `None` when there is no Python.
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        let found = Command::new("python3").arg("--version").output();
        if !found.is_ok_and(|it| it.status.success()) {
            skipped("python3");
            return None;
        }
        fs::write(folder.join("credentials"), "gate:secret\n").unwrap();
        let mut child = Command::new("python3")
            .arg("-B")
            .arg("docs/examples/cloudapi_server.py")
            .arg(folder)
            .arg(folder.join("s"))
            .arg(folder.join("credentials"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(
            line.starts_with("listening on "),
            "the example server starts: {line:?}"
        );
        Some(Self { child })
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder with the VM 33333.
fn folder_with_vm() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("vms/33333")).unwrap();
    fs::create_dir_all(folder.path().join("backups")).unwrap();
    fs::write(folder.path().join("vms/33333/disk.img"), "0").unwrap();
    folder
}

struct ServerBed<S> {
    name: &'static str,
    config: Config,
    folder: TempDir,
    /// Of a server that says how many are connected to it.
    admin: Option<SocketAddr>,
    _server: S,
}

impl<S> ServerBed<S> {
    fn disk(&self) -> PathBuf {
        self.folder.path().join("vms/33333/disk.img")
    }
}

impl<S> Bed for ServerBed<S> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(CloudApi::new(&self.config, SystemClock::shared()).unwrap())
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        fs::write(self.disk(), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        fs::read_to_string(self.disk()).unwrap().parse().unwrap()
    }
    fn names_remedies(&self) -> bool {
        true
    }
    fn killed(&self) {
        if let Some(admin) = self.admin {
            let connected = || metric(admin, "snapgate_connections ");
            eventually("the server misses the gateway", || connected() == 0.0);
        }
    }
    fn settle(&self) -> Option<Duration> {
        // What the server read from the gateway that was killed it has taken up by then.
        self.admin.map(|_| Duration::from_secs(1))
    }
    fn window(&self) -> Option<Duration> {
        // Where the state alone tells, it tells at once or never.
        (self.config.recovery == Recovery::NoTrace).then_some(Duration::from_secs(1))
    }
}

/// A gateway with the backend `files` in the folder, and a user `gate` with every right.
pub(crate) fn inner(folder: &Path) -> Process {
    let config = format!(
        r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
public_url = "http://inner.example"
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
    let file = folder.join("snapgate.toml");
    fs::write(&file, config).unwrap();
    Process::start(&["serve", "--config", file.to_str().unwrap()])
}

fn on_snapgate(name: &'static str, recovery: Recovery) -> ServerBed<Process> {
    let folder = folder_with_vm();
    let server = inner(folder.path());
    ServerBed {
        name,
        config: config(Address::Loopback(server.api), recovery),
        folder,
        admin: Some(server.admin),
        _server: server,
    }
}

async fn behaves_on_snapgate(name: &'static str, recovery: Recovery) {
    suite(&on_snapgate(name, recovery)).await;
}

#[test]
fn snapgate_is_left_by_a_gateway_killed_between_any_two_steps() {
    kills(&on_snapgate("cloudapi on snapgate", Recovery::ReplaySafe));
}

#[test]
fn snapgate_is_left_by_a_gateway_that_knows_its_statuses_killed_between_any_two_steps() {
    let name = "cloudapi on snapgate, listable";
    kills(&on_snapgate(name, Recovery::Listable));
}

#[test]
fn snapgate_is_left_by_a_gateway_that_knows_its_state_killed_between_any_two_steps() {
    let name = "cloudapi on snapgate, no trace";
    kills(&on_snapgate(name, Recovery::NoTrace));
}

#[tokio::test]
async fn cloudapi_behaves_on_snapgate() {
    behaves_on_snapgate("cloudapi on snapgate", Recovery::ReplaySafe).await;
}

#[tokio::test]
async fn cloudapi_behaves_on_snapgate_by_its_statuses() {
    behaves_on_snapgate("cloudapi on snapgate, listable", Recovery::Listable).await;
}

#[tokio::test]
async fn cloudapi_behaves_on_snapgate_by_state() {
    behaves_on_snapgate("cloudapi on snapgate, no trace", Recovery::NoTrace).await;
}

async fn behaves_on_python(name: &'static str, recovery: Recovery) {
    let folder = folder_with_vm();
    let Some(server) = Python::start(folder.path()) else {
        return;
    };
    let config = config(Address::Unix(folder.path().join("s")), recovery);
    let bed = ServerBed {
        name,
        config,
        folder,
        admin: None,
        _server: server,
    };
    suite(&bed).await;
}

#[tokio::test]
async fn cloudapi_behaves_on_python() {
    behaves_on_python("cloudapi on python", Recovery::ReplaySafe).await;
}

#[tokio::test]
async fn cloudapi_behaves_on_python_by_its_statuses() {
    behaves_on_python("cloudapi on python, listable", Recovery::Listable).await;
}

/// A server on a socket that answers as a test says: one request a connection.
pub(crate) struct Script {
    _folder: TempDir,
    socket: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// The answer to a request is made from its head and body; an empty one closes the connection.
    pub(crate) fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&seen);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let request = read_request(&stream);
                    heard.lock().unwrap().push(request.clone());
                    // A caller that hangs up does not want to know.
                    drop(stream.write_all(&answer(&request)));
                }
            })
            .unwrap();
        Self {
            _folder: folder,
            socket,
            seen,
        }
    }

    pub(crate) fn adapter(&self, recovery: Recovery, clock: Arc<dyn Clock>) -> CloudApi {
        let config = config(Address::Unix(self.socket.clone()), recovery);
        CloudApi::new(&config, clock).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(it) = lower.strip_prefix("content-length:") {
            length = it.trim().parse().unwrap();
        }
        text.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

pub(crate) fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

const BACKUP: &str =
    r#"{"name": "n", "uri": "http://x/vms/1/backups/456", "created": "2026-11-24T01:02:03Z"}"#;

pub(crate) fn by(millis: u64) -> Deadline {
    SystemClock.deadline(Duration::from_millis(millis))
}

fn intent(change: Change) -> Intent {
    Intent {
        target: Target {
            vm: VmId::new("1").unwrap(),
            backup: BackupId::new("456").unwrap(),
        },
        identity: Some(Identity::new("2026-11-24T01:02:03Z 456".to_owned())),
        change,
    }
}

pub(crate) fn restore() -> Intent {
    intent(Change::Restore(RestoreOptions::default()))
}

pub(crate) fn told(op: &str, more: &str) -> String {
    format!(r#"{{"op": "{op}", "target_uri": "/vms/1/backups/456", {more}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_got_no_clear_answer_may_have_been_begun() {
    let running = |uri: &str| {
        told(
            "restore-Backup",
            &format!(r#""progress": 0, "status_uri": "{uri}""#),
        )
    };
    let code = |it: &str| format!(r#"{{"message": [{{"code": "{it}", "text": "/etc/passwd"}}]}}"#);
    let large = "x".repeat(33 * 1024 * 1024);
    let may = |kind| Err((kind, Effect::Possible));
    let none = |kind| Err((kind, Effect::None));
    let nonsense = FaultKind::BackendFailed;
    let rows: Vec<(&str, Vec<u8>, Result<&str, (FaultKind, Effect)>)> = vec![
        (
            "a task",
            http("202 A", "", &running("/statuses?seq=7")),
            Ok("task"),
        ),
        (
            "done at once",
            http(
                "202 A",
                "",
                &told(
                    "restore-Backup",
                    r#""progress": 100, "status": 200, "status_uri": "/s""#,
                ),
            ),
            Ok("done"),
        ),
        (
            "failed at once",
            http(
                "202 A",
                "",
                &told(
                    "restore-Backup",
                    r#""progress": 100, "status": 507, "status_uri": "/s""#,
                ),
            ),
            Ok("task"),
        ),
        (
            "another host",
            http("202 A", "", &running("http://169.254.169.254/latest")),
            may(nonsense),
        ),
        (
            "no scheme",
            http("202 A", "", &running("//evil.example/s")),
            may(nonsense),
        ),
        (
            "dot segments",
            http("202 A", "", &running("/a/%2e%2e/s")),
            may(nonsense),
        ),
        (
            "of something else",
            http(
                "202 A",
                "",
                &told("back_up", r#""progress": 0, "status_uri": "/s""#),
            ),
            may(nonsense),
        ),
        ("no JSON", http("202 A", "", "<html>"), may(nonsense)),
        ("nothing", http("200 OK", "", ""), may(nonsense)),
        ("too large", http("202 A", "", &large), may(nonsense)),
        (
            "redirect",
            http("307 T", "location: http://evil.example/\r\n", ""),
            may(nonsense),
        ),
        (
            "closed without a word",
            Vec::new(),
            may(FaultKind::Unavailable),
        ),
        ("proxy error", http("502 B", "", "<html>"), may(nonsense)),
        (
            "own credentials",
            http("401 U", "", &code("Unauthenticated")),
            none(FaultKind::BackendDenied),
        ),
        (
            "not granted",
            http("403 F", "", &code("NotPermitted")),
            none(FaultKind::BackendDenied),
        ),
        (
            "busy",
            http("409 C", "", &code("Busy")),
            none(FaultKind::Busy),
        ),
        (
            "overloaded",
            http("503 S", "", &code("QueueFull")),
            none(FaultKind::Unavailable),
        ),
        (
            "changed each time",
            http("412 P", "", &code("PreconditionFailed")),
            none(FaultKind::Conflict),
        ),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |request| {
            if request.starts_with("GET ") {
                http("200 OK", "etag: \"t1\"\r\n", BACKUP)
            } else {
                answer.clone()
            }
        });
        let adapter = script.adapter(Recovery::ReplaySafe, SystemClock::shared());
        let begun = adapter.begin(&restore(), key(9), None, by(20_000)).await;
        let found = match &begun {
            Ok(BeginOutcome::Done) => Ok("done"),
            Ok(BeginOutcome::Task(_)) => Ok("task"),
            Err(error) => {
                assert!(
                    !error.fault.text.contains("/etc"),
                    "{name}: no words of the server"
                );
                Err((error.fault.kind, error.effect))
            }
        };
        assert_eq!(found, expected, "{name}: {begun:?}");
        let requests = script.requests();
        let tries = if name == "changed each time" { 4 } else { 2 };
        assert_eq!(
            requests.len(),
            tries,
            "{name}: nothing else is asked: {requests:#?}"
        );
        let sent = requests[1].to_ascii_lowercase();
        let parts = [
            "post /vms/1/backups/456/restore http/1.1",
            "x-cloud-client-specification-version: 0.1",
            "authorization: basic z2f0ztpzzwnyzxq=",
            "idempotency-key: snapgate-9",
            "x-request-id: snapgate-9",
            "if-match: \"t1\"",
            "x-cloud-hops: 1",
            "{\"note\":\"snapgate-9\"}",
        ];
        for part in parts {
            assert!(sent.contains(part), "{name}: {part} in {sent}");
        }
    }
    let slow = Script::start(|request| {
        if request.starts_with("GET ") {
            return http("200 OK", "", BACKUP);
        }
        std::thread::sleep(Duration::from_secs(3));
        Vec::new()
    });
    let adapter = slow.adapter(Recovery::ReplaySafe, SystemClock::shared());
    let error = adapter
        .begin(&restore(), key(9), None, by(1500))
        .await
        .unwrap_err();
    let seen = (error.fault.kind, error.effect);
    assert_eq!(
        seen,
        (FaultKind::TimedOut, Effect::Possible),
        "too slow: {error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_followed_and_what_the_server_does_not_know_is_never_a_failure() {
    let status = |more: &str| {
        http(
            "200 OK",
            "retry-after: 30\r\n",
            &told("restore-Backup", more),
        )
    };
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "at work",
            status(r#""progress": 40, "status_uri": "/s""#),
            "Running(Some(Progress(40)))",
        ),
        (
            "done",
            status(r#""progress": 100, "status": 200, "status_uri": "/s""#),
            "Done",
        ),
        (
            "failed",
            status(r#""progress": 100, "status": 507, "status_uri": "/s""#),
            "StorageFull",
        ),
        (
            "stopped",
            status(r#""progress": 100, "status": 409, "state": "CANCELLED", "status_uri": "/s""#),
            "Cancelled",
        ),
        (
            "not known there",
            status(r#""progress": 100, "status": 500, "state": "UNKNOWN", "status_uri": "/s""#),
            "Gone",
        ),
        (
            "expired",
            http("404 N", "", r#"{"message": [{"code": "NoSuchStatus"}]}"#),
            "Gone",
        ),
        (
            "redirect",
            http("302 F", "location: /elsewhere\r\n", ""),
            "Err(BackendFailed)",
        ),
        ("garbage", http("200 OK", "", "{]"), "Err(BackendFailed)"),
        ("no right", http("403 F", "", ""), "Err(BackendDenied)"),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |_| answer.clone());
        let adapter = script.adapter(Recovery::Listable, SystemClock::shared());
        let task = TaskRef::new("/statuses?op=restore-Backup&vm=a%2Fb&seq=7".to_owned()).unwrap();
        let mut found = String::new();
        // The second look comes before the time that the server asked for: it is not asked.
        for _ in 0..2 {
            let state = adapter.poll(&task, by(20_000)).await;
            found = state.map_or_else(
                |state| format!("Err({:?})", state.fault.kind),
                |it| format!("{it:?}"),
            );
            assert!(found.contains(expected), "{name}: {found}");
        }
        let requests = script.requests();
        assert!(
            requests[0].starts_with("GET /statuses?op=restore-Backup&vm=a%2Fb&seq=7 "),
            "{name}: {requests:?}"
        );
        let looks = if found.starts_with("Running") { 1 } else { 2 };
        let asked = requests
            .iter()
            .filter(|request| request.starts_with("GET /statuses"));
        assert_eq!(asked.count(), looks, "{name}: Retry-After is respected");
    }
}

/// A server that lists these Statuses, and has the backup 456.
fn listing(statuses: &[&str]) -> Script {
    let list = format!(r#"{{"statuses": [{}]}}"#, statuses.join(","));
    Script::start(move |request| {
        if request.starts_with("GET /statuses?op=restore-Backup&vm=1&limit=20 ") {
            http("200 OK", "", &list)
        } else {
            http("200 OK", "", BACKUP)
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_found_in_the_servers_own_list() {
    let status = |seq: u32, more: &str| {
        let more = format!(r#""status_uri": "/statuses?seq={seq}", {more}"#);
        told("restore-Backup", &more)
    };
    let old = status(1, r#""progress": 100, "status": 200"#);
    let at_work = status(2, r#""progress": 10"#);
    let done = status(2, r#""progress": 100, "status": 200"#);
    let unknown = status(2, r#""progress": 100, "status": 500, "state": "UNKNOWN""#);
    let failed = status(2, r#""progress": 100, "status": 507"#);
    let other = at_work.replace("456", "457");
    let again = at_work.replace("seq=2", "seq=3");
    let rows: Vec<(&str, Vec<&str>, &str)> = vec![
        ("nothing new", vec![&old], "NotBegun"),
        (
            "at work",
            vec![&at_work, &old],
            "Task(TaskRef(\"/statuses?seq=2\"))",
        ),
        ("done", vec![&done, &old], "Done"),
        ("failed", vec![&failed, &old], "Failed"),
        ("not known there", vec![&unknown, &old], "Unknowable"),
        ("two that fit", vec![&again, &at_work, &old], "Unknowable"),
        ("of another backup", vec![&other, &old], "NotBegun"),
    ];
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    for (name, list, expected) in &rows {
        let before = listing(&[&old]);
        let shared = Arc::<ManualClock>::clone(&clock);
        let adapter = before.adapter(Recovery::Listable, shared);
        let baseline = adapter
            .baseline(&restore(), key(9), by(20_000))
            .await
            .unwrap();
        let after = listing(list);
        let shared = Arc::<ManualClock>::clone(&clock);
        let adapter = after.adapter(Recovery::Listable, shared);
        let found = adapter
            .find(&restore(), key(9), baseline.as_ref(), by(20_000))
            .await;
        let found = format!("{:?}", found.unwrap());
        assert!(found.starts_with(expected), "{name}: {found}");
    }
    let script = listing(&[&old]);
    let adapter = script.adapter(Recovery::ReplaySafe, Arc::<ManualClock>::clone(&clock));
    let baseline = adapter
        .baseline(&restore(), key(9), by(20_000))
        .await
        .unwrap();
    clock.advance(Duration::from_secs(13 * 3600));
    let found = adapter
        .find(&restore(), key(9), baseline.as_ref(), by(20_000))
        .await;
    let found = found.unwrap();
    assert!(
        matches!(found, FindOutcome::Unknowable),
        "a day later it may be forgotten: {found:?}"
    );
    let error = adapter
        .begin(&restore(), key(9), baseline.as_ref(), by(20_000))
        .await;
    let error = error.unwrap_err();
    assert_eq!(
        error.effect,
        Effect::Possible,
        "and is not asked for again: {error:?}"
    );
    let posts = script
        .requests()
        .iter()
        .filter(|request| request.starts_with("POST"))
        .count();
    assert_eq!(posts, 0, "nothing was sent");
    let no_trace = script.adapter(Recovery::NoTrace, SystemClock::shared());
    let found = no_trace
        .find(&restore(), key(9), None, by(20_000))
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Unknowable),
        "a restore leaves no trace: {found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_fit_are_told_at_once() {
    let versions = |it: &'static str| {
        move |request: &str| {
            if request.starts_with("GET /versions ") {
                http("200 OK", "", it)
            } else {
                http(
                    "405 M",
                    "",
                    r#"{"message": [{"code": "MethodNotAllowed"}]}"#,
                )
            }
        }
    };
    let rows = [
        (
            "other version",
            r#"{"specification_version": "0.9"}"#,
            Recovery::NoTrace,
            Some("version"),
        ),
        (
            "fits",
            r#"{"specification_version": "0.2, 0.1"}"#,
            Recovery::NoTrace,
            None,
        ),
        (
            "lists nothing",
            r#"{"specification_version": "0.1"}"#,
            Recovery::Listable,
            Some("understand"),
        ),
    ];
    for (name, told, recovery, expected) in rows {
        let script = Script::start(versions(told));
        let health = script
            .adapter(recovery, SystemClock::shared())
            .health(by(20_000))
            .await;
        match (health, expected) {
            (Ok(health), None) => {
                assert!(health.product.contains("0.2, 0.1"), "{name}: {health:?}");
            }
            (Err(error), Some(expected)) => {
                assert!(error.fault.text.contains(expected), "{name}: {error:?}");
            }
            (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
        }
    }
    // A list that never ends is given up.
    let endless = Script::start(|_| {
        http(
            "200 OK",
            "link: </x>; rel=\"next\"\r\n",
            &format!(r#"{{"backups": [{BACKUP}]}}"#),
        )
    });
    let adapter = endless.adapter(Recovery::NoTrace, SystemClock::shared());
    let page = Page {
        after: None,
        limit: 5,
    };
    let error = adapter
        .list(&VmId::new("1").unwrap(), &page, by(20_000))
        .await
        .unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::BackendFailed, "{error:?}");
    assert_eq!(endless.requests().len(), 2, "the same page twice is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_stopped_where_the_server_can() {
    let code = |it: &str| format!(r#"{{"message": [{{"code": "{it}"}}]}}"#);
    let rows = [
        (
            "asked",
            http(
                "202 A",
                "",
                &told("back_up", r#""progress": 5, "status_uri": "/s""#),
            ),
            None,
        ),
        (
            "not offered",
            http("405 M", "", &code("MethodNotAllowed")),
            Some((FaultKind::Unsupported, Retry::Permanent)),
        ),
        (
            "over already",
            http("409 C", "", &code("NotCancellable")),
            Some((FaultKind::Unsupported, Retry::Permanent)),
        ),
        (
            "not now",
            http("503 S", "", &code("Unavailable")),
            Some((FaultKind::Unavailable, Retry::Temporary)),
        ),
    ];
    for (name, answer, expected) in rows {
        let script = Script::start(move |_| answer.clone());
        let adapter = script.adapter(Recovery::Listable, SystemClock::shared());
        let task = TaskRef::new("/statuses?op=back_up&seq=7".to_owned()).unwrap();
        let asked = adapter.cancel(&task, by(20_000)).await;
        let found = asked.err().map(|it| (it.fault.kind, it.retry));
        assert_eq!(found, expected, "{name}");
        let requests = script.requests();
        assert_eq!(requests.len(), 1, "{name}: asked once");
        let line = "DELETE /statuses?op=back_up&seq=7 ";
        assert!(requests[0].starts_with(line), "{name}: {requests:?}");
    }
}
