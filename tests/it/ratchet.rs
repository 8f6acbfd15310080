//! Counts of what is to disappear, by folder, in `tests/golden/`: none may grow, and `UPDATE_GOLDEN=1` lowers those that shrank.

use std::collections::BTreeMap;
use std::fs;

/// Counts by folder.
pub(crate) type Counts = BTreeMap<String, usize>;

/// Compares counts with those of `tests/golden/NAME.txt`, of which each line is a folder and a number.
///
/// # Panics
/// When a folder has more than listed, with `details` of it; or fewer, until the list is lowered.
pub(crate) fn check_counts(name: &str, counts: &Counts, details: impl Fn(&str) -> String) {
    let path = format!("tests/golden/{name}.txt");
    let listed = read_counts(&fs::read_to_string(&path).unwrap_or_default());
    let allowed = |folder: &str| listed.get(folder).copied().unwrap_or_default();
    let grown: Vec<String> = counts
        .iter()
        .filter(|(folder, count)| **count > allowed(folder))
        .map(|(folder, count)| {
            let allowed = allowed(folder);
            format!("{folder}: {count}, allowed {allowed}\n{}", details(folder))
        })
        .collect();
    assert!(grown.is_empty(), "\n{}", grown.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let lines = counts
            .iter()
            .map(|(folder, count)| format!("{folder} {count}\n"));
        fs::write(&path, lines.collect::<String>()).unwrap();
        return;
    }
    assert_eq!(
        counts, &listed,
        "left: found, right: {path}; UPDATE_GOLDEN=1 lowers the list"
    );
}

fn read_counts(text: &str) -> Counts {
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines
        .map(|(folder, count)| (folder.to_owned(), count.parse().unwrap()))
        .collect()
}

#[apply(test)]
fn lists_of_counts_are_read() {
    let expected = Counts::from([("src/gate".to_owned(), 2), ("docs".to_owned(), 10)]);
    assert_eq!(
        read_counts("docs 10\nsrc/gate 2\n"),
        expected,
        "two folders"
    );
    assert_eq!(read_counts(""), Counts::new(), "nothing is left");
}
