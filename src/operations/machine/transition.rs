//! The transitions of the machine: `(state, event, time, rules) -> (new state, next action)`.

use crate::model::Fault;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::PublicText;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::operations::machine::decision::IllegalEvent;
use crate::operations::machine::decision::NextAction;
use crate::operations::machine::decision::Rules;
use crate::operations::machine::decision::Step;
use crate::operations::machine::event::Event;
use crate::operations::machine::faults;

/// How often the VM manager is called for one operation, however often it discards the call or the gateway dies in it.
pub(crate) const CALLS_MAX: u32 = 10;

/// Decides what an event makes of an operation. No clock, randomness, await or I/O.
///
/// The returned state must be durable before the returned action is taken.
///
/// # Errors
/// [`IllegalEvent`] when the event cannot happen in the phase.
pub(crate) fn step(
    state: &Operation,
    event: Event,
    now: Timestamp,
    rules: &Rules,
) -> Result<Step, IllegalEvent> {
    let illegal = IllegalEvent {
        phase: state.phase,
        event: event.as_str(),
    };
    let transition = Transition { state, now, rules };
    match state.phase {
        Phase::Accepted => transition.decide_when_accepted(event),
        Phase::Submitting => transition.decide_when_submitting(event),
        Phase::Running => transition.decide_when_running(event),
        Phase::Uncertain => transition.decide_when_uncertain(event),
        Phase::Unknown if event == Event::Acknowledge => Some(transition.record_acknowledgement()),
        Phase::Succeeded
        | Phase::Failed
        | Phase::Cancelled
        | Phase::NotExecuted
        | Phase::Unknown => None,
    }
    .ok_or(illegal)
}

struct Transition<'a> {
    state: &'a Operation,
    now: Timestamp,
    rules: &'a Rules,
}

