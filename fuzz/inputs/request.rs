//! Requests written as text: a request line, header fields, an empty line and a body.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Version;
use http::header;
use snapgate::gate::Body;
use snapgate::gate::BodyError;

/// `ann:secret`, who may do everything.
pub(crate) const ANN: &str = "Basic YW5uOnNlY3JldA==";

/// A token of `ann`, who made it for reading one VM.
pub(crate) const TOKEN: &str =
    "sg_ac8d5dec64e45c5035f3295c377fb2e70f0e423cc04d03e477970327c2bbd3c7f1592d10";

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: Vec<u8>,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
}

impl Request {
    /// One from `ann` with a version and a Host.
    pub(crate) fn of_ann(method: Method, target: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("example.com"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static(ANN));
        headers.insert(
            "x-cloud-client-specification-version",
            HeaderValue::from_static("0.1"),
        );
        Self {
            method,
            target: target.as_bytes().to_vec(),
            version: Version::HTTP_11,
            headers,
            body: None,
        }
    }

    /// The same with a header field added; `None` when the bytes cannot be a value at all.
    pub(crate) fn with(mut self, name: &'static str, value: &[u8]) -> Option<Self> {
        self.headers
            .append(name, HeaderValue::from_bytes(value).ok()?);
        Some(self)
    }

    /// The same with a body and its length.
    pub(crate) fn carrying(mut self, media: &'static str, body: &[u8]) -> Self {
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        self.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        self.body = (!body.is_empty()).then(|| Bytes::copy_from_slice(body));
        self
    }

    /// Reads a request as text. `None` for what no parser of HTTP would hand on.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let mut lines = Lines(data);
        let line = lines.next()?;
        let (method, rest) = split(line, b' ')?;
        let at = rest.iter().rposition(|byte| *byte == b' ')?;
        let (target, version) = (rest.get(..at)?, rest.get(at + 1..)?);
        let version = match version {
            b"HTTP/1.0" => Version::HTTP_10,
            b"HTTP/1.1" => Version::HTTP_11,
            b"HTTP/2" => Version::HTTP_2,
            _ => return None,
        };
        if target.is_empty() || target.iter().any(|byte| *byte == b' ' || *byte == 0) {
            return None;
        }
        let mut headers = HeaderMap::new();
        for line in lines.by_ref() {
            if line.is_empty() {
                break;
            }
            let (name, value) = split(line, b':')?;
            headers.append(
                HeaderName::from_bytes(name).ok()?,
                HeaderValue::from_bytes(value.trim_ascii()).ok()?,
            );
        }
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|content_length| content_length.as_bytes() != b"0")
            || headers.contains_key(header::TRANSFER_ENCODING);
        Some(Self {
            method: Method::from_bytes(method).ok()?,
            target: target.to_vec(),
            version,
            headers,
            body: announced.then(|| Bytes::copy_from_slice(lines.0)),
        })
    }
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// Lines that end with LF or CRLF; what is left after the last one taken is the body.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let (line, rest) = split(self.0, b'\n').unwrap_or((self.0, &[]));
        self.0 = rest;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// A body that counts how often it is read.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    bytes: Option<Bytes>,
    /// How often it was read, and the limit given.
    pub(crate) reads: Mutex<Vec<usize>>,
}

impl Sent {
    pub(crate) fn new(bytes: Option<Bytes>) -> Self {
        Self {
            bytes,
            reads: Mutex::default(),
        }
    }
}

#[async_trait]
impl Body for Sent {
    async fn read(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        self.reads.lock().unwrap().push(limit);
        let bytes = self.bytes.clone().unwrap_or_default();
        if bytes.len() > limit {
            return Err(BodyError::TooLarge);
        }
        Ok(bytes)
    }

    fn is_present(&self) -> bool {
        self.bytes.is_some()
    }
}
