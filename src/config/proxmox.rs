//! `[[backend]]` of the kind `proxmox`.

use crate::adapters::proxmox::AfterRestore;
use crate::adapters::proxmox::BackupMode;
use crate::adapters::proxmox::Config;
use crate::adapters::proxmox::NodeTrust;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::schema::backend;
use crate::config::secret_source::Source;
use crate::model::Secret;

/// Reads the keys of a cluster; `None` after a problem was noted.
pub(super) fn config_of(
    reader: &Reader<'_>,
    section: &Section<'_>,
    source: &Source<'_>,
) -> Option<Config> {
    let urls = section.texts(&backend::URLS);
    let nodes: Option<Vec<String>> = urls.iter().map(|url| authority(reader, url)).collect();
    let fingerprints = section.texts(&backend::SERVER_FINGERPRINTS);
    let authorities = section.text(&backend::CA);
    let token = token(reader, section, source);
    let storages = section.texts(&backend::STORAGES);
    let backup_mode = match section.word(&backend::BACKUP_MODE) {
        Some("suspend") => BackupMode::Suspend,
        Some("stop") => BackupMode::Stop,
        Some(_) | None => BackupMode::Snapshot,
    };
    let after_restore = after_restore(section);
    let snapshot_memory = section.flag(&backend::SNAPSHOT_MEMORY);
    let connect_timeout = section.span(&backend::CONNECT_TIMEOUT);
    if urls.is_empty() {
        let what = "is missing in a backend of kind = \"proxmox\"";
        section.problem_at(
            backend::URLS.name,
            what,
            "write urls = [\"https://pve1:8006\"]",
        );
        return None;
    }
    let texts = |found: Vec<Found>| {
        found
            .into_iter()
            .map(|found| found.text)
            .collect::<Vec<_>>()
    };
    let trust = match (fingerprints.is_empty(), authorities) {
        (false, None) => NodeTrust::Fingerprints(texts(fingerprints)),
        (true, Some(file)) => NodeTrust::Authority(reader.folder().join(file.text)),
        (false, Some(_)) | (true, None) => {
            let what = "needs exactly one of server_fingerprints and ca";
            let hint = "ca with a copy of /etc/pve/pve-root-ca.pem suits most";
            section.problem_at(backend::URLS.name, what, hint);
            return None;
        }
    };
    let config = Config {
        nodes: nodes?,
        trust,
        token: token?,
        storages: texts(storages),
        snapshot_memory,
        backup_mode,
        after_restore: after_restore?,
        connect_timeout,
    };
    match config.clients() {
        Ok(_) => Some(config),
        Err(error) => {
            section.problem_at(backend::URLS.name, error.to_string(), "");
            None
        }
    }
}

/// Host and port of `https://host:port`.
fn authority(reader: &Reader<'_>, url: &Found) -> Option<String> {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || ".-:[]".contains(character);
    let authority = url
        .text
        .strip_prefix("https://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .filter(|rest| !rest.is_empty() && rest.chars().all(is_plain));
    if authority.is_none() {
        let what = format!("\"{}\" is not the URL of a node", url.text);
        reader.wrong(url, what, "write \"https://host:8006\"");
    }
    authority.map(str::to_owned)
}

fn token(reader: &Reader<'_>, section: &Section<'_>, source: &Source<'_>) -> Option<Secret> {
    let Some(found) = section.text(&backend::TOKEN) else {
        if !section.has(backend::TOKEN.name) {
            let what = "is missing in a backend of kind = \"proxmox\"";
            section.problem_at(
                backend::TOKEN.name,
                what,
                "write token = \"file:PATH\" or \"env:NAME\"",
            );
        }
        return None;
    };
    if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
        reader.wrong(
            &found,
            "contains the secret itself",
            "write \"file:PATH\" or \"env:NAME\"",
        );
        return None;
    }
    let text = source.secret(&found.text, &reader.folder());
    let text = text.map_err(|what| reader.wrong(&found, what, "")).ok()?;
    Some(Secret::new(text.trim().to_owned()))
}

fn after_restore(section: &Section<'_>) -> Option<AfterRestore> {
    let word = section.word(&backend::AFTER_RESTORE)?;
    let parsed = AfterRestore::parse(word);
    if parsed.is_none() {
        let what = format!("\"{word}\" is not possible with Proxmox VE");
        let hint = "write \"as-before\", \"running\" or \"stopped\"";
        section.problem_at(backend::AFTER_RESTORE.name, what, hint);
    }
    parsed
}
