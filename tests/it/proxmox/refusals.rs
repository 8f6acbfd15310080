//! Refusals of the server and failures of its tasks: what each answers, what callers see, and that nothing was changed.

use std::fs;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::proxmox::ProxmoxServer;
use crate::proxmox::failures::about;
use crate::proxmox::failures::begun;
use crate::proxmox::failures::create;
use crate::proxmox::failures::made;
use crate::proxmox::failures::restore;
use crate::proxmox::failures::run;

/// A change that the server refuses.
#[derive(Clone, Copy, Debug)]
enum RefusedCall {
    Snapshot,
    Full,
    Describe,
    DescribeFull,
    Delete,
    DeleteFull,
    RollBack,
    RestoreFull,
}

impl RefusedCall {
    /// The method and the pattern of the path of the call.
    const fn call(self) -> (&'static str, &'static str) {
        match self {
            Self::Snapshot => ("POST", "/snapshot$"),
            Self::Full => ("POST", "/vzdump$"),
            Self::Describe => ("PUT", "/snapshot/[^/]+/config$"),
            Self::DescribeFull => ("PUT", "/content/"),
            Self::Delete => ("DELETE", "/snapshot/[^/]+$"),
            Self::DeleteFull => ("DELETE", "/content/"),
            Self::RollBack => ("POST", "/rollback$"),
            Self::RestoreFull => ("POST", "/qemu$"),
        }
    }
}

/// The backups that the rows are about.
struct Backups {
    snapshot: Backup,
    full: Backup,
}

impl Backups {
    fn intent(&self, verb: RefusedCall) -> Intent {
        let rename = || {
            Change::Update(BackupPatch {
                name: Some(BackupName::new("renamed").unwrap()),
                ..BackupPatch::default()
            })
        };
        match verb {
            RefusedCall::Snapshot => create(9, BackupKind::Snapshot),
            RefusedCall::Full => create(9, BackupKind::Full),
            RefusedCall::Describe => about(&self.snapshot, rename()),
            RefusedCall::DescribeFull => about(&self.full, rename()),
            RefusedCall::Delete => about(&self.snapshot, Change::Delete),
            RefusedCall::DeleteFull => about(&self.full, Change::Delete),
            RefusedCall::RollBack => restore(&self.snapshot, &[]),
            RefusedCall::RestoreFull => restore(&self.full, &[("discard_snapshots", "true")]),
        }
    }
}

async fn prepare(lab: &ProxmoxServer) -> Backups {
    let adapter = lab.adapter();
    lab.write(1);
    let full = made(&adapter, 1, BackupKind::Full).await;
    let snapshot = made(&adapter, 2, BackupKind::Snapshot).await;
    lab.write(2);
    Backups { snapshot, full }
}

type Row = (
    RefusedCall,
    u16,
    &'static str,
    FaultKind,
    Effect,
    &'static str,
);

