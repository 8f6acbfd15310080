//! Health checks: every backend soon after the start and then periodically, so that an unused one is known to be down.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::adapters::adapter::Adapter;
use crate::adapters::adapter::AdapterError;
use crate::app::backends::AdapterDeps;
use crate::config::Backend;
use crate::model::BackendName;
use crate::operations::BackendHandle;
use crate::runtime::Clock;
use crate::telemetry::Metrics;

/// Longest time from the start to the first health check.
const FIRST: Duration = Duration::from_secs(5);

/// The health check tasks, one for each backend. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct HealthChecks(Vec<JoinHandle<()>>);

impl HealthChecks {
    /// Starts the health checks of every backend, through its layers.
    pub(crate) fn start(
        backends: &[Backend],
        handles: &[BackendHandle],
        deps: &AdapterDeps,
    ) -> Self {
        let look = |(backend, handle): (&Backend, &BackendHandle)| {
            let look = BackendCheck {
                name: handle.name.clone(),
                adapter: Arc::clone(&handle.adapter),
                timeout: backend.layers.timeout,
                interval: backend.layers.health_interval,
                clock: Arc::clone(&deps.clock),
                metrics: Arc::clone(&deps.metrics),
                last: None,
            };
            deps.tasks.spawn(look.repeated())
        };
        Self(backends.iter().zip(handles).map(look).collect())
    }

    /// Ends them, and returns once they let go of their backends.
    pub(crate) async fn stop(mut self) {
        for task in std::mem::take(&mut self.0) {
            task.abort();
            // Cancelled is how it ends.
            drop(task.await);
        }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// How a backend was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Available,
    Unavailable,
}

/// The health checks of one backend.
#[derive(Debug)]
struct BackendCheck {
    name: BackendName,
    adapter: Arc<dyn Adapter>,
    timeout: Duration,
    interval: Duration,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    last: Option<Condition>,
}

impl BackendCheck {
    async fn repeated(mut self) {
        // A start is busy enough, and the first requests of clients say as much as a look.
        tokio::time::sleep(self.interval.min(FIRST)).await;
        loop {
            self.once().await;
            tokio::time::sleep(self.interval).await;
        }
    }

    /// One call, however often its layers repeat it, of at most `backend.timeout`.
    async fn once(&mut self) {
        let by = self.clock.deadline(self.timeout);
        let found = self.adapter.health(by).await;
        self.metrics
            .backends
            .set_backend_up(self.name.as_str(), found.is_ok());
        let now = match &found {
            Ok(_) => Condition::Available,
            Err(_) => Condition::Unavailable,
        };
        let before = self.last.replace(now);
        match found {
            // At the start being available is nothing to log.
            Ok(health) if before == Some(Condition::Unavailable) => {
                tracing::info!(backend = %self.name, product = health.product, "backend available");
            }
            Err(error) if before != Some(Condition::Unavailable) => self.log(&error),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(backend = %self.name, reason = %error.fault.text, "backend still unavailable");
            }
        }
    }

    fn log(&self, error: &AdapterError) {
        tracing::warn!(
            backend = %self.name,
            kind = error.fault.kind.as_str(),
            reason = %error.fault.text,
            cause = error.private(),
            "backend unavailable"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::adapter::Effect;
    use crate::adapters::adapter::Retry;
    use crate::adapters::layers::Call;
    use crate::adapters::layers::Chaos;
    use crate::adapters::layers::InjectedFault;
    use crate::adapters::layers::Script;
    use crate::adapters::sim;
    use crate::adapters::sim::Sim;
    use crate::model::FaultKind;
    use crate::runtime::SystemClock;
    use crate::runtime::Tasks;

    fn look(script: &Script) -> (BackendCheck, Arc<Metrics>) {
        let clock = SystemClock::shared();
        let sim = Sim::new(
            &sim::Config::default(),
            Arc::clone(&clock),
            Tasks::default(),
        );
        let metrics = Arc::new(Metrics::new().unwrap());
        let look = BackendCheck {
            name: BackendName::new("lab").unwrap(),
            adapter: Arc::new(Chaos::new(Arc::new(sim), script.clone())),
            timeout: Duration::from_secs(10),
            interval: Duration::from_millis(1),
            clock,
            metrics: Arc::clone(&metrics),
            last: None,
        };
        (look, metrics)
    }

    fn is_up(metrics: &Metrics) -> Option<bool> {
        let text = String::from_utf8(metrics.encode_text()).unwrap();
        let prefix = "snapgate_backend_up{backend=\"lab\"} ";
        let value = text.lines().find_map(|line| line.strip_prefix(prefix))?;
        Some(value == "1")
    }

    #[tokio::test]
    async fn each_look_says_whether_the_backend_is_available() {
        let script = Script::default();
        let (mut look, metrics) = look(&script);
        assert_eq!(is_up(&metrics), None, "nothing is known before a look");
        for (fails, kind) in [
            (false, FaultKind::Unavailable),
            (true, FaultKind::Unavailable),
            (true, FaultKind::BackendDenied),
            (false, FaultKind::Unavailable),
        ] {
            if fails {
                let trouble = InjectedFault::Fail(kind, Effect::None, Retry::Permanent);
                script.add(Call::Health, trouble);
            }
            look.once().await;
            assert_eq!(is_up(&metrics), Some(!fails), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn looks_are_repeated_until_they_are_stopped() {
        let script = Script::default();
        let (look, metrics) = look(&script);
        let adapter = Arc::downgrade(&look.adapter);
        let looks = HealthChecks(vec![Tasks::default().spawn(look.repeated())]);
        let trouble = InjectedFault::Fail(FaultKind::Unavailable, Effect::None, Retry::Permanent);
        script.repeat(Call::Health, trouble, 3);
        let seen = async {
            while !(script.is_empty() && is_up(&metrics) == Some(true)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
        assert!(seen.is_ok(), "three failures and a recovery");
        looks.stop().await;
        assert!(adapter.upgrade().is_none(), "the backend is let go of");
    }
}
