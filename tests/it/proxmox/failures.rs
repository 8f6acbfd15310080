//! What the adapter for Proxmox VE refuses, and what it says after a worker, a server or an answer was lost.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use snapgate::adapters::adapter::*;
use snapgate::adapters::proxmox::Config;
use snapgate::adapters::proxmox::ConfigError;
use snapgate::adapters::proxmox::NodeTrust;
use snapgate::adapters::proxmox::Proxmox;
use snapgate::model::*;
use snapgate::runtime::{Clock, SystemClock};

use crate::conformance::begin_as_planned;
use crate::proxmox::ProxmoxServer;

pub(crate) fn by() -> Deadline {
    SystemClock.deadline(Duration::from_secs(60))
}

pub(crate) fn vm(id: &str) -> VmId {
    VmId::new(id).unwrap()
}

pub(crate) fn key(number: u64) -> RequestKey {
    RequestKey(OperationSeq::new(number).unwrap())
}

pub(crate) fn target(number: u64) -> Target {
    Target {
        vm: vm("100"),
        backup: BackupId::new(&key(number).to_string()).unwrap(),
    }
}

pub(crate) fn create(number: u64, kind: BackupKind) -> Intent {
    Intent {
        target: target(number),
        identity: None,
        change: Change::Create(NewBackup {
            name: BackupName::new(&format!("{{{{name}}}} {number}")).unwrap(),
            description: Some(Description::new("first\n{{vmid}} back\\slash").unwrap()),
            kind: Some(kind),
            tags: vec![Tag::new("n\u{e4}chtlich").unwrap()],
            protected: false,
        }),
    }
}

pub(crate) fn about(backup: &Backup, change: Change) -> Intent {
    Intent {
        target: Target {
            vm: vm("100"),
            backup: backup.id.clone(),
        },
        identity: Some(backup.identity.clone()),
        change,
    }
}

pub(crate) fn restore(backup: &Backup, options: &[(&str, &str)]) -> Intent {
    let pairs = options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    about(backup, Change::Restore(RestoreOptions(pairs.collect())))
}

pub(crate) async fn begun(
    adapter: &Proxmox,
    intent: &Intent,
    number: u64,
) -> Result<BeginOutcome, AdapterError> {
    let before = adapter.baseline(intent, key(number), by()).await?;
    begin_as_planned(adapter, intent, key(number), before.as_ref(), by()).await
}

