//! From libvirt's failures to what a caller may see.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Retry;
use crate::adapters::libvirt::native::error_code;
use crate::adapters::libvirt::rpc::RpcError;
use crate::model::Fault;
use crate::model::FaultKind;

/// What a caller may see of it.
pub(crate) fn fault(error: &RpcError) -> Fault {
    let (kind, text) = match error {
        RpcError::Unreachable(_) => (FaultKind::Unavailable, "libvirt cannot be reached"),
        RpcError::Authentication(_) => (
            FaultKind::BackendDenied,
            "libvirt wants credentials that the gateway does not have",
        ),
        RpcError::NotSent | RpcError::TimedOut => {
            (FaultKind::TimedOut, "libvirt took longer than allowed")
        }
        RpcError::Lost(_) => (
            FaultKind::Unavailable,
            "the connection to libvirt was lost before it answered",
        ),
        RpcError::Arguments(_) => (FaultKind::Invalid, "libvirt does not take values this long"),
        RpcError::Malformed(_) => (
            FaultKind::BackendFailed,
            "libvirt answered something that makes no sense",
        ),
        RpcError::Native { code, message } => native(*code, message),
    };
    Fault::new(kind, text)
}

fn native(number: u32, message: &str) -> (FaultKind, &'static str) {
    match number {
        error_code::NO_DOMAIN => (FaultKind::NoSuchVm, "there is no such VM"),
        error_code::NO_SNAPSHOT => (FaultKind::NoSuchBackup, "the VM has no such backup"),
        error_code::OPERATION_INVALID | error_code::REVERT_RISKY => (
            FaultKind::Conflict,
            "libvirt refuses this in the VM's present state",
        ),
        error_code::CONFIG_UNSUPPORTED
        | error_code::OPERATION_UNSUPPORTED
        | error_code::NO_SUPPORT => (
            FaultKind::Unsupported,
            "libvirt cannot do this with this VM; UEFI firmware and raw disks are common reasons",
        ),
        error_code::OPERATION_TIMEOUT
        | error_code::RESOURCE_BUSY
        | error_code::BLOCK_COPY_ACTIVE => {
            (FaultKind::Busy, "another job of libvirt's occupies the VM")
        }
        error_code::OPERATION_DENIED
        | error_code::AUTH_FAILED
        | error_code::AUTH_CANCELLED
        | error_code::AUTH_UNAVAILABLE
        | error_code::ACCESS_DENIED => (
            FaultKind::BackendDenied,
            "libvirt does not allow the gateway to do this",
        ),
        error_code::NO_CONNECT => (
            FaultKind::Unavailable,
            "libvirt has no connection to the VM manager",
        ),
        error_code::INTERNAL | error_code::OPERATION_FAILED
            if message.contains("No space left") =>
        {
            (FaultKind::StorageFull, "no room is left for the VM's disks")
        }
        _ => (FaultKind::BackendFailed, "libvirt failed to do this"),
    }
}

/// A read, or a change that was refused before it began, failed with this.
pub(crate) fn from_read(error: &RpcError) -> AdapterError {
    let fault = fault(error);
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
    let mut made = AdapterError::refused(fault.kind, fault.text).because(error);
    made.retry = retry;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_numbers_become_faults_and_its_words_stay_private() {
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
            let error = from_read(&RpcError::Native {
                code,
                message: format!("{message} in /var/lib/secret"),
            });
            assert_eq!(error.fault.kind, expected, "{code} {message}");
            assert!(!error.fault.text.contains("secret"), "{code}: public text");
            assert!(error.private().contains("secret"), "{code}: private text");
        }
    }
}
