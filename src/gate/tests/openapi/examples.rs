//! Examples of the document. A test of redocly holds them to the schemas (`tests/it/generated_clients.rs`).

use serde_json::Value;
use serde_json::json;

/// One example with a summary.
fn example(summary: &str, value: &Value) -> Value {
    json!({ "summary": summary, "value": value })
}

fn backup() -> Value {
    json!({
        "name": "web01_20261124",
        "uri": "http://127.0.0.1:8080/vms/33333/backups/456",
        "restore": "http://127.0.0.1:8080/vms/33333/backups/456/restore",
        "vm": "http://127.0.0.1:8080/vms/33333",
        "type": "full",
        "created": "2026-11-24T01:55:50Z",
        "tags": ["foo", "bar"],
        "state": "AVAILABLE",
        "size": 16_777_216,
        "protected": false,
    })
}

fn status() -> Value {
    json!({
        "op": "restore-Backup",
        "progress": 100,
        "target_uri": "/vms/33333/backups/456",
        "status_uri": "/statuses?op=restore-Backup&vm=33333&b=456&seq=118529990508675072",
        "seq": "118529990508675072",
        "status": 200,
        "message": "The VM was restored.",
        "state": "SUCCESS",
        "created": "2026-11-24T02:10:04Z",
        "started": "2026-11-24T02:10:04Z",
        "completed": "2026-11-24T02:10:05Z",
        "expires": "2026-12-01T02:10:05Z",
    })
}

fn queued() -> Value {
    json!({
        "op": "restore-Backup",
        "progress": 0,
        "target_uri": "/vms/33333/backups/456",
        "status_uri": "/statuses?op=restore-Backup&vm=33333&b=456&seq=118529990508675072",
        "seq": "118529990508675072",
        "state": "QUEUED",
        "created": "2026-11-24T02:10:04Z",
    })
}

fn capabilities() -> Value {
    let able = |options: &[&str]| json!({ "supported": true, "cancel": true, "progress": true, "recovery": "replay-safe", "options": options });
    json!({
        "verbs": { "create": able(&[]), "update": able(&[]), "delete": able(&[]), "restore": able(&["start"]) },
        "kinds": ["full"],
        "lists_vms": true,
    })
}

fn refusal() -> Value {
    let text = "The VM has no such backup.";
    json!({
        "type": "/problems/NoSuchBackup",
        "title": "No such backup",
        "status": 404,
        "detail": text,
        "instance": "0192f3c1-7b1e-7cc2-9d65-2f4e3a5b6c7d",
        "message": [{ "code": "NoSuchBackup", "severity": "SEVERE", "text": text }],
    })
}

/// Every example, by name.
pub(super) fn examples() -> Value {
    let vm = json!({
        "name": "33333",
        "uri": "http://127.0.0.1:8080/vms/33333",
        "run_status": "STOPPED",
        "back_up": "http://127.0.0.1:8080/back_up?vm=33333",
        "backups": [backup()],
    });
    let vms = json!({
        "vms": [{
            "id": "33333",
            "name": "33333",
            "uri": "http://127.0.0.1:8080/vms/33333",
            "backups": "http://127.0.0.1:8080/vms/33333/backups",
        }],
        "complete": true,
    });
    let permissions = json!({ "actions": [
        { "action": "read", "allowed": true },
        { "action": "delete", "allowed": false, "code": "NotPermitted", "reason": "The caller is not permitted to do this." },
    ] });
    let plan = json!({
        "op": "restore-Backup",
        "target_uri": "/vms/33333/backups/456",
        "vm": { "id": "33333", "name": "web01", "state": "STOPPED" },
        "backup": { "id": "456", "name": "web01_20261124", "created": "2026-11-24T01:55:50Z" },
        "overwrites": [{ "disk": "disk.img", "size": 16_777_216 }],
        "loses": { "since": "2026-11-24T01:55:50Z", "backups": [] },
        "leaves": [],
        "after": "STOPPED",
        "needs": { "bytes": 16_777_216, "free": 9_663_676_416_u64 },
        "duration": { "seconds": 1, "basis": "history" },
        "refused": [],
        "warnings": [],
        "unknown": [],
        "fingerprint": "d770295902377990947c266c",
        "expires": "2026-11-24T02:15:04Z",
    });
    json!({
        "Backup": example("A finished backup.", &backup()),
        "Backups": example("One backup, and no more pages.", &json!({ "backups": [backup()] })),
        "NewBackup": example("A name is enough.", &json!({ "name": "before-upgrade" })),
        "BackupPatch": example("Two tags, and no description any more.", &json!({ "tags": ["foo", "bar"], "description": null })),
        "Restore": example("With a note for the audit trail.", &json!({ "note": "Restore to known state" })),
        "RestoreForm": example("The same as a form.", &json!({ "note": "Restore to known state" })),
        "VM": example("A stopped VM with one backup.", &vm),
        "Status": example("A restore that ended well.", &status()),
        "Queued": example("A restore that waits for its turn.", &queued()),
        "Statuses": example("One operation, and no more pages.", &json!({ "statuses": [status()] })),
        "Version": example("The versions.", &json!({ "specification_version": "0.1,0.2,0.8", "implementation_version": "0.1.0" })),
        "Refusal": example("A backup that does not exist.", &refusal()),
        "Vms": example("One VM, and no more pages.", &vms),
        "Capabilities": example("A VM manager that can do all.", &capabilities()),
        "Permissions": example("A caller who may not delete.", &permissions),
        "PlanRequest": example("A restore.", &json!({ "op": "restore-Backup" })),
        "Plan": example("A restore that nothing is in the way of.", &plan),
    })
}
