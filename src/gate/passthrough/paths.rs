//! Paths as the most generous server might read them: what is one of our own routes by any reading is never passed on,
//! and what can be read in two ways is refused.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

use crate::gate::route::ROUTES;
use crate::gate::route::Reservation;
use crate::gate::route::RouteKind;
use crate::gate::route::RouteSpec;

/// How often a path is decoded to see what a chain of careless servers would make of it.
const DECODINGS_MAX: usize = 4;

/// The prefix of a pass-through route: whole segments, without a trailing slash. The empty one takes every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix {
    text: String,
    normalized: NormalizedPath,
}

impl PathPrefix {
    /// Takes a path that begins with `/`, has no query, and is read in the same way by every server.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("does not begin with '/'");
        }
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || text.contains(['?', '#', '%', ';', '\\', '*']) {
            return Err("holds something else than plain path segments");
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        if !path.is_empty() && !is_plain(path) {
            return Err("has empty or dot segments");
        }
        let normalized = NormalizedPath::from_path(path).filter(|path| !path.is_reserved_prefix());
        let normalized =
            normalized.ok_or("is a path of this API, which is never passed through")?;
        Ok(Self {
            text: path.to_owned(),
            normalized,
        })
    }

    /// The text without a trailing slash; empty for every path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What follows the prefix, beginning with `/`; `None` when the path is not below it.
    pub(super) fn remainder<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.text.as_str())?;
        match rest {
            "" => Some("/"),
            _ if rest.starts_with('/') => Some(rest),
            _ => None,
        }
    }

    /// Whether a path, read generously, is below the prefix, read in the same way.
    pub(super) fn covers(&self, normalized: &NormalizedPath) -> bool {
        let mut theirs = normalized.words();
        self.normalized
            .words()
            .all(|word| theirs.next() == Some(word))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() {
            "/"
        } else {
            &self.text
        })
    }
}

/// A path after everything that some server does to paths: decoded again and again, backslashes as slashes, parameters
/// cut off, dots resolved, empty segments dropped, letters folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NormalizedPath(String);

impl NormalizedPath {
    /// `None` when there is no end to the decoding, or it yields no text.
    pub(super) fn from_path(path: &str) -> Option<Self> {
        if is_simple(path) {
            return Some(Self(path.strip_suffix('/').unwrap_or(path).to_owned()));
        }
        let text = decoded(path)?;
        let text: String = if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            text.to_ascii_lowercase()
        } else {
            text.chars().filter_map(fold_char).flatten().collect()
        };
        let mut kept = String::with_capacity(text.len());
        for segment in text.split(['/', '\\']) {
            let segment = segment.split(';').next().unwrap_or_default();
            match segment {
                "" | "." => {}
                ".." => kept.truncate(kept.rfind('/').unwrap_or(0)),
                _ => {
                    kept.push('/');
                    kept.push_str(segment.trim_end_matches('.'));
                }
            }
        }
        Some(Self(kept))
    }

    /// Its segments.
    fn words(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }

    /// Whether requests for it are for this API.
    pub(super) fn is_reserved(&self) -> bool {
        self.is_own(|reservation| reservation != Reservation::None)
    }

    /// Whether no pass-through route may have it as its prefix.
    fn is_reserved_prefix(&self) -> bool {
        self.is_own(|reservation| reservation == Reservation::Always)
    }

    /// Whether it is a path of this API, of the routes that count.
    fn is_own(&self, counts: impl Fn(Reservation) -> bool) -> bool {
        // Whatever stands between: an upstream may drop or insert segments.
        let mut words = self.words();
        let is_backup = words.next() == Some("vms") && words.any(|word| word == "backups");
        let first = self.words().next().unwrap_or_default();
        let begins = |template: &str| {
            template
                .get(1..)
                .is_some_and(|rest| rest.starts_with(first))
        };
        let mut like = ROUTES
            .iter()
            .filter(|route| counts(route.reservation()) && begins(route.template));
        is_backup || like.any(|route| self.is_within(route))
    }

    /// Whether the segments fit the template; below it too, unless it ends with an identifier or a list of what is below it.
    fn is_within(&self, route: &RouteSpec) -> bool {
        let mut words = self.words();
        let mut exact = false;
        for wanted in route.template.split('/').filter(|part| !part.is_empty()) {
            exact = wanted.starts_with('{');
            if !words.next().is_some_and(|word| exact || word == wanted) {
                return false;
            }
        }
        // Below a VM or the list of VMs an upstream may have paths of its own.
        let exact = exact || route.kind == RouteKind::Vms;
        !exact || words.next().is_none()
    }
}

