//! Opening a file: older and newer formats, damage, the lock against a second process.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::annotations::annotated;
use super::*;
use crate::model::BackendName;
use crate::operations::store::Created;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::sqlite::open;
use crate::operations::testing::idempotency;
use crate::operations::testing::operation;

#[tokio::test]
async fn a_store_of_the_format_before_is_upgraded_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.db");
    let store = open(folder.path());
    let before = Arc::new(operation(1, "vm", "b"));
    store.create(Arc::clone(&before)).await.unwrap();
    store.close().await;
    tamper(folder.path(), FORMAT_2);
    for round in ["upgraded", "once only"] {
        let store = open(folder.path());
        assert_eq!(
            store.read(seq(1)).await.unwrap(),
            Some(Arc::clone(&before)),
            "{round}: kept"
        );
        let annotation = annotated("b", None, round);
        let backend = BackendName::new("one").unwrap();
        store
            .annotations()
            .put(&backend, &annotation)
            .await
            .unwrap();
        store.close().await;
        let db = rusqlite::Connection::open(&file).unwrap();
        let format = "SELECT value FROM meta WHERE name = 'schema'";
        let format: i64 = db.query_row(format, [], |row| row.get(0)).unwrap();
        assert_eq!(format, 3, "{round}: format");
        let created = "SELECT created FROM operations WHERE seq = 1";
        let created: i64 = db.query_row(created, [], |row| row.get(0)).unwrap();
        let expected = i64::try_from(before.created.as_millis()).unwrap();
        assert_eq!(created, expected, "{round}: from the record");
    }
    for (format, expected) in [(0, "does not exist"), (4, "newer version")] {
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
async fn keys_of_an_older_store_are_found_and_scoped_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let with_key = |number, vm: &str, fingerprint| {
        let mut operation = operation(number, vm, "b");
        operation.idempotency = Some(idempotency("k", fingerprint));
        Arc::new(operation)
    };
    store.create(with_key(1, "vm", 7)).await.unwrap();
    store.close().await;
    tamper(
        folder.path(),
        "DROP INDEX by_scoped_key;
         CREATE UNIQUE INDEX by_key ON operations(principal, idem_key) WHERE idem_key IS NOT NULL;",
    );
    for round in ["upgraded", "once only"] {
        let store = open(folder.path());
        let replayed = store.create(with_key(2, "vm", 7)).await;
        let is_known = matches!(replayed, Ok(Created::Replayed(_)));
        assert!(is_known, "{round}: the request made before: {replayed:?}");
        let reused = store.create(with_key(3, "vm", 8)).await;
        assert_eq!(
            reused.unwrap_err(),
            StoreError::KeyReused(seq(1)),
            "{round}"
        );
        let vm = format!("vm for {round}");
        let number = 4 + u64::try_from(vm.len()).unwrap();
        let made = store.create(with_key(number, &vm, 9)).await;
        assert!(matches!(made, Ok(Created::New)), "{round}: {made:?}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_second_process_cannot_open_the_store() {
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
async fn what_cannot_be_trusted_is_refused_and_not_changed() {
    type Damage = fn(&Path);
    let file = |folder: &Path| folder.join("s.db");
    let rows: [(&str, Damage, &str); 6] = [
        (
            "newer",
            |folder| tamper(folder, "UPDATE meta SET value = 4"),
            "newer version",
        ),
        (
            "empty",
            |folder| fs::write(folder.join("s.db"), "").unwrap(),
            "empty",
        ),
        (
            "something else",
            |folder| fs::write(folder.join("s.db"), "not a database at all".repeat(99)).unwrap(),
            "left as it is",
        ),
        (
            "another program's",
            |folder| tamper(folder, "PRAGMA application_id = 5"),
            "not a store of snapgate",
        ),
        (
            "damaged",
            |folder| {
                let mut bytes = fs::read(folder.join("s.db")).unwrap();
                for byte in &mut bytes[4096..] {
                    *byte ^= 0x5a;
                }
                fs::write(folder.join("s.db"), bytes).unwrap();
            },
            "left as it is",
        ),
        (
            "only the log is left",
            |folder| fs::rename(folder.join("s.db"), folder.join("s.db-wal")).unwrap(),
            "write-ahead log",
        ),
    ];
    for (name, damage, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store
            .create(Arc::new(operation(1, "vm", "b")))
            .await
            .unwrap();
        store.close().await;
        damage(folder.path());
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
    let number = |sql: &str| -> i64 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(number("PRAGMA synchronous"), 2, "full");
    assert_eq!(number("PRAGMA auto_vacuum"), 2, "incremental");
    let journal: String = connection
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(journal, "wal", "write-ahead log");
    let mode = fs::metadata(folder.path().join("s.db")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600, "private");
}
