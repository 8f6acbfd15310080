//! The promises of the store, kept by the SQLite engine.

use std::fs;
use std::path::Path;

use super::*;
use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::Identity;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::Tag;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::api::Selector;
use crate::operations::testing::NOW;
use crate::operations::testing::delete;
use crate::operations::testing::idempotency;
use crate::operations::testing::operation;
use crate::runtime::SystemClock;

fn try_open(folder: &Path) -> Result<SqliteStore, OpenError> {
    let metrics = Metrics::new().unwrap();
    SqliteStore::open(folder.join("s.db"), SystemClock::shared(), metrics)
}

fn open(folder: &Path) -> SqliteStore {
    try_open(folder).expect("opens")
}

fn seq(number: u64) -> OperationSeq {
    OperationSeq::new(number).unwrap()
}

/// Runs SQL on the file from outside while nobody has it open.
fn tamper(folder: &Path, sql: &str) {
    let db = rusqlite::Connection::open(folder.join("s.db")).unwrap();
    db.execute_batch(sql).unwrap();
}

fn ended(mut it: Operation, expires: Option<Timestamp>) -> Arc<Operation> {
    it.revision = it.revision.next();
    it.phase = Phase::Succeeded;
    it.progress = Progress::DONE;
    it.expires = expires;
    Arc::new(it)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let first = operation(1, "vm", "b");
    let second = Arc::new(operation(2, "vm", "c"));
    let made = store.create(Arc::new(first.clone())).await;
    assert!(matches!(made, Ok(Created::New)), "created: {made:?}");
    store.create(Arc::clone(&second)).await.unwrap();
    let done = ended(first.clone(), None);
    store.update(Arc::clone(&done)).await.unwrap();
    store.beat(NOW).await.unwrap();
    store.beat(Timestamp::default()).await.unwrap();
    store.close().await;
    let refused = store.read(seq(1)).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "closed: {refused:?}"
    );
    let store = open(folder.path());
    assert_eq!(store.read(seq(1)).await.unwrap(), Some(done), "updated");
    assert_eq!(store.live().await.unwrap(), [second], "the unfinished one");
    assert_eq!(store.highest().await.unwrap(), Some(seq(2)), "highest");
    let beat = store.last_beat().await.unwrap();
    assert_eq!(beat, Some(NOW), "the beat does not go back");
    assert_eq!(store.read(seq(3)).await.unwrap(), None, "never made");
    let again = store.create(Arc::new(first.clone())).await;
    assert_eq!(again.unwrap_err(), StoreError::Conflict, "number in use");
    let stale = store.update(Arc::new(first)).await;
    assert_eq!(stale, Err(StoreError::Conflict), "wrong revision");
}

#[tokio::test]
async fn a_key_is_used_once_per_principal_method_and_target() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let with = |number, print| {
        let mut it = operation(number, "vm", "b");
        it.idempotency = Some(idempotency("k", print));
        Arc::new(it)
    };
    store.create(with(1, 7)).await.unwrap();
    match store.create(with(2, 7)).await {
        Ok(Created::Replayed(found)) => assert_eq!(found.seq, seq(1), "the first one"),
        other => panic!("replayed, not {other:?}"),
    }
    let other = store.create(with(3, 8)).await;
    assert_eq!(other.unwrap_err(), StoreError::KeyReused(seq(1)), "reused");
    let mut somebody = (*with(4, 8)).clone();
    somebody.principal = PrincipalName::new("bob").unwrap();
    let made = store.create(Arc::new(somebody)).await;
    assert!(matches!(made, Ok(Created::New)), "another principal");
    let mut elsewhere = (*with(5, 8)).clone();
    elsewhere.intent.target = crate::operations::testing::target("wm", "b");
    let made = store.create(Arc::new(elsewhere)).await;
    assert!(matches!(made, Ok(Created::New)), "another VM: {made:?}");
    let mut method = (*with(6, 8)).clone();
    method.intent.change = crate::model::Change::Delete;
    let made = store.create(Arc::new(method)).await;
    assert!(matches!(made, Ok(Created::New)), "another method: {made:?}");
    assert_eq!(store.live().await.unwrap().len(), 4, "four were made");
    let ada = PrincipalName::new("ada").unwrap();
    let found = store
        .by_key(&ada, &with(1, 7).intent.key_scope(), &idempotency("k", 8))
        .await
        .unwrap();
    assert_eq!(found.map(|it| it.seq), Some(seq(1)), "by key");
}

