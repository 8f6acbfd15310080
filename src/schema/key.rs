//! Declarations of configuration keys: name, type, default, limits, when a change takes effect, and documentation.
//!
//! A key is declared once. Reading it, the tables of `docs/configuration.md`, `config/reference.toml` and `config/schema.json` all
//! follow from the declaration, so they cannot disagree.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

/// A number and a unit, or several of them.
const DURATION_PATTERN: &str = r"^\s*([0-9]+\s*[A-Za-z\u00b5]+\s*)+$";
/// A number and a unit.
const SIZE_PATTERN: &str = r"^\s*[0-9]+(\.[0-9]+)?\s*[A-Za-z]+\s*$";

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TakesEffect {
    /// With the reload that reads it.
    Reload,
    /// With the next start.
    Restart,
}

/// What the reference file shows as the value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Example {
    /// Its default.
    Default,
    /// This value, in TOML.
    Shown(&'static str),
    /// This value, in TOML; the line is a comment.
    Commented(&'static str),
}

/// One key; `V` is the type of its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<V> {
    pub(crate) name: &'static str,
    pub(crate) value: V,
    pub(crate) takes_effect: TakesEffect,
    pub(crate) help: &'static str,
    pub(crate) example: Example,
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag(pub(crate) bool);

/// A whole number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integer {
    pub(crate) default: u64,
    pub(crate) min: u64,
    pub(crate) max: u64,
}

/// A duration with its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DurationValue {
    pub(crate) default: Duration,
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

/// A duration with its unit that has the value of another key of the same table when it is absent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InheritedDuration {
    /// In words: the value of which key.
    pub(crate) when_absent: &'static str,
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

/// A number of bytes with its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) default: u64,
    pub(crate) min: u64,
    pub(crate) max: u64,
}

/// One of some words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// `None` when the key is required.
    pub(crate) default: Option<&'static str>,
    pub(crate) allowed: &'static [&'static str],
}

/// What an absent text means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WhenAbsent {
    /// The key is required.
    Required,
    /// This is the default.
    Default(&'static str),
    /// There is no default; what its absence means, in words.
    Means(&'static str),
}

/// Text of some form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    pub(crate) when_absent: WhenAbsent,
    pub(crate) form: &'static str,
    /// Whether the value is a secret or says where one is; nothing that is given away shows it.
    pub(crate) is_secret: bool,
}

/// A list of texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextList {
    /// `None` when the key is required.
    pub(crate) default: Option<&'static [&'static str]>,
    pub(crate) form: &'static str,
}

/// What the documentation says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: &'static str,
    /// The default as it is written in the file; `None` when there is none.
    pub(crate) default: Option<String>,
    /// What stands in place of a default when there is none.
    pub(crate) without_default: &'static str,
    /// Form, unit and limits.
    pub(crate) form: String,
    pub(crate) takes_effect: TakesEffect,
    pub(crate) help: &'static str,
    pub(crate) example: Example,
}

/// A key with a value of any type.
pub(crate) trait DeclaredKey: Sync {
    /// What the documentation says about it.
    fn describe(&self) -> Description;
    /// Its name alone.
    fn name(&self) -> &'static str;
    /// What a value of it may be, as JSON Schema.
    fn schema(&self) -> KeySchema;
    /// Whether its value is a secret.
    fn is_secret(&self) -> bool;
}

/// What a value of a key may be, for editors and validators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySchema {
    /// The JSON Schema of the value.
    pub(crate) value: Value,
    /// Whether the key must be there.
    pub(crate) is_required: bool,
}

/// The part of a key's documentation that follows from the type of its value.
struct ValueDescription {
    default: Option<String>,
    without_default: &'static str,
    form: String,
}

/// The type of a value, as the documentation describes it.
trait ValueType {
    /// Default, and form with unit and limits.
    fn describe(&self) -> ValueDescription;
    /// The JSON Schema of a value, without its default.
    fn json_schema(&self) -> Value;
    /// Whether a value is a secret.
    fn is_secret(&self) -> bool {
        false
    }
}

