//! Hostile request heads: header fields, hosts, targets, versions and methods.

use crate::hostile::Fate;
use crate::hostile::Hostile;
use crate::hostile::WHO;
use crate::hostile::hidden;
use crate::hostile::line;
use crate::hostile::put;
use crate::hostile::row;
use crate::hostile::with;

pub(crate) fn heads() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let many = |count: usize| {
        (0..count)
            .map(|number| format!("X-{number}: 1"))
            .collect::<Vec<_>>()
            .join("\r\n")
    };
    vec![
        row("a folded line", with("X-A: 1\r\n 2"), Refused(400)),
        row("NUL in a value", with("X-A: 1\u{0}2"), Refused(400)),
        row(
            "a bare carriage return in a value",
            with("X-A: 1\r2"),
            Refused(400),
        ),
        row(
            "a control character in a value",
            with("X-A: 1\u{1}2"),
            Refused(400),
        ),
        row("a space in a name", with("X A: 1"), Refused(400)),
        row("a space before the colon", with("X-A : 1"), Refused(400)),
        row("no colon", with("X-A"), Refused(400)),
        row("no name", with(": 1"), Refused(400)),
        row(
            "a name of another alphabet",
            with("X-\u{e9}: 1"),
            Refused(400),
        ),
        row(
            "a leading space",
            format!("GET /vms/1/backups/456 HTTP/1.1\r\n X-A: 1\r\n{WHO}\r\n"),
            Refused(400),
        ),
        row(
            "an underscore in a name",
            with("X_Forwarded_For: 10.0.0.1"),
            Refused(400),
        ),
        row(
            "another alphabet in a value",
            with("X-A: \u{e9}"),
            Taken(200),
        ),
        row(
            "line feeds alone",
            with("X-A: 1").replace("\r\n", "\n"),
            Taken(200),
        ),
        row(
            "empty lines before",
            format!("\r\n\r\n{}", with("X-A: 1")),
            Taken(200),
        ),
        row(
            "one long field",
            with(&format!("X-A: {}", "a".repeat(40_000))),
            Refused(431),
        ),
        row(
            "a megabyte",
            with(&format!("X-A: {}", "a".repeat(1_000_000))),
            Refused(431),
        ),
        row("too many fields", with(&many(120)), Refused(431)),
        row("far too many fields", with(&many(400)), Refused(400)),
        row(
            "Connection names Host",
            with("Connection: Host"),
            Refused(400),
        ),
        row(
            "two credentials",
            with("Authorization: Basic eDp5"),
            Refused(401),
        ),
        row(
            "an upgrade",
            format!(
                "{}{}",
                with("Connection: Upgrade\r\nUpgrade: websocket"),
                hidden()
            ),
            Taken(200),
        ),
        row(
            "an upgrade to HTTP/2",
            format!(
                "{}{}",
                with(
                    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"
                ),
                hidden()
            ),
            Taken(200),
        ),
        row(
            "codings of the answer",
            with("TE: trailers, chunked\r\nConnection: TE"),
            Taken(200),
        ),
        row(
            "Keep-Alive",
            with("Connection: Keep-Alive\r\nKeep-Alive: timeout=1000000, max=0"),
            Taken(200),
        ),
        row("a trailer announced", with("Trailer: Host"), Taken(200)),
        row(
            "two expectations",
            with("Expect: 100-continue, 200-ok"),
            Taken(200),
        ),
        row("an unknown expectation", with("Expect: 200-ok"), Taken(200)),
        row(
            "an unexpected body",
            format!("{}{}", with("Content-Length: 4"), "abcd"),
            Taken(200),
        ),
        row(
            "a request in a body",
            format!(
                "{}{}",
                with(&format!("Content-Length: {}", hidden().len())),
                hidden()
            ),
            Taken(200),
        ),
    ]
}

