//! What is done again and again: signs of life, dropping what is over, taking up what nobody is at work on.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Timestamp;
use crate::operations::core::Core;
use crate::operations::store::StoreError;

/// Time between two rounds.
const EVERY: Duration = Duration::from_secs(30);
/// The same while the store takes no writes, so that the end of that is seen soon.
const EVERY_WHILE_UNWRITABLE: Duration = Duration::from_secs(2);
/// Signs of life within the shortest of `accept_ttl` and `resume_ttl`.
const BEATS_PER_TTL: u32 = 8;
/// Shortest time between two signs of life: each is a durable write.
const BEAT_EVERY_MIN: Duration = Duration::from_millis(125);
/// Records dropped in one transaction: longer ones would hold up accepts.
const EXPIRED_AT_ONCE: u16 = 500;

/// Goes round until the gateway stops.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let pause = if core.is_writable() {
            EVERY
        } else {
            EVERY_WHILE_UNWRITABLE
        };
        // How long a gateway was away is measured from its last sign of life, so these come several times within the
        // shortest absence that matters.
        let config = &core.config;
        let shortest = config.accept_ttl.min(config.resume_ttl);
        let beat_every = shortest.checked_div(BEATS_PER_TTL).unwrap_or(shortest);
        let beats = beat_forever(&core, beat_every.max(BEAT_EVERY_MIN));
        tokio::select! {
            biased;
            () = core.stop.given() => return,
            () = beats => return,
            () = tokio::time::sleep(pause) => round(&core).await,
        }
    }
}

/// Records signs of life in the store, and never returns.
async fn beat_forever(core: &Core, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        core.beat().await;
    }
}

/// One round.
pub(crate) async fn round(core: &Arc<Core>) {
    core.beat().await;
    if let Err(error) = expire(core).await {
        tracing::warn!(%error, "expired operations not dropped");
        core.note(Some(&error));
    }
    if let Err(error) = recover(core).await {
        tracing::warn!(%error, "unfinished operations not looked through");
    }
    core.count_unknown().await;
}

async fn expire(core: &Core) -> Result<(), StoreError> {
    loop {
        let dropped = core.store.expire(core.clock.now(), EXPIRED_AT_ONCE).await?;
        if dropped > 0 {
            tracing::info!(dropped, "expired operations dropped");
        }
        if dropped < usize::from(EXPIRED_AT_ONCE) || core.stop.is_given() {
            return Ok(());
        }
    }
}

/// Takes up what is unfinished in the store and not in the ledger, and what is in the ledger with nobody at work on it.
async fn recover(core: &Arc<Core>) -> Result<(), StoreError> {
    let mut orphans = Vec::new();
    for seen in core.store.live().await? {
        if core.ledger.holds(seen.seq) {
            continue;
        }
        // It may have become final since. An operation leaves the ledger only after that is durable, so this look,
        // which comes after the one at the ledger, tells.
        if let Some(found) = core.store.read(seen.seq).await?
            && !found.phase.is_final()
        {
            tracing::warn!(seq = %found.seq, "operation taken up");
            orphans.push(found);
        }
    }
    core.take_up(orphans, Timestamp::default()).await;
    core.start_turns();
    Ok(())
}
