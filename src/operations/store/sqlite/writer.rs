//! The one thread that writes: what waits is committed together, and answered after the commit.

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
use crate::operations::store::Created;
use crate::operations::store::StoreError;
use crate::operations::store::record;
use crate::operations::store::sqlite::already_failed;
use crate::operations::store::sqlite::annotations::Change;
use crate::operations::store::sqlite::classify;
use crate::operations::store::sqlite::open::Lock;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Writes committed together at most.
const BATCH_MAX: usize = 1024;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One write and whom to tell. A mere wrapper, so that the kinds of work stay inside this folder.
pub(super) struct Job(pub(super) Work);

/// The kinds of write. Operations come with the text to store.
pub(super) enum Work {
    Create(Arc<Operation>, String, Answer<Created>),
    Update(Arc<Operation>, String, Answer<()>),
    Expire(Timestamp, u16, Answer<usize>),
    Beat(Timestamp, Answer<()>),
    Annotate(Change, Answer<()>),
}

/// What was done for a write within a transaction that is not committed yet.
enum Done {
    Created(Answer<Created>, Result<Created, StoreError>),
    Updated(Answer<()>, Result<(), StoreError>),
    Expired(Answer<usize>, usize),
    Written(Answer<()>),
}

/// The writer's own things. The lock goes last, after the connection is closed.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) failed: Arc<AtomicBool>,
    pub(super) lock: Lock,
}

impl Writer {
    /// Works until every sender is gone.
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            // Whoever can run now may have more to hand in: it costs nothing when nobody can.
            std::thread::yield_now();
            while batch.len() < BATCH_MAX
                && let Ok(job) = waiting.try_recv()
            {
                batch.push(job);
            }
            let jobs = std::mem::take(&mut batch);
            let survived = catch_unwind(AssertUnwindSafe(|| self.batch(jobs)));
            if survived.is_err() {
                // Whoever waited sees that the answer is gone. What was committed is not known here.
                self.failed.store(true, Ordering::Release);
                self.metrics.process.record_panic("operations");
            }
        }
        let Self {
            connection, lock, ..
        } = self;
        if let Err((_, error)) = connection.close() {
            tracing::warn!(%error, "store not closed cleanly");
        }
        drop(lock);
    }

    fn batch(&mut self, jobs: Vec<Job>) {
        if self.failed.load(Ordering::Acquire) {
            for Job(work) in jobs {
                refuse(work, &already_failed());
            }
            return;
        }
        let began = self.clock.instant();
        let mut done = Vec::with_capacity(jobs.len());
        let mut left = jobs.into_iter();
        let outcome = self.transaction(&mut left, &mut done);
        match outcome {
            Ok(()) => {
                let took = self.clock.instant().saturating_duration_since(began);
                self.metrics.operations.record_store_commit("sqlite", took);
                done.into_iter().for_each(Done::tell);
            }
            Err(error) => {
                let meaning = classify(&error);
                if matches!(meaning, StoreError::Fatal(_)) {
                    // A page that failed to reach the disk may be gone from memory as well: a second try that
                    // succeeds would prove nothing.
                    self.failed.store(true, Ordering::Release);
                    tracing::error!(%error, "store failed");
                }
                for it in done {
                    it.fail(&meaning);
                }
                for Job(work) in left {
                    refuse(work, &meaning);
                }
            }
        }
    }

    /// Does all of it in one transaction. What fails by itself fails alone; an error of the engine fails everything.
    fn transaction(
        &mut self,
        jobs: &mut impl Iterator<Item = Job>,
        done: &mut Vec<Done>,
    ) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Job(work) in jobs {
            match work {
                Work::Create(operation, record, answer) => {
                    match create(&transaction, &operation, &record) {
                        Ok(made) => done.push(Done::Created(answer, made)),
                        Err(error) => {
                            done.push(Done::Created(answer, Err(classify(&error))));
                            return Err(error);
                        }
                    };
                }
                Work::Update(operation, record, answer) => {
                    match update(&transaction, &operation, &record) {
                        Ok(made) => done.push(Done::Updated(answer, made)),
                        Err(error) => {
                            done.push(Done::Updated(answer, Err(classify(&error))));
                            return Err(error);
                        }
                    };
                }
                Work::Expire(now, max, answer) => {
                    let dropped = expire(&transaction, now, max);
                    let count = *dropped.as_ref().unwrap_or(&0);
                    done.push(Done::Expired(answer, count));
                    dropped?;
                }
                Work::Annotate(change, answer) => {
                    let written = change.apply(&transaction);
                    done.push(Done::Written(answer));
                    written?;
                }
                Work::Beat(now, answer) => {
                    let written = put_meta(&transaction, "beat", number(now.as_millis()));
                    done.push(Done::Written(answer));
                    written?;
                }
            }
        }
        transaction.commit()
    }
}

