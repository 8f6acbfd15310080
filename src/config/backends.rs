//! Backends, and which VMs are on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::adapters::adapter::Recovery;
use crate::adapters::cloudapi;
use crate::adapters::files;
use crate::adapters::incus;
use crate::adapters::layers;
use crate::adapters::libvirt;
use crate::adapters::qemu;
use crate::adapters::sim;
use crate::adapters::transport::Address;
use crate::adapters::transport::ClientFiles;
use crate::adapters::transport::Credential;
use crate::adapters::transport::ServerTrust;
use crate::adapters::transport::ServerUrl;
use crate::config::apart;
use crate::config::paths::overlap;
use crate::config::proxmox;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::schema::backend;
use crate::config::secret_source::Source;
use crate::config::settings::Backend;
use crate::config::settings::BackendKind;
use crate::gate::Placement;
use crate::gate::Specification;
use crate::model::BackendName;
use crate::model::Pattern;
use crate::model::Secret;
use crate::model::VmId;

/// Keys that not every kind of backend has.
const OF_KIND: &[(&str, &[&str])] = &[
    (
        "cloudapi",
        &[
            backend::URL.name,
            backend::CLIENT_CERT.name,
            backend::CLIENT_KEY.name,
            backend::SERVER_CERT.name,
            backend::SERVER_FINGERPRINT.name,
            backend::CA.name,
            backend::CONNECT_TIMEOUT.name,
            backend::USERNAME.name,
            backend::PASSWORD.name,
            backend::TOKEN.name,
            backend::SERVER_VERSION.name,
            backend::SERVER_RECOVERY.name,
        ],
    ),
    (
        "files",
        &[
            backend::ROOT.name,
            backend::BACKUPS.name,
            backend::NEW_FOLDERS.name,
        ],
    ),
    (
        "libvirt",
        &[
            backend::LIBVIRT_SOCKET.name,
            backend::LIBVIRT_URI.name,
            backend::LIBVIRT_KEEPALIVE.name,
            backend::LIBVIRT_TIMEOUT.name,
            backend::AFTER_RESTORE.name,
            backend::MANAGED_SAVE.name,
            backend::INSPECT_DISKS.name,
        ],
    ),
    (
        "incus",
        &[
            backend::URL.name,
            backend::PROJECT.name,
            backend::CLIENT_CERT.name,
            backend::CLIENT_KEY.name,
            backend::SERVER_CERT.name,
            backend::SERVER_FINGERPRINT.name,
            backend::CA.name,
            backend::CONNECT_TIMEOUT.name,
        ],
    ),
    (
        "proxmox",
        &[
            backend::URLS.name,
            backend::TOKEN.name,
            backend::CA.name,
            backend::SERVER_FINGERPRINTS.name,
            backend::STORAGES.name,
            backend::SNAPSHOT_MEMORY.name,
            backend::BACKUP_MODE.name,
            backend::AFTER_RESTORE.name,
            backend::CONNECT_TIMEOUT.name,
        ],
    ),
    (
        "qemu",
        &[
            backend::QMP.name,
            backend::DISKS.name,
            backend::IMAGES.name,
            backend::QEMU_IMG.name,
            backend::QEMU_IO.name,
            backend::GREETING_TIMEOUT.name,
            backend::IMAGE_TIMEOUT.name,
        ],
    ),
    (
        "sim",
        &[
            backend::SIMULATED_VMS.name,
            backend::SIMULATED_BACKUPS.name,
            backend::DURATION.name,
            backend::SIMULATOR.name,
            backend::RECOVERY.name,
            backend::SETTLE.name,
        ],
    ),
];

/// Keys of a `sim` that holds its VMs itself.
const IN_MEMORY: &[&str] = &[
    backend::SIMULATED_VMS.name,
    backend::SIMULATED_BACKUPS.name,
    backend::DURATION.name,
];