impl<V: ValueType + Sync> DeclaredKey for Key<V> {
    fn describe(&self) -> Description {
        let value = self.value.describe();
        Description {
            name: self.name,
            default: value.default,
            without_default: value.without_default,
            form: value.form,
            takes_effect: self.takes_effect,
            help: self.help,
            example: self.example,
        }
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn schema(&self) -> KeySchema {
        let described = self.value.describe();
        let mut value = self.value.json_schema();
        if let Some(members) = value.as_object_mut() {
            let help = self.help.replace('`', "");
            members.insert("description".to_owned(), Value::from(help));
            // Defaults are written as in the file, and every one of them reads the same in JSON.
            let default = described
                .default
                .as_ref()
                .and_then(|text| serde_json::from_str(text).ok());
            if let Some(default) = default {
                members.insert("default".to_owned(), default);
            }
        }
        KeySchema {
            value,
            is_required: described.default.is_none() && described.without_default == "required",
        }
    }

    fn is_secret(&self) -> bool {
        self.value.is_secret()
    }
}

/// A duration as it is written in the file.
pub(crate) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    for (length, unit) in units {
        if millis >= length && millis.is_multiple_of(length) {
            let number = millis.checked_div(length).unwrap_or_default();
            return format!("{number}{unit}");
        }
    }
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{millis}ms")
    }
}

/// A size as it is written in the file.
pub(super) fn format_size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * 1024;
    if bytes >= MIB && bytes.is_multiple_of(MIB) {
        format!("{}MiB", bytes.wrapping_div(MIB))
    } else if bytes >= KIB && bytes.is_multiple_of(KIB) {
        format!("{}KiB", bytes.wrapping_div(KIB))
    } else {
        format!("{bytes}B")
    }
}

fn with_default(default: String, form: String) -> ValueDescription {
    ValueDescription {
        default: Some(default),
        without_default: "",
        form,
    }
}

impl ValueType for Flag {
    fn describe(&self) -> ValueDescription {
        with_default(self.0.to_string(), "`true` or `false`".to_owned())
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "boolean" })
    }
}

impl ValueType for Integer {
    fn describe(&self) -> ValueDescription {
        let form = format!("number, {} to {}", self.min, self.max);
        with_default(self.default.to_string(), form)
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "integer", "minimum": self.min, "maximum": self.max })
    }
}

fn duration_form(min: Duration, max: Duration) -> String {
    format!(
        "duration, {} to {}",
        format_duration(min),
        format_duration(max)
    )
}

impl ValueType for DurationValue {
    fn describe(&self) -> ValueDescription {
        let default = quoted(&format_duration(self.default));
        with_default(default, duration_form(self.min, self.max))
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "string", "pattern": DURATION_PATTERN })
    }
}

impl ValueType for InheritedDuration {
    fn describe(&self) -> ValueDescription {
        ValueDescription {
            default: None,
            without_default: self.when_absent,
            form: duration_form(self.min, self.max),
        }
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "string", "pattern": DURATION_PATTERN })
    }
}

impl ValueType for Size {
    fn describe(&self) -> ValueDescription {
        let (min, max) = (format_size(self.min), format_size(self.max));
        let default = quoted(&format_size(self.default));
        with_default(default, format!("size, {min} to {max}"))
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "string", "pattern": SIZE_PATTERN })
    }
}

impl ValueType for Choice {
    fn describe(&self) -> ValueDescription {
        let words: Vec<String> = self.allowed.iter().map(|word| quoted(word)).collect();
        ValueDescription {
            default: self.default.map(quoted),
            without_default: "required",
            form: words.join(" or "),
        }
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "string", "enum": self.allowed })
    }
}

impl ValueType for Text {
    fn describe(&self) -> ValueDescription {
        let (default, without_default) = match self.when_absent {
            WhenAbsent::Required => (None, "required"),
            WhenAbsent::Default(text) => (Some(quoted(text)), ""),
            WhenAbsent::Means(words) => (None, words),
        };
        ValueDescription {
            default,
            without_default,
            form: self.form.to_owned(),
        }
    }

