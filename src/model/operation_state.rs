//! The state of an operation as callers see it.

use crate::model::Phase;

/// The state of an operation as callers see it. Several phases are one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationState {
    /// Not begun.
    Queued,
    /// Begun, and not ended as far as is known.
    Running,
    /// Done.
    Success,
    /// Failed, or never begun.
    Failed,
    /// Cancelled on request.
    Cancelled,
    /// Ended, and whether it was done could not be determined.
    Unknown,
}

impl OperationState {
    /// Every state, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Success,
        Self::Failed,
        Self::Cancelled,
        Self::Unknown,
    ];

    /// The word used on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether operations in this state have ended.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Success | Self::Failed | Self::Cancelled | Self::Unknown => true,
        }
    }
}

impl From<Phase> for OperationState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Accepted => Self::Queued,
            Phase::Submitting | Phase::Running | Phase::Uncertain => Self::Running,
            Phase::Succeeded => Self::Success,
            Phase::Failed | Phase::NotExecuted => Self::Failed,
            Phase::Cancelled => Self::Cancelled,
            Phase::Unknown => Self::Unknown,
        }
    }
}
