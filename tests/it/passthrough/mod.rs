//! What is passed through, over whole programs and real upstreams.

mod answer_table;
pub(crate) mod answers;
pub(crate) mod away;
mod balance;
mod hostile;
mod idle;
mod pieces;
mod tls;
pub(crate) mod upstream;
mod websocket;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::client::Client;
use crate::client::Reply;
use crate::client::basic;
use crate::client::raw;
use crate::client::read_reply;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::passthrough::upstream::Upstream;

/// A route named `name` with these keys besides, for alice.
pub(crate) fn route(name: &str, path: &str, upstreams: &[String], keys: &str) -> String {
    let upstreams: Vec<String> = upstreams
        .iter()
        .map(|upstream| format!("\"{upstream}\""))
        .collect();
    let allow = if keys.contains("authentication") {
        ""
    } else {
        "allow = [\"user:alice\"]\n"
    };
    format!(
        "[[passthrough]]\nname = \"{name}\"\npath = \"{path}\"\nupstreams = [{}]\n{allow}{keys}\n",
        upstreams.join(", ")
    )
}

pub(crate) fn http(upstream: &Upstream) -> String {
    format!("http://{}", upstream.address)
}

/// A gateway with one route that takes everything, without credentials.
pub(crate) fn open(upstream: &Upstream, keys: &str) -> Gateway {
    let keys = format!("authentication = \"none\"\n{keys}");
    Gateway::start(&format!(
        "{SIM}{}",
        route("all", "/", &[http(upstream)], &keys)
    ))
}

/// Ends of requests that take each of the ways to an upstream: directly without a body and with a small one, and through Pingora.
pub(crate) const WAYS: [&str; 3] = [
    "\r\n",
    "Content-Length: 3\r\n\r\nabc",
    "TE: trailers\r\n\r\n",
];

/// Reads until the other side closes.
pub(crate) fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A reset after the answer is an end too.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

pub(crate) fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

#[apply(test)]
fn each_part_of_an_answer_arrives_before_the_next_is_sent() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    for way in WAYS {
        let request = &*format!("POST /parts HTTP/1.1\r\nHost: x\r\n{way}");
        upstream.record.parts.store(0, Ordering::SeqCst);
        let mut client = send(gateway.api, request);
        let mut found = Vec::new();
        for part in ["ab", "cd", "ef", "gh"] {
            upstream.record.parts.fetch_add(1, Ordering::SeqCst);
            while !found.ends_with(part.as_bytes()) {
                let mut bytes = [0; 1024];
                let count = client.read(&mut bytes).expect("the part arrives");
                assert_ne!(count, 0, "{request}: ended before {part}");
                found.extend_from_slice(&bytes[..count]);
            }
        }
        assert!(found.ends_with(b"\r\n\r\nabcdefgh"), "{request}");
    }
}

#[apply(test)]
fn unusual_framing_of_a_request_reaches_the_upstream_in_its_usual_form() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    // the framing and the body, the field and the value that the upstream gets
    let rows = [
        (
            "Transfer-Encoding: chuNked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "transfer-encoding",
            "chunked",
        ),
        ("Content-Length: 003\r\n\r\nabc", "content-length", "3"),
        ("Content-Length: 00\r\n\r\n", "content-length", "0"),
    ];
    for (framing, name, expected) in rows {
        let request = format!("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}");
        let answer = rest(&mut send(gateway.api, &request));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{framing:?}: {answer}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.field(name), [expected], "{framing:?}");
    }
    assert_eq!(upstream.garbage(), [""; 0]);
}

