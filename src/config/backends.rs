//! Backends, and which VMs are on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::adapters::files;
use crate::adapters::layers;
use crate::adapters::qemu;
use crate::adapters::sim;
use crate::config::keys::backend;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::settings::Backend;
use crate::config::settings::BackendKind;
use crate::gate::Placement;
use crate::model::BackendName;
use crate::model::Pattern;
use crate::model::VmId;

/// Keys that only one kind of backend has.
const OF_KIND: &[(&str, &[&str])] = &[
    ("files", &[backend::ROOT.name, backend::BACKUPS.name]),
    (
        "qemu",
        &[
            backend::QMP.name,
            backend::DISKS.name,
            backend::IMAGES.name,
            backend::QEMU_IMG.name,
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
        ],
    ),
];

/// Reads every `[[backend]]`.
pub(super) fn read(reader: &Reader<'_>, root: &DeTable<'_>) -> (Vec<Backend>, Vec<Placement>) {
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
            .and_then(|it| kind_of(reader, &section, it));
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

fn kind_of(reader: &Reader<'_>, section: &Section<'_>, kind: &str) -> Option<BackendKind> {
    for (other, names) in OF_KIND.iter().filter(|(it, _)| *it != kind) {
        for name in names.iter().filter(|it| section.has(it)) {
            let what = format!("belongs to backends of kind = \"{other}\"");
            section.problem_at(name, what, "remove it");
        }
    }
    if kind == "files" {
        return files_of(reader, section).map(BackendKind::Files);
    }
    if kind == "qemu" {
        return qemu_of(reader, section).map(BackendKind::Qemu);
    }
    let mut vms = Vec::new();
    for found in section.texts(&backend::SIMULATED_VMS) {
        match VmId::new(&found.text) {
            Ok(it) if vms.contains(&it) => reader.wrong(&found, "is there twice", "remove one"),
            Ok(it) => vms.push(it),
            Err(it) => reader.wrong(&found, it.to_string(), ""),
        }
    }
    Some(BackendKind::Sim(sim::Config {
        vms,
        backups: section.small(&backend::SIMULATED_BACKUPS),
        duration: section.span(&backend::DURATION),
    }))
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
    let greeting_timeout = section.span(&backend::GREETING_TIMEOUT);
    let image_timeout = section.span(&backend::IMAGE_TIMEOUT);
    Some(qemu::Config {
        qmp: within(&qmp?.text),
        disks: disks.into_iter().map(|it| it.text).collect(),
        images: images.iter().map(|it| within(&it.text)).collect(),
        qemu_img: PathBuf::from(qemu_img?.text),
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
    Some(files::Config { root, backups })
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
