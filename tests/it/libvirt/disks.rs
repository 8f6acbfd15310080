//! The libvirt adapter on disks as they really are: held, moved, shared, replaced, half gone; and beside what libvirt keeps.

use snapgate::adapters::adapter::*;
use snapgate::adapters::libvirt::Config;
use snapgate::adapters::libvirt::Libvirt;
use snapgate::adapters::libvirt::ManagedSave;
use snapgate::model::*;
use snapgate::runtime::SystemClock;
use snapgate::runtime::Tasks;

use crate::conformance::begin_as_planned;
use crate::conformance::by;
use crate::conformance::create;
use crate::conformance::key;
use crate::conformance::on;
use crate::conformance::run;
use crate::libvirt::made;
use crate::libvirt::private_libvirtd::PrivateLibvirtd;
use crate::libvirt::restore;
use crate::libvirt::vm;

pub(crate) const BOTH: [&str; 2] = ["web02a.qcow2", "web02b.qcow2"];

/// Begins it, which must be refused for this reason with these words and without an effect.
async fn refused(
    adapter: &dyn Adapter,
    intent: &Intent,
    number: u64,
    kind: FaultKind,
    words: &[&str],
) {
    let begun = begin_as_planned(adapter, intent, key(number), None, by()).await;
    let refused = begun.expect_err("it is refused");
    assert_eq!(refused.fault.kind, kind, "{number}: {refused:?}");
    assert_eq!(refused.effect, Effect::None, "{number}: {refused:?}");
    for word in words {
        assert!(
            refused.fault.text.contains(word),
            "{number} {word}: {refused:?}"
        );
    }
}

/// Runs it to its end, which must be a failure; its sentence.
pub(crate) async fn failure(adapter: &dyn Adapter, intent: &Intent, number: u64) -> String {
    let begun = begin_as_planned(adapter, intent, key(number), None, by())
        .await
        .unwrap();
    let BeginOutcome::Task(task) = begun else {
        panic!("{number}: it was done");
    };
    loop {
        match adapter.poll(&task, by()).await.unwrap() {
            TaskState::Running(_) => adapter.changed(&task).await,
            TaskState::Failed(fault) => return fault.text.to_string(),
            other @ (TaskState::Done(_) | TaskState::Cancelled | TaskState::Gone) => {
                panic!("{number}: {other:?}")
            }
        }
    }
}

fn option(backup: &Backup, of: &VmId, name: &str, word: &str) -> Intent {
    let options = std::iter::once((name.to_owned(), word.to_owned())).collect();
    on(backup, of, Change::Restore(RestoreOptions(options)))
}

fn foreign(of: &VmId, name: &str) -> Target {
    Target {
        vm: of.clone(),
        backup: BackupId::new(name).unwrap(),
    }
}

#[apply(test)]
async fn memory_kept_by_libvirt_keeps_restores_and_backups_out() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let fill = |byte| BOTH.map(|disk| libvirtd.write_off(disk, byte));
    fill(1);
    let backup = made(adapter, &web02, "before", 1).await;
    fill(2);
    libvirtd.virsh(&["start", "web02"]);
    libvirtd.virsh(&["managedsave", "web02"]);

    let to = restore(&backup, &web02, "");
    let remedy = &["saved memory state", "managed_save = discard"];
    refused(adapter, &to, 2, FaultKind::Conflict, remedy).await;
    let new = create(adapter, &web02, "meanwhile", 3);
    refused(adapter, &new, 3, FaultKind::Conflict, &remedy[..1]).await;
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [2, 2], "left alone");
    let has_saved = || {
        libvirtd
            .virsh(&["dominfo", "web02"])
            .contains("Managed save:   yes")
    };
    assert!(has_saved(), "still there");
    let wrong = option(&backup, &web02, "managed_save", "maybe");
    refused(adapter, &wrong, 4, FaultKind::Invalid, &["managed_save"]).await;

    let discard = option(&backup, &web02, "managed_save", "discard");
    assert_eq!(run(adapter, &discard, 5).await, Ok(()), "by the option");
    assert!(!has_saved(), "removed");
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 1], "restored");

    fill(3);
    libvirtd.virsh(&["start", "web02"]);
    libvirtd.virsh(&["managedsave", "web02"]);
    let config = Config {
        managed_save: ManagedSave::Discard,
        ..libvirtd.config()
    };
    let configured = Libvirt::new(config, SystemClock::shared(), Tasks::default());
    assert_eq!(
        run(&configured, &to, 6).await,
        Ok(()),
        "by the configuration"
    );
    assert!(!has_saved(), "removed");
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 1], "restored");
    libvirtd.virsh(&["start", "web02"]);
    assert_eq!(
        libvirtd.state("web02"),
        "running",
        "it starts from its disks"
    );
}

