//! Copies a whole store into another one, of the same engine or the other, and verifies stores. No gateway uses them meanwhile.

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::operations::config::StoreLocation;
use crate::operations::store::AnnotationRow;
use crate::operations::store::EtcdStore;
use crate::operations::store::OpenError;
use crate::operations::store::Opening;
use crate::operations::store::Row;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store::StoreTransfer;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Records that are read and written together.
const ROWS_AT_ONCE: u16 = 200;
/// Added to the name of a file while a copy into it is not finished.
const UNFINISHED: &str = ".copying";
/// Findings that are listed.
const FINDINGS_MAX: usize = 20;

/// Why a store was not copied or verified. Each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StoreCopyError {
    /// One of the stores cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing to copy.
    #[error("no operation store at {0}")]
    Absent(String),
    /// The target holds something.
    #[error("{0} is not empty; a copy is made into an empty store only")]
    NotEmpty(String),
    /// Reading or writing failed.
    #[error("{store}: {error}; run the same command again to go on")]
    Store {
        /// Which of them.
        store: String,
        /// Why.
        error: String,
    },
    /// The copy is not the same as the source.
    #[error(
        "the copy differs from its source: {copy} instead of {source_summary}; remove what is in the target and start again"
    )]
    Differs {
        /// What the source holds.
        source_summary: StoreSummary,
        /// What the target holds.
        copy: StoreSummary,
    },
}

/// What a store holds: equal for equal contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSummary {
    /// Records of operations, those included that this version cannot decode.
    pub records: u64,
    /// Annotations of backups.
    pub annotations: u64,
    /// BLAKE3 over all of them and the numbers of the store, in hexadecimal digits.
    pub hash: String,
}

impl std::fmt::Display for StoreSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} records, {} annotations, hash {}",
            self.records, self.annotations, self.hash
        )
    }
}

/// What was found in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreVerdict {
    /// What it holds.
    pub summary: StoreSummary,
    /// Records that this version cannot decode.
    pub unreadable: u64,
    /// What is wrong, at most some of it. Sentences.
    pub findings: Vec<String>,
}

/// An open store, by what is needed here.
struct OpenStore {
    name: String,
    store: Arc<dyn Store>,
    transfer: Arc<dyn StoreTransfer>,
}

impl OpenStore {
    fn new<S: Store + StoreTransfer + 'static>(name: String, store: S) -> Self {
        let store = Arc::new(store);
        Self {
            name,
            store: Arc::<S>::clone(&store),
            transfer: store,
        }
    }

    fn failed(&self, error: &StoreError) -> StoreCopyError {
        StoreCopyError::Store {
            store: self.name.clone(),
            error: error.to_string(),
        }
    }

    async fn rows(&self, after: u64) -> Result<Vec<Row>, StoreCopyError> {
        let rows = self.transfer.export_rows(after, ROWS_AT_ONCE).await;
        rows.map_err(|error| self.failed(&error))
    }

    async fn annotations(&self) -> Result<Vec<AnnotationRow>, StoreCopyError> {
        let found = self.transfer.export_annotations().await;
        found.map_err(|error| self.failed(&error))
    }
}

/// Opens stores in the same way.
#[derive(Clone, Debug)]
pub struct StoreOpener {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where commits are counted.
    pub metrics: Metrics,
}

impl StoreOpener {
    async fn file(&self, file: &Path, name: String) -> Result<OpenStore, StoreCopyError> {
        let (clock, metrics) = (Arc::clone(&self.clock), self.metrics.clone());
        let path = file.to_owned();
        let opened = tokio::task::spawn_blocking(move || SqliteStore::open(path, clock, metrics));
        let opened = opened.await.map_err(|error| StoreCopyError::Store {
            store: name.clone(),
            error: error.to_string(),
        })??;
        Ok(OpenStore::new(name, opened))
    }

    async fn existing(&self, location: &StoreLocation) -> Result<OpenStore, StoreCopyError> {
        match location {
            StoreLocation::File(file) if !file.exists() => {
                Err(StoreCopyError::Absent(location.to_string()))
            }
            StoreLocation::File(file) => self.file(file, location.to_string()).await,
            StoreLocation::Etcd(config) => {
                let opened = EtcdStore::open(self.opening(config)).await?;
                Ok(OpenStore::new(location.to_string(), opened))
            }
        }
    }

