//! What an operator does: `check --probe` compares the token's rights with the grants, `init --from` writes a backend.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::probe;
use crate::harness::program;
use crate::proxmox::ProxmoxServer;
use crate::proxmox::failures::check_calls;

/// A gateway in front of the stand-in, as a program of its own.
pub(crate) struct Site {
    pub(crate) lab: ProxmoxServer,
    folder: TempDir,
}

impl Site {
    /// With one backend for the VMs of this line, and a caller who may do everything.
    pub(crate) fn new(vms: &str) -> Self {
        let site = Self {
            lab: ProxmoxServer::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        site.configure(vms, "", EVERYTHING);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> String {
        self.path("snapgate.toml").to_str().unwrap().to_owned()
    }

    /// Writes the configuration.
    fn configure(&self, vms: &str, keys: &str, actions: &str) {
        fs::write(self.path("pve.token"), self.lab.lab_text("token")).unwrap();
        let text = format!(
            r#"[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[operations]
store = "operations.db"
[[backend]]
name = "cluster"
kind = "proxmox"
{vms}
[backend.proxmox]
urls = ["{}"]
server_fingerprints = ["{}"]
token = "file:pve.token"
{keys}
[[user]]
name = "alice"
password_hash = "{SECRET_HASH}"
[[grant]]
to = ["user:alice"]
actions = [{actions}]
vms = ["*"]
"#,
            self.lab.lab_text("url"),
            self.lab.fingerprint()
        );
        fs::write(self.path("snapgate.toml"), text).unwrap();
    }

    pub(crate) fn start(&self) -> (Process, Client) {
        let process = Process::start(&["serve", "--config", &self.config()]);
        let client = Client::new(process.api, "alice", "secret");
        (process, client)
    }

    /// Gives the gateway's token these rights: one of `PATH RIGHT RIGHT...` for each path.
    fn set_rights(&self, rights: &[&str]) {
        let paths = rights.iter().map(|line| {
            let mut words = line.split(' ');
            let path = words.next().unwrap().to_owned();
            (path, json!(words.collect::<Vec<_>>()))
        });
        let paths: serde_json::Map<_, _> = paths.collect();
        let all = json!({"gate@pve!t1": paths});
        fs::write(self.lab.path("rights.json"), all.to_string()).unwrap();
    }
}

const EVERYTHING: &str = r#""read", "create", "update", "protect", "delete", "restore", "observe""#;
const RESTORES: &str = r#""read", "restore""#;
const STORAGES: &str = "storages = [\"local\"]";

/// The roles of `docs/adapters/proxmox.md`, as the page prints them.
fn role(name: &str) -> String {
    let page = fs::read_to_string("docs/adapters/proxmox.md").unwrap();
    let begin = format!("pveum role add {name} -privs \"");
    let (_, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{name}"));
    rest.split_once('"').unwrap().0.to_owned()
}

#[apply(test)]
fn each_role_of_the_page_is_enough_for_its_use_and_what_it_lacks_or_has_too_much_is_named() {
    let site = Site::new("vms = [\"1*\"]");
    let on = |role_name: &str| format!("/vms/100 {}", role(role_name));
    let storage = format!("/storage/local {}", role("SnapgateStorage"));
    let missing = "missing ";
    let beyond = "more than needed ";
    // name, grants, keys, rights, exit code, lines that are there, words that are not
    type Row<'a> = (
        &'a str,
        &'a str,
        &'a str,
        Vec<String>,
        i32,
        Vec<&'a str>,
        Vec<&'a str>,
    );
    let rows: Vec<Row<'_>> = vec![
        (
            "restores of snapshots",
            RESTORES,
            "",
            vec![on("SnapgateRestore")],
            0,
            vec![
                "VMs \"1*\": 1 found (100), granted: read, restore",
                "nothing that the grants need is missing",
            ],
            vec![missing, beyond],
        ),
        (
            "snapshots",
            EVERYTHING,
            "",
            vec![on("SnapgateSnapshot")],
            0,
            vec!["nothing that the grants need is missing"],
            vec![missing, beyond],
        ),
        (
            "full backups",
            EVERYTHING,
            STORAGES,
            vec![on("SnapgateFull"), storage.clone()],
            0,
            vec!["nothing that the grants need is missing"],
            vec![missing, beyond],
        ),
        (
            "restores of both",
            RESTORES,
            STORAGES,
            vec![on("SnapgateRestoreFull"), storage],
            0,
            vec!["nothing that the grants need is missing"],
            vec![missing, beyond],
        ),
        (
            "a role that could delete",
            RESTORES,
            "",
            vec![on("SnapgateSnapshot")],
            0,
            vec!["VMs 100 (/vms/NUMBER): more than needed VM.Snapshot"],
            vec![missing],
        ),
        (
            "a role that cannot create",
            EVERYTHING,
            "",
            vec![on("SnapgateRestore")],
            1,
            vec!["VMs 100 (/vms/NUMBER): missing VM.Snapshot"],
            vec![beyond, "nothing that the grants need"],
        ),
        (
            "no right on the storage",
            EVERYTHING,
            STORAGES,
            vec![
                on("SnapgateFull"),
                "/storage/local Datastore.Audit".to_owned(),
            ],
            1,
            vec!["storage local (/storage/local): missing Datastore.AllocateSpace"],
            vec![beyond],
        ),
        (
            "rights on everything",
            EVERYTHING,
            "",
            vec![format!("/ {} VM.Allocate", role("SnapgateSnapshot"))],
            0,
            vec![
                "whole cluster (/): more than needed",
                "VMs 100, 101 (/vms/NUMBER): more than needed VM.Allocate",
                "2 found (100, 101)",
            ],
            vec![missing],
        ),
    ];
    for (name, actions, keys, rights, code, lines, absent) in rows {
        site.configure("vms = [\"1*\"]", keys, actions);
        let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
        site.set_rights(&rights);
        let (ended, printed) = probe(&site.config());
        assert_eq!(ended, Some(code), "{name}: {printed}");
        for line in lines {
            assert!(printed.contains(line), "{name}: {line}: {printed}");
        }
        for word in absent {
            assert!(!printed.contains(word), "{name}: {word}: {printed}");
        }
    }
}

#[apply(test)]
fn a_restore_of_a_full_backup_needs_rights_where_the_disks_and_the_network_are() {
    let site = Site::new("vms = [\"100\"]");
    site.configure("vms = [\"100\"]", "storages = [\"pbs\"]", RESTORES);
    site.lab.change_guest(|guest| {
        guest["config"]["net0"] = json!("virtio=BC:24:11:00:00:01,bridge=vmbr0");
    });
    let guest = format!("/vms/100 {}", role("SnapgateRestoreFull"));
    let backups = format!("/storage/pbs {}", role("SnapgateStorage"));
    site.set_rights(&[&guest, &backups]);
    let (code, printed) = probe(&site.config());
    assert_eq!(code, Some(1), "{printed}");
    let expected = "storage local (/storage/local) with disks of VM 100, for restores of full backups: missing Datastore.AllocateSpace";
    assert!(printed.contains(expected), "{printed}");
    assert!(
        printed.contains("bridge vmbr0 (/sdn/zones/localnetwork/vmbr0): SDN.Use"),
        "{printed}"
    );
    let disks = format!("/storage/local {}", role("SnapgateStorage"));
    site.set_rights(&[
        &guest,
        &backups,
        &disks,
        "/sdn/zones/localnetwork/vmbr0 SDN.Use",
    ]);
    let (code, printed) = probe(&site.config());
    assert_eq!(code, Some(0), "{printed}");
    assert!(!printed.contains("SDN.Use"), "{printed}");
    let used = check_calls(&site.lab);
    assert!(
        used.contains_key("GET /access/permissions"),
        "as the vendor's schema says: {used:?}"
    );
}

/// Runs `init` in the folder of the site: exit code, standard output and standard error.
fn init(site: &Site, arguments: &[&str]) -> (i32, String, String) {
    let output = program()
        .arg("init")
        .args(arguments)
        .current_dir(site.folder.path())
        .env("PVE_TOKEN", site.lab.lab_text("token_all"))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[apply(test)]
fn a_backend_is_written_from_what_the_cluster_says() {
    let site = Site::new("vms = [\"1*\"]");
    let host = site.lab.lab_text("url").strip_prefix("https://").unwrap();
    let from = format!("proxmox://gate@pve!all@{host}");
    let pin = site.lab.fingerprint().replace(':', "").to_lowercase();
    fs::write(
        site.path("all.token"),
        format!("{}\n", site.lab.lab_text("token_all")),
    )
    .unwrap();

    // Without a proof of the server its certificate is shown, and the token stays here.
    let calls = || fs::read_to_string(site.lab.path("calls.jsonl")).unwrap_or_default();
    let (code, out, err) = init(&site, &["--from", &from, "--secret", "file:all.token"]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(
        err.contains(&format!(
            "{host} shows a certificate with the SHA-256 {pin}"
        )),
        "{err}"
    );
    assert!(err.contains(&format!("--fingerprint {pin}")), "{err}");
    assert_eq!(calls(), "", "nothing was sent");

    let wanted = [
        "--from",
        &from,
        "--secret",
        "file:all.token",
        "--fingerprint",
        &pin,
        "--output",
        "new.toml",
    ];
    let (code, out, err) = init(&site, &wanted);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("new.toml written\n"), "{out}");
    let written = fs::read_to_string(site.path("new.toml")).unwrap();
    for part in [
        "vms = [\"100\", \"101\", \"200\"]",
        "#   \"100\",  # web100 (qemu on pve1)\n",
        "#   \"200\",  # web200 (lxc on pve1)\n",
        "# storages = [\"local\", \"pbs\"]",
        "nodes pve1, pve2.",
        "listen = \"127.0.0.1:8080\"",
    ] {
        assert!(written.contains(part), "{part}: {written}");
    }
    assert!(!written.contains("11111111"), "no secret: {written}");

    // It is accepted as it is, and it works.
    let (code, printed) = probe(site.path("new.toml").to_str().unwrap());
    assert!(
        printed.contains("backend cluster: Proxmox VE 8.4.1"),
        "{printed}"
    );
    assert!(printed.contains("VM 200: web200 STOPPED"), "{printed}");
    assert_eq!(code, Some(0), "{printed}");

    let used = check_calls(&site.lab);
    assert!(
        used.contains_key("GET /nodes"),
        "as the vendor's schema says: {used:?}"
    );

    // Never over a file that is there.
    let (code, _, err) = init(&site, &wanted);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("exists, and nothing was written"), "{err}");
    assert_eq!(
        fs::read_to_string(site.path("new.toml")).unwrap(),
        written,
        "unchanged"
    );

    // To standard output, with the token from the environment.
    let (code, out, err) = init(
        &site,
        &[
            "--from",
            &from,
            "--secret",
            "env:PVE_TOKEN",
            "--fingerprint",
            &pin,
        ],
    );
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("token = \"env:PVE_TOKEN\""), "{out}");

