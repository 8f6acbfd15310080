//! What becomes of an operation: `(State, Event, Timestamp) -> (State, Effects)`. No clock, randomness, await or I/O.
//!
//! The state is the durable record itself, so that what is decided here is all that a restart needs to know.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::model::Evidence;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::model::Verb;

/// How often the VM manager is asked to begin one operation, however often it loses it or the gateway dies over it.
pub(crate) const CALLS_MAX: u32 = 10;

/// The numbers that decisions depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Whether calling again with the same key has the effect of calling once.
    pub replay_safe: bool,
    /// How long after a lost answer the VM manager may still be about to begin.
    pub settle: Duration,
    /// How long evidence is looked for, after the settle time.
    pub probe_window: Duration,
    /// How long an accepted operation may lie while no gateway was at work.
    pub accept_ttl: Duration,
    /// How long no gateway may have been running for a call to be repeated that had not touched the VM.
    pub resume_ttl: Duration,
    /// How long a finished operation is kept.
    pub retention: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was found unfinished, and nobody is at work on it. A gateway was last at work on the store at `alive`.
    Recovered {
        /// When.
        alive: Timestamp,
    },
    /// It was found begun and unfinished when this gateway started. The gateway before was last running at `alive`.
    Resumed {
        /// When.
        alive: Timestamp,
    },
    /// It leaves its queue; the call comes next, and this is what the adapter saw before.
    Start(Option<Evidence>),
    /// It cannot be begun, and provably was not.
    NotStarted(Fault),
    /// The call was refused without effect. `first` tells whether it was the first call made for this operation.
    Refused {
        /// Why.
        fault: Fault,
        /// Whether no call was made before: else the refusal proves nothing about the earlier call.
        first: bool,
    },
    /// The call did it, or the task ended well, or evidence shows that it was done.
    Done,
    /// The call began a task, or evidence shows this task.
    Task(TaskRef),
    /// The call may have had an effect, or the task is gone.
    Lost,
    /// The task is at work; how far it is, when known.
    Working(Option<Progress>),
    /// The task failed, or evidence shows that it failed.
    Failed(Fault),
    /// The task was stopped on request.
    Cancelled,
    /// The settle time is over and evidence shows that it never began.
    NotBegun,
    /// The settle time is over and evidence shows that it never began, and that the VM's disks changed since.
    VmChanged,
    /// The settle time is over and evidence shows that it was broken off half-way; what to tell if it stays so.
    HalfDone(Fault),
    /// There is no evidence yet.
    NoEvidence,
    /// There will never be evidence.
    Unknowable,
    /// An operator has seen the unknown outcome.
    Acknowledge,
    /// Somebody who may wants it stopped, and it can be.
    CancelAsked,
}

