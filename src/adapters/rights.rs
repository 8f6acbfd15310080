//! `snapgate check --probe`: what the credential of a backend may do, compared with what callers of the gateway may do.

use futures_util::future::BoxFuture;

use crate::adapters::adapter::AdapterError;
use crate::model::ActionSet;
use crate::model::Deadline;
use crate::model::Pattern;
use crate::model::VmId;

/// What an adapter is asked about the rights of its credential.
pub(crate) struct RightsQuestion<'a> {
    /// The pattern by which a VM belongs to the backend; `None` for VMs of others.
    pub(crate) pattern_of: &'a (dyn Fn(&VmId) -> Option<Pattern> + Send + Sync),
    /// Everything that any caller may do to a VM.
    pub(crate) actions_on: &'a (dyn Fn(&VmId) -> ActionSet + Send + Sync),
    /// When the answer must be there.
    pub(crate) by: Deadline,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct RightsReport {
    /// Whether every request that a grant allows has the rights that it needs.
    pub(crate) is_sufficient: bool,
    /// The report for the operator, line by line.
    pub(crate) lines: Vec<String>,
    /// What the credential may do beyond need: lines of the report.
    pub(crate) excess: Vec<String>,
}

/// The answer to come.
pub(crate) type RightsFuture<'a> = BoxFuture<'a, Result<RightsReport, AdapterError>>;
