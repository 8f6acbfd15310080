//! A real etcd that requires certificates and users: what is right works, and what is wrong is named and writes nothing.

use std::path::PathBuf;

use crate::client::Client;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::require_etcd;
use crate::harness::Process;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::metric;
use crate::harness::refused_start;
use crate::harness::settings_for_alice;
use crate::tls::Authority;

const BACKEND: &str = r#"[[backend]]
name = "lab"
kind = "sim"
vms = ["*"]
[backend.sim]
simulated_vms = ["1"]
duration = "1ms"
"#;

struct Site {
    folder: tempfile::TempDir,
    etcd: EtcdBed,
}

impl Site {
    fn start() -> Self {
        require_etcd();
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            etcd: EtcdBed::start_with(1, &[("TLS", "1")]),
        };
        let other = Authority::new();
        let (certificate, key) = other.identity("client");
        std::fs::write(site.path("other-ca.pem"), &other.pem).unwrap();
        std::fs::write(site.path("other.pem"), certificate).unwrap();
        std::fs::write(site.path("other.key"), key).unwrap();
        std::fs::write(site.path("right.password"), "secret").unwrap();
        std::fs::write(site.path("wrong.password"), "guess").unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The keys of `[etcd]` that etcd wants to see.
    fn right(&self) -> String {
        format!("{}{}", self.authority(), self.certificate())
    }

    fn authority(&self) -> String {
        format!("ca = {:?}\n", self.etcd.file("ca.pem"))
    }

    fn certificate(&self) -> String {
        let (certificate, key) = (self.etcd.file("client.pem"), self.etcd.file("client.key"));
        format!("client_cert = {certificate:?}\nclient_key = {key:?}\n")
    }

    /// A configuration with these keys in `[etcd]`.
    fn config(&self, keys: &str) -> PathBuf {
        let etcd = format!(
            "store = \"etcd\"\noperator_file = \"etcd.operator\"\n[etcd]\nendpoints = {}\nlease = \"3s\"\n{keys}",
            self.etcd.toml()
        );
        let text = settings_for_alice(BACKEND).replace("store = \"operations.db\"", &etcd);
        let path = self.path("snapgate.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A start with these keys fails for the reason that is named, `doctor` names it too, and etcd holds what it held.
    fn assert_refused(&self, what: &str, keys: &str, parts: &[&str], as_root: &[&str]) {
        let everything = [as_root, &["get", "--prefix", "", "--keys-only"]].concat();
        let before = self.etcd.ctl(&everything);
        let config = self.config(keys);
        let said = refused_start(&config);
        let (code, examined, _) = command_output(&["doctor"], &config);
        assert_eq!(code, 1, "{what}: {examined}");
        for part in parts {
            assert!(
                said.contains(part),
                "{what}: the start says {part:?}: {said}"
            );
            assert!(
                examined.contains(part),
                "{what}: doctor says {part:?}: {examined}"
            );
        }
        assert!(finds_etcd(&examined), "{what}: of etcd itself: {examined}");
        assert_eq!(
            self.etcd.ctl(&everything),
            before,
            "{what}: nothing is written"
        );
    }
}

/// Whether `doctor` found something about etcd itself.
fn finds_etcd(examined: &str) -> bool {
    examined.lines().any(|line| line.starts_with("etcd: "))
}

/// One operation from its acceptance to its end, and what `doctor` and the metrics say meanwhile.
fn assert_serves(site: &Site, keys: &str) {
    let config = site.config(keys);
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let client = Client::new(gateway.api, "alice", "secret");
    let uri = client.post("/vms/1/backups/456/restore", "{}").status_uri();
    assert_eq!(client.finished(&uri)["status"], 200, "restored");
    let endpoint = &site.etcd.endpoints[0];
    let up = format!("snapgate_etcd_member_up{{endpoint=\"{endpoint}\"}}");
    eventually("its state is known", || metric(gateway.admin, &up) > 0.5);
    let bytes = metric(gateway.admin, "snapgate_etcd_database_bytes{");
    assert!(bytes > 4096.0, "the size of its database: {bytes}");
    eventually("a read was measured", || {
        metric(gateway.admin, "snapgate_etcd_read_duration_seconds_count") > 0.5
    });
    let commits = metric(
        gateway.admin,
        "snapgate_store_commit_duration_seconds_count{store=\"etcd\"}",
    );
    assert!(commits > 0.5, "and commits: {commits}");
    let (_, examined, _) = command_output(&["doctor"], &config);
    let checked = examined.lines().find(|line| line.starts_with("checked: "));
    let checked = checked.unwrap_or_default();
    assert!(checked.contains("etcd"), "etcd was looked at: {examined}");
    assert!(!finds_etcd(&examined), "nothing was found: {examined}");
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "a clean end");
}

#[apply(test)]
fn certificates_that_do_not_fit_are_named_and_nothing_is_written() {
    let site = Site::start();
    let (authority, certificate) = (site.authority(), site.certificate());
    let wrong_authority = format!("ca = \"other-ca.pem\"\n{certificate}");
    site.assert_refused(
        "another authority",
        &wrong_authority,
        &["invalid peer certificate: UnknownIssuer", "etcd.ca"],
        &[],
    );
    site.assert_refused(
        "no client certificate",
        &authority,
        &["set etcd.client_cert and etcd.client_key"],
        &[],
    );
    let wrong_certificate =
        format!("{authority}client_cert = \"other.pem\"\nclient_key = \"other.key\"\n");
    site.assert_refused(
        "a certificate of another authority",
        &wrong_certificate,
        &["must have signed the certificate in etcd.client_cert"],
        &[],
    );
    assert_serves(&site, &site.right());
}

#[apply(test)]
fn users_and_rights_that_do_not_fit_are_named_and_nothing_is_written() {
    let site = Site::start();
    let etcd = &site.etcd;
    etcd.ctl(&["user", "add", "root:root"]);
    for user in ["snapgate", "idle"] {
        etcd.ctl(&["user", "add", &format!("{user}:secret")]);
    }
    etcd.ctl(&["role", "add", "gateways"]);
    // What docs/etcd.md says, and nothing more.
    etcd.ctl(&[
        "role",
        "grant-permission",
        "gateways",
        "--prefix=true",
        "readwrite",
        "/snapgate",
    ]);
    etcd.ctl(&["user", "grant-role", "snapgate", "gateways"]);
    etcd.ctl(&["auth", "enable"]);
    let as_root = ["--user", "root:root"];
    let user = |name: &str, password: &str| {
        let right = site.right();
        format!("{right}username = \"{name}\"\npassword = \"file:{password}\"\n")
    };
    site.assert_refused(
        "a wrong password",
        &user("snapgate", "wrong.password"),
        &[
            "authentication failed",
            "correct etcd.username and etcd.password",
        ],
        &as_root,
    );
    site.assert_refused(
        "no user",
        &site.right(),
        &["permission denied", "set etcd.username and etcd.password"],
        &as_root,
    );
    let config = site.config(&user("idle", "right.password"));
    let said = refused_start(&config);
    assert!(said.contains("permission denied"), "{said}");
    assert!(said.contains("grant etcd.username the right"), "{said}");
    let keys = etcd.ctl(&["--user", "root:root", "get", "--prefix", "", "--keys-only"]);
    assert_eq!(keys, "", "nothing is written");
    assert_serves(&site, &user("snapgate", "right.password"));
}
