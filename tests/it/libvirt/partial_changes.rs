//! Changes that fail on one disk of several: the Status names each disk, and the change can be finished.

use snapgate::adapters::adapter::*;
use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::model::*;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::conformance::run;
use crate::libvirt::disks::BOTH;
use crate::libvirt::disks::failure;
use crate::libvirt::made;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;
use crate::libvirt::restore;
use crate::libvirt::vm;

#[apply(test)]
async fn a_restore_that_fails_all_the_same_says_what_became_of_the_vm_and_its_disks() {
    let libvirtd = PrivateLibvirtd::start();
    let config = Config {
        inspect_disks: false,
        ..libvirtd.config()
    };
    // It does not look, so it runs into it.
    let blind = Libvirt::new(config, SystemClock::shared(), Tasks::default());
    let (adapter, web01, web02) = (libvirtd.adapter(), vm("web01"), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web01, "on", 1).await;
    libvirtd.monitor("web01", "delvm snapgate-1");
    let text = failure(&blind, &restore(&backup, &web01, ""), 2).await;
    assert!(text.contains("half-way"), "{text}");
    assert!(text.contains("the VM is off"), "{text}");
    assert!(text.contains("start the VM"), "the remedy: {text}");
    assert_eq!(libvirtd.state("web01"), "shut off", "it is");

    let fill = |byte| BOTH.map(|disk| libvirtd.write_off(disk, byte));
    fill(1);
    let backup = made(adapter, &web02, "two", 3).await;
    fill(2);
    let held = libvirtd.hold("web02b.qcow2");
    let text = failure(&blind, &restore(&backup, &web02, ""), 4).await;
    drop(held);
    assert!(text.contains("the VM is off"), "{text}");
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 2], "half of it");

    // libvirt itself forgets a snapshot of which it left a part behind.
    let held = libvirtd.hold("web02b.qcow2");
    assert_eq!(
        run(&blind, &on(&backup, &web02, Change::Delete), 5).await,
        Ok(()),
        "so it says"
    );
    drop(held);
    assert_eq!(libvirtd.tags("web02b.qcow2"), ["snapgate-3"], "left behind");
}

/// Makes the snapshot of this name on a disk one that QEMU can neither restore nor delete, or mends it again.
fn spoil(libvirtd: &PrivateLibvirtd, disk: &str, name: &str) {
    let path = libvirtd.image(disk);
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = format!("1{name}");
    let found = bytes
        .windows(needle.len())
        .position(|window| window == needle.as_bytes());
    let at = found.expect("the snapshot with the id 1");
    let is_extra = |extra: &usize| {
        let length = at - extra - 4;
        bytes[length..length + 4] == u32::try_from(*extra).unwrap().to_be_bytes()
    };
    let extra = [16, 24]
        .into_iter()
        .find(is_extra)
        .expect("the length of what is extra");
    // The place of its table, which must be a multiple of a cluster.
    bytes[at - extra - 33] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[apply(test)]
async fn a_change_that_ends_half_way_names_the_disks_and_can_be_finished() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let fill = |byte| BOTH.map(|disk| libvirtd.write_off(disk, byte));
    fill(1);
    let backup = made(adapter, &web02, "two", 3).await;
    fill(2);
    spoil(&libvirtd, BOTH[1], "snapgate-3");
    let text = failure(adapter, &restore(&backup, &web02, ""), 4).await;
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 2], "half of it");
    for words in [
        "data of the backup is on disk vda",
        "disk vdb was not restored",
        "the VM is off",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    spoil(&libvirtd, BOTH[1], "snapgate-3");
    let to = restore(&backup, &web02, "");
    assert_eq!(run(adapter, &to, 5).await, Ok(()), "finished");
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 1], "all of it");

    spoil(&libvirtd, BOTH[1], "snapgate-3");
    let delete = on(&backup, &web02, Change::Delete);
    let text = failure(adapter, &delete, 6).await;
    assert!(text.contains("disk vdb still has its part"), "{text}");
    assert!(text.contains("Delete the backup again"), "{text}");
    assert!(libvirtd.tags(BOTH[0]).is_empty(), "gone from the first");
    let read = adapter.read_backup(&delete.target, by()).await.unwrap();
    assert_eq!(read, backup, "listed still, so that it can be finished");
    spoil(&libvirtd, BOTH[1], "snapgate-3");
    assert_eq!(run(adapter, &delete, 7).await, Ok(()), "finished");
    assert!(libvirtd.tags(BOTH[1]).is_empty(), "gone from both");
}

