//! What must hold before a step that cannot be undone: storage that is there, a VM in a state that survives the step.

use std::time::Duration;

use crate::adapters::adapter::AdapterError;
use crate::adapters::checks::Checks;
use crate::adapters::incus::Incus;
use crate::adapters::incus::LabelledSnapshot;
use crate::adapters::incus::error;
use crate::adapters::incus::error::NativeError;
use crate::adapters::incus::map;
use crate::adapters::incus::names;
use crate::adapters::incus::names::VolumePath;
use crate::adapters::incus::wire;
use crate::model::Deadline;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::public_text;

/// How many backups a refusal names.
const NAMED_MAX: usize = 5;
/// For how long a snapshot made on schedule counts as unfinished where its operation is not visible.
const SCHEDULED: Duration = Duration::from_secs(10 * 60);

fn storage_unavailable() -> AdapterError {
    let text = public_text!(
        "The storage of the VM is unavailable; nothing was changed. Mount or repair that storage, then try again."
    );
    AdapterError::unavailable(text).of_one_vm()
}

impl Incus {
    /// The pool of the VM, unless the daemon reports it as unavailable: its records would be answered without its data.
    pub(super) async fn check_pool(
        &self,
        path: &VolumePath,
        by: Deadline,
    ) -> Result<wire::Pool, AdapterError> {
        let pool = match self.api.pool(&path.pool, by).await {
            Ok(pool) => pool,
            // Not every version shows pools to restricted clients; then the calls themselves fail.
            Err(NativeError::Refused {
                code: 403 | 404, ..
            }) => wire::Pool::default(),
            Err(error) => return Err(error.into_read_error(FaultKind::NoSuchVm)),
        };
        match pool.status.as_str() {
            "Unavailable" | "Errored" => {
                Err(storage_unavailable().because(format!("storage pool status {}", pool.status)))
            }
            _ => Ok(pool),
        }
    }

    /// Whether the daemon can read the storage of the VM. A pool whose mount has vanished since the daemon started is still
    /// reported as available: snapshots deleted then vanish from the records, and their data stays behind.
    pub(super) async fn check_storage_mounted(
        &self,
        vm: &VmId,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        match self.api.read_storage(vm.as_str(), by).await {
            Ok(()) => Ok(()),
            Err(error @ NativeError::Refused { code: 403, .. }) => {
                Err(error.into_read_error(FaultKind::NoSuchVm))
            }
            Err(error @ NativeError::Refused { .. }) => Err(storage_unavailable().because(error)),
            Err(error @ (NativeError::Transport(_) | NativeError::InvalidAnswer(_))) => {
                Err(error.into_read_error(FaultKind::NoSuchVm))
            }
        }
    }

    /// Whether restoring the VM from the backup leaves a VM that is what the backup says, and no other backup harmed.
    pub(super) async fn check_restore_allowed(
        &self,
        target: &Target,
        labelled: &LabelledSnapshot,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        checks.record(check_settled(&labelled.instance))?;
        for check in RESTORABLE {
            checks.record(check(&labelled.instance, &labelled.snapshot))?;
        }
        let pool = checks.record(self.check_pool(&labelled.path, by).await)?;
        if !pool.is_some_and(|pool| keeps_latest_only(&pool)) {
            return Ok(());
        }
        let all = self.api.snapshots(target.vm.as_str(), by).await;
        let all = all.map_err(|error| error.into_read_error(FaultKind::NoSuchVm))?;
        checks.record(check_latest(&labelled.snapshot, &all))?;
        Ok(())
    }

    /// Whether the snapshot may still be in the making, made on schedule by an operation that is not visible.
    ///
    /// Such operations name no project, so clients with a restricted certificate are not shown them.
    pub(super) fn may_be_scheduled_snapshot(
        &self,
        instance: &wire::Instance,
        snapshot: &wire::Snapshot,
    ) -> bool {
        if self.sees_all_operations {
            return false;
        }
        is_fresh_by_schedule(instance, snapshot, self.clock.now())
    }
}

