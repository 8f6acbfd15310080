//! What a restore or a delete would do, found by the checks of the change itself.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::proxmox::client::Guest;
use crate::adapters::proxmox::client::GuestKind;
use crate::adapters::proxmox::cluster::Proxmox;
use crate::adapters::proxmox::cluster::no_such_backup;
use crate::adapters::proxmox::error::NativeError;
use crate::adapters::proxmox::native_backup::NativeBackup;
use crate::adapters::proxmox::preconditions;
use crate::adapters::proxmox::restore_options::ParsedRestoreOptions;
use crate::model::Backup;
use crate::model::Change;
use crate::model::Deadline;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::PreviewPart;
use crate::model::RestoreOptions;
use crate::model::RunState;
use crate::public_text;

/// What the preview of a restore looks at beside the preview itself.
struct Restored<'a> {
    guest: &'a Guest,
    item: &'a NativeBackup,
    /// Every backup of the guest, as callers see it.
    all: &'a [Backup],
    options: &'a ParsedRestoreOptions,
}

impl Proxmox {
    /// What the change would do. Changes nothing.
    pub(super) async fn preview_change(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        let options = match &intent.change {
            Change::Restore(options) => Some(options),
            Change::Delete => None,
            Change::Create(_) | Change::Update(_) => return Err(no_preview()),
        };
        let guest = self.locate_guest(&intent.target.vm, by).await?;
        let mut checks = Checks::all();
        let options = match options {
            Some(options) => Some(self.read_options(options, &mut checks)?),
            None => None,
        };
        let item = self.find_exact(&guest, intent, by).await;
        let item = item.map_err(|error| checks.end_with(error))?;
        let backup = item.backup(&guest).ok_or_else(no_such_backup)?;
        let vm = self.read_vm(&intent.target.vm, by).await?;
        let all = self.list_visible(&guest, by).await?;
        let all: Vec<Backup> = all
            .iter()
            .filter_map(|(_, item)| item.backup(&guest))
            .collect();
        let mut preview = Preview::new(vm, backup).with_newer(&all);
        if let Some(options) = options {
            let restored = Restored {
                guest: &guest,
                item: &item,
                all: &all,
                options: &options,
            };
            self.preview_restore(&restored, &mut checks, &mut preview, by)
                .await?;
        } else {
            checks.record(preconditions::check_unprotected(&guest, &item))?;
            if let NativeBackup::Snapshot(_) = item {
                checks.record(self.check_ready(&guest, by).await)?;
            }
        }
        preview.refused = checks.into_refused();
        // Rights of the token and refusals of a storage show only when the change is made.
        preview.unknown.push(PreviewPart::Refused);
        Ok(preview)
    }

    /// The options of a restore. Where they are refused the rest is that of a restore without options.
    fn read_options(
        &self,
        options: &RestoreOptions,
        checks: &mut Checks,
    ) -> Result<ParsedRestoreOptions, AdapterError> {
        let default = self.config.after_restore;
        let read = ParsedRestoreOptions::read(options, default);
        match checks.record(read)? {
            Some(read) => Ok(read),
            None => ParsedRestoreOptions::read(&RestoreOptions::default(), default),
        }
    }

    async fn preview_restore(
        &self,
        restored: &Restored<'_>,
        checks: &mut Checks,
        preview: &mut Preview,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let (guest, item) = (restored.guest, restored.item);
        let config = self.api.all_of_config(guest, by).await;
        let disks = disks_of(&config.map_err(NativeError::into_read_error)?);
        let options = restored.options;
        checks.record(preconditions::check_finished(item))?;
        let status = checks.record(self.check_ready(guest, by).await)?;
        let starts = options.starts(preview.vm.run_state != Some(RunState::Stopped));
        preview.overwrites = disks.replaced;
        preview.leaves = disks.left;
        preview.unknown = vec![PreviewPart::Needs];
        if preview.overwrites.is_empty() {
            // A configuration whose disks have keys that are not known here.
            preview.unknown.push(PreviewPart::Overwrites);
        }
        preview.after = Some(if starts {
            RunState::Started
        } else {
            RunState::Stopped
        });
        match item {
            NativeBackup::Snapshot(_) => {
                checks.record(options.refuse_storage())?;
                if !starts && guest.kind == GuestKind::Qemu {
                    // A snapshot with memory starts the guest whatever is asked for, and the API does not say which have memory.
                    preview.after = None;
                    preview.unknown.push(PreviewPart::After);
                }
                warn_of_newer(restored.all, preview);
            }
            NativeBackup::Archive { .. } => {
                if let Some(status) = &status {
                    self.check_replaceable(guest, status, options, checks, by)
                        .await?;
                }
                preview.loses = snapshots_in(restored.all);
                preview.unknown.push(PreviewPart::Leaves);
            }
        }
        Ok(())
    }
}

