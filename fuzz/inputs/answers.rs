//! Bytes of an upstream through the real pass-through to what its client sees: by both ways that answers take, and to clients of
//! HTTP/1.0, HTTP/1.1 and HTTP/2.

use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;

use super::client_of_answers::Client;
use super::client_of_answers::Sight;
use super::gateway::Gateway;
use super::gateway::PATIENCE;
use super::gateway::read_some;
use super::reference_answer;
use super::reference_answer::Answer;
use super::reference_answer::End;
use super::reference_answer::Reading;

/// A gateway that forwards everything to the upstream.
const FORWARDING: &str = r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"

[operations]
store = "operations.db"

# A client keeps its connection from one input to the next, however much time lies between them.
[limits]
idle_timeout = "1h"

[[backend]]
name = "simulated"
kind = "sim"
vms = ["*"]
simulated_vms = ["33333"]

[[passthrough]]
name = "all"
path = "/"
upstreams = ["http://UPSTREAM"]
authentication = "none"
read_timeout = "3s"
eject_failures = 1000
"#;

/// What the upstream answers to the second request: whatever else comes there was left over from the first.
pub(super) const MARKER: &[u8] = b"the right answer";

/// What is sent next, and whether the connection stays open after it.
type Script = Arc<Mutex<(Vec<u8>, bool)>>;

/// The upstream and the gateways before it.
#[derive(Debug)]
struct Bed {
    script: Script,
    clients: Vec<Client>,
}

fn bed() -> &'static Mutex<Bed> {
    static BED: OnceLock<Mutex<Bed>> = OnceLock::new();
    BED.get_or_init(|| {
        let script = Script::default();
        let address = start_upstream(Arc::clone(&script));
        let settings = FORWARDING.replace("UPSTREAM", &address.to_string());
        let plain = Arc::new(Gateway::start(&settings, false));
        let encrypted = Arc::new(Gateway::start(&settings, true));
        Mutex::new(Bed {
            script,
            clients: Client::all(&plain, &encrypted),
        })
    })
}

fn start_upstream(script: Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let script = Arc::clone(&script);
            std::thread::spawn(move || serve(stream, &script));
        }
    });
    address
}

/// Answers the requests of one connection.
fn serve(mut stream: TcpStream, script: &Script) {
    drop(stream.set_nodelay(true));
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        while let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let is_marker = received.windows(8).any(|window| window == b" /marker");
            let is_head = received.starts_with(b"HEAD ");
            received.drain(..at + 4);
            let marker = || {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    MARKER.len()
                );
                let body = if is_head { &[] } else { MARKER };
                ([head.as_bytes(), body].concat(), true)
            };
            let (answer, stays) = match is_marker {
                true => marker(),
                false => script.lock().unwrap().clone(),
            };
            if stream.write_all(&answer).is_err() || !stays {
                return;
            }
        }
        match read_some(&mut stream, &mut part) {
            Ok(count @ 1..) => received.extend_from_slice(&part[..count]),
            Ok(0) | Err(_) => return,
        }
    }
}

/// The bytes as what an upstream sends for one request.
pub(crate) fn answers(data: &[u8]) {
    let mut bed = bed()
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let bed = &mut *bed;
    for client in &mut bed.clients {
        let expected = reference_answer::read(data, client.is_head);
        *bed.script.lock().unwrap() = (data.to_vec(), stays_open(&expected));
        let found = client.ask("/answer");
        judge(client, &expected, &found);
        let marker = client.ask("/marker");
        let name = client.name;
        assert_eq!(marker.status, 200, "{name}: the next answer: {marker:?}");
        let body: &[u8] = if client.is_head { b"" } else { MARKER };
        assert_eq!(marker.body, body, "{name}: the next answer: {marker:?}");
    }
}

/// Whether the upstream waits for another request: only if the gateway can know that the answer is over.
fn stays_open(expected: &Reading) -> bool {
    let is_over = |answer: &Answer| answer.end == End::Whole && !answer.is_open;
    expected.is_head_whole && expected.answer.as_ref().is_none_or(is_over)
}

