//! `snapgate store` as an operator uses it: a gateway moves from its file to etcd and back, and callers see the same Statuses.

use std::path::PathBuf;
use std::process::Stdio;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::require_etcd;
use crate::harness::Process;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::program;
use crate::harness::refused_start;
use crate::harness::settings_for_alice;

const BACKEND: &str = r#"[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
concurrency = 16
[backend.sim]
simulated_vms = ["1", "2", "3"]
duration = "1ms"
"#;
/// More than are copied at once, so that a copy can be interrupted.
const OPERATIONS: usize = 300;
/// The key that is there while a copy into the store is not finished.
const COPYING: &str = "/snapgate/store/copying";

/// One gateway and where its operations may be.
struct Site {
    folder: tempfile::TempDir,
    etcd: EtcdBed,
}

/// What a caller sees of one operation.
#[derive(Debug, PartialEq)]
struct Seen {
    status: String,
    etag: String,
}

impl Site {
    fn start() -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            etcd: EtcdBed::start(1),
        };
        let file = "store = \"operations.db\"";
        let text = settings_for_alice(BACKEND).replace(
            "[operations]",
            "public_url = \"http://gateway.test\"\n[operations]",
        );
        let etcd = format!(
            "store = \"etcd\"\noperator_file = \"etcd.operator\"\n[etcd]\nendpoints = {}\nlease = \"3s\"\n",
            site.etcd.toml()
        );
        std::fs::write(site.path("file.toml"), &text).unwrap();
        std::fs::write(site.path("etcd.toml"), text.replace(file, &etcd)).unwrap();
        let back = text.replace(file, "store = \"back.db\"");
        std::fs::write(site.path("back.toml"), back).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, config: &str) -> Process {
        let config = self.path(config);
        Process::start(&["serve", "--config", config.to_str().unwrap()])
    }

    /// `snapgate store copy` with the configuration that has etcd.
    fn copy(&self, from: &str, to: &str) -> (i32, String, String) {
        let arguments = ["store", "copy", "--from", from, "--to", to];
        command_output(&arguments, &self.path("etcd.toml"))
    }

    fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Begins to copy the file, and kills the command before it is finished.
    fn interrupt_copy(&self) {
        for _ in 0..20 {
            let mut copying = program()
                .args(["store", "copy", "--to", "etcd"])
                .args(["--from", &self.file("operations.db")])
                .args(["--config", &self.file("etcd.toml")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            eventually("the copy has begun", || {
                !self
                    .etcd
                    .ctl(&["get", "--prefix", "/snapgate/store/"])
                    .is_empty()
            });
            copying.kill().unwrap();
            copying.wait().unwrap();
            if !self.etcd.ctl(&["get", COPYING]).is_empty() {
                return;
            }
            // It was faster.
            self.etcd.ctl(&["del", "--prefix", "/snapgate/"]);
        }
        panic!("no copy was interrupted");
    }
}

fn see(client: &Client, uri: &str) -> Seen {
    let reply = client.get(uri);
    assert_eq!(reply.status, 200, "it can be read: {reply:?}");
    Seen {
        status: String::from_utf8(reply.body.clone()).unwrap(),
        etag: reply.header("etag").to_owned(),
    }
}

fn see_all(gateway: &Process, uris: &[String]) -> Vec<Seen> {
    let client = Client::new(gateway.api, "alice", "secret");
    uris.iter().map(|uri| see(&client, uri)).collect()
}

fn stop(gateway: Process) {
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "a clean end");
}

/// The hash in a line such as `copied and compared: 3 records, 0 annotations, hash 12ab`.
fn hash_in(text: &str) -> &str {
    let line = text.lines().find(|line| line.contains(", hash ")).unwrap();
    line.rsplit(' ').next().unwrap()
}

#[apply(test)]
fn a_gateway_moves_from_its_file_to_etcd_and_back() {
    require_etcd();
    let site = Site::start();
    let gateway = site.serve("file.toml");
    let client = Client::new(gateway.api, "alice", "secret");
    let mut uris = Vec::new();
    for number in 0..OPERATIONS {
        let vm = number % 3 + 1;
        let keyed = client.with("Idempotency-Key", &format!("key-{number}"));
        let accepted = keyed.post(&format!("/vms/{vm}/backups/456/restore"), "{}");
        uris.push(accepted.status_uri());
    }
    for uri in &uris {
        client.finished(uri);
    }
    let before = see_all(&gateway, &uris);
    let operations = site.file("operations.db");
    let (code, _, said) = site.copy(&operations, "etcd");
    assert_eq!(code, 1, "refused while a gateway runs: {said}");
    assert!(said.contains("in use by another snapgate"), "{said}");
    assert_eq!(
        site.etcd.ctl(&["get", "--prefix", "/snapgate/store/"]),
        "",
        "nothing was written"
    );
    stop(gateway);

    site.interrupt_copy();
    let said = refused_start(&site.path("etcd.toml"));
    assert!(said.contains("a copy into it was not finished"), "{said}");
    let (code, copied, said) = site.copy(&operations, "etcd");
    assert_eq!(code, 0, "the copy goes on: {said}");
    assert!(
        copied.contains(&format!("compared: {OPERATIONS} records")),
        "{copied}"
    );
    assert_eq!(site.etcd.ctl(&["get", COPYING]), "", "and is finished");
    let (code, verified, said) = command_output(&["store", "verify"], &site.path("etcd.toml"));
    assert_eq!(code, 0, "{verified}{said}");
    assert!(verified.contains("no damage found"), "{verified}");
    assert_eq!(hash_in(&verified), hash_in(&copied), "the same");

    let gateway = site.serve("etcd.toml");
    assert_eq!(see_all(&gateway, &uris), before, "the same Statuses");
    let client = Client::new(gateway.api, "alice", "secret");
    let keyed = client.with("Idempotency-Key", "key-0");
    let repeated = keyed.post("/vms/1/backups/456/restore", "{}");
    assert_eq!(
        repeated.status_uri(),
        uris[0],
        "keys are known: {repeated:?}"
    );
    let newer = client.post("/vms/2/backups/456/restore", "{}").status_uri();
    assert!(!uris.contains(&newer), "no number twice: {newer}");
    client.finished(&newer);
    uris.push(newer);
    let after = see_all(&gateway, &uris);
    let (code, _, said) = site.copy("etcd", &site.file("back.db"));
    assert_eq!(code, 1, "refused while a gateway runs: {said}");
    assert!(said.contains("in use by another snapgate"), "{said}");
    stop(gateway);

    let (code, copied, said) = site.copy("etcd", &site.file("back.db"));
    assert_eq!(code, 0, "the way back: {said}");
    assert!(
        copied.contains(&format!("compared: {} records", OPERATIONS + 1)),
        "{copied}"
    );
    let (code, _, said) = site.copy("etcd", &site.file("back.db"));
    assert_eq!(code, 1, "never over a store: {said}");
    assert!(said.contains("is not empty"), "{said}");
    let gateway = site.serve("back.toml");
    assert_eq!(see_all(&gateway, &uris), after, "the same in a file");
    stop(gateway);
}
