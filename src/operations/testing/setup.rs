//! Opens operations over a real store and a scripted adapter.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::NOW;
use super::ScriptedAdapter;
use super::backend;
use crate::operations::BackendHandle;
use crate::operations::Config;
use crate::operations::Operations;
use crate::runtime::ManualClock;
use crate::runtime::Tasks;
use crate::telemetry::Metrics;

/// What operations are opened with, for a test to change before.
pub(in crate::operations) struct TestSetup {
    pub config: Config,
    pub clock: Arc<ManualClock>,
    pub metrics: Metrics,
    pub backends: Vec<BackendHandle>,
}

impl TestSetup {
    /// Two backends, `one` and `two`, over the same adapter, with a store in that folder.
    pub(in crate::operations) fn new(folder: &Path, adapter: &Arc<ScriptedAdapter>) -> Self {
        let mut config = Config::with_store(folder.join("operations.db"));
        config.poll_min = Duration::from_millis(2);
        config.poll_max = Duration::from_millis(10);
        let handle = |name: &str| BackendHandle {
            name: backend(name),
            adapter: Arc::<ScriptedAdapter>::clone(adapter),
            concurrency: 4,
        };
        Self {
            config,
            clock: Arc::new(ManualClock::new(NOW)),
            metrics: Metrics::new().unwrap(),
            backends: vec![handle("one"), handle("two")],
        }
    }

    pub(in crate::operations) async fn open(&self) -> Arc<Operations> {
        Operations::open(
            self.config.clone(),
            self.backends.clone(),
            Arc::<ManualClock>::clone(&self.clock),
            self.metrics.clone(),
            Tasks::default(),
        )
        .await
        .expect("the store opens")
    }
}