fn is_fresh_by_schedule(
    instance: &wire::Instance,
    snapshot: &wire::Snapshot,
    now: Timestamp,
) -> bool {
    let schedule = instance.expanded_config.get("snapshots.schedule");
    let is_ours = names::is_minted(names::last_segment(&snapshot.name));
    schedule.is_some_and(|schedule| !schedule.is_empty())
        && !is_ours
        && map::timestamp(&snapshot.created_at).is_some_and(|made| now.since(made) < SCHEDULED)
}

/// Whether the VM is in a state that lasts.
pub(super) fn check_settled(instance: &wire::Instance) -> Result<(), AdapterError> {
    match instance.status.as_str() {
        "Running" | "Stopped" | "Frozen" | "Ready" | "" => Ok(()),
        "Error" | "Aborting" => Err(AdapterError::refused(
            FaultKind::Conflict,
            public_text!(
                "The VM manager reports the VM as faulty; nothing was changed. Stop the VM by force or repair it, then try \
                 again."
            ),
        )),
        _ => Err(error::busy()),
    }
}

/// Whether the storage keeps no backup that is later than the one restored.
pub(super) fn keeps_latest_only(pool: &wire::Pool) -> bool {
    pool.driver == "zfs"
}

/// One check of an instance and the snapshot that it is to be restored from.
type RestoreCheck = fn(&wire::Instance, &wire::Snapshot) -> Result<(), AdapterError>;

/// Whether nothing that the VM manager keeps beside the disks would undo or outlive the restore.
const RESTORABLE: [RestoreCheck; 3] = [check_persistent, check_stays_persistent, check_no_memory];

fn conflict(text: PublicText) -> Result<(), AdapterError> {
    Err(AdapterError::refused(FaultKind::Conflict, text))
}

fn check_persistent(instance: &wire::Instance, _: &wire::Snapshot) -> Result<(), AdapterError> {
    if !instance.ephemeral {
        return Ok(());
    }
    // The restore also puts back the configuration of before where such an instance runs.
    conflict(public_text!(
        "The VM is ephemeral: the VM manager deletes it with all its backups when it stops, and a restore stops it. \
         Nothing was changed. Make the VM persistent, then restore it."
    ))
}

fn check_stays_persistent(
    _: &wire::Instance,
    snapshot: &wire::Snapshot,
) -> Result<(), AdapterError> {
    if !snapshot.ephemeral {
        return Ok(());
    }
    conflict(public_text!(
        "The VM was ephemeral when the backup was created, and restoring the backup would make it ephemeral again: the \
         VM manager would then delete it with all its backups when it stops. Nothing was changed. Copy the backup to a \
         new VM instead."
    ))
}

fn check_no_memory(
    instance: &wire::Instance,
    snapshot: &wire::Snapshot,
) -> Result<(), AdapterError> {
    if !instance.stateful || snapshot.stateful {
        return Ok(());
    }
    conflict(public_text!(
        "The VM was stopped with its memory saved, which its next start would resume on the restored disk. Nothing was \
         changed. Start the VM and stop it without saving its memory, then restore it."
    ))
}

/// The snapshots that were made later than this one.
pub(super) fn later_snapshots<'a>(
    snapshot: &wire::Snapshot,
    all: &'a [wire::Snapshot],
) -> impl Iterator<Item = &'a wire::Snapshot> {
    let made = map::timestamp(&snapshot.created_at);
    all.iter()
        .filter(move |other| map::timestamp(&other.created_at) > made)
}

