//! What goes wrong with a monitor or with qemu-img, and what a caller is told of it.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Verb;

/// What went wrong. The text inside is QEMU's own and for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QemuError {
    /// Nobody listens on the socket: the VM is off.
    #[error("nobody listens on the monitor socket: {0}")]
    NotRunning(String),
    /// An image is not there.
    #[error("an image is missing: {0}")]
    ImageMissing(String),
    /// Another file is at the path of an image than before.
    #[error("an image is another file by now: {0}")]
    ImageReplaced(String),
    /// The system does not let us.
    #[error("access denied: {0}")]
    AccessDenied(String),
    /// Another client holds the monitor.
    #[error("the monitor did not greet in time")]
    MonitorHeld,
    /// The main loop of QEMU is at work on a snapshot and answers nothing.
    #[error("QEMU is at work on a snapshot")]
    MainLoopBlocked,
    /// The connection ended before the answer came.
    #[error("the connection ended: {0}")]
    ConnectionLost(String),
    /// No answer came in time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer makes no sense.
    #[error("unexpected answer: {0}")]
    UnexpectedAnswer(String),
    /// QEMU or qemu-img said no; nothing was done by this command.
    #[error("refused: {0}")]
    Refused(String),
}

impl QemuError {
    /// As the error of a call that reads.
    pub(super) fn into_read_error(self) -> AdapterError {
        let refused = AdapterError::refused;
        match &self {
            Self::NotRunning(_) => refused(FaultKind::Conflict, "The VM is not running."),
            Self::ImageMissing(_) => AdapterError::unavailable(
                "An image of the VM is missing; check that its storage is mounted, and try again.",
            ),
            Self::ImageReplaced(_) => refused(
                FaultKind::Conflict,
                "An image of the VM was replaced meanwhile; check `images`, and try again.",
            ),
            Self::AccessDenied(_) => refused(
                FaultKind::BackendDenied,
                "The gateway may not use the VM's monitor or images.",
            ),
            Self::MonitorHeld => passing("Another program uses the VM's monitor; try again later."),
            Self::MainLoopBlocked => passing("The VM is at work on a backup; try again later."),
            Self::ConnectionLost(_) => passing("The connection to the VM was lost; try again."),
            Self::TimedOut => passing("The VM did not answer in time; try again later."),
            Self::UnexpectedAnswer(_) => refused(
                FaultKind::BackendFailed,
                "The VM answered something unexpected.",
            ),
            Self::Refused(text) => {
                let fault = fault(None, text);
                AdapterError::refused(fault.kind, fault.text)
            }
        }
        .because(&self)
        // Each VM has a monitor and images of its own.
        .of_one_vm()
    }

    /// As the error of a command with an effect, once it may have been sent.
    pub(super) fn into_command_error(self, verb: Verb) -> AdapterError {
        match &self {
            Self::ConnectionLost(_) | Self::TimedOut | Self::UnexpectedAnswer(_) => {
                AdapterError::uncertain(
                    FaultKind::BackendFailed,
                    "The connection to the VM was lost while it was asked.",
                )
                .because(&self)
                .of_one_vm()
            }
            Self::Refused(text) => {
                let fault = fault(Some(verb), text);
                AdapterError::refused(fault.kind, fault.text).because(&self)
            }
            Self::NotRunning(_)
            | Self::ImageMissing(_)
            | Self::ImageReplaced(_)
            | Self::AccessDenied(_)
            | Self::MonitorHeld
            | Self::MainLoopBlocked => self.into_read_error(),
        }
    }
}

/// About this VM alone: never a kind by which the whole backend would be taken for down.
fn passing(text: &str) -> AdapterError {
    let mut error = AdapterError::refused(FaultKind::Busy, text);
    error.retry = Retry::Temporary;
    error
}

/// Whether a failed load provably touched no disk, so that the guest may run on.
pub(super) fn touched_nothing(text: &str) -> bool {
    const BEFORE_DISKS: [&str; 5] = [
        "does not exist in one or more devices",
        "does not support snapshots",
        "disk-only snapshot",
        "No block device node",
        "At least one device is required",
    ];
    BEFORE_DISKS.iter().any(|part| text.contains(part))
}

const IN_USE: &str = "An image of the VM is in use by another program; end it and try again.";
const NO_SPACE: &str = "There is no space left for the VM's images; free some and try again.";
const NOT_WRITABLE: &str = "An image of the VM is not writable for the gateway or QEMU; correct its permissions, attributes or mount, and try again.";
pub(super) const NOT_QCOW2: &str = "An image of the VM is not in qcow2 format and cannot hold snapshots; convert it, or leave it out of `disks` and `images`.";

