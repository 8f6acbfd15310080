//! Text for people: tables, sizes and ages, and nothing from a server that could steer the terminal.

use std::fmt::Write as _;
use std::time::Duration;

use crate::model::Timestamp;
use crate::telemetry::escape_line;

/// The text with everything escaped that a terminal would not show as it is: names come from everyone who may make backups.
pub(super) fn printable(text: &str) -> String {
    escape_line(text)
}

/// Lines of cells in columns that are as wide as their widest cell.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let all: Vec<&Vec<String>> = std::iter::once(&heads).chain(&rows).collect();
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _infallible = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes, as people say them.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// How long ago a time of a server was; empty where it cannot be read.
pub(super) fn age(created: &str, now: Timestamp) -> String {
    let Some(then) = Timestamp::parse_rfc3339(created) else {
        return String::new();
    };
    format!("{} ago", duration(now.since(then)))
}

/// A duration in its largest unit, and in seconds below a minute.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute")];
    for (length, unit) in units {
        let count = seconds.checked_div(length).unwrap_or_default();
        if count > 0 {
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {unit}{plural}");
        }
    }
    format!("{seconds} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        let rows = [
            ("web01", "web01"),
            ("b\u{fc}ro", "b\u{fc}ro"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("a\nb", "a\\u{a}b"),
        ];
        for (name, expected) in rows {
            assert_eq!(printable(name), expected, "{name:?}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["1".to_owned(), "web01".to_owned()],
            vec!["23456".to_owned(), String::new()],
        ];
        let text = table(&["ID", "NAME"], &rows);
        assert_eq!(text, "ID     NAME\n1      web01\n23456\n", "{text}");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let now = Timestamp::parse_rfc3339("2026-01-02T00:00:00Z").unwrap();
        let rows = [
            ("2026-01-01T23:59:30Z", "30 s ago"),
            ("2026-01-01T23:58:59Z", "1 minute ago"),
            ("2026-01-01T21:00:00Z", "3 hours ago"),
            ("2025-12-30T00:00:00Z", "3 days ago"),
            // A clock that is a little behind.
            ("2026-01-02T00:00:05Z", "0 s ago"),
            ("then", ""),
        ];
        for (created, expected) in rows {
            assert_eq!(age(created, now), expected, "{created}");
        }
        assert_eq!(size(16 * 1024 * 1024), "16.0 MiB", "bytes");
    }
}
