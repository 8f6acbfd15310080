//! Every way a request can be refused: a stable code, its status, and the sentence a caller reads.
//!
//! Nothing in a refusal names a backend, a path or what a VM manager said.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;

use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::TextError;
use crate::operations::AcceptError;
use crate::operations::StoreFault;

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
        }
    };
}

codes! {
    MalformedRequest BAD_REQUEST "Malformed request" "The framing of the request is not valid.";
    ExpectationFailed EXPECTATION_FAILED "Expectation failed" "The gateway cannot send 100 Continue over this version of HTTP; nothing was changed.";
    MalformedTarget BAD_REQUEST "Malformed request target" "The request target is not a valid path or URL.";
    MalformedHost BAD_REQUEST "Malformed Host" "The request needs exactly one valid Host header.";
    UnreadableBody BAD_REQUEST "Unreadable body" "The body of the request could not be read.";
    MissingSpecificationVersion BAD_REQUEST "Missing specification version" "The request does not say which version of the specification it follows.";
    MalformedSpecificationVersion BAD_REQUEST "Malformed specification version" "The specification version header is not a list of versions such as 0.1.";
    ConflictingSpecificationVersion BAD_REQUEST "Conflicting specification versions" "Two specification version headers disagree.";
    UnsupportedSpecificationVersion BAD_REQUEST "Unsupported specification version" "None of the specification versions of the request is supported.";
    MalformedAccept BAD_REQUEST "Malformed Accept" "The Accept header is not a list of media types.";
    InvalidParameter BAD_REQUEST "Invalid parameter" "A query parameter has a value that cannot be used.";
    MissingParameter BAD_REQUEST "Missing parameter" "A query parameter is missing.";
    MalformedJson BAD_REQUEST "Malformed JSON" "The body is not one well-formed JSON object.";
    MalformedForm BAD_REQUEST "Malformed form" "The body is not a well-formed list of name/value pairs.";
    InvalidMember BAD_REQUEST "Invalid member" "A member of the body has a value that cannot be used.";
    MissingMember BAD_REQUEST "Missing member" "A member of the body is missing.";
    UnknownMember BAD_REQUEST "Unknown member" "The body has a member that cannot be written.";
    NothingToUpdate BAD_REQUEST "Nothing to update" "The body has no member that can be changed.";
    MalformedIdempotencyKey BAD_REQUEST "Malformed idempotency key" "The Idempotency-Key header is not one key of 1 to 255 visible characters.";
    MalformedLastEventId BAD_REQUEST "Malformed Last-Event-ID" "The Last-Event-ID header is not the id of one event of this Status.";
    MalformedPrefer BAD_REQUEST "Malformed Prefer" "The Prefer header has a value of wait, handling or respond-async that means nothing.";
    PartialContent BAD_REQUEST "Partial content" "The body must be the whole representation, without Content-Range; nothing was changed.";
    AmbiguousStatus BAD_REQUEST "Ambiguous Status" "The parameters fit operations on several VMs.";
    InvalidRequest BAD_REQUEST "Invalid request" "The VM manager cannot make sense of what was asked for.";
    Unauthenticated UNAUTHORIZED "Authentication required" "The credentials are missing or not valid.";
    NotPermitted FORBIDDEN "Not permitted" "The caller may not do that.";
    NoSuchRoute NOT_FOUND "No such resource" "There is nothing at this path.";
    NoSuchVm NOT_FOUND "No such VM" "There is no such VM.";
    NoSuchBackup NOT_FOUND "No such backup" "The VM has no such backup.";
    NoSuchStatus NOT_FOUND "No such Status" "There is no such Status, or it is no longer kept.";
    MethodNotAllowed METHOD_NOT_ALLOWED "Method not allowed" "The resource does not support this method.";
    NotAcceptable NOT_ACCEPTABLE "Not acceptable" "None of the media types in Accept can be sent.";
    BodyTooSlow REQUEST_TIMEOUT "Body too slow" "The body took longer than allowed.";
    NameTaken CONFLICT "Name taken" "Another backup of the VM has this name.";
    BackupProtected CONFLICT "Backup protected" "The backup is protected against deletion.";
    NotReady CONFLICT "Backup not ready" "The backup is not whole and cannot be used for this.";
    Busy CONFLICT "Busy" "The VM or the backup is in use by another operation.";
    Conflict CONFLICT "Conflict" "The present state of the VM does not allow this.";
    NotCancellable CONFLICT "Not cancellable" "The operation is over, or its VM manager cannot stop it any more.";
    Cancelled CONFLICT "Cancelled" "The operation was cancelled.";
    LengthRequired LENGTH_REQUIRED "Length required" "The request needs a body with a Content-Length.";
    PreconditionFailed PRECONDITION_FAILED "Precondition failed" "The resource is no longer as the condition of the request requires; nothing was changed.";
    BodyTooLarge PAYLOAD_TOO_LARGE "Body too large" "The body is larger than allowed.";
    TargetTooLong URI_TOO_LONG "Request target too long" "The request target is longer than allowed.";
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "Unsupported media type" "The body is of a media type that is not taken here.";
    TooManyAttempts TOO_MANY_REQUESTS "Too many attempts" "Too many wrong passwords came from this address; none is checked for a while.";
    RateLimited TOO_MANY_REQUESTS "Too many requests" "The caller sends requests faster than allowed.";
    TooManyAtOnce TOO_MANY_REQUESTS "Too many requests at once" "Too many requests of the caller are at work.";
    IdempotencyKeyReused UNPROCESSABLE_ENTITY "Idempotency key reused" "The idempotency key was used for another request with this method and target.";
    HeadersTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE "Header fields too large" "The request has more or longer header fields than allowed.";
    InternalError INTERNAL_SERVER_ERROR "Internal error" "The gateway failed; nothing was accepted.";
    DamagedBackup INTERNAL_SERVER_ERROR "Damaged backup" "What is stored is damaged or cannot be read.";
    OutcomeUnknown INTERNAL_SERVER_ERROR "Outcome unknown" "It cannot be known whether the operation took place.";
    Unsupported NOT_IMPLEMENTED "Not supported" "The VM manager of this VM cannot do that.";
    BackendDenied BAD_GATEWAY "Refused by the VM manager" "The VM manager does not accept the gateway.";
    BackendFailed BAD_GATEWAY "VM manager failed" "The VM manager failed.";
    BadGateway BAD_GATEWAY "Upstream failed" "The server behind the gateway gave no answer that can be passed on.";
    Unavailable SERVICE_UNAVAILABLE "VM manager unavailable" "The VM manager cannot be reached at present.";
    NoUpstream SERVICE_UNAVAILABLE "No upstream" "No server behind the gateway is able to answer at present.";
    KeysUnavailable SERVICE_UNAVAILABLE "Keys unavailable" "The keys of the token's issuer cannot be had at present.";
    StoreUnavailable SERVICE_UNAVAILABLE "Not ready" "The gateway cannot read or keep operations at present.";
    AuditUnavailable SERVICE_UNAVAILABLE "Audit trail unavailable" "The gateway cannot record changes at present, so it makes none; nothing was changed.";
    Stopping SERVICE_UNAVAILABLE "Stopping" "The gateway is stopping and accepts no new operations.";
    QueueFull SERVICE_UNAVAILABLE "Queue full" "Too many operations wait already.";
    NotExecuted SERVICE_UNAVAILABLE "Not executed" "The operation was given up before it began; nothing was changed.";
    BackendTimeout GATEWAY_TIMEOUT "VM manager too slow" "The VM manager took longer than allowed.";
    GatewayTimeout GATEWAY_TIMEOUT "Upstream too slow" "The server behind the gateway took longer than allowed.";
    StorageFull INSUFFICIENT_STORAGE "Storage full" "No room is left for backups.";
}

