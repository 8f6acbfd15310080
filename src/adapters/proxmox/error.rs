//! Failures of the Proxmox VE API and of its tasks, and what a caller may learn of them.

use std::collections::BTreeMap;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::transport::TransportError;
use crate::adapters::transport::unexpected_answer;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Why a native call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// No usable answer.
    #[error("transport: {0}")]
    Transport(#[from] TransportError),
    /// The server refused the call, or failed.
    #[error("{status}: {text} {fields:?}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its text.
        text: String,
        /// Per parameter, what is wrong with it.
        fields: BTreeMap<String, String>,
    },
    /// The answer has another form than the API's schema says.
    #[error("invalid answer: {0}")]
    InvalidAnswer(String),
}

/// The node that was asked could not connect to the node of the guest.
const NODE_UNREACHABLE: u16 = 595;

/// Whether a status says that a node, or a proxy in front of it, passed the request on and got no answer. Proxmox VE has
/// 596 to 599 for what went wrong after the connection was made.
const fn is_answer_lost(status: u16) -> bool {
    matches!(status, 502..=504 | 596..=599)
}

impl NativeError {
    /// Whether another node of the cluster may answer instead, because this one provably did not begin anything.
    pub(super) const fn may_change_elsewhere(&self) -> bool {
        match self {
            Self::Transport(error) => !error.was_sent(),
            Self::Refused { status, .. } => *status == NODE_UNREACHABLE,
            Self::InvalidAnswer(_) => false,
        }
    }

    /// Whether a read may be tried at another node.
    pub(super) const fn may_read_elsewhere(&self) -> bool {
        match self {
            Self::Transport(error) => match error {
                TransportError::Unsendable(_) | TransportError::TooLarge(_) => false,
                TransportError::TooLate
                | TransportError::Unreachable(_)
                | TransportError::Untrusted(_)
                | TransportError::Lost(_)
                | TransportError::TimedOut => true,
            },
            Self::Refused { status, .. } => *status == NODE_UNREACHABLE || is_answer_lost(*status),
            Self::InvalidAnswer(_) => false,
        }
    }

    /// Whether the named snapshot, volume or task does not exist.
    pub(super) fn is_missing(&self) -> bool {
        match self {
            Self::Refused { text, fields, .. } => {
                text.contains("does not exist")
                    || text.contains("no format")
                    || text.contains("no such volume")
                    || fields
                        .get("upid")
                        .is_some_and(|text| text.contains("no such task"))
            }
            Self::Transport(_) | Self::InvalidAnswer(_) => false,
        }
    }

    /// As the failure of a call without effect.
    pub(super) fn into_read_error(self) -> AdapterError {
        let mut error = self.into_write_error();
        error.effect = Effect::None;
        error
    }

    /// As the failure of a call that may have had an effect.
    pub(super) fn into_write_error(self) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => error.to_adapter_error(),
            Self::Refused { status, text, .. } => refusal_error(*status, text),
            Self::InvalidAnswer(_) => unexpected_answer(),
        };
        error.because(self)
    }
}

fn refusal_error(status: u16, text: &str) -> AdapterError {
    match status {
        401 => AdapterError::refused(
            FaultKind::BackendDenied,
            public_text!(
                "The VM manager rejected the gateway's token; nothing was changed. Ask an operator to check the token and \
                 its expiry."
            ),
        ),
        403 => AdapterError::refused(
            FaultKind::BackendDenied,
            denied_text().followed_by(&public_text!("Nothing was changed.")),
        ),
        400 => AdapterError::refused(
            FaultKind::Invalid,
            public_text!(
                "The VM manager rejected a parameter of the request; nothing was changed. Check the names and options in \
                 the request."
            ),
        ),
        NODE_UNREACHABLE => AdapterError::unavailable(public_text!(
            "The node of the VM is unreachable; nothing was changed. Try again later."
        ))
        .of_one_vm(),
        status if is_answer_lost(status) => AdapterError::uncertain(
            FaultKind::Unavailable,
            public_text!("The node of the VM did not answer in time."),
        ),
        _ => {
            // A task is created last, so a call that fails without a task id has begun nothing.
            let fault = fault_of_text(text);
            AdapterError::refused(fault.kind, fault.text)
        }
    }
}

