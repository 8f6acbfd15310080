//! Reads of records. Each is answered by a majority of the cluster: none is ever older than a write that was acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::etcd::Connection;
use crate::etcd::GetOptions;
use crate::etcd::KeyValue;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::etcd::TxnOpResponse;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Timestamp;
use crate::operations::store::contract::Counts;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::entries::KeyOwner;
use crate::operations::store::etcd::entries::decode_row;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::keys::Keys;
use crate::operations::store::etcd::keys::number_at_end;
use crate::operations::store::etcd::keys::seq_at_end;
use crate::operations::store::etcd::state::WriterState;
use crate::operations::store::etcd::walk::Direction;
use crate::operations::store::etcd::walk::Walk;
use crate::operations::store::list_index::ListIndex;
use crate::operations::store::row::Row;

/// Records read in one transaction; etcd takes 128 unless it is configured otherwise.
const ROWS_AT_ONCE: usize = 100;
/// Unreadable records that are counted; beyond it the number is a minimum.
const SET_ASIDE_MAX: usize = 10_000;

/// A stored record, and the revision of etcd at which it was written.
#[derive(Clone, Debug)]
pub(super) struct StoredRow {
    pub(super) row: Row,
    pub(super) mod_revision: i64,
}

/// Reads one store.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) keys: Keys,
    set_aside: Mutex<BTreeSet<u64>>,
    /// The latest time of acceptance that is known, in milliseconds: where lists begin to look.
    newest: AtomicU64,
    /// New records whose callers were refused, because it was not known in time whether they had become durable.
    hidden: Mutex<BTreeSet<u64>>,
}

impl Reader {
    pub(super) fn new(connection: Connection, keys: Keys) -> Self {
        Self {
            connection,
            keys,
            set_aside: Mutex::default(),
            newest: AtomicU64::new(0),
            hidden: Mutex::default(),
        }
    }

    /// Remembers the time of acceptance of a record.
    pub(super) fn note_created(&self, millis: u64) {
        self.newest.fetch_max(millis, Ordering::Relaxed);
    }

    pub(super) fn newest_created(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Finds out where lists begin to look.
    pub(super) async fn find_newest(&self) -> Result<(), StoreError> {
        let prefix = self.keys.index(&ListIndex::Created);
        let left = (0, u128::from(i64::MAX.cast_unsigned()) << 64);
        let mut walk = Walk::along_positions(&self.connection, prefix, Direction::Downwards, left);
        let step = walk.step().await.map_err(|error| unavailable(&error))?;
        let newest = step.iter().flatten().next();
        let place = newest.and_then(|newest| number_at_end(newest.key(), 32));
        let millis = place.and_then(|place| u64::try_from(place >> 64).ok());
        self.note_created(millis.unwrap_or(0));
        Ok(())
    }

    /// Keeps a record from being run, listed, or shown to a client that repeats its request: it may be taken back.
    pub(super) fn hide(&self, seq: u64) {
        self.hidden.lock().insert(seq);
    }

    pub(super) fn unhide(&self, seq: u64) {
        self.hidden.lock().remove(&seq);
    }

    /// Decodes a record. One that cannot be decoded is counted and alarmed, and left as it is.
    pub(super) fn decode(&self, row: &Row) -> Result<Arc<Operation>, StoreError> {
        if self.hidden.lock().contains(&row.seq) {
            let why = format!("record {}: it is not known yet whether it is kept", row.seq);
            return Err(StoreError::Unavailable(why));
        }
        row.decode().map(Arc::new).map_err(|error| {
            self.set_aside(row.seq, &error.to_string());
            StoreError::Unavailable(format!("record {}: {error}", row.seq))
        })
    }

    fn set_aside(&self, seq: u64, why: &str) {
        let mut set_aside = self.set_aside.lock();
        if set_aside.len() < SET_ASIDE_MAX && set_aside.insert(seq) {
            tracing::error!(
                operation = seq,
                error = why,
                "operation record not readable"
            );
        }
    }

    /// The records of these numbers; those that do not exist, or of which not even the header can be read, are left out.
    pub(super) async fn rows(&self, seqs: &[u64]) -> Result<Vec<StoredRow>, StoreError> {
        let mut found = Vec::with_capacity(seqs.len());
        for group in seqs.chunks(ROWS_AT_ONCE) {
            let gets: Vec<TxnOp> = group
                .iter()
                .map(|seq| TxnOp::get(self.keys.operation(*seq), None))
                .collect();
            let answer = self
                .connection
                .read_together(Txn::new().and_then(gets))
                .await;
            let answer = answer.map_err(|error| unavailable(&error))?;
            for (seq, answer) in group.iter().zip(answer.op_responses()) {
                if let Some(stored) = first(answer) {
                    match self.parse(*seq, &stored) {
                        Ok(row) => found.push(row),
                        Err(error) => self.set_aside(*seq, &error.to_string()),
                    }
                }
            }
        }
        Ok(found)
    }

    pub(super) fn parse(&self, seq: u64, stored: &KeyValue) -> Result<StoredRow, StoreError> {
        Ok(StoredRow {
            row: decode_row(seq, stored.value())?,
            mod_revision: stored.mod_revision(),
        })
    }

    /// One record, as it is stored.
    pub(super) async fn row(&self, seq: u64) -> Result<Option<StoredRow>, StoreError> {
        let stored = self.one(self.keys.operation(seq)).await?;
        stored.map(|stored| self.parse(seq, &stored)).transpose()
    }

    pub(super) async fn read(
        &self,
        seq: OperationSeq,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        let stored = self.row(seq.number()).await?;
        stored.map(|stored| self.decode(&stored.row)).transpose()
    }

    /// The operation that has an idempotency key.
    pub(super) async fn find_by_key(
        &self,
        key: String,
    ) -> Result<Option<Arc<Operation>>, StoreError> {
        let Some(stored) = self.one(key).await? else {
            return Ok(None);
        };
        let owner: KeyOwner = serde_json::from_slice(stored.value())
            .map_err(|error| StoreError::Unavailable(format!("an idempotency key: {error}")))?;
        match OperationSeq::new(owner.seq) {
            Some(seq) => self.read(seq).await,
            None => Ok(None),
        }
    }

    /// Every unfinished record, oldest first.
    pub(super) async fn unfinished(&self) -> Result<Vec<Arc<Operation>>, StoreError> {
        let mut found = Vec::new();
        let mut walk = self.walk_unfinished(0);
        while let Some(step) = walk.step().await.map_err(|error| unavailable(&error))? {
            let seqs: Vec<u64> = step
                .iter()
                .filter_map(|key| seq_at_end(key.key()))
                .collect();
            for stored in self.rows(&seqs).await? {
                found.extend(self.decode(&stored.row).ok());
            }
        }
        match walk.stopped_at() {
            // Left out, they would neither be followed nor queued.
            Some(_) => Err(StoreError::Unavailable(
                "not all unfinished records could be read".to_owned(),
            )),
            None => Ok(found),
        }
    }

    /// Along the unfinished operations whose number is above this.
    pub(super) fn walk_unfinished(&self, after: u64) -> Walk<'_> {
        let prefix = self.keys.all_unfinished();
        let left = (u128::from(after).saturating_add(1), u128::from(u64::MAX));
        Walk::along_numbers(&self.connection, prefix, Direction::Upwards, left).keys_only()
    }

