//! The time in which this gateway runs the operations: all its life, or while it is the active gateway of its cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::app::StartError;
use crate::app::backends;
use crate::app::backends::AdapterDeps;
use crate::app::health::HealthChecks;
use crate::config::Backend;
use crate::config::Settings;
use crate::model::BackendName;
use crate::operations::ActiveGuard;
use crate::operations::BackendHandle;
use crate::operations::OpenStore;
use crate::operations::Operations;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// How long the end of a term waits for the requests that are answered.
const REQUESTS_PATIENCE: Duration = Duration::from_secs(1);

/// What every term is made from.
#[derive(Clone, Debug)]
pub(crate) struct TermDeps {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    /// The tasks that the drain of the process waits for.
    pub(crate) tasks: Tasks,
}

/// The operations while this gateway runs them, with all that works on them.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) operations: Arc<Operations>,
    pub(crate) backends: Vec<BackendHandle>,
    pub(crate) lease: Lease,
    /// Backends that only another gateway uses.
    pub(crate) elsewhere: BTreeSet<BackendName>,
    health_checks: Mutex<Option<HealthChecks>>,
    /// The requests that are answered here.
    requests: Tasks,
    ending: Stop,
    ender: Stopper,
}

impl Term {
    /// Builds the adapters, resumes what is unfinished in the store and begins to run operations.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub(crate) async fn begin(
        store: OpenStore,
        settings: &Settings,
        deps: &TermDeps,
    ) -> Result<Arc<Self>, StartError> {
        // The tasks of adapters are not awaited at shutdown: after the next start, `find` learns what became of them.
        let adapter_deps = AdapterDeps {
            annotations: store.annotations(),
            clock: Arc::clone(&deps.clock),
            metrics: Arc::clone(&deps.metrics),
            tasks: Tasks::default(),
            lease: store.lease().clone(),
        };
        let lease = store.lease().clone();
        let (own, elsewhere) = separate(settings);
        let backends = backends::build(&own, &adapter_deps)?;
        let health_checks = HealthChecks::start(&own, &backends, &adapter_deps);
        let operations = Operations::open_on(
            store,
            settings.operations.clone(),
            backends.clone(),
            Arc::clone(&deps.clock),
            Metrics::clone(&deps.metrics),
            deps.tasks.clone(),
        )
        .await?;
        let (ender, ending) = stop_pair();
        Ok(Arc::new(Self {
            operations,
            backends,
            lease,
            elsewhere,
            health_checks: Mutex::new(Some(health_checks)),
            requests: Tasks::default(),
            ending,
            ender,
        }))
    }

    /// Given when the term is about to end: who waits for an operation is answered now.
    pub(crate) const fn ending(&self) -> &Stop {
        &self.ending
    }

    /// Begins a request, which the end of the term waits for.
    pub(crate) fn enter(&self) -> ActiveGuard {
        ActiveGuard::new(self.requests.token())
    }

    /// Waits until the requests that began are answered, for a moment at most. Returns whether they are.
    pub(crate) async fn requests_ended(&self) -> bool {
        let ended = tokio::time::timeout(REQUESTS_PATIENCE, self.requests.ended());
        ended.await.is_ok()
    }

    /// Answers those who wait, and lets no request begin.
    pub(crate) fn announce_end(&self) {
        self.ender.stop();
    }

    /// Returns when the store failed in such a way that the term must end.
    pub(crate) async fn store_failed(&self) {
        self.operations.failed().given().await;
    }

    /// Answers those who wait, and ends every task. What is unfinished stays in the store as it is.
    pub(crate) async fn end(&self) {
        self.announce_end();
        let health_checks = self.health_checks.lock().take();
        if let Some(health_checks) = health_checks {
            health_checks.stop().await;
        }
        self.operations.stop().await;
    }
}

/// The backends that this gateway uses, and the names of those that only another one uses. Operations of these wait in the store.
fn separate(settings: &Settings) -> (Vec<Backend>, BTreeSet<BackendName>) {
    let own_name = settings.cluster.as_ref().map(|cluster| &cluster.name);
    let is_own =
        |backend: &&Backend| backend.only_on.is_none() || backend.only_on.as_ref() == own_name;
    let (own, elsewhere): (Vec<&Backend>, Vec<&Backend>) =
        settings.backends.iter().partition(is_own);
    let elsewhere = elsewhere.into_iter().map(|backend| backend.name.clone());
    (own.into_iter().cloned().collect(), elsewhere.collect())
}
