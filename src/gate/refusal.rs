//! Every way a request can be refused: a stable code, its status, and the sentence a caller reads.
//!
//! No refusal names a backend, a path of the gateway or the words of a VM manager.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::TextError;
use crate::model::check_public_template;
use crate::operations::AcceptError;
use crate::operations::CancelError;
use crate::operations::StoreFault;
use crate::public_text;

macro_rules! codes {
    ($($name:ident $status:ident $title:literal $sentence:literal;)*) => {
        /// The stable codes of refusals, as documented in `docs/status-codes.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word on the wire, in metrics and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The status of the response. Deviation D9: more than the source lists.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// A few words that are the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The sentence used where nothing more exact is known.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }

            /// The same as text for callers; checked when it is compiled, like every other.
            const fn public_text(self) -> PublicText {
                match self {
                    $(Self::$name => {
                        const { check_public_template($sentence) };
                        PublicText::from_checked_template(Cow::Borrowed($sentence))
                    })*
                }
            }
        }
    };
}

codes! {
    MalformedRequest BAD_REQUEST "Malformed request" "The request framing is invalid.";
    ExpectationFailed EXPECTATION_FAILED "Expectation failed" "The gateway cannot send 100 Continue over this version of HTTP; nothing was changed.";
    MalformedTarget BAD_REQUEST "Malformed request target" "The request target is not a valid path or URL.";
    MalformedHost BAD_REQUEST "Malformed Host" "Exactly one valid Host header is required.";
    UnreadableBody BAD_REQUEST "Unreadable body" "The request body could not be read.";
    MissingSpecificationVersion BAD_REQUEST "Missing specification version" "The specification version header is missing.";
    MalformedSpecificationVersion BAD_REQUEST "Malformed specification version" "The specification version header is not a list of versions such as 0.1.";
    ConflictingSpecificationVersion BAD_REQUEST "Conflicting specification versions" "The specification version headers disagree.";
    UnsupportedSpecificationVersion BAD_REQUEST "Unsupported specification version" "None of the requested specification versions is supported.";
    MalformedAccept BAD_REQUEST "Malformed Accept" "The Accept header is not a valid list of media types.";
    InvalidParameter BAD_REQUEST "Invalid parameter" "A query parameter has an invalid value.";
    MissingParameter BAD_REQUEST "Missing parameter" "A required query parameter is missing.";
    MalformedJson BAD_REQUEST "Malformed JSON" "The body is not a single well-formed JSON object.";
    MalformedForm BAD_REQUEST "Malformed form" "The body is not well-formed form data.";
    InvalidMember BAD_REQUEST "Invalid member" "A member of the body has an invalid value.";
    MissingMember BAD_REQUEST "Missing member" "A required member of the body is missing.";
    UnknownMember BAD_REQUEST "Unknown member" "The body has a member that is unknown or read-only.";
    NothingToUpdate BAD_REQUEST "Nothing to update" "The body has no member that can be updated.";
    MalformedIdempotencyKey BAD_REQUEST "Malformed idempotency key" "The Idempotency-Key header must be one key of 1 to 255 visible characters.";
    MalformedLastEventId BAD_REQUEST "Malformed Last-Event-ID" "The Last-Event-ID header is not the id of an event of this stream.";
    MalformedPrefer BAD_REQUEST "Malformed Prefer" "The Prefer header has an invalid value for wait, handling or respond-async.";
    PartialContent BAD_REQUEST "Partial content" "The body must be the whole representation, without Content-Range; nothing was changed.";
    AmbiguousStatus BAD_REQUEST "Ambiguous Status" "The parameters match operations on several VMs.";
    InvalidRequest BAD_REQUEST "Invalid request" "The VM manager rejected the request as invalid.";
    Unauthenticated UNAUTHORIZED "Authentication required" "The credentials are missing or invalid.";
    NotPermitted FORBIDDEN "Not permitted" "The caller is not permitted to do this.";
    CrossSite FORBIDDEN "Cross-site request" "The request was made by a web page of another site; nothing was changed.";
    NoSuchRoute NOT_FOUND "No such resource" "There is no resource at this path.";
    NoSuchVm NOT_FOUND "No such VM" "The VM does not exist.";
    NoSuchBackup NOT_FOUND "No such backup" "The VM has no such backup.";
    NoSuchStatus NOT_FOUND "No such Status" "The Status does not exist or has expired.";
    MethodNotAllowed METHOD_NOT_ALLOWED "Method not allowed" "The resource does not support this method.";
    NotAcceptable NOT_ACCEPTABLE "Not acceptable" "None of the media types in Accept is available.";
    BodyTooSlow REQUEST_TIMEOUT "Request body timeout" "The request body took too long to arrive.";
    NameTaken CONFLICT "Name taken" "Another backup of the VM already has this name.";
    BackupProtected CONFLICT "Backup protected" "The backup is protected against deletion.";
    NotReady CONFLICT "Backup not ready" "The backup is incomplete and cannot be used for this.";
    Busy CONFLICT "Busy" "The VM or the backup is in use by another operation.";
    Conflict CONFLICT "Conflict" "The current state of the VM does not allow this.";
    NotCancellable CONFLICT "Not cancellable" "The operation has finished or can no longer be cancelled.";
    Cancelled CONFLICT "Cancelled" "The operation was cancelled.";
    LengthRequired LENGTH_REQUIRED "Length required" "A request body with a Content-Length is required.";
    PreconditionFailed PRECONDITION_FAILED "Precondition failed" "The resource does not meet the condition of the request; nothing was changed.";
    PlanStale PRECONDITION_FAILED "Plan stale" "The plan is stale: the VM or its backups changed after it was made. Nothing was changed; make a new plan.";
    BodyTooLarge PAYLOAD_TOO_LARGE "Body too large" "The request body is too large.";
    TargetTooLong URI_TOO_LONG "Request target too long" "The request target is too long.";
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "Unsupported media type" "Unsupported request media type.";
    TooManyAttempts TOO_MANY_REQUESTS "Too many failed logins" "Too many failed logins from this address; try again later.";
    RateLimited TOO_MANY_REQUESTS "Too many requests" "Too many requests from this caller in a short time.";
    TooManyAtOnce TOO_MANY_REQUESTS "Too many concurrent requests" "Too many concurrent requests from this caller.";
    IdempotencyKeyReused UNPROCESSABLE_ENTITY "Idempotency key reused" "The idempotency key was already used for another request with this method and target.";
    HeadersTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE "Header fields too large" "The request header fields are too many or too long.";
    InternalError INTERNAL_SERVER_ERROR "Internal error" "The gateway failed; nothing was accepted.";
    DamagedBackup INTERNAL_SERVER_ERROR "Damaged backup" "The stored backup is damaged or cannot be read.";
    OutcomeUnknown INTERNAL_SERVER_ERROR "Outcome unknown" "The outcome of the operation could not be determined.";
    Unsupported NOT_IMPLEMENTED "Not supported" "The VM manager of this VM does not support this.";
    BackendDenied BAD_GATEWAY "VM manager denied access" "The VM manager rejected the gateway's credentials.";
    BackendFailed BAD_GATEWAY "VM manager failed" "The VM manager failed.";
    BadGateway BAD_GATEWAY "Upstream failed" "The upstream server gave no valid response.";
    Unavailable SERVICE_UNAVAILABLE "VM manager unavailable" "The VM manager is unavailable.";
    NoUpstream SERVICE_UNAVAILABLE "No upstream" "No upstream server is available.";
    KeysUnavailable SERVICE_UNAVAILABLE "Signing keys unavailable" "The token issuer's signing keys are unavailable.";
    LoginQueueFull SERVICE_UNAVAILABLE "Too many logins" "Too many passwords are waiting to be verified. Nothing was changed; try again later.";
    StoreUnavailable SERVICE_UNAVAILABLE "Operation store unavailable" "The operation store is unavailable.";
    AuditUnavailable SERVICE_UNAVAILABLE "Audit trail unavailable" "The audit trail is unavailable; nothing was changed.";
    Standby SERVICE_UNAVAILABLE "Gateway on standby" "This gateway is on standby; nothing was changed. Try again: another gateway of the cluster is active, or will be.";
    Stopping SERVICE_UNAVAILABLE "Stopping" "The gateway is shutting down and accepts no new operations.";
    QueueFull SERVICE_UNAVAILABLE "Queue full" "The operation queue is full.";
    NotExecuted SERVICE_UNAVAILABLE "Not executed" "The operation was abandoned before it started; nothing was changed.";
    BackendTimeout GATEWAY_TIMEOUT "VM manager timeout" "The VM manager did not respond in time.";
    GatewayTimeout GATEWAY_TIMEOUT "Upstream timeout" "The upstream server did not respond in time.";
    ActiveGatewayLost GATEWAY_TIMEOUT "Active gateway lost" "The active gateway did not answer, and may have accepted the request. Repeat it with the same Idempotency-Key, or look for its Status.";
    StorageFull INSUFFICIENT_STORAGE "Storage full" "There is no storage space left for backups.";
}

