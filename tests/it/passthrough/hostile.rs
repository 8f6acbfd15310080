//! Hostile requests and hostile answers: whatever is passed on is exactly one well-formed request, the one that was
//! logged, and every answer goes to who asked.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::program;
use crate::passthrough::http;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Seen;
use crate::passthrough::upstream::Upstream;

/// What is sent after some rows: if any part of it is ever read as a request, two sides disagreed.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\nX: smuggled\r\n\r\n";

/// A gateway as a process of its own, with its access log in a file.
struct Logged {
    child: Child,
    api: SocketAddr,
    folder: tempfile::TempDir,
}

impl Logged {
    fn start(upstream: &Upstream) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = "authentication = \"none\"\nbody_pause = \"1s\"\nread_timeout = \"5s\"";
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n[limits]\nheader_timeout = \"1s\"\n{SIM}{}",
            route("all", "/", &[http(upstream)], keys)
        );
        let path = folder.path().join("c.toml");
        fs::write(&path, config.replace("SECRET_HASH", SECRET_HASH)).unwrap();
        let out = folder.path().join("out");
        let child = program()
            .args(["serve", "--config", path.to_str().unwrap()])
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut api = None;
        eventually("it listens", || {
            let text = fs::read_to_string(&out).unwrap();
            let mut lines = text.lines();
            api = lines.find_map(|line| line.strip_prefix("listening on http://")?.parse().ok());
            api.is_some()
        });
        Self {
            child,
            api: api.unwrap(),
            folder,
        }
    }

    /// The access log: for every request id the method and the target.
    fn log(&self) -> BTreeMap<String, (String, String)> {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let mut found = BTreeMap::new();
        for line in lines.filter(|record: &Value| record["target"] == "snapgate::access") {
            let (id, method) = (text(&line, "request_id"), text(&line, "method"));
            let before = found.insert(id, (method, text(&line, "path")));
            assert!(before.is_none(), "logged once: {line}");
        }
        found
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Name, bytes, and what may arrive: method, target, body. `+` at the end of the bytes stands for [`SMUGGLED`].
const ROWS: &[(&str, &str, Option<(&str, &str, &str)>)] = &[
    (
        "plain",
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        Some(("GET", "/a", "")),
    ),
    (
        "pipelined",
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "length of nothing",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
    (
        "body of a GET",
        "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("GET", "/a", "abc")),
    ),
    (
        "no length",
        "POST /a HTTP/1.1\r\nHost: x\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
    (
        "chunks",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "chunk extension",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0;x\r\n\r\n+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "trailers",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 9\r\nHost: evil\r\n\r\n+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "length and chunks",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
    (
        "chunks and length",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
    (
        "two equal lengths",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc+",
        None,
    ),
    (
        "two lengths",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 50\r\n\r\nabc+",
        None,
    ),
    (
        "list of lengths",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc+",
        None,
    ),
    (
        "signed length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc+",
        None,
    ),
    (
        "negative length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc+",
        None,
    ),
    (
        "hexadecimal length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\nabc+",
        None,
    ),
    (
        "empty length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n+",
        None,
    ),
    (
        "endless length",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\nabc+",
        None,
    ),
    (
        "unknown coding",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "identity",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc+",
        None,
    ),
    (
        "empty coding first",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: , chunked\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "another scheme",
        "GET ftp://x/a HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "codings of the answer",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: TE, Keep-Alive\r\nTE: trailers, gzip\r\nKeep-Alive: max=0\r\nTrailer: Host\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "chunked is not the last",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "chunked twice",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
    (
        "coding with a tab",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "coding with a space before the colon",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "coding with an underscore",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "length with an underscore",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent_Length: 90\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "coding in HTTP/1.0",
        "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n+",
        None,
    ),
    (
        "bad chunk size",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n+",
        None,
    ),
    (
        "endless chunk size",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff3\r\nabc\r\n0\r\n\r\n+",
        None,
    ),
    (
        "chunk longer than it says",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n+",
        None,
    ),
    (
        "chunk with bare line feeds",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n+",
        None,
    ),
    (
        "chunk extension that ends at a line feed",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n39\r\n0\r\n\r\n+",
        None,
    ),
    (
        "chunk size of nothing",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n\r\n\r\n+",
        None,
    ),
    (
        "trailer without a colon",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nabc\r\n\r\n+",
        None,
    ),
    ("fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    (
        "half a body",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        None,
    ),
    (
        "half a chunk",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\na\r\nabc",
        None,
    ),
    ("no host", "GET /a HTTP/1.1\r\n\r\n+", None),
    (
        "two hosts",
        "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n+",
        None,
    ),
    ("empty host", "GET /a HTTP/1.1\r\nHost:\r\n\r\n+", None),
    (
        "path in the host",
        "GET /a HTTP/1.1\r\nHost: x/../y\r\n\r\n+",
        None,
    ),
    (
        "user in the host",
        "GET /a HTTP/1.1\r\nHost: u@x\r\n\r\n+",
        None,
    ),
    (
        "absolute target",
        "GET http://x/a?b HTTP/1.1\r\nHost: x\r\n\r\n+",
        Some(("GET", "/a?b", "")),
    ),
    (
        "absolute target of another host",
        "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "folded field",
        "GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n+",
        None,
    ),
    (
        "field that begins with a space",
        "GET /a HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "bare carriage return",
        "GET /a HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 9\r\n\r\n+",
        None,
    ),
    (
        "zero byte",
        "GET /a HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n+",
        None,
    ),
    (
        "no colon",
        "GET /a HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n+",
        None,
    ),
    (
        "no name",
        "GET /a HTTP/1.1\r\nHost: x\r\n: abc\r\n\r\n+",
        None,
    ),
    (
        "name that is no token",
        "GET /a HTTP/1.1\r\nHost: x\r\nA(b: c\r\n\r\n+",
        None,
    ),
    (
        "bare line feeds",
        "GET /a HTTP/1.1\nHost: x\n\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "connection names host",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Host\r\n\r\n+",
        None,
    ),
    (
        "connection names length",
        "POST /a HTTP/1.1\r\nHost: x\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "connection names forwarded",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: X-Forwarded-For\r\n\r\n+",
        None,
    ),
    (
        "connection names our id",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: X-Request-Id, Via\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    ("dots", "GET /a/../b HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    (
        "encoded dots",
        "GET /a/%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    ("two slashes", "GET //a HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    ("backslash", "GET /a\\b HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    (
        "encoded line end",
        "GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "space in the target",
        "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "bytes that are no ASCII in the target",
        "GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    ("no slash", "GET a HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    ("asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    (
        "options of all",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "connect",
        "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n+",
        None,
    ),
    ("trace", "TRACE /a HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    (
        "invented method",
        "FO-O! /a HTTP/1.1\r\nHost: x\r\n\r\n+",
        None,
    ),
    ("small method", "get /a HTTP/1.1\r\nHost: x\r\n\r\n+", None),
    ("HTTP/0.9", "GET /a\r\n\r\n+", None),
    ("HTTP/1.2", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n+", None),
    (
        "HTTP/2 in a line",
        "GET /a HTTP/2.0\r\nHost: x\r\n\r\n+",
        None,
    ),
    (
        "HTTP/1.0",
        "GET /a HTTP/1.0\r\nHost: x\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "HTTP/1.0 with a body",
        "POST /a HTTP/1.0\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("POST", "/a", "abc")),
    ),
    (
        "upgrade to h2c",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "upgrade to a websocket",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n+",
        Some(("GET", "/a", "")),
    ),
    (
        "upgrade with a length",
        "GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc+",
        Some(("GET", "/a", "abc")),
    ),
    (
        "preface of HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n+",
        None,
    ),
    (
        "method override",
        "POST /a HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: DELETE\r\nX-Original-URL: /vms/1/backups/456\r\nContent-Length: 0\r\n\r\n+",
        Some(("POST", "/a", "")),
    ),
];

/// Rows that may be refused as well: how much of this is tolerated from clients is decided elsewhere.
const MAY_BE_REFUSED: &[&str] = &[
    "length and chunks",
    "chunks and length",
    "chunked twice",
    "space in the target",
    "connection names length",
    "coding with an underscore",
    "length with an underscore",
    "bare line feeds",
];

fn summary_of(seen: &Seen) -> (&str, &str, String) {
    let body = seen.body.iter().map(|byte| char::from(*byte)).collect();
    (&seen.method, &seen.target, body)
}

/// Sends a request of our own: if anything is left over from others on a connection to the upstream, its answer shows it.
fn marker(api: SocketAddr, name: &str, number: usize) {
    let body = format!("marker {number}");
    let reply = Client::bare(api).send("POST", "/echo", Some(body.as_bytes()));
    let back = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!(
        (reply.status, back),
        (200, body),
        "the answer after {name:?}"
    );
}

#[apply(test)]
fn both_sides_see_the_same_requests() {
    let upstream = Upstream::start();
    let gateway = Logged::start(&upstream);
    let (mut wrong, mut passed) = (Vec::new(), 0);
    for (number, (name, text, may_arrive)) in ROWS.iter().enumerate() {
        let before = upstream.seen().len();
        let bytes = text.replace('+', SMUGGLED);
        let bytes = if *name == "signed length" {
            text.replacen('+', "\u{1}", 1)
                .replace('+', SMUGGLED)
                .replace('\u{1}', "+")
        } else {
            bytes
        };
        let mut stream = send(gateway.api, &bytes);
        // The end of our request: the other side does not wait for more.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        let answer = String::from_utf8_lossy(&answer).into_owned();
        marker(gateway.api, name, number);
        let all = upstream.seen();
        let arrived = &all[before..all.len() - 1];
        let arrived: Vec<_> = arrived.iter().map(summary_of).collect();
        let wanted: Vec<_> = may_arrive
            .iter()
            .map(|row| (row.0, row.1, row.2.to_owned()))
            .collect();
        let refused = arrived.is_empty() && MAY_BE_REFUSED.contains(name);
        let good = arrived == wanted || refused;
        let served = answer.starts_with("HTTP/1.1 2") && *name != "options of all";
        if !good || served == arrived.is_empty() {
            wrong.push(format!("{name}: {arrived:?}, answered by {answer:?}"));
        }
        passed += arrived.len();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed > 15, "some did arrive");
    // What is no whole request was never read as one, whatever the upstream made of it.
    for garbage in upstream.garbage() {
        assert!(
            garbage.contains("body") || garbage.contains("chunk"),
            "{garbage}"
        );
        assert!(!garbage.contains("smuggled"), "{garbage}");
    }
    let seen = upstream.seen();
    let is_logged = || {
        let log = gateway.log();
        seen.iter()
            .all(|request| log.contains_key(request.field("x-request-id")[0]))
    };
    eventually("everything is logged", is_logged);
    let log = gateway.log();
    for request in &seen {
        let (method, target) = &log[request.field("x-request-id")[0]];
        let target = target.strip_prefix("http://x").unwrap_or(target);
        assert_eq!(
            (method, target),
            (&request.method, &*request.target),
            "as it was logged: {request:?}"
        );
        assert_eq!(request.field("x-original-url"), [""; 0], "{request:?}");
    }
    assert!(
        seen.iter()
            .all(|request| request.target != "/smuggled" && request.field("x").is_empty()),
        "nothing was smuggled"
    );
    let connections: std::collections::BTreeSet<usize> =
        seen.iter().map(|request| request.connection).collect();
    assert!(
        connections.len() * 2 < seen.len(),
        "over connections that were used again: {connections:?}"
    );
}

#[apply(test)]
fn every_answer_goes_to_who_asked() {
    let upstream = Upstream::start();
    let gateway = Logged::start(&upstream);
    let rows = [
        ("GET", "/extra", 200, "mine"),
        ("HEAD", "/head-body", 200, ""),
        ("GET", "/no-content", 204, ""),
        ("GET", "/both", 200, "mine"),
        ("GET", "/hints", 200, "mine"),
        ("GET", "/short", 200, "abc"),
        ("GET", "/two-lengths", 502, "BadGateway"),
        ("GET", "/garbage", 502, "BadGateway"),
    ];
    for round in 0..5 {
        for (number, (method, path, status, body)) in rows.iter().enumerate() {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let all = crate::passthrough::rest(&mut send(gateway.api, &request));
            let answer = all.rsplit("HTTP/1.1 ").next().unwrap();
            assert!(answer.starts_with(&status.to_string()), "{path}: {all:?}");
            assert!(answer.contains(body), "{path}: {all:?}");
            assert!(!all.contains("poison"), "{path}: {all:?}");
            marker(gateway.api, path, round * 100 + number);
        }
    }
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
}
