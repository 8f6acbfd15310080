//! What a client of HTTP/2 sends and how it leaves: closed streams free their places, and fields are handled as over HTTP/1.1.

use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use crate::client::basic;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::http2::Connection;
use crate::http2::Secure;
use crate::http2::request;
use crate::passthrough::away::reset;
use crate::passthrough::http;
use crate::passthrough::route;
use crate::passthrough::upstream::Upstream;

const BACKUP: &str = "/vms/1/backups/456";
/// The gateway notices within a second; the rest is for a loaded machine.
const FREE_AFTER_MAX: Duration = Duration::from_secs(3);
const CLIENTS: usize = 5;
/// Metrics are floating-point numbers: more than this is all of them.
const NEARLY_ALL: f64 = 4.5;

/// A gateway whose operations outlast every test.
fn slow() -> String {
    SIM.replace("duration = \"50ms\"", "duration = \"5m\"")
}

fn open_route(upstream: &Upstream) -> String {
    let keys = "authentication = \"none\"\nread_timeout = \"1m\"";
    format!("{SIM}{}", route("all", "/", &[http(upstream)], keys))
}

/// Waits until the number of waiting requests is small again, and measures how long that takes.
fn assert_waiters_end(gateway: &Gateway, name: &str) {
    let since = Instant::now();
    eventually("their places are free", || {
        gateway.metric("snapgate_waiters") < 1.0
    });
    let took = since.elapsed();
    assert!(took < FREE_AFTER_MAX, "{name}: {took:?}");
}

fn assert_all_wait(gateway: &Gateway) {
    eventually("all wait", || {
        gateway.metric("snapgate_waiters") > NEARLY_ALL
    });
}

fn send_h1(address: SocketAddr, uri: &str, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "GET {uri} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n{fields}\r\n",
        basic("alice", "secret")
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[apply(test)]
fn waits_and_event_streams_of_http_1_end_with_their_connection() {
    let gateway = Gateway::start(&slow());
    let uri = gateway.client("alice").delete(BACKUP).status_uri();
    for fields in ["Prefer: wait=50\r\n", "Accept: text/event-stream\r\n"] {
        for is_reset in [false, true] {
            let streams: Vec<TcpStream> = (0..CLIENTS)
                .map(|_| send_h1(gateway.api, &uri, fields))
                .collect();
            assert_all_wait(&gateway);
            let mut half_closed = Vec::new();
            for stream in streams {
                if is_reset {
                    reset(stream);
                } else {
                    stream.shutdown(Shutdown::Write).unwrap();
                    half_closed.push(stream);
                }
            }
            assert_waiters_end(&gateway, &format!("{fields:?}, reset {is_reset}"));
        }
    }
}

#[apply(test)]
fn waits_and_event_streams_of_http_2_end_with_their_stream_or_connection() {
    let secure = Secure::start(&slow());
    let uri = secure.connect().status_uri(request("DELETE", BACKUP), None);
    for (name, value) in [("prefer", "wait=50"), ("accept", "text/event-stream")] {
        for closes_connection in [false, true] {
            let client = secure.connect();
            let streams: Vec<_> = (0..CLIENTS)
                .map(|_| client.begin(request("GET", &uri).header(name, value), None))
                .collect();
            assert_all_wait(&secure.gateway);
            if closes_connection {
                drop(client);
                assert_waiters_end(&secure.gateway, &format!("{name}, closed connection"));
            } else {
                drop(streams);
                assert_waiters_end(&secure.gateway, &format!("{name}, closed streams"));
                let alive = client.send(request("GET", BACKUP), None);
                assert_eq!(alive.status, 200, "{name}: other streams go on: {alive:?}");
            }
        }
    }
}

#[apply(test)]
fn forwarded_requests_of_http_2_end_with_their_stream_or_connection() {
    let upstream = Upstream::start();
    let secure = Secure::start(&open_route(&upstream));
    let ended = || {
        let series = "snapgate_passthrough_requests_total{code=\"499\"";
        secure.gateway.metric(series)
    };
    for (method, body) in [("GET", None), ("POST", Some(&b"abc"[..]))] {
        for closes_connection in [false, true] {
            let client = secure.connect();
            let (seen, before) = (upstream.seen().len(), ended());
            let streams: Vec<_> = (0..CLIENTS)
                .map(|_| client.begin(request(method, "/parts"), body))
                .collect();
            eventually("all are asked", || upstream.seen().len() >= seen + CLIENTS);
            if closes_connection {
                drop(client);
            } else {
                drop(streams);
            }
            let since = Instant::now();
            eventually("all have ended", || ended() > before + NEARLY_ALL);
            let took = since.elapsed();
            assert!(
                took < FREE_AFTER_MAX,
                "{method}, closed connection {closes_connection}: {took:?}"
            );
        }
    }
}

/// What the upstream reads of a request over HTTP/2.
fn forwarded(
    client: &Connection,
    upstream: &Upstream,
    head: http::request::Builder,
) -> Vec<crate::passthrough::upstream::Seen> {
    let before = upstream.seen().len();
    let answer = client.send(head, None);
    assert_eq!(answer.status, 200, "{answer:?}");
    upstream.seen().split_off(before)
}

#[apply(test)]
fn an_expectation_is_answered_at_once_on_both_kinds_of_routes() {
    let upstream = Upstream::start();
    let secure = Secure::start(&open_route(&upstream));
    let client = secure.connect();
    for path in [BACKUP, "/echo"] {
        let head = request("PUT", path)
            .header("expect", "100-Continue")
            .header("content-type", "application/json");
        let answer = client.send(head, Some(b"{}"));
        assert_eq!(answer.status, 417, "{path}: {answer:?}");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.contains("ExpectationFailed"), "{path}: {text}");
    }
    assert_eq!(upstream.seen().len(), 0, "nothing was forwarded");
    let alive = client.send(request("GET", BACKUP), None);
    assert_eq!(alive.status, 200, "other streams go on: {alive:?}");
}

