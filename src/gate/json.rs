//! Strict JSON: one object, no member twice, nothing after it, bounded depth.

use std::fmt;

use serde::de::DeserializeSeed;
use serde::de::Error as _;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;

use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::model::limits;
use crate::public_text;

/// A JSON value; members in the order they were sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// As text: nothing here calculates with it.
    Number(String),
    Text(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// The members of a body that must be one object.
pub(super) fn parse_object(body: &[u8]) -> Result<Vec<(String, Json)>, Refusal> {
    let mut source = serde_json::Deserializer::from_slice(body);
    let value = DepthLimit(limits::JSON_DEPTH_MAX).deserialize(&mut source);
    let value = value.and_then(|value| source.end().map(|()| value));
    match value {
        Ok(Json::Object(members)) => Ok(members),
        Ok(Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::Array(_)) => {
            let text = public_text!("The body is JSON but not an object.");
            Err(Refusal::says(Code::MalformedJson, text))
        }
        Err(error) => {
            let text = public_text!("The body is not valid JSON: {error}.");
            Err(Refusal::says(Code::MalformedJson, text))
        }
    }
}

/// How many levels of nesting are left.
#[derive(Clone, Copy)]
struct DepthLimit(usize);

impl DepthLimit {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        self.0
            .checked_sub(1)
            .map(Self)
            .ok_or_else(|| E::custom("nested more than 32 levels deep"))
    }
}

impl<'de> DeserializeSeed<'de> for DepthLimit {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<Json, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DepthLimit {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Json, A::Error> {
        let level = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = source.next_element_seed(level)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Json, A::Error> {
        let level = self.deeper()?;
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(name) = source.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom("duplicate member"));
            }
            let value = source.next_value_seed(level)?;
            members.push((name, value));
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_object_is_taken() {
        let nested = |depth: usize| {
            let inner = depth - 1;
            format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner))
        };
        let rows = [
            ("empty object", "{}".to_owned(), true),
            ("spaces around", " {\"a\": 1.5e3}\r\n".to_owned(), true),
            ("32 levels", nested(32), true),
            ("33 levels", nested(33), false),
            ("thousands of levels", nested(9000), false),
            ("nothing", String::new(), false),
            ("array", "[]".to_owned(), false),
            ("text", "\"a\"".to_owned(), false),
            ("trailing data", "{} {}".to_owned(), false),
            ("trailing comma", "{\"a\":1,}".to_owned(), false),
            ("the source's dots", "{\"a\":1,...}".to_owned(), false),
            ("bare member name", "{tags: []}".to_owned(), false),
            ("member twice", "{\"a\":1,\"a\":1}".to_owned(), false),
            (
                "member twice, escaped",
                "{\"a\":1,\"\\u0061\":1}".to_owned(),
                false,
            ),
            (
                "member twice, deep",
                "{\"b\":[{\"a\":1,\"a\":2}]}".to_owned(),
                false,
            ),
            ("lone surrogate", "{\"a\":\"\\ud800\"}".to_owned(), false),
            ("number out of range", "{\"a\":1e999}".to_owned(), false),
            ("byte order mark", "\u{feff}{}".to_owned(), false),
            ("comment", "{/**/}".to_owned(), false),
        ];
        for (name, body, expected) in rows {
            assert_eq!(parse_object(body.as_bytes()).is_ok(), expected, "{name}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
    }
}