#[apply(test)]
async fn a_disk_that_another_program_holds_keeps_every_change_of_a_stopped_vm_out() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let fill = |byte| BOTH.map(|disk| libvirtd.write_off(disk, byte));
    fill(1);
    let backup = made(adapter, &web02, "whole", 1).await;
    fill(2);
    let (to, delete) = (
        restore(&backup, &web02, ""),
        on(&backup, &web02, Change::Delete),
    );
    let held = libvirtd.hold("web02b.qcow2");
    for (number, intent) in (2..).zip([&to, &delete]) {
        refused(adapter, intent, number, FaultKind::Busy, &["disk vdb"]).await;
    }
    drop(held);
    assert_eq!(
        BOTH.map(|disk| libvirtd.read(disk)),
        [2, 2],
        "neither was restored"
    );
    for disk in BOTH {
        assert_eq!(
            libvirtd.tags(disk),
            ["snapgate-1"],
            "{disk} still has its part"
        );
    }

    libvirtd.run("chattr", &["+i", "web02b.qcow2"]);
    for (number, intent) in (4..).zip([&to, &delete]) {
        let words = &["disk vdb", "immutable"];
        refused(adapter, intent, number, FaultKind::Conflict, words).await;
    }
    libvirtd.run("chattr", &["-i", "web02b.qcow2"]);
    assert_eq!(
        BOTH.map(|disk| libvirtd.read(disk)),
        [2, 2],
        "neither was restored"
    );

    let (place, aside) = (libvirtd.image("web02b.qcow2"), libvirtd.image("aside"));
    std::fs::rename(&place, &aside).unwrap();
    for (number, intent) in (6..).zip([&to, &delete]) {
        refused(
            adapter,
            intent,
            number,
            FaultKind::Unavailable,
            &["disk vdb"],
        )
        .await;
    }
    std::fs::rename(&aside, &place).unwrap();
    assert_eq!(
        BOTH.map(|disk| libvirtd.read(disk)),
        [2, 2],
        "neither was restored"
    );
    assert_eq!(run(adapter, &to, 8).await, Ok(()), "restored");
    assert_eq!(BOTH.map(|disk| libvirtd.read(disk)), [1, 1], "both");

    // Half of it is gone all the same: it cannot be restored, and deleting it once more finishes.
    libvirtd.run(
        "qemu-img",
        &["snapshot", "-d", "snapgate-1", "web02a.qcow2"],
    );
    refused(adapter, &to, 9, FaultKind::Damaged, &["disk vda", "Delete"]).await;
    assert_eq!(
        run(adapter, &delete, 10).await,
        Ok(()),
        "the rest is deleted"
    );
    for disk in BOTH {
        assert!(libvirtd.tags(disk).is_empty(), "{disk} is clean");
    }
}

