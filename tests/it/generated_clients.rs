//! Generators make clients of `docs/openapi.json` that work: each drives a demo of its own by a script in `tests/clients/`.
//!
//! `.ci/run` installs the generators into `target/clients`. Every client meets a Status with words of a later version too.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::Process;
use crate::runner::skip;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients");

/// A place for a generated client, below the programs that `.ci/run` installs, so that node finds its modules above it.
fn workplace(part: &str, needed: &str) -> TempDir {
    let part = Path::new(INSTALLED).join(part);
    if !part.join(needed).exists() {
        let needed = part.join(needed);
        skip(&format!("{} is not installed (.ci/run)", needed.display()));
    }
    tempfile::Builder::new()
        .prefix("generated-")
        .tempdir_in(part)
        .unwrap()
}

/// Runs a program to its end and returns what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(output.status.success(), "{command:?}:\n{printed}");
    printed
}

fn python(name: &str) -> PathBuf {
    Path::new(INSTALLED).join("python/bin").join(name)
}

/// The generators start programs of their own environment: `ruff` and `java`.
fn generator(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(python(name));
    command.env("PATH", format!("{INSTALLED}/python/bin:{path}"));
    command
}

/// Answers every request with a Status that has words and a member of a later version.
fn later_gateway() -> SocketAddr {
    let status = json!({
        "op": "clone-Backup",
        "progress": 50,
        "target_uri": "/vms/1/backups/2",
        "status_uri": "/statuses?op=clone-Backup&seq=1",
        "seq": "1",
        "state": "PAUSED",
        "created": "2026-11-24T01:55:50Z",
        "later": { "than": "this version" },
    })
    .to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{status}",
        status.len()
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            // The requests are short and have no body: one read has all of each.
            let read = connection.read(&mut [0; 8192]);
            drop(read.and_then(|_| connection.write_all(answer.as_bytes())));
        }
    });
    address
}

/// Runs a script, which must come to its end, against a demo of its own.
fn drive(program: &Path, script: &Path, modules: &Path) {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("demo");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let gateway =
        Process::start(&[&["demo", "--dir", folder.to_str().unwrap()], &ports[..]].concat());
    let printed = run(Command::new(program)
        .arg(script)
        .arg(format!("http://{}", gateway.api))
        .arg(format!("http://{}", later_gateway()))
        .env("PYTHONPATH", modules)
        .env("PYTHONDONTWRITEBYTECODE", "1"));
    assert!(printed.ends_with("done\n"), "to the end: {printed}");
}

#[apply(test)]
fn a_client_of_openapi_python_client_works() {
    let place = workplace("python", "bin/openapi-python-client");
    let package = place.path().join("snapgate_client");
    run(generator("openapi-python-client")
        .args([
            "generate",
            "--meta",
            "none",
            "--path",
            DOCUMENT,
            "--output-path",
        ])
        .arg(&package));
    let script = Path::new(SCRIPTS).join("openapi_python_client.py");
    drive(&python("python"), &script, place.path());
}

#[apply(test)]
fn a_client_of_openapi_generator_works() {
    crate::requirements::require_programs(&["java"]);
    let place = workplace("python", "bin/openapi-generator-cli");
    run(generator("openapi-generator-cli")
        .args([
            "generate",
            "-g",
            "python",
            "-p",
            "packageName=snapgate_client",
            "-i",
            DOCUMENT,
            "-o",
        ])
        .arg(place.path()));
    let script = Path::new(SCRIPTS).join("openapi_generator.py");
    drive(&python("python"), &script, place.path());
}

#[apply(test)]
fn a_client_of_openapi_typescript_works() {
    crate::requirements::require_programs(&["node"]);
    let place = workplace("node", "node_modules/openapi-typescript");
    let modules = Path::new(INSTALLED).join("node/node_modules");
    run(Command::new("node")
        .arg(modules.join("openapi-typescript/bin/cli.js"))
        .args([DOCUMENT, "--output"])
        .arg(place.path().join("schema.d.ts")));
    for name in ["openapi_fetch.ts", "tsconfig.json"] {
        fs::copy(Path::new(SCRIPTS).join(name), place.path().join(name)).unwrap();
    }
    // The types are checked as strictly as the compiler can.
    run(Command::new("node")
        .arg(modules.join("typescript/bin/tsc"))
        .arg("--project")
        .arg(place.path()));
    let script = place.path().join("openapi_fetch.js");
    drive(Path::new("node"), &script, place.path());
}

#[apply(test)]
fn redocly_finds_nothing_in_the_document() {
    crate::requirements::require_programs(&["node"]);
    let place = workplace("node", "node_modules/@redocly/openapi-core");
    let script = place.path().join("lint.mjs");
    fs::copy(Path::new(SCRIPTS).join("lint.mjs"), &script).unwrap();
    run(Command::new("node").arg(&script).arg(DOCUMENT));
    // The rules do find something where there is something.
    let broken = place.path().join("broken.json");
    let text = fs::read_to_string(DOCUMENT).unwrap();
    fs::write(
        &broken,
        text.replace(
            "\"operationId\": \"readVm\"",
            "\"operationId\": \"readBackup\"",
        ),
    )
    .unwrap();
    let found = Command::new("node")
        .arg(&script)
        .arg(&broken)
        .output()
        .unwrap();
    assert!(
        !found.status.success(),
        "two operations of one name: {found:?}"
    );
}
