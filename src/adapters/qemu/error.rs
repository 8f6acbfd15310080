//! Failures of a monitor or of `qemu-img`, and what callers read about them.
//!
//! This is the one place where native texts become faults.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::Verb;
use crate::public_text;

/// What went wrong. The text inside is QEMU's own and for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QemuError {
    /// Nothing listens on the socket: the VM is off.
    #[error("nothing listens on the monitor socket: {0}")]
    NotRunning(String),
    /// An image is not there.
    #[error("an image is missing: {0}")]
    ImageMissing(String),
    /// Another file is at the path of an image than before.
    #[error("an image was replaced by another file: {0}")]
    ImageReplaced(String),
    /// The operating system denies access.
    #[error("access denied: {0}")]
    AccessDenied(String),
    /// Another client holds the monitor.
    #[error("the monitor did not greet in time")]
    MonitorHeld,
    /// The main loop of QEMU works on a snapshot and answers nothing.
    #[error("QEMU is busy with a snapshot")]
    MainLoopBlocked,
    /// The connection ended before the answer came.
    #[error("the connection ended: {0}")]
    ConnectionLost(String),
    /// No answer came in time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer is not of the form that was expected.
    #[error("unexpected answer: {0}")]
    UnexpectedAnswer(String),
    /// QEMU or `qemu-img` refused; this command did nothing.
    #[error("refused: {0}")]
    Refused(String),
}

