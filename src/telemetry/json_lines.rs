//! Log lines as JSON: one object per line, numbers as numbers, text as text.
//!
//! The JSON formatter of `tracing-subscriber` puts `Debug` values into quotes within quotes and writes wide integers as
//! strings.

use std::fmt;

use serde::Serialize;
use serde::Serializer;
use serde::ser::SerializeMap;
use serde_json::Value;
use tracing::Event;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::context_fields::context_fields;
use crate::telemetry::escape;
use crate::telemetry::log::line_time::LineTime;

/// The largest integer that every JSON reader keeps exactly: 2^53 - 1. Larger ones are written as strings.
const EXACT_MAX: u64 = 9_007_199_254_740_991;

/// Writes an event as one JSON object on a line.
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        LineTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let context = context_fields(metadata).into_iter();
        fields
            .members
            .extend(context.map(|(name, value)| (name, Value::String(value))));
        let target = fields.target.take();
        let target = target.unwrap_or_else(|| metadata.target().to_owned());
        let line = LogLine {
            time,
            level: metadata.level().as_str(),
            fields,
            target,
        };
        let line = serde_json::to_string(&line).map_err(|_unwritable| fmt::Error)?;
        writeln!(writer, "{}", escape::escape_json(line))
    }
}

/// The members of a line, in the order in which people read them.
struct LogLine {
    time: String,
    level: &'static str,
    fields: EventFields,
    target: String,
}

impl Serialize for LogLine {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("timestamp", &self.time)?;
        map.serialize_entry("level", self.level)?;
        for (name, value) in &self.fields.members {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("target", &self.target)?;
        map.end()
    }
}

/// The fields of an event.
#[derive(Default)]
pub(super) struct EventFields {
    members: Vec<(&'static str, Value)>,
    /// The target of a record of the `log` crate.
    target: Option<String>,
}

impl EventFields {
    /// Names and values in the order of the event.
    pub(super) fn into_members(self) -> Vec<(&'static str, Value)> {
        self.members
    }

    fn insert(&mut self, field: &Field, value: Value) {
        match field.name() {
            "log.target" => self.target = value.as_str().map(str::to_owned),
            // The other `log.` fields name source files and lines.
            name if name.starts_with("log.") => {}
            name => {
                let name = name.strip_prefix("r#").unwrap_or(name);
                self.members.push((name, value));
            }
        }
    }
}

fn exact_number(value: u64) -> Value {
    if value > EXACT_MAX {
        Value::String(value.to_string())
    } else {
        Value::from(value)
    }
}

impl Visit for EventFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        let is_exact = value.unsigned_abs() <= EXACT_MAX;
        let number = if is_exact {
            Value::from(value)
        } else {
            Value::String(value.to_string())
        };
        self.insert(field, number);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, exact_number(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.insert(field, Value::String(value.to_string())),
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match u64::try_from(value) {
            Ok(value) => self.record_u64(field, value),
            Err(_) => self.insert(field, Value::String(value.to_string())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, Value::from(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        let text = unquoted(&text).unwrap_or(text);
        self.insert(field, Value::String(text));
    }
}

/// The text whose `Debug` form this is; `None` for any other `Debug` form.
fn unquoted(debug: &str) -> Option<String> {
    let inner = debug.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        if character == '"' {
            return None;
        }
        if character != '\\' {
            text.push(character);
            continue;
        }
        text.push(match rest.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            'u' => {
                let digits = rest.as_str().strip_prefix('{')?;
                let (digits, after) = digits.split_once('}')?;
                rest = after.chars();
                char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
            }
            plain @ ('\\' | '"' | '\'') => plain,
            _ => return None,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_of_text_is_read_back_and_nothing_else() {
        for text in [
            "",
            "web01",
            "a\"b\\c'd",
            "line\nend\r\ttab\0nul",
            "\u{1b}[31m\u{85}\u{202e}\u{1f600}",
        ] {
            assert_eq!(unquoted(&format!("{text:?}")).as_deref(), Some(text));
        }
        for other in [
            "",
            "\"",
            "plain",
            "Some(\"a\")",
            "\"a\" and \"b\"",
            "\"a\\q\"",
        ] {
            assert_eq!(unquoted(other), None, "{other}");
        }
    }
}