    // An authority takes the place of the fingerprint. This certificate signed itself, so it is none.
    let ca = site.lab.path("tls.crt");
    let ca = ca.to_str().unwrap();
    let (code, out, err) = init(
        &site,
        &["--from", &from, "--secret", "file:all.token", "--ca", ca],
    );
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("certificate"), "{err}");
}

#[apply(test)]
fn what_init_cannot_do_is_said_and_nothing_is_written() {
    let site = Site::new("vms = [\"1*\"]");
    let host = site.lab.lab_text("url").strip_prefix("https://").unwrap();
    let from = format!("proxmox://gate@pve!all@{host}");
    let zeros = "00".repeat(32);
    let token = "env:PVE_TOKEN";
    let rows: [(&str, Vec<&str>, &str); 8] = [
        (
            "another kind",
            vec!["--from", "files://x", "--secret", token],
            "by hand",
        ),
        (
            "no kind",
            vec!["--from", "vmware://x", "--secret", token],
            "--from knows: proxmox",
        ),
        (
            "no URL",
            vec!["--from", "pve1", "--secret", token],
            "KIND://",
        ),
        (
            "no token id",
            vec!["--from", "proxmox://pve1", "--secret", token],
            "TOKENID@HOST",
        ),
        (
            "a secret in the URL",
            vec![
                "--from",
                "proxmox://gate@pve!t1=1234@pve1",
                "--secret",
                token,
            ],
            "change that secret",
        ),
        (
            "a secret as an argument",
            vec!["--from", &from, "--secret", "gate@pve!all=1"],
            "file:PATH or env:NAME",
        ),
        (
            "another token",
            vec!["--from", "proxmox://gate@pve!t1@pve1", "--secret", token],
            "names gate@pve!t1",
        ),
        (
            "another server",
            vec!["--from", &from, "--secret", token, "--fingerprint", &zeros],
            "certificate",
        ),
    ];
    for (name, mut arguments, words) in rows {
        arguments.extend(["--output", "never.toml"]);
        let (code, out, err) = init(&site, &arguments);
        assert_eq!(code, 1, "{name}: {out}{err}");
        assert!(err.contains(words), "{name}: {err}");
        assert!(
            !err.contains("1234") && !err.contains("11111111"),
            "{name}: no secret: {err}"
        );
        assert!(!site.path("never.toml").exists(), "{name}");
    }
}

#[apply(test)]
fn without_a_vm_manager_a_start_is_written_that_allows_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = program()
        .args(["init", "--output", "start.toml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let config = folder.path().join("start.toml");
    let output = program()
        .args(["check", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for line in ["listen    127.0.0.1:8080", "users     0", "grants    0"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
