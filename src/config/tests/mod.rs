//! Whole files: the settings they load to, and every error with its exact words.

mod backends;
mod cluster;
mod documentation;
mod nested_tables;
mod page;
mod passthrough;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::layers;
use crate::adapters::sim;
use crate::config::BackendConfig;
use crate::config::Settings;
use crate::config::load;
use crate::gate;
use crate::listener;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations;

const HASH: &str = "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa";

fn no_environment(_: &str) -> Option<String> {
    None
}

/// Loads a text in a folder of its own that also holds `vms/`.
fn load_text(text: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("vms")).unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, text).unwrap();
    load(&file, &no_environment).map_err(|error| {
        let place = format!("{}/", folder.path().display());
        error.to_string().replace(&place, "")
    })
}

/// Compares with a file of the repository, or rewrites it when `UPDATE_GOLDEN` is set.
fn check_golden(path: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if crate::config::environment("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found,
        expected,
        "{} differs; UPDATE_GOLDEN=1 rewrites it",
        path.display()
    );
}

#[test]
fn control_characters_are_escaped_and_devices_are_not_read() {
    let rows = [
        (
            "[\"a\\u001b[2J\\nb\"]\n",
            "c.toml:1:2: a\\u{1b}[2J\\nb: unknown table",
        ),
        (
            "[[user]]\nname = \"a\"\npassword_hash = \"file:/dev/zero\"\n",
            "cannot read /dev/zero: not a regular file",
        ),
    ];
    for (text, expected) in rows {
        let found = load_text(text).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
        let is_plain = |line: &str| !line.chars().any(char::is_control);
        assert!(
            found.lines().all(is_plain),
            "no control characters: {found:?}"
        );
    }
}

#[test]
fn every_error_of_a_file_is_reported_at_once() {
    let text = fs::read_to_string("tests/golden/config-bad.toml").unwrap();
    let found = load_text(&text).unwrap_err();
    assert!(!found.contains("hunter2"), "no secret is shown");
    check_golden("tests/golden/config-bad.txt", &format!("{found}\n"));
}

#[test]
fn single_errors_have_these_words() {
    let store = "[operations]\nstore = \"s\"\n";
    let rows = [
        ("empty", "", "c.toml:1:1: operations.store: is required\n    hint: write store = \"...\" (path, or `etcd`)\n\n1 error".to_owned()),
        (
            "twice",
            "[log]\naccess = true\naccess = true\n",
            "c.toml:3:1: duplicate key\n\n1 error".to_owned(),
        ),
        (
            "table",
            &format!("{store}[[server]]\n"),
            "c.toml:3:3: server: expected a table, got an array\n    hint: write [server] above its keys\n\n1 error".to_owned(),
        ),
        (
            "unit",
            &format!("{store}retention = 7\n"),
            "c.toml:3:13: operations.retention: missing unit\n    hint: write a number and a unit such as ms, s, m, h or d: \"7d\"\n\n1 error".to_owned(),
        ),
    ];
    for (name, text, expected) in rows {
        assert_eq!(load_text(text).unwrap_err(), expected, "{name}");
    }
}

#[test]
fn allowed_origins_are_exact_and_each_error_has_a_hint() {
    let text = |origins: &str| {
        format!("[server]\nallowed_origins = [{origins}]\n[operations]\nstore = \"s\"\n")
    };
    let form = "write http:// or https://, a host and optionally a port, without a path or a trailing slash";
    let rows = [
        (
            "\"*\"",
            "\"*\" would allow pages of every site",
            "name each origin",
        ),
        (
            "\"https://*.example\"",
            "would allow pages of every site",
            "name each origin",
        ),
        (
            "\"null\"",
            "\"null\" is the origin that every page can have",
            "name each origin",
        ),
        (
            "\"https://a.example/\"",
            "\"https://a.example/\" is not an origin",
            form,
        ),
        ("\"a.example\"", "\"a.example\" is not an origin", form),
        (
            "\"https://a.example\", \"https://A.example:443\"",
            "duplicate origin \"https://A.example:443\"",
            "remove one",
        ),
    ];
    for (origins, what, hint) in rows {
        let found = load_text(&text(origins)).unwrap_err();
        assert!(
            found.contains("server.allowed_origins["),
            "{origins}: {found}"
        );
        assert!(
            found.contains(what) && found.contains(hint),
            "{origins}: {found}"
        );
    }
    let found = load_text(&text("\"https://a.example\", \"http://b.example:8080\"")).unwrap();
    let origins: Vec<String> = found
        .gate
        .allowed_origins
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        origins,
        ["https://a.example", "http://b.example:8080"],
        "in order"
    );
    let warned = crate::config::warnings(&found, Timestamp::default());
    let about = warned
        .iter()
        .filter(|line| line.starts_with("server.allowed_origins"));
    let about: Vec<_> = about.collect();
    assert_eq!(about.len(), 1, "{warned:?}");
    assert!(
        about[0].contains("http://b.example:8080 are not encrypted"),
        "{about:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let found = load(Path::new("/nowhere/c.toml"), &no_environment).unwrap_err();
    let expected = "/nowhere/c.toml: no such file\n\n1 error";
    assert_eq!(found.to_string(), expected, "words");
    assert_eq!(
        found.files(),
        [PathBuf::from("/nowhere/c.toml")],
        "can be watched"
    );
}

