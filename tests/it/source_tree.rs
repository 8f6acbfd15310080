//! The text files of this package below a folder, for tests that check rules about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Text by path, relative to the root of the package.
pub(crate) type Files = BTreeMap<String, String>;

/// All text files below a folder, or the one file; what is not UTF-8 is left out.
pub(crate) fn read_below(root: &str) -> Files {
    let mut files = Files::new();
    let mut pending = vec![Path::new(root).to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            pending.extend(entries.map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.insert(path.to_str().unwrap().to_owned(), text);
        }
    }
    files
}

/// The Rust files below a folder.
pub(crate) fn read_rust_below(root: &str) -> Files {
    let mut files = read_below(root);
    files.retain(|path, _| path.ends_with(".rs"));
    files
}

/// The part of a line before its `//` comment.
pub(crate) fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}
