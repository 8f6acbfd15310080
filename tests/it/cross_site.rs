//! Requests that web pages of other sites make, over sockets: to the API, to upstreams, and as WebSockets.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use crate::client::Client;
use crate::client::Reply;
use crate::client::basic;
use crate::client::read_reply;
use crate::harness::Gateway;
use crate::harness::PATIENCE;
use crate::harness::SIM;
use crate::http2;
use crate::http2::Secure;
use crate::passthrough::http;
use crate::passthrough::route;
use crate::passthrough::send;
use crate::passthrough::upstream::Upstream;

const RESTORE: &str = "/vms/1/backups/456/restore";
const EVIL: &str = "https://evil.example";
const CONSOLE: &str = "https://console.example";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The ports, and the origins that are allowed.
fn server(origins: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\npublic_url = \"https://gw.example\"\nallowed_origins = [{origins}]\n"
    )
}

fn is_refused(reply: &Reply) -> bool {
    reply.status == 403 && reply.code() == "CrossSite"
}

/// What a form on another page sends, when the browser knows the password of its user.
fn form(client: &Client) -> Client {
    client
        .without("X-Cloud-Client-Specification-Version")
        .with("Content-Type", "application/x-www-form-urlencoded")
        .with("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
}

#[apply(test)]
fn a_form_on_another_page_restores_nothing() {
    let gateway = Gateway::start(&format!(
        "{SIM}[specification]\non_missing = \"assume-current\"\n"
    ));
    let alice = gateway.client("alice");
    let browser = form(&alice);
    let page = browser
        .with("Origin", EVIL)
        .with("Sec-Fetch-Site", "cross-site")
        .with("Sec-Fetch-Mode", "navigate");
    let refused = page.send("POST", RESTORE, Some(b"note=x"));
    assert!(is_refused(&refused), "{refused:?}");
    let names = refused.headers.keys();
    let cors = names.filter(|name| name.starts_with("access-control"));
    assert_eq!(cors.count(), 0, "the page cannot even read that");
    let statuses = alice.get("/statuses").json();
    assert_eq!(
        statuses["statuses"],
        Value::Array(Vec::new()),
        "nothing was accepted"
    );
    let counted = gateway.metric("snapgate_refusals_total{code=\"CrossSite\"}");
    assert!((counted - 1.0).abs() < 0.1, "counted: {counted}");
    let own = browser.with("Sec-Fetch-Site", "same-origin");
    let own = own.send("POST", RESTORE, Some(b"note=x"));
    assert_eq!(own.status, 202, "the form itself is fine: {own:?}");
    let plain = browser.send("POST", RESTORE, Some(b"note=x"));
    assert_eq!(plain.status, 202, "programs send neither field: {plain:?}");
}

#[apply(test)]
fn a_refused_change_of_another_page_is_in_the_audit_trail() {
    let folder = tempfile::tempdir().unwrap();
    let trail = folder.path().join("audit.jsonl");
    let config = folder.path().join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", crate::harness::SECRET_HASH);
    fs::write(
        &config,
        format!("{}{sim}[log]\naudit = \"audit.jsonl\"\n", server("")),
    )
    .unwrap();
    let process = crate::harness::Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let page = Client::new(process.api, "alice", "secret").with("Origin", EVIL);
    assert!(is_refused(&page.post(RESTORE, "")), "refused");
    let text = fs::read_to_string(trail).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["code"], "CrossSite", "{line}");
    assert_eq!(line["outcome"], "refused", "{line}");
    assert_eq!(line["action"], "restore", "{line}");
    assert_eq!(line["vm"], "1", "{line}");
    assert_eq!(
        line["principal"],
        Value::Null,
        "the password was not verified: {line}"
    );
}

#[apply(test)]
fn allowed_origins_are_reloaded() {
    let gateway = Gateway::start(&format!("{}{SIM}", server("")));
    let page = gateway
        .client("alice")
        .with("Origin", CONSOLE)
        .with("Sec-Fetch-Site", "cross-site");
    assert!(is_refused(&page.post(RESTORE, "")), "not allowed yet");
    let allowed = format!("{}{SIM}", server("\"https://console.example\""));
    assert!(gateway.reload(&allowed), "reloaded");
    let accepted = page.post(RESTORE, "");
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(
        accepted.header("access-control-allow-origin"),
        CONSOLE,
        "and the page may read the answer"
    );
    let exposed = accepted.header("access-control-expose-headers");
    assert!(exposed.contains("Location"), "with the link: {exposed}");
    let broken = format!("{}{SIM}", server("\"*\""));
    let path = tempfile::tempdir().unwrap();
    let file = path.path().join("c.toml");
    fs::write(
        &file,
        broken.replace("SECRET_HASH", crate::harness::SECRET_HASH),
    )
    .unwrap();
    let problems = snapgate::config::load(&file, &|_| None).unwrap_err();
    assert!(
        problems
            .to_string()
            .contains("\"*\" would allow pages of every site"),
        "{problems}"
    );
    assert!(gateway.reload(&format!("{}{SIM}", server(""))), "again");
    assert!(is_refused(&page.post(RESTORE, "")), "taken back");
}

