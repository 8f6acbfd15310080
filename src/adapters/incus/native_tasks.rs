//! What operations of LXD and Incus, their tasks, say about a VM and its snapshots. Pure.

use crate::adapters::incus::map;
use crate::adapters::incus::names;
use crate::adapters::incus::wire;

/// What operations that make snapshots say of themselves.
pub(super) const SNAPSHOTTING: &str = "Snapshotting instance";
/// Whether an operation is running on the VM that excludes another one. Consoles and commands in the VM do not.
pub(super) fn is_running_on(task: &wire::Task, vm: &str) -> bool {
    task.status_code < 200 && task.class == "task" && may_concern(task, vm)
}

/// Whether the operation works on the VM, or may do so: what the daemon does by its own schedule names no instance.
fn may_concern(task: &wire::Task, vm: &str) -> bool {
    let names_nothing = task
        .resources
        .as_ref()
        .is_none_or(|all| all.values().all(Vec::is_empty));
    if names_nothing {
        let text = task.description.as_str();
        return text == SNAPSHOTTING || text.contains("expired instance snapshots");
    }
    names_vm(task, vm)
}

/// Whether a snapshot of the VM is being made.
pub(super) fn is_snapshotting(task: &wire::Task, vm: &str) -> bool {
    is_running_on(task, vm) && task.description == SNAPSHOTTING
}

/// Whether the operation names the VM among what it works on.
pub(super) fn names_vm(task: &wire::Task, vm: &str) -> bool {
    let Some(resources) = &task.resources else {
        return false;
    };
    resources.values().flatten().any(|path| {
        let mut parts = path.split(['/', '?']).skip(2);
        matches!(
            parts.next(),
            Some("instances" | "containers" | "virtual-machines")
        ) && parts.next() == Some(vm)
    })
}

/// Whether the snapshot may be half made, which is asked of snapshots without a label only.
///
/// One of a gateway counts as such for as long as the VM manager knows the operation that made it, ended or not: by then
/// the gateway has labelled it, or the VM manager has removed it.
pub(super) fn may_be_incomplete(snapshot: &wire::Snapshot, tasks: &[wire::Task], vm: &str) -> bool {
    let made = map::timestamp(&snapshot.created_at);
    let is_ours = names::is_minted(names::last_segment(&snapshot.name));
    tasks
        .iter()
        .filter(|task| task.description == SNAPSHOTTING && may_concern(task, vm))
        .filter(|task| is_ours || is_running_on(task, vm))
        .any(|task| made >= map::timestamp(&task.created_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn task(description: &str, status_code: u16, path: &str) -> wire::Task {
        let resources = BTreeMap::from([("instances".to_owned(), vec![path.to_owned()])]);
        wire::Task {
            id: String::new(),
            class: "task".to_owned(),
            description: description.to_owned(),
            created_at: "2026-11-23T12:00:00Z".to_owned(),
            status_code,
            err: String::new(),
            resources: Some(resources),
        }
    }

    #[test]
    fn what_the_daemon_does_by_schedule_names_no_vm_and_may_be_about_any() {
        for (text, expected) in [
            (SNAPSHOTTING, true),
            ("Cleaning up expired instance snapshots", true),
            ("Cleaning up expired instance backups", false),
        ] {
            for resources in [None, Some(BTreeMap::new())] {
                let mut scheduled = task(text, 103, "");
                scheduled.resources = resources;
                assert_eq!(
                    is_running_on(&scheduled, "web01"),
                    expected,
                    "{text}, by schedule"
                );
            }
        }
    }

    #[test]
    fn only_what_works_on_the_vm_itself_is_in_the_way() {
        let rows = [
            ("itself", "/1.0/instances/web01", 103, true),
            ("with project", "/1.0/instances/web01?project=p", 103, true),
            (
                "one of its snapshots",
                "/1.0/instances/web01/snapshots/s",
                103,
                true,
            ),
            ("under its old name", "/1.0/containers/web01", 105, true),
            ("another", "/1.0/instances/web011", 103, false),
            ("ended", "/1.0/instances/web01", 200, false),
        ];
        for (name, path, status, expected) in rows {
            let found = is_running_on(&task("Restoring snapshot", status, path), "web01");
            assert_eq!(found, expected, "{name}");
        }
        let mut console = task("Executing command", 103, "/1.0/instances/web01");
        console.class = "websocket".to_owned();
        assert!(!is_running_on(&console, "web01"), "a console");
    }

    #[test]
    fn a_snapshot_may_be_incomplete_while_its_operation_is_known() {
        let (before, after) = ("2026-11-23T11:59:59Z", "2026-11-23T12:00:00.1Z");
        let rows = [
            ("older", "s", before, SNAPSHOTTING, 103, false),
            ("a person's, running", "s", after, SNAPSHOTTING, 103, true),
            ("a person's, ended", "s", after, SNAPSHOTTING, 200, false),
            (
                "ours, running",
                "snapgate-7",
                after,
                SNAPSHOTTING,
                103,
                true,
            ),
            (
                "ours, to be labelled",
                "snapgate-7",
                after,
                SNAPSHOTTING,
                200,
                true,
            ),
            (
                "ours, to be removed",
                "snapgate-7",
                after,
                SNAPSHOTTING,
                400,
                true,
            ),
            (
                "ours, older",
                "snapgate-7",
                before,
                SNAPSHOTTING,
                200,
                false,
            ),
            (
                "restored",
                "snapgate-7",
                after,
                "Restoring snapshot",
                103,
                false,
            ),
        ];
        for (name, id, made, what, status, expected) in rows {
            let tasks = [task(what, status, "/1.0/instances/web01")];
            let found = may_be_incomplete(&snapshot(id, made), &tasks, "web01");
            assert_eq!(found, expected, "{name}");
        }
    }

    fn snapshot(name: &str, created_at: &str) -> wire::Snapshot {
        wire::Snapshot {
            name: name.to_owned(),
            created_at: created_at.to_owned(),
            stateful: false,
            ephemeral: false,
            expires_at: String::new(),
            size: -1,
        }
    }
}
