//! Looks for everything that would make a restore fail half-way: libvirt stops a VM before it puts it back, and a
//! failure after that leaves it off.

use serde::Deserialize;

use crate::adapters::libvirt::client::Client;
use crate::adapters::libvirt::client::Domain;
use crate::adapters::libvirt::client::DomainState;
use crate::adapters::libvirt::client::RevertTo;
use crate::adapters::libvirt::config::AfterRestore;
use crate::adapters::libvirt::error;
use crate::adapters::libvirt::map::Doing;
use crate::adapters::libvirt::xml::DomainXml;
use crate::adapters::libvirt::xml::Place;
use crate::adapters::libvirt::xml::SnapshotXml;
use crate::adapters::port::AdapterError;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::RestoreOptions;

/// The option of a restore request that says what the VM does afterwards.
pub(crate) const AFTER_RESTORE: &str = "after_restore";

/// Most bytes of a number that qcow2 may take for the id of a snapshot instead of its name.
const SHORT_NUMBER_BYTES: usize = 9;

/// How a restore is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What libvirt is asked for.
    pub(crate) revert: RevertTo,
    /// Whether the VM is switched off after that: it was off, and the backup holds memory.
    pub(crate) then_off: bool,
}

/// What the VM is to do after the restore.
///
/// # Errors
/// [`FaultKind::Invalid`] for a word that is none of [`AfterRestore`].
pub(crate) fn after(
    options: &RestoreOptions,
    configured: AfterRestore,
) -> Result<AfterRestore, AdapterError> {
    let Some(word) = options.0.get(AFTER_RESTORE) else {
        return Ok(configured);
    };
    AfterRestore::from_word(word).ok_or_else(|| {
        AdapterError::refused(
            FaultKind::Invalid,
            "after_restore is one of as-before, running, paused and as-saved",
        )
    })
}

/// How to restore a VM that does this now from a snapshot with or without memory.
pub(crate) const fn plan(after: AfterRestore, now: Doing, memory: Place) -> Plan {
    let revert = match (after, now) {
        (AfterRestore::Running, _) | (AfterRestore::AsBefore, Doing::Running) => RevertTo::Running,
        (AfterRestore::Paused, _) | (AfterRestore::AsBefore, Doing::Paused) => RevertTo::Paused,
        (AfterRestore::AsBefore, Doing::Off) => {
            return match memory {
                // There is no way to put memory back and not start.
                Place::Internal | Place::External => Plan {
                    revert: RevertTo::Paused,
                    then_off: true,
                },
                Place::Nowhere => Plan {
                    revert: RevertTo::AsSaved,
                    then_off: false,
                },
            };
        }
        (AfterRestore::AsSaved, _) | (AfterRestore::AsBefore, Doing::Other) => RevertTo::AsSaved,
    };
    Plan {
        revert,
        then_off: false,
    }
}

/// Everything that can be known without asking.
///
/// # Errors
/// The reason not to restore.
pub(crate) fn snapshot(it: &SnapshotXml) -> Result<(), AdapterError> {
    if it.memory == Place::External || it.disks.contains(&Place::External) {
        return Err(AdapterError::refused(
            FaultKind::Unsupported,
            "the backup is an external snapshot, which libvirt cannot put back",
        ));
    }
    if it.name.len() <= SHORT_NUMBER_BYTES && it.name.bytes().all(|it| it.is_ascii_digit()) {
        return Err(AdapterError::refused(
            FaultKind::Unsupported,
            "the name of the snapshot is a number, which QEMU may take for another snapshot's id",
        ));
    }
    Ok(())
}

/// Whether the firmware keeps nothing of its own: libvirt would not put that back, and a snapshot from before such
/// firmware would take it away from the VM.
///
/// # Errors
/// The reason not to restore.
pub(crate) fn firmware(now: &DomainXml) -> Result<(), AdapterError> {
    if now.has_flash {
        return Err(AdapterError::refused(
            FaultKind::Unsupported,
            "libvirt puts no internal snapshots back into a VM with UEFI firmware",
        ));
    }
    Ok(())
}

/// Whether the disks are where they were.
///
/// # Errors
/// The reason not to restore.
pub(crate) fn same_disks(snapshot: &SnapshotXml, now: &DomainXml) -> Result<(), AdapterError> {
    let changed = || {
        AdapterError::refused(
            FaultKind::Conflict,
            "the VM's disks are not those it had when the backup was made",
        )
    };
    match &snapshot.definition {
        None => Ok(()),
        Some(then) => {
            let place =
                |it: &crate::adapters::libvirt::xml::Disk| (it.target.clone(), it.source.clone());
            let same = then.iter().map(place).eq(now.disks.iter().map(place));
            if same { Ok(()) } else { Err(changed()) }
        }
    }
}

