//! Schemas, parameters and headers of the document.

use serde_json::Value;
use serde_json::json;

use crate::gate::Code;
use crate::gate::Specification;
use crate::gate::links;
use crate::model::BackupKind;
use crate::model::BackupState;
use crate::model::RunState;
use crate::model::Verb;
use crate::model::limits;

const STATES: [BackupState; 6] = [
    BackupState::Creating,
    BackupState::Available,
    BackupState::Updating,
    BackupState::Restoring,
    BackupState::Deleting,
    BackupState::Error,
];
/// Neither control characters nor a dot segment.
const SEGMENT: &str = r"^(?!\.{1,2}$)[^\u0000-\u001f\u007f-\u009f]+$";
/// No control characters.
const LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// No control characters but line feed and tab.
const FREE: &str = r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$";
/// Digits, and not zero.
const SEQ: &str = "^[1-9][0-9]{0,17}$";

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn parameter(place: &str, name: &str, required: bool, about: &str, schema: &Value) -> Value {
    json!({ "in": place, "name": name, "required": required, "description": about, "schema": schema })
}

fn version_schema() -> Value {
    let known = Specification::default()
        .supported
        .join("|")
        .replace('.', "\\.");
    json!({
        "type": "string",
        "pattern": format!("^({known})(, ?({known})){{0,11}}$"),
        "examples": ["0.1"],
    })
}