type Sentence = fn() -> PublicText;

/// Parts of the texts of failed calls and tasks, and their meaning. The first that is contained counts.
const FAILURES: [(&str, FaultKind, Sentence); 21] = [
    ("Configuration file '", FaultKind::Busy, || {
        public_text!(
            "The VM is not on the node where it was found: it is moving, or it was removed. Try again later."
        )
    }),
    ("is locked (", FaultKind::Conflict, || {
        public_text!(
            "The VM is locked by a task that is running or was interrupted. If no task is running, an operator removes the \
             lock with `qm unlock` or `pct unlock`."
        )
    }),
    ("can't lock file", FaultKind::Busy, busy_text),
    ("guest migration lock", FaultKind::Busy, busy_text),
    ("no quorum", FaultKind::Unavailable, || {
        public_text!(
            "The cluster of the VM manager has no quorum and accepts no changes. Try again when its nodes are back."
        )
    }),
    ("protection mode enabled", FaultKind::Conflict, || {
        public_text!(
            "The VM manager protects the VM itself against being replaced. Ask an operator to remove the protection of the VM."
        )
    }),
    (
        "cannot remove protected volume",
        FaultKind::Protected,
        || {
            public_text!(
                "The backup is protected, so it was not deleted. Remove its protection first."
            )
        },
    ),
    ("vm is running", FaultKind::Conflict, running_text),
    ("container is running", FaultKind::Conflict, running_text),
    ("already used", FaultKind::Conflict, || {
        public_text!("The VM has another snapshot with this id. Create the backup again.")
    }),
    ("incomplete snapshot", FaultKind::NotReady, || {
        public_text!("The snapshot is incomplete and cannot be restored. Delete it.")
    }),
    ("most recent snapshot", FaultKind::Conflict, || {
        public_text!(
            "The storage of the VM can restore the newest snapshot only. Delete the newer snapshots first, or restore the \
             newest."
        )
    }),
    (
        "snapshot feature is not available",
        FaultKind::Unsupported,
        || {
            public_text!(
                "The storage of a disk of the VM does not support snapshots. Create a backup of the type `full` instead."
            )
        },
    ),
    ("No space left", FaultKind::StorageFull, storage_full_text),
    ("out of space", FaultKind::StorageFull, storage_full_text),
    ("Disk quota exceeded", FaultKind::StorageFull, || {
        public_text!("The storage quota is used up. Free some space, then try again.")
    }),
    ("only possible for root", FaultKind::Unsupported, || {
        public_text!(
            "The VM has folders or devices of its node, which the gateway may not restore. Ask an operator to restore it."
        )
    }),
    ("storage '", FaultKind::BackendFailed, || {
        public_text!(
            "The storage is not available to the VM manager. Ask an operator to check its name and its state."
        )
    }),
    ("does not exist", FaultKind::NoSuchBackup, || {
        public_text!("The VM has no such backup. List its backups.")
    }),
    ("corrupted", FaultKind::Damaged, || {
        public_text!("The archive of the backup is damaged. Use another backup.")
    }),
    (
        "Permission check failed",
        FaultKind::BackendDenied,
        denied_text,
    ),
];

fn busy_text() -> PublicText {
    public_text!("Another task is running on the VM. Try again later.")
}

fn running_text() -> PublicText {
    public_text!("The VM is running. Shut it down before it is restored from a full backup.")
}

fn storage_full_text() -> PublicText {
    public_text!("The storage of the VM manager is full. Free some space, then try again.")
}

fn denied_text() -> PublicText {
    public_text!(
        "The gateway's token lacks the right to do this. Ask an operator to grant it the rights in the \
         documentation of this backend."
    )
}

