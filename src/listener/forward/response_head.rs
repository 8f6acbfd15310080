//! Makes the response head for the client anew from that of the upstream: one set of rules for both ways of forwarding.

use http::HeaderName;
use http::StatusCode;
use http::Version;
use http::header;
use pingora::Error;
use pingora::ErrorType;
use pingora::http::ResponseHeader;

use crate::listener::forward::usual_framing::unusual_framing;

/// Fields that are hop-by-hop, or that disclose the software of the upstream.
static DROPPED: [HeaderName; 8] = [
    header::SERVER,
    HeaderName::from_static("x-powered-by"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
];
/// Fields with a single value. Two readers could pick different ones if there were two.
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
/// Digits in a `Content-Length`.
const LENGTH_DIGITS_MAX: usize = 18;

/// Rejects a response that two readers could understand differently, or an upgrade that was not requested.
///
/// # Errors
/// An error of the upstream: the client gets a 502.
pub(super) fn check_response(received: &ResponseHeader, may_upgrade: bool) -> pingora::Result<()> {
    match find_fault(received, may_upgrade) {
        None => Ok(()),
        Some(fault) => Err(Error::explain(ErrorType::InvalidHTTPHeader, fault).into_up()),
    }
}

/// Why a response is rejected.
fn find_fault(received: &ResponseHeader, may_upgrade: bool) -> Option<&'static str> {
    if !(100..600).contains(&received.status.as_u16()) {
        return Some("invalid status code");
    }
    if received.status == StatusCode::SWITCHING_PROTOCOLS && !may_upgrade {
        return Some("unrequested upgrade");
    }
    if received.version != Version::HTTP_10 && received.version != Version::HTTP_11 {
        return Some("unsupported HTTP version");
    }
    find_framing_fault(received).or_else(|| {
        let is_doubled = |name: &HeaderName| {
            let mut values = received.headers.get_all(name).iter();
            let first = values.next();
            values.any(|value| Some(value) != first)
        };
        let doubled = has_repeated_fields(received) && SINGLE.iter().any(is_doubled);
        doubled.then_some("conflicting values of a single-value field")
    })
}

fn find_framing_fault(received: &ResponseHeader) -> Option<&'static str> {
    let mut lengths = received.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let is_number = !digits.is_empty()
            && digits.len() <= LENGTH_DIGITS_MAX
            && digits.iter().all(u8::is_ascii_digit);
        if !is_number || lengths.next().is_some() {
            return Some("invalid Content-Length");
        }
    }
    let mut codings = received.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || codings.next().is_some() || received.version == Version::HTTP_10 {
            return Some("unsupported Transfer-Encoding");
        }
    }
    None
}

/// Whether any field occurs more than once. Few responses have such a field.
fn has_repeated_fields(response: &ResponseHeader) -> bool {
    response.headers.len() > response.headers.keys_len()
}

/// Whether a response of this status has neither body nor framing fields.
fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// Decides which fields of a response are removed: hop-by-hop ones, and those that disclose too much.
pub(super) struct FieldFilter {
    named: Vec<HeaderName>,
    is_upgrade: bool,
    is_bodiless: bool,
}

impl FieldFilter {
    pub(super) fn for_response(received: &ResponseHeader) -> Self {
        let named = received.headers.get_all(header::CONNECTION).iter();
        // Names are looked for in bytes: one that is malformed must not hide the others.
        let named = named
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name: &HeaderName| {
                *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING
            });
        Self {
            named: named.collect(),
            is_upgrade: received.status == StatusCode::SWITCHING_PROTOCOLS,
            is_bodiless: is_bodiless(received.status),
        }
    }

    pub(super) fn removes(&self, name: &HeaderName) -> bool {
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

/// Makes a head anew in place.
pub(super) fn clean_head(response: &mut ResponseHeader) -> pingora::Result<()> {
    let filter = FieldFilter::for_response(response);
    let all = response.headers.keys();
    let removed: Vec<HeaderName> = all.filter(|name| filter.removes(name)).cloned().collect();
    for name in &removed {
        response.remove_header(name);
    }
    normalize(response)
}

/// Sets what all response heads have in common: the version, one value per single-value field, framing in its usual form, `Connection`
/// of an upgrade.
pub(super) fn normalize(response: &mut ResponseHeader) -> pingora::Result<()> {
    response.set_version(Version::HTTP_11);
    let is_any_repeated = has_repeated_fields(response);
    for name in SINGLE.iter().filter(|_| is_any_repeated) {
        let values = response.headers.get_all(name).iter().count();
        if values > 1
            && let Some(value) = response.headers.get(name).cloned()
        {
            response.insert_header(name, value)?;
        }
    }
    for (name, value) in unusual_framing(&response.headers) {
        response.insert_header(name, value)?;
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
    fn unambiguous_responses_are_forwarded() {
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
            assert_eq!(find_fault(&received(status, fields), false), None, "{name}");
        }
    }

    #[test]
    fn ambiguous_responses_are_rejected() {
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
            assert!(
                find_fault(&received(status, fields), false).is_some(),
                "{name}"
            );
        }
        let mut old = received(200, &[("Transfer-Encoding", "chunked")]);
        old.set_version(Version::HTTP_10);
        assert!(find_fault(&old, false).is_some(), "chunks of HTTP/1.0");
        assert_eq!(
            find_fault(&received(101, &[]), true),
            None,
            "a requested upgrade"
        );
    }

    #[test]
    fn a_malformed_name_in_connection_hides_no_other() {
        let mut response = received(200, &[("X-Hop", "1")]);
        let named = http::HeaderValue::from_bytes(b"X-Hop, close\xad").unwrap();
        response.append_header("connection", named).unwrap();
        clean_head(&mut response).unwrap();
        assert!(response.headers.is_empty(), "{:?}", response.headers);
    }

    #[test]
    fn framing_has_its_usual_form() {
        let rows = [
            ("content-length", "003", "3"),
            ("transfer-encoding", "Chunked", "chunked"),
        ];
        for (name, value, expected) in rows {
            let mut response = received(200, &[(name, value)]);
            clean_head(&mut response).unwrap();
            assert_eq!(response.headers[name], expected, "{value}");
        }
    }

    #[test]
    fn response_heads_are_cleaned() {
        let fields = [
            ("Server", "Secret/1.0"),
            ("X-Powered-By", "x"),
            ("Connection", "close, X-Hop, Content-Length"),
            ("X-Hop", "y"),
            ("Keep-Alive", "timeout=5"),
            ("Trailer", "X"),
            ("Upgrade", "h2c"),
            ("Proxy-Authenticate", "Basic"),
            ("Proxy-Authentication-Info", "x"),
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
            clean_head(&mut response).unwrap();
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
