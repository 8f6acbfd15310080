//! Reload, drain, restart, crash: what happens around the requests.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::client::Client;
use crate::client::read_reply;
use crate::client::read_some;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::program;
use crate::harness::stop_in_background;

const BACKUP: &str = "/vms/1/backups/456";

#[apply(test)]
fn a_good_reload_takes_effect_as_a_whole_and_a_bad_one_not_at_all() {
    let gateway = Gateway::start(SIM);
    let carol = gateway.client("carol");
    assert_eq!(carol.delete(BACKUP).status, 403, "not granted yet");
    let hash = "snapgate_config_info{hash=";

    // Two problems and one valid change: nothing takes effect.
    let bad = SIM.replace(
        "actions = [\"read\", \"restore\"]",
        "actions = [\"read\", \"delete\"]\ncolour = 1",
    );
    assert!(!gateway.reload(&bad), "refused");
    assert_eq!(
        carol.delete(BACKUP).status,
        403,
        "the old configuration stays active"
    );
    assert!(
        gateway.metric("snapgate_config_last_reload_successful") < 0.5,
        "and it shows"
    );
    assert!(
        gateway.metric("snapgate_config_reloads_total{result=\"refused\"}") > 0.5,
        "counted"
    );
    assert!((gateway.metric(hash) - 1.0).abs() < 0.1, "one active hash");

    let good = SIM.replace(
        "actions = [\"read\", \"restore\"]",
        "actions = [\"read\", \"delete\"]",
    );
    assert!(gateway.reload(&good), "taken");
    assert_eq!(
        carol.post(&format!("{BACKUP}/restore"), "").status,
        403,
        "no longer granted"
    );
    assert_eq!(carol.delete(BACKUP).status, 202, "granted now");
    assert!(
        gateway.metric("snapgate_config_last_reload_successful") > 0.5,
        "and it shows"
    );
    assert!(
        gateway.metric("snapgate_config_restart_required") < 0.5,
        "nothing is left over"
    );

    let moved = good.replace("store = \"operations.db\"", "store = \"elsewhere.db\"");
    assert!(gateway.reload(&moved), "taken as far as it can be");
    assert!(
        gateway.metric("snapgate_config_restart_required") > 0.5,
        "the rest needs a restart"
    );
}

#[apply(test)]
fn a_changed_password_ends_the_old_one_at_once() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    assert_eq!(alice.get(BACKUP).status, 200, "remembered from here on");
    let changed = SIM.replacen("SECRET_HASH", &SECRET_HASH.replace("UJ", "UK"), 1);
    let other = changed.replacen(
        SECRET_HASH,
        "$2b$04$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui",
        1,
    );
    let without_alice = other
        .replacen("name = \"alice\"", "name = \"alicia\"", 1)
        .replace("user:alice", "user:alicia");
    assert!(gateway.reload(&without_alice), "taken");
    assert_eq!(
        alice.get(BACKUP).status,
        401,
        "the remembered credential went with its user"
    );
}

#[apply(test)]
fn a_drain_waits_for_running_requests_and_says_so() {
    // Who waits is answered at once, so that without the notice all of it may be over before anybody looks.
    let server =
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ndrain_notice = \"2s\"\n";
    let sim = SIM.replace("duration = \"50ms\"", "duration = \"10m\"");
    let gateway = Gateway::start(&format!("{server}{sim}"));
    let (api, admin) = (gateway.api, gateway.admin);
    let alice = gateway.client("alice");
    // The second stays queued behind the first: its Status does not change while it is waited for.
    alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    let status_uri = alice.post(&format!("{BACKUP}/restore"), "").status_uri();
    let mut idle = TcpStream::connect(api).unwrap();
    idle.write_all(b"GET /versions HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert_eq!(read_reply(&mut idle, false).status, 200, "kept alive");
    let waiting = {
        // Longer than a loaded machine takes to notice that it waits.
        let client = alice.with("Prefer", "wait=8");
        let uri = status_uri;
        std::thread::Builder::new()
            .spawn(move || client.get(&uri))
            .unwrap()
    };
    eventually("the request waits", || {
        metric(admin, "snapgate_waiters") > 0.5
    });
    let stopped = stop_in_background(gateway);
    eventually("not ready", || {
        Client::bare(admin).get("/readyz").status == 503
    });
    assert_eq!(
        Client::bare(admin).get("/healthz").status,
        200,
        "and yet alive"
    );
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        read_some(&mut idle, &mut [0; 16]).unwrap(),
        0,
        "idle connections are closed"
    );
    let reply = waiting.join().unwrap();
    assert_eq!(
        reply.status, 200,
        "the running request got its answer: {reply:?}"
    );
    let took = stopped.join().unwrap();
    assert!(
        took < Duration::from_secs(25),
        "and nothing was waited for in vain: {took:?}"
    );
    assert!(TcpStream::connect(api).is_err(), "closed");
}