#[apply(test)]
async fn a_running_vm_is_not_stopped_for_a_restore_whose_start_would_fail() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web) = (libvirtd.adapter(), vm("web"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let disc = libvirtd.image("cd.iso");
    std::fs::write(&disc, [0; 65536]).unwrap();
    let network = libvirtd.image("net.xml");
    std::fs::write(&network, "<network><name>lonely</name></network>").unwrap();
    let has_network = libvirtd.try_virsh(&["net-define", network.to_str().unwrap()]);
    assert!(has_network.status.success(), "{has_network:?}");
    libvirtd.define_like_web02("web", |xml| {
        let drive = format!(
            "<disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/><readonly/></disk>",
            disc.display()
        );
        xml.replace("<controller", &format!("{drive}<controller"))
    });
    libvirtd.virsh(&["start", "web"]);
    let backup = made(adapter, &web, "on", 1).await;
    let number = libvirtd.number("web");
    let to = restore(&backup, &web, "");
    let aside = libvirtd.image("aside");

    std::fs::rename(&disc, &aside).unwrap();
    refused(adapter, &to, 2, FaultKind::Unavailable, &["sda"]).await;
    std::fs::rename(&aside, &disc).unwrap();

    let image = libvirtd.image("webb.qcow2");
    std::fs::rename(&image, &aside).unwrap();
    refused(adapter, &to, 3, FaultKind::Unavailable, &["disk vdb"]).await;
    std::fs::copy(&aside, &image).unwrap();
    refused(
        adapter,
        &to,
        4,
        FaultKind::Conflict,
        &["disk vdb", "replaced"],
    )
    .await;
    std::fs::rename(&aside, &image).unwrap();

    libvirtd.run("chattr", &["+i", "weba.qcow2"]);
    refused(
        adapter,
        &to,
        5,
        FaultKind::Conflict,
        &["disk vda", "immutable"],
    )
    .await;
    libvirtd.run("chattr", &["-i", "weba.qcow2"]);

    assert_eq!(libvirtd.number("web"), number, "it was never restarted");
    assert_eq!(libvirtd.state("web"), "running", "and runs on");
    assert_eq!(
        run(adapter, &to, 6).await,
        Ok(()),
        "everything is there again"
    );
    assert_eq!(libvirtd.state("web"), "running", "it runs");

    // A network that the backup's definition names.
    libvirtd.virsh(&["destroy", "web"]);
    let xml = libvirtd.virsh(&["dumpxml", "web"]);
    let interface = "<interface type='network'><source network='lonely'/></interface>";
    libvirtd.define(
        "web",
        &xml.replacen("<controller", &format!("{interface}<controller"), 1),
    );
    let networked = made(adapter, &web, "networked", 7).await;
    let started = restore(&networked, &web, "running");
    refused(
        adapter,
        &started,
        8,
        FaultKind::Unavailable,
        &["network lonely"],
    )
    .await;
    let off = restore(&networked, &web, "");
    assert_eq!(run(adapter, &off, 9).await, Ok(()), "without a start");
}

#[apply(test)]
async fn names_that_are_ids_on_any_disk_are_not_restored() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.virsh(&["snapshot-create-as", "web02", "2"]);
    libvirtd.virsh(&["snapshot-create-as", "web02", "noon"]);
    let target = foreign(&web02, "2");
    for (number, state) in [(1, "off"), (2, "on")] {
        let backup = adapter.read_backup(&target, by()).await.unwrap();
        let to = restore(&backup, &web02, "");
        refused(
            adapter,
            &to,
            number,
            FaultKind::Unsupported,
            &["name 2", "id"],
        )
        .await;
        if state == "off" {
            libvirtd.virsh(&["start", "web02"]);
        }
    }
    libvirtd.virsh(&["destroy", "web02"]);

    // An id that is no short number, as other programs than QEMU may write it, on the second disk alone.
    let backup = made(adapter, &web02, "plain", 3).await;
    libvirtd.virsh(&["snapshot-delete", "web02", "noon"]);
    libvirtd.virsh(&["snapshot-delete", "web02", "2"]);
    libvirtd.run("qemu-img", &["snapshot", "-c", "other", "web02b.qcow2"]);
    let path = libvirtd.image("web02b.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"4other";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    // The id `4` becomes the first byte of the name, so that the id is empty and the tag `4other`; then both are swapped.
    assert_eq!(bytes[at], b'4', "the id is right before the name");
    let xml = libvirtd.virsh(&["snapshot-dumpxml", "web02", "snapgate-3"]);
    let renamed = xml.replace("<name>snapgate-3</name>", "<name>q</name>");
    let file = libvirtd.image("renamed.xml");
    std::fs::write(&file, renamed).unwrap();
    libvirtd.virsh(&[
        "snapshot-create",
        "web02",
        file.to_str().unwrap(),
        "--redefine",
    ]);
    bytes[at] = b'q';
    std::fs::write(&path, bytes).unwrap();
    libvirtd.run("qemu-img", &["snapshot", "-c", "q", "web02a.qcow2"]);
    let foreign = adapter
        .read_backup(&foreign(&web02, "q"), by())
        .await
        .unwrap();
    let to = restore(&foreign, &web02, "");
    refused(adapter, &to, 4, FaultKind::Unsupported, &["name q", "id"]).await;
    assert_eq!(
        run(adapter, &restore(&backup, &web02, ""), 5).await,
        Ok(()),
        "others are"
    );
}

/// Makes an image that is based on another one.
fn create_over(libvirtd: &PrivateLibvirtd, base: &str, image: &str) {
    let options = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    libvirtd.run("qemu-img", &[&options[..], &[base, image]].concat());
}

#[apply(test)]
async fn an_image_beside_the_file_that_a_link_leads_to_is_not_destroyed() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    std::fs::create_dir(libvirtd.image("real")).unwrap();
    let (link, real) = (libvirtd.image(BOTH[0]), libvirtd.image("real/a.qcow2"));
    std::fs::rename(&link, &real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let backup = made(adapter, &web02, "base", 1).await;
    let to = restore(&backup, &web02, "");
    assert_eq!(run(adapter, &to, 2).await, Ok(()), "a link is no obstacle");
    create_over(&libvirtd, real.to_str().unwrap(), "real/over");
    refused(adapter, &to, 3, FaultKind::Conflict, &["over", "disk vda"]).await;
}

#[apply(test)]
async fn volumes_whose_files_are_gone_keep_no_restore_from_being_made() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web02, "base", 1).await;
    let base = libvirtd.image("web02a.qcow2");
    let folder = base.parent().unwrap().to_str().unwrap();
    for name in ["gone", "dangling"] {
        std::fs::write(libvirtd.image(name), [7; 4096]).unwrap();
    }
    libvirtd.virsh(&["pool-create-as", "images", "dir", "--target", folder]);
    // Behind libvirt's back, which still lists them.
    std::fs::remove_file(libvirtd.image("gone")).unwrap();
    std::fs::remove_file(libvirtd.image("dangling")).unwrap();
    std::os::unix::fs::symlink("nowhere", libvirtd.image("dangling")).unwrap();
    let to = restore(&backup, &web02, "");
    assert_eq!(run(adapter, &to, 2).await, Ok(()), "neither is an image");
    // A volume of the pool that is based on a disk is found by libvirt too.
    create_over(&libvirtd, "web02a.qcow2", "over");
    libvirtd.virsh(&["pool-refresh", "images"]);
    refused(adapter, &to, 3, FaultKind::Conflict, &["over", "disk vda"]).await;
    libvirtd.virsh(&["pool-destroy", "images"]);
}

