//! The head of an answer as the client reads it, made anew from what the upstream said: one table for both ways that requests
//! are passed on.

use http::HeaderName;
use http::StatusCode;
use http::Version;
use http::header;
use pingora::Error;
use pingora::ErrorType;
use pingora::http::ResponseHeader;

/// Fields of an answer that are between two neighbours only, or say what no client needs to know.
static DROPPED: [HeaderName; 7] = [
    header::SERVER,
    HeaderName::from_static("x-powered-by"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
];
/// Fields of one value, by which two readers could understand an answer differently.
static SINGLE: [HeaderName; 9] = [
    header::AGE,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::RETRY_AFTER,
];
/// Digits of the longest length.
const LENGTH_DIGITS_MAX: usize = 18;

/// Refuses an answer that could be read in two ways, or that answers another request.
///
/// # Errors
/// Of the upstream: the client gets a 502.
pub(super) fn check(received: &ResponseHeader, may_upgrade: bool) -> pingora::Result<()> {
    match fault(received, may_upgrade) {
        None => Ok(()),
        Some(fault) => Err(Error::explain(ErrorType::InvalidHTTPHeader, fault).into_up()),
    }
}

/// What is wrong with an answer.
fn fault(received: &ResponseHeader, may_upgrade: bool) -> Option<&'static str> {
    if !(100..600).contains(&received.status.as_u16()) {
        return Some("the status is none of HTTP");
    }
    if received.status == StatusCode::SWITCHING_PROTOCOLS && !may_upgrade {
        return Some("an upgrade that was not requested");
    }
    if received.version != Version::HTTP_10 && received.version != Version::HTTP_11 {
        return Some("the version is none of HTTP/1");
    }
    framing_fault(received).or_else(|| {
        let is_doubled = |name: &HeaderName| {
            let mut values = received.headers.get_all(name).iter();
            let first = values.next();
            values.any(|value| Some(value) != first)
        };
        let doubled = SINGLE.iter().any(is_doubled);
        doubled.then_some("a field of one value has two")
    })
}

fn framing_fault(received: &ResponseHeader) -> Option<&'static str> {
    let mut lengths = received.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let is_number = !digits.is_empty()
            && digits.len() <= LENGTH_DIGITS_MAX
            && digits.iter().all(u8::is_ascii_digit);
        if !is_number || lengths.next().is_some() {
            return Some("not one length");
        }
    }
    let mut codings = received.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || codings.next().is_some() || received.version == Version::HTTP_10 {
            return Some("a coding other than chunked");
        }
    }
    None
}

/// Whether an answer of this status has neither a body nor framing.
fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// Which fields of an answer are left out: what is between the upstream and the gateway only, and what says too much.
pub(super) struct FieldFilter {
    named: Vec<HeaderName>,
    is_upgrade: bool,
    is_bodiless: bool,
}

impl FieldFilter {
    pub(super) fn of(received: &ResponseHeader) -> Self {
        let named = received.headers.get_all(header::CONNECTION).iter();
        let named = named
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name: &HeaderName| {
                *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING
            });
        Self {
            named: named.collect(),
            is_upgrade: received.status == StatusCode::SWITCHING_PROTOCOLS,
            is_bodiless: is_bodiless(received.status),
        }
    }

    pub(super) fn out(&self, name: &HeaderName) -> bool {
        if *name == header::UPGRADE {
            return !self.is_upgrade;
        }
        let is_framing = *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
        *name == header::CONNECTION
            || (is_framing && self.is_bodiless)
            || DROPPED.contains(name)
            || self.named.contains(name)
    }
}

/// Makes a head anew in its place.
pub(super) fn clean(response: &mut ResponseHeader) -> pingora::Result<()> {
    let left = FieldFilter::of(response);
    let all = response.headers.keys();
    let there: Vec<HeaderName> = all.filter(|name| left.out(name)).cloned().collect();
    for name in &there {
        response.remove_header(name);
    }
    finish(response)
}

