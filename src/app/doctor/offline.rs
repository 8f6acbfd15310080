//! The part of an examination that needs no running gateway, and what stands in for the other part.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::layers;
use crate::app::backends::build_adapter;
use crate::app::doctor::backends::check_backend;
use crate::app::doctor::etcd_members::check_etcd;
use crate::app::doctor::finding::Examination;
use crate::app::doctor::finding::Finding;
use crate::app::doctor::live::needs_attention;
use crate::app::doctor::machine;
use crate::app::doctor::settings::check_settings;
use crate::app::doctor::unit;
use crate::config::Settings;
use crate::model::OperatorQuery;
use crate::model::Timestamp;
use crate::operations::OfflineStore;
use crate::operations::OfflineStoreError;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// Checks the files of the configuration, the disks and the clock.
#[must_use]
pub fn examine_installation(settings: &Settings, now: Timestamp) -> Examination {
    let mut about = Examination::default();
    check_settings(settings, now, &mut about);
    let folders = machine::written_folders(settings);
    about.add(machine::DISK, machine::check_disks(&folders));
    let store = settings.operations.store.file();
    about.add(
        machine::STORE,
        store.and_then(machine::check_store_file_system),
    );
    let modified = |file: &Path| {
        let modified = std::fs::metadata(file).ok()?.modified().ok()?;
        Some((file.display().to_string(), Timestamp::from_system(modified)))
    };
    let files = settings.files.iter().map(PathBuf::as_path).chain(store);
    let written: Vec<_> = files.filter_map(modified).collect();
    about.add(machine::CLOCK, machine::check_clock(now, &written));
    about
}

/// Checks the store and every backend as a start would, while no gateway runs.
pub async fn examine_offline(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
) -> Examination {
    let mut about = Examination::default();
    check_store(settings, clock, metrics, &mut about).await;
    check_etcd(settings, &mut about).await;
    for backend in &settings.backends {
        match build_adapter(backend, clock, &Tasks::default()) {
            Ok(adapter) => {
                let adapter = layers::wrap(
                    backend.name.clone(),
                    adapter,
                    &backend.layers,
                    Arc::clone(clock),
                    Arc::clone(metrics),
                );
                check_backend(settings, backend, &*adapter, clock, &mut about).await;
            }
            Err(error) => about.skip("backends", error.to_string()),
        }
    }
    about
}

async fn check_store(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
    about: &mut Examination,
) {
    let opened = OfflineStore::open(
        &settings.operations,
        Arc::clone(clock),
        Metrics::clone(metrics),
    );
    let store = match opened.await {
        Ok(store) => store,
        // A store is made by the first start.
        Err(OfflineStoreError::Absent(_)) => {
            about.skip(machine::STORE, "no gateway has run yet");
            return;
        }
        Err(error) => {
            about.add(
                machine::STORE,
                [Finding::new(
                    machine::STORE,
                    error.to_string(),
                    "The gateway does not start.",
                    "See the runbook SnapgateStoreErrors.",
                )],
            );
            return;
        }
    };
    if let Ok(attention) = store.attention().await {
        about.add(machine::STORE, needs_attention(attention));
    }
    let newest = OperatorQuery {
        limit: 1,
        ..OperatorQuery::default()
    };
    if let Ok(newest) = store.list(&newest, &BTreeSet::new()).await {
        let written: Vec<_> = newest
            .iter()
            .map(|operation| (format!("operation {}", operation.seq), operation.created))
            .collect();
        about.add(machine::CLOCK, machine::check_clock(clock.now(), &written));
    }
    store.close().await;
}

/// Checks the text of the unit and its drop-ins against what the configuration needs.
#[must_use]
pub fn examine_unit(settings: &Settings, text: &str) -> Examination {
    let kinds: Vec<&str> = settings
        .backends
        .iter()
        .map(|backend| backend.config.kind())
        .collect();
    let folders = machine::written_folders(settings);
    let mut about = Examination::default();
    about.add("sandbox", unit::check_unit(text, &folders, &kinds));
    about
}