fn judge(client: &Client, expected: &Reading, found: &Sight) {
    let name = client.name;
    let Some(answer) = &expected.answer else {
        assert_eq!(found.status, 502, "{name}: {expected:?}, {found:?}");
        assert!(found.is_whole, "{name}: a whole refusal: {found:?}");
        return;
    };
    let gave_up = answer.end == End::Broken && found.status == 502;
    if gave_up {
        return;
    }
    assert_eq!(
        found.status, answer.status,
        "{name}: {expected:?}, {found:?}"
    );
    let interim: &[u16] = if client.sees_interim {
        &expected.interim
    } else {
        &[]
    };
    assert_eq!(found.interim, interim, "{name}: interim answers");
    if answer.end == End::Whole {
        assert!(found.is_whole, "{name}: {expected:?}, {found:?}");
        assert_eq!(
            found.body, answer.body,
            "{name}: the body: {expected:?}, {found:?}"
        );
    } else {
        assert!(
            answer.body.starts_with(&found.body),
            "{name}: a part: {found:?}"
        );
        let is_seen = !found.is_whole || client.is_old;
        assert!(is_seen, "{name}: broken off: {expected:?}, {found:?}");
    }
    judge_fields(client, answer, found);
}

/// One of what the gateway sets, all that is passed on, and nothing else.
fn judge_fields(client: &Client, answer: &Answer, found: &Sight) {
    let name = client.name;
    let all = |field: &str| -> Vec<&[u8]> {
        let all = found.fields.iter().filter(|(name, _)| name == field);
        all.map(|(_, value)| &**value).collect()
    };
    for field in ["date", "x-request-id", "via"] {
        assert_eq!(all(field).len(), 1, "{name}: one {field}: {found:?}");
    }
    let lengths = all("content-length");
    assert!(lengths.len() <= 1, "{name}: one length: {found:?}");
    if let Some(length) = lengths.first() {
        let announced = answer.length.map(|length| length.to_string());
        let announced = announced.as_ref().map(String::as_bytes);
        assert_eq!(Some(*length), announced, "{name}: the length: {found:?}");
    }
    // One that is no date is replaced.
    let mut dates = answer.fields.iter().filter(|(name, _)| name == "date");
    let may_date = client.keeps_date && dates.any(|(_, value)| is_date(value));
    let passed = |fields: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
        let own = [
            "connection",
            "content-length",
            "transfer-encoding",
            "via",
            "x-request-id",
        ];
        let mut fields: Vec<_> = fields
            .iter()
            .filter(|(name, _)| !own.contains(&&**name) && (may_date || name != "date"))
            .cloned()
            .collect();
        // The order of values of one field counts, that of fields does not.
        fields.sort_by(|one, two| one.0.cmp(&two.0));
        fields
    };
    let (seen, expected) = (passed(&found.fields), passed(&answer.fields));
    assert_eq!(seen, expected, "{name}: fields");
}

/// RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn is_date(value: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(value) else {
        return false;
    };
    let parts: Vec<&str> = text.split(' ').collect();
    let [day, date, month, year, time, "GMT"] = *parts else {
        return false;
    };
    let is_name = |text: &str| {
        let bytes = text.as_bytes();
        text.len() == 3
            && bytes[0].is_ascii_uppercase()
            && bytes[1..].iter().all(u8::is_ascii_lowercase)
    };
    let is_number = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let times: Vec<&str> = time.split(':').collect();
    day.strip_suffix(',').is_some_and(is_name)
        && is_number(date, 2)
        && is_name(month)
        && is_number(year, 4)
        && times.len() == 3
        && times.iter().all(|part| is_number(part, 2))
}

/// Reads one more piece; `false` at the end.
pub(super) fn read_more(stream: &mut TcpStream, received: &mut Vec<u8>) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut part = [0; 16_384];
    match read_some(stream, &mut part) {
        Ok(0) => false,
        Ok(count) => {
            received.extend_from_slice(&part[..count]);
            true
        }
        Err(error) => {
            let is_late = error.kind() == std::io::ErrorKind::WouldBlock;
            assert!(!is_late, "an answer comes in time");
            false
        }
    }
}
