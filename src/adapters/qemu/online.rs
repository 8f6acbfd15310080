//! What is done to a running VM through its monitor.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::TaskState;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::map::Job;
use crate::adapters::qemu::map::Status;
use crate::adapters::qemu::map::TagCoverage;
use crate::adapters::qemu::map::VmView;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::adapters::qemu::qmp::Monitor;
use crate::adapters::qemu::qmp::OWN_PREFIX;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::RunState;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;

/// The id of the object by which a QEMU process is told from the next one, up to its random part.
const PROCESS_MARKER: &str = "snapgate-life-";

/// Asks and takes the answer apart.
async fn ask<T: DeserializeOwned>(
    monitor: &Monitor,
    command: &str,
    arguments: Value,
    by: Deadline,
) -> Result<T, QemuError> {
    let answer = monitor.ask(command, arguments, by).await?;
    serde_json::from_value(answer).map_err(|error| QemuError::UnexpectedAnswer(error.to_string()))
}

/// The VM and its disks as they are now, or, while QEMU is at work on a snapshot, as they were before.
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
    let nodes: Vec<map::Node> = nodes;
    let (disks, written) = map::disks(wanted, devices, &nodes);
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
    monitor.cache_view(Arc::clone(&seen));
    Ok(seen)
}

/// What sets this QEMU process apart from the next one of the same VM: the id of a small object that we leave in it.
///
/// Nothing that QEMU tells by itself does. The object lives as long as the process and is no part of the guest.
pub(super) async fn mark_process(monitor: &Monitor, by: Deadline) -> Result<String, QemuError> {
    if let Some(found) = find_process_marker(monitor, by).await? {
        return Ok(found);
    }
    let nonce = getrandom::u64().map_err(|error| QemuError::ConnectionLost(error.to_string()))?;
    let id = format!("{PROCESS_MARKER}{nonce:016x}");
    let object = json!({"qom-type": "rng-builtin", "id": id});
    monitor.ask("object-add", object, by).await?;
    Ok(id)
}

