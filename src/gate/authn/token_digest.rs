//! The form of API tokens, and the digest by which they are stored: 256 random bits in a form that secret scanners recognise.
//!
//! A password needs a slow hash because people choose it from a small set; a token is one of 2^256, so a fast hash reveals
//! nothing, and a request costs a microsecond. The lookup uses the hash, not the token: its duration says nothing about
//! the tokens that exist.

use std::fmt;

use data_encoding::HEXLOWER;
use data_encoding::HEXLOWER_PERMISSIVE;
use ring::digest;
use zeroize::Zeroizing;

use crate::model::Secret;

/// What every token begins with.
const PREFIX: &str = "sg_";
/// Hexadecimal digits of the random part.
const RANDOM_DIGITS: usize = 64;
/// Hexadecimal digits of the CRC-32 over them.
const CHECK_DIGITS: usize = 8;
/// The SHA-256 of a token: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a text that has the form of a token: `sg_`, 64 hexadecimal digits, and the CRC-32 over these
    /// digits as 8 more. `None` for any other text.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let (random, check) = digits.split_at_checked(RANDOM_DIGITS)?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if check.len() != CHECK_DIGITS || !digits.bytes().all(is_hex) || checksum(random) != check {
            return None;
        }
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        digest.as_ref().try_into().ok().map(Self)
    }

    /// From 64 hexadecimal digits; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(***)")
    }
}

/// A new token made of random bytes.
#[must_use]
pub fn new_token(random: &Zeroizing<[u8; 32]>) -> Secret {
    let mut text = String::with_capacity(PREFIX.len().saturating_add(72));
    text.push_str(PREFIX);
    HEXLOWER.encode_append(&**random, &mut text);
    let check = text.strip_prefix(PREFIX).map(checksum).unwrap_or_default();
    text.push_str(&check);
    Secret::new(text)
}

fn checksum(digits: &str) -> String {
    format!("{:08x}", crc32fast::hash(digits.as_bytes()))
}

/// Whether a text has the form of an API token and can be nothing else.
pub(super) fn is_api_token(text: &str) -> bool {
    TokenDigest::of(text).is_some()
}

/// Whether a password has the form of an API token.
pub(super) fn is_api_token_password(password: &[u8]) -> bool {
    str::from_utf8(password).is_ok_and(is_api_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_form_and_its_hash() {
        let made = new_token(&Zeroizing::new([0xa5; 32]));
        let text = made.reveal();
        assert_eq!(text.len(), 75, "prefix, 256 bits, checksum");
        let digest = TokenDigest::of(text).unwrap();
        let printed = digest.to_string();
        assert_eq!(TokenDigest::parse(&printed), Some(digest), "as it is kept");
        // What `printf %s TOKEN | sha256sum` prints.
        let expected = digest::digest(&digest::SHA256, text.as_bytes());
        let expected: String = expected
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(printed, expected, "plain SHA-256");
        assert!(!format!("{digest:?}").contains(&printed), "not in logs");
        let rows = [
            ("one digit changed", text.replacen('a', "b", 1)),
            ("capitals", text.to_uppercase()),
            ("a digit short", text.chars().take(74).collect()),
            ("a digit long", format!("{text}0")),
            ("another prefix", text.replacen("sg_", "sk_", 1)),
            ("no digits", "sg_".to_owned()),
            ("other characters", format!("sg_{}", "\u{e9}".repeat(36))),
        ];
        for (name, wrong) in rows {
            assert_eq!(TokenDigest::of(&wrong), None, "{name}");
        }
        for wrong in ["", "00", &"0g".repeat(32), &"\u{e9}".repeat(32)] {
            assert_eq!(TokenDigest::parse(wrong), None, "{wrong}");
        }
    }
}
