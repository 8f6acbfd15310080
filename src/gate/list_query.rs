//! The parameters of lists: filters, order, page size, cursors and counts, the same for every list.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::gate::links;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_target::decode_form_value;
use crate::gate::request_target::page_limit;
use crate::gate::request_target::query_parameter;
use crate::model::Timestamp;
use crate::model::limits;
use crate::public_text;

/// Characters of an unknown parameter that a refusal names.
const UNKNOWN_NAME_CHARS: usize = 64;
/// The first byte of a cursor: another one is of another version.
const CURSOR_FORMAT: u8 = 1;
/// Bytes of a cursor that bind it to its list.
const BINDING_BYTES: usize = 8;

/// The query of a request for a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListParameters<'a> {
    query: &'a str,
}

impl<'a> ListParameters<'a> {
    /// Checks the names of the parameters.
    ///
    /// # Errors
    /// 400 naming the first that is not `known`, if the request is read strictly.
    pub(super) fn new(query: &'a str, known: &[&str], is_strict: bool) -> Result<Self, Refusal> {
        let mut names = query
            .split('&')
            .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
        let unknown = names.find(|name| !name.is_empty() && !known.contains(name));
        match unknown.filter(|_| is_strict) {
            Some(unknown) => {
                let text = public_text!("This list has no such parameter.");
                let name: String = unknown.chars().take(UNKNOWN_NAME_CHARS).collect();
                let known = known.join(", ");
                let hint = public_text!("The parameters are: {known}.");
                Err(Refusal::says(Code::InvalidParameter, text)
                    .on(name)
                    .hint(hint))
            }
            None => Ok(Self { query }),
        }
    }

    /// The value of a parameter that may be given once.
    pub(super) fn text(self, name: &'static str) -> Result<Option<Cow<'a, str>>, Refusal> {
        query_parameter(self.query, name)
    }

    /// Every value of a parameter that may be given several times.
    pub(super) fn texts(self, name: &'static str) -> Result<Vec<Cow<'a, str>>, Refusal> {
        let pairs = self.query.split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name, value)
        });
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| {
                decode_form_value(value).ok_or_else(|| {
                    let text = public_text!("The value is not valid UTF-8.");
                    Refusal::says(Code::InvalidParameter, text).on(name)
                })
            })
            .collect()
    }

    /// A parameter whose value is one of some words.
    pub(super) fn word<T: Copy>(
        self,
        name: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, Refusal> {
        let Some(given) = self.text(name)? else {
            return Ok(None);
        };
        let found = words.iter().find(|(word, _)| *word == given);
        found.map(|(_, value)| Some(*value)).ok_or_else(|| {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let all = all.join(", ");
            let text = public_text!("The value must be one of: {all}.");
            Refusal::says(Code::InvalidParameter, text).on(name)
        })
    }

    /// A parameter that is `true` or `false`.
    pub(super) fn flag(self, name: &'static str) -> Result<Option<bool>, Refusal> {
        self.word(name, &[("true", true), ("false", false)])
    }

    /// A parameter that is a time.
    pub(super) fn time(self, name: &'static str) -> Result<Option<Timestamp>, Refusal> {
        self.text(name)?
            .map(|text| parse_time(name, &text))
            .transpose()
    }

    /// The `limit` of a page.
    pub(super) fn limit(self) -> Result<u16, Refusal> {
        page_limit(self.query)
    }
}

/// The time that a parameter gives.
pub(super) fn parse_time(name: &'static str, text: &str) -> Result<Timestamp, Refusal> {
    Timestamp::parse_rfc3339(text).ok_or_else(|| {
        let text = public_text!(
            "The value is not an RFC 3339 time, for instance 2026-11-24T01:02:03Z. Write a `+` in it as `%2B`."
        );
        Refusal::says(Code::InvalidParameter, text).on(name)
    })
}

/// The filters and the order of a list as the link to its next page repeats them. The same filters always read the same.
#[derive(Debug)]
pub(super) struct ListLink {
    path: String,
    filters: String,
}

impl ListLink {
    pub(super) const fn new(path: String) -> Self {
        Self {
            path,
            filters: String::new(),
        }
    }

    /// Adds a filter, or the order.
    pub(super) fn push(&mut self, name: &str, value: &str) {
        self.filters.push_str(name);
        self.filters.push('=');
        self.filters.extend(links::encoded(value));
        self.filters.push('&');
    }

    /// What binds a cursor to this list.
    fn binding(&self) -> Vec<u8> {
        let list = [&self.path, "?", &self.filters].concat();
        let hash = blake3::hash(list.as_bytes());
        hash.as_bytes()
            .iter()
            .take(BINDING_BYTES)
            .copied()
            .collect()
    }

    /// The value of `Link` that leads to the page behind a place in the list.
    pub(super) fn next(&self, limit: u16, count: bool, position: &[u8]) -> String {
        let mut cursor = vec![CURSOR_FORMAT];
        cursor.extend(self.binding());
        cursor.extend(position);
        let cursor = URL_SAFE_NO_PAD.encode(cursor);
        let Self { path, filters } = self;
        let count = if count { "count=true&" } else { "" };
        format!("<{path}?{filters}limit={limit}&{count}cursor={cursor}>; rel=\"next\"")
    }

