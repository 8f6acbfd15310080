//! What an operator sees of a running gateway: log lines, their level, traces, and the metrics of the process.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::metric;
use crate::passthrough::http;
use crate::passthrough::route;
use crate::passthrough::upstream::Upstream;

/// A trace that a proxy began.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A gateway whose log is in a file.
struct Logged {
    process: Process,
    folder: TempDir,
}

impl Logged {
    fn start(log: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("snapgate.toml");
        let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
        let server = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ntrusted_proxies = [\"127.0.0.2\"]\n";
        fs::write(&config, format!("{server}[log]\n{log}\n{sim}{more}")).unwrap();
        // Others could read the hashes in it otherwise, which is a warning on standard error.
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::File::create(folder.path().join("log")).unwrap();
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        let process = Process::start_logging(&arguments, file);
        Self { process, folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The lines of the log as JSON.
    fn lines(&self) -> Vec<Value> {
        json_lines(&self.path("log"))
    }
}

fn json_lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    // Warnings of the configuration come before the log begins.
    let lines = text.lines().filter(|line| !line.starts_with("warning: "));
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}")))
        .collect()
}

#[apply(test)]
fn the_log_level_is_changed_while_the_gateway_runs() {
    let gateway = Logged::start(
        "format = \"json\"\nlevel = \"warn\"\naccess = false\naudit = \"audit.jsonl\"",
        "",
    );
    let config = gateway.path("snapgate.toml");
    let alice = Client::new(gateway.process.api, "alice", "secret");
    let restore = || {
        let status_uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
        alice.finished(&status_uri);
    };
    let phases = || {
        let all = gateway.lines();
        let phases = all
            .iter()
            .filter(|line| line["message"] == "operation phase changed");
        phases.count()
    };
    restore();
    assert_eq!(phases(), 0, "not at level warn");
    let rows: [(&[&str], i32, &str); 7] = [
        (&["log-level"], 0, "warn (as configured)"),
        (&["log-level", "loud"], 1, "unknown log level"),
        (&["log-level", "debug", "--for", "2d"], 1, "at most 24h"),
        (
            &["log-level", "snapgate=debug,warn"],
            0,
            "snapgate=debug,warn (configured: warn)",
        ),
        (&["log-level"], 0, "snapgate=debug,warn (configured: warn)"),
        (
            &["log-level", "debug", "--for", "2s"],
            0,
            "debug (configured: warn)",
        ),
        (&["log-level"], 0, ""),
    ];
    for (arguments, status, expected) in rows {
        let (found, out, err) = command_output(arguments, &config);
        assert_eq!(found, status, "{arguments:?}: {out}{err}");
        let text = format!("{out}{err}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    restore();
    eventually("phases on the way too at level debug", || phases() > 1);
    eventually("the level returns by itself", || {
        command_output(&["log-level"], &config).1 == "warn (as configured)\n"
    });
    command_output(&["log-level", "trace"], &config);
    let (_, out, _) = command_output(&["log-level", "reset"], &config);
    assert_eq!(out, "warn (as configured)\n", "on request");

    let changes: Vec<Value> = json_lines(&gateway.path("audit.jsonl"));
    let changes = changes.iter().filter(|line| line["action"] == "log-level");
    let levels: Vec<&str> = changes
        .clone()
        .map(|line| line["note"].as_str().unwrap())
        .collect();
    assert_eq!(
        levels,
        ["snapgate=debug,warn", "debug", "trace", "warn"],
        "each is audited"
    );
    for change in changes {
        let name = change["principal"].as_str().unwrap();
        assert!(name.starts_with("os:"), "who: {change}");
    }
    let stranger = Client::bare(gateway.process.admin);
    assert_eq!(stranger.get("/log-level").status, 401, "no token");
    let changed = stranger.send("POST", "/log-level?level=off", Some(b""));
    assert_eq!(changed.status, 401, "no token");
}

#[apply(test)]
fn log_lines_name_the_operation_the_request_and_the_trace() {
    let log = "format = \"json\"\nlevel = \"snapgate=debug,info\"\naudit = \"audit.jsonl\"";
    let gateway = Logged::start(log, "");
    let alice = Client::new(gateway.process.api, "alice", "secret");
    let reply = alice.post("/vms/1/backups/456/restore", "");
    let request = reply.header("x-request-id").to_owned();
    let status_uri = reply.status_uri();
    let (_, seq) = status_uri.rsplit_once('=').unwrap();
    alice.finished(&status_uri);
    let about = || {
        let mut all = gateway.lines();
        all.retain(|line| line["request_id"] == *request);
        all
    };
    let with_message = |message: &str| {
        let mut all = about();
        all.retain(|line| line["message"] == message);
        all
    };
    eventually("the access line", || !with_message("request").is_empty());
    let way = "operation phase changed";
    eventually("the way of the operation", || with_message(way).len() >= 3);
    let lines = about();
    let phases = with_message(way);
    let trace = phases[0]["trace_id"].as_str().unwrap();
    assert_eq!(trace.len(), 32, "a trace: {trace}");
    for line in &lines {
        assert_eq!(line["trace_id"], trace, "one trace: {line}");
        assert_eq!(line["operation"], seq, "the operation, as text: {line}");
    }
    for line in gateway.lines() {
        for (name, value) in line.as_object().unwrap() {
            let is_quoted = value.as_str().is_some_and(|text| text.starts_with('"'));
            assert!(!is_quoted, "{name} without quotes of its own: {line}");
        }
    }
    let audited = json_lines(&gateway.path("audit.jsonl"));
    let mine = audited.iter().filter(|line| line["request"] == *request);
    let traces: Vec<&Value> = mine.map(|line| &line["trace_id"]).collect();
    assert_eq!(traces, [trace, trace], "accepted and ended, in the trail");
}

#[apply(test)]
fn a_trace_is_continued_for_trusted_proxies_alone() {
    let upstream = Upstream::start();
    let rows = [("127.0.0.1", true), ("192.0.2.1", false)];
    for (proxy, is_trusted) in rows {
        let server = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ntrusted_proxies = [\"{proxy}\"]\n"
        );
        let passes = route("all", "/", &[http(&upstream)], "authentication = \"none\"");
        let gateway = Gateway::start(&format!("{server}{SIM}{passes}"));
        let proxy = gateway
            .bare()
            .with("traceparent", PARENT)
            .with("tracestate", "vendor=1");
        assert_eq!(proxy.get("/a").status, 200, "passed through");
        let seen = upstream.record.seen.lock().unwrap().pop().unwrap();
        let sent = seen.field("traceparent");
        assert_eq!(sent.len(), 1, "one: {sent:?}");
        assert_eq!(
            sent[0].contains(TRACE),
            is_trusted,
            "{is_trusted}: {sent:?}"
        );
        assert!(
            !sent[0].contains("b7ad6b7169203331"),
            "a span of its own: {sent:?}"
        );
        assert_eq!(sent[0].len(), 55, "well-formed: {sent:?}");
        let state = seen.field("tracestate");
        assert_eq!(!state.is_empty(), is_trusted, "{is_trusted}: {state:?}");
        let other = gateway.bare().get("/b");
        assert_eq!(other.status, 200, "passed through");
        let seen = upstream.record.seen.lock().unwrap().pop().unwrap();
        assert_ne!(seen.field("traceparent"), sent, "each request has its own");
    }
}

/// A collector of traces that keeps what it gets.
struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    while let Some((head, body)) = read_request(&mut stream) {
                        let body = serde_json::from_slice(&body).unwrap();
                        kept.lock().unwrap().push((head, body));
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
                        if stream.write_all(answer).is_err() {
                            break;
                        }
                    }
                }
            })
            .unwrap();
        Self { address, bodies }
    }

    /// Every span so far.
    fn spans(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().unwrap();
        let all = bodies.iter().flat_map(|(_, body)| {
            let scopes = body["resourceSpans"][0]["scopeSpans"][0]["spans"].clone();
            scopes.as_array().unwrap().clone()
        });
        all.collect()
    }
}

