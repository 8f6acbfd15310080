//! Framing fields in the form that every reader takes for the same.

use http::HeaderMap;
use http::HeaderName;
use http::header;

/// The framing fields that are valid and written in an unusual way, with the usual one: a length without leading zeros, which some
/// readers take for an octal number, and `chunked` in small letters.
pub(super) fn unusual_framing(headers: &HeaderMap) -> Vec<(HeaderName, String)> {
    let mut usual = Vec::new();
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.strip_prefix('0'));
    if let Some(rest) = length.filter(|rest| !rest.is_empty()) {
        let number = rest.trim_start_matches('0');
        let number = if number.is_empty() { "0" } else { number };
        usual.push((header::CONTENT_LENGTH, number.to_owned()));
    }
    let coding = headers.get(header::TRANSFER_ENCODING);
    if coding.is_some_and(|coding| {
        coding != "chunked" && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
    }) {
        usual.push((header::TRANSFER_ENCODING, "chunked".to_owned()));
    }
    usual
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unusual_framing_is_replaced() {
        let rows = [
            (header::CONTENT_LENGTH, "0", None),
            (header::CONTENT_LENGTH, "00", Some("0")),
            (header::CONTENT_LENGTH, "3", None),
            (header::CONTENT_LENGTH, "003", Some("3")),
            (header::CONTENT_LENGTH, "30", None),
            (header::TRANSFER_ENCODING, "chunked", None),
            (header::TRANSFER_ENCODING, "chuNked", Some("chunked")),
            (header::TRANSFER_ENCODING, "gzip", None),
        ];
        for (name, sent, expected) in rows {
            let headers = HeaderMap::from_iter([(name.clone(), sent.parse().unwrap())]);
            let found = unusual_framing(&headers);
            let expected: Vec<_> = expected
                .map(|value| (name, value.to_owned()))
                .into_iter()
                .collect();
            assert_eq!(found, expected, "{sent}");
        }
    }
}