/// The same without leaving anything.
pub(super) async fn find_process_marker(
    monitor: &Monitor,
    by: Deadline,
) -> Result<Option<String>, QemuError> {
    let found: Vec<Value> = ask(monitor, "qom-list", json!({"path": "/objects"}), by).await?;
    let names = found.iter().filter_map(|it| it.get("name")?.as_str());
    Ok(names
        .filter(|name| name.starts_with(PROCESS_MARKER))
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

/// Has the job begun that does it, after everything was checked that would make it fail half-way.
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
    if find_job(monitor, job_id, by)
        .await
        .map_err(QemuError::into_read_error)?
        .is_some()
    {
        return Ok(None);
    }
    if verb == Verb::Create && map::tag_coverage(disks, tag) == Some(TagCoverage::Complete) {
        return Ok(Some(BeginOutcome::Done));
    }
    if verb == Verb::Delete && !check::holds_meant_backup(disks, intent)? {
        return Err(check::no_such_backup());
    }
    may_change(monitor, seen, verb, by).await?;
    in_use::check_running(seen, paths).await?;
    check::is_distinct(disks, intent)?;
    let devices: Vec<&str> = disks.iter().map(|disk| disk.node.as_str()).collect();
    let with_memory =
        |disk: &str| json!({"job-id": job_id, "tag": tag, "vmstate": disk, "devices": devices});
    let (command, arguments) = match verb {
        Verb::Create => {
            check::are_capable(disks)?;
            match map::tag_coverage(disks, tag) {
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
            let holder = may_load(disks, intent)?;
            ("snapshot-load", with_memory(&holder.node))
        }
        Verb::Delete => {
            let nodes = map::nodes_with(disks, tag);
            let arguments = json!({"job-id": job_id, "tag": tag, "devices": nodes});
            ("snapshot-delete", arguments)
        }
        Verb::Update => return Err(check::metadata_unsupported()),
    };
    dismiss_others(monitor, job_id, by).await?;
    if !delete_own_snapshots(monitor, disks, by).await && verb == Verb::Restore {
        return Err(AdapterError::refused(
            FaultKind::BackendFailed,
            "A snapshot that an earlier restore left could not be removed; nothing was changed. Remove the snapshots `snapgate-before-...` with the tools of QEMU.",
        ));
    }
    if verb == Verb::Delete {
        delete_doubles(monitor, disks, tag, by).await?;
    }
    let started = monitor.start(command, arguments, job_id, by).await;
    started.map_err(|error| error.into_command_error(verb))?;
    Ok(None)
}

/// A job of ours, as far as its end has to be understood.
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

/// How the job is. When it is a load that failed before it touched a disk, the guest runs on if it ran.
pub(super) async fn poll(
    monitor: &Monitor,
    query: JobQuery<'_>,
    wanted: &[String],
    by: Deadline,
) -> Result<TaskState, AdapterError> {
    if monitor.is_blocked() {
        return Ok(TaskState::Running(None));
    }
    let found = match find_job(monitor, query.job, by).await {
        Err(QemuError::MainLoopBlocked) => return Ok(TaskState::Running(None)),
        found => found.map_err(QemuError::into_read_error)?,
    };
    let Some(job) = found else {
        return Ok(TaskState::Gone);
    };
    if job.status != "concluded" {
        return Ok(TaskState::Running(None));
    }
    let Some(text) = job.error else {
        return Ok(TaskState::Done);
    };
    let verb = query.verb;
    tracing::warn!(
        job = query.job,
        verb = verb.as_str(),
        private = text,
        "job of QEMU failed"
    );
    let fault = error::fault(Some(verb), &text);
    let seen = read_vm(monitor, query.vm, wanted, by).await;
    let seen = seen.map_err(QemuError::into_read_error)?;
    let outcome = match verb {
        Verb::Restore => {
            let rolled = rolled_back(&seen.disks, query.tag, &text).await;
            after_failed_load(monitor, &rolled, query.ran, by).await?
        }
        Verb::Create => after_failed_save(&seen, query.tag),
        Verb::Delete => after_failed_delete(&seen, query.tag),
        Verb::Update => String::new(),
    };
    let text = format!("{} {outcome}", fault.text);
    Ok(TaskState::Failed(Fault::new(fault.kind, text.trim_end())))
}

/// What a failed load did to the disks, by their labels.
#[derive(Debug, Default)]
struct RollbackReport {
    restored: Vec<String>,
    kept: Vec<String>,
    unknown: Vec<String>,
}

/// QEMU rolls back one disk after the other, then reads the memory, and names the disk that it failed on.
async fn rolled_back(disks: &[Disk], tag: Option<&str>, text: &str) -> RollbackReport {
    let mut found = RollbackReport::default();
    let is_named = |disk: &Disk| text.contains(&format!("on '{}'", disk.node));
    let failed_at = disks.iter().position(is_named);
    for (number, disk) in disks.iter().enumerate() {
        let label = disk.label.clone();
        let never = error::touched_nothing(text) || failed_at.is_some_and(|at| number >= at);
        if never {
            found.kept.push(label);
            continue;
        }
        let (Some(tag), Some(file)) = (tag, &disk.file) else {
            found.unknown.push(label);
            continue;
        };
        match qcow2::relation_to_snapshot(file, tag).await {
            Ok(SnapshotRelation::Identical) => found.restored.push(label),
            Ok(SnapshotRelation::WrittenSince | SnapshotRelation::Unclear) => {
                found.kept.push(label)
            }
            Err(error) => {
                tracing::warn!(private = %error, "a disk could not be looked at after a failed load");
                found.unknown.push(label);
            }
        }
    }
    found
}

/// What to say after a load that failed. Only where no disk was touched may the guest go on by itself.
async fn after_failed_load(
    monitor: &Monitor,
    rolled: &RollbackReport,
    ran: bool,
    by: Deadline,
) -> Result<String, AdapterError> {
    let status: Result<Status, _> = ask(monitor, "query-status", json!({}), by).await;
    let mut running = status.map_err(QemuError::into_read_error)?.running;
    let untouched = rolled.restored.is_empty() && rolled.unknown.is_empty();
    if untouched && ran && !running {
        match monitor.ask("cont", json!({}), by).await {
            Ok(_resumed) => running = true,
            Err(error) => tracing::warn!(private = %error, "the VM could not be resumed"),
        }
    }
    let state = match (running, ran) {
        (true, _) => "the VM runs",
        (false, true) => "the VM is stopped",
        (false, false) => "the VM did not run before and is stopped",
    };
    let restored = check::list_disks(&rolled.restored);
    let kept = check::list_disks(&rolled.kept);
    let unknown = check::list_disks(&rolled.unknown);
    let data = match (rolled.restored.as_slice(), rolled.kept.as_slice()) {
        _ if untouched && running => {
            return Ok("No disk was changed, and the VM runs on.".to_owned());
        }
        _ if untouched => {
            return Ok(format!(
                "No disk was changed, but {state}: resume it with the tools of QEMU, or restore it again."
            ));
        }
        ([], []) => format!("It is not known whether {unknown} were restored"),
        ([], _) => format!("It is not known whether {unknown} were restored; {kept} not"),
        (_, []) if rolled.unknown.is_empty() => {
            format!("The restore put back {restored}, but not the memory")
        }
        (_, []) => format!("The restore put back {restored}, perhaps {unknown}"),
        (_, _) if rolled.unknown.is_empty() => {
            format!("The restore put back {restored}, but not {kept}")
        }
        (_, _) => format!("The restore put back {restored}, perhaps {unknown}, but not {kept}"),
    };
    Ok(format!(
        "{data}, and {state}. Remove the cause, restore the VM again, and resume it then."
    ))
}

/// The labels of the disks that have the tag.
fn labels_with_tag(seen: &VmView, tag: Option<&str>) -> Vec<String> {
    let disks = seen
        .disks
        .iter()
        .filter(|disk| tag.is_some_and(|tag| disk.has_tag(tag)));
    disks.map(|disk| disk.label.clone()).collect()
}

fn state_of(seen: &VmView) -> &'static str {
    if seen.vm.run_state == Some(RunState::Started) {
        "the VM runs on"
    } else {
        "the VM does not run"
    }
}

fn after_failed_save(seen: &VmView, tag: Option<&str>) -> String {
    let with = labels_with_tag(seen, tag);
    let state = state_of(seen);
    if with.is_empty() {
        return format!("There is no backup, and {state}.");
    }
    format!(
        "A part of it is on {}, and {state}. Delete the backup.",
        check::list_disks(&with)
    )
}

fn after_failed_delete(seen: &VmView, tag: Option<&str>) -> String {
    let with = labels_with_tag(seen, tag);
    if with.len() == seen.disks.len() {
        return "The backup is still there.".to_owned();
    }
    format!(
        "The backup is still on {}; delete it again.",
        check::list_disks(&with)
    )
}

/// Removes what is left of earlier jobs of ours. Their outcome was recorded, or this VM's turn would not have come.
async fn dismiss_others(monitor: &Monitor, own: &str, by: Deadline) -> Result<(), AdapterError> {
    let jobs: Result<Vec<Job>, _> = ask(monitor, "query-jobs", json!({}), by).await;
    for job in jobs.map_err(QemuError::into_read_error)? {
        if job.id.starts_with(OWN_PREFIX) && job.id != own && job.status == "concluded" {
            let dismissed = monitor.ask("job-dismiss", json!({"id": job.id}), by).await;
            dismissed.map_err(QemuError::into_read_error)?;
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
                tracing::warn!(private = %error, "own snapshot not removed");
                is_tidy = false;
            }
        }
    }
    is_tidy
}

