//! What a restart makes of a record: the crash points C0 (nothing durable) to C9 (cancelled), and long absences.

use super::RULES;
use super::SAFE;
use super::after;
use super::fault;
use super::in_phase;
use super::to;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Phase;
use crate::operations::machine::Event;
use crate::operations::machine::NextAction;
use crate::operations::machine::Rules;
use crate::operations::machine::check_invariants;
use crate::operations::machine::step;
use crate::operations::testing::NOW;
use crate::operations::testing::operation;
use crate::operations::testing::task_ref;

/// What a restart does with a record: the phase afterwards and the effect.
fn restart(state: &Operation, last_alive: u64, now: u64, rules: &Rules) -> (Phase, NextAction) {
    let event = Event::Recovered {
        last_alive: after(last_alive),
    };
    let step = step(state, event, after(now), rules).expect("legal");
    (step.state.map_or(state.phase, |next| next.phase), step.next)
}

#[test]
fn c0_nothing_durable_is_nothing_to_recover() {
    let fresh = operation(1, "vm", "b");
    assert_eq!(fresh.phase, Phase::Accepted, "a record begins as accepted");
    assert_eq!(check_invariants(&fresh), Ok(()), "and is whole");
}

#[test]
fn c1_accepted_and_not_answered_runs() {
    let state = in_phase(Phase::Accepted);
    let expected = (Phase::Accepted, NextAction::Queue);
    assert_eq!(restart(&state, 0, 5, &RULES), expected, "it was valid");
}

#[test]
fn c2_accepted_and_offline_too_long_does_not_run() {
    let state = in_phase(Phase::Accepted);
    let rows = [
        ("just in time", 0, 600, Phase::Accepted),
        ("stale", 0, 601, Phase::NotExecuted),
        (
            "queued while a gateway was running",
            5000,
            5600,
            Phase::Accepted,
        ),
        ("then offline too long", 5000, 5601, Phase::NotExecuted),
    ];
    for (name, last_alive, now, expected) in rows {
        let (phase, _) = restart(&state, last_alive, now, &RULES);
        assert_eq!(phase, expected, "{name}");
    }
}

#[test]
fn c3_submitting_is_uncertain_or_called_again_with_the_same_key() {
    let state = in_phase(Phase::Submitting);
    let expected = (Phase::Uncertain, NextAction::Settle);
    assert_eq!(
        restart(&state, 0, 5, &RULES),
        expected,
        "never sent blindly"
    );
    let expected = (Phase::Submitting, NextAction::Call { first: false });
    assert_eq!(restart(&state, 0, 5, &SAFE), expected, "replay-safe");
    let refused = Event::Refused {
        fault: fault(),
        first: false,
    };
    let after_replay = step(&state, refused, after(5), &SAFE).unwrap().state;
    let phase = after_replay.map(|after_replay| after_replay.phase);
    assert_eq!(
        phase,
        Some(Phase::Uncertain),
        "a refused replay proves nothing"
    );
    let nothing = step(&to(&state, Event::Lost), Event::NotBegun, after(5), &SAFE).unwrap();
    assert_eq!(
        nothing.next,
        NextAction::CallAgain {
            is_half_done: false
        },
        "proved absent: called again after a pause, not at once"
    );
}

/// The record after a gateway that was last running at `last_alive` was followed by one that started at `now`.
fn resumed(state: &Operation, last_alive: u64, now: u64) -> Operation {
    let event = Event::Resumed {
        last_alive: after(last_alive),
    };
    let step = step(state, event, after(now), &SAFE).expect("legal");
    assert_eq!(step.next, NextAction::Nothing, "nothing is called yet");
    step.state.unwrap_or_else(|| state.clone())
}

#[test]
fn only_an_absence_longer_than_resume_ttl_prevents_the_resumption() {
    // Last running at, started again at, and whether that was too long. Operations start one second after NOW.
    let rows = [
        ("at once", 1, 2, false),
        ("just in time", 100, 700, false),
        ("too late", 100, 701, true),
        ("no heartbeat since it started", 0, 602, true),
        ("the clock went back", 900, 100, false),
    ];
    for phase in [Phase::Submitting, Phase::Running, Phase::Uncertain] {
        for (name, last_alive, now, expected) in rows {
            let state = resumed(&in_phase(phase), last_alive, now);
            assert_eq!(state.resume_expired, expected, "{phase:?}: {name}");
            assert_eq!(state.phase, phase, "{phase:?}: {name}");
            assert_eq!(check_invariants(&state), Ok(()), "{phase:?}: {name}");
            let later = resumed(&state, now, now);
            assert_eq!(
                later.resume_expired, expected,
                "{phase:?}: {name}: it stays so"
            );
        }
    }
}

