//! The room itself: what it is made of, how it is opened and ended, and how a state becomes durable.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Level;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::Recovery;
use crate::adapters::annotations::Annotations;
use crate::model::BackendName;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Timestamp;
use crate::operations::Config;
use crate::operations::api::StoreFault;
use crate::operations::live_operations::Bounds;
use crate::operations::live_operations::LiveOperations;
use crate::operations::live_operations::Turn;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::maintenance;
use crate::operations::runner;
use crate::operations::sequence::SequenceNumbers;
use crate::operations::store::Counts;
use crate::operations::store::OpenError;
use crate::operations::store::SqliteStore;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::trail;
use crate::runtime::Clock;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::telemetry::Metrics;

/// Time between two tries to write while the store takes nothing.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// The settle time of a verb that the adapter no longer has.
const SETTLE_WITHOUT_CAPABILITY: Duration = Duration::from_secs(30);

/// One backend that operations run on.
#[derive(Clone, Debug)]
pub struct BackendHandle {
    /// Its name.
    pub name: BackendName,
    /// The adapter, with its layers around it.
    pub adapter: Arc<dyn Adapter>,
    /// Operations that it runs at once; 0 is taken as 1.
    pub concurrency: usize,
}

#[derive(Debug)]
pub(crate) struct Backend {
    pub adapter: Arc<dyn Adapter>,
    pub capability: Arc<Capability>,
    pub slots: Arc<Semaphore>,
}

/// The store of operations, open but with nobody at work on it yet.
#[derive(Debug)]
pub struct OpenStore(Arc<SqliteStore>);

impl OpenStore {
    /// Opens the store of the configuration, or makes it when there is none.
    ///
    /// # Errors
    /// [`OpenError`]: a sentence for the operator; the store was left as it is.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let file = config.store.clone();
        let opened = tokio::task::spawn_blocking(move || SqliteStore::open(file, clock, metrics))
            .await
            .map_err(|error| unusable(config, &error))??;
        Ok(Self(Arc::new(opened)))
    }

    /// What the gateway keeps about backups whose VM manager does not, in the same file.
    #[must_use]
    pub fn annotations(&self) -> Arc<dyn Annotations> {
        self.0.annotations()
    }
}

/// The durable life of accepted changes. See [`crate::operations::OperationsApi`] for what it offers.
#[derive(Debug)]
pub struct Operations {
    pub(crate) core: Arc<Core>,
}

/// What every task of the room shares.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub backends: BTreeMap<BackendName, Backend>,
    pub store: Arc<dyn Store>,
    pub ledger: LiveOperations,
    pub numbers: SequenceNumbers,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub stop: Stop,
    stopper: Stopper,
    failed: Stop,
    failure: Stopper,
    tasks: Tasks,
    /// Where tasks run: operations outlive the runtime of the request that asked for them.
    runtime: Handle,
    /// Each task holds a receiver, so the sender knows when none is left.
    at_work: watch::Sender<()>,
    writable: AtomicBool,
}

impl Operations {
    /// Opens the store, takes up everything unfinished and begins to work.
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

    /// The same on a store that is open, in which the adapters may have annotations.
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
        };
        Self::over(config, backends, store.0, shared).await
    }

    /// The same over a store that is open.
    pub(crate) async fn over(
        config: Config,
        backends: Vec<BackendHandle>,
        store: Arc<dyn Store>,
        shared: Shared,
    ) -> Result<Arc<Self>, OpenError> {
        let highest = store
            .highest()
            .await
            .map_err(|error| unusable(&config, &error))?;
        let alive = store
            .last_beat()
            .await
            .map_err(|error| unusable(&config, &error))?;
        let live = store
            .live()
            .await
            .map_err(|error| unusable(&config, &error))?;
        let core = Arc::new(Core::new(config, backends, store, shared, highest));
        core.resume(live, alive.unwrap_or_default()).await;
        core.beat().await;
        core.count_unknown().await;
        core.start_turns();
        core.spawn(maintenance::run(Arc::clone(&core)));
        Ok(Arc::new(Self { core }))
    }

    /// Takes no new operation, ends every task of the room soon and frees the store.
    ///
    /// What is unfinished stays as it is in the store and is taken up again by the next start.
    pub async fn stop(&self) {
        self.core.stopper.stop();
        self.core.at_work.closed().await;
        self.core.beat().await;
        self.core.store.close().await;
    }

    /// Given when the store failed in such a way that the process must end.
    #[must_use]
    pub fn failed(&self) -> Stop {
        self.core.failed.clone()
    }
}

