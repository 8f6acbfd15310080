//! Periodic work: heartbeats in the store, expiry of finished operations, recovery of operations without a task.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Timestamp;
use crate::operations::core::Core;
use crate::operations::store::StoreError;

/// Time between two rounds.
const ROUND_EVERY: Duration = Duration::from_secs(30);
/// The same while the store takes no writes, so that its recovery is noticed soon.
const ROUND_EVERY_WHILE_UNWRITABLE: Duration = Duration::from_secs(2);
/// Heartbeats within the shorter of `accept_ttl` and `resume_ttl`.
const HEARTBEATS_PER_TTL: u32 = 8;
/// Shortest time between two heartbeats: each is a durable write.
const HEARTBEAT_EVERY_MIN: Duration = Duration::from_millis(125);
/// Records dropped in one transaction: longer ones would hold up accepts.
const EXPIRED_AT_ONCE_MAX: u16 = 500;

/// Runs a round again and again until the gateway stops.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let pause = if core.store.is_writable() {
            ROUND_EVERY
        } else {
            ROUND_EVERY_WHILE_UNWRITABLE
        };
        // The length of an absence is measured from the last heartbeat, so heartbeats come several times within the shortest
        // absence that matters.
        let config = &core.config;
        let ttl = config.accept_ttl.min(config.resume_ttl);
        let every = ttl.checked_div(HEARTBEATS_PER_TTL).unwrap_or(ttl);
        let heartbeats = record_heartbeats(&core, every.max(HEARTBEAT_EVERY_MIN));
        tokio::select! {
            biased;
            () = core.stop.given() => return,
            () = heartbeats => return,
            () = tokio::time::sleep(pause) => run_round(&core).await,
        }
    }
}

/// Records heartbeats in the store, and never returns.
async fn record_heartbeats(core: &Core, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        core.store.record_heartbeat(core.clock.now()).await;
    }
}

/// One round.
pub(crate) async fn run_round(core: &Arc<Core>) {
    core.store.record_heartbeat(core.clock.now()).await;
    if let Err(error) = remove_expired(core).await {
        tracing::warn!(%error, "expired operations not removed");
        core.store.note_result(Some(&error));
    }
    if let Err(error) = recover_orphans(core).await {
        tracing::warn!(%error, "unfinished operations not checked");
    }
    core.store.report_counts().await;
}

async fn remove_expired(core: &Core) -> Result<(), StoreError> {
    loop {
        let now = core.clock.now();
        let store = core.store.raw();
        let removed = store.remove_expired(now, EXPIRED_AT_ONCE_MAX).await?;
        if removed > 0 {
            tracing::info!(removed, "expired operations removed");
        }
        if removed < usize::from(EXPIRED_AT_ONCE_MAX) || core.stop.is_given() {
            return Ok(());
        }
    }
}

/// Recovers operations that are unfinished in the store and not in memory, and starts those in memory that have no task.
///
/// Neither should exist; a write that the store rejected, or a defect, may leave one.
async fn recover_orphans(core: &Arc<Core>) -> Result<(), StoreError> {
    let mut orphans = Vec::new();
    for unfinished in core.store.raw().unfinished().await? {
        if core.live.contains(unfinished.seq) {
            continue;
        }
        // It may have become final since it was listed. An operation leaves the memory only after its end is durable, so
        // this read, which comes after the look into the memory, sees that end.
        if let Some(found) = core.store.raw().read(unfinished.seq).await?
            && !found.phase.is_final()
        {
            tracing::warn!(operation = %found.seq, "orphaned operation recovered");
            orphans.push(found);
        }
    }
    core.recover(orphans, Timestamp::default()).await;
    core.start_all_ready();
    Ok(())
}
