//! Which media types are accepted and sent (RFC 9110 sections 8.3 and 12.5.1).

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header::ACCEPT;
use http::header::ACCEPT_ENCODING;
use http::header::CONTENT_ENCODING;
use http::header::CONTENT_RANGE;
use http::header::CONTENT_TYPE;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::public_text;

/// The media types of the API.
pub(super) const BACKUP: &str = "application/vnd.com.sun.cloud.Backup+json";
pub(super) const BACKUPS: &str = "application/vnd.com.sun.cloud.Backups+json";
pub(super) const VM: &str = "application/vnd.com.sun.cloud.VM+json";
pub(super) const STATUS: &str = "application/vnd.com.sun.cloud.Status+json";
pub(super) const STATUSES: &str = "application/vnd.com.sun.cloud.Statuses+json";
pub(super) const VERSION: &str = "application/vnd.com.sun.cloud.common.Version+json";
pub(super) const MESSAGES: &str = "application/vnd.com.sun.cloud.common.Messages+json";
pub(super) const VMS: &str = "application/vnd.snapgate.Vms+json";
pub(super) const CAPABILITIES: &str = "application/vnd.snapgate.Capabilities+json";
pub(super) const PERMISSIONS: &str = "application/vnd.snapgate.Permissions+json";
pub(super) const PAGE: &str = "text/html; charset=utf-8";
pub(super) const PLAN: &str = "application/vnd.snapgate.Plan+json";
pub(super) const EVENTS: &str = "text/event-stream";
pub(super) const PROBLEM: &str = "application/problem+json";
pub(super) const JSON: &str = "application/json";
const BACKUP_SLIP: &str = "application/vnd.com.sun.Backup.VM+json";
const HTML: &str = "text/html";
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// A type that can be sent, with other types whose mention asks for it too.
struct MediaOffer {
    sent: &'static str,
    aliases: &'static [&'static str],
}

/// What a response represents, which decides its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Representation {
    /// One backup.
    Backup,
    /// The Status of a change.
    Change,
    /// A Status that is read, once or as a stream of events.
    Status,
    /// A page for people.
    Page,
    /// A list of Statuses, or all of them as a stream of events.
    Statuses,
    /// Anything else, in a type of its own.
    Own(&'static str),
}

/// The type to send: the one that ranks highest; the first offer where several do.
pub(super) fn choose_media_type(
    headers: &HeaderMap,
    reply: Representation,
    strict: bool,
) -> Result<&'static str, Refusal> {
    let (sent, aliases): (_, &[_]) = match (reply, strict) {
        // Deviation D3: the source says "Response Message Body: VM".
        (Representation::Backup, false) => (BACKUP, &[VM]),
        (Representation::Backup, true) => (BACKUP, &[]),
        // Deviation D5: the source's own PUT asks for a Backup and is answered with a Status.
        (Representation::Change, false) => (STATUS, &[BACKUP, VM, MESSAGES]),
        (Representation::Change, true) => (STATUS, &[MESSAGES]),
        (Representation::Status, _) => (STATUS, &[]),
        (Representation::Page, _) => (HTML, &[]),
        (Representation::Statuses, _) => (STATUSES, &[]),
        (Representation::Own(own), _) => (own, &[]),
    };
    let json = MediaOffer {
        sent: JSON,
        aliases: &[],
    };
    let ranges = ranges(headers.get_all(ACCEPT).iter(), strict)?;
    let own = MediaOffer { sent, aliases };
    // Deviation D21. Only a range that names the type exactly asks for a stream: `text/*` does not.
    let is_named = || ranges.iter().any(|range| range.fits(EVENTS) == Some(2));
    if reply == Representation::Page {
        let page = best(&ranges, &[own]).map(|_html| PAGE);
        return page.ok_or_else(|| {
            Refusal::from(Code::NotAcceptable).hint(public_text!("Accept {HTML}."))
        });
    }
    let is_stream = matches!(reply, Representation::Status | Representation::Statuses);
    let chosen = if is_stream && is_named() {
        let events = MediaOffer {
            sent: EVENTS,
            aliases: &[],
        };
        best(&ranges, &[own, json, events])
    } else {
        best(&ranges, &[own, json])
    };
    chosen.ok_or_else(|| {
        Refusal::from(Code::NotAcceptable).hint(public_text!("Accept {sent} or {JSON}."))
    })
}

