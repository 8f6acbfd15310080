//! The request head as sent. Pingora repairs heads before the handler sees them, and the gate must judge what was sent.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Version;
use http::header;
use pingora::ErrorType;
use pingora::OrErr;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use crate::listener::connection_phase;
use crate::listener::request_tracker::BodyFraming;

/// A copy of the request head, which the handler reads while the session reads the body.
#[derive(Debug)]
pub(super) struct SentHead {
    pub(super) method: Method,
    pub(super) target: Vec<u8>,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
}

/// The head of the current request of the session.
pub(super) fn read_request_head(session: &ServerSession) -> pingora::Result<SentHead> {
    let head = session.req_header();
    let mut headers = head.headers.clone();
    let field = |value: &[u8]| {
        HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "invalid field value")
    };
    // In HTTP/2 the authority takes the place of `Host` (RFC 9113 section 8.3.1).
    if session.is_http2()
        && !headers.contains_key(header::HOST)
        && let Some(authority) = head.uri.authority()
    {
        headers.insert(header::HOST, field(authority.as_str().as_bytes())?);
    }
    // Pingora removes `Content-Length` next to `Transfer-Encoding`. Restored, so that the gate refuses the two framings.
    if headers.contains_key(header::TRANSFER_ENCODING)
        && let Some(session) = session.as_http1()
        && let Some(length) = first_content_length(&session.get_headers_raw_bytes())
    {
        headers.insert(header::CONTENT_LENGTH, field(length)?);
    }
    // A body that contradicts its framing is refused like contradicting framings: this adds a second coding.
    if !session.is_http2() && connection_phase::is_body_malformed() {
        headers.append(header::TRANSFER_ENCODING, field(b"malformed")?);
    }
    // Pingora percent-encodes bytes that are not allowed in a target, and drops parts of it.
    let sent = if session.is_http2() {
        None
    } else {
        connection_phase::received_target()
    };
    let target = sent.unwrap_or_else(|| http2_target(head));
    Ok(SentHead {
        method: head.method.clone(),
        target,
        version: head.version,
        headers,
    })
}

/// The target of a request of HTTP/2. One with a scheme that is not of the web is judged in absolute form, as over HTTP/1.1.
fn http2_target(head: &RequestHeader) -> Vec<u8> {
    let path = head.raw_path();
    let odd_scheme = head.uri.scheme_str().filter(|scheme| {
        !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http")
    });
    match odd_scheme {
        None => path.to_vec(),
        Some(scheme) => {
            let authority = head.uri.authority();
            let authority = authority.map_or("", http::uri::Authority::as_str);
            [scheme.as_bytes(), b"://", authority.as_bytes(), path].concat()
        }
    }
}

/// How the body of an HTTP/1 request is framed, as Pingora reads it. The gate refuses ambiguous framing before the body is read.
pub(super) fn body_framing(headers: &HeaderMap) -> BodyFraming {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return BodyFraming::Chunked;
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    BodyFraming::Length(length.unwrap_or(0))
}

/// Removes white space around field values. HTTP/1.1 allows and ignores it, HTTP/2 forbids it (RFC 9113 section 8.2.1), and the
/// HTTP/2 library hands it on.
pub(super) fn trim_field_values(head: &mut RequestHeader) -> pingora::Result<()> {
    let is_padded = |value: &HeaderValue| value.as_bytes().trim_ascii() != value.as_bytes();
    let padded = head.headers.iter().filter(|(_, value)| is_padded(value));
    let mut names: Vec<HeaderName> = padded.map(|(name, _)| name.clone()).collect();
    names.dedup();
    for name in names {
        let values: Vec<HeaderValue> = head.headers.get_all(&name).iter().cloned().collect();
        head.remove_header(&name);
        for value in values {
            let trimmed = HeaderValue::from_bytes(value.as_bytes().trim_ascii());
            let trimmed = trimmed.or_err(ErrorType::InvalidHTTPHeader, "invalid field value")?;
            head.append_header(name.clone(), trimmed)?;
        }
    }
    Ok(())
}

/// The value of the first `Content-Length`.
fn first_content_length(raw: &[u8]) -> Option<&[u8]> {
    raw.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, rest) = line.split_at_checked(colon)?;
        name.trim_ascii()
            .eq_ignore_ascii_case(b"content-length")
            .then(|| rest.get(1..).unwrap_or_default().trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_field_values_is_removed() {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        let sent = [
            ("accept", " a/b"),
            ("x-a", "1"),
            ("x-a", "2\t "),
            ("x-b", "c d"),
            ("x-c", " "),
        ];
        for (name, value) in sent {
            head.append_header(name, value).unwrap();
        }
        trim_field_values(&mut head).unwrap();
        let mut found: Vec<(&str, &str)> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        found.sort_unstable();
        let expected = [
            ("accept", "a/b"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-b", "c d"),
            ("x-c", ""),
        ];
        assert_eq!(found, expected, "no field is lost");
    }

    #[test]
    fn the_removed_content_length_is_found() {
        let rows: [(&[u8], Option<&[u8]>); 4] = [
            (
                b"PUT / HTTP/1.1\r\nContent-LENGTH: 11 \r\n\r\n",
                Some(b"11"),
            ),
            (b"PUT / HTTP/1.1\nContent-Length:\t3\n\n", Some(b"3")),
            (b"PUT / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\n", None),
            (b"PUT / HTTP/1.1\r\n\r\n", None),
        ];
        for (raw, expected) in rows {
            let text = String::from_utf8_lossy(raw);
            assert_eq!(first_content_length(raw), expected, "{text:?}");
        }
    }
}
