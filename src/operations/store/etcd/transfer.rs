//! Copies records into and out of a store on etcd that no gateway uses.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::etcd::GetOptions;
use crate::etcd::KeyValue;
use crate::etcd::Txn;
use crate::etcd::TxnOp;
use crate::operations::change_feed::StoreRun;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::annotations::StoredAnnotation;
use crate::operations::store::etcd::batch::all_keys;
use crate::operations::store::etcd::entries::decode_row;
use crate::operations::store::etcd::entries::encode;
use crate::operations::store::etcd::errors::fenced;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::etcd_store::EtcdStore;
use crate::operations::store::etcd::keys::seq_at_end;
use crate::operations::store::etcd::open_keys::OpenKeys;
use crate::operations::store::etcd::state::WriterState;
use crate::operations::store::etcd::walk::Direction;
use crate::operations::store::etcd::walk::Walk;
use crate::operations::store::etcd::writer::random;
use crate::operations::store::row::Row;
use crate::operations::store::transfer::AnnotationRow;
use crate::operations::store::transfer::StoreNumbers;
use crate::operations::store::transfer::StoreTransfer;

/// Keys of one transaction; etcd takes 128 unless it is configured otherwise.
const KEYS_AT_ONCE: usize = 120;
/// Keys of one read.
const PAGE: i64 = 1000;
/// Findings that are listed.
const FINDINGS_MAX: usize = 20;
/// Bytes of one transaction, unless one record has more: etcd takes 1.5 MiB.
const BYTES_AT_ONCE: usize = 512 * 1024;

impl OpenKeys {
    /// Writes what fits into few transactions, as long as this process has the lock.
    async fn write_all(&self, operations: Vec<(usize, TxnOp)>) -> Result<(), StoreError> {
        let (mut group, mut size) = (Vec::new(), 0_usize);
        for (bytes, operation) in operations {
            let is_full = group.len() >= KEYS_AT_ONCE;
            if is_full || (size.saturating_add(bytes) > BYTES_AT_ONCE && !group.is_empty()) {
                self.write_group(std::mem::take(&mut group)).await?;
                size = 0;
            }
            size = size.saturating_add(bytes);
            group.push(operation);
        }
        if group.is_empty() {
            return Ok(());
        }
        self.write_group(group).await
    }

    async fn write_group(&self, operations: Vec<TxnOp>) -> Result<(), StoreError> {
        let transaction = Txn::new().when([self.term.compare()]).and_then(operations);
        let written = self.reader.connection.write(transaction).await;
        match written {
            Ok(answer) if answer.succeeded() => Ok(()),
            Ok(_) => Err(fenced()),
            // Written again by the next attempt, with the same result.
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// The keys between two, in order, a page at a time.
    async fn page(&self, from: &[u8], end: &str) -> Result<Vec<KeyValue>, StoreError> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE);
        let found = self.reader.connection.read(from, Some(options)).await;
        Ok(found.map_err(|error| unavailable(&error))?.take_kvs())
    }

    /// How many keys of each family there are, but for those of records; a family is what stands before the first `/`.
    async fn count_families(&self) -> Result<BTreeMap<String, usize>, StoreError> {
        let mut found = BTreeMap::new();
        for family in [
            "created",
            "verb",
            "vm",
            "backup",
            "principal",
            "live",
            "unfinished",
            "outcome",
            "changed",
            "expires",
            "unknown",
            "key",
        ] {
            let prefix = format!("{}{family}/", self.reader.keys.all());
            let count = self.reader.count(prefix).await?;
            found.insert(family.to_owned(), count);
        }
        Ok(found)
    }
}

#[async_trait]
impl StoreTransfer for EtcdStore {
    async fn export_rows(&self, after: u64, max: u16) -> Result<Vec<Row>, StoreError> {
        let reader = &self.0.reader;
        let left = (u128::from(after).saturating_add(1), u128::from(u64::MAX));
        let prefix = reader.keys.operations();
        let mut walk = Walk::along_numbers(&reader.connection, prefix, Direction::Upwards, left);
        let step = walk.step().await.map_err(|error| unavailable(&error))?;
        let rows = step.into_iter().flatten().take(max.into()).map(|stored| {
            let seq = seq_at_end(stored.key()).unwrap_or_default();
            decode_row(seq, stored.value())
        });
        rows.collect()
    }

    async fn export_annotations(&self) -> Result<Vec<AnnotationRow>, StoreError> {
        let prefix = self.0.reader.keys.all_annotations();
        let end = format!("{}annotation0", self.0.reader.keys.all());
        let mut from = prefix.clone().into_bytes();
        let mut found = Vec::new();
        loop {
            let page = self.0.page(&from, &end).await?;
            let Some(last) = page.last() else {
                break;
            };
            from = last.key().to_vec();
            from.push(0);
            for stored in &page {
                let annotation = StoredAnnotation::decode(stored.value())?;
                let key = String::from_utf8_lossy(stored.key()).into_owned();
                let rest = key.strip_prefix(&prefix).unwrap_or_default();
                let backend = rest.split('/').next().unwrap_or_default();
                found.push(annotation.into_row(backend.to_owned())?);
            }
        }
        found.sort();
        Ok(found)
    }

