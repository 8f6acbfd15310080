//! What a running gateway offers to its operators: the same as [`OfflineStore`](crate::operations::OfflineStore), online.

use std::sync::Arc;

use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::OperatorQuery;
use crate::operations::api::CancelError;
use crate::operations::cancel;
use crate::operations::open::Operations;
use crate::operations::operator_actions;
use crate::operations::operator_actions::OfflineStoreError;
use crate::operations::operator_actions::OperatorDecision;
use crate::operations::operator_actions::StoreAttention;
use crate::operations::store::StoreError;

/// Tries to acknowledge when another write of the operation comes in between.
const TRIES: usize = 3;

impl Operations {
    /// As [`OfflineStore::list`](crate::operations::OfflineStore::list).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list_for_operator(
        &self,
        query: &OperatorQuery,
    ) -> Result<Vec<Arc<Operation>>, OfflineStoreError> {
        let store = self.core.store.raw();
        let backends = self.core.backends.keys().cloned().collect();
        let found = operator_actions::list_operations(store, query, &backends).await;
        found.map_err(|error| self.read_error(&error))
    }

    /// As [`OfflineStore::attention`](crate::operations::OfflineStore::attention).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn attention(&self) -> Result<StoreAttention, OfflineStoreError> {
        let found = self.core.store.raw().counts().await;
        let found = found.map_err(|error| self.read_error(&error))?;
        Ok(found.into())
    }

    /// As [`OfflineStore::show`](crate::operations::OfflineStore::show).
    ///
    /// # Errors
    /// [`OfflineStoreError::NoSuchOperation`], or when the store cannot be read.
    pub async fn show(&self, seq: OperationSeq) -> Result<Arc<Operation>, OfflineStoreError> {
        let found = self.core.store.raw().read(seq).await;
        let found = found.map_err(|error| self.read_error(&error))?;
        found.ok_or(OfflineStoreError::NoSuchOperation(seq))
    }

    /// As [`OfflineStore::acknowledge`](crate::operations::OfflineStore::acknowledge).
    ///
    /// # Errors
    /// [`OfflineStoreError::NotUnknown`] and the like; nothing was changed.
    pub async fn acknowledge(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let core = &self.core;
        for _ in 0..TRIES {
            let operation = self.show(seq).await?;
            let now = core.clock.now();
            let state = operator_actions::acknowledge(&operation, now, core.config.retention)?;
            let Some(state) = state else {
                return Ok(OperatorDecision::unchanged(operation));
            };
            match core.store.update(&state).await {
                Ok(()) => {
                    core.store.report_counts().await;
                    return Ok(OperatorDecision::changed(state));
                }
                // Another operator was faster: the record shows what is left to do.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(OfflineStoreError::Store(StoreError::Conflict.to_string()))
    }

    /// As [`OfflineStore::cancel`](crate::operations::OfflineStore::cancel); an operation that runs is cancelled only where
    /// its VM manager can do so.
    ///
    /// # Errors
    /// [`OfflineStoreError::NotCancellable`] and the like; nothing was changed.
    pub async fn cancel_by_operator(
        &self,
        seq: OperationSeq,
    ) -> Result<OperatorDecision, OfflineStoreError> {
        let before = self.show(seq).await?;
        match cancel::cancel(&self.core, seq, None).await {
            Ok(operation) => Ok(OperatorDecision {
                is_new: before.cancel_asked.is_none() && !before.phase.is_final(),
                operation,
            }),
            Err(CancelError::NoSuchOperation) => Err(OfflineStoreError::NoSuchOperation(seq)),
            Err(CancelError::NotCancellable | CancelError::Changed) => Err(
                OfflineStoreError::NotCancellable(seq, before.phase.as_str()),
            ),
            Err(CancelError::Store(fault)) => Err(OfflineStoreError::Store(fault.to_string())),
        }
    }

    fn read_error(&self, error: &StoreError) -> OfflineStoreError {
        OfflineStoreError::Store(self.core.store.read_fault(error).to_string())
    }
}
