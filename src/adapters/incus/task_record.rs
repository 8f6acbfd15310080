//! What is kept of a running operation, as the text of a task reference. Later gateways read it: members are only added.

use serde::Deserialize;
use serde::Serialize;

use crate::adapters::adapter::AdapterError;
use crate::model::FaultKind;
use crate::model::NewBackup;
use crate::model::Target;
use crate::model::TaskRef;
use crate::public_text;

/// How a native operation is found again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskRecord {
    /// The number of the native operation.
    pub(super) operation: String,
    /// Set when another client may have begun it: then its end proves nothing, and evidence decides.
    #[serde(default)]
    pub(super) doubtful: bool,
    /// What is left to do when a snapshot was made.
    #[serde(default)]
    pub(super) make: Option<NewSnapshot>,
    /// What it does otherwise.
    #[serde(default)]
    pub(super) doing: Option<RunningChange>,
}

/// A snapshot that is being made, and what it is to be labelled with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NewSnapshot {
    pub(super) target: Target,
    pub(super) new: NewBackup,
    pub(super) key: String,
}

impl TaskRecord {
    pub(super) fn to_task_ref(&self) -> Result<TaskRef, AdapterError> {
        TaskRef::new(serde_json::json!(self).to_string()).ok_or_else(|| {
            // Cannot happen within the limits of names, tags and descriptions.
            AdapterError::uncertain(
                FaultKind::BackendFailed,
                public_text!("The properties of the backup are too long to be recorded."),
            )
        })
    }
}

/// What an operation does, as far as it matters when it fails.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RunningChange {
    pub(super) target: Target,
    /// The request.
    pub(super) key: String,
    pub(super) what: ChangeKind,
}

/// The changes that are tasks, but for making snapshots.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChangeKind {
    /// Removes the snapshot.
    Delete {
        /// The request that had begun to remove it before.
        before: Option<String>,
    },
    /// Restores the VM.
    Restore {
        /// What the generation was before; nothing on versions without it.
        generation: Option<String>,
        /// Whether the VM was running.
        ran: bool,
    },
}
