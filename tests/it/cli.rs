//! The built program: what it prints and which status it ends with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use argon2::Argon2;
use argon2::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;

/// Status, standard output, standard error.
type Ended = (i32, String, String);

fn snapgate(arguments: &[&str], folder: &Path, input: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_snapgate"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading closes the pipe.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let ended = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        ended.status.code().unwrap(),
        text(ended.stdout),
        text(ended.stderr),
    )
}

/// Compares with a file of the repository, or rewrites it when `UPDATE_GOLDEN` is set.
#[expect(
    clippy::disallowed_methods,
    reason = "a test asks whether to rewrite what it expects"
)]
fn golden(name: &str, found: &Ended) {
    let path = Path::new("tests/golden").join(name);
    let found = format!("status {}\n-- out\n{}-- err\n{}", found.0, found.1, found.2);
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, expected,
        "{name} differs; UPDATE_GOLDEN=1 rewrites it"
    );
}

const GOOD: &str = r#"[server]
listen = "0.0.0.0:8080"
public_url = "https://backup.example.com/"

[insecure]
plaintext = true

[limits]
connections = 512

[[user]]
name = "ann"
password_hash = "file:ann.hash"

[[user]]
name = "bob"
password_hash = "file:ann.hash"

[[group]]
name = "empty"

[[grant]]
to = ["user:ann", "group:empty"]
actions = ["read"]
vms = ["web*", "mail"]

[operations]
store = "operations.sqlite"

[[backend]]
name = "lab"
kind = "sim"
vms = ["web*", "db01"]
[backend.sim]
simulated_vms = ["web01", "db02"]

[[backend]]
name = "disks"
kind = "files"
vms = ["v-*"]
[backend.files]
root = "vms"
backups = "kept"
"#;

const BAD: &str = r#"[server]
listen = "0.0.0.0:8080"
drain = 30

[operations]
stroe = "x"

[[grant]]
to = ["user:ann"]
actions = ["read"]
vms = ["*"]
"#;

#[apply(test)]
fn every_command_prints_and_ends_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    fs::create_dir(place.join("vms")).unwrap();
    fs::write(place.join("good.toml"), GOOD).unwrap();
    fs::write(place.join("bad.toml"), BAD).unwrap();
    fs::write(
        place.join("ann.hash"),
        "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa\n",
    )
    .unwrap();
    let mode = fs::Permissions::from_mode(0o644);
    fs::set_permissions(place.join("ann.hash"), mode).unwrap();
    let rows: [(&str, i32, &[&str]); 13] = [
        ("help", 0, &["help"]),
        ("help-check", 0, &["check", "--help"]),
        ("version", 0, &["version"]),
        ("version-option", 0, &["--version"]),
        ("nothing", 64, &[]),
        ("unknown-command", 64, &["restore"]),
        ("unknown-option", 64, &["check", "--file", "good.toml"]),
        ("missing-option", 64, &["token", "create"]),
        ("check-good", 0, &["check", "--config", "good.toml"]),
        ("check-bad", 78, &["check", "--config", "bad.toml"]),
        ("check-absent", 78, &["check", "--config", "absent.toml"]),
        ("serve-bad", 78, &["serve", "--config", "bad.toml"]),
        ("demo-bad-address", 64, &["demo", "--listen", "here"]),
    ];
    for (name, status, arguments) in rows {
        let found = snapgate(arguments, place, "");
        assert_eq!(found.0, status, "status of {name}: {found:?}");
        golden(&format!("cli-{name}.txt"), &found);
    }
}

#[apply(test)]
fn one_address_that_can_take_all_connections_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    for (listen, limits, expected) in [
        ("0.0.0.0", "connections = 512", true),
        ("0.0.0.0", "connections = 513", false),
        ("0.0.0.0", "connections_per_address = 5000", true),
        ("0.0.0.0", "connections_per_address = 4095", false),
        ("0.0.0.0", "connections_per_address = 0", false),
        ("127.0.0.1", "connections = 10", false),
    ] {
        let server = format!(
            "[server]\nlisten = \"{listen}:8080\"\npublic_url = \"https://a.example\"\n[insecure]\nplaintext = true\n"
        );
        let text =
            format!("{server}[limits]\n{limits}\n[operations]\nstore = \"operations.sqlite\"\n");
        fs::write(folder.path().join("c.toml"), text).unwrap();
        let found = snapgate(&["check", "--config", "c.toml"], folder.path(), "");
        assert_eq!(found.0, 0, "{listen} {limits}: {found:?}");
        let warned = found.2.contains("warning: limits.connections: one address");
        assert_eq!(warned, expected, "{listen} {limits}: {found:?}");
    }
}

