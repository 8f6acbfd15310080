//! Fails when a room imports one it must not know, or when files import one another in a circle. See docs/architecture.md.

mod graph_tests;
mod module_graph;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use crate::architecture::module_graph::Dependencies;
use crate::architecture::module_graph::circles;
use crate::architecture::module_graph::dependencies;
use crate::ratchet::Counts;
use crate::ratchet::check_counts;
use crate::source_tree::code_of;
use crate::source_tree::read_rust_below;

/// What each room of `src/` may import from this crate.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("runtime", &["model"]),
    // Log lines name what the running task works for.
    ("telemetry", &["model", "runtime"]),
    // Declared keys and their reading, below those who declare keys: the configuration and each adapter.
    ("schema", &["model"]),
    ("adapters", &["model", "runtime", "telemetry", "schema"]),
    // The connection alone: what is kept there is the matter of those above.
    ("etcd", &["model", "runtime"]),
    // Who is active, and for how long: knows neither operations nor requests.
    ("cluster", &["model", "runtime", "telemetry", "etcd"]),
    (
        "operations",
        &["model", "runtime", "telemetry", "adapters", "etcd"],
    ),
    ("gate", &["model", "runtime", "telemetry", "operations"]),
    ("listener", &["model", "runtime", "telemetry", "gate"]),
    (
        "config",
        &[
            "model",
            "schema",
            "runtime",
            "telemetry",
            "adapters",
            "etcd",
            "cluster",
            "operations",
            "gate",
            "listener",
        ],
    ),
    (
        "app",
        &[
            "model",
            "schema",
            "runtime",
            "telemetry",
            "adapters",
            "etcd",
            "cluster",
            "operations",
            "gate",
            "listener",
            "config",
        ],
    ),
    ("demo", &["model", "runtime", "adapters"]),
    // Knows the public API alone, so that it works with any server that speaks it.
    ("client", &["model"]),
    (
        "cli",
        &[
            "model",
            "schema",
            "runtime",
            "telemetry",
            "adapters",
            "etcd",
            "cluster",
            "operations",
            "gate",
            "listener",
            "config",
            "app",
            "demo",
            "client",
        ],
    ),
    ("lib", &[]),
];

/// Text that only one file may hold: code that can write it can forge the value it makes.
const ONLY_IN: &[(&str, &str)] = &[("Permit::issue", "src/gate/authz.rs")];

/// Folders of `src/adapters/` that every adapter may import.
const SHARED_BY_ADAPTERS: &[&str] = &["layers", "transport"];

/// Paths of other crates that only one room may name.
const OWNED_BY: &[(&[&str], &str)] = &[
    (&["pingora"], "listener"),
    (&["prometheus"], "telemetry"),
    (&["rusqlite"], "operations"),
    (&["etcd_client"], "etcd"),
    (&["tonic"], "etcd"),
    (&["tokio", "spawn"], "runtime"),
    (&["tokio", "task", "spawn"], "runtime"),
    (&["tokio", "signal"], "runtime"),
];

/// Types that a room may take from one it does not know, because the room between them re-exports them.
const HANDED_ON: &[(&str, &str, &[&str])] = &[(
    "gate",
    "src/adapters/adapter.rs",
    // What a backend is able to do, as `operations` hands it on.
    &[
        "Capability",
        "Listable",
        "NoTrace",
        "Recovery",
        "ReplaySafe",
        "VerbCapability",
    ],
)];

