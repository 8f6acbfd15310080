//! Several upstreams: turns, load, failover and health.

use std::net::TcpListener;
use std::sync::atomic::Ordering;

use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::passthrough::http;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

fn gateway(upstreams: &[String], keys: &str) -> Gateway {
    let keys = format!("authentication = \"none\"\n{keys}");
    Gateway::start(&format!("{SIM}{}", route("all", "/", upstreams, &keys)))
}

/// An address without a listener.
fn closed_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[apply(test)]
fn upstreams_take_turns() {
    let all = [Upstream::start(), Upstream::start(), Upstream::start()];
    let places: Vec<String> = all.iter().map(http).collect();
    let gateway = gateway(&places, "");
    for _ in 0..30 {
        assert_eq!(gateway.bare().get("/x").status, 200, "answered");
    }
    let counts: Vec<usize> = all.iter().map(|upstream| upstream.seen().len()).collect();
    assert_eq!(counts, [10, 10, 10], "by turns");
}

#[apply(test)]
fn the_least_loaded_upstream_is_asked() {
    let (busy, free) = (Upstream::start(), Upstream::start());
    let gateway = gateway(&[http(&busy), http(&free)], "balance = \"least-loaded\"");
    // Two requests that last for seconds, one on each; one more then makes one of them the busier.
    let held: Vec<_> = (0..3)
        .map(|number| {
            let stream = send(gateway.api, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
            eventually("it arrived", || {
                busy.seen().len() + free.seen().len() == number + 1
            });
            stream
        })
        .collect();
    let (one, two) = (busy.seen().len(), free.seen().len());
    assert_eq!(one.abs_diff(two), 1, "two and one");
    assert_eq!(gateway.bare().get("/x").status, 200, "answered");
    let after = (busy.seen().len(), free.seen().len());
    assert_eq!(after, (2, 2), "the one with fewer was asked");
    drop(held);
}

#[apply(test)]
fn reads_go_on_at_another_upstream_when_one_is_down_and_writes_are_tried_once() {
    let good = Upstream::start();
    let gateway = gateway(&[closed_address(), http(&good)], "eject_failures = 1000");
    let statuses = |method: &str| -> Vec<u16> {
        (0..10)
            .map(|_| gateway.bare().send(method, "/x", None).status)
            .collect()
    };
    assert_eq!(statuses("GET"), [200; 10], "every GET");
    assert_eq!(statuses("HEAD"), [200; 10], "every HEAD");
    let posts = statuses("POST");
    assert_eq!(
        posts.iter().filter(|post| **post == 502).count(),
        5,
        "every other POST was for the one that is down: {posts:?}"
    );
    let retries = gateway.metric("snapgate_passthrough_retries_total");
    assert!((retries - 10.0).abs() < 0.1, "counted: {retries}");
}

#[apply(test)]
fn an_upstream_that_fails_is_left_alone_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let good = Upstream::start();
    let keys = "eject_failures = 2\neject_pause = \"1s\"";
    let gateway = gateway(&[format!("http://{address}"), http(&good)], keys);
    let gauge = format!(
        "snapgate_passthrough_upstream_healthy{{passthrough=\"all\",upstream=\"{address}\"}}"
    );
    eventually("left alone", || {
        gateway.bare().send("POST", "/x", None);
        gateway.metric(&gauge) < 0.5
    });
    let upstream = Upstream::start_on(TcpListener::bind(address).unwrap());
    eventually("asked again after its pause", || {
        assert_eq!(gateway.bare().get("/x").status, 200, "answered meanwhile");
        !upstream.seen().is_empty() && gateway.metric(&gauge) > 0.5
    });
}

#[apply(test)]
fn health_is_asked_after_and_decides() {
    let (one, two) = (Upstream::start(), Upstream::start());
    let keys =
        "health_path = \"/healthz\"\nhealth_interval = \"1s\"\nhealth_rise = 1\nhealth_fall = 1";
    let gateway = gateway(&[http(&one), http(&two)], keys);
    let gauge = |upstream: &Upstream| {
        gateway.metric(&format!(
            "snapgate_passthrough_upstream_healthy{{passthrough=\"all\",upstream=\"{}\"}}",
            upstream.address
        ))
    };
    one.record.ill.store(true, Ordering::SeqCst);
    eventually("one is ill", || gauge(&one) < 0.5);
    let before = one.seen().len();
    for _ in 0..6 {
        assert_eq!(gateway.bare().get("/x").status, 200, "by the other");
    }
    assert_eq!(one.seen().len(), before, "none for the ill one");
    two.record.ill.store(true, Ordering::SeqCst);
    eventually("both are ill", || gauge(&two) < 0.5);
    let reply = gateway.bare().get("/x");
    assert_eq!(
        (reply.status, &*reply.code()),
        (503, "NoUpstream"),
        "{reply:?}"
    );
    assert_ne!(reply.header("retry-after"), "", "may pass");
    one.record.ill.store(false, Ordering::SeqCst);
    eventually("one is well", || gauge(&one) > 0.5);
    assert_eq!(gateway.bare().get("/x").status, 200, "and answers");
}

#[apply(test)]
fn names_are_looked_up_by_the_gateway() {
    let upstream = Upstream::start();
    let port = upstream.address.port();
    let places = [format!("http://localhost:{port}")];
    let gateway = gateway(&places, "host = \"upstream\"\nconnect_timeout = \"1s\"");
    eventually("the name is found", || {
        gateway.bare().get("/x").status == 200
    });
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        seen.field("host"),
        [format!("localhost:{port}")],
        "its name"
    );
    // An unknown name is no panic and no start that fails, but an upstream that cannot answer.
    let places = ["http://unknown.invalid:1".to_owned()];
    let config = route("all", "/", &places, "authentication = \"none\"");
    assert!(gateway.reload(&format!("{SIM}{config}")), "active");
    let reply = gateway.bare().get("/x");
    assert_eq!(
        (reply.status, &*reply.code()),
        (503, "NoUpstream"),
        "{reply:?}"
    );
}

#[apply(test)]
fn unix_sockets_are_upstreams_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let record = std::sync::Arc::new(crate::passthrough::upstream::Record::default());
    let shared = std::sync::Arc::clone(&record);
    std::thread::Builder::new()
        .spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = Vec::new();
            crate::passthrough::upstream::serve_on(&mut stream, &shared, 1, &mut buffer);
        })
        .unwrap();
    let gateway = gateway(&[format!("unix://{}", path.display())], "");
    let reply = gateway.bare().send("POST", "/echo", Some(b"socket"));
    assert_eq!(
        (reply.status, &*reply.body),
        (200, &b"socket"[..]),
        "{reply:?}"
    );
    assert_eq!(record.seen.lock().unwrap().len(), 1, "arrived");
}