impl Done {
    /// Answers after the commit. Nobody may be waiting any more, which is no concern of ours.
    fn tell(self) {
        match self {
            Self::Created(answer, result) => drop(answer.send(result)),
            Self::Updated(answer, result) => drop(answer.send(result)),
            Self::Expired(answer, count) => drop(answer.send(Ok(count))),
            Self::Written(answer) => drop(answer.send(Ok(()))),
        }
    }

    /// Answers after the transaction was given up.
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

fn refuse(work: Work, error: &StoreError) {
    match work {
        Work::Create(_, _, answer) => drop(answer.send(Err(error.clone()))),
        Work::Update(_, _, answer) | Work::Beat(_, answer) | Work::Annotate(_, answer) => {
            drop(answer.send(Err(error.clone())));
        }
        Work::Expire(_, _, answer) => drop(answer.send(Err(error.clone()))),
    }
}

/// SQLite's integers are signed; every number of ours fits, and what does not is held at the end.
pub(super) fn number(from: u64) -> i64 {
    i64::try_from(from).unwrap_or(i64::MAX)
}

fn create(
    transaction: &Transaction<'_>,
    operation: &Operation,
    record: &str,
) -> rusqlite::Result<Result<Created, StoreError>> {
    if let Some(key) = &operation.idempotency
        && let Some(found) = used(transaction, operation, key)?
    {
        return Ok(found);
    }
    let key = operation.idempotency.as_ref();
    let sql = "INSERT INTO operations(seq, revision, verb, backend, vm, backup, principal, phase, live,
         idem_key, idem_fingerprint, expires, record) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)
         ON CONFLICT(seq) DO NOTHING";
    let made = transaction.prepare_cached(sql)?.execute(params![
        number(operation.seq.number()),
        number(operation.revision.0),
        operation.verb().as_str(),
        operation.backend.as_str(),
        operation.target().vm.as_str(),
        operation.target().backup.as_str(),
        operation.principal.as_str(),
        operation.phase.as_str(),
        !operation.phase.is_final(),
        key.map(|key| key.key.as_str()),
        key.map(|key| key.fingerprint.0.as_slice()),
        operation.expires.map(|expire| number(expire.as_millis())),
        record,
    ])?;
    Ok(if made == 1 {
        Ok(Created::New)
    } else {
        Err(StoreError::Conflict)
    })
}

/// What was stored under the key before, if anything.
fn used(
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
        None => unreadable("a number that is none".to_owned()),
        Some(seq) if fingerprint != key.fingerprint.0 => Err(StoreError::KeyReused(seq)),
        Some(_) => match record::decode(&text) {
            Ok(operation) => Ok(Created::Replayed(Arc::new(operation))),
            Err(error) => unreadable(error.to_string()),
        },
    }))
}

fn update(
    transaction: &Transaction<'_>,
    operation: &Operation,
    record: &str,
) -> rusqlite::Result<Result<(), StoreError>> {
    let seq = number(operation.seq.number());
    let revision = number(operation.revision.0);
    let before = number(operation.revision.0.saturating_sub(1));
    let phase = operation.phase.as_str();
    let changed = if operation.phase.is_final() {
        let sql =
            "UPDATE operations SET revision = ?2, phase = ?3, live = 0, expires = ?4, record = ?5
             WHERE seq = ?1 AND revision = ?6";
        let expires = operation.expires.map(|expire| number(expire.as_millis()));
        transaction
            .prepare_cached(sql)?
            .execute(params![seq, revision, phase, expires, record, before])?
    } else {
        // An unfinished one was unfinished before: without the columns of the indexes only one page changes.
        let sql = "UPDATE operations SET revision = ?2, phase = ?3, record = ?4
             WHERE seq = ?1 AND revision = ?5";
        transaction
            .prepare_cached(sql)?
            .execute(params![seq, revision, phase, record, before])?
    };
    Ok(if changed == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    })
}

/// Drops what is over. The highest number is kept first, so that it is never given again.
fn expire(transaction: &Transaction<'_>, now: Timestamp, max: u16) -> rusqlite::Result<usize> {
    let highest: Option<i64> =
        transaction.query_row("SELECT max(seq) FROM operations", [], |row| row.get(0))?;
    let sql = "DELETE FROM operations WHERE seq IN (SELECT seq FROM operations
         WHERE expires IS NOT NULL AND expires <= ?1 AND live = 0 LIMIT ?2)";
    let dropped = transaction
        .prepare_cached(sql)?
        .execute(params![number(now.as_millis()), max])?;
    if dropped > 0 {
        if let Some(highest) = highest {
            put_meta(transaction, "highest", highest)?;
        }
        transaction.execute_batch("PRAGMA incremental_vacuum(64)")?;
    }
    Ok(dropped)
}

/// Raises a number that never goes back.
fn put_meta(transaction: &Transaction<'_>, name: &str, value: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta(name, value) VALUES(?1, ?2)
         ON CONFLICT(name) DO UPDATE SET value = max(value, excluded.value)";
    transaction
        .prepare_cached(sql)?
        .execute(params![name, value])?;
    Ok(())
}
