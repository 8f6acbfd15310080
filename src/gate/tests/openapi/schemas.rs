//! Schemas of the document.
//!
//! What the gateway sends is open: members and words may be added in later versions, so that the words it knows today stand in
//! `x-extensible-enum`, and no object is closed. `tests/it/openapi.rs` holds the gateway to exactly these words and members.

use serde_json::Value;
use serde_json::json;

use crate::gate::Code;
use crate::gate::Specification;
use crate::gate::links;
use crate::gate::tests::openapi::operations::ALL_FILTERS;
use crate::model::Action;
use crate::model::BackupKind;
use crate::model::BackupState;
use crate::model::RunState;
use crate::model::Verb;
use crate::model::limits;

/// The states of a backup.
pub(super) const STATES: [BackupState; 6] = [
    BackupState::Creating,
    BackupState::Available,
    BackupState::Updating,
    BackupState::Restoring,
    BackupState::Deleting,
    BackupState::Error,
];
/// The states of an operation.
pub(super) const OPERATION_STATES: [&str; 6] = [
    "QUEUED",
    "RUNNING",
    "SUCCESS",
    "FAILED",
    "CANCELLED",
    "UNKNOWN",
];
/// No control characters.
const LINE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// No control characters but line feed and tab.
const FREE: &str = r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$";

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn described(mut schema: Value, about: &str) -> Value {
    schema["description"] = json!(about);
    schema
}

/// A word of an answer. Later versions may send others.
fn word(about: &str, known: &[&str]) -> Value {
    let about = format!("{about} Later versions may send other words.");
    json!({ "type": "string", "description": about, "x-extensible-enum": known })
}

fn text(about: &str) -> Value {
    json!({ "type": "string", "description": about })
}

fn link(about: &str) -> Value {
    json!({ "type": "string", "pattern": "^https?://", "description": about })
}

fn time(about: &str) -> Value {
    json!({ "type": "string", "format": "date-time", "description": about })
}

fn bytes(about: &str) -> Value {
    json!({ "type": "integer", "format": "int64", "minimum": 0, "description": about })
}

fn flag(about: &str) -> Value {
    json!({ "type": "boolean", "description": about })
}

fn list_of(items: &Value, about: &str) -> Value {
    json!({ "type": "array", "items": items, "description": about })
}

fn object(about: &str, required: &[&str], members: &Value) -> Value {
    json!({ "type": "object", "description": about, "required": required, "properties": members })
}

/// What clients may write of a backup. With `null`, that is what absent members are.
fn writable() -> Value {
    json!({
        "name": { "type": "string", "minLength": 1, "maxLength": limits::BACKUP_NAME_BYTES_MAX, "pattern": LINE,
            "description": "Unique in its VM; the length is in bytes." },
        "description": { "type": ["string", "null"], "maxLength": limits::DESCRIPTION_BYTES_MAX, "pattern": FREE,
            "description": "Free text of several lines." },
        "tags": { "type": ["array", "null"], "maxItems": limits::TAGS_MAX, "items": reference("Tag"),
            "description": "Free words. Replaced as a whole." },
        "protected": { "type": ["boolean", "null"], "description": "A protected backup cannot be deleted." },
    })
}

/// What becomes of members that are not described.
const OTHERS: &str = "Members that only the server writes are passed over. Others are named in `ignored` of the Status, or \
    refused where their name is nearly one of these, and always with `Prefer: handling=strict`.";

fn new_backup() -> Value {
    let mut members = writable();
    // A reference or null: of a nullable enumeration, openapi-python-client makes three classes.
    members["type"] = json!({ "anyOf": [reference("NewBackupType"), { "type": "null" }],
        "description": "The VM manager's own choice when absent; 501 when it makes none of this type." });
    object(
        &format!("A backup to be made. {OTHERS}"),
        &["name"],
        &members,
    )
}

fn backup_patch() -> Value {
    let about =
        format!("The members to change; at least one. `null` clears all but `name`. {OTHERS}");
    let mut patch = object(&about, &[], &writable());
    patch["minProperties"] = json!(1);
    patch.as_object_mut().unwrap().remove("required");
    patch
}

fn restore(form: bool) -> Value {
    let about = "`note` is for the audit trail. What other pairs mean, the VM manager's adapter documents; `Capabilities` lists them.";
    let value = if form {
        json!({ "type": "string" })
    } else {
        json!({})
    };
    json!({
        "type": "object",
        "description": about,
        "properties": { "note": { "type": "string", "maxLength": limits::NOTE_BYTES_MAX, "description": "Why it is done." } },
        "additionalProperties": value,
        "maxProperties": limits::RESTORE_OPTIONS_MAX,
    })
}

