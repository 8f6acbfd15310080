//! `[operations]`.

use std::time::Duration;

use crate::model::limits;
use crate::schema::Choice;
use crate::schema::DurationValue;
use crate::schema::InheritedDuration;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::optional_text;
use crate::schema::required_text;

declare_table! { "operations", false, "How changes are stored and run.",
    STORE: Text = "store", required_text("path, or `etcd`"), Restart,
        "The file with all operations; it is created when absent, in a folder that exists. `etcd` keeps them in the cluster of `[etcd]` instead; write `./etcd` for a file of that name.", Shown = "\"operations.sqlite\"";
    OPERATOR_FILE: Text = "operator_file", optional_text("the store's name with `.operator`", "path"), Restart,
        "The file by which commands on this machine find the running gateway and its token. Required with `store = \"etcd\"`.", Commented = "\"snapgate.operator\"";
    RETENTION: DurationValue = "retention", duration(limits::RETENTION, limits::RETENTION_MIN.as_secs(), 365 * 24 * 3600), Restart,
        "How long a finished Status is kept.";
    WHEN_BUSY: Choice = "when_busy", Choice { default: Some("queue"), allowed: &["queue", "refuse"] }, Restart,
        "What happens to a change while the VM is busy with another.";
    QUEUE_PER_VM: Integer = "queue_per_vm", integer(limits::QUEUE_PER_VM, 1, 1000), Restart,
        "Most changes that wait for one VM.";
    QUEUE_TOTAL: Integer = "queue_total", integer(limits::QUEUE_TOTAL, 1, 1_000_000), Restart,
        "Most unfinished changes in total.";
    CELL: Integer = "cell", integer(0, 0, limits::CELL_MAX), Restart,
        "The number of the cell, where VMs are split over several: a part of every `seq`, by which a router finds the Status. All gateways of a cell have the same.";
    ACCEPT_TTL: DurationValue = "accept_ttl", duration(limits::ACCEPT_TTL, 1, 24 * 3600), Restart,
        "How long an accepted change may stay unstarted after its turn has come before it is abandoned.";
    RESUME_TTL: InheritedDuration = "resume_ttl",
        InheritedDuration { when_absent: "the value of `accept_ttl`", min: Duration::from_secs(1), max: Duration::from_secs(24 * 3600) }, Restart,
        "How long the gateway may have been offline for a change to be started again that had started and has not touched the VM.", Commented = "\"10m\"";
    PROBE_WINDOW: DurationValue = "probe_window", duration(limits::PROBE_WINDOW, 1, 24 * 3600), Restart,
        "How long the gateway searches for evidence before an outcome counts as unknown.";
    POLL_MIN: DurationValue = "poll_min",
        DurationValue { default: Duration::from_millis(100), min: Duration::from_millis(10), max: Duration::from_secs(60) }, Restart,
        "Shortest interval between two polls of a task.";
    POLL_MAX: DurationValue = "poll_max",
        DurationValue { default: Duration::from_secs(5), min: Duration::from_millis(10), max: Duration::from_secs(600) }, Restart,
        "Longest interval between two polls of a task.";
}