/// The end of a task.
pub(crate) async fn end(adapter: &Proxmox, begun: BeginOutcome) -> TaskState {
    let BeginOutcome::Task(task) = begun else {
        return TaskState::Done(None);
    };
    let until = SystemClock.instant() + Duration::from_secs(60);
    while SystemClock.instant() < until {
        match adapter.poll(&task, by()).await.unwrap() {
            TaskState::Running(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            state @ (TaskState::Done(_)
            | TaskState::Failed(_)
            | TaskState::Cancelled
            | TaskState::Gone) => return state,
        }
    }
    panic!("{task:?} does not end");
}

pub(crate) async fn run(adapter: &Proxmox, intent: &Intent, number: u64) -> Result<(), Fault> {
    let begun = begun(adapter, intent, number)
        .await
        .map_err(|error| error.fault)?;
    match end(adapter, begun).await {
        TaskState::Done(_) => Ok(()),
        TaskState::Failed(fault) => Err(fault),
        state @ (TaskState::Running(_) | TaskState::Cancelled | TaskState::Gone) => {
            panic!("{state:?}")
        }
    }
}

pub(crate) async fn made(adapter: &Proxmox, number: u64, kind: BackupKind) -> Backup {
    run(adapter, &create(number, kind), number).await.unwrap();
    adapter.read_backup(&target(number), by()).await.unwrap()
}

/// The settings of every refusal: what is done to the guest before, the intent, and the expected fault.
#[apply(test)]
async fn preconditions_are_tested_before_a_task_is_begun() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    lab.write(1);
    let full = made(&adapter, 1, BackupKind::Full).await;
    let snapshot = made(&adapter, 2, BackupKind::Snapshot).await;
    lab.write(2);
    let tasks = || fs::read_to_string(lab.path("tasks/index")).unwrap();
    let nothing = |_: &mut Value| {};
    type Set = fn(&mut Value);
    let rows: [(&str, Set, Intent, FaultKind, &str); 12] = [
        (
            "a running VM, full",
            |guest| guest["running"] = json!(true),
            restore(&full, &[]),
            FaultKind::Conflict,
            "Shut it down",
        ),
        (
            "snapshots that would go",
            nothing,
            restore(&full, &[]),
            FaultKind::Conflict,
            "discard_snapshots",
        ),
        (
            "a locked VM, restore",
            |guest| guest["config"]["lock"] = json!("backup"),
            restore(&snapshot, &[]),
            FaultKind::Conflict,
            "qm unlock 100",
        ),
        (
            "a locked VM, create",
            |guest| guest["config"]["lock"] = json!("rollback"),
            create(3, BackupKind::Snapshot),
            FaultKind::Conflict,
            "qm unlock 100",
        ),
        (
            "a locked VM, delete",
            |guest| guest["config"]["lock"] = json!("snapshot"),
            about(&snapshot, Change::Delete),
            FaultKind::Conflict,
            "qm unlock 100",
        ),
        (
            "an unknown option",
            nothing,
            restore(&snapshot, &[("force", "1")]),
            FaultKind::Invalid,
            "restore option",
        ),
        (
            "a bad after_restore",
            nothing,
            restore(&snapshot, &[("after_restore", "paused")]),
            FaultKind::Invalid,
            "as-before",
        ),
        (
            "a storage for a snapshot",
            nothing,
            restore(&snapshot, &[("storage", "local")]),
            FaultKind::Invalid,
            "full backups",
        ),
        (
            "an incomplete snapshot",
            |guest| guest["snapshots"]["snapgate-2"]["snapstate"] = json!("prepare"),
            restore(&snapshot, &[]),
            FaultKind::NotReady,
            "incomplete",
        ),
        (
            "another one of the same name",
            |guest| guest["snapshots"]["snapgate-2"]["snaptime"] = json!(1),
            restore(&snapshot, &[]),
            FaultKind::NoSuchBackup,
            "replaced",
        ),
        (
            "a kind that is not made",
            nothing,
            create(3, BackupKind::Incremental),
            FaultKind::Unsupported,
            "`full`",
        ),
        (
            "an id that is used",
            nothing,
            create(2, BackupKind::Snapshot),
            FaultKind::Conflict,
            "this id",
        ),
    ];
    let before = lab.guest();
    for (name, set, intent, kind, words) in rows {
        lab.change_guest(set);
        let changed = lab.guest();
        let begun_before = tasks();
        let error = begun(&adapter, &intent, 9).await.expect_err(name);
        assert_eq!(error.fault.kind, kind, "{name}: {error:?}");
        assert_eq!(error.effect, Effect::None, "{name}");
        assert!(
            error.fault.text.contains(words),
            "{name}: {}",
            error.fault.text
        );
        assert_eq!(tasks(), begun_before, "{name}: no task was begun");
        assert_eq!(lab.guest(), changed, "{name}: nothing was changed");
        lab.change_guest(|guest| *guest = before.clone());
    }
    assert_eq!((lab.byte(0), lab.byte(1)), (2, 2), "no disk was touched");
    let allowed = restore(&full, &[("discard_snapshots", "true")]);
    assert_eq!(run(&adapter, &allowed, 10).await, Ok(()), "with the option");
    assert_eq!((lab.byte(0), lab.byte(1)), (1, 1), "restored");
}

#[apply(test)]
async fn protection_is_native_for_full_backups_and_kept_in_the_description_of_snapshots() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    for (number, kind) in [(1, BackupKind::Full), (2, BackupKind::Snapshot)] {
        let backup = made(&adapter, number, kind).await;
        // A backup job would replace the variable, so it is written with a blank of no width in archives.
        let written = match kind {
            BackupKind::Full => "first\n{\u{200b}{vmid}} back\\slash",
            BackupKind::Snapshot | BackupKind::Incremental => "first\n{{vmid}} back\\slash",
        };
        let description = backup.description.as_ref().map(ToString::to_string);
        assert_eq!(description.as_deref(), Some(written), "{kind:?}");
        let patch = |protected| {
            about(
                &backup,
                Change::Update(BackupPatch {
                    protected: Patch::Set(protected),
                    ..BackupPatch::default()
                }),
            )
        };
        run(&adapter, &patch(true), 10 + number).await.unwrap();
        let protected = adapter.read_backup(&target(number), by()).await.unwrap();
        assert!(protected.protected, "{kind:?}");
        assert_eq!(
            protected.identity, backup.identity,
            "{kind:?}: the same backup"
        );
        assert_eq!(
            (protected.name, protected.tags),
            (backup.name.clone(), backup.tags.clone()),
            "{kind:?}"
        );
        let refused = run(&adapter, &about(&backup, Change::Delete), 20 + number)
            .await
            .unwrap_err();
        assert_eq!(refused.kind, FaultKind::Protected, "{kind:?}: {refused:?}");
        run(&adapter, &patch(false), 30 + number).await.unwrap();
        run(&adapter, &about(&backup, Change::Delete), 40 + number)
            .await
            .unwrap();
        let gone = adapter
            .read_backup(&target(number), by())
            .await
            .unwrap_err();
        assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "{kind:?}");
    }
}

