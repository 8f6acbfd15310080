//! Parameters and headers of the document.

use serde_json::Value;
use serde_json::json;

use crate::gate::Specification;
use crate::gate::tests::openapi::operations::ALL_FILTERS;
use crate::gate::tests::openapi::reference;
use crate::gate::tests::openapi::schemas::OPERATION_STATES;
use crate::gate::tests::openapi::schemas::STATES;
use crate::model::BackupState;
use crate::model::limits;

/// Neither control characters nor a dot segment.
const SEGMENT: &str = r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$";
/// A name, or its beginning and one star.
const NAME: &str = r"^[^*\u0000-\u001f\u007f-\u009f]*\*?$";
/// Digits, and not zero.
const SEQ: &str = "^[1-9][0-9]{0,17}$";

fn parameter(place: &str, name: &str, about: &str, schema: &Value) -> Value {
    json!({ "in": place, "name": name, "required": false, "description": about, "schema": schema })
}

/// The same, which must be sent, with an example.
fn required(place: &str, name: &str, about: &str, schema: &Value, example: &str) -> Value {
    let mut parameter = parameter(place, name, about, schema);
    parameter["required"] = json!(true);
    parameter["example"] = json!(example);
    parameter
}

fn version_schema() -> Value {
    let known = Specification::default()
        .supported
        .join("|")
        .replace('.', "\\.");
    json!({ "type": "string", "pattern": format!("^({known})(, ?({known})){{0,11}}$") })
}

fn id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": limits::ID_BYTES_MAX, "pattern": SEGMENT })
}

/// Everything that a request may carry beside its body.
pub(super) fn parameters() -> Value {
    let mut all = json!({});
    for mut part in [paths_and_selectors(), filters(), request_headers()] {
        let part = part.as_object_mut().unwrap();
        all.as_object_mut().unwrap().append(part);
    }
    all
}

fn paths_and_selectors() -> Value {
    let id = id();
    let seq = json!({ "type": "string", "pattern": SEQ });
    let number = "The number of the operation; the other parameters must agree.";
    json!({
        "vm": required("path", "vm", "The VM.", &id, "33333"),
        "b": required("path", "b", "The backup.", &id, "456"),
        "vmQuery": required("query", "vm", "The VM.", &id, "33333"),
        "vmAsked": parameter("query", "vm", "The VM that is asked about; without it, whether anything is allowed anywhere.", &id),
        "bAsked": parameter("query", "b", "The backup of the VM that is asked about.", &id),
        "vmSelector": parameter("query", "vm", "Only of this VM.", &id),
        "bSelector": parameter("query", "b", "Only of the backup of this id.", &id),
        "seq": parameter("query", "seq", number, &seq),
        "seqRequired": required("query", "seq", number, &seq, "118529990508675072"),
        "op": parameter("query", "op", "Only operations of this kind.", &reference("schemas", "OperationKind")),
    })
}

fn filters() -> Value {
    let time = json!({ "type": "string", "format": "date-time" });
    let name = json!({ "type": "string", "minLength": 1, "maxLength": limits::BACKUP_NAME_BYTES_MAX, "pattern": NAME });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": limits::PAGE_MAX, "default": limits::PAGE });
    let sorts = ["id", "name", "created", "size"];
    let sorts: Vec<String> = sorts
        .iter()
        .flat_map(|key| [(*key).to_owned(), format!("-{key}")])
        .collect();
    let states = STATES.map(BackupState::as_str);
    let mut tags = parameter(
        "query",
        "tag",
        "Only backups with this tag; repeated, with all of them.",
        &json!({ "type": "array", "maxItems": limits::TAGS_MAX, "items": { "type": "string", "minLength": 1, "maxLength": limits::TAG_BYTES_MAX } }),
    );
    tags["style"] = json!("form");
    tags["explode"] = json!(true);
    json!({
        "limit": parameter("query", "limit", "The most entries wanted.", &limit),
        "after": parameter("query", "after", "Only backups after this id.", &id()),
        "cursor": parameter("query", "cursor", "Where the page before ended: follow `Link`.", &json!({ "type": "string" })),
        "vmName": parameter("query", "name", "Only VMs of this name; `*` at the end stands for any rest.", &name),
        "backupName": parameter("query", "name", "Only backups of this name; `*` at the end stands for any rest.", &name),
        "tag": tags,
        "backupState": parameter("query", "state", "Only backups in this state.", &json!({ "type": "string", "enum": states })),
        "protected": parameter("query", "protected", "Only backups that are protected, or that are not.", &json!({ "type": "boolean" })),
        "sort": parameter("query", "sort", "The order; `-` for descending.", &json!({ "type": "string", "enum": sorts, "default": "id" })),
        "operationSort": parameter("query", "sort", "The order; `-` for the newest first.",
            &json!({ "type": "string", "enum": ["created", "-created"], "default": "-created" })),
        "count": parameter("query", "count", "Whether to count all that match.", &json!({ "type": "boolean", "default": false })),
        "since": parameter("query", "since", "Only what was made at this time or later.", &time),
        "beforeTime": parameter("query", "before", "Only what was made before this time.", &time),
        "before": before(&time),
        "operationState": parameter("query", "state", "Only operations in this state.",
            &json!({ "type": "string", "enum": OPERATION_STATES })),
        "principal": parameter("query", "principal", "Only operations of this caller; `me` is oneself.",
            &json!({ "type": "string", "pattern": r"^[A-Za-z0-9._@-]{1,64}(:[!-~]{1,128})?$" })),
    })
}

