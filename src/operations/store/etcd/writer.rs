//! The one task that writes: writes that wait are committed together, and answered after the commit.
//!
//! Each transaction compares the key of the leader and the key `state`, which the one before has written. So all of them form
//! one chain: after an answer was lost, the writer adds an empty link. If that is applied, the lost transaction never will be; if
//! it is refused, the state shows whether the lost one was.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::etcd::EtcdError;
use crate::etcd::LeaderTerm;
use crate::etcd::TxnOp;
use crate::etcd::TxnOpResponse;
use crate::etcd::TxnResponse;
use crate::model::OperationSeq;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::change_feed::DurableChange;
use crate::operations::store::contract::Created;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::batch::Batch;
use crate::operations::store::etcd::batch::BatchMaker;
use crate::operations::store::etcd::batch::KnownRow;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::batch::numbered;
use crate::operations::store::etcd::entries::KeyOwner;
use crate::operations::store::etcd::errors::fenced;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::reader::Reader;
use crate::operations::store::etcd::reader::StoredRow;
use crate::operations::store::etcd::reader::first;
use crate::operations::store::etcd::state::WriterState;
use crate::operations::store::row::Row;
use crate::runtime::Clock;
use crate::runtime::Stopper;
use crate::telemetry::Metrics;

/// Writes committed together at most. etcd takes 128 operations in a transaction, those inside of others included, and one of
/// these has up to 14.
const BATCH_MAX: usize = 64;
/// Bytes of records committed together at most, unless one is larger: etcd takes 1.5 MiB.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// How long callers wait until it is known whether a transaction was applied: longer than the election of a leader.
const SETTLE_FOR: Duration = Duration::from_secs(4);
/// Pause between two attempts to find out.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);
/// Times that a transaction is made anew because something it relied on had changed.
const ATTEMPTS_MAX: usize = 8;

/// A transaction of which it is not known whether it was applied.
#[derive(Debug)]
struct Unsettled {
    /// The marks that show in the state that it was applied: its own, and those of the removals that came after it.
    marks: Vec<u64>,
    /// Those of the empty links that were added after it, and whose answers were lost as well.
    links: Vec<u64>,
    /// What it wrote, whose callers have been answered: whether the record was new, and how it would be stored.
    abandoned: Vec<(bool, Row)>,
}

/// Whether a transaction was applied.
enum Settled {
    Applied,
    NotApplied,
    Unknown(String),
    Fenced,
    /// Something else has written.
    Failed(StoreError),
}

/// What the writer task owns.
#[derive(Debug)]
pub(super) struct Writer {
    reader: Arc<Reader>,
    term: LeaderTerm,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    feed: Arc<ChangeFeed>,
    /// Given when another gateway may write.
    lost: Arc<Stopper>,
    state: WriterState,
    state_revision: i64,
    /// The unfinished records.
    known: BTreeMap<u64, KnownRow>,
    unsettled: Option<Unsettled>,
}

/// What a writer is made of.
#[derive(Debug)]
pub(super) struct WriterParts {
    pub(super) reader: Arc<Reader>,
    pub(super) term: LeaderTerm,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) feed: Arc<ChangeFeed>,
    pub(super) lost: Arc<Stopper>,
    /// The last write, and the revision of etcd at which it was made; zero for none.
    pub(super) state: (WriterState, i64),
}

impl Writer {
    pub(super) fn new(parts: WriterParts) -> Self {
        let (state, state_revision) = parts.state;
        Self {
            reader: parts.reader,
            term: parts.term,
            clock: parts.clock,
            metrics: parts.metrics,
            feed: parts.feed,
            lost: parts.lost,
            state,
            state_revision,
            known: BTreeMap::new(),
            unsettled: None,
        }
    }

