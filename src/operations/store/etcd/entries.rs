//! The text of keys: records with what is stored beside them, and entries of indexes.

use serde::Deserialize;
use serde::Serialize;

use crate::operations::store::error::StoreError;
use crate::operations::store::row::Row;
use crate::operations::store::row::RowHeader;

/// The text of a record.
pub(super) fn encode_row(row: &Row) -> Result<String, StoreError> {
    let header = encode(&row.header)?;
    Ok(format!("{header}\n{}", row.record))
}

/// A record from its text.
pub(super) fn decode_row(seq: u64, bytes: &[u8]) -> Result<Row, StoreError> {
    let damaged = |why: String| StoreError::Unavailable(format!("record {seq}: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let (header, record) = text
        .split_once('\n')
        .ok_or_else(|| damaged("it has one line".to_owned()))?;
    let header: RowHeader =
        serde_json::from_str(header).map_err(|error| damaged(error.to_string()))?;
    Ok(Row {
        seq,
        header,
        record: record.to_owned(),
    })
}

/// What an index knows of an operation, which never changes: principal, verb, VM and backup.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry(
    pub(super) String,
    pub(super) String,
    pub(super) String,
    pub(super) String,
);

/// The text of the entries of a record.
pub(super) fn encode_entry(header: &RowHeader) -> Result<String, StoreError> {
    encode(&Entry(
        header.principal.clone(),
        header.verb.clone(),
        header.vm.clone(),
        header.backup.clone(),
    ))
}

/// Which operation has an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyOwner {
    pub(super) seq: u64,
    /// Lower-case hexadecimal.
    pub(super) fingerprint: String,
}

pub(super) fn encode(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unavailable(error.to_string()))
}
