//! Clients that read answers as strictly as can be: what a reader of HTTP/1.0, HTTP/1.1 or HTTP/2 sees of an answer.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;

use super::answers::read_more;
use super::gateway::Gateway;
use super::gateway::PATIENCE;

/// What a client sees.
#[derive(Debug, Default)]
pub(super) struct Sight {
    pub(super) interim: Vec<u16>,
    pub(super) status: u16,
    /// Names in small letters.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    /// Whether the answer came to its end.
    pub(super) is_whole: bool,
}

/// How a client speaks.
#[derive(Debug)]
enum Speech {
    /// The version, and fields of the request that decide which way it takes.
    Http1(&'static str, &'static str),
    Http2(Option<h2::client::SendRequest<Bytes>>),
}

/// A client of one gateway.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) is_head: bool,
    /// Whether it speaks HTTP/1.0, where a broken body is not seen.
    pub(super) is_old: bool,
    pub(super) sees_interim: bool,
    /// Whether it gets the `Date` of the upstream.
    pub(super) keeps_date: bool,
    speech: Speech,
    gateway: Arc<Gateway>,
    /// The connection, while it is open.
    stream: Option<TcpStream>,
}

/// Fields that make a request go through Pingora.
const INVOLVED: &str = "Content-Length: 0\r\n";

impl Client {
    /// One for each way and version.
    pub(super) fn all(plain: &Arc<Gateway>, encrypted: &Arc<Gateway>) -> Vec<Self> {
        let old = |name, fields| Self {
            name,
            is_head: false,
            is_old: true,
            sees_interim: false,
            keeps_date: true,
            speech: Speech::Http1("HTTP/1.0", fields),
            gateway: Arc::clone(plain),
            stream: None,
        };
        let new = |name, is_head, fields| Self {
            is_head,
            is_old: false,
            sees_interim: true,
            speech: Speech::Http1("HTTP/1.1", fields),
            ..old(name, fields)
        };
        let second = |name, is_head| Self {
            is_head,
            is_old: false,
            keeps_date: false,
            speech: Speech::Http2(None),
            gateway: Arc::clone(encrypted),
            ..old(name, "")
        };
        vec![
            new("HTTP/1.1, directly", false, ""),
            new("HTTP/1.1, through Pingora", false, INVOLVED),
            new("HTTP/1.1, HEAD", true, ""),
            old("HTTP/1.0, directly", ""),
            old("HTTP/1.0, through Pingora", INVOLVED),
            second("HTTP/2", false),
            second("HTTP/2, HEAD", true),
        ]
    }

    /// Asks and reads the answer.
    pub(super) fn ask(&mut self, path: &str) -> Sight {
        let method = if self.is_head { "HEAD" } else { "GET" };
        match &mut self.speech {
            Speech::Http1(version, fields) => {
                let request = format!("{method} {path} {version}\r\nHost: x\r\n{fields}\r\n");
                let (is_head, is_old) = (self.is_head, self.is_old);
                let api = self.gateway.api;
                let open = self.stream.take();
                let age = if open.is_some() { "kept" } else { "new" };
                let asked = || {
                    let closed = self.gateway.closed_connections();
                    format!("{}, {age} connection, of these closed: {closed}", self.name)
                };
                let mut stream = open.unwrap_or_else(|| TcpStream::connect(api).unwrap());
                stream.write_all(request.as_bytes()).unwrap();
                let (sight, stays) = read_answer(&mut stream, is_head, is_old, asked);
                self.stream = stays.then_some(stream);
                sight
            }
            Speech::Http2(connection) => {
                let request = http::Request::builder()
                    .method(method)
                    .uri(format!("https://localhost{path}"))
                    .body(())
                    .unwrap();
                let gateway = &self.gateway;
                let asking = async {
                    if has_left(connection.as_ref()).await {
                        *connection = Some(connect(gateway).await);
                    }
                    let requests = connection.as_mut().unwrap();
                    exchange(requests, request).await
                };
                let patient = async { tokio::time::timeout(PATIENCE, asking).await };
                let answer = gateway.runtime.block_on(patient);
                answer.expect("an answer comes in time")
            }
        }
    }
}

async fn connect(gateway: &Gateway) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(gateway.api).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(gateway.client_tls());
    let name = "localhost".try_into().unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    gateway.runtime.spawn(connection);
    requests
}

/// Whether there is no connection, or the gateway has ended it in good order, as it does after many requests.
async fn has_left(connection: Option<&h2::client::SendRequest<Bytes>>) -> bool {
    let Some(requests) = connection else {
        return true;
    };
    let ready = requests.clone().ready().await;
    ready.is_err_and(|error| error.reason() == Some(h2::Reason::NO_ERROR))
}

/// An answer that is broken off must not harm the connection.
async fn exchange(
    requests: &mut h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
) -> Sight {
    let ready = requests.clone().ready().await;
    let mut ready = ready.expect("the connection goes on, whatever upstreams send");
    let (response, _) = ready.send_request(request, true).unwrap();
    let response = response.await.expect("an answer");
    let (head, mut body) = response.into_parts();
    let fields = head.headers.iter();
    let mut sight = Sight {
        status: head.status.as_u16(),
        fields: fields
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        is_whole: true,
        ..Sight::default()
    };
    while let Some(part) = body.data().await {
        match part {
            Ok(part) => {
                drop(body.flow_control().release_capacity(part.len()));
                sight.body.extend_from_slice(&part);
            }
            Err(error) => {
                assert!(error.is_reset(), "only the stream ends: {error}");
                sight.is_whole = false;
                break;
            }
        }
    }
    sight
}

