//! Opens the SQLite file: the lock against a second process, the checks, and the creation of a new file.

use std::fmt;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::path::Path;
use std::path::PathBuf;

use rusqlite::Connection;
use rusqlite::OpenFlags;

use crate::operations::store::error::OpenError;

/// Marks the file as a store of this program in its header: `snpg`.
const APPLICATION_ID: i64 = 0x736e_7067;
/// The format of the tables. A newer one is refused.
const SCHEMA: i64 = 3;
/// The oldest format that is upgraded when it is opened.
const OLDEST_SCHEMA: i64 = 1;

/// Upgrades format 1 to format 2, in one transaction. A version that knows only format 1 refuses format 2.
const UPGRADE_FROM_1: &str = "
BEGIN IMMEDIATE;
CREATE TABLE annotations(
    backend TEXT NOT NULL,
    vm TEXT NOT NULL,
    backup TEXT NOT NULL,
    identity TEXT,
    written INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY(backend, vm, backup)
) STRICT, WITHOUT ROWID;
UPDATE meta SET value = 2 WHERE name = 'schema';
COMMIT;
";

/// Upgrades format 2 to format 3, in one transaction: the time of acceptance as a column, and an index for every filter of
/// lists, each in the order of lists, which is that of (time, number). SQLite adds the number to each index by itself. The
/// outcome is known once and does not change, so that only the end of an operation writes to that index.
///
/// Every write of a record has a number, by which clients that follow all operations go on where they were. Records of before
/// have number 0. The version before would write without numbers.
const UPGRADE_FROM_2: &str = "
BEGIN IMMEDIATE;
ALTER TABLE operations ADD COLUMN created INTEGER NOT NULL DEFAULT 0;
UPDATE operations SET created = CASE WHEN json_valid(record)
    THEN coalesce(CAST(json_extract(record, '$.operation.created') AS INTEGER), 0) ELSE 0 END;
DROP INDEX by_principal;
DROP INDEX by_target;
DROP INDEX by_vm;
DROP INDEX by_live;
CREATE INDEX by_created ON operations(created);
CREATE INDEX by_verb ON operations(verb, created);
CREATE INDEX by_vm ON operations(vm, created);
CREATE INDEX by_backup ON operations(backup, created);
CREATE INDEX by_principal ON operations(principal, created);
CREATE INDEX by_live ON operations(created) WHERE live = 1;
CREATE INDEX by_live_seq ON operations(seq) WHERE live = 1;
CREATE INDEX by_outcome ON operations(
    (CASE phase WHEN 'not-executed' THEN 'failed' ELSE phase END), created) WHERE live = 0;
ALTER TABLE operations ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX by_changed ON operations(changed) WHERE live = 0;
CREATE TABLE change_runs(run INTEGER PRIMARY KEY, base INTEGER NOT NULL, mark INTEGER NOT NULL) STRICT;
UPDATE meta SET value = 3 WHERE name = 'schema';
COMMIT;
";

/// One key names one operation for each principal, method and target. Stores made before this rule have the index without
/// the last two; the records are the same, and the versions before read them still, so the format is.
const SCOPE_KEYS: &str = "
BEGIN IMMEDIATE;
DROP INDEX IF EXISTS by_key;
CREATE UNIQUE INDEX IF NOT EXISTS by_scoped_key ON operations(principal, idem_key, verb, vm,
    (CASE verb WHEN 'create' THEN '' ELSE backup END)) WHERE idem_key IS NOT NULL;
COMMIT;
";

/// Format 1, from which every later one is made. `auto_vacuum` must come before the tables and before the write-ahead log.
const CREATE_FORMAT_1: &str = "
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 0x736e7067;
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES('schema', 1);
CREATE TABLE operations(
    seq INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    verb TEXT NOT NULL,
    backend TEXT NOT NULL,
    vm TEXT NOT NULL,
    backup TEXT NOT NULL,
    principal TEXT NOT NULL,
    phase TEXT NOT NULL,
    live INTEGER NOT NULL,
    idem_key TEXT,
    idem_fingerprint BLOB,
    expires INTEGER,
    record TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX by_key ON operations(principal, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX by_principal ON operations(principal, seq);
CREATE INDEX by_target ON operations(backup, vm, seq);
CREATE INDEX by_vm ON operations(vm, seq);
CREATE INDEX by_live ON operations(seq) WHERE live = 1;
CREATE INDEX by_expires ON operations(expires) WHERE expires IS NOT NULL;
CREATE INDEX by_unknown ON operations(seq) WHERE phase = 'unknown' AND expires IS NULL;
PRAGMA journal_mode = WAL;
";

/// The lock that keeps a second process out, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Locks the file, creates it if absent, checks it, and opens it for writing.
pub(super) fn open(file: &Path) -> Result<(Connection, Lock), OpenError> {
    let lock = lock(file)?;
    if !exists(file)? {
        if exists(&with_suffix(file, "-wal"))? {
            return Err(damaged(
                file,
                "it is missing, but its write-ahead log exists",
            ));
        }
        create(file)?;
    }
    // SQLite treats an empty file as an empty database and would fill it.
    let bytes = fs::metadata(file)
        .map_err(|error| file_error(file, &error))?
        .len();
    if bytes == 0 {
        return Err(damaged(file, "it is empty"));
    }
    let connection = connect(file).map_err(|error| sqlite_error(file, &error))?;
    let found = check(file, &connection)?;
    configure(&connection).map_err(|error| sqlite_error(file, &error))?;
    for (format, upgrade) in [(1, UPGRADE_FROM_1), (2, UPGRADE_FROM_2)] {
        if found <= format {
            connection
                .execute_batch(upgrade)
                .map_err(|error| sqlite_error(file, &error))?;
        }
    }
    connection
        .execute_batch(SCOPE_KEYS)
        .map_err(|error| sqlite_error(file, &error))?;
    Ok((connection, lock))
}

/// One more connection to the file, which must exist.
pub(super) fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.pragma_update(None, "busy_timeout", 2000)?;
    Ok(connection)
}

/// Synchronous is FULL and cannot be configured: with NORMAL a power cut loses acknowledged commits. No commit copies the log:
/// that is done beside them.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // More than the log has when it is started over under load: a log that grows again makes each commit slower.
    connection.pragma_update(None, "journal_size_limit", 96_i64 << 20)?;
    Ok(())
}