#[apply(test)]
async fn disks_of_others_are_not_changed_under_them() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web02, "base", 1).await;
    let to = restore(&backup, &web02, "");

    std::fs::create_dir(libvirtd.image("clones")).unwrap();
    let base = libvirtd.image("web02a.qcow2");
    let base = base.to_str().unwrap();
    create_over(&libvirtd, base, "clones/c.qcow2");
    let clone = libvirtd.image("clones/c.qcow2");
    libvirtd.define_like_web02("clone", |xml| {
        xml.replace(
            libvirtd.image("clonea.qcow2").to_str().unwrap(),
            clone.to_str().unwrap(),
        )
    });
    refused(
        adapter,
        &to,
        2,
        FaultKind::Conflict,
        &["VM clone", "linked clone", "vda"],
    )
    .await;
    libvirtd.virsh(&["start", "clone"]);
    refused(
        adapter,
        &to,
        3,
        FaultKind::Conflict,
        &["VM clone", "linked clone", "vda"],
    )
    .await;
    libvirtd.virsh(&["destroy", "clone"]);
    libvirtd.virsh(&["undefine", "clone"]);

    // An image beside it, of no VM.
    std::fs::rename(&clone, libvirtd.image("c.qcow2")).unwrap();
    refused(
        adapter,
        &to,
        4,
        FaultKind::Conflict,
        &["c.qcow2", "disk vda"],
    )
    .await;
    // Images elsewhere that belong to no VM of this libvirtd are not looked for.
    std::fs::rename(libvirtd.image("c.qcow2"), &clone).unwrap();
    assert_eq!(
        run(adapter, &to, 5).await,
        Ok(()),
        "of no VM, and elsewhere"
    );

    libvirtd.define_like_web02("twin", |xml| {
        xml.replace(
            libvirtd.image("twinb.qcow2").to_str().unwrap(),
            libvirtd.image(BOTH[1]).to_str().unwrap(),
        )
    });
    refused(
        adapter,
        &to,
        6,
        FaultKind::Conflict,
        &["VM twin", "disk vdb"],
    )
    .await;
    libvirtd.virsh(&["undefine", "twin"]);
    std::fs::hard_link(libvirtd.image(BOTH[1]), libvirtd.image("another-name")).unwrap();
    libvirtd.define_like_web02("twin", |xml| {
        xml.replace(
            libvirtd.image("twinb.qcow2").to_str().unwrap(),
            libvirtd.image("another-name").to_str().unwrap(),
        )
    });
    refused(
        adapter,
        &to,
        7,
        FaultKind::Conflict,
        &["VM twin", "disk vdb"],
    )
    .await;
    libvirtd.virsh(&["undefine", "twin"]);
    assert_eq!(run(adapter, &to, 8).await, Ok(()), "its own again");
}

