//! Who is allowed what: grants, whom they are for, and the scope that narrows them for a token.

use crate::model::ActionSet;
use crate::model::GroupName;
use crate::model::Pattern;
use crate::model::PrincipalName;

/// Whom a grant is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grantee {
    /// One caller.
    User(PrincipalName),
    /// Every member of a group.
    Group(GroupName),
}

/// Allows actions on backups. What no grant allows is denied.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Whom it is for.
    pub to: Vec<Grantee>,
    /// What it allows.
    pub actions: ActionSet,
    /// On which VMs.
    pub vms: Vec<Pattern>,
    /// On which backups of these, by id.
    pub backups: Vec<Pattern>,
    /// The line of the configuration file it begins on, from 1; 0 when it is from no file.
    pub line: usize,
}

/// The part of its owner's rights that an API token has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Which actions.
    pub actions: ActionSet,
    /// On which VMs.
    pub vms: Vec<Pattern>,
    /// On which backups of these, by id.
    pub backups: Vec<Pattern>,
}

impl Scope {
    /// Whether it excludes nothing.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        let any = |all: &[Pattern]| all.iter().any(|pattern| pattern.as_str() == "*");
        self.actions == ActionSet::ALL && any(&self.vms) && any(&self.backups)
    }
}
