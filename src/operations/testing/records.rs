//! Records and requests for tests.

use std::time::Duration;

use crate::model::Action;
use crate::model::ActionSet;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupKind;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::Identity;
use crate::model::IgnoredMembers;
use crate::model::Intent;
use crate::model::NewBackup;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Patch;
use crate::model::Permit;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::RequestId;
use crate::model::RestoreOptions;
use crate::model::Target;
use crate::model::TaskRef;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::Origin;
use crate::operations::api::KnownChanges;
use crate::operations::api::Submission;
use crate::runtime::Clock as _;
use crate::runtime::SystemClock;

/// 2026-11-24T01:02:03Z.
pub(in crate::operations) const NOW: Timestamp = Timestamp::from_millis(1_795_482_123_000);
/// How long a test waits for a condition before it fails.
pub(in crate::operations) const TEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(in crate::operations) fn target(vm: &str, backup: &str) -> Target {
    Target {
        vm: VmId::new(vm).unwrap(),
        backup: BackupId::new(backup).unwrap(),
    }
}

pub(in crate::operations) fn restore(vm: &str, backup: &str) -> Intent {
    Intent {
        target: target(vm, backup),
        identity: Some(Identity::new("1".to_owned())),
        change: Change::Restore(RestoreOptions::default()),
    }
}

pub(in crate::operations) fn delete(vm: &str, backup: &str) -> Intent {
    Intent {
        change: Change::Delete,
        ..restore(vm, backup)
    }
}

pub(in crate::operations) fn backend(name: &str) -> BackendName {
    BackendName::new(name).unwrap()
}

pub(in crate::operations) fn idempotency(key: &str, fingerprint: u8) -> Idempotency {
    Idempotency {
        key: IdempotencyKey::new(key).unwrap(),
        fingerprint: Fingerprint([fingerprint; 32]),
    }
}

pub(in crate::operations) fn update(vm: &str, backup: &str) -> Intent {
    let patch = BackupPatch {
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    Intent {
        change: Change::Update(patch),
        ..restore(vm, backup)
    }
}

/// A new record of a restore, on the backend `one`, of the principal `ada`.
pub(in crate::operations) fn operation(seq: u64, vm: &str, backup: &str) -> Operation {
    Operation::accepted(
        OperationSeq::new(seq).unwrap(),
        PrincipalName::new("ada").unwrap(),
        RequestId::new("r-1").unwrap(),
        backend("one"),
        restore(vm, backup),
        NOW,
    )
}

pub(in crate::operations) fn task_ref(text: &str) -> TaskRef {
    TaskRef::new(text.to_owned()).unwrap()
}

pub(in crate::operations) fn new_backup(name: &str) -> NewBackup {
    NewBackup {
        name: BackupName::new(name).unwrap(),
        description: None,
        kind: None,
        tags: Vec::new(),
        protected: false,
    }
}

pub(in crate::operations) fn backup(id: &str) -> Backup {
    Backup {
        id: BackupId::new(id).unwrap(),
        identity: Identity::new("1".to_owned()),
        name: BackupName::new("n").unwrap(),
        description: None,
        kind: Some(BackupKind::Snapshot),
        created: NOW,
        tags: Vec::new(),
        state: BackupState::Available,
        size: None,
        protected: false,
    }
}

/// A permit for every action on the target of the intent.
pub(in crate::operations) fn permit(intent: &Intent, on_backend: &str) -> Permit {
    let actions = [
        Action::Create,
        Action::Update,
        Action::Protect,
        Action::Delete,
        Action::Restore,
    ];
    let principal = Principal {
        name: PrincipalName::new("ada").unwrap(),
        groups: Vec::new(),
    };
    // Only the gate may issue permits, and a test searches the code for other calls; this one plays the gate.
    type TestPermit = Permit;
    TestPermit::issue(
        principal,
        ActionSet::from_iter(actions),
        backend(on_backend),
        intent.target.clone(),
    )
}

pub(in crate::operations) fn submission(seq: OperationSeq, intent: Intent) -> Submission {
    Submission {
        seq,
        intent,
        preconditions: Vec::new(),
        known_changes: KnownChanges::default(),
        request: RequestId::new("r-1").unwrap(),
        note: None,
        idempotency: None,
        ignored: IgnoredMembers::default(),
        origin: Origin::default(),
    }
}

pub(in crate::operations) fn test_deadline() -> Deadline {
    SystemClock.deadline(TEST_TIMEOUT)
}
