//! Runs one operation: carries out what the machine decided, and reports to the machine what came of it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::adapter::Retry;
use crate::adapters::adapter::TaskState;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::Progress;
use crate::model::TaskRef;
use crate::model::limits;
use crate::operations::core::Backend;
use crate::operations::core::Core;
use crate::operations::hint_limiter::HintLimiter;
use crate::operations::live_operations::Claim;
use crate::operations::live_operations::OperationWatch;
use crate::operations::machine::Event;
use crate::operations::machine::NextAction;
use crate::operations::preconditions;
use crate::public_text;
use crate::runtime::work_context;

/// Shortest time between two records of progress: each is a durable write.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long a call that was made may still take after the signal to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Gives up the claim however the work ends, so that the operation can be claimed again.
struct ClaimGuard {
    core: Arc<Core>,
    seq: OperationSeq,
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        self.core.live.release_claim(self.seq);
    }
}

/// Works on the claimed operation until it is final or the gateway stops.
pub(crate) async fn run(core: Arc<Core>, claim: Claim) {
    let context = core.context_of(&claim.operation);
    work_context::within(context, work_on(core, claim)).await;
}

async fn work_on(core: Arc<Core>, claim: Claim) {
    let Claim {
        mut operation,
        slot,
    } = claim;
    let _guard = ClaimGuard {
        core: Arc::clone(&core),
        seq: operation.seq,
    };
    // The record stays as it is on disk, and the next gateway claims it.
    if core.stop.is_given() {
        return;
    }
    // Left unfinished on purpose: a backend that comes back with the next configuration finds its operations waiting.
    let Some(backend) = core.backends.get(&operation.backend) else {
        tracing::warn!(operation = %operation.seq, backend = operation.backend.as_str(),
            "operation waits for a backend that is not configured");
        return;
    };
    // Its acceptance wrote it as SUBMITTING already: the call comes next.
    let is_submitted = slot.is_some();
    let slot = if is_submitted {
        Some(slot)
    } else {
        acquire_slot(&core, backend, operation.phase).await
    };
    let Some(slot) = slot else { return };
    let mut run = OperationRun {
        core: &core,
        backend,
        slot,
        poll_pause: core.config.poll_min,
        hints: HintLimiter::default(),
        progress_written: None,
        is_cancel_settled: false,
        watch: core.live.watch(operation.seq),
    };
    // Overwritten at once unless the acceptance wrote SUBMITTING, in which case no event comes before the call.
    let mut action = NextAction::Call { first: true };
    let mut event = (!is_submitted).then(|| Event::Recovered {
        last_alive: core.clock.now(),
    });
    loop {
        if let Some(event) = event.take() {
            if event.frees_slot() {
                // The next operation may start at the backend while this end is written.
                // Not after `Lost`: the call may still run at the VM manager.
                drop(run.slot.take());
            }
            // Acting on a state that is not on disk could repeat a change, so the operation is left as it is.
            let Some((state, next)) = core.advance(&operation, event).await else {
                return;
            };
            (operation, action) = (state, next);
        }
        event = run.carry_out(&operation, action).await;
        if event.is_none() {
            return;
        }
    }
}

/// Waits for a slot of the backend; `None` when the gateway stops. An operation that the VM manager may be running already
/// is followed without one.
async fn acquire_slot(
    core: &Core,
    backend: &Backend,
    phase: Phase,
) -> Option<Option<OwnedSemaphorePermit>> {
    let slots = Arc::clone(&backend.slots);
    if phase != Phase::Accepted {
        // Taken if one is free, so that new operations do not exceed the limit, but never waited for: the task runs
        // anyway.
        return Some(slots.try_acquire_owned().ok());
    }
    tokio::select! {
        // The stop first: with both ready, starting one more operation would only delay the exit.
        biased;
        () = core.stop.given() => None,
        slot = slots.acquire_owned() => slot.ok().map(Some),
    }
}

/// The adapter panicked; it was logged and counted.
struct Panicked;