/// Reads every `[[backend]]`.
pub(super) fn read(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    source: &Source<'_>,
) -> (Vec<Backend>, Vec<Placement>) {
    let mut backends: Vec<Backend> = Vec::new();
    let mut placements = Vec::new();
    let mut names: Vec<BackendName> = Vec::new();
    let mut claimed = BTreeMap::new();
    for section in reader.sections(root, &backend::TABLE) {
        let name = section.text(&backend::NAME).and_then(|found| {
            BackendName::new(&found.text)
                .map_err(|error| reader.wrong(&found, error.to_string(), ""))
                .ok()
        });
        if let Some(twice) = name.as_ref().filter(|name| names.contains(name)) {
            let what = format!("the backend {twice} is there twice");
            section.problem_at(backend::NAME.name, what, "choose another name");
        }
        names.extend(name.clone());
        let vms = section.texts(&backend::VMS);
        let patterns = vms
            .iter()
            .filter_map(|vm| placement(reader, vm, &section, &mut claimed));
        let patterns: Vec<Pattern> = patterns.collect();
        let layers = layers_of(&section);
        let kind = section
            .word(&backend::KIND)
            .and_then(|kind| kind_of(reader, &section, source, (kind, &patterns)));
        if let (Some(name), Some(kind)) = (name, kind) {
            apart::folders(&section, &kind, &backends);
            placements.extend(patterns.into_iter().map(|pattern| Placement {
                pattern,
                backend: name.clone(),
            }));
            backends.push(Backend { name, layers, kind });
        }
    }
    (backends, placements)
}

fn layers_of(section: &Section<'_>) -> layers::Config {
    layers::Config {
        timeout: section.span(&backend::TIMEOUT),
        concurrency: section.number(&backend::CONCURRENCY),
        reads: section.number(&backend::READS),
        retries: section.small(&backend::RETRIES),
        breaker_failures: section.small(&backend::BREAKER_FAILURES),
        breaker_pause: section.span(&backend::BREAKER_PAUSE),
        health_interval: section.span(&backend::HEALTH_INTERVAL),
    }
}

fn placement(
    reader: &Reader<'_>,
    found: &Found,
    section: &Section<'_>,
    claimed: &mut BTreeMap<Pattern, String>,
) -> Option<Pattern> {
    let pattern = Pattern::new(&found.text)
        .map_err(|error| reader.wrong(found, error.to_string(), ""))
        .ok()?;
    let (prefix, starred) = pattern.prefix();
    if starred && prefix.len().saturating_add(1) != pattern.as_str().len() {
        let what = format!("{:?} has a '*' before its end", found.text);
        let hint = "write an exact id, or a prefix followed by one '*'";
        reader.wrong(found, what, hint);
        return None;
    }
    if let Some(other) = claimed.get(&pattern) {
        let what = format!("{:?} is claimed by {other} too", found.text);
        reader.wrong(
            found,
            what,
            "a VM is on one backend: remove one, or write a longer prefix",
        );
        return None;
    }
    claimed.insert(pattern.clone(), section.path().to_owned());
    Some(pattern)
}

fn kind_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
    (kind, vms): (&str, &[Pattern]),
) -> Option<BackendKind> {
    let own = OF_KIND.iter().find(|(it, _)| *it == kind);
    let own = own.map_or(&[][..], |(_, names)| *names);
    for (other, names) in OF_KIND.iter().filter(|(it, _)| *it != kind) {
        for name in names
            .iter()
            .filter(|name| section.has(name) && !own.contains(name))
        {
            let what = format!("belongs to backends of kind = \"{other}\"");
            section.problem_at(name, what, "remove it");
        }
    }
    if kind == "cloudapi" {
        return cloudapi_of(reader, section, source).map(BackendKind::CloudApi);
    }
    if kind == "files" {
        return files_of(reader, section).map(BackendKind::Files);
    }
    if kind == "libvirt" {
        return libvirt_of(reader, section).map(BackendKind::Libvirt);
    }
    if kind == "incus" {
        return incus_of(reader, section, source).map(BackendKind::Incus);
    }
    if kind == "proxmox" {
        return proxmox::config_of(reader, section, source).map(BackendKind::Proxmox);
    }
    if kind == "qemu" {
        return qemu_of(reader, section, vms).map(BackendKind::Qemu);
    }
    Some(BackendKind::Sim(sim_of(reader, section)))
}

fn sim_of(reader: &Reader<'_>, section: &Section<'_>) -> sim::Config {
    let mut vms = Vec::new();
    for found in section.texts(&backend::SIMULATED_VMS) {
        match VmId::new(&found.text) {
            Ok(it) if vms.contains(&it) => reader.wrong(&found, "is there twice", "remove one"),
            Ok(it) => vms.push(it),
            Err(it) => reader.wrong(&found, it.to_string(), ""),
        }
    }
    let simulator = section.text(&backend::SIMULATOR).and_then(|found| {
        let path = found.text.strip_prefix("unix:");
        match path.filter(|path| !path.is_empty()) {
            Some(path) => Some(reader.folder().join(path)),
            None => {
                let hint = "write simulator = \"unix:/folder/socket\"";
                reader.wrong(&found, "names no socket", hint);
                None
            }
        }
    });
    if simulator.is_some() {
        for name in IN_MEMORY.iter().filter(|it| section.has(it)) {
            section.problem_at(name, "belongs to VMs in memory", "remove it, or simulator");
        }
    }
    sim::Config {
        vms,
        backups: section.small(&backend::SIMULATED_BACKUPS),
        duration: section.span(&backend::DURATION),
        simulator,
        recovery: recovery(section.word(&backend::RECOVERY)),
        settle: section.span(&backend::SETTLE),
    }
}

