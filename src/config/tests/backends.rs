//! `[[backend]]` and the table of its kind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapters::adapter::Recovery;
use crate::adapters::cloudapi;
use crate::adapters::sim;
use crate::adapters::transport;
use crate::config::BackendConfig;
use crate::config::load;
use crate::config::tests::load_text;
use crate::config::tests::no_environment;
use crate::model::Credential;
use crate::model::Secret;

#[test]
fn backends_of_lxd_and_incus_report_missing_keys() {
    let https = "url = \"https://lab:8443\"\n";
    let pinned = format!("{https}server_fingerprint = \"{}\"\n", "ab".repeat(32));
    let rows = [
        ("no url", String::new(), "backend[0].incus.url: is required"),
        (
            "no form",
            "url = \"http://lab\"\n".to_owned(),
            "backend[0].incus.url: is neither unix:///",
        ),
        (
            "no server is trusted",
            https.to_owned(),
            "needs exactly one of ca, server_cert and server_fingerprint",
        ),
        (
            "two are trusted",
            format!("{pinned}ca = \"ca.crt\"\n"),
            "needs exactly one of",
        ),
        (
            "no client certificate",
            pinned.clone(),
            "needs client_cert and client_key",
        ),
        (
            "no file",
            format!("{pinned}client_cert = \"c.crt\"\nclient_key = \"c.key\"\n"),
            "c.crt: No such file",
        ),
        (
            "project",
            "url = \"unix:///s\"\nproject = \"a/b\"\n".to_owned(),
            "invalid project name",
        ),
        (
            "of another kind",
            "url = \"unix:///s\"\nroot = \"r\"\n".to_owned(),
            "backend[0].incus.root: unknown key",
        ),
        ("good", "url = \"unix:///s\"\n".to_owned(), ""),
    ];
    for (name, keys, expected) in rows {
        let text = format!(
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"incus\"\nvms = [\"*\"]\n[backend.incus]\n{keys}"
        );
        let found = load_text(&text).map_or_else(|error| error, |_| String::new());
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
fn folders_of_backends_do_not_overlap() {
    let backend = |name: &str, root: &str, backups: &str| {
        format!(
            "[[backend]]\nname = \"{name}\"\nkind = \"files\"\nvms = [\"{name}\"]\n[backend.files]\n\
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
            "backend[0].files.backups: is the same folder as root",
        ),
        (
            "below",
            ("vms", "./vms/kept"),
            more,
            "backend[0].files.backups: is below root",
        ),
        (
            "above",
            ("vms", "."),
            more,
            "backend[0].files.backups: is above root",
        ),
        (
            "link",
            ("vms", "link/kept"),
            more,
            "backend[0].files.backups: is below root",
        ),
        (
            "one root twice",
            ("vms", "kept"),
            ("vms", "kept2"),
            "backend[1].files.root: is the same folder as root of backend one",
        ),
        (
            "one root by a link",
            ("vms", "kept"),
            ("link", "kept2"),
            "backend[1].files.root: is the same folder as root of backend one",
        ),
        (
            "one root that does not exist yet",
            ("absent", "kept"),
            ("./more/../absent/", "kept2"),
            "backend[1].files.root: is the same folder as root of backend one",
        ),
        (
            "a root below the other",
            ("vms", "kept"),
            ("link/deeper", "kept2"),
            "backend[1].files.root: is below root of backend one",
        ),
        (
            "one backups folder twice",
            ("vms", "kept"),
            ("more", "./kept"),
            "backend[1].files.backups: is the same folder as backups of backend one",
        ),
        (
            "other's root",
            ("vms", "kept"),
            ("more", "vms/kept"),
            "backend[1].files.backups: is below root of backend one",
        ),
        (
            "other's backups",
            ("vms", "more/kept"),
            ("more", "kept"),
            "backend[1].files.root: is above backups of backend one",
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
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"sim\"\nvms = [\"*\"]\n[backend.sim]\n{more}"
        )
    };
    let found = load_text(&text(
        "simulator = \"unix:/run/s\"\nrecovery = \"listable\"\nsettle = \"2s\"\n",
    ));
    let expected = sim::Config {
        simulator: Some(PathBuf::from("/run/s")),
        recovery: Recovery::Listable,
        settle: Duration::from_secs(2),
        ..sim::Config::default()
    };
    assert_eq!(
        found.unwrap().backends[0].config,
        BackendConfig::Sim(expected),
        "all three"
    );
    let rows = [
        ("simulator = \"tcp:1\"", "is not the address of a socket"),
        ("simulator = \"unix:\"", "is not the address of a socket"),
        ("recovery = \"always\"", "\"no-trace\""),
        (
            "simulator = \"unix:s\"\nduration = \"1s\"",
            "has no effect with simulator",
        ),
    ];
    for (more, expected) in rows {
        let found = load_text(&text(more)).unwrap_err();
        assert!(found.contains(expected), "{more}: {found}");
    }
}

#[test]
fn a_server_that_speaks_this_api_is_configured() {
    let text = |more: &str| {
        format!(
            "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"cloudapi\"\nvms = [\"*\"]\n[backend.cloudapi]\n{more}"
        )
    };
    let url = "url = \"http://127.0.0.1:1/base\"\n";
    let found = load_text(&text(&format!("{url}server_recovery = \"replay-safe\"\n"))).unwrap();
    let expected = cloudapi::Config {
        address: transport::Address::Loopback("127.0.0.1:1".parse().unwrap()),
        base: vec!["base".to_owned()],
        credential: None,
        version: "0.1".to_owned(),
        recovery: Recovery::ReplaySafe,
        connect_timeout: Duration::from_secs(5),
    };
    assert_eq!(
        found.backends[0].config,
        BackendConfig::CloudApi(expected),
        "all of it"
    );
    let rows = [
        ("", "backend[0].cloudapi.url: is required"),
        ("url = \"http://192.0.2.1\"", "in cleartext"),
        ("url = \"https://lab.example\"", "exactly one of ca"),
        (
            "url = \"https://lab.example\"\nserver_cert = \"a\"\nca = \"b\"",
            "exactly one of ca",
        ),
        (
            "url = \"https://lab.example\"\nca = \"nowhere.crt\"",
            "nowhere.crt: No such file",
        ),
        (
            "url = \"https://lab.example\"\nca = \"a\"\nclient_cert = \"b\"",
            "both client_cert and client_key",
        ),
        ("server_version = \"new\"", "unsupported version"),
        ("username = \"a\"", "needs password"),
        (
            "username = \"a\"\npassword = \"secret\"",
            "contains the secret itself",
        ),
        (
            "username = \"a\"\npassword = \"env:NOT_SET\"",
            "NOT_SET is not set",
        ),
        ("token = \"file:nowhere.token\"", "nowhere.token"),
        ("username = \"a\"\ntoken = \"env:X\"", "token alone"),
        ("project = \"x\"", "unknown key"),
        ("server_recovery = \"always\"", "\"no-trace\""),
    ];
    for (more, expected) in rows {
        let whole = if more.is_empty() || more.starts_with("url") {
            more.to_owned()
        } else {
            format!("{url}{more}")
        };
        let found = load_text(&text(&whole)).unwrap_err();
        assert!(found.contains(expected), "{more}: {found}");
    }
}

#[test]
fn credentials_of_servers_come_from_files_and_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p"), "secret\n").unwrap();
    let file = folder.path().join("c.toml");
    let base = "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nkind = \"cloudapi\"\nvms = [\"*\"]\n[backend.cloudapi]\nurl = \"unix:///s\"\n";
    let secret = Secret::new("secret".to_owned());
    let rows = [
        (
            "username = \"gate\"\npassword = \"file:p\"",
            Credential::basic("gate", &secret).unwrap(),
        ),
        (
            "token = \"env:TOKEN\"",
            Credential::bearer(&secret).unwrap(),
        ),
    ];
    for (more, expected) in rows {
        fs::write(&file, format!("{base}{more}\n")).unwrap();
        let env = |name: &str| (name == "TOKEN").then(|| "secret".to_owned());
        let found = load(&file, &env).unwrap_or_else(|error| panic!("{error}"));
        let BackendConfig::CloudApi(config) = &found.backends[0].config else {
            panic!("a server")
        };
        assert_eq!(config.credential.as_ref(), Some(&expected), "{more}");
        let read = found.files.iter().any(|file| file.ends_with("p"));
        assert_eq!(read, more.contains("file:"), "{more}: files are watched");
    }
}
