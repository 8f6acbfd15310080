//! WebSockets, as consoles use them: the conversation after the upgrade is bytes, whatever they mean.

use std::io::Read;
use std::io::Write;

use crate::client::basic;
use crate::client::read_reply;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::passthrough::http;
use crate::passthrough::rest;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// How many upgrades are made one after the other: without the remedy one in twenty to forty breaks.
const UPGRADES: usize = 300;

#[apply(test)]
fn upgrades_are_reliable_with_an_upstream_that_answers_at_once() {
    let upstream = Upstream::start();
    let config = route("console", "/", &[http(&upstream)], "upgrade = true");
    let gateway = Gateway::start(&format!("{SIM}{config}"));
    let alice = basic("alice", "secret");
    let mut broken = Vec::new();
    for number in 0..UPGRADES {
        let request =
            format!("GET /ws HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\n{UPGRADE}\r\n");
        let mut stream = send(gateway.api, &request);
        let mut received = Vec::new();
        let mut piece = [0; 1024];
        while !received.ends_with(b"hello") {
            match stream.read(&mut piece) {
                Ok(count) if count > 0 => received.extend_from_slice(&piece[..count]),
                Ok(_) | Err(_) => break,
            }
        }
        let head = String::from_utf8_lossy(&received).into_owned();
        if !head.starts_with("HTTP/1.1 101") || !head.ends_with("hello") {
            broken.push((number, head));
            continue;
        }
        if stream.write_all(b"olleh").is_err() {
            broken.push((number, "write".to_owned()));
            continue;
        }
        let back = rest(&mut stream);
        if back != "hello" {
            broken.push((number, back));
        }
    }
    assert!(
        broken.is_empty(),
        "{} of {UPGRADES}: {broken:?}",
        broken.len()
    );
    let seen = upstream.seen();
    assert_eq!(seen.len(), UPGRADES, "each arrived once");
    assert!(
        seen.iter()
            .all(|request| request.field("authorization").is_empty()),
        "without the caller's credentials"
    );
    let counted = gateway.metric("snapgate_passthrough_requests_total{code=\"101\"");
    assert!(
        (counted - 300.0).abs() < 0.1,
        "counted as what they are: {counted}"
    );
}

#[apply(test)]
fn upgrades_need_credentials_first_and_a_route_that_allows_them() {
    let upstream = Upstream::start();
    let places = [http(&upstream)];
    let config = format!(
        "{SIM}{}{}",
        route(
            "console",
            "/console",
            &places,
            "upgrade = true\nstrip_prefix = true"
        ),
        route("plain", "/", &places, "")
    );
    let gateway = Gateway::start(&config);
    let ask = |path: &str, fields: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}{UPGRADE}\r\n");
        send(gateway.api, &request)
    };
    let refused = read_reply(&mut ask("/console/ws", ""), false);
    assert_eq!(refused.status, 401, "no credentials: {refused:?}");
    assert_eq!(upstream.seen().len(), 0, "not even asked");
    let alice = format!("Authorization: {}\r\n", basic("alice", "secret"));
    let plain = read_reply(&mut ask("/ws", &alice), false);
    assert_eq!(
        (plain.status, &*plain.body),
        (200, &b"ok"[..]),
        "an answer like any other"
    );
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        seen.field("upgrade"),
        [""; 0],
        "the upstream was not asked to upgrade"
    );
    // Bytes that a client sends too early belong to no protocol.
    let early = format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\n{alice}{UPGRADE}\r\nGET /early HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    drop(rest(&mut send(gateway.api, &early)));
    let targets: Vec<String> = upstream
        .seen()
        .into_iter()
        .map(|request| request.target)
        .collect();
    assert_eq!(targets, ["/ws", "/ws"], "nothing smuggled");
    assert_eq!(upstream.garbage(), [""; 0], "well-formed");
}
