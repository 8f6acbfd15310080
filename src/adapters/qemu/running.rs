//! What is done to a running VM through its monitor.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use crate::adapters::port::AdapterError;
use crate::adapters::port::Begun;
use crate::adapters::port::TaskState;
use crate::adapters::qemu::error;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::map::Job;
use crate::adapters::qemu::map::Seen;
use crate::adapters::qemu::map::Status;
use crate::adapters::qemu::map::Whole;
use crate::adapters::qemu::qmp::Monitor;
use crate::adapters::qemu::qmp::OURS;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;
use crate::model::Vm;
use crate::model::VmId;

/// The id of the object by which a QEMU process is told from the next one, up to its random part.
const LIFE: &str = "snapgate-life-";

/// Asks and takes the answer apart.
async fn ask<T: DeserializeOwned>(
    monitor: &Monitor,
    command: &str,
    arguments: Value,
    by: Deadline,
) -> Result<T, QemuError> {
    let answer = monitor.ask(command, arguments, by).await?;
    serde_json::from_value(answer).map_err(|error| QemuError::Nonsense(error.to_string()))
}

/// The VM and its disks as they are now, or, while QEMU is at work on a snapshot, as they were before.
pub(super) async fn look(
    monitor: &Monitor,
    vm: &VmId,
    wanted: &[String],
    by: Deadline,
) -> Result<Arc<Seen>, QemuError> {
    if monitor.is_blocked() {
        return monitor.kept().ok_or(QemuError::Blocked);
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
    let seen = Arc::new(Seen {
        vm: Vm {
            id: vm.clone(),
            name: name.unwrap_or(vm.as_str()).to_owned(),
            description: None,
            run_state: Some(status.run_state()),
        },
        disks: map::disks(wanted, devices, nodes)?,
    });
    monitor.keep(Arc::clone(&seen));
    Ok(seen)
}

/// What sets this QEMU process apart from the next one of the same VM: the id of a small object that we leave in it.
///
/// Nothing that QEMU tells by itself does. The object lives as long as the process and is no part of the guest.
pub(super) async fn life(monitor: &Monitor, by: Deadline) -> Result<String, QemuError> {
    if let Some(found) = planted(monitor, by).await? {
        return Ok(found);
    }
    let nonce = getrandom::u64().map_err(|error| QemuError::Lost(error.to_string()))?;
    let id = format!("{LIFE}{nonce:016x}");
    let object = json!({"qom-type": "rng-builtin", "id": id});
    monitor.ask("object-add", object, by).await?;
    Ok(id)
}

/// The same without leaving anything.
pub(super) async fn planted(monitor: &Monitor, by: Deadline) -> Result<Option<String>, QemuError> {
    let found: Vec<Value> = ask(monitor, "qom-list", json!({"path": "/objects"}), by).await?;
    let names = found.iter().filter_map(|it| it.get("name")?.as_str());
    Ok(names
        .filter(|it| it.starts_with(LIFE))
        .min()
        .map(str::to_owned))
}

/// Our job of that id.
pub(super) async fn job(
    monitor: &Monitor,
    id: &str,
    by: Deadline,
) -> Result<Option<Job>, QemuError> {
    let jobs: Vec<Job> = ask(monitor, "query-jobs", json!({}), by).await?;
    Ok(jobs.into_iter().find(|it| it.id == id))
}

/// Has the job begun that does it, after everything was checked that would make it fail half-way.
pub(super) async fn begin(
    monitor: &Monitor,
    disks: &[Disk],
    intent: &Intent,
    job_id: &str,
    by: Deadline,
) -> Result<Option<Begun>, AdapterError> {
    let tag = intent.target.backup.as_str();
    let verb = intent.verb();
    if job(monitor, job_id, by)
        .await
        .map_err(QemuError::of_read)?
        .is_some()
    {
        return Ok(None);
    }
    let devices: Vec<&str> = disks.iter().map(|it| it.node.as_str()).collect();
    let first = disks.first().map(|it| it.node.as_str());
    let memory = json!({"job-id": job_id, "tag": tag, "vmstate": first, "devices": devices});
    let (command, arguments) = match verb {
        Verb::Create => {
            check_disks(disks)?;
            match map::whole(disks, tag) {
                None => {}
                Some(Whole::Yes) => return Ok(Some(Begun::Done)),
                Some(Whole::Partial | Whole::Twice) => return Err(half()),
            }
            ("snapshot-save", memory)
        }
        Verb::Restore => {
            may_load(monitor, disks, intent, by).await?;
            ("snapshot-load", memory)
        }
        Verb::Delete => {
            if !is_there(disks, intent)? {
                return Err(none());
            }
            let nodes = map::nodes_with(disks, tag);
            let arguments = json!({"job-id": job_id, "tag": tag, "devices": nodes});
            ("snapshot-delete", arguments)
        }
        Verb::Update => return Err(unsupported()),
    };
    dismiss_others(monitor, job_id, by).await?;
    tidy(monitor, disks, by).await;
    let started = monitor.start(command, arguments, job_id, by).await;
    started.map_err(|it| it.of_command(verb))?;
    Ok(None)
}

/// How the job is. When it is a load that failed before it touched a disk, the guest runs on if it ran.
pub(super) async fn poll(
    monitor: &Monitor,
    id: &str,
    verb: Verb,
    ran: bool,
    by: Deadline,
) -> Result<TaskState, AdapterError> {
    if monitor.is_blocked() {
        return Ok(TaskState::Running(None));
    }
    let found = match job(monitor, id, by).await {
        Err(QemuError::Blocked) => return Ok(TaskState::Running(None)),
        found => found.map_err(QemuError::of_read)?,
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
    tracing::warn!(
        job = id,
        verb = verb.as_str(),
        private = text,
        "job of QEMU failed"
    );
    let fault = error::fault(Some(verb), &text);
    if verb != Verb::Restore {
        return Ok(TaskState::Failed(fault));
    }
    let status: Result<Status, _> = ask(monitor, "query-status", json!({}), by).await;
    let status = status.map_err(QemuError::of_read)?;
    if status.running {
        return Ok(TaskState::Failed(fault));
    }
    if error::touched_nothing(&text) && ran {
        let resumed = monitor.ask("cont", json!({}), by).await;
        resumed.map_err(QemuError::of_read)?;
        return Ok(TaskState::Failed(fault));
    }
    Ok(TaskState::Failed(left_stopped(&fault, ran)))
}

/// A failed load may have rolled back some disks and not others: nothing but a person may let the guest go on.
fn left_stopped(fault: &Fault, ran: bool) -> Fault {
    let text = if ran {
        "The restore failed, perhaps after some disks were restored, and the VM was left stopped. \
         Remove the cause and restore it again before it is resumed."
    } else {
        "The restore failed, perhaps after some disks were restored. The VM did not run and was left so. \
         Remove the cause and restore it again."
    };
    Fault::new(fault.kind, format!("{} {text}", fault.text))
}

/// Removes what is left of earlier jobs of ours. Their outcome was recorded, or this VM's turn would not have come.
async fn dismiss_others(monitor: &Monitor, own: &str, by: Deadline) -> Result<(), AdapterError> {
    let jobs: Result<Vec<Job>, _> = ask(monitor, "query-jobs", json!({}), by).await;
    for job in jobs.map_err(QemuError::of_read)? {
        if job.id.starts_with(OURS) && job.id != own && job.status == "concluded" {
            let dismissed = monitor.ask("job-dismiss", json!({"id": job.id}), by).await;
            dismissed.map_err(QemuError::of_read)?;
        }
    }
    Ok(())
}

/// Removes what a restore of the stopped VM has left of our own snapshots: see `trail.rs`. What fails is left.
async fn tidy(monitor: &Monitor, disks: &[Disk], by: Deadline) {
    for disk in disks {
        for own in disk.own() {
            let arguments = json!({"device": disk.node, "name": own});
            let command = "blockdev-snapshot-delete-internal-sync";
            if let Err(error) = monitor.ask(command, arguments, by).await {
                tracing::warn!(private = %error, "own snapshot not removed");
            }
        }
    }
}

/// Everything that would make a load fail, at worst after some disks were rolled back.
async fn may_load(
    monitor: &Monitor,
    disks: &[Disk],
    intent: &Intent,
    by: Deadline,
) -> Result<(), AdapterError> {
    may_restore(disks, intent)?;
    if !map::has_memory(disks, intent.target.backup.as_str()) {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            "The backup holds no memory: stop the VM and restore it then.",
        ));
    }
    let jobs: Result<Vec<Value>, _> = ask(monitor, "query-block-jobs", json!({}), by).await;
    if !jobs.map_err(QemuError::of_read)?.is_empty() {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            "A block job runs on a disk of the VM; wait for its end or cancel it.",
        ));
    }
    Ok(())
}