pub(crate) fn hosts() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let rest = WHO.split_once("\r\n").unwrap().1;
    let host = |field: &str| format!("GET /vms/1/backups/456 HTTP/1.1\r\n{field}{rest}\r\n");
    let absolute =
        |authority: &str| format!("GET {authority}/vms/1/backups/456 HTTP/1.1\r\n{WHO}\r\n");
    vec![
        row("no Host", host(""), Refused(400)),
        row("an empty Host", host("Host: \r\n"), Refused(400)),
        row("Host twice", host("Host: a\r\nHost: a\r\n"), Refused(400)),
        row("two Hosts", host("Host: a\r\nHost: b\r\n"), Refused(400)),
        row("a Host with a path", host("Host: a/../b\r\n"), Refused(400)),
        row(
            "a Host of rubbish",
            host("Host: a b/../<x>\r\n"),
            Refused(400),
        ),
        row("a Host with a user", host("Host: me@a\r\n"), Refused(400)),
        row(
            "a Host with a bad port",
            host("Host: a:b\r\n"),
            Refused(400),
        ),
        row(
            "a Host with a port beyond all",
            host("Host: a:99999\r\n"),
            Refused(400),
        ),
        row(
            "a Host with half an address",
            host("Host: [::1\r\n"),
            Refused(400),
        ),
        row(
            "a Host with a colon alone",
            host("Host: a:\r\n"),
            Refused(400),
        ),
        row("a list of Hosts", host("Host: a, b\r\n"), Refused(400)),
        row(
            "absolute form",
            absolute("http://gateway.example"),
            Taken(200),
        ),
        row(
            "absolute form of another host",
            absolute("http://other.example"),
            Refused(400),
        ),
        row(
            "absolute form with a user",
            absolute("http://me@gateway.example"),
            Refused(400),
        ),
        row(
            "absolute form of another scheme",
            absolute("ftp://gateway.example"),
            Refused(400),
        ),
        row(
            "absolute form without a host",
            absolute("http://"),
            Refused(400),
        ),
        row(
            "scheme-relative form",
            absolute("//gateway.example"),
            Refused(404),
        ),
    ]
}

pub(crate) fn targets() -> Vec<Hostile> {
    use Fate::Refused;
    let get = |target: &str| line(&format!("GET {target} HTTP/1.1"));
    vec![
        row(
            "an encoded slash",
            get("/vms/1%2Fbackups/456"),
            Refused(404),
        ),
        row("dot segments", get("/vms/1/x/../backups/456"), Refused(404)),
        row(
            "encoded dot segments",
            get("/vms/1/%2e%2e/1/backups/456"),
            Refused(404),
        ),
        row("an empty segment", get("/vms/1//backups/456"), Refused(404)),
        row(
            "two slashes first",
            get("//vms/1/backups/456"),
            Refused(404),
        ),
        row("a trailing slash", get("/vms/1/backups/456/"), Refused(404)),
        row("a backslash", get("/vms\\1\\backups\\456"), Refused(400)),
        row("NUL, encoded", get("/vms/1/backups/45%006"), Refused(404)),
        row(
            "a line end, encoded",
            get("/vms/1/backups/456%0d%0aX-A:%201"),
            Refused(404),
        ),
        row("half an escape", get("/vms/1/backups/45%3"), Refused(400)),
        row(
            "an escape of nothing",
            get("/vms/1/backups/45%zz"),
            Refused(400),
        ),
        row("no UTF-8, encoded", get("/vms/1/backups/%ff"), Refused(400)),
        row(
            "another alphabet",
            get("/vms/1/backups/\u{e9}"),
            Refused(400),
        ),
        row("a space", get("/vms/1/backups/456 x"), Refused(400)),
        row(
            "two spaces before",
            get(" /vms/1/backups/456"),
            Refused(400),
        ),
        row("two spaces after", get("/vms/1/backups/456 "), Refused(400)),
        row(
            "a version in the target",
            get("/vms/1/backups/456 HTTP/1.1"),
            Refused(400),
        ),
        row("a tab", get("/vms/1/backups/456\tx"), Refused(400)),
        row(
            "a control character",
            get("/vms/1/backups/456\u{1}"),
            Refused(400),
        ),
        row("NUL", get("/vms/1/backups/456\u{0}"), Refused(400)),
        row("delete", get("/vms/1/backups/456\u{7f}"), Refused(400)),
        row(
            "a carriage return",
            get("/vms/1/backups/456\rx"),
            Refused(400),
        ),
        row(
            "a space, encoded",
            get("/vms/1/backups/456%20x"),
            Refused(404),
        ),
        row("an angle bracket", get("/vms/1/backups/<456"), Refused(400)),
        row(
            "a quotation mark",
            get("/vms/1/backups/\"456"),
            Refused(400),
        ),
        row("a fragment", get("/vms/1/backups/456#x"), Refused(400)),
        row(
            "an empty fragment",
            get("/vms/1/backups/456#"),
            Refused(400),
        ),
        row(
            "a fragment of the absolute form",
            get("http://gateway.example/vms/1/backups/456#x"),
            Refused(400),
        ),
        row("a brace", get("/vms/1/backups/{456}"), Refused(400)),
        row("a bar", get("/vms/1/backups/456|x"), Refused(400)),
        row("a circumflex", get("/vms/1/backups/456^x"), Refused(400)),
        row("a grave accent", get("/vms/1/backups/`456"), Refused(400)),
        row("a bracket", get("/vms/1/backups/[456]"), Refused(400)),
        row(
            "a quotation mark in the query",
            get("/vms/1/backups/456?a=\"b\""),
            Refused(400),
        ),
        row(
            "the authority form for a GET",
            get("gateway.example:443"),
            Refused(400),
        ),
        row("no slash", get("vms/1/backups/456"), Refused(400)),
        row("an asterisk", get("*"), Refused(400)),
        row("nothing", "GET  HTTP/1.1\r\n\r\n", Refused(400)),
        row(
            "nine thousand bytes",
            get(&format!("/{}", "a".repeat(9000))),
            Refused(414),
        ),
        row(
            "seventy thousand bytes",
            get(&format!("/{}", "a".repeat(70_000))),
            Refused(400),
        ),
    ]
}

