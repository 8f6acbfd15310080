//! Opens the store: the lock of the leader, the format of the keys, and the run that begins.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::etcd::Attempt;
use crate::etcd::Compare;
use crate::etcd::CompareOp;
use crate::etcd::Config;
use crate::etcd::Connection;
use crate::etcd::EtcdError;
use crate::etcd::LeaderLock;
use crate::etcd::LeaderTerm;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::model::Timestamp;
use crate::operations::change_feed::ChangeFeed;
use crate::operations::change_feed::ChangeHistory;
use crate::operations::change_feed::StoreRun;
use crate::operations::store::error::OpenError;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::entries::encode;
use crate::operations::store::etcd::errors::fenced;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::etcd_store::EtcdStore;
use crate::operations::store::etcd::keys::FORMAT;
use crate::operations::store::etcd::keys::Keys;
use crate::operations::store::etcd::keys::seq_at_end;
use crate::operations::store::etcd::open_keys::OpenKeys;
use crate::operations::store::etcd::reader::Reader;
use crate::operations::store::etcd::writer::Writer;
use crate::operations::store::etcd::writer::WriterParts;
use crate::operations::store::etcd::writer::random;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// Writes that may wait for the writer: beyond it callers wait to hand theirs in.
const WRITES_WAITING_MAX: usize = 1024;
/// Openings of the store that are remembered: a position of an older one cannot be resumed.
const RUNS_KEPT: usize = 1000;
/// Added to the lease while the lock of a gateway that died is waited for.
const LOCK_WAIT_MORE: Duration = Duration::from_secs(2);
/// Pause between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// Renewals within one lease: two may fail.
const RENEWALS: u32 = 3;

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Use,
    /// A copy into it.
    Copy,
}

/// Where the store is, who opens it, and with what.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    /// The cluster.
    pub config: &'a Config,
    /// The name of this gateway.
    pub gateway: String,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

impl EtcdStore {
    /// Takes the lock of the leader and opens the store, or makes it where there is none. Waits for the end of the lease of a
    /// gateway that died.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::InUse`] while another gateway has the lock.
    pub(crate) async fn open(opening: Opening<'_>) -> Result<Self, OpenError> {
        Self::open_locked(opening, Purpose::Use).await
    }

    /// The same for a copy into the store, or the rest of one that was interrupted.
    ///
    /// # Errors
    /// Those of [`EtcdStore::open`].
    pub(crate) async fn open_for_copy(opening: Opening<'_>) -> Result<Self, OpenError> {
        Self::open_locked(opening, Purpose::Copy).await
    }

    async fn open_locked(opening: Opening<'_>, purpose: Purpose) -> Result<Self, OpenError> {
        let connection = Connection::new(opening.config);
        let lock = take_lock(&connection, &opening).await?;
        let term = lock.term().clone();
        let (stopper, lost) = stop_pair();
        let stopper = Arc::new(stopper);
        let signals = (Arc::clone(&stopper), lost);
        match Self::open_keys(connection, &opening, (term, purpose), signals).await {
            Ok(store) => {
                let (end_keeper, ended) = stop_pair();
                *store.0.keeper.lock() = Some(end_keeper);
                let every = renewal_pause(opening.config.lease);
                let keeping = keep_lock(lock, every, ended, (stopper, Arc::clone(&store.0)));
                // Awaited when the store is closed.
                drop(store.0.keeper_task.spawn(keeping));
                Ok(store)
            }
            Err(error) => {
                // So that the next attempt need not wait for the end of the lease; it expires by itself when this fails.
                drop(lock.release().await);
                Err(error)
            }
        }
    }

