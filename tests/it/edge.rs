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
    while let Some(end) = answer.windows(4).position(|it| it == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|it| it.strip_prefix("content-length: ")?.parse::<usize>().ok());
        answer = &answer[(end + 4 + length.unwrap_or(0)).min(answer.len())..];
        if status >= 200 {
            found.push(status);
        }
    }
    found
}

#[test]
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
