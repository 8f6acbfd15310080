//! A private libvirtd with two VMs, from tests/beds/libvirt.sh, for as long as the value lives.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;
use tempfile::TempDir;

use crate::harness::eventually;
use crate::requirements::require_programs;

/// Where on each disk the tests write: behind the boot sector.
const AT: &str = "65536";

/// Where what libvirt has found out about QEMU is kept from one test to the next.
const BED_CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/libvirt-cache");

/// A private libvirtd: `web01` runs and counts in its memory, `web02` is off and has two disks.
#[derive(Debug)]
pub(crate) struct PrivateLibvirtd {
    folder: TempDir,
}

impl PrivateLibvirtd {
    /// Starts it; skips the test where the programs are not installed.
    pub(crate) fn start() -> Self {
        require_programs(&["libvirtd", "virsh", "qemu-system-x86_64", "qemu-io"]);
        // A short path: there will be sockets in it.
        let folder = tempfile::Builder::new()
            .prefix("lv")
            .tempdir_in("/tmp")
            .unwrap();
        let libvirtd = Self { folder };
        libvirtd.run_script("up");
        eventually("the guest counts", || libvirtd.counter("web01") > 0);
        libvirtd
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How an adapter reaches it.
    pub(crate) fn config(&self) -> Config {
        Config {
            socket: self.folder.path().join("run/libvirt-sock"),
            keepalive: Duration::from_secs(1),
            ..Config::default()
        }
    }

    /// An adapter on it.
    pub(crate) fn adapter(&self) -> Arc<Libvirt> {
        let (clock, tasks) = (SystemClock::shared(), Tasks::default());
        Arc::new(Libvirt::new(self.config(), clock, tasks))
    }

    pub(crate) fn kill_daemon(&self) {
        self.run_script("daemon-kill");
    }

    pub(crate) fn start_daemon(&self) {
        self.run_script("daemon-start");
    }

    fn run_script(&self, verb: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/beds/libvirt.sh");
        let log = self.folder.path().join("bed.log");
        // The daemon outlives the script, so the script's output must not be a pipe.
        let out = std::fs::File::create(&log).unwrap();
        let status = Command::new("sh")
            .arg(script)
            .args([verb, self.folder.path().to_str().unwrap()])
            .env("SNAPGATE_BED_CACHE", BED_CACHE)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(status.success(), "{verb}: {said}");
    }

    /// What virsh answers.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let output = self.try_virsh(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_virsh(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    fn command(&self) -> Command {
        let socket = self.config().socket;
        let uri = format!("qemu:///system?socket={}", socket.display());
        let mut virsh = Command::new("virsh");
        virsh.args(["-q", "-c", &uri]).env("LC_ALL", "C");
        virsh.stdin(Stdio::null());
        virsh
    }

    /// What a command of QEMU's own monitor answers.
    pub(crate) fn monitor(&self, vm: &str, command: &str) -> String {
        self.virsh(&["qemu-monitor-command", vm, "--hmp", command])
    }

