//! A VM of a real QEMU with two disks, running or stopped, for as long as the value lives.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snapgate::adapters::adapter::*;
use snapgate::adapters::layers::Annotate;
use snapgate::adapters::qemu;
use snapgate::model::*;
use snapgate::runtime::{SystemClock, Tasks};

use crate::conformance::begin_as_planned;
use crate::conformance::mortal_gateway::KillMoments;
use crate::conformance::{self, by, create, key, on, run};
use crate::harness::eventually;
use crate::memory_annotations::MemoryAnnotations;
use crate::requirements::require_programs;

/// A VM of `tests/beds/qemu.sh` in a folder of its own; ended when dropped.
pub(crate) struct PrivateQemu {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) adapter: Arc<dyn Adapter>,
    pub(crate) running: bool,
}

fn script(what: &str, folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/beds/qemu.sh");
    let done = Command::new("sh")
        .arg(script)
        .arg(what)
        .arg(folder)
        .output();
    let done = done.unwrap();
    assert!(done.status.success(), "{what}: {done:?}");
}

impl PrivateQemu {
    pub(crate) fn new() -> Self {
        require_programs(&["qemu-system-x86_64", "qemu-img", "qemu-io"]);
        let folder = tempfile::tempdir().unwrap();
        script("make", folder.path());
        let adapter = adapter(folder.path(), &Arc::default());
        Self {
            folder,
            adapter,
            running: false,
        }
    }

