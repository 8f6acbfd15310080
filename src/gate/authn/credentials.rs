//! The credentials that a request presents in `Authorization`, read but not yet verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use zeroize::Zeroizing;

use crate::gate::authn::denial::DenialReason;
use crate::model::limits;

/// What a request brings to prove who sends it.
pub(super) enum PresentedCredentials<'a> {
    /// RFC 7617.
    Basic(BasicCredentials),
    /// RFC 6750: an API token, or a JSON Web Token.
    Bearer(&'a str),
}

impl<'a> PresentedCredentials<'a> {
    /// Reads the header; `None` when there is none. Anything but exactly one well-formed set of credentials of a known scheme
    /// is an error.
    pub(super) fn from_headers(headers: &'a HeaderMap) -> Option<Result<Self, DenialReason>> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return Some(Err(DenialReason::Malformed));
        }
        Some(Self::read(value))
    }

    fn read(value: &'a HeaderValue) -> Result<Self, DenialReason> {
        let (scheme, rest) = scheme(value).ok_or(DenialReason::Malformed)?;
        if scheme.eq_ignore_ascii_case("basic") {
            let read = BasicCredentials::parse(rest).map(Self::Basic);
            return read.ok_or(DenialReason::Malformed);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(rest));
        }
        Err(DenialReason::UnsupportedScheme)
    }
}

/// The scheme, and what follows it.
fn scheme(value: &HeaderValue) -> Option<(&str, &str)> {
    let text = value.to_str().ok()?;
    let space = text.bytes().position(|byte| byte == b' ')?;
    let (scheme, mut rest) = text.split_at_checked(space)?;
    while let Some(shorter) = rest.strip_prefix(' ').or_else(|| rest.strip_suffix(' ')) {
        rest = shorter;
    }
    Some((scheme, rest))
}

/// A name and a password as sent.
pub(super) struct BasicCredentials {
    pair: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl BasicCredentials {
    /// Reads what follows the scheme; `None` for whatever is not one well-formed pair.
    pub(super) fn parse(token: &str) -> Option<Self> {
        if token.len() > limits::CREDENTIALS_BYTES_MAX.saturating_mul(2) {
            return None;
        }
        let pair = Zeroizing::new(STANDARD.decode(token).ok()?);
        let text = str::from_utf8(&pair).ok()?;
        // RFC 7617 section 2. What a terminal or a log would act on is in no password that was meant.
        if has_control(text) {
            return None;
        }
        let colon = text.find(':')?;
        (text.len() <= limits::CREDENTIALS_BYTES_MAX).then_some(Self { pair, colon })
    }

    pub(super) fn name_and_password(&self) -> Option<(&str, &[u8])> {
        let (name, rest) = self.pair.split_at_checked(self.colon)?;
        Some((str::from_utf8(name).ok()?, rest.get(1..)?))
    }
}

/// Whether there is a control character of ASCII or Latin 1.
fn has_control(text: &str) -> bool {
    // Nearly every password is ASCII, and every request with one passes here.
    if text.is_ascii() {
        text.bytes().any(|byte| matches!(byte, 0..=0x1f | 0x7f))
    } else {
        text.chars().any(char::is_control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(values: &[&str]) -> Option<(String, Vec<u8>)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        match PresentedCredentials::from_headers(&headers)?.ok()? {
            PresentedCredentials::Basic(basic) => {
                let (name, password) = basic.name_and_password()?;
                Some((name.to_owned(), password.to_vec()))
            }
            PresentedCredentials::Bearer(text) => {
                Some(("bearer".to_owned(), text.as_bytes().to_vec()))
            }
        }
    }

    #[test]
    fn exactly_one_well_formed_header_is_read() {
        let basic = "Basic YW5uOnNlY3JldA==";
        let found = Some(("ann".to_owned(), b"secret".to_vec()));
        let bearer = Some(("bearer".to_owned(), b"abc".to_vec()));
        let rows: [(&str, &[&str], _); 9] = [
            ("bearer", &["bearer abc"], bearer),
            ("plain", &[basic], found.clone()),
            ("in capitals", &["BASIC YW5uOnNlY3JldA=="], found.clone()),
            ("spaces", &["basic   YW5uOnNlY3JldA== "], found),
            ("twice", &[basic, basic], None),
            ("none", &[], None),
            ("no token", &["Basic"], None),
            ("unknown scheme", &["Digest YW5uOnNlY3JldA=="], None),
            (
                "the source's placeholder",
                &["Basic xxxxxxxxxxxxxxxxxxx"],
                None,
            ),
        ];
        for (name, values, expected) in rows {
            assert_eq!(offered(values), expected, "{name}");
        }
    }

    #[test]
    fn only_well_formed_credentials_are_read() {
        let rows = [
            (
                "plain",
                STANDARD.encode("ann:secret"),
                Some(("ann", "secret")),
            ),
            (
                "colons in the password",
                STANDARD.encode("a:b:c"),
                Some(("a", "b:c")),
            ),
            (
                "utf-8",
                STANDARD.encode("\u{e9}:\u{e8}"),
                Some(("\u{e9}", "\u{e8}")),
            ),
            ("empty password", STANDARD.encode("a:"), Some(("a", ""))),
            ("a line end", STANDARD.encode("ann:secret\n"), None),
            ("a tab", STANDARD.encode("ann:sec\tret"), None),
            ("NUL", STANDARD.encode("ann:\0"), None),
            ("NUL in the name", STANDARD.encode("a\0nn:secret"), None),
            ("DEL", STANDARD.encode("ann:\u{7f}secret"), None),
            ("a C1 control", STANDARD.encode("ann:secret\u{9b}"), None),
            ("no colon", STANDARD.encode("ann"), None),
            ("not base64", "!!!".to_owned(), None),
            ("not utf-8", "/zp4".to_owned(), None),
            ("nothing", String::new(), None),
            (
                "too long",
                STANDARD.encode(format!("a:{}", "x".repeat(1023))),
                None,
            ),
        ];
        for (name, token, expected) in rows {
            let found = BasicCredentials::parse(&token);
            let parts = found.as_ref().and_then(BasicCredentials::name_and_password);
            let expected = expected.map(|(name, word)| (name, word.as_bytes()));
            assert_eq!(parts, expected, "{name}");
        }
    }
}
