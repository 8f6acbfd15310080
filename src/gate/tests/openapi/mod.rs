//! `docs/openapi.json`: written from the routes, codes, media types and limits of the gate, so that it cannot go stale.
//!
//! That the gateway does what the document says is tested by schemathesis (`tests/it/openapi.rs`), and that generators make
//! clients of it that work by `tests/it/generated_clients.rs`.

mod examples;
mod finding;
mod operations;
mod parameters;
mod print;
mod responses;
mod schemas;

use std::collections::BTreeSet;
use std::fs;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::gate::Code;
use crate::gate::ROUTES;
use crate::gate::negotiate;
use crate::gate::tests::openapi::operations::Operation;

const FILE: &str = "docs/openapi.json";

/// Everything that is shared, by kind.
const SHARED: [&str; 6] = [
    "examples",
    "headers",
    "parameters",
    "requestBodies",
    "responses",
    "schemas",
];

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

/// References to shared things of a kind, by their names.
fn references(kind: &str, names: &[&str]) -> Value {
    let one = |name: &&str| ((*name).to_owned(), reference(kind, name));
    Value::Object(names.iter().map(one).collect())
}

/// The same schema and examples under each of the media types.
fn content(media: &[&str], schema: &str, examples: &[&str]) -> Value {
    let mut one = json!({ "schema": reference("schemas", schema) });
    if !examples.is_empty() {
        one["examples"] = references("examples", examples);
    }
    let all = media.iter().map(|media| ((*media).to_owned(), one.clone()));
    Value::Object(all.collect())
}

fn request_bodies() -> Value {
    let backup = [negotiate::BACKUP, negotiate::JSON];
    let body = |about: &str, required: bool, content: &Value| json!({ "description": about, "required": required, "content": content });
    let mut restore = content(&[negotiate::JSON], "Restore", &["Restore"]);
    let form = content(&[negotiate::FORM], "RestoreForm", &["RestoreForm"]);
    restore[negotiate::FORM] = form[negotiate::FORM].clone();
    json!({
        "NewBackup": body("The backup to be made.", true, &content(&backup, "NewBackup", &["NewBackup"])),
        "BackupPatch": body("What is to change.", true, &content(&backup, "BackupPatch", &["BackupPatch"])),
        "Restore": body("May be left out.", false, &restore),
        "PlanRequest": body("What is to be planned.", true, &content(&[negotiate::JSON], "PlanRequest", &["PlanRequest"])),
    })
}

fn described(operation: &Operation) -> Value {
    let codes: BTreeSet<&str> = operation.codes().iter().map(|code| code.as_str()).collect();
    let parameters = operation.parameters();
    let parameters = parameters.iter().map(|name| reference("parameters", name));
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": operation.description,
        "tags": [operation.tag],
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": responses::of(operation),
        "x-codes": codes,
    });
    if !operation.credentials {
        described["security"] = json!([]);
    }
    if let Some(name) = operation.body {
        described["requestBody"] = reference("requestBodies", name);
    }
    described
}

fn paths() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let mut item = Map::new();
        for method in route.methods() {
            let found = operations::find(route.template, method);
            item.insert(method.to_lowercase(), described(found));
        }
        paths.insert(route.template.to_owned(), Value::Object(item));
    }
    Value::Object(paths)
}

fn security_schemes() -> Value {
    json!({
        "basic": { "type": "http", "scheme": "basic", "description": "A user and a password (RFC 7617, UTF-8)." },
        "apiToken": { "type": "http", "scheme": "bearer",
            "description": "A token of `snapgate token create` (RFC 6750), where tokens are configured." },
        "jwt": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "A JSON Web Token of a configured issuer (RFC 7519)." },
        "clientCertificate": { "type": "mutualTLS", "description": "A client certificate, where an authority for these is configured." },
    })
}

