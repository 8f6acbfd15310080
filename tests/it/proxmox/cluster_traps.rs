//! What a real cluster does that a simple stand-in would not: each trap as the vendor's sources and schema show it.

use std::fs;
use std::time::Duration;

use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::proxmox::Config;
use snapgate::adapters::proxmox::NodeTrust;
use snapgate::adapters::proxmox::Proxmox;
use snapgate::model::*;
use snapgate::runtime::Clock;
use snapgate::runtime::SystemClock;

use crate::proxmox::ProxmoxServer;
use crate::proxmox::failures::about;
use crate::proxmox::failures::begun;
use crate::proxmox::failures::by;
use crate::proxmox::failures::create;
use crate::proxmox::failures::end;
use crate::proxmox::failures::key;
use crate::proxmox::failures::made;
use crate::proxmox::failures::restore;
use crate::proxmox::failures::run;
use crate::proxmox::failures::vm;
use crate::proxmox::two_gateways::made_on;
use crate::proxmox::two_gateways::on;

fn all() -> Page {
    Page {
        after: None,
        limit: 50,
    }
}

/// The parameters of the newest call whose path ends so.
fn last_call(lab: &ProxmoxServer, method: &str, ending: &str) -> serde_json::Value {
    let calls = fs::read_to_string(lab.path("calls.jsonl")).unwrap();
    let calls = calls
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut fitting = calls.filter(|call| {
        call["method"] == method && call["path"].as_str().unwrap().ends_with(ending)
    });
    fitting.next_back().expect("such a call")["parameters"].clone()
}

#[apply(test)]
async fn a_backup_job_on_a_node_that_lost_the_guest_began_nothing() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    // The list of guests is older than the migration: the node answers `OK` instead of a task.
    let refusal = json!({"method": "POST", "path": "/vzdump$", "status": 200, "text": "OK"});
    fs::write(lab.path("refuse.json"), refusal.to_string()).unwrap();
    let error = begun(&adapter, &create(1, BackupKind::Full), 1)
        .await
        .unwrap_err();
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::Busy, Effect::None),
        "{error:?}"
    );
    assert!(error.fault.text.contains("another node"), "{error:?}");
    fs::remove_file(lab.path("refuse.json")).unwrap();
    assert_eq!(
        run(&adapter, &create(1, BackupKind::Full), 1).await,
        Ok(()),
        "afterwards"
    );
}

#[apply(test)]
async fn notes_that_a_backup_job_would_refuse_are_refused_before_it() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    let with_text = |number, length| {
        let mut intent = create(number, BackupKind::Full);
        if let Change::Create(new) = &mut intent.change {
            new.description = Some(Description::new(&"\u{e4}".repeat(length)).unwrap());
        }
        intent
    };
    let error = begun(&adapter, &with_text(1, 1000), 1).await.unwrap_err();
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::Invalid, Effect::None),
        "{error:?}"
    );
    assert!(error.fault.text.contains("of 1024 characters"), "{error:?}");
    assert_eq!(
        run(&adapter, &with_text(2, 700), 2).await,
        Ok(()),
        "a shorter one"
    );
    // An update has no such limit.
    let backup = adapter
        .read_backup(&crate::proxmox::failures::target(2), by())
        .await
        .unwrap();
    let long = Description::new(&"x".repeat(3000)).unwrap();
    let patch = BackupPatch {
        description: Patch::Set(long.clone()),
        ..BackupPatch::default()
    };
    assert_eq!(
        run(&adapter, &about(&backup, Change::Update(patch)), 3).await,
        Ok(()),
        "later"
    );
    let read = adapter
        .read_backup(&crate::proxmox::failures::target(2), by())
        .await
        .unwrap();
    assert_eq!(read.description, Some(long), "all of it");
}

#[apply(test)]
async fn an_archive_that_is_being_made_is_not_shown_by_any_storage() {
    let lab = ProxmoxServer::new();
    for storage in ["local", "pbs"] {
        let adapter = Proxmox::new(Config {
            storages: vec![storage.to_owned()],
            ..lab.config()
        })
        .unwrap();
        lab.hold();
        let begun = begun(&adapter, &create(1, BackupKind::Full), 1)
            .await
            .unwrap();
        lab.wait_until_held();
        let listed = adapter
            .list_backups(&vm("100"), &all(), by())
            .await
            .unwrap();
        assert!(listed.backups.is_empty(), "{storage}: {listed:?}");
        lab.release();
        assert!(
            matches!(end(&adapter, begun).await, TaskState::Done(None)),
            "{storage}"
        );
        let listed = adapter
            .list_backups(&vm("100"), &all(), by())
            .await
            .unwrap();
        assert_eq!(listed.backups.len(), 1, "{storage}: {listed:?}");
    }
}