#[test]
fn after_a_long_absence_nothing_is_called_again_without_evidence() {
    let expired = resumed(&in_phase(Phase::Submitting), 0, 5000);
    let expected = (Phase::Uncertain, NextAction::Settle);
    assert_eq!(
        restart(&expired, 0, 5000, &SAFE),
        expected,
        "evidence first"
    );
    let lost = step(&expired, Event::Lost, after(5000), &SAFE).unwrap();
    let uncertain = lost.state.expect("uncertain");
    let end = |event| {
        let step = step(&uncertain, event, after(5001), &SAFE).unwrap();
        step.state.expect("a change")
    };
    let rows = [
        (Event::NotBegun, Phase::NotExecuted),
        (Event::VmChanged, Phase::NotExecuted),
        (Event::HalfDone(fault()), Phase::Submitting),
        (Event::Done(None), Phase::Succeeded),
        (Event::Task(task_ref("t")), Phase::Running),
    ];
    for (event, expected) in rows {
        let name = format!("{event:?}");
        assert_eq!(end(event).phase, expected, "{name}");
    }
    let text = end(Event::NotBegun).fault.unwrap().text;
    assert!(text.contains("nothing was changed"), "{text}");
}

#[test]
fn a_vm_that_changed_is_not_overwritten_however_short_the_absence() {
    for rules in [RULES, SAFE] {
        let lost = to(&in_phase(Phase::Running), Event::Lost);
        let step = step(&lost, Event::VmChanged, after(2), &rules).unwrap();
        let end = step.state.expect("an end");
        assert_eq!(end.phase, Phase::NotExecuted, "{rules:?}");
        let text = end.fault.unwrap().text;
        assert!(text.contains("disks of the VM changed"), "{text}");
    }
}

#[test]
fn a_cancelled_operation_is_not_called_again_after_a_restart() {
    let mut state = in_phase(Phase::Submitting);
    state.cancel_asked = Some(after(2));
    let expected = (Phase::Uncertain, NextAction::Settle);
    assert_eq!(restart(&state, 2, 3, &SAFE), expected, "evidence first");
    let lost = to(&state, Event::Lost);
    let end = step(&lost, Event::NotBegun, after(4), &SAFE).unwrap().state;
    let phase = end.map(|end| end.phase);
    assert_eq!(phase, Some(Phase::Cancelled), "nothing of it is left");
}

#[test]
fn c4_handle_not_recorded_is_found_again() {
    let uncertain = to(
        &in_phase(Phase::Submitting),
        Event::Recovered { last_alive: NOW },
    );
    let found = to(&uncertain, Event::Task(task_ref("t")));
    assert_eq!(found.phase, Phase::Running, "attached");
    assert_eq!(found.task, Some(task_ref("t")), "to its task");
}

#[test]
fn c5_running_is_followed_and_a_task_that_is_gone_is_looked_for() {
    let state = in_phase(Phase::Running);
    let expected = (Phase::Running, NextAction::Follow);
    assert_eq!(restart(&state, 0, 99_999, &RULES), expected, "however late");
    let gone = to(&state, Event::Lost);
    assert_eq!(gone.phase, Phase::Uncertain, "gone is not failed");
}

#[test]
fn c6_done_and_not_recorded_is_polled_again() {
    let state = in_phase(Phase::Running);
    assert_eq!(
        restart(&state, 0, 5, &RULES).1,
        NextAction::Follow,
        "polled"
    );
    assert_eq!(
        to(&state, Event::Done(None)).phase,
        Phase::Succeeded,
        "same end"
    );
}

#[test]
fn c7_final_does_not_change() {
    for phase in Phase::ALL.into_iter().filter(|phase| phase.is_final()) {
        let event = Event::Recovered { last_alive: NOW };
        let result = step(&in_phase(phase), event, after(9), &RULES);
        assert!(result.is_err(), "{phase:?} is not recovered");
    }
}

#[test]
fn c8_a_change_made_from_an_older_state_carries_an_older_revision() {
    let state = in_phase(Phase::Running);
    let (one, other) = (to(&state, Event::Done(None)), to(&state, Event::Lost));
    assert_eq!(
        one.revision, other.revision,
        "the store lets one of them in"
    );
}

#[test]
fn c9_cancelled_by_the_vm_manager_is_cancelled() {
    let cancelled = in_phase(Phase::Cancelled);
    let kind = cancelled.fault.map(|fault| fault.kind);
    assert_eq!(kind, Some(FaultKind::Cancelled), "and says so");
    let lost = in_phase(Phase::Uncertain);
    let found = to(&lost, Event::Cancelled);
    assert_eq!(found.phase, Phase::Cancelled, "also when found later");
}