#[apply(test)]
fn sigterm_sighup_and_a_port_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let text = |rights: &str| {
        let sim = SIM
            .replace("SECRET_HASH", SECRET_HASH)
            .replace("\"read\", \"restore\"", rights);
        format!("[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{sim}")
    };
    fs::write(&config, text("\"read\", \"restore\"")).unwrap();
    let path = config.to_str().unwrap();
    let process = Process::start(&["serve", "--config", path]);
    let carol = Client::new(process.api, "carol", "secret");
    assert_eq!(carol.delete(BACKUP).status, 403, "not granted");

    // A changed file is noticed; SIGHUP is for those who do not want to wait.
    fs::write(&config, text("\"read\", \"delete\"")).unwrap();
    process.signal("HUP");
    eventually("granted after SIGHUP", || {
        carol.delete(BACKUP).status != 403
    });

    // A second one on the same store and on the same port.
    let second = program()
        .args(["serve", "--config", path])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "the store is taken");
    let taken = text("\"read\"")
        .replace(
            "listen = \"127.0.0.1:0\"",
            &format!("listen = \"{}\"", process.api),
        )
        .replace("operations.db", "second.db");
    let other = folder.path().join("second.toml");
    fs::write(&other, taken).unwrap();
    let output = program()
        .args(["serve", "--config", other.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("cannot listen on {}", process.api)),
        "names the port: {said}"
    );
    assert!(
        !said.contains("panicked"),
        "a sentence, not a panic: {said}"
    );

    assert!(
        metric(process.admin, "snapgate_build_info") > 0.5,
        "the admin port serves"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}

#[apply(test)]
fn a_changed_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let text = format!("[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{sim}");
    fs::write(&config, &text).unwrap();
    let process = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let carol = Client::new(process.api, "carol", "secret");
    assert_eq!(carol.get("/vms/2/backups/456").status, 404, "not granted");
    fs::write(
        &config,
        text.replace("vms = [\"1\"]\nbackups", "vms = [\"1\", \"2\"]\nbackups"),
    )
    .unwrap();
    eventually("granted", || carol.get("/vms/2/backups/456").status == 200);
}

#[apply(test)]
fn what_was_accepted_survives_kill_9() {
    accepted_then("KILL");
}

#[apply(test)]
fn what_was_queued_runs_after_a_restart() {
    accepted_then("TERM");
}

/// Accepts more than can be done at once, ends the process by the signal, and looks at what becomes of it.
fn accepted_then(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start_demo(folder.path(), &[]);
    let demo = Client::new(process.api, "demo", "demo");
    let mut accepted = Vec::new();
    for number in 0..8 {
        let reply = demo.post(
            "/vms/33333/backups",
            &format!("{{\"name\": \"n{number}\"}}"),
        );
        accepted.push(reply.status_uri());
    }
    process.signal(signal);
    process.wait();
    let process = Process::start_demo(folder.path(), &[]);
    let demo = Client::new(process.api, "demo", "demo");
    for uri in &accepted {
        let status = demo.finished(uri);
        assert_eq!(status["status"], 201, "made after all: {status}");
        let target = status["target_uri"].as_str().unwrap();
        assert_eq!(demo.get(target).status, 200, "and there");
    }
    let list = demo.get("/vms/33333/backups").json();
    assert_eq!(
        list["backups"].as_array().unwrap().len(),
        9,
        "each once, and the first one: {list}"
    );
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}
