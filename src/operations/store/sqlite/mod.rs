//! Operations in one SQLite file: write-ahead log, every commit synced, one writer thread, readers beside it.
//!
//! docs/decisions/0001-sqlite-store.md explains why SQLite, and why in this way.

mod annotation_rows;
mod annotations;
mod change_history;
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
