//! The head of a request as it was sent: Pingora repairs what it can before anybody sees it, and what was repaired is what
//! must be judged.

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Version;
use http::header;
use pingora::ErrorType;
use pingora::OrErr;
use pingora::protocols::http::ServerSession;

use crate::listener::connection_lifecycle;
use crate::listener::request_tracker::Framing;

/// What the handler reads of the head of a request, while the session reads its body.
#[derive(Debug)]
pub(super) struct SentHead {
    pub(super) method: Method,
    pub(super) target: Vec<u8>,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
}

/// The head of the request that the session is at.
pub(super) fn read_request_head(session: &ServerSession) -> pingora::Result<SentHead> {
    let head = session.req_header();
    let mut headers = head.headers.clone();
    let field = |value: &[u8]| {
        HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "not a field value")
    };
    // The authority of HTTP/2 is the `Host` it stands for (RFC 9113 section 8.3.1).
    if session.is_http2()
        && !headers.contains_key(header::HOST)
        && let Some(authority) = head.uri.authority()
    {
        headers.insert(header::HOST, field(authority.as_str().as_bytes())?);
    }
    // Pingora takes the length away where there are chunks, too.
    if headers.contains_key(header::TRANSFER_ENCODING)
        && let Some(session) = session.as_http1()
        && let Some(length) = first_content_length(&session.get_headers_raw_bytes())
    {
        headers.insert(header::CONTENT_LENGTH, field(length)?);
    }
    // Framing that the body contradicts is refused like framing that contradicts itself: this is a second coding.
    if !session.is_http2() && connection_lifecycle::is_malformed() {
        headers.append(header::TRANSFER_ENCODING, field(b"malformed")?);
    }
    // Pingora encodes what must not be in a target, and keeps a part of it alone.
    let sent = if session.is_http2() {
        None
    } else {
        connection_lifecycle::target()
    };
    let target = sent.unwrap_or_else(|| head.raw_path().to_vec());
    Ok(SentHead {
        method: head.method.clone(),
        target,
        version: head.version,
        headers,
    })
}

/// How the body of a request of HTTP/1 is framed, as Pingora reads it. Framing of two meanings is refused before that.
pub(super) fn body_framing(headers: &HeaderMap) -> Framing {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Framing::Chunked;
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Framing::Length(length.unwrap_or(0))
}

/// The value of the first `Content-Length`.
fn first_content_length(raw: &[u8]) -> Option<&[u8]> {
    raw.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|it| *it == b':')?;
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
    fn the_length_that_was_taken_away_is_found() {
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
