//! Broken and hostile requests over raw sockets: each is answered as it must be, and none is read in two ways.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::Gateway;
use crate::harness::SIM;
use crate::hostile;
use crate::hostile::Fate;

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends the bytes and returns everything that comes back until the connection ends.
fn converse(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // A gateway that has read enough may close before everything was sent.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let mut part = [0; 65_536];
    loop {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return answer,
            Ok(count) => answer.extend_from_slice(&part[..count]),
        }
    }
}

/// The status of each answer, one after the other; interim ones are passed over.
fn statuses(mut answer: &[u8]) -> Vec<u16> {
    let mut found = Vec::new();
    while let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        answer = &answer[(end + 4 + length.unwrap_or(0)).min(answer.len())..];
        if status >= 200 {
            found.push(status);
        }
    }
    found
}

#[apply(test)]
fn hostile_requests_are_answered_as_they_must_be_and_nothing_behind_them_is_read() {
    let gateway = Gateway::start(SIM);
    let mut wrong = Vec::new();
    for row in hostile::all() {
        let answer = converse(gateway.api, &row.bytes);
        let found = statuses(&answer);
        let (Fate::Refused(expected) | Fate::Taken(expected)) = row.fate;
        if found != [expected] {
            let text = String::from_utf8_lossy(&answer);
            let text: String = text.chars().take(300).collect();
            wrong.push(format!(
                "{}: {expected} expected, {found:?} found: {text}",
                row.name
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let deletes = gateway.metric("snapgate_requests_total{code=\"404\",method=\"DELETE\"");
    assert!(deletes == 0.0, "no hidden request was seen");
    let alive = gateway.client("alice").get("/vms/1/backups/456");
    assert_eq!(alive.status, 200, "it goes on: {alive:?}");
}

const WHO: &str = "Host: x\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\nX-Cloud-Client-Specification-Version: 0.1\r\n";

#[apply(test)]
fn targets_that_pingora_repairs_and_methods_it_answers_itself_are_refused_by_name_and_counted() {
    let gateway = Gateway::start(SIM);
    let good = format!("GET /vms/1/backups/456 HTTP/1.1\r\n{WHO}\r\n");
    let close = WHO.replace("Host", "Connection: close\r\nHost");
    // name, request line, status, code
    let rows = [
        (
            "a space",
            "GET /vms/1/backups/4 56 HTTP/1.1",
            400,
            "MalformedTarget",
        ),
        (
            "a tab",
            "GET /vms/1/backups/\t456 HTTP/1.1",
            400,
            "MalformedTarget",
        ),
        ("CONNECT", "CONNECT x:443 HTTP/1.1", 405, "MethodNotAllowed"),
        (
            "CONNECT to a path",
            "CONNECT /vms/1/backups/456 HTTP/1.1",
            405,
            "MethodNotAllowed",
        ),
    ];
    for (name, line, status, code) in rows {
        // Behind another request on the same connection: each is judged by its own line.
        let mut stream = TcpStream::connect(gateway.api).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..2 {
            stream.write_all(good.as_bytes()).unwrap();
            let answer = one_answer(&mut stream);
            assert_eq!(statuses(&answer), [200], "{name}: what is before it");
        }
        stream
            .write_all(format!("{line}\r\n{close}\r\n").as_bytes())
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(statuses(&answer), [status], "{name}");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains(code), "{name}: named: {text}");
        assert!(!text.contains("Pingora"), "{name}: our own answer: {text}");
    }
    let counted = |series: &str| gateway.metric(series);
    let connects = counted("snapgate_requests_total{code=\"405\",method=\"CONNECT\"");
    assert!(
        (connects - 2.0).abs() < 0.1,
        "CONNECT is counted: {connects}"
    );
    let broken = counted("snapgate_refusals_total{code=\"MalformedTarget\"}");
    assert!(
        (broken - 2.0).abs() < 0.1,
        "broken targets are counted: {broken}"
    );
}

#[apply(test)]
fn requests_that_the_parser_cannot_read_are_refused_and_counted_like_all_others() {
    let gateway = Gateway::start(SIM);
    let requests = [
        "GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nX A: 1\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for request in requests {
        let answer = converse(gateway.api, request.as_bytes());
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(statuses(&answer), [400], "{request:?}: {text}");
        assert!(
            text.contains("MalformedRequest"),
            "{request:?}: named: {text}"
        );
        let lower = text.to_ascii_lowercase();
        assert!(!lower.contains("pingora"), "{request:?}: our own: {text}");
        for field in ["x-request-id: ", "date: ", "connection: close"] {
            assert!(lower.contains(field), "{request:?}: {field}: {text}");
        }
    }
    for series in [
        "snapgate_refusals_total{code=\"MalformedRequest\"}",
        "snapgate_requests_total{code=\"400\",method=\"OTHER\",route=\"none\"}",
        "snapgate_connections_closed_total{reason=\"no_request\"}",
    ] {
        let counted = gateway.metric(series);
        assert!((counted - 3.0).abs() < 0.1, "{series}: {counted}");
    }
}

/// One answer with a length.
fn one_answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut byte = [0; 1];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    answer.extend(body);
    answer
}

#[apply(test)]
fn a_dripped_body_is_refused_and_counted_long_before_its_deadline() {
    let limits = "[limits]\nbody_timeout = \"10m\"\nbody_rate = \"1KiB\"\nbody_grace = \"1s\"\n";
    let gateway = Gateway::start(&format!("{SIM}\n{limits}"));
    let mut stream = TcpStream::connect(gateway.api).unwrap();
    let head = format!(
        "PUT /vms/1/backups/456 HTTP/1.1\r\n{WHO}Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    // One byte in each of these times: some 20 bytes a second. Sixty thousand would take almost an hour.
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    for _ in 0..PATIENCE.as_millis() / 50 {
        drop(stream.write_all(b" "));
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(_not_yet) => {}
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert_eq!(statuses(&answer), [408], "given up: {text}");
    assert!(text.contains("BodyTooSlow"), "named: {text}");
    let refused = gateway.metric("snapgate_refusals_total{code=\"BodyTooSlow\"}");
    assert!((refused - 1.0).abs() < 0.1, "counted: {refused}");
    let body = r#"{"tags": ["quick"]}"#;
    let quick = gateway.client("alice").put("/vms/1/backups/456", body);
    assert_eq!(quick.status, 202, "a body that comes at once: {quick:?}");
}