    /// The place that a cursor of this list names.
    ///
    /// # Errors
    /// 400 when it is none, or of a list with other filters or in another order.
    pub(super) fn position(
        &self,
        parameters: ListParameters<'_>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(text) = parameters.text("cursor")? else {
            return Ok(None);
        };
        let is_short = text.len() <= limits::CURSOR_BYTES_MAX;
        let bytes = URL_SAFE_NO_PAD.decode(text.as_bytes()).ok();
        let bytes = bytes.filter(|_| is_short).ok_or_else(malformed_cursor)?;
        let binding = bytes
            .strip_prefix(&[CURSOR_FORMAT])
            .and_then(|rest| rest.split_at_checked(BINDING_BYTES));
        let (binding, position) = binding.ok_or_else(malformed_cursor)?;
        if binding != self.binding() {
            let text = public_text!(
                "The cursor belongs to a list with other filters or in another order. Start again without it."
            );
            return Err(Refusal::says(Code::InvalidParameter, text).on("cursor"));
        }
        Ok(Some(position.to_vec()))
    }
}

/// The refusal of a cursor that no list gave.
pub(super) fn malformed_cursor() -> Refusal {
    let text = public_text!("The value is not a cursor of this list. Start again without it.");
    Refusal::says(Code::InvalidParameter, text).on("cursor")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(refusal: &Refusal) -> (Code, String) {
        let field = refusal.field.clone().unwrap_or_default();
        (refusal.code(), field.into_owned())
    }

    #[test]
    fn unknown_parameters_are_named_where_the_request_is_strict() {
        let rows = [
            ("", true, None),
            ("a=1&b=2&b=3", true, None),
            ("a&&b=", true, None),
            ("a=1&c=2", false, None),
            ("a=1&c=2", true, Some("c")),
            ("A=1", true, Some("A")),
            ("=1", true, None),
        ];
        for (query, is_strict, expected) in rows {
            let found = ListParameters::new(query, &["a", "b"], is_strict).err();
            let expected = expected.map(|name| (Code::InvalidParameter, name.to_owned()));
            assert_eq!(found.as_ref().map(field), expected, "{query}");
        }
    }

    #[test]
    fn values_are_parsed_or_refused_by_name() {
        let query =
            "w=one&x=three&f=true&g=yes&t=2026-11-24T02%3A02%3A03%2B01%3A00&u=soon&d=a+b&d=%41";
        let parameters = ListParameters::new(query, &[], false).unwrap();
        let words = [("one", 1), ("two", 2)];
        assert_eq!(parameters.word("w", &words).unwrap(), Some(1), "a word");
        assert_eq!(parameters.word("none", &words).unwrap(), None, "absent");
        let refused = parameters.word("x", &words).unwrap_err();
        assert_eq!(field(&refused).1, "x", "no such word");
        assert_eq!(
            refused.text, "The value must be one of: one, two.",
            "which there are"
        );
        assert_eq!(parameters.flag("f").unwrap(), Some(true), "a flag");
        assert_eq!(field(&parameters.flag("g").unwrap_err()).1, "g", "no flag");
        let time = parameters.time("t").unwrap();
        assert_eq!(
            time,
            Some(Timestamp::from_millis(1_795_482_123_000)),
            "a time"
        );
        assert_eq!(field(&parameters.time("u").unwrap_err()).1, "u", "no time");
        assert_eq!(
            parameters.texts("d").unwrap(),
            ["a b", "A"],
            "several, decoded"
        );
        assert_eq!(field(&parameters.text("d").unwrap_err()).1, "d", "only one");
    }

    #[test]
    fn a_cursor_belongs_to_its_path_and_filters() {
        let link = |path: &str, filters: &[(&str, &str)]| {
            let mut link = ListLink::new(path.to_owned());
            filters
                .iter()
                .for_each(|(name, value)| link.push(name, value));
            link
        };
        let own = link("/list", &[("a", "x y"), ("sort", "-id")]);
        let next = own.next(7, true, b"place");
        let query = next
            .strip_prefix("</list?a=x%20y&sort=-id&limit=7&count=true&")
            .and_then(|rest| rest.strip_suffix(">; rel=\"next\""))
            .unwrap_or_else(|| panic!("repeats the filters: {next}"));
        let parameters = ListParameters::new(query, &["cursor"], true).unwrap();
        let found = own.position(parameters).unwrap();
        assert_eq!(found.as_deref(), Some(&b"place"[..]), "round trip");
        let others = [
            link("/other", &[("a", "x y"), ("sort", "-id")]),
            link("/list", &[("a", "x"), ("sort", "-id")]),
            link("/list", &[("a", "x y")]),
            link("/list", &[]),
        ];
        for other in others {
            let refused = other.position(parameters).unwrap_err();
            assert_eq!(field(&refused).1, "cursor", "{other:?}");
        }
        for broken in [
            "cursor=",
            "cursor=AQ",
            "cursor=%00",
            "cursor=$$$$",
            "cursor=AgAAAAAAAAAA",
        ] {
            let parameters = ListParameters::new(broken, &["cursor"], true).unwrap();
            let refused = own.position(parameters).unwrap_err();
            assert_eq!(field(&refused).1, "cursor", "{broken}");
        }
        let long = format!("cursor={}", "A".repeat(limits::CURSOR_BYTES_MAX + 1));
        let parameters = ListParameters::new(&long, &["cursor"], true).unwrap();
        assert!(own.position(parameters).is_err(), "too long");
    }
}