    /// Works until every sender is gone.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Write>) {
        let mut queue = Vec::new();
        while !queue.is_empty() || waiting.recv_many(&mut queue, BATCH_MAX).await > 0 {
            while queue.len() < BATCH_MAX
                && let Ok(write) = waiting.try_recv()
            {
                queue.push(write);
            }
            let batch = self.take_batch(&mut queue);
            self.commit(batch).await;
        }
    }

    /// Takes writes from the front of the queue that fit into one transaction.
    fn take_batch(&self, queue: &mut Vec<Write>) -> Vec<Write> {
        let mut touched = BTreeSet::new();
        let mut bytes = 0_usize;
        let fits = queue.iter().take_while(|write| {
            let own = write.own_keys(&self.reader.keys);
            bytes = bytes.saturating_add(write.bytes());
            let is_apart = own.iter().all(|key| !touched.contains(key));
            touched.extend(own);
            is_apart && bytes <= BATCH_BYTES_MAX
        });
        // One that is too large for any is refused by etcd.
        let count = fits.count().max(1);
        queue.drain(..count.min(queue.len())).collect()
    }

    /// Commits the writes and answers them.
    async fn commit(&mut self, mut writes: Vec<Write>) {
        if let Err(error) = self.settle_earlier().await {
            return fail_all(writes, &error);
        }
        for _ in 0..ATTEMPTS_MAX {
            writes = match self.learn(writes).await {
                Ok(writes) => writes,
                Err((writes, error)) => return fail_all(writes, &error),
            };
            if writes.is_empty() {
                return;
            }
            writes = match self.try_commit(writes).await {
                Some(left) if !left.is_empty() => left,
                Some(_) | None => return,
            };
        }
        let error = StoreError::Unavailable("other writes came first each time".to_owned());
        fail_all(writes, &error);
    }

    /// Reads the records that are to be updated where it is not known that they are at the revision before, and answers those
    /// that are not.
    async fn learn(&mut self, writes: Vec<Write>) -> Result<Vec<Write>, (Vec<Write>, StoreError)> {
        let unclear: Vec<u64> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Update(_, row, _) if !self.is_next(row) => Some(row.seq),
                Write::Create(..) | Write::Update(..) | Write::Put(..) | Write::Remove(..) => None,
            })
            .collect();
        if unclear.is_empty() {
            return Ok(writes);
        }
        let found = match self.reader.rows(&unclear).await {
            Ok(found) => found,
            Err(error) => return Err((writes, error)),
        };
        let (mut good, mut done) = (Vec::new(), Vec::new());
        for write in writes {
            let row = match &write {
                Write::Update(_, row, _) if unclear.contains(&row.seq) => row,
                Write::Create(..) | Write::Update(..) | Write::Put(..) | Write::Remove(..) => {
                    good.push(write);
                    continue;
                }
            };
            self.known.remove(&row.seq);
            let stored = found.iter().find(|stored| stored.row.seq == row.seq);
            let is_applied = stored.is_some_and(|stored| is_same(&stored.row, row));
            if let Some(stored) = stored {
                self.remember(stored.clone());
            }
            if self.is_next(row) {
                good.push(write);
            } else {
                let result = if is_applied {
                    Ok(None)
                } else {
                    Err(StoreError::Conflict)
                };
                done.push((write, result));
            }
        }
        for (write, result) in done {
            answer_write(write, result);
        }
        Ok(good)
    }

    /// Whether the record is known to be at the revision before.
    fn is_next(&self, row: &Row) -> bool {
        let known = self.known.get(&row.seq);
        known.is_some_and(|known| known.header.revision.saturating_add(1) == row.header.revision)
    }

    fn remember(&mut self, stored: StoredRow) {
        let known = KnownRow {
            header: stored.row.header,
            mod_revision: stored.mod_revision,
        };
        self.known.insert(stored.row.seq, known);
    }

    /// One transaction. Returns the writes that are to be tried again; `None` when all were answered.
    async fn try_commit(&mut self, writes: Vec<Write>) -> Option<Vec<Write>> {
        let began = self.clock.instant();
        let mark = match random() {
            Ok(mark) => mark,
            Err(error) => {
                fail_all(writes, &error);
                return None;
            }
        };
        let batch = match self.maker().make(&writes, mark) {
            Ok(batch) => batch,
            Err(error) => {
                fail_all(writes, &error);
                return None;
            }
        };
        let outcome = self
            .reader
            .connection
            .write(batch.transaction.clone())
            .await;
        match outcome {
            Ok(answer) if answer.succeeded() => {
                let took = self.clock.instant().saturating_duration_since(began);
                self.metrics.operations.record_store_commit("etcd", took);
                Some(self.finish(writes, batch, &answer).await)
            }
            Ok(answer) => match self.look_at_refusal(&answer) {
                Ok(_) => Some(writes),
                Err(error) => {
                    fail_all(writes, &error);
                    None
                }
            },
            Err(EtcdError::Unknown(why)) => {
                tracing::warn!(error = why, "outcome of a write to etcd unknown");
                self.settle_batch(writes, &batch).await
            }
            Err(error) => {
                fail_all(writes, &unavailable(&error));
                None
            }
        }
    }

    fn maker(&self) -> BatchMaker<'_> {
        BatchMaker {
            keys: &self.reader.keys,
            term: &self.term,
            state: (&self.state, self.state_revision),
            known: &self.known,
        }
    }

    /// Answers the writes of a transaction that was applied. Returns those that are to be tried again.
    async fn finish(
        &mut self,
        writes: Vec<Write>,
        batch: Batch,
        answer: &TxnResponse,
    ) -> Vec<Write> {
        let revision = answer.header().map_or(0, |header| header.revision());
        self.state = batch.state;
        self.state_revision = revision;
        self.feed.forget(self.state.forgotten);
        // The first answer is that of the state.
        let answers = answer.op_responses().into_iter().skip(1);
        let (mut changes, mut done, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for ((write, number), answer) in writes.into_iter().zip(batch.numbers).zip(answers) {
            let TxnOpResponse::Txn(answer) = answer else {
                again.push(write);
                continue;
            };
            if answer.succeeded() {
                if let Some(number) = number {
                    changes.extend(self.note_applied(&write, number, revision));
                }
                done.push((write, Ok(None)));
            } else {
                match self.look_at_refused_write(&write, &answer).await {
                    Some(result) => done.push((write, result)),
                    None => again.push(write),
                }
            }
        }
        // Before the answers: a client that reads its own write finds it among the changes soon after.
        self.feed.hand_in(changes);
        for (write, result) in done {
            answer_write(write, result);
        }
        again
    }

    /// Remembers what was written. Returns the change for those who follow.
    fn note_applied(
        &mut self,
        write: &Write,
        number: u64,
        mod_revision: i64,
    ) -> Option<Arc<DurableChange>> {
        let (Write::Create(operation, row, _) | Write::Update(operation, row, _)) = write else {
            return None;
        };
        self.reader.note_created(row.header.created);
        if row.header.live {
            let header = numbered(row, number).header;
            let known = KnownRow {
                header,
                mod_revision,
            };
            self.known.insert(row.seq, known);
        } else {
            self.known.remove(&row.seq);
        }
        Some(Arc::new(DurableChange::new(number, Arc::clone(operation))))
    }

    /// Why one write was not applied; `None` when it is to be tried again.
    async fn look_at_refused_write(
        &mut self,
        write: &Write,
        answer: &TxnResponse,
    ) -> Option<Result<Option<Created>, StoreError>> {
        let mut found = answer.op_responses().into_iter().map(first);
        let stored = found.next().flatten();
        let key = found.next().flatten();
        match write {
            Write::Create(_, row, _) => {
                let stored = stored.map(|stored| self.reader.parse(row.seq, &stored));
                if let Some(Ok(stored)) = stored
                    && is_same(&stored.row, row)
                {
                    // An earlier attempt was applied.
                    if stored.row.header.live {
                        self.remember(stored);
                    }
                    return Some(Ok(Some(Created::New)));
                }
                if let Some(key) = key {
                    return Some(self.look_at_key(row, key.value()).await.map(Some));
                }
                Some(Err(StoreError::Conflict))
            }
            Write::Update(_, row, _) => {
                self.known.remove(&row.seq);
                let stored = stored.map(|stored| self.reader.parse(row.seq, &stored));
                let stored = match stored {
                    Some(Ok(stored)) => stored,
                    Some(Err(error)) => return Some(Err(error)),
                    None => return Some(Err(StoreError::Conflict)),
                };
                if is_same(&stored.row, row) {
                    // An earlier attempt was applied.
                    return Some(Ok(None));
                }
                self.remember(stored);
                if self.is_next(row) {
                    return None;
                }
                Some(Err(StoreError::Conflict))
            }
            // A put has no condition, and a record that is gone needs not be removed.
            Write::Put(..) | Write::Remove(..) => Some(Err(StoreError::Conflict)),
        }
    }

    /// The answer for an idempotency key that was used before.
    async fn look_at_key(&self, row: &Row, owner: &[u8]) -> Result<Created, StoreError> {
        let owner: KeyOwner = serde_json::from_slice(owner)
            .map_err(|error| StoreError::Unavailable(format!("an idempotency key: {error}")))?;
        let fingerprint = row.header.key.as_ref().map(|key| &key.fingerprint);
        let seq = OperationSeq::new(owner.seq).ok_or_else(|| {
            StoreError::Unavailable("the sequence number is out of range".to_owned())
        })?;
        if fingerprint != Some(&owner.fingerprint) {
            return Err(StoreError::KeyReused(seq));
        }
        match self.reader.read(seq).await? {
            Some(operation) => Ok(Created::Replayed(operation)),
            None => Err(StoreError::Unavailable(
                "the record of an idempotency key is missing".to_owned(),
            )),
        }
    }

    /// What kept a transaction from being applied. `Ok` with the state that was found when it may be made anew.
    fn look_at_refusal(&mut self, answer: &TxnResponse) -> Result<WriterState, StoreError> {
        let mut found = answer.op_responses().into_iter().map(first);
        let leader = found.next().flatten();
        let state = found.next().flatten();
        if leader.is_none_or(|leader| leader.create_revision() != self.term.create_revision) {
            self.lost.stop();
            return Err(fenced());
        }
        let (state, revision) = match state {
            Some(stored) => (WriterState::decode(stored.value())?, stored.mod_revision()),
            None => (WriterState::default(), 0),
        };
        self.state = state.clone();
        self.state_revision = revision;
        // Another may have written records as well.
        self.known.clear();
        Ok(state)
    }

    /// Finds out whether a transaction was applied whose callers wait. Returns the writes that are to be tried again.
    async fn settle_batch(&mut self, writes: Vec<Write>, batch: &Batch) -> Option<Vec<Write>> {
        let mut unsettled = Unsettled {
            marks: vec![batch.state.batch],
            links: Vec::new(),
            abandoned: Vec::new(),
        };
        let error = match self.settle(&mut unsettled, SETTLE_FOR).await {
            Settled::NotApplied => return Some(writes),
            Settled::Applied => return Some(self.finish_applied(writes, batch).await),
            Settled::Fenced => fenced(),
            Settled::Failed(error) => error,
            Settled::Unknown(why) => {
                self.abandon(unsettled, &writes, batch);
                for write in writes {
                    let why = why.clone();
                    let error = match &write {
                        // Taken back should it have been applied, and tried again by the caller, respectively.
                        Write::Create(..) | Write::Update(..) => StoreError::Unavailable(why),
                        Write::Put(..) | Write::Remove(..) => StoreError::Indeterminate(why),
                    };
                    write.fail(&error);
                }
                return None;
            }
        };
        fail_all(writes, &error);
        None
    }

    /// Answers the writes of a transaction that was applied although its answer was lost. Those that were refused in it are
    /// tried again, and refused again.
    async fn finish_applied(&mut self, writes: Vec<Write>, batch: &Batch) -> Vec<Write> {
        let seqs: Vec<u64> = writes.iter().filter_map(seq_of).collect();
        let Ok(found) = self.reader.rows(&seqs).await else {
            // They are tried again. Those that were applied are recognised then.
            return writes;
        };
        let (mut changes, mut again) = (Vec::new(), Vec::new());
        let mut done = Vec::new();
        for (write, number) in writes.into_iter().zip(&batch.numbers) {
            let seq = seq_of(&write);
            let stored = found.iter().find(|stored| Some(stored.row.seq) == seq);
            match (number, stored) {
                (Some(number), Some(stored)) if stored.row.header.changed == *number => {
                    changes.extend(self.note_applied(&write, *number, stored.mod_revision));
                    done.push(write);
                }
                (Some(_) | None, _) => again.push(write),
            }
        }
        self.feed.hand_in(changes);
        for write in done {
            answer_write(write, Ok(None));
        }
        again
    }

    /// Adds an empty link to the chain, until its answer shows whether the transaction before was applied.
    async fn settle(&mut self, unsettled: &mut Unsettled, patience: Duration) -> Settled {
        let give_up = Instant::now().checked_add(patience);
        loop {
            let link = match random() {
                Ok(link) => link,
                Err(error) => return Settled::Failed(error),
            };
            let state = WriterState {
                batch: link,
                ..self.state.clone()
            };
            let put = match state.encode() {
                Ok(text) => TxnOp::put(self.reader.keys.state(), text, None),
                Err(error) => return Settled::Failed(error),
            };
            let transaction = self.maker().in_chain(vec![put]);
            let why = match self.reader.connection.write(transaction).await {
                Ok(answer) if answer.succeeded() => {
                    self.state = state;
                    self.state_revision = answer.header().map_or(0, |header| header.revision());
                    return Settled::NotApplied;
                }
                Ok(answer) => return self.look_at_chain(&answer, unsettled),
                Err(EtcdError::Unknown(why)) => {
                    unsettled.links.push(link);
                    why
                }
                Err(error) => error.to_string(),
            };
            if give_up.is_none_or(|end| Instant::now() >= end) {
                return Settled::Unknown(why);
            }
            sleep(SETTLE_PAUSE).await;
        }
    }

    fn look_at_chain(&mut self, answer: &TxnResponse, unsettled: &Unsettled) -> Settled {
        match self.look_at_refusal(answer) {
            Err(StoreError::Fenced(_)) => Settled::Fenced,
            Err(error) => Settled::Failed(error),
            Ok(state) if unsettled.marks.contains(&state.batch) => Settled::Applied,
            Ok(state) if unsettled.links.contains(&state.batch) => Settled::NotApplied,
            Ok(_) => Settled::Failed(StoreError::Unavailable(
                "something else has written to the store".to_owned(),
            )),
        }
    }

    /// Remembers a transaction whose callers have been answered before its outcome was known.
    fn abandon(&mut self, mut unsettled: Unsettled, writes: &[Write], batch: &Batch) {
        for (write, number) in writes.iter().zip(&batch.numbers) {
            let (is_new, row) = match write {
                Write::Create(_, row, _) => (true, row),
                Write::Update(_, row, _) => (false, row),
                Write::Put(..) | Write::Remove(..) => continue,
            };
            if is_new {
                self.reader.hide(row.seq);
            }
            let row = numbered(row, number.unwrap_or_default());
            unsettled.abandoned.push((is_new, row));
        }
        self.unsettled = Some(unsettled);
    }

    /// Finds out about an earlier transaction before the next one. New records in it, whose callers were refused, are removed.
    async fn settle_earlier(&mut self) -> Result<(), StoreError> {
        let Some(mut unsettled) = self.unsettled.take() else {
            return Ok(());
        };
        match self.settle(&mut unsettled, Duration::ZERO).await {
            Settled::NotApplied => {}
            Settled::Applied => {
                if let Err(error) = self.take_back(&mut unsettled).await {
                    self.unsettled = Some(unsettled);
                    return Err(error);
                }
            }
            Settled::Fenced => return Err(fenced()),
            Settled::Failed(error) => {
                self.unsettled = Some(unsettled);
                return Err(error);
            }
            Settled::Unknown(why) => {
                self.unsettled = Some(unsettled);
                return Err(StoreError::Unavailable(why));
            }
        }
        for (_, row) in unsettled.abandoned {
            self.reader.unhide(row.seq);
        }
        Ok(())
    }

    /// Removes the new records of a transaction whose callers were refused.
    async fn take_back(&mut self, unsettled: &mut Unsettled) -> Result<(), StoreError> {
        let seqs: Vec<u64> = unsettled.abandoned.iter().map(|(_, row)| row.seq).collect();
        let found = self.reader.rows(&seqs).await?;
        let (mut changes, mut removed) = (Vec::new(), Vec::new());
        for (is_new, row) in &unsettled.abandoned {
            let stored = found.iter().find(|stored| stored.row.seq == row.seq);
            let Some(stored) = stored.filter(|stored| stored.row.header == row.header) else {
                continue;
            };
            if *is_new {
                removed.push(stored.clone());
            } else if let Ok(operation) = row.decode() {
                let number = row.header.changed;
                changes.push(Arc::new(DurableChange::new(number, Arc::new(operation))));
            }
        }
        self.feed.hand_in(changes);
        for stored in removed {
            let (answer, _not_awaited) = tokio::sync::oneshot::channel();
            let seq = stored.row.seq;
            let mark = random()?;
            let batch = self.maker().make(&[Write::Remove(stored, answer)], mark)?;
            unsettled.marks.push(mark);
            let written = self.reader.connection.write(batch.transaction).await;
            let answer = written.map_err(|error| unavailable(&error))?;
            if !answer.succeeded() {
                self.look_at_refusal(&answer)?;
                let why = "the store changed while a record was taken back".to_owned();
                return Err(StoreError::Unavailable(why));
            }
            self.state = batch.state;
            self.state_revision = answer.header().map_or(0, |header| header.revision());
            tracing::warn!(operation = seq, "record of a refused operation taken back");
        }
        Ok(())
    }
}

/// Whether a stored record is the one that was to be written.
fn is_same(stored: &Row, wanted: &Row) -> bool {
    stored.header.revision == wanted.header.revision && stored.record == wanted.record
}

fn seq_of(write: &Write) -> Option<u64> {
    match write {
        Write::Create(_, row, _) | Write::Update(_, row, _) => Some(row.seq),
        Write::Put(..) | Write::Remove(..) => None,
    }
}

fn fail_all(writes: Vec<Write>, error: &StoreError) {
    for write in writes {
        write.fail(error);
    }
}

/// Answers a write; `Ok(None)` is that it was applied.
fn answer_write(write: Write, result: Result<Option<Created>, StoreError>) {
    match write {
        Write::Create(_, _, answer) => {
            drop(answer.send(result.map(|created| created.unwrap_or(Created::New))));
        }
        Write::Update(_, _, answer) | Write::Put(_, _, answer) => {
            drop(answer.send(result.map(|_| ())));
        }
        Write::Remove(_, answer) => {
            let was_there = result.is_ok();
            drop(answer.send(Ok(was_there)));
        }
    }
}

/// 63 random bits that are not zero.
pub(super) fn random() -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    Ok((u64::from_le_bytes(bytes) >> 1).max(1))
}
