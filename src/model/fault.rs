//! Failures of backends, in words that may be shown to a caller.

use serde::Deserialize;
use serde::Serialize;

use crate::model::PublicText;

/// The kinds of failure that a caller can distinguish. The gate turns each into an HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The VM manager has no such VM.
    NoSuchVm,
    /// The VM has no such backup, or another one under the same id.
    NoSuchBackup,
    /// Another backup of the VM has this name.
    NameTaken,
    /// The backup is protected from being deleted.
    Protected,
    /// The backup is incomplete: still being created, or known to be damaged.
    NotReady,
    /// The backup is no longer as the caller required it to be.
    PreconditionFailed,
    /// The VM or the backup is being used by something that excludes this.
    Busy,
    /// The current state of the VM does not permit the request.
    Conflict,
    /// The request is malformed for this VM manager.
    Invalid,
    /// This kind of VM manager, or this VM, does not support the request.
    Unsupported,
    /// The stored data does not match its checksum or cannot be read.
    Damaged,
    /// The storage is full.
    StorageFull,
    /// The VM manager does not accept the gateway's own credentials or rights.
    BackendDenied,
    /// The VM manager cannot be reached, is starting, or is shedding load.
    Unavailable,
    /// The VM manager took longer than allowed.
    TimedOut,
    /// The VM manager failed, or its answer was invalid.
    BackendFailed,
    /// The operation was cancelled.
    Cancelled,
    /// The operation was never started; nothing was changed.
    NotExecuted,
    /// The outcome of the operation could not be determined.
    OutcomeUnknown,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 19] = [
        Self::NoSuchVm,
        Self::NoSuchBackup,
        Self::NameTaken,
        Self::Protected,
        Self::NotReady,
        Self::PreconditionFailed,
        Self::Busy,
        Self::Conflict,
        Self::Invalid,
        Self::Unsupported,
        Self::Damaged,
        Self::StorageFull,
        Self::BackendDenied,
        Self::Unavailable,
        Self::TimedOut,
        Self::BackendFailed,
        Self::Cancelled,
        Self::NotExecuted,
        Self::OutcomeUnknown,
    ];

    /// The word used in metrics, logs and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchVm => "no-such-vm",
            Self::NoSuchBackup => "no-such-backup",
            Self::NameTaken => "name-taken",
            Self::Protected => "protected",
            Self::NotReady => "not-ready",
            Self::PreconditionFailed => "precondition-failed",
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Damaged => "damaged",
            Self::StorageFull => "storage-full",
            Self::BackendDenied => "backend-denied",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed-out",
            Self::BackendFailed => "backend-failed",
            Self::Cancelled => "cancelled",
            Self::NotExecuted => "not-executed",
            Self::OutcomeUnknown => "outcome-unknown",
        }
    }
}

/// A failure as a caller may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which kind.
    pub kind: FaultKind,
    /// Whole sentences: what happened, what was changed or not, and what to do.
    pub text: PublicText,
}

impl Fault {
    /// A fault with its sentence.
    #[must_use]
    pub fn new(kind: FaultKind, text: impl Into<PublicText>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}