/// What parts of texts of QEMU and qemu-img mean; the first that fits counts.
const ROWS: &[(&str, FaultKind, &str)] = &[
    (
        "already exists",
        FaultKind::Conflict,
        "A snapshot of that id exists already.",
    ),
    (
        "already in use",
        FaultKind::Busy,
        "The VM is at work on a backup; try again later.",
    ),
    (
        "does not exist",
        FaultKind::NoSuchBackup,
        "The VM has no such backup.",
    ),
    (
        "snapshot not found",
        FaultKind::NoSuchBackup,
        "The VM has no such backup.",
    ),
    (
        "Failed to load snapshot",
        FaultKind::NoSuchBackup,
        "The VM has no such backup.",
    ),
    (
        "dirty bitmaps",
        FaultKind::Conflict,
        "A disk of the VM has dirty bitmaps or a running block job; end them first.",
    ),
    (
        "disk-only snapshot",
        FaultKind::Conflict,
        "The backup holds no memory: stop the VM and restore it then.",
    ),
    (
        "does not support snapshots",
        FaultKind::Unsupported,
        "A disk of the VM cannot hold snapshots.",
    ),
    ("\" lock", FaultKind::Busy, IN_USE),
    ("Is another process using", FaultKind::Busy, IN_USE),
    ("Failed to lock byte", FaultKind::Busy, IN_USE),
    ("No space left", FaultKind::StorageFull, NO_SPACE),
    ("Disk quota exceeded", FaultKind::StorageFull, NO_SPACE),
    ("File too large", FaultKind::StorageFull, NO_SPACE),
    ("Permission denied", FaultKind::BackendDenied, NOT_WRITABLE),
    (
        "Operation not permitted",
        FaultKind::BackendDenied,
        NOT_WRITABLE,
    ),
    (
        "Read-only file system",
        FaultKind::BackendDenied,
        NOT_WRITABLE,
    ),
    ("not in qcow2 format", FaultKind::Unsupported, NOT_QCOW2),
    (
        "non-migratable",
        FaultKind::Unsupported,
        "A device of the VM does not allow its memory to be saved.",
    ),
    (
        "not migratable",
        FaultKind::Unsupported,
        "A device of the VM does not allow its memory to be saved.",
    ),
];

/// What a caller may see of a text of QEMU or qemu-img.
pub(super) fn fault(verb: Option<Verb>, text: &str) -> Fault {
    let known = ROWS.iter().find(|(part, ..)| text.contains(part));
    let (kind, sentence) = known.map_or_else(
        || (FaultKind::BackendFailed, failed(verb)),
        |(_, kind, sentence)| (*kind, *sentence),
    );
    Fault::new(kind, sentence)
}

const fn failed(verb: Option<Verb>) -> &'static str {
    match verb {
        Some(Verb::Create) => "QEMU could not make the backup.",
        Some(Verb::Delete) => "QEMU could not delete the backup.",
        Some(Verb::Restore) => "QEMU could not restore the VM.",
        Some(Verb::Update) | None => "QEMU refused.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::adapter::Effect;

    #[test]
    fn texts_of_qemu_become_kinds_and_stay_private() {
        let rows = [
            (
                "Snapshot 'b1' already exists in one or more devices",
                FaultKind::Conflict,
            ),
            ("Job ID 'x' already in use", FaultKind::Busy),
            (
                "Snapshot 'b1' does not exist in one or more devices",
                FaultKind::NoSuchBackup,
            ),
            (
                "Could not load snapshot 't1' on 'disk1': Device has active dirty bitmaps",
                FaultKind::Conflict,
            ),
            (
                "This is a disk-only snapshot. Revert to it  offline using qemu-img",
                FaultKind::Conflict,
            ),
            (
                "Device 'disk0-file' is writable but does not support snapshots",
                FaultKind::Unsupported,
            ),
            (
                "qemu-img: Could not open 'x': Failed to get \"write\" lock",
                FaultKind::Busy,
            ),
            (
                "Could not delete snapshot 'nosuch': snapshot not found",
                FaultKind::NoSuchBackup,
            ),
            (
                "Could not open '/srv/blocks/a.qcow2': Permission denied",
                FaultKind::BackendDenied,
            ),
            (
                "Could not open '/srv/a.qcow2': Read-only file system",
                FaultKind::BackendDenied,
            ),
            (
                "Could not open 'a.qcow2': Operation not permitted",
                FaultKind::BackendDenied,
            ),
            (
                "write failed: No space left on device",
                FaultKind::StorageFull,
            ),
            ("Image is not in qcow2 format", FaultKind::Unsupported),
            (
                "Error while writing VM state: No space left on device",
                FaultKind::StorageFull,
            ),
            ("something new", FaultKind::BackendFailed),
        ];
        for (text, expected) in rows {
            let error = QemuError::Refused(text.to_owned()).into_command_error(Verb::Create);
            assert_eq!(error.fault.kind, expected, "{text}");
            assert_eq!(error.effect, Effect::None, "{text}: refused");
            assert!(error.private().contains(text), "{text}: kept for the log");
            assert!(!error.fault.text.contains(text), "{text}: not for callers");
        }
    }

    #[test]
    fn only_a_lost_answer_leaves_the_effect_open() {
        let rows = [
            (QemuError::ConnectionLost(String::new()), Effect::Possible),
            (QemuError::TimedOut, Effect::Possible),
            (QemuError::UnexpectedAnswer(String::new()), Effect::Possible),
            (QemuError::MonitorHeld, Effect::None),
            (QemuError::NotRunning(String::new()), Effect::None),
            (QemuError::AccessDenied(String::new()), Effect::None),
            (QemuError::MainLoopBlocked, Effect::None),
        ];
        for (error, expected) in rows {
            let name = error.to_string();
            assert_eq!(
                error.into_command_error(Verb::Restore).effect,
                expected,
                "{name}"
            );
        }
    }
}