fn backup() -> Value {
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
    object(
        "A stored state of a VM.",
        &required,
        &json!({
            "name": text("Unique in its VM."),
            "uri": link("The backup itself."),
            "restore": link("Takes POST: restores the VM."),
            "vm": link("The VM."),
            "description": text("Free text of several lines."),
            "type": word("How much of the VM it holds.", &BackupKind::ALL.map(BackupKind::as_str)),
            "created": time("When it was made."),
            "tags": list_of(&reference("Tag"), "Free words."),
            "state": reference("BackupState"),
            "size": bytes("The bytes it takes, where the VM manager knows."),
            "protected": flag("Whether it is protected from being deleted."),
        }),
    )
}

fn status() -> Value {
    let required = [
        "op",
        "progress",
        "target_uri",
        "status_uri",
        "seq",
        "state",
        "created",
    ];
    let mut status = object(
        "What became of a change.",
        &required,
        &json!({
            "op": word("What is done.", &Verb::ALL.map(links::op)),
            "progress": { "type": "integer", "minimum": 0, "maximum": 100,
                "description": "100 exactly when it is over, whatever the outcome. Never falls." },
            "target_uri": { "type": "string", "pattern": "^/vms/", "description": "The backup it is about." },
            "status_uri": { "type": "string", "pattern": "^/statuses\\?op=", "description": "This Status; opaque." },
            "seq": { "type": "string", "pattern": "^[1-9][0-9]*$", "description": "The number of the operation, for `readStatuses` and `cancelOperation`." },
            "status": { "type": "integer", "minimum": 200, "maximum": 599, "description": "The outcome as an HTTP status; at 100 only." },
            "message": text("The outcome as a sentence; at 100 only."),
            "state": reference("OperationState"),
            "ignored": {
                "type": "array", "minItems": 1, "maxItems": limits::IGNORED_MAX,
                "items": { "type": "string", "maxLength": limits::IGNORED_NAME_CHARS_MAX },
                "description": "Members of the request that mean nothing here; absent when there are none. The first of many, each cut.",
            },
            "created": time("When it was accepted."),
            "started": time("When its turn came."),
            "completed": time("When it ended."),
            "expires": time("Until when this Status is kept."),
        }),
    );
    status["dependentRequired"] = json!({ "status": ["message"], "message": ["status"] });
    status
}

/// A page of a list.
fn page(name: &str, of: &str, about: &str) -> Value {
    let items = json!({ "type": "array", "maxItems": limits::PAGE_MAX, "items": reference(of), "description": "In the order asked for." });
    let mut page = object(about, &[name], &json!({ name: items }));
    if ALL_FILTERS {
        page["properties"]["count"] =
            bytes("How many match in all; only where `count=true` asked for it.");
        page["properties"]["count_at_least"] = bytes("Instead of `count`, where very many match.");
    }
    page
}

fn message() -> Value {
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    object(
        "One refusal.",
        &["code", "severity", "text"],
        &json!({
            "code": word("A stable word for the reason; docs/status-codes.md says what to do about each.", &codes),
            "severity": word("How severe it is.", &["SEVERE"]),
            "text": text("What happened, as a sentence."),
            "hint": text("What to do."),
            "field": text("The member, parameter or header at fault."),
        }),
    )
}

fn messages() -> Value {
    let required = ["type", "title", "status", "detail", "instance", "message"];
    object(
        "A refusal. Valid as Messages and as problem details (RFC 9457).",
        &required,
        &json!({
            "type": { "type": "string", "pattern": "^/problems/", "description": "The code as a URI." },
            "title": text("The same for every refusal with this code."),
            "status": { "type": "integer", "minimum": 400, "maximum": 599, "description": "The status of the response." },
            "detail": text("What happened, as a sentence."),
            "instance": text("The request, as in `X-Request-Id`."),
            "message": { "type": "array", "minItems": 1, "maxItems": 1, "items": reference("Message"), "description": "The reason." },
        }),
    )
}

fn vm() -> Value {
    object(
        "A VM.",
        &["name", "uri", "back_up", "backups"],
        &json!({
            "name": text("The name of the VM."),
            "uri": link("The VM itself."),
            "description": text("What a person wrote about it."),
            "run_status": run_state("Whether it runs, where the VM manager knows."),
            "back_up": link("Takes POST: makes a backup."),
            "backups": list_of(&reference("Backup"), "The first page of its backups."),
        }),
    )
}