    async fn export_numbers(&self) -> Result<StoreNumbers, StoreError> {
        let reader = &self.0.reader;
        let (state, _) = reader.state().await?;
        let beat = reader.last_heartbeat().await?;
        let runs = reader.all(reader.keys.all_runs()).await?;
        let runs = runs
            .iter()
            .filter_map(|run| serde_json::from_slice(run.value()).ok())
            .map(|(base, mark)| StoreRun { base, mark });
        Ok(StoreNumbers {
            latest: state.number,
            forgotten: state.forgotten,
            highest: state.highest,
            beat: beat.map(crate::model::Timestamp::as_millis),
            runs: runs.collect(),
        })
    }

    async fn begin_import(&self) -> Result<bool, StoreError> {
        let reader = &self.0.reader;
        let key = reader.keys.copying();
        if reader.one(key.clone()).await?.is_some() {
            return Ok(true);
        }
        let operations = reader.count(reader.keys.operations()).await?;
        let annotations = reader.count(reader.keys.all_annotations()).await?;
        if operations > 0 || annotations > 0 {
            return Ok(false);
        }
        self.0.write_group(vec![TxnOp::put(key, "", None)]).await?;
        Ok(true)
    }

    async fn end_import(&self) -> Result<(), StoreError> {
        let key = self.0.reader.keys.copying();
        self.0.write_group(vec![TxnOp::delete(key, None)]).await
    }

    async fn find_rows(&self, seqs: &[u64]) -> Result<Vec<Row>, StoreError> {
        let found = self.0.reader.rows(seqs).await?;
        Ok(found.into_iter().map(|stored| stored.row).collect())
    }

    async fn import_rows(&self, rows: Vec<Row>) -> Result<(), StoreError> {
        let mut puts = Vec::new();
        for row in &rows {
            for (key, value) in all_keys(&self.0.reader.keys, row)? {
                puts.push((value.len(), TxnOp::put(key, value, None)));
            }
        }
        self.0.write_all(puts).await
    }

    async fn import_annotations(&self, annotations: Vec<AnnotationRow>) -> Result<(), StoreError> {
        let mut puts = Vec::new();
        for row in &annotations {
            let key = self
                .0
                .reader
                .keys
                .annotation_of(&row.backend, &row.vm, &row.backup);
            let value = encode(&StoredAnnotation::from_row(row)?)?;
            puts.push((value.len(), TxnOp::put(key, value, None)));
        }
        self.0.write_all(puts).await
    }

    async fn import_numbers(&self, numbers: &StoreNumbers) -> Result<(), StoreError> {
        let keys = &self.0.reader.keys;
        let state = WriterState {
            number: numbers.latest,
            highest: numbers.highest,
            forgotten: numbers.forgotten,
            batch: random()?,
        };
        let mut changes = vec![(0, TxnOp::put(keys.state(), state.encode()?, None))];
        if let Some(beat) = numbers.beat {
            let key = keys.beat(&self.0.gateway);
            changes.push((0, TxnOp::put(key, beat.to_string(), None)));
        }
        let present = self.0.reader.all(keys.all_runs()).await?;
        for run in &present {
            changes.push((0, TxnOp::delete(run.key(), None)));
        }
        self.0.write_all(changes).await?;
        let mut runs = Vec::new();
        for (number, run) in (1..).zip(&numbers.runs) {
            let value = encode(&(run.base, run.mark))?;
            runs.push((0, TxnOp::put(keys.run(number), value, None)));
        }
        self.0.write_all(runs).await
    }

    async fn check_structure(&self) -> Result<Vec<String>, StoreError> {
        let keys = &self.0.reader.keys;
        let (state, _) = self.0.reader.state().await?;
        let mut findings = Vec::new();
        let mut expected: BTreeMap<String, usize> = BTreeMap::new();
        let mut after = 0;
        loop {
            let rows = self.export_rows(after, u16::MAX).await?;
            let Some(last) = rows.last() else {
                break;
            };
            after = last.seq;
            let mut wanted = Vec::new();
            for row in &rows {
                if row.seq > state.highest || row.header.changed > state.number {
                    findings.push(format!("record {} is newer than the state", row.seq));
                }
                for (key, value) in all_keys(keys, row)?.into_iter().skip(1) {
                    let below = key.strip_prefix(keys.all()).unwrap_or_default();
                    let family = below.split('/').next().unwrap_or_default().to_owned();
                    let count = expected.entry(family).or_default();
                    *count = count.saturating_add(1);
                    wanted.push((row.seq, key, value));
                }
            }
            for group in wanted.chunks(KEYS_AT_ONCE) {
                let gets: Vec<TxnOp> = group
                    .iter()
                    .map(|(_, key, _)| TxnOp::get(&**key, None))
                    .collect();
                let answer = self
                    .0
                    .reader
                    .connection
                    .read_together(Txn::new().and_then(gets));
                let answer = answer.await.map_err(|error| unavailable(&error))?;
                for ((seq, key, value), found) in group.iter().zip(answer.op_responses()) {
                    let found = super::reader::first(found);
                    if found.is_none_or(|found| found.value() != value.as_bytes()) {
                        findings.push(format!("record {seq}: the key {key} is missing or wrong"));
                    }
                }
            }
            if findings.len() >= FINDINGS_MAX {
                findings.truncate(FINDINGS_MAX);
                return Ok(findings);
            }
        }
        for (family, count) in self.0.count_families().await? {
            let wanted = expected.get(&family).copied().unwrap_or_default();
            if count != wanted {
                findings.push(format!(
                    "{count} keys {family}/..., but the records need {wanted}"
                ));
            }
        }
        Ok(findings)
    }
}
