//! The request target: taken apart, but neither normalised nor decoded twice.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::limits;
use crate::public_text;

/// A target taken apart, still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TargetParts<'a> {
    /// The path; `*` for the asterisk form.
    pub(super) path: &'a str,
    /// What follows the first `?`.
    pub(super) query: &'a str,
}

/// Takes the target apart: origin form, absolute form with http or https, or `*`.
pub(super) fn parse_target(target: &[u8]) -> Result<TargetParts<'_>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedTarget);
    let question = target.iter().position(|byte| *byte == b'?');
    let (before, query) = target
        .split_at_checked(question.unwrap_or(target.len()))
        .unwrap_or_default();
    let is_allowed = before.iter().all(|byte| is_target_byte(*byte))
        && query
            .iter()
            .all(|byte| is_target_byte(*byte) || is_browser_query_byte(*byte));
    let text = str::from_utf8(target).ok().filter(|_| is_allowed);
    let text = text.ok_or_else(malformed)?;
    if !is_well_encoded(text.as_bytes()) {
        return Err(malformed());
    }
    if text == "*" {
        return Ok(TargetParts {
            path: "*",
            query: "",
        });
    }
    let origin = if text.starts_with('/') {
        text
    } else {
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(malformed());
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or_else(malformed)?;
        if !is_authority(authority) {
            return Err(malformed());
        }
        path
    };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    // Brackets belong to IPv6 addresses. Browsers leave those of forms in queries as they are.
    // By bytes, which is quicker: every request passes here.
    if path.as_bytes().contains(&b'[') || path.as_bytes().contains(&b']') {
        return Err(malformed());
    }
    let path = if path.is_empty() { "/" } else { path };
    Ok(TargetParts { path, query })
}

/// Whether the byte may be in a target (RFC 3986 appendix A). Fragments are never sent.
const fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(
            byte,
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

/// Whether browsers leave this byte in a query although RFC 3986 does not allow it there (WHATWG URL, query percent-encode set).
const fn is_browser_query_byte(byte: u8) -> bool {
    matches!(byte, b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Whether a query has bytes that only browsers leave in it. Routes of this API refuse them; pass-through encodes them.
pub(super) fn is_browser_query(query: &str) -> bool {
    query.bytes().any(is_browser_query_byte)
}

/// The query with those bytes percent-encoded, so that every reader agrees on its target.
pub(super) fn encode_browser_query(query: &str) -> String {
    let mut encoded = String::with_capacity(query.len().saturating_add(16));
    for character in query.chars() {
        match character {
            '^' => encoded.push_str("%5E"),
            '`' => encoded.push_str("%60"),
            '{' => encoded.push_str("%7B"),
            '|' => encoded.push_str("%7C"),
            '}' => encoded.push_str("%7D"),
            other => encoded.push(other),
        }
    }
    encoded
}

/// Whether the text is a host with perhaps a port, and nothing else.
pub(super) fn is_authority(text: &str) -> bool {
    let is_port =
        |text: &str| text.parse::<u16>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Most are a name or an IPv4 address, which need no parser.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let colon = text.bytes().position(|byte| byte == b':');
    let (host, port) = text
        .split_at_checked(colon.unwrap_or(text.len()))
        .unwrap_or_default();
    if !host.is_empty() && host.bytes().all(is_plain) {
        return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    }
    let Ok(authority) = text.parse::<http::uri::Authority>() else {
        return false;
    };
    let host = authority.host();
    let port = text.strip_prefix(host).unwrap_or(text);
    !host.is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_well_encoded(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let Some([_, high, low, after @ ..]) = rest.get(at..) else {
            return false;
        };
        if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
            return false;
        }
        rest = after;
    }
    true
}

/// The decoded value of a query parameter that may be given once.
pub(super) fn query_parameter<'a>(
    query: &'a str,
    name: &'static str,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    let mut found = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key != name {
            continue;
        }
        if found.is_some() {
            let text = public_text!("The parameter must be given only once.");
            return Err(Refusal::says(Code::InvalidParameter, text).on(name));
        }
        found = Some(decode_form_value(value).ok_or_else(|| {
            let text = public_text!("The value is not valid UTF-8.");
            Refusal::says(Code::InvalidParameter, text).on(name)
        })?);
    }
    Ok(found)
}

/// Decodes a value as forms write it: `+` is a space. `None` when it is not UTF-8.
pub(super) fn decode_form_value(value: &str) -> Option<Cow<'_, str>> {
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
        return Some(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(value).decode_utf8().ok()
}

/// The `limit` parameter of a list.
pub(super) fn page_limit(query: &str) -> Result<u16, Refusal> {
    let Some(text) = query_parameter(query, "limit")? else {
        return Ok(limits::PAGE);
    };
    text.parse()
        .ok()
        .filter(|value| (1..=limits::PAGE_MAX).contains(value))
        .ok_or_else(|| {
            let most = limits::PAGE_MAX;
            let text = public_text!("The value must be from 1 to {most}.");
            Refusal::says(Code::InvalidParameter, text).on("limit")
        })
}
