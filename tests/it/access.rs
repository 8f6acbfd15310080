//! Who is let in by what: API tokens of a gateway that runs, proxies that are trusted, `snapgate explain`.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use crate::client::Client;
use crate::harness::PATIENCE;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::program;

/// Status, standard output, standard error.
fn snapgate(arguments: &[&str]) -> (i32, String, String) {
    let ended = program().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let status = ended.status.code().unwrap();
    (status, text(ended.stdout), text(ended.stderr))
}

fn configured(folder: &Path, more: &str) -> String {
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let file = folder.join("snapgate.toml");
    let ports = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(&file, format!("[server]\n{ports}{more}\n{sim}")).unwrap();
    file.to_str().unwrap().to_owned()
}

fn bearer(process: &Process, token: &str) -> Client {
    Client::bare(process.api)
        .with("Authorization", &format!("Bearer {token}"))
        .with("X-Cloud-Client-Specification-Version", "0.1")
}

/// An open stream of all Statuses, in HTTP/1.0, where the connection ends with the stream.
struct TokenStream(TcpStream);

impl TokenStream {
    fn open(api: SocketAddr, token: &str) -> Self {
        let mut socket = TcpStream::connect(api).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /statuses HTTP/1.0\r\nHost: {api}\r\nAccept: text/event-stream\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut received = Vec::new();
        while !received.windows(5).any(|window| window == b"\nid: ") {
            let mut part = [0; 4096];
            let count = socket.read(&mut part).unwrap();
            assert!(count > 0, "the stream is open: {}", received.escape_ascii());
            received.extend_from_slice(&part[..count]);
        }
        assert!(
            received.starts_with(b"HTTP/1.1 200"),
            "{}",
            received.escape_ascii()
        );
        Self(socket)
    }

    fn expect_end(&mut self) {
        let begun = Instant::now();
        self.0.read_to_end(&mut Vec::new()).unwrap();
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "the stream ends with the token: {took:?}"
        );
    }
}

#[apply(test)]
fn tokens_are_made_used_and_revoked_while_the_gateway_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = configured(
        folder.path(),
        "[authentication]\ntokens = \"tokens.json\"\n[log]\naudit = \"audit.jsonl\"\n",
    );
    let process = Process::start(&["serve", "--config", &file]);
    let create = [
        "token",
        "create",
        "--config",
        &file,
        "--name",
        "ci",
        "--owner",
        "alice",
        "--actions",
        "read,create",
        "--vms",
        "1",
        "--expires",
        "1h",
    ];
    let (status, out, err) = snapgate(&create);
    assert_eq!(status, 0, "made: {err}");
    let token = out.trim_end();
    assert!(
        token.starts_with("sg_") && token.len() == 75,
        "one line: {out:?}"
    );
    assert!(!err.contains(token), "shown once: {err}");
    let kept = fs::read_to_string(folder.path().join("tokens.json")).unwrap();
    assert!(!kept.contains(token), "kept as a hash: {kept}");

    let ci = bearer(&process, token);
    assert!(err.contains("the running gateway accepts it now"), "{err}");
    assert_eq!(
        ci.get("/vms/1").status,
        200,
        "valid when the command returns"
    );
    assert_eq!(ci.get("/vms/2").status, 404, "another VM");
    assert_eq!(
        ci.delete("/vms/1/backups/456").status,
        403,
        "another action"
    );
    assert_eq!(
        ci.post("/vms/1/backups", "{\"name\":\"n\"}").status,
        202,
        "its own"
    );
    let trail = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    let last: Value = serde_json::from_str(trail.lines().last().unwrap()).unwrap();
    let caller = (&last["principal"], &last["token"], &last["client"]);
    let expected = (
        &Value::from("alice"),
        &Value::from("ci"),
        &Value::from("127.0.0.1"),
    );
    assert_eq!(caller, expected, "owner, token and address: {last}");

    let (status, _, err) = snapgate(&create);
    assert!(status == 1 && err.contains("token ci exists"), "{err}");
    let (_, list, _) = snapgate(&["token", "list", "--config", &file]);
    assert!(
        list.starts_with("ci  owner alice  live  expires 20"),
        "{list}"
    );
    let (_, list, _) = snapgate(&["token", "list", "--config", &file, "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&list).unwrap()["name"],
        "ci",
        "{list}"
    );
    let (status, out, _) = snapgate(&[
        "explain",
        "--config",
        &file,
        "--token",
        "ci",
        "DELETE",
        "/vms/1/backups/4",
    ]);
    assert!(
        status == 1 && out.contains("the scope of the token ci excludes it"),
        "{out}"
    );

    let mut stream = TokenStream::open(process.api, token);
    let (status, _, err) = snapgate(&["token", "revoke", "--config", &file, "ci"]);
    assert_eq!(status, 0, "revoked: {err}");
    assert!(err.contains("the running gateway refuses it now"), "{err}");
    stream.expect_end();
    assert_eq!(
        ci.get("/vms/1").status,
        401,
        "refused when the command returns"
    );
    assert_eq!(
        snapgate(&["token", "revoke", "--config", &file, "ci"]).0,
        1,
        "once"
    );
    let alice = Client::new(process.api, "alice", "secret");
    assert_eq!(alice.get("/vms/1").status, 200, "others are not affected");
}

