//! What the tasks of the operations share: how they are spawned, how a decision becomes durable, and who works next.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::Level;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::Capability;
use crate::adapters::adapter::Recovery;
use crate::model::BackendName;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::SpanId;
use crate::model::Timestamp;
use crate::model::TraceContext;
use crate::model::TraceId;
use crate::model::scramble;
use crate::operations::audit;
use crate::operations::config::Config;
use crate::operations::live_operations::Claim;
use crate::operations::live_operations::LiveOperations;
use crate::operations::live_operations::QueueLimits;
use crate::operations::machine;
use crate::operations::machine::Event;
use crate::operations::machine::Rules;
use crate::operations::sequence::SequenceNumbers;
use crate::operations::store::Store;
use crate::operations::store::StoreError;
use crate::operations::store_guard::StoreGuard;
use crate::runtime::Clock;
use crate::runtime::Lease;
use crate::runtime::Stop;
use crate::runtime::Stopper;
use crate::runtime::Tasks;
use crate::runtime::stop_pair;
use crate::runtime::work_context;
use crate::runtime::work_context::WorkContext;
use crate::telemetry;
use crate::telemetry::EndedOperation;
use crate::telemetry::Metrics;

/// Time between two tries to write while the store takes no writes.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// The settle time of a verb that the adapter no longer supports.
const SETTLE_WITHOUT_CAPABILITY: Duration = Duration::from_secs(30);

/// One backend that operations run on.
#[derive(Clone, Debug)]
pub struct BackendHandle {
    /// Its name.
    pub name: BackendName,
    /// The adapter, with its layers around it.
    pub adapter: Arc<dyn Adapter>,
    /// Operations that it runs at once; 0 counts as 1.
    pub concurrency: usize,
}

/// One backend while the gateway runs.
#[derive(Debug)]
pub(crate) struct Backend {
    pub adapter: Arc<dyn Adapter>,
    pub capability: Arc<Capability>,
    /// One permit for each operation that it may run at once.
    pub slots: Arc<Semaphore>,
}

impl From<BackendHandle> for Backend {
    fn from(handle: BackendHandle) -> Self {
        let slots = handle.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            capability: Arc::new(handle.adapter.capability().clone()),
            adapter: handle.adapter,
            slots: Arc::new(Semaphore::new(slots)),
        }
    }
}

/// What the whole process shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// The right to work on the operations of the store.
    pub lease: Lease,
}

type BoxedTask<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Works on a claimed operation until it is final or the gateway stops.
///
/// A parameter of [`Core`], because the runner needs the core to record its decisions, and each end of one operation
/// starts the runner of the next.
#[derive(Clone, Copy)]
pub(crate) struct Runner(pub fn(Arc<Core>, Claim) -> BoxedTask<()>);

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runner")
    }
}