fn read_request(stream: &mut std::net::TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn attribute<'a>(span: &'a Value, name: &str) -> Option<&'a str> {
    let all = span["attributes"].as_array()?.iter();
    let mut found = all.filter(|attribute| attribute["key"] == name);
    found.next()?["value"]["stringValue"].as_str()
}

#[apply(test)]
fn requests_and_operations_are_exported_as_one_trace() {
    let collector = Collector::start();
    let tracing = format!(
        "[tracing]\nendpoint = \"http://{}/v1/traces\"\nauthorization = \"file:collector.authorization\"\n",
        collector.address
    );
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("collector.authorization"), "Bearer t1\n").unwrap();
    let config = folder.path().join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(&config, format!("{server}{tracing}{sim}")).unwrap();
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let alice = Client::new(gateway.api, "alice", "secret");
    let reply = alice.post("/vms/1/backups/456/restore?x=secret-query", "");
    let reply = if reply.status == 202 {
        reply
    } else {
        alice.post("/vms/1/backups/456/restore", "")
    };
    let request = reply.header("x-request-id").to_owned();
    alice.finished(&reply.status_uri());
    let of_request = || {
        let mut spans = collector.spans();
        spans.retain(|span| attribute(span, "snapgate.request_id") == Some(&request));
        spans
    };
    eventually("the request and its operation", || of_request().len() == 2);
    let spans = of_request();
    let named = |name: &str| {
        let mut all = spans.iter().filter(|span| span["name"] == name);
        all.next().unwrap_or_else(|| panic!("{name}: {spans:?}"))
    };
    let request = spans.iter().find(|span| span["kind"] == 2).unwrap();
    let operation = named("restore");
    assert_eq!(operation["traceId"], request["traceId"], "one trace");
    assert_eq!(operation["parentSpanId"], request["spanId"], "caused by it");
    assert_eq!(attribute(operation, "snapgate.outcome"), Some("succeeded"));
    assert_eq!(attribute(operation, "snapgate.vm"), Some("1"));
    let number = |name: &str| operation[name].as_str().unwrap().parse::<u64>().unwrap();
    assert!(
        number("startTimeUnixNano") < number("endTimeUnixNano"),
        "{operation}"
    );
    let all = format!("{:?}", collector.spans());
    assert!(!all.contains("secret-query"), "no queries: {all}");
    let bodies = collector.bodies.lock().unwrap();
    let head = bodies[0].0.to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    assert!(head.contains("authorization: bearer t1"), "{head}");
    drop(bodies);
    // Counted once the collector has answered.
    let exported = "snapgate_trace_spans_total{result=\"exported\"}";
    eventually("counted", || metric(gateway.admin, exported) >= 2.0);
}

