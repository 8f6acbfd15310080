//! Entity tags and the conditions on them (RFC 9110 section 13).

use http::HeaderMap;
use http::header::IF_MATCH;
use http::header::IF_NONE_MATCH;

use crate::gate::negotiate::split_outside_quotes;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::Operation;

/// The tag of a representation, quotes included: the start of a hash over its bytes.
pub(super) fn tag_of(body: &[u8]) -> String {
    let hash = blake3::hash(body).to_hex();
    let mut tag = String::with_capacity(26);
    tag.push('"');
    tag.push_str(hash.get(..24).unwrap_or(&hash));
    tag.push('"');
    tag
}

/// The tag of a Status: it changes with every change of the record.
pub(super) fn tag_of_status(operation: &Operation) -> String {
    format!("\"{}-{}\"", operation.seq, operation.revision.0)
}

/// Whether `If-None-Match` names the tag: the caller has it already.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    lists(headers, &IF_NONE_MATCH, |it| {
        it.strip_prefix("W/").unwrap_or(it) == tag
    })
}

/// Whether the conditions of a change hold for what is there.
pub(super) fn check_change(
    headers: &HeaderMap,
    tag: impl FnOnce() -> String,
) -> Result<(), Refusal> {
    let wanted = headers.contains_key(IF_MATCH);
    let unwanted = headers.contains_key(IF_NONE_MATCH);
    if !wanted && !unwanted {
        return Ok(());
    }
    let tag = tag();
    // A weak tag never fits If-Match.
    let fits = !wanted || lists(headers, &IF_MATCH, |it| it == tag);
    if fits && !(unwanted && is_known(headers, &tag)) {
        Ok(())
    } else {
        Err(Refusal::from(Code::PreconditionFailed))
    }
}

fn lists(headers: &HeaderMap, name: &http::HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| split_outside_quotes(it, b','))
        .map(str::trim)
        .any(|it| it == "*" || fits(it))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn conditions_are_checked_by_the_tag() {
        let rows: &[(&[(http::HeaderName, &str)], bool)] = &[
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
            let mut headers = HeaderMap::new();
            for (name, value) in *given {
                headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
            }
            let found = check_change(&headers, || "\"a\"".to_owned()).is_ok();
            assert_eq!(found, *expected, "{given:?}");
        }
    }
}
