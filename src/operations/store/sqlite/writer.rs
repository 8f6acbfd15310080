//! The one thread that writes: writes that wait are committed together, and answered after the commit.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rusqlite::Connection;
use rusqlite::OptionalExtension;
use rusqlite::Transaction;
use rusqlite::TransactionBehavior;
use rusqlite::params;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::model::BackupId;
use crate::model::Idempotency;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Timestamp;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::change_feed::ChangeNumber;
use crate::operations::change_feed::DurableChange;
use crate::operations::store::contract::Created;
use crate::operations::store::error::StoreError;
use crate::operations::store::record;
use crate::operations::store::sqlite::annotation_rows::AnnotationChange;
use crate::operations::store::sqlite::checkpoints::Checkpoints;
use crate::operations::store::sqlite::errors::already_failed;
use crate::operations::store::sqlite::errors::classify;
use crate::operations::store::sqlite::integers::to_integer;
use crate::operations::store::sqlite::open::Lock;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Writes committed together at most.
const BATCH_MAX: usize = 1024;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One write and where its answer goes. Operations come with the text to store.
pub(super) enum Write {
    Create(Arc<Operation>, String, Answer<Created>),
    Update(Arc<Operation>, String, Answer<()>),
    RemoveExpired(Timestamp, u16, Answer<usize>),
    Heartbeat(Timestamp, Answer<()>),
    Annotate(AnnotationChange, Answer<()>),
}

/// What a transaction that is not committed yet has applied.
#[derive(Default)]
struct Batch {
    applied: Vec<Applied>,
    /// The new states, in the order of their numbers.
    changes: Vec<Arc<DurableChange>>,
    /// The highest number of a removed record.
    forgotten: ChangeNumber,
}

/// A write that was applied within a transaction that is not committed yet, and its answer.
enum Applied {
    Created(Answer<Created>, Result<Created, StoreError>),
    Updated(Answer<()>, Result<(), StoreError>),
    Expired(Answer<usize>, usize),
    Written(Answer<()>),
}

/// What the writer thread owns. The lock is released last, after the connection is closed.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) checkpoints: Checkpoints,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) has_failed: Arc<AtomicBool>,
    pub(super) feed: Arc<ChangeFeed>,
    /// The number of the last committed write of a record.
    pub(super) last_change: ChangeNumber,
    pub(super) lock: Lock,
}

