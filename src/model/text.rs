//! Bounded text: every identifier and every piece of free text that crosses a border, as its own type.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use crate::model::limits;

/// Why a text cannot be the value it was meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Empty where a value is required.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit, which is named in bytes.
    #[error("must not be longer than {0} bytes")]
    TooLong(usize),
    /// Contains a character that is not allowed in this kind of text.
    #[error("must not contain {0}")]
    Character(&'static str),
    /// One of the names that path handling treats specially.
    #[error("must not be '.' or '..'")]
    DotSegment,
}

/// The characters that a kind of text may contain.
#[derive(Clone, Copy, Debug)]
enum Alphabet {
    /// A path segment: no control characters, neither `.` nor `..`.
    Segment,
    /// A name in the configuration: ASCII letters, digits, `.`, `_`, `-`, `@`.
    Name,
    /// A name, or that of an issuer, a colon, and visible ASCII that it chose.
    Caller,
    /// One line for a person: no control characters.
    Line,
    /// Free text: line feeds and tabs are allowed, other control characters are not.
    Free,
    /// Visible ASCII.
    Visible,
    /// Anything.
    Any,
}

fn check(text: &str, min: usize, max: usize, alphabet: Alphabet) -> Result<(), TextError> {
    if text.len() < min {
        return Err(TextError::Empty);
    }
    if text.len() > max {
        return Err(TextError::TooLong(max));
    }
    match alphabet {
        Alphabet::Segment => {
            if text == "." || text == ".." {
                return Err(TextError::DotSegment);
            }
            check_no_control(text)
        }
        Alphabet::Line => check_no_control(text),
        Alphabet::Name => {
            let is_allowed =
                |character: char| character.is_ascii_alphanumeric() || "._-@".contains(character);
            if text.chars().all(is_allowed) {
                Ok(())
            } else {
                Err(TextError::Character(
                    "anything but ASCII letters, digits, '.', '_', '-' and '@'",
                ))
            }
        }
        Alphabet::Caller => match text.split_once(':') {
            Some((issuer, subject)) => {
                check(issuer, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name)?;
                check(subject, 1, limits::SUBJECT_BYTES_MAX, Alphabet::Visible)
            }
            None => check(text, min, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name),
        },
        Alphabet::Free => {
            if text
                .chars()
                .any(|character| character.is_control() && character != '\n' && character != '\t')
            {
                Err(TextError::Character(
                    "control characters other than line feed and tab",
                ))
            } else {
                Ok(())
            }
        }
        Alphabet::Any => Ok(()),
        Alphabet::Visible => {
            if text.bytes().all(|byte| byte.is_ascii_graphic()) {
                Ok(())
            } else {
                Err(TextError::Character("anything but visible ASCII"))
            }
        }
    }
}

fn check_no_control(text: &str) -> Result<(), TextError> {
    if text.chars().any(char::is_control) {
        Err(TextError::Character("control characters"))
    } else {
        Ok(())
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $min:expr, $max:expr, $alphabet:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is.
            ///
            /// # Errors
            /// [`TextError`] when it is outside the length or the alphabet of this type.
            pub fn new(text: &str) -> Result<Self, TextError> {
                check(text, $min, $max, $alphabet)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(text: String) -> Result<Self, TextError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0.as_ref().into()
            }
        }
    };
}

text_type!(
    /// Names one VM; one path segment after percent-decoding, 1..=255 bytes.
    VmId, 1, limits::ID_BYTES_MAX, Alphabet::Segment
);
text_type!(
    /// Names one backup within its VM; one path segment after percent-decoding, 1..=255 bytes.
    BackupId, 1, limits::ID_BYTES_MAX, Alphabet::Segment
);
text_type!(
    /// Names one configured VM manager, 1..=64 bytes.
    BackendName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// Names one route to a VM manager's own interface, 1..=64 bytes.
    PassName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// Names one caller: a user of 1..=64 bytes, or `issuer:subject` with a subject of 1..=128 bytes, which no user is called.
    PrincipalName, 1, limits::CONFIG_NAME_BYTES_MAX + 1 + limits::SUBJECT_BYTES_MAX, Alphabet::Caller
);
text_type!(
    /// Names a set of callers, 1..=64 bytes.
    GroupName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// Names one issuer of tokens, 1..=64 bytes.
    IssuerName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// Names one gateway of a cluster, 1..=64 bytes.
    GatewayName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// Names one API token, 1..=64 bytes.
    TokenName, 1, limits::CONFIG_NAME_BYTES_MAX, Alphabet::Name
);
text_type!(
    /// The name a person gave a backup, one line of 1..=255 bytes, unique within its VM.
    BackupName, 1, limits::BACKUP_NAME_BYTES_MAX, Alphabet::Line
);
text_type!(
    /// What a person wrote about a backup, 0..=4096 bytes.
    Description, 0, limits::DESCRIPTION_BYTES_MAX, Alphabet::Free
);
text_type!(
    /// One tag of a backup, 1..=256 bytes.
    Tag, 1, limits::TAG_BYTES_MAX, Alphabet::Line
);
text_type!(
    /// A note of a caller for the audit trail beside a restore, 0..=1024 bytes.
    ///
    /// Any character is allowed: escape it when it is written to a log.
    Note, 0, limits::NOTE_BYTES_MAX, Alphabet::Any
);
text_type!(
    /// Names one request in logs and replies, 1..=128 bytes of visible ASCII.
    RequestId, 1, limits::REQUEST_ID_BYTES_MAX, Alphabet::Visible
);
text_type!(
    /// What a caller sends to make a repeated request the same request, 1..=255 bytes of visible ASCII.
    IdempotencyKey, 1, limits::IDEMPOTENCY_KEY_BYTES_MAX, Alphabet::Visible
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_only_characters_of_their_alphabet() {
        let rows: [(&str, &str, Result<(), TextError>); 8] = [
            ("plain", "33333", Ok(())),
            ("slash stays inside", "a/b", Ok(())),
            ("unicode", "web-\u{e9}", Ok(())),
            ("empty", "", Err(TextError::Empty)),
            ("dot", ".", Err(TextError::DotSegment)),
            ("dots", "..", Err(TextError::DotSegment)),
            (
                "control",
                "a\u{7}",
                Err(TextError::Character("control characters")),
            ),
            (
                "c1 control",
                "a\u{85}",
                Err(TextError::Character("control characters")),
            ),
        ];
        for (name, text, expected) in rows {
            assert_eq!(VmId::new(text).map(|_| ()), expected, "{name}");
        }
        assert_eq!(VmId::new(&"x".repeat(255)).map(|_| ()), Ok(()), "longest");
        assert_eq!(
            VmId::new(&"x".repeat(256)),
            Err(TextError::TooLong(255)),
            "too long"
        );
    }

    #[test]
    fn text_is_stored_as_a_plain_string_and_checked_when_it_is_read() {
        let id = VmId::new("a/b").unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, r#""a/b""#, "plain string");
        assert_eq!(
            serde_json::from_str::<VmId>(&json).unwrap(),
            id,
            "same value"
        );
        assert!(
            serde_json::from_str::<VmId>(r#""..""#).is_err(),
            "checked on the way in"
        );
    }
}