#[apply(test)]
fn a_collector_that_does_not_answer_costs_nothing_but_its_spans() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let tracing = format!("[tracing]\nendpoint = \"http://{address}/v1/traces\"\n");
    let gateway = Logged::start("format = \"json\"", &tracing);
    let alice = Client::new(gateway.process.api, "alice", "secret");
    assert_eq!(alice.get("/vms/1").status, 200, "served");
    eventually("counted", || {
        metric(
            gateway.process.admin,
            "snapgate_trace_spans_total{result=\"failed\"}",
        ) >= 1.0
    });
    eventually("logged once", || {
        let lines = gateway.lines();
        let lines = lines
            .iter()
            .filter(|line| line["message"] == "traces not exported");
        lines.count() == 1
    });
}

#[apply(test)]
fn the_process_itself_is_measured() {
    let gateway = Gateway::start(SIM);
    for name in [
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(gateway.metric(name) > 0.0, "{name}");
    }
    let cpu = gateway.metric("process_cpu_seconds_total");
    assert!(cpu < 1_000_000.0, "seconds, not ticks: {cpu}");
}

/// The script that runs a gateway where `/run` holds nothing but the journal of this test.
const WITH_JOURNAL: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal || exit 42
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$2" serve --config "$3"
"#;

#[apply(test)]
fn log_lines_are_entries_of_the_journal_under_systemd() {
    use std::io::BufRead;
    crate::requirements::require_root("to mount the journal of the test");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("journal")).unwrap();
    let journal = std::os::unix::net::UnixDatagram::bind(path("journal").join("socket")).unwrap();
    journal
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(path("c.toml"), format!("{server}{sim}")).unwrap();
    let log = fs::File::create(path("log")).unwrap();
    let mut child = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", WITH_JOURNAL, "sh"])
        .arg(path("journal"))
        .arg(env!("CARGO_BIN_EXE_snapgate"))
        .arg(path("c.toml"))
        .stdout(std::process::Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let api = lines.find_map(|line| {
        line.unwrap()
            .strip_prefix("listening on http://")?
            .parse()
            .ok()
    });
    let Some(api) = api else {
        drop(child.wait());
        crate::runner::skip("no mount namespace");
    };
    let alice = Client::new(api, "alice", "secret");
    let reply = alice.post("/vms/1/backups/456/restore", "");
    let request = reply.header("x-request-id").to_owned();
    let seq = reply.status_uri().rsplit_once('=').unwrap().1.to_owned();
    let mut bytes = vec![0; 65536];
    let mut entry = String::new();
    while !entry.contains("MESSAGE=operation phase changed") {
        let length = journal.recv(&mut bytes).unwrap();
        entry = String::from_utf8(bytes[..length].to_vec()).unwrap();
    }
    for expected in [
        format!("SNAPGATE_OPERATION={seq}\n"),
        format!("SNAPGATE_REQUEST_ID={request}\n"),
        "SNAPGATE_TRACE_ID=".to_owned(),
        "PRIORITY=6\n".to_owned(),
        format!(" operation={seq} "),
    ] {
        assert!(entry.contains(&expected), "{expected}: {entry}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read_to_string(path("log")).unwrap();
    assert!(
        !text.contains("operation phase changed"),
        "not twice: {text}"
    );
}

#[apply(test)]
fn top_shows_one_frame_as_text_and_redraws_a_terminal_until_q() {
    crate::requirements::require_programs(&["script"]);
    let gateway = Logged::start("format = \"json\"", "");
    let config = gateway.path("snapgate.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("50ms", "51ms")).unwrap();
    let alice = Client::new(gateway.process.api, "alice", "secret");
    alice.post("/vms/2/backups/456/restore", "").status_uri();
    eventually("the first health check", || {
        metric(gateway.process.admin, "snapgate_backend_up") > 0.0
    });
    let (status, out, err) = command_output(&["top", "--once", "--interval", "200ms"], &config);
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    for expected in [
        "snapgate ",
        "ready",
        "requests ",
        "BACKEND",
        "lab",
        "OPERATION",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains('\u{1b}'), "plain text: {out:?}");

    let command = format!(
        "{} top --interval 200ms --config {}",
        env!("CARGO_BIN_EXE_snapgate"),
        config.display()
    );
    let mut child = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = child.stdin.take().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    keys.write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.matches("BACKEND").count() >= 2,
        "several frames: {text}"
    );
    assert!(
        text.contains("\u{1b}[?1049h"),
        "a screen of its own: {text:?}"
    );
    assert!(
        text.trim_end().ends_with("\u{1b}[?1049l"),
        "given back: {text:?}"
    );
}

#[apply(test)]
fn servers_behind_an_adapter_receive_the_trace() {
    let server = Upstream::start();
    let backend = format!(
        "[[backend]]\nname = \"far\"\nkind = \"cloudapi\"\nvms = [\"far*\"]\nretries = 0\n[backend.cloudapi]\nurl = \"{}\"\n",
        http(&server)
    );
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let gateway = Gateway::start(&format!("{ports}{SIM}{backend}"));
    let proxy = gateway.client("alice").with("traceparent", PARENT);
    // The server speaks no such API: what it answers does not matter.
    proxy.get("/vms/far1/backups/b");
    let seen = server.record.seen.lock().unwrap();
    let traced = seen.iter().find(|seen| seen.target.contains("far1"));
    let sent = traced
        .expect("a call for the VM")
        .field("traceparent")
        .concat();
    assert!(sent.contains(TRACE), "the trace of the proxy: {sent}");
    assert!(
        !sent.contains("b7ad6b7169203331"),
        "a span of its own: {sent}"
    );
}
