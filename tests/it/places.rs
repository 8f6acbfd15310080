//! Clients that leave give back their place among the concurrent requests, and the connection to what they waited for, within a
//! second.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
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
use crate::passthrough::route;

/// How long a place may stay taken.
const FREE_AFTER_MAX: Duration = Duration::from_secs(1);
/// A loaded machine may delay one try, hardly all.
const TRIES: usize = 4;
/// Answered at once, if the caller has a place.
const OTHER: &str = "/vms/1/backups/456";

/// A server that reads requests and never answers. Counts connections with a request that waits.
struct SilentServer {
    address: SocketAddr,
    waiting: Arc<AtomicUsize>,
}

impl SilentServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = Arc::new(AtomicUsize::new(0));
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || hold(stream, &shared));
            }
        });
        Self { address, waiting }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// A gateway before it: as the VM manager of VM `slow`, and behind `/console`. One concurrent request for each caller.
    fn settings(&self) -> String {
        let place = format!("http://{}", self.address);
        let console = route(
            "console",
            "/console",
            std::slice::from_ref(&place),
            "read_timeout = \"1m\"",
        );
        let rate = "[rate]\nprincipal_concurrent = 1\n";
        let slow = format!(
            "[[backend]]\nname = \"slow\"\nkind = \"cloudapi\"\nvms = [\"slow\"]\nhealth_interval = \"1h\"\n\
             [backend.cloudapi]\nurl = \"{place}\"\nserver_recovery = \"replay-safe\"\n"
        );
        format!("{SIM}{slow}{console}{rate}")
    }
}

/// Counts the connection, from a request that a test knows to the end.
fn hold(mut stream: TcpStream, waiting: &AtomicUsize) {
    let mut received = Vec::new();
    let mut part = [0; 4096];
    let mut is_counted = false;
    while let Ok(count @ 1..) = stream.read(&mut part) {
        received.extend_from_slice(&part[..count]);
        let is_known = |text: &[u8]| received.windows(text.len()).any(|window| window == text);
        // Not what the gateway asks by itself to learn whether the server is well.
        if !is_counted && (is_known(b"/console") || is_known(b"/vms/slow/backups/")) {
            is_counted = true;
            waiting.fetch_add(1, Ordering::SeqCst);
        }
    }
    if is_counted {
        waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Fin,
    Reset,
    /// HTTP/2 only: the stream ends and the connection goes on.
    Stream,
    /// HTTP/2 only.
    Connection,
}

/// Requests that are never answered: method, path, and a body.
const REQUESTS: [(&str, &str, Option<&[u8]>); 4] = [
    ("GET", "/vms/slow/backups/456", None),
    ("GET", "/console", None),
    ("HEAD", "/console", None),
    ("POST", "/console", Some(b"abc")),
];

/// Waits until the place is free, and returns how long that took.
fn time_until_free(server: &SilentServer, mut status: impl FnMut() -> u16) -> Duration {
    let since = Instant::now();
    eventually("the place and the connection are free", || {
        server.waiting() == 0 && status() == 200
    });
    since.elapsed()
}

/// Tries several times; the quickest must be quick.
fn assert_quick(name: &str, mut attempt: impl FnMut() -> Duration) {
    let mut all = Vec::new();
    for _ in 0..TRIES {
        all.push(attempt());
        if all.last().is_some_and(|took| *took < FREE_AFTER_MAX) {
            return;
        }
    }
    panic!("{name}: never within {FREE_AFTER_MAX:?}: {all:?}");
}

#[apply(test)]
fn clients_of_http_1_that_leave_free_the_only_place_and_the_connection_behind() {
    let server = SilentServer::start();
    let gateway = Gateway::start(&server.settings());
    let alice = gateway.client("alice");
    for (method, path, body) in REQUESTS {
        for leave in [Leave::Fin, Leave::Reset] {
            let name = format!("{method} {path}, {leave:?}");
            assert_quick(&name, || {
                let mut stream = TcpStream::connect(gateway.api).unwrap();
                let length = body.map(|body| format!("Content-Length: {}\r\n", body.len()));
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\
                     X-Cloud-Client-Specification-Version: 0.1\r\n{}\r\n",
                    basic("alice", "secret"),
                    length.unwrap_or_default()
                );
                let sent = [head.as_bytes(), body.unwrap_or_default()].concat();
                stream.write_all(&sent).unwrap();
                eventually("the server is asked", || server.waiting() == 1);
                assert_eq!(
                    alice.get(OTHER).status,
                    429,
                    "{name}: the only place is taken"
                );
                let kept = match leave {
                    Leave::Reset => {
                        reset(stream);
                        None
                    }
                    Leave::Fin | Leave::Stream | Leave::Connection => {
                        stream.shutdown(Shutdown::Write).unwrap();
                        Some(stream)
                    }
                };
                let took = time_until_free(&server, || alice.get(OTHER).status);
                drop(kept);
                took
            });
        }
    }
}