#[test]
fn defaults_are_those_of_the_rooms() {
    let found = load_text(
        "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"sim\"\nvms = [\"*\"]\n",
    )
    .unwrap();
    assert_eq!(
        found.listener.limits,
        listener::Limits::default(),
        "listener"
    );
    assert_eq!(found.gate.limits, gate::Limits::default(), "gate");
    assert_eq!(found.gate.rates, gate::RateLimits::default(), "rates");
    assert_eq!(found.gate.lockout, gate::LockoutRule::default(), "lock-out");
    assert_eq!(
        found.gate.specification,
        gate::Specification::default(),
        "specification"
    );
    let store = found.operations.store.file().unwrap().to_owned();
    assert_eq!(
        found.operations,
        operations::Config::with_store(store),
        "operations"
    );
    assert_eq!(
        found.backends[0].layers,
        layers::Config::default(),
        "layers"
    );
    assert_eq!(
        found.backends[0].config,
        BackendConfig::Sim(sim::Config::default()),
        "sim"
    );
    assert_eq!(
        found.gate.public_url.as_str(),
        "http://127.0.0.1:8080",
        "public_url"
    );
    assert!((1..=256).contains(&found.threads), "threads");
    assert_eq!(found.hash.len(), 64, "hash");
}

#[test]
fn values_secrets_and_groups_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::create_dir(folder.path().join("vms")).unwrap();
    fs::write(folder.path().join("bob.hash"), format!("{HASH}\n")).unwrap();
    fs::write(folder.path().join("users"), format!("# more\neve:{HASH}\n")).unwrap();
    let text = "[authentication]\nhtpasswd = \"users\"\nremember = \"1m 30s\"\n\
        [[user]]\nname = \"ann\"\npassword_hash = \"env:ANN\"\ngroups = [\"b\"]\n\
        [[user]]\nname = \"bob\"\npassword_hash = \"file:bob.hash\"\n\
        [[group]]\nname = \"a\"\nmembers = [\"ann\", \"eve\"]\n\
        [operations]\nstore = \"s\"\n[limits]\nbody = \"2KiB\"\n\
        [[backend]]\nname = \"f\"\nkind = \"files\"\nvms = [\"web*\", \"db\"]\n[backend.files]\nroot = \"vms\"\nbackups = \"kept\"\n";
    fs::write(&file, text).unwrap();
    let env = |name: &str| (name == "ANN").then(|| HASH.to_owned());
    let found = load(&file, &env).unwrap();
    let users = &found.gate.credentials.users;
    let groups = |name: &str| -> Vec<String> {
        let user = &users[&PrincipalName::new(name).unwrap()];
        assert_eq!(user.password.reveal(), HASH, "hash of {name}");
        user.groups.iter().map(ToString::to_string).collect()
    };
    assert_eq!(groups("ann"), ["a", "b"], "from both sides, sorted");
    assert_eq!(groups("bob"), Vec::<String>::new(), "none");
    assert_eq!(groups("eve"), ["a"], "a user of the other file");
    assert_eq!(
        found.gate.credentials.remember,
        Duration::from_secs(90),
        "remember"
    );
    assert_eq!(found.gate.limits.body_bytes, 2048, "body");
    assert_eq!(found.gate.placements.len(), 2, "placements");
    assert_eq!(
        found.files,
        ["c.toml", "bob.hash", "users"].map(|name| folder.path().join(name)),
        "files"
    );
    assert!(
        !format!("{found:?}").contains(HASH),
        "debug output hides hashes"
    );
    fs::write(folder.path().join("users"), format!("zoe:{HASH}\n")).unwrap();
    let problems = load(&file, &env).unwrap_err();
    assert!(
        problems
            .to_string()
            .contains("group[0].members[1]: unknown user \"eve\""),
        "{problems}"
    );
}