/// The type of an error: the problem type only where it is preferred. Errors are sent whatever Accept says.
pub(super) fn choose_error_type<'a>(accept: impl Iterator<Item = &'a HeaderValue>) -> &'static str {
    let offers = [MESSAGES, PROBLEM].map(|sent| MediaOffer { sent, aliases: &[] });
    ranges(accept, false)
        .ok()
        .and_then(|range| best(&range, &offers))
        .unwrap_or(MESSAGES)
}

/// One media range of an Accept header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MediaRange<'a> {
    main: &'a [u8],
    sub: &'a [u8],
    /// Thousandths, 0..=1000.
    quality: u16,
}

impl MediaRange<'_> {
    /// How exactly the range names the type: 2 wholly, 1 by its first half, 0 as anything.
    fn fits(&self, media: &str) -> Option<u8> {
        if self.main == b"*" {
            return Some(0);
        }
        // Neither half of a type has a slash in it.
        let (main, rest) = media.as_bytes().split_at_checked(self.main.len())?;
        let (b'/', sub) = rest.split_first()? else {
            return None;
        };
        if !is_same(self.main, main) {
            None
        } else if self.sub == b"*" {
            Some(1)
        } else {
            is_same(self.sub, sub).then_some(2)
        }
    }
}

/// Whether the words differ in case at most; hardly any do.
fn is_same(one: &[u8], two: &[u8]) -> bool {
    one == two || one.eq_ignore_ascii_case(two)
}

fn best(ranges: &[MediaRange<'_>], offers: &[MediaOffer]) -> Option<&'static str> {
    if ranges.is_empty() {
        return offers.first().map(|offer| offer.sent);
    }
    let mut chosen = None;
    let mut rank = (0, 0);
    for offer in offers {
        let own = ranges
            .iter()
            .filter_map(|range| Some((range.fits(offer.sent)?, range.quality)))
            .max_by_key(|(exact, quality)| (*exact, *quality));
        let named = offer.aliases.iter().flat_map(|alias| {
            ranges
                .iter()
                .filter(|range| range.fits(alias) == Some(2))
                .map(|range| (2, range.quality))
        });
        for (exact, quality) in own.into_iter().chain(named) {
            if quality > 0 && (quality, exact) > rank {
                chosen = Some(offer.sent);
                rank = (quality, exact);
            }
            // Most clients name the type that they want. Nothing ranks higher.
            if rank == HIGHEST_RANK {
                return chosen;
            }
        }
    }
    chosen
}

/// The rank of a type that is named exactly and without a weight.
const HIGHEST_RANK: (u16, u8) = (1000, 2);

/// Most requests name fewer media ranges.
const RANGES: usize = 4;

/// The media ranges in the values of `Accept`.
fn ranges<'a>(
    accept: impl Iterator<Item = &'a HeaderValue>,
    strict: bool,
) -> Result<Vec<MediaRange<'a>>, Refusal> {
    let mut found = Vec::with_capacity(RANGES);
    for value in accept {
        let mut list = AcceptParser {
            rest: value.as_bytes(),
            strict,
        };
        while let Some(range) = list.element()? {
            found.push(range);
        }
    }
    Ok(found)
}

/// Which bytes a token may hold: one look instead of a dozen comparisons for each byte.
static TOKEN_BYTES: [bool; 256] = token_bytes();

#[expect(
    clippy::indexing_slicing,
    reason = "done by the compiler, which would not compile it"
)]
const fn token_bytes() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_usize;
    while byte < table.len() {
        table[byte] = matches!(
            byte,
            0x21 | 0x23..=0x27 | 0x2a | 0x2b | 0x2d | 0x2e | 0x30..=0x39 | 0x41..=0x5a | 0x5e..=0x7a | 0x7c | 0x7e
        );
        byte = byte.saturating_add(1);
    }
    table
}