/// What must be so of the disks before a restore, whether the VM runs or not.
pub(super) fn may_restore(disks: &[Disk], intent: &Intent) -> Result<(), AdapterError> {
    check_disks(disks)?;
    if !is_there(disks, intent)? {
        return Err(none());
    }
    match map::whole(disks, intent.target.backup.as_str()) {
        Some(Whole::Yes) => {}
        Some(Whole::Partial) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                "The backup is missing on a disk of the VM.",
            ));
        }
        Some(Whole::Twice) => {
            return Err(AdapterError::refused(
                FaultKind::NotReady,
                "A disk of the VM has two snapshots of that id.",
            ));
        }
        None => return Err(none()),
    }
    if disks.iter().any(|it| it.bitmaps) {
        return Err(AdapterError::refused(
            FaultKind::Conflict,
            "A disk of the VM has dirty bitmaps; remove them first.",
        ));
    }
    Ok(())
}

/// Whether every disk can be backed up and restored.
pub(super) fn check_disks(disks: &[Disk]) -> Result<(), AdapterError> {
    let refused = |text| Err(AdapterError::refused(FaultKind::Unsupported, text));
    if disks.is_empty() {
        return refused("The VM has no disk that can be backed up.");
    }
    if disks.iter().any(|it| !it.capable) {
        return refused(
            "A writable disk of the VM is not in qcow2 format and cannot hold snapshots.",
        );
    }
    Ok(())
}

/// Whether the very backup that is meant is there.
///
/// # Errors
/// When another one of the same id is.
pub(super) fn is_there(disks: &[Disk], intent: &Intent) -> Result<bool, AdapterError> {
    let Some(found) = map::backup(disks, intent.target.backup.as_str()) else {
        return Ok(false);
    };
    match &intent.identity {
        Some(identity) if *identity != found.identity => Err(AdapterError::refused(
            FaultKind::NoSuchBackup,
            "The VM has another backup under this id.",
        )),
        Some(_) | None => Ok(true),
    }
}

pub(super) fn none() -> AdapterError {
    AdapterError::refused(FaultKind::NoSuchBackup, "The VM has no such backup.")
}

pub(super) fn half() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        "Some disks of the VM have a snapshot of that id.",
    )
}

pub(super) fn unsupported() -> AdapterError {
    AdapterError::refused(
        FaultKind::Unsupported,
        "QEMU keeps no names, descriptions or tags.",
    )
}