#[apply(test)]
fn requests_reach_the_upstream_cleaned_and_answers_come_back_cleaned() {
    let upstream = Upstream::start();
    let keys = "strip_prefix = true\nauthorization = \"file:secret\"\nhost = \"upstream\"\n";
    let config = format!(
        "{SIM}{}{}",
        route("own", "/own", &[http(&upstream)], keys),
        route("plain", "/", &[http(&upstream)], "")
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "Bearer hunter2\n").unwrap();
    let gateway = Gateway::start_in(folder, &config);
    let alice = gateway
        .client("alice")
        .with("X-Forwarded-For", "6.6.6.6")
        .with("Forwarded", "for=6.6.6.6")
        .with("X-Request-ID", "mine")
        .with("X-Real-IP", "6.6.6.6")
        .with("X-Original-URL", "/vms/1/backups/456")
        .with("X-Mine", "kept")
        .with("TE", "trailers")
        .with("Upgrade", "websocket");
    let reply = alice.send("POST", "/own/echo?a=b%20c", Some(b"body"));
    assert_eq!(
        (reply.status, &*reply.body),
        (200, &b"body"[..]),
        "{reply:?}"
    );
    assert_eq!(reply.header("server"), "", "removed");
    assert_eq!(reply.header("x-powered-by"), "", "removed");
    assert_eq!(reply.header("via"), "1.1 snapgate", "added");
    let seen = upstream.seen().pop().unwrap();
    let rows: [(&str, &[&str]); 16] = [
        ("host", &[&upstream.address.to_string()]),
        ("authorization", &["Bearer hunter2"]),
        ("x-forwarded-for", &["127.0.0.1"]),
        ("x-forwarded-proto", &["http"]),
        ("x-forwarded-host", &[&gateway.api.to_string()]),
        (
            "forwarded",
            &[&format!(
                "for=127.0.0.1;host=\"{}\";proto=http",
                gateway.api
            )],
        ),
        ("via", &["1.1 snapgate"]),
        ("x-request-id", &[reply.header("x-request-id")]),
        ("x-real-ip", &[]),
        ("x-original-url", &[]),
        ("x-mine", &["kept"]),
        ("te", &[]),
        ("upgrade", &[]),
        ("connection", &[]),
        ("content-length", &["4"]),
        ("transfer-encoding", &[]),
    ];
    assert_eq!(
        (&*seen.method, &*seen.target),
        ("POST", "/echo?a=b%20c"),
        "{seen:?}"
    );
    for (name, expected) in rows {
        assert_eq!(seen.field(name), expected, "{name}");
    }
    let plain = alice.get("/hops");
    assert_eq!(plain.status, 200, "{plain:?}");
    assert_eq!(
        (plain.header("x-hop"), plain.header("keep-alive")),
        ("", ""),
        "between neighbours only"
    );
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        seen.target, "/hops",
        "the prefix is kept unless it is stripped"
    );
    assert_eq!(
        seen.field("authorization"),
        [""; 0],
        "credentials are for the gateway"
    );
    assert_eq!(
        seen.field("host"),
        [gateway.api.to_string()],
        "as the client sent it"
    );
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
    let counted = gateway.metric(&format!(
        "snapgate_passthrough_requests_total{{code=\"200\",passthrough=\"own\",upstream=\"{}\"}}",
        upstream.address
    ));
    assert!((counted - 1.0).abs() < 0.1, "counted: {counted}");
}

#[apply(test)]
fn only_who_is_named_gets_through_and_backup_routes_never_do() {
    let upstream = Upstream::start();
    let config = format!("{SIM}{}", route("all", "/", &[http(&upstream)], ""));
    let gateway = Gateway::start(&config);
    let rows = [
        (gateway.bare(), 401, "Unauthenticated"),
        (gateway.client("carol"), 403, "NotPermitted"),
        (
            Client::new(gateway.api, "alice", "wrong"),
            401,
            "Unauthenticated",
        ),
    ];
    for (client, status, code) in rows {
        let reply = client.get("/x");
        assert_eq!((reply.status, &*reply.code()), (status, code), "{reply:?}");
    }
    let alice = gateway.client("alice");
    for path in [
        "/vms/1/backups/456",
        "/vms/1//backups/456",
        "/%76ms/1/backups/456",
        "/vms/1/x/%2e%2e/backups/456",
        "/x/../vms/1/backups/456",
        "/vms%2F1%2Fbackups%2F456",
        "/VMS/1/backups/456",
        "/statuses",
        "/versions",
        "/back%5fup",
    ] {
        for method in ["GET", "PUT", "DELETE", "PATCH"] {
            let reply = alice.send(method, path, None);
            let from_upstream = reply.body == b"ok" || !reply.header("via").is_empty();
            assert!(!from_upstream, "{method} {path}: {reply:?}");
        }
    }
    assert_eq!(
        upstream.seen().len(),
        0,
        "nothing arrived: {:?}",
        upstream.seen()
    );
    assert_eq!(
        alice.get("/vms/1/console").status,
        200,
        "what is not ours does"
    );
    assert_eq!(upstream.seen().len(), 1, "arrived");
}

