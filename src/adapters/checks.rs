//! The checks before a change, run in one of two ways: `begin` stops at the first that fails, `preview` collects them all.
//!
//! Both ways go through the same functions, so that a plan cannot promise what the change then refuses. A function that checks
//! takes [`Checks`] and hands it the result of each check; where a check failed and the others go on, what depends on its
//! result is left out.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::adapters::adapter::Scope;
use crate::model::Fault;

/// A failure that may be the answer of a check.
pub trait CheckError {
    /// What a caller reads, if it is an answer; `None` when the check itself could not be made.
    fn refusal(&self) -> Option<Fault>;
}

impl CheckError for AdapterError {
    fn refusal(&self) -> Option<Fault> {
        // A VM manager that does not answer says nothing about the change: a plan cannot be made then.
        let is_outage =
            self.retry != Retry::Permanent && self.scope == Scope::Backend && !self.is_answer();
        (!is_outage).then(|| self.fault.clone())
    }
}

/// How checks are run.
#[derive(Debug)]
pub struct Checks {
    /// What was refused so far; `None` where the first refusal ends the checks.
    refused: Option<Vec<Fault>>,
}

impl Checks {
    /// Checks before a change: the first that fails ends them.
    #[must_use]
    pub const fn until_first() -> Self {
        Self { refused: None }
    }

    /// Checks for a plan: all of them are made.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            refused: Some(Vec::new()),
        }
    }

    /// Takes the result of one check. `None`: it refused the change, and the checks go on without what it would have returned.
    ///
    /// # Errors
    /// The refusal where the first one ends the checks, and otherwise whatever kept the check from being made.
    pub fn record<T, E: CheckError>(&mut self, outcome: Result<T, E>) -> Result<Option<T>, E> {
        let error = match outcome {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        match (&mut self.refused, error.refusal()) {
            (Some(refused), Some(fault)) => {
                // Two checks may find the same thing, and are listed once.
                if !refused.contains(&fault) {
                    refused.push(fault);
                }
                Ok(None)
            }
            (Some(_) | None, _) => Err(error),
        }
    }

    /// The first refusal so far: what a change would have stopped at.
    #[must_use]
    pub fn first_refusal(&self) -> Option<&Fault> {
        self.refused.as_ref()?.first()
    }

    /// The error of a plan that cannot be made for want of the VM or the backup. A change would have stopped at the first refusal
    /// before it noticed.
    #[must_use]
    pub fn end_with(&self, error: AdapterError) -> AdapterError {
        match self.first_refusal() {
            Some(first) => AdapterError::refused(first.kind, first.text.clone()),
            None => error,
        }
    }

    /// Everything that was refused, in the order of the checks.
    #[must_use]
    pub fn into_refused(self) -> Vec<Fault> {
        self.refused.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FaultKind;
    use crate::public_text;

    fn busy() -> AdapterError {
        AdapterError::refused(FaultKind::Busy, public_text!("The VM is busy."))
    }

    fn conflict() -> AdapterError {
        AdapterError::refused(
            FaultKind::Conflict,
            public_text!("The disk is a mount point."),
        )
    }

    fn outage() -> AdapterError {
        AdapterError::unavailable(public_text!("The VM manager does not answer."))
    }

    fn run(
        mut checks: Checks,
        outcomes: Vec<Result<(), AdapterError>>,
    ) -> Result<Vec<FaultKind>, FaultKind> {
        for outcome in outcomes {
            checks.record(outcome).map_err(|error| error.fault.kind)?;
        }
        let refused = checks.into_refused();
        Ok(refused.iter().map(|fault| fault.kind).collect())
    }

    #[test]
    fn a_change_stops_at_the_first_refusal_and_a_plan_has_them_all_in_order() {
        let some = || vec![Ok(()), Err(conflict()), Err(busy()), Err(conflict())];
        let found = run(Checks::until_first(), some());
        assert_eq!(found, Err(FaultKind::Conflict), "the first");
        let found = run(Checks::all(), some());
        assert_eq!(
            found,
            Ok(vec![FaultKind::Conflict, FaultKind::Busy]),
            "each once"
        );
    }

    #[test]
    fn a_plan_is_not_made_while_the_vm_manager_does_not_answer() {
        let found = run(Checks::all(), vec![Err(busy()), Err(outage())]);
        assert_eq!(
            found,
            Err(FaultKind::Unavailable),
            "an outage is no refusal"
        );
        let found = run(Checks::all(), vec![Err(outage().of_one_vm())]);
        assert_eq!(
            found,
            Ok(vec![FaultKind::Unavailable]),
            "the storage of one VM is"
        );
    }
}
