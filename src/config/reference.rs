//! The declarations of all keys as documentation: tables for `docs/configuration.md`, and `config/reference.toml`.

use crate::config::schema::Applies;
use crate::config::schema::Description;
use crate::config::schema::TABLES;
use crate::config::schema::Table;

/// What the reference file holds for keys without a default: table, key, value.
const SAMPLES: &[(&str, &str, &str)] = &[
    ("server", "public_url", "\"http://127.0.0.1:8080\""),
    ("user", "name", "\"alice\""),
    (
        "user",
        "password_hash",
        "\"$argon2id$v=19$m=19456,t=2,p=1$mTcYaymFeOGztoo9sE3/Mg$4J3ASrvSgzVA8fSP877G2rQOtMbYM8Rh0DD6VwUcw/E\"",
    ),
    ("user", "groups", "[\"ops\"]"),
    ("group", "name", "\"ops\""),
    ("group", "members", "[\"alice\"]"),
    ("issuer", "name", "\"corp\""),
    ("issuer", "issuer", "\"https://sso.example.com\""),
    ("issuer", "audience", "[\"snapgate\"]"),
    ("issuer", "jwks", "\"sso.jwks.json\""),
    ("issuer", "groups", "[\"vm-operators=ops\"]"),
    ("grant", "to", "[\"user:alice\", \"group:ops\"]"),
    ("grant", "actions", "[\"read\", \"create\", \"restore\"]"),
    ("grant", "vms", "[\"web*\"]"),
    ("operations", "store", "\"operations.sqlite\""),
    ("backend", "name", "\"lab\""),
    ("backend", "kind", "\"sim\""),
    ("backend", "vms", "[\"web*\"]"),
    ("backend", "simulated_vms", "[\"web01\", \"web02\"]"),
    ("passthrough", "name", "\"manager\""),
    ("passthrough", "path", "\"/manager\""),
    ("passthrough", "upstreams", "[\"http://127.0.0.1:8081\"]"),
    ("passthrough", "allow", "[\"group:ops\"]"),
];

/// Keys that stay comments in the reference file, with what could stand there.
const COMMENTED: &[(&str, &str, &str)] = &[
    ("certificate", "chain", "\"example.com.pem\""),
    ("certificate", "key", "\"example.com.key\""),
    (
        "certificate",
        "names",
        "[\"example.com\", \"*.example.com\"]",
    ),
    ("client_certificate", "names", "[\"dns:ci.example.com\"]"),
    ("client_certificate", "user", "\"ci\""),
    ("client_certificate", "groups", "[\"ops\"]"),
    ("tls", "client_ca", "\"clients.pem\""),
    ("authentication", "htpasswd", "\"users.htpasswd\""),
    ("authentication", "tokens", "\"tokens.json\""),
    (
        "issuer",
        "jwks_url",
        "\"https://sso.example.com/protocol/openid-connect/certs\"",
    ),
    ("issuer", "jwks_ca", "\"sso-ca.pem\""),
    ("operations", "resume_ttl", "\"10m\""),
    ("backend", "root", "\"/srv/vms\""),
    ("backend", "backups", "\"/srv/backups\""),
    ("backend", "new_folders", "false"),
    ("backend", "simulator", "\"unix:/run/simulator.sock\""),
    ("backend", "libvirt_socket", "\"/run/libvirt/libvirt-sock\""),
    ("backend", "libvirt_uri", "\"qemu:///system\""),
    ("backend", "libvirt_keepalive", "\"5s\""),
    ("backend", "libvirt_timeout", "\"1h\""),
    ("backend", "after_restore", "\"as-before\""),
    ("backend", "managed_save", "\"refuse\""),
    ("backend", "inspect_disks", "true"),
    ("backend", "url", "\"unix:///var/lib/incus/unix.socket\""),
    ("backend", "project", "\"default\""),
    ("backend", "client_cert", "\"gateway.crt\""),
    ("backend", "client_key", "\"gateway.key\""),
    ("backend", "server_cert", "\"server.crt\""),
    (
        "backend",
        "server_fingerprint",
        "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"",
    ),
    ("backend", "ca", "\"ca.crt\""),
    ("backend", "urls", "[\"https://pve1.example.com:8006\"]"),
    (
        "backend",
        "server_fingerprints",
        "[\"0000000000000000000000000000000000000000000000000000000000000000\"]",
    ),
    ("backend", "storages", "[\"local\"]"),
    ("backend", "snapshot_memory", "false"),
    ("backend", "backup_mode", "\"snapshot\""),
    ("backend", "connect_timeout", "\"5s\""),
    ("backend", "username", "\"gateway\""),
    ("backend", "password", "\"file:server.password\""),
    ("backend", "token", "\"env:SERVER_TOKEN\""),
    ("backend", "server_version", "\"0.1\""),
    ("backend", "server_recovery", "\"listable\""),
    ("backend", "qmp", "\"/run/vms/{vm}.qmp\""),
    ("backend", "disks", "[\"disk0\", \"disk1\"]"),
    (
        "backend",
        "images",
        "[\"/srv/vms/{vm}.qcow2\", \"/srv/vms/{vm}-data.qcow2\"]",
    ),
    ("backend", "qemu_img", "\"qemu-img\""),
    ("backend", "qemu_io", "\"qemu-io\""),
    ("backend", "greeting_timeout", "\"2s\""),
    ("backend", "image_timeout", "\"15m\""),
    (
        "passthrough",
        "authorization",
        "\"file:manager.authorization\"",
    ),
    (
        "passthrough",
        "server_fingerprint",
        "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"",
    ),
    ("passthrough", "ca", "\"ca.crt\""),
    ("passthrough", "client_cert", "\"gateway.crt\""),
    ("passthrough", "client_key", "\"gateway.key\""),
    ("passthrough", "health_path", "\"/healthz\""),
    ("log", "audit", "\"audit.log\""),
];