impl Writer {
    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Write>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            // Other tasks may have more writes to hand in, which then share this commit. Costs nothing when there are none.
            std::thread::yield_now();
            while batch.len() < BATCH_MAX
                && let Ok(write) = waiting.try_recv()
            {
                batch.push(write);
            }
            let writes = std::mem::take(&mut batch);
            let survived = catch_unwind(AssertUnwindSafe(|| self.commit(writes)));
            if survived.is_err() {
                // Callers see that their answer is gone. Whether it was committed is not known here.
                self.has_failed.store(true, Ordering::Release);
                self.metrics.process.record_panic("operations");
            }
        }
        let Self {
            connection,
            checkpoints,
            lock,
            ..
        } = self;
        // Before the connection: the last one that closes removes the log.
        checkpoints.stop();
        if let Err((_, error)) = connection.close() {
            tracing::warn!(%error, "store not closed cleanly");
        }
        drop(lock);
    }

    /// Commits the writes in one transaction and answers them.
    fn commit(&mut self, writes: Vec<Write>) {
        // Once the file is suspect nothing is written any more, not even what would succeed: only a restart reads
        // what is really there.
        if self.has_failed.load(Ordering::Acquire) {
            for write in writes {
                refuse(write, &already_failed());
            }
            return;
        }
        // Measured with the sync, which is what callers wait for.
        let began = self.clock.instant();
        let mut batch = Batch::default();
        batch.applied.reserve(writes.len());
        // Kept outside of the call: after an error, what is left in it was never tried and must be answered as well.
        let mut remaining = writes.into_iter();
        let outcome = self.apply_all(&mut remaining, &mut batch);
        match outcome {
            // After the commit and never before: an answer is what lets a 202 leave.
            Ok(()) => {
                let took = self.clock.instant().saturating_duration_since(began);
                self.metrics.operations.record_store_commit("sqlite", took);
                self.last_change = batch.next_number(self.last_change).saturating_sub(1);
                self.feed.forget(batch.forgotten);
                // Before the answers: a client that reads its own write finds it among the changes soon after.
                self.feed.hand_in(batch.changes);
                batch.applied.into_iter().for_each(Applied::answer);
                if let Err(error) = self.checkpoints.after_commit(&self.connection)
                    && !self.note_failure(&error)
                {
                    tracing::warn!(%error, "write-ahead log not copied into the store");
                }
            }
            Err(error) => {
                let meaning = classify(&error);
                self.note_failure(&error);
                for write in batch.applied {
                    write.fail(&meaning);
                }
                for write in remaining {
                    refuse(write, &meaning);
                }
            }
        }
    }

    /// Refuses everything from now on if the error is fatal; says whether it is.
    fn note_failure(&self, error: &rusqlite::Error) -> bool {
        let is_fatal = matches!(classify(error), StoreError::Fatal(_));
        if is_fatal {
            // The kernel may have dropped a page that did not reach the disk. A second sync that succeeds would prove nothing.
            self.has_failed.store(true, Ordering::Release);
            tracing::error!(%error, "operation store failed");
        }
        is_fatal
    }

    /// Applies the writes in one transaction. A conflict fails one write alone; an error of the engine fails all of them.
    fn apply_all(
        &mut self,
        writes: &mut impl Iterator<Item = Write>,
        batch: &mut Batch,
    ) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            // The write lock at once. A deferred transaction could fail half way with SQLITE_BUSY, after some writes
            // were applied.
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for write in writes {
            match write {
                Write::Create(operation, record, answer) => {
                    let number = batch.next_number(self.last_change);
                    match create(&transaction, (&operation, &record), number) {
                        Ok(made) => {
                            if matches!(made, Ok(Created::New)) {
                                batch.add_change(number, operation);
                            }
                            // A conflict is an answer to this caller, not an error of the transaction: the other writes
                            // go on.
                            batch.applied.push(Applied::Created(answer, made));
                        }
                        Err(error) => {
                            let failed = Err(classify(&error));
                            batch.applied.push(Applied::Created(answer, failed));
                            return Err(error);
                        }
                    };
                }
                Write::Update(operation, record, answer) => {
                    let number = batch.next_number(self.last_change);
                    match update(&transaction, (&operation, &record), number) {
                        Ok(made) => {
                            if made.is_ok() {
                                batch.add_change(number, operation);
                            }
                            batch.applied.push(Applied::Updated(answer, made));
                        }
                        Err(error) => {
                            let failed = Err(classify(&error));
                            batch.applied.push(Applied::Updated(answer, failed));
                            return Err(error);
                        }
                    };
                }
                Write::RemoveExpired(now, max, answer) => {
                    let removed = remove_expired(&transaction, now, max);
                    // Queued before the error is returned, so that the caller is answered with the others.
                    let (count, forgotten) = *removed.as_ref().unwrap_or(&(0, 0));
                    batch.applied.push(Applied::Expired(answer, count));
                    batch.forgotten = batch.forgotten.max(forgotten);
                    removed?;
                }
                Write::Annotate(change, answer) => {
                    let written = change.apply(&transaction);
                    batch.applied.push(Applied::Written(answer));
                    written?;
                }
                Write::Heartbeat(now, answer) => {
                    let written = put_meta(&transaction, "beat", to_integer(now.as_millis()));
                    batch.applied.push(Applied::Written(answer));
                    written?;
                }
            }
        }
        transaction.commit()
    }
}

impl Batch {
    /// The number of the next write, when `last` was that of the last committed one.
    fn next_number(&self, last: ChangeNumber) -> ChangeNumber {
        let before = self.changes.last().map_or(last, |change| change.number);
        before.saturating_add(1)
    }

