//! Reads declared keys out of TOML tables and collects every mistake on the way instead of stopping at the first.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use crate::config::problem::Problem;
use crate::config::schema;
use crate::config::schema::Absent;
use crate::config::schema::Count;
use crate::config::schema::Flag;
use crate::config::schema::Key;
use crate::config::schema::Size;
use crate::config::schema::Span;
use crate::config::schema::SpanLike;
use crate::config::schema::Table;
use crate::config::schema::Text;
use crate::config::schema::Texts;
use crate::config::schema::Word;
use crate::config::suggest;

/// One file, and the mistakes found in it.
pub(super) struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

/// A text, and where it stands. Has no `Debug`: it may be a secret.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) at: Range<usize>,
    /// The path of its key.
    pub(super) key: String,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(file: &'a Path, text: &'a str) -> Self {
        let problems = RefCell::new(Vec::new());
        Self {
            file,
            text,
            problems,
        }
    }

    /// Notes a mistake.
    pub(super) fn problem(&self, at: usize, key: &str, what: impl Into<String>, hint: &str) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            place: Some(place(self.text, at)),
            key: key.to_owned(),
            what: what.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        });
    }

    /// Notes a mistake in a text that was read.
    pub(super) fn wrong(&self, found: &Found, what: impl Into<String>, hint: &str) {
        self.problem(found.at.start, &found.key, what, hint);
    }

    /// Notes a mistake that was found in another file.
    pub(super) fn elsewhere(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// The configuration file.
    pub(super) const fn file(&self) -> &Path {
        self.file
    }

    /// The folder that relative paths start from.
    pub(super) fn folder(&self) -> PathBuf {
        let folder = self.file.parent().unwrap_or_else(|| Path::new("/"));
        if folder.as_os_str().is_empty() {
            return PathBuf::from(".");
        }
        folder.to_owned()
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// The tables of that name, in order. A table that is not repeated is there even when it is not written.
    pub(super) fn sections<'s>(
        &'s self,
        root: &'s DeTable<'s>,
        table: &'s Table,
    ) -> Vec<Section<'s>> {
        let name = table.name;
        let section = |path: String, at: usize, value: Option<&'s DeTable<'s>>| Section {
            reader: self,
            path,
            at,
            value,
        };
        let Some((key, value)) = root.get_key_value(name) else {
            return if table.repeated {
                Vec::new()
            } else {
                vec![section(name.to_owned(), 0, None)]
            };
        };
        let at = key.span().start;
        let found: Vec<Section<'s>> = match (value.get_ref(), table.repeated) {
            (DeValue::Table(inner), false) => vec![section(name.to_owned(), at, Some(inner))],
            (DeValue::Array(items), true) => {
                let tables = items.iter().enumerate().filter_map(|(index, item)| {
                    let path = format!("{name}[{index}]");
                    let inner = item.get_ref().as_table();
                    if inner.is_none() {
                        let what = format!("is {} instead of a table", kind(item.get_ref()));
                        self.problem(item.span().start, &path, what, &heading(table));
                    }
                    inner.map(|it| section(path, item.span().start, Some(it)))
                });
                tables.collect()
            }
            (other, _) => {
                let what = format!("is {} in the wrong place", kind(other));
                self.problem(at, name, what, &heading(table));
                Vec::new()
            }
        };
        for it in &found {
            it.refuse_unknown(table);
        }
        found
    }

    /// Notes every table that has no meaning.
    pub(super) fn refuse_unknown_tables(&self, root: &DeTable<'_>) {
        for (key, _) in root {
            let name: &str = key.get_ref();
            if !schema::TABLES.iter().any(|table| table.name == name) {
                let hint = hint_near(
                    name,
                    schema::TABLES.iter().map(|table| table.name),
                    "tables",
                );
                self.problem(key.span().start, name, "is not a known table", &hint);
            }
        }
    }
}

