//! Mistakes in a configuration: where each one is, what is wrong and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// One mistake. Ordered by place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line and column, both from 1; absent when the file as a whole is meant.
    pub place: Option<(usize, usize)>,
    /// The path of the key, for instance `backend[1].timeout`; empty when no key is meant.
    pub key: String,
    /// What is wrong. Never holds a secret.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
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

/// Every mistake of one configuration; at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    list: Vec<Problem>,
    files: Vec<PathBuf>,
}

/// Writes control characters out: what a file says must neither move the cursor of who reads the mistakes nor begin a line.
fn plain(text: &mut String) {
    if text.chars().any(char::is_control) {
        let mut written = String::new();
        for it in text.chars() {
            if it.is_control() {
                written.extend(it.escape_default());
            } else {
                written.push(it);
            }
        }
        *text = written;
    }
}

impl Problems {
    /// Takes the mistakes, and the files in which they were looked for.
    pub(super) fn new(mut list: Vec<Problem>, files: Vec<PathBuf>) -> Self {
        for it in &mut list {
            plain(&mut it.key);
            plain(&mut it.what);
            if let Some(hint) = &mut it.hint {
                plain(hint);
            }
        }
        list.sort();
        list.dedup();
        Self { list, files }
    }

    /// The mistakes, sorted by file and line.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// The files that were read: a change of any may mend the configuration.
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
            1 => f.write_str("1 mistake"),
            many => write!(f, "{many} mistakes"),
        }
    }
}
