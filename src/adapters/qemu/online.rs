//! Reads and changes of a running VM through its monitor.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::TaskState;
use crate::adapters::checks::Checks;
use crate::adapters::qemu::block_graph;
use crate::adapters::qemu::block_graph::Job;
use crate::adapters::qemu::block_graph::Status;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::VmView;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::online_failures;
use crate::adapters::qemu::online_failures::RollbackReport;
use crate::adapters::qemu::own_names::OWN_PREFIX;
use crate::adapters::qemu::own_names::PROCESS_MARKER;
use crate::adapters::qemu::qmp::Monitor;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::PublicText;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;
use crate::public_text;

/// Sends a command and parses its answer.
async fn ask<T: DeserializeOwned>(
    monitor: &Monitor,
    command: &str,
    arguments: Value,
    by: Deadline,
) -> Result<T, QemuError> {
    let answer = monitor.ask(command, arguments, by).await?;
    serde_json::from_value(answer).map_err(|error| QemuError::UnexpectedAnswer(error.to_string()))
}

/// The VM and its disks as they are now, or, while QEMU works on a snapshot and cannot answer, as they were before.
pub(super) async fn read_vm(
    monitor: &Monitor,
    vm: &VmId,
    wanted: &[String],
    by: Deadline,
) -> Result<Arc<VmView>, QemuError> {
    if monitor.is_blocked() {
        return monitor.cached_view().ok_or(QemuError::MainLoopBlocked);
    }
    let name: Value = ask(monitor, "query-name", json!({}), by).await?;
    let status: Status = ask(monitor, "query-status", json!({}), by).await?;
    let devices = ask(monitor, "query-block", json!({}), by).await?;
    let nodes = ask(
        monitor,
        "query-named-block-nodes",
        json!({"flat": true}),
        by,
    )
    .await?;
    let name = name.get("name").and_then(Value::as_str);
    let nodes: Vec<block_graph::Node> = nodes;
    let (disks, written) = block_graph::vm_disks(wanted, devices, &nodes);
    let seen = Arc::new(VmView {
        vm: Vm {
            id: vm.clone(),
            name: name.unwrap_or(vm.as_str()).to_owned(),
            description: None,
            run_state: Some(status.run_state()),
        },
        disks,
        state: status.status,
        written,
    });
    // Kept for the time in which QEMU does not answer, so that reads and lists go on during a snapshot.
    monitor.cache_view(Arc::clone(&seen));
    Ok(seen)
}

/// Leaves a small object in this QEMU process, whose id distinguishes it from the next process of the same VM.
///
/// Nothing that QEMU reports by itself does. The object lives as long as the process and is not visible to the guest.
pub(super) async fn mark_process(monitor: &Monitor, by: Deadline) -> Result<String, QemuError> {
    // One for each process: its id stands for the process in every baseline, and must not change.
    if let Some(found) = find_process_marker(monitor, by).await? {
        return Ok(found);
    }
    let nonce = getrandom::u64().map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
    let id = format!("{PROCESS_MARKER}{nonce:016x}");
    let object = json!({"qom-type": "rng-builtin", "id": id});
    monitor.ask("object-add", object, by).await?;
    Ok(id)
}

/// The id of that object, when there is one. Changes nothing.
pub(super) async fn find_process_marker(
    monitor: &Monitor,
    by: Deadline,
) -> Result<Option<String>, QemuError> {
    let found: Vec<Value> = ask(monitor, "qom-list", json!({"path": "/objects"}), by).await?;
    let names = found
        .iter()
        .filter_map(|object| object.get("name")?.as_str());
    Ok(names
        .filter(|name| name.starts_with(PROCESS_MARKER))
        // Two gateways may both have left one; every reader must choose the same.
        .min()
        .map(str::to_owned))
}

/// Our job of that id.
pub(super) async fn find_job(
    monitor: &Monitor,
    id: &str,
    by: Deadline,
) -> Result<Option<Job>, QemuError> {
    let jobs: Vec<Job> = ask(monitor, "query-jobs", json!({}), by).await?;
    Ok(jobs.into_iter().find(|job| job.id == id))
}

