//! Fails when a layer imports one it must not know about. See docs/architecture.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each layer of `src/` may import from this crate.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("runtime", &["model"]),
    ("telemetry", &["model"]),
    // Declared keys and their reading, below those who declare keys: the configuration and each adapter.
    ("schema", &["model"]),
    ("adapters", &["model", "runtime", "telemetry", "schema"]),
    ("operations", &["model", "runtime", "telemetry", "adapters"]),
    ("gate", &["model", "runtime", "telemetry", "operations"]),
    ("listener", &["model", "runtime", "telemetry", "gate"]),
    (
        "config",
        &[
            "model",
            "runtime",
            "telemetry",
            "schema",
            "adapters",
            "operations",
            "gate",
            "listener",
        ],
    ),
];

/// Text that only one file may hold: whoever can write it can forge the thing it makes.
const ONLY_IN: &[(&str, &str)] = &[("Permit::issue", "src/gate/authz.rs")];

/// Folders of `src/adapters/` that every adapter may import.
const SHARED_BY_ADAPTERS: &[&str] = &["layers", "transport"];

/// External crates that only one layer may name.
const OWNED_BY: &[(&str, &str)] = &[
    ("pingora", "listener"),
    ("prometheus", "telemetry"),
    ("rusqlite", "operations"),
    ("tokio::spawn", "runtime"),
    ("tokio::signal", "runtime"),
];

#[test]
fn layers_import_only_downwards() {
    let mut wrong = Vec::new();
    for (layer, allowed) in MAY_IMPORT {
        for file in rust_files(&Path::new("src").join(layer)) {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                for other in named_layers(line) {
                    if other != *layer && !allowed.contains(&other) {
                        wrong.push(format!(
                            "{}:{}: {layer} imports {other}",
                            file.display(),
                            number + 1
                        ));
                    }
                }
                for (token, home) in ONLY_IN {
                    if code(line).contains(token) && file != Path::new(home) {
                        wrong.push(format!(
                            "{}:{}: only {home} may write {token}",
                            file.display(),
                            number + 1
                        ));
                    }
                }
                for (krate, owner) in OWNED_BY {
                    if code(line).contains(krate) && owner != layer {
                        wrong.push(format!(
                            "{}:{}: only {owner} may name {krate}",
                            file.display(),
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    // Adapters know nothing of one another; what they share sits in these folders.
    let mut adapters = BTreeMap::new();
    for dir in fs::read_dir("src/adapters")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.is_dir()
                && !SHARED_BY_ADAPTERS
                    .iter()
                    .any(|shared| path.ends_with(shared))
        })
    {
        adapters.insert(dir.file_name().unwrap().to_str().unwrap().to_owned(), dir);
    }
    for (name, dir) in &adapters {
        for file in rust_files(dir) {
            let text = fs::read_to_string(&file).unwrap();
            for other in adapters.keys().filter(|other| *other != name) {
                if text.contains(&format!("adapters::{other}")) {
                    wrong.push(format!(
                        "{}: adapter {name} imports adapter {other}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Layers named by `crate::layer` anywhere in one line of code; comments are skipped.
fn named_layers(line: &str) -> Vec<&'static str> {
    let code = code(line);
    MAY_IMPORT
        .iter()
        .map(|(layer, _)| *layer)
        .filter(|layer| code.contains(&format!("crate::{layer}")))
        .collect()
}

/// The line without its `//` comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
