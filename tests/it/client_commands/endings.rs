//! Each exit status, as `docs/client.md` lists them.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::client_commands::Ended;
use crate::client_commands::Home;
use crate::client_commands::ScriptedServer;
use crate::client_commands::plain_server;
use crate::client_commands::refusal;
use crate::client_commands::status;
use crate::harness::Gateway;
use crate::harness::SIM;
use crate::harness::eventually;

const RESTORE: &str = "backup restore 1 456 --yes --wait --output json";

/// The simulated VMs, whose changes take long.
fn slow() -> Gateway {
    Gateway::start(&SIM.replace("50ms", "3s"))
}

#[apply(test)]
fn status_0_is_a_success() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let ended = home.run("alice", RESTORE);
    assert_eq!(ended.status, 0, "{ended:?}");
    let result = ended.result();
    assert_eq!(result["outcome"], "succeeded", "{ended:?}");
    assert_eq!(result["status"]["state"], "SUCCESS", "{ended:?}");
    let records = ended.records();
    assert_eq!(records[0]["record"], "accepted", "{ended:?}");
    let text = home.run("alice", "backup restore 1 456 --yes --wait");
    assert_eq!(text.status, 0, "{text:?}");
    assert!(text.out.contains("SUCCESS 100 %"), "the end: {text:?}");
    assert!(
        text.err.contains("restore-Backup of VM"),
        "the way there: {text:?}"
    );
    // Without --wait it is accepted, and says how to go on.
    let accepted = home.run(
        "alice",
        "backup create 1 nightly --tag daily --description x",
    );
    assert_eq!(accepted.status, 0, "{accepted:?}");
    assert!(accepted.out.starts_with("accepted: "), "{accepted:?}");
    assert!(
        accepted.out.contains("snapgate status wait '/statuses?"),
        "{accepted:?}"
    );
}

#[apply(test)]
fn status_1_is_a_failure_or_a_cancelled_operation() {
    let failed = status(
        100,
        &json!({"state": "FAILED", "status": 507, "message": "There is no storage space left."}),
    );
    let server = plain_server(failed);
    let ended = Home::new(server.address).run("alice", RESTORE);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert_eq!(ended.result()["outcome"], "failed", "{ended:?}");

    let gateway = slow();
    let home = Home::new(gateway.api);
    let running = home.start("alice", "backup restore 1 456 --yes --wait");
    let seq = running_operation(&home);
    let cancelled = home.run("alice", &format!("status cancel {seq} --wait"));
    assert_eq!(
        cancelled.status, 0,
        "the cancelling succeeded: {cancelled:?}"
    );
    let ended = Ended::from_output(running.wait_with_output().unwrap());
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.err.contains("CANCELLED"), "{ended:?}");
}

/// The number of the operation that is running.
fn running_operation(home: &Home) -> String {
    let mut seq = None;
    eventually("an operation is running", || {
        let listed = home.run("alice", "status list --state RUNNING --output json");
        let first = listed.records().swap_remove(0);
        seq = first["status"]["seq"].as_str().map(str::to_owned);
        seq.is_some()
    });
    seq.unwrap()
}