/// A rollback to anything but the latest snapshot depends on the storage.
fn warn_of_newer(all: &[Backup], preview: &mut Preview) {
    let snapshots = snapshots_in(all);
    let has_newer = snapshots
        .iter()
        .any(|other| preview.newer.iter().any(|(id, _)| *id == other.id));
    if has_newer {
        preview.warnings.push(public_text!(
            "The VM has newer snapshots. Storages that cannot branch, such as ZFS, refuse to restore an older one; the VM is not changed then."
        ));
    }
}

fn snapshots_in(all: &[Backup]) -> Vec<Backup> {
    let is_snapshot = |backup: &&Backup| backup.kind == Some(crate::model::BackupKind::Snapshot);
    all.iter().filter(is_snapshot).cloned().collect()
}

/// The disks of a guest.
struct GuestDisks {
    replaced: Vec<PreviewDisk>,
    left: Vec<String>,
}

/// Prefixes of the keys of disks; a number follows.
const DISK_KEYS: [&str; 8] = [
    "scsi", "virtio", "ide", "sata", "efidisk", "tpmstate", "mp", "rootfs",
];

/// The disks in a configuration. Drives with a medium and directories of the host are no part of any backup.
fn disks_of(config: &BTreeMap<String, Value>) -> GuestDisks {
    let mut disks = GuestDisks {
        replaced: Vec::new(),
        left: Vec::new(),
    };
    for (key, value) in config {
        let name = key.trim_end_matches(|letter: char| letter.is_ascii_digit());
        let Some(text) = value.as_str().filter(|_| DISK_KEYS.contains(&name)) else {
            continue;
        };
        let mut parts = text.split(',');
        let volume = parts.next().unwrap_or_default();
        let parts: Vec<&str> = parts.collect();
        if volume == "none" || parts.contains(&"media=cdrom") {
            continue;
        }
        let is_outside = volume.starts_with('/') || parts.contains(&"backup=0");
        if is_outside {
            disks.left.push(key.clone());
        } else {
            let size = parts.iter().find_map(|part| part.strip_prefix("size="));
            disks.replaced.push(PreviewDisk {
                disk: key.clone(),
                size: size.and_then(parse_size),
            });
        }
    }
    disks
}

/// A size such as `32G`: bytes, or with a unit of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit());
    let (number, unit) = text.split_at_checked(end.unwrap_or(text.len()))?;
    let power = match unit {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(1024_u64.checked_pow(power)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_separated_from_drives_and_directories_of_the_host() {
        let config = serde_json::json!({
            "scsi0": "local-lvm:vm-100-disk-0,size=32G",
            "scsi1": "local-lvm:vm-100-disk-1,backup=0,size=1T",
            "ide2": "local:iso/x.iso,media=cdrom",
            "sata0": "none,media=cdrom",
            "efidisk0": "local-lvm:vm-100-disk-2,size=4M",
            "mp0": "/srv/data,mp=/data",
            "rootfs": "local-lvm:vm-100-disk-3,size=8G",
            "scsihw": "virtio-scsi-pci",
            "cores": 2,
        });
        let config: BTreeMap<String, Value> = serde_json::from_value(config).unwrap();
        let disks = disks_of(&config);
        let replaced: Vec<(&str, Option<u64>)> = disks
            .replaced
            .iter()
            .map(|disk| (disk.disk.as_str(), disk.size))
            .collect();
        let expected = [
            ("efidisk0", Some(4 << 20)),
            ("rootfs", Some(8 << 30)),
            ("scsi0", Some(32 << 30)),
        ];
        assert_eq!(replaced, expected, "the disks");
        assert_eq!(disks.left, ["mp0", "scsi1"], "what no backup holds");
    }
}
