//! The requests of the source page as they are printed there, slips included, against the demo.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::client::Reply;
use crate::client::basic;
use crate::harness::Process;
use crate::harness::program;
use crate::requirements::require_programs;

struct Demo {
    process: Process,
    folder: TempDir,
}

fn demo() -> Demo {
    let folder = tempfile::tempdir().unwrap();
    Demo {
        process: Process::start_demo(folder.path(), &[]),
        folder,
    }
}

/// A request of the page: its headers as printed, with real credentials and a true length.
fn printed(demo: &Demo, headers: &[(&str, &str)]) -> Client {
    let client = Client::bare(demo.process.api).with("Authorization", &basic("demo", "demo"));
    headers
        .iter()
        .fold(client, |client, (name, value)| client.with(name, value))
}

const CLOUD_VERSION: (&str, &str) = ("X-Cloud-Client-Specification-Version", "0.1");
const COMPUTE_VERSION: (&str, &str) = ("X-Compute-Client-Specification-Version", "0.1");
const ACCEPT_BACKUP: (&str, &str) = ("Accept", "application/vnd.com.sun.cloud.Backup+json");
const STATUS_TYPE: &str = "application/vnd.com.sun.cloud.Status+json";

fn accepted(reply: &Reply, op: &str, target: &str) -> Value {
    assert_eq!(reply.status, 202, "{op}: {reply:?}");
    assert_eq!(reply.header("content-type"), STATUS_TYPE, "{op}");
    let status = reply.json();
    assert_eq!(status["op"], op, "the exact word of the page");
    assert_eq!(
        status["target_uri"], target,
        "{op}: path-absolute, as printed"
    );
    assert_eq!(
        reply.header("location"),
        status["status_uri"].as_str().unwrap(),
        "{op}: where to ask again"
    );
    status
}

#[apply(test)]
fn the_four_requests_work_as_printed() {
    let demo = demo();
    let host = format!("http://{}", demo.process.api);

    // Get Backup
    let get = printed(&demo, &[ACCEPT_BACKUP, CLOUD_VERSION]);
    let reply = get.get("/vms/33333/backups/456");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("content-type"), ACCEPT_BACKUP.1, "its type");
    let backup = reply.json();
    let name = backup["name"].as_str().unwrap();
    assert!(
        name.strip_prefix("web01_")
            .is_some_and(|date| date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())),
        "web01_YYYYMMDD: {name}"
    );
    let uri = format!("{host}/vms/33333/backups/456");
    assert_eq!(backup["uri"], uri, "absolute, as printed");
    assert_eq!(
        backup["restore"],
        format!("{uri}/restore"),
        "absolute, as printed"
    );
    assert_eq!(backup["vm"], format!("{host}/vms/33333"), "absolute");
    assert_eq!(backup["state"], "AVAILABLE", "finished");

    // Update Backup Properties: the Content-Type and the Accept are slips of the page.
    let put = printed(
        &demo,
        &[
            ACCEPT_BACKUP,
            ("Content-Type", "application/vnd.com.sun.Backup.VM+json"),
            CLOUD_VERSION,
        ],
    );
    let body = "{\n\"tags\" : [ \"foo\", \"bar\" ]\n}";
    let reply = put.send("PUT", "/vms/33333/backups/456", Some(body.as_bytes()));
    let status = accepted(&reply, "update-Backup", "/vms/33333/backups/456");
    assert_eq!(status["progress"], 100, "done at once, as printed");
    assert_eq!(status["status"], 200, "as printed");
    let status_uri = status["status_uri"].as_str().unwrap();
    assert!(
        status_uri.starts_with("/statuses?op=update-backup&seq="),
        "as printed: {status_uri}"
    );
    let after = get.get("/vms/33333/backups/456").json();
    assert_eq!(after["tags"], serde_json::json!(["foo", "bar"]), "replaced");
    assert_eq!(
        after["name"], backup["name"],
        "a partial update keeps the rest"
    );

    // Delete Backup: the other VM, the other header name, no Accept.
    let delete = printed(&demo, &[COMPUTE_VERSION]);
    let reply = delete.delete("/vms/333333/backups/456");
    let status = accepted(&reply, "delete-Backup", "/vms/333333/backups/456");
    let status_uri = status["status_uri"].as_str().unwrap();
    assert!(
        status_uri.starts_with("/statuses?op=delete-Backup&backup=456"),
        "as printed: {status_uri}"
    );
    assert_eq!(delete.finished(status_uri)["status"], 200, "deleted");
    assert_eq!(get.get("/vms/333333/backups/456").status, 404, "and gone");

    // Restore VM From Backup: no Accept.
    let restore = printed(
        &demo,
        &[("Content-Type", "application/json"), COMPUTE_VERSION],
    );
    let body = "{\n\"note\" : \"Restore to known state\"\n}";
    let reply = restore.send(
        "POST",
        "/vms/33333/backups/456/restore",
        Some(body.as_bytes()),
    );
    let status = accepted(&reply, "restore-Backup", "/vms/33333/backups/456");
    let status_uri = status["status_uri"].as_str().unwrap();
    assert!(
        status_uri.starts_with("/statuses?op=restore-Backup&vm=33333&b=456"),
        "as printed: {status_uri}"
    );
    let finished = restore.finished(status_uri);
    assert_eq!(finished["status"], 200, "restored: {finished}");
    assert_eq!(finished["op"], "restore-Backup", "still that operation");

    // The Status can be found as the page prints it, without a number.
    let seqless = restore
        .get("/statuses?op=restore-Backup&vm=33333&b=456")
        .json();
    assert_eq!(
        seqless["status_uri"], status["status_uri"],
        "the newest that fits"
    );
    let seqless = delete.get("/statuses?op=delete-Backup&backup=456").json();
    assert_eq!(seqless["op"], "delete-Backup", "the newest that fits");
}