/// Decodes until nothing changes.
fn decoded(path: &str) -> Option<Cow<'_, str>> {
    let mut text = Cow::Borrowed(path);
    for _ in 0..DECODINGS_MAX {
        if !text.contains('%') {
            return Some(text);
        }
        let next = percent_decode_str(&text).decode_utf8().ok()?.into_owned();
        if next == *text {
            return Some(text);
        }
        text = Cow::Owned(next);
    }
    None
}

/// A character as a careless server compares it: wide forms narrow, letters small; `None` for what such servers skip.
fn fold_char(character: char) -> Option<impl Iterator<Item = char>> {
    let narrow = match character {
        '\u{ff01}'..='\u{ff5e}' => u32::from(character)
            .checked_sub(0xfee0)
            .and_then(char::from_u32)
            .unwrap_or(character),
        '\u{2215}' | '\u{2044}' => '/',
        _ => character,
    };
    let skipped = narrow.is_control() || narrow.is_whitespace();
    // To capitals and back: long s and the sign for kelvin are letters too.
    (!skipped).then(|| narrow.to_uppercase().flat_map(char::to_lowercase))
}

/// Whether a path is one of this API's own by any reading, or cannot be read at all.
pub(super) fn is_reserved(path: &str) -> bool {
    NormalizedPath::from_path(path).is_none_or(|path| path.is_reserved())
}

/// Whether every server reads a path in the same way: no empty segment but the last, no dots, nothing encoded that need not be,
/// nothing encoded twice, no control characters, backslashes or parameters.
pub(super) fn is_plain(path: &str) -> bool {
    if is_simple(path) {
        return true;
    }
    let Some(path) = path.strip_prefix('/') else {
        return false;
    };
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return false;
        }
        if !is_plain_segment(segment) {
            return false;
        }
    }
    true
}

/// Whether a path needs no normalisation: small letters, digits, and no empty segment but
/// the last. Most paths are like that, and need no closer look.
fn is_simple(path: &str) -> bool {
    let mut before = b' ';
    path.starts_with('/')
        && path.bytes().all(|byte| {
            let is_good = match byte {
                b'/' => before != b'/',
                _ => {
                    byte.is_ascii_lowercase()
                        || byte.is_ascii_digit()
                        || matches!(byte, b'-' | b'_')
                }
            };
            before = byte;
            is_good
        })
}

fn is_plain_segment(segment: &str) -> bool {
    if segment.contains(['\\', ';']) || has_idle_encoding(segment) {
        return false;
    }
    let Ok(text) = percent_decode_str(segment).decode_utf8() else {
        return false;
    };
    let inner = text.split(['/', '\\']).all(|part| !is_dots(part));
    let encoded_twice = percent_decode_str(&text)
        .decode_utf8()
        .map_or(true, |decoded| decoded != text);
    inner && !encoded_twice && !text.contains(['\\', ';']) && !text.chars().any(char::is_control)
}

/// Dots alone, or a name that ends in a dot or a space, which some file systems drop.
fn is_dots(segment: &str) -> bool {
    segment.ends_with(['.', ' '])
}

/// Whether something is encoded that stands for itself (RFC 3986 section 2.3).
fn has_idle_encoding(segment: &str) -> bool {
    let mut rest = segment;
    while let Some((_, after)) = rest.split_once('%') {
        let code = after
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let idle = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if code.is_none_or(idle) {
            return true;
        }
        rest = after;
    }
    false
}
