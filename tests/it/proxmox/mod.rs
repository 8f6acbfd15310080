//! The adapter for Proxmox VE over a stand-in for its server with real disk images (`tests/beds/proxmox.py`).

mod answers;
mod cluster_traps;
mod failures;
mod fakepve;
mod operator;
mod refusals;
mod two_gateways;
mod warnings;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use snapgate::adapters::adapter::*;
use snapgate::adapters::proxmox::AfterRestore;
use snapgate::adapters::proxmox::BackupMode;
use snapgate::adapters::proxmox::Config;
use snapgate::adapters::proxmox::NodeTrust;
use snapgate::adapters::proxmox::Proxmox;
use snapgate::model::*;

use crate::conformance::AdapterFixture;
use crate::conformance::kills::kill_at_every_moment;
use crate::conformance::suite::run_suite;
use crate::harness::eventually;
use crate::requirements::require_programs;

/// One server of its own, stopped and removed at the end.
pub(crate) struct ProxmoxServer {
    folder: tempfile::TempDir,
    lab: Value,
    /// The number of the guest: 100 is a virtual machine, 200 a container.
    guest: u32,
}

impl ProxmoxServer {
    /// Skips the test where Python, OpenSSL or the tools of QEMU are not installed.
    pub(crate) fn new() -> Self {
        Self::of_guest(100)
    }

    /// A server for tests with one of its guests.
    pub(crate) fn of_guest(guest: u32) -> Self {
        require_programs(&["python3", "qemu-img", "qemu-io", "openssl"]);
        let folder = tempfile::tempdir().unwrap();
        let mut lab = Self {
            folder,
            lab: Value::Null,
            guest,
        };
        lab.run(&["up"], &["0"]);
        let text = fs::read_to_string(lab.path("lab.json")).unwrap();
        lab.lab = serde_json::from_str(&text).unwrap();
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("pve").join(name)
    }

    pub(crate) fn run(&self, command: &[&str], rest: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/beds/proxmox.py");
        let output = Command::new("/usr/bin/python3")
            .arg(script)
            .args(command)
            .arg(self.folder.path().join("pve"))
            .args(rest)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    pub(crate) fn config(&self) -> Config {
        let text = |name: &str| self.lab[name].as_str().unwrap().to_owned();
        let url = text("url");
        Config {
            nodes: vec![url.strip_prefix("https://").unwrap().to_owned()],
            trust: NodeTrust::Fingerprints(vec![self.fingerprint()]),
            token: Secret::new(text(if self.guest == 100 {
                "token"
            } else {
                "token_ct"
            })),
            storages: vec!["local".to_owned()],
            snapshot_memory: false,
            backup_mode: BackupMode::Snapshot,
            after_restore: AfterRestore::AsBefore,
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// The SHA-256 of the server's certificate, as `pvenode cert info` prints it.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint_of(&self.path("tls.crt"))
    }

    /// The adapter of another gateway, which has a token of its own.
    pub(crate) fn adapter_with(&self, token: &str) -> Proxmox {
        let token = Secret::new(self.lab[token].as_str().unwrap().to_owned());
        Proxmox::new(Config {
            token,
            ..self.config()
        })
        .unwrap()
    }

    pub(crate) fn adapter(&self) -> Proxmox {
        Proxmox::new(self.config()).unwrap()
    }

    fn image(&self, disk: u8) -> PathBuf {
        let guest = self.guest;
        self.path(&format!("images/{guest}/vm-{guest}-disk-{disk}.qcow2"))
    }

    /// Writes a byte to both disks.
    pub(crate) fn write(&self, content: u64) {
        for disk in [0, 1] {
            let write = format!("write -P {content} 0 64k");
            let image = self.image(disk);
            let output = Command::new("qemu-io")
                .args(["-c", &write])
                .arg(image)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }

    /// The first byte of one disk.
    pub(crate) fn byte(&self, disk: u8) -> u64 {
        self.try_byte(disk)
            .unwrap_or_else(|text| panic!("a byte: {text}"))
    }

    /// The same, or what the read says: an image that is being written cannot always be read.
    fn try_byte(&self, disk: u8) -> Result<u64, String> {
        let output = Command::new("qemu-io")
            .args(["-r", "-U", "-c", "read -v 0 512"])
            .arg(self.image(disk))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let first = text.split_whitespace().nth(1);
        first
            .and_then(|first| u64::from_str_radix(first, 16).ok())
            .ok_or(text)
    }

    fn guest_file(&self) -> PathBuf {
        self.path(&format!("vms/{}.json", self.guest))
    }

    /// The members of the file that stands for the configuration of the guest.
    pub(crate) fn guest(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.guest_file()).unwrap()).unwrap()
    }

    /// Changes that file, as `qm` or a migration does.
    pub(crate) fn change_guest(&self, change: impl FnOnce(&mut Value)) {
        let mut guest = self.guest();
        change(&mut guest);
        let new = self.path("vms/guest.test");
        fs::write(&new, guest.to_string()).unwrap();
        fs::rename(new, self.guest_file()).unwrap();
    }

    /// Lets tasks stand still before the first disk, until [`ProxmoxServer::release`].
    pub(crate) fn hold(&self) {
        fs::write(self.path("hold"), "").unwrap();
    }

    pub(crate) fn release(&self) {
        for name in ["hold", "held"] {
            fs::remove_file(self.path(name)).unwrap_or_default();
        }
    }

    pub(crate) fn wait_until_held(&self) {
        eventually("a task stands still", || self.path("held").exists());
    }

    /// Kills the worker of the newest task, as a power cut of the node does.
    pub(crate) fn kill_worker(&self) {
        let index = fs::read_to_string(self.path("tasks/index")).unwrap();
        let newest = index.lines().last().unwrap();
        let pid = i32::from_str_radix(newest.split(':').nth(2).unwrap(), 16).unwrap();
        let group = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    }

    /// Whether every task that succeeds ends with a warning from now on.
    pub(crate) fn warn(&self, warn: bool) {
        if warn {
            fs::write(self.path("warn"), "").unwrap();
        } else {
            fs::remove_file(self.path("warn")).unwrap();
        }
    }

    /// What `lab.json` says.
    pub(crate) fn lab_text(&self, name: &str) -> &str {
        self.lab[name].as_str().unwrap()
    }

    pub(crate) fn unlock(&self) {
        self.run(&["unlock"], &[&self.guest.to_string()]);
    }
}

/// The SHA-256 of a certificate, in pairs of digits.
pub(crate) fn fingerprint_of(certificate: &Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().rsplit_once('=').unwrap().1.to_owned()
}

impl Drop for ProxmoxServer {
    fn drop(&mut self) {
        self.run(&["down"], &[]);
    }
}

/// The suite over snapshots, or over full backups.
struct ProxmoxFixture {
    lab: ProxmoxServer,
    kind: BackupKind,
    name: &'static str,
    storage: &'static str,
}

impl ProxmoxFixture {
    fn new(kind: BackupKind) -> Self {
        let name = match kind {
            BackupKind::Full => "proxmox full",
            BackupKind::Snapshot | BackupKind::Incremental => "proxmox snapshot",
        };
        Self {
            lab: ProxmoxServer::new(),
            kind,
            name,
            storage: "local",
        }
    }

