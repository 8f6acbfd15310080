//! What real daemons do when a change fails or would harm: vanished devices, storage that is not mounted, expiry.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::Effect;
use snapgate::adapters::adapter::TaskState;
use snapgate::adapters::incus::Incus;
use snapgate::model::Backup;
use snapgate::model::BackupPatch;
use snapgate::model::BackupState;
use snapgate::model::Change;
use snapgate::model::Fault;
use snapgate::model::FaultKind;
use snapgate::model::Intent;
use snapgate::model::Page;
use snapgate::model::Patch;
use snapgate::model::Target;
use snapgate::model::VmId;

use crate::conformance::begin_as_planned;
use crate::incus::Flavor;
use crate::incus::Lxd;
use crate::incus::Transport;
use crate::incus::begin;
use crate::incus::by;
use crate::incus::followed;
use crate::incus::key;
use crate::incus::made;
use crate::incus::on;
use crate::incus::restore;
use crate::incus::write;

/// Something mounted for a test, which goes with it.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(arguments: &[&str], at: &Path) -> Self {
        let ended = Command::new("mount").args(arguments).arg(at).status();
        assert!(
            ended.is_ok_and(|ended| ended.success()),
            "mount {arguments:?}"
        );
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn unmount(at: &Path) {
    drop(Command::new("umount").arg("-l").arg(at).output());
}

fn in_instance(vm: &VmId, more: &str) -> String {
    format!("/1.0/instances/{vm}{more}")
}

fn ends_well(answer: &serde_json::Value, doing: &str) {
    let ended = answer["metadata"]["status_code"].as_u64().unwrap_or(200);
    let fine = answer["type"] != "error" && ended == 200;
    assert!(fine, "{doing}: {answer}");
}

