//! The adapter for QEMU against a real QEMU: the behaviour suite, roll-back of disk and memory, every refused restore.

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

use crate::conformance::{self, by, create, key, on, run};
use crate::conformance_kills::{Moments, kills, kills_of};
use crate::harness::eventually;
use crate::memory::Memory;
use crate::skip::skipped;

/// A VM of the test bed in a folder of its own; ended when dropped.
pub(crate) struct Bed {
    pub(crate) folder: tempfile::TempDir,
    adapter: Arc<dyn Adapter>,
    running: bool,
}

fn script(what: &str, folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/beds/qemu.sh");
    let done = Command::new("sh")
        .arg(script)
        .arg(what)
        .arg(folder)
        .output();
    let done = done.unwrap();
    assert!(done.status.success(), "bed {what}: {done:?}");
}

pub(crate) fn installed() -> bool {
    let all = ["qemu-system-x86_64", "qemu-img", "qemu-io"];
    let there = all
        .iter()
        .all(|it| Command::new(it).arg("--version").output().is_ok());
    if !there {
        skipped("qemu-system-x86 and qemu-utils");
    }
    there
}

impl Bed {
    pub(crate) fn new() -> Self {
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
        let mut bed = Self::new();
        bed.start();
        bed
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
    fn kill(&mut self) {
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
        let mut it = Command::new("qemu-io");
        let done = it
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

impl Drop for Bed {
    fn drop(&mut self) {
        script("stop", self.folder.path());
    }
}

pub(crate) const DISKS: [&str; 2] = ["web01.qcow2", "web01-b.qcow2"];

/// How an adapter finds the bed.
pub(crate) fn config(folder: &Path) -> qemu::Config {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    qemu::Config {
        qmp: path("{vm}.qmp"),
        images: vec![path("{vm}.qcow2"), path("{vm}-b.qcow2")],
        ..qemu::Config::default()
    }
}

/// An adapter on the bed.
pub(crate) fn plain(folder: &Path) -> qemu::Qemu {
    qemu::Qemu::new(config(folder), SystemClock::shared(), Tasks::default())
}

/// A gateway's adapter on the bed with annotations of its own.
pub(crate) fn adapter(folder: &Path, memory: &Arc<Memory>) -> Arc<dyn Adapter> {
    annotated(config(folder), memory)
}

/// The same, with another configuration.
pub(crate) fn annotated(config: qemu::Config, memory: &Arc<Memory>) -> Arc<dyn Adapter> {
    let made = qemu::Qemu::new(config, SystemClock::shared(), Tasks::default());
    let backend = BackendName::new("qemu").unwrap();
    let memory: Arc<Memory> = Arc::clone(memory);
    Arc::new(Annotate::new(
        backend,
        Arc::new(made),
        memory,
        SystemClock::shared(),
    ))
}

impl conformance::Bed for Bed {
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
    fn born(&self) -> Arc<dyn Adapter> {
        Arc::new(plain(self.folder.path()))
    }
    fn moments(&self) -> Moments {
        Moments::All
    }
    fn names_remedies(&self) -> bool {
        true
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
    adapter.read(&intent.target, by()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_behaves() {
    if installed() {
        conformance::suite(&Bed::started()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_behaves() {
    if installed() {
        conformance::suite(&Bed::new()).await;
    }
}

#[test]
fn a_running_vm_is_left_by_a_gateway_killed_between_any_two_steps() {
    if installed() {
        let bed = Bed::started();
        for verb in [Verb::Create, Verb::Delete, Verb::Restore] {
            kills_of(&bed, verb);
        }
    }
}

#[test]
fn a_stopped_vm_is_left_by_a_gateway_killed_between_any_two_steps() {
    if installed() {
        let bed = Bed::new();
        kills(&bed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_rolled_back_and_the_guest_goes_on() {
    if !installed() {
        return;
    }
    let bed = Bed::started();
    let adapter = bed.adapter.as_ref();
    let taken = backup(adapter, "memory", 1).await;
    let then = bed.counter().unwrap();
    eventually("it counts", || bed.counter().unwrap() > then);
    // A VM that is paused stays paused, and so shows exactly what was put back.
    bed.ask("stop", json!({}));
    let far = bed.counter().unwrap();
    assert_eq!(run(adapter, &restore(&taken), 2).await, Ok(()), "paused");
    assert_eq!(bed.status(), "paused", "it stays paused");
    let back = bed.counter().unwrap();
    assert!(back <= then, "{back} is not after {then}, but {far} was");
    bed.ask("cont", json!({}));

    // Far enough that a guest which merely went on is not taken for one that was rolled back.
    let end = Instant::now() + Duration::from_secs(60);
    let counted = Instant::now();
    let far = far.saturating_add(2000);
    while bed.counter().unwrap() < far || counted.elapsed() < Duration::from_secs(3) {
        assert!(Instant::now() < end, "it counts");
        std::thread::sleep(Duration::from_millis(20));
    }
    let far = bed.counter().unwrap();
    assert_eq!(run(adapter, &restore(&taken), 3).await, Ok(()), "running");
    let back = bed.counter().unwrap();
    assert!(back < far, "{back} is before {far}");
    assert_eq!(bed.status(), "running", "it goes on");
    eventually("it counts again", || bed.counter().unwrap() > back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_would_fail_half_way_is_refused() {
    if !installed() {
        return;
    }
    let bed = Bed::started();
    let adapter = bed.adapter.as_ref();
    let taken = backup(adapter, "good", 1).await;
    let refused = async |name: &str, of: &Backup, number: u64, expected: FaultKind| {
        let counted = bed.counter();
        assert_eq!(
            run(adapter, &restore(of), number).await,
            Err(expected),
            "{name}"
        );
        assert_eq!(bed.status(), "running", "{name}: the guest was left alone");
        assert!(bed.counter() >= counted, "{name}: not rolled back");
    };
    let bitmap = json!({"node": "disk1", "name": "bm"});
    bed.ask("block-dirty-bitmap-add", bitmap.clone());
    refused("bitmap", &taken, 2, FaultKind::Conflict).await;
    bed.ask("block-dirty-bitmap-remove", bitmap);
    let slow = json!({"job-id": "slow", "device": "disk1", "sync": "full", "speed": 65536,
        "target": bed.image("slow.qcow2"), "format": "qcow2"});
    bed.fill(1, 5);
    bed.ask("drive-backup", slow);
    refused("block job", &taken, 3, FaultKind::Conflict).await;
    bed.ask("block-job-cancel", json!({"device": "slow", "force": true}));
    let end = Instant::now() + Duration::from_secs(60);
    while bed.ask("query-block-jobs", json!({})) != json!([]) {
        assert!(Instant::now() < end, "cancelled");
    }
    let only = |device: &str, name: &str| {
        let snapshot = json!({"device": device, "name": name});
        bed.ask("blockdev-snapshot-internal-sync", snapshot);
    };
    only("disk0", "disk-only");
    only("disk1", "disk-only");
    only("disk0", "on-one-disk");
    let read = async |id: &str| {
        let backup = BackupId::new(id).unwrap();
        adapter
            .read(&Target { vm: vm(), backup }, by())
            .await
            .unwrap()
    };
    refused(
        "no memory",
        &read("disk-only").await,
        4,
        FaultKind::Conflict,
    )
    .await;
    let partial = read("on-one-disk").await;
    assert_eq!(partial.state, BackupState::Error, "it is not whole");
    refused("on one disk", &partial, 5, FaultKind::NotReady).await;
    assert_eq!(
        run(adapter, &restore(&taken), 6).await,
        Ok(()),
        "nothing is in the way any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_fails_leaves_the_vm_stopped_and_says_so() {
    if !installed() {
        return;
    }
    let bed = Bed::started();
    let adapter = bed.adapter.as_ref();
    let taken = backup(adapter, "good", 1).await;
    // Our job id with a load that must fail, as if a bitmap had come between the check and the load.
    bed.ask(
        "block-dirty-bitmap-add",
        json!({"node": "disk1", "name": "bm"}),
    );
    let load = json!({"job-id": "snapgate-2", "tag": taken.id.as_str(), "vmstate": "disk0", "devices": ["disk0", "disk1"]});
    bed.ask("snapshot-load", load);
    let found = found(adapter, &restore(&taken), 2, None).await;
    let FindOutcome::Failed(fault) = found else {
        panic!("failed: {found:?}");
    };
    assert_eq!(fault.kind, FaultKind::Conflict, "{fault:?}");
    assert!(
        fault.text.contains("paused") || fault.text.contains("still stopped"),
        "{fault:?}"
    );
    for part in ["(restored: disk disk0;", "not restored: disk disk1"] {
        assert!(fault.text.contains(part), "the disks are named: {fault:?}");
    }
    assert_eq!(bed.status(), "restore-vm", "nobody let it go on");
    bed.ask(
        "block-dirty-bitmap-remove",
        json!({"node": "disk1", "name": "bm"}),
    );
    assert_eq!(
        run(adapter, &restore(&taken), 3).await,
        Ok(()),
        "restored again"
    );
}

/// Begins without following.
pub(crate) async fn begun(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
) -> (Option<Evidence>, TaskRef) {
    let baseline = adapter.baseline(intent, key(number), by()).await.unwrap();
    let begun = adapter
        .begin(intent, key(number), baseline.as_ref(), by())
        .await;
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
        match adapter.find(intent, key(number), before, by()).await {
            Ok(FindOutcome::Task(_) | FindOutcome::NotYet) | Err(_) => {}
            Ok(found) => return found,
        }
        assert!(Instant::now() < end, "{number}: found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_back_finds_what_it_began() {
    if !installed() {
        return;
    }
    let bed = Bed::started();
    let memory = Arc::default();
    let first = adapter(bed.folder.path(), &memory);
    let intent = create(first.as_ref(), &vm(), "named", 1);
    let (before, task) = begun(first.as_ref(), &intent, 1).await;
    // The gateway ends: its adapter, its connection and its tasks are gone.
    drop(first);
    let second = adapter(bed.folder.path(), &memory);
    let second = second.as_ref();
    let end = Instant::now() + Duration::from_secs(60);
    // The connection of the first one is given up after a while; until then the monitor is held.
    while !matches!(second.poll(&task, by()).await, Ok(TaskState::Done)) {
        assert!(Instant::now() < end, "followed to its end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = second
        .find(&intent, key(1), before.as_ref(), by())
        .await
        .unwrap();
    assert!(matches!(found, FindOutcome::Done), "found: {found:?}");
    let named = second.read(&intent.target, by()).await.unwrap();
    assert_eq!(named.name.as_str(), "named", "it never lacks its name");
    // The same call again makes nothing twice.
    let again = second.begin(&intent, key(1), before.as_ref(), by()).await;
    assert!(
        again.is_ok() || again.is_err_and(|error| error.effect == Effect::None),
        "again"
    );
    let page = Page {
        after: None,
        limit: 10,
    };
    let listed = second.list(&vm(), &page, by()).await.unwrap();
    assert_eq!(listed.backups.len(), 1, "one backup: {listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_qemu_is_killed_nothing_is_guessed() {
    if !installed() {
        return;
    }
    let mut bed = Bed::started();
    let adapter = Arc::clone(&bed.adapter);
    let adapter = adapter.as_ref();
    let kept = backup(adapter, "kept", 1).await;

    let intent = create(adapter, &vm(), "lost", 2);
    let (before, task) = begun(adapter, &intent, 2).await;
    bed.kill();
    let made = match found(adapter, &intent, 2, before.as_ref()).await {
        FindOutcome::Done => true,
        FindOutcome::Failed(_) => false,
        other @ (FindOutcome::NotBegun
        | FindOutcome::VmChanged
        | FindOutcome::HalfDone(_)
        | FindOutcome::Task(_)
        | FindOutcome::NotYet
        | FindOutcome::Unknowable) => {
            panic!("the image tells: {other:?}")
        }
    };
    assert!(
        matches!(adapter.poll(&task, by()).await, Ok(TaskState::Gone)),
        "the job is gone"
    );
    let read = adapter.read(&intent.target, by()).await;
    assert_eq!(read.is_ok(), made, "as was found");

    bed.start();
    let (before, _) = begun(adapter, &restore(&kept), 3).await;
    bed.kill();
    let at_rest = found(adapter, &restore(&kept), 3, before.as_ref()).await;
    assert!(
        matches!(at_rest, FindOutcome::Unknowable),
        "off: {at_rest:?}"
    );
    bed.start();
    let restarted = found(adapter, &restore(&kept), 3, before.as_ref()).await;
    assert!(
        matches!(restarted, FindOutcome::Unknowable),
        "restarted: {restarted:?}"
    );

    let other = restore(&kept);
    let before = adapter.baseline(&other, key(4), by()).await.unwrap();
    let never = adapter
        .find(&other, key(4), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(never, FindOutcome::NotBegun),
        "the same QEMU knows of none: {never:?}"
    );
    let delete = on(&kept, &vm(), Change::Delete);
    assert_eq!(run(adapter, &delete, 5).await, Ok(()), "and all goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_serves_one_client_and_is_given_back() {
    if !installed() {
        return;
    }
    let bed = Bed::started();
    let adapter = bed.adapter.as_ref();
    let held = UnixStream::connect(bed.image("web01.qmp")).unwrap();
    let mut greeting = String::new();
    BufReader::new(held.try_clone().unwrap())
        .read_line(&mut greeting)
        .unwrap();
    let error = adapter.vm(&vm(), by()).await.unwrap_err();
    assert_eq!(
        error.fault.kind,
        FaultKind::Busy,
        "held by another: {error:?}"
    );
    drop(held);
    let end = Instant::now() + Duration::from_secs(60);
    while adapter.vm(&vm(), by()).await.is_err() {
        assert!(Instant::now() < end, "free again");
    }
    // Unused for a while, the gateway lets go of it.
    let held = UnixStream::connect(bed.image("web01.qmp")).unwrap();
    held.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut greeting = String::new();
    BufReader::new(held).read_line(&mut greeting).unwrap();
    assert!(greeting.contains("QMP"), "greeted: {greeting}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_may_be_stopped_and_started_between_requests() {
    if !installed() {
        return;
    }
    let mut bed = Bed::started();
    let adapter = Arc::clone(&bed.adapter);
    let adapter = adapter.as_ref();
    let state = async || adapter.vm(&vm(), by()).await.unwrap().run_state;
    bed.fill(0, 1);
    bed.fill(1, 1);
    let live = backup(adapter, "live", 1).await;
    assert_eq!(state().await, Some(RunState::Started), "running");
    bed.stop();
    assert_eq!(state().await, Some(RunState::Stopped), "stopped");
    let target = Target {
        vm: vm(),
        backup: live.id.clone(),
    };
    assert_eq!(
        adapter.read(&target, by()).await.unwrap(),
        live,
        "the same backup"
    );
    bed.fill(0, 2);
    bed.fill(1, 2);
    let off = backup(adapter, "off", 2).await;
    assert_eq!(
        run(adapter, &restore(&live), 3).await,
        Ok(()),
        "restored at rest"
    );
    assert_eq!(
        (bed.filled(0), bed.filled(1)),
        (1, 1),
        "both disks are back"
    );
    bed.start();
    assert_eq!(state().await, Some(RunState::Started), "running again");
    let error = run(adapter, &restore(&off), 4).await;
    assert_eq!(error, Err(FaultKind::Conflict), "it holds no memory");
    assert_eq!(
        run(adapter, &restore(&live), 5).await,
        Ok(()),
        "restored live"
    );
    assert_eq!((bed.filled(0), bed.filled(1)), (1, 1), "as it was taken");

    // An image that is in use by a QEMU which the gateway does not see is left alone.
    std::fs::rename(bed.image("web01.qmp"), bed.image("hidden")).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let error = loop {
        // The open connection is used for a while.
        match state().await {
            Some(RunState::Stopped) => break run(adapter, &restore(&off), 6).await,
            _ => tokio::time::sleep(Duration::from_secs(11)).await,
        }
        assert!(Instant::now() < end, "unseen");
    };
    assert_eq!(error, Err(FaultKind::Busy), "QEMU guards its images");
    bed.img(&["snapshot", "-l", "-U"], DISKS[0]);
}
