//! Answers of upstreams: rebuilt framing, protocol versions, removed fields and upstream errors.

use crate::harness::Gateway;
use crate::harness::SIM;
use crate::passthrough::WAYS;
use crate::passthrough::http;
use crate::passthrough::open;
use crate::passthrough::rest;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

#[apply(test)]
fn fields_are_removed_and_kept_by_name() {
    let upstream = Upstream::start();
    let rule =
        "remove_headers = [\"X-Internal\", \"Cookie\"]\nkeep_headers = [\"X-Forwarded-User\"]\n";
    let routes = [
        route("plain", "/plain", &[http(&upstream)], ""),
        route("ruled", "/ruled", &[http(&upstream)], rule),
    ];
    let gateway = Gateway::start(&format!("{SIM}{}", routes.concat()));
    let names = [
        "X-Webauth-User",
        "X-Auth-Request-User",
        "X-Auth-Request-Email",
        "X-SSL-Client-Cert",
        "Ssl-Client-Verify",
        "Client-Cert",
        "X-Client-Cert",
        "X-Client-Verify",
        "X-Forwarded-User",
        "X-Forwarded-Preferred-Username",
        "X-Forwarded-Email",
        "X-Forwarded-Groups",
        "Remote-User",
        "X-Remote-User",
        "X-Authenticated-User",
    ];
    let mut alice = gateway.client("alice");
    for name in names.iter().chain(&["X-Internal", "Cookie", "X-Mine"]) {
        alice = alice.with(name, "root");
    }
    // A plain GET and a POST take two ways to the upstream.
    for (method, body) in [("GET", None), ("POST", Some(&b"body"[..]))] {
        for path in ["/plain", "/ruled"] {
            let reply = alice.send(method, &format!("{path}/echo"), body);
            assert_eq!(reply.status, 200, "{method} {path}: {reply:?}");
            let seen = upstream.seen().pop().unwrap();
            let is_ruled = path == "/ruled";
            for name in names {
                let kept = is_ruled && name == "X-Forwarded-User";
                let expected: &[&str] = if kept { &["root"] } else { &[] };
                let found = seen.field(&name.to_lowercase());
                assert_eq!(found, expected, "{method} {path}: {name}");
            }
            let expected: &[&str] = if is_ruled { &[] } else { &["root"] };
            for name in ["x-internal", "cookie"] {
                assert_eq!(seen.field(name), expected, "{method} {path}: {name}");
            }
            assert_eq!(seen.field("x-mine"), ["root"], "{method} {path}");
        }
    }
}

#[apply(test)]
fn old_clients_get_answers_they_can_read() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "");
    for (path, host) in [
        ("/chunked", "Host: x\r\n"),
        ("/until-close", ""),
        ("/echo", ""),
    ] {
        let request = format!("GET {path} HTTP/1.0\r\n{host}\r\n");
        let all = rest(&mut send(gateway.api, &request));
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.") && head.contains(" 200 "),
            "{path}: {all}"
        );
        assert!(
            !head.to_ascii_lowercase().contains("transfer-encoding"),
            "{path}: {all}"
        );
        let expected = if path == "/echo" { "" } else { "abcdefg" };
        assert_eq!(body, expected, "{path}: {all}");
    }
    let seen = upstream.seen();
    assert!(
        seen.iter().all(|request| request.field("host").len() == 1),
        "{seen:?}"
    );
}

#[apply(test)]
fn answers_are_made_anew_both_ways() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "eject_failures = 1000");
    // name, what the upstream says, status, in the answer, not in the answer
    let rows = [
        (
            "HTTP/1.0",
            "HTTP/1.0 200 OK\r\n\r\nabc",
            200,
            "HTTP/1.1 200",
            "HTTP/1.0",
        ),
        (
            "chunks of HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "",
            "",
        ),
        (
            "a length twice",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            502,
            "",
            "",
        ),
        (
            "a list of lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
            502,
            "",
            "",
        ),
        (
            "no number",
            "HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nabc",
            502,
            "",
            "",
        ),
        (
            "an empty coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: , chunked\r\n\r\n0\r\n\r\n",
            502,
            "",
            "",
        ),
        (
            "no content",
            "HTTP/1.1 204 OK\r\nContent-Length: 0\r\n\r\n",
            204,
            "",
            "ontent-",
        ),
        (
            "no content in chunks",
            "HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            204,
            "",
            "ransfer-",
        ),
        (
            "not modified",
            "HTTP/1.1 304 OK\r\nContent-Length: 7\r\n\r\n",
            304,
            "",
            "ontent-",
        ),
        (
            "an upgrade",
            "HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            502,
            "",
            " 101",
        ),
        (
            "two types",
            "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n",
            502,
            "",
            "",
        ),
        (
            "a status of three digits",
            "HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
            502,
            "",
            "",
        ),
    ];
    for (name, said, status, has, lacks) in rows {
        let said: String = said.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for framing in WAYS {
            let request =
                format!("GET /raw?{said} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}");
            let all = rest(&mut send(gateway.api, &request));
            let head = all.split("\r\n\r\n").next().unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}")),
                "{name} {framing:?}: {all}"
            );
            assert!(head.contains(has), "{name} {framing:?}: {all}");
            assert!(
                lacks.is_empty() || !head.contains(lacks),
                "{name} {framing:?}: {all}"
            );
        }
    }
    // Interim answers are not for HTTP/1.0.
    for framing in WAYS {
        let request = format!("GET /hints HTTP/1.0\r\nHost: x\r\n{framing}");
        let all = rest(&mut send(gateway.api, &request));
        assert!(
            all.starts_with("HTTP/1.1 200") && !all.contains(" 103"),
            "{framing:?}: {all}"
        );
    }
    assert_eq!(gateway.bare().get("/x").status, 200, "others go on");
}

#[apply(test)]
fn upstream_errors_are_answered_in_our_own_words() {
    let upstream = Upstream::start();
    let gateway = open(&upstream, "read_timeout = \"1s\"\neject_failures = 1000");
    let rows = [
        ("POST", "/reset", 502, "BadGateway"),
        ("GET", "/reset", 502, "BadGateway"),
        ("GET", "/garbage", 502, "BadGateway"),
        ("GET", "/two-lengths", 502, "BadGateway"),
        ("GET", "/large-head", 502, "BadGateway"),
        ("GET", "/slow", 504, "GatewayTimeout"),
    ];
    for (method, path, status, code) in rows {
        let reply = gateway.bare().send(method, path, None);
        assert_eq!(
            (reply.status, &*reply.code()),
            (status, code),
            "{path}: {reply:?}"
        );
        assert!(reply.header("x-request-id").len() > 10, "{path}: {reply:?}");
        assert_eq!(
            reply.header("content-type"),
            gateway.bare().get("/versions/x").header("content-type"),
            "{path}: the format of every error"
        );
    }
    let all = rest(&mut send(
        gateway.api,
        "GET /short HTTP/1.1\r\nHost: x\r\n\r\n",
    ));
    assert!(
        all.ends_with("\r\n\r\nabc"),
        "cut off where it was: {all:?}"
    );
    assert_eq!(gateway.bare().get("/x").status, 200, "and it goes on");
    let tried = |path: &str| {
        upstream
            .seen()
            .iter()
            .filter(|request| request.target == path)
            .count()
    };
    assert_eq!(tried("/reset"), 3, "POST once, GET twice");
    assert_eq!(tried("/slow"), 1, "what took its time is not tried again");
}
