//! What `snapgate check` reports about issuers and routes.

use std::fs;
use std::path::Path;

use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::program;
use crate::issuers::CORP;
use crate::issuers::Keys;

/// What `check` says, and how it ends.
fn check(config: &Path) -> (i32, String) {
    let ended = program()
        .args(["check", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (ended.status.code().unwrap(), text)
}

#[apply(test)]
fn problems_of_an_issuer_are_reported_with_their_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    let set = Keys::new().set(&["a"]);
    fs::write(folder.path().join("keys.json"), set).unwrap();
    let url = "jwks_url = \"https://sso.example.com/jwks\"\n";
    let rows = [
        (
            "neither",
            String::new(),
            "issuer[0].jwks: is required",
            "jwks_url = \"https://...\"",
        ),
        (
            "both",
            format!("jwks = \"keys.json\"\n{url}"),
            "issuer[0].jwks_url: cannot be combined with jwks",
            "remove one",
        ),
        (
            "a URL as a file",
            "jwks = \"https://sso.example.com/jwks\"\n".to_owned(),
            "issuer[0].jwks: expected a path, got a URL",
            "write it as jwks_url",
        ),
        (
            "plain HTTP",
            "jwks_url = \"http://sso.example.com/jwks\"\n".to_owned(),
            "issuer[0].jwks_url: would fetch keys in cleartext from another machine",
            "write https://",
        ),
        (
            "no URL",
            "jwks_url = \"sso.example.com\"\n".to_owned(),
            "issuer[0].jwks_url: is not the URL",
            "write https://host/path",
        ),
        (
            "an authority that is not there",
            format!("{url}jwks_ca = \"no.pem\"\n"),
            "issuer[0].jwks_ca: ",
            "in PEM form",
        ),
        (
            "no authority in it",
            format!("{url}jwks_ca = \"empty.pem\"\n"),
            "there is no certificate in PEM form",
            "in PEM form",
        ),
        (
            "an authority for plain HTTP",
            "jwks_url = \"http://127.0.0.1:1/\"\njwks_ca = \"empty.pem\"\n".to_owned(),
            "issuer[0].jwks_ca: has no effect with http://",
            "remove it",
        ),
        (
            "a rhythm for a file",
            "jwks = \"keys.json\"\njwks_refresh = \"1h\"\n".to_owned(),
            "issuer[0].jwks_refresh: has no effect without jwks_url",
            "remove it",
        ),
        (
            "too often",
            format!("{url}jwks_refresh = \"1ms\"\n"),
            "issuer[0].jwks_refresh",
            "1s to 1d",
        ),
    ];
    for (name, text, what, remedy) in rows {
        fs::write(&file, format!("{sim}{CORP}{text}")).unwrap();
        let (status, printed) = check(&file);
        assert_eq!(status, 78, "{name}: {printed}");
        assert!(
            printed.contains(what) && printed.contains(remedy),
            "{name}: {printed}"
        );
        assert!(
            printed.ends_with("1 error\n"),
            "{name}: nothing else: {printed}"
        );
    }
}

#[apply(test)]
fn the_example_with_tokens_limits_and_issuers_is_good_and_can_be_explained() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string("config/examples/sso.toml").unwrap();
    for key in ["[[issuer]]", "jwks_url", "tokens = ", "[rate]", "[lockout]"] {
        assert!(text.contains(key), "it shows {key}");
    }
    let place = folder.path().to_str().unwrap();
    fs::create_dir_all(folder.path().join("srv/vms")).unwrap();
    fs::create_dir_all(folder.path().join("srv/backups")).unwrap();
    let text = text.replace("/srv/", &format!("{place}/srv/"));
    let text = text.replace("/var/lib/snapgate/", &format!("{place}/"));
    // The password of the example is published, and other users must not read a file with hashes.
    let lines = text.lines().map(|line| {
        if line.starts_with("password_hash = ") {
            format!("password_hash = \"{SECRET_HASH}\"\n")
        } else {
            format!("{line}\n")
        }
    });
    let file = folder.path().join("snapgate.toml");
    fs::write(&file, lines.collect::<String>()).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&file, private).unwrap();
    let set = Keys::new().set(&["a"]);
    fs::write(folder.path().join("ci.jwks.json"), set).unwrap();
    let (status, printed) = check(&file);
    assert_eq!(status, 0, "{printed}");
    assert!(!printed.contains("warning"), "nothing is odd: {printed}");
    let corp = "issuer    corp: keys from https://sso.example.com/realms/corp/protocol/";
    for line in [corp, "issuer    ci: keys from a file, 1\n"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let rows: [(&[&str], i32, &str); 4] = [
        (
            &["--as", "corp:4711", "--groups", "ops", "GET", "/vms/web01"],
            0,
            "read: grant[0]",
        ),
        (
            &["--as", "corp:4711", "--groups", "x", "GET", "/vms/web01"],
            1,
            "no grant gives it to corp:4711",
        ),
        (
            &[
                "--as",
                "ci:repo:org/app",
                "--groups",
                "x",
                "POST",
                "/vms/ci-1/backups",
            ],
            0,
            "create: grant[1]",
        ),
        (
            &[
                "--as",
                "ci:repo:org/app",
                "--groups",
                "x",
                "DELETE",
                "/vms/ci-1/backups/4",
            ],
            1,
            "denied: 403",
        ),
    ];
    for (arguments, expected, words) in rows {
        let ended = program()
            .args(["explain", "--config", file.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        let printed = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert_eq!(
            ended.status.code(),
            Some(expected),
            "{arguments:?}: {printed}"
        );
        assert!(printed.contains(words), "{arguments:?}: {printed}");
    }
}

#[apply(test)]
fn routes_without_authentication_are_warned_of_where_others_can_reach_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let sim = SIM.replace("SECRET_HASH", SECRET_HASH);
    let route = "[[passthrough]]\nname = \"manager\"\npath = \"/m\"\nupstreams = [\"http://127.0.0.1:1\"]\n";
    let warning = "warning: passthrough[0].authentication: route ";
    for (listen, keys, expected) in [
        ("0.0.0.0", "authentication = \"none\"\n", true),
        ("127.0.0.1", "authentication = \"none\"\n", false),
        ("0.0.0.0", "allow = [\"user:alice\"]\n", false),
    ] {
        let server = format!(
            "[server]\nlisten = \"{listen}:8080\"\npublic_url = \"https://a.example\"\n[insecure]\nplaintext = true\n"
        );
        fs::write(&file, format!("{server}{sim}{route}{keys}")).unwrap();
        let (status, printed) = check(&file);
        assert_eq!(status, 0, "{listen} {keys}: {printed}");
        assert_eq!(
            printed.contains(warning),
            expected,
            "{listen} {keys}: {printed}"
        );
    }
}