/// Starts the job that does it, after everything was checked that would make it fail half-way. `Some`: it is done.
pub(super) async fn begin(
    monitor: &Monitor,
    seen: &VmView,
    paths: &VmPaths,
    intent: &Intent,
    job_id: &str,
    by: Deadline,
) -> Result<Option<BeginOutcome>, AdapterError> {
    let tag = intent.target.backup.as_str();
    let verb = intent.verb();
    let disks = seen.disks.as_slice();
    // The job of an earlier call whose answer was lost. QEMU would refuse a second one of that id.
    if find_job(monitor, job_id, by).await?.is_some() {
        return Ok(None);
    }
    // Tags are made from operation numbers, so a complete one is this operation's own and needs no second snapshot.
    if verb == Verb::Create && disk::tag_coverage(disks, tag) == Some(TagCoverage::Complete) {
        return Ok(Some(BeginOutcome::Done));
    }
    let mut checks = Checks::until_first();
    check_change(monitor, seen, paths, intent, &mut checks, by).await?;
    let devices: Vec<&str> = disks.iter().map(|disk| disk.node.as_str()).collect();
    let with_memory =
        |disk: &str| json!({"job-id": job_id, "tag": tag, "vmstate": disk, "devices": devices});
    // `vmstate` names the one disk that gets the memory; QEMU looks for it there on a load.
    let (command, arguments) = match verb {
        Verb::Create => {
            // Checked here, so that the refusal names the disk in the words of the API.
            check::are_capable(disks)?;
            match disk::tag_coverage(disks, tag) {
                None => {}
                Some(TagCoverage::Complete) => return Ok(Some(BeginOutcome::Done)),
                Some(TagCoverage::Partial | TagCoverage::Duplicated) => {
                    return Err(check::partial_backup_exists());
                }
            }
            let first = disks.first().map_or("", |disk| disk.node.as_str());
            ("snapshot-save", with_memory(first))
        }
        Verb::Restore => {
            let holder = find_memory_holder(disks, intent)?;
            ("snapshot-load", with_memory(&holder.node))
        }
        Verb::Delete => {
            // Only the disks that have it: an interrupted delete may have removed it from the others.
            let nodes = disk::nodes_with(disks, tag);
            let arguments = json!({"job-id": job_id, "tag": tag, "devices": nodes});
            ("snapshot-delete", arguments)
        }
        Verb::Update => return Err(check::metadata_unsupported()),
    };
    // Concluded jobs are dismissed only now: until the next change begins they are the evidence of their outcome.
    dismiss_others(monitor, job_id, by).await?;
    if !delete_own_snapshots(monitor, disks, by).await && verb == Verb::Restore {
        return Err(AdapterError::refused(
            FaultKind::BackendFailed,
            public_text!(
                "A temporary snapshot of an earlier restore could not be removed; nothing was changed. Ask the operator to remove it."
            ),
        ));
    }
    if verb == Verb::Delete {
        // After the checks and before the job: these calls take effect at once and cannot be undone.
        delete_doubles(monitor, disks, tag, by).await?;
    }
    let started = monitor.start(command, arguments, job_id, by).await;
    started.map_err(|error| error.into_command_error(verb))?;
    Ok(None)
}

/// Everything that would refuse the change of a running VM. Asks QEMU and changes nothing.
pub(super) async fn check_change(
    monitor: &Monitor,
    seen: &VmView,
    paths: &VmPaths,
    intent: &Intent,
    checks: &mut Checks,
    by: Deadline,
) -> Result<(), AdapterError> {
    let verb = intent.verb();
    let disks = seen.disks.as_slice();
    if verb == Verb::Delete {
        checks.record(check::check_meant(disks, intent))?;
    }
    checks.record(check_run_state(seen, verb))?;
    checks.record(check_not_migrating(monitor, by).await)?;
    checks.record(may_with_block_jobs(monitor, verb, by).await)?;
    checks.record(in_use::check_running(seen, paths).await)?;
    checks.record(check::is_distinct(disks, intent))?;
    if verb == Verb::Restore {
        check::check_restore(disks, intent, checks)?;
        checks.record(find_memory_holder(disks, intent).map(|_holder| ()))?;
    }
    Ok(())
}

/// A job of ours, and what its end is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct JobQuery<'a> {
    pub(super) job: &'a str,
    pub(super) vm: &'a VmId,
    pub(super) verb: Verb,
    /// The backup's tag; `None` in a task that an earlier version remembered.
    pub(super) tag: Option<&'a str>,
    /// Whether the guest ran before.
    pub(super) ran: bool,
}