fn document() -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "snapgate",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Backups of VMs and restores from them: the Sun Cloud API's \"Requests to Backup Resources\".",
            "description": "Every GET is also a HEAD, and OPTIONS answers `Allow`. Identifiers are 1 to 255 bytes of UTF-8, \
                percent-encoded. A change is answered 202 with a Status once it is on stable storage; read the Status by its `seq` \
                until `progress` is 100.\n\n\
                Clients ignore members that they do not know, and take words that they do not know where a schema has \
                `x-extensible-enum`. `x-codes` names the codes that an operation may be refused with.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The gateway that sent this document." }],
        "security": [{ "basic": [] }, { "apiToken": [] }, { "jwt": [] }, { "clientCertificate": [] }],
        "tags": [
            { "name": "vms", "description": "VMs and what can be done with them." },
            { "name": "backups", "description": "Backups and restores." },
            { "name": "statuses", "description": "What became of changes." },
            { "name": "gateway", "description": "Who answers, and what the caller may do." },
        ],
        "paths": paths(),
        "components": {
            "securitySchemes": security_schemes(),
            "examples": examples::examples(),
            "headers": parameters::headers(),
            "parameters": parameters::parameters(),
            "requestBodies": request_bodies(),
            "responses": responses::shared(),
            "schemas": schemas::schemas(),
        },
    });
    remove_unused(&mut document);
    document
}

/// What is defined for routes that are not in the table is left out.
fn remove_unused(document: &mut Value) {
    loop {
        let used = referred_to(document);
        let mut is_changed = false;
        for kind in SHARED {
            let members = document["components"][kind].as_object_mut().unwrap();
            let before = members.len();
            members.retain(|name, _| used.contains(&format!("#/components/{kind}/{name}")));
            is_changed |= members.len() != before;
        }
        if !is_changed {
            return;
        }
    }
}

/// Every reference in the document.
fn referred_to(document: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![document];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(path)) = members.get("$ref") {
                    found.insert(path.clone());
                }
                pending.extend(members.values());
            }
            Value::Array(items) => pending.extend(items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    found
}

#[test]
fn the_document_is_written_from_the_routes() {
    let found = print::print(&document());
    if update() {
        fs::write(FILE, &found).unwrap();
    }
    let expected = fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        found == expected,
        "{FILE} differs from the routes, codes, media types or limits; UPDATE_GOLDEN=1 rewrites it"
    );
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test runner is asked by its environment to rewrite golden files"
)]
fn update() -> bool {
    std::env::var("UPDATE_GOLDEN").is_ok()
}

/// The rows of the table that have a route.
fn every_operation() -> Vec<&'static Operation> {
    let of_route = |route: &'static crate::gate::RouteSpec| {
        route
            .methods()
            .map(|method| operations::find(route.template, method))
    };
    ROUTES.iter().flat_map(of_route).collect()
}

#[test]
fn every_code_belongs_to_an_operation_or_to_a_status() {
    let mut used: BTreeSet<Code> = operations::ELSEWHERE.iter().copied().collect();
    for operation in every_operation() {
        used.extend(operation.codes());
    }
    let known: BTreeSet<Code> = Code::ALL.iter().copied().collect();
    assert_eq!(
        used, known,
        "left: src/gate/tests/openapi/operations.rs, right: the codes"
    );
}

#[test]
fn every_operation_has_a_name_of_its_own_and_says_what_it_does() {
    let all = every_operation();
    let names: BTreeSet<&str> = all.iter().map(|operation| operation.id).collect();
    assert_eq!(names.len(), all.len(), "names: {names:?}");
    for operation in all {
        let id = operation.id;
        assert!(operation.description.ends_with('.'), "{id}: a sentence");
        assert!(!operation.summary.ends_with('.'), "{id}: a title");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    for path in referred_to(&document) {
        let pointer = path.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{path} is defined");
    }
}

#[test]
fn every_enumeration_has_a_type() {
    let document = document();
    let mut pending = vec![&document];
    let mut count = 0_usize;
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(members) => {
                if ["enum", "x-extensible-enum"]
                    .iter()
                    .any(|name| members.contains_key(*name))
                {
                    assert!(members.contains_key("type"), "{value}");
                    count += 1;
                }
                pending.extend(members.values());
            }
            Value::Array(items) => pending.extend(items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    assert!(count > 5, "they are looked at: {count}");
}