#[apply(test)]
fn nothing_of_another_page_goes_upstream_but_reads() {
    let upstream = Upstream::start();
    let places = [http(&upstream)];
    let config = format!(
        "{}{SIM}{}{}",
        server("\"https://console.example\""),
        route(
            "hosted",
            "/",
            &places,
            "authentication = \"none\"\nhosts = [\"manager.example\"]"
        ),
        route("plain", "/", &places, ""),
    );
    let gateway = Gateway::start(&config);
    let ask = |method: &str, host: &str, fields: &str| {
        let request = format!(
            "{method} /x HTTP/1.1\r\nHost: {host}\r\nAuthorization: {}\r\n{fields}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}",
            basic("alice", "secret")
        );
        read_reply(&mut send(gateway.api, &request), method == "HEAD")
    };
    // method, host, fields, whether it goes upstream
    let rows = [
        ("POST", "gw.example", "", true),
        ("POST", "gw.example", "Origin: https://gw.example\r\n", true),
        (
            "POST",
            "gw.example",
            "Origin: https://console.example\r\n",
            true,
        ),
        (
            "POST",
            "gw.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        (
            "PUT",
            "gw.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        (
            "PATCH",
            "gw.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        (
            "DELETE",
            "gw.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        ("DELETE", "gw.example", "Origin: null\r\n", false),
        (
            "POST",
            "gw.example",
            "Sec-Fetch-Site: cross-site\r\n",
            false,
        ),
        (
            "POST",
            "gw.example",
            "Sec-Fetch-Site: same-origin\r\n",
            true,
        ),
        // Its own pages come from the host that the route is for.
        (
            "POST",
            "manager.example",
            "Origin: https://manager.example\r\n",
            true,
        ),
        (
            "POST",
            "MANAGER.example:443",
            "Origin: https://manager.example\r\n",
            true,
        ),
        (
            "POST",
            "manager.example",
            "Origin: http://manager.example\r\n",
            false,
        ),
        (
            "POST",
            "manager.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        (
            "POST",
            "evil.example",
            "Origin: https://evil.example\r\n",
            false,
        ),
        (
            "GET",
            "gw.example",
            "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n",
            true,
        ),
        (
            "OPTIONS",
            "gw.example",
            "Origin: https://evil.example\r\nAccess-Control-Request-Method: PUT\r\n",
            true,
        ),
    ];
    for (method, host, fields, passes) in rows {
        let before = upstream.seen().len();
        let reply = ask(method, host, fields);
        let went = upstream.seen().len() > before;
        assert_eq!(went, passes, "{method} {host} {fields}: {reply:?}");
        assert_eq!(is_refused(&reply), !passes, "{method} {host} {fields}");
        let own = reply.header("access-control-allow-origin");
        assert_eq!(own, "", "CORS is left to the upstream: {reply:?}");
    }
    let without = "POST /x HTTP/1.1\r\nHost: gw.example\r\nOrigin: https://evil.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let reply = read_reply(&mut send(gateway.api, without), false);
    assert!(is_refused(&reply), "before credentials: {reply:?}");
}

#[apply(test)]
fn websockets_of_other_pages_are_not_opened() {
    let upstream = Upstream::start();
    let config = format!(
        "{}{SIM}{}",
        server("\"https://console.example\""),
        route("console", "/", &[http(&upstream)], "upgrade = true")
    );
    let gateway = Gateway::start(&config);
    // fields, status
    let rows = [
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Origin: https://gw.example\r\n", 101),
        (
            "Origin: https://console.example\r\nSec-Fetch-Site: cross-site\r\n",
            101,
        ),
        ("", 101),
    ];
    let mut opened = 0;
    for (fields, status) in rows {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: gw.example\r\nAuthorization: {}\r\n{fields}{UPGRADE}\r\n",
            basic("alice", "secret")
        );
        let mut stream = send(gateway.api, &request);
        let line = first_line(&mut stream);
        assert!(
            line.starts_with(&format!("HTTP/1.1 {status}")),
            "{fields}: {line}"
        );
        opened += usize::from(status == 101);
        assert_eq!(upstream.seen().len(), opened, "{fields}: the upstream");
    }
}

/// The first line of an answer.
fn first_line(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "a whole line");
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[apply(test)]
fn pages_are_judged_alike_over_http_2() {
    let secure = Secure::start(&format!("{}{SIM}", server("\"https://console.example\"")));
    let connection = secure.connect();
    let rows = [(EVIL, 403), (CONSOLE, 202), ("https://gw.example", 202)];
    for (origin, status) in rows {
        let request = http2::request("POST", RESTORE).header("origin", origin);
        let answer = connection.send(request, Some(b""));
        assert_eq!(answer.status, status, "{origin}: {answer:?}");
    }
}

#[apply(test)]
fn streams_can_be_read_by_allowed_pages() {
    let sim = SIM.replace("duration = \"50ms\"", "duration = \"10m\"");
    let gateway = Gateway::start(&format!("{}{sim}", server("\"https://console.example\"")));
    let uri = gateway.client("alice").post(RESTORE, "").status_uri();
    let request = format!(
        "GET {uri} HTTP/1.1\r\nHost: gw.example\r\nAccept: text/event-stream\r\nOrigin: {CONSOLE}\r\nAuthorization: {}\r\n\r\n",
        basic("alice", "secret")
    );
    let mut stream = TcpStream::connect(gateway.api).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = String::new();
    loop {
        let line = first_line(&mut stream);
        if line == "\r\n" {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
    }
    assert!(
        head.contains("access-control-allow-origin: https://console.example"),
        "{head}"
    );
}
