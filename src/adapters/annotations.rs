//! Where the gateway keeps what a VM manager does not: names, descriptions, tags and protection of backups.

use std::fmt::Debug;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;

use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupName;
use crate::model::Description;
use crate::model::Identity;
use crate::model::Tag;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;

/// The metadata that callers gave one backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// Its name; the VM manager's own when absent.
    pub name: Option<BackupName>,
    /// What a person wrote about it.
    pub description: Option<Description>,
    /// Its tags, in the order they were given.
    pub tags: Vec<Tag>,
    /// Whether it refuses to be deleted.
    pub protected: bool,
}

impl Annotation {
    /// The backup as the annotation shows it.
    #[must_use]
    pub fn applied_to(self, backup: Backup) -> Backup {
        Backup {
            name: self.name.unwrap_or(backup.name),
            description: self.description,
            tags: self.tags,
            protected: self.protected,
            ..backup
        }
    }
}

/// An annotation and the backup that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationRecord {
    /// The backup, by its ids.
    pub target: Target,
    /// The very backup; `None` while it is being made and was not seen yet.
    pub identity: Option<Identity>,
    /// The metadata.
    pub annotation: Annotation,
    /// When it was written.
    pub written: Timestamp,
}

/// Why annotations cannot be read or written. The text is for the log only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationsError {
    /// Nothing was changed, and it may work later.
    #[error("the store of annotations is unavailable: {0}")]
    Unavailable(String),
    /// It may or may not have been written.
    #[error("the outcome of the write is unknown: {0}")]
    Indeterminate(String),
}

/// Keeps annotations. `Ok` from a write means that it is on stable storage.
///
/// There is at most one annotation of each backup id of a VM; writing replaces it.
#[async_trait]
pub trait Annotations: Debug + Send + Sync {
    /// All annotations of the backups of one VM, in order of the backups' ids.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn list(
        &self,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Vec<AnnotationRecord>, AnnotationsError>;

    /// The annotation of one backup id.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn get(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Option<AnnotationRecord>, AnnotationsError>;

    /// Writes or replaces.
    ///
    /// # Errors
    /// [`AnnotationsError::Indeterminate`] when it may have been written.
    async fn put(
        &self,
        backend: &BackendName,
        record: &AnnotationRecord,
    ) -> Result<(), AnnotationsError>;

    /// Removes; it is no error when there is none.
    ///
    /// # Errors
    /// [`AnnotationsError::Indeterminate`] when it may have been removed.
    async fn remove(&self, backend: &BackendName, target: &Target) -> Result<(), AnnotationsError>;
}
