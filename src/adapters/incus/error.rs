//! Refusals and failures of LXD and Incus, and what of them callers see.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::incus::names;
use crate::adapters::transport::TransportError;
use crate::adapters::transport::unexpected_answer;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// Why a native call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// No usable answer arrived.
    #[error("transport: {0}")]
    Transport(#[from] TransportError),
    /// The daemon refused the call, or failed.
    #[error("{code}: {text}")]
    Refused {
        /// The status in the body.
        code: u16,
        /// The text in the body.
        text: String,
    },
    /// The answer has another form than the API promises.
    #[error("invalid answer: {0}")]
    InvalidAnswer(String),
}

impl NativeError {
    /// Whether what was named does not exist.
    pub(super) const fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the thing was changed since it was read.
    pub(super) const fn is_stale(&self) -> bool {
        matches!(self, Self::Refused { code: 412, .. })
    }

    /// Of a call without effect; `missing` is what a 404 means.
    pub(super) fn into_read_error(self, missing: FaultKind) -> AdapterError {
        let mut error = self.into_write_error(missing);
        error.effect = Effect::None;
        error
    }

    /// Of a call with an effect; `missing` is what a 404 means.
    pub(super) fn into_write_error(self, missing: FaultKind) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => error.to_adapter_error(),
            Self::Refused { code, text } => refusal_error(*code, text, missing),
            Self::InvalidAnswer(_) => unexpected_answer(),
        };
        error.because(self)
    }
}

/// Parts of the texts with status 500 that refuse for lack of rights.
const DENIALS: [&str; 3] = [
    "does not have permission",
    "doesn't allow for",
    "not authorized",
];

fn refusal_error(code: u16, text: &str, missing: FaultKind) -> AdapterError {
    if code == 403 || DENIALS.iter().any(|denial| text.contains(denial)) {
        return AdapterError::refused(
            FaultKind::BackendDenied,
            public_text!(
                "The VM manager denied the gateway the right to do this; nothing was changed. Ask an operator to check the \
                 rights of its certificate."
            ),
        );
    }
    match code {
        404 => AdapterError::refused(missing, missing_sentence(missing)),
        409 | 412 => AdapterError::refused(
            FaultKind::Conflict,
            public_text!(
                "Another client changed the VM or the backup at the same time, so the VM manager refused. Try again."
            ),
        ),
        400..=499 if is_busy(text) => busy(),
        400..=499 => AdapterError::refused(
            FaultKind::Invalid,
            public_text!(
                "The VM manager rejected the request; nothing was changed. Check the VM and the backup."
            ),
        ),
        503 => AdapterError::unavailable(public_text!(
            "The VM manager is starting or stopping; nothing was changed. Try again later."
        )),
        _ => AdapterError::uncertain(FaultKind::BackendFailed, failed_text()),
    }
}

/// What callers see when a VM or backup does not exist.
pub(super) fn missing_sentence(missing: FaultKind) -> PublicText {
    if matches!(missing, FaultKind::NoSuchVm) {
        public_text!("The VM manager has no such VM. Check its id.")
    } else {
        public_text!("The VM has no such backup. List its backups.")
    }
}

type Sentence = fn() -> PublicText;

/// Parts of the texts of failed operations, and their meaning. The first that is contained counts.
const FAILURES: [(&str, FaultKind, Sentence); 10] = [
    (BUSY, FaultKind::Busy, busy_text),
    ("torage pool is unavailable", FaultKind::Unavailable, || {
        public_text!("The storage of the VM is unavailable. Mount or repair it, then try again.")
    }),
    ("is \"Frozen\"", FaultKind::Conflict, || {
        public_text!("The VM is frozen. Thaw the VM first.")
    }),
    ("rotect", FaultKind::Conflict, || {
        public_text!("The VM manager protects the VM against this. Remove that protection first.")
    }),
    ("already exists", FaultKind::Conflict, id_in_use_text),
    ("already in use", FaultKind::Conflict, id_in_use_text),
    ("o space left", FaultKind::StorageFull, storage_full_text),
    ("uota exceeded", FaultKind::StorageFull, storage_full_text),
    ("does not exist", FaultKind::NoSuchBackup, part_missing_text),
    ("not found", FaultKind::NoSuchBackup, part_missing_text),
];

/// In the text of a call or operation that another operation on the VM excludes.
const BUSY: &str = "is busy running a";

fn is_busy(text: &str) -> bool {
    text.contains(BUSY)
}

fn busy_text() -> PublicText {
    public_text!("Another operation is running on the VM. Try again later.")
}

fn id_in_use_text() -> PublicText {
    public_text!("The VM manager has another object with this id. Remove or rename it first.")
}

fn storage_full_text() -> PublicText {
    public_text!("The storage of the VM manager is full. Free some space, then try again.")
}

fn part_missing_text() -> PublicText {
    public_text!("A part that the operation needs does not exist. List the backups again.")
}

fn failed_text() -> PublicText {
    public_text!("The VM manager failed.")
}

