//! The faults that the machine gives to operations: the messages of their Statuses.

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Verb;
use crate::public_text;

pub(super) fn offline_too_long() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        public_text!(
            "The gateway was offline too long after accepting this operation; nothing was changed. Resubmit it if it is still needed."
        ),
    )
}

pub(super) fn vm_changed() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        public_text!(
            "The disks of the VM changed after the gateway stopped, so the operation was not resumed; nothing was changed. Resubmit it if it is still needed."
        ),
    )
}

pub(super) fn never_started() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        public_text!(
            "The VM manager never started this operation; nothing was changed. Resubmit it if it is still needed."
        ),
    )
}

pub(super) fn cancelled_before_start() -> Fault {
    Fault::new(
        FaultKind::Cancelled,
        public_text!("The operation was cancelled before it started; nothing was changed."),
    )
}

pub(super) fn discarded_repeatedly() -> Fault {
    Fault::new(
        FaultKind::NotExecuted,
        public_text!(
            "The VM manager repeatedly discarded the request; nothing was changed. Check the VM manager before resubmitting the operation."
        ),
    )
}

pub(super) fn cancelled() -> Fault {
    Fault::new(
        FaultKind::Cancelled,
        public_text!("The operation was cancelled on request."),
    )
}

/// The outcome is unknown for good; says what to check for each verb.
pub(super) fn outcome_unknown(verb: Verb) -> Fault {
    let text = match verb {
        Verb::Create => public_text!(
            "The outcome of the operation could not be determined. Check whether the backup exists and is complete before creating another one."
        ),
        Verb::Update => public_text!(
            "The outcome of the operation could not be determined. Read the backup and compare it before resubmitting the operation."
        ),
        Verb::Delete => public_text!(
            "The outcome of the operation could not be determined. Check whether the backup still exists before resubmitting the operation."
        ),
        Verb::Restore => public_text!(
            "The outcome of the operation could not be determined. Check the state of the VM in its VM manager before starting or restoring it."
        ),
    };
    Fault::new(FaultKind::OutcomeUnknown, text)
}