/// What the whole process shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// What a caller is told of an error of the store.
pub(crate) const fn told(error: &StoreError) -> StoreFault {
    match error {
        StoreError::Fatal(_) => StoreFault::Failed,
        StoreError::Conflict
        | StoreError::KeyReused(_)
        | StoreError::Unavailable(_)
        | StoreError::Indeterminate(_) => StoreFault::Unavailable,
    }
}

fn unusable(config: &Config, why: &impl ToString) -> OpenError {
    OpenError::Damaged {
        file: config.store.display().to_string(),
        why: why.to_string(),
    }
}

impl Core {
    fn new(
        config: Config,
        backends: Vec<BackendHandle>,
        store: Arc<dyn Store>,
        shared: Shared,
        highest: Option<OperationSeq>,
    ) -> Self {
        let bounds = Bounds {
            when_busy: config.when_busy,
            per_vm: config.queue_per_vm,
            total: config.queue_total,
        };
        let (stopper, stop) = stop_pair();
        let (failure, failed) = stop_pair();
        let backends = backends.into_iter().map(|it| {
            let slots = it.concurrency.clamp(1, Semaphore::MAX_PERMITS);
            let backend = Backend {
                capability: Arc::new(it.adapter.capability().clone()),
                adapter: it.adapter,
                slots: Arc::new(Semaphore::new(slots)),
            };
            (it.name, backend)
        });
        Self {
            config,
            backends: backends.collect(),
            store,
            ledger: LiveOperations::new(bounds, shared.metrics.clone()),
            numbers: SequenceNumbers::above(highest),
            clock: shared.clock,
            metrics: shared.metrics,
            stop,
            stopper,
            failed,
            failure,
            tasks: shared.tasks,
            runtime: Handle::current(),
            at_work: watch::Sender::new(()),
            writable: AtomicBool::new(true),
        }
    }

