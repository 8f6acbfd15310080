//! The circuit breaker: after failures in a row, calls fail at once for a while, then one is tried.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use parking_lot::MutexGuard;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Scope;
use crate::adapters::layers::Call;
use crate::model::BackendName;
use crate::model::FaultKind;
use crate::public_text;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// How the backend is taken to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerState {
    /// Up, with so many failures in a row.
    Closed(u32),
    /// Down since then.
    Open(Instant),
    /// Down; one call is being made to see whether it still is.
    HalfOpen,
}

/// The breaker of one backend.
#[derive(Debug)]
pub(super) struct Breaker {
    name: BackendName,
    failures: u32,
    pause: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    state: Mutex<BreakerState>,
}

impl Breaker {
    /// Closed; opens after so many failures in a row (at least one), for so long.
    pub(super) fn new(
        name: BackendName,
        failures: u32,
        pause: Duration,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.backends.set_breaker_state(name.as_str(), 0);
        Self {
            name,
            failures: failures.max(1),
            pause,
            clock,
            metrics,
            state: Mutex::new(BreakerState::Closed(0)),
        }
    }

    /// Lets the call pass, or fails it without effect.
    pub(super) fn admit(&self, call: Call) -> Result<AdmittedCall<'_>, AdapterError> {
        let mut state = self.state();
        let trial = match *state {
            BreakerState::Closed(_) => false,
            BreakerState::Open(since) => {
                let rested = self.clock.instant().saturating_duration_since(since) >= self.pause;
                if rested {
                    self.set(&mut state, BreakerState::HalfOpen);
                } else if call.stops_at_breaker() {
                    return Err(self.open_error());
                }
                rested
            }
            BreakerState::HalfOpen if call.stops_at_breaker() => return Err(self.open_error()),
            BreakerState::HalfOpen => false,
        };
        Ok(AdmittedCall {
            breaker: self,
            trial,
            reported: false,
        })
    }

    fn open_error(&self) -> AdapterError {
        AdapterError::unavailable(public_text!(
            "The backend is temporarily unavailable after repeated failures. Try again later."
        ))
        .because(format_args!("the circuit breaker of {} is open", self.name))
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock()
    }

    fn set(&self, state: &mut BreakerState, to: BreakerState) {
        let number = |of: BreakerState| match of {
            BreakerState::Closed(_) => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open(_) => 2,
        };
        let (before, after) = (number(*state), number(to));
        *state = to;
        if before == after {
            return;
        }
        self.metrics
            .backends
            .set_breaker_state(self.name.as_str(), after);
        match after {
            0 => tracing::info!(backend = %self.name, "circuit breaker closed"),
            2 => tracing::warn!(backend = %self.name, "circuit breaker opened"),
            _ => tracing::debug!(backend = %self.name, "circuit breaker half-open"),
        }
    }

    fn record_success(&self) {
        let mut state = self.state();
        self.set(&mut state, BreakerState::Closed(0));
    }

    fn record_failure(&self, trial: bool) {
        let mut state = self.state();
        let to = match *state {
            BreakerState::Closed(before) => {
                let failures = before.saturating_add(1);
                if failures >= self.failures {
                    BreakerState::Open(self.clock.instant())
                } else {
                    BreakerState::Closed(failures)
                }
            }
            BreakerState::HalfOpen if trial => BreakerState::Open(self.clock.instant()),
            // Calls that pass an open breaker must not keep it open for ever.
            unchanged @ (BreakerState::Open(_) | BreakerState::HalfOpen) => unchanged,
        };
        self.set(&mut state, to);
    }
}

/// A call that the breaker let pass. Dropped without a result it counts as neither answered nor failed.
#[derive(Debug)]
pub(super) struct AdmittedCall<'a> {
    breaker: &'a Breaker,
    trial: bool,
    reported: bool,
}

impl AdmittedCall<'_> {
    /// How the call ended: `None` when the backend did what was asked.
    pub(super) fn report_result(mut self, error: Option<&AdapterError>) {
        self.reported = true;
        // One VM whose storage is not mounted, asked about again and again, must not take the others with it.
        let is_down = |error: &AdapterError| {
            error.scope == Scope::Backend && counts_as_failure(error.fault.kind)
        };
        if error.is_some_and(is_down) {
            self.breaker.record_failure(self.trial);
        } else {
            self.breaker.record_success();
        }
    }
}

impl Drop for AdmittedCall<'_> {
    fn drop(&mut self) {
        if self.trial && !self.reported {
            // The trial was dropped by its caller: the next call becomes the trial.
            let mut state = self.breaker.state();
            if *state == BreakerState::HalfOpen {
                let now = self.breaker.clock.instant();
                let since = now.checked_sub(self.breaker.pause).unwrap_or(now);
                self.breaker.set(&mut state, BreakerState::Open(since));
            }
        }
    }
}

