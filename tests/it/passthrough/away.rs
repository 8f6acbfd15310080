//! Clients that go away before they are answered, and clients that do not wait for an answer before they ask again.

use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::harness::eventually;
use crate::passthrough::open;
use crate::passthrough::rest;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

/// Far below the read timeout of the route, with room for a loaded machine.
const FREE_AFTER_MAX: Duration = Duration::from_secs(2);

/// Closes the connection with a reset instead of an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    stream.set_zero_linger().unwrap();
}

#[apply(test)]
fn clients_that_went_away_free_their_place_within_two_seconds() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "read_timeout = \"1m\"");
    let requests = [
        "GET /parts HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /parts HTTP/1.1\r\nHost: x\r\n\r\nGET /parts HTTP/1.1\r\nHost: x\r\n\r\n",
        "HEAD /parts HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /parts HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        "POST /parts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for (request, is_reset) in requests
        .iter()
        .flat_map(|text| [(text, false), (text, true)])
    {
        let before = upstream.seen().len();
        let streams: Vec<TcpStream> = (0..10).map(|_| send(gateway.api, request)).collect();
        eventually("all are asked", || upstream.seen().len() >= before + 10);
        assert!(gateway.metric("snapgate_connections") >= 10.0, "open");
        let mut half_closed = Vec::new();
        for stream in streams {
            if is_reset {
                reset(stream);
            } else {
                stream.shutdown(Shutdown::Write).unwrap();
                half_closed.push(stream);
            }
        }
        let since = Instant::now();
        eventually("their places are free", || {
            gateway.metric("snapgate_connections") < 1.0
        });
        let took = since.elapsed();
        assert!(
            took < FREE_AFTER_MAX,
            "{request:?}, reset {is_reset}: {took:?}"
        );
    }
    upstream.record.parts.store(3, Ordering::SeqCst);
}

#[apply(test)]
fn two_requests_in_one_packet_are_both_answered_or_the_first_answer_says_close() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    let get = "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
    let chunks =
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for first in [get, length, chunks] {
        for second in [get, length, chunks] {
            let last = second.replace("Host: x\r\n", "Host: x\r\nConnection: close\r\n");
            let all = rest(&mut send(gateway.api, &format!("{first}{last}")));
            let (head, _) = all.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 "), "{first:?}: {all:?}");
            let says_close = head.to_ascii_lowercase().contains("\r\nconnection: close");
            let answers = all.matches("HTTP/1.1 200 ").count();
            let expected = if says_close { 1 } else { 2 };
            assert_eq!(answers, expected, "{first:?}, then {second:?}: {all:?}");
        }
    }
}
