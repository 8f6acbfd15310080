//! The documentation and the examples agree with the declarations of the keys.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::adapters::registry;
use crate::config::Problem;
use crate::config::keys_as_json_schema;
use crate::config::keys_as_markdown;
use crate::config::keys_as_toml;
use crate::config::load;
use crate::config::tables;
use crate::config::tests::check_golden;
use crate::config::tests::no_environment;

#[test]
fn the_reference_holds_every_key_and_its_default() {
    check_golden("config/reference.toml", &keys_as_toml());
}

#[test]
fn the_documentation_holds_every_key_and_its_default() {
    let path = "docs/configuration.md";
    let text = fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- keys: generated -->\n", "<!-- end of keys -->\n");
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let expected = format!("{before}{begin}\n{}{end}{after}", keys_as_markdown());
    check_golden(path, &expected);
}

#[test]
fn the_json_schema_holds_every_key() {
    check_golden("config/schema.json", &keys_as_json_schema());
}

/// A file in which every key has a value of a type that no key has. `kinds` are the tables of kinds, in full.
fn mistyped_file(kind: &str, kinds: &str) -> String {
    let mut lines = Vec::new();
    for table in tables::ALL {
        let (open, close) = match table.repeated {
            true => ("[[", "]]"),
            false => ("[", "]"),
        };
        lines.push(format!("{open}{}{close}\n", table.name));
        for key in table.keys {
            match key.name() {
                "kind" => lines.push(format!("kind = {kind}\n")),
                name => lines.push(format!("{name} = 1979-05-27\n")),
            }
        }
        if table.name == "backend" {
            lines.push(kinds.to_owned());
        }
    }
    lines.concat()
}

/// The keys whose values were found to have the wrong type.
fn mistyped_keys(text: &str) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, text).unwrap();
    let problems = load(&file, &no_environment).unwrap_err();
    let is_mistyped = |problem: &&Problem| problem.what.ends_with("got a date or time");
    let mistyped = problems.list().iter().filter(is_mistyped);
    mistyped.map(|problem| problem.key.clone()).collect()
}

#[test]
fn every_declared_key_is_read() {
    let mut declared = BTreeSet::new();
    for table in tables::ALL {
        let index = if table.repeated { "[0]" } else { "" };
        for key in table.keys {
            declared.insert(format!("{}{index}.{}", table.name, key.name()));
        }
    }
    let read = mistyped_keys(&mistyped_file("1979-05-27", ""));
    assert_eq!(read, declared, "left: keys that are read, right: tables/");
}

#[test]
fn every_declared_key_of_a_kind_is_read_from_its_table_and_as_a_flat_key() {
    for kind in registry::TABLES {
        let name = kind.name;
        let keys = kind.keys.iter().map(|key| key.name());
        let lines: String = keys
            .clone()
            .map(|key| format!("{key} = 1979-05-27\n"))
            .collect();
        for (form, lines, table) in [
            (
                "nested",
                format!("[backend.{name}]\n{lines}"),
                format!("{name}."),
            ),
            ("flat", lines, String::new()),
        ] {
            let read = mistyped_keys(&mistyped_file(&format!("\"{name}\""), &lines));
            for key in keys.clone() {
                let path = format!("backend[0].{table}{key}");
                assert!(read.contains(&path), "{form}: {path} is not read: {read:?}");
            }
        }
    }
}

#[test]
fn files_of_the_repository_can_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = ["minimal.toml", "reference.toml", "start.toml"]
        .map(|name| base.join(name))
        .to_vec();
    files.extend(
        fs::read_dir(base.join("examples"))
            .unwrap()
            .map(|entry| entry.unwrap().path()),
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