/// The state of the job. When it is a load that failed before it touched a disk, the guest runs on if it ran.
pub(super) async fn poll(
    monitor: &Monitor,
    query: JobQuery<'_>,
    wanted: &[String],
    by: Deadline,
) -> Result<TaskState, AdapterError> {
    // No progress is no sign of trouble here: QEMU reports none while it works on a snapshot.
    if monitor.is_blocked() {
        return Ok(TaskState::Running(None));
    }
    let found = match find_job(monitor, query.job, by).await {
        // It began to work between the look and the question.
        Err(QemuError::MainLoopBlocked) => return Ok(TaskState::Running(None)),
        found => found?,
    };
    let Some(job) = found else {
        // A concluded job stays until it is dismissed, so one that is missing went with its process, or by another
        // client.
        return Ok(TaskState::Gone);
    };
    if job.status != "concluded" {
        return Ok(TaskState::Running(None));
    }
    let Some(text) = job.error else {
        return Ok(TaskState::Done(None));
    };
    let verb = query.verb;
    tracing::warn!(
        job = query.job,
        verb = verb.as_str(),
        error = text,
        "QEMU job failed"
    );
    let fault = error::fault(Some(verb), &text);
    // The message of QEMU does not say what it left behind; the disks do.
    let view = read_vm(monitor, query.vm, wanted, by).await?;
    let outcome = match verb {
        Verb::Restore => {
            let rollback = online_failures::read_rollback(&view.disks, query.tag, &text).await;
            let running = resume_untouched(monitor, &rollback, query.ran, by).await?;
            online_failures::after_failed_load(&rollback, running, query.ran)
        }
        Verb::Create => online_failures::after_failed_save(&view, query.tag),
        Verb::Delete => online_failures::after_failed_delete(&view, query.tag),
        Verb::Update => return Ok(TaskState::Failed(fault)),
    };
    let text = fault.text.followed_by(&outcome);
    Ok(TaskState::Failed(Fault::new(fault.kind, text)))
}

/// Whether the guest runs after a load that failed. Only where no disk was touched may it go on by itself: with disks
/// from two points in time it would damage its file systems.
async fn resume_untouched(
    monitor: &Monitor,
    rollback: &RollbackReport,
    ran: bool,
    by: Deadline,
) -> Result<bool, AdapterError> {
    let status: Status = ask(monitor, "query-status", json!({}), by).await?;
    // A guest that was paused before stays paused, because its owner had a reason.
    if status.running || !ran || !rollback.is_untouched() {
        return Ok(status.running);
    }
    match monitor.ask("cont", json!({}), by).await {
        Ok(_resumed) => Ok(true),
        Err(error) => {
            // The restore has failed in any case. That the guest stands still is part of the message, not another
            // failure.
            tracing::warn!(%error, "VM not resumed after a failed restore");
            Ok(false)
        }
    }
}

/// Removes what is left of earlier jobs of ours. Their outcome was recorded, or this VM's turn would not have come.
async fn dismiss_others(monitor: &Monitor, own: &str, by: Deadline) -> Result<(), AdapterError> {
    let jobs: Result<Vec<Job>, _> = ask(monitor, "query-jobs", json!({}), by).await;
    for job in jobs? {
        if job.id.starts_with(OWN_PREFIX) && job.id != own && job.status == "concluded" {
            let dismissed = monitor.ask("job-dismiss", json!({"id": job.id}), by).await;
            dismissed?;
        }
    }
    Ok(())
}

/// The job deletes one snapshot of the tag on each disk: where there are more, the others are deleted before, each by
/// number and tag.
async fn delete_doubles(
    monitor: &Monitor,
    disks: &[Disk],
    tag: &str,
    by: Deadline,
) -> Result<(), AdapterError> {
    for disk in disks {
        for double in disk.snapshots_tagged(tag).skip(1) {
            let arguments = json!({"device": disk.node, "id": double.id, "name": tag});
            let command = "blockdev-snapshot-delete-internal-sync";
            let deleted = monitor.ask(command, arguments, by).await;
            deleted.map_err(|error| error.into_command_error(Verb::Delete))?;
        }
    }
    Ok(())
}