pub(super) fn parameters() -> Value {
    const VERSION: &str = "X-Cloud-Client-Specification-Version";
    let id = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": limits::ID_BYTES_MAX,
        "pattern": SEGMENT,
    });
    let seq = json!({ "type": "string", "pattern": SEQ });
    let ops = Verb::ALL.map(links::op);
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": limits::PAGE_MAX, "default": limits::PAGE });
    let tags = json!({ "type": "string", "pattern": r#"^(\*|(W/)?"[!#-~]*")$"# });
    json!({
        "vm": parameter("path", "vm", true, "The VM.", &id),
        "b": parameter("path", "b", true, "The backup.", &id),
        "vmQuery": parameter("query", "vm", true, "The VM.", &id),
        "vmSelector": parameter("query", "vm", false, "Only operations on this VM.", &id),
        "bSelector": parameter("query", "b", false, "Only operations on the backup of this id.", &id),
        "seq": parameter("query", "seq", false, "The number of the operation; the other parameters must agree.", &seq),
        "seqRequired": parameter("query", "seq", true, "The number of the operation; the other parameters must agree.", &seq),
        "op": parameter("query", "op", false, "Only operations of this kind.", &json!({ "enum": ops })),
        "limit": parameter("query", "limit", false, "The most entries wanted.", &limit),
        "after": parameter("query", "after", false, "Only backups after this id: follow `Link`.", &id),
        "before": parameter("query", "before", false, "Only operations before this number: follow `Link`.", &seq),
        "LastEventId": parameter("header", "Last-Event-ID", false, "The `id` of the event that was seen last; for streams of events only.",
            &json!({ "type": "string" })),
        "SpecificationVersion": parameter("header", VERSION, true, "The versions the client speaks, best first. Also as \
            `X-Compute-Client-Specification-Version` or `X-Cloud-Specification-Version`.", &version_schema()),
        "OptionalSpecificationVersion": parameter("header", VERSION, false, "As elsewhere, and not needed here.",
            &json!({ "enum": Specification::default().supported })),
        "Prefer": parameter("header", "Prefer", false, "RFC 7240: `wait=N` holds the answer for at most N seconds until the operation ends \
            (a GET of a Status with `If-None-Match`: until its next change), \
            `respond-async` to have a change answered as soon as it is durable (with both, `wait` says how long), \
            `handling=strict` to have slips and unknown members refused. Other preferences are ignored.",
            &json!({ "type": "string", "examples": ["wait=1"] })),
        "IfMatch": parameter("header", "If-Match", false, "Only if the ETag is one of these. A change is judged again when its turn comes; a create by the list of the VM's backups.", &tags),
        "IfNoneMatch": parameter("header", "If-None-Match", false, "Only if it is not in this state; what is no tag names none.", &json!({ "type": "string" })),
        "IdempotencyKey": parameter("header", "Idempotency-Key", false, "The same key with the same request is the same operation.",
            &json!({ "type": "string", "pattern": format!("^[!#-~]{{1,{}}}$", limits::IDEMPOTENCY_KEY_BYTES_MAX) })),
    })
}

fn header(about: &str, schema: &Value, always: bool) -> Value {
    json!({ "description": about, "required": always, "schema": schema })
}

pub(super) fn headers() -> Value {
    let text = json!({ "type": "string" });
    let seconds = json!({ "type": "integer", "minimum": 1 });
    let status_uri = json!({ "type": "string", "pattern": "^/statuses\\?op=" });
    let tag = json!({ "type": "string", "pattern": "^\"[!#-~]+\"$" });
    let version = json!({ "enum": Specification::default().supported });
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

/// What clients may write of a backup.
fn writable(clearable: bool) -> Value {
    let or_null = |kind: &str| {
        if clearable {
            json!([kind, "null"])
        } else {
            json!(kind)
        }
    };
    json!({
        "name": { "type": "string", "minLength": 1, "maxLength": limits::BACKUP_NAME_BYTES_MAX, "pattern": LINE,
            "description": "Unique in its VM; the length is in bytes." },
        "description": { "type": or_null("string"), "maxLength": limits::DESCRIPTION_BYTES_MAX, "pattern": FREE },
        "tags": { "type": or_null("array"), "maxItems": limits::TAGS_MAX, "items": reference("Tag"),
            "description": "Replaced as a whole." },
        "protected": { "type": or_null("boolean"), "description": "A protected backup cannot be deleted." },
    })
}

fn backup() -> Value {
    let uri = json!({ "type": "string", "pattern": "^https?://" });
    let mut members = writable(false);
    members["uri"] = uri.clone();
    members["restore"] = uri.clone();
    members["vm"] = uri;
    members["type"] = json!({ "enum": BackupKind::ALL.map(BackupKind::as_str) });
    members["created"] = json!({ "type": "string", "format": "date-time" });
    members["state"] = json!({ "enum": STATES.map(BackupState::as_str) });
    members["size"] = json!({ "type": "integer", "minimum": 0, "description": "Bytes." });
    let required = [
        "name",
        "uri",
        "restore",
        "vm",
        "created",
        "tags",
        "state",
        "protected",
    ];
    json!({ "type": "object", "properties": members, "required": required, "additionalProperties": false })
}

/// What becomes of members that are not described.
const OTHERS: &str = "Members that only the server writes are passed over. Others are named in `ignored` of the Status, or \
    refused where their name is nearly one of these, and always with `Prefer: handling=strict`.";

fn status() -> Value {
    let time = json!({ "type": "string", "format": "date-time" });
    json!({
        "type": "object",
        "properties": {
            "op": { "enum": Verb::ALL.map(links::op) },
            "progress": { "type": "integer", "minimum": 0, "maximum": 100, "description": "100 exactly when it is over, whatever the outcome." },
            "target_uri": { "type": "string", "pattern": "^/vms/" },
            "status_uri": { "type": "string", "pattern": "^/statuses\\?op=" },
            "status": { "type": "integer", "minimum": 200, "maximum": 599, "description": "The outcome as an HTTP status; at 100 only." },
            "message": { "type": "string", "description": "The outcome as a sentence; at 100 only." },
            "state": { "enum": ["QUEUED", "RUNNING", "SUCCESS", "FAILED", "CANCELLED", "UNKNOWN"] },
            "ignored": {
                "type": "array", "minItems": 1, "maxItems": limits::IGNORED_MAX,
                "items": { "type": "string", "maxLength": limits::IGNORED_NAME_CHARS_MAX },
                "description": "Members of the request that mean nothing here; absent when there are none. The first of many, each cut.",
            },
            "created": time,
            "started": time,
            "completed": time,
            "expires": time,
        },
        "required": ["op", "progress", "target_uri", "status_uri", "state", "created"],
        "dependentRequired": { "status": ["message"], "message": ["status"] },
        "additionalProperties": false,
    })
}

fn list(name: &str, of: &str) -> Value {
    json!({
        "type": "object",
        "properties": { name: { "type": "array", "maxItems": limits::PAGE_MAX, "items": reference(of) } },
        "required": [name],
        "additionalProperties": false,
    })
}

fn messages() -> Value {
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "type": "object",
        "description": "Valid as Messages and as problem details (RFC 9457).",
        "properties": {
            "type": { "type": "string", "pattern": "^/problems/" },
            "title": { "type": "string" },
            "status": { "type": "integer", "minimum": 400, "maximum": 599 },
            "detail": { "type": "string" },
            "instance": { "type": "string", "description": "The request, as in `X-Request-Id`." },
            "message": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "code": { "enum": codes },
                        "severity": { "const": "SEVERE" },
                        "text": { "type": "string" },
                        "hint": { "type": "string" },
                        "field": { "type": "string" },
                    },
                    "required": ["code", "severity", "text"],
                    "additionalProperties": false,
                },
            },
        },
        "required": ["type", "title", "status", "detail", "instance", "message"],
        "additionalProperties": false,
    })
}