#[apply(test)]
fn a_restore_brings_the_bytes_back_and_a_restart_keeps_everything() {
    let demo = demo();
    let image = demo.folder.path().join("vms/33333/disk.img");
    let before = fs::read(&image).unwrap();
    assert!(
        before.starts_with(b"VM 33333 block 0000000 changed after the backup"),
        "live content"
    );
    let client = printed(&demo, &[CLOUD_VERSION]);
    let reply = client
        .with("Prefer", "wait=30")
        .post("/vms/33333/backups/456/restore", "{}");
    assert_eq!(reply.json()["progress"], 100, "waited for: {reply:?}");
    assert_eq!(reply.header("preference-applied"), "wait=30", "and says so");
    let after = fs::read(&image).unwrap();
    assert_eq!(after.len(), 16 * 1024 * 1024, "the whole image");
    assert!(
        after.starts_with(b"VM 33333 block 0000000 as it was backed up"),
        "old content"
    );
    assert!(
        !after.windows(7).any(|window| window == b"changed"),
        "nothing of the new content is left"
    );

    // A create, then a crash: Status, backup and tags are there after the restart.
    let created = client.with("Prefer", "wait=30").post(
        "/back_up?vm=33333",
        r#"{"name": "second", "tags": ["x"], "description": "two"}"#,
    );
    let status = created.json();
    assert_eq!(status["op"], "back_up", "{status}");
    assert_eq!(status["status"], 201, "{status}");
    let target = status["target_uri"].as_str().unwrap().to_owned();
    let Demo { process, folder } = demo;
    process.kill();
    let demo = Demo {
        process: Process::start_demo(folder.path(), &[]),
        folder,
    };
    let client = printed(&demo, &[CLOUD_VERSION]);
    let backup = client.get(&target).json();
    assert_eq!(backup["name"], "second", "{backup}");
    assert_eq!(backup["tags"], serde_json::json!(["x"]), "{backup}");
    let again = client.get(status["status_uri"].as_str().unwrap()).json();
    assert_eq!(again, status, "the same Status");
}

#[apply(test)]
fn the_requests_that_the_demo_prints_work_when_pasted() {
    let demo = demo();
    let text = demo.process.printed.join("\n");
    let ready = format!("listening on http://{}\n", demo.process.api);
    assert!(text.contains(&ready), "{ready}: {text}");
    assert!(text.contains("admin on http://127.0.0.1:"), "{text}");
    require_programs(&["curl"]);
    let mut answers = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("curl ")) {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        answers.push((status, body, line));
    }
    let expected = [
        (200, "name"),
        (202, "update-Backup"),
        (202, "restore-Backup"),
        (202, "delete-Backup"),
        (202, "back_up"),
        (200, "backups"),
        (200, "statuses"),
    ];
    assert_eq!(answers.len(), expected.len(), "{text}");
    for ((status, body, line), (code, word)) in answers.iter().zip(expected) {
        assert_eq!(*status, code, "{line}: {body}");
        let is_meant = body["op"] == word || body.get(word).is_some();
        assert!(is_meant, "{line}: {body}");
    }
    assert_eq!(answers[2].1["status"], 200, "waited for: {}", answers[2].1);
    let operations = answers[6].1["statuses"].as_array().unwrap();
    assert_eq!(operations.len(), 4, "each change has a Status");
}

#[apply(test)]
fn a_folder_that_is_not_the_demos_is_left_alone() {
    let config = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    for (name, content) in [("snapgate.toml", config), ("vms", "data")] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        let output = program()
            .args(["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--dir")
            .arg(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("choose another folder"), "{name}: {said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), content, "{name}");
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "{name}: nothing was added");
    }
    // What was begun is made anew: only what the demo began.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".snapgate-demo"), "").unwrap();
    fs::create_dir_all(folder.path().join("vms/33333")).unwrap();
    drop(Process::start_demo(folder.path(), &[]));
    let image = folder.path().join("vms/33333/disk.img");
    assert!(image.exists(), "made to the end");
}