    async fn target(&self, location: &StoreLocation) -> Result<OpenStore, StoreCopyError> {
        let name = location.to_string();
        let opened = match location {
            StoreLocation::File(file) if file.exists() => {
                return Err(StoreCopyError::NotEmpty(name));
            }
            StoreLocation::File(file) => self.file(&unfinished(file), name).await?,
            StoreLocation::Etcd(config) => {
                let opened = EtcdStore::open_for_copy(self.opening(config)).await?;
                OpenStore::new(name, opened)
            }
        };
        let begun = opened.transfer.begin_import().await;
        let refused = match begun {
            Ok(true) => return Ok(opened),
            Ok(false) => StoreCopyError::NotEmpty(opened.name.clone()),
            Err(error) => opened.failed(&error),
        };
        opened.store.close().await;
        Err(refused)
    }

    fn opening<'a>(&self, config: &'a crate::etcd::Config) -> Opening<'a> {
        Opening {
            config,
            gateway: "snapgate-store".to_owned(),
            clock: Arc::clone(&self.clock),
            metrics: self.metrics.clone(),
        }
    }

    /// Copies all that is in one store into another one, which must be empty or hold a part of the same copy, and compares
    /// them. The source is left as it is. `progress` is called with the number of records that are there so far.
    ///
    /// # Errors
    /// [`StoreCopyError`]; a copy that was interrupted goes on when it is run again.
    pub async fn copy(
        &self,
        from: &StoreLocation,
        to: &StoreLocation,
        progress: &mut dyn FnMut(u64),
    ) -> Result<StoreSummary, StoreCopyError> {
        let source = self.existing(from).await?;
        let target = match self.target(to).await {
            Ok(target) => target,
            Err(error) => {
                source.store.close().await;
                return Err(error);
            }
        };
        let copied = copy_all(&source, &target, progress).await;
        source.store.close().await;
        target.store.close().await;
        let summary = copied?;
        if let StoreLocation::File(file) = to {
            let failed = |error: io::Error| StoreCopyError::Store {
                store: file.display().to_string(),
                error: error.to_string(),
            };
            finish_file(file).map_err(failed)?;
        }
        Ok(summary)
    }

    /// Reads all that is in a store, decodes every record, and compares its indexes with its records.
    ///
    /// # Errors
    /// [`StoreCopyError`] when it cannot be read; what is wrong with it is in the verdict.
    pub async fn verify(&self, location: &StoreLocation) -> Result<StoreVerdict, StoreCopyError> {
        let opened = self.existing(location).await?;
        let verdict = verify_all(&opened).await;
        opened.store.close().await;
        verdict
    }
}

