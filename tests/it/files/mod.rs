//! The files adapter beside real tools: QEMU's own programs on the same images, and file systems that are full.

mod downtime;
mod permissions;
mod storage;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use snapgate::adapters::adapter::Adapter;
use snapgate::adapters::adapter::BeginOutcome;
use snapgate::adapters::adapter::TaskState;
use snapgate::adapters::files::Config;
use snapgate::adapters::files::Files;
use snapgate::model::Backup;
use snapgate::model::Change;
use snapgate::model::FaultKind;
use snapgate::model::Intent;
use snapgate::model::Progress;
use snapgate::model::RestoreOptions;
use snapgate::model::RunState;
use snapgate::model::TaskRef;
use snapgate::model::VmId;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;
use tempfile::TempDir;

use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::conformance::run;
use crate::harness::eventually;
use crate::requirements::find_program;
use crate::requirements::require_programs;
use crate::runner::skip;
use crate::runner::skip_part;

const MIB: usize = 1 << 20;

/// One VM `1` with one disk.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(place.root().join("1")).unwrap();
        fs::create_dir(place.backups()).unwrap();
        place
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("vms")
    }

    fn backups(&self) -> PathBuf {
        self.0.path().join("backups")
    }

    fn disk(&self) -> PathBuf {
        self.root().join("1/disk.img")
    }

    fn files(&self) -> Arc<dyn Adapter> {
        let config = Config {
            root: self.root(),
            backups: self.backups(),
            new_folders: true,
        };
        Arc::new(Files::new(config, SystemClock::shared(), Tasks::default()).unwrap())
    }

    fn fill(&self, byte: u8, mebibytes: usize) {
        fs::write(self.disk(), vec![byte; mebibytes * MIB]).unwrap();
    }

    fn holds(&self, byte: u8, mebibytes: usize) -> bool {
        let content = fs::read(self.disk()).unwrap();
        content.len() == mebibytes * MIB && content.iter().all(|other| *other == byte)
    }
}

fn vm() -> VmId {
    VmId::new("1").unwrap()
}

async fn back_up(files: &dyn Adapter, name: &str, number: u64) -> Backup {
    let intent = create(files, &vm(), name, number);
    assert_eq!(run(files, &intent, number).await, Ok(()), "{name} is made");
    files.read_backup(&intent.target, by()).await.unwrap()
}

fn to_restore(backup: &Backup) -> Intent {
    on(backup, &vm(), Change::Restore(RestoreOptions::default()))
}

/// A program that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Waits until it holds all its locks: a program that will write takes that of readers first.
    fn start(program: &str, arguments: &[&str], image: &Path, writes: bool) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let inode = format!(":{} ", fs::metadata(image).unwrap().ino());
        eventually(&format!("{program} {arguments:?} locks the image"), || {
            let ended = holder.0.try_wait().unwrap();
            assert!(ended.is_none(), "{program} {arguments:?}: {ended:?}");
            // Byte 101 stands for writing: QEMU's locks on 100 and 101 are shown as one range.
            let wanted = if writes { " 101" } else { " 100" };
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks
                .lines()
                .any(|line| line.contains(&inode) && line.ends_with(wanted))
        });
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[apply(test)]
async fn an_image_that_qemu_has_open_is_left_alone() {
    let place = Place::new();
    place.fill(1, 1);
    let files = place.files();
    let files = files.as_ref();
    let backup = back_up(files, "one", 1).await;
    place.fill(2, 1);
    let image = place.disk();
    let path = image.to_str().unwrap();
    let drive = format!("file={path},format=raw,if=virtio");
    let socket = place.0.path().join("nbd");
    let socket = socket.to_str().unwrap();
    // A copy can be made beside a program that only reads.
    let rows: [(&str, &[&str], Result<(), FaultKind>); 4] = [
        ("qemu-io", &["-f", "raw", path], Err(FaultKind::Busy)),
        ("qemu-io", &["-r", "-f", "raw", path], Ok(())),
        (
            "qemu-nbd",
            &["-t", "-f", "raw", "-k", socket, path],
            Err(FaultKind::Busy),
        ),
        (
            "qemu-system-x86_64",
            &[
                "-nodefaults",
                "-display",
                "none",
                "-S",
                "-m",
                "16",
                "-accel",
                "tcg",
                "-drive",
                &drive,
            ],
            Err(FaultKind::Busy),
        ),
    ];
    let mut number = 10;
    for (program, arguments, created) in rows {
        if let Err(reason) = find_program(program) {
            skip_part(&reason);
            continue;
        }
        let holder = Holder::start(program, arguments, &image, created.is_err());
        number += 2;
        let state = files.read_vm(&vm(), by()).await.unwrap().run_state;
        let is_started = state == Some(RunState::Started);
        assert!(
            is_started || created.is_ok(),
            "{program} {arguments:?}: {state:?}"
        );
        let outcome = run(files, &create(files, &vm(), program, number), number).await;
        assert_eq!(outcome, created, "{program} {arguments:?}: create");
        let refused = run(files, &to_restore(&backup), number + 1).await;
        assert_eq!(
            refused,
            Err(FaultKind::Busy),
            "{program} {arguments:?}: restore"
        );
        assert!(
            place.holds(2, 1),
            "{program} {arguments:?}: nothing is touched"
        );
        drop(holder);
    }
    back_up(files, "two", 50).await;
    assert_eq!(run(files, &to_restore(&backup), 51).await, Ok(()), "closed");
    assert!(place.holds(1, 1), "restored");
}

