//! Every transition as a table; the crash points C0 to C9 by name are in `recovery`.

mod evidence;
mod recovery;

use std::time::Duration;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::Timestamp;
use crate::operations::machine::Event;
use crate::operations::machine::NextAction;
use crate::operations::machine::Rules;
use crate::operations::machine::check_invariants;
use crate::operations::machine::decision::IllegalEvent;
use crate::operations::machine::decision::Step;
use crate::operations::machine::step;
use crate::operations::testing::NOW;
use crate::operations::testing::operation;
use crate::operations::testing::task_ref;
use crate::public_text;

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
    Fault::new(
        FaultKind::StorageFull,
        crate::public_text!("The storage is full."),
    )
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
        Phase::Running => to(&submitting(), Event::Task(task_ref("t"))),
        Phase::Uncertain => to(&submitting(), Event::Lost),
        Phase::Succeeded => to(&submitting(), Event::Done(None)),
        Phase::Failed => to(&accepted, Event::NotStarted(fault())),
        Phase::Cancelled => to(&in_phase(Phase::Running), Event::Cancelled),
        Phase::NotExecuted => to(&in_phase(Phase::Uncertain), Event::NotBegun),
        Phase::Unknown => to(&in_phase(Phase::Uncertain), Event::Unknowable),
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::Recovered { last_alive: NOW },
        Event::Resumed { last_alive: NOW },
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
        Event::Done(None),
        Event::Task(task_ref("u")),
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
fn every_event_in_every_phase_leads_to_what_the_table_says() {
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
                next: action,
            }) = result
            else {
                let illegal = IllegalEvent {
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
            let got = match (next.map(|next| next.phase), action) {
                (None, NextAction::Queue) => "queue",
                (None, NextAction::Follow) => "follow",
                (None, NextAction::SearchAgain) => "find",
                (None, NextAction::Nothing) => "rest",
                (Some(Phase::Submitting), NextAction::Call { first: true }) => "call",
                (Some(Phase::Running), NextAction::Follow) => "R",
                (Some(Phase::Uncertain), NextAction::Settle) => "U",
                (Some(Phase::Succeeded), NextAction::Nothing) => "S",
                (Some(Phase::Failed), NextAction::Nothing) => "F",
                (Some(Phase::Cancelled), NextAction::Nothing) => "C",
                (Some(Phase::NotExecuted), NextAction::Nothing) => "N",
                (Some(Phase::Unknown), NextAction::Nothing) => "K",
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(got, expected, "{name}");
        }
    }
}

#[test]
fn progress_never_goes_back_and_is_100_only_at_the_end() {
    let mut state = in_phase(Phase::Running);
    for (reported, expected) in [
        (progress(10), 10),
        (progress(4), 10),
        (None, 10),
        (Some(Progress::DONE), 99),
        (progress(98), 99),
    ] {
        let step = step(&state, Event::Working(reported), NOW, &RULES).unwrap();
        assert_eq!(
            step.state.is_some(),
            expected > state.progress.percent(),
            "{reported:?}: written only when it changed"
        );
        state = step.state.unwrap_or(state);
        assert_eq!(state.progress.percent(), expected, "after {reported:?}");
    }
    let lost = to(&state, Event::Lost);
    assert_eq!(lost.progress.percent(), 99, "kept while uncertain");
    let done = to(&lost, Event::Done(None));
    assert_eq!(done.progress, Progress::DONE, "at the end");
}

#[test]
fn a_success_keeps_what_the_vm_manager_added_however_it_was_learned() {
    let notice = public_text!("The VM manager reported warnings; see its task log.");
    for phase in [Phase::Submitting, Phase::Running, Phase::Uncertain] {
        let done = to(&in_phase(phase), Event::Done(Some(notice.clone())));
        assert_eq!(done.notice.as_ref(), Some(&notice), "{phase:?}");
        assert_eq!(check_invariants(&done), Ok(()), "{phase:?}");
        let silent = to(&in_phase(phase), Event::Done(None));
        assert_eq!(silent.notice, None, "{phase:?}");
    }
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
fn records_that_break_an_invariant_are_found() {
    type Damage = fn(&mut Operation);
    let rows: [(&str, Phase, Damage); 9] = [
        ("notice of a failure", Phase::Failed, |record| {
            record.notice = Some(public_text!("The VM manager reported warnings."));
        }),
        ("100 too early", Phase::Running, |record| {
            record.progress = Progress::DONE;
        }),
        ("no fault", Phase::Failed, |record| record.fault = None),
        ("wrong fault", Phase::Unknown, |record| {
            record.fault = Some(fault());
        }),
        ("no task", Phase::Running, |record| record.task = None),
        ("early task", Phase::Accepted, |record| {
            record.task = Some(task_ref("t"));
        }),
        ("no end", Phase::Succeeded, |record| record.completed = None),
        ("never started", Phase::Submitting, |record| {
            record.started = None;
        }),
        ("expires", Phase::Unknown, |record| {
            record.expires = Some(NOW);
        }),
    ];
    for (name, phase, damage) in rows {
        let mut state = in_phase(phase);
        damage(&mut state);
        assert!(check_invariants(&state).is_err(), "{name}");
    }
}

#[test]
fn a_cancellation_ends_a_queued_operation_and_is_remembered_by_others() {
    for phase in Phase::ALL {
        let state = in_phase(phase);
        let result = step(&state, Event::CancelAsked, after(2), &RULES);
        if phase.is_final() {
            assert!(result.is_err(), "{phase:?} is final");
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
        assert_eq!(again.state, None, "{phase:?}: one cancellation");
    }
}
