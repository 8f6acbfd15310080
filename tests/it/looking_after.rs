//! Looking after an installation: `doctor`, `support-bundle`, `operations` with filters, and the schema of the configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::FILES;
use crate::harness::Process;
use crate::harness::SECRET_HASH;
use crate::harness::SIM;
use crate::harness::command_output;
use crate::harness::eventually;
use crate::harness::program;
use crate::harness::settings_for_alice;
use crate::requirements::require_programs;
use crate::runner::skip;

const PORTS: &str = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";

/// A folder with a configuration that only this account can read.
fn configured(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("snapgate.toml");
    fs::write(&config, text.replace("SECRET_HASH", SECRET_HASH)).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    (folder, config)
}

/// The findings of one check, as JSON prints them.
fn findings(config: &Path, more: &[&str], check: &str) -> Vec<String> {
    let arguments = [&["doctor", "--json"], more].concat();
    let (_, out, err) = command_output(&arguments, config);
    let about: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let all = about["findings"].as_array().unwrap().iter();
    let of_check = all.filter(|finding| finding["check"] == check);
    of_check
        .map(|finding| {
            for part in ["what", "why", "remedy"] {
                let text = finding[part].as_str().unwrap();
                assert!(!text.is_empty(), "{part}: {finding}");
            }
            finding["what"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[apply(test)]
fn doctor_finds_nothing_where_nothing_is_wrong() {
    let (folder, config) = configured(&settings_for_alice(FILES));
    let unit = folder.path().join("snapgate.service");
    fs::write(&unit, "[Service]\nProtectSystem=no\n").unwrap();
    for place in ["vms", "backups"] {
        fs::create_dir(folder.path().join(place)).unwrap();
    }
    let unit = ["doctor", "--unit", unit.to_str().unwrap()];
    let (status, out, err) = command_output(&unit, &config);
    if out.contains("disk: ") || out.contains("is not synchronized") {
        skip("the machine of this test has findings of its own");
    }
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    assert!(out.ends_with("no findings\n"), "{out}");
    for check in [
        "secrets",
        "certificates",
        "disk",
        "clock",
        "backends",
        "sandbox",
    ] {
        assert!(out.contains(check), "{check} is among the checks: {out}");
    }
}

#[apply(test)]
fn doctor_says_what_is_wrong_why_and_what_to_do() {
    let (folder, config) = configured(&settings_for_alice(FILES));
    // One of the two folders of the backend is missing, and the configuration is moved to a secret that everybody can read.
    fs::create_dir(folder.path().join("vms")).unwrap();
    let hash = folder.path().join("alice.hash");
    fs::write(&hash, SECRET_HASH).unwrap();
    fs::set_permissions(&hash, fs::Permissions::from_mode(0o644)).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(&format!("\"{SECRET_HASH}\""), "\"file:alice.hash\"");
    fs::write(&config, text).unwrap();
    let (status, out, err) = command_output(&["doctor"], &config);
    assert_eq!((status, err.as_str()), (1, ""), "{out}");
    for expected in [
        "secrets: ",
        "alice.hash: every user of this machine can read",
        "  why: ",
        "chmod o-rwx",
        "folders: ",
        "does not exist",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    // The unit of the package, with the folders of this test in no drop-in.
    let unit = ["--unit", "config/systemd/snapgate.service"];
    let found = findings(&config, &unit, "sandbox");
    let is_named = found
        .iter()
        .any(|what| what.contains("backend[0].files.root"));
    assert!(is_named, "the unit protects the folder: {found:?}");
    // A clock that was ahead when the configuration was written.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let file = fs::File::options().write(true).open(&config).unwrap();
    file.set_modified(later).unwrap();
    let found = findings(&config, &[], "clock");
    let is_behind = found
        .iter()
        .any(|what| what.contains("snapgate.toml is from"));
    assert!(is_behind, "behind: {found:?}");
}

#[apply(test)]
fn doctor_asks_the_gateway_that_has_the_folders_locked() {
    let (folder, config) = configured(&settings_for_alice(FILES));
    for place in ["vms", "backups"] {
        fs::create_dir(folder.path().join(place)).unwrap();
    }
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let (_, text) = crate::harness::probe(config.to_str().unwrap());
    assert!(text.contains("in use"), "a probe cannot look: {text}");
    assert_eq!(
        findings(&config, &[], "backends"),
        [""; 0],
        "the gateway can"
    );
    let is_root = rustix::process::geteuid().is_root();
    let rights = findings(&config, &[], "rights");
    assert_eq!(
        !rights.is_empty(),
        is_root,
        "root is more than needed: {rights:?}"
    );
    // The folder goes away under the running gateway.
    fs::rename(folder.path().join("vms"), folder.path().join("gone")).unwrap();
    eventually("the gateway sees that", || {
        !findings(&config, &[], "backends").is_empty()
    });
    gateway.kill();
    let found = findings(&config, &[], "gateway");
    assert_eq!(found.len(), 1, "it does not answer: {found:?}");
}

/// A configuration with a value for every secret key there is, and the secrets.
fn full_of_secrets(folder: &Path) -> (String, Vec<String>) {
    let secret = |number: usize| format!("hunter2-{number}-tajna");
    for number in 0..5 {
        let name = folder.join(format!("secret.{number}"));
        fs::write(name, format!("{}\n", secret(number))).unwrap();
    }
    fs::write(
        folder.join("pve.token"),
        format!("gate@pve!t={}\n", secret(9)),
    )
    .unwrap();
    let hash = format!("{SECRET_HASH}\n");
    fs::write(folder.join("bob.hash"), hash).unwrap();
    fs::write(folder.join("ca.pem"), "").unwrap();
    let text = format!(
        r#"# an old password: {comment}
{PORTS}
[log]
audit = "audit.jsonl"
format = "json"
[tracing]
endpoint = "http://127.0.0.1:1/v1/traces?key={query}"
authorization = "file:secret.0"
{SIM}
[[user]]
name = "bob"
password_hash = "file:bob.hash"
[[backend]]
name = "other"
kind = "cloudapi"
vms = ["x*"]
[backend.cloudapi]
url = "http://127.0.0.1:1/api"
token = "file:secret.1"
[[backend]]
name = "third"
kind = "cloudapi"
vms = ["y*"]
[backend.cloudapi]
url = "http://127.0.0.1:1/api"
username = "gate"
password = "file:secret.2"
[[backend]]
name = "pve"
kind = "proxmox"
vms = ["z*"]
[backend.proxmox]
urls = ["https://127.0.0.1:1"]
token = "file:pve.token"
server_fingerprints = ["0000000000000000000000000000000000000000000000000000000000000000"]
[[passthrough]]
name = "manager"
path = "/manager"
upstreams = ["http://127.0.0.1:1"]
allow = ["user:alice"]
authorization = "file:secret.3"
"#,
        comment = secret(7),
        query = secret(8),
    );
    let mut secrets: Vec<String> = (0..10).map(secret).collect();
    secrets.push(SECRET_HASH.to_owned());
    (text, secrets)
}

/// Name and text of every file of an archive.
fn unpack(archive: &Path, into: &Path) -> Vec<(String, String)> {
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status();
    assert!(unpacked.unwrap().success(), "an archive");
    let entries = fs::read_dir(into.join("snapgate-support")).unwrap();
    let mut files: Vec<(String, String)> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[apply(test)]
fn a_support_bundle_holds_no_secret_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (text, secrets) = full_of_secrets(folder.path());
    let config = folder.path().join("snapgate.toml");
    fs::write(&config, text.replace("SECRET_HASH", SECRET_HASH)).unwrap();
    // What a careless program might have written into its log.
    let log = folder.path().join("log");
    // Number 7 is in a comment, which no program can know for a secret, and 4 to 6 are in no key.
    let is_known = |secret: &&str| !(4..8).any(|number| secret.contains(&format!("-{number}-")));
    let known = secrets.iter().map(String::as_str).filter(is_known);
    let known: Vec<&str> = known.collect();
    let careless = format!("a line\n{}\nhttps://u:{}@h/\n", known.join(" "), known[0]);
    fs::write(&log, careless).unwrap();
    let gateway = Process::start(&["serve", "--config", config.to_str().unwrap()]);
    let alice = Client::new(gateway.api, "alice", "secret");
    let status_uri = alice.post("/vms/1/backups/456/restore", "").status_uri();
    alice.finished(&status_uri);
    let token = fs::read_to_string(folder.path().join("operations.db.operator")).unwrap();
    let token: Value = serde_json::from_str(&token).unwrap();
    let token = token["token"].as_str().unwrap();

    let archive = folder.path().join("bundle.tar.gz");
    let bundle = [
        "support-bundle",
        "--output",
        archive.to_str().unwrap(),
        "--log",
        log.to_str().unwrap(),
    ];
    let (status, out, err) = command_output(&bundle, &config);
    assert_eq!(status, 0, "{out}{err}");
    let mode = fs::metadata(&archive).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for this account alone");
    let place = folder.path().join("unpacked");
    fs::create_dir(&place).unwrap();
    let files = unpack(&archive, &place);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    for expected in [
        "about.json",
        "audit.jsonl",
        "configuration.toml",
        "doctor.txt",
        "log-0.txt",
        "metrics.txt",
        "operations.json",
        "unit.txt",
    ] {
        assert!(names.contains(&expected), "{expected}: {names:?}");
    }
    for (name, text) in &files {
        for secret in secrets.iter().map(String::as_str).chain([token]) {
            // The secret of a token, without its name.
            let secret = secret.rsplit('=').next().unwrap();
            assert!(!text.contains(secret), "{name} holds {secret}: {text}");
        }
    }
    let text_of = |wanted: &str| {
        let found = files.iter().find(|(name, _)| name == wanted);
        found.unwrap().1.as_str()
    };
    let shown = text_of("configuration.toml");
    for expected in [
        "password_hash = \"[redacted]\"",
        "token = \"file:pve.token\"",
        "name = \"manager\"",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(
        text_of("log-0.txt").starts_with("a line\n[redacted]"),
        "found and removed"
    );
    assert!(
        text_of("operations.json").contains("\"restore\""),
        "what it did"
    );
    assert!(
        text_of("metrics.txt").contains("snapgate_build_info"),
        "how it does"
    );

    let (status, _, err) = command_output(&bundle, &config);
    assert_eq!(status, 1, "nothing is overwritten: {err}");
    // Without a gateway, and with a configuration that cannot be used.
    gateway.kill();
    fs::write(
        &config,
        text.replace("SECRET_HASH", SECRET_HASH)
            .replace("kind = \"sim\"", "knid = \"sim\""),
    )
    .unwrap();
    fs::remove_file(&archive).unwrap();
    let (status, out, err) = command_output(&bundle, &config);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("problems.txt"), "{out}");
}

#[apply(test)]
fn operations_are_filtered_and_shown_with_everything() {
    let sim = SIM.replace("duration = \"50ms\"", "duration = \"10m\"");
    let (_folder, config) = configured(&format!("{PORTS}{sim}"));
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    let gateway = Process::start(&arguments);
    let alice = Client::new(gateway.api, "alice", "secret");
    let carol = Client::new(gateway.api, "carol", "secret");
    let seq = |uri: &str| uri.rsplit_once('=').unwrap().1.to_owned();
    let note = "{\"note\":\"quarterly test\"}";
    let running = seq(&alice.post("/vms/2/backups/456/restore", note).status_uri());
    let first = seq(&carol.post("/vms/1/backups/456/restore", "").status_uri());
    let queued = seq(&alice.delete("/vms/1/backups/456").status_uri());
    eventually("two run", || {
        list(&config, &["--state", "running"]).len() == 2
    });
    let check = |when: &str| {
        let rows: [(&[&str], Vec<&str>); 9] = [
            (&["--state", "queued"], vec![&queued]),
            (&["--state", "failed"], vec![]),
            (&["--state", "held"], vec![]),
            (&["--vm", "1"], vec![&queued, &first]),
            (&["--vm", "1", "--verb", "restore"], vec![&first]),
            (&["--by", "carol"], vec![&first]),
            (&["--since", "1h", "--limit", "1"], vec![&queued]),
            (&["--until", "1h"], vec![]),
            (
                &["--backend", "lab", "--backup", "456"],
                vec![&queued, &first, &running],
            ),
        ];
        for (arguments, expected) in rows {
            assert_eq!(list(&config, arguments), expected, "{when}: {arguments:?}");
        }
        let (status, out, err) = command_output(&["operations", "show", &running], &config);
        assert_eq!((status, err.as_str()), (0, ""), "{when}: {out}");
        for expected in [
            "note: \"quarterly test\"",
            "request_id: ",
            "started: ",
            "intent: ",
        ] {
            assert!(out.contains(expected), "{when}: {expected}: {out}");
        }
    };
    check("online");
    let refused = [
        (&["--state", "lost"][..], 64, "possible values"),
        (&["--since", "yesterday"], 1, "invalid since"),
        (&["--verb", "clone"], 1, "invalid verb"),
    ];
    for (arguments, status, expected) in refused {
        let arguments = [&["operations", "list"], arguments].concat();
        let (found, _, err) = command_output(&arguments, &config);
        assert_eq!(found, status, "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
    gateway.signal("TERM");
    gateway.wait();
    check("offline");
    let (status, out, _) = command_output(&["operations", "cancel", &queued], &config);
    assert_eq!(status, 0, "cancelled without a gateway: {out}");
    assert_eq!(
        list(&config, &["--state", "cancelled"]),
        [queued],
        "at once"
    );
    // Without its backend what is unfinished is held.
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("name = \"lab\"", "name = \"new\"")).unwrap();
    assert_eq!(
        list(&config, &["--state", "held"]),
        [first, running],
        "held"
    );
}

/// The numbers of the operations that are listed.
fn list(config: &Path, filters: &[&str]) -> Vec<String> {
    let arguments = [&["operations", "list", "--json"], filters].concat();
    let (status, out, err) = command_output(&arguments, config);
    assert_eq!((status, err.as_str()), (0, ""), "{filters:?}: {out}");
    let seq = |line: &str| {
        let operation: Value = serde_json::from_str(line).unwrap();
        operation["seq"].as_str().unwrap().to_owned()
    };
    out.lines().map(seq).collect()
}

#[apply(test)]
fn a_password_is_asked_for_twice_on_a_terminal() {
    require_programs(&["script"]);
    let snapgate = env!("CARGO_BIN_EXE_snapgate");
    for (typed, is_same) in [
        ("correct horse\ncorrect horse\n", true),
        ("one\ntwo\n", false),
    ] {
        let mut child = Command::new("script")
            .args([
                "--quiet",
                "--return",
                "--command",
                &format!("{snapgate} hash-password --bcrypt"),
                "/dev/null",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for line in typed.lines() {
            // The program turns the echo off first, and with that drops what was typed before.
            std::thread::sleep(std::time::Duration::from_millis(700));
            std::io::Write::write_all(&mut stdin, format!("{line}\n").as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Repeat the password:"), "{text}");
        assert_eq!(output.status.success(), is_same, "{typed:?}: {text}");
        assert_eq!(text.contains("$2"), is_same, "{typed:?}: {text}");
        assert_eq!(text.contains("differ"), !is_same, "{typed:?}: {text}");
    }
}

/// Validates TOML files against a schema; prints a line for each error.
const VALIDATE: &str = r#"
import json, sys, tomllib
try:
    import jsonschema
except ImportError:
    sys.exit(42)
schema = json.load(open(sys.argv[1]))
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
for name in sys.argv[2:]:
    for error in validator.iter_errors(tomllib.load(open(name, "rb"))):
        print(name, "/".join(map(str, error.absolute_path)), error.message[:200])
"#;

/// What a validator of JSON Schema says about files.
fn validate(files: &[PathBuf]) -> String {
    let output = Command::new("python3")
        .args(["-c", VALIDATE, "config/schema.json"])
        .args(files)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(42) || error.contains("No module named 'tomllib'") {
        skip("python3 has no jsonschema or tomllib (Debian package python3-jsonschema)");
    }
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

#[apply(test)]
fn the_schema_accepts_every_file_of_the_repository_and_refuses_wrong_types() {
    require_programs(&["python3"]);
    let printed = program().args(["config", "schema"]).output().unwrap();
    let kept = fs::read("config/schema.json").unwrap();
    assert_eq!(
        printed.stdout, kept,
        "what the program prints is in the tree"
    );
    let mut files = [
        "minimal.toml",
        "reference.toml",
        "start.toml",
        "package/snapgate.toml",
    ]
    .map(|name| Path::new("config").join(name))
    .to_vec();
    let examples = fs::read_dir("config/examples").unwrap();
    files.extend(examples.map(|entry| entry.unwrap().path()));
    files.retain(|file| file.exists());
    assert_eq!(validate(&files), "", "valid");

    let folder = tempfile::tempdir().unwrap();
    let good = fs::read_to_string("config/reference.toml").unwrap();
    let rows = [
        (
            "a number for a text",
            "listen = \"127.0.0.1:8080\"",
            "listen = 8080",
        ),
        ("a text for a number", "threads = 0", "threads = \"0\""),
        ("too large", "threads = 0", "threads = 257"),
        ("no unit", "drain = \"30s\"", "drain = \"30\""),
        ("an unknown word", "format = \"", "format = \"x"),
        ("an unknown key", "threads = 0", "treads = 0"),
        ("an unknown table", "[insecure]", "[insecur]"),
        (
            "a text for a list",
            "members = [\"alice\"]",
            "members = \"alice\"",
        ),
        ("a missing key", "store = \"operations.sqlite\"", ""),
    ];
    for (name, from, to) in rows {
        let file = folder.path().join("c.toml");
        assert!(good.contains(from), "{name}: {from}");
        fs::write(&file, good.replacen(from, to, 1)).unwrap();
        assert_ne!(validate(&[file]), "", "{name} is refused");
    }
}

#[apply(test)]
fn the_schema_requires_the_keys_of_each_kind_of_backend() {
    require_programs(&["python3"]);
    let folder = tempfile::tempdir().unwrap();
    // Kind, and the keys that it requires.
    let rows: [(&str, &[&str]); 7] = [
        ("sim", &[]),
        ("files", &["root = \"a\"", "backups = \"b\""]),
        ("qemu", &["qmp = \"a\""]),
        ("libvirt", &[]),
        ("incus", &["url = \"unix:///a\""]),
        ("proxmox", &["urls = [\"https://a\"]", "token = \"env:A\""]),
        ("cloudapi", &["url = \"unix:///a\""]),
    ];
    let check = |name: &str, backend: &str, is_valid: bool| {
        let file = folder.path().join("c.toml");
        let head = "[operations]\nstore = \"s\"\n[[backend]]\nname = \"b\"\nvms = [\"*\"]\n";
        fs::write(&file, format!("{head}{backend}")).unwrap();
        let found = validate(&[file]);
        assert_eq!(found.is_empty(), is_valid, "{name}: {found}");
    };
    for (kind, required) in rows {
        let head = format!("kind = \"{kind}\"\n");
        let all = required.join("\n");
        check(kind, &format!("{head}[backend.{kind}]\n{all}"), true);
        check(
            &format!("{kind}, in the older form"),
            &format!("{head}{all}"),
            true,
        );
        for missing in required {
            let others: Vec<&str> = required
                .iter()
                .copied()
                .filter(|key| key != missing)
                .collect();
            let others = others.join("\n");
            let name = format!("{kind} without {missing}");
            check(&name, &format!("{head}[backend.{kind}]\n{others}"), false);
        }
    }
}
