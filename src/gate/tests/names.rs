//! Bad input beside the body is refused with a 400 that names it, and changes nothing.

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::json;
use crate::gate::tests::rig::status;

/// Code, field, and requests in which `$RESTORE`, `$DELETE` and `$LONG` stand for what is below.
const ROWS: &[(&str, &str, &[&str])] = &[
    (
        "MalformedPrefer",
        "Prefer",
        &[
            "$RESTORE\nPrefer: wait=abc",
            "$DELETE\nPrefer: wait=",
            "PUT /vms/33333/backups/456\nas: ann\nv\nPrefer: wait=-1\n\n{\"tags\":[]}",
            "GET /statuses?seq=1\nas: ann\nPrefer: wait=1s",
            "GET /statuses\nas: ann\nPrefer: wait=1s",
            "$RESTORE\nPrefer: handling=rough",
            "$RESTORE\nPrefer: respond-async=no",
            "$RESTORE\nPrefer: wait=1\nPrefer: wait=x",
        ],
    ),
    (
        "MalformedIdempotencyKey",
        "Idempotency-Key",
        &[
            "$RESTORE\nIdempotency-Key: ",
            "$RESTORE\nIdempotency-Key: a b",
            "$RESTORE\nIdempotency-Key: \"a",
            "$RESTORE\nIdempotency-Key: $LONG",
            "$RESTORE\nIdempotency-Key: a\nIdempotency-Key: a",
            "$DELETE\nIdempotency-Key: a b",
        ],
    ),
    (
        "MalformedLastEventId",
        "Last-Event-ID",
        &["GET /statuses?seq=1\nas: ann\nAccept: text/event-stream\nLast-Event-ID: x"],
    ),
    (
        "InvalidParameter",
        "before",
        &[
            "GET /statuses?before=\nas: ann",
            "GET /statuses?before=x\nas: ann",
            "GET /statuses?before=0\nas: ann",
            "GET /statuses?before=%2B1\nas: ann",
            "GET /statuses?before=99999999999999999999\nas: ann",
            "GET /statuses?before=1&before=2\nas: ann",
        ],
    ),
    (
        "InvalidParameter",
        "limit",
        &[
            "GET /statuses?limit=0\nas: ann",
            "GET /statuses?limit=\nas: ann",
            "GET /statuses?limit=1001\nas: ann",
            "GET /vms/33333/backups?limit=x\nas: ann\nv",
        ],
    ),
    (
        "InvalidParameter",
        "after",
        &["GET /vms/33333/backups?after=..\nas: ann\nv"],
    ),
    (
        "InvalidParameter",
        "op",
        &["GET /statuses?op=undo\nas: ann"],
    ),
    (
        "InvalidParameter",
        "seq",
        &[
            "GET /statuses?seq=1x\nas: ann",
            "DELETE /statuses?seq=-1\nas: ann",
        ],
    ),
    (
        "InvalidParameter",
        "backup",
        &["GET /statuses?backup=..\nas: ann"],
    ),
];

#[tokio::test]
async fn bad_preferences_keys_cursors_and_event_ids_are_named() {
    let rig = Rig::new();
    for (code, field, requests) in ROWS {
        for request in *requests {
            let written = request
                .replace(
                    "$RESTORE",
                    "POST /vms/33333/backups/456/restore\nas: ann\nv",
                )
                .replace("$DELETE", "DELETE /vms/33333/backups/456\nas: ann\nv")
                .replace("$LONG", &"k".repeat(256));
            let found = rig.send(&written).await;
            assert_eq!(found.refusal, Some(*code), "{request:?}: code");
            assert_eq!(status(&found), 400, "{request:?}: status");
            let named = &json(&found)["message"][0]["field"];
            assert_eq!(named, field, "{request:?}: field");
        }
    }
    let accepted = rig.operations.state().operations.len();
    assert_eq!(accepted, 0, "nothing was accepted");
}
