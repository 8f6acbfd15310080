//! Whole files: what is read out of them, and every mistake with its exact words.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::adapter::Recovery;
use crate::adapters::cloudapi;
use crate::adapters::layers;
use crate::adapters::sim;
use crate::config::BackendKind;
use crate::config::Problem;
use crate::config::Settings;
use crate::config::keys_as_markdown;
use crate::config::keys_as_toml;
use crate::config::load;
use crate::config::schema::TABLES;
use crate::gate;
use crate::listener;
use crate::model::PrincipalName;
use crate::model::Secret;
use crate::operations;

const HASH: &str = "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa";

fn no_environment(_: &str) -> Option<String> {
    None
}

/// Loads a text in a folder of its own that also holds `vms/`.
fn loaded(text: &str) -> Result<Settings, String> {
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
fn golden(path: &str, found: &str) {
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
fn what_a_file_says_is_told_in_plain_lines_and_devices_are_not_read() {
    let rows = [
        (
            "[\"a\\u001b[2J\\nb\"]\n",
            "c.toml:1:2: a\\u{1b}[2J\\nb: is not a known table",
        ),
        (
            "[[user]]\nname = \"a\"\npassword_hash = \"file:/dev/zero\"\n",
            "names the file /dev/zero, which cannot be read: it is a device or a pipe",
        ),
    ];
    for (text, expected) in rows {
        let found = loaded(text).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
        let is_plain = |it: &str| !it.chars().any(char::is_control);
        assert!(
            found.lines().all(is_plain),
            "no control characters: {found:?}"
        );
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let text = fs::read_to_string("tests/golden/config-bad.toml").unwrap();
    let found = loaded(&text).unwrap_err();
    assert!(!found.contains("hunter2"), "no secret is shown");
    golden("tests/golden/config-bad.txt", &format!("{found}\n"));
}

#[test]
fn single_mistakes_have_these_words() {
    let store = "[operations]\nstore = \"s\"\n";
    let rows = [
        ("empty", "", "c.toml:1:1: operations.store: is missing\n    hint: write store = \"...\" (path)\n\n1 mistake".to_owned()),
        (
            "twice",
            "[log]\naccess = true\naccess = true\n",
            "c.toml:3:1: duplicate key\n\n1 mistake".to_owned(),
        ),
        (
            "table",
            &format!("{store}[[server]]\n"),
            "c.toml:3:3: server: is a list in the wrong place\n    hint: write [server] above its keys\n\n1 mistake".to_owned(),
        ),
        (
            "unit",
            &format!("{store}retention = 7\n"),
            "c.toml:3:13: operations.retention: has no unit\n    hint: write a number and a unit such as ms, s, m, h or d: \"7d\"\n\n1 mistake".to_owned(),
        ),
    ];
    for (name, text, expected) in rows {
        assert_eq!(loaded(text).unwrap_err(), expected, "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake() {
    let found = load(Path::new("/nowhere/c.toml"), &no_environment).unwrap_err();
    let expected = "/nowhere/c.toml: cannot be read: entity not found\n\n1 mistake";
    assert_eq!(found.to_string(), expected, "words");
    assert_eq!(
        found.files(),
        [PathBuf::from("/nowhere/c.toml")],
        "can be watched"
    );
}

#[test]
fn defaults_are_those_of_the_rooms() {
    let found = loaded(
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
    assert_eq!(found.gate.lock_out, gate::LockOut::default(), "lock-out");
    assert_eq!(
        found.gate.specification,
        gate::Specification::default(),
        "specification"
    );
    let store = found.operations.store.clone();
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
        found.backends[0].kind,
        BackendKind::Sim(sim::Config::default()),
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
        [[backend]]\nname = \"f\"\nkind = \"files\"\nroot = \"vms\"\nbackups = \"kept\"\nvms = [\"web*\", \"db\"]\n";
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
        ["c.toml", "bob.hash", "users"].map(|it| folder.path().join(it)),
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
            .contains("group[0].members[1]: \"eve\" is no known user"),
        "{problems}"
    );
}

#[test]
fn files_of_the_repository_can_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = vec![base.join("minimal.toml"), base.join("reference.toml")];
    files.extend(
        fs::read_dir(base.join("examples"))
            .unwrap()
            .map(|it| it.unwrap().path()),
    );
    assert!(files.len() >= 4, "there are examples");
    for made in ["srv/vms", "srv/backups"] {
        fs::create_dir_all(folder.path().join(made)).unwrap();
    }
    let secret = folder.path().join("manager.authorization");
    fs::write(secret, "Bearer token\n").unwrap();
    fs::write(folder.path().join("pve.token"), "gate@pve!t1=secret\n").unwrap();
    let keys = "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}";
    for name in ["sso.jwks.json", "ci.jwks.json"] {
        fs::write(folder.path().join(name), keys).unwrap();
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["backups.example.com".to_owned()]).unwrap();
    let made = made.self_signed(&key).unwrap().pem();
    for name in ["backups.example.com.pem", "clients.pem"] {
        fs::write(folder.path().join(name), &made).unwrap();
    }
    let file = folder.path().join("backups.example.com.key");
    fs::write(file, key.serialize_pem()).unwrap();
    let place = folder.path().to_str().unwrap();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.replace("/srv/", &format!("{place}/srv/"));
        let text = text.replace("/var/lib/snapgate/", &format!("{place}/"));
        let copy = folder.path().join("c.toml");
        fs::write(&copy, text).unwrap();
        if let Err(problems) = load(&copy, &no_environment) {
            panic!("{}:\n{problems}", file.display());
        }
    }
}

#[test]
fn the_reference_holds_every_key_and_its_default() {
    golden("config/reference.toml", &keys_as_toml());
}

#[test]
fn the_documentation_holds_every_key_and_its_default() {
    let path = "docs/configuration.md";
    let text = fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- keys: generated -->\n", "<!-- end of keys -->\n");
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let expected = format!("{before}{begin}\n{}{end}{after}", keys_as_markdown());
    golden(path, &expected);
}

#[test]
fn every_declared_key_is_read() {
    let mut declared = BTreeSet::new();
    let mut lines = Vec::new();
    for table in TABLES {
        let (open, close, index) = match table.repeated {
            true => ("[[", "]]", "[0]"),
            false => ("[", "]", ""),
        };
        lines.push(format!("{open}{}{close}\n", table.name));
        for key in table.keys {
            declared.insert(format!("{}{index}.{}", table.name, key.name()));
            lines.push(format!("{} = 1979-05-27\n", key.name()));
        }
    }
    let text = lines.concat();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let mut read = BTreeSet::new();
    for kind in [
        "1979-05-27",
        "\"cloudapi\"",
        "\"files\"",
        "\"incus\"",
        "\"libvirt\"",
        "\"proxmox\"",
        "\"qemu\"",
        "\"sim\"",
    ] {
        fs::write(
            &file,
            text.replace("kind = 1979-05-27", &format!("kind = {kind}")),
        )
        .unwrap();
        let problems = load(&file, &no_environment).unwrap_err();
        let mistyped = |it: &&Problem| it.what.starts_with("is a date or time");
        read.extend(
            problems
                .list()
                .iter()
                .filter(mistyped)
                .map(|it| it.key.clone()),
        );
    }
    assert_eq!(read, declared, "left: what is read, right: keys.rs");
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn routes_that_cannot_work_are_told() {
    let base =
        "name = \"m\"\npath = \"/m\"\nupstreams = [\"http://h:1\"]\nallow = [\"user:ann\"]\n";
    let https = base.replace("http:", "https:");
    let keyed = |keys: &str| format!("{base}{keys}\n");
    let rows = [
        (
            base.replace("/m\"", "/statuses\""),
            "\"/statuses\" is a path of this API, which is never passed through",
        ),
        (
            base.replace("/m\"", "/vms/1/backups/2\""),
            "\"/vms/1/backups/2\" is a path of this API",
        ),
        (base.replace("/m\"", "m\""), "\"m\" does not begin with '/'"),
        (
            base.replace("/m\"", "/a/../b\""),
            "\"/a/../b\" has empty or dot segments",
        ),
        (
            base.replace("allow", "#"),
            "allow: is missing: nobody may use the route",
        ),
        (base.replace("ann", "eve"), "\"user:eve\" is no known user"),
        (
            keyed("authentication = \"none\""),
            "allow: means nothing with authentication = \"none\"",
        ),
        (
            base.replace("h:1", "h:1/api"),
            "\"http://h:1/api\" is no upstream",
        ),
        (base.replace("h:1", "u:p@h:1"), "is no upstream"),
        (base.replace("h:1", "h:99999"), "is no upstream"),
        (
            base.replace("http:", "ftp:"),
            "\"ftp://h:1\" is no upstream",
        ),
        (
            base.replace("\"http://h:1\"", "\"http://h:1\", \"http://h:1\""),
            "is there twice",
        ),
        (
            base.replace("\"http://h:1\"", "\"http://h:1\", \"https://i:1\""),
            "upstreams: are partly https and partly not",
        ),
        (keyed("ca = \"ca.crt\""), "ca: means nothing without https"),
        (
            format!("{https}ca = \"ca.crt\""),
            "ca.crt: cannot be read: entity not found",
        ),
        (
            format!("{https}ca = \"c.toml\""),
            "c.toml: no PEM certificate found",
        ),
        (
            format!("{https}server_fingerprint = \"abc\""),
            "is not the SHA-256 of a certificate",
        ),
        (
            format!(
                "{https}server_fingerprint = \"{}\"\nclient_cert = \"c\"",
                "ab".repeat(32)
            ),
            "client_key: is missing beside client_cert",
        ),
        (
            keyed("authorization = \"Bearer hunter2\""),
            "authorization: holds a secret in plain sight",
        ),
        (
            keyed("authorization = \"env:NONE\""),
            "names the environment variable NONE, which is not set",
        ),
        (
            keyed("authorization = \"file:c.toml\""),
            "cannot be the value of a header field",
        ),
        (
            keyed("methods = [\"CONNECT\"]"),
            "\"CONNECT\" cannot be passed on",
        ),
        (keyed("hosts = [\"h:1\"]"), "\"h:1\" is no host"),
        (keyed("health_path = \"x\""), "\"x\" is no path"),
        (
            keyed("remove_headers = [\"a b\"]"),
            "\"a b\" is not the name of a header field",
        ),
        (
            keyed("remove_headers = [\"Content-Length\"]"),
            "\"Content-Length\" is written by the gateway itself",
        ),
        (
            keyed("keep_headers = [\"X-Forwarded-For\"]"),
            "\"X-Forwarded-For\" is written by the gateway itself",
        ),
        (
            keyed("keep_headers = [\"X-Original-URL\"]"),
            "\"X-Original-URL\" is never passed on",
        ),
        (
            keyed("keep_headers = [\"Accept\"]"),
            "\"Accept\" is passed on without this",
        ),
        (
            keyed("keep_headers = [\"Remote-User\"]\nremove_headers = [\"remote-user\"]"),
            "keep_headers: \"remote-user\" is in remove_headers, too",
        ),
        (
            format!("{base}[[passthrough]]\n{base}"),
            "the route m is there twice",
        ),
        (
            format!("{base}[[passthrough]]\n{}", base.replace("\"m\"", "\"n\"")),
            "path: is taken by the route m already",
        ),
    ];
    let head = format!(
        "[operations]\nstore = \"s\"\n[[user]]\nname = \"ann\"\npassword_hash = \"{HASH}\"\n[[passthrough]]\n"
    );
    assert!(loaded(&format!("{head}{base}")).is_ok(), "this is right");
    for (text, expected) in rows {
        let found = loaded(&format!("{head}{text}")).unwrap_err();
        assert!(found.contains(expected), "{text}\n{found}");
        assert!(!found.contains("hunter2"), "no secret is shown: {found}");
    }
}

#[test]
fn backends_of_lxd_and_incus_tell_what_is_missing() {
    let https = "url = \"https://lab:8443\"\n";
    let pinned = format!("{https}server_fingerprint = \"{}\"\n", "ab".repeat(32));
    let rows = [
        (
            "no url",
            String::new(),
            "backend[0].url: is missing in a backend of kind = \"incus\"",
        ),
        (
            "no form",
            "url = \"http://lab\"\n".to_owned(),
            "backend[0].url: is neither unix:///",
        ),
        (
            "nobody is trusted",
            https.to_owned(),
            "needs exactly one of server_cert, server_fingerprint and ca",
        ),
        (
            "two are trusted",
            format!("{pinned}ca = \"ca.crt\"\n"),
            "needs exactly one of",
        ),
        (
            "nobody asks",
            pinned.clone(),
            "needs client_cert and client_key",
        ),
        (
            "no file",
            format!("{pinned}client_cert = \"c.crt\"\nclient_key = \"c.key\"\n"),
            "c.crt cannot be read",
        ),
        (
            "project",
            "url = \"unix:///s\"\nproject = \"a/b\"\n".to_owned(),
            "is not the name of a project",
        ),
        (
            "of another kind",
            "url = \"unix:///s\"\nroot = \"r\"\n".to_owned(),
            "backend[0].root: belongs to backends of kind = \"files\"",
        ),
        ("good", "url = \"unix:///s\"\n".to_owned(), ""),
    ];
    for (name, keys, expected) in rows {
        let text = format!(
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"incus\"\nvms = [\"*\"]\n{keys}"
        );
        let found = loaded(&text).map_or_else(|it| it, |_| String::new());
        let right = if expected.is_empty() {
            found.is_empty()
        } else {
            found.contains(expected)
        };
        assert!(right, "{name}: {found}");
    }
}

#[expect(clippy::too_many_lines, reason = "it is a table")]
#[test]
fn no_two_folders_of_backends_are_one_place() {
    let backend = |name: &str, root: &str, backups: &str| {
        format!(
            "[[backend]]\nname = \"{name}\"\nkind = \"files\"\nvms = [\"{name}\"]\n\
             root = \"{root}\"\nbackups = \"{backups}\"\n"
        )
    };
    let more = ("more", "kept2");
    let rows = [
        ("side by side", ("vms", "kept"), more, ""),
        (
            "same",
            ("vms", "vms"),
            more,
            "backend[0].backups: is the same folder as root",
        ),
        (
            "below",
            ("vms", "./vms/kept"),
            more,
            "backend[0].backups: is below root",
        ),
        (
            "above",
            ("vms", "."),
            more,
            "backend[0].backups: is above root",
        ),
        (
            "link",
            ("vms", "link/kept"),
            more,
            "backend[0].backups: is below root",
        ),
        (
            "one root twice",
            ("vms", "kept"),
            ("vms", "kept2"),
            "backend[1].root: is the same folder as root of the backend one",
        ),
        (
            "one root by a link",
            ("vms", "kept"),
            ("link", "kept2"),
            "backend[1].root: is the same folder as root of the backend one",
        ),
        (
            "one root that does not exist yet",
            ("absent", "kept"),
            ("./more/../absent/", "kept2"),
            "backend[1].root: is the same folder as root of the backend one",
        ),
        (
            "a root below the other",
            ("vms", "kept"),
            ("link/deeper", "kept2"),
            "backend[1].root: is below root of the backend one",
        ),
        (
            "one backups folder twice",
            ("vms", "kept"),
            ("more", "./kept"),
            "backend[1].backups: is the same folder as backups of the backend one",
        ),
        (
            "other's root",
            ("vms", "kept"),
            ("more", "vms/kept"),
            "backend[1].backups: is below root of the backend one",
        ),
        (
            "other's backups",
            ("vms", "more/kept"),
            ("more", "kept"),
            "backend[1].root: is above backups of the backend one",
        ),
    ];
    for (name, one, two, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        for made in ["vms", "more"] {
            fs::create_dir(folder.path().join(made)).unwrap();
        }
        symlink(folder.path().join("vms"), folder.path().join("link")).unwrap();
        let file = folder.path().join("c.toml");
        let backends = backend("one", one.0, one.1) + &backend("two", two.0, two.1);
        fs::write(&file, format!("[operations]\nstore = \"s\"\n{backends}")).unwrap();
        let found = load(&file, &no_environment);
        let found = found.map_or_else(|problems| problems.to_string(), |_| String::new());
        let right = if expected.is_empty() {
            found.is_empty()
        } else {
            found.contains(expected)
        };
        assert!(right, "{name}: {found}");
    }
}

#[test]
fn a_simulator_of_its_own_is_configured() {
    let text = |more: &str| {
        format!(
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"sim\"\nvms = [\"*\"]\n{more}"
        )
    };
    let found = loaded(&text(
        "simulator = \"unix:/run/s\"\nrecovery = \"listable\"\nsettle = \"2s\"\n",
    ));
    let expected = sim::Config {
        simulator: Some(PathBuf::from("/run/s")),
        recovery: Recovery::Listable,
        settle: Duration::from_secs(2),
        ..sim::Config::default()
    };
    assert_eq!(
        found.unwrap().backends[0].kind,
        BackendKind::Sim(expected),
        "all three"
    );
    let mistakes = [
        ("simulator = \"tcp:1\"", "names no socket"),
        ("simulator = \"unix:\"", "names no socket"),
        ("recovery = \"always\"", "\"no-trace\""),
        (
            "simulator = \"unix:s\"\nduration = \"1s\"",
            "belongs to VMs in memory",
        ),
    ];
    for (more, expected) in mistakes {
        let said = loaded(&text(more)).unwrap_err();
        assert!(said.contains(expected), "{more}: {said}");
    }
}

#[test]
fn a_server_that_speaks_this_api_is_configured() {
    let text = |more: &str| {
        format!(
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"cloudapi\"\nvms = [\"*\"]\n{more}"
        )
    };
    let url = "url = \"http://127.0.0.1:1/base\"\n";
    let found = loaded(&text(&format!("{url}server_recovery = \"replay-safe\"\n"))).unwrap();
    let expected = cloudapi::Config {
        address: cloudapi::Address::Loopback("127.0.0.1:1".parse().unwrap()),
        base: vec!["base".to_owned()],
        credential: None,
        version: "0.1".to_owned(),
        recovery: Recovery::ReplaySafe,
        connect_timeout: Duration::from_secs(5),
    };
    assert_eq!(
        found.backends[0].kind,
        BackendKind::CloudApi(expected),
        "all of it"
    );
    let mistakes = [
        ("", "backend[0].url: is missing"),
        ("url = \"http://192.0.2.1\"", "can be read by all"),
        ("url = \"https://lab.example\"", "exactly one of ca"),
        (
            "url = \"https://lab.example\"\nserver_cert = \"a\"\nca = \"b\"",
            "exactly one of ca",
        ),
        (
            "url = \"https://lab.example\"\nca = \"nowhere.crt\"",
            "nowhere.crt cannot be read",
        ),
        (
            "url = \"https://lab.example\"\nca = \"a\"\nclient_cert = \"b\"",
            "client_cert and client_key, or neither",
        ),
        ("server_version = \"new\"", "does not speak version"),
        ("username = \"a\"", "must be there with password"),
        (
            "username = \"a\"\npassword = \"secret\"",
            "holds a secret itself",
        ),
        (
            "username = \"a\"\npassword = \"env:NOT_SET\"",
            "NOT_SET, which is not set",
        ),
        ("token = \"file:nowhere.token\"", "nowhere.token"),
        ("username = \"a\"\ntoken = \"env:X\"", "token alone"),
        ("project = \"x\"", "belongs to backends of kind = \"incus\""),
        ("server_recovery = \"always\"", "\"no-trace\""),
    ];
    for (more, expected) in mistakes {
        let whole = if more.is_empty() || more.starts_with("url") {
            more.to_owned()
        } else {
            format!("{url}{more}")
        };
        let said = loaded(&text(&whole)).unwrap_err();
        assert!(said.contains(expected), "{more}: {said}");
    }
}

#[test]
fn credentials_of_servers_come_from_files_and_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p"), "secret\n").unwrap();
    let file = folder.path().join("c.toml");
    let base = "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"cloudapi\"\nvms = [\"*\"]\nurl = \"unix:///s\"\n";
    let secret = Secret::new("secret".to_owned());
    let rows = [
        (
            "username = \"gate\"\npassword = \"file:p\"",
            cloudapi::Credential::basic("gate", &secret).unwrap(),
        ),
        (
            "token = \"env:TOKEN\"",
            cloudapi::Credential::bearer(&secret).unwrap(),
        ),
    ];
    for (more, expected) in rows {
        fs::write(&file, format!("{base}{more}\n")).unwrap();
        let env = |name: &str| (name == "TOKEN").then(|| "secret".to_owned());
        let found = load(&file, &env).unwrap_or_else(|error| panic!("{error}"));
        let BackendKind::CloudApi(config) = &found.backends[0].kind else {
            panic!("a server")
        };
        assert_eq!(config.credential.as_ref(), Some(&expected), "{more}");
        let read = found.files.iter().any(|file| file.ends_with("p"));
        assert_eq!(read, more.contains("file:"), "{more}: files are watched");
    }
}