#[apply(test)]
fn clients_of_http_2_that_leave_free_the_only_place_and_the_connection_behind() {
    let server = SilentServer::start();
    let secure = Secure::start(&server.settings());
    let other = secure.connect();
    let ask = |client: &Connection| client.send(request("GET", OTHER), None).status;
    for (method, path, body) in REQUESTS {
        for leave in [Leave::Stream, Leave::Connection] {
            let name = format!("{method} {path}, {leave:?}");
            assert_quick(&name, || {
                let client = secure.connect();
                let stream = client.begin(request(method, path), body);
                eventually("the server is asked", || server.waiting() == 1);
                assert_eq!(ask(&other), 429, "{name}: the only place is taken");
                let kept = match leave {
                    Leave::Connection => {
                        drop(client);
                        None
                    }
                    Leave::Fin | Leave::Reset | Leave::Stream => {
                        drop(stream);
                        Some(client)
                    }
                };
                let took = time_until_free(&server, || ask(&other));
                if let Some(client) = kept {
                    assert_eq!(ask(&client), 200, "{name}: other streams go on");
                }
                took
            });
        }
    }
}

#[apply(test)]
fn waits_and_event_streams_that_are_left_free_the_only_place_of_their_caller() {
    let server = SilentServer::start();
    let settings = server.settings();
    let settings = settings.replace("duration = \"50ms\"", "duration = \"5m\"");
    let settings = settings.replace("principal_concurrent = 1", "principal_waiters = 1");
    let gateway = Gateway::start(&settings);
    let uri = gateway.client("alice").delete(OTHER).status_uri();
    for field in ["Prefer: wait=50", "Accept: text/event-stream"] {
        for leave in [Leave::Fin, Leave::Reset] {
            let name = format!("{field}, {leave:?}");
            assert_quick(&name, || {
                let mut stream = TcpStream::connect(gateway.api).unwrap();
                let head = format!(
                    "GET {uri} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n{field}\r\n\r\n",
                    basic("alice", "secret")
                );
                stream.write_all(head.as_bytes()).unwrap();
                eventually("it waits", || gateway.metric("snapgate_waiters") > 0.5);
                // A second one finds no place, and does not wait.
                let waiting = gateway.client("alice").with("Prefer", "wait=50");
                let since = Instant::now();
                assert_eq!(waiting.get(&uri).status, 200, "{name}: answered at once");
                assert!(
                    since.elapsed() < Duration::from_secs(30),
                    "{name}: it did not wait"
                );
                let kept = match leave {
                    Leave::Reset => {
                        reset(stream);
                        None
                    }
                    Leave::Fin | Leave::Stream | Leave::Connection => {
                        stream.shutdown(Shutdown::Write).unwrap();
                        Some(stream)
                    }
                };
                let since = Instant::now();
                eventually("its place is free", || {
                    gateway.metric("snapgate_waiters") < 0.5
                });
                drop(kept);
                since.elapsed()
            });
        }
    }
}