fn sample(list: &[(&str, &str, &'static str)], table: &str, key: &str) -> Option<&'static str> {
    list.iter()
        .find(|it| it.0 == table && it.1 == key)
        .map(|it| it.2)
}

/// Every key in Markdown tables.
#[must_use]
pub fn keys_as_markdown() -> String {
    TABLES.iter().map(markdown_of).collect()
}

fn markdown_of(table: &Table) -> String {
    let heading = heading(table);
    let rows: String = table.keys.iter().map(|key| row(&key.describe())).collect();
    format!(
        "### `{heading}`\n\n{}\n\n| key | value | default | applies | meaning |\n|---|---|---|---|---|\n{rows}\n",
        table.help
    )
}

fn row(key: &Description) -> String {
    let default = key
        .default
        .as_ref()
        .map_or_else(|| key.without.to_owned(), |it| format!("`{it}`"));
    let (name, form, help) = (key.name, &key.form, key.help);
    let applies = applies(key.applies);
    format!("| `{name}` | {form} | {default} | {applies} | {help} |\n")
}

const fn applies(when: Applies) -> &'static str {
    match when {
        Applies::AtOnce => "at once",
        Applies::Restart => "restart",
    }
}

fn heading(table: &Table) -> String {
    if table.repeated {
        format!("[[{}]]", table.name)
    } else {
        format!("[{}]", table.name)
    }
}

/// Every key in a file that can be loaded, each with its meaning, form and default.
#[must_use]
pub fn keys_as_toml() -> String {
    let tables: String = TABLES.iter().map(toml_of).collect();
    format!(
        "# Every key of snapgate, with its meaning, its form, its default and when a change of it counts.\n\
         # Keys that are left out have their defaults; config/minimal.toml is a better start than this file.\n{tables}"
    )
}

fn toml_of(table: &Table) -> String {
    let (help, heading) = (table.help, heading(table));
    // A table that nobody needs stays a comment as a whole.
    let commented = |key: &str| sample(COMMENTED, table.name, key).is_some();
    let idle = table.repeated && table.keys.iter().all(|key| commented(key.name()));
    let mark = if idle { "#" } else { "" };
    let keys: String = table
        .keys
        .iter()
        .map(|key| toml_key(table.name, &key.describe()))
        .collect();
    format!("\n# {help}\n{mark}{heading}\n{keys}")
}

fn toml_key(table: &str, key: &Description) -> String {
    let (name, form, help) = (
        key.name,
        key.form.replace('`', ""),
        key.help.replace('`', ""),
    );
    let absent = key.without.replace('`', "");
    let default = key.default.clone().unwrap_or_else(|| absent.clone());
    let default = if absent.starts_with("required") && key.default.is_none() {
        absent
    } else {
        format!("default: {default}")
    };
    let line = sample(COMMENTED, table, name).map_or_else(
        || {
            let value = sample(SAMPLES, table, name);
            let value = value.map_or_else(|| key.default.clone(), |it| Some(it.to_owned()));
            format!("{name} = {}", value.unwrap_or_default())
        },
        |value| format!("#{name} = {value}"),
    );
    let applies = applies(key.applies);
    format!("# {help}\n# {form}; {default}; applies: {applies}\n{line}\n")
}
