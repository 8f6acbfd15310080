//! Images that a QEMU uses are left alone, and a QEMU refuses those that the gateway uses.

use std::fs;
use std::process::Command;
use std::process::Stdio;

use super::test_fixture::Fixture;
use super::test_fixture::by;
use super::test_fixture::create;
use super::test_fixture::restore;
use super::*;
use crate::model::RunState;

/// A program of QEMU that keeps an image open until its input ends.
fn holder(fixture: &Fixture, read_only: bool) -> std::process::Child {
    let mut command = Command::new("qemu-io");
    if read_only {
        command.arg("-r");
    }
    let spawned = command
        .args(["-f", "raw"])
        .arg(fixture.disk("a.raw"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = spawned.expect("qemu-io is installed");
    // It answers once the image is open and locked.
    let (stdin, stdout) = (
        child.stdin.as_mut().unwrap(),
        child.stdout.as_mut().unwrap(),
    );
    std::io::Write::write_all(stdin, b"length\n").unwrap();
    let mut byte = [0; 1];
    std::io::Read::read_exact(stdout, &mut byte).unwrap();
    let mut output = Vec::new();
    while !output.ends_with(b"MiB") && !output.ends_with(b"KiB") && output.len() < 4096 {
        std::io::Read::read_exact(stdout, &mut byte).unwrap();
        output.push(byte[0]);
    }
    child
}

fn release(mut child: std::process::Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "qemu-io ends well");
}

#[tokio::test]
#[ignore = "needs qemu-io"]
async fn images_that_qemu_uses_are_left_alone() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    let child = holder(&fixture, false);
    let busy = Some(FaultKind::Busy);
    assert_eq!(
        fixture.failure(&create("vm", 2, "x"), 2).await,
        busy,
        "create"
    );
    assert_eq!(fixture.failure(&restore(&backup), 3).await, busy, "restore");
    let vm = fixture
        .files
        .read_vm(&VmId::new("vm").unwrap(), by())
        .await
        .unwrap();
    assert_eq!(vm.run_state, Some(RunState::Started), "seen to run");
    release(child);
    let child = holder(&fixture, true);
    assert_eq!(
        fixture.failure(&create("vm", 4, "x"), 4).await,
        None,
        "beside a reader"
    );
    assert_eq!(
        fixture.failure(&restore(&backup), 5).await,
        busy,
        "not under a reader"
    );
    release(child);
    assert_eq!(
        fixture.failure(&restore(&backup), 6).await,
        None,
        "when it is free"
    );
}

#[tokio::test]
#[ignore = "needs qemu-io"]
async fn qemu_refuses_images_that_are_being_copied_or_replaced() {
    let fixture = Fixture::new();
    let open = |read_only: bool| {
        let mut command = Command::new("qemu-io");
        if read_only {
            command.arg("-r");
        }
        let output = command
            .args(["-f", "raw", "-c", "length"])
            .arg(fixture.disk("a.raw"))
            .output();
        output.map(|output| output.status.success())
    };
    open(false).expect("qemu-io is installed");
    let rows = [
        (
            "copied, for writing",
            image_lock::ImageUse::Read,
            false,
            false,
        ),
        (
            "copied, for reading",
            image_lock::ImageUse::Read,
            true,
            true,
        ),
        (
            "replaced, for writing",
            image_lock::ImageUse::Replace,
            false,
            false,
        ),
        (
            "replaced, for reading",
            image_lock::ImageUse::Replace,
            true,
            false,
        ),
    ];
    for (name, image_use, read_only, expected) in rows {
        let file = fs::File::open(fixture.disk("a.raw")).unwrap();
        image_lock::acquire(&file, image_use).expect(name);
        assert_eq!(open(read_only).unwrap(), expected, "{name}");
        drop(file);
        assert!(open(read_only).unwrap(), "{name}: free again");
    }
}