/// The work on one operation, from its claim to its end or the stop of the gateway.
///
/// Methods that return `Option` return `None` when the gateway stops or its lease has ended.
struct OperationRun<'a> {
    core: &'a Core,
    backend: &'a Backend,
    /// A slot of the backend, until the VM manager is done with the operation.
    slot: Option<OwnedSemaphorePermit>,
    /// Time to the next poll; grows while nothing changes.
    poll_pause: Duration,
    hints: HintLimiter,
    /// When progress was last written.
    progress_written: Option<Instant>,
    /// The VM manager took the request to cancel the task, or refused it for good.
    is_cancel_settled: bool,
    /// The operation as it is in the store, where a request to cancel it appears.
    watch: Option<OperationWatch>,
}

impl OperationRun<'_> {
    /// Carries out what the machine decided, and returns what came of it; `None` when there is nothing more to do.
    async fn carry_out(&mut self, operation: &Operation, action: NextAction) -> Option<Event> {
        match action {
            NextAction::Queue => self.take_baseline(operation).await,
            NextAction::Call { first } => self.call(operation, first, first).await,
            NextAction::CallAgain { is_half_done } => {
                self.call_again(operation, !is_half_done).await
            }
            NextAction::Follow => self.follow_task(operation).await,
            NextAction::Settle => self.settle(operation).await,
            NextAction::SearchAgain => self.search_again(operation).await,
            NextAction::Nothing => None,
        }
    }

    /// Checks the preconditions and takes the baseline.
    async fn take_baseline(&self, operation: &Operation) -> Option<Event> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let baseline = async {
            // In this order: a baseline may leave a mark in the VM manager, and a refused operation must leave none.
            preconditions::check(adapter.as_ref(), operation, by).await?;
            let key = operation.key();
            adapter.baseline(&operation.intent, key, by).await
        };
        Some(match self.unless_stopped(baseline).await? {
            Ok(Ok(baseline)) => Event::Start(baseline),
            // Nothing is known of the VM manager: the next active gateway asks it.
            Ok(Err(_)) if !self.core.lease.is_held() => return None,
            Ok(Err(error)) => {
                log_failure(operation, "baseline", &error);
                Event::NotStarted(error.fault)
            }
            // Nothing was sent yet, so a defect of the adapter is a failure that is known, unlike one during the
            // call.
            Err(Panicked) => Event::NotStarted(Fault::new(
                FaultKind::BackendFailed,
                public_text!(
                    "The gateway failed before it called the VM manager; nothing was changed. Try again, and report the failure to the operator if it persists."
                ),
            )),
        })
    }

    /// Calls the adapter. Once made, the call may take a little longer even when the gateway stops.
    ///
    /// `is_conditional` says whether the preconditions must hold: always, unless the call may be the second one for what
    /// the first one did or half did.
    async fn call(
        &self,
        operation: &Operation,
        first: bool,
        is_conditional: bool,
    ) -> Option<Event> {
        // A first call is made even now: SUBMITTING is on disk, and not calling would leave an uncertain operation
        // for nothing.
        if self.core.stop.is_given() && !first {
            return None;
        }
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let baseline = operation.baseline.as_ref();
        let begin = async {
            if is_conditional {
                preconditions::check(adapter.as_ref(), operation, by).await?;
            }
            let key = operation.key();
            adapter.begin(&operation.intent, key, baseline, by).await
        };
        let outcome = tokio::select! {
            biased;
            outcome = self.catch_panic(begin) => outcome,
            // Dropping the call at once would make every stop leave uncertain operations behind.
            () = async {
                self.core.stop.given().await;
                tokio::time::sleep(STOP_GRACE).await;
            } => return None,
        };
        Some(match outcome {
            Ok(Ok(BeginOutcome::Done)) => Event::Done(None),
            Ok(Ok(BeginOutcome::Task(task))) => Event::Task(task),
            // The call may have been refused for that reason alone. The record says SUBMITTING, which the next active gateway
            // resolves by evidence.
            Ok(Err(_)) if !self.core.lease.is_held() => return None,
            Ok(Err(error)) => {
                log_failure(operation, "begin", &error);
                match error.effect {
                    Effect::None => Event::Refused {
                        fault: error.fault,
                        first,
                    },
                    Effect::Possible => Event::Lost,
                }
            }
            // The panic may have come after the request was sent.
            Err(Panicked) => Event::Lost,
        })
    }

    /// Calls after a pause that doubles with every call, so that a VM manager that discards it at once is not flooded.
    async fn call_again(&self, operation: &Operation, is_conditional: bool) -> Option<Event> {
        // The call that comes now is counted already, and the first repetition waits for `poll_min`.
        let factor = 2_u32.saturating_pow(operation.calls.saturating_sub(2));
        let config = &self.core.config;
        let pause = config.poll_min.saturating_mul(factor).min(config.poll_max);
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            () = tokio::time::sleep(pause) => self.call(operation, true, is_conditional).await,
        }
    }

    /// Polls the task until there is something to report. A failed poll says nothing about the task.
    async fn follow_task(&mut self, operation: &Operation) -> Option<Event> {
        let task = operation.task.as_ref()?;
        loop {
            self.pause(Some(task)).await?;
            if self.is_cancel_due() {
                self.cancel_task(operation, task).await?;
            }
            // A deadline for each poll, none for the task: no operation fails because time has passed.
            let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
            match self
                .unless_stopped(self.backend.adapter.poll(task, by))
                .await?
            {
                Ok(Ok(TaskState::Running(progress))) => {
                    if self.is_progress_due(operation, progress) {
                        return Some(Event::Working(progress));
                    }
                }
                Ok(Ok(TaskState::Done(notice))) => return Some(Event::Done(notice)),
                Ok(Ok(TaskState::Failed(fault))) => return Some(Event::Failed(fault)),
                Ok(Ok(TaskState::Cancelled)) => return Some(Event::Cancelled),
                Ok(Ok(TaskState::Gone)) => {
                    // The search for evidence begins at the shortest interval again, because callers are waiting for
                    // its result.
                    self.poll_pause = self.core.config.poll_min;
                    return Some(Event::Lost);
                }
                // The VM manager may be restarting. The task is asked for again, for as long as the operation is
                // unfinished.
                Ok(Err(error)) => log_failure(operation, "poll", &error),
                Err(Panicked) => {}
            }
        }
    }

    /// Whether the operation is to be cancelled and the VM manager was not asked yet, by this process at least.
    fn is_cancel_due(&self) -> bool {
        let watch = self.watch.as_ref();
        !self.is_cancel_settled
            && watch.is_some_and(|watch| is_cancel_requested(watch.borrow().as_ref()))
    }

    /// Asks the VM manager to cancel the task; polls show what came of it. Asking twice does no harm.
    async fn cancel_task(&mut self, operation: &Operation, task: &TaskRef) -> Option<()> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let cancel = self.unless_stopped(self.backend.adapter.cancel(task, by));
        match cancel.await? {
            Ok(Ok(())) => self.is_cancel_settled = true,
            Ok(Err(error)) => {
                log_failure(operation, "cancel", &error);
                self.is_cancel_settled =
                    // Only a refusal for good ends the attempts. After anything else the next poll asks once more.
                    error.retry == Retry::Permanent && error.effect == Effect::None;
            }
            Err(Panicked) => {}
        }
        Some(())
    }

    /// Whether the progress is new, and the last record of it long enough ago.
    fn is_progress_due(&mut self, operation: &Operation, progress: Option<Progress>) -> bool {
        let is_new = progress.is_some_and(|progress| progress > operation.progress)
            // A task that is alive after a search is news even without progress: the operation is no longer
            // uncertain.
            || operation.uncertain_since.is_some();
        let now = self.core.clock.instant();
        let is_early = self
            .progress_written
            .is_some_and(|written| now.saturating_duration_since(written) < PROGRESS_EVERY);
        // The time of the record, not of the look: otherwise frequent polls would postpone the write for ever.
        if is_new && !is_early {
            self.progress_written = Some(now);
        }
        is_new && !is_early
    }

    /// Waits for the whole settle time, whatever the wall clock says, then searches for evidence.
    async fn settle(&mut self, operation: &Operation) -> Option<Event> {
        let settle = self.core.rules(operation).settle;
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            // A request whose answer was lost may still arrive at the VM manager. Evidence that is taken too early
            // would say that it never did.
            () = tokio::time::sleep(settle) => self.search(operation).await,
        }
    }

    async fn search_again(&mut self, operation: &Operation) -> Option<Event> {
        self.pause(None).await?;
        self.search(operation).await
    }

    /// Searches for evidence of what became of the call. A failed search is no evidence.
    async fn search(&self, operation: &Operation) -> Option<Event> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let baseline = operation.baseline.as_ref();
        let find = adapter.find_outcome(&operation.intent, operation.key(), baseline, by);
        Some(match self.unless_stopped(find).await? {
            // This and `HalfDone` alone allow another call. Adapters give them only where they can prove it.
            Ok(Ok(FindOutcome::NotBegun)) => Event::NotBegun,
            Ok(Ok(FindOutcome::VmChanged)) => Event::VmChanged,
            Ok(Ok(FindOutcome::HalfDone(fault))) => Event::HalfDone(fault),
            Ok(Ok(FindOutcome::Task(task))) => Event::Task(task),
            Ok(Ok(FindOutcome::Done(notice))) => Event::Done(notice),
            Ok(Ok(FindOutcome::Failed(fault))) => Event::Failed(fault),
            Ok(Ok(FindOutcome::NotYet)) => Event::NoEvidence,
            Ok(Ok(FindOutcome::Unknowable)) => Event::Unknowable,
            Ok(Err(error)) => {
                log_failure(operation, "find", &error);
                Event::NoEvidence
            }
            Err(Panicked) => Event::NoEvidence,
        })
    }

    /// Pauses before the next poll or search: longer each time, shorter when the adapter hints at a change of the task or a
    /// cancellation is requested.
    async fn pause(&mut self, task: Option<&TaskRef>) -> Option<()> {
        let ignored_for = self.hints.ignored_for(self.core.clock.instant());
        let (pause, ignored_for) = (self.poll_pause, ignored_for.min(self.poll_pause));
        let is_cancellable = task.is_some() && !self.is_cancel_settled;
        let (is_early, is_hinted) = tokio::select! {
            biased;
            () = self.core.stop.given() => return None,
            () = cancel_requested(self.watch.clone().filter(|_| is_cancellable)) => (true, false),
            () = tokio::time::sleep(pause) => (false, false),
            () = async { tokio::join!(tokio::time::sleep(ignored_for), self.task_changed(task)); } => (true, true),
        };
        if is_hinted {
            self.hints.count_poll(self.core.clock.instant());
        }
        self.poll_pause = if is_early {
            self.core.config.poll_min
        } else {
            lengthen(self.poll_pause).min(self.core.config.poll_max)
        };
        Some(())
    }

    /// Returns when the adapter hints at a change of the task; never without a task, or when the adapter panics.
    async fn task_changed(&self, task: Option<&TaskRef>) {
        if let Some(task) = task
            && let Ok(()) = self.catch_panic(self.backend.adapter.changed(task)).await
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// The result of a call without effect, or `None` when the gateway stops first.
    async fn unless_stopped<T>(
        &self,
        call: impl Future<Output = T>,
    ) -> Option<Result<T, Panicked>> {
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            result = self.catch_panic(call) => Some(result),
        }
    }

    /// A panic in an adapter ends its call and nothing else.
    async fn catch_panic<T>(&self, call: impl Future<Output = T>) -> Result<T, Panicked> {
        AssertUnwindSafe(call)
            .catch_unwind()
            .await
            .map_err(|_panic| {
                tracing::error!("adapter panicked");
                self.core.metrics.process.record_panic("operations");
                Panicked
            })
    }
}

/// Returns when a cancellation is requested. Never when one was requested before: then the pause between two polls is also
/// the pause between two tries to cancel.
async fn cancel_requested(watch: Option<OperationWatch>) {
    if let Some(mut watch) = watch
        && !is_cancel_requested(watch.borrow().as_ref())
        && watch
            .wait_for(|state| is_cancel_requested(state.as_ref()))
            .await
            .is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn is_cancel_requested(state: Option<&Arc<Operation>>) -> bool {
    state.is_some_and(|operation| operation.cancel_asked.is_some())
}

/// 1.6 times as long.
fn lengthen(pause: Duration) -> Duration {
    pause.saturating_mul(8).checked_div(5).unwrap_or(pause)
}

fn log_failure(operation: &Operation, call: &str, error: &AdapterError) {
    if error.fault.kind == FaultKind::PreconditionFailed {
        // Nothing failed: another writer came first.
        tracing::info!(call, "operation precondition no longer holds");
        return;
    }
    let backend = operation.backend.as_str();
    let (kind, private) = (error.fault.kind.as_str(), error.private());
    if error.is_answer() {
        tracing::info!(backend, call, kind, private, "backend refused a call");
    } else {
        tracing::warn!(backend, call, kind, private, "backend call failed");
    }
}
