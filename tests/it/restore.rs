//! The whole program over `files`: restores of real bytes and two disks with kill -9 in the middle, and reads of backups that
//! another program changes.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::Client;
use crate::harness::FILES;
use crate::harness::Process;
use crate::harness::eventually;
use crate::harness::settings_for_alice;

const DISK_BYTES: usize = 24 * 1024 * 1024;
/// How often the gateway is killed in the middle of a restore, at another moment each time.
const LIVES: u32 = 12;

/// A folder with one VM of two disks.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("vms/db")).unwrap();
        fs::create_dir_all(folder.path().join("backups")).unwrap();
        let config = settings_for_alice(FILES);
        fs::write(folder.path().join("snapgate.toml"), config).unwrap();
        Self { folder }
    }

    fn disks(&self) -> [PathBuf; 2] {
        ["vms/db/data.img", "vms/db/log.img"].map(|path| self.folder.path().join(path))
    }

    fn fill(&self, byte: u8) {
        for disk in self.disks() {
            fs::write(disk, vec![byte; DISK_BYTES]).unwrap();
        }
    }

    /// The byte that each disk is full of; panics when one is mixed.
    fn contents(&self) -> [u8; 2] {
        self.disks().map(|disk| {
            let bytes = fs::read(&disk).unwrap();
            assert_eq!(bytes.len(), DISK_BYTES, "{}: whole", disk.display());
            assert!(
                bytes.iter().all(|byte| *byte == bytes[0]),
                "{}: a mixture of old and new",
                disk.display()
            );
            bytes[0]
        })
    }

    fn start(&self) -> (Process, Client) {
        let config = self.folder.path().join("snapgate.toml");
        let process = Process::start(&["serve", "--config", config.to_str().unwrap()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }
}

fn hidden_leftovers(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "img"))
        .collect()
}

#[apply(test)]
fn kill_9_in_the_middle_of_a_restore_leaves_a_two_disk_vm_whole() {
    let site = Site::new();
    site.fill(b'o');
    let (mut process, mut client) = site.start();
    let created = client
        .with("Prefer", "wait=50")
        .post("/back_up?vm=db", r#"{"name": "old"}"#)
        .json();
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    for life in 0..LIVES {
        site.fill(b'n');
        let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
        std::thread::sleep(Duration::from_millis(u64::from(life) * 6));
        process.kill();
        // What the next process does first is finish or undo what was begun.
        (process, client) = site.start();
        let status = client.finished(&status_uri);
        let contents = site.contents();
        assert_eq!(
            contents[0], contents[1],
            "life {life}: both disks of one time: {status}"
        );
        let restored = contents[0] == b'o';
        assert_eq!(
            status["status"] == 200,
            restored,
            "life {life}: the Status says what the disks hold: {status}"
        );
        assert!(
            restored,
            "life {life}: and an accepted restore is carried out: {status}"
        );
    }
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
    let left = hidden_leftovers(&site.folder.path().join("vms/db"));
    assert!(left.len() <= 1, "nothing is left lying about: {left:?}");
}

#[apply(test)]
fn a_damaged_backup_is_not_restored() {
    let site = Site::new();
    site.fill(b'o');
    let (process, client) = site.start();
    let created = client
        .with("Prefer", "wait=50")
        .post("/back_up?vm=db", r#"{"name": "old"}"#)
        .json();
    let target = created["target_uri"].as_str().unwrap().to_owned();
    site.fill(b'n');
    let mut damaged = 0;
    let mut pending = vec![site.folder.path().join("backups")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if damaged == 0 && fs::read(&path).unwrap().len() == DISK_BYTES {
            let mut bytes = fs::read(&path).unwrap();
            bytes[DISK_BYTES / 2] ^= 1;
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "one bit of one copy was flipped");
    let reply = client.post(&format!("{target}/restore"), "");
    let status = client.finished(&reply.status_uri());
    assert_eq!(status["state"], "FAILED", "{status}");
    assert_eq!(site.contents(), [b'n', b'n'], "nothing was touched");
    assert!(
        !status["message"].as_str().unwrap().contains('/'),
        "no path in a message for a caller: {status}"
    );
    drop(process);
}

/// What a process watches through inotify.
fn watches(pid: u32) -> usize {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = folder.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    texts.map(|text| text.matches("inotify wd:").count()).sum()
}

#[apply(test)]
fn a_read_after_a_change_shows_it_though_nothing_is_read_twice() {
    let site = Site::new();
    let config = site.folder.path().join("snapgate.toml");
    let mut pid = 0;
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let process = Process::launch(&arguments, |started| pid = started).unwrap();
    let client = Client::new(process.api, "alice", "secret");
    for disk in site.disks() {
        fs::write(disk, "a disk").unwrap();
    }
    let created = client
        .with("Prefer", "wait=50")
        .post("/back_up?vm=db", r#"{"name": "name 0"}"#)
        .json();
    let target = created["target_uri"].as_str().unwrap();
    let id = target.rsplit('/').next().unwrap();
    let manifest = site.folder.path().join("backups/db").join(id);
    let manifest = manifest.join("manifest.json");
    let mut tags = std::collections::BTreeSet::new();
    for number in 0..100 {
        let reply = client.get(target);
        let name = format!("name {number}");
        assert_eq!(reply.json()["name"], *name, "after change {number}");
        assert!(
            tags.insert(reply.header("etag").to_owned()),
            "another tag after change {number}"
        );
        let text = fs::read_to_string(&manifest).unwrap();
        let next = format!("name {}", number + 1);
        fs::write(&manifest, text.replace(&name, &next)).unwrap();
    }
    // Two directories, those above, those of the backup, its manifest and two disks; unless some other test mounts something.
    eventually("the backup is remembered", || {
        client.get(target);
        watches(pid) >= 8
    });
    fs::remove_dir_all(site.folder.path().join("vms/db")).unwrap();
    assert_eq!(client.get(target).status, 404, "without its VM");
    drop(process);
}
