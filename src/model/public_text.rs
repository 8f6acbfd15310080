//! Text that reaches callers: refusals and the messages of a Status.
//!
//! One rule holds for all of it: whole sentences that say what happened, what was changed or not, and what to do, in the
//! words of the API. [`public_text!`](crate::public_text) checks each template when it is compiled.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::Deserialize;
use serde::Serialize;

/// Words that have no place in public text: colloquial ones, and names of products. Whole words, in lower case.
const FORBIDDEN_WORDS: &[&str] = &[
    "told",
    "tell",
    "tells",
    "somebody",
    "nobody",
    "anybody",
    "mistake",
    "mistakes",
    "wish",
    "whoever",
    "heed",
    "at work",
    "in force",
    "taken for",
    "at present",
    "cannot be had",
    "snapgate",
    "pingora",
    "sqlite",
    "libvirt",
    "qemu",
    "incus",
    "lxd",
    "proxmox",
];

/// Whole sentences for a caller: no paths, no host names, no words of the VM manager, no product name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicText(Cow<'static, str>);

impl PublicText {
    /// Made by [`public_text!`](crate::public_text), which has checked the template.
    #[doc(hidden)]
    #[must_use]
    pub const fn from_checked_template(text: Cow<'static, str>) -> Self {
        Self(text)
    }

    /// The sentences.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// These sentences and then those.
    #[must_use]
    pub fn followed_by(&self, next: &Self) -> Self {
        Self(Cow::Owned(format!("{} {}", self.0, next.0)))
    }
}

impl fmt::Display for PublicText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for PublicText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<PublicText> for Cow<'static, str> {
    fn from(text: PublicText) -> Self {
        text.0
    }
}

impl PartialEq<str> for PublicText {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for PublicText {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl From<PublicText> for String {
    fn from(text: PublicText) -> Self {
        text.0.into_owned()
    }
}

/// A [`PublicText`] from a literal with inline arguments, as in `format!`.
///
/// A template that breaks the rule does not compile: it begins with a capital, a digit, a quotation mark or an argument, ends with a full stop,
/// and has no word of the house in it.
///
/// ```
/// use snapgate::public_text;
///
/// let disk = "disk0";
/// let text = public_text!("The disk {disk} is in use; stop the VM and try again.");
/// assert_eq!(text, "The disk disk0 is in use; stop the VM and try again.");
/// ```
///
/// ```compile_fail
/// let text = snapgate::public_text!("the disk was there twice");
/// ```
#[macro_export]
macro_rules! public_text {
    ($template:literal) => {{
        const { $crate::model::check_public_template($template) };
        $crate::model::PublicText::from_checked_template(
            match ::std::format_args!($template).as_str() {
                Some(text) => ::std::borrow::Cow::Borrowed(text),
                None => ::std::borrow::Cow::Owned(::std::format!($template)),
            },
        )
    }};
    ($template:literal, $($argument:tt)+) => {{
        const { $crate::model::check_public_template($template) };
        $crate::model::PublicText::from_checked_template(::std::borrow::Cow::Owned(
            ::std::format!($template, $($argument)+),
        ))
    }};
}

/// Stops the compilation when a template of public text breaks the rule.
///
/// # Panics
/// While compiling only: [`public_text!`](crate::public_text) calls it in a constant.
#[doc(hidden)]
pub const fn check_public_template(template: &str) {
    assert!(
        breach_of(template).is_none(),
        "public text must be whole sentences in standard words: see docs/style.md"
    );
}

/// Which part of the rule a template breaks; `None` when it keeps the rule.
const fn breach_of(template: &str) -> Option<Breach> {
    let bytes = template.as_bytes();
    if !matches!(bytes.first(), Some(b'A'..=b'Z' | b'0'..=b'9' | b'"' | b'{')) {
        return Some(Breach::Beginning);
    }
    if !matches!(bytes.last(), Some(b'.' | b'}')) {
        return Some(Breach::End);
    }
    let mut words = FORBIDDEN_WORDS;
    while let [word, others @ ..] = words {
        if has_word(bytes, word.as_bytes()) {
            return Some(Breach::Word(word));
        }
        words = others;
    }
    None
}

/// A part of the rule that a template breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breach {
    /// It does not begin like a sentence.
    Beginning,
    /// It does not end like a sentence.
    End,
    /// It has this word.
    Word(&'static str),
}

/// Whether a text has a word, in capitals or not, that is not part of a longer one.
const fn has_word(text: &[u8], word: &[u8]) -> bool {
    let mut rest = text;
    let mut before = None;
    while let [first, following @ ..] = rest {
        if !is_letter(before) && starts_with_word(rest, word) {
            return true;
        }
        before = Some(*first);
        rest = following;
    }
    false
}

/// Whether a text starts with a word, in capitals or not, and no letter follows.
const fn starts_with_word(text: &[u8], word: &[u8]) -> bool {
    let mut text = text;
    let mut word = word;
    while let [expected, word_rest @ ..] = word {
        let [found, text_rest @ ..] = text else {
            return false;
        };
        if found.to_ascii_lowercase() != *expected {
            return false;
        }
        text = text_rest;
        word = word_rest;
    }
    match text.first() {
        Some(next) => !next.is_ascii_alphabetic(),
        None => true,
    }
}

const fn is_letter(byte: Option<u8>) -> bool {
    match byte {
        Some(byte) => byte.is_ascii_alphabetic(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_break_the_rule_are_found() {
        let cases = [
            ("The disk {disk} is in use.", None),
            ("{count} disks are in use.", None),
            ("the disk is in use.", Some(Breach::Beginning)),
            ("", Some(Breach::Beginning)),
            ("The disk is in use", Some(Breach::End)),
            ("Nobody knows.", Some(Breach::Word("nobody"))),
            ("The VM is at work.", Some(Breach::Word("at work"))),
            ("The QEMU process failed.", Some(Breach::Word("qemu"))),
            ("The satellite told-off.", Some(Breach::Word("told"))),
            ("The satellites are retold.", None),
        ];
        for (template, expected) in cases {
            assert_eq!(breach_of(template), expected, "{template:?}");
        }
    }

    #[test]
    fn a_template_without_arguments_is_not_copied() {
        let text = crate::public_text!("The backup is protected.");
        assert!(matches!(text.0, Cow::Borrowed(_)), "{text:?}");
        let sum = text.followed_by(&crate::public_text!("Nothing was changed."));
        assert_eq!(
            sum, "The backup is protected. Nothing was changed.",
            "in order"
        );
    }
}