fn recovery(word: Option<&str>) -> Recovery {
    match word {
        Some("listable") => Recovery::Listable,
        Some("no-trace") => Recovery::NoTrace,
        Some(_) | None => Recovery::ReplaySafe,
    }
}

/// Whether patterns stand for one VM at most.
fn is_one_vm(vms: &[Pattern]) -> bool {
    vms.len() <= 1 && !vms.iter().any(|pattern| pattern.prefix().1)
}

/// Notes a path in which nothing stands for the VM, though there are several, or something that means nothing: two VMs would
/// be one.
fn check_place_of_vm(reader: &Reader<'_>, found: &Found, vms: &[Pattern]) {
    let hint = "write {vm} where the id of the VM belongs";
    let rest = found.text.replace("{vm}", "");
    if let Some((_, after)) = rest.split_once('{') {
        let name = after.split('}').next().unwrap_or_default();
        let what = format!("unknown placeholder \"{{{name}}}\" (expected {{vm}})");
        reader.wrong(found, what, hint);
    } else if rest == found.text && !is_one_vm(vms) {
        reader.wrong(found, "is the same path for every VM of the backend", hint);
    }
}

/// Notes items of a list that are there twice.
fn refuse_twice(reader: &Reader<'_>, list: &[Found]) {
    for (index, found) in list.iter().enumerate() {
        if list
            .iter()
            .take(index)
            .any(|other| other.text == found.text)
        {
            reader.wrong(found, format!("duplicate {:?}", found.text), "remove one");
        }
    }
}

fn qemu_of(reader: &Reader<'_>, section: &Section<'_>, vms: &[Pattern]) -> Option<qemu::Config> {
    let within = |text: &str| reader.folder().join(text).display().to_string();
    let images = section.texts(&backend::IMAGES);
    let disks = section.texts(&backend::DISKS);
    if !images.is_empty() && !disks.is_empty() && images.len() != disks.len() {
        let what = format!("has {} images for {} disks", images.len(), disks.len());
        let hint = "name one image for each disk, in the same order";
        section.problem_at(backend::IMAGES.name, what, hint);
    }
    refuse_twice(reader, &images);
    refuse_twice(reader, &disks);
    let qmp = section.text(&backend::QMP);
    for path in images.iter().chain(&qmp) {
        check_place_of_vm(reader, path, vms);
    }
    if qmp.is_none() && !section.has(backend::QMP.name) {
        let what = "is missing in a backend of kind = \"qemu\"";
        section.problem_at(backend::QMP.name, what, "write qmp = \"/folder/{vm}.qmp\"");
    }
    let qemu_img = section.text(&backend::QEMU_IMG);
    let qemu_io = section.text(&backend::QEMU_IO);
    let greeting_timeout = section.span(&backend::GREETING_TIMEOUT);
    let image_timeout = section.span(&backend::IMAGE_TIMEOUT);
    Some(qemu::Config {
        qmp: within(&qmp?.text),
        disks: disks.into_iter().map(|disk| disk.text).collect(),
        images: images.iter().map(|image| within(&image.text)).collect(),
        qemu_img: PathBuf::from(qemu_img?.text),
        qemu_io: PathBuf::from(qemu_io?.text),
        greeting_timeout,
        image_timeout,
    })
}

fn files_of(reader: &Reader<'_>, section: &Section<'_>) -> Option<files::Config> {
    let path = |key| {
        let found = section.text(key);
        if found.is_none() && !section.has(key.name) {
            let hint = format!("write {} = \"/folder\"", key.name);
            section.problem_at(
                key.name,
                "is missing in a backend of kind = \"files\"",
                &hint,
            );
        }
        found
    };
    let new_folders = section.flag(&backend::NEW_FOLDERS);
    let (root, backups) = (path(&backend::ROOT), path(&backend::BACKUPS));
    let (root_at, backups_at) = (root?, backups?);
    let (root, backups) = (
        reader.folder().join(&root_at.text),
        reader.folder().join(&backups_at.text),
    );
    // A folder that is missing may come later, with the file system it is on. A file in its place is wrong for certain.
    for (found, path) in [(&root_at, &root), (&backups_at, &backups)] {
        if fs::metadata(path).is_ok_and(|about| !about.is_dir()) {
            let what = format!("{} is not a folder", path.display());
            reader.wrong(found, what, "correct the path");
        }
    }
    if let Some(overlap) = overlap(&backups, &root) {
        let hint = "keep VMs and backups side by side";
        reader.wrong(&backups_at, format!("{} root", overlap.in_words()), hint);
    }
    Some(files::Config {
        root,
        backups,
        new_folders,
    })
}