#[apply(test)]
fn tokens_that_cannot_be_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = configured(
        folder.path(),
        "[authentication]\ntokens = \"tokens.json\"\n",
    );
    let make = |more: &[&str]| {
        let mut arguments = vec!["token", "create", "--config", file.as_str()];
        arguments.extend(more);
        snapgate(&arguments)
    };
    let rows: [(&str, &[&str], &str); 6] = [
        (
            "owner",
            &["--name", "t", "--owner", "zoe"],
            "\"zoe\" is no user",
        ),
        (
            "name",
            &["--name", "a b", "--owner", "alice"],
            "name must not contain",
        ),
        (
            "time",
            &["--name", "t", "--owner", "alice", "--expires", "soon"],
            "12h or 90d",
        ),
        (
            "no time",
            &["--name", "t", "--owner", "alice", "--expires", "0s"],
            "12h or 90d",
        ),
        (
            "action",
            &["--name", "t", "--owner", "alice", "--actions", "fly"],
            "known are read",
        ),
        (
            "pattern",
            &["--name", "t", "--owner", "alice", "--vms", "*********"],
            "more than 8",
        ),
    ];
    for (name, arguments, expected) in rows {
        let (status, out, err) = make(arguments);
        assert_eq!((status, out.as_str()), (1, ""), "{name}: {err}");
        assert!(err.contains(expected), "{name}: {err}");
    }
    assert!(
        !folder.path().join("tokens.json").exists(),
        "nothing was made"
    );
    let none = configured(folder.path(), "");
    let (status, _, err) = snapgate(&["token", "list", "--config", &none]);
    assert!(
        status == 1 && err.contains("tokens = \"tokens.json\""),
        "the remedy: {err}"
    );
}

#[apply(test)]
fn explain_names_the_grant_or_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = configured(folder.path(), "");
    let text = fs::read_to_string(&file).unwrap();
    let line = |number: usize| {
        let mut found = text
            .lines()
            .enumerate()
            .filter(|(_, line)| *line == "[[grant]]");
        found.nth(number).unwrap().0 + 1
    };
    let rows: [(&[&str], i32, Vec<String>); 5] = [
        (
            &["--as", "alice", "DELETE", "/vms/1/backups/456"],
            0,
            vec![
                format!("delete: grant[0] (snapgate.toml:{}) allows it", line(0)),
                "the VM is on backend lab".to_owned(),
                "allowed".to_owned(),
            ],
        ),
        (
            &["--as", "carol", "delete", "/vms/1/backups/456"],
            1,
            vec![
                "delete: no grant allows it to carol or to a group of carol".to_owned(),
                "denied: 403 NotPermitted: The caller is not permitted to do this.".to_owned(),
            ],
        ),
        (
            &["--as", "carol", "GET", "/vms/2"],
            1,
            vec![
                format!(
                    "read: grant[1] (snapgate.toml:{}) does not cover VM \"2\"",
                    line(1)
                ),
                "denied: 404 NoSuchVm: The VM does not exist.".to_owned(),
            ],
        ),
        (
            &["--as", "sso", "--groups", "ops", "GET", "/vms/1"],
            1,
            vec!["read: no grant allows it to sso or to a group of sso".to_owned()],
        ),
        (&["--as", "zoe", "GET", "/vms/1"], 1, Vec::new()),
    ];
    for (arguments, expected, lines) in rows {
        let mut all = vec!["explain", "--config", file.as_str()];
        all.extend(arguments);
        let (status, out, err) = snapgate(&all);
        assert_eq!(status, expected, "{arguments:?}: {out}{err}");
        let printed: Vec<&str> = out.lines().collect();
        assert!(
            lines.iter().zip(&printed).all(|(one, two)| one == two) && printed.len() >= lines.len(),
            "{arguments:?}: {out}{err}"
        );
    }
}

