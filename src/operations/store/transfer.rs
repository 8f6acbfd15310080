//! What `snapgate store` reads from a store and writes into another, for every engine.

use async_trait::async_trait;

use crate::operations::change_feed::ChangeNumber;
use crate::operations::change_feed::StoreRun;
use crate::operations::store::error::StoreError;
use crate::operations::store::row::Row;

/// The metadata of one backup, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::operations) struct AnnotationRow {
    pub(in crate::operations) backend: String,
    pub(in crate::operations) vm: String,
    pub(in crate::operations) backup: String,
    pub(in crate::operations) identity: Option<String>,
    pub(in crate::operations) written: u64,
    /// JSON.
    pub(in crate::operations) annotation: String,
}

/// What a store holds besides records and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::operations) struct StoreNumbers {
    /// The highest number of a change.
    pub(in crate::operations) latest: ChangeNumber,
    /// The highest number of a change of a record that has expired.
    pub(in crate::operations) forgotten: ChangeNumber,
    /// The highest sequence number that was ever stored; 0 for none.
    pub(in crate::operations) highest: u64,
    /// When a gateway was last running on it, in milliseconds.
    pub(in crate::operations) beat: Option<u64>,
    /// The openings that it still knows, oldest first.
    pub(in crate::operations) runs: Vec<StoreRun>,
}

/// A store in the hands of `snapgate store`: no gateway uses it.
#[async_trait]
pub(in crate::operations) trait StoreTransfer: Send + Sync {
    /// At most `max` records with numbers above `after`, in the order of the numbers. Empty when there are no more.
    async fn export_rows(&self, after: u64, max: u16) -> Result<Vec<Row>, StoreError>;

    /// All annotations, in order.
    async fn export_annotations(&self) -> Result<Vec<AnnotationRow>, StoreError>;

    /// Everything else.
    async fn export_numbers(&self) -> Result<StoreNumbers, StoreError>;

    /// Prepares for the import of a whole store, or for the rest of one that was interrupted. Until the end no gateway opens it.
    ///
    /// `false` when it holds anything else.
    async fn begin_import(&self) -> Result<bool, StoreError>;

    /// Ends the import.
    async fn end_import(&self) -> Result<(), StoreError>;

    /// The records of these numbers that are there.
    async fn find_rows(&self, seqs: &[u64]) -> Result<Vec<Row>, StoreError>;

    /// Writes records; those that are there already are replaced.
    async fn import_rows(&self, rows: Vec<Row>) -> Result<(), StoreError>;

    /// Writes annotations; those that are there already are replaced.
    async fn import_annotations(&self, annotations: Vec<AnnotationRow>) -> Result<(), StoreError>;

    /// Replaces everything else.
    async fn import_numbers(&self, numbers: &StoreNumbers) -> Result<(), StoreError>;

    /// What is wrong with the store beyond single records: damage, or indexes that do not fit their records. Sentences.
    async fn check_structure(&self) -> Result<Vec<String>, StoreError>;
}
