//! Simulated power cuts: what of the unsynced writes reached the disk is a matter of chance; what was acknowledged is not.
//!
//! What is simulated. A workload writes through the store; after each burst of writes was acknowledged the files are
//! copied. Between two copies SQLite wrote and synced the write-ahead log, and then, at a checkpoint only, wrote and
//! synced the database. An image is the older copy plus a random part of the difference to the newer one, in sectors
//! of 512 bytes that each are old, new, zero or torn in the middle: of the log while its sync was under way, or of the
//! database with the whole log, because the log is synced before, or of both, when commits went on while an earlier part of the
//! log was copied. The lengths of the files are anything in between.
//! The index of the log in shared memory is never on the disk. A burst is one to four commits or one commit of several
//! writes; that parts of a later commit are there without the earlier one makes it harsher than a disk is.
//! Not simulated: a disk that lies about a sync (the control below shows that this would be seen), and lost renames.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "an overflow fails the test, as it should"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::simulation::world::Prng;
use super::temporary_folder_in_memory;
use crate::model::Evidence;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Timestamp;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::testing::NOW;
use crate::operations::testing::operation;
use crate::operations::testing::task_ref;
use crate::runtime::SystemClock;
use crate::telemetry::Metrics;

const SECTOR: usize = 512;
const BURSTS: u64 = 700;
const IMAGES_MIN: usize = 100;
/// Bursts after which the log is copied into the database: the store does so by itself after far more.
const CHECKPOINT_EVERY: u64 = 200;

/// Copies of the log beside commits, and the images of each. The bursts of all are fewer than [`CHECKPOINT_EVERY`].
const ROUNDS_BESIDE: usize = 40;
const IMAGES_BESIDE: usize = 5;

/// The two files after a burst, and the revisions that were acknowledged until then.
#[derive(Clone)]
struct Copy {
    database: Vec<u8>,
    log: Vec<u8>,
    acknowledged: BTreeMap<OperationSeq, u64>,
}

impl Copy {
    /// What distinguishes one round of the log from the next.
    fn salt(&self) -> Option<&[u8]> {
        self.log.get(16..24)
    }
}

fn open(folder: &Path) -> SqliteStore {
    let file = folder.join("s.db");
    SqliteStore::open(file, SystemClock::shared(), Metrics::new().unwrap()).expect("opens")
}

/// The next change of an operation: each lives through four writes.
fn changed(operation: &Operation) -> Option<Operation> {
    let event = match operation.revision.0 {
        1 => Event::Start(Evidence::new("x".repeat(5000))),
        2 => Event::Task(task_ref("t")),
        3 => Event::Done(None),
        _ => return None,
    };
    let rules = machine::Rules {
        replay_safe: false,
        settle: Duration::ZERO,
        probe_window: Duration::ZERO,
        accept_ttl: Duration::ZERO,
        resume_ttl: Duration::ZERO,
        retention: Duration::from_secs(1),
    };
    machine::step(operation, event, NOW, &rules).unwrap().state
}

/// Concurrent writers, burst after burst.
struct Workload {
    folder: TempDir,
    store: SqliteStore,
    live: Vec<Operation>,
    last: Copy,
    number: u64,
}

impl Workload {
    fn new() -> Self {
        let folder = temporary_folder_in_memory();
        let store = open(folder.path());
        let nothing = Copy {
            database: Vec::new(),
            log: Vec::new(),
            acknowledged: BTreeMap::new(),
        };
        let mut workload = Self {
            folder,
            store,
            live: Vec::new(),
            last: nothing,
            number: 0,
        };
        workload.last = workload.copy();
        workload
    }

    fn copy(&self) -> Copy {
        let file = |name: &str| fs::read(self.folder.path().join(name));
        let mut acknowledged = self.last.acknowledged.clone();
        acknowledged.extend(
            self.live
                .iter()
                .map(|record| (record.seq, record.revision.0)),
        );
        Copy {
            database: file("s.db").unwrap(),
            log: file("s.db-wal").unwrap_or_default(),
            acknowledged,
        }
    }

