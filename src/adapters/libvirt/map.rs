//! From libvirt's snapshots to backups: names, descriptions with our trailer, identities, states.
//!
//! libvirt keeps one text for us through restores and restarts, the description of the snapshot. Its last line is ours:
//! see `description_trailer.rs`.

use data_encoding::HEXLOWER;

use crate::adapters::description_trailer::DescriptionTrailer;
use crate::adapters::description_trailer::shown_description;
use crate::adapters::libvirt::native::Domain;
use crate::adapters::libvirt::native::DomainState;
use crate::adapters::libvirt::snapshot_xml::SnapshotXml;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Identity;
use crate::model::NewBackup;
use crate::model::Patch;
use crate::model::RunState;
use crate::model::Tag;
use crate::model::Timestamp;

/// Between the description and that line.
const GAP: &str = "\n\n";
/// Starts the names of snapshots that the gateway makes; a number follows ([`crate::model::RequestKey`]).
const MINTED: &str = "snapgate-";
/// What libvirt's description of a snapshot says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// What a person wrote, however long.
    pub(crate) text: Option<String>,
    /// The name, when it is not the snapshot's own.
    pub(crate) name: Option<BackupName>,
    /// The tags.
    pub(crate) tags: Vec<Tag>,
    /// Whether it refuses to be deleted.
    pub(crate) protected: bool,
}

impl Notes {
    /// Of a snapshot that is to be made.
    pub(crate) fn of_new(new: &NewBackup) -> Self {
        Self {
            text: new.description.as_ref().map(ToString::to_string),
            name: Some(new.name.clone()),
            tags: new.tags.clone(),
            protected: new.protected,
        }
    }

    /// From libvirt's description. A text without our line is all description.
    pub(crate) fn read(description: Option<&str>) -> Self {
        let Some(whole) = description else {
            return Self::default();
        };
        Self::read_last_line(whole).unwrap_or_else(|| Self::read_any_line(whole))
    }

    /// From a description to which others added text after our line, or removed the line.
    fn read_any_line(whole: &str) -> Self {
        let lines: Vec<&str> = whole.split('\n').collect();
        let found = lines
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, line)| Some((at, DescriptionTrailer::parse_line(line.trim())?)));
        let Some((at, trailer)) = found else {
            return Self {
                text: Some(whole.to_owned()),
                ..Self::default()
            };
        };
        let (before, rest) = lines.split_at(at);
        let after = rest.get(1..).unwrap_or_default();
        let mut kept = before.to_vec();
        // The gap.
        if kept.last().is_some_and(|line| line.is_empty()) {
            kept.pop();
        }
        kept.extend(after);
        while kept.last().is_some_and(|line| line.trim().is_empty()) {
            kept.pop();
        }
        Self {
            text: Some(kept.join("\n")).filter(|text| !text.is_empty()),
            name: trailer.name,
            tags: trailer.tags,
            protected: trailer.protected,
        }
    }

    fn read_last_line(whole: &str) -> Option<Self> {
        let (before, last) = match whole.rfind('\n').and_then(|at| whole.split_at_checked(at)) {
            Some((before, last)) => (before, last.trim_start_matches('\n')),
            None => ("", whole),
        };
        let trailer = DescriptionTrailer::parse_line(last)?;
        Some(Self {
            // The gap's first line feed; its second was cut off above.
            text: before
                .strip_suffix('\n')
                .or_else(|| Some(before).filter(|before| !before.is_empty()))
                .map(str::to_owned),
            name: trailer.name,
            tags: trailer.tags,
            protected: trailer.protected,
        })
    }

    /// libvirt's description that says this.
    pub(crate) fn write(&self) -> String {
        let trailer = DescriptionTrailer {
            id: None,
            name: self.name.clone(),
            tags: self.tags.clone(),
            protected: self.protected,
        };
        let text = self.text.as_deref();
        let (text, gap) = text.map_or(("", ""), |text| (text, GAP));
        format!("{text}{gap}{}", trailer.to_line())
    }

    /// These notes after an update. A description that is kept stays as it is, even one that is too long for us.
    pub(crate) fn patched(self, patch: &BackupPatch) -> Self {
        let text = match &patch.description {
            Patch::Keep => self.text,
            Patch::Set(text) => Some(text.to_string()),
            Patch::Clear => None,
        };
        Self {
            text,
            name: patch.name.clone().or(self.name),
            tags: patch.tags.apply(Some(self.tags)).unwrap_or_default(),
            protected: patch.protected.apply(Some(self.protected)).unwrap_or(false),
        }
    }
}

/// Whether the snapshot's properties were written by us and removed by another program's edit.
///
/// Only we make snapshots of such names, and never without our line.
pub(crate) fn is_stripped(snapshot: &SnapshotXml) -> bool {
    let number = snapshot.name.strip_prefix(MINTED);
    let is_minted = number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let description = snapshot.description.as_deref().unwrap_or_default();
    is_minted
        && !description
            .lines()
            .any(|line| DescriptionTrailer::parse_line(line.trim()).is_some())
}

