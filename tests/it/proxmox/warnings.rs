//! A task that ended with warnings succeeded, and the Status says so: by poll, by evidence, and after a crash of the gateway.

use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::proxmox::ProxmoxServer;
use crate::proxmox::failures::about;
use crate::proxmox::failures::begun;
use crate::proxmox::failures::by;
use crate::proxmox::failures::create;
use crate::proxmox::failures::end;
use crate::proxmox::failures::key;
use crate::proxmox::failures::made;
use crate::proxmox::failures::restore;
use crate::proxmox::operator::Site;

const NOTICE: &str = "The VM manager reported warnings; see its task log.";

fn notice_of(state: &TaskState) -> Option<&str> {
    match state {
        TaskState::Done(notice) => notice.as_deref(),
        TaskState::Running(_) | TaskState::Failed(_) | TaskState::Cancelled | TaskState::Gone => {
            panic!("{state:?}")
        }
    }
}

#[apply(test)]
async fn a_task_that_ended_with_warnings_succeeded_and_says_so() {
    let lab = ProxmoxServer::new();
    let adapter = lab.adapter();
    for (number, kind) in [(1, BackupKind::Snapshot), (2, BackupKind::Full)] {
        let backup = made(&adapter, number, kind).await;
        let changes = [
            ("create", create(number * 100 + 20, kind)),
            ("restore", restore(&backup, &options(kind))),
            ("delete", about(&backup, Change::Delete)),
        ];
        for (place, (name, intent)) in (20..).zip(changes) {
            let number = number * 100 + place;
            lab.warn(true);
            let before = adapter.baseline(&intent, key(number), by()).await.unwrap();
            let begun = adapter
                .begin(&intent, key(number), before.as_ref(), by())
                .await
                .unwrap();
            assert!(matches!(begun, BeginOutcome::Task(_)), "{kind:?} {name}");
            let state = end(&adapter, begun).await;
            assert_eq!(notice_of(&state), Some(NOTICE), "{kind:?} {name}");
            lab.warn(false);
            // Another gateway process knows nothing but the record.
            let found = lab
                .adapter()
                .find_outcome(&intent, key(number), before.as_ref(), by())
                .await
                .unwrap();
            let FindOutcome::Done(found) = found else {
                panic!("{kind:?} {name}: {found:?}");
            };
            assert_eq!(
                found.as_deref(),
                Some(NOTICE),
                "{kind:?} {name}: by evidence"
            );
        }
    }
    let silent = begun(&adapter, &create(500, BackupKind::Snapshot), 500)
        .await
        .unwrap();
    assert_eq!(notice_of(&end(&adapter, silent).await), None, "no warning");
}

fn options(kind: BackupKind) -> Vec<(&'static str, &'static str)> {
    match kind {
        BackupKind::Full => vec![("discard_snapshots", "true")],
        BackupKind::Snapshot | BackupKind::Incremental => Vec::new(),
    }
}

#[apply(test)]
fn the_status_says_so_after_the_gateway_was_killed_in_the_middle() {
    let site = Site::new("vms = [\"100\"]");
    let (process, client) = site.start();
    let new = r#"{"name": "before"}"#;
    let made = client.finished(&client.post("/back_up?vm=100", new).status_uri());
    assert_eq!(made["message"], "The backup was made.", "{made}");
    let target = made["target_uri"].as_str().unwrap().to_owned();
    site.lab.warn(true);
    site.lab.hold();
    let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
    site.lab.wait_until_held();
    process.kill();
    site.lab.release();
    let (_process, client) = site.start();
    let restored = client.finished(&status_uri);
    assert_eq!(restored["status"], 200, "{restored}");
    assert_eq!(
        restored["message"],
        format!("The VM was restored. {NOTICE}"),
        "{restored}"
    );
    let deleted = client.finished(&client.delete(&target).status_uri());
    assert_eq!(
        deleted["message"],
        format!("The backup was deleted. {NOTICE}"),
        "{deleted}"
    );
}
