//! The libvirt adapter where something else uses the VM: block jobs, firmware, other clients, starts and stops.

use snapgate::adapters::adapter::*;
use snapgate::model::*;

use crate::conformance::begin_as_planned;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::run;
use crate::conformance::run_among_others;
use crate::harness::eventually;
use crate::libvirt::made;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;
use crate::libvirt::restore;
use crate::libvirt::vm;

/// The ids of all backups, in order.
async fn ids(adapter: &dyn Adapter, of: &VmId) -> Vec<String> {
    let page = Page {
        after: None,
        limit: 99,
    };
    let listed = adapter.list_backups(of, &page, by()).await.unwrap();
    let ids = listed
        .backups
        .iter()
        .map(|backup| backup.id.as_str().to_owned());
    ids.collect()
}

#[apply(test)]
async fn a_block_job_keeps_requests_out_and_the_vm_runs_on() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write(1);
    let backup = made(adapter, &web01, "wanted", 1).await;
    libvirtd.write(2);
    let number = libvirtd.number("web01");
    let copy = libvirtd.folder().join("copy.qcow2");
    let copy = copy.to_str().unwrap();
    // So slow that it never ends by itself.
    let slow = ["--transient-job", "--bandwidth", "1", "--bytes"];
    libvirtd.virsh(&[&["blockcopy", "web01", "vda", copy][..], &slow].concat());
    let jobs = || libvirtd.monitor("web01", "info block-jobs");
    assert!(jobs().contains("mirror"), "it copies: {}", jobs());

    let to = restore(&backup, &web01, "");
    let refused = begin_as_planned(adapter, &to, key(2), None, by()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.fault.kind, FaultKind::Busy, "restore: {refused:?}");
    assert_eq!(refused.effect, Effect::None, "restore: {refused:?}");
    let more = create(adapter, &web01, "more", 3);
    assert_eq!(
        run(adapter, &more, 3).await,
        Err(FaultKind::Busy),
        "libvirt makes none meanwhile"
    );
    assert_eq!(ids(adapter, &web01).await, ["snapgate-1"], "nothing more");
    assert!(jobs().contains("mirror"), "it still copies: {}", jobs());
    assert_eq!(libvirtd.state("web01"), "running", "it runs");
    assert_eq!(libvirtd.number("web01"), number, "it was not restarted");
    assert_eq!(libvirtd.read("web01.qcow2"), 2, "its disk was left alone");
    let counted = libvirtd.counter("web01");
    eventually("it counts on", || libvirtd.counter("web01") > counted);

    libvirtd.virsh(&["blockjob", "web01", "vda", "--abort"]);
    eventually("no job is left", || !jobs().contains("mirror"));
    assert_eq!(run(adapter, &to, 4).await, Ok(()), "once it is over");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "put back");
    assert_eq!(libvirtd.state("web01"), "running", "and runs");
}

#[apply(test)]
async fn a_vm_with_uefi_firmware_is_left_as_it_is() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write_off("web02a.qcow2", 1);
    let backup = made(adapter, &web02, "before", 1).await;
    libvirtd.write_off("web02a.qcow2", 2);
    let (flash, variables) = (
        libvirtd.folder().join("f.fd"),
        libvirtd.folder().join("v.fd"),
    );
    std::fs::write(&flash, vec![0; 65536]).unwrap();
    let boot = "<boot dev='hd'/>";
    let firmware = format!(
        "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>{boot}",
        flash.display(),
        variables.display()
    );
    let plain = libvirtd.virsh(&["dumpxml", "web02"]);
    assert!(plain.contains(boot), "{plain}");
    let path = libvirtd.folder().join("uefi.xml");
    std::fs::write(&path, plain.replacen(boot, &firmware, 1)).unwrap();
    libvirtd.virsh(&["define", path.to_str().unwrap()]);
    let defined = libvirtd.virsh(&["dumpxml", "web02"]);
    assert!(defined.contains("type='pflash'"), "{defined}");

    let intents = [
        create(adapter, &web02, "after", 2),
        restore(&backup, &web02, ""),
    ];
    for (number, intent) in (2..).zip(&intents) {
        let refused = begin_as_planned(adapter, intent, key(number), None, by()).await;
        let refused = refused.unwrap_err();
        let name = &intent.change;
        assert_eq!(
            refused.fault.kind,
            FaultKind::Unsupported,
            "{name:?}: {refused:?}"
        );
        assert_eq!(refused.effect, Effect::None, "{name:?}: {refused:?}");
        assert_eq!(
            libvirtd.virsh(&["dumpxml", "web02"]),
            defined,
            "{name:?}: the definition"
        );
        assert_eq!(libvirtd.read("web02a.qcow2"), 2, "{name:?}: the disk");
        assert_eq!(libvirtd.state("web02"), "shut off", "{name:?}: off");
        assert_eq!(ids(adapter, &web02).await, ["snapgate-1"], "{name:?}");
    }

    let path = libvirtd.folder().join("plain.xml");
    std::fs::write(&path, plain).unwrap();
    libvirtd.virsh(&["undefine", "web02", "--snapshots-metadata", "--keep-nvram"]);
    libvirtd.virsh(&["define", path.to_str().unwrap()]);
    let again = create(adapter, &web02, "plain again", 4);
    assert_eq!(run(adapter, &again, 4).await, Ok(()), "only the firmware");
}

