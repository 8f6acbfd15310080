//! What LXD and Incus say when something goes wrong, and what of it a caller is told.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::incus::map;
use crate::adapters::transport::TransportError;
use crate::model::Fault;
use crate::model::FaultKind;

/// Why a native call brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum NativeError {
    /// There is no usable answer.
    #[error("transport: {0}")]
    Transport(#[from] TransportError),
    /// It was refused, or failed.
    #[error("{code}: {text}")]
    Refused {
        /// The status in the body.
        code: u16,
        /// The text in the body.
        text: String,
    },
    /// The answer makes no sense.
    #[error("answer makes no sense: {0}")]
    Nonsense(String),
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
    pub(super) fn of_read(self, missing: FaultKind) -> AdapterError {
        let mut error = self.of_write(missing);
        error.effect = Effect::None;
        error
    }

    /// Of a call with an effect; `missing` is what a 404 means.
    pub(super) fn of_write(self, missing: FaultKind) -> AdapterError {
        let error = match &self {
            Self::Transport(error) => of_transport(error),
            Self::Refused { code, text } => of_refusal(*code, text, missing),
            Self::Nonsense(_) => AdapterError::uncertain(
                FaultKind::BackendFailed,
                "The VM manager sent an answer that makes no sense.",
            ),
        };
        error.because(self)
    }
}

fn of_transport(error: &TransportError) -> AdapterError {
    match error {
        TransportError::Unreachable(_) => {
            AdapterError::unavailable("The VM manager cannot be reached.")
        }
        TransportError::Untrusted(_) => AdapterError::refused(
            FaultKind::BackendFailed,
            "The VM manager's certificate is not the one that the gateway is configured to trust.",
        ),
        TransportError::Unsendable(_) => AdapterError::refused(
            FaultKind::Invalid,
            "That cannot be asked of this VM manager.",
        ),
        TransportError::TooLate => passing(AdapterError::refused(FaultKind::TimedOut, TIMED_OUT)),
        TransportError::TimedOut => AdapterError::uncertain(FaultKind::TimedOut, TIMED_OUT),
        TransportError::Lost(_) => AdapterError::uncertain(
            FaultKind::Unavailable,
            "The connection to the VM manager was lost.",
        ),
        TransportError::TooLarge(_) => {
            let text = "The VM manager's answer is larger than the gateway allows.";
            let mut error = AdapterError::uncertain(FaultKind::BackendFailed, text);
            error.retry = Retry::Permanent;
            error
        }
    }
}

const fn passing(mut error: AdapterError) -> AdapterError {
    error.retry = Retry::Temporary;
    error
}

const TIMED_OUT: &str = "The VM manager took longer than allowed.";

/// Texts by which refusals of rights are told that come with status 500.
const DENIALS: [&str; 3] = [
    "does not have permission",
    "doesn't allow for",
    "not authorized",
];

fn of_refusal(code: u16, text: &str, missing: FaultKind) -> AdapterError {
    if code == 403 || DENIALS.iter().any(|denial| text.contains(denial)) {
        return AdapterError::refused(
            FaultKind::BackendDenied,
            "The VM manager does not grant the gateway the right to do that.",
        );
    }
    match code {
        404 => AdapterError::refused(missing, absent(missing)),
        409 | 412 => AdapterError::refused(
            FaultKind::Conflict,
            "The VM manager refused: something else was changed at the same time.",
        ),
        400..=499 => {
            let is_busy = of_failure(text).kind == FaultKind::Busy;
            let kind = if is_busy {
                FaultKind::Busy
            } else {
                FaultKind::Invalid
            };
            AdapterError::refused(kind, "The VM manager refused what was asked for.")
        }
        503 => AdapterError::unavailable("The VM manager is starting or stopping."),
        _ => AdapterError::uncertain(FaultKind::BackendFailed, "The VM manager failed."),
    }
}

/// What a caller is told when something does not exist.
pub(super) const fn absent(what: FaultKind) -> &'static str {
    if matches!(what, FaultKind::NoSuchVm) {
        "The VM manager knows no such VM."
    } else {
        "The VM has no such backup."
    }
}

/// Parts of the text of a failed operation, and their meaning. The first that is found counts.
const FAILURES: [(&str, FaultKind, &str); 10] = [
    ("is busy running a", FaultKind::Busy, BUSY),
    (
        "torage pool is unavailable",
        FaultKind::Unavailable,
        "The storage that holds the VM is not available to the VM manager.",
    ),
    (
        "is \"Frozen\"",
        FaultKind::Conflict,
        "The VM is frozen: thaw it first.",
    ),
    (
        "rotect",
        FaultKind::Conflict,
        "The VM manager protects the VM against that: remove its protection there first.",
    ),
    ("already exists", FaultKind::Conflict, TAKEN),
    ("already in use", FaultKind::Conflict, TAKEN),
    ("o space left", FaultKind::StorageFull, FULL),
    ("uota exceeded", FaultKind::StorageFull, FULL),
    ("does not exist", FaultKind::NoSuchBackup, GONE),
    ("not found", FaultKind::NoSuchBackup, GONE),
];

const BUSY: &str = "The VM manager is busy with that VM: try again later.";
const TAKEN: &str =
    "The VM manager has something else under that id: remove or rename it there first.";
const FULL: &str = "The storage of the VM manager is full: free some space first.";
const GONE: &str = "A part that is needed for it no longer exists: list the backups again.";

/// What a caller may read of a failed operation; the text itself is for the log.
pub(super) fn of_failure(text: &str) -> Fault {
    FAILURES
        .iter()
        .find(|(part, _, _)| text.contains(part))
        .map_or_else(
            || Fault::new(FaultKind::BackendFailed, "The VM manager failed."),
            |(_, kind, sentence)| Fault::new(*kind, *sentence),
        )
}

/// Parts of the texts of restores that failed before the data was touched.
const BEFORE_DATA: [&str; 9] = [
    "is busy running a",
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
    map::is_strict(name).then_some(name)
}

/// Something else is being done to the VM.
pub(super) fn busy() -> AdapterError {
    passing(AdapterError::refused(FaultKind::Busy, BUSY))
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
            let error = native().of_write(FaultKind::NoSuchVm);
            assert_eq!((error.fault.kind, error.effect), (kind, effect), "{text}");
            assert!(error.private().contains(text), "{text}: kept for the log");
            assert!(
                !error.fault.text.contains(text),
                "{text}: kept from callers"
            );
            let error = native().of_read(FaultKind::NoSuchVm);
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
            let fault = of_failure(text);
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
