//! Raw bytes through the real listener to the decision: what the gateway acts on must be a request by the reference reader too.
//!
//! Bytes that begin with the preface of HTTP/2 are sent over TLS, to a gateway that speaks it there.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use loona_hpack::Decoder;

use super::gateway::Gateway;
use super::gateway::PATIENCE;
use super::gateway::read_some;
use super::reference_http1;
use super::reference_http2;
use super::reference_http2::Reading;

/// A gateway whose caller `ann`, password `secret`, may do everything to simulated VMs.
const LISTENING: &str = r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"

[operations]
store = "operations.db"

[[backend]]
name = "simulated"
kind = "sim"
vms = ["*"]
simulated_vms = ["33333"]
duration = "1ms"

[[user]]
name = "ann"
password_hash = "$argon2id$v=19$m=8,t=1,p=1$WOV57XxSOm3WI7S3TunXvQ$eOteaxagQi0qZvkzf60p8D2116HVd8xUgwo/i/1GOc4"

[[grant]]
to = ["user:ann"]
actions = ["read", "update"]
vms = ["*"]
backups = ["*"]
"#;

/// How long answers of HTTP/2 are waited for that may not come: to a client that allowed too little, or asked for a wait.
const GRACE: Duration = Duration::from_millis(20);

fn plain() -> &'static Gateway {
    static GATEWAY: OnceLock<Gateway> = OnceLock::new();
    GATEWAY.get_or_init(|| Gateway::start(LISTENING, false))
}

fn encrypted() -> &'static Gateway {
    static GATEWAY: OnceLock<Gateway> = OnceLock::new();
    GATEWAY.get_or_init(|| Gateway::start(LISTENING, true))
}

/// The bytes as all that a client sends on one connection.
pub(crate) fn listener(data: &[u8]) {
    if data.starts_with(reference_http2::PREFACE) {
        http2(data);
    } else {
        http1(data);
    }
}

fn http1(data: &[u8]) {
    let expected = reference_http1::read(data);
    let answer = converse(plain().api, data);
    let statuses = read_statuses(&answer, &expected.methods);
    let well_formed = expected.methods.len();
    let acted_on = statuses.iter().filter(|status| **status < 400).count();
    assert!(
        acted_on <= well_formed,
        "acted on {acted_on} requests where there are {well_formed}: {statuses:?}, {expected:?}"
    );
    assert!(
        statuses.len() <= well_formed + 1,
        "one refusal ends the connection: {statuses:?}, {expected:?}"
    );
}

/// Sends the bytes and returns everything that comes back until the connection ends.
fn converse(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // A gateway that has read enough may close before everything was sent.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let mut part = [0; 16_384];
    loop {
        match read_some(&mut stream, &mut part) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) => {
                let is_late = error.kind() == std::io::ErrorKind::WouldBlock;
                assert!(!is_late, "the connection ends in time");
                return answer;
            }
        }
    }
}

/// The final statuses of the answers, whose framing must leave nothing over.
fn read_statuses(mut answer: &[u8], methods: &[String]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answer.is_empty() {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            // A reset may cut the last answer off.
            return statuses;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status = head
            .strip_prefix("http/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line: {head}"));
        answer = &answer[end + 4..];
        if status < 200 {
            continue;
        }
        let is_bodiless = [204, 304].contains(&status) || answer.starts_with(b"HTTP/1.1 ");
        let is_head = methods
            .get(statuses.len())
            .is_some_and(|method| method == "HEAD");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if !is_bodiless && !is_head {
            answer = answer.get(length.unwrap_or_default()..).unwrap_or_default();
        }
        statuses.push(status);
    }
    statuses
}

/// What came back of HTTP/2.
#[derive(Debug, Default)]
struct Reactions {
    /// The status of each stream that was answered.
    statuses: BTreeMap<u32, u16>,
    resets: BTreeSet<u32>,
    is_alive: bool,
}

fn http2(data: &[u8]) {
    let expected = reference_http2::read(data);
    let found = converse_http2(data, &expected);
    for (stream, status) in &found.statuses {
        let known = expected.streams.get(stream);
        let known =
            known.unwrap_or_else(|| panic!("an answer to no request: {stream}, {expected:?}"));
        // A body is needed for an update only: other answers may come before the end of the request.
        let needs_body = known.method.as_deref() == Some("PUT");
        let may_act = known.method.is_some() && (known.is_whole || !needs_body);
        assert!(
            *status >= 400 || may_act,
            "acted on stream {stream} with {status}: {expected:?}"
        );
    }
    let unanswered = owed(&expected, &found);
    assert!(
        !found.is_alive || unanswered.is_empty(),
        "well-formed, and not answered: {unanswered:?} of {expected:?}, {found:?}"
    );
}

/// The streams that must still be answered.
fn owed(expected: &Reading, found: &Reactions) -> Vec<u32> {
    if expected.is_restrained {
        return Vec::new();
    }
    let streams = expected.streams.iter();
    let owed = streams.filter(|(number, stream)| {
        let is_request = stream.method.is_some() && stream.is_whole && !stream.is_over;
        let is_answered = found.statuses.contains_key(number) || found.resets.contains(number);
        is_request && !stream.may_wait && !is_answered
    });
    owed.map(|(number, _)| *number).collect()
}

/// Sends the bytes and a ping, and reads until everything is answered that must be.
fn converse_http2(bytes: &[u8], expected: &Reading) -> Reactions {
    let mut stream = encrypted().connect_encrypted();
    let mut found = Reactions::default();
    let can_ping = !expected.is_broken && !expected.is_cut;
    let ping = [
        &[0, 0, 8, reference_http2::PING, 0, 0, 0, 0, 0][..],
        b"the end?",
    ]
    .concat();
    let sent = [bytes, if can_ping { &ping } else { &[] }].concat();
    // A gateway that has read enough may close before everything was sent.
    let is_sent = stream.write_all(&sent).is_ok() && stream.flush().is_ok();
    let mut decoder = Decoder::new();
    let (mut unread, mut is_pinged) = (Vec::new(), !can_ping || !is_sent);
    let mut until = Instant::now() + PATIENCE;
    let mut is_settled = false;
    loop {
        while let Some((frame, rest)) = reference_http2::split_frame(&unread) {
            match frame.kind {
                reference_http2::HEADERS => {
                    let whole = frame.flags & reference_http2::END_HEADERS != 0;
                    assert!(whole, "answers have small heads");
                    let fields = decoder.decode(frame.payload).expect("fields of an answer");
                    let status = fields.iter().find(|field| field.0 == b":status");
                    let status =
                        status.and_then(|field| str::from_utf8(&field.1).ok()?.parse().ok());
                    found
                        .statuses
                        .insert(frame.stream, status.expect("a status"));
                }
                3 => drop(found.resets.insert(frame.stream)),
                reference_http2::PING if frame.payload == b"the end?" => is_pinged = true,
                reference_http2::GOAWAY => return found,
                _ => {}
            }
            unread = rest.to_vec();
        }
        // What may come is waited for a little, so that it is looked at too.
        if !is_settled && is_pinged && owed(expected, &found).is_empty() {
            is_settled = true;
            until = Instant::now() + GRACE;
        }
        let may_come = expected.is_broken
            || expected.streams.len() > found.statuses.len() + found.resets.len();
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || (is_settled && !may_come) {
            found.is_alive = true;
            return found;
        }
        stream.sock.set_read_timeout(Some(left)).unwrap();
        let mut part = [0; 16_384];
        match read_some(&mut stream, &mut part) {
            Ok(0) => return found,
            Ok(count) => unread.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_reset) => return found,
        }
    }
}