fn libvirt_of(reader: &Reader<'_>, section: &Section<'_>) -> Option<libvirt::Config> {
    let socket = section.text(&backend::LIBVIRT_SOCKET);
    let uri = section.text(&backend::LIBVIRT_URI);
    if let Some(found) = uri.as_ref().filter(|found| !found.text.contains("://")) {
        let what = format!("{:?} is not the URI of a driver", found.text);
        reader.wrong(found, what, "write libvirt_uri = \"qemu:///system\"");
    }
    let after_restore = section.word(&backend::AFTER_RESTORE);
    let (keepalive, operation_timeout) = (
        section.span(&backend::LIBVIRT_KEEPALIVE),
        section.span(&backend::LIBVIRT_TIMEOUT),
    );
    let managed_save = section.word(&backend::MANAGED_SAVE);
    let inspect_disks = section.flag(&backend::INSPECT_DISKS);
    let after_restore = after_restore?;
    let Some(after_restore) = libvirt::AfterRestore::from_word(after_restore) else {
        let what = format!("\"{after_restore}\" is not possible with libvirt");
        let hint = "write \"as-before\", \"running\", \"paused\" or \"as-saved\"";
        section.problem_at(backend::AFTER_RESTORE.name, what, hint);
        return None;
    };
    Some(libvirt::Config {
        socket: reader.folder().join(socket?.text),
        uri: uri?.text,
        after_restore,
        managed_save: libvirt::ManagedSave::from_word(managed_save?)?,
        inspect_disks,
        keepalive,
        operation_timeout,
    })
}

fn incus_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<incus::Config> {
    let path = |found: &Found| reader.folder().join(&found.text);
    let url = section.text(&backend::URL);
    let project = section.text(&backend::PROJECT);
    let connect_timeout = section.span(&backend::CONNECT_TIMEOUT);
    let certificate = section.text(&backend::CLIENT_CERT);
    let key = section.text(&backend::CLIENT_KEY);
    let servers = [
        section
            .text(&backend::SERVER_CERT)
            .map(|text| ServerTrust::Certificate(path(&text))),
        section
            .text(&backend::SERVER_FINGERPRINT)
            .map(|text| ServerTrust::Fingerprint(text.text)),
        section
            .text(&backend::CA)
            .map(|text| ServerTrust::Authority(path(&text))),
    ];
    let Some(url) = url else {
        if !section.has(backend::URL.name) {
            let what = "is missing in a backend of kind = \"incus\"";
            let hint = "write url = \"unix:///var/lib/incus/unix.socket\", or https://host:8443";
            section.problem_at(backend::URL.name, what, hint);
        }
        return None;
    };
    let place = incus::parse_url(&url.text)
        .map_err(|error| reader.wrong(&url, error.to_string(), ""))
        .ok()?;
    let address = match place {
        ServerUrl::Unix(socket) => Address::Unix(socket),
        ServerUrl::Loopback(address, _) => Address::Loopback(address),
        ServerUrl::Https(authority, _) => {
            let mut servers = servers.into_iter().flatten();
            let (Some(trust), None) = (servers.next(), servers.next()) else {
                let what = "needs exactly one of server_cert, server_fingerprint and ca";
                reader.wrong(
                    &url,
                    what,
                    "server_cert with a copy of the server's certificate suits most",
                );
                return None;
            };
            let (Some(certificate), Some(key)) = (certificate, key) else {
                let what = "needs client_cert and client_key";
                reader.wrong(&url, what, "docs/adapters/incus.md shows how to make them");
                return None;
            };
            source.holds_secret(&path(&key), "a private key");
            Address::Https {
                authority,
                trust,
                identity: Some(ClientFiles {
                    certificate: path(&certificate),
                    key: path(&key),
                }),
            }
        }
    };
    let config = incus::Config {
        address,
        project: project?.text,
        connect_timeout,
    };
    if let Err(error) = config.client() {
        reader.wrong(&url, error.to_string(), "");
        return None;
    }
    Some(config)
}

