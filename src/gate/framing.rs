//! The first look at a request: sizes, Host, and framing that could be read in two ways.

use http::HeaderMap;
use http::Version;
use http::header::CONNECTION;
use http::header::CONTENT_LENGTH;
use http::header::HOST;
use http::header::TRANSFER_ENCODING;

use crate::gate::config::Limits;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::gate::route;

/// Refuses what is too large or ambiguous.
pub(super) fn check(head: &RequestHead<'_>, limits: &Limits) -> Result<(), Refusal> {
    if head.target.len() > limits.target_bytes {
        return Err(Refusal::from(Code::TargetTooLong));
    }
    let sizes = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len().saturating_add(value.len()));
    let bytes = sizes.fold(0_usize, usize::saturating_add);
    if bytes > limits.header_bytes || head.headers.len() > limits.header_count {
        return Err(Refusal::from(Code::HeadersTooLarge));
    }
    // Some servers read `_` and `-` as the same, and would take such a field for another one.
    if head.headers.keys().any(|it| it.as_str().contains('_')) {
        let refusal = Refusal::from(Code::MalformedRequest);
        return Err(refusal.hint("Send header names without underscores."));
    }
    if names_vital_fields(head.headers) {
        return Err(Refusal::from(Code::MalformedRequest));
    }
    check_host(head)?;
    check_coding(head.headers)?;
    let length = content_length(head.headers)?;
    if length.is_some() && head.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Refusal::from(Code::MalformedRequest));
    }
    Ok(())
}

/// Refuses a body that is announced to be larger than allowed.
pub(super) fn check_length(headers: &HeaderMap, bytes_max: u64) -> Result<(), Refusal> {
    if content_length(headers)?.is_some_and(|it| it > bytes_max) {
        return Err(Refusal::from(Code::BodyTooLarge));
    }
    Ok(())
}

fn check_host(head: &RequestHead<'_>) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let is_good = match (hosts.next(), hosts.next()) {
        (None, _) => head.version != Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok_and(route::is_authority),
        (Some(_), Some(_)) => false,
    };
    is_good
        .then_some(())
        .ok_or_else(|| Refusal::from(Code::MalformedHost))
}

/// Whether `Connection` would take fields away that say who asks for what, behind whoever believes it.
fn names_vital_fields(headers: &HeaderMap) -> bool {
    const VITAL: &[&[u8]] = &[
        b"host",
        b"authorization",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
    ];
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|it| it.as_bytes().split(|it| *it == b','))
        .map(<[u8]>::trim_ascii)
        .any(|it| VITAL.iter().any(|vital| vital.eq_ignore_ascii_case(it)))
}

/// One coding, `chunked`, and nothing else: whoever reads a list of codings otherwise sees another body.
fn check_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_good = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    };
    is_good
        .then_some(())
        .ok_or_else(|| Refusal::from(Code::MalformedRequest))
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
    if text.is_empty() || !text.bytes().all(|it| it.is_ascii_digit()) {
        return Err(malformed());
    }
    // So many digits that it does not fit is larger than any limit.
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// Whether the framing says anything about a body, were it only that it is empty.
pub(super) fn has_length(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// Whether the framing announces a body that certainly holds something.
pub(super) fn is_not_empty(headers: &HeaderMap) -> bool {
    content_length(headers).is_ok_and(|it| it.is_some_and(|length| length > 0))
}