pub(super) fn schemas() -> Value {
    let one_of_these =
        ["name", "description", "tags", "protected"].map(|it| json!({ "required": [it] }));
    let run_states =
        [RunState::Stopped, RunState::Started, RunState::Sleeping].map(RunState::as_str);
    let mut new = writable(false);
    new["description"]["type"] = json!(["string", "null"]);
    new["tags"]["type"] = json!(["array", "null"]);
    new["protected"]["type"] = json!(["boolean", "null"]);
    let kinds: Vec<Value> = BackupKind::ALL
        .iter()
        .map(|kind| json!(kind.as_str()))
        .chain([Value::Null])
        .collect();
    new["type"] = json!({ "enum": kinds, "description": "The VM manager's own choice when absent; 501 when it makes none of this type." });
    let uri = json!({ "type": "string", "pattern": "^https?://" });
    json!({
        "Tag": { "type": "string", "minLength": 1, "maxLength": limits::TAG_BYTES_MAX, "pattern": LINE },
        "Backup": backup(),
        "NewBackup": { "type": "object", "properties": new, "required": ["name"], "description": OTHERS },
        "BackupPatch": { "type": "object", "properties": writable(true), "description": OTHERS,
            "anyOf": one_of_these },
        "Restore": {
            "type": "object",
            "description": "`note` is for the audit trail; what else there may be, the VM manager's adapter documents.",
            "properties": { "note": { "type": "string", "maxLength": limits::NOTE_BYTES_MAX } },
            "maxProperties": limits::RESTORE_OPTIONS_MAX,
        },
        "Backups": list("backups", "Backup"),
        "VM": {
            "type": "object",
            "properties": {
                "name": { "type": "string" },
                "uri": uri,
                "description": { "type": "string" },
                "run_status": { "enum": run_states },
                "back_up": uri,
                "backups": { "type": "array", "items": reference("Backup") },
            },
            "required": ["name", "uri", "back_up", "backups"],
            "additionalProperties": false,
        },
        "Status": status(),
        "Statuses": list("statuses", "Status"),
        "StatusOrStatuses": { "oneOf": [reference("Status"), reference("Statuses")] },
        "Version": {
            "type": "object",
            "properties": {
                "specification_version": { "type": "string", "description": "Separated by commas." },
                "implementation_version": { "type": "string" },
            },
            "required": ["specification_version", "implementation_version"],
            "additionalProperties": false,
        },
        "Messages": messages(),
    })
}
