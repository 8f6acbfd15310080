//! Entity tags and the conditions on them (RFC 9110 section 13).

use http::HeaderMap;
use http::HeaderName;
use http::header::IF_MATCH;
use http::header::IF_NONE_MATCH;

use crate::gate::negotiate::split_outside_quotes;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::Operation;
use crate::public_text;

/// The fingerprint of the plan that must still be right.
const IF_PLAN: HeaderName = HeaderName::from_static("if-plan");
/// Twice the length of a fingerprint of today.
const FINGERPRINT_BYTES_MAX: usize = 128;

/// The tag of a representation, quotes included: the start of a hash over its bytes.
pub(super) fn entity_tag(body: &[u8]) -> String {
    let hash = blake3::hash(body).to_hex();
    let mut tag = String::with_capacity(26);
    tag.push('"');
    tag.push_str(hash.get(..24).unwrap_or(&hash));
    tag.push('"');
    tag
}

/// The tag of a Status: it changes with every change of the record.
pub(super) fn status_tag(operation: &Operation) -> String {
    format!("\"{}-{}\"", operation.seq, operation.revision.0)
}

/// Whether `If-None-Match` names the tag: the caller has it already.
pub(super) fn matches_if_none_match(headers: &HeaderMap, tag: &str) -> bool {
    lists(headers, &IF_NONE_MATCH, |value| {
        value.strip_prefix("W/").unwrap_or(value) == tag
    })
}

/// Whether the request has conditions on what is there.
pub(super) fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_MATCH) || headers.contains_key(IF_NONE_MATCH)
}

/// What the conditions of a change, which hold now, require to be the same when it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequiredState {
    /// The request has no conditions.
    Any,
    /// Only that there is something (`If-Match: *`).
    Presence,
    /// The exact state. Other tags that the request names cannot be checked later, so the state that was found must remain.
    Unchanged,
}

/// Checks the conditions of a change against what is there.
///
/// # Errors
/// 412 when they do not hold.
pub(super) fn check_preconditions(
    headers: &HeaderMap,
    tag: impl FnOnce() -> String,
) -> Result<RequiredState, Refusal> {
    if !is_conditional(headers) {
        return Ok(RequiredState::Any);
    }
    let unwanted = headers.contains_key(IF_NONE_MATCH);
    let tag = tag();
    check_if_match(headers, &tag)?;
    if unwanted && matches_if_none_match(headers, &tag) {
        return Err(Refusal::from(Code::PreconditionFailed));
    }
    let is_any = !unwanted && lists(headers, &IF_MATCH, |_| false);
    Ok(if is_any {
        RequiredState::Presence
    } else {
        RequiredState::Unchanged
    })
}

/// Checks `If-Match`, of reads too (RFC 9110 section 13.2.2).
///
/// # Errors
/// 412 when it is there and names another tag. A weak one never fits.
pub(super) fn check_if_match(headers: &HeaderMap, tag: &str) -> Result<(), Refusal> {
    if !headers.contains_key(IF_MATCH) || lists(headers, &IF_MATCH, |value| value == tag) {
        Ok(())
    } else {
        Err(Refusal::from(Code::PreconditionFailed))
    }
}

/// Deviation D29: the fingerprint of the plan that the caller looked at (`If-Plan`), without its quotes.
///
/// # Errors
/// 400 when it is not one quoted text. Any text will do: one that no plan ever had is stale.
pub(super) fn required_plan(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(IF_PLAN).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let malformed = || {
        Refusal::says(
            Code::InvalidParameter,
            public_text!("The If-Plan header must be the fingerprint of one plan in quotation marks; nothing was changed."),
        )
        .on("If-Plan")
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let text = text.ok_or_else(malformed)?.trim();
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let is_word = |text: &&str| {
        let fits = (1..=FINGERPRINT_BYTES_MAX).contains(&text.len());
        fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    inner.filter(is_word).map(Some).ok_or_else(malformed)
}

/// The refusal when the backup does not exist: any `If-Match` fails then (RFC 9110 section 13.1.1).
pub(super) fn missing_backup(headers: &HeaderMap, otherwise: Refusal) -> Refusal {
    if headers.contains_key(IF_MATCH) {
        let text = public_text!("The backup that the request requires does not exist.");
        Refusal::says(Code::PreconditionFailed, text)
    } else {
        otherwise
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| split_outside_quotes(value, b','))
        .map(str::trim)
        .any(|value| value == "*" || fits(value))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn what_must_stay_the_same_follows_from_the_conditions() {
        let rows: &[(&[(HeaderName, &str)], RequiredState)] = &[
            (&[], RequiredState::Any),
            (&[(IF_MATCH, "*")], RequiredState::Presence),
            (&[(IF_MATCH, "\"a\"")], RequiredState::Unchanged),
            (&[(IF_NONE_MATCH, "\"b\"")], RequiredState::Unchanged),
            (
                &[(IF_MATCH, "*"), (IF_NONE_MATCH, "\"b\"")],
                RequiredState::Unchanged,
            ),
        ];
        for (given, expected) in rows {
            let found = check_preconditions(&with(given), || "\"a\"".to_owned());
            assert_eq!(found.ok(), Some(*expected), "{given:?}");
        }
    }

    #[test]
    fn conditions_are_checked_by_the_tag() {
        let rows: &[(&[(HeaderName, &str)], bool)] = &[
            (&[], true),
            (&[(IF_MATCH, "\"a\"")], true),
            (&[(IF_MATCH, "*")], true),
            (&[(IF_MATCH, "\"b\", \"a\"")], true),
            (&[(IF_MATCH, "\"b\""), (IF_MATCH, "\"a\"")], true),
            (&[(IF_MATCH, "\"b\"")], false),
            (&[(IF_MATCH, "W/\"a\"")], false),
            (&[(IF_MATCH, "a")], false),
            (&[(IF_NONE_MATCH, "*")], false),
            (&[(IF_NONE_MATCH, "W/\"a\"")], false),
            (&[(IF_NONE_MATCH, "\"b\"")], true),
        ];
        for (given, expected) in rows {
            let found = check_preconditions(&with(given), || "\"a\"".to_owned()).is_ok();
            assert_eq!(found, *expected, "{given:?}");
        }
    }

    #[test]
    fn a_plan_is_named_by_one_quoted_word() {
        let name = || IF_PLAN;
        let long = format!("\"{}\"", "a".repeat(129));
        type Row<'a> = (&'a [&'a str], Option<Option<&'a str>>);
        let rows: &[Row<'_>] = &[
            (&[], Some(None)),
            (&["\"0f\""], Some(Some("0f"))),
            (&[" \"0f\" "], Some(Some("0f"))),
            (&["0f"], None),
            (&["\"\""], None),
            (&["\"0f"], None),
            (&["\"0f\", \"1f\""], None),
            (&["\"0f\"", "\"0f\""], None),
            (&["W/\"0f\""], None),
            (&["*"], None),
            (&["\"a b\""], None),
            (&[long.as_str()], None),
        ];
        for (values, expected) in rows {
            let fields: Vec<_> = values.iter().map(|value| (name(), *value)).collect();
            let headers = with(&fields);
            assert_eq!(required_plan(&headers).ok(), *expected, "{values:?}");
        }
    }
}
