//! What an operator gets wrong around the file: addresses, rights of files, folders that are missing, examples as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::FixedAddress;
use crate::config::FixedAddresses;
use crate::config::Settings;
use crate::config::load;
use crate::config::load_at;
use crate::config::warnings;
use crate::model::Timestamp;

const HASH: &str = "$2y$12$xd7eAg0cc/smZW1W/yBbJe5DgzGfXBJ0No0VBt4A2FAZ.1zKkTIHa";
const STORE: &str = "[operations]\nstore = \"operations.db\"\n";

fn folder_with(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, text).unwrap();
    (folder, file)
}

fn loaded(file: &Path) -> Settings {
    load(file, &|_| None).unwrap_or_else(|problems| panic!("{problems}"))
}

fn warned(file: &Path) -> String {
    warnings(&loaded(file), Timestamp::default()).join("\n")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn addresses_are_judged_by_what_they_mean() {
    let server = |listen: &str, admin: &str| {
        format!("[server]\nlisten = \"{listen}\"\nadmin = \"{admin}\"\n{STORE}")
    };
    let rows = [
        ("loopback", server("127.0.0.1:1", "127.0.0.1:2"), ""),
        ("IPv6", server("[::1]:1", "[::1]:2"), ""),
        (
            "mapped loopback",
            server("[::ffff:127.0.0.1]:1", "127.0.0.1:2"),
            "",
        ),
        (
            "mapped wildcard",
            server("[::ffff:0.0.0.0]:1", "127.0.0.1:2"),
            "would send passwords in cleartext",
        ),
        (
            "IPv6 wildcard",
            server("[::]:1", "127.0.0.1:2"),
            "public_url: is required, because clients cannot use [::]:1",
        ),
        (
            "link-local",
            format!(
                "{}[insecure]\nplaintext = true\n",
                server("[fe80::1%2]:1", "127.0.0.1:2")
            ),
            "in links",
        ),
        (
            "same",
            server("127.0.0.1:1", "127.0.0.1:1"),
            "is the same as listen",
        ),
        (
            "covered",
            server("127.0.0.1:1", "[::]:1"),
            "conflicts with listen, 127.0.0.1:1",
        ),
        ("both free", server("127.0.0.1:0", "127.0.0.1:0"), ""),
        (
            "empty",
            server("", "127.0.0.1:2"),
            "server.listen: must not be empty",
        ),
        (
            "no port",
            server("127.0.0.1", "127.0.0.1:2"),
            "is not an address and port",
        ),
        (
            "large port",
            server("127.0.0.1:65536", "127.0.0.1:2"),
            "is not an address and port",
        ),
    ];
    for (name, text, expected) in rows {
        let (_folder, file) = folder_with(&text);
        let found = load(&file, &|_| None);
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
fn addresses_that_are_fixed_count_instead_of_those_in_the_file() {
    let fixed = |api: &str| FixedAddresses {
        api: Some(FixedAddress {
            address: api.parse().unwrap(),
            origin: "the inherited API socket",
        }),
        admin: None,
    };
    let (_folder, file) = folder_with(&format!("[server]\nlisten = \"127.0.0.1:1\"\n{STORE}"));
    let found = load_at(&file, &|_| None, &fixed("127.0.0.1:4711")).unwrap();
    assert_eq!(
        found.gate.public_url.as_str(),
        "http://127.0.0.1:4711",
        "links"
    );
    assert_eq!(found.listener.listen.port(), 4711, "listen");
    assert_eq!(
        found.notes,
        ["server.listen: \"127.0.0.1:1\" is not used; the inherited API socket is 127.0.0.1:4711"],
        "the operator learns of it"
    );
    let problems = load_at(&file, &|_| None, &fixed("0.0.0.0:4711")).unwrap_err();
    let text = problems.to_string();
    assert!(
        text.contains("the inherited API socket, 0.0.0.0:4711 would send passwords in cleartext"),
        "{text}"
    );
    let (_folder, file) = folder_with(&format!(
        "[server]\nlisten = \"0.0.0.0:1\"\npublic_url = \"http://x\"\n[insecure]\nplaintext = true\n{STORE}"
    ));
    let found = load_at(&file, &|_| None, &fixed("127.0.0.1:4711")).unwrap();
    let text = warnings(&found, Timestamp::default()).join("\n");
    assert!(!text.contains("other machines may reach"), "{text}");
}

/// A folder with every kind of secret, and the names of the files.
fn secrets() -> (tempfile::TempDir, std::path::PathBuf, [&'static str; 7]) {
    let (folder, file) = folder_with(&format!(
        "{STORE}[authentication]\nhtpasswd = \"users\"\ntokens = \"tokens.json\"\n\
         [[certificate]]\nchain = \"crt.pem\"\nkey = \"key.pem\"\n\
         [[user]]\nname = \"ann\"\npassword_hash = \"file:ann.hash\"\n\
         [[user]]\nname = \"bob\"\npassword_hash = \"{HASH}\"\n\
         [[backend]]\nname = \"lab\"\nkind = \"incus\"\nvms = [\"*\"]\n[backend.incus]\nurl = \"https://localhost:1\"\n\
         server_cert = \"crt.pem\"\nclient_cert = \"crt.pem\"\nclient_key = \"client.pem\"\n"
    ));
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let made = made.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("users", ""),
        ("tokens.json", ""),
        ("operations.db", ""),
        ("ann.hash", HASH),
        ("crt.pem", &made),
        ("key.pem", &key.serialize_pem()),
        ("client.pem", &key.serialize_pem()),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let names = [
        "c.toml",
        "users",
        "tokens.json",
        "operations.db",
        "ann.hash",
        "key.pem",
        "client.pem",
    ];
    (folder, file, names)
}

#[test]
fn every_secret_that_others_can_read_or_write_is_warned_of() {
    let (folder, file, names) = secrets();
    let all_at = |mode| {
        for name in names {
            chmod(&folder.path().join(name), mode);
        }
    };
    all_at(0o640);
    let found = warned(&file);
    assert!(!found.contains("every user of this machine"), "{found}");
    for (mode, (can, shown)) in [
        (0o644, ("can read ", "(mode 0644)")),
        (0o602, ("can write ", "(mode 0602)")),
        (0o666, ("can read and write ", "(mode 0666)")),
    ] {
        for name in names {
            all_at(0o600);
            let path = folder.path().join(name);
            chmod(&path, mode);
            let found = warned(&file);
            let expected = format!("{}: every user of this machine {can}", path.display());
            assert!(found.contains(&expected), "{name}: {found}");
            assert!(found.contains(shown), "{name}: the mode: {found}");
            let lines = found.matches("every user of this machine").count();
            assert_eq!(lines, 1, "{name} alone: {found}");
        }
    }
}

fn disks(root: &str, backups: &str) -> String {
    format!(
        "{STORE}[[backend]]\nname = \"d\"\nkind = \"files\"\nvms = [\"web*\"]\n[backend.files]\nroot = \"{root}\"\nbackups = \"{backups}\"\n"
    )
}

#[test]
fn folders_that_are_missing_are_warned_of_and_files_in_their_place_refused() {
    for (root, backups, expected) in [
        ("absent", "backups", "backend[0].files.root: "),
        ("vms", "absent", "backend[0].files.backups: "),
        ("absent/deeper", "backups", "backend[0].files.root: "),
    ] {
        let (folder, file) = folder_with(&disks(root, backups));
        for made in ["vms", "backups"] {
            fs::create_dir(folder.path().join(made)).unwrap();
        }
        let found = warned(&file);
        assert!(found.contains(expected), "{root} {backups}: {found}");
        assert!(
            found.contains("does not exist; the backend is unavailable until it does"),
            "{found}"
        );
    }
    for (root, backups) in [("c.toml", "backups"), ("vms", "c.toml")] {
        let (_folder, file) = folder_with(&disks(root, backups));
        let found = load(&file, &|_| None).unwrap_err().to_string();
        assert!(found.contains("c.toml is not a folder"), "{found}");
    }
}

/// Gives everything to another user when this one is root, whom no mode keeps out.
fn give_away(path: &Path) {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
}

#[test]
fn images_that_the_gateway_cannot_change_are_warned_of() {
    let (folder, file) = folder_with(&disks("vms", "backups"));
    let at = |path: &str| folder.path().join(path);
    for made in ["vms", "vms/web1", "vms/web2", "vms/db", "backups"] {
        fs::create_dir_all(at(made)).unwrap();
    }
    for made in [
        "vms/web1/a.img",
        "vms/web1/b.img",
        "vms/web2/a.img",
        "vms/db/a.img",
        "operations.db",
    ] {
        fs::write(at(made), "").unwrap();
    }
    for path in [
        "vms",
        "vms/web1",
        "vms/web2",
        "vms/db",
        "vms/web1/a.img",
        "vms/web1/b.img",
        "vms/web2/a.img",
        "vms/db/a.img",
        "backups",
        "operations.db",
    ] {
        give_away(&at(path));
    }
    let found = warned(&file);
    assert!(!found.contains("cannot read and write"), "{found}");
    for (path, mode, named) in [
        ("vms/web1/b.img", 0o400, true),
        ("vms/web1/b.img", 0o200, true),
        ("vms/web2", 0o500, true),
        ("vms/db/a.img", 0o400, false),
        ("backups", 0o500, true),
    ] {
        let before = fs::metadata(at(path)).unwrap().permissions();
        chmod(&at(path), mode);
        let found = warned(&file);
        fs::set_permissions(at(path), before).unwrap();
        let path = at(path).display().to_string();
        let is_named = found
            .lines()
            .any(|line| line.contains("cannot read and write") && line.contains(&path));
        assert_eq!(is_named, named, "{path} {mode:o}: {found}");
    }
}

#[test]
fn a_published_password_is_warned_of() {
    for entry in fs::read_dir("config/examples").unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        published_in(&text);
    }
    published_in(&fs::read_to_string("config/minimal.toml").unwrap());
    published_in(&fs::read_to_string("config/reference.toml").unwrap());
}

fn published_in(text: &str) {
    let hashes = text
        .lines()
        .filter_map(|line| line.strip_prefix("password_hash = \"$"));
    for hash in hashes {
        let (_folder, file) = folder_with(&format!(
            "{STORE}[[user]]\nname = \"ann\"\npassword_hash = \"${hash}\n"
        ));
        let found = warned(&file);
        assert!(
            found.contains("user ann has the password of a published example"),
            "{hash}: {found}"
        );
    }
}

#[test]
fn a_silent_log_is_warned_of() {
    let (_folder, file) = folder_with(&format!("{STORE}[log]\nlevel = \"off\"\n"));
    let found = warned(&file);
    assert!(
        found.contains("log.level: \"off\" silences every message"),
        "{found}"
    );
}

#[expect(clippy::too_many_lines, reason = "it is a table")]
#[test]
fn values_that_would_mean_nothing_or_another_thing_are_refused() {
    let qemu = |more: &str| format!("{STORE}[[backend]]\nname = \"q\"\nkind = \"qemu\"\n{more}");
    let rows = [
        (
            "one monitor for many VMs",
            qemu("vms = [\"q*\"]\n[backend.qemu]\nqmp = \"/run/vm.qmp\"\n"),
            "backend[0].qemu.qmp: is the same path for every VM of the backend",
        ),
        (
            "one image for two VMs",
            qemu(
                "vms = [\"a\", \"b\"]\n[backend.qemu]\nqmp = \"/run/{vm}\"\nimages = [\"/srv/disk\"]\n",
            ),
            "backend[0].qemu.images[0]: is the same path for every VM of the backend",
        ),
        (
            "one monitor for one VM",
            qemu("vms = [\"a\"]\n[backend.qemu]\nqmp = \"/run/vm.qmp\"\n"),
            "",
        ),
        (
            "another placeholder",
            qemu("vms = [\"a\"]\n[backend.qemu]\nqmp = \"/run/{VM}.qmp\"\n"),
            "backend[0].qemu.qmp: unknown placeholder \"{VM}\" (expected {vm})",
        ),
        (
            "a disk twice",
            qemu("vms = [\"a\"]\n[backend.qemu]\nqmp = \"/run/{vm}\"\ndisks = [\"a\", \"a\"]\n"),
            "backend[0].qemu.disks[1]: duplicate \"a\"",
        ),
        (
            "an image twice",
            qemu(
                "vms = [\"a\"]\n[backend.qemu]\nqmp = \"/run/{vm}\"\nimages = [\"{vm}\", \"{vm}\"]\n",
            ),
            "backend[0].qemu.images[1]: duplicate \"{vm}\"",
        ),
        (
            "a disk without a name",
            qemu("vms = [\"a\"]\n[backend.qemu]\nqmp = \"/run/{vm}\"\ndisks = [\"\"]\n"),
            "backend[0].qemu.disks[0]: must not be empty",
        ),
        (
            "a version that the gateway does not speak",
            format!(
                "{STORE}[[backend]]\nname = \"c\"\nkind = \"cloudapi\"\nvms = [\"c\"]\n[backend.cloudapi]\nurl = \"unix:///run/x\"\nserver_version = \"0.3\"\n"
            ),
            "backend[0].cloudapi.server_version: unsupported version \"0.3\"",
        ),
        (
            "an empty audience",
            format!(
                "{STORE}[[issuer]]\nname = \"i\"\nissuer = \"x\"\naudience = [\"\"]\njwks_url = \"https://x/y\"\n"
            ),
            "issuer[0].audience[0]: must not be empty",
        ),
        (
            "a driver",
            format!(
                "{STORE}[[backend]]\nname = \"l\"\nkind = \"libvirt\"\nvms = [\"*\"]\n[backend.libvirt]\nlibvirt_uri = \"system\"\n"
            ),
            "backend[0].libvirt.libvirt_uri: \"system\" is not the URI of a driver",
        ),
        (
            "a level",
            format!("{STORE}[log]\nlevel = \"verbose\"\n"),
            "log.level: unknown log level \"verbose\" (expected error, warn, info, debug or trace)",
        ),
    ];
    for (name, text, expected) in rows {
        let (_folder, file) = folder_with(&text);
        let found = load(&file, &|_| None);
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
fn what_is_allowed_but_seldom_meant_is_warned_of() {
    let rows = [
        (
            "[server]\ntrusted_proxies = [\"0.0.0.0/0\"]\n",
            "",
            "server.trusted_proxies: 0.0.0.0/0 trusts every machine",
        ),
        (
            "",
            "[[backend]]\nname = \"c\"\nkind = \"cloudapi\"\nvms = [\"*\"]\n[backend.cloudapi]\nurl = \"http://127.0.0.1:8080\"\n",
            "backend c: url is the address of this gateway itself",
        ),
        (
            "",
            "[[backend]]\nname = \"q\"\nkind = \"qemu\"\nvms = [\"*\"]\n[backend.qemu]\nqmp = \"{vm}\"\nimages = [\"{vm}.img\"]\nqemu_img = \"qemu-imgg\"\n",
            "backend q: program qemu-imgg not found",
        ),
    ];
    for (before, after, expected) in rows {
        let (_folder, file) = folder_with(&format!("{before}{STORE}{after}"));
        let found = warned(&file);
        assert!(found.contains(expected), "{expected}: {found}");
    }
}
