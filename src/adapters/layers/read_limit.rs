//! The limit on reads at once: more of them wait in order of arrival, until their deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::adapters::adapter::AdapterError;
use crate::public_text;

/// Lets so many in at once.
#[derive(Debug)]
pub(super) struct ReadLimit(Arc<Semaphore>);

impl ReadLimit {
    /// At least one, whatever is asked for.
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(
            at_once.clamp(1, Semaphore::MAX_PERMITS),
        )))
    }

    /// Waits for a place, at most so long. The place is given back when the permit is dropped.
    pub(super) async fn acquire(
        &self,
        within: impl FnOnce() -> Duration,
    ) -> Result<OwnedSemaphorePermit, AdapterError> {
        let full = |why: &str| {
            AdapterError::unavailable(public_text!(
                "Too many concurrent reads of this backend. Try again later."
            ))
            .because(why)
        };
        if let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() {
            return Ok(permit);
        }
        timeout(within(), Arc::clone(&self.0).acquire_owned())
            .await
            .map_err(|late| full(&late.to_string()))?
            .map_err(|closed| full(&closed.to_string()))
    }
}