/// What the server answers to the call, and what the caller sees.
const CALLS: &[Row] = &{
    use Effect::None as No;
    use Effect::Possible as May;
    use FaultKind as K;
    use RefusedCall as V;
    [
        (
            V::Snapshot,
            401,
            "invalid token value!",
            K::BackendDenied,
            No,
            "token",
        ),
        (
            V::Snapshot,
            401,
            "permission denied - token expired",
            K::BackendDenied,
            No,
            "token",
        ),
        (
            V::Snapshot,
            403,
            "Permission check failed (/vms/100, VM.Snapshot)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::Full,
            403,
            "Permission check failed (/vms/100, VM.Backup)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::Full,
            403,
            "Permission check failed (/storage/local, Datastore.AllocateSpace)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::Describe,
            403,
            "Permission check failed (/vms/100, VM.Snapshot)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::DeleteFull,
            403,
            "Permission check failed (/storage/local, Datastore.AllocateSpace)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::RollBack,
            403,
            "Permission check failed (/vms/100, VM.PowerMgmt)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::RestoreFull,
            403,
            "Permission check failed (/vms/100, VM.Backup)",
            K::BackendDenied,
            No,
            "rights",
        ),
        (
            V::Snapshot,
            400,
            "Parameter verification failed.",
            K::Invalid,
            No,
            "Check",
        ),
        (
            V::RestoreFull,
            400,
            "Parameter verification failed.",
            K::Invalid,
            No,
            "Check",
        ),
        (
            V::Describe,
            500,
            "VM is locked (snapshot)",
            K::Conflict,
            No,
            "qm unlock",
        ),
        (
            V::Describe,
            500,
            "snapshot 'snapgate-2' does not exist",
            K::NoSuchBackup,
            No,
            "List",
        ),
        (
            V::Describe,
            500,
            "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout",
            K::Busy,
            No,
            "later",
        ),
        (
            V::DescribeFull,
            500,
            "volume 'local:backup/x' does not exist",
            K::NoSuchBackup,
            No,
            "List",
        ),
        (
            V::DeleteFull,
            500,
            "cannot remove protected volume 'backup/x' on 'local'",
            K::Protected,
            No,
            "protection",
        ),
        (
            V::RestoreFull,
            500,
            "unable to restore VM 100 - vm is running",
            K::Conflict,
            No,
            "Shut it down",
        ),
        (
            V::Full,
            500,
            "storage 'local' does not exist",
            K::BackendFailed,
            No,
            "storage",
        ),
        (
            V::RollBack,
            595,
            "No route to host",
            K::Unavailable,
            No,
            "later",
        ),
        (
            V::Snapshot,
            596,
            "Connection timed out",
            K::Unavailable,
            May,
            "in time",
        ),
        (
            V::RestoreFull,
            599,
            "invalid answer",
            K::Unavailable,
            May,
            "in time",
        ),
        (
            V::RollBack,
            504,
            "Gateway Time-out",
            K::Unavailable,
            May,
            "in time",
        ),
        (
            V::Snapshot,
            500,
            "cluster not ready - no quorum?",
            K::Unavailable,
            No,
            "quorum",
        ),
        (
            V::RollBack,
            500,
            "Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist",
            K::Busy,
            No,
            "moving",
        ),
        (
            V::Delete,
            503,
            "Service Unavailable",
            K::Unavailable,
            May,
            "in time",
        ),
    ]
};

/// How a task ends, and what the caller sees.
const TASKS: &[Row] = &{
    use Effect::Possible as May;
    use FaultKind as K;
    use RefusedCall as V;
    [
        (
            V::Snapshot,
            0,
            "VM is locked (backup)",
            K::Conflict,
            May,
            "qm unlock",
        ),
        (
            V::Snapshot,
            0,
            "snapshot name 'snapgate-9' already used",
            K::Conflict,
            May,
            "again",
        ),
        (
            V::Snapshot,
            0,
            "snapshot feature is not available",
            K::Unsupported,
            May,
            "`full`",
        ),
        (
            V::Snapshot,
            0,
            "lvcreate snapshot error: out of space",
            K::StorageFull,
            May,
            "Free",
        ),
        (
            V::Snapshot,
            0,
            "qemu-img: No space left on device",
            K::StorageFull,
            May,
            "Free",
        ),
        (
            V::Snapshot,
            0,
            "qemu-img: Disk quota exceeded",
            K::StorageFull,
            May,
            "Free",
        ),
        (
            V::Snapshot,
            0,
            "can't lock file '/x' - got timeout",
            K::Busy,
            May,
            "later",
        ),
        (V::Full, 0, "job errors", K::BackendFailed, May, "failed"),
        (
            V::Full,
            0,
            "No space left on device",
            K::StorageFull,
            May,
            "Free",
        ),
        (
            V::Delete,
            0,
            "VM is locked (snapshot-delete)",
            K::Conflict,
            May,
            "qm unlock",
        ),
        (
            V::Delete,
            0,
            "snapshot 'snapgate-2' does not exist",
            K::NoSuchBackup,
            May,
            "List",
        ),
        (
            V::RollBack,
            0,
            "VM is locked (rollback)",
            K::Conflict,
            May,
            "qm unlock",
        ),
        (
            V::RollBack,
            0,
            "unable to rollback to incomplete snapshot (snapstate = prepare)",
            K::NotReady,
            May,
            "Delete",
        ),
        (
            V::RollBack,
            0,
            "can't rollback, 's' is not most recent snapshot on 'tank/vm-100-disk-0'",
            K::Conflict,
            May,
            "newer",
        ),
        (
            V::RollBack,
            0,
            "something that no version says",
            K::BackendFailed,
            May,
            "failed",
        ),
        (
            V::RestoreFull,
            0,
            "command 'vma extract' failed - corrupted?",
            K::Damaged,
            May,
            "another backup",
        ),
        (
            V::RestoreFull,
            0,
            "unable to restore VM 100 - vm is running",
            K::Conflict,
            May,
            "Shut it down",
        ),
        (
            V::RestoreFull,
            0,
            "Permission check failed (/storage/x, Datastore.AllocateSpace)",
            K::BackendDenied,
            May,
            "rights",
        ),
        (
            V::RestoreFull,
            0,
            "unable to restore VM 100 - - protection mode enabled",
            K::Conflict,
            May,
            "protection",
        ),
        (
            V::RestoreFull,
            0,
            "write failed: No space left on device",
            K::StorageFull,
            May,
            "Free",
        ),
    ]
};

