//! Connections to upstreams that wait for their next request.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::route;
use super::send;
use crate::client::read_reply;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SIM;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn gateway(keys: &str) -> (TcpListener, Gateway) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let keys = format!("authentication = \"none\"\n{keys}");
    let route = route("all", "/", &[upstream], &keys);
    (listener, Gateway::start(&format!("{SIM}{route}")))
}

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads the head of a request. `false` when the connection ends before it.
fn head(stream: &mut TcpStream) -> bool {
    let mut found = Vec::new();
    let mut byte = [0];
    while !found.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1..) => found.push(byte[0]),
            Ok(0) | Err(_) => return false,
        }
    }
    true
}

fn ask(gateway: &Gateway) -> TcpStream {
    send(gateway.api, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[apply(test)]
fn when_those_that_wait_are_closed_at_the_wrong_moment_a_read_needs_one_new_one() {
    let (listener, gateway) = gateway("eject_failures = 1000");
    // Two at once, so that two connections wait.
    let mut clients = [ask(&gateway), ask(&gateway)];
    let mut waiting = [accept(&listener), accept(&listener)];
    for stream in &mut waiting {
        assert!(head(stream), "asked");
        stream.write_all(ANSWER).unwrap();
    }
    for stream in &mut clients {
        assert_eq!(read_reply(stream, false).status, 200, "the first two");
    }
    let closed = Arc::new(AtomicUsize::new(0));
    for mut stream in waiting {
        let closed = Arc::clone(&closed);
        std::thread::spawn(move || {
            if head(&mut stream) {
                closed.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || head(&mut stream).then(|| stream.write_all(LAST_ANSWER)));
        }
    });
    // A connection may be on its way to the others for a moment after its answer.
    for number in 0..1000 {
        let reply = read_reply(&mut ask(&gateway), false);
        assert_eq!(reply.status, 200, "{number}: {reply:?}");
        if closed.load(Ordering::SeqCst) > 0 {
            break;
        }
    }
    assert_eq!(closed.load(Ordering::SeqCst), 1, "one of two was tried");
}

#[apply(test)]
fn connections_that_wait_too_long_are_closed() {
    let (listener, gateway) = gateway("idle_timeout = \"1s\"");
    let mut client = ask(&gateway);
    let mut upstream = accept(&listener);
    assert!(head(&mut upstream), "asked");
    upstream.write_all(ANSWER).unwrap();
    assert_eq!(read_reply(&mut client, false).status, 200, "answered");
    let end = upstream.read(&mut [0]);
    assert!(matches!(end, Ok(0)), "closed by the gateway: {end:?}");
}
