//! The gateway does what `docs/openapi.json` says: schemathesis sends it what the document allows and what it forbids.
//!
//! That the document names every route and code is tested where it is written: `src/gate/tests/openapi/`.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::runner::skip;

const DOCUMENT: &str = "docs/openapi.json";

/// The program, where `.ci/run` puts it or wherever it is.
fn schemathesis() -> String {
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/schemathesis/bin/schemathesis"
    );
    let found = [own, "schemathesis"].into_iter().find(|program| {
        let asked = Command::new(program).arg("--version").output();
        asked.is_ok_and(|output| output.status.success())
    });
    let Some(program) = found else {
        skip("schemathesis is not installed (PyPI, tests/schemathesis/requirements.txt)")
    };
    program.to_owned()
}

/// How a request may be refused that does not fit the document. An `If-Match` that is no tag matches nothing.
const REFUSED: &str = "\"400\", \"401\", \"403\", \"404\", \"405\", \"406\", \"409\", \"412\", \"414\", \"415\", \"422\", \"428\", \"429\", \"5xx\"";

/// Operations that ignore parameters they do not know.
const LISTS: [&str; 3] = ["readStatuses", "listBackups", "listVms"];

/// What the settings of schemathesis are: who calls, and what exists, so that not all is 404. A request that fits the document
/// may meet a backup in another state, and a VM manager that makes no backups of that type.
fn settings(api: &str, document: &str) -> String {
    let mut text = format!(
        "base-url = \"http://{api}\"\nseed = 1\n\
         [checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"501\"]\n\
         [checks.positive_data_acceptance]\nexpected-statuses = [\"2xx\", \"3xx\", \"403\", \"404\", \"409\", \"412\", \"422\", \"501\"]\n\
         [checks.negative_data_rejection]\nexpected-statuses = [{REFUSED}]\n\
         [auth.openapi.basic]\nusername = \"alice\"\npassword = \"secret\"\n\
         [dictionaries.vms]\nvalues = [\"33333\", \"333333\"]\n[dictionaries.backups]\nvalues = [\"456\"]\n"
    );
    // Parameters that are not known are ignored, unless strictness is asked for.
    for operation in LISTS {
        write!(
            text,
            "[[operations]]\ninclude-operation-id = \"{operation}\"\n\
             checks.negative_data_rejection.expected-statuses = [\"200\", {REFUSED}]\n"
        )
        .unwrap();
        // Not every order goes with every way to begin a list.
        if document.contains("/parameters/sort\"") {
            text.push_str("checks.positive_data_acceptance.expected-statuses = [\"2xx\", \"3xx\", \"400\", \"404\", \"412\"]\n");
        }
    }
    // A backup is asked about with its VM alone, which the document can only say in words.
    write!(
        text,
        "[[operations]]\ninclude-operation-id = \"listPermissions\"\n\
         checks.positive_data_acceptance.expected-statuses = [\"2xx\", \"3xx\", \"400\", \"404\", \"412\"]\n\
         checks.negative_data_rejection.expected-statuses = [\"200\", {REFUSED}]\n"
    )
    .unwrap();
    for (place, of) in [
        ("path.vm", "vms"),
        ("query.vm", "vms"),
        ("path.b", "backups"),
    ] {
        write!(
            text,
            "[parameters.\"{place}\"]\ndictionary = \"{of}\"\nprobability = 0.8\n"
        )
        .unwrap();
    }
    text
}

/// The document as the gateway of today keeps it: clients must expect further words and members, but it sends none.
fn closed(mut document: Value) -> Value {
    let requests = [
        "NewBackup",
        "BackupPatch",
        "Restore",
        "RestoreForm",
        "PlanRequest",
    ];
    let schemas = document["components"]["schemas"].as_object_mut().unwrap();
    for (name, schema) in schemas {
        if !requests.contains(&name.as_str()) {
            close(schema);
        }
    }
    // What is no cursor of the list is refused, and none can be made up.
    for item in document["paths"].as_object_mut().unwrap().values_mut() {
        for operation in item.as_object_mut().unwrap().values_mut() {
            let parameters = operation["parameters"].as_array_mut().unwrap();
            parameters.retain(|parameter| parameter["$ref"] != "#/components/parameters/cursor");
        }
    }
    // A body without any of these is refused; written like this, generators of clients would lose the members.
    let writable = ["name", "description", "tags", "protected"];
    document["components"]["schemas"]["BackupPatch"]["anyOf"] = writable
        .map(|member| json!({ "required": [member] }))
        .into();
    document
}

