//! Requests that arrive in pieces reach the upstream whole, whichever way they take.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::client::read_reply;
use crate::harness::PATIENCE;
use crate::passthrough::open;
use crate::passthrough::upstream::Upstream;

/// Longer than the gateway waits for a small body before it leaves the request to Pingora.
const BETWEEN_PIECES: Duration = Duration::from_millis(15);

#[apply(test)]
fn requests_in_pieces_reach_the_upstream_whole() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    let large = "0123456789".repeat(7_000);
    let of_length = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    // method, fields and body as sent, body as received
    let rows = [
        ("GET", "\r\n".to_owned(), ""),
        ("DELETE", "\r\n".to_owned(), ""),
        ("GET", "TE: trailers\r\n\r\n".to_owned(), ""),
        ("DELETE", "TE: trailers\r\n\r\n".to_owned(), ""),
        ("POST", of_length("abcdef"), "abcdef"),
        (
            "PUT",
            format!("TE: trailers\r\n{}", of_length("abcdef")),
            "abcdef",
        ),
        ("PUT", of_length(&large), &large),
        (
            "POST",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3;a=b\r\ndef\r\n0\r\n\r\n".to_owned(),
            "abcdef",
        ),
    ];
    for (method, sent, received) in rows {
        let request = format!("{method} /echo HTTP/1.1\r\nHost: x\r\nX-Mine: yes\r\n{sent}");
        let head = request.find("\r\n\r\n").unwrap() + 4;
        let places = [1, 20, head - 2, head, head + 1, head + 5, request.len() - 1];
        for place in places.into_iter().filter(|place| *place < request.len()) {
            let name = format!("{method} {:?} at {place}", sent.get(..40).unwrap_or(&sent));
            let mut client = TcpStream::connect(gateway.api).unwrap();
            client.set_nodelay(true).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let (first, rest) = request.split_at(place);
            client.write_all(first.as_bytes()).unwrap();
            std::thread::sleep(BETWEEN_PIECES);
            client.write_all(rest.as_bytes()).unwrap();
            let reply = read_reply(&mut client, false);
            assert_eq!(reply.status, 200, "{name}: {reply:?}");
            assert_eq!(reply.body, received.as_bytes(), "{name}");
            let seen = upstream.seen().pop().unwrap();
            assert_eq!((&*seen.method, &*seen.target), (method, "/echo"), "{name}");
            assert_eq!(seen.field("x-mine"), ["yes"], "{name}");
            assert_eq!(seen.body, received.as_bytes(), "{name}: body");
            // The connection is at the beginning of the next request.
            client
                .write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnext")
                .unwrap();
            assert_eq!(read_reply(&mut client, false).body, b"next", "{name}");
        }
    }
    assert_eq!(upstream.garbage(), [""; 0]);
}