#[apply(test)]
async fn what_the_server_refuses_is_refused_with_a_remedy_and_changes_nothing() {
    let lab = ProxmoxServer::new();
    let (adapter, backups) = (lab.adapter(), prepare(&lab).await);
    let guest = lab.guest();
    for (verb, status, text, kind, effect, words) in CALLS {
        let (method, path) = verb.call();
        let refusal = json!({"method": method, "path": path, "status": status, "text": text});
        fs::write(lab.path("refuse.json"), refusal.to_string()).unwrap();
        let error = begun(&adapter, &backups.intent(*verb), 9).await;
        fs::remove_file(lab.path("refuse.json")).unwrap();
        let error = error.expect_err(text);
        let found = (error.fault.kind, error.effect);
        assert_eq!(found, (*kind, *effect), "{verb:?}, {text}: {error:?}");
        assert!(error.fault.text.contains(words), "{text}: {error:?}");
        assert!(
            !error.fault.text.contains("/vms"),
            "no native text: {error:?}"
        );
        assert!(error.private().contains(text), "for the log: {error:?}");
        assert_eq!(lab.guest(), guest, "{verb:?}, {text}: unchanged");
    }
    assert_eq!((lab.byte(0), lab.byte(1)), (2, 2), "no disk was touched");
}

#[apply(test)]
async fn a_task_that_fails_says_why_and_what_the_guest_is_now() {
    let lab = ProxmoxServer::new();
    let (adapter, backups) = (lab.adapter(), prepare(&lab).await);
    let guest = lab.guest();
    for (verb, _, text, kind, _, words) in TASKS {
        fs::write(lab.path("fail"), text).unwrap();
        let fault = run(&adapter, &backups.intent(*verb), 9).await;
        fs::remove_file(lab.path("fail")).unwrap();
        let fault = fault.expect_err(text);
        assert_eq!(fault.kind, *kind, "{verb:?}, {text}: {fault:?}");
        assert!(fault.text.contains(words), "{text}: {fault:?}");
        assert!(
            fault.text.contains("The VM is off and is not locked."),
            "{text}: {fault:?}"
        );
        // A real server cleans up nothing after a failed restore from an archive, and unlocks the guest.
        let is_refusal = matches!(kind, FaultKind::Conflict | FaultKind::Busy);
        assert_eq!(
            fault.text.contains("partly replaced"),
            matches!(verb, RefusedCall::RestoreFull) && !is_refusal,
            "{text}: {fault:?}"
        );
        assert_eq!(lab.guest(), guest, "{verb:?}, {text}: unchanged");
    }
    assert_eq!((lab.byte(0), lab.byte(1)), (2, 2), "no disk was touched");
}
