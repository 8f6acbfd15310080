//! What must still hold when an accepted operation leaves its queue, as it held when the request was judged.
//!
//! A precondition compares what the VM manager has, never what unfinished operations make of it: the operation that waits
//! changes the state that callers are shown, and must not fail over itself.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::model::Backup;
use crate::model::BackupKind;
use crate::model::BackupState;
use crate::model::Description;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Tag;

/// A hash over what a backup, or all backups of a VM, are like.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version([u8; 32]);

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Version(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

impl Version {
    /// The version of one backup. Every member that callers are shown is in it. Of the state only whether the backup is
    /// being made, complete or damaged: what else a state says comes and goes with operations.
    #[must_use]
    pub fn of_backup(backup: &Backup) -> Self {
        let mut fields = Fields::default();
        fields.backup(backup);
        fields.version()
    }

    /// The version of the backups of one VM, in order of their ids.
    #[must_use]
    pub fn of_backups<'a>(backups: impl IntoIterator<Item = &'a Backup>) -> Self {
        let mut fields = Fields::default();
        for backup in backups {
            fields.backup(backup);
        }
        fields.version()
    }
}

/// Fields with their lengths before them, so that no two rows of fields are the same bytes.
#[derive(Default)]
struct Fields(blake3::Hasher);

impl Fields {
    fn field(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.0.update(&length.to_le_bytes()).update(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.field(&[u8::from(bytes.is_some())]);
        self.field(bytes.unwrap_or_default());
    }

    fn backup(&mut self, backup: &Backup) {
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
        self.field(id.as_str().as_bytes());
        self.field(identity.as_str().as_bytes());
        self.field(name.as_str().as_bytes());
        let description = description.as_ref().map(Description::as_str);
        self.optional(description.map(str::as_bytes));
        self.optional(kind.map(BackupKind::as_str).map(str::as_bytes));
        self.field(&created.as_millis().to_le_bytes());
        let count = u64::try_from(tags.len()).unwrap_or(u64::MAX);
        self.field(&count.to_le_bytes());
        for tag in tags.iter().map(Tag::as_str) {
            self.field(tag.as_bytes());
        }
        self.field(lasting(*state).as_bytes());
        let size = size.map(u64::to_le_bytes);
        self.optional(size.as_ref().map(<[u8; 8]>::as_slice));
        self.field(&[u8::from(*protected)]);
    }

    fn version(self) -> Version {
        Version(*self.0.finalize().as_bytes())
    }
}

/// What of a state is left when no operation is unfinished.
const fn lasting(state: BackupState) -> &'static str {
    match state {
        BackupState::Creating => "creating",
        BackupState::Error => "error",
        BackupState::Available
        | BackupState::Updating
        | BackupState::Restoring
        | BackupState::Deleting => "complete",
    }
}

/// One condition of a request. It is kept with the operation and looked at again right before the VM manager is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precondition {
    /// The backup acted on is as the caller saw it (`If-Match` and `If-None-Match` with entity tags).
    BackupUnchanged(Version),
    /// The backup acted on is still there (`If-Match: *`).
    BackupPresent,
    /// The backups of the VM are as the caller saw them (the same fields on a create).
    ListUnchanged(Version),
}

impl Precondition {
    /// What the caller learns when it no longer holds.
    #[must_use]
    pub fn fault(self) -> Fault {
        let text = match self {
            Self::BackupUnchanged(_) => {
                "The backup changed after the condition of this request was checked; nothing was changed. Read the backup before trying again."
            }
            Self::BackupPresent => {
                "The backup was deleted after the condition of this request was checked; nothing was changed."
            }
            Self::ListUnchanged(_) => {
                "The backups of the VM changed after the condition of this request was checked; nothing was changed. List them before trying again."
            }
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
        ("id", |it| it.id = BackupId::new("c").unwrap()),
        ("identity", |it| it.identity = Identity::new("2".to_owned())),
        ("name", |it| it.name = BackupName::new("m").unwrap()),
        ("description", |it| {
            it.description = Some(Description::new("d").unwrap());
        }),
        ("kind", |it| it.kind = Some(BackupKind::Full)),
        ("created", |it| it.created = Timestamp::from_millis(1)),
        ("one tag", |it| it.tags = tags(&["ab"])),
        ("two tags", |it| it.tags = tags(&["a", "b"])),
        ("creating", |it| it.state = BackupState::Creating),
        ("error", |it| it.state = BackupState::Error),
        ("size", |it| it.size = Some(0)),
        ("another size", |it| it.size = Some(1)),
        ("protected", |it| it.protected = true),
    ];

    #[test]
    fn every_lasting_member_is_part_of_the_version() {
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
    fn what_an_unfinished_operation_shows_is_no_part_of_the_version() {
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
    fn the_version_of_a_list_has_every_backup_in_its_place() {
        let (one, other) = (
            backup(),
            Backup {
                id: BackupId::new("c").unwrap(),
                ..backup()
            },
        );
        let lists: [&[&Backup]; 5] = [&[], &[&one], &[&other], &[&one, &other], &[&other, &one]];
        for (at, list) in lists.iter().enumerate() {
            for before in &lists[..at] {
                let (new, old) = (list.iter().copied(), before.iter().copied());
                assert_ne!(Version::of_backups(new), Version::of_backups(old), "{at}");
            }
        }
    }
}
