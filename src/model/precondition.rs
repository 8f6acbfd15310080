//! Preconditions: what must still hold when an accepted operation leaves its queue, as it held when the request was checked.
//!
//! A precondition compares what the VM manager has, without the states that unfinished operations add: an operation that
//! waits changes the state that callers see, and must not break its own precondition.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde::Serialize;

use crate::model::Backup;
use crate::model::BackupKind;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Tag;
use crate::public_text;

/// A hash over the members of a backup, or of all backups of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version([u8; 32]);

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

impl Version {
    /// The version of one backup, over every member that callers see. Of the state only whether the backup is being created,
    /// complete or damaged counts: the rest of a state comes and goes with operations.
    #[must_use]
    pub fn of_backup(backup: &Backup) -> Self {
        let mut fields = Fields::default();
        fields.add_backup(backup);
        fields.finish()
    }

    /// The version of the backups of one VM, in order of their ids.
    #[must_use]
    pub fn of_backups<'a>(backups: impl IntoIterator<Item = &'a Backup>) -> Self {
        let mut fields = Fields::default();
        for backup in backups {
            fields.add_backup(backup);
        }
        fields.finish()
    }
}

/// Shown as 64 hexadecimal digits, which is what a caller sends back.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

/// A hash over fields. Each has its length before it, so that two different lists of fields never have the same bytes.
#[derive(Default)]
pub(super) struct Fields(blake3::Hasher);

impl Fields {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.0.update(&length.to_le_bytes()).update(bytes);
    }

    pub(super) fn add_optional(&mut self, bytes: Option<&[u8]>) {
        self.add(&[u8::from(bytes.is_some())]);
        self.add(bytes.unwrap_or_default());
    }

    /// The number of fields that follow as one list.
    pub(super) fn add_count(&mut self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.add(&count.to_le_bytes());
    }

    fn add_backup(&mut self, backup: &Backup) {
        let Backup {
            id,
            identity,
            name,
            description,
            kind,
            created,
            tags,
            state,
            size,
            protected,
        } = backup;
        self.add(id.as_str().as_bytes());
        self.add(identity.as_str().as_bytes());
        self.add(name.as_str().as_bytes());
        let description = description.as_ref().map(Description::as_str);
        self.add_optional(description.map(str::as_bytes));
        self.add_optional(kind.map(BackupKind::as_str).map(str::as_bytes));
        self.add(&created.as_millis().to_le_bytes());
        self.add_count(tags.len());
        for tag in tags.iter().map(Tag::as_str) {
            self.add(tag.as_bytes());
        }
        self.add(settled_state(*state).as_bytes());
        let size = size.map(u64::to_le_bytes);
        self.add_optional(size.as_ref().map(<[u8; 8]>::as_slice));
        self.add(&[u8::from(*protected)]);
    }

    pub(super) fn finish(self) -> Version {
        Version(*self.0.finalize().as_bytes())
    }
}

/// The part of a state that does not depend on unfinished operations.
const fn settled_state(state: BackupState) -> &'static str {
    match state {
        BackupState::Creating => "creating",
        BackupState::Error => "error",
        BackupState::Available
        | BackupState::Updating
        | BackupState::Restoring
        | BackupState::Deleting => "complete",
    }
}

/// One precondition of a request. It is stored with the operation and checked again right before the VM manager is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precondition {
    /// The backup acted on is unchanged since the caller read it (`If-Match` and `If-None-Match` with entity tags).
    BackupUnchanged(Version),
    /// The backup acted on still exists (`If-Match: *`).
    BackupPresent,
    /// The backups of the VM are unchanged since the caller listed them (the same fields on a create).
    ListUnchanged(Version),
    /// A plan made now would have the same fingerprint as the one that the caller looked at (`If-Plan`).
    PlanUnchanged(Version),
}

