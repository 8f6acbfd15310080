//! Backends, and which VMs are on them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::adapters::cloudapi;
use crate::adapters::files;
use crate::adapters::incus;
use crate::adapters::layers;
use crate::adapters::libvirt;
use crate::adapters::port::Recovery;
use crate::adapters::qemu;
use crate::adapters::sim;
use crate::config::keys::backend;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::settings::Backend;
use crate::config::settings::BackendKind;
use crate::config::source::Source;
use crate::gate::Placement;
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
                .map_err(|it| reader.wrong(&found, it.to_string(), ""))
                .ok()
        });
        if let Some(twice) = name.as_ref().filter(|it| names.contains(it)) {
            let what = format!("the backend {twice} is there twice");
            section.problem_at(backend::NAME.name, what, "choose another name");
        }
        names.extend(name.clone());
        let vms = section.texts(&backend::VMS);
        let patterns = vms
            .iter()
            .filter_map(|it| placement(reader, it, &section, &mut claimed));
        let patterns: Vec<Pattern> = patterns.collect();
        let layers = layers_of(&section);
        let kind = section
            .word(&backend::KIND)
            .and_then(|it| kind_of(reader, &section, source, it));
        if let (Some(name), Some(kind)) = (name, kind) {
            keep_apart(&section, &kind, &backends);
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
    }
}

