//! The operation store: every accepted operation on stable storage.

#[cfg(test)]
mod conformance;
mod contract;
mod error;
mod etcd;
mod list_index;
mod record;
mod row;
mod sqlite;
mod transfer;

pub use error::OpenError;

pub(crate) use contract::Counts;
pub(crate) use contract::Created;
pub(crate) use contract::Store;
pub(crate) use error::StoreError;
pub(crate) use etcd::EtcdStore;
pub(crate) use etcd::Opening;
pub(super) use row::Row;
pub(crate) use sqlite::SqliteStore;
pub(super) use transfer::AnnotationRow;
pub(super) use transfer::StoreTransfer;
