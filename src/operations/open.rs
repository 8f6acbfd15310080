//! How the operations are opened, resume what was unfinished, and are stopped.

use std::sync::Arc;

use crate::adapters::annotations::Annotations;
use crate::etcd;
use crate::etcd::Connection;
use crate::etcd::LeaderTerm;
use crate::model::GatewayName;
use crate::operations::config::Config;
use crate::operations::config::StoreLocation;
use crate::operations::core::BackendHandle;
use crate::operations::core::Core;
use crate::operations::core::Runner;
use crate::operations::core::Shared;
use crate::operations::follow_changes;
use crate::operations::maintenance;
use crate::operations::runner;
use crate::operations::store::EtcdStore;
use crate::operations::store::OpenError;
use crate::operations::store::Opening;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Stop;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// The operation store, open but not in use yet.
#[derive(Debug)]
pub struct OpenStore {
    store: Arc<dyn Store>,
    annotations: Arc<dyn Annotations>,
    lease: Lease,
}

impl OpenStore {
    /// Opens the store of the configuration, or creates it when it does not exist.
    ///
    /// # Errors
    /// [`OpenError`]: a sentence for the operator; the store was left as it is.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        match &config.store {
            StoreLocation::File(file) => {
                let file = file.clone();
                let opening = move || SqliteStore::open(file, clock, metrics);
                let opened = tokio::task::spawn_blocking(opening)
                    .await
                    .map_err(|error| unusable(config, &error))??;
                Ok(Self {
                    annotations: opened.annotations(),
                    store: Arc::new(opened),
                    lease: Lease::unlimited(),
                })
            }
            StoreLocation::Etcd(etcd) => {
                let opened = EtcdStore::open(Opening {
                    config: etcd,
                    gateway: host_name(),
                    clock,
                    metrics,
                })
                .await?;
                Ok(Self {
                    annotations: opened.annotations(),
                    store: Arc::new(opened),
                    lease: Lease::unlimited(),
                })
            }
        }
    }

    /// Opens the store in etcd for the gateway `name`, which leads already, for as long as it does.
    ///
    /// # Errors
    /// [`OpenError`]: a sentence for the operator; the store was left as it is.
    pub async fn open_led(
        connection: Connection,
        (config, name): (&etcd::Config, &GatewayName),
        (term, lease): (LeaderTerm, Lease),
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let opening = Opening {
            config,
            gateway: name.as_str().to_owned(),
            clock,
            metrics,
        };
        let (stopper, lost) = stop_pair();
        let lost = (Arc::new(stopper), lost);
        let opened = EtcdStore::open_led(connection, &opening, term, lost).await?;
        Ok(Self {
            annotations: opened.annotations(),
            store: Arc::new(opened),
            lease,
        })
    }

    /// The right to work on the operations in it.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The metadata of backups whose VM manager keeps none, in the same store.
    #[must_use]
    pub fn annotations(&self) -> Arc<dyn Annotations> {
        Arc::clone(&self.annotations)
    }

    /// The store itself.
    pub(crate) fn into_store(self) -> Arc<dyn Store> {
        self.store
    }
}

/// The durable life of accepted changes. [`OperationsApi`](crate::operations::OperationsApi) is what it offers to the gate.
#[derive(Debug)]
pub struct Operations {
    pub(crate) core: Arc<Core>,
}

impl Operations {
    /// Opens the store, resumes everything unfinished and starts to run operations.
    ///
    /// # Errors
    /// [`OpenError`]: a sentence for the operator; the store was left as it is.
    pub async fn open(
        config: Config,
        backends: Vec<BackendHandle>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Result<Arc<Self>, OpenError> {
        let store = OpenStore::open(&config, Arc::clone(&clock), metrics.clone()).await?;
        Self::open_on(store, config, backends, clock, metrics, tasks).await
    }

    /// As [`Operations::open`], on a store that is open already, in which the adapters may have annotations.
    ///
    /// # Errors
    /// [`OpenError`]: a sentence for the operator; the store was left as it is.
    pub async fn open_on(
        store: OpenStore,
        config: Config,
        backends: Vec<BackendHandle>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Result<Arc<Self>, OpenError> {
        let shared = Shared {
            clock,
            metrics,
            tasks,
            lease: store.lease,
        };
        Self::start_on(store.store, config, backends, shared).await
    }

    /// As [`Operations::open_on`], on any implementation of the store.
    pub(crate) async fn start_on(
        store: Arc<dyn Store>,
        config: Config,
        backends: Vec<BackendHandle>,
        shared: Shared,
    ) -> Result<Arc<Self>, OpenError> {
        let highest = store.highest_seq().await;
        let highest = highest.map_err(|error| unusable(&config, &error))?;
        let last_alive = store.last_heartbeat().await;
        let last_alive = last_alive.map_err(|error| unusable(&config, &error))?;
        let unfinished = store.unfinished().await;
        let unfinished = unfinished.map_err(|error| unusable(&config, &error))?;
        let runner = Runner(|core, claim| Box::pin(runner::run(core, claim)));
        let core = Core::new(config, backends, store, shared, highest, runner);
        let core = Arc::new(core);
        core.resume(unfinished, last_alive.unwrap_or_default())
            .await;
        // Only now: the heartbeat overwrites the time from which the absence was measured.
        core.store.record_heartbeat(core.clock.now()).await;
        core.store.report_counts().await;
        core.start_all_ready();
        core.spawn(maintenance::run(Arc::clone(&core)));
        if let Some(lost) = core.store.raw().lost() {
            core.spawn(watch_for_loss(Arc::clone(&core), lost));
        }
        if let Some(feed) = core.store.raw().change_feed() {
            core.spawn(follow_changes::run(Arc::clone(&core), feed));
        }
        Ok(Arc::new(Self { core }))
    }

    /// Refuses new operations, ends every task of the operations soon and frees the store.
    ///
    /// What is unfinished stays as it is in the store and is resumed by the next start.
    pub async fn stop(&self) {
        self.core.stop_tasks().await;
        self.core
            .store
            .record_heartbeat(self.core.clock.now())
            .await;
        self.core.store.close().await;
    }

    /// Given when the store failed in such a way that the process must end.
    #[must_use]
    pub fn failed(&self) -> Stop {
        self.core.store.failed().clone()
    }
}

/// Stops everything as soon as another gateway may write: it need not come to a write of this one.
async fn watch_for_loss(core: Arc<Core>, lost: Stop) {
    tokio::select! {
        () = core.stop.given() => {}
        () = lost.given() => {
            let why = "its lock has expired".to_owned();
            core.store.note_result(Some(&StoreError::Fenced(why)));
        }
    }
}

/// What this gateway is called in the store.
fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

fn unusable(config: &Config, why: &impl ToString) -> OpenError {
    OpenError::Damaged {
        file: config.store.to_string(),
        why: why.to_string(),
    }
}