/// What is left to be read of a value of `Accept`. Read byte by byte, each once: this is done for every request.
///
/// Deviation D23: unless strict, `*` stands for `*/*` and a weight may begin with its point, as Java before 19 sends them.
struct AcceptParser<'a> {
    rest: &'a [u8],
    strict: bool,
}

impl<'a> AcceptParser<'a> {
    /// The next range; `None` at the end.
    fn element(&mut self) -> Result<Option<MediaRange<'a>>, Refusal> {
        self.rest = self.rest.trim_ascii_start();
        while self.skip_byte(b',') {
            self.rest = self.rest.trim_ascii_start();
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let range = self.range();
        let is_whole = self.rest.is_empty() || self.skip_byte(b',');
        let malformed = || Refusal::from(Code::MalformedAccept);
        range.filter(|_| is_whole).map(Some).ok_or_else(malformed)
    }

    fn range(&mut self) -> Option<MediaRange<'a>> {
        let main = self.token()?;
        let sub = if self.skip_byte(b'/') {
            self.token()?
        } else if main == b"*" && !self.strict {
            main
        } else {
            return None;
        };
        if main == b"*" && sub != b"*" {
            return None;
        }
        self.rest = self.rest.trim_ascii_start();
        let mut quality = 1000;
        while self.skip_byte(b';') {
            self.rest = self.rest.trim_ascii_start();
            let name = self.token()?;
            if !self.skip_byte(b'=') {
                return None;
            }
            if name.eq_ignore_ascii_case(b"q") {
                quality = self.weight()?;
            } else if self.rest.starts_with(b"\"") {
                self.skip_quoted()?;
            } else {
                self.token()?;
            }
            self.rest = self.rest.trim_ascii_start();
        }
        Some(MediaRange { main, sub, quality })
    }

    fn weight(&mut self) -> Option<u16> {
        let text = self.token()?;
        match text {
            [b'.', decimals @ ..] if !self.strict && !decimals.is_empty() => tenths(decimals),
            _ => thousandths(text),
        }
    }

    fn skip_byte(&mut self, byte: u8) -> bool {
        let after = self.rest.strip_prefix(&[byte]);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    /// A token (RFC 9110 section 5.6.2), which is never empty.
    fn token(&mut self) -> Option<&'a [u8]> {
        let is_other = |byte: &u8| TOKEN_BYTES.get(usize::from(*byte)) != Some(&true);
        let end = self
            .rest
            .iter()
            .position(is_other)
            .unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Past a quoted string of ASCII (section 5.6.4 of the same).
    fn skip_quoted(&mut self) -> Option<()> {
        let mut escaped = false;
        let inner = self.rest.strip_prefix(b"\"")?;
        let is_end = |byte: &u8| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        };
        let end = inner.iter().position(is_end)?;
        let (text, rest) = inner.split_at_checked(end)?;
        self.rest = rest.strip_prefix(b"\"")?;
        let is_text = |byte: &u8| byte.is_ascii_graphic() || matches!(*byte, b' ' | b'\t');
        text.iter().all(is_text).then_some(())
    }
}

/// A weight as RFC 9110 section 12.4.2 writes it: at most three digits after the point.
fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, decimals) = match text {
        [whole] => (*whole, &[][..]),
        [whole, b'.', decimals @ ..] => (*whole, decimals),
        _ => return None,
    };
    match (whole, tenths(decimals)?) {
        (b'0', part) => Some(part),
        (b'1', 0) => Some(1000),
        _ => None,
    }
}

/// The thousandths that at most three digits after a point stand for.
fn tenths(decimals: &[u8]) -> Option<u16> {
    let mut part = 0_u16;
    let mut scale = 100_u16;
    for digit in decimals {
        let digit = digit
            .checked_sub(b'0')
            .filter(|digit| *digit < 10 && scale > 0)?;
        part = part.saturating_add(u16::from(digit).saturating_mul(scale));
        scale = scale.checked_div(10)?;
    }
    Some(part)
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
    let first = text
        .iter()
        .position(|byte| *byte == separator || *byte == b'"')?;
    if text.get(first) == Some(&separator) {
        return Some(first);
    }
    let mut quoted = false;
    let mut escaped = false;
    text.iter().position(|byte| {
        if escaped {
            escaped = false;
            return false;
        }
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => escaped = true,
            _ => return *byte == separator && !quoted,
        }
        false
    })
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEncoding {
    Json,
    Form,
}

