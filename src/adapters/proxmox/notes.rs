//! Names, tags and protection of backups in the texts that Proxmox VE keeps.
//!
//! A snapshot has one text, its description, which survives rollbacks; the gateway adds a last line to it. An archive
//! has notes, of which lists show the first line only; there the gateway's line comes first. What people wrote in the
//! other lines stays. The line itself: `description_trailer.rs`.

use crate::adapters::description_trailer::DescriptionTrailer;
use crate::adapters::description_trailer::shown_description;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::Description;
use crate::model::NewBackup;
use crate::model::Patch;
use crate::model::Tag;

/// Where the line of the gateway stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The last line: descriptions of snapshots.
    Last,
    /// The first line: notes of archives.
    First,
}

/// What a text says about its backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// What people wrote.
    pub(super) text: Option<String>,
    /// The id that the gateway gave to an archive, whose native name it cannot choose.
    pub(super) id: Option<String>,
    /// The name, where it is not the native one.
    pub(super) name: Option<BackupName>,
    /// The tags.
    pub(super) tags: Vec<Tag>,
    /// Whether the gateway refuses to delete a snapshot. Archives have a protection of their own.
    pub(super) protected: bool,
}

impl Notes {
    /// Those of a backup that is to be made. `id` is given for archives.
    pub(super) fn of_new(new: &NewBackup, id: Option<&str>) -> Self {
        Self {
            text: new.description.as_ref().map(ToString::to_string),
            id: id.map(str::to_owned),
            name: Some(new.name.clone()),
            tags: new.tags.clone(),
            protected: new.protected && id.is_none(),
        }
    }

    /// Reads a text. One without the line of the gateway is all description.
    pub(super) fn read(text: Option<&str>, place: Place) -> Self {
        let whole = text.unwrap_or_default().trim_end_matches('\n');
        let (line, rest) = match place {
            Place::Last => whole
                .rsplit_once('\n')
                .map_or((whole, ""), |(rest, line)| (line, rest)),
            Place::First => whole.split_once('\n').unwrap_or((whole, "")),
        };
        let own = DescriptionTrailer::parse_line(line);
        let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        match own {
            None => Self {
                text: filled(whole),
                ..Self::default()
            },
            Some(trailer) => Self {
                text: filled(rest.trim_matches('\n')),
                id: trailer.id,
                name: trailer.name,
                tags: trailer.tags,
                protected: trailer.protected,
            },
        }
    }

    /// The text that says this.
    pub(super) fn write(&self, place: Place) -> String {
        let trailer = DescriptionTrailer {
            id: self.id.clone(),
            name: self.name.clone(),
            tags: self.tags.clone(),
            protected: self.protected,
        };
        // Two braces side by side stand only in texts, and would be a variable of a template.
        let line = trailer.to_line().replace("{{", "{\\u007b");
        match (self.text.as_deref(), place) {
            (None, _) => line,
            (Some(text), Place::Last) => format!("{text}\n\n{line}"),
            (Some(text), Place::First) => format!("{line}\n{text}"),
        }
    }

    /// These notes after an update.
    pub(super) fn patched(self, patch: &BackupPatch) -> Self {
        let text = match &patch.description {
            Patch::Keep => self.text,
            Patch::Set(text) => Some(text.to_string()),
            Patch::Clear => None,
        };
        Self {
            text,
            id: self.id,
            name: patch.name.clone().or(self.name),
            tags: patch.tags.apply(Some(self.tags)).unwrap_or_default(),
            protected: patch
                .protected
                .apply(Some(self.protected))
                .unwrap_or_default(),
        }
    }

    /// The description, cut to what the API allows, with blanks for control characters.
    pub(super) fn description(&self) -> Option<Description> {
        shown_description(self.text.as_deref()?)
    }
}

/// The text as the template of a backup job's notes: one line, with escaped line feeds and backslashes, and without
/// anything that the job would replace.
pub(super) fn as_template(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\n', "\\n")
        // The job replaces `{{name}}`; a zero-width space between the braces keeps the text as it is for readers.
        .replace("{{", "{\u{200b}{")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(text: Option<&str>) -> Notes {
        Notes {
            text: text.map(str::to_owned),
            id: Some("snapgate-7".to_owned()),
            name: Some(BackupName::new("n\u{e4}chtlich {{vmid}}").unwrap()),
            tags: vec![Tag::new("db").unwrap()],
            protected: true,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for place in [Place::First, Place::Last] {
            for text in [None, Some("one line"), Some("two\nlines"), Some("a\n\nb")] {
                let written = notes(text).write(place);
                assert!(
                    written
                        .lines()
                        .any(|line| line.is_ascii() && line.starts_with("[snapgate] ")),
                    "{written}"
                );
                assert_eq!(
                    Notes::read(Some(&written), place),
                    notes(text),
                    "{place:?} {text:?}"
                );
                let with_line_feed = format!("{written}\n");
                let read = Notes::read(Some(&with_line_feed), place);
                assert_eq!(
                    read,
                    notes(text),
                    "{place:?} {text:?}: a line feed at the end"
                );
            }
        }
    }

    #[test]
    fn texts_of_others_are_all_description() {
        for text in ["by hand", "[snapgate] not json", "[snapgate] {\"v\":2}"] {
            for place in [Place::First, Place::Last] {
                let read = Notes::read(Some(text), place);
                assert_eq!(read.text.as_deref(), Some(text), "{place:?}");
                assert_eq!(read.name, None, "{place:?}");
            }
        }
        assert_eq!(Notes::read(None, Place::Last), Notes::default(), "none");
    }

    #[test]
    fn a_template_is_one_line_and_replaces_nothing() {
        let template = as_template("a\\b\n{{guestname}}");
        assert_eq!(template, "a\\\\b\\n{\u{200b}{guestname}}");
    }
}
