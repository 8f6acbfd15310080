//! The whole program in front of a real QEMU: disk and memory come back through the API, and kill -9 costs nothing.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::eventually;
use crate::harness::probe;
use crate::harness::settings_for_alice;
use crate::qemu::private_qemu::PrivateQemu;

fn config(qemu: &PrivateQemu) -> String {
    let folder = qemu.folder.path().display();
    let text = settings_for_alice(&format!(
        r#"[[backend]]
name = "host"
kind = "qemu"
vms = ["web01"]
[backend.qemu]
qmp = "{folder}/{{vm}}.qmp"
images = ["{folder}/{{vm}}.qcow2", "{folder}/{{vm}}-b.qcow2"]
"#
    ));
    let path = qemu.folder.path().join("snapgate.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn start(config: &str) -> (Process, Client) {
    let process = Process::start(&["serve", "--config", config]);
    let client = Client::new(process.api, "alice", "secret");
    (process, client)
}

#[apply(test)]
fn disk_and_memory_come_back_through_the_api_and_a_killed_gateway_forgets_nothing() {
    let qemu = PrivateQemu::started();
    let config = config(&qemu);
    let (code, printed) = probe(&config);
    assert_eq!(code, Some(0), "{printed}");
    for line in [
        "backend host: qemu-img 7.",
        "  supported: create, update, delete, restore; unsupported: none",
        "  backup types: snapshot; running VMs: yes; memory: yes; all disks or none: yes",
        "  VM web01: web01 STARTED",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let (process, client) = start(&config);
    qemu.fill(0, 1);
    qemu.fill(1, 1);
    let new = r#"{"name": "before", "description": "text", "tags": ["a"]}"#;
    let status_uri = client.post("/back_up?vm=web01", new).status_uri();
    // Killed between begin and finish: the next one finds what this one began.
    process.kill();
    let (mut process, mut client) = start(&config);
    let created = client.finished(&status_uri);
    assert_eq!(created["status"], 201, "{created}");
    let target = created["target_uri"].as_str().unwrap().to_owned();
    let shown = client.get(&target).json();
    assert_eq!(shown["name"], "before", "it has its name: {shown}");

    let renamed = client.put(&target, r#"{"tags": ["b"], "protected": true}"#);
    assert!(renamed.status < 300, "updated: {renamed:?}");
    let counted = qemu.counter().unwrap();
    eventually("it counts", || qemu.counter().unwrap() > counted);
    // What is paused stays paused, and so shows exactly what was put back.
    qemu.ask("stop", json!({}));
    let far = qemu.counter().unwrap();
    qemu.fill(0, 2);
    qemu.fill(1, 2);
    let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
    std::thread::sleep(Duration::from_millis(3));
    process.kill();
    (process, client) = start(&config);
    let restored = client.finished(&status_uri);
    let rolled_back = qemu.counter().unwrap() < far;
    assert_eq!(
        restored["status"] == 200,
        rolled_back,
        "the Status says what became of the memory: {restored}"
    );
    if rolled_back {
        assert_eq!(
            (qemu.filled(0), qemu.filled(1)),
            (1, 1),
            "both disks are back"
        );
    }
    // Without a kill there is no doubt.
    qemu.ask("cont", json!({}));
    qemu.fill(0, 3);
    qemu.fill(1, 3);
    let status_uri = client.post(&format!("{target}/restore"), "").status_uri();
    let restored = client.finished(&status_uri);
    assert_eq!(restored["status"], 200, "{restored}");
    assert_eq!(
        (qemu.filled(0), qemu.filled(1)),
        (1, 1),
        "both disks are back"
    );
    assert_eq!(qemu.status(), "running", "and it runs on");
    let shown = client.get(&target).json();
    assert_eq!(
        shown["tags"][0], "b",
        "what the gateway keeps survives restores: {shown}"
    );
    let refused = client.delete(&target);
    assert!(
        refused.status == 202 || refused.status >= 400,
        "{refused:?}"
    );
    if refused.status == 202 {
        let status = client.finished(&refused.status_uri());
        assert_eq!(status["state"], "FAILED", "protected: {status}");
    }
    assert_eq!(client.get(&target).status, 200, "still there");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}

#[apply(test)]
fn two_clients_of_one_vm_take_turns_and_both_get_true_answers() {
    let qemu = PrivateQemu::started();
    let (process, one) = start(&config(&qemu));
    let two = Client::new(process.api, "alice", "secret");
    qemu.fill(0, 1);
    qemu.fill(1, 1);
    let created = one.post("/back_up?vm=web01", r#"{"name": "base"}"#);
    let created = one.finished(&created.status_uri());
    let target = created["target_uri"].as_str().unwrap().to_owned();
    qemu.fill(0, 2);
    qemu.fill(1, 2);
    // One puts the VM back while the other makes backups, deletes one, and puts the VM back as well.
    let busy = std::thread::scope(|scope| {
        let restores = std::thread::Builder::new()
            .spawn_scoped(scope, || {
                let uris =
                    [(); 3].map(|()| one.post(&format!("{target}/restore"), "").status_uri());
                uris.map(|uri| one.finished(&uri))
            })
            .unwrap();
        let changes = std::thread::Builder::new()
            .spawn_scoped(scope, || {
                let make = |name: &str| {
                    let body = json!({ "name": name }).to_string();
                    two.post("/back_up?vm=web01", &body)
                };
                let (first, second) = (make("first"), make("second"));
                let first = two.finished(&first.status_uri());
                let gone = first["target_uri"].as_str().unwrap().to_owned();
                let delete = two.delete(&gone).status_uri();
                let restore = two.post(&format!("{target}/restore"), "").status_uri();
                let uris = [second.status_uri(), delete, restore];
                (gone, uris.map(|uri| two.finished(&uri)))
            })
            .unwrap();
        (restores.join().unwrap(), changes.join().unwrap())
    });
    let (restored, (gone, changed)) = busy;
    for status in restored.iter().chain(&changed) {
        assert_eq!(status["state"], "SUCCESS", "each in its turn: {status}");
    }
    assert_eq!((qemu.filled(0), qemu.filled(1)), (1, 1), "both disks");
    assert_eq!(qemu.status(), "running", "it runs");
    let list = one.get("/vms/web01/backups").json();
    let names: Vec<&str> = list["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["base", "second"], "made and deleted as reported");
    assert_eq!(one.get(&gone).status, 404, "deleted");
    process.signal("TERM");
    assert_eq!(process.wait(), Some(0), "ends as asked");
}