/// ZFS restores the latest snapshot only, or removes the later ones: which of the two, restricted clients are not shown.
fn check_latest(snapshot: &wire::Snapshot, all: &[wire::Snapshot]) -> Result<(), AdapterError> {
    let later: Vec<&str> = later_snapshots(snapshot, all)
        .map(|other| names::last_segment(&other.name))
        .take(NAMED_MAX)
        .collect();
    if later.is_empty() {
        return Ok(());
    }
    let text = public_text!(
        "The storage of the VM can restore the latest backup only, and later ones exist ({}). Nothing was changed. \
         Delete the later backups if they are no longer needed, then restore this one.",
        later.join(", ")
    );
    Err(AdapterError::refused(FaultKind::Conflict, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(members: &serde_json::Value) -> wire::Instance {
        let mut all = serde_json::json!({
            "name": "web01", "type": "container", "status": "Stopped", "created_at": "2026-11-23T12:00:00Z",
        });
        for (name, value) in members.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn snapshot(name: &str, created_at: &str, members: &serde_json::Value) -> wire::Snapshot {
        let mut all = serde_json::json!({ "name": name, "created_at": created_at });
        for (name, value) in members.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    const MADE: &str = "2026-11-23T12:00:00Z";

    #[test]
    fn a_vm_that_would_vanish_or_resume_other_memory_is_not_restored() {
        let (none, stateful) = (serde_json::json!({}), serde_json::json!({"stateful": true}));
        let ephemeral = serde_json::json!({"ephemeral": true});
        let rows = [
            ("plain", &none, &none, true),
            ("ephemeral VM", &ephemeral, &none, false),
            ("ephemeral in the backup", &none, &ephemeral, false),
            ("memory saved", &stateful, &none, false),
            (
                "memory saved, memory in the backup",
                &stateful,
                &stateful,
                true,
            ),
        ];
        for (name, vm, backup, expected) in rows {
            let (vm, backup) = (instance(vm), snapshot("s", MADE, backup));
            let found = RESTORABLE.iter().try_for_each(|check| check(&vm, &backup));
            assert_eq!(found.is_ok(), expected, "{name}: {found:?}");
        }
    }

    #[test]
    fn a_vm_in_a_passing_state_is_busy_and_a_faulty_one_is_a_conflict() {
        let rows = [
            ("Running", None),
            ("Stopped", None),
            ("Frozen", None),
            ("Starting", Some(FaultKind::Busy)),
            ("Stopping", Some(FaultKind::Busy)),
            ("Error", Some(FaultKind::Conflict)),
        ];
        for (status, expected) in rows {
            let found = check_settled(&instance(&serde_json::json!({"status": status})));
            assert_eq!(
                found.err().map(|error| error.fault.kind),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn on_zfs_only_the_latest_backup_is_restored() {
        let none = serde_json::json!({});
        let all = [
            snapshot("web01/first", "2026-11-23T12:00:00.1Z", &none),
            snapshot("second", "2026-11-23T12:00:00.2Z", &none),
        ];
        let refusal = check_latest(&all[0], &all).unwrap_err();
        assert!(
            refusal.fault.text.contains("(second)"),
            "named: {refusal:?}"
        );
        assert!(check_latest(&all[1], &all).is_ok(), "the latest");
    }

    #[test]
    fn fresh_snapshots_of_a_vm_with_a_schedule_may_be_unfinished() {
        let now = map::timestamp("2026-11-23T12:05:00Z").unwrap();
        let (plain, scheduled) = (
            serde_json::json!({}),
            serde_json::json!({"expanded_config": {"snapshots.schedule": "@hourly"}}),
        );
        let rows = [
            ("no schedule", &plain, "snap0", MADE, false),
            ("fresh", &scheduled, "snap0", MADE, true),
            ("old", &scheduled, "snap0", "2026-11-23T11:00:00Z", false),
            ("of a gateway", &scheduled, "snapgate-7", MADE, false),
        ];
        for (name, vm, id, made, expected) in rows {
            let one = snapshot(id, made, &serde_json::json!({}));
            let found = is_fresh_by_schedule(&instance(vm), &one, now);
            assert_eq!(found, expected, "{name}");
        }
    }
}
