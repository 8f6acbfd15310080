//! The store as the operations see it: knows whether the store takes writes, and when it failed for good.
//!
//! A write whose outcome is unknown is read back here. When that fails too, nothing that was written can be relied on, and
//! the process must end: see [`StoreGuard::failed`].

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::model::Operation;
use crate::model::Timestamp;
use crate::operations::api::StoreFault;
use crate::operations::store::Counts;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// The store, and what its answers say about its health.
#[derive(Debug)]
pub(crate) struct StoreGuard {
    store: Arc<dyn Store>,
    metrics: Metrics,
    is_writable: AtomicBool,
    failed: Stop,
    failure: Stopper,
    /// Held from the read of the numbers to the update of the metrics.
    reporting: tokio::sync::Mutex<()>,
}

impl StoreGuard {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        let (failure, failed) = stop_pair();
        Self {
            store,
            metrics,
            is_writable: AtomicBool::new(true),
            failed,
            failure,
            reporting: tokio::sync::Mutex::default(),
        }
    }

    /// The store itself, for reads and for removals. Failed reads go to [`StoreGuard::read_fault`].
    pub(crate) fn raw(&self) -> &dyn Store {
        &*self.store
    }

    /// Writes a new record. An unknown outcome is read back.
    pub(crate) async fn create(&self, operation: &Arc<Operation>) -> Result<Created, StoreError> {
        let result = match self.store.create(Arc::clone(operation)).await {
            Err(StoreError::Indeterminate(why)) => {
                self.read_back(operation, why).await.map(|()| Created::New)
            }
            result => result,
        };
        self.note_result(result.as_ref().err());
        result
    }

    /// Tries once to write a changed record. An unknown outcome is read back.
    pub(crate) async fn update(&self, operation: &Arc<Operation>) -> Result<(), StoreError> {
        let result = match self.store.update(Arc::clone(operation)).await {
            Err(StoreError::Indeterminate(why)) => self.read_back(operation, why).await,
            result => result,
        };
        self.note_result(result.as_ref().err());
        if let Err(error) = &result {
            tracing::warn!(operation = %operation.seq, phase = operation.phase.as_str(), %error, "operation not written");
        }
        result
    }

    /// Whether a write whose outcome is unknown was applied.
    async fn read_back(&self, written: &Arc<Operation>, why: String) -> Result<(), StoreError> {
        match self.store.read(written.seq).await {
            Ok(Some(found)) if found == *written => Ok(()),
            Ok(Some(found)) if found.revision >= written.revision => Err(StoreError::Conflict),
            Ok(_) => Err(StoreError::Unavailable(why)),
            // Neither the write nor its record can be relied on.
            Err(error) => Err(StoreError::Fatal(format!("{why}, and then {error}"))),
        }
    }

    /// Remembers whether the store takes writes, and gives the signal when it failed for good.
    pub(crate) fn note_result(&self, error: Option<&StoreError>) {
        let Some(error) = error else {
            self.is_writable.store(true, Ordering::Release);
            return;
        };
        match error {
            StoreError::KeyReused(_) => return,
            StoreError::Conflict => {}
            StoreError::Unavailable(_) | StoreError::Indeterminate(_) => {
                self.is_writable.store(false, Ordering::Release);
            }
            StoreError::Fenced(_) => {
                self.is_writable.store(false, Ordering::Release);
                if !self.failed.is_given() {
                    tracing::warn!(%error, "gateway leads no longer, process must end");
                }
                self.failure.stop();
            }
            StoreError::Fatal(_) => {
                self.is_writable.store(false, Ordering::Release);
                if !self.failed.is_given() {
                    tracing::error!(%error, "operation store failed, process must end");
                }
                self.failure.stop();
            }
        }
        self.metrics.operations.record_store_error(error.as_str());
    }

    /// The fault for the caller of a read that failed. A failed read says nothing about writes, unless it is fatal.
    pub(crate) fn read_fault(&self, error: &StoreError) -> StoreFault {
        tracing::warn!(%error, "operation store not readable");
        if matches!(error, StoreError::Fatal(_)) {
            self.note_result(Some(error));
        } else {
            self.metrics.operations.record_store_error(error.as_str());
        }
        error.public_fault()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable.load(Ordering::Acquire) && self.store.is_reachable()
    }

    /// Given when the store failed in such a way that the process must end.
    pub(crate) const fn failed(&self) -> &Stop {
        &self.failed
    }

    /// Records in the store that a gateway is running.
    pub(crate) async fn record_heartbeat(&self, now: Timestamp) {
        let result = self.store.record_heartbeat(now).await;
        if let Err(error) = &result {
            tracing::warn!(%error, "heartbeat not written");
        }
        self.note_result(result.as_ref().err());
    }

    /// Updates the metrics with the number of records that need an operator.
    pub(crate) async fn report_counts(&self) {
        // One at a time, so that an older number never overwrites a newer one.
        let _reporting = self.reporting.lock().await;
        if let Ok(Counts { unknown, set_aside }) = self.store.counts().await {
            self.metrics.operations.set_unknown_operations(unknown);
            self.metrics.operations.set_unreadable_operations(set_aside);
        }
    }

    /// Writes what was handed in, then refuses everything and frees the file.
    pub(crate) async fn close(&self) {
        self.store.close().await;
    }
}
