//! Patterns over identifiers, as grants and placements use them: text in which `*` stands for anything.

use std::fmt;

use crate::model::TextError;
use crate::model::limits;

/// A pattern such as `web-*`; without a `*` it matches just itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    /// Takes the pattern as it is.
    ///
    /// # Errors
    /// [`TextError`] when it is empty, too long, or holds control characters or too many `*`.
    pub fn new(text: &str) -> Result<Self, TextError> {
        if text.is_empty() {
            return Err(TextError::Empty);
        }
        if text.len() > limits::PATTERN_BYTES_MAX {
            return Err(TextError::TooLong(limits::PATTERN_BYTES_MAX));
        }
        if text.chars().any(char::is_control) {
            return Err(TextError::Character("control characters"));
        }
        if text.matches('*').count() > limits::PATTERN_STARS_MAX {
            return Err(TextError::Character("more than 8 '*'"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text before the first `*`, and whether there is a `*` at all.
    #[must_use]
    pub fn prefix(&self) -> (&str, bool) {
        self.0
            .split_once('*')
            .map_or((self.0.as_str(), false), |(before, _)| (before, true))
    }

    /// Whether it is `*`, which everything fits.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }

    /// Whether the whole of `text` fits.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for middle in parts {
            let Some((_, after)) = rest.split_once(middle) else {
                return false;
            };
            rest = after;
        }
        rest.ends_with(last)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_anything_and_nothing_else_does() {
        let rows = [
            ("web01", "web01", true),
            ("web01", "web011", false),
            ("web01", "aweb01", false),
            ("*", "", true),
            ("*", "a/b", true),
            ("web*", "web", true),
            ("web*", "we", false),
            ("*-db", "eu-db", true),
            ("*-db", "eu-db2", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c2b", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
            ("*x*", "aaxaa", true),
        ];
        for (pattern, text, expected) in rows {
            let found = Pattern::new(pattern).unwrap().matches(text);
            assert_eq!(found, expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["", "*********", "a\nb"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
    }
}