/// Creates the file under another name first, so that a file of the right name is always complete.
fn create(file: &Path) -> Result<(), OpenError> {
    let new_file = with_suffix(file, ".new");
    for left in [
        &new_file,
        &with_suffix(&new_file, "-wal"),
        &with_suffix(&new_file, "-shm"),
    ] {
        match fs::remove_file(left) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_error(left, &error)),
        }
    }
    open_private(OpenOptions::new().write(true).create_new(true), &new_file)?;
    let connection = connect(&new_file).map_err(|error| sqlite_error(&new_file, &error))?;
    for step in [CREATE_FORMAT_1, UPGRADE_FROM_1, UPGRADE_FROM_2, SCOPE_KEYS] {
        connection
            .execute_batch(step)
            .map_err(|error| sqlite_error(&new_file, &error))?;
    }
    connection
        .close()
        .map_err(|(_, error)| sqlite_error(&new_file, &error))?;
    let sync = |path: &Path| File::open(path).and_then(|opened| opened.sync_all());
    sync(&new_file).map_err(|error| file_error(&new_file, &error))?;
    fs::rename(&new_file, file).map_err(|error| file_error(file, &error))?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    sync(folder).map_err(|error| file_error(folder, &error))
}

/// Opens a file that only this user can read if it is created.
fn open_private(options: &OpenOptions, file: &Path) -> Result<File, OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    options
        .clone()
        .mode(0o600)
        .open(file)
        .map_err(|error| file_error(file, &error))
}

fn lock(file: &Path) -> Result<Lock, OpenError> {
    let path = with_suffix(file, ".lock");
    let file_lock = open_private(
        OpenOptions::new().write(true).create(true).truncate(false),
        &path,
    )?;
    match file_lock.try_lock() {
        Ok(()) => Ok(Lock { _file: file_lock }),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(file.display().to_string())),
        Err(TryLockError::Error(error)) => Err(file_error(&path, &error)),
    }
}

/// Returns the format of the file, if the file is a store of this program, undamaged, and of a format that this version reads.
fn check(file: &Path, connection: &Connection) -> Result<i64, OpenError> {
    let number = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(|error| sqlite_error(file, &error))
    };
    if number("PRAGMA application_id")? != APPLICATION_ID {
        return Err(damaged(file, "it is not a store of snapgate"));
    }
    let found = number("SELECT value FROM meta WHERE name = 'schema'")?;
    if found > SCHEMA {
        return Err(OpenError::Newer {
            file: file.display().to_string(),
            found,
            known: SCHEMA,
        });
    }
    if !(OLDEST_SCHEMA..=SCHEMA).contains(&found) {
        return Err(damaged(file, format!("its format {found} does not exist")));
    }
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| sqlite_error(file, &error))?;
    if verdict != "ok" {
        return Err(damaged(file, verdict));
    }
    Ok(found)
}

fn exists(file: &Path) -> Result<bool, OpenError> {
    file.try_exists().map_err(|error| file_error(file, &error))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn file_error(file: &Path, error: &std::io::Error) -> OpenError {
    OpenError::File {
        file: file.display().to_string(),
        why: error.to_string(),
    }
}

fn damaged(file: &Path, why: impl fmt::Display) -> OpenError {
    OpenError::Damaged {
        file: file.display().to_string(),
        why: why.to_string(),
    }
}

pub(super) fn sqlite_error(file: &Path, error: &rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::DiskFull
            | ErrorCode::DatabaseBusy
            | ErrorCode::SystemIoFailure,
        ) => OpenError::File {
            file: file.display().to_string(),
            why: error.to_string(),
        },
        Some(_) | None => damaged(file, error),
    }
}
