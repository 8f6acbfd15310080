//! The input of the machine: what can happen to an operation.

use crate::model::Evidence;
use crate::model::Fault;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::TaskRef;
use crate::model::Timestamp;

/// What happened to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was found unfinished, and no task works on it. A gateway was last running at `last_alive`.
    Recovered {
        /// The last heartbeat in the store.
        last_alive: Timestamp,
    },
    /// It was found begun and unfinished when this gateway started. The gateway before was last running at `last_alive`.
    Resumed {
        /// The last heartbeat in the store.
        last_alive: Timestamp,
    },
    /// It leaves its queue; the call comes next. The evidence is the baseline of the adapter.
    Start(Option<Evidence>),
    /// It cannot be started, and provably was not.
    NotStarted(Fault),
    /// The call was refused without effect.
    Refused {
        /// Why.
        fault: Fault,
        /// Whether no call was made before. Otherwise the refusal proves nothing about the earlier call.
        first: bool,
    },
    /// The call did it, the task succeeded, or evidence shows that it was done; with what the VM manager added to it.
    Done(Option<PublicText>),
    /// The call started a task, or evidence shows this task.
    Task(TaskRef),
    /// The call may have had an effect, or the task is gone.
    Lost,
    /// The task runs; its progress, when the VM manager reports it.
    Working(Option<Progress>),
    /// The task failed, or evidence shows that it failed.
    Failed(Fault),
    /// The task was stopped on request.
    Cancelled,
    /// The settle time is over and evidence shows that it never started.
    NotBegun,
    /// The settle time is over and evidence shows that it never started, and that the disks of the VM changed since.
    VmChanged,
    /// The settle time is over and evidence shows that it was interrupted half-way; the fault to report if it is not completed.
    HalfDone(Fault),
    /// There is no evidence yet.
    NoEvidence,
    /// There will never be evidence.
    Unknowable,
    /// An operator acknowledged the unknown outcome.
    Acknowledge,
    /// An authorized caller asked to cancel it, and it can be cancelled.
    CancelAsked,
}

impl Event {
    /// Whether the VM manager is done with the operation, so that its slot at the backend is free.
    pub(crate) const fn frees_slot(&self) -> bool {
        match self {
            Self::NotStarted(_)
            | Self::Refused { first: true, .. }
            | Self::Done(_)
            | Self::Failed(_)
            | Self::Cancelled => true,
            Self::Recovered { .. }
            | Self::Resumed { .. }
            | Self::Start(_)
            | Self::Refused { first: false, .. }
            | Self::Task(_)
            | Self::Lost
            | Self::Working(_)
            | Self::NotBegun
            | Self::VmChanged
            | Self::HalfDone(_)
            | Self::NoEvidence
            | Self::Unknowable
            | Self::Acknowledge
            | Self::CancelAsked => false,
        }
    }

    /// The word used in logs.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Recovered { .. } => "recovered",
            Self::Resumed { .. } => "resumed",
            Self::Start(_) => "start",
            Self::NotStarted(_) => "not-started",
            Self::Refused { .. } => "refused",
            Self::Done(_) => "done",
            Self::Task(_) => "task",
            Self::Lost => "lost",
            Self::Working(_) => "working",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::NotBegun => "not-begun",
            Self::VmChanged => "vm-changed",
            Self::HalfDone(_) => "half-done",
            Self::NoEvidence => "no-evidence",
            Self::Unknowable => "unknowable",
            Self::Acknowledge => "acknowledge",
            Self::CancelAsked => "cancel-asked",
        }
    }
}