/// Lists of Statuses began before a number in the first edition, which is still taken.
fn before(time: &Value) -> Value {
    let number = json!({ "type": "string", "pattern": SEQ });
    if ALL_FILTERS {
        let about = "Only operations that were accepted before this time, or before the operation of this number.";
        parameter(
            "query",
            "before",
            about,
            &json!({ "anyOf": [time, number] }),
        )
    } else {
        let about = "Only operations before this number: follow `Link`.";
        parameter("query", "before", about, &number)
    }
}

fn request_headers() -> Value {
    const VERSION: &str = "X-Cloud-Client-Specification-Version";
    const VERSION_ABOUT: &str = "The versions the client speaks, best first. Also as `X-Compute-Client-Specification-Version` or \
        `X-Cloud-Specification-Version`.";
    let tags = json!({ "type": "string", "pattern": r#"^(\*|(W/)?"[!#-~]*")$"# });
    let prefer = "RFC 7240: `wait=N` holds the answer for at most N seconds until the operation ends (a GET of a Status with `If-None-Match`: \
        until its next change), `respond-async` to have a change answered as soon as it is durable (with both, `wait` says how long), \
        `handling=strict` to have slips and unknown members refused. Other preferences are ignored.";
    let mut prefer = parameter("header", "Prefer", prefer, &json!({ "type": "string" }));
    prefer["example"] = json!("wait=1");
    let key = format!("^[!#-~]{{1,{}}}$", limits::IDEMPOTENCY_KEY_BYTES_MAX);
    json!({
        "LastEventId": parameter("header", "Last-Event-ID", "The `id` of the event that was seen last; for streams of events only.",
            &json!({ "type": "string" })),
        "SpecificationVersion": required("header", VERSION, VERSION_ABOUT, &version_schema(), "0.1"),
        "OptionalSpecificationVersion": parameter("header", VERSION, "As elsewhere, and not needed here.",
            &reference("schemas", "SpecificationVersion")),
        "Prefer": prefer,
        "IfMatch": parameter("header", "If-Match", "Only if the ETag is one of these. A change is judged again when its turn comes; a create by \
            the list of the VM's backups.", &tags),
        "IfNoneMatch": parameter("header", "If-None-Match", "Only if it is not in this state; what is no tag names none.",
            &json!({ "type": "string" })),
        "IfPlan": parameter("header", "If-Plan", "The `fingerprint` of a plan in quotation marks: only if a plan made now would have the same. Judged \
            again when the turn of the operation comes.", &json!({ "type": "string", "pattern": "^\"[0-9A-Za-z]{1,128}\"$" })),
        "IdempotencyKey": parameter("header", "Idempotency-Key", "The same key with the same request is the same operation.",
            &json!({ "type": "string", "pattern": key })),
    })
}

fn header(about: &str, schema: &Value, always: bool) -> Value {
    json!({ "description": about, "required": always, "schema": schema })
}

/// Everything that an answer may carry beside its body.
pub(super) fn headers() -> Value {
    let text = json!({ "type": "string" });
    let seconds = json!({ "type": "integer", "minimum": 1 });
    let status_uri = json!({ "type": "string", "pattern": "^/statuses\\?op=" });
    let tag = json!({ "type": "string", "pattern": "^\"[!#-~]+\"$" });
    let version =
        json!({ "type": "string", "x-extensible-enum": Specification::default().supported });
    let id = json!({ "type": "string", "minLength": 1, "maxLength": limits::REQUEST_ID_BYTES_MAX });
    json!({
        "X-Request-Id": header("The request, as in the logs.", &id, true),
        "X-Cloud-Specification-Version": header("The version that was followed.", &version, true),
        "ETag": header("The state of what is shown.", &tag, false),
        "Link": header("`rel=\"next\"`: where there is more.", &text, false),
        "Location": header("The Status.", &status_uri, false),
        "Content-Location": header("The Status.", &status_uri, true),
        "Retry-After": header("Seconds after which it may be worth to ask again.", &seconds, false),
        "Cache-Control": header("How long it may be kept.", &text, true),
        "Vary": header("What else decides about the answer.", &text, true),
        "WWW-Authenticate": header("How to authenticate.", &text, true),
        "Accept": header("The types that are taken.", &text, false),
        "Accept-Post": header("The types that are taken.", &text, false),
    })
}
