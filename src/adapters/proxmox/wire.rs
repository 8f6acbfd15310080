//! The answers of the Proxmox VE API, as far as the adapter reads them.
//!
//! The API is written in Perl: numbers may arrive as text, booleans as 0 and 1, and members without a value are absent.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde_json::Value;

/// `GET /cluster/resources?type=vm`, one entry.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Resource {
    /// `qemu` or `lxc`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The number of the guest.
    #[serde(deserialize_with = "number")]
    pub(super) vmid: u64,
    /// The node that has it now.
    pub(super) node: String,
    /// Whether it is a template, which cannot be restored in place.
    #[serde(default, deserialize_with = "flag")]
    pub(super) template: bool,
    /// The name of the guest.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// `running`, `stopped`, or `unknown` while the statistics of the node hang.
    #[serde(default)]
    pub(super) status: Option<String>,
}

/// `GET /cluster/resources?type=storage`, one entry.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StorageResource {
    /// Its id.
    pub(super) storage: String,
    /// The kinds of content that it takes, with commas between them.
    #[serde(default)]
    pub(super) content: Option<String>,
}

/// `GET /nodes`, one entry.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Node {
    /// Its name.
    pub(super) node: String,
}

/// `GET .../status/current`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    /// `running` or `stopped`.
    pub(super) status: String,
    /// The state that QEMU itself reports, for instance `paused`.
    #[serde(default)]
    pub(super) qmpstatus: Option<String>,
    /// The name of the guest.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// Which kind of task holds the guest, or left it locked.
    #[serde(default)]
    pub(super) lock: Option<String>,
}

/// `GET .../config`, as far as evidence needs it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct GuestConfig {
    /// What people wrote about the guest.
    #[serde(default)]
    pub(super) description: Option<String>,
    /// Changes with each rollback of a QEMU guest that has one.
    #[serde(default)]
    pub(super) vmgenid: Option<String>,
    /// The snapshot that the present state descends from.
    #[serde(default)]
    pub(super) parent: Option<String>,
    /// Which kind of task holds the guest, or left it locked.
    #[serde(default)]
    pub(super) lock: Option<String>,
    /// Everything else, disks and network cards among it.
    #[serde(flatten)]
    pub(super) hardware: BTreeMap<String, Value>,
}

impl GuestConfig {
    /// The storages with disks of the guest. CD drives and folders of the node are no disks.
    pub(super) fn disk_storages(&self) -> BTreeSet<&str> {
        let disks = self.hardware.iter().filter(|(name, _)| is_disk(name));
        let values = disks.filter_map(|(_, value)| value.as_str());
        let disks =
            values.filter(|value| !value.starts_with('/') && !value.contains("media=cdrom"));
        let storages = disks.filter_map(|value| value.split_once(':'));
        storages.map(|(storage, _)| storage).collect()
    }

    /// The bridges of its network cards.
    pub(super) fn bridges(&self) -> impl Iterator<Item = &str> {
        let cards = self
            .hardware
            .iter()
            .filter(|(name, _)| name.starts_with("net"));
        let values = cards.filter_map(|(_, value)| value.as_str());
        values.filter_map(|value| {
            value
                .split(',')
                .find_map(|part| part.strip_prefix("bridge="))
        })
    }
}

/// Whether a key of a guest's configuration is a disk.
fn is_disk(name: &str) -> bool {
    const DISKS: [&str; 8] = [
        "scsi", "virtio", "sata", "ide", "efidisk", "tpmstate", "rootfs", "mp",
    ];
    let kind = name.trim_end_matches(|character: char| character.is_ascii_digit());
    DISKS.contains(&kind) && (kind != name || kind == "rootfs")
}