impl Event {
    /// Whether the VM manager has nothing more to do for the operation, nor will have.
    pub(crate) const fn ends_work(&self) -> bool {
        match self {
            Self::NotStarted(_)
            | Self::Refused { first: true, .. }
            | Self::Done
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
            Self::Done => "done",
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

/// What is to be done once the new state is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Wait for its turn, then look at the baseline and start.
    Queue,
    /// Call the adapter; `first` tells whether no call was made before.
    Call {
        /// Whether no call was made before.
        first: bool,
    },
    /// Wait a little, longer after each call, then call the adapter: it is known what is left of the calls before.
    Repeat {
        /// Whether a half is left: finishing it needs no precondition, which the half itself may have broken.
        half: bool,
    },
    /// Follow the task.
    Follow,
    /// Wait for the settle time, then look for evidence.
    Settle,
    /// Look for evidence again, a little later.
    Find,
    /// Nothing: it is final, or whoever is at work on it goes on with what it is doing.
    Rest,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The new state, when it differs: it must be durable before anything else is done.
    pub state: Option<Operation>,
    /// What then.
    pub effect: Effect,
}

/// The event cannot happen in that phase: a defect of the caller. Nothing may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {event} is not possible in phase {}", phase.as_str())]
pub(crate) struct Illegal {
    /// The phase.
    pub phase: Phase,
    /// The event.
    pub event: &'static str,
}

/// Decides.
///
/// # Errors
/// [`Illegal`] when the event cannot happen in the phase.
pub(crate) fn step(
    state: &Operation,
    event: Event,
    now: Timestamp,
    rules: &Rules,
) -> Result<Step, Illegal> {
    let illegal = Illegal {
        phase: state.phase,
        event: event.as_str(),
    };
    let next = Next { state, now, rules };
    match state.phase {
        Phase::Accepted => next.accepted(event),
        Phase::Submitting => next.submitting(event),
        Phase::Running => next.running(event),
        Phase::Uncertain => next.uncertain(event),
        Phase::Unknown if event == Event::Acknowledge => Some(next.acknowledge()),
        Phase::Succeeded
        | Phase::Failed
        | Phase::Cancelled
        | Phase::NotExecuted
        | Phase::Unknown => None,
    }
    .ok_or(illegal)
}

struct Next<'a> {
    state: &'a Operation,
    now: Timestamp,
    rules: &'a Rules,
}

impl Next<'_> {
    fn accepted(&self, event: Event) -> Option<Step> {
        match event {
            Event::Recovered { alive } => {
                let idle = self.now.since(self.state.created.max(alive));
                Some(if idle > self.rules.accept_ttl {
                    self.end(Phase::NotExecuted, Some(stale()))
                } else {
                    self.stay(Effect::Queue)
                })
            }
            Event::Start(baseline) => {
                let mut state = self.changed(Phase::Submitting);
                state.baseline = baseline;
                state.calls = 1;
                state.started = Some(self.now.max(state.created));
                Some(write(state, Effect::Call { first: true }))
            }
            Event::NotStarted(fault) => Some(self.end(Phase::Failed, Some(fault))),
            Event::CancelAsked => Some(self.end(Phase::Cancelled, Some(never_sent()))),
            Event::Resumed { .. }
            | Event::Refused { .. }
            | Event::Done
            | Event::Task(_)
            | Event::Lost
            | Event::Working(_)
            | Event::Failed(_)
            | Event::Cancelled
            | Event::NotBegun
            | Event::VmChanged
            | Event::HalfDone(_)
            | Event::NoEvidence
            | Event::Unknowable
            | Event::Acknowledge => None,
        }
    }