fn start(lxd: &Lxd, vm: &VmId) {
    let answer = lxd.call("PUT", &in_instance(vm, "/state"), r#"{"action":"start"}"#);
    ends_well(&answer, "start");
}

fn configure(lxd: &Lxd, vm: &VmId, body: &str) {
    let answer = lxd.call("PATCH", &in_instance(vm, ""), body);
    ends_well(&answer, body);
}

async fn failed(adapter: &Incus, intent: &Intent) -> Fault {
    let (task, _) = begin(adapter, intent, key()).await;
    match followed(adapter, &task).await {
        TaskState::Failed(fault) => fault,
        state @ (TaskState::Running(_)
        | TaskState::Done(_)
        | TaskState::Cancelled
        | TaskState::Gone) => panic!("{intent:?}: {state:?}"),
    }
}

async fn refused(adapter: &Incus, intent: &Intent) -> Fault {
    let before = adapter.baseline(intent, key(), by()).await.unwrap();
    let error = begin_as_planned(adapter, intent, key(), before.as_ref(), by()).await;
    let error = error.unwrap_err();
    assert_eq!(error.effect, Effect::None, "{error:?}");
    error.fault
}

fn says(fault: &Fault, parts: &[&str]) {
    for part in parts {
        assert!(fault.text.contains(part), "{part:?} is missing: {fault:?}");
    }
    assert!(!fault.text.contains('/'), "no paths: {fault:?}");
}

async fn list(adapter: &Incus, vm: &VmId) -> Vec<Backup> {
    let page = Page {
        after: None,
        limit: 100,
    };
    adapter.list_backups(vm, &page, by()).await.unwrap().backups
}

#[apply(test)]
async fn a_restored_vm_that_cannot_start_is_reported_as_restored_and_off() {
    for flavor in Flavor::started() {
        let lxd = Lxd::of(flavor);
        let (vm, adapter) = (lxd.vm("startless", 0), lxd.adapter(Transport::Tls));
        let source = tempfile::tempdir().unwrap();
        let path = source.path().display();
        configure(
            &lxd,
            &vm,
            &format!(
                r#"{{"devices":{{"extra":{{"type":"disk","source":"{path}","path":"/mnt"}}}}}}"#
            ),
        );
        write(&lxd.file(&vm), "one");
        let backup = made(&adapter, &vm, "one").await;
        write(&lxd.file(&vm), "two");
        start(&lxd, &vm);
        source.close().unwrap();
        let fault = failed(&adapter, &restore(&backup, &vm)).await;
        assert_eq!(
            fault.kind,
            FaultKind::BackendFailed,
            "{flavor:?}: {fault:?}"
        );
        says(
            &fault,
            &["were restored", "is off now", "\"extra\"", "start the VM"],
        );
        let data = fs::read_to_string(lxd.file(&vm)).unwrap();
        assert_eq!(data, "one", "{flavor:?}: as the text says");
    }
}

#[apply(test)]
async fn a_restore_that_fails_part_way_is_reported_as_a_mixture() {
    for flavor in Flavor::started() {
        let lxd = Lxd::of(flavor);
        let (vm, adapter) = (lxd.vm("torn", 0), lxd.adapter(Transport::Socket));
        let file = lxd.file(&vm).with_file_name("zz");
        write(&lxd.file(&vm), "one");
        write(&file, "one");
        let backup = made(&adapter, &vm, "one").await;
        write(&lxd.file(&vm), "the second");
        write(&file, "the second");
        let this = file.to_str().unwrap();
        let mount = Mount::new(&["--bind", this], &file);
        let fault = failed(&adapter, &restore(&backup, &vm)).await;
        assert_eq!(
            fault.kind,
            FaultKind::BackendFailed,
            "{flavor:?}: {fault:?}"
        );
        says(
            &fault,
            &["may be a mixture", "is off now", "restore it again"],
        );
        drop(mount);
        let (task, _) = begin(&adapter, &restore(&backup, &vm), key()).await;
        let state = followed(&adapter, &task).await;
        assert!(
            matches!(state, TaskState::Done(_)),
            "{flavor:?}: as it says: {state:?}"
        );
    }
}

#[apply(test)]
async fn a_backup_that_is_half_removed_is_reported_so_and_can_be_removed_again() {
    for flavor in Flavor::started() {
        let lxd = Lxd::of(flavor);
        let (vm, adapter) = (lxd.vm("halfgone", 0), lxd.adapter(Transport::Socket));
        let backup = made(&adapter, &vm, "one").await;
        let pool = lxd.pool("default").join("containers-snapshots");
        let inside = pool.join(format!("tenant_{vm}/{}/rootfs/sbin", backup.id));
        let mount = Mount::new(&["-t", "tmpfs", "none"], &inside);
        let delete = on(&backup, &vm, Change::Delete);
        let fault = failed(&adapter, &delete).await;
        assert_eq!(
            fault.kind,
            FaultKind::BackendFailed,
            "{flavor:?}: {fault:?}"
        );
        says(
            &fault,
            &[
                "no longer be restored",
                "was not changed",
                "is off now",
                "delete the",
            ],
        );
        let left = adapter.read_backup(&delete.target, by()).await.unwrap();
        assert_eq!(left.state, BackupState::Error, "{flavor:?}: {left:?}");
        drop(mount);
        let (task, _) = begin(&adapter, &delete, key()).await;
        let state = followed(&adapter, &task).await;
        assert!(matches!(state, TaskState::Done(_)), "{flavor:?}: {state:?}");
    }
}

#[apply(test)]
async fn an_ephemeral_vm_is_not_stopped_by_a_restore() {
    for flavor in Flavor::started() {
        let lxd = Lxd::of(flavor);
        let (vm, adapter) = (lxd.vm("ephemeral", 0), lxd.adapter(Transport::Socket));
        let backup = made(&adapter, &vm, "one").await;
        configure(&lxd, &vm, r#"{"ephemeral":true}"#);
        start(&lxd, &vm);
        let fault = refused(&adapter, &restore(&backup, &vm)).await;
        assert_eq!(fault.kind, FaultKind::Conflict, "{flavor:?}: {fault:?}");
        says(&fault, &["ephemeral", "Nothing was changed", "persistent"]);
        let now = lxd.call("GET", &in_instance(&vm, ""), "");
        assert_eq!(
            now["metadata"]["status"], "Running",
            "{flavor:?}: left alone"
        );
        configure(&lxd, &vm, r#"{"ephemeral":false}"#);
    }
}

/// `snapshots.expiry` of the instance, its profiles or its project removes snapshots a minute after they expire.
#[apply(test)]
async fn protected_backups_do_not_expire() {
    for flavor in Flavor::started() {
        let lxd = Lxd::of(flavor);
        let (vm, adapter) = (lxd.vm("expiring", 0), lxd.adapter(Transport::Tls));
        configure(&lxd, &vm, r#"{"config":{"snapshots.expiry":"1d"}}"#);
        let backup = made(&adapter, &vm, "ours").await;
        let answer = lxd.call(
            "POST",
            &in_instance(&vm, "/snapshots"),
            r#"{"name":"theirs"}"#,
        );
        ends_well(&answer, "snapshot");
        let expiry = |id: &str| {
            let snapshot = lxd.call("GET", &in_instance(&vm, &format!("/snapshots/{id}")), "");
            snapshot["metadata"]["expires_at"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert!(
            expiry(backup.id.as_str()).starts_with("0001-"),
            "{flavor:?}: of the gateway"
        );
        assert!(
            !expiry("theirs").starts_with("0001-"),
            "{flavor:?}: the daemon's default"
        );
        let all = list(&adapter, &vm).await;
        let theirs = all
            .iter()
            .find(|backup| backup.id.as_str() == "theirs")
            .unwrap();
        let protect = |set| {
            let patch = BackupPatch {
                protected: set,
                ..BackupPatch::default()
            };
            on(theirs, &vm, Change::Update(patch))
        };
        let begun = adapter
            .begin(&protect(Patch::Set(true)), key(), None, by())
            .await;
        assert!(begun.is_ok(), "{flavor:?}: {begun:?}");
        assert!(
            expiry("theirs").starts_with("0001-"),
            "{flavor:?}: protected"
        );
        let begun = adapter
            .begin(&protect(Patch::Clear), key(), None, by())
            .await;
        assert!(begun.is_ok(), "{flavor:?}: {begun:?}");
        assert!(
            expiry("theirs").starts_with("0001-"),
            "{flavor:?}: not put back"
        );
    }
}

/// On a pool that is not mounted, a daemon removes snapshots from its records and leaves their data.
#[apply(test)]
async fn storage_that_is_not_mounted_is_unavailable() {
    for flavor in Flavor::started() {
        let lxd = Lxd::own(flavor);
        let source = tempfile::tempdir().unwrap();
        let mount = Mount::new(&["-t", "tmpfs", "none"], source.path());
        let inside = source.path().join("pool");
        fs::create_dir(&inside).unwrap();
        let body = format!(
            r#"{{"name":"far","driver":"dir","config":{{"source":"{}"}}}}"#,
            inside.display()
        );
        ends_well(&lxd.call("POST", "/1.0/storage-pools", &body), "pool");
        let body = r#"{"name":"web02","type":"container","source":{"type":"image","alias":"tiny"},
            "devices":{"root":{"type":"disk","path":"/","pool":"far"}}}"#;
        ends_well(&lxd.call("POST", "/1.0/instances", body), "VM");
        let vm = VmId::new("web02").unwrap();
        let adapter = lxd.adapter(Transport::Socket);
        let backup = made(&adapter, &vm, "one").await;
        unmount(&lxd.pool("far"));
        for intent in [on(&backup, &vm, Change::Delete), restore(&backup, &vm)] {
            let fault = refused(&adapter, &intent).await;
            assert_eq!(fault.kind, FaultKind::Unavailable, "{flavor:?}: {fault:?}");
            says(&fault, &["storage", "nothing was changed", "try again"]);
        }
        assert_eq!(
            list(&adapter, &vm).await.len(),
            1,
            "{flavor:?}: still recorded"
        );
        lxd.run(&["stop"]);
        drop(mount);
        lxd.run(&["start"]);
        let page = Page {
            after: None,
            limit: 1,
        };
        let error = adapter.list_backups(&vm, &page, by()).await.unwrap_err();
        assert_eq!(
            error.fault.kind,
            FaultKind::Unavailable,
            "{flavor:?}: {error:?}"
        );
        let target = Target {
            vm: vm.clone(),
            backup: backup.id.clone(),
        };
        let error = adapter.read_backup(&target, by()).await.unwrap_err();
        assert_eq!(
            error.fault.kind,
            FaultKind::Unavailable,
            "{flavor:?}: {error:?}"
        );
    }
}