/// The backup that a snapshot is; `None` when its name cannot be the id of a backup.
pub(crate) fn backup(domain: &Domain, snapshot: &SnapshotXml) -> Option<Backup> {
    let notes = Notes::read(snapshot.description.as_deref());
    let id = BackupId::new(&snapshot.name).ok()?;
    let name = match notes.name {
        Some(name) => name,
        None => BackupName::new(&snapshot.name).ok()?,
    };
    Some(Backup {
        id,
        identity: identity(domain, snapshot),
        name,
        description: notes.text.as_deref().and_then(shown_description),
        kind: Some(BackupKind::Snapshot),
        created: Timestamp::from_millis(snapshot.created.saturating_mul(1000)),
        tags: notes.tags,
        state: BackupState::Available,
        size: None,
        // Whether it was protected is not known any more, so it is until an update says otherwise.
        protected: notes.protected || is_stripped(snapshot),
    })
}

/// What sets a snapshot apart from another one of its name: the VM's UUID and when it was made.
pub(crate) fn identity(domain: &Domain, snapshot: &SnapshotXml) -> Identity {
    let uuid = HEXLOWER.encode(&domain.uuid);
    Identity::new(format!("{uuid}/{}/{}", snapshot.created, snapshot.name))
}

/// The bytes of a UUID in its usual form.
pub(crate) fn uuid(text: &str) -> Option<[u8; 16]> {
    let hyphens = [8, 13, 18, 23];
    let fits = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| {
            if hyphens.contains(&at) {
                byte == b'-'
            } else {
                byte.is_ascii_hexdigit()
            }
        });
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| fits)?;
    Some(number.to_be_bytes())
}

/// What a VM does, in words. libvirt's numbers: `virDomainState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmActivity {
    /// It runs.
    Running,
    /// It is in memory and does not run.
    Paused,
    /// It is off.
    Off,
    /// Not one of these, or not one that is known.
    Other,
}

/// Whether the VM is in the middle of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmCondition {
    /// It is not.
    Settled,
    /// Its guest is shutting down.
    ShuttingDown,
    /// It moves to or from another host.
    Migrating,
    /// It has crashed, and is kept in memory.
    Crashed,
    /// Its guest sleeps until it is woken.
    Suspended,
}

impl DomainState {
    /// Whether the VM of this number is in the middle of something.
    pub(crate) const fn condition(self, id: i32) -> VmCondition {
        match (self.state, self.reason) {
            (4, _) | (3, 8) => VmCondition::ShuttingDown,
            // Running while or after a post-copy migration; paused for a migration, or by one that failed.
            (1, 10 | 11) | (3, 2 | 12 | 13) => VmCondition::Migrating,
            (6, _) if id >= 0 => VmCondition::Crashed,
            (3, 10) => VmCondition::Crashed,
            (7, _) => VmCondition::Suspended,
            _ => VmCondition::Settled,
        }
    }

    /// In words.
    pub(crate) const fn activity(self) -> VmActivity {
        match self.state {
            1 | 2 | 4 => VmActivity::Running,
            3 | 7 => VmActivity::Paused,
            5 | 6 => VmActivity::Off,
            _ => VmActivity::Other,
        }
    }

    /// Whether libvirt has paused it to make a snapshot or to save it.
    pub(crate) const fn is_saving(self) -> bool {
        self.state == 3 && (self.reason == 3 || self.reason == 9)
    }

    /// Whether what it does is what a snapshot made it do.
    pub(crate) const fn is_from_snapshot(self) -> bool {
        matches!((self.state, self.reason), (1, 4) | (3, 7) | (5, 7))
    }

    /// Whether it is off because it, QEMU or libvirt failed.
    pub(crate) const fn is_off_by_failure(self) -> bool {
        matches!((self.state, self.reason), (5, 3 | 6 | 8) | (6, _))
    }