    fn add_change(&mut self, number: ChangeNumber, operation: Arc<Operation>) {
        self.changes
            .push(Arc::new(DurableChange::new(number, operation)));
    }
}

impl Applied {
    /// Answers after the commit. A caller that is gone does not matter.
    fn answer(self) {
        match self {
            Self::Created(answer, result) => drop(answer.send(result)),
            Self::Updated(answer, result) => drop(answer.send(result)),
            Self::Expired(answer, count) => drop(answer.send(Ok(count))),
            Self::Written(answer) => drop(answer.send(Ok(()))),
        }
    }

    /// Answers after the transaction was rolled back.
    fn fail(self, error: &StoreError) {
        match self {
            Self::Created(answer, _) => drop(answer.send(Err(error.clone()))),
            Self::Updated(answer, _) | Self::Written(answer) => {
                drop(answer.send(Err(error.clone())));
            }
            Self::Expired(answer, _) => drop(answer.send(Err(error.clone()))),
        }
    }
}

fn refuse(write: Write, error: &StoreError) {
    match write {
        Write::Create(_, _, answer) => drop(answer.send(Err(error.clone()))),
        Write::Update(_, _, answer) | Write::Heartbeat(_, answer) | Write::Annotate(_, answer) => {
            drop(answer.send(Err(error.clone())));
        }
        Write::RemoveExpired(_, _, answer) => drop(answer.send(Err(error.clone()))),
    }
}

fn create(
    transaction: &Transaction<'_>,
    (operation, record): (&Operation, &str),
    number: ChangeNumber,
) -> rusqlite::Result<Result<Created, StoreError>> {
    // Looked up in the transaction of the insert: between an earlier look and this one, the same key may have been
    // committed.
    if let Some(key) = &operation.idempotency
        && let Some(found) = find_by_key(transaction, operation, key)?
    {
        return Ok(found);
    }
    let key = operation.idempotency.as_ref();
    let sql =
        "INSERT INTO operations(seq, revision, verb, backend, vm, backup, principal, phase, live,
         idem_key, idem_fingerprint, expires, record, created, changed)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)
         ON CONFLICT(seq) DO NOTHING";
    // A sequence number that exists is a defect, and must not fail the writes of the others in this transaction.
    let made = transaction.prepare_cached(sql)?.execute(params![
        to_integer(operation.seq.number()),
        to_integer(operation.revision.0),
        operation.verb().as_str(),
        operation.backend.as_str(),
        operation.target().vm.as_str(),
        operation.target().backup.as_str(),
        operation.principal.as_str(),
        operation.phase.as_str(),
        !operation.phase.is_final(),
        key.map(|key| key.key.as_str()),
        key.map(|key| key.fingerprint.0.as_slice()),
        operation
            .expires
            .map(|expire| to_integer(expire.as_millis())),
        record,
        to_integer(operation.created.as_millis()),
        to_integer(number),
    ])?;
    Ok(if made == 1 {
        Ok(Created::New)
    } else {
        Err(StoreError::Conflict)
    })
}