    /// Opens the store for a gateway that leads already, for as long as it does.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) async fn open_led(
        connection: Connection,
        opening: &Opening<'_>,
        term: LeaderTerm,
        lost: (Arc<Stopper>, Stop),
    ) -> Result<Self, OpenError> {
        Self::open_keys(connection, opening, (term, Purpose::Use), lost).await
    }

    async fn open_keys(
        connection: Connection,
        opening: &Opening<'_>,
        (term, purpose): (LeaderTerm, Purpose),
        (stopper, lost): (Arc<Stopper>, Stop),
    ) -> Result<Self, OpenError> {
        if purpose == Purpose::Use {
            refuse_unfinished_copy(&connection, opening.config).await?;
        }
        let keys = Keys::new(&opening.config.prefix);
        let reader = Arc::new(Reader::new(connection, keys));
        check_format(&reader, opening.config, &term).await?;
        let begun = begin_run(&reader, &term).await;
        let history = begun.map_err(|error| unusable(opening.config, &error))?;
        let state = reader.state().await;
        let state = state.map_err(|error| unusable(opening.config, &error))?;
        let found = reader.find_newest().await;
        found.map_err(|error| unusable(opening.config, &error))?;
        let last_beat = reader.last_heartbeat().await;
        let last_beat = last_beat.map_err(|error| unusable(opening.config, &error))?;
        let last_beat = last_beat.map_or(0, Timestamp::as_millis);
        let feed = Arc::new(ChangeFeed::new(history));
        let writer = Writer::new(WriterParts {
            reader: Arc::clone(&reader),
            term: term.clone(),
            clock: Arc::clone(&opening.clock),
            metrics: opening.metrics.clone(),
            feed: Arc::clone(&feed),
            lost: stopper,
            state,
        });
        let (writes, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let writer_task = Tasks::default();
        // Awaited when the store is closed.
        drop(writer_task.spawn(writer.run(waiting)));
        Ok(Self(Arc::new(OpenKeys {
            reader,
            term,
            writes: Mutex::new(Some(writes)),
            feed,
            gateway: opening.gateway.clone(),
            last_beat: AtomicU64::new(last_beat),
            is_reachable: AtomicBool::new(true),
            lost,
            keeper: Mutex::default(),
            writer_task,
            keeper_task: Tasks::default(),
        })))
    }
}

/// How the store is called in sentences for the operator.
fn name_of(config: &Config) -> String {
    format!("etcd {} at {}", config.prefix, config.endpoints.join(", "))
}

/// The name of the gateway in what it wrote into the key of the leader.
fn name_of_holder(text: &str) -> String {
    #[derive(Deserialize)]
    struct Holder {
        name: String,
    }
    match serde_json::from_str(text) {
        Ok(Holder { name }) => name,
        Err(_) => text.to_owned(),
    }
}

fn unusable(config: &Config, why: &impl ToString) -> OpenError {
    OpenError::File {
        file: name_of(config),
        why: why.to_string(),
    }
}

fn renewal_pause(lease: Duration) -> Duration {
    lease.checked_div(RENEWALS).unwrap_or(lease)
}

async fn take_lock(
    connection: &Connection,
    opening: &Opening<'_>,
) -> Result<LeaderLock, OpenError> {
    let config = opening.config;
    let key = config.leader_key();
    let mark = random().map_err(|error| unusable(config, &error))?;
    let holder = serde_json::json!({ "name": opening.gateway, "attempt": format!("{mark:016x}") });
    let holder = holder.to_string();
    let patience = config.lease.saturating_add(LOCK_WAIT_MORE);
    let give_up = Instant::now().checked_add(patience);
    loop {
        let attempt = LeaderLock::attempt(connection, &key, &holder, config.lease).await;
        let explained = |error| unusable(config, &connection.explain(&error));
        let held_by = match attempt.map_err(explained)? {
            Attempt::Leads(lock) => return Ok(lock),
            Attempt::Held { holder } => holder,
        };
        if give_up.is_none_or(|end| Instant::now() >= end) {
            let (name, other) = (name_of(config), name_of_holder(&held_by));
            return Err(OpenError::InUse(format!("{name} (gateway {other})")));
        }
        sleep(LOCK_PAUSE).await;
    }
}

