//! Operations in an etcd cluster, written by the one gateway that holds the lock of the leader.
//!
//! docs/decisions/0033-the-store-on-etcd.md explains the keys and why one writer. `keys` names what is stored, `writer`
//! commits, `windows`, `walk` and `lists` read along the indexes.

mod annotations;
mod batch;
mod entries;
mod errors;
mod etcd_store;
mod expiry;
mod keys;
mod lists;
mod open;
mod open_keys;
mod reader;
mod state;
mod transfer;
mod walk;
mod windows;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use etcd_store::EtcdStore;
pub(crate) use open::Opening;