/// Runs the tool on the image until the task ends; how often it was refused, and whether it works afterwards.
async fn meanwhile(files: &dyn Adapter, task: &TaskRef, tool: &[&str]) -> (usize, bool) {
    let attempt = || {
        let mut command = Command::new(tool[0]);
        command
            .args(&tool[1..])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let mut refused = 0;
    loop {
        // The task runs on the same thread as this test.
        tokio::task::yield_now().await;
        let state = files.poll(task, by()).await.unwrap();
        let TaskState::Running(progress) = state else {
            assert!(matches!(state, TaskState::Done(_)), "{state:?}");
            return (refused, attempt().status.success());
        };
        if progress.is_none_or(|progress| progress == Progress::NONE) {
            // It may not have locked the image yet, and would be refused itself.
            continue;
        }
        let output = attempt();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("lock"), "refused because of the lock: {said}");
            refused += 1;
        }
    }
}

#[apply(test)]
async fn qemu_is_kept_out_while_we_work() {
    let place = Place::new();
    place.fill(1, 192);
    let files = place.files();
    let files = files.as_ref();
    let path = place.disk();
    let path = path.to_str().unwrap();
    let write = ["qemu-io", "-f", "raw", "-c", "write -P 1 0 512", path];
    let read = ["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path];
    require_programs(&[write[0]]);
    let backup = back_up(files, "one", 1).await;
    let rows = [
        (
            "no writes during a create",
            create(files, &vm(), "two", 2),
            &write[..],
            true,
        ),
        (
            "others read during a create",
            create(files, &vm(), "three", 3),
            &read[..],
            false,
        ),
        (
            "no writes during a restore",
            to_restore(&backup),
            &write[..],
            true,
        ),
        (
            "no reads during a restore",
            to_restore(&backup),
            &read[..],
            true,
        ),
    ];
    for (number, (name, intent, tool, is_refused)) in (10..).zip(rows) {
        let begun = files.begin(&intent, key(number), None, by()).await.unwrap();
        let BeginOutcome::Task(task) = begun else {
            panic!("{name}: done at once");
        };
        let (refused, afterwards) = meanwhile(files, &task, tool).await;
        assert_eq!(refused > 0, is_refused, "{name}: refused {refused} times");
        assert!(afterwards, "{name}: let in again");
    }
    assert!(place.holds(1, 192), "as it was");
}

/// A file system of its own.
struct TmpfsMount(PathBuf);

impl TmpfsMount {
    /// Skips the test where that is not permitted.
    fn new(at: &Path) -> Self {
        let mounted = mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], at);
        if !mounted {
            skip("no right to mount a file system");
        }
        Self(at.to_owned())
    }

    fn grow(&self) {
        assert!(mount(&["-o", "remount,size=64m"], &self.0), "grown");
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    let output = Command::new("mount").args(arguments).arg(at).output();
    output.is_ok_and(|output| output.status.success())
}

#[apply(test)]
async fn no_room_for_a_backup() {
    let place = Place::new();
    let storage = TmpfsMount::new(&place.backups());
    place.fill(1, 3);
    let files = place.files();
    let files = files.as_ref();
    let backup = back_up(files, "one", 1).await;
    place.fill(2, 12);
    let big = create(files, &vm(), "big", 2);
    assert_eq!(
        run(files, &big, 2).await,
        Err(FaultKind::StorageFull),
        "no room"
    );
    let left: Vec<_> = fs::read_dir(place.backups().join("1")).unwrap().collect();
    assert_eq!(left.len(), 1, "the copy is removed: {left:?}");
    assert_eq!(
        run(files, &to_restore(&backup), 3).await,
        Ok(()),
        "the other one is whole"
    );
    assert!(place.holds(1, 3), "restored");
    place.fill(2, 12);
    storage.grow();
    assert_eq!(
        run(files, &big, 2).await,
        Ok(()),
        "the same request, with room"
    );
}

#[apply(test)]
async fn no_room_for_a_restore() {
    let place = Place::new();
    let storage = TmpfsMount::new(&place.root());
    fs::create_dir(place.root().join("1")).unwrap();
    place.fill(1, 5);
    let files = place.files();
    let files = files.as_ref();
    let backup = back_up(files, "one", 1).await;
    place.fill(2, 5);
    let restore = to_restore(&backup);
    assert_eq!(
        run(files, &restore, 2).await,
        Err(FaultKind::StorageFull),
        "no room"
    );
    assert!(place.holds(2, 5), "nothing is touched");
    let left: Vec<_> = fs::read_dir(place.root().join("1")).unwrap().collect();
    assert_eq!(left.len(), 1, "the copies are removed: {left:?}");
    storage.grow();
    assert_eq!(
        run(files, &restore, 2).await,
        Ok(()),
        "the same request, with room"
    );
    assert!(place.holds(1, 5), "restored");
}