#[apply(test)]
fn bodies_of_every_framing_come_through_in_both_directions() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "body = \"64MiB\"");
    let large = vec![b'x'; 4 * 1024 * 1024];
    let reply = gateway.bare().send("PUT", "/echo", Some(&large));
    assert_eq!(reply.body.len(), large.len(), "announced, both ways");
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let sent = format!("{chunked}3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nX-Trailer: dropped\r\n\r\n");
    let reply = raw(gateway.api, sent.as_bytes(), false);
    assert_eq!(reply.body, b"abcde", "chunks to the upstream");
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.field("x-trailer"), [""; 0], "trailers end here");
    for (path, expected) in [
        ("/chunked", "abcdefg"),
        ("/until-close", "abcdefg"),
        ("/large", ""),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let all = rest(&mut send(gateway.api, &request));
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        if path == "/large" {
            assert_eq!(body.len(), 8 * 1024 * 1024, "{head}");
            continue;
        }
        assert!(
            head.to_ascii_lowercase()
                .contains("transfer-encoding: chunked"),
            "{head}"
        );
        let text: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(text, expected, "{path}: {all}");
        assert!(
            body.ends_with("0\r\n\r\n"),
            "{path}: whole, and no trailer: {all}"
        );
    }
    let head = gateway.bare().send("HEAD", "/echo", None);
    assert_eq!((head.status, head.body.len()), (200, 0), "HEAD");
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
}

#[apply(test)]
fn clients_that_expect_100_continue_get_it_from_the_upstream() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut stream = send(gateway.api, &ask("/echo"));
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n", "invited");
    stream.write_all(b"body").unwrap();
    let reply = read_reply(&mut stream, false);
    assert_eq!(
        (reply.status, &*reply.body),
        (200, &b"body"[..]),
        "{reply:?}"
    );
    let reply = raw(gateway.api, ask("/refuse").as_bytes(), false);
    assert_eq!(reply.status, 417, "refused without the body: {reply:?}");
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
}

#[apply(test)]
fn a_client_that_closes_its_side_gets_an_answer_that_comes_at_once() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    for method in ["POST", "GET"] {
        let request =
            format!("{method} /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
        let mut stream = send(gateway.api, &request);
        stream.shutdown(Shutdown::Write).unwrap();
        let all = rest(&mut stream);
        assert!(all.starts_with("HTTP/1.1 200"), "{method}: {all:?}");
    }
}