#[apply(test)]
fn a_checked_configuration_is_not_changed_by_checking() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[operations]\nstore = \"operations.sqlite\"\n";
    fs::write(folder.path().join("c.toml"), text).unwrap();
    let found = snapgate(&["check", "--config", "c.toml"], folder.path(), "");
    assert_eq!(found.0, 0, "{found:?}");
    assert!(
        !folder.path().join("operations.sqlite").exists(),
        "no store is made"
    );
}

#[apply(test)]
fn a_printed_hash_verifies_its_password_alone() {
    let folder = tempfile::tempdir().unwrap();
    for input in ["correct horse\n", "correct horse", "correct horse\r\n"] {
        let (status, out, err) = snapgate(&["hash-password"], folder.path(), input);
        assert_eq!((status, err.as_str()), (0, ""), "{input:?}");
        assert!(
            out.starts_with("$argon2id$") && out.ends_with('\n'),
            "{out}"
        );
        let hash = PasswordHash::new(out.trim_end()).unwrap();
        let verified = |password: &[u8]| Argon2::default().verify_password(password, &hash).is_ok();
        assert!(verified(b"correct horse"), "right password after {input:?}");
        assert!(
            !verified(b"correct horse\n"),
            "wrong password after {input:?}"
        );
    }
    let (status, out, _) = snapgate(&["hash-password", "--bcrypt"], folder.path(), "pw\n");
    assert_eq!(status, 0, "bcrypt");
    assert!(
        bcrypt::verify("pw", out.trim_end()).unwrap(),
        "right password"
    );
    assert!(
        !bcrypt::verify("pv", out.trim_end()).unwrap(),
        "wrong password"
    );
}

#[apply(test)]
fn passwords_that_could_never_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(1025);
    let bcrypt = "x".repeat(80);
    let rows: [(&str, &[&str], &str, &str); 5] = [
        ("empty", &["hash-password"], "", "must not be empty"),
        ("line end", &["hash-password"], "\n", "must not be empty"),
        (
            "long",
            &["hash-password"],
            &long,
            "must not be longer than 1024 bytes",
        ),
        (
            "two lines",
            &["hash-password"],
            "a\nb\n",
            "control characters",
        ),
        (
            "bcrypt",
            &["hash-password", "--bcrypt"],
            &bcrypt,
            "cannot create a bcrypt hash",
        ),
    ];
    for (name, arguments, input, expected) in rows {
        let (status, out, err) = snapgate(arguments, folder.path(), input);
        assert_eq!((status, out.as_str()), (1, ""), "{name}");
        assert!(err.contains(expected), "{name}: {err}");
    }
}

#[apply(test)]
fn looking_at_operations_makes_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("none.sqlite");
    let file = folder.path().join("good.toml");
    for place in ["vms", "kept"] {
        fs::create_dir(folder.path().join(place)).unwrap();
    }
    let hash = "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa\n";
    fs::write(folder.path().join("ann.hash"), hash).unwrap();
    fs::write(&file, GOOD.replace("operations.sqlite", "none.sqlite")).unwrap();
    for command in [&["list"][..], &["show", "1"], &["acknowledge", "1"]] {
        let mut arguments = vec!["operations"];
        arguments.extend(command);
        arguments.extend(["--config", "good.toml"]);
        let (status, out, err) = snapgate(&arguments, folder.path(), "");
        assert_eq!((status, out.as_str()), (1, ""), "{command:?}: {err}");
        assert!(err.contains("no operation store"), "{command:?}: {err}");
        assert!(!store.exists(), "{command:?}: none is made");
    }
}

#[apply(test)]
fn a_probe_reports_what_backends_can_do_and_which_do_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("vms/web01")).unwrap();
    fs::create_dir(folder.path().join("backups")).unwrap();
    let good = "[operations]\nstore = \"o.db\"\n\n[[backend]]\nname = \"disks\"\nkind = \"files\"\nroot = \"vms\"\nbackups = \"backups\"\nnew_folders = true\nvms = [\"web01\"]\n";
    let dead = "\n[[backend]]\nname = \"hosts\"\nkind = \"libvirt\"\nlibvirt_socket = \"nowhere.sock\"\nvms = [\"vm-*\"]\n";
    let file = folder.path().join("c.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        crate::harness::probe(file.to_str().unwrap())
    };
    let (code, text) = check(good);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "backend disks: directories of disk images",
        "  supported: create, update, delete, restore; unsupported: none",
        "  backup types: full; running VMs: no; memory: no; all disks or none: yes",
        "  VM web01: web01",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (code, text) = check(&format!("{good}{dead}"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("backend hosts: "), "names it: {text}");
}
