//! One line of the gateway in a description that a VM manager keeps: the name, tags and protection of a backup.
//!
//! Where a VM manager keeps one text with a backup, and keeps it through restores, that text also holds what else the
//! gateway knows of the backup. The rest of the text is the description that people wrote:
//!
//! ```text
//! Before the upgrade.
//!
//! [snapgate] {"v":1,"name":"nightly","tags":["db"],"protected":true}
//! ```
//!
//! The form is stored in users' VM managers: each version reads all lines that an earlier one wrote.

use std::fmt::Write as _;

use serde::Deserialize;
use serde::Serialize;

use crate::model::BackupName;
use crate::model::Description;
use crate::model::Tag;
use crate::model::limits;

/// Starts the line.
const MARK: &str = "[snapgate] ";
/// The format of the line.
const VERSION: u32 = 1;

/// What the line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescriptionTrailer {
    /// The id of the backup, where the gateway cannot choose its native name.
    pub id: Option<String>,
    /// The name, where it is not the native one.
    pub name: Option<BackupName>,
    /// The tags.
    pub tags: Vec<Tag>,
    /// Whether the gateway refuses to delete the backup.
    pub protected: bool,
}

/// The line as it is written. The order of the members is part of the format.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<BackupName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Tag>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    protected: bool,
}

impl DescriptionTrailer {
    /// Reads one line; `None` when it is not the gateway's.
    #[must_use]
    pub fn parse_line(line: &str) -> Option<Self> {
        let json = line.strip_prefix(MARK)?;
        let line = serde_json::from_str::<Line>(json).ok()?;
        (line.v == VERSION).then_some(Self {
            id: line.id,
            name: line.name,
            tags: line.tags,
            protected: line.protected,
        })
    }

    /// The line, in ASCII alone.
    #[must_use]
    pub fn to_line(&self) -> String {
        let line = Line {
            v: VERSION,
            id: self.id.clone(),
            name: self.name.clone(),
            tags: self.tags.clone(),
            protected: self.protected,
        };
        let json = serde_json::to_string(&line).unwrap_or_default();
        format!("{MARK}{}", escape_to_ascii(&json))
    }
}

/// JSON with every other character than ASCII as an escape, so that whatever stores the line keeps it.
fn escape_to_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                write!(out, "\\u{unit:04x}").unwrap_or_default();
            }
        }
    }
    out
}

/// A native text as a description: cut to the length that the API allows, with blanks for control characters.
#[must_use]
pub fn shown_description(text: &str) -> Option<Description> {
    let is_kept = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    let mut clean: String = text
        .chars()
        .map(|character| if is_kept(character) { character } else { ' ' })
        .collect();
    let is_end = |index: &usize| clean.is_char_boundary(*index);
    if let Some(end) = (0..=limits::DESCRIPTION_BYTES_MAX.min(clean.len()))
        .rev()
        .find(is_end)
    {
        clean.truncate(end);
    }
    Description::new(&clean).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_in_ascii_byte_for_byte_and_read_again() {
        let full = DescriptionTrailer {
            id: Some("snapgate-7".to_owned()),
            name: Some(BackupName::new("n\u{e4}chtlich \u{1f600}").unwrap()),
            tags: vec![Tag::new("db").unwrap()],
            protected: true,
        };
        let rows = [
            (DescriptionTrailer::default(), r#"[snapgate] {"v":1}"#),
            (
                full,
                r#"[snapgate] {"v":1,"id":"snapgate-7","name":"n\u00e4chtlich \ud83d\ude00","tags":["db"],"protected":true}"#,
            ),
        ];
        for (trailer, line) in rows {
            assert_eq!(trailer.to_line(), line, "{trailer:?}");
            let read = DescriptionTrailer::parse_line(line);
            assert_eq!(read, Some(trailer), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_ours() {
        for line in [
            "",
            "[snapgate] no JSON",
            "[snapgate] {\"v\":2}",
            "snapgate {\"v\":1}",
            "[snapgate] {\"v\":1,\"tags\":[\"\"]}",
        ] {
            assert_eq!(DescriptionTrailer::parse_line(line), None, "{line}");
        }
    }

    #[test]
    fn long_or_odd_descriptions_are_shown_as_far_as_possible() {
        let long = "\u{e9}".repeat(limits::DESCRIPTION_BYTES_MAX);
        let seen = shown_description(&long).unwrap();
        assert_eq!(seen.as_str().len(), limits::DESCRIPTION_BYTES_MAX, "cut");
        let blanks = shown_description("a\rb\u{85}").unwrap();
        assert_eq!(blanks.as_str(), "a b ", "blanks");
        assert_eq!(shown_description("").unwrap().as_str(), "", "empty");
    }
}