    fn submitting(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { alive } => Some(self.resumed(alive)),
            Event::Recovered { .. } if self.may_repeat() && self.state.calls < CALLS_MAX => {
                let mut state = self.changed(Phase::Submitting);
                state.calls = state.calls.saturating_add(1);
                state.uncertain_since = self.since_now();
                Some(write(state, Effect::Call { first: false }))
            }
            Event::Recovered { .. } => Some(self.lost_since(self.now)),
            Event::Lost | Event::Refused { first: false, .. } => Some(self.lost()),
            Event::Refused { fault, first: true } => Some(self.end(Phase::Failed, Some(fault))),
            Event::Done => Some(self.end(Phase::Succeeded, None)),
            Event::Task(task) => Some(self.attach(task)),
            Event::CancelAsked => Some(self.cancel_asked()),
            Event::Start(_)
            | Event::NotStarted(_)
            | Event::Working(_)
            | Event::Failed(_)
            | Event::Cancelled
            | Event::NotBegun
            | Event::VmChanged
            | Event::HalfDone(_)
            | Event::NoEvidence
            | Event::Unknowable
            | Event::Acknowledge => None,
        }
    }

    fn running(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { alive } => Some(self.resumed(alive)),
            Event::Recovered { .. } => Some(self.look_anew(Effect::Follow)),
            Event::Working(progress) => Some(self.working(progress)),
            Event::Lost => Some(self.lost()),
            Event::Done => Some(self.end(Phase::Succeeded, None)),
            Event::Failed(fault) => Some(self.end(Phase::Failed, Some(fault))),
            Event::Cancelled => Some(self.end(Phase::Cancelled, Some(cancelled()))),
            Event::CancelAsked => Some(self.cancel_asked()),
            Event::Start(_)
            | Event::NotStarted(_)
            | Event::Refused { .. }
            | Event::Task(_)
            | Event::NotBegun
            | Event::VmChanged
            | Event::HalfDone(_)
            | Event::NoEvidence
            | Event::Unknowable
            | Event::Acknowledge => None,
        }
    }

    fn uncertain(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { alive } => Some(self.resumed(alive)),
            Event::Recovered { .. } => Some(self.look_anew(Effect::Settle)),
            Event::Task(task) => Some(self.attach(task)),
            Event::Done => Some(self.end(Phase::Succeeded, None)),
            Event::Failed(fault) => Some(self.end(Phase::Failed, Some(fault))),
            Event::Cancelled => Some(self.end(Phase::Cancelled, Some(cancelled()))),
            // Nothing of it is left, and nobody wants it any more.
            Event::NotBegun if self.rules.replay_safe && self.state.cancel_asked.is_some() => {
                Some(self.end(Phase::Cancelled, Some(cancelled())))
            }
            Event::NotBegun if self.rules.replay_safe && self.state.resume_expired => {
                Some(self.end(Phase::NotExecuted, Some(stale())))
            }
            Event::VmChanged => Some(self.end(Phase::NotExecuted, Some(vm_changed()))),
            // Nothing of it is left, and calling again is the same as calling once: it is carried out after all.
            Event::NotBegun if self.rules.replay_safe => {
                Some(self.again(Phase::NotExecuted, dropped(), false))
            }
            // Calling again carries it to its end, which is better than half of it even where nobody wants it any more.
            Event::HalfDone(fault) if self.rules.replay_safe => {
                Some(self.again(Phase::Failed, fault, true))
            }
            Event::HalfDone(fault) => Some(self.end(Phase::Failed, Some(fault))),
            Event::NotBegun if self.state.task.is_none() => {
                Some(self.end(Phase::NotExecuted, Some(never_begun())))
            }
            // There was a task, so it did begin: the answer is no evidence of anything.
            Event::NotBegun | Event::NoEvidence => Some(self.no_evidence()),
            Event::Unknowable => Some(self.unknown()),
            Event::CancelAsked => Some(self.cancel_asked()),
            Event::Start(_)
            | Event::NotStarted(_)
            | Event::Refused { .. }
            | Event::Lost
            | Event::Working(_)
            | Event::Acknowledge => None,
        }
    }

    /// Whether calling again is right without evidence of what became of the call before: the operation is still wanted, and
    /// no preconditions were set. Only evidence tells whether those are broken by the operation itself, which may have been
    /// done.
    const fn may_repeat(&self) -> bool {
        self.rules.replay_safe
            && !self.state.resume_expired
            && self.state.cancel_asked.is_none()
            && self.state.preconditions.is_empty()
    }

    /// Records that the gateway was away for too long. What the operation is for may have been done otherwise meanwhile, so
    /// evidence decides whether anything of it is there to be finished.
    fn resumed(&self, alive: Timestamp) -> Step {
        let started = self.state.started.unwrap_or(self.state.created);
        let away = self.now.since(started.max(alive));
        if self.state.resume_expired || away <= self.rules.resume_ttl {
            return self.stay(Effect::Rest);
        }
        let mut state = self.changed(self.state.phase);
        state.resume_expired = true;
        write(state, Effect::Rest)
    }

    fn stay(&self, effect: Effect) -> Step {
        Step {
            state: None,
            effect,
        }
    }

    fn changed(&self, phase: Phase) -> Operation {
        Operation {
            phase,
            revision: self.state.revision.next(),
            ..self.state.clone()
        }
    }

    /// Nobody looked for evidence while no gateway was at work, so that time is no part of the window.
    fn look_anew(&self, effect: Effect) -> Step {
        let since = self.since_now();
        if since == self.state.uncertain_since {
            return self.stay(effect);
        }
        let mut state = self.changed(self.state.phase);
        state.uncertain_since = since;
        write(state, effect)
    }

    fn since_now(&self) -> Option<Timestamp> {
        self.state.uncertain_since.map(|_before| self.now)
    }

    fn attach(&self, task: TaskRef) -> Step {
        let mut state = self.changed(Phase::Running);
        state.task = Some(task);
        write(state, Effect::Follow)
    }

    /// The time at which it began to be uncertain stays until the task was seen at work again: an adapter that finds
    /// a task and loses it in turn must not go on for ever.
    fn lost(&self) -> Step {
        self.lost_since(self.state.uncertain_since.unwrap_or(self.now))
    }

    fn lost_since(&self, since: Timestamp) -> Step {
        let mut state = self.changed(Phase::Uncertain);
        state.uncertain_since = Some(since);
        write(state, Effect::Settle)
    }

    /// Calls again, so many times and as long as evidence would be looked for: a VM manager that drops it every time
    /// must not be asked for ever. The evidence says what is left of the calls before, nothing or a half, so to end then
    /// is no unknown outcome, and a refusal of this call is as good as one of the first.
    fn again(&self, otherwise: Phase, fault: Fault, half: bool) -> Step {
        if self.window_is_over() || self.state.calls >= CALLS_MAX {
            return self.end(otherwise, Some(fault));
        }
        let mut state = self.changed(Phase::Submitting);
        state.calls = state.calls.saturating_add(1);
        state.task = None;
        write(state, Effect::Repeat { half })
    }

    fn window_is_over(&self) -> bool {
        let since = self.state.uncertain_since.unwrap_or(self.now);
        self.now >= since.plus(self.rules.settle).plus(self.rules.probe_window)
    }

    fn working(&self, progress: Option<Progress>) -> Step {
        let said = progress.map_or(Progress::NONE, |it| Progress::unfinished(it.percent()));
        let progress = said.max(self.state.progress);
        if progress == self.state.progress && self.state.uncertain_since.is_none() {
            return self.stay(Effect::Follow);
        }
        let mut state = self.changed(Phase::Running);
        state.progress = progress;
        state.uncertain_since = None;
        write(state, Effect::Follow)
    }

    fn no_evidence(&self) -> Step {
        if self.window_is_over() {
            self.unknown()
        } else {
            self.stay(Effect::Find)
        }
    }

    fn unknown(&self) -> Step {
        self.end(Phase::Unknown, Some(unknown(self.state.verb())))
    }

    fn end(&self, phase: Phase, fault: Option<Fault>) -> Step {
        let mut state = self.changed(phase);
        let began = state.started.unwrap_or(state.created);
        let completed = self.now.max(began).max(state.created);
        state.progress = Progress::DONE;
        state.fault = fault;
        state.completed = Some(completed);
        state.expires = (phase != Phase::Unknown).then(|| completed.plus(self.rules.retention));
        write(state, Effect::Rest)
    }

    /// Only remembers it: whoever is at work on the operation sees it and asks the VM manager, which decides.
    fn cancel_asked(&self) -> Step {
        if self.state.cancel_asked.is_some() {
            return self.stay(Effect::Rest);
        }
        let mut state = self.changed(self.state.phase);
        state.cancel_asked = Some(self.now);
        write(state, Effect::Rest)
    }

    fn acknowledge(&self) -> Step {
        if self.state.acknowledged.is_some() {
            return self.stay(Effect::Rest);
        }
        let mut state = self.changed(Phase::Unknown);
        state.acknowledged = Some(self.now);
        state.expires = Some(self.now.plus(self.rules.retention));
        write(state, Effect::Rest)
    }
}

