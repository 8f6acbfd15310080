//! The audit trail and the access log of a gateway that runs: who did what, in lines that nobody can forge.

use std::fs;

use serde_json::Value;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;

#[test]
fn every_permitted_or_refused_change_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    let trail = folder.path().join("audit.jsonl");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(
        &config,
        format!("{ports}[log]\naudit = \"audit.jsonl\"\n{sim}"),
    )
    .unwrap();
    let process = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let alice = Client::new(process.api, "alice", "secret");
    let carol = Client::new(process.api, "carol", "secret");
    let note = "line one\nline two \u{85}\u{1b}[31m\",\"principal\":\"root";
    let body = serde_json::json!({ "note": note }).to_string();
    let status_uri = alice.post("/vms/1/backups/456/restore", &body).status_uri();
    assert_eq!(alice.finished(&status_uri)["status"], 200, "restored");
    assert_eq!(carol.delete("/vms/1/backups/456").status, 403, "refused");
    let stranger = Client::bare(process.api).with("X-Cloud-Client-Specification-Version", "0.1");
    assert_eq!(stranger.delete("/vms/1/backups/456").status, 401, "refused");
    assert_eq!(
        alice.get("/vms/1/backups/456").status,
        200,
        "a read is no change"
    );

    let text = fs::read_to_string(&trail).unwrap();
    assert!(!text.contains("secret"), "no password in it: {text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    let told: Vec<(&Value, &Value, &Value, &Value)> = lines
        .iter()
        .map(|it| (&it["principal"], &it["action"], &it["outcome"], &it["code"]))
        .collect();
    let null = Value::Null;
    let word = |it: &str| Value::from(it);
    assert_eq!(
        told,
        [
            (&word("alice"), &word("restore"), &word("accepted"), &null),
            (
                &word("carol"),
                &word("delete"),
                &word("refused"),
                &word("NotPermitted")
            ),
            (
                &null,
                &word("delete"),
                &word("refused"),
                &word("Unauthenticated")
            ),
        ],
        "in the order they happened: {text}"
    );
    assert_eq!(
        lines[0]["note"], note,
        "what the caller wrote, and nothing else"
    );
    assert_eq!(lines[0]["vm"], "1", "which VM");
    assert!(lines[0]["operation"].as_u64().is_some(), "which operation");

    // Moved away and opened anew, as rotation does it.
    fs::rename(&trail, folder.path().join("audit.1")).unwrap();
    process.signal("HUP");
    eventually("a new file", || trail.exists());
    carol.delete("/vms/1/backups/456");
    assert_eq!(
        fs::read_to_string(&trail).unwrap().lines().count(),
        1,
        "goes on in the new one"
    );
}
