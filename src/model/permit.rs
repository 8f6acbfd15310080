//! The caller, the actions permitted to it, and the proof of that decision.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::model::BackendName;
use crate::model::GroupName;
use crate::model::Intent;
use crate::model::PrincipalName;
use crate::model::Target;
use crate::model::Verb;

/// A caller whose credentials were verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name.
    pub name: PrincipalName,
    /// The groups, sorted and without duplicates.
    pub groups: Vec<GroupName>,
}

/// What a grant can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// See VMs and backups.
    Read,
    /// Make backups.
    Create,
    /// Change name, description and tags.
    Update,
    /// Set and clear `protected`.
    Protect,
    /// Remove backups.
    Delete,
    /// Restore VMs from backups.
    Restore,
    /// See the Statuses of other callers.
    Observe,
}

impl Action {
    /// Every action, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Create,
        Self::Update,
        Self::Protect,
        Self::Delete,
        Self::Restore,
        Self::Observe,
    ];

    /// The word used in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Update => "update",
            Self::Protect => "protect",
            Self::Delete => "delete",
            Self::Restore => "restore",
            Self::Observe => "observe",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Create => 2,
            Self::Update => 4,
            Self::Protect => 8,
            Self::Delete => 16,
            Self::Restore => 32,
            Self::Observe => 64,
        }
    }
}

/// A set of actions.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ActionSet(u8);

impl ActionSet {
    /// No action.
    pub const NONE: Self = Self(0);
    /// Every action.
    pub const ALL: Self = Self(127);

    /// This set and one more.
    #[must_use]
    pub const fn with(self, action: Action) -> Self {
        Self(self.0 | action.bit())
    }

    /// Everything in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the action is in the set.
    #[must_use]
    pub const fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }

    /// Whether every action of `other` is in this set.
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The actions, in the order of the documentation.
    pub fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL
            .into_iter()
            .filter(move |action| self.contains(*action))
    }
}

impl FromIterator<Action> for ActionSet {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        actions.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for ActionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The proof that a principal may do something to one backup on one backend.
///
/// Only `gate/authz.rs` may call [`Permit::issue`]; a test holds that.
#[derive(Clone, Debug)]
pub struct Permit {
    principal: Principal,
    actions: ActionSet,
    backend: BackendName,
    target: Target,
}

impl Permit {
    /// Makes the proof; for `gate/authz.rs` alone.
    #[must_use]
    pub const fn issue(
        principal: Principal,
        actions: ActionSet,
        backend: BackendName,
        target: Target,
    ) -> Self {
        Self {
            principal,
            actions,
            backend,
            target,
        }
    }

    /// Who was permitted.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Where the VM was placed.
    #[must_use]
    pub const fn backend(&self) -> &BackendName {
        &self.backend
    }

    /// Whether this permit covers the intent.
    #[must_use]
    pub fn covers(&self, intent: &Intent) -> bool {
        let needed = match intent.verb() {
            Verb::Create => Action::Create,
            Verb::Update => {
                // An update of `protected` alone needs `protect` alone; the gate has checked which one.
                return self.target == intent.target
                    && (self.actions.contains(Action::Update)
                        || self.actions.contains(Action::Protect));
            }
            Verb::Delete => Action::Delete,
            Verb::Restore => Action::Restore,
        };
        self.target == intent.target && self.actions.contains(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_has_every_action_and_common_has_those_of_both_sets() {
        assert_eq!(
            Action::ALL.into_iter().collect::<ActionSet>(),
            ActionSet::ALL,
            "all"
        );
        let one = ActionSet::NONE.with(Action::Read).with(Action::Delete);
        let two = ActionSet::NONE.with(Action::Delete).with(Action::Restore);
        let both = ActionSet::NONE.with(Action::Delete);
        assert_eq!(one.common(two), both, "common");
        assert_eq!(one.common(ActionSet::ALL), one, "of all");
    }
}
