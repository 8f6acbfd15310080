//! The search for evidence after a lost answer: how long, how often the call is repeated, and how it ends.

use std::time::Duration;

use super::RULES;
use super::SAFE;
use super::after;
use super::fault;
use super::in_phase;
use super::to;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Verb;
use crate::operations::machine::Event;
use crate::operations::machine::NextAction;
use crate::operations::machine::check_invariants;
use crate::operations::machine::faults;
use crate::operations::machine::step;
use crate::operations::machine::transition::CALLS_MAX;
use crate::operations::testing::NOW;
use crate::operations::testing::task_ref;

#[test]
fn evidence_is_searched_for_until_the_window_is_over() {
    let state = in_phase(Phase::Uncertain);
    let since = state.uncertain_since.unwrap();
    let window = RULES.settle + RULES.probe_window;
    let rows = [
        ("at once", Duration::ZERO, None),
        ("just before", window - Duration::from_millis(1), None),
        ("over", window, Some(Phase::Unknown)),
    ];
    for (name, later, expected) in rows {
        let step = step(&state, Event::NoEvidence, since.plus(later), &RULES).unwrap();
        assert_eq!(step.state.map(|state| state.phase), expected, "{name}");
    }
    let unknown = in_phase(Phase::Unknown);
    let text = unknown.fault.map(|fault| fault.text).unwrap_or_default();
    assert!(
        text.contains("Check the state of the VM"),
        "says what to check: {text}"
    );
}

#[test]
fn an_unknown_outcome_says_for_each_verb_what_to_check() {
    let rows = [
        (
            Verb::Create,
            "Check whether the backup exists and is complete",
        ),
        (Verb::Update, "Read the backup and compare it"),
        (Verb::Delete, "Check whether the backup still exists"),
        (Verb::Restore, "Check the state of the VM"),
    ];
    for (verb, expected) in rows {
        let fault = faults::outcome_unknown(verb);
        assert_eq!(fault.kind, FaultKind::OutcomeUnknown, "{verb:?}");
        assert!(fault.text.contains(expected), "{verb:?}: {}", fault.text);
    }
}

#[test]
fn time_without_a_gateway_does_not_count_against_the_window() {
    let away = RULES.settle + RULES.probe_window + Duration::from_secs(1);
    let found = to(&in_phase(Phase::Uncertain), Event::Task(task_ref("t")));
    let mut repeated = in_phase(Phase::Submitting);
    repeated.uncertain_since = Some(after(1));
    let back = NOW.plus(away);
    for state in [in_phase(Phase::Uncertain), found, repeated] {
        let name = state.phase.as_str();
        let recovered = Event::Recovered { last_alive: NOW };
        let state = step(&state, recovered, back, &RULES).unwrap().state;
        let state = state.expect("a new window");
        assert_eq!(state.uncertain_since, Some(back), "{name}: from now on");
        let again = Event::Recovered { last_alive: NOW };
        let same = step(&state, again, back, &RULES).unwrap().state;
        assert_eq!(same, None, "{name}: once");
    }
}

#[test]
fn a_task_found_and_lost_in_turn_does_not_go_on_for_ever() {
    let uncertain = in_phase(Phase::Uncertain);
    let since = uncertain.uncertain_since;
    let found = to(&uncertain, Event::Task(task_ref("t")));
    let lost = step(&found, Event::Lost, after(50), &RULES).unwrap();
    let lost = lost.state.unwrap();
    assert_eq!(lost.uncertain_since, since, "the window goes on");
    let seen = to(&found, Event::Working(None));
    assert_eq!(seen.uncertain_since, None, "seen running: a new window");
}

#[test]
fn a_task_that_was_known_has_started_even_when_it_is_not_found() {
    let lost = to(&in_phase(Phase::Running), Event::Lost);
    let step = step(&lost, Event::NotBegun, after(2), &RULES).unwrap();
    assert_eq!(
        (step.state, step.next),
        (None, NextAction::SearchAgain),
        "no proof"
    );
}

/// A record that the VM manager discarded: uncertain, after this many calls.
fn discarded_after(calls: u32, phase: Phase) -> Operation {
    let mut state = to(&in_phase(phase), Event::Lost);
    state.calls = calls;
    state
}

