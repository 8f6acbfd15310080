//! Makes durable changes visible to those who follow all operations, in the order of the commits.

use std::sync::Arc;
use std::time::Duration;

use crate::operations::change_feed::ChangeFeed;
use crate::operations::change_feed::DurableChange;
use crate::operations::core::Core;

/// How long a change may stay invisible to readers of its Status. It takes microseconds, unless its task panicked.
const VISIBLE_WITHIN: Duration = Duration::from_secs(1);

/// Publishes what the store hands in until the gateway stops. Who follows is woken here, not by the writer.
pub(crate) async fn run(core: Arc<Core>, feed: Arc<ChangeFeed>) {
    loop {
        let changes = tokio::select! {
            biased;
            () = core.stop.given() => return,
            changes = feed.take_handed_in() => changes,
        };
        for change in &changes {
            wait_until_visible(&core, change).await;
        }
        feed.publish(changes);
    }
}

/// A change is durable a moment before the memory has it. A client that was sent it must not find an older Status after that.
async fn wait_until_visible(core: &Core, change: &DurableChange) {
    let operation = &change.operation;
    // Not in memory: it is final and has left, or was never unfinished.
    let Some(mut watch) = core.live.watch(operation.seq) else {
        return;
    };
    let visible = watch.wait_for(|state| {
        let state = state.as_ref();
        state.is_some_and(|state| state.revision >= operation.revision)
    });
    // An error means that it has left in the meantime.
    if tokio::time::timeout(VISIBLE_WITHIN, visible).await.is_err() {
        tracing::warn!(operation = %operation.seq, "change published before its state");
    }
}