impl Transition<'_> {
    fn decide_when_accepted(&self, event: Event) -> Option<Step> {
        match event {
            Event::Recovered { last_alive } => {
                // Counted from the later of both: a gateway that was alive while the operation waited was not absent
                // from it.
                let offline = self.now.since(self.state.created.max(last_alive));
                Some(if offline > self.rules.accept_ttl {
                    self.finish(Phase::NotExecuted, Some(faults::offline_too_long()))
                } else {
                    self.keep_state(NextAction::Queue)
                })
            }
            Event::Start(baseline) => {
                let mut state = self.next_revision(Phase::Submitting);
                state.baseline = baseline;
                state.calls = 1;
                state.started = Some(self.now.max(state.created));
                Some(write_state(state, NextAction::Call { first: true }))
            }
            // FAILED and not NOT_EXECUTED: the caller reads why, and the reason lies in the request or the VM, not in
            // the gateway.
            Event::NotStarted(fault) => Some(self.finish(Phase::Failed, Some(fault))),
            Event::CancelAsked => {
                Some(self.finish(Phase::Cancelled, Some(faults::cancelled_before_start())))
            }
            Event::Resumed { .. }
            | Event::Refused { .. }
            | Event::Done(_)
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

    fn decide_when_submitting(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { last_alive } => Some(self.note_absence(last_alive)),
            Event::Recovered { .. } if self.may_call_again() && self.state.calls < CALLS_MAX => {
                let mut state = self.next_revision(Phase::Submitting);
                // Counted before the call, so that a gateway that dies in each call does not repeat it for ever.
                state.calls = state.calls.saturating_add(1);
                state.uncertain_since = self.uncertain_from_now();
                Some(write_state(state, NextAction::Call { first: false }))
            }
            // The process that made the call is gone, and with it the answer. Only the VM manager knows.
            Event::Recovered { .. } => Some(self.search_evidence_since(self.now)),
            // A refusal of a repeated call says nothing about the first one, which may have been carried out.
            Event::Lost | Event::Refused { first: false, .. } => Some(self.search_evidence()),
            // The only call there was, and it had no effect: the outcome is known.
            Event::Refused { fault, first: true } => Some(self.finish(Phase::Failed, Some(fault))),
            Event::Done(notice) => Some(self.succeed(notice)),
            Event::Task(task) => Some(self.follow_task(task)),
            // The call is under way. Whether it can still be stopped is for the VM manager to say.
            Event::CancelAsked => Some(self.remember_cancellation()),
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

    fn decide_when_running(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { last_alive } => Some(self.note_absence(last_alive)),
            Event::Recovered { .. } => Some(self.restart_window(NextAction::Follow)),
            Event::Working(progress) => Some(self.record_progress(progress)),
            // The VM manager no longer knows the task. It may have finished and been tidied away, so this is no
            // failure.
            Event::Lost => Some(self.search_evidence()),
            Event::Done(notice) => Some(self.succeed(notice)),
            Event::Failed(fault) => Some(self.finish(Phase::Failed, Some(fault))),
            Event::Cancelled => Some(self.finish(Phase::Cancelled, Some(faults::cancelled()))),
            Event::CancelAsked => Some(self.remember_cancellation()),
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

    fn decide_when_uncertain(&self, event: Event) -> Option<Step> {
        match event {
            Event::Resumed { last_alive } => Some(self.note_absence(last_alive)),
            Event::Recovered { .. } => Some(self.restart_window(NextAction::Settle)),
            Event::Task(task) => Some(self.follow_task(task)),
            Event::Done(notice) => Some(self.succeed(notice)),
            Event::Failed(fault) => Some(self.finish(Phase::Failed, Some(fault))),
            Event::Cancelled => Some(self.finish(Phase::Cancelled, Some(faults::cancelled()))),
            // Nothing of it is left, and its caller cancelled it.
            Event::NotBegun if self.rules.replay_safe && self.state.cancel_asked.is_some() => {
                Some(self.finish(Phase::Cancelled, Some(faults::cancelled())))
            }
            Event::NotBegun if self.rules.replay_safe && self.state.resume_expired => {
                Some(self.finish(Phase::NotExecuted, Some(faults::offline_too_long())))
            }
            // Repeating it now would discard what others did to the VM since.
            Event::VmChanged => Some(self.finish(Phase::NotExecuted, Some(faults::vm_changed()))),
            // Nothing of it is left, and calling again has the effect of calling once: it is carried out after all.
            Event::NotBegun if self.rules.replay_safe => {
                Some(self.call_again(Phase::NotExecuted, faults::discarded_repeatedly(), false))
            }
            // Calling again completes it, which is better than a half even when its caller cancelled it.
            Event::HalfDone(fault) if self.rules.replay_safe => {
                Some(self.call_again(Phase::Failed, fault, true))
            }
            // Where a repetition is not safe, a half is left to the caller, whose message names it.
            Event::HalfDone(fault) => Some(self.finish(Phase::Failed, Some(fault))),
            Event::NotBegun if self.state.task.is_none() => {
                Some(self.finish(Phase::NotExecuted, Some(faults::never_started())))
            }
            // There was a task, so it did start: that it is not found proves nothing.
            Event::NotBegun | Event::NoEvidence => Some(self.keep_searching()),
            // The adapter can never find out, so waiting for the window would only delay the answer.
            Event::Unknowable => Some(self.end_as_unknown()),
            Event::CancelAsked => Some(self.remember_cancellation()),
            Event::Start(_)
            | Event::NotStarted(_)
            | Event::Refused { .. }
            | Event::Lost
            | Event::Working(_)
            | Event::Acknowledge => None,
        }
    }

    /// Whether the operation may be called again without evidence of the outcome of the earlier call.
    ///
    /// Not when it was cancelled or the gateway was offline too long, and not with preconditions: the earlier call may have
    /// broken them itself, which only evidence shows.
    const fn may_call_again(&self) -> bool {
        self.rules.replay_safe
            && !self.state.resume_expired
            && self.state.cancel_asked.is_none()
            && self.state.preconditions.is_empty()
    }

    /// Records that the gateway was offline too long. People may have repaired the VM by other means meanwhile, so evidence
    /// decides whether anything of the operation is there to be completed.
    fn note_absence(&self, last_alive: Timestamp) -> Step {
        let started = self.state.started.unwrap_or(self.state.created);
        let offline = self.now.since(started.max(last_alive));
        // Once noted it stays: the operation must not become repeatable by a restart that was short.
        if self.state.resume_expired || offline <= self.rules.resume_ttl {
            return self.keep_state(NextAction::Nothing);
        }
        let mut state = self.next_revision(self.state.phase);
        state.resume_expired = true;
        write_state(state, NextAction::Nothing)
    }

    fn keep_state(&self, next: NextAction) -> Step {
        Step { state: None, next }
    }

    fn next_revision(&self, phase: Phase) -> Operation {
        Operation {
            phase,
            revision: self.state.revision.next(),
            ..self.state.clone()
        }
    }

    /// No gateway searched for evidence while none was running, so that time does not count against the window.
    fn restart_window(&self, next: NextAction) -> Step {
        let since = self.uncertain_from_now();
        // No write for nothing: each one costs a sync.
        if since == self.state.uncertain_since {
            return self.keep_state(next);
        }
        let mut state = self.next_revision(self.state.phase);
        state.uncertain_since = since;
        write_state(state, next)
    }

    fn uncertain_from_now(&self) -> Option<Timestamp> {
        self.state.uncertain_since.map(|_before| self.now)
    }

    fn follow_task(&self, task: TaskRef) -> Step {
        let mut state = self.next_revision(Phase::Running);
        state.task = Some(task);
        write_state(state, NextAction::Follow)
    }

    /// The start of the uncertainty is kept until the task was seen running again: an adapter that finds and loses a task
    /// in turn must not go on for ever.
    fn search_evidence(&self) -> Step {
        self.search_evidence_since(self.state.uncertain_since.unwrap_or(self.now))
    }

    fn search_evidence_since(&self, since: Timestamp) -> Step {
        let mut state = self.next_revision(Phase::Uncertain);
        state.uncertain_since = Some(since);
        write_state(state, NextAction::Settle)
    }

    /// Calls again, a bounded number of times and within the window: a VM manager that discards each call must not be called
    /// for ever. The evidence shows what the earlier calls left, nothing or a half. So the outcome is known when this gives
    /// up, and a refusal of this call proves as much as a refusal of the first.
    fn call_again(&self, give_up_as: Phase, fault: Fault, is_half_done: bool) -> Step {
        if self.is_window_over() || self.state.calls >= CALLS_MAX {
            return self.finish(give_up_as, Some(fault));
        }
        let mut state = self.next_revision(Phase::Submitting);
        state.calls = state.calls.saturating_add(1);
        // The old task belongs to the call that left nothing. Following it would report that call's end as this
        // one's.
        state.task = None;
        write_state(state, NextAction::CallAgain { is_half_done })
    }

    fn is_window_over(&self) -> bool {
        let since = self.state.uncertain_since.unwrap_or(self.now);
        self.now >= since.plus(self.rules.settle).plus(self.rules.probe_window)
    }

    fn record_progress(&self, progress: Option<Progress>) -> Step {
        let reported = progress.map_or(Progress::NONE, |reported| {
            Progress::unfinished(reported.percent())
        });
        // A VM manager may restart its own count with a new task; what callers saw never falls.
        let progress = reported.max(self.state.progress);
        if progress == self.state.progress && self.state.uncertain_since.is_none() {
            return self.keep_state(NextAction::Follow);
        }
        let mut state = self.next_revision(Phase::Running);
        state.progress = progress;
        state.uncertain_since = None;
        write_state(state, NextAction::Follow)
    }

    fn keep_searching(&self) -> Step {
        if self.is_window_over() {
            self.end_as_unknown()
        } else {
            self.keep_state(NextAction::SearchAgain)
        }
    }

    fn end_as_unknown(&self) -> Step {
        self.finish(
            Phase::Unknown,
            Some(faults::outcome_unknown(self.state.verb())),
        )
    }

    fn succeed(&self, notice: Option<PublicText>) -> Step {
        let mut state = self.final_state(Phase::Succeeded, None);
        state.notice = notice;
        write_state(state, NextAction::Nothing)
    }

    fn finish(&self, phase: Phase, fault: Option<Fault>) -> Step {
        write_state(self.final_state(phase, fault), NextAction::Nothing)
    }

    fn final_state(&self, phase: Phase, fault: Option<Fault>) -> Operation {
        let mut state = self.next_revision(phase);
        let started = state.started.unwrap_or(state.created);
        // The wall clock may have been set back, and a Status must not end before it began.
        let completed = self.now.max(started).max(state.created);
        // 100 means final, whatever the outcome: a client that polls for 100 must not wait for ever.
        state.progress = Progress::DONE;
        state.fault = fault;
        state.completed = Some(completed);
        // An unknown outcome never expires before an operator acknowledged it.
        state.expires = (phase != Phase::Unknown).then(|| completed.plus(self.rules.retention));
        state
    }

    /// Only remembers it: the task that works on the operation sees it and asks the VM manager, which decides.
    fn remember_cancellation(&self) -> Step {
        if self.state.cancel_asked.is_some() {
            return self.keep_state(NextAction::Nothing);
        }
        let mut state = self.next_revision(self.state.phase);
        state.cancel_asked = Some(self.now);
        write_state(state, NextAction::Nothing)
    }

    fn record_acknowledgement(&self) -> Step {
        if self.state.acknowledged.is_some() {
            return self.keep_state(NextAction::Nothing);
        }
        let mut state = self.next_revision(Phase::Unknown);
        state.acknowledged = Some(self.now);
        state.expires = Some(self.now.plus(self.rules.retention));
        write_state(state, NextAction::Nothing)
    }
}

const fn write_state(state: Operation, next: NextAction) -> Step {
    Step {
        state: Some(state),
        next,
    }
}