/// Closes a schema and all within it.
fn close(schema: &mut Value) {
    let Value::Object(members) = schema else {
        return;
    };
    if let Some(words) = members.remove("x-extensible-enum") {
        members.insert("enum".to_owned(), words);
    }
    if members.contains_key("properties") && !members.contains_key("additionalProperties") {
        members.insert("additionalProperties".to_owned(), json!(false));
    }
    for name in ["items", "additionalProperties"] {
        members.get_mut(name).into_iter().for_each(close);
    }
    if let Some(Value::Object(properties)) = members.get_mut("properties") {
        properties.values_mut().for_each(close);
    }
}

/// More links from the answers to changes, to operations on the same backup. The id of a new one is in the link of the Status
/// alone, and the way to take it from there is schemathesis' own, so it is not in the document.
fn with_links(mut document: Value) -> Value {
    const B: &str = "$response.header.Location#regex:[?&]b=([^&]+)";
    let vm = "$request.path.vm";
    let of_path = "$request.path.b";
    let changes = [
        ("/back_up", "post", "$request.query.vm", B),
        ("/back-up", "post", "$request.query.vm", B),
        ("/vms/{vm}/backups", "post", vm, B),
        ("/vms/{vm}/backups/{b}", "put", vm, of_path),
        ("/vms/{vm}/backups/{b}", "delete", vm, of_path),
        ("/vms/{vm}/backups/{b}/restore", "post", vm, of_path),
    ];
    let accepted = document["components"]["responses"]["Accepted"].clone();
    assert!(accepted["links"]["readStatus"].is_object(), "the Status");
    for (path, method, vm, b) in changes {
        let backup = json!({ "vm": vm, "b": b });
        let mut accepted = accepted.clone();
        for to in [
            "readBackup",
            "updateBackup",
            "deleteBackup",
            "restoreBackup",
        ] {
            accepted["links"][to] = json!({ "operationId": to, "parameters": backup });
        }
        let answer = &mut document["paths"][path][method]["responses"]["202"];
        assert!(answer.is_object(), "{method} {path} answers 202");
        *answer = accepted;
    }
    document
}

/// Runs it over a gateway of its own; what it found is in the assertion.
fn run(arguments: &[&str], at_least: u64) {
    let program = schemathesis();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ports = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    // The VMs of the examples.
    let quick = SIM
        .replace("50ms", "1ms")
        .replace(r#"["1", "2"]"#, r#"["33333", "333333"]"#);
    let config = write(
        "snapgate.toml",
        &format!("{ports}{quick}").replace("SECRET_HASH", SECRET_HASH),
    );
    let gateway = Process::start(&["serve", "--config", &config]);
    let text = fs::read_to_string(DOCUMENT).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let document = write("openapi.json", &with_links(closed(document)).to_string());
    let settings = write(
        "schemathesis.toml",
        &settings(&gateway.api.to_string(), &text),
    );
    let output = Command::new(program)
        .args(["--config-file", &settings, "run", &document])
        .args(["--checks", "all", "--continue-on-failure", "--no-color"])
        .args(["--request-timeout", "60"])
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cases = generated(&said);
    assert!(cases >= at_least, "only {cases} cases were sent: {said}");
    let alive = crate::client::Client::bare(gateway.admin).get("/healthz");
    assert_eq!(alive.status, 200, "the gateway lives: {alive:?}");
}

/// How many cases it says it sent.
fn generated(said: &str) -> u64 {
    let line = said.lines().find(|line| line.contains(" generated, "));
    let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    count.unwrap_or_else(|| panic!("it does not say how many cases: {said}"))
}

#[apply(test)]
fn every_request_is_answered_as_the_document_says() {
    let phases = ["--phases", "examples,coverage,fuzzing"];
    run(&[&phases[..], &["--max-examples", "20"]].concat(), 1000);
}

/// `Prefer: wait` makes every change be over when its answer comes: what was made is there, what was deleted is gone.
#[apply(test)]
fn every_sequence_of_requests_is_answered_as_the_document_says() {
    let phases = ["--phases", "stateful", "-H", "Prefer: wait=20"];
    run(&[&phases[..], &["--max-examples", "40"]].concat(), 100);
}

#[apply(test)]
fn the_document_is_where_the_readme_says() {
    let readme = fs::read_to_string("README.md").unwrap();
    assert!(readme.contains(DOCUMENT), "README.md names {DOCUMENT}");
    assert!(Path::new(DOCUMENT).is_file(), "{DOCUMENT} is there");
}
