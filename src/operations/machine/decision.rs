//! What the machine decides by, and what it decides.

use std::time::Duration;

use crate::model::Operation;
use crate::model::Phase;

/// The rules that decisions depend on: what the adapter can do, and the time limits of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Whether calling again with the same key has the effect of calling once.
    pub replay_safe: bool,
    /// How long after a lost answer the VM manager may still be about to begin.
    pub settle: Duration,
    /// How long evidence is searched for, after the settle time.
    pub probe_window: Duration,
    /// How long no gateway may have been running for an operation that was accepted and not started to be run at all.
    pub accept_ttl: Duration,
    /// How long no gateway may have been running for a call to be repeated that had not touched the VM.
    pub resume_ttl: Duration,
    /// How long a finished operation is kept.
    pub retention: Duration,
}

/// What to do once the new state is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextAction {
    /// Take the baseline, then start: the operation is the first of its queue.
    Queue,
    /// Call the adapter.
    Call {
        /// Whether no call was made before.
        first: bool,
    },
    /// Pause, longer after each call, then call the adapter again: what the earlier calls left is known.
    CallAgain {
        /// Whether the operation is half done. Completing it checks no precondition, because the half may have broken it.
        is_half_done: bool,
    },
    /// Follow the task.
    Follow,
    /// Wait for the settle time, then search for evidence.
    Settle,
    /// Search for evidence again, a little later.
    SearchAgain,
    /// Nothing: the operation is final, or the task that works on it goes on with what it is doing.
    Nothing,
}

/// A decision of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The new state, when it differs: it must be durable before anything else is done.
    pub state: Option<Operation>,
    /// What to do then.
    pub next: NextAction,
}

/// The event cannot happen in that phase: a defect of the caller. Nothing may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {event} is not possible in phase {}", phase.as_str())]
pub(crate) struct IllegalEvent {
    /// The phase.
    pub phase: Phase,
    /// The event.
    pub event: &'static str,
}
