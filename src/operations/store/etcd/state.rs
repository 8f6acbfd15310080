//! The key that every transaction of the writer compares and replaces.
//!
//! It makes one chain of all transactions: one whose answer was lost is either the last in the chain, or can no longer be
//! applied once another has been.

use serde::Deserialize;
use serde::Serialize;

use crate::operations::change_feed::ChangeNumber;
use crate::operations::store::error::StoreError;

/// The last write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WriterState {
    /// The highest number of a change.
    pub(super) number: ChangeNumber,
    /// The highest sequence number that was ever stored.
    pub(super) highest: u64,
    /// The highest number of a change of a record that has expired.
    pub(super) forgotten: ChangeNumber,
    /// Drawn at random for each transaction.
    pub(super) batch: u64,
}

impl WriterState {
    pub(super) fn encode(&self) -> Result<String, StoreError> {
        serde_json::to_string(self).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(bytes)
            .map_err(|error| StoreError::Unavailable(format!("the key `state`: {error}")))
    }
}