/// The version to ask a server for: one that the gateway itself speaks.
fn server_version(reader: &Reader<'_>, section: &Section<'_>) -> Option<Found> {
    section.text(&backend::SERVER_VERSION).filter(|found| {
        let known = Specification::default().supported;
        let is_known = known.contains(&found.text);
        if !is_known {
            let what = format!("the gateway does not speak version \"{}\"", found.text);
            reader.wrong(found, what, &format!("expected {}", known.join(", ")));
        }
        is_known
    })
}

fn cloudapi_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<cloudapi::Config> {
    let path = |found: Found| reader.folder().join(found.text);
    let url = section.text(&backend::URL);
    let version = server_version(reader, section);
    let connect_timeout = section.span(&backend::CONNECT_TIMEOUT);
    let recovery = recovery(section.word(&backend::SERVER_RECOVERY));
    let certificate = section.text(&backend::CLIENT_CERT).map(path);
    let key = section.text(&backend::CLIENT_KEY).map(path);
    let servers = [
        section
            .text(&backend::SERVER_CERT)
            .map(|text| ServerTrust::Certificate(path(text))),
        section
            .text(&backend::SERVER_FINGERPRINT)
            .map(|text| ServerTrust::Fingerprint(text.text)),
        section
            .text(&backend::CA)
            .map(|text| ServerTrust::Authority(path(text))),
    ];
    let credential = credential_of(reader, section, source)?;
    let Some(url) = url else {
        if !section.has(backend::URL.name) {
            let what = "is missing in a backend of kind = \"cloudapi\"";
            let hint = "write url = \"https://host:port\", or \"unix:///path/of/the/socket\"";
            section.problem_at(backend::URL.name, what, hint);
        }
        return None;
    };
    let place = ServerUrl::parse(&url.text)
        .map_err(|error| reader.wrong(&url, error.to_string(), ""))
        .ok()?;
    let (address, base) = match place {
        ServerUrl::Unix(socket) => (Address::Unix(socket), Vec::new()),
        ServerUrl::Loopback(address, base) => (Address::Loopback(address), base),
        ServerUrl::Https(authority, base) => {
            let mut servers = servers.into_iter().flatten();
            let (Some(trust), None) = (servers.next(), servers.next()) else {
                let what = "needs exactly one of ca, server_cert and server_fingerprint";
                let hint = "ca with the authority that signed the server's certificate suits most";
                reader.wrong(&url, what, hint);
                return None;
            };
            let identity = match (certificate, key) {
                (Some(certificate), Some(key)) => {
                    source.holds_secret(&key, "a private key");
                    Some(ClientFiles { certificate, key })
                }
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => {
                    reader.wrong(&url, "needs client_cert and client_key, or neither", "");
                    return None;
                }
            };
            let address = Address::Https {
                authority,
                trust,
                identity,
            };
            (address, base)
        }
    };
    let config = cloudapi::Config {
        address,
        base,
        credential,
        version: version?.text,
        recovery,
        connect_timeout,
    };
    let wrong = |error: cloudapi::ConfigError| reader.wrong(&url, error.to_string(), "");
    config.client().map_err(wrong).ok().map(|_| config)
}

/// User and password, or a token; `None` after a mistake was noted.
fn credential_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<Option<Credential>> {
    let secret = |found: Found| {
        if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
            let hint = "write \"file:PATH\" or \"env:NAME\"";
            reader.wrong(&found, "holds a secret itself", hint);
            return None;
        }
        let text = source.secret(&found.text, &reader.folder());
        let text = text.map_err(|what| reader.wrong(&found, what, "")).ok()?;
        Some((found, Secret::new(text)))
    };
    let username = section.text(&backend::USERNAME);
    let (password, token) = (
        section.text(&backend::PASSWORD),
        section.text(&backend::TOKEN),
    );
    let (found, made) = match (username, password, token) {
        (None, None, None) => return Some(None),
        (Some(username), Some(password), None) => {
            let (_, password) = secret(password)?;
            let made = Credential::basic(&username.text, &password);
            (username, made)
        }
        (None, None, Some(token)) => {
            let (found, token) = secret(token)?;
            (found, Credential::bearer(&token))
        }
        (Some(_), _, _) | (None, Some(_), _) => {
            let what = "must be there with password, and without token";
            let hint = "write username and password, or token alone";
            section.problem_at(backend::USERNAME.name, what, hint);
            return None;
        }
    };
    made.map(Some)
        .map_err(|error| reader.wrong(&found, error.to_string(), ""))
        .ok()
}