#[tokio::test]
async fn many_writers_are_committed_together_and_all_answered() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("s.db");
    let store = SqliteStore::open(file, SystemClock::shared(), metrics.clone());
    let store = Arc::new(store.unwrap());
    let made = futures_util::future::join_all((1..=300).map(|number| {
        let store = Arc::clone(&store);
        async move { store.create(Arc::new(operation(number, "vm", "b"))).await }
    }))
    .await;
    let new = made.iter().filter(|it| matches!(it, Ok(Created::New)));
    assert_eq!(new.count(), 300, "all are new");
    assert_eq!(store.live().await.unwrap().len(), 300, "all are there");
    let text = String::from_utf8(metrics.text()).unwrap();
    let count = "snapgate_store_commit_duration_seconds_count{store=\"sqlite\"} ";
    let commits = text
        .lines()
        .find_map(|line| line.strip_prefix(count))
        .unwrap();
    let commits: usize = commits.parse().unwrap();
    assert!((1..300).contains(&commits), "commits are shared: {commits}");
}

/// The numbers of what is stored in these files, each with its revision.
async fn stored(database: &[u8], log: &[u8]) -> Vec<(u64, u64)> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("s.db"), database).unwrap();
    fs::write(folder.path().join("s.db-wal"), log).unwrap();
    let store = open(folder.path());
    let found = store.live().await.unwrap();
    store.close().await;
    let both = found.iter().map(|it| (it.seq.number(), it.revision.0));
    both.collect()
}

#[tokio::test]
async fn a_group_of_writes_is_there_as_a_whole_or_not_at_all() {
    const WRITES: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let metrics = Metrics::new().unwrap();
    let file = folder.path().join("s.db");
    let store = SqliteStore::open(file.clone(), SystemClock::shared(), metrics.clone()).unwrap();
    let mut first = operation(1, "vm", "b");
    store.create(Arc::new(first.clone())).await.unwrap();
    let commits = || {
        let text = String::from_utf8(metrics.text()).unwrap();
        let name = "snapgate_store_commit_duration_seconds_count{";
        let line = text.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.rsplit(' ').next());
        number
            .and_then(|number| number.parse::<usize>().ok())
            .unwrap()
    };
    let before = commits();
    // Nothing can be committed until all have been handed to the writer.
    let gate = rusqlite::Connection::open(&file).unwrap();
    gate.execute_batch("BEGIN IMMEDIATE").unwrap();
    first.revision = first.revision.next();
    let update = store.update(Arc::new(first));
    let creates = (2..=WRITES).map(|it| store.create(Arc::new(operation(it, "vm", "b"))));
    let (updated, created, ()) =
        futures_util::future::join3(update, futures_util::future::join_all(creates), async {
            gate.execute_batch("ROLLBACK").unwrap();
        })
        .await;
    assert_eq!(updated, Ok(()), "updated");
    assert!(created.iter().all(Result::is_ok), "created: {created:?}");
    let groups = commits() - before;
    assert!(groups < 20, "forty writes in {groups} commits");

    let (database, log) = (
        fs::read(&file).unwrap(),
        fs::read(folder.path().join("s.db-wal")).unwrap(),
    );
    // A process or a machine that dies within a commit leaves some of its pages: a head of 32 bytes, frames of 24 + 4096.
    let mut seen = std::collections::BTreeSet::new();
    for frames in 0..=log.len() / 4120 {
        for more in [0, 2000] {
            let length = log.len().min(32 + frames * 4120 + more);
            seen.insert(stored(&database, &log[..length]).await);
        }
    }
    let states: Vec<usize> = seen.iter().map(Vec::len).collect();
    let whole = usize::try_from(WRITES).unwrap();
    assert_eq!(
        states.iter().max(),
        Some(&whole),
        "the whole log: {states:?}"
    );
    let grown = seen.iter().filter(|it| it.len() > 1).count();
    assert!(
        grown <= groups,
        "more states than commits, so a group was there in part: {states:?} of {groups} commits"
    );
    let half = |it: &Vec<(u64, u64)>| it.first() == Some(&(1, 1)) && it.len() == whole;
    assert!(!seen.iter().any(half), "the update came with its group");
}

