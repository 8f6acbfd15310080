//! A small HTTP/1.1 client that sends exactly what a test says and checks the framing of what comes back.

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Longest time a reply may take: far beyond anything a healthy gateway needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says what a request sends unless the request says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// One reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case; repeated fields are joined by a comma.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// Sends nothing but `Host`.
    pub(crate) fn bare(address: SocketAddr) -> Self {
        Self {
            address,
            headers: Vec::new(),
        }
    }

    /// Sends credentials and the specification version.
    pub(crate) fn new(address: SocketAddr, user: &str, password: &str) -> Self {
        Self::bare(address)
            .with("Authorization", &basic(user, password))
            .with("X-Cloud-Client-Specification-Version", "0.1")
    }

    /// The same with one more header.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name.to_owned(), value.to_owned()));
        Self {
            address: self.address,
            headers,
        }
    }

    /// The same without the headers of that name.
    pub(crate) fn without(&self, name: &str) -> Self {
        let headers = self.headers.iter();
        Self {
            address: self.address,
            headers: headers
                .filter(|(header, _)| !header.eq_ignore_ascii_case(name))
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, None)
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, None)
    }

    pub(crate) fn put(&self, path: &str, body: &str) -> Reply {
        self.json().send("PUT", path, Some(body.as_bytes()))
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        self.json().send("POST", path, Some(body.as_bytes()))
    }

    fn json(&self) -> Self {
        self.with("Content-Type", "application/json")
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Reply {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("Connection: close\r\n\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body.unwrap_or_default());
        raw(self.address, &bytes, method == "HEAD")
    }

    /// Asks for the Status until it is finished and returns it.
    pub(crate) fn finished(&self, status_uri: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let reply = self.with("Prefer", "wait=20").get(status_uri);
            assert_eq!(reply.status, 200, "a Status can always be read: {reply:?}");
            let status = reply.json();
            if status["progress"] == 100 {
                return status;
            }
            assert!(Instant::now() < until, "not finished in time: {status}");
        }
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The stable code of a refusal.
    pub(crate) fn code(&self) -> String {
        self.json()["message"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The `status_uri` of a 202.
    pub(crate) fn status_uri(&self) -> String {
        assert_eq!(self.status, 202, "accepted: {self:?}");
        self.json()["status_uri"].as_str().unwrap().to_owned()
    }
}

/// The value of an `Authorization` header.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Sends bytes as they are and reads one reply.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8], head_only: bool) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    read_reply(&mut stream, head_only)
}

/// Reads what is there. A signal to this process, such as the end of a child of another test, is no end of a connection.
pub(crate) fn read_some(from: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Reads one reply and checks that its body is as long as it says.
pub(crate) fn read_reply(stream: &mut TcpStream, head_only: bool) -> Reply {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        let count = read_some(stream, &mut chunk).unwrap();
        assert!(
            count > 0,
            "closed within the head: {}",
            String::from_utf8_lossy(&received)
        );
        received.extend_from_slice(&chunk[..count]);
    };
    let head = String::from_utf8(received[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap();
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = BTreeMap::<String, String>::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|values| *values = format!("{values}, {}", value.trim()))
            .or_insert_with(|| value.trim().to_owned());
    }
    let mut body = received[end + 4..].to_vec();
    let bodiless = head_only || status == 204 || status == 304;
    let length = if bodiless {
        0
    } else {
        headers
            .get("content-length")
            .unwrap_or_else(|| panic!("no Content-Length: {head}"))
            .parse()
            .unwrap()
    };
    while body.len() < length {
        let count = read_some(stream, &mut chunk).unwrap();
        assert!(count > 0, "closed within the body: {head}");
        body.extend_from_slice(&chunk[..count]);
    }
    assert_eq!(body.len(), length, "nothing after the body: {head}");
    Reply {
        status,
        headers,
        body,
    }
}