    /// What the guest has counted to; 0 before it has begun.
    pub(crate) fn counter(&self, vm: &str) -> u32 {
        let words = self.monitor(vm, "xp /2wx 0x9000");
        let all: Vec<_> = words
            .split_whitespace()
            .skip(1)
            .map(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16).unwrap())
            .collect();
        // "REDY" says that the guest is up.
        if all[1] == 0x5944_4552 { all[0] } else { 0 }
    }

    /// `running`, `paused` or `shut off`.
    pub(crate) fn state(&self, vm: &str) -> String {
        self.virsh(&["domstate", vm]).trim().to_owned()
    }

    /// libvirt's number of the running VM: another one after each start.
    pub(crate) fn number(&self, vm: &str) -> String {
        self.virsh(&["domid", vm]).trim().to_owned()
    }

    /// Stops QEMU itself (`STOP`) or lets it go on (`CONT`).
    pub(crate) fn signal(&self, vm: &str, name: &str) {
        let file = self.folder.path().join(format!("run/qemu/{vm}.pid"));
        let pid = std::fs::read_to_string(file).unwrap();
        let mut kill = Command::new("kill");
        let status = kill.args([&format!("-{name}"), pid.trim()]).status();
        assert!(status.unwrap().success(), "{name}");
    }

    /// virsh in the background; it is waited for by the caller.
    pub(crate) fn spawn_virsh(&self, arguments: &[&str]) -> std::process::Child {
        let mut virsh = self.command();
        virsh.args(arguments).stdout(Stdio::null()).spawn().unwrap()
    }

    /// An unfinished snapshot of `web01` by another client, for as long as QEMU is stopped: until it gets `CONT`.
    pub(crate) fn held_snapshot(&self, name: &str) -> std::process::Child {
        self.signal("web01", "STOP");
        let maker = self.spawn_virsh(&["snapshot-create-as", "web01", name]);
        eventually("libvirt is at it", || self.lists("web01", name));
        maker
    }

    /// Whether libvirt lists a snapshot of that name, whole or not.
    pub(crate) fn lists(&self, vm: &str, name: &str) -> bool {
        let all = self.virsh(&["snapshot-list", vm, "--name"]);
        all.lines().any(|line| line.trim() == name)
    }

    /// How many clients libvirtd has now. One that died is gone once libvirtd has read everything from it.
    pub(crate) fn clients(&self) -> usize {
        let pid = std::fs::read_to_string(self.folder.path().join("libvirtd.pid")).unwrap();
        let sockets: BTreeSet<String> = std::fs::read_dir(format!("/proc/{}/fd", pid.trim()))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.replace(']', "")))
            .collect();
        let all = std::fs::read_to_string("/proc/net/unix").unwrap();
        all.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            // Address, references, protocol, flags, type, state (3 is connected), inode, path.
            .filter(|columns| {
                columns.get(5) == Some(&"03") && columns.last().unwrap().ends_with("libvirt-sock")
            })
            .filter(|columns| sockets.contains(columns[6]))
            .count()
    }

    pub(crate) fn image(&self, disk: &str) -> PathBuf {
        self.folder.path().join(disk)
    }

    /// Writes to the disk of `web01` while it runs or is paused.
    pub(crate) fn write(&self, byte: u8) {
        self.qemu_io(&format!("write -P {byte} {AT} 65536"));
        self.qemu_io("flush");
    }

    fn qemu_io(&self, command: &str) {
        let device = "/machine/peripheral/virtio-disk0/virtio-backend";
        let said = self.monitor("web01", &format!("qemu-io -d {device} \"{command}\""));
        assert!(!said.contains("rror"), "{command}: {said}");
    }

    /// Defines another VM like `web02`, with this change to its definition; its disks are copies.
    pub(crate) fn define_like_web02(&self, name: &str, change: impl FnOnce(String) -> String) {
        for letter in ["a", "b"] {
            let (from, to) = (
                format!("web02{letter}.qcow2"),
                format!("{name}{letter}.qcow2"),
            );
            std::fs::copy(self.image(&from), self.image(&to)).unwrap();
        }
        let xml = std::fs::read_to_string(self.image("web02.xml")).unwrap();
        self.define(name, &change(xml.replace("web02", name)));
    }

    /// Defines a VM, or defines it anew.
    pub(crate) fn define(&self, name: &str, xml: &str) {
        let path = self.image(&format!("{name}.xml"));
        std::fs::write(&path, xml).unwrap();
        self.virsh(&["define", path.to_str().unwrap()]);
    }

    /// Runs a program, which must succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        let output = command.args(arguments).current_dir(self.folder()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A program that has an image open and so keeps others from writing to it, until the value is dropped.
    pub(crate) fn hold(&self, disk: &str) -> Held {
        let mut program = Command::new("qemu-io");
        let program = program.args(["-r", "-f", "qcow2"]).arg(self.image(disk));
        let mut child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its prompt comes once the image is open.
        let mut prompt = [0; 8];
        let read = child.stdout.as_mut().unwrap().read(&mut prompt).unwrap();
        assert!(read > 0, "{disk} is open");
        Held(child)
    }

    /// The names of the snapshots that a disk holds, even while a VM uses it.
    pub(crate) fn tags(&self, disk: &str) -> Vec<String> {
        let said = self.run("qemu-img", &["info", "-U", "--output=json", disk]);
        let info: serde_json::Value = serde_json::from_str(&said).unwrap();
        let all = info["snapshots"].as_array().cloned().unwrap_or_default();
        let names = all
            .iter()
            .map(|tag| tag["name"].as_str().unwrap().to_owned());
        names.collect()
    }

    /// Writes to a disk of a VM that is off.
    pub(crate) fn write_off(&self, disk: &str, byte: u8) {
        let command = format!("write -P {byte} {AT} 65536");
        self.run_qemu_io(&["-f", "qcow2", "-c", &command], disk);
    }

    /// What is on a disk, even while a VM uses it.
    pub(crate) fn read(&self, disk: &str) -> u8 {
        let command = format!("read -v {AT} 16");
        let arguments = ["-U", "-r", "-f", "qcow2", "-c", &command];
        let said = self.run_qemu_io(&arguments, disk);
        let first = said.split_whitespace().nth(1).unwrap();
        u8::from_str_radix(first, 16).unwrap_or_else(|_| panic!("{said}"))
    }

    /// Makes an empty disk.
    pub(crate) fn write_new(&self, disk: &Path) {
        let mut program = Command::new("qemu-img");
        let made = program
            .args(["create", "-q", "-f", "qcow2"])
            .arg(disk)
            .arg("16M")
            .status();
        assert!(made.unwrap().success(), "{}", disk.display());
    }

    fn run_qemu_io(&self, arguments: &[&str], disk: &str) -> String {
        let mut program = Command::new("qemu-io");
        let output = program
            .args(arguments)
            .arg(self.image(disk))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A program that has an image open.
#[derive(Debug)]
pub(crate) struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for PrivateLibvirtd {
    fn drop(&mut self) {
        self.run_script("down");
    }
}
