//! Operations in one SQLite file: write-ahead log, every commit synced, one writer thread, readers and a thread that copies the log
//! beside it.
//!
//! docs/decisions/0001-sqlite-store.md explains why SQLite, and why in this way.

mod annotation_rows;
mod annotations;
mod change_history;
mod checkpoints;
mod errors;
mod integers;
mod list_sql;
mod open;
mod reader;
mod sqlite_store;
mod store_file;
mod transfer;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use sqlite_store::SqliteStore;