    /// Over a container.
    fn of_container(kind: BackupKind, name: &'static str) -> Self {
        Self {
            lab: ProxmoxServer::of_guest(200),
            name,
            ..Self::new(kind)
        }
    }
}

impl AdapterFixture for ProxmoxFixture {
    fn name(&self) -> &'static str {
        self.name
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        let config = Config {
            storages: vec![self.storage.to_owned()],
            ..self.lab.config()
        };
        Arc::new(OfKind::new(Proxmox::new(config).unwrap(), self.kind))
    }
    fn vm(&self) -> VmId {
        VmId::new(&self.lab.guest.to_string()).unwrap()
    }
    fn write(&self, content: u64) {
        self.lab.write(content);
    }
    fn content(&self) -> u64 {
        self.found().expect("both disks are of one time")
    }
    fn found(&self) -> Option<u64> {
        // After a kill the worker may still be writing.
        let one = self.lab.try_byte(0).ok()?;
        (self.lab.try_byte(1) == Ok(one)).then_some(one)
    }
    /// The stand-in begins every request within a tenth of a second, as Proxmox VE was seen to do.
    fn settle(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

/// The adapter as if it made backups of one kind only.
#[derive(Debug)]
struct OfKind {
    inner: Proxmox,
    kind: BackupKind,
    capability: Capability,
}

impl OfKind {
    fn new(inner: Proxmox, kind: BackupKind) -> Self {
        let kinds: &'static [BackupKind] = match kind {
            BackupKind::Full => &[BackupKind::Full],
            BackupKind::Snapshot | BackupKind::Incremental => &[BackupKind::Snapshot],
        };
        let capability = Capability {
            kinds,
            ..inner.capability().clone()
        };
        Self {
            inner,
            kind,
            capability,
        }
    }

    fn of_kind(&self, intent: &Intent) -> Intent {
        let mut intent = intent.clone();
        if let Change::Create(new) = &mut intent.change {
            new.kind = new.kind.or(Some(self.kind));
        }
        intent
    }
}

#[async_trait]
impl Adapter for OfKind {
    fn capability(&self) -> &Capability {
        &self.capability
    }
    fn mint_backup_id(&self, new: &NewBackup, key: RequestKey) -> Result<BackupId, AdapterError> {
        self.inner.mint_backup_id(new, key)
    }
    async fn health(&self, by: Deadline) -> Result<Health, AdapterError> {
        self.inner.health(by).await
    }
    async fn read_vm(&self, vm: &VmId, by: Deadline) -> Result<Vm, AdapterError> {
        self.inner.read_vm(vm, by).await
    }
    async fn list_vms(&self, range: &VmRange, by: Deadline) -> Result<VmPage, AdapterError> {
        self.inner.list_vms(range, by).await
    }
    async fn list_backups(
        &self,
        vm: &VmId,
        page: &Page,
        by: Deadline,
    ) -> Result<BackupPage, AdapterError> {
        self.inner.list_backups(vm, page, by).await
    }
    async fn query_backups(
        &self,
        vm: &VmId,
        query: &BackupQuery,
        by: Deadline,
    ) -> Result<BackupSelection, AdapterError> {
        self.inner.query_backups(vm, query, by).await
    }