#[apply(test)]
async fn backups_of_others_are_listed_and_what_they_wrote_stays() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    lab.change_guest(|guest| {
        guest["snapshots"]["before_upgrade"] =
            json!({"snaptime": 1_700_000_000, "description": "by hand\n", "name": "web100"});
    });
    let full = made(&adapter, 1, BackupKind::Full).await;
    let page = Page {
        after: None,
        limit: 10,
    };
    let listed = adapter.list_backups(&vm("100"), &page, by()).await.unwrap();
    let shown: Vec<_> = listed
        .backups
        .iter()
        .map(|backup| (backup.id.as_str(), backup.kind))
        .collect();
    assert_eq!(
        shown,
        [
            ("before_upgrade", Some(BackupKind::Snapshot)),
            ("snapgate-1", Some(BackupKind::Full))
        ]
    );
    assert_eq!(
        listed.backups[1], full,
        "the list and a single backup agree"
    );
    let other = &listed.backups[0];
    let patch = BackupPatch {
        tags: Patch::Set(vec![Tag::new("keep").unwrap()]),
        ..BackupPatch::default()
    };
    run(&adapter, &about(other, Change::Update(patch)), 2)
        .await
        .unwrap();
    let text = lab.guest()["snapshots"]["before_upgrade"]["description"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(text.starts_with("by hand\n\n[snapgate] "), "{text}");
    let read = adapter
        .read_backup(
            &Target {
                vm: vm("100"),
                backup: other.id.clone(),
            },
            by(),
        )
        .await
        .unwrap();
    assert_eq!(read.tags.len(), 1);
    assert_eq!(read.description.unwrap().to_string(), "by hand");
}

/// Held in the middle, then the worker is killed: what is reported, and nothing more than what is true.
#[apply(test)]
async fn a_worker_that_was_killed_leaves_a_lock_and_the_status_names_the_remedy() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    lab.write(1);
    let base = made(&adapter, 1, BackupKind::Snapshot).await;
    lab.write(2);
    let rows = [
        ("create", create(2, BackupKind::Snapshot)),
        ("delete", about(&base, Change::Delete)),
        ("restore", restore(&base, &[])),
    ];
    for (number, (name, intent)) in (2..).zip(rows) {
        lab.hold();
        let before = adapter.baseline(&intent, key(number), by()).await.unwrap();
        let begun = adapter
            .begin(&intent, key(number), before.as_ref(), by())
            .await
            .unwrap();
        lab.wait_until_held();
        let found = adapter
            .find_outcome(&intent, key(number), before.as_ref(), by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::Task(_)),
            "{name}: it runs: {found:?}"
        );
        lab.kill_worker();
        lab.release();
        let state = end(&adapter, begun).await;
        assert!(matches!(state, TaskState::Gone), "{name}: {state:?}");
        let found = adapter
            .find_outcome(&intent, key(number), before.as_ref(), by())
            .await
            .unwrap();
        let FindOutcome::Failed(fault) = found else {
            panic!("{name}: {found:?}");
        };
        assert!(
            fault.text.contains("qm unlock 100"),
            "{name}: {}",
            fault.text
        );
        lab.unlock();
        // What was left can be removed, and the VM can be restored, as soon as the lock is gone.
        lab.change_guest(|guest| {
            let snapshots = guest["snapshots"].as_object_mut().unwrap();
            snapshots.remove("snapgate-2");
            snapshots["snapgate-1"]
                .as_object_mut()
                .unwrap()
                .remove("snapstate");
        });
        assert_eq!(
            run(&adapter, &restore(&base, &[]), number + 10).await,
            Ok(()),
            "{name}"
        );
        assert_eq!((lab.byte(0), lab.byte(1)), (1, 1), "{name}");
        lab.write(2);
    }
}

