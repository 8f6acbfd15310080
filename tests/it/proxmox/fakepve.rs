//! PyPI's `fakepve` as a second server, made by others from the vendor's schema and sources.
//!
//! It has guests, snapshots, tasks and tokens. It has no disks, makes no archives (`vzdump` succeeds and leaves nothing), keeps
//! no `vmgenid` through a rollback, and never kills a worker, so nothing of that is tested here. It is under the AGPL: it runs beside the
//! tests, from `target/fakepve`, and nothing of it is in this repository.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::proxmox::AfterRestore;
use snapgate::adapters::proxmox::BackupMode;
use snapgate::adapters::proxmox::Config;
use snapgate::adapters::proxmox::NodeTrust;
use snapgate::adapters::proxmox::Proxmox;
use snapgate::model::*;

use crate::harness::eventually;
use crate::proxmox::failures::about;
use crate::proxmox::failures::begun;
use crate::proxmox::failures::by;
use crate::proxmox::failures::create;
use crate::proxmox::failures::end;
use crate::proxmox::failures::key;
use crate::proxmox::failures::restore;
use crate::proxmox::failures::run;
use crate::proxmox::failures::vm;
use crate::proxmox::two_gateways::made_on;
use crate::proxmox::two_gateways::on;
use crate::requirements::require_programs;
use crate::runner::skip;

/// One server, ended when dropped.
struct FakePve {
    folder: tempfile::TempDir,
    child: Child,
}

impl FakePve {
    /// Skips the test where the package is not installed.
    fn start() -> Self {
        require_programs(&["python3", "openssl"]);
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/fakepve/bin/python");
        if !Path::new(python).exists() {
            skip("fakepve is not installed (PyPI, tests/fakepve/requirements.txt)");
        }
        let folder = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/beds/fakepve_server.py");
        let child = Command::new(python)
            .args(["-B", script])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { folder, child };
        eventually("fakepve listens", || server.path("port").exists());
        server
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn adapter(&self) -> Proxmox {
        let port = fs::read_to_string(self.path("port")).unwrap();
        Proxmox::new(Config {
            nodes: vec![format!("127.0.0.1:{port}")],
            trust: NodeTrust::Fingerprints(vec![crate::proxmox::fingerprint_of(
                &self.path("tls.crt"),
            )]),
            token: Secret::new("root@pam!t1=11111111-2222-3333-4444-555555555555".to_owned()),
            storages: vec!["local".to_owned()],
            snapshot_memory: false,
            backup_mode: BackupMode::Snapshot,
            after_restore: AfterRestore::AsBefore,
            connect_timeout: Duration::from_secs(5),
        })
        .unwrap()
    }
}

impl Drop for FakePve {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[apply(test)]
async fn snapshots_of_both_kinds_of_guests_live_on_a_server_made_by_others() {
    let server = FakePve::start();
    let adapter = server.adapter();
    let health = adapter.health(by()).await.unwrap();
    assert!(health.product.starts_with("Proxmox VE 9."), "{health:?}");
    for (guest, name) in [(100, "web100"), (200, "ct200")] {
        let id = vm(&guest.to_string());
        let shown = adapter.read_vm(&id, by()).await.unwrap();
        assert_eq!(
            (shown.name.as_str(), shown.run_state),
            (name, Some(RunState::Stopped)),
            "{shown:?}"
        );
        let backup = made_on(&adapter, guest, 1, BackupKind::Snapshot).await;
        let page = Page {
            after: None,
            limit: 10,
        };
        let listed = adapter.list_backups(&id, &page, by()).await.unwrap();
        assert_eq!(
            listed.backups.as_slice(),
            std::slice::from_ref(&backup),
            "{name}"
        );
        let patch = BackupPatch {
            name: Some(BackupName::new("other").unwrap()),
            protected: Patch::Set(true),
            ..BackupPatch::default()
        };
        let update = on(guest, about(&backup, Change::Update(patch)));
        assert_eq!(run(&adapter, &update, 2).await, Ok(()), "{name}: update");
        let read = adapter.read_backup(&update.target, by()).await.unwrap();
        assert_eq!(
            (read.name.as_str(), read.protected),
            ("other", true),
            "{name}"
        );
        assert_eq!(read.identity, backup.identity, "{name}: the same backup");
        let delete = on(guest, about(&backup, Change::Delete));
        let refused = run(&adapter, &delete, 3).await.unwrap_err();
        assert_eq!(refused.kind, FaultKind::Protected, "{name}: {refused:?}");

        let intent = on(guest, restore(&backup, &[]));
        let before = adapter.baseline(&intent, key(4), by()).await.unwrap();
        let begun = adapter
            .begin(&intent, key(4), before.as_ref(), by())
            .await
            .unwrap();
        assert!(
            matches!(end(&adapter, begun).await, TaskState::Done(None)),
            "{name}: restore"
        );
        let found = adapter
            .find_outcome(&intent, key(4), before.as_ref(), by())
            .await
            .unwrap();
        assert!(
            matches!(found, FindOutcome::Done(None)),
            "{name}: by its task: {found:?}"
        );

        let patch = BackupPatch {
            protected: Patch::Set(false),
            ..BackupPatch::default()
        };
        let update = on(guest, about(&backup, Change::Update(patch)));
        assert_eq!(
            run(&adapter, &update, 5).await,
            Ok(()),
            "{name}: unprotected"
        );
        assert_eq!(run(&adapter, &delete, 6).await, Ok(()), "{name}: delete");
        let gone = adapter.read_backup(&delete.target, by()).await.unwrap_err();
        assert_eq!(gone.fault.kind, FaultKind::NoSuchBackup, "{name}: {gone:?}");
        let again = run(&adapter, &delete, 7).await.unwrap_err();
        assert_eq!(again.kind, FaultKind::NoSuchBackup, "{name}: {again:?}");
    }
    let absent = adapter.read_vm(&vm("999"), by()).await.unwrap_err();
    assert_eq!(absent.fault.kind, FaultKind::NoSuchVm, "{absent:?}");
    // Its backup jobs succeed and leave nothing; the adapter never reports a backup that is not there.
    let full = begun(&adapter, &create(9, BackupKind::Full), 9)
        .await
        .unwrap();
    assert!(
        matches!(end(&adapter, full).await, TaskState::Done(None)),
        "the job"
    );
}
