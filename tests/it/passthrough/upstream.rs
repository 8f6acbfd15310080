//! A server that records what it is sent, reads it as strictly as can be, and answers by the path.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_cork;

use crate::harness::PATIENCE;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The number of the connection, from 1.
    pub(crate) connection: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case, in order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn field(&self, name: &str) -> Vec<&str> {
        let all = self.fields.iter().filter(|field| field.0 == name);
        all.map(|field| field.1.as_str()).collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) seen: Mutex<Vec<Seen>>,
    /// Bytes that are no request, or are where no request may begin.
    pub(crate) garbage: Mutex<Vec<String>>,
    connections: AtomicUsize,
    pub(crate) ill: AtomicBool,
    pub(crate) probes: AtomicUsize,
    stopped: AtomicBool,
    /// How many parts of an answer that comes in parts may be sent.
    pub(crate) parts: AtomicUsize,
}

impl Record {
    /// Waits until that part may be sent.
    fn wait_for_part(&self, part: usize) {
        while self.parts.load(Ordering::SeqCst) <= part {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A server in threads of its own; its port closes when it is dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) record: Arc<Record>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let record = Arc::new(Record::default());
        let shared = Arc::clone(&record);
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let record = Arc::clone(&shared);
                    std::thread::Builder::new()
                        .spawn(move || serve(stream, &record))
                        .unwrap();
                }
            })
            .unwrap();
        Self { address, record }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.record.seen.lock().unwrap().clone()
    }

    pub(crate) fn garbage(&self) -> Vec<String> {
        self.record.garbage.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.record.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

/// Serves one connection.
fn serve(stream: TcpStream, record: &Record) {
    let connection = record.connections.fetch_add(1, Ordering::SeqCst) + 1;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    serve_on(&mut Corked::new(stream), record, connection, &mut buffer);
}

/// A connection that sends when it is flushed or closed. An answer and the close behind it then arrive together. A close that
/// comes later may meet the next request on the connection, which fails when it has a body and so cannot be sent again.
struct Corked(TcpStream);

impl Corked {
    fn new(stream: TcpStream) -> Self {
        set_tcp_cork(&stream, true).unwrap();
        Self(stream)
    }
}

impl Read for Corked {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Corked {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        set_tcp_cork(&self.0, false)?;
        Ok(set_tcp_cork(&self.0, true)?)
    }
}

pub(crate) fn serve_on<S: Read + Write>(
    stream: &mut S,
    record: &Record,
    connection: usize,
    buffer: &mut Vec<u8>,
) {
    loop {
        match request(stream, buffer, connection) {
            Ok(Some(seen)) => {
                if seen.target == "/healthz" {
                    record.probes.fetch_add(1, Ordering::SeqCst);
                } else {
                    record.seen.lock().unwrap().push(seen.clone());
                }
                if !answer(stream, &seen, record, buffer) {
                    return;
                }
            }
            Ok(None) => return,
            Err(what) => {
                record.garbage.lock().unwrap().push(what);
                return;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection, an error for whatever is not exactly one request.
fn request<S: Read + Write>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    connection: usize,
) -> Result<Option<Seen>, String> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        match fill(stream, buffer) {
            Ok(0) | Err(_) if buffer.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Err(format!("half a head: {}", text(buffer))),
            Ok(_) => {}
        }
    };
    let head = text(&buffer[..end]);
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(format!("no request line: {first:?}"));
    };
    if !method.bytes().all(|byte| byte.is_ascii_uppercase()) || !target.starts_with('/') {
        return Err(format!("no request line: {first:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(format!("no field: {line:?}"));
        };
        let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n', '\0']) {
            return Err(format!("no field: {line:?}"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut seen = Seen {
        connection,
        method: method.to_owned(),
        target: target.to_owned(),
        fields,
        body: Vec::new(),
    };
    if seen.field("host").len() != 1 {
        return Err(format!("not one Host: {head}"));
    }
    let (lengths, codings) = (
        seen.field("content-length").join("|"),
        seen.field("transfer-encoding").join("|"),
    );
    if seen.field("expect") == ["100-continue"] && target != "/refuse" {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        stream.flush().unwrap();
    }
    if target == "/refuse" {
        return Ok(Some(seen));
    }
    seen.body = match (lengths.as_str(), codings.as_str()) {
        ("", "") => Vec::new(),
        (length, "") => {
            let length: usize = length
                .parse()
                .map_err(|_error| format!("length {length}"))?;
            take(stream, buffer, length)?
        }
        ("", "chunked") => chunks(stream, buffer)?,
        both => return Err(format!("framing {both:?}")),
    };
    Ok(Some(seen))
}

fn chunks<S: Read>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if !matches!(fill(stream, buffer), Ok(1..)) {
                return Err("half a chunk".to_owned());
            }
        };
        let size = text(&buffer[..end]);
        buffer.drain(..end + 2);
        let size = usize::from_str_radix(&size, 16).map_err(|_error| format!("chunk {size:?}"))?;
        body.extend(take(stream, buffer, size)?);
        if take(stream, buffer, 2)? != b"\r\n" {
            return Err("no end of a chunk".to_owned());
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

fn take<S: Read>(stream: &mut S, buffer: &mut Vec<u8>, length: usize) -> Result<Vec<u8>, String> {
    while buffer.len() < length {
        if !matches!(fill(stream, buffer), Ok(1..)) {
            return Err(format!("{} of {length} bytes of a body", buffer.len()));
        }
    }
    Ok(buffer.drain(..length).collect())
}

fn fill<S: Read>(stream: &mut S, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut piece = [0; 16 * 1024];
    let count = stream.read(&mut piece)?;
    buffer.extend_from_slice(&piece[..count]);
    Ok(count)
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Answers; says whether the connection goes on.
fn answer<S: Read + Write>(
    stream: &mut S,
    seen: &Seen,
    record: &Record,
    buffer: &mut Vec<u8>,
) -> bool {
    let path = seen.target.split('?').next().unwrap_or_default();
    let is_head = seen.method == "HEAD";
    let plain = |status: &str, body: &[u8]| {
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nServer: secret/1.0\r\nX-Powered-By: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if !is_head {
            bytes.extend_from_slice(body);
        }
        bytes
    };
    let (bytes, goes_on): (Vec<u8>, bool) = match path {
        "/healthz" if record.ill.load(Ordering::SeqCst) => (plain("500 Ill", b""), true),
        "/echo" => (plain("200 OK", &seen.body), true),
        "/chunked" => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let body = if is_head { "" } else { "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Trailer: t\r\n\r\n" };
            (format!("{head}{body}").into_bytes(), true)
        }
        // The answer is the query; the connection ends after it, or stays open.
        "/raw" | "/raw-open" => {
            let query = seen.target.split_once('?').unwrap_or_default().1;
            let stays = path == "/raw-open";
            (percent_encoding::percent_decode_str(query).collect(), stays)
        }
        "/until-close" => (b"HTTP/1.1 200 OK\r\n\r\nabcdefg".to_vec(), false),
        "/reset" | "/refuse-reset" => (Vec::new(), false),
        "/short" => (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec(), false),
        "/garbage" => (b"\x16\x03\x01 what is this\r\n\r\n".to_vec(), false),
        "/two-lengths" => (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_vec(),
            false,
        ),
        "/large-head" => (
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2_000_000)).into_bytes(),
            false,
        ),
        // Each part comes when the record says so.
        "/parts" => {
            let first = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nab";
            let parts: [&[u8]; 3] = [first, b"cd", b"ef"];
            for (at, part) in parts.into_iter().enumerate() {
                record.wait_for_part(at);
                if stream.write_all(part).and_then(|()| stream.flush()).is_err() {
                    return false;
                }
            }
            record.wait_for_part(3);
            (b"gh".to_vec(), true)
        }
        "/slow" => {
            std::thread::sleep(Duration::from_secs(3));
            (plain("200 OK", b"late"), false)
        }
        "/stale" => {
            // Closes the connection after the answer without saying so.
            (plain("200 OK", b"bye"), false)
        }
        "/hops" => (
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nContent-Length: 2\r\n\r\nok".to_vec(),
            true,
        ),
        "/large" => (plain("200 OK", &vec![b'y'; 8 * 1024 * 1024]), true),
        // An unrequested answer follows.
        "/extra" => {
            let mut bytes = plain("200 OK", b"mine");
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            (bytes, true)
        }
        "/head-body" => {
            (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec(), true)
        }
        "/no-content" => (b"HTTP/1.1 204 No\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec(), true),
        "/both" => (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n".to_vec(),
            true,
        ),
        "/hints" => {
            let mut bytes = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(3);
            bytes.extend(plain("200 OK", b"mine"));
            (bytes, true)
        }
        // Sent before the close, which discards what waits when a part of the request was not read.
        "/refuse" => {
            if stream.write_all(&plain("417 No", b"no")).and_then(|()| stream.flush()).is_err() {
                return false;
            }
            (Vec::new(), false)
        }
        "/ws" if seen.field("upgrade") == ["websocket"] => {
            // The answer and the first message in one piece, as quick servers send them.
            let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello";
            if stream.write_all(head).and_then(|()| stream.flush()).is_err() {
                return false;
            }
            while buffer.len() < 5 {
                match fill(stream, buffer) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return false,
                }
            }
            let back: Vec<u8> = buffer.drain(..).rev().collect();
            (back, false)
        }
        _ => (plain("200 OK", b"ok"), true),
    };
    stream.write_all(&bytes).is_ok() && goes_on && stream.flush().is_ok()
}
