//! Which media types are taken and sent (RFC 9110 sections 8.3 and 12.5.1).

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header::ACCEPT;
use http::header::CONTENT_TYPE;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;

/// The media types of the API.
pub(super) const BACKUP: &str = "application/vnd.com.sun.cloud.Backup+json";
pub(super) const BACKUPS: &str = "application/vnd.com.sun.cloud.Backups+json";
pub(super) const VM: &str = "application/vnd.com.sun.cloud.VM+json";
pub(super) const STATUS: &str = "application/vnd.com.sun.cloud.Status+json";
pub(super) const STATUSES: &str = "application/vnd.com.sun.cloud.Statuses+json";
pub(super) const VERSION: &str = "application/vnd.com.sun.cloud.common.Version+json";
pub(super) const MESSAGES: &str = "application/vnd.com.sun.cloud.common.Messages+json";
pub(super) const EVENTS: &str = "text/event-stream";
pub(super) const PROBLEM: &str = "application/problem+json";
pub(super) const JSON: &str = "application/json";
const BACKUP_SLIP: &str = "application/vnd.com.sun.Backup.VM+json";
const FORM: &str = "application/x-www-form-urlencoded";

/// A type that can be sent, with other types whose mention asks for it too.
struct Offer {
    sent: &'static str,
    aliases: &'static [&'static str],
}

/// What a request is about, as far as the type of its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// One backup.
    Backup,
    /// The Status of a change.
    Change,
    /// A Status that is read, once or as a stream of events.
    Status,
    /// Anything else, in a type of its own.
    Own(&'static str),
}

/// The type to send: the one that ranks highest; the first offer where several do.
pub(super) fn accept(
    headers: &HeaderMap,
    reply: Reply,
    strict: bool,
) -> Result<&'static str, Refusal> {
    let (sent, aliases): (_, &[_]) = match (reply, strict) {
        // Deviation D3: the source says "Response Message Body: VM".
        (Reply::Backup, false) => (BACKUP, &[VM]),
        (Reply::Backup, true) => (BACKUP, &[]),
        // Deviation D5: the source's own PUT asks for a Backup and is answered with a Status.
        (Reply::Change, false) => (STATUS, &[BACKUP, VM, MESSAGES]),
        (Reply::Change, true) => (STATUS, &[MESSAGES]),
        (Reply::Status, _) => (STATUS, &[]),
        (Reply::Own(own), _) => (own, &[]),
    };
    let json = Offer {
        sent: JSON,
        aliases: &[],
    };
    let ranges = ranges(headers.get_all(ACCEPT).iter())?;
    let own = Offer { sent, aliases };
    // Deviation D21. A stream is for those who name it: `text/*` is no wish for one.
    let is_named = || ranges.iter().any(|it| it.fits(EVENTS) == Some(2));
    let chosen = if reply == Reply::Status && is_named() {
        let events = Offer {
            sent: EVENTS,
            aliases: &[],
        };
        best(&ranges, &[own, json, events])
    } else {
        best(&ranges, &[own, json])
    };
    chosen
        .ok_or_else(|| Refusal::from(Code::NotAcceptable).hint(format!("Accept {sent} or {JSON}.")))
}

/// The type of an error: the problem type only where it is preferred. Errors are sent whatever Accept says.
pub(super) fn error_type<'a>(accept: impl Iterator<Item = &'a HeaderValue>) -> &'static str {
    let offers = [MESSAGES, PROBLEM].map(|sent| Offer { sent, aliases: &[] });
    ranges(accept)
        .ok()
        .and_then(|it| best(&it, &offers))
        .unwrap_or(MESSAGES)
}

/// One media range of an Accept header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    /// Thousandths, 0..=1000.
    quality: u16,
}

impl Range<'_> {
    /// How exactly the range names the type: 2 wholly, 1 by its first half, 0 as anything.
    fn fits(&self, media: &str) -> Option<u8> {
        let (main, sub) = media.split_once('/')?;
        if self.main == "*" {
            Some(0)
        } else if !self.main.eq_ignore_ascii_case(main) {
            None
        } else if self.sub == "*" {
            Some(1)
        } else {
            self.sub.eq_ignore_ascii_case(sub).then_some(2)
        }
    }
}

fn best(ranges: &[Range<'_>], offers: &[Offer]) -> Option<&'static str> {
    if ranges.is_empty() {
        return offers.first().map(|it| it.sent);
    }
    let mut chosen = None;
    let mut rank = (0, 0);
    for offer in offers {
        let own = ranges
            .iter()
            .filter_map(|it| Some((it.fits(offer.sent)?, it.quality)))
            .max_by_key(|(exact, quality)| (*exact, *quality));
        let named = offer.aliases.iter().flat_map(|alias| {
            ranges
                .iter()
                .filter(|it| it.fits(alias) == Some(2))
                .map(|it| (2, it.quality))
        });
        for (exact, quality) in own.into_iter().chain(named) {
            if quality > 0 && (quality, exact) > rank {
                chosen = Some(offer.sent);
                rank = (quality, exact);
            }
        }
    }
    chosen
}

/// The media ranges in the values of `Accept`.
fn ranges<'a>(accept: impl Iterator<Item = &'a HeaderValue>) -> Result<Vec<Range<'a>>, Refusal> {
    let malformed = || Refusal::from(Code::MalformedAccept);
    let mut found = Vec::new();
    for value in accept {
        let text = value.to_str().map_err(|_not_ascii| malformed())?;
        for element in split_outside_quotes(text, b',') {
            let element = element.trim();
            if !element.is_empty() {
                found.push(range(element).ok_or_else(malformed)?);
            }
        }
    }
    Ok(found)
}

