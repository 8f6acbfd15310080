//! The metadata of backups whose VM manager keeps none: one table beside the operations.

use std::sync::Arc;

use async_trait::async_trait;

use crate::adapters::annotations::AnnotationRecord;
use crate::adapters::annotations::Annotations;
use crate::adapters::annotations::AnnotationsError;
use crate::model::BackendName;
use crate::model::Target;
use crate::model::VmId;
use crate::operations::store::error::StoreError;
use crate::operations::store::sqlite::annotation_rows;
use crate::operations::store::sqlite::annotation_rows::AnnotationChange;
use crate::operations::store::sqlite::reader::Readers;
use crate::operations::store::sqlite::store_file::StoreFile;
use crate::operations::store::sqlite::writer::Write;

/// The annotations in the file of a store.
#[derive(Debug)]
pub(super) struct AnnotationTable(pub(super) Arc<StoreFile>);

#[async_trait]
impl Annotations for AnnotationTable {
    async fn list(
        &self,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Vec<AnnotationRecord>, AnnotationsError> {
        let (backend, vm) = (backend.clone(), vm.clone());
        Readers::run(&self.0.readers, move |_, db| {
            annotation_rows::list(db, &backend, &vm)
        })
        .await
        .map_err(annotations_error)
    }

    async fn get(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Option<AnnotationRecord>, AnnotationsError> {
        let (backend, target) = (backend.clone(), target.clone());
        Readers::run(&self.0.readers, move |_, db| {
            annotation_rows::get(db, &backend, &target)
        })
        .await
        .map_err(annotations_error)
    }

    async fn put(
        &self,
        backend: &BackendName,
        annotated: &AnnotationRecord,
    ) -> Result<(), AnnotationsError> {
        let record = serde_json::to_string(&annotated.annotation)
            .map_err(|error| AnnotationsError::Unavailable(error.to_string()))?;
        let change = AnnotationChange::Put {
            backend: backend.clone(),
            annotated: annotated.clone(),
            record,
        };
        let written = self.0.write(|answer| Write::Annotate(change, answer)).await;
        written.map_err(annotations_error)
    }

    async fn remove(&self, backend: &BackendName, target: &Target) -> Result<(), AnnotationsError> {
        let change = AnnotationChange::Remove {
            backend: backend.clone(),
            target: target.clone(),
        };
        let written = self.0.write(|answer| Write::Annotate(change, answer)).await;
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
