//! What a restore or a delete would do if it were requested now, and how long it would take. Changes and stores nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::preview_from_reads;
use crate::model::BackendName;
use crate::model::Deadline;
use crate::model::Intent;
use crate::model::Operation;
use crate::model::Phase;
use crate::model::Preview;
use crate::model::Verb;
use crate::operations::accept;
use crate::operations::api::AcceptError;
use crate::operations::api::DurationBasis;
use crate::operations::api::ExpectedDuration;
use crate::operations::api::Forecast;
use crate::operations::core::Backend;
use crate::operations::core::Core;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::Selector;
use crate::operations::live_operations::QueueObstacle;

/// The latest operations of a VM among which its restores are looked for: more than a nightly backup makes in a month.
const VM_HISTORY: u16 = 64;
/// The latest restores of all backends among which those of the backend are looked for.
const BACKEND_HISTORY: u16 = 32;
/// Restores of other VMs whose backups are read for their sizes: each costs a call to the VM manager.
const SAMPLES: usize = 3;

/// The forecast of one change.
pub(crate) async fn make_forecast(
    core: &Core,
    name: &BackendName,
    backend: &Backend,
    intent: &Intent,
    by: Deadline,
) -> Result<Forecast, AdapterError> {
    let adapter = backend.adapter.as_ref();
    // Taken before the VM manager is asked, like the states of backups: what ends in between is no longer seen as pending.
    let pending = core.live.unfinished_on_vm(name, &intent.target.vm);
    let is_supported = backend.capability.verb(intent.verb()).is_some();
    let preview = if is_supported {
        adapter.preview(intent, by).await?
    } else {
        preview_from_reads(adapter, intent, by).await?
    };
    let refused = if is_supported {
        find_obstacle(core, name, intent, &pending)
    } else {
        Some(AcceptError::Backend(accept::unsupported()))
    };
    let duration = match intent.verb() {
        Verb::Restore => expect_duration(core, name, adapter, &preview, by).await,
        Verb::Create | Verb::Update | Verb::Delete => None,
    };
    Ok(Forecast {
        preview,
        pending,
        refused,
        duration,
    })
}

/// What would keep the change from being accepted, apart from its VM manager.
fn find_obstacle(
    core: &Core,
    name: &BackendName,
    intent: &Intent,
    pending: &[Arc<Operation>],
) -> Option<AcceptError> {
    // The same delete again is answered with the Status of the first, however full the queue is.
    let is_same_delete = |other: &&Arc<Operation>| {
        intent.verb() == Verb::Delete
            && other.verb() == Verb::Delete
            && *other.target() == intent.target
    };
    if pending.iter().any(|other| is_same_delete(&other)) {
        return None;
    }
    match core.live.find_obstacle(name, &intent.target.vm)? {
        QueueObstacle::Busy => pending.first().cloned().map(AcceptError::Busy),
        QueueObstacle::VmQueueFull => Some(AcceptError::VmQueueFull),
        QueueObstacle::Full => Some(AcceptError::QueueFull),
    }
}

/// How long the restore would take, by earlier restores. A store that does not answer costs the plan this member alone.
async fn expect_duration(
    core: &Core,
    name: &BackendName,
    adapter: &dyn Adapter,
    preview: &Preview,
    by: Deadline,
) -> Option<ExpectedDuration> {
    // By the VM alone: an index serves that, and the newest of its operations are few.
    let of_vm = ListQuery {
        selector: Selector {
            vm: Some(preview.vm.id.clone()),
            ..Selector::default()
        },
        unfinished: Some(false),
        limit: VM_HISTORY,
        ..ListQuery::default()
    };
    let found = core.store.raw().list(&of_vm).await.ok()?;
    let times = restores_of(name, &found.operations).map(|(_, time)| time);
    if let Some(time) = median(times.collect()) {
        return Some(ExpectedDuration {
            time,
            basis: DurationBasis::History,
        });
    }
    let bytes = preview.needs?.bytes?;
    let of_backend = ListQuery {
        selector: Selector {
            verb: Some(Verb::Restore),
            ..Selector::default()
        },
        unfinished: Some(false),
        limit: BACKEND_HISTORY,
        ..ListQuery::default()
    };
    let found = core.store.raw().list(&of_backend).await.ok()?;
    let mut per_gigabyte = Vec::new();
    for (operation, time) in restores_of(name, &found.operations).take(SAMPLES) {
        let read = adapter.read_backup(operation.target(), by).await;
        let size = read.ok().and_then(|backup| backup.size);
        per_gigabyte.extend(size.and_then(|size| scaled(time, GIGABYTE, size)));
    }
    let time = scaled(median(per_gigabyte)?, bytes, GIGABYTE)?;
    Some(ExpectedDuration {
        time,
        basis: DurationBasis::Size,
    })
}

const GIGABYTE: u64 = 1 << 30;

/// The restores of this backend that succeeded, with the time from their start to their end.
fn restores_of<'a>(
    name: &'a BackendName,
    found: &'a [Arc<Operation>],
) -> impl Iterator<Item = (&'a Arc<Operation>, Duration)> {
    found.iter().filter_map(move |operation| {
        let is_restore = operation.verb() == Verb::Restore
            && operation.phase == Phase::Succeeded
            && operation.backend == *name;
        let time = operation.completed?.since(operation.started?);
        is_restore.then_some((operation, time))
    })
}

/// The one in the middle: a restore that took a day because a disk failed says little about the next one.
fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// The time for `bytes` where `per` bytes take `time`; `None` where that is no number.
fn scaled(time: Duration, bytes: u64, per: u64) -> Option<Duration> {
    let micros = time.as_micros().checked_mul(u128::from(bytes))?;
    let scaled = micros.checked_div(u128::from(per))?;
    u64::try_from(scaled).ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::operations::testing::operation;

    #[test]
    fn the_time_in_the_middle_counts_and_is_scaled_by_bytes() {
        let seconds = |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect();
        let rows: [(&[u64], Option<u64>); 4] = [
            (&[], None),
            (&[7], Some(7)),
            (&[9, 1, 500], Some(9)),
            (&[1, 3], Some(3)),
        ];
        for (times, expected) in rows {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(median(seconds(times)), expected, "{times:?}");
        }
        let ten = Duration::from_secs(10);
        assert_eq!(
            scaled(ten, 3, 2),
            Some(Duration::from_secs(15)),
            "half as much again"
        );
        assert_eq!(scaled(ten, 3, 0), None, "of nothing");
        assert_eq!(scaled(Duration::MAX, u64::MAX, 1), None, "too long");
    }

    #[test]
    fn only_restores_of_the_backend_that_succeeded_count() {
        let made = |phase, started: Option<u64>| {
            let mut made = operation(1, "vm", "b");
            made.phase = phase;
            made.started = started.map(Timestamp::from_millis);
            made.completed = Some(Timestamp::from_millis(5_000));
            Arc::new(made)
        };
        let all = [
            made(Phase::Succeeded, Some(2_000)),
            made(Phase::Failed, Some(2_000)),
            made(Phase::Succeeded, None),
        ];
        let name = all[0].backend.clone();
        let times: Vec<Duration> = restores_of(&name, &all).map(|(_, time)| time).collect();
        assert_eq!(times, [Duration::from_secs(3)], "one of three");
        let other = BackendName::new("other").unwrap();
        assert_eq!(restores_of(&other, &all).count(), 0, "another backend");
    }
}