/// What a caller may read of a failed operation; the text itself is for the log.
pub(super) fn fault_of_text(text: &str) -> Fault {
    FAILURES
        .iter()
        .find(|(part, _, _)| text.contains(part))
        .map_or_else(
            || Fault::new(FaultKind::BackendFailed, failed_text()),
            |(_, kind, sentence)| Fault::new(*kind, sentence()),
        )
}

/// Parts of the texts of restores that failed before the data was touched.
const BEFORE_DATA: [&str; 9] = [
    BUSY,
    "torage pool is unavailable",
    "Failed to create mount directory",
    "Failed stopping",
    "Failed to stop",
    "subsequent snapshot",
    "Storage volume not found",
    "nstance snapshot not found",
    "does not exist",
];

/// Whether a restore that failed with that text failed before it touched the data.
pub(super) fn is_before_data(text: &str) -> bool {
    // What rsync says of single files comes while the data is written.
    !text.contains("rsync") && BEFORE_DATA.iter().any(|part| text.contains(part))
}

/// Whether a failed operation with a fault of that kind was refused before it began.
pub(super) const fn is_refusal(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Busy | FaultKind::Conflict)
}

/// The device of the VM that the text of a failure names.
pub(super) fn device(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("device \"")?;
    let (name, _) = rest.split_once('"')?;
    names::is_safe_name(name).then_some(name)
}

/// The refusal of a change while another operation runs on the VM.
pub(super) fn busy() -> AdapterError {
    let mut error = AdapterError::refused(FaultKind::Busy, busy_text());
    error.retry = Retry::Temporary;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_meaning_and_say_whether_something_was_done() {
        let none = Effect::None;
        let rows = [
            (404, "Instance not found", FaultKind::NoSuchVm, none),
            (403, "not authorized", FaultKind::BackendDenied, none),
            (
                500,
                "Project \"rp\" doesn't allow for snapshot creation",
                FaultKind::BackendDenied,
                none,
            ),
            (
                500,
                "User does not have permissions for project \"default\"",
                FaultKind::BackendDenied,
                none,
            ),
            (400, "Invalid snapshot name", FaultKind::Invalid, none),
            (
                409,
                "Name 'web01/s0' already in use",
                FaultKind::Conflict,
                none,
            ),
            (412, "ETag doesn't match: a vs b", FaultKind::Conflict, none),
            (503, "LXD is shutting down", FaultKind::Unavailable, none),
            (
                500,
                "disk on fire",
                FaultKind::BackendFailed,
                Effect::Possible,
            ),
        ];
        for (code, text, kind, effect) in rows {
            let native = || NativeError::Refused {
                code,
                text: text.to_owned(),
            };
            let error = native().into_write_error(FaultKind::NoSuchVm);
            assert_eq!((error.fault.kind, error.effect), (kind, effect), "{text}");
            assert!(error.private().contains(text), "{text}: kept for the log");
            assert!(
                !error.fault.text.contains(text),
                "{text}: kept from callers"
            );
            let error = native().into_read_error(FaultKind::NoSuchVm);
            assert_eq!(error.effect, none, "{text}: a read has no effect");
        }
    }

    #[test]
    fn failures_of_operations_keep_their_meaning() {
        let rows = [
            ("Snapshot t2/nope does not exist", FaultKind::NoSuchBackup),
            ("Storage volume not found", FaultKind::NoSuchBackup),
            (
                "Failed to create instance restore operation: Instance is busy running a \"restore\" operation",
                FaultKind::Busy,
            ),
            (
                "Failed stopping instance, status is \"Frozen\"",
                FaultKind::Conflict,
            ),
            ("Backup \"t2/b1\" already exists", FaultKind::Conflict),
            (
                "rsync: write failed: No space left on device",
                FaultKind::StorageFull,
            ),
            ("rsync exit 23", FaultKind::BackendFailed),
        ];
        for (text, kind) in rows {
            let fault = fault_of_text(text);
            assert_eq!(fault.kind, kind, "{text}");
            let words = fault.text.split(' ').count();
            assert!(
                kind == FaultKind::BackendFailed || words > 6,
                "{text}: with a remedy"
            );
            assert!(!fault.text.contains(text), "{text}: kept from callers");
        }
    }

    #[test]
    fn a_failure_names_the_device_and_says_whether_data_was_touched() {
        let rows = [
            (
                "Failed start validation for device \"extra\": Missing source path \"/gone\" for disk \"extra\"",
                Some("extra"),
                false,
            ),
            ("Failed to start device \"a/b\": no", None, false),
            ("Storage pool is unavailable on this server", None, true),
            (
                "Instance is busy running a \"restore\" operation",
                None,
                true,
            ),
            ("rsync: link_stat failed: does not exist", None, false),
            ("Failed to run: zfs rollback: cannot", None, false),
        ];
        for (text, name, untouched) in rows {
            assert_eq!(device(text), name, "{text}");
            assert_eq!(is_before_data(text), untouched, "{text}");
        }
    }
}