/// Whether a failure of this kind says that the backend as a whole does not work.
const fn counts_as_failure(kind: FaultKind) -> bool {
    match kind {
        FaultKind::Unavailable | FaultKind::TimedOut | FaultKind::BackendFailed => true,
        FaultKind::NoSuchVm
        | FaultKind::NoSuchBackup
        | FaultKind::NameTaken
        | FaultKind::Protected
        | FaultKind::NotReady
        | FaultKind::PreconditionFailed
        | FaultKind::Busy
        | FaultKind::Conflict
        | FaultKind::Invalid
        | FaultKind::Unsupported
        | FaultKind::Damaged
        | FaultKind::StorageFull
        | FaultKind::BackendDenied
        | FaultKind::Cancelled
        | FaultKind::NotExecuted
        | FaultKind::OutcomeUnknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::runtime::ManualClock;

    /// What happens to the breaker, with what `admit` says and the metric shows afterwards.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Fail(Call),
        /// The call fails for a reason that lies in one VM.
        OneVm(Call),
        Answer(Call),
        Refused(Call),
        Drop(Call),
        Pass(u64),
    }

    fn failure(kind: FaultKind) -> AdapterError {
        AdapterError::refused(kind, public_text!("The call failed."))
    }

    #[expect(clippy::too_many_lines, reason = "it is a table")]
    #[test]
    fn opens_after_failures_tries_once_and_closes() {
        use Step::{Answer, Drop, Fail, OneVm, Pass, Refused};
        let rows: [(&str, &[Step], u8); 12] = [
            ("below the limit", &[Fail(Call::Read), Fail(Call::Read)], 0),
            (
                "at the limit",
                &[Fail(Call::Read), Fail(Call::Begin), Fail(Call::Poll)],
                2,
            ),
            (
                "an answer in between",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Answer(Call::Read),
                    Fail(Call::Read),
                ],
                0,
            ),
            (
                "open refuses reads and begins",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Refused(Call::Read),
                    Refused(Call::Begin),
                    Refused(Call::Baseline),
                    Pass(4),
                    Refused(Call::Health),
                ],
                2,
            ),
            (
                "open lets operations look after their tasks",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Poll),
                    Fail(Call::Find),
                    Fail(Call::Cancel),
                    Refused(Call::Vm),
                ],
                2,
            ),
            (
                "an answer to one of them closes",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Answer(Call::Poll),
                    Answer(Call::Vm),
                ],
                0,
            ),
            (
                "a failed trial opens again",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Pass(5),
                    Fail(Call::Read),
                    Refused(Call::Read),
                ],
                2,
            ),
            (
                "a good trial closes",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Pass(5),
                    Answer(Call::Read),
                ],
                0,
            ),
            (
                "a dropped trial makes way for the next",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Pass(5),
                    Drop(Call::Read),
                    Answer(Call::Read),
                ],
                0,
            ),
            (
                "failed polls do not keep it open",
                &[
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Fail(Call::Read),
                    Pass(4),
                    Fail(Call::Poll),
                    Pass(1),
                    Answer(Call::Begin),
                ],
                0,
            ),
            (
                "failures of one VM say nothing about the others",
                &[
                    OneVm(Call::Read),
                    OneVm(Call::Read),
                    OneVm(Call::Read),
                    OneVm(Call::Read),
                    Answer(Call::Begin),
                ],
                0,
            ),
            (
                "dropped calls say nothing",
                &[Drop(Call::Read), Drop(Call::Read), Drop(Call::Read)],
                0,
            ),
        ];
        for (name, steps, expected) in rows {
            let clock = Arc::new(ManualClock::new(Timestamp::default()));
            let (breaker, metrics) = make(&clock);
            for step in steps {
                match *step {
                    Fail(call) => breaker
                        .admit(call)
                        .unwrap()
                        .report_result(Some(&failure(FaultKind::Unavailable))),
                    Answer(call) => breaker
                        .admit(call)
                        .unwrap()
                        .report_result(Some(&failure(FaultKind::NoSuchVm))),
                    OneVm(call) => breaker
                        .admit(call)
                        .unwrap()
                        .report_result(Some(&failure(FaultKind::Unavailable).of_one_vm())),
                    Drop(call) => drop(breaker.admit(call).unwrap()),
                    Pass(seconds) => clock.advance(Duration::from_secs(seconds)),
                    Refused(call) => {
                        let error = breaker.admit(call).unwrap_err();
                        assert_eq!(error.fault.kind, FaultKind::Unavailable, "{name}: {step:?}");
                        assert_eq!(
                            error.effect,
                            crate::adapters::adapter::Effect::None,
                            "{name}"
                        );
                        assert_eq!(
                            error.retry,
                            crate::adapters::adapter::Retry::Temporary,
                            "{name}"
                        );
                    }
                }
            }
            let text = String::from_utf8(metrics.encode_text()).unwrap();
            let line = format!("snapgate_backend_breaker_state{{backend=\"b\"}} {expected}\n");
            assert!(text.contains(&line), "{name}: no {line} in {text}");
        }
    }

    #[test]
    fn only_one_call_is_the_trial() {
        let clock = Arc::new(ManualClock::new(Timestamp::default()));
        let (breaker, _metrics) = make(&clock);
        for _ in 0..3 {
            breaker
                .admit(Call::Read)
                .unwrap()
                .report_result(Some(&failure(FaultKind::TimedOut)));
        }
        clock.advance(Duration::from_secs(5));
        let trial = breaker.admit(Call::Read).unwrap();
        assert!(breaker.admit(Call::Read).is_err(), "a second one waits");
        breaker
            .admit(Call::Poll)
            .unwrap()
            .report_result(Some(&failure(FaultKind::TimedOut)));
        assert!(
            breaker.admit(Call::Read).is_err(),
            "a failed poll does not decide the trial"
        );
        trial.report_result(None);
        assert!(breaker.admit(Call::Read).is_ok(), "closed by the trial");
    }

    fn make(clock: &Arc<ManualClock>) -> (Breaker, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        let name = BackendName::new("b").unwrap();
        let pause = Duration::from_secs(5);
        (
            Breaker::new(name, 3, pause, clock, Arc::clone(&metrics)),
            metrics,
        )
    }
}