    fn json_schema(&self) -> Value {
        json!({ "type": "string", "minLength": 1 })
    }

    fn is_secret(&self) -> bool {
        self.is_secret
    }
}

impl ValueType for TextList {
    fn describe(&self) -> ValueDescription {
        let default = self.default.map(|texts| {
            let items: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", items.join(", "))
        });
        ValueDescription {
            default,
            without_default: "required",
            form: format!("list of {}", self.form),
        }
    }

    fn json_schema(&self) -> Value {
        let items = json!({ "type": "string", "minLength": 1 });
        let is_empty_meant = self.default.is_some_and(<[&str]>::is_empty);
        let least = usize::from(!is_empty_meant);
        json!({ "type": "array", "items": items, "minItems": least })
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// One table of the file.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Whether it is written `[[name]]` and may be repeated.
    pub(crate) repeated: bool,
    pub(crate) help: &'static str,
    pub(crate) keys: &'static [&'static dyn DeclaredKey],
    /// The tables that may stand in this one. Their keys may stand in this one directly too, as version 0.1 had them.
    pub(crate) nested: &'static [Self],
}

impl Table {
    /// Whether it declares this key.
    pub(crate) fn declares(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name() == name)
    }
}

/// Declares one table: a constant for each key, and the constant `TABLE` that lists them.
///
/// `CONSTANT: Type = "key", value, takes effect, "documentation"`, and `, Shown = "value"` or `, Commented = "value"` for what the
/// reference file has instead of the default. `"name" [TABLES]` allows these tables in it.
macro_rules! declare_table {
    ($name:literal $([$nested:expr])?, $repeated:literal, $help:literal,
     $($key:ident: $type:ident = $text:literal, $value:expr, $effect:ident, $about:literal $(, $mode:ident = $sample:literal)?;)*) => {
        $(pub(crate) const $key: $crate::schema::Key<$crate::schema::$type> = $crate::schema::Key {
            name: $text,
            value: $value,
            takes_effect: $crate::schema::TakesEffect::$effect,
            help: $about,
            example: $crate::schema::declare_table!(@example $($mode = $sample)?),
        };)*
        pub(crate) const TABLE: $crate::schema::Table = $crate::schema::Table {
            name: $name,
            repeated: $repeated,
            help: $help,
            keys: &[$(&$key),*],
            nested: $crate::schema::declare_table!(@nested $($nested)?),
        };
    };
    (@nested) => { &[] };
    (@nested $nested:expr) => { $nested };
    (@example) => { $crate::schema::Example::Default };
    (@example $mode:ident = $sample:literal) => { $crate::schema::Example::$mode($sample) };
}
pub(crate) use declare_table;

/// A duration of `min..=max` seconds.
pub(crate) const fn duration(default: Duration, min: u64, max: u64) -> DurationValue {
    DurationValue {
        default,
        min: Duration::from_secs(min),
        max: Duration::from_secs(max),
    }
}

/// A number of `min..=max`.
pub(crate) const fn integer(default: u64, min: u64, max: u64) -> Integer {
    Integer { default, min, max }
}

/// A size of `min..=max` bytes.
pub(crate) const fn size(default: u64, min: u64, max: u64) -> Size {
    Size { default, min, max }
}

/// A text that must be given.
pub(crate) const fn required_text(form: &'static str) -> Text {
    Text {
        when_absent: WhenAbsent::Required,
        form,
        is_secret: false,
    }
}

/// A text with a default.
pub(crate) const fn default_text(default: &'static str, form: &'static str) -> Text {
    Text {
        when_absent: WhenAbsent::Default(default),
        form,
        is_secret: false,
    }
}

/// A text without a default; `means` says in words what its absence means.
pub(crate) const fn optional_text(means: &'static str, form: &'static str) -> Text {
    Text {
        when_absent: WhenAbsent::Means(means),
        form,
        is_secret: false,
    }
}

/// The same text, declared to be a secret or to say where one is.
pub(crate) const fn secret(text: Text) -> Text {
    Text {
        is_secret: true,
        ..text
    }
}
