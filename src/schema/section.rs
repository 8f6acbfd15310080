//! One table of the file, and the declared keys in it.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use crate::model::Secret;
use crate::schema::Choice;
use crate::schema::DurationValue;
use crate::schema::Flag;
use crate::schema::InheritedDuration;
use crate::schema::Integer;
use crate::schema::Key;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Size;
use crate::schema::Table;
use crate::schema::Text;
use crate::schema::TextList;
use crate::schema::WhenAbsent;
use crate::schema::format_duration;
use crate::schema::key::format_size;
use crate::schema::reader::expected_but_got;
use crate::schema::reader::nearest_hint;

/// One table of the file, or the defaults in place of one that is not written.
///
/// Each `read_...` method reports what is wrong with a value at its position and returns the default or `None` instead.
pub(crate) struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    at: usize,
    value: Option<&'a DeTable<'a>>,
    /// The table that this one stands in: version 0.1 had the keys of this one there.
    parent: Option<Parent<'a>>,
}

struct Parent<'a> {
    path: String,
    value: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    pub(super) const fn new(
        reader: &'a Reader<'a>,
        path: String,
        at: usize,
        value: Option<&'a DeTable<'a>>,
    ) -> Self {
        Self {
            reader,
            path,
            at,
            value,
            parent: None,
        }
    }

    /// The table of that name in this one, which is an `outer_table`; its defaults when it is not written.
    ///
    /// Keys of it that stand in this table directly are read as well, with a warning that names their new place. A key that
    /// stands in both is an error.
    pub(crate) fn nested(&self, outer_table: &Table, table: &Table) -> Self {
        let path = self.path_of(table.name);
        let mut nested = Self::new(self.reader, path, self.at, None);
        if let Some(value) = self.value_of(table.name) {
            nested.at = value.span().start;
            nested.value = value.get_ref().as_table();
            if nested.value.is_none() {
                let hint = format!("write [{}] above its keys", self.heading_of(table));
                self.report_type(table.name, value, "a table", &hint);
            }
        }
        nested.refuse_unknown_keys_within(self, outer_table, table);
        nested.parent = self.value.map(|value| Parent {
            path: self.path.clone(),
            value,
        });
        for key in table.keys.iter().map(|key| key.name()) {
            self.check_flat_key(&nested, key, &self.heading_of(table));
        }
        nested
    }

    /// A key of a nested table that stands in this one directly.
    fn check_flat_key(&self, nested: &Self, key: &str, heading: &str) {
        if !self.has(key) {
            return;
        }
        let path = self.path_of(key);
        if nested.value.is_some_and(|value| value.contains_key(key)) {
            let what = format!("is also set as {}.{key}", nested.path);
            let hint = format!("keep the one in [{heading}]");
            self.report_key(key, what, &hint);
        } else {
            let warning = format!("{path}: deprecated; move it to [{heading}]");
            self.reader.warn(warning);
        }
    }

    /// The heading of a table in this one: `backend.qemu`.
    fn heading_of(&self, table: &Table) -> String {
        let outer = self.path.split('[').next().unwrap_or_default();
        format!("{outer}.{}", table.name)
    }

    /// Reports everything in this table that belongs to a nested table other than the chosen one: the table, and its keys where
    /// they stand in this one directly. `chosen_by` is the key that chooses, and `chosen` its value.
    pub(crate) fn refuse_other_tables(&self, all: &[Table], chosen_by: &str, chosen: &Table) {
        for other in all.iter().filter(|other| other.name != chosen.name) {
            if self.has(other.name) {
                let what = format!("does not apply to {chosen_by} = \"{}\"", chosen.name);
                let (heading, name) = (self.heading_of(other), other.name);
                let hint = format!("remove [{heading}], or write {chosen_by} = \"{name}\"");
                self.report_key(other.name, what, &hint);
            }
        }
        let keys = self.value.into_iter().flatten();
        for name in keys.map(|(key, _)| -> &str { key.get_ref() }) {
            let owners = all.iter().filter(|table| table.declares(name));
            let owners: Vec<&str> = owners.map(|table| table.name).collect();
            if !owners.is_empty() && !owners.contains(&chosen.name) {
                let quoted: Vec<String> = owners.iter().map(|name| format!("\"{name}\"")).collect();
                let what = format!("applies only to {chosen_by} = {}", quoted.join(" or "));
                self.report_key(name, what, "remove it");
            }
        }
    }

    /// Reports an error of the table as a whole.
    pub(crate) fn report(&self, what: impl Into<String>, hint: &str) {
        self.reader.report(self.at, &self.path, what, hint);
    }

    /// Reports an error in the value of one key, or in the table when the key is absent.
    pub(crate) fn report_key(&self, name: &str, what: impl Into<String>, hint: &str) {
        let at = self
            .value_of(name)
            .map_or(self.at, |value| value.span().start);
        self.reader.report(at, &self.path_of(name), what, hint);
    }

    /// Reports an error in a text that was read.
    pub(crate) fn report_text(&self, found: &LocatedText, what: impl Into<String>, hint: &str) {
        self.reader.report_text(found, what, hint);
    }

    /// Reports that a key is absent that must be there.
    pub(crate) fn report_missing(&self, name: &str, hint: &str) {
        self.report_key(name, "is required", hint);
    }

    /// Its path, for instance `backend[1]`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The line it begins on, from 1.
    pub(crate) fn line(&self) -> usize {
        self.reader.line_at(self.at)
    }

    /// Whether the key is written.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.value_of(name).is_some()
    }

    /// A path of the file; relative ones start from its folder.
    pub(crate) fn resolve_path(&self, found: &LocatedText) -> PathBuf {
        self.reader.folder().join(&found.text)
    }

    fn value_of(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        let own = self.value.and_then(|value| value.get(name));
        own.or_else(|| self.parent.as_ref()?.value.get(name))
    }

    /// The path of a key, or of an item of it such as `vms[1]`, where it really stands.
    fn path_of(&self, name: &str) -> String {
        let key = name.split('[').next().unwrap_or_default();
        let is_own = self.value.is_some_and(|value| value.contains_key(key));
        let flat = self.parent.as_ref().filter(|parent| {
            // A key of the parent's own table never has the name of a key here.
            !is_own && parent.value.contains_key(key)
        });
        let table = flat.map_or(&self.path, |parent| &parent.path);
        format!("{table}.{name}")
    }

    /// Reports every key that this table does not declare. Flat keys of nested tables are judged once the table is chosen.
    pub(super) fn refuse_unknown_keys(&self, table: &Table) {
        for (key, _) in self.value.into_iter().flatten() {
            let name: &str = key.get_ref();
            let mut nested = table.nested.iter();
            let is_nested = nested.any(|table| table.name == name || table.declares(name));
            if !table.declares(name) && !is_nested {
                let known = table.keys.iter().map(|key| key.name());
                let known = known.chain(table.nested.iter().map(|table| table.name));
                self.report_unknown_key(name, key.span().start, &nearest_hint(name, known));
            }
        }
    }

    /// [`Self::refuse_unknown_keys`] of a nested table. In TOML, keys of the outer table that are written below the heading of
    /// a nested one belong to the nested one, which is easily overlooked.
    fn refuse_unknown_keys_within(&self, outer: &Self, outer_table: &Table, table: &Table) {
        for (key, _) in self.value.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !table.declares(name) {
                let known = table.keys.iter().map(|key| key.name());
                let hint = if outer_table.declares(name) {
                    let (heading, outer) = (outer.heading_of(table), outer_table.name);
                    format!("move it above [{heading}], to [[{outer}]]")
                } else {
                    nearest_hint(name, known)
                };
                self.report_unknown_key(name, key.span().start, &hint);
            }
        }
    }

    fn report_unknown_key(&self, name: &str, at: usize, hint: &str) {
        self.reader
            .report(at, &self.path_of(name), "unknown key", hint);
    }

    fn report_type(&self, name: &str, value: &Spanned<DeValue<'_>>, expected: &str, hint: &str) {
        let what = expected_but_got(expected, value.get_ref());
        self.reader
            .report(value.span().start, &self.path_of(name), what, hint);
    }

    pub(crate) fn read_flag(&self, key: &Key<Flag>) -> bool {
        let Some(value) = self.value_of(key.name) else {
            return key.value.0;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.report_type(key.name, value, "a boolean", "write true or false");
            key.value.0
        })
    }

    pub(crate) fn read_integer(&self, key: &Key<Integer>) -> u64 {
        let Integer { default, min, max } = key.value;
        let Some(value) = self.value_of(key.name) else {
            return default;
        };
        let hint = format!("write an integer from {min} to {max}");
        let DeValue::Integer(number) = value.get_ref() else {
            self.report_type(key.name, value, "an integer", &hint);
            return default;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if (min..=max).contains(&number) => number,
            Ok(_) | Err(_) => {
                self.report_key(key.name, format!("{number} is out of range"), &hint);
                default
            }
        }
    }

    /// [`Self::read_integer`] for numbers that are bounded far below 2^32.
    pub(crate) fn read_u32(&self, key: &Key<Integer>) -> u32 {
        u32::try_from(self.read_integer(key)).unwrap_or(u32::MAX)
    }

    /// [`Self::read_integer`] for numbers of things in memory.
    pub(crate) fn read_usize(&self, key: &Key<Integer>) -> usize {
        usize::try_from(self.read_integer(key)).unwrap_or(usize::MAX)
    }

    pub(crate) fn read_duration(&self, key: &Key<DurationValue>) -> Duration {
        let DurationValue { default, min, max } = key.value;
        let example = format_duration(default);
        let bounds = format!("{} to {}", format_duration(min), format_duration(max));
        let units = format!("write a number and a unit such as ms, s, m, h or d: \"{example}\"");
        let parse = |text: &str| humantime::parse_duration(text).ok();
        self.read_measure(key.name, "a duration", &units, parse)
            .filter(|found| self.check_range(key.name, *found >= min && *found <= max, &bounds))
            .unwrap_or(default)
    }

    /// [`Self::read_duration`] of a key that has the value of another key when it is absent.
    pub(crate) fn read_duration_or(
        &self,
        key: &Key<InheritedDuration>,
        default: Duration,
    ) -> Duration {
        let InheritedDuration { min, max, .. } = key.value;
        self.read_duration(&Key {
            name: key.name,
            value: DurationValue { default, min, max },
            takes_effect: key.takes_effect,
            help: key.help,
            example: key.example,
        })
    }

    pub(crate) fn read_size(&self, key: &Key<Size>) -> usize {
        let Size { default, min, max } = key.value;
        let example = format_size(default);
        let bounds = format!("{} to {}", format_size(min), format_size(max));
        let units = format!("write a number and a unit such as B, KiB or MiB: \"{example}\"");
        let parse = |text: &str| {
            let size = text.parse::<bytesize::ByteSize>().ok();
            size.map(|size| size.as_u64())
        };
        let found = self
            .read_measure(key.name, "a size", &units, parse)
            .filter(|found| self.check_range(key.name, (min..=max).contains(found), &bounds))
            .unwrap_or(default);
        usize::try_from(found).unwrap_or(usize::MAX)
    }

    fn check_range(&self, name: &str, is_within: bool, bounds: &str) -> bool {
        if !is_within {
            let text = self
                .value_of(name)
                .and_then(|value| value.get_ref().as_str());
            let what = format!("{:?} is out of range", text.unwrap_or_default());
            self.report_key(name, what, &format!("expected {bounds}"));
        }
        is_within
    }

    /// A text with a number and a unit in it; `None` when absent or after an error.
    fn read_measure<T>(
        &self,
        name: &str,
        expected: &str,
        units: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.value_of(name)?;
        match value.get_ref() {
            DeValue::String(text) if text.contains(|letter: char| letter.is_ascii_alphabetic()) => {
                let found = parse(text);
                if found.is_none() {
                    self.report_key(name, format!("{text:?} is not {expected}"), units);
                }
                found
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::String(_) => {
                self.report_key(name, "missing unit", units);
                None
            }
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.report_type(name, value, expected, units);
                None
            }
        }
    }

    /// One of the words; `None` when absent without default or after an error.
    pub(crate) fn read_choice(&self, key: &Key<Choice>) -> Option<&'static str> {
        let allowed = key.value.allowed;
        let quoted: Vec<String> = allowed.iter().map(|word| format!("\"{word}\"")).collect();
        let hint = format!("expected {}", quoted.join(" or "));
        let Some(value) = self.value_of(key.name) else {
            if key.value.default.is_none() {
                self.report_missing(key.name, &hint);
            }
            return key.value.default;
        };
        let Some(text) = value.get_ref().as_str() else {
            self.report_type(key.name, value, "a string", &hint);
            return None;
        };
        let found = allowed.iter().find(|word| **word == text).copied();
        if found.is_none() {
            self.report_key(key.name, format!("unknown value {text:?}"), &hint);
        }
        found
    }

    /// A text; `None` when absent without default or after an error.
    pub(crate) fn read_text(&self, key: &Key<Text>) -> Option<LocatedText> {
        let hint = format!("write {} = \"...\" ({})", key.name, key.value.form);
        let Some(value) = self.value_of(key.name) else {
            return match key.value.when_absent {
                WhenAbsent::Means(_) => None,
                WhenAbsent::Required => {
                    self.report_missing(key.name, &hint);
                    None
                }
                WhenAbsent::Default(text) => Some(self.located(key.name, text, self.at..self.at)),
            };
        };
        match value.get_ref().as_str() {
            Some("") => {
                self.report_key(key.name, "must not be empty", &hint);
                None
            }
            Some(text) => Some(self.located(key.name, text, value.span())),
            None => {
                self.report_type(key.name, value, "a string", &hint);
                None
            }
        }
    }

    /// A secret, of a key whose value is `file:PATH` or `env:NAME`; `None` when absent or after an error.
    pub(crate) fn read_secret(
        &self,
        key: &Key<Text>,
        secrets: &SecretSource<'_>,
    ) -> Option<(LocatedText, Secret)> {
        let found = self.read_text(key)?;
        if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
            let hint = "write \"file:PATH\" or \"env:NAME\"";
            self.report_text(&found, "contains the secret itself", hint);
            return None;
        }
        match secrets.resolve(&found.text, &self.reader.folder()) {
            Ok(text) => Some((found, Secret::new(text))),
            Err(what) => {
                self.report_text(&found, what, "");
                None
            }
        }
    }

    fn located(&self, name: &str, text: &str, at: Range<usize>) -> LocatedText {
        LocatedText {
            text: text.to_owned(),
            at,
            key: self.path_of(name),
        }
    }

    /// The items of a list; those that are not strings are reported and left out.
    pub(crate) fn read_texts(&self, key: &Key<TextList>) -> Vec<LocatedText> {
        let hint = format!(
            "write {} = [\"...\"] (a list of {})",
            key.name, key.value.form
        );
        let Some(value) = self.value_of(key.name) else {
            let Some(default) = key.value.default else {
                self.report_missing(key.name, &hint);
                return Vec::new();
            };
            let at = self.at..self.at;
            return default
                .iter()
                .map(|text| self.located(key.name, text, at.clone()))
                .collect();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.report_type(key.name, value, "an array", &hint);
            return Vec::new();
        };
        if items.is_empty() && key.value.default.is_none_or(|default| !default.is_empty()) {
            self.report_key(key.name, "must not be empty", &hint);
        }
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let name = format!("{}[{index}]", key.name);
            match item.get_ref().as_str() {
                Some("") => {
                    let path = self.path_of(&name);
                    let at = item.span().start;
                    self.reader.report(at, &path, "must not be empty", &hint);
                }
                Some(text) => found.push(self.located(&name, text, item.span())),
                None => self.report_type(&name, item, "a string", &hint),
            }
        }
        found
    }

    /// [`Self::read_texts`], where an item that stands twice is an error.
    pub(crate) fn read_distinct_texts(&self, key: &Key<TextList>) -> Vec<LocatedText> {
        let found = self.read_texts(key);
        for (index, item) in found.iter().enumerate() {
            let mut earlier = found.iter().take(index);
            if earlier.any(|other| other.text == item.text) {
                let what = format!("duplicate {:?}", item.text);
                self.report_text(item, what, "remove one");
            }
        }
        found
    }
}