/// What every head of an answer has in common.
pub(super) fn finish(response: &mut ResponseHeader) -> pingora::Result<()> {
    response.set_version(Version::HTTP_11);
    for name in &SINGLE {
        let values = response.headers.get_all(name).iter().count();
        if values > 1
            && let Some(value) = response.headers.get(name).cloned()
        {
            response.insert_header(name, value)?;
        }
    }
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        response.insert_header(header::CONNECTION, "upgrade")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(status: u16, fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    type Row = (&'static str, u16, &'static [(&'static str, &'static str)]);

    #[test]
    fn answers_of_one_meaning_are_passed_on() {
        let good: [Row; 8] = [
            ("plain", 200, &[]),
            ("a length", 200, &[("Content-Length", "3")]),
            ("chunks", 200, &[("Transfer-Encoding", "Chunked")]),
            ("other status", 299, &[]),
            ("no content", 204, &[("Content-Length", "0")]),
            ("cookies", 200, &[("Set-Cookie", "a"), ("Set-Cookie", "b")]),
            (
                "the same type",
                200,
                &[("Content-Type", "a/b"), ("Content-Type", "a/b")],
            ),
            ("hints", 103, &[("Link", "x")]),
        ];
        for (name, status, fields) in good {
            assert_eq!(fault(&received(status, fields), false), None, "{name}");
        }
    }

    #[test]
    fn answers_that_can_be_read_in_two_ways_are_refused() {
        let bad: [Row; 16] = [
            ("status", 600, &[]),
            ("upgrade", 101, &[("Upgrade", "websocket")]),
            (
                "length twice",
                200,
                &[("Content-Length", "3"), ("Content-Length", "3")],
            ),
            (
                "two lengths",
                200,
                &[("Content-Length", "3"), ("Content-Length", "4")],
            ),
            ("a list of lengths", 200, &[("Content-Length", "3, 3")]),
            ("a signed length", 200, &[("Content-Length", "+3")]),
            ("no length", 200, &[("Content-Length", "")]),
            ("a hexadecimal length", 200, &[("Content-Length", "0x3")]),
            (
                "an endless length",
                200,
                &[("Content-Length", "9999999999999999999")],
            ),
            ("a length of nothing", 204, &[("Content-Length", "x")]),
            (
                "an empty coding",
                200,
                &[("Transfer-Encoding", ", chunked")],
            ),
            (
                "two codings",
                200,
                &[("Transfer-Encoding", "gzip, chunked")],
            ),
            ("a coding alone", 200, &[("Transfer-Encoding", "gzip")]),
            (
                "chunked twice",
                200,
                &[
                    ("Transfer-Encoding", "chunked"),
                    ("Transfer-Encoding", "chunked"),
                ],
            ),
            (
                "two types",
                200,
                &[("Content-Type", "a/b"), ("Content-Type", "c/d")],
            ),
            ("two places", 302, &[("Location", "/a"), ("Location", "/b")]),
        ];
        for (name, status, fields) in bad {
            assert!(fault(&received(status, fields), false).is_some(), "{name}");
        }
        let mut old = received(200, &[("Transfer-Encoding", "chunked")]);
        old.set_version(Version::HTTP_10);
        assert!(fault(&old, false).is_some(), "chunks of HTTP/1.0");
        assert_eq!(
            fault(&received(101, &[]), true),
            None,
            "a requested upgrade"
        );
    }

    #[test]
    fn answers_are_cleaned() {
        let fields = [
            ("Server", "Secret/1.0"),
            ("X-Powered-By", "x"),
            ("Connection", "close, X-Hop, Content-Length"),
            ("X-Hop", "y"),
            ("Keep-Alive", "timeout=5"),
            ("Trailer", "X"),
            ("Upgrade", "h2c"),
            ("Proxy-Authenticate", "Basic"),
            ("Content-Length", "3"),
            ("Content-Type", "a/b"),
            ("Content-Type", "a/b"),
        ];
        // status, what is left
        let rows: [(u16, &[&str]); 5] = [
            (200, &["content-length", "content-type"]),
            (204, &["content-type"]),
            (304, &["content-type"]),
            (103, &["content-type"]),
            (101, &["connection", "content-type", "upgrade"]),
        ];
        for (status, expected) in rows {
            let mut response = received(status, &fields);
            response.set_version(Version::HTTP_10);
            clean(&mut response).unwrap();
            let mut left: Vec<&str> = response
                .headers
                .iter()
                .map(|field| field.0.as_str())
                .collect();
            left.sort_unstable();
            assert_eq!(left, expected, "{status}");
            assert_eq!(response.version, Version::HTTP_11, "{status}");
        }
    }
}
