//! Paths as the most generous server might read them: what is one of our own routes by any reading is never passed on,
//! and what can be read in two ways is refused.

use std::fmt;

use percent_encoding::percent_decode_str;

use crate::gate::route::ROUTES;

/// How often a path is decoded to see what a chain of careless servers would make of it.
const DECODINGS_MAX: usize = 4;

/// The prefix of a pass-through route: whole segments, without a trailing slash. The empty one takes every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// Takes a path that begins with `/`, has no query, and reads the same to everybody.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("does not begin with '/'");
        }
        let visible = text.bytes().all(|it| it.is_ascii_graphic());
        if !visible || text.contains(['?', '#', '%', ';', '\\', '*']) {
            return Err("holds something else than plain path segments");
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        if !path.is_empty() && !is_plain(path) {
            return Err("has empty or dot segments");
        }
        if is_reserved(path) {
            return Err("is a path of this API, which is never passed through");
        }
        Ok(Self(path.to_owned()))
    }

    /// The text without a trailing slash; empty for every path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the prefix, beginning with `/`; `None` when the path is not below it.
    pub(super) fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.0.as_str())?;
        match rest {
            "" => Some("/"),
            _ if rest.starts_with('/') => Some(rest),
            _ => None,
        }
    }

    /// Whether a path, read generously, is below the prefix, read in the same way.
    pub(super) fn takes(&self, folded: &Folded) -> bool {
        Folded::of(&self.0).is_some_and(|mine| folded.0.starts_with(&mine.0))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// The segments of a path after everything that some server does to paths: decoded again and again, backslashes as slashes,
/// parameters cut off, dots resolved, empty segments dropped, letters folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folded(Vec<String>);

impl Folded {
    /// `None` when there is no end to the decoding, or it yields no text.
    pub(super) fn of(path: &str) -> Option<Self> {
        let text = decoded(path)?;
        let text: String = text.chars().filter_map(fold).flatten().collect();
        let mut segments: Vec<String> = Vec::new();
        for segment in text.split(['/', '\\']) {
            let segment = segment.split(';').next().unwrap_or_default();
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                _ => segments.push(segment.trim_end_matches('.').to_owned()),
            }
        }
        Some(Self(segments))
    }
}

/// Decodes until nothing changes.
fn decoded(path: &str) -> Option<String> {
    let mut text = path.to_owned();
    for _ in 0..DECODINGS_MAX {
        let next = percent_decode_str(&text).decode_utf8().ok()?.into_owned();
        if next == text {
            return Some(text);
        }
        text = next;
    }
    None
}

/// A character as a careless server compares it: wide forms narrow, letters small; `None` for what such servers skip.
fn fold(it: char) -> Option<impl Iterator<Item = char>> {
    let narrow = match it {
        '\u{ff01}'..='\u{ff5e}' => u32::from(it)
            .checked_sub(0xfee0)
            .and_then(char::from_u32)
            .unwrap_or(it),
        '\u{2215}' | '\u{2044}' => '/',
        _ => it,
    };
    let skipped = narrow.is_control() || narrow.is_whitespace();
    // To capitals and back: long s and the sign for kelvin are letters too.
    (!skipped).then(|| narrow.to_uppercase().flat_map(char::to_lowercase))
}

/// Whether a path is one of this API's own by any reading, or cannot be read at all.
pub(super) fn is_reserved(path: &str) -> bool {
    let Some(Folded(segments)) = Folded::of(path) else {
        return true;
    };
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    // Whatever stands between: an upstream may drop or insert segments.
    if words.first() == Some(&"vms") && words.contains(&"backups") {
        return true;
    }
    ROUTES.iter().any(|it| is_within(it.template, &words))
}

/// Whether the segments fit the template; below it too, unless it ends with an identifier.
fn is_within(template: &str, words: &[&str]) -> bool {
    let wanted: Vec<&str> = template.split('/').filter(|it| !it.is_empty()).collect();
    let is_same = |(one, two): (&&str, &&str)| one.starts_with('{') || one == two;
    let exact = wanted.last().is_some_and(|it| it.starts_with('{'));
    let length = if exact {
        words.len() == wanted.len()
    } else {
        words.len() >= wanted.len()
    };
    length && wanted.iter().zip(words).all(is_same)
}

/// Whether a path reads the same to everybody: no empty segment but the last, no dots, nothing encoded that need not be,
/// nothing encoded twice, no control characters, backslashes or parameters.
pub(super) fn is_plain(path: &str) -> bool {
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

fn is_plain_segment(segment: &str) -> bool {
    if segment.contains(['\\', ';']) || has_idle_encoding(segment) {
        return false;
    }
    let Ok(text) = percent_decode_str(segment).decode_utf8() else {
        return false;
    };
    let inner = text.split(['/', '\\']).all(|it| !is_dots(it));
    let encoded_twice = percent_decode_str(&text)
        .decode_utf8()
        .map_or(true, |it| it != text);
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
            .and_then(|it| u8::from_str_radix(it, 16).ok());
        let idle = |it: u8| it.is_ascii_alphanumeric() || b"-._~".contains(&it);
        if code.is_none_or(idle) {
            return true;
        }
        rest = after;
    }
    false
}