/// Seconds after which a request that met an overload or an outage may be worth repeating.
const RETRY_AFTER_SECONDS: u16 = 5;
/// Seconds after which the queue of password checks has room again: it is no longer than `limits::PASSWORD_WAIT`.
const RETRY_LOGIN_AFTER_SECONDS: u16 = 1;

/// Seconds after which a load balancer has turned to the active gateway.
const RETRY_ELSEWHERE_AFTER_SECONDS: u16 = 1;

impl Code {
    /// The code that describes a fault, in a refusal and in the `status` of a Status alike.
    #[must_use]
    pub const fn of_fault(kind: FaultKind) -> Self {
        match kind {
            FaultKind::NoSuchVm => Self::NoSuchVm,
            FaultKind::NoSuchBackup => Self::NoSuchBackup,
            FaultKind::NameTaken => Self::NameTaken,
            FaultKind::Protected => Self::BackupProtected,
            FaultKind::NotReady => Self::NotReady,
            FaultKind::PreconditionFailed => Self::PreconditionFailed,
            FaultKind::Busy => Self::Busy,
            FaultKind::Conflict => Self::Conflict,
            FaultKind::Invalid => Self::InvalidRequest,
            FaultKind::Unsupported => Self::Unsupported,
            FaultKind::Damaged => Self::DamagedBackup,
            FaultKind::StorageFull => Self::StorageFull,
            FaultKind::BackendDenied => Self::BackendDenied,
            FaultKind::Unavailable => Self::Unavailable,
            FaultKind::TimedOut => Self::BackendTimeout,
            FaultKind::BackendFailed => Self::BackendFailed,
            FaultKind::Cancelled => Self::Cancelled,
            FaultKind::NotExecuted => Self::NotExecuted,
            FaultKind::OutcomeUnknown => Self::OutcomeUnknown,
        }
    }

