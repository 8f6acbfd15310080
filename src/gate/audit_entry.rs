//! One line of the audit trail, as the gate fills it in.

use std::net::IpAddr;

use crate::gate::authn::ClaimedName;
use crate::gate::authn::DenialReason;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Note;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::Timestamp;
use crate::model::TokenName;
use crate::model::TraceContext;
use crate::model::Verb;
use crate::model::VmId;
use crate::telemetry::AuditClient;
use crate::telemetry::AuditRecord;

/// What was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditAction {
    /// One of the changes.
    Change(Verb),
    /// To stop an operation.
    Cancel,
    /// To read something.
    Read,
    /// To have a request passed through.
    PassThrough,
}

impl AuditAction {
    /// The word in the audit trail.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Change(verb) => verb.as_str(),
            Self::Cancel => "cancel",
            Self::Read => "read",
            Self::PassThrough => "pass",
        }
    }
}

/// The outcome of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditOutcome {
    /// The change is about to be made.
    Asked,
    /// A new operation was accepted.
    Accepted,
    /// The request was answered with an operation that existed.
    Joined,
    /// It was refused.
    Refused,
}

impl AuditOutcome {
    /// The word in the audit trail.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Accepted => "accepted",
            Self::Joined => "joined",
            Self::Refused => "refused",
        }
    }
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The request.
    pub request: RequestId,
    /// The trace that it is a part of.
    pub trace: TraceContext,
    /// Who asked; `None` while not authenticated, whatever name was claimed.
    pub principal: Option<PrincipalName>,
    /// With which API token, if it was one.
    pub token: Option<TokenName>,
    /// From which address, as in [`crate::gate::HandledRequest::client`].
    pub client: Option<IpAddr>,
    /// What was asked for.
    pub action: AuditAction,
    /// Where the VM was placed.
    pub backend: Option<BackendName>,
    /// The VM.
    pub vm: Option<VmId>,
    /// The backup.
    pub backup: Option<BackupId>,
    /// The note of the caller. Unescaped.
    pub note: Option<Note>,
    /// The outcome.
    pub outcome: AuditOutcome,
    /// The stable code of the refusal.
    pub refusal: Option<&'static str>,
    /// The operation.
    pub operation: Option<OperationSeq>,
    /// Why the credentials were denied.
    pub denial: Option<DenialReason>,
    /// The name that was claimed with denied credentials.
    pub claimed: Option<ClaimedName>,
    /// Whether the line is written already.
    pub written: bool,
}

impl AuditEntry {
    /// The line of the trail.
    #[must_use]
    pub fn record(&self, now: Timestamp) -> AuditRecord<'_> {
        AuditRecord {
            principal: self.principal.as_ref().map(|name| name.as_str()),
            token: self.token.as_ref().map(|name| name.as_str()),
            claimed: self.claimed.as_ref().map(ClaimedName::as_str),
            client: self.client.map(AuditClient::Address),
            backend: self.backend.as_ref().map(|name| name.as_str()),
            vm: self.vm.as_ref().map(|id| id.as_str()),
            backup: self.backup.as_ref().map(|id| id.as_str()),
            note: self.note.as_ref().map(|note| note.as_str()),
            code: self.refusal,
            reason: self.denial.map(DenialReason::as_str),
            operation: self.operation.map(OperationSeq::number),
            request: Some(self.request.as_str()),
            trace_id: Some(self.trace.trace),
            ..AuditRecord::new(now, self.action.as_str(), self.outcome.as_str())
        }
    }
}