fn queries() -> Vec<(&'static str, ListQuery, Vec<u64>)> {
    let query = || ListQuery {
        limit: 10,
        ..ListQuery::default()
    };
    let select = |verb, vm: Option<&str>, backup: Option<&str>| ListQuery {
        selector: Selector {
            verb,
            vm: vm.map(|vm| VmId::new(vm).unwrap()),
            backup: backup.map(|backup| BackupId::new(backup).unwrap()),
        },
        ..query()
    };
    vec![
        ("all", query(), vec![5, 4, 3, 2, 1]),
        (
            "limit",
            ListQuery {
                limit: 2,
                ..query()
            },
            vec![5, 4],
        ),
        (
            "before",
            ListQuery {
                before: Some(seq(3)),
                ..query()
            },
            vec![2, 1],
        ),
        (
            "finished",
            ListQuery {
                unfinished: Some(false),
                ..query()
            },
            vec![3],
        ),
        (
            "unfinished",
            ListQuery {
                unfinished: Some(true),
                ..query()
            },
            vec![5, 4, 2, 1],
        ),
        (
            "principal",
            ListQuery {
                principal: PrincipalName::new("bob").ok(),
                ..query()
            },
            vec![5],
        ),
        ("verb", select(Some(Verb::Delete), None, None), vec![4, 2]),
        ("vm", select(None, Some("wm"), None), vec![5, 4]),
        (
            "backup and vm",
            select(None, Some("vm"), Some("c")),
            vec![2],
        ),
    ]
}

#[tokio::test]
async fn lists_are_newest_first_and_filtered() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 1..=5 {
        let mut it = operation(number, if number < 4 { "vm" } else { "wm" }, "b");
        if number % 2 == 0 {
            it.intent = delete(it.target().vm.as_str(), "c");
        }
        if number == 5 {
            it.principal = PrincipalName::new("bob").unwrap();
        }
        store.create(Arc::new(it)).await.unwrap();
    }
    let done = ended(operation(3, "vm", "b"), None);
    store.update(done).await.unwrap();
    for (name, query, expected) in queries() {
        let found = store.list(&query).await.unwrap();
        let numbers: Vec<_> = found.iter().map(|it| it.seq.number()).collect();
        assert_eq!(numbers, expected, "{name}");
    }
}

#[tokio::test]
async fn only_what_is_over_expires_and_its_number_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let later = NOW.plus(std::time::Duration::from_secs(1));
    for (number, expires) in [(1, Some(NOW)), (2, Some(later)), (3, None), (4, Some(NOW))] {
        let it = operation(number, "vm", "b");
        store.create(Arc::new(it.clone())).await.unwrap();
        store.update(ended(it, expires)).await.unwrap();
    }
    assert_eq!(store.expire(NOW, 1).await.unwrap(), 1, "bounded");
    assert_eq!(store.expire(NOW, 9).await.unwrap(), 1, "the other one");
    assert_eq!(store.expire(NOW, 9).await.unwrap(), 0, "no more");
    assert_eq!(store.highest().await.unwrap(), Some(seq(4)), "kept");
    assert_eq!(store.read(seq(4)).await.unwrap(), None, "dropped");
    assert!(store.read(seq(3)).await.unwrap().is_some(), "no end");
}

fn annotated(backup: &str, identity: Option<&str>, name: &str) -> AnnotationRecord {
    AnnotationRecord {
        target: Target {
            vm: VmId::new("vm").unwrap(),
            backup: BackupId::new(backup).unwrap(),
        },
        identity: identity.map(|identity| Identity::new(identity.to_owned())),
        annotation: Annotation {
            name: Some(BackupName::new(name).unwrap()),
            tags: vec![Tag::new("t").unwrap()],
            protected: true,
            ..Annotation::default()
        },
        written: NOW,
    }
}

#[tokio::test]
async fn annotations_are_replaced_removed_and_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (one, two) = (
        BackendName::new("one").unwrap(),
        BackendName::new("two").unwrap(),
    );
    let vm = VmId::new("vm").unwrap();
    let kept = store.annotations();
    let (b, c) = (
        annotated("b", None, "first"),
        annotated("c", Some("7"), "c"),
    );
    for (backend, it) in [(&one, &b), (&one, &c), (&two, &b)] {
        kept.put(backend, it).await.unwrap();
    }
    let again = annotated("b", Some("3"), "second");
    kept.put(&one, &again).await.unwrap();
    store.close().await;
    let closed = kept.get(&one, &b.target).await;
    assert!(closed.is_err(), "closed: {closed:?}");
    let store = open(folder.path());
    let kept = store.annotations();
    assert_eq!(
        kept.list(&one, &vm).await.unwrap(),
        [again.clone(), c.clone()],
        "in order, replaced"
    );
    assert_eq!(
        kept.get(&two, &b.target).await.unwrap(),
        Some(b.clone()),
        "the other backend"
    );
    kept.remove(&one, &again.target).await.unwrap();
    kept.remove(&one, &again.target).await.unwrap();
    assert_eq!(
        kept.get(&one, &again.target).await.unwrap(),
        None,
        "removed"
    );
    assert_eq!(kept.list(&one, &vm).await.unwrap(), [c], "the rest");
    assert_eq!(kept.list(&two, &vm).await.unwrap(), [b], "not the other's");
}

