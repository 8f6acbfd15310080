//! Backups as they are seen while operations on them are unfinished.

use super::House;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Page;
use crate::model::Phase;
use crate::model::VmId;
use crate::operations::OperationsApi;
use crate::operations::testing::Say;
use crate::operations::testing::backend;
use crate::operations::testing::delete;
use crate::operations::testing::new_backup;
use crate::operations::testing::soon;
use crate::operations::testing::target;

fn create(vm: &str, backup: &str) -> Intent {
    Intent {
        target: target(vm, backup),
        identity: None,
        change: Change::Create(new_backup("nightly")),
    }
}

#[tokio::test]
async fn backups_show_what_is_done_to_them() {
    let house = House::new().await;
    house.adapter.has(&["b", "d"]);
    let made = house.accept(create("vm", "c")).await;
    house.reaches(made, Phase::Running).await;
    let removed = house.accept(delete("vm", "d")).await;
    let page = Page {
        after: None,
        limit: 10,
    };
    let (one, vm) = (backend("one"), VmId::new("vm").unwrap());
    let list = house.room.backups(&one, &vm, &page, soon()).await.unwrap();
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
    let list = house
        .room
        .backups(&one, &other, &page, soon())
        .await
        .unwrap();
    assert_eq!(list.backups.len(), 2, "another VM has no part in it");
    let coming = house
        .room
        .backup(&one, &target("vm", "c"), soon())
        .await
        .unwrap();
    assert_eq!(coming.state, BackupState::Creating, "in the making");
    assert_eq!(coming.name.as_str(), "nightly", "with its name");
    assert_eq!(
        coming.identity.as_str(),
        "",
        "nobody knows its identity yet"
    );
    let going = house
        .room
        .backup(&one, &target("vm", "d"), soon())
        .await
        .unwrap();
    assert_eq!(going.state, BackupState::Deleting, "queued counts");
    house.adapter.has(&["b", "c"]);
    house.adapter.say("vm", Say::Done);
    house.end(removed).await;
    let there = house
        .room
        .backup(&one, &target("vm", "c"), soon())
        .await
        .unwrap();
    assert_eq!(there.state, BackupState::Available, "made");
    let gone = house
        .room
        .backup(&one, &target("vm", "d"), soon())
        .await
        .unwrap_err();
    assert_eq!(gone.kind, FaultKind::NoSuchBackup, "removed");
}

#[tokio::test]
async fn faults_are_told_without_native_words() {
    let house = House::new().await;
    let vm = VmId::new("vm").unwrap();
    let fault = house
        .room
        .vm(&backend("one"), &vm, soon())
        .await
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::NoSuchVm, "which kind");
    assert!(!fault.text.contains("native"), "public text only");
    let fault = house
        .room
        .vm(&backend("no"), &vm, soon())
        .await
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unavailable, "not configured");
    assert!(
        house.room.capability(&backend("no")).is_none(),
        "no such backend"
    );
    let able = house.room.capability(&backend("one")).unwrap();
    assert_eq!(able.kind, "scripted", "as the adapter says");
}
