//! Builds the adapter of every configured backend and wraps it in its layers.

use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::MetadataOwner;
use crate::adapters::annotations::Annotations;
use crate::adapters::kind::BuildContext;
use crate::adapters::layers;
use crate::adapters::layers::Annotate;
use crate::adapters::layers::Leased;
use crate::app::StartError;
use crate::config::Backend;
use crate::operations::BackendHandle;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// What all adapters and their layers share.
#[derive(Debug)]
pub(crate) struct AdapterDeps {
    pub(crate) annotations: Arc<dyn Annotations>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    /// The right to change VMs.
    pub(crate) lease: Lease,
}

/// The adapter of a backend, without layers.
pub(crate) fn build_adapter(
    backend: &Backend,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<Arc<dyn Adapter>, StartError> {
    let context = BuildContext {
        clock: Arc::clone(clock),
        tasks: tasks.clone(),
    };
    let adapter = backend.config.build(&context);
    adapter.map_err(|source| StartError::Backend {
        name: backend.name.clone(),
        source,
    })
}

/// One handle for each backend, in the order of the configuration.
pub(crate) fn build(
    backends: &[Backend],
    deps: &AdapterDeps,
) -> Result<Vec<BackendHandle>, StartError> {
    let AdapterDeps {
        annotations,
        clock,
        metrics,
        tasks,
        lease,
    } = deps;
    let one = |backend: &Backend| {
        let adapter = build_adapter(backend, clock, tasks)?;
        let adapter = match lease.remaining() {
            None => adapter,
            Some(_) => Arc::new(Leased::new(adapter, lease.clone())),
        };
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
