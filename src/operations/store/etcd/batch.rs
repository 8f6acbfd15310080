//! Writes, and the one transaction that a few of them become.
//!
//! Each write is a transaction of its own inside the outer one, with its own conditions: one that is refused does not keep the
//! others from being applied.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::etcd::Compare;
use crate::etcd::CompareOp;
use crate::etcd::LeaderTerm;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::model::Operation;
use crate::operations::change_feed::ChangeNumber;
use crate::operations::store::contract::Created;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::entries::KeyOwner;
use crate::operations::store::etcd::entries::encode;
use crate::operations::store::etcd::entries::encode_entry;
use crate::operations::store::etcd::entries::encode_row;
use crate::operations::store::etcd::keys::Keys;
use crate::operations::store::etcd::reader::StoredRow;
use crate::operations::store::etcd::state::WriterState;
use crate::operations::store::row::Row;
use crate::operations::store::row::RowHeader;

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One write and where its answer goes.
#[derive(Debug)]
pub(super) enum Write {
    /// A new record.
    Create(Arc<Operation>, Row, Answer<Created>),
    /// A changed record.
    Update(Arc<Operation>, Row, Answer<()>),
    /// A key that stands alone: an annotation, or a sign of life. Without a value it is removed.
    Put(String, Option<String>, Answer<()>),
    /// Removes a record with everything by which it is found. The answer says whether it was still there.
    Remove(StoredRow, Answer<bool>),
}

impl Write {
    pub(super) fn fail(self, error: &StoreError) {
        match self {
            Self::Create(_, _, answer) => drop(answer.send(Err(error.clone()))),
            Self::Update(_, _, answer) | Self::Put(_, _, answer) => {
                drop(answer.send(Err(error.clone())));
            }
            Self::Remove(_, answer) => drop(answer.send(Err(error.clone()))),
        }
    }

    /// The keys that no other write of the same transaction may touch.
    pub(super) fn own_keys(&self, keys: &Keys) -> Vec<String> {
        match self {
            Self::Create(_, row, _) => {
                let mut own = vec![keys.operation(row.seq)];
                own.extend(keys.idempotency_of(&row.header));
                own
            }
            Self::Update(_, row, _) => vec![keys.operation(row.seq)],
            Self::Put(key, _, _) => vec![key.clone()],
            Self::Remove(stored, _) => {
                let mut own = vec![keys.operation(stored.row.seq)];
                own.extend(keys.idempotency_of(&stored.row.header));
                own
            }
        }
    }

    /// Bytes of what it stores, about.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Create(_, row, _) | Self::Update(_, row, _) => row.record.len(),
            Self::Put(_, value, _) => value.as_ref().map_or(0, String::len),
            Self::Remove(_, _) => 0,
        }
    }
}

/// What is known of a record without reading it: the owner of the store is the only one who writes.
#[derive(Clone, Debug)]
pub(super) struct KnownRow {
    pub(super) header: RowHeader,
    pub(super) mod_revision: i64,
}

/// A transaction, and the numbers of the changes in it.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) transaction: Txn,
    /// For each write, the number of its change.
    pub(super) numbers: Vec<Option<ChangeNumber>>,
    pub(super) state: WriterState,
}

/// Makes the transactions of a writer.
#[derive(Debug)]
pub(super) struct BatchMaker<'a> {
    pub(super) keys: &'a Keys,
    pub(super) term: &'a LeaderTerm,
    /// The last write, and the revision of etcd at which it was made; zero for none.
    pub(super) state: (&'a WriterState, i64),
    pub(super) known: &'a BTreeMap<u64, KnownRow>,
}