#[apply(test)]
async fn a_create_is_cancelled_cleanly_and_a_restore_is_not() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    let base = made(&adapter, 1, BackupKind::Snapshot).await;
    lab.hold();
    let BeginOutcome::Task(task) = begun(&adapter, &create(2, BackupKind::Snapshot), 2)
        .await
        .unwrap()
    else {
        panic!("a task");
    };
    lab.wait_until_held();
    adapter.cancel(&task, by()).await.unwrap();
    lab.release();
    let state = end(&adapter, BeginOutcome::Task(task)).await;
    assert!(matches!(state, TaskState::Cancelled), "{state:?}");
    assert_eq!(
        lab.guest()["config"]["lock"],
        Value::Null,
        "no lock is left"
    );
    assert_eq!(
        lab.guest()["snapshots"]["snapgate-2"],
        Value::Null,
        "nothing is left"
    );
    let BeginOutcome::Task(task) = begun(&adapter, &restore(&base, &[]), 3).await.unwrap() else {
        panic!("a task");
    };
    let refused = adapter.cancel(&task, by()).await.unwrap_err();
    assert_eq!(refused.fault.kind, FaultKind::Unsupported);
}

#[apply(test)]
async fn a_server_that_was_killed_goes_on_with_its_tasks_and_is_asked_again() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    lab.write(1);
    let base = made(&adapter, 1, BackupKind::Snapshot).await;
    lab.write(2);
    lab.hold();
    let intent = restore(&base, &[]);
    let before = adapter.baseline(&intent, key(2), by()).await.unwrap();
    let BeginOutcome::Task(task) = adapter
        .begin(&intent, key(2), before.as_ref(), by())
        .await
        .unwrap()
    else {
        panic!("a task");
    };
    lab.wait_until_held();
    lab.run(&["kill"], &[]);
    let error = adapter.poll(&task, by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::Unavailable, "{error:?}");
    let error = adapter
        .list_backups(
            &vm("100"),
            &Page {
                after: None,
                limit: 1,
            },
            by(),
        )
        .await
        .unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::Unavailable,
        "never an empty list"
    );
    lab.release();
    lab.run(&["start"], &[]);
    let state = end(&adapter, BeginOutcome::Task(task)).await;
    assert!(matches!(state, TaskState::Done(_)), "{state:?}");
    assert_eq!((lab.byte(0), lab.byte(1)), (1, 1), "restored once");
    let found = adapter
        .find_outcome(&intent, key(2), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::Done(_)), "{found:?}");
}

#[apply(test)]
async fn a_guest_that_migrated_is_found_on_its_new_node_and_its_task_on_the_old_one() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    let base = made(&adapter, 1, BackupKind::Snapshot).await;
    let intent = restore(&base, &[]);
    let before = adapter.baseline(&intent, key(2), by()).await.unwrap();
    let begun = adapter
        .begin(&intent, key(2), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(end(&adapter, begun).await, TaskState::Done(_)));
    lab.change_guest(|guest| guest["node"] = json!("pve2"));
    let found = adapter
        .find_outcome(&intent, key(2), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::Done(_)), "{found:?}");
    assert_eq!(
        run(&adapter, &restore(&base, &[]), 3).await,
        Ok(()),
        "on the new node"
    );
}

#[apply(test)]
async fn errors_of_tokens_certificates_and_rights_are_distinguished() {
    let lab = ProxmoxServer::new();
    let adapter = |change: fn(&mut Config)| {
        let mut config = lab.config();
        change(&mut config);
        Proxmox::new(config)
    };
    let wrong =
        adapter(|config| config.token = Secret::new("gate@pve!t1=0000".to_owned())).unwrap();
    let error = wrong.health(by()).await.unwrap_err();
    assert_eq!(error.fault.kind, FaultKind::BackendDenied, "{error:?}");
    let pinned =
        adapter(|config| config.trust = NodeTrust::Fingerprints(vec!["00".repeat(32)])).unwrap();
    let error = pinned.health(by()).await.unwrap_err();
    assert!(error.fault.text.contains("certificate"), "{error:?}");
    // The token sees VM 100 alone; the other one does not exist for it.
    let plain = adapter(|_| ()).unwrap();
    for id in ["101", "999", "abc"] {
        let error = plain.read_vm(&vm(id), by()).await.unwrap_err();
        assert_eq!(error.fault.kind, FaultKind::NoSuchVm, "{id}: {error:?}");
    }
    let dead = adapter(|config| {
        config.nodes.insert(0, "127.0.0.1:1".to_owned());
        if let NodeTrust::Fingerprints(pins) = &mut config.trust {
            let pin = pins[0].clone();
            pins.push(pin);
        }
    })
    .unwrap();
    assert_eq!(
        dead.read_vm(&vm("100"), by()).await.unwrap().name,
        "web100",
        "the next node answers"
    );
    assert_eq!(
        run(&dead, &create(5, BackupKind::Snapshot), 5).await,
        Ok(()),
        "changes too"
    );
    for token in ["", "gate@pve=x", "gate!t1=x", "gate@pve!t1"] {
        let mut config = lab.config();
        config.token = Secret::new(token.to_owned());
        let refused = Proxmox::new(config).map(drop);
        assert!(
            matches!(refused, Err(ConfigError::Token)),
            "{token:?}: {refused:?}"
        );
    }
}