    /// Runs a task that [`Operations::stop`] waits for.
    pub(crate) fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let at_work = self.at_work.subscribe();
        // Boxed once: each wrapper around it would be as large again, and tasks are moved about before they run.
        let work = Box::pin(work);
        let _runtime = self.runtime.enter();
        self.tasks.spawn(async move {
            let _at_work = at_work;
            work.await
        })
    }

    /// Sets somebody to work on an operation whose turn it is.
    pub(crate) fn start(self: &Arc<Self>, turn: Turn) {
        self.spawn(runner::drive(Arc::clone(self), turn));
    }

    /// Sets somebody to work wherever it is somebody's turn and nobody is.
    pub(crate) fn start_turns(self: &Arc<Self>) {
        for turn in self.ledger.turns() {
            self.start(turn);
        }
    }

    /// Takes up what the gateway before left unfinished. It was last running at `alive`.
    async fn resume(self: &Arc<Self>, found: Vec<Arc<Operation>>, alive: Timestamp) {
        // Before anything runs: whether a call may be repeated depends on how long no gateway was running.
        for operation in &found {
            if operation.phase != Phase::Accepted {
                self.ledger.adopt(operation);
                self.advance(operation, Event::Resumed { alive }).await;
            }
        }
        self.take_up(found, alive).await;
    }

    /// Takes up records that were found unfinished. A gateway was last at work on the store at `alive`.
    pub(crate) async fn take_up(
        self: &Arc<Self>,
        mut found: Vec<Arc<Operation>>,
        alive: Timestamp,
    ) {
        // At most one of a VM has left its queue, whatever the order of the numbers.
        found.sort_by_key(|it| (it.phase == Phase::Accepted, it.seq));
        for operation in found {
            self.ledger.adopt(&operation);
            if operation.phase == Phase::Accepted {
                self.advance(&operation, Event::Recovered { alive }).await;
            }
        }
    }

    /// The numbers that decisions about this operation depend on.
    pub(crate) fn rules(&self, operation: &Operation) -> Rules {
        let capability = self
            .backends
            .get(&operation.backend)
            .and_then(|backend| backend.capability.verb(operation.verb()));
        Rules {
            replay_safe: capability
                .is_some_and(|capability| capability.recovery == Recovery::ReplaySafe),
            settle: capability.map_or(SETTLE_WITHOUT_CAPABILITY, |it| it.settle),
            probe_window: self.config.probe_window,
            accept_ttl: self.config.accept_ttl,
            resume_ttl: self.config.resume_ttl,
            retention: self.config.retention,
        }
    }

    /// Decides, makes the new state durable, shows it, and sets the next of the VM to work when this one is final.
    ///
    /// `None` when whoever is at work must leave it: the gateway stops, the store failed, or there is a defect.
    pub(crate) async fn advance(
        self: &Arc<Self>,
        operation: &Arc<Operation>,
        event: Event,
    ) -> Option<(Arc<Operation>, machine::Effect)> {
        // Another hand may have changed or ended it since: what is written last decides.
        let pen = self.ledger.pen(operation.seq)?;
        let _pen = pen.lock().await;
        let operation = &self.ledger.current(operation.seq)?;
        let rules = self.rules(operation);
        let step = match machine::step(operation, event, self.clock.now(), &rules) {
            Ok(step) => step,
            Err(error) => {
                tracing::error!(seq = %operation.seq, %error, "operation not advanced");
                return None;
            }
        };
        let Some(state) = step.state else {
            return Some((Arc::clone(operation), step.effect));
        };
        if let Err(rule) = machine::check_invariants(&state) {
            tracing::error!(seq = %state.seq, rule, "operation not advanced");
            return None;
        }
        let state = Arc::new(state);
        self.persist(&state).await?;
        self.written(operation, &state);
        if state.phase == Phase::Unknown {
            self.count_unknown().await;
        }
        Some((state, step.effect))
    }

    /// Tells of a state that is durable, and sets the next of the VM to work when it is final.
    pub(crate) fn written(self: &Arc<Self>, before: &Operation, state: &Arc<Operation>) {
        if state.phase != before.phase {
            self.tell(state);
        }
        if let Some(turn) = self.ledger.show(state) {
            self.start(turn);
        }
    }

    /// Writes until it is durable. `None` when that cannot be.
    async fn persist(self: &Arc<Self>, state: &Arc<Operation>) -> Option<()> {
        loop {
            match self.update(state).await {
                Ok(()) => return Some(()),
                Err(StoreError::Unavailable(_)) if !self.stop.is_given() => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(STORE_RETRY) => {}
                        () = self.stop.given() => {}
                    }
                }
                Err(StoreError::Conflict) => {
                    // One process owns the store, so this is a defect or somebody's hand. The store is the truth.
                    if let Ok(Some(found)) = self.store.read(state.seq).await
                        && let Some(turn) = self.ledger.show(&found)
                    {
                        self.start(turn);
                    }
                    return None;
                }
                Err(_) => return None,
            }
        }
    }

    /// One try to write a changed record. An unknown outcome is read back.
    pub(crate) async fn update(&self, state: &Arc<Operation>) -> Result<(), StoreError> {
        let result = match self.store.update(Arc::clone(state)).await {
            Err(StoreError::Indeterminate(why)) => self.read_back(state, why).await,
            result => result,
        };
        self.note(result.as_ref().err());
        if let Err(error) = &result {
            tracing::warn!(seq = %state.seq, phase = state.phase.as_str(), %error, "operation not written");
        }
        result
    }

    /// Whether a write whose outcome is unknown was applied. When that cannot be read either, nothing can be trusted.
    pub(crate) async fn read_back(
        &self,
        state: &Arc<Operation>,
        why: String,
    ) -> Result<(), StoreError> {
        match self.store.read(state.seq).await {
            Ok(Some(found)) if found == *state => Ok(()),
            Ok(Some(found)) if found.revision >= state.revision => Err(StoreError::Conflict),
            Ok(_) => Err(StoreError::Unavailable(why)),
            Err(error) => Err(StoreError::Fatal(format!("{why}, and then {error}"))),
        }
    }

    /// Keeps in mind whether the store takes writes, and gives the signal when it failed.
    pub(crate) fn note(&self, error: Option<&StoreError>) {
        let Some(error) = error else {
            self.writable.store(true, Ordering::Release);
            return;
        };
        match error {
            StoreError::KeyReused(_) => return,
            StoreError::Conflict => {}
            StoreError::Unavailable(_) | StoreError::Indeterminate(_) => {
                self.writable.store(false, Ordering::Release);
            }
            StoreError::Fatal(_) => {
                self.writable.store(false, Ordering::Release);
                if !self.failed.is_given() {
                    tracing::error!(%error, "the store of operations failed, the process must end");
                }
                self.failure.stop();
            }
        }
        self.metrics.operations.record_store_error(error.as_str());
    }

    /// What a caller is told of a read that failed. That reads fail says nothing about writes, unless it is fatal.
    pub(crate) fn fault(&self, error: &StoreError) -> StoreFault {
        tracing::warn!(%error, "store of operations not read");
        if matches!(error, StoreError::Fatal(_)) {
            self.note(Some(error));
        } else {
            self.metrics.operations.record_store_error(error.as_str());
        }
        told(error)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_given()
    }

    /// Notes in the store that a gateway is at work.
    pub(crate) async fn beat(&self) {
        let result = self.store.beat(self.clock.now()).await;
        if let Err(error) = &result {
            tracing::warn!(%error, "store of operations");
        }
        self.note(result.as_ref().err());
    }

    /// Tells the metrics how many records need an operator.
    pub(crate) async fn count_unknown(&self) {
        if let Ok(Counts { unknown, set_aside }) = self.store.counts().await {
            self.metrics.operations.set_unknown_operations(unknown);
            self.metrics.operations.set_unreadable_operations(set_aside);
        }
    }

    /// One line for the log, and the metrics of what is final. How far it is on its way is for those who want details:
    /// two lines of four, or of an update that was accepted and begun in one write, one of two.
    pub(crate) fn tell(&self, it: &Operation) {
        let is_detail = matches!(it.phase, Phase::Submitting | Phase::Running);
        if is_detail && !tracing::enabled!(target: "snapgate::operations", Level::DEBUG) {
            return;
        }
        tracing::info!(
            target: "snapgate::operations",
            seq = %it.seq,
            phase = it.phase.as_str(),
            verb = it.verb().as_str(),
            backend = it.backend.as_str(),
            vm = it.target().vm.as_str(),
            backup = it.target().backup.as_str(),
            principal = it.principal.as_str(),
            request = it.request.as_str(),
            note = it.note.as_ref().map(|note| note.as_str()),
            fault = it.fault.as_ref().map(|fault| fault.kind.as_str()),
            "operation"
        );
        if let Some(completed) = it.completed {
            trail::ended(it);
            let took = completed.since(it.created);
            self.metrics.operations.record_operation(
                it.backend.as_str(),
                it.verb().as_str(),
                it.phase.as_str(),
                took,
            );
        }
    }
}
