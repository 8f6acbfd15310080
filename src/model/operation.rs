//! The durable record of one accepted change.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::model::BackendName;
use crate::model::Fault;
use crate::model::IdempotencyKey;
use crate::model::Intent;
use crate::model::Note;
use crate::model::Precondition;
use crate::model::PrincipalName;
use crate::model::PublicText;
use crate::model::RequestId;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::limits;

/// The sequence number of an operation: unique for ever within one store, rising with time. Decimal on the wire; not a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationSeq(u64);

impl OperationSeq {
    /// The highest number. No operation gets it.
    pub const HIGHEST: Self = Self(i64::MAX.cast_unsigned());

    /// From a number that fits SQLite's signed 64 bits.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number == 0 || number > i64::MAX.cast_unsigned() {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number, 1..=2^63-1.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for OperationSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of one record, from 1: the compare-and-set token of the store, and part of the `ETag` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a new record.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The phase of an operation. See docs/architecture.md, "The life of an operation".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Durable, and provably never sent to the backend.
    Accepted,
    /// Written before the backend is called: from here on the call may have been made.
    Submitting,
    /// The native task is known and followed.
    Running,
    /// Whether it ran is not known yet; evidence is searched for.
    Uncertain,
    /// It was done.
    Succeeded,
    /// It failed, and the failure is known.
    Failed,
    /// It was cancelled on request.
    Cancelled,
    /// It was never started; nothing was changed.
    NotExecuted,
    /// Whether it ran could not be determined. Kept until an operator acknowledges it.
    Unknown,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Submitting,
        Self::Running,
        Self::Uncertain,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::NotExecuted,
        Self::Unknown,
    ];

    /// Whether the operation has ended.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Accepted | Self::Submitting | Self::Running | Self::Uncertain => false,
            Self::Succeeded
            | Self::Failed
            | Self::Cancelled
            | Self::NotExecuted
            | Self::Unknown => true,
        }
    }

    /// The word used in metrics, logs and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Submitting => "submitting",
            Self::Running => "running",
            Self::Uncertain => "uncertain",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::NotExecuted => "not-executed",
            Self::Unknown => "unknown",
        }
    }
}

/// Percent done, 0..=100. 100 exactly when the operation is final, whatever the outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Progress(u8);

impl Progress {
    /// Nothing is known to be done.
    pub const NONE: Self = Self(0);
    /// Final.
    pub const DONE: Self = Self(100);

    /// What an unfinished operation may show: never 100.
    #[must_use]
    pub const fn unfinished(percent: u8) -> Self {
        if percent > 99 {
            Self(99)
        } else {
            Self(percent)
        }
    }

    /// Percent done so far out of a total; 0 when the total is 0, never 100.
    #[must_use]
    pub fn of(done: u64, total: u64) -> Self {
        let percent = u128::from(done)
            .saturating_mul(100)
            .checked_div(u128::from(total))
            .unwrap_or(0);
        Self::unfinished(u8::try_from(percent).unwrap_or(99))
    }

    /// The number, 0..=100.
    #[must_use]
    pub const fn percent(self) -> u8 {
        self.0
    }
}

/// The token by which a backend may recognise the operation: the same for every attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey(pub OperationSeq);

/// `snapgate-<seq>`: letters, digits and `-` only, so it can be a native job id, name or marker.
impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapgate-{}", self.0)
    }
}

macro_rules! adapter_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes what the adapter wants to see again, at most
            /// [`crate::model::limits::EVIDENCE_BYTES_MAX`] bytes; `None` when it is longer.
            #[must_use]
            pub fn new(text: String) -> Option<Self> {
                (text.len() <= limits::EVIDENCE_BYTES_MAX).then_some(Self(text))
            }

            /// What the adapter gave.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

adapter_text!(
    /// Identifies the task of the VM manager to its adapter, after a restart too. Opaque to everything else.
    TaskRef
);
adapter_text!(
    /// What an adapter recorded before the call, to find out afterwards what changed. Opaque to everything else.
    Evidence
);

