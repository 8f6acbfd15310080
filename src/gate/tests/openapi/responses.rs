//! Responses of the document: those that operations share, and each operation's own.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::gate::Code;
use crate::gate::negotiate;
use crate::gate::tests::openapi::content;
use crate::gate::tests::openapi::operations::Answer;
use crate::gate::tests::openapi::operations::Body;
use crate::gate::tests::openapi::operations::Operation;
use crate::gate::tests::openapi::reference;
use crate::gate::tests::openapi::references;

/// Headers of every answer.
const COMMON: [&str; 2] = ["X-Request-Id", "X-Cloud-Specification-Version"];

fn headers(own: &[&str]) -> Value {
    references("headers", &[&COMMON, own].concat())
}

/// The answers of an operation by status.
pub(super) fn of(operation: &Operation) -> Value {
    let mut all = Map::new();
    for code in operation.codes() {
        let status = code.status();
        all.insert(
            status.as_str().to_owned(),
            reference("responses", &name_of(status)),
        );
    }
    match &operation.answer {
        Answer::Accepted => {
            all.insert("202".to_owned(), reference("responses", "Accepted"));
        }
        Answer::Own(body) => {
            all.insert("200".to_owned(), own(body));
        }
    }
    if operation.is_tagged {
        all.insert("304".to_owned(), reference("responses", "NotModified"));
    }
    if operation.path == "/statuses" && operation.method == "GET" {
        all["200"]["content"][negotiate::EVENTS] = json!({
            "schema": { "type": "string", "description": "Server-sent events." },
        });
        all.insert("204".to_owned(), reference("responses", "NoMoreEvents"));
    }
    Value::Object(all)
}

fn own(body: &Body) -> Value {
    json!({
        "description": body.description,
        "headers": headers(body.headers),
        "content": content(body.media, body.schema, body.examples),
    })
}

/// `NotFound` for 404.
fn name_of(status: http::StatusCode) -> String {
    let reason = status.canonical_reason().unwrap();
    let words = reason.split([' ', '-']);
    words
        .map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        })
        .collect()
}

/// The answers that operations share, by name.
pub(super) fn shared() -> Value {
    let mut by_status: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for code in Code::ALL {
        let status = code.status().as_u16();
        by_status.entry(status).or_default().insert(code.as_str());
    }
    let mut all: Map<String, Value> = by_status
        .iter()
        .map(|(status, codes)| {
            let name = name_of(http::StatusCode::from_u16(*status).unwrap());
            (name, refusals(*status, codes))
        })
        .collect();
    let mut accepted = json!({
        "description": "Accepted and on stable storage: the Status of the operation.",
        "headers": headers(&["Location", "Content-Location", "Retry-After", "Cache-Control"]),
        "content": content(&[negotiate::STATUS, negotiate::JSON], "Status", &["Queued", "Status"]),
    });
    accepted["links"] = json!({
        "readStatus": { "operationId": "readStatuses", "parameters": { "seq": "$response.body#/seq" },
            "description": "What became of it. `Location` and `status_uri` are the same as a URI." },
        "cancelOperation": { "operationId": "cancelOperation", "parameters": { "seq": "$response.body#/seq" },
            "description": "Asks that it be stopped." },
    });
    all.insert("Accepted".to_owned(), accepted);
    all.insert(
        "NotModified".to_owned(),
        json!({ "description": "`If-None-Match` names the present state.", "headers": headers(&["ETag"]) }),
    );
    all.insert(
        "NoMoreEvents".to_owned(),
        json!({ "description": "There will be no event after the one that `Last-Event-ID` names.", "headers": headers(&[]) }),
    );
    Value::Object(all)
}

/// The answer for a status to which some codes belong.
fn refusals(status: u16, codes: &BTreeSet<&str>) -> Value {
    let codes: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
    let own: &[&str] = match status {
        401 => &["WWW-Authenticate"],
        409 => &["Location", "Retry-After"],
        415 => &["Accept", "Accept-Post"],
        429 | 503 => &["Retry-After"],
        _ => &[],
    };
    let examples: &[&str] = if status == 404 { &["Refusal"] } else { &[] };
    json!({
        "description": format!("{}.", codes.join(", ")),
        "headers": headers(own),
        "content": content(&[negotiate::MESSAGES, negotiate::PROBLEM], "Messages", examples),
    })
}