const fn write(state: Operation, effect: Effect) -> Step {
    Step {
        state: Some(state),
        effect,
    }
}

fn stale() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        "The gateway was offline too long after accepting this operation; nothing was changed. Resubmit it if it is still needed.",
    )
}

fn vm_changed() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        "The disks of the VM changed after the gateway stopped, so the operation was not resumed; nothing was changed. Resubmit it if it is still needed.",
    )
}

fn never_begun() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        "The VM manager never began this; nothing was changed. It can safely be asked for again.",
    )
}

fn never_sent() -> Fault {
    Fault::new(
        FaultKind::Cancelled,
        "It was stopped on request before it began; nothing was changed.",
    )
}

fn dropped() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        "The VM manager dropped this each time it was asked; nothing was changed. Look at the VM manager before asking again.",
    )
}

fn cancelled() -> Fault {
    Fault::new(FaultKind::Cancelled, "It was stopped on request.")
}

fn unknown(verb: Verb) -> Fault {
    let text = match verb {
        Verb::Create => {
            "It cannot be found out whether the backup was made. Look for it, and whether it is whole, before asking again."
        }
        Verb::Update => {
            "It cannot be found out whether the backup was changed. Read it and compare before asking again."
        }
        Verb::Delete => {
            "It cannot be found out whether the backup was removed. Look whether it is still there before asking again."
        }
        Verb::Restore => {
            "It cannot be found out whether the VM was restored. Look at the state of the VM in its VM manager before starting or restoring it."
        }
    };
    Fault::new(FaultKind::OutcomeUnknown, text)
}