/// Reads one answer; says whether the connection goes on.
fn read_answer(
    stream: &mut TcpStream,
    is_head: bool,
    is_old: bool,
    asked: impl Fn() -> String,
) -> (Sight, bool) {
    let mut received = Vec::new();
    let mut sight = Sight::default();
    loop {
        let end = loop {
            let end = received.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            let goes_on = read_more(stream, &mut received);
            let begun = received.escape_ascii().to_string();
            assert!(goes_on, "{}: a whole head, not {begun:?}", asked());
        };
        let head: Vec<u8> = received.drain(..end + 4).collect();
        let (status, fields) = read_head(&head[..end]);
        if status >= 200 {
            sight.status = status;
            sight.fields = fields;
            break;
        }
        assert!(!is_old, "no interim answers for HTTP/1.0");
        assert_ne!(status, 101, "no upgrade");
        sight.interim.push(status);
    }
    let value = |name: &str| -> Option<String> {
        let mut all = sight.fields.iter().filter(|field| field.0 == name);
        let value = all
            .next()
            .map(|field| String::from_utf8(field.1.clone()).unwrap());
        assert!(all.next().is_none(), "{name} once: {:?}", sight.fields);
        value
    };
    let (length, coding) = (value("content-length"), value("transfer-encoding"));
    assert!(length.is_none() || coding.is_none(), "one framing");
    assert!(coding.is_none() || !is_old, "no chunks for HTTP/1.0");
    assert!(
        coding.as_deref().is_none_or(|coding| coding == "chunked"),
        "chunked"
    );
    let says_close = value("connection").is_some_and(|value| value == "close");
    let is_bodiless = is_head || sight.status == 204 || sight.status == 304;
    if sight.status == 204 || sight.status == 304 {
        assert!(
            length.is_none() && coding.is_none(),
            "no framing of nothing"
        );
    }
    let ended = if is_bodiless {
        Some(0)
    } else if let Some(length) = length {
        let length = length.parse().unwrap();
        while received.len() < length && read_more(stream, &mut received) {}
        sight.body = received.get(..length).unwrap_or(&received).to_vec();
        (received.len() >= length).then_some(length)
    } else if coding.is_some() {
        read_chunks(stream, &mut received, &mut sight.body)
    } else {
        assert!(says_close || is_old, "a body until the end says so");
        while read_more(stream, &mut received) {}
        sight.body.clone_from(&received);
        Some(received.len())
    };
    sight.is_whole = ended.is_some();
    let rest = received.split_off(ended.unwrap_or(received.len()));
    assert!(
        rest.is_empty(),
        "nothing after the answer: {:?}",
        rest.escape_ascii().to_string()
    );
    let stays = sight.is_whole && !says_close && !is_old;
    if !stays {
        let goes_on = sight.is_whole && read_more(stream, &mut received);
        assert!(!goes_on, "the connection ends after the answer");
    }
    (sight, stays)
}

/// The status and the fields of a head, each line as RFC 9112 has it.
fn read_head(head: &[u8]) -> (u16, Vec<(String, Vec<u8>)>) {
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let shown = head.escape_ascii().to_string();
    assert!(line.starts_with(b"HTTP/1.1 "), "a version: {shown}");
    let status = str::from_utf8(&line[9..12]).unwrap().parse().unwrap();
    let mut fields = Vec::new();
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or_else(|| panic!("a colon: {shown}")));
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        assert!(
            !name.is_empty() && name.iter().all(is_part),
            "a name: {shown}"
        );
        assert!(value.iter().all(is_text), "a value: {shown}");
        let name = str::from_utf8(name).unwrap().to_ascii_lowercase();
        fields.push((name, value[1..].trim_ascii().to_vec()));
    }
    (status, fields)
}

/// Reads chunks without extensions and trailers; returns where they end in what was received.
fn read_chunks(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    body: &mut Vec<u8>,
) -> Option<usize> {
    let mut at = 0;
    loop {
        let end = loop {
            let end = received[at..]
                .windows(2)
                .position(|window| window == b"\r\n");
            match end {
                Some(end) => break at + end,
                None if read_more(stream, received) => {}
                None => return None,
            }
        };
        let size = str::from_utf8(&received[at..end]).unwrap();
        let size = usize::from_str_radix(size, 16).expect("a size without extensions");
        let start = end + 2;
        while received.len() < start + size + 2 && read_more(stream, received) {}
        let content = received.get(start..start + size);
        body.extend_from_slice(content.unwrap_or_else(|| &received[start.min(received.len())..]));
        let behind = received.get(start + size..start + size + 2)?;
        assert_eq!(behind, b"\r\n", "the end of a chunk");
        at = start + size + 2;
        if size == 0 {
            return Some(at);
        }
    }
}
