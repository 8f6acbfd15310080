//! Annotations in memory, which outlive an adapter but not the test.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use snapgate::adapters::annotations::{AnnotationRecord, Annotations, AnnotationsError};
use snapgate::model::{BackendName, Target, VmId};

/// Annotations in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryAnnotations(Mutex<BTreeMap<(BackendName, Target), AnnotationRecord>>);

#[async_trait]
impl Annotations for MemoryAnnotations {
    async fn list(
        &self,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Vec<AnnotationRecord>, AnnotationsError> {
        let all = self.0.lock().unwrap();
        let of_vm = all
            .iter()
            .filter(|((its, target), _)| its == backend && target.vm == *vm);
        Ok(of_vm.map(|(_, annotated)| annotated.clone()).collect())
    }

    async fn get(
        &self,
        backend: &BackendName,
        target: &Target,
    ) -> Result<Option<AnnotationRecord>, AnnotationsError> {
        let at = (backend.clone(), target.clone());
        Ok(self.0.lock().unwrap().get(&at).cloned())
    }

    async fn put(
        &self,
        backend: &BackendName,
        annotated: &AnnotationRecord,
    ) -> Result<(), AnnotationsError> {
        let at = (backend.clone(), annotated.target.clone());
        self.0.lock().unwrap().insert(at, annotated.clone());
        Ok(())
    }

    async fn remove(&self, backend: &BackendName, target: &Target) -> Result<(), AnnotationsError> {
        let at = (backend.clone(), target.clone());
        self.0.lock().unwrap().remove(&at);
        Ok(())
    }
}