/// Whether the state of the VM allows the change: a VM that is migrated has its images elsewhere.
async fn may_change(
    monitor: &Monitor,
    seen: &VmView,
    verb: Verb,
    by: Deadline,
) -> Result<(), AdapterError> {
    let refused = |text: &str| Err(AdapterError::refused(FaultKind::Conflict, text));
    match (seen.state.as_str(), verb) {
        ("postmigrate", _) => {
            return refused(
                "The VM was migrated away, and its disks belong to where it runs now; nothing was changed. \
                 Use it there, or resume it here if the migration was only a copy.",
            );
        }
        ("inmigrate", _) => {
            return refused(
                "The VM waits for a migration to it; nothing was changed. Try again when the migration has ended.",
            );
        }
        ("finish-migrate", _) => return refused(MIGRATING),
        ("restore-vm", Verb::Create) => {
            return refused(
                "The last restore of the VM failed and left it stopped; nothing was changed. Restore it before a backup is made.",
            );
        }
        (_other, Verb::Create | Verb::Update | Verb::Delete | Verb::Restore) => {}
    }
    let migration: Result<Value, _> = ask(monitor, "query-migrate", json!({}), by).await;
    let migration = migration.map_err(QemuError::into_read_error)?;
    let status = migration.get("status").and_then(Value::as_str);
    if status.is_some_and(|status| !MIGRATION_ENDED.contains(&status)) {
        return refused(MIGRATING);
    }
    may_with_block_jobs(monitor, verb, by).await
}

/// A block job keeps a restore from all disks, and may put another image in the place of one that is backed up.
async fn may_with_block_jobs(
    monitor: &Monitor,
    verb: Verb,
    by: Deadline,
) -> Result<(), AdapterError> {
    let jobs: Result<Vec<Value>, _> = ask(monitor, "query-block-jobs", json!({}), by).await;
    let jobs = jobs.map_err(QemuError::into_read_error)?;
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
            "A block job runs on a disk of the VM; nothing was changed. Wait for its end or cancel it.",
        ));
    }
    Ok(())
}

const MIGRATING: &str =
    "The VM is being migrated; nothing was changed. Try again when the migration has ended.";
const MIGRATION_ENDED: [&str; 4] = ["none", "completed", "failed", "cancelled"];
/// Block jobs at whose end a disk may be another image, without the snapshots of this one.
const MOVING_JOBS: [&str; 3] = ["mirror", "commit", "stream"];

/// What the disks must be, or a load would fail, at worst after some were rolled back. Gives the disk with the memory.
fn may_load<'a>(disks: &'a [Disk], intent: &'a Intent) -> Result<&'a Disk, AdapterError> {
    check::may_restore(disks, intent)?;
    let mut holders = map::memory(disks, intent.target.backup.as_str());
    let holder = match (holders.next(), holders.next()) {
        (Some(holder), None) => holder,
        (Some(one), Some(other)) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                format!(
                    "Two disks, {} and {}, hold memory under this id, so they were not taken at one time; nothing was changed. Use another backup.",
                    one.label, other.label
                ),
            ));
        }
        (None, _) => {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                "The backup holds no memory: stop the VM and restore it then.",
            ));
        }
    };
    Ok(holder)
}
