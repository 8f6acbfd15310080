//! Which operations an operator wants to see.

use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::OperationSeq;
use crate::model::OperationState;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::VmId;
use crate::model::limits;

/// Which operations an operator wants to see, by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Showing {
    /// Unknown outcomes that are not acknowledged.
    Unknown,
    /// What is not final.
    Unfinished,
    /// Unfinished, and waiting for a backend that is not configured.
    Held,
    /// Accepted and not begun.
    Queued,
    /// Begun and not ended.
    Running,
    /// Done.
    Succeeded,
    /// Failed, or never begun.
    Failed,
    /// Cancelled on request.
    Cancelled,
    /// Everything.
    #[default]
    All,
}

impl Showing {
    /// Every one, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Unfinished,
        Self::Held,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::All,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unfinished => "unfinished",
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::All => "all",
        }
    }

    /// Parses the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|showing| showing.as_str() == word)
    }

    /// The one state of what is shown; `None` for several.
    #[must_use]
    pub const fn state(self) -> Option<OperationState> {
        match self {
            Self::Unknown => Some(OperationState::Unknown),
            Self::Queued => Some(OperationState::Queued),
            Self::Running => Some(OperationState::Running),
            Self::Succeeded => Some(OperationState::Success),
            Self::Failed => Some(OperationState::Failed),
            Self::Cancelled => Some(OperationState::Cancelled),
            Self::Unfinished | Self::Held | Self::All => None,
        }
    }
}

/// Which operations an operator wants to see. What is absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorQuery {
    /// By state.
    pub showing: Showing,
    /// On this VM.
    pub vm: Option<VmId>,
    /// On this backup.
    pub backup: Option<BackupId>,
    /// On this backend.
    pub backend: Option<BackendName>,
    /// Of this verb.
    pub verb: Option<Verb>,
    /// Of this caller.
    pub principal: Option<PrincipalName>,
    /// Accepted at this time or later.
    pub since: Option<Timestamp>,
    /// Accepted earlier than this.
    pub until: Option<Timestamp>,
    /// Older than this operation.
    pub older_than: Option<OperationSeq>,
    /// At most this many.
    pub limit: usize,
}

impl OperatorQuery {
    /// Everything, one page of it.
    #[must_use]
    pub fn page() -> Self {
        Self {
            limit: usize::from(limits::PAGE),
            ..Self::default()
        }
    }

    /// Sets one parameter by its name.
    ///
    /// # Errors
    /// A sentence that names the parameter and what it expects.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bad = |expected: &str| format!("invalid {name} {value:?} (expected {expected})");
        let time = || {
            let time = Timestamp::parse_rfc3339(value);
            time.ok_or_else(|| bad("a time such as 2026-01-31T12:00:00Z"))
        };
        match name {
            "state" => {
                let words = Showing::ALL.map(Showing::as_str).join(", ");
                let showing = Showing::parse(value);
                self.showing = showing.ok_or_else(|| bad(&words))?;
            }
            "vm" => self.vm = Some(VmId::new(value).map_err(|_error| bad("the id of a VM"))?),
            "backup" => {
                let id = BackupId::new(value);
                self.backup = Some(id.map_err(|_error| bad("the id of a backup"))?);
            }
            "backend" => {
                let backend = BackendName::new(value);
                self.backend = Some(backend.map_err(|_error| bad("the name of a backend"))?);
            }
            "verb" => {
                let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == value);
                let words = Verb::ALL.map(Verb::as_str).join(", ");
                self.verb = Some(verb.ok_or_else(|| bad(&words))?);
            }
            "principal" => {
                let principal = PrincipalName::new(value);
                self.principal = Some(principal.map_err(|_error| bad("the name of a caller"))?);
            }
            "since" => self.since = Some(time()?),
            "until" => self.until = Some(time()?),
            "before" => {
                let seq = parse_seq(value);
                self.older_than = Some(seq.ok_or_else(|| bad("an operation number"))?);
            }
            "limit" => {
                let most = usize::from(limits::PAGE_MAX);
                let limit = value.parse().ok();
                let limit = limit.filter(|limit| (1..=most).contains(limit));
                self.limit = limit.ok_or_else(|| bad(&format!("1 to {most}")))?;
            }
            _ => {
                return Err(format!(
                    "unknown parameter {name:?} (expected state, vm, backup, backend, verb, principal, since, until, before or limit)"
                ));
            }
        }
        Ok(())
    }

    /// The parameters by which [`Self::set`] makes the same query.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let time = |time: Timestamp| time.to_string();
        let all = [
            ("state", Some(self.showing.as_str().to_owned())),
            ("vm", self.vm.as_ref().map(|vm| vm.as_str().to_owned())),
            (
                "backup",
                self.backup.as_ref().map(|id| id.as_str().to_owned()),
            ),
            (
                "backend",
                self.backend.as_ref().map(|name| name.as_str().to_owned()),
            ),
            ("verb", self.verb.map(|verb| verb.as_str().to_owned())),
            (
                "principal",
                self.principal.as_ref().map(|name| name.as_str().to_owned()),
            ),
            ("since", self.since.map(time)),
            ("until", self.until.map(time)),
            ("before", self.older_than.map(|seq| seq.to_string())),
            ("limit", Some(self.limit.to_string())),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// The number of an operation as it is printed.
fn parse_seq(text: &str) -> Option<OperationSeq> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits)?;
    OperationSeq::new(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_make_the_query_that_they_come_from() {
        let pairs = [
            ("state", "failed"),
            ("vm", "web/01"),
            ("backup", "b 1"),
            ("backend", "lab"),
            ("verb", "restore"),
            ("principal", "ann"),
            ("since", "2026-01-31T12:00:00Z"),
            ("until", "2026-02-01T12:00:00Z"),
            ("before", "7"),
            ("limit", "9"),
        ];
        let mut query = OperatorQuery::page();
        for (name, value) in pairs {
            query.set(name, value).unwrap();
        }
        let mut again = OperatorQuery::page();
        for (name, value) in query.parameters() {
            again.set(name, &value).unwrap();
        }
        assert_eq!(again, query, "the same");
        assert_eq!(query.parameters().len(), pairs.len(), "all of them");
    }

    #[test]
    fn invalid_values_are_named() {
        let rows = [
            ("state", "lost"),
            ("vm", ""),
            ("backup", ""),
            ("backend", "a b"),
            ("verb", "clone"),
            ("since", "yesterday"),
            ("until", "7"),
            ("before", "+7"),
            ("before", "0"),
            ("limit", "0"),
            ("limit", "1001"),
            ("seq", "1"),
        ];
        for (name, value) in rows {
            let error = OperatorQuery::page().set(name, value).unwrap_err();
            assert!(error.contains(name), "{name}={value}: {error}");
            assert!(error.contains("expected"), "{name}={value}: {error}");
        }
    }
}
