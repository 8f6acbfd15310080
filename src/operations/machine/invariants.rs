//! What holds for every record that the machine makes.

use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Progress;

/// Whether the machine can have made this record.
///
/// # Errors
/// Which rule it breaks.
pub(crate) fn check_invariants(operation: &Operation) -> Result<(), &'static str> {
    let fault = operation.fault.as_ref().map(|fault| fault.kind);
    let queued = operation.phase == Phase::Accepted;
    let called = matches!(
        operation.phase,
        Phase::Submitting | Phase::Running | Phase::Uncertain | Phase::Succeeded | Phase::Unknown
    );
    let kept = operation.phase == Phase::Unknown && operation.acknowledged.is_none();
    let rules = [
        (operation.revision.0 >= 1, "revisions begin at 1"),
        (
            (operation.progress == Progress::DONE) == operation.phase.is_final(),
            "progress is 100 exactly when final",
        ),
        (
            fault.is_some() == (operation.phase.is_final() && operation.phase != Phase::Succeeded),
            "a fault exactly when final and not succeeded",
        ),
        (
            operation.notice.is_none() || operation.phase == Phase::Succeeded,
            "a notice only when succeeded",
        ),
        (
            operation.completed.is_some() == operation.phase.is_final(),
            "completed exactly when final",
        ),
        (
            !queued || operation.started.is_none(),
            "accepted has not started",
        ),
        (
            !called || operation.started.is_some(),
            "what was called has started",
        ),
        (
            operation.phase != Phase::Running || operation.task.is_some(),
            "running has a task",
        ),
        (
            operation.task.is_none()
                || !matches!(operation.phase, Phase::Accepted | Phase::Submitting),
            "a task comes from a call",
        ),
        (
            operation.uncertain_since.is_some()
                || !matches!(operation.phase, Phase::Uncertain | Phase::Unknown),
            "uncertain since when",
        ),
        (
            operation.acknowledged.is_none() || operation.phase == Phase::Unknown,
            "only the unknown is acknowledged",
        ),
        (
            operation.expires.is_some() == (operation.phase.is_final() && !kept),
            "expires exactly when final and not waiting for an operator",
        ),
    ];
    rules
        .into_iter()
        .chain(fault_rules(operation.phase, fault))
        .chain(time_rules(operation))
        .find(|(holds, _)| !holds)
        .map_or(Ok(()), |(_, rule)| Err(rule))
}

/// Each outcome that has a fault of its own says so.
fn fault_rules(phase: Phase, fault: Option<FaultKind>) -> [(bool, &'static str); 3] {
    [
        (
            phase != Phase::NotExecuted || fault == Some(FaultKind::NotExecuted),
            "not-executed says so",
        ),
        (
            phase != Phase::Unknown || fault == Some(FaultKind::OutcomeUnknown),
            "unknown says so",
        ),
        (
            phase != Phase::Cancelled || fault == Some(FaultKind::Cancelled),
            "cancelled says so",
        ),
    ]
}

/// The order of the times of an operation, whatever the wall clock does.
fn time_rules(operation: &Operation) -> [(bool, &'static str); 2] {
    let started = operation.started.unwrap_or(operation.created);
    [
        (
            operation.created <= started,
            "started after it was accepted",
        ),
        (
            operation.completed.is_none_or(|end| started <= end),
            "completed after it started",
        ),
    ]
}