    /// Writes until all of it is acknowledged; the files before and after.
    async fn burst(&mut self, prng: &mut Prng) -> (Copy, Copy) {
        self.number += 1;
        let new = operation(self.number, "vm", "b");
        let changes = prng.index(4);
        let changes = self.live.iter().filter_map(changed).take(changes);
        let changes: Vec<Operation> = changes.collect();
        let updates = changes
            .iter()
            .map(|change| self.store.update(Arc::new(change.clone())));
        let (created, updated) = futures_util::future::join(
            self.store.create(Arc::new(new.clone())),
            futures_util::future::join_all(updates),
        )
        .await;
        created.expect("created");
        let failed = updated.into_iter().find(Result::is_err);
        assert_eq!(failed, None, "updated");
        self.live.push(new);
        for change in changes {
            self.live.retain(|old| old.seq != change.seq);
            self.live.push(change);
        }
        if self.number.is_multiple_of(CHECKPOINT_EVERY) {
            checkpoint(self.folder.path());
        }
        let new = self.copy();
        self.live.retain(|record| !record.phase.is_final());
        (std::mem::replace(&mut self.last, new.clone()), new)
    }
}

/// Copies the log into the database as the store does when it is long, in the same order of writes and syncs.
fn checkpoint(folder: &Path) {
    let connection = rusqlite::Connection::open(folder.join("s.db")).unwrap();
    let sql = "PRAGMA wal_checkpoint(PASSIVE)";
    let (busy, log, copied): (i64, i64, i64) = connection
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .expect("copied");
    assert_eq!((busy, log), (0, copied), "all of the log was copied");
}

/// The database after all of this log was copied into it.
fn with_log_copied(begun: &Copy) -> Vec<u8> {
    let folder = temporary_folder_in_memory();
    let file = folder.path().join("s.db");
    fs::write(&file, &begun.database).unwrap();
    fs::write(folder.path().join("s.db-wal"), &begun.log).unwrap();
    checkpoint(folder.path());
    fs::read(file).unwrap()
}

/// One file after the power cut: a random part of what was being written reached the disk.
fn torn(old: &[u8], new: &[u8], prng: &mut Prng) -> Vec<u8> {
    let kept = [0, 500, 900, 1000][prng.index(4)];
    let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
    let length = match prng.below(3) {
        0 => old.len(),
        1 => new.len(),
        _ => short + prng.index(long - short + 1),
    };
    let mut image = vec![0; length];
    for (at, sector) in image.chunks_mut(SECTOR).enumerate() {
        let from = at * SECTOR;
        let part = |of: &[u8]| {
            of.get(from..of.len().min(from + sector.len()))
                .map(<[u8]>::to_vec)
        };
        let (before, after) = (part(old).unwrap_or_default(), part(new).unwrap_or_default());
        sector[..before.len()].copy_from_slice(&before);
        if before == after {
            continue;
        }
        let reached = if prng.per_mille(kept) {
            after.len()
        } else if prng.per_mille(100) {
            prng.index(SECTOR)
        } else {
            0
        };
        let reached = reached.min(after.len());
        sector[..reached].copy_from_slice(&after[..reached]);
    }
    image
}

/// What is wrong with an image: an acknowledged write that is missing, or anything that cannot be read.
async fn faults(database: &[u8], log: &[u8], acknowledged: &BTreeMap<OperationSeq, u64>) -> usize {
    let folder = temporary_folder_in_memory();
    fs::write(folder.path().join("s.db"), database).unwrap();
    if !log.is_empty() {
        fs::write(folder.path().join("s.db-wal"), log).unwrap();
    }
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("s.db");
    let Ok(store) = SqliteStore::open(file, SystemClock::shared(), metrics) else {
        return acknowledged.len().max(1);
    };
    let found = everything(&store).await;
    let mut wrong = 0;
    for (seq, revision) in acknowledged {
        let there = found.get(seq).is_some_and(|record| {
            record.revision.0 >= *revision && machine::check_invariants(record).is_ok()
        });
        wrong += usize::from(!there);
    }
    let live = store.unfinished().await.expect("the index is whole");
    wrong += live.iter().filter(|record| record.phase.is_final()).count();
    wrong += store.counts().await.expect("counts").set_aside;
    let again = operation(9_000_000, "vm", "after the cut");
    let written = store.create(Arc::new(again)).await;
    wrong += usize::from(written.is_err());
    assert_eq!(
        store.remove_expired(Timestamp::default(), 9).await,
        Ok(0),
        "works"
    );
    store.close().await;
    wrong
}