fn placement(
    reader: &Reader<'_>,
    found: &Found,
    section: &Section<'_>,
    claimed: &mut BTreeMap<Pattern, String>,
) -> Option<Pattern> {
    let pattern = Pattern::new(&found.text)
        .map_err(|it| reader.wrong(found, it.to_string(), ""))
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
    kind: &str,
) -> Option<BackendKind> {
    let own = OF_KIND.iter().find(|(it, _)| *it == kind);
    let own = own.map_or(&[][..], |(_, names)| *names);
    for (other, names) in OF_KIND.iter().filter(|(it, _)| *it != kind) {
        for name in names
            .iter()
            .filter(|it| section.has(it) && !own.contains(it))
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
        return incus_of(reader, section).map(BackendKind::Incus);
    }
    if kind == "qemu" {
        return qemu_of(reader, section).map(BackendKind::Qemu);
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
        match path.filter(|it| !it.is_empty()) {
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

fn qemu_of(reader: &Reader<'_>, section: &Section<'_>) -> Option<qemu::Config> {
    let within = |text: &str| reader.folder().join(text).display().to_string();
    let images = section.texts(&backend::IMAGES);
    let disks = section.texts(&backend::DISKS);
    if !images.is_empty() && !disks.is_empty() && images.len() != disks.len() {
        let what = format!("has {} images for {} disks", images.len(), disks.len());
        let hint = "name one image for each disk, in the same order";
        section.problem_at(backend::IMAGES.name, what, hint);
    }
    let qmp = section.text(&backend::QMP);
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
        disks: disks.into_iter().map(|it| it.text).collect(),
        images: images.iter().map(|it| within(&it.text)).collect(),
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
    if !root.is_dir() {
        let what = format!("{} is not a folder that can be read", root.display());
        reader.wrong(&root_at, what, "make it, or correct the path");
    }
    if !backups.is_dir() && !backups.parent().is_some_and(Path::is_dir) {
        let what = format!("{} has no folder to be made in", backups.display());
        reader.wrong(&backups_at, what, "make it, or correct the path");
    }
    let (images, kept) = (real(&root), real(&backups));
    let hint = "keep VMs and backups side by side";
    if images == kept {
        reader.wrong(&backups_at, "is the same folder as root", hint);
    } else if kept.starts_with(&images) {
        reader.wrong(&backups_at, "is below root", hint);
    } else if images.starts_with(&kept) {
        reader.wrong(&backups_at, "is above root", hint);
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
    let after_restore = section.word(&backend::AFTER_RESTORE);
    let (keepalive, operation_timeout) = (
        section.span(&backend::LIBVIRT_KEEPALIVE),
        section.span(&backend::LIBVIRT_TIMEOUT),
    );
    let inspect_disks = section.flag(&backend::INSPECT_DISKS);
    Some(libvirt::Config {
        socket: reader.folder().join(socket?.text),
        uri: uri?.text,
        after_restore: libvirt::AfterRestore::from_word(after_restore?)?,
        inspect_disks,
        keepalive,
        operation_timeout,
    })
}

fn incus_of(reader: &Reader<'_>, section: &Section<'_>) -> Option<incus::Config> {
    let path = |found: &Found| reader.folder().join(&found.text);
    let url = section.text(&backend::URL);
    let project = section.text(&backend::PROJECT);
    let connect_timeout = section.span(&backend::CONNECT_TIMEOUT);
    let certificate = section.text(&backend::CLIENT_CERT);
    let key = section.text(&backend::CLIENT_KEY);
    let servers = [
        section
            .text(&backend::SERVER_CERT)
            .map(|it| incus::Server::Certificate(path(&it))),
        section
            .text(&backend::SERVER_FINGERPRINT)
            .map(|it| incus::Server::Fingerprint(it.text)),
        section
            .text(&backend::CA)
            .map(|it| incus::Server::Authority(path(&it))),
    ];
    let Some(url) = url else {
        if !section.has(backend::URL.name) {
            let what = "is missing in a backend of kind = \"incus\"";
            let hint = "write url = \"unix:///var/lib/incus/unix.socket\", or https://host:8443";
            section.problem_at(backend::URL.name, what, hint);
        }
        return None;
    };
    let place = incus::Place::from_url(&url.text)
        .map_err(|error| reader.wrong(&url, error.to_string(), ""))
        .ok()?;
    let address = match place {
        incus::Place::Socket(socket) => incus::Address::Unix(socket),
        incus::Place::Host(authority) => {
            let mut servers = servers.into_iter().flatten();
            let (Some(server), None) = (servers.next(), servers.next()) else {
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
            incus::Address::Https {
                authority,
                server,
                client_certificate: path(&certificate),
                client_key: path(&key),
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

fn cloudapi_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<cloudapi::Config> {
    let path = |found: Found| reader.folder().join(found.text);
    let url = section.text(&backend::URL);
    let version = section.text(&backend::SERVER_VERSION);
    let connect_timeout = section.span(&backend::CONNECT_TIMEOUT);
    let recovery = recovery(section.word(&backend::SERVER_RECOVERY));
    let certificate = section.text(&backend::CLIENT_CERT).map(path);
    let key = section.text(&backend::CLIENT_KEY).map(path);
    let servers = [
        section
            .text(&backend::SERVER_CERT)
            .map(|it| cloudapi::Server::Certificate(path(it))),
        section
            .text(&backend::SERVER_FINGERPRINT)
            .map(|it| cloudapi::Server::Fingerprint(it.text)),
        section
            .text(&backend::CA)
            .map(|it| cloudapi::Server::Authority(path(it))),
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
    let place = cloudapi::Place::from_url(&url.text)
        .map_err(|error| reader.wrong(&url, error.to_string(), ""))
        .ok()?;
    let (address, base) = match place {
        cloudapi::Place::Socket(socket) => (cloudapi::Address::Unix(socket), Vec::new()),
        cloudapi::Place::Loopback(address, base) => (cloudapi::Address::Loopback(address), base),
        cloudapi::Place::Host(authority, base) => {
            let mut servers = servers.into_iter().flatten();
            let (Some(server), None) = (servers.next(), servers.next()) else {
                let what = "needs exactly one of ca, server_cert and server_fingerprint";
                let hint = "ca with the authority that signed the server's certificate suits most";
                reader.wrong(&url, what, hint);
                return None;
            };
            let identity = match (certificate, key) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => {
                    reader.wrong(&url, "needs client_cert and client_key, or neither", "");
                    return None;
                }
            };
            let address = cloudapi::Address::Https {
                authority,
                server,
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
    let client = config.client();
    let wrong = |error: cloudapi::ConfigError| reader.wrong(&url, error.to_string(), "");
    client.map_err(wrong).ok().map(|_| config)
}

/// User and password, or a token; `None` after a mistake was noted.
fn credential_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<Option<cloudapi::Credential>> {
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
            let made = cloudapi::Credential::basic(&username.text, &password);
            (username, made)
        }
        (None, None, Some(token)) => {
            let (found, token) = secret(token)?;
            (found, cloudapi::Credential::bearer(&token))
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

/// Notes backups among the VMs of another backend: they would be taken for VMs.
fn keep_apart(section: &Section<'_>, kind: &BackendKind, others: &[Backend]) {
    let BackendKind::Files(mine) = kind else {
        return;
    };
    for other in others {
        let BackendKind::Files(theirs) = &other.kind else {
            continue;
        };
        let hint = "keep VMs and backups side by side";
        let apart = "give each backend folders of its own, or make them one backend";
        if overlap(&mine.root, &theirs.root) {
            let what = format!("overlaps root of the backend {}", other.name);
            section.problem_at(backend::ROOT.name, what, apart);
        }
        if overlap(&mine.backups, &theirs.backups) {
            let what = format!("overlaps backups of the backend {}", other.name);
            section.problem_at(backend::BACKUPS.name, what, apart);
        }
        if overlap(&mine.backups, &theirs.root) {
            let what = format!("overlaps root of the backend {}", other.name);
            section.problem_at(backend::BACKUPS.name, what, hint);
        }
        if overlap(&mine.root, &theirs.backups) {
            let what = format!("overlaps backups of the backend {}", other.name);
            section.problem_at(backend::ROOT.name, what, hint);
        }
    }
}

fn overlap(one: &Path, two: &Path) -> bool {
    // Bind mounts give one folder several paths.
    if let (Ok(one), Ok(two)) = (one.metadata(), two.metadata())
        && (one.dev(), one.ino()) == (two.dev(), two.ino())
    {
        return true;
    }
    let (one, two) = (real(one), real(two));
    one.starts_with(&two) || two.starts_with(&one)
}

/// The path without links as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        (Some(_) | None, Some(_) | None) => path.to_owned(),
    }
}
