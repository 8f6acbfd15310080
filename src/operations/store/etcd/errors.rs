//! What the errors of etcd mean to a caller of the store.

use crate::etcd::EtcdError;
use crate::operations::store::error::StoreError;

/// The meaning of a failed read, or of a write that certainly was not applied. None is fatal: a cluster without a majority or
/// without space comes back.
pub(super) fn unavailable(error: &EtcdError) -> StoreError {
    StoreError::Unavailable(format!("etcd: {error}"))
}

/// The answer once another gateway may write.
pub(super) fn fenced() -> StoreError {
    StoreError::Fenced("another gateway may have taken over".to_owned())
}