fn range(text: &str) -> Option<Range<'_>> {
    let mut parts = split_outside_quotes(text, b';');
    let (main, sub) = parts.next()?.trim().split_once('/')?;
    if !is_token(main) || !is_token(sub) || (main == "*" && sub != "*") {
        return None;
    }
    let mut quality = 1000;
    for parameter in parts {
        let (name, value) = parameter.trim().split_once('=')?;
        if name.eq_ignore_ascii_case("q") {
            quality = thousandths(value)?;
        } else if !is_token(name) || !(is_token(value) || is_quoted(value)) {
            return None;
        }
    }
    Some(Range { main, sub, quality })
}

/// A weight as RFC 9110 section 12.4.2 writes it: at most three digits after the point.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let mut part = 0_u16;
    let mut scale = 100_u16;
    for digit in decimals.bytes() {
        let digit = digit.checked_sub(b'0').filter(|it| *it < 10 && scale > 0)?;
        part = part.saturating_add(u16::from(digit).saturating_mul(scale));
        scale = scale.checked_div(10)?;
    }
    match (whole, part) {
        ("0", _) => Some(part),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

/// Splits at an ASCII separator that does not stand in a quoted string.
pub(super) fn split_outside_quotes(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = end_outside_quotes(text.as_bytes(), separator);
        let (part, after) = text.split_at_checked(end.unwrap_or(text.len()))?;
        rest = end.and_then(|_| after.get(1..));
        Some(part)
    })
}

/// Where the first separator stands that is not quoted.
fn end_outside_quotes(text: &[u8], separator: u8) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.iter().position(|it| {
        if escaped {
            escaped = false;
            return false;
        }
        match it {
            b'"' => quoted = !quoted,
            b'\\' if quoted => escaped = true,
            _ => return *it == separator && !quoted,
        }
        false
    })
}

fn is_token(text: &str) -> bool {
    let is_token_byte = |it: u8| {
        it.is_ascii_alphanumeric()
            || matches!(
                it,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
    };
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_quoted(text: &str) -> bool {
    text.len() >= 2 && text.starts_with('"') && text.ends_with('"')
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Form,
}

/// What a request with a body is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entity {
    /// A backup, to be made or changed.
    Backup,
    /// Name/value pairs. Deviation D15: also as a form, and also none at all.
    Pairs,
}

impl Entity {
    fn takes(self, strict: bool) -> &'static [(&'static str, Encoding)] {
        const TAKEN: &[(&str, Encoding)] = &[
            (BACKUP, Encoding::Json),
            (JSON, Encoding::Json),
            // Deviation D4: the slip in the source's PUT, which a strict request may not make.
            (BACKUP_SLIP, Encoding::Json),
        ];
        const PAIRS: &[(&str, Encoding)] = &[
            (JSON, Encoding::Json),
            (FORM, Encoding::Form),
            (BACKUP, Encoding::Json),
        ];
        match (self, strict) {
            (Self::Backup, false) => TAKEN,
            (Self::Backup, true) => TAKEN.get(..2).unwrap_or(TAKEN),
            (Self::Pairs, _) => PAIRS,
        }
    }
}

/// How the body is written; `None` when it does not say.
pub(super) fn content_type(
    headers: &HeaderMap,
    entity: Entity,
    strict: bool,
) -> Result<Option<Encoding>, Refusal> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let refusal = || unsupported(entity, strict);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(refusal());
    }
    let text = value.to_str().map_err(|_not_ascii| refusal())?;
    let mut parts = split_outside_quotes(text, b';');
    let media = parts.next().unwrap_or_default().trim();
    for parameter in parts.map(str::trim).filter(|it| !it.is_empty()) {
        let (name, value) = parameter.split_once('=').ok_or_else(refusal)?;
        let charset = value.trim_matches('"');
        if name.eq_ignore_ascii_case("charset") && !charset.eq_ignore_ascii_case("utf-8") {
            return Err(refusal());
        }
    }
    let mut taken = entity.takes(strict).iter();
    taken
        .find(|(known, _)| known.eq_ignore_ascii_case(media))
        .map(|(_, encoding)| Some(*encoding))
        .ok_or_else(refusal)
}

/// 415 naming what is taken: in `Accept` for PUT, in `Accept-Post` for POST; which it is the walk knows.
pub(super) fn unsupported(entity: Entity, strict: bool) -> Refusal {
    let taken: Vec<_> = entity.takes(strict).iter().map(|(name, _)| *name).collect();
    let list = taken.join(", ");
    Refusal::from(Code::UnsupportedMediaType)
        .hint(format!("Send one of {list}."))
        .with(ACCEPT, &list)
}

/// The header in which the answer to a POST names what is taken.
pub(super) const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

#[cfg(test)]
mod tests;
