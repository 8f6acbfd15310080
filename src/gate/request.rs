//! What the listener hands in and gets back.

use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;

use crate::gate::authn::ClaimedName;
use crate::gate::authn::DenialReason;
use crate::gate::passthrough::PassThrough;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::CertificateName;
use crate::model::Note;
use crate::model::OperationSeq;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::Timestamp;
use crate::model::TokenName;
use crate::model::Verb;
use crate::model::VmId;
use crate::telemetry::AuditClient;
use crate::telemetry::AuditRecord;

/// The head of a request, as received.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method, any token.
    pub method: &'a http::Method,
    /// The request target exactly as it was sent (origin form, absolute form or `*`), not normalised.
    pub target: &'a [u8],
    /// The version of HTTP.
    pub version: http::Version,
    /// The header fields; values may hold any byte but CR, LF and NUL.
    pub headers: &'a http::HeaderMap,
    /// The address the connection comes from.
    pub peer: Option<IpAddr>,
    /// What the client's certificate says, which the handshake found to be good; empty when it showed none.
    pub certificate: &'a [CertificateName],
}

/// Why a body could not be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than the limit.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It took longer than allowed.
    #[error("the body took longer than allowed")]
    TooSlow,
    /// The connection ended, or the framing was wrong.
    #[error("the body could not be read")]
    Broken,
}

/// The body of a request, read at most once and only when it is wanted.
#[async_trait]
pub trait Body: Send {
    /// Reads the whole body of at most `limit` bytes. Answers `Expect: 100-continue` first.
    ///
    /// # Errors
    /// [`BodyError`]; the connection must then be closed after the reply.
    async fn read(&mut self, limit: usize) -> Result<Bytes, BodyError>;

    /// Whether the request has a body at all, by its framing.
    fn is_present(&self) -> bool;
}

/// A body that comes to be while it is sent.
#[async_trait]
pub trait BodyStream: fmt::Debug + Send + Sync {
    /// The next piece, never empty; `None` at the end and ever after. Each is to be sent at once.
    async fn next(&mut self) -> Option<Bytes>;
}

/// The answer to a request, with what the access log wants to know.
#[derive(Debug)]
pub struct HandledRequest {
    /// The answer. Has `Content-Length` unless its status forbids one or the body comes in pieces; for HEAD the body
    /// is empty and the `Content-Length` that of the GET.
    pub response: http::Response<Bytes>,
    /// The body, where it comes in pieces; that of `response` is empty then.
    pub pieces: Option<Box<dyn BodyStream>>,
    /// The id of the request, which is also in the response.
    pub request: RequestId,
    /// Whose request it was: the address of the connection, or what a trusted proxy said.
    pub client: Option<IpAddr>,
    /// The route as a bounded word, for instance `backup`.
    pub route: &'static str,
    /// The method as a bounded word; `OTHER` for invented ones.
    pub method: &'static str,
    /// Who called, once that was known.
    pub principal: Option<PrincipalName>,
    /// The stable code of the refusal, if it was refused.
    pub refusal: Option<&'static str>,
    /// The operation accepted or joined.
    pub operation: Option<OperationSeq>,
    /// Whether the connection must be closed after the answer: the body was not read to its end.
    pub close: bool,
    /// What the audit trail is to say: present for every request that would have changed something, and for every one whose
    /// caller is not known.
    pub audit: Option<Box<AuditEntry>>,
}

/// What becomes of a request.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request is answered: a box would be one more allocation for each"
)]
pub enum GateDecision {
    /// It is answered.
    Answer(HandledRequest),
    /// It is passed on to a VM manager's own interface. Its body has not been touched.
    PassThrough(Box<PassThrough>),
}

/// What a request wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditAction {
    /// One of the changes.
    Change(Verb),
    /// To stop an operation.
    Cancel,
    /// To read something.
    Read,
    /// To have a request passed on.
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

/// What became of a change that was asked for.
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
    /// Who asked; `None` while not authenticated, whatever name was claimed.
    pub principal: Option<PrincipalName>,
    /// With which API token, if it was one.
    pub token: Option<TokenName>,
    /// From which address, as in [`HandledRequest::client`].
    pub client: Option<IpAddr>,
    /// What was asked for.
    pub action: AuditAction,
    /// Where the VM was placed.
    pub backend: Option<BackendName>,
    /// The VM.
    pub vm: Option<VmId>,
    /// The backup.
    pub backup: Option<BackupId>,
    /// What the caller wants to read in the log. Unescaped.
    pub note: Option<Note>,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// The stable code of the refusal.
    pub refusal: Option<&'static str>,
    /// The operation.
    pub operation: Option<OperationSeq>,
    /// Why the caller is not known.
    pub denial: Option<DenialReason>,
    /// The name that was tried by a caller who is not known.
    pub claimed: Option<ClaimedName>,
    /// Whether the trail says this already.
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
            ..AuditRecord::new(now, self.action.as_str(), self.outcome.as_str())
        }
    }
}