#[tokio::test]
async fn a_store_of_the_format_before_is_opened_and_brought_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.db");
    let store = open(folder.path());
    let before = Arc::new(operation(1, "vm", "b"));
    store.create(Arc::clone(&before)).await.unwrap();
    store.close().await;
    // Format 1 is that of the first version: the same without the table.
    tamper(
        folder.path(),
        "DROP TABLE annotations; UPDATE meta SET value = 1 WHERE name = 'schema'",
    );
    for round in ["brought up", "once only"] {
        let store = open(folder.path());
        assert_eq!(
            store.read(seq(1)).await.unwrap(),
            Some(Arc::clone(&before)),
            "{round}: kept"
        );
        let it = annotated("b", None, round);
        let backend = BackendName::new("one").unwrap();
        store.annotations().put(&backend, &it).await.unwrap();
        store.close().await;
        let db = rusqlite::Connection::open(&file).unwrap();
        let format = "SELECT value FROM meta WHERE name = 'schema'";
        let format: i64 = db.query_row(format, [], |row| row.get(0)).unwrap();
        assert_eq!(format, 2, "{round}: format");
    }
    for (format, expected) in [(0, "never made"), (3, "newer version")] {
        tamper(
            folder.path(),
            &format!("UPDATE meta SET value = {format} WHERE name = 'schema'"),
        );
        let error = try_open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{format}: {error}");
    }
}

/// The version before kept one key for all of a principal's targets.
#[tokio::test]
async fn keys_of_an_older_store_are_known_and_scoped_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let with = |number, vm: &str, print| {
        let mut it = operation(number, vm, "b");
        it.idempotency = Some(idempotency("k", print));
        Arc::new(it)
    };
    store.create(with(1, "vm", 7)).await.unwrap();
    store.close().await;
    tamper(
        folder.path(),
        "DROP INDEX by_scoped_key;
         CREATE UNIQUE INDEX by_key ON operations(principal, idem_key) WHERE idem_key IS NOT NULL;",
    );
    for round in ["brought up", "once only"] {
        let store = open(folder.path());
        let replayed = store.create(with(2, "vm", 7)).await;
        let is_known = matches!(replayed, Ok(Created::Replayed(_)));
        assert!(is_known, "{round}: the request made before: {replayed:?}");
        let reused = store.create(with(3, "vm", 8)).await;
        assert_eq!(
            reused.unwrap_err(),
            StoreError::KeyReused(seq(1)),
            "{round}"
        );
        let vm = format!("vm for {round}");
        let number = 4 + u64::try_from(vm.len()).unwrap();
        let made = store.create(with(number, &vm, 9)).await;
        assert!(matches!(made, Ok(Created::New)), "{round}: {made:?}");
        store.close().await;
    }
}

#[tokio::test]
async fn an_unreadable_record_is_set_aside_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 1..=3 {
        let it = Arc::new(operation(number, "vm", "b"));
        store.create(it).await.unwrap();
    }
    store.close().await;
    tamper(
        folder.path(),
        "UPDATE operations SET record = '{\"format\":9}' WHERE seq = 2",
    );
    let store = open(folder.path());
    let live = store.live().await.unwrap();
    let numbers: Vec<_> = live.iter().map(|it| it.seq.number()).collect();
    assert_eq!(numbers, [1, 3], "the others");
    assert_eq!(store.counts().await.unwrap().set_aside, 1, "counted once");
    let found = store.read(seq(2)).await;
    assert!(
        matches!(found, Err(StoreError::Unavailable(_))),
        "neither there nor gone: {found:?}"
    );
    assert_eq!(store.counts().await.unwrap().set_aside, 1, "still once");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_answers_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.close().await;
    let (connection, lock) = open::open(&folder.path().join("s.db")).unwrap();
    connection
        .pragma_update_and_check(None, "max_page_count", 1, |_| Ok(()))
        .unwrap();
    let failed = Arc::new(AtomicBool::new(false));
    let (jobs, waiting) = mpsc::channel(8);
    let writer = writer::Writer {
        connection,
        clock: SystemClock::shared(),
        metrics: Metrics::new().unwrap(),
        failed: Arc::clone(&failed),
        lock,
    };
    let thread = std::thread::Builder::new()
        .spawn(move || writer.run(waiting))
        .unwrap();
    let file = folder.path().join("s.db");
    let store = SqliteStore(Arc::new(Inner {
        readers: Arc::new(Readers::new(file.clone(), Arc::clone(&failed))),
        file,
        jobs: Mutex::new(Some(jobs)),
        thread: Mutex::new(Some(thread)),
        failed,
    }));
    let mut refused = None;
    for number in 2..50 {
        let mut it = operation(number, "vm", "b");
        it.baseline = crate::model::Evidence::new("x".repeat(4000));
        if let Err(error) = store.create(Arc::new(it)).await {
            refused = Some((number, error));
            break;
        }
    }
    let (number, error) = refused.expect("the disk is full at some point");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(store.read(seq(number)).await.unwrap(), None, "not applied");
    assert!(store.read(seq(1)).await.unwrap().is_some(), "reads go on");
    store.close().await;
}