/// What a request with a body is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEntity {
    /// A backup, to be made or changed.
    Backup,
    /// Name/value pairs. Deviation D15: also as a form, and also none at all.
    Pairs,
}

impl BodyEntity {
    fn accepted_types(self, strict: bool) -> &'static [(&'static str, BodyEncoding)] {
        const TAKEN: &[(&str, BodyEncoding)] = &[
            (BACKUP, BodyEncoding::Json),
            (JSON, BodyEncoding::Json),
            // Deviation D4: the slip in the source's PUT, which a strict request may not make.
            (BACKUP_SLIP, BodyEncoding::Json),
        ];
        const PAIRS: &[(&str, BodyEncoding)] = &[
            (JSON, BodyEncoding::Json),
            (FORM, BodyEncoding::Form),
            (BACKUP, BodyEncoding::Json),
        ];
        match (self, strict) {
            (Self::Backup, false) => TAKEN,
            (Self::Backup, true) => TAKEN.get(..2).unwrap_or(TAKEN),
            (Self::Pairs, _) => PAIRS,
        }
    }
}

/// How the body is written; `None` when it does not say.
///
/// # Errors
/// 415 for a type or coding that is not supported, 400 for a part of a representation: its members would be read as the whole.
pub(super) fn body_encoding(
    headers: &HeaderMap,
    entity: BodyEntity,
    strict: bool,
) -> Result<Option<BodyEncoding>, Refusal> {
    if headers.contains_key(CONTENT_RANGE) {
        return Err(Refusal::from(Code::PartialContent).on("Content-Range"));
    }
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(has_content_coding)
    {
        return Err(Refusal::says(
            Code::UnsupportedMediaType,
            public_text!("Content codings are not supported; nothing was changed."),
        )
        .hint(public_text!("Send the body without Content-Encoding."))
        .on("Content-Encoding")
        .with(ACCEPT_ENCODING, "identity"));
    }
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let refusal = || unsupported_media_type(entity, strict);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(refusal());
    }
    let text = value.to_str().map_err(|_not_ascii| refusal())?;
    let taken = entity.accepted_types(strict);
    // Most clients send the type as it is written here, without parameters.
    if let Some((_, encoding)) = taken.iter().find(|(known, _)| *known == text) {
        return Ok(Some(*encoding));
    }
    let mut parts = split_outside_quotes(text, b';');
    let media = parts.next().unwrap_or_default().trim();
    for parameter in parts
        .map(str::trim)
        .filter(|parameter| !parameter.is_empty())
    {
        let (name, value) = parameter.split_once('=').ok_or_else(refusal)?;
        let charset = value.trim_matches('"');
        if name.eq_ignore_ascii_case("charset") && !charset.eq_ignore_ascii_case("utf-8") {
            return Err(refusal());
        }
    }
    taken
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(media))
        .map(|(_, encoding)| Some(*encoding))
        .ok_or_else(refusal)
}

/// Whether a value of `Content-Encoding` names anything but `identity`.
fn has_content_coding(value: &HeaderValue) -> bool {
    let mut codings = value.as_bytes().split(|byte| *byte == b',');
    codings.any(|coding| {
        let coding = coding.trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

/// 415 with the supported types: in `Accept` for PUT; a POST gets them in `Accept-Post` when the response is made.
pub(super) fn unsupported_media_type(entity: BodyEntity, strict: bool) -> Refusal {
    let taken: Vec<_> = entity
        .accepted_types(strict)
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let list = taken.join(", ");
    Refusal::from(Code::UnsupportedMediaType)
        .hint(public_text!("Send one of {list}."))
        .with(ACCEPT, &list)
}

/// The header that names the supported types in the response to a POST.
pub(super) const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");

#[cfg(test)]
mod tests;