/// Removes what a restore of the stopped VM has left of our own snapshots: see `restore_markers.rs`. Whether none is left.
async fn delete_own_snapshots(monitor: &Monitor, disks: &[Disk], by: Deadline) -> bool {
    let mut is_tidy = true;
    for disk in disks {
        for own in disk.own_tags() {
            let arguments =
                json!({"device": disk.node, "id": disk.snapshot_number(own), "name": own});
            let command = "blockdev-snapshot-delete-internal-sync";
            if let Err(error) = monitor.ask(command, arguments, by).await {
                tracing::warn!(%error, snapshot = own, "temporary snapshot not removed");
                // The others are still tried; a restore is refused afterwards, because it would read the wrong
                // evidence.
                is_tidy = false;
            }
        }
    }
    is_tidy
}

/// Whether the state of the VM allows the change: a VM that is migrated has its images elsewhere.
fn check_run_state(seen: &VmView, verb: Verb) -> Result<(), AdapterError> {
    let refused = |text| Err(AdapterError::refused(FaultKind::Conflict, text));
    match (seen.state.as_str(), verb) {
        ("postmigrate", _) => refused(public_text!(
            "The VM was migrated away, and its disks belong to the host it runs on now; nothing was changed. Use it there, or resume it here if the migration was only a copy."
        )),
        ("inmigrate", _) => refused(public_text!(
            "The VM waits for an incoming migration; nothing was changed. Try again when the migration has ended."
        )),
        ("finish-migrate", _) => refused(migrating()),
        ("restore-vm", Verb::Create) => refused(public_text!(
            "The last restore of the VM failed and left it paused; nothing was changed. Restore the VM before you create a backup."
        )),
        (_other, Verb::Create | Verb::Update | Verb::Delete | Verb::Restore) => Ok(()),
    }
}

async fn check_not_migrating(monitor: &Monitor, by: Deadline) -> Result<(), AdapterError> {
    let migration: Result<Value, _> = ask(monitor, "query-migrate", json!({}), by).await;
    let migration = migration?;
    let status = migration.get("status").and_then(Value::as_str);
    if status.is_some_and(|status| !MIGRATION_ENDED.contains(&status)) {
        return Err(AdapterError::refused(FaultKind::Conflict, migrating()));
    }
    Ok(())
}

/// A block job keeps a restore from all disks, and may put another image in the place of one that is backed up.
async fn may_with_block_jobs(
    monitor: &Monitor,
    verb: Verb,
    by: Deadline,
) -> Result<(), AdapterError> {
    let jobs: Result<Vec<Value>, _> = ask(monitor, "query-block-jobs", json!({}), by).await;
    let jobs = jobs?;
    let moves = |job: &Value| {
        let kind = job.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| MOVING_JOBS.contains(&kind))
    };
    let is_in_the_way = match verb {
        Verb::Restore => !jobs.is_empty(),
        Verb::Create => jobs.iter().any(moves),
        Verb::Update | Verb::Delete => false,
    };
    if is_in_the_way {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            public_text!(
                "A block job is running on a disk of the VM; nothing was changed. Wait until it ends, or cancel it."
            ),
        ));
    }
    Ok(())
}

fn migrating() -> PublicText {
    public_text!(
        "The VM is being migrated; nothing was changed. Try again when the migration has ended."
    )
}

/// States of `query-migrate` in which no migration is under way.
const MIGRATION_ENDED: [&str; 4] = ["none", "completed", "failed", "cancelled"];
/// Block jobs at whose end a disk may be another image, without the snapshots of this one.
const MOVING_JOBS: [&str; 3] = ["mirror", "commit", "stream"];

/// The disk with the memory, without which a load fails half-way: it has rolled back some disks already.
fn find_memory_holder<'a>(disks: &'a [Disk], intent: &'a Intent) -> Result<&'a Disk, AdapterError> {
    let mut holders = disk::disks_with_memory(disks, intent.target.backup.as_str());
    let holder = match (holders.next(), holders.next()) {
        (Some(holder), None) => holder,
        (Some(one), Some(other)) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                public_text!(
                    "Disks {} and {} both contain memory under this id, so they were not backed up together; nothing was changed. Use another backup.",
                    one.label,
                    other.label
                ),
            ));
        }
        (None, _) => {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                error::disks_only(),
            ));
        }
    };
    Ok(holder)
}