#[test]
fn a_replay_safe_operation_that_left_no_trace_is_called_again_a_bounded_number_of_times() {
    let window = (SAFE.settle + SAFE.probe_window).as_secs();
    let again = (
        Phase::Submitting,
        NextAction::CallAgain {
            is_half_done: false,
        },
    );
    let given_up = (Phase::NotExecuted, NextAction::Nothing);
    // Calls so far, the phase it was lost in, seconds since then, what follows, and calls afterwards.
    let rows = [
        ("once", 1, Phase::Submitting, 1, again, 2),
        ("with a task", 1, Phase::Running, 1, again, 2),
        ("the last time", 9, Phase::Running, 1, again, 10),
        ("too often", 10, Phase::Running, 1, given_up, 10),
        ("in time", 1, Phase::Submitting, window - 1, again, 2),
        ("too long", 1, Phase::Submitting, window, given_up, 1),
    ];
    for (name, calls, phase, later, expected, calls_after) in rows {
        let state = discarded_after(calls, phase);
        let step = step(&state, Event::NotBegun, after(1 + later), &SAFE).unwrap();
        let next = step.state.expect(name);
        assert_eq!((next.phase, step.next), expected, "{name}");
        assert_eq!(next.calls, calls_after, "{name}: counted");
        let kept = next.task.is_some() && next.phase == Phase::Submitting;
        assert!(!kept, "{name}: its task is no more");
        assert_eq!(check_invariants(&next), Ok(()), "{name}");
    }
}

#[test]
fn a_replay_safe_operation_that_is_half_done_is_completed_or_reported_as_half_done() {
    let window = (SAFE.settle + SAFE.probe_window).as_secs();
    // Calls so far, the phase it was lost in, seconds since then, and what follows.
    let rows = [
        ("once", 1, Phase::Running, 1, Phase::Submitting),
        ("the last time", 9, Phase::Submitting, 1, Phase::Submitting),
        ("too often", 10, Phase::Running, 1, Phase::Failed),
        ("too long", 1, Phase::Running, window, Phase::Failed),
    ];
    for (name, calls, phase, later, expected) in rows {
        let mut state = discarded_after(calls, phase);
        state.cancel_asked = Some(after(1));
        let half = Event::HalfDone(fault());
        let step = step(&state, half, after(1 + later), &SAFE).unwrap();
        let next = step.state.expect(name);
        let reported = next.fault.clone();
        assert_eq!(next.phase, expected, "{name}");
        let due = (expected == Phase::Failed).then(fault);
        assert_eq!(reported, due, "{name}: a half is never reported as nothing");
        assert_eq!(check_invariants(&next), Ok(()), "{name}");
    }
}

#[test]
fn a_repeated_call_that_is_refused_had_no_effect_and_one_whose_answer_is_lost_settles_again() {
    let repeated = step(
        &discarded_after(1, Phase::Submitting),
        Event::NotBegun,
        after(2),
        &SAFE,
    );
    let repeated = repeated.unwrap().state.unwrap();
    let refused = Event::Refused {
        fault: fault(),
        first: true,
    };
    let rows = [
        (refused, Phase::Failed),
        (Event::Lost, Phase::Uncertain),
        (Event::Task(task_ref("u")), Phase::Running),
        (Event::Done(None), Phase::Succeeded),
    ];
    for (event, expected) in rows {
        let name = format!("{event:?}");
        let next = step(&repeated, event, after(3), &SAFE).unwrap().state;
        let next = next.expect("a change");
        assert_eq!(next.phase, expected, "{name}");
        assert_eq!(
            next.uncertain_since, repeated.uncertain_since,
            "{name}: the window goes on"
        );
    }
}

#[test]
fn an_operation_in_which_the_gateway_dies_each_time_is_not_called_for_ever() {
    let mut state = in_phase(Phase::Submitting);
    let mut calls = 1;
    while state.phase == Phase::Submitting {
        assert_eq!(
            state.calls, calls,
            "every call is counted before it is made"
        );
        assert!(calls <= CALLS_MAX, "bounded");
        let recovered = Event::Recovered { last_alive: NOW };
        state = step(&state, recovered, after(5), &SAFE)
            .unwrap()
            .state
            .unwrap();
        calls += 1;
    }
    assert_eq!(state.phase, Phase::Uncertain, "then evidence decides");
    let dropped = step(&state, Event::NotBegun, after(6), &SAFE)
        .unwrap()
        .state;
    let phase = dropped.map(|dropped| dropped.phase);
    assert_eq!(phase, Some(Phase::NotExecuted), "nothing was changed");
}

#[test]
fn an_unknown_outcome_is_kept_until_it_is_acknowledged() {
    let unknown = in_phase(Phase::Unknown);
    assert_eq!(unknown.expires, None, "kept");
    let seen = step(&unknown, Event::Acknowledge, after(7), &RULES).unwrap();
    let seen = seen.state.unwrap();
    assert_eq!(seen.expires, Some(after(1007)), "retention from then on");
    let again = step(&seen, Event::Acknowledge, after(9), &RULES).unwrap();
    assert_eq!(again.state, None, "once");
    let done = in_phase(Phase::Succeeded);
    assert_eq!(done.expires, Some(after(1001)), "retention from the end on");
}