/// Schemas of the first edition.
fn first_edition() -> Value {
    json!({
        "Tag": { "type": "string", "minLength": 1, "maxLength": limits::TAG_BYTES_MAX, "pattern": LINE, "description": "A free word." },
        "BackupState": word("The state of a backup. Only AVAILABLE ones can be restored.", &STATES.map(BackupState::as_str)),
        "OperationState": word("The state of an operation; it is over in all but QUEUED and RUNNING.", &OPERATION_STATES),
        "Backup": backup(),
        "NewBackup": new_backup(),
        "NewBackupType": { "type": "string", "enum": BackupKind::ALL.map(BackupKind::as_str), "description": "How much of the VM to keep." },
        "SpecificationVersion": { "type": "string", "enum": Specification::default().supported, "description": "A version of the specification." },
        "OperationKind": { "type": "string", "enum": Verb::ALL.map(links::op), "description": "A kind of operation." },
        "BackupPatch": backup_patch(),
        "Restore": restore(false),
        "RestoreForm": described(restore(true), "The same as Restore, as a form."),
        "Backups": page("backups", "Backup", "A page of the backups of a VM."),
        "VM": vm(),
        "Status": status(),
        "Statuses": page("statuses", "Status", "A page of Statuses, newest first."),
        "StatusOrStatuses": { "oneOf": [reference("Status"), reference("Statuses")],
            "description": "One Status where the query names one, else a list." },
        "Version": object("Who answers.", &["specification_version", "implementation_version"], &json!({
            "specification_version": text("The versions of the specification, separated by commas."),
            "implementation_version": text("The version of the gateway."),
        })),
        "Message": message(),
        "Messages": messages(),
    })
}

fn capabilities() -> Value {
    let required = ["supported", "cancel", "progress", "options"];
    let of_verb = object(
        "What the VM manager can do for one kind of operation.",
        &required,
        &json!({
            "supported": flag("Whether it can be done at all."),
            "cancel": flag("Whether it can be cancelled once it runs."),
            "progress": flag("Whether progress is reported between 0 and 100."),
            "recovery": word("How its outcome is determined after a crash.", &["replay-safe", "listable", "no-trace"]),
            "options": list_of(&text("The name of a pair."), "The pairs it takes beside `note`; the page of the adapter describes them."),
        }),
    );
    let verbs = ["create", "update", "delete", "restore"];
    let of_verbs = verbs.map(|verb| (verb.to_owned(), reference("VerbCapability")));
    let of_verbs = Value::Object(of_verbs.into_iter().collect());
    json!({
        "VerbCapability": of_verb,
        "Capabilities": object("What can be done with the backups of a VM.", &["verbs", "kinds", "lists_vms"], &json!({
            "verbs": object("By kind of operation.", &verbs, &of_verbs),
            "kinds": list_of(&word("A type of backups.", &BackupKind::ALL.map(BackupKind::as_str)), "The types of backups it makes."),
            "lists_vms": flag("Whether the VM manager lists its VMs."),
        })),
    })
}

/// A run state, where the VM manager knows.
fn run_state(about: &str) -> Value {
    word(
        about,
        &[RunState::Stopped, RunState::Started, RunState::Sleeping].map(RunState::as_str),
    )
}

fn plan_request() -> Value {
    let ops = [links::op(Verb::Restore), links::op(Verb::Delete)];
    let mut request = object(
        "What is to be planned, with the pairs that the operation would have.",
        &["op"],
        &json!({
            "op": { "type": "string", "enum": ops, "description": "The operation." },
            "note": { "type": "string", "maxLength": limits::NOTE_BYTES_MAX, "description": "Allowed, so that the same pairs can be sent twice; not kept." },
        }),
    );
    request["additionalProperties"] = json!({});
    request["maxProperties"] = json!(limits::RESTORE_OPTIONS_MAX);
    request
}

