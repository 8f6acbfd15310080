//! What a caller would like (RFC 7240): `handling=strict` and `wait=N`; what is not known here is ignored.

use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;

use crate::gate::negotiate::split_outside_quotes;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The preferences that are known here. The first mention of each counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    /// `handling=strict` was sent. Deviation D17.
    pub(super) strict: bool,
    /// How long the answer may be held back. Deviation D13.
    pub(super) wait: Option<Duration>,
}

impl Preferences {
    /// What is asked for, and whether a preference that is known here has a value that means nothing: such a request
    /// is refused, since its caller would wait for what never comes. What is not known is ignored.
    pub(super) fn of(headers: &HeaderMap) -> (Self, Result<(), Refusal>) {
        let mut found = Self::default();
        let mut handling = None;
        let mut meant = Ok(());
        for value in headers.get_all(PREFER) {
            // A quoted string may hold bytes that are not ASCII; none of ours does.
            let text = String::from_utf8_lossy(value.as_bytes());
            for preference in split_outside_quotes(&text, b',') {
                let token = split_outside_quotes(preference, b';')
                    .next()
                    .unwrap_or_default();
                let (name, value) = token.split_once('=').unwrap_or((token, ""));
                let (name, value) = (name.trim(), unquoted(value.trim()));
                if name.eq_ignore_ascii_case("handling") {
                    match strict(value) {
                        Some(it) => handling = handling.or(Some(it)),
                        None => meant = Err(malformed("handling is strict or lenient")),
                    }
                } else if name.eq_ignore_ascii_case("wait") {
                    match seconds(value) {
                        Some(it) => found.wait = found.wait.or(Some(it)),
                        None => meant = Err(malformed("wait is a number of whole seconds")),
                    }
                }
            }
        }
        found.strict = handling.unwrap_or_default();
        (found, meant)
    }
}

fn malformed(rule: &str) -> Refusal {
    Refusal::from(Code::MalformedPrefer)
        .on("Prefer")
        .hint(format!("The value of {rule}."))
}

fn unquoted(text: &str) -> &str {
    let inner = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    inner.unwrap_or(text)
}

fn strict(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "strict" => Some(true),
        "lenient" => Some(false),
        _ => None,
    }
}

/// Digits, however many: more than a number holds is as long as can be.
fn seconds(value: &str) -> Option<Duration> {
    let digits = !value.is_empty() && value.bytes().all(|it| it.is_ascii_digit());
    digits.then(|| Duration::from_secs(value.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Headers, whether they ask for strict handling, seconds to wait, whether all of it means something.
    type Row = (&'static [&'static [u8]], bool, Option<u64>, bool);

    #[test]
    fn known_preferences_are_read_and_others_ignored() {
        let rows: &[Row] = &[
            (&[], false, None, true),
            (&[b"handling=strict"], true, None, true),
            (
                &[b"Handling=\"Strict\"; x=1, respond-async, WAIT = 10"],
                true,
                Some(10),
                true,
            ),
            (&[b"handling=lenient, handling=strict"], false, None, true),
            (&[b"wait=5", b"wait=6"], false, Some(5), true),
            (&[b"wait=99999999999999999999"], false, Some(u64::MAX), true),
            (&[b"waiting=abc, x=\"wait=abc, \xe9\""], false, None, true),
            (&[b"wait=-1"], false, None, false),
            (&[b"wait=+1"], false, None, false),
            (&[b"wait"], false, None, false),
            (&[b"wait=\"5"], false, None, false),
            (&[b"wait=1.5"], false, None, false),
            (&[b"wait=\xe9"], false, None, false),
            (&[b"wait=5, wait=abc"], false, Some(5), false),
            (&[b"handling=severe"], false, None, false),
            (&[b"handling"], false, None, false),
        ];
        for (values, strict, wait, meant) in rows {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append("prefer", HeaderValue::from_bytes(value).unwrap());
            }
            let expected = Preferences {
                strict: *strict,
                wait: wait.map(Duration::from_secs),
            };
            let (found, whole) = Preferences::of(&headers);
            let name: Vec<_> = values
                .iter()
                .map(|it| it.escape_ascii().to_string())
                .collect();
            assert_eq!(found, expected, "{name:?}");
            assert_eq!(whole.is_ok(), *meant, "{name:?}: means something");
            if let Err(refusal) = whole {
                assert_eq!(refusal.field.as_deref(), Some("Prefer"), "{name:?}: named");
            }
        }
    }
}