impl Precondition {
    /// The fault when it no longer holds.
    #[must_use]
    pub fn fault(self) -> Fault {
        let text = match self {
            Self::BackupUnchanged(_) => public_text!(
                "The backup changed after the condition of this request was checked; nothing was changed. Read the backup before trying again."
            ),
            Self::BackupPresent => public_text!(
                "The backup was deleted after the condition of this request was checked; nothing was changed."
            ),
            Self::ListUnchanged(_) => public_text!(
                "The backups of the VM changed after the condition of this request was checked; nothing was changed. List them before trying again."
            ),
            Self::PlanUnchanged(_) => public_text!(
                "The plan is stale: the VM or its backups changed after it was made. Nothing was changed. Make a new plan before trying again."
            ),
        };
        Fault::new(FaultKind::PreconditionFailed, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackupId;
    use crate::model::BackupName;
    use crate::model::Identity;
    use crate::model::Timestamp;

    fn backup() -> Backup {
        Backup {
            id: BackupId::new("b").unwrap(),
            identity: Identity::new("1".to_owned()),
            name: BackupName::new("n").unwrap(),
            description: None,
            kind: None,
            created: Timestamp::default(),
            tags: Vec::new(),
            state: BackupState::Available,
            size: None,
            protected: false,
        }
    }

    fn tags(tags: &[&str]) -> Vec<Tag> {
        tags.iter().map(|tag| Tag::new(tag).unwrap()).collect()
    }

    type Change = (&'static str, fn(&mut Backup));

    /// Each changes one member.
    const CHANGES: [Change; 13] = [
        ("id", |backup| backup.id = BackupId::new("c").unwrap()),
        ("identity", |backup| {
            backup.identity = Identity::new("2".to_owned());
        }),
        ("name", |backup| backup.name = BackupName::new("m").unwrap()),
        ("description", |backup| {
            backup.description = Some(Description::new("d").unwrap());
        }),
        ("kind", |backup| backup.kind = Some(BackupKind::Full)),
        ("created", |backup| {
            backup.created = Timestamp::from_millis(1);
        }),
        ("one tag", |backup| backup.tags = tags(&["ab"])),
        ("two tags", |backup| backup.tags = tags(&["a", "b"])),
        ("creating", |backup| backup.state = BackupState::Creating),
        ("error", |backup| backup.state = BackupState::Error),
        ("size", |backup| backup.size = Some(0)),
        ("another size", |backup| backup.size = Some(1)),
        ("protected", |backup| backup.protected = true),
    ];

    #[test]
    fn every_settled_member_is_part_of_the_version() {
        let mut seen = vec![("nothing", Version::of_backup(&backup()))];
        for (name, change) in CHANGES {
            let mut changed = backup();
            change(&mut changed);
            let version = Version::of_backup(&changed);
            for (other, before) in &seen {
                assert_ne!(version, *before, "{name} and {other}");
            }
            seen.push((name, version));
        }
    }

    #[test]
    fn the_state_of_an_unfinished_operation_is_not_part_of_the_version() {
        let settled = Version::of_backup(&backup());
        for state in [
            BackupState::Updating,
            BackupState::Restoring,
            BackupState::Deleting,
        ] {
            let shown = Backup { state, ..backup() };
            assert_eq!(Version::of_backup(&shown), settled, "{state:?}");
        }
    }

    #[test]
    fn the_version_of_a_list_depends_on_every_backup_and_the_order() {
        let (first, second) = (
            backup(),
            Backup {
                id: BackupId::new("c").unwrap(),
                ..backup()
            },
        );
        let lists: [&[&Backup]; 5] = [
            &[],
            &[&first],
            &[&second],
            &[&first, &second],
            &[&second, &first],
        ];
        for (at, list) in lists.iter().enumerate() {
            for before in &lists[..at] {
                let (new, old) = (list.iter().copied(), before.iter().copied());
                assert_ne!(Version::of_backups(new), Version::of_backups(old), "{at}");
            }
        }
    }
}
