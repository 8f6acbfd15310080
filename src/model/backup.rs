//! The resources of the API: a backup, the VM it belongs to, and what may be changed about them.
//!
//! Spec: "Resource Models", Backup and VM.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::Description;
use crate::model::Tag;
use crate::model::Timestamp;
use crate::model::VmId;

/// How a backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Point-in-time state kept in the VM's own storage.
    Snapshot,
    /// A whole copy that stands alone.
    Full,
    /// What changed since an earlier backup, which it needs.
    Incremental,
}

impl BackupKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Snapshot, Self::Full, Self::Incremental];

    /// The word used on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}

/// The state of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupState {
    /// Being created; cannot be restored yet.
    Creating,
    /// Complete and idle.
    Available,
    /// Its name, description, tags or protection are being changed.
    Updating,
    /// Its VM is being restored from it.
    Restoring,
    /// Being removed.
    Deleting,
    /// Known to be damaged or incomplete; cannot be restored.
    Error,
}

impl BackupState {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Creating,
        Self::Available,
        Self::Updating,
        Self::Restoring,
        Self::Deleting,
        Self::Error,
    ];

    /// The word used on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Available => "AVAILABLE",
            Self::Updating => "UPDATING",
            Self::Restoring => "RESTORING",
            Self::Deleting => "DELETING",
            Self::Error => "ERROR",
        }
    }
}

/// Distinguishes two backups that have the same id one after the other.
///
/// Opaque to everything but the adapter that made it: a native id and a creation time, for instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(String);

impl Identity {
    /// Takes what the adapter knows the backup by.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// What the adapter gave.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.0)
    }
}

/// One backup of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its id within the VM.
    pub id: BackupId,
    /// What sets it apart from an earlier backup of the same id.
    pub identity: Identity,
    /// The name a person gave it.
    pub name: BackupName,
    /// What a person wrote about it.
    pub description: Option<Description>,
    /// How it was taken, when the VM manager knows.
    pub kind: Option<BackupKind>,
    /// When it was taken.
    pub created: Timestamp,
    /// Free words, in the order they were given.
    pub tags: Vec<Tag>,
    /// Its state.
    pub state: BackupState,
    /// Bytes it occupies, when the VM manager knows.
    pub size: Option<u64>,
    /// Whether it is protected from being deleted.
    pub protected: bool,
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Off.
    Stopped,
    /// Running.
    Started,
    /// In memory but not executing.
    Sleeping,
}

impl RunState {
    /// The word used on the wire (Spec: "Resource Models", VM `run_status`).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Started => "STARTED",
            Self::Sleeping => "SLEEPING",
        }
    }
}

/// One VM, as far as its backups need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// The name a person gave it.
    pub name: String,
    /// What a person wrote about it.
    pub description: Option<String>,
    /// Whether it runs, when the VM manager knows.
    pub run_state: Option<RunState>,
}

/// The properties that a caller requests for a new backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBackup {
    /// Its name.
    pub name: BackupName,
    /// What to write about it.
    pub description: Option<Description>,
    /// How to take it; the adapter's own default when absent.
    pub kind: Option<BackupKind>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Whether it is protected from being deleted from the start.
    pub protected: bool,
}

/// The change of one member in a partial update.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Patch<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It becomes this.
    Set(T),
    /// It becomes empty.
    Clear,
}

impl<T: Clone> Patch<T> {
    /// What the member is afterwards, from what it was before.
    #[must_use]
    pub fn apply(&self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Set(value) => Some(value.clone()),
            Self::Clear => None,
        }
    }

    /// Whether the member stays as it is.
    #[must_use]
    pub const fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

/// A partial update: what is kept keeps its value, what is set is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPatch {
    /// A new name; a name cannot be cleared.
    pub name: Option<BackupName>,
    /// The description.
    pub description: Patch<Description>,
    /// All tags at once.
    pub tags: Patch<Vec<Tag>>,
    /// The protection; cleared means not protected.
    pub protected: Patch<bool>,
}

impl BackupPatch {
    /// Whether it would change nothing whatever the backup.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.description.is_keep()
            && self.tags.is_keep()
            && self.protected.is_keep()
    }

    /// The backup as it is after this update.
    #[must_use]
    pub fn applied_to(&self, before: Backup) -> Backup {
        Backup {
            name: self.name.clone().unwrap_or(before.name),
            description: self.description.apply(before.description),
            tags: self.tags.apply(Some(before.tags)).unwrap_or_default(),
            protected: self
                .protected
                .apply(Some(before.protected))
                .unwrap_or(false),
            ..before
        }
    }
}

/// Which part of a list is wanted. Lists are ordered by backup id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Only backups whose id sorts after this one.
    pub after: Option<BackupId>,
    /// At most so many, 1..=[`crate::model::limits::PAGE_MAX`].
    pub limit: u16,
}

impl Page {
    /// How many backups decide it: one more than are wanted.
    #[must_use]
    pub fn needed(&self) -> usize {
        usize::from(self.limit.max(1)).saturating_add(1)
    }

    /// The wanted part of these backups, which are in order of their ids. Only the first [`needed`](Self::needed) of those
    /// that sort after `after` are looked at.
    pub fn of(&self, backups: impl IntoIterator<Item = Backup>) -> BackupPage {
        let is_after = |backup: &Backup| self.after.as_ref().is_none_or(|after| backup.id > *after);
        let found = backups.into_iter().filter(is_after);
        let mut backups: Vec<Backup> = found.take(self.needed()).collect();
        let more = backups.len() == self.needed();
        backups.truncate(self.needed().saturating_sub(1));
        BackupPage { backups, more }
    }
}

/// One part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupPage {
    /// The backups, in order of their ids (byte-wise).
    pub backups: Vec<Backup>,
    /// Whether there are more after the last of these.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(id: &str) -> Backup {
        Backup {
            id: BackupId::new(id).unwrap(),
            identity: Identity::new(id.to_owned()),
            name: BackupName::new(id).unwrap(),
            description: None,
            kind: None,
            created: Timestamp::default(),
            tags: Vec::new(),
            state: BackupState::Available,
            size: None,
            protected: false,
        }
    }

    #[test]
    fn a_page_has_the_backups_after_an_id_and_says_whether_there_are_more() {
        // after, limit, ids, more
        let rows: [(Option<&str>, u16, &[&str], bool); 8] = [
            (None, 5, &["a", "b", "c"], false),
            (None, 3, &["a", "b", "c"], false),
            (None, 2, &["a", "b"], true),
            (None, 0, &["a"], true),
            (Some("a"), 2, &["b", "c"], false),
            (Some("a"), 1, &["b"], true),
            (Some("aa"), 1, &["b"], true),
            (Some("c"), 1, &[], false),
        ];
        for (after, limit, ids, more) in rows {
            let page = Page {
                after: after.map(|id| BackupId::new(id).unwrap()),
                limit,
            };
            let found = page.of(["a", "b", "c"].map(backup));
            let found_ids: Vec<&str> = found
                .backups
                .iter()
                .map(|backup| backup.id.as_str())
                .collect();
            assert_eq!(
                (found_ids.as_slice(), found.more),
                (ids, more),
                "{after:?} {limit}"
            );
        }
    }
}
