//! `[[backend]]`.

use std::time::Duration;

use crate::adapters::registry;
use crate::config::tables::forms::NAME_FORM;
use crate::model::limits;
use crate::schema::Choice;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::integer;
use crate::schema::optional_text;
use crate::schema::required_text;

declare_table! { "backend" [registry::TABLES], true, "One VM manager.",
    NAME: Text = "name", required_text(NAME_FORM), Restart,
        "Its name. Keep it: stored operations refer to it.", Shown = "\"lab\"";
    KIND: Choice = "kind", Choice { default: None, allowed: registry::NAMES }, Restart,
        "Which VM manager it is. The keys of each kind are in a table of the same name, for example `[backend.qemu]`.", Shown = "\"sim\"";
    VMS: TextList = "vms", TextList { default: None, form: "exact ids, or prefixes followed by one `*`" }, Reload,
        "The VMs it has. An exact id wins over prefixes, a longer prefix over a shorter one.", Shown = "[\"web*\"]";
    ONLY_ON: Text = "only_on", optional_text("every gateway", NAME_FORM), Restart,
        "The one gateway of the cluster from which it is reached, by its `cluster.name`. Its VMs are served while that gateway is the active one.", Commented = "\"gateway-1\"";
    TIMEOUT: DurationValue = "timeout", duration(limits::CALL_TIMEOUT, 1, 3600), Restart, "Time for one call.";
    CONCURRENCY: Integer = "concurrency", integer(limits::CONCURRENCY, 1, 1000), Restart, "Most changes that run at once.";
    READS: Integer = "reads", integer(limits::READS, 1, 10_000), Restart, "Most reads that run at once.";
    RETRIES: Integer = "retries", integer(2, 0, 10), Restart,
        "How often a read that failed with a temporary error is retried.";
    BREAKER_FAILURES: Integer = "breaker_failures", integer(5, 1, 1000), Restart,
        "Failures in a row after which the circuit breaker opens.";
    BREAKER_PAUSE: DurationValue = "breaker_pause", duration(Duration::from_secs(5), 1, 3600), Restart,
        "How long no call is made to the backend while its circuit breaker is open.";
    HEALTH_INTERVAL: DurationValue = "health_interval", duration(limits::HEALTH_INTERVAL, 1, 3600), Restart,
        "Time between two health checks, which set `snapgate_backend_up`.";
}
