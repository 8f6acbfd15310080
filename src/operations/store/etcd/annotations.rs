//! The metadata of backups whose VM manager keeps none: one key for each backup.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde::Serialize;

use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::adapters::annotations::Annotations;
use crate::adapters::annotations::AnnotationsError;
use crate::etcd::KeyValue;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::Identity;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::VmId;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::entries::encode;
use crate::operations::store::etcd::open_keys::OpenKeys;
use crate::operations::store::transfer::AnnotationRow;

/// The annotations in the cluster of a store.
#[derive(Debug)]
pub(super) struct AnnotationKeys(pub(super) Arc<OpenKeys>);

/// An annotation as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredAnnotation {
    vm: String,
    backup: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    written: u64,
    annotation: Annotation,
}

impl StoredAnnotation {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(bytes)
            .map_err(|error| StoreError::Unavailable(format!("an annotation: {error}")))
    }

    pub(super) fn into_row(self, backend: String) -> Result<AnnotationRow, StoreError> {
        Ok(AnnotationRow {
            backend,
            annotation: encode(&self.annotation)?,
            vm: self.vm,
            backup: self.backup,
            identity: self.identity,
            written: self.written,
        })
    }

    pub(super) fn from_row(row: &AnnotationRow) -> Result<Self, StoreError> {
        let annotation = serde_json::from_str(&row.annotation)
            .map_err(|error| StoreError::Unavailable(format!("an annotation: {error}")))?;
        Ok(Self {
            vm: row.vm.clone(),
            backup: row.backup.clone(),
            identity: row.identity.clone(),
            written: row.written,
            annotation,
        })
    }
}

fn parse(stored: &KeyValue) -> Result<AnnotationRecord, StoreError> {
    let unreadable = |why: String| StoreError::Unavailable(format!("an annotation: {why}"));
    let stored = StoredAnnotation::decode(stored.value())?;
    Ok(AnnotationRecord {
        target: Target {
            vm: VmId::new(&stored.vm).map_err(|error| unreadable(error.to_string()))?,
            backup: BackupId::new(&stored.backup).map_err(|error| unreadable(error.to_string()))?,
        },
        identity: stored.identity.map(Identity::new),
        annotation: stored.annotation,
        written: Timestamp::from_millis(stored.written),
    })
}

#[async_trait]
impl Annotations for AnnotationKeys {
    async fn list(
        &self,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Vec<AnnotationRecord>, AnnotationsError> {
        let reader = &self.0.reader;
        let stored = reader.all(reader.keys.annotations_of(backend, vm)).await;
        let stored = stored.map_err(annotations_error)?;
        let parsed: Result<Vec<_>, _> = stored.iter().map(parse).collect();
        let mut found = parsed.map_err(annotations_error)?;
        // The keys are percent-encoded, and in the order of that.
        found.sort_by(|one, two| one.target.backup.as_str().cmp(two.target.backup.as_str()));
        Ok(found)
    }

    async fn get(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Option<AnnotationRecord>, AnnotationsError> {
        let reader = &self.0.reader;
        let stored = reader.one(reader.keys.annotation(backend, target)).await;
        let stored = stored.map_err(annotations_error)?;
        let parsed = stored.map(|stored| parse(&stored)).transpose();
        parsed.map_err(annotations_error)
    }

    async fn put(
        &self,
        backend: &BackendName,
        record: &AnnotationRecord,
    ) -> Result<(), AnnotationsError> {
        let key = self.0.reader.keys.annotation(backend, &record.target);
        let value = encode(&StoredAnnotation {
            vm: record.target.vm.as_str().to_owned(),
            backup: record.target.backup.as_str().to_owned(),
            identity: record
                .identity
                .as_ref()
                .map(|identity| identity.as_str().to_owned()),
            written: record.written.as_millis(),
            annotation: record.annotation.clone(),
        })
        .map_err(annotations_error)?;
        let written = self
            .0
            .write(|answer| Write::Put(key, Some(value), answer))
            .await;
        written.map_err(annotations_error)
    }

    async fn remove(&self, backend: &BackendName, target: &Target) -> Result<(), AnnotationsError> {
        let key = self.0.reader.keys.annotation(backend, target);
        let written = self.0.write(|answer| Write::Put(key, None, answer)).await;
        written.map_err(annotations_error)
    }
}

fn annotations_error(error: StoreError) -> AnnotationsError {
    match error {
        StoreError::Indeterminate(why) | StoreError::Fatal(why) => {
            AnnotationsError::Indeterminate(why)
        }
        StoreError::Unavailable(why) | StoreError::Fenced(why) => {
            AnnotationsError::Unavailable(why)
        }
        StoreError::Conflict | StoreError::KeyReused(_) => {
            AnnotationsError::Unavailable(error.to_string())
        }
    }
}