/// Renews the lease until the store is closed, and frees the lock then.
async fn keep_lock(
    lock: LeaderLock,
    every: Duration,
    ended: Stop,
    (lost, store): (Arc<Stopper>, Arc<OpenKeys>),
) {
    loop {
        tokio::select! {
            biased;
            () = ended.given() => break,
            () = sleep(every) => {}
        }
        match lock.renew().await {
            Ok(()) => store.is_reachable.store(true, Ordering::Release),
            Err(EtcdError::LeaseExpired) => {
                tracing::error!("lease in etcd expired, another gateway may take over");
                lost.stop();
                return;
            }
            // The lease may outlive this: without a majority no lease expires. Every write shows whether it did.
            Err(error) => {
                store.is_reachable.store(false, Ordering::Release);
                tracing::warn!(%error, "lease in etcd not renewed");
            }
        }
    }
    if let Err(error) = lock.release().await {
        tracing::warn!(%error, "lock in etcd not freed, it expires with its lease");
    }
}

/// Only a part of the operations is there while a copy is not finished.
async fn refuse_unfinished_copy(connection: &Connection, config: &Config) -> Result<(), OpenError> {
    let key = Keys::new(&config.prefix).copying();
    let found = connection.read(key, None).await;
    let explained = |error| unusable(config, &connection.explain(&error));
    match found.map_err(explained)?.kvs() {
        [] => Ok(()),
        [_, ..] => Err(OpenError::Damaged {
            file: name_of(config),
            why: "a copy into it was not finished; run the same snapgate store copy again"
                .to_owned(),
        }),
    }
}

/// Writes the format into a new store, and refuses a newer one.
async fn check_format(
    reader: &Reader,
    config: &Config,
    term: &LeaderTerm,
) -> Result<(), OpenError> {
    let key = reader.keys.format();
    let stored = reader.one(key.clone()).await;
    let stored = stored.map_err(|error| unusable(config, &error))?;
    let Some(stored) = stored else {
        let absent = Compare::version(&*key, CompareOp::Equal, 0);
        let put = TxnOp::put(&*key, FORMAT.to_string(), None);
        let make = Txn::new().when([absent, term.compare()]).and_then([put]);
        let written = reader.connection.write(make).await;
        let explained = |error| unusable(config, &reader.connection.explain(&error));
        let written = written.map_err(explained)?;
        return if written.succeeded() {
            Ok(())
        } else {
            Err(unusable(config, &fenced()))
        };
    };
    let text = String::from_utf8_lossy(stored.value());
    match text.parse::<i64>() {
        Ok(found) if found > FORMAT => Err(OpenError::Newer {
            file: name_of(config),
            found,
            known: FORMAT,
        }),
        Ok(found) if found == FORMAT => Ok(()),
        Ok(_) | Err(_) => Err(OpenError::Damaged {
            file: name_of(config),
            why: format!("the key {key} holds {text:?}"),
        }),
    }
}

/// Begins a run: from now on the writes have numbers above all before.
async fn begin_run(reader: &Reader, term: &LeaderTerm) -> Result<ChangeHistory, StoreError> {
    let (state, _) = reader.state().await?;
    let stored = reader.all(reader.keys.all_runs()).await?;
    let mut runs: Vec<StoreRun> = stored
        .iter()
        .filter_map(|run| serde_json::from_slice(run.value()).ok())
        .map(|(base, mark)| StoreRun { base, mark })
        .collect();
    let last = stored.last().and_then(|run| seq_at_end(run.key()));
    let next = last.unwrap_or(0).saturating_add(1);
    let run = StoreRun {
        base: state.number,
        mark: random()?,
    };
    runs.push(run);
    let value = encode(&(run.base, run.mark))?;
    let mut changes = vec![TxnOp::put(reader.keys.run(next), value, None)];
    let too_many = runs.len().saturating_sub(RUNS_KEPT);
    let old = stored.iter().take(too_many.min(100));
    changes.extend(old.map(|run| TxnOp::delete(run.key(), None)));
    let begin = Txn::new().when([term.compare()]).and_then(changes);
    let written = reader.connection.write(begin).await;
    if !written.map_err(|error| unavailable(&error))?.succeeded() {
        return Err(fenced());
    }
    Ok(ChangeHistory {
        runs,
        latest: state.number,
        forgotten: state.forgotten,
    })
}