    pub(crate) fn started() -> Self {
        let mut qemu = Self::new();
        qemu.start();
        qemu
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&[], "disk1");
    }

    /// Starts it with further arguments of QEMU and another node as the second disk.
    pub(crate) fn start_with(&mut self, arguments: &[&str], second: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/beds/qemu.sh");
        let mut start = Command::new("sh");
        start.arg(script).arg("start").arg(self.folder.path());
        let done = start.args(arguments).env("TOP1", second).output().unwrap();
        assert!(done.status.success(), "started: {done:?}");
        self.running = true;
        let end = Instant::now() + Duration::from_secs(60);
        while self.counter().is_none() {
            assert!(Instant::now() < end, "the guest counts");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn stop(&mut self) {
        script("stop", self.folder.path());
        self.running = false;
    }

    /// Ends QEMU without warning.
    pub(crate) fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.folder.path().join("web01.pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.stop();
    }

    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks QEMU over the monitor of the test.
    pub(crate) fn ask(&self, command: &str, arguments: Value) -> Value {
        let stream = UnixStream::connect(self.folder.path().join("web01-test.qmp")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut writer = stream;
        let mut answer = Value::Null;
        for (command, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            let line = json!({"execute": command, "arguments": arguments, "id": "test"});
            writeln!(writer, "{line}").unwrap();
            answer = loop {
                let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                if line["id"] == "test" {
                    break line;
                }
            };
        }
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["return"].clone()
    }

    pub(crate) fn status(&self) -> String {
        self.ask("query-status", json!({}))["status"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// What the guest has counted to; `None` while it fills its memory.
    pub(crate) fn counter(&self) -> Option<u32> {
        let line = json!({"command-line": "xp /2wx 0x9000"});
        let text = self.ask("human-monitor-command", line);
        let mut words = text.as_str().unwrap().split_whitespace().skip(1);
        let count = words.next().unwrap().strip_prefix("0x").unwrap();
        let ready = words.next().unwrap() == "0x59444552";
        ready.then(|| u32::from_str_radix(count, 16).unwrap())
    }

    /// Waits until no program of a gateway that was killed is at the images of the stopped VM.
    pub(crate) fn let_go(&self) {
        let is_free = |disk: &&str| self.qemu_io(disk, "length");
        eventually("the images are let go of", || DISKS.iter().all(is_free));
    }

    pub(crate) fn qemu_io(&self, image: &str, command: &str) -> bool {
        let mut program = Command::new("qemu-io");
        let done = program
            .args(["-f", "qcow2", "-c", command])
            .arg(self.image(image))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        done.status.success() && !text.contains("Pattern verification failed")
    }

    pub(crate) fn img(&self, arguments: &[&str], image: &str) {
        let done = Command::new("qemu-img")
            .args(arguments)
            .arg(self.image(image))
            .output();
        let done = done.unwrap();
        assert!(done.status.success(), "qemu-img {arguments:?}: {done:?}");
    }

    /// Fills 64 KiB of one disk through the guest's device, or directly when the VM is off.
    pub(crate) fn fill(&self, disk: usize, content: u64) {
        let byte = u8::try_from(content).unwrap();
        let command = format!("write -q -P {byte} 1M 64k");
        if self.running {
            let line =
                format!("qemu-io -d /machine/peripheral/vd{disk}/virtio-backend \"{command}\"");
            self.ask("human-monitor-command", json!({"command-line": line}));
        } else {
            assert!(self.qemu_io(DISKS[disk], &command), "disk {disk} filled");
        }
    }

    /// What the disk is filled with, seen from outside through a copy that QEMU itself exports or the image at rest.
    pub(crate) fn filled(&self, disk: usize) -> u64 {
        if !self.running {
            let is = |byte: &u64| self.qemu_io(DISKS[disk], &format!("read -q -P {byte} 1M 64k"));
            return (0..8).find(is).unwrap();
        }
        // A raw copy of the live disk, made by QEMU.
        let copy = self.image("copy.raw");
        drop(std::fs::remove_file(&copy));
        self.ask(
            "drive-backup",
            json!({"job-id": "copy", "device": format!("disk{disk}"), "sync": "full",
            "target": copy, "format": "raw"}),
        );
        let end = Instant::now() + Duration::from_secs(60);
        while self.ask("query-block-jobs", json!({})) != json!([]) {
            assert!(Instant::now() < end, "copied");
            std::thread::sleep(Duration::from_millis(10));
        }
        let bytes = std::fs::read(&copy).unwrap();
        u64::from(bytes[1024 * 1024])
    }
}

impl Drop for PrivateQemu {
    fn drop(&mut self) {
        script("stop", self.folder.path());
    }
}

pub(crate) const DISKS: [&str; 2] = ["web01.qcow2", "web01-b.qcow2"];

/// How an adapter finds the VM.
pub(crate) fn config(folder: &Path) -> qemu::Config {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    qemu::Config {
        qmp: path("{vm}.qmp"),
        images: vec![path("{vm}.qcow2"), path("{vm}-b.qcow2")],
        ..qemu::Config::default()
    }
}

/// An adapter for the VM.
pub(crate) fn plain(folder: &Path) -> qemu::Qemu {
    qemu::Qemu::new(config(folder), SystemClock::shared(), Tasks::default())
}

/// A gateway's adapter for the VM with annotations of its own.
pub(crate) fn adapter(folder: &Path, memory: &Arc<MemoryAnnotations>) -> Arc<dyn Adapter> {
    annotated(config(folder), memory)
}

/// The same, with another configuration.
pub(crate) fn annotated(config: qemu::Config, memory: &Arc<MemoryAnnotations>) -> Arc<dyn Adapter> {
    let made = qemu::Qemu::new(config, SystemClock::shared(), Tasks::default());
    let backend = BackendName::new("qemu").unwrap();
    let memory: Arc<MemoryAnnotations> = Arc::clone(memory);
    Arc::new(Annotate::new(
        backend,
        Arc::new(made),
        memory,
        SystemClock::shared(),
    ))
}

impl conformance::AdapterFixture for PrivateQemu {
    fn set_other_vm(&self, id: &str, exists: bool) -> bool {
        for image in [format!("{id}.qcow2"), format!("{id}-b.qcow2")] {
            let image = self.folder.path().join(image);
            if exists {
                std::fs::write(image, "").unwrap();
            } else {
                std::fs::remove_file(image).unwrap();
            }
        }
        true
    }
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(plain(&self.folder.path().join("not-mounted"))))
    }
    fn name(&self) -> &'static str {
        if self.running {
            "qemu, running"
        } else {
            "qemu, stopped"
        }
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::clone(&self.adapter)
    }
    fn vm(&self) -> VmId {
        vm()
    }
    fn write(&self, content: u64) {
        self.fill(0, content);
        self.fill(1, content);
    }
    fn content(&self) -> u64 {
        self.found().expect("both disks are of one time")
    }
    fn found(&self) -> Option<u64> {
        let (one, two) = (self.filled(0), self.filled(1));
        (one == two).then_some(one)
    }
    fn killed(&self) {
        if !self.running {
            self.let_go();
        }
    }
    fn adapter_after_restart(&self) -> Arc<dyn Adapter> {
        Arc::new(plain(self.folder.path()))
    }
    fn pause(&self, paused: bool) -> bool {
        if self.running {
            self.ask(if paused { "stop" } else { "cont" }, json!({}));
        }
        self.running
    }
    fn kill_moments(&self) -> KillMoments {
        KillMoments::All
    }
}

pub(crate) fn vm() -> VmId {
    VmId::new("web01").unwrap()
}

pub(crate) fn restore(backup: &Backup) -> Intent {
    on(backup, &vm(), Change::Restore(RestoreOptions::default()))
}

/// Makes a backup and reads it.
pub(crate) async fn backup(adapter: &dyn Adapter, name: &str, number: u64) -> Backup {
    let intent = create(adapter, &vm(), name, number);
    assert_eq!(run(adapter, &intent, number).await, Ok(()), "{name} made");
    adapter.read_backup(&intent.target, by()).await.unwrap()
}

/// Begins without following.
pub(crate) async fn begun(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> (Option<Evidence>, TaskRef) {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = begin_as_planned(adapter, intent, key(number), baseline.as_ref(), by()).await;
    match begun.unwrap() {
        BeginOutcome::Task(task) => (baseline, task),
        BeginOutcome::Done => panic!("{number}: it is a task"),
    }
}

/// Asks again until there is evidence of the end.
pub(crate) async fn found(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    before: Option<&Evidence>,
) -> FindOutcome {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match adapter
            .find_outcome(intent, key(number), before, by())
            .await
        {
            Ok(FindOutcome::Task(_) | FindOutcome::NotYet) | Err(_) => {}
            Ok(found) => return found,
        }
        assert!(Instant::now() < end, "{number}: found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
