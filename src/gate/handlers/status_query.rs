//! Which operations a request for Statuses means.

use crate::gate::links;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_target::query_parameter;
use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::Selector;
use crate::public_text;

/// The query of a request for Statuses.
pub(super) struct StatusQuery {
    pub(super) seq: Option<OperationSeq>,
    pub(super) verb: Option<VerbParameter>,
    pub(super) vm: Option<VmId>,
    pub(super) backup: Option<BackupId>,
    /// Whether there is a parameter that only lists have.
    asks_for_list: bool,
}

/// Parameters by which `b` is a filter of a list, and not the form of the source that names one Status.
const ONLY_OF_LISTS: [&str; 8] = [
    "state",
    "principal",
    "since",
    "before",
    "sort",
    "limit",
    "cursor",
    "count",
];

/// The value of `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VerbParameter {
    Known(Verb),
    /// A word that is no operation. It matches nothing where `seq` names the operation, and is refused elsewhere.
    Unknown,
}

impl StatusQuery {
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        let invalid =
            |field, error: &_| Refusal::invalid_text(Code::InvalidParameter, field, error);
        let vm = query_parameter(query, "vm")?.map(|id| VmId::new(&id));
        // Links of the source say `backup` in one form and `b` in another.
        let (name, backup) = match query_parameter(query, "backup")? {
            Some(text) => ("backup", Some(text)),
            None => ("b", query_parameter(query, "b")?),
        };
        let backup = backup.map(|id| BackupId::new(&id)).transpose();
        Ok(Self {
            seq: operation_number(query, "seq")?,
            verb: query_parameter(query, "op")?.map(|word| parse_verb(&word)),
            vm: vm.transpose().map_err(|error| invalid("vm", &error))?,
            backup: backup.map_err(|error| invalid(name, &error))?,
            asks_for_list: query.split('&').any(|pair| {
                let name = pair.split_once('=').map_or(pair, |(name, _)| name);
                ONLY_OF_LISTS.contains(&name)
            }),
        })
    }

    /// Whether one operation is meant, not a list.
    pub(super) const fn names_one(&self) -> bool {
        self.seq.is_some() || (self.backup.is_some() && !self.asks_for_list)
    }

    pub(super) fn matches(&self, operation: &Operation) -> bool {
        let target = operation.target();
        let verb = VerbParameter::Known(operation.verb());
        self.verb.is_none_or(|wanted| wanted == verb)
            && self.vm.as_ref().is_none_or(|vm| *vm == target.vm)
            && self
                .backup
                .as_ref()
                .is_none_or(|backup| *backup == target.backup)
    }

    pub(super) fn selector(&self) -> Result<Selector, Refusal> {
        let verb = match self.verb {
            Some(VerbParameter::Known(verb)) => Some(verb),
            Some(VerbParameter::Unknown) => {
                let text = public_text!("The value is not an operation.");
                return Err(Refusal::says(Code::InvalidParameter, text).on("op"));
            }
            None => None,
        };
        Ok(Selector {
            verb,
            vm: self.vm.clone(),
            backup: self.backup.clone(),
        })
    }
}

/// The verb of an `op` parameter, without regard to capitals: the source spells it in both ways.
fn parse_verb(op: &str) -> VerbParameter {
    Verb::ALL
        .into_iter()
        .find(|verb| links::op(*verb).eq_ignore_ascii_case(op))
        .map_or(VerbParameter::Unknown, VerbParameter::Known)
}

/// A parameter that is the number of an operation.
pub(super) fn operation_number(
    query: &str,
    name: &'static str,
) -> Result<Option<OperationSeq>, Refusal> {
    let Some(text) = query_parameter(query, name)? else {
        return Ok(None);
    };
    // The parser of numbers would take a plus sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| is_number)
        .and_then(OperationSeq::new)
        .map(Some)
        .ok_or_else(|| {
            let text = public_text!("The value is not an operation number.");
            Refusal::says(Code::InvalidParameter, text).on(name)
        })
}