    async fn read_backup(&self, target: &Target, by: Deadline) -> Result<Backup, AdapterError> {
        self.inner.read_backup(target, by).await
    }
    async fn preview(&self, intent: &Intent, by: Deadline) -> Result<Preview, AdapterError> {
        self.inner.preview(intent, by).await
    }
    fn needs_baseline(&self, intent: &Intent) -> bool {
        self.inner.needs_baseline(intent)
    }
    async fn baseline(
        &self,
        intent: &Intent,
        key: RequestKey,
        by: Deadline,
    ) -> Result<Option<Evidence>, AdapterError> {
        self.inner.baseline(&self.of_kind(intent), key, by).await
    }
    async fn begin(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<BeginOutcome, AdapterError> {
        let intent = self.of_kind(intent);
        if let Change::Create(new) = &intent.change
            && new.kind != Some(self.kind)
        {
            let text = snapgate::public_text!("This fixture makes backups of one kind only.");
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        }
        self.inner.begin(&intent, key, baseline, by).await
    }
    async fn poll(&self, task: &TaskRef, by: Deadline) -> Result<TaskState, AdapterError> {
        self.inner.poll(task, by).await
    }
    async fn find_outcome(
        &self,
        intent: &Intent,
        key: RequestKey,
        baseline: Option<&Evidence>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        let intent = self.of_kind(intent);
        self.inner.find_outcome(&intent, key, baseline, by).await
    }
    async fn cancel(&self, task: &TaskRef, by: Deadline) -> Result<(), AdapterError> {
        self.inner.cancel(task, by).await
    }

    fn metadata_owner(&self) -> MetadataOwner {
        self.inner.metadata_owner()
    }

    fn is_identity_of(&self, stored: &Identity, backup: &Backup) -> bool {
        self.inner.is_identity_of(stored, backup)
    }

    async fn changed(&self, task: &TaskRef) {
        self.inner.changed(task).await;
    }
}

#[apply(test)]
async fn proxmox_snapshots_behave() {
    let fixture = ProxmoxFixture::new(BackupKind::Snapshot);
    run_suite(&fixture).await;
}

#[apply(test)]
async fn proxmox_full_backups_behave() {
    let fixture = ProxmoxFixture::new(BackupKind::Full);
    run_suite(&fixture).await;
}

#[apply(test)]
fn proxmox_snapshots_are_killed_between_any_two_steps() {
    let fixture = ProxmoxFixture::new(BackupKind::Snapshot);
    kill_at_every_moment(&fixture);
}

#[apply(test)]
fn proxmox_full_backups_are_killed_between_any_two_steps() {
    let fixture = ProxmoxFixture::new(BackupKind::Full);
    kill_at_every_moment(&fixture);
}

#[apply(test)]
async fn proxmox_snapshots_of_containers_behave() {
    let fixture = ProxmoxFixture::of_container(BackupKind::Snapshot, "proxmox container snapshot");
    run_suite(&fixture).await;
}

#[apply(test)]
async fn proxmox_full_backups_of_containers_behave() {
    let fixture = ProxmoxFixture::of_container(BackupKind::Full, "proxmox container full");
    run_suite(&fixture).await;
}

#[apply(test)]
async fn proxmox_full_backups_on_a_backup_server_behave() {
    let fixture = ProxmoxFixture {
        name: "proxmox full, backup server",
        storage: "pbs",
        ..ProxmoxFixture::new(BackupKind::Full)
    };
    run_suite(&fixture).await;
}

#[apply(test)]
fn proxmox_full_backups_of_containers_are_killed_between_any_two_steps() {
    let fixture = ProxmoxFixture::of_container(BackupKind::Full, "proxmox container full");
    kill_at_every_moment(&fixture);
}

#[apply(test)]
fn proxmox_snapshots_of_containers_are_killed_between_any_two_steps() {
    let fixture = ProxmoxFixture::of_container(BackupKind::Snapshot, "proxmox container snapshot");
    kill_at_every_moment(&fixture);
}