#[apply(test)]
fn status_2_is_a_refusal_with_the_grant_to_ask_for() {
    let gateway = Gateway::start(SIM);
    let home = Home::new(gateway.api);
    let words = "backup delete 1 456 --yes";
    let ended = home.run("carol", &format!("{words} --output json"));
    assert_eq!(ended.status, 2, "{ended:?}");
    let result = ended.result();
    assert_eq!(result["error"]["code"], "NotPermitted", "{ended:?}");
    let hint = result["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("grant with the action `delete`"), "{hint}");
    let text = home.run("carol", words);
    assert!(
        text.err.contains("grant with the action `delete`"),
        "{text:?}"
    );
    let rows = [
        ("alice", "backup show 1 absent", "NoSuchBackup"),
        ("alice", "vm show absent", "NoSuchVm"),
        ("alice", "status show 1", "NoSuchStatus"),
        ("unknown", "vm list", "Unauthenticated"),
        (
            "alice",
            "backup restore 1 456 --yes --if-plan 0123",
            "PlanStale",
        ),
    ];
    for (user, words, code) in rows {
        let ended = home.run(user, words);
        assert_eq!(ended.status, 2, "{words}: {ended:?}");
        assert!(ended.err.contains(code), "{words}: {ended:?}");
        assert_eq!(ended.out, "", "{words}: {ended:?}");
    }
}

#[apply(test)]
fn status_3_is_an_unknown_outcome() {
    let unknown = status(
        100,
        &json!({"state": "UNKNOWN", "status": 500, "message": "The outcome could not be determined."}),
    );
    let server = plain_server(unknown);
    let ended = Home::new(server.address).run("alice", RESTORE);
    assert_eq!(ended.status, 3, "{ended:?}");
    assert_eq!(ended.result()["outcome"], "unknown", "{ended:?}");

    // A Status that the gateway no longer shows leaves the outcome unknown too, and is no refusal of the restore.
    let server = ScriptedServer::start(|asked, _| match asked.method.as_str() {
        "POST" => Some((202, status(0, &json!({})).to_string())),
        _ if asked.target.starts_with("/statuses") => refusal(404, "NoSuchStatus"),
        _ => refusal(403, "NotPermitted"),
    });
    let ended = Home::new(server.address).run("alice", RESTORE);
    assert_eq!(ended.status, 3, "{ended:?}");
    let result = ended.result();
    assert_eq!(result["error"]["code"], "NoSuchStatus", "{ended:?}");
    assert_eq!(
        result["status"]["progress"], 0,
        "what was seen last: {ended:?}"
    );
}

#[apply(test)]
fn status_4_is_an_operation_that_goes_on_after_the_wait() {
    let gateway = slow();
    let home = Home::new(gateway.api);
    let words = "backup restore 1 456 --yes --wait=300ms --output json";
    let ended = home.run("alice", words);
    assert_eq!(ended.status, 4, "{ended:?}");
    let uri = ended.result()["status"]["status_uri"]
        .as_str()
        .unwrap()
        .to_owned();
    let waited = home.run("alice", &format!("status wait {uri} --timeout 300ms"));
    assert_eq!(waited.status, 4, "{waited:?}");
    assert!(waited.err.contains("follow it with"), "{waited:?}");
    let waited = home.run("alice", &format!("status wait {uri}"));
    assert_eq!(waited.status, 0, "it was not cancelled: {waited:?}");
}

#[apply(test)]
fn status_5_is_a_gateway_that_cannot_be_reached() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let home = Home::new(address);
    let begun = Instant::now();
    let ended = home.run("alice", "vm list --retry-for 1s --output json");
    assert_eq!(ended.status, 5, "{ended:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    let retries = ended.records();
    let retries = retries.iter().filter(|record| record["record"] == "retry");
    assert!(retries.count() > 0, "it is asked more than once: {ended:?}");
    // A change that may have been received is found again by its key.
    let server = ScriptedServer::start(|asked, _| match asked.method.as_str() {
        "POST" => None,
        _ => refusal(403, "NotPermitted"),
    });
    let words = "backup restore 1 456 --yes --wait --retry-for 1s --idempotency-key k-1";
    let ended = Home::new(server.address).run("alice", words);
    assert_eq!(ended.status, 5, "{ended:?}");
    assert!(ended.err.contains("--idempotency-key k-1"), "{ended:?}");
    let asked = server.asked();
    let posts: Vec<_> = asked
        .iter()
        .filter(|asked| asked.method == "POST")
        .collect();
    assert!(posts.len() > 1, "repeated: {asked:?}");
    for post in posts {
        assert_eq!(
            post.headers["idempotency-key"], "k-1",
            "the same key: {post:?}"
        );
    }
}

#[apply(test)]
fn status_64_is_a_usage_error_and_nothing_is_sent() {
    let server = ScriptedServer::start(|_, _| None);
    let home = Home::new(server.address);
    let rows = [
        ("backup restore 1 456", "add --yes"),
        ("backup delete 1 456 --wait", "add --yes"),
        ("backup restore 1", "required arguments"),
        ("backup update 1 456", "required arguments"),
        (
            "backup restore 1 456 --yes --wait=soon",
            "expected a duration",
        ),
        ("vm list --url http://192.0.2.1", "cleartext"),
        ("vm list --profile absent", "there is no profile"),
        ("vm list --token-file absent", "no such file"),
        ("vm list --password secret", "unexpected argument"),
        ("status show elsewhere", "cannot make a request"),
    ];
    for (words, expected) in rows {
        let ended = home.run("alice", words);
        assert_eq!(ended.status, 64, "{words}: {ended:?}");
        assert!(ended.err.contains(expected), "{words}: {ended:?}");
    }
    assert!(server.asked().is_empty(), "{:?}", server.asked());
}

#[apply(test)]
fn status_130_is_a_person_who_stops_waiting_and_nothing_is_cancelled() {
    let gateway = slow();
    let home = Home::new(gateway.api);
    for format in ["text", "json"] {
        let words = format!("backup restore 1 456 --yes --wait --output {format}");
        let running = home.start("alice", &words);
        let seq = running_operation(&home);
        let interrupted = Command::new("kill")
            .args(["-s", "INT", &running.id().to_string()])
            .status()
            .unwrap();
        assert!(interrupted.success(), "interrupted");
        let ended = Ended::from_output(running.wait_with_output().unwrap());
        assert_eq!(ended.status, 130, "{ended:?}");
        if format == "text" {
            assert!(ended.err.contains("nothing was cancelled"), "{ended:?}");
            assert!(ended.err.contains("status_uri: /statuses?"), "{ended:?}");
            assert!(ended.err.contains("snapgate status wait"), "{ended:?}");
        } else {
            let uri = ended.result()["status"]["status_uri"].clone();
            assert!(uri.as_str().unwrap().starts_with("/statuses?"), "{ended:?}");
        }
        let waited = home.run("alice", &format!("status wait {seq}"));
        assert_eq!(waited.status, 0, "it went on: {waited:?}");
    }
}
