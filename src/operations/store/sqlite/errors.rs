//! What the errors of the engine mean to a caller of the store.

use rusqlite::ErrorCode;

use crate::operations::store::error::StoreError;

/// The answer to everything after a fatal error.
pub(super) fn already_failed() -> StoreError {
    StoreError::Fatal("it has failed before".to_owned())
}

/// Whether an error of the engine is fatal. After one that is not, nothing of the transaction was applied.
pub(super) fn classify(error: &rusqlite::Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::InternalMalfunction,
        ) => StoreError::Fatal(text),
        Some(_) | None => StoreError::Unavailable(text),
    }
}