#[apply(test)]
async fn a_vm_whose_disks_were_changed_before_a_lost_restore_began_is_seen() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let fill = |byte| BOTH.map(|disk| libvirtd.write_off(disk, byte));
    fill(1);
    let backup = made(adapter, &web02, "base", 1).await;
    fill(2);
    let to = restore(&backup, &web02, "");
    let before = adapter.baseline(&to, key(2), by()).await.unwrap();
    let found = adapter
        .find_outcome(&to, key(2), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::NotBegun),
        "nothing was written to two disks: {found:?}"
    );
    libvirtd.run("qemu-img", &["snapshot", "-a", "snapgate-1", BOTH[0]]);
    let found = adapter
        .find_outcome(&to, key(2), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Unknowable),
        "half of it: {found:?}"
    );

    let web01 = vm("web01");
    let backup = made(adapter, &web01, "one disk", 3).await;
    made(adapter, &web01, "later", 4).await;
    let to = restore(&backup, &web01, "");
    let before = adapter.baseline(&to, key(5), by()).await.unwrap();
    let image = libvirtd.image("web01.qcow2");
    std::fs::rename(&image, libvirtd.image("aside")).unwrap();
    std::fs::copy(libvirtd.image("aside"), &image).unwrap();
    let found = adapter
        .find_outcome(&to, key(5), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::VmChanged),
        "replaced by others: {found:?}"
    );
    libvirtd.virsh(&["destroy", "web01"]);
    libvirtd.write_off("web01.qcow2", 7);
    let before = adapter.baseline(&to, key(5), by()).await.unwrap();
    libvirtd.write_off("web01.qcow2", 8);
    let found = adapter
        .find_outcome(&to, key(5), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::VmChanged),
        "written by others: {found:?}"
    );
}

#[apply(test)]
async fn a_delete_or_create_that_was_lost_names_the_disks_that_hold_an_unlisted_part() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web02, "two", 1).await;
    let delete = on(&backup, &web02, Change::Delete);
    let new = create(adapter, &web02, "lost", 2);
    let before = adapter.baseline(&new, key(2), by()).await.unwrap();
    // As libvirtd leaves it that was killed in the middle.
    libvirtd.run("qemu-img", &["snapshot", "-c", "snapgate-2", BOTH[1]]);
    libvirtd.virsh(&["snapshot-delete", "web02", "snapgate-1", "--metadata"]);
    let rows = [(&delete, 1, None), (&new, 2, before.as_ref())];
    for (intent, number, before) in rows {
        let found = adapter
            .find_outcome(intent, key(number + 10), before, by())
            .await
            .unwrap();
        let FindOutcome::Failed(fault) = &found else {
            panic!("{number}: {found:?}");
        };
        assert!(fault.text.contains("vdb"), "{number}: {fault:?}");
    }
    for (disk, tag) in [
        (BOTH[0], "snapgate-1"),
        (BOTH[1], "snapgate-1"),
        (BOTH[1], "snapgate-2"),
    ] {
        libvirtd.run("qemu-img", &["snapshot", "-d", tag, disk]);
    }
    let found = adapter
        .find_outcome(&delete, key(11), None, by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::Done(_)),
        "nothing is left: {found:?}"
    );
    let found = adapter
        .find_outcome(&new, key(12), before.as_ref(), by())
        .await
        .unwrap();
    assert!(
        matches!(found, FindOutcome::NotBegun),
        "nothing is left: {found:?}"
    );
}