impl BatchMaker<'_> {
    /// The transaction for these writes. Updates whose record is not known are left out by the caller.
    pub(super) fn make(&self, writes: &[Write], batch: u64) -> Result<Batch, StoreError> {
        let mut state = WriterState {
            batch,
            ..self.state.0.clone()
        };
        let mut operations = Vec::with_capacity(writes.len().saturating_add(1));
        let mut numbers = Vec::with_capacity(writes.len());
        for write in writes {
            let (operation, number) = match write {
                Write::Create(_, row, _) => {
                    state.number = state.number.saturating_add(1);
                    state.highest = state.highest.max(row.seq);
                    (self.create(row, state.number)?, Some(state.number))
                }
                Write::Update(_, row, _) => {
                    state.number = state.number.saturating_add(1);
                    (self.update(row, state.number)?, Some(state.number))
                }
                Write::Put(key, Some(value), _) => {
                    let put = TxnOp::put(&**key, &**value, None);
                    (Txn::new().and_then([put]), None)
                }
                Write::Put(key, None, _) => {
                    let delete = TxnOp::delete(&**key, None);
                    (Txn::new().and_then([delete]), None)
                }
                Write::Remove(stored, _) => {
                    state.forgotten = state.forgotten.max(stored.row.header.changed);
                    (self.remove(stored), None)
                }
            };
            operations.push(TxnOp::txn(operation));
            numbers.push(number);
        }
        operations.insert(0, TxnOp::put(self.keys.state(), state.encode()?, None));
        Ok(Batch {
            transaction: self.in_chain(operations),
            numbers,
            state,
        })
    }

    /// A transaction that is applied only while this gateway leads and after the last one.
    pub(super) fn in_chain(&self, operations: Vec<TxnOp>) -> Txn {
        let state_key = self.keys.state();
        let is_next = match self.state.1 {
            0 => Compare::version(&*state_key, CompareOp::Equal, 0),
            revision => Compare::mod_revision(&*state_key, CompareOp::Equal, revision),
        };
        Txn::new()
            .when([self.term.compare(), is_next])
            .and_then(operations)
            .or_else([
                TxnOp::get(&*self.term.key, None),
                TxnOp::get(state_key, None),
            ])
    }

    fn create(&self, row: &Row, number: ChangeNumber) -> Result<Txn, StoreError> {
        let row = numbered(row, number);
        let mut unique = vec![self.keys.operation(row.seq)];
        unique.extend(self.keys.idempotency_of(&row.header));
        let conditions: Vec<Compare> = unique
            .iter()
            .map(|key| Compare::version(&**key, CompareOp::Equal, 0))
            .collect();
        let puts: Vec<TxnOp> = all_keys(self.keys, &row)?
            .into_iter()
            .map(|(key, value)| TxnOp::put(key, value, None))
            .collect();
        let looks: Vec<TxnOp> = unique
            .into_iter()
            .map(|key| TxnOp::get(key, None))
            .collect();
        Ok(Txn::new().when(conditions).and_then(puts).or_else(looks))
    }

    fn update(&self, row: &Row, number: ChangeNumber) -> Result<Txn, StoreError> {
        let keys = self.keys;
        let row = numbered(row, number);
        let (seq, header) = (row.seq, &row.header);
        let operation_key = keys.operation(seq);
        let known = self.known.get(&seq);
        let mut changes = vec![TxnOp::put(&*operation_key, encode_row(&row)?, None)];
        let before: BTreeSet<String> = known
            .map(|known| passing_keys(keys, seq, &known.header))
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .collect();
        let after = passing_keys(keys, seq, header);
        let entry = encode_entry(header)?;
        for (key, has_entry) in &after {
            if !before.contains(key) {
                changes.push(TxnOp::put(
                    &**key,
                    if *has_entry { &*entry } else { "" },
                    None,
                ));
            }
        }
        for key in before {
            if !after.iter().any(|(other, _)| *other == key) {
                changes.push(TxnOp::delete(key, None));
            }
        }
        // A record that is not known is one that does not exist.
        let seen = known.map_or(-1, |known| known.mod_revision);
        let unchanged = Compare::mod_revision(&*operation_key, CompareOp::Equal, seen);
        Ok(Txn::new()
            .when([unchanged])
            .and_then(changes)
            .or_else([TxnOp::get(operation_key, None)]))
    }

    fn remove(&self, stored: &StoredRow) -> Txn {
        let keys = self.keys;
        let (seq, header) = (stored.row.seq, &stored.row.header);
        let operation_key = keys.operation(seq);
        let unchanged =
            Compare::mod_revision(&*operation_key, CompareOp::Equal, stored.mod_revision);
        let passing = passing_keys(keys, seq, header).into_iter();
        let mut deletes = vec![TxnOp::delete(operation_key, None)];
        deletes.extend(
            keys.lasting(seq, header)
                .into_iter()
                .chain(passing.map(|(key, _)| key))
                .chain(keys.idempotency_of(header))
                .map(|key| TxnOp::delete(key, None)),
        );
        Txn::new().when([unchanged]).and_then(deletes)
    }
}

/// The row with the number of its change.
pub(super) fn numbered(row: &Row, number: ChangeNumber) -> Row {
    Row {
        header: RowHeader {
            changed: number,
            ..row.header.clone()
        },
        ..row.clone()
    }
}

/// Every key of a record with its value, that of the record itself first.
pub(super) fn all_keys(keys: &Keys, row: &Row) -> Result<Vec<(String, String)>, StoreError> {
    let (seq, header) = (row.seq, &row.header);
    let entry = encode_entry(header)?;
    let mut found = vec![(keys.operation(seq), encode_row(row)?)];
    let lasting = keys.lasting(seq, header).into_iter();
    found.extend(lasting.map(|key| (key, entry.clone())));
    for (key, has_entry) in passing_keys(keys, seq, header) {
        let value = if has_entry {
            entry.clone()
        } else {
            String::new()
        };
        found.push((key, value));
    }
    if let (Some(key), Some(owned)) = (keys.idempotency_of(header), &header.key) {
        let owner = KeyOwner {
            seq,
            fingerprint: owned.fingerprint.clone(),
        };
        found.push((key, encode(&owner)?));
    }
    Ok(found)
}

/// The keys by which a record is found in its present state, and whether each has the entry of an index as its value.
fn passing_keys(keys: &Keys, seq: u64, header: &RowHeader) -> Vec<(String, bool)> {
    let mut found = if header.live {
        vec![(keys.live(seq, header), true), (keys.unfinished(seq), true)]
    } else {
        vec![
            (keys.outcome(seq, header), true),
            (keys.changed(header.changed, seq), false),
        ]
    };
    if let Some(expires) = header.expires {
        found.push((keys.expires(expires, seq), false));
    }
    if header.needs_operator() {
        found.push((keys.unknown(seq), false));
    }
    found
}
