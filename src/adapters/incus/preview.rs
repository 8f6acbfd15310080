//! What a restore or a delete would do, found by the checks of the change itself.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::no_preview;
use crate::adapters::checks::Checks;
use crate::adapters::incus::Incus;
use crate::adapters::incus::LabelledSnapshot;
use crate::adapters::incus::begin::check_made;
use crate::adapters::incus::guard;
use crate::adapters::incus::map;
use crate::adapters::incus::missing_error;
use crate::adapters::incus::names;
use crate::adapters::incus::wire;
use crate::model::Backup;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::PreviewDisk;
use crate::model::PreviewPart;
use crate::model::RunState;
use crate::model::Verb;
use crate::public_text;

impl Incus {
    /// What the change would do. Changes nothing.
    pub(super) async fn preview_change(
        &self,
        intent: &Intent,
        by: Deadline,
    ) -> Result<Preview, AdapterError> {
        let target = &intent.target;
        let labelled = match intent.verb() {
            Verb::Restore | Verb::Delete => self.find_meant(intent, by).await?,
            Verb::Create | Verb::Update => return Err(no_preview()),
        };
        let mut checks = Checks::all();
        checks.record(check_made(&labelled))?;
        let is_restore = intent.verb() == Verb::Restore;
        if is_restore {
            self.check_restore(target, &labelled, &mut checks, by)
                .await?;
        } else {
            self.check_delete(target, &labelled, &mut checks, by)
                .await?;
        }
        let all = self.all(&target.vm, by).await?;
        let backup = map::backup(&labelled.snapshot, &labelled.label);
        let backup = backup.ok_or_else(|| missing_error(FaultKind::NoSuchBackup))?;
        let loses = if is_restore {
            self.lost_backups(&labelled, &all, by).await?
        } else {
            Vec::new()
        };
        let after = run_state_after(&labelled.instance, &labelled.snapshot);
        let disks = disk_devices(&labelled.instance);
        // Of a snapshot the daemon keeps no name but its own, so an instance that was made anew under the name is another one.
        let vm_mark = Some(labelled.instance.created_at.clone());
        let has_memory = labelled.snapshot.stateful;
        let mut preview = Preview::new(map::vm(&target.vm, labelled.instance), backup);
        preview.refused = checks.into_refused();
        preview.loses = loses;
        preview.vm_mark = vm_mark;
        if is_restore {
            preview.overwrites = disks.overwritten;
            preview.leaves = disks.left;
            preview.after = after;
            preview.unknown.push(PreviewPart::Needs);
            if after.is_none() {
                preview.unknown.push(PreviewPart::After);
            }
            preview.warnings.push(public_text!(
                "The configuration of the VM is restored together with its root disk."
            ));
            if has_memory {
                preview.warnings.push(public_text!(
                    "The backup holds the memory of the VM, which resumes from it."
                ));
            }
        }
        Ok(preview.with_newer(&all))
    }

    /// The later backups, where the storage keeps none of them.
    async fn lost_backups(
        &self,
        labelled: &LabelledSnapshot,
        all: &[Backup],
        by: Deadline,
    ) -> Result<Vec<Backup>, AdapterError> {
        let pool = self.check_pool(&labelled.path, by).await?;
        if !guard::keeps_latest_only(&pool) {
            return Ok(Vec::new());
        }
        let snapshots = self.api.snapshots(&labelled.instance.name, by).await;
        let snapshots = snapshots.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        let later: Vec<&str> = guard::later_snapshots(&labelled.snapshot, &snapshots)
            .map(|snapshot| names::last_segment(&snapshot.name))
            .collect();
        let is_later = |backup: &&Backup| later.contains(&backup.id.as_str());
        Ok(all.iter().filter(is_later).cloned().collect())
    }
}

/// What becomes of the disks of an instance: the daemon restores the root disk alone.
struct RestoredDisks {
    overwritten: Vec<PreviewDisk>,
    left: Vec<String>,
}

fn disk_devices(instance: &wire::Instance) -> RestoredDisks {
    let mut disks = RestoredDisks {
        overwritten: Vec::new(),
        left: Vec::new(),
    };
    for (name, device) in &instance.expanded_devices {
        let has = |key: &str, value: &str| device.get(key).is_some_and(|found| found == value);
        if !has("type", "disk") {
            continue;
        }
        if has("path", "/") {
            disks.overwritten.push(PreviewDisk {
                disk: name.clone(),
                size: device.get("size").and_then(|size| parse_bytes(size)),
            });
        } else {
            disks.left.push(name.clone());
        }
    }
    disks
}

/// The daemon starts an instance again that it stopped for the restore, and one whose memory it restores.
fn run_state_after(instance: &wire::Instance, snapshot: &wire::Snapshot) -> Option<RunState> {
    match instance.status.as_str() {
        _ if snapshot.stateful => Some(RunState::Started),
        "Running" | "Ready" => Some(RunState::Started),
        "Stopped" => Some(RunState::Stopped),
        _ => None,
    }
}

/// A size as the daemon writes it: a number of bytes, or one with a unit of a thousand (`GB`) or of 1024 (`GiB`).
fn parse_bytes(text: &str) -> Option<u64> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit());
    let (number, unit) = text.split_at_checked(end.unwrap_or(text.len()))?;
    let number: u64 = number.parse().ok()?;
    let (base, power) = match unit.trim() {
        "" | "B" => (1, 0),
        "kB" => (1000_u64, 1),
        "MB" => (1000, 2),
        "GB" => (1000, 3),
        "TB" => (1000, 4),
        "KiB" => (1024, 1),
        "MiB" => (1024, 2),
        "GiB" => (1024, 3),
        "TiB" => (1024, 4),
        _ => return None,
    };
    number.checked_mul(base.checked_pow(power)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(status: &str) -> wire::Instance {
        let text = serde_json::json!({
            "name": "web01", "type": "container", "status": status, "created_at": "2026-11-23T12:00:00Z",
            "expanded_devices": {
                "data": {"type": "disk", "path": "/srv", "source": "vol"},
                "eth0": {"type": "nic"},
                "root": {"type": "disk", "path": "/", "pool": "default", "size": "10GiB"},
            },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_root_disk_is_overwritten_and_the_others_stay() {
        let disks = disk_devices(&instance("Running"));
        let root = PreviewDisk {
            disk: "root".to_owned(),
            size: Some(10 << 30),
        };
        assert_eq!(disks.overwritten, [root], "the root disk");
        assert_eq!(disks.left, ["data"], "disks alone");
    }

    #[test]
    fn the_run_state_afterwards_is_that_of_before_unless_memory_is_restored() {
        let rows = [
            ("Running", false, Some(RunState::Started)),
            ("Stopped", false, Some(RunState::Stopped)),
            ("Stopped", true, Some(RunState::Started)),
            ("Frozen", false, None),
        ];
        for (status, stateful, expected) in rows {
            let snapshot = serde_json::json!({
                "name": "s", "created_at": "2026-11-23T12:00:00Z", "stateful": stateful,
            });
            let snapshot: wire::Snapshot = serde_json::from_value(snapshot).unwrap();
            let found = run_state_after(&instance(status), &snapshot);
            assert_eq!(found, expected, "{status} {stateful}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        let rows = [
            ("1024", Some(1024)),
            ("10GiB", Some(10 << 30)),
            ("5GB", Some(5_000_000_000)),
            ("1kB", Some(1000)),
            ("", None),
            ("GiB", None),
            ("10 apples", None),
            ("99999999999999999TiB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }
}
