//! `[cluster]` and `backend.only_on`.

use rcgen::CertificateParams;
use rcgen::KeyPair;

use crate::config::load;
use crate::config::tests::load_text;
use crate::config::tests::no_environment;

const FILE: &str = "[operations]\nstore = \"s\"\n";
const ETCD: &str = "[operations]\nstore = \"etcd\"\noperator_file = \"o\"\n[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n";

/// A backend of a kind, with more keys of its own.
fn backend(kind: &str, more: &str, table: &str) -> String {
    format!(
        "[[backend]]\nname = \"b\"\nkind = \"{kind}\"\nvms = [\"*\"]\n{more}[backend.{kind}]\n{table}"
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_member_of_a_cluster_shares_its_store_and_reaches_its_backends() {
    let member = "[cluster]\nname = \"a\"\n";
    let files = "root = \"vms\"\nbackups = \"backups\"\nnew_folders = true\n";
    let rows = [
        (
            "a file",
            format!("{FILE}{member}"),
            "cluster.name: needs operations.store = \"etcd\"",
        ),
        (
            "a bad name",
            format!("{ETCD}[cluster]\nname = \"a b\"\n"),
            "cluster.name: ",
        ),
        (
            "keys without a name",
            format!("{ETCD}[cluster]\nlisten = \"127.0.0.1:1\"\n"),
            "cluster.listen: has no effect without cluster.name",
        ),
        (
            "an address without a port",
            format!("{ETCD}{member}advertise = \"gw1:8443\"\n"),
            "cluster.advertise: has no effect without listen",
        ),
        (
            "no certificates",
            format!("{ETCD}{member}listen = \"127.0.0.1:1\"\n"),
            "cluster.ca: is required",
        ),
        (
            "folders",
            format!("{ETCD}{member}{}", backend("files", "", files)),
            "backend[0].kind: files is reached from one machine",
        ),
        (
            "a socket",
            format!(
                "{ETCD}{member}{}",
                backend("incus", "", "url = \"unix:///s\"\n")
            ),
            "backend[0].kind: incus is reached from one machine",
        ),
        (
            "simulated VMs",
            format!("{ETCD}{member}{}", backend("sim", "", "")),
            "backend[0].kind: sim is reached from one machine",
        ),
        (
            "one gateway without a cluster",
            format!("{FILE}{}", backend("sim", "only_on = \"a\"\n", "")),
            "backend[0].only_on: has no effect without cluster.name",
        ),
        (
            "one gateway",
            format!(
                "{ETCD}{member}{}",
                backend("files", "only_on = \"a\"\n", files)
            ),
            "",
        ),
        (
            "a simulator",
            format!(
                "{ETCD}{member}{}",
                backend("sim", "", "simulator = \"unix:/s\"\n")
            ),
            "",
        ),
    ];
    for (name, text, expected) in rows {
        match load_text(&text) {
            Ok(settings) => {
                assert_eq!(expected, "", "{name}: loaded");
                let cluster = settings.cluster.unwrap();
                assert_eq!(cluster.name.as_str(), "a", "{name}: its name");
                assert!(settings.peers.is_none(), "{name}: no peer channel");
            }
            Err(error) => assert!(
                !expected.is_empty() && error.contains(expected),
                "{name}: {error}"
            ),
        }
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn the_peer_channel_has_a_certificate_and_an_address_that_others_reach() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("ca.pem", certificate.as_str()),
        ("a.pem", &certificate),
        ("a.key", &key.serialize_pem()),
        ("other.key", &KeyPair::generate().unwrap().serialize_pem()),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let good = "listen = \"127.0.0.1:8443\"\nca = \"ca.pem\"\ncert = \"a.pem\"\nkey = \"a.key\"\n";
    let everywhere = good.replace("127.0.0.1:8443", "0.0.0.0:8443");
    let rows = [
        ("as it should be", good.to_owned(), "", "127.0.0.1:8443"),
        (
            "another address",
            format!("{good}advertise = \"gw1.example:9\"\n"),
            "",
            "gw1.example:9",
        ),
        (
            "everywhere",
            everywhere.clone(),
            "cluster.listen: cannot be reached by others",
            "",
        ),
        (
            "everywhere, with a name",
            format!("{everywhere}advertise = \"gw1:8443\"\n"),
            "",
            "gw1:8443",
        ),
        (
            "a host alone",
            format!("{good}advertise = \"gw1\"\n"),
            "cluster.advertise: is not a host and a port",
            "",
        ),
        (
            "a name to listen on",
            good.replace("127.0.0.1:8443", "gw1:8443"),
            "cluster.listen: is not an IP address and a port",
            "",
        ),
        (
            "no file",
            good.replace("cert = \"a.pem\"", "cert = \"absent.pem\""),
            "absent.pem: no such file",
            "",
        ),
        (
            "another key",
            good.replace("a.key", "other.key"),
            "cluster.key: ",
            "",
        ),
        (
            "no authority",
            good.replace("ca.pem", "a.key"),
            "cluster.ca: ",
            "",
        ),
    ];
    for (name, keys, expected, address) in rows {
        let file = folder.path().join("c.toml");
        std::fs::write(&file, format!("{ETCD}[cluster]\nname = \"a\"\n{keys}")).unwrap();
        match load(&file, &no_environment) {
            Ok(settings) => {
                assert_eq!(expected, "", "{name}: loaded");
                let advertised = settings.cluster.unwrap().advertise;
                assert_eq!(advertised.as_deref(), Some(address), "{name}: its address");
                assert!(settings.peers.is_some(), "{name}: the channel");
            }
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !expected.is_empty() && error.contains(expected),
                    "{name}: {error}"
                );
            }
        }
    }
}