#[apply(test)]
fn padded_field_values_are_trimmed_on_both_kinds_of_routes() {
    let upstream = Upstream::start();
    let secure = Secure::start(&open_route(&upstream));
    let client = secure.connect();
    let padded = |text: &str| http::HeaderValue::from_bytes(text.as_bytes()).unwrap();
    let head = request("GET", "/echo").header("x-padded", padded(" \ta b\t "));
    let seen = forwarded(&client, &upstream, head);
    assert_eq!(seen[0].field("x-padded"), ["a b"], "forwarded: {seen:?}");
    let head = request("GET", BACKUP).header("accept", padded("  application/json\t"));
    let answer = client.send(head, None);
    assert_eq!(answer.status, 200, "answered: {answer:?}");
}

#[apply(test)]
fn queries_as_browsers_send_them_are_forwarded_percent_encoded() {
    let upstream = Upstream::start();
    let secure = Secure::start(&open_route(&upstream));
    let client = secure.connect();
    let query = "a={b|c}^`d&e[]=%7Bf";
    let seen = forwarded(
        &client,
        &upstream,
        request("GET", &format!("/echo?{query}")),
    );
    let encoded = "/echo?a=%7Bb%7Cc%7D%5E%60d&e[]=%7Bf";
    assert_eq!(seen[0].target, encoded, "over HTTP/2: {seen:?}");
    let answer = client.send(request("GET", &format!("{BACKUP}?{query}")), None);
    assert_eq!(answer.status, 400, "not on routes of the API: {answer:?}");

    let plain = Gateway::start(&open_route(&upstream));
    let before = upstream.seen().len();
    let answer = plain.bare().get(&format!("/echo?{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(upstream.seen()[before].target, encoded, "over HTTP/1.1");
}
