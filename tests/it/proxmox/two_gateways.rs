//! Two gateways, each with a token of its own, and a person work on one guest: none takes a task of another for its own.

use snapgate::adapters::adapter::*;
use snapgate::adapters::proxmox::Proxmox;
use snapgate::model::*;

use crate::proxmox::ProxmoxServer;
use crate::proxmox::failures::about;
use crate::proxmox::failures::begun;
use crate::proxmox::failures::by;
use crate::proxmox::failures::create;
use crate::proxmox::failures::end;
use crate::proxmox::failures::key;
use crate::proxmox::failures::restore;
use crate::proxmox::failures::run;
use crate::proxmox::failures::vm;

/// The same intent on another guest than 100.
pub(crate) fn on(guest: u32, intent: Intent) -> Intent {
    let target = Target {
        vm: vm(&guest.to_string()),
        ..intent.target
    };
    Intent { target, ..intent }
}

/// A new backup of a guest.
pub(crate) async fn made_on(
    adapter: &Proxmox,
    guest: u32,
    number: u64,
    kind: BackupKind,
) -> Backup {
    let intent = on(guest, create(number, kind));
    assert_eq!(run(adapter, &intent, number).await, Ok(()), "made");
    adapter.read_backup(&intent.target, by()).await.unwrap()
}

/// The guests, and for each the token of the other gateway.
const GUESTS: [(u32, &str); 2] = [(100, "token_2"), (200, "token_ct_2")];

/// The outcome of a request of which only the baseline is known, as after a crash of its gateway.
async fn outcome(
    adapter: &Proxmox,
    intent: &Intent,
    number: u64,
    baseline: Option<&Evidence>,
) -> FindOutcome {
    adapter
        .find_outcome(intent, key(number), baseline, by())
        .await
        .unwrap()
}

#[apply(test)]
async fn a_request_that_was_not_sent_is_not_begun_whatever_others_begin() {
    for (guest, others_token) in GUESTS {
        let lab = ProxmoxServer::of_guest(guest);
        let one = lab.adapter();
        lab.write(1);
        let backup = made_on(&one, guest, 1, BackupKind::Snapshot).await;
        // Another gateway, and a person with a token: each makes tasks of the types that the first one looks for.
        for (name, token) in [("another gateway", others_token), ("a person", "token_all")] {
            let other = lab.adapter_with(token);
            let intents = [
                (20, create(20, BackupKind::Snapshot)),
                (21, create(21, BackupKind::Full)),
                (22, restore(&backup, &[])),
            ];
            for (number, intent) in intents {
                let intent = on(guest, intent);
                let baseline = one.baseline(&intent, key(number), by()).await.unwrap();
                let theirs = match &intent.change {
                    Change::Create(new) => on(guest, create(number + 10, new.kind.unwrap())),
                    Change::Update(_) | Change::Delete | Change::Restore(_) => intent.clone(),
                };
                let ended = run(&other, &theirs, number + 10).await;
                assert_eq!(ended, Ok(()), "{guest}: {name}");
                let found = outcome(&one, &intent, number, baseline.as_ref()).await;
                assert!(
                    matches!(found, FindOutcome::NotBegun),
                    "{guest}: {name}, {number}: {found:?}"
                );
            }
            let all = Page {
                after: None,
                limit: 50,
            };
            let listed = one.list_backups(&vm(&guest.to_string()), &all, by()).await;
            let listed = listed.unwrap().backups;
            for theirs in listed.iter().filter(|found| found.id != backup.id) {
                let delete = on(guest, about(theirs, Change::Delete));
                assert_eq!(run(&other, &delete, 40).await, Ok(()), "{name}: cleared");
            }
        }
        assert_eq!((lab.byte(0), lab.byte(1)), (1, 1), "restored by both");
    }
}

#[apply(test)]
async fn of_two_gateways_at_once_one_sees_the_lock_and_each_finds_its_own_task() {
    for (guest, others_token) in GUESTS {
        let lab = ProxmoxServer::of_guest(guest);
        let (one, two) = (lab.adapter(), lab.adapter_with(others_token));
        let (first, second) = (
            on(guest, create(1, BackupKind::Snapshot)),
            on(guest, create(2, BackupKind::Snapshot)),
        );
        let baseline_one = one.baseline(&first, key(1), by()).await.unwrap();
        let baseline_two = two.baseline(&second, key(2), by()).await.unwrap();
        lab.hold();
        let begun_one = one
            .begin(&first, key(1), baseline_one.as_ref(), by())
            .await
            .unwrap();
        lab.wait_until_held();
        let refused = begun(&two, &second, 2).await.expect_err("locked");
        assert_eq!(refused.fault.kind, FaultKind::Conflict, "{refused:?}");
        assert_eq!(refused.effect, Effect::None, "{refused:?}");
        let found = outcome(&two, &second, 2, baseline_two.as_ref()).await;
        assert!(
            matches!(found, FindOutcome::NotBegun),
            "the second gateway: {found:?}"
        );
        let found = outcome(&one, &first, 1, baseline_one.as_ref()).await;
        let BeginOutcome::Task(task) = &begun_one else {
            panic!("{begun_one:?}")
        };
        assert!(
            matches!(&found, FindOutcome::Task(found) if *found == *task),
            "the first gateway: {found:?}"
        );
        lab.release();
        let state = end(&one, begun_one).await;
        assert!(matches!(state, TaskState::Done(_)), "{state:?}");
        assert_eq!(run(&two, &second, 2).await, Ok(()), "{guest}: afterwards");
    }
}