/// Whether the VM has checkpoints, whose bitmaps would make it fail.
///
/// # Errors
/// The reason not to restore, or whatever keeps libvirt from answering.
pub(crate) async fn checkpoints(
    client: &Client,
    domain: &Domain,
    by: Deadline,
) -> Result<(), AdapterError> {
    let checkpoints = client.checkpoints(domain, by).await;
    if checkpoints.map_err(|it| error::from_read(&it))? > 0 {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            "the VM has checkpoints; delete them first, a restore would fail and switch the VM off",
        ));
    }
    Ok(())
}

/// Whether QEMU knows of anything that would make it fail. Only for a VM that is not off.
///
/// # Errors
/// The reason not to restore, or whatever keeps QEMU from answering.
pub(crate) async fn qemu(
    client: &Client,
    domain: &Domain,
    snapshot: &SnapshotXml,
    state: DomainState,
    by: Deadline,
) -> Result<(), AdapterError> {
    if state.doing() == Doing::Off {
        return Ok(());
    }
    let jobs = r#"{"execute":"query-block-jobs"}"#;
    let reply = client.ask_qemu(domain, jobs, by).await;
    let running = parse::<Vec<serde_json::Value>>(&reply.map_err(|it| error::from_read(&it))?)?;
    if !running.is_empty() {
        return Err(AdapterError::refused(
            FaultKind::Busy,
            "a block job of QEMU's occupies the VM's disks",
        ));
    }
    let nodes = nodes(client, domain, by).await?;
    holds(&nodes, snapshot)
}

/// Whether a disk of a VM that is not off holds a snapshot of this name, listed by libvirt or not.
///
/// # Errors
/// Whatever keeps QEMU from answering.
pub(crate) async fn is_on_disk(
    client: &Client,
    domain: &Domain,
    name: &str,
    by: Deadline,
) -> Result<bool, AdapterError> {
    let nodes = nodes(client, domain, by).await?;
    let mut tags = nodes.iter().flat_map(|it| &it.image.snapshots);
    Ok(tags.any(|it| it.name == name))
}

async fn nodes(
    client: &Client,
    domain: &Domain,
    by: Deadline,
) -> Result<Vec<BlockNode>, AdapterError> {
    let command = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    let reply = client.ask_qemu(domain, command, by).await;
    parse(&reply.map_err(|it| error::from_read(&it))?)
}

#[derive(Debug, Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    value: T,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct BlockNode {
    #[serde(default)]
    ro: bool,
    #[serde(default)]
    dirty_bitmaps: Vec<serde_json::Value>,
    image: Image,
}

