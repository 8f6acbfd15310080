//! Changes on the wire: preconditions, repeated requests, protection and what a Status keeps.

use serde_json::json;

use crate::harness::Gateway;
use crate::harness::SIM;
use crate::wire::BACKUP;
use crate::wire::refused;

#[apply(test)]
fn preconditions_and_repeated_requests() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let tag = alice.get(BACKUP).header("etag").to_owned();
    assert!(!tag.is_empty(), "a Backup has a tag");
    let stale = alice.with("If-Match", "\"stale\"");
    refused(
        &stale.put(BACKUP, r#"{"tags": []}"#),
        412,
        "PreconditionFailed",
        "PUT",
    );
    refused(&stale.delete(BACKUP), 412, "PreconditionFailed", "DELETE");
    let current = alice.with("If-Match", &tag);
    assert_eq!(
        current.put(BACKUP, r#"{"tags": ["new"]}"#).status,
        202,
        "it is the current one"
    );
    refused(
        &current.put(BACKUP, r#"{"tags": ["newer"]}"#),
        412,
        "PreconditionFailed",
        "no longer",
    );

    let keyed = alice.with("Idempotency-Key", "one");
    let restore = format!("{BACKUP}/restore");
    let first = keyed.post(&restore, "{}").status_uri();
    assert_eq!(
        keyed.post(&restore, "{}").status_uri(),
        first,
        "the same request again"
    );
    refused(
        &keyed.post(&restore, r#"{"x": "y"}"#),
        422,
        "IdempotencyKeyReused",
        "another request",
    );
    refused(
        &alice
            .with("Idempotency-Key", &"k".repeat(256))
            .post(&restore, "{}"),
        400,
        "MalformedIdempotencyKey",
        "too long",
    );
    assert_eq!(alice.finished(&first)["status"], 200, "done once");

    let deleted = alice.delete(BACKUP).status_uri();
    assert_eq!(alice.finished(&deleted)["status"], 200, "deleted");
    assert_eq!(alice.delete(BACKUP).status, 404, "repeated afterwards");

    // Behind work that does not end, a deletion stays unfinished.
    let slow = Gateway::start(&SIM.replace("duration = \"50ms\"", "duration = \"10m\""));
    let alice = slow.client("alice");
    alice.post(&restore, "{}").status_uri();
    let deleted = alice.delete(BACKUP).status_uri();
    assert_eq!(
        alice.delete(BACKUP).status_uri(),
        deleted,
        "repeated while unfinished"
    );
    // What is not made yet can be neither changed nor deleted.
    let created = alice.post("/vms/1/backups", r#"{"name": "new"}"#).json();
    let target = created["target_uri"].as_str().unwrap();
    assert_eq!(alice.get(target).json()["state"], "CREATING", "it is seen");
    refused(&alice.delete(target), 409, "NotReady", "DELETE");
    refused(
        &alice.put(target, r#"{"tags": []}"#),
        409,
        "NotReady",
        "PUT",
    );
}

#[apply(test)]
fn a_change_is_answered_as_soon_as_it_is_durable_when_asked_for() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    // (Prefer, progress in the answer to an update, what was applied)
    let rows = [
        (None, 100, ""),
        (Some("respond-async"), 0, "respond-async"),
        (Some("wait=0"), 0, ""),
        (
            Some("respond-async, wait=20"),
            100,
            "respond-async, wait=20",
        ),
        (
            Some("respond-async, handling=strict"),
            0,
            "respond-async,handling=strict",
        ),
    ];
    for (prefer, progress, applied) in rows {
        let client = prefer.map_or_else(|| alice.clone(), |value| alice.with("Prefer", value));
        let body = json!({ "description": format!("{prefer:?}") });
        let reply = client.put(BACKUP, &body.to_string());
        assert_eq!(reply.status, 202, "{prefer:?}: {reply:?}");
        assert_eq!(reply.json()["progress"], progress, "{prefer:?}: {reply:?}");
        assert_eq!(
            reply.header("retry-after").is_empty(),
            progress == 100,
            "{prefer:?}: whether it is worth another look: {reply:?}"
        );
        let answered = reply.header("preference-applied").replace(", ", ",");
        assert_eq!(
            answered,
            applied.replace(", ", ","),
            "{prefer:?}: {reply:?}"
        );
        let status = alice.finished(&reply.status_uri());
        assert_eq!(status["state"], "SUCCESS", "{prefer:?}: {status}");
        let after = alice.get(BACKUP).json();
        assert_eq!(after["description"], body["description"], "{prefer:?}");
    }
    let client = alice.with("Prefer", "respond-async");
    let restore = client.post(&format!("{BACKUP}/restore"), "");
    let create = client.post("/vms/1/backups", r#"{"name": "at once"}"#);
    let delete = client.delete(BACKUP);
    let stop = client.delete(&delete.status_uri());
    let rows = [
        ("restore", restore),
        ("create", create),
        ("delete", delete),
        ("stop", stop),
    ];
    for (name, reply) in rows {
        assert_eq!(reply.status, 202, "{name}: {reply:?}");
        assert_eq!(
            reply.header("preference-applied"),
            "respond-async",
            "{name}: reported"
        );
        let status = alice.finished(&reply.status_uri());
        assert_eq!(status["progress"], 100, "{name}: {status}");
    }
    let status = "/statuses?op=back_up&vm=1";
    refused(
        &alice.with("Prefer", "respond-async=yes").delete(status),
        400,
        "MalformedPrefer",
        "a value where there is none",
    );
}

#[apply(test)]
fn protection_and_names() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    assert_eq!(
        alice.put(BACKUP, r#"{"protected": true}"#).status,
        202,
        "protected"
    );
    refused(&alice.delete(BACKUP), 409, "BackupProtected", "DELETE");
    let taken = alice.get(BACKUP).json()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = json!({ "name": taken }).to_string();
    refused(
        &alice.post("/vms/1/backups", &body),
        409,
        "NameTaken",
        "POST",
    );
    let created = alice
        .with("Prefer", "wait=20")
        .post("/back-up?vm=1", r#"{"name": "other"}"#)
        .json();
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap();
    refused(&alice.put(target, &body), 409, "NameTaken", "PUT");
    assert_eq!(alice.get(target).json()["name"], "other", "unchanged");
}

#[apply(test)]
fn what_a_change_ignored_is_in_its_status_for_as_long_as_that_is_kept() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let backup = "/vms/1/backups/456";
    let changes = [
        alice.put(backup, r#"{"tags":["t"],"owner":"me","x":{"y":1}}"#),
        alice.post("/vms/1/backups", r#"{"name":"n","owner":"me","x":1}"#),
        alice.post(&format!("{backup}/restore"), r#"{"owner":"me","x":1}"#),
    ];
    for reply in changes {
        assert_eq!(reply.status, 202, "{reply:?}");
        let expected = json!(["owner", "x"]);
        assert_eq!(reply.json()["ignored"], expected, "in the 202: {reply:?}");
        let status = alice.finished(&reply.status_uri());
        assert_eq!(status["ignored"], expected, "and later: {status}");
    }
    let own = alice.get("/statuses").json();
    let first = &own["statuses"][0];
    assert_eq!(first["ignored"], json!(["owner", "x"]), "in lists: {own}");
}

#[apply(test)]
fn a_backup_that_was_read_can_be_edited_and_sent_back() {
    let gateway = Gateway::start(SIM);
    let alice = gateway.client("alice");
    let backup = "/vms/1/backups/456";
    let mut read = alice.get(backup).json();
    read["tags"] = json!(["edited"]);
    let reply = alice.put(backup, &read.to_string());
    assert_eq!(reply.status, 202, "{reply:?}");
    let status = alice.finished(&reply.status_uri());
    assert_eq!(status["state"], "SUCCESS", "{status}");
    assert_eq!(status.get("ignored"), None, "nothing was lost: {status}");
    assert_eq!(alice.get(backup).json(), read, "as it was sent");
    read["Tags"] = json!([]);
    let reply = alice.put(backup, &read.to_string());
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "UnknownMember")
    );
    let message = &reply.json()["message"][0];
    assert_eq!(message["field"], "Tags", "{message}");
    assert!(
        message["text"].as_str().unwrap().contains("\"tags\""),
        "{message}"
    );
}