/// What every task of the operations shares.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub backends: BTreeMap<BackendName, Backend>,
    pub store: StoreGuard,
    pub live: LiveOperations,
    pub sequence: SequenceNumbers,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    /// Once it has ended nothing is called, written or decided any more.
    pub lease: Lease,
    /// Given when the gateway stops.
    pub stop: Stop,
    stopper: Stopper,
    runner: Runner,
    /// The tasks of the whole process, for its drain.
    process_tasks: Tasks,
    /// The tasks of the operations alone, for [`Core::stop_tasks`].
    own_tasks: Tasks,
    /// Where tasks run: operations outlive the runtime of the request that asked for them.
    runtime: Handle,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        backends: Vec<BackendHandle>,
        store: Arc<dyn Store>,
        shared: Shared,
        highest: Option<OperationSeq>,
        runner: Runner,
    ) -> Self {
        let limits = QueueLimits {
            when_busy: config.when_busy,
            per_vm: config.queue_per_vm,
            total: config.queue_total,
        };
        let (stopper, stop) = stop_pair();
        let backends = backends
            .into_iter()
            .map(|handle| (handle.name.clone(), Backend::from(handle)));
        Self {
            sequence: SequenceNumbers::above(highest, config.cell),
            config,
            backends: backends.collect(),
            store: StoreGuard::new(store, shared.metrics.clone()),
            live: LiveOperations::new(limits, shared.metrics.clone()),
            clock: shared.clock,
            metrics: shared.metrics,
            lease: shared.lease,
            stop,
            stopper,
            runner,
            process_tasks: shared.tasks,
            own_tasks: Tasks::default(),
            runtime: Handle::current(),
        }
    }

    /// Spawns a task that [`Core::stop_tasks`] waits for.
    pub(crate) fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // Boxed once: each wrapper around it would be as large again, and tasks are moved about before they run.
        self.spawn_boxed(Box::pin(work))
    }

    fn spawn_boxed<T: Send + 'static>(&self, work: BoxedTask<T>) -> JoinHandle<T> {
        let _runtime = self.runtime.enter();
        self.process_tasks.spawn(self.own_tasks.track(work))
    }

    /// Gives the signal to stop and waits until no task of the operations is left.
    pub(crate) async fn stop_tasks(&self) {
        self.stopper.stop();
        self.own_tasks.ended().await;
    }

    /// Starts a task that works on a claimed operation.
    pub(crate) fn start(self: &Arc<Self>, claim: Claim) {
        let Runner(run) = self.runner;
        self.spawn_boxed(run(Arc::clone(self), claim));
    }

    /// Starts a task for the first operation of each VM that has none.
    pub(crate) fn start_all_ready(self: &Arc<Self>) {
        for claim in self.live.claim_all_ready() {
            self.start(claim);
        }
    }

    /// Takes over what the gateway before left unfinished. A gateway was last running at `last_alive`.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        found: Vec<Arc<Operation>>,
        last_alive: Timestamp,
    ) {
        // Before anything runs: whether a call may be repeated depends on how long no gateway was running.
        for operation in &found {
            if operation.phase != Phase::Accepted {
                self.live.insert_stored(operation);
                self.advance(operation, Event::Resumed { last_alive }).await;
            }
        }
        self.recover(found, last_alive).await;
    }

    /// Queues records that were found unfinished. A gateway was last running at `last_alive`.
    pub(crate) async fn recover(
        self: &Arc<Self>,
        mut found: Vec<Arc<Operation>>,
        last_alive: Timestamp,
    ) {
        // At most one operation of a VM has left its queue; it comes first, whatever the order of the numbers.
        found.sort_by_key(|operation| (operation.phase == Phase::Accepted, operation.seq));
        for operation in found {
            self.live.insert_stored(&operation);
            if operation.phase == Phase::Accepted {
                self.advance(&operation, Event::Recovered { last_alive })
                    .await;
            }
        }
    }

    /// What work on the operation is for, as log lines name it. Its part of the trace is a child of the request's.
    pub(crate) fn context_of(&self, operation: &Operation) -> WorkContext {
        let seq = operation.seq;
        let number = seq.number();
        let trace = self.live.trace_of(seq).map_or_else(
            // Accepted by a process before this one. The same trace again after each restart.
            || {
                let (high, low) = (scramble(number), scramble(!number));
                let trace = (u128::from(high) << 64) | u128::from(low);
                let span = SpanId::from_bits(scramble(high));
                TraceContext::root(
                    TraceId::from_bits(trace),
                    span,
                    telemetry::is_tracing_exported(),
                )
            },
            |request| request.child(number),
        );
        WorkContext {
            request: Some(operation.request.clone()),
            trace: Some(trace),
            operation: Some(seq),
        }
    }

    /// The rules for decisions about this operation.
    pub(crate) fn rules(&self, operation: &Operation) -> Rules {
        let capability = self
            .backends
            .get(&operation.backend)
            .and_then(|backend| backend.capability.verb(operation.verb()));
        Rules {
            replay_safe: capability
                .is_some_and(|capability| capability.recovery == Recovery::ReplaySafe),
            settle: capability.map_or(SETTLE_WITHOUT_CAPABILITY, |capability| capability.settle),
            probe_window: self.config.probe_window,
            accept_ttl: self.config.accept_ttl,
            resume_ttl: self.config.resume_ttl,
            retention: self.config.retention,
        }
    }

    /// Decides on an event, makes the new state durable, publishes it, and starts the next operation of the VM when this
    /// one is final.
    ///
    /// `None` when the task must leave the operation: the gateway stops, its lease has ended, the store failed, or there is a
    /// defect.
    pub(crate) async fn advance(
        self: &Arc<Self>,
        operation: &Arc<Operation>,
        event: Event,
    ) -> Option<(Arc<Operation>, machine::NextAction)> {
        // The store would refuse the write. Another gateway finds the record as it is there.
        self.lease.check().ok()?;
        // A cancellation or an operator may have changed or ended it since the caller read it: decide on the latest state.
        let write_lock = self.live.write_lock(operation.seq)?;
        let _guard = write_lock.lock().await;
        let operation = &self.live.current_state(operation.seq)?;
        let rules = self.rules(operation);
        let step = match machine::step(operation, event, self.clock.now(), &rules) {
            Ok(step) => step,
            Err(error) => {
                tracing::error!(operation = %operation.seq, %error, "operation not advanced");
                return None;
            }
        };
        let Some(state) = step.state else {
            return Some((Arc::clone(operation), step.next));
        };
        if let Err(rule) = machine::check_invariants(&state) {
            tracing::error!(operation = %state.seq, rule, "operation not advanced");
            return None;
        }
        let state = Arc::new(state);
        self.persist(&state).await?;
        self.publish_change(operation, &state);
        if state.phase == Phase::Unknown {
            self.store.report_counts().await;
        }
        Some((state, step.next))
    }

    /// Publishes a state that is durable, and starts the next operation of the VM when it is final.
    pub(crate) fn publish_change(self: &Arc<Self>, before: &Operation, state: &Arc<Operation>) {
        if state.phase != before.phase {
            self.report_phase(state);
        }
        if let Some(claim) = self.live.publish(state) {
            self.start(claim);
        }
    }

    /// Writes until the state is durable. `None` when that is impossible.
    async fn persist(self: &Arc<Self>, state: &Arc<Operation>) -> Option<()> {
        loop {
            match self.store.update(state).await {
                Ok(()) => return Some(()),
                Err(StoreError::Unavailable(_))
                    if !self.stop.is_given() && self.lease.is_held() =>
                {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(STORE_RETRY) => {}
                        () = self.stop.given() => {}
                    }
                }
                Err(StoreError::Conflict) => {
                    // One process owns the store, so this is a defect or an edit from outside. The store decides.
                    if let Ok(Some(found)) = self.store.raw().read(state.seq).await
                        && let Some(claim) = self.live.publish(&found)
                    {
                        self.start(claim);
                    }
                    return None;
                }
                Err(_) => return None,
            }
        }
    }

    /// Logs a new phase, and records the end of an operation in the metrics and the audit trail.
    ///
    /// The phases on the way are logged at level `debug`: two lines of four, or of an update that was accepted and begun in
    /// one write, one of two.
    pub(crate) fn report_phase(&self, operation: &Operation) {
        let is_detail = matches!(operation.phase, Phase::Submitting | Phase::Running);
        if is_detail && !tracing::enabled!(target: "snapgate::operations", Level::DEBUG) {
            return;
        }
        // Another request may have brought the phase about, for instance one that cancels it.
        work_context::run_within(self.context_of(operation), || {
            self.record_phase(operation);
        });
    }

    fn record_phase(&self, operation: &Operation) {
        tracing::info!(
            target: "snapgate::operations",
            operation = %operation.seq,
            phase = operation.phase.as_str(),
            verb = operation.verb().as_str(),
            backend = operation.backend.as_str(),
            vm = operation.target().vm.as_str(),
            backup = operation.target().backup.as_str(),
            principal = operation.principal.as_str(),
            request_id = operation.request.as_str(),
            note = operation.note.as_ref().map(|note| note.as_str()),
            fault = operation.fault.as_ref().map(|fault| fault.kind.as_str()),
            "operation phase changed"
        );
        if let Some(completed) = operation.completed {
            audit::record_end(operation);
            record_span(operation, completed);
            self.metrics.operations.record_operation(
                operation.backend.as_str(),
                operation.verb().as_str(),
                operation.phase.as_str(),
                completed.since(operation.created),
            );
        }
    }
}

/// Records the end of an operation as a span of its trace.
fn record_span(operation: &Operation, completed: Timestamp) {
    if !telemetry::is_tracing_exported() {
        return;
    }
    let Some(context) = work_context::current_trace() else {
        return;
    };
    let target = operation.target();
    let ended = EndedOperation {
        operation: operation.seq.number(),
        request: operation.request.as_str(),
        verb: operation.verb().as_str(),
        backend: operation.backend.as_str(),
        vm: target.vm.as_str(),
        backup: target.backup.as_str(),
        outcome: operation.phase.as_str(),
        fault: operation.fault.as_ref().map(|fault| fault.kind.as_str()),
        created: operation.created,
        ended: completed,
    };
    telemetry::record_operation_span(context, &ended);
}