/// What a caller may learn of a native text.
pub(super) fn fault_of_text(text: &str) -> Fault {
    FAILURES
        .iter()
        .find(|(part, ..)| text.contains(part))
        .map_or_else(
            || {
                let text = public_text!("The task of the VM manager failed.");
                Fault::new(FaultKind::BackendFailed, text)
            },
            |(_, kind, sentence)| Fault::new(*kind, sentence()),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_texts_become_faults_with_a_remedy() {
        let rows = [
            ("VM is locked (rollback)", FaultKind::Conflict, "unlock"),
            ("CT is locked (snapshot)", FaultKind::Conflict, "unlock"),
            (
                "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout",
                FaultKind::Busy,
                "later",
            ),
            (
                "snapshot 'x' does not exist",
                FaultKind::NoSuchBackup,
                "no such backup",
            ),
            (
                "snapshot name 'x' already used",
                FaultKind::Conflict,
                "with this id",
            ),
            (
                "cannot remove protected volume 'backup/x' on 'local'",
                FaultKind::Protected,
                "protection first",
            ),
            (
                "unable to restore VM 100 - vm is running",
                FaultKind::Conflict,
                "Shut it down",
            ),
            (
                "can't rollback, 'a' is not most recent snapshot on 'tank/vm-100-disk-0'",
                FaultKind::Conflict,
                "newer snapshots",
            ),
            (
                "unable to restore VM 100 - - protection mode enabled",
                FaultKind::Conflict,
                "remove the protection",
            ),
            (
                "cluster not ready - no quorum?",
                FaultKind::Unavailable,
                "quorum",
            ),
            (
                "Failed to obtain guest migration lock - replication running?",
                FaultKind::Busy,
                "later",
            ),
            (
                "Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist",
                FaultKind::Busy,
                "moving",
            ),
            (
                "restoring 'mp0' to bind mount is only possible for root",
                FaultKind::Unsupported,
                "operator",
            ),
            (
                "storage 'nas' is not online",
                FaultKind::BackendFailed,
                "its state",
            ),
            ("something else", FaultKind::BackendFailed, "failed"),
        ];
        for (text, kind, words) in rows {
            let fault = fault_of_text(text);
            assert_eq!(fault.kind, kind, "{text}");
            assert!(fault.text.contains(words), "{text}: {}", fault.text);
        }
    }

    #[test]
    fn reads_go_on_at_another_node_and_changes_only_where_nothing_was_begun() {
        let refused = |status| NativeError::Refused {
            status,
            text: String::new(),
            fields: BTreeMap::new(),
        };
        let lost = || NativeError::Transport(TransportError::Lost("closed".to_owned()));
        let unreachable = || NativeError::Transport(TransportError::Unreachable("no".to_owned()));
        // name, error, whether a read goes on, whether a change does
        let rows = [
            ("595", refused(595), true, true),
            ("596", refused(596), true, false),
            ("599", refused(599), true, false),
            ("502", refused(502), true, false),
            ("503", refused(503), true, false),
            ("500", refused(500), false, false),
            ("403", refused(403), false, false),
            ("401", refused(401), false, false),
            ("no connection", unreachable(), true, true),
            ("no answer", lost(), true, false),
        ];
        for (name, error, read, change) in rows {
            assert_eq!(error.may_read_elsewhere(), read, "{name}: a read");
            assert_eq!(error.may_change_elsewhere(), change, "{name}: a change");
        }
    }

    #[test]
    fn a_dead_node_had_no_effect_and_a_silent_one_may_have() {
        let refused = |status| NativeError::Refused {
            status,
            text: String::new(),
            fields: BTreeMap::new(),
        };
        let rows = [
            (595, Effect::None),
            (596, Effect::Possible),
            (599, Effect::Possible),
            (502, Effect::Possible),
            (504, Effect::Possible),
            (500, Effect::None),
            (401, Effect::None),
        ];
        for (status, effect) in rows {
            assert_eq!(
                refused(status).into_write_error().effect,
                effect,
                "{status}"
            );
            assert_eq!(
                refused(status).into_read_error().effect,
                Effect::None,
                "{status}"
            );
        }
    }
}
