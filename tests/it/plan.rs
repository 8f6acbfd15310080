//! Plans of the whole program: looked at, gone stale, and looked at again by an operation that waited.

use serde_json::Value;

use crate::client::Client;
use crate::harness::Gateway;
use crate::harness::SIM;

const BACKUP: &str = "/vms/1/backups/456";

/// The plan of a change of the backup.
fn plan(client: &Client, op: &str) -> Value {
    let body = format!("{{\"op\": \"{op}\"}}");
    let reply = client.post(&format!("{BACKUP}/plan"), &body);
    assert_eq!(reply.status, 200, "{op}: {reply:?}");
    let kind = reply.header("content-type").to_owned();
    assert_eq!(kind, "application/vnd.snapgate.Plan+json", "{op}");
    reply.json()
}

/// The caller with a condition on that plan.
fn with_plan(client: &Client, plan: &Value) -> Client {
    let print = plan["fingerprint"].as_str().unwrap();
    client.with("If-Plan", &format!("\"{print}\""))
}

#[apply(test)]
fn a_plan_is_followed_by_the_deed_or_goes_stale() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let first = plan(&alice, "restore-Backup");
    assert_eq!(first["refused"], serde_json::json!([]), "{first}");
    assert_eq!(first["overwrites"][0]["disk"], "disk0", "{first}");
    assert_eq!(first["after"], "STARTED", "{first}");
    assert!(first.get("duration").is_none(), "nothing is known: {first}");
    let all = alice.get("/statuses").json();
    assert_eq!(all["statuses"], serde_json::json!([]), "nothing was stored");
    // In between a backup is made.
    let made = alice.post("/vms/1/backups", r#"{"name": "later"}"#);
    let made = alice.finished(&made.status_uri());
    assert_eq!(made["state"], "SUCCESS", "{made}");
    let restore = format!("{BACKUP}/restore");
    let refused = with_plan(&alice, &first).post(&restore, "{}");
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (412, "PlanStale"),
        "{refused:?}"
    );
    let second = plan(&alice, "restore-Backup");
    assert_ne!(second["fingerprint"], first["fingerprint"], "another plan");
    let accepted = with_plan(&alice, &second).post(&restore, "{}");
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let end = alice.finished(&accepted.status_uri());
    assert_eq!(end["state"], "SUCCESS", "{end}");
    let third = plan(&alice, "restore-Backup");
    assert_eq!(
        third["fingerprint"], second["fingerprint"],
        "a restore loses no backup here"
    );
    assert_eq!(third["duration"]["basis"], "history", "{third}");
    let delete = plan(&alice, "delete-Backup");
    assert!(
        delete["loses"].get("since").is_none(),
        "a delete overwrites nothing: {delete}"
    );
    let stale = with_plan(&alice, &third).delete(BACKUP);
    assert_eq!(stale.code(), "PlanStale", "the plan of a restore");
    let deleted = with_plan(&alice, &delete).delete(BACKUP);
    let end = alice.finished(&deleted.status_uri());
    assert_eq!(end["state"], "SUCCESS", "{end}");
    let gone = alice.post(&format!("{BACKUP}/plan"), r#"{"op": "delete-Backup"}"#);
    assert_eq!(
        (gone.status, gone.code().as_str()),
        (404, "NoSuchBackup"),
        "{gone:?}"
    );
}

#[apply(test)]
fn an_operation_that_waited_looks_at_its_plan_again() {
    let slow = SIM.replace("\"50ms\"\n", "\"1s\"\nsimulated_backups = 2\n");
    let gateway = Gateway::start(&slow);
    let alice = gateway.client("alice");
    let busy = alice.post("/vms/1/backups/457/restore", "{}");
    assert_eq!(busy.status, 202, "the VM is busy: {busy:?}");
    let create = alice.post("/vms/1/backups", r#"{"name": "later"}"#);
    assert_eq!(create.status, 202, "{create:?}");
    let made = plan(&alice, "restore-Backup");
    let warnings = made["warnings"].to_string();
    assert!(warnings.contains("2 unfinished operations"), "{made}");
    assert_eq!(
        made["refused"],
        serde_json::json!([]),
        "it would wait: {made}"
    );
    // What waits before it is known, so the request is accepted; by its turn there is a newer backup.
    let waiting = with_plan(&alice, &made).post(&format!("{BACKUP}/restore"), "{}");
    assert_eq!(waiting.status, 202, "{waiting:?}");
    let end = alice.finished(&waiting.status_uri());
    assert_eq!(end["status"], 412, "{end}");
    let message = end["message"].as_str().unwrap();
    assert!(message.contains("plan is stale"), "{message}");
    assert!(message.contains("Nothing was changed"), "{message}");
    let created = alice.finished(&create.status_uri());
    assert_eq!(created["state"], "SUCCESS", "{created}");
}

#[apply(test)]
fn a_caller_who_may_restore_only_plans_restores_only() {
    let settings = SIM.replace(
        r#"actions = ["read", "restore"]"#,
        r#"actions = ["restore"]"#,
    );
    let gateway = Gateway::start(&settings);
    let carol = gateway.client("carol");
    let made = plan(&carol, "restore-Backup");
    assert_eq!(made["op"], "restore-Backup", "{made}");
    let body = r#"{"op": "delete-Backup"}"#;
    let refused = carol.post(&format!("{BACKUP}/plan"), body);
    assert_eq!(refused.status, 403, "{refused:?}");
    let stranger = gateway
        .client("stranger")
        .post(&format!("{BACKUP}/plan"), body);
    assert_eq!(stranger.status, 404, "{stranger:?}");
}