    /// How long to wait before trying again, where that may help.
    #[must_use]
    pub fn retry_after(self) -> Option<u16> {
        if self == Self::LoginQueueFull {
            return Some(RETRY_LOGIN_AFTER_SECONDS);
        }
        if self == Self::Standby {
            return Some(RETRY_ELSEWHERE_AFTER_SECONDS);
        }
        let may_pass = self.status() == StatusCode::SERVICE_UNAVAILABLE || self == Self::Busy;
        may_pass.then_some(RETRY_AFTER_SECONDS)
    }
}

/// One refusal of one request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {text}", .code.as_str())]
pub struct Refusal {
    pub(super) code: Code,
    pub(super) text: PublicText,
    pub(super) hint: Option<PublicText>,
    pub(super) field: Option<Cow<'static, str>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self {
            code,
            text: code.public_text(),
            hint: None,
            field: None,
            headers: Vec::new(),
        }
    }
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// A refusal with a more exact text than the sentence of its code.
    pub(super) fn says(code: Code, text: PublicText) -> Self {
        Self {
            text,
            ..Self::from(code)
        }
    }

    /// A member or parameter whose value is not valid text of its kind.
    pub(super) fn invalid_text(
        code: Code,
        field: impl Into<Cow<'static, str>>,
        error: &TextError,
    ) -> Self {
        Self::says(code, public_text!("The value {error}.")).on(field)
    }

    pub(super) fn hint(mut self, hint: PublicText) -> Self {
        self.hint = Some(hint);
        self
    }

    /// The same naming the member, parameter or header at fault.
    pub(super) fn on(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same with the time after which it may be worth repeating, in whole seconds and at least one.
    pub(super) fn retry_after(self, after: Duration) -> Self {
        let more = u64::from(after.subsec_nanos() > 0);
        let seconds = after.as_secs().saturating_add(more).max(1);
        self.with(http::header::RETRY_AFTER, &seconds.to_string())
    }

    /// The same with one more header that belongs to its status.
    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value).ok();
        self.headers.extend(value.map(|value| (name, value)));
        self
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let code = Code::of_fault(fault.kind);
        // A resource that does not exist must read the same as one that the caller may not see, so the text of the
        // fault, which may be more exact, is dropped.
        if code.status() == StatusCode::NOT_FOUND || fault.text.as_str().is_empty() {
            Self::from(code)
        } else {
            Self::says(code, fault.text)
        }
    }
}

