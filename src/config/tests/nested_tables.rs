//! The table of a kind in `[[backend]]`, and the flat keys that version 0.1 had instead.

use std::collections::BTreeMap;

use crate::adapters::registry;
use crate::config::Settings;
use crate::config::reload::restart_needed;
use crate::config::tests::load_text;

const HEAD: &str = "[operations]\nstore = \"s\"\n[[backend]]\nname = \"a\"\nvms = [\"*\"]\n";

/// Keys with which each kind of version 0.1 can be loaded. Later kinds never had flat keys.
fn keys_of_kinds() -> BTreeMap<&'static str, &'static [&'static str]> {
    let none: &[&str] = &[];
    BTreeMap::from([
        ("cloudapi", &["url = \"unix:///s\""][..]),
        ("files", &["root = \"vms\"", "backups = \"kept\""]),
        ("incus", &["url = \"unix:///s\"", "project = \"p\""]),
        ("libvirt", &["libvirt_uri = \"qemu:///session\""]),
        ("proxmox", none),
        ("qemu", &["qmp = \"/run/{vm}.qmp\"", "disks = [\"d\"]"]),
        ("sim", &["simulated_vms = [\"web\"]", "duration = \"2s\""]),
    ])
}

#[test]
fn flat_keys_of_each_kind_mean_the_same_and_warn() {
    let all = keys_of_kinds();
    for kind in all.keys() {
        assert!(
            registry::NAMES.contains(kind),
            "{kind}: there is such a kind"
        );
    }
    for (kind, keys) in all {
        if keys.is_empty() {
            // Needs files; `every_declared_key_of_a_kind_is_read_from_its_table_and_as_a_flat_key` covers its keys.
            continue;
        }
        let lines = keys.join("\n");
        let flat = load_text(&format!("{HEAD}kind = \"{kind}\"\n{lines}\n")).unwrap();
        let nested = format!("{HEAD}kind = \"{kind}\"\n[backend.{kind}]\n{lines}\n");
        let nested = load_text(&nested).unwrap();
        assert_eq!(nested.notes, Vec::<String>::new(), "{kind}: no warning");
        let expected: Vec<String> = registry::TABLES
            .iter()
            .flat_map(|table| table.keys.iter().filter(|_| table.name == kind))
            .map(|key| key.name())
            .filter(|name| {
                keys.iter()
                    .any(|line| line.starts_with(&format!("{name} =")))
            })
            .map(|name| format!("backend[0].{name}: deprecated; move it to [backend.{kind}]"))
            .collect();
        assert_eq!(flat.notes, expected, "{kind}: one warning for each key");
        // Each text is loaded in a folder of its own, so paths differ.
        if kind != "files" {
            assert_eq!(flat.backends, nested.backends, "{kind}: the same backend");
            let nested = Settings {
                operations: flat.operations.clone(),
                ..nested
            };
            let restart = restart_needed(&flat, &nested);
            assert_eq!(
                restart,
                Vec::<String>::new(),
                "{kind}: moving keys needs no restart"
            );
        }
    }
}

#[test]
fn wrong_places_are_reported_with_the_remedy() {
    let rows = [
        (
            "both forms",
            "kind = \"sim\"\nduration = \"1s\"\n[backend.sim]\nduration = \"2s\"\n",
            "c.toml:7:12: backend[0].duration: is also set as backend[0].sim.duration\n    hint: keep the one in [backend.sim]\n\n1 error",
        ),
        (
            "another kind's table",
            "kind = \"sim\"\n[backend.files]\nroot = \"vms\"\n",
            "c.toml:7:1: backend[0].files: does not apply to kind = \"sim\"\n    hint: remove [backend.files], or write kind = \"files\"\n\n1 error",
        ),
        (
            "another kind's flat key",
            "kind = \"sim\"\nroot = \"vms\"\n",
            "c.toml:7:8: backend[0].root: applies only to kind = \"files\"\n    hint: remove it\n\n1 error",
        ),
        (
            "a flat key of several other kinds",
            "kind = \"sim\"\nurl = \"unix:///s\"\n",
            "c.toml:7:7: backend[0].url: applies only to kind = \"cloudapi\" or \"incus\"\n    hint: remove it\n\n1 error",
        ),
        (
            "a key of the backend below the heading of the kind",
            "kind = \"sim\"\n[backend.sim]\ntimeout = \"1s\"\n",
            "c.toml:8:1: backend[0].sim.timeout: unknown key\n    hint: move it above [backend.sim], to [[backend]]\n\n1 error",
        ),
        (
            "a slip",
            "kind = \"sim\"\n[backend.sim]\ndurations = \"1s\"\n",
            "c.toml:8:1: backend[0].sim.durations: unknown key\n    hint: did you mean \"duration\"?\n\n1 error",
        ),
        (
            "no table",
            "kind = \"sim\"\nsim = 1\n",
            "c.toml:7:7: backend[0].sim: expected a table, got an integer\n    hint: write [backend.sim] above its keys\n\n1 error",
        ),
        (
            "a required key",
            "kind = \"files\"\n[backend.files]\nroot = \"vms\"\n",
            "c.toml:7:1: backend[0].files.backups: is required\n    hint: write backups = \"...\" (path)\n\n1 error",
        ),
        (
            "an unknown kind",
            "kind = \"vmware\"\n",
            "c.toml:6:8: backend[0].kind: unknown value \"vmware\"\n    hint: expected \"cloudapi\" or \"files\" or \"incus\" or \"libvirt\" or \"proxmox\" or \"qemu\" or \"sim\"\n\n1 error",
        ),
    ];
    for (name, keys, expected) in rows {
        let found = load_text(&format!("{HEAD}{keys}")).unwrap_err();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn errors_in_both_forms_name_the_place_where_the_key_stands() {
    let rows = [
        ("duration = \"soon\"\n", "backend[0].duration: "),
        (
            "[backend.sim]\nduration = \"soon\"\n",
            "backend[0].sim.duration: ",
        ),
        ("simulated_vms = [7]\n", "backend[0].simulated_vms[0]: "),
        (
            "[backend.sim]\nsimulated_vms = [7]\n",
            "backend[0].sim.simulated_vms[0]: ",
        ),
    ];
    for (keys, expected) in rows {
        let found = load_text(&format!("{HEAD}kind = \"sim\"\n{keys}")).unwrap_err();
        assert!(found.contains(expected), "{keys}: {found}");
    }
}