    /// For callers; `None` when it is not known.
    pub(crate) const fn run_state(self) -> Option<RunState> {
        match self.activity() {
            VmActivity::Running => Some(RunState::Started),
            VmActivity::Paused => Some(RunState::Sleeping),
            VmActivity::Off => Some(RunState::Stopped),
            VmActivity::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(text: Option<&str>, tags: &[&str]) -> Notes {
        Notes {
            text: text.map(str::to_owned),
            name: Some(BackupName::new("n\u{e4}chtlich \u{1f600}").unwrap()),
            tags: tags.iter().map(|tag| Tag::new(tag).unwrap()).collect(),
            protected: true,
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let rows = [
            ("nothing", None),
            ("empty", Some("")),
            ("one line", Some("before the upgrade")),
            ("several lines", Some("a\n\nb\n")),
            ("line feeds alone", Some("\n\n\n")),
            (
                "a text like ours",
                Some("[snapgate] {\"v\":1,\"name\":\"x\"}"),
            ),
            ("ends like ours", Some("a\n\n[snapgate] {\"v\":1}")),
        ];
        for (name, text) in rows {
            let written = notes(text, &["a b", "\u{fffe}", "\"q\""]);
            let line = written.write();
            assert_eq!(Notes::read(Some(&line)), written, "{name}");
        }
        assert!(
            notes(None, &["\u{fffe}"]).write().is_ascii(),
            "the line is ASCII"
        );
    }

    #[test]
    fn foreign_descriptions_are_all_text() {
        let rows = [
            "written by hand",
            "two\nlines",
            "[snapgate] no JSON",
            "a\n\n[snapgate] {\"v\":2}",
            "[snapgate] {\"v\":1,\"tags\":[\"\"]}",
        ];
        for text in rows {
            let read = Notes::read(Some(text));
            assert_eq!(read.text.as_deref(), Some(text), "{text}");
            assert_eq!(read.name, None, "{text}: no name");
            let patch = BackupPatch {
                tags: Patch::Set(vec![Tag::new("t").unwrap()]),
                ..BackupPatch::default()
            };
            let after = Notes::read(Some(&read.patched(&patch).write()));
            assert_eq!(after.text.as_deref(), Some(text), "{text}: kept");
            assert_eq!(after.tags.len(), 1, "{text}: tagged");
        }
        assert_eq!(Notes::read(None), Notes::default(), "none at all");
    }

    #[test]
    fn an_edit_by_others_around_our_line_loses_nothing() {
        let written = notes(Some("before"), &["a"]);
        let line = written.write();
        let rows = [
            ("a line feed after it", format!("{line}\n"), "before"),
            ("blanks around it", format!("{line}  \n\n"), "before"),
            ("text after it", format!("{line}\nafter"), "before\nafter"),
            ("text before it", format!("more\n{line}"), "more\nbefore"),
        ];
        for (name, text, expected) in rows {
            let read = Notes::read(Some(&text));
            assert_eq!(read.text.as_deref(), Some(expected), "{name}");
            assert_eq!(read.tags, written.tags, "{name}: tags");
            assert!(read.protected, "{name}: protected");
        }
    }

    #[test]
    fn a_backup_of_ours_whose_line_was_removed_counts_as_protected() {
        let domain = Domain {
            name: "web01".to_owned(),
            uuid: [7; 16],
            id: 1,
        };
        let plain = Notes {
            protected: false,
            ..notes(None, &[])
        };
        let rows = [
            ("snapgate-7", None, true),
            ("snapgate-7", Some("edited".to_owned()), true),
            ("snapgate-7", Some(plain.write()), false),
            ("snapgate-7x", None, false),
            ("by-hand", None, false),
        ];
        for (name, description, expected) in rows {
            let snapshot = SnapshotXml {
                name: name.to_owned(),
                description,
                created: 1,
                memory: crate::adapters::libvirt::snapshot_xml::SnapshotLocation::NotIncluded,
                disks: Vec::new(),
                definition: None,
                persistent: None,
            };
            let seen = backup(&domain, &snapshot).unwrap();
            assert_eq!(seen.protected, expected, "{snapshot:?}");
        }
    }

    #[test]
    fn states_in_the_middle_of_something_are_known() {
        let rows = [
            ((1, 1), 3, VmCondition::Settled),
            ((1, 10), 3, VmCondition::Migrating),
            ((3, 2), 3, VmCondition::Migrating),
            ((3, 5), 3, VmCondition::Settled),
            ((3, 8), 3, VmCondition::ShuttingDown),
            ((4, 1), 3, VmCondition::ShuttingDown),
            ((5, 1), -1, VmCondition::Settled),
            ((5, 2), -1, VmCondition::Settled),
            ((6, 1), 3, VmCondition::Crashed),
            ((6, 0), -1, VmCondition::Settled),
            ((7, 0), 3, VmCondition::Suspended),
        ];
        for ((state, reason), id, expected) in rows {
            let seen = DomainState { state, reason }.condition(id);
            assert_eq!(seen, expected, "{state} {reason} {id}");
        }
    }

    #[test]
    fn uuids_are_distinguished_from_names() {
        let bytes = uuid("6979386f-745d-4b49-bb23-7148f7eebbb1").unwrap();
        assert_eq!(bytes.first_chunk(), Some(&[0x69, 0x79]), "first bytes");
        for name in [
            "web01",
            "",
            "6979386f745d-4b49-bb23-7148f7eebbb1-",
            "+979386f-745d-4b49-bb23-7148f7eebbb1",
        ] {
            assert_eq!(uuid(name), None, "{name}");
        }
    }
}