/// Whether the record is one that this machine can have made.
///
/// # Errors
/// Which rule it breaks.
pub(crate) fn check_invariants(it: &Operation) -> Result<(), &'static str> {
    let fault = it.fault.as_ref().map(|fault| fault.kind);
    let queued = it.phase == Phase::Accepted;
    let called = matches!(
        it.phase,
        Phase::Submitting | Phase::Running | Phase::Uncertain | Phase::Succeeded | Phase::Unknown
    );
    let kept = it.phase == Phase::Unknown && it.acknowledged.is_none();
    let started = it.started.unwrap_or(it.created);
    let rules = [
        (it.revision.0 >= 1, "revisions begin at 1"),
        (
            (it.progress == Progress::DONE) == it.phase.is_final(),
            "progress is 100 exactly when final",
        ),
        (
            fault.is_some() == (it.phase.is_final() && it.phase != Phase::Succeeded),
            "a fault exactly when final and not succeeded",
        ),
        (
            it.phase != Phase::NotExecuted || fault == Some(FaultKind::NotExecuted),
            "not-executed says so",
        ),
        (
            it.phase != Phase::Unknown || fault == Some(FaultKind::OutcomeUnknown),
            "unknown says so",
        ),
        (
            it.phase != Phase::Cancelled || fault == Some(FaultKind::Cancelled),
            "cancelled says so",
        ),
        (
            it.completed.is_some() == it.phase.is_final(),
            "completed exactly when final",
        ),
        (!queued || it.started.is_none(), "accepted has not started"),
        (
            !called || it.started.is_some(),
            "what was called has started",
        ),
        (
            it.phase != Phase::Running || it.task.is_some(),
            "running has a task",
        ),
        (
            it.task.is_none() || !matches!(it.phase, Phase::Accepted | Phase::Submitting),
            "a task comes from a call",
        ),
        (
            it.uncertain_since.is_some() || !matches!(it.phase, Phase::Uncertain | Phase::Unknown),
            "uncertain since when",
        ),
        (
            it.acknowledged.is_none() || it.phase == Phase::Unknown,
            "only the unknown is acknowledged",
        ),
        (
            it.expires.is_some() == (it.phase.is_final() && !kept),
            "expires exactly when final and not waiting for an operator",
        ),
        (it.created <= started, "started after it was accepted"),
        (
            it.completed.is_none_or(|end| started <= end),
            "completed after it started",
        ),
    ];
    rules
        .into_iter()
        .find(|(holds, _)| !holds)
        .map_or(Ok(()), |(_, rule)| Err(rule))
}
