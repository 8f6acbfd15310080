//! Refusals and failures of servers, and what of them callers see.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::transport::TransportError;
use crate::adapters::transport::timed_out_text;
use crate::adapters::transport::unexpected_answer;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// No usable answer arrived.
    #[error("transport: {0}")]
    Transport(#[from] TransportError),
    /// The server refused the request, or failed.
    #[error("status {status} {code:?}, request {request:?}, message {message:?}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code of the first message, if there is one.
        code: Option<String>,
        /// The sentence of the first message, where it may be passed on.
        message: Option<String>,
        /// The server's `X-Request-Id`.
        request: Option<String>,
    },
    /// The server redirects the request.
    #[error("redirected with status {0}")]
    Redirect(u16),
    /// The answer has another form than the specification says.
    #[error("invalid answer: {0}")]
    InvalidAnswer(String),
    /// Too many gateways have passed the request on already: this many.
    #[error("passed on by {0} gateways")]
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

    /// Whether the server does not know the path at all.
    pub(super) fn is_unknown_path(&self) -> bool {
        matches!(self.status(), Some(404 | 405 | 501))
    }

    /// Whether the server does not know plans. A missing VM or backup has a code of its own, and what the gateway's user may not do
    /// is no lack of plans.
    pub(super) fn has_no_plans(&self) -> bool {
        match self.status() {
            Some(404) => !matches!(self.code(), Some("NoSuchVm" | "NoSuchBackup")),
            Some(status) => matches!(status, 400 | 405 | 406 | 411 | 415 | 501),
            None => false,
        }
    }

    const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Transport(_) | Self::Redirect(_) | Self::InvalidAnswer(_) | Self::Loop(_) => None,
        }
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => code.as_deref(),
            Self::Transport(_) | Self::Redirect(_) | Self::InvalidAnswer(_) | Self::Loop(_) => None,
        }
    }

    /// Of a request without effect; `missing` is what a 404 means.
    pub(super) fn into_read_error(self, missing: FaultKind) -> AdapterError {
        let mut error = self.into_write_error(missing);
        error.effect = Effect::None;
        error
    }

    /// Of a request with an effect; `missing` is what a 404 means.
    pub(super) fn into_write_error(self, missing: FaultKind) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => error.to_adapter_error(),
            Self::Refused {
                status,
                code,
                message,
                ..
            } => {
                let mut error = refusal_error(*status, code.as_deref(), missing);
                // Only a server that speaks this API, which its codes show, writes its sentences for callers.
                if let Some(message) = message.as_ref().filter(|_| code.is_some()) {
                    error.fault.text = with_server_message(&error.fault.text, message);
                }
                error
            }
            // After a POST, 303 means that it was done, so that a redirect may follow an effect.
            Self::Redirect(_) => permanent(AdapterError::uncertain(
                FaultKind::BackendFailed,
                public_text!(
                    "The server answered with a redirect, which the gateway never follows. Ask an operator to check the \
                     configured address."
                ),
            )),
            Self::InvalidAnswer(_) => unexpected_answer(),
            Self::Loop(_) => AdapterError::refused(
                FaultKind::BackendFailed,
                public_text!(
                    "Forwarding loop detected; nothing was changed. Ask an operator to check the addresses of the gateways."
                ),
            ),
        };
        error.because(self)
    }
}

const fn temporary(mut error: AdapterError) -> AdapterError {
    error.retry = Retry::Temporary;
    error
}

const fn permanent(mut error: AdapterError) -> AdapterError {
    error.retry = Retry::Permanent;
    error
}