#[tokio::test]
async fn after_a_fatal_error_everything_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .create(Arc::new(operation(1, "vm", "b")))
        .await
        .unwrap();
    store.0.failed.store(true, Ordering::Release);
    let write = store.create(Arc::new(operation(2, "vm", "b"))).await;
    assert!(matches!(write, Err(StoreError::Fatal(_))), "{write:?}");
    let read = store.read(seq(1)).await;
    assert!(matches!(read, Err(StoreError::Fatal(_))), "{read:?}");
}

#[test]
fn errors_of_the_engine_mean_what_they_must() {
    use rusqlite::ffi;
    let rows = [
        ("fsync", ffi::SQLITE_IOERR_FSYNC, "fatal"),
        ("write", ffi::SQLITE_IOERR_WRITE, "fatal"),
        ("corrupt", ffi::SQLITE_CORRUPT, "fatal"),
        ("not a database", ffi::SQLITE_NOTADB, "fatal"),
        ("full", ffi::SQLITE_FULL, "unavailable"),
        ("busy", ffi::SQLITE_BUSY, "unavailable"),
        ("read-only", ffi::SQLITE_READONLY, "unavailable"),
    ];
    for (name, code, expected) in rows {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(classify(&error).as_str(), expected, "{name}");
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let second = try_open(folder.path()).expect_err("in use");
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    assert!(
        second.to_string().contains("another snapgate process"),
        "a sentence: {second}"
    );
    store.close().await;
    try_open(folder.path()).expect("free again").close().await;
}

#[tokio::test]
async fn what_cannot_be_trusted_is_refused_and_left_alone() {
    type Harm = fn(&Path);
    let file = |folder: &Path| folder.join("s.db");
    let rows: [(&str, Harm, &str); 6] = [
        (
            "newer",
            |it| tamper(it, "UPDATE meta SET value = 3"),
            "newer version",
        ),
        (
            "empty",
            |it| fs::write(it.join("s.db"), "").unwrap(),
            "empty",
        ),
        (
            "something else",
            |it| fs::write(it.join("s.db"), "not a database at all".repeat(99)).unwrap(),
            "left as it is",
        ),
        (
            "another program's",
            |it| tamper(it, "PRAGMA application_id = 5"),
            "not a store of snapgate",
        ),
        (
            "damaged",
            |it| {
                let mut bytes = fs::read(it.join("s.db")).unwrap();
                for byte in &mut bytes[4096..] {
                    *byte ^= 0x5a;
                }
                fs::write(it.join("s.db"), bytes).unwrap();
            },
            "left as it is",
        ),
        (
            "only the log is left",
            |it| fs::rename(it.join("s.db"), it.join("s.db-wal")).unwrap(),
            "write-ahead log",
        ),
    ];
    for (name, harm, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store
            .create(Arc::new(operation(1, "vm", "b")))
            .await
            .unwrap();
        store.close().await;
        harm(folder.path());
        let before = fs::read(file(folder.path())).ok();
        let error = try_open(folder.path()).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
        let after = fs::read(file(folder.path())).ok();
        assert_eq!(before, after, "{name}: left as it was");
    }
}

#[tokio::test]
async fn a_new_file_is_synced_fully_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("s.db.new"), "left by a crash").unwrap();
    let (connection, _lock) = open::open(&folder.path().join("s.db")).unwrap();
    let number = |sql: &str| -> i64 { connection.query_row(sql, [], |it| it.get(0)).unwrap() };
    assert_eq!(number("PRAGMA synchronous"), 2, "full");
    assert_eq!(number("PRAGMA auto_vacuum"), 2, "incremental");
    let journal: String = connection
        .query_row("PRAGMA journal_mode", [], |it| it.get(0))
        .unwrap();
    assert_eq!(journal, "wal", "write-ahead log");
    let mode = fs::metadata(folder.path().join("s.db")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600, "private");
}
