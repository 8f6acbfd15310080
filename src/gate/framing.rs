//! The first look at a request: sizes, Host, and framing that could be read in two ways.

use http::HeaderMap;
use http::HeaderValue;
use http::Version;
use http::header::CONNECTION;
use http::header::CONTENT_LENGTH;
use http::header::EXPECT;
use http::header::HOST;
use http::header::TRANSFER_ENCODING;

use crate::gate::config::Limits;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::gate::request_target;
use crate::public_text;

/// Refuses what is too large or ambiguous. Returns the length of the body in bytes, where it is announced.
pub(super) fn check_head(head: &RequestHead<'_>, limits: &Limits) -> Result<Option<u64>, Refusal> {
    if head.target.len() > limits.target_bytes {
        return Err(Refusal::from(Code::TargetTooLong));
    }
    let mut bytes = 0_usize;
    let mut has_underscore = false;
    let mut takes_vital = false;
    let mut is_odd_coding = false;
    let mut expects_continue = false;
    let mut hosts = 0_usize;
    let mut codings = 0_usize;
    // One look at every field costs less than a look-up for each name.
    for (name, value) in head.headers {
        let text = name.as_str();
        bytes = bytes.saturating_add(text.len()).saturating_add(value.len());
        has_underscore |= text.as_bytes().contains(&b'_');
        if *name == HOST {
            hosts = hosts.saturating_add(1);
        } else if *name == CONNECTION {
            takes_vital |= names_vital_fields(value);
        } else if *name == TRANSFER_ENCODING {
            // One coding, `chunked`, and nothing else: a server that reads a list of codings in another way sees another body.
            codings = codings.saturating_add(1);
            is_odd_coding |= codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else if *name == EXPECT {
            expects_continue |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        }
    }
    if bytes > limits.header_bytes || head.headers.len() > limits.header_count {
        return Err(Refusal::from(Code::HeadersTooLarge));
    }
    // Some servers read `_` and `-` as the same, and would take such a field for another one.
    if has_underscore {
        let refusal = Refusal::from(Code::MalformedRequest);
        return Err(refusal.hint(public_text!("Send header names without underscores.")));
    }
    if takes_vital {
        return Err(Refusal::from(Code::MalformedRequest));
    }
    // The HTTP/2 server below sends no interim responses. Without a final one the client would wait for a 100.
    if expects_continue && head.version == Version::HTTP_2 {
        return Err(Refusal::from(Code::ExpectationFailed));
    }
    let is_good = match hosts {
        0 => head.version != Version::HTTP_11,
        1 => head
            .headers
            .get(HOST)
            .is_some_and(|header| header.to_str().is_ok_and(request_target::is_authority)),
        _ => false,
    };
    if !is_good {
        return Err(Refusal::from(Code::MalformedHost));
    }
    if is_odd_coding {
        return Err(Refusal::from(Code::MalformedRequest));
    }
    let length = content_length(head.headers)?;
    if length.is_some() && codings > 0 {
        return Err(Refusal::from(Code::MalformedRequest));
    }
    Ok(length)
}

/// Refuses a body that is announced to be larger than allowed.
pub(super) fn check_content_length(
    content_length: Option<u64>,
    bytes_max: u64,
) -> Result<(), Refusal> {
    if content_length.is_some_and(|length| length > bytes_max) {
        return Err(Refusal::from(Code::BodyTooLarge));
    }
    Ok(())
}

/// Whether `Connection` names fields that a proxy behind this one would then remove, and with them who asks for what.
fn names_vital_fields(connection: &HeaderValue) -> bool {
    const VITAL: &[&[u8]] = &[
        b"host",
        b"authorization",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
    ];
    let named = connection.as_bytes().split(|byte| *byte == b',');
    named
        .map(<[u8]>::trim_ascii)
        .any(|name| VITAL.iter().any(|vital| vital.eq_ignore_ascii_case(name)))
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedRequest);
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_not_ascii| malformed())?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    // So many digits that it does not fit is larger than any limit.
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// Whether the framing says anything about a body, were it only that it is empty.
pub(super) fn has_body_framing(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// Whether the framing announces a body that certainly holds something.
pub(super) fn announces_content(headers: &HeaderMap) -> bool {
    content_length(headers)
        .is_ok_and(|content_length| content_length.is_some_and(|length| length > 0))
}
