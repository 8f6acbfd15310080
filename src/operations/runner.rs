//! At work on one operation: does what the machine decided, and tells the machine what came of it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::Effect as CallEffect;
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
use crate::operations::live_operations::Shown;
use crate::operations::live_operations::Turn;
use crate::operations::machine::Effect;
use crate::operations::machine::Event;
use crate::operations::preconditions;

/// Shortest time between two records of progress: each is a durable write.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Time between two looks at a task when the adapter says all the time that it is worth while.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
/// What looks may be ahead of that: the end that is told right after a step is seen at once, a flood of steps is not.
const LOOKS_AHEAD: Duration = Duration::from_millis(80);
/// How long a call that has begun may go on after the signal to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Lets go of the operation however the work ends, so that it can be taken up again.
struct AtWork {
    core: Arc<Core>,
    seq: OperationSeq,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.core.ledger.let_go(self.seq);
    }
}

/// Works on the operation until it is final or the gateway stops.
pub(crate) async fn drive(core: Arc<Core>, turn: Turn) {
    let Turn {
        mut operation,
        begun,
    } = turn;
    let _at_work = AtWork {
        core: Arc::clone(&core),
        seq: operation.seq,
    };
    if core.stop.is_given() {
        return;
    }
    let Some(backend) = core.backends.get(&operation.backend) else {
        tracing::warn!(seq = %operation.seq, backend = operation.backend.as_str(),
            "operation waits: its backend is not configured");
        return;
    };
    let is_begun = begun.is_some();
    let place = if is_begun {
        Some(begun)
    } else {
        slot(&core, backend, operation.phase).await
    };
    let Some(place) = place else { return };
    let mut work = Work {
        core: &core,
        backend,
        place,
        pace: core.config.poll_min,
        stirs: Stirs::default(),
        written: None,
        cancel_settled: false,
        shown: core.ledger.watch(operation.seq),
    };
    let mut effect = Effect::Call { first: true };
    let mut happened = (!is_begun).then(|| Event::Recovered {
        alive: core.clock.now(),
    });
    loop {
        if let Some(event) = happened.take() {
            if event.ends_work() {
                // The next one may begin over there while this end is written.
                drop(work.place.take());
            }
            let Some((state, next)) = core.advance(&operation, event).await else {
                return;
            };
            (operation, effect) = (state, next);
        }
        happened = match effect {
            Effect::Queue => work.prepare(&operation).await,
            Effect::Call { first } => work.call(&operation, first, first).await,
            Effect::Repeat { half } => work.repeat(&operation, !half).await,
            Effect::Follow => work.follow(&operation).await,
            Effect::Settle => work.settle(&operation).await,
            Effect::Find => work.find_later(&operation).await,
            Effect::Rest => None,
        };
        if happened.is_none() {
            return;
        }
    }
}

/// Waits for one of the places of the backend. What runs over there already is followed in any case.
async fn slot(
    core: &Core,
    backend: &Backend,
    phase: Phase,
) -> Option<Option<OwnedSemaphorePermit>> {
    let slots = Arc::clone(&backend.slots);
    if phase != Phase::Accepted {
        return Some(slots.try_acquire_owned().ok());
    }
    tokio::select! {
        biased;
        () = core.stop.given() => None,
        taken = slots.acquire_owned() => taken.ok().map(Some),
    }
}

/// The adapter panicked; it was counted.
struct Panicked;

/// How often it is heeded that an adapter says that a look is worth while.
#[derive(Debug, Default)]
struct Stirs {
    /// When the next look would be due if they came evenly.
    due: Option<Instant>,
}

impl Stirs {
    /// How long it is not heeded.
    fn heeded_in(&self, now: Instant) -> Duration {
        let from = self.due.and_then(|due| due.checked_sub(LOOKS_AHEAD));
        from.map_or(Duration::ZERO, |it| it.saturating_duration_since(now))
    }

    fn heeded(&mut self, now: Instant) {
        self.due = self.due.unwrap_or(now).max(now).checked_add(LOOK_EVERY_MIN);
    }
}

struct Work<'a> {
    core: &'a Core,
    backend: &'a Backend,
    /// One of the places of the backend, until there is nothing more to do over there.
    place: Option<OwnedSemaphorePermit>,
    /// Time to the next look; grows while nothing changes.
    pace: Duration,
    /// The looks that the adapter brought about.
    stirs: Stirs,
    /// When progress was last written.
    written: Option<Instant>,
    /// The VM manager was asked to stop the task, or refused for good.
    cancel_settled: bool,
    /// The operation as it is in the store: the wish to stop it comes from elsewhere.
    shown: Option<Shown>,
}