/// The room of a file: `gate` for `src/gate/route.rs`, `demo` for `src/demo.rs`.
fn room_of(file: &str) -> &str {
    let below = file.strip_prefix("src/").unwrap_or(file);
    let first = below.split('/').next().unwrap_or_default();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The folder of an adapter, `qemu` for `src/adapters/qemu/map.rs`; `None` for what adapters share.
fn adapter_of(file: &str) -> Option<&str> {
    let (folder, _) = file.strip_prefix("src/adapters/")?.split_once('/')?;
    (!SHARED_BY_ADAPTERS.contains(&folder)).then_some(folder)
}

/// The crate without its tests, and with them. Reading it takes seconds.
static CRATE: LazyLock<Dependencies> = LazyLock::new(|| read_crate(false));
static CRATE_WITH_TESTS: LazyLock<Dependencies> = LazyLock::new(|| read_crate(true));

fn read_crate(with_tests: bool) -> Dependencies {
    dependencies(&read_rust_below("src"), "src", with_tests)
}

#[apply(test)]
fn rooms_import_only_downwards() {
    let mut wrong = Vec::new();
    for (file, others) in &CRATE_WITH_TESTS.files {
        let room = room_of(file);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("{file}: the room {room} has no row in MAY_IMPORT"));
            continue;
        };
        for (other, names) in others {
            let needed = room_of(other);
            // The root holds nothing of its own: it names every room.
            let is_allowed = needed == room || needed == "lib" || allowed.contains(&needed);
            let is_handed_on = HANDED_ON.iter().any(|(by, from, types)| {
                *by == room
                    && from == other
                    && names.iter().all(|name| types.contains(&name.as_str()))
            });
            if !is_allowed && !is_handed_on {
                wrong.push(format!(
                    "{file}: {room} imports {needed}: {names:?} of {other}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[apply(test)]
fn adapters_do_not_import_one_another() {
    let mut wrong = Vec::new();
    for (file, others) in &CRATE_WITH_TESTS.files {
        for (other, names) in others {
            if let (Some(one), Some(two)) = (adapter_of(file), adapter_of(other))
                && one != two
            {
                wrong.push(format!(
                    "{file}: adapter {one} imports adapter {two}: {names:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[apply(test)]
fn libraries_with_an_owner_are_named_by_its_room_alone() {
    let mut wrong = Vec::new();
    for (file, paths) in &CRATE_WITH_TESTS.external {
        for (library, owner) in OWNED_BY {
            let names = |path: &&Vec<String>| {
                path.len() >= library.len()
                    && path.iter().zip(*library).all(|(one, two)| one == two)
            };
            if room_of(file) != *owner
                && let Some(path) = paths.iter().find(names)
            {
                wrong.push(format!("{file}: only {owner} may name {}", path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[apply(test)]
fn permits_are_issued_in_one_file() {
    let mut wrong = Vec::new();
    for (file, text) in read_rust_below("src") {
        for (token, home) in ONLY_IN {
            if file != *home && text.lines().any(|line| code_of(line).contains(token)) {
                wrong.push(format!("{file}: only {home} may write {token}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// `tests/golden/circles.txt` lists how many files of each folder still lie in circles.
#[apply(test)]
fn no_files_import_one_another_in_a_circle() {
    let mut found = CRATE.clone();
    found.files.retain(|file, _| !file.ends_with("/mod.rs"));
    check_circles("circles", &found);
}

/// The same with the `mod.rs` files that define something of their own.
#[apply(test)]
fn no_parent_module_and_its_children_import_one_another() {
    check_circles("circles-with-parents", &CRATE);
}

fn check_circles(list: &str, found: &Dependencies) {
    let circles = circles(found);
    let mut counts = Counts::new();
    for file in circles.iter().flatten() {
        *counts.entry(folder_of(file)).or_default() += 1;
    }
    let touches = |circle: &&BTreeSet<String>, folder: &str| {
        circle.iter().any(|file| folder_of(file) == folder)
    };
    check_counts(list, &counts, |folder| {
        let concerned = circles.iter().filter(|circle| touches(circle, folder));
        concerned.map(|circle| describe(circle, found)).collect()
    });
}

fn folder_of(file: &str) -> String {
    let (folder, _) = file.rsplit_once('/').unwrap_or(("", file));
    folder.to_owned()
}

/// Which names tie the files of a circle.
fn describe(circle: &BTreeSet<String>, found: &Dependencies) -> String {
    let mut text = "circle:\n".to_owned();
    for file in circle {
        for (other, names) in &found.files[file] {
            if circle.contains(other) {
                text.push_str(&format!("  {file} -> {other}: {names:?}\n"));
            }
        }
    }
    text
}
