//! What servers say when something goes wrong, and what of it a caller is told.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::transport::TransportError;
use crate::model::FaultKind;

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// There is no usable answer.
    #[error("transport: {0}")]
    Transport(#[from] TransportError),
    /// It was refused.
    #[error("status {status} {code:?}, request {request:?}, said {said:?}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code of the first message, if there is one.
        code: Option<String>,
        /// The sentence of the first message, where it may be passed on.
        said: Option<String>,
        /// The server's `X-Request-Id`.
        request: Option<String>,
    },
    /// The server wants the request to go elsewhere.
    #[error("redirect, status {0}")]
    Redirect(u16),
    /// The answer makes no sense.
    #[error("answer makes no sense: {0}")]
    Nonsense(String),
    /// So many gateways have passed the request on already.
    #[error("passed on by {0} gateways already")]
    Loop(u8),
}

impl NativeError {
    /// Whether the server says that what was named does not exist: not that it does not know the path at all.
    pub(super) fn is_missing(&self) -> bool {
        self.status() == Some(404) && self.code() != Some("NoSuchRoute")
    }

    /// Whether the VM is what does not exist.
    pub(super) fn is_missing_vm(&self) -> bool {
        self.status() == Some(404) && self.code() == Some("NoSuchVm")
    }

    /// Whether the backup was changed since it was read.
    pub(super) fn is_stale(&self) -> bool {
        self.status() == Some(412)
    }

    /// Whether the server does not offer that at all, or no longer.
    pub(super) fn is_not_offered(&self) -> bool {
        matches!(self.status(), Some(404 | 405 | 409 | 501))
    }

    const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Transport(_) | Self::Redirect(_) | Self::Nonsense(_) | Self::Loop(_) => None,
        }
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => code.as_deref(),
            Self::Transport(_) | Self::Redirect(_) | Self::Nonsense(_) | Self::Loop(_) => None,
        }
    }

    /// Of a request without effect; `missing` is what a 404 means.
    pub(super) fn of_read(self, missing: FaultKind) -> AdapterError {
        let mut error = self.of_write(missing);
        error.effect = Effect::None;
        error
    }

    /// Of a request with an effect; `missing` is what a 404 means.
    pub(super) fn of_write(self, missing: FaultKind) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => of_transport(error),
            Self::Refused {
                status, code, said, ..
            } => {
                let mut error = of_refusal(*status, code.as_deref(), missing);
                // Only a server that speaks this API, which its codes show, writes its sentences for callers.
                if let Some(said) = said.as_ref().filter(|_| code.is_some()) {
                    error.fault.text = with_words(error.fault.text.as_str(), said).into();
                }
                error
            }
            // After a POST, 303 says that it was done: what a redirect means here cannot be known.
            Self::Redirect(_) => lasting(AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The server wants the gateway to go elsewhere, which it never does.",
            )),
            Self::Nonsense(_) => AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The server sent an answer that makes no sense.",
            ),
            Self::Loop(_) => AdapterError::refused(
                FaultKind::BackendFailed,
                "Gateways send this request round in a circle.",
            ),
        };
        error.because(self)
    }
}

fn of_transport(error: &TransportError) -> AdapterError {
    match error {
        TransportError::Unreachable(_) => {
            AdapterError::unavailable("The server cannot be reached.")
        }
        TransportError::Untrusted(_) => AdapterError::refused(
            FaultKind::BackendFailed,
            "The server's certificate is not the one that the gateway is configured to trust.",
        ),
        TransportError::Unsendable(_) => {
            AdapterError::refused(FaultKind::Invalid, "That cannot be asked of this server.")
        }
        TransportError::TooLate => passing(AdapterError::refused(FaultKind::TimedOut, TIMED_OUT)),
        TransportError::TimedOut => AdapterError::uncertain(FaultKind::TimedOut, TIMED_OUT),
        TransportError::Lost(_) => AdapterError::uncertain(
            FaultKind::Unavailable,
            "The connection to the server was lost.",
        ),
        TransportError::TooLarge(_) => lasting(AdapterError::uncertain(
            FaultKind::BackendFailed,
            "The server's answer is larger than the gateway allows.",
        )),
    }
}

const fn passing(mut error: AdapterError) -> AdapterError {
    error.retry = Retry::Temporary;
    error
}

const fn lasting(mut error: AdapterError) -> AdapterError {
    error.retry = Retry::Permanent;
    error
}

const TIMED_OUT: &str = "The server took longer than allowed.";

