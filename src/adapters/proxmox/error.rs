//! Failures of the Proxmox VE API and of its tasks, and what a caller may learn of them.

use std::collections::BTreeMap;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::transport::TransportError;
use crate::model::Fault;
use crate::model::FaultKind;

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
    #[error("unexpected answer: {0}")]
    Nonsense(String),
}

/// The cluster could not pass the request on to the node of the guest.
const NODE_UNREACHABLE: u16 = 595;
/// The node of the guest did not answer the cluster in time.
const NODE_SILENT: u16 = 596;

impl NativeError {
    /// Whether another node of the cluster may answer instead, because this one provably did not begin anything.
    pub(super) const fn is_of_one_node(&self) -> bool {
        match self {
            Self::Transport(error) => !error.was_sent(),
            Self::Refused { status, .. } => *status == NODE_UNREACHABLE,
            Self::Nonsense(_) => false,
        }
    }

    /// Whether a read may be tried at another node.
    pub(super) const fn is_passing(&self) -> bool {
        match self {
            Self::Transport(error) => match error {
                TransportError::Unsendable(_) | TransportError::TooLarge(_) => false,
                TransportError::TooLate
                | TransportError::Unreachable(_)
                | TransportError::Untrusted(_)
                | TransportError::Lost(_)
                | TransportError::TimedOut => true,
            },
            Self::Refused { status, .. } => matches!(*status, NODE_UNREACHABLE | NODE_SILENT | 503),
            Self::Nonsense(_) => false,
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
            Self::Transport(_) | Self::Nonsense(_) => false,
        }
    }

    /// As the failure of a call without effect.
    pub(super) fn of_read(self) -> AdapterError {
        let mut error = self.of_write();
        error.effect = Effect::None;
        error
    }

    /// As the failure of a call that may have had an effect.
    pub(super) fn of_write(self) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => of_transport(error),
            Self::Refused { status, text, .. } => of_refusal(*status, text),
            Self::Nonsense(_) => AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The VM manager sent an unexpected answer.",
            ),
        };
        error.because(self)
    }
}

fn of_transport(error: &TransportError) -> AdapterError {
    match error {
        TransportError::Unreachable(_) => {
            AdapterError::unavailable("The VM manager cannot be reached; nothing was changed.")
        }
        TransportError::Untrusted(_) => AdapterError::refused(
            FaultKind::BackendFailed,
            "The certificate of the VM manager is not the configured one; nothing was changed.",
        ),
        TransportError::Unsendable(_) => AdapterError::refused(
            FaultKind::Invalid,
            "The request cannot be sent to this VM manager; nothing was changed.",
        ),
        TransportError::TooLate | TransportError::TimedOut => AdapterError::uncertain(
            FaultKind::TimedOut,
            "The VM manager did not answer in time.",
        ),
        TransportError::Lost(_) => AdapterError::uncertain(
            FaultKind::Unavailable,
            "The connection to the VM manager was lost.",
        ),
        TransportError::TooLarge(_) => AdapterError::uncertain(
            FaultKind::BackendFailed,
            "The answer of the VM manager is larger than the gateway allows.",
        ),
    }
}

fn of_refusal(status: u16, text: &str) -> AdapterError {
    match status {
        401 | 403 => AdapterError::refused(
            FaultKind::BackendDenied,
            "The VM manager does not grant the gateway's token this right; nothing was changed.",
        ),
        400 => AdapterError::refused(
            FaultKind::Invalid,
            "The VM manager rejected a parameter of the request; nothing was changed.",
        ),
        NODE_UNREACHABLE => {
            AdapterError::unavailable("The node of the VM cannot be reached; nothing was changed.")
                .of_one_vm()
        }
        NODE_SILENT | 503 => AdapterError::uncertain(
            FaultKind::Unavailable,
            "The node of the VM did not answer in time.",
        ),
        _ => {
            // Refused before a task was made, so nothing has begun.
            let fault = fault_of(text);
            AdapterError::refused(fault.kind, fault.text)
        }
    }
}

/// Parts of the texts of failed calls and tasks, in the order in which they are looked for.
const FAILURES: [(&str, FaultKind, &str); 15] = [
    (
        "is locked (",
        FaultKind::Conflict,
        "The VM is locked by a task that runs or was interrupted. When no task runs, an operator removes the lock with `qm unlock` or `pct unlock`.",
    ),
    (
        "can't lock file",
        FaultKind::Busy,
        "Another task of the VM manager holds the VM. Try again later.",
    ),
    (
        "cannot remove protected volume",
        FaultKind::Protected,
        "The backup is protected. Remove its protection first.",
    ),
    (
        "vm is running",
        FaultKind::Conflict,
        "The VM runs. Shut it down before it is restored from a full backup.",
    ),
    (
        "container is running",
        FaultKind::Conflict,
        "The container runs. Shut it down before it is restored from a full backup.",
    ),
    (
        "already used",
        FaultKind::Conflict,
        "The VM has another snapshot of this name.",
    ),
    (
        "incomplete snapshot",
        FaultKind::NotReady,
        "The snapshot is incomplete and cannot be restored.",
    ),
    (
        "most recent snapshot",
        FaultKind::Conflict,
        "The storage of the VM can only be restored from the newest snapshot. Delete the newer ones first.",
    ),
    (
        "snapshot feature is not available",
        FaultKind::Unsupported,
        "The storage of the VM does not support snapshots.",
    ),
    (
        "No space left",
        FaultKind::StorageFull,
        "The storage of the VM manager is full. Free some space, then try again.",
    ),
    (
        "out of space",
        FaultKind::StorageFull,
        "The storage of the VM manager is full. Free some space, then try again.",
    ),
    (
        "Disk quota exceeded",
        FaultKind::StorageFull,
        "The storage quota is used up. Free some space, then try again.",
    ),
    (
        "does not exist",
        FaultKind::NoSuchBackup,
        "The VM has no such backup.",
    ),
    (
        "corrupted",
        FaultKind::Damaged,
        "The archive of the backup is damaged.",
    ),
    (
        "Permission check failed",
        FaultKind::BackendDenied,
        "The VM manager does not grant the gateway's token this right.",
    ),
];

/// What a caller may learn of a native text.
pub(super) fn fault_of(text: &str) -> Fault {
    FAILURES
        .iter()
        .find(|(part, ..)| text.contains(part))
        .map_or_else(
            || {
                Fault::new(
                    FaultKind::BackendFailed,
                    "The task of the VM manager failed.",
                )
            },
            |(_, kind, sentence)| Fault::new(*kind, *sentence),
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
                "of this name",
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
                "newer ones",
            ),
            ("something else", FaultKind::BackendFailed, "failed"),
        ];
        for (text, kind, words) in rows {
            let fault = fault_of(text);
            assert_eq!(fault.kind, kind, "{text}");
            assert!(fault.text.contains(words), "{text}: {}", fault.text);
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
            (500, Effect::None),
            (401, Effect::None),
        ];
        for (status, effect) in rows {
            assert_eq!(refused(status).of_write().effect, effect, "{status}");
            assert_eq!(refused(status).of_read().effect, Effect::None, "{status}");
        }
    }
}
