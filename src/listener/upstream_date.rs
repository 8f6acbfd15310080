//! Restores the `Date` of an upstream in a response head that Pingora wrote with its own.
//!
//! A proxy must not replace `Date` (RFC 9110 section 6.6.1): caches compute from it how old a response is. Pingora always sets it,
//! after all code of the gateway has seen the head, so over HTTP/1 the bytes of the head are corrected. Over HTTP/2 they are
//! compressed by then, and Pingora's value stays.

use http::HeaderMap;
use http::HeaderValue;
use http::header;

/// The `Date` of a response, if it has the one form that is generated today. Other values are replaced by Pingora's.
pub(super) fn valid_date(headers: &HeaderMap) -> Option<HeaderValue> {
    let date = headers.get(header::DATE)?;
    is_imf_fixdate(date.as_bytes()).then(|| date.clone())
}

/// Whether the value has the form of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
fn is_imf_fixdate(value: &[u8]) -> bool {
    const FORM: &[u8; 29] = b"Aaa, 00 Aaa 0000 00:00:00 GMT";
    let fits = |(byte, form): (&u8, &u8)| match *form {
        b'0' => byte.is_ascii_digit(),
        b'a' => byte.is_ascii_lowercase(),
        // The first letters of day and month. Those of `GMT` are none of them.
        b'A' => byte.is_ascii_uppercase(),
        literal => *byte == literal,
    };
    value.len() == FORM.len() && value.iter().zip(FORM).all(fits)
}

/// Whether the bytes are the head of a final response. Interim ones may be written between the decision on a final one and its
/// head.
pub(super) fn is_final_head(bytes: &[u8]) -> bool {
    let status = bytes.strip_prefix(b"HTTP/1.1 ");
    status.is_some_and(|status| status.first().is_some_and(|digit| *digit != b'1'))
}

/// The head with this `Date`; `None` if it has none.
pub(super) fn restore_date(head: &[u8], date: &HeaderValue) -> Option<Vec<u8>> {
    const NAME: &[u8] = b"\r\ndate:";
    let mut windows = head.windows(NAME.len());
    let at = windows.position(|window| window.eq_ignore_ascii_case(NAME))?;
    let (before, rest) = head.split_at_checked(at.checked_add(NAME.len())?)?;
    let end = rest.windows(2).position(|window| window == b"\r\n")?;
    Some([before, b" ", date.as_bytes(), rest.get(end..)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dates_of_one_form_are_kept() {
        let rows = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("Sunday, 06-Nov-94 08:49:37 GMT", false),
            ("Sun Nov  6 08:49:37 1994", false),
            ("Sun, 06 Nov 1994 08:49:37 UTC", false),
            ("sun, 06 Nov 1994 08:49:37 GMT", false),
            ("Sun, 06 Nov 1994 08:49:37 GMT ", false),
            ("", false),
        ];
        for (value, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(header::DATE, value.parse().unwrap());
            assert_eq!(valid_date(&headers).is_some(), expected, "{value:?}");
        }
        assert_eq!(valid_date(&HeaderMap::new()), None, "absent");
    }

    #[test]
    fn the_date_of_a_head_is_restored_and_nothing_else() {
        let date = HeaderValue::from_static("then");
        let rows: [(&str, Option<&str>); 4] = [
            (
                "HTTP/1.1 200 OK\r\nDate: now\r\nX-Date: now\r\n\r\n",
                Some("HTTP/1.1 200 OK\r\nDate: then\r\nX-Date: now\r\n\r\n"),
            ),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\ndate:now\r\n\r\n",
                Some("HTTP/1.1 200 OK\r\nA: b\r\ndate: then\r\n\r\n"),
            ),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nA: b\r\nDate: now", None),
        ];
        for (head, expected) in rows {
            let restored = restore_date(head.as_bytes(), &date);
            let restored = restored.map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(restored.as_deref(), expected, "{head:?}");
        }
        let heads = [
            ("HTTP/1.1 200 OK", true),
            ("HTTP/1.1 103 Early Hints", false),
            ("HTTP/1.1 ", false),
            ("3\r\nabc", false),
        ];
        for (bytes, expected) in heads {
            assert_eq!(is_final_head(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
