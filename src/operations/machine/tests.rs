//! Every transition, and every crash point by its name.

use super::*;
use crate::operations::testing::NOW;
use crate::operations::testing::operation;
use crate::operations::testing::task;

const RULES: Rules = Rules {
    replay_safe: false,
    settle: Duration::from_secs(10),
    probe_window: Duration::from_secs(100),
    accept_ttl: Duration::from_secs(600),
    resume_ttl: Duration::from_secs(600),
    retention: Duration::from_secs(1000),
};

const SAFE: Rules = Rules {
    replay_safe: true,
    ..RULES
};

fn after(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

fn fault() -> Fault {
    Fault::new(FaultKind::StorageFull, "full")
}

fn progress(percent: u8) -> Option<Progress> {
    Some(Progress::unfinished(percent))
}

/// A new state one second after [`NOW`].
fn to(state: &Operation, event: Event) -> Operation {
    step(state, event, after(1), &RULES)
        .expect("legal")
        .state
        .expect("a change")
}

/// One record in each phase, made by the machine itself.
fn in_phase(phase: Phase) -> Operation {
    let accepted = operation(1, "vm", "b");
    let submitting = || to(&accepted, Event::Start(None));
    match phase {
        Phase::Accepted => accepted,
        Phase::Submitting => submitting(),
        Phase::Running => to(&submitting(), Event::Task(task("t"))),
        Phase::Uncertain => to(&submitting(), Event::Lost),
        Phase::Succeeded => to(&submitting(), Event::Done),
        Phase::Failed => to(&accepted, Event::NotStarted(fault())),
        Phase::Cancelled => to(&in_phase(Phase::Running), Event::Cancelled),
        Phase::NotExecuted => to(&in_phase(Phase::Uncertain), Event::NotBegun),
        Phase::Unknown => to(&in_phase(Phase::Uncertain), Event::Unknowable),
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::Recovered { alive: NOW },
        Event::Resumed { alive: NOW },
        Event::Start(None),
        Event::NotStarted(fault()),
        Event::Refused {
            fault: fault(),
            first: true,
        },
        Event::Refused {
            fault: fault(),
            first: false,
        },
        Event::Done,
        Event::Task(task("u")),
        Event::Lost,
        Event::Working(progress(5)),
        Event::Failed(fault()),
        Event::Cancelled,
        Event::NotBegun,
        Event::VmChanged,
        Event::HalfDone(fault()),
        Event::NoEvidence,
        Event::Unknowable,
        Event::Acknowledge,
    ]
}

/// For each phase, what each of [`events`] leads to; `-` is illegal.
const TABLE: [(Phase, &str); 9] = [
    // recovered resumed start not-started refused refused-again done task lost working failed cancelled not-begun vm-changed half-done no-evidence unknowable acknowledge
    (
        Phase::Accepted,
        "queue - call F - - - - - - - - - - - - - -",
    ),
    (Phase::Submitting, "U rest - - F U S R U - - - - - - - - -"),
    (
        Phase::Running,
        "follow rest - - - - S - U R F C - - - - - -",
    ),
    (
        Phase::Uncertain,
        "U rest - - - - S R - - F C N N F find K -",
    ),
    (Phase::Succeeded, "- - - - - - - - - - - - - - - - - -"),
    (Phase::Failed, "- - - - - - - - - - - - - - - - - -"),
    (Phase::Cancelled, "- - - - - - - - - - - - - - - - - -"),
    (Phase::NotExecuted, "- - - - - - - - - - - - - - - - - -"),
    (Phase::Unknown, "- - - - - - - - - - - - - - - - - K"),
];

#[test]
fn every_event_in_every_phase_does_what_the_table_says() {
    for (phase, row) in TABLE {
        let state = in_phase(phase);
        assert_eq!(state.phase, phase, "the machine reaches it");
        assert_eq!(check_invariants(&state), Ok(()), "{phase:?}");
        let expected: Vec<&str> = row.split(' ').collect();
        assert_eq!(expected.len(), events().len(), "{phase:?}: a whole row");
        for (event, expected) in events().into_iter().zip(expected) {
            let name = format!("{phase:?} and {event:?}");
            let result = step(&state, event.clone(), after(2), &RULES);
            let Ok(Step {
                state: next,
                effect,
            }) = result
            else {
                let illegal = Illegal {
                    phase,
                    event: event.as_str(),
                };
                assert_eq!((expected, result), ("-", Err(illegal)), "{name}");
                continue;
            };
            if let Some(next) = &next {
                assert_eq!(check_invariants(next), Ok(()), "{name}");
                assert_eq!(next.revision, state.revision.next(), "{name}: one change");
                assert!(next.progress >= state.progress, "{name}: never back");
            }
            let got = match (next.map(|next| next.phase), effect) {
                (None, Effect::Queue) => "queue",
                (None, Effect::Follow) => "follow",
                (None, Effect::Find) => "find",
                (None, Effect::Rest) => "rest",
                (Some(Phase::Submitting), Effect::Call { first: true }) => "call",
                (Some(Phase::Running), Effect::Follow) => "R",
                (Some(Phase::Uncertain), Effect::Settle) => "U",
                (Some(Phase::Succeeded), Effect::Rest) => "S",
                (Some(Phase::Failed), Effect::Rest) => "F",
                (Some(Phase::Cancelled), Effect::Rest) => "C",
                (Some(Phase::NotExecuted), Effect::Rest) => "N",
                (Some(Phase::Unknown), Effect::Rest) => "K",
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(got, expected, "{name}");
        }
    }
}

#[test]
fn progress_never_goes_back_and_is_100_only_at_the_end() {
    let mut state = in_phase(Phase::Running);
    for (said, expected) in [
        (progress(10), 10),
        (progress(4), 10),
        (None, 10),
        (Some(Progress::DONE), 99),
        (progress(98), 99),
    ] {
        let step = step(&state, Event::Working(said), NOW, &RULES).unwrap();
        assert_eq!(
            step.state.is_some(),
            expected > state.progress.percent(),
            "{said:?}: written only when it changed"
        );
        state = step.state.unwrap_or(state);
        assert_eq!(state.progress.percent(), expected, "after {said:?}");
    }
    let lost = to(&state, Event::Lost);
    assert_eq!(lost.progress.percent(), 99, "kept while uncertain");
    let done = to(&lost, Event::Done);
    assert_eq!(done.progress, Progress::DONE, "at the end");
}

#[test]
fn times_never_contradict_one_another_when_the_clock_goes_back() {
    let before = Timestamp::from_millis(5);
    let mut state = operation(1, "vm", "b");
    for event in [Event::Start(None), Event::Lost, Event::Unknowable] {
        state = step(&state, event, before, &RULES).unwrap().state.unwrap();
        assert_eq!(check_invariants(&state), Ok(()), "{:?}", state.phase);
    }
}

#[test]
fn evidence_is_looked_for_until_the_window_is_over() {
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
    assert!(text.contains("Look at"), "says what to check: {text}");
}

#[test]
fn an_unknown_outcome_says_for_each_verb_what_to_check() {
    let rows = [
        (Verb::Create, "Look for it, and whether it is whole"),
        (Verb::Update, "Read it and compare"),
        (Verb::Delete, "Look whether it is still there"),
        (Verb::Restore, "Look at the state of the VM"),
    ];
    for (verb, expected) in rows {
        let fault = unknown(verb);
        assert_eq!(fault.kind, FaultKind::OutcomeUnknown, "{verb:?}");
        assert!(fault.text.contains(expected), "{verb:?}: {}", fault.text);
    }
}

#[test]
fn time_in_which_nobody_looked_is_no_part_of_the_window() {
    let away = RULES.settle + RULES.probe_window + Duration::from_secs(1);
    let found = to(&in_phase(Phase::Uncertain), Event::Task(task("t")));
    let mut repeated = in_phase(Phase::Submitting);
    repeated.uncertain_since = Some(after(1));
    let back = NOW.plus(away);
    for state in [in_phase(Phase::Uncertain), found, repeated] {
        let name = state.phase.as_str();
        let recovered = Event::Recovered { alive: NOW };
        let state = step(&state, recovered, back, &RULES).unwrap().state;
        let state = state.expect("a new window");
        assert_eq!(state.uncertain_since, Some(back), "{name}: from now on");
        let again = Event::Recovered { alive: NOW };
        let same = step(&state, again, back, &RULES).unwrap().state;
        assert_eq!(same, None, "{name}: once");
    }
}

#[test]
fn a_task_found_and_lost_in_turn_does_not_go_on_for_ever() {
    let uncertain = in_phase(Phase::Uncertain);
    let since = uncertain.uncertain_since;
    let found = to(&uncertain, Event::Task(task("t")));
    let lost = step(&found, Event::Lost, after(50), &RULES).unwrap();
    let lost = lost.state.unwrap();
    assert_eq!(lost.uncertain_since, since, "the window goes on");
    let seen = to(&found, Event::Working(None));
    assert_eq!(seen.uncertain_since, None, "seen at work: a new window");
}

#[test]
fn a_task_that_was_known_did_begin() {
    let lost = to(&in_phase(Phase::Running), Event::Lost);
    let step = step(&lost, Event::NotBegun, after(2), &RULES).unwrap();
    assert_eq!((step.state, step.effect), (None, Effect::Find), "no proof");
}

/// A record that the VM manager dropped: uncertain, after so many calls.
fn dropped_after(calls: u32, phase: Phase) -> Operation {
    let mut state = to(&in_phase(phase), Event::Lost);
    state.calls = calls;
    state
}

#[test]
fn replay_safe_work_that_left_no_trace_is_carried_out_so_many_times() {
    let window = (SAFE.settle + SAFE.probe_window).as_secs();
    let again = (Phase::Submitting, Effect::Repeat { half: false });
    let given_up = (Phase::NotExecuted, Effect::Rest);
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
        let state = dropped_after(calls, phase);
        let step = step(&state, Event::NotBegun, after(1 + later), &SAFE).unwrap();
        let next = step.state.expect(name);
        assert_eq!((next.phase, step.effect), expected, "{name}");
        assert_eq!(next.calls, calls_after, "{name}: counted");
        let kept = next.task.is_some() && next.phase == Phase::Submitting;
        assert!(!kept, "{name}: its task is no more");
        assert_eq!(check_invariants(&next), Ok(()), "{name}");
    }
}

#[test]
fn replay_safe_work_that_was_broken_off_half_way_is_carried_to_its_end_or_told_as_half_done() {
    let window = (SAFE.settle + SAFE.probe_window).as_secs();
    // Calls so far, the phase it was lost in, seconds since then, and what follows.
    let rows = [
        ("once", 1, Phase::Running, 1, Phase::Submitting),
        ("the last time", 9, Phase::Submitting, 1, Phase::Submitting),
        ("too often", 10, Phase::Running, 1, Phase::Failed),
        ("too long", 1, Phase::Running, window, Phase::Failed),
    ];
    for (name, calls, phase, later, expected) in rows {
        let mut state = dropped_after(calls, phase);
        state.cancel_asked = Some(after(1));
        let half = Event::HalfDone(fault());
        let step = step(&state, half, after(1 + later), &SAFE).unwrap();
        let next = step.state.expect(name);
        let told = next.fault.clone();
        assert_eq!(next.phase, expected, "{name}");
        let due = (expected == Phase::Failed).then(fault);
        assert_eq!(told, due, "{name}: a half is never told as nothing");
        assert_eq!(check_invariants(&next), Ok(()), "{name}");
    }
}

#[test]
fn a_repeated_call_that_is_refused_had_no_effect_and_one_that_is_lost_settles_again() {
    let repeated = step(
        &dropped_after(1, Phase::Submitting),
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
        (Event::Task(task("u")), Phase::Running),
        (Event::Done, Phase::Succeeded),
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
fn an_operation_over_which_the_gateway_dies_is_not_called_for_ever() {
    let mut state = in_phase(Phase::Submitting);
    let mut calls = 1;
    while state.phase == Phase::Submitting {
        assert_eq!(
            state.calls, calls,
            "every call is counted before it is made"
        );
        assert!(calls <= CALLS_MAX, "bounded");
        let recovered = Event::Recovered { alive: NOW };
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

/// What a restart does with a record: the phase afterwards and the effect.
fn restart(state: &Operation, alive: u64, now: u64, rules: &Rules) -> (Phase, Effect) {
    let event = Event::Recovered {
        alive: after(alive),
    };
    let step = step(state, event, after(now), rules).expect("legal");
    (step.state.map_or(state.phase, |it| it.phase), step.effect)
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
    let expected = (Phase::Accepted, Effect::Queue);
    assert_eq!(restart(&state, 0, 5, &RULES), expected, "it was valid");
}

#[test]
fn c2_accepted_and_stale_does_not_run() {
    let state = in_phase(Phase::Accepted);
    let rows = [
        ("just in time", 0, 600, Phase::Accepted),
        ("stale", 0, 601, Phase::NotExecuted),
        (
            "queued while a gateway was at work",
            5000,
            5600,
            Phase::Accepted,
        ),
        ("then away for too long", 5000, 5601, Phase::NotExecuted),
    ];
    for (name, alive, now, expected) in rows {
        let (phase, _) = restart(&state, alive, now, &RULES);
        assert_eq!(phase, expected, "{name}");
    }
}

#[test]
fn c3_submitting_is_uncertain_or_called_again_with_the_same_key() {
    let state = in_phase(Phase::Submitting);
    let expected = (Phase::Uncertain, Effect::Settle);
    assert_eq!(
        restart(&state, 0, 5, &RULES),
        expected,
        "never sent blindly"
    );
    let expected = (Phase::Submitting, Effect::Call { first: false });
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
        nothing.effect,
        Effect::Repeat { half: false },
        "proved absent: called again after a pause, not at once"
    );
}

/// The record after a gateway that was last running at `alive` was followed by one that started at `now`.
fn resumed(state: &Operation, alive: u64, now: u64) -> Operation {
    let event = Event::Resumed {
        alive: after(alive),
    };
    let step = step(state, event, after(now), &SAFE).expect("legal");
    assert_eq!(step.effect, Effect::Rest, "nothing is called yet");
    step.state.unwrap_or_else(|| state.clone())
}

#[test]
fn only_an_absence_longer_than_the_limit_expires_the_resumption() {
    // Last running at, started again at, and whether that was too long. Operations start one second after NOW.
    let rows = [
        ("at once", 1, 2, false),
        ("just in time", 100, 700, false),
        ("too late", 100, 701, true),
        ("no sign of life since it started", 0, 602, true),
        ("the clock went back", 900, 100, false),
    ];
    for phase in [Phase::Submitting, Phase::Running, Phase::Uncertain] {
        for (name, alive, now, expected) in rows {
            let state = resumed(&in_phase(phase), alive, now);
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
fn after_a_long_absence_nothing_is_called_for_again_without_evidence() {
    let expired = resumed(&in_phase(Phase::Submitting), 0, 5000);
    let expected = (Phase::Uncertain, Effect::Settle);
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
        (Event::Done, Phase::Succeeded),
        (Event::Task(task("t")), Phase::Running),
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
fn what_is_to_be_cancelled_is_not_called_for_again_after_a_restart() {
    let mut state = in_phase(Phase::Submitting);
    state.cancel_asked = Some(after(2));
    let expected = (Phase::Uncertain, Effect::Settle);
    assert_eq!(restart(&state, 2, 3, &SAFE), expected, "evidence first");
    let lost = to(&state, Event::Lost);
    let end = step(&lost, Event::NotBegun, after(4), &SAFE).unwrap().state;
    let phase = end.map(|end| end.phase);
    assert_eq!(phase, Some(Phase::Cancelled), "nothing of it is there");
}

#[test]
fn c4_handle_not_recorded_is_found_again() {
    let uncertain = to(
        &in_phase(Phase::Submitting),
        Event::Recovered { alive: NOW },
    );
    let found = to(&uncertain, Event::Task(task("t")));
    assert_eq!(found.phase, Phase::Running, "attached");
    assert_eq!(found.task, Some(task("t")), "to its task");
}

#[test]
fn c5_running_is_followed_and_a_task_that_is_gone_is_looked_for() {
    let state = in_phase(Phase::Running);
    let expected = (Phase::Running, Effect::Follow);
    assert_eq!(restart(&state, 0, 99_999, &RULES), expected, "however late");
    let gone = to(&state, Event::Lost);
    assert_eq!(gone.phase, Phase::Uncertain, "gone is not failed");
}

#[test]
fn c6_done_and_not_recorded_is_seen_again() {
    let state = in_phase(Phase::Running);
    assert_eq!(restart(&state, 0, 5, &RULES).1, Effect::Follow, "polled");
    assert_eq!(to(&state, Event::Done).phase, Phase::Succeeded, "same end");
}

#[test]
fn c7_final_stays_as_it_is() {
    for phase in Phase::ALL.into_iter().filter(|it| it.is_final()) {
        let event = Event::Recovered { alive: NOW };
        let result = step(&in_phase(phase), event, after(9), &RULES);
        assert!(result.is_err(), "{phase:?} is not recovered");
    }
}

#[test]
fn c8_a_change_made_from_an_older_state_carries_an_older_revision() {
    let state = in_phase(Phase::Running);
    let (one, other) = (to(&state, Event::Done), to(&state, Event::Lost));
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

#[test]
fn broken_records_are_recognised() {
    type Harm = fn(&mut Operation);
    let rows: [(&str, Phase, Harm); 8] = [
        ("100 too early", Phase::Running, |it| {
            it.progress = Progress::DONE;
        }),
        ("no fault", Phase::Failed, |it| it.fault = None),
        ("wrong fault", Phase::Unknown, |it| it.fault = Some(fault())),
        ("no task", Phase::Running, |it| it.task = None),
        ("early task", Phase::Accepted, |it| {
            it.task = Some(task("t"));
        }),
        ("no end", Phase::Succeeded, |it| it.completed = None),
        ("never started", Phase::Submitting, |it| it.started = None),
        ("expires", Phase::Unknown, |it| it.expires = Some(NOW)),
    ];
    for (name, phase, harm) in rows {
        let mut state = in_phase(phase);
        harm(&mut state);
        assert!(check_invariants(&state).is_err(), "{name}");
    }
}

#[test]
fn a_wish_to_stop_ends_what_is_queued_and_is_remembered_elsewhere() {
    for phase in Phase::ALL {
        let state = in_phase(phase);
        let result = step(&state, Event::CancelAsked, after(2), &RULES);
        if phase.is_final() {
            assert!(result.is_err(), "{phase:?} is over");
            continue;
        }
        let next = result.unwrap().state.unwrap();
        assert_eq!(check_invariants(&next), Ok(()), "{phase:?}");
        if phase == Phase::Accepted {
            assert_eq!(next.phase, Phase::Cancelled, "queued");
            assert_eq!(next.started, None, "never begun");
            continue;
        }
        assert_eq!(next.phase, phase, "goes on");
        assert_eq!(next.cancel_asked, Some(after(2)), "{phase:?}: remembered");
        let again = step(&next, Event::CancelAsked, after(3), &RULES).unwrap();
        assert_eq!(again.state, None, "{phase:?}: one wish");
    }
}
