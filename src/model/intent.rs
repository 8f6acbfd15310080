//! A validated request: what is to be done to which backup.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::model::BackupId;
use crate::model::BackupPatch;
use crate::model::Identity;
use crate::model::NewBackup;
use crate::model::VmId;

/// One backup of one VM, by their ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// The VM.
    pub vm: VmId,
    /// The backup, which need not exist.
    pub backup: BackupId,
}

/// The four things that can be done to a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Make it.
    Create,
    /// Change its name, description, tags or protection.
    Update,
    /// Remove it.
    Delete,
    /// Put its VM back to the state it holds.
    Restore,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 4] = [Self::Create, Self::Update, Self::Delete, Self::Restore];

    /// The word used in metrics, logs and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Restore => "restore",
        }
    }
}

/// Name/value pairs of a restore request that the adapter supports, as they were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RestoreOptions(pub BTreeMap<String, String>);

/// What is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Make the backup.
    Create(NewBackup),
    /// Change its properties.
    Update(BackupPatch),
    /// Remove it.
    Delete,
    /// Restore its VM from it.
    Restore(RestoreOptions),
}

impl Change {
    /// Which of the four it is.
    #[must_use]
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Create(_) => Verb::Create,
            Self::Update(_) => Verb::Update,
            Self::Delete => Verb::Delete,
            Self::Restore(_) => Verb::Restore,
        }
    }
}

/// What an idempotency key is scoped by besides the principal: one key may be used once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyScope {
    /// The verb of the method.
    pub verb: Verb,
    /// The VM.
    pub vm: VmId,
    /// The backup, but for a create, whose target is the list of the VM's backups.
    pub backup: Option<BackupId>,
}

/// A validated request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The backup acted on; for a create, the one to be made.
    pub target: Target,
    /// The identity of the backup that the caller saw; an adapter refuses to act on another backup of the same id.
    /// `None` only for a create.
    pub identity: Option<Identity>,
    /// What is to change.
    pub change: Change,
}

impl Intent {
    /// Which of the four it is.
    #[must_use]
    pub const fn verb(&self) -> Verb {
        self.change.verb()
    }

    /// What an idempotency key of this intent is scoped by.
    #[must_use]
    pub fn key_scope(&self) -> KeyScope {
        KeyScope {
            verb: self.verb(),
            vm: self.target.vm.clone(),
            // The id of a backup that is to be made is new with every request.
            backup: match self.change {
                Change::Create(_) => None,
                Change::Update(_) | Change::Delete | Change::Restore(_) => {
                    Some(self.target.backup.clone())
                }
            },
        }
    }
}
