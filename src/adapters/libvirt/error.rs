//! From libvirt's failures to faults. This is the one place where libvirt's error numbers get a meaning.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::adapters::libvirt::native::error_code;
use crate::adapters::libvirt::rpc::RpcError;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

/// What a caller may see of it.
pub(crate) fn fault(error: &RpcError) -> Fault {
    let (kind, text) = match error {
        RpcError::Unreachable(_) => (
            FaultKind::Unavailable,
            public_text!("The VM manager cannot be reached. Try again later."),
        ),
        RpcError::Authentication(_) => (
            FaultKind::BackendDenied,
            public_text!(
                "The VM manager requires credentials that the gateway does not have. Ask the operator to configure them."
            ),
        ),
        RpcError::NotSent | RpcError::TimedOut => (
            FaultKind::TimedOut,
            public_text!("The VM manager did not answer in time. Try again later."),
        ),
        RpcError::Lost(_) => (
            FaultKind::Unavailable,
            public_text!(
                "The connection to the VM manager was lost before it answered. Try again later."
            ),
        ),
        RpcError::Arguments(_) => (
            FaultKind::Invalid,
            public_text!(
                "A value of the request is too long for the VM manager; nothing was changed. Shorten it."
            ),
        ),
        RpcError::Malformed(_) => (FaultKind::BackendFailed, unreadable_answer()),
        RpcError::Native { code, message } => native(*code, message),
    };
    Fault::new(kind, text)
}

/// The text about an answer that does not follow libvirt's own protocol.
pub(crate) fn unreadable_answer() -> PublicText {
    public_text!(
        "The VM manager sent an unreadable answer. Ask the operator to check the gateway's log."
    )
}

fn native(number: u32, message: &str) -> (FaultKind, PublicText) {
    match number {
        error_code::NO_DOMAIN => (
            FaultKind::NoSuchVm,
            public_text!("There is no such VM. Check its id."),
        ),
        error_code::NO_SNAPSHOT => (
            FaultKind::NoSuchBackup,
            public_text!("The VM has no such backup. List its backups."),
        ),
        error_code::OPERATION_INVALID | error_code::REVERT_RISKY => (
            FaultKind::Conflict,
            public_text!(
                "The VM manager refused the operation in the current state of the VM. Check the state of the VM and try again."
            ),
        ),
        error_code::CONFIG_UNSUPPORTED
        | error_code::OPERATION_UNSUPPORTED
        | error_code::NO_SUPPORT => (
            FaultKind::Unsupported,
            public_text!(
                "The VM manager does not support this operation for this VM. Check the VM for UEFI firmware and raw disks, which are common reasons."
            ),
        ),
        error_code::OPERATION_TIMEOUT
        | error_code::RESOURCE_BUSY
        | error_code::BLOCK_COPY_ACTIVE => (
            FaultKind::Busy,
            public_text!("Another job is running on the VM. Try again when it has ended."),
        ),
        error_code::OPERATION_DENIED
        | error_code::AUTH_FAILED
        | error_code::AUTH_CANCELLED
        | error_code::AUTH_UNAVAILABLE
        | error_code::ACCESS_DENIED => (
            FaultKind::BackendDenied,
            public_text!(
                "The VM manager does not permit the gateway to do this. Ask the operator to grant the permission."
            ),
        ),
        error_code::NO_CONNECT => (
            FaultKind::Unavailable,
            public_text!("The VM manager has no connection to its hypervisor. Try again later."),
        ),
        error_code::INTERNAL | error_code::OPERATION_FAILED
            if message.contains("No space left") =>
        {
            (
                FaultKind::StorageFull,
                public_text!(
                    "The storage of the VM's disks is full. Free some space and try again."
                ),
            )
        }
        _ => (
            FaultKind::BackendFailed,
            public_text!(
                "The VM manager failed to carry out the operation. Ask the operator to check the gateway's log."
            ),
        ),
    }
}

impl From<RpcError> for AdapterError {
    /// The failure of a read, or of a change that was refused before it began.
    fn from(error: RpcError) -> Self {
        let fault = fault(&error);
        let retry = match fault.kind {
            FaultKind::Unavailable | FaultKind::TimedOut | FaultKind::Busy => Retry::Temporary,
            FaultKind::NoSuchVm
            | FaultKind::NoSuchBackup
            | FaultKind::NameTaken
            | FaultKind::Protected
            | FaultKind::NotReady
            | FaultKind::PreconditionFailed
            | FaultKind::Conflict
            | FaultKind::Invalid
            | FaultKind::Unsupported
            | FaultKind::Damaged
            | FaultKind::StorageFull
            | FaultKind::BackendDenied
            | FaultKind::BackendFailed
            | FaultKind::Cancelled
            | FaultKind::NotExecuted
            | FaultKind::OutcomeUnknown => Retry::Permanent,
        };
        let mut made = Self::refused(fault.kind, fault.text).because(&error);
        made.retry = retry;
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_error_numbers_become_faults_and_native_messages_stay_private() {
        let rows = [
            (42, "x", FaultKind::NoSuchVm),
            (72, "x", FaultKind::NoSuchBackup),
            (55, "x", FaultKind::Conflict),
            (77, "x", FaultKind::Conflict),
            (67, "x", FaultKind::Unsupported),
            (84, "x", FaultKind::Unsupported),
            (3, "x", FaultKind::Unsupported),
            (68, "x", FaultKind::Busy),
            (87, "x", FaultKind::Busy),
            (83, "x", FaultKind::Busy),
            (29, "x", FaultKind::BackendDenied),
            (45, "x", FaultKind::BackendDenied),
            (5, "x", FaultKind::Unavailable),
            (1, "write: No space left on device", FaultKind::StorageFull),
            (1, "qemu unexpectedly closed", FaultKind::BackendFailed),
            (9, "moment exists", FaultKind::BackendFailed),
            (9999, "from the future", FaultKind::BackendFailed),
        ];
        for (code, message, expected) in rows {
            let error = AdapterError::from(RpcError::Native {
                code,
                message: format!("{message} in /var/lib/secret"),
            });
            assert_eq!(error.fault.kind, expected, "{code} {message}");
            assert!(!error.fault.text.contains("secret"), "{code}: public text");
            assert!(error.private().contains("secret"), "{code}: private text");
        }
    }
}