    pub(super) async fn counts(&self) -> Result<Counts, StoreError> {
        let unknown = self.count(self.keys.all_unknown()).await?;
        let set_aside = self.set_aside.lock().len();
        Ok(Counts { unknown, set_aside })
    }

    /// How many keys begin with this.
    pub(super) async fn count(&self, prefix: String) -> Result<usize, StoreError> {
        let options = GetOptions::new().with_prefix().with_count_only();
        let counted = self.connection.read(prefix, Some(options)).await;
        let counted = counted.map_err(|error| unavailable(&error))?;
        Ok(usize::try_from(counted.count()).unwrap_or_default())
    }

    pub(super) async fn highest_seq(&self) -> Result<Option<OperationSeq>, StoreError> {
        let (state, _) = self.state().await?;
        Ok(OperationSeq::new(state.highest))
    }

    pub(super) async fn last_heartbeat(&self) -> Result<Option<Timestamp>, StoreError> {
        let beats = self.all(self.keys.all_beats()).await?;
        let millis = beats.iter().filter_map(|beat| {
            let text = std::str::from_utf8(beat.value()).ok()?;
            text.parse().ok()
        });
        Ok(millis.max().map(Timestamp::from_millis))
    }

    /// The last write, and the revision of etcd at which it was made; zero for none.
    pub(super) async fn state(&self) -> Result<(WriterState, i64), StoreError> {
        match self.one(self.keys.state()).await? {
            Some(stored) => Ok((WriterState::decode(stored.value())?, stored.mod_revision())),
            None => Ok((WriterState::default(), 0)),
        }
    }

    pub(super) async fn one(&self, key: String) -> Result<Option<KeyValue>, StoreError> {
        let mut found = self
            .connection
            .read(key, None)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(found.take_kvs().pop())
    }

    /// All keys that begin with this; for those of which there are few.
    pub(super) async fn all(&self, prefix: String) -> Result<Vec<KeyValue>, StoreError> {
        let options = GetOptions::new().with_prefix();
        let mut found = self
            .connection
            .read(prefix, Some(options))
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(found.take_kvs())
    }
}

/// The key of the answer to a `get` of one.
pub(super) fn first(answer: TxnOpResponse) -> Option<KeyValue> {
    match answer {
        TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}