/// Seconds after which a request that met an overload or an outage may be worth repeating.
const RETRY_AFTER_SECONDS: u16 = 5;

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
        let may_pass = self.status() == StatusCode::SERVICE_UNAVAILABLE || self == Self::Busy;
        may_pass.then_some(RETRY_AFTER_SECONDS)
    }
}

/// One refusal of one request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {text}", .code.as_str())]
pub struct Refusal {
    pub(super) code: Code,
    pub(super) text: Cow<'static, str>,
    pub(super) hint: Option<Cow<'static, str>>,
    pub(super) field: Option<Cow<'static, str>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self {
            code,
            text: Cow::Borrowed(code.sentence()),
            hint: None,
            field: None,
            headers: Vec::new(),
        }
    }
}

impl Refusal {
    /// Which.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    pub(super) fn says(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            text: text.into(),
            ..Self::from(code)
        }
    }

    /// A member or parameter that cannot be used, and why.
    pub(super) fn text(code: Code, field: impl Into<Cow<'static, str>>, error: &TextError) -> Self {
        Self::says(code, format!("The value {error}.")).on(field)
    }

    pub(super) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

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
        // What does not exist reads the same as what may not be seen: never the backend's own words.
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
            StoreFault::Failed => Self::from(Code::StoreUnavailable)
                .hint("The gateway is about to restart; try again then."),
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
                Self::says(Code::QueueFull, "Too many operations wait for this VM.")
            }
            AcceptError::QueueFull => Self::from(Code::QueueFull),
            AcceptError::Backend(fault) => Self::from(fault),
            AcceptError::Stopping => Self::from(Code::Stopping),
            AcceptError::NotRecorded => Self::from(Code::AuditUnavailable),
            AcceptError::Store(fault) => Self::from(fault),
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
            .map(|it| (it.as_str().to_owned(), it.status().as_str().to_owned()))
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
    fn what_is_missing_reads_the_same_whatever_the_backend_said() {
        for kind in [FaultKind::NoSuchVm, FaultKind::NoSuchBackup] {
            let refusal = Refusal::from(Fault::new(kind, "no domain 'x' on host7"));
            assert_eq!(refusal.text, refusal.code.sentence(), "{kind:?}");
        }
    }
}