/// `GET .../snapshot`, one entry.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Snapshot {
    /// Its name; `current` stands for the present state.
    pub(super) name: String,
    /// When it was made, in seconds since 1970.
    #[serde(default, deserialize_with = "optional_number")]
    pub(super) snaptime: Option<u64>,
    /// What people and the gateway wrote.
    #[serde(default)]
    pub(super) description: Option<String>,
    /// `prepare` while it is made, `delete` while it is removed; a task that died leaves it.
    #[serde(default)]
    pub(super) snapstate: Option<String>,
}

/// `GET .../storage/{storage}/content?content=backup`, one entry, and a single volume.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Volume {
    /// Storage and name of the archive.
    #[serde(default)]
    pub(super) volid: String,
    /// When it was made, in seconds since 1970.
    #[serde(default, deserialize_with = "optional_number")]
    pub(super) ctime: Option<u64>,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "optional_number")]
    pub(super) size: Option<u64>,
    /// Lists of some storages hold the first line only.
    #[serde(default)]
    pub(super) notes: Option<String>,
    /// Whether Proxmox VE itself refuses to remove it.
    #[serde(default, deserialize_with = "flag")]
    pub(super) protected: bool,
}

/// A task, of `.../tasks` or `.../tasks/{upid}/status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Task {
    /// The unique id, which names node, time, type, guest and user.
    pub(super) upid: String,
    /// In a list the end, or `RUNNING`; of a single task `running` or `stopped`.
    #[serde(default)]
    pub(super) status: Option<String>,
    /// The end of a single task; absent while it runs.
    #[serde(default)]
    pub(super) exitstatus: Option<String>,
    /// Who began it.
    #[serde(default)]
    pub(super) user: String,
    /// With which of the user's tokens.
    #[serde(default)]
    pub(super) tokenid: Option<String>,
}

/// One line of a task's log.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LogLine {
    /// Its text.
    pub(super) t: String,
}

/// `GET /version`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Version {
    /// For instance `8.4.1`.
    pub(super) version: String,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    optional_number(from)?.ok_or_else(|| D::Error::custom("a number is missing"))
}

fn optional_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::Number(number) => number
            .as_u64()
            .map(Some)
            .ok_or_else(|| D::Error::custom("expected a whole number")),
        Value::String(text) => text.parse().map(Some).map_err(D::Error::custom),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(D::Error::custom("expected a number"))
        }
    }
}

fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match Value::deserialize(from)? {
        Value::Bool(flag) => Ok(flag),
        Value::Null => Ok(false),
        Value::Number(number) => Ok(number.as_u64() != Some(0)),
        Value::String(text) => Ok(!matches!(text.as_str(), "" | "0" | "false")),
        Value::Array(_) | Value::Object(_) => Err(D::Error::custom("expected 0 or 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_recognised() {
        for (name, expected) in [
            ("scsi0", true),
            ("virtio15", true),
            ("rootfs", true),
            ("mp3", true),
            ("efidisk0", true),
            ("scsihw", false),
            ("memory", false),
            ("scsi", false),
            ("unused0", false),
        ] {
            assert_eq!(is_disk(name), expected, "{name}");
        }
    }

    #[test]
    fn what_a_guest_stands_on_is_read_from_its_configuration() {
        let config: GuestConfig = serde_json::from_value(serde_json::json!({
            "name": "web", "memory": "64", "cores": 1, "digest": "x", "scsihw": "virtio-scsi-pci",
            "scsi0": "fast:vm-100-disk-0,size=8G", "scsi1": "slow:100/vm-100-disk-1.qcow2",
            "ide2": "iso:iso/debian.iso,media=cdrom", "ide3": "none,media=cdrom", "unused0": "old:vm-100-disk-2",
            "mp0": "/srv/shared,mp=/mnt", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5", "net1": "e1000=x",
            "description": "bridge=no"
        }))
        .unwrap();
        assert_eq!(
            config.disk_storages().into_iter().collect::<Vec<_>>(),
            ["fast", "slow"]
        );
        assert_eq!(config.bridges().collect::<Vec<_>>(), ["vmbr0"]);
    }
}
