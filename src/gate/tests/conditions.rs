//! Conditions and codings of requests: what is refused before anything is accepted, and what is kept with it.

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::model::Phase;
use crate::model::Precondition;

const B: &str = "/vms/33333/backups/456";
const TAGS: &str = "\n\n{\"tags\":[\"x\"]}";
const JSON: &str = "\nContent-Type: application/json";

/// Each change of the backup: its first line, and what follows the fields.
fn changes() -> [(&'static str, String, String); 3] {
    let json = |first: &str| format!("{first}\nas: ann\nv{JSON}");
    [
        ("update", json(&format!("PUT {B}")), TAGS.to_owned()),
        ("delete", format!("DELETE {B}\nas: ann\nv"), String::new()),
        (
            "restore",
            json(&format!("POST {B}/restore")),
            "\n\n{}".to_owned(),
        ),
    ]
}

async fn entity_tag(rig: &Rig, path: &str) -> String {
    let found = rig.send(&format!("GET {path}\nas: ann\nv")).await;
    header(&found, "etag").to_owned()
}

/// The preconditions of the newest operation.
fn kept(rig: &Rig) -> Vec<Precondition> {
    let state = rig.operations.state();
    let last = state.operations.last();
    last.map(|submission| submission.preconditions.clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_condition_is_kept_with_the_operation() {
    for (verb, head, body) in changes() {
        let rig = Rig::new();
        let tag = entity_tag(&rig, B).await;
        let rows = [
            (String::new(), "nothing"),
            (format!("\nIf-Match: {tag}"), "unchanged"),
            (format!("\nIf-Match: \"other\", {tag}"), "unchanged"),
            ("\nIf-Match: *".to_owned(), "present"),
            ("\nIf-None-Match: \"other\"".to_owned(), "unchanged"),
        ];
        for (fields, expected) in rows {
            let found = rig.send(&format!("{head}{fields}{body}")).await;
            assert_eq!(status(&found), 202, "{verb}{fields}");
            let found = match kept(&rig).as_slice() {
                [] => "nothing",
                [Precondition::BackupUnchanged(_)] => "unchanged",
                [Precondition::BackupPresent] => "present",
                other => panic!("{verb}{fields}: {other:?}"),
            };
            assert_eq!(found, expected, "{verb}{fields}");
            rig.operations.state().operations.clear();
        }
    }
}

#[tokio::test]
async fn a_condition_on_a_backup_that_is_gone_fails() {
    for (verb, head, body) in changes() {
        let rig = Rig::new();
        let tag = entity_tag(&rig, B).await;
        rig.operations.state().backups.clear();
        let rows = [
            ("", "NoSuchBackup"),
            (&format!("\nIf-Match: {tag}"), "PreconditionFailed"),
            ("\nIf-Match: *", "PreconditionFailed"),
            ("\nIf-None-Match: *", "NoSuchBackup"),
        ];
        for (fields, expected) in rows {
            let found = rig.send(&format!("{head}{fields}{body}")).await;
            assert_eq!(found.refusal, Some(expected), "{verb}{fields}");
        }
    }
}

#[tokio::test]
async fn a_create_is_judged_by_the_list_of_backups() {
    let list = "/vms/33333/backups";
    for target in [list, "/back_up?vm=33333"] {
        let rig = Rig::new();
        let tag = entity_tag(&rig, list).await;
        let create = |fields: &str| {
            let fields = fields.to_owned();
            format!("POST {target}\nas: ann\nv{JSON}{fields}\n\n{{\"name\":\"new\"}}")
        };
        for fields in ["\nIf-Match: \"x\"", "\nIf-None-Match: *"] {
            let found = rig.send(&create(fields)).await;
            assert_eq!(
                found.refusal,
                Some("PreconditionFailed"),
                "{target}{fields}"
            );
        }
        let found = rig.send(&create(&format!("\nIf-None-Match: {tag}"))).await;
        assert_eq!(found.refusal, Some("PreconditionFailed"), "{target}");
        let found = rig.send(&create(&format!("\nIf-Match: {tag}"))).await;
        assert_eq!(status(&found), 202, "{target}: the tag of the list");
        let is_list = matches!(kept(&rig).as_slice(), [Precondition::ListUnchanged(_)]);
        assert!(is_list, "{target}: {:?}", kept(&rig));
    }
}

#[tokio::test]
async fn a_conditional_delete_does_not_join_one_that_changed_the_tag() {
    let rig = Rig::new();
    let first = rig.send(&format!("DELETE {B}\nas: ann\nv")).await;
    assert_eq!(status(&first), 202, "the first");
    let again = rig.send(&format!("DELETE {B}\nas: ann\nv")).await;
    assert_eq!(
        header(&again, "location"),
        header(&first, "location"),
        "joined"
    );
    let other = format!("DELETE {B}\nas: ann\nv\nIf-Match: \"other\"");
    let other = rig.send(&other).await;
    assert_eq!(other.refusal, Some("PreconditionFailed"), "another tag");
    let any = format!("DELETE {B}\nas: ann\nv\nIf-Match: *");
    let any = rig.send(&any).await;
    assert_eq!(
        header(&any, "location"),
        header(&first, "location"),
        "a condition that holds"
    );
}

#[tokio::test]
async fn reads_are_refused_whose_tag_does_not_match() {
    let rig = Rig::new();
    let restore = format!("POST {B}/restore\nas: ann\nv");
    let begun = rig.send(&restore).await;
    let statuses = header(&begun, "location").to_owned();
    for path in [B, "/vms/33333/backups", "/vms/33333", statuses.as_str()] {
        let tag = entity_tag(&rig, path).await;
        assert!(!tag.is_empty(), "{path} has a tag");
        for method in ["GET", "HEAD"] {
            let rows = [
                ("\"other\"".to_owned(), 412),
                (format!("W/{tag}"), 412),
                (tag.clone(), 200),
                ("*".to_owned(), 200),
                (format!("{tag}\nIf-None-Match: {tag}"), 304),
                (format!("\"other\"\nIf-None-Match: {tag}"), 412),
            ];
            for (value, expected) in rows {
                let request = format!("{method} {path}\nas: ann\nv\nIf-Match: {value}");
                let found = status(&rig.send(&request).await);
                assert_eq!(found, expected, "{method} {path} If-Match: {value}");
            }
        }
    }
}

#[tokio::test]
async fn stopping_an_operation_may_depend_on_its_tag() {
    let rig = Rig::new();
    let begun = rig.send(&format!("POST {B}/restore\nas: ann\nv")).await;
    let uri = header(&begun, "location").to_owned();
    let old = entity_tag(&rig, &uri).await;
    rig.change_operation(1, Phase::Running, 10);
    let stop = |tag: &str| format!("DELETE {uri}\nas: ann\nIf-Match: {tag}");
    let found = rig.send(&stop(&old)).await;
    assert_eq!(found.refusal, Some("PreconditionFailed"), "it has changed");
    let found = rig.send(&stop(&entity_tag(&rig, &uri).await)).await;
    assert_eq!(status(&found), 202, "as it is");
}

#[tokio::test]
async fn a_key_may_be_used_once_for_each_method_and_target() {
    let rig = Rig::new();
    let key = "\nIdempotency-Key: \"k\"";
    let mut seen = Vec::new();
    for vm in ["33333", "333333"] {
        let requests = [
            format!("PUT /vms/{vm}/backups/456\nas: ann\nv{JSON}{key}{TAGS}"),
            format!("POST /vms/{vm}/backups/456/restore\nas: ann\nv{JSON}{key}\n\n{{}}"),
            format!("POST /vms/{vm}/backups\nas: ann\nv{JSON}{key}\n\n{{\"name\":\"n\"}}"),
            format!("DELETE /vms/{vm}/backups/456\nas: ann\nv{key}"),
        ];
        for request in requests {
            let found = rig.send(&request).await;
            assert_eq!(status(&found), 202, "{request}: {:?}", found.refusal);
            assert!(!seen.contains(&found.operation), "{request}: its own");
            let again = rig.send(&request).await;
            assert_eq!(again.operation, found.operation, "{request}: repeated");
            seen.push(found.operation);
        }
    }
    let other = format!("PUT {B}\nas: ann\nv{JSON}{key}\n\n{{\"tags\":[]}}");
    let other = rig.send(&other).await;
    assert_eq!(other.refusal, Some("IdempotencyKeyReused"), "another body");
}

#[tokio::test]
async fn codings_and_parts_of_bodies_are_refused() {
    let bodies = [
        format!("PUT {B}\nas: ann\nv{JSON}$FIELDS{TAGS}"),
        format!("POST {B}/restore\nas: ann\nv{JSON}$FIELDS\n\n{{}}"),
        format!("POST {B}/restore\nas: ann\nv$FIELDS"),
        format!("POST /vms/33333/backups\nas: ann\nv{JSON}$FIELDS\n\n{{\"name\":\"n\"}}"),
        format!("POST /back_up?vm=33333\nas: ann\nv{JSON}$FIELDS\n\n{{\"name\":\"n\"}}"),
    ];
    let rows = [
        ("Content-Encoding: gzip", Some("UnsupportedMediaType")),
        ("Content-Encoding: br", Some("UnsupportedMediaType")),
        (
            "Content-Encoding: identity, gzip",
            Some("UnsupportedMediaType"),
        ),
        (
            "Content-Encoding: identity\nContent-Encoding: x-gzip",
            Some("UnsupportedMediaType"),
        ),
        (
            "Content-Encoding: aws-chunked",
            Some("UnsupportedMediaType"),
        ),
        ("Content-Encoding: identity", None),
        ("Content-Encoding: Identity , identity", None),
        ("Content-Range: bytes 0-3/10", Some("PartialContent")),
        ("Content-Range: nonsense", Some("PartialContent")),
    ];
    for body in &bodies {
        for (fields, expected) in rows {
            let rig = Rig::new();
            let request = body.replace("$FIELDS", &format!("\n{fields}"));
            let found = rig.send(&request).await;
            assert_eq!(found.refusal, expected, "{request}");
            let accepted = rig.operations.state().operations.len();
            assert_eq!(accepted, usize::from(expected.is_none()), "{request}");
            if expected == Some("UnsupportedMediaType") {
                assert_eq!(header(&found, "accept-encoding"), "identity", "{request}");
            }
        }
    }
}
