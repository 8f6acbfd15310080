//! `docs/openapi.json`: written from the routes, codes, media types and limits of the gate, so that it cannot go stale.
//!
//! That the gateway does what the document says is tested by schemathesis: `tests/it/openapi.rs`.

mod operations;
mod schemas;

use std::collections::BTreeMap;
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

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

/// The same schema under each of the media types.
fn content(media: &[&str], schema: &str) -> Value {
    let one = |text: &&str| {
        (
            (*text).to_owned(),
            json!({ "schema": reference("schemas", schema) }),
        )
    };
    Value::Object(media.iter().map(one).collect())
}

fn headers(names: &[&str]) -> Value {
    let one = |text: &&str| ((*text).to_owned(), reference("headers", text));
    Value::Object(names.iter().map(one).collect())
}

/// Headers of every answer.
const COMMON: [&str; 2] = ["X-Request-Id", "X-Cloud-Specification-Version"];

/// The answer for one status to which some codes belong.
fn refusals(status: u16, codes: &[Code]) -> Value {
    let words: BTreeSet<&str> = codes.iter().map(|code| code.as_str()).collect();
    let words: Vec<&str> = words.into_iter().collect();
    let mut names = COMMON.to_vec();
    names.extend(match status {
        401 => vec!["WWW-Authenticate"],
        409 => vec!["Location", "Retry-After"],
        415 => vec!["Accept", "Accept-Post"],
        429 | 503 => vec!["Retry-After"],
        _ => vec![],
    });
    json!({
        "description": words.join(", "),
        "headers": headers(&names),
        "content": content(&[negotiate::MESSAGES, negotiate::PROBLEM], "Messages"),
    })
}

fn success(operation: &Operation) -> (String, Value) {
    let mut names = COMMON.to_vec();
    names.extend(operation.headers);
    let answer = json!({
        "description": operation.answer,
        "headers": headers(&names),
        "content": content(operation.media, operation.schema),
    });
    (operation.status.to_string(), answer)
}

fn responses(operation: &Operation) -> Value {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in operation.codes() {
        by_status
            .entry(code.status().as_u16())
            .or_default()
            .push(code);
    }
    let mut all: Map<String, Value> = by_status
        .iter()
        .map(|(status, codes)| (status.to_string(), refusals(*status, codes)))
        .collect();
    let (status, answer) = success(operation);
    all.insert(status, answer);
    if operation.is_tagged {
        all.insert(
            "304".to_owned(),
            json!({
                "description": "`If-None-Match` names the present state.",
                "headers": headers(&[COMMON[0], COMMON[1], "ETag"]),
            }),
        );
    }
    if operation.schema == "StatusOrStatuses" {
        all["200"]["content"][negotiate::EVENTS] = json!({
            "schema": { "type": "string", "description": "Events whose `data` is a Status and whose `id` is for `Last-Event-ID`." },
        });
        let answer = json!({
            "description": "There will be no event after the one that `Last-Event-ID` names.",
            "headers": headers(&COMMON),
        });
        all.insert("204".to_owned(), answer);
    }
    Value::Object(all)
}

fn described(operation: &Operation) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": operation
            .parameters()
            .iter()
            .map(|parameter| reference("parameters", parameter))
            .collect::<Vec<_>>(),
        "responses": responses(operation),
    });
    if !operation.credentials {
        described["security"] = json!([]);
    }
    if let Some((schema, media, required)) = operation.body {
        described["requestBody"] = json!({
            "required": required,
            "content": content(media, schema),
        });
    }
    described
}

fn paths() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let mut item = Map::new();
        for method in route.methods() {
            let found = operations::find(route, method);
            item.insert(method.to_lowercase(), described(&found));
        }
        paths.insert(route.template.to_owned(), Value::Object(item));
    }
    Value::Object(paths)
}

fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "snapgate",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Backups of VMs and restores from them: the Sun Cloud API's \"Requests to Backup Resources\".",
            "description": "Every GET is also a HEAD, and OPTIONS answers `Allow`. Identifiers are 1 to 255 bytes of UTF-8, \
                percent-encoded. A change is answered 202 with a Status once it is on stable storage; follow `Location`.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "basic": [] }, { "bearer": [] }],
        "tags": [
            { "name": "backups", "description": "Backups and restores." },
            { "name": "statuses", "description": "What became of changes." },
            { "name": "versions", "description": "Who answers." },
        ],
        "paths": paths(),
        "components": {
            "securitySchemes": {
                "basic": { "type": "http", "scheme": "basic", "description": "RFC 7617, UTF-8." },
                "bearer": { "type": "http", "scheme": "bearer", "description": "RFC 6750, where tokens are configured." },
            },
            "parameters": schemas::parameters(),
            "headers": schemas::headers(),
            "schemas": schemas::schemas(),
        },
    })
}

#[test]
fn the_document_is_written_from_the_routes() {
    let mut found = serde_json::to_string_pretty(&document()).unwrap();
    found.push('\n');
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

#[test]
fn every_code_belongs_to_an_operation_or_to_a_status() {
    let mut used: BTreeSet<Code> = operations::ELSEWHERE.iter().copied().collect();
    for route in ROUTES {
        for method in route.methods() {
            used.extend(operations::find(route, method).codes());
        }
    }
    let known: BTreeSet<Code> = Code::ALL.iter().copied().collect();
    assert_eq!(
        used, known,
        "left: src/gate/tests/openapi/operations.rs, right: the codes"
    );
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_referred_to() {
    let document = document();
    let mut wanted = BTreeSet::new();
    let mut pending = vec![&document];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(path)) = members.get("$ref") {
                    wanted.insert(path.clone());
                }
                pending.extend(members.values());
            }
            Value::Array(items) => pending.extend(items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut there = BTreeSet::new();
    for kind in ["parameters", "headers", "schemas"] {
        let members = document["components"][kind].as_object().unwrap();
        there.extend(
            members
                .keys()
                .map(|key| format!("#/components/{kind}/{key}")),
        );
    }
    assert_eq!(wanted, there, "left: referred to, right: defined");
}