/// The kind that a known code stands for. A server that sends one refused before it did anything.
fn kind_of_code(code: &str) -> Option<FaultKind> {
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

/// The fault of a refusal in a plan of the server.
pub(super) fn planned_refusal(code: &str, text: &str) -> Fault {
    // Of the codes that are not known here only this much is: it would be refused in the present state.
    let kind = kind_of_code(code).unwrap_or(FaultKind::Conflict);
    let sentence = sentence_for(kind);
    let text = match publishable_message(text) {
        Some(message) => with_server_message(&sentence, &message),
        None => sentence,
    };
    Fault::new(kind, text)
}

fn refusal_error(status: u16, code: Option<&str>, missing: FaultKind) -> AdapterError {
    if let Some(kind) = code.and_then(kind_of_code) {
        let error = AdapterError::refused(kind, sentence_for(kind));
        let is_temporary = matches!(
            kind,
            FaultKind::Unavailable | FaultKind::TimedOut | FaultKind::Busy
        );
        return if is_temporary {
            temporary(error)
        } else {
            error
        };
    }
    let refused = |kind| AdapterError::refused(kind, sentence_for(kind));
    match status {
        // An unknown path says nothing about VMs and backups.
        404 if code != Some("NoSuchRoute") => refused(missing),
        401 | 403 => refused(FaultKind::BackendDenied),
        409 | 412 => refused(FaultKind::Conflict),
        408 | 425 | 429 => temporary(refused(FaultKind::Unavailable)),
        413 | 414 => refused(FaultKind::Invalid),
        501 => refused(FaultKind::Unsupported),
        // Malformed, or of a version, method or type that the server does not support: the caller cannot correct it.
        400..=499 => AdapterError::refused(
            FaultKind::BackendFailed,
            public_text!(
                "The server does not understand the gateway's request; nothing was changed. Ask an operator to check the \
                 version and address configured for it."
            ),
        ),
        503 => {
            AdapterError::uncertain(FaultKind::Unavailable, sentence_for(FaultKind::Unavailable))
        }
        504 => AdapterError::uncertain(FaultKind::TimedOut, timed_out_text()),
        _ => AdapterError::uncertain(
            FaultKind::BackendFailed,
            sentence_for(FaultKind::BackendFailed),
        ),
    }
}

/// Longest sentence of a server that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 400;

/// The sentence of a server as callers may read it: one line without anything that looks like a path, a link or markup.
pub(super) fn publishable_message(text: &str) -> Option<String> {
    let text = text.trim();
    let is_plain =
        |c: char| !c.is_control() && !matches!(c, '/' | '\\' | '<' | '>' | '\u{2028}' | '\u{2029}');
    let fits = text.chars().count() <= MESSAGE_CHARS_MAX && text.chars().all(is_plain);
    (fits && !text.is_empty()).then(|| text.to_owned())
}

/// The gateway's sentence followed by the server's, unless both are the same.
pub(super) fn with_server_message(sentence: &PublicText, message: &str) -> PublicText {
    if *sentence == message {
        return sentence.clone();
    }
    public_text!("{sentence} The server reports: {message}")
}

/// The sentence for a kind of fault.
pub(super) fn sentence_for(kind: FaultKind) -> PublicText {
    match kind {
        FaultKind::NoSuchVm => public_text!("The server has no such VM. Check its id."),
        FaultKind::NoSuchBackup => public_text!("The VM has no such backup. List its backups."),
        FaultKind::NameTaken => {
            public_text!("Another backup of the VM has this name. Choose another name.")
        }
        FaultKind::Protected => {
            public_text!(
                "The backup is protected, so it was not deleted. Remove its protection first."
            )
        }
        FaultKind::NotReady => public_text!(
            "The backup is incomplete and cannot be restored. Wait until its creation ends, or delete it."
        ),
        FaultKind::PreconditionFailed => public_text!(
            "The backup does not meet the precondition of the request. Read the backup again."
        ),
        FaultKind::Busy => {
            public_text!("Another operation is using the VM or the backup. Try again later.")
        }
        FaultKind::Conflict => public_text!(
            "The server refused because of the current state of the VM or the backup. Check both, then try again."
        ),
        FaultKind::Invalid => {
            public_text!("The server rejected the request as invalid. Correct the request.")
        }
        FaultKind::Unsupported => public_text!(
            "The server does not support this request. Check what the backend supports."
        ),
        FaultKind::Damaged => {
            public_text!("The stored backup is damaged or unreadable. Use another backup.")
        }
        FaultKind::StorageFull => {
            public_text!("The storage of the server is full. Free some space, then try again.")
        }
        FaultKind::BackendDenied => public_text!(
            "The server rejected the gateway's credentials or denied the request. Ask an operator to check its access."
        ),
        FaultKind::Unavailable => public_text!("The server is unavailable. Try again later."),
        FaultKind::TimedOut => timed_out_text(),
        FaultKind::BackendFailed => {
            public_text!("The server failed. Ask an operator to check its logs.")
        }
        FaultKind::Cancelled => public_text!("The operation was cancelled."),
        FaultKind::NotExecuted => public_text!(
            "The server never began the operation; nothing was changed. Submit it again."
        ),
        FaultKind::OutcomeUnknown => public_text!(
            "The server could not determine the outcome of the operation. Check the VM and its backups."
        ),
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
                message: None,
                request: Some("r-1".to_owned()),
            };
            let error = native().into_write_error(FaultKind::NoSuchBackup);
            let seen = (error.fault.kind, error.effect);
            assert_eq!(seen, (kind, effect), "{status} {code:?}");
            assert!(
                error.private().contains("r-1"),
                "the server's request id is kept for the log"
            );
            let error = native().into_read_error(FaultKind::NoSuchBackup);
            assert_eq!(error.effect, none, "{status}: a read has no effect");
        }
        let error = NativeError::Redirect(303).into_write_error(FaultKind::NoSuchBackup);
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
            let message = publishable_message(text);
            assert_eq!(message.is_some(), expected, "{text}");
            for (code, passed_on) in [(Some("Conflict".to_owned()), expected), (None, false)] {
                let refusal = NativeError::Refused {
                    status: 409,
                    code,
                    message: message.clone(),
                    request: None,
                };
                let error = refusal.into_write_error(FaultKind::NoSuchBackup);
                let has = !text.is_empty() && error.fault.text.contains(text);
                assert_eq!(has, passed_on, "{text}: {error:?}");
            }
        }
    }

    #[test]
    fn every_sentence_about_a_refusal_says_what_to_do() {
        for kind in FaultKind::ALL {
            let text = sentence_for(kind);
            let remedy = text.split_once([':', '.']).map_or("", |(_, rest)| rest);
            let is_enough = remedy.split_whitespace().count() >= 2;
            let needs_none = matches!(kind, FaultKind::Cancelled | FaultKind::TimedOut);
            assert!(is_enough || needs_none, "{kind:?}: {text}");
        }
    }
}