#[apply(test)]
async fn two_clients_of_one_vm_take_turns_and_both_get_true_answers() {
    let libvirtd = PrivateLibvirtd::start();
    let (one, two, web01) = (libvirtd.adapter(), libvirtd.adapter(), vm("web01"));
    let (one, two): (&dyn Adapter, &dyn Adapter) = (one.as_ref(), two.as_ref());
    libvirtd.write(1);
    let backup = made(one, &web01, "base", 1).await;
    let number = libvirtd.number("web01");

    let mut maker = libvirtd.held_snapshot("theirs");
    let to = restore(&backup, &web01, "");
    let refused = one.begin(&to, key(2), None, by()).await.map(|_| ());
    let waits = create(two, &web01, "waits", 3);
    let begun = two.begin(&waits, key(3), None, by()).await;
    libvirtd.signal("web01", "CONT");
    assert!(maker.wait().unwrap().success(), "theirs is made");
    let refused = refused.unwrap_err();
    assert_eq!(refused.fault.kind, FaultKind::Busy, "restore: {refused:?}");
    assert_eq!(refused.effect, Effect::None, "restore: {refused:?}");
    assert!(
        matches!(begun, Ok(BeginOutcome::Task(_))),
        "it waits for its turn: {begun:?}"
    );
    // The same request again follows what was begun.
    assert_eq!(run(two, &waits, 3).await, Ok(()), "then it is made");
    for adapter in [one, two] {
        let ids = ids(adapter, &web01).await;
        assert_eq!(ids, ["snapgate-1", "snapgate-3", "theirs"], "for both");
    }
    assert_eq!(libvirtd.number("web01"), number, "it was not restarted");

    for turn in 0..4 {
        libvirtd.write(2);
        let (restoring, creating) = (10 + turn, 20 + turn);
        let new = create(two, &web01, &format!("turn {turn}"), creating);
        let (back, made) = tokio::join!(
            run_among_others(one, &to, restoring),
            run_among_others(two, &new, creating)
        );
        let content = match back {
            Ok(()) => 1,
            Err(kind) => {
                assert_eq!(kind, FaultKind::Busy, "turn {turn}: restore");
                2
            }
        };
        assert_eq!(
            libvirtd.read("web01.qcow2"),
            content,
            "turn {turn}: {back:?}"
        );
        if let Err(kind) = made {
            assert_eq!(kind, FaultKind::Busy, "turn {turn}: create");
        }
        let is_there = one.read_backup(&new.target, by()).await.is_ok();
        assert_eq!(is_there, made.is_ok(), "turn {turn}: {made:?}");
        assert!(back.is_ok() || made.is_ok(), "turn {turn}: one had its way");
        // The one that came second may still be letting go of the VM.
        eventually(&format!("turn {turn}: it runs"), || {
            libvirtd.state("web01") == "running"
        });
    }
}

#[apply(test)]
async fn a_vm_that_stops_and_starts_between_requests_keeps_its_backups() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let run_state = || async { adapter.read_vm(&web01, by()).await.unwrap().run_state };
    assert!(ids(adapter, &web01).await.is_empty(), "none yet");
    libvirtd.write(1);
    let backup = made(adapter, &web01, "while on", 1).await;
    assert_eq!(run_state().await, Some(RunState::Started), "on");

    libvirtd.virsh(&["destroy", "web01"]);
    libvirtd.write_off("web01.qcow2", 2);
    assert_eq!(run_state().await, Some(RunState::Stopped), "off");
    assert_eq!(ids(adapter, &web01).await, ["snapgate-1"], "while off");
    let to = restore(&backup, &web01, "");
    let read = adapter.read_backup(&to.target, by()).await;
    assert_eq!(read.unwrap(), backup, "the same backup");
    assert_eq!(run(adapter, &to, 2).await, Ok(()), "restored while off");
    assert_eq!(libvirtd.state("web01"), "shut off", "it stays off");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "its disk is put back");

    libvirtd.virsh(&["start", "web01"]);
    eventually("it boots and counts", || libvirtd.counter("web01") > 0);
    assert_eq!(run_state().await, Some(RunState::Started), "on again");
    made(adapter, &web01, "on again", 3).await;
    let both = ["snapgate-1", "snapgate-3"];
    assert_eq!(ids(adapter, &web01).await, both, "both");
    libvirtd.write(3);
    assert_eq!(run(adapter, &to, 4).await, Ok(()), "restored while on");
    assert_eq!(libvirtd.state("web01"), "running", "it runs");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "put back again");
    assert_eq!(ids(adapter, &web01).await, both, "still both");
}
