//! The whole program over `files`: what it does after it was away, folders that are prepared, and VMs that were renamed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::eventually;
use crate::harness::program;
use crate::harness::settings_for_alice;

const DISK_BYTES: usize = 96 << 20;

struct Site {
    folder: TempDir,
}

impl Site {
    fn new(operations: &str, backend: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("vms/db")).unwrap();
        let config = settings_for_alice(&format!(
            r#"{operations}
[[backend]]
name = "disks"
kind = "files"
vms = ["*"]
[backend.files]
root = "vms"
backups = "backups"
{backend}
"#
        ));
        fs::write(folder.path().join("snapgate.toml"), config).unwrap();
        Self { folder }
    }

    fn config(&self) -> String {
        self.folder
            .path()
            .join("snapgate.toml")
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn disks(&self) -> [PathBuf; 2] {
        ["vms/db/data.img", "vms/db/log.img"].map(|disk| self.folder.path().join(disk))
    }

    fn fill(&self, byte: u8, length: usize) {
        for disk in self.disks() {
            fs::write(disk, vec![byte; length]).unwrap();
        }
    }

    fn first_bytes(&self) -> [u8; 2] {
        self.disks().map(|disk| fs::read(disk).unwrap()[0])
    }

    fn start(&self) -> (Process, Client) {
        let process = Process::start(&["serve", "--config", &self.config()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }

    fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let config = self.config();
        let output = program()
            .args(arguments)
            .args(["--config", &config])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }
}

fn backed_up(client: &Client, name: &str) -> String {
    let body = format!("{{\"name\": \"{name}\"}}");
    let created = client
        .with("Prefer", "wait=50")
        .post("/back_up?vm=db", &body)
        .json();
    assert_eq!(created["status"], 201, "{created}");
    created["target_uri"].as_str().unwrap().to_owned()
}

/// Kills the gateway while it copies, and starts it again; `None` when the copy was too fast.
fn interrupted(site: &Site, away: Duration, repair: bool) -> Option<(Value, [u8; 2])> {
    let (process, client) = site.start();
    site.fill(b'o', DISK_BYTES);
    let target = backed_up(&client, "old");
    site.fill(b'n', DISK_BYTES);
    let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
    let staging = site.folder.path().join("vms/db/.snapgate-staging");
    eventually("it copies, or has ended", || {
        staging.join("log.img").exists() || site.first_bytes() == *b"oo"
    });
    process.kill();
    let untouched = site.first_bytes() == *b"nn"
        && !site
            .folder
            .path()
            .join("vms/db/.snapgate-restore.json")
            .exists();
    if !untouched {
        return None;
    }
    if repair {
        let disk = fs::OpenOptions::new()
            .write(true)
            .open(&site.disks()[1])
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, b"r", 0).unwrap();
    }
    std::thread::sleep(away);
    let (process, client) = site.start();
    let status = client.finished(&status_uri);
    let contents = site.first_bytes();
    drop(process);
    Some((status, contents))
}

#[apply(test)]
fn a_restore_that_was_interrupted_is_begun_again_only_soon_and_over_the_same_disks() {
    let not_executed = "nothing was changed";
    let rows = [
        ("soon, the same disks", "1h", false, "SUCCESS", *b"oo"),
        ("soon, a repaired disk", "1h", true, not_executed, *b"nr"),
        ("late, the same disks", "1s", false, not_executed, *b"nn"),
        ("late, a repaired disk", "1s", true, not_executed, *b"nr"),
    ];
    for (name, resume_ttl, repair, part, expected) in rows {
        let away = Duration::from_millis(if resume_ttl == "1s" { 2500 } else { 0 });
        let mut found = None;
        for _ in 0..8 {
            let site = Site::new(
                &format!("resume_ttl = \"{resume_ttl}\""),
                "new_folders = true",
            );
            fs::create_dir(site.folder.path().join("backups")).unwrap();
            found = interrupted(&site, away, repair);
            if found.is_some() {
                break;
            }
        }
        let (status, contents) = found.expect("the copy takes long enough to be interrupted");
        assert_eq!(contents, expected, "{name}: the disks: {status}");
        assert!(status.to_string().contains(part), "{name}: {status}");
    }
}

#[apply(test)]
fn new_folders_are_used_after_init_and_not_before() {
    let site = Site::new("", "");
    site.fill(b'o', 1 << 20);
    fs::create_dir(site.folder.path().join("backups")).unwrap();
    let (process, client) = site.start();
    let reply = client.get("/vms/db/backups");
    assert_eq!(
        reply.status, 503,
        "an empty folder may be one that is not mounted"
    );
    let (code, said) = site.command(&["check", "--probe"]);
    assert_eq!(code, Some(1), "{said}");
    drop(process);
    assert_eq!(
        fs::read_dir(site.folder.path().join("backups"))
            .unwrap()
            .count(),
        0,
        "left as it is"
    );
    let (code, said) = site.command(&["init", "--backend", "unknown"]);
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = site.command(&["init"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ready"), "{said}");
    let (process, client) = site.start();
    backed_up(&client, "one");
    let (code, said) = site.command(&["init"]);
    assert_eq!(code, Some(1), "a gateway uses them: {said}");
    drop(process);
    let (code, said) = site.command(&["init"]);
    assert_eq!(code, Some(0), "again: {said}");
}

#[apply(test)]
fn backups_of_a_renamed_vm_are_adopted() {
    let site = Site::new("", "new_folders = true");
    site.fill(b'o', 1 << 20);
    fs::create_dir(site.folder.path().join("backups")).unwrap();
    let (process, client) = site.start();
    backed_up(&client, "one");
    drop(process);
    for folder in ["vms", "backups"] {
        let path = site.folder.path().join(folder);
        fs::rename(path.join("db"), path.join("web")).unwrap();
    }
    let adopt = [
        "adopt-backups",
        "--backend",
        "disks",
        "--from",
        "db",
        "--to",
        "web",
    ];
    for expected in [
        "1 backups of db now belong to web",
        "0 backups of db now belong to web; 1 already",
    ] {
        let (code, said) = site.command(&adopt);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let (process, client) = site.start();
    let list = client.get("/vms/web/backups").json();
    assert!(list.to_string().contains("\"one\""), "{list}");
    assert!(list.to_string().contains("AVAILABLE"), "{list}");
    drop(process);
}