impl QemuError {
    /// As the error of a command with an effect, once it may have been sent.
    pub(super) fn into_command_error(self, verb: Verb) -> AdapterError {
        match &self {
            Self::ConnectionLost(_) | Self::TimedOut | Self::UnexpectedAnswer(_) => {
                AdapterError::uncertain(
                    FaultKind::BackendFailed,
                    public_text!(
                        "The connection to the VM was lost after the operation was sent. Its outcome is being determined."
                    ),
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
            | Self::MainLoopBlocked => self.into(),
        }
    }
}

impl From<QemuError> for AdapterError {
    /// As the error of a call that reads, or that failed before anything was changed.
    fn from(error: QemuError) -> Self {
        let refused = Self::refused;
        match &error {
            QemuError::NotRunning(_) => refused(
                FaultKind::Conflict,
                public_text!("The VM is not running. Start it and try again."),
            ),
            QemuError::ImageMissing(_) => Self::unavailable(public_text!(
                "An image of the VM is missing. Check that its storage is mounted, and try again."
            )),
            QemuError::ImageReplaced(_) => refused(
                FaultKind::Conflict,
                public_text!(
                    "An image of the VM was replaced during the operation. Check `images`, and try again."
                ),
            ),
            QemuError::AccessDenied(_) => refused(
                FaultKind::BackendDenied,
                public_text!(
                    "The gateway is not permitted to use the VM's monitor or images. Correct their permissions and try again."
                ),
            ),
            QemuError::MonitorHeld => busy(public_text!(
                "The VM's monitor is in use by another program. Try again later."
            )),
            QemuError::MainLoopBlocked => busy(vm_busy()),
            QemuError::ConnectionLost(_) => busy(public_text!(
                "The connection to the VM was lost. Try again."
            )),
            QemuError::TimedOut => busy(public_text!(
                "The VM did not answer in time. Try again later."
            )),
            QemuError::UnexpectedAnswer(_) => refused(
                FaultKind::BackendFailed,
                public_text!(
                    "The VM sent an unexpected answer. Ask the operator to check the gateway's log."
                ),
            ),
            QemuError::Refused(text) => {
                let fault = fault(None, text);
                refused(fault.kind, fault.text)
            }
        }
        .because(&error)
        // Each VM has a monitor and images of its own.
        .of_one_vm()
    }
}

/// About this VM alone: never a kind that counts as a failure of the whole backend.
fn busy(text: PublicText) -> AdapterError {
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

fn vm_busy() -> PublicText {
    public_text!("Another backup or restore of the VM is running. Try again later.")
}

fn image_in_use() -> PublicText {
    public_text!(
        "An image of the VM is in use by another program. Stop that program and try again."
    )
}

fn no_space() -> PublicText {
    public_text!("The storage of the VM's images is full. Free some space and try again.")
}

fn not_writable() -> PublicText {
    public_text!(
        "An image of the VM is not writable. Correct its permissions, attributes or mount, and try again."
    )
}

fn not_qcow2() -> PublicText {
    public_text!(
        "An image of the VM is not in qcow2 format and cannot hold snapshots. Convert it, or leave it out of `disks` and `images`."
    )
}

fn no_such_backup() -> PublicText {
    public_text!("The VM has no such backup. List its backups.")
}

fn not_migratable() -> PublicText {
    public_text!(
        "A device of the VM does not allow its memory to be saved. Detach that device, or create the backup while the VM is off."
    )
}

/// A part of a native text, and the fault that it stands for.
type Meaning = (&'static str, FaultKind, fn() -> PublicText);

/// The meaning of parts of the texts of QEMU and `qemu-img`; the first that matches counts.
const MEANINGS: &[Meaning] = &[
    ("already exists", FaultKind::Conflict, || {
        public_text!(
            "A snapshot with this id exists already. Delete it, or create the backup again."
        )
    }),
    ("already in use", FaultKind::Busy, vm_busy),
    ("does not exist", FaultKind::NoSuchBackup, no_such_backup),
    (
        "snapshot not found",
        FaultKind::NoSuchBackup,
        no_such_backup,
    ),
    (
        "Failed to load snapshot",
        FaultKind::NoSuchBackup,
        no_such_backup,
    ),
    ("dirty bitmaps", FaultKind::Conflict, || {
        public_text!(
            "A disk of the VM has dirty bitmaps or a running block job. Remove the bitmaps or wait for the job, and try again."
        )
    }),
    ("disk-only snapshot", FaultKind::Conflict, disks_only),
    ("does not support snapshots", FaultKind::Unsupported, || {
        public_text!(
            "A disk of the VM cannot hold snapshots. Convert it to qcow2, or leave it out of `disks` and `images`."
        )
    }),
    ("\" lock", FaultKind::Busy, image_in_use),
    ("Is another process using", FaultKind::Busy, image_in_use),
    ("Failed to lock byte", FaultKind::Busy, image_in_use),
    ("No space left", FaultKind::StorageFull, no_space),
    ("Disk quota exceeded", FaultKind::StorageFull, no_space),
    ("File too large", FaultKind::StorageFull, no_space),
    ("Permission denied", FaultKind::BackendDenied, not_writable),
    (
        "Operation not permitted",
        FaultKind::BackendDenied,
        not_writable,
    ),
    (
        "Read-only file system",
        FaultKind::BackendDenied,
        not_writable,
    ),
    ("not in qcow2 format", FaultKind::Unsupported, not_qcow2),
    ("non-migratable", FaultKind::Unsupported, not_migratable),
    ("not migratable", FaultKind::Unsupported, not_migratable),
];

/// The backup holds no memory, and the VM runs.
pub(super) fn disks_only() -> PublicText {
    public_text!(
        "The backup does not contain memory and cannot be restored while the VM runs. Stop the VM and try again."
    )
}

/// The fault behind a text of QEMU or `qemu-img`.
pub(super) fn fault(verb: Option<Verb>, text: &str) -> Fault {
    let known = MEANINGS.iter().find(|(part, ..)| text.contains(part));
    let (kind, sentence) = known.map_or_else(
        || (FaultKind::BackendFailed, unknown_failure(verb)),
        |(_, kind, sentence)| (*kind, sentence()),
    );
    Fault::new(kind, sentence)
}

/// QEMU's reason is not known to us: it is in the log alone.
fn unknown_failure(verb: Option<Verb>) -> PublicText {
    match verb {
        Some(Verb::Create) => public_text!(
            "The VM manager failed to create the backup. Ask the operator to check the gateway's log."
        ),
        Some(Verb::Delete) => public_text!(
            "The VM manager failed to delete the backup. Ask the operator to check the gateway's log."
        ),
        Some(Verb::Restore) => public_text!(
            "The VM manager failed to restore the VM. Ask the operator to check the gateway's log."
        ),
        Some(Verb::Update) | None => public_text!(
            "The VM manager refused the request. Ask the operator to check the gateway's log."
        ),
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