/// One table of the file, or the defaults in place of one that is not written.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    at: usize,
    value: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// Notes a mistake of the table as a whole.
    pub(super) fn problem(&self, what: impl Into<String>, hint: &str) {
        self.reader.problem(self.at, &self.path, what, hint);
    }

    /// Notes a mistake in the value of one key, or in the table when the key is absent.
    pub(super) fn problem_at(&self, name: &str, what: impl Into<String>, hint: &str) {
        let at = self.value_of(name).map_or(self.at, |it| it.span().start);
        self.reader.problem(at, &self.path_of(name), what, hint);
    }

    /// Its path, for instance `backend[1]`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The line it begins on, from 1.
    pub(super) fn line(&self) -> usize {
        place(self.reader.text, self.at).0
    }

    /// Whether the key is written.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value_of(name).is_some()
    }

    fn value_of(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.value.and_then(|value| value.get(name))
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    fn refuse_unknown(&self, table: &Table) {
        for (key, _) in self.value.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !table.keys.iter().any(|key| key.name() == name) {
                let hint = hint_near(name, table.keys.iter().map(|key| key.name()), "keys");
                let path = self.path_of(name);
                self.reader
                    .problem(key.span().start, &path, "is not a known key", &hint);
            }
        }
    }

    fn mistyped(&self, name: &str, value: &Spanned<DeValue<'_>>, wanted: &str, hint: &str) {
        let what = format!("is {} instead of {wanted}", kind(value.get_ref()));
        self.reader
            .problem(value.span().start, &self.path_of(name), what, hint);
    }

    pub(super) fn flag(&self, key: &Key<Flag>) -> bool {
        let Some(value) = self.value_of(key.name) else {
            return key.kind.0;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.mistyped(key.name, value, "true or false", "write true or false");
            key.kind.0
        })
    }

    pub(super) fn count(&self, key: &Key<Count>) -> u64 {
        let Count { default, min, max } = key.kind;
        let Some(value) = self.value_of(key.name) else {
            return default;
        };
        let hint = format!("write a number from {min} to {max}");
        let DeValue::Integer(number) = value.get_ref() else {
            self.mistyped(key.name, value, "a number", &hint);
            return default;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(it) if (min..=max).contains(&it) => it,
            Ok(_) | Err(_) => {
                self.problem_at(key.name, format!("{number} is out of range"), &hint);
                default
            }
        }
    }

    /// [`Self::count`] for numbers that are bounded far below 2^32.
    pub(super) fn small(&self, key: &Key<Count>) -> u32 {
        u32::try_from(self.count(key)).unwrap_or(u32::MAX)
    }

    /// [`Self::count`] for numbers of things in memory.
    pub(super) fn number(&self, key: &Key<Count>) -> usize {
        usize::try_from(self.count(key)).unwrap_or(usize::MAX)
    }

    pub(super) fn span(&self, key: &Key<Span>) -> Duration {
        let Span { default, min, max } = key.kind;
        let example = schema::written(default);
        let bounds = format!("{} to {}", schema::written(min), schema::written(max));
        let units = format!("write a number and a unit such as ms, s, m, h or d: \"{example}\"");
        let read = |text: &str| humantime::parse_duration(text).ok();
        self.measured(key.name, "a duration", &units, read)
            .filter(|it| self.within(key.name, *it >= min && *it <= max, &bounds))
            .unwrap_or(default)
    }

    /// [`Self::span`] of a key that has the value of another key when it is absent.
    pub(super) fn span_or(&self, key: &Key<SpanLike>, default: Duration) -> Duration {
        let SpanLike { min, max, .. } = key.kind;
        self.span(&Key {
            name: key.name,
            kind: Span { default, min, max },
            applies: key.applies,
            help: key.help,
        })
    }

    pub(super) fn size(&self, key: &Key<Size>) -> usize {
        let Size { default, min, max } = key.kind;
        let example = schema::written_size(default);
        let bounds = format!(
            "{} to {}",
            schema::written_size(min),
            schema::written_size(max)
        );
        let units = format!("write a number and a unit such as B, KiB or MiB: \"{example}\"");
        let read = |text: &str| {
            text.parse::<bytesize::ByteSize>()
                .ok()
                .map(|it| it.as_u64())
        };
        let found = self
            .measured(key.name, "a size", &units, read)
            .filter(|it| self.within(key.name, (min..=max).contains(it), &bounds))
            .unwrap_or(default);
        usize::try_from(found).unwrap_or(usize::MAX)
    }

    fn within(&self, name: &str, inside: bool, bounds: &str) -> bool {
        if !inside {
            let text = self.value_of(name).and_then(|it| it.get_ref().as_str());
            let what = format!("\"{}\" is out of range", text.unwrap_or_default());
            self.problem_at(name, what, &format!("allowed is {bounds}"));
        }
        inside
    }

    /// A text with a number and a unit in it; `None` when absent or after a mistake was noted.
    fn measured<T>(
        &self,
        name: &str,
        wanted: &str,
        units: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.value_of(name)?;
        match value.get_ref() {
            DeValue::String(text) if text.contains(|it: char| it.is_ascii_alphabetic()) => {
                let found = read(text);
                if found.is_none() {
                    self.problem_at(name, format!("\"{text}\" is not {wanted}"), units);
                }
                found
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::String(_) => {
                self.problem_at(name, "has no unit", units);
                None
            }
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.mistyped(name, value, wanted, units);
                None
            }
        }
    }

    /// One of the words; `None` when absent without default or after a mistake was noted.
    pub(super) fn word(&self, key: &Key<Word>) -> Option<&'static str> {
        let allowed = key.kind.allowed;
        let quoted: Vec<String> = allowed.iter().map(|it| format!("\"{it}\"")).collect();
        let hint = format!("write {}", quoted.join(" or "));
        let Some(value) = self.value_of(key.name) else {
            if key.kind.default.is_none() {
                self.missing(key.name, &hint);
            }
            return key.kind.default;
        };
        let Some(text) = value.get_ref().as_str() else {
            self.mistyped(key.name, value, "text", &hint);
            return None;
        };
        let found = allowed.iter().find(|it| **it == text).copied();
        if found.is_none() {
            self.problem_at(key.name, format!("{text:?} is not known"), &hint);
        }
        found
    }

    fn missing(&self, name: &str, hint: &str) {
        let path = self.path_of(name);
        self.reader.problem(self.at, &path, "is missing", hint);
    }

    /// A text; `None` when absent without default or after a mistake was noted.
    pub(super) fn text(&self, key: &Key<Text>) -> Option<Found> {
        let hint = format!("write {} = \"...\" ({})", key.name, key.kind.form);
        let Some(value) = self.value_of(key.name) else {
            return match key.kind.absent {
                Absent::Means(_) => None,
                Absent::Mistake => {
                    self.missing(key.name, &hint);
                    None
                }
                Absent::Default(text) => Some(self.found(key.name, text, self.at..self.at)),
            };
        };
        match value.get_ref().as_str() {
            Some("") => {
                self.problem_at(key.name, "is empty", &hint);
                None
            }
            Some(text) => Some(self.found(key.name, text, value.span())),
            None => {
                self.mistyped(key.name, value, "text", &hint);
                None
            }
        }
    }

    fn found(&self, name: &str, text: &str, at: Range<usize>) -> Found {
        Found {
            text: text.to_owned(),
            at,
            key: self.path_of(name),
        }
    }

    /// The items of a list; those that are no text are noted and left out.
    pub(super) fn texts(&self, key: &Key<Texts>) -> Vec<Found> {
        let hint = format!(
            "write {} = [\"...\"] (a list of {})",
            key.name, key.kind.form
        );
        let Some(value) = self.value_of(key.name) else {
            let Some(default) = key.kind.default else {
                self.missing(key.name, &hint);
                return Vec::new();
            };
            let at = self.at..self.at;
            return default
                .iter()
                .map(|it| self.found(key.name, it, at.clone()))
                .collect();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.mistyped(key.name, value, "a list", &hint);
            return Vec::new();
        };
        if items.is_empty() && key.kind.default.is_none_or(|default| !default.is_empty()) {
            self.problem_at(key.name, "is empty", &hint);
        }
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let name = format!("{}[{index}]", key.name);
            match item.get_ref().as_str() {
                Some("") => {
                    let path = self.path_of(&name);
                    let at = item.span().start;
                    self.reader.problem(at, &path, "is empty", &hint);
                }
                Some(text) => found.push(self.found(&name, text, item.span())),
                None => self.mistyped(&name, item, "text", &hint),
            }
        }
        found
    }
}

fn heading(table: &Table) -> String {
    if table.repeated {
        format!("write [[{}]] above each one", table.name)
    } else {
        format!("write [{}] above its keys", table.name)
    }
}

fn hint_near<'k>(name: &str, known: impl Iterator<Item = &'k str> + Clone, what: &str) -> String {
    suggest::nearest(name, known.clone()).map_or_else(
        || format!("known {what} are {}", known.collect::<Vec<_>>().join(", ")),
        |it| format!("did you mean \"{it}\"?"),
    )
}

/// The kind of a value with its article.
const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Line and column of a byte, both from 1.
pub(super) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count().saturating_add(1);
    let column = before.rsplit('\n').next().unwrap_or_default();
    (line, column.chars().count().saturating_add(1))
}
