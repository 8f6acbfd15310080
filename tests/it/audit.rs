//! The audit trail and the access log of a gateway that runs: who did what, in lines that cannot be forged.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::program;
use crate::runner::skip;

/// The records of a trail, each of which has every member.
fn records(trail: &Path) -> Vec<Value> {
    let text = fs::read_to_string(trail).unwrap();
    let read = |line: &str| {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?} in {text}"));
        let members = value.as_object().unwrap().len();
        assert_eq!(members, 17, "every member: {line}");
        value
    };
    text.lines().map(read).collect()
}

fn write_config(folder: &Path, log: &str, more: &str) -> String {
    let config = folder.join("snapgate.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    fs::write(&config, format!("{ports}[log]\n{log}\n{sim}{more}")).unwrap();
    config.to_str().unwrap().to_owned()
}

#[apply(test)]
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
    let lines = records(&trail);
    let recorded: Vec<(&Value, &Value, &Value, &Value)> = lines
        .iter()
        .map(|line| {
            (
                &line["principal"],
                &line["action"],
                &line["outcome"],
                &line["code"],
            )
        })
        .collect();
    let null = Value::Null;
    let word = |text: &str| Value::from(text);
    assert_eq!(
        recorded,
        [
            (&word("alice"), &word("restore"), &word("accepted"), &null),
            (&word("alice"), &word("restore"), &word("succeeded"), &null),
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
    let (_, seq) = status_uri.rsplit_once('=').unwrap();
    for line in &lines[..2] {
        assert_eq!(line["operation"], seq, "which operation, to the last digit");
        assert_eq!(line["request"], lines[0]["request"], "of which request");
    }

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

/// Each refused login, with what the trail and the metric say of it. The client sees one and the same answer.
#[apply(test)]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn every_refused_login_has_its_reason_and_the_name_that_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[lockout]\nattempts = 2\n[authentication]\ntokens = \"tokens.json\"\n\
        [[passthrough]]\nname = \"ui\"\npath = \"/ui\"\nupstreams = [\"http://127.0.0.1:9\"]\nallow = [\"user:alice\"]\n";
    let config = write_config(folder.path(), "audit = \"audit.jsonl\"", more);
    let process = Process::start(&["serve", "--config", &config]);
    let token = format!("sg_{}{:08x}", "0".repeat(64), crc32(&"0".repeat(64)));
    let (long, kept) = ("x".repeat(300), "x".repeat(128));
    let user = |name: &str, password: &str| Client::new(process.api, name, password);
    let bare = |value: &str| Client::bare(process.api).with("Authorization", value);
    let shown = "a\u{202e}\"\\";
    // what, client, method, path, reason, name that was tried, action
    let rows: Vec<(&str, Client, &str, &str, &str, Option<&str>, &str)> = vec![
        (
            "nothing",
            Client::bare(process.api),
            "GET",
            "/vms/1",
            "missing",
            None,
            "read",
        ),
        (
            "nothing, on a change",
            Client::bare(process.api),
            "DELETE",
            "/vms/1/backups/456",
            "missing",
            None,
            "delete",
        ),
        (
            "nothing, passed on",
            Client::bare(process.api),
            "GET",
            "/ui/x",
            "missing",
            None,
            "pass",
        ),
        (
            "a placeholder",
            bare("Basic xxxxxxxxxxxxxxxxxxx"),
            "GET",
            "/vms/1",
            "malformed",
            None,
            "read",
        ),
        (
            "a scheme",
            bare("Digest a=b"),
            "GET",
            "/statuses",
            "unsupported_scheme",
            None,
            "read",
        ),
        (
            "a stranger",
            user("mallory", "secret"),
            "HEAD",
            "/vms/1",
            "unknown_user",
            Some("mallory"),
            "read",
        ),
        (
            "a hostile name",
            user(shown, "x"),
            "GET",
            "/vms/1",
            "unknown_user",
            Some(shown),
            "read",
        ),
        (
            "a long name",
            user(&long, "x"),
            "GET",
            "/vms/1",
            "unknown_user",
            Some(&kept),
            "read",
        ),
        (
            "a wrong password",
            user("carol", "guess"),
            "GET",
            "/vms/1",
            "wrong_password",
            Some("carol"),
            "read",
        ),
        (
            "and again",
            user("carol", "guess"),
            "GET",
            "/ui/x",
            "wrong_password",
            Some("carol"),
            "pass",
        ),
        (
            "an unknown token",
            bare(&format!("Bearer {token}")),
            "GET",
            "/vms/1",
            "unknown_token",
            None,
            "read",
        ),
        (
            "the same as a password",
            user("alice", &token),
            "GET",
            "/vms/1",
            "unknown_token",
            Some("alice"),
            "read",
        ),
    ];
    let trail = folder.path().join("audit.jsonl");
    let mut bodies = std::collections::BTreeSet::new();
    for (at, (what, client, method, path, reason, claimed, action)) in rows.iter().enumerate() {
        let reply = client.send(method, path, None);
        assert_eq!(reply.status, 401, "{what}: {reply:?}");
        if *method != "HEAD" {
            let mut body = reply.json();
            body["instance"] = Value::Null;
            bodies.insert(body.to_string());
        }
        let all = records(&trail);
        let last = all.last().unwrap();
        assert_eq!(all.len(), at + 1, "{what}: one record");
        assert_eq!(last["reason"], *reason, "{what}: {last}");
        assert_eq!(last["claimed"].as_str(), *claimed, "{what}: {last}");
        assert_eq!(last["action"], *action, "{what}: {last}");
        assert_eq!(
            last["principal"],
            Value::Null,
            "{what}: no principal is known"
        );
        assert_eq!(last["code"], "Unauthenticated", "{what}: {last}");
        assert_eq!(last["client"], "127.0.0.1", "{what}: {last}");
    }
    assert_eq!(bodies.len(), 1, "the answer never says which: {bodies:?}");
    let text = fs::read_to_string(&trail).unwrap();
    assert!(
        !text.contains("guess") && !text.contains(&token),
        "no secret in it"
    );
    for (reason, count) in [
        ("missing", 3.0),
        ("unknown_user", 3.0),
        ("wrong_password", 2.0),
    ] {
        let series = format!("snapgate_credentials_refused_total{{reason=\"{reason}\"}}");
        let found = metric(process.admin, &series);
        assert!((found - count).abs() < 0.1, "{reason}: {found}");
    }
    let admin = Client::bare(process.admin).with("Authorization", "Bearer 0000");
    assert_eq!(admin.get("/operations").status, 401, "the admin port");
    let last = records(&trail).pop().unwrap();
    assert_eq!(
        (&last["action"], &last["reason"]),
        (&Value::from("operate"), &Value::from("unknown_token")),
        "{last}"
    );
}

fn crc32(text: &str) -> u32 {
    crc32fast::hash(text.as_bytes())
}

/// A small file system that is gone with the test.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    /// Skips the test where this user may not mount.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k,mode=700", "snapgate-test"])
            .arg(folder.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            skip("no right to mount a file system");
        }
        Self(folder)
    }

    /// Leaves room for so many bytes in the last page of the trail, and none elsewhere.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.path().join("filler")).unwrap();
        let mut size = 65_536;
        while size > 0 {
            if file.write_all(&vec![7; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

fn verified(trail: &Path) -> (Option<i32>, String) {
    let output = program()
        .args(["audit", "verify"])
        .arg(trail)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[apply(test)]
fn a_full_disk_tears_no_record_and_lost_records_are_reported() {
    let small = SmallFileSystem::new();
    let folder = tempfile::tempdir().unwrap();
    let trail = small.0.path().join("audit.jsonl");
    let config = write_config(folder.path(), &format!("audit = {trail:?}"), "");
    let process = Process::start(&["serve", "--config", &config]);
    let lost = |process: &Process| metric(process.admin, "snapgate_audit_records_lost_total");
    let alice = Client::new(process.api, "alice", "secret");
    let carol = Client::new(process.api, "carol", "secret");
    assert_eq!(carol.delete("/vms/1/backups/456").status, 403, "refused");
    small.fill();
    // The page that is open takes some records more, and a part of the one that follows.
    eventually("records are lost", || {
        assert_eq!(carol.delete("/vms/1/backups/456").status, 403, "refused");
        lost(&process) > 1.5
    });
    let before = fs::read(&trail).unwrap();
    let last = *before.last().expect("some records");
    assert_ne!(last, b'\n', "the last record is torn");
    let uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
    assert_eq!(
        alice.finished(&uri)["status"],
        200,
        "changes go on, where the trail is not required"
    );
    small.free();
    assert_eq!(carol.delete("/vms/2/backups/456").status, 404, "refused");
    let after = records(&trail);
    let gap = after
        .iter()
        .find(|record| record["outcome"] == "records-lost")
        .unwrap();
    let said = format!("{} records were lost here", lost(&process));
    assert!(
        gap["note"].as_str().unwrap().starts_with(&said),
        "{said}: {gap}"
    );
    let (code, text) = verified(&trail);
    assert_eq!(code, Some(0), "the chain is whole: {text}");

    // Killed with half a record on the disk.
    process.kill();
    let mut torn = fs::OpenOptions::new().append(true).open(&trail).unwrap();
    torn.write_all(b"{\"time\":\"2026").unwrap();
    let process = Process::start(&["serve", "--config", &config]);
    let carol = Client::new(process.api, "carol", "secret");
    assert_eq!(carol.delete("/vms/2/backups/456").status, 404, "refused");
    let text = fs::read_to_string(&trail).unwrap();
    let mut last = text.lines().rev();
    let record: Value = serde_json::from_str(last.next().unwrap()).unwrap();
    assert_eq!(record["action"], "delete", "a line of its own: {record}");
    assert_eq!(
        last.next(),
        Some("{\"time\":\"2026"),
        "what was torn is set apart"
    );
    let (code, text) = verified(&trail);
    assert_eq!(code, Some(0), "the chain goes on: {text}");
    let forged = fs::read_to_string(&trail)
        .unwrap()
        .replacen("carol", "alice", 1);
    fs::write(&trail, forged).unwrap();
    let (code, text) = verified(&trail);
    assert_eq!(code, Some(1), "a change is found: {text}");
    assert!(text.contains("audit.jsonl:2: "), "where: {text}");
}

#[apply(test)]
fn where_the_trail_is_required_nothing_is_changed_that_it_cannot_say() {
    let small = SmallFileSystem::new();
    let folder = tempfile::tempdir().unwrap();
    let trail = small.0.path().join("audit.jsonl");
    let log = format!("audit = {trail:?}\naudit_required = true");
    let config = write_config(folder.path(), &log, "");
    let config = {
        let text = fs::read_to_string(&config).unwrap();
        fs::write(
            &config,
            text.replace("duration = \"50ms\"", "duration = \"10m\""),
        )
        .unwrap();
        config
    };
    let process = Process::start(&["serve", "--config", &config]);
    let alice = Client::new(process.api, "alice", "secret");
    let carol = Client::new(process.api, "carol", "secret");
    let running = alice.post("/vms/1/backups/456/restore", "").status_uri();
    let outcomes = |of: &[Value]| -> Vec<String> {
        let words = of
            .iter()
            .map(|record| record["outcome"].as_str().unwrap().to_owned());
        words.collect()
    };
    assert_eq!(
        outcomes(&records(&trail)),
        ["asked", "accepted"],
        "before and after"
    );
    small.fill();
    eventually("nothing fits", || {
        assert_eq!(carol.delete("/vms/1/backups/456").status, 403, "refused");
        metric(process.admin, "snapgate_audit_records_lost_total") > 0.5
    });
    let backup = "/vms/2/backups/456";
    let changes = [
        ("update", alice.put(backup, r#"{"tags":[]}"#)),
        ("delete", alice.delete(backup)),
        ("restore", alice.post(&format!("{backup}/restore"), "{}")),
        ("create", alice.post("/vms/2/backups", r#"{"name":"x"}"#)),
        ("cancel", alice.delete(&running)),
    ];
    for (what, reply) in changes {
        assert_eq!(reply.status, 503, "{what}: {reply:?}");
        assert_eq!(reply.code(), "AuditUnavailable", "{what}");
        assert!(
            !reply.header("retry-after").is_empty(),
            "{what}: when to come back"
        );
    }
    assert_eq!(
        alice.get(&running).json()["state"],
        "RUNNING",
        "reads go on, and nothing was stopped"
    );
    let own = alice.get("/statuses").json();
    assert_eq!(
        own["statuses"].as_array().unwrap().len(),
        1,
        "nothing was accepted: {own}"
    );
    small.free();
    assert_eq!(alice.delete(&running).status, 202, "with room again");
    assert!(
        outcomes(&records(&trail)).contains(&"records-lost".to_owned()),
        "and the gap is recorded"
    );
}