/// The answer for a key that was used before, if it was.
fn find_by_key(
    transaction: &Transaction<'_>,
    operation: &Operation,
    key: &Idempotency,
) -> rusqlite::Result<Option<Result<Created, StoreError>>> {
    let sql = "SELECT seq, idem_fingerprint, record FROM operations
         WHERE principal = ?1 AND idem_key = ?2 AND verb = ?3 AND vm = ?4 AND (?5 IS NULL OR backup = ?5)";
    let scope = operation.intent.key_scope();
    let found = transaction
        .prepare_cached(sql)?
        .query_row(
            params![
                operation.principal.as_str(),
                key.key.as_str(),
                scope.verb.as_str(),
                scope.vm.as_str(),
                scope.backup.as_ref().map(BackupId::as_str),
            ],
            |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, Vec<u8>>(1)?,
                    row.get::<_, String>(2)?,
                ))
            },
        )
        .optional()?;
    let Some((seq, fingerprint, text)) = found else {
        return Ok(None);
    };
    let seq = u64::try_from(seq).ok().and_then(OperationSeq::new);
    let unreadable = |why: String| Err(StoreError::Unavailable(why));
    Ok(Some(match seq {
        None => unreadable("the sequence number is out of range".to_owned()),
        // Compared in the columns: even a record that cannot be decoded keeps its key from being used for something
        // else.
        Some(seq) if fingerprint != key.fingerprint.0 => Err(StoreError::KeyReused(seq)),
        Some(_) => match record::decode(&text) {
            Ok(operation) => Ok(Created::Replayed(Arc::new(operation))),
            Err(error) => unreadable(error.to_string()),
        },
    }))
}

fn update(
    transaction: &Transaction<'_>,
    (operation, record): (&Operation, &str),
    number: ChangeNumber,
) -> rusqlite::Result<Result<(), StoreError>> {
    let seq = to_integer(operation.seq.number());
    let revision = to_integer(operation.revision.0);
    // Compare and set: a writer that decided on an older state changes no row, and is answered with a conflict.
    let before = to_integer(operation.revision.0.saturating_sub(1));
    let phase = operation.phase.as_str();
    let number = to_integer(number);
    let changed = if operation.phase.is_final() {
        let sql =
            "UPDATE operations SET revision = ?2, phase = ?3, live = 0, expires = ?4, record = ?5,
             changed = ?7 WHERE seq = ?1 AND revision = ?6";
        let expires = operation
            .expires
            .map(|expire| to_integer(expire.as_millis()));
        transaction.prepare_cached(sql)?.execute(params![
            seq, revision, phase, expires, record, before, number
        ])?
    } else {
        // An unfinished record was unfinished before. Leaving the indexed columns out changes one page only: the index on
        // `changed` has finished records alone.
        let sql = "UPDATE operations SET revision = ?2, phase = ?3, record = ?4, changed = ?6
             WHERE seq = ?1 AND revision = ?5";
        transaction
            .prepare_cached(sql)?
            .execute(params![seq, revision, phase, record, before, number])?
    };
    Ok(if changed == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    })
}

/// Removes expired records. Their highest sequence number and the number of their latest change are kept, so that neither is
/// given again. Returns how many there were, and that number of a change.
fn remove_expired(
    transaction: &Transaction<'_>,
    now: Timestamp,
    max: u16,
) -> rusqlite::Result<(usize, ChangeNumber)> {
    // Read before the rows go: the highest may be among them.
    let highest: Option<i64> =
        transaction.query_row("SELECT max(seq) FROM operations", [], |row| row.get(0))?;
    let sql = "DELETE FROM operations WHERE seq IN (SELECT seq FROM operations
         WHERE expires IS NOT NULL AND expires <= ?1 AND live = 0 LIMIT ?2) RETURNING changed";
    let numbers = transaction
        .prepare_cached(sql)?
        .query_map(params![to_integer(now.as_millis()), max], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let removed = numbers.len();
    let forgotten = numbers.into_iter().max().unwrap_or(0);
    if removed > 0 {
        put_meta(transaction, "forgotten", forgotten)?;
        if let Some(highest) = highest {
            put_meta(transaction, "highest", highest)?;
        }
        // A few pages each time. Shrinking the whole file at once would hold up the writes of requests.
        transaction.execute_batch("PRAGMA incremental_vacuum(64)")?;
    }
    Ok((removed, forgotten.cast_unsigned()))
}

/// Raises a number that never falls.
fn put_meta(transaction: &Transaction<'_>, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta(name, value) VALUES(?1, ?2)
         ON CONFLICT(name) DO UPDATE SET value = max(value, excluded.value)";
    transaction
        .prepare_cached(sql)?
        .execute(params![name, value])?;
    Ok(())
}