#[apply(test)]
fn bodies_are_held_to_the_limits_of_the_route() {
    let upstream = Upstream::start();
    let gateway = open(
        &upstream,
        "body = \"100B\"\nbody_pause = \"1s\"\nbody_rate = \"1KiB\"",
    );
    let reply = gateway.bare().send("POST", "/echo", Some(&[b'x'; 101]));
    assert_eq!(
        (reply.status, &*reply.code()),
        (413, "BodyTooLarge"),
        "{reply:?}"
    );
    assert_eq!(upstream.seen().len(), 0, "not even begun");
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = format!("{head}65\r\n{}\r\n0\r\n\r\n", "z".repeat(101));
    let reply = raw(gateway.api, chunks.as_bytes(), false);
    assert_eq!(
        (reply.status, &*reply.code()),
        (413, "BodyTooLarge"),
        "{reply:?}"
    );
    // Nothing at all comes.
    let reply = raw(gateway.api, format!("{head}5\r\nab").as_bytes(), false);
    assert_eq!(
        (reply.status, &*reply.code()),
        (408, "BodyTooSlow"),
        "{reply:?}"
    );
    // A little comes all the time.
    let mut stream = send(gateway.api, head);
    let dripped = std::thread::Builder::new()
        .spawn({
            let mut stream = stream.try_clone().unwrap();
            move || {
                let begun = std::time::Instant::now();
                while stream.write_all(b"1\r\nx\r\n").is_ok() {
                    assert!(begun.elapsed() < PATIENCE, "cut off");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        })
        .unwrap();
    let reply = read_reply(&mut stream, false);
    assert_eq!(
        (reply.status, &*reply.code()),
        (408, "BodyTooSlow"),
        "{reply:?}"
    );
    drop(stream);
    dripped.join().unwrap();
    assert_eq!(
        upstream.seen().len(),
        0,
        "no half request was read as a whole one"
    );
}

#[apply(test)]
fn a_connection_that_went_stale_costs_reads_nothing_and_writes_are_not_repeated() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    let statuses = |method: &str| -> Vec<u16> {
        let ask = |path: &str| gateway.bare().send(method, path, None).status;
        (0..20).flat_map(|_| [ask("/stale"), ask("/x")]).collect()
    };
    assert_eq!(statuses("GET"), [200; 40], "every GET is answered");
    let before = upstream.seen().len();
    let puts = statuses("PUT");
    let arrived = upstream.seen().len() - before;
    assert!(
        arrived <= puts.len(),
        "no PUT arrived twice: {arrived} of {}",
        puts.len()
    );
    assert!(puts.iter().all(|put| [200, 502].contains(put)), "{puts:?}");
}

#[apply(test)]
fn routes_follow_a_reload_without_a_restart() {
    let (one, two) = (Upstream::start(), Upstream::start());
    let config = |upstream: &Upstream| {
        let keys = "authentication = \"none\"";
        format!("{SIM}{}", route("all", "/", &[http(upstream)], keys))
    };
    let gateway = Gateway::start(&config(&one));
    assert_eq!(gateway.bare().get("/x").status, 200, "first");
    assert!(gateway.reload(&config(&two)), "reloaded");
    assert_eq!(gateway.bare().get("/x").status, 200, "second");
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1), "each got one");
    let gauge = |upstream: &Upstream| {
        gateway.metric(&format!(
            "snapgate_passthrough_upstream_healthy{{passthrough=\"all\",upstream=\"{}\"}}",
            upstream.address
        ))
    };
    assert!(
        gauge(&one) < 0.5 && gauge(&two) > 0.5,
        "metrics of what is there"
    );
    assert!(gateway.reload(SIM), "without");
    assert_eq!(gateway.bare().get("/x").status, 404, "gone");
}

#[apply(test)]
fn a_client_that_pipelines_or_keeps_its_connection_is_served_in_order() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    let mut stream = TcpStream::connect(gateway.api).unwrap();
    for number in 0..50 {
        let body = format!("number {number}");
        let request = format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let reply: Reply = read_reply(&mut stream, false);
        assert_eq!(
            reply.body,
            body.as_bytes(),
            "answer {number} to request {number}"
        );
    }
    let connections: std::collections::BTreeSet<usize> = upstream
        .seen()
        .iter()
        .map(|request| request.connection)
        .collect();
    assert!(
        connections.len() < 10,
        "upstream connections are used again: {connections:?}"
    );
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
}

#[apply(test)]
fn the_example_is_what_it_says() {
    let upstream = Upstream::start();
    let text = std::fs::read_to_string("config/examples/passthrough.toml").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("manager.authorization"), "Bearer t\n").unwrap();
    let text = text
        .replace("http://127.0.0.1:8006", &http(&upstream))
        .replace("/var/lib/snapgate/", "")
        .replace("127.0.0.1:8080", "127.0.0.1:0")
        .replace("127.0.0.1:8970", "127.0.0.1:0");
    let gateway = Gateway::start_in(folder, &text);
    let alice = Client::bare(gateway.api).with("Authorization", &basic("alice", "example"));
    let reply = alice.get("/manager/echo");
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.target, "/echo", "stripped");
    assert_eq!(
        seen.field("authorization"),
        ["Bearer t"],
        "the gateway's own"
    );
    eventually("health is asked after", || {
        upstream.record.probes.load(Ordering::SeqCst) > 0
    });
}
