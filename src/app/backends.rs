//! Makes an adapter for every configured backend and wraps it in its layers.

use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::annotations::Annotations;
use crate::adapters::cloudapi::CloudApi;
use crate::adapters::files::Files;
use crate::adapters::incus::Incus;
use crate::adapters::layers;
use crate::adapters::layers::Annotate;
use crate::adapters::libvirt::Libvirt;
use crate::adapters::proxmox::Proxmox;
use crate::adapters::qemu::Qemu;
use crate::adapters::sim::Remote;
use crate::adapters::sim::Sim;
use crate::app::StartError;
use crate::app::health::HealthLooks;
use crate::config::Backend;
use crate::config::BackendKind;
use crate::operations::BackendHandle;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// What every adapter and its layers are given.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) annotations: Arc<dyn Annotations>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
}

/// The adapter of a backend without anything around it.
pub(crate) fn bare(
    backend: &Backend,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<Arc<dyn Adapter>, StartError> {
    let broken = |why: String| StartError::Backend {
        name: backend.name.clone(),
        why,
    };
    let clock = Arc::clone(clock);
    Ok(match &backend.kind {
        BackendKind::CloudApi(config) => {
            Arc::new(CloudApi::new(config, clock).map_err(|error| broken(error.to_string()))?)
        }
        // What keeps the folders from being opened may pass, and other backends do not depend on it.
        BackendKind::Files(config) => {
            Arc::new(Files::when_available(config.clone(), clock, tasks.clone()))
        }
        BackendKind::Incus(config) => {
            Arc::new(Incus::new(config, clock).map_err(|error| broken(error.to_string()))?)
        }
        BackendKind::Libvirt(config) => {
            Arc::new(Libvirt::new(config.clone(), clock, tasks.clone()))
        }
        BackendKind::Proxmox(config) => {
            Arc::new(Proxmox::new(config.clone()).map_err(|error| broken(error.to_string()))?)
        }
        BackendKind::Qemu(config) => Arc::new(Qemu::new(config.clone(), clock, tasks.clone())),
        BackendKind::Sim(config) => match Remote::new(config) {
            Some(remote) => Arc::new(remote),
            None => Arc::new(Sim::new(config, clock, tasks.clone())),
        },
    })
}

/// One handle for each backend, in the order of the configuration, and the health checks of all.
pub(crate) fn start(
    backends: &[Backend],
    around: &Around,
) -> Result<(Vec<BackendHandle>, HealthLooks), StartError> {
    let handles = build(backends, around)?;
    let looks = HealthLooks::start(backends, &handles, around);
    Ok((handles, looks))
}

fn build(backends: &[Backend], around: &Around) -> Result<Vec<BackendHandle>, StartError> {
    let Around {
        annotations,
        clock,
        metrics,
        tasks,
    } = around;
    let one = |backend: &Backend| {
        let adapter = bare(backend, clock, tasks)?;
        let adapter = match adapter.metadata_owner() {
            MetadataOwner::Native => adapter,
            MetadataOwner::Gateway => Arc::new(Annotate::new(
                backend.name.clone(),
                adapter,
                Arc::clone(annotations),
                Arc::clone(clock),
            )),
        };
        Ok(BackendHandle {
            name: backend.name.clone(),
            adapter: layers::wrap(
                backend.name.clone(),
                adapter,
                &backend.layers,
                Arc::clone(clock),
                Arc::clone(metrics),
            ),
            concurrency: backend.layers.concurrency,
        })
    };
    backends.iter().map(one).collect()
}