/// Every call that the other tests make is one that the vendor's schema knows, with parameters that it knows.
#[apply(test)]
async fn every_call_is_one_of_the_vendors_schema() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    lab.write(1);
    for (number, kind) in [(1, BackupKind::Full), (2, BackupKind::Snapshot)] {
        let backup = made(&adapter, number, kind).await;
        let patch = BackupPatch {
            protected: Patch::Set(false),
            name: Some(BackupName::new("other").unwrap()),
            ..BackupPatch::default()
        };
        run(
            &adapter,
            &about(&backup, Change::Update(patch)),
            10 + number,
        )
        .await
        .unwrap();
        let options: &[(&str, &str)] = if kind == BackupKind::Full {
            &[("storage", "local"), ("after_restore", "running")]
        } else {
            &[("after_restore", "running")]
        };
        run(&adapter, &restore(&backup, options), 20 + number)
            .await
            .unwrap();
        lab.change_guest(|guest| guest["running"] = json!(false));
        run(&adapter, &about(&backup, Change::Delete), 30 + number)
            .await
            .unwrap();
    }
    adapter.read_vm(&vm("100"), by()).await.unwrap();
    adapter.health(by()).await.unwrap();
    let used = check_calls(&lab);
    assert!(used.len() >= 15, "calls of every kind were made: {used:?}");
}

/// Holds every call that the server got to the vendor's schema; how often each method was called.
pub(crate) fn check_calls(lab: &ProxmoxServer) -> BTreeMap<String, usize> {
    let schema: BTreeMap<String, Value> =
        serde_json::from_str(include_str!("../../beds/proxmox-api.json")).unwrap();
    let calls = fs::read_to_string(lab.path("calls.jsonl")).unwrap();
    let mut used = BTreeMap::<String, usize>::new();
    for line in calls.lines() {
        let call: Value = serde_json::from_str(line).unwrap();
        let path = call["path"]
            .as_str()
            .unwrap()
            .strip_prefix("/api2/json")
            .unwrap();
        let name = template(&schema, call["method"].as_str().unwrap(), path);
        let properties = &schema[&name]["properties"];
        for (parameter, value) in call["parameters"].as_object().unwrap() {
            let rule = &properties[parameter];
            assert!(rule.is_object(), "{name} has no parameter {parameter}");
            assert!(
                fits(rule, value.as_str().unwrap()),
                "{name} {parameter}={value}: {rule}"
            );
        }
        let required = properties
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, rule)| rule["optional"].as_u64() != Some(1));
        for (parameter, _) in required {
            let is_in_path = name.contains(&format!("{{{parameter}}}"));
            assert!(
                is_in_path || call["parameters"][parameter].is_string(),
                "{name} lacks {parameter}"
            );
        }
        *used.entry(name).or_default() += 1;
    }
    used
}

/// The one method of the schema that a path is of.
fn template(schema: &BTreeMap<String, Value>, method: &str, path: &str) -> String {
    let fits = |name: &&String| {
        let Some(pattern) = name
            .strip_prefix(method)
            .and_then(|rest| rest.strip_prefix(' '))
        else {
            return false;
        };
        let (pattern, path): (Vec<&str>, Vec<&str>) =
            (pattern.split('/').collect(), path.split('/').collect());
        pattern.len() == path.len()
            && pattern
                .iter()
                .zip(path)
                .all(|(pattern, segment)| pattern.starts_with('{') || *pattern == segment)
    };
    let found = schema.keys().find(fits);
    found
        .unwrap_or_else(|| panic!("{method} {path} is not in the schema"))
        .clone()
}

fn fits(rule: &Value, value: &str) -> bool {
    let is_of_type = match rule["type"].as_str() {
        Some("integer") => value.parse::<i64>().is_ok(),
        Some("boolean") => matches!(value, "0" | "1"),
        Some(_) | None => true,
    };
    let is_listed = rule["enum"]
        .as_array()
        .is_none_or(|words| words.iter().any(|word| word == value));
    let is_short = rule["maxLength"]
        .as_u64()
        .is_none_or(|most| u64::try_from(value.len()).unwrap() <= most);
    is_of_type && is_listed && is_short
}