/// What is known of the codes of refusals. A server that sends one refused before it did anything.
fn of_code(code: &str) -> Option<FaultKind> {
    Some(match code {
        "NoSuchVm" => FaultKind::NoSuchVm,
        "NoSuchBackup" => FaultKind::NoSuchBackup,
        "NameTaken" => FaultKind::NameTaken,
        "BackupProtected" => FaultKind::Protected,
        "NotReady" => FaultKind::NotReady,
        "Busy" => FaultKind::Busy,
        "Conflict" | "PreconditionFailed" => FaultKind::Conflict,
        "InvalidRequest" | "InvalidMember" | "MissingMember" | "BodyTooLarge" | "TargetTooLong" => {
            FaultKind::Invalid
        }
        "Unsupported" => FaultKind::Unsupported,
        "DamagedBackup" => FaultKind::Damaged,
        "StorageFull" => FaultKind::StorageFull,
        "Unauthenticated" | "NotPermitted" | "BackendDenied" => FaultKind::BackendDenied,
        "Unavailable" | "QueueFull" | "Stopping" | "KeysUnavailable" => FaultKind::Unavailable,
        "BackendTimeout" => FaultKind::TimedOut,
        "BackendFailed" => FaultKind::BackendFailed,
        _ => return None,
    })
}

fn of_refusal(status: u16, code: Option<&str>, missing: FaultKind) -> AdapterError {
    if let Some(kind) = code.and_then(of_code) {
        let error = AdapterError::refused(kind, sentence(kind));
        let passes = matches!(
            kind,
            FaultKind::Unavailable | FaultKind::TimedOut | FaultKind::Busy
        );
        return if passes { passing(error) } else { error };
    }
    let refused = |kind| AdapterError::refused(kind, sentence(kind));
    match status {
        // A path that the server does not know at all says nothing about VMs and backups.
        404 if code != Some("NoSuchRoute") => refused(missing),
        401 | 403 => refused(FaultKind::BackendDenied),
        409 | 412 => refused(FaultKind::Conflict),
        408 | 425 | 429 => passing(refused(FaultKind::Unavailable)),
        413 | 414 => refused(FaultKind::Invalid),
        501 => refused(FaultKind::Unsupported),
        // Malformed, or of a version, method or type that the server does not take: not the caller's mistake.
        400..=499 => AdapterError::refused(
            FaultKind::BackendFailed,
            "The server does not understand the gateway's request.",
        ),
        503 => AdapterError::uncertain(FaultKind::Unavailable, sentence(FaultKind::Unavailable)),
        504 => AdapterError::uncertain(FaultKind::TimedOut, TIMED_OUT),
        _ => AdapterError::uncertain(FaultKind::BackendFailed, sentence(FaultKind::BackendFailed)),
    }
}

/// Most characters of a server's sentence that are passed on.
const SAID_CHARS_MAX: usize = 400;

/// The sentence of a server as callers may read it: one line, and nothing in it that looks like a path, a link or markup.
pub(super) fn sayable(text: &str) -> Option<String> {
    let text = text.trim();
    let is_plain =
        |c: char| !c.is_control() && !matches!(c, '/' | '\\' | '<' | '>' | '\u{2028}' | '\u{2029}');
    let fits = text.chars().count() <= SAID_CHARS_MAX && text.chars().all(is_plain);
    (fits && !text.is_empty()).then(|| text.to_owned())
}

/// Our sentence, and what the server said of it.
pub(super) fn with_words(sentence: &str, said: &str) -> String {
    if sentence == said {
        return sentence.to_owned();
    }
    format!("{sentence} The server reports: {said}")
}

