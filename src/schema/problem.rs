//! Errors in a configuration: where each one is, what is wrong and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// One error. Ordered by file and position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line and column, both from 1; `None` for the file as a whole.
    pub position: Option<(usize, usize)>,
    /// The path of the key, for instance `backend[1].timeout`; empty when the error is not about a key.
    pub key: String,
    /// What is wrong. Never holds a secret.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if self.key.is_empty() {
            writeln!(f, ": {}", self.what)?;
        } else {
            writeln!(f, ": {}: {}", self.key, self.what)?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "    hint: {hint}")?;
        }
        Ok(())
    }
}

/// Every error of one configuration; at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    list: Vec<Problem>,
    files: Vec<PathBuf>,
}

/// Escapes control characters: text of a file must neither move the cursor of a terminal nor begin a line of the output.
fn escape_controls(text: &mut String) {
    if text.chars().any(char::is_control) {
        let mut escaped = String::new();
        for character in text.chars() {
            if character.is_control() {
                escaped.extend(character.escape_default());
            } else {
                escaped.push(character);
            }
        }
        *text = escaped;
    }
}

impl Problems {
    /// Takes the errors, and the files that were read.
    pub(crate) fn new(mut list: Vec<Problem>, files: Vec<PathBuf>) -> Self {
        for problem in &mut list {
            escape_controls(&mut problem.key);
            escape_controls(&mut problem.what);
            if let Some(hint) = &mut problem.hint {
                escape_controls(hint);
            }
        }
        list.sort();
        list.dedup();
        Self { list, files }
    }

    /// The errors, sorted by file and line.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// The files that were read: a change of any may correct the configuration.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            writeln!(f, "{problem}")?;
        }
        match self.list.len() {
            1 => f.write_str("1 error"),
            many => write!(f, "{many} errors"),
        }
    }
}