impl From<StoreFault> for Refusal {
    fn from(fault: StoreFault) -> Self {
        match fault {
            StoreFault::Unavailable => Self::from(Code::StoreUnavailable),
            StoreFault::Failed => Self::from(Code::StoreUnavailable).hint(public_text!(
                "The gateway is about to restart. Try again afterwards."
            )),
        }
    }
}

impl From<AcceptError> for Refusal {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::NotPermitted => Self::from(Code::InternalError),
            AcceptError::NoSuchBackend => Self::from(Code::NoSuchVm),
            AcceptError::KeyReused(_) => Self::from(Code::IdempotencyKeyReused),
            AcceptError::Busy(_) => Self::from(Code::Busy),
            AcceptError::PreconditionFailed => Self::from(Code::PreconditionFailed),
            AcceptError::VmQueueFull => {
                let text = public_text!("The operation queue of this VM is full.");
                Self::says(Code::QueueFull, text)
            }
            AcceptError::QueueFull => Self::from(Code::QueueFull),
            AcceptError::Backend(fault) => Self::from(fault),
            AcceptError::Stopping => Self::from(Code::Stopping),
            AcceptError::NotRecorded => Self::from(Code::AuditUnavailable),
            AcceptError::Store(fault) => Self::from(fault),
        }
    }
}

impl From<CancelError> for Refusal {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::NoSuchOperation => Self::from(Code::NoSuchStatus),
            CancelError::NotCancellable => Self::from(Code::NotCancellable),
            CancelError::Changed => Self::from(Code::PreconditionFailed),
            CancelError::Store(fault) => Self::from(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_documentation_lists_exactly_these_codes() {
        let text = include_str!("../../docs/status-codes.md");
        let listed: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| {
                let mut cells = line.split('|').map(str::trim);
                let code = cells.next()?.trim_end_matches('`');
                Some((code.to_owned(), cells.next()?.to_owned()))
            })
            .collect();
        let known: BTreeMap<String, String> = Code::ALL
            .iter()
            .map(|code| (code.as_str().to_owned(), code.status().as_str().to_owned()))
            .collect();
        assert_eq!(
            listed, known,
            "left: docs/status-codes.md, right: the codes"
        );
    }

    #[test]
    fn every_fault_is_an_error_status() {
        for kind in FaultKind::ALL {
            let status = Code::of_fault(kind).status();
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{kind:?} is {status}"
            );
        }
    }

    #[test]
    fn a_missing_resource_reads_the_same_whatever_the_fault_said() {
        for kind in [FaultKind::NoSuchVm, FaultKind::NoSuchBackup] {
            let refusal = Refusal::from(Fault::new(
                kind,
                public_text!("The domain x is not on this host."),
            ));
            assert_eq!(refusal.text, refusal.code.sentence(), "{kind:?}");
        }
    }
}