/// The sentence of a kind of fault, which callers see.
pub(super) const fn sentence(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::NoSuchVm => "The server knows no such VM: check its id.",
        FaultKind::NoSuchBackup => "The VM has no such backup: list its backups.",
        FaultKind::NameTaken => "Another backup of the VM has this name: choose another name.",
        FaultKind::Protected => {
            "The backup is protected, so it was not deleted. Remove its protection first."
        }
        FaultKind::NotReady => {
            "The backup is incomplete and cannot be restored: wait until it is made, or delete it."
        }
        FaultKind::PreconditionFailed => {
            "The backup is no longer as the request required it to be: read it again."
        }
        FaultKind::Busy => "The VM or the backup is in use by another operation: try again later.",
        FaultKind::Conflict => {
            "The server refused because of the present state of the VM or the backup: look at both, then try again."
        }
        FaultKind::Invalid => "The server rejected the request as invalid: correct it.",
        FaultKind::Unsupported => {
            "The server does not support that: ask for something that it supports."
        }
        FaultKind::Damaged => "The stored backup is damaged or cannot be read: use another backup.",
        FaultKind::StorageFull => {
            "The storage of the server is full: free some space, then try again."
        }
        FaultKind::BackendDenied => {
            "The server does not accept the gateway's credentials, or grants it no right to do that: have its access corrected."
        }
        FaultKind::Unavailable => "The server is unavailable at present: try again later.",
        FaultKind::TimedOut => TIMED_OUT,
        FaultKind::BackendFailed => "The server failed: have its log looked at.",
        FaultKind::Cancelled => "The operation was cancelled.",
        FaultKind::NotExecuted => {
            "The server never began the operation, and nothing was changed: submit it again."
        }
        FaultKind::OutcomeUnknown => {
            "The server could not determine whether the operation took place: look at the VM and its backups."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_meaning_and_say_whether_something_was_done() {
        let none = Effect::None;
        let may = Effect::Possible;
        let rows = [
            (404, Some("NoSuchVm"), FaultKind::NoSuchVm, none),
            (404, None, FaultKind::NoSuchBackup, none),
            (404, Some("Whatever"), FaultKind::NoSuchBackup, none),
            (404, Some("NoSuchRoute"), FaultKind::BackendFailed, none),
            (409, Some("NameTaken"), FaultKind::NameTaken, none),
            (409, Some("BackupProtected"), FaultKind::Protected, none),
            (409, Some("Busy"), FaultKind::Busy, none),
            (409, None, FaultKind::Conflict, none),
            (412, Some("PreconditionFailed"), FaultKind::Conflict, none),
            (401, Some("Unauthenticated"), FaultKind::BackendDenied, none),
            (403, None, FaultKind::BackendDenied, none),
            (
                400,
                Some("UnsupportedSpecificationVersion"),
                FaultKind::BackendFailed,
                none,
            ),
            (405, None, FaultKind::BackendFailed, none),
            (429, None, FaultKind::Unavailable, none),
            (501, None, FaultKind::Unsupported, none),
            (503, Some("Unavailable"), FaultKind::Unavailable, none),
            (503, Some("KeysUnavailable"), FaultKind::Unavailable, none),
            (503, Some("StoreUnavailable"), FaultKind::Unavailable, may),
            (503, None, FaultKind::Unavailable, may),
            (500, Some("InternalError"), FaultKind::BackendFailed, may),
            (502, None, FaultKind::BackendFailed, may),
            (504, None, FaultKind::TimedOut, may),
            (507, Some("StorageFull"), FaultKind::StorageFull, none),
        ];
        for (status, code, kind, effect) in rows {
            let native = || NativeError::Refused {
                status,
                code: code.map(str::to_owned),
                said: None,
                request: Some("r-1".to_owned()),
            };
            let error = native().of_write(FaultKind::NoSuchBackup);
            let seen = (error.fault.kind, error.effect);
            assert_eq!(seen, (kind, effect), "{status} {code:?}");
            assert!(
                error.private().contains("r-1"),
                "the server's request id is kept for the log"
            );
            let error = native().of_read(FaultKind::NoSuchBackup);
            assert_eq!(error.effect, none, "{status}: a read has no effect");
        }
        let error = NativeError::Redirect(303).of_write(FaultKind::NoSuchBackup);
        assert_eq!(error.effect, may, "a redirect may follow what was done");
    }
    #[test]
    fn sentences_of_a_server_are_passed_on_unless_they_hold_more_than_words() {
        let long = "a".repeat(401);
        let rows = [
            ("The data was restored. The VM is off now.", true),
            ("failed to open /etc/passwd", false),
            ("see C:\\vm", false),
            ("two\nlines", false),
            ("<b>bold</b>", false),
            ("", false),
            (long.as_str(), false),
        ];
        for (text, expected) in rows {
            let said = sayable(text);
            assert_eq!(said.is_some(), expected, "{text}");
            for (code, passed_on) in [(Some("Conflict".to_owned()), expected), (None, false)] {
                let refusal = NativeError::Refused {
                    status: 409,
                    code,
                    said: said.clone(),
                    request: None,
                };
                let error = refusal.of_write(FaultKind::NoSuchBackup);
                let has = !text.is_empty() && error.fault.text.contains(text);
                assert_eq!(has, passed_on, "{text}: {error:?}");
            }
        }
    }

    #[test]
    fn every_sentence_about_a_refusal_says_what_to_do() {
        for kind in FaultKind::ALL {
            let text = sentence(kind);
            let remedy = text.split_once([':', '.']).map_or("", |(_, rest)| rest);
            let is_enough = remedy.split_whitespace().count() >= 2;
            let needs_none = matches!(kind, FaultKind::Cancelled | FaultKind::TimedOut);
            assert!(is_enough || needs_none, "{kind:?}: {text}");
        }
    }
}
