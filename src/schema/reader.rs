//! One TOML file: its tables, and the errors and warnings found in it.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;
use toml::de::DeValue;

use crate::model::suggest;
use crate::schema::Problem;
use crate::schema::Section;
use crate::schema::Table;

/// One file, and the errors and warnings found in it.
///
/// Nothing here stops at the first error: a value that cannot be used is reported and replaced by its default or `None`.
pub(crate) struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

/// A text and its position. Has no `Debug`: it may be a secret.
pub(crate) struct LocatedText {
    pub(crate) text: String,
    pub(crate) at: Range<usize>,
    /// The path of its key.
    pub(crate) key: String,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            text,
            problems: RefCell::new(Vec::new()),
            warnings: RefCell::new(Vec::new()),
        }
    }

    /// Reports an error at a byte of the file; an empty hint is none.
    pub(crate) fn report(&self, at: usize, key: &str, what: impl Into<String>, hint: &str) {
        self.problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            position: Some(line_and_column(self.text, at)),
            key: key.to_owned(),
            what: what.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        });
    }

    /// Reports an error in a text that was read.
    pub(crate) fn report_text(&self, found: &LocatedText, what: impl Into<String>, hint: &str) {
        self.report(found.at.start, &found.key, what, hint);
    }

    /// Reports an error that was found in another file.
    pub(crate) fn report_in_other_file(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Notes something that is allowed and that the operator should change.
    pub(crate) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The warnings so far, in the order of reading.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    /// The configuration file.
    pub(crate) const fn file(&self) -> &Path {
        self.file
    }

    /// The folder that relative paths start from.
    pub(crate) fn folder(&self) -> PathBuf {
        let folder = self.file.parent().unwrap_or_else(|| Path::new("/"));
        if folder.as_os_str().is_empty() {
            return PathBuf::from(".");
        }
        folder.to_owned()
    }

    /// The line of a byte, from 1.
    pub(super) fn line_at(&self, at: usize) -> usize {
        line_and_column(self.text, at).0
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// The tables of that name, in order. A table that is not repeated is there even when it is not written.
    pub(crate) fn sections<'s>(
        &'s self,
        root: &'s DeTable<'s>,
        table: &'s Table,
    ) -> Vec<Section<'s>> {
        let name = table.name;
        let Some((key, value)) = root.get_key_value(name) else {
            return if table.repeated {
                Vec::new()
            } else {
                vec![Section::new(self, name.to_owned(), 0, None)]
            };
        };
        let at = key.span().start;
        let sections = match (value.get_ref(), table.repeated) {
            (DeValue::Table(inner), false) => {
                vec![Section::new(self, name.to_owned(), at, Some(inner))]
            }
            (DeValue::Array(items), true) => {
                let tables = items.iter().enumerate().filter_map(|(index, item)| {
                    let path = format!("{name}[{index}]");
                    let inner = item.get_ref().as_table();
                    if inner.is_none() {
                        let what = expected_but_got("a table", item.get_ref());
                        self.report(item.span().start, &path, what, &heading_hint(table));
                    }
                    inner.map(|inner| Section::new(self, path, item.span().start, Some(inner)))
                });
                tables.collect()
            }
            (other, is_list) => {
                let expected = if is_list {
                    "an array of tables"
                } else {
                    "a table"
                };
                let what = expected_but_got(expected, other);
                self.report(at, name, what, &heading_hint(table));
                Vec::new()
            }
        };
        for section in &sections {
            section.refuse_unknown_keys(table);
        }
        sections
    }

    /// Reports every table of the file that is not among these.
    pub(crate) fn refuse_unknown_tables(&self, root: &DeTable<'_>, known: &[Table]) {
        for (key, _) in root {
            let name: &str = key.get_ref();
            if !known.iter().any(|table| table.name == name) {
                let hint = nearest_hint(name, known.iter().map(|table| table.name));
                self.report(key.span().start, name, "unknown table", &hint);
            }
        }
    }
}

fn heading_hint(table: &Table) -> String {
    if table.repeated {
        format!("write [[{}]] above each one", table.name)
    } else {
        format!("write [{}] above its keys", table.name)
    }
}

/// The hint for an unknown name: the one that is probably meant, or all of them.
pub(super) fn nearest_hint<'k>(name: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    suggest::nearest_or_prefix(name, known.clone()).map_or_else(
        || format!("expected one of {}", known.collect::<Vec<_>>().join(", ")),
        |meant| format!("did you mean \"{meant}\"?"),
    )
}

/// `expected a string, got an integer`; `expected` has its article.
pub(super) fn expected_but_got(expected: &str, got: &DeValue<'_>) -> String {
    format!("expected {expected}, got {}", type_name(got))
}

/// The type of a value with its article.
const fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Line and column of a byte, both from 1.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count().saturating_add(1);
    let column = before.rsplit('\n').next().unwrap_or_default();
    (line, column.chars().count().saturating_add(1))
}