#[apply(test)]
async fn disks_that_are_not_those_of_the_backup_are_named() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web01) = (libvirtd.adapter(), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    libvirtd.write(1);
    let backup = made(adapter, &web01, "base", 1).await;
    libvirtd.write(2);
    let (to, delete) = (
        restore(&backup, &web01, ""),
        on(&backup, &web01, Change::Delete),
    );
    libvirtd.virsh(&[
        "snapshot-create-as",
        "web01",
        "--no-metadata",
        "over",
        "--disk-only",
    ]);
    let number = libvirtd.number("web01");
    let words = &["disk vda", "overlay", "Merge"];
    refused(adapter, &to, 2, FaultKind::Conflict, words).await;
    let words = &["disk vda", "Merge"];
    refused(adapter, &delete, 3, FaultKind::Conflict, words).await;
    libvirtd.virsh(&["destroy", "web01"]);
    refused(
        adapter,
        &to,
        4,
        FaultKind::Conflict,
        &["disk vda", "another image"],
    )
    .await;
    assert_eq!(libvirtd.read("web01.qcow2"), 2, "the base was left alone");
    libvirtd.virsh(&["start", "web01"]);
    libvirtd.virsh(&["blockcommit", "web01", "vda", "--active", "--pivot"]);
    std::fs::remove_file(libvirtd.image("web01.over")).unwrap();
    assert_ne!(
        libvirtd.number("web01"),
        number,
        "it was restarted by us alone"
    );

    // A definition that names another disk for the next start.
    let xml = libvirtd.virsh(&["dumpxml", "--inactive", "web01"]);
    let (plain, other) = (libvirtd.image("web01.qcow2"), libvirtd.image("other.qcow2"));
    libvirtd.write_new(&other);
    libvirtd.define(
        "web01",
        &xml.replace(plain.to_str().unwrap(), other.to_str().unwrap()),
    );
    refused(
        adapter,
        &to,
        5,
        FaultKind::Conflict,
        &["disk vda", "next start"],
    )
    .await;
    libvirtd.define("web01", &xml);
    assert_eq!(run(adapter, &to, 6).await, Ok(()), "restored");
    assert_eq!(libvirtd.read("web01.qcow2"), 1, "its own disk");
}