#[apply(test)]
fn only_a_trusted_proxy_says_whose_request_it_is() {
    for (trusted, client) in [
        ("trusted_proxies = [\"127.0.0.0/8\"]", "198.51.100.7"),
        ("trusted_proxies = [\"192.0.2.1\"]", "127.0.0.1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = configured(
            folder.path(),
            &format!("{trusted}\n[log]\naudit = \"audit.jsonl\"\n"),
        );
        let process = Process::start(&["serve", "--config", &file]);
        let carol = Client::new(process.api, "carol", "secret")
            .with("X-Forwarded-For", "10.0.0.1, 198.51.100.7")
            .with("X-Request-Id", "from-the-proxy");
        let reply = carol.delete("/vms/1/backups/456");
        assert_eq!(reply.status, 403, "refused");
        let id = reply.header("x-request-id");
        assert_eq!(
            id == "from-the-proxy",
            client != "127.0.0.1",
            "{trusted}: {id}"
        );
        let trail = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let last: Value = serde_json::from_str(trail.lines().last().unwrap()).unwrap();
        assert_eq!(last["client"], client, "{trusted}: {last}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = configured(folder.path(), "trusted_proxies = [\"proxy.example.com\"]\n");
    let (status, _, err) = snapgate(&["check", "--config", &file]);
    assert_eq!(status, 78, "{err}");
    assert!(
        err.contains("server.trusted_proxies[0]: \"proxy.example.com\" is neither"),
        "{err}"
    );
}

#[apply(test)]
fn guessers_are_locked_out_and_the_user_elsewhere_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let more = "trusted_proxies = [\"127.0.0.1\"]\n[lockout]\nattempts = 2\nlongest = \"1h\"\n";
    let file = configured(folder.path(), more);
    let process = Process::start(&["serve", "--config", &file]);
    let from = |address: &str, user: &str, password: &str| {
        let client = Client::new(process.api, user, password);
        client.with("X-Forwarded-For", address).get("/vms/1").status
    };
    let guesser = "198.51.100.1";
    // Some seconds of lock-out, so that a slow machine does not see the end of it.
    let mut answers = Vec::new();
    while answers.iter().filter(|answer| **answer == 429).count() < 4 {
        answers.push(from(guesser, "alice", "guess"));
        assert!(answers.len() < 10_000, "never locked out");
    }
    assert_eq!(
        answers[..3],
        [401, 401, 401],
        "the first ones are looked at"
    );
    assert_eq!(
        from("203.0.113.9", "alice", "secret"),
        200,
        "the user elsewhere"
    );
    assert_eq!(
        from("127.0.0.1", "alice", "secret"),
        200,
        "and on this machine"
    );
    let metrics = Client::bare(process.admin).get("/metrics");
    let metrics = String::from_utf8(metrics.body).unwrap();
    for line in [
        "snapgate_lockouts_total{by=\"user\"} ",
        "snapgate_credential_checks_total{result=\"locked_out\"} ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[apply(test)]
fn a_rate_limit_is_announced_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = configured(
        folder.path(),
        "[rate]\nprincipal = 1\nprincipal_burst = 3\n",
    );
    let process = Process::start(&["serve", "--config", &file]);
    let alice = Client::new(process.api, "alice", "secret");
    let first = alice.get("/vms/1");
    assert_eq!(
        first.header("ratelimit-policy"),
        "\"principal\";q=3;w=3",
        "announced"
    );
    let mut refused = None;
    for _ in 0..10_000 {
        let reply = alice.get("/vms/1");
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("never refused");
    assert_eq!(refused.header("retry-after"), "1", "when to come again");
    assert_eq!(refused.json()["message"][0]["code"], "RateLimited", "why");
    assert_eq!(
        Client::new(process.api, "carol", "secret")
            .get("/vms/1")
            .status,
        200,
        "others"
    );
    assert_eq!(
        Client::bare(process.admin).get("/healthz").status,
        200,
        "health"
    );
    let bad = configured(folder.path(), "[rate]\nprincipal_burst = 3\n");
    let (status, _, err) = snapgate(&["check", "--config", &bad]);
    assert!(
        status == 78 && err.contains("rate.principal_burst: has no effect without principal"),
        "{err}"
    );
}