/// A hash over method, path and body of a request, which distinguishes a repeated request from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub [u8; 32]);

/// The caller's key, and what it was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key as sent.
    pub key: IdempotencyKey,
    /// The request it was sent with.
    pub fingerprint: Fingerprint,
}

/// Names of members in the body of a request that were ignored, as the client chose them. Their number and length are bounded
/// ([`limits::IGNORED_MAX`], [`limits::IGNORED_NAME_CHARS_MAX`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IgnoredMembers(Vec<String>);

impl IgnoredMembers {
    /// Adds a name, while there is room.
    pub fn push(&mut self, name: &str) {
        if self.0.len() < limits::IGNORED_MAX {
            let kept = name.chars().take(limits::IGNORED_NAME_CHARS_MAX);
            self.0.push(kept.collect());
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in the order in which they were sent.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The durable record of one accepted change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its sequence number.
    pub seq: OperationSeq,
    /// Counts its changes.
    pub revision: Revision,
    /// Who requested it.
    pub principal: PrincipalName,
    /// The request that was accepted.
    pub request: RequestId,
    /// The backend that it runs on.
    pub backend: BackendName,
    /// What is to be done.
    pub intent: Intent,
    /// What must hold right before the VM manager is called. Older records have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preconditions: Vec<Precondition>,
    /// A note of the caller for the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// Members of the request that were ignored.
    #[serde(default, skip_serializing_if = "IgnoredMembers::is_empty")]
    pub ignored: IgnoredMembers,
    /// The caller's own key, if one was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Idempotency>,
    /// Its phase.
    pub phase: Phase,
    /// The progress that the VM manager reported. Never falls.
    pub progress: Progress,
    /// What went wrong: present in every final phase but [`Phase::Succeeded`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What the VM manager added to its success, such as warnings. Only in [`Phase::Succeeded`]. Older records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<PublicText>,
    /// What the adapter recorded before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Evidence>,
    /// How often the VM manager was called to begin it; bounded, so that one operation cannot be repeated for ever.
    #[serde(default)]
    pub calls: u32,
    /// The task of the VM manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    /// When it was accepted.
    pub created: Timestamp,
    /// When it left its queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it became final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    /// Since when its outcome is uncertain; evidence is searched for from here on, for a bounded time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertain_since: Option<Timestamp>,
    /// Whether a gateway found it after an absence longer than `operations.resume_ttl`. It is not called again then, unless
    /// evidence shows that it is half done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume_expired: bool,
    /// When its cancellation was requested. Kept through restarts, so that the VM manager is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_asked: Option<Timestamp>,
    /// When an operator acknowledged an unknown outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Timestamp>,
    /// When the record may be removed; `None` while unfinished, or unknown and not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

impl Operation {
    /// The first record of an operation: accepted, and not begun.
    ///
    /// What only some requests carry (preconditions, a note, an idempotency key, ignored members) is added by the caller:
    /// `Operation { note, ..Operation::accepted(...) }`.
    #[must_use]
    pub fn accepted(
        seq: OperationSeq,
        principal: PrincipalName,
        request: RequestId,
        backend: BackendName,
        intent: Intent,
        created: Timestamp,
    ) -> Self {
        Self {
            seq,
            revision: Revision::FIRST,
            principal,
            request,
            backend,
            intent,
            preconditions: Vec::new(),
            note: None,
            ignored: IgnoredMembers::default(),
            idempotency: None,
            phase: Phase::Accepted,
            progress: Progress::NONE,
            fault: None,
            notice: None,
            baseline: None,
            calls: 0,
            task: None,
            created,
            started: None,
            completed: None,
            uncertain_since: None,
            resume_expired: false,
            cancel_asked: None,
            acknowledged: None,
            expires: None,
        }
    }

    /// The backup acted on.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.intent.target
    }

    /// Which of the four it is.
    #[must_use]
    pub const fn verb(&self) -> Verb {
        self.intent.verb()
    }

    /// The token by which a backend may recognise it.
    #[must_use]
    pub const fn key(&self) -> RequestKey {
        RequestKey(self.seq)
    }
}
