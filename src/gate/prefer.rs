//! The preferences of a caller (RFC 7240): `handling=strict`, `respond-async` and `wait=N`; what is not known here is ignored.

use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;

use crate::gate::negotiate::split_outside_quotes;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::PublicText;
use crate::public_text;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const RESPOND_ASYNC: &str = "respond-async";

/// The preferences that are known here. The first mention of each counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    /// `handling=strict` was sent. Deviation D17.
    pub(super) strict: bool,
    /// `respond-async` was sent: a change is answered once it is durable. Deviation D13.
    pub(super) is_async: bool,
    /// How long the answer may be held back. Deviation D13.
    pub(super) wait: Option<Duration>,
}

impl Preferences {
    /// The preferences, and whether the known ones have valid values: a request with an invalid one is refused, since its
    /// caller would rely on something that never happens. Unknown preferences are ignored.
    pub(super) fn from_headers(headers: &HeaderMap) -> (Self, Result<(), Refusal>) {
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
                        Some(is_strict) => handling = handling.or(Some(is_strict)),
                        None => {
                            meant = Err(malformed(public_text!(
                                "The value of handling must be strict or lenient."
                            )));
                        }
                    }
                } else if name.eq_ignore_ascii_case("wait") {
                    match seconds(value) {
                        Some(limit) => found.wait = found.wait.or(Some(limit)),
                        None => {
                            meant = Err(malformed(public_text!(
                                "The value of wait must be a whole number of seconds."
                            )));
                        }
                    }
                } else if name.eq_ignore_ascii_case(RESPOND_ASYNC) {
                    if value.is_empty() {
                        found.is_async = true;
                    } else {
                        meant = Err(malformed(public_text!(
                            "The preference respond-async takes no value."
                        )));
                    }
                }
            }
        }
        found.strict = handling.unwrap_or_default();
        (found, meant)
    }

    /// How long the answer to an accepted change may be held back, where it is `usual` for those who say nothing.
    ///
    /// `wait` stands beside `respond-async` too, as in the example of RFC 7240, section 4.3: at most so long, then a 202.
    pub(super) fn hold_time(self, usual: Duration, most: Duration) -> Duration {
        match self.wait {
            Some(time) => time.min(most),
            None if self.is_async => Duration::ZERO,
            None => usual,
        }
    }

    /// The value of `Preference-Applied` in a 202, which is what `respond-async` asks for even after `waited`.
    pub(super) fn applied_field(self, waited: Option<Duration>) -> Option<String> {
        let waited = waited.map(|waited| format!("wait={}", waited.as_secs()));
        match (self.is_async, waited) {
            (true, Some(waited)) => Some(format!("{RESPOND_ASYNC}, {waited}")),
            (true, None) => Some(RESPOND_ASYNC.to_owned()),
            (false, waited) => waited,
        }
    }
}

fn malformed(hint: PublicText) -> Refusal {
    Refusal::from(Code::MalformedPrefer).on("Prefer").hint(hint)
}

fn unquoted(text: &str) -> &str {
    let inner = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
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
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(value.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Headers, whether they ask for strict handling and for an answer at once, seconds to wait, whether all of it means
    /// something.
    type Row = (&'static [&'static [u8]], bool, bool, Option<u64>, bool);

    const ROWS: &[Row] = &[
        (&[], false, false, None, true),
        (&[b"handling=strict"], true, false, None, true),
        (
            &[b"Handling=\"Strict\"; x=1, respond-async, WAIT = 10"],
            true,
            true,
            Some(10),
            true,
        ),
        (
            &[b"handling=lenient, handling=strict"],
            false,
            false,
            None,
            true,
        ),
        (&[b"wait=5", b"wait=6"], false, false, Some(5), true),
        (
            &[b"wait=99999999999999999999"],
            false,
            false,
            Some(u64::MAX),
            true,
        ),
        (
            &[b"waiting=abc, x=\"wait=abc, \xe9\""],
            false,
            false,
            None,
            true,
        ),
        (&[b"Respond-Async"], false, true, None, true),
        (&[b"respond-async=\"\"; x"], false, true, None, true),
        (&[b"wait=0", b"respond-async"], false, true, Some(0), true),
        (&[b"x=\"respond-async\""], false, false, None, true),
        (&[b"respond-async=no"], false, false, None, false),
        (
            &[b"respond-async, respond-async=1"],
            false,
            true,
            None,
            false,
        ),
        (&[b"wait=-1"], false, false, None, false),
        (&[b"wait=+1"], false, false, None, false),
        (&[b"wait"], false, false, None, false),
        (&[b"wait=\"5"], false, false, None, false),
        (&[b"wait=1.5"], false, false, None, false),
        (&[b"wait=\xe9"], false, false, None, false),
        (&[b"wait=5, wait=abc"], false, false, Some(5), false),
        (&[b"handling=severe"], false, false, None, false),
        (&[b"handling"], false, false, None, false),
    ];

    #[test]
    fn known_preferences_are_read_and_others_ignored() {
        for (values, strict, is_async, wait, meant) in ROWS {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append("prefer", HeaderValue::from_bytes(value).unwrap());
            }
            let expected = Preferences {
                strict: *strict,
                is_async: *is_async,
                wait: wait.map(Duration::from_secs),
            };
            let (found, whole) = Preferences::from_headers(&headers);
            let name: Vec<_> = values
                .iter()
                .map(|value| value.escape_ascii().to_string())
                .collect();
            assert_eq!(found, expected, "{name:?}");
            assert_eq!(whole.is_ok(), *meant, "{name:?}: means something");
            if let Err(refusal) = whole {
                assert_eq!(refusal.field.as_deref(), Some("Prefer"), "{name:?}: named");
            }
        }
    }

    #[test]
    fn what_is_asked_for_decides_how_long_an_answer_is_held_back() {
        let seconds = Duration::from_secs;
        let rows = [
            ("nothing", false, None, 2, None),
            ("at once", true, None, 0, Some("respond-async")),
            ("no time", false, Some(0), 0, None),
            ("less than usual", false, Some(1), 1, Some("wait=1")),
            ("more than usual", false, Some(9), 9, Some("wait=9")),
            ("more than there is", false, Some(99), 50, Some("wait=50")),
            ("both", true, Some(9), 9, Some("respond-async, wait=9")),
            ("both, no time", true, Some(0), 0, Some("respond-async")),
        ];
        for (name, is_async, wait, held, applied) in rows {
            let asked = Preferences {
                strict: false,
                is_async,
                wait: wait.map(seconds),
            };
            let time = asked.hold_time(seconds(2), seconds(50));
            assert_eq!(time, seconds(held), "{name}: held back");
            let waited = wait.map(|_| time).filter(|time| !time.is_zero());
            assert_eq!(
                asked.applied_field(waited).as_deref(),
                applied,
                "{name}: applied"
            );
        }
    }
}
