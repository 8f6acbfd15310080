//! `[[backend]]`: what all kinds have in common, and which VMs are on which backend.

use std::collections::BTreeMap;

use toml::de::DeTable;

use crate::adapters::kind::ReadContext;
use crate::adapters::layers;
use crate::adapters::registry;
use crate::adapters::registry::BackendConfig;
use crate::config::cluster;
use crate::config::separate_paths;
use crate::config::settings::Backend;
use crate::config::tables::backend as keys;
use crate::gate::Placement;
use crate::gate::Specification;
use crate::model::BackendName;
use crate::model::Pattern;
use crate::schema::LocatedText;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// Reads every `[[backend]]`.
pub(super) fn read(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    secrets: &SecretSource<'_>,
    is_cluster: bool,
) -> (Vec<Backend>, Vec<Placement>) {
    let mut backends: Vec<Backend> = Vec::new();
    let mut placements = Vec::new();
    let mut names: Vec<BackendName> = Vec::new();
    let mut owners = BTreeMap::new();
    for section in Section::read_all(reader, root, &keys::TABLE) {
        let name = read_name(&section, &names);
        names.extend(name.clone());
        let vms = section.read_texts(&keys::VMS);
        let patterns = vms
            .iter()
            .filter_map(|vm| read_pattern(&section, vm, &mut owners));
        let patterns: Vec<Pattern> = patterns.collect();
        let layers = read_layers(&section);
        let only_on = cluster::read_only_on(&section);
        let config = read_kind(&section, &patterns, secrets, &backends);
        if let Some(config) = &config {
            cluster::check_backend(&section, config, only_on.as_ref(), is_cluster);
        }
        if let (Some(name), Some(config)) = (name, config) {
            placements.extend(patterns.into_iter().map(|pattern| Placement {
                pattern,
                backend: name.clone(),
            }));
            backends.push(Backend {
                name,
                layers,
                only_on,
                config,
            });
        }
    }
    (backends, placements)
}

fn read_name(section: &Section<'_>, names: &[BackendName]) -> Option<BackendName> {
    let found = section.read_text(&keys::NAME)?;
    let name = BackendName::new(&found.text)
        .map_err(|error| section.report_text(&found, error.to_string(), ""))
        .ok()?;
    if names.contains(&name) {
        let what = format!("duplicate backend \"{name}\"");
        section.report_text(&found, what, "choose another name");
    }
    Some(name)
}

fn read_layers(section: &Section<'_>) -> layers::Config {
    layers::Config {
        timeout: section.read_duration(&keys::TIMEOUT),
        concurrency: section.read_usize(&keys::CONCURRENCY),
        reads: section.read_usize(&keys::READS),
        retries: section.read_u32(&keys::RETRIES),
        breaker_failures: section.read_u32(&keys::BREAKER_FAILURES),
        breaker_pause: section.read_duration(&keys::BREAKER_PAUSE),
        health_interval: section.read_duration(&keys::HEALTH_INTERVAL),
    }
}

fn read_pattern(
    section: &Section<'_>,
    found: &LocatedText,
    owners: &mut BTreeMap<Pattern, String>,
) -> Option<Pattern> {
    let pattern = Pattern::new(&found.text)
        .map_err(|error| section.report_text(found, error.to_string(), ""))
        .ok()?;
    let (prefix, starred) = pattern.prefix();
    if starred && prefix.len().saturating_add(1) != pattern.as_str().len() {
        let what = format!("{:?} has a '*' before its end", found.text);
        let hint = "write an exact id, or a prefix followed by one '*'";
        section.report_text(found, what, hint);
        return None;
    }
    if let Some(owner) = owners.get(&pattern) {
        let what = format!("{:?} also belongs to {owner}", found.text);
        let hint = "a VM is on one backend: remove one, or write a longer prefix";
        section.report_text(found, what, hint);
        return None;
    }
    owners.insert(pattern.clone(), section.path().to_owned());
    Some(pattern)
}

/// Reads the table of the kind.
fn read_kind(
    section: &Section<'_>,
    vms: &[Pattern],
    secrets: &SecretSource<'_>,
    earlier: &[Backend],
) -> Option<BackendConfig> {
    let name = section.read_choice(&keys::KIND)?;
    let kind = registry::KINDS
        .iter()
        .find(|kind| kind.table.name == name)?;
    section.refuse_other_tables(registry::TABLES, keys::KIND.name, &kind.table);
    let table = section.nested(&keys::TABLE, &kind.table);
    let context = ReadContext {
        secrets,
        vms,
        api_versions: &Specification::default().supported,
    };
    let config = (kind.read)(&table, &context)?;
    separate_paths::check_folders(&table, &config, earlier);
    Some(config)
}
