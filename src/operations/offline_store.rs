//! The operation store in the hands of an operator while no gateway runs. Runs and recovers nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::BackendName;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::operations::config::Config;
use crate::operations::open::OpenStore;
use crate::operations::operator_actions;
use crate::operations::operator_actions::OfflineStoreError;
use crate::operations::operator_actions::OperatorDecision;
use crate::operations::operator_actions::StoreAttention;
use crate::operations::store::Store;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// The open store.
#[derive(Debug)]
pub struct OfflineStore {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    retention: Duration,
}

impl OfflineStore {
    /// Opens the store, which keeps a gateway from starting until [`OfflineStore::close`].
    ///
    /// # Errors
    /// [`OfflineStoreError`]; the store was left as it is.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OfflineStoreError> {
        if let Some(file) = config.store.file()
            && !file.exists()
        {
            return Err(OfflineStoreError::Absent(file.display().to_string()));
        }
        let opened = OpenStore::open(config, Arc::clone(&clock), metrics).await?;
        Ok(Self {
            store: opened.into_store(),
            clock,
            retention: config.retention,
        })
    }

    /// The operations that an operator wants to see, newest first. `backends` are those of the configuration.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        query: &OperatorQuery,
        backends: &BTreeSet<BackendName>,
    ) -> Result<Vec<Arc<Operation>>, OfflineStoreError> {
        Ok(operator_actions::list_operations(&*self.store, query, backends).await?)
    }

    /// How many records need an operator: unknown outcomes that are not acknowledged, and records that cannot be read.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn attention(&self) -> Result<StoreAttention, OfflineStoreError> {
        Ok(self.store.counts().await?.into())
    }

    /// One operation.
    ///
    /// # Errors
    /// [`OfflineStoreError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, OfflineStoreError> {
        let found = self.store.read(seq).await?;
        found.ok_or(OfflineStoreError::NoSuchOperation(seq))
    }

    /// Records that an operator has seen an unknown outcome: the record may expire from now on.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let operation = self.show(seq).await?;
        let state = operator_actions::acknowledge(&operation, self.clock.now(), self.retention)?;
        self.write(operation, state).await
    }

    /// Records that an operation is to be cancelled. A queued one ends as cancelled at once. One that had started is settled
    /// by the next gateway: it asks the VM manager to cancel the task, and calls nothing again.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotCancellable`] for a finished one, and the like; nothing was changed.
    pub async fn cancel(&self, seq: OperationSeq) -> Result<OperatorDecision, OfflineStoreError> {
        let operation = self.show(seq).await?;
        let now = self.clock.now();
        let state = operator_actions::cancel_offline(&operation, now, self.retention)?;
        self.write(operation, state).await
    }

    async fn write(
        &self,
        operation: Arc<Operation>,
        state: Option<Arc<Operation>>,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let Some(state) = state else {
            return Ok(OperatorDecision::unchanged(operation));
        };
        self.store.update(Arc::clone(&state)).await?;
        Ok(OperatorDecision::changed(state))
    }

    /// Frees the store.
    pub async fn close(&self) {
        self.store.close().await;
    }
}