#[apply(test)]
async fn a_container_is_restored_to_the_storage_that_it_is_on() {
    let lab = ProxmoxServer::of_guest(200);
    let adapter = lab.adapter();
    let storage_of = |key: &str| {
        let guest = lab.guest();
        let value = guest["config"][key].as_str().unwrap().to_owned();
        value.split(':').next().unwrap().to_owned()
    };
    let backup = made_on(&adapter, 200, 1, BackupKind::Full).await;
    let restored = on(200, restore(&backup, &[]));
    // Without a storage the server would put everything on `local`.
    lab.change_guest(|guest| {
        for key in ["rootfs", "mp0"] {
            let value = guest["config"][key]
                .as_str()
                .unwrap()
                .replace("local:", "pbs:");
            guest["config"][key] = json!(value);
        }
    });
    assert_eq!(run(&adapter, &restored, 2).await, Ok(()), "restored");
    assert_eq!(
        last_call(&lab, "POST", "/lxc")["storage"],
        "pbs",
        "it is named"
    );
    assert_eq!(
        (storage_of("rootfs"), storage_of("mp0")),
        ("pbs".to_owned(), "pbs".to_owned())
    );
    // Two storages would become one.
    lab.change_guest(|guest| {
        let value = guest["config"]["mp0"]
            .as_str()
            .unwrap()
            .replace("pbs:", "local:");
        guest["config"]["mp0"] = json!(value);
    });
    let error = begun(&adapter, &restored, 3).await.unwrap_err();
    assert_eq!(
        (error.fault.kind, error.effect),
        (FaultKind::Conflict, Effect::None),
        "{error:?}"
    );
    assert!(error.fault.text.contains("`storage`"), "{error:?}");
    let plan = adapter.preview(&restored, by()).await.unwrap();
    assert_eq!(plan.refused, [error.fault], "the plan says the same");
    let named = on(200, restore(&backup, &[("storage", "local")]));
    assert_eq!(run(&adapter, &named, 4).await, Ok(()), "as the caller says");
    assert_eq!(storage_of("rootfs"), "local");
}

#[apply(test)]
async fn a_lock_that_a_restore_left_before_its_task_is_no_proof_of_nothing() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    let full = made(&adapter, 1, BackupKind::Full).await;
    let intent = restore(&full, &[]);
    let before = adapter.baseline(&intent, key(2), by()).await.unwrap();
    let find = || adapter.find_outcome(&intent, key(2), before.as_ref(), by());
    assert!(
        matches!(find().await.unwrap(), FindOutcome::NotBegun),
        "nothing is there"
    );
    lab.change_guest(|guest| guest["config"]["lock"] = json!("create"));
    let found = find().await.unwrap();
    assert!(matches!(found, FindOutcome::NotYet), "{found:?}");
    lab.unlock();
    assert!(
        matches!(find().await.unwrap(), FindOutcome::NotBegun),
        "an operator unlocked it"
    );
}

#[apply(test)]
async fn a_removal_is_followed_as_a_task_so_that_its_failure_is_no_refusal() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    let full = made(&adapter, 1, BackupKind::Full).await;
    let begun = begun(&adapter, &about(&full, Change::Delete), 2)
        .await
        .unwrap();
    assert!(matches!(begun, BeginOutcome::Task(_)), "{begun:?}");
    assert!(matches!(end(&adapter, begun).await, TaskState::Done(None)));
    let calls = fs::read_to_string(lab.path("calls.jsonl")).unwrap();
    assert!(!calls.contains("\"delay\""), "the call does not wait");
}

/// One adapter whose nodes are two servers, of which the first refuses calls as `refuse` says.
fn two_nodes(first: &ProxmoxServer, second: &ProxmoxServer, refuse: &serde_json::Value) -> Proxmox {
    fs::write(first.path("refuse.json"), refuse.to_string()).unwrap();
    let (one, other) = (first.config(), second.config());
    let pins = [one.trust.clone(), other.trust.clone()].map(|trust| match trust {
        NodeTrust::Fingerprints(pins) => pins[0].clone(),
        NodeTrust::Authority(file) => panic!("{file:?}"),
    });
    Proxmox::new(Config {
        nodes: [one.nodes.clone(), other.nodes].concat(),
        trust: NodeTrust::Fingerprints(pins.to_vec()),
        ..one
    })
    .unwrap()
}

#[apply(test)]
async fn reads_and_provably_unbegun_changes_go_on_at_the_next_node() {
    let (first, second) = (ProxmoxServer::new(), ProxmoxServer::new());
    let tasks = |lab: &ProxmoxServer| fs::read_to_string(lab.path("tasks/index")).unwrap();
    for status in [595, 596, 503] {
        let refuse = json!({"method": "GET", "path": ".", "status": status, "text": "no"});
        let adapter = two_nodes(&first, &second, &refuse);
        let shown = adapter.read_vm(&vm("100"), by()).await.unwrap();
        assert_eq!(shown.name, "web100", "{status}: a read");
    }
    let refuse = json!({"method": "POST", "path": ".", "status": 595, "text": "No route to host"});
    let adapter = two_nodes(&first, &second, &refuse);
    let intent = create(1, BackupKind::Snapshot);
    let BeginOutcome::Task(_) = begun(&adapter, &intent, 1).await.unwrap() else {
        panic!("a task");
    };
    assert!(
        tasks(&first).is_empty() && tasks(&second).contains(":qmsnapshot:"),
        "595: at the second"
    );
    let before = tasks(&second);
    let refuse = json!({"method": "POST", "path": ".", "status": 596, "text": "timed out"});
    let adapter = two_nodes(&first, &second, &refuse);
    let error = begun(&adapter, &create(2, BackupKind::Snapshot), 2)
        .await
        .unwrap_err();
    assert_eq!(error.effect, Effect::Possible, "596: {error:?}");
    assert_eq!(tasks(&second), before, "596: not sent twice");
}

#[apply(test)]
async fn the_delay_of_a_failed_authentication_does_not_outlast_the_time_limit() {
    let lab = ProxmoxServer::new();
    let adapter = Proxmox::new(Config {
        token: Secret::new("gate@pve!t1=wrong".to_owned()),
        ..lab.config()
    })
    .unwrap();
    let begun = SystemClock.instant();
    let error = adapter
        .health(SystemClock.deadline(Duration::from_secs(1)))
        .await
        .unwrap_err();
    let took = SystemClock.instant() - begun;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(error.fault.kind, FaultKind::TimedOut, "{error:?}");
}
