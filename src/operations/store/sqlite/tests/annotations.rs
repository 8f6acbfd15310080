//! The table of annotations beside the operations.

use super::*;
use crate::adapters::annotations::Annotation;
use crate::adapters::annotations::AnnotationRecord;
use crate::model::BackendName;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::Identity;
use crate::model::Tag;
use crate::model::Target;
use crate::model::VmId;
use crate::operations::store::Store;
use crate::operations::testing::NOW;

pub(super) fn annotated(backup: &str, identity: Option<&str>, name: &str) -> AnnotationRecord {
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
    for (backend, annotation) in [(&one, &b), (&one, &c), (&two, &b)] {
        kept.put(backend, annotation).await.unwrap();
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
