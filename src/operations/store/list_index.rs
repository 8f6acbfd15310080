//! Which index serves a list, for every engine: the same for all, so that pages end at the same places.

use crate::model::OperationState;
use crate::model::Phase;
use crate::operations::list_query::ListQuery;

/// An index, and the value that is looked for in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ListIndex {
    Backup(String),
    Unfinished,
    Vm(String),
    Principal(String),
    Outcome(&'static str),
    Verb(&'static str),
    Created,
}

impl ListIndex {
    /// The one that leaves the least to compare. There are no statistics to choose by, so it is always the same one: few
    /// operations are on one backup, or unfinished at once; more are on a VM or of a principal; most have ended well.
    pub(super) fn of_query(query: &ListQuery) -> Self {
        let is_unfinished =
            query.unfinished == Some(true) || query.state.is_some_and(|state| !state.is_final());
        if let Some(backup) = &query.selector.backup {
            Self::Backup(backup.as_str().to_owned())
        } else if is_unfinished {
            Self::Unfinished
        } else if let Some(vm) = &query.selector.vm {
            Self::Vm(vm.as_str().to_owned())
        } else if let Some(principal) = &query.principal {
            Self::Principal(principal.as_str().to_owned())
        } else if let Some(outcome) = query.state.and_then(outcome_of) {
            Self::Outcome(outcome)
        } else if let Some(verb) = query.selector.verb {
            Self::Verb(verb.as_str())
        } else {
            Self::Created
        }
    }
}

/// The word of the index of outcomes for a state; `None` for states that are not final.
const fn outcome_of(state: OperationState) -> Option<&'static str> {
    match state {
        OperationState::Queued | OperationState::Running => None,
        OperationState::Success => Some(Phase::Succeeded.as_str()),
        // Not executed counts as failed.
        OperationState::Failed => Some(Phase::Failed.as_str()),
        OperationState::Cancelled => Some(Phase::Cancelled.as_str()),
        OperationState::Unknown => Some(Phase::Unknown.as_str()),
    }
}