impl Work<'_> {
    /// Looks at the baseline. `None` when the gateway stops; that is the same for all of these.
    async fn prepare(&self, operation: &Operation) -> Option<Event> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let look = async {
            // A baseline may leave a mark: what would be refused anyway leaves none.
            preconditions::check(adapter.as_ref(), operation, by).await?;
            let key = operation.key();
            adapter.baseline(&operation.intent, key, by).await
        };
        Some(match self.until_stop(look).await? {
            Ok(Ok(baseline)) => Event::Start(baseline),
            Ok(Err(error)) => {
                log(operation, "baseline", &error);
                Event::NotStarted(error.fault)
            }
            Err(Panicked) => Event::NotStarted(Fault::new(
                FaultKind::BackendFailed,
                "The gateway failed before it asked the VM manager; nothing was changed.",
            )),
        })
    }

    /// Calls. Once begun it is given a little time even when the gateway stops.
    ///
    /// `judged` says whether the preconditions must hold: always, unless the call may be the second for what the first one
    /// did or half did.
    async fn call(&self, operation: &Operation, first: bool, judged: bool) -> Option<Event> {
        if self.core.stop.is_given() && !first {
            return None;
        }
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let baseline = operation.baseline.as_ref();
        let begin = async {
            if judged {
                preconditions::check(adapter.as_ref(), operation, by).await?;
            }
            let key = operation.key();
            adapter.begin(&operation.intent, key, baseline, by).await
        };
        let begun = tokio::select! {
            biased;
            begun = self.guarded(begin) => begun,
            () = async {
                self.core.stop.given().await;
                tokio::time::sleep(STOP_GRACE).await;
            } => return None,
        };
        Some(match begun {
            Ok(Ok(BeginOutcome::Done)) => Event::Done,
            Ok(Ok(BeginOutcome::Task(task))) => Event::Task(task),
            Ok(Err(error)) => {
                log(operation, "begin", &error);
                match error.effect {
                    CallEffect::None => Event::Refused {
                        fault: error.fault,
                        first,
                    },
                    CallEffect::Possible => Event::Lost,
                }
            }
            Err(Panicked) => Event::Lost,
        })
    }

    /// Calls after a pause that doubles with every call, so that a VM manager that drops it at once is not flooded.
    async fn repeat(&self, operation: &Operation, judged: bool) -> Option<Event> {
        let doubled = 2_u32.saturating_pow(operation.calls.saturating_sub(2));
        let config = &self.core.config;
        let pause = config.poll_min.saturating_mul(doubled).min(config.poll_max);
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            () = tokio::time::sleep(pause) => self.call(operation, true, judged).await,
        }
    }

    /// Looks at the task until there is something to tell. What goes wrong with looking says nothing about the task.
    async fn follow(&mut self, operation: &Operation) -> Option<Event> {
        let task = operation.task.as_ref()?;
        loop {
            self.pause(Some(task)).await?;
            if self.is_cancel_due() {
                self.cancel(operation, task).await?;
            }
            let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
            match self.until_stop(self.backend.adapter.poll(task, by)).await? {
                Ok(Ok(TaskState::Running(progress))) => {
                    if self.worth_writing(operation, progress) {
                        return Some(Event::Working(progress));
                    }
                }
                Ok(Ok(TaskState::Done)) => return Some(Event::Done),
                Ok(Ok(TaskState::Failed(fault))) => return Some(Event::Failed(fault)),
                Ok(Ok(TaskState::Cancelled)) => return Some(Event::Cancelled),
                Ok(Ok(TaskState::Gone)) => {
                    self.pace = self.core.config.poll_min;
                    return Some(Event::Lost);
                }
                Ok(Err(error)) => log(operation, "poll", &error),
                Err(Panicked) => {}
            }
        }
    }

    /// Whether somebody wants it stopped and the VM manager was not asked yet, by this process at least.
    fn is_cancel_due(&self) -> bool {
        let shown = self.shown.as_ref();
        !self.cancel_settled && shown.is_some_and(|shown| wants_cancel(shown.borrow().as_ref()))
    }

    /// Asks the VM manager to stop the task; what comes of it is seen by looking. Asking twice does no harm.
    async fn cancel(&mut self, operation: &Operation, task: &TaskRef) -> Option<()> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let asked = self.until_stop(self.backend.adapter.cancel(task, by));
        match asked.await? {
            Ok(Ok(())) => self.cancel_settled = true,
            Ok(Err(error)) => {
                log(operation, "cancel", &error);
                self.cancel_settled =
                    error.retry == Retry::Permanent && error.effect == CallEffect::None;
            }
            Err(Panicked) => {}
        }
        Some(())
    }

    fn worth_writing(&mut self, operation: &Operation, progress: Option<Progress>) -> bool {
        let news = progress.is_some_and(|progress| progress > operation.progress)
            || operation.uncertain_since.is_some();
        let now = self.core.clock.instant();
        let early = self
            .written
            .is_some_and(|written| now.saturating_duration_since(written) < PROGRESS_EVERY);
        if news && !early {
            self.written = Some(now);
        }
        news && !early
    }

    /// Waits for the settle time in full, whatever the wall clock says, then looks for evidence.
    async fn settle(&mut self, operation: &Operation) -> Option<Event> {
        let settle = self.core.rules(operation).settle;
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            () = tokio::time::sleep(settle) => self.find(operation).await,
        }
    }

    async fn find_later(&mut self, operation: &Operation) -> Option<Event> {
        self.pause(None).await?;
        self.find(operation).await
    }

    async fn find(&self, operation: &Operation) -> Option<Event> {
        let by = self.core.clock.deadline(limits::CALL_TIMEOUT);
        let adapter = &self.backend.adapter;
        let baseline = operation.baseline.as_ref();
        let find = adapter.find_outcome(&operation.intent, operation.key(), baseline, by);
        Some(match self.until_stop(find).await? {
            Ok(Ok(FindOutcome::NotBegun)) => Event::NotBegun,
            Ok(Ok(FindOutcome::VmChanged)) => Event::VmChanged,
            Ok(Ok(FindOutcome::HalfDone(fault))) => Event::HalfDone(fault),
            Ok(Ok(FindOutcome::Task(task))) => Event::Task(task),
            Ok(Ok(FindOutcome::Done)) => Event::Done,
            Ok(Ok(FindOutcome::Failed(fault))) => Event::Failed(fault),
            Ok(Ok(FindOutcome::NotYet)) => Event::NoEvidence,
            Ok(Ok(FindOutcome::Unknowable)) => Event::Unknowable,
            Ok(Err(error)) => {
                log(operation, "find", &error);
                Event::NoEvidence
            }
            Err(Panicked) => Event::NoEvidence,
        })
    }

    /// Waits before the next look: longer each time, shorter when the adapter says that it is worth while.
    async fn pause(&mut self, task: Option<&TaskRef>) -> Option<()> {
        let heeded_in = self.stirs.heeded_in(self.core.clock.instant());
        let (pace, heeded_in) = (self.pace, heeded_in.min(self.pace));
        let changed = async {
            match task {
                Some(task) => {
                    if self
                        .guarded(self.backend.adapter.changed(task))
                        .await
                        .is_err()
                    {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let due = task.is_some() && !self.cancel_settled;
        let mut shown = self.shown.clone();
        let cancel = async {
            // Asked already: the pace of the looks is the pace of the tries.
            let waits = |it: &&mut Shown| due && !wants_cancel(it.borrow().as_ref());
            if let Some(shown) = shown.as_mut().filter(waits)
                && shown
                    .wait_for(|shown| wants_cancel(shown.as_ref()))
                    .await
                    .is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        let (early, is_stirred) = tokio::select! {
            biased;
            () = self.core.stop.given() => return None,
            () = cancel => (true, false),
            () = tokio::time::sleep(pace) => (false, false),
            () = async { tokio::join!(tokio::time::sleep(heeded_in), changed); } => (true, true),
        };
        if is_stirred {
            self.stirs.heeded(self.core.clock.instant());
        }
        self.pace = if early {
            self.core.config.poll_min
        } else {
            longer(self.pace).min(self.core.config.poll_max)
        };
        Some(())
    }

    /// The result of what has no effect, or `None` when the gateway stops first.
    async fn until_stop<T>(&self, work: impl Future<Output = T>) -> Option<Result<T, Panicked>> {
        tokio::select! {
            biased;
            () = self.core.stop.given() => None,
            result = self.guarded(work) => Some(result),
        }
    }

    /// A panic in an adapter ends its call and nothing else.
    async fn guarded<T>(&self, work: impl Future<Output = T>) -> Result<T, Panicked> {
        AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .map_err(|_panic| {
                tracing::error!("an adapter panicked");
                self.core.metrics.panic("operations");
                Panicked
            })
    }
}

fn wants_cancel(shown: Option<&Arc<Operation>>) -> bool {
    shown.is_some_and(|shown| shown.cancel_asked.is_some())
}

/// 1.6 times as long.
fn longer(than: Duration) -> Duration {
    than.saturating_mul(8).checked_div(5).unwrap_or(than)
}

fn log(operation: &Operation, call: &str, error: &AdapterError) {
    if error.fault.kind == FaultKind::PreconditionFailed {
        // Nothing failed: another writer came first.
        tracing::info!(seq = %operation.seq, call, "precondition of an operation no longer holds");
        return;
    }
    let (seq, backend) = (operation.seq, operation.backend.as_str());
    let (kind, private) = (error.fault.kind.as_str(), error.private());
    if error.is_answer() {
        tracing::info!(%seq, backend, call, kind, private, "backend refused a call");
    } else {
        tracing::warn!(%seq, backend, call, kind, private, "call to a backend failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Clock as _;
    use crate::runtime::SystemClock;

    #[test]
    fn a_few_stirs_are_heeded_at_once_and_a_flood_is_not() {
        let begin = SystemClock.instant();
        let mut stirs = Stirs::default();
        let mut now = begin;
        let mut looks = 0_u32;
        while now < begin + Duration::from_secs(1) {
            let wait = stirs.heeded_in(now);
            assert!(wait <= LOOK_EVERY_MIN, "look {looks} waits {wait:?}");
            if looks < 4 {
                assert_eq!(wait, Duration::ZERO, "look {looks} is at once");
            }
            now += wait;
            stirs.heeded(now);
            looks += 1;
        }
        assert!((50..=56).contains(&looks), "fifty a second: {looks}");
        now += Duration::from_millis(100);
        assert_eq!(stirs.heeded_in(now), Duration::ZERO, "after a pause");
    }
}