#[derive(Debug, Deserialize)]
struct Image {
    #[serde(default)]
    snapshots: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Tag {
    name: String,
    vm_state_size: u64,
}

fn parse<T: serde::de::DeserializeOwned>(reply: &str) -> Result<T, AdapterError> {
    match serde_json::from_str::<Reply<T>>(reply) {
        Ok(reply) => Ok(reply.value),
        Err(error) => Err(AdapterError::refused(
            FaultKind::BackendFailed,
            "QEMU answered something that makes no sense",
        )
        .because(error)),
    }
}

/// Whether the snapshot is on every disk it should be on, exactly once, with the memory on one, and nothing is in
/// its way.
fn holds(nodes: &[BlockNode], snapshot: &SnapshotXml) -> Result<(), AdapterError> {
    let writable = || nodes.iter().filter(|it| !it.ro);
    if writable().any(|it| !it.dirty_bitmaps.is_empty()) {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            "a disk of the VM has dirty bitmaps; remove them first, a restore would fail and switch the VM off",
        ));
    }
    let (mut disks, mut with_memory) = (0_usize, false);
    for node in writable() {
        let mut tags = node
            .image
            .snapshots
            .iter()
            .filter(|it| it.name == snapshot.name);
        let Some(tag) = tags.next() else { continue };
        if tags.next().is_some() {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                "a disk of the VM holds two snapshots of this name",
            ));
        }
        disks = disks.saturating_add(1);
        with_memory = with_memory || tag.vm_state_size > 0;
    }
    let wanted = snapshot
        .disks
        .iter()
        .filter(|it| **it == Place::Internal)
        .count();
    if disks != wanted || (snapshot.memory == Place::Internal && !with_memory) {
        return Err(AdapterError::refused(
            FaultKind::Damaged,
            "the VM's disks do not hold all of the backup; it was renamed or removed behind libvirt's back",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, memory: Place, disks: &[Place]) -> SnapshotXml {
        SnapshotXml {
            name: name.to_owned(),
            description: None,
            created: 1,
            memory,
            disks: disks.to_vec(),
            definition: None,
        }
    }

    #[test]
    fn what_the_vm_does_afterwards_is_always_decided() {
        use AfterRestore::{AsBefore, AsSaved, Paused, Running};
        let rows = [
            (
                AsBefore,
                Doing::Running,
                Place::Internal,
                RevertTo::Running,
                false,
            ),
            (
                AsBefore,
                Doing::Running,
                Place::Nowhere,
                RevertTo::Running,
                false,
            ),
            (
                AsBefore,
                Doing::Paused,
                Place::Internal,
                RevertTo::Paused,
                false,
            ),
            (
                AsBefore,
                Doing::Off,
                Place::Internal,
                RevertTo::Paused,
                true,
            ),
            (
                AsBefore,
                Doing::Off,
                Place::Nowhere,
                RevertTo::AsSaved,
                false,
            ),
            (
                Running,
                Doing::Off,
                Place::Nowhere,
                RevertTo::Running,
                false,
            ),
            (
                Paused,
                Doing::Running,
                Place::Internal,
                RevertTo::Paused,
                false,
            ),
            (
                AsSaved,
                Doing::Running,
                Place::Nowhere,
                RevertTo::AsSaved,
                false,
            ),
        ];
        for (after, now, memory, revert, then_off) in rows {
            let expected = Plan { revert, then_off };
            assert_eq!(
                plan(after, now, memory),
                expected,
                "{after:?} {now:?} {memory:?}"
            );
        }
    }

    #[test]
    fn snapshots_that_cannot_be_put_back_are_known() {
        let internal = [Place::Internal];
        let rows = [
            (of("snapgate-1", Place::Internal, &internal), true),
            (of("1795484345", Place::Internal, &internal), true),
            (of("17", Place::Internal, &internal), false),
            (of("a", Place::External, &internal), false),
            (of("a", Place::Nowhere, &[Place::External]), false),
        ];
        for (it, expected) in rows {
            assert_eq!(snapshot(&it).is_ok(), expected, "{it:?}");
        }
    }

    #[test]
    fn disks_must_hold_the_snapshot_once_each_with_memory_on_one() {
        let tag = r#"{"name":"a","vm-state-size":9,"id":"1"}"#;
        let dry = r#"{"name":"a","vm-state-size":0}"#;
        let node = |snapshots: &str, more: &str| {
            format!(r#"{{"ro":false,"image":{{"snapshots":[{snapshots}],"x":1}}{more}}}"#)
        };
        let base = r#"{"ro":true,"image":{"snapshots":[{"name":"a","vm-state-size":1}]}}"#;
        let file = r#"{"image":{}}"#;
        let bitmap = r#","dirty-bitmaps":[{"name":"b"}]"#;
        let rows = [
            ("whole", vec![node(tag, ""), node(dry, "")], None),
            (
                "with a base",
                vec![base.to_owned(), node(tag, ""), node(dry, "")],
                None,
            ),
            (
                "without tag",
                vec![node(tag, ""), file.to_owned()],
                Some(FaultKind::Damaged),
            ),
            (
                "without memory",
                vec![node(dry, ""), node(dry, "")],
                Some(FaultKind::Damaged),
            ),
            (
                "twice",
                vec![node(&format!("{tag},{dry}"), ""), node(dry, "")],
                Some(FaultKind::Conflict),
            ),
            (
                "bitmap",
                vec![node(tag, ""), node(dry, bitmap)],
                Some(FaultKind::Conflict),
            ),
        ];
        let snapshot = of("a", Place::Internal, &[Place::Internal, Place::Internal]);
        for (name, nodes, expected) in rows {
            let reply = format!(r#"{{"return":[{}],"id":"libvirt-1"}}"#, nodes.join(","));
            let nodes = parse::<Vec<BlockNode>>(&reply).unwrap();
            let seen = holds(&nodes, &snapshot).err().map(|it| it.fault.kind);
            assert_eq!(seen, expected, "{name}");
        }
        assert!(
            parse::<Vec<BlockNode>>(r#"{"error":{}}"#).is_err(),
            "not an answer"
        );
    }
}