#[apply(test)]
async fn vms_of_which_no_backup_would_last_are_refused_naming_the_reason() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02, web01) = (libvirtd.adapter(), vm("web02"), vm("web01"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let plain = libvirtd.virsh(&["dumpxml", "web02"]);
    let uuid = libvirtd.virsh(&["domuuid", "web02"]);
    let target = "<target dev='vdb' bus='virtio'/>";
    let second = "<disk type='file' device='disk'>";
    let (head, tail) = plain.rsplit_once(second).unwrap();
    let rows = [
        (
            "left out",
            format!("{head}<disk type='file' device='disk' snapshot='no'>{tail}"),
            "snapshot='no'",
        ),
        (
            "external",
            format!("{head}<disk type='file' device='disk' snapshot='external'>{tail}"),
            "external",
        ),
    ];
    for (number, (name, xml, word)) in (1..).zip(rows) {
        assert!(xml.contains(uuid.trim()), "{name}: the same VM");
        libvirtd.define("web02", &xml);
        for state in ["off", "on"] {
            if state == "on" {
                libvirtd.virsh(&["start", "web02"]);
            }
            let new = create(adapter, &web02, name, number);
            refused(
                adapter,
                &new,
                number,
                FaultKind::Unsupported,
                &["disk vdb", word],
            )
            .await;
        }
        libvirtd.virsh(&["destroy", "web02"]);
    }
    // What is read only is left out, as the manual says.
    libvirtd.define(
        "web02",
        &plain.replace(target, &format!("{target}<readonly/>")),
    );
    made(adapter, &web02, "one disk", 10).await;
    assert_eq!(libvirtd.tags(BOTH[0]), ["snapgate-10"], "the writable one");
    assert!(libvirtd.tags(BOTH[1]).is_empty(), "not the other");

    let backup = made(adapter, &web01, "kept", 11).await;
    libvirtd.virsh(&["undefine", "web01", "--snapshots-metadata"]);
    let new = create(adapter, &web01, "lost", 12);
    refused(
        adapter,
        &new,
        12,
        FaultKind::Conflict,
        &["transient", "Define"],
    )
    .await;
    let to = restore(&backup, &web01, "");
    refused(
        adapter,
        &to,
        13,
        FaultKind::Conflict,
        &["transient", "Define"],
    )
    .await;
    assert_eq!(libvirtd.state("web01"), "running", "it runs on");
}

#[apply(test)]
async fn protection_outlives_an_edit_of_the_description_by_others() {
    let libvirtd = PrivateLibvirtd::start();
    let (adapter, web02) = (libvirtd.adapter(), vm("web02"));
    let adapter: &dyn Adapter = adapter.as_ref();
    let backup = made(adapter, &web02, "precious", 1).await;
    let patch = BackupPatch {
        protected: Patch::Set(true),
        ..BackupPatch::default()
    };
    let protect = on(&backup, &web02, Change::Update(patch));
    assert_eq!(run(adapter, &protect, 2).await, Ok(()), "protected");
    let xml = libvirtd.virsh(&["snapshot-dumpxml", "web02", "snapgate-1"]);
    let (head, rest) = xml.split_once("<description>").unwrap();
    let (_, tail) = rest.split_once("</description>").unwrap();
    let edited = format!("{head}<description>edited by others</description>{tail}");
    let file = libvirtd.image("edited.xml");
    std::fs::write(&file, edited).unwrap();
    libvirtd.virsh(&[
        "snapshot-create",
        "web02",
        file.to_str().unwrap(),
        "--redefine",
    ]);
    let read = adapter.read_backup(&protect.target, by()).await.unwrap();
    assert!(read.protected, "still protected: {read:?}");
    let delete = on(&read, &web02, Change::Delete);
    refused(adapter, &delete, 3, FaultKind::Protected, &["protected"]).await;
    let tag = BackupPatch {
        tags: Patch::Set(vec![Tag::new("t").unwrap()]),
        ..BackupPatch::default()
    };
    assert_eq!(
        run(adapter, &on(&read, &web02, Change::Update(tag)), 4).await,
        Ok(()),
        "tagged"
    );
    let read = adapter.read_backup(&protect.target, by()).await.unwrap();
    assert!(read.protected, "a tag does not take it away: {read:?}");
    let release = BackupPatch {
        protected: Patch::Set(false),
        ..BackupPatch::default()
    };
    assert_eq!(
        run(adapter, &on(&read, &web02, Change::Update(release)), 5).await,
        Ok(()),
        "released"
    );
    assert_eq!(run(adapter, &delete, 6).await, Ok(()), "and deleted");
}