pub(crate) fn versions_and_methods() -> Vec<Hostile> {
    use Fate::Refused;
    use Fate::Taken;
    let path = "/vms/1/backups/456";
    let rest = WHO.split_once("\r\n").unwrap().1;
    vec![
        row("HTTP/0.9", format!("GET {path}\r\n"), Refused(400)),
        row(
            "HTTP/1.2",
            line(&format!("GET {path} HTTP/1.2")),
            Refused(400),
        ),
        row(
            "HTTP/2.0 in words",
            line(&format!("GET {path} HTTP/2.0")),
            Refused(400),
        ),
        row(
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Refused(400),
        ),
        row(
            "something after the version",
            line(&format!("GET {path} HTTP/1.1 x")),
            Refused(400),
        ),
        row(
            "a handshake of TLS",
            b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n".as_slice(),
            Refused(400),
        ),
        row(
            "TRACE",
            line(&format!("TRACE {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "CONNECT",
            line("CONNECT gateway.example:443 HTTP/1.1"),
            Refused(405),
        ),
        row(
            "an invented method",
            line(&format!("FO-O! {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "a method in small letters",
            line(&format!("get {path} HTTP/1.1")),
            Refused(405),
        ),
        row(
            "a method with a colon",
            line(&format!("GET: {path} HTTP/1.1")),
            Refused(400),
        ),
        row(
            "HTTP/1.0 without Host",
            format!("GET {path} HTTP/1.0\r\n{rest}\r\n"),
            Taken(200),
        ),
        row(
            "HTTP/1.0 with chunks",
            put(
                "Transfer-Encoding: chunked",
                "b\r\n{\"tags\":[]}\r\n0\r\n\r\n",
            )
            .replace("HTTP/1.1\r\n", "HTTP/1.0\r\n"),
            Refused(400),
        ),
        row(
            "HTTP/1.0 kept alive",
            format!(
                "{}{}",
                with("Connection: keep-alive").replace("HTTP/1.1", "HTTP/1.0"),
                hidden()
            ),
            Taken(200),
        ),
        row(
            "one behind the other",
            format!("{}{}", with("X-A: 1"), hidden()),
            Taken(200),
        ),
    ]
}
