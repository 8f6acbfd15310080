//! Backups as callers see them while operations on them are unfinished.

use super::Fixture;
use crate::model::BackupQuery;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Phase;
use crate::model::VmId;
use crate::operations::OperationsApi;
use crate::operations::testing::Reply;
use crate::operations::testing::backend;
use crate::operations::testing::delete;
use crate::operations::testing::new_backup;
use crate::operations::testing::target;
use crate::operations::testing::test_deadline;

fn create(vm: &str, backup: &str) -> Intent {
    Intent {
        target: target(vm, backup),
        identity: None,
        change: Change::Create(new_backup("nightly")),
    }
}

#[tokio::test]
async fn backups_show_the_states_of_unfinished_operations() {
    let fixture = Fixture::new().await;
    fixture.adapter.set_backup_ids(&["b", "d"]);
    let made = fixture.accept(create("vm", "c")).await;
    fixture.wait_for_phase(made, Phase::Running).await;
    let removed = fixture.accept(delete("vm", "d")).await;
    let page = BackupQuery::default();
    let (one, vm) = (backend("one"), VmId::new("vm").unwrap());
    let list = fixture
        .operations
        .backups(&one, &vm, &page, test_deadline())
        .await
        .unwrap();
    let states: Vec<_> = list
        .backups
        .iter()
        .map(|backup| (backup.id.as_str(), backup.state))
        .collect();
    let expected = [
        ("b", BackupState::Available),
        ("c", BackupState::Creating),
        ("d", BackupState::Deleting),
    ];
    assert_eq!(states, expected, "in order, with states");
    let other = VmId::new("wm").unwrap();
    let list = fixture
        .operations
        .backups(&one, &other, &page, test_deadline())
        .await
        .unwrap();
    assert_eq!(list.backups.len(), 2, "another VM has no part in it");
    let coming = fixture
        .operations
        .backup(&one, &target("vm", "c"), test_deadline())
        .await
        .unwrap();
    assert_eq!(coming.state, BackupState::Creating, "being created");
    assert_eq!(coming.name.as_str(), "nightly", "with its name");
    assert_eq!(
        coming.identity.as_str(),
        "",
        "its identity is not known yet"
    );
    let going = fixture
        .operations
        .backup(&one, &target("vm", "d"), test_deadline())
        .await
        .unwrap();
    assert_eq!(going.state, BackupState::Deleting, "queued counts");
    fixture.adapter.set_backup_ids(&["b", "c"]);
    fixture.adapter.set_task_reply("vm", Reply::Done);
    fixture.wait_for_end(removed).await;
    let there = fixture
        .operations
        .backup(&one, &target("vm", "c"), test_deadline())
        .await
        .unwrap();
    assert_eq!(there.state, BackupState::Available, "made");
    let gone = fixture
        .operations
        .backup(&one, &target("vm", "d"), test_deadline())
        .await
        .unwrap_err();
    assert_eq!(gone.kind, FaultKind::NoSuchBackup, "removed");
}

#[tokio::test]
async fn faults_have_no_words_of_the_vm_manager() {
    let fixture = Fixture::new().await;
    let vm = VmId::new("vm").unwrap();
    let fault = fixture
        .operations
        .vm(&backend("one"), &vm, test_deadline())
        .await
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::NoSuchVm, "which kind");
    assert!(!fault.text.contains("native"), "public text only");
    let fault = fixture
        .operations
        .vm(&backend("no"), &vm, test_deadline())
        .await
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unavailable, "not configured");
    assert!(
        fixture.operations.capability(&backend("no")).is_none(),
        "no such backend"
    );
    let able = fixture.operations.capability(&backend("one")).unwrap();
    assert_eq!(able.kind, "scripted", "as the adapter says");
}