fn unfinished(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// Gives a complete file its name.
fn finish_file(file: &Path) -> io::Result<()> {
    let copied = unfinished(file);
    fs::rename(&copied, file)?;
    let mut lock = copied.into_os_string();
    lock.push(".lock");
    fs::remove_file(lock)?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

async fn copy_all(
    source: &OpenStore,
    target: &OpenStore,
    progress: &mut dyn FnMut(u64),
) -> Result<StoreSummary, StoreCopyError> {
    let (mut after, mut done) = (0, 0_u64);
    loop {
        let rows = source.rows(after).await?;
        let Some(last) = rows.last() else {
            break;
        };
        after = last.seq;
        let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let seqs: Vec<u64> = rows.iter().map(|row| row.seq).collect();
        let failed = |error: StoreError| target.failed(&error);
        let present = target.transfer.find_rows(&seqs).await.map_err(failed)?;
        let missing: Vec<Row> = rows
            .into_iter()
            .filter(|row| !present.contains(row))
            .collect();
        target.transfer.import_rows(missing).await.map_err(failed)?;
        done = done.saturating_add(count);
        progress(done);
    }
    let annotations = source.annotations().await?;
    let numbers = source.transfer.export_numbers().await;
    let numbers = numbers.map_err(|error| source.failed(&error))?;
    let failed = |error: StoreError| target.failed(&error);
    let imported = target.transfer.import_annotations(annotations).await;
    imported.map_err(failed)?;
    let imported = target.transfer.import_numbers(&numbers).await;
    imported.map_err(failed)?;
    let (source_summary, copy) = (summarize(source).await?, summarize(target).await?);
    if source_summary != copy {
        return Err(StoreCopyError::Differs {
            source_summary,
            copy,
        });
    }
    target.transfer.end_import().await.map_err(failed)?;
    Ok(copy)
}

/// Takes parts one after the other, so that no two sequences of parts have the same hash.
struct PartsHash(blake3::Hasher);

impl PartsHash {
    fn add(&mut self, part: &str) {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.0.update(&length.to_le_bytes());
        self.0.update(part.as_bytes());
    }

    fn add_row(&mut self, row: &Row) {
        self.add(&row.seq.to_string());
        // Members in the order of their declaration: the same for equal headers.
        self.add(&serde_json::to_string(&row.header).unwrap_or_default());
        self.add(&row.record);
    }
}

async fn summarize(opened: &OpenStore) -> Result<StoreSummary, StoreCopyError> {
    let mut hash = PartsHash(blake3::Hasher::new());
    let (mut after, mut records) = (0, 0_u64);
    loop {
        let rows = opened.rows(after).await?;
        let Some(last) = rows.last() else {
            break;
        };
        after = last.seq;
        records = records.saturating_add(u64::try_from(rows.len()).unwrap_or(u64::MAX));
        rows.iter().for_each(|row| hash.add_row(row));
    }
    finish_summary(opened, hash, records).await
}

async fn finish_summary(
    opened: &OpenStore,
    mut hash: PartsHash,
    records: u64,
) -> Result<StoreSummary, StoreCopyError> {
    let annotations = opened.annotations().await?;
    for row in &annotations {
        let identity = row.identity.as_deref();
        let written = row.written.to_string();
        for part in [
            &*row.backend,
            &*row.vm,
            &*row.backup,
            identity.map_or("", |_| "identity"),
            identity.unwrap_or_default(),
            &*written,
            &*row.annotation,
        ] {
            hash.add(part);
        }
    }
    let numbers = opened.transfer.export_numbers().await;
    let numbers = numbers.map_err(|error| opened.failed(&error))?;
    for number in [
        numbers.latest,
        numbers.highest,
        numbers.beat.unwrap_or_default(),
    ] {
        hash.add(&number.to_string());
    }
    Ok(StoreSummary {
        records,
        annotations: u64::try_from(annotations.len()).unwrap_or(u64::MAX),
        hash: hash.0.finalize().to_hex().to_string(),
    })
}

async fn verify_all(opened: &OpenStore) -> Result<StoreVerdict, StoreCopyError> {
    let structure = opened.transfer.check_structure().await;
    let mut findings = structure.map_err(|error| opened.failed(&error))?;
    let mut hash = PartsHash(blake3::Hasher::new());
    let (mut after, mut records, mut unreadable) = (0, 0_u64, 0_u64);
    loop {
        let rows = opened.rows(after).await?;
        let Some(last) = rows.last() else {
            break;
        };
        after = last.seq;
        for row in &rows {
            records = records.saturating_add(1);
            hash.add_row(row);
            match row.decode() {
                Ok(operation) => findings.extend(disagreement(row, &operation)),
                Err(_) => unreadable = unreadable.saturating_add(1),
            }
        }
    }
    findings.truncate(FINDINGS_MAX);
    Ok(StoreVerdict {
        summary: finish_summary(opened, hash, records).await?,
        unreadable,
        findings,
    })
}

/// What stands beside a record and not in it.
fn disagreement(row: &Row, operation: &crate::model::Operation) -> Option<String> {
    let mut expected = Row::of(operation).ok()?;
    expected.header.changed = row.header.changed;
    // The record may be of an older format, and is the same then.
    expected.record.clone_from(&row.record);
    (expected != *row).then(|| {
        format!(
            "record {}: what is stored beside it is of another state",
            row.seq
        )
    })
}