async fn everything(store: &SqliteStore) -> BTreeMap<OperationSeq, Arc<Operation>> {
    let mut all = BTreeMap::new();
    loop {
        let query = ListQuery {
            start: all.keys().next().copied().map(ListStart::AfterOperation),
            limit: 100,
            ..ListQuery::default()
        };
        let page = store.list(&query).await.expect("readable");
        if page.operations.is_empty() {
            return all;
        }
        all.extend(
            page.operations
                .into_iter()
                .map(|record| (record.seq, record)),
        );
    }
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut prng = Prng::new(20_261_124);
    let mut workload = Workload::new();
    let (mut in_log, mut in_database, mut checked) = (0, 0, 0);
    for burst in 1..=BURSTS {
        let (old, new) = workload.burst(&mut prng).await;
        let checkpoint = old.database != new.database;
        if checkpoint && old.salt() != new.salt() {
            // The log was begun again within the burst: what was synced when is not known from two copies.
            continue;
        }
        if checkpoint {
            for image in 0..20 {
                // The log was synced before the database was touched, so all of the burst is in it, and demanded.
                let database = torn(&old.database, &new.database, &mut prng);
                let wrong = faults(&database, &new.log, &new.acknowledged).await;
                assert_eq!(wrong, 0, "image {image} of the checkpoint in burst {burst}");
                in_database += 1;
                checked += new.acknowledged.len();
            }
        } else if prng.per_mille(200) {
            let log = torn(&old.log, &new.log, &mut prng);
            let wrong = faults(&old.database, &log, &old.acknowledged).await;
            assert_eq!(wrong, 0, "image of burst {burst}");
            in_log += 1;
            checked += old.acknowledged.len();
        }
    }
    assert!(in_log >= IMAGES_MIN, "cuts during commits: {in_log}");
    assert!(in_database >= 20, "cuts during checkpoints: {in_database}");
    super::simulation::print_line(&format!(
        "power cuts: {in_log} images during commits, {in_database} during checkpoints, \
         {checked} acknowledged operations checked, 0 lost\n"
    ));
}

#[tokio::test]
async fn a_power_cut_while_the_log_is_copied_beside_commits_loses_nothing() {
    let mut prng = Prng::new(20_261_130);
    let mut workload = Workload::new();
    let folder = workload.folder.path().to_owned();
    let mut checked = 0;
    for round in 0..ROUNDS_BESIDE {
        // The copy of the log begins with what is in it now, and commits go on.
        let (_, begun) = workload.burst(&mut prng).await;
        workload.burst(&mut prng).await;
        let (old, new) = workload.burst(&mut prng).await;
        assert!(begun.database == new.database, "not copied yet");
        let copied = with_log_copied(&begun);
        assert!(copied != begun.database, "copied in round {round}");
        for image in 0..IMAGES_BESIDE {
            let database = torn(&begun.database, &copied, &mut prng);
            let log = torn(&old.log, &new.log, &mut prng);
            let wrong = faults(&database, &log, &old.acknowledged).await;
            assert_eq!(wrong, 0, "image {image} of round {round}");
            checked += old.acknowledged.len();
        }
        // The log begins again with the next write.
        checkpoint(&folder);
        workload.last = workload.copy();
    }
    super::simulation::print_line(&format!(
        "power cuts: {} images while the log was copied beside commits, {checked} acknowledged operations checked, 0 lost\n",
        ROUNDS_BESIDE * IMAGES_BESIDE
    ));
}

#[tokio::test]
async fn acknowledging_before_the_sync_would_be_noticed() {
    let mut prng = Prng::new(7);
    let mut workload = Workload::new();
    let (mut bad, mut images) = (0, 0);
    for _ in 0..30 {
        let (old, new) = workload.burst(&mut prng).await;
        let log = torn(&old.log, &new.log, &mut prng);
        bad += usize::from(faults(&old.database, &log, &new.acknowledged).await > 0);
        images += 1;
    }
    assert!(bad * 3 > images, "{bad} of {images} images lost something");
}