fn plan() -> Value {
    let required = [
        "op",
        "target_uri",
        "vm",
        "backup",
        "overwrites",
        "loses",
        "leaves",
        "refused",
        "warnings",
        "unknown",
        "fingerprint",
        "expires",
    ];
    object(
        "What an operation would do.",
        &required,
        &json!({
            "op": word("The operation.", &[links::op(Verb::Restore), links::op(Verb::Delete)]),
            "target_uri": { "type": "string", "pattern": "^/vms/", "description": "The backup it is about." },
            "vm": object("The VM.", &["id", "name"], &json!({
                "id": text("The id, as in paths."),
                "name": text("The name of the VM."),
                "state": run_state("Whether it runs, where the VM manager knows."),
            })),
            "backup": reference("PlannedBackup"),
            "overwrites": list_of(&object("A disk that is overwritten.", &["disk"], &json!({
                "disk": text("Its name."),
                "size": bytes("Its bytes, where they are known."),
            })), "Disks that are overwritten."),
            "loses": object("What goes with it.", &["backups"], &json!({
                "since": time("What was written to the VM since then is lost; of restores."),
                "backups": list_of(&reference("PlannedBackup"), "Backups that are deleted with it."),
            })),
            "leaves": list_of(&text("The name of a disk."), "Disks that stay as they are."),
            "after": run_state("Whether the VM runs afterwards, where that is known."),
            "needs": object("The room it needs, where that is known.", &[], &json!({
                "bytes": bytes("The bytes it needs."),
                "free": bytes("The bytes there are."),
            })),
            "duration": object("How long it may take, where that is known.", &["seconds", "basis"], &json!({
                "seconds": { "type": "integer", "minimum": 1, "description": "About so many seconds." },
                "basis": word("What that is known from.", &["history", "size"]),
            })),
            "refused": list_of(&reference("PlanRefusal"), "Everything that would refuse it now. Empty where nothing is in the way."),
            "warnings": list_of(&text("A sentence."), "What to look at before."),
            "unknown": list_of(&word("A part of the plan.", &["overwrites", "loses", "leaves", "after", "needs", "refused"]),
                "What this VM manager does not know."),
            "ignored": list_of(&text("The name of a member."), "Members of the request that mean nothing here."),
            "fingerprint": text("For `If-Plan`, in quotation marks."),
            "expires": time("Until when the plan is worth looking at."),
        }),
    )
}

fn planning() -> Value {
    json!({
        "PlanRequest": plan_request(),
        "PlanRefusal": object("What would refuse the operation now.", &["code", "text"], &json!({
            "code": text("The code that the refusal would have."),
            "text": text("What is in the way, as a sentence."),
        })),
        "PlannedBackup": object("A backup that a plan is about.", &["id", "name", "created"], &json!({
            "id": text("The id, as in paths."),
            "name": text("Its name."),
            "created": time("When it was made."),
        })),
        "Plan": plan(),
    })
}

/// Schemas of the second edition, provisional where its routes are not in the table yet.
fn second_edition() -> Value {
    let mut all = json!({
        "VmSummary": object("A VM in a list.", &["id", "name", "uri", "backups"], &json!({
            "id": text("The id, as in paths."),
            "name": text("The name of the VM."),
            "uri": link("The VM itself."),
            "backups": link("The list of its backups."),
            "state": run_state("Whether it runs, where the VM manager knows."),
            "backend": text("The VM manager; for operators only."),
            "last_backup": object("The newest backup, where it is known.", &["uri", "created"], &json!({
                "uri": link("The backup."),
                "created": time("When it was made."),
            })),
        })),
        "Vms": object("A page of the VMs, in order of their ids.", &["vms", "complete"], &json!({
            "vms": list_of(&reference("VmSummary"), "In order of their ids."),
            "complete": flag("Whether every VM manager answered."),
            "message": text("Why the list is not complete."),
        })),
        "Permission": object("One action.", &["action", "allowed"], &json!({
            "action": word("The action.", &Action::ALL.map(Action::as_str)),
            "allowed": flag("Whether the caller may do it."),
            "code": text("The code that a request would be refused with."),
            "reason": text("Why not, as a sentence."),
        })),
        "Permissions": object("What the caller may do.", &["actions"], &json!({
            "actions": list_of(&reference("Permission"), "Every action."),
        })),
        "Document": { "type": "object", "description": "An OpenAPI document.", "additionalProperties": {} },
        "Page": text("HTML."),
    });
    for mut part in [capabilities(), planning()] {
        let part = part.as_object_mut().unwrap();
        all.as_object_mut().unwrap().append(part);
    }
    all
}

/// Every schema.
pub(super) fn schemas() -> Value {
    let mut all = first_edition();
    let mut more = second_edition();
    let more = more.as_object_mut().unwrap();
    all.as_object_mut().unwrap().append(more);
    all
}
