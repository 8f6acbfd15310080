//! What a caller would like (RFC 7240): `handling=strict` and `wait=N`; the rest is ignored.

use std::time::Duration;

use http::HeaderMap;

use crate::gate::negotiate::split_outside_quotes;

/// The preferences that are known here. The first mention of each counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    /// `handling=strict` was sent. Deviation D17.
    pub(super) strict: bool,
    /// How long the answer may be held back. Deviation D13.
    pub(super) wait: Option<Duration>,
}

impl Preferences {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let mut handling = None;
        for value in headers.get_all("prefer") {
            let Ok(text) = value.to_str() else { continue };
            for preference in split_outside_quotes(text, ',') {
                let token = split_outside_quotes(preference, ';')
                    .next()
                    .unwrap_or_default();
                let (name, value) = token.split_once('=').unwrap_or((token, ""));
                let (name, value) = (name.trim(), value.trim().trim_matches('"'));
                if name.eq_ignore_ascii_case("handling") {
                    handling = handling.or(Some(value));
                } else if name.eq_ignore_ascii_case("wait") {
                    let seconds = value.parse().ok().map(Duration::from_secs);
                    found.wait = found.wait.or(seconds);
                }
            }
        }
        found.strict = handling.is_some_and(|it| it.eq_ignore_ascii_case("strict"));
        found
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn known_preferences_are_read_and_others_ignored() {
        let rows: &[(&[&str], bool, Option<u64>)] = &[
            (&[], false, None),
            (&["handling=strict"], true, None),
            (
                &["Handling=\"Strict\"; x=1, respond-async, WAIT = 10"],
                true,
                Some(10),
            ),
            (&["handling=lenient, handling=strict"], false, None),
            (&["wait=5", "wait=6"], false, Some(5)),
            (&["wait=-1"], false, None),
            (&["wait"], false, None),
            (&["wait=99999999999999999999"], false, None),
        ];
        for (values, strict, wait) in rows {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append("prefer", HeaderValue::from_str(value).unwrap());
            }
            let expected = Preferences {
                strict: *strict,
                wait: wait.map(Duration::from_secs),
            };
            assert_eq!(Preferences::of(&headers), expected, "{values:?}");
        }
    }
}
